//! Rows of a table on their way to the screen: in order while they are few, as they come when they are many.

use std::io;

use serde_json::{Map as Object, Value};

use super::args::Output;
use super::json::object;
use super::output::{self, Grid};
use crate::ncm_v1;

/// Up to this many rows are sorted before they are printed; more are not kept, as a table may have millions.
const SORTED: usize = 50_000;

/// Prints a table's rows.
pub(super) struct Listing {
    output: Output,
    columns: Vec<String>,
    waiting: Vec<ncm_v1::TableRow>,
    widths: Vec<usize>,
    printed: bool,
}

impl Listing {
    pub(super) fn new(output: Output) -> Self {
        Self { output, columns: Vec::new(), waiting: Vec::new(), widths: Vec::new(), printed: false }
    }

    /// Takes the next rows.
    pub(super) fn add(&mut self, mut part: ncm_v1::DumpTableReply) -> io::Result<()> {
        if self.columns.is_empty() {
            self.columns = part.columns;
        }
        self.waiting.append(&mut part.rows);
        if self.waiting.len() >= SORTED { self.print_waiting() } else { Ok(()) }
    }

    /// Prints what is left. Hash tables come in no order; people compare listings, so that short ones have one.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if !self.printed {
            self.waiting.sort_by(|a, b| compare(&a.values, &b.values));
        }
        if !self.waiting.is_empty() || !self.printed {
            self.print_waiting()?;
        }
        if self.output == Output::Json { output::print("\n]\n") } else { Ok(()) }
    }

    fn print_waiting(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.waiting);
        let first = !std::mem::replace(&mut self.printed, true);
        match self.output {
            Output::Table => {
                let mut grid = Grid::new(self.columns.iter().map(String::as_str));
                for row in &rows {
                    grid.row(row.values.iter().map(text));
                }
                output::print(&grid.part(&mut self.widths, first))
            }
            Output::Json => {
                let mut text = String::new();
                for (position, row) in rows.iter().enumerate() {
                    text.push_str(if first && position == 0 { "[\n  " } else { ",\n  " });
                    text.push_str(&row_json(&self.columns, row).to_string());
                }
                if first && rows.is_empty() {
                    text.push('[');
                }
                output::print(&text)
            }
            Output::Yaml if first && rows.is_empty() => output::print("[]\n"),
            Output::Yaml => {
                let rows: Vec<Value> = rows.iter().map(|row| row_json(&self.columns, row)).collect();
                // Blocks of a list one after the other are one list.
                if rows.is_empty() { Ok(()) } else { output::print(&output::yaml(&Value::Array(rows))) }
            }
        }
    }
}

/// A row as an object: the key in text, then every column under its name.
pub(super) fn row_json(columns: &[String], row: &ncm_v1::TableRow) -> Value {
    let values: Object<String, Value> = columns.iter().cloned().zip(row.values.iter().map(value)).collect();
    object([("key", row.key.clone().into()), ("entry", Value::Object(values))])
}

/// A value for people.
pub(super) fn text(value: &ncm_v1::Value) -> String {
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

/// Order of rows: by column, numbers and addresses by value, other text as text, in that order.
fn compare(a: &[ncm_v1::Value], b: &[ncm_v1::Value]) -> std::cmp::Ordering {
    a.iter().map(rank).cmp(b.iter().map(rank))
}

/// Where a value stands among others of its column.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Rank<'a> {
    Number(u64),
    Address((u128, u8), &'a str),
    Text(&'a str),
}

fn rank(value: &ncm_v1::Value) -> Rank<'_> {
    match &value.value {
        Some(ncm_v1::value::Value::Number(number)) => Rank::Number(*number),
        Some(ncm_v1::value::Value::Text(text)) => match address(text) {
            Some(address) => Rank::Address(address, text),
            None => Rank::Text(text),
        },
        None => Rank::Text(""),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Vec<ncm_v1::Value> {
        vec![ncm_v1::Value { value: Some(ncm_v1::value::Value::Text(text.to_owned())) }]
    }

    #[test]
    fn rows_are_ordered_by_what_they_mean_not_by_their_letters() {
        let mut rows = ["#10", "#9", "10.0.0.10", "10.0.0.9", "10.0.0.0/8", "b", "a"].map(row).to_vec();
        rows.sort_by(|a, b| compare(a, b));
        let texts: Vec<String> = rows.iter().map(|row| text(&row[0])).collect();
        assert_eq!(texts, ["#9", "#10", "10.0.0.0/8", "10.0.0.9", "10.0.0.10", "a", "b"]);
    }
}
