//! A million concurrent flows in a running agent's table: what they take, what it costs to look for those that are over, and
//! whether goal states wait meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ncm_common::tables::{Flow, FlowKey, ticks};
use ncm_dataplane::Reader;
use ncm_model::wire::{GoalState, OperationStatus};
use prost::Message;

use super::row::{Bound, Row};
use super::{Plan, median};
use crate::many;
use crate::testbed::{Host, HostOptions, Lab, TwoHosts};

/// How many flows.
const FLOWS: u32 = 1_000_000;
/// Neighbours of a push.
const NEIGHBORS: u32 = 1_000;
/// How often a push is measured.
const PUSHES: usize = 25;

const MEMORY: &str = "million_flows_memory";
const AGEING: &str = "million_flows_ageing";
const PUSH: &str = "million_flows_push";

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    if ![MEMORY, AGEING, PUSH].iter().any(|name| plan.wants(name)) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let cloud = many::cloud();
    let net = TwoHosts::unstarted(&lab, HostOptions::default())?;
    let (host, other) = (&net.host1, net.host2.address);
    host.start()?;
    let _guest = cloud.guest(&lab, host, "a")?;
    host.agent().push(&cloud.goal_state("host1"))?.expect_success()?;

    let mut revision = 0;
    let mut pushes = || -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..PUSHES {
            revision += 1;
            times.push(push(host, other, revision)?);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(median(times))
    };
    let before = pushes()?;
    let reader =
        Reader::open_to_write(&host.agent().bpffs(), host.name()).context("open the pinned tables")?;
    let flows = &reader.tables().flows;
    let (port, known) = reader
        .tables()
        .ports
        .entries()?
        .into_iter()
        .find(|(_, port)| port.generation != 0)
        .context("no port")?;
    let now = ticks(
        Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64,
    );
    let empty = flows.memory_bytes()?;
    let flow = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        let key =
            FlowKey { port, local_port: [a, b], remote_port: [c, d], protocol: 6, ..FlowKey::default() };
        let flow = Flow {
            seen: [now; 2],
            timeout: u32::MAX >> 1,
            created: now,
            port,
            port_again: port,
            port_generation: known.generation,
            ..Flow::default()
        };
        (key, flow)
    };
    let outcome = flows.put_batch((0..FLOWS).map(flow));
    ensure!(outcome.done == FLOWS as usize, "{} of {FLOWS} flows found room", outcome.done);
    let (bytes, mebi) = (flows.memory_bytes()?, f64::from(1 << 20));
    if plan.wants(MEMORY) {
        let entries = (size_of::<FlowKey>() + size_of::<Flow>()) as f64 * f64::from(FLOWS);
        let reference = format!("keys and values alone; the empty table takes {:.1}", empty as f64 / mebi);
        done(Row::new(MEMORY, "MiB", bytes as f64 / mebi, reference, entries / mebi, None));
    }
    if plan.wants(AGEING) {
        let agent = host.agent();
        // A walk begins at most every so many seconds, and is under way for minutes then.
        std::thread::sleep(Duration::from_secs(16));
        let (begin, used) = (Instant::now(), agent.thread_time("ncm-sweep")?);
        std::thread::sleep(Duration::from_secs(if plan.quick { 5 } else { 15 }));
        let used = (agent.thread_time("ncm-sweep")? - used).as_secs_f64();
        let share = 100.0 * used / begin.elapsed().as_secs_f64();
        ensure!(used > 0.0, "nobody looks for flows that are over");
        let bound = Some(Bound::AtMost(1.0));
        done(Row::new(AGEING, "% of a core", share, "what it may take", 1.0, bound));
    }
    if plan.wants(PUSH) {
        let reference = "the same push with no flows";
        done(Row::new(PUSH, "ms", pushes()? * 1e3, reference, before * 1e3, Some(Bound::AtMost(1.5))));
    }
    Ok(())
}

/// Milliseconds of a push of neighbours that are there already, in a new revision.
fn push(host: &Host, other: std::net::Ipv4Addr, revision: u32) -> Result<f64> {
    let mut neighbors = many::neighbors("web", "red", NEIGHBORS, other);
    for neighbor in neighbors.iter_mut().filter_map(|neighbor| neighbor.configuration.as_mut()) {
        neighbor.revision_number = revision;
    }
    let state = GoalState { format_version: 101, neighbor_states: neighbors, ..Default::default() };
    let (reply, time) = host.agent().push_encoded(state.encode_to_vec().into())?;
    let failed = reply.count(OperationStatus::Failure);
    ensure!(failed == 0, "{failed} of {NEIGHBORS} neighbours are FAILURE");
    Ok(time.as_secs_f64())
}
