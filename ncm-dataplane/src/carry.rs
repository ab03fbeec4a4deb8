//! Carrying entries over from one set of tables to another. Tables that are the same in both are shared: the same map is pinned
//! twice. All others are filled from their predecessors, field by field.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ncm_common::tables::{TABLES, TableKind, TableSpec, table};

use crate::pin::{Set, path_error};
use crate::raw::{BATCH, RawMap};
use crate::shapes::{self, Moves, Shape, Shapes};
use crate::tables::{Capacities, Tables, possible_cpus};
use crate::{Error, by_port, raw, sys};

/// Tables that count, or that hold counts: carried over at the last moment, so that nothing is counted twice and little is lost.
const COUNTS: [&str; 7] =
    ["PORT_FLOWS", "POLICY_COUNTS", "DROPS", "PORT_DROPS", "PORT_TRAFFIC", "COUNTERS", "LIMITS"];

/// The tables of flows: programs themselves carry them over.
const FLOWS: &str = "FLOWS";
const HALF_OPEN: &str = "HALF_OPEN";

/// A set of tables of which it is known what they are made of.
#[derive(Debug)]
pub(crate) struct KnownSet {
    pub(crate) set: Set,
    pub(crate) shapes: Shapes,
}

/// A table to be carried over.
struct Pair {
    from: RawMap,
    to: RawMap,
    key: Moves,
    value: Moves,
}

impl KnownSet {
    /// Opens a set with the description that is kept beside it; older versions of this layout kept none.
    pub(crate) fn open(set: Set, instance: &str) -> Result<Self, Error> {
        let shapes = match shapes::kept(&set.fields()) {
            Some(shapes) => shapes,
            None if set.layout == ncm_common::tables::LAYOUT_VERSION => shapes::own(),
            None => {
                return Err(Error::OtherLayout {
                    instance: instance.to_owned(),
                    found: set.layout,
                    reason: "they come without a description".to_owned(),
                });
            }
        };
        Ok(Self { set, shapes })
    }

    /// A set of this version's.
    pub(crate) fn own(set: Set) -> Self {
        Self { set, shapes: shapes::own() }
    }

    fn shape(&self, spec: &TableSpec) -> Option<&Shape> {
        self.shapes.get(spec.name)
    }

    /// A table's map; `None` if the set has no such table.
    fn map(&self, spec: &TableSpec) -> Result<Option<OwnedFd>, Error> {
        let path = self.set.maps().join(spec.name);
        if !path.exists() {
            return Ok(None);
        }
        sys::get_pinned(&path, false).map(Some).map_err(path_error("open", &path))
    }

    /// Whether a table is as this version and this configuration would have it; one that is not there yet is.
    fn is_same(&self, spec: &'static TableSpec, capacities: &Capacities) -> Result<bool, Error> {
        let Some(map) = self.map(spec)? else { return Ok(true) };
        if self.shape(spec) != Some(&Shape::of(spec)) {
            return Ok(false);
        }
        let path = self.set.maps().join(spec.name);
        if raw::check(&map, spec, None, &path)? != capacities.of(spec) {
            return Ok(false);
        }
        Ok(spec.name != HALF_OPEN || self.half_open_is_same(&map, spec, capacities)?)
    }

    /// Whether ports' own tables have as many entries as they are to have.
    fn half_open_is_same(
        &self,
        outer: &OwnedFd,
        spec: &TableSpec,
        capacities: &Capacities,
    ) -> Result<bool, Error> {
        let read = table_error("read", spec);
        let ports = sys::map_info(outer.as_fd()).map_err(&read)?.max_entries;
        // One tells of all: they are exchanged together.
        match by_port::inner_tables(outer, ports).map_err(&read)?.first() {
            Some((_, inner)) => {
                Ok(sys::map_info(inner.as_fd()).map_err(&read)?.max_entries == capacities.half_open())
            }
            None => Ok(true),
        }
    }

    /// Whether the set is what this version and this configuration would make.
    pub(crate) fn is_wanted(&self, capacities: &Capacities) -> Result<bool, Error> {
        for spec in TABLES {
            if !self.is_same(spec, capacities)? {
                return Ok(false);
            }
        }
        Ok(self.set.layout == ncm_common::tables::LAYOUT_VERSION)
    }

    /// Pins in `to` the tables that both sets have alike; tells whether tables of flows are among those that differ.
    pub(crate) fn share(&self, to: &Set, capacities: &Capacities) -> Result<bool, Error> {
        let mut differ = false;
        for spec in TABLES {
            if !self.is_same(spec, capacities)? {
                differ |= [FLOWS, HALF_OPEN].contains(&spec.name);
            } else if let Some(map) = self.map(spec)? {
                let path = to.maps().join(spec.name);
                sys::pin(map.as_fd(), &path).map_err(path_error("pin a table at", &path))?;
            }
        }
        Ok(differ)
    }

    /// The table in both sets; `None` if it is the same one, or new.
    fn pair(&self, to: &Self, spec: &'static TableSpec) -> Result<Option<Pair>, Error> {
        let (Some(from), Some(new)) = (self.map(spec)?, to.map(spec)?) else { return Ok(None) };
        let (Some(shape), Some(new_shape)) = (self.shape(spec), to.shape(spec)) else { return Ok(None) };
        if id(&from)? == id(&new)? {
            return Ok(None);
        }
        // A table that has become another kind of table begins anew.
        let (Some(from_spec), Some(to_spec)) = (shape.spec(spec), new_shape.spec(spec)) else {
            return Ok(None);
        };
        let cpus = possible_cpus()?;
        Ok(Some(Pair {
            from: RawMap::new(from, from_spec, &self.set.maps().join(spec.name), cpus)?,
            to: RawMap::new(new, to_spec, &to.set.maps().join(spec.name), cpus)?,
            key: shapes::moves(&shape.key, &new_shape.key),
            value: shapes::moves(&shape.value, &new_shape.value),
        }))
    }

    /// Fills the tables of `to` that are not shared, but those that count and those of flows.
    pub(crate) fn fill(&self, to: &Self) -> Result<(), Error> {
        for spec in TABLES {
            if COUNTS.contains(&spec.name) || [FLOWS, HALF_OPEN].contains(&spec.name) {
                continue;
            }
            if let Some(pair) = self.pair(to, spec)? {
                pair.copy(spec.kind == TableKind::Devices)?;
            }
        }
        Ok(())
    }

    /// Whether the flows fit into the table that they are to go to.
    pub(crate) fn expect_room(&self, tables: &Tables) -> Result<(), Error> {
        let Some(spec) = table(FLOWS) else { return Ok(()) };
        let (Some(map), Some(shape)) = (self.map(spec)?, self.shape(spec)) else { return Ok(()) };
        let Some(old) = shape.spec(spec) else { return Ok(()) };
        let from = RawMap::new(map, old, &self.set.maps().join(spec.name), 1)?;
        if from.capacity <= tables.flows.capacity() {
            return Ok(());
        }
        let mut count = 0u32;
        from.scan(&mut |_, _| count += 1)?;
        if count > tables.flows.capacity() {
            return Err(no_room(spec, tables.flows.capacity()));
        }
        Ok(())
    }

    /// Gives ports their tables of half-open flows: those that they have, where these are of the right kind, or new ones.
    pub(crate) fn share_half_open(&self, tables: &Tables) -> Result<(), Error> {
        let spec = tables.half_open.spec();
        let (Some(outer), Some(shape)) = (self.map(spec)?, self.shape(spec)) else { return Ok(()) };
        let failed = table_error("carry over", spec);
        if id(&outer)? == id(tables.half_open.outer())? || *shape != Shape::of(spec) {
            return Ok(());
        }
        let ports = sys::map_info(outer.as_fd()).map_err(&failed)?.max_entries;
        for (port, inner) in by_port::inner_tables(&outer, ports).map_err(&failed)? {
            let entries = sys::map_info(inner.as_fd()).map_err(&failed)?.max_entries;
            if entries == tables.half_open.entries() && port < tables.half_open.capacity() {
                let fd = inner.as_raw_fd().to_ne_bytes();
                sys::update(tables.half_open.outer().as_fd(), &port.to_ne_bytes(), &fd).map_err(&failed)?;
            }
        }
        Ok(())
    }

    /// Carries counts over.
    pub(crate) fn counts(&self, to: &Self) -> Result<(), Error> {
        for spec in TABLES.iter().filter(|spec| COUNTS.contains(&spec.name)) {
            let Some(pair) = self.pair(to, spec)? else { continue };
            match pair.copy(true) {
                // Counts of what is gone may be too many: others matter more than these.
                Err(Error::NoRoom { table, .. }) => tracing::warn!(table, "not all counts fit any more"),
                other => other?,
            }
        }
        Ok(())
    }

    /// Carries over the flows that programs have not yet; how many there were.
    pub(crate) fn flows(&self, to: &Self) -> Result<u64, Error> {
        let (Some(flows), Some(half_open)) = (table(FLOWS), table(HALF_OPEN)) else { return Ok(0) };
        let mut count = 0;
        if let Some(pair) = self.pair(to, flows)? {
            count += pair.add()?;
        }
        let Some(pair) = self.pair(to, half_open)? else { return Ok(count) };
        let failed = table_error("carry over", half_open);
        let inner = |outer: &RawMap| by_port::inner_tables(outer.fd(), outer.capacity).map_err(&failed);
        let mut new = inner(&pair.to)?.into_iter().collect::<std::collections::BTreeMap<_, _>>();
        for (port, from) in inner(&pair.from)? {
            let Some(to) = new.remove(&port) else { continue };
            if id(&from)? == id(&to)? {
                continue;
            }
            let capacity = |map: &OwnedFd| sys::map_info(map.as_fd()).map(|info| info.max_entries);
            let (from_capacity, to_capacity) =
                (capacity(&from).map_err(&failed)?, capacity(&to).map_err(&failed)?);
            let (key, value) = (pair.key.clone(), pair.value.clone());
            let pair = Pair {
                from: RawMap::checked(from, pair.from.spec, from_capacity, 1),
                to: RawMap::checked(to, pair.to.spec, to_capacity, 1),
                key,
                value,
            };
            count += pair.add()?;
        }
        Ok(count)
    }
}

impl Pair {
    /// Hands on all entries, converted, in batches.
    fn each(&self, mut batch: impl FnMut(&[u8], &[u8])) -> Result<u64, Error> {
        let (key_size, stride) = (self.to.spec.key_size as usize, self.to.stride);
        let values_size = self.to.values_size();
        let is_array = matches!(self.to.spec.kind, TableKind::Array | TableKind::PerCpuArray);
        let (mut keys, mut values, mut count) = (Vec::new(), Vec::new(), 0);
        self.from.scan(&mut |key, value| {
            // Unused slots.
            if is_array && value.iter().all(|byte| *byte == 0) {
                return;
            }
            count += 1;
            let (key_at, value_at) = (keys.len(), values.len());
            keys.resize(key_at + key_size, 0);
            values.resize(value_at + values_size, 0);
            shapes::convert(&self.key, key, &mut keys[key_at..]);
            let parts = value.chunks_exact(self.from.stride);
            for (part, to) in parts.zip(values[value_at..].chunks_exact_mut(stride)) {
                shapes::convert(&self.value, part, to);
            }
            if keys.len() == BATCH * key_size {
                batch(&keys, &values);
                keys.clear();
                values.clear();
            }
        })?;
        batch(&keys, &values);
        Ok(count)
    }

    /// Writes all entries. `leniently`: those that the kernel refuses for another reason than want of room do not matter.
    fn copy(&self, leniently: bool) -> Result<(), Error> {
        let mut refused = None;
        let is_array = matches!(self.to.spec.kind, TableKind::Array | TableKind::PerCpuArray);
        self.each(|keys, values| {
            let failed = self.to.put(keys, values).failed;
            refused = refused.take().or(failed.into_iter().next());
        })?;
        match refused {
            None => Ok(()),
            Some((_, error)) if is_full(&error) || is_array => Err(no_room(self.to.spec, self.to.capacity)),
            Some(_) if leniently => Ok(()),
            Some((_, error)) => Err(self.to.error("fill", error)),
        }
    }

    /// Adds the entries that are not there yet; how many there were in all. What finds no room is forgotten: there is less room than
    /// before on purpose, and its next packet may begin it again.
    fn add(&self) -> Result<u64, Error> {
        let mut refused = 0;
        let count = self.each(|keys, values| refused += self.to.add(keys, values).failed.len())?;
        if refused > 0 {
            let table = self.to.spec.name.to_ascii_lowercase();
            tracing::warn!(table, flows = refused, "flows found no room as they were carried over");
        }
        Ok(count)
    }
}

fn id(map: &OwnedFd) -> Result<u32, Error> {
    let failed = |source| Error::Table { action: "examine", table: "?".to_owned(), source };
    Ok(sys::map_info(map.as_fd()).map_err(failed)?.id)
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}

fn no_room(spec: &TableSpec, capacity: u32) -> Error {
    Error::NoRoom { table: spec.name.to_ascii_lowercase(), capacity }
}

fn table_error(action: &'static str, spec: &TableSpec) -> impl Fn(std::io::Error) -> Error {
    let table = spec.name.to_ascii_lowercase();
    move |source| Error::Table { action, table: table.clone(), source }
}

/// How programs of this version read and write the flows of a set of another; `None` if they cannot.
pub(crate) fn conversion(old: &KnownSet) -> Option<ncm_common::conversion::Conversion> {
    let ours = table(FLOWS).map(Shape::of)?;
    shapes::conversion(old.shapes.get(FLOWS)?, &ours)
}
