//! Digests: what is held, by type and VPC, in one number each.
//!
//! Each held resource has a hash of what it is (never of how it stands, of when it came or in what order), and a digest is the sum of
//! the hashes of its resources. A change costs a subtraction and an addition, wherever it is among a million; and whoever knows the
//! states that should be held can make the same sum. `proto/ncm/v1/states.proto` says byte by byte what is hashed.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use prost::Message;
use xxhash_rust::xxh3::xxh3_128;

use crate::compile::mapped;
use crate::model::Model;
use crate::resources::{Meta, Neighbour, address_flags};
use crate::store::Sym;
use crate::wire::{
    DhcpConfiguration, GatewayConfiguration, PortConfiguration, ResourceType, RouterConfiguration,
    SecurityGroupConfiguration, SubnetConfiguration, VpcConfiguration,
    security_group_configuration::SecurityGroupRule,
};

/// The digest of the held resources of one type in one VPC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Type.
    pub resource_type: ResourceType,
    /// VPC; empty for what is in none.
    pub vpc: String,
    /// How many resources.
    pub count: u64,
    /// Sum of their hashes, modulo 2^128.
    pub sum: u128,
}

/// A number of hashes, added up.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Sum {
    count: u64,
    value: u128,
}

impl Sum {
    fn add(&mut self, hash: u128) {
        self.count += 1;
        self.value = self.value.wrapping_add(hash);
    }

    /// Takes one away; says whether none is left.
    fn take(&mut self, hash: u128) -> bool {
        self.count = self.count.saturating_sub(1);
        self.value = self.value.wrapping_sub(hash);
        self.count == 0
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.value = self.value.wrapping_add(other.value);
    }
}

/// The sums, as they are kept.
#[derive(Default, Debug)]
pub(crate) struct Digests {
    /// Neighbours by the VPC they name. Its symbol is there as long as a neighbour that names it is.
    neighbours: HashMap<Sym, Sum>,
    /// DHCP bindings by subnet, everything else but routers by VPC.
    others: BTreeMap<(i32, String), Sum>,
    bytes: Vec<u8>,
}

impl Digests {
    pub(crate) fn add(&mut self, resource: ResourceType, place: &str, hash: u128) {
        self.others.entry((resource as i32, place.to_owned())).or_default().add(hash);
    }

    pub(crate) fn take(&mut self, resource: ResourceType, place: &str, hash: u128) {
        let key = (resource as i32, place.to_owned());
        if self.others.get_mut(&key).is_some_and(|sum| sum.take(hash)) {
            self.others.remove(&key);
        }
    }
}

/// A configuration as it is hashed: without what is about the message and not about the resource.
pub(crate) trait Plain: Message + Sized {
    fn plain(&self) -> Self;
}

macro_rules! plain {
    ($($kind:ty),+) => {
        $(impl Plain for $kind {
            fn plain(&self) -> Self {
                Self { revision_number: 0, request_id: String::new(), update_type: 0, ..self.clone() }
            }
        })+
    };
}
plain!(
    VpcConfiguration,
    SubnetConfiguration,
    PortConfiguration,
    RouterConfiguration,
    SecurityGroupConfiguration,
    DhcpConfiguration
);

impl Plain for GatewayConfiguration {
    fn plain(&self) -> Self {
        Self { revision_number: 0, request_id: String::new(), ..self.clone() }
    }
}

fn put_text(into: &mut Vec<u8>, text: &[u8]) {
    into.extend_from_slice(&(text.len() as u32).to_le_bytes());
    into.extend_from_slice(text);
}

/// What the hash of every resource begins with.
fn put_head(into: &mut Vec<u8>, resource: ResourceType, l3: bool, revision: u32, id: &str) {
    into.extend_from_slice(&[resource as u8, u8::from(l3)]);
    into.extend_from_slice(&revision.to_le_bytes());
    put_text(into, id.as_bytes());
}

/// The hash of a resource other than a neighbour.
pub(crate) fn hash(resource: ResourceType, id: &str, revision: u32, config: &impl Plain) -> u128 {
    let mut bytes = Vec::with_capacity(256);
    put_head(&mut bytes, resource, false, revision, id);
    // A vector grows as needed.
    let _room = config.plain().encode(&mut bytes);
    xxh3_128(&bytes)
}

/// The hash of a rule of a security group.
pub(crate) fn rule_hash(rule: &SecurityGroupRule) -> u128 {
    xxh3_128(&rule.encode_to_vec())
}

/// The hash of a security group, of its configuration without rules, and of the sum of their hashes.
pub(crate) fn group_hash(
    revision: u32,
    config: &SecurityGroupConfiguration,
    (count, sum): (usize, u128),
) -> u128 {
    let mut bytes = Vec::with_capacity(128);
    put_head(&mut bytes, ResourceType::Securitygroup, false, revision, &config.id);
    let plain = SecurityGroupConfiguration { security_group_rules: Vec::new(), ..config.plain() };
    let _room = plain.encode(&mut bytes);
    bytes.extend_from_slice(&(count as u64).to_le_bytes());
    bytes.extend_from_slice(&sum.to_le_bytes());
    xxh3_128(&bytes)
}

impl Model {
    /// A resource is held from now on, or in another way than before.
    pub(crate) fn digest_changed(
        &mut self,
        resource: ResourceType,
        before: Option<(&str, &Meta)>,
        after: (&str, u128),
    ) {
        if let Some((place, meta)) = before {
            self.digests.take(resource, place, meta.digest);
        }
        self.digests.add(resource, after.0, after.1);
    }

    /// The neighbour is held from now on as it is.
    pub(crate) fn digest_neighbour(&mut self, slot: u32, id: &str) {
        let hash = self.neighbour_hash(slot, id);
        let vpc = self.provenances.get(self.neighbours[slot].provenance).vpc;
        self.digests.neighbours.entry(vpc).or_default().add(hash);
    }

    /// The neighbour changes or goes: called while it is what it was.
    pub(crate) fn undigest_neighbour(&mut self, slot: u32, id: &str) {
        let hash = self.neighbour_hash(slot, id);
        let vpc = self.provenances.get(self.neighbours[slot].provenance).vpc;
        if self.digests.neighbours.get_mut(&vpc).is_some_and(|sum| sum.take(hash)) {
            self.digests.neighbours.remove(&vpc);
        }
    }

    fn neighbour_hash(&mut self, slot: u32, id: &str) -> u128 {
        let mut bytes = std::mem::take(&mut self.digests.bytes);
        bytes.clear();
        self.put_neighbour(&self.neighbours[slot], id, &mut bytes);
        let hash = xxh3_128(&bytes);
        self.digests.bytes = bytes;
        hash
    }

    fn put_neighbour(&self, neighbour: &Neighbour, id: &str, bytes: &mut Vec<u8>) {
        let provenance = self.provenances.get(neighbour.provenance);
        put_head(bytes, ResourceType::Neighbor, neighbour.is_l3(), provenance.revision, id);
        bytes.extend_from_slice(&neighbour.mac);
        bytes.extend_from_slice(&mapped::address(self.hosts.slots[neighbour.host].address));
        self.put_symbol(provenance.vpc, bytes);
        self.put_symbol(provenance.extra, bytes);
        let one = |address: &crate::resources::Address, bytes: &mut Vec<u8>| {
            bytes.extend_from_slice(&mapped::address(self.ip_of(address)));
            let tunnel = if address.has(address_flags::EXPLICIT) { address.vni() } else { 0 };
            bytes.extend_from_slice(&tunnel.to_le_bytes());
            put_text(bytes, self.subnets[address.subnet].id.as_bytes());
        };
        let first = self.addresses.get(neighbour.first).filter(|first| first.next == crate::store::NONE);
        if let Some(only) = first {
            bytes.extend_from_slice(&1_u32.to_le_bytes());
            one(only, bytes);
            return;
        }
        let mut all: Vec<_> = self.addresses_from(neighbour.first).map(|(_, address)| address).collect();
        all.sort_by_key(|address| mapped::address(self.ip_of(address)));
        bytes.extend_from_slice(&(all.len() as u32).to_le_bytes());
        all.into_iter().for_each(|address| one(address, bytes));
    }

    fn put_symbol(&self, symbol: Sym, bytes: &mut Vec<u8>) {
        let at = bytes.len();
        bytes.extend_from_slice(&[0; 4]);
        self.strings.put(symbol, bytes);
        let length = (bytes.len() - at - 4) as u32;
        bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// The digests of all that is held, by type and VPC, in order. What is in no VPC is under the empty one.
    ///
    /// Most resources name their VPC. A DHCP binding is in the VPC of its subnet, and a router in that of its subnets (of several the
    /// first in order), as far as those subnets are held.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        let mut sums: BTreeMap<(i32, String), Sum> = BTreeMap::new();
        for ((resource, place), sum) in &self.digests.others {
            let is_subnet = *resource == ResourceType::Dhcp as i32;
            let vpc = if is_subnet { self.vpc_of_subnet(place).unwrap_or_default() } else { place };
            sums.entry((*resource, vpc.to_owned())).or_default().merge(*sum);
        }
        for (vpc, sum) in &self.digests.neighbours {
            let vpc = self.strings.text(*vpc).into_owned();
            sums.entry((ResourceType::Neighbor as i32, vpc)).or_default().merge(*sum);
        }
        for slot in self.router_by_id.values() {
            let Some(router) = self.routers.get(*slot) else { continue };
            let Some(meta) = &router.meta else { continue };
            let held = router.tables.keys().filter_map(|subnet| self.subnets[*subnet].held.as_deref());
            let vpc = held.map(|subnet| subnet.config.vpc_id.as_str()).min().unwrap_or_default();
            sums.entry((ResourceType::Router as i32, vpc.to_owned())).or_default().add(meta.digest);
        }
        let digests = sums.into_iter().filter_map(|((resource, vpc), Sum { count, value })| {
            let resource_type = ResourceType::try_from(resource).ok()?;
            Some(Digest { resource_type, vpc, count, sum: value })
        });
        digests.collect()
    }

    fn vpc_of_subnet(&self, subnet: &str) -> Option<&str> {
        Some(self.held_subnet(subnet)?.config.vpc_id.as_str())
    }
}
