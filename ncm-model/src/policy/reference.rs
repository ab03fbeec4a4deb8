//! What security groups allow, as a loop over their rules: the plainest reading of the contract, which everything that is
//! compiled is compared with. It shares no code with the compilation.

use std::net::IpAddr;

use ipnet::IpNet;

use super::rule::ANY_PROTOCOL;
use crate::wire::security_group_configuration::{Direction, SecurityGroupRule};
use crate::wire::{EtherType, Protocol, SecurityGroupConfiguration};

/// What policy asks of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// It goes to the guest, else it comes from it.
    pub to_guest: bool,
    /// Address of the other side.
    pub remote: IpAddr,
    /// Ids of the security groups that the other side is a member of.
    pub members: Vec<String>,
    /// Protocol of the IP header.
    pub protocol: u8,
    /// Port of the receiver; for ICMP, the type times 256 plus the code; for others 0.
    pub port: u16,
}

/// The port that is in these groups may send or receive the packet. Without any group everything is allowed.
///
/// The groups have to be as the model accepts them, each complete.
#[must_use]
pub fn allows(groups: &[SecurityGroupConfiguration], packet: &Packet) -> bool {
    groups.is_empty()
        || groups.iter().any(|group| group.security_group_rules.iter().any(|rule| rule_allows(rule, packet)))
}

fn rule_allows(rule: &SecurityGroupRule, packet: &Packet) -> bool {
    let to_guest = rule.direction == Direction::Ingress as i32;
    let v6 = rule.ethertype == EtherType::Ipv6 as i32;
    to_guest == packet.to_guest
        && v6 == packet.remote.is_ipv6()
        && protocol_allows(rule, packet)
        && remote_allows(rule, packet)
}

fn protocol_allows(rule: &SecurityGroupRule, packet: &Packet) -> bool {
    if rule.protocol == ANY_PROTOCOL {
        return true;
    }
    let any = rule.port_range_min == 0 && rule.port_range_max == 0;
    let in_range = (rule.port_range_min..=rule.port_range_max).contains(&u32::from(packet.port));
    match Protocol::try_from(rule.protocol) {
        Ok(Protocol::Tcp) => packet.protocol == 6 && (any || in_range),
        Ok(Protocol::Http) => packet.protocol == 6 && if any { packet.port == 80 } else { in_range },
        Ok(Protocol::Udp) => packet.protocol == 17 && (any || in_range),
        Ok(Protocol::Icmp) => {
            let [kind, code] = packet.port.to_be_bytes();
            let same = u32::from(kind) == rule.port_range_min && u32::from(code) == rule.port_range_max;
            packet.protocol == if packet.remote.is_ipv6() { 58 } else { 1 } && (any || same)
        }
        Ok(Protocol::Arp) | Err(_) => false,
    }
}

fn remote_allows(rule: &SecurityGroupRule, packet: &Packet) -> bool {
    if !rule.remote_group_id.is_empty() {
        return packet.members.contains(&rule.remote_group_id);
    }
    let prefix = rule.remote_ip_prefix.as_str();
    match prefix.parse::<IpNet>() {
        Ok(net) => net.contains(&packet.remote),
        Err(_) => prefix.is_empty() || prefix.parse() == Ok(packet.remote),
    }
}
