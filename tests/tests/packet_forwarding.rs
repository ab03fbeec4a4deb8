//! Where packets go: switched and routed, on this host and through the tunnel, at tc and at XDP.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{NextHop, SourceKey, endpoint_flags, port_flags};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{
    A1, A2, B1, C1, C2, GATEWAY_A, GATEWAY_B, Guest, HERE, HOST_1, HOST_2, Ip, Ipv4, Mac, RA, RB, RC,
    SUBNET_A, SUBNET_B, Seen, UP0, Verdict, World, mac, mapped, tcp, udp, udp_checksum_holds, uplinks,
};

const HOOKS: [Hook; 2] = [Hook::GuestTc, Hook::GuestXdp];

/// A UDP packet between two addresses, to that MAC.
fn packet(from: Guest, to: (Mac, Ipv4)) -> Vec<u8> {
    udp((from.ip, 1000), (to.1, 2000), b"some payload").frame(to.0, from.mac)
}

/// A UDP packet by way of the sender's gateway.
fn routed(from: Guest, to: Ipv4) -> Vec<u8> {
    packet(from, (from.subnet.gateway.0, to))
}

/// Asserts that only MACs, TTL and header checksum differ, as routing changes them.
fn assert_routed(seen: &Seen, macs: (Mac, Mac)) {
    assert_eq!(seen.macs(), macs, "{seen}");
    assert_eq!(seen.ipv4().2, seen.before[22] - 1, "the TTL is one lower\n{seen}");
    assert_eq!(seen.frame[26..], seen.before[26..], "addresses and payload stay\n{seen}");
    assert!(udp_checksum_holds(&seen.frame, 14), "{seen}");
}

#[test]
fn a_guest_reaches_another_of_its_subnet_on_this_host() {
    let world = World::new();
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, packet(A1, A2.pair()));
        seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
        assert_eq!(seen.frame, seen.before, "a switched frame stays as it is\n{seen}");
        assert_eq!(seen.sent, [A1.port], "{seen}");
    }
}

#[test]
fn a_guest_that_routes_gets_packets_for_addresses_in_no_subnet() {
    let world = World::new();
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, packet(A1, (A2.mac, [203, 0, 113, 9])));
        seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
    }
}

#[test]
fn a_guest_reaches_another_of_its_subnet_on_another_host() {
    let world = World::new();
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, packet(A1, RA.pair()));
        seen.assert_encapsulated();
        assert_eq!(seen.macs(), (mac(0xee_0001), mac(0xee_00ff)), "the next hop's MACs\n{seen}");
        let outer = seen.tunnelled(0);
        assert_eq!((outer.source, outer.destination, outer.ttl), (HERE, HOST_1, 64), "{seen}");
        assert_eq!((outer.vni, outer.port), (SUBNET_A.vni, 4789), "{seen}");
        assert!(outer.source_port >= 49_152, "{}\n{seen}", outer.source_port);
        assert_eq!(outer.inner.frame, seen.before, "the guest's frame as it came\n{seen}");
    }
}

#[test]
fn a_guest_reaches_another_subnet_on_this_host() {
    let world = World::new();
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, routed(A1, B1.ip));
        seen.assert_delivered(B1.port, PathCounter::LocalDelivered);
        assert_routed(&seen, (B1.mac, GATEWAY_B.0));
    }
}

#[test]
fn a_guest_reaches_another_subnet_on_another_host() {
    let world = World::new();
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, routed(A1, RB.ip));
        seen.assert_encapsulated();
        let outer = seen.tunnelled(0);
        assert_eq!((outer.destination, outer.vni), (HOST_1, SUBNET_B.vni), "the destination's VNI\n{seen}");
        assert_routed(&outer.inner, (RB.mac, SUBNET_A.dvr_mac));
    }
}

#[test]
fn a_router_without_a_mac_of_its_own_uses_the_default() {
    let world = World::new();
    world.change_subnet(SUBNET_A, |subnet| subnet.dvr_mac = [0; 6]);
    let seen = world.from_guest(A1, routed(A1, RB.ip));
    assert_routed(&seen.tunnelled(0).inner, (RB.mac, [0xfe, 0x16, 0x11, 0, 0, 0]));
}

#[test]
fn the_gateway_also_forwards_inside_its_own_subnet() {
    let world = World::new();
    let seen = world.from_guest(A1, routed(A1, A2.ip));
    seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
    assert_routed(&seen, (A2.mac, GATEWAY_A.0));
}

#[test]
fn routes_lead_to_next_hops_and_the_longest_prefix_wins() {
    let world = World::new();
    world.add_route(SUBNET_A, [0, 0, 0, 0], 0, SUBNET_B.via(RB.ip, [0; 6]));
    world.add_route(SUBNET_A, [172, 16, 0, 0], 12, SUBNET_A.via(A2.ip, [0; 6]));
    world.add_route(SUBNET_A, [172, 16, 5, 0], 24, SUBNET_B.via([10, 0, 2, 99], B1.mac));
    world.add_route(SUBNET_A, [172, 16, 5, 7], 32, SUBNET_A.via(RA.ip, RA.mac));
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, routed(A1, [8, 8, 8, 8]));
        let outer = seen.tunnelled(0);
        assert_eq!((outer.destination, outer.vni), (HOST_1, SUBNET_B.vni), "{seen}");
        assert_routed(&outer.inner, (RB.mac, SUBNET_A.dvr_mac));

        let seen = world.from_guest_at(hook, A1, routed(A1, [172, 31, 0, 1]));
        seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
        assert_routed(&seen, (A2.mac, GATEWAY_A.0));

        // The controller named the next hop's MAC: its address need not be known.
        let seen = world.from_guest_at(hook, A1, routed(A1, [172, 16, 5, 6]));
        seen.assert_delivered(B1.port, PathCounter::LocalDelivered);
        assert_routed(&seen, (B1.mac, GATEWAY_B.0));

        let seen = world.from_guest_at(hook, A1, routed(A1, [172, 16, 5, 7]));
        let outer = seen.tunnelled(0);
        assert_eq!((outer.destination, outer.vni), (HOST_1, SUBNET_A.vni), "{seen}");
        assert_routed(&outer.inner, (RA.mac, SUBNET_A.dvr_mac));
    }
}

#[test]
fn a_next_hop_may_be_a_neighbour_on_layer_2_only() {
    let world = World::new();
    world.change_endpoint(SUBNET_B.vni, RB.ip, |endpoint| endpoint.flags = endpoint_flags::L2);
    world.add_route(SUBNET_A, [0, 0, 0, 0], 0, SUBNET_B.via(RB.ip, [0; 6]));
    world.from_guest(A1, routed(A1, [8, 8, 8, 8])).assert_encapsulated();
}

#[test]
fn a_guests_packet_behind_a_next_hop_guest_needs_an_allowed_pair() {
    let world = World::new();
    let foreign = udp(([172, 16, 0, 9], 1), (A1.ip, 2), b"").frame(A1.mac, A2.mac);
    world.from_guest(A2, foreign.clone()).assert_dropped(DropReason::SpoofedIp, A2.port);
    let key = SourceKey { port: A2.port, mac: A2.mac, reserved: [0; 2], ip: mapped([172, 16, 0, 9]) };
    let source = ncm_common::tables::Source { subnet: SUBNET_A.index, subnet_generation: SUBNET_A.index };
    world.tables().sources.put(&key, &source).expect("room");
    world.change_port(A2, |port| port.flags |= port_flags::SOURCES);
    world.from_guest(A2, foreign).assert_delivered(A1.port, PathCounter::LocalDelivered);
}

#[test]
fn tenants_with_the_same_addresses_stay_apart() {
    let world = World::new();
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, packet(A1, A2.pair()));
        seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
        let seen = world.from_guest_at(hook, C1, packet(C1, C2.pair()));
        seen.assert_delivered(C2.port, PathCounter::LocalDelivered);

        let outer = world.from_guest_at(hook, A1, packet(A1, RA.pair())).tunnelled(0);
        assert_eq!((outer.destination, outer.vni), (HOST_1, 100));
        let outer = world.from_guest_at(hook, C1, packet(C1, RC.pair())).tunnelled(0);
        assert_eq!((outer.destination, outer.vni), (HOST_2, 300));

        // B is in the first tenant's router only.
        let seen = world.from_guest_at(hook, C1, routed(C1, B1.ip));
        assert_eq!(seen.verdict, Verdict::Dropped, "{seen}");
        let seen = world.from_guest_at(hook, C1, packet(C1, B1.pair()));
        seen.assert_dropped(DropReason::UnknownMac, C1.port);
    }
}

#[test]
fn the_source_port_spreads_flows_and_keeps_each_on_its_path() {
    let world = World::new();
    let port = |source: u16, destination: u16| {
        let frame = udp((A1.ip, source), (RA.ip, destination), b"x").frame(RA.mac, A1.mac);
        world.from_guest(A1, frame).tunnelled(0).source_port
    };
    assert_eq!(port(1, 2), port(1, 2), "one flow, one port");
    let mut ports: Vec<u16> = (0..64).map(|number| port(1000 + number, 53)).collect();
    ports.sort_unstable();
    ports.dedup();
    assert!(ports.len() > 48, "64 flows over {} ports", ports.len());
    assert!(ports.iter().all(|port| *port >= 49_152), "RFC 7348, section 5: dynamic ports");
}

#[test]
fn fragments_of_one_packet_take_one_path() {
    let world = World::new();
    let whole = udp((A1.ip, 1000), (RA.ip, 2000), &[1; 64]);
    let first = Ip { fragment: 0x2000, ..whole.clone() }.frame(RA.mac, A1.mac);
    let later = Ip { fragment: 8, payload: vec![9; 32], ..whole }.frame(RA.mac, A1.mac);
    for hook in HOOKS {
        let first = world.from_guest_at(hook, A1, first.clone());
        let later = world.from_guest_at(hook, A1, later.clone());
        first.assert_encapsulated();
        later.assert_encapsulated();
        assert_eq!(first.tunnelled(0).source_port, later.tunnelled(0).source_port, "{first}\n{later}");
    }
}

#[test]
fn ip_options_are_carried() {
    let world = World::new();
    let options = vec![0x94, 4, 0, 0, 1, 1, 1, 0];
    let packet = Ip { options, ..udp((A1.ip, 1000), (B1.ip, 2000), b"payload") };
    for hook in HOOKS {
        let seen = world.from_guest_at(hook, A1, packet.frame(GATEWAY_A.0, A1.mac));
        seen.assert_delivered(B1.port, PathCounter::LocalDelivered);
        assert_routed(&seen, (B1.mac, GATEWAY_B.0));
    }
}

#[test]
fn padding_behind_a_short_packet_does_not_matter() {
    let world = World::new();
    let mut frame = udp((A1.ip, 1000), (RA.ip, 2000), b"x").frame(RA.mac, A1.mac);
    frame.resize(60, 0);
    let seen = world.from_guest(A1, frame);
    assert_eq!(seen.tunnelled(0).inner.frame, seen.before, "{seen}");
}

#[test]
fn several_next_hops_share_the_flows() {
    let world = World::new();
    world.change_group(1, |group| {
        let half = &mut group.halves[0];
        half.count = 2;
        half.hops[1] = NextHop { destination: mac(0xee_0077), ..half.hops[0] };
    });
    let by = |number: u16| {
        let frame = udp((A1.ip, 1000 + number), (RA.ip, 53), b"x").frame(RA.mac, A1.mac);
        world.from_guest(A1, frame).macs().0
    };
    let second = (0..64).filter(|number| by(*number) == mac(0xee_0077)).count();
    assert!((10..54).contains(&second), "{second} of 64 flows by the second");
    assert!((0..8).all(|number| by(number) == by(number)), "a flow stays on its path");
}

#[test]
fn the_half_that_is_active_counts() {
    let world = World::new();
    world.change_group(1, |group| {
        group.halves[1] = group.halves[0];
        group.halves[1].hops[0].destination = mac(0xee_0055);
        group.halves[0].count = 0;
        group.active = 1;
    });
    world.change_host(1, |host| {
        host.halves[1] = host.halves[0];
        host.halves[0].headers = [0; 56];
        host.active = 1;
    });
    let seen = world.from_guest(A1, packet(A1, RA.pair()));
    seen.assert_encapsulated();
    assert_eq!(seen.macs().0, mac(0xee_0055), "{seen}");
    assert_eq!(seen.tunnelled(0).destination, HOST_1, "{seen}");
}

#[test]
fn a_vlan_uplink_gets_tagged_frames() {
    let world = World::new();
    world.change_group(1, |group| group.halves[0].hops[0].vlan = 42);
    let seen = world.from_guest_at(Hook::GuestXdp, A1, packet(A1, RA.pair()));
    seen.assert_encapsulated();
    assert_eq!(seen.frame[12..16], [0x81, 0, 0, 42], "{seen}");
    assert_eq!(seen.macs(), (mac(0xee_0001), mac(0xee_00ff)), "{seen}");
    assert_eq!(seen.tunnelled(4).inner.frame, seen.before, "{seen}");

    // At tc the tag travels beside the frame, and a device puts it in: only a real one shows it.
    let frame = packet(A1, RA.pair());
    let out = world.live(A1, &frame, "up0");
    let seen = Seen { frame: out, ..seen };
    assert_eq!(seen.frame[12..16], [0x81, 0, 0, 42], "{seen}");
    assert_eq!(seen.macs(), (mac(0xee_0001), mac(0xee_00ff)), "{seen}");
    assert_eq!(seen.tunnelled(4).inner.frame, frame, "{seen}");
}

#[test]
fn a_real_frame_leaves_by_the_interface_of_its_destination() {
    let world = World::new();
    let frame = packet(A1, A2.pair());
    assert_eq!(world.live(A1, &frame, A2.interface), frame, "switched");
    let question = ncm_tests::packet::arp_request(A1.pair(), GATEWAY_A.1);
    let answer = world.live(A1, &question, A1.interface);
    assert_eq!(ncm_tests::packet::Arp::parse(&answer).expect("ARP").sender, GATEWAY_A, "answered");
    let frame = routed(A1, B1.ip);
    let out = world.live(A1, &frame, B1.interface);
    assert_eq!(out[..12], [B1.mac, GATEWAY_B.0].concat(), "routed");
    let frame = packet(C1, C2.pair());
    assert_eq!(world.live(C1, &frame, C2.interface), frame, "in the other tenant");
    let out = world.live(C1, &packet(C1, RC.pair()), "up0");
    assert_eq!(out[30..34], HOST_2, "into the other tenant's tunnel");
}

#[test]
fn without_the_agent_the_kernel_finds_the_way() {
    let world = World::new();
    let frame = packet(A1, RA.pair());
    world.beat(10);
    let run = TestRun::new(frame.clone(), world.ifindex(A1.interface));
    let seen = world.run_as_it_is(Hook::GuestTc, run);
    seen.assert_encapsulated();
    seen.assert_counted(PathCounter::KernelResolved);
    assert_eq!(seen.tunnelled(0).inner.frame, frame, "{seen}");

    // And an unresolved next hop is left to it as well.
    world.change_group(1, |group| group.halves[0].count = 0);
    let seen = world.from_guest(A1, frame.clone());
    seen.assert_encapsulated();
    seen.assert_counted(PathCounter::KernelResolved);
    let seen = world.from_guest_at(Hook::GuestXdp, A1, frame);
    seen.assert_untouched();
    seen.assert_counted(PathCounter::PassedToTc);
}

#[test]
fn the_kernels_way_has_to_be_one_for_tunnels() {
    let world = World::new();
    let stale = || {
        world.beat(10);
        world.run_as_it_is(Hook::GuestTc, TestRun::new(packet(A1, RA.pair()), world.ifindex(A1.interface)))
    };
    // The kernel's route leaves by an interface that is no uplink (any more).
    let elsewhere = world.ifindex("spare");
    world.change_node(|node| node.uplinks = uplinks(&[(elsewhere, UP0, 1)]));
    world.change_group(1, |group| group.halves[0].hops[0].ifindex = elsewhere);
    stale().assert_dropped(DropReason::NextHopUnresolved, A1.port);
    world.change_group(1, |group| group.halves[0].count = 0);
    world.from_guest(A1, packet(A1, RA.pair())).assert_dropped(DropReason::NextHopUnresolved, A1.port);
    let up = world.ifindex("up0");
    world.change_node(|node| node.uplinks = uplinks(&[(elsewhere, UP0, 1), (up, UP0, 2)]));
    stale().assert_encapsulated();
}

#[test]
fn the_device_below_a_vlan_is_never_asked_for_a_neighbour() {
    let world = World::new();
    let stale = || {
        world.beat(10);
        world.run_as_it_is(Hook::GuestTc, TestRun::new(packet(A1, RA.pair()), world.ifindex(A1.interface)))
    };
    // The kernel gives no way: the last known interface is what is left.
    world.change_node(|node| node.relay_ifindex = 0);
    stale().assert_encapsulated();
    world.change_group(1, |group| group.halves[0].hops[0].vlan = 42);
    stale().assert_dropped(DropReason::NextHopUnresolved, A1.port);
}

#[test]
fn the_path_limits_the_frame_and_segments_count_one_by_one() {
    let world = World::new();
    let fits = udp((A1.ip, 1), (RA.ip, 2), &vec![0; 1450 - 28]).frame(RA.mac, A1.mac);
    world.from_guest(A1, fits).assert_encapsulated();
    let large = udp((A1.ip, 1), (RA.ip, 2), &vec![0; 1451 - 28]).frame(RA.mac, A1.mac);
    world.from_guest(A1, large).assert_answered(PathCounter::PacketTooBigSent);

    let segmented = |gso_size| {
        let packet = tcp((A1.ip, 1), (RA.ip, 2), &vec![0; 3000], true).frame(RA.mac, A1.mac);
        let run = TestRun { gso_size, ..TestRun::new(packet, world.ifindex(A1.interface)) };
        world.run(Hook::GuestTc, run)
    };
    segmented(1451 - 40).assert_answered(PathCounter::PacketTooBigSent);
    // It fits. A test run cannot say of which protocol the segments are, and so the kernel will not encapsulate them.
    segmented(1450 - 40).assert_dropped(DropReason::RewriteFailed, A1.port);
}

#[test]
fn at_xdp_what_devices_have_yet_to_finish_is_left_to_tc() {
    let world = World::new();
    let partial = tcp((A1.ip, 1), (A2.ip, 2), b"data", true).frame(A2.mac, A1.mac);
    let large = udp((A1.ip, 1), (A2.ip, 2), &vec![0; 6000]).frame(A2.mac, A1.mac);
    for frame in [partial.clone(), large] {
        let seen = world.from_guest_at(Hook::GuestXdp, A1, frame);
        seen.assert_untouched();
        seen.assert_counted(PathCounter::PassedToTc);
    }
    world.from_guest(A1, partial).assert_delivered(A2.port, PathCounter::LocalDelivered);
    let finished = tcp((A1.ip, 1), (A2.ip, 2), b"data", false).frame(A2.mac, A1.mac);
    let seen = world.from_guest_at(Hook::GuestXdp, A1, finished);
    seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
}

#[test]
fn at_xdp_a_guest_that_takes_no_redirects_is_left_to_tc() {
    let world = World::new();
    world.change_port(A2, |port| port.flags &= !port_flags::XDP_TARGET);
    let seen = world.from_guest_at(Hook::GuestXdp, A1, packet(A1, A2.pair()));
    seen.assert_untouched();
    world.from_guest(A1, packet(A1, A2.pair())).assert_delivered(A2.port, PathCounter::LocalDelivered);
}
