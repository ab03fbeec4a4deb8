//! The benchmarks: each figure beside its reference, both measured in the same run on the same machine.

mod connections;
mod demand;
mod group;
mod kernel;
mod million;
mod packets;
mod paths;
mod programs;
mod requests;
mod row;
mod states;
mod streams;
mod turns;

use anyhow::Result;

pub use row::{Bound, Row, table};

/// What to measure, and how thoroughly.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Shorter runs and fewer rounds, for a look rather than a verdict.
    pub quick: bool,
    /// Only rows whose names contain one of these; all if empty.
    pub only: Vec<String>,
}

impl Plan {
    /// Whether a row is to be measured.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// How often a measurement is repeated, ours and the reference in turn; the median counts.
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    /// Seconds of one round.
    fn seconds(&self) -> u32 {
        if self.quick { 2 } else { 4 }
    }
}

/// Measures everything in the plan; each row is handed to `done` as soon as it is known.
///
/// # Errors
/// If something cannot be set up: the first such fault. What does not need it has been measured and handed over.
pub fn run(plan: &Plan, mut done: impl FnMut(Row)) -> Result<()> {
    let groups = [
        programs::measure,
        paths::measure,
        million::measure,
        states::measure,
        packets::measure,
        connections::measure,
        streams::measure,
        demand::measure,
    ];
    let mut outcome = Ok(());
    for group in groups {
        outcome = outcome.and(group(plan, &mut done));
    }
    outcome
}

/// The median of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
