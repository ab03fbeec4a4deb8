//! The documents that are generated from definitions: `docs/drop-reasons.md`, `docs/tables.md`. A test compares them with
//! what is checked in; `ncmctl docs NAME` prints them.

use std::fmt::Write as _;

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{HALF_OPEN_KEY, HALF_OPEN_PER_PORT, LAYOUT_VERSION, TableKind};

use super::describe::{Description, descriptions};

/// Name of a kind of table as documents and tools show it.
#[must_use]
pub fn kind_text(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Hash => "hash",
        TableKind::PerCpuHash => "per_cpu_hash",
        TableKind::LongestPrefix => "longest_prefix",
        TableKind::Array => "array",
        TableKind::PerCpuArray => "per_cpu_array",
        TableKind::Devices => "devices",
        TableKind::LruByPort => "lru_by_port",
    }
}

/// `docs/drop-reasons.md`: every drop reason, and what is counted beside drops.
#[must_use]
pub fn drop_reasons() -> String {
    let mut text = String::from(
        "# Drop reasons\n\n\
         <!-- Generated from ncm-common/src/drops.rs and counters.rs: `ncmctl docs drop-reasons > docs/drop-reasons.md` -->\n\n\
         Every packet that the packet path drops is counted under exactly one of these reasons, in total and for the port\n\
         concerned. `ncmctl drops` shows them; the metric is `ncm_drops_packets_total`. Numbers are stable.\n\n\
         | number | reason | counts when |\n|---:|---|---|\n",
    );
    for reason in DropReason::ALL {
        row(&mut text, *reason as u32, reason.name(), reason.description());
    }
    text.push_str(
        "\n# Counters\n\n\
         What the packet path counts beside drops. `ncmctl counters` shows them; the metric is `ncm_path_packets_total`.\n\n\
         | number | counter | counts when |\n|---:|---|---|\n",
    );
    for counter in PathCounter::ALL {
        row(&mut text, *counter as u32, counter.name(), counter.description());
    }
    text
}

fn row(text: &mut String, number: u32, name: &str, description: &str) {
    let description = description.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    // Writing to a string does not fail.
    let _ = writeln!(text, "| {number} | `{name}` | {description} |");
}

/// `docs/tables.md`: every table of the dataplane with its columns, capacity, writer and reader.
#[must_use]
pub fn tables() -> String {
    let mut text = format!(
        "# Tables\n\n\
         <!-- Generated from ncm-common/src/tables.rs: `ncmctl docs tables > docs/tables.md` -->\n\n\
         The tables of the dataplane, layout version {LAYOUT_VERSION}, in the order in which entries are added (what is\n\
         referred to before what refers). `ncmctl map dump NAME` shows one with these columns; `ncmctl map get NAME KEY`\n\
         takes keys as in the example. Sizes are bytes.\n\n",
    );
    for Description { spec, key_columns, value_columns, key_example, .. } in descriptions() {
        let capacity = match spec.capacity_key {
            Some(key) if spec.kind == TableKind::LruByPort => format!(
                "{} ports, `[capacity] {key}`, each {HALF_OPEN_PER_PORT}, `[capacity] {HALF_OPEN_KEY}`",
                spec.default_capacity
            ),
            Some(key) => format!("{}, `[capacity] {key}`", spec.default_capacity),
            None => format!("{}, fixed", spec.default_capacity),
        };
        let _ = write!(
            text,
            "## {name}\n\n{holds}\n\n\
             | | |\n|---|---|\n\
             | kind | {kind} |\n\
             | key ({key_size}) | {key_columns} |\n\
             | value ({value_size}) | {value_columns} |\n\
             | example | `{key_example}` |\n\
             | capacity | {capacity} |\n\
             | written by | {writer} |\n\
             | read by | {reader} |\n\n",
            name = spec.name.to_ascii_lowercase(),
            holds = sentence(spec.holds),
            kind = kind_text(spec.kind),
            key_size = spec.key_size,
            key_columns = key_columns.join(", "),
            value_size = spec.value_size,
            value_columns = value_columns.join(", "),
            writer = spec.writer,
            reader = spec.reader,
        );
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str() + "."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(name: &str, generated: &str) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/").to_owned() + name + ".md";
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == generated,
            "docs/{name}.md differs from its definition; write it anew with `ncmctl docs {name} > docs/{name}.md`"
        );
    }

    #[test]
    fn the_list_of_drop_reasons_is_up_to_date() {
        compare("drop-reasons", &drop_reasons());
    }

    #[test]
    fn the_list_of_tables_is_up_to_date() {
        compare("tables", &tables());
    }
}
