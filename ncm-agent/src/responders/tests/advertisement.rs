//! Router advertisements.

use std::time::{Duration, Instant};

use super::*;
use crate::responders::{Schedule, advertisements};
use ncm_model::lease::{LeaseFacts, eui64};

fn solicitation(from: &str, options: &[u8]) -> Vec<u8> {
    let message = [&[133, 0, 0, 0, 0, 0, 0, 0][..], options].concat();
    frame6(GUEST, v6(from), v6("ff02::2"), (58, 255), 2, &message)
}

fn source() -> Vec<u8> {
    [&[1, 1][..], &GUEST].concat()
}

fn frames(from: &str, facts: &LeaseFacts) -> Vec<Vec<u8>> {
    match answer(Question::RouterSolicitation, &solicitation(from, &source()), false, facts) {
        Ok(Answer::Frames(frames)) => frames,
        other => panic!("advertisements were expected, and came {other:?}"),
    }
}

/// The options of that kind, whole.
fn options(message: &[u8], kind: u8) -> Vec<Vec<u8>> {
    let (mut found, mut rest) = (Vec::new(), &message[16..]);
    while let [this, units, ..] = rest {
        let (option, more) = rest.split_at(usize::from(*units) * 8);
        if *this == kind {
            found.push(option.to_vec());
        }
        rest = more;
    }
    assert!(rest.is_empty(), "options are in units of 8 bytes");
    found
}

#[test]
fn a_solicitation_is_answered_to_the_guest_by_its_gateway() {
    let frames = frames("fe80::7", &facts());
    let [frame] = &frames[..] else { panic!("one advertisement was expected, and came {}", frames.len()) };
    let got = open6(frame, 58);
    assert_eq!((got.from, got.to, got.hops), (v6("fe80::f816:3eff:fe00:1"), v6("fe80::7"), 255));
    assert_eq!((got.from_mac, got.to_mac), (GATEWAY, GUEST));
    let message = got.payload;
    assert_eq!(message[..2], [134, 0]);
    assert_eq!(message[4..8], [64, 0xc0, 0xff, 0xff], "hop limit, managed and other, lifetime");
    assert_eq!(options(&message, 1), [[&[1, 1][..], &GATEWAY].concat()]);
    assert_eq!(options(&message, 5), [vec![5, 1, 0, 0, 0, 0, 0x05, 0xaa]]);
    let prefix = &options(&message, 3)[0];
    assert_eq!(prefix[..4], [3, 4, 64, 0x80], "on link, not autonomous");
    assert_eq!(prefix[16..], v6("fd00:1::").octets());
    let servers = &options(&message, 25)[0];
    assert_eq!(servers[..8], [25, 5, 0, 0, 0, 0, 0xff, 0xff]);
    assert_eq!(servers[8..], [v6("fd00::53").octets(), v6("fd00::54").octets()].concat());
    let search = &options(&message, 31)[0];
    assert_eq!(search[8..21], *b"\x07example\x03org\x00");
}

#[test]
fn without_a_binding_only_the_ports_own_address_is_made_by_the_guest() {
    let prefix = v6("fd00:1::");
    let unbound = |fixed| LeaseFacts {
        v6: vec![LinkV6 {
            lease: None,
            fixed: vec![fixed],
            dns: Vec::new(),
            host_name: String::new(),
            ..link()
        }],
        ..facts()
    };
    let flags = |facts: &LeaseFacts| {
        let message = open6(&frames("fe80::7", facts)[0], 58).payload;
        (message[5], options(&message, 3)[0][3])
    };
    assert_eq!(flags(&unbound(eui64(prefix, GUEST))), (0, 0xc0));
    assert_eq!(flags(&unbound(v6("fd00:1::7"))), (0, 0x80));
    assert_eq!(flags(&facts()), (0xc0, 0x80));
}

#[test]
fn without_a_router_the_gateway_is_no_default_router() {
    let facts = LeaseFacts { v6: vec![LinkV6 { routed: false, ..link() }], ..facts() };
    let message = open6(&frames("fe80::7", &facts)[0], 58).payload;
    assert_eq!(message[6..8], [0, 0]);
    assert_eq!(options(&message, 3).len(), 1, "the prefix is told all the same");
}

#[test]
fn a_guest_without_address_is_answered_by_an_advertisement_to_everybody() {
    let frame = solicitation("::", &[]);
    assert_eq!(answer(Question::RouterSolicitation, &frame, false, &facts()), Ok(Answer::Advertise));
    let frame = solicitation("::", &source());
    assert_eq!(refused(Question::RouterSolicitation, &frame, &facts()), Ignored::Malformed);
    let got = open6(&advertisements(&facts())[0], 58);
    assert_eq!((got.to, got.to_mac), (v6("ff02::1"), [0x33, 0x33, 0, 0, 0, 1]));
}

#[test]
fn subnets_of_one_gateway_are_told_in_one_advertisement() {
    let second = LinkV6 { net: "fd00:2::/64".parse().expect("a prefix"), ..link() };
    let third = LinkV6 { gateway_mac: [2, 0, 0, 0, 0, 9], ..link() };
    let facts = LeaseFacts { v6: vec![link(), third, second], ..facts() };
    let frames = advertisements(&facts);
    assert_eq!(frames.len(), 2);
    assert_eq!(options(&open6(&frames[0], 58).payload, 3).len(), 2);
    assert_eq!(options(&open6(&frames[1], 58).payload, 3).len(), 1);
}

#[test]
fn malformed_solicitations_are_not_answered() {
    let refused = |frame: &[u8]| refused(Question::RouterSolicitation, frame, &facts());
    let good = solicitation("fe80::7", &source());
    let mut hops = good.clone();
    hops[14 + 7] = 64;
    assert_eq!(refused(&hops), Ignored::Malformed, "it has crossed a router");
    let mut damaged = good.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    assert_eq!(refused(&damaged), Ignored::Malformed);
    assert_eq!(refused(&solicitation("fe80::7", &[1, 0, 0, 0, 0, 0, 0, 0])), Ignored::Malformed);
    assert_eq!(refused(&solicitation("fe80::7", &[1, 2, 0, 0, 0, 0, 0, 0])), Ignored::Malformed);
    let mut foreign = good;
    foreign[6..12].copy_from_slice(&OTHER);
    assert_eq!(refused(&foreign), Ignored::OtherClient);
    let facts = LeaseFacts { v6: Vec::new(), ..facts() };
    let frame = solicitation("fe80::7", &source());
    assert_eq!(super::refused(Question::RouterSolicitation, &frame, &facts), Ignored::NoBinding);
}

#[test]
fn advertisements_to_everybody_keep_their_pace() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut schedule = Schedule::new(start);
    assert_eq!(schedule.next(), start, "something new is told at once");
    schedule.sent(start, 0);
    assert_eq!(schedule.next(), after(16));
    schedule.ask(after(1));
    assert_eq!(schedule.next(), after(3), "not more often than every 3 seconds");
    schedule.ask(after(2));
    assert_eq!(schedule.next(), after(3));
    schedule.sent(after(3), 0);
    assert_eq!(schedule.next(), after(19));
    schedule.sent(after(19), 0);
    assert_eq!(schedule.next(), after(19 + 200));
    schedule.sent(after(219), 399_999);
    assert!(schedule.next() > after(219 + 599) && schedule.next() < after(219 + 600));
    schedule.changed(after(400));
    assert_eq!(schedule.next(), after(400), "what has changed is told at once");
}
