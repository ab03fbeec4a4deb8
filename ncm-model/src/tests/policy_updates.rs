//! No packet sees neither the old nor the new policy, whatever single write it comes after.

use proptest::prelude::*;

use super::policy::{Host, Write, any_event, any_packet, tcp};
use crate::policy::reference::Packet;
use crate::settings::Settings;

/// What each set allows of some packets, with the classes that their members have.
fn decisions(host: &Host, sets: &[u32], packets: &[(u32, Packet)]) -> Vec<Vec<bool>> {
    let of = |set: &u32| {
        packets.iter().map(|(members, packet)| host.entries.allow(*set, *members, packet)).collect()
    };
    sets.iter().map(of).collect()
}

/// Replays writes one by one.
fn replay(host: &mut Host, writes: &[Write], sets: &[u32], packets: &[(u32, Packet)]) {
    let before = decisions(host, sets, packets);
    let mut after = Host::new(&Settings::default());
    after.entries = host.entries.clone();
    writes.iter().for_each(|write| after.entries.write(*write));
    let after = decisions(&after, sets, packets);
    for (at, write) in writes.iter().enumerate() {
        host.entries.write(*write);
        let now = decisions(host, sets, packets);
        for (set, number) in sets.iter().enumerate() {
            for (position, (_, packet)) in packets.iter().enumerate() {
                let (old, new, now) = (before[set][position], after[set][position], now[set][position]);
                assert!(
                    old != new || now == old,
                    "set {number}, {packet:?}: {old} before and after, {now} after write {at}, {write:?}, of {writes:#?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_packet_gets_the_decision_of_the_old_policy_or_of_the_new(
        events in prop::collection::vec((any_event(), prop::bool::weighted(0.7)), 2..16),
        packets in prop::collection::vec(any_packet(), 80),
    ) {
        let mut host = Host::new(&Settings::default());
        for (event, step) in &events {
            host.happen(event);
            if *step {
                let (writes, _) = host.compile();
                let packets: Vec<_> = packets
                    .iter()
                    .filter_map(|packet| Some((host.class_of(packet)?, packet.clone())))
                    .collect();
                let sets: Vec<u32> = host.sets.keys().copied().collect();
                replay(&mut host, &writes, &sets, &packets);
            }
        }
    }
}

/// Gives a group rules for one port from each of some prefixes.
fn pushed(host: &mut Host, rules: &[(&str, u32)]) -> Vec<Write> {
    let rules = rules.iter().map(|(prefix, port)| tcp(prefix, (*port, *port), prefix)).collect();
    host.push("a", rules).unwrap();
    host.compile().0
}

#[test]
fn nested_prefixes_that_take_the_place_of_others_never_leave_a_gap() {
    let packets: Vec<_> = ["10.0.0.1", "10.1.0.1", "10.1.1.1", "10.1.1.255"]
        .map(|remote| {
            (
                0,
                Packet {
                    to_guest: true,
                    remote: remote.parse().unwrap(),
                    members: Vec::new(),
                    protocol: 6,
                    port: 22,
                },
            )
        })
        .to_vec();
    let prefixes = ["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32"];
    // Each prefix has no rule, one for the packets, or one for another port: every pair of such policies.
    let policy = |mut number: usize| -> Vec<(&str, u32)> {
        let mut rules = Vec::new();
        for prefix in prefixes {
            match number % 3 {
                0 => {}
                1 => rules.push((prefix, 22)),
                _ => rules.push((prefix, 23)),
            }
            number /= 3;
        }
        rules
    };
    let policies = 3_usize.pow(prefixes.len() as u32);
    for from in 0..policies {
        for to in 0..policies {
            let mut host = Host::new(&Settings::default());
            pushed(&mut host, &policy(from));
            let set = host.hold_set(&["a"]);
            host.step();
            let writes = pushed(&mut host, &policy(to));
            replay(&mut host, &writes, &[set], &packets);
        }
    }
}
