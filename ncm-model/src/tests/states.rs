//! Short ways to write goal states.

use crate::wire::router_configuration::{RoutingRule, RoutingRuleExtraInfo, SubnetRoutingTable};
use crate::wire::{
    GoalState, NeighborConfiguration, NeighborState, OperationType, PortConfiguration, PortState,
    RouterConfiguration, RouterState, SecurityGroupConfiguration, SecurityGroupState, SubnetConfiguration,
    SubnetState, UpdateType, VpcConfiguration, VpcState, neighbor_configuration, port_configuration,
    subnet_configuration,
};

pub(super) const CREATE: OperationType = OperationType::Create;
pub(super) const UPDATE: OperationType = OperationType::Update;
pub(super) const DELETE: OperationType = OperationType::Delete;

pub(super) fn vpc(id: &str, tunnel_id: u32) -> VpcConfiguration {
    VpcConfiguration { id: id.into(), tunnel_id, revision_number: 1, ..Default::default() }
}

pub(super) fn subnet(id: &str, vpc: &str, cidr: &str, tunnel_id: u64) -> SubnetConfiguration {
    SubnetConfiguration {
        id: id.into(),
        vpc_id: vpc.into(),
        cidr: cidr.into(),
        tunnel_id,
        revision_number: 1,
        ..Default::default()
    }
}

pub(super) fn with_gateway(mut config: SubnetConfiguration, ip: &str, mac: &str) -> SubnetConfiguration {
    config.gateway = Some(subnet_configuration::Gateway { ip_address: ip.into(), mac_address: mac.into() });
    config
}

pub(super) fn port(id: &str, mac: &str, fixed: &[(&str, &str)]) -> PortConfiguration {
    PortConfiguration {
        id: id.into(),
        mac_address: mac.into(),
        admin_state_up: true,
        device_id: "vm".into(),
        revision_number: 1,
        fixed_ips: fixed
            .iter()
            .map(|(subnet, ip)| port_configuration::FixedIp {
                subnet_id: (*subnet).into(),
                ip_address: (*ip).into(),
            })
            .collect(),
        ..Default::default()
    }
}

pub(super) fn neighbour(
    id: &str,
    mac: &str,
    host: &str,
    fixed: &[(i32, &str, &str)],
) -> NeighborConfiguration {
    NeighborConfiguration {
        id: id.into(),
        mac_address: mac.into(),
        host_ip_address: host.into(),
        revision_number: 1,
        fixed_ips: fixed
            .iter()
            .map(|(kind, subnet, ip)| neighbor_configuration::FixedIp {
                neighbor_type: *kind,
                subnet_id: (*subnet).into(),
                ip_address: (*ip).into(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

pub(super) fn rule(id: &str, destination: &str, next_hop: &str, priority: u32) -> RoutingRule {
    RoutingRule {
        id: id.into(),
        destination: destination.into(),
        next_hop_ip: next_hop.into(),
        priority,
        ..Default::default()
    }
}

pub(super) fn with_mac(mut rule: RoutingRule, mac: &str) -> RoutingRule {
    rule.routing_rule_extra_info =
        Some(RoutingRuleExtraInfo { next_hop_mac: mac.into(), ..Default::default() });
    rule
}

pub(super) fn router(id: &str, tables: &[(&str, &[RoutingRule])]) -> RouterConfiguration {
    RouterConfiguration {
        id: id.into(),
        revision_number: 1,
        subnet_routing_tables: tables
            .iter()
            .map(|(subnet, rules)| SubnetRoutingTable {
                subnet_id: (*subnet).into(),
                routing_rules: rules.to_vec(),
            })
            .collect(),
        ..Default::default()
    }
}

/// A message that is put together state by state.
pub(super) trait Build: Sized {
    fn vpc(self, operation: OperationType, config: VpcConfiguration) -> Self;
    fn subnet(self, operation: OperationType, config: SubnetConfiguration) -> Self;
    fn port(self, operation: OperationType, config: PortConfiguration) -> Self;
    fn neighbour(self, operation: OperationType, config: NeighborConfiguration) -> Self;
    fn router(self, operation: OperationType, config: RouterConfiguration) -> Self;
    fn group(self, operation: OperationType, config: SecurityGroupConfiguration) -> Self;
}

impl Build for GoalState {
    fn vpc(mut self, operation: OperationType, config: VpcConfiguration) -> Self {
        self.vpc_states.push(VpcState { operation_type: operation as i32, configuration: Some(config) });
        self
    }

    fn subnet(mut self, operation: OperationType, config: SubnetConfiguration) -> Self {
        self.subnet_states
            .push(SubnetState { operation_type: operation as i32, configuration: Some(config) });
        self
    }

    fn port(mut self, operation: OperationType, config: PortConfiguration) -> Self {
        self.port_states.push(PortState { operation_type: operation as i32, configuration: Some(config) });
        self
    }

    fn neighbour(mut self, operation: OperationType, config: NeighborConfiguration) -> Self {
        self.neighbor_states
            .push(NeighborState { operation_type: operation as i32, configuration: Some(config) });
        self
    }

    fn router(mut self, operation: OperationType, config: RouterConfiguration) -> Self {
        self.router_states
            .push(RouterState { operation_type: operation as i32, configuration: Some(config) });
        self
    }

    fn group(mut self, operation: OperationType, config: SecurityGroupConfiguration) -> Self {
        self.security_group_states
            .push(SecurityGroupState { operation_type: operation as i32, configuration: Some(config) });
        self
    }
}

pub(super) fn empty() -> GoalState {
    GoalState { format_version: 101, ..GoalState::default() }
}

/// The update type FULL.
pub(super) const FULL: i32 = UpdateType::Full as i32;

/// A VPC `v` with VNI 10 and a subnet `s` of it, 10.0.0.0/24.
pub(super) fn base() -> GoalState {
    empty().vpc(CREATE, vpc("v", 10)).subnet(CREATE, subnet("s", "v", "10.0.0.0/24", 0))
}

/// MACs by number.
pub(super) fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}
