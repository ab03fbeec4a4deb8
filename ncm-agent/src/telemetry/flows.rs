//! How many flows there are, by protocol and state: counted by the sweep, which walks through all of them anyway.

use std::sync::atomic::{AtomicU64, Ordering};

use ncm_common::tables::{Flow, FlowKey, flow_state};

use super::families::{Family, Sample};
use crate::inspect::{flow_state_text, idle_ticks};

const PROTOCOLS: [&str; 4] = ["tcp", "udp", "icmp", "other"];
const STATES: [&str; 7] = ["new", "syn_received", "established", "closing", "closed", "reset", "denied"];

/// Flows by protocol and state.
#[derive(Default)]
pub struct Tally {
    established: [[u64; STATES.len()]; PROTOCOLS.len()],
    over: u64,
    half_open: u64,
}

impl Tally {
    /// Counts a flow of the table of established ones.
    pub fn count(&mut self, key: &FlowKey, flow: &Flow, now: u32) {
        if idle_ticks(flow, now) > flow.timeout {
            self.over += 1;
            return;
        }
        let protocol = match key.protocol {
            6 => 0,
            17 => 1,
            1 | 58 => 2,
            _ => 3,
        };
        let text = if flow.state & flow_state::DENIED != 0 { "denied" } else { flow_state_text(flow.state) };
        let state = STATES.iter().position(|state| *state == text).unwrap_or(0);
        self.established[protocol][state] += 1;
    }

    /// Counts an entry of a port's own table, unless it is over.
    pub fn count_half_open(&mut self, flow: &Flow, now: u32) {
        self.half_open += u64::from(idle_ticks(flow, now) <= flow.timeout);
    }
}

static ESTABLISHED: [[AtomicU64; STATES.len()]; PROTOCOLS.len()] =
    [const { [const { AtomicU64::new(0) }; STATES.len()] }; PROTOCOLS.len()];
static OVER: AtomicU64 = AtomicU64::new(0);
static HALF_OPEN: AtomicU64 = AtomicU64::new(0);

/// Makes a walk's counts those that are shown.
pub fn publish(tally: &Tally) {
    for (shown, counted) in ESTABLISHED.iter().flatten().zip(tally.established.iter().flatten()) {
        shown.store(*counted, Ordering::Relaxed);
    }
    OVER.store(tally.over, Ordering::Relaxed);
    HALF_OPEN.store(tally.half_open, Ordering::Relaxed);
}

/// The flows as the last walk counted them.
#[must_use]
pub fn families() -> Vec<Family> {
    let gauge = |name, help, samples| Family { name, help, kind: "gauge", samples };
    let mut samples = Vec::new();
    for (protocol, counts) in PROTOCOLS.iter().zip(&ESTABLISHED) {
        for (state, count) in STATES.iter().zip(counts) {
            let labels = vec![("protocol", (*protocol).to_owned()), ("state", (*state).to_owned())];
            samples.push(Sample::new(labels, count.load(Ordering::Relaxed)));
        }
    }
    let single = |value: &AtomicU64| vec![Sample::new(Vec::new(), value.load(Ordering::Relaxed))];
    vec![
        gauge("ncm_flows", "Flows in the table of established ones, as of the last walk.", samples),
        gauge("ncm_flows_over", "Entries of that table that are over and not freed yet.", single(&OVER)),
        gauge(
            "ncm_flows_half_open",
            "Flows that are not established and first fragments, in the ports' own tables, as of the last walk.",
            single(&HALF_OPEN),
        ),
    ]
}
