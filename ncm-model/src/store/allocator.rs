//! Index numbers with generations, for what tables refer to by index.

use std::collections::{HashMap, VecDeque};

use ncm_common::tables::Name;

/// Gives out indices from 1 up. A freed one is given out again last, with the next generation.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// The table has this many slots, the first of which is never used.
    slots: u32,
    highest: u32,
    free: VecDeque<(u32, u32)>,
    /// What an earlier run gave out and nobody has claimed yet.
    seeded: HashMap<Box<str>, (u32, u32)>,
}

impl Default for Allocator {
    fn default() -> Self {
        Self::of(u32::MAX)
    }
}

impl Allocator {
    /// An allocator for a table with that many slots.
    pub(crate) fn of(slots: u32) -> Self {
        Self { slots, highest: 0, free: VecDeque::new(), seeded: HashMap::new() }
    }

    /// How many slots the table has.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Notes what an earlier run gave out, so that the same identity gets the same index.
    pub(crate) fn seed(&mut self, identity: &str, index: u32, generation: u32) {
        if index == 0 || generation == 0 || index >= self.slots {
            return;
        }
        while self.highest < index {
            self.highest += 1;
            self.free.push_back((self.highest, 0));
        }
        self.seeded.insert(identity.into(), (index, generation));
    }

    /// Ends the seeding: what no identity had is free.
    pub(crate) fn seeded(&mut self) {
        let taken: std::collections::HashSet<u32> = self.seeded.values().map(|(index, _)| *index).collect();
        self.free.retain(|(index, _)| !taken.contains(index));
    }

    /// An index and its generation for an identity; `None` while the table has no slot for it.
    pub(crate) fn assign(&mut self, identity: &str) -> Option<(u32, u32)> {
        if !self.seeded.is_empty()
            && let Some(known) = self.seeded.remove(Name::new(identity, 1).as_str())
        {
            return Some(known);
        }
        if let Some((index, generation)) = self.free.pop_front() {
            return Some((index, generation.wrapping_add(1).max(1)));
        }
        let next = self.highest.checked_add(1).filter(|next| *next < self.slots)?;
        self.highest = next;
        Some((next, 1))
    }

    /// Takes an index back.
    pub(crate) fn release(&mut self, index: u32, generation: u32) {
        self.free.push_back((index, generation));
    }
}
