//! `ncmctl map`: the dataplane's tables, from the agent or from what is pinned.

use serde_json::{Map as Object, Value};

use super::args::{Global, Map, MapCommand, Output};
use super::connect::Tables;
use super::failure::{Exit, Failure};
use super::json::{Json, object};
use super::output::{self, Grid};
use crate::ncm_v1;

/// Runs the command.
pub(super) async fn run(global: &Global, map: Map) -> Result<Exit, Failure> {
    let tables = Tables::find(global, map.offline).await?;
    match map.command {
        MapCommand::List => list(global, tables).await,
        MapCommand::Dump { name, all } => dump(global, tables, &name, all).await,
        MapCommand::Get { name, key } => get(global, tables, &name, &key).await,
    }
}

async fn list(global: &Global, tables: Tables) -> Result<Exit, Failure> {
    let tables = match tables {
        Tables::Agent(mut agent) => {
            agent.inspect.list_tables(ncm_v1::ListTablesRequest {}).await?.into_inner().tables
        }
        Tables::Pinned(pinned) => pinned.list()?,
    };
    let json = Json::new()?.own("ListTablesReply", &ncm_v1::ListTablesReply { tables: tables.clone() })?;
    output::show(global.output, &json["tables"], || fill(&tables).text())?;
    Ok(Exit::Ok)
}

/// The fill of tables, for people.
pub(super) fn fill(tables: &[ncm_v1::Table]) -> Grid {
    let mut grid = Grid::new(["table", "kind", "entries", "capacity", "fill", "memory", "holds"]);
    for table in tables {
        grid.row([
            table.name.clone(),
            table.kind.clone(),
            table.entries.to_string(),
            table.capacity.to_string(),
            format!("{}%", table.entries.saturating_mul(100) / table.capacity.max(1)),
            size(table.memory),
            table.holds.clone(),
        ]);
    }
    grid
}

/// Bytes for people: `0`, `512`, `16K`, `3M`.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => bytes.to_string(),
        1024..1_048_576 => format!("{}K", bytes / 1024),
        _ => format!("{}M", bytes / 1_048_576),
    }
}

async fn dump(global: &Global, tables: Tables, name: &str, all: bool) -> Result<Exit, Failure> {
    let mut columns = Vec::new();
    let mut rows = Vec::new();
    let mut take = |mut part: ncm_v1::DumpTableReply| {
        if columns.is_empty() {
            columns = std::mem::take(&mut part.columns);
        }
        rows.append(&mut part.rows);
        true
    };
    match tables {
        Tables::Agent(mut agent) => {
            let request = ncm_v1::DumpTableRequest { table: name.to_owned(), include_empty: all };
            let mut parts = agent.inspect.dump_table(request).await?.into_inner();
            while let Some(part) = parts.message().await? {
                take(part);
            }
        }
        Tables::Pinned(pinned) => pinned.dump(name, all, &mut take)?,
    }
    // Hash tables come in no order; people compare dumps.
    rows.sort_by(|a, b| compare(&a.values, &b.values));
    print(global.output, &columns, &rows)
}

async fn get(global: &Global, tables: Tables, name: &str, key: &str) -> Result<Exit, Failure> {
    let found = match tables {
        Tables::Agent(mut agent) => {
            let request = ncm_v1::GetEntryRequest { table: name.to_owned(), key: key.to_owned() };
            agent.inspect.get_entry(request).await?.into_inner()
        }
        Tables::Pinned(pinned) => pinned.entry(name, key)?,
    };
    let row = found.row.unwrap_or_default();
    if global.output == Output::Table {
        print(global.output, &found.columns, &[row])
    } else {
        output::show(global.output, &row_json(&found.columns, &row), String::new)?;
        Ok(Exit::Ok)
    }
}

fn print(output: Output, columns: &[String], rows: &[ncm_v1::TableRow]) -> Result<Exit, Failure> {
    match output {
        Output::Table => {
            let mut grid = Grid::new(columns.iter().map(String::as_str));
            for row in rows {
                grid.row(row.values.iter().map(text));
            }
            output::print(&grid.text())?;
        }
        Output::Json | Output::Yaml => {
            let rows = rows.iter().map(|row| row_json(columns, row)).collect();
            output::show(output, &Value::Array(rows), String::new)?;
        }
    }
    Ok(Exit::Ok)
}

/// A row as an object: the key in text, then every column under its name.
fn row_json(columns: &[String], row: &ncm_v1::TableRow) -> Value {
    let values: Object<String, Value> = columns.iter().cloned().zip(row.values.iter().map(value)).collect();
    object([("key", row.key.clone().into()), ("entry", Value::Object(values))])
}

fn text(value: &ncm_v1::Value) -> String {
    match &value.value {
        Some(ncm_v1::value::Value::Text(text)) => text.clone(),
        Some(ncm_v1::value::Value::Number(number)) => number.to_string(),
        None => String::new(),
    }
}

fn value(value: &ncm_v1::Value) -> Value {
    match &value.value {
        // `-` stands for what is not set.
        Some(ncm_v1::value::Value::Text(text)) if text == "-" => Value::Null,
        Some(ncm_v1::value::Value::Text(text)) => text.clone().into(),
        Some(ncm_v1::value::Value::Number(number)) => (*number).into(),
        None => Value::Null,
    }
}

/// Order of rows: by column, numbers and addresses by value, other text as text.
fn compare(a: &[ncm_v1::Value], b: &[ncm_v1::Value]) -> std::cmp::Ordering {
    use ncm_v1::value::Value::{Number, Text};
    for (a, b) in a.iter().zip(b) {
        let order = match (&a.value, &b.value) {
            (Some(Number(a)), Some(Number(b))) => a.cmp(b),
            (Some(Text(a)), Some(Text(b))) => match (address(a), address(b)) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.cmp(b),
            },
            _ => std::cmp::Ordering::Equal,
        };
        if order.is_ne() {
            return order;
        }
    }
    std::cmp::Ordering::Equal
}

/// An address or prefix, for the order of rows; `#7` and the like by their number.
fn address(text: &str) -> Option<(u128, u8)> {
    if let Some(number) = text.strip_prefix('#') {
        return number.parse().ok().map(|number| (number, 0));
    }
    if let Ok(net) = text.parse::<ipnet::Ipv4Net>() {
        return Some((u128::from(u32::from(net.addr())), net.prefix_len()));
    }
    match text.parse().ok()? {
        std::net::IpAddr::V4(ip) => Some((u128::from(u32::from(ip)), 32)),
        std::net::IpAddr::V6(ip) => Some((u128::from(ip), 128)),
    }
}
