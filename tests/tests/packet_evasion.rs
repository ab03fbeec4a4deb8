//! What a packet is wrapped in changes nothing about what policy says to it: fragments, options, extension headers, VLAN tags.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{Rule, RuleKey, set_direction};
use ncm_dataplane::Hook;
use ncm_tests::packet::{
    A1, A2, Guest, HERE, HOST_1, Ip, Ip6, Outer, RA, SUBNET_A, Seen, World, ethernet, fragment_header, icmp6,
    tunnel, udp, udp6,
};

/// The one port that rules of set 1 allow, both ways.
const OPEN: u16 = 53;
const CLOSED: u16 = 54;

/// A world in which that guest is under policy: UDP to port 53 alone.
fn under_policy(guest: Guest) -> World {
    let world = World::new();
    world.change_port(guest, |port| port.set = 1);
    for (to_guest, family) in [(false, 4), (false, 6), (true, 4), (true, 6)] {
        let set = set_direction(1, to_guest);
        let key = RuleKey { prefix_len: 96, set, class: 0, family, protocol: 17, port: OPEN.to_be_bytes() };
        world.tables().rules.put(&key, &Rule { rules: 1 }).expect("room");
    }
    world.raise();
    world
}

/// How a packet goes: from A1 into the tunnel, from the tunnel to A1, or from A2 to A1.
#[derive(Clone, Copy, Debug)]
enum Way {
    Out(Hook),
    In(Hook),
    Local(Hook),
}

/// Tries every way, in one world for tc and another for XDP: the ways of each share no flow.
fn each(check: impl Fn(&World, Way)) {
    for ways in [
        [Way::Out(Hook::GuestTc), Way::In(Hook::RelayTc), Way::Local(Hook::GuestTc)],
        [Way::Out(Hook::GuestXdp), Way::In(Hook::WireXdp), Way::Local(Hook::GuestXdp)],
    ] {
        let world = under_policy(A1);
        for way in ways {
            check(&world, way);
        }
    }
}

impl Way {
    fn put_in_v4(self, world: &World, packet: impl Fn([u8; 4], [u8; 4]) -> Ip) -> Seen {
        match self {
            Self::Out(hook) => world.from_guest_at(hook, A1, packet(A1.ip, RA.ip).frame(RA.mac, A1.mac)),
            Self::In(hook) => arrive(world, hook, packet(RA.ip, A1.ip).frame(A1.mac, RA.mac)),
            Self::Local(hook) => world.from_guest_at(hook, A2, packet(A2.ip, A1.ip).frame(A1.mac, A2.mac)),
        }
    }

    fn put_in_v6(self, world: &World, packet: impl Fn([u8; 16], [u8; 16]) -> Ip6) -> Seen {
        let (a1, a2, ra) = (A1.ip_v6(), A2.ip_v6(), RA.ip_v6());
        match self {
            Self::Out(hook) => world.from_guest_at(hook, A1, packet(a1, ra).frame(RA.mac, A1.mac)),
            Self::In(hook) => arrive(world, hook, packet(ra, a1).frame(A1.mac, RA.mac)),
            Self::Local(hook) => world.from_guest_at(hook, A2, packet(a2, a1).frame(A1.mac, A2.mac)),
        }
    }

    #[track_caller]
    fn assert_passes(self, seen: &Seen) {
        match self {
            Self::Out(_) => seen.assert_encapsulated(),
            Self::In(Hook::WireXdp) => seen.assert_delivered(A1.port, PathCounter::DecapsulatedXdp),
            Self::In(_) => seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay),
            Self::Local(_) => seen.assert_delivered(A1.port, PathCounter::LocalDelivered),
        }
    }

    #[track_caller]
    fn assert_dropped(self, seen: &Seen, reason: DropReason) {
        let reasons: Vec<_> = seen.drops.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, [reason], "expected {}, {self:?}\n{seen}", reason.name());
    }

    /// Policy of the port that is asked denies it.
    #[track_caller]
    fn assert_denied(self, seen: &Seen) {
        let denied =
            if matches!(self, Self::Out(_)) { DropReason::PolicyEgress } else { DropReason::PolicyIngress };
        self.assert_dropped(seen, denied);
    }
}

fn arrive(world: &World, hook: Hook, inner: Vec<u8>) -> Seen {
    if hook.is_xdp() {
        world.from_wire(hook, tunnel(&Outer::new(HOST_1, HERE, SUBNET_A.vni), &inner))
    } else {
        world.from_relay(SUBNET_A.vni, HOST_1, inner)
    }
}

#[test]
fn options_change_nothing() {
    each(|world, way| {
        for words in 1..=10_u8 {
            // A record of the route, which takes up all the room there is.
            let mut options = vec![1; usize::from(words) * 4];
            options[..3].copy_from_slice(&[7, words * 4 - 1, 4]);
            // A fake header in the options, where a reader that does not count them would look.
            let with = |port| {
                let options = options.clone();
                move |from, to| Ip { options: options.clone(), ..udp((from, 1000), (to, port), b"data") }
            };
            way.assert_passes(&way.put_in_v4(world, with(OPEN)));
            way.assert_denied(&way.put_in_v4(world, with(CLOSED)));
        }
    });
}

#[test]
fn extension_headers_change_nothing() {
    let headers: [(u8, Vec<u8>); 5] = [
        (0, vec![0, 0, 5, 2, 0, 0, 1, 0]),
        (60, vec![0, 0, 1, 4, 0, 0, 0, 0]),
        (43, vec![0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (44, fragment_header(0, false, 9)),
        (60, [&[0, 15, 1, 124][..], &[0; 124]].concat()),
    ];
    each(|world, way| {
        for (number, header) in &headers {
            let with = |port| {
                move |from, to| udp6((from, 1000), (to, port), b"data").behind(*number, header.clone())
            };
            way.assert_passes(&way.put_in_v6(world, with(OPEN)));
            way.assert_denied(&way.put_in_v6(world, with(CLOSED)));
        }
        let all = |port| {
            let headers = &headers;
            move |from, to| {
                let packet = udp6((from, 1000), (to, port), b"data");
                headers.iter().fold(packet, |packet, (number, header)| packet.behind(*number, header.clone()))
            }
        };
        way.assert_passes(&way.put_in_v6(world, all(OPEN)));
        way.assert_denied(&way.put_in_v6(world, all(CLOSED)));
    });
}

#[test]
fn a_transport_header_out_of_reach_is_not_looked_for_elsewhere() {
    // What looks like a UDP header to the open port wherever one may look, and behind it all the one to the closed port.
    let fake = [0, 17, 3, 232, 0, 53, 0, 8];
    each(|world, way| {
        for length in [264_usize, 296, 480, 504, 512, 520, 552, 1024] {
            let mut options = fake.repeat(length / 8);
            options[1] = u8::try_from(length / 8 - 1).expect("a header's length");
            let with = |from, to| udp6((from, 1000), (to, CLOSED), b"data").behind(60, options.clone());
            way.assert_dropped(&way.put_in_v6(world, with), DropReason::ExtensionHeader);
        }
    });
}

#[test]
fn later_fragments_of_ipv4_follow_the_first_whichever_way_they_go() {
    each(|world, way| {
        let first = |port| move |from, to| Ip { fragment: 0x2000, ..udp((from, 1000), (to, port), &[1; 24]) };
        let later =
            |offset: u16| move |from, to| Ip { fragment: offset / 8, ..Ip::new(from, to, 17, vec![9; 32]) };
        way.assert_dropped(&way.put_in_v4(world, later(32)), DropReason::FragmentUnknown);
        way.assert_denied(&way.put_in_v4(world, first(CLOSED)));
        if !matches!(way, Way::Local(_)) {
            way.assert_dropped(&way.put_in_v4(world, later(32)), DropReason::FragmentUnknown);
        } else {
            // The sender's port lets it go; the receiver's policy denies it like the first.
            way.assert_denied(&way.put_in_v4(world, later(32)));
        }
        way.assert_passes(&way.put_in_v4(world, first(OPEN)));
        way.assert_passes(&way.put_in_v4(world, later(32)));
        way.assert_passes(&way.put_in_v4(world, later(8)));
    });
}

#[test]
fn later_fragments_of_ipv6_follow_the_first_whichever_way_they_go() {
    each(|world, way| {
        let options = || vec![0, 0, 1, 4, 0, 0, 0, 0];
        // Options belong to what is cut, so that its transport header ends at 16.
        let first = |port| {
            move |from, to| {
                udp6((from, 1000), (to, port), &[1; 24])
                    .behind(44, fragment_header(0, true, 7))
                    .behind(60, options())
            }
        };
        let later = |offset: u16, id: u32| {
            move |from, to| {
                Ip6::new(from, to, 60, vec![9; 32], None).behind(44, fragment_header(offset, false, id))
            }
        };
        way.assert_dropped(&way.put_in_v6(world, later(40, 7)), DropReason::FragmentUnknown);
        way.assert_denied(&way.put_in_v6(world, first(CLOSED)));
        way.assert_passes(&way.put_in_v6(world, first(OPEN)));
        way.assert_passes(&way.put_in_v6(world, later(40, 7)));
        way.assert_passes(&way.put_in_v6(world, later(16, 7)));
        way.assert_dropped(&way.put_in_v6(world, later(8, 7)), DropReason::FragmentTiny);
        way.assert_dropped(&way.put_in_v6(world, later(40, 8)), DropReason::FragmentUnknown);
    });
}

#[test]
fn a_first_fragment_holds_the_whole_transport_header() {
    each(|world, way| {
        for len in 0..8 {
            let with = |from, to| {
                let mut packet = Ip { fragment: 0x2000, ..udp((from, 1000), (to, OPEN), b"data") };
                packet.payload.truncate(len);
                packet
            };
            way.assert_dropped(&way.put_in_v4(world, with), DropReason::FragmentTiny);
            let with = |from, to| {
                let mut packet =
                    udp6((from, 1000), (to, OPEN), b"data").behind(44, fragment_header(0, true, 5));
                packet.payload.truncate(len);
                packet
            };
            way.assert_dropped(&way.put_in_v6(world, with), DropReason::FragmentTiny);
        }
    });
}

#[test]
fn tags_are_refused_however_many_there_are() {
    let world = under_policy(A1);
    let packet = udp((A1.ip, 1000), (RA.ip, OPEN), b"data").bytes();
    let stacks: [&[u8]; 5] = [
        &[0x81, 0, 0, 5],
        &[0x88, 0xa8, 0, 5],
        &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6],
        &[0x81, 0, 0, 5, 0x81, 0, 0, 6],
        // Of priority alone.
        &[0x81, 0, 0xe0, 0],
    ];
    for tags in stacks {
        let tagged = [tags, &[8, 0], &packet].concat();
        let ethertype = u16::from_be_bytes([tagged[0], tagged[1]]);
        let frame = ethernet(RA.mac, A1.mac, ethertype, &tagged[2..]);
        for hook in [Hook::GuestTc, Hook::GuestXdp] {
            world.from_guest_at(hook, A1, frame.clone()).assert_dropped(DropReason::Vlan, A1.port);
        }
        let frame = ethernet(A1.mac, RA.mac, ethertype, &tagged[2..]);
        for hook in [Hook::RelayTc, Hook::WireXdp] {
            arrive(&world, hook, frame.clone()).assert_dropped(DropReason::TunnelEthertype, 0);
        }
    }
}

#[test]
fn a_tag_that_the_kernel_has_taken_off_is_refused_too() {
    let world = under_policy(A1);
    let tagged = [&[0, 5, 8, 0][..], &udp((A1.ip, 1000), (RA.ip, OPEN), b"data").bytes()].concat();
    assert_eq!(world.live_drop(A1, &ethernet(RA.mac, A1.mac, 0x8100, &tagged)), DropReason::Vlan);
}

#[test]
fn an_error_that_quotes_extension_headers_belongs_to_its_flow() {
    let world = under_policy(A1);
    let said = || udp6((A1.ip_v6(), 1000), (RA.ip_v6(), OPEN), &[5; 32]);
    world.from_guest(A1, said().frame(RA.mac, A1.mac)).assert_encapsulated();
    let options = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    let error = |quoted: &Ip6, len: usize| {
        let mut bytes = quoted.bytes();
        bytes.truncate(len);
        let error = icmp6(RA.ip_v6(), A1.ip_v6(), 2, 0, [0, 0, 5, 0], &bytes);
        arrive(&world, Hook::RelayTc, error.frame(A1.mac, RA.mac))
    };
    for quoted in [
        said(),
        said().behind(60, options()),
        said().behind(44, fragment_header(0, true, 3)),
        said()
            .behind(0, options())
            .behind(60, options())
            .behind(44, fragment_header(0, true, 3))
            .behind(60, options()),
    ] {
        let ports = 40 + 8 * quoted.extensions.len() + 4;
        let seen = error(&quoted, ports + 4);
        seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        seen.assert_counted(PathCounter::ErrorRelated);
        // Cut short before the ports end, it says nothing about the flow.
        for len in 0..ports {
            error(&quoted, len).assert_dropped(DropReason::PolicyIngress, A1.port);
        }
    }
    let later = said().behind(44, fragment_header(64, true, 3));
    error(&later, 100).assert_dropped(DropReason::PolicyIngress, A1.port);
    let other = udp6((A1.ip_v6(), 1001), (RA.ip_v6(), OPEN), &[5; 32]).behind(60, options());
    error(&other, 100).assert_dropped(DropReason::PolicyIngress, A1.port);
}

#[test]
fn an_echo_with_a_code_of_its_own_rides_on_no_other() {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    for family in [4, 6] {
        let (protocol, port) = if family == 4 { (1, [8, 0]) } else { (58, [128, 0]) };
        let key = RuleKey { prefix_len: 96, set: set_direction(1, false), class: 0, family, protocol, port };
        world.tables().rules.put(&key, &Rule { rules: 1 }).expect("room");
    }
    world.raise();
    let ping = |code| icmp6(A1.ip_v6(), RA.ip_v6(), 128, code, [7, 7, 0, 1], b"data").frame(RA.mac, A1.mac);
    world.from_guest(A1, ping(0)).assert_encapsulated();
    world.from_guest(A1, ping(1)).assert_dropped(DropReason::PolicyEgress, A1.port);
    let ping =
        |code| ncm_tests::packet::icmp(A1.ip, RA.ip, 8, code, [7, 7, 0, 1], b"data").frame(RA.mac, A1.mac);
    world.from_guest(A1, ping(0)).assert_encapsulated();
    world.from_guest(A1, ping(1)).assert_dropped(DropReason::PolicyEgress, A1.port);
}
