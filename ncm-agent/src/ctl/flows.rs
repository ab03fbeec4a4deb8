//! `ncmctl flows`: what is tracked of connections, answered and unanswered.

use super::args::{Flows, Global, Output};
use super::connect::Tables;
use super::failure::{Exit, Failure};
use super::listing::Listing;
use super::maps::rows;
use crate::ncm_v1::{DumpTableReply, DumpTableRequest};

/// The tables, with what is established first.
const TABLES: [&str; 2] = ["flows", "half_open"];

/// Columns for people; documents have all.
const SHOWN: [&str; 13] = [
    "port",
    "protocol",
    "local",
    "local_port",
    "remote",
    "remote_port",
    "state",
    "began_by",
    "verdict",
    "age_s",
    "idle_s",
    "expires_s",
    "target",
];

/// Lists flows.
pub(super) async fn run(global: &Global, arguments: Flows) -> Result<Exit, Failure> {
    let mut only = vec!["kind=flow".to_owned()];
    let address = arguments.address.map(|address| address.to_string());
    let conditions = [
        ("port", &arguments.port),
        ("protocol", &arguments.protocol),
        ("local|remote", &address),
        ("state", &arguments.state),
    ];
    for (columns, value) in conditions {
        only.extend(value.iter().map(|value| format!("{columns}={value}")));
    }
    let mut tables = Tables::find(global, arguments.offline).await?;
    let mut listing = Listing::new(global.output);
    for table in TABLES {
        let request = DumpTableRequest { table: table.to_owned(), include_empty: false, only: only.clone() };
        let mut positions = Vec::new();
        rows(&mut tables, request, |part| {
            listing.add(if global.output == Output::Table { for_people(part, &mut positions) } else { part })
        })
        .await?;
    }
    listing.finish()?;
    Ok(Exit::Ok)
}

/// Takes the columns that are not shown out of a part. `positions` keeps where the others are: only the first part says.
fn for_people(mut part: DumpTableReply, positions: &mut Vec<usize>) -> DumpTableReply {
    if !part.columns.is_empty() {
        let position = |shown: &&str| part.columns.iter().position(|column| column == shown);
        *positions = SHOWN.iter().filter_map(position).collect();
        part.columns = positions.iter().filter_map(|at| part.columns.get(*at).cloned()).collect();
    }
    for row in &mut part.rows {
        row.values = positions.iter().filter_map(|at| row.values.get(*at).cloned()).collect();
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_shown_are_columns_of_both_tables() {
        for table in TABLES {
            let columns = crate::inspect::describe(table).expect("a table").columns();
            assert!(SHOWN.iter().all(|shown| columns.contains(shown)), "{table}: {columns:?}");
        }
    }
}
