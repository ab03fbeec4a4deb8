//! The programs themselves: how many instructions the verifier walks, and what a packet costs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_common::counters::PathCounter;
use ncm_dataplane::{Dataplane, Options, TestRun};

use super::row::{Bound, Row};
use super::{Plan, median};
use crate::packet::{A1, HERE, HOST_1, Outer, RA, World, tunnel, udp};

/// Verdicts of XDP programs (`enum xdp_action` of `linux/bpf.h`).
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    if plan.wants("verifier_instructions") {
        instructions(done)?;
    }
    if plan.wants("nanoseconds_guest_to_tunnel") || plan.wants("nanoseconds_tunnel_to_guest") {
        // The world moves its thread into a namespace of its own.
        let rows = std::thread::scope(|scope| scope.spawn(|| nanoseconds(plan)).join());
        rows.map_err(|_| anyhow::anyhow!("measuring the programs panicked"))??.into_iter().for_each(done);
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

/// Time per packet of a known destination, against the minimal program: parse, one lookup, redirect. The kernel runs a
/// program again and again on one packet; wrappers put it back as it was, and their own time is taken off.
fn nanoseconds(plan: &Plan) -> Result<Vec<Row>> {
    let path = std::env::var_os("NCM_BENCH_OBJECT").context(
        "NCM_BENCH_OBJECT does not name the benchmark's object: run `cargo xtask bench`, or \
         `cargo xtask object --features bench` for its path",
    )?;
    let object = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let world = World::with_object(&object);
    let inner = |from: ([u8; 6], [u8; 4]), to: ([u8; 6], [u8; 4])| {
        udp((from.1, 4000), (to.1, 4000), &[0; 22]).frame(to.0, from.0)
    };
    let guest_frame = inner(A1.pair(), RA.pair());
    let wire_frame = tunnel(&Outer::new(HOST_1, HERE, A1.subnet.vni), &inner(RA.pair(), A1.pair()));
    add_flow(&world, &guest_frame)?;

    let repeat = if plan.quick { 200_000 } else { 1_000_000 };
    let time = |program: &str, frame: &[u8], ifindex: u32, action: u32, counter: Option<PathCounter>| {
        let before = counter.map(|counter| counted(&world, counter)).transpose()?;
        world.beat(0);
        let run = TestRun { repeat, ..TestRun::new(frame.to_vec(), ifindex) };
        let mut times = Vec::new();
        for _ in 0..plan.rounds() {
            let outcome = world.dataplane().test_run_program(program, &run)?;
            ensure!(outcome.action == action, "{program} ended in {}, not in {action}", outcome.action);
            times.push(outcome.duration);
        }
        if let (Some(counter), Some(before)) = (counter, before) {
            let (moved, runs) =
                (counted(&world, counter)? - before, u64::from(repeat) * plan.rounds() as u64);
            ensure!(moved == runs, "{moved} of {runs} runs of {program} were {}", counter.name());
        }
        Ok::<f64, anyhow::Error>(median(
            times.iter().map(Duration::as_nanos).map(|time| time as f64).collect(),
        ))
    };
    let guest = world.ifindex(A1.interface);
    let undo = time("bench_undo", &wire_frame, guest, XDP_PASS, None)? / 2.0;
    let reference = time("bench_reference", &guest_frame, guest, XDP_REDIRECT, None)?;
    let to_tunnel =
        time("bench_guest_xdp", &guest_frame, guest, XDP_REDIRECT, Some(PathCounter::Encapsulated))?;
    let from_tunnel =
        time("bench_wire_xdp", &wire_frame, 0, XDP_REDIRECT, Some(PathCounter::DecapsulatedXdp))?;
    let name = "minimal program: parse Ethernet and IPv4, one lookup, redirect";
    let row = |what: &str, value: f64| Row::new(what, "ns", value - undo, name, reference, None);
    let rows =
        [row("nanoseconds_guest_to_tunnel", to_tunnel), row("nanoseconds_tunnel_to_guest", from_tunnel)];
    Ok(rows.into_iter().filter(|row| plan.wants(&row.name)).collect())
}

/// Gives the minimal program the flow that `frame` is of.
fn add_flow(world: &World, frame: &[u8]) -> Result<()> {
    // As in memory: interface, source, destination, both ports, protocol, zero.
    let mut key = Vec::new();
    key.extend(world.ifindex(A1.interface).to_ne_bytes());
    key.extend(&frame[26..38]);
    key.extend(u32::from(frame[23]).to_ne_bytes());
    key.extend([0; 4]);
    let mut value = world.ifindex("up0").to_ne_bytes().to_vec();
    value.resize(64, 0);
    world.dataplane().put_other("BENCH_FLOWS", &key, &value).context("write the minimal program's flow")
}

fn counted(world: &World, counter: PathCounter) -> Result<u64> {
    let counts = world.tables().counters.get(&(counter as u32)).context("read a counter")?;
    Ok(counts.map_or(0, |count| count.packets))
}
