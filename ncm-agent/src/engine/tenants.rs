//! What goes with a port beside its entry: its own table of half-open flows, its limits and its counts.

use ncm_common::tables::{Port, PortDropKey};
use ncm_dataplane::Tables;
use ncm_model::Put;

use super::writer::{Refusal, Refused};

/// What a port needs before anything is sent to it: a table of its own for half-open flows, and a count of flows that
/// begins at zero. What a former port of the same index left is nobody's. Ports that get no table are refused: it is tried
/// again until they have one.
pub(super) fn begin_ports(tables: &Tables, ports: &[Put<u32, Port>]) -> Refused {
    let is_new = |put: &Put<u32, Port>| {
        let there = tables.ports.get(&put.key).ok().flatten();
        there.is_none_or(|port| port.generation != put.value.generation)
    };
    let (mut begun, mut bare) = (Vec::new(), Vec::new());
    for put in ports {
        if is_new(put) {
            begun.push(put.key);
            bare.push(put);
        } else if !tables.half_open.has(put.key) {
            bare.push(put);
        }
    }
    let mut refused = Refused::new();
    if bare.is_empty() {
        return refused;
    }
    let _kept = tables.port_flows.delete_batch(begun);
    let indices: Vec<u32> = bare.iter().map(|put| put.key).collect();
    // Packets of a port without one are decided one by one: nothing is let through that should not be, and answers are
    // refused where only their requests are allowed.
    for (position, error) in tables.half_open.create(&indices).failed {
        let text = format!("the kernel refused a table for its half-open flows: {error}");
        refused.push(Refusal { cause: bare[position].cause, table: "HALF_OPEN", text: text.into() });
    }
    refused
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
