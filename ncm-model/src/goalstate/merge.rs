//! What a state makes of what is held: FULL replaces it, DELTA leaves what is empty or zero as it is.

use std::collections::BTreeMap;

use crate::wire::router_configuration::{RoutingRule, SubnetRoutingTable};
use crate::wire::{
    DhcpConfiguration, OperationType, PortConfiguration, RouterConfiguration, SubnetConfiguration,
    UpdateType, VpcConfiguration,
};

/// Takes from the held configuration the fields that were sent empty.
macro_rules! keep {
    ($sent:expr, $held:expr; $($field:ident),+) => {$(
        $crate::goalstate::merge::keep_one(&mut $sent.$field, &$held.$field);
    )+};
}

pub(crate) use keep;

/// Leaves what was sent unless it is empty.
pub(crate) fn keep_one<T: Clone + Default + PartialEq>(sent: &mut T, held: &T) {
    if *sent == T::default() {
        sent.clone_from(held);
    }
}

fn is_full(update_type: i32) -> bool {
    update_type == UpdateType::Full as i32
}

/// The VPC that results.
pub(crate) fn vpc(held: Option<&VpcConfiguration>, mut sent: VpcConfiguration) -> VpcConfiguration {
    if let Some(held) = held.filter(|_| !is_full(sent.update_type)) {
        keep!(sent, held; project_id, name, cidr, tunnel_id, gateway_ids);
    }
    sent
}

/// The subnet that results.
pub(crate) fn subnet(
    held: Option<&SubnetConfiguration>,
    mut sent: SubnetConfiguration,
) -> SubnetConfiguration {
    if let Some(held) = held.filter(|_| !is_full(sent.update_type)) {
        keep!(sent, held; network_type, vpc_id, name, cidr, tunnel_id, extra_dhcp_options, dns_entry_list,
              availability_zone);
        match (&mut sent.gateway, &held.gateway) {
            (Some(sent), Some(held)) => {
                keep!(sent, held; ip_address, mac_address);
            }
            (sent, held) => *sent = sent.take().or_else(|| held.clone()),
        }
    }
    sent
}

/// The port that results.
pub(crate) fn port(held: Option<&PortConfiguration>, mut sent: PortConfiguration) -> PortConfiguration {
    if let Some(held) = held.filter(|_| !is_full(sent.update_type)) {
        keep!(sent, held; vpc_id, name, device_id, device_owner, mac_address, fixed_ips, allow_address_pairs,
              security_group_ids, interface_name);
        match (&mut sent.host_info, &held.host_info) {
            (Some(sent), Some(held)) => {
                keep!(sent, held; ip_address, mac_address);
            }
            (sent, held) => *sent = sent.take().or_else(|| held.clone()),
        }
    }
    sent
}

/// The DHCP binding that results.
pub(crate) fn binding(held: Option<&DhcpConfiguration>, mut sent: DhcpConfiguration) -> DhcpConfiguration {
    if let Some(held) = held.filter(|_| !is_full(sent.update_type)) {
        keep!(sent, held; id, ipv4_address, ipv6_address, port_host_name);
    }
    sent
}

fn has_own_operation(rule: &RoutingRule) -> bool {
    [OperationType::Create, OperationType::Update, OperationType::Delete]
        .iter()
        .any(|operation| rule.operation_type == *operation as i32)
}

/// What tells one rule of a table from another: its id, or where it has none, its destination.
fn rule_identity(rule: &RoutingRule) -> (bool, String) {
    if rule.id.is_empty() { (false, rule.destination.clone()) } else { (true, rule.id.clone()) }
}

/// The rules of one table that result; `merge` by item, or replace.
fn rules(held: Vec<RoutingRule>, sent: Vec<RoutingRule>, fieldwise: bool) -> Vec<RoutingRule> {
    let mut result: BTreeMap<_, RoutingRule> = BTreeMap::new();
    for rule in held {
        result.insert(rule_identity(&rule), rule);
    }
    for mut rule in sent {
        let identity = rule_identity(&rule);
        match rule.operation_type() {
            OperationType::Delete => {
                result.remove(&identity);
            }
            OperationType::Get => {}
            operation => {
                if let Some(held) =
                    result.get(&identity).filter(|_| fieldwise && operation == OperationType::Update)
                {
                    keep!(rule, held; name, destination, next_hop_ip, priority, routing_rule_extra_info);
                }
                rule.operation_type = OperationType::Info as i32;
                result.insert(identity, rule);
            }
        }
    }
    result.into_values().collect()
}

/// The router that results. Its tables are a list too: the sent one is complete, unless any rule in it carries its own
/// operation, which makes the whole state a change of single rules.
pub(crate) fn router(
    held: Option<&RouterConfiguration>,
    mut sent: RouterConfiguration,
) -> RouterConfiguration {
    let mut tables: BTreeMap<String, Vec<RoutingRule>> = BTreeMap::new();
    for table in std::mem::take(&mut sent.subnet_routing_tables) {
        tables.entry(table.subnet_id).or_default().extend(table.routing_rules);
    }
    let mut kept: BTreeMap<String, Vec<RoutingRule>> = BTreeMap::new();
    if let Some(held) = held.filter(|_| !is_full(sent.update_type)) {
        keep!(sent, held; host_dvr_mac_address);
        for table in &held.subnet_routing_tables {
            kept.insert(table.subnet_id.clone(), table.routing_rules.clone());
        }
    }
    let itemwise = tables.values().flatten().any(has_own_operation);
    let whole_list = !tables.is_empty() && !itemwise;
    let mut result = BTreeMap::new();
    for (subnet, sent) in tables {
        let held = kept.remove(&subnet).unwrap_or_default();
        let merged = if sent.is_empty() {
            held
        } else if sent.iter().any(has_own_operation) {
            rules(held, sent, true)
        } else {
            rules(Vec::new(), sent, false)
        };
        result.insert(subnet, merged);
    }
    if !whole_list {
        result.append(&mut kept);
    }
    sent.subnet_routing_tables = result
        .into_iter()
        .map(|(subnet_id, routing_rules)| SubnetRoutingTable { subnet_id, routing_rules })
        .collect();
    sent
}
