//! One packet at a time, of no flow: the rules alone decide.

use ncm_common::drops::DropReason;
use ncm_dataplane::Hook;
use ncm_model::wire::security_group_configuration::SecurityGroupRule;
use ncm_tests::packet::{Compiled, GROUPS, GUESTS, REMOTES, Seen, Station, Talk, Verdict, tunnel_from};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::any::{any_groups, any_pair, any_rules, any_talk, run};

/// Rules of the groups, who is in which, and packets: who speaks to whom, over IPv6 or IPv4, at XDP or tc.
#[derive(Clone, Debug)]
struct Case {
    rules: Vec<Vec<SecurityGroupRule>>,
    guests: Vec<Vec<&'static str>>,
    remotes: Vec<Vec<&'static str>>,
    packets: Vec<((Station, Station), Talk, bool, bool)>,
}

/// With SYN and ACK, or RST alone, a segment begins no flow, but policy is asked all the same.
const FLAGS: &[u8] = &[2, 2, 16, 18, 4];

prop_compose! {
    fn any_case()(
        rules in prop::collection::vec(any_rules(), GROUPS.len()),
        guests in prop::collection::vec(any_groups(), GUESTS.len()),
        remotes in prop::collection::vec(any_groups(), REMOTES.len()),
        packets in prop::collection::vec((any_pair(), any_talk(FLAGS), any::<bool>(), any::<bool>()), 1..60),
    ) -> Case {
        Case { rules, guests, remotes, packets }
    }
}

/// What the rules say to a packet of no flow: nothing, or why it is dropped.
fn expected(compiled: &Compiled, (from, to): (Station, Station), talk: Talk, v6: bool) -> Option<DropReason> {
    let ask = |to_guest: bool, own: &Station, other: &Station| {
        let members = compiled.members(other.mac, other.subnet);
        own.guest.is_none_or(|guest| compiled.allows(guest, &talk.question(to_guest, other, v6, members)))
    };
    if !ask(false, &from, &to) {
        Some(DropReason::PolicyEgress)
    } else if !ask(true, &to, &from) {
        Some(DropReason::PolicyIngress)
    } else {
        None
    }
}

fn put_in(compiled: &Compiled, (from, to): (Station, Station), talk: Talk, v6: bool, xdp: bool) -> Seen {
    let world = compiled.world();
    match from.guest {
        Some(guest) => {
            let hook = if xdp { Hook::GuestXdp } else { Hook::GuestTc };
            world.from_guest_at(hook, guest, talk.sent(&from, &to, v6))
        }
        // At XDP, TCP is left to the kernel to decapsulate.
        None if xdp && talk.protocol(v6) != 6 => {
            let inner = talk.arriving(&from, &to, v6);
            world.from_wire(Hook::WireXdp, tunnel_from(from.host, to.subnet.vni, &inner))
        }
        None => world.from_relay(to.subnet.vni, from.host, talk.arriving(&from, &to, v6)),
    }
}

fn check(compiled: &mut Compiled, case: &Case) -> Result<(), TestCaseError> {
    for (group, rules) in GROUPS.into_iter().zip(&case.rules) {
        compiled.set_rules(group, rules.clone());
    }
    for (guest, groups) in GUESTS.into_iter().zip(&case.guests) {
        compiled.put_into(guest, groups);
    }
    for (remote, groups) in REMOTES.into_iter().zip(&case.remotes) {
        compiled.join(remote, groups);
    }
    for (pair, talk, v6, xdp) in case.packets.iter().copied() {
        let expected = expected(compiled, pair, talk, v6);
        let seen = put_in(compiled, pair, talk, v6, xdp);
        let came = match (seen.verdict, &seen.drops[..]) {
            (Verdict::Redirected, []) => None,
            (Verdict::Dropped, [(reason, 1)]) => Some(*reason),
            _ => return Err(TestCaseError::fail(format!("{pair:?} {talk:?} v6 {v6}: {seen}"))),
        };
        prop_assert_eq!(came, expected, "{:?} {:?} v6 {}:\n{}", pair, talk, v6, seen);
        compiled.forget();
    }
    Ok(())
}

fn agree(cases: u32) {
    let mut compiled = Compiled::new();
    run(cases, &any_case(), |case| check(&mut compiled, case));
}

#[test]
fn the_programs_and_a_loop_over_the_rules_agree() {
    agree(60);
}

#[test]
#[ignore = "takes minutes"]
fn the_programs_and_a_loop_over_the_rules_agree_for_longer() {
    agree(6_000);
}
