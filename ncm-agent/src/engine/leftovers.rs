//! What must not be left over: entries that the kernel refused to delete, and what the last port under an index has left
//! where the key has no generation (what it may send from, and its counts).

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use ncm_common::tables::Port;
use ncm_model::{Changes, Delta};

/// Does the same with two changes, table by table.
macro_rules! each {
    ($do:ident($one:expr, $other:expr)) => {{
        let (one, other) = ($one, $other);
        $do(&mut one.names, &mut other.names);
        $do(&mut one.rules, &mut other.rules);
        $do(&mut one.classes, &mut other.classes);
        $do(&mut one.subnets, &mut other.subnets);
        $do(&mut one.ports, &mut other.ports);
        $do(&mut one.vnis, &mut other.vnis);
        $do(&mut one.subnet_prefixes, &mut other.subnet_prefixes);
        $do(&mut one.vteps, &mut other.vteps);
        $do(&mut one.endpoints_mac, &mut other.endpoints_mac);
        $do(&mut one.endpoints_ip, &mut other.endpoints_ip);
        $do(&mut one.routes, &mut other.routes);
        $do(&mut one.sources, &mut other.sources);
        $do(&mut one.source_prefixes, &mut other.source_prefixes);
        $do(&mut one.devices, &mut other.devices);
        $do(&mut one.port_by_interface, &mut other.port_by_interface);
    }};
}

/// Entries that are to go and that the kernel refused to delete.
#[derive(Default)]
pub(super) struct Undeleted(Changes);

impl Undeleted {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What a step writes is not to go any more, and what it deletes is its own to note.
    pub(super) fn supersede(&mut self, changes: &mut Changes) {
        if self.len() > 0 {
            each!(forget(&mut self.0, changes));
        }
    }

    /// Takes all of them, to be tried again.
    pub(super) fn take(&mut self) -> Changes {
        std::mem::take(&mut self.0)
    }

    /// Where refused deletions are noted.
    pub(super) fn tables(&mut self) -> &mut Changes {
        &mut self.0
    }
}

fn forget<K: Eq + Hash + Copy, V>(left: &mut Delta<K, V>, delta: &mut Delta<K, V>) {
    if left.del.is_empty() {
        return;
    }
    let mut keys: HashSet<K> = left.del.drain(..).collect();
    for key in delta.put.iter().map(|put| &put.key).chain(&delta.del) {
        keys.remove(key);
    }
    left.del.extend(keys);
}

/// Which port is under each index, by its generation, as last written.
#[derive(Default)]
pub(super) struct Occupants(HashMap<u32, u32>);

/// Indices that a step gives to ports.
pub(super) struct Moves {
    /// To another port than the last one written, or after none.
    pub(super) new: HashSet<u32>,
    /// Those of them that had another port.
    pub(super) reused: Vec<u32>,
}

impl Occupants {
    /// The ports that the table has already.
    pub(super) fn new(ports: impl IntoIterator<Item = (u32, Port)>) -> Self {
        Self(ports.into_iter().map(|(index, port)| (index, port.generation)).collect())
    }

    /// Who moves in.
    pub(super) fn moves(&self, ports: &Delta<u32, Port>) -> Moves {
        let mut moves = Moves { new: HashSet::new(), reused: Vec::new() };
        for put in &ports.put {
            match self.0.get(&put.key) {
                Some(generation) if *generation == put.value.generation => continue,
                Some(_) => moves.reused.push(put.key),
                None => {}
            }
            moves.new.insert(put.key);
        }
        moves
    }

    /// Takes note of what is written.
    pub(super) fn written(&mut self, ports: &Delta<u32, Port>) {
        for put in &ports.put {
            self.0.insert(put.key, put.value.generation);
        }
        for index in &ports.del {
            self.0.remove(index);
        }
    }
}

/// Takes from `keys` those of the ports at `indices`.
pub(super) fn take_of<K: Copy>(
    keys: &mut Vec<K>,
    indices: &HashSet<u32>,
    port_of: impl Fn(&K) -> u32,
) -> Vec<K> {
    if indices.is_empty() || keys.is_empty() {
        return Vec::new();
    }
    let (taken, rest) = keys.iter().partition(|key| indices.contains(&port_of(key)));
    *keys = rest;
    taken
}

#[cfg(test)]
mod tests {
    use ncm_common::tables::{Reference, Source, SourceKey};
    use ncm_model::{Handle, Put};

    use super::*;

    fn put<K, V>(key: K, value: V) -> Put<K, V> {
        Put { key, value, cause: Handle::default() }
    }

    fn key(port: u32, last: u8) -> SourceKey {
        SourceKey { port, ip: [last; 16], ..SourceKey::default() }
    }

    #[test]
    fn refused_deletions_are_kept_until_the_entry_is_wanted_again() {
        let mut undeleted = Undeleted::default();
        undeleted.tables().sources.del.extend([key(1, 1), key(1, 2), key(1, 3)]);
        undeleted.tables().port_by_interface.del.push(7);
        assert_eq!(undeleted.len(), 4);
        let mut changes = Changes::default();
        changes.sources.put.push(put(key(1, 2), Source::default()));
        changes.sources.del.push(key(1, 3));
        changes.port_by_interface.put.push(put(8, Reference::default()));
        undeleted.supersede(&mut changes);
        let again = undeleted.take();
        assert_eq!(again.sources.del, [key(1, 1)]);
        assert_eq!(again.port_by_interface.del, [7]);
        assert_eq!(undeleted.len(), 0, "it is the step's from now on");
    }

    #[test]
    fn a_port_that_moves_in_is_told_from_one_that_is_written_again() {
        let port = |generation| Port { generation, ..Port::default() };
        let mut occupants = Occupants::new([(1, port(1)), (2, port(1))]);
        let mut ports = Delta::default();
        ports.put.extend([put(1, port(1)), put(2, port(2)), put(3, port(1))]);
        let moves = occupants.moves(&ports);
        assert_eq!(moves.new, HashSet::from([2, 3]));
        assert_eq!(moves.reused, [2]);
        occupants.written(&ports);
        assert!(occupants.moves(&ports).new.is_empty());
        occupants.written(&Delta { put: Vec::new(), del: vec![3] });
        let moves = occupants.moves(&ports);
        assert_eq!((moves.new, moves.reused), (HashSet::from([3]), Vec::new()));
    }

    #[test]
    fn keys_of_some_ports_are_taken_from_a_list() {
        let mut keys = vec![key(1, 1), key(2, 1), key(1, 2)];
        assert!(take_of(&mut keys, &HashSet::new(), |key| key.port).is_empty());
        assert_eq!(take_of(&mut keys, &HashSet::from([1]), |key| key.port), [key(1, 1), key(1, 2)]);
        assert_eq!(keys, [key(2, 1)]);
    }
}
