//! Token buckets per port, for what the packet path sends or hands up on its behalf.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use ncm_common::tables::{Port, PortLimits};

use crate::tables::LIMITS;

/// How many packets a bucket grants in the long run, and at once.
#[derive(Clone, Copy)]
pub struct Rate {
    /// Nanoseconds for each.
    interval: u64,
    at_once: u64,
}

/// ICMP errors: 100 in a second.
pub const ERRORS: Rate = Rate { interval: 10_000_000, at_once: 50 };

/// Packets for the agent to answer: 20 in a second.
pub const HAND_UPS: Rate = Rate { interval: 50_000_000, at_once: 20 };

/// Takes a token of a port's limit on ICMP errors, if there is one.
#[inline(always)]
pub fn grants_error(port: u32) -> bool {
    let mut granted = false;
    LIMITS.change(&port, |PortLimits { errors, .. }| granted = take(errors, ERRORS));
    granted
}

/// Takes a token of a port's limit on what it has handed up, if there is one.
#[inline(always)]
pub fn grants_hand_up(port: u32) -> bool {
    let mut granted = false;
    LIMITS.change(&port, |PortLimits { hand_ups, .. }| granted = take(hand_ups, HAND_UPS));
    granted
}

/// Takes a token of a port's limit on what upstream is asked for, if there is one.
#[inline(always)]
pub fn grants_ask(index: u32, port: &Port) -> bool {
    let rate = Rate { interval: port.ask_interval.into(), at_once: port.asks_at_once.into() };
    let mut granted = false;
    LIMITS.change(&index, |PortLimits { asks, .. }| granted = take(asks, rate));
    granted
}

/// Takes a token, which is worth the nanoseconds that it takes to come. CPUs that take one at once may both get it.
#[inline(always)]
fn take(full_at: &mut u64, rate: Rate) -> bool {
    // SAFETY: the helper only reads the clock.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let missing = full_at.saturating_sub(now);
    // Of another boot's clock, or damaged: no bucket lacks more than all.
    let whole = rate.interval.wrapping_mul(rate.at_once);
    let missing = if missing > whole { whole } else { missing };
    let after = missing + rate.interval;
    let granted = after <= whole;
    *full_at = now + if granted { after } else { missing };
    granted
}
