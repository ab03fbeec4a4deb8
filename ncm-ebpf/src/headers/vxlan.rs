//! VXLAN (RFC 7348) over IPv4 or IPv6: the headers around a guest's frame.

use super::{Address, Frame, Ipv4Address, Mac, Window, ethernet::ethertype, packet::protocol};

/// Bytes in front of the inner frame over IPv4: Ethernet 14, IPv4 without options 20, UDP 8, VXLAN 8.
pub const LEN_V4: usize = 14 + 20 + 8 + 8;

/// The same over IPv6, without extension headers.
pub const LEN_V6: usize = 14 + 40 + 8 + 8;

/// Where the UDP header is, over IPv4 and over IPv6.
const UDP_V4: usize = 14 + 20;
const UDP_V6: usize = 14 + 40;

/// Where the destination port and the checksum are in the UDP header.
pub const PORT_OFFSET: usize = 2;
/// See [`PORT_OFFSET`].
pub const CHECKSUM_OFFSET: usize = 6;

/// The flag that says that the VNI counts, in the first byte of the header.
pub const VNI_PRESENT: u8 = 0x08;

/// Our tunnel endpoints, as they are in memory. One that is all zero is none.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints<'a> {
    /// IPv4 address.
    pub v4: &'a [u8; 4],
    /// IPv6 address.
    pub v6: &'a [u8; 16],
    /// UDP port, as on the wire.
    pub port: [u8; 2],
}

/// The outer headers of a tunnel frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// The MAC that it was sent to.
    pub to: Mac,
    /// The host that sent it.
    pub source: Address,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Outer UDP checksum, as in memory; 0 is none.
    pub checksum: u16,
    /// Bytes of the outer UDP datagram, by its header.
    pub datagram_len: u16,
    /// Bytes of the frame, by the outer IP header.
    pub announced: u32,
    /// Where the outer UDP header is.
    pub udp: usize,
}

impl Outer {
    /// The headers of a VXLAN frame to one of our endpoints; `None` for everything else, which is not ours: other protocols,
    /// addresses and ports, IPv4 options, IPv6 extension headers, fragments, VLAN tags, a frame without a VNI.
    ///
    /// Whether there is a UDP checksum does not matter, over IPv6 neither (RFC 6935, RFC 6936).
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &(impl Frame + ?Sized), us: Endpoints<'_>) -> Option<Self> {
        let start = frame.window::<LEN_V4>(0)?;
        let (ethertype, first) = (start.be16::<12>(), start.u8::<14>());
        if ethertype == ethertype::IPV4 && first == 0x45 {
            Self::over_v4(&start, us)
        } else if ethertype == ethertype::IPV6 && first >> 4 == 6 {
            Self::over_v6(&frame.window::<LEN_V6>(0)?, us)
        } else {
            None
        }
    }

    #[inline(always)]
    fn over_v4(window: &Window<'_, LEN_V4>, us: Endpoints<'_>) -> Option<Self> {
        if window.u8::<23>() != protocol::UDP || window.be16::<20>() & 0x3fff != 0 {
            return None;
        }
        let address = Ipv4Address::new(*us.v4);
        if window.raw32::<30>() != address.word() || address == Ipv4Address::UNSPECIFIED {
            return None;
        }
        if window.raw16::<36>() != u16::from_ne_bytes(us.port) || window.u8::<42>() & VNI_PRESENT == 0 {
            return None;
        }
        Some(Self {
            to: Mac::at::<0, 4, LEN_V4>(window),
            source: Address::v4(Ipv4Address::at::<26, LEN_V4>(window)),
            vni: window.be32::<46>() >> 8,
            checksum: window.raw16::<40>(),
            datagram_len: window.be16::<38>(),
            announced: u32::from(window.be16::<16>()) + 14,
            udp: UDP_V4,
        })
    }

    #[inline(always)]
    fn over_v6(window: &Window<'_, LEN_V6>, us: Endpoints<'_>) -> Option<Self> {
        if window.u8::<20>() != protocol::UDP {
            return None;
        }
        let address = Address::new(us.v6);
        let destination = Address::at::<38, 42, 46, 50, LEN_V6>(window);
        if destination != address || address == Address::UNSPECIFIED {
            return None;
        }
        if window.raw16::<56>() != u16::from_ne_bytes(us.port) || window.u8::<62>() & VNI_PRESENT == 0 {
            return None;
        }
        let source = Address::at::<22, 26, 30, 34, LEN_V6>(window);
        // Such a source is no station's (RFC 6890, section 2.2.3), and a table would take it for an IPv4 host.
        if source.is_v4() {
            return None;
        }
        Some(Self {
            to: Mac::at::<0, 4, LEN_V6>(window),
            source,
            vni: window.be32::<66>() >> 8,
            checksum: window.raw16::<60>(),
            datagram_len: window.be16::<58>(),
            announced: u32::from(window.be16::<18>()) + UDP_V6 as u32,
            udp: UDP_V6,
        })
    }

    /// Whether the outer IP header is IPv6's.
    #[inline(always)]
    #[must_use]
    pub const fn is_over_v6(&self) -> bool {
        self.udp == UDP_V6
    }

    /// How a frame of `bytes` compares with what the outer headers announce.
    #[inline(always)]
    #[must_use]
    pub const fn extent(&self, bytes: u32) -> Extent {
        if self.announced > bytes || self.datagram_len as u32 + self.udp as u32 != self.announced {
            Extent::Wrong
        } else if self.announced < bytes {
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

    const US: [u8; 4] = [192, 0, 2, 1];
    const US_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const HOST_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    const TO: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const PORT: [u8; 2] = 4789u16.to_be_bytes();
    const ENDPOINTS: Endpoints<'_> = Endpoints { v4: &US, v6: &US_V6, port: PORT };

    fn over_v4() -> Vec<u8> {
        let mut frame = vec![0; LEN_V4];
        frame[..6].copy_from_slice(&TO);
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&36u16.to_be_bytes());
        frame[23] = protocol::UDP;
        frame[26..30].copy_from_slice(&[192, 0, 2, 2]);
        frame[30..34].copy_from_slice(&US);
        vxlan(&mut frame[34..]);
        frame
    }

    fn over_v6() -> Vec<u8> {
        let mut frame = vec![0; LEN_V6];
        frame[..6].copy_from_slice(&TO);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        // A traffic class and a flow label, which may be any.
        frame[14..18].copy_from_slice(&[0x6b, 0x81, 2, 3]);
        frame[18..20].copy_from_slice(&16u16.to_be_bytes());
        frame[20] = protocol::UDP;
        frame[22..38].copy_from_slice(&HOST_V6);
        frame[38..54].copy_from_slice(&US_V6);
        vxlan(&mut frame[54..]);
        frame
    }

    fn vxlan(headers: &mut [u8]) {
        headers[2..4].copy_from_slice(&PORT);
        headers[4..6].copy_from_slice(&16u16.to_be_bytes());
        headers[8] = VNI_PRESENT;
        headers[12..16].copy_from_slice(&[1, 2, 3, 0]);
    }

    #[test]
    fn a_frame_for_us_is_read() {
        let outer = Outer::parse(&over_v4()[..], ENDPOINTS).unwrap();
        let source = Address::v4(Ipv4Address::new([192, 0, 2, 2]));
        let to = Mac::new(&TO);
        let expected =
            Outer { to, source, vni: 0x01_0203, checksum: 0, datagram_len: 16, announced: 50, udp: 34 };
        assert_eq!((outer, outer.is_over_v6()), (expected, false));
        let outer = Outer::parse(&over_v6()[..], ENDPOINTS).unwrap();
        let expected = Outer { source: Address::new(&HOST_V6), announced: 70, udp: 54, ..expected };
        assert_eq!((outer, outer.is_over_v6()), (expected, true));
    }

    #[test]
    fn the_outer_lengths_are_compared_with_the_frame() {
        for frame in [over_v4(), over_v6()] {
            let outer = Outer::parse(&frame[..], ENDPOINTS).unwrap();
            let len = frame.len() as u32;
            assert_eq!(outer.extent(len), Extent::Exact);
            assert_eq!(outer.extent(len + 1), Extent::Padded);
            assert_eq!(outer.extent(len - 1), Extent::Wrong);
            assert_eq!(Outer { datagram_len: 17, ..outer }.extent(len), Extent::Wrong);
        }
    }

    #[test]
    fn everything_else_is_not_ours() {
        let swapped = |frame: &[u8], position: usize, value| {
            let mut frame = frame.to_vec();
            frame[position] = value;
            frame
        };
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
            assert_eq!(Outer::parse(&swapped(&over_v4(), position, value)[..], ENDPOINTS), None, "{what}");
        }
        for (position, value, what) in [
            (12, 0x08, "ethertype"),
            (14, 0x45, "version"),
            (20, protocol::FRAGMENT, "a fragment"),
            (20, protocol::HOP_BY_HOP, "an extension header"),
            (20, protocol::DESTINATION, "another extension header"),
            (20, 6, "TCP"),
            (38, 0xff, "a group's address"),
            (53, 9, "another address"),
            (57, 0, "another port"),
            (62, 0, "no VNI"),
        ] {
            assert_eq!(Outer::parse(&swapped(&over_v6(), position, value)[..], ENDPOINTS), None, "{what}");
        }
        let mut mapped = over_v6();
        mapped[22..38].copy_from_slice(&Address::v4(Ipv4Address::new([192, 0, 2, 2])).bytes());
        assert_eq!(Outer::parse(&mapped[..], ENDPOINTS), None, "an IPv4 host's address in IPv6");
        for frame in [over_v4(), over_v6()] {
            for len in 0..frame.len() {
                assert_eq!(Outer::parse(&frame[..len], ENDPOINTS), None, "cut to {len} bytes");
            }
        }
    }

    #[test]
    fn without_an_endpoint_nothing_is_ours() {
        let none = Endpoints { v4: &[0; 4], v6: &[0; 16], port: PORT };
        let (mut v4, mut v6) = (over_v4(), over_v6());
        v4[30..34].fill(0);
        v6[38..54].fill(0);
        for frame in [over_v4(), over_v6(), v4, v6] {
            assert_eq!(Outer::parse(&frame[..], none), None);
        }
    }
}
