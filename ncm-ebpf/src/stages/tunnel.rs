//! From the wire: which frames are ours, which of them are admitted, and to which guest they go.

use aya_ebpf::{
    bindings::{BPF_F_TUNINFO_IPV6, bpf_tunnel_key},
    helpers::bpf_skb_get_tunnel_key,
};
use aya_log_ebpf::trace;
use ncm_common::{
    DVR_MAC_PREFIX,
    counters::PathCounter,
    drops::DropReason,
    tables::{
        Endpoint, Node, Port, Reference, RouteKey, Subnet, SubnetPrefixKey, VtepKey, endpoint_flags,
        epoch_slot, flow_flags, node_flags, port_flags, route_flags,
    },
};

use super::{
    Ended, Step, by_ip, by_mac,
    deliver::fits,
    encapsulate::is_fresh,
    flow, fragment, open, port, refuse,
    related::{self, Way},
    route::{is_for_gateway, is_gateway},
    set, settle, subnet,
};
use crate::{
    context::{Context, Tc, Xdp},
    count::{count, received},
    drop::drop,
    headers::{
        Address, Frame, Ipv4Address, Mac, Packet,
        ethernet::{self, Ethernet, ethertype},
        packet::{class, icmp, protocol},
        transport::{DHCP_CLIENT, DHCP_SERVER, DHCPV6_CLIENT, DHCPV6_SERVER},
        vxlan::{self, Endpoints, Extent, Outer},
    },
    scratch::{NONE, Scratch, VALID, again, scratch},
    tables::{NODE, ROUTES, SUBNET_PREFIXES, VNIS, VTEPS},
};

/// A frame on an underlay interface, at its XDP hook.
#[inline(always)]
pub fn wire_xdp(packet: Xdp) -> i32 {
    let bytes = packet.length();
    let mut to = 0;
    let action = match addressed(&packet) {
        Some(arrived) if arrived.outer.is_over_v6() => {
            take::<{ vxlan::LEN_V6 }, { vxlan::LEN_V6 + ethernet::LEN }>(packet, &arrived, &mut to)
        }
        Some(arrived) => {
            take::<{ vxlan::LEN_V4 }, { vxlan::LEN_V4 + ethernet::LEN }>(packet, &arrived, &mut to)
        }
        None => Ok(foreign::<Xdp>(bytes)),
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
    let action = match addressed(&packet) {
        Some(arrived) => match claim(&arrived.outer) {
            Ok(Some(_)) => relay(packet, &arrived),
            Ok(None) => Ok(foreign::<Tc>(bytes)),
            Err(reason) => Err(reason),
        },
        None => Ok(foreign::<Tc>(bytes)),
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
        Err(ended) => {
            drop(packet, to, ended.0, bytes);
            C::DROP
        }
    }
}

/// A frame of the tunnel's kind that was sent to us.
struct Arrived {
    node: &'static Node,
    outer: Outer,
}

/// Whether the frame is VXLAN to our endpoint and port. Whether its VNI is ours is not looked up yet.
#[inline(always)]
fn addressed<C: Context>(packet: &C) -> Option<Arrived> {
    let node = NODE.get(&0)?;
    let us = Endpoints { v4: &node.endpoint_v4, v6: &node.endpoint_v6, port: node.tunnel_port };
    let outer = Outer::parse(packet, us).filter(|outer| is_for_interface(packet, node, outer.to))?;
    Some(Arrived { node, outer })
}

/// Index of the host that the frame is from, if its VNI is ours. If it is, its sender has to be known.
#[inline(always)]
fn claim(outer: &Outer) -> Step<Option<u32>> {
    match VTEPS.get(&VtepKey { vni: outer.vni, ip: outer.source.bytes() }) {
        Some(host) => Ok(Some(host.index)),
        None if VNIS.get(&outer.vni).is_some() => refuse(DropReason::UnknownVtep),
        None => Ok(None),
    }
}

/// Whether a frame was sent to the interface that it came in by. One that listens to everything hears others' frames too, of
/// which their own hosts have the other copy.
#[inline(always)]
fn is_for_interface<C: Context>(packet: &C, node: &'static Node, to: Mac) -> bool {
    let ifindex = packet.interface();
    let uplink = &node.uplinks[(ifindex & 7) as usize];
    if uplink.ifindex == ifindex && Mac::new(&uplink.mac) == to {
        return true;
    }
    let (low, high) = to.parts();
    is_for_stack(node, ifindex, low, high) != 0
}

/// Whether a MAC is that of any interface of the stack that an interface is part of. An interface that is not known takes
/// everything, as does each while nobody is there to follow the changes of MACs.
#[inline(never)]
fn is_for_stack(node: &'static Node, ifindex: u32, low: u32, high: u16) -> u32 {
    let stack = node
        .uplinks
        .iter()
        .fold(0, |stack, uplink| stack | u32::from(uplink.stack) * u32::from(uplink.ifindex == ifindex));
    let known = node.uplinks.iter().fold(false, |known, uplink| {
        known | (u32::from(uplink.stack) == stack && Mac::new(&uplink.mac).parts() == (low, high))
    });
    u32::from(stack == 0 || known || !is_fresh(flow::clock()))
}

/// Leaves the frame to the kernel to decapsulate, by sending it to the relay device's port.
#[inline(always)]
fn relay<C: Context>(packet: C, arrived: &Arrived) -> Step<i32> {
    if arrived.node.relay_ifindex == 0 {
        return refuse(DropReason::NoDevice);
    }
    let bytes = packet.length();
    // On the tunnel's own port the kernel gathers frames (GRO) before this, and takes them as they are.
    if arrived.node.relay_port != arrived.node.tunnel_port {
        let (node, outer) = (arrived.node, &arrived.outer);
        packet.readdress(outer.udp, node.tunnel_port, node.relay_port, outer.checksum)?;
    }
    count(PathCounter::Relayed, bytes);
    Ok(C::PASS)
}

/// Decapsulates the frame, of which `OUTER` bytes are in front of the inner frame and `INNER` in front of its payload, and hands
/// it to its guest, or leaves that to the kernel where XDP cannot.
#[inline(always)]
fn take<const OUTER: usize, const INNER: usize>(packet: Xdp, arrived: &Arrived, to: &mut u32) -> Step<i32> {
    let scratch = scratch().ok_or(DropReason::RewriteFailed)?;
    let outer = &arrived.outer;
    scratch.vni = outer.vni;
    scratch.peer = outer.source;
    let mut index = 0;
    let read = inner::<Xdp, INNER>(&packet, &mut scratch.packet);
    let found = read.and_then(|()| guest(outer.vni, scratch.packet.to, &mut index));
    let extent = outer.extent(packet.length());
    let stays = found.is_ok_and(|guest| guest.flags & port_flags::XDP_TARGET != 0)
        && !matches!(extent, Extent::Padded)
        && packet.is_linear()
        && !scratch.packet.is_partial()
        // The kernel gathers a stream's segments into large frames before it decapsulates them (GRO), and hands a
        // guest one instead of forty: TCP through the kernel is faster. By protocol, so that no flow is reordered.
        && scratch.packet.protocol != protocol::TCP;
    let known = match found {
        Ok(guest) if stays && !matches!(extent, Extent::Wrong) => known(index, guest, scratch),
        _ => None,
    };
    let shown = if let Some(shown) = known {
        shown
    } else {
        let Some(host) = claim(outer)? else { return Ok(foreign::<Xdp>(packet.length())) };
        match read {
            // The headers may be in another buffer of a large frame, where only the kernel gets at them.
            Err(ended) if ended == DropReason::TunnelMalformed.into() && !packet.is_linear() => {
                return relay(packet, arrived);
            }
            read => read?,
        }
        *to = index;
        let guest = found?;
        if !stays {
            return relay(packet, arrived);
        }
        if matches!(extent, Extent::Wrong) {
            return refuse(DropReason::TunnelMalformed);
        }
        scratch.host = host;
        Ended::step(undecided::<Xdp, INNER>(packet, guest, scratch))?;
        Mac::new(&scratch.here.flow.shown_mac)
    };
    *to = index;
    let guest = found?;
    let bytes = packet.length().wrapping_sub(OUTER as u32);
    if !fits(0, bytes, guest.mtu) {
        return refuse(DropReason::TooBig);
    }
    packet.decapsulate(OUTER)?;
    let action = hand_over(packet, guest, scratch.packet.from, shown)?;
    received(index, bytes);
    count(PathCounter::DecapsulatedXdp, bytes);
    trace!(packet, "vni {} to port {}: {} bytes", outer.vni, index, bytes);
    Ok(action)
}

/// Hands a frame that the kernel has decapsulated to its guest.
#[inline(always)]
fn decapsulated(packet: Tc, to: &mut u32) -> Step<i32> {
    let scratch = scratch().ok_or(DropReason::RewriteFailed)?;
    sender(packet, scratch)?;
    let mut index = 0;
    let found = inner::<Tc, { ethernet::LEN }>(&packet, &mut scratch.packet)
        .and_then(|()| guest(scratch.vni, scratch.packet.to, &mut index));
    let known = match found {
        Ok(guest) => known(index, guest, scratch),
        Err(_) => None,
    };
    let shown = if let Some(shown) = known {
        shown
    } else {
        let of = VtepKey { vni: scratch.vni, ip: scratch.peer.bytes() };
        scratch.host = VTEPS.get(&of).ok_or(DropReason::UnknownVtep)?.index;
        *to = index;
        Ended::step(undecided::<Tc, { ethernet::LEN }>(packet, found?, scratch))?;
        Mac::new(&scratch.here.flow.shown_mac)
    };
    *to = index;
    let guest = found?;
    let bytes = packet.length();
    if !fits(packet.segment_size(), bytes, guest.mtu) {
        return refuse(DropReason::TooBig);
    }
    let action = hand_over(packet, guest, scratch.packet.from, shown)?;
    received(index, bytes);
    count(PathCounter::DecapsulatedRelay, bytes);
    trace!(packet, "vni {} to port {}: {} bytes", scratch.vni, index, bytes);
    Ok(action)
}

/// Notes the VNI and the host that a frame came from, by the kernel's account.
#[inline(always)]
fn sender(packet: Tc, scratch: &mut Scratch) -> Step<()> {
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: all bits are a value.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: the context is the kernel's, and the key is as long as is said.
    let over_v4 = unsafe { bpf_skb_get_tunnel_key(packet.skb(), &raw mut key, size, 0) } == 0;
    if over_v4 {
        // SAFETY: without the flag for IPv6, the helper fills in an IPv4 address, in host order.
        let from = Ipv4Address::new(unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes());
        scratch.peer = Address::v4(from);
    } else {
        let flags = u64::from(BPF_F_TUNINFO_IPV6);
        // SAFETY: likewise.
        if unsafe { bpf_skb_get_tunnel_key(packet.skb(), &raw mut key, size, flags) } != 0 {
            return refuse(DropReason::UnknownVtep);
        }
        // SAFETY: with the flag, it fills in an IPv6 address, as it is on the wire.
        let [a, b, c, d] = unsafe { key.__bindgen_anon_1.remote_ipv6 };
        scratch.peer = Address::of([a, b, c, d]);
        if scratch.peer.is_v4() {
            return refuse(DropReason::UnknownVtep);
        }
    }
    scratch.vni = key.tunnel_id;
    Ok(())
}

/// Reads the inner headers, of which the IP header is at `AT`; refuses what is cut short and what never crosses the tunnel.
#[inline(always)]
fn inner<C: Context, const AT: usize>(packet: &C, whole: &mut Packet) -> Step<()> {
    let ethernet = Ethernet::parse(packet, AT - ethernet::LEN).ok_or(DropReason::TunnelMalformed)?;
    if ethernet.source.is_group() || ethernet.source == Mac::ZERO {
        return refuse(DropReason::TunnelSource);
    }
    let read = match ethernet.ethertype {
        ethertype::IPV4 if !packet.is_tagged() => whole.read_v4(packet, AT, &ethernet),
        ethertype::IPV6 if !packet.is_tagged() => whole.read_v6(packet, AT, &ethernet),
        ethertype::ARP => return refuse(DropReason::TunnelControl),
        _ => return refuse(DropReason::TunnelEthertype),
    };
    if let Err(fault) = read {
        let ended = Ended::from(fault);
        return Err(if ended == DropReason::Malformed.into() {
            DropReason::TunnelMalformed.into()
        } else {
            ended
        });
    }
    if is_control(whole) { refuse(DropReason::TunnelControl) } else { Ok(()) }
}

/// Whether a packet is what a network says to its own: DHCP or neighbour discovery.
#[inline(always)]
fn is_control(whole: &Packet) -> bool {
    if whole.begins(protocol::UDP) {
        let (client, server) =
            if whole.family == 4 { (DHCP_CLIENT, DHCP_SERVER) } else { (DHCPV6_CLIENT, DHCPV6_SERVER) };
        return whole.source_port() == server
            || whole.destination_port() == server
            || whole.destination_port() == client;
    }
    whole.family == 6
        && whole.is_icmp()
        && whole.icmp[0] >= icmp::ROUTER_SOLICITATION
        && whole.icmp[0] <= icmp::REDIRECT
}

/// The port of the guest that the inner frame is for, which has to be here; `to` becomes its index.
#[inline(always)]
fn guest(vni: u32, mac: Mac, to: &mut u32) -> Step<&'static Port> {
    let endpoint = by_mac(vni, mac)
        .filter(|endpoint| endpoint.flags & endpoint_flags::LOCAL != 0)
        .ok_or(DropReason::UnknownGuest)?;
    let port = port(endpoint.target, endpoint.generation)?;
    *to = endpoint.target;
    open(port)?;
    if port.ifindex == 0 { refuse(DropReason::NoDevice) } else { Ok(port) }
}

/// Lets a packet in by its flow at its guest's port, if that knows it from this very host: gives the source MAC that the guest
/// sees. Whether the host may send into the VNI is then not asked again: the port's epoch rises when it no longer may.
#[inline(always)]
fn known(index: u32, guest: &'static Port, scratch: &mut Scratch) -> Option<Mac> {
    let now = flow::now();
    scratch.here.now = now;
    flow::key(&scratch.packet, index, true, &mut scratch.here.key);
    let entry = flow::find(&scratch.packet, &scratch.here.key)?;
    let known = entry.flow();
    let holds = flow::is_steady(entry, guest, now, true)
        && known.flags & flow_flags::IN != 0
        && Mac::new(&known.arriving_mac) == scratch.packet.from
        && Address::new(&known.peer) == scratch.peer;
    let shown = Mac::new(&known.shown_mac);
    if !holds || !entry.is_of(index) {
        return None;
    }
    flow::see(entry, true, now);
    Some(shown)
}

/// Decides about a packet that no flow decides about; the decision is in `scratch.here.flow` then.
#[inline(never)]
fn undecided<C: Context, const AT: usize>(packet: C, guest: &'static Port, scratch: &mut Scratch) -> u32 {
    Ended::number(decide::<C, AT>(packet, guest, scratch))
}

#[inline(always)]
fn decide<C: Context, const AT: usize>(packet: C, guest: &'static Port, scratch: &mut Scratch) -> Step<()> {
    flow::stamp(guest, &mut scratch.here);
    let is_later = scratch.packet.class & class::LATER != 0;
    if is_later {
        scratch.here.found = NONE;
        Ended::step(admit(guest, scratch))?;
        let (whole, here, spare) = (&mut scratch.packet, &mut scratch.here, &mut scratch.spare);
        Ended::step(fragment::recall(whole, here, spare, true))?;
    }
    settle::look(&scratch.packet, &mut scratch.here);
    Ended::step(admit(guest, scratch))?;
    let is_related = scratch.packet.is_icmp_error()
        && related::lets_through::<C, AT>(packet, guest, scratch, Way::ToGuest) != 0;
    if !is_related {
        Ended::step(settle::settle(guest, &scratch.packet, &mut scratch.here, true))?;
    }
    if scratch.packet.class & class::FIRST != 0 {
        fragment::remember(&scratch.packet, &scratch.here, &mut scratch.spare, true);
    }
    Ok(())
}

/// Admits an inner packet from the host in `scratch` for the guest behind `port`: its source is no group, no local port's and
/// no gateway's, and under strict admission is held by that host, where it is known. Notes how it arrives in the flow.
#[inline(never)]
fn admit(port: &Port, scratch: &mut Scratch) -> u32 {
    Ended::number(admitted(port, scratch))
}

#[inline(always)]
fn admitted(port: &Port, scratch: &mut Scratch) -> Step<()> {
    let (packet, side, vni) = (&scratch.packet, &mut scratch.here, scratch.vni);
    let (from, source) = (packet.source, packet.from);
    if from.is_group() || from.is_unspecified() || from.is_loopback() {
        return refuse(DropReason::TunnelSource);
    }
    if from.is_link_local() && from != Address::link_local(source) {
        return refuse(DropReason::LinkLocal);
    }
    let here = subnet_of(vni, port, packet.destination);
    let mut shown = source;
    let mut is_routed = false;
    if let Some((_, subnet)) = here {
        if is_for_gateway(subnet, source) || is_gateway(subnet, from) {
            return refuse(DropReason::TunnelSource);
        }
        is_routed = source.has_prefix(DVR_MAC_PREFIX) || set(&subnet.dvr_mac) == Some(source);
        if is_routed {
            shown = set(&subnet.gateway_mac).unwrap_or(source);
        }
    }
    let by = Origin {
        host: scratch.host,
        strict: NODE.get(&0).is_some_and(|node| node.flags & node_flags::STRICT != 0),
    };
    if !is_routed && let Some(endpoint) = by_mac(vni, source) {
        by.holds(endpoint)?;
    }
    // A routed packet comes in the VNI of its destination, so that its source is known in another.
    let mut slot = epoch_slot(vni, &from.bytes());
    let mut epoch = flow::epoch(slot);
    let mut endpoint = by_ip(vni, from);
    if endpoint.is_none()
        && let Some((index, _)) = here
    {
        let from = again(&packet.source);
        if let Some(subnet) = connected(index, from) {
            if is_gateway(subnet, from) {
                return refuse(DropReason::TunnelSource);
            }
            slot = epoch_slot(subnet.vni, &from.bytes());
            epoch = flow::epoch(slot);
            endpoint = by_ip(subnet.vni, from);
        }
    }
    side.members = 0;
    if let Some(endpoint) = endpoint {
        by.holds(endpoint)?;
        side.members = endpoint.members;
    }
    if side.found != VALID || side.flow.flags & flow_flags::OUT == 0 {
        side.flow.remote_slot = slot;
        side.flow.remote_epoch = epoch;
    }
    let peer = scratch.peer;
    if side.found == VALID
        && side.flow.flags & flow_flags::IN != 0
        && Mac::new(&side.flow.arriving_mac) == source
        && Address::new(&side.flow.peer) == peer
        && Mac::new(&side.flow.shown_mac) == shown
    {
        return Ok(());
    }
    side.changed = 1;
    side.flow.flags |= flow_flags::IN;
    side.flow.arriving_mac = source.bytes();
    side.flow.shown_mac = shown.bytes();
    side.flow.peer = peer.bytes();
    Ok(())
}

/// The host that a tunnel frame is from, and whether admission is strict.
#[derive(Clone, Copy)]
struct Origin {
    host: u32,
    strict: bool,
}

impl Origin {
    /// Refuses the source at `endpoint` if it is here, or under strict admission elsewhere than on the host.
    #[inline(always)]
    fn holds(self, endpoint: &Endpoint) -> Step<()> {
        if endpoint.flags & endpoint_flags::LOCAL != 0 {
            refuse(DropReason::TunnelSource)
        } else if self.strict && endpoint.target != self.host {
            refuse(DropReason::WrongVtep)
        } else {
            Ok(())
        }
    }
}

/// The subnet, of those that the router of subnet `index` connects, that an address is in.
#[inline(always)]
fn connected(index: u32, ip: Address) -> Option<&'static Subnet> {
    let route = ROUTES.get(&RouteKey { prefix_len: 160, subnet: index, ip: ip.bytes() })?;
    let is_v4 = route.flags & route_flags::V6 == 0;
    if route.flags & route_flags::CONNECTED == 0 || is_v4 != ip.is_v4() {
        return None;
    }
    subnet(route.subnet, route.subnet_generation).ok()
}

/// The subnet, with its index, in which a packet for that address reaches the guest behind `port`: the address's own, or
/// the guest's where the guest is the next hop to an address outside.
#[inline(always)]
fn subnet_of(vni: u32, port: &Port, ip: Address) -> Option<(u32, &'static Subnet)> {
    let own = Reference { index: port.subnet, generation: port.subnet_generation };
    let is_own = ip == Address::new(&port.ip) && vni == port.vni;
    let found = if is_own {
        own
    } else {
        match SUBNET_PREFIXES.get(&SubnetPrefixKey { prefix_len: 160, vni, ip: ip.bytes() }) {
            Some(reference) => *reference,
            None if vni == port.vni => own,
            None => return None,
        }
    };
    Some((found.index, subnet(found.index, found.generation).ok()?))
}

/// Hands the inner frame to the guest, whose routing may show a source MAC of its own.
#[inline(always)]
fn hand_over<C: Context>(packet: C, guest: &Port, source: Mac, shown: Mac) -> Step<i32> {
    if shown != source {
        packet.store(6, &shown.bytes())?;
    }
    Ok(packet.send(guest.ifindex).ok_or(DropReason::NoDevice)?)
}
