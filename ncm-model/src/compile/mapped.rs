//! Addresses and prefixes as tables have them: 16 bytes, IPv4 as IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2).

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// First bits of the mapped addresses.
const MAPPED: u8 = 96;

/// An address.
pub(crate) fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => v4(ip.to_bits()),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// An IPv4 address.
pub(crate) fn v4(ip: u32) -> [u8; 16] {
    (0xffff_0000_0000 | u128::from(ip)).to_be_bytes()
}

/// The link-local address that a guest makes of its MAC (RFC 4291, appendix A).
pub(crate) fn link_local(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

/// A network address, and the length of its prefix.
pub(crate) fn prefix(net: IpNet) -> ([u8; 16], u32) {
    let length = match net {
        IpNet::V4(net) => net.prefix_len() + MAPPED,
        IpNet::V6(net) => net.prefix_len(),
    };
    (address(net.network()), u32::from(length))
}

/// The prefix that a table has so.
pub(crate) fn net(ip: [u8; 16], length: u32) -> Option<IpNet> {
    let (ip, length) = (Ipv6Addr::from(ip), u8::try_from(length).ok()?);
    match ip.to_ipv4_mapped() {
        Some(ip) if length >= MAPPED => Some(Ipv4Net::new(ip, length - MAPPED).ok()?.into()),
        _ => Some(Ipv6Net::new(ip, length).ok()?.into()),
    }
}
