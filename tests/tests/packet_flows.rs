//! Flows: what a packet begins, what a known flow allows by itself, and what makes it be decided anew.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{
    ClassKey, Classes, FlowKey, IpKey, MEMBERS, PolicyCountKey, Rule, RuleKey, VtepKey, epoch_slot,
    flow_kinds, flow_state, set_direction, timeouts,
};
use ncm_dataplane::Hook;
use ncm_tests::packet::{
    A1, A2, Guest, HOST_1, HOST_2, Ip, RA, SUBNET_A, Seen, World, icmp, mapped, segment, udp,
};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// Puts a guest under policy set 1.
fn under_policy(world: &World, guest: Guest) {
    world.change_port(guest, |port| port.set = 1);
}

/// The key of a rule of set 1 for all of a protocol.
fn rule(to_guest: bool, class: u32, protocol: u8) -> RuleKey {
    RuleKey { prefix_len: 80, set: set_direction(1, to_guest), class, family: 4, protocol, port: [0; 2] }
}

/// Adds a rule, as the agent does: then flows are decided anew.
fn allow(world: &World, key: RuleKey) {
    world.tables().rules.put(&key, &Rule { rules: 1 }).expect("room");
    world.raise();
}

/// The key of a UDP or TCP flow between A1 and RA.
fn key(protocol: u8, local_port: u16, remote_port: u16) -> FlowKey {
    FlowKey {
        port: A1.port,
        local: mapped(A1.ip),
        remote: mapped(RA.ip),
        local_port: local_port.to_be_bytes(),
        remote_port: remote_port.to_be_bytes(),
        protocol,
        kind: flow_kinds::FLOW,
        reserved: [0; 2],
    }
}

/// A UDP packet from A1 to RA.
fn out(world: &World, source: u16, destination: u16) -> Seen {
    world.from_guest(A1, udp((A1.ip, source), (RA.ip, destination), b"question").frame(RA.mac, A1.mac))
}

/// A UDP packet from RA to A1.
fn back(world: &World, source: u16, destination: u16) -> Seen {
    let frame = udp((RA.ip, source), (A1.ip, destination), b"answer").frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, frame)
}

fn out_tcp(world: &World, flags: u8) -> Seen {
    world.from_guest(A1, segment((A1.ip, 1000), (RA.ip, 80), flags).frame(RA.mac, A1.mac))
}

fn back_tcp(world: &World, flags: u8) -> Seen {
    let frame = segment((RA.ip, 80), (A1.ip, 1000), flags).frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, frame)
}

fn has(seen: &Seen, counter: PathCounter) -> bool {
    seen.counters.iter().any(|(counted, _)| *counted == counter)
}

#[test]
fn an_answer_establishes_a_flow_and_needs_no_rule() {
    let world = World::new();
    under_policy(&world, A1);
    allow(&world, rule(false, 0, 17));
    let first = out(&world, 1000, 53);
    first.assert_encapsulated();
    first.assert_counted(PathCounter::FlowCreated);
    let flow = world.half_open(&key(17, 1000, 53)).expect("half open");
    assert_eq!(flow.state, 0, "begun by the guest, not answered");
    let answer = back(&world, 53, 1000);
    answer.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    answer.assert_counted(PathCounter::FlowEstablished);
    let flow = world.established(&key(17, 1000, 53)).expect("established");
    assert_eq!(flow.state, flow_state::ANSWERED | flow_state::CONFIRMED | flow_state::ESTABLISHED);
    assert_eq!(world.half_open(&key(17, 1000, 53)), None, "it has moved");
    assert_eq!(world.tables().port_flows.get(&A1.port).unwrap().unwrap().established, 1);
    back(&world, 54, 1000).assert_dropped(DropReason::PolicyIngress, A1.port);
    for seen in [out(&world, 1000, 53), back(&world, 53, 1000)] {
        assert!(!has(&seen, PathCounter::FlowCreated) && seen.drops.is_empty(), "a known flow\n{seen}");
    }
}

#[test]
fn a_known_flow_asks_no_policy_until_the_epoch_rises() {
    let world = World::new();
    under_policy(&world, A1);
    allow(&world, rule(false, 0, 17));
    out(&world, 1000, 53).assert_encapsulated();
    back(&world, 53, 1000).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    world.tables().rules.delete(&rule(false, 0, 17)).expect("deleted");
    out(&world, 1000, 53).assert_encapsulated();
    out(&world, 1000, 54).assert_dropped(DropReason::PolicyEgress, A1.port);
    world.raise();
    // Whose packet comes first does not matter: it is the originator's direction that is decided.
    let answer = back(&world, 53, 1000);
    answer.assert_dropped(DropReason::PolicyEgress, A1.port);
    answer.assert_counted(PathCounter::FlowRedecided);
    out(&world, 1000, 53).assert_dropped(DropReason::PolicyEgress, A1.port);
    let flow = world.established(&key(17, 1000, 53)).expect("it stays, or the other side would begin it");
    assert_ne!(flow.state & flow_state::DENIED, 0);
    // A rule for the other direction does not bring it back either.
    allow(&world, rule(true, 0, 17));
    back(&world, 53, 1000).assert_dropped(DropReason::PolicyEgress, A1.port);
    allow(&world, rule(false, 0, 17));
    out(&world, 1000, 53).assert_encapsulated();
    back(&world, 53, 1000).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
}

#[test]
fn a_decision_that_was_overtaken_by_a_change_does_not_stand() {
    let world = World::new();
    under_policy(&world, A1);
    allow(&world, rule(false, 0, 17));
    out(&world, 1000, 53).assert_encapsulated();
    // As if the rule had gone between its lookup and the flow's insertion: the flow carries the epoch that was read first.
    world.tables().rules.delete(&rule(false, 0, 17)).expect("deleted");
    world.raise();
    let port = world.tables().ports.get(&A1.port).unwrap().unwrap();
    let flow = world.half_open(&key(17, 1000, 53)).expect("half open");
    assert_eq!(flow.port_epoch + 1, port.epoch);
    out(&world, 1000, 53).assert_dropped(DropReason::PolicyEgress, A1.port);
}

#[test]
fn a_guest_that_moves_is_followed_by_its_epoch_alone() {
    let world = World::new();
    assert_eq!(out(&world, 1000, 53).tunnelled(0).destination, HOST_1);
    let endpoints = &world.tables().endpoints_ip;
    let of = IpKey { vni: SUBNET_A.vni, ip: mapped(RA.ip) };
    let moved = |endpoint: &mut ncm_common::tables::Endpoint| (endpoint.target, endpoint.generation) = (2, 2);
    let mut endpoint = endpoints.get(&of).unwrap().unwrap();
    moved(&mut endpoint);
    endpoints.put(&of, &endpoint).expect("room");
    let by_mac = &world.tables().endpoints_mac;
    let mac = ncm_common::tables::MacKey { vni: SUBNET_A.vni, mac: RA.mac, reserved: [0; 2] };
    let mut endpoint = by_mac.get(&mac).unwrap().unwrap();
    moved(&mut endpoint);
    by_mac.put(&mac, &endpoint).expect("room");
    assert_eq!(out(&world, 1000, 53).tunnelled(0).destination, HOST_1, "as decided");
    let slot = epoch_slot(SUBNET_A.vni, &mapped(RA.ip));
    world.tables().remote_epochs.put(&slot, &1).expect("writable");
    let seen = out(&world, 1000, 53);
    assert_eq!(seen.tunnelled(0).destination, HOST_2, "{seen}");
    seen.assert_counted(PathCounter::FlowRedecided);
}

#[test]
fn a_flow_that_is_over_is_decided_like_a_new_one() {
    let world = World::new();
    under_policy(&world, A1);
    allow(&world, rule(false, 0, 17));
    out(&world, 1000, 53).assert_encapsulated();
    back(&world, 53, 1000).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    let mut flow = world.established(&key(17, 1000, 53)).expect("established");
    flow.seen = flow.seen.map(|seen| seen - flow.timeout - 10);
    world.tables().flows.put(&key(17, 1000, 53), &flow).expect("room");
    back(&world, 53, 1000).assert_dropped(DropReason::PolicyIngress, A1.port);
    out(&world, 1000, 53).assert_counted(PathCounter::FlowCreated);
    assert_eq!(world.established(&key(17, 1000, 53)).unwrap().state, flow_state::ESTABLISHED, "in its place");
    assert_eq!(world.tables().port_flows.get(&A1.port).unwrap().unwrap().established, 1);
}

#[test]
fn tcp_goes_through_its_states() {
    let world = World::new();
    for (kind, ticks) in [
        (timeouts::TCP_NEW, 101),
        (timeouts::TCP_ESTABLISHED, 102),
        (timeouts::TCP_CLOSING, 103),
        (timeouts::TCP_RESET, 104),
    ] {
        world.tables().timeouts.put(&kind, &ticks).expect("writable");
    }
    under_policy(&world, A1);
    allow(&world, rule(false, 0, 6));
    let flow = || world.established(&key(6, 1000, 80)).expect("established");
    out_tcp(&world, SYN).assert_encapsulated();
    assert_eq!(world.half_open(&key(6, 1000, 80)).unwrap().timeout, 101);
    back_tcp(&world, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out_tcp(&world, ACK).assert_encapsulated();
    assert_eq!(flow().timeout, 102);
    // Anybody may send a reset: what comes after it takes it back.
    back_tcp(&world, RST).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    assert_eq!((flow().state & flow_state::RESET, flow().timeout), (flow_state::RESET, 104));
    out_tcp(&world, ACK).assert_encapsulated();
    assert_eq!((flow().state & flow_state::RESET, flow().timeout), (0, 102));
    out_tcp(&world, FIN | ACK).assert_encapsulated();
    assert_eq!((flow().state & flow_state::FIN_OUT, flow().timeout), (flow_state::FIN_OUT, 103));
    back_tcp(&world, FIN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    // The ports are used again: a new connection, which policy decides anew.
    let again = out_tcp(&world, SYN);
    again.assert_counted(PathCounter::FlowCreated);
    assert_eq!(flow().state, flow_state::ESTABLISHED, "anew, in its place");
    world.tables().rules.delete(&rule(false, 0, 6)).expect("deleted");
    out_tcp(&world, FIN | ACK).assert_encapsulated();
    back_tcp(&world, FIN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    world.raise();
    out_tcp(&world, SYN).assert_dropped(DropReason::PolicyEgress, A1.port);
}

#[test]
fn what_answers_nothing_begins_nothing() {
    let world = World::new();
    for flags in [SYN | ACK, RST, RST | ACK] {
        let seen = out_tcp(&world, flags);
        seen.assert_encapsulated();
        assert!(!has(&seen, PathCounter::FlowCreated), "{seen}");
        assert_eq!(world.half_open(&key(6, 1000, 80)), None);
    }
    // The middle of a connection that is older than we are is taken up.
    out_tcp(&world, ACK).assert_counted(PathCounter::FlowCreated);
}

#[test]
fn beyond_its_share_a_port_keeps_flows_half_open_and_goes_on() {
    let world = World::new();
    world.change_port(A1, |port| port.max_flows = 2);
    for port in 0..4 {
        out(&world, 1000 + port, 53).assert_encapsulated();
        let seen = back(&world, 53, 1000 + port);
        seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        let expected = if port < 2 { PathCounter::FlowEstablished } else { PathCounter::FlowShareFull };
        seen.assert_counted(expected);
    }
    assert_eq!(world.tables().port_flows.get(&A1.port).unwrap().unwrap().established, 2);
    assert!(world.half_open(&key(17, 1003, 53)).is_some());
}

#[test]
fn a_full_table_stops_nothing() {
    let world = World::new();
    world.change_port(A1, |port| port.max_flows = 1000);
    let mut full = 0;
    for port in 0..70 {
        out(&world, 1000 + port, 53).assert_encapsulated();
        let seen = back(&world, 53, 1000 + port);
        seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        full += u32::from(has(&seen, PathCounter::FlowTableFull));
    }
    assert_eq!(full, 70 - 64, "the world's table holds 64");
    assert_eq!(world.tables().port_flows.get(&A1.port).unwrap().unwrap().established, 64);
    out(&world, 1069, 53).assert_encapsulated();
}

#[test]
fn a_flood_costs_nobody_else_a_flow() {
    let world = World::new();
    let frame = udp((A2.ip, 7), (RA.ip, 53), b"question").frame(RA.mac, A2.mac);
    world.from_guest(A2, frame.clone()).assert_counted(PathCounter::FlowCreated);
    for port in 0..5000 {
        let frame = udp((A1.ip, 1000 + port), (RA.ip, 53), b"flood").frame(RA.mac, A1.mac);
        let run = ncm_dataplane::TestRun::new(frame, world.ifindex(A1.interface));
        let _ = world.dataplane().test_run(Hook::GuestTc, &run).expect("it runs");
    }
    let seen = world.from_guest(A2, frame);
    assert!(!has(&seen, PathCounter::FlowCreated), "its flow is still known\n{seen}");
}

#[test]
fn between_guests_of_one_host_each_port_has_its_own_flow() {
    let world = World::new();
    under_policy(&world, A2);
    let there = udp((A1.ip, 1000), (A2.ip, 53), b"question").frame(A2.mac, A1.mac);
    let answer = udp((A2.ip, 53), (A1.ip, 1000), b"answer").frame(A1.mac, A2.mac);
    world.from_guest(A1, there.clone()).assert_dropped(DropReason::PolicyIngress, A2.port);
    allow(&world, rule(true, 0, 17));
    world.from_guest(A1, there.clone()).assert_delivered(A2.port, PathCounter::LocalDelivered);
    // Without a rule that lets A2 out: it answers.
    world.from_guest(A2, answer).assert_delivered(A1.port, PathCounter::LocalDelivered);
    world.from_guest(A1, there).assert_delivered(A2.port, PathCounter::LocalDelivered);
    for port in [A1.port, A2.port] {
        assert_eq!(world.tables().port_flows.get(&port).unwrap().unwrap().established, 1, "port {port}");
    }
    let begun = udp((A2.ip, 54), (A1.ip, 1000), b"question").frame(A1.mac, A2.mac);
    world.from_guest(A2, begun).assert_dropped(DropReason::PolicyEgress, A2.port);
}

#[test]
fn prefixes_and_members_allow_whom_they_cover() {
    let world = World::new();
    under_policy(&world, A1);
    out(&world, 1000, 53).assert_dropped(DropReason::PolicyEgress, A1.port);
    // Of the prefixes that cover RA, the shorter one's class has the rule.
    let mut classes = Classes::default();
    classes.classes[..2].copy_from_slice(&[7, 5]);
    let of = ClassKey { prefix_len: 32 + 96 + 24, set: set_direction(1, false), ip: mapped([10, 0, 1, 0]) };
    world.tables().classes.put(&of, &classes).expect("room");
    allow(&world, RuleKey { prefix_len: 96, port: 53u16.to_be_bytes(), ..rule(false, 5, 17) });
    out(&world, 1000, 53).assert_encapsulated();
    out(&world, 1000, 54).assert_dropped(DropReason::PolicyEgress, A1.port);
    // RA joins a group.
    allow(&world, rule(false, 3 | MEMBERS, 6));
    out_tcp(&world, SYN).assert_dropped(DropReason::PolicyEgress, A1.port);
    world.change_endpoint(SUBNET_A.vni, RA.ip, |endpoint| endpoint.members = 3 | MEMBERS);
    out_tcp(&world, SYN).assert_encapsulated();
    let counts = world.tables().policy_counts.entries().expect("readable");
    let of = PolicyCountKey { port: A1.port, set: set_direction(1, false) };
    let count = counts.iter().find(|(counted, _)| *counted == of).expect("counted").1;
    assert_eq!((count.allowed, count.denied), (2, 3), "{counts:?}");
}

/// What policy has answered is remembered as long as a flow's decision would stand, and no longer: until the port's epoch rises, or
/// that of the other side.
#[test]
fn an_answer_of_policy_is_remembered_until_an_epoch_rises() {
    let world = World::new();
    under_policy(&world, A1);
    let allowed = || out(&world, 1000, 53).assert_encapsulated();
    let denied = |world: &World| out(world, 1000, 53).assert_dropped(DropReason::PolicyEgress, A1.port);
    let forget = || world.tables().half_open.of(A1.port).unwrap().unwrap().delete(&key(17, 1000, 53));
    allow(&world, rule(false, 0, 17));
    allowed();
    forget().expect("deleted");
    world.tables().rules.delete(&rule(false, 0, 17)).expect("deleted");
    // As all CPUs may ask, this says nothing of the flow in between: a change is not over before the epoch has risen.
    world.raise();
    denied(&world);
    // What was denied is asked again just so.
    allow(&world, rule(false, 3 | MEMBERS, 17));
    denied(&world);
    world.change_endpoint(SUBNET_A.vni, RA.ip, |endpoint| endpoint.members = 3 | MEMBERS);
    allowed();
    forget().expect("deleted");
    // The same class of members is another's later: the other side's epoch says so, and the port's does not.
    world.tables().rules.delete(&rule(false, 3 | MEMBERS, 17)).expect("deleted");
    let slot = epoch_slot(SUBNET_A.vni, &mapped(RA.ip));
    world.tables().remote_epochs.put(&slot, &1).expect("writable");
    denied(&world);
}

#[test]
fn an_icmp_error_about_a_flow_is_let_through_and_no_other() {
    let world = World::new();
    under_policy(&world, A1);
    allow(&world, rule(false, 0, 17));
    out(&world, 1000, 53).assert_encapsulated();
    let error = |quoted: &Ip| {
        let quoted = &quoted.bytes()[..28];
        let frame = icmp(RA.ip, A1.ip, 3, 3, [0; 4], quoted).frame(A1.mac, RA.mac);
        world.from_relay(SUBNET_A.vni, HOST_1, frame)
    };
    let seen = error(&udp((A1.ip, 1000), (RA.ip, 53), b"question"));
    seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    seen.assert_counted(PathCounter::ErrorRelated);
    error(&udp((A1.ip, 1001), (RA.ip, 53), b"question")).assert_dropped(DropReason::PolicyIngress, A1.port);
    error(&udp((A2.ip, 1000), (RA.ip, 53), b"question")).assert_dropped(DropReason::PolicyIngress, A1.port);
    world.tables().rules.delete(&rule(false, 0, 17)).expect("deleted");
    world.raise();
    error(&udp((A1.ip, 1000), (RA.ip, 53), b"question")).assert_dropped(DropReason::PolicyIngress, A1.port);
}

#[test]
fn later_fragments_follow_the_first_and_only_it() {
    let world = World::new();
    under_policy(&world, A1);
    allow(&world, RuleKey { prefix_len: 96, port: 53u16.to_be_bytes(), ..rule(false, 0, 17) });
    let whole = |port| udp((A1.ip, 1000), (RA.ip, port), &[1; 56]);
    let first = |port| Ip { fragment: 0x2000, ..whole(port) }.frame(RA.mac, A1.mac);
    let later = Ip { fragment: 8, payload: vec![9; 32], ..whole(0) }.frame(RA.mac, A1.mac);
    world.from_guest(A1, later.clone()).assert_dropped(DropReason::FragmentUnknown, A1.port);
    world.from_guest(A1, first(54)).assert_dropped(DropReason::PolicyEgress, A1.port);
    world.from_guest(A1, later.clone()).assert_dropped(DropReason::FragmentUnknown, A1.port);
    world.from_guest(A1, first(53)).assert_encapsulated();
    world.from_guest(A1, later.clone()).assert_encapsulated();
    world
        .tables()
        .rules
        .delete(&RuleKey { prefix_len: 96, port: 53u16.to_be_bytes(), ..rule(false, 0, 17) })
        .expect("deleted");
    world.raise();
    world.from_guest(A1, later).assert_dropped(DropReason::PolicyEgress, A1.port);
}

#[test]
fn a_known_flow_ends_with_its_hosts_admission() {
    let world = World::new();
    out(&world, 1000, 53).assert_encapsulated();
    for _ in 0..2 {
        back(&world, 53, 1000).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    }
    let host = VtepKey { vni: SUBNET_A.vni, ip: mapped(HOST_1) };
    world.tables().vteps.delete(&host).expect("deleted");
    world.raise();
    let frame = udp((RA.ip, 53), (A1.ip, 1000), b"answer").frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, frame.clone()).assert_dropped(DropReason::UnknownVtep, 0);
    // A host that was never admitted has no part in what another's flow allows.
    world.from_relay(SUBNET_A.vni, HOST_2, frame).assert_dropped(DropReason::UnknownVtep, 0);
}
