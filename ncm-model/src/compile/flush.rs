//! The end of a step: what has been marked becomes entries to put and keys to delete.

use ncm_common::tables::{
    Endpoint, Ipv4Key, MacKey, Name, NameKey, Port, Reference, Route, RouteKey, Source, SourceKey,
    SourcePrefixKey, Subnet, SubnetPrefixKey, Vni, VtepKey, endpoint_flags,
};

use crate::compile::addresses::ip_key;
use crate::compile::mirror::Mirror;
use crate::compile::{Changes, Delta, Handle, Put};
use crate::model::Model;
use crate::store::NONE;

/// The tables that are kept as written.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) names: Mirror<NameKey, Name>,
    pub(crate) subnets: Mirror<u32, Subnet>,
    pub(crate) ports: Mirror<u32, Port>,
    pub(crate) vnis: Mirror<u32, Vni>,
    pub(crate) subnet_prefixes: Mirror<SubnetPrefixKey, Reference>,
    pub(crate) vteps: Mirror<VtepKey, Reference>,
    pub(crate) routes: Mirror<RouteKey, Route>,
    pub(crate) sources: Mirror<SourceKey, Source>,
    pub(crate) source_prefixes: Mirror<SourcePrefixKey, Source>,
    pub(crate) devices: Mirror<u32, u32>,
    pub(crate) port_by_interface: Mirror<u32, Reference>,
}

impl Tables {
    fn flush(&mut self, changes: &mut Changes) {
        self.names.flush(&mut changes.names);
        self.subnets.flush(&mut changes.subnets);
        self.ports.flush(&mut changes.ports);
        self.vnis.flush(&mut changes.vnis);
        self.subnet_prefixes.flush(&mut changes.subnet_prefixes);
        self.vteps.flush(&mut changes.vteps);
        self.routes.flush(&mut changes.routes);
        self.sources.flush(&mut changes.sources);
        self.source_prefixes.flush(&mut changes.source_prefixes);
        self.devices.flush(&mut changes.devices);
        self.port_by_interface.flush(&mut changes.port_by_interface);
    }

    /// Writes again what comes from one of these resources.
    pub(crate) fn resend(&mut self, from: impl Fn(Handle) -> bool) {
        self.names.resend(&from);
        self.subnets.resend(&from);
        self.ports.resend(&from);
        self.vnis.resend(&from);
        self.subnet_prefixes.resend(&from);
        self.vteps.resend(&from);
        self.routes.resend(&from);
        self.sources.resend(&from);
        self.source_prefixes.resend(&from);
        self.devices.resend(&from);
        self.port_by_interface.resend(&from);
    }
}

/// Decides the marked keys of an endpoint table. A key that is marked once, by a claim that was its only one, needs no
/// search for its winner.
fn decide<K: Copy + Ord>(
    dirty: &mut Vec<(K, u32)>,
    delta: &mut Delta<K, Endpoint>,
    value: impl Fn(&K, u32) -> Option<(Endpoint, Handle)>,
) {
    dirty.sort_unstable();
    delta.put.reserve(dirty.len());
    for marks in dirty.chunk_by(|(one, _), (other, _)| one == other) {
        let (key, claimant) = marks[0];
        match value(&key, if marks.len() == 1 { claimant } else { NONE }) {
            Some((value, cause)) => delta.put.push(Put { key, value, cause }),
            None => delta.del.push(key),
        }
    }
    dirty.clear();
    dirty.shrink_to(16_384);
}

impl Model {
    /// Ends a step: everything marked is decided and its differences are added to `changes`.
    pub(crate) fn flush(&mut self, changes: &mut Changes) {
        self.use_freed_room();
        while let Some(port) = self.dirty_ports.pop_first() {
            self.update_port(port);
        }
        self.release_hosts(changes);
        self.write_routes();
        let mut dirty = std::mem::take(&mut self.dirty_ip);
        decide(&mut dirty, &mut changes.endpoints_ipv4, |key, claimant| self.endpoint_by_ip(key, claimant));
        self.dirty_ip = dirty;
        let mut dirty = std::mem::take(&mut self.dirty_mac);
        decide(&mut dirty, &mut changes.endpoints_mac, |key, claimant| self.endpoint_by_mac(key, claimant));
        self.dirty_mac = dirty;
        let again = std::mem::take(&mut self.resend);
        if !again.is_empty() {
            self.tables.resend(|cause| again.contains(&cause));
        }
        self.tables.flush(changes);
        self.announce_interfaces(&mut changes.interfaces);
    }

    fn endpoint_by_ip(&self, key: &Ipv4Key, claimant: u32) -> Option<(Endpoint, Handle)> {
        let owners = self.owners();
        let (slot, flags) = if claimant == NONE {
            self.claims_ip.winner(key, |slot| ip_key(&self.addresses, slot), |slot| owners.member(slot))?
        } else {
            (claimant, owners.member(claimant).flags)
        };
        let subnet = self.subnets[self.addresses[slot].subnet].index;
        Some((self.endpoint(slot, flags, subnet), self.handle_of(slot)))
    }

    fn endpoint_by_mac(&self, key: &MacKey, claimant: u32) -> Option<(Endpoint, Handle)> {
        let owners = self.owners();
        let (slot, flags) = if claimant == NONE {
            self.claims_mac.winner(key, |slot| owners.mac_key(slot), |slot| owners.member(slot))?
        } else {
            (claimant, owners.member(claimant).flags)
        };
        Some((self.endpoint(slot, flags, 0), self.handle_of(slot)))
    }

    fn endpoint(&self, slot: u32, flags: u16, subnet: u32) -> Endpoint {
        let address = &self.addresses[slot];
        let mac = self.owners().mac(slot);
        match address.port() {
            Some(port) => {
                let port = &self.ports[port];
                let flags = flags | endpoint_flags::LOCAL;
                Endpoint { target: port.index, generation: port.generation, subnet, flags, mac, reserved: 0 }
            }
            None => {
                let host = &self.hosts.slots[self.neighbours[address.owner].host];
                Endpoint { target: host.index, generation: host.generation, subnet, flags, mac, reserved: 0 }
            }
        }
    }
}
