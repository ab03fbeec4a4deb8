//! IPv6 guests: the same paths as IPv4, neighbour discovery, and what is handed up.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{
    Rule, RuleKey, Source, SourceKey, SourcePrefixKey, port_flags, set_direction, subnet_flags,
};
use ncm_common::{SERVER_IP, SERVER_MAC};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{
    A1, A2, B1, HOST_1, Ip6, Mac, RA, RB, SUBNET_A, SUBNET_B, Seen, SubnetOf, Verdict, World,
    fragment_header, icmp6, ipv6_payload_checksum_holds, link_local, solicitation, tcp6, udp, udp6,
};

const HOOKS: [Hook; 2] = [Hook::GuestTc, Hook::GuestXdp];

/// Destination options that say nothing (number 60).
fn options() -> Vec<u8> {
    vec![0, 0, 1, 4, 0, 0, 0, 0]
}

/// Asserts that only MACs and hop limit differ, as routing changes them.
fn assert_routed(seen: &Seen, macs: (Mac, Mac)) {
    assert_eq!(seen.macs(), macs, "{seen}");
    assert_eq!(seen.frame[21], seen.before[21] - 1, "the hop limit is one lower\n{seen}");
    assert_eq!(seen.frame[22..], seen.before[22..], "addresses and payload stay\n{seen}");
    assert_eq!(seen.frame[12..21], seen.before[12..21], "{seen}");
}

#[test]
fn guests_reach_each_other_switched_and_routed_here_and_elsewhere() {
    let world = World::new();
    let (gateway, _) = SUBNET_A.gateway_v6();
    for hook in HOOKS {
        let to = |mac: Mac, ip| udp6((A1.ip_v6(), 1000), (ip, 2000), b"payload").frame(mac, A1.mac);
        let seen = world.from_guest_at(hook, A1, to(A2.mac, A2.ip_v6()));
        seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
        assert_eq!(seen.frame, seen.before, "a switched frame stays as it is\n{seen}");
        let seen = world.from_guest_at(hook, A1, to(RA.mac, RA.ip_v6()));
        seen.assert_encapsulated();
        let outer = seen.tunnelled(0);
        assert_eq!((outer.destination, outer.vni), (HOST_1, SUBNET_A.vni), "{seen}");
        assert_eq!(outer.inner.frame, seen.before, "{seen}");
        let seen = world.from_guest_at(hook, A1, to(gateway, B1.ip_v6()));
        seen.assert_delivered(B1.port, PathCounter::LocalDelivered);
        assert_routed(&seen, (B1.mac, SUBNET_B.gateway_v6().0));
        let seen = world.from_guest_at(hook, A1, to(gateway, RB.ip_v6()));
        seen.assert_encapsulated();
        let outer = seen.tunnelled(0);
        assert_eq!((outer.destination, outer.vni), (HOST_1, SUBNET_B.vni), "{seen}");
        assert_routed(&outer.inner, (RB.mac, SUBNET_A.dvr_mac));
        // From one link-local address to another, by MAC.
        let frame = udp6((link_local(A1.mac), 1), (link_local(A2.mac), 2), b"").frame(A2.mac, A1.mac);
        world.from_guest_at(hook, A1, frame).assert_delivered(A2.port, PathCounter::LocalDelivered);
    }
}

#[test]
fn frames_from_the_tunnel_reach_their_guest() {
    let world = World::new();
    let switched = udp6((RA.ip_v6(), 1000), (A1.ip_v6(), 2000), b"payload").frame(A1.mac, RA.mac);
    let seen = world.from_relay(SUBNET_A.vni, HOST_1, switched.clone());
    seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
    assert_eq!(seen.frame, switched, "{seen}");
    let routed = udp6((RB.ip_v6(), 1000), (A1.ip_v6(), 2000), b"payload").frame(A1.mac, SUBNET_B.dvr_mac);
    for _ in 0..2 {
        let seen = world.from_relay(SUBNET_A.vni, HOST_1, routed.clone());
        seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        assert_eq!(seen.macs(), (A1.mac, SUBNET_A.gateway_v6().0), "{seen}");
    }
}

#[test]
fn extension_headers_are_carried_and_looked_behind() {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    let rule = RuleKey {
        prefix_len: 96,
        set: set_direction(1, false),
        class: 0,
        family: 6,
        protocol: 17,
        port: 2000u16.to_be_bytes(),
    };
    world.tables().rules.put(&rule, &Rule { rules: 1 }).expect("room");
    let to = |port| {
        udp6((A1.ip_v6(), 1000), (RA.ip_v6(), port), b"payload")
            .behind(0, vec![0, 0, 5, 2, 0, 0, 1, 0])
            .behind(60, options())
            .behind(43, vec![0, 0, 2, 0, 0, 0, 0, 0])
            .frame(RA.mac, A1.mac)
    };
    for hook in HOOKS {
        world.from_guest_at(hook, A1, to(2000)).assert_encapsulated();
        world.from_guest_at(hook, A1, to(2001)).assert_dropped(DropReason::PolicyEgress, A1.port);
    }
}

#[test]
fn fragments_follow_their_first() {
    let world = World::new();
    let whole = udp6((A1.ip_v6(), 1000), (RA.ip_v6(), 2000), &[1; 56]);
    let first = whole.clone().behind(60, options()).behind(44, fragment_header(0, true, 77));
    // Behind options in the part that is cut, a later fragment does not even say that it is of UDP.
    let later = |offset, number| {
        Ip6 { payload: vec![9; 32], protocol: 60, ..whole.clone() }
            .behind(44, fragment_header(offset, false, number))
            .frame(RA.mac, A1.mac)
    };
    world.from_guest(A1, later(64, 77)).assert_dropped(DropReason::FragmentUnknown, A1.port);
    world.from_guest(A1, first.frame(RA.mac, A1.mac)).assert_encapsulated();
    world.from_guest(A1, later(64, 77)).assert_encapsulated();
    world.from_guest(A1, later(64, 78)).assert_dropped(DropReason::FragmentUnknown, A1.port);
    let atomic = whole.behind(44, fragment_header(0, false, 99)).frame(RA.mac, A1.mac);
    world.from_guest(A1, atomic).assert_encapsulated();
}

/// What an advertisement says: target, its MAC, and the flags.
fn advertised(seen: &Seen) -> ([u8; 16], Mac, u8) {
    let frame = &seen.frame;
    assert_eq!((frame.len(), frame[20], frame[21], frame[54]), (86, 58, 255, 136), "{seen}");
    assert!(ipv6_payload_checksum_holds(&frame[14..]), "{seen}");
    let (mut target, mut mac) = ([0; 16], [0; 6]);
    target.copy_from_slice(&frame[62..78]);
    mac.copy_from_slice(&frame[80..86]);
    (target, mac, frame[58])
}

#[test]
fn solicitations_are_answered_for_the_gateway_and_every_known_endpoint_of_the_subnet() {
    let world = World::new();
    let gateway = SUBNET_A.gateway_v6();
    for hook in HOOKS {
        for (asked, owner, router) in [
            (gateway.1, gateway.0, 0x80),
            (link_local(gateway.0), gateway.0, 0x80),
            (A2.ip_v6(), A2.mac, 0),
            (RA.ip_v6(), RA.mac, 0),
            (link_local(RA.mac), RA.mac, 0),
        ] {
            for asker in [A1.ip_v6(), link_local(A1.mac), link_local([2, 9, 9, 9, 9, 9])] {
                let seen = world.from_guest_at(hook, A1, solicitation((A1.mac, asker), asked));
                seen.assert_answered(PathCounter::NdAnswered);
                assert_eq!(advertised(&seen), (asked, owner, 0x60 | router), "{seen}");
                assert_eq!(seen.macs(), (A1.mac, owner), "{seen}");
                assert_eq!(seen.frame[38..54], asker, "{seen}");
            }
        }
    }
}

#[test]
fn a_probe_for_an_address_of_somebody_else_is_answered_to_all() {
    let world = World::new();
    for (asked, owner) in [(A2.ip_v6(), A2.mac), (RA.ip_v6(), RA.mac), (link_local(RA.mac), RA.mac)] {
        let seen = world.from_guest(A1, solicitation((A1.mac, [0; 16]), asked));
        seen.assert_answered(PathCounter::NdAnswered);
        let (target, mac, flags) = advertised(&seen);
        assert_eq!((target, mac, flags & 0x60), (asked, owner, 0x20), "not solicited\n{seen}");
        assert_eq!(seen.macs().0, [0x33, 0x33, 0, 0, 0, 1], "{seen}");
        assert_eq!(seen.frame[38..54], [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], "{seen}");
    }
}

#[test]
fn whoever_is_in_several_subnets_asks_in_each_of_them_from_its_link_local_address() {
    let world = World::new();
    let (first, second) = (SUBNET_A.v6(), SUBNET_B.v6());
    let second_ip = [0xfd, 10, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 11];
    let of = |subnet: SubnetOf| Source { subnet: subnet.index, subnet_generation: subnet.index };
    let own = SourceKey { port: A1.port, mac: A1.mac, reserved: [0; 2], ip: second_ip };
    world.tables().sources.put(&own, &of(second)).expect("room");
    let asked = [
        (SUBNET_B.gateway_v6().1, SUBNET_B.gateway_v6().0),
        (B1.ip_v6(), B1.mac),
        (RB.ip_v6(), RB.mac),
        (RA.ip_v6(), RA.mac),
    ];
    let askers = [link_local(A1.mac), link_local([2, 9, 9, 9, 9, 9]), [0; 16]];
    for asker in askers {
        // Of the second subnet the port knows by the address alone, from which nobody asks here.
        let seen = world.from_guest(A1, solicitation((A1.mac, asker), RB.ip_v6()));
        seen.assert_dropped(DropReason::NdUnknown, A1.port);
    }
    for subnet in [first, second] {
        let link = SourcePrefixKey {
            prefix_len: 96 + 64,
            port: A1.port,
            mac: [0; 6],
            family: 0,
            reserved: 0,
            ip: subnet.network_v6(),
        };
        world.tables().source_prefixes.put(&link, &of(subnet)).expect("room");
    }
    world.change_port(A1, |port| port.flags |= port_flags::SOURCE_PREFIXES);
    for hook in HOOKS {
        for (target, owner) in asked {
            for asker in askers {
                let seen = world.from_guest_at(hook, A1, solicitation((A1.mac, asker), target));
                if hook == Hook::GuestXdp && asker == [0; 16] {
                    // Without the option it has to grow for the answer.
                    seen.assert_untouched();
                    continue;
                }
                seen.assert_answered(PathCounter::NdAnswered);
                assert_eq!((advertised(&seen).0, advertised(&seen).1), (target, owner), "{seen}");
            }
        }
        // An address of a subnet asks in that subnet, and one's own is nobody else's.
        let from = |ip, target| world.from_guest_at(hook, A1, solicitation((A1.mac, ip), target));
        from(A1.ip_v6(), RB.ip_v6()).assert_dropped(DropReason::NdUnknown, A1.port);
        from(second_ip, RB.ip_v6()).assert_answered(PathCounter::NdAnswered);
        from(link_local(A1.mac), second_ip).assert_dropped(DropReason::NdUnknown, A1.port);
        // What is a subnet of the port's is no address to send from.
        let frame = udp6((RB.ip_v6(), 1), (RA.ip_v6(), 2), b"").frame(RA.mac, A1.mac);
        world.from_guest_at(hook, A1, frame).assert_dropped(DropReason::SpoofedIp, A1.port);
    }
}

#[test]
fn gateways_answer_pings() {
    let world = World::new();
    let (mac, ip) = SUBNET_A.gateway_v6();
    for hook in HOOKS {
        for (from, to) in [
            (A1.ip_v6(), ip),
            (A1.ip_v6(), SUBNET_B.gateway_v6().1),
            (link_local(A1.mac), link_local(mac)),
            (link_local([2, 9, 9, 9, 9, 9]), link_local(mac)),
        ] {
            let ping = icmp6(from, to, 128, 0, [1, 2, 0, 1], b"is anybody there?").frame(mac, A1.mac);
            let seen = world.from_guest_at(hook, A1, ping);
            seen.assert_answered(PathCounter::EchoAnswered);
            assert_eq!((seen.frame[54], seen.macs()), (129, (A1.mac, mac)), "{seen}");
            assert_eq!((&seen.frame[22..38], &seen.frame[38..54]), (&to[..], &from[..]), "{seen}");
            assert!(ipv6_payload_checksum_holds(&seen.frame[14..]), "{seen}");
        }
    }
}

/// The ICMPv6 error in a frame: type, code, the word behind the checksum, and what it quotes.
fn error(seen: &Seen) -> (u8, u8, u32, Vec<u8>) {
    let (mac, ip) = SUBNET_A.gateway_v6();
    let frame = &seen.frame;
    assert_eq!(seen.macs(), (A1.mac, mac), "{seen}");
    assert_eq!((&frame[22..38], &frame[38..54]), (&ip[..], &A1.ip_v6()[..]), "{seen}");
    assert!(ipv6_payload_checksum_holds(&frame[14..]), "{seen}");
    assert_eq!(usize::from(u16::from_be_bytes([frame[18], frame[19]])), frame.len() - 54, "{seen}");
    let word = u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]]);
    (frame[54], frame[55], word, frame[62..].to_vec())
}

#[test]
fn a_hop_limit_that_runs_out_is_reported() {
    let world = World::new();
    let (mac, _) = SUBNET_A.gateway_v6();
    for packet in [
        udp6((A1.ip_v6(), 1), (B1.ip_v6(), 2), b"who is on the way?"),
        tcp6((A1.ip_v6(), 1), (RB.ip_v6(), 2), 2, b"who is on the way?"),
        udp6((A1.ip_v6(), 1), (B1.ip_v6(), 2), b"who is on the way?").behind(60, options()),
    ] {
        let packet = Ip6 { hop_limit: 1, ..packet };
        let seen = world.from_guest(A1, packet.frame(mac, A1.mac));
        seen.assert_answered(PathCounter::TimeExceededSent);
        let (kind, code, word, quoted) = error(&seen);
        assert_eq!((kind, code, word), (3, 0, 0), "{seen}");
        assert_eq!(quoted, packet.bytes()[..quoted.len()], "{seen}");
        assert!(quoted.len() >= 48, "{seen}");
    }
}

#[test]
fn a_packet_that_does_not_fit_is_reported_with_the_mtu_that_would() {
    let world = World::new();
    let large = |to: [u8; 16], mac| udp6((A1.ip_v6(), 1), (to, 2), &[7; 1410]).frame(mac, A1.mac);
    let seen = world.from_guest(A1, large(RA.ip_v6(), RA.mac));
    seen.assert_answered(PathCounter::PacketTooBigSent);
    let (kind, code, mtu, quoted) = error(&seen);
    assert_eq!((kind, code, mtu), (2, 0, 1450), "the underlay's 1500 without the tunnel's 50\n{seen}");
    assert_eq!(quoted, seen.before[14..14 + quoted.len()], "{seen}");
    world.change_port(A2, |port| port.mtu = 1400);
    let (.., mtu, _) = error(&world.from_guest(A1, large(A2.ip_v6(), A2.mac)));
    assert_eq!(mtu, 1400, "the receiver's");
    // IPv4 likewise.
    let seen = world.from_guest(A1, udp((A1.ip, 1), (RA.ip, 2), &[0; 1450]).frame(RA.mac, A1.mac));
    seen.assert_answered(PathCounter::PacketTooBigSent);
    assert_eq!(seen.frame[34..36], [3, 4], "fragmentation needed\n{seen}");
    assert_eq!(seen.frame[38..42], 1450u32.to_be_bytes(), "{seen}");
    assert_eq!(
        world.from_guest_at(Hook::GuestXdp, A1, seen.before.clone()).verdict,
        Verdict::Passed,
        "to tc"
    );
}

#[test]
fn a_packet_that_does_not_fit_is_reported_where_there_is_no_gateway_too() {
    let world = World::new();
    for subnet in [SUBNET_A, SUBNET_A.v6()] {
        world.change_subnet(subnet, |subnet| {
            subnet.flags &= !(subnet_flags::GATEWAY | subnet_flags::ROUTED);
            (subnet.gateway_ip, subnet.gateway_mac) = ([0; 16], [0; 6]);
        });
    }
    let seen = world.from_guest(A1, udp((A1.ip, 1), (RA.ip, 2), &[0; 1450]).frame(RA.mac, A1.mac));
    seen.assert_answered(PathCounter::PacketTooBigSent);
    assert_eq!(
        (seen.ipv4().0, seen.ipv4().1, seen.macs()),
        (SERVER_IP, A1.ip, (A1.mac, SERVER_MAC)),
        "{seen}"
    );
    assert_eq!(seen.frame[38..42], 1450u32.to_be_bytes(), "{seen}");
    // From a link-local address likewise, whichever subnet that counts as.
    let large = |from, to| udp6((from, 1), (to, 2), &[7; 1410]).frame(RA.mac, A1.mac);
    let pairs = [(A1.ip_v6(), RA.ip_v6()), (link_local(A1.mac), link_local(RA.mac))];
    for counts_as_v4 in [false, true] {
        if counts_as_v4 {
            let own = SourceKey { port: A1.port, mac: A1.mac, reserved: [0; 2], ip: link_local(A1.mac) };
            world.tables().sources.delete(&own).expect("deleted");
        }
        for (from, to) in pairs {
            let seen = world.from_guest(A1, large(from, to));
            seen.assert_answered(PathCounter::PacketTooBigSent);
            assert_eq!(seen.macs(), (A1.mac, SERVER_MAC), "{seen}");
            assert_eq!(seen.frame[22..38], link_local(SERVER_MAC), "{seen}");
            assert_eq!((&seen.frame[38..54], &seen.frame[54..56]), (&from[..], &[2, 0][..]), "{seen}");
            assert!(ipv6_payload_checksum_holds(&seen.frame[14..]), "{seen}");
        }
    }
}

#[test]
fn what_the_agent_answers_is_handed_up_from_tc() {
    let world = World::new();
    let all_dhcp = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
    let all_routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let solicited = icmp6(link_local(A1.mac), all_routers, 133, 0, [0; 4], b"");
    for frame in [
        udp(([0; 4], 68), ([255; 4], 67), &[1; 240]).frame([0xff; 6], A1.mac),
        udp((A1.ip, 68), (SUBNET_A.gateway.1, 67), &[1; 240]).frame(SUBNET_A.gateway.0, A1.mac),
        udp6((link_local(A1.mac), 546), (all_dhcp, 547), &[1; 40]).frame([0x33, 0x33, 0, 1, 0, 2], A1.mac),
        Ip6 { hop_limit: 255, ..solicited }.frame([0x33, 0x33, 0, 0, 0, 2], A1.mac),
    ] {
        let seen = world.from_guest_at(Hook::GuestXdp, A1, frame.clone());
        seen.assert_untouched();
        seen.assert_counted(PathCounter::PassedToTc);
        let seen = world.from_guest(A1, frame.clone());
        assert_eq!(seen.verdict, Verdict::Redirected, "{seen}");
        seen.assert_counted(PathCounter::HandedUp);
        assert_eq!(seen.frame, frame, "as it came\n{seen}");
        let spoofed = ncm_tests::packet::swap_bytes(frame, 6, &A2.mac);
        world.from_guest(A1, spoofed).assert_dropped(DropReason::SpoofedMac, A1.port);
    }
    let answered = (0..60)
        .map(|_| world.from_guest(A1, udp(([0; 4], 68), ([255; 4], 67), &[1; 240]).frame([0xff; 6], A1.mac)))
        .filter(|seen| seen.verdict == Verdict::Redirected)
        .count();
    assert!((10..40).contains(&answered), "20 at once: {answered} of 60 handed up");
}

#[test]
fn what_was_handed_up_ends_there_and_nothing_unmarked_comes_down() {
    let world = World::new();
    let frame = udp((A2.ip, 1), (A1.ip, 2), b"").frame(A1.mac, A2.mac);
    let run = TestRun::new(frame, world.ifindex("up0"));
    assert_eq!(world.run(Hook::HandUpTc, run.clone()).verdict, Verdict::Dropped);
    world.run(Hook::HandDownTc, run).assert_dropped(DropReason::UnknownPort, 0);
}

#[test]
fn a_closed_port_solicits_in_vain() {
    let world = World::new();
    world.change_port(A1, |port| port.flags |= port_flags::CLOSED);
    let seen = world.from_guest(A1, solicitation(A1.pair_v6(), SUBNET_A.gateway_v6().1));
    seen.assert_dropped(DropReason::PortClosed, A1.port);
}
