//! The object as it is loaded: how many instructions the verifier walks, and what the tables take.

use anyhow::{Context, Result, ensure};
use ncm_common::tables::{Flow, FlowKey, Port};
use ncm_dataplane::{Dataplane, Options};

use super::Plan;
use super::row::{Bound, Row};

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    if plan.wants("verifier_instructions") {
        instructions(done)?;
    }
    if plan.wants("memory_maps") {
        done(maps()?);
    }
    Ok(())
}

/// What the verifier walked through at load; the budget is a tenth of what the kernel allows.
fn instructions(done: &mut dyn FnMut(Row)) -> Result<()> {
    let dataplane = Dataplane::open(&Options::unpinned()).context("load the programs")?;
    for program in dataplane.programs().context("ask for the programs")? {
        let name = format!("verifier_instructions_{}", program.name);
        let walked = f64::from(program.verified_instructions);
        done(Row::new(name, "instructions", walked, "the kernel's limit", 1e6, Some(Bound::AtMost(0.1))));
    }
    Ok(())
}

/// What all tables take together at default capacities, with three ports and few flows.
fn maps() -> Result<Row> {
    let dataplane = Dataplane::open(&Options::unpinned()).context("load the programs")?;
    let (tables, ports) = (dataplane.tables(), [1, 2, 3]);
    ensure!(tables.half_open.create(&ports).is_complete(), "the kernel refused tables of half-open flows");
    for port in ports {
        tables.ports.put(&port, &Port { generation: 1, ..Port::default() })?;
        let flow = |number: u16| {
            let key = FlowKey { port, remote_port: number.to_be_bytes(), ..FlowKey::default() };
            (key, Flow { created: 1, ..Flow::default() })
        };
        let half_open = tables.half_open.of(port)?.context("the port's table is gone")?;
        let outcomes = [tables.flows.put_batch((0..300).map(flow)), half_open.put_batch((0..300).map(flow))];
        ensure!(outcomes.iter().all(ncm_dataplane::Outcome::is_complete), "the kernel refused flows");
    }
    let bytes: u64 = tables.memory()?.iter().map(|(_, bytes, _)| bytes).sum();
    let value = bytes as f64 / f64::from(1 << 20);
    Ok(Row::new("memory_maps", "MiB", value, "what a host may spend", 64.0, Some(Bound::AtMost(1.0))))
}
