//! What subnets contribute: their own entries, their VNI, their prefix, and their place in a router.

use ncm_common::tables::{Name, NameKey, Reference, Subnet, SubnetPrefixKey, Vni, name_kinds, subnet_flags};

use crate::compile::{Handle, HandleKind, mapped};
use crate::model::Model;
use crate::resources::{Live, SubnetSlot};
use crate::store::NONE;

/// So many marked routes are not left to the end of the step, where a message changes the same ones over and over.
const MANY_ROUTES: usize = 1 << 20;

/// Key of the table of subnets by prefix.
pub(crate) fn prefix_key(vni: u32, net: ipnet::IpNet) -> SubnetPrefixKey {
    let (ip, length) = mapped::prefix(net);
    SubnetPrefixKey { prefix_len: 32 + length, vni, ip }
}

impl Model {
    /// The slot of a subnet that is held or referred to; made if there is none.
    pub(crate) fn subnet_slot(&mut self, id: &str) -> u32 {
        if let Some((last, slot)) = &self.last_subnet
            && last == id
        {
            return *slot;
        }
        let slot = match self.subnet_by_id.get(id) {
            Some(slot) => *slot,
            None => {
                let slot = self.subnets.insert(SubnetSlot { id: id.to_owned(), ..SubnetSlot::default() });
                self.subnet_by_id.insert(id.to_owned(), slot);
                slot
            }
        };
        self.last_subnet = Some((id.to_owned(), slot));
        slot
    }

    /// Frees the slot of a subnet that is neither held nor referred to.
    pub(crate) fn forget_subnet_if_unused(&mut self, slot: u32) {
        let subnet = &self.subnets[slot];
        if subnet.held.is_none() && subnet.addresses == 0 && subnet.routers.is_empty() {
            let subnet = self.subnets.remove(slot);
            self.subnet_by_id.remove(&subnet.id);
            self.last_subnet = None;
        }
    }

    /// The VNI that a subnet has: its own, else its VPC's; 0 while unknown.
    pub(crate) fn subnet_vni(&self, slot: u32) -> u32 {
        let Some(held) = &self.subnets[slot].held else { return 0 };
        match u32::try_from(held.config.tunnel_id) {
            Ok(0) | Err(_) => self.vpcs.get(&held.config.vpc_id).map_or(0, |vpc| vpc.config.tunnel_id),
            Ok(vni) => vni,
        }
    }

    /// Makes a subnet's entries, and all that depends on it, what they should be.
    pub(crate) fn update_subnet(&mut self, slot: u32) {
        let vni = self.subnet_vni(slot);
        let subnet = &self.subnets[slot];
        let before = subnet.live;
        self.waiting_subnets.remove(&slot);
        self.room.wait_no_more(slot);
        let mut wanted =
            subnet.held.as_ref().filter(|_| vni != 0).map(|held| Live { vni, net: held.net, router: None });
        if let Some(wanted) = &mut wanted {
            wanted.router = self.router_with_room(slot, vni, before);
        }
        if before != wanted {
            let place = |live: Option<Live>| live.map(|live| (live.net, live.router));
            let moves = place(before) != place(wanted);
            if let Some(live) = before {
                self.retract(slot, live, moves);
            }
            if before.is_none() && wanted.is_some() && !self.number_subnet(slot) {
                self.waiting_subnets.insert(slot);
                self.room.wait_no_more(slot);
                wanted = None;
            } else if before.is_some() && wanted.is_none() {
                self.unnumber_subnet(slot);
            }
            self.subnets[slot].live = wanted;
            if let Some(live) = wanted {
                self.assert(slot, live, moves);
            }
            // Ports in several IPv6 subnets know their prefixes.
            let link = |live: Live| Some(live.net).filter(|net| net.addr().is_ipv6());
            let settles = |live: Option<Live>| live.map(|live| (live.vni, live.router.is_some(), link(live)));
            if settles(before) != settles(wanted) {
                self.disturb(slot);
            }
        }
        self.write_subnet(slot);
        if self.dirty_routes.len() > MANY_ROUTES {
            self.write_routes();
        }
        if before.is_some()
            && wanted.is_none()
            && let Some(next) = self.waiting_subnets.pop_first()
        {
            // There is a place for it now.
            self.update_subnet(next);
        }
    }

    /// Gives a subnet its index; says whether there was one to give.
    fn number_subnet(&mut self, slot: u32) -> bool {
        let id = self.subnets[slot].id.clone();
        let Some((index, generation)) = self.subnet_indices.assign(&id) else { return false };
        let subnet = &mut self.subnets[slot];
        (subnet.index, subnet.generation) = (index, generation);
        self.subnet_by_index.insert(index, slot);
        let cause = Handle::new(HandleKind::Subnet, slot);
        self.tables.names.set(NameKey { kind: name_kinds::SUBNET, index }, Name::new(&id, generation), cause);
        true
    }

    fn unnumber_subnet(&mut self, slot: u32) {
        let subnet = &mut self.subnets[slot];
        let (index, generation) = (subnet.index, subnet.generation);
        (subnet.index, subnet.generation) = (0, 0);
        self.subnet_by_index.remove(&index);
        self.lost_subnets.push(slot);
        self.subnet_indices.release(index, generation);
        self.tables.names.unset(NameKey { kind: name_kinds::SUBNET, index });
        self.tables.subnets.unset(index);
    }

    fn retract(&mut self, slot: u32, live: Live, moves: bool) {
        if let Some(claims) = self.prefix_claims.get_mut(&(live.vni, live.net)) {
            claims.remove(&self.subnets[slot].id);
            if claims.is_empty() {
                self.prefix_claims.remove(&(live.vni, live.net));
            }
        }
        self.write_prefix(live.vni, live.net);
        self.leave_vni(live.vni, slot);
        for host in self.hosts_of(slot) {
            self.release_vtep(live.vni, host);
        }
        if let Some(router) = live.router {
            self.leave_router(router, slot, live, moves);
        }
    }

    fn assert(&mut self, slot: u32, live: Live, moves: bool) {
        let id = self.subnets[slot].id.clone();
        self.prefix_claims.entry((live.vni, live.net)).or_default().insert(id, slot);
        self.write_prefix(live.vni, live.net);
        self.join_vni(live.vni, slot);
        for host in self.hosts_of(slot) {
            self.hold_vtep(live.vni, host);
        }
        if let Some(router) = live.router {
            self.join_router(router, slot, live, moves);
        }
    }

    pub(crate) fn hosts_of(&self, slot: u32) -> Vec<u32> {
        self.subnets[slot].hosts.keys().copied().collect()
    }

    fn write_prefix(&mut self, vni: u32, net: ipnet::IpNet) {
        // Of several subnets with one VNI and prefix, the first by id is found.
        let winner = self.prefix_claims.get(&(vni, net)).and_then(|claims| claims.values().next().copied());
        let value = winner.map(|slot| {
            let subnet = &self.subnets[slot];
            let reference = Reference { index: subnet.index, generation: subnet.generation };
            (reference, Handle::new(HandleKind::Subnet, slot))
        });
        self.tables.subnet_prefixes.assign(prefix_key(vni, net), value);
    }

    fn join_vni(&mut self, vni: u32, slot: u32) {
        let subnets = self.vni_subnets.entry(vni).or_default();
        subnets.insert(slot);
        if subnets.len() == 1 {
            self.admit_into(vni);
        }
        self.write_vni(vni);
    }

    fn leave_vni(&mut self, vni: u32, slot: u32) {
        let Some(subnets) = self.vni_subnets.get_mut(&vni) else { return };
        subnets.remove(&slot);
        if subnets.is_empty() {
            self.vni_subnets.remove(&vni);
            self.refuse_into(vni);
        }
        self.write_vni(vni);
    }

    fn write_vni(&mut self, vni: u32) {
        let value = self.vni_subnets.get(&vni).and_then(|subnets| {
            // Of a subnet that is still there, so that somebody answers for a refusal.
            let cause = Handle::new(HandleKind::Subnet, *subnets.first()?);
            Some((Vni { subnets: subnets.len() as u32, reserved: 0 }, cause))
        });
        self.tables.vnis.assign(vni, value);
    }

    /// Writes the entry in the table of subnets.
    pub(crate) fn write_subnet(&mut self, slot: u32) {
        let subnet = &self.subnets[slot];
        let (Some(live), Some(held)) = (subnet.live, &subnet.held) else { return };
        let mut flags = 0;
        let (mut gateway_ip, mut gateway_mac) = ([0; 16], [0; 6]);
        if let Some((ip, mac)) = held.gateway {
            flags |= subnet_flags::GATEWAY;
            (gateway_ip, gateway_mac) = (mapped::address(ip), mac);
        }
        let mut dvr_mac = [0; 6];
        if let Some(router) = live.router {
            flags |= subnet_flags::ROUTED;
            dvr_mac = self.routers[router].dvr_mac;
        }
        let (network, prefix_len) = mapped::prefix(live.net);
        let value = Subnet {
            generation: subnet.generation,
            vni: live.vni,
            flags,
            prefix_len,
            gateway_ip,
            network,
            gateway_mac,
            dvr_mac,
            reserved: [0; 5],
        };
        let index = subnet.index;
        self.tables.subnets.set(index, value, Handle::new(HandleKind::Subnet, slot));
    }

    /// The subnet that has an index, if it is live.
    pub(crate) fn subnet_at(&self, index: u32) -> Option<u32> {
        self.subnet_by_index.get(&index).copied().filter(|slot| *slot != NONE)
    }
}
