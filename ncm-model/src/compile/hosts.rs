//! Remote hosts: their indices, and into which VNIs they may send.
//!
//! A host may send into the VNI of every subnet that it has endpoints in, and, as routed frames arrive with the
//! destination's VNI, into those of all subnets of the same router. Kept as counts of (subnet, host) and (router, host), it
//! costs nothing per endpoint.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ncm_common::tables::{Name, NameKey, Reference, VtepKey, name_kinds};

use crate::compile::endpoints::Before;
use crate::compile::{Changes, Handle, HandleKind, HostChange, mapped};
use crate::model::Model;
use crate::resources::Live;

/// A host's address as the table of tunnel endpoints has it.
pub(crate) fn vtep_key(vni: u32, address: IpAddr) -> VtepKey {
    VtepKey { vni, ip: mapped::address(address) }
}

impl Model {
    /// Counts one more programmed address on a host; the first gives it its index.
    pub(crate) fn activate_host(&mut self, slot: u32) {
        let host = &mut self.hosts.slots[slot];
        host.active += 1;
        if host.index == 0 && !self.number_host(slot) {
            self.hosts.waiting.insert(slot);
        }
    }

    /// Gives a host its index; says whether there was one to give.
    fn number_host(&mut self, slot: u32) -> bool {
        let identity = self.hosts.slots[slot].address.to_string();
        let Some((index, generation)) = self.hosts.indices.assign(&identity) else { return false };
        self.hosts.waiting.remove(&slot);
        let host = &mut self.hosts.slots[slot];
        (host.index, host.generation) = (index, generation);
        let address = host.address;
        self.host_changes.push(HostChange::Add { index, generation, address });
        let cause = Handle::new(HandleKind::Host, slot);
        self.tables.names.set(
            NameKey { kind: name_kinds::HOST, index },
            Name::new(&identity, generation),
            cause,
        );
        true
    }

    /// Gives hosts that wait the indices that have become free, and has everything that leads to them written again.
    fn admit_waiting_hosts(&mut self) {
        let mut admitted = BTreeSet::new();
        while let Some(slot) = self.hosts.waiting.first().copied()
            && self.number_host(slot)
        {
            admitted.insert(slot);
        }
        if admitted.is_empty() {
            return;
        }
        let held: Vec<_> = self.vteps.keys().filter(|(_, slot)| admitted.contains(slot)).copied().collect();
        for (vni, slot) in held {
            self.write_vtep(vni, slot);
        }
        for neighbour in 0..self.neighbours.bound() {
            let Some(first) = self
                .neighbours
                .get(neighbour)
                .filter(|neighbour| admitted.contains(&neighbour.host))
                .map(|neighbour| neighbour.first)
            else {
                continue;
            };
            let addresses: Vec<u32> = self.addresses_from(first).map(|(address, _)| address).collect();
            for address in addresses {
                self.touch(address, Before::Unknown);
            }
        }
    }

    /// Counts one programmed address less. Whether it was the last is seen when the step ends: another may come.
    pub(crate) fn deactivate_host(&mut self, slot: u32) {
        let host = &mut self.hosts.slots[slot];
        host.active -= 1;
        if host.active == 0 {
            self.hosts.idle.push(slot);
        }
    }

    /// Takes back the indices of hosts without programmed addresses, and forgets hosts that nobody names.
    pub(crate) fn release_hosts(&mut self, changes: &mut Changes) {
        changes.hosts.append(&mut self.host_changes);
        let mut idle = std::mem::take(&mut self.hosts.idle);
        idle.sort_unstable();
        idle.dedup();
        for slot in idle {
            let host = self.hosts.slots[slot];
            if host.active == 0 && host.index != 0 {
                self.hosts.indices.release(host.index, host.generation);
                self.hosts.slots[slot].index = 0;
                self.tables.names.unset(NameKey { kind: name_kinds::HOST, index: host.index });
                changes.hosts.push(HostChange::Remove { index: host.index, address: host.address });
            }
            if host.active == 0 {
                self.hosts.waiting.remove(&slot);
            }
            if host.holders == 0 {
                self.forget_failure(Handle::new(HandleKind::Host, slot));
                self.hosts.forget(slot);
            }
        }
        if !self.hosts.waiting.is_empty() {
            self.admit_waiting_hosts();
            changes.hosts.append(&mut self.host_changes);
        }
    }

    /// One more reason for a host to be admitted into a VNI.
    pub(crate) fn hold_vtep(&mut self, vni: u32, host: u32) {
        let count = self.vteps.entry((vni, host)).or_default();
        *count += 1;
        if *count == 1 {
            self.write_vtep(vni, host);
        }
    }

    /// Writes a host's admission into a VNI, if a subnet has it: to frames of other VNIs this node lays no claim.
    fn write_vtep(&mut self, vni: u32, slot: u32) {
        if !self.vni_subnets.contains_key(&vni) {
            return;
        }
        let host = &self.hosts.slots[slot];
        let value = Reference { index: host.index, generation: host.generation };
        self.tables.vteps.set(vtep_key(vni, host.address), value, Handle::new(HandleKind::Host, slot));
    }

    fn hosts_in(&self, vni: u32) -> Vec<u32> {
        self.vteps.range((vni, 0)..=(vni, u32::MAX)).map(|((_, host), _)| *host).collect()
    }

    /// A VNI has its first subnet: who has a reason to send into it may.
    pub(crate) fn admit_into(&mut self, vni: u32) {
        for host in self.hosts_in(vni) {
            self.write_vtep(vni, host);
        }
    }

    /// A VNI has no subnet any more: nobody sends into it, whatever neighbours say.
    pub(crate) fn refuse_into(&mut self, vni: u32) {
        for host in self.hosts_in(vni) {
            self.tables.vteps.unset(vtep_key(vni, self.hosts.slots[host].address));
        }
    }

    /// One reason less.
    pub(crate) fn release_vtep(&mut self, vni: u32, host: u32) {
        if let Some(count) = self.vteps.get_mut(&(vni, host)) {
            *count -= 1;
            if *count == 0 {
                self.vteps.remove(&(vni, host));
                self.tables.vteps.unset(vtep_key(vni, self.hosts.slots[host].address));
            }
        }
    }

    /// One more programmed address of a subnet on a host.
    pub(crate) fn add_subnet_host(&mut self, subnet: u32, host: u32) {
        let count = self.subnets[subnet].hosts.entry(host).or_default();
        *count += 1;
        if *count == 1
            && let Some(live) = self.subnets[subnet].live
        {
            self.hold_vtep(live.vni, host);
            if let Some(router) = live.router {
                self.add_router_host(router, host);
            }
        }
    }

    /// One programmed address of a subnet on a host less.
    pub(crate) fn remove_subnet_host(&mut self, subnet: u32, host: u32) {
        let Some(count) = self.subnets[subnet].hosts.get_mut(&host) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.subnets[subnet].hosts.remove(&host);
        if let Some(live) = self.subnets[subnet].live {
            self.release_vtep(live.vni, host);
            if let Some(router) = live.router {
                self.remove_router_host(router, host);
            }
        }
    }

    fn add_router_host(&mut self, router: u32, host: u32) {
        let count = self.routers[router].hosts.entry(host).or_default();
        *count += 1;
        if *count == 1 {
            if self.has_room_for_host(router) {
                self.admit_host(router, host);
            } else {
                self.bar_host(router, host);
            }
        }
    }

    /// Admits a host of a router into all its VNIs.
    pub(crate) fn admit_host(&mut self, router: u32, host: u32) {
        let vnis = self.vnis_of(router);
        self.room.more_vteps(vnis.len());
        for vni in vnis {
            self.hold_vtep(vni, host);
        }
    }

    fn remove_router_host(&mut self, router: u32, host: u32) {
        let Some(count) = self.routers[router].hosts.get_mut(&host) else { return };
        *count -= 1;
        if *count == 0 {
            self.routers[router].hosts.remove(&host);
            if self.routers[router].barred.remove(&host) {
                return;
            }
            let vnis = self.vnis_of(router);
            self.room.fewer_vteps(vnis.len());
            for vni in vnis {
                self.release_vtep(vni, host);
            }
        }
    }

    fn vnis_of(&self, router: u32) -> Vec<u32> {
        self.routers[router].vnis.keys().copied().collect()
    }

    fn admitted_of(&self, router: u32) -> Vec<u32> {
        let state = &self.routers[router];
        state.hosts.keys().copied().filter(|host| !state.barred.contains(host)).collect()
    }

    /// A subnet's VNI and hosts become part of its router's.
    pub(crate) fn join_admission(&mut self, router: u32, slot: u32, live: Live) {
        let count = self.routers[router].vnis.entry(live.vni).or_default();
        *count += 1;
        if *count == 1 {
            let hosts = self.admitted_of(router);
            self.room.more_vteps(hosts.len());
            for host in hosts {
                self.hold_vtep(live.vni, host);
            }
        }
        for host in self.hosts_of(slot) {
            self.add_router_host(router, host);
        }
    }

    /// The reverse of [`Model::join_admission`].
    pub(crate) fn leave_admission(&mut self, router: u32, slot: u32, live: Live) {
        for host in self.hosts_of(slot) {
            self.remove_router_host(router, host);
        }
        let Some(count) = self.routers[router].vnis.get_mut(&live.vni) else { return };
        *count -= 1;
        if *count == 0 {
            self.routers[router].vnis.remove(&live.vni);
            let hosts = self.admitted_of(router);
            self.room.fewer_vteps(hosts.len());
            for host in hosts {
                self.release_vtep(live.vni, host);
            }
        }
    }
}
