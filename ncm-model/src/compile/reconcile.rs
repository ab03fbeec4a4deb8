//! What the kernel's tables hold, compared with what they should.
//!
//! Small tables are compared as a whole. Those of endpoints come in parts, in whatever order the kernel has them; what of them has
//! been seen is one bit for each address, so that what is missing can be told at the end.

use std::net::IpAddr;

use ncm_common::tables::{
    ClassKey, Classes, Endpoint, IpKey, MacKey, Name, NameKey, Port, Reference, Route, RouteKey, Rule,
    RuleKey, Source, SourceKey, SourcePrefixKey, Subnet, SubnetPrefixKey, Vni, VtepKey, epoch_slot, mac_slot,
    name_kinds,
};

use crate::compile::epochs::decides;
use crate::compile::{Changes, Delta, Handle, HostChange, Put};
use crate::model::Model;
use crate::resources::address_flags;

/// What is found in the kernel's tables, but for those of endpoints.
#[derive(Clone, Default, Debug)]
pub struct Found {
    /// `NAMES`, but for those of next-hop groups.
    pub names: Vec<(NameKey, Name)>,
    /// `HOSTS`: index, generation, tunnel endpoint.
    pub hosts: Vec<(u32, u32, IpAddr)>,
    /// `RULES`.
    pub rules: Vec<(RuleKey, Rule)>,
    /// `CLASSES`.
    pub classes: Vec<(ClassKey, Classes)>,
    /// `SUBNETS` in use.
    pub subnets: Vec<(u32, Subnet)>,
    /// `PORTS` in use.
    pub ports: Vec<(u32, Port)>,
    /// `VNIS`.
    pub vnis: Vec<(u32, Vni)>,
    /// `SUBNET_PREFIXES`.
    pub subnet_prefixes: Vec<(SubnetPrefixKey, Reference)>,
    /// `VTEPS`.
    pub vteps: Vec<(VtepKey, Reference)>,
    /// `ROUTES`.
    pub routes: Vec<(RouteKey, Route)>,
    /// `SOURCES`.
    pub sources: Vec<(SourceKey, Source)>,
    /// `SOURCE_PREFIXES`.
    pub source_prefixes: Vec<(SourcePrefixKey, Source)>,
    /// `DEVICES`, but for underlay interfaces.
    pub devices: Vec<(u32, u32)>,
    /// `PORT_BY_INTERFACE`.
    pub port_by_interface: Vec<(u32, Reference)>,
}

/// Which endpoints have been found.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    by_ip: Vec<u64>,
    by_mac: Vec<u64>,
}

impl Seen {
    /// What has been found by address, and what by MAC.
    #[must_use]
    pub fn of(by_ip: Self, by_mac: Self) -> Self {
        Self { by_ip: by_ip.by_ip, by_mac: by_mac.by_mac }
    }
}

fn note(bits: &mut Vec<u64>, slot: u32) {
    let word = (slot / 64) as usize;
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (slot % 64);
}

fn is_noted(bits: &[u64], slot: u32) -> bool {
    bits.get((slot / 64) as usize).is_some_and(|word| word >> (slot % 64) & 1 == 1)
}

impl Model {
    /// Adds to `changes` what makes the kernel's tables (but for those of endpoints) what they should be, without the epochs that rise
    /// by it. `remove`: what should not be there goes.
    pub fn compare(&self, found: &Found, remove: bool, changes: &mut Changes) {
        let tables = &self.tables;
        tables.names.reconcile(&found.names, remove, &mut changes.names);
        tables.rules.reconcile(&found.rules, remove, &mut changes.rules);
        tables.classes.reconcile(&found.classes, remove, &mut changes.classes);
        tables.subnets.reconcile(&found.subnets, remove, &mut changes.subnets);
        tables.ports.reconcile(&found.ports, remove, &mut changes.ports);
        tables.vnis.reconcile(&found.vnis, remove, &mut changes.vnis);
        tables.subnet_prefixes.reconcile(&found.subnet_prefixes, remove, &mut changes.subnet_prefixes);
        tables.vteps.reconcile(&found.vteps, remove, &mut changes.vteps);
        tables.routes.reconcile(&found.routes, remove, &mut changes.routes);
        tables.sources.reconcile(&found.sources, remove, &mut changes.sources);
        tables.source_prefixes.reconcile(&found.source_prefixes, remove, &mut changes.source_prefixes);
        tables.devices.reconcile(&found.devices, remove, &mut changes.devices);
        tables.port_by_interface.reconcile(&found.port_by_interface, remove, &mut changes.port_by_interface);
        self.reconcile_hosts(&found.hosts, remove, changes);
    }

    /// [`Model::compare`], with the epochs that rise by it.
    pub fn reconcile(&mut self, found: &Found, remove: bool, changes: &mut Changes) {
        self.compare(found, remove, changes);
        let before: std::collections::HashMap<u32, &Port> =
            found.ports.iter().map(|(index, port)| (*index, port)).collect();
        let decided_otherwise = |put: &&Put<u32, Port>| {
            let before = before.get(&put.key).filter(|before| before.generation == put.value.generation);
            before.is_some_and(|before| decides(before) != decides(&put.value))
        };
        let put = changes.ports.put.iter().filter(decided_otherwise);
        let mut raised: std::collections::BTreeSet<u32> =
            put.filter_map(|put| self.port_by_index.get(&put.key).copied()).collect();
        let sets = changes.written_sets();
        raised.extend(self.port_by_index.values().filter(|slot| sets.contains(&self.ports[**slot].set)));
        // What covers more is written later, and goes sooner.
        changes.classes.put.reverse();
        self.raise_epochs(raised, changes);
    }

    /// Goes on with the numbers of policy sets that the kernel's tables have. Only where what should not be there is removed: a set must
    /// not find other entries under its number.
    pub fn adopt_sets(&mut self, found: &Found) {
        let sets = found.names.iter().filter(|(key, name)| key.kind == name_kinds::SET && name.is_whole());
        let lists = sets.map(|(key, name)| (key.index, name.as_str())).collect();
        let renumbered = self.policy.resume_sets(&lists, &found.classes, &found.rules);
        let ports: Vec<u32> = self.port_by_index.values().copied().collect();
        for slot in ports {
            if let Some(number) = renumbered.get(&self.ports[slot].set) {
                self.ports[slot].set = *number;
                self.dirty_ports.insert(slot);
            }
        }
        // All tables are compared afterwards.
        self.flush(&mut Changes::default());
    }

    /// Goes on with the epochs that the kernel's table has: flows have them.
    pub fn adopt_epochs(&mut self, found: &[(u32, Port)]) {
        for (index, port) in found {
            let Some(slot) = self.port_by_index.get(index).copied() else { continue };
            if self.ports[slot].generation == port.generation {
                self.ports[slot].epoch = port.epoch;
                self.tables.ports.amend(*index, |own| own.epoch = port.epoch);
            }
        }
    }

    fn reconcile_hosts(&self, found: &[(u32, u32, IpAddr)], remove: bool, changes: &mut Changes) {
        let hosts = (0..self.hosts.slots.bound()).map(|slot| &self.hosts.slots[slot]);
        let mut ours: std::collections::BTreeMap<u32, (u32, IpAddr)> = hosts
            .filter(|host| host.index != 0)
            .map(|host| (host.index, (host.generation, host.address)))
            .collect();
        for (index, generation, address) in found {
            let wanted = ours.get(index).copied();
            // The underlay is told of each that stays too: it begins anew as well.
            if remove && wanted != Some((*generation, *address)) {
                changes.hosts.push(HostChange::Remove { index: *index, address: *address });
            }
        }
        for (index, (generation, address)) in std::mem::take(&mut ours) {
            changes.hosts.push(HostChange::Add { index, generation, address });
        }
    }

    /// Compares entries of the table of endpoints by address.
    pub fn reconcile_by_ip(
        &self,
        found: &[(IpKey, Endpoint)],
        seen: &mut Seen,
        remove: bool,
        changes: &mut Changes,
    ) {
        let owners = self.owners();
        for (key, value) in found {
            let winner = self.claims_ip.winner(key, |slot| owners.ip_key(slot), |slot| owners.member(slot));
            let wanted = winner.map(|(slot, flags)| {
                note(&mut seen.by_ip, slot);
                (self.endpoint(slot, flags, true), self.handle_of(slot))
            });
            if differs(key, value, wanted, remove, &mut changes.endpoints_ip) {
                changes.epochs.push(epoch_slot(key.vni, &key.ip));
            }
        }
    }

    /// Compares entries of the table of endpoints by MAC.
    pub fn reconcile_by_mac(
        &self,
        found: &[(MacKey, Endpoint)],
        seen: &mut Seen,
        remove: bool,
        changes: &mut Changes,
    ) {
        let owners = self.owners();
        for (key, value) in found {
            let winner = self.claims_mac.winner(key, |slot| owners.mac_key(slot), |slot| owners.member(slot));
            let wanted = winner.map(|(slot, flags)| {
                note(&mut seen.by_mac, slot);
                (self.endpoint(slot, flags, false), self.handle_of(slot))
            });
            if differs(key, value, wanted, remove, &mut changes.endpoints_mac) {
                changes.epochs.push(mac_slot(key.vni, &key.mac));
            }
        }
    }

    /// Adds endpoints that have not been found, looking at so many places from `at` on, which moves; whether there are more.
    pub fn reconcile_missing(&self, seen: &Seen, at: &mut u32, places: u32, changes: &mut Changes) -> bool {
        let end = self.addresses.bound().min(at.saturating_add(places));
        let owners = self.owners();
        for slot in *at..end {
            let address = &self.addresses[slot];
            if !address.has(address_flags::ACTIVE) {
                continue;
            }
            if !is_noted(&seen.by_ip, slot) && self.claims_ip(slot) {
                let key = owners.ip_key(slot);
                let winner =
                    self.claims_ip.winner(&key, |slot| owners.ip_key(slot), |slot| owners.member(slot));
                if let Some((_, flags)) = winner.filter(|(winner, _)| *winner == slot) {
                    let (value, cause) = (self.endpoint(slot, flags, true), self.handle_of(slot));
                    changes.endpoints_ip.put.push(Put { key, value, cause });
                    changes.epochs.push(epoch_slot(key.vni, &key.ip));
                }
            }
            if !is_noted(&seen.by_mac, slot) && self.claims_mac(slot) {
                let key = owners.mac_key(slot);
                let winner =
                    self.claims_mac.winner(&key, |slot| owners.mac_key(slot), |slot| owners.member(slot));
                if let Some((_, flags)) = winner.filter(|(winner, _)| *winner == slot) {
                    let (value, cause) = (self.endpoint(slot, flags, false), self.handle_of(slot));
                    changes.endpoints_mac.put.push(Put { key, value, cause });
                    changes.epochs.push(mac_slot(key.vni, &key.mac));
                }
            }
        }
        changes.endpoints_ip.put.sort_unstable_by_key(|put| put.key);
        changes.endpoints_mac.put.sort_unstable_by_key(|put| put.key);
        *at = end;
        end < self.addresses.bound()
    }
}

/// Notes what makes an entry what it should be; says whether there is anything.
fn differs<K: Copy>(
    key: &K,
    value: &Endpoint,
    wanted: Option<(Endpoint, Handle)>,
    remove: bool,
    delta: &mut Delta<K, Endpoint>,
) -> bool {
    match wanted {
        Some((wanted, _)) if wanted == *value => false,
        Some((value, cause)) => {
            delta.put.push(Put { key: *key, value, cause });
            true
        }
        None if remove => {
            delta.del.push(*key);
            true
        }
        None => false,
    }
}
