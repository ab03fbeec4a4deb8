//! DELTA and FULL, item-wise lists, identities, and what a message says of this node.

use super::kernel::Node;
use super::states::*;
use crate::wire::OperationStatus::{Failure, Pending, Success};
use crate::wire::{
    GoalState, GoalStateV2, HostResources, NeighborConfiguration, NeighborRulesRequest, NeighborState,
    OperationType, PortState, ResourceIdType, ResourceType, RouterState, SubnetState, VpcState,
};

fn node() -> Node {
    let mut node = Node::new();
    node.push(&base().subnet(CREATE, subnet("t", "v", "10.0.1.0/24", 11)));
    node
}

fn configuration(node: &Node, id: &str) -> NeighborConfiguration {
    let filter = crate::Filter { id: Some(id.into()), with_state: true, ..Default::default() };
    let (views, _) = node.model.list(&filter, crate::Cursor::default(), 10);
    <NeighborState as prost::Message>::decode(views[0].state.as_slice()).unwrap().configuration.unwrap()
}

#[test]
fn delta_leaves_what_is_sent_empty_and_full_replaces() {
    let mut node = node();
    let mut first = port("p", &mac(1), &[("s", "10.0.0.5")]);
    first.name = "web".into();
    node.push(&empty().port(CREATE, first));
    let delta = crate::wire::PortConfiguration {
        id: "p".into(),
        revision_number: 2,
        admin_state_up: false,
        ..Default::default()
    };
    assert_ne!(node.push(&empty().port(UPDATE, delta))[0].status, crate::wire::OperationStatus::InvalidArg);
    let held = &node.model.ports[node.model.port_by_id["p"]].config;
    assert_eq!((held.name.as_str(), held.mac_address.as_str()), ("web", mac(1).as_str()));
    assert!(!held.admin_state_up, "booleans count as sent");
    let mut full = port("p", &mac(3), &[("t", "10.0.1.5")]);
    full.update_type = FULL;
    full.revision_number = 2;
    node.push(&empty().port(UPDATE, full));
    let held = &node.model.ports[node.model.port_by_id["p"]].config;
    assert_eq!((held.name.as_str(), held.fixed_ips.len()), ("", 1));
    node.check();
}

#[test]
fn a_full_update_without_device_unbinds() {
    let mut node = node();
    node.push(&empty().port(CREATE, port("p", &mac(1), &[("s", "10.0.0.5")])));
    let mut unbound = port("p", &mac(1), &[("s", "10.0.0.5")]);
    unbound.device_id = String::new();
    node.push(&empty().port(UPDATE, unbound.clone()));
    assert_eq!(node.list().len(), 4, "a DELTA keeps the device");
    unbound.update_type = FULL;
    assert_eq!(node.one(&empty().port(UPDATE, unbound.clone())).status, Success);
    assert_eq!(node.list().len(), 3);
    assert!(node.wanted.is_empty());
    assert_eq!(node.one(&empty().port(CREATE, unbound)).status, Pending, "a CREATE is none");
}

#[test]
fn neighbours_addresses_are_added_replaced_and_removed() {
    let mut node = node();
    let sent = |fixed: &[(i32, &str, &str)]| neighbour("n", &mac(1), "192.168.0.2", fixed);
    node.push(&empty().neighbour(CREATE, sent(&[(0, "s", "10.0.0.5")])));
    node.push(&empty().neighbour(UPDATE, sent(&[(0, "s", "10.0.0.6")])));
    assert_eq!(node.kernel.endpoints_ip.len(), 2, "DELTA adds");
    node.push(&empty().neighbour(UPDATE, sent(&[(0, "t", "10.0.0.6")])));
    assert_eq!(
        node.kernel.endpoints_ip.keys().map(|key| key.vni).collect::<Vec<_>>(),
        [10, 11],
        "DELTA updates"
    );
    let mut full = sent(&[(0, "s", "10.0.0.7"), (0, "s", "fd00::7")]);
    full.update_type = FULL;
    node.push(&empty().neighbour(UPDATE, full));
    assert_eq!(node.kernel.endpoints_ip.len(), 2, "FULL replaces");
    node.check();
    node.push(&empty().neighbour(DELETE, sent(&[(0, "s", "fd00::7")])));
    assert_eq!(configuration(&node, "n").fixed_ips.len(), 1, "DELETE removes those listed");
    node.check();
    node.push(&empty().neighbour(DELETE, sent(&[])));
    assert!(node.kernel.endpoints_ip.is_empty() && node.kernel.endpoints_mac.is_empty());
    assert!(node.kernel.hosts.is_empty() && node.kernel.vteps.is_empty());
    node.check();
}

#[test]
fn one_id_is_two_neighbours_by_type() {
    let mut node = node();
    node.push(&empty().router(CREATE, router("r", &[("s", &[]), ("t", &[])])));
    let l2 = neighbour("n", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.5")]);
    let l3 = neighbour("n", &mac(1), "192.168.0.2", &[(1, "s", "10.0.0.5")]);
    let flags = |node: &Node| node.kernel.endpoints_ip.values().next().map(|endpoint| endpoint.flags);
    node.push(&empty().neighbour(CREATE, l2.clone()).neighbour(CREATE, l3.clone()));
    node.check();
    assert_eq!(node.list().iter().filter(|view| view.id == "n").count(), 2);
    assert_eq!(flags(&node), Some(6));
    node.push(&empty().neighbour(DELETE, l2));
    assert_eq!(flags(&node), Some(4), "the L3 claim stays");
    assert!(node.kernel.endpoints_mac.is_empty());
    node.check();
    node.push(&empty().neighbour(DELETE, NeighborConfiguration { fixed_ips: Vec::new(), ..l3 }));
    assert_eq!(flags(&node), None);
}

#[test]
fn rules_merge_by_item_only_where_items_say_so() {
    let mut node = node();
    let held = |node: &Node| -> Vec<String> {
        let router = &node.model.routers[node.model.router_by_id["r"]].config;
        router
            .subnet_routing_tables
            .iter()
            .flat_map(|table| &table.routing_rules)
            .map(|rule| rule.id.clone())
            .collect()
    };
    let rules = [rule("a", "10.5.0.0/16", "10.0.0.9", 1), rule("b", "10.6.0.0/16", "10.0.0.9", 1)];
    node.push(&empty().router(CREATE, router("r", &[("s", &rules), ("t", &[])])));
    assert_eq!(held(&node), ["a", "b"]);
    let revoked = router("r", &[("s", &rules[..1]), ("t", &[])]);
    node.push(&empty().router(UPDATE, revoked));
    assert_eq!(held(&node), ["a"], "a list of INFO rules is complete");
    let mut added = rule("c", "10.7.0.0/16", "10.0.0.9", 1);
    added.operation_type = CREATE as i32;
    node.push(&empty().router(UPDATE, router("r", &[("s", &[added])])));
    assert_eq!(held(&node), ["a", "c"], "items with operations merge");
    assert_eq!(
        node.kernel.subnets.values().filter(|subnet| subnet.flags & 2 != 0).count(),
        2,
        "t stays in the router"
    );
    let mut removed = rule("a", "", "", 0);
    removed.operation_type = DELETE as i32;
    node.push(&empty().router(UPDATE, router("r", &[("s", &[removed])])));
    assert_eq!(held(&node), ["c"]);
    node.push(&empty().router(UPDATE, router("r", &[("s", &[])])));
    assert_eq!(held(&node), ["c"], "an empty list leaves what is held");
    let mut full = router("r", &[("s", &[])]);
    full.update_type = FULL;
    node.push(&empty().router(UPDATE, full));
    assert!(held(&node).is_empty(), "clearing needs FULL");
    node.check();
}

#[test]
fn a_neighbour_to_get_gives_the_next_hop_its_mac() {
    let mut node = node();
    let rules = [rule("a", "0.0.0.0/0", "10.0.0.9", 1)];
    let gateway = neighbour("g", &mac(9), "192.168.0.2", &[(0, "s", "10.0.0.9")]);
    let state = empty()
        .router(OperationType::Info, router("r", &[("s", &rules)]))
        .neighbour(OperationType::Get, gateway);
    node.push(&state);
    let macs: Vec<_> = node.kernel.routes.values().map(|route| route.next_hop_mac).collect();
    assert!(macs.contains(&[2, 0, 0, 0, 0, 9]), "{macs:?}");
    assert!(node.kernel.endpoints_ip.is_empty(), "GET programs nothing else");
    node.push(&empty().router(OperationType::Info, router("r", &[("s", &rules)])));
    assert!(node.kernel.routes.values().any(|route| route.next_hop_mac[5] == 9), "what was learned stays");
}

#[test]
fn neighbour_rules_carry_their_own_vni() {
    let mut node = Node::new();
    let mut config = neighbour("n", &mac(1), "192.168.0.2", &[(0, "", "10.0.0.5")]);
    config.fixed_ips[0].tunnel_id = 99;
    let state = NeighborState { operation_type: CREATE as i32, configuration: Some(config) };
    let request =
        NeighborRulesRequest { format_version: 1, request_id: "q".into(), neigborstates: vec![state] };
    assert_eq!(node.push_rules(&request)[0].status, Success);
    assert_eq!(node.kernel.endpoints_ip.keys().map(|key| key.vni).collect::<Vec<_>>(), [99]);
    assert!(node.kernel.vteps.is_empty(), "frames of a VNI without a subnet are not ours");
    node.check();
}

/// A V2 message with one of each, as Alcor keys them.
fn everything() -> GoalStateV2 {
    let state = base();
    let mut v2 = GoalStateV2 { format_version: 102, ..Default::default() };
    v2.vpc_states.insert("random".into(), state.vpc_states[0].clone());
    v2.subnet_states.insert("other".into(), state.subnet_states[0].clone());
    let port = port("p", &mac(1), &[("s", "10.0.0.5")]);
    v2.port_states.insert("p".into(), PortState { operation_type: 1, configuration: Some(port) });
    let l2 = neighbour("n", &mac(2), "192.168.0.2", &[(0, "s", "10.0.0.6")]);
    v2.neighbor_states.insert("L2/n".into(), NeighborState { operation_type: 1, configuration: Some(l2) });
    let l3 = neighbour("m", &mac(3), "192.168.0.2", &[(0, "s", "10.0.0.7")]);
    v2.neighbor_states.insert("m_n".into(), NeighborState { operation_type: 1, configuration: Some(l3) });
    let router = router("r", &[("s", &[])]);
    let router = RouterState { operation_type: 0, configuration: Some(router) };
    v2.router_states.insert("192.168.0.1/r".into(), router);
    v2
}

fn resources(list: &[(ResourceType, &str)]) -> HostResources {
    let resource =
        |(kind, id): &(ResourceType, &str)| ResourceIdType { r#type: *kind as i32, id: (*id).into() };
    HostResources { resources: list.iter().map(resource).collect() }
}

#[test]
fn without_host_resources_everything_applies() {
    let mut node = Node::new();
    assert_eq!(node.push_v2(&everything()).len(), 6);
    assert_eq!(node.list().len(), 6);
    node.check();
}

#[test]
fn host_resources_select_what_is_listed_and_what_it_refers_to() {
    let mut node = Node::new();
    let mut message = everything();
    let listed = [
        (ResourceType::Port, "p"),
        (ResourceType::Router, "192.168.0.1/r"),
        (ResourceType::Neighbor, "L2/n"),
    ];
    message.host_resources.insert("192.168.0.1".into(), resources(&listed));
    message.host_resources.insert("192.168.0.2".into(), resources(&[(ResourceType::Neighbor, "m")]));
    let ids: Vec<String> = node.push_v2(&message).into_iter().map(|answer| answer.id).collect();
    assert_eq!(ids, ["p", "v", "s", "r", "n"]);
    assert!(node.warnings.is_empty());
    node.check();
}

#[test]
fn a_message_for_other_hosts_applies_nowhere_here() {
    let mut node = Node::new();
    let mut message = everything();
    message.host_resources.insert("192.168.0.2".into(), resources(&[(ResourceType::Port, "p")]));
    assert!(node.push_v2(&message).is_empty());
    assert!(node.list().is_empty());
    assert_eq!(node.warnings.len(), 1, "{:?}", node.warnings);
}

#[test]
fn an_empty_message_is_answered_without_rows() {
    let mut node = Node::new();
    assert!(node.push_v2(&GoalStateV2::default()).is_empty());
    assert!(node.push(&GoalState::default()).is_empty());
}

#[test]
fn what_comes_first_in_a_message_does_not_matter() {
    let mut node = Node::new();
    let state = GoalState {
        neighbor_states: vec![NeighborState {
            operation_type: 1,
            configuration: Some(neighbour("n", &mac(1), "192.168.0.2", &[(1, "s", "10.0.0.5")])),
        }],
        ..base().router(CREATE, router("r", &[("s", &[])]))
    };
    assert!(node.push(&state).iter().all(|answer| answer.status == Success));
}

#[test]
fn states_of_one_resource_take_effect_in_the_order_sent() {
    let mut node = Node::new();
    let state = empty().vpc(CREATE, vpc("v", 10)).vpc(DELETE, vpc("v", 10)).vpc(CREATE, vpc("v", 12));
    node.push(&state);
    assert_eq!(node.model.vpcs["v"].config.tunnel_id, 12);
    let state = empty().vpc(UPDATE, vpc("v", 13)).vpc(DELETE, vpc("v", 10));
    node.push(&state);
    assert!(node.model.vpcs.is_empty());
}

#[test]
fn a_preview_shows_values_as_people_write_them() {
    let mut node = node();
    node.push(&empty().port(CREATE, port("p", &mac(1), &[("s", "10.0.0.5")])));
    node.push(&empty().router(CREATE, router("r", &[("s", &[rule("a", "0.0.0.0/0", "10.0.0.9", 0)])])));
    let gateway = with_gateway(subnet("s", "v", "10.0.0.0/24", 0), "10.0.0.254", "02:00:00:00:00:fe");
    let state = empty()
        .subnet(UPDATE, gateway)
        .port(UPDATE, port("p", &mac(1), &[("s", "10.0.0.5"), ("s", "10.0.0.6")]))
        .router(UPDATE, router("r", &[("s", &[rule("a", "10.9.0.0/16", "10.0.0.9", 0)])]));
    let message = crate::Message::decode_v1(prost::Message::encode_to_vec(&state).into()).unwrap();
    let fields: Vec<String> =
        node.model.preview(&message, 100).into_iter().flat_map(|difference| difference.fields).collect();
    let ends = [
        "-> 10.0.0.254 02:00:00:00:00:fe",
        "fixed_ips: 10.0.0.5 in s -> 10.0.0.5 in s, 10.0.0.6 in s",
        "subnet_routing_tables: s (0.0.0.0/0 via 10.0.0.9) -> s (10.9.0.0/16 via 10.0.0.9)",
    ];
    assert_eq!(fields.len(), ends.len(), "{fields:?}");
    for (field, end) in fields.iter().zip(ends) {
        assert!(field.ends_with(end), "expected …{end}, came {field}");
    }
}

#[test]
fn a_preview_tells_what_would_change_and_changes_nothing() {
    use crate::ChangeKind::{Added, Changed, Refused, Removed, Unchanged};
    let mut node = node();
    node.push(&empty().neighbour(CREATE, neighbour("n", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.5")])));
    let before = node.kernel.clone();
    let state = empty()
        .vpc(CREATE, vpc("v", 10))
        .vpc(CREATE, vpc("w", 20))
        .subnet(UPDATE, subnet("s", "v", "10.0.0.0/25", 0))
        .subnet(DELETE, subnet("t", "", "", 0))
        .port(DELETE, port("p", "", &[]))
        .neighbour(UPDATE, neighbour("n", &mac(2), "192.168.0.2", &[(0, "s", "10.0.0.5")]))
        .neighbour(UPDATE, neighbour("n", "2:0:0:0:0:1", "192.168.0.2", &[(0, "s", "10.0.0.5")]));
    let message = crate::Message::decode_v1(prost::Message::encode_to_vec(&state).into()).unwrap();
    let differences = node.model.preview(&message, 100);
    let kinds: Vec<_> =
        differences.iter().map(|difference| (difference.id.as_str(), difference.change)).collect();
    let expected = [
        ("v", Unchanged),
        ("w", Added),
        ("s", Changed),
        ("t", Removed),
        ("p", Refused),
        ("n", Changed),
        ("n", Unchanged),
    ];
    assert_eq!(kinds, expected, "{differences:#?}");
    assert_eq!(node.kernel, before);
    assert_eq!(node.model.preview(&message, 2).len(), 2);
}

#[test]
fn what_is_listed_makes_the_same_again() {
    let mut node = Node::new();
    node.push_v2(&everything());
    let mut copy = GoalState::default();
    for view in node.list() {
        fn decoded<T: prost::Message + Default>(bytes: &[u8]) -> T {
            T::decode(bytes).unwrap()
        }
        match view.resource_type {
            ResourceType::Vpc => copy.vpc_states.push(decoded::<VpcState>(&view.state)),
            ResourceType::Subnet => copy.subnet_states.push(decoded::<SubnetState>(&view.state)),
            ResourceType::Port => copy.port_states.push(decoded::<PortState>(&view.state)),
            ResourceType::Neighbor => copy.neighbor_states.push(decoded::<NeighborState>(&view.state)),
            _ => copy.router_states.push(decoded::<RouterState>(&view.state)),
        }
    }
    let mut other = Node::new();
    other.push(&copy);
    assert_eq!(node.kernel.renamed(), other.kernel.renamed());
    assert_eq!(other.one(&empty().subnet(DELETE, subnet("x", "", "", 0))).status, Failure);
}
