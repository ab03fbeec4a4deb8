//! A figure with its reference and its budget, and how it is shown.

use serde::Serialize;

/// Which ratio of value to reference is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is measured.
    pub name: String,
    /// In which unit, of `value` and `reference_value`.
    pub unit: &'static str,
    /// The figure.
    pub value: f64,
    /// What it is held against.
    pub reference: String,
    /// The reference's own figure, from the same run; absent where the reference is a limit.
    pub reference_value: Option<f64>,
    /// `value / reference_value`.
    pub ratio: Option<f64>,
    /// The ratio that is wanted, as in `"<= 1.5"`; absent where the row is only reported.
    pub budget: Option<String>,
    /// Whether the budget holds; absent without one.
    pub holds: Option<bool>,
}

impl Row {
    /// A figure against its reference, with a budget or without.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        reference: impl Into<String>,
        reference_value: f64,
        bound: Option<Bound>,
    ) -> Self {
        let ratio = (reference_value > 0.0).then(|| value / reference_value);
        let holds = bound.map(|bound| match (bound, ratio) {
            (Bound::AtMost(limit), Some(ratio)) => ratio <= limit,
            (Bound::AtLeast(limit), Some(ratio)) => ratio >= limit,
            (_, None) => false,
        });
        let budget = bound.map(|bound| match bound {
            Bound::AtMost(limit) => format!("<= {limit}"),
            Bound::AtLeast(limit) => format!(">= {limit}"),
        });
        let (name, reference) = (name.into(), reference.into());
        Self { name, unit, value, reference, reference_value: Some(reference_value), ratio, budget, holds }
    }
}

/// A number with as many digits as tell something.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The rows as a Markdown table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let head =
        ["what", "unit", "value", "reference", "its value", "ratio", "budget", "holds"].map(str::to_owned);
    let mut cells = vec![head];
    cells.extend(rows.iter().map(|row| {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
        [
            row.name.clone(),
            row.unit.to_owned(),
            figure(row.value),
            row.reference.clone(),
            optional(row.reference_value),
            row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
            row.budget.clone().unwrap_or_else(|| "-".to_owned()),
            row.holds.map_or("-", |holds| if holds { "yes" } else { "NO" }).to_owned(),
        ]
    }));
    let widths: [usize; 8] =
        std::array::from_fn(|at| cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for (number, row) in cells.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
            text.push_str(&format!("| {cell:<width$} "));
        }
        text.push_str("|\n");
        if number == 0 {
            text.push_str(&widths.map(|width| format!("|{}", "-".repeat(width + 2))).concat());
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_bounds_the_ratio_from_the_side_it_says() {
        let row = |value, bound| Row::new("x", "s", value, "y", 2.0, bound);
        assert_eq!(row(3.0, Some(Bound::AtMost(1.5))).holds, Some(true));
        assert_eq!(row(3.1, Some(Bound::AtMost(1.5))).holds, Some(false));
        assert_eq!(row(1.9, Some(Bound::AtLeast(1.0))).holds, Some(false));
        assert_eq!(row(1.9, None).holds, None);
        assert_eq!(Row::new("x", "s", 1.0, "y", 0.0, Some(Bound::AtMost(1.0))).holds, Some(false));
    }

    #[test]
    fn json_has_the_documented_keys() {
        let row = Row::new("x", "s", 3.0, "y", 2.0, Some(Bound::AtMost(1.5)));
        let value = serde_json::to_value(&row).expect("a row is JSON");
        let keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut expected =
            ["name", "unit", "value", "reference", "reference_value", "ratio", "budget", "holds"].to_vec();
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
    }
}
