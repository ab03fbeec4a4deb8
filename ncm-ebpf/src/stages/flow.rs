//! The flow of a packet: conntrack and forwarding cache in one. A hit is the whole decision.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use ncm_common::tables::{Flow, FlowKey, Port, flow_flags, flow_kinds, flow_state, ticks};

use crate::{
    headers::{Mac, Packet, packet::class, packet::tcp_flags},
    scratch::{Side, VALID},
    tables::{Entry, HalfOpen, REMOTE_EPOCHS},
};

/// How long a flow's time may lag behind, in ticks: writing it for every packet would take a cache line from other CPUs.
const LAG: i32 = 7;

/// Time, in ticks.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper only reads the clock.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}

/// The key of a packet's flow at the port of that index: of a packet from its guest, or to it.
#[inline(always)]
pub fn key(packet: &Packet, port: u32, to_guest: bool, key: &mut FlowKey) {
    let ports = if to_guest { packet.ports.rotate_left(16) } else { packet.ports };
    let [a, b, c, d] = ports.to_ne_bytes();
    let (local, remote) =
        if to_guest { (packet.destination, packet.source) } else { (packet.source, packet.destination) };
    key.port = port;
    key.local = local.bytes();
    key.remote = remote.bytes();
    key.local_port = [a, b];
    key.remote_port = [c, d];
    key.protocol = packet.protocol;
    key.kind = flow_kinds::FLOW;
    key.reserved = [0; 2];
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
    let state = entry.state();
    let by_originator = to_guest == (state & flow_state::REMOTE_BEGAN != 0);
    state & (flow_state::RESET | flow_state::DENIED) == 0
        && (state & flow_state::ANSWERED != 0 || by_originator)
        && is_alive(entry, now)
        && is_current(entry.flow(), port)
}

/// Whether the flow is not over.
#[inline(always)]
pub fn is_alive(entry: Entry, now: u32) -> bool {
    let [out, back] = entry.seen();
    let seen = if out > back { out } else { back };
    // Signed: another CPU may have seen a packet a moment later.
    now.wrapping_sub(seen) as i32 <= entry.flow().timeout as i32
}

/// Whether nothing has changed since the decision: neither the port nor the other side.
#[inline(always)]
pub fn is_current(flow: &Flow, port: &Port) -> bool {
    flow.port_generation == port.generation
        && flow.port_epoch == port.epoch
        && epoch(flow.remote_slot) == flow.remote_epoch
}

/// The port's own epoch.
#[inline(always)]
pub fn of_port(port: &Port) -> u32 {
    // SAFETY: a reference may be read; volatile, as it is to be read before the tables are.
    unsafe { (&raw const port.epoch).read_volatile() }
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
    let [out, back] = entry.seen();
    if now.wrapping_sub(if to_guest { back } else { out }) as i32 > LAG {
        entry.see(to_guest, now);
    }
}

/// Whether what is known says where packets from the guest go, and this is such a packet.
#[inline(always)]
pub fn leads_out(side: &Side, packet: &Packet) -> bool {
    side.found == VALID
        && side.flow.flags & flow_flags::OUT != 0
        && Mac::new(&side.flow.local_mac) == packet.from
        && Mac::new(&side.flow.via_mac) == packet.to
}
