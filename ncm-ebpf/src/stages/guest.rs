//! A frame from a guest: which port it is, what kind of frame, and which stages it goes through.

use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{flow_flags, ticks},
};

use super::{
    Ended, Step,
    admit::Sender,
    answer, ask, control, deliver, errors, flow, fragment, open, port, refuse,
    related::{self, Way},
    route, settle, subnet,
};
use crate::{
    context::Context,
    count::{count, sent},
    drop::drop,
    headers::{
        Address, Mac, Packet,
        ethernet::{self, Ethernet, ethertype},
        packet::{class, icmp},
    },
    scratch::{Scratch, forget, scratch},
    tables::PORT_BY_INTERFACE,
};

/// Where the IP header or the ARP message of a guest's frame is.
pub const PAYLOAD: usize = ethernet::LEN;

/// Takes a frame from a guest; gives the program's action. It fails closed: no frame goes on to the host's own stack.
#[inline(always)]
pub fn run<C: Context>(packet: C) -> i32 {
    let bytes = packet.length();
    let (mut from, mut at) = (0, 0);
    let ended = match forward(packet, &mut from, &mut at) {
        Ok(ended) | Err(ended) => ended,
    };
    if ended == Ended::PASS_UP {
        count(PathCounter::PassedToTc, bytes);
        return C::PASS_UP;
    }
    let action = match ended.action() {
        Some(action) => action,
        None => {
            drop(packet, at, ended.0, bytes);
            C::DROP
        }
    };
    sent(from, bytes);
    action
}

/// Forwards, answers or refuses a frame; `from` becomes the index of the port that it came from, and `at` that of the port where
/// a drop counts: the other guest's if the frame got as far as its policy.
#[inline(always)]
fn forward<C: Context>(packet: C, from: &mut u32, at: &mut u32) -> Step<Ended> {
    let reference = PORT_BY_INTERFACE.get(&packet.interface()).ok_or(DropReason::UnknownPort)?;
    let port = port(reference.index, reference.generation)?;
    if !packet.is_linear() {
        return Err(Ended::PASS_UP);
    }
    // What the agent has held was counted when it came from the guest.
    let held = packet.takes_release(reference.index);
    *from = reference.index & held.wrapping_sub(1);
    *at = reference.index;
    open(port)?;
    let sender = Sender { index: reference.index, port };
    let scratch = scratch().ok_or(DropReason::RewriteFailed)?;
    scratch.held = held;
    scratch.there.key.port = sender.index;
    let step = follow(packet, sender, scratch);
    let ended = blur(step, scratch);
    *at = forget(scratch).there.key.port;
    Ok(if ended.is_owed() {
        errors::owed(packet, sender, scratch, ended)
    } else if ended.is_unknown() {
        Ended(ask::ask(packet, sender, scratch))
    } else {
        ended
    })
}

/// How a frame's way ended, as a number that the verifier knows nothing of: else it would follow what is done at the end for
/// each way by itself.
#[inline(always)]
fn blur(step: Step<i32>, scratch: &mut Scratch) -> Ended {
    scratch.ended = match step {
        Ok(action) => Ended::sent(action).0,
        Err(ended) => ended.0,
    };
    Ended(forget(scratch).ended)
}

/// Takes a frame through its stages.
#[inline(always)]
fn follow<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> Step<i32> {
    let port = sender.port;
    let ethernet = Ethernet::parse(&packet, 0).ok_or(DropReason::Malformed)?;
    if ethernet.ethertype == ethertype::IPV4 && !packet.is_tagged() {
        scratch.packet.read_v4(&packet, PAYLOAD, &ethernet)?;
    } else if ethernet.ethertype == ethertype::IPV6 && !packet.is_tagged() {
        scratch.packet.read_v6(&packet, PAYLOAD, &ethernet)?;
    } else {
        return Err(Ended(other(packet, sender, scratch)));
    }
    let scratch = forget(scratch);
    if C::PASSES_UP && scratch.packet.is_partial() {
        return Err(Ended::PASS_UP);
    }
    let clock = flow::clock();
    let now = ticks(clock);
    flow::key(&scratch.packet, sender.index, false, &mut scratch.here.key);
    let known = flow::find(&scratch.packet, &scratch.here.key).filter(|entry| {
        let flow = entry.flow();
        flow::is_steady(*entry, port, now, false)
            && Mac::new(&flow.local_mac) == scratch.packet.from
            && Mac::new(&flow.via_mac) == scratch.packet.to
            && flow.flags & flow_flags::OUT != 0
    });
    match known {
        Some(entry) => flow::see(entry, false, now),
        None => {
            scratch.here.now = now;
            if is_discovery(&scratch.packet) {
                return Err(Ended(answer::discovery(packet, sender, scratch)));
            }
            Ended::step(undecided(packet, sender, scratch))?;
        }
    }
    deliver::deliver(packet, sender, scratch, known, clock)
}

/// Whether a packet is a neighbour solicitation or advertisement.
#[inline(always)]
fn is_discovery(whole: &Packet) -> bool {
    whole.family == 6
        && whole.is_icmp()
        && matches!(whole.icmp[0], icmp::NEIGHBOUR_SOLICITATION | icmp::NEIGHBOUR_ADVERTISEMENT)
}

/// A frame that is no untagged IP.
#[inline(never)]
fn other<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> u32 {
    let mut refused = |packet: C| -> Step<()> {
        let ethernet = Ethernet::parse(&packet, 0).ok_or(DropReason::Malformed)?;
        if ethernet.ethertype == ethertype::ARP && !packet.is_tagged() {
            return answer::arp(packet, sender, scratch, &ethernet);
        }
        sender.mac(ethernet.source)?;
        if packet.is_tagged() || matches!(ethernet.ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN) {
            return refuse(DropReason::Vlan);
        }
        refuse(DropReason::UnsupportedEthertype)
    };
    Ended::number(refused(packet))
}

/// Decides about a packet that no flow decides about; the decision is in `scratch.here.flow` then.
#[inline(never)]
fn undecided<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(decide(packet, sender, scratch))
}

#[inline(always)]
fn decide<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> Step<()> {
    flow::stamp(sender.port, &mut scratch.here);
    Ended::step(control::control(packet, sender, scratch))?;
    // Any link-local address may ping the gateway.
    let any = scratch.packet.source.is_link_local() && scratch.packet.is_echo_request();
    let source = if any {
        sender.asker(&scratch.packet.from, &scratch.packet.source)?
    } else {
        sender.source(&scratch.packet.from, &scratch.packet.source)?
    };
    subnet(source.subnet, source.subnet_generation)?;
    scratch.subnet = source.subnet;
    scratch.subnet_generation = source.subnet_generation;
    if scratch.packet.to.is_group() || scratch.packet.destination.is_group() {
        return refuse(DropReason::Multicast);
    }
    let (whole, here, spare) = (&mut scratch.packet, &mut scratch.here, &mut scratch.spare);
    let unknown =
        if whole.class & class::LATER != 0 { fragment::recall(whole, here, spare, false) } else { 0 };
    settle::look(whole, here);
    // A later fragment for a gateway is of no flow, and answered like the first.
    if unknown != 0 || !flow::leads_out(here, whole) {
        Ended::step(route::resolve(packet, sender, scratch))?;
    }
    Ended::step(unknown)?;
    if any && scratch.packet.source != Address::link_local(scratch.packet.from) {
        return refuse(DropReason::LinkLocal);
    }
    let is_related = scratch.packet.is_icmp_error()
        && related::lets_through::<C, PAYLOAD>(packet, sender.port, scratch, Way::FromGuest) != 0;
    if !is_related {
        Ended::step(settle::settle(sender.port, &scratch.packet, &mut scratch.here, false))?;
    }
    if scratch.packet.class & class::FIRST != 0 {
        fragment::remember(&scratch.packet, &scratch.here, &mut scratch.spare, false);
    }
    Ok(())
}
