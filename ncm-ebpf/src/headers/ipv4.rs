//! IPv4 (RFC 791).

use super::{Frame, Ipv4Address, checksum};

/// Bytes of the header without options.
pub const LEN: usize = 20;

/// Protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

/// Bits of the fragment word: more fragments follow, and the offset in units of eight bytes.
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// An IPv4 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4 {
    /// Source.
    pub source: Ipv4Address,
    /// Destination.
    pub destination: Ipv4Address,
    /// Bytes of the header with its options: 20 to 60.
    pub header_len: usize,
    /// Bytes of the packet: header and payload.
    pub total_len: u16,
    /// The word with the fragment's flags and offset, host order.
    fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Checksum of the header, as in memory.
    pub checksum: u16,
}

impl Ipv4 {
    /// The header at `offset`; `None` if the frame does not hold the whole header or all bytes that it announces, or
    /// if it contradicts itself.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &(impl Frame + ?Sized), offset: usize) -> Option<Self> {
        let window = frame.window::<LEN>(offset)?;
        let first = window.u8::<0>();
        // The mask bounds the length for the verifier too, which follows no subtraction back.
        let header_len = usize::from(first & 0x0f) << 2;
        let total_len = window.be16::<2>();
        if first >> 4 != 4 || header_len < LEN || usize::from(total_len) < header_len {
            return None;
        }
        if offset as u64 + u64::from(total_len) > u64::from(frame.length()) {
            return None;
        }
        Some(Self {
            source: Ipv4Address::at::<12, LEN>(&window),
            destination: Ipv4Address::at::<16, LEN>(&window),
            header_len,
            total_len,
            fragment: window.be16::<6>(),
            ttl: window.u8::<8>(),
            protocol: window.u8::<9>(),
            checksum: window.raw16::<10>(),
        })
    }

    /// Whether the packet is a fragment of a larger one, the first included.
    #[inline(always)]
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Whether the payload starts with the header of its protocol: all but later fragments.
    #[inline(always)]
    #[must_use]
    pub const fn starts_payload(&self) -> bool {
        self.fragment & FRAGMENT_OFFSET == 0
    }

    /// Bytes of the payload.
    #[inline(always)]
    #[must_use]
    pub const fn payload_len(&self) -> u16 {
        self.total_len.wrapping_sub(self.header_len as u16)
    }

    /// TTL, protocol and checksum (bytes 8 to 12 of the header) with a TTL one lower.
    #[inline(always)]
    #[must_use]
    pub const fn with_ttl_decremented(&self) -> [u8; 4] {
        let ttl = self.ttl.wrapping_sub(1);
        self.with_ttl(ttl)
    }

    /// TTL, protocol and checksum (bytes 8 to 12 of the header) with that TTL.
    #[inline(always)]
    #[must_use]
    pub const fn with_ttl(&self, ttl: u8) -> [u8; 4] {
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        let new = u16::from_ne_bytes([ttl, self.protocol]);
        let checksum = checksum::update(self.checksum, old, new).to_ne_bytes();
        [ttl, self.protocol, checksum[0], checksum[1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: [u8; 28] = [
        0x45, 0, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17, 0x14, 0x9b, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8,
        0, 0,
    ];

    fn header_sum(bytes: &[u8]) -> u16 {
        checksum::fold(bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum())
    }

    #[test]
    fn a_plain_header_is_read_and_its_ttl_lowered() {
        let ip = Ipv4::parse(&PACKET[..], 0).unwrap();
        assert_eq!((ip.ttl, ip.protocol, ip.payload_len()), (64, protocol::UDP, 8));
        assert!(!ip.is_fragment() && ip.starts_payload());
        assert_eq!(header_sum(&PACKET[..20]), 0xffff, "the example's own checksum");
        let mut lowered = PACKET;
        lowered[8..12].copy_from_slice(&ip.with_ttl_decremented());
        assert_eq!(lowered[8], 63);
        assert_eq!(header_sum(&lowered[..20]), 0xffff);
    }

    #[test]
    fn contradictions_are_refused() {
        for (position, value) in [(0, 0x65), (0, 0x44), (3, 19), (3, 29), (2, 1)] {
            let mut packet = PACKET;
            packet[position] = value;
            assert!(Ipv4::parse(&packet[..], 0).is_none(), "byte {position} = {value:#x}");
        }
        for len in 0..PACKET.len() {
            assert!(Ipv4::parse(&PACKET[..len], 0).is_none(), "cut to {len}");
        }
    }

    #[test]
    fn fragments_are_told_apart() {
        for (word, fragment, first) in [
            ([0x40, 0], false, true),
            ([0x20, 0], true, true),
            ([0x20, 5], true, false),
            ([0, 5], true, false),
        ] {
            let mut packet = PACKET;
            packet[6..8].copy_from_slice(&word);
            let ip = Ipv4::parse(&packet[..], 0).unwrap();
            assert_eq!((ip.is_fragment(), ip.starts_payload()), (fragment, first), "{word:?}");
        }
    }
}
