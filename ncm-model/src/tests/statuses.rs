//! The answer to every condition of the contract's table of statuses.

use super::kernel::{HERE, HERE_V6, Node};
use super::states::*;
use crate::settings::{Limits, MissingGroup, Settings, Slots};
use crate::wire::OperationStatus::{Failure, InvalidArg, OutOfOrder, Pending, Success};
use crate::wire::port_configuration::SecurityGroupId;
use crate::wire::security_group_configuration::SecurityGroupRule;
use crate::wire::{
    DhcpConfiguration, DhcpState, GatewayConfiguration, GatewayState, GoalState, OperationStatus,
    OperationType, ResourceType, SecurityGroupConfiguration, SecurityGroupState, VpcState,
};

fn status(node: &mut Node, state: &GoalState) -> OperationStatus {
    node.one(state).status
}

/// A node that holds VPC `v`, subnet `s` and nothing else.
fn node() -> Node {
    let mut node = Node::new();
    node.push(&base());
    node
}

fn a_port() -> crate::wire::PortConfiguration {
    port("p", &mac(1), &[("s", "10.0.0.5")])
}

fn a_neighbour() -> crate::wire::NeighborConfiguration {
    neighbour("n", &mac(2), "192.168.0.2", &[(0, "s", "10.0.0.6")])
}

#[test]
fn what_is_applied_or_already_so_is_success() {
    let mut node = Node::new();
    for _ in 0..2 {
        assert!(node.push(&base()).iter().all(|answer| answer.status == Success));
        assert_eq!(status(&mut node, &empty().neighbour(CREATE, a_neighbour())), Success);
    }
    let version = node.list().iter().map(|view| view.version).max();
    node.push(&base());
    assert_eq!(node.list().iter().map(|view| view.version).max(), version, "a repetition is no change");
}

#[test]
fn deleting_what_was_never_held_fails_except_for_neighbours_and_dhcp() {
    let mut node = Node::new();
    assert_eq!(status(&mut node, &empty().vpc(DELETE, vpc("x", 0))), Failure);
    assert_eq!(status(&mut node, &empty().subnet(DELETE, subnet("x", "", "", 0))), Failure);
    assert_eq!(status(&mut node, &empty().port(DELETE, port("x", "", &[]))), Failure);
    assert_eq!(status(&mut node, &empty().router(DELETE, router("x", &[]))), Failure);
    assert_eq!(status(&mut node, &empty().neighbour(DELETE, neighbour("x", "", "", &[]))), Success);
    let mut dhcp = DhcpState { operation_type: DELETE as i32, ..Default::default() };
    dhcp.configuration = Some(DhcpConfiguration { mac_address: mac(1), ..Default::default() });
    assert_eq!(status(&mut node, &GoalState { dhcp_states: vec![dhcp], ..empty() }), Success);
    let mut group = SecurityGroupState { operation_type: DELETE as i32, ..Default::default() };
    group.configuration = Some(SecurityGroupConfiguration { id: "x".into(), ..Default::default() });
    assert_eq!(status(&mut node, &GoalState { security_group_states: vec![group], ..empty() }), Failure);
    let mut gateway = GatewayState { operation_type: DELETE as i32, ..Default::default() };
    gateway.configuration = Some(GatewayConfiguration { id: "x".into(), ..Default::default() });
    assert_eq!(status(&mut node, &GoalState { gateway_states: vec![gateway], ..empty() }), Failure);
}

#[test]
fn deleting_twice_is_success_while_the_tombstone_is_held() {
    let mut node = node();
    node.push(&empty().port(CREATE, a_port()));
    for _ in 0..2 {
        assert_eq!(status(&mut node, &empty().port(DELETE, a_port())), Success);
        assert_eq!(status(&mut node, &empty().subnet(DELETE, subnet("s", "", "", 0))), Success);
        assert_eq!(status(&mut node, &empty().vpc(DELETE, vpc("v", 0))), Success);
    }
    node.now += Limits::default().tombstone_age_s + 1;
    assert_eq!(status(&mut node, &empty().port(DELETE, a_port())), Failure, "the tombstone is too old");
}

#[test]
fn get_changes_nothing() {
    let mut node = Node::new();
    assert_eq!(status(&mut node, &empty().vpc(OperationType::Get, vpc("v", 10))), Success);
    assert_eq!(status(&mut node, &empty().neighbour(OperationType::Get, a_neighbour())), Success);
    assert!(node.list().is_empty());
}

#[test]
fn info_creates_and_updates() {
    let mut node = Node::new();
    let state = empty()
        .vpc(OperationType::Info, vpc("v", 10))
        .subnet(OperationType::Info, subnet("s", "v", "10.0.0.0/24", 0));
    node.push(&state);
    assert_eq!(status(&mut node, &empty().neighbour(OperationType::Info, a_neighbour())), Success);
    assert_eq!(node.kernel.endpoints_ip.len(), 1);
}

#[test]
fn malformed_values_are_invalid_and_change_nothing() {
    let mut node = node();
    let before = node.kernel.clone();
    let mut states = Vec::new();
    for tunnel in [0, 16_777_216] {
        states.push(empty().vpc(CREATE, vpc("w", tunnel)));
    }
    states.push(empty().vpc(CREATE, vpc("", 11)));
    states.push(
        empty().vpc(CREATE, crate::wire::VpcConfiguration { cidr: "10.0.0.0/33".into(), ..vpc("w", 11) }),
    );
    states.push(empty().vpc(CREATE, vpc("w", 10)));
    states.push(GoalState { vpc_states: vec![VpcState::default()], ..empty() });
    for cidr in ["", "10.0.0.0/33", "10.0.0/8", "x", "10.0.0.0/", "10.0.0.0/-1"] {
        states.push(empty().subnet(CREATE, subnet("t", "v", cidr, 0)));
    }
    states.push(empty().subnet(CREATE, subnet("t", "v", "10.1.0.0/24", 16_777_216)));
    states.push(empty().subnet(CREATE, subnet("t", "v", "10.1.0.0/24", 1 << 32 | 10)));
    states.push(empty().subnet(CREATE, subnet("t", "", "10.1.0.0/24", 0)));
    states.push(empty().subnet(CREATE, subnet("t", "w", "10.1.0.0/24", 10)));
    let vlan = crate::wire::SubnetConfiguration { network_type: 1, ..subnet("t", "v", "10.1.0.0/24", 4_095) };
    states.push(empty().subnet(CREATE, vlan));
    states.push(empty().subnet(CREATE, with_gateway(subnet("t", "v", "10.1.0.0/24", 0), "10.1.0.256", "")));
    states.push(empty().subnet(CREATE, with_gateway(subnet("t", "v", "10.1.0.0/24", 0), "10.1.0.1", "2:2")));
    for bad in ["", "02:00", "02:00:00:00:00:00:01", "02:00:00:00:00:0g", "ff:ff:ff:ff:ff:ff", "0:0:0:0:0:0"]
    {
        states.push(empty().port(CREATE, port("q", bad, &[("s", "10.0.0.9")])));
        states.push(empty().neighbour(CREATE, neighbour("m", bad, "192.168.0.2", &[(0, "s", "10.0.0.9")])));
    }
    for bad in ["", "10.0.0", "10.0.0.256", "0.0.0.0", "255.255.255.255", "224.0.0.1", "::", "x"] {
        states.push(empty().port(CREATE, port("q", &mac(1), &[("s", bad)])));
        states.push(empty().neighbour(CREATE, neighbour("m", &mac(1), "192.168.0.2", &[(0, "s", bad)])));
        states.push(empty().neighbour(CREATE, neighbour("m", &mac(1), bad, &[(0, "s", "10.0.0.9")])));
    }
    states.push(empty().port(CREATE, port("q", &mac(1), &[])));
    states.push(empty().port(CREATE, port("q", &mac(1), &[("", "10.0.0.9")])));
    states.push(empty().port(CREATE, port("q", &mac(1), &[("s", "10.0.0.9"), ("t", "10.0.0.9")])));
    let named = |name: &str| crate::wire::PortConfiguration { interface_name: name.into(), ..a_port() };
    states.extend(["a/b", "..", "sixteencharacter", "a b"].map(|name| empty().port(CREATE, named(name))));
    states.push(empty().neighbour(CREATE, neighbour("m", &mac(1), "192.168.0.2", &[])));
    states.push(empty().neighbour(CREATE, neighbour("", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.9")])));
    states.push(empty().neighbour(CREATE, neighbour("m", &mac(1), "192.168.0.2", &[(2, "s", "10.0.0.9")])));
    states.push(empty().neighbour(CREATE, neighbour("m", &mac(1), "192.168.0.2", &[(0, "", "10.0.0.9")])));
    let mut tunnel = neighbour("m", &mac(1), "192.168.0.2", &[(0, "s", "10.0.0.9")]);
    tunnel.fixed_ips[0].tunnel_id = 16_777_216;
    states.push(empty().neighbour(CREATE, tunnel));
    states.push(empty().router(CREATE, router("", &[("s", &[])])));
    states.push(empty().router(CREATE, router("r", &[("s", &[rule("a", "x", "10.0.0.9", 1)])])));
    states.push(empty().router(CREATE, router("r", &[("s", &[rule("a", "0.0.0.0/0", "x", 1)])])));
    let bad_mac = with_mac(rule("a", "0.0.0.0/0", "10.0.0.9", 1), "x");
    states.push(empty().router(CREATE, router("r", &[("s", &[bad_mac])])));
    states.push(empty().router(CREATE, router("r", &[("", &[])])));
    let dvr = crate::wire::RouterConfiguration { host_dvr_mac_address: "x".into(), ..router("r", &[]) };
    states.push(empty().router(CREATE, dvr));
    let odd = crate::wire::VpcConfiguration { update_type: 7, ..vpc("w", 11) };
    states.push(empty().vpc(CREATE, odd));
    let mut unknown = empty().vpc(CREATE, vpc("w", 11));
    unknown.vpc_states[0].operation_type = 9;
    states.push(unknown);
    for state in &states {
        assert_eq!(status(&mut node, state), InvalidArg, "{state:?}");
    }
    assert_eq!(node.kernel, before);
    assert_eq!(node.list().len(), 2);
    node.check();
}

#[test]
fn a_vni_passes_from_one_vpc_to_another_in_one_message() {
    let mut node = node();
    let state =
        empty().vpc(CREATE, vpc("w", 10)).vpc(DELETE, vpc("v", 0)).subnet(DELETE, subnet("s", "", "", 0));
    assert!(node.push(&state).iter().all(|answer| answer.status == Success));
    assert_eq!(status(&mut node, &empty().vpc(CREATE, vpc("x", 10))), InvalidArg);
}

#[test]
fn a_void_security_group_is_ignored() {
    let mut node = Node::new();
    let state = SecurityGroupState {
        operation_type: CREATE as i32,
        configuration: Some(SecurityGroupConfiguration::default()),
    };
    assert_eq!(status(&mut node, &GoalState { security_group_states: vec![state], ..empty() }), Success);
    assert!(node.list().is_empty());
    let rules = SecurityGroupConfiguration {
        security_group_rules: vec![SecurityGroupRule::default()],
        ..Default::default()
    };
    let state = SecurityGroupState { operation_type: CREATE as i32, configuration: Some(rules) };
    assert_eq!(status(&mut node, &GoalState { security_group_states: vec![state], ..empty() }), InvalidArg);
}

#[test]
fn what_is_not_supported_yet_is_kept_and_a_failure() {
    let mut node = Node::new();
    let gateway = GatewayConfiguration { id: "g".into(), revision_number: 3, ..Default::default() };
    let state = |operation: OperationType, gateway: &GatewayConfiguration| GoalState {
        gateway_states: vec![GatewayState {
            operation_type: operation as i32,
            configuration: Some(gateway.clone()),
        }],
        ..empty()
    };
    let answer = node.one(&state(CREATE, &gateway));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("not supported yet"), "{}", answer.cause);
    assert_eq!(node.list()[0].resource_type, ResourceType::Gateway);
    assert_eq!(node.standing("g").0, Failure);
    let older = GatewayConfiguration { revision_number: 2, ..gateway.clone() };
    assert_eq!(status(&mut node, &state(CREATE, &older)), OutOfOrder);
    assert_eq!(status(&mut node, &state(DELETE, &gateway)), Success);
    assert!(node.list().is_empty());
}

#[test]
fn a_port_waits_for_its_subnet_and_its_interface() {
    let mut node = Node::new();
    let answer = node.one(&empty().port(CREATE, a_port()));
    assert_eq!(answer.status, Pending);
    assert!(answer.cause.contains("subnet s"), "{}", answer.cause);
    assert!(node.wanted.contains("tapp"));
    node.push(&base());
    node.check();
    let (status, cause) = node.standing("p");
    assert_eq!(status, Pending);
    assert!(cause.contains("interface tapp"), "{cause}");
    node.appear("tapp", 7);
    node.check();
    assert_eq!(node.standing("p").0, Success);
    assert_eq!(node.kernel.port_by_interface.len(), 1);
    node.interface("tapp", None);
    assert!(node.kernel.port_by_interface.is_empty());
    node.appear("tapp", 9);
    node.check();
    assert_eq!(node.kernel.port_by_interface.keys().collect::<Vec<_>>(), [&9]);
    node.push(&empty().port(DELETE, a_port()));
    assert!(node.wanted.is_empty() && node.kernel.port_by_interface.is_empty());
}

#[test]
fn a_port_whose_program_cannot_be_attached_is_a_failure() {
    let mut node = node();
    node.push(&empty().port(CREATE, a_port()));
    let mut changes = crate::Changes::default();
    node.model.attach_failed("tapp", "no such thing", &mut changes);
    let (status, cause) = node.standing("p");
    assert_eq!(status, Failure);
    assert!(cause.contains("no such thing"), "{cause}");
    node.appear("tapp", 7);
    assert_eq!(node.standing("p").0, Success);
}

#[test]
fn a_port_that_names_a_group_is_closed_unless_the_node_says_open() {
    for (missing_group, expected) in [(MissingGroup::Closed, Pending), (MissingGroup::Open, Success)] {
        let mut node = Node::with(Settings { missing_group, ..Settings::default() });
        node.push(&base());
        let mut config = a_port();
        config.security_group_ids = vec![SecurityGroupId { id: "g".into() }];
        node.push(&empty().port(CREATE, config));
        node.appear("tapp", 7);
        node.check();
        assert_eq!(node.standing("p").0, expected);
        let closed =
            node.kernel.ports.values().next().unwrap().flags & ncm_common::tables::port_flags::CLOSED;
        assert_eq!(closed != 0, expected == Pending);
    }
}

#[test]
fn neighbours_wait_for_subnet_and_router_and_complete_by_themselves() {
    let mut node = Node::new();
    let l3 = neighbour("n", &mac(2), "192.168.0.2", &[(1, "s", "10.0.0.6")]);
    let answer = node.one(&empty().neighbour(CREATE, l3));
    assert_eq!(answer.status, Pending);
    assert!(answer.cause.contains("subnet s is not known"), "{}", answer.cause);
    node.push(&base());
    let (status, cause) = node.standing("n");
    assert_eq!(status, Pending);
    assert!(cause.contains("router"), "{cause}");
    node.push(&empty().router(CREATE, router("r", &[("s", &[])])));
    assert_eq!(node.standing("n").0, Success);
    assert_eq!((node.kernel.endpoints_ip.len(), node.kernel.endpoints_mac.len()), (1, 0));
    node.check();
    // Deleting what is in use succeeds, and parks what depends on it.
    assert_eq!(super::statuses::status(&mut node, &empty().router(DELETE, router("r", &[]))), Success);
    assert_eq!(node.standing("n").0, Pending);
    assert!(node.kernel.endpoints_ip.is_empty());
    node.push(&empty().router(CREATE, router("r", &[("s", &[])])));
    assert_eq!(super::statuses::status(&mut node, &empty().subnet(DELETE, subnet("s", "", "", 0))), Success);
    assert_eq!(node.standing("n").0, Pending);
    assert_eq!(node.standing("r").0, Pending);
    node.check();
}

#[test]
fn lower_revisions_are_out_of_order_and_tombstones_hold() {
    let mut node = node();
    let at = |revision| crate::wire::NeighborConfiguration { revision_number: revision, ..a_neighbour() };
    assert_eq!(status(&mut node, &empty().neighbour(CREATE, at(5))), Success);
    assert_eq!(status(&mut node, &empty().neighbour(UPDATE, at(4))), OutOfOrder);
    assert_eq!(status(&mut node, &empty().neighbour(DELETE, at(4))), OutOfOrder);
    assert_eq!(status(&mut node, &empty().neighbour(UPDATE, at(0))), Success, "unversioned is accepted");
    assert_eq!(status(&mut node, &empty().neighbour(UPDATE, at(4))), OutOfOrder, "and forgets no revision");
    assert_eq!(status(&mut node, &empty().neighbour(UPDATE, at(5))), Success);
    assert_eq!(status(&mut node, &empty().neighbour(UPDATE, at(6))), Success);
    assert_eq!(status(&mut node, &empty().neighbour(DELETE, at(6))), Success);
    assert_eq!(status(&mut node, &empty().neighbour(CREATE, at(5))), OutOfOrder, "the tombstone is held");
    assert!(node.kernel.endpoints_ip.is_empty());
    assert_eq!(status(&mut node, &empty().neighbour(CREATE, at(6))), Success);
    let older = crate::wire::PortConfiguration { revision_number: 1, ..a_port() };
    let newer = crate::wire::PortConfiguration { revision_number: 2, ..a_port() };
    node.push(&empty().port(CREATE, newer.clone()));
    assert_eq!(status(&mut node, &empty().port(UPDATE, older.clone())), OutOfOrder);
    assert_eq!(status(&mut node, &empty().port(DELETE, newer)), Success);
    assert_eq!(status(&mut node, &empty().port(CREATE, older)), OutOfOrder);
}

#[test]
fn tombstones_are_bounded_in_number() {
    let limits = Limits { tombstones: 2, ..Limits::default() };
    let mut node = Node::with(Settings { limits, ..Settings::default() });
    for id in 1..=3 {
        let id = format!("v{id}");
        node.push(&empty().vpc(CREATE, vpc(&id, 20)));
        node.push(&empty().vpc(DELETE, vpc(&id, 20)));
    }
    assert_eq!(status(&mut node, &empty().vpc(DELETE, vpc("v1", 0))), Failure, "the oldest has gone");
    assert_eq!(status(&mut node, &empty().vpc(DELETE, vpc("v3", 0))), Success);
}

#[test]
fn what_the_kernel_refuses_is_a_failure_until_a_retry_succeeds() {
    let mut node = node();
    let run = crate::Run::new(
        crate::Message::decode_v1(
            prost::Message::encode_to_vec(&empty().neighbour(CREATE, a_neighbour())).into(),
        )
        .unwrap(),
        crate::Origin::Controller,
        1,
    );
    let mut run = run;
    let mut changes = crate::Changes::default();
    node.model.step(&mut run, 100, &mut changes);
    let refused = changes.endpoints_ip.put[0];
    node.model.write_failed(refused.cause, "ENDPOINTS_IPV4", "it is full");
    let rows: Vec<_> = node.model.rows(&run).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].status, Failure);
    assert!(
        rows[0].cause.contains("endpoints_ip") && rows[0].cause.contains("it is full"),
        "{}",
        rows[0].cause
    );
    assert_eq!(node.standing("n").0, Failure);
    assert_eq!(node.model.failed(), 1);

    let mut again = crate::Changes::default();
    assert_eq!(node.model.retry(10, &mut again), 1);
    assert_eq!(again.endpoints_ip.put, [refused]);
    assert_eq!(node.standing("n").0, Success);

    node.model.write_failed(refused.cause, "ENDPOINTS_IPV4", "it is full");
    let mut changes = crate::Changes::default();
    let state = empty().neighbour(CREATE, a_neighbour());
    let message = crate::Message::decode_v1(prost::Message::encode_to_vec(&state).into()).unwrap();
    node.model.step(&mut crate::Run::new(message, crate::Origin::Controller, 2), 100, &mut changes);
    assert_eq!(changes.endpoints_ip.put, [refused], "the same state again tries again");
}

#[test]
fn a_refused_entry_of_a_small_table_is_written_again_too() {
    let mut node = Node::new();
    let mut changes = crate::Changes::default();
    let message = crate::Message::decode_v1(prost::Message::encode_to_vec(&base()).into()).unwrap();
    node.model.step(&mut crate::Run::new(message, crate::Origin::Controller, 1), 100, &mut changes);
    let refused = changes.subnet_prefixes.put[0];
    node.model.write_failed(refused.cause, "SUBNET_PREFIXES", "no memory");
    assert_eq!(node.standing("s").0, Failure);
    let mut again = crate::Changes::default();
    node.model.retry(10, &mut again);
    assert_eq!(again.subnet_prefixes.put, [refused]);
    assert_eq!(node.standing("s").0, Success);
}

#[test]
fn retries_take_turns() {
    let mut node = node();
    let state = (0..6_u8).fold(empty(), |state, number| {
        let ip = format!("10.0.0.{}", number + 10);
        state.neighbour(
            CREATE,
            neighbour(&format!("n{number}"), &mac(number), "192.168.0.2", &[(0, "s", &ip)]),
        )
    });
    let message = crate::Message::decode_v1(prost::Message::encode_to_vec(&state).into()).unwrap();
    let mut changes = crate::Changes::default();
    node.model.step(&mut crate::Run::new(message, crate::Origin::Controller, 1), 100, &mut changes);
    let mut tried = std::collections::BTreeSet::new();
    for put in &changes.endpoints_ip.put {
        node.model.write_failed(put.cause, "ENDPOINTS_IPV4", "full");
    }
    for _ in 0..3 {
        let mut again = crate::Changes::default();
        node.model.retry(2, &mut again);
        for put in &again.endpoints_ip.put {
            tried.insert(put.key);
            node.model.write_failed(put.cause, "ENDPOINTS_IPV4", "full");
        }
    }
    assert_eq!(tried.len(), 6);
}

#[test]
fn one_failure_stops_no_other_state() {
    let mut node = Node::new();
    let state = base()
        .port(CREATE, port("bad", "x", &[("s", "10.0.0.5")]))
        .neighbour(CREATE, neighbour("bad", "x", "192.168.0.2", &[(0, "s", "10.0.0.6")]))
        .neighbour(CREATE, a_neighbour());
    let statuses = node.statuses(&state);
    let expected = [("bad", InvalidArg), ("bad", InvalidArg), ("n", Success), ("s", Success), ("v", Success)]
        .map(|(id, status)| (id.to_owned(), status));
    assert_eq!(statuses, expected);
    node.check();
}

#[test]
fn too_many_waiting_addresses_are_refused() {
    let limits = Limits { parked: 2, ..Limits::default() };
    let mut node = Node::with(Settings { limits, ..Settings::default() });
    let waiting = |number: u8| {
        let ip = format!("10.0.0.{number}");
        empty().neighbour(CREATE, neighbour(&ip, &mac(number), "192.168.0.2", &[(0, "s", &ip)]))
    };
    assert_eq!(status(&mut node, &waiting(1)), Pending);
    assert_eq!(status(&mut node, &waiting(2)), Pending);
    let answer = node.one(&waiting(3));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("limits.parked"), "{}", answer.cause);
    node.push(&base());
    assert_eq!(status(&mut node, &waiting(3)), Success);
}

#[test]
fn a_neighbour_on_this_host_is_local_and_nothing_is_programmed() {
    let mut node = node();
    let before = node.kernel.clone();
    let mut here = a_neighbour();
    here.host_ip_address = HERE.into();
    assert_eq!(status(&mut node, &empty().neighbour(CREATE, here)), Success);
    assert_eq!(node.kernel, before);
    assert_eq!(
        status(&mut node, &empty().neighbour(UPDATE, a_neighbour())),
        Success,
        "it moves to another host"
    );
    assert_eq!(node.kernel.endpoints_ip.len(), 1);
    node.check();
}

#[test]
fn a_hosts_address_may_be_of_either_version() {
    let mut node = node();
    let at = |host: &str| {
        let mut neighbour = a_neighbour();
        neighbour.host_ip_address = host.into();
        empty().neighbour(UPDATE, neighbour)
    };
    let vteps = |node: &Node| -> Vec<String> {
        node.kernel
            .vteps
            .keys()
            .map(|key| std::net::Ipv6Addr::from(key.ip).to_canonical().to_string())
            .collect()
    };
    let before = node.kernel.clone();
    assert_eq!(status(&mut node, &at(HERE_V6)), Success);
    assert_eq!(node.kernel, before, "it is this host");
    for host in ["2001:db8::2", "192.168.0.2", "2001:db8::3"] {
        assert_eq!(status(&mut node, &at(host)), Success);
        assert_eq!(vteps(&node), [host]);
        let hosts: Vec<String> = node.kernel.hosts.values().map(|(_, address)| address.to_string()).collect();
        assert_eq!(hosts, [host]);
        node.check();
    }
    // One and the same, written otherwise.
    assert_eq!(status(&mut node, &at("::ffff:192.168.0.2")), Success);
    assert_eq!(vteps(&node), ["192.168.0.2"]);
    for host in ["fe80::1", "ff02::1", "::", "::1", "127.0.0.1", "2001:db8::2%eth0"] {
        assert_eq!(status(&mut node, &at(host)), InvalidArg, "{host}");
    }
    node.check();
}

/// A node with room for two ports, two subnets and two remote hosts: the first slot of each table is never used.
fn small_node() -> Node {
    let slots = Slots { ports: 3, subnets: 3, hosts: 3, ..Slots::default() };
    let mut node = Node::with(Settings { slots, ..Settings::default() });
    node.push(&base());
    node
}

#[test]
fn a_port_without_a_place_is_a_failure_until_one_is_free() {
    let mut node = small_node();
    let nth = |number: u8| {
        let id = format!("p{number}");
        port(&id, &mac(number), &[("s", &format!("10.0.0.{number}"))])
    };
    for number in 1..=3 {
        node.appear(&format!("tapp{number}"), u32::from(number));
        node.push(&empty().port(CREATE, nth(number)));
        node.appear(&format!("tapp{number}"), u32::from(number));
    }
    for _ in 0..2 {
        let answer = node.one(&empty().port(CREATE, nth(3)));
        assert_eq!(answer.status, Failure);
        assert!(answer.cause.contains("capacity.ports"), "{}", answer.cause);
    }
    assert!(node.kernel.ports.keys().all(|index| *index < 3), "{:?}", node.kernel.ports);
    assert_eq!(status(&mut node, &empty().port(DELETE, nth(1))), Success);
    assert_eq!(node.standing("p3").0, Success, "it completes by itself");
    assert_eq!(node.kernel.ports.len(), 2);
    node.check();
    // One that waits and goes leaves nothing behind.
    assert_eq!(status(&mut node, &empty().port(CREATE, nth(4))), Failure);
    assert_eq!(status(&mut node, &empty().port(DELETE, nth(4))), Success);
    assert_eq!(status(&mut node, &empty().port(DELETE, nth(2))), Success);
    assert_eq!(node.kernel.ports.len(), 1);
}

#[test]
fn a_subnet_without_a_place_is_a_failure_until_one_is_free_and_so_long_parks_what_needs_it() {
    let mut node = small_node();
    let (second, third) = (subnet("s2", "v", "10.0.2.0/24", 0), subnet("s3", "v", "10.0.3.0/24", 0));
    assert_eq!(status(&mut node, &empty().subnet(CREATE, second.clone())), Success);
    let answer = node.one(&empty().subnet(CREATE, third));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("capacity.subnets"), "{}", answer.cause);
    let waiting = neighbour("n3", &mac(9), "192.168.0.2", &[(0, "s3", "10.0.3.6")]);
    let answer = node.one(&empty().neighbour(CREATE, waiting));
    assert_eq!(answer.status, Pending);
    assert!(answer.cause.contains("capacity.subnets"), "{}", answer.cause);
    assert!(node.kernel.subnets.keys().all(|index| *index < 3), "{:?}", node.kernel.subnets);
    assert_eq!(status(&mut node, &empty().subnet(DELETE, second)), Success);
    assert_eq!((node.standing("s3").0, node.standing("n3").0), (Success, Success), "by themselves");
    node.check();
}

#[test]
fn neighbours_on_a_host_without_a_place_are_failures_until_one_is_free() {
    let mut node = small_node();
    let on = |number: u8| {
        let ip = format!("10.0.0.{number}");
        neighbour(&format!("n{number}"), &mac(number), &format!("192.168.0.{number}"), &[(0, "s", &ip)])
    };
    for number in [2, 3] {
        assert_eq!(status(&mut node, &empty().neighbour(CREATE, on(number))), Success);
    }
    for _ in 0..2 {
        let answer = node.one(&empty().neighbour(CREATE, on(4)));
        assert_eq!(answer.status, Failure);
        assert!(answer.cause.contains("capacity.hosts"), "{}", answer.cause);
    }
    assert_eq!(status(&mut node, &empty().neighbour(DELETE, on(2))), Success);
    assert_eq!(node.standing("n4").0, Success, "it completes by itself");
    let targets: Vec<u32> = node.kernel.endpoints_ip.values().map(|endpoint| endpoint.target).collect();
    assert!(targets.iter().all(|target| (1..3).contains(target)), "{targets:?}");
    assert!(node.kernel.vteps.values().all(|host| (1..3).contains(&host.index)), "{:?}", node.kernel.vteps);
    node.check();
    assert_eq!(status(&mut node, &empty().neighbour(CREATE, on(5))), Failure);
    assert_eq!(status(&mut node, &empty().neighbour(DELETE, on(5))), Success);
    node.check();
}
