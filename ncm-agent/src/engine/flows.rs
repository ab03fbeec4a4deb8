//! What the packet path is told about flows: after how long without a packet they are over.

use ncm_common::tables::{ticks, timeouts};

use crate::config::Flows;

const NANOSECONDS: u64 = 1_000_000_000;

/// The configured timeouts, as their table has them. Flows that there are keep theirs until a packet changes their state, or has them
/// decided anew.
pub(super) fn timeouts(flows: &Flows) -> [(u32, u32); 10] {
    let seconds = [
        (timeouts::TCP_NEW, flows.tcp_new),
        (timeouts::TCP_SYN_RECEIVED, flows.tcp_syn_received),
        (timeouts::TCP_ESTABLISHED, flows.tcp_established),
        (timeouts::TCP_CLOSING, flows.tcp_closing),
        (timeouts::TCP_RESET, flows.tcp_reset),
        (timeouts::UDP_NEW, flows.udp_new),
        (timeouts::UDP_STREAM, flows.udp_stream),
        (timeouts::ICMP, flows.icmp),
        (timeouts::OTHER, flows.other),
        (timeouts::FRAGMENT, flows.fragment),
    ];
    seconds.map(|(key, seconds)| (key, ticks(u64::from(seconds) * NANOSECONDS)))
}
