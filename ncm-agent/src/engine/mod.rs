//! The engine: goal states in, table entries and attached programs out.
//!
//! The model is behind one lock and steps through messages in bounded parts; one writer thread puts what the steps
//! yield into the kernel, in the order in which the model yielded it. Both work at the same time, a few steps apart.

mod ageing;
mod apply;
mod beside;
mod epochs;
mod flows;
mod following;
mod guests;
mod hand_up;
mod hosts;
mod journal;
mod leftover_sets;
mod leftovers;
mod lock;
mod own_tables;
mod reconcile;
mod snapshot;
mod status;
mod sweep;
mod tenants;
mod times;
mod upkeep;
mod verify;
mod wire;
mod withheld;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::Context;
use ncm_common::tables::{Name, NameKey, name_kinds, ticks};
use ncm_dataplane::{Capacities, Dataplane, LogLevel, Options, Tables};
use ncm_model::{Changes, Model, Seed, Settings, Slots};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::config::{Config, DataplaneLog, MissingGroup};
use crate::netlink::underlay::Underlay;
use crate::netlink::{Kernel, Links};
use crate::store::Store;
use crate::upstream::{self, Outstanding};

pub use apply::{Applied, ApplyError};
pub use following::{FollowError, Followed, Follower, Part};
pub use lock::{InstanceLock, LockError};
pub use ncm_model::Kind;
pub use status::{InterfaceStatus, Role, TableFill};
pub use times::Times;
pub use verify::{Deviation, DeviationKind, Remedy, Verified};

use guests::Interfaces;
use own_tables::OwnTables;
use writer::Job;

/// Steps that the model may be ahead of the writer.
const STEPS_AHEAD: usize = 3;

/// Messages that are applied at the same time; more wait. Each holds a thread.
const MESSAGES_AT_ONCE: usize = 8;

/// A handle to the running engine.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// What the engine's threads and tasks share.
pub(crate) struct Shared {
    config: Config,
    model: Mutex<Model>,
    dataplane: Dataplane,
    own: Arc<OwnTables>,
    writer: Sender<Job>,
    /// The journal, if there is one.
    store: Option<Store>,
    following: following::Following,
    underlay: Option<Underlay>,
    interfaces: tokio::sync::Mutex<Interfaces>,
    status: Mutex<BTreeMap<String, InterfaceStatus>>,
    fill: Mutex<status::FillCache>,
    counts: Mutex<status::CountCache>,
    /// What upstream is being asked for, if there is one.
    upstream: Option<Arc<Outstanding>>,
    /// Entries that the kernel has refused to delete.
    undeleted: AtomicUsize,
    /// There was no room for policy: what is left over of earlier runs is to go soon.
    crowded: AtomicBool,
    slots: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    trim: Arc<Notify>,
    started: SystemTime,
    _uplink_locks: lock::UplinkLocks,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("instance", &self.config.instance).finish_non_exhaustive()
    }
}

impl Shared {
    /// The model. A panic while it was locked is a fault of ours that must not end the service.
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `step` change the model and hands what it yields to the writer. The model stays locked meanwhile, so that
    /// the writer gets changes in the order in which they were made. Returns the interfaces that ports newly name.
    fn change<T>(
        &self,
        times: Option<&Arc<Times>>,
        slot: Option<OwnedSemaphorePermit>,
        step: impl FnOnce(&mut Model, &mut Changes) -> T,
    ) -> (T, Vec<String>) {
        let mut changes = Box::<Changes>::default();
        let mut model = self.model();
        let outcome = step(&mut model, &mut changes);
        let interfaces = std::mem::take(&mut changes.interfaces);
        if !changes.is_empty() {
            let times = times.map(Arc::clone);
            // The writer goes only when the engine does.
            drop(self.writer.send(Job::Write { changes, times, slot }));
        }
        drop(model);
        (outcome, interfaces.wanted)
    }
}

impl Engine {
    /// Takes over what an earlier agent of this instance left, or begins anew, and follows the host's interfaces and
    /// the underlay from now on. Needs a tokio runtime, which the engine's tasks run on, and the instance for as long as
    /// the engine lives.
    ///
    /// # Errors
    ///
    /// The kernel refuses programs or tables, or netlink cannot be used.
    pub async fn start(config: Config, _instance: &InstanceLock) -> anyhow::Result<Self> {
        let journal = journal::open(&config)?;
        let mut kernel = Kernel::open().context("cannot use netlink")?;
        let uplink_locks = wire::take_uplink_locks(&config, &mut kernel).await?;
        let dataplane = Dataplane::open(&options(&config)).context("cannot load the dataplane")?;
        if config.guest.closed_defaults {
            guests::close_defaults()?;
        }
        let own = Arc::new(OwnTables::adopt(dataplane.tables(), &flows::timeouts(&config.flows))?);
        let seed = seed(dataplane.tables())?;
        let mut links = Links::open().await.context("cannot follow the host's interfaces")?;
        let interfaces = Interfaces::read(&mut links).await?;
        let relay = wire::relay(&config, &mut kernel, &dataplane).await?;
        wire::node(&config, relay.as_ref(), &own)?;
        let underlay = wire::underlay(&config, &own).await?;
        let leftover = leftover_sets::LeftoverSets::new(&seed.names);
        let begin = || {
            let mut model = Model::new(settings(&config, dataplane.tables()), &seed);
            interfaces.adopt(&dataplane, &mut model);
            model
        };
        let recovered =
            tokio::task::block_in_place(|| journal::recover(&config, journal, seed.names.is_empty(), begin))?;
        let journal::Recovered { mut model, store, claims_all, history } = recovered;
        interfaces.adopt_named(&dataplane, &mut model);
        let (jobs, receiver) = std::sync::mpsc::channel();
        let following = following::Following::new(history, model.version());
        let shared = Arc::new(Shared {
            model: Mutex::new(model),
            dataplane,
            own,
            writer: jobs,
            store,
            following,
            underlay,
            interfaces: tokio::sync::Mutex::new(interfaces),
            status: Mutex::default(),
            fill: Mutex::default(),
            counts: Mutex::default(),
            upstream: config.upstream.address.as_ref().map(|_| Arc::default()),
            undeleted: AtomicUsize::new(0),
            crowded: AtomicBool::new(false),
            slots: Arc::new(Semaphore::new(STEPS_AHEAD)),
            turns: Arc::new(Semaphore::new(MESSAGES_AT_ONCE)),
            trim: Arc::default(),
            started: SystemTime::now(),
            _uplink_locks: uplink_locks,
            config,
        });
        writer::start(receiver, &shared)?;
        sweep::start(&shared, leftover)?;
        if let Some(relay) = &relay {
            shared.status().insert(relay.link.name.clone(), wire::relay_status(relay));
        }
        shared.take_uplinks().await;
        hand_up::start(&shared).await;
        shared.resume(claims_all).await?;
        snapshot::start(&shared);
        following::start(&shared);
        upkeep::start(&shared, links);
        shared.ask_upstream()?;
        let engine = Self { shared };
        verify::start(&engine);
        Ok(engine)
    }

    /// Makes durable what was accepted and is not: nothing is accepted any more.
    pub async fn close(&self) {
        if let Some(store) = &self.shared.store {
            store.close().await;
        }
    }
}

impl Shared {
    /// Has upstream asked for what is not known, if there is one.
    fn ask_upstream(&self) -> anyhow::Result<()> {
        let Some(outstanding) = &self.upstream else { return Ok(()) };
        let (device, _) = crate::hand_up::device_names(&self.config.instance);
        let (config, source) = (&self.config.upstream, &self.config.node.addresses);
        upstream::start(config, source, &device, self.dataplane.tables(), outstanding)
            .context("cannot start the thread that asks upstream")
    }

    /// Makes the tables what the model says, if it says anything, and takes over the guests' interfaces.
    async fn resume(self: &Arc<Self>, claims_all: bool) -> anyhow::Result<()> {
        let wanted: Vec<String> = self.model().wanted_interfaces().map(str::to_owned).collect();
        if claims_all || self.model().counts().iter().any(|count| count.count > 0) {
            let begun = Instant::now();
            let repaired = self.repair(true, claims_all).await?;
            let (written, removed, ms) = (repaired.written, repaired.removed, begun.elapsed().as_millis());
            tracing::info!(written, removed, ms, "the kernel's tables are what they should be");
        }
        if self.dataplane.is_pending() {
            let shared = Arc::clone(self);
            tokio::task::spawn_blocking(move || shared.take_over()).await??;
        }
        self.take_guests(&wanted, &Arc::new(Times::begin())).await;
        // What was read to know it all again is not needed any more.
        self.trim.notify_one();
        Ok(())
    }
}

/// The indices that an earlier run gave out. One in use that has no name (the table of names was full) is taken all the
/// same, by nobody: given out anew with its old generation, it would have what still refers to it delivered to another.
fn seed(tables: &Tables) -> anyhow::Result<Seed> {
    let mut names = tables.names.entries()?;
    let mut nobodys: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    let mut ports = Vec::new();
    tables.ports.for_each(|index, port| {
        nobodys.insert((name_kinds::PORT, index), port.generation);
        if port.generation != 0 {
            ports.push((index, port));
        }
    })?;
    tables.subnets.for_each(|index, subnet| {
        nobodys.insert((name_kinds::SUBNET, index), subnet.generation);
    })?;
    tables.hosts.for_each(|index, host| {
        nobodys.insert((name_kinds::HOST, index), host.generation);
    })?;
    for (key, _) in &names {
        nobodys.remove(&(key.kind, key.index));
    }
    nobodys.retain(|_, generation| *generation != 0);
    for ((kind, index), generation) in nobodys {
        // No id has this form.
        names.push((NameKey { kind, index }, Name::new(&format!("\0{index}"), generation)));
    }
    // The clock goes on as long as the tables are there, and is another one after the next boot, as they are.
    Ok(Seed { names, ports, run: ticks(status::monotonic_ns()) })
}

fn options(config: &Config) -> Options {
    let mut capacities = Capacities::default();
    for (key, entries) in &config.capacity {
        // The keys are those of the tables' definition.
        capacities.set(key, *entries);
    }
    let log = match config.log.dataplane {
        DataplaneLog::Off => LogLevel::Off,
        DataplaneLog::Error => LogLevel::Error,
        DataplaneLog::Warn => LogLevel::Warn,
        DataplaneLog::Info => LogLevel::Info,
        DataplaneLog::Debug => LogLevel::Debug,
        DataplaneLog::Trace => LogLevel::Trace,
    };
    Options { instance: Some(config.instance.clone()), bpffs: config.paths.bpffs.clone(), capacities, log }
}

fn settings(config: &Config, tables: &Tables) -> Settings {
    let limit = |number| usize::try_from(number).unwrap_or(usize::MAX);
    Settings {
        addresses: config.node.addresses.clone(),
        endpoints: config.underlay.endpoints().iter().collect(),
        missing_group: match config.missing_group {
            MissingGroup::Closed => ncm_model::MissingGroup::Closed,
            MissingGroup::Open => ncm_model::MissingGroup::Open,
        },
        port_flows: config.flows.max_flows_per_port,
        asks: config.upstream.address.as_ref().map(|_| ncm_model::AskRate {
            interval_ns: 1_000_000_000 / config.upstream.port_asks_per_second.max(1),
            at_once: config.upstream.port_asks_at_once.max(1),
        }),
        limits: ncm_model::Limits {
            tombstones: limit(config.limits.tombstones),
            tombstone_age_s: config.limits.tombstone_age_s,
            parked: limit(config.limits.parked),
            neighbours: limit(config.limits.neighbours),
            resources: limit(config.limits.resources),
            set_entries: limit(config.limits.set_entries),
            rules: limit(config.limits.rules),
            ..ncm_model::Limits::default()
        },
        slots: Slots {
            ports: tables.ports.capacity(),
            subnets: tables.subnets.capacity(),
            hosts: tables.hosts.capacity(),
            routes: tables.routes.capacity(),
            vteps: tables.vteps.capacity(),
            classes: tables.classes.capacity(),
            rules: tables.rules.capacity(),
            flows: tables.flows.capacity(),
        },
    }
}
