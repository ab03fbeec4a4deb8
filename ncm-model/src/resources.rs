//! What the model holds of each resource.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hashbrown::HashMap;
use ipnet::IpNet;

use crate::state::{InterfaceFacts, Origin};
use crate::store::NONE;
use crate::wire::{PortConfiguration, RouterConfiguration, SubnetConfiguration, VpcConfiguration};

/// Who asked for a resource, when, and in which revision.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) revision: u32,
    pub(crate) version: u64,
    pub(crate) request_id: String,
    pub(crate) time: u64,
    pub(crate) origin: Origin,
    /// The resource's hash, as it is in a digest.
    pub(crate) digest: u128,
}

#[derive(Debug)]
pub(crate) struct Vpc {
    pub(crate) config: VpcConfiguration,
    pub(crate) meta: Meta,
}

/// A subnet as held.
#[derive(Debug)]
pub(crate) struct Subnet {
    pub(crate) config: SubnetConfiguration,
    pub(crate) meta: Meta,
    pub(crate) net: IpNet,
    /// Its gateway, if it has one with a MAC.
    pub(crate) gateway: Option<(IpAddr, [u8; 6])>,
}

/// What a subnet presently contributes to the tables; while it does, it has an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Live {
    pub(crate) vni: u32,
    pub(crate) net: IpNet,
    /// Slot of the router that holds it.
    pub(crate) router: Option<u32>,
}

/// A subnet that is held, or that something held refers to.
#[derive(Debug)]
pub(crate) struct SubnetSlot {
    pub(crate) id: String,
    pub(crate) held: Option<Box<Subnet>>,
    pub(crate) live: Option<Live>,
    pub(crate) index: u32,
    pub(crate) generation: u32,
    /// Routers with a table for the subnet; the first by id is the one that counts.
    pub(crate) routers: BTreeMap<String, u32>,
    /// Addresses in the subnet that are as they should be.
    pub(crate) settled: u32,
    /// Addresses that are to be looked at again.
    pub(crate) stale: u32,
    /// Addresses in both lists.
    pub(crate) addresses: u32,
    /// Programmed addresses by remote host.
    pub(crate) hosts: HashMap<u32, u32>,
}

impl Default for SubnetSlot {
    fn default() -> Self {
        Self {
            id: String::new(),
            held: None,
            live: None,
            index: 0,
            generation: 0,
            routers: BTreeMap::new(),
            settled: NONE,
            stale: NONE,
            addresses: 0,
            hosts: HashMap::new(),
        }
    }
}

/// A routing rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rule {
    pub(crate) net: IpNet,
    pub(crate) priority: u32,
    pub(crate) id: String,
    /// Of the same IP version as `net`.
    pub(crate) next_hop: Option<IpAddr>,
    pub(crate) mac: [u8; 6],
}

#[derive(Debug, Default)]
pub(crate) struct RouterSlot {
    pub(crate) config: RouterConfiguration,
    pub(crate) meta: Option<Meta>,
    pub(crate) dvr_mac: [u8; 6],
    /// Rules by subnet slot, in order.
    pub(crate) tables: BTreeMap<u32, Vec<Rule>>,
    /// Live subnets that this router holds.
    pub(crate) members: BTreeSet<u32>,
    /// Members by prefix, and where several have one, by id.
    pub(crate) prefixes: BTreeMap<IpNet, BTreeMap<String, u32>>,
    /// Members by VNI.
    pub(crate) vnis: BTreeMap<u32, u32>,
    /// Members that have programmed addresses on a remote host, by host.
    pub(crate) hosts: HashMap<u32, u32>,
    /// Those of `hosts` that are not admitted into the router's VNIs: the table has no room.
    pub(crate) barred: BTreeSet<u32>,
    /// MACs of next hops that came as neighbours to GET, beside a router.
    pub(crate) learned: BTreeMap<IpAddr, [u8; 6]>,
}

/// An allowed address pair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Pair {
    pub(crate) mac: [u8; 6],
    pub(crate) net: IpNet,
}

#[derive(Debug, Default)]
pub(crate) struct PortSlot {
    pub(crate) config: PortConfiguration,
    pub(crate) meta: Option<Meta>,
    pub(crate) mac: [u8; 6],
    pub(crate) pairs: Vec<Pair>,
    /// MACs of pairs, other than the port's own.
    pub(crate) pair_macs: Vec<[u8; 6]>,
    /// Ids of its security groups, in order, each once.
    pub(crate) groups: Vec<String>,
    /// Class of their members that it is in; 0 without groups.
    pub(crate) members: u32,
    /// Policy set that it holds: 0 without groups, and while it is not programmed or one of them is not held.
    pub(crate) set: u32,
    /// Rises with whatever its flows were decided by.
    pub(crate) epoch: u32,
    pub(crate) interface: String,
    /// It has an index and is programmed.
    pub(crate) live: bool,
    pub(crate) index: u32,
    pub(crate) generation: u32,
    /// First of its addresses, in the order of its fixed IPs.
    pub(crate) first: u32,
    /// Keys of the tables of sources that are programmed for it.
    pub(crate) sources: Vec<ncm_common::tables::SourceKey>,
    pub(crate) source_prefixes: Vec<ncm_common::tables::SourcePrefixKey>,
    /// Interface index that is programmed to lead to it; 0: none.
    pub(crate) bound: u32,
    /// `bound` is in the table of devices.
    pub(crate) device: bool,
}

/// A guest interface that ports name.
#[derive(Debug, Default)]
pub(crate) struct Interface {
    /// Ports that name it, by id; the first has it.
    pub(crate) ports: BTreeMap<String, u32>,
    pub(crate) facts: Option<InterfaceFacts>,
    /// Why its program could not be attached.
    pub(crate) attach_error: Option<String>,
    /// The engine has been told that it is wanted.
    pub(crate) announced: bool,
}

/// A resource that is kept but not supported yet.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) meta: Meta,
    /// The encoded state.
    pub(crate) state: Vec<u8>,
}

/// Flags of a [`Neighbour`].
pub(crate) mod neighbour_flags {
    /// The slot is in use.
    pub(crate) const HELD: u16 = 1;
    /// The neighbour is of type L3, else L2.
    pub(crate) const L3: u16 = 1 << 1;
    /// `id` is a symbol, not a UUID.
    pub(crate) const TEXT: u16 = 1 << 2;
    /// The kernel refused an entry.
    pub(crate) const FAILED: u16 = 1 << 3;
}

/// A neighbour of one type. There are millions: every byte counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbour {
    /// UUID, or the symbol of another id in the first four bytes.
    pub(crate) id: [u8; 16],
    pub(crate) version: [u8; 6],
    pub(crate) mac: [u8; 6],
    pub(crate) provenance: u32,
    pub(crate) host: u32,
    /// First of its addresses.
    pub(crate) first: u32,
    pub(crate) flags: u16,
}

const _: () = assert!(size_of::<Neighbour>() == 44, "a neighbour has grown");

impl Default for Neighbour {
    fn default() -> Self {
        Self {
            id: [0; 16],
            version: [0; 6],
            mac: [0; 6],
            provenance: NONE,
            host: NONE,
            first: NONE,
            flags: 0,
        }
    }
}

impl Neighbour {
    pub(crate) fn is_l3(&self) -> bool {
        self.flags & neighbour_flags::L3 != 0
    }

    pub(crate) fn version(&self) -> u64 {
        let [a, b, c, d, e, f] = self.version;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    pub(crate) fn set_version(&mut self, version: u64) {
        let [a, b, c, d, e, f, ..] = version.to_le_bytes();
        self.version = [a, b, c, d, e, f];
    }
}

/// Flags of an [`Address`], in the highest byte of its VNI.
pub(crate) mod address_flags {
    /// It claims its keys in the endpoint tables.
    pub(crate) const ACTIVE: u32 = 1 << 24;
    /// It waits for its subnet, or for a router.
    pub(crate) const PARKED: u32 = 1 << 25;
    /// `ip` is the slot of an IPv6 address.
    pub(crate) const V6: u32 = 1 << 26;
    /// The VNI was given with the address, not by the subnet.
    pub(crate) const EXPLICIT: u32 = 1 << 27;
    /// Only the MAC of an allowed pair of a port: `ip` is the pair's position.
    pub(crate) const MAC_ONLY: u32 = 1 << 28;
}

/// An address of a neighbour or a port, in a subnet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// Slot of the neighbour, or of the port with [`Address::PORT`].
    pub(crate) owner: u32,
    pub(crate) ip: u32,
    pub(crate) subnet: u32,
    /// VNI (24 bits) while active or given explicitly, and `address_flags`.
    pub(crate) vni: u32,
    /// Next address of the same owner.
    pub(crate) next: u32,
    pub(crate) list_before: u32,
    pub(crate) list_after: u32,
}

const _: () = assert!(size_of::<Address>() == 28, "an address has grown");

impl Default for Address {
    fn default() -> Self {
        Self { owner: NONE, ip: 0, subnet: NONE, vni: 0, next: NONE, list_before: NONE, list_after: NONE }
    }
}

impl Address {
    /// Marks an owner that is a port.
    pub(crate) const PORT: u32 = 1 << 31;

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.vni & flag != 0
    }

    pub(crate) fn vni(&self) -> u32 {
        self.vni & ncm_common::MAX_VNI
    }

    pub(crate) fn set_vni(&mut self, vni: u32) {
        self.vni = self.vni & !ncm_common::MAX_VNI | vni;
    }

    /// The port that owns it, if it is one.
    pub(crate) fn port(&self) -> Option<u32> {
        (self.owner & Self::PORT != 0).then_some(self.owner & !Self::PORT)
    }
}
