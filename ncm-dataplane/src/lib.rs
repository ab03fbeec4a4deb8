//! The kernel's side of the agent: loads the eBPF object, pins its tables and links, attaches its programs, and reads
//! and writes tables in batches. The only host crate with unsafe code, and the only one that knows bpf(2).
//!
//! What is pinned goes on forwarding when the process ends; the next one takes it over ([`Dataplane::open`]).
//! [`Reader`] opens the tables for reading without any of this, [`teardown`] removes everything.

mod attach;
mod by_port;
mod error;
mod load;
mod log;
mod memory;
mod pin;
mod programs;
mod raw;
mod readback;
mod sys;
mod table;
mod tables;
mod testrun;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use ncm_common::tables::{TABLES, TableSpec};

pub use attach::{Attachment, Foreign, Holder, Hook, held_by_another};
pub use by_port::{OfPort, PortTables};
pub use error::Error;
pub use log::{LogLevel, ProgramLog};
pub use memory::release_memory;
pub use pin::{PinPaths, teardown};
pub use programs::ProgramInfo;
pub use raw::{Outcome, Position};
pub use readback::Reader;
pub use table::{CounterTable, Sum, Table};
pub use tables::{Capacities, Tables};
pub use testrun::{TestOutcome, TestRun, Tunnel};

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
        }
    }
}

/// A loaded dataplane. All methods take `&self` and may be called from several threads.
#[derive(Debug)]
pub struct Dataplane {
    programs: programs::Programs,
    tables: Tables,
    links: attach::Links,
    log: std::sync::Mutex<Option<ProgramLog>>,
    /// Whether a change is being written whose epochs have not risen: the lowest bit of the heartbeat.
    changing: std::sync::Mutex<bool>,
    others: BTreeMap<String, OwnedFd>,
}

impl Dataplane {
    /// Loads the object. With an instance name: takes over its pinned tables after comparing them with what this
    /// build expects, and swaps its attached programs for this build's, each in one step; the links of interfaces
    /// that are gone are removed.
    ///
    /// # Errors
    /// [`Error::Layout`] if a pinned table differs, [`Error::Verifier`] if the kernel refuses a program, and others.
    pub fn open(options: &Options) -> Result<Self, Error> {
        Self::open_object(options, OBJECT)
    }

    /// [`Dataplane::open`] with another object than the one that this build carries: the benchmark's, which has
    /// programs and tables beside the product's.
    ///
    /// # Errors
    /// As [`Dataplane::open`].
    pub fn open_object(options: &Options, object: &[u8]) -> Result<Self, Error> {
        let paths = match &options.instance {
            Some(instance) => Some(PinPaths::new(&options.bpffs, instance)?),
            None => None,
        };
        if let (Some(paths), Some(instance)) = (&paths, &options.instance) {
            let found = paths.other_layouts_in_use();
            if !found.is_empty() {
                return Err(Error::OtherLayout { instance: instance.clone(), found });
            }
        }
        let is_new = paths.as_ref().is_some_and(|paths| !paths.maps().exists());
        if let Some(paths) = &paths {
            paths.create()?;
        }
        let loaded =
            load::load(object, &options.capacities, options.log, paths.as_ref()).inspect_err(|_| {
                // Tables that never were of use must not bind the next start to this one's capacities.
                if let Some(paths) = paths.as_ref().filter(|_| is_new) {
                    let _left_behind = paths.remove_layout();
                }
            })?;
        let links = attach::Links::adopt(paths.as_ref().map(PinPaths::links), &loaded.programs)?;
        let beat = loaded.tables.heartbeat.get(&0)?.unwrap_or_default();
        Ok(Self {
            programs: loaded.programs,
            tables: loaded.tables,
            links,
            log: std::sync::Mutex::new(loaded.log),
            changing: std::sync::Mutex::new(beat & 1 != 0),
            others: loaded.others,
        })
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
        self.links.attach(&self.programs, hook, ifindex)
    }

    /// Takes the hook's program from an interface, at once. Not being attached is no error.
    ///
    /// # Errors
    /// [`Error::Path`] if the link's pin cannot be removed.
    pub fn detach(&self, hook: Hook, ifindex: u32) -> Result<(), Error> {
        self.links.detach(hook, ifindex)
    }

    /// Where our programs are attached; without those whose interface is gone.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        self.links.attachments()
    }

    /// Removes the links of interfaces that are gone: call it when one goes.
    ///
    /// # Errors
    /// [`Error::Path`] if a link's pin cannot be removed.
    pub fn forget_gone(&self) -> Result<(), Error> {
        self.links.forget_gone()
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
        self.programs.info()
    }

    /// Says to the packet path that the underlay is being followed: `now` in nanoseconds of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses the write.
    pub fn set_heartbeat(&self, now: u64) -> Result<(), Error> {
        let changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.tables.heartbeat.put(&0, &(now & !1 | u64::from(*changing)))
    }

    /// Notes that a change is being written after which epochs have to rise, or that they have. It outlives the process: who is killed in
    /// between leaves flows that were decided by what has gone. In the lowest bit of the heartbeat, which nobody misses.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses the write.
    pub fn set_changing(&self, is: bool) -> Result<(), Error> {
        let mut changing = self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *changing = is;
        let beat = self.tables.heartbeat.get(&0)?.unwrap_or_default();
        self.tables.heartbeat.put(&0, &(beat & !1 | u64::from(is)))
    }

    /// Whether a change is being written, by this process or by one that ended amid it.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        *self.changing.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The programs' log, once; `None` if it is off or has been taken.
    #[must_use]
    pub fn take_log(&self) -> Option<ProgramLog> {
        self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
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
        run.run(program, self.programs.get(program)?)
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
