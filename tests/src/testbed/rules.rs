//! Security group rules as one line of text each, as in
//!
//! ```text
//! in tcp 80
//! in tcp 8000-8080 from 10.2.0.0/16
//! in6 udp 53 from group clients
//! out icmp 8/0 to 10.2.0.9
//! out6 any
//! ```
//!
//! Direction and family (`in`, `out`, `in6`, `out6`), protocol (`tcp`, `udp`, `icmp`, `http`, `arp`, `any`), ports or ICMP type
//! and code, and the other side: a prefix, a group, or anybody. The text is the rule's id too.

use anyhow::{Context, Result, bail};
use ncm_model::wire::security_group_configuration::{Direction, SecurityGroupRule};
use ncm_model::wire::{EtherType, Protocol};

/// Every protocol: an extension of the contract.
const ANY_PROTOCOL: i32 = 1000;

/// Reads a rule.
///
/// # Errors
/// If it is not written as above.
pub fn rule(text: &str) -> Result<SecurityGroupRule> {
    read(text).with_context(|| format!("the rule `{text}`"))
}

fn read(text: &str) -> Result<SecurityGroupRule> {
    let mut words = text.split_whitespace().peekable();
    let (direction, family) = match words.next() {
        Some("in") => (Direction::Ingress, EtherType::Ipv4),
        Some("in6") => (Direction::Ingress, EtherType::Ipv6),
        Some("out") => (Direction::Egress, EtherType::Ipv4),
        Some("out6") => (Direction::Egress, EtherType::Ipv6),
        _ => bail!("it begins with in, in6, out or out6"),
    };
    let protocol = match words.next() {
        Some("any") => ANY_PROTOCOL,
        Some("tcp") => Protocol::Tcp.into(),
        Some("udp") => Protocol::Udp.into(),
        Some("icmp") => Protocol::Icmp.into(),
        Some("http") => Protocol::Http.into(),
        Some("arp") => Protocol::Arp.into(),
        _ => bail!("a protocol comes second"),
    };
    let (mut first, mut last) = ("0", "0");
    if let Some(ports) = words.next_if(|word| word.starts_with(|letter: char| letter.is_ascii_digit())) {
        (first, last) = ports.split_once(['-', '/']).unwrap_or((ports, ports));
    }
    let mut rule = SecurityGroupRule {
        id: text.split_whitespace().collect::<Vec<_>>().join(" "),
        direction: direction.into(),
        ethertype: family.into(),
        protocol,
        port_range_min: first.parse().context("its first port")?,
        port_range_max: last.parse().context("its last port")?,
        ..Default::default()
    };
    match words.collect::<Vec<_>>().as_slice() {
        [] => {}
        ["from" | "to", "group", group] => rule.remote_group_id = (*group).to_owned(),
        ["from" | "to", prefix] => rule.remote_ip_prefix = (*prefix).to_owned(),
        rest => bail!("`{}` is no other side", rest.join(" ")),
    }
    Ok(rule)
}
