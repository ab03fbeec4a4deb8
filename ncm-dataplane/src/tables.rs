//! Every table of an instance, typed.

use std::os::fd::OwnedFd;
use std::path::Path;

use ncm_common::tables::{
    ClassKey, Classes, Count, Endpoint, Flow, FlowKey, HALF_OPEN_KEY, HALF_OPEN_PER_PORT, Host, IpKey,
    MacKey, Name, NameKey, NextHopGroup, Node, PolicyCount, PolicyCountKey, Port, PortDropKey, PortFlows,
    PortLimits, PortTraffic, Reference, Route, RouteKey, Rule, RuleKey, Source, SourceKey, SourcePrefixKey,
    Subnet, SubnetPrefixKey, TABLES, TableSpec, Vni, VtepKey, table,
};

use crate::Error;
use crate::by_port::PortTables;
use crate::table::{CounterTable, Table};

macro_rules! tables {
    ($($field:ident = $name:literal: $kind:ident<$key:ty, $value:ty>;)+) => {
        /// Every table of an instance. Each is documented where it is defined, in `ncm_common::tables`.
        #[derive(Clone, Debug)]
        pub struct Tables {
            $(
                #[doc = concat!("The table `", $name, "`.")]
                pub $field: $kind<$key, $value>,
            )+
        }

        impl Tables {
            /// Opens every table by means of `open`, which gives its descriptor and where it came from.
            pub(crate) fn open(
                mut open: impl FnMut(&'static TableSpec) -> Result<(OwnedFd, std::path::PathBuf), Error>,
            ) -> Result<Self, Error> {
                let cpus = possible_cpus()?;
                Ok(Self {$(
                    $field: {
                        let spec = table($name)
                            .ok_or_else(|| Error::Missing { what: "table", name: $name.to_owned() })?;
                        let (fd, path) = open(spec)?;
                        $kind::open(fd, spec, &path, cpus)?
                    },
                )+})
            }

            /// The kernel memory of each table in bytes, as (definition, bytes, capacity).
            ///
            /// # Errors
            /// [`Error::Table`] if one of the kernel's figures cannot be read.
            pub fn memory(&self) -> Result<Vec<(&'static TableSpec, u64, u32)>, Error> {
                Ok(vec![$((self.$field.spec(), self.$field.memory_bytes()?, self.$field.capacity()),)+])
            }

            /// How many entries each table has, by walking through all of them; of arrays, slots that are not all zero.
            ///
            /// # Errors
            /// [`Error::Table`] if a table cannot be read.
            pub fn counts(&self) -> Result<Vec<(&'static TableSpec, u64)>, Error> {
                Ok(vec![$((self.$field.spec(), self.$field.count()?),)+])
            }
        }

        #[cfg(test)]
        const FIELDS: &[&str] = &[$($name,)+];
    };
}

tables! {
    names = "NAMES": Table<NameKey, Name>;
    node = "NODE": Table<u32, Node>;
    heartbeat = "HEARTBEAT": Table<u32, u64>;
    next_hop_groups = "NEXT_HOP_GROUPS": Table<u32, NextHopGroup>;
    hosts = "HOSTS": Table<u32, Host>;
    rules = "RULES": Table<RuleKey, Rule>;
    classes = "CLASSES": Table<ClassKey, Classes>;
    subnets = "SUBNETS": Table<u32, Subnet>;
    ports = "PORTS": Table<u32, Port>;
    vnis = "VNIS": Table<u32, Vni>;
    subnet_prefixes = "SUBNET_PREFIXES": Table<SubnetPrefixKey, Reference>;
    vteps = "VTEPS": Table<VtepKey, Reference>;
    endpoints_mac = "ENDPOINTS_MAC": Table<MacKey, Endpoint>;
    endpoints_ip = "ENDPOINTS_IP": Table<IpKey, Endpoint>;
    routes = "ROUTES": Table<RouteKey, Route>;
    sources = "SOURCES": Table<SourceKey, Source>;
    source_prefixes = "SOURCE_PREFIXES": Table<SourcePrefixKey, Source>;
    remote_epochs = "REMOTE_EPOCHS": Table<u32, u32>;
    timeouts = "TIMEOUTS": Table<u32, u32>;
    flows = "FLOWS": Table<FlowKey, Flow>;
    half_open = "HALF_OPEN": PortTables<FlowKey, Flow>;
    port_flows = "PORT_FLOWS": Table<u32, PortFlows>;
    policy_counts = "POLICY_COUNTS": CounterTable<PolicyCountKey, PolicyCount>;
    devices = "DEVICES": Table<u32, u32>;
    port_by_interface = "PORT_BY_INTERFACE": Table<u32, Reference>;
    drops = "DROPS": CounterTable<u32, Count>;
    port_drops = "PORT_DROPS": CounterTable<PortDropKey, Count>;
    port_traffic = "PORT_TRAFFIC": CounterTable<u32, PortTraffic>;
    counters = "COUNTERS": CounterTable<u32, Count>;
    limits = "LIMITS": Table<u32, PortLimits>;
}

/// The capacities of an instance's tables: what the configuration sets, else the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacities {
    set: std::collections::BTreeMap<String, u32>,
}

impl Capacities {
    /// Sets the number of entries under one of the configuration's keys (`endpoints`, `hosts`, …); `false` if there
    /// is no such key. Zero is taken as one.
    pub fn set(&mut self, key: &str, entries: u32) -> bool {
        let known = key == HALF_OPEN_KEY || TABLES.iter().any(|spec| spec.capacity_key == Some(key));
        if known {
            self.set.insert(key.to_owned(), entries.max(1));
        }
        known
    }

    /// The number of entries of each port's own table of half-open flows.
    #[must_use]
    pub fn half_open(&self) -> u32 {
        self.set.get(HALF_OPEN_KEY).copied().unwrap_or(HALF_OPEN_PER_PORT)
    }

    /// The number of entries of a table (of those that ports have their own of: the number of ports).
    #[must_use]
    pub fn of(&self, spec: &TableSpec) -> u32 {
        spec.capacity_key.and_then(|key| self.set.get(key)).copied().unwrap_or(spec.default_capacity)
    }
}

/// How many CPUs per-CPU tables have values for.
pub(crate) fn possible_cpus() -> Result<usize, Error> {
    aya::util::nr_cpus().map_err(|(path, source)| Error::Path {
        action: "read",
        path: Path::new(path).to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defined_table_has_a_typed_handle() {
        let defined: Vec<&str> = TABLES.iter().map(|spec| spec.name).collect();
        assert_eq!(FIELDS, defined, "a table is missing here, or the order differs");
    }

    #[test]
    fn capacities_are_the_defaults_unless_set() {
        let mut capacities = Capacities::default();
        assert!(capacities.set("endpoints", 7));
        assert!(!capacities.set("no such key", 7));
        let of = |name| capacities.of(table(name).expect("defined"));
        assert_eq!((of("ENDPOINTS_MAC"), of("ENDPOINTS_IP"), of("NODE")), (7, 7, 1));
        assert_eq!(of("VTEPS"), 65_536);
    }
}
