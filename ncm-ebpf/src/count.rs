//! Counting what is not a drop.

use ncm_common::{
    counters::PathCounter,
    tables::{Count, PortTraffic},
};

use crate::tables::{COUNTERS, PORT_TRAFFIC};

/// One more packet of that many bytes.
#[inline(always)]
pub(crate) fn add(count: &mut Count, bytes: u32) {
    count.packets = count.packets.wrapping_add(1);
    count.bytes = count.bytes.wrapping_add(u64::from(bytes));
}

/// Counts a packet of that many bytes.
#[inline(always)]
pub fn count(counter: PathCounter, bytes: u32) {
    COUNTERS.change(&(counter as u32), |count| add(count, bytes));
}

/// Counts a frame that the guest behind a port sent.
#[inline(always)]
pub fn sent(port: u32, bytes: u32) {
    PORT_TRAFFIC.change(&port, |PortTraffic { sent, .. }| add(sent, bytes));
}

/// Counts a frame that was delivered to the guest behind a port.
#[inline(always)]
pub fn received(port: u32, bytes: u32) {
    PORT_TRAFFIC.change(&port, |PortTraffic { received, .. }| add(received, bytes));
}
