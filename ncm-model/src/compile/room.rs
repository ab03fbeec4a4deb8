//! Room for what grows with products: routes between all subnets of a router, and its hosts' admission into all its VNIs.
//!
//! A small message can ask for more of these than any table holds, so they are counted before anything is compiled. A
//! subnet for which there is no room stays without its router, a host without its admission, until there is.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Model;
use crate::resources::Live;

/// What routers take up, and who waits for room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Sum of the squares of the routers' numbers of members.
    routes: u64,
    /// Sum of the routers' admitted hosts times VNIs.
    vteps: u64,
    /// Some became free since the last step.
    freed: bool,
    /// Subnets that cannot join their router, and of which table there is too little.
    waiting: BTreeMap<u32, Scarce>,
    /// Routers with hosts that are not admitted.
    barring: BTreeSet<u32>,
}

/// A table without room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scarce {
    Routes,
    Vteps,
}

impl Room {
    pub(crate) fn more_routes(&mut self, members: usize) {
        self.routes += 2 * members as u64 + 1;
    }

    /// A router has only so many `members` left.
    pub(crate) fn fewer_routes(&mut self, members: usize) {
        self.routes -= 2 * members as u64 + 1;
        self.freed = true;
    }

    pub(crate) fn more_vteps(&mut self, count: usize) {
        self.vteps += count as u64;
    }

    pub(crate) fn fewer_vteps(&mut self, count: usize) {
        self.vteps -= count as u64;
        self.freed = true;
    }

    /// The subnet does not wait for room (any more).
    pub(crate) fn wait_no_more(&mut self, slot: u32) {
        self.waiting.remove(&slot);
    }

    /// Some host may be kept out of its router's VNIs.
    pub(crate) fn any_barred(&self) -> bool {
        !self.barring.is_empty()
    }

    /// For want of what the subnet is not in its router, if it is for that.
    pub(crate) fn lacks(&self, slot: u32) -> Option<Scarce> {
        self.waiting.get(&slot).copied()
    }
}

impl Model {
    /// The router that a subnet is to be in, if there is room for what follows from it. If not, the subnet waits.
    pub(crate) fn router_with_room(&mut self, slot: u32, vni: u32, before: Option<Live>) -> Option<u32> {
        let router = self.subnets[slot].routers.values().next().copied()?;
        let Some(scarce) = self.scarce_for(router, vni, before) else { return Some(router) };
        self.room.waiting.insert(slot, scarce);
        None
    }

    fn scarce_for(&self, router: u32, vni: u32, before: Option<Live>) -> Option<Scarce> {
        let slots = &self.settings.slots;
        let state = &self.routers[router];
        let member = before.filter(|live| live.router == Some(router));
        let routes = 2 * state.members.len() as u64 + 1;
        if member.is_none() && self.room.routes + routes > u64::from(slots.routes) {
            return Some(Scarce::Routes);
        }
        if state.vnis.contains_key(&vni) {
            return None;
        }
        let hosts = state.admitted() as u64;
        // Its present VNI goes, if it is the only one that has it.
        let goes = member.is_some_and(|live| state.vnis.get(&live.vni) == Some(&1));
        let vteps = if goes { 0 } else { hosts };
        (self.room.vteps + vteps > u64::from(slots.vteps)).then_some(Scarce::Vteps)
    }

    /// There is room for a host's admission into all VNIs of a router.
    pub(crate) fn has_room_for_host(&self, router: u32) -> bool {
        let vteps = self.room.vteps + self.routers[router].vnis.len() as u64;
        vteps <= u64::from(self.settings.slots.vteps)
    }

    /// A host stays without admission into its router's VNIs.
    pub(crate) fn bar_host(&mut self, router: u32, host: u32) {
        self.routers[router].barred.insert(host);
        self.room.barring.insert(router);
    }

    /// Lets those that wait have what has become free.
    pub(crate) fn use_freed_room(&mut self) {
        if !std::mem::take(&mut self.room.freed) {
            return;
        }
        for router in std::mem::take(&mut self.room.barring) {
            while let Some(host) = self.routers.get(router).and_then(|state| state.barred.first().copied()) {
                if !self.has_room_for_host(router) {
                    self.room.barring.insert(router);
                    break;
                }
                self.routers[router].barred.remove(&host);
                self.admit_host(router, host);
            }
        }
        let waiting: Vec<u32> = self.room.waiting.keys().copied().collect();
        for slot in waiting {
            let Some(router) = self.subnets[slot].routers.values().next().copied() else { continue };
            let Some(live) = self.subnets[slot].live else { continue };
            if self.scarce_for(router, live.vni, Some(live)).is_none() {
                self.update_subnet(slot);
            }
        }
    }
}
