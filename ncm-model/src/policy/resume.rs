//! Sets that an earlier run has written go on under their numbers, and their prefixes under their classes: what is in the tables
//! stays, and no flow is decided anew. Only where all that is in the tables is compared with what should be: a set must not find
//! entries under its number that are not its own.

use std::collections::{BTreeMap, HashMap};

use ncm_common::tables::{ClassKey, Classes, MEMBERS, RuleKey, name_kinds, set_direction};
use ncm_common::tables::{NameKey, Rule};

use super::{Policy, SEPARATOR};

/// What the tables have of one direction of a set.
#[derive(Clone, Default, Debug)]
pub(super) struct Former {
    /// Each prefix's own class.
    pub(super) classes: HashMap<ClassKey, u32>,
    /// The highest class that anything in the tables has: no other prefix may get one of these.
    pub(super) last: u32,
}

impl Policy {
    /// Has the sets whose lists of groups are among `lists` (by number) go on under those numbers. Gives the numbers before and after.
    pub(crate) fn resume_sets(
        &mut self,
        lists: &BTreeMap<u32, &str>,
        classes: &[(ClassKey, Classes)],
        rules: &[(RuleKey, Rule)],
    ) -> HashMap<u32, u32> {
        let mut formers: HashMap<u32, Former> = HashMap::new();
        for (key, value) in classes {
            let former = formers.entry(key.set).or_default();
            // The first of the list is the prefix's own.
            former.classes.insert(*key, value.classes[0]);
            former.last = value.classes.iter().copied().fold(former.last, u32::max);
        }
        for (key, _) in rules.iter().filter(|(key, _)| key.class & MEMBERS == 0) {
            let former = formers.entry(key.set).or_default();
            former.last = former.last.max(key.class);
        }
        // Of several numbers for one list the highest is the latest.
        let numbers: HashMap<&str, u32> = lists.iter().map(|(number, list)| (*list, *number)).collect();
        let renumbered: Vec<(u32, u32)> = self
            .sets
            .iter()
            .filter_map(|(number, set)| {
                let ids: Vec<&str> = set.groups().iter().map(|group| &*self.groups[*group].id).collect();
                let plain = !ids.iter().any(|id| id.contains(SEPARATOR));
                let former = *numbers.get(ids.join(SEPARATOR).as_str()).filter(|_| plain)?;
                (!self.sets.contains_key(&former)).then_some((*number, former))
            })
            .collect();
        for (before, after) in &renumbered {
            let sides = [false, true]
                .map(|to_guest| formers.remove(&set_direction(*after, to_guest)).unwrap_or_default());
            self.renumber(*before, *after, sides);
        }
        renumbered.into_iter().collect()
    }

    fn renumber(&mut self, before: u32, after: u32, former: [Former; 2]) {
        let mut ops = std::mem::take(&mut self.ops);
        self.withdraw(before, &mut ops);
        self.ops = ops;
        for waiting in
            [&mut self.dirty, &mut self.unbuilt, &mut self.again, &mut self.idle, &mut self.changed]
        {
            waiting.remove(&before);
        }
        let Some(mut set) = self.sets.remove(&before) else { return };
        set.resume(former);
        let groups: Vec<u32> = set.groups().to_vec();
        self.by_list.insert(groups.clone().into(), after);
        for group in &groups {
            self.groups[*group].sets.remove(&before);
            self.groups[*group].sets.insert(after);
        }
        if set.holders == 0 {
            self.idle.insert(after);
        }
        self.sets.insert(after, set);
        self.unbuilt.insert(after);
        self.names.push((NameKey { kind: name_kinds::SET, index: before }, None));
        let ids: Vec<Box<str>> = groups.iter().map(|group| self.groups[*group].id.clone()).collect();
        let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
        self.name(name_kinds::SET, after, &ids, groups.first().copied().unwrap_or_default());
    }
}
