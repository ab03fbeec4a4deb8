//! `ncmctl drops` and `counters`.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::args::{Drops, Global, Output};
use super::connect::{Agent, Tables};
use super::failure::{Exit, Failure};
use super::json::{Json, object};
use super::output::{self, Grid};
use crate::ncm_v1::{DropCount, GetCountersRequest, GetDropsReply, GetDropsRequest};

/// Dropped packets; with `--watch` again and again, with what came on top.
pub(super) async fn drops(global: &Global, arguments: Drops) -> Result<Exit, Failure> {
    let mut tables = Tables::find(global, arguments.offline).await?;
    let port = arguments.port.unwrap_or_default();
    let Some(seconds) = arguments.watch else {
        let reply = read(&mut tables, &port).await?;
        let json = Json::new()?.own("GetDropsReply", &reply)?;
        output::show(global.output, &json, || drops_text(&reply))?;
        return Ok(Exit::Ok);
    };
    let mut before = read(&mut tables, &port).await?;
    if global.output == Output::Table {
        output::print(&drops_text(&before))?;
    }
    loop {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let now = read(&mut tables, &port).await?;
        let changes = changes(&before, &now);
        match global.output {
            Output::Table if changes.is_empty() => {}
            Output::Table => output::print(&format!("\n{}", changes_text(&changes)))?,
            // One document per interval, also when nothing came: a reader sees that it is alive.
            Output::Json => output::print(&format!("{}\n", changes_json(&changes, &before, &now)))?,
            Output::Yaml => {
                output::print(&format!("---\n{}", output::yaml(&changes_json(&changes, &before, &now))))?;
            }
        }
        before = now;
    }
}

async fn read(tables: &mut Tables, port: &str) -> Result<GetDropsReply, Failure> {
    match tables {
        Tables::Agent(agent) => {
            Ok(agent.inspect.get_drops(GetDropsRequest { port: port.to_owned() }).await?.into_inner())
        }
        Tables::Pinned(pinned) => Ok(pinned.drops(port)?),
    }
}

fn drops_text(reply: &GetDropsReply) -> String {
    let mut grid = Grid::new(["reason", "packets", "bytes"]);
    for count in reply.reasons.iter().filter(|count| count.packets > 0) {
        grid.row([count.reason.clone(), count.packets.to_string(), count.bytes.to_string()]);
    }
    if grid.is_empty() {
        return "nothing was dropped\n".to_owned();
    }
    let mut text = grid.text();
    let mut grid = Grid::new(["port", "reason", "packets", "bytes"]);
    for count in &reply.ports {
        grid.row([
            port_text(count),
            count.reason.clone(),
            count.packets.to_string(),
            count.bytes.to_string(),
        ]);
    }
    if !grid.is_empty() {
        text.push('\n');
        text.push_str(&grid.text());
    }
    let mut grid = Grid::new(["port", "security groups", "direction", "allowed", "denied"]);
    for count in reply.policy.iter().filter(|count| count.denied > 0) {
        let port = if count.port.is_empty() { format!("#{}", count.port_index) } else { count.port.clone() };
        grid.row([
            port,
            count.groups.clone(),
            count.direction.clone(),
            count.allowed.to_string(),
            count.denied.to_string(),
        ]);
    }
    if !grid.is_empty() {
        text.push('\n');
        text.push_str(&grid.text());
    }
    text
}

fn port_text(count: &DropCount) -> String {
    match (count.port.as_str(), count.port_index) {
        ("", 0) => "(none)".to_owned(),
        ("", index) => format!("#{index}"),
        (id, _) => id.to_owned(),
    }
}

/// What was dropped between two readings.
struct Delta {
    count: DropCount,
    packets: u64,
    bytes: u64,
}

/// By port and reason; a reason of which no drop is counted for a port comes without one.
fn changes(before: &GetDropsReply, now: &GetDropsReply) -> Vec<Delta> {
    let key = |count: &DropCount| (count.port_index, count.reason.clone());
    let delta = |earlier: &[DropCount], later: &[DropCount]| -> Vec<Delta> {
        let known: HashMap<_, _> =
            earlier.iter().map(|count| (key(count), (count.packets, count.bytes))).collect();
        let deltas = later.iter().map(|count| {
            let (packets, bytes) = known.get(&key(count)).copied().unwrap_or_default();
            // A port's counters start again when its index is given to another one.
            let packets = count.packets.checked_sub(packets).unwrap_or(count.packets);
            let bytes = count.bytes.checked_sub(bytes).unwrap_or(count.bytes);
            Delta { count: count.clone(), packets, bytes }
        });
        deltas.filter(|delta| delta.packets > 0).collect()
    };
    let mut by_port = delta(&before.ports, &now.ports);
    for total in delta(&before.reasons, &now.reasons) {
        if !by_port.iter().any(|delta| delta.count.reason == total.count.reason) {
            by_port.push(total);
        }
    }
    by_port
}

fn changes_text(changes: &[Delta]) -> String {
    let mut grid = Grid::new(["port", "reason", "new packets", "new bytes", "packets"]);
    for delta in changes {
        grid.row([
            port_text(&delta.count),
            delta.count.reason.clone(),
            format!("+{}", delta.packets),
            format!("+{}", delta.bytes),
            delta.count.packets.to_string(),
        ]);
    }
    grid.text()
}

fn changes_json(changes: &[Delta], before: &GetDropsReply, now: &GetDropsReply) -> Value {
    let rows = changes.iter().map(|delta| {
        object([
            ("port", delta.count.port.clone().into()),
            ("portIndex", delta.count.port_index.into()),
            ("reason", delta.count.reason.clone().into()),
            ("newPackets", delta.packets.into()),
            ("newBytes", delta.bytes.into()),
            ("packets", delta.count.packets.into()),
            ("bytes", delta.count.bytes.into()),
        ])
    });
    object([
        ("intervalNs", now.read_at_ns.saturating_sub(before.read_at_ns).into()),
        ("drops", rows.collect::<Vec<_>>().into()),
    ])
}

/// Everything that the agent counts.
pub(super) async fn counters(global: &Global, filter: Option<String>) -> Result<Exit, Failure> {
    let mut agent = Agent::connect(global).await?;
    let mut reply = agent.inspect.get_counters(GetCountersRequest {}).await?.into_inner();
    if let Some(part) = filter {
        reply.counters.retain(|counter| counter.name.contains(&part));
    }
    let json = Json::new()?.own("GetCountersReply", &reply)?;
    output::show(global.output, &json["counters"], || {
        let mut grid = Grid::new(["counter", "labels", "value"]);
        for counter in &reply.counters {
            for sample in &counter.samples {
                let labels = sample.labels.iter().map(|label| format!("{}={}", label.name, label.value));
                let labels = labels.collect::<Vec<_>>().join(",");
                grid.row([counter.name.clone(), labels, sample.value.to_string()]);
            }
        }
        grid.text()
    })?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(port_index: u32, reason: &str, packets: u64) -> DropCount {
        DropCount {
            reason: reason.to_owned(),
            packets,
            bytes: packets * 60,
            port_index,
            ..DropCount::default()
        }
    }

    #[test]
    fn a_watch_shows_what_came_on_top_and_a_restarted_counter_whole() {
        let before = GetDropsReply {
            reasons: vec![count(0, "vlan", 5), count(0, "unknown_vtep", 1)],
            ports: vec![count(1, "vlan", 5), count(2, "vlan", 9)],
            read_at_ns: 0,
            ..GetDropsReply::default()
        };
        let now = GetDropsReply {
            reasons: vec![count(0, "vlan", 9), count(0, "unknown_vtep", 3)],
            ports: vec![count(1, "vlan", 7), count(2, "vlan", 2)],
            read_at_ns: 1,
            ..GetDropsReply::default()
        };
        let seen = changes(&before, &now);
        let seen: Vec<_> = seen
            .iter()
            .map(|delta| (delta.count.port_index, delta.count.reason.as_str(), delta.packets))
            .collect();
        assert_eq!(seen, [(1, "vlan", 2), (2, "vlan", 2), (0, "unknown_vtep", 2)]);
    }
}
