//! Policy sets of an earlier run. A restarted agent gives its sets numbers that no earlier one had, so that a flow or a port
//! never meets another set under its number; what the former sets had in the tables goes when no port has them any more.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ncm_common::tables::{MEMBERS, Name, NameKey, name_kinds};
use ncm_dataplane::{Error, Tables};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(60);

/// What there may be of earlier runs.
pub(super) struct LeftoverSets {
    /// Sets from this number on are this run's; 0: nothing is left over.
    first_set: u32,
    /// Likewise the classes of members.
    first_members: u32,
    next: Instant,
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
            next: Instant::now() + EVERY,
        }
    }

    /// Frees what nobody has any more, when it is time.
    pub(super) fn sweep(&mut self, tables: &Tables) -> Result<(), Error> {
        if (self.first_set == 0 && self.first_members == 0) || Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + EVERY;
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
            return Ok(());
        }
        let (mut names, mut kept) = (Vec::new(), false);
        tables.names.for_each(|key, _| {
            let (is_old, is_used) = match key.kind {
                name_kinds::SET => (key.index < self.first_set, sets.contains(&key.index)),
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
        Ok(())
    }
}
