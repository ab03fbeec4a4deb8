//! Policy sets for which there was no room. What a set needs is written before anything leads to it, and what it takes the place
//! of goes after: where the tables are too full for that, a port keeps the set that it has, whole, until the new one is.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use ncm_common::Plain;
use ncm_common::tables::{ClassKey, NO_RULES, Port, RuleKey, port_flags};
use ncm_dataplane::{Table, Tables};
use ncm_model::{Changes, Delta};

use super::writer::{Refusal, Refused, note_refused};

/// A key of a policy set's entry.
pub(super) trait OfSet: Copy + Eq + Hash {
    /// The set's number.
    fn set(&self) -> u32;
}

impl OfSet for RuleKey {
    fn set(&self) -> u32 {
        self.set >> 1
    }
}

impl OfSet for ClassKey {
    fn set(&self) -> u32 {
        self.set >> 1
    }
}

/// What is missing of policy sets, and what stays for it.
#[derive(Default)]
pub(super) struct Withheld {
    rules: HashSet<RuleKey>,
    classes: HashSet<ClassKey>,
    /// The sets that ports have in the place of those that they are to have.
    kept: HashMap<u32, u32>,
    /// Sets of which something was refused in this step.
    refused: HashSet<u32>,
    /// A table was full.
    crowded: bool,
}

impl Withheld {
    /// Whether a table has been full since this was asked last.
    pub(super) fn take_crowded(&mut self) -> bool {
        std::mem::take(&mut self.crowded)
    }

    /// What a step writes or deletes is not missing any more, unless it is refused again.
    pub(super) fn begin(&mut self, changes: &Changes) {
        self.refused.clear();
        forget(&mut self.rules, &changes.rules);
        forget(&mut self.classes, &changes.classes);
    }

    /// Writes the rules and the classes that are new.
    pub(super) fn put(&mut self, tables: &Tables, changes: &Changes, refused: &mut Refused) {
        let mut full = put(&tables.rules, &changes.rules, refused, &mut self.rules, &mut self.refused);
        full |= put(&tables.classes, &changes.classes, refused, &mut self.classes, &mut self.refused);
        self.crowded |= full;
    }

    /// Has ports keep the set that they have if that which they are to have is not whole.
    pub(super) fn hold_back(&mut self, tables: &Tables, ports: &mut Delta<u32, Port>, refused: &mut Refused) {
        for index in &ports.del {
            self.kept.remove(index);
        }
        let rules = self.rules.iter().map(OfSet::set);
        let lacking: HashSet<u32> = rules.chain(self.classes.iter().map(OfSet::set)).collect();
        for put in &mut ports.put {
            self.kept.remove(&put.key);
            if !lacking.contains(&put.value.set) {
                continue;
            }
            let Ok(Some(there)) = tables.ports.get(&put.key) else { continue };
            let is_filtered =
                there.set != 0 && there.set != NO_RULES && there.flags & port_flags::CLOSED == 0;
            // Whoever had none is better off with a part of it than with nothing, or open.
            if there.generation != put.value.generation || there.set == put.value.set || !is_filtered {
                continue;
            }
            put.value.set = there.set;
            self.kept.insert(put.key, there.set);
            let text = "there is no room for the rules of its security groups, so that it keeps those it had";
            refused.push(Refusal { cause: put.cause, table: "PORTS", text: Arc::from(text) });
        }
    }

    /// Deletes what does not stay; what stays is noted as still to be deleted.
    pub(super) fn take<K: OfSet>(&self, keys: &mut Vec<K>, undeleted: &mut Vec<K>) -> Vec<K> {
        if self.kept.is_empty() && self.refused.is_empty() {
            return std::mem::take(keys);
        }
        let kept: HashSet<u32> = self.kept.values().copied().collect();
        let stays = |key: &K| kept.contains(&key.set()) || self.refused.contains(&key.set());
        let (stay, go) = keys.drain(..).partition::<Vec<K>, _>(stays);
        undeleted.extend(stay);
        go
    }
}

fn forget<K: OfSet, V>(missing: &mut HashSet<K>, delta: &Delta<K, V>) {
    if !missing.is_empty() {
        for key in delta.put.iter().map(|put| &put.key).chain(&delta.del) {
            missing.remove(key);
        }
    }
}

/// Says whether the table was full.
fn put<K: Plain + OfSet, V: Plain>(
    table: &Table<K, V>,
    delta: &Delta<K, V>,
    refused: &mut Refused,
    missing: &mut HashSet<K>,
    sets: &mut HashSet<u32>,
) -> bool {
    if delta.put.is_empty() {
        return false;
    }
    let outcome = table.put_batch(delta.put.iter().map(|put| (put.key, put.value)));
    let full = outcome.is_full();
    for (position, _) in &outcome.failed {
        let key = delta.put[*position].key;
        missing.insert(key);
        sets.insert(key.set());
    }
    note_refused(table, delta, outcome.failed, refused);
    full
}
