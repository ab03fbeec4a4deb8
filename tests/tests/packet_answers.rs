//! What the programs answer themselves: ARP, pings of gateways, time exceeded.

use ncm_common::counters::PathCounter;
use ncm_common::tables::{Source, SourceKey, SourcePrefixKey, endpoint_flags, port_flags};
use ncm_dataplane::Hook;
use ncm_tests::packet::{
    A1, A2, Arp, B1, C1, GATEWAY_A, GATEWAY_B, Ip, RA, RB, RC, SUBNET_A, Verdict, World, arp_request,
    echo_request, mac, mapped, tcp, udp,
};

const HOOKS: [Hook; 2] = [Hook::GuestTc, Hook::GuestXdp];

#[test]
fn arp_is_answered_for_the_gateway_and_for_every_known_endpoint_of_the_subnet() {
    let world = World::new();
    for (wanted, owner) in [("gateway", GATEWAY_A), ("local guest", A2.pair()), ("remote guest", RA.pair())] {
        let seen = world.from_guest(A1, arp_request(A1.pair(), owner.1));
        seen.assert_answered(PathCounter::ArpAnswered);
        assert_eq!(seen.macs(), (A1.mac, owner.0), "{wanted}\n{seen}");
        assert_eq!(seen.arp(), Arp { operation: 2, sender: owner, target: A1.pair() }, "{wanted}\n{seen}");
    }
}

#[test]
fn a_tenant_is_told_of_its_own_endpoints_only() {
    let world = World::new();
    // The same question in another tenant; its endpoints carry other MACs this time.
    let other = ncm_tests::packet::Remote { mac: mac(0xcc), ..RC };
    world.add_remote(other, endpoint_flags::L2);
    assert_eq!(world.from_guest(C1, arp_request(C1.pair(), RC.ip)).arp().sender, other.pair());
    assert_eq!(world.from_guest(A1, arp_request(A1.pair(), RA.ip)).arp().sender, RA.pair());
}

#[test]
fn the_gateway_answers_arp_with_and_without_a_router() {
    let world = World::new();
    let seen = world.from_guest(C1, arp_request(C1.pair(), GATEWAY_A.1));
    seen.assert_answered(PathCounter::ArpAnswered);
    assert_eq!(seen.arp().sender, GATEWAY_A);
}

#[test]
fn an_address_probe_for_somebody_elses_address_is_answered() {
    // RFC 5227: the asker must learn that the address is taken.
    let world = World::new();
    let seen = world.from_guest(A1, arp_request((A1.mac, [0; 4]), A2.ip));
    seen.assert_answered(PathCounter::ArpAnswered);
    assert_eq!(seen.arp().sender, A2.pair());
}

#[test]
fn an_endpoint_that_only_routing_reaches_is_not_answered_for() {
    let world = World::new();
    world.change_endpoint(SUBNET_A.vni, RA.ip, |endpoint| endpoint.flags = endpoint_flags::L3);
    let seen = world.from_guest(A1, arp_request(A1.pair(), RA.ip));
    assert_eq!(seen.verdict, Verdict::Dropped, "{seen}");
}

#[test]
fn a_gateway_answers_a_ping_once_a_router_holds_its_subnet() {
    let world = World::new();
    let seen = world.from_guest(A1, echo_request(A1.ip, GATEWAY_A.1).frame(GATEWAY_A.0, A1.mac));
    seen.assert_answered(PathCounter::EchoAnswered);
    assert_eq!(seen.macs(), (A1.mac, GATEWAY_A.0), "{seen}");
    let (source, destination, ttl) = seen.ipv4();
    assert_eq!((source, destination), (GATEWAY_A.1, A1.ip), "{seen}");
    assert!(ttl >= 64, "{seen}");
    assert_eq!((seen.frame[34], seen.frame[35]), (0, 0), "an echo reply\n{seen}");
    assert_eq!(seen.frame[38..], seen.before[38..], "identifier, number and data come back\n{seen}");
    assert!(icmp_checksum_holds(&seen.frame[34..]), "{seen}");
}

#[test]
fn another_gateway_of_the_router_answers_too() {
    let world = World::new();
    let seen = world.from_guest(A1, echo_request(A1.ip, GATEWAY_B.1).frame(GATEWAY_A.0, A1.mac));
    seen.assert_answered(PathCounter::EchoAnswered);
    assert_eq!(seen.ipv4().0, GATEWAY_B.1, "{seen}");
    assert_eq!(seen.macs(), (A1.mac, GATEWAY_A.0), "{seen}");
    assert!(icmp_checksum_holds(&seen.frame[34..]), "{seen}");
}

#[test]
fn a_ttl_that_runs_out_is_reported_by_the_gateway() {
    let world = World::new();
    for (name, packet) in [
        ("udp", udp((A1.ip, 33_000), (B1.ip, 33_434), b"who is on the way?")),
        ("tcp", tcp((A1.ip, 33_000), (RB.ip, 80), &[7; 1000], false)),
        ("short", Ip::new(A1.ip, B1.ip, 17, vec![0, 1, 0, 2, 0, 8, 0, 0])),
        ("options", Ip { options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..echo_request(A1.ip, B1.ip) }),
    ] {
        let packet = Ip { ttl: 1, ..packet };
        let seen = world.from_guest(A1, packet.frame(GATEWAY_A.0, A1.mac));
        seen.assert_counted(PathCounter::TimeExceededSent);
        assert_eq!(seen.verdict, Verdict::Redirected, "{name}\n{seen}");
        assert_eq!(seen.macs(), (A1.mac, GATEWAY_A.0), "{name}\n{seen}");
        let (source, destination, _) = seen.ipv4();
        assert_eq!((source, destination), (GATEWAY_A.1, A1.ip), "{name}\n{seen}");
        let total = usize::from(u16::from_be_bytes([seen.frame[16], seen.frame[17]]));
        assert_eq!(total, seen.frame.len() - 14, "{name}: the length of the frame\n{seen}");
        let error = &seen.frame[34..];
        assert_eq!((error[0], error[1]), (11, 0), "{name}: time exceeded in transit\n{seen}");
        assert!(icmp_checksum_holds(error), "{name}\n{seen}");
        // RFC 792: the header and at least eight bytes behind it; RFC 1812: at most 576 in all.
        let quoted = &error[8..];
        let least = 20 + packet.options.len() + packet.payload.len().min(8);
        assert!(quoted.len() >= least && total <= 576, "{name}: {} quoted\n{seen}", quoted.len());
        assert_eq!(quoted, &packet.bytes()[..quoted.len()], "{name}: the packet as it came\n{seen}");
    }
}

#[test]
fn xdp_answers_what_fits_into_the_frame_and_leaves_the_rest_to_tc() {
    let world = World::new();
    let expired = Ip { ttl: 1, ..udp((A1.ip, 1), (B1.ip, 2), b"") }.frame(GATEWAY_A.0, A1.mac);
    let ping = echo_request(A1.ip, GATEWAY_A.1).frame(GATEWAY_A.0, A1.mac);
    let question = arp_request(A1.pair(), GATEWAY_A.1);
    let left_to_tc = |frame: &Vec<u8>| {
        let seen = world.from_guest_at(Hook::GuestXdp, A1, frame.clone());
        seen.assert_untouched();
        seen.assert_counted(PathCounter::PassedToTc);
        assert!(seen.sent.is_empty(), "tc counts it\n{seen}");
    };
    left_to_tc(&expired);
    for (frame, counter) in [(&ping, PathCounter::EchoAnswered), (&question, PathCounter::ArpAnswered)] {
        let seen = world.from_guest_at(Hook::GuestXdp, A1, frame.clone());
        seen.assert_answered(counter);
        assert_eq!(seen.frame, world.from_guest(A1, frame.clone()).frame, "the answer of tc\n{seen}");
    }
    world.change_port(A1, |port| port.flags &= !port_flags::XDP_TARGET);
    left_to_tc(&ping);
    left_to_tc(&question);
}

#[test]
fn time_exceeded_is_limited() {
    let world = World::new();
    let packet = Ip { ttl: 1, ..udp((A1.ip, 1), (B1.ip, 2), b"") }.frame(GATEWAY_A.0, A1.mac);
    let answered = (0..2000)
        .map(|_| world.from_guest(A1, packet.clone()))
        .filter(|seen| seen.verdict == Verdict::Redirected)
        .count();
    assert!((1..1000).contains(&answered), "{answered} of 2000 answered");
}

#[test]
fn a_guest_may_use_its_further_addresses_and_allowed_pairs() {
    let world = World::new();
    let source = Source { subnet: SUBNET_A.index, subnet_generation: SUBNET_A.index };
    let (pair_mac, pair_ip, second) = (mac(0xfa), [10, 0, 1, 50], [10, 0, 1, 51]);
    let key = |mac, ip| SourceKey { port: A1.port, mac, reserved: [0; 2], ip: mapped(ip) };
    world.add_pair_mac(A1, pair_mac);
    world.tables().sources.put(&key(pair_mac, pair_ip), &source).expect("room");
    world.tables().sources.put(&key(A1.mac, second), &source).expect("room");
    let prefix = SourcePrefixKey {
        prefix_len: 96 + 96 + 24,
        port: A1.port,
        mac: A1.mac,
        family: 4,
        reserved: 0,
        ip: mapped([10, 9, 8, 0]),
    };
    world.tables().source_prefixes.put(&prefix, &source).expect("room");
    world.change_port(A1, |port| port.flags |= port_flags::SOURCES | port_flags::SOURCE_PREFIXES);

    for hook in HOOKS {
        for (name, from) in [
            ("own", A1.pair()),
            ("second address", (A1.mac, second)),
            ("allowed pair", (pair_mac, pair_ip)),
            ("allowed prefix", (A1.mac, [10, 9, 8, 7])),
        ] {
            let seen = world.from_guest_at(hook, A1, udp((from.1, 1), (A2.ip, 2), b"").frame(A2.mac, from.0));
            assert_eq!(seen.verdict, Verdict::Redirected, "{name}\n{seen}");
            let seen = world.from_guest(A1, arp_request(from, GATEWAY_A.1));
            assert_eq!(seen.arp().target, from, "{name}\n{seen}");
        }
        // Each address goes with its own MAC.
        for (mac, ip) in [(pair_mac, A1.ip), (A1.mac, pair_ip), (pair_mac, second), (A1.mac, [10, 9, 9, 7])] {
            let seen = world.from_guest_at(hook, A1, udp((ip, 1), (A2.ip, 2), b"").frame(A2.mac, mac));
            assert_eq!(seen.verdict, Verdict::Dropped, "{mac:x?} {ip:?}\n{seen}");
        }
    }
}

#[test]
fn an_answer_counts_as_traffic_of_the_guest() {
    let world = World::new();
    let seen = world.from_guest(A1, arp_request(A1.pair(), GATEWAY_A.1));
    assert_eq!((seen.sent.as_slice(), seen.received.as_slice()), (&[A1.port][..], &[A1.port][..]), "{seen}");
}

fn icmp_checksum_holds(message: &[u8]) -> bool {
    let mut sum: u32 = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

#[test]
fn a_quoted_packet_is_not_touched() {
    // Its checksums included: they are what the sender matches.
    let world = World::new();
    let packet = Ip { ttl: 1, ..udp((A1.ip, 33_000), (B1.ip, 33_434), b"data") };
    let seen = world.from_guest(A1, packet.frame(GATEWAY_A.0, A1.mac));
    let quoted = &seen.frame[42..];
    assert_eq!(quoted, &packet.bytes()[..quoted.len()], "{seen}");
}
