//! From the wire: which frames are ours, which of them are admitted, and to which guest they go.

use aya_ebpf::{bindings::bpf_tunnel_key, helpers::bpf_skb_get_tunnel_key};
use aya_log_ebpf::trace;
use ncm_common::{
    DVR_MAC_PREFIX,
    counters::PathCounter,
    drops::DropReason,
    tables::{
        Node, Port, Reference, RouteKey, Subnet, SubnetPrefixKey, VtepKey, endpoint_flags, node_flags,
        port_flags, route_flags,
    },
};

use super::{
    Step, by_ip, by_mac,
    deliver::fits,
    guest::set,
    open, port,
    route::{is_for_gateway, is_gateway},
    subnet,
};
use crate::{
    context::{Context, Tc, Xdp},
    count::{count, received},
    drop::drop,
    headers::{
        Frame, Ipv4Address, Mac,
        ethernet::{self, Ethernet, ethertype},
        ipv4::Ipv4,
        ipv6,
        transport::Transport,
        vxlan::{self, Extent, Outer},
    },
    tables::{NODE, ROUTES, SUBNET_PREFIXES, VNIS, VTEPS},
};

/// A frame on an underlay interface, at its XDP hook.
#[inline(always)]
pub fn wire_xdp(packet: Xdp) -> i32 {
    let bytes = packet.length();
    let mut to = 0;
    let action = match claim(&packet) {
        Ok(Some(claimed)) => take(packet, &claimed, &mut to),
        Ok(None) => Ok(foreign::<Xdp>(bytes)),
        Err(reason) => Err(reason),
    };
    finish(packet, action, to, bytes)
}

/// A frame on an underlay interface, at its tc hook: the kernel decapsulates it.
#[inline(always)]
pub fn wire_tc(packet: Tc) -> i32 {
    let bytes = packet.length();
    if packet.is_tagged() {
        return foreign::<Tc>(bytes);
    }
    let action = match claim(&packet) {
        Ok(Some(claimed)) => relay(packet, &claimed),
        Ok(None) => Ok(foreign::<Tc>(bytes)),
        Err(reason) => Err(reason),
    };
    finish(packet, action, 0, bytes)
}

/// A frame that the kernel has decapsulated, on the relay device. It fails closed.
#[inline(always)]
pub fn relay_tc(packet: Tc) -> i32 {
    let bytes = packet.length();
    let mut to = 0;
    let action = decapsulated(packet, &mut to);
    finish(packet, action, to, bytes)
}

/// Leaves a frame that is not ours to the host.
#[inline(always)]
fn foreign<C: Context>(bytes: u32) -> i32 {
    count(PathCounter::WirePassed, bytes);
    C::PASS
}

#[inline(always)]
fn finish<C: Context>(packet: C, action: Step<i32>, to: u32, bytes: u32) -> i32 {
    match action {
        Ok(action) => action,
        Err(reason) => {
            drop(packet, to, reason, bytes);
            C::DROP
        }
    }
}

/// A tunnel frame for us from a host that may send into its VNI.
struct Claimed {
    node: &'static Node,
    outer: Outer,
    host: &'static Reference,
}

/// Whether the frame is ours: VXLAN to our endpoint and port in a VNI of ours. If it is, its sender has to be known.
#[inline(always)]
fn claim<C: Context>(packet: &C) -> Step<Option<Claimed>> {
    let Some(node) = NODE.get(&0) else { return Ok(None) };
    let us = Ipv4Address::new(node.endpoint_v4);
    if us == Ipv4Address::UNSPECIFIED {
        return Ok(None);
    }
    let Some(outer) = Outer::parse(packet, us, node.tunnel_port) else { return Ok(None) };
    match VTEPS.get(&vtep(outer.vni, outer.source)) {
        Some(host) => Ok(Some(Claimed { node, outer, host })),
        None if VNIS.get(&outer.vni).is_some() => Err(DropReason::UnknownVtep),
        None => Ok(None),
    }
}

/// The key of a host that sends into a VNI.
#[inline(always)]
fn vtep(vni: u32, ip: Ipv4Address) -> VtepKey {
    VtepKey { vni, ip: ip.mapped() }
}

/// Leaves the frame to the kernel to decapsulate, by sending it to the relay device's port.
#[inline(always)]
fn relay<C: Context>(packet: C, claimed: &Claimed) -> Step<i32> {
    if claimed.node.relay_ifindex == 0 {
        return Err(DropReason::NoDevice);
    }
    let bytes = packet.length();
    // On the tunnel's own port the kernel gathers frames (GRO) before this, and takes them as they are.
    if claimed.node.relay_port != claimed.node.tunnel_port {
        packet.readdress(claimed.node.tunnel_port, claimed.node.relay_port, claimed.outer.checksum)?;
    }
    count(PathCounter::Relayed, bytes);
    Ok(C::PASS)
}

/// Decapsulates the frame and hands it to its guest, or leaves that to the kernel where XDP cannot.
#[inline(always)]
fn take(packet: Xdp, claimed: &Claimed, to: &mut u32) -> Step<i32> {
    const INNER: usize = vxlan::LEN;
    let inner = match inner::<Xdp, INNER>(&packet) {
        // The headers may be in another buffer of a large frame, where only the kernel gets at them.
        Err(DropReason::TunnelMalformed) if !packet.is_linear() => return relay(packet, claimed),
        inner => inner?,
    };
    let guest = guest(claimed.outer.vni, &inner.ethernet, to)?;
    let extent = claimed.outer.extent(packet.length());
    if guest.flags & port_flags::XDP_TARGET == 0
        || matches!(extent, Extent::Padded)
        || !packet.is_linear()
        || inner.transport.is_partial(&inner.ip)
        // The kernel gathers a stream's segments into large frames before it decapsulates them (GRO), and hands a
        // guest one instead of forty: TCP through the kernel is faster. By protocol, so that no flow is reordered.
        || matches!(inner.transport, Transport::Tcp(_))
    {
        return relay(packet, claimed);
    }
    if matches!(extent, Extent::Wrong) {
        return Err(DropReason::TunnelMalformed);
    }
    let source = admit(claimed.node, claimed.outer.vni, claimed.host, guest, &inner)?;
    let bytes = packet.length().wrapping_sub(INNER as u32);
    fits(0, bytes, guest.mtu)?;
    packet.decapsulate()?;
    let action = hand_over(packet, guest, source)?;
    received(*to, bytes);
    count(PathCounter::DecapsulatedXdp, bytes);
    trace!(packet, "vni {} to port {}: {} bytes", claimed.outer.vni, *to, bytes);
    Ok(action)
}

/// Hands a frame that the kernel has decapsulated to its guest.
#[inline(always)]
fn decapsulated(packet: Tc, to: &mut u32) -> Step<i32> {
    let node = NODE.get(&0).ok_or(DropReason::UnknownVtep)?;
    // SAFETY: all bits are a value.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: the context is the kernel's, and the key is as long as is said.
    if unsafe { bpf_skb_get_tunnel_key(packet.skb(), &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0) }
        != 0
    {
        return Err(DropReason::UnknownVtep);
    }
    // SAFETY: without the flag for IPv6, the helper fills in an IPv4 address, in host order.
    let from = Ipv4Address::new(unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes());
    let vni = key.tunnel_id;
    let host = VTEPS.get(&vtep(vni, from)).ok_or(DropReason::UnknownVtep)?;
    let inner = inner::<Tc, 0>(&packet)?;
    let guest = guest(vni, &inner.ethernet, to)?;
    let source = admit(node, vni, host, guest, &inner)?;
    let bytes = packet.length();
    fits(packet.segment_size(), bytes, guest.mtu)?;
    let action = hand_over(packet, guest, source)?;
    received(*to, bytes);
    count(PathCounter::DecapsulatedRelay, bytes);
    trace!(packet, "vni {} to port {}: {} bytes", vni, *to, bytes);
    Ok(action)
}

/// The parsed inner headers.
struct Inner {
    ethernet: Ethernet,
    ip: Ipv4,
    transport: Transport,
}

/// The inner headers at `AT`; refuses what is cut short and what never crosses the tunnel.
#[inline(always)]
fn inner<C: Context, const AT: usize>(packet: &C) -> Step<Inner> {
    let ethernet = Ethernet::parse(packet, AT).ok_or(DropReason::TunnelMalformed)?;
    if ethernet.source.is_group() || ethernet.source == Mac::ZERO {
        return Err(DropReason::TunnelSource);
    }
    match ethernet.ethertype {
        ethertype::IPV4 if !packet.is_tagged() => {}
        ethertype::ARP => return Err(DropReason::TunnelControl),
        ethertype::IPV6 => {
            return Err(match ipv6::kind(packet, AT + ethernet::LEN) {
                None => DropReason::TunnelMalformed,
                Some(ipv6::Kind::Other) => DropReason::TunnelEthertype,
                Some(_) => DropReason::TunnelControl,
            });
        }
        _ => return Err(DropReason::TunnelEthertype),
    }
    let ip = Ipv4::parse(packet, AT + ethernet::LEN).ok_or(DropReason::TunnelMalformed)?;
    let transport = Transport::parse(packet, AT + ethernet::LEN, &ip).ok_or(DropReason::TunnelMalformed)?;
    if transport.is_dhcp() {
        return Err(DropReason::TunnelControl);
    }
    Ok(Inner { ethernet, ip, transport })
}

/// The port of the guest that the inner frame is for, which has to be here; `to` becomes its index.
#[inline(always)]
fn guest(vni: u32, ethernet: &Ethernet, to: &mut u32) -> Step<&'static Port> {
    let endpoint = by_mac(vni, ethernet.destination)
        .filter(|endpoint| endpoint.flags & endpoint_flags::LOCAL != 0)
        .ok_or(DropReason::UnknownGuest)?;
    let port = port(endpoint.target, endpoint.generation)?;
    *to = endpoint.target;
    open(port)?;
    if port.ifindex == 0 { Err(DropReason::NoDevice) } else { Ok(port) }
}

/// Admits an inner frame from `host` for the guest behind `port`: its source is no group, no local port's and no
/// gateway's, and under strict admission is held by that host, where it is known. Gives the MAC that replaces the
/// source's, if any.
#[inline(always)]
fn admit(node: &Node, vni: u32, host: &Reference, port: &Port, inner: &Inner) -> Step<Option<Mac>> {
    let from = inner.ip.source;
    if from.is_group() {
        return Err(DropReason::TunnelSource);
    }
    let here = subnet_of(vni, port, inner.ip.destination);
    let source = inner.ethernet.source;
    let mut replaced = None;
    let mut is_routed = false;
    if let Some((_, subnet)) = here {
        if is_for_gateway(subnet, source) || is_gateway(subnet, from) {
            return Err(DropReason::TunnelSource);
        }
        is_routed = source.has_prefix(DVR_MAC_PREFIX) || set(&subnet.dvr_mac) == Some(source);
        if is_routed {
            replaced = set(&subnet.gateway_mac);
        }
    }
    let strict = node.flags & node_flags::STRICT != 0;
    if !is_routed && let Some(endpoint) = by_mac(vni, source) {
        held_by(host, endpoint, strict)?;
    }
    if let Some(endpoint) = by_ip(vni, from) {
        held_by(host, endpoint, strict)?;
    } else if let Some((index, _)) = here
        && let Some(subnet) = connected(index, from)
    {
        // A routed packet comes in the VNI of its destination, so that its source is known in another.
        if is_gateway(subnet, from) {
            return Err(DropReason::TunnelSource);
        }
        if let Some(endpoint) = by_ip(subnet.vni, from) {
            held_by(host, endpoint, strict)?;
        }
    }
    Ok(replaced)
}

/// The subnet, of those that the router of subnet `index` connects, that an address is in.
#[inline(always)]
fn connected(index: u32, ip: Ipv4Address) -> Option<&'static Subnet> {
    let route = ROUTES.get(&RouteKey { prefix_len: 160, subnet: index, ip: ip.mapped() })?;
    if route.flags & route_flags::CONNECTED == 0 {
        return None;
    }
    subnet(route.subnet, route.subnet_generation).ok()
}

/// Refuses the source at `endpoint` if it is here, or under strict admission elsewhere than on `host`.
#[inline(always)]
fn held_by(host: &Reference, endpoint: &ncm_common::tables::Endpoint, strict: bool) -> Step<()> {
    if endpoint.flags & endpoint_flags::LOCAL != 0 {
        Err(DropReason::TunnelSource)
    } else if strict && endpoint.target != host.index {
        Err(DropReason::WrongVtep)
    } else {
        Ok(())
    }
}

/// The subnet, with its index, in which a packet for that address reaches the guest behind `port`: the address's own, or
/// the guest's where the guest is the next hop to an address outside.
#[inline(always)]
fn subnet_of(vni: u32, port: &Port, ip: Ipv4Address) -> Option<(u32, &'static Subnet)> {
    let own = Reference { index: port.subnet, generation: port.subnet_generation };
    let is_own = ip == Ipv4Address::of_mapped(&port.ip) && vni == port.vni;
    let found = if is_own {
        own
    } else {
        match SUBNET_PREFIXES.get(&SubnetPrefixKey { prefix_len: 160, vni, ip: ip.mapped() }) {
            Some(reference) => *reference,
            None if vni == port.vni => own,
            None => return None,
        }
    };
    Some((found.index, subnet(found.index, found.generation).ok()?))
}

/// Hands the inner frame to the guest, from `source` if routing has to show its own MAC.
#[inline(always)]
fn hand_over<C: Context>(packet: C, guest: &Port, source: Option<Mac>) -> Step<i32> {
    if let Some(source) = source {
        packet.store(6, &source.bytes())?;
    }
    packet.send(guest.ifindex).ok_or(DropReason::NoDevice)
}
