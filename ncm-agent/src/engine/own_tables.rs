//! Tables that are the agent's own and not the model's: what the packet path knows of its node, remote hosts' templates, next-hop
//! groups, timeouts, underlay interfaces that XDP redirects to, epochs of remote addresses. What was last written is kept, so that
//! what others do to them is found.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ncm_common::Plain;
use ncm_common::tables::{Host, NextHopGroup, Node};
use ncm_dataplane::{Error, Table, Tables};

use super::epochs::Epochs;

/// The tables, and what they should hold.
pub(super) struct OwnTables {
    tables: Tables,
    state: Mutex<State>,
    epochs: Arc<Epochs>,
}

struct State {
    node: Node,
    hosts: BTreeMap<u32, Host>,
    groups: BTreeMap<u32, NextHopGroup>,
    timeouts: BTreeMap<u32, u32>,
    /// Of `DEVICES` what is an underlay interface's; the model has the guests'.
    uplinks: BTreeMap<u32, u32>,
}

/// Whoever is told what differs.
pub(super) trait Differences {
    /// An entry is missing, or another than it should be.
    fn wrong<V: Plain + PartialEq>(&mut self, table: &Table<u32, V>, key: u32, expected: &V);
    /// An entry should not be there.
    fn unclaimed<V: Plain + PartialEq>(&mut self, table: &Table<u32, V>, key: u32);
}

impl OwnTables {
    /// Goes on from what an earlier run left; what it left of hosts and groups is right until the underlay says otherwise.
    pub(super) fn adopt(tables: &Tables, timeouts: &[(u32, u32)]) -> Result<Self, Error> {
        for (key, value) in timeouts {
            tables.timeouts.put(key, value)?;
        }
        let state = State {
            node: tables.node.get(&0)?.unwrap_or_default(),
            hosts: tables.hosts.entries()?.into_iter().collect(),
            groups: tables.next_hop_groups.entries()?.into_iter().collect(),
            timeouts: timeouts.iter().copied().collect(),
            uplinks: BTreeMap::new(),
        };
        let epochs = Arc::new(Epochs::read(tables));
        Ok(Self { tables: tables.clone(), state: Mutex::new(state), epochs })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it as good as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables of all kinds.
    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The epochs of remote addresses.
    pub(super) fn epochs(&self) -> &Arc<Epochs> {
        &self.epochs
    }

    /// What the packet path should know of its node.
    pub(super) fn node(&self) -> Node {
        self.state().node
    }

    /// Changes what the packet path knows of its node.
    pub(super) fn amend_node(&self, amend: impl FnOnce(&mut Node)) -> Result<(), Error> {
        let mut state = self.state();
        let mut node = state.node;
        amend(&mut node);
        self.tables.node.put(&0, &node)?;
        state.node = node;
        Ok(())
    }

    /// Writes a remote host's template, or an unused slot.
    pub(super) fn put_host(&self, index: u32, host: &Host) -> Result<(), Error> {
        put(&self.tables.hosts, &mut self.state().hosts, index, host)
    }

    /// Writes a next-hop group, or an unused slot.
    pub(super) fn put_group(&self, index: u32, group: &NextHopGroup) -> Result<(), Error> {
        put(&self.tables.next_hop_groups, &mut self.state().groups, index, group)
    }

    /// Lets XDP programs redirect to an underlay interface, or no longer.
    pub(super) fn put_uplink(&self, ifindex: u32, takes_xdp: bool) -> Result<(), Error> {
        let mut state = self.state();
        if takes_xdp {
            return put(&self.tables.devices, &mut state.uplinks, ifindex, &ifindex);
        }
        self.tables.devices.delete(&ifindex)?;
        state.uplinks.remove(&ifindex);
        Ok(())
    }

    /// Tells what is not as it was last written. `repair` writes it again, `prune` removes what was never written; of `DEVICES` this
    /// is about `uplinks`. Says how many entries were written, and how many removed.
    pub(super) fn compare(
        &self,
        uplinks: &HashSet<u32>,
        to: &mut impl Differences,
        repair: bool,
        prune: bool,
    ) -> Result<(u64, u64), Error> {
        // Nobody writes meanwhile.
        let state = self.state();
        let mut changed = (0, 0);
        let node = BTreeMap::from([(0, state.node)]);
        let mut check = Check { repair, prune, changed: &mut changed };
        let all = |_: &u32| true;
        check.table(&self.tables.node, &node, all, to)?;
        check.table(&self.tables.timeouts, &state.timeouts, all, to)?;
        check.table(&self.tables.next_hop_groups, &state.groups, all, to)?;
        check.table(&self.tables.hosts, &state.hosts, all, to)?;
        let is_uplink = |ifindex: &u32| uplinks.contains(ifindex) || state.uplinks.contains_key(ifindex);
        check.table(&self.tables.devices, &state.uplinks, is_uplink, to)?;
        changed.0 += self.epochs.compare(&self.tables, to, repair)?;
        Ok(changed)
    }
}

fn put<V: Plain + PartialEq + Copy>(
    table: &Table<u32, V>,
    kept: &mut BTreeMap<u32, V>,
    index: u32,
    value: &V,
) -> Result<(), Error> {
    table.put(&index, value)?;
    if *value == V::zeroed() {
        kept.remove(&index);
    } else {
        kept.insert(index, *value);
    }
    Ok(())
}

struct Check<'a> {
    repair: bool,
    prune: bool,
    changed: &'a mut (u64, u64),
}

impl Check<'_> {
    fn table<V: Plain + PartialEq>(
        &mut self,
        table: &Table<u32, V>,
        expected: &BTreeMap<u32, V>,
        is_ours: impl Fn(&u32) -> bool,
        to: &mut impl Differences,
    ) -> Result<(), Error> {
        let mut found: BTreeMap<u32, V> =
            table.entries()?.into_iter().filter(|(key, _)| is_ours(key)).collect();
        for (key, value) in expected {
            if found.remove(key).as_ref() == Some(value) || *value == V::zeroed() {
                continue;
            }
            to.wrong(table, *key, value);
            if self.repair {
                table.put(key, value)?;
                self.changed.0 += 1;
            }
        }
        for key in found.keys() {
            to.unclaimed(table, *key);
            if self.prune {
                table.delete(key)?;
                self.changed.1 += 1;
            }
        }
        Ok(())
    }
}
