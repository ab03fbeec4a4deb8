//! Reads an instance's tables into the messages of `ncm.v1`, whether the agent does it or the tool does.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ncm_common::Plain;
use ncm_common::drops::DropReason;
use ncm_common::tables::{TABLES, TableKind, name_kinds};
use ncm_dataplane::{CounterTable, OfPort, PortTables, Reader, Sum, Table, Tables};

use super::columns::{KeyError, Value};
use super::describe::{Description, describe, descriptions};
use super::documents::kind_text;
use super::keys::reason_text;
use super::names::Names;
use crate::ncm_v1;

/// Rows in one message of a dump.
const BATCH: usize = 512;

/// Why a table was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such table.
    #[error("there is no table `{name}`; there are: {}", table_names())]
    NoTable {
        /// The name as given.
        name: String,
    },
    /// The key's text is not a key of that table.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What the entries are to be limited to is no condition on columns of that table.
    #[error("`{condition}` is not `column=value` with columns of {table}: {columns}")]
    Condition {
        /// The condition as given.
        condition: String,
        /// The table.
        table: String,
        /// Its columns.
        columns: String,
    },
    /// There is no such entry.
    #[error("the table {table} has no entry {key}")]
    NoEntry {
        /// The table.
        table: String,
        /// The key.
        key: String,
    },
    /// There is no port of that id.
    #[error("no port `{0}` is in the tables; `ncmctl map dump names` lists those that are")]
    NoPort(String),
    /// The pinned tables could not be read.
    #[error(transparent)]
    Dataplane(#[from] ncm_dataplane::Error),
}

fn table_names() -> String {
    TABLES.iter().map(|spec| spec.name.to_ascii_lowercase()).collect::<Vec<_>>().join(", ")
}

/// Shows the tables of one instance.
pub struct TableReader {
    tables: Tables,
}

impl TableReader {
    /// Shows these tables.
    #[must_use]
    pub fn new(tables: Tables) -> Self {
        Self { tables }
    }

    /// Opens the pinned tables of `instance` below the bpffs at `bpffs`, for reading only.
    ///
    /// # Errors
    ///
    /// [`ReadError::Dataplane`] if nothing is pinned there, or tables of another layout.
    pub fn open(bpffs: &Path, instance: &str) -> Result<Self, ReadError> {
        Ok(Self::new(Reader::open(bpffs, instance)?.tables().clone()))
    }

    /// The names that the tables are shown with.
    ///
    /// # Errors
    ///
    /// [`ReadError::Dataplane`] if the table of names cannot be read.
    pub fn names(&self) -> Result<Names, ReadError> {
        Ok(Names::new(self.tables.names.entries()?, interfaces()))
    }

    /// What every table is, with its fill.
    ///
    /// # Errors
    ///
    /// [`ReadError::Dataplane`] if a table cannot be read.
    pub fn list(&self) -> Result<Vec<ncm_v1::Table>, ReadError> {
        let entries: HashMap<&str, u64> =
            self.tables.counts()?.into_iter().map(|(spec, entries)| (spec.name, entries)).collect();
        let memory: HashMap<&str, (u64, u32)> = self
            .tables
            .memory()?
            .into_iter()
            .map(|(spec, memory, capacity)| (spec.name, (memory, capacity)))
            .collect();
        let tables = descriptions().into_iter().map(|description| {
            let name = description.spec.name;
            let (memory, capacity) = memory.get(name).copied().unwrap_or_default();
            table_message(&description, entries.get(name).copied().unwrap_or_default(), capacity, memory)
        });
        Ok(tables.collect())
    }

    /// Every entry of the table of that name that meets all the conditions `only` (`column=value`), in batches; with
    /// `include_empty` also unused slots and zero counters. Stops early when `take` says that it wants no more.
    ///
    /// # Errors
    ///
    /// [`ReadError::NoTable`], [`ReadError::Condition`], or [`ReadError::Dataplane`] if the table cannot be read.
    pub fn dump(
        &self,
        name: &str,
        include_empty: bool,
        only: &[String],
        take: &mut dyn FnMut(ncm_v1::DumpTableReply) -> bool,
    ) -> Result<(), ReadError> {
        let (description, table) = self.find(name)?;
        let conditions = Conditions::new(only, &description)?;
        let names = self.names()?;
        let columns = strings(&description.columns());
        let mut wanted = take(ncm_v1::DumpTableReply { columns, rows: Vec::new() });
        let mut rows = Vec::new();
        table.scan(&mut |key, value| {
            if !wanted || (!include_empty && description.is_empty(value)) {
                return;
            }
            rows.extend(row(&description, key, value, &names).filter(|row| conditions.hold(row)));
            if rows.len() >= BATCH {
                let rows = std::mem::take(&mut rows);
                wanted = take(ncm_v1::DumpTableReply { columns: Vec::new(), rows });
            }
        })?;
        if wanted && !rows.is_empty() {
            take(ncm_v1::DumpTableReply { columns: Vec::new(), rows });
        }
        Ok(())
    }

    /// The entry under that key in text. In a longest-prefix table: the entry that covers the key most closely, as the
    /// packet path finds it, shown under its own key.
    ///
    /// # Errors
    ///
    /// [`ReadError::NoTable`], [`ReadError::Key`], [`ReadError::NoEntry`], or [`ReadError::Dataplane`].
    pub fn entry(&self, name: &str, key: &str) -> Result<ncm_v1::GetEntryReply, ReadError> {
        let (description, table) = self.find(name)?;
        let names = self.names()?;
        let bytes = description.parse_key(key, &names)?;
        let missing = || ReadError::NoEntry { table: description.name(), key: key.to_owned() };
        let found = if description.spec.kind == TableKind::LongestPrefix {
            closest(table, &bytes)?
        } else {
            table.get(&bytes)?.map(|value| (bytes, value))
        };
        let (key, value) = found.ok_or_else(missing)?;
        let unused = description.spec.kind == TableKind::Array && description.is_empty(&value);
        let row = row(&description, &key, &value, &names).filter(|_| !unused).ok_or_else(missing)?;
        Ok(ncm_v1::GetEntryReply { columns: strings(&description.columns()), row: Some(row) })
    }

    /// Drops by reason, and by port and reason; `port` limits the latter to the port of that id, and the totals to its
    /// drops.
    ///
    /// # Errors
    ///
    /// [`ReadError::NoPort`], or [`ReadError::Dataplane`].
    pub fn drops(&self, port: &str) -> Result<ncm_v1::GetDropsReply, ReadError> {
        let names = self.names()?;
        let only = if port.is_empty() {
            None
        } else {
            let unknown = |_| ReadError::NoPort(port.to_owned());
            Some(names.parse(name_kinds::PORT, port).map_err(unknown)?)
        };
        let mut ports = Vec::new();
        for (key, count) in self.tables.port_drops.entries()? {
            if only.is_some_and(|port| port != key.port) || (count.packets == 0 && count.bytes == 0) {
                continue;
            }
            ports.push(ncm_v1::DropCount {
                reason: reason_text(key.reason),
                packets: count.packets,
                bytes: count.bytes,
                port: names.get(name_kinds::PORT, key.port).unwrap_or_default().to_owned(),
                port_index: key.port,
            });
        }
        ports.sort_by(|a, b| (&a.port, a.port_index, &a.reason).cmp(&(&b.port, b.port_index, &b.reason)));
        let mut reasons = Vec::new();
        if only.is_none() {
            for (number, count) in self.tables.drops.entries()? {
                let known = DropReason::from_number(number).is_some();
                if known || count.packets > 0 {
                    reasons.push(ncm_v1::DropCount {
                        reason: reason_text(number),
                        packets: count.packets,
                        bytes: count.bytes,
                        ..ncm_v1::DropCount::default()
                    });
                }
            }
        } else {
            reasons.extend(ports.iter().map(|count| ncm_v1::DropCount {
                port: String::new(),
                port_index: 0,
                ..count.clone()
            }));
        }
        let policy = self.policy(only, &names)?;
        Ok(ncm_v1::GetDropsReply { reasons, ports, read_at_ns: monotonic_ns(), policy })
    }

    /// Decisions by policy, of the one port or of all.
    fn policy(&self, only: Option<u32>, names: &Names) -> Result<Vec<ncm_v1::PolicyCount>, ReadError> {
        let counts = self.tables.policy_counts.entries()?.into_iter();
        let counts = counts.filter(|(key, _)| only.is_none_or(|port| port == key.port));
        let name = |kind, index| names.get(kind, index).unwrap_or_default().to_owned();
        let mut policy: Vec<_> = counts
            .map(|(key, count)| ncm_v1::PolicyCount {
                port: name(name_kinds::PORT, key.port),
                port_index: key.port,
                groups: name(name_kinds::SET, key.set >> 1).replace('+', ","),
                direction: if key.set & 1 == 0 { "egress" } else { "ingress" }.to_owned(),
                allowed: count.allowed,
                denied: count.denied,
            })
            .collect();
        policy.sort_by(|a, b| {
            (&a.port, a.port_index, &a.groups, &a.direction).cmp(&(
                &b.port,
                b.port_index,
                &b.groups,
                &b.direction,
            ))
        });
        Ok(policy)
    }

    /// Decisions by policy of all ports together, by security groups and direction.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn policy_by_groups(&self) -> Result<Vec<ncm_v1::PolicyCount>, ReadError> {
        let mut sums: BTreeMap<(String, String), ncm_v1::PolicyCount> = BTreeMap::new();
        for count in self.policy(None, &self.names()?)? {
            let sum = sums.entry((count.groups.clone(), count.direction.clone())).or_default();
            sum.allowed += count.allowed;
            sum.denied += count.denied;
            (sum.groups, sum.direction) = (count.groups, count.direction);
        }
        Ok(sums.into_values().collect())
    }

    fn find(&self, name: &str) -> Result<(Description, &dyn AnyTable), ReadError> {
        let no_table = || ReadError::NoTable { name: name.to_owned() };
        let description = describe(name).ok_or_else(no_table)?;
        let table = by_name(&self.tables, description.spec.name).ok_or_else(no_table)?;
        Ok((description, table))
    }
}

/// What a table is, and its fill.
#[must_use]
pub fn table_message(description: &Description, entries: u64, capacity: u32, memory: u64) -> ncm_v1::Table {
    ncm_v1::Table {
        name: description.name(),
        kind: kind_text(description.spec.kind).to_owned(),
        holds: description.spec.holds.to_owned(),
        entries,
        capacity: u64::from(capacity),
        key_columns: strings(description.key_columns),
        value_columns: strings(description.value_columns),
        memory,
        capacity_key: description.spec.capacity_key.unwrap_or_default().to_owned(),
    }
}

/// What rows are limited to: columns by position, one of which has to have the value.
struct Conditions(Vec<(Vec<usize>, String)>);

impl Conditions {
    fn new(only: &[String], description: &Description) -> Result<Self, ReadError> {
        let columns = description.columns();
        let condition = |text: &String| {
            let (names, value) = text.split_once('=')?;
            let position = |name: &str| columns.iter().position(|column| *column == name.trim());
            let positions: Option<Vec<usize>> = names.split('|').map(position).collect();
            // Addresses have many forms and are shown in one.
            let value = value.trim();
            let value = value
                .parse()
                .map_or_else(|_| value.to_owned(), |ip: std::net::IpAddr| ip.to_canonical().to_string());
            Some((positions?, value))
        };
        let parsed = only.iter().map(|text| {
            condition(text).ok_or_else(|| ReadError::Condition {
                condition: text.clone(),
                table: description.name(),
                columns: columns.join(", "),
            })
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    fn hold(&self, row: &ncm_v1::TableRow) -> bool {
        self.0.iter().all(|(positions, wanted)| {
            positions.iter().any(|position| {
                match row.values.get(*position).and_then(|value| value.value.as_ref()) {
                    Some(ncm_v1::value::Value::Text(text)) => text == wanted,
                    Some(ncm_v1::value::Value::Number(number)) => number.to_string() == *wanted,
                    None => false,
                }
            })
        })
    }
}

/// A key's and a value's bytes.
type Entry = (Vec<u8>, Vec<u8>);

/// The entry of a longest-prefix table that covers `wanted` most closely. The kernel's own look-up gives the value only,
/// and not which entry it is from.
fn closest(table: &dyn AnyTable, wanted: &[u8]) -> Result<Option<Entry>, ncm_dataplane::Error> {
    let mut best: Option<(u32, Vec<u8>, Vec<u8>)> = None;
    table.scan(&mut |key, value| {
        let Some(bits) = covers(key, wanted) else { return };
        if best.as_ref().is_none_or(|(longest, ..)| bits > *longest) {
            best = Some((bits, key.to_vec(), value.to_vec()));
        }
    })?;
    Ok(best.map(|(_, key, value)| (key, value)))
}

/// Significant bits of `key` if it covers `wanted`: keys are the number of significant bits, then the data.
fn covers(key: &[u8], wanted: &[u8]) -> Option<u32> {
    let (key_bits, key) = key.split_first_chunk::<4>()?;
    let (wanted_bits, wanted) = wanted.split_first_chunk::<4>()?;
    let bits = u32::from_ne_bytes(*key_bits);
    let whole = usize::try_from(bits / 8).ok()?;
    let rest = bits % 8;
    let mut covered = bits <= u32::from_ne_bytes(*wanted_bits) && key.get(..whole)? == wanted.get(..whole)?;
    if rest != 0 {
        covered &= (key.get(whole)? ^ wanted.get(whole)?) >> (8 - rest) == 0;
    }
    covered.then_some(bits)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok();
    now.map(std::time::Duration::from).and_then(|now| now.as_nanos().try_into().ok()).unwrap_or(0)
}

/// The interfaces of the network namespace that this process is in. Without them indices are shown.
fn interfaces() -> Vec<(u32, String)> {
    let Ok(list) = nix::net::if_::if_nameindex() else { return Vec::new() };
    list.iter()
        .map(|interface| (interface.index(), interface.name().to_string_lossy().into_owned()))
        .collect()
}

fn row(description: &Description, key: &[u8], value: &[u8], names: &Names) -> Option<ncm_v1::TableRow> {
    let values = description.row(key, value, names)?.into_iter().map(|value| {
        let value = match value {
            Value::Text(text) => ncm_v1::value::Value::Text(text),
            Value::Number(number) => ncm_v1::value::Value::Number(number),
        };
        ncm_v1::Value { value: Some(value) }
    });
    Some(ncm_v1::TableRow { key: description.key_text(key, names)?, values: values.collect() })
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A table whose types are not known here.
trait AnyTable {
    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ncm_dataplane::Error>;
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ncm_dataplane::Error>;
}

impl<K: Plain, V: Plain> AnyTable for Table<K, V> {
    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ncm_dataplane::Error> {
        self.for_each(|key, value| visit(key.as_bytes(), value.as_bytes()))
    }
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ncm_dataplane::Error> {
        let Some(key) = K::from_bytes(key) else { return Ok(None) };
        Ok(Table::get(self, &key)?.map(|value| value.as_bytes().to_vec()))
    }
}

impl<K: Plain, V: Sum> AnyTable for CounterTable<K, V> {
    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ncm_dataplane::Error> {
        for (key, value) in self.entries()? {
            visit(key.as_bytes(), value.as_bytes());
        }
        Ok(())
    }
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ncm_dataplane::Error> {
        let Some(key) = K::from_bytes(key) else { return Ok(None) };
        Ok(CounterTable::get(self, &key)?.map(|value| value.as_bytes().to_vec()))
    }
}

impl<K: OfPort, V: Plain> AnyTable for PortTables<K, V> {
    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ncm_dataplane::Error> {
        self.for_each(|key, value| visit(key.as_bytes(), value.as_bytes()))
    }
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ncm_dataplane::Error> {
        let Some(key) = K::from_bytes(key) else { return Ok(None) };
        Ok(PortTables::get(self, &key)?.map(|value| value.as_bytes().to_vec()))
    }
}

/// The table of that name in upper case.
fn by_name<'a>(tables: &'a Tables, name: &str) -> Option<&'a dyn AnyTable> {
    Some(match name {
        "NAMES" => &tables.names,
        "NODE" => &tables.node,
        "HEARTBEAT" => &tables.heartbeat,
        "NEXT_HOP_GROUPS" => &tables.next_hop_groups,
        "HOSTS" => &tables.hosts,
        "RULES" => &tables.rules,
        "CLASSES" => &tables.classes,
        "SUBNETS" => &tables.subnets,
        "PORTS" => &tables.ports,
        "VNIS" => &tables.vnis,
        "SUBNET_PREFIXES" => &tables.subnet_prefixes,
        "VTEPS" => &tables.vteps,
        "ENDPOINTS_MAC" => &tables.endpoints_mac,
        "ENDPOINTS_IP" => &tables.endpoints_ip,
        "ROUTES" => &tables.routes,
        "SOURCES" => &tables.sources,
        "SOURCE_PREFIXES" => &tables.source_prefixes,
        "REMOTE_EPOCHS" => &tables.remote_epochs,
        "TIMEOUTS" => &tables.timeouts,
        "FLOWS" => &tables.flows,
        "HALF_OPEN" => &tables.half_open,
        "PORT_FLOWS" => &tables.port_flows,
        "POLICY_COUNTS" => &tables.policy_counts,
        "DEVICES" => &tables.devices,
        "PORT_BY_INTERFACE" => &tables.port_by_interface,
        "DROPS" => &tables.drops,
        "PORT_DROPS" => &tables.port_drops,
        "PORT_TRAFFIC" => &tables.port_traffic,
        "COUNTERS" => &tables.counters,
        "LIMITS" => &tables.limits,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::covers;

    fn key(bits: u32, data: [u8; 4]) -> Vec<u8> {
        bits.to_ne_bytes().into_iter().chain(data).collect()
    }

    #[test]
    fn a_prefix_covers_what_shares_its_significant_bits() {
        let wanted = key(32, [10, 0, 5, 7]);
        for (bits, data, expected) in [
            (0, [9, 9, 9, 9], Some(0)),
            (8, [10, 9, 9, 9], Some(8)),
            (22, [10, 0, 4, 0], Some(22)),
            (24, [10, 0, 4, 0], None),
            (32, [10, 0, 5, 7], Some(32)),
            (32, [10, 0, 5, 8], None),
            (33, [10, 0, 5, 7], None),
        ] {
            assert_eq!(covers(&key(bits, data), &wanted), expected, "{data:?}/{bits}");
        }
        assert_eq!(
            covers(&key(24, [10, 0, 5, 0]), &key(16, [10, 0, 0, 0])),
            None,
            "longer than what is asked for"
        );
    }
}
