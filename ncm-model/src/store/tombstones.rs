//! Revisions of deleted resources, so that a late message cannot resurrect them; bounded in number and age.

use std::collections::VecDeque;

use hashbrown::HashMap;

/// Identity of a deleted resource: a kind and an id.
pub(crate) type Identity = (u8, Box<str>);

#[derive(Debug, Clone, Copy)]
struct Tombstone {
    revision: u32,
    serial: u64,
}

/// Revisions of deleted resources.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    held: HashMap<u8, HashMap<Box<str>, Tombstone>>,
    order: VecDeque<(u64, u64, Identity)>,
    serial: u64,
}

impl Tombstones {
    /// Notes a deletion; `now` in seconds. Beyond `most`, the oldest goes.
    pub(crate) fn bury(&mut self, kind: u8, id: &str, revision: u32, now: u64, most: usize) {
        if most == 0 {
            return;
        }
        self.serial += 1;
        let tombstone = Tombstone { revision, serial: self.serial };
        self.held.entry(kind).or_default().insert(id.into(), tombstone);
        self.order.push_back((now, self.serial, (kind, id.into())));
        while self.order.len() > most {
            self.drop_oldest();
        }
    }

    /// Drops what is older than `age` seconds.
    pub(crate) fn expire(&mut self, now: u64, age: u64) {
        while self.order.front().is_some_and(|(buried, ..)| buried.saturating_add(age) < now) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, serial, (kind, id))) = self.order.pop_front()
            && let Some(held) = self.held.get_mut(&kind)
            && held.get(&id).is_some_and(|tombstone| tombstone.serial == serial)
        {
            held.remove(&id);
        }
    }

    /// The revision that a deleted resource had, while it is remembered.
    pub(crate) fn revision(&self, kind: u8, id: &str) -> Option<u32> {
        self.held.get(&kind)?.get(id).map(|tombstone| tombstone.revision)
    }

    /// All that is remembered, in the order of the deletions: kind, id, revision, and when.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, &str, u32, u64)> {
        self.order.iter().filter_map(|(buried, serial, (kind, id))| {
            let tombstone = self.held.get(kind)?.get(id).filter(|tombstone| tombstone.serial == *serial)?;
            Some((*kind, &**id, tombstone.revision, *buried))
        })
    }

    /// Forgets a deletion: the resource is held again.
    pub(crate) fn lift(&mut self, kind: u8, id: &str) {
        if let Some(held) = self.held.get_mut(&kind) {
            held.remove(id);
        }
    }
}
