//! Neighbours: a million in one message, so what is common is kept short.

use std::collections::HashSet;
use std::net::IpAddr;

use super::fixed_ips::{ByIp, Fixed, fixed_at, parse_fixed};
use super::{Operation, Outcome, Refusal, Request, check_update_type};
use crate::compile::{Handle, HandleKind};
use crate::goalstate::neighbour_view::NeighbourView;
use crate::goalstate::parse;
use crate::model::Model;
use crate::resources::{Address, Neighbour, address_flags, neighbour_flags};
use crate::state::Origin;
use crate::store::{NONE, Sym, uuid_of};
use crate::wire::{ResourceType, UpdateType};

/// Identity of a neighbour: its id's bytes, whether they are a symbol, and its type.
type Key = ([u8; 16], u16);

const TYPES: [bool; 2] = [false, true];

/// Where neighbours' tombstones are: apart by type.
pub(crate) fn tombstone_kind(l3: bool) -> u8 {
    if l3 { 100 + ResourceType::Neighbor as u8 } else { ResourceType::Neighbor as u8 }
}

fn key_of(neighbour: &Neighbour) -> Key {
    (neighbour.id, neighbour.flags & (neighbour_flags::TEXT | neighbour_flags::L3))
}

/// What of a neighbour is the same for both of its types.
struct Common {
    mac: Option<[u8; 6]>,
    host: Option<IpAddr>,
    full: bool,
}

impl Model {
    fn neighbour_key(&self, id: &str, l3: bool) -> Option<Key> {
        let kind = if l3 { neighbour_flags::L3 } else { 0 };
        if let Some(uuid) = uuid_of(id.as_bytes()) {
            return Some((uuid, kind));
        }
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.strings.find(id.as_bytes())?.0.to_le_bytes());
        Some((bytes, kind | neighbour_flags::TEXT))
    }

    /// The slot of a held neighbour.
    pub(crate) fn find_neighbour(&self, id: &str, l3: bool) -> Option<u32> {
        let key = self.neighbour_key(id, l3)?;
        self.neighbour_index.find(&key, |slot| key_of(&self.neighbours[*slot]) == key)
    }

    /// The held neighbours of an id that sent addresses concern: those of their types, or where there are none, of both.
    fn held_types(&self, id: &str, fixed: &[Fixed]) -> [Option<u32>; 2] {
        TYPES.map(|l3| {
            let concerned = fixed.is_empty() || fixed.iter().any(|fixed| fixed.l3 == l3);
            concerned.then(|| self.find_neighbour(id, l3)).flatten()
        })
    }

    /// A held neighbour's id.
    pub(crate) fn neighbour_id(&self, neighbour: &Neighbour) -> String {
        if neighbour.flags & neighbour_flags::TEXT == 0 {
            return crate::store::uuid_text(&neighbour.id);
        }
        self.strings.text(text_symbol(&neighbour.id)).into_owned()
    }

    /// Applies a neighbour state.
    pub(crate) fn apply_neighbour(&mut self, view: &NeighbourView<'_>, request: Request) -> Outcome {
        let mut fixed = std::mem::take(&mut self.scratch_fixed);
        let outcome = self.apply_parsed(view, &mut fixed, request).unwrap_or_else(|refusal| refusal);
        self.scratch_fixed = fixed;
        outcome
    }

    fn apply_parsed(
        &mut self,
        view: &NeighbourView<'_>,
        fixed: &mut Vec<Fixed>,
        request: Request,
    ) -> Result<Outcome, Refusal> {
        if !view.configured {
            return Err(Outcome::invalid("the state has no configuration"));
        }
        if view.id.is_empty() {
            return Err(Outcome::invalid("configuration.id is empty"));
        }
        let operation = Operation::of(view.operation)?;
        check_update_type(view.update_type)?;
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        parse_fixed(view, fixed)?;
        let held = self.held_types(view.id, fixed);
        self.check_neighbour_revision(view, fixed, &held)?;
        if operation == Operation::Delete {
            for l3 in TYPES {
                let concerned = fixed.is_empty() || fixed.iter().any(|fixed| fixed.l3 == l3);
                let slot = held[usize::from(l3)].filter(|_| concerned);
                // What leaves for want of use leaves only if it came on demand, and was not pushed since.
                if let Some(slot) = slot.filter(|slot| !request.is_ageing() || self.is_learned(*slot)) {
                    self.delete_addresses(slot, view, fixed, request);
                }
            }
            return Ok(Outcome::Success);
        }
        let common = self.check_neighbour(view, fixed, &held)?;
        let request = Request { origin: self.origin_of(view, fixed, &held, request), ..request };
        let mut parked = false;
        for l3 in TYPES {
            let slot = held[usize::from(l3)];
            if fixed.iter().any(|fixed| fixed.l3 == l3) || (fixed.is_empty() && slot.is_some()) {
                let slot = self.upsert(view, l3, slot, fixed, &common, request);
                parked |= self.neighbour_parked(slot) || self.lacks_class(slot);
            }
        }
        Ok(if parked { Outcome::Applied } else { Outcome::Success })
    }

    /// A held neighbour came on demand, and was not pushed without being asked for since.
    pub(crate) fn is_learned(&self, slot: u32) -> bool {
        self.provenances.get(self.neighbours[slot].provenance).origin == Origin::OnDemand
    }

    /// Where a sent neighbour comes from: on demand, if upstream was being asked for one of its addresses. What was pushed without
    /// being asked for stays so, also where it is asked for once more.
    fn origin_of(
        &self,
        view: &NeighbourView<'_>,
        fixed: &[Fixed],
        held: &[Option<u32>; 2],
        request: Request,
    ) -> Origin {
        if request.origin != Origin::Controller
            || self.asked.is_empty()
            || held.iter().flatten().any(|slot| !self.is_learned(*slot))
        {
            return request.origin;
        }
        let is_asked = |fixed: &Fixed| {
            let vni = match fixed.tunnel {
                0 => {
                    let id = fixed_at(view, fixed.position).subnet_id;
                    let subnet = self.subnet_by_id.get(id).map(|slot| &self.subnets[*slot]);
                    subnet.and_then(|subnet| subnet.live).map_or(0, |live| live.vni)
                }
                tunnel => tunnel,
            };
            self.asked.contains(&(vni, fixed.ip))
        };
        if fixed.iter().any(is_asked) { Origin::OnDemand } else { request.origin }
    }

    fn check_neighbour_revision(
        &self,
        view: &NeighbourView<'_>,
        fixed: &[Fixed],
        held: &[Option<u32>; 2],
    ) -> Result<(), Refusal> {
        for l3 in TYPES {
            if fixed.is_empty() || fixed.iter().any(|fixed| fixed.l3 == l3) {
                let revision = held[usize::from(l3)]
                    .map(|slot| self.provenances.get(self.neighbours[slot].provenance).revision);
                if revision.is_some() || !fixed.is_empty() {
                    self.check_revision_of(tombstone_kind(l3), view.id, revision, view.revision)?;
                }
            }
        }
        Ok(())
    }

    /// What [`Model::apply_neighbour`] would refuse of a parsed state.
    pub(crate) fn check_sent_neighbour(
        &self,
        view: &NeighbourView<'_>,
        fixed: &[Fixed],
    ) -> Result<(), Refusal> {
        if view.id.is_empty() {
            return Err(Outcome::invalid("configuration.id is empty"));
        }
        check_update_type(view.update_type)?;
        let held = self.held_types(view.id, fixed);
        self.check_neighbour_revision(view, fixed, &held)?;
        if Operation::of(view.operation)? == Operation::Upsert {
            self.check_neighbour(view, fixed, &held)?;
        }
        Ok(())
    }

    /// Everything that may be wrong, before anything is changed.
    fn check_neighbour(
        &self,
        view: &NeighbourView<'_>,
        fixed: &[Fixed],
        held: &[Option<u32>; 2],
    ) -> Result<Common, Refusal> {
        let full = view.update_type == UpdateType::Full as i32;
        let any_held = held.iter().any(Option::is_some);
        if fixed.is_empty() && (full || !any_held) {
            return Err(Outcome::invalid("fixed_ips is empty: a neighbour has at least one address"));
        }
        // Fields sent empty are taken from what is held, for each type on its own.
        let complete = TYPES.iter().all(|l3| {
            let concerned = fixed.iter().any(|fixed| fixed.l3 == *l3);
            !concerned || (!full && held[usize::from(*l3)].is_some())
        });
        let mac =
            if view.mac.is_empty() && complete {
                None
            } else {
                Some(parse::guest_mac(view.mac).ok_or_else(|| {
                    Outcome::invalid(format!("mac_address \"{}\" is no guest's MAC", view.mac))
                })?)
            };
        let host = if view.host_ip.is_empty() && complete {
            None
        } else {
            Some(parse::host_ip(view.host_ip).ok_or_else(|| {
                Outcome::invalid(format!("host_ip_address \"{}\" is no host's IP address", view.host_ip))
            })?)
        };
        for (address, mac) in &view.pairs {
            if parse::cidr(address).is_none() || (!mac.is_empty() && parse::mac(mac).is_none()) {
                return Err(Outcome::invalid(format!(
                    "allow_address_pairs: \"{address}\", \"{mac}\" is no pair"
                )));
            }
        }
        self.check_neighbour_room(view, fixed, held)?;
        if !any_held {
            let named =
                fixed.iter().filter(|fixed| fixed.tunnel == 0).map(|fixed| fixed_at(view, fixed.position));
            self.check_parking(named.map(|fixed| fixed.subnet_id))?;
        }
        Ok(Common { mac, host, full })
    }

    /// Refuses neighbours and addresses beyond the limit.
    fn check_neighbour_room(
        &self,
        view: &NeighbourView<'_>,
        fixed: &[Fixed],
        held: &[Option<u32>; 2],
    ) -> Result<(), Refusal> {
        let most = self.settings.limits.neighbours;
        let new = TYPES
            .iter()
            .filter(|l3| held[usize::from(**l3)].is_none() && fixed.iter().any(|fixed| fixed.l3 == **l3));
        if self.neighbours.len() + new.count() > most {
            return Err(Outcome::failure(format!(
                "limits.neighbours reached: {most} are held already: delete some, or raise it"
            )));
        }
        if self.addresses.len() + fixed.len() <= most {
            return Ok(());
        }
        // Nearly full: what is held already counts once.
        let mut known = HashSet::new();
        for (slot, l3) in held.iter().zip(TYPES) {
            let first = slot.map_or(NONE, |slot| self.neighbours[slot].first);
            known.extend(self.addresses_from(first).map(|(_, address)| (self.ip_of(address), l3)));
        }
        let new = fixed.iter().filter(|fixed| !known.contains(&(fixed.ip, fixed.l3))).count();
        if new == 0 || self.addresses.len() + new <= most {
            return Ok(());
        }
        Err(Outcome::failure(format!(
            "limits.neighbours reached: neighbour {} has {new} addresses more than what {most} leaves room for",
            view.id
        )))
    }

    /// Refuses what would have to wait where too much waits already.
    pub(crate) fn check_parking<'a>(&self, subnets: impl Iterator<Item = &'a str>) -> Result<(), Refusal> {
        let most = self.settings.limits.parked;
        if self.parked < most {
            return Ok(());
        }
        for id in subnets {
            if self.subnet_by_id.get(id).is_none_or(|slot| self.subnets[*slot].live.is_none()) {
                return Err(Outcome::failure(format!(
                    "subnet {id} is not known, and {most} addresses wait already: push subnets first, or raise limits.parked"
                )));
            }
        }
        Ok(())
    }

    fn upsert(
        &mut self,
        view: &NeighbourView<'_>,
        l3: bool,
        held: Option<u32>,
        fixed: &[Fixed],
        common: &Common,
        request: Request,
    ) -> u32 {
        let before = held.map(|slot| self.neighbours[slot]);
        let provenance = self.hold_provenance(view, before.as_ref(), common.full, request);
        let Some((slot, before)) = held.zip(before) else {
            return self.create(view, l3, fixed, common, provenance);
        };
        let old = *self.provenances.get(before.provenance);
        let new = *self.provenances.get(provenance);
        let exact = common.full && fixed.iter().any(|fixed| fixed.l3 == l3);
        let same = common.mac.is_none_or(|mac| mac == before.mac)
            && common.host.is_none_or(|host| host == self.hosts.slots[before.host].address)
            && (old.extra, old.vpc, old.members) == (new.extra, new.vpc, new.members)
            && self.has_addresses(before.first, view, l3, fixed, exact);
        if same && (old.revision == new.revision || self.is_sole(before.first)) {
            if old.revision != new.revision {
                self.undigest_neighbour(slot, view.id);
                let version = self.next_version();
                self.recent.neighbour(version, slot);
                self.neighbours[slot].set_version(version);
            }
            self.neighbours[slot].provenance = provenance;
            self.provenances.release(before.provenance, &mut self.strings, &mut self.policy);
            if old.revision != new.revision {
                self.digest_neighbour(slot, view.id);
            }
            if before.flags & neighbour_flags::FAILED != 0 {
                self.retry_one(Handle::new(HandleKind::Neighbour, slot));
            }
            return slot;
        }
        self.change(slot, view, l3, fixed, common, provenance, exact);
        slot
    }

    fn create(
        &mut self,
        view: &NeighbourView<'_>,
        l3: bool,
        fixed: &[Fixed],
        common: &Common,
        provenance: u32,
    ) -> u32 {
        let (Some(mac), Some(host)) = (common.mac, common.host) else { return NONE };
        let mut flags = neighbour_flags::HELD | if l3 { neighbour_flags::L3 } else { 0 };
        let id = uuid_of(view.id.as_bytes()).unwrap_or_else(|| {
            flags |= neighbour_flags::TEXT;
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&self.strings.hold(view.id.as_bytes()).0.to_le_bytes());
            bytes
        });
        let host = self.hosts.hold(host, self.settings.endpoints.contains(&host));
        let mut neighbour = Neighbour { id, mac, provenance, host, flags, ..Neighbour::default() };
        let version = self.next_version();
        neighbour.set_version(version);
        let slot = self.neighbours.insert(neighbour);
        self.recent.neighbour(version, slot);
        let neighbours = &self.neighbours;
        self.neighbour_index.insert(&key_of(&neighbour), slot, |slot| key_of(&neighbours[slot]));
        self.tombstones.lift(tombstone_kind(l3), view.id);
        self.add_fixed(slot, view, l3, fixed);
        self.digest_neighbour(slot, view.id);
        self.settle_neighbour(slot);
        slot
    }

    #[expect(clippy::too_many_arguments, reason = "all of them are one neighbour's")]
    fn change(
        &mut self,
        slot: u32,
        view: &NeighbourView<'_>,
        l3: bool,
        fixed: &[Fixed],
        common: &Common,
        provenance: u32,
        exact: bool,
    ) {
        let before = self.neighbours[slot];
        self.undigest_neighbour(slot, view.id);
        self.deactivate_neighbour(slot);
        let version = self.next_version();
        self.recent.neighbour(version, slot);
        if let Some(host) = common.host {
            let held = self.hosts.hold(host, self.settings.endpoints.contains(&host));
            self.neighbours[slot].host = held;
            self.hosts.release(before.host);
        }
        let neighbour = &mut self.neighbours[slot];
        neighbour.set_version(version);
        neighbour.provenance = provenance;
        neighbour.mac = common.mac.unwrap_or(before.mac);
        self.provenances.release(before.provenance, &mut self.strings, &mut self.policy);
        if exact {
            self.drop_addresses(slot, |_| true);
        } else {
            let replaced = ByIp::new(fixed.iter().filter(|fixed| fixed.l3 == l3));
            self.drop_addresses(slot, |ip| replaced.get(ip).is_some());
        }
        self.add_fixed(slot, view, l3, fixed);
        self.digest_neighbour(slot, view.id);
        self.settle_neighbour(slot);
        self.retry_one(Handle::new(HandleKind::Neighbour, slot));
    }

    /// Adds the sent addresses of one type. Of two equal ones the last counts.
    fn add_fixed(&mut self, slot: u32, view: &NeighbourView<'_>, l3: bool, fixed: &[Fixed]) {
        let ours = fixed.iter().filter(|fixed| fixed.l3 == l3);
        let last = (fixed.len() > 1).then(|| ByIp::new(ours.clone()));
        for fixed in ours {
            if last.as_ref().is_some_and(|last| last.get(fixed.ip) != Some(fixed.position)) {
                continue;
            }
            let subnet = self.subnet_slot(fixed_at(view, fixed.position).subnet_id);
            let (ip, mut flags) = match fixed.ip {
                IpAddr::V4(ip) => (ip.to_bits(), 0),
                IpAddr::V6(ip) => (self.v6.insert(ip.octets()), address_flags::V6),
            };
            if fixed.tunnel != 0 {
                flags |= address_flags::EXPLICIT | fixed.tunnel;
            }
            let next = self.neighbours[slot].first;
            let address = Address { owner: slot, ip, subnet, vni: flags, next, ..Address::default() };
            self.neighbours[slot].first = self.add_address(address);
        }
    }

    /// Drops the inactive addresses of a neighbour that `which` names.
    fn drop_addresses(&mut self, slot: u32, which: impl Fn(IpAddr) -> bool) {
        let mut at = std::mem::replace(&mut self.neighbours[slot].first, NONE);
        let mut kept = NONE;
        while let Some(address) = self.addresses.get(at).copied() {
            if which(self.ip_of(&address)) {
                self.drop_address(at);
            } else {
                self.addresses[at].next = kept;
                kept = at;
            }
            at = address.next;
        }
        self.neighbours[slot].first = kept;
    }

    pub(crate) fn ip_of(&self, address: &Address) -> IpAddr {
        if address.has(address_flags::V6) {
            return IpAddr::from(self.v6[address.ip]);
        }
        IpAddr::from(address.ip.to_be_bytes())
    }

    fn settle_neighbour(&mut self, slot: u32) {
        let mut at = self.neighbours[slot].first;
        while let Some(address) = self.addresses.get(at) {
            let next = address.next;
            self.settle(at);
            at = next;
        }
    }

    fn deactivate_neighbour(&mut self, slot: u32) {
        let mut at = self.neighbours[slot].first;
        while let Some(address) = self.addresses.get(at).copied() {
            if address.has(address_flags::ACTIVE) {
                self.deactivate(at);
            }
            at = address.next;
        }
    }

    /// Some address of the neighbour waits for its subnet or a router.
    pub(crate) fn neighbour_parked(&self, slot: u32) -> bool {
        let Some(neighbour) = self.neighbours.get(slot) else { return false };
        self.addresses_from(neighbour.first).any(|(_, address)| address.has(address_flags::PARKED))
    }

    fn is_sole(&self, first: u32) -> bool {
        self.addresses_from(first).all(|(slot, _)| self.is_sole_claimant(slot))
    }

    /// The held addresses are as the sent ones say; `exact`: and there are no others.
    fn has_addresses(
        &self,
        first: u32,
        view: &NeighbourView<'_>,
        l3: bool,
        fixed: &[Fixed],
        exact: bool,
    ) -> bool {
        let is = |address: &Address, fixed: &Fixed| {
            let tunnel = if address.has(address_flags::EXPLICIT) { address.vni() } else { 0 };
            tunnel == fixed.tunnel
                && self.subnets[address.subnet].id == fixed_at(view, fixed.position).subnet_id
        };
        if let [only] = fixed
            && let Some(address) = self.addresses.get(first)
            && address.next == NONE
        {
            return only.l3 != l3 || (self.ip_of(address) == only.ip && is(address, only));
        }
        let sent = ByIp::new(fixed.iter().filter(|fixed| fixed.l3 == l3));
        let mut found = 0;
        for (_, address) in self.addresses_from(first) {
            let Some(position) = sent.get(self.ip_of(address)) else {
                if exact {
                    return false;
                }
                continue;
            };
            found += 1;
            // All sent addresses are there, in order.
            if !fixed.get(position).is_some_and(|fixed| is(address, fixed)) {
                return false;
            }
        }
        found == sent.len()
    }

    fn delete_addresses(&mut self, slot: u32, view: &NeighbourView<'_>, fixed: &[Fixed], request: Request) {
        let neighbour = self.neighbours[slot];
        let l3 = neighbour.is_l3();
        self.undigest_neighbour(slot, view.id);
        self.deactivate_neighbour(slot);
        if fixed.is_empty() {
            self.drop_addresses(slot, |_| true);
        } else {
            let listed = ByIp::new(fixed.iter().filter(|fixed| fixed.l3 == l3));
            self.drop_addresses(slot, |ip| listed.get(ip).is_some());
        }
        if self.neighbours[slot].first != NONE {
            let version = self.next_version();
            self.recent.neighbour(version, slot);
            self.neighbours[slot].set_version(version);
            self.digest_neighbour(slot, view.id);
            self.settle_neighbour(slot);
            return;
        }
        let revision = self.provenances.get(neighbour.provenance).revision;
        if request.is_ageing() {
            self.note_gone(tombstone_kind(l3), view.id);
        } else {
            self.bury(tombstone_kind(l3), view.id, revision, view.revision, request);
        }
        if let Some(gone) = &mut self.gone_neighbours {
            gone.push((l3, view.id.into()));
        }
        let key = key_of(&neighbour);
        self.neighbour_index.remove(&key, |other| *other == slot);
        self.forget_failure(Handle::new(HandleKind::Neighbour, slot));
        self.neighbours.remove(slot);
        self.hosts.release(neighbour.host);
        self.provenances.release(neighbour.provenance, &mut self.strings, &mut self.policy);
        if neighbour.flags & neighbour_flags::TEXT != 0 {
            self.strings.release(text_symbol(&neighbour.id));
        }
    }
}

/// The symbol in the id of a neighbour whose id is no UUID.
pub(crate) fn text_symbol(id: &[u8; 16]) -> Sym {
    Sym(u32::from_le_bytes([id[0], id[1], id[2], id[3]]))
}
