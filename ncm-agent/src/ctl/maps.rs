//! `ncmctl map`: the dataplane's tables, from the agent or from what is pinned.

use super::args::{Global, Map, MapCommand};
use super::connect::Tables;
use super::failure::{Exit, Failure};
use super::json::Json;
use super::listing::{Listing, row_json, text};
use super::output::{self, Grid};
use crate::ncm_v1;

/// Runs the command.
pub(super) async fn run(global: &Global, map: Map) -> Result<Exit, Failure> {
    let tables = Tables::find(global, map.offline).await?;
    match map.command {
        MapCommand::List => list(global, tables).await,
        MapCommand::Dump { name, all, only } => dump(global, tables, &name, all, only).await,
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

async fn dump(
    global: &Global,
    mut tables: Tables,
    name: &str,
    all: bool,
    only: Vec<String>,
) -> Result<Exit, Failure> {
    let mut listing = Listing::new(global.output);
    let request = ncm_v1::DumpTableRequest { table: name.to_owned(), include_empty: all, only };
    rows(&mut tables, request, |part| listing.add(part)).await?;
    listing.finish()?;
    Ok(Exit::Ok)
}

/// Hands a table's rows to `take` as they come.
pub(super) async fn rows(
    tables: &mut Tables,
    request: ncm_v1::DumpTableRequest,
    mut take: impl FnMut(ncm_v1::DumpTableReply) -> std::io::Result<()>,
) -> Result<(), Failure> {
    match tables {
        Tables::Agent(agent) => {
            let mut parts = agent.inspect.dump_table(request).await?.into_inner();
            while let Some(part) = parts.message().await? {
                take(part)?;
            }
        }
        Tables::Pinned(pinned) => {
            let mut outcome = Ok(());
            pinned.dump(&request.table, request.include_empty, &request.only, &mut |part| {
                outcome = take(part);
                outcome.is_ok()
            })?;
            outcome?;
        }
    }
    Ok(())
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
    output::show(global.output, &row_json(&found.columns, &row), || {
        let mut grid = Grid::new(found.columns.iter().map(String::as_str));
        grid.row(row.values.iter().map(text));
        grid.text()
    })?;
    Ok(Exit::Ok)
}
