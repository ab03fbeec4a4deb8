//! ICMP errors that a guest is owed, from the gateway of its subnet if it has one: a TTL that ran out, a packet that does not fit.
//!
//! An error needs another packet than the one at hand, so that XDP leaves it to tc.

use ncm_common::{
    SERVER_IP, SERVER_MAC,
    counters::PathCounter,
    drops::DropReason,
    tables::{Subnet, subnet_flags},
};

use super::{Ended, Step, admit::Sender, answer, guest::PAYLOAD, limit, subnet};
use crate::{
    context::Context,
    count::count,
    headers::{
        Address, Ipv4Address, Mac, Packet, checksum,
        ethernet::ethertype,
        ipv6,
        packet::{class, icmp, protocol},
        transport::{TCP_LEN, UDP_LEN},
    },
    scratch::{Owed, Scratch},
};

/// TTL and hop limit of packets that a gateway sends.
pub const TTL: u8 = 64;

/// Bytes of the Ethernet, IP and ICMP headers of an error.
const V4: usize = 14 + 20 + 8;
const V6: usize = 14 + 40 + 8;

/// Tells a guest that its packet's TTL ran out (RFC 792; RFC 1812, section 4.3.2; RFC 4443, section 3.3), or how large a
/// packet may be to its destination (RFC 1191; RFC 4443, section 3.2).
#[inline(always)]
pub fn owed<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch, ended: Ended) -> Ended {
    let mtu = ended.mtu();
    scratch.owed = if mtu == 0 {
        Owed {
            v4: [icmp::TIME_EXCEEDED, 0],
            v6: [icmp::V6_TIME_EXCEEDED, 0],
            mtu,
            reason: DropReason::TtlExceeded as u32,
        }
    } else {
        Owed {
            v4: [icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED],
            v6: [icmp::V6_PACKET_TOO_BIG, 0],
            mtu,
            reason: DropReason::TooBig as u32,
        }
    };
    match locate(sender, scratch) {
        0 => Ended(report(packet, sender.index, scratch)),
        ended => Ended(ended),
    }
}

/// Notes the subnet whose gateway reports. By itself, for the sake of the stack.
#[inline(never)]
fn locate(sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(sender.source(&scratch.packet.from, &scratch.packet.source).map(|source| {
        scratch.subnet = source.subnet;
        scratch.subnet_generation = source.subnet_generation;
    }))
}

/// Sends what is owed, or gives the reason of the drop.
#[inline(never)]
fn report<C: Context>(packet: C, index: u32, scratch: &mut Scratch) -> u32 {
    let reason = scratch.owed.reason;
    match send(packet, index, scratch) {
        Ok(Some(action)) => Ended::sent(action).0,
        Ok(None) => reason,
        Err(ended) => ended.0,
    }
}

#[inline(always)]
fn send<C: Context>(packet: C, index: u32, scratch: &mut Scratch) -> Step<Option<i32>> {
    let from = subnet(scratch.subnet, scratch.subnet_generation)?;
    let (whole, owed, frame) = (&scratch.packet, &scratch.owed, &mut scratch.frame.bytes);
    let reported = is_reported(whole);
    if reported && C::PASSES_UP {
        return Err(Ended::PASS_UP);
    }
    if !reported {
        return Ok(None);
    }
    let teller = teller(from, whole.family);
    let Some(quote) = quote(&packet, whole) else { return Ok(None) };
    if !limit::grants_error(index) {
        count(PathCounter::IcmpLimited, packet.length());
        return Ok(None);
    }
    let quoted = whole.quoted();
    let kept = quoted + quote.payload;
    let headers = if whole.family == 4 { V4 } else { V6 } - PAYLOAD;
    packet.make_room_for_error(kept, headers as i32)?;
    if let Some(sum) = quote.checksum {
        let at = PAYLOAD + headers + (quoted & 0x3f) as usize + quote.checksum_at;
        packet.store(at, &sum.to_ne_bytes())?;
    }
    if whole.family == 4 {
        headers_v4(frame, whole, teller, owed, kept, quote.sum);
        store::<C, V4>(packet, frame)?;
    } else {
        headers_v6(frame, whole, teller, owed, kept, quote.sum);
        store::<C, V6>(packet, frame)?;
    }
    let counter = if owed.mtu == 0 { PathCounter::TimeExceededSent } else { PathCounter::PacketTooBigSent };
    count(counter, packet.length());
    answer::back(packet, index).map(Some)
}

/// Who reports to a guest of that subnet: its gateway; without one of the packet's version, an address that no guest has. A
/// packet that is too big is to be reported there too, or its sender would never learn of it.
#[inline(always)]
fn teller(subnet: &Subnet, family: u8) -> (Mac, Address) {
    let gateway = Address::new(&subnet.gateway_ip);
    if subnet.flags & subnet_flags::GATEWAY != 0 && gateway.is_v4() == (family == 4) {
        return (Mac::new(&subnet.gateway_mac), gateway);
    }
    let mac = const { Mac::new(&SERVER_MAC) };
    (
        mac,
        if family == 4 {
            const { Address::v4(Ipv4Address::new(SERVER_IP)) }
        } else {
            Address::link_local(mac)
        },
    )
}

/// Writes the first `N` bytes of an answer.
#[inline(always)]
fn store<C: Context, const N: usize>(packet: C, frame: &[u8; 94]) -> Step<()> {
    let Some(bytes) = frame.first_chunk::<N>() else { return Ok(()) };
    Ok(packet.store(0, bytes)?)
}

/// What an ICMP error quotes.
struct Quote {
    /// Bytes behind the IP header.
    payload: u32,
    /// The sum of all that is quoted, with `checksum` in its place.
    sum: u32,
    /// What to write over a checksum that is only begun.
    checksum: Option<u16>,
    /// Where it is, counted from the end of the IP header.
    checksum_at: usize,
}

impl Packet {
    /// Bytes of the IP header that an error quotes: with IPv4's options, without IPv6's extensions.
    #[inline(always)]
    const fn quoted(&self) -> u32 {
        if self.family == 4 { self.transport } else { ipv6::LEN as u32 }
    }
}

/// Whether an error may be sent about a packet: not about another error, nor about a later fragment (RFC 1122, section
/// 3.2.2), nor about what has too little to quote.
#[inline(always)]
fn is_reported(whole: &Packet) -> bool {
    let is_error = whole.class & class::MESSAGE != 0;
    !is_error && whole.class & class::LATER == 0 && whole.payload_len() >= UDP_LEN as u32
}

/// What to quote of a packet; `None` if it cannot be read.
///
/// IPv4's header needs no summing up: with its own checksum it sums up to zero. A checksum that a device is to complete
/// would be written over later by the kernel, as that cannot be called off, and the ICMP checksum would be wrong then:
/// the one that stays as it is when it is computed takes its place (`f = !(rest + f)`, so `2 f = !rest`).
#[inline(always)]
fn quote<C: Context>(packet: &C, whole: &Packet) -> Option<Quote> {
    let at = PAYLOAD + (whole.quoted() & 0x3f) as usize;
    let is_direct = whole.quoted() == whole.transport;
    let ip = if whole.family == 4 { 0 } else { header_sum(packet)? };
    let mut quote = if whole.protocol == protocol::TCP && is_direct {
        let window = packet.window::<TCP_LEN>(at)?;
        let sum = checksum::halves(window.raw32::<0>())
            + checksum::halves(window.raw32::<4>())
            + checksum::halves(window.raw32::<8>())
            + checksum::halves(window.raw32::<12>())
            + checksum::halves(window.raw32::<16>());
        Quote { payload: TCP_LEN as u32, sum, checksum: None, checksum_at: 16 }
    } else {
        let window = packet.window::<UDP_LEN>(at)?;
        let sum = checksum::halves(window.raw32::<0>()) + checksum::halves(window.raw32::<4>());
        Quote { payload: UDP_LEN as u32, sum, checksum: None, checksum_at: 6 }
    };
    if is_direct && whole.is_partial() {
        let rest = quote.sum - u32::from(whole.checksum);
        let fixed = checksum::half(!checksum::fold(rest));
        quote.checksum = Some(fixed);
        quote.sum = rest + u32::from(fixed);
    }
    quote.sum += ip;
    Some(quote)
}

/// The sum of the IPv6 header.
#[inline(always)]
fn header_sum<C: Context>(packet: &C) -> Option<u32> {
    let window = packet.window::<{ ipv6::LEN }>(PAYLOAD)?;
    let mut sum = 0;
    macro_rules! add {
        ($($at:literal)+) => { $( sum += checksum::halves(window.raw32::<$at>()); )+ };
    }
    add!(0 4 8 12 16 20 24 28 32 36);
    Some(sum)
}

/// The MTU as the two or four bytes behind an error's checksum.
#[inline(always)]
const fn rest(owed: &Owed) -> u32 {
    owed.mtu.to_be()
}

/// Ethernet, IPv4 and ICMP header of an error that quotes `kept` bytes, which sum up to `sum`.
#[inline(always)]
fn headers_v4(
    frame: &mut [u8; 94],
    whole: &Packet,
    (mac, from): (Mac, Address),
    owed: &Owed,
    kept: u32,
    sum: u32,
) {
    let length = (28 + kept) as u16;
    let (source, destination) = (from.as_v4(), whole.source.as_v4());
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
    let sum = sum + u32::from(u16::from_ne_bytes(owed.v4)) + checksum::halves(rest(owed));
    frame[0..6].copy_from_slice(&whole.from.bytes());
    frame[6..12].copy_from_slice(&mac.bytes());
    frame[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
    frame[14..16].copy_from_slice(&fixed[0].to_ne_bytes());
    frame[16..18].copy_from_slice(&fixed[1].to_ne_bytes());
    frame[18..20].fill(0);
    frame[20..22].copy_from_slice(&fixed[2].to_ne_bytes());
    frame[22..24].copy_from_slice(&fixed[3].to_ne_bytes());
    frame[24..26].copy_from_slice(&(!checksum::fold(header)).to_ne_bytes());
    frame[26..30].copy_from_slice(&source.bytes());
    frame[30..34].copy_from_slice(&destination.bytes());
    frame[34..36].copy_from_slice(&owed.v4);
    frame[36..38].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
    frame[38..42].copy_from_slice(&rest(owed).to_ne_bytes());
}

/// Ethernet, IPv6 and ICMPv6 header of an error, likewise.
#[inline(always)]
fn headers_v6(
    frame: &mut [u8; 94],
    whole: &Packet,
    (mac, source): (Mac, Address),
    owed: &Owed,
    kept: u32,
    sum: u32,
) {
    let (length, destination) = ((8 + kept) as u16, whole.source);
    let sum = sum
        + source.sum()
        + destination.sum()
        + u32::from(length.to_be())
        + u32::from(u16::from(protocol::ICMPV6).to_be())
        + u32::from(u16::from_ne_bytes(owed.v6))
        + checksum::halves(rest(owed));
    frame[0..6].copy_from_slice(&whole.from.bytes());
    frame[6..12].copy_from_slice(&mac.bytes());
    frame[12..14].copy_from_slice(&ethertype::IPV6.to_be_bytes());
    frame[14..18].copy_from_slice(&[0x60, 0, 0, 0]);
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[20] = protocol::ICMPV6;
    frame[21] = TTL;
    frame[22..38].copy_from_slice(&source.bytes());
    frame[38..54].copy_from_slice(&destination.bytes());
    frame[54..56].copy_from_slice(&owed.v6);
    frame[56..58].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
    frame[58..62].copy_from_slice(&rest(owed).to_ne_bytes());
}
