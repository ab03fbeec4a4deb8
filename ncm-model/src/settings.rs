//! What the model is told at start: whose node it is, its limits, and the indices already given out.

use std::net::IpAddr;

use ncm_common::tables::{Name, NameKey, Port};

/// What a port is that names a security group which is not held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MissingGroup {
    /// Closed: nothing passes until the group is held.
    #[default]
    Closed,
    /// Open, as without any group: for controllers that never send the group.
    Open,
}

/// Bounds on what the model remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How many deleted resources' revisions are remembered.
    pub tombstones: usize,
    /// For how many seconds.
    pub tombstone_age_s: u64,
    /// How many addresses of ports and neighbours may wait for something that is not known yet.
    pub parked: usize,
    /// How many neighbours are held, and how many addresses of ports and neighbours.
    pub neighbours: usize,
    /// How many resources are held of each other type.
    pub resources: usize,
    /// How many entries of `CLASSES` and `RULES` one policy set may have.
    pub set_entries: usize,
    /// How many rules all security groups may have together.
    pub rules: usize,
    /// How many bytes of encoded states are held of resources that are kept without being supported.
    pub kept_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tombstones: 65_536,
            tombstone_age_s: 3_600,
            parked: 4_194_304,
            neighbours: 4_194_304,
            resources: 65_536,
            set_entries: 131_072,
            rules: 1_048_576,
            kept_bytes: 64 << 20,
        }
    }
}

/// Room in the tables whose indices the model gives out (the first slot is never used), and in those of which a small
/// message can ask for more than any table holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slots {
    /// Of `PORTS`.
    pub ports: u32,
    /// Of `SUBNETS`.
    pub subnets: u32,
    /// Of `HOSTS`.
    pub hosts: u32,
    /// Of `ROUTES`: a router of n subnets has n² connected routes.
    pub routes: u32,
    /// Of `VTEPS`: a router admits all its hosts into all its VNIs.
    pub vteps: u32,
    /// Of `CLASSES`: the prefixes of rules, by policy set.
    pub classes: u32,
    /// Of `RULES`: ranges of ports, expanded, by policy set.
    pub rules: u32,
    /// Of `FLOWS`, which ports have shares of.
    pub flows: u32,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            ports: u32::MAX,
            subnets: u32::MAX,
            hosts: u32::MAX,
            routes: u32::MAX,
            vteps: u32::MAX,
            classes: u32::MAX,
            rules: u32::MAX,
            flows: u32::MAX,
        }
    }
}

/// How many established flows a port may have, unless the configuration says otherwise.
const PORT_FLOWS: u32 = 262_144;

/// How often something may be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AskRate {
    /// Nanoseconds in which one more time is earned, never 0.
    pub interval_ns: u32,
    /// How many times at once, never 0.
    pub at_once: u32,
}

/// Whose node it is, and its policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Keys of `host_resources` that mean this node.
    pub addresses: Vec<IpAddr>,
    /// This node's tunnel endpoints: neighbours on them are local.
    pub endpoints: Vec<IpAddr>,
    /// What a port is that names a security group which is not held.
    pub missing_group: MissingGroup,
    /// How many established flows each port may have at most; fewer where there are many ports.
    pub port_flows: u32,
    /// How often each port may have upstream asked for a destination that is not known; `None` if nobody is asked.
    pub asks: Option<AskRate>,
    /// Bounds.
    pub limits: Limits,
    /// Room in tables.
    pub slots: Slots,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            endpoints: Vec::new(),
            missing_group: MissingGroup::default(),
            port_flows: PORT_FLOWS,
            asks: None,
            limits: Limits::default(),
            slots: Slots::default(),
        }
    }
}

/// What an earlier run gave out, as read back from the tables `NAMES` and `PORTS`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seed {
    /// Entries of `NAMES`.
    pub names: Vec<(NameKey, Name)>,
    /// Entries of `PORTS` in use, by index: their flows have epochs up to theirs.
    pub ports: Vec<(u32, Port)>,
    /// A number that no earlier run had as long as the tables are there, and that is above theirs: generations of indices
    /// begin with it.
    pub run: u32,
}
