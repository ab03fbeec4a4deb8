//! Typed handles of tables: what a table holds is in the type, how it is reached is in [`crate::raw`].

use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use ncm_common::Plain;
use ncm_common::tables::{Count, PolicyCount, PortTraffic, TableSpec};

use crate::Error;
use crate::raw::{BATCH, Outcome, Position, RawMap};

/// A table with one value per key. Cloning gives another handle of the same table; handles may be used from several
/// threads at once (the kernel orders the writes to an entry).
pub struct Table<K, V> {
    map: Arc<RawMap>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { map: Arc::clone(&self.map), types: PhantomData }
    }
}

impl<K, V> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Table").field(&self.map.spec.name).finish()
    }
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Takes an open map after comparing it with the table's definition.
    pub(crate) fn open(
        fd: OwnedFd,
        spec: &'static TableSpec,
        path: &Path,
        cpus: usize,
    ) -> Result<Self, Error> {
        Ok(Self::new(RawMap::new(fd, spec, path, cpus)?))
    }

    /// Wraps a map whose sizes were compared with its definition.
    pub(crate) fn new(map: RawMap) -> Self {
        // The definition names the same types; if not, every table would be read wrongly.
        assert_eq!(map.spec.key_size as usize, size_of::<K>(), "{}: key", map.spec.name);
        assert_eq!(map.spec.value_size as usize, size_of::<V>(), "{}: value", map.spec.name);
        Self { map: Arc::new(map), types: PhantomData }
    }

    /// The table's definition.
    #[must_use]
    pub fn spec(&self) -> &'static TableSpec {
        self.map.spec
    }

    /// How many entries the table may hold.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.map.capacity
    }

    /// Bytes of kernel memory that the table takes now.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel's figure cannot be read.
    pub fn memory_bytes(&self) -> Result<u64, Error> {
        self.map.memory()
    }

    /// The value of `key`, if there is one.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses the look-up.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        Ok(self.map.get(key.as_bytes())?.as_deref().and_then(value))
    }

    /// Adds or replaces one entry.
    ///
    /// # Errors
    /// [`Error::Table`] with what the kernel said: `E2BIG` when the table is full.
    pub fn put(&self, key: &K, value: &V) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(self.map.stride);
        self.push(&mut bytes, value);
        self.one("write", self.map.put(key.as_bytes(), &bytes))
    }

    /// Removes one entry (of an array: makes it zero). Not being there is no error.
    ///
    /// # Errors
    /// [`Error::Table`] with what the kernel said.
    pub fn delete(&self, key: &K) -> Result<(), Error> {
        self.one("delete from", self.map.delete(key.as_bytes()))
    }

    /// Appends a value as the kernel has it.
    fn push(&self, bytes: &mut Vec<u8>, value: &V) {
        bytes.extend_from_slice(value.as_bytes());
        bytes.resize(bytes.len() + self.map.stride - size_of::<V>(), 0);
    }

    fn one(&self, action: &'static str, outcome: Outcome) -> Result<(), Error> {
        match outcome.failed.into_iter().next() {
            None => Ok(()),
            Some((_, source)) => Err(self.map.error(action, source)),
        }
    }

    /// Adds or replaces entries in as few system calls as the kernel allows. Entries that fail do not keep the others
    /// from being written; the outcome lists them by their position in the iteration.
    pub fn put_batch(&self, entries: impl IntoIterator<Item = (K, V)>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut entries = entries.into_iter();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.clear();
            values.clear();
            for (key, value) in entries.by_ref().take(BATCH) {
                keys.extend_from_slice(key.as_bytes());
                self.push(&mut values, &value);
            }
            if keys.is_empty() {
                return outcome;
            }
            outcome.append(self.map.put(&keys, &values));
        }
    }

    /// Removes entries (of arrays: makes them zero). Those that are not there count as done.
    pub fn delete_batch(&self, keys: impl IntoIterator<Item = K>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut entries = keys.into_iter();
        let mut keys = Vec::new();
        loop {
            keys.clear();
            for key in entries.by_ref().take(BATCH) {
                keys.extend_from_slice(key.as_bytes());
            }
            if keys.is_empty() {
                return outcome;
            }
            outcome.append(self.map.delete(&keys));
        }
    }

    /// Hands every entry to `visit`, unused slots of arrays (all zero) included. What is written meanwhile may or
    /// may not be seen.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on.
    pub fn for_each(&self, mut visit: impl FnMut(K, V)) -> Result<(), Error> {
        self.map.scan(&mut |key, value| {
            if let (Some(key), Some(value)) = (K::from_bytes(key), self::value(value)) {
                visit(key, value);
            }
        })
    }

    /// Hands about `entries` entries to `visit`, beginning where `position` is, which moves on; whether the end was reached
    /// (then the next call begins anew). An entry that is there during the whole walk is seen.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on, or has no batches for this kind of table.
    pub fn for_some(
        &self,
        position: &mut Position,
        entries: usize,
        mut visit: impl FnMut(K, V),
    ) -> Result<bool, Error> {
        let mut visit = |key: &[u8], value: &[u8]| {
            if let (Some(key), Some(value)) = (K::from_bytes(key), self::value(value)) {
                visit(key, value);
            }
        };
        self.map.scan_part(position, entries, &mut visit).map_err(|error| self.map.error("read", error))
    }

    /// Every entry, except the unused slots (all zero) of arrays.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on.
    pub fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        let is_array = self.map.spec.kind == ncm_common::tables::TableKind::Array;
        let unused = V::zeroed();
        let mut entries = Vec::new();
        self.for_each(|key, value| {
            if !is_array || value != unused {
                entries.push((key, value));
            }
        })?;
        Ok(entries)
    }

    /// How many entries there are, unused slots (all zero) of arrays not counted.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on.
    pub fn count(&self) -> Result<u64, Error> {
        let is_array = self.map.spec.kind == ncm_common::tables::TableKind::Array;
        let unused = V::zeroed();
        let mut count = 0;
        self.for_each(|_, value| count += u64::from(!is_array || value != unused))?;
        Ok(count)
    }
}

/// A value at the start of what the kernel keeps for it.
fn value<V: Plain>(bytes: &[u8]) -> Option<V> {
    bytes.get(..size_of::<V>()).and_then(V::from_bytes)
}

/// Values of several CPUs that make one by addition.
pub trait Sum: Plain {
    /// Adds what another CPU counted.
    fn add(&mut self, other: &Self);
}

impl Sum for Count {
    fn add(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

impl Sum for PolicyCount {
    fn add(&mut self, other: &Self) {
        self.allowed = self.allowed.wrapping_add(other.allowed);
        self.denied = self.denied.wrapping_add(other.denied);
    }
}

impl Sum for PortTraffic {
    fn add(&mut self, other: &Self) {
        self.received.add(&other.received);
        self.sent.add(&other.sent);
    }
}

/// A table that each CPU counts in by itself; reading gives the sum.
pub struct CounterTable<K, V> {
    map: Arc<RawMap>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for CounterTable<K, V> {
    fn clone(&self) -> Self {
        Self { map: Arc::clone(&self.map), types: PhantomData }
    }
}

impl<K, V> std::fmt::Debug for CounterTable<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CounterTable").field(&self.map.spec.name).finish()
    }
}

impl<K: Plain, V: Sum> CounterTable<K, V> {
    /// Takes an open map after comparing it with the table's definition.
    pub(crate) fn open(
        fd: OwnedFd,
        spec: &'static TableSpec,
        path: &Path,
        cpus: usize,
    ) -> Result<Self, Error> {
        let map = RawMap::new(fd, spec, path, cpus)?;
        assert_eq!(map.spec.key_size as usize, size_of::<K>(), "{}: key", map.spec.name);
        assert_eq!(map.spec.value_size as usize, size_of::<V>(), "{}: value", map.spec.name);
        Ok(Self { map: Arc::new(map), types: PhantomData })
    }

    /// The table's definition.
    #[must_use]
    pub fn spec(&self) -> &'static TableSpec {
        self.map.spec
    }

    /// How many entries the table may hold.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.map.capacity
    }

    /// Bytes of kernel memory that the table takes now.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel's figure cannot be read.
    pub fn memory_bytes(&self) -> Result<u64, Error> {
        self.map.memory()
    }

    fn sum(&self, values: &[u8]) -> V {
        let mut total = V::zeroed();
        for value in values.chunks_exact(self.map.stride) {
            if let Some(value) = self::value(value) {
                total.add(&value);
            }
        }
        total
    }

    /// The sum over all CPUs for `key`, if there is an entry.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses the look-up.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        Ok(self.map.get(key.as_bytes())?.map(|values| self.sum(&values)))
    }

    /// How many entries have counted something.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on.
    pub fn count(&self) -> Result<u64, Error> {
        Ok(self.entries()?.len() as u64)
    }

    /// Every entry that has counted something, as sums over all CPUs.
    ///
    /// # Errors
    /// [`Error::Table`] if the kernel refuses to read on.
    pub fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        let nothing = V::zeroed();
        let mut entries = Vec::new();
        self.map.scan(&mut |key, values| {
            let total = self.sum(values);
            if let Some(key) = K::from_bytes(key).filter(|_| total != nothing) {
                entries.push((key, total));
            }
        })?;
        Ok(entries)
    }

    /// Sets counters back to zero: before an index is given to something else.
    pub fn reset(&self, keys: impl IntoIterator<Item = K>) -> Outcome {
        let mut bytes = Vec::new();
        for key in keys {
            bytes.extend_from_slice(key.as_bytes());
        }
        self.map.delete(&bytes)
    }
}
