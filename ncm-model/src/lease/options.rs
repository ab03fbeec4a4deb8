//! `extra_dhcp_options` of a subnet: named as dnsmasq and OpenStack name them, or by number, and turned into the bytes of an
//! option when they are pushed, so that what cannot be sent is refused then.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::names::{Kind, Named, V4, V6};

/// Most options of one subnet.
const MOST: usize = 64;
/// Most bytes of one option's value: what one length byte can say.
const MOST_BYTES: usize = 255;

/// Codes that are the server's or the client's own business: 0 and 255 are no options at all, the others speak about the
/// message that they are in (RFC 2132 section 9, RFC 3046, RFC 3118, RFC 4702).
const OWN_V4: [u16; 14] = [0, 50, 52, 53, 54, 55, 56, 57, 61, 80, 81, 82, 90, 255];
/// Likewise of DHCPv6 (RFC 8415, section 21).
const OWN_V6: [u16; 17] = [0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 14, 18, 19, 20, 25, 26];

/// Which DHCP an option is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// DHCP (RFC 2131).
    V4,
    /// DHCPv6 (RFC 8415).
    V6,
}

/// The options that a subnet adds, as they go into a message. One without bytes is not sent at all, also where there would be
/// one without it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Extras {
    /// DHCP options by code, each once, in the order given.
    pub v4: Vec<(u8, Vec<u8>)>,
    /// DHCPv6 options by code, each once, in the order given.
    pub v6: Vec<(u16, Vec<u8>)>,
    /// Server to boot from (`siaddr`).
    pub next_server: Option<Ipv4Addr>,
    /// MTU in bytes that router advertisements give.
    pub mtu: Option<u16>,
    /// Seconds that DHCPv6 leases an address for.
    pub lease_v6: Option<u32>,
}

impl Extras {
    /// Reads the options of a subnet of that family, each a name and a value.
    ///
    /// # Errors
    /// Says which option cannot be sent, and why.
    pub fn read<'a>(
        family: Family,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, String> {
        let mut extras = Self::default();
        for (count, (name, value)) in options.into_iter().enumerate() {
            if count == MOST {
                return Err(format!("there are more than {MOST}"));
            }
            extras.add(family, name, value.trim()).map_err(|cause| format!("\"{name}\": {cause}"))?;
        }
        Ok(extras)
    }

    /// The bytes of a DHCP option, if it is given; empty bytes for one that is not to be sent.
    #[must_use]
    pub fn v4(&self, code: u8) -> Option<&[u8]> {
        self.v4.iter().find(|(other, _)| *other == code).map(|(_, data)| &**data)
    }

    /// The bytes of a DHCPv6 option, likewise.
    #[must_use]
    pub fn v6(&self, code: u16) -> Option<&[u8]> {
        self.v6.iter().find(|(other, _)| *other == code).map(|(_, data)| &**data)
    }

    fn add(&mut self, family: Family, name: &str, value: &str) -> Result<(), String> {
        let name = name.trim().to_ascii_lowercase().replace('_', "-");
        let (family, name) = match name.split_once(':') {
            None => (family, &*name),
            Some(("option", name)) => (Family::V4, name),
            Some(("option6", name)) => (Family::V6, name),
            Some((prefix, _)) => {
                return Err(format!("the prefix {prefix}: is none of option: and option6:"));
            }
        };
        match (family, name) {
            (Family::V4, "server-ip-address" | "next-server" | "siaddr") => {
                self.next_server = if value.is_empty() { None } else { Some(address(value)?) };
                return Ok(());
            }
            (Family::V6, "mtu") => {
                let mtu: u16 = number(value)?;
                if mtu < 1280 {
                    return Err(format!("{mtu} is less than IPv6 needs (1280)"));
                }
                self.mtu = Some(mtu);
                return Ok(());
            }
            (Family::V6, "lease-time") => {
                self.lease_v6 = Some(shortest_lease(time(value)?)?);
                return Ok(());
            }
            _ => {}
        }
        let (code, kind) = find(family, name)?;
        let data = if value.is_empty() { Vec::new() } else { bytes(family, kind, value)? };
        if data.len() > MOST_BYTES {
            return Err(format!("its {} bytes are more than {MOST_BYTES}", data.len()));
        }
        match family {
            Family::V4 => {
                let code = u8::try_from(code).map_err(|_| format!("{code} is above 254"))?;
                check_v4(code, &data)?;
                set(&mut self.v4, code, data);
            }
            Family::V6 => set(&mut self.v6, code, data),
        }
        Ok(())
    }
}

/// Limits that RFC 2132 gives.
fn check_v4(code: u8, data: &[u8]) -> Result<(), String> {
    match (code, data) {
        (26, [a, b]) if u16::from_be_bytes([*a, *b]) < 68 => Err("an MTU is at least 68".to_owned()),
        (23 | 37, [0]) => Err("0 is no TTL".to_owned()),
        (51, [a, b, c, d]) => shortest_lease(u32::from_be_bytes([*a, *b, *c, *d])).map(|_| ()),
        _ => Ok(()),
    }
}

/// Refuses leases that would keep guests asking.
fn shortest_lease(seconds: u32) -> Result<u32, String> {
    if seconds < 10 { Err("a lease is at least 10 seconds".to_owned()) } else { Ok(seconds) }
}

fn set<C: PartialEq>(options: &mut Vec<(C, Vec<u8>)>, code: C, data: Vec<u8>) {
    match options.iter_mut().find(|(other, _)| *other == code) {
        Some((_, held)) => *held = data,
        None => options.push((code, data)),
    }
}

/// Code and kind of an option by its name or number.
fn find(family: Family, name: &str) -> Result<(u16, Kind), String> {
    let (table, own): (&[Named], &[u16]) = match family {
        Family::V4 => (V4, &OWN_V4),
        Family::V6 => (V6, &OWN_V6),
    };
    let by_code = |code: u16| table.iter().find(|named| named.code == code).map(|named| named.kind);
    let (code, kind) = if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        let code = name.parse().map_err(|_| "there is no option of that number".to_owned())?;
        if family == Family::V4 && code > 254 {
            return Err("there is no option of that number: they go from 1 to 254".to_owned());
        }
        (code, by_code(code).unwrap_or(Kind::Any))
    } else {
        let named = table.iter().find(|named| named.names.contains(&name)).ok_or_else(|| {
            "there is no option of that name: give dnsmasq's name for it, or its number".to_owned()
        })?;
        (named.code, named.kind)
    };
    if own.contains(&code) {
        return Err(format!("option {code} is the protocol's own and cannot be given"));
    }
    Ok((code, kind))
}

/// The value as it goes into the message.
fn bytes(family: Family, kind: Kind, value: &str) -> Result<Vec<u8>, String> {
    match kind {
        Kind::Addresses => addresses(family, value),
        Kind::AddressPairs => {
            let data = addresses(family, value)?;
            if data.len() % 8 == 0 { Ok(data) } else { Err("it takes addresses in pairs".to_owned()) }
        }
        Kind::Address => match addresses(family, value)? {
            data if data.len() == 4 || data.len() == 16 => Ok(data),
            _ => Err("it takes one address".to_owned()),
        },
        Kind::Text => text(value),
        Kind::Names => names(value),
        Kind::Bool => match value.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(vec![1]),
            "0" | "false" | "no" | "off" => Ok(vec![0]),
            _ => Err(format!("\"{value}\" is neither 1 nor 0")),
        },
        Kind::U8 => Ok(vec![number(value)?]),
        Kind::U16 => Ok(number::<u16>(value)?.to_be_bytes().to_vec()),
        Kind::U16s => {
            let mut data = Vec::new();
            for item in items(value) {
                data.extend(number::<u16>(item)?.to_be_bytes());
            }
            Ok(data)
        }
        Kind::U32 => Ok(number::<u32>(value)?.to_be_bytes().to_vec()),
        Kind::I32 => Ok(number::<i32>(value)?.to_be_bytes().to_vec()),
        Kind::Time => Ok(time(value)?.to_be_bytes().to_vec()),
        Kind::Routes => routes(value),
        Kind::NtpServers => ntp_servers(value),
        Kind::Bytes => hex(value).map_or_else(|| text(value), Ok),
        Kind::Any => any(family, value),
    }
}

/// The value of an option that is known by number only: what it looks like.
fn any(family: Family, value: &str) -> Result<Vec<u8>, String> {
    if let Some(data) = hex(value) {
        return Ok(data);
    }
    if let Ok(data) = addresses(family, value) {
        return Ok(data);
    }
    if let Ok(number) = value.parse::<u32>() {
        return Ok(match number {
            0..=0xff => vec![number as u8],
            0x100..=0xffff => (number as u16).to_be_bytes().to_vec(),
            _ => number.to_be_bytes().to_vec(),
        });
    }
    text(value)
}

/// Items of a list, with commas, semicolons or space between them, as they are or in braces.
fn items(value: &str) -> impl Iterator<Item = &str> {
    value
        .trim_start_matches('{')
        .trim_end_matches('}')
        .split([',', ';', ' ', '\t'])
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

fn addresses(family: Family, value: &str) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    for item in items(value) {
        let item = item.trim_start_matches('[').trim_end_matches(']');
        match family {
            Family::V4 => data.extend(address(item)?.octets()),
            Family::V6 => data.extend(
                item.parse::<Ipv6Addr>().map_err(|_| format!("\"{item}\" is no IPv6 address"))?.octets(),
            ),
        }
    }
    if data.is_empty() { Err("it takes addresses".to_owned()) } else { Ok(data) }
}

/// Servers of DHCPv6's option for NTP, which are suboptions of it (RFC 5908, section 4): addresses, or names.
fn ntp_servers(value: &str) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    for item in items(value) {
        let (code, server) = match item.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>() {
            Ok(address) if address.is_multicast() => (2_u16, address.octets().to_vec()),
            Ok(address) => (1, address.octets().to_vec()),
            Err(_) => (3, domain_name(item).ok_or_else(|| format!("\"{item}\" is no server"))?),
        };
        data.extend(code.to_be_bytes());
        data.extend((server.len() as u16).to_be_bytes());
        data.extend(server);
    }
    if data.is_empty() { Err("it takes servers".to_owned()) } else { Ok(data) }
}

fn address(value: &str) -> Result<Ipv4Addr, String> {
    value.parse().map_err(|_| format!("\"{value}\" is no IPv4 address"))
}

fn number<T: TryFrom<i64>>(value: &str) -> Result<T, String> {
    let parsed = match value.strip_prefix("0x") {
        Some(digits) if !digits.starts_with(['+', '-']) => i64::from_str_radix(digits, 16).ok(),
        _ => value.parse().ok(),
    };
    parsed
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("\"{value}\" is no number that fits into {} bytes", size_of::<T>()))
}

/// Seconds, or a number with one of the units s, m, h, d and w, or `infinite`.
fn time(value: &str) -> Result<u32, String> {
    if value.eq_ignore_ascii_case("infinite") {
        return Ok(u32::MAX);
    }
    let (digits, unit) = match value.char_indices().last() {
        Some((at, 's')) => (&value[..at], 1),
        Some((at, 'm')) => (&value[..at], 60),
        Some((at, 'h')) => (&value[..at], 3_600),
        Some((at, 'd')) => (&value[..at], 86_400),
        Some((at, 'w')) => (&value[..at], 604_800),
        _ => (value, 1),
    };
    let count: u32 = number(digits)?;
    count.checked_mul(unit).ok_or_else(|| format!("\"{value}\" is longer than any lease"))
}

fn text(value: &str) -> Result<Vec<u8>, String> {
    if value.chars().any(char::is_control) {
        return Err("it has control characters".to_owned());
    }
    Ok(value.as_bytes().to_vec())
}

/// Bytes in hexadecimal: `0a:1b:2c` or `0x0a1b2c`.
fn hex(value: &str) -> Option<Vec<u8>> {
    let byte = |digits: &str| {
        let hexadecimal = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    if let Some(digits) = value.strip_prefix("0x") {
        if digits.is_empty() || digits.len() % 2 != 0 || !digits.is_ascii() {
            return None;
        }
        return (0..digits.len()).step_by(2).map(|at| byte(&digits[at..at + 2])).collect();
    }
    if !value.contains(':') || value.contains("::") || value.split(':').any(|digits| digits.len() > 2) {
        return None;
    }
    value.split(':').map(byte).collect()
}

/// Domain names as DNS writes them (RFC 1035, section 3.1), without compression.
fn names(value: &str) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    for name in items(value) {
        data.extend(domain_name(name).ok_or_else(|| format!("\"{name}\" is no domain name"))?);
    }
    if data.is_empty() { Err("it takes domain names".to_owned()) } else { Ok(data) }
}

/// A domain name as DNS writes it; `None` for what is none.
#[must_use]
pub fn domain_name(name: &str) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        let graphic = label.bytes().all(|byte| byte.is_ascii_graphic());
        if label.is_empty() || label.len() > 63 || !graphic {
            return None;
        }
        data.push(label.len() as u8);
        data.extend(label.as_bytes());
    }
    data.push(0);
    (data.len() <= 255).then_some(data)
}

/// Classless static routes (RFC 3442): destinations with their next hops.
fn routes(value: &str) -> Result<Vec<u8>, String> {
    let items: Vec<&str> = items(value).collect();
    let mut data = Vec::new();
    for pair in items.chunks(2) {
        let [destination, next_hop] = pair else {
            return Err("it takes destinations with a next hop each".to_owned());
        };
        let net = destination
            .parse::<Ipv4Net>()
            .ok()
            .or_else(|| destination.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
            .ok_or_else(|| format!("\"{destination}\" is no IPv4 prefix"))?;
        route(&mut data, net, address(next_hop)?);
    }
    if data.is_empty() { Err("it takes destinations with a next hop each".to_owned()) } else { Ok(data) }
}

/// Adds a classless static route: the length of the prefix, as many bytes of it as count, and the next hop.
pub fn route(data: &mut Vec<u8>, net: Ipv4Net, next_hop: Ipv4Addr) {
    let significant = usize::from(net.prefix_len()).div_ceil(8);
    data.push(net.prefix_len());
    data.extend(&net.network().octets()[..significant]);
    data.extend(next_hop.octets());
}
