//! Entries are about as many as rules, are bounded, and few of them change with one rule.

use std::time::{Duration, Instant};

use super::policy::{Host, from_group, tcp};
use crate::policy::reference::Packet;
use crate::settings::Settings;
use crate::wire::security_group_configuration::SecurityGroupRule;

fn host_of(rules: Vec<SecurityGroupRule>) -> (Host, u32) {
    let mut host = Host::new(&Settings::default());
    host.push("a", rules).unwrap();
    let set = host.hold_set(&["a"]);
    host.step();
    (host, set)
}

fn packet(remote: String, port: u16) -> Packet {
    Packet { to_guest: true, remote: remote.parse().unwrap(), members: Vec::new(), protocol: 6, port }
}

/// 10,000 rules as a tenant has them: a port from a host, ports from prefixes, ports from anywhere.
fn ordinary() -> Vec<SecurityGroupRule> {
    (0..10_000_u32)
        .map(|number| {
            let (id, port) = (format!("rule-{number}"), 1 + number * 13 % 60_000);
            let prefix = match number % 4 {
                0 | 1 => format!("10.{}.{}.{}", number % 7, number >> 8, number & 255),
                2 => format!("172.16.{}.0/24", number & 255),
                _ => String::new(),
            };
            tcp(&id, (port, port), &prefix)
        })
        .collect()
}

#[test]
fn host_rules_beside_rules_for_everybody_take_an_entry_each() {
    let mut rules: Vec<_> = (0..5_000_u32)
        .map(|n| tcp(&format!("h{n}"), (22, 22), &format!("10.0.{}.{}", n >> 8, n & 255)))
        .collect();
    rules.extend((0..5_000_u32).map(|n| tcp(&format!("a{n}"), (1_000 + 2 * n, 1_000 + 2 * n), "")));
    let (host, set) = host_of(rules);
    assert_eq!(host.entries.rules.len(), 10_000);
    assert_eq!(host.entries_of(set), 15_000);
    let allowed = |remote: &str, port| host.entries.allow(set, 0, &packet(remote.to_owned(), port));
    assert!(
        allowed("10.0.0.7", 22)
            && !allowed("10.9.0.7", 22)
            && allowed("9.9.9.9", 1_002)
            && !allowed("9.9.9.9", 1_001)
    );
}

#[test]
fn nested_prefixes_take_an_entry_each() {
    // 8 levels, of which the innermost are 1,024.
    let mut rules = Vec::new();
    for (level, len) in [8, 12, 16, 18, 20, 22, 23, 24].into_iter().enumerate() {
        let number = if len == 24 { 1_024 } else { 1 };
        rules.extend((0..number).map(|n: u32| {
            let prefix = format!("10.0.{}.0/{len}", if number == 1 { 0 } else { n & 1 });
            tcp(&format!("{level}-{n}"), (100 + 2 * n, 100 + 2 * n), &prefix)
        }));
    }
    let count = rules.len();
    let (host, set) = host_of(rules);
    assert_eq!(host.policy.refusal(set), None);
    assert!(host.entries_of(set) <= count + 9, "{} entries of {count} rules", host.entries_of(set));
    assert!(host.entries.allow(set, 0, &packet("10.0.1.1".to_owned(), 102)));
    assert!(!host.entries.allow(set, 0, &packet("10.0.0.1".to_owned(), 102)));
}

#[test]
fn many_ranges_are_merged_before_they_are_cut() {
    let overlapping = (0..10_000_u32).map(|n| tcp(&format!("r{n}"), (1 + n, 5_000 + n), "")).collect();
    let (host, _) = host_of(overlapping);
    assert!(host.entries.rules.len() <= 30, "{} entries of one range", host.entries.rules.len());
    // The worst: ranges that begin and end off every boundary, and do not touch.
    let worst: Vec<_> = (0..500_u32)
        .map(|n| tcp(&format!("r{n}"), (131 * n + 1, 131 * n + 127), &format!("10.0.0.{}", n & 3)))
        .collect();
    let (host, set) = host_of(worst);
    assert!(host.entries_of(set) < 500 * 14, "{} entries of 500 ranges", host.entries_of(set));
}

#[test]
fn one_rule_of_ten_thousand_changes_what_changes_in_milliseconds() {
    let (mut host, set) = host_of(ordinary());
    let entries = host.entries_of(set);
    assert!(entries <= 20_000, "{entries} entries of 10,000 rules");
    let mut longest = Duration::ZERO;
    let mut written = 0;
    for n in 0..200_u32 {
        let rule = match n % 3 {
            0 => tcp(&format!("new-{n}"), (60_001 + n, 60_001 + n), ""),
            1 => tcp(&format!("new-{n}"), (443, 443), &format!("192.168.1.{n}")),
            _ => tcp(&format!("rule-{n}"), (61_000, 61_000), "172.16.3.0/24"),
        };
        let started = Instant::now();
        host.push_one("a", rule.clone(), false).unwrap();
        let (writes, changed) = host.compile();
        longest = longest.max(started.elapsed());
        assert_eq!(changed, [set].into());
        written = written.max(writes.len());
        writes.into_iter().for_each(|write| host.entries.write(write));
    }
    println!("one rule of 10,000: {longest:?} at most, {written} writes at most");
    assert!(written <= 8, "{written} writes for one rule");
    assert!(longest < Duration::from_millis(50), "{longest:?} for one rule");
    // The whole list again, with one rule less.
    let mut rules = host.groups["a"].security_group_rules.clone();
    rules.remove(5_000);
    let started = Instant::now();
    host.push("a", rules).unwrap();
    let (writes, _) = host.compile();
    println!("the same by the whole list: {:?}, {} writes", started.elapsed(), writes.len());
    assert!(writes.len() <= 4, "{writes:?}");
}

#[test]
fn what_takes_a_set_beyond_its_bound_is_refused_whole_and_alone() {
    let mut settings = Settings::default();
    settings.limits.set_entries = 100;
    let mut host = Host::new(&settings);
    let many = |count: u32| {
        (0..count).map(|n| tcp(&format!("r{n}"), (2 * n + 1, 2 * n + 1), "")).collect::<Vec<_>>()
    };
    host.push("a", many(90)).unwrap();
    host.push("b", many(20).into_iter().map(|rule| SecurityGroupRule { direction: 0, ..rule }).collect())
        .unwrap();
    let (a, b) = (host.hold_set(&["a"]), host.hold_set(&["b"]));
    host.step();
    let before = (host.entries.rules.clone(), host.entries.classes.clone());
    let cause = host.push("a", many(101)).unwrap_err();
    assert!(cause.contains("limits.set_entries") && cause.contains("a together take 101"), "{cause}");
    assert_eq!(host.step(), 0, "the old stays as it is");
    // Replacing much within the bound is no excess.
    let other =
        (0..95_u32).map(|n| tcp(&format!("s{n}"), (2 * n + 1_001, 2 * n + 1_001), "10.0.0.0/8")).collect();
    host.push("a", other).unwrap();
    host.step();
    host.push("a", many(90)).unwrap();
    host.step();
    assert_eq!((&before.0, &before.1), (&host.entries.rules, &host.entries.classes));

    // Together they are too much: only that set is refused.
    let both = host.hold_set(&["a", "b"]);
    let (writes, changed) = host.compile();
    assert!(writes.is_empty() && changed.contains(&both));
    assert!(host.policy.refusal(both).unwrap().contains("a, b together take 110"));
    assert!(host.policy.refusal(a).is_none() && host.policy.refusal(b).is_none());
    let slot = host.policy.held_slot("b").unwrap();
    assert!(host.policy.group_refusal(slot).is_some());
    // As soon as it fits, it is programmed.
    host.push("a", many(80)).unwrap();
    let (writes, changed) = host.compile();
    assert!(changed.contains(&both) && host.policy.refusal(both).is_none());
    writes.into_iter().for_each(|write| host.entries.write(write));
    assert_eq!(host.entries_of(both), 100);
    // Members come, and it is too much again.
    host.push_one(
        "b",
        SecurityGroupRule { id: "r0".to_owned(), ..from_group(tcp("m", (1, 1), ""), "c") },
        false,
    )
    .unwrap();
    host.hold_members(&["c"]);
    host.step();
    assert!(host.policy.refusal(both).is_none());
    let second = host.hold_members(&["c", "d"]);
    host.step();
    assert!(host.policy.refusal(both).is_some() && host.entries_of(both) == 0);
    host.release_members(second);
    host.step();
    assert!(host.policy.refusal(both).is_none() && host.entries_of(both) == 100);
}

#[test]
fn more_prefixes_around_one_address_than_an_entry_lists_are_refused() {
    let nested = |count: u8| {
        (0..count).map(|n| tcp(&format!("r{n}"), (1, 1), &format!("10.0.0.0/{}", 8 + n))).collect::<Vec<_>>()
    };
    let (mut host, set) = host_of(nested(8));
    let before = host.entries.classes.clone();
    assert_eq!(before.len(), 8);
    let cause = host.push("a", nested(9)).unwrap_err();
    assert!(cause.contains("10.0.0.0/16 is covered by more than 8 prefixes"), "{cause}");
    assert_eq!(host.step(), 0);
    // One that goes makes room for one that comes, in one push.
    let mut other = nested(9);
    other.remove(3);
    host.push("a", other).unwrap();
    host.step();
    assert!(host.entries.allow(set, 0, &packet("10.0.0.1".to_owned(), 1)));
    assert_eq!(host.entries.classes.len(), 8);
}

#[test]
fn building_and_replacing_large_groups_takes_no_long_pause() {
    let started = Instant::now();
    let (mut host, set) = host_of(ordinary());
    println!("10,000 rules built: {:?}", started.elapsed());
    let others: Vec<_> = ordinary()
        .into_iter()
        .map(|rule| SecurityGroupRule {
            port_range_min: rule.port_range_min + 1,
            port_range_max: rule.port_range_max + 1,
            ..rule
        })
        .collect();
    let started = Instant::now();
    host.push("a", others).unwrap();
    let (writes, _) = host.compile();
    let took = started.elapsed();
    println!(
        "10,000 rules replaced: {took:?}, {} writes, {} entries before",
        writes.len(),
        host.entries_of(set)
    );
    assert!(took < Duration::from_secs(1), "{took:?}");
}
