//! Measuring several things in turn.

use anyhow::{Context, Result};

use super::kernel::Pair;
use super::{Plan, median};

/// Traffic is measured in so many times more and shorter rounds than the rest: its figures scatter more.
const SHARE: usize = 3;

/// Measures all pairs in turn, and each of them first, so that what disturbs the machine disturbs all; the medians count, of
/// each figure by itself.
pub(super) fn in_turn<const FIGURES: usize>(
    plan: &Plan,
    pairs: &[Pair],
    measure: impl Fn(&Pair) -> Result<[f64; FIGURES]>,
) -> Result<Vec<[f64; FIGURES]>> {
    let mut values: Vec<[Vec<f64>; FIGURES]> =
        pairs.iter().map(|_| [const { Vec::new() }; FIGURES]).collect();
    for round in 0..plan.rounds() * SHARE {
        for turn in 0..pairs.len() {
            let which = (round + turn) % pairs.len();
            let figures = measure(&pairs[which])
                .with_context(|| format!("between the guests of `{}`", pairs[which].name))?;
            for (values, value) in values[which].iter_mut().zip(figures) {
                values.push(value);
            }
        }
    }
    Ok(values.into_iter().map(|figures| figures.map(median)).collect())
}
