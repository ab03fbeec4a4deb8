//! The distributed router: a packet for its subnet's gateway is answered or sent on to the subnet that its route names.

use ncm_common::{
    DVR_MAC_PREFIX,
    drops::DropReason,
    tables::{Endpoint, Route, RouteKey, Subnet, endpoint_flags, route_flags, subnet_flags},
};

use super::{
    Step, Verdict,
    admit::Sender,
    answer, by_ip, by_mac,
    deliver::{Hop, Packet, Routed, deliver},
    guest::set,
    subnet,
};
use crate::{
    context::Context,
    headers::{Ipv4Address, Mac},
    tables::ROUTES,
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
pub fn is_gateway(subnet: &Subnet, ip: Ipv4Address) -> bool {
    subnet.flags & subnet_flags::GATEWAY != 0 && ip == Ipv4Address::of_mapped(&subnet.gateway_ip)
}

/// Routes a packet that came from the subnet `from`, at `from_index`, and is for its gateway's MAC.
#[inline(always)]
pub fn route<C: Context>(
    packet: C,
    sender: Sender,
    from_index: u32,
    from: &'static Subnet,
    whole: &Packet<'_>,
) -> Step<Verdict> {
    let destination = whole.ip.destination;
    if from.flags & subnet_flags::ROUTED == 0 {
        return Err(if is_gateway(from, destination) {
            DropReason::GatewayUnserved
        } else {
            DropReason::NoRoute
        });
    }
    let route = ROUTES
        .get(&RouteKey { prefix_len: 160, subnet: from_index, ip: destination.mapped() })
        .ok_or(DropReason::NoRoute)?;
    let to = subnet(route.subnet, route.subnet_generation)?;
    let connected = route.flags & route_flags::CONNECTED != 0;
    if connected && is_gateway(to, destination) {
        return answer::gateway(packet, sender, whole);
    }
    if whole.ip.ttl <= 1 {
        return answer::time_exceeded(packet, sender, from, whole);
    }
    let endpoint = if connected { reached(to.vni, destination) } else { next_hop(to.vni, route) }
        .ok_or(DropReason::UnknownDestination)?;
    let routed = Routed {
        destination: Mac::new(&endpoint.mac),
        source_here: set(&to.gateway_mac).unwrap_or(Mac::new(&from.gateway_mac)),
        source_remote: set(&from.dvr_mac).unwrap_or(const { Mac::new(&DEFAULT_DVR_MAC) }),
    };
    deliver(packet, sender, whole, &Hop { endpoint, vni: to.vni, routed: Some(routed) })
}

/// The endpoint of an address in a connected subnet, if routing may reach it.
#[inline(always)]
fn reached(vni: u32, ip: Ipv4Address) -> Option<&'static Endpoint> {
    by_ip(vni, ip).filter(|endpoint| endpoint.flags & (endpoint_flags::LOCAL | endpoint_flags::L3) != 0)
}

/// The endpoint of a route's next hop, by the MAC that the controller gave or else by its address.
#[inline(always)]
fn next_hop(vni: u32, route: &Route) -> Option<&'static Endpoint> {
    set(&route.next_hop_mac)
        .and_then(|mac| by_mac(vni, mac))
        .or_else(|| by_ip(vni, Ipv4Address::of_mapped(&route.next_hop_ip)))
}
