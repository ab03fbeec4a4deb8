//! Who claims a key: an address or a MAC of a VNI. Nearly always one, so one is stored without overhead.

use std::collections::BTreeSet;
use std::hash::Hash;

use super::index::Index;
use super::slab::Slab;

/// Bit in the index that marks a group of several claims.
const GROUP: u32 = 1 << 31;
const FEW: usize = 6;

/// A claimant and what it contributes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Member {
    /// Highest wins: revision, then version (the latest change).
    pub(crate) rank: (u32, u64),
    /// The claiming address.
    pub(crate) slot: u32,
    /// Flags that are united over all claims of a key.
    pub(crate) flags: u16,
}

#[derive(Debug)]
enum Group {
    Few(Vec<u32>),
    /// Ordered, with the counts of L2 and L3 flags.
    Many(BTreeSet<Member>, [u32; 16]),
}

impl Default for Group {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

/// Claims by key.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    index: Index,
    groups: Slab<Group>,
}

/// A slot that claims the key of an index entry.
fn any_claimant(groups: &Slab<Group>, entry: u32) -> u32 {
    if entry & GROUP == 0 {
        return entry;
    }
    match &groups[entry & !GROUP] {
        Group::Few(slots) => slots.first().copied().unwrap_or_default(),
        Group::Many(members, _) => members.first().map_or(0, |member| member.slot),
    }
}

/// The winning slot of an index entry, and the flags of all its claims together.
fn winner(groups: &Slab<Group>, entry: u32, member_of: &impl Fn(u32) -> Member) -> Option<(u32, u16)> {
    if entry & GROUP == 0 {
        return Some((entry, member_of(entry).flags));
    }
    match &groups[entry & !GROUP] {
        Group::Few(slots) => {
            let members = slots.iter().map(|slot| member_of(*slot));
            let flags = members.clone().fold(0, |flags, member| flags | member.flags);
            members.max().map(|member| (member.slot, flags))
        }
        Group::Many(members, counts) => {
            let flags = (0..16).filter(|bit| counts[*bit] > 0).fold(0, |flags, bit| flags | 1 << bit);
            members.last().map(|member| (member.slot, flags))
        }
    }
}

fn count(counts: &mut [u32; 16], flags: u16, step: i32) {
    for (bit, count) in counts.iter_mut().enumerate() {
        if flags >> bit & 1 == 1 {
            *count = count.wrapping_add_signed(step);
        }
    }
}

impl Claims {
    /// Makes room for `count` claims where there are none.
    pub(crate) fn expect(&mut self, count: usize) {
        self.index.expect(count);
    }

    /// Adds a claim, and gives the winning slot that the key had, with the flags of all its claims; `None` if it had none. `key_of`
    /// and `member_of` tell a claiming slot's key and contribution.
    pub(crate) fn add<K: Hash + Eq>(
        &mut self,
        key: &K,
        slot: u32,
        key_of: impl Fn(u32) -> K,
        member_of: impl Fn(u32) -> Member,
    ) -> Option<(u32, u16)> {
        let groups = &mut self.groups;
        let Some(entry) = self.index.find_mut(key, |entry| key_of(any_claimant(groups, *entry)) == *key)
        else {
            let groups = &self.groups;
            self.index.insert(key, slot, |entry| key_of(any_claimant(groups, entry)));
            return None;
        };
        let before = winner(groups, *entry, &member_of);
        if *entry & GROUP == 0 {
            *entry = GROUP | groups.insert(Group::Few(vec![*entry, slot]));
            return before;
        }
        let group = &mut groups[*entry & !GROUP];
        match group {
            Group::Few(slots) if slots.len() < FEW => slots.push(slot),
            Group::Few(slots) => {
                slots.push(slot);
                let mut counts = [0; 16];
                let members: BTreeSet<Member> = slots.iter().map(|slot| member_of(*slot)).collect();
                members.iter().for_each(|member| count(&mut counts, member.flags, 1));
                *group = Group::Many(members, counts);
            }
            Group::Many(members, counts) => {
                let member = member_of(slot);
                count(counts, member.flags, 1);
                members.insert(member);
            }
        }
        before
    }

    /// Removes a claim; rank and flags have to be those that it was added with. Gives what [`Claims::add`] gives.
    pub(crate) fn remove<K: Hash + Eq>(
        &mut self,
        key: &K,
        slot: u32,
        key_of: impl Fn(u32) -> K,
        member_of: impl Fn(u32) -> Member,
    ) -> Option<(u32, u16)> {
        let groups = &mut self.groups;
        let entry = self.index.find_mut(key, |entry| key_of(any_claimant(groups, *entry)) == *key)?;
        let before = winner(groups, *entry, &member_of);
        if *entry & GROUP == 0 {
            let single = *entry;
            if single == slot {
                self.index.remove(key, |entry| *entry == single);
            }
            return before;
        }
        let number = *entry & !GROUP;
        match &mut groups[number] {
            Group::Few(slots) => {
                slots.retain(|other| *other != slot);
                if let [last] = slots[..] {
                    *entry = last;
                    groups.remove(number);
                }
            }
            Group::Many(members, counts) => {
                let member = member_of(slot);
                if members.remove(&member) {
                    count(counts, member.flags, -1);
                }
                if members.len() <= FEW / 2 {
                    groups[number] = Group::Few(members.iter().map(|member| member.slot).collect());
                }
            }
        }
        before
    }

    /// The winning slot of a key, and the flags of all its claims together.
    pub(crate) fn winner<K: Hash + Eq>(
        &self,
        key: &K,
        key_of: impl Fn(u32) -> K,
        member_of: impl Fn(u32) -> Member,
    ) -> Option<(u32, u16)> {
        let groups = &self.groups;
        let entry = self.index.find(key, |entry| key_of(any_claimant(groups, *entry)) == *key)?;
        winner(groups, entry, &member_of)
    }

    /// The key has this one claim and no other.
    pub(crate) fn sole<K: Hash + Eq>(&self, key: &K, slot: u32, key_of: impl Fn(u32) -> K) -> bool {
        let groups = &self.groups;
        self.index.find(key, |entry| key_of(any_claimant(groups, *entry)) == *key) == Some(slot)
    }
}
