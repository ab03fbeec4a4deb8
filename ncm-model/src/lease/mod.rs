//! What guests are told about their network: gathered from subnets, ports, bindings and routers at the moment somebody asks.

mod facts;
mod names;
pub mod options;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use ncm_common::SERVER_MAC;

pub use facts::{Gateway, LeaseFacts, LeaseV4, LinkV6, eui64, link_local, split_name};
pub use options::{Extras, Family};

use crate::apply::{Binding, Outcome, Refusal};
use crate::goalstate::parse;
use crate::model::Model;
use crate::resources::{PortSlot, Subnet, address_flags};
use crate::wire::SubnetConfiguration;

/// Most routes that a guest is told; a message has room for fewer.
const MOST_ROUTES: usize = 256;

/// What the subnet's options come to.
fn extras(config: &SubnetConfiguration, net: &IpNet) -> Result<Extras, String> {
    let family = if matches!(net, IpNet::V4(_)) { Family::V4 } else { Family::V6 };
    Extras::read(family, config.extra_dhcp_options.iter().map(|option| (&*option.name, &*option.value)))
}

/// Refuses a subnet whose guests could not be told what it says.
pub(crate) fn check_options(config: &SubnetConfiguration, net: &IpNet) -> Result<(), Refusal> {
    extras(config, net).map_err(|cause| Outcome::invalid(format!("extra_dhcp_options: {cause}")))?;
    let mut entries = config.dns_entry_list.iter().map(|dns| dns.entry.trim());
    match entries.find(|entry| !entry.is_empty() && parse::ip(entry).is_none()) {
        Some(entry) => Err(Outcome::invalid(format!("dns_entry_list: \"{entry}\" is no IP address"))),
        None => Ok(()),
    }
}

fn name_servers(subnet: &Subnet) -> impl Iterator<Item = IpAddr> {
    subnet.config.dns_entry_list.iter().filter_map(|dns| parse::ip(dns.entry.trim()))
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

fn v6(ip: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(ip) = ip { Some(ip) } else { None }
}

/// A subnet of a port, with its binding for the port's MAC.
struct Place<'a> {
    slot: u32,
    subnet: &'a Subnet,
    routed: bool,
    binding: Option<&'a Binding>,
}

impl Model {
    /// What the guest behind the port with that index may be told; `None` if there is no such port.
    #[must_use]
    pub fn lease_facts(&self, port_index: u32) -> Option<LeaseFacts> {
        let port = self.ports.get(*self.port_by_index.get(&port_index)?).filter(|port| port.live)?;
        let places = self.places(port);
        let interface = self.interfaces.get(&port.interface).and_then(|interface| interface.facts);
        let mtu = interface.map_or(0, |facts| u16::try_from(facts.mtu).unwrap_or(u16::MAX));
        let links = places.iter().filter_map(|place| self.link(port, place, &places));
        Some(LeaseFacts { mac: port.mac, mtu, v4: self.lease_v4(&places), v6: links.collect() })
    }

    /// Indices of the ports whose guests get router advertisements.
    #[must_use]
    pub fn advertised_ports(&self) -> Vec<u32> {
        let has_v6 = |port: &PortSlot| {
            self.addresses_from(port.first).any(|(_, address)| address.has(address_flags::V6))
        };
        let ports =
            self.port_by_index.iter().filter_map(|(index, slot)| Some((*index, self.ports.get(*slot)?)));
        ports.filter(|(_, port)| port.live && has_v6(port)).map(|(index, _)| index).collect()
    }

    /// Rises with every change of what is held.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The subnets of a port, in the order of its fixed addresses.
    fn places(&self, port: &PortSlot) -> Vec<Place<'_>> {
        let mut places: Vec<Place<'_>> = Vec::new();
        for fixed in &port.config.fixed_ips {
            let Some(slot) = self.subnet_by_id.get(&fixed.subnet_id).copied() else { continue };
            let subnet = &self.subnets[slot];
            let (Some(held), Some(live)) = (subnet.held.as_deref(), subnet.live) else { continue };
            if places.iter().any(|place| place.slot == slot) {
                continue;
            }
            let binding = self.bindings.get(&(fixed.subnet_id.clone(), port.mac));
            places.push(Place { slot, subnet: held, routed: live.router.is_some(), binding });
        }
        places
    }

    /// The lease of the first binding that has one. Its subnet is the one that the address is in: a binding may be of the
    /// port's IPv6 subnet and give an IPv4 address all the same.
    fn lease_v4(&self, places: &[Place<'_>]) -> Option<LeaseV4> {
        let (at, binding, address) = places
            .iter()
            .find_map(|place| place.binding.and_then(|binding| Some((place, binding, binding.v4?))))?;
        let net_of = |place: &Place<'_>| if let IpNet::V4(net) = place.subnet.net { Some(net) } else { None };
        let holds = |place: &&Place<'_>| net_of(place).is_some_and(|net| net.contains(&address));
        let place = places.iter().find(holds).unwrap_or(at);
        let net = net_of(place)?;
        let subnet = place.subnet;
        let gateway = subnet.gateway.and_then(|(ip, mac)| Some(Gateway { ip: v4(ip)?, mac }));
        Some(LeaseV4 {
            address,
            net,
            gateway,
            dns: name_servers(subnet).filter_map(v4).collect(),
            host_name: binding.config.port_host_name.clone(),
            routes: self.routes_v4(place.slot),
            extras: extras(&subnet.config, &subnet.net).unwrap_or_default(),
        })
    }

    /// The rules of a subnet's router that are programmed for it.
    fn routes_v4(&self, slot: u32) -> Vec<(Ipv4Net, Ipv4Addr)> {
        let router = self.subnets[slot].live.and_then(|live| live.router);
        let Some(router) = router.and_then(|router| self.routers.get(router)) else { return Vec::new() };
        let mut routes: Vec<(Ipv4Net, Ipv4Addr)> = Vec::new();
        for rule in router.tables.get(&slot).into_iter().flatten() {
            let (IpNet::V4(net), Some(IpAddr::V4(next_hop))) = (rule.net, rule.next_hop) else { continue };
            let known = routes.iter().rev().any(|(other, _)| *other == net);
            let connected = router.prefixes.contains_key(&rule.net);
            if !known && !connected && router.member_of(IpAddr::V4(next_hop)).is_some() {
                routes.push((net, next_hop));
            }
            if routes.len() == MOST_ROUTES {
                break;
            }
        }
        routes
    }

    /// An IPv6 subnet of a port, with its lease: of the subnet's own binding, or of another of the port's that gives an
    /// address in it.
    fn link(&self, port: &PortSlot, place: &Place<'_>, places: &[Place<'_>]) -> Option<LinkV6> {
        let IpNet::V6(net) = place.subnet.net else { return None };
        let own = place.binding.filter(|binding| binding.v6.is_some());
        let others = places.iter().filter_map(|other| other.binding);
        let binding =
            own.or_else(|| others.into_iter().find(|other| other.v6.is_some_and(|ip| net.contains(&ip))));
        let id = &self.subnets[place.slot].id;
        let fixed = port.config.fixed_ips.iter().filter(|fixed| fixed.subnet_id == *id);
        Some(LinkV6 {
            net,
            gateway_mac: place.subnet.gateway.map_or(SERVER_MAC, |(_, mac)| mac),
            routed: place.routed && place.subnet.gateway.is_some(),
            fixed: fixed.filter_map(|fixed| v6(parse::ip(&fixed.ip_address)?)).collect(),
            lease: binding.and_then(|binding| binding.v6),
            dns: name_servers(place.subnet).filter_map(v6).collect(),
            host_name: binding.map(|binding| binding.config.port_host_name.clone()).unwrap_or_default(),
            extras: extras(&place.subnet.config, &place.subnet.net).unwrap_or_default(),
        })
    }
}
