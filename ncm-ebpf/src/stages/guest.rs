//! A frame from a guest: which port it is, what kind of frame, and which stages it goes through.

use ncm_common::{counters::PathCounter, drops::DropReason, tables::SubnetPrefixKey};

use super::{Step, Verdict, admit::Sender, answer, by_mac, deliver, open, port, route, subnet};
use crate::{
    context::Context,
    count::{count, sent},
    drop::drop,
    headers::{
        Ipv4Address, Mac,
        ethernet::{self, Ethernet, ethertype},
        ipv4::Ipv4,
        ipv6,
        transport::{DHCP_SERVER, Transport},
    },
    tables::{PORT_BY_INTERFACE, SUBNET_PREFIXES},
};

/// Where the IP header or the ARP message of a guest's frame is.
pub const PAYLOAD: usize = ethernet::LEN;

/// Takes a frame from a guest; gives the program's action. It fails closed: no frame goes on to the host's own stack.
#[inline(always)]
pub fn run<C: Context>(packet: C) -> i32 {
    let bytes = packet.length();
    let mut from = 0;
    let action = match forward(packet, &mut from) {
        Ok(Verdict::Sent(action)) => action,
        Ok(Verdict::PassUp) => {
            count(PathCounter::PassedToTc, bytes);
            return C::PASS_UP;
        }
        Err(reason) => {
            drop(packet, from, reason, bytes);
            C::DROP
        }
    };
    sent(from, bytes);
    action
}

/// Forwards, answers or refuses a frame; `from` becomes the index of the port that it came from.
#[inline(always)]
fn forward<C: Context>(packet: C, from: &mut u32) -> Step<Verdict> {
    let reference = PORT_BY_INTERFACE.get(&packet.interface()).ok_or(DropReason::UnknownPort)?;
    let port = port(reference.index, reference.generation)?;
    if !packet.is_linear() {
        return Ok(Verdict::PassUp);
    }
    *from = reference.index;
    open(port)?;
    let sender = Sender { index: reference.index, port };
    let ethernet = Ethernet::parse(&packet, 0).ok_or(DropReason::Malformed)?;
    if ethernet.ethertype == ethertype::IPV4 && !packet.is_tagged() {
        return ipv4(packet, sender, &ethernet);
    }
    if ethernet.ethertype == ethertype::ARP && !packet.is_tagged() {
        return answer::arp(packet, sender, &ethernet);
    }
    sender.mac(ethernet.source)?;
    if packet.is_tagged() {
        return Err(DropReason::Vlan);
    }
    match ethernet.ethertype {
        ethertype::VLAN | ethertype::SERVICE_VLAN => Err(DropReason::Vlan),
        ethertype::IPV6 => Err(match ipv6::kind(&packet, PAYLOAD) {
            None => DropReason::Malformed,
            Some(ipv6::Kind::Router) => DropReason::RogueRouter,
            Some(_) => DropReason::Ipv6,
        }),
        _ => Err(DropReason::UnsupportedEthertype),
    }
}

/// An IPv4 packet.
#[inline(always)]
fn ipv4<C: Context>(packet: C, sender: Sender, ethernet: &Ethernet) -> Step<Verdict> {
    let ip = Ipv4::parse(&packet, PAYLOAD).ok_or(DropReason::Malformed)?;
    let transport = Transport::parse(&packet, PAYLOAD, &ip).ok_or(DropReason::Malformed)?;
    if let Transport::Udp(ports) = transport {
        // Before the source address counts: a client without an address yet asks from 0.0.0.0.
        if ports.source == DHCP_SERVER {
            sender.mac(ethernet.source)?;
            return Err(DropReason::RogueDhcpServer);
        }
        if ports.destination == DHCP_SERVER {
            sender.mac(ethernet.source)?;
            if ip.source != Ipv4Address::UNSPECIFIED {
                sender.source(ethernet.source, ip.source)?;
            }
            return Err(DropReason::DhcpUnanswered);
        }
    }
    let source = sender.source(ethernet.source, ip.source)?;
    let subnet = subnet(source.subnet, source.subnet_generation)?;
    if ethernet.destination.is_group() || ip.destination.is_group() {
        return Err(DropReason::Multicast);
    }
    if C::PASSES_UP && transport.is_partial(&ip) {
        return Ok(Verdict::PassUp);
    }
    let whole = deliver::Packet { ethernet, ip: &ip, transport: &transport };
    if route::is_for_gateway(subnet, ethernet.destination) {
        return route::route(packet, sender, source.subnet, subnet, &whole);
    }
    let endpoint = by_mac(subnet.vni, ethernet.destination).ok_or(DropReason::UnknownMac)?;
    separate(sender, source.subnet, subnet.vni, ip.destination)?;
    deliver::deliver(packet, sender, &whole, &deliver::Hop { endpoint, vni: subnet.vni, routed: None })
}

/// Refuses an address that a guest in `own` reaches by its router only: that of another subnet of its VNI (and not of its
/// port's). An address in no subnet is reached through a guest that routes.
#[inline(always)]
fn separate(sender: Sender, own: u32, vni: u32, ip: Ipv4Address) -> Step<()> {
    match SUBNET_PREFIXES.get(&SubnetPrefixKey { prefix_len: 64, vni, ip: ip.bytes() }) {
        Some(found) if found.index != own && found.index != sender.port.subnet => {
            Err(DropReason::OtherSubnet)
        }
        _ => Ok(()),
    }
}

/// The MAC of a table entry, if it is set.
#[inline(always)]
pub(super) fn set(mac: &[u8; 6]) -> Option<Mac> {
    let mac = Mac::new(mac);
    (mac != Mac::ZERO).then_some(mac)
}
