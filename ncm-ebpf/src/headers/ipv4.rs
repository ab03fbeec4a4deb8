//! IPv4 (RFC 791).

use super::{
    Address, Frame, Ipv4Address,
    packet::{Fault, Packet, class, protocol},
};

/// Bytes of the header without options.
pub(super) const LEN: usize = 20;

/// Bits of the fragment word: more fragments follow, and the offset in units of eight bytes.
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Reads the header at `offset`.
///
/// # Errors
///
/// The frame does not hold the whole header or all bytes that it announces, or the header contradicts itself.
#[inline(always)]
pub(super) fn read(frame: &(impl Frame + ?Sized), offset: usize, packet: &mut Packet) -> Result<(), Fault> {
    let window = frame.window::<LEN>(offset).ok_or(Fault::Malformed)?;
    let first = window.u8::<0>();
    let header_len = u32::from(first & 0x0f) << 2;
    let total_len = u32::from(window.be16::<2>());
    if first >> 4 != 4 || header_len < LEN as u32 || total_len < header_len {
        return Err(Fault::Malformed);
    }
    if offset as u32 + total_len > frame.length() {
        return Err(Fault::Malformed);
    }
    if header_len > LEN as u32 && leads_on(frame, offset, header_len) != 0 {
        return Err(Fault::Malformed);
    }
    packet.source = Address::v4(Ipv4Address::at::<12, LEN>(&window));
    packet.destination = Address::v4(Ipv4Address::at::<16, LEN>(&window));
    packet.length = total_len;
    packet.transport = header_len;
    packet.fragmented = header_len;
    packet.ttl = window.u8::<8>();
    packet.protocol = window.u8::<9>();
    packet.ip_checksum = window.raw16::<10>();
    let fragment = window.be16::<6>();
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        packet.identification = u32::from(window.raw16::<4>());
        packet.offset = u32::from(fragment & FRAGMENT_OFFSET) * 8;
        packet.class = if packet.offset == 0 { class::FIRST } else { class::LATER };
        // RFC 1858 and RFC 3128: such a fragment's use is to write over a header that was looked at.
        if packet.protocol == protocol::TCP && packet.offset != 0 && packet.offset < 20 {
            return Err(Fault::Tiny);
        }
    }
    Ok(())
}

/// Options: their end, one byte of nothing, and the two source routes, which lead a packet on from the destination that policy is
/// asked about to another.
const END: u8 = 0;
const NOTHING: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 0x83;
const STRICT_SOURCE_ROUTE: u8 = 0x89;

/// The most bytes of options.
const MOST_OPTIONS: u32 = 40;

/// Whether there is a source route among the options, or they contradict themselves: 1 or 0. Apart from the straight path, as few
/// packets have any.
#[inline(never)]
fn leads_on(frame: &(impl Frame + ?Sized), offset: usize, header_len: u32) -> u32 {
    let mut at = LEN as u32;
    for _ in 0..MOST_OPTIONS {
        if at >= header_len {
            return 0;
        }
        let Some(option) = frame.window::<2>(offset + (at & 0x3f) as usize) else { return 1 };
        match option.u8::<0>() {
            END => return 0,
            NOTHING => at += 1,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return 1,
            _ if option.u8::<1>() < 2 => return 1,
            _ => at += u32::from(option.u8::<1>()),
        }
    }
    u32::from(at < header_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::{checksum, ethernet::Ethernet};

    const PACKET: [u8; 28] = [
        0x45, 0, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17, 0x14, 0x9b, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8,
        0, 0,
    ];

    fn header_sum(bytes: &[u8]) -> u16 {
        checksum::fold(bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum())
    }

    fn parse(bytes: &[u8]) -> Result<Packet, Fault> {
        let mut packet = Packet::EMPTY;
        packet.read_v4(bytes, 0, &Ethernet::EMPTY).map(|()| packet)
    }

    #[test]
    fn a_source_route_is_refused_wherever_it_is_among_the_options() {
        let with = |options: &[u8]| {
            let mut bytes = PACKET[..20].to_vec();
            bytes.extend(options);
            bytes.resize(20 + options.len().next_multiple_of(4), 0);
            (bytes[0], bytes[3]) = (0x40 | (bytes.len() / 4) as u8, bytes.len() as u8 + 8);
            bytes.extend(&PACKET[20..]);
            parse(&bytes).map(|packet| packet.transport)
        };
        assert_eq!(with(&[1, 1, 0x94, 4, 0, 0, 0, 0]), Ok(28), "router alert");
        assert_eq!(with(&[1; 40]), Ok(60));
        assert_eq!(
            with(&[7, 39, 4]),
            with(&[7, 39, 4, 0]),
            "longer than the header: the receiver's to judge"
        );
        assert_eq!(with(&[0, 0x83, 3, 4]), Ok(24), "behind the end");
        for kind in [0x83, 0x89] {
            assert_eq!(with(&[kind, 7, 4, 10, 0, 0, 9]), Err(Fault::Malformed));
            assert_eq!(with(&[1, 0x94, 4, 0, 0, kind, 7, 4, 10, 0, 0, 9]), Err(Fault::Malformed));
            let mut last = [1; 40];
            (last[37], last[38], last[39]) = (kind, 3, 4);
            assert_eq!(with(&last), Err(Fault::Malformed));
        }
        assert_eq!(with(&[7, 1, 4, 0]), Err(Fault::Malformed), "an option without an end");
    }

    #[test]
    fn a_plain_header_is_read_and_its_ttl_lowered() {
        let ip = parse(&PACKET).unwrap();
        assert_eq!((ip.ttl, ip.protocol, ip.payload_len()), (64, protocol::UDP, 8));
        assert_eq!(ip.class, 0);
        assert_eq!(header_sum(&PACKET[..20]), 0xffff, "the example's own checksum");
        let mut lowered = PACKET;
        lowered[8..12].copy_from_slice(&ip.with_ttl(63));
        assert_eq!(lowered[8], 63);
        assert_eq!(header_sum(&lowered[..20]), 0xffff);
    }

    #[test]
    fn contradictions_are_refused() {
        for (position, value) in [(0, 0x65), (0, 0x44), (3, 19), (3, 29), (2, 1)] {
            let mut packet = PACKET;
            packet[position] = value;
            assert_eq!(parse(&packet), Err(Fault::Malformed), "byte {position} = {value}");
        }
        assert_eq!(parse(&PACKET[..19]), Err(Fault::Malformed));
    }

    #[test]
    fn fragments_are_told_apart() {
        let of = |word: u16| {
            let mut packet = PACKET;
            packet[6..8].copy_from_slice(&word.to_be_bytes());
            parse(&packet).unwrap()
        };
        assert_eq!(of(0x2000).class, class::FIRST);
        let later = of(0x0010);
        assert_eq!((later.class, later.offset, later.ports), (class::LATER, 128, 0));
        let mut tiny = PACKET;
        (tiny[7], tiny[9]) = (1, 6);
        assert_eq!(parse(&tiny), Err(Fault::Tiny));
    }
}
