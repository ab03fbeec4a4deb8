//! Products are bounded: what a small message could make of routes and of hosts' admission.

use std::time::Instant;

use super::kernel::Node;
use super::states::*;
use crate::settings::{Settings, Slots};
use crate::wire::OperationStatus::{Failure, Pending, Success};
use crate::wire::{GoalState, RouterConfiguration};

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
    assert_eq!(node.kernel.endpoints_ipv4.len(), 4);
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
