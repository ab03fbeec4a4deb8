//! What neighbours of one message share: who asked for them, when, in which revision. Stored once per combination.

use super::index::Index;
use super::slab::Slab;
use super::strings::{Strings, Sym};
use crate::policy::Policy;
use crate::state::Origin;

/// What neighbours share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Provenance {
    pub(crate) revision: u32,
    pub(crate) request: Sym,
    pub(crate) vpc: Sym,
    /// The class of members of their security groups; 0 without groups.
    pub(crate) members: u32,
    /// The fields that have no place elsewhere, encoded as a `NeighborConfiguration`.
    pub(crate) extra: Sym,
    pub(crate) time: u64,
    pub(crate) origin: Origin,
}

impl Default for Provenance {
    fn default() -> Self {
        Self {
            revision: 0,
            request: Sym::EMPTY,
            vpc: Sym::EMPTY,
            members: 0,
            extra: Sym::EMPTY,
            time: 0,
            origin: Origin::Controller,
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    value: Provenance,
    holders: u32,
}

/// Provenances with a count of their holders.
#[derive(Debug, Default)]
pub(crate) struct Provenances {
    entries: Slab<Entry>,
    index: Index,
    last: Option<(Provenance, u32)>,
}

impl Provenances {
    /// Stores a provenance, or counts one more holder of it. Texts and class gain a holder only when it is new.
    pub(crate) fn hold(&mut self, value: Provenance, strings: &mut Strings, policy: &mut Policy) -> u32 {
        if let Some((last, slot)) = self.last
            && last == value
        {
            self.entries[slot].holders += 1;
            return slot;
        }
        let found = self.index.find(&value, |slot| self.entries[*slot].value == value);
        let slot = if let Some(slot) = found {
            self.entries[slot].holders += 1;
            slot
        } else {
            strings.retain(value.request);
            strings.retain(value.vpc);
            strings.retain(value.extra);
            policy.retain_members(value.members);
            let slot = self.entries.insert(Entry { value, holders: 1 });
            let entries = &self.entries;
            self.index.insert(&value, slot, |slot| entries[slot].value);
            slot
        };
        self.last = Some((value, slot));
        slot
    }

    /// Counts one holder less.
    pub(crate) fn release(&mut self, slot: u32, strings: &mut Strings, policy: &mut Policy) {
        let entry = &mut self.entries[slot];
        entry.holders -= 1;
        if entry.holders > 0 {
            return;
        }
        let value = entry.value;
        self.last = None;
        self.index.remove(&value, |other| *other == slot);
        self.entries.remove(slot);
        strings.release(value.request);
        strings.release(value.vpc);
        strings.release(value.extra);
        policy.release_members(value.members);
    }

    /// The provenance in a slot.
    pub(crate) fn get(&self, slot: u32) -> &Provenance {
        &self.entries[slot].value
    }
}
