//! What is answered on the spot, in the packet itself: ARP, neighbour solicitations, pings of a gateway.
//!
//! Where an answer needs another packet than the one at hand, or the guest takes no XDP frames, XDP leaves it to tc.

use ncm_common::{
    asks::ask_kinds,
    counters::PathCounter,
    drops::DropReason,
    tables::{Subnet, endpoint_flags, port_flags},
};

use super::{
    Ended, Step, admit::Sender, ask, by_ip, by_mac, errors::TTL, guest::PAYLOAD, refuse, route::is_gateway,
    subnet,
};
use crate::{
    context::Context,
    count::{count, received},
    headers::{
        Address, Ipv4Address, Mac, Packet,
        arp::{self, Arp},
        checksum,
        ethernet::Ethernet,
        nd::{self, Advertisement, Neighbour},
        packet::{class, icmp, protocol},
    },
    scratch::Scratch,
};

/// Answers a guest's ARP request for a gateway or a known endpoint of its subnet.
#[inline(always)]
pub fn arp<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch, ethernet: &Ethernet) -> Step<()> {
    let message = Arp::parse(&packet, PAYLOAD).ok_or(DropReason::Malformed)?;
    if message.sender_mac != ethernet.source {
        sender.mac(ethernet.source)?;
        return refuse(DropReason::SpoofedArp);
    }
    // A guest that looks whether an address is taken asks without a sender's address (RFC 5227, section 2.1.1).
    let (index, generation) = if message.sender_ip == Ipv4Address::UNSPECIFIED {
        sender.mac(ethernet.source)?;
        (sender.port.subnet, sender.port.subnet_generation)
    } else {
        let source = sender.source(&message.sender_mac, &Address::v4(message.sender_ip)).map_err(as_arp)?;
        (source.subnet, source.subnet_generation)
    };
    if message.operation != arp::REQUEST || message.sender_ip == message.target_ip {
        return refuse(DropReason::ArpIgnored);
    }
    let target = Address::v4(message.target_ip);
    if sender.owns(&target) {
        return refuse(DropReason::ArpUnknown);
    }
    (scratch.subnet, scratch.subnet_generation) = (index, generation);
    Ended::step(reply(packet, sender, scratch))
}

/// Answers an ARP request that the guest may ask. Apart from what sees to that, as the stack does not hold both.
#[inline(never)]
fn reply<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(replied(packet, sender, scratch))
}

#[inline(always)]
fn replied<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> Step<()> {
    let message = Arp::parse(&packet, PAYLOAD).ok_or(DropReason::Malformed)?;
    let (index, target) = (scratch.subnet, Address::v4(message.target_ip));
    let own = subnet(index, scratch.subnet_generation)?;
    let Some((mac, _)) = owner(sender, index, own, target) else {
        ask::within(&mut scratch.ask, &mut scratch.ask_subnet, (index, own.vni), target, ask_kinds::ARP);
        ask::from(&mut scratch.ask, Address::v4(message.sender_ip));
        return Err(Ended::unknown(DropReason::ArpUnknown));
    };
    if !can_reply::<C>(sender) {
        return Err(Ended::PASS_UP);
    }
    packet.store(0, &message.answer(mac))?;
    count(PathCounter::ArpAnswered, arp::FRAME_LEN as u32);
    Err(Ended::sent(back(packet, sender.index)?))
}

/// A spoofed address as what it is in ARP.
#[inline(always)]
fn as_arp(ended: Ended) -> Ended {
    if ended == DropReason::SpoofedIp.into() { DropReason::SpoofedArp.into() } else { ended }
}

/// Ends a neighbour solicitation or advertisement: see [`solicitation`] and [`advertisement`].
#[inline(never)]
pub fn discovery<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(if scratch.packet.icmp[0] == icmp::NEIGHBOUR_SOLICITATION {
        solicitation(packet, sender, scratch)
    } else {
        advertisement(packet, sender, &scratch.packet)
    })
}

/// Answers a guest's neighbour solicitation (RFC 4861, section 7.2.4) for a gateway or a known endpoint of its subnet.
#[inline(always)]
fn solicitation<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> Step<()> {
    let whole = &scratch.packet;
    let message = neighbour(&packet, whole)?;
    // A guest that looks whether an address is taken asks without an own one (RFC 4862, section 5.4.2).
    let is_probe = whole.source.is_unspecified();
    if message.mac != Mac::ZERO && (is_probe || message.mac != whole.from) {
        sender.mac(whole.from)?;
        return refuse(DropReason::SpoofedNd);
    }
    let asker = if is_probe { Address::link_local(whole.from) } else { whole.source };
    let source = sender.asker(&whole.from, &asker).map_err(as_nd)?;
    (scratch.subnet, scratch.subnet_generation) = (source.subnet, source.subnet_generation);
    scratch.target = message.target;
    if sender.owns(&scratch.target) {
        return refuse(DropReason::NdUnknown);
    }
    Ended::step(seek(sender, scratch))?;
    write(scratch);
    let fits = packet.length() == nd::FRAME_LEN as u32;
    if !can_reply::<C>(sender) || C::PASSES_UP && !fits {
        return Err(Ended::PASS_UP);
    }
    let Some(frame) = scratch.frame.bytes.first_chunk::<{ nd::FRAME_LEN }>() else {
        return refuse(DropReason::RewriteFailed);
    };
    if !fits {
        packet.resize(nd::FRAME_LEN as u32)?;
    }
    packet.store(0, frame)?;
    count(PathCounter::NdAnswered, nd::FRAME_LEN as u32);
    Err(Ended::sent(back(packet, sender.index)?))
}

/// Finds who is to be answered for as `scratch.target` towards the asker.
#[inline(never)]
fn seek(sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(found(sender, scratch))
}

#[inline(always)]
fn found(sender: Sender, scratch: &mut Scratch) -> Step<()> {
    let target = scratch.target;
    let whole = &scratch.packet;
    // Who asks from no address of a subnet's may ask for those of each that it is in.
    let any = (whole.source.is_unspecified() || whole.source.is_link_local()) && !target.is_link_local();
    let (index, generation) = match sender.link(&target).filter(|_| any) {
        Some(link) => (link.subnet, link.subnet_generation),
        None => (scratch.subnet, scratch.subnet_generation),
    };
    let own = subnet(index, generation)?;
    let Some((mac, router)) = owner(sender, index, own, target) else {
        let (ask, lookup) = (&mut scratch.ask, &mut scratch.ask_subnet);
        ask::within(ask, lookup, (index, own.vni), target, ask_kinds::DISCOVERY);
        return Err(Ended::unknown(DropReason::NdUnknown));
    };
    scratch.owner = mac;
    scratch.is_router = u32::from(router);
    Ok(())
}

/// Writes the answer to `scratch.frame`.
#[inline(never)]
fn write(scratch: &mut Scratch) {
    let Scratch { packet, target, owner, is_router, frame, .. } = scratch;
    if let Some(frame) = frame.bytes.first_chunk_mut::<{ nd::FRAME_LEN }>() {
        let asker = (packet.source, packet.from);
        Advertisement { target: (*target, *owner), asker, router: *is_router != 0 }.write(frame);
    }
}

/// Refuses a guest's neighbour advertisement: of an address that is not its own by another reason.
#[inline(always)]
fn advertisement<C: Context>(packet: C, sender: Sender, whole: &Packet) -> Step<()> {
    let message = neighbour(&packet, whole)?;
    sender.mac(whole.from)?;
    let is_own = sender.asker(&whole.from, &message.target).is_ok()
        && (message.mac == Mac::ZERO || message.mac == whole.from);
    refuse(if is_own { DropReason::NdIgnored } else { DropReason::SpoofedNd })
}

/// A message about a neighbour, if it has come as such messages do: not routed, nor in fragments (RFC 6980).
#[inline(always)]
fn neighbour<C: Context>(packet: &C, whole: &Packet) -> Step<Neighbour> {
    if whole.ttl != nd::HOP_LIMIT || whole.class & class::FIRST != 0 {
        return refuse(DropReason::Malformed);
    }
    let at = PAYLOAD + (whole.transport & 0x1ff) as usize;
    Ok(Neighbour::parse(packet, at, whole.payload_len()).ok_or(DropReason::Malformed)?)
}

/// A spoofed address as what it is in neighbour discovery.
#[inline(always)]
fn as_nd(ended: Ended) -> Ended {
    if ended == DropReason::SpoofedIp.into() { DropReason::SpoofedNd.into() } else { ended }
}

/// Whether an answer from this hook reaches the guest: an XDP program's does where its interface takes XDP frames.
#[inline(always)]
fn can_reply<C: Context>(sender: Sender) -> bool {
    !C::PASSES_UP || sender.port.flags & port_flags::XDP_TARGET != 0
}

/// The MAC that answers for an address towards a guest of that subnet, and whether it is a router's.
#[inline(always)]
fn owner(sender: Sender, index: u32, subnet: &Subnet, ip: Address) -> Option<(Mac, bool)> {
    if is_gateway(subnet, ip) {
        return Some((Mac::new(&subnet.gateway_mac), true));
    }
    let endpoint = match ip.link_local_mac() {
        // Known by the MAC in it.
        Some(mac) => by_mac(subnet.vni, mac)?,
        None => by_ip(subnet.vni, ip).filter(|endpoint| endpoint.subnet == index)?,
    };
    let local = endpoint.flags & endpoint_flags::LOCAL != 0;
    if !(local || endpoint.flags & endpoint_flags::L2 != 0) || local && endpoint.target == sender.index {
        return None;
    }
    Some((Mac::new(&endpoint.mac), false))
}

/// Answers a ping of a gateway. Later fragments of a large one go back as they are: the change of the first one's checksum
/// covers all of them.
#[inline(always)]
pub fn ping<C: Context>(packet: C, sender: Sender, whole: &Packet) -> Step<()> {
    let is_later = whole.class & class::LATER != 0;
    let is_ping = if is_later {
        if whole.family == 4 { whole.protocol == protocol::ICMP } else { whole.icmp[0] == protocol::ICMPV6 }
    } else {
        whole.is_echo_request()
    };
    if !is_ping {
        return refuse(DropReason::GatewayUnserved);
    }
    if !can_reply::<C>(sender) {
        return Err(Ended::PASS_UP);
    }
    let bytes = packet.length();
    if !is_later {
        let reply = if whole.family == 4 { icmp::ECHO_REPLY } else { icmp::V6_ECHO_REPLY };
        let new = [reply, whole.icmp[1]];
        let (old_word, new_word) = (u16::from_ne_bytes(whole.icmp), u16::from_ne_bytes(new));
        let sum = checksum::update(whole.checksum, old_word, new_word).to_ne_bytes();
        let at = PAYLOAD + (whole.transport & 0x1ff) as usize;
        packet.store(at, &[new[0], new[1], sum[0], sum[1]])?;
    }
    let (to, from) = (whole.from.bytes(), whole.to.bytes());
    packet.store(
        0,
        &[to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]],
    )?;
    if whole.family == 4 {
        let (ttl, from, to) =
            (whole.with_ttl(TTL), whole.destination.as_v4().bytes(), whole.source.as_v4().bytes());
        packet.store(
            PAYLOAD + 8,
            &[ttl[0], ttl[1], ttl[2], ttl[3], from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3]],
        )?;
    } else {
        packet.store(PAYLOAD + 7, &[TTL])?;
        packet.store(PAYLOAD + 8, &whole.destination.bytes())?;
        packet.store(PAYLOAD + 24, &whole.source.bytes())?;
    }
    count(PathCounter::EchoAnswered, bytes);
    Err(Ended::sent(back(packet, sender.index)?))
}

/// Sends the packet, which is an answer now, back to its guest. Not by `XDP_TX`: a veth does not wake up the guest for
/// such frames unless an XDP program runs there too, as it does for redirected ones.
#[inline(always)]
pub fn back<C: Context>(packet: C, index: u32) -> Step<i32> {
    let action = packet.send(packet.interface()).ok_or(DropReason::NoDevice)?;
    received(index, packet.length());
    Ok(action)
}
