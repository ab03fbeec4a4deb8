//! Products are bounded: what a small message could make of routes and of hosts' admission.

use std::time::Instant;

use super::kernel::Node;
use super::states::*;
use crate::settings::{Limits, Settings, Slots};
use crate::wire::OperationStatus::{Failure, Pending, Success};
use crate::wire::{
    GatewayConfiguration, GatewayState, GoalState, RouterConfiguration, SecurityGroupConfiguration,
    SecurityGroupState,
};

fn node(slots: Slots) -> Node {
    Node::with(Settings { slots, ..Settings::default() })
}

fn net(number: u32) -> String {
    format!("10.{}.{}.0/24", number >> 8, number & 255)
}

/// Subnets `s0` to `s<count - 1>` of VPC `v`.
fn subnets(count: u32) -> GoalState {
    (0..count).fold(empty().vpc(CREATE, vpc("v", 10)), |state, number| {
        state.subnet(CREATE, subnet(&format!("s{number}"), "v", &net(number), 0))
    })
}

fn router_of(id: &str, subnets: impl Iterator<Item = u32>) -> RouterConfiguration {
    let names: Vec<String> = subnets.map(|number| format!("s{number}")).collect();
    let tables: Vec<_> = names.iter().map(|name| (name.as_str(), [].as_slice())).collect();
    RouterConfiguration { update_type: FULL, ..router(id, &tables) }
}

#[test]
fn a_router_takes_no_more_routes_than_there_is_room_for() {
    let mut node = node(Slots { routes: 10, ..Slots::default() });
    node.push(&subnets(4));
    let answer = node.one(&empty().router(CREATE, router_of("r", 0..4)));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("capacity.routes"), "{}", answer.cause);
    assert_eq!(node.kernel.routes.len(), 9, "three subnets have room");
    let waiting = neighbour("n", &mac(2), "192.168.0.2", &[(1, "s3", "10.0.3.6")]);
    let answer = node.one(&empty().neighbour(CREATE, waiting));
    assert_eq!(answer.status, Pending);
    assert!(answer.cause.contains("capacity.routes"), "{}", answer.cause);
    // Another router has a place for one.
    assert_eq!(node.one(&empty().subnet(CREATE, subnet("s9", "v", &net(9), 0))).status, Success);
    assert_eq!(node.one(&empty().router(CREATE, router_of("q", 9..10))).status, Success);
    assert_eq!(node.kernel.routes.len(), 10);
    // Room again: it completes by itself.
    assert_eq!(node.one(&empty().subnet(DELETE, subnet("s0", "", "", 0))).status, Success);
    assert_eq!(node.kernel.routes.len(), 10);
    assert_eq!((node.standing("r").0, node.standing("n").0), (Pending, Success), "it misses s0 now");
    node.check();
    assert_eq!(node.one(&empty().router(UPDATE, router_of("r", 1..4))).status, Success);
    assert_eq!(node.one(&empty().router(UPDATE, router_of("q", 0..0))).status, Success);
    node.check();
    // One that waits and goes leaves nothing behind.
    node.push(&subnets(5));
    assert_eq!(node.one(&empty().router(UPDATE, router_of("r", 0..5))).status, Failure);
    assert_eq!(node.one(&empty().router(DELETE, router_of("r", 0..0))).status, Success);
    assert!(node.kernel.routes.is_empty());
    node.check();
}

#[test]
fn a_huge_router_costs_no_more_than_the_tables_hold() {
    const COUNT: u32 = 20_000;
    for step in [500, 100_000] {
        let mut node = node(Slots { routes: 65_536, ..Slots::default() });
        node.step = step;
        let start = Instant::now();
        let same = (0..COUNT).fold(empty().vpc(CREATE, vpc("v", 10)), |state, number| {
            // Descending ids: each takes the common prefix over from the one before.
            let id = format!("s{}", COUNT - 1 - number);
            state.subnet(CREATE, subnet(&id, "v", "10.0.0.0/8", 0))
        });
        node.push(&same);
        assert_eq!(node.one(&empty().router(CREATE, router_of("r", 0..COUNT))).status, Failure);
        node.push(&subnets(COUNT));
        assert!(node.kernel.routes.len() <= 65_536);
        for vni in 11..40 {
            node.push(&empty().vpc(UPDATE, vpc("v", vni)));
        }
        assert_eq!(node.standing("r").0, Failure);
        assert!(node.kernel.routes.len() <= 65_536);
        assert_eq!(node.one(&empty().router(DELETE, router_of("r", 0..0))).status, Success);
        assert!(node.kernel.routes.is_empty());
        node.check();
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}

#[test]
fn a_host_beyond_the_room_for_admission_is_a_failure_until_there_is_some() {
    let mut node = node(Slots { vteps: 9, ..Slots::default() });
    let state = (0..3).fold(empty(), |state, number| {
        state.subnet(CREATE, subnet(&format!("s{number}"), "v", &net(number), u64::from(number) + 20))
    });
    node.push(&state.router(CREATE, router_of("r", 0..3)));
    let on = |number: u8| {
        let id = format!("n{number}");
        neighbour(
            &id,
            &mac(number),
            &format!("192.168.1.{number}"),
            &[(1, "s0", &format!("10.0.0.{number}"))],
        )
    };
    for number in 1..=3 {
        assert_eq!(node.one(&empty().neighbour(CREATE, on(number))).status, Success);
    }
    assert_eq!(node.kernel.vteps.len(), 9);
    for _ in 0..2 {
        let answer = node.one(&empty().neighbour(CREATE, on(4)));
        assert_eq!(answer.status, Failure);
        assert!(answer.cause.contains("capacity.vteps"), "{}", answer.cause);
    }
    assert_eq!(node.standing("n4").0, Failure);
    assert_eq!(node.kernel.endpoints_ip.len(), 4);
    assert_eq!(node.kernel.vteps.len(), 10, "into its own subnet's VNI it may send");
    // A further VNI does not fit for the hosts that are there.
    let further = empty().subnet(CREATE, subnet("s3", "v", &net(3), 23));
    assert_eq!(node.one(&further).status, Success);
    let answer = node.one(&empty().router(UPDATE, router_of("r", 0..4)));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("capacity.vteps"), "{}", answer.cause);
    assert_eq!(node.kernel.vteps.len(), 10);
    assert_eq!(node.one(&empty().router(UPDATE, router_of("r", 0..3))).status, Success);
    assert_eq!(node.one(&empty().neighbour(DELETE, on(1))).status, Success);
    assert_eq!(node.standing("n4").0, Success, "it completes by itself");
    node.check();
    // With a VNI less there is room for the one that waits next, and with a host less for the subnet.
    assert_eq!(node.one(&empty().neighbour(CREATE, on(5))).status, Failure);
    assert_eq!(node.one(&empty().router(UPDATE, router_of("r", 0..2))).status, Success);
    assert_eq!(node.standing("n5").0, Success);
    node.check();
    assert_eq!(node.one(&empty().router(UPDATE, router_of("r", 0..3))).status, Failure);
    assert_eq!(node.one(&empty().neighbour(DELETE, on(5))).status, Success);
    assert_eq!(node.standing("r").0, Success);
    node.check();
    assert_eq!(node.one(&empty().neighbour(CREATE, on(6))).status, Failure);
    assert_eq!(node.one(&empty().neighbour(DELETE, on(6))).status, Success);
    assert_eq!(node.one(&empty().router(DELETE, router_of("r", 0..0))).status, Success);
    node.check();
}

#[test]
fn what_is_held_is_bounded_by_type() {
    let limits = Limits { neighbours: 3, resources: 2, ..Limits::default() };
    let mut node = Node::with(Settings { limits, ..Settings::default() });
    let net = |number: u8| format!("10.0.{number}.0/24");
    let group = |number: u8| SecurityGroupState {
        operation_type: CREATE as i32,
        configuration: Some(SecurityGroupConfiguration { id: format!("g{number}"), ..Default::default() }),
    };
    let all = |number: u8| {
        let (tunnel, name) = (u32::from(number) + 10, format!("x{number}"));
        let mut state = empty()
            .vpc(CREATE, vpc(&name, tunnel))
            .subnet(CREATE, subnet(&name, &name, &net(number), 0))
            .router(CREATE, router(&name, &[]));
        state.security_group_states.push(group(number));
        state
    };
    for number in [1, 2, 2] {
        let answers = node.push(&all(number));
        assert!(answers.iter().all(|answer| !answer.cause.contains("limits.")), "{answers:?}");
    }
    let held = node.list().len();
    let answers = node.push(&all(3));
    assert_eq!(answers.len(), 4);
    for answer in &answers {
        assert_eq!(answer.status, Failure, "{answer:?}");
        assert!(answer.cause.contains("limits.resources reached"), "{answer:?}");
    }
    assert_eq!(node.list().len(), held);
    let mut delete = all(1);
    delete.vpc_states[0].operation_type = DELETE as i32;
    delete.subnet_states[0].operation_type = DELETE as i32;
    delete.router_states[0].operation_type = DELETE as i32;
    delete.security_group_states[0].operation_type = DELETE as i32;
    assert!(node.push(&delete).iter().all(|answer| answer.status == Success));
    let answers = node.push(&all(3));
    assert!(answers.iter().all(|answer| !answer.cause.contains("limits.")), "{answers:?}");

    let with = |id: &str, ips: &[&str]| {
        let fixed: Vec<_> = ips.iter().map(|ip| (0, "x2", *ip)).collect();
        empty().neighbour(CREATE, neighbour(id, &mac(9), "192.168.0.2", &fixed))
    };
    assert_eq!(node.one(&with("a", &["10.0.2.1", "10.0.2.2"])).status, Success);
    let answer = node.one(&with("b", &["10.0.2.3", "10.0.2.4"]));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("limits.neighbours reached"), "{}", answer.cause);
    assert_eq!(node.one(&with("b", &["10.0.2.3"])).status, Success);
    assert_eq!(node.one(&with("a", &["10.0.2.1", "10.0.2.2"])).status, Success, "it is held already");
    assert_eq!(node.one(&with("a", &["10.0.2.5"])).status, Failure);
    let answer = node.one(&empty().port(CREATE, port("p", &mac(1), &[("x2", "10.0.2.9")])));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("limits.neighbours reached"), "{}", answer.cause);
    for number in 1..=2 {
        node.push(&empty().neighbour(DELETE, neighbour(["a", "b"][number - 1], "", "", &[])));
        let id = format!("p{number}");
        let ip = format!("10.0.2.{number}");
        let made = node.one(&empty().port(CREATE, port(&id, &mac(1), &[("x2", &ip)])));
        assert_eq!(made.status, Pending, "its interface is not there: {}", made.cause);
    }
    let answer = node.one(&empty().port(CREATE, port("p3", &mac(1), &[("x2", "10.0.2.9")])));
    assert!(answer.cause.contains("limits.resources reached"), "{}", answer.cause);
    node.check();
}

#[test]
fn what_is_kept_unsupported_is_bounded_in_bytes() {
    let limits = Limits { kept_bytes: 1000, ..Limits::default() };
    let mut node = Node::with(Settings { limits, ..Settings::default() });
    let group = |number: u8, length: usize, operation: crate::wire::OperationType| {
        let name = "x".repeat(length);
        let configuration =
            GatewayConfiguration { id: format!("g{number}"), request_id: name, ..Default::default() };
        let mut state = empty();
        state
            .gateway_states
            .push(GatewayState { operation_type: operation as i32, configuration: Some(configuration) });
        state
    };
    let mut refused = |state: GoalState| node.one(&state).cause.contains("bytes of gateways");
    assert!(!refused(group(1, 700, CREATE)) && !refused(group(2, 200, CREATE)));
    assert!(refused(group(3, 200, CREATE)), "beyond the limit");
    assert!(refused(group(2, 400, CREATE)), "it grows beyond the limit");
    assert!(!refused(group(1, 600, CREATE)), "it shrinks");
    assert!(!refused(group(2, 300, CREATE)), "as much as that left room for");
    assert!(!refused(group(1, 600, DELETE)) && !refused(group(3, 500, CREATE)));
    assert!(refused(group(4, 500, CREATE)));
    assert_eq!(node.list().len(), 2);
}

fn changes_of(node: &mut Node, state: &GoalState) -> crate::Changes {
    let message = crate::Message::decode_v1(prost::Message::encode_to_vec(state).into()).unwrap();
    let mut changes = crate::Changes::default();
    node.model.step(&mut crate::Run::new(message, crate::Origin::Controller, 1), 100_000, &mut changes);
    changes
}

#[test]
fn a_subnet_that_stays_answers_for_its_vni() {
    let mut node = Node::new();
    node.push(&subnets(2));
    let changes = changes_of(&mut node, &empty().subnet(DELETE, subnet("s0", "", "", 0)));
    node.model.write_failed(changes.vnis.put[0].cause, "VNIS", "no memory");
    assert_eq!(node.standing("s1").0, Failure);
}

#[test]
fn a_vni_that_only_neighbours_name_is_not_ours() {
    let mut node = Node::new();
    let mut far = neighbour("n", &mac(2), "192.168.0.2", &[(0, "s", "10.0.0.6")]);
    far.fixed_ips[0].tunnel_id = 77;
    node.push(&base());
    assert_eq!(node.one(&empty().neighbour(CREATE, far)).status, Success);
    let vnis = |node: &Node| node.kernel.vteps.keys().map(|key| key.vni).collect::<Vec<_>>();
    assert_eq!(vnis(&node), [10]);
    node.check();
    node.push(&empty().subnet(CREATE, subnet("t", "", "10.1.0.0/24", 77)));
    assert_eq!(vnis(&node), [10, 77]);
    node.check();
    node.push(&empty().subnet(DELETE, subnet("t", "", "", 0)));
    assert_eq!(vnis(&node), [10]);
    node.check();
}

#[test]
fn many_failed_resources_are_pushed_again_in_linear_time() {
    const COUNT: u32 = 20_000;
    let mut node = Node::new();
    let state = subnets(COUNT);
    let changes = changes_of(&mut node, &state);
    for put in &changes.subnet_prefixes.put {
        node.model.write_failed(put.cause, "SUBNET_PREFIXES", "full");
    }
    assert_eq!(node.model.failed(), COUNT as usize);
    let start = Instant::now();
    let again = changes_of(&mut node, &state);
    assert_eq!(again.subnet_prefixes.put.len(), COUNT as usize);
    assert_eq!(node.model.failed(), 0);
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
