//! The tables' values as columns.

use std::net::{Ipv4Addr, Ipv6Addr};

use ncm_common::tables::{
    Count, Endpoint, Host, MEMBERS, Name, NextHop, NextHopGroup, Node, Port, PortLimits, PortTraffic,
    Reference, Route, Source, Subnet, Uplink, Vni, endpoint_flags, name_kinds, next_hop_flags, node_flags,
    port_flags, route_flags, subnet_flags,
};

use super::columns::{Columns, Value, flags_text, ip_text, mac_text, prefix_text};
use super::names::{Names, name_text};

impl Columns for Name {
    const NAMES: &'static [&'static str] = &["name", "generation"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![name_text(self).into(), self.generation.into()]
    }
}

impl Columns for Node {
    const NAMES: &'static [&'static str] = &[
        "endpoint_v4",
        "endpoint_v6",
        "flags",
        "tunnel_port",
        "relay_port",
        "relay_interface",
        "hand_up_interface",
        "uplinks",
    ];
    fn values(&self, names: &Names) -> Vec<Value> {
        let uplinks = self.uplinks.iter().filter(|uplink| uplink.ifindex != 0);
        let uplink = |uplink: &Uplink| {
            format!("{} {} #{}", names.show_interface(uplink.ifindex), mac_text(uplink.mac), uplink.stack)
        };
        let uplinks: Vec<String> = uplinks.map(uplink).collect();
        vec![
            if self.endpoint_v4 == [0; 4] { "-".into() } else { address_v4(&self.endpoint_v4) },
            ip_or_none(self.endpoint_v6),
            flags_text(self.flags, &[(node_flags::STRICT, "strict")]).into(),
            u16::from_be_bytes(self.tunnel_port).into(),
            u16::from_be_bytes(self.relay_port).into(),
            names.show_interface(self.relay_ifindex).into(),
            names.show_interface(self.hand_up_ifindex).into(),
            if uplinks.is_empty() { "-".into() } else { uplinks.join(", ").into() },
        ]
    }
}

/// The heartbeat's time.
pub(super) struct Heartbeat(pub(super) u64);

impl Columns for Heartbeat {
    const NAMES: &'static [&'static str] = &["monotonic_ns"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.0.into()]
    }
}

impl Columns for NextHopGroup {
    const NAMES: &'static [&'static str] = &["generation", "active", "count", "hops"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let half = &self.halves[active_half(self.active)];
        let used = usize::try_from(half.count).unwrap_or(usize::MAX).min(half.hops.len());
        let hops: Vec<String> = half.hops[..used].iter().map(|hop| hop_text(hop, names)).collect();
        let hops = if hops.is_empty() { "-".to_owned() } else { hops.join("; ") };
        vec![self.generation.into(), self.active.into(), half.count.into(), hops.into()]
    }
}

fn hop_text(hop: &NextHop, names: &Names) -> String {
    let mut text = format!(
        "via {} dev {} from {}",
        mac_text(hop.destination),
        names.show_interface(hop.ifindex),
        mac_text(hop.source)
    );
    if hop.vlan != 0 {
        text.push_str(&format!(" vlan {}", hop.vlan));
    }
    if hop.flags != 0 {
        let known = [
            (u32::from(next_hop_flags::XDP_TARGET), "xdp_target"),
            (u32::from(next_hop_flags::VETH), "veth"),
        ];
        let flags = flags_text(u32::from(hop.flags), &known);
        text.push_str(&format!(" ({flags})"));
    }
    text
}

impl Columns for Host {
    const NAMES: &'static [&'static str] =
        &["generation", "active", "group", "mtu", "source", "destination", "ttl"];
    fn values(&self, _: &Names) -> Vec<Value> {
        let half = &self.halves[active_half(self.active)];
        let headers = &half.headers;
        let (source, destination, ttl): (Value, Value, u8) = match headers[0] >> 4 {
            // Offsets of RFC 791, section 3.1.
            4 => (address_v4(&headers[12..16]), address_v4(&headers[16..20]), headers[8]),
            // Offsets of RFC 8200, section 3.
            6 => (address_v6(&headers[8..24]), address_v6(&headers[24..40]), headers[7]),
            _ => ("-".into(), "-".into(), 0),
        };
        let group: Value = if half.group == 0 { "-".into() } else { format!("#{}", half.group).into() };
        vec![
            self.generation.into(),
            self.active.into(),
            group,
            half.mtu.into(),
            source,
            destination,
            ttl.into(),
        ]
    }
}

impl Columns for Subnet {
    const NAMES: &'static [&'static str] =
        &["generation", "vni", "network", "gateway_ip", "gateway_mac", "dvr_mac", "flags"];
    fn values(&self, _: &Names) -> Vec<Value> {
        let known = [(subnet_flags::GATEWAY, "gateway"), (subnet_flags::ROUTED, "routed")];
        vec![
            self.generation.into(),
            self.vni.into(),
            prefix_text(self.network, self.prefix_len).into(),
            ip_or_none(self.gateway_ip),
            mac_or_none(self.gateway_mac),
            mac_or_none(self.dvr_mac),
            flags_text(self.flags, &known).into(),
        ]
    }
}

impl Columns for Port {
    const NAMES: &'static [&'static str] = &[
        "generation",
        "interface",
        "vni",
        "subnet",
        "ip",
        "mac",
        "mtu",
        "set",
        "max_flows",
        "ask_interval_ns",
        "asks_at_once",
        "epoch",
        "flags",
    ];
    fn values(&self, names: &Names) -> Vec<Value> {
        let known = [
            (port_flags::UP, "up"),
            (port_flags::CLOSED, "closed"),
            (port_flags::XDP_TARGET, "xdp_target"),
            (port_flags::SOURCES, "sources"),
            (port_flags::SOURCE_PREFIXES, "source_prefixes"),
            (port_flags::GROUPS_OUT, "groups_out"),
        ];
        vec![
            self.generation.into(),
            names.show_interface(self.ifindex).into(),
            self.vni.into(),
            reference(names, name_kinds::SUBNET, self.subnet, self.subnet_generation),
            ip_or_none(self.ip),
            mac_or_none(self.mac),
            self.mtu.into(),
            named(names, name_kinds::SET, self.set),
            self.max_flows.into(),
            self.ask_interval.into(),
            self.asks_at_once.into(),
            self.epoch.into(),
            flags_text(self.flags, &known).into(),
        ]
    }
}

impl Columns for Vni {
    const NAMES: &'static [&'static str] = &["subnets"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.subnets.into()]
    }
}

/// A reference to a port.
pub(super) struct PortReference(pub(super) Reference);

impl Columns for PortReference {
    const NAMES: &'static [&'static str] = &["port", "generation"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let Reference { index, generation } = self.0;
        vec![reference(names, name_kinds::PORT, index, generation), generation.into()]
    }
}

/// A reference to a subnet.
pub(super) struct SubnetReference(pub(super) Reference);

impl Columns for SubnetReference {
    const NAMES: &'static [&'static str] = &["subnet", "generation"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let Reference { index, generation } = self.0;
        vec![reference(names, name_kinds::SUBNET, index, generation), generation.into()]
    }
}

/// A reference to a remote host.
pub(super) struct HostReference(pub(super) Reference);

impl Columns for HostReference {
    // The key has a column `host` already: the address itself.
    const NAMES: &'static [&'static str] = &["template", "generation"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let Reference { index, generation } = self.0;
        vec![reference(names, name_kinds::HOST, index, generation), generation.into()]
    }
}

/// An endpoint whose MAC is in the key already.
pub(super) struct EndpointByMac(pub(super) Endpoint);

impl Columns for EndpointByMac {
    const NAMES: &'static [&'static str] = &["location", "generation", "flags"];
    fn values(&self, names: &Names) -> Vec<Value> {
        vec![location(&self.0, names), self.0.generation.into(), endpoint_flags_text(&self.0)]
    }
}

/// An endpoint with all that its entry by address tells.
pub(super) struct EndpointByIp(pub(super) Endpoint);

impl Columns for EndpointByIp {
    const NAMES: &'static [&'static str] = &["location", "generation", "mac", "subnet", "members", "flags"];
    fn values(&self, names: &Names) -> Vec<Value> {
        vec![
            location(&self.0, names),
            self.0.generation.into(),
            mac_or_none(self.0.mac),
            named(names, name_kinds::SUBNET, self.0.subnet),
            named(names, name_kinds::MEMBERS, self.0.members & !MEMBERS),
            endpoint_flags_text(&self.0),
        ]
    }
}

fn location(endpoint: &Endpoint, names: &Names) -> Value {
    target(endpoint.flags & endpoint_flags::LOCAL != 0, endpoint.target, endpoint.generation, names)
}

/// A port of this host, or a remote host.
pub(super) fn target(is_local: bool, index: u32, generation: u32, names: &Names) -> Value {
    let (word, kind) = if is_local { ("port", name_kinds::PORT) } else { ("host", name_kinds::HOST) };
    format!("{word} {}", names.show_reference(kind, index, generation)).into()
}

fn endpoint_flags_text(endpoint: &Endpoint) -> Value {
    let known = [
        (u32::from(endpoint_flags::LOCAL), "local"),
        (u32::from(endpoint_flags::L2), "l2"),
        (u32::from(endpoint_flags::L3), "l3"),
    ];
    flags_text(u32::from(endpoint.flags), &known).into()
}

impl Columns for Route {
    const NAMES: &'static [&'static str] = &["subnet", "generation", "next_hop_ip", "next_hop_mac", "flags"];
    fn values(&self, names: &Names) -> Vec<Value> {
        vec![
            reference(names, name_kinds::SUBNET, self.subnet, self.subnet_generation),
            self.subnet_generation.into(),
            ip_or_none(self.next_hop_ip),
            mac_or_none(self.next_hop_mac),
            flags_text(self.flags, &[(route_flags::CONNECTED, "connected")]).into(),
        ]
    }
}

impl Columns for Source {
    const NAMES: &'static [&'static str] = &["subnet", "generation"];
    fn values(&self, names: &Names) -> Vec<Value> {
        let subnet = reference(names, name_kinds::SUBNET, self.subnet, self.subnet_generation);
        vec![subnet, self.subnet_generation.into()]
    }
}

/// The device behind an entry of the device table.
pub(super) struct Device(pub(super) u32);

impl Columns for Device {
    const NAMES: &'static [&'static str] = &["device"];
    fn values(&self, names: &Names) -> Vec<Value> {
        vec![names.show_interface(self.0).into()]
    }
}

impl Columns for Count {
    const NAMES: &'static [&'static str] = &["packets", "bytes"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.packets.into(), self.bytes.into()]
    }
}

impl Columns for PortTraffic {
    const NAMES: &'static [&'static str] =
        &["received_packets", "received_bytes", "sent_packets", "sent_bytes"];
    fn values(&self, _: &Names) -> Vec<Value> {
        let Self { received, sent } = self;
        vec![received.packets.into(), received.bytes.into(), sent.packets.into(), sent.bytes.into()]
    }
}

impl Columns for PortLimits {
    const NAMES: &'static [&'static str] = &["errors_full_at_ns", "asks_full_at_ns", "hand_ups_full_at_ns"];
    fn values(&self, _: &Names) -> Vec<Value> {
        vec![self.errors.into(), self.asks.into(), self.hand_ups.into()]
    }
}

/// Anything but 0 and 1 is shown as the programs read it: by its lowest bit.
fn active_half(active: u32) -> usize {
    usize::from(active & 1 != 0)
}

fn reference(names: &Names, kind: u32, index: u32, generation: u32) -> Value {
    if index == 0 { "-".into() } else { names.show_reference(kind, index, generation).into() }
}

/// What to call something without a generation of its own; `-` for none.
fn named(names: &Names, kind: u32, index: u32) -> Value {
    if index == 0 { "-".into() } else { names.show(kind, index).into() }
}

pub(super) fn ip_or_none(ip: [u8; 16]) -> Value {
    if ip == [0; 16] { "-".into() } else { ip_text(ip).into() }
}

pub(super) fn mac_or_none(mac: [u8; 6]) -> Value {
    if mac == [0; 6] { "-".into() } else { mac_text(mac).into() }
}

fn address_v4(bytes: &[u8]) -> Value {
    <[u8; 4]>::try_from(bytes).map_or("-".into(), |ip| Ipv4Addr::from(ip).to_string().into())
}

fn address_v6(bytes: &[u8]) -> Value {
    <[u8; 16]>::try_from(bytes).map_or("-".into(), |ip| Ipv6Addr::from(ip).to_string().into())
}
