//! Goal states with many neighbours: the time from push to reply against raw batch writes of the same entries, and
//! the agent's memory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ncm_common::tables::{Endpoint, IpKey, MacKey, endpoint_flags};
use ncm_dataplane::{Dataplane, Options};
use ncm_model::wire::{GoalState, OperationStatus};
use prost::Message;

use super::row::{Bound, Row};
use super::{Plan, median};
use crate::many;
use crate::testbed::{HostOptions, Lab, TwoHosts};

/// Entries that fit the tables in every run.
const CAPACITY: u32 = 1_100_000;

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    measure_journal(plan, done)?;
    for count in [1_000, 100_000, 1_000_000] {
        let (time, rate) = (format!("goal_state_{count}"), format!("goal_state_rate_{count}"));
        let (memory, peak) = (format!("memory_resident_{count}"), format!("memory_peak_{count}"));
        let last = count == 1_000_000;
        let wants_memory = last && (plan.wants(&memory) || plan.wants(&peak));
        if !plan.wants(&time) && !plan.wants(&rate) && !wants_memory {
            continue;
        }
        let rounds = rounds(plan, count);
        let (mut pushes, mut writes, mut resident, mut peaks) = (vec![], vec![], vec![], vec![]);
        let mut message_bytes = 0;
        for _ in 0..rounds {
            let wait = wants_memory.then_some(Duration::from_secs(10));
            let push = push(count, wait, None)?;
            pushes.push(push.time);
            resident.push(push.resident);
            peaks.push(push.peak);
            message_bytes = push.message_bytes;
            writes.push(raw_writes(count)?);
        }
        let (own, raw) = (median(pushes), median(writes));
        let reference = "raw batch writes of the same entries into the same maps";
        if plan.wants(&time) {
            // A small message is mostly what any message costs: a connection, a reply.
            let bound = (count > 1_000).then_some(Bound::AtMost(1.5));
            done(Row::new(time, "ms", own * 1e3, reference, raw * 1e3, bound));
        }
        if plan.wants(&rate) {
            let entries = f64::from(count) * 2.0;
            done(Row::new(rate, "entries/s", entries / own, reference, entries / raw, None));
        }
        let entries = (size_of::<MacKey>() + size_of::<IpKey>() + 2 * size_of::<Endpoint>()) as f64;
        let (mebi, entries) = (1024.0 * 1024.0, entries * f64::from(count));
        if last && plan.wants(&memory) {
            let reference = "bytes of the compiled table entries";
            let bound = Some(Bound::AtMost(2.0));
            done(Row::new(memory, "MiB", median(resident) / mebi, reference, entries / mebi, bound));
        }
        if last && plan.wants(&peak) {
            let limit = 3.0 * entries + message_bytes as f64;
            let reference = "3 x the compiled table entries + the message";
            done(Row::new(
                peak,
                "MiB",
                median(peaks) / mebi,
                reference,
                limit / mebi,
                Some(Bound::AtMost(1.0)),
            ));
        }
    }
    Ok(())
}

/// What it costs that a push is durable before it is answered: on a disk, beside a push that nothing is kept of.
fn measure_journal(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    const COUNT: u32 = 1_000_000;
    let name = format!("journal_push_{COUNT}");
    if !plan.wants(&name) {
        return Ok(());
    }
    let directory = std::env::temp_dir().join(format!("ncm-bench-{}", std::process::id()));
    let (mut with, mut without) = (vec![], vec![]);
    for _ in 0..rounds(plan, COUNT) {
        without.push(push(COUNT, None, None)?.time);
        let kept = push(COUNT, None, Some(&directory));
        std::fs::remove_dir_all(&directory).context("remove the journal")?;
        with.push(kept?.time);
    }
    let (own, reference) = (median(with), median(without));
    let bound = Some(Bound::AtMost(1.3));
    done(Row::new(name, "ms", own * 1e3, "the same push without a journal", reference * 1e3, bound));
    Ok(())
}

/// How often a size is measured: the smaller, the more a single run is up to chance.
fn rounds(plan: &Plan, count: u32) -> usize {
    let full: usize = match count {
        ..10_000 => 15,
        10_000..1_000_000 => 7,
        _ => 3,
    };
    if plan.quick { full.div_ceil(3) } else { full }
}

struct Push {
    /// Seconds from the first byte to the reply's last.
    time: f64,
    /// Resident bytes after the wait.
    resident: f64,
    /// Largest resident bytes ever.
    peak: f64,
    message_bytes: usize,
}

/// Waits until the kernel has freed the tables of the measurement before, so that its work counts for neither side.
fn settle(count: u32) {
    std::thread::sleep(Duration::from_millis(100) + Duration::from_micros(count.into()) * 2);
}

/// Pushes the message, encoded beforehand, to an agent that has just started. `journal`: where it keeps what it accepts, if it does.
fn push(count: u32, wait: Option<Duration>, journal: Option<&Path>) -> Result<Push> {
    let lab = Lab::new()?;
    let cloud = many::cloud();
    let options = HostOptions::default().with("capacity", "endpoints", &CAPACITY.to_string());
    let options = match journal {
        Some(path) => options.with("paths", "state", &format!("{:?}", path.display().to_string())),
        None => options.with("store", "journal", "false"),
    };
    let net = TwoHosts::unstarted(&lab, options)?;
    net.host1.start()?;
    let _a = cloud.guest(&lab, &net.host1, "a")?;
    let agent = net.host1.agent();
    agent.push(&cloud.goal_state("host1"))?.expect_success()?;
    let neighbors = many::neighbors("web", "red", count, net.host2.address);
    let state = GoalState { format_version: 101, neighbor_states: neighbors, ..Default::default() };
    let message = bytes::Bytes::from(state.encode_to_vec());
    drop(state);
    let message_bytes = message.len();
    settle(count);
    let (reply, time) = agent.push_encoded(message)?;
    let time = time.as_secs_f64();
    let failed = reply.count(OperationStatus::Failure);
    ensure!(failed == 0, "{failed} of {count} neighbours are FAILURE");
    std::thread::sleep(wait.unwrap_or_default());
    let (resident, peak) = agent.memory()?;
    Ok(Push { time, resident: resident as f64, peak: peak as f64, message_bytes })
}

/// Writes the same entries into tables of the same kind and capacity with nothing else to do.
fn raw_writes(count: u32) -> Result<f64> {
    let mut options = Options::unpinned();
    options.capacities.set("endpoints", CAPACITY);
    let dataplane = Dataplane::open(&options).context("load tables to write into")?;
    let value = |number| Endpoint {
        target: 1,
        generation: 1,
        flags: endpoint_flags::L2,
        mac: many::mac(number),
        ..Default::default()
    };
    let mac = |number| (MacKey { vni: 100, mac: many::mac(number), ..Default::default() }, value(number));
    let ip =
        |number| (IpKey { vni: 100, ip: many::address(number).to_ipv6_mapped().octets() }, value(number));
    let by_mac: Vec<_> = (0..count).map(mac).collect();
    let by_ip: Vec<_> = (0..count).map(ip).collect();
    settle(count);
    let begin = Instant::now();
    let outcomes = [
        dataplane.tables().endpoints_mac.put_batch(by_mac),
        dataplane.tables().endpoints_ip.put_batch(by_ip),
    ];
    let time = begin.elapsed().as_secs_f64();
    ensure!(
        outcomes.iter().all(ncm_dataplane::Outcome::is_complete),
        "the kernel refused entries of the reference"
    );
    Ok(time)
}
