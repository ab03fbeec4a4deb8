//! The tables' keys as columns and text. Arrays are keyed by plain numbers, so each meaning of a number has a type.

use std::net::Ipv6Addr;

use ncm_common::Plain;
use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{
    ClassKey, FlowKey, IpKey, MacKey, NameKey, PolicyCountKey, PortDropKey, RouteKey, RuleKey, SourceKey,
    SourcePrefixKey, SubnetPrefixKey, VtepKey, name_kinds,
};

use super::columns::{
    Columns, KeyError, MAPPED_BITS, TextKey, Value, ip_text, mac_text, parse_ip, parse_mac, parse_prefix,
    parsed, prefix_text,
};
use super::flows::{parse_timeout, timeout_text};
use super::names::Names;

/// A key type, for the table's own bytes.
pub(super) trait KeyBytes: TextKey {
    /// The key in a table's bytes; `None` if they are not one.
    fn read(bytes: &[u8]) -> Option<Self>;
    /// The table's bytes of the key.
    fn write(&self) -> Vec<u8>;
}

macro_rules! plain_keys {
    ($($type:ty),+) => {$(
        impl KeyBytes for $type {
            fn read(bytes: &[u8]) -> Option<Self> {
                Plain::from_bytes(bytes)
            }
            fn write(&self) -> Vec<u8> {
                self.as_bytes().to_vec()
            }
        }
    )+};
}

plain_keys!(
    NameKey,
    PortDropKey,
    SubnetPrefixKey,
    RouteKey,
    SourceKey,
    SourcePrefixKey,
    MacKey,
    IpKey,
    VtepKey,
    ClassKey,
    RuleKey,
    FlowKey,
    PolicyCountKey
);

/// Declares a meaning of a number: its column, how it is shown and how it is read.
macro_rules! number_keys {
    ($($(#[$doc:meta])+ $name:ident, $column:literal, $example:literal, $show:expr, $parse:expr;)+) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) struct $name(pub(super) u32);

        impl Columns for $name {
            const NAMES: &'static [&'static str] = &[$column];
            fn values(&self, names: &Names) -> Vec<Value> {
                let show: fn(u32, &Names) -> Value = $show;
                vec![show(self.0, names)]
            }
        }

        impl TextKey for $name {
            const EXAMPLE: &'static str = $example;
            fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
                let parse: fn(&str, &Names) -> Result<u32, KeyError> = $parse;
                parse(texts[0], names).map(Self)
            }
        }

        impl KeyBytes for $name {
            fn read(bytes: &[u8]) -> Option<Self> {
                u32::from_bytes(bytes).map(Self)
            }
            fn write(&self) -> Vec<u8> {
                self.0.as_bytes().to_vec()
            }
        }
    )+};
}

number_keys! {
    /// Index of a port.
    PortIndex, "port", "port=#1",
        |index, names| names.show(name_kinds::PORT, index).into(),
        |text, names| names.parse(name_kinds::PORT, text);
    /// Index of a subnet.
    SubnetIndex, "subnet", "subnet=#1",
        |index, names| names.show(name_kinds::SUBNET, index).into(),
        |text, names| names.parse(name_kinds::SUBNET, text);
    /// Index of a remote host.
    HostIndex, "host", "host=192.168.50.2",
        |index, names| names.show(name_kinds::HOST, index).into(),
        |text, names| names.parse(name_kinds::HOST, text);
    /// Index of a next-hop group.
    GroupIndex, "group", "group=#1",
        |index, _| format!("#{index}").into(),
        |text, names| names.parse(name_kinds::GROUP, text);
    /// Index of an interface.
    Interface, "interface", "interface=eth0",
        |index, names| names.show_interface(index).into(),
        |text, names| names.parse_interface(text);
    /// A VNI.
    VniKey, "vni", "vni=100",
        |vni, _| vni.into(),
        |text, _| parsed(text, "a VNI such as 100");
    /// The slot of a table of one entry.
    Slot, "slot", "slot=0",
        |slot, _| slot.into(),
        |text, _| parsed(text, "a number");
    /// Which of the flows' timeouts.
    Timeout, "timeout", "timeout=tcp_established",
        |number, _| timeout_text(number).into(),
        |text, _| parse_timeout(text);
    /// A drop reason.
    Reason, "reason", "reason=unknown_port",
        |number, _| reason_text(number).into(),
        |text, _| parse_reason(text);
    /// A counter of the packet path.
    Counter, "counter", "counter=encapsulated",
        |number, _| counter_text(number).into(),
        |text, _| parse_counter(text);
}

/// Name of a drop reason by number, `#number` if this program knows none.
pub(super) fn reason_text(number: u32) -> String {
    DropReason::from_number(number).map_or_else(|| format!("#{number}"), |reason| reason.name().to_owned())
}

fn parse_reason(text: &str) -> Result<u32, KeyError> {
    let known = DropReason::ALL.iter().find(|reason| reason.name() == text).map(|reason| *reason as u32);
    known
        .or_else(|| text.strip_prefix('#')?.parse().ok())
        .ok_or_else(|| KeyError::value(text, "a drop reason; docs/drop-reasons.md lists them"))
}

fn counter_text(number: u32) -> String {
    let known = PathCounter::ALL.iter().find(|counter| **counter as u32 == number);
    known.map_or_else(|| format!("#{number}"), |counter| counter.name().to_owned())
}

fn parse_counter(text: &str) -> Result<u32, KeyError> {
    let known = PathCounter::ALL.iter().find(|counter| counter.name() == text).map(|counter| *counter as u32);
    known
        .or_else(|| text.strip_prefix('#')?.parse().ok())
        .ok_or_else(|| KeyError::value(text, "a counter; `ncmctl map dump counters` lists them"))
}

/// Bits of a longest-prefix key that stand before the address.
const VNI_OR_INDEX_BITS: u32 = 32;
const SOURCE_BITS: u32 = 96;

impl Columns for SubnetPrefixKey {
    const NAMES: &'static [&'static str] = &["vni", "prefix"];
    fn values(&self, _: &Names) -> Vec<Value> {
        let bits = self.prefix_len.saturating_sub(VNI_OR_INDEX_BITS);
        vec![self.vni.into(), prefix_text(self.ip, bits).into()]
    }
}

impl TextKey for SubnetPrefixKey {
    const EXAMPLE: &'static str = "vni=100,prefix=10.0.0.0/24";
    fn parse(texts: &[&str], _: &Names) -> Result<Self, KeyError> {
        let (bits, ip) = parse_prefix(texts[1])?;
        Ok(Self { prefix_len: VNI_OR_INDEX_BITS + bits, vni: parsed(texts[0], "a VNI such as 100")?, ip })
    }
}

impl Columns for RouteKey {
    const NAMES: &'static [&'static str] = &["from", "prefix"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let bits = self.prefix_len.saturating_sub(VNI_OR_INDEX_BITS);
        vec![names.show(name_kinds::SUBNET, self.subnet).into(), prefix_text(self.ip, bits).into()]
    }
}

impl TextKey for RouteKey {
    const EXAMPLE: &'static str = "from=#1,prefix=10.0.1.0/24";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        let (bits, ip) = parse_prefix(texts[1])?;
        let subnet = names.parse(name_kinds::SUBNET, texts[0])?;
        Ok(Self { prefix_len: VNI_OR_INDEX_BITS + bits, subnet, ip })
    }
}

impl Columns for SourcePrefixKey {
    const NAMES: &'static [&'static str] = &["port", "mac", "prefix"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let bits = self.prefix_len.saturating_sub(SOURCE_BITS);
        let port = names.show(name_kinds::PORT, self.port);
        vec![port.into(), mac_text(self.mac).into(), prefix_text(self.ip, bits).into()]
    }
}

impl TextKey for SourcePrefixKey {
    const EXAMPLE: &'static str = "port=#1,mac=02:00:00:00:00:01,prefix=10.9.0.0/24";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        let (bits, ip) = parse_prefix(texts[2])?;
        let port = names.parse(name_kinds::PORT, texts[0])?;
        let is_v4 = bits >= MAPPED_BITS && Ipv6Addr::from(ip).to_ipv4_mapped().is_some();
        let mac = parse_mac(texts[1])?;
        Ok(Self {
            prefix_len: SOURCE_BITS + bits,
            port,
            mac,
            family: match (mac, is_v4) {
                ([0, 0, 0, 0, 0, 0], _) => 0,
                (_, true) => 4,
                (_, false) => 6,
            },
            reserved: 0,
            ip,
        })
    }
}

impl Columns for SourceKey {
    const NAMES: &'static [&'static str] = &["port", "mac", "ip"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let port = names.show(name_kinds::PORT, self.port);
        vec![port.into(), mac_text(self.mac).into(), ip_text(self.ip).into()]
    }
}

impl TextKey for SourceKey {
    const EXAMPLE: &'static str = "port=#1,mac=02:00:00:00:00:01,ip=10.0.0.9";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        let port = names.parse(name_kinds::PORT, texts[0])?;
        Ok(Self { port, mac: parse_mac(texts[1])?, reserved: [0; 2], ip: parse_ip(texts[2])? })
    }
}

impl Columns for MacKey {
    const NAMES: &'static [&'static str] = &["vni", "mac"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.vni.into(), mac_text(self.mac).into()]
    }
}

impl TextKey for MacKey {
    const EXAMPLE: &'static str = "vni=100,mac=02:00:00:00:00:01";
    fn parse(texts: &[&str], _: &Names) -> Result<Self, KeyError> {
        Ok(Self { vni: parsed(texts[0], "a VNI such as 100")?, mac: parse_mac(texts[1])?, reserved: [0; 2] })
    }
}

impl Columns for IpKey {
    const NAMES: &'static [&'static str] = &["vni", "ip"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.vni.into(), ip_text(self.ip).into()]
    }
}

impl TextKey for IpKey {
    const EXAMPLE: &'static str = "vni=100,ip=10.0.0.5";
    fn parse(texts: &[&str], _: &Names) -> Result<Self, KeyError> {
        Ok(Self { vni: parsed(texts[0], "a VNI such as 100")?, ip: parse_ip(texts[1])? })
    }
}

impl Columns for VtepKey {
    const NAMES: &'static [&'static str] = &["vni", "host"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.vni.into(), ip_text(self.ip).into()]
    }
}

impl TextKey for VtepKey {
    const EXAMPLE: &'static str = "vni=100,host=192.168.50.2";
    fn parse(texts: &[&str], _: &Names) -> Result<Self, KeyError> {
        Ok(Self { vni: parsed(texts[0], "a VNI such as 100")?, ip: parse_ip(texts[1])? })
    }
}

impl Columns for PortDropKey {
    const NAMES: &'static [&'static str] = &["port", "reason"];
    fn values(&self, names: &Names) -> Vec<Value> {
        vec![names.show(name_kinds::PORT, self.port).into(), reason_text(self.reason).into()]
    }
}

impl TextKey for PortDropKey {
    const EXAMPLE: &'static str = "port=#1,reason=spoofed_mac";
    fn parse(texts: &[&str], names: &Names) -> Result<Self, KeyError> {
        Ok(Self { port: names.parse(name_kinds::PORT, texts[0])?, reason: parse_reason(texts[1])? })
    }
}

/// The kinds of names with the words for them.
const KINDS: &[(u32, &str)] = &[
    (name_kinds::PORT, "port"),
    (name_kinds::SUBNET, "subnet"),
    (name_kinds::HOST, "host"),
    (name_kinds::GROUP, "group"),
    (name_kinds::SET, "set"),
    (name_kinds::MEMBERS, "members"),
];

impl Columns for NameKey {
    const NAMES: &'static [&'static str] = &["kind", "index"];
    fn values(&self, _: &Names) -> Vec<Value> {
        let known = KINDS.iter().find(|(kind, _)| *kind == self.kind);
        let kind = known.map_or_else(|| self.kind.to_string(), |(_, word)| (*word).to_owned());
        vec![kind.into(), self.index.into()]
    }
}

impl TextKey for NameKey {
    const EXAMPLE: &'static str = "kind=port,index=1";
    fn parse(texts: &[&str], _: &Names) -> Result<Self, KeyError> {
        let known = KINDS.iter().find(|(_, word)| *word == texts[0]).map(|(kind, _)| *kind);
        let kind =
            known.map_or_else(|| parsed(texts[0], "one of port, subnet, host, group, set, members"), Ok)?;
        Ok(Self { kind, index: parsed(texts[1], "a number")? })
    }
}
