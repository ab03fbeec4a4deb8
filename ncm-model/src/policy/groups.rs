//! The groups themselves: their rules as they are held, and what a state makes of them.

use std::collections::{BTreeMap, BTreeSet};

use super::Policy;
use super::rule::{self, Allowance, Fault, Rule, RuleId};
use crate::resources::Meta;
use crate::wire::security_group_configuration::SecurityGroupRule;
use crate::wire::{OperationType, SecurityGroupConfiguration, UpdateType};

/// A group that is held, or that something held names.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) id: Box<str>,
    pub(crate) held: Option<Box<Held>>,
    /// Sets that it is in.
    pub(super) sets: BTreeSet<u32>,
    /// Sets whose rules name its members.
    pub(super) asked_by: BTreeSet<u32>,
    /// How many held rules name its members.
    pub(super) naming: u32,
}

/// What is held of a group.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) meta: Option<Meta>,
    pub(crate) vpc_id: String,
    pub(crate) name: String,
    pub(crate) rules: BTreeMap<RuleId, Rule>,
    /// Sum of the rules' hashes.
    pub(crate) rules_sum: u128,
    /// Why the state that came last was refused, if it was: what is held is from before.
    pub(crate) refused: Option<Box<str>>,
}

impl Held {
    /// How many rules would be added, changed and removed.
    pub(crate) fn count(&self, changes: &[Change]) -> [usize; 3] {
        let mut counts = [0; 3];
        for change in changes {
            let of = match (&change.rule, self.rules.contains_key(&change.id)) {
                (None, _) => 2,
                (Some(_), true) => 1,
                (Some(_), false) => 0,
            };
            counts[of] += 1;
        }
        counts
    }
}

/// What is to become of one rule: with the id of its remote group, or gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    pub(crate) id: RuleId,
    pub(super) rule: Option<(Rule, Option<Box<str>>)>,
}

fn operation(rule: &SecurityGroupRule) -> Result<OperationType, Fault> {
    OperationType::try_from(rule.operation_type)
        .map_err(|_| format!("operation_type {} is none of the contract's", rule.operation_type).into())
}

fn has_own_operation(rule: &SecurityGroupRule) -> bool {
    [OperationType::Create, OperationType::Update, OperationType::Delete]
        .iter()
        .any(|operation| rule.operation_type == *operation as i32)
}

/// What a state says of rules.
#[derive(Default)]
struct Listed {
    /// What each is to be, or that it is to go.
    changes: BTreeMap<RuleId, Change>,
    /// Those that are only asked about: they stay as they are.
    asked: BTreeSet<RuleId>,
}

fn read(config: &SecurityGroupConfiguration) -> Result<Listed, Fault> {
    let mut listed = Listed::default();
    for (position, sent) in config.security_group_rules.iter().enumerate() {
        let read = || {
            let operation = operation(sent)?;
            let id = rule::identity(sent)?;
            if operation == OperationType::Get {
                return Ok((id, None));
            }
            if operation == OperationType::Delete {
                return Ok((id.clone(), Some(Change { id, rule: None })));
            }
            let parsed = rule::parse(sent)?;
            let rule = Some((parsed.rule, parsed.group.map(Into::into)));
            Ok((id.clone(), Some(Change { id, rule })))
        };
        let change = read().map_err(|fault: Fault| {
            let which = if sent.id.is_empty() { format!("number {}", position + 1) } else { sent.id.clone() };
            format!("security_group_rules: rule {which}: {fault}")
        })?;
        match change {
            (id, Some(change)) => drop(listed.changes.insert(id, change)),
            (id, None) => drop(listed.asked.insert(id)),
        }
    }
    Ok(listed)
}

impl Policy {
    /// The group is held.
    pub(crate) fn holds(&self, group: &str) -> bool {
        self.held_slot(group).is_some()
    }

    /// The slot of a held group.
    pub(crate) fn held_slot(&self, group: &str) -> Option<u32> {
        self.by_id.get(group).copied().filter(|slot| self.groups[*slot].held.is_some())
    }

    /// A group by its slot, if there is one.
    pub(crate) fn group(&self, slot: u32) -> Option<&Group> {
        self.groups.get(slot)
    }

    /// What is held in a slot.
    pub(crate) fn held_mut(&mut self, slot: u32) -> Option<&mut Held> {
        self.groups[slot].held.as_deref_mut()
    }

    /// How many groups are held.
    pub(crate) fn held_count(&self) -> usize {
        self.held
    }

    /// One more than the highest slot.
    pub(crate) fn bound(&self) -> u32 {
        self.groups.bound()
    }

    /// The rules that a state would change, in order of their ids.
    ///
    /// A list is complete if the state is FULL, if the group is new, or if no rule has an operation of its own; otherwise it changes the
    /// rules that it lists, each as a whole.
    pub(crate) fn plan(&self, config: &SecurityGroupConfiguration) -> Result<Vec<Change>, Fault> {
        let listed = read(config)?;
        let held = self.held_slot(&config.id).and_then(|slot| self.groups[slot].held.as_deref());
        let empty = BTreeMap::new();
        let rules = held.map_or(&empty, |held| &held.rules);
        let full = config.update_type == UpdateType::Full as i32 || held.is_none();
        let complete =
            full || !(listed.changes.is_empty() || config.security_group_rules.iter().any(has_own_operation));
        let mut changes = Vec::new();
        if complete {
            let goes = |id: &&RuleId| match listed.changes.get(*id) {
                Some(change) => change.rule.is_none(),
                None => !listed.asked.contains(*id),
            };
            let gone = rules.keys().filter(goes);
            changes.extend(gone.map(|id| Change { id: id.clone(), rule: None }));
        }
        for (id, change) in listed.changes {
            let held = rules.get(&id);
            let differs = match &change.rule {
                Some(rule) => held.is_none_or(|held| self.resolved(rule) != Some(*held)),
                None => held.is_some() && !complete,
            };
            if differs {
                changes.push(change);
            }
        }
        Ok(changes)
    }

    /// A rule with its remote group's slot, if that has one.
    fn resolved(&self, (rule, group): &(Rule, Option<Box<str>>)) -> Option<Rule> {
        match group {
            Some(group) => self.by_id.get(group).map(|slot| rule.of_group(*slot)),
            None => Some(*rule),
        }
    }

    /// Changes rules of a group, which is held from now on; says in which slot.
    ///
    /// # Errors
    ///
    /// Why it cannot be: nothing has changed then.
    pub(crate) fn edit(&mut self, id: &str, changes: Vec<Change>) -> Result<u32, String> {
        let slot = self.slot_of(id);
        let result = self.edit_slot(slot, changes);
        if let Some(held) = self.held_mut(slot) {
            held.refused = result.as_ref().err().map(|cause| cause.as_str().into());
        }
        if result.is_err() {
            self.forget_if_unused(slot);
        }
        result.map(|()| slot)
    }

    fn edit_slot(&mut self, slot: u32, changes: Vec<Change>) -> Result<(), String> {
        let changes: Vec<(RuleId, Option<Rule>)> = changes
            .into_iter()
            .map(|change| {
                let rule = change.rule.map(|(rule, group)| match group {
                    Some(group) => rule.of_group(self.slot_of(&group)),
                    None => rule,
                });
                (change.id, rule)
            })
            .collect();
        let named: BTreeSet<u32> =
            changes.iter().filter_map(|(_, rule)| rule.as_ref().and_then(Rule::group)).collect();
        let result = self.check_rules(slot, &changes).and_then(|()| {
            let (added, removed) = self.allowances(slot, &changes);
            self.change_sets(slot, &added, &removed)
        });
        if result.is_err() {
            named.into_iter().for_each(|group| self.forget_if_unused(group));
            return result;
        }
        let mut unnamed = Vec::new();
        let rules_sum = self.changed_sum(slot, &changes);
        let group = &mut self.groups[slot];
        let held = group.held.get_or_insert_with(|| {
            self.held += 1;
            Box::default()
        });
        held.rules_sum = rules_sum;
        let mut naming = Vec::new();
        for (id, rule) in changes {
            naming.extend(rule.as_ref().and_then(Rule::group));
            let before = match rule {
                Some(rule) => held.rules.insert(id, rule),
                None => held.rules.remove(&id),
            };
            self.rules = self.rules + usize::from(rule.is_some()) - usize::from(before.is_some());
            unnamed.extend(before.as_ref().and_then(Rule::group));
        }
        naming.into_iter().for_each(|group| self.groups[group].naming += 1);
        self.unname(&unnamed);
        Ok(())
    }

    /// The sum of the rules' hashes after these changes.
    fn changed_sum(&self, slot: u32, changes: &[(RuleId, Option<Rule>)]) -> u128 {
        let group = &self.groups[slot];
        let held = group.held.as_deref();
        let hash = |id: &RuleId, rule: &Rule| {
            let remote = rule.group().map_or("", |group| &*self.groups[group].id);
            crate::digest::rule_hash(&rule.show(id, &group.id, remote))
        };
        changes.iter().fold(held.map_or(0, |held| held.rules_sum), |sum, (id, rule)| {
            let before = held.and_then(|held| held.rules.get(id)).map_or(0, |before| hash(id, before));
            let after = rule.as_ref().map_or(0, |rule| hash(id, rule));
            sum.wrapping_sub(before).wrapping_add(after)
        })
    }

    fn check_rules(&self, slot: u32, changes: &[(RuleId, Option<Rule>)]) -> Result<(), String> {
        let held = self.groups[slot].held.as_deref();
        let (mut more, mut less) = (0, 0);
        for (id, rule) in changes {
            more += usize::from(rule.is_some());
            less += usize::from(held.is_some_and(|held| held.rules.contains_key(id)));
        }
        if more > less && self.rules + more - less > self.most_rules {
            return Err(format!(
                "limits.rules reached: {} rules of security groups are held, and the group has {} more than what {} leaves room for",
                self.rules,
                more - less,
                self.most_rules
            ));
        }
        Ok(())
    }

    /// What is allowed in addition, and what is not any more.
    fn allowances(&self, slot: u32, changes: &[(RuleId, Option<Rule>)]) -> (Vec<Allowance>, Vec<Allowance>) {
        let held = self.groups[slot].held.as_deref();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for (id, rule) in changes {
            added.extend(rule.as_ref().and_then(Rule::allows));
            removed.extend(held.and_then(|held| held.rules.get(id)).and_then(Rule::allows));
        }
        (added, removed)
    }

    /// Lets a held group go, and gives back what was held of it.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Box<Held>> {
        let held = self.groups[slot].held.take()?;
        self.held -= 1;
        self.rules -= held.rules.len();
        let removed: Vec<Allowance> = held.rules.values().filter_map(Rule::allows).collect();
        // Less is never refused; and if it were, the sets would be tried anew.
        let _ = self.change_sets(slot, &[], &removed);
        let unnamed: Vec<u32> = held.rules.values().filter_map(Rule::group).collect();
        self.unname(&unnamed);
        self.forget_if_unused(slot);
        Some(held)
    }

    fn unname(&mut self, groups: &[u32]) {
        for group in groups {
            self.groups[*group].naming -= 1;
            if self.groups[*group].naming == 0 {
                self.forget_if_unused(*group);
            }
        }
    }

    /// The slot of a group, held or not.
    pub(super) fn slot_of(&mut self, id: &str) -> u32 {
        if let Some(slot) = self.by_id.get(id) {
            return *slot;
        }
        let slot = self.groups.insert(Group { id: id.into(), ..Group::default() });
        self.by_id.insert(id.into(), slot);
        slot
    }

    /// Gives a slot back that nothing needs.
    pub(super) fn forget_if_unused(&mut self, slot: u32) {
        let Some(group) = self.groups.get(slot) else { return };
        let used = group.held.is_some()
            || group.naming > 0
            || !group.sets.is_empty()
            || !group.asked_by.is_empty()
            || self.members.names(slot);
        if !used && self.by_id.get(&group.id) == Some(&slot) {
            let group = self.groups.remove(slot);
            self.by_id.remove(&group.id);
        }
    }

    /// The state that would make a held group, without its revision.
    pub(crate) fn show(&self, slot: u32) -> SecurityGroupConfiguration {
        let group = &self.groups[slot];
        let Some(held) = &group.held else { return SecurityGroupConfiguration::default() };
        let remote = |rule: &Rule| rule.group().map_or("", |group| &*self.groups[group].id);
        SecurityGroupConfiguration {
            id: group.id.to_string(),
            update_type: UpdateType::Full as i32,
            vpc_id: held.vpc_id.clone(),
            name: held.name.clone(),
            security_group_rules: held
                .rules
                .iter()
                .map(|(id, rule)| rule.show(id, &group.id, remote(rule)))
                .collect(),
            ..SecurityGroupConfiguration::default()
        }
    }
}
