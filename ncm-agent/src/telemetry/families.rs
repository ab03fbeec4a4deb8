//! Families of samples: what metrics and tools show. Those of the packet path are read from its tables when asked for.

use std::collections::HashMap;

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::name_kinds;
use ncm_dataplane::Tables;

/// Everything of one name.
#[derive(Clone, PartialEq, Debug)]
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// What it counts or measures.
    pub help: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// One for each set of labels.
    pub samples: Vec<Sample>,
}

/// One value.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// A value with labels.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "metrics are floating point; 2^53 packets are enough")]
    pub fn new(labels: Vec<(&'static str, String)>, value: u64) -> Self {
        Self { labels, value: value as f64 }
    }
}

/// What the packet path counts. A table that cannot be read yields no samples.
#[must_use]
pub fn packet_path(tables: &Tables) -> Vec<Family> {
    let family = |name, help| Family { name, help, kind: "counter", samples: Vec::new() };
    let mut drops =
        family("ncm_drops_packets_total", "Packets dropped, by reason; docs/drop-reasons.md explains each.");
    let mut drop_bytes = family("ncm_drops_bytes_total", "Bytes of packets dropped, by reason.");
    for reason in DropReason::ALL {
        if let Ok(Some(count)) = tables.drops.get(&(*reason as u32)) {
            let labels = vec![("reason", reason.name().to_owned())];
            drops.samples.push(Sample::new(labels.clone(), count.packets));
            drop_bytes.samples.push(Sample::new(labels, count.bytes));
        }
    }
    let mut path = family("ncm_path_packets_total", "Packets by what the packet path did with them.");
    let mut path_bytes = family("ncm_path_bytes_total", "Bytes by what the packet path did with them.");
    for counter in PathCounter::ALL {
        if let Ok(Some(count)) = tables.counters.get(&(*counter as u32)) {
            let labels = vec![("event", counter.name().to_owned())];
            path.samples.push(Sample::new(labels.clone(), count.packets));
            path_bytes.samples.push(Sample::new(labels, count.bytes));
        }
    }
    let mut families = vec![drops, drop_bytes, path, path_bytes];
    families.extend(by_port(tables));
    families
}

fn by_port(tables: &Tables) -> Vec<Family> {
    let names = named(tables, name_kinds::PORT);
    let family = |name, help| Family { name, help, kind: "counter", samples: Vec::new() };
    let mut drops = family("ncm_port_drops_packets_total", "Packets dropped, by port and reason.");
    for (key, count) in tables.port_drops.entries().unwrap_or_default() {
        let reason = DropReason::from_number(key.reason).map_or("unknown", DropReason::name);
        let port = names.get(&key.port).cloned().unwrap_or_default();
        drops.samples.push(Sample::new(vec![("port", port), ("reason", reason.to_owned())], count.packets));
    }
    let sets = named(tables, name_kinds::SET);
    let mut allowed = family(
        "ncm_policy_allowed_total",
        "Flows, and packets that begin none, that policy allowed, by port, security groups and direction.",
    );
    let mut denied = family("ncm_policy_denied_total", "Those that it denied.");
    for (key, count) in tables.policy_counts.entries().unwrap_or_default() {
        let direction = if key.set & 1 == 0 { "egress" } else { "ingress" };
        let labels = vec![
            ("port", names.get(&key.port).cloned().unwrap_or_default()),
            ("groups", sets.get(&(key.set >> 1)).cloned().unwrap_or_default()),
            ("direction", direction.to_owned()),
        ];
        allowed.samples.push(Sample::new(labels.clone(), count.allowed));
        denied.samples.push(Sample::new(labels, count.denied));
    }
    let mut flows = Family {
        name: "ncm_port_flows",
        help: "Established flows, by port.",
        kind: "gauge",
        samples: Vec::new(),
    };
    for (index, port) in &names {
        let Ok(Some(count)) = tables.port_flows.get(index) else { continue };
        flows.samples.push(Sample::new(vec![("port", port.clone())], count.established.into()));
    }
    let mut received = family("ncm_port_received_packets_total", "Packets delivered to the guest, by port.");
    let mut received_bytes =
        family("ncm_port_received_bytes_total", "Bytes delivered to the guest, by port.");
    let mut sent = family("ncm_port_sent_packets_total", "Packets from the guest, by port.");
    let mut sent_bytes = family("ncm_port_sent_bytes_total", "Bytes from the guest, by port.");
    for (index, port) in &names {
        let Ok(Some(traffic)) = tables.port_traffic.get(index) else { continue };
        let labels = vec![("port", port.clone())];
        received.samples.push(Sample::new(labels.clone(), traffic.received.packets));
        received_bytes.samples.push(Sample::new(labels.clone(), traffic.received.bytes));
        sent.samples.push(Sample::new(labels.clone(), traffic.sent.packets));
        sent_bytes.samples.push(Sample::new(labels, traffic.sent.bytes));
    }
    vec![drops, received, received_bytes, sent, sent_bytes, allowed, denied, flows]
}

/// The names of the things of a kind, by index.
fn named(tables: &Tables, kind: u32) -> HashMap<u32, String> {
    let names = tables.names.entries().unwrap_or_default().into_iter();
    names.filter(|(key, _)| key.kind == kind).map(|(key, name)| (key.index, text(&name))).collect()
}

fn text(name: &ncm_common::tables::Name) -> String {
    let length = (name.len as usize).min(name.text.len());
    String::from_utf8_lossy(&name.text[..length]).into_owned()
}
