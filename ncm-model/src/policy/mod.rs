//! Security groups, compiled: what the rules of a port's groups allow, as entries of the tables of classes and of rules.
//!
//! Ports with the same list of groups share a **set**. Within a set and direction, each prefix that rules have is a **class** with a
//! number of its own; an address belongs to the classes of all prefixes that cover it, which its entry in the table of classes
//! lists. Rules are entries by class, family, protocol and ports; those for every address are under class 0, those for the members of
//! groups under the class of the list of groups that an endpoint is in. As rules only allow, a packet is allowed if any of its
//! classes has an entry for it. Entries are about as many as rules: no product of prefixes and ports is ever formed.
//!
//! # A change, one write at a time
//!
//! The kernel's tables change by single writes, packets pass in between, and each must get the decision of the old policy or that of
//! the new: what both allow is never denied, what both deny never allowed. The order of writes that gives this:
//!
//! 1. Entries of rules that come are written.
//! 2. Entries of classes that come or change are written, the **longest** prefix first.
//! 3. Entries of classes that go are deleted, the **shortest** prefix first.
//! 4. Entries of rules that go are deleted.
//!
//! Why it does: a class is never given to a second prefix, so that whatever a list names, rules found under it are rules for the
//! packet, of the old policy or of the new, and what both deny is denied at any moment. As to what both allow: from 1 to 3 the rules
//! of both are there, so it is enough that the list that a packet finds is complete, as the old policy has it or as the new. In 2,
//! if it finds a list already written, no longer prefix of the new policy covers it (that would have been written before and be found
//! instead), so the list is the new policy's for it; otherwise it finds the longest of the old prefixes, all of which are still there.
//! In 3, if it finds a list that is to go, no longer one to go has gone, so it is the old policy's for it; otherwise it is the new
//! policy's. In 4 all lists are the new policy's. The longest first in 2 is needed: of two nested prefixes that come in the place of
//! one shorter that goes, the outer's list does not name the inner.
//!
//! `tests/policy_updates.rs` replays every single write. A reviewer must refuse whatever gives a class number out a second time, or
//! writes in another order.

mod groups;
mod members;
mod ranges;
pub mod reference;
mod resume;
mod rule;
mod sets;
mod side;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ncm_common::tables::{MEMBERS, Name, NameKey, name_kinds};

pub(crate) use groups::{Change, Group, Held};
pub(crate) use rule::LONGEST_ID;

use crate::compile::{Handle, HandleKind};
use crate::settings::Settings;
use crate::store::Slab;
use members::Members;
use sets::Set;
use side::{Op, Size};

/// Between the ids of a list in its name.
const SEPARATOR: &str = ",";

/// Security groups and what is compiled of them.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    /// Most entries of one set.
    most_entries: usize,
    /// Most rules of all groups together.
    most_rules: usize,
    /// Room in the tables.
    room: Size,
    groups: Slab<Group>,
    by_id: HashMap<Box<str>, u32>,
    /// How many of the groups are held.
    held: usize,
    /// How many rules all held groups have.
    rules: usize,
    next_set: u32,
    sets: BTreeMap<u32, Set>,
    by_list: HashMap<Box<[u32]>, u32>,
    members: Members,
    /// What all sets take.
    taken: Size,
    /// Sets to bring up to date, to build, and to let go if nothing holds them.
    dirty: BTreeSet<u32>,
    unbuilt: BTreeSet<u32>,
    idle: BTreeSet<u32>,
    /// Refused sets to try again.
    again: BTreeSet<u32>,
    changed: BTreeSet<u32>,
    ops: Vec<Op>,
    /// A key may be in `ops` more than once.
    repeated: bool,
    names: Vec<(NameKey, Option<(Name, u32)>)>,
}

impl Policy {
    /// A policy without groups, whose sets and classes of members are numbered from these on, as earlier numbers are never given
    /// out again.
    pub(crate) fn new(first_set: u32, first_members: u32, settings: &Settings) -> Self {
        Self {
            most_entries: settings.limits.set_entries,
            most_rules: settings.limits.rules,
            room: Size {
                rules: settings.slots.rules as usize,
                classes: settings.slots.classes as usize,
                ranges: sets::MOST_RANGES,
            },
            next_set: first_set.max(1),
            members: Members::from(first_members),
            ..Self::default()
        }
    }

    /// Other bounds from now on.
    pub(crate) fn bound_by(&mut self, settings: &Settings) {
        self.most_entries = settings.limits.set_entries;
        self.most_rules = settings.limits.rules;
        self.room.rules = settings.slots.rules as usize;
        self.room.classes = settings.slots.classes as usize;
    }

    /// The set that stands for these groups (in order, each once, all held), held once more.
    pub(crate) fn hold_set(&mut self, groups: &[&str]) -> u32 {
        let slots: Box<[u32]> = groups.iter().map(|group| self.slot_of(group)).collect();
        if let Some(number) = self.by_list.get(&slots).copied() {
            if let Some(set) = self.sets.get_mut(&number) {
                set.holders += 1;
            }
            return number;
        }
        let number = self.next_set;
        self.next_set += 1;
        for slot in &slots {
            self.groups[*slot].sets.insert(number);
        }
        let first = slots.first().copied().unwrap_or_default();
        self.name(name_kinds::SET, number, groups, first);
        self.by_list.insert(slots.clone(), number);
        self.sets.insert(number, Set::new(slots));
        self.unbuilt.insert(number);
        number
    }

    /// The set is held once less. When nothing holds it any more, its entries go with the next [`Policy::compile`].
    pub(crate) fn release_set(&mut self, set: u32) {
        if let Some(held) = self.sets.get_mut(&set) {
            held.holders = held.holders.saturating_sub(1);
            if held.holders == 0 {
                self.idle.insert(set);
            }
        }
    }

    /// There has been a list of groups that no class was left for.
    pub(crate) fn has_lacked_members(&self) -> bool {
        self.members.lacking
    }

    /// The class of endpoints that are members of these groups (in order, each once), held once more; 0 for none, and if there are
    /// too many different lists.
    pub(crate) fn hold_members(&mut self, groups: &[&str]) -> u32 {
        if groups.is_empty() {
            return 0;
        }
        let slots: Vec<u32> = groups.iter().map(|group| self.slot_of(group)).collect();
        let Some((class, new)) = self.members.hold(&slots) else {
            slots.into_iter().for_each(|slot| self.forget_if_unused(slot));
            return 0;
        };
        if new {
            self.name(name_kinds::MEMBERS, class & !MEMBERS, groups, slots[0]);
            self.disturb_members(class, &slots);
        }
        class
    }

    /// Takes over a class of members of an earlier run, by its name: until its endpoints are held again, or gone, rules let them
    /// pass as they did.
    pub(crate) fn resume_members(&mut self, class: u32, list: &str) {
        let groups: Vec<&str> = list.split(SEPARATOR).collect();
        // Lists are in order, each group once: what is not so is not ours.
        if groups.iter().any(|group| group.is_empty()) || !groups.is_sorted_by(|one, next| one < next) {
            return;
        }
        let slots: Vec<u32> = groups.iter().map(|group| self.slot_of(group)).collect();
        if self.members.resume(class, &slots) {
            self.name(name_kinds::MEMBERS, class & !MEMBERS, &groups, slots[0]);
        } else {
            slots.into_iter().for_each(|slot| self.forget_if_unused(slot));
        }
    }

    /// No entry of an earlier run has the class any more.
    pub(crate) fn release_former(&mut self, class: u32) {
        self.members.release_former(class);
    }

    /// A class of members is held once more.
    pub(crate) fn retain_members(&mut self, class: u32) {
        self.members.retain(class);
    }

    /// A class of members is held once less.
    pub(crate) fn release_members(&mut self, class: u32) {
        self.members.release(class);
    }

    /// Why a set is not programmed, if it is not: its ports have to be closed.
    pub(crate) fn refusal(&self, set: u32) -> Option<&str> {
        Some(&self.sets.get(&set)?.refusal.as_ref()?.cause)
    }

    /// Whether a set's rules for what guests send name groups of members.
    pub(crate) fn names_groups_out(&self, set: u32) -> bool {
        self.sets.get(&set).is_some_and(sets::Set::names_groups_out)
    }

    /// Why a set that the group is in is not programmed.
    pub(crate) fn group_refusal(&self, group: u32) -> Option<&str> {
        self.groups.get(group)?.sets.iter().find_map(|set| self.refusal(*set))
    }

    /// A class of members has come or gone: so have its entries in the sets whose rules name one of its groups.
    fn disturb_members(&mut self, class: u32, groups: &[u32]) {
        for group in groups {
            for number in &self.groups[*group].asked_by {
                if let Some(set) = self.sets.get_mut(number) {
                    set.disturb_members(class);
                    self.dirty.insert(*number);
                }
            }
        }
    }

    fn name(&mut self, kind: u32, index: u32, groups: &[&str], cause: u32) {
        let mut list = groups.join(SEPARATOR);
        if groups.iter().any(|group| group.contains(SEPARATOR)) {
            // Which groups these are cannot be told from the text.
            list.push(Name::CUT);
        }
        let name = Name::new(&list, 1);
        self.names.push((NameKey { kind, index }, Some((name, cause))));
    }
}

/// The resource that a group's entries come from.
fn handle(group: u32) -> Handle {
    Handle::new(HandleKind::Group, group)
}
