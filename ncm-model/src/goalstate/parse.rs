//! Values as senders write them: lenient in form, strict in meaning.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A MAC: six groups of one or two hex digits of either case, with `:` or `-` between them.
pub(crate) fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0_u8; 6];
    let (mut group, mut digits) = (0, 0);
    for byte in text.bytes() {
        if byte == b':' || byte == b'-' {
            if digits == 0 || group == 5 {
                return None;
            }
            group += 1;
            digits = 0;
            continue;
        }
        let value = (byte as char).to_digit(16)? as u8;
        digits += 1;
        if digits > 2 {
            return None;
        }
        mac[group] = mac[group] << 4 | value;
    }
    (group == 5 && digits > 0).then_some(mac)
}

/// A MAC that a guest can have: neither zero nor a group's.
pub(crate) fn guest_mac(text: &str) -> Option<[u8; 6]> {
    mac(text).filter(|mac| *mac != [0; 6] && mac[0] & 1 == 0)
}

/// An IPv4 address in dotted form; quicker than the standard library's, as a million are read.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let (mut position, mut digits, mut value) = (0, 0, 0_u32);
    for byte in text.bytes() {
        if byte == b'.' {
            if digits == 0 || position == 3 {
                return None;
            }
            octets[position] = value as u8;
            position += 1;
            (digits, value) = (0, 0);
            continue;
        }
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u32::from(byte - b'0');
        digits += 1;
        if digits > 3 || value > 255 || (digits > 1 && value < 10) {
            return None;
        }
    }
    if position != 3 || digits == 0 {
        return None;
    }
    octets[3] = value as u8;
    Some(Ipv4Addr::from(octets))
}

/// An IP address; an IPv4-mapped IPv6 one reads as IPv4.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    match ipv4(text) {
        Some(address) => Some(IpAddr::V4(address)),
        None => text.parse::<Ipv6Addr>().ok().map(|address| IpAddr::V6(address).to_canonical()),
    }
}

/// An address that a guest or a host can have: unicast, and not unspecified.
pub(crate) fn unicast_ip(text: &str) -> Option<IpAddr> {
    ip(text).filter(|address| !address.is_unspecified() && !address.is_multicast() && !is_broadcast(*address))
}

/// An address that another host can be reached at: a link-local one leaves open on which link.
pub(crate) fn host_ip(text: &str) -> Option<IpAddr> {
    let is_of_link =
        |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    unicast_ip(text).filter(|address| !is_of_link(address) && !address.is_loopback())
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// First bits of the IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2).
const MAPPED: u8 = 96;

/// A CIDR, or an address, which reads as the prefix of its full length; bits beyond the prefix are cleared. One of
/// IPv4-mapped IPv6 addresses reads as IPv4.
pub(crate) fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => {
            if length.is_empty() || length.len() > 3 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)
        }
        None => {
            let address = text.parse::<IpAddr>().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    Some(match address {
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::new(address, length).ok()?.trunc()),
        IpAddr::V6(address) => {
            let net = Ipv6Net::new(address, length).ok()?.trunc();
            match net.network().to_ipv4_mapped() {
                Some(address) if length >= MAPPED => {
                    IpNet::V4(Ipv4Net::new(address, length - MAPPED).ok()?.trunc())
                }
                _ => IpNet::V6(net),
            }
        }
    })
}

/// The prefix has IPv4-mapped addresses within it without being one of IPv4.
pub(crate) fn covers_mapped(net: IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

/// The name of an interface, as the kernel allows it (`dev_valid_name`).
pub(crate) fn interface_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 15
        && text != "."
        && text != ".."
        && !text.contains(|character: char| character == '/' || character == ':' || character.is_whitespace())
        && text.bytes().all(|byte| byte != 0)
}

/// How a MAC is shown.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
