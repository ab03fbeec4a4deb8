//! What a packet changes about its flow: it begins one, answers it, ends it, or has it decided anew.

use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{Flow, Port, flow_flags, flow_state, timeouts},
};

use super::{flow, policy, transition};
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
pub fn look(packet: &Packet, side: &mut Side) {
    side.found = NONE;
    side.place = NOWHERE;
    side.members = 0;
    side.changed = 0;
    clear(&mut side.flow);
    side.old = 0;
    if packet.class & class::MESSAGE != 0 {
        return;
    }
    let found = if transition::is_on() { transition::look(side) } else { own(side) };
    if found == 0 {
        return;
    }
    if !flow::is_alive_at(side.flow.seen, side.flow.timeout, side.now)
        || side.flow.port_generation != side.port_generation
        || begins_anew(packet, side.flow.state)
    {
        return clear(&mut side.flow);
    }
    (side.remote_slot, side.remote_epoch) = (side.flow.remote_slot, side.flow.remote_epoch);
    if flow::is_current(&side.flow, side.port_generation, side.port_epoch) {
        side.found = VALID;
    } else {
        side.found = STALE;
        side.flow.flags &= !(flow_flags::OUT | flow_flags::IN);
    }
}

/// Reads the entry of `side.key` into `side.flow`, which is clear; tells whether there is one, as 1 or 0.
#[inline(never)]
pub fn own(side: &mut Side) -> u32 {
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
            None => return 0,
        },
    };
    copy(entry.flow(), &mut side.flow);
    if !entry.is_of(side.key.port) {
        clear(&mut side.flow);
        return 0;
    }
    1
}

/// Whether a packet ends what is left of a flow in that state by beginning a new one.
#[inline(always)]
const fn begins_anew(packet: &Packet, state: u32) -> bool {
    const LEFT: u32 = flow_state::RESET | flow_state::DENIED | flow_state::FIN_OUT | flow_state::FIN_IN;
    is_syn(packet) && state & LEFT != 0
}

/// Whether a packet begins a connection of TCP.
#[inline(always)]
const fn is_syn(packet: &Packet) -> bool {
    packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN) == tcp_flags::SYN
}

/// Words of a flow.
const WORDS: usize = size_of::<Flow>() / 4;

/// Makes a flow all zero. Word by word: the compiler's own way would be a loop over bytes.
#[inline(never)]
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
    // The way here may have found another side, or a later epoch of it, than the decision is of.
    if side.found == VALID
        && (side.flow.remote_slot != side.remote_slot || side.flow.remote_epoch != side.remote_epoch)
    {
        side.found = STALE;
    }
    let began_by_remote = side.flow.state & flow_state::REMOTE_BEGAN != 0;
    if side.found == STALE {
        count(PathCounter::FlowRedecided, packet.length);
        side.flow.port_epoch = side.port_epoch;
        side.changed = 1;
        side.flow.state &= !flow_state::DENIED;
        if policy::allows(port, packet, side, began_by_remote) == 0 {
            side.flow.state |= flow_state::DENIED;
        }
        #[cfg(feature = "interject")]
        crate::interject::interject();
    }
    if side.found != NONE && side.flow.state & flow_state::DENIED != 0 {
        // It stays as long as its packets come, or the side that answers would begin it anew.
        note(packet, side, 0, 0, to_guest);
        return denied(began_by_remote);
    }
    if side.found == NONE {
        if policy::allows(port, packet, side, to_guest) == 0 {
            return denied(to_guest);
        }
        #[cfg(feature = "interject")]
        crate::interject::interject();
        if !begins(packet) {
            return 0;
        }
        count(PathCounter::FlowCreated, packet.length);
        begin(packet, side, to_guest);
    }
    let (set, clear) = turns(packet, side.flow.state, to_guest);
    if !promote(port, packet, side, (set, clear), to_guest) {
        note(packet, side, set, clear, to_guest);
    }
    0
}

/// The reason of a drop by policy.
#[inline(always)]
const fn denied(by_ingress: bool) -> u32 {
    if by_ingress { DropReason::PolicyIngress as u32 } else { DropReason::PolicyEgress as u32 }
}

/// Whether a packet that is allowed begins a flow where there is none: it is whole, and no answer.
#[inline(always)]
fn begins(packet: &Packet) -> bool {
    const ANSWER: u8 = tcp_flags::SYN | tcp_flags::ACK;
    packet.class & (class::LATER | class::MESSAGE) == 0
        && !packet.is_echo_reply()
        && packet.tcp_flags & tcp_flags::RST == 0
        && packet.tcp_flags & ANSWER != ANSWER
}

/// Makes the flow a new one, of what vouched for its decision.
#[inline(always)]
fn begin(packet: &Packet, side: &mut Side, to_guest: bool) {
    side.changed = 1;
    let mut state = if to_guest { flow_state::REMOTE_BEGAN } else { 0 };
    if side.place == ESTABLISHED {
        state |= flow_state::ESTABLISHED;
    }
    if packet.protocol == protocol::TCP && !is_syn(packet) {
        // The middle of a connection that is older than we are.
        state |= flow_state::CONFIRMED;
    }
    side.flow.state = state;
    side.flow.port = side.key.port;
    side.flow.port_again = side.key.port;
    side.flow.seen = [0; 2];
    side.flow.created = side.now;
    side.flow.port_generation = side.port_generation;
    side.flow.port_epoch = side.port_epoch;
}

/// What a packet sets and clears of its flow's state.
#[inline(always)]
fn turns(packet: &Packet, state: u32, to_guest: bool) -> (u32, u32) {
    let flags = packet.tcp_flags;
    if flags & tcp_flags::RST != 0 {
        // Anybody may have sent it: the next packet that is none takes it back.
        return (flow_state::RESET, 0);
    }
    let mut set = 0;
    if flags & tcp_flags::FIN != 0 {
        set |= if to_guest { flow_state::FIN_IN } else { flow_state::FIN_OUT };
    }
    if to_guest != (state & flow_state::REMOTE_BEGAN != 0) {
        set |= flow_state::ANSWERED;
        if packet.protocol != protocol::TCP {
            set |= flow_state::CONFIRMED;
        }
    } else if state & flow_state::ANSWERED != 0
        && flags & tcp_flags::SYN == 0
        && packet.class & class::LATER == 0
    {
        set |= flow_state::CONFIRMED;
    }
    (set, state & flow_state::RESET)
}

/// How long a flow of that protocol lives without a packet, in ticks.
#[inline(always)]
pub fn timeout(protocol: u8, state: u32) -> u32 {
    let answered = state & flow_state::ANSWERED != 0;
    let kind = match protocol {
        protocol::TCP if state & flow_state::RESET != 0 => timeouts::TCP_RESET,
        protocol::TCP if state & (flow_state::FIN_OUT | flow_state::FIN_IN) != 0 => timeouts::TCP_CLOSING,
        protocol::TCP if !answered => timeouts::TCP_NEW,
        protocol::TCP if state & flow_state::CONFIRMED == 0 => timeouts::TCP_SYN_RECEIVED,
        protocol::TCP => timeouts::TCP_ESTABLISHED,
        protocol::UDP if answered => timeouts::UDP_STREAM,
        protocol::UDP => timeouts::UDP_NEW,
        protocol::ICMP | protocol::ICMPV6 => timeouts::ICMP,
        _ => timeouts::OTHER,
    };
    TIMEOUTS.get(&kind).copied().unwrap_or(0)
}

/// Takes a packet's turns and its time into the flow's new value.
#[inline(always)]
pub fn take(protocol: u8, side: &mut Side, set: u32, clear: u32, to_guest: bool) {
    side.flow.state = side.flow.state & !clear | set;
    side.flow.timeout = timeout(protocol, side.flow.state);
    side.flow.seen[usize::from(to_guest)] = side.now;
}

/// Notes a packet where its flow is: in place if nothing but state and time has changed, by a whole value otherwise.
#[inline(always)]
fn note(packet: &Packet, side: &mut Side, set: u32, clear: u32, to_guest: bool) {
    if transition::is_on() && side.old != 0 {
        return transition::note(packet, side, set, clear, to_guest);
    }
    if side.changed == 0 {
        return turn(packet, side, set, clear, to_guest);
    }
    take(packet.protocol, side, set, clear, to_guest);
    if side.place == ESTABLISHED && FLOWS.replace(&side.key, &side.flow) {
    } else if let Some(flows) = HalfOpen::of(side.key.port) {
        side.flow.state &= !flow_state::ESTABLISHED;
        flows.put(&side.key, &side.flow);
    }
}

/// Changes state and time in place. Only of the value that was looked at: in one that another CPU has put there since, by a decision
/// of its own, nothing is changed.
#[inline(always)]
fn turn(packet: &Packet, side: &Side, set: u32, clear: u32, to_guest: bool) {
    let Some(entry) = flow::entry(&side.key) else { return };
    let (now, then) = (entry.flow(), &side.flow);
    if now.port_epoch != then.port_epoch
        || now.remote_slot != then.remote_slot
        || now.remote_epoch != then.remote_epoch
        || !entry.is_of(side.key.port)
    {
        return;
    }
    entry.turn(set, clear);
    entry.last(timeout(packet.protocol, entry.state()));
    entry.see(to_guest, side.now);
}

/// Moves a flow that both sides have confirmed to the table of flows, if it is not there yet; tells whether it has. Without room, or
/// beyond the port's share, it stays where it is, and a later packet tries again.
#[inline(always)]
fn promote(port: &Port, packet: &Packet, side: &mut Side, (set, clear): (u32, u32), to_guest: bool) -> bool {
    const OPEN: u32 = flow_state::ANSWERED | flow_state::CONFIRMED;
    if side.place == ESTABLISHED || (side.flow.state | set) & OPEN != OPEN || set & flow_state::RESET != 0 {
        return false;
    }
    let index = side.key.port;
    let Some(flows) = HalfOpen::of(index) else { return false };
    if PORT_FLOWS.get(&index).is_none_or(|flows| flows.established >= port.max_flows) {
        count(PathCounter::FlowShareFull, packet.length);
        return false;
    }
    take(packet.protocol, side, set | flow_state::ESTABLISHED, clear, to_guest);
    let is_old = transition::is_on() && side.old != 0;
    let added = if is_old {
        match transition::establish(side) {
            1 => 0,
            2 => EXISTS,
            _ => -1,
        }
    } else {
        FLOWS.add(&side.key, &side.flow)
    };
    match added {
        0 => {
            PORT_FLOWS.add_established(index);
            count(PathCounter::FlowEstablished, packet.length);
            if !is_old {
                flows.remove(&side.key);
            }
            true
        }
        // Another CPU was faster.
        EXISTS => true,
        _ => {
            count(PathCounter::FlowTableFull, packet.length);
            side.flow.state &= !flow_state::ESTABLISHED;
            false
        }
    }
}
