//! ICMP errors: one about a packet of a known flow is let through with the flow.

use ncm_common::{
    counters::PathCounter,
    tables::{FlowKey, Port, flow_kinds, flow_state},
};

use super::flow;
use crate::{
    context::Context,
    count::count,
    headers::{
        Address, Ipv4Address, Packet,
        packet::{icmp, protocol},
    },
    scratch::Scratch,
};

/// Whether the packet, whose IP header is at `AT`, is an error about a flow of the port: 1 or 0. The port's index
/// is in `scratch.spare.key`.
#[inline(never)]
pub fn lets_through<C: Context, const AT: usize>(
    packet: C,
    port: &Port,
    scratch: &mut Scratch,
    to_guest: bool,
) -> u32 {
    if !quoted(&packet, &scratch.packet, &mut scratch.spare.key, AT, to_guest)
        || !is_known(port, &scratch.spare.key, flow::now())
    {
        return 0;
    }
    count(PathCounter::ErrorRelated, packet.length());
    1
}

/// Bytes of a quoted packet that may be looked at: its IP header with options, or IPv6 and a fragment header, and eight more.
const QUOTED: usize = 60 + 8;

/// Whether there is such a flow and it is allowed.
#[inline(always)]
pub fn is_known(port: &Port, key: &FlowKey, now: u32) -> bool {
    flow::entry(key).is_some_and(|entry| {
        entry.state() & flow_state::DENIED == 0
            && flow::is_alive(entry, now)
            && flow::is_current(entry.flow(), port.generation, port.epoch)
            && entry.is_of(key.port)
    })
}

/// Reads the key of the quoted packet's flow, except for the port. An error to the guest quotes what the guest sent, and the other way round.
#[inline(always)]
fn quoted<C: Context>(
    packet: &C,
    error: &Packet,
    key: &mut FlowKey,
    at: usize,
    to_guest: bool,
) -> bool {
    let start = at + (error.transport & 0x1ff) as usize + 8;
    packet.reach((start + QUOTED) as u32);
    let (source, destination, mut kind, next) = if error.family == 4 {
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
        let source = Address::at::<8, 12, 16, 20, 40>(&header);
        let destination = Address::at::<24, 28, 32, 36, 40>(&header);
        (source, destination, header.u8::<6>(), 40)
    };
    let mut next = start + next;
    // A first fragment of IPv6, which is what is too big where fragments are.
    if error.family == 6 && kind == protocol::FRAGMENT {
        let Some(header) = packet.window::<8>(next) else { return false };
        if header.be16::<2>() & 0xfff8 != 0 {
            return false;
        }
        kind = header.u8::<0>();
        next += 8;
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
    key.local = local.bytes();
    key.remote = remote.bytes();
    key.local_port = [ports[0], ports[1]];
    key.remote_port = [ports[2], ports[3]];
    key.protocol = kind;
    key.kind = flow_kinds::FLOW;
    key.reserved = [0; 2];
    true
}
