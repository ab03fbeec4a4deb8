//! Classes of members: which groups an endpoint is a member of, each different list once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ncm_common::tables::MEMBERS;

/// How many different lists there may be: each has a name in a table that everything numbered shares.
const MOST: usize = 16_384;

#[derive(Debug)]
struct Class {
    /// Slots, in order.
    groups: Box<[u32]>,
    holders: u32,
}

/// The classes, by number. None is given out twice.
#[derive(Debug, Default)]
pub(super) struct Members {
    next: u32,
    classes: BTreeMap<u32, Class>,
    by_list: HashMap<Box<[u32]>, u32>,
    by_group: HashMap<u32, BTreeSet<u32>>,
    /// Classes that nothing may hold any more.
    idle: BTreeSet<u32>,
    /// Classes that entries of an earlier run may have.
    former: BTreeSet<u32>,
    /// There was no number for a list.
    pub(super) lacking: bool,
}

impl Members {
    pub(super) fn from(first: u32) -> Self {
        Self { next: (first & !MEMBERS).max(1), ..Self::default() }
    }

    /// The class of a list of groups in order, and whether it is new; `None` if there is no number for it.
    pub(super) fn hold(&mut self, groups: &[u32]) -> Option<(u32, bool)> {
        if let Some(number) = self.by_list.get(groups).copied() {
            self.retain(number);
            return Some((number, false));
        }
        if self.classes.len() >= MOST || self.next >= MEMBERS {
            self.lacking = true;
            return None;
        }
        let number = self.next | MEMBERS;
        self.next += 1;
        self.begin(number, groups);
        Some((number, true))
    }

    /// A class that an earlier run gave to this list, and that its entries may have; says whether it is the list's.
    pub(super) fn resume(&mut self, number: u32, groups: &[u32]) -> bool {
        if self.by_list.contains_key(groups) || self.classes.len() >= MOST {
            return false;
        }
        self.begin(number, groups);
        self.former.insert(number)
    }

    /// No entry of an earlier run has the class any more.
    pub(super) fn release_former(&mut self, number: u32) {
        if self.former.remove(&number) {
            self.release(number);
        }
    }

    fn begin(&mut self, number: u32, groups: &[u32]) {
        self.classes.insert(number, Class { groups: groups.into(), holders: 1 });
        self.by_list.insert(groups.into(), number);
        for group in groups {
            self.by_group.entry(*group).or_default().insert(number);
        }
    }

    pub(super) fn retain(&mut self, number: u32) {
        if let Some(class) = self.classes.get_mut(&number) {
            class.holders += 1;
        }
    }

    pub(super) fn release(&mut self, number: u32) {
        if let Some(class) = self.classes.get_mut(&number) {
            class.holders = class.holders.saturating_sub(1);
            if class.holders == 0 {
                self.idle.insert(number);
            }
        }
    }

    /// Forgets a class that nothing holds, and gives back its number and groups.
    pub(super) fn reap(&mut self) -> Option<(u32, Box<[u32]>)> {
        while let Some(number) = self.idle.pop_first() {
            if self.classes.get(&number).is_some_and(|class| class.holders == 0)
                && let Some(class) = self.classes.remove(&number)
            {
                self.by_list.remove(&class.groups);
                for group in &class.groups {
                    if let Some(classes) = self.by_group.get_mut(group) {
                        classes.remove(&number);
                        if classes.is_empty() {
                            self.by_group.remove(group);
                        }
                    }
                }
                return Some((number, class.groups));
            }
        }
        None
    }

    /// The groups of a class; none if it has gone.
    pub(super) fn groups(&self, number: u32) -> &[u32] {
        self.classes.get(&number).map_or(&[], |class| &class.groups)
    }

    /// The classes whose list has a group.
    pub(super) fn classes_of(&self, group: u32) -> impl Iterator<Item = u32> {
        self.by_group.get(&group).into_iter().flatten().copied()
    }

    /// Some class has the group.
    pub(super) fn names(&self, group: u32) -> bool {
        self.by_group.contains_key(&group)
    }
}
