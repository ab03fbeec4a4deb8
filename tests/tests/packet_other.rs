//! Protocols without ports (GRE, ESP, AH, SCTP and whatever else): their flows are the pair of addresses.

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{FlowKey, Rule, RuleKey, flow_kinds, flow_state, set_direction, timeouts};
use ncm_dataplane::Hook;
use ncm_tests::packet::{
    A1, A2, HOST_1, Ip, Ip6, Mac, RA, RB, SUBNET_A, Seen, World, fragment_header, mapped, udp,
};

const GRE: u8 = 47;
const ESP: u8 = 50;
const AH: u8 = 51;
const SCTP: u8 = 132;
const PROTOCOLS: [u8; 6] = [GRE, ESP, AH, SCTP, 89, 255];

/// A world in which A1 is under policy: one protocol, one way, over both versions.
fn allowing(protocol: u8, to_guest: bool) -> World {
    let world = World::new();
    world.change_port(A1, |port| port.set = 1);
    for family in [4, 6] {
        world.tables().rules.put(&rule(protocol, to_guest, family), &Rule { rules: 1 }).expect("room");
    }
    for kind in 0..timeouts::COUNT {
        world.tables().timeouts.put(&kind, &(100 + kind)).expect("writable");
    }
    world.raise();
    world
}

fn rule(protocol: u8, to_guest: bool, family: u8) -> RuleKey {
    let set = set_direction(1, to_guest);
    RuleKey { prefix_len: 80, set, class: 0, family, protocol, port: [0; 2] }
}

/// Either version of the world's addresses.
#[derive(Clone, Copy, Debug)]
enum Over {
    V4,
    V6,
}

const BOTH: [Over; 2] = [Over::V4, Over::V6];

impl Over {
    /// From A1 to RA.
    fn out(self, world: &World, protocol: u8, payload: &[u8]) -> Seen {
        world.from_guest(A1, self.frame(protocol, payload, true, (RA.mac, A1.mac)))
    }

    /// From RA to A1.
    fn back(self, world: &World, protocol: u8, payload: &[u8]) -> Seen {
        let frame = self.frame(protocol, payload, false, (A1.mac, RA.mac));
        world.from_relay(SUBNET_A.vni, HOST_1, frame)
    }

    fn frame(self, protocol: u8, payload: &[u8], out: bool, macs: (Mac, Mac)) -> Vec<u8> {
        match self {
            Self::V4 => {
                let (from, to) = if out { (A1.ip, RA.ip) } else { (RA.ip, A1.ip) };
                Ip::new(from, to, protocol, payload.to_vec()).frame(macs.0, macs.1)
            }
            Self::V6 => {
                let (from, to) = if out { (A1.ip_v6(), RA.ip_v6()) } else { (RA.ip_v6(), A1.ip_v6()) };
                Ip6::new(from, to, protocol, payload.to_vec(), None).frame(macs.0, macs.1)
            }
        }
    }

    /// The key of the flow between A1 and RA.
    fn key(self, protocol: u8) -> FlowKey {
        let (local, remote) = match self {
            Self::V4 => (mapped(A1.ip), mapped(RA.ip)),
            Self::V6 => (A1.ip_v6(), RA.ip_v6()),
        };
        FlowKey {
            port: A1.port,
            local,
            remote,
            local_port: [0; 2],
            remote_port: [0; 2],
            protocol,
            kind: flow_kinds::FLOW,
            reserved: [0; 2],
        }
    }
}

#[test]
fn an_answer_is_let_through_and_nothing_else() {
    for protocol in PROTOCOLS {
        let world = allowing(protocol, false);
        for over in BOTH {
            // Nobody else may begin.
            over.back(&world, protocol, b"a question").assert_dropped(DropReason::PolicyIngress, A1.port);
            let first = over.out(&world, protocol, b"a question");
            first.assert_encapsulated();
            first.assert_counted(PathCounter::FlowCreated);
            let answer = over.back(&world, protocol, b"an answer, of other numbers than the question");
            answer.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
            answer.assert_counted(PathCounter::FlowEstablished);
            // As little as there can be.
            over.out(&world, protocol, b"").assert_encapsulated();
            over.back(&world, protocol, b"").assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
            for other in PROTOCOLS.into_iter().chain([4, 41, 59]).filter(|other| *other != protocol) {
                // Enough for any header.
                let words = [5_u8; 40];
                over.back(&world, other, &words).assert_dropped(DropReason::PolicyIngress, A1.port);
                over.out(&world, other, &words).assert_dropped(DropReason::PolicyEgress, A1.port);
            }
        }
        // From other addresses.
        let near = Ip::new(A2.ip, A1.ip, protocol, b"me too".to_vec()).frame(A1.mac, A2.mac);
        world.from_guest(A2, near).assert_dropped(DropReason::PolicyIngress, A1.port);
        let far = Ip::new(RB.ip, A1.ip, protocol, b"me too".to_vec()).frame(A1.mac, SUBNET_A.dvr_mac);
        let seen = world.from_relay(SUBNET_A.vni, HOST_1, far);
        seen.assert_dropped(DropReason::PolicyIngress, A1.port);
    }
}

#[test]
fn who_is_asked_answers_without_a_rule() {
    for protocol in [GRE, SCTP] {
        let world = allowing(protocol, true);
        for over in BOTH {
            over.out(&world, protocol, b"a question").assert_dropped(DropReason::PolicyEgress, A1.port);
            let seen = over.back(&world, protocol, b"a question");
            seen.assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
            over.out(&world, protocol, b"an answer").assert_encapsulated();
            let flow = world.established(&over.key(protocol)).expect("established");
            assert_ne!(flow.state & flow_state::REMOTE_BEGAN, 0, "{flow:?}");
        }
    }
}

#[test]
fn between_guests_of_one_host_both_ports_know_the_flow() {
    let world = allowing(ESP, false);
    let there = Ip::new(A1.ip, A2.ip, ESP, b"question".to_vec()).frame(A2.mac, A1.mac);
    let back = Ip::new(A2.ip, A1.ip, ESP, b"answer".to_vec()).frame(A1.mac, A2.mac);
    world.from_guest(A2, back.clone()).assert_dropped(DropReason::PolicyIngress, A1.port);
    for hook in [Hook::GuestTc, Hook::GuestXdp] {
        let seen = world.from_guest_at(hook, A1, there.clone());
        seen.assert_delivered(A2.port, PathCounter::LocalDelivered);
        let seen = world.from_guest_at(hook, A2, back.clone());
        seen.assert_delivered(A1.port, PathCounter::LocalDelivered);
    }
}

#[test]
fn they_have_a_timeout_of_their_own_and_are_over_after_it() {
    for over in BOTH {
        let world = allowing(GRE, false);
        let key = over.key(GRE);
        over.out(&world, GRE, b"question").assert_encapsulated();
        let flow = world.half_open(&key).expect("half open");
        assert_eq!((flow.state, flow.timeout), (0, 100 + timeouts::OTHER));
        over.back(&world, GRE, b"answer").assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        let mut flow = world.established(&key).expect("established");
        let open = flow_state::ANSWERED | flow_state::CONFIRMED | flow_state::ESTABLISHED;
        assert_eq!((flow.state, flow.timeout), (open, 100 + timeouts::OTHER));
        let at = |seen: u32| flow.seen.map(|last| last - seen);
        // Just in time, and a moment too late.
        let (in_time, late) = (at(flow.timeout - 5), at(flow.timeout + 5));
        flow.seen = in_time;
        world.tables().flows.put(&key, &flow).expect("room");
        over.back(&world, GRE, b"answer").assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        flow.seen = late;
        world.tables().flows.put(&key, &flow).expect("room");
        over.back(&world, GRE, b"answer").assert_dropped(DropReason::PolicyIngress, A1.port);
        over.out(&world, GRE, b"question").assert_counted(PathCounter::FlowCreated);
    }
}

#[test]
fn a_rule_that_goes_stops_them_both_ways() {
    for over in BOTH {
        let world = allowing(SCTP, false);
        over.out(&world, SCTP, b"question").assert_encapsulated();
        over.back(&world, SCTP, b"answer").assert_delivered(A1.port, PathCounter::DecapsulatedRelay);
        for family in [4, 6] {
            world.tables().rules.delete(&rule(SCTP, false, family)).expect("deleted");
        }
        world.raise();
        over.back(&world, SCTP, b"answer").assert_dropped(DropReason::PolicyEgress, A1.port);
        over.out(&world, SCTP, b"question").assert_dropped(DropReason::PolicyEgress, A1.port);
    }
}

#[test]
fn their_fragments_follow_the_first_one() {
    let world = allowing(GRE, false);
    let part =
        |fragment: u16| Ip { fragment, ..Ip::new(A1.ip, RA.ip, GRE, vec![1; 32]) }.frame(RA.mac, A1.mac);
    world.from_guest(A1, part(4)).assert_dropped(DropReason::FragmentUnknown, A1.port);
    world.from_guest(A1, part(0x2000)).assert_encapsulated();
    world.from_guest(A1, part(4)).assert_encapsulated();
    // What a fragment of UDP is, is none of GRE's.
    let other = Ip { fragment: 4, ..udp((A1.ip, 1), (RA.ip, 2), &[1; 24]) }.frame(RA.mac, A1.mac);
    world.from_guest(A1, other).assert_dropped(DropReason::FragmentUnknown, A1.port);
    let part = |offset, more| {
        Ip6::new(A1.ip_v6(), RA.ip_v6(), GRE, vec![1; 32], None)
            .behind(44, fragment_header(offset, more, 7))
            .frame(RA.mac, A1.mac)
    };
    world.from_guest(A1, part(32, false)).assert_dropped(DropReason::FragmentUnknown, A1.port);
    world.from_guest(A1, part(0, true)).assert_encapsulated();
    world.from_guest(A1, part(32, false)).assert_encapsulated();
}
