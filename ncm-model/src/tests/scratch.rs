//! The tables that follow from the held states, computed anew and simply: no indices of what depends on what, no order. From
//! the model it takes the configurations, ranks, and which index has been given to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use ncm_common::tables::{
    Endpoint, IpKey, MEMBERS, MacKey, NO_RULES, Name, NameKey, Port, Reference, Route, RouteKey, Source,
    SourceKey, SourcePrefixKey, Subnet, SubnetPrefixKey, Vni, VtepKey, endpoint_flags, name_kinds,
    port_flags, route_flags, subnet_flags,
};

use super::kernel::Kernel;
use crate::goalstate::parse;
use crate::model::Model;
use crate::resources::{Neighbour, neighbour_flags};
use crate::settings::MissingGroup;
use crate::wire::port_configuration::AllowAddressPair;
use crate::wire::{NeighborConfiguration, RouterConfiguration};

type Rank = (u32, u64);
type Claims<K> = BTreeMap<K, Vec<(Rank, u16, Endpoint)>>;

#[derive(Clone)]
struct LiveSubnet {
    vni: u32,
    net: IpNet,
    reference: Reference,
    router: Option<String>,
}

struct World<'a> {
    model: &'a Model,
    kernel: Kernel,
    subnets: BTreeMap<String, LiveSubnet>,
    routers: BTreeMap<String, RouterConfiguration>,
    by_mac: Claims<MacKey>,
    by_ip: Claims<IpKey>,
}

pub(super) fn compile(model: &Model) -> Kernel {
    let mut world = World {
        model,
        kernel: Kernel::default(),
        subnets: BTreeMap::new(),
        routers: BTreeMap::new(),
        by_mac: BTreeMap::new(),
        by_ip: BTreeMap::new(),
    };
    world.find_routers();
    world.find_subnets();
    world.write_subnets();
    world.write_routes();
    world.write_ports();
    world.write_neighbours();
    world.name_policy();
    let mut kernel = world.kernel;
    kernel.endpoints_mac = world.by_mac.into_iter().map(|(key, claims)| (key, winner(claims))).collect();
    kernel.endpoints_ip = world.by_ip.into_iter().map(|(key, claims)| (key, winner(claims))).collect();
    kernel
}

fn winner(mut claims: Vec<(Rank, u16, Endpoint)>) -> Endpoint {
    claims.sort_by_key(|(rank, ..)| *rank);
    let flags = claims.iter().fold(0, |all, (_, flags, _)| all | flags);
    let mut endpoint = claims.last().unwrap().2;
    endpoint.flags |= flags;
    endpoint
}

/// An address as tables have it.
fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The length of a prefix as tables have it.
fn length(net: IpNet) -> u32 {
    u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 }
}

fn route_key(subnet: u32, net: IpNet) -> RouteKey {
    RouteKey { prefix_len: 32 + length(net), subnet, ip: mapped(net.network()) }
}

fn route_version(net: IpNet) -> u32 {
    if net.addr().is_ipv4() { 0 } else { route_flags::V6 }
}

impl World<'_> {
    fn find_routers(&mut self) {
        for (id, slot) in &self.model.router_by_id {
            self.routers.insert(id.clone(), self.model.routers[*slot].config.clone());
        }
    }

    fn name(&mut self, kind: u32, id: &str, reference: Reference) {
        let key = NameKey { kind, index: reference.index };
        assert!(
            self.kernel.names.insert(key, Name::new(id, reference.generation)).is_none(),
            "{key:?} given twice"
        );
    }

    /// Names of policy sets and of classes of members: by the groups of those that have them, in order.
    fn name_policy(&mut self) {
        let mut named = Vec::new();
        for slot in self.model.port_by_id.values() {
            let port = &self.model.ports[*slot];
            let groups = port.config.security_group_ids.iter().map(|group| group.id.clone()).collect();
            named.push((name_kinds::SET, port.set, Vec::clone(&groups)));
            named.push((name_kinds::MEMBERS, port.members & !MEMBERS, groups));
        }
        let held = |neighbour: &&Neighbour| neighbour.flags & neighbour_flags::HELD != 0;
        for neighbour in
            (0..self.model.neighbours.bound()).map(|slot| &self.model.neighbours[slot]).filter(held)
        {
            let class = self.model.provenances.get(neighbour.provenance).members & !MEMBERS;
            let groups = self.model.neighbour_configuration(neighbour).security_group_ids;
            named.push((name_kinds::MEMBERS, class, groups));
        }
        for (kind, index, mut groups) in named {
            groups.retain(|group| !group.is_empty());
            groups.sort();
            groups.dedup();
            if index != 0 {
                self.kernel.names.insert(NameKey { kind, index }, Name::new(&groups.join(","), 1));
            }
        }
    }

    fn find_subnets(&mut self) {
        for (id, slot) in &self.model.subnet_by_id {
            let subnet = &self.model.subnets[*slot];
            let Some(held) = &subnet.held else { continue };
            let config = &held.config;
            let vpc = self.model.vpcs.get(&config.vpc_id).map_or(0, |vpc| vpc.config.tunnel_id);
            let vni = if config.tunnel_id == 0 { vpc } else { config.tunnel_id as u32 };
            if vni == 0 {
                continue;
            }
            let reference = Reference { index: subnet.index, generation: subnet.generation };
            assert!(reference.index != 0 && reference.generation != 0, "{id} has no index");
            let router = self
                .routers
                .iter()
                .find(|(_, router)| router.subnet_routing_tables.iter().any(|table| table.subnet_id == *id));
            let router = router.map(|(router, _)| router.clone());
            self.subnets.insert(
                id.clone(),
                LiveSubnet { vni, net: parse::cidr(&config.cidr).unwrap(), reference, router },
            );
        }
    }

    fn write_subnets(&mut self) {
        for (id, live) in self.subnets.clone() {
            self.name(name_kinds::SUBNET, &id, live.reference);
            let config = &self.model.held_subnet(&id).unwrap().config;
            let gateway = config.gateway.clone().unwrap_or_default();
            let gateway = match (parse::ip(&gateway.ip_address), parse::mac(&gateway.mac_address)) {
                (Some(ip), Some(mac)) if !ip.is_unspecified() => Some((mapped(ip), mac)),
                _ => None,
            };
            let dvr = live.router.as_ref().map(|router| {
                parse::mac(&self.routers[router].host_dvr_mac_address).unwrap_or([0xfe, 0x16, 0x11, 0, 0, 0])
            });
            let mut flags = 0;
            flags |= if gateway.is_some() { subnet_flags::GATEWAY } else { 0 };
            flags |= if dvr.is_some() { subnet_flags::ROUTED } else { 0 };
            let value = Subnet {
                generation: live.reference.generation,
                vni: live.vni,
                flags,
                gateway_ip: gateway.unwrap_or_default().0,
                network: mapped(live.net.network()),
                prefix_len: length(live.net),
                gateway_mac: gateway.unwrap_or_default().1,
                dvr_mac: dvr.unwrap_or_default(),
                reserved: [0; 5],
            };
            self.kernel.subnets.insert(live.reference.index, value);
            self.kernel.vnis.entry(live.vni).or_insert(Vni { subnets: 0, reserved: 0 }).subnets += 1;
            let key = SubnetPrefixKey {
                prefix_len: 32 + length(live.net),
                vni: live.vni,
                ip: mapped(live.net.network()),
            };
            // In the order of ids: the first stays.
            self.kernel.subnet_prefixes.entry(key).or_insert(live.reference);
        }
    }

    /// The live subnets of a router, in the order of ids.
    fn members(&self, router: &str) -> Vec<(&String, &LiveSubnet)> {
        self.subnets.iter().filter(|(_, live)| live.router.as_deref() == Some(router)).collect()
    }

    fn write_routes(&mut self) {
        let mut routes = BTreeMap::new();
        for (id, live) in &self.subnets {
            let Some(router) = &live.router else { continue };
            let members = self.members(router);
            for (_, member) in &members {
                let route = Route {
                    subnet: member.reference.index,
                    subnet_generation: member.reference.generation,
                    flags: route_flags::CONNECTED | route_version(member.net),
                    ..Route::default()
                };
                routes.entry(route_key(live.reference.index, member.net)).or_insert(route);
            }
            let tables = &self.routers[router].subnet_routing_tables;
            let mut rules: Vec<_> = tables
                .iter()
                .filter(|table| table.subnet_id == *id)
                .flat_map(|table| &table.routing_rules)
                .collect();
            rules.sort_by_key(|rule| (rule.priority, &rule.id));
            for rule in rules {
                let net = parse::cidr(&rule.destination).unwrap();
                let Ok(next_hop) = rule.next_hop_ip.parse::<IpAddr>() else { continue };
                if next_hop.is_ipv4() != net.addr().is_ipv4() {
                    continue;
                }
                let target = members
                    .iter()
                    .filter(|(_, member)| member.net.contains(&next_hop))
                    .rev()
                    .max_by_key(|(_, member)| member.net.prefix_len());
                let Some((_, target)) = target else { continue };
                let mac =
                    rule.routing_rule_extra_info.as_ref().and_then(|extra| parse::mac(&extra.next_hop_mac));
                let route = Route {
                    subnet: target.reference.index,
                    subnet_generation: target.reference.generation,
                    flags: route_version(net),
                    next_hop_ip: mapped(next_hop),
                    next_hop_mac: mac.unwrap_or_default(),
                    reserved: [0; 6],
                };
                routes.entry(route_key(live.reference.index, net)).or_insert(route);
            }
        }
        self.kernel.routes = routes;
    }

    fn write_ports(&mut self) {
        let model = self.model;
        for (id, slot) in &model.port_by_id {
            let port = &model.ports[*slot];
            let config = &port.config;
            let addresses: Vec<(String, IpAddr)> = config
                .fixed_ips
                .iter()
                .map(|fixed| (fixed.subnet_id.clone(), fixed.ip_address.parse().unwrap()))
                .collect();
            let first_v4 = addresses.iter().find(|(_, ip)| ip.is_ipv4());
            let primary = first_v4.unwrap_or(&addresses[0]).clone();
            let Some(live) = self.subnets.get(&primary.0).cloned() else { continue };
            let reference = Reference { index: port.index, generation: port.generation };
            assert!(reference.index != 0 && reference.generation != 0, "{id} has no index");
            self.name(name_kinds::PORT, id, reference);
            let mac = parse::mac(&config.mac_address).unwrap();
            let interface = &model.interfaces[&port.interface];
            let owner = interface.ports.keys().next() == Some(id);
            let facts = interface.facts.filter(|_| owner).unwrap_or_default();
            if facts.ifindex != 0 {
                self.kernel.port_by_interface.insert(facts.ifindex, reference);
                if facts.xdp_target {
                    self.kernel.devices.insert(facts.ifindex, facts.ifindex);
                }
            }
            let (any_source, any_prefix) = self.write_sources(config, &addresses, &primary, mac, reference);
            let groups: BTreeSet<&str> = config
                .security_group_ids
                .iter()
                .map(|group| group.id.as_str())
                .filter(|id| !id.is_empty())
                .collect();
            let missing = groups.iter().any(|group| !model.policy.holds(group));
            assert_eq!(port.set != 0, !groups.is_empty() && !missing, "{id}: {groups:?}");
            let closed = if missing {
                model.settings.missing_group == MissingGroup::Closed
            } else {
                port.set != 0 && model.policy.refusal(port.set).is_some()
            };
            let meta = port.meta.as_ref().unwrap();
            let flag = |condition: bool, flag: u32| if condition { flag } else { 0 };
            let value = Port {
                generation: reference.generation,
                epoch: port.epoch,
                ifindex: facts.ifindex,
                flags: flag(config.admin_state_up, port_flags::UP)
                    | flag(closed, port_flags::CLOSED)
                    | flag(facts.xdp_target, port_flags::XDP_TARGET)
                    | flag(any_source, port_flags::SOURCES)
                    | flag(any_prefix, port_flags::SOURCE_PREFIXES)
                    | flag(model.policy.names_groups_out(port.set), port_flags::GROUPS_OUT),
                vni: live.vni,
                subnet: live.reference.index,
                subnet_generation: live.reference.generation,
                set: if missing && closed { NO_RULES } else { port.set },
                ip: mapped(primary.1),
                mac,
                mtu: facts.mtu as u16,
                max_flows: model.fair_share(),
                ask_interval: 0,
                asks_at_once: 0,
                reserved: [0; 3],
            };
            self.kernel.ports.insert(reference.index, value);
            let rank = (meta.revision, meta.version);
            let flags = endpoint_flags::LOCAL | endpoint_flags::L2 | endpoint_flags::L3;
            let endpoint = |subnet, mac| Endpoint {
                target: reference.index,
                generation: reference.generation,
                subnet,
                members: if subnet == 0 { 0 } else { port.members },
                flags: endpoint_flags::LOCAL,
                mac,
            };
            let flags = flags & !endpoint_flags::LOCAL;
            for (subnet, ip) in &addresses {
                let Some(live) = self.subnets.get(subnet) else { continue };
                self.by_mac.entry(MacKey { vni: live.vni, mac, reserved: [0; 2] }).or_default().push((
                    rank,
                    flags,
                    endpoint(0, mac),
                ));
                self.by_ip.entry(IpKey { vni: live.vni, ip: mapped(*ip) }).or_default().push((
                    rank,
                    flags,
                    endpoint(live.reference.index, mac),
                ));
            }
            for pair in &config.allow_address_pairs {
                if let Some(mac) = parse::mac(&pair.mac_address) {
                    self.by_mac.entry(MacKey { vni: live.vni, mac, reserved: [0; 2] }).or_default().push((
                        rank,
                        flags,
                        endpoint(0, mac),
                    ));
                }
            }
        }
    }

    fn write_sources(
        &mut self,
        config: &crate::wire::PortConfiguration,
        addresses: &[(String, IpAddr)],
        primary: &(String, IpAddr),
        mac: [u8; 6],
        port: Reference,
    ) -> (bool, bool) {
        let source =
            |subnet: Reference| Source { subnet: subnet.index, subnet_generation: subnet.generation };
        let own = source(self.subnets[&primary.0].reference);
        let first_v6 =
            addresses.iter().find(|(subnet, ip)| ip.is_ipv6() && self.subnets.contains_key(subnet));
        let own_v6 = first_v6.map_or(own, |(subnet, _)| source(self.subnets[subnet].reference));
        let (mut any_source, mut any_prefix) = (false, false);
        if own_v6 != own {
            let v6_pair = |pair: &&AllowAddressPair| parse::cidr(&pair.ip_address).unwrap().addr().is_ipv6();
            let macs = config.allow_address_pairs.iter().filter(v6_pair);
            for mac in macs.map(|pair| parse::mac(&pair.mac_address).unwrap_or(mac)).chain([mac]) {
                any_source = true;
                let ip = mapped(super::versions::link_local(mac));
                self.kernel.sources.insert(SourceKey { port: port.index, mac, reserved: [0; 2], ip }, own_v6);
            }
        }
        for pair in &config.allow_address_pairs {
            let net = parse::cidr(&pair.ip_address).unwrap();
            let (family, own) = if net.addr().is_ipv4() { (4, own) } else { (6, own_v6) };
            let mac = parse::mac(&pair.mac_address).unwrap_or(mac);
            let ip = mapped(net.network());
            if net.prefix_len() == net.max_prefix_len() {
                any_source = true;
                self.kernel.sources.insert(SourceKey { port: port.index, mac, reserved: [0; 2], ip }, own);
            } else {
                any_prefix = true;
                let prefix_len = 96 + length(net);
                let key = SourcePrefixKey { prefix_len, port: port.index, mac, family, reserved: 0, ip };
                self.kernel.source_prefixes.insert(key, own);
            }
        }
        for (subnet, ip) in addresses {
            if let (Some(live), true) = (self.subnets.get(subnet), (subnet, ip) != (&primary.0, &primary.1)) {
                any_source = true;
                let key = SourceKey { port: port.index, mac, reserved: [0; 2], ip: mapped(*ip) };
                self.kernel.sources.insert(key, source(live.reference));
            }
        }
        let mut links = BTreeMap::new();
        for (subnet, ip) in addresses {
            let live = self.subnets.get(subnet).filter(|live| live.net.addr().is_ipv6());
            if let (Some(live), true) = (live, ip.is_ipv6()) {
                let (prefix_len, ip) = (96 + length(live.net), mapped(live.net.network()));
                let key =
                    SourcePrefixKey { prefix_len, port: port.index, mac: [0; 6], family: 0, reserved: 0, ip };
                links.entry(key).or_insert(source(live.reference));
            }
        }
        if links.len() > 1 {
            any_prefix = true;
            self.kernel.source_prefixes.extend(links);
        }
        (any_source, any_prefix)
    }

    fn write_neighbours(&mut self) {
        let model = self.model;
        let mut programmed: BTreeSet<(IpAddr, u32)> = BTreeSet::new();
        let mut hosts: BTreeMap<IpAddr, Reference> = BTreeMap::new();
        for slot in 0..model.neighbours.bound() {
            let neighbour = &model.neighbours[slot];
            if neighbour.flags & neighbour_flags::HELD == 0 {
                continue;
            }
            let config: NeighborConfiguration = model.neighbour_configuration(neighbour);
            let address: IpAddr = config.host_ip_address.parse().unwrap();
            if model.settings.endpoints.contains(&address) {
                continue;
            }
            let mac = parse::mac(&config.mac_address).unwrap();
            let host = &model.hosts.slots[neighbour.host];
            let reference = Reference { index: host.index, generation: host.generation };
            let l3 = neighbour.is_l3();
            let flags = if l3 { endpoint_flags::L3 } else { endpoint_flags::L2 };
            let rank = (config.revision_number, neighbour.version());
            for fixed in &config.fixed_ips {
                let live = self.subnets.get(&fixed.subnet_id);
                let parked = match live {
                    None => fixed.tunnel_id == 0,
                    Some(live) => l3 && live.router.is_none() && fixed.tunnel_id == 0,
                };
                if parked {
                    continue;
                }
                let vni = if fixed.tunnel_id == 0 { live.unwrap().vni } else { fixed.tunnel_id };
                hosts.insert(address, reference);
                programmed.insert((address, vni));
                if let Some(live) = live {
                    programmed.insert((address, live.vni));
                    for (_, member) in live.router.iter().flat_map(|router| self.members(router)) {
                        programmed.insert((address, member.vni));
                    }
                }
                let endpoint = |subnet, members| Endpoint {
                    target: reference.index,
                    generation: reference.generation,
                    subnet,
                    members,
                    flags: 0,
                    mac,
                };
                if !l3 {
                    let key = MacKey { vni, mac, reserved: [0; 2] };
                    self.by_mac.entry(key).or_default().push((rank, flags, endpoint(0, 0)));
                }
                let subnet = live.map_or(0, |live| live.reference.index);
                let key = IpKey { vni, ip: mapped(fixed.ip_address.parse().unwrap()) };
                let members = model.provenances.get(neighbour.provenance).members;
                self.by_ip.entry(key).or_default().push((rank, flags, endpoint(subnet, members)));
            }
        }
        for (address, reference) in &hosts {
            assert!(reference.index != 0 && reference.generation != 0, "{address} has no index");
            self.kernel.hosts.insert(reference.index, (reference.generation, *address));
            self.name(name_kinds::HOST, &address.to_string(), *reference);
        }
        for (address, vni) in programmed {
            if !self.kernel.vnis.contains_key(&vni) {
                continue;
            }
            self.kernel.vteps.insert(VtepKey { vni, ip: mapped(address) }, hosts[&address]);
        }
    }
}
