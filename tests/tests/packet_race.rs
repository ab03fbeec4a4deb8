//! What changes while packets are being decided: whatever a decision still saw of what has gone, it is made anew.
//!
//! Every packet begins a flow here, as flows are over at once. A second thread takes away what allows them, and raises the epoch as the
//! agent does. No flow may be left then that carries the epoch of what is now: its decision would stand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ncm_common::tables::{
    Flow, FlowKey, IpKey, MEMBERS, PolicyCountKey, Rule, RuleKey, epoch_slot, flow_kinds, flow_state,
    set_direction, timeouts,
};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{A1, A2, SUBNET_A, World, mapped, udp};

/// How long turns go on, and how long at most until enough of them have let packets pass: on a busy machine they take their time.
const WHILE: Duration = Duration::from_millis(700);
const AT_MOST: Duration = Duration::from_secs(30);

/// Turns in which packets have to pass.
const GRANTED: u32 = 10;

/// How long a turn waits for packets to see what it has changed.
const A_MOMENT: Duration = Duration::from_millis(20);

/// Waits a moment until it is so.
fn wait_until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < A_MOMENT && !is_so() {
        std::thread::yield_now();
    }
}

/// More than there are CPUs, so that some are interrupted in the middle of a decision.
const THREADS: usize = 3;

/// A rule of set 1 that lets UDP out: for all, or for the members of a group.
fn rule(class: u32) -> RuleKey {
    RuleKey { prefix_len: 80, set: set_direction(1, false), class, family: 4, protocol: 17, port: [0; 2] }
}

/// The flow from A1 to A2.
const fn ports() -> (u16, u16) {
    (1000, 53)
}

fn flow(world: &World) -> Option<Flow> {
    let key = FlowKey {
        port: A1.port,
        local: mapped(A1.ip),
        remote: mapped(A2.ip),
        local_port: ports().0.to_be_bytes(),
        remote_port: ports().1.to_be_bytes(),
        protocol: 17,
        kind: flow_kinds::FLOW,
        reserved: [0; 2],
    };
    let tables = world.tables();
    let half_open = tables.half_open.of(A1.port).expect("readable").expect("the port's table");
    half_open.get(&key).expect("readable").or_else(|| tables.flows.get(&key).expect("readable"))
}

/// How many packets policy has denied to A1.
fn denied(world: &World) -> u64 {
    let key = PolicyCountKey { port: A1.port, set: set_direction(1, false) };
    world.tables().policy_counts.get(&key).expect("readable").map_or(0, |count| count.denied)
}

/// Has packets decided on several CPUs while `grant` and `revoke` take turns; neither raises an epoch by itself.
/// `is_current` says whether a flow carries the epoch that was raised last.
fn take_turns(
    world: &World,
    grant: impl Fn(),
    revoke: impl Fn(),
    raise: impl Fn(),
    is_current: impl Fn(&Flow) -> bool,
) {
    let over = AtomicBool::new(false);
    let frame = udp((A1.ip, ports().0), (A2.ip, ports().1), b"a question").frame(A2.mac, A1.mac);
    let run = TestRun { repeat: 500, ..TestRun::new(frame, world.ifindex(A1.interface)) };
    // Which hook it is does not matter: the stages are the same. At tc a switched frame stays as it is, run after run.
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    world.dataplane().test_run(Hook::GuestTc, &run).expect("it runs");
                }
            });
        }
        let start = Instant::now();
        let (mut turns, mut granted) = (0_u32, 0_u32);
        while start.elapsed() < WHILE || granted <= GRANTED && start.elapsed() < AT_MOST {
            let stands = |flow: &Flow| is_current(flow) && flow.state & flow_state::DENIED == 0;
            grant();
            raise();
            wait_until(|| flow(world).is_some_and(|flow| stands(&flow)));
            granted += u32::from(flow(world).is_some_and(|flow| stands(&flow)));
            let before = denied(world);
            revoke();
            raise();
            wait_until(|| denied(world) != before);
            if let Some(flow) = flow(world).filter(stands) {
                over.store(true, Ordering::Relaxed);
                panic!("after {turns} turns a decision outlived what it rests on: {flow:?}");
            }
            turns += 1;
        }
        over.store(true, Ordering::Relaxed);
        assert!(granted > GRANTED, "packets passed in only {granted} of {turns} turns");
    });
}

/// A world in which A1 is under policy and flows live so long.
fn world(ticks: u32) -> World {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    world.beat(0);
    for kind in 0..timeouts::COUNT {
        world.tables().timeouts.put(&kind, &ticks).expect("writable");
    }
    world
}

/// Flows are over at once: the age of none is below zero.
const AT_ONCE: u32 = u32::MAX;

fn raise_port(world: &World) {
    let mut port = world.tables().ports.get(&A1.port).expect("readable").expect("there");
    port.epoch += 1;
    world.tables().ports.put(&A1.port, &port).expect("writable");
}

fn has_ports_epoch(world: &World, flow: &Flow) -> bool {
    let port = world.tables().ports.get(&A1.port).expect("readable").expect("there");
    flow.port_epoch == port.epoch
}

/// A rule comes and goes while packets are decided, in a world whose flows live so long.
fn a_rule_goes(ticks: u32) {
    let world = world(ticks);
    let rules = &world.tables().rules;
    take_turns(
        &world,
        || rules.put(&rule(0), &Rule { rules: 1 }).expect("room"),
        || rules.delete(&rule(0)).expect("deleted"),
        || raise_port(&world),
        |flow| has_ports_epoch(&world, flow),
    );
}

#[test]
fn a_rule_that_goes_while_flows_begin_leaves_none_behind() {
    a_rule_goes(AT_ONCE);
}

#[test]
fn a_rule_that_goes_while_flows_are_decided_anew_leaves_none_behind() {
    a_rule_goes(1 << 20);
}

#[test]
fn a_member_that_leaves_while_flows_begin_takes_them_along() {
    const GROUP: u32 = 3 | MEMBERS;
    let world = world(AT_ONCE);
    let tables = world.tables();
    tables.rules.put(&rule(GROUP), &Rule { rules: 1 }).expect("room");
    let slot = epoch_slot(SUBNET_A.vni, &mapped(A2.ip));
    let of = IpKey { vni: SUBNET_A.vni, ip: mapped(A2.ip) };
    let member = |members: u32| {
        let mut endpoint = tables.endpoints_ip.get(&of).expect("readable").expect("there");
        endpoint.members = members;
        tables.endpoints_ip.put(&of, &endpoint).expect("writable");
    };
    let epoch = || tables.remote_epochs.get(&slot).expect("readable").unwrap_or(0);
    take_turns(
        &world,
        || member(GROUP),
        || member(0),
        || tables.remote_epochs.put(&slot, &(epoch() + 1)).expect("writable"),
        |flow| flow.remote_slot == slot && flow.remote_epoch == epoch(),
    );
}
