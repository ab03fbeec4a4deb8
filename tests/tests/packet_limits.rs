//! What a port is sent and handed up on its own behalf is limited, and counted where it is; and one port's excess is no other's.

use std::time::Instant;

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::Count;
use ncm_dataplane::{Hook, TestRun};
use ncm_tests::packet::{
    A1, A2, B1, C1, GATEWAY_A, Guest, Ip, Ip6, RA, RC, SUBNET_A, Verdict, World, arp_request, echo_request,
    icmp6, link_local, solicitation, udp, udp6,
};

/// What the product promises: errors at once and per second, likewise what is handed up.
const ERRORS: (u64, u64) = (50, 100);
const HAND_UPS: (u64, u64) = (20, 20);

/// What moved during a flood, and how long it took.
struct Flood {
    counters: Vec<u64>,
    drops: Vec<u64>,
    /// Seconds, rounded up.
    took: u64,
}

impl Flood {
    fn of(world: &World, guest: Guest, frames: &[Vec<u8>], times: u32) -> Self {
        let tables = world.tables();
        let counts = |entries: Vec<(u32, Count)>| -> Vec<u64> {
            let mut counts = vec![0; 64];
            entries.iter().for_each(|(number, count)| counts[*number as usize] = count.packets);
            counts
        };
        let read = || {
            let counters = counts(tables.counters.entries().expect("readable"));
            (counters, counts(tables.drops.entries().expect("readable")))
        };
        world.beat(0);
        let (before, start) = (read(), Instant::now());
        let ifindex = world.ifindex(guest.interface);
        for _ in 0..times {
            for frame in frames {
                let run = TestRun::new(frame.clone(), ifindex);
                world.dataplane().test_run(Hook::GuestTc, &run).expect("it runs");
            }
        }
        let took = start.elapsed().as_secs() + 1;
        let after = read();
        let moved = |after: Vec<u64>, before: Vec<u64>| -> Vec<u64> {
            after.iter().zip(before).map(|(after, before)| after - before).collect()
        };
        Self { counters: moved(after.0, before.0), drops: moved(after.1, before.1), took }
    }

    fn counted(&self, counter: PathCounter) -> u64 {
        self.counters[counter as usize]
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Asserts that of `all` so many were granted as the limit says.
    #[track_caller]
    fn assert_within(&self, what: &str, granted: u64, all: u64, (at_once, per_second): (u64, u64)) {
        assert!(granted >= at_once.min(all), "{what}: {granted} of {all} granted");
        let most = at_once + per_second * self.took;
        assert!(granted <= most, "{what}: {granted} of {all} granted, at most {most}");
    }
}

/// Frames of A1 that fit no tunnel, or no interface of A2's, over both versions.
fn too_big(guest: Guest, to: ([u8; 6], [u8; 4], [u8; 16])) -> Vec<Vec<u8>> {
    vec![
        udp((guest.ip, 1), (to.1, 2), &[0; 1450]).frame(to.0, guest.mac),
        Ip { fragment: 0x4000, ..udp((guest.ip, 3), (to.1, 4), &[0; 1450]) }.frame(to.0, guest.mac),
        udp6((guest.ip_v6(), 1), (to.2, 2), &[0; 1440]).frame(to.0, guest.mac),
    ]
}

#[test]
fn errors_about_packets_that_do_not_fit_are_limited_by_port_and_counted() {
    let world = World::new();
    world.change_port(A2, |port| port.mtu = 1400);
    let far = too_big(A1, (RA.mac, RA.ip, RA.ip_v6()));
    let near = too_big(A1, (A2.mac, A2.ip, A2.ip_v6()));
    let frames = [far, near].concat();
    let flood = Flood::of(&world, A1, &frames, 100);
    let all = 600;
    let sent = flood.counted(PathCounter::PacketTooBigSent);
    flood.assert_within("packet too big", sent, all, ERRORS);
    assert_eq!(flood.counted(PathCounter::IcmpLimited), all - sent, "what is held back is counted");
    assert_eq!(flood.dropped(DropReason::TooBig), all - sent, "and the packet is dropped for what it is");
    // Times that run out have the same limit.
    let expired = vec![Ip { ttl: 1, ..udp((A1.ip, 1), (B1.ip, 2), b"") }.frame(GATEWAY_A.0, A1.mac)];
    let flood = Flood::of(&world, A1, &expired, 100);
    let sent = flood.counted(PathCounter::TimeExceededSent);
    assert!(sent <= ERRORS.1 * flood.took, "{sent} at once: the limit was exhausted");
    assert_eq!(flood.dropped(DropReason::TtlExceeded), 100 - sent);
    // Each other port has its own.
    for (guest, to) in [(A2, (RA.mac, RA.ip, RA.ip_v6())), (C1, (RC.mac, RC.ip, RC.ip_v6()))] {
        for frame in too_big(guest, to) {
            world.from_guest(guest, frame).assert_answered(PathCounter::PacketTooBigSent);
        }
    }
}

/// The two IPv6 groups that servers and routers listen to.
const SERVERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
const ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// What a guest asks of the agent: DHCP, DHCPv6, a router solicitation.
fn questions(guest: Guest) -> Vec<Vec<u8>> {
    let own = link_local(guest.mac);
    let asks = Ip6 { hop_limit: 255, ..icmp6(own, ROUTERS, 133, 0, [0; 4], b"") };
    vec![
        udp(([0; 4], 68), ([255; 4], 67), &[1; 240]).frame([0xff; 6], guest.mac),
        udp6((own, 546), (SERVERS, 547), &[1; 40]).frame([0x33, 0x33, 0, 1, 0, 2], guest.mac),
        asks.frame([0x33, 0x33, 0, 0, 0, 2], guest.mac),
    ]
}

#[test]
fn each_kind_of_question_is_limited_and_a_port_that_floods_starves_itself_alone() {
    for which in 0..3 {
        let world = World::new();
        let frames = vec![questions(A1)[which].clone()];
        let flood = Flood::of(&world, A1, &frames, 1_000);
        let up = flood.counted(PathCounter::HandedUp);
        flood.assert_within("handed up", up, 1_000, HAND_UPS);
        assert_eq!(flood.dropped(DropReason::HandUpLimited), 1_000 - up, "what is held back is counted");
        // Others are heard, each of whatever kind.
        for guest in [A2, B1, C1] {
            for frame in questions(guest) {
                let seen = world.from_guest(guest, frame);
                assert_eq!(seen.verdict, Verdict::Redirected, "{seen}");
                seen.assert_counted(PathCounter::HandedUp);
            }
        }
        // And what is answered or forwarded without the agent goes on, also for who floods.
        let gateway = SUBNET_A.gateway_v6();
        for (frame, counter) in [
            (arp_request(A1.pair(), GATEWAY_A.1), PathCounter::ArpAnswered),
            (solicitation(A1.pair_v6(), gateway.1), PathCounter::NdAnswered),
            (echo_request(A1.ip, GATEWAY_A.1).frame(GATEWAY_A.0, A1.mac), PathCounter::EchoAnswered),
            (udp((A1.ip, 1), (RA.ip, 2), b"data").frame(RA.mac, A1.mac), PathCounter::Encapsulated),
        ] {
            let seen = world.from_guest(A1, frame);
            assert_eq!(seen.verdict, Verdict::Redirected, "{seen}");
            seen.assert_counted(counter);
        }
    }
}

#[test]
fn who_floods_with_solicitations_takes_nothing_from_others() {
    let world = World::new();
    let talk = udp6((A2.ip_v6(), 1), (RA.ip_v6(), 2), b"data").frame(RA.mac, A2.mac);
    world.from_guest(A2, talk.clone()).assert_counted(PathCounter::FlowCreated);
    let (own, gateway) = (link_local(A1.mac), SUBNET_A.gateway_v6().1);
    let unknown = [0xfd, 10, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xee];
    let advertised = [&A1.ip_v6()[..], &[2, 1], &A1.mac].concat();
    let advertisement = icmp6(A1.ip_v6(), A2.ip_v6(), 136, 0, [0x60, 0, 0, 0], &advertised);
    let frames = vec![
        solicitation((A1.mac, own), gateway),
        solicitation(A1.pair_v6(), RA.ip_v6()),
        solicitation((A1.mac, [0; 16]), A2.ip_v6()),
        solicitation(A1.pair_v6(), unknown),
        Ip6 { hop_limit: 255, ..advertisement }.frame(A2.mac, A1.mac),
    ];
    let flood = Flood::of(&world, A1, &frames, 400);
    // All of it ends here: answered to who asks, or dropped, and none of it makes a flow.
    assert_eq!(flood.counted(PathCounter::NdAnswered), 3 * 400);
    assert_eq!(flood.dropped(DropReason::NdUnknown), 400);
    assert_eq!(flood.dropped(DropReason::NdIgnored), 400);
    assert_eq!((flood.counted(PathCounter::HandedUp), flood.counted(PathCounter::FlowCreated)), (0, 0));
    let seen = world.from_guest(A2, talk);
    seen.assert_encapsulated();
    assert!(!seen.counters.contains(&(PathCounter::FlowCreated, 1)), "its flow is still known\n{seen}");
    for frame in questions(A2) {
        world.from_guest(A2, frame).assert_counted(PathCounter::HandedUp);
    }
}
