//! What is answered on the spot, in the packet itself: ARP, pings of a gateway, and packets whose TTL ran out.
//!
//! Where an answer needs another packet than the one at hand, or the guest takes no XDP frames, XDP leaves it to tc.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{Bucket, PortLimits, Subnet, endpoint_flags, port_flags},
};

use super::{
    Step, Verdict, admit::Sender, by_ip, deliver::Packet, guest::PAYLOAD, route::is_gateway, subnet,
};
use crate::{
    context::Context,
    count::{count, received},
    headers::{
        Ipv4Address, Mac,
        arp::{self, Arp},
        checksum,
        ethernet::{Ethernet, ethertype},
        ipv4::protocol,
        transport::{TCP_LEN, Transport, UDP_LEN, icmp},
    },
    tables::LIMITS,
};

/// TTL of packets that a gateway sends.
const TTL: u8 = 64;

/// ICMP errors a port is sent per second in the long run, and at once.
const ERRORS_PER_SECOND: u64 = 100;
const ERRORS_AT_ONCE: u64 = 50;

/// Answers a guest's ARP request for a gateway or a known endpoint of its subnet.
#[inline(always)]
pub fn arp<C: Context>(packet: C, sender: Sender, ethernet: &Ethernet) -> Step<Verdict> {
    let message = Arp::parse(&packet, PAYLOAD).ok_or(DropReason::Malformed)?;
    if message.sender_mac != ethernet.source {
        sender.mac(ethernet.source)?;
        return Err(DropReason::SpoofedArp);
    }
    // A guest that looks whether an address is taken asks without a sender's address (RFC 5227, section 2.1.1).
    let (index, generation) = if message.sender_ip == Ipv4Address::UNSPECIFIED {
        sender.mac(ethernet.source)?;
        (sender.port.subnet, sender.port.subnet_generation)
    } else {
        let source = sender.source(message.sender_mac, message.sender_ip).map_err(as_arp)?;
        (source.subnet, source.subnet_generation)
    };
    if message.operation != arp::REQUEST || message.sender_ip == message.target_ip {
        return Err(DropReason::ArpIgnored);
    }
    if sender.owns(message.target_ip) {
        return Err(DropReason::ArpUnknown);
    }
    let mac =
        owner(sender, index, subnet(index, generation)?, message.target_ip).ok_or(DropReason::ArpUnknown)?;
    if !can_reply::<C>(sender) {
        return Ok(Verdict::PassUp);
    }
    packet.store(0, &message.answer(mac))?;
    count(PathCounter::ArpAnswered, arp::FRAME_LEN as u32);
    back(packet, sender)
}

/// A spoofed address as what it is in ARP.
#[inline(always)]
fn as_arp(reason: DropReason) -> DropReason {
    if matches!(reason, DropReason::SpoofedIp) { DropReason::SpoofedArp } else { reason }
}

/// Whether an answer from this hook reaches the guest: an XDP program's does where its interface takes XDP frames.
#[inline(always)]
fn can_reply<C: Context>(sender: Sender) -> bool {
    !C::PASSES_UP || sender.port.flags & port_flags::XDP_TARGET != 0
}

/// The MAC that answers for an address towards a guest of that subnet.
#[inline(always)]
fn owner(sender: Sender, index: u32, subnet: &Subnet, ip: Ipv4Address) -> Option<Mac> {
    if is_gateway(subnet, ip) {
        return Some(Mac::new(&subnet.gateway_mac));
    }
    let endpoint = by_ip(subnet.vni, ip)?;
    let local = endpoint.flags & endpoint_flags::LOCAL != 0;
    if endpoint.subnet != index || !(local || endpoint.flags & endpoint_flags::L2 != 0) {
        return None;
    }
    (!local || endpoint.target != sender.index).then_some(Mac::new(&endpoint.mac))
}

/// Answers a ping of a gateway. Later fragments of a large one go back as they are: the change of the first one's checksum
/// covers all of them.
#[inline(always)]
pub fn gateway<C: Context>(packet: C, sender: Sender, whole: &Packet<'_>) -> Step<Verdict> {
    let ip = whole.ip;
    let request = match whole.transport {
        Transport::Icmp { kind: icmp::ECHO_REQUEST, code, checksum } => Some((*code, *checksum)),
        Transport::Opaque if ip.protocol == protocol::ICMP => None,
        _ => return Err(DropReason::GatewayUnserved),
    };
    if !can_reply::<C>(sender) {
        return Ok(Verdict::PassUp);
    }
    let bytes = packet.length();
    if let Some((code, sum)) = request {
        let old = u16::from_ne_bytes([icmp::ECHO_REQUEST, code]);
        let new = u16::from_ne_bytes([icmp::ECHO_REPLY, code]);
        let sum = checksum::update(sum, old, new).to_ne_bytes();
        packet.store(PAYLOAD + ip.header_len, &[icmp::ECHO_REPLY, code, sum[0], sum[1]])?;
    }
    let (to, from) = (whole.ethernet.source.bytes(), whole.ethernet.destination.bytes());
    packet.store(
        0,
        &[to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]],
    )?;
    let (ttl, from, to) = (ip.with_ttl(TTL), ip.destination.bytes(), ip.source.bytes());
    packet.store(
        PAYLOAD + 8,
        &[ttl[0], ttl[1], ttl[2], ttl[3], from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3]],
    )?;
    count(PathCounter::EchoAnswered, bytes);
    back(packet, sender)
}

/// Tells a guest, from the gateway of its subnet, that its packet's TTL ran out (RFC 792; RFC 1812, section 4.3.2).
#[inline(always)]
pub fn time_exceeded<C: Context>(
    packet: C,
    sender: Sender,
    from: &Subnet,
    whole: &Packet<'_>,
) -> Step<Verdict> {
    if !is_reported(whole) {
        return Err(DropReason::TtlExceeded);
    }
    if C::PASSES_UP {
        return Ok(Verdict::PassUp);
    }
    let quote = quote(&packet, whole).ok_or(DropReason::TtlExceeded)?;
    if !is_within_limit(sender.index) {
        count(PathCounter::IcmpLimited, packet.length());
        return Err(DropReason::TtlExceeded);
    }
    let kept = whole.ip.header_len as u32 + quote.payload;
    packet.make_room_for_error(kept)?;
    if let Some(sum) = quote.checksum {
        let sum = sum.to_ne_bytes();
        packet.store(PAYLOAD + 28 + whole.ip.header_len + quote.checksum_at, &sum)?;
    }
    packet.store(0, &error_headers(whole, from, kept, quote.sum))?;
    count(PathCounter::TimeExceededSent, packet.length());
    back(packet, sender)
}

/// What an ICMP error quotes behind the IP header.
struct Quote {
    /// Bytes.
    payload: u32,
    /// Their sum, with `checksum` in its place.
    sum: u32,
    /// What to write over a checksum that is only begun.
    checksum: Option<u16>,
    /// Where it is, counted from the payload's start.
    checksum_at: usize,
}

/// Whether an error may be sent about a packet: not about another error, nor about a later fragment (RFC 1122, section
/// 3.2.2), nor about what has too little to quote.
#[inline(always)]
fn is_reported(whole: &Packet<'_>) -> bool {
    if let Transport::Icmp { kind, .. } = whole.transport
        && *kind != icmp::ECHO_REQUEST
        && *kind != icmp::ECHO_REPLY
    {
        return false;
    }
    whole.ip.starts_payload() && usize::from(whole.ip.payload_len()) >= UDP_LEN
}

/// What to quote of a packet; `None` if it cannot be read.
///
/// The IP header needs no summing up: with its own checksum it sums up to zero. A checksum that a device is to complete
/// would be written over later by the kernel, as that cannot be called off, and the ICMP checksum would be wrong then:
/// the one that stays as it is when it is computed takes its place (`f = !(rest + f)`, so `2 f = !rest`).
#[inline(always)]
fn quote<C: Context>(packet: &C, whole: &Packet<'_>) -> Option<Quote> {
    let at = PAYLOAD + whole.ip.header_len;
    let partial = whole.transport.is_partial(whole.ip);
    let (payload, field, sum, checksum_at) = match whole.transport {
        Transport::Tcp(ports) => {
            let window = packet.window::<TCP_LEN>(at)?;
            let sum = checksum::halves(window.raw32::<0>())
                + checksum::halves(window.raw32::<4>())
                + checksum::halves(window.raw32::<8>())
                + checksum::halves(window.raw32::<12>())
                + checksum::halves(window.raw32::<16>());
            (TCP_LEN as u32, ports.checksum, sum, 16)
        }
        transport => {
            let window = packet.window::<UDP_LEN>(at)?;
            let sum = checksum::halves(window.raw32::<0>()) + checksum::halves(window.raw32::<4>());
            let field = if let Transport::Udp(ports) = transport { ports.checksum } else { 0 };
            (UDP_LEN as u32, field, sum, 6)
        }
    };
    if !partial {
        return Some(Quote { payload, sum, checksum: None, checksum_at });
    }
    let rest = sum - u32::from(field);
    let fixed = checksum::half(!checksum::fold(rest));
    Some(Quote { payload, sum: rest + u32::from(fixed), checksum: Some(fixed), checksum_at })
}

/// Ethernet, IPv4 and ICMP header of a time exceeded that quotes `kept` bytes, whose payload sums up to `sum`.
#[inline(always)]
fn error_headers(whole: &Packet<'_>, from: &Subnet, kept: u32, sum: u32) -> [u8; 42] {
    let length = (28 + kept) as u16;
    let (source, destination) = (Ipv4Address::of_mapped(&from.gateway_ip), whole.ip.source);
    // Internetwork control, do not fragment, as the kernel itself sends errors.
    let fixed = [
        u16::from_ne_bytes([0x45, 0xc0]),
        length.to_be(),
        u16::from_ne_bytes([0x40, 0]),
        u16::from_ne_bytes([TTL, protocol::ICMP]),
    ];
    let header = u32::from(fixed[0])
        + u32::from(fixed[1])
        + u32::from(fixed[2])
        + u32::from(fixed[3])
        + checksum::halves(source.word())
        + checksum::halves(destination.word());
    let kind = u16::from_ne_bytes([icmp::TIME_EXCEEDED, 0]);
    let mut frame = [0; 42];
    frame[0..6].copy_from_slice(&whole.ethernet.source.bytes());
    frame[6..12].copy_from_slice(&from.gateway_mac);
    frame[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
    frame[14..16].copy_from_slice(&fixed[0].to_ne_bytes());
    frame[16..18].copy_from_slice(&fixed[1].to_ne_bytes());
    frame[20..22].copy_from_slice(&fixed[2].to_ne_bytes());
    frame[22..24].copy_from_slice(&fixed[3].to_ne_bytes());
    frame[24..26].copy_from_slice(&(!checksum::fold(header)).to_ne_bytes());
    frame[26..30].copy_from_slice(&source.bytes());
    frame[30..34].copy_from_slice(&destination.bytes());
    frame[34..36].copy_from_slice(&kind.to_ne_bytes());
    frame[36..38].copy_from_slice(&(!checksum::fold(sum + u32::from(kind))).to_ne_bytes());
    frame
}

/// Takes a token of a port's limit on ICMP errors, if there is one. CPUs that take one at once may both get it.
#[inline(always)]
fn is_within_limit(port: u32) -> bool {
    const COST: u64 = 1_000_000_000 / ERRORS_PER_SECOND;
    const FULL: u64 = COST * ERRORS_AT_ONCE;
    // SAFETY: the helper only reads the clock.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let mut granted = false;
    LIMITS.change(&port, |PortLimits { errors: Bucket { filled, tokens }, .. }| {
        let gained = tokens.saturating_add(now.saturating_sub(*filled));
        let full = if gained > FULL { FULL } else { gained };
        granted = full >= COST;
        *tokens = if granted { full - COST } else { full };
        *filled = now;
    });
    granted
}

/// Sends the packet, which is an answer now, back to its guest. Not by `XDP_TX`: a veth does not wake up the guest for
/// such frames unless an XDP program runs there too, as it does for redirected ones.
#[inline(always)]
fn back<C: Context>(packet: C, sender: Sender) -> Step<Verdict> {
    let action = packet.send(packet.interface()).ok_or(DropReason::NoDevice)?;
    received(sender.index, packet.length());
    Ok(Verdict::Sent(action))
}
