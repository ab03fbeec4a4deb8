//! Addresses of ports and neighbours: which keys of the endpoint tables they claim, and what waits for what.

use ncm_common::tables::{IpKey, MacKey, endpoint_flags};

use crate::compile::endpoints::{Before, Mark};
use crate::compile::{Handle, HandleKind, mapped};
use crate::model::Model;
use crate::resources::{Address, Neighbour, PortSlot, address_flags};

use crate::store::{Member, NONE, Provenances, Slab};

/// What an address should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// Nothing is programmed for it.
    Off,
    /// Nothing is programmed until what it misses is known.
    Parked,
    /// It is programmed in this VNI.
    On(u32),
}

/// What is needed to tell the keys and ranks of claims.
#[derive(Clone, Copy)]
pub(crate) struct Owners<'a> {
    pub(crate) addresses: &'a Slab<Address>,
    pub(crate) neighbours: &'a Slab<Neighbour>,
    pub(crate) ports: &'a Slab<PortSlot>,
    pub(crate) provenances: &'a Provenances,
    pub(crate) v6: &'a Slab<[u8; 16]>,
}

impl Owners<'_> {
    pub(crate) fn mac(&self, slot: u32) -> [u8; 6] {
        let address = &self.addresses[slot];
        match address.port() {
            None => self.neighbours[address.owner].mac,
            Some(port) if address.has(address_flags::MAC_ONLY) => {
                self.ports[port].pair_macs[address.ip as usize]
            }
            Some(port) => self.ports[port].mac,
        }
    }

    pub(crate) fn ip_key(&self, slot: u32) -> IpKey {
        let address = &self.addresses[slot];
        let ip = if address.has(address_flags::V6) { self.v6[address.ip] } else { mapped::v4(address.ip) };
        IpKey { vni: address.vni(), ip }
    }

    pub(crate) fn mac_key(&self, slot: u32) -> MacKey {
        MacKey { vni: self.addresses[slot].vni(), mac: self.mac(slot), reserved: [0; 2] }
    }

    pub(crate) fn member(&self, slot: u32) -> Member {
        let address = &self.addresses[slot];
        match address.port() {
            None => {
                let neighbour = &self.neighbours[address.owner];
                let flags = if neighbour.is_l3() { endpoint_flags::L3 } else { endpoint_flags::L2 };
                let revision = self.provenances.get(neighbour.provenance).revision;
                Member { rank: (revision, neighbour.version()), slot, flags }
            }
            Some(port) => {
                let rank =
                    self.ports[port].meta.as_ref().map_or((0, 0), |meta| (meta.revision, meta.version));
                Member { rank, slot, flags: endpoint_flags::L2 | endpoint_flags::L3 }
            }
        }
    }
}

/// Destructures the model into the claims of one kind and what they are told by.
macro_rules! claims {
    ($model:expr, $claims:ident) => {{
        let model = &mut *$model;
        let owners = Owners {
            addresses: &model.addresses,
            neighbours: &model.neighbours,
            ports: &model.ports,
            provenances: &model.provenances,
            v6: &model.v6,
        };
        (&mut model.$claims, owners)
    }};
}

impl Model {
    pub(crate) fn owners(&self) -> Owners<'_> {
        Owners {
            addresses: &self.addresses,
            neighbours: &self.neighbours,
            ports: &self.ports,
            provenances: &self.provenances,
            v6: &self.v6,
        }
    }

    pub(crate) fn handle_of(&self, address: u32) -> Handle {
        let address = &self.addresses[address];
        match address.port() {
            Some(port) => Handle::new(HandleKind::Port, port),
            None => Handle::new(HandleKind::Neighbour, address.owner),
        }
    }

    /// Adds an address to its subnet's list. Whoever adds it makes it the owner's, and settles it.
    pub(crate) fn add_address(&mut self, address: Address) -> u32 {
        let subnet = address.subnet;
        let slot = self.addresses.insert(address);
        let list = &mut self.subnets[subnet];
        list.addresses += 1;
        let after = std::mem::replace(&mut list.settled, slot);
        let new = &mut self.addresses[slot];
        new.list_before = NONE;
        new.list_after = after;
        if after != NONE {
            self.addresses[after].list_before = slot;
        }
        slot
    }

    /// Takes an address that is not active out of its subnet's list and frees it.
    pub(crate) fn drop_address(&mut self, slot: u32) {
        self.set_parked(slot, false);
        self.unlink(slot);
        let address = self.addresses.remove(slot);
        if address.has(address_flags::V6) {
            self.v6.remove(address.ip);
        }
        self.subnets[address.subnet].addresses -= 1;
        self.forget_subnet_if_unused(address.subnet);
    }

    fn unlink(&mut self, slot: u32) {
        let Address { subnet, list_before, list_after, .. } = self.addresses[slot];
        if list_after != NONE {
            self.addresses[list_after].list_before = list_before;
        }
        if list_before != NONE {
            self.addresses[list_before].list_after = list_after;
        } else if self.subnets[subnet].settled == slot {
            self.subnets[subnet].settled = list_after;
        } else {
            self.subnets[subnet].stale = list_after;
        }
    }

    /// Marks all addresses of a subnet to be looked at again, in later steps.
    pub(crate) fn disturb(&mut self, subnet: u32) {
        let list = &mut self.subnets[subnet];
        if list.settled == NONE {
            return;
        }
        if list.stale == NONE {
            list.stale = std::mem::replace(&mut list.settled, NONE);
            self.jobs.push_back(subnet);
            return;
        }
        // Some are stale already: the settled ones join them, one by one (they have been settled one by one).
        while self.subnets[subnet].settled != NONE {
            let slot = self.subnets[subnet].settled;
            self.unlink(slot);
            let after = std::mem::replace(&mut self.subnets[subnet].stale, slot);
            self.addresses[slot].list_before = NONE;
            self.addresses[slot].list_after = after;
            if after != NONE {
                self.addresses[after].list_before = slot;
            }
        }
    }

    /// Looks at up to `max` stale addresses again. Returns how many are done.
    pub(crate) fn work_off(&mut self, max: usize) -> usize {
        let mut done = 0;
        while done < max
            && let Some(subnet) = self.jobs.front().copied()
        {
            let slot = self.subnets.get(subnet).map_or(NONE, |list| list.stale);
            if slot == NONE {
                self.jobs.pop_front();
                continue;
            }
            done += 1;
            self.unlink(slot);
            let after = std::mem::replace(&mut self.subnets[subnet].settled, slot);
            self.addresses[slot].list_before = NONE;
            self.addresses[slot].list_after = after;
            if after != NONE {
                self.addresses[after].list_before = slot;
            }
            match self.addresses[slot].port() {
                // A port's flags and sources depend on its subnets too.
                Some(port) => {
                    self.dirty_ports.insert(port);
                }
                None => self.settle(slot),
            }
        }
        done
    }

    fn wanted(&self, slot: u32) -> Wanted {
        let address = &self.addresses[slot];
        let live = self.subnets[address.subnet].live;
        if let Some(port) = address.port() {
            return match live {
                Some(live) if self.ports[port].live => Wanted::On(live.vni),
                _ => Wanted::Parked,
            };
        }
        let neighbour = &self.neighbours[address.owner];
        if self.hosts.slots[neighbour.host].local {
            return Wanted::Off;
        }
        let explicit = address.has(address_flags::EXPLICIT);
        match live {
            Some(live) if neighbour.is_l3() && live.router.is_none() && !explicit => Wanted::Parked,
            Some(live) => Wanted::On(if explicit { address.vni() } else { live.vni }),
            None if explicit => Wanted::On(address.vni()),
            None => Wanted::Parked,
        }
    }

    fn set_parked(&mut self, slot: u32, parked: bool) {
        let address = &mut self.addresses[slot];
        if parked && !address.has(address_flags::PARKED) {
            address.vni |= address_flags::PARKED;
            self.parked += 1;
        } else if !parked && address.has(address_flags::PARKED) {
            address.vni &= !address_flags::PARKED;
            self.parked -= 1;
        }
    }

    /// Makes an address what it should be.
    pub(crate) fn settle(&mut self, slot: u32) {
        let wanted = self.wanted(slot);
        let address = &self.addresses[slot];
        if address.has(address_flags::ACTIVE) {
            if wanted == Wanted::On(address.vni()) {
                // The keys are right; the value may refer to something that has another index now.
                self.touch(slot, Before::Same);
                return;
            }
            self.deactivate(slot);
        }
        self.set_parked(slot, wanted == Wanted::Parked);
        if let Wanted::On(vni) = wanted {
            self.activate(slot, vni);
        }
    }

    pub(crate) fn claims_ip(&self, slot: u32) -> bool {
        !self.addresses[slot].has(address_flags::MAC_ONLY)
    }

    pub(crate) fn claims_mac(&self, slot: u32) -> bool {
        let address = &self.addresses[slot];
        address.port().is_some() || !self.neighbours[address.owner].is_l3()
    }

    fn activate(&mut self, slot: u32, vni: u32) {
        let address = &mut self.addresses[slot];
        address.set_vni(vni);
        address.vni |= address_flags::ACTIVE;
        let (subnet, owner) = (address.subnet, address.owner);
        let explicit = address.has(address_flags::EXPLICIT);
        if address.port().is_none() {
            let host = self.neighbours[owner].host;
            self.activate_host(host);
            if explicit {
                self.hold_vtep(vni, host);
            }
            self.add_subnet_host(subnet, host);
        }
        if self.claims_ip(slot) {
            let (claims, owners) = claims!(self, claims_ip);
            let key = owners.ip_key(slot);
            let winner = claims.add(&key, slot, |slot| owners.ip_key(slot), |slot| owners.member(slot));
            self.dirty_ip.push(Mark {
                key,
                claimant: if winner.is_none() { slot } else { NONE },
                before: self.before(winner, true),
            });
        }
        if self.claims_mac(slot) {
            let (claims, owners) = claims!(self, claims_mac);
            let key = owners.mac_key(slot);
            let winner = claims.add(&key, slot, |slot| owners.mac_key(slot), |slot| owners.member(slot));
            self.dirty_mac.push(Mark {
                key,
                claimant: if winner.is_none() { slot } else { NONE },
                before: self.before(winner, false),
            });
        }
    }

    /// Gives up an active address's claims.
    pub(crate) fn deactivate(&mut self, slot: u32) {
        if self.claims_ip(slot) {
            let (claims, owners) = claims!(self, claims_ip);
            let key = owners.ip_key(slot);
            let winner = claims.remove(&key, slot, |slot| owners.ip_key(slot), |slot| owners.member(slot));
            self.dirty_ip.push(Mark { key, claimant: NONE, before: self.before(winner, true) });
        }
        if self.claims_mac(slot) {
            let (claims, owners) = claims!(self, claims_mac);
            let key = owners.mac_key(slot);
            let winner = claims.remove(&key, slot, |slot| owners.mac_key(slot), |slot| owners.member(slot));
            self.dirty_mac.push(Mark { key, claimant: NONE, before: self.before(winner, false) });
        }
        let address = &mut self.addresses[slot];
        address.vni &= !address_flags::ACTIVE;
        let (subnet, owner, vni) = (address.subnet, address.owner, address.vni());
        let explicit = address.has(address_flags::EXPLICIT);
        if !explicit {
            address.set_vni(0);
        }
        if address.port().is_none() {
            let host = self.neighbours[owner].host;
            self.remove_subnet_host(subnet, host);
            if explicit {
                self.release_vtep(vni, host);
            }
            self.deactivate_host(host);
        }
    }

    /// Has an address's entries written again; `before` is that of both.
    pub(crate) fn touch(&mut self, slot: u32, before: Before) {
        if !self.addresses[slot].has(address_flags::ACTIVE) {
            return;
        }
        if self.claims_ip(slot) {
            let key = self.owners().ip_key(slot);
            self.dirty_ip.push(Mark { key, claimant: NONE, before });
        }
        if self.claims_mac(slot) {
            let key = self.owners().mac_key(slot);
            self.dirty_mac.push(Mark { key, claimant: NONE, before });
        }
    }

    /// No other address claims any of the address's keys.
    pub(crate) fn is_sole_claimant(&self, slot: u32) -> bool {
        let owners = self.owners();
        let address = &self.addresses[slot];
        !address.has(address_flags::ACTIVE)
            || (!self.claims_ip(slot)
                || self.claims_ip.sole(&owners.ip_key(slot), slot, |slot| owners.ip_key(slot)))
                && (!self.claims_mac(slot)
                    || self.claims_mac.sole(&owners.mac_key(slot), slot, |slot| owners.mac_key(slot)))
    }

    /// The addresses of an owner, from its first one on.
    pub(crate) fn addresses_from(&self, first: u32) -> impl Iterator<Item = (u32, &Address)> {
        let mut at = first;
        std::iter::from_fn(move || {
            let slot = at;
            let address = self.addresses.get(slot).filter(|_| slot != NONE)?;
            at = address.next;
            Some((slot, address))
        })
    }
}
