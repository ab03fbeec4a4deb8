//! Policy sets of an earlier run. A restarted agent gives its sets numbers that no earlier one had, so that a flow or a port
//! never meets another set under its number; what the former sets had in the tables goes when no port has them any more.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ncm_common::tables::{MEMBERS, Name, NameKey, name_kinds};
use ncm_dataplane::{Error, Tables};

use super::Shared;

/// How soon is looked; each time it takes twice as long to the next, as what is left by then may stay.
const FIRST: Duration = Duration::from_secs(60);
/// How often is looked at least.
const LAST: Duration = Duration::from_secs(3600);

/// What there may be of earlier runs.
pub(super) struct LeftoverSets {
    /// Sets from this number on are this run's; 0: nothing is left over.
    first_set: u32,
    /// Likewise the classes of members.
    first_members: u32,
    /// Classes of members that the model has taken over, and that endpoints of earlier runs may still have.
    resumed: HashSet<u32>,
    next: Instant,
    pause: Duration,
}

impl LeftoverSets {
    /// What is left over, given the names of the earlier runs.
    pub(super) fn new(names: &[(NameKey, Name)]) -> Self {
        let first = |kind| {
            let of_kind = names.iter().filter(|(key, _)| key.kind == kind);
            of_kind.map(|(key, _)| key.index.saturating_add(1)).max().unwrap_or(0)
        };
        Self {
            first_set: first(name_kinds::SET),
            first_members: first(name_kinds::MEMBERS),
            resumed: names
                .iter()
                .filter(|(key, name)| key.kind == name_kinds::MEMBERS && name.is_whole())
                .map(|(key, _)| key.index)
                .collect(),
            next: Instant::now() + FIRST,
            pause: FIRST,
        }
    }

    /// Frees what nobody has any more, when it is time, or when there is no room for what is new.
    pub(super) fn look(&mut self, shared: &Shared) -> Result<(), Error> {
        let crowded = shared.crowded.swap(false, Ordering::Relaxed);
        if (self.first_set == 0 && self.first_members == 0) || (!crowded && Instant::now() < self.next) {
            return Ok(());
        }
        self.pause = LAST.min(self.pause * 2);
        self.next = Instant::now() + self.pause;
        let gone = self.sweep(shared.dataplane.tables())?;
        if !gone.is_empty() {
            shared.change(None, None, |model, changes| model.release_former_members(&gone, changes));
        }
        Ok(())
    }

    /// Frees what nobody has any more; gives the classes of members that no endpoint has, and that the model is to free.
    fn sweep(&mut self, tables: &Tables) -> Result<Vec<u32>, Error> {
        let mut sets = HashSet::new();
        tables.ports.for_each(|_, port| {
            sets.insert(port.set);
        })?;
        let mut members = HashSet::new();
        if self.first_members > 0 {
            tables.endpoints_ip.for_each(|_, endpoint| {
                members.insert(endpoint.members & !MEMBERS);
            })?;
        }
        let gone: Vec<u32> = self.resumed.iter().copied().filter(|class| !members.contains(class)).collect();
        self.resumed.retain(|class| members.contains(class));
        let is_left = |set: u32| set < self.first_set && !sets.contains(&set);
        let (mut rules, mut classes) = (Vec::new(), Vec::new());
        tables.classes.for_each(|key, _| {
            if is_left(key.set >> 1) {
                classes.push(key);
            }
        })?;
        tables.rules.for_each(|key, _| {
            if is_left(key.set >> 1) {
                rules.push(key);
            } else if key.class & MEMBERS != 0 {
                members.insert(key.class & !MEMBERS);
            }
        })?;
        let freed = classes.len() + rules.len();
        let complete = tables.classes.delete_batch(classes).is_complete()
            && tables.rules.delete_batch(rules).is_complete();
        // A name is what keeps a number from being given out again: it goes last.
        if !complete {
            return Ok(gone);
        }
        let (mut names, mut kept) = (Vec::new(), !self.resumed.is_empty());
        tables.names.for_each(|key, name| {
            let (is_old, is_used) = match key.kind {
                name_kinds::SET => (key.index < self.first_set, sets.contains(&key.index)),
                // The model's own.
                name_kinds::MEMBERS if name.is_whole() => return,
                name_kinds::MEMBERS => (key.index < self.first_members, members.contains(&key.index)),
                _ => return,
            };
            kept |= is_old && is_used;
            if is_old && !is_used {
                names.push(key);
            }
        })?;
        let complete = tables.names.delete_batch(names).is_complete();
        if freed > 0 {
            tracing::info!(entries = freed, "freed the entries of policy sets of an earlier run");
        }
        if complete && !kept {
            (self.first_set, self.first_members) = (0, 0);
        }
        Ok(gone)
    }
}

#[cfg(test)]
#[path = "leftover_sets_tests.rs"]
mod tests;
