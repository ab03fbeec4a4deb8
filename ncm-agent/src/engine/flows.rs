//! What the packet path is told about flows: after how long without a packet they are over.

use ncm_common::tables::{ticks, timeouts};
use ncm_dataplane::Tables;

use crate::config::Flows;

const NANOSECONDS: u64 = 1_000_000_000;

/// Writes the configured timeouts. Flows that there are keep theirs until a packet changes their state, or has them decided anew.
pub(super) fn set_timeouts(flows: &Flows, tables: &Tables) -> Result<(), ncm_dataplane::Error> {
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
    seconds
        .iter()
        .try_for_each(|(key, seconds)| tables.timeouts.put(key, &ticks(u64::from(*seconds) * NANOSECONDS)))
}
