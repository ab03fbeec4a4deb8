//! Tunnel templates: the outer headers to a remote host, ready but for lengths, source port and VNI.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ncm_common::tables::{Host, TemplateHalf};

use super::Endpoints;

/// Bytes of an outer IPv4, UDP and VXLAN header, and of one over IPv6.
const HEADERS_V4: u16 = 20 + 8 + 8;
const HEADERS_V6: u16 = 40 + 8 + 8;
/// IPv4's version 4, header length 5 words; IPv6's version 6.
const VERSION_4: u8 = 0x45;
const VERSION_6: u8 = 0x60;
/// Don't fragment: what does not fit is refused before it is encapsulated, and an identification of 0 is then
/// right for all packets (RFC 6864, section 4.1).
const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
/// TTL and hop limit.
const TTL: u8 = 64;
const UDP: u8 = 17;
/// The flag that says that the VNI is set (RFC 7348, section 5).
const VNI_VALID: u8 = 0x08;

/// The template for packets to `destination`, from our endpoint of its family. Without one there is none: `headers_len`
/// is 0 then, which the packet path takes for a host out of reach.
pub(crate) fn half(
    endpoints: Endpoints,
    destination: IpAddr,
    port: u16,
    group: u32,
    mtu: u16,
) -> TemplateHalf {
    let half = TemplateHalf { group, mtu, ..TemplateHalf::default() };
    match (destination, endpoints) {
        (IpAddr::V4(destination), Endpoints { v4: Some(source), .. }) => {
            over_v4(half, source, destination, port)
        }
        (IpAddr::V6(destination), Endpoints { v6: Some(source), .. }) => {
            over_v6(half, source, destination, port)
        }
        _ => half,
    }
}

fn over_v4(mut half: TemplateHalf, source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> TemplateHalf {
    half.headers_len = HEADERS_V4;
    let (ip, rest) = half.headers.split_at_mut(20);
    ip[0] = VERSION_4;
    ip[6..8].copy_from_slice(&DONT_FRAGMENT);
    ip[8] = TTL;
    ip[9] = UDP;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    let checksum = checksum(ip);
    ip[10..12].copy_from_slice(&checksum);
    udp_and_vxlan(rest, port);
    half
}

fn over_v6(mut half: TemplateHalf, source: Ipv6Addr, destination: Ipv6Addr, port: u16) -> TemplateHalf {
    half.headers_len = HEADERS_V6;
    let (ip, rest) = half.headers.split_at_mut(40);
    ip[0] = VERSION_6;
    ip[6] = UDP;
    ip[7] = TTL;
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..40].copy_from_slice(&destination.octets());
    udp_and_vxlan(rest, port);
    half
}

fn udp_and_vxlan(headers: &mut [u8], port: u16) {
    headers[2..4].copy_from_slice(&port.to_be_bytes());
    headers[8] = VNI_VALID;
}

/// The address of the host that a written template leads to.
pub(crate) fn destination(host: &Host) -> Option<IpAddr> {
    let half = host.halves.get(host.active as usize)?;
    let headers = &half.headers;
    match (half.headers_len, headers[0]) {
        (HEADERS_V4, VERSION_4) => headers[16..20].first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        (HEADERS_V6, VERSION_6) => headers[24..40].first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
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

    const ENDPOINTS: Endpoints = Endpoints {
        v4: Some(Ipv4Addr::new(10, 0, 0, 1)),
        v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    };

    #[test]
    fn the_headers_are_the_ones_on_the_wire() {
        let over_v4 = half(ENDPOINTS, Ipv4Addr::new(10, 0, 0, 2).into(), 4789, 7, 1500);
        let expected = [
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0x26, 0xeb, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
            0, 0, 0x12, 0xb5, 0, 0, 0, 0, // UDP
            8, 0, 0, 0, 0, 0, 0, 0, // VXLAN
        ];
        assert_eq!(&over_v4.headers[..36], &expected);
        assert_eq!((over_v4.group, over_v4.mtu, over_v4.headers_len), (7, 1500, 36));
        assert_eq!(over_v4.headers[36..], [0; 20]);

        let over_v6 = half(ENDPOINTS, "2001:db8::2".parse().unwrap(), 4789, 7, 1500);
        let expected = [
            0x60, 0, 0, 0, 0, 0, 17, 64, // IPv6
            0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, //
            0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, //
            0, 0, 0x12, 0xb5, 0, 0, 0, 0, // UDP
            8, 0, 0, 0, 0, 0, 0, 0, // VXLAN
        ];
        assert_eq!(over_v6.headers, expected);
        assert_eq!((over_v6.group, over_v6.mtu, over_v6.headers_len), (7, 1500, 56));
    }

    #[test]
    fn a_host_of_a_family_without_an_endpoint_has_no_headers() {
        for (host, endpoints) in [
            ("10.0.0.2", Endpoints { v4: None, ..ENDPOINTS }),
            ("2001:db8::2", Endpoints { v6: None, ..ENDPOINTS }),
        ] {
            let half = half(endpoints, host.parse().unwrap(), 4789, 7, 1500);
            assert_eq!((half.headers_len, half.headers), (0, [0; 56]), "{host}");
        }
    }

    #[test]
    fn a_written_template_tells_its_host() {
        for host in ["10.9.8.7", "2001:db8::7"] {
            let address: IpAddr = host.parse().unwrap();
            let halves = [TemplateHalf::default(), half(ENDPOINTS, address, 4789, 0, 0)];
            assert_eq!(destination(&Host { generation: 1, active: 1, halves }), Some(address));
            assert_eq!(destination(&Host { generation: 1, active: 0, halves }), None);
            assert_eq!(destination(&Host { generation: 1, active: 9, halves }), None);
        }
    }
}
