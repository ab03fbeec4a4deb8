//! The flow of a packet: conntrack and forwarding cache in one. A hit is the whole decision.

use core::mem::offset_of;

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use ncm_common::tables::{Flow, FlowKey, Port, flow_flags, flow_kinds, flow_state, ticks};

use crate::{
    headers::{Mac, Packet, packet::class, packet::tcp_flags},
    scratch::{Side, VALID},
    tables::{Entry, HalfOpen, REMOTE_EPOCHS},
};

/// How long a flow's time may lag behind at most, in ticks: writing it for every packet would take a cache line from other CPUs.
const LAG: u32 = 7;

/// Time, in ticks.
#[inline(always)]
pub fn now() -> u32 {
    ticks(clock())
}

/// Nanoseconds of `CLOCK_MONOTONIC`, as of the kernel's last tick.
#[inline(always)]
pub fn clock() -> u64 {
    // SAFETY: the helper only reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The key of a packet's flow at the port of that index: of a packet from its guest, or to it.
#[inline(always)]
pub fn key(packet: &Packet, port: u32, to_guest: bool, key: &mut FlowKey) {
    let (local, remote, ports) = if to_guest {
        (packet.destination.words(), packet.source.words(), packet.ports.rotate_left(16))
    } else {
        (packet.source.words(), packet.destination.words(), packet.ports)
    };
    let last = u32::from_ne_bytes([packet.protocol, flow_kinds::FLOW, 0, 0]);
    const LOCAL: usize = offset_of!(FlowKey, local) / 4;
    const REMOTE: usize = offset_of!(FlowKey, remote) / 4;
    let words: *mut u32 = core::ptr::from_mut(key).cast();
    // Word by word: the compiler's own way would be byte by byte, which the look-up, reading words, would have to wait for.
    macro_rules! write {
        ($($at:expr => $word:expr,)+) => {$(
            // SAFETY: the words are the key's, as asserted below.
            unsafe { words.add($at).write($word) };
        )+};
    }
    write! {
        offset_of!(FlowKey, port) / 4 => port,
        LOCAL => local[0], LOCAL + 1 => local[1], LOCAL + 2 => local[2], LOCAL + 3 => local[3],
        REMOTE => remote[0], REMOTE + 1 => remote[1], REMOTE + 2 => remote[2], REMOTE + 3 => remote[3],
        offset_of!(FlowKey, local_port) / 4 => ports,
        offset_of!(FlowKey, protocol) / 4 => last,
    }
}

const _: () = {
    assert!(size_of::<FlowKey>() == 11 * 4 && align_of::<FlowKey>() == 4);
    assert!(offset_of!(FlowKey, local) % 4 == 0 && offset_of!(FlowKey, remote) % 4 == 0);
    assert!(offset_of!(FlowKey, local_port) % 4 == 0 && offset_of!(FlowKey, protocol) % 4 == 0);
    assert!(offset_of!(FlowKey, remote_port) == offset_of!(FlowKey, local_port) + 2);
    assert!(offset_of!(FlowKey, kind) == offset_of!(FlowKey, protocol) + 1);
};

/// Notes what vouches for the decision that is about to be made. It comes before all that is looked up: what changes after it has
/// the flow decided anew.
#[inline(always)]
pub fn stamp(port: &Port, side: &mut Side) {
    let port = core::ptr::from_ref(port);
    // SAFETY: a reference may be read; volatile, as the agent changes it meanwhile, and it is to be read once and now.
    unsafe {
        side.port_generation = (&raw const (*port).generation).read_volatile();
        side.port_epoch = (&raw const (*port).epoch).read_volatile();
    }
}

/// The entry of a flow: established, or among its port's half-open ones.
#[inline(always)]
pub fn entry(key: &FlowKey) -> Option<Entry> {
    match Entry::established(key) {
        Some(entry) => Some(entry),
        None => HalfOpen::of(key.port)?.get(key),
    }
}

/// The entry of a packet's flow, if the packet changes nothing about it: it is no fragment, begins and ends nothing.
#[inline(always)]
pub fn find(packet: &Packet, key: &FlowKey) -> Option<Entry> {
    const TURNS: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;
    if packet.class & (class::FIRST | class::LATER | class::MESSAGE) != 0 || packet.tcp_flags & TURNS != 0 {
        return None;
    }
    entry(key)
}

/// Whether a flow's decision stands, for a packet to its guest or from it that changes nothing about its state.
#[inline(always)]
pub fn is_steady(entry: Entry, port: &Port, now: u32, to_guest: bool) -> bool {
    const OPEN: u32 = flow_state::ANSWERED | flow_state::CONFIRMED | flow_state::ESTABLISHED;
    let state = entry.state();
    (state & (OPEN | flow_state::RESET | flow_state::DENIED) == OPEN
        || is_steady_half_open(entry, state, now, to_guest))
        && is_alive(entry, now)
        && is_current(entry.flow(), port.generation, port.epoch)
}

/// The same for the state of a flow that is not in the table of flows, or was begun anew there.
#[inline(always)]
fn is_steady_half_open(entry: Entry, state: u32, now: u32, to_guest: bool) -> bool {
    if state & (flow_state::RESET | flow_state::DENIED) != 0 {
        return false;
    }
    if state & flow_state::ANSWERED == 0 {
        return to_guest == (state & flow_state::REMOTE_BEGAN != 0);
    }
    // One that found no room in the table of flows tries again, now and then.
    state & flow_state::CONFIRMED != 0 && !lags(entry, to_guest, now)
}

/// Whether the flow is not over.
#[inline(always)]
pub fn is_alive(entry: Entry, now: u32) -> bool {
    is_alive_at(entry.seen(), entry.flow().timeout, now)
}

/// The same of what was read of a flow.
#[inline(always)]
pub fn is_alive_at([out, back]: [u32; 2], timeout: u32, now: u32) -> bool {
    let seen = if out > back { out } else { back };
    // Signed: another CPU may have seen a packet a moment later.
    now.wrapping_sub(seen) as i32 <= timeout as i32
}

/// Whether nothing has changed since the decision: neither the port nor the other side.
#[inline(always)]
pub fn is_current(flow: &Flow, port_generation: u32, port_epoch: u32) -> bool {
    flow.port_generation == port_generation
        && flow.port_epoch == port_epoch
        && epoch(flow.remote_slot) == flow.remote_epoch
}

/// The epoch of a slot.
#[inline(always)]
pub fn epoch(slot: u32) -> u32 {
    // SAFETY: a reference may be read; volatile, as it is to be read before the tables are.
    REMOTE_EPOCHS.get(&slot).map_or(0, |epoch| unsafe { core::ptr::from_ref(epoch).read_volatile() })
}

/// Notes that a packet was seen, unless that was noted a moment ago.
#[inline(always)]
pub fn see(entry: Entry, to_guest: bool, now: u32) {
    if lags(entry, to_guest, now) {
        entry.see(to_guest, now);
    }
}

/// Whether it is time to note that a packet was seen.
#[inline(always)]
fn lags(entry: Entry, to_guest: bool, now: u32) -> bool {
    let [out, back] = entry.seen();
    // A flow that is soon over must not be so for this.
    let quarter = entry.flow().timeout >> 2;
    let lag = if quarter < LAG { quarter } else { LAG };
    now.wrapping_sub(if to_guest { back } else { out }) as i32 > lag as i32
}

/// Whether what is known says where packets from the guest go, and this is such a packet.
#[inline(always)]
pub fn leads_out(side: &Side, packet: &Packet) -> bool {
    side.found == VALID
        && side.flow.flags & flow_flags::OUT != 0
        && Mac::new(&side.flow.local_mac) == packet.from
        && Mac::new(&side.flow.via_mac) == packet.to
}
