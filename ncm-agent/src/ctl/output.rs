//! Printing: aligned columns, JSON or YAML.

use std::io::{self, Write as _};

use serde_json::Value;

use super::args::Output;

/// Rows under a header.
#[derive(Default)]
pub(super) struct Grid {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    /// A grid with these columns.
    pub(super) fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        Self { header: header.into_iter().map(str::to_uppercase).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, row: impl IntoIterator<Item = impl ToString>) {
        self.rows.push(row.into_iter().map(|cell| printable(&cell.to_string())).collect());
    }

    /// Whether there is no row.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The grid as text, each line ended.
    pub(super) fn text(&self) -> String {
        self.part(&mut Vec::new(), true)
    }

    /// A part of a longer listing: `widths` are those of the part before, and are only ever widened.
    pub(super) fn part(&self, widths: &mut Vec<usize>, with_header: bool) -> String {
        widths.resize(self.header.len(), 0);
        for row in std::iter::once(&self.header).chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in with_header.then_some(&self.header).into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(cell);
                let gap = width.saturating_sub(cell.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', gap));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` without what could confuse a terminal or a column: control characters become `?`, emptiness `-`.
fn printable(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Prints text on standard output.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A remark on standard error, which scripts may ignore.
pub(super) fn note(text: &str) {
    // Nothing is left to do if standard error is closed.
    let _ = writeln!(io::stderr().lock(), "ncmctl: {text}");
}

/// Prints `value` as JSON or YAML, or `table` for people.
pub(super) fn show(output: Output, value: &Value, table: impl FnOnce() -> String) -> io::Result<()> {
    match output {
        Output::Table => print(&table()),
        Output::Json => print(&json(value)),
        Output::Yaml => print(&yaml(value)),
    }
}

/// Indented JSON, ended by a newline.
pub(super) fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// YAML in block style, ended by a newline.
pub(super) fn yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(entries) if !entries.is_empty() => block(value, 0, &mut text),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut text),
        _ => {
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
    text
}

/// A mapping or list that is not empty, each entry on lines of its own.
fn block(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                text.push_str(&format!("{pad}{}:", quoted(key)));
                nested(value, indent + 2, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(entries) if !entries.is_empty() => {
                        let mut inner = String::new();
                        block(item, indent + 2, &mut inner);
                        // The first key stands on the line of the dash.
                        text.push_str(&format!("{pad}- {}", &inner[indent + 2..]));
                    }
                    _ => {
                        text.push_str(&format!("{pad}-"));
                        nested(item, indent + 2, text);
                    }
                }
            }
        }
        _ => {}
    }
}

fn nested(value: &Value, indent: usize, text: &mut String) {
    let empty = match value {
        Value::Object(entries) => entries.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if empty {
        text.push_str(&format!(" {}\n", scalar(value)));
    } else {
        text.push('\n');
        block(value, indent, text);
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => quoted(string),
        other => other.to_string(),
    }
}

/// A string as it may stand in YAML: as it is where that is certain to be read as the same string, else quoted.
fn quoted(text: &str) -> String {
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if word && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        // A JSON string is a YAML string in double quotes.
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_emptiness_shown() {
        let mut grid = Grid::new(["id", "cause"]);
        grid.row(["a-long-id", ""]);
        grid.row(["b", "line\nbreak"]);
        assert_eq!(grid.text(), "ID         CAUSE\na-long-id  -\nb          line?break\n");
    }

    #[test]
    fn yaml_says_what_json_says() {
        let value = json!({"name": "a", "list": [{"x": 1, "z": [true, null]}, "10.0.0.1", [], [1]], "empty": {}, "no": "no"});
        let expected = "\
name: a
list:
  - x: 1
    z:
      - true
      - null
  - \"10.0.0.1\"
  - []
  -
    - 1
empty: {}
\"no\": \"no\"
";
        assert_eq!(yaml(&value), expected);
        assert_eq!(yaml(&json!([])), "[]\n");
    }
}
