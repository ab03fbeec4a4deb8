//! The wire side: what is ours goes to its guest, what is not goes on untouched.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{Reference, VtepKey, node_flags, port_flags};
use ncm_dataplane::Hook;
use ncm_tests::packet::{
    A1, Arp, B1, C1, GATEWAY_A, GATEWAY_B, HERE, HOST_1, HOST_2, Ip, Ipv4, Outer, RA, RB, RC, SUBNET_A,
    SUBNET_B, Seen, UNKNOWN_HOST, Verdict, World, echo_request, ethernet, mac, swap_bytes, tcp, tunnel, udp,
    udp_checksum_holds,
};

const HOOKS: [Hook; 2] = [Hook::WireXdp, Hook::WireTc];

fn inner() -> Ip {
    udp((RA.ip, 1000), (A1.ip, 2000), b"some payload")
}

/// The frame out of the tunnel at XDP, and behind the kernel's decapsulation.
fn both(world: &World, source: Ipv4, vni: u32, inner: &[u8]) -> [Seen; 2] {
    let outer = tunnel(&Outer::new(source, HERE, vni), inner);
    [world.from_wire(Hook::WireXdp, outer), world.from_relay(vni, source, inner.to_vec())]
}

const DECAPSULATED: [PathCounter; 2] = [PathCounter::DecapsulatedXdp, PathCounter::DecapsulatedRelay];

#[test]
fn a_tunnel_frame_reaches_its_guest() {
    let world = World::new();
    let frame = inner().frame(A1.mac, RA.mac);
    for (seen, counter) in both(&world, HOST_1, SUBNET_A.vni, &frame).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
        assert_eq!(seen.frame, frame, "the inner frame as it was sent\n{seen}");
    }
}

#[test]
fn tenants_with_the_same_addresses_stay_apart() {
    let world = World::new();
    let frame = inner().frame(A1.mac, RA.mac);
    for (host, vni, guest) in [(HOST_1, 100, A1), (HOST_2, 300, C1)] {
        for (seen, counter) in both(&world, host, vni, &frame).into_iter().zip(DECAPSULATED) {
            seen.assert_delivered(guest.port, counter);
        }
    }
    assert_eq!((RA.mac, RA.ip), (RC.mac, RC.ip), "the senders cannot be told apart either");
}

#[test]
fn a_routed_frame_arrives_from_the_gateway() {
    let world = World::new();
    // Sent by the router of host 1 for RB, so in the VNI of the destination's subnet.
    for source in [SUBNET_B.dvr_mac, SUBNET_A.dvr_mac, [0xfe, 0x16, 0x11, 0, 0, 0x77]] {
        let frame = udp((RB.ip, 1), (A1.ip, 2), b"routed").frame(A1.mac, source);
        for (seen, counter) in both(&world, HOST_1, SUBNET_A.vni, &frame).into_iter().zip(DECAPSULATED) {
            seen.assert_delivered(A1.port, counter);
            assert_eq!(seen.macs(), (A1.mac, GATEWAY_A.0), "{seen}");
            assert_eq!(seen.frame[12..], frame[12..], "nothing else changes\n{seen}");
        }
    }
}

#[test]
fn subnets_that_share_a_vni_are_told_apart_by_the_destination() {
    let world = World::new();
    // B's guest and prefix under A's VNI, as when all subnets have the VNI of their VPC.
    let tables = world.tables();
    let b1 = tables.endpoints_mac.get(&key(SUBNET_B.vni, B1.mac)).expect("readable").expect("there");
    tables.endpoints_mac.put(&key(SUBNET_A.vni, B1.mac), &b1).expect("room");
    world.change_port(B1, |port| port.vni = SUBNET_A.vni);
    let frame = udp((RA.ip, 1), (B1.ip, 2), b"routed").frame(B1.mac, SUBNET_A.dvr_mac);
    for (seen, counter) in both(&world, HOST_1, SUBNET_A.vni, &frame).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(B1.port, counter);
        assert_eq!(seen.macs(), (B1.mac, GATEWAY_B.0), "{seen}");
    }
}

fn key(vni: u32, mac: ncm_tests::packet::Mac) -> ncm_common::tables::MacKey {
    ncm_common::tables::MacKey { vni, mac, reserved: [0; 2] }
}

#[test]
fn known_admission_takes_any_endpoint_of_the_vni_and_strict_the_holder_only() {
    let world = World::new();
    let ip = std::net::Ipv4Addr::from(HOST_2).to_ipv6_mapped().octets();
    world
        .tables()
        .vteps
        .put(&VtepKey { vni: 100, ip }, &Reference { index: 2, generation: 2 })
        .expect("room");
    let frame = inner().frame(A1.mac, RA.mac);
    for (seen, counter) in both(&world, HOST_2, 100, &frame).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
    }
    world.change_node(|node| node.flags |= node_flags::STRICT);
    for (seen, counter) in both(&world, HOST_1, 100, &frame).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
    }
    // A source that nobody claims is taken from any endpoint, under either admission.
    let unclaimed = udp(([10, 0, 1, 222], 1), (A1.ip, 2), b"").frame(A1.mac, mac(0x999));
    for (seen, counter) in both(&world, HOST_2, 100, &unclaimed).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
    }
}

#[test]
fn a_routed_source_is_checked_in_its_own_subnet() {
    let world = World::new();
    let from = |source: Ipv4| udp((source, 1), (A1.ip, 2), b"routed").frame(A1.mac, SUBNET_B.dvr_mac);
    for (seen, counter) in both(&world, HOST_1, 100, &from(RB.ip)).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
    }
    // Whoever answers from a gateway or for a guest of this host is on this host.
    for source in [B1.ip, GATEWAY_B.1] {
        for seen in both(&world, HOST_1, 100, &from(source)) {
            seen.assert_dropped(DropReason::TunnelSource, A1.port);
        }
    }
    world.change_node(|node| node.flags |= node_flags::STRICT);
    let ip = std::net::Ipv4Addr::from(HOST_2).to_ipv6_mapped().octets();
    let host = Reference { index: 2, generation: 2 };
    world.tables().vteps.put(&VtepKey { vni: 100, ip }, &host).expect("room");
    for seen in both(&world, HOST_2, 100, &from(RB.ip)) {
        seen.assert_dropped(DropReason::WrongVtep, A1.port);
    }
    for (seen, counter) in both(&world, HOST_1, 100, &from(RB.ip)).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
    }
}

#[test]
fn a_next_hop_guest_gets_routed_frames_from_its_own_gateway() {
    let world = World::new();
    // Sent by the router of host 1 to A1 as the next hop to somewhere outside of all subnets.
    let frame = udp((RB.ip, 1), ([172, 16, 1, 1], 2), b"outwards").frame(A1.mac, SUBNET_A.dvr_mac);
    for (seen, counter) in both(&world, HOST_1, SUBNET_A.vni, &frame).into_iter().zip(DECAPSULATED) {
        seen.assert_delivered(A1.port, counter);
        assert_eq!(seen.macs(), (A1.mac, GATEWAY_A.0), "{seen}");
    }
}

#[test]
fn an_outer_packet_that_ends_elsewhere_than_its_frame_is_not_trusted() {
    let world = World::new();
    let whole = tunnel(&Outer::new(HOST_1, HERE, 100), &inner().frame(A1.mac, RA.mac));
    let padded = [&whole[..], &[0; 7]].concat();
    assert_readdressed("padding that only the kernel cuts off", &world.from_wire(Hook::WireXdp, padded));
    let short = u16::from_be_bytes([whole[16], whole[17]]) + 1;
    for (at, length) in [(16, short), (38, short - 20)] {
        let seen = world.from_wire(Hook::WireXdp, swap_bytes(whole.clone(), at, &length.to_be_bytes()));
        seen.assert_dropped(DropReason::TunnelMalformed, A1.port);
    }
}

#[test]
fn what_xdp_cannot_deliver_is_readdressed_to_the_relay_device() {
    let world = World::new();
    let partial = tcp((RA.ip, 1), (A1.ip, 2), b"data", true).frame(A1.mac, RA.mac);
    let large = udp((RA.ip, 1), (A1.ip, 2), &vec![3; 6000]).frame(A1.mac, RA.mac);
    for (name, inner) in [("partial checksum", partial), ("several buffers", large)] {
        let seen = world.from_wire(Hook::WireXdp, tunnel(&Outer::new(HOST_1, HERE, 100), &inner));
        assert_readdressed(name, &seen);
    }
    world.change_port(A1, |port| port.flags &= !port_flags::XDP_TARGET);
    let inner = inner().frame(A1.mac, RA.mac);
    let seen = world.from_wire(Hook::WireXdp, tunnel(&Outer::new(HOST_1, HERE, 100), &inner));
    assert_readdressed("a guest without XDP", &seen);
}

#[test]
fn at_tc_every_tunnel_frame_is_readdressed() {
    let world = World::new();
    let inner = inner().frame(A1.mac, RA.mac);
    let seen = world.from_wire(Hook::WireTc, tunnel(&Outer::new(HOST_1, HERE, 100), &inner));
    assert_readdressed("tc", &seen);
}

#[test]
fn readdressing_keeps_the_outer_checksum_right() {
    let world = World::new();
    world.change_port(A1, |port| port.flags &= !port_flags::XDP_TARGET);
    for hook in HOOKS {
        for number in 0..32 {
            let inner = udp((RA.ip, 1000 + number), (A1.ip, 2000), b"some payload").frame(A1.mac, RA.mac);
            let outer = Outer { checksum: true, ..Outer::new(HOST_1, HERE, 100) };
            let seen = world.from_wire(hook, tunnel(&outer, &inner));
            assert_readdressed("checksum", &seen);
            assert_ne!(seen.frame[40..42], [0, 0], "there is one\n{seen}");
            assert!(udp_checksum_holds(&seen.frame, 14), "{seen}");
        }
    }
}

#[test]
fn on_the_tunnels_own_port_the_relay_device_takes_frames_as_they_are() {
    let world = World::new();
    let nodes = &world.tables().node;
    let mut node = nodes.get(&0).unwrap().unwrap();
    node.relay_port = node.tunnel_port;
    nodes.put(&0, &node).unwrap();
    let inner = tcp((RA.ip, 1), (A1.ip, 2), b"data", false).frame(A1.mac, RA.mac);
    for hook in HOOKS {
        for checksum in [false, true] {
            let outer = Outer { checksum, ..Outer::new(HOST_1, HERE, 100) };
            let seen = world.from_wire(hook, tunnel(&outer, &inner));
            assert_eq!(seen.verdict, Verdict::Passed, "the kernel decapsulates\n{seen}");
            seen.assert_counted(PathCounter::Relayed);
            assert!(seen.frame == seen.before && seen.drops.is_empty(), "untouched\n{seen}");
        }
    }
}

fn assert_readdressed(name: &str, seen: &Seen) {
    assert_eq!(seen.verdict, Verdict::Passed, "{name}: the kernel decapsulates\n{seen}");
    seen.assert_counted(PathCounter::Relayed);
    assert_eq!(seen.frame[36..38], 47_890u16.to_be_bytes(), "{name}: the relay device's port\n{seen}");
    assert!(seen.frame[..36] == seen.before[..36] && seen.frame[42..] == seen.before[42..], "{name}\n{seen}");
    if seen.before[40..42] == [0, 0] {
        assert_eq!(seen.frame[40..42], [0, 0], "{name}: no checksum stays none\n{seen}");
    }
    assert!(seen.drops.is_empty() && seen.received.is_empty(), "{name}\n{seen}");
}

#[test]
fn what_is_not_ours_passes_untouched() {
    let world = World::new();
    let inner = inner().frame(A1.mac, RA.mac);
    let ours = Outer::new(HOST_1, HERE, 100);
    let of = |outer: Outer| tunnel(&outer, &inner);
    let tag = |frame: Vec<u8>, kind: u16| {
        ethernet(mac(0xee_0001), mac(0xee_0002), kind, &[&[0, 5][..], &frame[12..]].concat())
    };
    let ipv6 = [&[0x60, 0, 0, 0, 0, 8, 17, 64][..], &[0; 32], &[0x12, 0xb5, 0x12, 0xb5, 0, 8, 0, 0]].concat();
    let frames = [
        ("ssh", tcp((UNKNOWN_HOST, 40_000), (HERE, 22), b"SSH-2.0", false).frame(mac(1), mac(2))),
        ("other UDP", udp((UNKNOWN_HOST, 40_000), (HERE, 53), b"question").frame(mac(1), mac(2))),
        ("ping", echo_request(UNKNOWN_HOST, HERE).frame(mac(1), mac(2))),
        ("another VNI", of(Outer { vni: 777, ..ours.clone() })),
        ("another VNI from a host we know", of(Outer { vni: 0, ..ours.clone() })),
        ("without the VNI flag", of(Outer { flags: 0, ..ours.clone() })),
        ("another address of this host", of(Outer { ips: (HOST_1, [192, 0, 2, 77]), ..ours.clone() })),
        ("another port", of(Outer { ports: (50_000, 8472), ..ours.clone() })),
        ("the relay's port", of(Outer { ports: (50_000, 47_890), ..ours.clone() })),
        ("first fragment", of(Outer { fragment: 0x2000, ..ours.clone() })),
        ("later fragment", of(Outer { fragment: 100, ..ours.clone() })),
        ("outer options", of(Outer { options: vec![1, 1, 1, 0], ..ours.clone() })),
        ("multicast VXLAN", of(Outer { ips: (HOST_1, [239, 1, 1, 1]), ..ours.clone() })),
        ("VLAN", tag(of(ours.clone()), 0x8100)),
        ("service VLAN", tag(of(ours.clone()), 0x88a8)),
        (
            "TCP to our tunnel port",
            tcp((HOST_1, 50_000), (HERE, 4789), &[8, 0, 0, 0, 0, 0, 100, 0], false).frame(mac(1), mac(2)),
        ),
        ("IPv6", ethernet(mac(1), mac(2), 0x86dd, &ipv6)),
        ("IPv6 multicast", ethernet([0x33, 0x33, 0, 0, 0, 1], mac(2), 0x86dd, &ipv6)),
        (
            "ARP",
            Arp { operation: 1, sender: (mac(2), HOST_1), target: ([0; 6], HERE) }.frame([0xff; 6], mac(2)),
        ),
        ("LLDP", ethernet([1, 0x80, 0xc2, 0, 0, 0xe], mac(2), 0x88cc, &[0; 46])),
        (
            "multicast",
            udp((HOST_1, 5353), ([224, 0, 0, 251], 5353), b"mdns").frame([1, 0, 0x5e, 0, 0, 0xfb], mac(2)),
        ),
        ("half of an IPv4 packet", ethernet(mac(1), mac(2), 0x0800, &[0x45; 20])),
        ("no IPv4 at all", ethernet(mac(1), mac(2), 0x0800, &[0; 46])),
    ];
    for hook in HOOKS {
        for (name, frame) in &frames {
            let seen = world.from_wire(hook, frame.clone());
            assert_eq!(seen.counters, [(PathCounter::WirePassed, 1)], "{name}\n{seen}");
            seen.assert_untouched();
        }
    }
}

#[test]
fn a_node_without_a_tunnel_endpoint_leaves_everything_alone() {
    let world = World::new();
    world.change_node(|node| node.endpoint_v4 = [0; 4]);
    let inner = inner().frame(A1.mac, RA.mac);
    for hook in HOOKS {
        world.from_wire(hook, tunnel(&Outer::new(HOST_1, HERE, 100), &inner)).assert_untouched();
        world.from_wire(hook, tunnel(&Outer::new(HOST_1, [0; 4], 100), &inner)).assert_untouched();
    }
}

#[test]
fn another_tunnel_port_may_be_configured() {
    let world = World::new();
    world.change_node(|node| node.tunnel_port = 14_789u16.to_be_bytes());
    let inner = inner().frame(A1.mac, RA.mac);
    let seen = world.from_wire(Hook::WireXdp, tunnel(&Outer::new(HOST_1, HERE, 100), &inner));
    seen.assert_untouched();
    let outer = Outer { ports: (50_000, 14_789), ..Outer::new(HOST_1, HERE, 100) };
    world
        .from_wire(Hook::WireXdp, tunnel(&outer, &inner))
        .assert_delivered(A1.port, PathCounter::DecapsulatedXdp);
}

#[test]
fn fragments_and_options_are_carried_and_change_nothing_in_admission() {
    let world = World::new();
    let whole = inner();
    let first = Ip { fragment: 0x2000, ..whole.clone() }.frame(A1.mac, RA.mac);
    let later = Ip { fragment: 8, payload: vec![9; 32], ..whole.clone() }.frame(A1.mac, RA.mac);
    let options = Ip { options: vec![1, 1, 1, 0], ..whole }.frame(A1.mac, RA.mac);
    for frame in [first, later, options] {
        for (seen, counter) in both(&world, HOST_1, 100, &frame).into_iter().zip(DECAPSULATED) {
            seen.assert_delivered(A1.port, counter);
            assert_eq!(seen.frame, frame, "{seen}");
        }
        for seen in both(&world, UNKNOWN_HOST, 100, &frame) {
            assert_eq!(seen.verdict, Verdict::Dropped, "{seen}");
        }
    }
}

#[test]
fn nothing_from_the_tunnel_goes_back_into_it() {
    let world = World::new();
    for destination in [RA.mac, RB.mac, GATEWAY_A.0] {
        let frame = udp((RA.ip, 1), (RB.ip, 2), b"").frame(destination, mac(0x1d));
        for seen in both(&world, HOST_1, 100, &frame) {
            assert_eq!(seen.verdict, Verdict::Dropped, "{seen}");
        }
    }
}

#[test]
fn a_swapped_vni_finds_no_guest() {
    let world = World::new();
    let frame =
        swap_bytes(tunnel(&Outer::new(HOST_1, HERE, 100), &inner().frame(A1.mac, RA.mac)), 46, &[0, 0, 200]);
    let seen = world.from_wire(Hook::WireXdp, frame);
    assert_eq!(seen.verdict, Verdict::Dropped, "{seen}");
}
