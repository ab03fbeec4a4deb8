//! Index numbers with generations, for what tables refer to by index.

use std::collections::{HashMap, VecDeque};

use ncm_common::tables::Name;

/// Gives out indices from 1 up. A freed one is given out again last, with the next generation.
#[derive(Debug)]
pub(crate) struct Allocator {
    /// The table has this many slots, the first of which is never used.
    slots: u32,
    highest: u32,
    /// The generation of an index that was never given out, as far as is known. An earlier run may have given it out and
    /// taken it back: what still refers to it must miss.
    first: u32,
    free: VecDeque<(u32, u32)>,
    /// What an earlier run gave out and nobody has claimed yet.
    seeded: HashMap<Box<str>, (u32, u32)>,
    /// All that an earlier run gave out, during a replay: who comes and goes in it comes back to the same index.
    replayed: Option<HashMap<(u32, u32), Box<str>>>,
}

impl Default for Allocator {
    fn default() -> Self {
        Self::of(u32::MAX, 1)
    }
}

impl Allocator {
    /// An allocator for a table with that many slots, whose generations begin at `first`.
    pub(crate) fn of(slots: u32, first: u32) -> Self {
        Self {
            slots,
            highest: 0,
            first: first.max(1),
            free: VecDeque::new(),
            seeded: HashMap::new(),
            replayed: None,
        }
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
        self.first = self.first.max(generation.saturating_add(1));
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
            return Some((index, generation.wrapping_add(1).max(self.first)));
        }
        let next = self.highest.checked_add(1).filter(|next| *next < self.slots)?;
        self.highest = next;
        Some((next, self.first))
    }

    /// Takes an index back.
    pub(crate) fn release(&mut self, index: u32, generation: u32) {
        if let Some(identity) = self.replayed.as_ref().and_then(|known| known.get(&(index, generation))) {
            self.seeded.insert(identity.clone(), (index, generation));
        } else {
            self.free.push_back((index, generation));
        }
    }

    /// From now on what happened once happens again.
    pub(crate) fn begin_replay(&mut self) {
        let known = self.seeded.iter().map(|(identity, given)| (*given, identity.clone()));
        self.replayed = Some(known.collect());
    }

    /// The replay has ended. `claims_all`: who has not claimed an index by now will not; else they wait for their owners.
    pub(crate) fn end_replay(&mut self, claims_all: bool) {
        self.replayed = None;
        if claims_all {
            self.free.extend(self.seeded.drain().map(|(_, given)| given));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_gives_no_index_with_a_generation_that_an_earlier_one_gave() {
        let mut first = Allocator::of(100, 70);
        let given: Vec<_> = ["a", "b", "c"].map(|id| first.assign(id).unwrap()).to_vec();
        assert_eq!(given, [(1, 70), (2, 70), (3, 70)]);
        first.release(1, 70);
        first.release(3, 70);
        // The next run knows of `b` alone: `a` and `c` have taken their names along.
        let mut second = Allocator::of(100, 90);
        second.seed("b", 2, 70);
        second.seeded();
        assert_eq!(second.assign("d"), Some((1, 90)));
        assert_eq!(second.assign("e"), Some((3, 90)));
        assert_eq!(second.assign("b"), Some((2, 70)));
        second.release(2, 70);
        assert_eq!(
            second.assign("f"),
            Some((2, 90)),
            "as any that a former run may have given out meanwhile"
        );
    }

    #[test]
    fn who_comes_and_goes_in_a_replay_comes_back_to_the_same_index() {
        let mut indices = Allocator::of(100, 5);
        indices.seed("a", 1, 3);
        indices.seed("gone", 2, 3);
        indices.seeded();
        indices.begin_replay();
        for _ in 0..3 {
            let (index, generation) = indices.assign("a").unwrap();
            assert_eq!((index, generation), (1, 3));
            let other = indices.assign("of the past").unwrap();
            assert!(other.0 > 2, "{other:?}");
            indices.release(other.0, other.1);
            indices.release(index, generation);
        }
        assert_eq!(indices.assign("a"), Some((1, 3)));
        indices.end_replay(true);
        let given: Vec<_> = (0..3).filter_map(|number| indices.assign(&format!("new {number}"))).collect();
        assert!(given.contains(&(2, 5)) && given.iter().all(|(index, _)| *index != 1), "{given:?}");
    }

    #[test]
    fn generations_begin_above_all_that_are_known_even_if_the_clock_does_not() {
        let mut indices = Allocator::of(100, 5);
        indices.seed("b", 2, 70);
        indices.seeded();
        assert_eq!(indices.assign("a"), Some((1, 71)));
    }
}
