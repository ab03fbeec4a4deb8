//! Policy sets: built of their groups' rules, kept up to date with them, and refused where they are too much.

use std::collections::{BTreeSet, HashMap, HashSet};

use ncm_common::tables::{
    ClassKey, Classes, MAX_CLASSES, MEMBERS, Name, NameKey, PREFIXES, Rule, RuleKey, name_kinds,
    set_direction,
};

use super::resume::Former;
use super::rule::{Allowance, Remote};
use super::side::{Op, Side, Size};
use super::{Policy, handle};
use crate::compile::flush::Tables;
use crate::compile::mirror::Mirror;

/// Most different ranges of ports that are remembered for all sets together, about 50 bytes each.
pub(super) const MOST_RANGES: usize = 1 << 22;

/// How many rules are counted in for refused sets before the next step: each try may be in vain.
const TRIED: usize = 1 << 18;

/// A policy set.
#[derive(Debug)]
pub(super) struct Set {
    groups: Box<[u32]>,
    pub(super) holders: u32,
    /// Rules from the guest and to it; `None` as long as it is not built, and while it is refused.
    sides: Option<Box<[Side; 2]>>,
    /// The classes that sides of earlier builds gave out last.
    last_classes: [u32; 2],
    /// The classes that an earlier run gave to prefixes, until it is built.
    former: [HashMap<ClassKey, u32>; 2],
    size: Size,
    pub(super) refusal: Option<Refusal>,
}

/// Why a set is not programmed.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) cause: String,
    /// What it takes, if all that it wants for is room in the tables; otherwise it is too much by itself.
    lacks: Option<Size>,
    /// The groups whose members its rules name.
    asked: BTreeSet<u32>,
}

/// Why a set cannot be as it is.
struct Fault {
    cause: String,
    /// For want of room that others take.
    room: bool,
}

impl Set {
    pub(super) fn new(groups: Box<[u32]>) -> Self {
        Self {
            groups,
            holders: 1,
            sides: None,
            last_classes: [PREFIXES; 2],
            former: Default::default(),
            size: Size::default(),
            refusal: None,
        }
    }

    pub(super) fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// It is to be built anew, over what an earlier run has left in the tables.
    pub(super) fn resume(&mut self, [from, to]: [Former; 2]) {
        self.last_classes = [from.last.max(PREFIXES), to.last.max(PREFIXES)];
        self.former = [from.classes, to.classes];
        self.refusal = None;
    }

    pub(super) fn disturb_members(&mut self, class: u32) {
        for side in self.sides.iter_mut().flat_map(|sides| sides.iter_mut()) {
            side.disturb_members(class);
        }
    }

    fn change(&mut self, group: u32, added: &[Allowance], removed: &[Allowance]) {
        let Some(sides) = self.sides.as_deref_mut() else { return };
        // A prefix that only changes its rules keeps its class.
        added.iter().for_each(|rule| sides[usize::from(rule.to_guest)].add(rule, group));
        removed.iter().for_each(|rule| sides[usize::from(rule.to_guest)].remove(rule, group));
    }

    pub(super) fn names_groups_out(&self) -> bool {
        self.sides.as_ref().is_some_and(|sides| sides[0].names_groups())
    }

    fn asks(&self, group: u32) -> bool {
        self.sides.as_ref().is_some_and(|sides| sides.iter().any(|side| side.asks(group)))
    }

    fn asked(&self) -> BTreeSet<u32> {
        self.sides.iter().flat_map(|sides| sides.iter()).flat_map(Side::asked).collect()
    }

    /// Lets its sides go, and gives them back.
    fn take_sides(&mut self) -> Option<Box<[Side; 2]>> {
        let sides = self.sides.take()?;
        self.last_classes = [sides[0].last_class(), sides[1].last_class()];
        Some(sides)
    }
}

impl Policy {
    /// Brings a built set's entries up to date, and says whether its rules have changed.
    fn settle(&mut self, number: u32, ops: &mut Vec<Op>) -> bool {
        let Some(set) = self.sets.get_mut(&number) else { return false };
        let (mut changed, mut size) = (false, Size::default());
        for side in set.sides.iter_mut().flat_map(|sides| sides.iter_mut()) {
            changed |= side.settle(&self.members, ops);
            size += side.size();
        }
        self.taken -= set.size;
        self.taken += size;
        set.size = size;
        changed
    }

    /// Why a set cannot be as it is now.
    fn fault(&self, number: u32) -> Option<Fault> {
        let own = |cause| Some(Fault { cause, room: false });
        let set = self.sets.get(&number)?;
        let sides = set.sides.as_deref()?;
        let names: Vec<&str> = set.groups.iter().map(|group| &*self.groups[*group].id).collect();
        let names = names.join(", ");
        let entries = set.size.rules + set.size.classes;
        if let Some(prefix) = sides.iter().find_map(Side::too_deep) {
            return own(format!(
                "{prefix} is covered by more than {MAX_CLASSES} prefixes of the rules of {names}: drop some of them"
            ));
        }
        if entries > self.most_entries {
            return own(format!(
                "limits.set_entries reached: the rules of {names} together take {entries} entries, where {} is the most",
                self.most_entries
            ));
        }
        for (taken, room, what) in [
            (self.taken.rules, self.room.rules, "capacity.rules"),
            (self.taken.classes, self.room.classes, "capacity.classes"),
            (self.taken.ranges, self.room.ranges, "the room for ranges of ports"),
        ] {
            if taken > room {
                let cause = format!(
                    "{what} reached: with the rules of {names} all groups together take {taken}, where {room} is the most"
                );
                return Some(Fault { cause, room: true });
            }
        }
        if sides.iter().any(|side| side.last_class() >= MEMBERS - (1 << 24)) {
            return own(format!("all numbers for prefixes of {names} have been used: restart the agent"));
        }
        None
    }

    /// Has every set of a group follow a change of its rules.
    ///
    /// # Errors
    ///
    /// Which set could not be with it, and why: then none has changed.
    pub(super) fn change_sets(
        &mut self,
        group: u32,
        added: &[Allowance],
        removed: &[Allowance],
    ) -> Result<(), String> {
        let numbers: Vec<u32> = self.groups[group].sets.iter().copied().collect();
        // What is to be done anyway comes first, so that the trial is of this change alone.
        for number in &numbers {
            if self.dirty.remove(number) {
                self.update(*number);
            }
        }
        self.repeated |= !self.ops.is_empty();
        let (mut ops, mut changed) = (Vec::new(), Vec::new());
        for (at, number) in numbers.iter().enumerate() {
            let Some(set) = self.sets.get_mut(number) else { continue };
            set.change(group, added, removed);
            if self.settle(*number, &mut ops) {
                changed.push(*number);
            }
            if !added.is_empty()
                && let Some(fault) = self.fault(*number)
            {
                // A prefix that had gone is back under another number: all of this is written, as far as it does not cancel out.
                for number in &numbers[..=at] {
                    if let Some(set) = self.sets.get_mut(number) {
                        set.change(group, removed, added);
                    }
                    self.settle(*number, &mut ops);
                }
                self.repeated = true;
                self.ops.append(&mut ops);
                return Err(fault.cause);
            }
        }
        self.ops.append(&mut ops);
        self.changed.extend(changed);
        let asked: BTreeSet<u32> = added.iter().chain(removed).filter_map(asked_group).collect();
        for number in &numbers {
            self.note_asked(*number, asked.iter().copied());
            if self.sets.get(number).is_some_and(|set| set.refusal.is_some()) {
                self.again.insert(*number);
            }
        }
        if !removed.is_empty() {
            self.use_room();
        }
        Ok(())
    }

    /// Notes with groups whether a set's rules name their members.
    fn note_asked(&mut self, number: u32, groups: impl Iterator<Item = u32>) {
        let Some(set) = self.sets.get(&number) else { return };
        for group in groups {
            if set.asks(group) {
                self.groups[group].asked_by.insert(number);
            } else {
                self.groups[group].asked_by.remove(&number);
            }
        }
    }

    /// Tries those sets again for which there is room now. Others are tried when something of their own changes: building one
    /// takes long, and is not to be paid for by whoever changes a rule.
    fn use_room(&mut self) {
        let fits = |size: &Size| {
            self.taken.rules + size.rules <= self.room.rules
                && self.taken.classes + size.classes <= self.room.classes
                && self.taken.ranges + size.ranges <= self.room.ranges
        };
        let lacks =
            |set: &Set| set.refusal.as_ref().is_some_and(|refusal| refusal.lacks.as_ref().is_some_and(fits));
        self.again.extend(self.sets.iter().filter(|(_, set)| lacks(set)).map(|(number, _)| *number));
    }

    /// Tries those refused sets again whose rules name the members of one of these groups.
    fn try_asking(&mut self, groups: &[u32]) {
        let asks = |set: &Set| {
            let refusal = set.refusal.as_ref();
            refusal.is_some_and(|refusal| groups.iter().any(|group| refusal.asked.contains(group)))
        };
        self.again.extend(self.sets.iter().filter(|(_, set)| asks(set)).map(|(number, _)| *number));
    }

    /// Brings a built set up to date; it may turn out to be too much.
    fn update(&mut self, number: u32) {
        let mut ops = Vec::new();
        let changed = self.settle(number, &mut ops);
        self.repeated |= !self.ops.is_empty() && !ops.is_empty();
        self.ops.append(&mut ops);
        if changed {
            self.changed.insert(number);
        }
        if let Some(fault) = self.fault(number) {
            let mut ops = std::mem::take(&mut self.ops);
            self.refuse(number, fault, &mut ops);
            self.ops = ops;
        }
    }

    fn refuse(&mut self, number: u32, fault: Fault, ops: &mut Vec<Op>) {
        let Some(set) = self.sets.get_mut(&number) else { return };
        let refusal =
            Refusal { cause: fault.cause, lacks: fault.room.then_some(set.size), asked: set.asked() };
        set.refusal = Some(refusal);
        self.changed.insert(number);
        self.withdraw(number, ops);
    }

    /// Takes a set's entries back, and all that was built of it.
    pub(super) fn withdraw(&mut self, number: u32, ops: &mut Vec<Op>) {
        let Some(set) = self.sets.get_mut(&number) else { return };
        let asked = set.asked();
        let Some(sides) = set.take_sides() else { return };
        self.repeated = true;
        sides.iter().for_each(|side| side.withdraw(ops));
        self.taken -= std::mem::take(&mut set.size);
        for group in asked {
            self.groups[group].asked_by.remove(&number);
            self.forget_if_unused(group);
        }
    }

    /// Builds a set of its groups' rules, if it can be; says how many there are.
    fn build(&mut self, number: u32) -> usize {
        let Some(set) = self.sets.get_mut(&number).filter(|set| set.sides.is_none()) else { return 0 };
        let former = std::mem::take(&mut set.former);
        let side = |to_guest: bool| {
            let former = former[usize::from(to_guest)].clone();
            Side::new(set_direction(number, to_guest), set.last_classes[usize::from(to_guest)], former)
        };
        set.sides = Some(Box::new([side(false), side(true)]));
        let mut rules = 0;
        for group in set.groups.clone() {
            let held = self.groups[group].held.as_deref();
            let added: Vec<_> = held
                .into_iter()
                .flat_map(|held| held.rules.values())
                .filter_map(|rule| rule.allows())
                .collect();
            rules += added.len();
            set.change(group, &added, &[]);
        }
        let asked = set.asked();
        let was_refused = set.refusal.is_some();
        self.note_asked(number, asked.into_iter());
        let mut ops = Vec::new();
        self.settle(number, &mut ops);
        match self.fault(number) {
            Some(fault) => {
                self.refuse(number, fault, &mut Vec::new());
            }
            None => {
                self.ops.append(&mut ops);
                if let Some(set) = self.sets.get_mut(&number) {
                    set.refusal = None;
                }
                if was_refused {
                    self.changed.insert(number);
                }
            }
        }
        rules
    }

    /// Lets go what nothing holds, brings all else up to date, and has the tables follow. Gives back the sets of which rules have
    /// changed, or which are refused from now on or not any more: their ports have to be looked at.
    pub(crate) fn compile(&mut self, tables: &mut Tables) -> Vec<u32> {
        self.compile_into(&mut tables.rules, &mut tables.classes, &mut tables.names)
    }

    pub(crate) fn compile_into(
        &mut self,
        rules: &mut Mirror<RuleKey, Rule>,
        classes: &mut Mirror<ClassKey, Classes>,
        names: &mut Mirror<NameKey, Name>,
    ) -> Vec<u32> {
        while let Some((class, groups)) = self.members.reap() {
            self.disturb_members(class, &groups);
            self.names.push((NameKey { kind: name_kinds::MEMBERS, index: class & !MEMBERS }, None));
            self.try_asking(&groups);
            self.use_room();
            groups.iter().for_each(|group| self.forget_if_unused(*group));
        }
        while let Some(number) = self.idle.pop_first() {
            if self.sets.get(&number).is_some_and(|set| set.holders == 0) {
                self.drop_set(number);
            }
        }
        while let Some(number) = self.dirty.pop_first() {
            self.update(number);
        }
        while let Some(number) = self.unbuilt.pop_first() {
            self.build(number);
        }
        let mut tried = 0;
        while tried < TRIED
            && let Some(number) = self.again.pop_first()
        {
            tried += self.build(number);
        }
        if std::mem::take(&mut self.repeated) {
            // Only the last word on a key: what is written and deleted before it ever was in a table is neither.
            let mut seen = HashSet::new();
            let mut last: Vec<Op> = self.ops.drain(..).rev().filter(|op| seen.insert(op.key())).collect();
            last.reverse();
            self.ops = last;
        }
        for op in self.ops.drain(..) {
            match op {
                Op::Rule(key, value) => rules.assign(key, value.map(|(value, group)| (value, handle(group)))),
                Op::Class(key, value) => {
                    classes.assign(key, value.map(|(value, group)| (value, handle(group))));
                }
            }
        }
        self.ops.shrink_to(4_096);
        for (key, value) in self.names.drain(..) {
            names.assign(key, value.map(|(value, group)| (value, handle(group))));
        }
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter(|number| self.sets.contains_key(number)).collect()
    }

    fn drop_set(&mut self, number: u32) {
        let mut ops = std::mem::take(&mut self.ops);
        self.withdraw(number, &mut ops);
        self.ops = ops;
        for waiting in [&mut self.dirty, &mut self.unbuilt, &mut self.again] {
            waiting.remove(&number);
        }
        let Some(set) = self.sets.remove(&number) else { return };
        self.by_list.remove(&set.groups);
        for group in set.groups {
            self.groups[group].sets.remove(&number);
            self.forget_if_unused(group);
        }
        self.names.push((NameKey { kind: name_kinds::SET, index: number }, None));
        self.use_room();
    }
}

fn asked_group(rule: &Allowance) -> Option<u32> {
    match rule.remote {
        Remote::Group(group) => Some(group),
        _ => None,
    }
}
