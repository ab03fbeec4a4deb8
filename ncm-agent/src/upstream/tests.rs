//! What is held, asked, answered and let go, without sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ncm_common::asks::{Ask, ask_kinds};
use ncm_common::drops::DropReason;
use ncm_common::tables::{IpKey, endpoint_flags};
use ncm_model::wire::host_request::ResourceStateRequest;

use super::holds::{Answered, Fate, Fates, Held, Holds, behind};
use super::outstanding::Outstanding;
use crate::config::{Config, Overrides, Upstream};

const SUCCESS: i32 = 0;
const FAILURE: i32 = 1;
const PENDING: i32 = 3;
const L2: u16 = endpoint_flags::L2;
const L3: u16 = endpoint_flags::L3;

fn config(text: &str) -> Upstream {
    Config::parse(&format!("[upstream]\n{text}"), &Overrides::default()).expect("valid").upstream
}

fn address(last: u8) -> [u8; 16] {
    let mut ip = [0; 16];
    ip[10..].copy_from_slice(&[0xff, 0xff, 10, 1, 0, last]);
    ip
}

fn target(last: u8) -> IpKey {
    IpKey { vni: 7, ip: address(last) }
}

struct Desk {
    holds: Holds,
    outstanding: Arc<Outstanding>,
    now: Instant,
    fates: Fates,
    calls: u64,
}

impl Desk {
    fn new(text: &str) -> Self {
        let outstanding: Arc<Outstanding> = Arc::default();
        let holds = Holds::new(&config(text), Arc::clone(&outstanding));
        Self { holds, outstanding, now: Instant::now(), fates: Fates::new(), calls: 0 }
    }

    /// A packet of a port to an address.
    fn packet(&mut self, port: u32, to: u8, number: u8, needs: u16) {
        self.packet_when(port, to, number, needs, None);
    }

    fn packet_when(&mut self, port: u32, to: u8, number: u8, needs: u16, known: Option<u16>) {
        let ask = Ask {
            vni: 7,
            target_vni: 7,
            source: address(1),
            target: address(to),
            source_port: [0; 2],
            destination_port: [0; 2],
            needs,
            protocol: 17,
            kind: ask_kinds::PACKET,
        };
        let held = Held { port, offload: [0; 10], frame: vec![number; 100], since: self.now, needs };
        self.holds.hold(ask, held, self.now, |_| known, &mut self.fates);
    }

    fn asks(&mut self) -> Vec<ResourceStateRequest> {
        self.calls += 1;
        self.holds.batch(1000, self.calls)
    }

    fn answer(&mut self, id: &str, status: i32) -> Answered {
        self.holds.answer(self.calls, id, status, self.now, &mut self.fates)
    }

    fn later(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        self.holds.expire(self.now, &mut self.fates);
    }

    /// What became of packets since this was last asked: their numbers, and how they ended.
    fn fates(&mut self) -> Vec<(u8, Fate)> {
        self.fates.drain(..).map(|(held, fate)| (held.frame[0], fate)).collect()
    }

    fn expect_idle(&self) {
        assert_eq!((self.holds.requests(), self.holds.held().packets, self.holds.held().bytes), (0, 0, 0));
        assert!(self.outstanding.is_empty() && self.outstanding.targets().is_empty());
        assert_eq!(self.holds.next_deadline(), None);
    }
}

#[test]
fn packets_to_one_destination_wait_for_one_request_and_go_on_in_order() {
    let mut desk = Desk::new("");
    for number in 0..5 {
        desk.packet(u32::from(number % 2) + 1, 2, number, L2);
    }
    let asked = desk.asks();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((asked[0].destination_ip.as_str(), asked[0].tunnel_id), ("10.1.0.2", 7));
    assert_eq!(desk.outstanding.targets(), [target(2)]);
    desk.holds.programmed(&[(target(3), L2)], &mut desk.fates);
    assert!(desk.fates().is_empty(), "another address");
    desk.holds.programmed(&[(target(2), L2)], &mut desk.fates);
    assert_eq!(desk.fates(), [0, 1, 2, 3, 4].map(|number| (number, Fate::Release)));
    assert_eq!(desk.outstanding.targets(), [target(2)], "what is pushed until the answer was asked for");
    assert_eq!(desk.answer(&asked[0].request_id, SUCCESS).success, 1);
    desk.expect_idle();
}

#[test]
fn what_upstream_does_not_know_is_not_asked_for_again_at_once() {
    let mut desk = Desk::new("retry_after_ms = 500");
    desk.packet(1, 2, 0, L2);
    let asked = desk.asks();
    assert_eq!(desk.answer(&asked[0].request_id, FAILURE).failure, 1);
    assert_eq!(desk.fates(), [(0, Fate::End(DropReason::AskRefused))]);
    desk.packet(1, 2, 1, L2);
    assert_eq!(desk.fates(), [(1, Fate::End(DropReason::AskRefused))]);
    // It came by itself meanwhile.
    desk.packet_when(1, 2, 2, L2, Some(L2));
    assert_eq!(desk.fates(), [(2, Fate::Release)]);
    desk.later(500);
    desk.packet(1, 2, 3, L2);
    assert_eq!(desk.asks().len(), 1, "time has passed");
    desk.later(3000);
    assert_eq!(desk.fates(), [(3, Fate::End(DropReason::AskUnanswered))]);
    desk.packet(1, 2, 4, L2);
    assert_eq!(desk.fates(), [(4, Fate::End(DropReason::AskUnanswered))]);
    desk.holds.reconnected();
    desk.packet(1, 2, 5, L2);
    assert_eq!(desk.asks().len(), 1, "upstream is there again");
    desk.later(3000);
    desk.fates();
    desk.expect_idle();
}

#[test]
fn success_without_a_push_is_waited_for_and_not_longer_than_that() {
    let mut desk = Desk::new("settle_ms = 50");
    desk.packet(1, 2, 0, L2);
    desk.packet(1, 3, 1, L2);
    let asked = desk.asks();
    for request in &asked {
        assert_eq!(desk.answer(&request.request_id, SUCCESS).success, 1);
    }
    desk.later(49);
    assert!(desk.fates().is_empty());
    desk.holds.programmed(&[(target(3), L2)], &mut desk.fates);
    assert_eq!(desk.fates(), [(1, Fate::Release)]);
    desk.later(1);
    assert_eq!(desk.fates(), [(0, Fate::End(DropReason::AskUnanswered))]);
    desk.expect_idle();
}

#[test]
fn nonsense_is_ignored() {
    let mut desk = Desk::new("");
    desk.packet(1, 2, 0, L2);
    desk.packet(1, 3, 1, L2);
    let asked = desk.asks();
    let (one, other) = (&asked[0].request_id, &asked[1].request_id);
    for (id, status) in [("", SUCCESS), ("nobody", FAILURE), (one, PENDING), (one, 77), (one, -1)] {
        assert_eq!(desk.answer(id, status), Answered { garbage: 1, ..Answered::default() }, "{id} {status}");
    }
    assert_eq!(desk.answer(other, SUCCESS).success, 1);
    assert_eq!(desk.answer(other, FAILURE).garbage, 1, "it was answered before");
    desk.packet(1, 4, 2, L2);
    let next = desk.asks();
    let stranger = desk.holds.answer(desk.calls, one, FAILURE, desk.now, &mut desk.fates);
    assert_eq!(stranger.garbage, 1, "a request of another call");
    assert_eq!(next.len(), 1);
    assert!(desk.fates().is_empty());
}

#[test]
fn room_is_bounded_for_each_port_and_in_all() {
    let mut desk =
        Desk::new("hold_packets = 5\nport_hold_packets = 3\nhold_bytes = 100000\nport_hold_bytes = 250");
    for number in 0..4 {
        desk.packet(1, 10 + number, number, L2);
    }
    // Two by bytes.
    assert_eq!(desk.fates(), [2, 3].map(|number| (number, Fate::End(DropReason::AskFull))));
    for (port, number) in [(2, 4), (2, 5), (3, 6), (3, 7)] {
        desk.packet(port, 20 + number, number, L2);
    }
    assert_eq!(desk.fates(), [(7, Fate::End(DropReason::AskFull))], "five in all");
    assert_eq!(desk.asks().len(), 5, "nobody waits for the others");
    desk.later(3000);
    assert_eq!(desk.fates().len(), 5);
    desk.expect_idle();
}

#[test]
fn ports_take_turns() {
    let mut desk = Desk::new("");
    for number in 0..10 {
        desk.packet(1, 10 + number, number, L2);
    }
    desk.packet(2, 50, 50, L2);
    let batch = desk.holds.batch(3, 1);
    let asked: Vec<&str> = batch.iter().map(|request| request.destination_ip.as_str()).collect();
    assert_eq!(asked, ["10.1.0.10", "10.1.0.50", "10.1.0.11"]);
}

#[test]
fn a_lost_call_is_asked_again_while_there_is_time() {
    let mut desk = Desk::new("request_timeout_ms = 1000");
    desk.packet(1, 2, 0, L2);
    desk.packet(1, 3, 1, L2);
    let ids: Vec<String> = desk.asks().into_iter().map(|request| request.request_id).collect();
    desk.holds.fail(1, &ids[..1], true, desk.now, &mut desk.fates);
    desk.holds.fail(1, &ids[1..], false, desk.now, &mut desk.fates);
    assert_eq!(desk.fates(), [(1, Fate::End(DropReason::AskUnanswered))]);
    let again = desk.asks();
    assert_eq!((again.len(), &again[0].request_id), (1, &ids[0]), "the same request");
    desk.later(1000);
    assert_eq!(desk.fates(), [(0, Fate::End(DropReason::AskUnanswered))]);
    desk.expect_idle();
}

#[test]
fn an_entry_that_serves_some_lets_those_go_on() {
    let mut desk = Desk::new("");
    desk.packet(1, 2, 0, L2);
    desk.packet(1, 2, 1, L3);
    desk.packet(1, 2, 2, 0);
    assert_eq!(desk.asks().len(), 1);
    desk.holds.programmed(&[(target(2), L2)], &mut desk.fates);
    assert_eq!(desk.fates(), [(0, Fate::Release), (2, Fate::Release)]);
    desk.holds.programmed(&[(target(2), L2 | L3)], &mut desk.fates);
    assert_eq!(desk.fates(), [(1, Fate::Release)]);
}

#[test]
fn an_entry_that_comes_before_its_request_is_asked_needs_none() {
    let mut desk = Desk::new("");
    desk.packet(1, 2, 0, L2);
    desk.holds.programmed(&[(target(2), L2)], &mut desk.fates);
    assert_eq!(desk.fates(), [(0, Fate::Release)]);
    assert!(desk.asks().is_empty());
    desk.expect_idle();
    desk.packet_when(1, 3, 1, L2, Some(L2));
    assert_eq!(desk.fates(), [(1, Fate::Release)], "known by the time it is looked at");
    desk.expect_idle();
}

#[test]
fn what_is_remembered_of_refusals_is_bounded() {
    let mut desk = Desk::new("retry_after_ms = 600000");
    for round in 0..70_000_u32 {
        let [_, a, b, c] = round.to_be_bytes();
        let mut ip = address(0);
        ip[13..].copy_from_slice(&[a, b, c]);
        let key = super::holds::Key { vni: 7, target: ip };
        desk.holds.refuse(key, desk.now);
    }
    assert_eq!(desk.holds.refused(), 1 << 16);
}

#[test]
fn ids_are_uuids_and_differ() {
    let mut ids = super::request::Ids::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let id = ids.next();
        assert_eq!(id.len(), 36);
        assert!(id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'4',
            19 => b"89ab".contains(&byte),
            _ => byte.is_ascii_hexdigit(),
        }));
        assert!(seen.insert(id));
    }
}

#[test]
fn what_the_kernel_has_still_to_do_moves_with_the_frame() {
    // Flags, kind, length of headers, segment size, start and offset of the checksum.
    let offload = [1, 1, 100, 0, 0xa0, 5, 82, 0, 16, 0];
    assert_eq!(behind(offload, 48), Some([1, 1, 52, 0, 0xa0, 5, 34, 0, 16, 0]));
    assert_eq!(behind([0; 10], 48), Some([0; 10]));
    assert_eq!(behind([1, 0, 0, 0, 0, 0, 20, 0, 16, 0], 48), None, "a checksum in what is taken off");
}
