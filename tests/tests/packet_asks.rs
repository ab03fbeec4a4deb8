//! What is handed up for upstream to be asked, and what is not; what comes back, and what ends.

use ncm_common::Plain;
use ncm_common::asks::{Ask, ask_kinds};
use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::marks;
use ncm_common::tables::{Rule, RuleKey, endpoint_flags, port_flags, set_direction};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{
    A1, A2, GATEWAY_A, HOST_1, Ip, Ipv4, Mac, RA, SUBNET_A, SUBNET_B, Seen, Verdict, World, arp_request,
    icmp, link_local, mac, mapped, solicitation, tcp, udp, udp6,
};

const NOBODY: Ipv4 = [10, 0, 1, 99];
const NOBODYS: Mac = mac(0x99);
const FAR: Ipv4 = [10, 0, 2, 99];

/// A world in which A1's port may have upstream asked.
fn asking() -> World {
    let world = World::new();
    world.change_port(A1, |port| (port.ask_interval, port.asks_at_once) = (1_000_000, 1_000));
    world
}

/// What the agent is told of a frame that is handed up, which is otherwise as it came.
#[track_caller]
fn asked(world: &World, frame: &[u8]) -> Ask {
    let at_xdp = world.from_guest_at(Hook::GuestXdp, A1, frame.to_vec());
    at_xdp.assert_untouched();
    let seen = world.from_guest(A1, frame.to_vec());
    assert_eq!(seen.verdict, Verdict::Redirected, "{seen}");
    seen.assert_counted(PathCounter::AskedFor);
    assert!(seen.drops.is_empty(), "{seen}");
    let (ask, rest) = seen.frame.split_at(size_of::<Ask>());
    assert_eq!(rest, frame, "as it came\n{seen}");
    Ask::from_bytes(ask).expect("as long as it is")
}

#[track_caller]
fn expect(ask: Ask, vnis: (u32, u32), source: [u8; 16], target: [u8; 16], needs: u16, kind: u8) {
    assert_eq!((ask.vni, ask.target_vni), vnis, "{ask:?}");
    assert_eq!((ask.source, ask.target, ask.needs, ask.kind), (source, target, needs, kind), "{ask:?}");
}

#[test]
fn what_is_not_known_in_the_own_subnet_is_asked_for() {
    let world = asking();
    let vnis = (SUBNET_A.vni, SUBNET_A.vni);
    let ask = asked(&world, &udp((A1.ip, 1000), (NOBODY, 2000), b"?").frame(NOBODYS, A1.mac));
    expect(ask, vnis, mapped(A1.ip), mapped(NOBODY), endpoint_flags::L2, ask_kinds::PACKET);
    let ports = (u16::from_be_bytes(ask.source_port), u16::from_be_bytes(ask.destination_port));
    assert_eq!((ask.protocol, ports), (17, (1000, 2000)));
    let ask = asked(&world, &arp_request(A1.pair(), NOBODY));
    expect(ask, vnis, mapped(A1.ip), mapped(NOBODY), endpoint_flags::L2, ask_kinds::ARP);
    assert_eq!((ask.protocol, ask.source_port, ask.destination_port), (0, [0; 2], [0; 2]));
    let mut target = A1.ip_v6();
    target[15] = 99;
    let ask = asked(&world, &solicitation(A1.pair_v6(), target));
    expect(ask, vnis, A1.ip_v6(), target, endpoint_flags::L2, ask_kinds::DISCOVERY);
    assert_eq!((ask.protocol, ask.source_port), (58, [0; 2]));
    let ask = asked(&world, &udp6((A1.ip_v6(), 1), (target, 2), b"?").frame(NOBODYS, A1.mac));
    expect(ask, vnis, A1.ip_v6(), target, endpoint_flags::L2, ask_kinds::PACKET);
}

#[test]
fn what_is_not_known_behind_the_router_is_asked_for() {
    let world = asking();
    let ask = asked(&world, &tcp((A1.ip, 1), (FAR, 80), b"", false).frame(GATEWAY_A.0, A1.mac));
    let vnis = (SUBNET_A.vni, SUBNET_B.vni);
    expect(ask, vnis, mapped(A1.ip), mapped(FAR), endpoint_flags::L3, ask_kinds::PACKET);
    assert_eq!((ask.protocol, ask.destination_port), (6, [0, 80]));
    // A neighbour of its own subnet only is none of the router's.
    world.change_endpoint(RA.subnet.vni, RA.ip, |endpoint| endpoint.flags = endpoint_flags::L2);
    let ping = icmp(A1.ip, RA.ip, 8, 0, [7, 7, 0, 1], b"").frame(GATEWAY_A.0, A1.mac);
    let ask = asked(&world, &ping);
    expect(ask, (SUBNET_A.vni, SUBNET_A.vni), mapped(A1.ip), mapped(RA.ip), endpoint_flags::L3, 0);
    assert_eq!((ask.protocol, ask.source_port, ask.destination_port), (1, [0; 2], [0; 2]), "no ports");
}

#[test]
fn what_nobody_could_know_is_not_asked_for() {
    let world = asking();
    let refused = |frame: Vec<u8>, reason| world.from_guest(A1, frame).assert_dropped(reason, A1.port);
    let elsewhere = [172, 16, 0, 1];
    refused(udp((A1.ip, 1), (elsewhere, 2), b"").frame(NOBODYS, A1.mac), DropReason::UnknownMac);
    refused(udp((A1.ip, 1), (RA.ip, 2), b"").frame(NOBODYS, A1.mac), DropReason::UnknownMac);
    refused(arp_request(A1.pair(), A1.ip), DropReason::ArpIgnored);
    refused(arp_request(A1.pair(), elsewhere), DropReason::ArpUnknown);
    refused(solicitation(A1.pair_v6(), link_local(NOBODYS)), DropReason::NdUnknown);
    refused(udp((A1.ip, 1), (elsewhere, 2), b"").frame(GATEWAY_A.0, A1.mac), DropReason::NoRoute);
    refused(udp(([10, 0, 1, 77], 1), (NOBODY, 2), b"").frame(NOBODYS, A1.mac), DropReason::SpoofedIp);
}

#[test]
fn without_an_upstream_nothing_is_asked_for() {
    let world = World::new();
    for (frame, reason) in [
        (udp((A1.ip, 1), (NOBODY, 2), b"").frame(NOBODYS, A1.mac), DropReason::UnknownMac),
        (udp((A1.ip, 1), (FAR, 2), b"").frame(GATEWAY_A.0, A1.mac), DropReason::UnknownDestination),
        (arp_request(A1.pair(), NOBODY), DropReason::ArpUnknown),
    ] {
        for hook in [Hook::GuestTc, Hook::GuestXdp] {
            world.from_guest_at(hook, A1, frame.clone()).assert_dropped(reason, A1.port);
        }
    }
}

#[test]
fn frames_from_the_tunnel_never_ask() {
    let world = asking();
    for to in [NOBODYS, A2.mac] {
        let inner = udp((RA.ip, 1), (NOBODY, 2), b"").frame(to, RA.mac);
        let seen = world.from_relay(SUBNET_A.vni, HOST_1, inner);
        assert!(!seen.counters.iter().any(|(counter, _)| *counter == PathCounter::AskedFor), "{seen}");
    }
    let inner = arp_request(RA.pair(), NOBODY);
    world.from_relay(SUBNET_A.vni, HOST_1, inner).assert_dropped(DropReason::TunnelControl, 0);
}

#[test]
fn policy_comes_first() {
    let world = asking();
    world.change_port(A1, |port| port.set = 1);
    let set = set_direction(1, false);
    let rule =
        RuleKey { prefix_len: 96, set, class: 0, family: 4, protocol: 17, port: 2000u16.to_be_bytes() };
    world.tables().rules.put(&rule, &Rule { rules: 1 }).expect("room");
    world.raise();
    let to = |port| udp((A1.ip, 1), (NOBODY, port), b"").frame(NOBODYS, A1.mac);
    world.from_guest(A1, to(2001)).assert_dropped(DropReason::PolicyEgress, A1.port);
    asked(&world, &to(2000));
    // ARP is never filtered.
    asked(&world, &arp_request(A1.pair(), NOBODY));
    // Rules name groups: of which the destination is a member shows when it is known.
    world.change_port(A1, |port| port.flags |= port_flags::GROUPS_OUT);
    asked(&world, &to(2001));
}

#[test]
fn a_port_asks_within_its_limit_and_another_ones_is_its_own() {
    let world = asking();
    world.change_port(A1, |port| (port.ask_interval, port.asks_at_once) = (1_000_000_000, 5));
    let frame = arp_request(A1.pair(), NOBODY);
    let answered: Vec<Seen> = (0..20).map(|_| world.from_guest(A1, frame.clone())).collect();
    let up = answered.iter().filter(|seen| seen.verdict == Verdict::Redirected).count();
    assert!((5..=6).contains(&up), "{up} of 20 handed up");
    answered[19].assert_dropped(DropReason::AskLimited, A1.port);
    world.change_port(A2, |port| (port.ask_interval, port.asks_at_once) = (1_000_000_000, 5));
    let seen = world.from_guest(A2, arp_request(A2.pair(), NOBODY));
    assert_eq!(seen.verdict, Verdict::Redirected, "{seen}");
}

#[test]
fn what_was_held_goes_on_as_if_its_guest_sent_it_now_and_counts_once() {
    let world = asking();
    let release = marks::mark(marks::RELEASE, A1.port);
    let run = |frame: Vec<u8>, mark| {
        world.run(Hook::GuestTc, TestRun { mark, ..TestRun::new(frame, world.ifindex(A1.interface)) })
    };
    let known = udp((A1.ip, 1), (RA.ip, 2), b"").frame(RA.mac, A1.mac);
    let seen = run(known.clone(), release);
    seen.assert_encapsulated();
    assert!(!seen.sent.contains(&A1.port), "it was counted when it came\n{seen}");
    let unknown = udp((A1.ip, 1), (NOBODY, 2), b"").frame(NOBODYS, A1.mac);
    run(unknown.clone(), release).assert_dropped(DropReason::AskUnresolved, A1.port);
    run(arp_request(A1.pair(), NOBODY), release).assert_dropped(DropReason::AskUnresolved, A1.port);
    let spoofed = Ip { source: RA.ip, ..udp((A1.ip, 1), (RA.ip, 2), b"") }.frame(RA.mac, A1.mac);
    run(spoofed, release).assert_dropped(DropReason::SpoofedIp, A1.port);
    // Another port's mark, and one of another kind, say nothing here.
    for mark in [marks::mark(marks::RELEASE, A2.port), marks::mark(marks::DELIVER, A1.port), A1.port] {
        assert_eq!(run(known.clone(), mark).sent, [A1.port]);
        assert_eq!(run(unknown.clone(), mark).verdict, Verdict::Redirected, "it asks");
    }
}

#[test]
fn what_the_agent_lets_go_on_goes_to_its_port_and_what_ends_counts_there() {
    let world = asking();
    let frame = udp((A1.ip, 1), (NOBODY, 2), b"").frame(NOBODYS, A1.mac);
    let down = |mark| {
        world.run(Hook::HandDownTc, TestRun { mark, ..TestRun::new(frame.clone(), world.ifindex("up0")) })
    };
    let seen = down(marks::mark(marks::RELEASE, A1.port));
    assert_eq!(seen.verdict, Verdict::Redirected, "{seen}");
    seen.assert_counted(PathCounter::Released);
    assert!(seen.received.is_empty(), "no guest received it\n{seen}");
    for reason in [DropReason::AskFull, DropReason::AskRefused, DropReason::AskUnanswered] {
        down(marks::mark(marks::END | reason as u32, A1.port)).assert_dropped(reason, A1.port);
    }
    down(marks::mark(marks::RELEASE, 77)).assert_dropped(DropReason::UnknownPort, 0);
    down(marks::mark(marks::ASK, A1.port)).assert_dropped(DropReason::UnknownPort, 0);
}

#[test]
fn without_the_agent_nobody_is_asked() {
    let world = asking();
    world.change_node(|node| node.hand_up_ifindex = 0);
    let frame = arp_request(A1.pair(), NOBODY);
    world.from_guest(A1, frame).assert_dropped(DropReason::HandUpUnavailable, A1.port);
}
