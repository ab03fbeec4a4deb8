//! A map as the kernel sees it: bytes in, bytes out, in batches where the kernel has them.
//!
//! A batch stops at its first error with the number of entries done; the entry that failed is recorded and the batch
//! goes on after it. Where a map type has no batches, entries go one by one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use aya_obj::generated::bpf_map_type;
use ncm_common::tables::{TableKind, TableSpec};

use crate::Error;
use crate::sys;

/// The kernel's own "not supported", which has no name in user space: what batch commands answer for map types
/// without batches.
const ENOTSUPP: i32 = 524;
/// Entries per system call: large enough that the call does not matter, small enough to stay in the cache.
pub(crate) const BATCH: usize = 8192;
/// How often an entry is tried that the kernel says is busy (its bucket is being changed at this moment).
const BUSY_RETRIES: u32 = 64;

/// What became of a batch: the positions of the entries that failed, with the reason.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many entries are in the state that was asked for.
    pub done: usize,
    /// The entries that are not, by position in the batch.
    pub failed: Vec<(usize, io::Error)>,
}

impl Outcome {
    /// Whether every entry was done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }

    /// Whether an entry failed because the table is full: longest-prefix tables say `ENOSPC`, others `E2BIG`.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.failed.iter().any(|(_, error)| matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)))
    }

    /// Appends what became of the entries that follow.
    pub fn append(&mut self, next: Self) {
        let offset = self.done + self.failed.len();
        self.done += next.done;
        self.failed.extend(next.failed.into_iter().map(|(position, error)| (position + offset, error)));
    }
}

/// How far a walk through a table has come, with the buffers that it reads into.
#[derive(Debug, Default)]
pub struct Position {
    cursor: Option<Vec<u8>>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// An open map with its checked sizes.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    pub(crate) spec: &'static TableSpec,
    pub(crate) capacity: u32,
    /// How many values a key has: the possible CPUs for per-CPU maps, else 1.
    pub(crate) values_per_key: usize,
    /// Bytes from one value to the next: per-CPU values and those of device maps are padded to 8.
    pub(crate) stride: usize,
    /// Cleared once the kernel says that this map type has no batch commands.
    batches: AtomicBool,
}

impl RawMap {
    /// Takes an open map after comparing its kind and sizes with its definition.
    pub(crate) fn new(
        fd: OwnedFd,
        spec: &'static TableSpec,
        path: &std::path::Path,
        cpus: usize,
    ) -> Result<Self, Error> {
        let capacity = check(&fd, spec, None, path)?;
        Ok(Self::checked(fd, spec, capacity, cpus))
    }

    /// Takes an open map of known sizes that is the table itself, or one of a table of tables.
    pub(crate) fn checked(fd: OwnedFd, spec: &'static TableSpec, capacity: u32, cpus: usize) -> Self {
        let per_cpu = matches!(spec.kind, TableKind::PerCpuArray | TableKind::PerCpuHash);
        let value = if spec.kind == TableKind::Devices { sizes(spec).1 } else { spec.value_size } as usize;
        Self {
            fd,
            spec,
            capacity,
            values_per_key: if per_cpu { cpus } else { 1 },
            stride: if per_cpu { value.next_multiple_of(8) } else { value },
            batches: AtomicBool::new(true),
        }
    }

    fn key_size(&self) -> usize {
        self.spec.key_size as usize
    }

    /// Bytes of all values of one key.
    pub(crate) fn values_size(&self) -> usize {
        self.stride * self.values_per_key
    }

    fn is_array(&self) -> bool {
        matches!(self.spec.kind, TableKind::Array | TableKind::PerCpuArray)
    }

    /// The error of a failed `action` on this table.
    pub(crate) fn error(&self, action: &'static str, source: io::Error) -> Error {
        Error::Table { action, table: self.spec.name.to_ascii_lowercase(), source }
    }

    /// Reads the values of one key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut values = vec![0; self.values_size()];
        match sys::lookup(self.fd.as_fd(), key, &mut values) {
            Ok(()) => Ok(Some(values)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.error("read", error)),
        }
    }

    /// Adds or replaces entries; `values` has [`Self::values_size`] bytes for each key.
    pub(crate) fn put(&self, keys: &[u8], values: &[u8]) -> Outcome {
        let (key_size, values_size) = (self.key_size(), self.values_size());
        self.run(
            keys.len() / key_size,
            |from, count| {
                let keys = &keys[from * key_size..(from + count) * key_size];
                let values = &values[from * values_size..(from + count) * values_size];
                sys::update_batch(self.fd.as_fd(), keys, values, u32::try_from(count).unwrap_or(u32::MAX))
            },
            |at| {
                let key = &keys[at * key_size..(at + 1) * key_size];
                sys::update(self.fd.as_fd(), key, &values[at * values_size..(at + 1) * values_size])
            },
            |_| false,
        )
    }

    /// Adds entries where there are none yet.
    pub(crate) fn add(&self, keys: &[u8], values: &[u8]) -> Outcome {
        let (key_size, values_size) = (self.key_size(), self.values_size());
        let count = keys.len() / key_size;
        let mut outcome = Outcome::default();
        for at in 0..count {
            let key = &keys[at * key_size..(at + 1) * key_size];
            let value = &values[at * values_size..(at + 1) * values_size];
            match retry_busy(|| sys::add(self.fd.as_fd(), key, value)) {
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => outcome.failed.push((at, error)),
                _ => {}
            }
        }
        outcome.done = count - outcome.failed.len();
        outcome
    }

    /// The map.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Removes entries; those of arrays become zero. What was not there counts as done.
    pub(crate) fn delete(&self, keys: &[u8]) -> Outcome {
        let key_size = self.key_size();
        let count = keys.len() / key_size;
        if self.is_array() {
            return self.put(keys, &vec![0; count * self.values_size()]);
        }
        self.run(
            count,
            |from, count| {
                let keys = &keys[from * key_size..(from + count) * key_size];
                sys::delete_batch(self.fd.as_fd(), keys, u32::try_from(count).unwrap_or(u32::MAX))
            },
            |at| sys::delete(self.fd.as_fd(), &keys[at * key_size..(at + 1) * key_size]),
            |error| error.raw_os_error() == Some(libc::ENOENT),
        )
    }

    /// Runs a batch command over `count` entries and goes on after each entry that fails.
    fn run(
        &self,
        count: usize,
        batch: impl Fn(usize, usize) -> (u32, io::Result<()>),
        single: impl Fn(usize) -> io::Result<()>,
        tolerated: impl Fn(&io::Error) -> bool,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut position = 0;
        while position < count {
            let mut refused = None;
            if self.batches.load(Ordering::Relaxed) {
                let (done, result) = batch(position, BATCH.min(count - position));
                position += done as usize;
                match result {
                    Ok(()) => continue,
                    Err(error) => refused = Some(error),
                }
                if position >= count {
                    break;
                }
            }
            // Either there are no batches, or the entry at `position` stopped one. Some refusals are not the entry's.
            let failure = match refused {
                Some(error) if !is_unsupported(&error) && !is_busy(&error) => Some(error),
                refused => {
                    let failure = retry_busy(|| single(position)).err();
                    if failure.is_none() && refused.is_some_and(|error| is_unsupported(&error)) {
                        self.batches.store(false, Ordering::Relaxed);
                    }
                    failure
                }
            };
            if let Some(error) = failure.filter(|error| !tolerated(error)) {
                outcome.failed.push((position, error));
            }
            position += 1;
        }
        outcome.done = count - outcome.failed.len();
        outcome
    }

    /// Hands every entry to `visit`: the key and all its values. Entries added or removed meanwhile may or may not
    /// be seen.
    pub(crate) fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error> {
        if self.batches.load(Ordering::Relaxed) {
            match self.scan_batches(visit) {
                Err(error) if is_unsupported(&error) => self.batches.store(false, Ordering::Relaxed),
                other => return other.map_err(|error| self.error("read", error)),
            }
        }
        self.scan_keys(visit).map_err(|error| self.error("read", error))
    }

    fn scan_batches(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let batch = BATCH.min(usize::try_from(self.capacity).unwrap_or(BATCH)).max(64);
        let mut position = Position::default();
        while !self.scan_part(&mut position, batch, visit)? {}
        Ok(())
    }

    /// Hands about `entries` entries from `position` on to `visit`, and moves it; whether the end was reached. Only for map
    /// types with batches.
    pub(crate) fn scan_part(
        &self,
        position: &mut Position,
        entries: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> io::Result<bool> {
        let (key_size, values_size) = (self.key_size(), self.values_size());
        // The position in a hash is a bucket number of 4 bytes, elsewhere a key.
        let cursor_size = key_size.max(8);
        let Position { cursor, keys, values } = position;
        let mut batch = entries.max(keys.len() / key_size);
        loop {
            keys.resize(batch * key_size, 0);
            values.resize(batch * values_size, 0);
            let count = u32::try_from(batch).unwrap_or(u32::MAX);
            match sys::lookup_batch(self.fd.as_fd(), cursor, cursor_size, keys, values, count) {
                Ok((read, end)) => {
                    let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(values_size));
                    for (key, value) in entries.take(read as usize) {
                        visit(key, value);
                    }
                    if end {
                        *cursor = None;
                    }
                    return Ok(end);
                }
                // One bucket holds more entries than the buffer.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => batch *= 2,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn scan_keys(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut key: Option<Vec<u8>> = None;
        let mut next = vec![0; self.key_size()];
        let mut values = vec![0; self.values_size()];
        // A key removed meanwhile makes the kernel start over: the bound ends a walk that would never do.
        for _ in 0..=u64::from(self.capacity) * 2 {
            if !sys::next_key(self.fd.as_fd(), key.as_deref(), &mut next)? {
                return Ok(());
            }
            match sys::lookup(self.fd.as_fd(), &next, &mut values) {
                Ok(()) => visit(&next, &values),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
            key = Some(next.clone());
        }
        Ok(())
    }

    /// Bytes of kernel memory that the map takes, as the kernel accounts them.
    pub(crate) fn memory(&self) -> Result<u64, Error> {
        memory(&self.fd).map_err(|error| self.error("measure", error))
    }
}

/// Bytes of kernel memory that a map takes.
pub(crate) fn memory(map: &OwnedFd) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR))
}

fn retry_busy(mut action: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 0..BUSY_RETRIES {
        match action() {
            Err(error) if is_busy(&error) => std::thread::yield_now(),
            other => return other,
        }
    }
    action()
}

/// Compares an open map with its definition (and its capacity with `capacity`, if given); gives its capacity.
pub(crate) fn check(
    fd: &OwnedFd,
    spec: &'static TableSpec,
    capacity: Option<u32>,
    path: &std::path::Path,
) -> Result<u32, Error> {
    let info = sys::map_info(fd.as_fd()).map_err(|source| Error::Path {
        action: "examine",
        path: path.to_path_buf(),
        source,
    })?;
    let wanted_flags = map_flags(spec.kind);
    let (key_size, value_size) = sizes(spec);
    // A read-only descriptor's own flag is not the map's; others do not concern us.
    let flags = info.map_flags & NO_PREALLOC;
    let differences = [
        ("type", info.type_, map_type(spec.kind) as u32),
        ("key size", info.key_size, key_size),
        ("value size", info.value_size, value_size),
        ("flags", flags, wanted_flags),
        ("capacity", info.max_entries, capacity.unwrap_or(info.max_entries)),
    ];
    for (what, found, wanted) in differences {
        if found != wanted {
            return Err(Error::Layout { path: path.to_path_buf(), what, found, wanted });
        }
    }
    Ok(info.max_entries)
}

/// `BPF_F_NO_PREALLOC` of `linux/bpf.h`.
const NO_PREALLOC: u32 = 1;

/// Bytes of a key and a value of the map itself. Values of a device map have a second word, for a program that we do not
/// use: aya creates them so, and zero means none. A table of tables has slots for other maps.
pub(crate) fn sizes(spec: &TableSpec) -> (u32, u32) {
    match spec.kind {
        TableKind::Devices => (spec.key_size, 8),
        TableKind::LruByPort => (4, 4),
        _ => (spec.key_size, spec.value_size),
    }
}

/// The kernel's number of a kind of table.
pub(crate) fn map_type(kind: TableKind) -> bpf_map_type {
    match kind {
        TableKind::Hash => bpf_map_type::BPF_MAP_TYPE_HASH,
        TableKind::PerCpuHash => bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH,
        TableKind::LongestPrefix => bpf_map_type::BPF_MAP_TYPE_LPM_TRIE,
        TableKind::Array => bpf_map_type::BPF_MAP_TYPE_ARRAY,
        TableKind::PerCpuArray => bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY,
        TableKind::Devices => bpf_map_type::BPF_MAP_TYPE_DEVMAP_HASH,
        TableKind::LruByPort => bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS,
    }
}

/// The creation flags of a kind of table.
pub(crate) fn map_flags(kind: TableKind) -> u32 {
    match kind {
        TableKind::Hash | TableKind::PerCpuHash | TableKind::LongestPrefix => NO_PREALLOC,
        TableKind::Array | TableKind::PerCpuArray | TableKind::Devices | TableKind::LruByPort => 0,
    }
}
