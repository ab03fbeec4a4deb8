//! One TCP stream between guests on two hosts, and small requests over TCP and UDP: ours and the kernel's in turn.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Plan;
use super::kernel::{BRIDGE, CONNTRACK, Pair, advised, kernel, ours, stateful};
use super::requests;
use super::row::{Bound, Row};
use super::turns::in_turn;
use crate::testbed::HostOptions;

/// A wire between the hosts, and how ours is configured for it.
struct Wire {
    name: &'static str,
    /// It is like one between network cards.
    nic: bool,
    /// Ours is configured as `docs/operations.md` advises for a wire that is a veth and no network card: native XDP copies each
    /// of its frames. What is measured against the budget on such a wire is that; with the defaults it is reported.
    advised: bool,
}

const WIRES: [Wire; 4] = [
    Wire { name: "nic", nic: true, advised: true },
    Wire { name: "nic_defaults", nic: true, advised: false },
    Wire { name: "virtual", nic: false, advised: true },
    Wire { name: "virtual_defaults", nic: false, advised: false },
];

impl Wire {
    fn options(&self) -> HostOptions {
        let defaults = HostOptions { nic: self.nic, ..HostOptions::default() };
        if self.advised { advised(defaults) } else { defaults }
    }

    /// Whether the rows have budgets.
    fn counts(&self) -> bool {
        self.advised || !self.nic
    }

    fn reference(&self, name: &str) -> String {
        let ours = if self.advised { "; ours with mode = \"tc\", relay_port = 4789" } else { "" };
        format!("{name}, same wire, same guests{ours}")
    }
}

/// What a row's name says beyond the kind of figure; the rows against connection tracking say so.
const STATEFUL: &str = "_conntrack";

pub(super) fn measure(plan: &Plan, done: &mut dyn FnMut(Row)) -> Result<()> {
    for wire in &WIRES {
        for (guests, taps) in [("veth", false), ("tap", true)] {
            measure_on(plan, wire, guests, taps, done)?;
        }
    }
    Ok(())
}

fn measure_on(plan: &Plan, wire: &Wire, guests: &str, taps: bool, done: &mut dyn FnMut(Row)) -> Result<()> {
    let name = |what: &str| format!("{what}_{}_{guests}", wire.name);
    let of = |what: &[&str]| {
        let named = |what: &&str| [name(what), name(what) + STATEFUL];
        what.iter().flat_map(named).any(|name| plan.wants(&name))
    };
    let streams = of(&["tcp_stream"]);
    let small = of(&["tcp_requests", "tcp_latency_median", "tcp_latency_p99"]);
    // Latency of datagrams is told for one wire and kind of guest each.
    let datagrams = wire.counts() && of(&["udp_latency_median", "udp_latency_p99"]);
    if !streams && !small && !datagrams {
        return Ok(());
    }
    let mut pairs = vec![ours(wire.options(), taps)?, kernel(wire.options(), taps)?];
    if wire.counts() {
        pairs.push(stateful(wire.options(), taps)?);
    }
    let mut tell = |what: &str, unit, values: Vec<f64>, bound: Option<Bound>| {
        let bound = bound.filter(|_| wire.counts());
        for ((reference, value), (suffix, bound)) in
            [BRIDGE, CONNTRACK].iter().zip(&values[1..]).zip([("", bound), (STATEFUL, bound)])
        {
            let name = name(what) + suffix;
            if plan.wants(&name) {
                done(Row::new(name, unit, values[0], wire.reference(reference), *value, bound));
            }
        }
    };
    let at_least = Some(Bound::AtLeast(1.0));
    if streams {
        let values = in_turn(plan, &pairs, |pair| Ok([gigabits(pair, plan.seconds().div_ceil(2))?]))?;
        tell("tcp_stream", "Gb/s", values.iter().map(|[value]| *value).collect(), at_least);
    }
    let time = Duration::from_millis(u64::from(plan.seconds()) * 125);
    if small {
        let values = in_turn(plan, &pairs, |pair| requests::tcp(pair, time))?;
        tell_requests(&mut tell, "tcp", &values, at_least);
    }
    if datagrams {
        let values = in_turn(plan, &pairs, |pair| requests::udp(pair, time))?;
        tell_requests(&mut tell, "udp", &values, None);
    }
    Ok(())
}

/// Rows of requests: how many a second, and how long one takes.
fn tell_requests(
    tell: &mut impl FnMut(&str, &'static str, Vec<f64>, Option<Bound>),
    protocol: &str,
    values: &[[f64; 3]],
    bound: Option<Bound>,
) {
    let figures = [("requests", "1/s", bound), ("latency_median", "µs", None), ("latency_p99", "µs", None)];
    for (at, (figure, unit, bound)) in figures.into_iter().enumerate() {
        tell(&format!("{protocol}_{figure}"), unit, values.iter().map(|value| value[at]).collect(), bound);
    }
}

/// What `iperf3` receives in one stream.
fn gigabits(pair: &Pair, seconds: u32) -> Result<f64> {
    let address = pair.b.ip().to_string();
    let mut server = pair.b.ns.start(&["iperf3", "-s", "-1", "--forceflush", "-B", &address])?;
    server.wait_for("Server listening", Duration::from_secs(5))?;
    let time = seconds.to_string();
    // Each end on a processor of its own, as guests' are: where the kernel would move them is luck.
    let shown = pair.a.ns.run_words(&["iperf3", "-c", &address, "-t", &time, "-J", "-A", "0,1"])?;
    let value: serde_json::Value = serde_json::from_str(&shown).context("iperf3's JSON")?;
    let bits = value["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.with_context(|| format!("no result from iperf3: {shown}"))?;
    Ok(bits / 1e9)
}
