//! ICMP errors: one about a packet of a known flow is let through with the flow.

use ncm_common::{
    counters::PathCounter,
    tables::{FlowKey, Port, flow_kinds, flow_state},
};

use super::{flow, settle, transition};
use crate::{
    context::Context,
    count::count,
    headers::{
        Address, Ipv4Address, Packet, ipv6,
        packet::{icmp, protocol},
    },
    scratch::{Scratch, Side},
};

/// How many extension headers of a quoted packet are looked behind.
const EXTENSIONS: usize = 4;

/// Where an error comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the port's guest.
    FromGuest,
    /// To it, from the tunnel.
    ToGuest,
    /// To it, from another guest of this host.
    ToNeighbour,
}

/// Whether the packet, whose IP header is at `AT`, is an error about a flow of the port: 1 or 0. The port's index and the time are
/// in the side of `scratch` that is the port's.
#[inline(never)]
pub fn lets_through<C: Context, const AT: usize>(
    packet: C,
    port: &Port,
    scratch: &mut Scratch,
    way: Way,
) -> u32 {
    let side = if way == Way::ToNeighbour { &scratch.there } else { &scratch.here };
    let (index, now) = (side.key.port, side.now);
    let to_guest = way != Way::FromGuest;
    if !quoted(&packet, &scratch.packet, &mut scratch.spare.key, AT, to_guest, index)
        || !is_known(port, &mut scratch.spare, now)
    {
        return 0;
    }
    count(PathCounter::ErrorRelated, packet.length());
    1
}

/// Whether there is such a flow and it is allowed.
#[inline(always)]
pub fn is_known(port: &Port, side: &mut Side, now: u32) -> bool {
    if transition::is_on() {
        settle::clear(&mut side.flow);
        return transition::look(side) != 0
            && side.flow.state & flow_state::DENIED == 0
            && flow::is_alive_at(side.flow.seen, side.flow.timeout, now)
            && flow::is_current(&side.flow, port.generation, port.epoch);
    }
    let key = &side.key;
    flow::entry(key).is_some_and(|entry| {
        entry.state() & flow_state::DENIED == 0
            && flow::is_alive(entry, now)
            && flow::is_current(entry.flow(), port.generation, port.epoch)
            && entry.is_of(key.port)
    })
}

/// The protocol of a quoted IPv6 packet, and where its transport header is, counted from its start; 0 if it has none: it is a later
/// fragment, or cut short before.
#[inline(always)]
fn behind_extensions<C: Context>(packet: &C, start: usize, first: u8) -> (u8, u32) {
    let (mut next, mut length) = (first, ipv6::LEN as u32);
    for _ in 0..EXTENSIONS {
        if !matches!(
            next,
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION
        ) {
            break;
        }
        let Some(header) = packet.window::<8>(start + (length & 0x1ff) as usize) else { return (0, 0) };
        let is_fragment = next == protocol::FRAGMENT;
        if is_fragment && header.be16::<2>() & 0xfff8 != 0 {
            return (0, 0);
        }
        length += if is_fragment { 8 } else { (u32::from(header.u8::<1>()) + 1) * 8 };
        if length > ipv6::TRANSPORT_MAX {
            return (0, 0);
        }
        next = header.u8::<0>();
    }
    (next, length)
}

/// Reads the key of the quoted packet's flow. An error to the guest quotes what the guest sent, and the other way round.
#[inline(always)]
fn quoted<C: Context>(
    packet: &C,
    error: &Packet,
    key: &mut FlowKey,
    at: usize,
    to_guest: bool,
    index: u32,
) -> bool {
    let start = at + (error.transport & 0x1ff) as usize + 8;
    // More than the headers that most frames have.
    packet.reach(start as u32 + ipv6::TRANSPORT_MAX + 8);
    let (source, destination, kind, next) = if error.family == 4 {
        let Some(header) = packet.window::<20>(start) else { return false };
        let first = header.u8::<0>();
        // A later fragment has no ports.
        if first >> 4 != 4 || first & 0x0f < 5 || header.be16::<6>() & 0x1fff != 0 {
            return false;
        }
        let source = Address::v4(Ipv4Address::at::<12, 20>(&header));
        let destination = Address::v4(Ipv4Address::at::<16, 20>(&header));
        (source, destination, header.u8::<9>(), usize::from(first & 0x0f) << 2)
    } else {
        let Some(header) = packet.window::<40>(start) else { return false };
        if header.u8::<0>() >> 4 != 6 {
            return false;
        }
        let source = Address::at::<8, 12, 16, 20, 40>(&header);
        let destination = Address::at::<24, 28, 32, 36, 40>(&header);
        let (kind, length) = behind_extensions(packet, start, header.u8::<6>());
        if length == 0 {
            return false;
        }
        (source, destination, kind, length as usize)
    };
    let next = start + (next & 0x1ff);
    // What stands behind the packet's end in its frame is no part of what it quotes.
    let needed = match kind {
        protocol::TCP | protocol::UDP => 4,
        protocol::ICMP | protocol::ICMPV6 => 8,
        _ => 0,
    };
    if (next - at) as u32 + needed > error.length {
        return false;
    }
    let ports = match kind {
        protocol::TCP | protocol::UDP => match packet.window::<4>(next) {
            Some(header) => header.raw32::<0>(),
            None => return false,
        },
        protocol::ICMP | protocol::ICMPV6 => match packet.window::<8>(next) {
            Some(header) => {
                let [a, b] = header.raw16::<4>().to_ne_bytes();
                match header.u8::<0>() {
                    icmp::ECHO_REQUEST | icmp::V6_ECHO_REQUEST => u32::from_ne_bytes([a, b, 0, 0]),
                    icmp::ECHO_REPLY | icmp::V6_ECHO_REPLY => u32::from_ne_bytes([0, 0, a, b]),
                    _ => return false,
                }
            }
            None => return false,
        },
        _ => 0,
    };
    // Who gets the error has sent the packet.
    if source != error.destination {
        return false;
    }
    let ports = if to_guest { ports } else { ports.rotate_left(16) }.to_ne_bytes();
    let (local, remote) = if to_guest { (source, destination) } else { (destination, source) };
    key.port = index;
    key.local = local.bytes();
    key.remote = remote.bytes();
    key.local_port = [ports[0], ports[1]];
    key.remote_port = [ports[2], ports[3]];
    key.protocol = kind;
    key.kind = flow_kinds::FLOW;
    key.reserved = [0; 2];
    true
}
