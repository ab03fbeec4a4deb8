//! What a step changes in the kernel's tables: entries to put, keys to delete, and what the engine does besides.

use std::collections::HashSet;
use std::net::IpAddr;

use ncm_common::tables::{
    ClassKey, Classes, Endpoint, IpKey, MacKey, Name, NameKey, Port, Reference, Route, RouteKey, Rule,
    RuleKey, Source, SourceKey, SourcePrefixKey, Subnet, SubnetPrefixKey, Vni, VtepKey,
};

/// The resource that an entry comes from: what to name when the kernel refuses the entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Handle(pub(crate) u32);

/// What kind of resource a [`Handle`] stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum HandleKind {
    Subnet = 2,
    Port = 3,
    Neighbour = 4,
    Router = 5,
    Host = 6,
    Group = 7,
}

impl Handle {
    const SLOT_BITS: u32 = 28;

    pub(crate) fn new(kind: HandleKind, slot: u32) -> Self {
        Self((kind as u32) << Self::SLOT_BITS | (slot & ((1 << Self::SLOT_BITS) - 1)))
    }

    pub(crate) fn kind(self) -> Option<HandleKind> {
        Some(match self.0 >> Self::SLOT_BITS {
            2 => HandleKind::Subnet,
            3 => HandleKind::Port,
            4 => HandleKind::Neighbour,
            5 => HandleKind::Router,
            6 => HandleKind::Host,
            7 => HandleKind::Group,
            _ => return None,
        })
    }

    pub(crate) fn slot(self) -> u32 {
        self.0 & ((1 << Self::SLOT_BITS) - 1)
    }
}

/// An entry to write, replacing what the key holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Put<K, V> {
    /// The key.
    pub key: K,
    /// The value.
    pub value: V,
    /// The resource that the entry comes from.
    pub cause: Handle,
}

/// What changes in one table. No key is both put and deleted, or named twice.
///
/// In tables that are arrays, a deletion means writing the value of zeroes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delta<K, V> {
    /// Entries to write.
    pub put: Vec<Put<K, V>>,
    /// Keys to delete; some may never have been written (the kernel then says ENOENT, which is fine).
    pub del: Vec<K>,
}

impl<K, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self { put: Vec::new(), del: Vec::new() }
    }
}

impl<K, V> Delta<K, V> {
    /// Nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.del.is_empty()
    }

    /// How many entries change.
    #[must_use]
    pub fn len(&self) -> usize {
        self.put.len() + self.del.len()
    }
}

/// A remote host begins or ceases to be sent to. Its entry in `HOSTS` is the engine's to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostChange {
    /// The host's tunnel template is needed under this index.
    Add {
        /// Index in `HOSTS`, never 0.
        index: u32,
        /// Generation of the index, never 0.
        generation: u32,
        /// The host's tunnel endpoint.
        address: IpAddr,
    },
    /// No endpoint is on the host any more; the index may be given to another with a later generation.
    Remove {
        /// Index in `HOSTS`.
        index: u32,
        /// The host's tunnel endpoint.
        address: IpAddr,
    },
}

/// Which guest interfaces the ports name.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct InterfaceChanges {
    /// Names that a port names from now on.
    pub wanted: Vec<String>,
    /// Names that no port names any more.
    pub unwanted: Vec<String>,
}

/// What a step changes. Puts go first, in the order of [`ncm_common::tables::TABLES`] (what is referred to before what
/// refers), then deletions, in reverse, and at the end the epochs: those of ports, then those of addresses.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Changes {
    /// `NAMES`, but for those of next-hop groups, which are the engine's.
    pub names: Delta<NameKey, Name>,
    /// Remote hosts, in order: a `Remove` may precede an `Add` of the same index.
    pub hosts: Vec<HostChange>,
    /// `RULES`.
    pub rules: Delta<RuleKey, Rule>,
    /// `CLASSES`.
    pub classes: Delta<ClassKey, Classes>,
    /// `SUBNETS` (array).
    pub subnets: Delta<u32, Subnet>,
    /// `PORTS` (array). A port that is there already keeps its epoch.
    pub ports: Delta<u32, Port>,
    /// `VNIS`.
    pub vnis: Delta<u32, Vni>,
    /// `SUBNET_PREFIXES`.
    pub subnet_prefixes: Delta<SubnetPrefixKey, Reference>,
    /// `VTEPS`.
    pub vteps: Delta<VtepKey, Reference>,
    /// `ENDPOINTS_MAC`.
    pub endpoints_mac: Delta<MacKey, Endpoint>,
    /// `ENDPOINTS_IP`.
    pub endpoints_ip: Delta<IpKey, Endpoint>,
    /// `ROUTES`.
    pub routes: Delta<RouteKey, Route>,
    /// `SOURCES`.
    pub sources: Delta<SourceKey, Source>,
    /// `SOURCE_PREFIXES`.
    pub source_prefixes: Delta<SourcePrefixKey, Source>,
    /// `DEVICES` of guests' interfaces that take XDP redirects (those of underlay interfaces are the engine's).
    pub devices: Delta<u32, u32>,
    /// `PORT_BY_INTERFACE`.
    pub port_by_interface: Delta<u32, Reference>,
    /// `PORTS` whose epochs rise: to be written when all of the above is.
    pub port_epochs: Delta<u32, Port>,
    /// Slots of `REMOTE_EPOCHS` to raise by one, each once, in order: at the very end.
    pub epochs: Vec<u32>,
    /// Guest interfaces that ports name.
    pub interfaces: InterfaceChanges,
}

impl Changes {
    /// How many table entries change, not counting the epochs of addresses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
            + self.rules.len()
            + self.classes.len()
            + self.subnets.len()
            + self.ports.len()
            + self.vnis.len()
            + self.subnet_prefixes.len()
            + self.vteps.len()
            + self.endpoints_mac.len()
            + self.endpoints_ip.len()
            + self.routes.len()
            + self.sources.len()
            + self.source_prefixes.len()
            + self.devices.len()
            + self.port_by_interface.len()
            + self.port_epochs.len()
    }

    /// Policy sets with entries among those that change.
    pub(crate) fn written_sets(&self) -> HashSet<u32> {
        let rules = self.rules.put.iter().map(|put| put.key.set);
        let rules = rules.chain(self.rules.del.iter().map(|key| key.set));
        let classes = self.classes.put.iter().map(|put| put.key.set);
        let classes = classes.chain(self.classes.del.iter().map(|key| key.set));
        rules.chain(classes).map(|set| set >> 1).collect()
    }

    /// Nothing changes, neither in tables nor besides.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
            && self.epochs.is_empty()
            && self.hosts.is_empty()
            && self.interfaces.wanted.is_empty()
            && self.interfaces.unwanted.is_empty()
    }
}
