//! Tunnel templates: the outer headers to a remote host, ready but for lengths, source port and VNI.

use std::net::Ipv4Addr;

use ncm_common::tables::{Host, TemplateHalf};

/// Bytes of an outer IPv4, UDP and VXLAN header.
const HEADERS: u16 = 20 + 8 + 8;
/// Version 4, header length 5 words.
const VERSION: u8 = 0x45;
/// Don't fragment: what does not fit is refused before it is encapsulated, and an identification of 0 is then
/// right for all packets (RFC 6864, section 4.1).
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
const TTL: u8 = 64;
const UDP: u8 = 17;
/// The flag that says that the VNI is set (RFC 7348, section 5).
const VNI_VALID: u8 = 0x08;

/// The template for packets from `source` to `destination`.
pub(crate) fn half(source: Ipv4Addr, destination: Ipv4Addr, port: u16, group: u32, mtu: u16) -> TemplateHalf {
    let mut half = TemplateHalf { group, mtu, headers_len: HEADERS, ..TemplateHalf::default() };
    let (ip, rest) = half.headers.split_at_mut(20);
    ip[0] = VERSION;
    ip[6..8].copy_from_slice(&DONT_FRAGMENT);
    ip[8] = TTL;
    ip[9] = UDP;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    let checksum = checksum(ip);
    ip[10..12].copy_from_slice(&checksum);
    rest[2..4].copy_from_slice(&port.to_be_bytes());
    rest[8] = VNI_VALID;
    half
}

/// The address of the host that a written template leads to.
pub(crate) fn destination(host: &Host) -> Option<Ipv4Addr> {
    let half = host.halves.get(host.active as usize)?;
    (half.headers_len == HEADERS && half.headers[0] == VERSION)
        .then(|| half.headers[16..20].first_chunk().map(|octets| Ipv4Addr::from(*octets)))
        .flatten()
}

/// The internet checksum (RFC 1071) of a header whose checksum field is zero.
fn checksum(header: &[u8]) -> [u8; 2] {
    let words = header.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_the_ones_on_the_wire() {
        let half = half(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), 4789, 7, 1500);
        let expected = [
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0x26, 0xeb, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
            0, 0, 0x12, 0xb5, 0, 0, 0, 0, // UDP
            8, 0, 0, 0, 0, 0, 0, 0, // VXLAN
        ];
        assert_eq!(&half.headers[..36], &expected);
        assert_eq!((half.group, half.mtu, half.headers_len), (7, 1500, 36));
        assert_eq!(half.headers[36..], [0; 20]);
    }

    #[test]
    fn a_written_template_tells_its_host() {
        let address = Ipv4Addr::new(10, 9, 8, 7);
        let halves = [TemplateHalf::default(), half(Ipv4Addr::LOCALHOST, address, 4789, 0, 0)];
        assert_eq!(destination(&Host { generation: 1, active: 1, halves }), Some(address));
        assert_eq!(destination(&Host { generation: 1, active: 0, halves }), None);
        assert_eq!(destination(&Host { generation: 1, active: 9, halves }), None);
    }
}
