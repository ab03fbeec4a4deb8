//! Where a guest's packet goes: by MAC within its subnet, or by the distributed router if it is for its gateway's MAC.

use ncm_common::{
    DVR_MAC_PREFIX,
    drops::DropReason,
    tables::{
        Endpoint, Route, RouteKey, Subnet, SubnetPrefixKey, endpoint_flags, epoch_slot, flow_flags, mac_slot,
        route_flags, subnet_flags,
    },
};

use super::{Ended, Step, admit::Sender, answer, by_ip, by_mac, flow, refuse, set, subnet};
use crate::{
    context::Context,
    headers::{Address, Mac, Packet},
    scratch::{Scratch, Side},
    tables::{ROUTES, SUBNET_PREFIXES},
};

/// Source MAC of a routed frame that leaves this host, where the router names none.
const DEFAULT_DVR_MAC: [u8; 6] =
    [DVR_MAC_PREFIX[0], DVR_MAC_PREFIX[1], DVR_MAC_PREFIX[2], DVR_MAC_PREFIX[3], DVR_MAC_PREFIX[4], 0];

/// Whether a frame to that MAC is for the subnet's gateway.
#[inline(always)]
pub fn is_for_gateway(subnet: &Subnet, mac: Mac) -> bool {
    subnet.flags & subnet_flags::GATEWAY != 0 && mac == Mac::new(&subnet.gateway_mac)
}

/// Whether an address is the subnet's gateway.
#[inline(always)]
pub fn is_gateway(subnet: &Subnet, ip: Address) -> bool {
    subnet.flags & subnet_flags::GATEWAY != 0
        && (ip == Address::new(&subnet.gateway_ip)
            || ip == Address::link_local(Mac::new(&subnet.gateway_mac)))
}

/// Notes in `scratch.here` where the packet goes; or answers it, if that is to a gateway. Its subnet is in `scratch`.
#[inline(never)]
pub fn resolve<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> u32 {
    Ended::number(decide(packet, sender, scratch))
}

#[inline(always)]
fn decide<C: Context>(packet: C, sender: Sender, scratch: &mut Scratch) -> Step<()> {
    let from = subnet(scratch.subnet, scratch.subnet_generation)?;
    let side = &mut scratch.here;
    side.flow.local_mac = scratch.packet.from.bytes();
    side.flow.via_mac = scratch.packet.to.bytes();
    side.changed = 1;
    let endpoint = if is_for_gateway(from, scratch.packet.to) {
        match routed(from, scratch)? {
            Some(endpoint) => endpoint,
            None => return answer::ping(packet, sender, &scratch.packet),
        }
    } else {
        separate(sender, scratch.subnet, from.vni, &scratch.packet)?;
        switched(from, &scratch.packet, side)?
    };
    let side = &mut scratch.here;
    if endpoint.flags & endpoint_flags::LOCAL != 0 {
        if endpoint.target == sender.index {
            return refuse(DropReason::Hairpin);
        }
        side.flow.flags |= flow_flags::LOCAL;
    }
    side.flow.flags |= flow_flags::OUT;
    side.flow.target = endpoint.target;
    side.flow.target_generation = endpoint.generation;
    Ok(())
}

/// Refuses an address that a guest in `own` reaches by its router only: that of another subnet of its VNI (and not of its
/// port's). An address in no subnet is reached through a guest that routes.
#[inline(always)]
fn separate(sender: Sender, own: u32, vni: u32, packet: &Packet) -> Step<()> {
    let key = SubnetPrefixKey { prefix_len: 160, vni, ip: packet.destination.bytes() };
    match SUBNET_PREFIXES.get(&key) {
        Some(found) if found.index != own && found.index != sender.port.subnet => {
            refuse(DropReason::OtherSubnet)
        }
        _ => Ok(()),
    }
}

/// The endpoint of a frame's destination MAC.
#[inline(always)]
fn switched(from: &Subnet, packet: &Packet, side: &mut Side) -> Step<&'static Endpoint> {
    let vni = from.vni;
    // Epochs are read before what they are of: what changes in between has the flow decided anew.
    let (ip_slot, mac_slot) =
        (epoch_slot(vni, &packet.destination.bytes()), mac_slot(vni, &packet.to.bytes()));
    let (ip_epoch, mac_epoch) = (flow::epoch(ip_slot), flow::epoch(mac_slot));
    // Where the address has that MAC, it is the address that leads on, and its change that has the flow decided anew: of several
    // guests with one MAC each has its own place. Else it is the MAC; and who is no guest that has the address is none of its
    // groups' members.
    let own = by_ip(vni, packet.destination).filter(|own| Mac::new(&own.mac) == packet.to);
    (side.members, side.flow.remote_slot, side.flow.remote_epoch) = match own {
        Some(own) => (own.members, ip_slot, ip_epoch),
        None => (0, mac_slot, mac_epoch),
    };
    side.flow.vni = vni;
    side.flow.to_mac = side.flow.via_mac;
    side.flow.from_mac = side.flow.local_mac;
    side.flow.flags &= !(flow_flags::LOCAL | flow_flags::ROUTED);
    match own {
        Some(own) if own.flags & (endpoint_flags::LOCAL | endpoint_flags::L2) != 0 => Ok(own),
        _ => by_mac(vni, packet.to).ok_or(Ended::unknown(DropReason::UnknownMac)),
    }
}

/// The endpoint that a packet for its gateway's MAC is routed to; `None` if it is to a gateway itself.
#[inline(always)]
fn routed(from: &Subnet, scratch: &mut Scratch) -> Step<Option<&'static Endpoint>> {
    let (packet, side) = (&scratch.packet, &mut scratch.here);
    let destination = packet.destination;
    if from.flags & subnet_flags::ROUTED == 0 {
        return refuse(if is_gateway(from, destination) {
            DropReason::GatewayUnserved
        } else {
            DropReason::NoRoute
        });
    }
    if destination.is_link_local() && is_gateway(from, destination) {
        return Ok(None);
    }
    // Link-local addresses are not routed (RFC 4291, section 2.5.6).
    if destination.is_link_local() || packet.source.is_link_local() && !is_gateway(from, destination) {
        return refuse(DropReason::NoRoute);
    }
    let route = ROUTES
        .get(&RouteKey { prefix_len: 160, subnet: scratch.subnet, ip: destination.bytes() })
        .filter(|route| (route.flags & route_flags::V6 != 0) == (packet.family == 6))
        .ok_or(DropReason::NoRoute)?;
    let to = subnet(route.subnet, route.subnet_generation)?;
    let connected = route.flags & route_flags::CONNECTED != 0;
    if connected && is_gateway(to, destination) {
        return Ok(None);
    }
    let endpoint = if connected {
        let slot = epoch_slot(to.vni, &destination.bytes());
        side.flow.remote_slot = slot;
        side.flow.remote_epoch = flow::epoch(slot);
        by_ip(to.vni, destination)
            .filter(|endpoint| endpoint.flags & (endpoint_flags::LOCAL | endpoint_flags::L3) != 0)
    } else {
        next_hop(to.vni, route, side)
    };
    let endpoint = endpoint.ok_or(Ended::unknown(DropReason::UnknownDestination))?;
    side.members = if connected { endpoint.members } else { 0 };
    side.flow.vni = to.vni;
    side.flow.to_mac = endpoint.mac;
    let here = endpoint.flags & endpoint_flags::LOCAL != 0;
    side.flow.from_mac = if here {
        set(&to.gateway_mac).unwrap_or(Mac::new(&from.gateway_mac))
    } else {
        set(&from.dvr_mac).unwrap_or(const { Mac::new(&DEFAULT_DVR_MAC) })
    }
    .bytes();
    side.flow.flags = side.flow.flags & !flow_flags::LOCAL | flow_flags::ROUTED;
    Ok(Some(endpoint))
}

/// The endpoint of a route's next hop, by the MAC that the controller gave or else by its address.
#[inline(always)]
fn next_hop(vni: u32, route: &Route, side: &mut Side) -> Option<&'static Endpoint> {
    if let Some(mac) = set(&route.next_hop_mac) {
        let slot = mac_slot(vni, &mac.bytes());
        let epoch = flow::epoch(slot);
        if let Some(endpoint) = by_mac(vni, mac) {
            side.flow.remote_slot = slot;
            side.flow.remote_epoch = epoch;
            return Some(endpoint);
        }
    }
    let slot = epoch_slot(vni, &route.next_hop_ip);
    side.flow.remote_slot = slot;
    side.flow.remote_epoch = flow::epoch(slot);
    by_ip(vni, Address::new(&route.next_hop_ip))
}
