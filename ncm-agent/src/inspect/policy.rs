//! Policy as columns: sets by their security groups, rules and classes in the forms in which rules are written.

use ncm_common::tables::{
    ClassKey, Classes, MEMBERS, PREFIXES, PolicyCount, PolicyCountKey, Rule, RuleKey, name_kinds,
    set_direction,
};

use super::columns::{Columns, KeyError, TextKey, Value, parse_prefix, parsed, prefix_text};
use super::flows::{parse_protocol, protocol_text};
use super::names::Names;

/// Bits of a key of classes before the address.
const CLASS_BITS: u32 = 32;
/// Bits of a key of rules before the family, the protocol and the ports.
const FAMILY_AT: u32 = 64;
const PROTOCOL_AT: u32 = 72;
const PORTS_AT: u32 = 80;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const ANY: &str = "any";

/// The policy set and the direction of what [`set_direction`] made.
fn set_columns(set: u32, names: &Names) -> [Value; 2] {
    let direction = if set & 1 == 0 { "egress" } else { "ingress" };
    [names.show(name_kinds::SET, set >> 1).into(), direction.into()]
}

fn parse_set(set: &str, direction: &str, names: &Names) -> Result<u32, KeyError> {
    let to_guest = match direction {
        "egress" => false,
        "ingress" => true,
        _ => return Err(KeyError::value(direction, "egress or ingress")),
    };
    Ok(set_direction(names.parse(name_kinds::SET, set)?, to_guest))
}

impl Columns for ClassKey {
    const NAMES: &'static [&'static str] = &["set", "direction", "prefix"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let [set, direction] = set_columns(self.set, names);
        vec![set, direction, prefix_text(self.ip, self.prefix_len.saturating_sub(CLASS_BITS)).into()]
    }
}

impl TextKey for ClassKey {
    const EXAMPLE: &'static str = "set=#1,direction=ingress,prefix=10.0.1.0/24";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        let (bits, ip) = parse_prefix(texts[2])?;
        Ok(Self { prefix_len: CLASS_BITS + bits, set: parse_set(texts[0], texts[1], names)?, ip })
    }
}

impl Columns for Classes {
    const NAMES: &'static [&'static str] = &["classes"];
    fn values(&self, _: &Names) -> Vec<Value> {
        let classes: Vec<String> =
            self.classes.iter().take_while(|class| **class != 0).map(|class| number(*class)).collect();
        vec![if classes.is_empty() { "-".into() } else { classes.join(" ").into() }]
    }
}

impl Columns for RuleKey {
    const NAMES: &'static [&'static str] = &["set", "direction", "remote", "family", "protocol", "ports"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let [set, direction] = set_columns(self.set, names);
        let remote = match self.class {
            0 => ANY.to_owned(),
            class if class & MEMBERS != 0 => {
                format!("members {}", names.show(name_kinds::MEMBERS, class & !MEMBERS))
            }
            class => format!("class {}", number(class)),
        };
        let has = |from| self.prefix_len > from;
        let family = match self.family {
            _ if !has(FAMILY_AT) => ANY.to_owned(),
            4 => "ipv4".to_owned(),
            6 => "ipv6".to_owned(),
            other => other.to_string(),
        };
        let protocol = if has(PROTOCOL_AT) { protocol_text(self.protocol) } else { ANY.to_owned() };
        vec![set, direction, remote.into(), family.into(), protocol.into(), self.ports_text().into()]
    }
}

/// The number of a prefix's class.
fn number(class: u32) -> String {
    (class & !PREFIXES).to_string()
}

/// How the last part of a rule's key is written.
trait Ports {
    fn ports_text(&self) -> String;
}

impl Ports for RuleKey {
    fn ports_text(&self) -> String {
        let bits = self.prefix_len.saturating_sub(PORTS_AT).min(16);
        let first = u16::from_be_bytes(self.port);
        let is_icmp = matches!(self.protocol, ICMP | ICMPV6);
        match bits {
            0 => ANY.to_owned(),
            8 if is_icmp => self.port[0].to_string(),
            16 if is_icmp => format!("{}/{}", self.port[0], self.port[1]),
            16 => first.to_string(),
            bits => {
                let rest = u16::MAX >> bits;
                format!("{}-{}", first & !rest, first | rest)
            }
        }
    }
}

/// Bits and value of the last part of a rule's key.
fn parse_ports(text: &str, protocol: u8) -> Result<(u32, [u8; 2]), KeyError> {
    const EXPECTED: &str =
        "any, a port, a range that is one prefix such as 80-83, or an ICMP type or type/code";
    let invalid = || KeyError::value(text, EXPECTED);
    if text == ANY {
        return Ok((0, [0; 2]));
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (u16, u16) = (parsed(first, EXPECTED)?, parsed(last, EXPECTED)?);
        let rest = first ^ last;
        let is_prefix = rest & rest.wrapping_add(1) == 0 && first & rest == 0;
        return if is_prefix { Ok((rest.leading_zeros(), first.to_be_bytes())) } else { Err(invalid()) };
    }
    if matches!(protocol, ICMP | ICMPV6) {
        return match text.split_once('/') {
            Some((kind, code)) => Ok((16, [parsed(kind, EXPECTED)?, parsed(code, EXPECTED)?])),
            None => Ok((8, [parsed(text, EXPECTED)?, 0])),
        };
    }
    Ok((16, parsed::<u16>(text, EXPECTED)?.to_be_bytes()))
}

impl TextKey for RuleKey {
    const EXAMPLE: &'static str =
        "set=#1,direction=ingress,remote=class 7,family=ipv4,protocol=tcp,ports=80-83";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        let class = if texts[2] == ANY {
            0
        } else if let Some(members) = texts[2].strip_prefix("members ") {
            names.parse(name_kinds::MEMBERS, members)? | MEMBERS
        } else {
            let text = texts[2].strip_prefix("class ").unwrap_or(texts[2]);
            let number: u32 =
                parsed(text, "any, a class such as `class 7`, or `members` and security groups")?;
            number | PREFIXES
        };
        let mut key = Self { set: parse_set(texts[0], texts[1], names)?, class, ..Self::default() };
        key.prefix_len = FAMILY_AT;
        if texts[3] != ANY {
            key.family = match texts[3] {
                "ipv4" => 4,
                "ipv6" => 6,
                other => parsed(other, "any, ipv4 or ipv6")?,
            };
            key.prefix_len = PROTOCOL_AT;
        }
        if texts[4] != ANY {
            key.protocol = parse_protocol(texts[4])?;
            key.prefix_len = PORTS_AT;
        }
        let (bits, port) = parse_ports(texts[5], key.protocol)?;
        if bits > 0 {
            key.port = port;
            key.prefix_len = PORTS_AT + bits;
        }
        Ok(key)
    }
}

impl Columns for Rule {
    const NAMES: &'static [&'static str] = &["rules"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.rules.into()]
    }
}

impl Columns for PolicyCountKey {
    // `port` is the key's first column in every table by port.
    const NAMES: &'static [&'static str] = &["port", "set", "direction"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let [set, direction] = set_columns(self.set, names);
        vec![names.show(name_kinds::PORT, self.port).into(), set, direction]
    }
}

impl TextKey for PolicyCountKey {
    const EXAMPLE: &'static str = "port=#1,set=#1,direction=egress";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        let port = names.parse(name_kinds::PORT, texts[0])?;
        Ok(Self { port, set: parse_set(texts[1], texts[2], names)? })
    }
}

impl Columns for PolicyCount {
    const NAMES: &'static [&'static str] = &["allowed", "denied"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.allowed.into(), self.denied.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rules_ports_are_written_and_read_as_people_do() {
        for (protocol, bits, port, text) in [
            (6, 0, [0, 0], "any"),
            (6, 16, [0, 80], "80"),
            (17, 14, [0, 80], "80-83"),
            (6, 1, [128, 0], "32768-65535"),
            (ICMP, 8, [8, 0], "8"),
            (ICMPV6, 16, [3, 1], "3/1"),
            (ICMP, 7, [8, 0], "2048-2559"),
        ] {
            let key = RuleKey { prefix_len: PORTS_AT + bits, protocol, port, ..RuleKey::default() };
            assert_eq!(key.ports_text(), text);
            assert_eq!(parse_ports(text, protocol).unwrap(), (bits, port), "{text}");
        }
        for wrong in ["80-82", "81-84", "x", "", "65536"] {
            assert!(parse_ports(wrong, 6).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rule_of_any_family_or_protocol_says_so() {
        let names = Names::default();
        for (prefix_len, family, protocol, expected) in
            [(64, 0, 0, ["any", "any"]), (72, 6, 0, ["ipv6", "any"]), (80, 4, 58, ["ipv4", "icmpv6"])]
        {
            let key = RuleKey { prefix_len, family, protocol, ..RuleKey::default() };
            let values: Vec<String> = key.values(&names).iter().map(ToString::to_string).collect();
            assert_eq!(values[3..5], expected);
            assert_eq!(values[2], "any");
        }
    }
}
