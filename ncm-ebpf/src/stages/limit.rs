//! Token buckets per port, for what the packet path sends or hands up on its behalf.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use ncm_common::tables::{Bucket, PortLimits};

use crate::tables::LIMITS;

/// How many packets a bucket grants per second in the long run, and at once.
#[derive(Clone, Copy)]
pub struct Rate {
    per_second: u64,
    at_once: u64,
}

/// ICMP errors.
pub const ERRORS: Rate = Rate { per_second: 100, at_once: 50 };

/// Packets for the agent to answer.
pub const HAND_UPS: Rate = Rate { per_second: 20, at_once: 20 };

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

/// Takes a token, which is worth the nanoseconds that it takes to come. CPUs that take one at once may both get it.
#[inline(always)]
fn take(bucket: &mut Bucket, rate: Rate) -> bool {
    let cost = 1_000_000_000 / rate.per_second;
    let full = cost * rate.at_once;
    // SAFETY: the helper only reads the clock.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let gained = bucket.tokens.saturating_add(now.saturating_sub(bucket.filled));
    let tokens = if gained > full { full } else { gained };
    let granted = tokens >= cost;
    bucket.tokens = if granted { tokens - cost } else { tokens };
    bucket.filled = now;
    granted
}
