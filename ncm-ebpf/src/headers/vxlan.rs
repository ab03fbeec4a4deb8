//! VXLAN over IPv4 (RFC 7348): the headers around a guest's frame.

use super::{Frame, Ipv4Address, ethernet::ethertype, ipv4::protocol};

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
        })
    }
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
        frame[23] = protocol::UDP;
        frame[26..30].copy_from_slice(&[192, 0, 2, 2]);
        frame[30..34].copy_from_slice(&US.bytes());
        frame[36..38].copy_from_slice(&PORT);
        frame[42] = VNI_PRESENT;
        frame[46..50].copy_from_slice(&[1, 2, 3, 0]);
        frame
    }

    #[test]
    fn a_frame_for_us_is_read() {
        let outer = Outer::parse(&frame()[..], US, PORT).unwrap();
        assert_eq!(outer, Outer { source: Ipv4Address::new([192, 0, 2, 2]), vni: 0x01_0203, checksum: 0 });
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
