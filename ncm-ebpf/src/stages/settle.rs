//! What a packet changes about its flow: it begins one, answers it, ends it, or has it decided anew.

use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{Flow, Port, flow_flags, flow_state, timeouts},
};

use super::{flow, policy};
use crate::{
    count::count,
    headers::{
        Packet,
        packet::{class, protocol, tcp_flags},
    },
    scratch::{ESTABLISHED, HALF_OPEN, NONE, NOWHERE, STALE, Side, VALID},
    tables::{EXISTS, Entry, FLOWS, HalfOpen, PORT_FLOWS, TIMEOUTS},
};

/// Looks up what is known of the flow of `side.key`, and takes it into `side.flow`.
#[inline(never)]
pub fn look(port: &Port, packet: &Packet, side: &mut Side) {
    side.found = NONE;
    side.place = NOWHERE;
    side.members = 0;
    side.changed = 0;
    clear(&mut side.flow);
    if packet.class & class::MESSAGE != 0 {
        return;
    }
    let entry = match Entry::established(&side.key) {
        Some(entry) => {
            side.place = ESTABLISHED;
            entry
        }
        None => match HalfOpen::of(side.key.port).and_then(|flows| flows.get(&side.key)) {
            Some(entry) => {
                side.place = HALF_OPEN;
                entry
            }
            None => return,
        },
    };
    if !flow::is_alive(entry, side.now) || entry.flow().port_generation != port.generation {
        return;
    }
    copy(entry.flow(), &mut side.flow);
    if flow::is_current(&side.flow, port) {
        side.found = VALID;
    } else {
        side.found = STALE;
        side.flow.flags &= !(flow_flags::OUT | flow_flags::IN);
    }
}

/// Words of a flow.
const WORDS: usize = size_of::<Flow>() / 4;

/// Makes a flow all zero. Word by word: the compiler's own way would be a loop over bytes.
#[inline(always)]
pub fn clear(flow: &mut Flow) {
    let words: *mut u32 = core::ptr::from_mut(flow).cast();
    let mut at = 0;
    while at < WORDS {
        // SAFETY: the words are the flow's, and zero is a value of all its fields.
        unsafe { words.add(at).write_volatile(0) };
        at += 1;
    }
}

/// Copies a flow, likewise.
#[inline(always)]
fn copy(from: &Flow, to: &mut Flow) {
    let (from, to): (*const u32, *mut u32) =
        (core::ptr::from_ref(from).cast(), core::ptr::from_mut(to).cast());
    let mut at = 0;
    while at < WORDS {
        // SAFETY: the words are the flows'.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        at += 1;
    }
}

/// Decides about a packet whose flow was looked up, and notes in the tables what it changes. Gives the reason of a drop, or 0.
#[inline(never)]
pub fn settle(port: &Port, packet: &Packet, side: &mut Side, to_guest: bool) -> u32 {
    let flags = packet.tcp_flags;
    let begins =
        flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN) == tcp_flags::SYN;
    const OVER: u32 = flow_state::FIN_OUT | flow_state::FIN_IN;
    let before = side.flow.state;
    if side.found != NONE
        && begins
        && (before & (flow_state::RESET | flow_state::DENIED) != 0 || before & OVER == OVER)
    {
        side.found = NONE;
    }
    let began_by_remote = side.flow.state & flow_state::REMOTE_BEGAN != 0;
    if side.found == STALE {
        count(PathCounter::FlowRedecided, packet.length);
        side.flow.port_epoch = side.epoch;
        side.changed = 1;
        side.flow.state &= !flow_state::DENIED;
        if policy::allows(port, packet, side, began_by_remote) == 0 {
            side.flow.state |= flow_state::DENIED;
        }
    }
    if side.found != NONE && side.flow.state & flow_state::DENIED != 0 {
        // It stays as long as its packets come, or the side that answers would begin it anew.
        write(packet, side, to_guest);
        return denied(began_by_remote);
    }
    if side.found == NONE {
        if policy::allows(port, packet, side, to_guest) == 0 {
            return denied(to_guest);
        }
        if packet.class & (class::LATER | class::MESSAGE) != 0
            || packet.is_echo_reply()
            || flags & tcp_flags::RST != 0
            || flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN | tcp_flags::ACK
        {
            return 0;
        }
        count(PathCounter::FlowCreated, packet.length);
        side.changed = 1;
        side.flow.state = if to_guest { flow_state::REMOTE_BEGAN } else { 0 };
        side.flow.seen = [0; 2];
        side.flow.created = side.now;
        side.flow.port_generation = port.generation;
        side.flow.port_epoch = side.epoch;
        if side.place == ESTABLISHED {
            side.flow.state |= flow_state::ESTABLISHED;
        }
    }
    track(flags, side, to_guest);
    if side.flow.state & flow_state::ANSWERED != 0
        && side.place != ESTABLISHED
        && before & flow_state::ANSWERED == 0
    {
        side.flow.timeout = timeout(packet.protocol, side.flow.state);
        side.flow.seen[usize::from(to_guest)] = side.now;
        promote(port, packet, side);
    } else {
        write(packet, side, to_guest);
    }
    0
}

/// The reason of a drop by policy.
#[inline(always)]
const fn denied(by_ingress: bool) -> u32 {
    if by_ingress { DropReason::PolicyIngress as u32 } else { DropReason::PolicyEgress as u32 }
}

/// The state after a packet.
#[inline(always)]
fn track(flags: u8, side: &mut Side, to_guest: bool) {
    let mut state = side.flow.state;
    if flags & tcp_flags::RST != 0 {
        // Anybody may have sent it: the next packet that is none takes it back.
        state |= flow_state::RESET;
    } else {
        state &= !flow_state::RESET;
        if flags & tcp_flags::FIN != 0 {
            state |= if to_guest { flow_state::FIN_IN } else { flow_state::FIN_OUT };
        }
        if to_guest != (state & flow_state::REMOTE_BEGAN != 0) {
            state |= flow_state::ANSWERED;
        }
    }
    side.flow.state = state;
}

/// How long a flow of that protocol lives without a packet, in ticks.
#[inline(always)]
fn timeout(protocol: u8, state: u32) -> u32 {
    let answered = state & flow_state::ANSWERED != 0;
    let kind = match protocol {
        protocol::TCP if state & flow_state::RESET != 0 => timeouts::TCP_RESET,
        protocol::TCP if state & (flow_state::FIN_OUT | flow_state::FIN_IN) != 0 => timeouts::TCP_CLOSING,
        protocol::TCP if answered => timeouts::TCP_ESTABLISHED,
        protocol::TCP => timeouts::TCP_NEW,
        protocol::UDP if answered => timeouts::UDP_STREAM,
        protocol::UDP => timeouts::UDP_NEW,
        protocol::ICMP | protocol::ICMPV6 => timeouts::ICMP,
        _ => timeouts::OTHER,
    };
    TIMEOUTS.get(&kind).copied().unwrap_or(0)
}

/// Writes the flow where it is: its words in place if nothing else has changed, a whole value otherwise.
#[inline(always)]
fn write(packet: &Packet, side: &mut Side, to_guest: bool) {
    side.flow.timeout = timeout(packet.protocol, side.flow.state);
    side.flow.seen[usize::from(to_guest)] = side.now;
    if side.changed == 0 {
        if let Some(entry) = flow::entry(&side.key) {
            entry.turn(side.flow.state, side.flow.timeout);
            entry.see(to_guest, side.now);
        }
    } else if side.place == ESTABLISHED && FLOWS.replace(&side.key, &side.flow) {
    } else if let Some(flows) = HalfOpen::of(side.key.port) {
        side.flow.state &= !flow_state::ESTABLISHED;
        flows.put(&side.key, &side.flow);
    }
}

/// Moves an answered flow to the table of flows. Without room, or beyond the port's share, it stays where it is.
#[inline(always)]
fn promote(port: &Port, packet: &Packet, side: &mut Side) {
    let index = side.key.port;
    let Some(flows) = HalfOpen::of(index) else { return };
    let has_room = PORT_FLOWS.get(&index).is_some_and(|flows| flows.established < port.max_flows);
    if !has_room {
        count(PathCounter::FlowShareFull, packet.length);
        return flows.put(&side.key, &side.flow);
    }
    side.flow.state |= flow_state::ESTABLISHED;
    match FLOWS.add(&side.key, &side.flow) {
        0 => {
            PORT_FLOWS.add_established(index);
            count(PathCounter::FlowEstablished, packet.length);
            flows.remove(&side.key);
        }
        // Another CPU was faster.
        EXISTS => {}
        _ => {
            count(PathCounter::FlowTableFull, packet.length);
            side.flow.state &= !flow_state::ESTABLISHED;
            flows.put(&side.key, &side.flow);
        }
    }
}
