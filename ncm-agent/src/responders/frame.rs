//! Frames of guests' questions and of the answers: Ethernet, IPv4 or IPv6, UDP or ICMPv6, with their checksums.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Protocol numbers of UDP and ICMPv6.
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;
/// Hop limit of our UDP answers, which are never routed.
const HOPS: u8 = 64;
/// Hop limit that neighbour discovery requires (RFC 4861, section 6.1).
const HOPS_DISCOVERY: u8 = 255;

/// The MAC that reaches everybody.
pub(super) const BROADCAST: [u8; 6] = [0xff; 6];

/// Where a frame is from or goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Side<Address> {
    pub(super) mac: [u8; 6],
    pub(super) ip: Address,
}

/// A message in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Received<'a, Address> {
    /// Who sent it.
    pub(super) from: Side<Address>,
    /// Whom it is for.
    pub(super) to: Side<Address>,
    /// What UDP or ICMPv6 carries; ICMPv6 with its own header.
    pub(super) payload: &'a [u8],
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    array(bytes, at).map(|number| usize::from(u16::from_be_bytes(number)))
}

fn macs(frame: &[u8], ethertype: [u8; 2]) -> Option<([u8; 6], [u8; 6])> {
    (array::<2>(frame, 12)? == ethertype).then_some(())?;
    Some((array(frame, 6)?, array(frame, 0)?))
}

/// The UDP datagram from `port` to `to_port` in an unfragmented IPv4 frame. With `partial`, its checksum is not computed yet.
pub(super) fn udp4(frame: &[u8], port: u16, to_port: u16, partial: bool) -> Option<Received<'_, Ipv4Addr>> {
    let (from_mac, to_mac) = macs(frame, TYPE_IPV4)?;
    let packet = &frame[ETHERNET..];
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    if first >> 4 != 4
        || header < IPV4
        || array::<2>(packet, 6)?[0] & 0x3f != 0
        || array::<2>(packet, 6)?[1] != 0
    {
        return None;
    }
    let packet = packet.get(..number(packet, 2)?)?;
    if *packet.get(9)? != PROTOCOL_UDP || sum(packet.get(..header)?, 0) != 0xffff {
        return None;
    }
    let (from, to) = (array::<4>(packet, 12)?, array::<4>(packet, 16)?);
    let pseudo = sum(&from, 0) + sum(&to, 0);
    let payload = udp(&packet[header..], pseudo, (port, to_port), partial, true)?;
    let side = |mac, ip: [u8; 4]| Side { mac, ip: Ipv4Addr::from(ip) };
    Some(Received { from: side(from_mac, from), to: side(to_mac, to), payload })
}

/// The UDP datagram from `port` to `to_port` in an IPv6 frame without extension headers.
pub(super) fn udp6(frame: &[u8], port: u16, to_port: u16, partial: bool) -> Option<Received<'_, Ipv6Addr>> {
    let (received, pseudo) = ipv6(frame, PROTOCOL_UDP)?;
    let payload = udp(received.payload, pseudo, (port, to_port), partial, false)?;
    Some(Received { payload, ..received })
}

/// The ICMPv6 message of neighbour discovery in an IPv6 frame without extension headers.
pub(super) fn discovery(frame: &[u8], partial: bool) -> Option<Received<'_, Ipv6Addr>> {
    let (received, pseudo) = ipv6(frame, PROTOCOL_ICMPV6)?;
    let length = u32::try_from(received.payload.len()).ok()?;
    let whole = partial || sum(received.payload, pseudo + length + u32::from(PROTOCOL_ICMPV6)) == 0xffff;
    (whole && frame[ETHERNET + 7] == HOPS_DISCOVERY).then_some(received)
}

/// What an IPv6 packet carries, and the sum of its addresses.
fn ipv6(frame: &[u8], protocol: u8) -> Option<(Received<'_, Ipv6Addr>, u32)> {
    let (from_mac, to_mac) = macs(frame, TYPE_IPV6)?;
    let packet = &frame[ETHERNET..];
    if packet.first()? >> 4 != 6 || *packet.get(6)? != protocol {
        return None;
    }
    let (from, to) = (array::<16>(packet, 8)?, array::<16>(packet, 24)?);
    let payload = packet.get(IPV6..IPV6 + number(packet, 4)?)?;
    let side = |mac, ip: [u8; 16]| Side { mac, ip: Ipv6Addr::from(ip) };
    let received = Received { from: side(from_mac, from), to: side(to_mac, to), payload };
    Some((received, sum(&from, 0) + sum(&to, 0)))
}

fn udp(packet: &[u8], pseudo: u32, ports: (u16, u16), partial: bool, optional: bool) -> Option<&[u8]> {
    let length = number(packet, 4)?;
    let datagram = packet.get(..length)?;
    if number(datagram, 0)? != usize::from(ports.0) || number(datagram, 2)? != usize::from(ports.1) {
        return None;
    }
    let unset = number(datagram, 6)? == 0;
    let whole = partial || (optional && unset) || {
        !unset && sum(datagram, pseudo + u32::try_from(length).ok()? + u32::from(PROTOCOL_UDP)) == 0xffff
    };
    if whole { datagram.get(UDP..) } else { None }
}

/// The one's complement sum of 16-bit words (RFC 1071), begun with `begun` and folded.
fn sum(bytes: &[u8], begun: u32) -> u32 {
    let mut sum = u64::from(begun);
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

fn checksum(bytes: &[u8], begun: u32) -> [u8; 2] {
    (!(sum(bytes, begun) as u16)).to_be_bytes()
}

/// As [`checksum`], where 0 means that there is none (RFC 768).
fn udp_checksum(bytes: &[u8], begun: u32) -> [u8; 2] {
    match checksum(bytes, begun) {
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: [u8; 2], room: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + room);
    frame.extend(to);
    frame.extend(from);
    frame.extend(ethertype);
    frame
}

/// An IPv4 frame with a UDP datagram; `None` if the payload is too long for one.
pub(super) fn build_udp4(
    from: Side<Ipv4Addr>,
    to: Side<Ipv4Addr>,
    ports: (u16, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let total = u16::try_from(IPV4 + UDP + payload.len()).ok()?;
    let mut frame = ethernet(to.mac, from.mac, TYPE_IPV4, usize::from(total));
    let mut header = [0_u8; IPV4];
    header[0] = 0x45;
    // Internetwork control (RFC 4594, section 3.1): as DHCP servers send it.
    header[1] = 0xc0;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[8] = HOPS;
    header[9] = PROTOCOL_UDP;
    header[12..16].copy_from_slice(&from.ip.octets());
    header[16..20].copy_from_slice(&to.ip.octets());
    let check = checksum(&header, 0);
    header[10..12].copy_from_slice(&check);
    frame.extend(header);
    let pseudo = sum(&from.ip.octets(), 0) + sum(&to.ip.octets(), 0);
    append_udp(&mut frame, pseudo, ports, payload)?;
    Some(frame)
}

/// An IPv6 frame with a UDP datagram, likewise.
pub(super) fn build_udp6(
    from: Side<Ipv6Addr>,
    to: Side<Ipv6Addr>,
    ports: (u16, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP + payload.len()).ok()?;
    let mut frame = ipv6_header(from, to, length, PROTOCOL_UDP, HOPS);
    let pseudo = sum(&from.ip.octets(), 0) + sum(&to.ip.octets(), 0);
    append_udp(&mut frame, pseudo, ports, payload)?;
    Some(frame)
}

/// An IPv6 frame with an ICMPv6 message of neighbour discovery, whose checksum field is still zero.
pub(super) fn build_discovery(from: Side<Ipv6Addr>, to: Side<Ipv6Addr>, message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    let mut frame = ipv6_header(from, to, length, PROTOCOL_ICMPV6, HOPS_DISCOVERY);
    let at = frame.len();
    frame.extend(message);
    let pseudo = sum(&from.ip.octets(), 0) + sum(&to.ip.octets(), 0);
    let check = checksum(message, pseudo + u32::from(length) + u32::from(PROTOCOL_ICMPV6));
    frame.get_mut(at + 2..at + 4)?.copy_from_slice(&check);
    Some(frame)
}

fn ipv6_header(from: Side<Ipv6Addr>, to: Side<Ipv6Addr>, length: u16, next: u8, hops: u8) -> Vec<u8> {
    let mut frame = ethernet(to.mac, from.mac, TYPE_IPV6, IPV6 + usize::from(length));
    frame.extend([0x6c, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([next, hops]);
    frame.extend(from.ip.octets());
    frame.extend(to.ip.octets());
    frame
}

fn append_udp(frame: &mut Vec<u8>, pseudo: u32, ports: (u16, u16), payload: &[u8]) -> Option<()> {
    let length = u16::try_from(UDP + payload.len()).ok()?;
    let at = frame.len();
    frame.extend(ports.0.to_be_bytes());
    frame.extend(ports.1.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    let check = udp_checksum(&frame[at..], pseudo + u32::from(length) + u32::from(PROTOCOL_UDP));
    frame[at + 6..at + 8].copy_from_slice(&check);
    Some(())
}

/// The MAC of an IPv6 multicast group (RFC 2464, section 7).
pub(super) fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}
