//! What a table holds, so that only differences are written. For tables whose size is that of the configuration, not of
//! the network: endpoints have none.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::changes::{Delta, Handle, Put};

/// A table as the kernel has it, and what is to become of it.
#[derive(Debug)]
pub(crate) struct Mirror<K, V> {
    written: HashMap<K, (V, Handle)>,
    pending: HashMap<K, Option<(V, Handle)>>,
}

impl<K, V> Default for Mirror<K, V> {
    fn default() -> Self {
        Self { written: HashMap::new(), pending: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash + Ord, V: Copy + Eq> Mirror<K, V> {
    /// The key shall have this value; the last word before a flush counts.
    pub(crate) fn set(&mut self, key: K, value: V, cause: Handle) {
        if self.written.get(&key).is_some_and(|(written, by)| *written == value && *by == cause) {
            self.pending.remove(&key);
        } else {
            self.pending.insert(key, Some((value, cause)));
        }
    }

    /// The key shall have no value.
    pub(crate) fn unset(&mut self, key: K) {
        // What is pending may be a second try of what the kernel has refused only in part.
        if self.written.contains_key(&key) || self.pending.contains_key(&key) {
            self.pending.insert(key, None);
        }
    }

    /// The key shall have this value or none.
    pub(crate) fn assign(&mut self, key: K, value: Option<(V, Handle)>) {
        match value {
            Some((value, cause)) => self.set(key, value, cause),
            None => self.unset(key),
        }
    }

    /// What has been written under the key.
    pub(crate) fn written(&self, key: K) -> Option<&V> {
        self.written.get(&key).map(|(value, _)| value)
    }

    /// Changes a value that has been written, and gives it: the caller writes it.
    pub(crate) fn amend(&mut self, key: K, change: impl FnOnce(&mut V)) -> Option<V> {
        let (value, _) = self.written.get_mut(&key)?;
        change(value);
        Some(*value)
    }

    /// Writes again what comes from one of these resources.
    pub(crate) fn resend(&mut self, from: impl Fn(Handle) -> bool) {
        let pending = &mut self.pending;
        self.written.retain(|key, (value, cause)| {
            let again = from(*cause);
            if again {
                pending.entry(*key).or_insert(Some((*value, *cause)));
            }
            !again
        });
    }

    /// Compares the table with what is found in the kernel's, and adds to `delta` what makes that the same. `remove`: what the table
    /// does not have goes.
    pub(crate) fn reconcile(&self, found: &[(K, V)], remove: bool, delta: &mut Delta<K, V>) {
        let mut same = 0;
        let (mut known, mut put) = (HashSet::new(), Vec::new());
        for (key, value) in found {
            match self.written.get(key) {
                Some((written, _)) if written == value => same += 1,
                Some((written, cause)) => put.push(Put { key: *key, value: *written, cause: *cause }),
                None if remove => delta.del.push(*key),
                None => {}
            }
        }
        if same + put.len() < self.written.len() {
            known.extend(found.iter().map(|(key, _)| *key));
            let missing = self.written.iter().filter(|(key, _)| !known.contains(*key));
            put.extend(missing.map(|(key, (value, cause))| Put { key: *key, value: *value, cause: *cause }));
        }
        put.sort_unstable_by_key(|put| put.key);
        delta.put.append(&mut put);
        delta.del.sort_unstable();
    }

    /// Moves the differences into `delta`.
    pub(crate) fn flush(&mut self, delta: &mut Delta<K, V>) {
        if self.pending.is_empty() {
            return;
        }
        let mut pending: Vec<_> = self.pending.drain().collect();
        self.pending.shrink_to(64);
        pending.sort_unstable_by_key(|(key, _)| *key);
        for (key, wanted) in pending {
            match (self.written.entry(key), wanted) {
                (Entry::Occupied(entry), None) => {
                    entry.remove();
                    delta.del.push(key);
                }
                // Written in vain before (a retry of what has gone meanwhile).
                (Entry::Vacant(_), None) => delta.del.push(key),
                (Entry::Occupied(mut entry), Some(wanted)) => {
                    let same = entry.get().0 == wanted.0;
                    entry.insert(wanted);
                    if !same {
                        delta.put.push(Put { key, value: wanted.0, cause: wanted.1 });
                    }
                }
                (Entry::Vacant(entry), Some(wanted)) => {
                    entry.insert(wanted);
                    delta.put.push(Put { key, value: wanted.0, cause: wanted.1 });
                }
            }
        }
    }
}
