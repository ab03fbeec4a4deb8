//! What a table's key or value has to offer to be shown: named columns, and for keys the way back from text.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::Names;

/// A value of one column.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Value {
    /// An address, a name, flags…
    Text(String),
    /// A number, in the unit that the column's name says.
    Number(u64),
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => out.pad(text),
            Self::Number(number) => out.pad(&number.to_string()),
        }
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

macro_rules! from_number {
    ($($type:ty),+) => {$(
        impl From<$type> for Value {
            fn from(number: $type) -> Self {
                Self::Number(number.into())
            }
        }
    )+};
}

from_number!(u8, u16, u32, u64);

/// Shown as columns.
pub(super) trait Columns {
    /// Names of the columns: lower case, words joined by `_`.
    const NAMES: &'static [&'static str];

    /// One value per column.
    fn values(&self, names: &Names) -> Vec<Value>;
}

/// A key that can be written as text: `column=value` for each column, separated by commas.
pub(super) trait TextKey: Columns + Sized {
    /// What the key looks like, for messages.
    const EXAMPLE: &'static str;

    /// The key from one text per column, in the order of [`Columns::NAMES`]. The error says which text is not what.
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError>;
}

/// A key in text that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// A part is not `column=value`, a column is missing, unknown or given twice.
    #[error("a key of {table} is `{columns}` with a value for each, such as `{example}`; {what}")]
    Shape {
        /// The table.
        table: String,
        /// The columns as they are to be written.
        columns: String,
        /// A key that parses.
        example: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A name that nothing known has.
    #[error("`{text}` is not {expected}; `ncmctl map dump names` lists what is known")]
    Unknown {
        /// The name as given.
        text: String,
        /// What it should name.
        expected: &'static str,
    },
    /// A value does not parse.
    #[error("`{text}` is not {expected}")]
    Value {
        /// The value as given.
        text: String,
        /// What would be one.
        expected: &'static str,
    },
}

impl KeyError {
    /// `text` is not `expected`.
    pub(super) fn value(text: &str, expected: &'static str) -> Self {
        Self::Value { text: text.to_owned(), expected }
    }
}

/// `text` as a `T`, or the error that it is not `expected`.
pub(super) fn parsed<T: std::str::FromStr>(text: &str, expected: &'static str) -> Result<T, KeyError> {
    text.parse().map_err(|_| KeyError::value(text, expected))
}

/// A MAC address as it is usually written.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A MAC address from text: six hexadecimal bytes separated by `:` or `-`.
pub(super) fn parse_mac(text: &str) -> Result<[u8; 6], KeyError> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() <= 2))
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| KeyError::value(text, "a MAC address such as 02:00:00:00:00:01"))
}

/// An address from text, as tables have it: 16 bytes, IPv4 mapped.
pub(super) fn parse_ip(text: &str) -> Result<[u8; 16], KeyError> {
    Ok(match parsed(text, "an IP address such as 10.0.0.5 or 2001:db8::5")? {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    })
}

/// An address of a table as it is usually written: a mapped one as IPv4.
pub(super) fn ip_text(ip: [u8; 16]) -> String {
    Ipv6Addr::from(ip).to_canonical().to_string()
}

/// Bits of an IPv4-mapped address before the IPv4 address.
pub(super) const MAPPED_BITS: u32 = 96;

/// A prefix from text, as tables have it: its bits, and 16 bytes of address; a bare address is a prefix of all its bits.
/// Bits beyond its length are cleared, as the kernel's tables ignore them.
pub(super) fn parse_prefix(text: &str) -> Result<(u32, [u8; 16]), KeyError> {
    if let Ok(ip) = parse_ip(text) {
        return Ok((128, ip));
    }
    Ok(match parsed(text, "a prefix such as 10.0.0.0/24 or 2001:db8::/64")? {
        IpNet::V4(net) => {
            (MAPPED_BITS + u32::from(net.prefix_len()), net.network().to_ipv6_mapped().octets())
        }
        IpNet::V6(net) => (net.prefix_len().into(), net.network().octets()),
    })
}

/// A table's prefix as it is usually written: `bits` significant ones, those of a mapped IPv4 prefix as IPv4 counts them.
pub(super) fn prefix_text(ip: [u8; 16], bits: u32) -> String {
    match (Ipv6Addr::from(ip).to_ipv4_mapped(), bits.checked_sub(MAPPED_BITS)) {
        (Some(ip), Some(bits)) => format!("{ip}/{bits}"),
        _ => format!("{}/{bits}", Ipv6Addr::from(ip)),
    }
}

/// The names of the bits set in `flags`, joined by `|`; bits without a name in hexadecimal; `-` if none is set.
pub(super) fn flags_text(flags: u32, known: &[(u32, &str)]) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut left = flags;
    for (bit, name) in known {
        if flags & bit != 0 {
            texts.push((*name).to_owned());
            left &= !bit;
        }
    }
    if left != 0 {
        texts.push(format!("{left:#x}"));
    }
    if texts.is_empty() { "-".to_owned() } else { texts.join("|") }
}
