//! What a guest says to the network itself rather than to another guest: DHCP, neighbour discovery, group membership. It is
//! answered here, handed up to the agent, or kept quiet; it is never forwarded, and never subject to security groups.

use ncm_common::{drops::DropReason, marks};

use super::{Ended, Step, admit::Sender, hand, refuse};
use crate::{
    context::Context,
    headers::{
        Packet, nd,
        packet::{class, icmp, protocol},
        transport::{DHCP_CLIENT, DHCP_SERVER, DHCPV6_CLIENT, DHCPV6_SERVER},
    },
    scratch::Scratch,
};

/// ICMPv6 types of multicast listener discovery (RFC 2710; RFC 3810).
const LISTENER_QUERY: u8 = 130;
const LISTENER_DONE: u8 = 132;
const LISTENER_REPORT_V2: u8 = 143;

/// Ends the way of such a packet; gives 0 for any other.
#[inline(never)]
pub fn control<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(decide(packet, sender, &scratch.packet))
}

#[inline(always)]
fn decide<C: Context>(packet: C, sender: Sender, whole: &Packet) -> Step<()> {
    if whole.begins(protocol::UDP) {
        return dhcp(packet, sender, whole);
    }
    if whole.family == 4 {
        return Ok(());
    }
    if whole.is_icmp() {
        match whole.icmp[0] {
            icmp::ROUTER_ADVERTISEMENT | icmp::REDIRECT => {
                sender.mac(whole.from)?;
                return refuse(DropReason::RogueRouter);
            }
            icmp::ROUTER_SOLICITATION => return router_solicitation(packet, sender, whole),
            LISTENER_QUERY..=LISTENER_DONE | LISTENER_REPORT_V2 => {
                sender.mac(whole.from)?;
                return refuse(DropReason::Multicast);
            }
            _ => {}
        }
    }
    // Any link-local address may say what nobody hears.
    if whole.destination.is_group() && whole.source.is_link_local() {
        sender.mac(whole.from)?;
        return refuse(DropReason::Multicast);
    }
    Ok(())
}

/// DHCP and DHCPv6: a client's messages go to the agent, and only a server may send a server's.
#[inline(always)]
fn dhcp<C: Context>(packet: C, sender: Sender, whole: &Packet) -> Step<()> {
    let (client, server, why) = if whole.family == 4 {
        (DHCP_CLIENT, DHCP_SERVER, marks::DHCP)
    } else {
        (DHCPV6_CLIENT, DHCPV6_SERVER, marks::DHCPV6)
    };
    let (from, to) = (whole.source_port(), whole.destination_port());
    if from == server || to == client {
        sender.mac(whole.from)?;
        return refuse(DropReason::RogueDhcpServer);
    }
    if to != server {
        return Ok(());
    }
    sender.mac(whole.from)?;
    // A client without an address yet asks from none.
    if !whole.source.is_unspecified() {
        sender.asker(&whole.from, &whole.source)?;
    }
    if from != client || whole.class & class::FIRST != 0 {
        return refuse(DropReason::DhcpUnanswered);
    }
    hand::up(packet, sender, why)
}

/// A router solicitation goes to the agent.
#[inline(always)]
fn router_solicitation<C: Context>(packet: C, sender: Sender, whole: &Packet) -> Step<()> {
    sender.mac(whole.from)?;
    if !whole.source.is_unspecified() {
        sender.asker(&whole.from, &whole.source)?;
    }
    if whole.ttl != nd::HOP_LIMIT || whole.class & class::FIRST != 0 {
        return refuse(DropReason::Malformed);
    }
    hand::up(packet, sender, marks::ROUTER_SOLICITATION)
}
