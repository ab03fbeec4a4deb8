//! Tables that each port has one of its own of: a map of maps, whose slots are the ports' indices.
//!
//! A port's table is made when the port is, and goes with it: what fills it is that port's alone.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya_obj::generated::bpf_map_type;
use ncm_common::Plain;
use ncm_common::tables::{FlowKey, HALF_OPEN_PER_PORT, TableSpec};

use crate::Error;
use crate::raw::{self, Outcome, RawMap};
use crate::sys::{self, NewMap};
use crate::table::Table;

/// A key that says which port's table it is in.
pub trait OfPort: Plain {
    /// The port's index.
    fn port(&self) -> u32;
}

impl OfPort for FlowKey {
    fn port(&self) -> u32 {
        self.port
    }
}

/// Most threads that wait for the kernel at the same time.
const THREADS: usize = 128;

/// One table for each port, from `K` to `V`. Cloning gives another handle of the same tables.
pub struct PortTables<K, V> {
    outer: Arc<OwnedFd>,
    spec: &'static TableSpec,
    ports: u32,
    entries: u32,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for PortTables<K, V> {
    fn clone(&self) -> Self {
        Self { outer: Arc::clone(&self.outer), types: PhantomData, ..*self }
    }
}

impl<K, V> std::fmt::Debug for PortTables<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PortTables").field(&self.spec.name).finish()
    }
}

impl<K: OfPort, V: Plain> PortTables<K, V> {
    /// Takes an open map of maps after comparing it with the tables' definition.
    pub(crate) fn open(fd: OwnedFd, spec: &'static TableSpec, path: &Path, _: usize) -> Result<Self, Error> {
        assert_eq!(spec.key_size as usize, size_of::<K>(), "{}: key", spec.name);
        assert_eq!(spec.value_size as usize, size_of::<V>(), "{}: value", spec.name);
        let ports = raw::check(&fd, spec, None, path)?;
        Ok(Self { outer: Arc::new(fd), spec, ports, entries: HALF_OPEN_PER_PORT, types: PhantomData })
    }

    /// The map of maps itself.
    pub(crate) fn outer(&self) -> &OwnedFd {
        &self.outer
    }

    /// How many entries tables have that are made from now on.
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// The same tables; those that are made from now on hold so many entries.
    pub(crate) fn of_entries(mut self, entries: u32) -> Self {
        self.entries = entries;
        self
    }

    /// The tables' definition.
    #[must_use]
    pub fn spec(&self) -> &'static TableSpec {
        self.spec
    }

    /// How many ports may have a table.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.ports
    }

    fn error(&self, action: &'static str) -> impl Fn(io::Error) -> Error {
        let table = self.spec.name.to_ascii_lowercase();
        move |source| Error::Table { action, table: table.clone(), source }
    }

    /// The port's own table, if it has one.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses, or if the table is not as the definition has it.
    pub fn of(&self, port: u32) -> Result<Option<Table<K, V>>, Error> {
        let Some(fd) = self.inner(port).map_err(self.error("open a port's table of"))? else {
            return Ok(None);
        };
        let info = sys::map_info(fd.as_fd()).map_err(self.error("examine a port's table of"))?;
        if (info.type_, info.key_size, info.value_size)
            != (bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32, self.spec.key_size, self.spec.value_size)
        {
            return Err(self.error("examine a port's table of")(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        Ok(Some(Table::new(RawMap::checked(fd, self.spec, info.max_entries, 1))))
    }

    /// Whether the port has a table; one that cannot be looked at counts as one that it has.
    #[must_use]
    pub fn has(&self, port: u32) -> bool {
        let found = sys::lookup(self.outer.as_fd(), &port.to_ne_bytes(), &mut [0; 4]);
        found.err().is_none_or(|error| error.raw_os_error() != Some(libc::ENOENT))
    }

    /// The map in a slot: the kernel shows its number.
    fn inner(&self, port: u32) -> io::Result<Option<OwnedFd>> {
        let mut id = [0; 4];
        match sys::lookup(self.outer.as_fd(), &port.to_ne_bytes(), &mut id) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        match sys::map_by_id(u32::from_ne_bytes(id), self.is_read_only()) {
            Ok(fd) => Ok(Some(fd)),
            // It has gone between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the handle is a [`Reader`](crate::Reader)'s.
    fn is_read_only(&self) -> bool {
        // SAFETY: the descriptor is open, and F_GETFL has no further argument.
        let flags = unsafe { libc::fcntl(self.outer.as_raw_fd(), libc::F_GETFL) };
        flags & libc::O_ACCMODE == libc::O_RDONLY
    }

    /// The ports that have a table.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read.
    pub fn ports(&self) -> Result<Vec<u32>, Error> {
        let used = slots(&self.outer, self.ports).map_err(self.error("read"))?;
        Ok(used.into_iter().map(|(port, _)| port).collect())
    }

    /// Gives ports tables of their own, in place of those that they have. The outcome lists the ports that have got none by
    /// their position.
    pub fn create(&self, ports: &[u32]) -> Outcome {
        /// Tables that are made before they are handed over: each is an open file until then.
        const AT_ONCE: usize = 64;
        let mut outcome = Outcome::default();
        for ports in ports.chunks(AT_ONCE) {
            outcome.append(self.create_some(ports));
        }
        outcome
    }

    fn create_some(&self, ports: &[u32]) -> Outcome {
        let mut failed = Vec::new();
        let (mut inner, mut positions, mut keys, mut values) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (position, port) in ports.iter().enumerate() {
            match create_inner(self.spec, self.entries) {
                Ok(fd) => {
                    keys.extend_from_slice(&port.to_ne_bytes());
                    values.extend_from_slice(&fd.as_raw_fd().to_ne_bytes());
                    positions.push(position);
                    inner.push(fd);
                }
                Err(error) => failed.push((position, error)),
            }
        }
        // The kernel waits once for each call, until no program uses what was there before.
        let mut from = 0;
        while from < positions.len() {
            let left = u32::try_from(positions.len() - from).unwrap_or(u32::MAX);
            let (done, result) =
                sys::update_batch(self.outer.as_fd(), &keys[from * 4..], &values[from * 4..], left);
            from += done as usize;
            if result.is_err() && from < positions.len() {
                let at = from * 4..from * 4 + 4;
                if let Err(error) = sys::update(self.outer.as_fd(), &keys[at.clone()], &values[at]) {
                    failed.push((positions[from], error));
                }
                from += 1;
            }
        }
        failed.sort_by_key(|(position, _)| *position);
        Outcome { done: ports.len() - failed.len(), failed }
    }

    /// Takes ports' tables away, with all that is in them. Those that have none count as done.
    pub fn remove(&self, ports: &[u32]) -> Outcome {
        // With each deletion the kernel waits until no program uses what was there, some milliseconds; those that wait at the
        // same time wait together.
        let share = ports.len().div_ceil(THREADS).max(1);
        let mut outcome = Outcome::default();
        std::thread::scope(|scope| {
            let (first, rest) = ports.split_at(share.min(ports.len()));
            let others: Vec<_> = rest
                .chunks(share)
                .map(|ports| {
                    let thread = std::thread::Builder::new().spawn_scoped(scope, || self.remove_some(ports));
                    (ports, thread)
                })
                .collect();
            outcome.append(self.remove_some(first));
            for (ports, thread) in others {
                outcome.append(match thread.map(std::thread::ScopedJoinHandle::join) {
                    Ok(Ok(removed)) => removed,
                    // There was no thread to be had.
                    _ => self.remove_some(ports),
                });
            }
        });
        outcome
    }

    fn remove_some(&self, ports: &[u32]) -> Outcome {
        let mut failed = Vec::new();
        for (position, port) in ports.iter().enumerate() {
            match sys::delete(self.outer.as_fd(), &port.to_ne_bytes()) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => failed.push((position, error)),
                _ => {}
            }
        }
        Outcome { done: ports.len() - failed.len(), failed }
    }

    /// Has tables for just these ports: what an agent that ended between two writes left, or left out, is put right.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses.
    pub(crate) fn settle(&self, ports: &[u32]) -> Result<(), Error> {
        let have = self.ports()?;
        let stale: Vec<u32> = have.iter().copied().filter(|port| !ports.contains(port)).collect();
        let missing: Vec<u32> = ports.iter().copied().filter(|port| !have.contains(port)).collect();
        let mut outcome = self.remove(&stale);
        outcome.append(self.create(&missing));
        match outcome.failed.into_iter().next() {
            None => Ok(()),
            Some((_, source)) => Err(self.error("make the ports' tables of")(source)),
        }
    }

    /// The value of `key` in its port's table.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses the look-up.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        match self.of(key.port())? {
            Some(table) => table.get(key),
            None => Ok(None),
        }
    }

    /// Hands every entry of every port to `visit`. What is written meanwhile may or may not be seen.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on.
    pub fn for_each(&self, mut visit: impl FnMut(K, V)) -> Result<(), Error> {
        for port in self.ports()? {
            if let Some(table) = self.of(port)? {
                table.for_each(&mut visit)?;
            }
        }
        Ok(())
    }

    /// How many entries there are in all ports' tables.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on.
    pub fn count(&self) -> Result<u64, Error> {
        let mut count = 0;
        self.for_each(|_, _| count += 1)?;
        Ok(count)
    }

    /// Bytes of kernel memory that the ports' tables take now.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel's figure cannot be read.
    pub fn memory_bytes(&self) -> Result<u64, Error> {
        let mut bytes = raw::memory(&self.outer).map_err(self.error("measure"))?;
        for port in self.ports()? {
            if let Some(table) = self.of(port)? {
                bytes += table.memory_bytes()?;
            }
        }
        Ok(bytes)
    }
}

/// The ports' own tables of a map of maps, by port.
pub(crate) fn inner_tables(outer: &OwnedFd, ports: u32) -> io::Result<Vec<(u32, OwnedFd)>> {
    let used = slots(outer, ports)?.into_iter();
    used.map(|(port, id)| Ok((port, sys::map_by_id(id, false)?))).collect()
}

/// The slots of a map of maps that are in use, with the numbers of the maps in them.
///
/// Before Linux 6.8 the kernel waits with each look-up too until no program uses what was there, some milliseconds: where it does, many
/// wait at the same time.
fn slots(outer: &OwnedFd, ports: u32) -> io::Result<Vec<(u32, u32)>> {
    /// So many look-ups tell whether the kernel waits, by the time that they take.
    const FIRST: u32 = 4;
    const WAITED: Duration = Duration::from_millis(4);
    let begun = Instant::now();
    let first = ports.min(FIRST);
    let mut used = slots_of(outer, 0..first)?;
    if begun.elapsed() < WAITED {
        used.extend(slots_of(outer, first..ports)?);
        return Ok(used);
    }
    let share = (ports as usize).div_ceil(THREADS).max(1);
    std::thread::scope(|scope| {
        let shares: Vec<_> = (first..ports)
            .step_by(share)
            .map(|from| {
                let part = from..ports.min(from.saturating_add(u32::try_from(share).unwrap_or(u32::MAX)));
                let own = part.clone();
                (part, std::thread::Builder::new().spawn_scoped(scope, move || slots_of(outer, own)))
            })
            .collect();
        for (part, thread) in shares {
            used.extend(match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(found)) => found?,
                // There was no thread to be had.
                _ => slots_of(outer, part)?,
            });
        }
        Ok(used)
    })
}

fn slots_of(outer: &OwnedFd, ports: Range<u32>) -> io::Result<Vec<(u32, u32)>> {
    let mut used = Vec::new();
    for port in ports {
        let mut id = [0; 4];
        match sys::lookup(outer.as_fd(), &port.to_ne_bytes(), &mut id) {
            Ok(()) => used.push((port, u32::from_ne_bytes(id))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(used)
}

/// A table for one port.
pub(crate) fn create_inner(spec: &TableSpec, entries: u32) -> io::Result<OwnedFd> {
    sys::create_map(&NewMap {
        kind: bpf_map_type::BPF_MAP_TYPE_LRU_HASH,
        key_size: spec.key_size,
        value_size: spec.value_size,
        max_entries: entries,
        flags: 0,
        inner: None,
    })
}

/// The map of maps itself, for ports' tables like those that [`PortTables::create`] makes.
pub(crate) fn create_outer(spec: &TableSpec, ports: u32) -> io::Result<OwnedFd> {
    let (key_size, value_size) = raw::sizes(spec);
    // Sizes of entries may differ from those of the example.
    let example = create_inner(spec, HALF_OPEN_PER_PORT)?;
    sys::create_map(&NewMap {
        kind: raw::map_type(spec.kind),
        key_size,
        value_size,
        max_entries: ports,
        flags: raw::map_flags(spec.kind),
        inner: Some(example.as_fd()),
    })
}
