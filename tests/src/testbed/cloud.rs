//! A small controller: what exists in a cloud, and the goal states that each host needs of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use ncm_model::wire;
use wire::security_group_configuration::SecurityGroupRule;
use wire::{NeighborType, OperationType, UpdateType};

use super::guest::{Guest, GuestSpec};
use super::host::{Host, on_wire};
use super::lab::Lab;
use super::rules::rule;

/// A subnet of a [`Cloud`].
#[derive(Clone, Debug)]
pub struct CloudSubnet {
    /// Name and id.
    pub name: String,
    /// VPC.
    pub vpc: String,
    /// Network in CIDR form.
    pub cidr: String,
    /// Own VNI; 0 for its VPC's.
    pub vni: u32,
    /// Gateway address; its MAC follows from it.
    pub gateway: IpAddr,
}

/// A port of a [`Cloud`].
#[derive(Clone, Debug)]
pub struct CloudPort {
    /// Name and id.
    pub name: String,
    /// Its MAC, which follows from its first address: tenants with the same addresses have the same MACs too.
    pub mac: [u8; 6],
    /// Its addresses, of either family, each with its subnet.
    pub fixed_ips: Vec<(String, IpAddr)>,
    /// Host that the guest is on.
    pub host: String,
    /// Addresses that the guest may use beside its own: address or CIDR, and MAC (empty for its own).
    pub allowed: Vec<(String, String)>,
    /// Its security groups.
    pub groups: Vec<String>,
    /// Its administrative state.
    pub up: bool,
}

impl CloudPort {
    /// It has an address in one of these subnets.
    fn is_in(&self, subnets: &BTreeSet<&str>) -> bool {
        self.fixed_ips.iter().any(|(subnet, _)| subnets.contains(subnet.as_str()))
    }
}

/// What exists, and where.
#[derive(Clone, Debug, Default)]
pub struct Cloud {
    /// VPCs with their VNIs.
    pub vpcs: BTreeMap<String, u32>,
    /// Subnets by name.
    pub subnets: BTreeMap<String, CloudSubnet>,
    /// Ports by name.
    pub ports: BTreeMap<String, CloudPort>,
    /// Routers with their subnets and the rules of each: destination and next hop.
    pub routers: BTreeMap<String, BTreeMap<String, Vec<(String, String)>>>,
    /// Tunnel endpoints of hosts by name.
    pub hosts: BTreeMap<String, IpAddr>,
    /// Security groups by name.
    pub groups: BTreeMap<String, Vec<SecurityGroupRule>>,
    /// Use taps instead of veths for guests.
    pub taps: bool,
}

/// The MAC that a guest's address gives it.
#[must_use]
pub fn guest_mac(ip: impl Into<IpAddr>) -> [u8; 6] {
    let [a, b, c, d] = telling(ip.into());
    [0x02, 0x16, a, b, c, d]
}

/// The MAC that a gateway's address gives it.
#[must_use]
pub fn gateway_mac(ip: impl Into<IpAddr>) -> [u8; 6] {
    let [a, b, c, d] = telling(ip.into());
    [0x02, 0xfe, a, b, c, d]
}

/// The octets that tell one address from another here: of IPv6, the second group and the last.
fn telling(ip: IpAddr) -> [u8; 4] {
    match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            [octets[2], octets[3], octets[14], octets[15]]
        }
    }
}

/// The address after a network's own.
fn first_address(cidr: &str) -> Option<IpAddr> {
    Some(match cidr.split('/').next()?.parse().ok()? {
        IpAddr::V4(network) => IpAddr::V4((u32::from(network) + 1).into()),
        IpAddr::V6(network) => IpAddr::V6((u128::from(network) + 1).into()),
    })
}

impl Cloud {
    /// An empty cloud on `host1` and `host2`, which have the endpoints of [`super::TwoHosts`].
    #[must_use]
    pub fn new() -> Self {
        let mut cloud = Self::default();
        cloud.place_hosts(false);
        cloud
    }

    /// A VPC of two routed subnets of both families, `front` (10.1.0.0/24, fd00:1::/64) and `back` (10.2.0.0/24,
    /// fd00:2::/64), and ports in them by name, subnet and host: the first has the last byte 11, the next 12, and so on.
    #[must_use]
    pub fn dual_stack(ports: &[(&str, &str, &str)]) -> Self {
        let mut cloud = Self::new();
        cloud
            .vpc("red", 100)
            .subnet("front", "red", "10.1.0.0/24")
            .subnet("front6", "red", "fd00:1::/64")
            .subnet("back", "red", "10.2.0.0/24")
            .subnet("back6", "red", "fd00:2::/64")
            .router("r", &["front", "front6", "back", "back6"]);
        for ((name, subnet, host), last) in ports.iter().zip(11..) {
            let net = if *subnet == "front" { 1 } else { 2 };
            cloud.port(name, subnet, &format!("10.{net}.0.{last}"), host);
            cloud.address(name, &format!("{subnet}6"), &format!("fd00:{net}::{last}"));
        }
        cloud
    }

    /// Gives the hosts the endpoints that they have on the wire of [`super::TwoHosts`], over IPv4 or IPv6.
    pub fn place_hosts(&mut self, over_v6: bool) -> &mut Self {
        self.hosts = (1..=3).map(|number| (format!("host{number}"), on_wire(number, over_v6))).collect();
        self
    }

    /// Adds a VPC.
    pub fn vpc(&mut self, name: &str, vni: u32) -> &mut Self {
        self.vpcs.insert(name.to_owned(), vni);
        self
    }

    /// Adds a subnet that shares its VPC's VNI; its gateway is the first address.
    pub fn subnet(&mut self, name: &str, vpc: &str, cidr: &str) -> &mut Self {
        self.subnet_with_vni(name, vpc, cidr, 0)
    }

    /// Adds a subnet with a VNI of its own.
    ///
    /// # Panics
    /// If `cidr` is no network.
    pub fn subnet_with_vni(&mut self, name: &str, vpc: &str, cidr: &str, vni: u32) -> &mut Self {
        let gateway = first_address(cidr).unwrap_or_else(|| panic!("`{cidr}` is no network"));
        let subnet =
            CloudSubnet { name: name.to_owned(), vpc: vpc.to_owned(), cidr: cidr.to_owned(), vni, gateway };
        self.subnets.insert(name.to_owned(), subnet);
        self
    }

    /// Adds a port.
    ///
    /// # Panics
    /// If `ip` is no address.
    pub fn port(&mut self, name: &str, subnet: &str, ip: &str, host: &str) -> &mut Self {
        let ip: IpAddr = ip.parse().unwrap_or_else(|_| panic!("`{ip}` is no address"));
        let port = CloudPort {
            name: name.to_owned(),
            mac: guest_mac(ip),
            fixed_ips: vec![(subnet.to_owned(), ip)],
            host: host.to_owned(),
            allowed: Vec::new(),
            groups: Vec::new(),
            up: true,
        };
        self.ports.insert(name.to_owned(), port);
        self
    }

    /// Gives a port a further address.
    ///
    /// # Panics
    /// If there is no such port or `ip` is no address.
    pub fn address(&mut self, port: &str, subnet: &str, ip: &str) -> &mut Self {
        let ip = ip.parse().unwrap_or_else(|_| panic!("`{ip}` is no address"));
        self.port_mut(port).fixed_ips.push((subnet.to_owned(), ip));
        self
    }

    /// A port, to change it.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn port_mut(&mut self, port: &str) -> &mut CloudPort {
        self.ports.get_mut(port).unwrap_or_else(|| panic!("no port `{port}`"))
    }

    /// Adds a security group, or replaces it; how rules are written: [`rule`].
    ///
    /// # Panics
    /// If a rule cannot be read.
    pub fn group(&mut self, name: &str, rules: &[&str]) -> &mut Self {
        let read = |text: &&str| rule(text).unwrap_or_else(|error| panic!("{error:#}"));
        self.groups.insert(name.to_owned(), rules.iter().map(read).collect());
        self
    }

    /// Puts a port into security groups, and out of all others.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn member(&mut self, port: &str, groups: &[&str]) -> &mut Self {
        self.port_mut(port).groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self
    }

    /// Adds a router with some subnets and no rules.
    pub fn router(&mut self, name: &str, subnets: &[&str]) -> &mut Self {
        let tables = subnets.iter().map(|subnet| ((*subnet).to_owned(), Vec::new())).collect();
        self.routers.insert(name.to_owned(), tables);
        self
    }

    /// Adds a routing rule to a subnet's table in a router.
    pub fn rule(&mut self, router: &str, subnet: &str, destination: &str, next_hop: &str) -> &mut Self {
        let tables = self.routers.entry(router.to_owned()).or_default();
        tables.entry(subnet.to_owned()).or_default().push((destination.to_owned(), next_hop.to_owned()));
        self
    }

    /// The interface that the agent expects for a port.
    #[must_use]
    pub fn interface(port: &str) -> String {
        format!("tap{}", &port[..port.len().min(11)])
    }

    /// Describes the guest behind a port.
    ///
    /// # Errors
    /// If there is no such port.
    pub fn guest_spec(&self, port: &str) -> Result<GuestSpec> {
        let port = self.ports.get(port).with_context(|| format!("no port {port}"))?;
        let mut spec = GuestSpec {
            name: port.name.clone(),
            interface: Self::interface(&port.name),
            mac: port.mac,
            addresses: Vec::new(),
            gateway: None,
            gateway6: None,
            mtu: 1450,
            tap: self.taps,
        };
        for (subnet, ip) in &port.fixed_ips {
            let subnet = self.subnets.get(subnet).with_context(|| format!("no subnet {subnet}"))?;
            let length = subnet.cidr.split('/').nth(1).context("no prefix length")?.parse()?;
            spec.addresses.push((*ip, length));
            match subnet.gateway {
                IpAddr::V4(gateway) => spec.gateway = spec.gateway.or(Some(gateway)),
                IpAddr::V6(gateway) => spec.gateway6 = spec.gateway6.or(Some(gateway)),
            }
        }
        Ok(spec)
    }

    /// Makes the guest behind a port and plugs it into a host.
    ///
    /// # Errors
    /// If there is no such port, or its name is taken.
    pub fn guest(&self, lab: &Lab, host: &Host, port: &str) -> Result<Guest> {
        Guest::new(lab, &host.ns, self.guest_spec(port)?)
    }

    /// The VNI that counts for a subnet.
    #[must_use]
    pub fn vni(&self, subnet: &CloudSubnet) -> u32 {
        if subnet.vni != 0 { subnet.vni } else { self.vpcs.get(&subnet.vpc).copied().unwrap_or(0) }
    }

    /// A VPC's state.
    #[must_use]
    pub fn vpc_state(&self, name: &str, operation: OperationType) -> wire::VpcState {
        let configuration = wire::VpcConfiguration {
            revision_number: 1,
            id: name.to_owned(),
            name: name.to_owned(),
            cidr: "10.0.0.0/8".to_owned(),
            tunnel_id: self.vpcs.get(name).copied().unwrap_or(0),
            update_type: UpdateType::Full.into(),
            ..Default::default()
        };
        wire::VpcState { operation_type: operation.into(), configuration: Some(configuration) }
    }

    /// A subnet's state.
    #[must_use]
    pub fn subnet_state(&self, name: &str, operation: OperationType) -> wire::SubnetState {
        let subnet = &self.subnets[name];
        let gateway = wire::subnet_configuration::Gateway {
            ip_address: subnet.gateway.to_string(),
            mac_address: super::format_mac(gateway_mac(subnet.gateway)),
        };
        let configuration = wire::SubnetConfiguration {
            revision_number: 1,
            id: name.to_owned(),
            vpc_id: subnet.vpc.clone(),
            name: name.to_owned(),
            cidr: subnet.cidr.clone(),
            tunnel_id: u64::from(subnet.vni),
            gateway: Some(gateway),
            update_type: UpdateType::Full.into(),
            ..Default::default()
        };
        wire::SubnetState { operation_type: operation.into(), configuration: Some(configuration) }
    }

    /// A port's state.
    #[must_use]
    pub fn port_state(&self, name: &str, operation: OperationType) -> wire::PortState {
        let port = &self.ports[name];
        let fixed_ip = |(subnet, ip): &(String, IpAddr)| wire::port_configuration::FixedIp {
            subnet_id: subnet.clone(),
            ip_address: ip.to_string(),
        };
        let group = |id: &String| wire::port_configuration::SecurityGroupId { id: id.clone() };
        let pair = |(ip, mac): &(String, String)| wire::port_configuration::AllowAddressPair {
            ip_address: ip.clone(),
            mac_address: mac.clone(),
        };
        let configuration = wire::PortConfiguration {
            revision_number: 1,
            id: name.to_owned(),
            vpc_id: self.vpc_of(port),
            name: name.to_owned(),
            device_id: format!("vm-{name}"),
            device_owner: "compute:test".to_owned(),
            mac_address: super::format_mac(port.mac),
            admin_state_up: port.up,
            fixed_ips: port.fixed_ips.iter().map(fixed_ip).collect(),
            allow_address_pairs: port.allowed.iter().map(pair).collect(),
            security_group_ids: port.groups.iter().map(group).collect(),
            update_type: UpdateType::Full.into(),
            ..Default::default()
        };
        wire::PortState { operation_type: operation.into(), configuration: Some(configuration) }
    }

    fn vpc_of(&self, port: &CloudPort) -> String {
        let subnet = port.fixed_ips.first().and_then(|(subnet, _)| self.subnets.get(subnet));
        subnet.map(|subnet| subnet.vpc.clone()).unwrap_or_default()
    }

    /// A port's state as other hosts get it.
    #[must_use]
    pub fn neighbor_state(
        &self,
        port: &str,
        kind: NeighborType,
        operation: OperationType,
    ) -> wire::NeighborState {
        self.neighbor_state_in(port, kind, operation, |_| true)
    }

    /// The same, with the addresses in some subnets only.
    fn neighbor_state_in(
        &self,
        port: &str,
        kind: NeighborType,
        operation: OperationType,
        subnets: impl Fn(&str) -> bool,
    ) -> wire::NeighborState {
        let port = &self.ports[port];
        let fixed_ip = |(subnet, ip): &(String, IpAddr)| wire::neighbor_configuration::FixedIp {
            neighbor_type: kind.into(),
            subnet_id: subnet.clone(),
            ip_address: ip.to_string(),
            ..Default::default()
        };
        let configuration = wire::NeighborConfiguration {
            revision_number: 1,
            id: port.name.clone(),
            vpc_id: self.vpc_of(port),
            name: port.name.clone(),
            mac_address: super::format_mac(port.mac),
            host_ip_address: self.hosts.get(&port.host).map(ToString::to_string).unwrap_or_default(),
            fixed_ips: port.fixed_ips.iter().filter(|(subnet, _)| subnets(subnet)).map(fixed_ip).collect(),
            security_group_ids: port.groups.clone(),
            update_type: UpdateType::Full.into(),
            ..Default::default()
        };
        wire::NeighborState { operation_type: operation.into(), configuration: Some(configuration) }
    }

    /// A security group's state: complete, whatever was held before.
    #[must_use]
    pub fn group_state(&self, name: &str, operation: OperationType) -> wire::SecurityGroupState {
        let configuration = wire::SecurityGroupConfiguration {
            revision_number: 1,
            id: name.to_owned(),
            name: name.to_owned(),
            security_group_rules: self.groups.get(name).cloned().unwrap_or_default(),
            update_type: UpdateType::Full.into(),
            ..Default::default()
        };
        wire::SecurityGroupState { operation_type: operation.into(), configuration: Some(configuration) }
    }

    /// A router's state.
    #[must_use]
    pub fn router_state(&self, name: &str, operation: OperationType) -> wire::RouterState {
        use wire::router_configuration::{RoutingRule, SubnetRoutingTable};
        let tables = self.routers.get(name).into_iter().flatten().map(|(subnet, rules)| SubnetRoutingTable {
            subnet_id: subnet.clone(),
            routing_rules: rules
                .iter()
                .enumerate()
                .map(|(at, (destination, next_hop))| RoutingRule {
                    id: format!("{subnet}-{at}"),
                    name: format!("{subnet}-{at}"),
                    destination: destination.clone(),
                    next_hop_ip: next_hop.clone(),
                    ..Default::default()
                })
                .collect(),
        });
        let configuration = wire::RouterConfiguration {
            revision_number: 1,
            id: name.to_owned(),
            host_dvr_mac_address: "fe:16:11:00:00:00".to_owned(),
            subnet_routing_tables: tables.collect(),
            update_type: UpdateType::Full.into(),
            ..Default::default()
        };
        wire::RouterState { operation_type: operation.into(), configuration: Some(configuration) }
    }

    /// Everything that a host needs, as a V1 message.
    #[must_use]
    pub fn goal_state(&self, host: &str) -> wire::GoalState {
        self.goal_state_with(host, OperationType::Create)
    }

    /// Everything that a host needs, with one operation for all of it.
    #[must_use]
    pub fn goal_state_with(&self, host: &str, operation: OperationType) -> wire::GoalState {
        let mut state = wire::GoalState { format_version: 101, ..Default::default() };
        let own = |port: &&CloudPort| port.host == host;
        let (mut near, mut named) = (BTreeSet::new(), BTreeSet::new());
        for port in self.ports.values().filter(own) {
            near.extend(port.fixed_ips.iter().map(|(subnet, _)| subnet.as_str()));
            named.extend(port.groups.iter().map(String::as_str));
        }
        let routers: Vec<_> = self
            .routers
            .iter()
            .filter(|(_, tables)| tables.keys().any(|subnet| near.contains(subnet.as_str())))
            .collect();
        let routed: BTreeSet<&str> =
            routers.iter().flat_map(|(_, tables)| tables.keys().map(String::as_str)).collect();
        let subnets: BTreeSet<&str> = near.union(&routed).copied().collect();
        let vpcs: BTreeSet<&str> = subnets.iter().map(|subnet| self.subnets[*subnet].vpc.as_str()).collect();
        state.vpc_states = vpcs.iter().map(|vpc| self.vpc_state(vpc, operation)).collect();
        state.subnet_states = subnets.iter().map(|subnet| self.subnet_state(subnet, operation)).collect();
        state.port_states =
            self.ports.values().filter(own).map(|port| self.port_state(&port.name, operation)).collect();
        let groups = named.into_iter().filter(|group| self.groups.contains_key(*group));
        state.security_group_states = groups.map(|group| self.group_state(group, operation)).collect();
        for port in self.ports.values().filter(|port| port.host != host) {
            for (kind, subnets) in [(NeighborType::L2, &near), (NeighborType::L3, &routed)] {
                if port.is_in(subnets) {
                    let there = |subnet: &str| subnets.contains(subnet);
                    state.neighbor_states.push(self.neighbor_state_in(&port.name, kind, operation, there));
                }
            }
        }
        state.router_states = routers.iter().map(|(name, _)| self.router_state(name, operation)).collect();
        state
    }

    /// Everything that a host needs, as a V2 message without `host_resources`.
    #[must_use]
    pub fn goal_state_v2(&self, host: &str) -> wire::GoalStateV2 {
        to_v2(self.goal_state(host))
    }
}

/// The same states as a V2 message, under keys such as real senders use.
#[must_use]
pub fn to_v2(state: wire::GoalState) -> wire::GoalStateV2 {
    let key = |at: usize| format!("state-{at}");
    wire::GoalStateV2 {
        format_version: state.format_version,
        host_resources: Default::default(),
        vpc_states: state.vpc_states.into_iter().enumerate().map(|(at, one)| (key(at), one)).collect(),
        subnet_states: state.subnet_states.into_iter().enumerate().map(|(at, one)| (key(at), one)).collect(),
        port_states: state.port_states.into_iter().enumerate().map(|(at, one)| (key(at), one)).collect(),
        dhcp_states: state.dhcp_states.into_iter().enumerate().map(|(at, one)| (key(at), one)).collect(),
        neighbor_states: state
            .neighbor_states
            .into_iter()
            .enumerate()
            .map(|(at, one)| (key(at), one))
            .collect(),
        security_group_states: state
            .security_group_states
            .into_iter()
            .enumerate()
            .map(|(at, one)| (key(at), one))
            .collect(),
        router_states: state.router_states.into_iter().enumerate().map(|(at, one)| (key(at), one)).collect(),
        gateway_states: state
            .gateway_states
            .into_iter()
            .enumerate()
            .map(|(at, one)| (key(at), one))
            .collect(),
    }
}
