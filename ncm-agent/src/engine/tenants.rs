//! What goes with a port beside its entry: its own table of half-open flows, its limits and its counts.

use ncm_common::tables::{Port, PortDropKey};
use ncm_dataplane::Tables;
use ncm_model::Put;

use crate::telemetry::own;

/// What a port needs before anything is sent to it: a table of its own for half-open flows, and a count of flows that
/// begins at zero. What a former port of the same index left is nobody's.
pub(super) fn begin_ports(tables: &Tables, ports: &[Put<u32, Port>]) {
    let is_new = |put: &&Put<u32, Port>| {
        let there = tables.ports.get(&put.key).ok().flatten();
        there.is_none_or(|port| port.generation != put.value.generation)
    };
    let begun: Vec<u32> = ports.iter().filter(is_new).map(|put| put.key).collect();
    if begun.is_empty() {
        return;
    }
    let _kept = tables.port_flows.delete_batch(begun.iter().copied());
    let outcome = tables.half_open.create(&begun);
    if let Some((_, error)) = outcome.failed.first() {
        // The port's packets are decided one by one: nothing is let through that should not be, and answers are refused
        // where only their requests are allowed.
        tracing::error!(ports = outcome.failed.len(), %error, "ports get no table of half-open flows");
        own::ENTRIES_FAILED.add(outcome.failed.len() as u64);
    }
}

/// What a port leaves goes: its index will be another's. Its established flows are the sweep's.
pub(super) fn end_ports(tables: &Tables, ports: &[u32]) {
    if ports.is_empty() {
        return;
    }
    let outcome = tables.half_open.remove(ports);
    if let Some((_, error)) = outcome.failed.first() {
        tracing::error!(ports = outcome.failed.len(), %error, "ports keep their tables of half-open flows");
    }
    let _kept = tables.limits.delete_batch(ports.iter().copied());
    let reasons = ncm_common::drops::DropReason::ALL;
    let keys = ports
        .iter()
        .flat_map(|port| reasons.iter().map(|reason| PortDropKey { port: *port, reason: *reason as u32 }));
    // Counts that stay are wrong, not harmful.
    let _kept = tables.port_drops.reset(keys);
    let _kept = tables.port_traffic.reset(ports.iter().copied());
    let decisions = tables.policy_counts.entries().unwrap_or_default();
    let decisions = decisions.into_iter().map(|(key, _)| key).filter(|key| ports.contains(&key.port));
    let _kept = tables.policy_counts.reset(decisions);
}
