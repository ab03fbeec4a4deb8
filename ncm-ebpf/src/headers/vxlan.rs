//! VXLAN over IPv4 (RFC 7348): the headers around a guest's frame.

use super::{Frame, Ipv4Address, ethernet::ethertype, packet::protocol};

/// Bytes in front of the inner frame: Ethernet 14, IPv4 without options 20, UDP 8, VXLAN 8.
pub const LEN: usize = 14 + 20 + 8 + 8;

/// Where the outer UDP destination port is.
pub const PORT_OFFSET: usize = 14 + 20 + 2;

/// Where the outer UDP checksum is.
pub const CHECKSUM_OFFSET: usize = 14 + 20 + 6;

/// The flag that says that the VNI counts, in the first byte of the header.
pub const VNI_PRESENT: u8 = 0x08;

/// The outer headers of a tunnel frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// The host that sent it.
    pub source: Ipv4Address,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Outer UDP checksum, as in memory; 0 is none.
    pub checksum: u16,
    /// Bytes of the outer IP packet, by its header.
    pub total_len: u16,
    /// Bytes of the outer UDP datagram, by its header.
    pub datagram_len: u16,
}

impl Outer {
    /// The headers of a VXLAN frame to `address` and `port` (the bytes of the wire); `None` for everything else, which is
    /// not ours: other protocols, addresses and ports, IPv4 options, fragments, VLAN tags, a frame without a VNI.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &(impl Frame + ?Sized), address: Ipv4Address, port: [u8; 2]) -> Option<Self> {
        let window = frame.window::<LEN>(0)?;
        if window.be16::<12>() != ethertype::IPV4 || window.u8::<14>() != 0x45 {
            return None;
        }
        if window.u8::<23>() != protocol::UDP || window.be16::<20>() & 0x3fff != 0 {
            return None;
        }
        if window.raw32::<30>() != address.word() || window.raw16::<36>() != u16::from_ne_bytes(port) {
            return None;
        }
        if window.u8::<42>() & VNI_PRESENT == 0 {
            return None;
        }
        Some(Self {
            source: Ipv4Address::at::<26, LEN>(&window),
            vni: window.be32::<46>() >> 8,
            checksum: window.raw16::<40>(),
            total_len: window.be16::<16>(),
            datagram_len: window.be16::<38>(),
        })
    }

    /// How a frame of `bytes` compares with what the outer headers announce.
    #[inline(always)]
    #[must_use]
    pub const fn extent(&self, bytes: u32) -> Extent {
        let announced = self.total_len as u32 + 14;
        if announced > bytes || self.datagram_len as u32 + 20 != self.total_len as u32 {
            Extent::Wrong
        } else if announced < bytes {
            Extent::Padded
        } else {
            Extent::Exact
        }
    }
}

/// Whether a tunnel frame is as long as its outer headers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// To the byte.
    Exact,
    /// There are bytes behind the outer packet, which are no part of the inner frame.
    Padded,
    /// The packet is cut short, or its two lengths contradict each other.
    Wrong,
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Ipv4Address = Ipv4Address::new([192, 0, 2, 1]);
    const PORT: [u8; 2] = 4789u16.to_be_bytes();

    fn frame() -> [u8; LEN] {
        let mut frame = [0; LEN];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&36u16.to_be_bytes());
        frame[23] = protocol::UDP;
        frame[26..30].copy_from_slice(&[192, 0, 2, 2]);
        frame[30..34].copy_from_slice(&US.bytes());
        frame[36..38].copy_from_slice(&PORT);
        frame[38..40].copy_from_slice(&16u16.to_be_bytes());
        frame[42] = VNI_PRESENT;
        frame[46..50].copy_from_slice(&[1, 2, 3, 0]);
        frame
    }

    #[test]
    fn a_frame_for_us_is_read() {
        let outer = Outer::parse(&frame()[..], US, PORT).unwrap();
        let source = Ipv4Address::new([192, 0, 2, 2]);
        let expected = Outer { source, vni: 0x01_0203, checksum: 0, total_len: 36, datagram_len: 16 };
        assert_eq!(outer, expected);
    }

    #[test]
    fn the_outer_lengths_are_compared_with_the_frame() {
        let outer = Outer::parse(&frame()[..], US, PORT).unwrap();
        assert_eq!(outer.extent(50), Extent::Exact);
        assert_eq!(outer.extent(51), Extent::Padded);
        assert_eq!(outer.extent(49), Extent::Wrong);
        assert_eq!(Outer { datagram_len: 17, ..outer }.extent(50), Extent::Wrong);
    }

    #[test]
    fn everything_else_is_not_ours() {
        for (position, value, what) in [
            (12, 0x86, "ethertype"),
            (14, 0x46, "options"),
            (20, 0x20, "first fragment"),
            (21, 1, "later fragment"),
            (23, 6, "TCP"),
            (33, 9, "another address"),
            (37, 0, "another port"),
            (42, 0, "no VNI"),
        ] {
            let mut frame = frame();
            frame[position] = value;
            assert_eq!(Outer::parse(&frame[..], US, PORT), None, "{what}");
        }
        assert_eq!(Outer::parse(&frame()[..LEN - 1], US, PORT), None);
    }
}
