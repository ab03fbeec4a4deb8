//! Every drop reason, provoked by a packet. A case from a guest runs at tc and at XDP, a case from the tunnel behind
//! the kernel's decapsulation and at XDP: the stages are the same, so the reason is.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::marks;
use ncm_common::tables::{Reference, Subnet, VtepKey, node_flags, port_flags, subnet_flags};
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{
    A1, A2, Arp, B1, GATEWAY_A, GATEWAY_B, Guest, HERE, HOST_1, HOST_2, Ip, Ip6, Ipv4, Ipv6, Mac, Outer, RA,
    RB, SUBNET_A, SUBNET_B, Seen, UNKNOWN_HOST, World, arp_request, echo_request, ethernet, fragment_header,
    icmp, icmp6, link_local, mac, solicitation, swap_bytes, tcp, tcp6, tunnel, udp, udp6,
};

/// How a case puts its frame in.
enum Case {
    /// From a guest, at both hooks.
    Guest(fn(&World) -> (Guest, Vec<u8>)),
    /// Out of the tunnel: VNI, outer source, inner frame; at both hooks.
    Tunnel(fn(&World) -> (u32, Ipv4, Vec<u8>)),
    /// In its own way.
    Own(fn(&World) -> Vec<Seen>),
}

impl Case {
    fn run(&self, world: &World) -> Vec<Seen> {
        match self {
            Self::Guest(frame) => {
                let (guest, frame) = frame(world);
                let at = |hook| world.from_guest_at(hook, guest, frame.clone());
                vec![at(Hook::GuestTc), at(Hook::GuestXdp)]
            }
            Self::Tunnel(frame) => {
                let (vni, source, inner) = frame(world);
                let outer = tunnel(&Outer::new(source, HERE, vni), &inner);
                vec![world.from_wire(Hook::WireXdp, outer), world.from_relay(vni, source, inner)]
            }
            Self::Own(run) => run(world),
        }
    }
}

macro_rules! drops {
    ($($reason:ident at $port:literal: $name:ident = $kind:ident($frame:expr);)+) => {
        $(
            #[test]
            fn $name() {
                let world = World::new();
                for seen in Case::$kind($frame).run(&world) {
                    seen.assert_dropped(DropReason::$reason, $port);
                }
            }
        )+

        /// The reasons that the cases above provoke.
        const PROVOKED: &[DropReason] = &[$(DropReason::$reason),+];
    };
}

#[test]
fn every_reason_is_provoked() {
    let missing: Vec<&str> = DropReason::ALL
        .iter()
        .filter(|reason| !PROVOKED.contains(reason))
        .map(|reason| reason.name())
        .collect();
    assert!(missing.is_empty(), "add a case for: {missing:?}");
}

/// A frame of A1's that the agent has held, and ends for that reason.
fn ended(world: &World, reason: DropReason) -> Seen {
    let mark = marks::mark(marks::END | reason as u32, A1.port);
    let frame = packet(A1, RA.pair());
    world.run(Hook::HandDownTc, TestRun { mark, ..TestRun::new(frame, world.ifindex("up0")) })
}

/// A UDP packet from a guest to another of its subnet.
fn packet(from: Guest, to: (Mac, Ipv4)) -> Vec<u8> {
    udp((from.ip, 1000), (to.1, 2000), b"payload").frame(to.0, from.mac)
}

/// A UDP packet from a guest, by way of its gateway.
fn routed(from: Guest, to: Ipv4) -> Vec<u8> {
    packet(from, (from.subnet.gateway.0, to))
}

/// A UDP packet from a remote guest in A to [`A1`].
fn inner() -> Ip {
    udp((RA.ip, 1000), (A1.ip, 2000), b"payload")
}

/// IPv6 with an ICMPv6 message of that type, from link-local addresses.
fn icmpv6(destination: Mac, kind: u8) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    ethernet(destination, A1.mac, 0x86dd, &packet)
}

/// All nodes, all routers, all DHCPv6 agents, all listeners to group reports.
const ALL_NODES: Ipv6 = group(2, 1);
const ALL_ROUTERS: Ipv6 = group(2, 2);
const ALL_MLD: Ipv6 = group(2, 0x16);
const ALL_DHCP: Ipv6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];

/// A multicast address of that scope.
const fn group(scope: u8, number: u8) -> Ipv6 {
    [0xff, scope, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]
}

const BROADCAST: Mac = [0xff; 6];
const MULTICAST: Mac = [1, 0, 0x5e, 0, 0, 0xfb];

drops! {
    UnknownPort at 0: a_frame_from_an_interface_without_a_port = Own(|world| {
        vec![world.run(Hook::GuestTc, TestRun::new(packet(A1, A2.pair()), world.ifindex("spare")))]
    });
    UnknownPort at 0: a_frame_from_the_interface_of_a_port_that_was_deleted = Guest(|world| {
        world.tables().port_by_interface.delete(&world.ifindex("a1")).expect("deleted");
        (A1, packet(A1, A2.pair()))
    });
    PortDown at 1: a_guest_whose_port_is_down = Guest(|world| {
        world.change_port(A1, |port| port.flags &= !port_flags::UP);
        (A1, packet(A1, A2.pair()))
    });
    PortDown at 1: a_frame_for_a_guest_whose_port_is_down = Guest(|world| {
        world.change_port(A2, |port| port.flags &= !port_flags::UP);
        (A1, packet(A1, A2.pair()))
    });
    PortDown at 1: a_tunnel_frame_for_a_guest_whose_port_is_down = Tunnel(|world| {
        world.change_port(A1, |port| port.flags &= !port_flags::UP);
        (100, HOST_1, inner().frame(A1.mac, RA.mac))
    });
    PortClosed at 1: a_guest_whose_port_is_closed = Guest(|world| {
        world.change_port(A1, |port| port.flags |= port_flags::CLOSED);
        (A1, packet(A1, A2.pair()))
    });
    PortClosed at 1: a_closed_port_is_not_even_answered = Guest(|world| {
        world.change_port(A1, |port| port.flags |= port_flags::CLOSED);
        (A1, arp_request(A1.pair(), GATEWAY_A.1))
    });
    PortClosed at 1: a_tunnel_frame_for_a_closed_port = Tunnel(|world| {
        world.change_port(A1, |port| port.flags |= port_flags::CLOSED);
        (100, HOST_1, inner().frame(A1.mac, RA.mac))
    });
    Malformed at 1: a_packet_longer_than_its_frame = Guest(|_| (A1, swap_bytes(packet(A1, A2.pair()), 16, &[0, 200])));
    Malformed at 1: a_header_shorter_than_the_least = Guest(|_| (A1, swap_bytes(packet(A1, A2.pair()), 14, &[0x44])));
    Malformed at 1: a_datagram_longer_than_its_packet = Guest(|_| (A1, swap_bytes(packet(A1, A2.pair()), 38, &[0, 16])));
    Malformed at 1: a_datagram_without_a_length = Guest(|_| (A1, swap_bytes(packet(A1, A2.pair()), 38, &[0, 0])));
    FragmentTiny at 1: a_first_fragment_too_short_for_its_ports = Guest(|_| {
        let ip = Ip { fragment: 0x2000, payload: vec![0, 67, 0, 68], ..udp((A1.ip, 67), (A2.ip, 68), b"") };
        (A1, ip.frame(A2.mac, A1.mac))
    });
    Malformed at 1: an_arp_message_that_is_cut_short = Guest(|_| {
        let mut frame = arp_request(A1.pair(), GATEWAY_A.1);
        frame.truncate(41);
        (A1, frame)
    });
    SpoofedMac at 1: another_source_mac = Guest(|_| (A1, udp((A1.ip, 1), (A2.ip, 2), b"").frame(A2.mac, mac(0x666))));
    SpoofedMac at 1: the_mac_of_a_neighbour = Guest(|_| (A1, udp((A1.ip, 1), (A2.ip, 2), b"").frame(A2.mac, A2.mac)));
    SpoofedIp at 1: another_source_address = Guest(|_| {
        (A1, udp(([10, 0, 1, 99], 1), (A2.ip, 2), b"").frame(A2.mac, A1.mac))
    });
    SpoofedIp at 1: the_address_of_the_gateway = Guest(|_| {
        (A1, icmp(GATEWAY_A.1, A2.ip, 11, 0, [0; 4], b"").frame(A2.mac, A1.mac))
    });
    SpoofedArp at 1: an_arp_sender_address_of_a_neighbour = Guest(|_| {
        (A1, arp_request((A1.mac, A2.ip), GATEWAY_A.1))
    });
    SpoofedArp at 1: an_arp_sender_mac_of_a_neighbour = Guest(|_| {
        let message = Arp { operation: 1, sender: (A2.mac, A1.ip), target: ([0; 6], GATEWAY_A.1) };
        (A1, message.frame(BROADCAST, A1.mac))
    });
    SpoofedArp at 1: an_arp_reply_that_claims_the_gateway = Guest(|_| {
        let message = Arp { operation: 2, sender: (A1.mac, GATEWAY_A.1), target: A2.pair() };
        (A1, message.frame(A2.mac, A1.mac))
    });
    RogueDhcpServer at 1: what_only_a_dhcp_server_may_send = Guest(|_| {
        (A1, udp((A1.ip, 67), (A2.ip, 68), &[2; 240]).frame(A2.mac, A1.mac))
    });
    RogueDhcpServer at 1: a_dhcp_offer_by_broadcast = Guest(|_| {
        (A1, udp((A1.ip, 67), ([255; 4], 68), &[2; 240]).frame(BROADCAST, A1.mac))
    });
    RogueDhcpServer at 1: a_dhcp_offer_behind_ip_options = Guest(|_| {
        let ip = Ip { options: vec![1; 40], ..udp((A1.ip, 67), (A2.ip, 68), &[2; 240]) };
        (A1, ip.frame(A2.mac, A1.mac))
    });
    RogueDhcpServer at 1: a_dhcp_offer_in_fragments = Guest(|_| {
        let whole = udp((A1.ip, 67), (A2.ip, 68), &[2; 240]);
        (A1, Ip { fragment: 0x2000, payload: whole.payload[..8].to_vec(), ..whole }.frame(A2.mac, A1.mac))
    });
    RogueRouter at 1: a_router_advertisement = Guest(|_| (A1, icmpv6([0x33, 0x33, 0, 0, 0, 1], 134)));
    RogueRouter at 1: an_icmpv6_redirect = Guest(|_| (A1, icmpv6(A2.mac, 137)));
    UnsupportedEthertype at 1: an_ethertype_that_is_not_forwarded = Guest(|_| {
        (A1, ethernet(A2.mac, A1.mac, 0x88b5, &[0; 46]))
    });
    Vlan at 1: a_tagged_frame = Guest(|_| {
        let tagged = [&[0, 5][..], &packet(A1, A2.pair())[12..]].concat();
        (A1, ethernet(A2.mac, A1.mac, 0x8100, &tagged))
    });
    Multicast at 1: a_multicast_packet = Guest(|_| (A1, packet(A1, (MULTICAST, [224, 0, 0, 251]))));
    Multicast at 1: a_broadcast_packet = Guest(|_| (A1, packet(A1, (BROADCAST, [10, 0, 1, 255]))));
    ArpUnknown at 1: a_question_for_nobody = Guest(|_| (A1, arp_request(A1.pair(), [10, 0, 1, 200])));
    ArpUnknown at 1: a_question_for_ones_own_address = Guest(|_| (A1, arp_request((A1.mac, [0; 4]), A1.ip)));
    ArpUnknown at 1: a_question_for_another_subnets_guest = Guest(|_| (A1, arp_request(A1.pair(), B1.ip)));
    ArpIgnored at 1: an_arp_reply_that_nobody_awaits = Guest(|_| {
        let message = Arp { operation: 2, sender: A1.pair(), target: A2.pair() };
        (A1, message.frame(A2.mac, A1.mac))
    });
    ArpIgnored at 1: an_announcement_of_ones_own_address = Guest(|_| (A1, arp_request(A1.pair(), A1.ip)));
    UnknownMac at 1: a_frame_for_nobody = Guest(|_| (A1, packet(A1, (mac(0x999), [10, 0, 1, 99]))));
    UnknownMac at 1: a_frame_for_another_subnets_guest = Guest(|_| (A1, packet(A1, B1.pair())));
    NoRoute at 1: a_destination_without_a_route = Guest(|_| (A1, routed(A1, [8, 8, 8, 8])));
    UnknownDestination at 1: a_routed_packet_for_nobody = Guest(|_| (A1, routed(A1, [10, 0, 2, 200])));
    UnknownDestination at 1: a_next_hop_that_is_nobody = Guest(|world| {
        world.add_route(SUBNET_A, [172, 16, 0, 0], 12, SUBNET_B.via([10, 0, 2, 200], [0; 6]));
        (A1, routed(A1, [172, 16, 1, 1]))
    });
    UnknownDestination at 1: a_routed_packet_for_a_neighbour_on_layer_2_only = Guest(|world| {
        world.change_endpoint(SUBNET_B.vni, RB.ip, |endpoint| endpoint.flags &= !ncm_common::tables::endpoint_flags::L3);
        (A1, routed(A1, RB.ip))
    });
    TtlExceeded at 1: a_ttl_that_ran_out_with_no_answer_left = Own(|world| {
        world.exhaust_limit(A1);
        let packet = Ip { ttl: 1, ..udp((A1.ip, 1), (B1.ip, 2), b"") };
        let seen = world.from_guest(A1, packet.frame(GATEWAY_A.0, A1.mac));
        seen.assert_counted(PathCounter::IcmpLimited);
        vec![seen]
    });
    TtlExceeded at 1: an_icmp_error_whose_ttl_ran_out = Own(|world| {
        // RFC 1122, section 3.2.2: no error is sent about an error.
        let error = icmp(A1.ip, B1.ip, 3, 1, [0; 4], &udp((B1.ip, 1), (A1.ip, 2), b"12345678").bytes());
        vec![world.from_guest(A1, Ip { ttl: 1, ..error }.frame(GATEWAY_A.0, A1.mac))]
    });
    GatewayUnserved at 1: a_gateway_runs_no_service = Guest(|_| (A1, routed(A1, GATEWAY_A.1)));
    GatewayUnserved at 1: another_subnets_gateway_runs_no_service = Guest(|_| {
        (A1, tcp((A1.ip, 1), (GATEWAY_B.1, 22), b"", false).frame(GATEWAY_A.0, A1.mac))
    });
    GatewayUnserved at 4: the_gateway_of_a_subnet_without_a_router_is_silent = Guest(|_| {
        use ncm_tests::packet::C1;
        (C1, echo_request(C1.ip, GATEWAY_A.1).frame(GATEWAY_A.0, C1.mac))
    });
    OtherSubnet at 1: a_frame_past_the_router_to_another_subnet_of_the_vni = Guest(|world| {
        world.add_prefix(SUBNET_A.vni, [10, 0, 3, 0], SUBNET_B.index);
        (A1, packet(A1, (A2.mac, [10, 0, 3, 5])))
    });
    Hairpin at 1: a_frame_for_the_guest_itself = Guest(|_| (A1, packet(A1, A1.pair())));
    Hairpin at 1: a_routed_packet_for_the_guest_itself = Guest(|_| (A1, routed(A1, A1.ip)));
    UnknownVtep at 0: a_tunnel_frame_from_a_host_that_nobody_knows = Tunnel(|_| {
        (100, UNKNOWN_HOST, inner().frame(A1.mac, RA.mac))
    });
    UnknownVtep at 0: a_tunnel_frame_from_a_host_of_another_tenant = Tunnel(|_| {
        (100, HOST_2, inner().frame(A1.mac, RA.mac))
    });
    WrongVtep at 1: a_tunnel_frame_from_a_host_that_does_not_hold_the_source = Tunnel(|world| {
        world.change_node(|node| node.flags |= node_flags::STRICT);
        let ip = std::net::Ipv4Addr::from(HOST_2).to_ipv6_mapped().octets();
        let key = VtepKey { vni: 100, ip };
        world.tables().vteps.put(&key, &Reference { index: 2, generation: 2 }).expect("room");
        (100, HOST_2, inner().frame(A1.mac, RA.mac))
    });
    TunnelSource at 1: a_tunnel_frame_from_a_local_guests_mac = Tunnel(|_| (100, HOST_1, inner().frame(A1.mac, A2.mac)));
    TunnelSource at 1: a_tunnel_frame_from_a_local_guests_address = Tunnel(|_| {
        (100, HOST_1, udp((A2.ip, 1), (A1.ip, 2), b"").frame(A1.mac, RA.mac))
    });
    TunnelSource at 1: a_tunnel_frame_from_the_gateways_mac = Tunnel(|_| {
        (100, HOST_1, inner().frame(A1.mac, GATEWAY_A.0))
    });
    TunnelSource at 1: a_tunnel_frame_from_the_gateways_address = Tunnel(|_| {
        (100, HOST_1, udp((GATEWAY_A.1, 1), (A1.ip, 2), b"").frame(A1.mac, RA.mac))
    });
    TunnelSource at 1: a_tunnel_frame_from_a_multicast_address = Tunnel(|_| {
        (100, HOST_1, udp(([224, 0, 0, 5], 1), (A1.ip, 2), b"").frame(A1.mac, RA.mac))
    });
    TunnelSource at 1: a_tunnel_frame_from_the_broadcast_address = Tunnel(|_| {
        (100, HOST_1, udp(([255; 4], 1), (A1.ip, 2), b"").frame(A1.mac, RA.mac))
    });
    TunnelSource at 0: a_tunnel_frame_from_a_multicast_mac = Tunnel(|_| (100, HOST_1, inner().frame(A1.mac, MULTICAST)));
    TunnelControl at 0: arp_does_not_cross_the_tunnel = Tunnel(|_| {
        let message = Arp { operation: 2, sender: RA.pair(), target: A1.pair() };
        (100, HOST_1, message.frame(A1.mac, RA.mac))
    });
    TunnelControl at 0: a_router_advertisement_does_not_cross_the_tunnel = Tunnel(|_| {
        (100, HOST_1, swap_bytes(icmpv6(A1.mac, 134), 6, &RA.mac))
    });
    TunnelControl at 0: neighbour_discovery_does_not_cross_the_tunnel = Tunnel(|_| {
        (100, HOST_1, swap_bytes(icmpv6(A1.mac, 135), 6, &RA.mac))
    });
    TunnelControl at 0: dhcp_does_not_cross_the_tunnel = Tunnel(|_| {
        (100, HOST_1, udp((RA.ip, 67), (A1.ip, 68), &[2; 240]).frame(A1.mac, RA.mac))
    });
    TunnelControl at 0: a_dhcp_request_does_not_cross_the_tunnel = Tunnel(|_| {
        (100, HOST_1, udp((RA.ip, 68), (A1.ip, 67), &[1; 240]).frame(A1.mac, RA.mac))
    });
    UnknownGuest at 0: a_tunnel_frame_for_nobody = Tunnel(|_| (100, HOST_1, inner().frame(mac(0x999), RA.mac)));
    UnknownGuest at 0: a_tunnel_frame_for_a_guest_of_another_host = Tunnel(|_| {
        (100, HOST_1, udp((RA.ip, 1), (RA.ip, 2), b"").frame(RA.mac, mac(0x1c)))
    });
    UnknownGuest at 0: a_tunnel_frame_to_all = Tunnel(|_| (100, HOST_1, inner().frame(BROADCAST, RA.mac)));
    TunnelMalformed at 0: an_inner_datagram_longer_than_its_packet = Tunnel(|_| {
        (100, HOST_1, swap_bytes(inner().frame(A1.mac, RA.mac), 38, &[0, 200]))
    });
    TunnelMalformed at 0: an_inner_packet_longer_than_its_frame = Tunnel(|_| {
        (100, HOST_1, swap_bytes(inner().frame(A1.mac, RA.mac), 16, &[0, 200]))
    });
    NextHopUnresolved at 1: a_host_without_a_resolved_next_hop_or_route = Own(|world| {
        world.change_group(1, |group| group.halves[0].count = 0);
        world.change_host(1, |host| host.halves[0].headers[16..20].copy_from_slice(&[198, 51, 100, 1]));
        vec![world.from_guest(A1, packet(A1, RA.pair()))]
    });
    StaleIndex at 1: an_endpoint_whose_port_index_was_given_away = Guest(|world| {
        world.change_port(A2, |port| port.generation += 1);
        (A1, packet(A1, A2.pair()))
    });
    StaleIndex at 1: an_endpoint_whose_host_index_was_given_away = Guest(|world| {
        world.change_host(1, |host| host.generation += 1);
        (A1, packet(A1, RA.pair()))
    });
    StaleIndex at 1: a_route_whose_subnet_index_was_given_away = Guest(|world| {
        world.change_subnet(SUBNET_B, |subnet| subnet.generation += 1);
        (A1, routed(A1, B1.ip))
    });
    RewriteFailed at 1: a_packet_that_the_kernel_refuses_to_encapsulate = Own(|world| {
        // Segments of a protocol that it does not know.
        let frame = tcp((A1.ip, 1), (RA.ip, 2), &[0; 3000], true).frame(RA.mac, A1.mac);
        let run = TestRun { gso_size: 1000, ..TestRun::new(frame, world.ifindex(A1.interface)) };
        vec![world.run(Hook::GuestTc, run)]
    });
    TooBig at 1: a_packet_that_does_not_fit_the_path_with_no_answer_left = Own(|world| {
        world.exhaust_limit(A1);
        let seen = world.from_guest(A1, udp((A1.ip, 1), (RA.ip, 2), &[0; 1450]).frame(RA.mac, A1.mac));
        seen.assert_counted(PathCounter::IcmpLimited);
        vec![seen]
    });
    NoDevice at 1: a_guests_device_that_has_just_gone = Own(|world| {
        world.tables().devices.delete(&world.ifindex("a1")).expect("deleted");
        let frame = tunnel(&Outer::new(HOST_1, HERE, 100), &inner().frame(A1.mac, RA.mac));
        vec![world.from_wire(Hook::WireXdp, frame)]
    });
    TunnelEthertype at 0: an_ethertype_that_guests_are_not_given = Tunnel(|_| {
        (100, HOST_1, ethernet(A1.mac, RA.mac, 0x88b5, &[0; 46]))
    });
    DhcpUnanswered at 1: a_dhcp_request_from_another_port_than_a_clients = Guest(|_| {
        (A1, udp(([0; 4], 1068), ([255; 4], 67), &[1; 240]).frame(BROADCAST, A1.mac))
    });
    DhcpUnanswered at 1: a_dhcpv6_request_from_another_port_than_a_clients = Guest(|_| {
        (A1, udp6((A1.ip_v6(), 1546), (ALL_DHCP, 547), &[1; 40]).frame([0x33, 0x33, 0, 1, 0, 2], A1.mac))
    });
    HandUpUnavailable at 1: a_dhcp_request_while_there_is_no_way_to_the_agent = Own(|world| {
        world.change_node(|node| node.hand_up_ifindex = 0);
        vec![world.from_guest(A1, udp(([0; 4], 68), ([255; 4], 67), &[1; 240]).frame(BROADCAST, A1.mac))]
    });
    HandUpUnavailable at 1: a_dhcp_request_while_no_agent_runs = Own(|world| {
        world.beat(10);
        let frame = udp(([0; 4], 68), ([255; 4], 67), &[1; 240]).frame(BROADCAST, A1.mac);
        vec![world.run_as_it_is(Hook::GuestTc, TestRun::new(frame, world.ifindex(A1.interface)))]
    });
    HandUpLimited at 1: a_router_solicitation_beyond_the_ports_share = Own(|world| {
        world.exhaust_limit(A1);
        let packet = icmp6(link_local(A1.mac), ALL_ROUTERS, 133, 0, [0; 4], b"");
        let frame = Ip6 { hop_limit: 255, ..packet }.frame([0x33, 0x33, 0, 0, 0, 2], A1.mac);
        vec![world.from_guest(A1, frame)]
    });
    AskLimited at 1: a_request_beyond_the_ports_share = Own(|world| {
        world.change_port(A1, |port| (port.ask_interval, port.asks_at_once) = (1_000_000, 10));
        world.exhaust_limit(A1);
        vec![world.from_guest(A1, arp_request(A1.pair(), [10, 0, 1, 99]))]
    });
    AskUnresolved at 1: what_was_held_and_is_unknown_all_the_same = Own(|world| {
        world.change_port(A1, |port| (port.ask_interval, port.asks_at_once) = (1_000_000, 10));
        let frame = arp_request(A1.pair(), [10, 0, 1, 99]);
        let mark = marks::mark(marks::RELEASE, A1.port);
        vec![world.run(Hook::GuestTc, TestRun { mark, ..TestRun::new(frame, world.ifindex(A1.interface)) })]
    });
    AskFull at 1: what_finds_no_room_to_be_held = Own(|world| vec![ended(world, DropReason::AskFull)]);
    AskRefused at 1: what_upstream_does_not_know = Own(|world| vec![ended(world, DropReason::AskRefused)]);
    AskUnanswered at 1: what_upstream_does_not_answer = Own(|world| vec![ended(world, DropReason::AskUnanswered)]);
    PolicyEgress at 1: what_no_rule_lets_out = Guest(|world| {
        world.change_port(A1, |port| port.set = 1);
        (A1, packet(A1, RA.pair()))
    });
    PolicyEgress at 1: what_no_rule_lets_out_over_ipv6 = Guest(|world| {
        world.change_port(A1, |port| port.set = 1);
        (A1, udp6((A1.ip_v6(), 1), (RA.ip_v6(), 2), b"payload").frame(RA.mac, A1.mac))
    });
    PolicyIngress at 2: what_no_rule_of_a_local_receiver_lets_in = Guest(|world| {
        world.change_port(A2, |port| port.set = 1);
        (A1, packet(A1, A2.pair()))
    });
    PolicyIngress at 1: what_no_rule_lets_in_from_the_tunnel = Tunnel(|world| {
        world.change_port(A1, |port| port.set = 1);
        (100, HOST_1, inner().frame(A1.mac, RA.mac))
    });
    FragmentUnknown at 1: a_later_fragment_that_comes_first = Guest(|_| {
        let packet = Ip { fragment: 8, payload: vec![9; 32], ..udp((A1.ip, 1), (RA.ip, 2), b"") };
        (A1, packet.frame(RA.mac, A1.mac))
    });
    FragmentUnknown at 1: a_later_fragment_over_ipv6_that_comes_first = Guest(|_| {
        let packet = udp6((A1.ip_v6(), 1), (RA.ip_v6(), 2), b"12345678");
        (A1, packet.behind(44, fragment_header(64, false, 7)).frame(RA.mac, A1.mac))
    });
    FragmentUnknown at 1: a_later_fragment_from_the_tunnel_that_comes_first = Tunnel(|_| {
        (100, HOST_1, Ip { fragment: 8, payload: vec![9; 32], ..inner() }.frame(A1.mac, RA.mac))
    });
    FragmentTiny at 1: a_later_fragment_that_overlaps_the_tcp_header = Guest(|_| {
        let packet = Ip { fragment: 1, payload: vec![9; 32], ..tcp((A1.ip, 1), (RA.ip, 2), b"", false) };
        (A1, packet.frame(RA.mac, A1.mac))
    });
    FragmentTiny at 1: a_first_fragment_of_tcp_over_ipv6_without_its_flags = Guest(|_| {
        let packet = tcp6((A1.ip_v6(), 1), (RA.ip_v6(), 2), 2, b"");
        let cut = Ip6 { payload: packet.payload[..8].to_vec(), ..packet };
        (A1, cut.behind(44, fragment_header(0, true, 7)).frame(RA.mac, A1.mac))
    });
    SpoofedIp at 1: another_ipv6_source_address = Guest(|_| {
        (A1, udp6((A2.ip_v6(), 1), (RA.ip_v6(), 2), b"").frame(RA.mac, A1.mac))
    });
    SpoofedNd at 1: a_solicitation_from_a_neighbours_address = Guest(|_| {
        (A1, solicitation((A1.mac, A2.ip_v6()), SUBNET_A.gateway_v6().1))
    });
    SpoofedNd at 1: a_solicitation_with_a_neighbours_mac = Guest(|_| {
        let mut frame = solicitation(A1.pair_v6(), SUBNET_A.gateway_v6().1);
        let at = frame.len() - 6;
        frame[at..].copy_from_slice(&A2.mac);
        (A1, frame)
    });
    SpoofedNd at 1: an_advertisement_that_claims_the_gateway = Guest(|_| {
        let gateway = SUBNET_A.gateway_v6().1;
        let packet = icmp6(A1.ip_v6(), A2.ip_v6(), 136, 0, [0x20, 0, 0, 0], &gateway);
        (A1, Ip6 { hop_limit: 255, ..packet }.frame(A2.mac, A1.mac))
    });
    NdUnknown at 1: a_solicitation_for_nobody = Guest(|_| {
        (A1, solicitation(A1.pair_v6(), [0xfd, 10, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 200]))
    });
    NdUnknown at 1: a_probe_for_ones_own_address = Guest(|_| (A1, solicitation((A1.mac, [0; 16]), A1.ip_v6())));
    NdUnknown at 1: a_probe_for_ones_own_link_local_address = Guest(|_| {
        (A1, solicitation((A1.mac, [0; 16]), link_local(A1.mac)))
    });
    NdUnknown at 1: a_solicitation_for_another_subnets_guest = Guest(|_| (A1, solicitation(A1.pair_v6(), B1.ip_v6())));
    NdIgnored at 1: an_advertisement_of_ones_own_address = Guest(|_| {
        let packet = icmp6(A1.ip_v6(), ALL_NODES, 136, 0, [0x20, 0, 0, 0], &A1.ip_v6());
        (A1, Ip6 { hop_limit: 255, ..packet }.frame([0x33, 0x33, 0, 0, 0, 1], A1.mac))
    });
    Malformed at 1: a_solicitation_that_was_routed = Guest(|_| {
        (A1, swap_bytes(solicitation(A1.pair_v6(), SUBNET_A.gateway_v6().1), 21, &[64]))
    });
    Multicast at 1: a_listener_report = Guest(|_| {
        let report = icmp6([0; 16], ALL_MLD, 143, 0, [0, 0, 0, 1], &[4, 0, 0, 0]);
        let packet = Ip6 { hop_limit: 1, ..report }.behind(0, vec![0, 0, 5, 2, 0, 0, 1, 0]);
        (A1, packet.frame([0x33, 0x33, 0, 0, 0, 0x16], A1.mac))
    });
    Multicast at 1: a_multicast_packet_over_ipv6 = Guest(|_| {
        (A1, udp6((link_local(A1.mac), 5353), ([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb], 5353), b"")
            .frame([0x33, 0x33, 0, 0, 0, 0xfb], A1.mac))
    });
    RogueDhcpServer at 1: a_dhcpv6_advertisement = Guest(|_| {
        (A1, udp6((link_local(A1.mac), 547), (link_local(A2.mac), 546), &[2; 40]).frame(A2.mac, A1.mac))
    });
    RogueRouter at 1: a_router_advertisement_behind_extension_headers = Guest(|_| {
        let packet = icmp6(link_local(A1.mac), ALL_NODES, 134, 0, [0; 4], &[0; 8])
            .behind(0, vec![0, 0, 1, 4, 0, 0, 0, 0])
            .behind(60, vec![0, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        (A1, packet.frame([0x33, 0x33, 0, 0, 0, 1], A1.mac))
    });
    ExtensionHeader at 1: a_source_route = Guest(|_| {
        let packet = udp6((A1.ip_v6(), 1), (RA.ip_v6(), 2), b"");
        (A1, packet.behind(43, vec![0, 0, 0, 0, 0, 0, 0, 0]).frame(RA.mac, A1.mac))
    });
    ExtensionHeader at 1: a_routing_header_that_leads_on = Guest(|_| {
        let packet = udp6((A1.ip_v6(), 1), (RA.ip_v6(), 2), b"");
        (A1, packet.behind(43, vec![0, 0, 4, 1, 0, 0, 0, 0]).frame(RA.mac, A1.mac))
    });
    ExtensionHeader at 1: too_many_extension_headers = Guest(|_| {
        let mut packet = udp6((A1.ip_v6(), 1), (RA.ip_v6(), 2), b"");
        for _ in 0..7 {
            packet = packet.behind(60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
        }
        (A1, packet.frame(RA.mac, A1.mac))
    });
    LinkLocal at 1: anothers_link_local_address = Guest(|_| {
        (A1, udp6((link_local(A2.mac), 1), (link_local(RA.mac), 2), b"").frame(RA.mac, A1.mac))
    });
    LinkLocal at 1: anothers_link_local_address_from_the_tunnel = Tunnel(|_| {
        (100, HOST_1, udp6((link_local(A2.mac), 1), (link_local(A1.mac), 2), b"").frame(A1.mac, RA.mac))
    });
    TunnelControl at 0: dhcpv6_does_not_cross_the_tunnel = Tunnel(|_| {
        (100, HOST_1, udp6((link_local(RA.mac), 547), (link_local(A1.mac), 546), &[2; 40]).frame(A1.mac, RA.mac))
    });
    TunnelSource at 1: a_tunnel_frame_from_a_local_guests_ipv6_address = Tunnel(|_| {
        (100, HOST_1, udp6((A2.ip_v6(), 1), (A1.ip_v6(), 2), b"").frame(A1.mac, RA.mac))
    });
    GatewayUnserved at 1: a_gateway_runs_no_service_over_ipv6 = Guest(|_| {
        let (mac, ip) = SUBNET_A.gateway_v6();
        (A1, tcp6((A1.ip_v6(), 1), (ip, 22), 2, b"").frame(mac, A1.mac))
    });
    NoRoute at 1: a_link_local_address_is_not_routed = Guest(|_| {
        let (mac, _) = SUBNET_A.gateway_v6();
        (A1, udp6((A1.ip_v6(), 1), (link_local(RB.mac), 2), b"").frame(mac, A1.mac))
    });
}

#[test]
fn a_subnet_that_was_given_away_lets_nothing_out() {
    let world = World::new();
    world.change_subnet(SUBNET_A, |subnet| *subnet = Subnet { generation: 9, ..*subnet });
    let seen = world.from_guest(A1, routed(A1, B1.ip));
    seen.assert_dropped(DropReason::StaleIndex, A1.port);
}

#[test]
fn a_subnet_outside_any_router_does_not_route() {
    let world = World::new();
    world.change_subnet(SUBNET_A, |subnet| subnet.flags &= !subnet_flags::ROUTED);
    let seen = world.from_guest(A1, routed(A1, B1.ip));
    assert_eq!(seen.verdict, ncm_tests::packet::Verdict::Dropped, "{seen}");
    let reason = seen.drops[0].0;
    assert!(matches!(reason, DropReason::NoRoute | DropReason::GatewayUnserved), "{seen}");
}
