//! What holds whatever comes, in whatever order.

use proptest::prelude::*;

use super::kernel::{HERE, Node};
use super::states::{
    Build, CREATE, DELETE, FULL, UPDATE, empty, mac, neighbour, port, router, rule, subnet, vpc, with_gateway,
};
use crate::wire::port_configuration::SecurityGroupId;
use crate::wire::security_group_configuration::SecurityGroupRule;
use crate::wire::{
    GoalState, NeighborState, OperationStatus, OperationType, PortState, ResourceType, RouterState,
    SecurityGroupConfiguration, SecurityGroupState, SubnetState, VpcState,
};
use prost::Message as _;

/// A security group's rule, by number: direction, version, protocol, port, and what is at the other end.
pub(super) type GroupRule = (u8, u8, u8, u8, u8);

/// A rule's destination, priority and next hop, by number.
pub(super) type RuleEvent = (u8, u8, u8);

/// One event of a history over few identities, so that they meet.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Vpc {
        id: u8,
        vni: u8,
        delete: bool,
    },
    Subnet {
        id: u8,
        vpc: u8,
        net: u8,
        vni: u8,
        gateway: bool,
        delete: bool,
    },
    Port {
        id: u8,
        mac: u8,
        fixed: Vec<(u8, u8)>,
        pair: u8,
        groups: Vec<u8>,
        up: bool,
        operation: u8,
    },
    Neighbour {
        id: u8,
        mac: u8,
        host: u8,
        fixed: Vec<(bool, u8, u8, u8)>,
        groups: Vec<u8>,
        full: bool,
        delete: bool,
    },
    Group {
        id: u8,
        rules: Vec<GroupRule>,
        delete: bool,
    },
    Router {
        id: u8,
        tables: Vec<(u8, Vec<RuleEvent>)>,
        full: bool,
        delete: bool,
    },
    Interface {
        id: u8,
        ifindex: u8,
    },
}

/// Security groups of an endpoint: seldom any.
fn groups() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(0_u8..3, 1..3)]
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let few = 0_u8..4;
    let vpc = (0_u8..2, 0_u8..2, prop::bool::weighted(0.2)).prop_map(|(id, vni, delete)| Event::Vpc {
        id,
        vni,
        delete,
    });
    let subnet =
        (few.clone(), 0_u8..3, 0_u8..5, 0_u8..3, any::<bool>(), prop::bool::weighted(0.25)).prop_map(
            |(id, vpc, net, vni, gateway, delete)| Event::Subnet { id, vpc, net, vni, gateway, delete },
        );
    let port = (
        few.clone(),
        0_u8..5,
        prop::collection::vec((0_u8..4, 0_u8..9), 1..4),
        0_u8..7,
        groups(),
        any::<bool>(),
        0_u8..4,
    )
        .prop_map(|(id, mac, fixed, pair, groups, up, operation)| Event::Port {
            id,
            mac,
            fixed,
            pair,
            groups,
            up,
            operation,
        });
    let neighbour = (
        0_u8..6,
        0_u8..5,
        0_u8..4,
        prop::collection::vec((any::<bool>(), 0_u8..4, 0_u8..9, 0_u8..6), 0..4),
        groups(),
        any::<bool>(),
        prop::bool::weighted(0.25),
    )
        .prop_map(|(id, mac, host, fixed, groups, full, delete)| Event::Neighbour {
            id,
            mac,
            host,
            fixed,
            groups,
            full,
            delete,
        });
    let rules = prop::collection::vec((0_u8..5, 0_u8..5, 0_u8..7), 0..3);
    let router =
        (0_u8..3, prop::collection::vec((0_u8..4, rules), 0..4), any::<bool>(), prop::bool::weighted(0.25))
            .prop_map(|(id, tables, full, delete)| Event::Router { id, tables, full, delete });
    let interface = (few, 0_u8..4).prop_map(|(id, ifindex)| Event::Interface { id, ifindex });
    let rules = prop::collection::vec((0_u8..2, 0_u8..2, 0_u8..3, 0_u8..3, 0_u8..7), 0..5);
    let group = (0_u8..3, rules, prop::bool::weighted(0.2)).prop_map(|(id, rules, delete)| Event::Group {
        id,
        rules,
        delete,
    });
    prop_oneof![1 => vpc, 3 => subnet, 3 => port, 6 => neighbour, 3 => router, 1 => interface, 2 => group]
}

const NETS: [&str; 5] = ["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/16", "fd00::/64", "fd00::/16"];
const IPS: [&str; 9] = [
    "10.0.0.5",
    "10.0.0.6",
    "10.0.1.5",
    "10.0.1.6",
    "10.0.0.7",
    "fd00::5",
    "fd00::6",
    "fd00:1::5",
    "10.0.2.9",
];
const HOSTS: [&str; 4] = ["192.168.0.2", "192.168.0.3", HERE, "fd01::2"];
const DESTINATIONS: [&str; 5] = ["0.0.0.0/0", "10.0.1.0/24", "10.9.0.0/16", "::/0", "fd00::/64"];
const NEXT_HOPS: [&str; 7] = ["10.0.0.5", "10.0.1.6", "10.7.0.1", "10.0.2.1", "", "fd00::1", "fd00:1::1"];

const PREFIXES: [&str; 4] = ["10.0.0.0/8", "10.0.0.0/24", "fd00::/16", "::/0"];

fn group_rule(
    group: &str,
    number: usize,
    (direction, version, protocol, port, other): GroupRule,
) -> SecurityGroupRule {
    let (version, prefix) = match usize::from(other).checked_sub(1).and_then(|other| PREFIXES.get(other)) {
        Some(prefix) => (i32::from(prefix.contains(':')), *prefix),
        None => (i32::from(version), ""),
    };
    SecurityGroupRule {
        security_group_id: group.into(),
        id: format!("{group}-{number}"),
        direction: i32::from(direction),
        ethertype: version,
        protocol: i32::from(protocol),
        port_range_min: u32::from(port) * 100,
        port_range_max: u32::from(port) * 150,
        remote_ip_prefix: prefix.into(),
        remote_group_id: if other > 4 { format!("g{}", other - 4) } else { String::new() },
        ..Default::default()
    }
}

impl Event {
    pub(super) fn add(&self, state: GoalState, revision: Option<u32>) -> GoalState {
        let operation = |delete: bool| if delete { DELETE } else { CREATE };
        // Equal revisions let the latest win; distinct ones make histories comparable.
        let distinct = revision.is_some();
        let revision = |id: u8| revision.map_or(1, |base| base + u32::from(id));
        match self {
            Self::Vpc { id, vni, delete } => {
                let mut config = vpc(&format!("v{id}"), u32::from(*vni + *id * 2) + 10);
                config.revision_number = revision(*id);
                state.vpc(operation(*delete), config)
            }
            Self::Subnet { id, vpc, net, vni, gateway, delete } => {
                let own = if *vni == 0 { 0 } else { 10 + u64::from(*vpc) * 2 + u64::from(*vni) - 1 };
                let mut config = subnet(&format!("s{id}"), &format!("v{vpc}"), NETS[usize::from(*net)], own);
                config.revision_number = revision(*id);
                config.update_type = FULL;
                if *gateway {
                    let ip = if *net >= 3 { "fd00::1" } else { "10.0.0.1" };
                    config = with_gateway(config, ip, &mac(200 + id));
                }
                state.subnet(operation(*delete), config)
            }
            Self::Port { id, mac: number, fixed, pair, groups, up, operation } => {
                let names: Vec<String> = fixed.iter().map(|(subnet, _)| format!("s{subnet}")).collect();
                let fixed: Vec<(&str, &str)> = names
                    .iter()
                    .zip(fixed)
                    .map(|(name, (_, ip))| (name.as_str(), IPS[usize::from(*ip)]))
                    .collect();
                let mut config = port(&format!("p{id}"), &mac(*number), &fixed);
                config.admin_state_up = *up;
                config.revision_number = revision(*id + 100);
                config.update_type = FULL;
                // Ports 2 and 3 want the same interface.
                config.interface_name = format!("tap{}", (*id).min(2));
                config.security_group_ids =
                    groups.iter().map(|group| SecurityGroupId { id: format!("g{group}") }).collect();
                let pairs = [
                    ("10.0.0.77", ""),
                    ("10.5.0.0/16", "02:00:00:00:00:03"),
                    ("10.0.0.5", ""),
                    ("::/0", ""),
                    ("fd00::5", "02:00:00:00:00:04"),
                    ("fd00:1::/64", ""),
                ];
                if let Some((ip, mac)) = pairs.get(usize::from(*pair)) {
                    config.allow_address_pairs = vec![crate::wire::port_configuration::AllowAddressPair {
                        ip_address: (*ip).into(),
                        mac_address: (*mac).into(),
                    }];
                }
                state.port(if *operation == 0 { DELETE } else { UPDATE }, config)
            }
            Self::Neighbour { id, mac: number, host, fixed, groups, full, delete } => {
                let names: Vec<String> = fixed.iter().map(|(_, subnet, ..)| format!("s{subnet}")).collect();
                let list: Vec<(i32, &str, &str)> = names
                    .iter()
                    .zip(fixed)
                    .map(|(name, (l3, _, ip, _))| {
                        // Both types of one id have one revision: between them, the latest would win.
                        let l3 = if distinct { *id >= 3 } else { *l3 };
                        (i32::from(l3), name.as_str(), IPS[usize::from(*ip)])
                    })
                    .collect();
                // Some ids are UUIDs, some are not.
                let id_text = if id % 2 == 0 {
                    format!("n{id}")
                } else {
                    format!("00000000-0000-4000-8000-00000000000{id}")
                };
                let mut config = neighbour(&id_text, &mac(*number), HOSTS[usize::from(*host)], &list);
                config.revision_number = revision(*id + 150);
                config.update_type = if *full { FULL } else { 0 };
                config.security_group_ids = groups.iter().map(|group| format!("g{group}")).collect();
                for (config, (.., tunnel)) in config.fixed_ips.iter_mut().zip(fixed) {
                    config.tunnel_id = if *tunnel == 0 { 12 } else { 0 };
                }
                state.neighbour(operation(*delete), config)
            }
            Self::Router { id, tables, full, delete } => {
                let tables: Vec<(String, Vec<_>)> = tables
                    .iter()
                    .map(|(subnet, rules)| {
                        let rules =
                            rules.iter().enumerate().map(|(number, (destination, priority, next_hop))| {
                                let (destination, next_hop) = (
                                    DESTINATIONS[usize::from(*destination)],
                                    NEXT_HOPS[usize::from(*next_hop)],
                                );
                                rule(
                                    &format!("r{subnet}-{number}"),
                                    destination,
                                    next_hop,
                                    u32::from(*priority),
                                )
                            });
                        (format!("s{subnet}"), rules.collect())
                    })
                    .collect();
                let tables: Vec<_> =
                    tables.iter().map(|(subnet, rules)| (subnet.as_str(), rules.as_slice())).collect();
                let mut config = router(&format!("r{id}"), &tables);
                config.update_type = if *full { FULL } else { 0 };
                config.revision_number = revision(*id + 200);
                config.host_dvr_mac_address = if *id == 1 { mac(99) } else { String::new() };
                state.router(operation(*delete), config)
            }
            Self::Group { id, rules, delete } => {
                let id_text = format!("g{id}");
                let rules =
                    rules.iter().enumerate().map(|(number, rule)| group_rule(&id_text, number, *rule));
                let configuration = SecurityGroupConfiguration {
                    id: id_text.clone(),
                    revision_number: revision(*id + 50),
                    update_type: FULL,
                    security_group_rules: rules.collect(),
                    ..Default::default()
                };
                state.group(operation(*delete), configuration)
            }
            Self::Interface { .. } => state,
        }
    }

    pub(super) fn interface(&self, node: &mut Node) {
        if let Self::Interface { id, ifindex } = self {
            let name = format!("tap{}", (*id).min(2));
            let facts = (*ifindex > 0).then(|| crate::InterfaceFacts {
                ifindex: u32::from(*ifindex) + 10 * u32::from((*id).min(2)),
                mtu: 1450,
                xdp_target: *ifindex == 2,
            });
            node.interface(&name, facts);
        }
    }
}

/// What a node holds, as states that make it.
fn held(node: &Node) -> Vec<(ResourceType, Vec<u8>)> {
    node.list().into_iter().map(|view| (view.resource_type, view.state)).collect()
}

fn add_held(
    mut goal: GoalState,
    resource: ResourceType,
    state: &[u8],
    operation: OperationType,
) -> GoalState {
    macro_rules! add {
        ($list:ident, $state:ident) => {{
            let mut state = $state::decode(state).unwrap();
            state.operation_type = operation as i32;
            if let Some(config) = &mut state.configuration {
                config.update_type = if operation == DELETE { 0 } else { FULL };
            }
            goal.$list.push(state);
        }};
    }
    match resource {
        ResourceType::Vpc => add!(vpc_states, VpcState),
        ResourceType::Subnet => add!(subnet_states, SubnetState),
        ResourceType::Port => add!(port_states, PortState),
        ResourceType::Neighbor => add!(neighbor_states, NeighborState),
        ResourceType::Router => add!(router_states, RouterState),
        ResourceType::Securitygroup => add!(security_group_states, SecurityGroupState),
        _ => {}
    }
    goal
}

pub(super) fn interfaces_of(node: &Node) -> Vec<(String, crate::InterfaceFacts)> {
    node.model
        .interfaces
        .iter()
        .filter_map(|(name, interface)| Some((name.clone(), interface.facts?)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// After every message, what has been written is what a compiler that starts from scratch makes of the held states.
    #[test]
    fn incremental_equals_from_scratch(
        messages in prop::collection::vec(prop::collection::vec(event(), 1..5), 1..25),
        step in 1_usize..6,
    ) {
        let mut node = Node::new();
        node.step = step;
        for events in &messages {
            let state = events.iter().fold(empty(), |state, event| event.add(state, None));
            node.push(&state);
            events.iter().for_each(|event| event.interface(&mut node));
            node.check();
        }
    }

    /// Any other order, with repetitions, of messages that end in the same states ends in the same tables.
    #[test]
    fn any_order_converges(
        events in prop::collection::vec(event(), 1..40),
        order in any::<proptest::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let mut first = Node::new();
        for event in &events {
            first.push(&event.add(empty(), Some(5)));
            event.interface(&mut first);
        }
        let mut states = held(&first);
        // A permutation, and a repetition of some part.
        let mut random = seed | 1;
        for position in (1..states.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            states.swap(position, (random >> 33) as usize % (position + 1));
        }
        let mut second = Node::new();
        let again = if states.is_empty() { 0 } else { order.index(states.len()) };
        for (resource, state) in states.iter().chain(&states[..again]) {
            second.push(&add_held(empty(), *resource, state, CREATE));
        }
        for (name, facts) in interfaces_of(&first) {
            second.interface(&name, Some(facts));
        }
        second.check();
        prop_assert_eq!(first.model.digests(), second.model.digests());
        let (ours, theirs) = (first.kernel.renamed(), second.kernel.renamed());
        prop_assert_eq!(
            ours.difference(&theirs).collect::<Vec<_>>(), theirs.difference(&ours).collect::<Vec<_>>()
        );
    }

    /// Deleting everything, in any order, leaves nothing: neither in the tables nor in memory.
    #[test]
    fn delete_undoes_create(events in prop::collection::vec(event(), 1..40), reverse in any::<bool>()) {
        let mut node = Node::new();
        for event in &events {
            node.push(&event.add(empty(), None));
            event.interface(&mut node);
        }
        let mut states = held(&node);
        if reverse {
            states.reverse();
        }
        for (resource, state) in &states {
            let answers = node.push(&add_held(empty(), *resource, state, DELETE));
            for answer in answers {
                prop_assert_eq!(answer.status, OperationStatus::Success, "{:?}", answer);
            }
            node.check();
        }
        prop_assert!(node.list().is_empty());
        prop_assert_eq!(&node.kernel, &super::kernel::Kernel::default());
        prop_assert!(node.wanted.is_empty());
        let model = &node.model;
        prop_assert_eq!(model.addresses.bound(), 0);
        prop_assert_eq!(model.neighbours.bound(), 0);
        prop_assert_eq!(model.subnets.bound(), 0);
        prop_assert_eq!(model.hosts.slots.bound(), 0);
        prop_assert_eq!(model.v6.bound(), 0);
        prop_assert_eq!(model.parked, 0);
        prop_assert!(model.vteps.is_empty() && model.vni_owners.is_empty() && model.vni_subnets.is_empty());
        prop_assert!(model.prefix_claims.is_empty() && model.bound.is_empty() && model.interfaces.is_empty());
        prop_assert!(model.group_ports.is_empty() && model.fresh_ports.is_empty());
    }
}
