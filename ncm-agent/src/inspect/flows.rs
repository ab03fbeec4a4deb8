//! Flows as columns, as connection trackers show them: what the connection is, how far it is, and where it goes.

use ncm_common::tables::{
    Flow, FlowKey, PortFlows, flow_flags, flow_kinds, flow_state, name_kinds, ticks, timeouts,
};

use super::columns::{Columns, KeyError, TextKey, Value, flags_text, ip_text, parse_ip, parsed};
use super::names::Names;
use super::read::monotonic_ns;
use super::values::{ip_or_none, mac_or_none, target};

/// Numbers of protocols that have names (IANA, Assigned Internet Protocol Numbers).
const PROTOCOLS: &[(u8, &str)] = &[
    (1, "icmp"),
    (6, "tcp"),
    (17, "udp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "icmpv6"),
    (132, "sctp"),
];

/// Name of a protocol, or its number.
pub(super) fn protocol_text(protocol: u8) -> String {
    let known = PROTOCOLS.iter().find(|(number, _)| *number == protocol);
    known.map_or_else(|| protocol.to_string(), |(_, name)| (*name).to_owned())
}

/// The number of a protocol from what [`protocol_text`] gave.
pub(super) fn parse_protocol(text: &str) -> Result<u8, KeyError> {
    let known = PROTOCOLS.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
    known.map_or_else(|| parsed(text, "a protocol such as tcp, or its number"), Ok)
}

/// What an entry's key is of.
const KINDS: &[(u8, &str)] = &[
    (flow_kinds::FLOW, "flow"),
    (flow_kinds::FRAGMENT_OUT, "fragment_out"),
    (flow_kinds::FRAGMENT_IN, "fragment_in"),
];

impl Columns for FlowKey {
    const NAMES: &'static [&'static str] =
        &["port", "protocol", "local", "local_port", "remote", "remote_port", "kind"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let kind = KINDS.iter().find(|(kind, _)| *kind == self.kind);
        vec![
            names.show(name_kinds::PORT, self.port).into(),
            protocol_text(self.protocol).into(),
            ip_text(self.local).into(),
            u16::from_be_bytes(self.local_port).into(),
            ip_text(self.remote).into(),
            u16::from_be_bytes(self.remote_port).into(),
            kind.map_or_else(|| self.kind.to_string(), |(_, name)| (*name).to_owned()).into(),
        ]
    }
}

impl TextKey for FlowKey {
    const EXAMPLE: &'static str =
        "port=#1,protocol=tcp,local=10.0.0.5,local_port=40000,remote=10.0.0.9,remote_port=443,kind=flow";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        let port = |text| parsed::<u16>(text, "a transport port").map(u16::to_be_bytes);
        let kind = KINDS.iter().find(|(_, name)| *name == texts[6]).map(|(kind, _)| *kind);
        Ok(Self {
            port: names.parse(name_kinds::PORT, texts[0])?,
            protocol: parse_protocol(texts[1])?,
            local: parse_ip(texts[2])?,
            local_port: port(texts[3])?,
            remote: parse_ip(texts[4])?,
            remote_port: port(texts[5])?,
            kind: kind.map_or_else(|| parsed(texts[6], "one of flow, fragment_out, fragment_in"), Ok)?,
            reserved: [0; 2],
        })
    }
}

/// How far a flow is. What the protocol is stands in the key: only TCP has the bits of its later states.
#[must_use]
pub fn state_text(state: u32) -> &'static str {
    let fins = state & (flow_state::FIN_OUT | flow_state::FIN_IN);
    match state {
        _ if state & flow_state::RESET != 0 => "reset",
        _ if fins == flow_state::FIN_OUT | flow_state::FIN_IN => "closed",
        _ if fins != 0 => "closing",
        _ if state & flow_state::ANSWERED == 0 => "new",
        _ if state & flow_state::CONFIRMED == 0 => "syn_received",
        _ => "established",
    }
}

impl Columns for Flow {
    const NAMES: &'static [&'static str] = &[
        "state",
        "began_by",
        "verdict",
        "age_s",
        "idle_s",
        "expires_s",
        "target",
        "vni",
        "flags",
        "local_mac",
        "via_mac",
        "to_mac",
        "from_mac",
        "arriving_mac",
        "shown_mac",
        "peer",
        "port_generation",
        "port_epoch",
        "remote_slot",
        "remote_epoch",
    ];
    fn values(&self, names: &Names) -> Vec<Value> {
        let now = ticks(monotonic_ns());
        let idle = idle_ticks(self, now);
        let known = [
            (flow_flags::OUT, "out"),
            (flow_flags::LOCAL, "local"),
            (flow_flags::ROUTED, "routed"),
            (flow_flags::IN, "in"),
        ];
        let out = self.flags & flow_flags::OUT != 0;
        let target = target(self.flags & flow_flags::LOCAL != 0, self.target, self.target_generation, names);
        vec![
            state_text(self.state).into(),
            if self.state & flow_state::REMOTE_BEGAN != 0 { "remote" } else { "guest" }.into(),
            if self.state & flow_state::DENIED != 0 { "denied" } else { "allowed" }.into(),
            seconds(now.saturating_sub(self.created)).into(),
            seconds(idle).into(),
            seconds(self.timeout.saturating_sub(idle)).into(),
            if out { target } else { "-".into() },
            self.vni.into(),
            flags_text(self.flags, &known).into(),
            mac_or_none(self.local_mac),
            mac_or_none(self.via_mac),
            mac_or_none(self.to_mac),
            mac_or_none(self.from_mac),
            mac_or_none(self.arriving_mac),
            mac_or_none(self.shown_mac),
            ip_or_none(self.peer),
            self.port_generation.into(),
            self.port_epoch.into(),
            self.remote_slot.into(),
            self.remote_epoch.into(),
        ]
    }
}

/// Ticks since the flow's last packet.
#[must_use]
pub fn idle_ticks(flow: &Flow, now: u32) -> u32 {
    let last = flow.seen[0].max(flow.seen[1]).max(flow.created);
    now.saturating_sub(last)
}

/// Whole seconds of so many ticks.
fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << 27) / 1_000_000_000
}

/// The timeouts by name.
const TIMEOUTS: &[(u32, &str)] = &[
    (timeouts::TCP_NEW, "tcp_new"),
    (timeouts::TCP_SYN_RECEIVED, "tcp_syn_received"),
    (timeouts::TCP_ESTABLISHED, "tcp_established"),
    (timeouts::TCP_CLOSING, "tcp_closing"),
    (timeouts::TCP_RESET, "tcp_reset"),
    (timeouts::UDP_NEW, "udp_new"),
    (timeouts::UDP_STREAM, "udp_stream"),
    (timeouts::ICMP, "icmp"),
    (timeouts::OTHER, "other"),
    (timeouts::FRAGMENT, "fragment"),
];

pub(super) fn timeout_text(number: u32) -> String {
    let known = TIMEOUTS.iter().find(|(timeout, _)| *timeout == number);
    known.map_or_else(|| format!("#{number}"), |(_, name)| (*name).to_owned())
}

pub(super) fn parse_timeout(text: &str) -> Result<u32, KeyError> {
    let known = TIMEOUTS.iter().find(|(_, name)| *name == text).map(|(timeout, _)| *timeout);
    known
        .or_else(|| text.strip_prefix('#')?.parse().ok())
        .ok_or_else(|| KeyError::value(text, "a timeout; `ncmctl map dump timeouts` lists them"))
}

/// A time in ticks.
pub(super) struct Ticks(pub(super) u32);

impl Columns for Ticks {
    const NAMES: &'static [&'static str] = &["ticks", "seconds"];
    fn values(&self, _: &Names) -> Vec<Value> {
        // Configured in seconds and kept in ticks, of which there are seven or eight to a second.
        let seconds = ((u64::from(self.0) << 27) + 500_000_000) / 1_000_000_000;
        vec![self.0.into(), seconds.into()]
    }
}

/// An epoch.
pub(super) struct Epoch(pub(super) u32);

impl Columns for Epoch {
    const NAMES: &'static [&'static str] = &["epoch"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.0.into()]
    }
}

impl Columns for PortFlows {
    const NAMES: &'static [&'static str] = &["established"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.established.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_called_what_the_last_packets_made_it() {
        use flow_state::{ANSWERED, CONFIRMED, FIN_IN, FIN_OUT, RESET};
        for (state, text) in [
            (0, "new"),
            (CONFIRMED, "new"),
            (ANSWERED, "syn_received"),
            (ANSWERED | CONFIRMED, "established"),
            (ANSWERED | FIN_OUT, "closing"),
            (ANSWERED | FIN_IN, "closing"),
            (ANSWERED | FIN_IN | FIN_OUT, "closed"),
            (ANSWERED | FIN_IN | RESET, "reset"),
        ] {
            assert_eq!(state_text(state), text);
        }
    }

    #[test]
    fn a_flow_is_idle_since_its_last_packet_in_either_direction() {
        let flow = Flow { created: 100, seen: [150, 120], timeout: 40, ..Flow::default() };
        assert_eq!(idle_ticks(&flow, 160), 10);
        assert_eq!(idle_ticks(&Flow { seen: [0, 0], ..flow }, 160), 60, "before the first packet is noted");
        assert_eq!(idle_ticks(&flow, 140), 0, "seen by another CPU a moment later");
    }

    #[test]
    fn timeouts_are_shown_in_the_seconds_that_they_were_configured_in() {
        let names = Names::default();
        for configured in [1_u64, 5, 10, 30, 120, 432_000] {
            let ticks = Ticks(ticks(configured * 1_000_000_000));
            assert_eq!(ticks.values(&names)[1], Value::Number(configured));
        }
    }
}
