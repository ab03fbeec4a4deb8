//! How far a flow is taken to be, whose memory its entry is, and what its decision is bound to.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{
    Flow, FlowKey, MEMBERS, MacKey, PortFlows, Reference, Rule, RuleKey, VtepKey, endpoint_flags, flow_kinds,
    flow_state, node_flags, set_direction, timeouts,
};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{
    A1, A2, HOST_1, HOST_2, Ip, Ipv4, RA, Remote, SUBNET_A, Seen, World, icmp, mapped, segment, udp,
};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// Allows what `class` is, by a rule of set 1.
fn allow(world: &World, to_guest: bool, class: u32, protocol: u8) {
    let set = set_direction(1, to_guest);
    let key = RuleKey { prefix_len: 80, set, class, family: 4, protocol, port: [0; 2] };
    world.tables().rules.put(&key, &Rule { rules: 1 }).expect("room");
    world.raise();
}

/// The key of a flow between A1 and an address.
fn key(protocol: u8, local_port: u16, remote: (Ipv4, u16)) -> FlowKey {
    FlowKey {
        port: A1.port,
        local: mapped(A1.ip),
        remote: mapped(remote.0),
        local_port: local_port.to_be_bytes(),
        remote_port: remote.1.to_be_bytes(),
        protocol,
        kind: flow_kinds::FLOW,
        reserved: [0; 2],
    }
}

/// How many established flows count for A1.
fn share(world: &World) -> u32 {
    world.tables().port_flows.get(&A1.port).expect("readable").expect("counted").established
}

/// A segment from A1 to RA.
fn out(world: &World, local: u16, remote: u16, flags: u8) -> Seen {
    world.from_guest(A1, segment((A1.ip, local), (RA.ip, remote), flags).frame(RA.mac, A1.mac))
}

/// A segment from RA to A1.
fn back(world: &World, remote: u16, local: u16, flags: u8) -> Seen {
    let frame = segment((RA.ip, remote), (A1.ip, local), flags).frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, frame)
}

fn has(seen: &Seen, counter: PathCounter) -> bool {
    seen.counters.iter().any(|(counted, _)| *counted == counter)
}

/// Gives each timeout a value of its own: 100 and its number.
fn number_timeouts(world: &World) {
    for kind in 0..timeouts::COUNT {
        world.tables().timeouts.put(&kind, &(100 + kind)).expect("writable");
    }
}

#[test]
fn a_connection_is_established_when_who_began_goes_on_and_not_by_the_answer_alone() {
    let world = World::new();
    number_timeouts(&world);
    let key = key(6, 80, (RA.ip, 1000));
    back(&world, 1000, 80, SYN).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 80, 1000, SYN | ACK).assert_encapsulated();
    let flow = world.half_open(&key).expect("half open");
    assert_eq!(flow.state, flow_state::REMOTE_BEGAN | flow_state::ANSWERED);
    assert_eq!(flow.timeout, 100 + timeouts::TCP_SYN_RECEIVED);
    // Neither side's repetitions change that.
    back(&world, 1000, 80, SYN).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 80, 1000, SYN | ACK).assert_encapsulated();
    assert_eq!(world.half_open(&key).expect("half open").timeout, 100 + timeouts::TCP_SYN_RECEIVED);
    assert_eq!(share(&world), 0);
    let third = back(&world, 1000, 80, ACK);
    third.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    third.assert_counted(PathCounter::FlowEstablished);
    let flow = world.established(&key).expect("established");
    assert_eq!(flow.timeout, 100 + timeouts::TCP_ESTABLISHED);
    assert_eq!(share(&world), 1);
}

#[test]
fn a_scan_that_ends_with_a_reset_establishes_nothing() {
    let world = World::new();
    number_timeouts(&world);
    out(&world, 1000, 80, SYN).assert_encapsulated();
    back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 1000, 80, RST).assert_encapsulated();
    let flow = world.half_open(&key(6, 1000, (RA.ip, 80))).expect("half open");
    assert_eq!(flow.timeout, 100 + timeouts::TCP_RESET);
    assert_eq!(share(&world), 0);
}

#[test]
fn a_connection_taken_up_in_its_middle_is_established_by_the_first_answer() {
    let world = World::new();
    out(&world, 1000, 80, ACK).assert_counted(PathCounter::FlowCreated);
    back(&world, 80, 1000, ACK).assert_counted(PathCounter::FlowEstablished);
    assert_eq!(share(&world), 1);
}

#[test]
fn a_flood_of_answered_connection_requests_takes_no_share() {
    let world = World::new();
    out(&world, 1000, 80, SYN).assert_encapsulated();
    back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 1000, 80, ACK).assert_counted(PathCounter::FlowEstablished);
    let relay = world.ifindex("relay0");
    let tunnel = Some(ncm_dataplane::Tunnel { vni: SUBNET_A.vni, source: HOST_1.into() });
    for port in 2000..5000 {
        let asked = segment((RA.ip, port), (A1.ip, 80), SYN).frame(A1.mac, RA.mac);
        let run = TestRun { tunnel, ..TestRun::new(asked, relay) };
        world.dataplane().test_run(Hook::RelayTc, &run).expect("it runs");
        let answer = segment((A1.ip, 80), (RA.ip, port), SYN | ACK).frame(RA.mac, A1.mac);
        let run = TestRun::new(answer, world.ifindex(A1.interface));
        world.dataplane().test_run(Hook::GuestTc, &run).expect("it runs");
    }
    assert_eq!(share(&world), 1, "what was there before");
    let seen = back(&world, 80, 1000, ACK);
    assert!(!has(&seen, PathCounter::FlowCreated), "its flow is still known\n{seen}");
}

#[test]
fn a_new_connection_on_the_ports_of_one_that_was_closed_by_half_begins_anew() {
    let world = World::new();
    number_timeouts(&world);
    let key = key(6, 1000, (RA.ip, 80));
    out(&world, 1000, 80, SYN).assert_encapsulated();
    back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 1000, 80, FIN | ACK).assert_encapsulated();
    assert_eq!(world.established(&key).expect("established").timeout, 100 + timeouts::TCP_CLOSING);
    // The other side has lost its half without a word.
    out(&world, 1000, 80, SYN).assert_counted(PathCounter::FlowCreated);
    let flow = world.established(&key).expect("in its place");
    assert_eq!((flow.state, flow.timeout), (flow_state::ESTABLISHED, 100 + timeouts::TCP_NEW));
    back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 1000, 80, ACK).assert_encapsulated();
    assert_eq!(world.established(&key).expect("open").timeout, 100 + timeouts::TCP_ESTABLISHED);
    assert_eq!(share(&world), 1);
}

#[test]
fn a_flow_beyond_its_ports_share_is_established_once_there_is_room() {
    let world = World::new();
    world.change_port(A1, |port| port.max_flows = 1);
    for port in [1000, 1001] {
        out(&world, port, 80, SYN).assert_encapsulated();
        back(&world, 80, port, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        out(&world, port, 80, ACK).assert_encapsulated();
    }
    let (first, second) = (key(6, 1000, (RA.ip, 80)), key(6, 1001, (RA.ip, 80)));
    let mut waiting = world.half_open(&second).expect("beyond the share");
    assert!(world.established(&first).is_some());
    // The first one is over and freed, and a second has passed.
    world.tables().flows.delete(&first).expect("deleted");
    world.tables().port_flows.put(&A1.port, &PortFlows::default()).expect("writable");
    waiting.seen = waiting.seen.map(|seen| seen - 20);
    let table = world.tables().half_open.of(A1.port).expect("readable").expect("the port's table");
    table.put(&second, &waiting).expect("room");
    out(&world, 1001, 80, ACK).assert_counted(PathCounter::FlowEstablished);
    assert!(world.established(&second).is_some() && world.half_open(&second).is_none());
    assert_eq!(share(&world), 1);
}

#[test]
fn an_entry_whose_memory_has_become_another_ports_is_not_followed() {
    let world = World::new();
    let key = key(6, 1000, (RA.ip, 80));
    for spoil in [|flow: &mut Flow| flow.port = A2.port, |flow: &mut Flow| flow.port_again = A2.port] {
        out(&world, 1000, 80, SYN).assert_encapsulated();
        back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        out(&world, 1000, 80, ACK).assert_encapsulated();
        let mut flow = world.established(&key).expect("established");
        spoil(&mut flow);
        world.tables().flows.put(&key, &flow).expect("room");
        out(&world, 1000, 80, ACK).assert_dropped(DropReason::StaleIndex, A1.port);
        // From the tunnel the long way is open, and puts it right.
        back(&world, 80, 1000, ACK).assert_counted(PathCounter::FlowCreated);
        let flow = world.established(&key).expect("in its place");
        assert_eq!((flow.port, flow.port_again), (A1.port, A1.port));
        world.tables().flows.delete(&key).expect("deleted");
    }
}

/// Gives A1's index to a port of another generation, all else being equal: epoch, addresses, interface.
fn succeed(world: &World, generation: u32) {
    let tables = world.tables();
    let mut port = tables.ports.get(&A1.port).expect("readable").expect("there");
    port.generation = generation;
    port.set = 1;
    tables.ports.put(&A1.port, &port).expect("writable");
    let reference = Reference { index: A1.port, generation };
    tables.port_by_interface.put(&world.ifindex(A1.interface), &reference).expect("room");
    let of = MacKey { vni: SUBNET_A.vni, mac: A1.mac, reserved: [0; 2] };
    let mut endpoint = tables.endpoints_mac.get(&of).expect("readable").expect("there");
    endpoint.generation = generation;
    tables.endpoints_mac.put(&of, &endpoint).expect("room");
}

#[test]
fn the_next_port_under_an_index_inherits_no_flows() {
    // Established and half-open ones, begun by either side.
    let world = World::new();
    out(&world, 1000, 80, SYN).assert_encapsulated();
    back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 1000, 80, ACK).assert_encapsulated();
    out(&world, 1001, 80, SYN).assert_encapsulated();
    back(&world, 2000, 22, SYN).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    let cut = |fragment: u16| Ip { fragment, ..udp((A1.ip, 7), (RA.ip, 7), &[1; 24]) };
    let (first, later) = (cut(0x2000).frame(RA.mac, A1.mac), cut(4).frame(RA.mac, A1.mac));
    world.from_guest(A1, first).assert_encapsulated();
    world.from_guest(A1, later.clone()).assert_encapsulated();
    // Policy of the next one allows nothing, and nobody has raised its epoch: it begins with the one that the last port had.
    succeed(&world, 77);
    out(&world, 1000, 80, ACK).assert_dropped(DropReason::PolicyEgress, A1.port);
    back(&world, 80, 1000, ACK).assert_dropped(DropReason::PolicyIngress, A1.port);
    back(&world, 80, 1001, SYN | ACK).assert_dropped(DropReason::PolicyIngress, A1.port);
    out(&world, 22, 2000, SYN | ACK).assert_dropped(DropReason::PolicyEgress, A1.port);
    world.from_guest(A1, later).assert_dropped(DropReason::FragmentUnknown, A1.port);
    // An error about what the last one has said is not for the next.
    let quoted = segment((A1.ip, 1000), (RA.ip, 80), ACK).bytes();
    let error = icmp(RA.ip, A1.ip, 3, 3, [0; 4], &quoted[..28]).frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, error).assert_dropped(DropReason::PolicyIngress, A1.port);
}

#[test]
fn errors_between_guests_of_one_host_are_let_through_with_their_flow() {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    allow(&world, false, 0, 17);
    let question = udp((A1.ip, 1000), (A2.ip, 53), b"question");
    let unreachable = |quoted: &Ip| {
        let quoted = &quoted.bytes()[..28];
        world.from_guest(A2, icmp(A2.ip, A1.ip, 3, 3, [0; 4], quoted).frame(A1.mac, A2.mac))
    };
    unreachable(&question).assert_dropped(DropReason::PolicyIngress, A1.port);
    world
        .from_guest(A1, question.frame(A2.mac, A1.mac))
        .assert_delivered(A2.port, PathCounter::LocalDelivered);
    let seen = unreachable(&question);
    seen.assert_delivered(A1.port, PathCounter::LocalDelivered);
    assert!(has(&seen, PathCounter::ErrorRelated), "{seen}");
    unreachable(&udp((A1.ip, 1001), (A2.ip, 53), b"question"))
        .assert_dropped(DropReason::PolicyIngress, A1.port);
    world.raise();
    unreachable(&question).assert_dropped(DropReason::PolicyIngress, A1.port);
}

#[test]
fn an_error_goes_to_whom_it_is_about_and_to_nobody_else() {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    allow(&world, true, 0, 17);
    let question = udp((RA.ip, 53), (A1.ip, 1000), b"question");
    world
        .from_relay(SUBNET_A.vni, HOST_1, question.frame(A1.mac, RA.mac))
        .assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    let unreachable = |to: Ipv4, mac| {
        let quoted = &question.bytes()[..28];
        world.from_guest(A1, icmp(A1.ip, to, 3, 3, [0; 4], quoted).frame(mac, A1.mac))
    };
    unreachable(RA.ip, RA.mac).assert_encapsulated();
    // Who may not be sent anything gets no errors about what others have said either.
    unreachable(A2.ip, A2.mac).assert_dropped(DropReason::PolicyEgress, A1.port);
}

#[test]
fn who_gets_packets_for_a_member_is_none_by_that() {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    allow(&world, false, 3 | MEMBERS, 17);
    world.change_endpoint(SUBNET_A.vni, RA.ip, |endpoint| endpoint.members = 3 | MEMBERS);
    let question = udp((A1.ip, 1000), (RA.ip, 53), b"question");
    world.from_guest(A1, question.frame(RA.mac, A1.mac)).assert_encapsulated();
    // To another MAC: when the member leaves its group, that MAC's epoch does not rise.
    let question = udp((A1.ip, 1001), (RA.ip, 53), b"question");
    world.from_guest(A1, question.frame(A2.mac, A1.mac)).assert_dropped(DropReason::PolicyEgress, A1.port);
}

#[test]
fn a_flow_whose_other_side_is_reached_elsewhere_is_decided_anew() {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    allow(&world, true, 3 | MEMBERS, 17);
    world.change_endpoint(SUBNET_A.vni, RA.ip, |endpoint| endpoint.members = 3 | MEMBERS);
    let question = udp((RA.ip, 53), (A1.ip, 1000), b"question").frame(A1.mac, RA.mac);
    world
        .from_relay(SUBNET_A.vni, HOST_1, question)
        .assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    // By its address it is a member. What leads to another MAC is bound to that one's epoch, and it is none.
    let answer = udp((A1.ip, 1000), (RA.ip, 53), b"answer");
    let seen = world.from_guest(A1, answer.frame(A2.mac, A1.mac));
    seen.assert_dropped(DropReason::PolicyIngress, A1.port);
    seen.assert_counted(PathCounter::FlowRedecided);
}

#[test]
fn what_is_handed_up_is_no_larger_than_the_agent_needs() {
    let world = World::new();
    let asked = |bytes: usize| {
        let frame = udp(([0; 4], 68), ([255; 4], 67), &vec![0; bytes]).frame([0xff; 6], A1.mac);
        world.from_guest(A1, frame)
    };
    asked(1400).assert_counted(PathCounter::HandedUp);
    asked(1700).assert_dropped(DropReason::HandUpLimited, A1.port);
}

#[test]
fn of_guests_with_one_mac_each_is_reached_at_its_own_host() {
    let world = World::new();
    // As of a pair of routers that share one: who has had it last is on host 2.
    let other = Remote { host: 2, ip: [10, 0, 1, 112], ..RA };
    world.add_remote(other, endpoint_flags::L2 | endpoint_flags::L3);
    for (of, host) in [(RA, HOST_1), (other, HOST_2)] {
        let seen = world.from_guest(A1, udp((A1.ip, 1000), (of.ip, 53), b"").frame(RA.mac, A1.mac));
        assert_eq!(seen.tunnelled(0).destination, host, "{:?}\n{seen}", of.ip);
    }
    // Behind it: an address that is not known.
    let seen = world.from_guest(A1, udp((A1.ip, 1000), ([192, 168, 7, 7], 53), b"").frame(RA.mac, A1.mac));
    assert_eq!(seen.tunnelled(0).destination, HOST_2, "{seen}");
    // One that only routing reaches is found by the MAC.
    let routed = Remote { host: 1, ip: [10, 0, 1, 113], mac: other.mac, ..RA };
    world.add_remote(routed, endpoint_flags::L3);
    let seen = world.from_guest(A1, udp((A1.ip, 1000), (routed.ip, 53), b"").frame(RA.mac, A1.mac));
    assert_eq!(seen.tunnelled(0).destination, HOST_2, "{seen}");
}

#[test]
fn a_flow_with_a_short_timeout_is_not_over_while_it_is_used() {
    let world = World::new();
    // Shorter than what a flow's time may lag behind otherwise.
    for kind in 0..timeouts::COUNT {
        world.tables().timeouts.put(&kind, &20).expect("writable");
    }
    let key = key(6, 1000, (RA.ip, 80));
    out(&world, 1000, 80, SYN).assert_encapsulated();
    back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 1000, 80, ACK).assert_encapsulated();
    let mut flow = world.established(&key).expect("established");
    flow.seen = flow.seen.map(|seen| seen - 6);
    world.tables().flows.put(&key, &flow).expect("room");
    out(&world, 1000, 80, ACK).assert_encapsulated();
    let after = world.established(&key).expect("established");
    assert!(after.seen[0] > flow.seen[0], "{after:?}");
}

#[test]
fn a_known_flow_is_no_way_in_for_another_host() {
    let world = World::new();
    world.change_node(|node| node.flags |= node_flags::STRICT);
    let other = VtepKey { vni: SUBNET_A.vni, ip: mapped(HOST_2) };
    world.tables().vteps.put(&other, &Reference { index: 2, generation: 2 }).expect("room");
    out(&world, 1000, 80, SYN).assert_encapsulated();
    back(&world, 80, 1000, SYN | ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    out(&world, 1000, 80, ACK).assert_encapsulated();
    back(&world, 80, 1000, ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    let frame = segment((RA.ip, 80), (A1.ip, 1000), ACK).frame(A1.mac, RA.mac);
    world.from_relay(SUBNET_A.vni, HOST_2, frame).assert_dropped(DropReason::WrongVtep, A1.port);
    // Nor is it for another MAC of the host's own.
    let frame = segment((RA.ip, 80), (A1.ip, 1000), ACK).frame(A1.mac, A2.mac);
    world.from_relay(SUBNET_A.vni, HOST_1, frame).assert_dropped(DropReason::TunnelSource, A1.port);
    back(&world, 80, 1000, ACK).assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
}

#[test]
fn nothing_comes_from_the_tunnel_as_a_host_itself() {
    let world = World::new();
    for source in [[0, 0, 0, 0], [127, 0, 0, 1]] {
        let frame = udp((source, 53), (A1.ip, 1000), b"answer").frame(A1.mac, RA.mac);
        world.from_relay(SUBNET_A.vni, HOST_1, frame).assert_dropped(DropReason::TunnelSource, A1.port);
    }
}
