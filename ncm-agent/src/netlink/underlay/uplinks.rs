//! The interfaces of the underlay: which they are, and how the packet path is told of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ncm_common::tables::Uplink;

use super::super::link::Link;
use super::state::State;

impl State {
    /// The interfaces that traffic may leave by: the configured ones, what is built upon them, and the bond (or
    /// bridge) that they belong to.
    pub(super) fn find_uplinks(&self) -> HashSet<u32> {
        let named = |link: &Link| self.settings.interfaces.contains(&link.name);
        let mut uplinks: HashSet<u32> = HashSet::new();
        for link in self.links.iter().filter(|link| named(link)) {
            uplinks.insert(link.index);
            uplinks.extend(link.master);
        }
        // VLANs on bonds on interfaces, and no deeper.
        for _ in 0..3 {
            let above =
                |link: &&Link| !link.is_veth() && link.lower.is_some_and(|lower| uplinks.contains(&lower));
            let found: Vec<u32> = self.links.iter().filter(above).map(|link| link.index).collect();
            uplinks.extend(found);
        }
        uplinks
    }

    /// The uplinks as the table has them, the named ones first if there are more than slots: each where its index has it looked
    /// for first, or where there is room.
    pub(super) fn uplink_slots(&self) -> [Uplink; 8] {
        let mut links: Vec<&Link> = self.uplinks.iter().filter_map(|index| self.links.get(*index)).collect();
        let is_named = |link: &Link| self.settings.interfaces.contains(&link.name);
        links.sort_unstable_by_key(|link| (!is_named(link), link.index));
        let stacks = stacks(&links);
        let mut slots = [Uplink::default(); 8];
        let mut elsewhere = Vec::new();
        for link in links.iter().take(slots.len()) {
            let stack = stacks.get(&link.index).copied().unwrap_or_default();
            let uplink = Uplink { ifindex: link.index, mac: link.mac.unwrap_or_default(), stack };
            let slot = &mut slots[link.index as usize & 7];
            if slot.ifindex == 0 {
                *slot = uplink;
            } else {
                elsewhere.push(uplink);
            }
        }
        for (slot, uplink) in slots.iter_mut().filter(|slot| slot.ifindex == 0).zip(elsewhere) {
            *slot = uplink;
        }
        slots
    }
}

/// The number of the stack that each interface is part of, from 1: a bond or bridge and what belongs to it, a VLAN and what it is
/// built upon.
fn stacks(links: &[&Link]) -> BTreeMap<u32, u16> {
    let mut lowest: BTreeMap<u32, u32> = links.iter().map(|link| (link.index, link.index)).collect();
    // With each round the lowest index of a stack gets one interface further.
    for _ in links {
        for link in links {
            let lower = link.lower.filter(|_| !link.is_veth());
            for other in link.master.into_iter().chain(lower) {
                if let (Some(one), Some(another)) = (lowest.get(&link.index), lowest.get(&other)) {
                    let least = *one.min(another);
                    lowest.extend([(link.index, least), (other, least)]);
                }
            }
        }
    }
    let numbers: BTreeSet<u32> = lowest.values().copied().collect();
    let number = |least: &u32| numbers.iter().position(|number| number == least).unwrap_or_default() + 1;
    lowest.iter().map(|(index, least)| (*index, u16::try_from(number(least)).unwrap_or(u16::MAX))).collect()
}
