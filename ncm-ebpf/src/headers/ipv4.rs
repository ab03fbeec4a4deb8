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
