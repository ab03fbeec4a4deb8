//! Fragments: the first one decides, and is remembered for the later ones, which have no transport header.

use ncm_common::{
    drops::DropReason,
    tables::{FlowKey, flow_kinds, timeouts},
};

use super::{flow, settle, transition};
use crate::{
    headers::{
        Packet,
        packet::{class, protocol},
    },
    scratch::Side,
    tables::{HalfOpen, TIMEOUTS},
};

/// The key under which a packet's first fragment is remembered.
#[inline(always)]
fn key(packet: &Packet, port: u32, to_guest: bool, key: &mut FlowKey) {
    flow::key(packet, port, to_guest, key);
    let [a, b, c, d] = packet.identification.to_ne_bytes();
    key.local_port = [a, b];
    key.remote_port = [c, d];
    key.kind = if to_guest { flow_kinds::FRAGMENT_IN } else { flow_kinds::FRAGMENT_OUT };
    // In IPv6, later fragments do not say what they are of.
    if packet.family == 6 {
        key.protocol = protocol::FRAGMENT;
    }
}

/// Remembers a first fragment that was let through: its ports, what it is, and where its transport header ends.
#[inline(never)]
pub fn remember(packet: &Packet, side: &Side, spare: &mut Side, to_guest: bool) {
    key(packet, side.key.port, to_guest, &mut spare.key);
    let header = if packet.header_len == 0 { 8 } else { u32::from(packet.header_len) };
    let [a, b, c, d] = packet.ports.to_ne_bytes();
    settle::clear(&mut spare.flow);
    spare.flow.timeout = TIMEOUTS.get(&timeouts::FRAGMENT).copied().unwrap_or(0);
    spare.flow.created = side.now;
    spare.flow.port_generation = side.port_generation;
    spare.flow.port = side.key.port;
    spare.flow.port_again = side.key.port;
    spare.flow.to_mac = [a, b, c, d, packet.icmp[0], packet.icmp[1]];
    spare.flow.target = u32::from(packet.protocol) << 8 | u32::from(packet.class & class::MESSAGE);
    spare.flow.vni = (packet.transport + header).wrapping_sub(packet.fragmented);
    spare.flow.seen[usize::from(to_guest)] = side.now;
    if transition::is_on() {
        transition::remember(spare);
    } else if let Some(flows) = HalfOpen::of(side.key.port) {
        flows.put(&spare.key, &spare.flow);
    }
}

/// Gives a later fragment what its first one had, and the flow's key with it. Gives the reason of a drop, or 0.
#[inline(never)]
pub fn recall(packet: &mut Packet, side: &mut Side, spare: &mut Side, to_guest: bool) -> u32 {
    let index = side.key.port;
    key(packet, index, to_guest, &mut spare.key);
    settle::clear(&mut spare.flow);
    let found = if transition::is_on() { transition::look(spare) } else { settle::own(spare) };
    let first = &spare.flow;
    if found == 0
        || !flow::is_alive_at(first.seen, first.timeout, flow::now())
        || first.port_generation != side.port_generation
    {
        return DropReason::FragmentUnknown as u32;
    }
    if packet.offset < first.vni {
        return DropReason::FragmentTiny as u32;
    }
    let [a, b, c, d, kind, code] = first.to_mac;
    packet.ports = u32::from_ne_bytes([a, b, c, d]);
    packet.icmp = [kind, code];
    packet.protocol = (first.target >> 8) as u8;
    packet.class |= first.target as u8 & class::MESSAGE;
    flow::key(packet, index, to_guest, &mut side.key);
    0
}
