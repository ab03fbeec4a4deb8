//! Every length and every offset of every header, one byte (or one unit) short: in packets whose outer lengths fit what is left, so
//! that nothing but the header in question is wrong. None is answered, handed up or forwarded for what it is no more.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason::{
    self, ExtensionHeader, FragmentTiny, Malformed, PolicyIngress, TunnelMalformed,
};
use ncm_common::tables::{Rule, RuleKey, set_direction};
use ncm_dataplane::Hook;
use ncm_tests::packet::{
    A1, A2, GATEWAY_A, HERE, HERE_V6, HOST_1, HOST_1_V6, Ip, Ip6, Outer, OuterV6, RA, SUBNET_A, Seen,
    Verdict, World, arp_request, echo_request, fragment_header, icmp, icmp6, link_local, solicitation,
    swap_bytes, tcp, tcp6, tunnel, tunnel_v6, udp, udp6,
};

const GUEST: [Hook; 2] = [Hook::GuestTc, Hook::GuestXdp];

/// Where the transport header of a frame without options or extension headers is.
const V4: usize = 34;
const V6: usize = 54;

/// The first `len` bytes of a frame, with the length in its IP header.
fn cut(frame: &[u8], len: usize) -> Vec<u8> {
    let mut frame = frame[..len].to_vec();
    if frame[12..14] == [8, 0] {
        let total = u16::try_from(len - 14).expect("a packet's length").to_be_bytes();
        frame[16..18].copy_from_slice(&total);
    } else {
        let payload = u16::try_from(len - 54).expect("a packet's length").to_be_bytes();
        frame[18..20].copy_from_slice(&payload);
    }
    frame
}

/// Asserts that a frame from A1 is dropped for that reason, at both hooks.
#[track_caller]
fn assert_refused(world: &World, what: &str, frame: &[u8], reason: DropReason) {
    for hook in GUEST {
        let seen = world.from_guest_at(hook, A1, frame.to_vec());
        assert_eq!(seen.verdict, Verdict::Dropped, "{what}\n{seen}");
        assert_eq!(seen.drops, [(reason, 1)], "{what}: expected {}\n{seen}", reason.name());
        assert_eq!(seen.port_drops, [(A1.port, reason)], "{what}\n{seen}");
        assert!(seen.received.is_empty(), "{what}\n{seen}");
    }
}

/// Asserts that the frame as it is has that outcome, so that what is asserted of its parts says something.
#[track_caller]
fn assert_of_use(world: &World, what: &str, frame: &[u8], counter: PathCounter) {
    let seen = world.from_guest(A1, frame.to_vec());
    assert_eq!(seen.verdict, Verdict::Redirected, "{what}\n{seen}");
    assert!(seen.counters.contains(&(counter, 1)), "{what}: expected {}\n{seen}", counter.name());
}

/// A DHCP and a DHCPv6 message, and a router solicitation.
fn questions() -> [(&'static str, Vec<u8>, usize); 3] {
    let servers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let own = link_local(A1.mac);
    let dhcp = udp(([0; 4], 68), ([255; 4], 67), &[1; 244]).frame([0xff; 6], A1.mac);
    let dhcpv6 = udp6((own, 546), (servers, 547), &[1; 40]).frame([0x33, 0x33, 0, 1, 0, 2], A1.mac);
    let option = [&[1, 1][..], &A1.mac].concat();
    let asks = Ip6 { hop_limit: 255, ..icmp6(own, routers, 133, 0, [0; 4], &option) };
    [
        ("DHCP", dhcp, V4 + 252),
        ("DHCPv6", dhcpv6, V6 + 48),
        // Its options are the agent's to read.
        ("a router solicitation", asks.frame([0x33, 0x33, 0, 0, 0, 2], A1.mac), V6 + 8),
    ]
}

#[test]
fn questions_to_the_agent_that_are_cut_are_not_handed_up() {
    for (name, frame, whole) in questions() {
        let world = World::new();
        assert_of_use(&world, name, &frame, PathCounter::HandedUp);
        let header = if frame[12..14] == [8, 0] { V4 } else { V6 };
        for len in header..whole {
            assert_refused(&world, &format!("{name} cut to {len}"), &cut(&frame, len), Malformed);
        }
        // UDP's own length, less than its header and more than there is.
        if name != "a router solicitation" {
            for length in [7, u16::try_from(whole - header + 1).expect("a length")] {
                let frame = swap_bytes(frame.clone(), header + 4, &length.to_be_bytes());
                assert_refused(&world, &format!("{name}: UDP's length is {length}"), &frame, Malformed);
            }
        }
        assert_of_use(&world, name, &frame, PathCounter::HandedUp);
    }
}

/// A neighbour advertisement of A1's own address.
fn advertisement() -> Vec<u8> {
    let body = [&A1.ip_v6()[..], &[2, 1], &A1.mac].concat();
    let packet = icmp6(A1.ip_v6(), A2.ip_v6(), 136, 0, [0x60, 0, 0, 0], &body);
    Ip6 { hop_limit: 255, ..packet }.frame(A2.mac, A1.mac)
}

#[test]
fn neighbour_discovery_that_is_cut_is_not_answered() {
    let world = World::new();
    let asks = solicitation(A1.pair_v6(), SUBNET_A.gateway_v6().1);
    assert_of_use(&world, "a solicitation", &asks, PathCounter::NdAnswered);
    assert_of_use(&world, "one without an option", &cut(&asks, V6 + 24), PathCounter::NdAnswered);
    world.from_guest(A1, advertisement()).assert_dropped(DropReason::NdIgnored, A1.port);
    for (name, frame) in [("a solicitation", asks), ("an advertisement", advertisement())] {
        for len in (V6..V6 + 24).chain(V6 + 25..V6 + 32) {
            assert_refused(&world, &format!("{name} cut to {len}"), &cut(&frame, len), Malformed);
        }
        // An option that has no length, and one that goes on behind the message's end.
        for length in [0, 2, 255] {
            let frame = swap_bytes(frame.clone(), V6 + 25, &[length]);
            assert_refused(&world, &format!("{name}: its option's length is {length}"), &frame, Malformed);
        }
    }
    // As a frame with more behind the packet.
    let asks = solicitation(A1.pair_v6(), SUBNET_A.gateway_v6().1);
    let padded = swap_bytes(asks, 18, &31_u16.to_be_bytes());
    assert_refused(&world, "a solicitation with its last byte behind its end", &padded, Malformed);
    // ARP has no length of its own.
    let asks = arp_request(A1.pair(), GATEWAY_A.1);
    for len in 34..42 {
        assert_refused(&world, &format!("ARP cut to {len}"), &asks[..len], Malformed);
    }
    for (at, byte) in [(18, 5), (19, 3)] {
        let asks = swap_bytes(asks.clone(), at, &[byte]);
        assert_refused(&world, &format!("ARP: a length of addresses is {byte}"), &asks, Malformed);
    }
}

#[test]
fn transport_headers_that_are_cut_go_nowhere() {
    let world = World::new();
    let (a1, ra) = (A1.ip_v6(), RA.ip_v6());
    let gateway = SUBNET_A.gateway_v6();
    for (name, frame, header, counter) in [
        ("udp", udp((A1.ip, 1), (RA.ip, 2), b"").frame(RA.mac, A1.mac), 8, PathCounter::Encapsulated),
        ("udp6", udp6((a1, 1), (ra, 2), b"").frame(RA.mac, A1.mac), 8, PathCounter::Encapsulated),
        ("tcp", tcp((A1.ip, 1), (RA.ip, 2), b"", false).frame(RA.mac, A1.mac), 20, PathCounter::Encapsulated),
        ("tcp6", tcp6((a1, 1), (ra, 2), 2, b"").frame(RA.mac, A1.mac), 20, PathCounter::Encapsulated),
        ("icmp", icmp(A1.ip, RA.ip, 8, 0, [0; 4], b"").frame(RA.mac, A1.mac), 8, PathCounter::Encapsulated),
        ("icmp6", icmp6(a1, ra, 128, 0, [0; 4], b"").frame(RA.mac, A1.mac), 8, PathCounter::Encapsulated),
        ("ping", echo_request(A1.ip, GATEWAY_A.1).frame(GATEWAY_A.0, A1.mac), 8, PathCounter::EchoAnswered),
        (
            "ping6",
            icmp6(a1, gateway.1, 128, 0, [0; 4], b"").frame(gateway.0, A1.mac),
            8,
            PathCounter::EchoAnswered,
        ),
    ] {
        assert_of_use(&world, name, &frame, counter);
        let at = if frame[12..14] == [8, 0] { V4 } else { V6 };
        for len in at..at + header {
            assert_refused(&world, &format!("{name} cut to {len}"), &cut(&frame, len), Malformed);
            // What stands behind the packet's end does not count.
            let mut padded = frame.clone();
            padded[..at].copy_from_slice(&cut(&frame, len)[..at]);
            assert_refused(&world, &format!("{name} of {len} bytes, padded"), &padded, Malformed);
        }
        if name.starts_with("tcp") {
            for offset in [0x40, 0x60, 0xf0] {
                let frame = swap_bytes(frame.clone(), at + 12, &[offset]);
                assert_refused(&world, &format!("{name}: data offset {offset:#x}"), &frame, Malformed);
            }
        }
    }
    // IPv4's header: less than the least, and beyond the packet's end.
    let frame = udp((A1.ip, 1), (RA.ip, 2), b"").frame(RA.mac, A1.mac);
    for first in [0x44, 0x48, 0x4f] {
        let frame = swap_bytes(frame.clone(), 14, &[first]);
        assert_refused(&world, &format!("IPv4 begins with {first:#x}"), &frame, Malformed);
    }
    assert_refused(&world, "a total length of 19", &swap_bytes(frame, 16, &[0, 19]), Malformed);
}

#[test]
fn extension_headers_that_are_cut_go_nowhere() {
    let world = World::new();
    let said = || udp6((A1.ip_v6(), 1000), (RA.ip_v6(), 2000), b"");
    let options = || vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (name, number, header) in [
        ("hop-by-hop", 0, options()),
        ("destination", 60, options()),
        ("routing", 43, vec![0, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("fragment", 44, fragment_header(0, false, 7)),
    ] {
        let size = header.len();
        let frame = said().behind(number, header).frame(RA.mac, A1.mac);
        assert_of_use(&world, name, &frame, PathCounter::Encapsulated);
        for len in V6..V6 + size + 8 {
            assert_refused(&world, &format!("{name} cut to {len}"), &cut(&frame, len), Malformed);
        }
        if number != 44 {
            // It ends one unit behind the packet, and far behind it.
            for units in [u8::try_from(size / 8 + 1).expect("small"), 255] {
                let frame = swap_bytes(frame.clone(), V6 + 1, &[units]);
                assert_refused(&world, &format!("{name}: {units} units"), &frame, Malformed);
            }
            // One unit less, and what it says itself is read as the transport header: too long for what there is.
            let mut frame = swap_bytes(frame.clone(), V6 + 1, &[0]);
            frame[V6 + 8 + 4] = 1;
            assert_refused(&world, &format!("{name}: a unit less"), &frame, Malformed);
        }
    }
    // The last of several, each cut to nothing.
    let three = said().behind(0, options()).behind(60, options()).behind(43, vec![0, 0, 4, 0, 0, 0, 0, 0]);
    let frame = three.frame(RA.mac, A1.mac);
    assert_of_use(&world, "three", &frame, PathCounter::Encapsulated);
    for len in V6..V6 + 48 {
        assert_refused(&world, &format!("three cut to {len}"), &cut(&frame, len), Malformed);
    }
    // One segment left is one too many.
    let routing =
        said().behind(43, vec![0, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_refused(&world, "segments left", &routing.frame(RA.mac, A1.mac), ExtensionHeader);
}

#[test]
fn first_fragments_that_are_cut_go_nowhere() {
    let world = World::new();
    let with_options = |mut packet: Ip| {
        packet.payload[12] = 0x60;
        packet.payload.extend([1; 4]);
        packet
    };
    let more = |packet: Ip| Ip { fragment: 0x2000, ..packet };
    for (name, packet, header) in [
        ("udp", udp((A1.ip, 1), (RA.ip, 2), b""), 8),
        ("tcp", tcp((A1.ip, 1), (RA.ip, 2), b"", false), 20),
        ("tcp with options", with_options(tcp((A1.ip, 1), (RA.ip, 2), b"", false)), 24),
        ("icmp", icmp(A1.ip, RA.ip, 8, 0, [0; 4], b""), 8),
    ] {
        let frame = more(packet).frame(RA.mac, A1.mac);
        assert_of_use(&world, name, &frame, PathCounter::Encapsulated);
        for len in V4..V4 + header {
            assert_refused(&world, &format!("{name} cut to {len}"), &cut(&frame, len), FragmentTiny);
        }
    }
    let (a1, ra) = (A1.ip_v6(), RA.ip_v6());
    for (name, packet, header) in [
        ("udp6", udp6((a1, 1), (ra, 2), b""), 8),
        ("tcp6", tcp6((a1, 1), (ra, 2), 2, b""), 20),
        ("icmp6", icmp6(a1, ra, 128, 0, [0; 4], b""), 8),
    ] {
        let frame = packet.clone().behind(44, fragment_header(0, true, 7)).frame(RA.mac, A1.mac);
        assert_of_use(&world, name, &frame, PathCounter::Encapsulated);
        for len in V6 + 8..V6 + 8 + header {
            assert_refused(&world, &format!("{name} cut to {len}"), &cut(&frame, len), FragmentTiny);
        }
        for len in V6..V6 + 8 {
            assert_refused(&world, &format!("{name} cut to {len}"), &cut(&frame, len), Malformed);
        }
        // Options behind the fragment header belong to what has to be in the first one.
        let frame = packet.behind(44, fragment_header(0, true, 7)).behind(60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
        let frame = frame.frame(RA.mac, A1.mac);
        assert_of_use(&world, name, &frame, PathCounter::Encapsulated);
        for len in V6 + 8..V6 + 16 + header {
            let what = format!("{name} behind options cut to {len}");
            assert_refused(&world, &what, &cut(&frame, len), FragmentTiny);
        }
    }
}

#[test]
fn later_fragments_one_unit_too_early_go_nowhere() {
    let world = World::new();
    let packet = || tcp((A1.ip, 1), (RA.ip, 2), &[1; 28], false);
    let mut first = Ip { fragment: 0x2000, ..packet() };
    // A header of 32 bytes.
    first.payload[12] = 0x80;
    world.from_guest(A1, first.frame(RA.mac, A1.mac)).assert_encapsulated();
    let later = |offset: u16| Ip { fragment: offset / 8, ..packet() }.frame(RA.mac, A1.mac);
    for offset in [8, 16, 24] {
        assert_refused(&world, &format!("at {offset}"), &later(offset), FragmentTiny);
    }
    world.from_guest(A1, later(32)).assert_encapsulated();
    let (a1, ra) = (A1.ip_v6(), RA.ip_v6());
    let first = tcp6((a1, 1), (ra, 2), 2, &[1; 20])
        .behind(44, fragment_header(0, true, 7))
        .behind(60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    world.from_guest(A1, first.frame(RA.mac, A1.mac)).assert_encapsulated();
    let later = |offset| {
        Ip6::new(a1, ra, 60, vec![9; 32], None)
            .behind(44, fragment_header(offset, false, 7))
            .frame(RA.mac, A1.mac)
    };
    // Options of 8 bytes and a header of 20.
    for offset in [8, 16, 24] {
        assert_refused(&world, &format!("at {offset}"), &later(offset), FragmentTiny);
    }
    world.from_guest(A1, later(32)).assert_encapsulated();
}

/// A world in which A1 may send UDP and echo requests, and be sent nothing.
fn under_policy() -> World {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    for (family, protocol) in [(4, 17), (6, 17), (4, 1), (6, 58)] {
        let set = set_direction(1, false);
        let key = RuleKey { prefix_len: 80, set, class: 0, family, protocol, port: [0; 2] };
        world.tables().rules.put(&key, &Rule { rules: 1 }).expect("room");
    }
    world.raise();
    world
}

/// An error about something that A1 has said, at RA: out of the tunnel.
fn error(world: &World, v6: bool, quote: &[u8]) -> Seen {
    let frame = if v6 {
        icmp6(RA.ip_v6(), A1.ip_v6(), 1, 4, [0; 4], quote).frame(A1.mac, RA.mac)
    } else {
        icmp(RA.ip, A1.ip, 3, 3, [0; 4], quote).frame(A1.mac, RA.mac)
    };
    world.from_relay(SUBNET_A.vni, HOST_1, frame)
}

#[test]
fn errors_whose_quotes_are_cut_are_about_nothing() {
    let world = under_policy();
    let (a1, ra) = (A1.ip_v6(), RA.ip_v6());
    let options =
        Ip { options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..udp((A1.ip, 1001), (RA.ip, 53), b"question") };
    // Each, and how much of it names its flow.
    let said: [(bool, Vec<u8>, Vec<u8>, usize); 6] = [
        {
            let packet = udp((A1.ip, 1000), (RA.ip, 53), b"question");
            (false, packet.frame(RA.mac, A1.mac), packet.bytes(), 24)
        },
        (false, options.frame(RA.mac, A1.mac), options.bytes(), 32),
        {
            let packet = echo_request(A1.ip, RA.ip);
            (false, packet.frame(RA.mac, A1.mac), packet.bytes(), 28)
        },
        {
            let packet = udp6((a1, 1000), (ra, 53), b"question");
            (true, packet.frame(RA.mac, A1.mac), packet.bytes(), 44)
        },
        {
            let packet = udp6((a1, 1001), (ra, 53), b"question").behind(60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
            (true, packet.frame(RA.mac, A1.mac), packet.bytes(), 52)
        },
        {
            let packet = icmp6(a1, ra, 128, 0, [1, 2, 0, 1], b"data");
            (true, packet.frame(RA.mac, A1.mac), packet.bytes(), 48)
        },
    ];
    for (v6, frame, quote, least) in said {
        world.from_guest(A1, frame).assert_encapsulated();
        let seen = error(&world, v6, &quote[..least]);
        seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        seen.assert_counted(PathCounter::ErrorRelated);
        for len in 0..least {
            error(&world, v6, &quote[..len]).assert_dropped(PolicyIngress, A1.port);
            // The rest stands behind the packet's end in its frame.
            let header = if v6 { V6 } else { V4 };
            let whole = if v6 {
                icmp6(RA.ip_v6(), A1.ip_v6(), 1, 4, [0; 4], &quote).frame(A1.mac, RA.mac)
            } else {
                icmp(RA.ip, A1.ip, 3, 3, [0; 4], &quote).frame(A1.mac, RA.mac)
            };
            let mut padded = whole.clone();
            padded[..header].copy_from_slice(&cut(&whole, header + 8 + len)[..header]);
            let seen = world.from_relay(SUBNET_A.vni, HOST_1, padded);
            seen.assert_dropped(PolicyIngress, A1.port);
        }
        // Another version, and for IPv4 a header that ends elsewhere.
        let first = quote[0];
        let wrong = if v6 { vec![first ^ 0x20] } else { vec![first ^ 0x20, first - 1, first + 1] };
        for first in wrong {
            let seen = error(&world, v6, &swap_bytes(quote.clone(), 0, &[first]));
            assert_eq!(seen.drops, [(PolicyIngress, 1)], "begins with {first:#x}\n{seen}");
        }
    }
}

#[test]
fn tunnel_frames_with_a_length_too_short_or_too_long_by_one_are_not_delivered_as_they_are() {
    let world = World::new();
    let inner = udp((RA.ip, 1), (A1.ip, 2), b"data").frame(A1.mac, RA.mac);
    let v4 = tunnel(&Outer::new(HOST_1, HERE, SUBNET_A.vni), &inner);
    let v6 = tunnel_v6(&OuterV6::new(HOST_1_V6, HERE_V6, SUBNET_A.vni), &inner);
    for (name, frame, lengths) in
        [("over IPv4", v4, [(16, "IP"), (38, "UDP")]), ("over IPv6", v6, [(18, "IP"), (58, "UDP")])]
    {
        let seen = world.from_wire(Hook::WireXdp, frame.clone());
        seen.assert_delivered(A1.port, PathCounter::DecapsulatedXdp);
        for (at, of) in lengths {
            let length = u16::from_be_bytes([frame[at], frame[at + 1]]);
            for wrong in [length - 1, length + 1, 0, 7, 8, u16::MAX] {
                let frame = swap_bytes(frame.clone(), at, &wrong.to_be_bytes());
                let seen = world.from_wire(Hook::WireXdp, frame);
                assert_eq!(seen.drops, [(TunnelMalformed, 1)], "{name}: {of}'s length is {wrong}\n{seen}");
                assert!(seen.received.is_empty(), "{name}: {of}'s length is {wrong}\n{seen}");
            }
        }
        // Both agree on less than there is: the kernel cuts the rest off, and what is left is judged then.
        let mut shorter = frame;
        for (at, _) in lengths {
            shorter[at + 1] -= 1;
        }
        let seen = world.from_wire(Hook::WireXdp, shorter);
        seen.assert_counted(PathCounter::Relayed);
        assert!(seen.received.is_empty(), "{name}\n{seen}");
    }
    // The lengths of what is in the tunnel.
    for (name, at, wrong) in [
        ("IP one longer than the frame", 16, &[0, 33][..]),
        ("IP one shorter than UDP", 16, &[0, 31]),
        ("IP shorter than its header", 16, &[0, 19]),
        ("IP's header", 14, &[0x44]),
        ("UDP one longer than IP", 38, &[0, 13]),
        ("UDP shorter than its header", 38, &[0, 7]),
    ] {
        let inner = swap_bytes(inner.clone(), at, wrong);
        let seen = world.from_relay(SUBNET_A.vni, HOST_1, inner.clone());
        assert_eq!(seen.drops, [(TunnelMalformed, 1)], "{name}\n{seen}");
        for frame in [
            tunnel(&Outer::new(HOST_1, HERE, SUBNET_A.vni), &inner),
            tunnel_v6(&OuterV6::new(HOST_1_V6, HERE_V6, SUBNET_A.vni), &inner),
        ] {
            let seen = world.from_wire(Hook::WireXdp, frame);
            assert_eq!(seen.drops, [(TunnelMalformed, 1)], "{name}\n{seen}");
        }
    }
}
