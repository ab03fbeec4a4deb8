//! The kernel's main routing table and its next-hop objects, kept as the kernel reports them: which next hops lead to
//! an address.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::message::{Attributes, Message, Request, flags, u16_at, u32_at};

pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_ROUTE` and `RTNLGRP_NEXTHOP`.
pub(crate) const GROUP_IPV4_ROUTE: u32 = 7;
/// See [`GROUP_IPV4_ROUTE`].
pub(crate) const GROUP_IPV6_ROUTE: u32 = 11;
/// See [`GROUP_IPV4_ROUTE`].
pub(crate) const GROUP_NEXTHOP: u32 = 32;

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;
/// Bytes of `struct rtmsg`, `struct nhmsg` and `struct rtnexthop`.
const ROUTE_HEADER: usize = 12;
const NEXTHOP_HEADER: usize = 8;
const MULTIPATH_HEADER: usize = 8;
/// `RT_TABLE_MAIN` and `RTN_UNICAST`.
const TABLE_MAIN: u32 = 254;
const UNICAST: u8 = 1;
/// `RTM_F_CLONED`: a cache entry, not a route.
const CLONED: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// A destination prefix; its address has no bits set beyond its length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct Prefix {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
}

impl Prefix {
    /// The prefix of that length around `address`.
    pub(crate) fn around(address: IpAddr, length: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Self { address, length }
    }

    /// Its last address.
    pub(crate) fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => {
                let rest = u32::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | rest))
            }
            IpAddr::V6(v6) => {
                let rest = u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | rest))
            }
        }
    }
}

/// One way that a route names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct Way {
    /// Interface.
    pub(crate) interface: u32,
    /// Gateway; `None` if the destination itself is on the link.
    pub(crate) gateway: Option<IpAddr>,
    /// Share of the flows, from 1.
    pub(crate) weight: u16,
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    Ways(Vec<Way>),
    /// A next-hop object.
    Object(u32),
    /// The kernel discards such packets, or answers them with an error.
    Nowhere,
}

/// A route of one prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) metric: u32,
    /// MTU that the route sets, in bytes.
    pub(crate) mtu: Option<u32>,
    pub(crate) target: Target,
}

/// A next-hop object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Object {
    Way(Way),
    /// Objects with their weights.
    Group(Vec<(u32, u16)>),
    Nowhere,
}

/// What a message about routes or next-hop objects says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RouteMessage {
    New { prefix: Prefix, route: Route, replace: bool, append: bool },
    Gone { prefix: Prefix, route: Route },
    NewObject { id: u32, object: Object },
    ObjectGone { id: u32 },
}

/// Requests for all routes of the main table, and for all next-hop objects.
pub(crate) fn dump_requests() -> [Request; 3] {
    let routes = |family| {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family;
        header[4] = TABLE_MAIN as u8;
        Request::new(RTM_GETROUTE, 0, &header)
    };
    [routes(AF_INET), routes(AF_INET6), Request::new(RTM_GETNEXTHOP, 0, &[0; NEXTHOP_HEADER])]
}

/// Reads a message about a route of the main table or about a next-hop object.
pub(crate) fn parse(message: &Message<'_>) -> Option<RouteMessage> {
    match message.kind {
        RTM_NEWROUTE | RTM_DELROUTE => parse_route(message),
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => parse_object(message),
        _ => None,
    }
}

fn parse_route(message: &Message<'_>) -> Option<RouteMessage> {
    let [family, length, _, tos, table, _, _, kind, ..] = *message.payload.first_chunk::<ROUTE_HEADER>()?;
    let attributes = Attributes::after(message.payload, ROUTE_HEADER);
    let number = |kind| attributes.find(kind).and_then(|value| u32_at(value, 0));
    let cloned = u32_at(message.payload, 8)? & CLONED != 0;
    if !matches!(family, AF_INET | AF_INET6)
        || tos != 0
        || cloned
        || number(RTA_TABLE).unwrap_or(table.into()) != TABLE_MAIN
    {
        return None;
    }
    let destination = match attributes.find(RTA_DST) {
        Some(value) => address(family, value)?,
        None if family == AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let prefix = Prefix::around(destination, length);
    if is_of_link(prefix) {
        return None;
    }
    let metrics = Attributes(attributes.find(RTA_METRICS).unwrap_or_default());
    let target = match (kind, number(RTA_NH_ID), attributes.find(RTA_MULTIPATH)) {
        (_, Some(id), _) => Target::Object(id),
        (UNICAST, None, Some(value)) => Target::Ways(multipath(family, value)),
        (UNICAST, None, None) => {
            let gateway = gateway(family, attributes);
            Target::Ways(
                number(RTA_OIF).map(|interface| Way { interface, gateway, weight: 1 }).into_iter().collect(),
            )
        }
        _ => Target::Nowhere,
    };
    let route = Route {
        metric: number(RTA_PRIORITY).unwrap_or_default(),
        mtu: metrics.find(RTAX_MTU).and_then(|value| u32_at(value, 0)).filter(|mtu| *mtu != 0),
        target,
    };
    Some(match message.kind {
        RTM_NEWROUTE => RouteMessage::New {
            prefix,
            route,
            replace: message.flags & flags::REPLACE != 0,
            append: message.flags & flags::APPEND != 0,
        },
        _ => RouteMessage::Gone { prefix, route },
    })
}

/// Whether a route is one that each interface has for its own link, and that leads to no remote host: fe80::/10 and ff00::/8.
fn is_of_link(prefix: Prefix) -> bool {
    match prefix.address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => {
            prefix.length >= 8 && (address.is_multicast() || address.is_unicast_link_local())
        }
    }
}

/// The ways of a route over several, in ascending order: a notification begins with the one that it is about.
fn multipath(family: u8, mut value: &[u8]) -> Vec<Way> {
    let mut ways = Vec::new();
    while let (Some(length), Some(hops), Some(interface)) = (u16_at(value, 0), value.get(3), u32_at(value, 4))
    {
        let Some(entry) = value.get(MULTIPATH_HEADER..length.into()) else { break };
        let gateway = gateway(family, Attributes(entry));
        ways.push(Way { interface, gateway, weight: u16::from(*hops) + 1 });
        value = value.get((usize::from(length) + 3) & !3..).unwrap_or_default();
    }
    ways.sort_unstable();
    ways
}

/// The gateway; RTA_VIA carries one of the other family (RFC 8950).
fn gateway(family: u8, attributes: Attributes<'_>) -> Option<IpAddr> {
    if let Some(value) = attributes.find(RTA_GATEWAY) {
        return address(family, value).filter(|gateway| !gateway.is_unspecified());
    }
    let via = attributes.find(RTA_VIA)?;
    address(u8::try_from(u16_at(via, 0)?).ok()?, via.get(2..)?)
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::from(*value.first_chunk::<4>()?)),
        AF_INET6 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
        _ => None,
    }
}

fn parse_object(message: &Message<'_>) -> Option<RouteMessage> {
    let family = *message.payload.first()?;
    let attributes = Attributes::after(message.payload, NEXTHOP_HEADER);
    let id = u32_at(attributes.find(NHA_ID)?, 0)?;
    if message.kind == RTM_DELNEXTHOP {
        return Some(RouteMessage::ObjectGone { id });
    }
    let object = if let Some(value) = attributes.find(NHA_GROUP) {
        let member = |entry: &[u8; 8]| {
            let [low, high] = [entry[4], entry[5]];
            Some((u32_at(entry, 0)?, u16::from_le_bytes([low, high]).saturating_add(1)))
        };
        Object::Group(value.as_chunks::<8>().0.iter().filter_map(member).collect())
    } else if let Some(interface) = attributes.find(NHA_OIF).and_then(|value| u32_at(value, 0)) {
        let gateway = attributes.find(NHA_GATEWAY).and_then(|value| address(family, value));
        Object::Way(Way { interface, gateway, weight: 1 })
    } else {
        Object::Nowhere
    };
    Some(RouteMessage::NewObject { id, object })
}

/// What the addresses around a change have to be looked up anew for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Affected {
    Nothing,
    Within(Prefix),
    Everything,
    /// The table and the kernel's differ: only a dump helps.
    Unknown,
}

/// The routes of the main table and the next-hop objects.
#[derive(Default, Debug)]
pub(crate) struct RouteTable {
    /// By prefix length, longest last; the routes of a prefix in the kernel's order of preference.
    by_length: BTreeMap<u8, HashMap<IpAddr, Vec<Route>>>,
    objects: HashMap<u32, Object>,
}

impl RouteTable {
    /// Takes a message of a dump in, which lists the routes of a prefix in their order.
    pub(crate) fn load(&mut self, message: RouteMessage) {
        match message {
            RouteMessage::New { prefix, route, .. } => {
                insert(self.at(prefix), route, false, true);
            }
            other => {
                let _ = self.apply(other);
            }
        }
    }

    fn at(&mut self, prefix: Prefix) -> &mut Vec<Route> {
        self.by_length.entry(prefix.length).or_default().entry(prefix.address).or_default()
    }

    /// Takes a notification in.
    ///
    /// The kernel joins IPv6 routes of one prefix and metric into one over several ways, if they are of certain kinds: what
    /// becomes of two such routes, only a dump tells.
    pub(crate) fn apply(&mut self, message: RouteMessage) -> Affected {
        match message {
            RouteMessage::New { prefix, route, .. } if prefix.address.is_ipv6() => {
                let routes = self.at(prefix);
                if routes.contains(&route) {
                    Affected::Nothing
                } else if routes.iter().any(|held| held.metric == route.metric) {
                    Affected::Unknown
                } else {
                    insert(routes, route, false, true);
                    Affected::Within(prefix)
                }
            }
            RouteMessage::New { prefix, route, replace, append } => {
                if insert(self.at(prefix), route, replace, append) {
                    Affected::Within(prefix)
                } else {
                    Affected::Nothing
                }
            }
            RouteMessage::Gone { prefix, route } => self.remove(prefix, &route),
            RouteMessage::NewObject { id, object } => {
                if self.objects.get(&id) == Some(&object) {
                    return Affected::Nothing;
                }
                self.objects.insert(id, object);
                Affected::Everything
            }
            // The kernel removes the routes over it as well, without a word.
            RouteMessage::ObjectGone { id } => {
                self.objects.remove(&id);
                Affected::Unknown
            }
        }
    }

    fn remove(&mut self, prefix: Prefix, route: &Route) -> Affected {
        let Some(same_length) = self.by_length.get_mut(&prefix.length) else { return Affected::Unknown };
        let Some(routes) = same_length.get_mut(&prefix.address) else { return Affected::Unknown };
        let Some(position) = routes.iter().position(|held| held == route) else { return Affected::Unknown };
        routes.remove(position);
        if routes.is_empty() {
            same_length.remove(&prefix.address);
        }
        if same_length.is_empty() {
            self.by_length.remove(&prefix.length);
        }
        Affected::Within(prefix)
    }

    /// The ways to an address, and the MTU that the route sets. Like the kernel, passes over routes of which no way
    /// is over an interface that is up (by `is_up`).
    pub(crate) fn lookup(
        &self,
        address: IpAddr,
        is_up: impl Fn(u32) -> bool,
    ) -> Option<(Vec<Way>, Option<u32>)> {
        for (length, prefixes) in self.by_length.iter().rev() {
            for route in prefixes.get(&Prefix::around(address, *length).address).into_iter().flatten() {
                let mut ways = match &route.target {
                    Target::Nowhere => return None,
                    Target::Ways(ways) => ways.clone(),
                    Target::Object(id) => match self.objects.get(id) {
                        Some(Object::Nowhere) => return None,
                        Some(Object::Way(way)) => vec![*way],
                        Some(Object::Group(members)) => self.members(members),
                        None => continue,
                    },
                };
                if ways.iter().any(|way| is_up(way.interface)) {
                    ways.sort_unstable();
                    return Some((ways, route.mtu));
                }
            }
        }
        None
    }

    fn members(&self, members: &[(u32, u16)]) -> Vec<Way> {
        let way = |(id, weight): &(u32, u16)| match self.objects.get(id) {
            Some(Object::Way(way)) => Some(Way { weight: *weight, ..*way }),
            _ => None,
        };
        members.iter().filter_map(way).collect()
    }
}

/// Puts a route where the kernel has it among those of its prefix; false if nothing changes.
fn insert(routes: &mut Vec<Route>, route: Route, replace: bool, append: bool) -> bool {
    let start = routes.partition_point(|held| held.metric < route.metric);
    let end = routes.partition_point(|held| held.metric <= route.metric);
    if replace && start < end {
        let changed = routes[start] != route;
        routes[start] = route;
        return changed;
    }
    if routes[start..end].contains(&route) {
        return false;
    }
    routes.insert(if append { end } else { start }, route);
    true
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
