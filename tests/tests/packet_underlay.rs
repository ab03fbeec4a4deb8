//! The underlay over IPv6, and interfaces that hear others' frames: single frames into the tunnel and out of it.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{NextHopGroup, node_flags, port_flags};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{
    A1, GATEWAY_A, HERE, HERE_V6, HOST_1, HOST_1_V6, LOOPBACK, Mac, Outer, OuterV6, RA, RB, SUBNET_A, Seen,
    UP0, Verdict, World, fragment_header, ipv6_payload_checksum_holds, mac, mapped, swap_bytes, tcp, tunnel,
    tunnel_v6, udp, udp6, uplinks,
};

const WIRE: [Hook; 2] = [Hook::WireXdp, Hook::WireTc];
const GUEST: [Hook; 2] = [Hook::GuestTc, Hook::GuestXdp];
const DECAPSULATED: [PathCounter; 2] = [PathCounter::DecapsulatedXdp, PathCounter::DecapsulatedRelay];

/// Bytes of the outer headers, Ethernet included.
const OUTER: usize = 70;

/// What host 1 sends to A1: over IPv4 and IPv6, unrouted and routed.
fn inner() -> [Vec<u8>; 3] {
    [
        udp((RA.ip, 1000), (A1.ip, 2000), b"some payload").frame(A1.mac, RA.mac),
        udp6((RA.ip_v6(), 1000), (A1.ip_v6(), 2000), b"some payload").frame(A1.mac, RA.mac),
        udp((RB.ip, 1000), (A1.ip, 2000), b"routed").frame(A1.mac, SUBNET_A.dvr_mac),
    ]
}

fn outer() -> OuterV6 {
    OuterV6::new(HOST_1_V6, HERE_V6, SUBNET_A.vni)
}

/// The frame out of the tunnel at XDP, and behind the kernel's decapsulation.
fn both(world: &World, outer: &OuterV6, inner: &[u8]) -> [Seen; 2] {
    let wire = world.from_wire(Hook::WireXdp, tunnel_v6(outer, inner));
    [wire, world.from_relay(outer.vni, outer.ips.0, inner.to_vec())]
}

/// Asserts that the frame is left to the kernel on the relay device's port, and is otherwise as it was.
fn assert_readdressed(what: &str, seen: &Seen) {
    assert_eq!(seen.verdict, Verdict::Passed, "{what}\n{seen}");
    seen.assert_counted(PathCounter::Relayed);
    assert_eq!(seen.frame[56..58], 47_890u16.to_be_bytes(), "{what}: the relay's port\n{seen}");
    let mut expected = seen.before.clone();
    expected[56..58].copy_from_slice(&seen.frame[56..58]);
    expected[60..62].copy_from_slice(&seen.frame[60..62]);
    assert_eq!(seen.frame, expected, "{what}: nothing but port and checksum\n{seen}");
}

/// Moves host 1, which holds RA and RB, to its IPv6 address.
fn over_v6(world: &World) {
    let template = world.tables().hosts.get(&3).expect("readable").expect("host 3").halves[0];
    world.change_host(1, |host| host.halves[0] = template);
}

#[test]
fn a_tunnel_frame_over_ipv6_reaches_its_guest_with_and_without_a_checksum() {
    let world = World::new();
    for frame in inner() {
        for checksum in [false, true] {
            let outer = OuterV6 { checksum, ..outer() };
            for (seen, counter) in both(&world, &outer, &frame).into_iter().zip(DECAPSULATED) {
                seen.assert_delivered(A1.port, counter);
                assert_eq!(seen.frame[12..], frame[12..], "the inner packet as it was sent\n{seen}");
                assert_eq!(seen.macs().0, A1.mac, "{seen}");
            }
        }
    }
    // Routed frames come from the gateway.
    for seen in both(&world, &outer(), &inner()[2]) {
        assert_eq!(seen.macs(), (A1.mac, GATEWAY_A.0), "{seen}");
    }
}

#[test]
fn a_flow_follows_its_peer_from_one_version_to_the_other() {
    let world = World::new();
    let [frame, ..] = inner();
    for _ in 0..2 {
        let over_v4 = tunnel(&Outer::new(HOST_1, HERE, SUBNET_A.vni), &frame);
        let over_v6 = tunnel_v6(&outer(), &frame);
        for wire in [over_v4, over_v6] {
            world.from_wire(Hook::WireXdp, wire).assert_delivered(A1.port, PathCounter::DecapsulatedXdp);
        }
    }
}

#[test]
fn who_may_send_is_known_by_the_whole_address() {
    let world = World::new();
    let [frame, ..] = inner();
    let mut stranger = HOST_1_V6;
    stranger[0] ^= 1;
    let beside = {
        let mut beside = HOST_1_V6;
        beside[15] += 1;
        beside
    };
    for source in [stranger, beside] {
        let outer = OuterV6 { ips: (source, HERE_V6), ..outer() };
        for hook in WIRE {
            let seen = world.from_wire(hook, tunnel_v6(&outer, &frame));
            seen.assert_dropped(DropReason::UnknownVtep, 0);
        }
        world.from_relay(100, source, frame.clone()).assert_dropped(DropReason::UnknownVtep, 0);
    }
    // Of another VNI, of which it knows nothing.
    let outer = OuterV6 { vni: 300, ..outer() };
    world.from_wire(Hook::WireXdp, tunnel_v6(&outer, &frame)).assert_dropped(DropReason::UnknownVtep, 0);
}

#[test]
fn an_ipv4_hosts_address_in_ipv6_is_nobodys() {
    let world = World::new();
    let [frame, ..] = inner();
    let outer = OuterV6 { ips: (mapped(HOST_1), HERE_V6), ..outer() };
    for hook in WIRE {
        world.from_wire(hook, tunnel_v6(&outer, &frame)).assert_untouched();
    }
    world.from_relay(100, mapped(HOST_1), frame).assert_dropped(DropReason::UnknownVtep, 0);
}

#[test]
fn strict_admission_holds_sources_to_their_host_over_ipv6_too() {
    let world = World::new();
    world.change_node(|node| node.flags |= node_flags::STRICT);
    // RA is known to be on host 1 as it is reached over IPv4; what has the IPv6 address is host 3.
    let [frame, ..] = inner();
    for seen in both(&world, &outer(), &frame) {
        seen.assert_dropped(DropReason::WrongVtep, A1.port);
    }
    world.change_endpoint(SUBNET_A.vni, RA.ip, |endpoint| (endpoint.target, endpoint.generation) = (3, 3));
    let by_mac = &world.tables().endpoints_mac;
    let key = ncm_common::tables::MacKey { vni: SUBNET_A.vni, mac: RA.mac, reserved: [0; 2] };
    let endpoint = by_mac.get(&key).expect("readable").expect("RA");
    by_mac.put(&key, &ncm_common::tables::Endpoint { target: 3, generation: 3, ..endpoint }).expect("room");
    for (seen, counter) in both(&world, &outer(), &frame).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
    }
}

#[test]
fn what_xdp_cannot_deliver_is_readdressed_with_a_right_checksum_or_none() {
    let world = World::new();
    let partial = tcp((RA.ip, 1), (A1.ip, 2), b"data", true).frame(A1.mac, RA.mac);
    let large = udp((RA.ip, 1), (A1.ip, 2), &vec![3; 6000]).frame(A1.mac, RA.mac);
    for (name, inner) in [("partial checksum", partial), ("several buffers", large)] {
        assert_readdressed(name, &world.from_wire(Hook::WireXdp, tunnel_v6(&outer(), &inner)));
    }
    let padded = [tunnel_v6(&outer(), &inner()[0]), vec![0; 7]].concat();
    assert_readdressed("padding", &world.from_wire(Hook::WireXdp, padded));
    world.change_port(A1, |port| port.flags &= !port_flags::XDP_TARGET);
    for hook in WIRE {
        let none = world.from_wire(hook, tunnel_v6(&outer(), &inner()[0]));
        assert_readdressed("no checksum", &none);
        assert_eq!(none.frame[60..62], [0, 0], "none stays none\n{none}");
        for number in 0..32 {
            let inner = udp((RA.ip, 1000 + number), (A1.ip, 2000), b"some payload").frame(A1.mac, RA.mac);
            let seen = world.from_wire(hook, tunnel_v6(&OuterV6 { checksum: true, ..outer() }, &inner));
            assert_readdressed("checksum", &seen);
            assert_ne!(seen.frame[60..62], [0, 0], "there is one\n{seen}");
            assert!(ipv6_payload_checksum_holds(&seen.frame[14..]), "{seen}");
        }
    }
}

#[test]
fn everything_else_over_ipv6_is_left_alone() {
    let world = World::new();
    let [frame, ..] = inner();
    let whole = tunnel_v6(&outer(), &frame);
    let extended = |number, header: Vec<u8>| {
        tunnel_v6(&OuterV6 { extensions: vec![(number, header)], ..outer() }, &frame)
    };
    let mut frames = vec![
        ("hop-by-hop options", extended(0, vec![0, 0, 1, 4, 0, 0, 0, 0])),
        ("destination options", extended(60, vec![0, 0, 1, 4, 0, 0, 0, 0])),
        ("a routing header", extended(43, vec![0, 0, 2, 0, 0, 0, 0, 0])),
        ("a first fragment", extended(44, fragment_header(0, true, 7))),
        ("a later fragment", extended(44, fragment_header(64, false, 7))),
        ("an atomic fragment", extended(44, fragment_header(0, false, 7))),
        ("another destination", tunnel_v6(&OuterV6 { ips: (HOST_1_V6, HOST_1_V6), ..outer() }, &frame)),
        ("another port", tunnel_v6(&OuterV6 { ports: (50_000, 4790), ..outer() }, &frame)),
        ("no VNI", tunnel_v6(&OuterV6 { flags: 0, ..outer() }, &frame)),
        ("a VNI of nobody's", tunnel_v6(&OuterV6 { vni: 999, ..outer() }, &frame)),
        ("another version", swap_bytes(whole.clone(), 14, &[0x70])),
    ];
    let cut: Vec<_> = (54..OUTER).map(|len| ("outer headers cut short", whole[..len].to_vec())).collect();
    frames.extend(cut);
    for hook in WIRE {
        for (name, frame) in &frames {
            let seen = world.from_wire(hook, frame.clone());
            assert_eq!(seen.counters, [(PathCounter::WirePassed, 1)], "{name}\n{seen}");
            seen.assert_untouched();
        }
    }
    // A traffic class, a flow label and a hop limit may be any.
    let marked = swap_bytes(swap_bytes(whole, 14, &[0x6f, 0xff, 0xff, 0xff]), 21, &[1]);
    world.from_wire(Hook::WireXdp, marked).assert_delivered(A1.port, PathCounter::DecapsulatedXdp);
}

#[test]
fn inner_headers_cut_short_are_dropped_and_lengths_that_contradict_each_other_too() {
    let world = World::new();
    for frame in inner() {
        for len in OUTER..OUTER + 14 + 20 {
            let seen = world.from_wire(Hook::WireXdp, tunnel_v6(&outer(), &frame)[..len].to_vec());
            assert_eq!(seen.verdict, Verdict::Dropped, "cut to {len}\n{seen}");
        }
        let whole = tunnel_v6(&outer(), &frame);
        let short = u16::from_be_bytes([whole[18], whole[19]]) + 1;
        for (at, length) in [(18, short), (58, short), (58, short - 2)] {
            let seen = world.from_wire(Hook::WireXdp, swap_bytes(whole.clone(), at, &length.to_be_bytes()));
            seen.assert_dropped(DropReason::TunnelMalformed, A1.port);
        }
    }
}

#[test]
fn a_node_takes_what_is_for_the_endpoints_that_it_has() {
    let world = World::new();
    let [frame, ..] = inner();
    let over_v4 = tunnel(&Outer::new(HOST_1, HERE, 100), &frame);
    let over_v6 = tunnel_v6(&outer(), &frame);
    let nowhere = tunnel_v6(&OuterV6 { ips: (HOST_1_V6, [0; 16]), ..outer() }, &frame);
    let deliver = |frame: &[u8]| {
        world
            .from_wire(Hook::WireXdp, frame.to_vec())
            .assert_delivered(A1.port, PathCounter::DecapsulatedXdp);
    };
    deliver(&over_v4);
    deliver(&over_v6);
    world.change_node(|node| node.endpoint_v4 = [0; 4]);
    deliver(&over_v6);
    world.from_wire(Hook::WireXdp, over_v4.clone()).assert_untouched();
    world.change_node(|node| (node.endpoint_v4, node.endpoint_v6) = (HERE, [0; 16]));
    deliver(&over_v4);
    for frame in [over_v6, nowhere] {
        world.from_wire(Hook::WireXdp, frame).assert_untouched();
    }
}

#[test]
fn a_frame_leaves_over_ipv6_in_whole_headers() {
    let world = World::new();
    over_v6(&world);
    let frames = [
        udp((A1.ip, 1000), (RA.ip, 2000), b"some payload").frame(RA.mac, A1.mac),
        udp6((A1.ip_v6(), 1000), (RA.ip_v6(), 2000), b"some payload").frame(RA.mac, A1.mac),
    ];
    for hook in GUEST {
        for frame in &frames {
            let seen = world.from_guest_at(hook, A1, frame.clone());
            seen.assert_encapsulated();
            assert_eq!(seen.macs(), (mac(0xee_0001), mac(0xee_00ff)), "the next hop's\n{seen}");
            let outer = seen.tunnelled_v6(0);
            assert_eq!((outer.source, outer.destination), (HERE_V6, HOST_1_V6), "{seen}");
            assert_eq!((outer.hop_limit, outer.port, outer.vni), (64, 4789, SUBNET_A.vni), "{seen}");
            assert!(outer.source_port >= 49_152, "RFC 7348, section 5\n{seen}");
            assert!(outer.label <= 0xf_ffff, "no traffic class\n{seen}");
            assert_eq!(&outer.inner.frame, frame, "{seen}");
            // And what is made there is taken here.
            let mut there = seen.frame.clone();
            there[22..38].copy_from_slice(&HOST_1_V6);
            there[38..54].copy_from_slice(&HERE_V6);
            let seen = world.from_wire(Hook::WireTc, there);
            assert_readdressed("sent by ourselves", &seen);
        }
    }
}

#[test]
fn a_routed_frame_leaves_over_ipv6_in_its_destinations_vni() {
    let world = World::new();
    over_v6(&world);
    let frame = udp((A1.ip, 1000), (RB.ip, 2000), b"routed").frame(GATEWAY_A.0, A1.mac);
    for hook in GUEST {
        let outer = world.from_guest_at(hook, A1, frame.clone()).tunnelled_v6(0);
        assert_eq!((outer.vni, outer.inner.macs()), (200, (RB.mac, SUBNET_A.dvr_mac)));
        assert_eq!(outer.inner.ipv4(), (A1.ip, RB.ip, 63));
    }
}

#[test]
fn flows_spread_by_source_port_and_label_and_stay_on_theirs() {
    let world = World::new();
    over_v6(&world);
    let of = |port: u16| {
        let frame = udp((A1.ip, port), (RA.ip, 2000), b"").frame(RA.mac, A1.mac);
        let outer = world.from_guest(A1, frame).tunnelled_v6(0);
        (outer.source_port, outer.label)
    };
    let seen: std::collections::BTreeSet<_> = (1000..1032).map(of).collect();
    assert!(seen.len() > 30, "{seen:?}");
    let labels: std::collections::BTreeSet<_> = seen.iter().map(|(_, label)| *label).collect();
    assert!(labels.len() > 30, "{labels:?}");
    assert_eq!(of(1000), of(1000));
}

#[test]
fn a_vlan_tag_goes_before_the_ipv6_header() {
    let world = World::new();
    over_v6(&world);
    world.change_group(1, |group| group.halves[0].hops[0].vlan = 42);
    let frame = udp((A1.ip, 1000), (RA.ip, 2000), b"some payload").frame(RA.mac, A1.mac);
    let seen = world.from_guest_at(Hook::GuestXdp, A1, frame.clone());
    seen.assert_encapsulated();
    // At tc the tag travels beside the frame, and a device puts it in: only a real one shows it.
    let real = Seen { frame: world.live(A1, &frame, "up0"), ..seen.clone() };
    for seen in [seen, real] {
        assert_eq!(seen.frame[12..16], [0x81, 0, 0, 42], "{seen}");
        assert_eq!(seen.tunnelled_v6(4).inner.frame, frame, "{seen}");
    }
}

#[test]
fn over_ipv6_twenty_bytes_less_fit() {
    let world = World::new();
    over_v6(&world);
    let sized = |size: usize| udp((A1.ip, 1), (RA.ip, 2), &vec![0; size - 28]).frame(RA.mac, A1.mac);
    world.from_guest(A1, sized(1430)).assert_encapsulated();
    let seen = world.from_guest(A1, sized(1431));
    seen.assert_answered(PathCounter::PacketTooBigSent);
    assert_eq!(seen.frame[34..36], [3, 4], "fragmentation needed\n{seen}");
    assert_eq!(u16::from_be_bytes([seen.frame[40], seen.frame[41]]), 1430, "{seen}");
    let sized =
        |size: usize| udp6((A1.ip_v6(), 1), (RA.ip_v6(), 2), &vec![0; size - 48]).frame(RA.mac, A1.mac);
    world.from_guest(A1, sized(1430)).assert_encapsulated();
    let seen = world.from_guest(A1, sized(1431));
    seen.assert_answered(PathCounter::PacketTooBigSent);
    assert_eq!(seen.frame[54..56], [2, 0], "packet too big\n{seen}");
    assert_eq!(seen.frame[58..62], 1430u32.to_be_bytes(), "{seen}");
}

#[test]
fn without_the_agent_the_kernel_finds_the_way_over_ipv6() {
    let world = World::new();
    over_v6(&world);
    let frame = udp((A1.ip, 1000), (RA.ip, 2000), b"some payload").frame(RA.mac, A1.mac);
    world.beat(10);
    let run = TestRun::new(frame.clone(), world.ifindex(A1.interface));
    let seen = world.run_as_it_is(Hook::GuestTc, run.clone());
    seen.assert_encapsulated();
    seen.assert_counted(PathCounter::KernelResolved);
    assert_eq!(seen.tunnelled_v6(0).inner.frame, frame, "{seen}");
    // The way is the kernel's, not just the interface last known.
    world.change_group(1, |group| *group = NextHopGroup::default());
    world.run_as_it_is(Hook::GuestTc, run.clone()).assert_counted(PathCounter::KernelResolved);
    world.change_host(1, |host| host.halves[0].headers[24] = 0x3f);
    world.run_as_it_is(Hook::GuestTc, run).assert_dropped(DropReason::NextHopUnresolved, A1.port);
}

#[test]
fn a_template_without_headers_leads_nowhere() {
    let world = World::new();
    world.change_host(1, |host| host.halves[0].headers_len = 0);
    let frame = udp((A1.ip, 1000), (RA.ip, 2000), b"").frame(RA.mac, A1.mac);
    for hook in GUEST {
        let seen = world.from_guest_at(hook, A1, frame.clone());
        seen.assert_dropped(DropReason::NextHopUnresolved, A1.port);
    }
}

/// A tunnel frame to that MAC, over both versions.
fn to(mac: Mac) -> [Vec<u8>; 2] {
    let [frame, ..] = inner();
    let (v4, v6) = (Outer::new(HOST_1, HERE, 100), outer());
    let macs = (mac, v4.macs.1);
    [tunnel(&Outer { macs, ..v4 }, &frame), tunnel_v6(&OuterV6 { macs, ..v6 }, &frame)]
}

fn is_taken(world: &World, hook: Hook, frame: Vec<u8>) -> bool {
    let seen = world.from_wire(hook, frame);
    if seen.counters == [(PathCounter::WirePassed, 1)] {
        seen.assert_untouched();
        return false;
    }
    let by = if hook == Hook::WireXdp { PathCounter::DecapsulatedXdp } else { PathCounter::Relayed };
    seen.assert_counted(by);
    true
}

#[test]
fn frames_for_another_mac_are_not_ours_on_an_interface_that_hears_everything() {
    let world = World::new();
    let other = mac(0xee_0077);
    for hook in WIRE {
        for frame in to(UP0) {
            assert!(is_taken(&world, hook, frame));
        }
        for mac in [other, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            for frame in to(mac) {
                assert!(!is_taken(&world, hook, frame), "{mac:x?} at {hook}");
            }
        }
    }
    // An uplink that is not in the same stack has its own wire; one of the same stack (a bond, a bridge) does not.
    let up0 = world.ifindex("up0");
    for (stack, taken) in [(2, false), (1, true)] {
        let two = [(up0, UP0, 1), (LOOPBACK, UP0, 1), (77, other, stack)];
        world.change_node(|node| node.uplinks = uplinks(&two));
        for hook in WIRE {
            for frame in to(other) {
                assert_eq!(is_taken(&world, hook, frame), taken, "stack {stack} at {hook}");
            }
        }
    }
}

#[test]
fn an_interfaces_mac_counts_wherever_its_slot_is() {
    let world = World::new();
    let up0 = world.ifindex("up0");
    // Others have the places where both are looked for first.
    let all = [(up0 + 8, UP0, 3), (LOOPBACK + 8, UP0, 4), (up0, UP0, 1), (LOOPBACK, UP0, 2)];
    world.change_node(|node| node.uplinks = uplinks(&all));
    for hook in WIRE {
        for frame in to(UP0) {
            assert!(is_taken(&world, hook, frame));
        }
        for frame in to(mac(0xee_0077)) {
            assert!(!is_taken(&world, hook, frame));
        }
    }
}

#[test]
fn without_the_agent_a_new_mac_takes_frames_all_the_same() {
    let world = World::new();
    let frames = to(mac(0xee_0077));
    world.beat(10);
    for hook in WIRE {
        let ifindex = if hook == Hook::WireXdp { 0 } else { world.ifindex("up0") };
        for frame in &frames {
            let seen = world.run_as_it_is(hook, TestRun::new(frame.clone(), ifindex));
            assert_ne!(seen.counters, [(PathCounter::WirePassed, 1)], "{seen}");
        }
    }
    // Nor is anything refused on an interface that is not known.
    world.change_node(|node| node.uplinks = uplinks(&[]));
    for hook in WIRE {
        for frame in &frames {
            assert!(is_taken(&world, hook, frame.clone()));
        }
    }
}
