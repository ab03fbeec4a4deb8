//! A rule of a security group: what a state says, checked, and what it allows.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::goalstate::parse;
use crate::wire::security_group_configuration::{Direction, SecurityGroupRule};
use crate::wire::{EtherType, OperationType, Protocol};

/// Our own extension of the contract's `Protocol`: every protocol. The contract has no word for it.
pub(crate) const ANY_PROTOCOL: i32 = 1000;

/// Longest id of a rule or a group, in bytes: they are held by the million.
pub(crate) const LONGEST_ID: usize = 255;

/// Family of addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// As it is in keys.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    /// Length of the prefix of all addresses of the family.
    pub(crate) const fn shortest(self) -> u8 {
        match self {
            Self::V4 => 96,
            Self::V6 => 0,
        }
    }

    const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}

/// A prefix of 16-byte addresses, of which IPv4 ones are the IPv4-mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Prefix {
    /// Without bits beyond the length.
    pub(crate) network: u128,
    /// 0 to 128, at least 96 of an IPv4 one.
    pub(crate) len: u8,
}

impl Prefix {
    pub(crate) const fn new(address: u128, len: u8) -> Self {
        let network = if len == 0 { 0 } else { address >> (128 - len as u32) << (128 - len as u32) };
        Self { network, len }
    }

    /// Its last address.
    pub(crate) const fn last(self) -> u128 {
        if self.len == 0 { u128::MAX } else { self.network | !(u128::MAX << (128 - self.len as u32)) }
    }

    /// Every address of the other is one of this.
    pub(crate) const fn covers(self, other: Self) -> bool {
        self.len <= other.len && Self::new(other.network, self.len).network == self.network
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = Ipv6Addr::from_bits(self.network);
        match address.to_ipv4_mapped().filter(|_| self.len >= 96) {
            Some(address) => write!(f, "{address}/{}", self.len - 96),
            None => write!(f, "{address}/{}", self.len),
        }
    }
}

/// The other side of what a rule allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Remote {
    Any,
    Prefix(Prefix),
    /// The members of a group, by its slot.
    Group(u32),
}

/// A rule as it is held: what was sent, checked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Rule {
    to_guest: bool,
    family: Family,
    /// The contract's number, or [`ANY_PROTOCOL`].
    protocol: i32,
    /// `port_range_min` and `port_range_max` as sent.
    ports: (u16, u16),
    remote: Remote,
}

/// What a rule allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Allowance {
    /// For packets to the guest, else from it.
    pub(crate) to_guest: bool,
    pub(crate) family: Family,
    /// Protocol of the IP header; `None`: every one.
    pub(crate) protocol: Option<u8>,
    /// Of the receiver's port, or of ICMP's type and code as one number; both ends belong to it.
    pub(crate) ports: (u16, u16),
    /// No prefix of length 0: that is every address.
    pub(crate) remote: Remote,
}

/// All ports.
pub(crate) const ALL_PORTS: (u16, u16) = (0, u16::MAX);

/// What tells one rule of a group from another: its id, or where it has none, what it says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum RuleId {
    Named(Box<str>),
    /// With the remote group's id beside it.
    Content(Rule, Box<str>),
}

/// A rule with the id of its remote group, which has no slot yet: [`Rule::remote`] then is group 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) rule: Rule,
    pub(crate) group: Option<&'a str>,
}

/// Why a rule is refused: the field, and what is wrong with it.
pub(crate) type Fault = Cow<'static, str>;

/// Reads a rule.
pub(crate) fn parse(sent: &SecurityGroupRule) -> Result<Parsed<'_>, Fault> {
    let to_guest = match Direction::try_from(sent.direction) {
        Ok(direction) => direction == Direction::Ingress,
        Err(_) => return Err(format!("direction {} is none of the contract's", sent.direction).into()),
    };
    let family = match EtherType::try_from(sent.ethertype) {
        Ok(EtherType::Ipv4) => Family::V4,
        Ok(EtherType::Ipv6) => Family::V6,
        Err(_) => return Err(format!("ethertype {} is none of the contract's", sent.ethertype).into()),
    };
    if sent.protocol != ANY_PROTOCOL && Protocol::try_from(sent.protocol).is_err() {
        return Err(format!("protocol {} is none of the contract's", sent.protocol).into());
    }
    let ports = parse_ports(sent)?;
    let remote = match (sent.remote_ip_prefix.as_str(), sent.remote_group_id.as_str()) {
        ("", "") => Remote::Any,
        (prefix, "") => Remote::Prefix(parse_prefix(prefix, family)?),
        ("", group) if group.len() > LONGEST_ID => {
            return Err(format!("remote_group_id is longer than {LONGEST_ID} bytes").into());
        }
        ("", _) => Remote::Group(0),
        _ => return Err("remote_group_id is set beside remote_ip_prefix: a rule has one remote".into()),
    };
    let group = Some(sent.remote_group_id.as_str()).filter(|group| !group.is_empty());
    Ok(Parsed { rule: Rule { to_guest, family, protocol: sent.protocol, ports, remote }, group })
}

fn parse_ports(sent: &SecurityGroupRule) -> Result<(u16, u16), Fault> {
    let (min, max) = (sent.port_range_min, sent.port_range_max);
    let icmp = sent.protocol == Protocol::Icmp as i32;
    let most = if icmp { 255 } else { 65_535 };
    for (field, number) in [("port_range_min", min), ("port_range_max", max)] {
        if number > most {
            let what = if icmp { ", an ICMP type or code," } else { "" };
            return Err(format!("{field} {number}{what} is above {most}").into());
        }
    }
    if sent.protocol == ANY_PROTOCOL && (min, max) != (0, 0) {
        return Err(format!("port_range_min {min} and port_range_max {max} without a protocol").into());
    }
    if !icmp && min > max {
        return Err(format!("port_range_min {min} is above port_range_max {max}").into());
    }
    Ok((min as u16, max as u16))
}

fn parse_prefix(text: &str, family: Family) -> Result<Prefix, Fault> {
    let net =
        parse::cidr(text).ok_or_else(|| format!("remote_ip_prefix \"{text}\" is no address or CIDR"))?;
    match (net, family) {
        (IpNet::V4(net), Family::V4) => {
            let mapped = net.network().to_ipv6_mapped().to_bits();
            Ok(Prefix::new(mapped, 96 + net.prefix_len()))
        }
        // An IPv4-mapped one reads as IPv4.
        (IpNet::V6(net), Family::V6) => Ok(Prefix::new(net.network().to_bits(), net.prefix_len())),
        (IpNet::V4(_), Family::V6) => {
            Err(format!("remote_ip_prefix {text} is IPv4, and ethertype IPV6").into())
        }
        (IpNet::V6(_), Family::V4) => {
            Err(format!("remote_ip_prefix {text} is IPv6, and ethertype IPV4").into())
        }
    }
}

/// The identity of a rule.
pub(crate) fn identity(sent: &SecurityGroupRule) -> Result<RuleId, Fault> {
    if sent.id.len() > LONGEST_ID {
        return Err(format!("id is longer than {LONGEST_ID} bytes").into());
    }
    if !sent.id.is_empty() {
        return Ok(RuleId::Named(sent.id.as_str().into()));
    }
    let parsed = parse(sent)?;
    Ok(RuleId::Content(parsed.rule, parsed.group.unwrap_or_default().into()))
}

impl Rule {
    /// The group that it names, by slot.
    pub(crate) fn group(&self) -> Option<u32> {
        match self.remote {
            Remote::Group(group) => Some(group),
            _ => None,
        }
    }

    /// The same rule, with that remote group.
    pub(crate) fn of_group(self, group: u32) -> Self {
        Self { remote: Remote::Group(group), ..self }
    }

    /// What the rule allows; nothing if it is about ARP, which is never filtered.
    pub(crate) fn allows(&self) -> Option<Allowance> {
        let any = (self.protocol == ANY_PROTOCOL).then_some((None, ALL_PORTS));
        let (protocol, ports) = match any {
            Some(any) => any,
            None => {
                let (min, max) = self.ports;
                let ports = if self.ports == (0, 0) { ALL_PORTS } else { self.ports };
                match Protocol::try_from(self.protocol).ok()? {
                    Protocol::Tcp => (Some(6), ports),
                    Protocol::Http => (Some(6), if self.ports == (0, 0) { (80, 80) } else { ports }),
                    Protocol::Udp => (Some(17), ports),
                    Protocol::Icmp if self.ports == (0, 0) => (Some(self.family.icmp()), ALL_PORTS),
                    Protocol::Icmp => (Some(self.family.icmp()), (min << 8 | max, min << 8 | max)),
                    Protocol::Arp => return None,
                }
            }
        };
        let remote = match self.remote {
            Remote::Prefix(prefix) if prefix.len == self.family.shortest() => Remote::Any,
            remote => remote,
        };
        Some(Allowance { to_guest: self.to_guest, family: self.family, protocol, ports, remote })
    }

    /// The state that would make this rule.
    pub(crate) fn show(&self, id: &RuleId, owner: &str, remote_group: &str) -> SecurityGroupRule {
        SecurityGroupRule {
            operation_type: OperationType::Info as i32,
            security_group_id: owner.to_owned(),
            id: match id {
                RuleId::Named(id) => id.to_string(),
                RuleId::Content(..) => String::new(),
            },
            direction: i32::from(self.to_guest),
            ethertype: i32::from(self.family == Family::V6),
            protocol: self.protocol,
            port_range_min: u32::from(self.ports.0),
            port_range_max: u32::from(self.ports.1),
            remote_ip_prefix: match self.remote {
                Remote::Prefix(prefix) => prefix.to_string(),
                _ => String::new(),
            },
            remote_group_id: remote_group.to_owned(),
        }
    }
}
