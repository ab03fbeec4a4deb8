//! The kernel's side of the agent: loads the eBPF object, pins its tables and links, attaches its programs, and reads
//! and writes tables in batches. The only host crate with unsafe code, and the only one that knows bpf(2).
//!
//! What is pinned goes on forwarding when the process ends; the next one takes it over ([`Dataplane::open`]).
//! [`Reader`] opens the tables for reading without any of this, [`teardown`] removes everything.

mod attach;
mod by_port;
mod carry;
mod error;
mod load;
mod log;
mod memory;
pub mod message;
mod netlink;
mod pin;
mod programs;
mod raw;
mod readback;
mod shapes;
mod sys;
mod table;
mod tables;
mod testrun;
mod transition;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ncm_common::conversion::phases;
use ncm_common::tables::{TABLES, TableSpec};

pub use attach::{Attachment, Foreign, Holder, Hook, TcAttach, held_by_another};
pub use by_port::{OfPort, PortTables};
pub use error::Error;
pub use log::{LogLevel, ProgramLog};
pub use memory::{release_memory, share_memory};
pub use pin::{PinPaths, teardown};
pub use programs::ProgramInfo;
pub use raw::{Outcome, Position};
pub use readback::{Reader, attached};
pub use table::{CounterTable, Sum, Table};
pub use tables::{Capacities, Tables};
pub use testrun::{TestOutcome, TestRun, Tunnel};
pub use transition::Stage;

use transition::Transition;

/// Where bpffs is mounted by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The object that this build carries.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NCM_EBPF_OBJECT"));

/// What to load and under which name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The instance's name, part of the pin path. `None`: nothing is pinned, and everything ends with the process.
    pub instance: Option<String>,
    /// Where bpffs is, or is to be mounted.
    pub bpffs: PathBuf,
    /// Numbers of entries that differ from the defaults.
    pub capacities: Capacities,
    /// What the programs log.
    pub log: LogLevel,
    /// How tc programs are attached.
    pub tc_attach: TcAttach,
}

impl Options {
    /// The named instance with defaults in all else.
    #[must_use]
    pub fn pinned(instance: &str) -> Self {
        Self { instance: Some(instance.to_owned()), ..Self::unpinned() }
    }

    /// Defaults, with nothing pinned.
    #[must_use]
    pub fn unpinned() -> Self {
        Self {
            instance: None,
            bpffs: PathBuf::from(BPFFS),
            capacities: Capacities::default(),
            log: LogLevel::Off,
            tc_attach: TcAttach::Auto,
        }
    }
}

/// A loaded dataplane. All methods take `&self` and may be called from several threads.
#[derive(Debug)]
pub struct Dataplane {
    programs: RwLock<Arc<programs::Programs>>,
    tables: Tables,
    attached: attach::Attached,
    log: Mutex<Option<ProgramLog>>,
    /// Whether a change is being written whose epochs have not risen: the lowest bit of the heartbeat.
    changing: Mutex<bool>,
    others: BTreeMap<String, OwnedFd>,
    /// What is not done yet of taking the place of another set of tables.
    transition: Mutex<Option<Transition>>,
    options: Options,
    object: Vec<u8>,
}

impl Dataplane {
    /// Loads the object. With an instance name: takes over its pinned tables.
    ///
    /// Where they are what this build and these options would make, its attached programs are swapped for this build's, each in one
    /// step. Else a new set of tables is made and filled from the pinned ones, which go on forwarding until
    /// [`Dataplane::take_over`]. The links of interfaces that are gone are removed.
    ///
    /// # Errors
    /// [`Error::NoRoom`] if a table is to be smaller than what is in it, [`Error::OtherLayout`] if the pinned tables cannot be taken
    /// over, [`Error::Verifier`] if the kernel refuses a program, and others. What runs is left as it is.
    pub fn open(options: &Options) -> Result<Self, Error> {
        Self::open_object(options, OBJECT)
    }

    /// [`Dataplane::open`] with another object than the one that this build carries: the benchmark's, which has
    /// programs and tables beside the product's.
    ///
    /// # Errors
    /// As [`Dataplane::open`].
    pub fn open_object(options: &Options, object: &[u8]) -> Result<Self, Error> {
        let way = attach::Way::of(options.tc_attach)?;
        let Some(instance) = &options.instance else {
            let loaded = load::load(object, &options.capacities, options.log, None, None)?;
            settle_half_open(&loaded.tables)?;
            return Self::new(options, object, loaded, attach::Attached::unpinned(way), None);
        };
        let paths = PinPaths::new(&options.bpffs, instance)?;
        paths.mount()?;
        let (current, is_new) = transition::current(&paths, instance)?;
        if is_new || current.is_wanted(&options.capacities)? {
            let maps = current.set.maps();
            let loaded = load::load(object, &options.capacities, options.log, Some(&maps), None);
            let loaded = loaded.inspect_err(|_| {
                // Tables that never were of use.
                if is_new {
                    let _left_behind = current.set.remove();
                    paths.remove_if_empty();
                }
            })?;
            settle_half_open(&loaded.tables)?;
            let attached = attach::Attached::adopt(instance, way, current.set.links(), &paths.links()?)?;
            attached.swap(&loaded.programs)?;
            return Self::new(options, object, loaded, attached, None);
        }
        let links = current.set.links();
        let transition = Transition::begin(current, &paths, &options.capacities);
        let begun = transition.and_then(|transition| {
            let takeover = transition.takeover(instance)?;
            let maps = transition.to.set.maps();
            let loaded =
                load::load(object, &options.capacities, options.log, Some(&maps), takeover.as_ref())?;
            transition.fill(&loaded.tables)?;
            settle_half_open(&loaded.tables)?;
            transition::reached("filled");
            tracing::info!(
                from = %transition.from.set, to = %transition.to.set,
                "the tables are of another layout or size: new ones are filled from them"
            );
            Self::new(
                options,
                object,
                loaded,
                attach::Attached::adopt(instance, way, links, &paths.links()?)?,
                Some(transition),
            )
        });
        begun.inspect_err(|_| transition::take_back(&paths))
    }

    fn new(
        options: &Options,
        object: &[u8],
        loaded: load::Loaded,
        attached: attach::Attached,
        transition: Option<Transition>,
    ) -> Result<Self, Error> {
        let beat = loaded.tables.heartbeat.get(&0)?.unwrap_or_default();
        Ok(Self {
            programs: RwLock::new(Arc::new(loaded.programs)),
            tables: loaded.tables,
            attached,
            log: Mutex::new(loaded.log),
            changing: Mutex::new(beat & 1 != 0),
            others: loaded.others,
            object: if transition.is_some() { object.to_vec() } else { Vec::new() },
            transition: Mutex::new(transition),
            options: options.clone(),
        })
    }

    /// Whether the programs that forward still use another set of tables than this one.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        lock(&self.transition).is_some()
    }

    /// Has this set of tables take the place of the one that forwards: to be called when everything has been written that is to be
    /// there. No packet is lost and no flow forgotten. Returns at once if it is the one that forwards.
    ///
    /// # Errors
    /// [`Error::Attach`] if the kernel refuses an exchange of programs, and others. The next start goes on from there, or back.
    pub fn take_over(&self) -> Result<(), Error> {
        self.take_over_until(Stage::Done)
    }

    /// [`Dataplane::take_over`] as far as a stage: for tests of what is in between.
    ///
    /// # Errors
    /// As [`Dataplane::take_over`].
    pub fn take_over_until(&self, last: Stage) -> Result<(), Error> {
        let mut pending = lock(&self.transition);
        while let Some(transition) = pending.as_mut().filter(|transition| transition.stage < last) {
            transition.stage = self.next_stage(transition)?;
            if transition.stage == Stage::Done {
                *pending = None;
            }
        }
        Ok(())
    }

    fn next_stage(&self, transition: &mut Transition) -> Result<Stage, Error> {
        match transition.stage {
            Stage::Filled => {
                transition.from.counts(&transition.to)?;
                transition.say(phases::SWAPPING)?;
                self.attached.swap(&self.loaded())?;
                transition::reached("swapped");
                Ok(Stage::Swapped)
            }
            Stage::Swapped => {
                transition.say(phases::IN_USE)?;
                transition::reached("in-use");
                self.attached.move_to(&transition.to.set.links())?;
                Ok(Stage::InUse)
            }
            Stage::InUse => {
                let flows = transition.carry()?;
                tracing::info!(flows, "the new tables are in use, and all flows are there");
                transition::reached("carried");
                Ok(Stage::Carried)
            }
            Stage::Carried | Stage::Done => {
                if transition.has_flows {
                    let (capacities, log) = (&self.options.capacities, self.options.log);
                    let maps = transition.to.set.maps();
                    let loaded = load::load(&self.object, capacities, log, Some(&maps), None)?;
                    self.attached.swap(&loaded.programs)?;
                    *self.programs.write().unwrap_or_else(PoisonError::into_inner) =
                        Arc::new(loaded.programs);
                    *lock(&self.log) = loaded.log;
                }
                transition::reached("replaced");
                transition.from.set.remove()?;
                transition.to.set.rename_alone()?;
                self.attached.are_in(transition.to.set.links());
                tracing::info!(tables = %transition.to.set, "the tables of before are gone");
                Ok(Stage::Done)
            }
        }
    }

    fn loaded(&self) -> Arc<programs::Programs> {
        Arc::clone(&self.programs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The tables. Handles are cheap to clone and outlive this value.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The definitions of all tables.
    #[must_use]
    pub fn specs(&self) -> &'static [TableSpec] {
        TABLES
    }

    /// Attaches the hook's program to an interface, in front of what else is there. Attaching again changes nothing.
    ///
    /// # Errors
    /// [`Error::Attach`] with a remedy; [`Error::Occupied`] if a program of ours that is not this instance's is there.
    pub fn attach(&self, hook: Hook, ifindex: u32) -> Result<Attachment, Error> {
        self.attached.attach(&self.loaded(), hook, ifindex)
    }

    /// Takes the hook's program from an interface, at once. Not being attached is no error.
    ///
    /// # Errors
    /// [`Error::Path`] or [`Error::Detach`] if it cannot be removed.
    pub fn detach(&self, hook: Hook, ifindex: u32) -> Result<(), Error> {
        self.attached.detach(hook, ifindex)
    }

    /// Where our programs are attached; without those whose interface is gone.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        self.attached.attachments()
    }

    /// Lets go of what was on interfaces that are gone: call it when one goes.
    ///
    /// # Errors
    /// [`Error::Path`] if a link's pin cannot be removed.
    pub fn forget_gone(&self) -> Result<(), Error> {
        self.attached.forget_gone()
    }

    /// All programs on a hook of an interface, ours and others', in order of execution.
    ///
    /// # Errors
    /// [`Error::Attach`] if the kernel cannot be asked.
    pub fn on_hook(&self, hook: Hook, ifindex: u32) -> Result<Vec<Foreign>, Error> {
        attach::on_hook(hook, ifindex)
    }

    /// The kernel's name of any program (at most 15 bytes), by its id; `?` if it is gone.
    #[must_use]
    pub fn program_name(&self, id: u32) -> String {
        programs::name_of(id)
    }

    /// What the kernel says of the loaded programs.
    ///
    /// # Errors
    /// [`Error::Program`] if the kernel cannot be asked.
    pub fn programs(&self) -> Result<Vec<ProgramInfo>, Error> {
        self.loaded().info()
    }

    /// Says to the packet path that the underlay is being followed: `now` in nanoseconds of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses the write.
    pub fn set_heartbeat(&self, now: u64) -> Result<(), Error> {
        let changing = lock(&self.changing);
        self.tables.heartbeat.put(&0, &(now & !1 | u64::from(*changing)))
    }

    /// Notes that a change is being written after which epochs have to rise, or that they have. It outlives the process: who is killed in
    /// between leaves flows that were decided by what has gone. In the lowest bit of the heartbeat, which nobody misses.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses the write.
    pub fn set_changing(&self, is: bool) -> Result<(), Error> {
        let mut changing = lock(&self.changing);
        *changing = is;
        let beat = self.tables.heartbeat.get(&0)?.unwrap_or_default();
        self.tables.heartbeat.put(&0, &(beat & !1 | u64::from(is)))
    }

    /// Whether a change is being written, by this process or by one that ended amid it.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        *lock(&self.changing)
    }

    /// The programs' log, once; `None` if it is off or has been taken.
    #[must_use]
    pub fn take_log(&self) -> Option<ProgramLog> {
        lock(&self.log).take()
    }

    /// Runs a hook's program on a packet.
    ///
    /// # Errors
    /// [`Error::TestRun`] with what the kernel said.
    pub fn test_run(&self, hook: Hook, run: &TestRun) -> Result<TestOutcome, Error> {
        self.test_run_program(hook.program(), run)
    }

    /// Runs any program of the object on a packet.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such program, else as [`Dataplane::test_run`].
    pub fn test_run_program(&self, program: &str, run: &TestRun) -> Result<TestOutcome, Error> {
        run.run(program, self.loaded().get(program)?)
    }

    /// Writes an entry of a table that is in the object but not the product's, as bytes.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such table, [`Error::Table`] if key or value are not of its sizes or the
    /// kernel refuses.
    pub fn put_other(&self, table: &str, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let missing = || Error::Missing { what: "table", name: table.to_owned() };
        let map = self.others.get(table).ok_or_else(missing)?.as_fd();
        let failed = |source| Error::Table { action: "write", table: table.to_ascii_lowercase(), source };
        let info = sys::map_info(map).map_err(failed)?;
        if (info.key_size as usize, info.value_size as usize) != (key.len(), value.len()) {
            return Err(failed(std::io::Error::from_raw_os_error(libc::EINVAL)));
        }
        sys::update(map, key, value).map_err(failed)
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        // What was begun and not used goes again; what is used is the next start's to finish.
        if let Some(transition) = lock(&self.transition).take()
            && transition.stage == Stage::Filled
        {
            let _left_behind = transition.to.set.remove();
        }
    }
}

/// A lock that a panic elsewhere has left as good as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has ports' own tables for just the ports that there are.
fn settle_half_open(tables: &Tables) -> Result<(), Error> {
    let mut ports = Vec::new();
    tables.ports.for_each(|index, port| ports.extend((port.generation != 0).then_some(index)))?;
    tables.half_open.settle(&ports)
}
