//! The programs themselves: how many instructions the verifier walks, and what a packet costs.

use anyhow::{Context, Result};
use ncm_dataplane::{Dataplane, Options};

use super::Plan;
use super::row::{Bound, Row};

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    if plan.wants("verifier_instructions") {
        instructions(plan, done)?;
    }
    Ok(())
}

/// What the verifier walked through at load; the budget is a tenth of what the kernel allows.
fn instructions(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    let dataplane = Dataplane::open(&Options::unpinned()).context("load the programs")?;
    for program in dataplane.programs().context("ask for the programs")? {
        let name = format!("verifier_instructions_{}", program.name);
        if plan.wants(&name) {
            let walked = f64::from(program.verified_instructions);
            done(Row::new(name, "instructions", walked, "the kernel's limit", 1e6, Some(Bound::AtMost(0.1))));
        }
    }
    Ok(())
}
