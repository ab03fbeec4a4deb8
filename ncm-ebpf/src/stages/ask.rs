//! A guest's packet to what is not known: upstream may know it. The packet goes up to the agent, which holds it, asks, and has it go
//! on when the answer is in the tables. Policy, and what the guest may send from, come first; and each port has its limit.

use core::mem::offset_of;

use ncm_common::{
    asks::{Ask, ask_kinds},
    counters::PathCounter,
    drops::DropReason,
    marks,
    tables::{RouteKey, SubnetPrefixKey, endpoint_flags, flow_state, port_flags, route_flags},
};

use super::{Ended, Step, admit::Sender, by_ip, hand, limit, policy, refuse, subnet};
use crate::{
    context::Context,
    count::count,
    headers::{
        Address, Packet,
        packet::{class, protocol},
    },
    scratch::{NONE, Scratch},
    tables::{ROUTES, SUBNET_PREFIXES},
};

/// Notes that a guest of a subnet looks for one of its addresses.
#[inline(always)]
pub fn within(ask: &mut Ask, lookup: &mut u32, (subnet, vni): (u32, u32), target: Address, kind: u8) {
    *lookup = subnet;
    ask.vni = vni;
    ask.target_vni = vni;
    put(&mut ask.target, target);
    ask.needs = endpoint_flags::L2;
    ask.kind = kind;
}

/// Notes who asks by a message without ports.
#[inline(always)]
pub fn from(ask: &mut Ask, source: Address) {
    put(&mut ask.source, source);
    (ask.source_port, ask.destination_port, ask.protocol) = ([0; 2], [0; 2], 0);
}

/// Writes an address, word by word: the compiler's own way would be byte by byte.
#[inline(always)]
fn put(to: &mut [u8; 16], address: Address) {
    let (to, words): (*mut u32, [u32; 4]) = (to.as_mut_ptr().cast(), address.words());
    let mut at = 0;
    while at < 4 {
        // SAFETY: the words are the address's, whose place in an `Ask` is aligned for them, as asserted below.
        unsafe { to.add(at).write_volatile(words[at]) };
        at += 1;
    }
}

const _: () =
    assert!(align_of::<Ask>() == 4 && offset_of!(Ask, source) % 4 == 0 && offset_of!(Ask, target) % 4 == 0);

/// Hands the packet up, if upstream is to be asked for what it wants for; `scratch.ended` says how its way would end otherwise.
#[inline(never)]
pub fn ask<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(decide(packet, sender, scratch))
}

#[inline(always)]
fn decide<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> Step<()> {
    let reason = Ended(scratch.ended).unasked();
    let port = sender.port;
    if port.ask_interval == 0 {
        return Err(reason);
    }
    if scratch.held != 0 {
        return refuse(DropReason::AskUnresolved);
    }
    if C::PASSES_UP {
        return Err(Ended::PASS_UP);
    }
    if reason == DropReason::ArpUnknown.into() {
        // All is noted.
    } else if reason == DropReason::NdUnknown.into() {
        describe(&mut scratch.ask, &scratch.packet);
    } else {
        describe(&mut scratch.ask, &scratch.packet);
        locate(scratch, reason == DropReason::UnknownDestination.into())?;
    }
    if !is_missing(scratch) {
        return Err(reason);
    }
    if scratch.ask.kind == ask_kinds::PACKET {
        Ended::step(refused(sender, scratch))?;
    }
    let ifindex = hand::device().ok_or(DropReason::HandUpUnavailable)?;
    if !limit::grants_ask(sender.index, port) {
        return refuse(DropReason::AskLimited);
    }
    let bytes = packet.length();
    let action = packet.hand_up_behind(&scratch.ask, ifindex, marks::mark(marks::ASK, sender.index))?;
    count(PathCounter::AskedFor, bytes);
    Err(Ended::sent(action))
}

/// Notes what a packet wants for, once more the way that it went through the tables: what is noted where a packet may take either
/// way makes the verifier follow both to the end.
#[inline(always)]
fn locate(scratch: &mut Scratch, is_routed: bool) -> Step<()> {
    let own = subnet(scratch.subnet, scratch.subnet_generation)?;
    let destination = scratch.packet.destination;
    let (ask, lookup) = (&mut scratch.ask, &mut scratch.ask_subnet);
    within(ask, lookup, (scratch.subnet, own.vni), destination, ask_kinds::PACKET);
    if !is_routed {
        return Ok(());
    }
    let key = RouteKey { prefix_len: 160, subnet: scratch.subnet, ip: destination.bytes() };
    let route = ROUTES.get(&key).ok_or(DropReason::NoRoute)?;
    *lookup = 0;
    ask.target_vni = subnet(route.subnet, route.subnet_generation)?.vni;
    if route.flags & route_flags::CONNECTED != 0 {
        ask.needs = endpoint_flags::L3;
    } else {
        put(&mut ask.target, Address::new(&route.next_hop_ip));
        ask.needs = 0;
    }
    Ok(())
}

/// Whether what is looked for within a subnet is an address of it that nobody is known to have.
#[inline(always)]
fn is_missing(scratch: &Scratch) -> bool {
    let (ask, subnet) = (&scratch.ask, scratch.ask_subnet);
    if subnet == 0 {
        return true;
    }
    let key = SubnetPrefixKey { prefix_len: 160, vni: ask.vni, ip: ask.target };
    if SUBNET_PREFIXES.get(&key).is_none_or(|found| found.index != subnet) {
        return false;
    }
    by_ip(ask.vni, Address::new(&ask.target))
        .is_none_or(|known| known.flags & (endpoint_flags::LOCAL | endpoint_flags::L2) == 0)
}

/// Notes what upstream is told of a packet.
#[inline(always)]
fn describe(ask: &mut Ask, packet: &Packet) {
    put(&mut ask.source, packet.source);
    ask.protocol = packet.protocol;
    let ports = packet.ports.to_ne_bytes();
    let has_ports = matches!(packet.protocol, protocol::TCP | protocol::UDP);
    (ask.source_port, ask.destination_port) =
        if has_ports { ([ports[0], ports[1]], [ports[2], ports[3]]) } else { ([0; 2], [0; 2]) };
}

/// The reason of the drop, if policy does not allow the packet whoever its destination may turn out to be; else 0. Of what does not
/// tell by itself whether it is allowed (a later fragment, an ICMP error) it is seen when it goes on.
#[inline(always)]
fn refused(sender: Sender, scratch: &mut Scratch) -> u32 {
    let (port, packet, side) = (sender.port, &scratch.packet, &scratch.here);
    if packet.class & class::LATER != 0 || packet.is_icmp_error() {
        return 0;
    }
    let by_ingress = side.found != NONE && side.flow.state & flow_state::REMOTE_BEGAN != 0;
    if !by_ingress && port.flags & port_flags::GROUPS_OUT != 0
        || policy::allows(port, packet, side, by_ingress) != 0
    {
        return 0;
    }
    if by_ingress { DropReason::PolicyIngress as u32 } else { DropReason::PolicyEgress as u32 }
}
