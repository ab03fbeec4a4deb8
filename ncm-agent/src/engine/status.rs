//! What the engine tells about itself, to tools and metrics.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ncm_common::tables::{NameKey, TableSpec, name_kinds};
use ncm_dataplane::{Dataplane, Hook};
use ncm_model::{Model, StateCount};
use nix::time::{ClockId, clock_gettime};

use super::{Engine, Shared};
use crate::config::{Config, UpstreamAddress};
use crate::netlink::underlay::HostReport;
use crate::telemetry::{Family, Sample, own, packet_path};
use crate::upstream::Standing;

/// What an interface is to the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Tunnel frames arrive on it and leave by it.
    Underlay,
    /// The agent's own vxlan device.
    Relay,
    /// It leads to a guest.
    Guest,
}

/// An interface that the agent has to do with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceStatus {
    /// Name.
    pub name: String,
    /// Interface index; 0 while it does not exist.
    pub ifindex: u32,
    /// What it is to the agent.
    pub role: Role,
    /// The mode that the configuration asks for.
    pub configured_mode: &'static str,
    /// Where our program is attached; `None` while it is not.
    pub hook: Option<Hook>,
    /// Why there, or why not, in a sentence.
    pub reason: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// It takes XDP redirects.
    pub xdp_target: bool,
}

/// How full a table is.
#[derive(Clone, Copy, Debug)]
pub struct TableFill {
    /// The table.
    pub spec: &'static TableSpec,
    /// Entries; of arrays, slots in use.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u32,
    /// Memory that the kernel accounts to it, in bytes.
    pub memory: u64,
}

/// The last count, and until when it is good enough: counting a table of millions takes a good part of a second.
#[derive(Debug, Default)]
pub(super) struct FillCache {
    fill: Vec<TableFill>,
    until: Option<Instant>,
}

/// The same for held resources. Goal states wait while they are counted.
#[derive(Debug, Default)]
pub(super) struct CountCache {
    counts: Vec<StateCount>,
    until: Option<Instant>,
}

/// Counting takes at most this part of the time.
const COUNTING_SHARE: u32 = 50;

/// A count that took less than this holds nobody up: the next asker gets a new one.
const CHEAP: Duration = Duration::from_millis(2);

impl Shared {
    pub(super) fn status(&self) -> MutexGuard<'_, BTreeMap<String, InterfaceStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// The configuration in use.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The dataplane: for reading.
    #[must_use]
    pub fn dataplane(&self) -> &Dataplane {
        &self.shared.dataplane
    }

    /// When the agent started.
    #[must_use]
    pub fn started(&self) -> SystemTime {
        self.shared.started
    }

    /// Looks at the model. Goal states wait meanwhile: be short.
    pub fn with_model<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.shared.model())
    }

    /// The MTU in bytes that the guest behind an interface is told; 0 while the interface is not there.
    #[must_use]
    pub fn guest_mtu(&self, interface: &str) -> u32 {
        let mtu = self.shared.status().get(interface).map_or(0, |status| status.mtu);
        mtu.min(self.shared.tunnel_mtu().into())
    }

    /// Interfaces that the agent has to do with, by name.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceStatus> {
        self.shared.status().values().cloned().collect()
    }

    fn missing_endpoints(&self) -> Vec<std::net::IpAddr> {
        self.shared.underlay.as_ref().map(|underlay| underlay.missing_endpoints()).unwrap_or_default()
    }

    /// Who is asked for what is not known, and how things stand there; `None` if nobody is.
    #[must_use]
    pub fn upstream(&self) -> Option<(&UpstreamAddress, Standing)> {
        let address = self.shared.config.upstream.address.as_ref()?;
        Some((address, self.shared.upstream.as_ref()?.standing()))
    }

    /// How each remote host is reached.
    #[must_use]
    pub fn remote_hosts(&self) -> Vec<HostReport> {
        self.shared.underlay.as_ref().map(|underlay| underlay.report()).unwrap_or_default()
    }

    /// Milliseconds since the packet path was last told that the underlay is followed; `None` if it cannot be read.
    #[must_use]
    pub fn heartbeat_age_ms(&self) -> Option<u64> {
        let last = self.shared.dataplane.tables().heartbeat.get(&0).ok()??;
        Some(monotonic_ns().saturating_sub(last) / 1_000_000)
    }

    /// How full the tables are; a count that is not older than some seconds.
    #[must_use]
    pub fn table_fill(&self) -> Vec<TableFill> {
        let mut cache = self.shared.fill.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.until.is_none_or(|until| until <= Instant::now()) {
            let begun = Instant::now();
            cache.fill = fill(&self.shared.dataplane);
            let good_for = (begun.elapsed() * COUNTING_SHARE).max(Duration::from_millis(500));
            cache.until = Some(Instant::now() + good_for);
        }
        cache.fill.clone()
    }

    /// Held resources by type and status; where there are many, a count that is not older than some seconds. Not for
    /// threads that serve the network.
    #[must_use]
    pub fn resource_counts(&self) -> Vec<StateCount> {
        let mut cache = self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.until.is_none_or(|until| until <= Instant::now()) {
            let (counts, took) = self.with_model(|model| {
                let begun = Instant::now();
                (model.counts(), begun.elapsed())
            });
            cache.counts = counts;
            let good_for = (took * COUNTING_SHARE).max(Duration::from_secs(1));
            cache.until = (took >= CHEAP).then(|| Instant::now() + good_for);
        }
        cache.counts.clone()
    }

    /// Everything that is counted and measured.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let hosts = self.remote_hosts();
        own::REMOTE_HOSTS.set(hosts.len() as u64);
        own::REMOTE_HOSTS_UNRESOLVED.set(hosts.iter().filter(|host| host.resolved == 0).count() as u64);
        own::UNWRITTEN.set(self.with_model(Model::failed) as u64);
        let mut families = own::own();
        families.extend(crate::telemetry::flows::families());
        families.extend(packet_path(self.shared.dataplane.tables()));
        families.extend(self.resource_families());
        families
    }

    fn resource_families(&self) -> Vec<Family> {
        let gauge = |name, help, samples| Family { name, help, kind: "gauge", samples };
        let resources = self.resource_counts();
        let resources = resources.into_iter().map(|row| {
            let kind = row.resource_type.as_str_name().to_ascii_lowercase();
            let status = row.status.as_str_name().to_ascii_lowercase();
            Sample::new(vec![("type", kind), ("status", status)], row.count)
        });
        let fill = self.table_fill();
        let by_table = |value: fn(&TableFill) -> u64| -> Vec<Sample> {
            fill.iter()
                .map(|table| Sample::new(vec![("table", table.spec.name.to_ascii_lowercase())], value(table)))
                .collect()
        };
        let heartbeat = self.heartbeat_age_ms().map(|age| Sample::new(Vec::new(), age));
        vec![
            gauge("ncm_resources", "Held resources, by type and status.", resources.collect()),
            gauge(
                "ncm_table_entries",
                "Entries in the packet path's tables.",
                by_table(|table| table.entries),
            ),
            gauge("ncm_table_capacity", "Entries that fit.", by_table(|table| u64::from(table.capacity))),
            gauge("ncm_table_bytes", "Memory of the tables, in bytes.", by_table(|table| table.memory)),
            gauge(
                "ncm_heartbeat_age_milliseconds",
                "Time since the packet path was last told that the underlay is followed.",
                heartbeat.into_iter().collect(),
            ),
        ]
    }

    /// What is wrong now, each in a sentence.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let mut alarms = Vec::new();
        for interface in self.interfaces() {
            if interface.hook.is_none() {
                alarms.push(format!("interface {}: {}", interface.name, interface.reason));
            }
        }
        let failed = self.with_model(Model::failed);
        if failed > 0 {
            alarms.push(format!(
                "{failed} resources have entries that the kernel refused: `ncmctl get` says which and why"
            ));
        }
        if let Some(cause) = self.shared.store.as_ref().and_then(crate::store::Store::failure) {
            alarms.push(format!("what is pushed is programmed and not kept: {cause}"));
        }
        let (deviations, unclaimed) = (own::DEVIATIONS.get(), own::UNCLAIMED.get());
        if deviations > 0 {
            alarms.push(format!(
                "{deviations} entries or programs in the kernel are not as they should be: see `ncmctl verify`"
            ));
        }
        if unclaimed > 0 {
            alarms.push(format!(
                "{unclaimed} entries are claimed by nothing that is held: see `ncmctl prune --dry-run`"
            ));
        }
        for table in self.table_fill() {
            // At nine tenths there is still time to act.
            if let Some(key) = table.spec.capacity_key
                && table.entries * 10 >= u64::from(table.capacity) * 9
            {
                alarms.push(format!(
                    "table {}: {} of {} entries are used: raise capacity.{key}",
                    table.spec.name.to_ascii_lowercase(),
                    table.entries,
                    table.capacity
                ));
            }
        }
        alarms.extend(self.crowded_ports());
        for endpoint in self.missing_endpoints() {
            alarms.push(format!(
                "tunnel endpoint {endpoint}: no interface of this host has the address: `ip address` shows them"
            ));
        }
        for host in self.remote_hosts().iter().filter(|host| host.resolved == 0) {
            let problem = host.problem.as_deref().unwrap_or("its next hop is not resolved");
            alarms.push(format!("remote host {}: {problem}", host.address));
        }
        if let Some((_, standing)) = self.upstream()
            && !standing.problem.is_empty()
        {
            alarms.push(format!("{}: destinations that are not known stay so", standing.problem));
        }
        if self.heartbeat_age_ms().is_some_and(|age| age > 3000) {
            alarms.push(
                "the underlay is not followed: the packet path asks the kernel for each packet".to_owned(),
            );
        }
        alarms
    }
}

impl Engine {
    /// Ports that have as many established flows as they may.
    fn crowded_ports(&self) -> Option<String> {
        let tables = self.dataplane().tables();
        let mut counts = std::collections::HashMap::new();
        let read = tables.port_flows.for_each(|port, flows| {
            if flows.established > 0 {
                counts.insert(port, flows.established);
            }
        });
        read.ok()?;
        let mut crowded = Vec::new();
        for (index, established) in counts {
            let port = tables.ports.get(&index).ok().flatten().filter(|port| port.generation != 0);
            if port.is_some_and(|port| established >= port.max_flows) {
                crowded.push((index, established));
            }
        }
        let (index, established) = crowded.iter().min()?;
        let name = tables.names.get(&NameKey { kind: name_kinds::PORT, index: *index }).ok().flatten();
        let name = name.map_or_else(|| format!("#{index}"), |name| name.as_str().to_owned());
        Some(format!(
            "{} ports have as many established flows as they may, such as {name} with {established}: further ones are kept among \
             the unanswered, where they are forgotten sooner (flows.max_flows_per_port, capacity.flows)",
            crowded.len()
        ))
    }
}

fn fill(dataplane: &Dataplane) -> Vec<TableFill> {
    let tables = dataplane.tables();
    let Ok(memory) = tables.memory() else { return Vec::new() };
    let entries = tables.counts().unwrap_or_default();
    memory
        .into_iter()
        .map(|(spec, memory, capacity)| {
            let entries =
                entries.iter().find(|(other, _)| other.name == spec.name).map_or(0, |(_, entries)| *entries);
            TableFill { spec, entries, capacity, memory }
        })
        .collect()
}

/// `CLOCK_MONOTONIC` in nanoseconds, as the packet path reads it.
pub(super) fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
