//! Packets and changes of policy in any order, against a model of what a flow is.

use std::collections::HashMap;

use ncm_common::drops::DropReason;
use ncm_model::wire::security_group_configuration::SecurityGroupRule;
use ncm_tests::packet::{Compiled, GROUPS, GUESTS, Guest, REMOTES, Seen, Station, Talk, Verdict};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::any::{any_groups, any_pair, any_rules, any_talk, run};

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful of them at a time")]
enum Event {
    /// A packet, over IPv6 or IPv4.
    Packet((Station, Station), Talk, bool),
    /// The answer to the packet that came so many packets before.
    Answer(usize),
    /// The same packet again.
    Again(usize),
    Rules(usize, Vec<SecurityGroupRule>),
    Groups(usize, Vec<&'static str>),
    Join(usize, Vec<&'static str>),
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;
const FLAGS: &[u8] = &[SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK];

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (any_pair(), any_talk(FLAGS), any::<bool>()).prop_map(|(pair, talk, v6)| Event::Packet(pair, talk, v6)),
        6 => (0..6_usize).prop_map(Event::Answer),
        4 => (0..6_usize).prop_map(Event::Again),
        3 => (0..GROUPS.len(), any_rules()).prop_map(|(group, rules)| Event::Rules(group, rules)),
        1 => (0..GUESTS.len(), any_groups()).prop_map(|(guest, groups)| Event::Groups(guest, groups)),
        1 => (0..REMOTES.len(), any_groups()).prop_map(|(remote, groups)| Event::Join(remote, groups)),
    ]
}

/// What a port remembers of a flow.
#[derive(Clone, Copy, Default, Debug)]
struct Flow {
    remote_began: bool,
    denied: bool,
    reset: bool,
    fin: [bool; 2],
}

/// Port, the two addresses and the two ports from the guest's view, protocol.
type Key = (u32, std::net::IpAddr, std::net::IpAddr, u16, u16, u8);

#[derive(Default)]
struct Flows(HashMap<Key, Flow>);

/// A packet: from whom, to whom, what, and whether over IPv6.
type Packet = (Station, Station, Talk, bool);

impl Flows {
    /// The ports of a packet's flow as it is sent; `None` if it is of none.
    fn ports(talk: Talk, v6: bool) -> Option<(u16, u16)> {
        let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
        match talk {
            Talk::Tcp(_, from, to) | Talk::Udp(from, to) => Some((from, to)),
            Talk::Icmp(kind, 0, id) if kind == request => Some((id, 0)),
            Talk::Icmp(kind, 0, id) if kind == reply => Some((0, id)),
            Talk::Icmp(..) => None,
            Talk::Other(_) => Some((0, 0)),
        }
    }

    /// What happens to a packet at the port of a guest that it is from, or to.
    fn pass(
        &mut self,
        compiled: &Compiled,
        guest: Guest,
        to_guest: bool,
        (from, to, talk, v6): Packet,
    ) -> Result<(), DropReason> {
        let (own, other) = if to_guest { (to, from) } else { (from, to) };
        let members = compiled.members(other.mac, other.subnet);
        let allows = |talk: Talk, to_guest: bool| {
            compiled.allows(guest, &talk.question(to_guest, &other, v6, members.clone()))
        };
        let denied = |to_guest| if to_guest { DropReason::PolicyIngress } else { DropReason::PolicyEgress };
        let flags = if let Talk::Tcp(flags, ..) = talk { flags } else { 0 };
        let Some(ports) = Self::ports(talk, v6) else {
            return if allows(talk, to_guest) { Ok(()) } else { Err(denied(to_guest)) };
        };
        let (local, remote) = if to_guest { (ports.1, ports.0) } else { ports };
        let key = (guest.port, own.address(v6), other.address(v6), local, remote, talk.protocol(v6));
        let known = self.0.get(&key).copied();
        let over = known.is_some_and(|flow| flow.reset || flow.denied || flow.fin != [false; 2]);
        let mut flow = match known {
            Some(flow) if !(over && flags == SYN) => {
                // By what began it, whoever speaks now.
                let first = match (talk, flow.remote_began == to_guest) {
                    (Talk::Tcp(flags, from, to), false) => Talk::Tcp(flags, to, from),
                    (Talk::Udp(from, to), false) => Talk::Udp(to, from),
                    (Talk::Icmp(0, ..), _) => Talk::Icmp(8, 0, 0),
                    (Talk::Icmp(129, ..), _) => Talk::Icmp(128, 0, 0),
                    (talk, _) => talk,
                };
                let denies = !allows(first, flow.remote_began);
                self.0.insert(key, Flow { denied: denies, ..flow });
                if denies {
                    return Err(denied(flow.remote_began));
                }
                Flow { denied: false, ..flow }
            }
            _ => {
                if !allows(talk, to_guest) {
                    return Err(denied(to_guest));
                }
                let answers = flags & RST != 0
                    || flags & (SYN | ACK) == SYN | ACK
                    || matches!(talk, Talk::Icmp(kind, ..) if kind == [0, 129][usize::from(v6)]);
                if answers {
                    return Ok(());
                }
                Flow { remote_began: to_guest, ..Flow::default() }
            }
        };
        if flags & RST != 0 {
            flow.reset = true;
        } else {
            flow.reset = false;
            if flags & FIN != 0 {
                flow.fin[usize::from(to_guest)] = true;
            }
        }
        self.0.insert(key, flow);
        Ok(())
    }
}

fn put_in(compiled: &Compiled, (from, to, talk, v6): Packet) -> Seen {
    match (from.guest, to.guest) {
        (Some(guest), _) => compiled.world().from_guest(guest, talk.sent(&from, &to, v6)),
        _ => compiled.world().from_relay(to.subnet.vni, from.host, talk.arriving(&from, &to, v6)),
    }
}

/// The answer to a packet.
fn answer((from, to, talk, v6): Packet) -> Packet {
    let talk = match talk {
        Talk::Tcp(SYN, from, to) => Talk::Tcp(SYN | ACK, to, from),
        Talk::Tcp(flags, from, to) => Talk::Tcp(flags, to, from),
        Talk::Udp(from, to) => Talk::Udp(to, from),
        Talk::Icmp(8, code, id) => Talk::Icmp(0, code, id),
        Talk::Icmp(128, code, id) => Talk::Icmp(129, code, id),
        other => other,
    };
    (to, from, talk, v6)
}

fn check(compiled: &mut Compiled, events: &[Event]) -> Result<(), TestCaseError> {
    for group in GROUPS {
        compiled.set_rules(group, Vec::new());
    }
    for guest in GUESTS {
        compiled.put_into(guest, &[]);
    }
    for remote in REMOTES {
        compiled.join(remote, &[]);
    }
    compiled.forget();
    let (mut flows, mut past) = (Flows::default(), Vec::<Packet>::new());
    for (at, event) in events.iter().enumerate() {
        let before = |back: usize| past.len().checked_sub(back + 1).map(|at| past[at]);
        let packet = match event {
            Event::Packet((from, to), talk, v6) => Some((*from, *to, *talk, *v6)),
            Event::Answer(back) => before(*back).map(answer),
            Event::Again(back) => before(*back),
            Event::Rules(group, rules) => {
                compiled.set_rules(GROUPS[*group], rules.clone());
                None
            }
            Event::Groups(guest, groups) => {
                compiled.put_into(GUESTS[*guest], groups);
                None
            }
            Event::Join(remote, groups) => {
                compiled.join(REMOTES[*remote], groups);
                None
            }
        };
        let Some(packet) = packet else { continue };
        // Whom nobody knows cannot be reached.
        let to_stranger = packet.0.guest.is_some()
            && packet.1.guest.is_none()
            && !REMOTES.iter().any(|remote| remote.mac == packet.1.mac);
        if to_stranger {
            continue;
        }
        past.push(packet);
        let mut expected = Ok(());
        if let Some(guest) = packet.0.guest {
            expected = flows.pass(compiled, guest, false, packet);
        }
        if let (Ok(()), Some(guest)) = (expected, packet.1.guest) {
            expected = flows.pass(compiled, guest, true, packet);
        }
        let seen = put_in(compiled, packet);
        let came = match (seen.verdict, &seen.drops[..]) {
            (Verdict::Redirected, []) => Ok(()),
            (Verdict::Dropped, [(reason, 1)]) => Err(*reason),
            _ => return Err(TestCaseError::fail(format!("event {at}: {packet:?}: {seen}"))),
        };
        prop_assert_eq!(came, expected, "event {}: {:?}\n{}", at, packet, seen);
    }
    Ok(())
}

fn agree(cases: u32) {
    let mut compiled = Compiled::new();
    // No flow is over by itself.
    for kind in 0..ncm_common::tables::timeouts::COUNT {
        compiled.world().tables().timeouts.put(&kind, &(1 << 24)).expect("writable");
    }
    let events = prop::collection::vec(any_event(), 1..60);
    run(cases, &events, |events| check(&mut compiled, events));
}

#[test]
fn whatever_happens_a_flow_is_allowed_as_long_as_what_began_it_is() {
    agree(60);
}

#[test]
#[ignore = "takes minutes"]
fn whatever_happens_a_flow_is_allowed_as_long_as_what_began_it_is_for_longer() {
    agree(6_000);
}
