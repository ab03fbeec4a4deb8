//! The compiled tables say what the rules say.

use proptest::prelude::*;

use super::policy::{Event, Host, any_event, any_packet, any_rule, from_group, group, tcp};
use crate::policy::reference::Packet;
use crate::settings::Settings;
use crate::wire::security_group_configuration::SecurityGroupRule;
use crate::wire::{OperationType, SecurityGroupConfiguration, UpdateType};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_tables_and_a_loop_over_the_rules_agree(
        events in prop::collection::vec((any_event(), any::<bool>()), 1..24),
        packets in prop::collection::vec(any_packet(), 100),
    ) {
        let mut host = Host::new(&Settings::default());
        for (event, step) in &events {
            host.happen(event);
            // A step may bring several changes.
            if !step {
                continue;
            }
            host.step();
            for set in host.sets.keys() {
                for packet in &packets {
                    let Some(members) = host.class_of(packet) else { continue };
                    let (tables, rules) = (host.entries.allow(*set, members, packet), host.reference(*set, packet));
                    prop_assert_eq!(tables, rules, "set {} of {:?}: {:?}", set, host.sets[set], packet);
                }
            }
        }
        // From scratch, the same: as many entries, and nothing left behind.
        host.step();
        let mut fresh = Host::new(&Settings::default());
        let configs: Vec<_> = host.groups.keys().filter_map(|id| host.policy.held_slot(id)).collect();
        for config in configs.into_iter().map(|slot| host.policy.show(slot)) {
            fresh.push(&config.id, config.security_group_rules).unwrap();
        }
        for groups in host.sets.values() {
            fresh.hold_set(&groups.iter().map(String::as_str).collect::<Vec<_>>());
        }
        for groups in host.members.values() {
            fresh.hold_members(&groups.iter().map(String::as_str).collect::<Vec<_>>());
        }
        fresh.step();
        prop_assert_eq!(host.entries.rules.len(), fresh.entries.rules.len());
        prop_assert_eq!(host.entries.classes.len(), fresh.entries.classes.len());
        prop_assert_eq!(host.named.len(), fresh.named.len());
        let total = |host: &Host| host.entries.rules.values().map(|rule| u64::from(rule.rules)).sum::<u64>();
        prop_assert_eq!(total(&host), total(&fresh), "how many rules there are of each");
        // And once everything has gone, nothing remains.
        for group in super::policy::GROUPS {
            host.happen(&Event::Push(super::policy::GROUPS.iter().position(|id| *id == group).unwrap(), Vec::new()));
            host.delete(group);
        }
        for class in host.members.keys().copied().collect::<Vec<_>>() {
            host.release_members(class);
        }
        host.step();
        prop_assert!(host.entries.rules.is_empty() && host.entries.classes.is_empty() && host.named.is_empty());
        prop_assert!((0..host.policy.bound()).all(|slot| host.policy.group(slot).is_none_or(|group| group.id.is_empty())));
    }

    #[test]
    fn what_is_shown_of_a_group_makes_the_same_group(rules in prop::collection::vec(any_rule(), 0..12)) {
        let mut host = Host::new(&Settings::default());
        host.push("a", rules).unwrap();
        let slot = host.policy.held_slot("a").unwrap();
        let shown = host.policy.show(slot);
        prop_assert_eq!(host.policy.plan(&shown).unwrap(), Vec::new());
        let mut other = Host::new(&Settings::default());
        other.push("a", shown.security_group_rules.clone()).unwrap();
        prop_assert_eq!(other.policy.show(other.policy.held_slot("a").unwrap()), shown);
    }
}

fn packet(to_guest: bool, remote: &str, protocol: u8, port: u16) -> Packet {
    Packet { to_guest, remote: remote.parse().unwrap(), members: Vec::new(), protocol, port }
}

/// A port in one group with this rule alone.
fn with_rule(rule: SecurityGroupRule) -> impl Fn(bool, &str, u8, u16) -> bool {
    let mut host = Host::new(&Settings::default());
    host.push("a", vec![rule]).unwrap();
    let set = host.hold_set(&["a"]);
    host.step();
    move |to_guest, remote, protocol, port| {
        let packet = packet(to_guest, remote, protocol, port);
        let allowed = host.entries.allow(set, 0, &packet);
        assert_eq!(allowed, host.reference(set, &packet), "{packet:?}");
        allowed
    }
}

#[test]
fn rules_read_as_the_contract_says() {
    let rule = SecurityGroupRule { direction: 1, ..SecurityGroupRule::default() };
    let any_tcp = with_rule(rule.clone());
    assert!(any_tcp(true, "1.2.3.4", 6, 1) && any_tcp(true, "1.2.3.4", 6, 65_535), "0/0 is every port");
    assert!(
        !any_tcp(true, "1.2.3.4", 17, 1) && !any_tcp(false, "1.2.3.4", 6, 1) && !any_tcp(true, "::1", 6, 1)
    );

    let http = with_rule(SecurityGroupRule { protocol: 3, ..rule.clone() });
    assert!(http(true, "1.2.3.4", 6, 80) && !http(true, "1.2.3.4", 6, 81), "HTTP is TCP's port 80");
    let range =
        SecurityGroupRule { protocol: 3, port_range_min: 8_000, port_range_max: 8_080, ..rule.clone() };
    let http = with_rule(range);
    assert!(http(true, "1.2.3.4", 6, 8_040) && !http(true, "1.2.3.4", 6, 80), "unless a range is given");

    let arp = with_rule(SecurityGroupRule { protocol: 4, ..rule.clone() });
    assert!(!arp(true, "1.2.3.4", 6, 80), "a rule about ARP allows nothing besides");

    let ping = SecurityGroupRule { protocol: 2, port_range_min: 8, ..rule.clone() };
    let ping = with_rule(ping);
    assert!(ping(true, "1.2.3.4", 1, 8 << 8) && !ping(true, "1.2.3.4", 1, 8 << 8 | 1), "type and code");
    assert!(!ping(true, "1.2.3.4", 1, 0) && !ping(true, "1.2.3.4", 58, 8 << 8));
    let icmp6 = with_rule(SecurityGroupRule { protocol: 2, ethertype: 1, ..rule.clone() });
    assert!(icmp6(true, "fe80::1", 58, 128 << 8) && !icmp6(true, "fe80::1", 1, 128 << 8), "ICMPv6 for IPv6");

    let any = with_rule(SecurityGroupRule { protocol: 1_000, ..rule.clone() });
    assert!(any(true, "1.2.3.4", 47, 0) && any(true, "1.2.3.4", 6, 9) && !any(true, "::1", 47, 0));

    let host = with_rule(SecurityGroupRule { remote_ip_prefix: "10.1.2.3".to_owned(), ..rule.clone() });
    assert!(host(true, "10.1.2.3", 6, 1) && !host(true, "10.1.2.4", 6, 1), "an address is its own prefix");
    let net = with_rule(SecurityGroupRule { remote_ip_prefix: "10.1.2.3/24".to_owned(), ..rule });
    assert!(
        net(true, "10.1.2.99", 6, 1) && !net(true, "10.1.3.3", 6, 1),
        "bits beyond the prefix do not count"
    );
}

#[test]
fn nonsense_is_refused_with_the_name_of_its_field() {
    let host = Host::new(&Settings::default());
    let good = tcp("r", (1, 2), "10.0.0.0/8");
    let cases: [(&str, SecurityGroupRule); 13] = [
        (
            "port_range_min 3 is above port_range_max 2",
            SecurityGroupRule { port_range_min: 3, ..good.clone() },
        ),
        ("port_range_min 80 is above port_range_max 0", tcp("r", (80, 0), "")),
        ("port_range_max 65536", SecurityGroupRule { port_range_max: 65_536, ..good.clone() }),
        ("port_range_min 256, an ICMP type", SecurityGroupRule { protocol: 2, ..tcp("r", (256, 0), "") }),
        ("direction 2", SecurityGroupRule { direction: 2, ..good.clone() }),
        ("ethertype 2", SecurityGroupRule { ethertype: 2, ..good.clone() }),
        ("protocol 5", SecurityGroupRule { protocol: 5, ..good.clone() }),
        ("operation_type 9", SecurityGroupRule { operation_type: 9, ..good.clone() }),
        ("remote_ip_prefix \"10.0.0.0/33\"", tcp("r", (1, 2), "10.0.0.0/33")),
        ("remote_ip_prefix 10.0.0.0/8 is IPv4", SecurityGroupRule { ethertype: 1, ..good.clone() }),
        ("remote_ip_prefix ::ffff:10.0.0.0/104 is IPv4", tcp("r", (1, 2), "::ffff:10.0.0.0/104")),
        (
            "remote_group_id is set beside",
            SecurityGroupRule { remote_group_id: "g".to_owned(), ..good.clone() },
        ),
        ("id is longer", SecurityGroupRule { id: "x".repeat(256), ..good.clone() }),
    ];
    for (fault, rule) in cases {
        let told = host.policy.plan(&group("g", vec![good.clone(), rule])).unwrap_err();
        assert!(told.starts_with("security_group_rules: rule ") && told.contains(fault), "{told}");
    }
}

fn delta(rules: Vec<SecurityGroupRule>) -> SecurityGroupConfiguration {
    SecurityGroupConfiguration { update_type: UpdateType::Delta as i32, ..group("g", rules) }
}

#[test]
fn a_list_of_infos_is_complete_and_one_with_operations_changes_what_it_lists() {
    let mut host = Host::new(&Settings::default());
    let with = |operation: OperationType, id: &str, port: u32| SecurityGroupRule {
        operation_type: operation as i32,
        ..tcp(id, (port, port), "")
    };
    let ids = |host: &Host| -> Vec<(String, u32)> {
        let shown = host.policy.show(host.policy.held_slot("g").unwrap());
        shown.security_group_rules.into_iter().map(|rule| (rule.id, rule.port_range_min)).collect()
    };
    let mut push = |config: SecurityGroupConfiguration| {
        let changes = host.policy.plan(&config).unwrap();
        host.policy.edit("g", changes).unwrap();
        ids(&host)
    };
    let named =
        |rules: &[(&str, u32)]| rules.iter().map(|(id, port)| ((*id).to_owned(), *port)).collect::<Vec<_>>();
    use OperationType::{Create, Delete, Get, Info, Update};
    // The first state is complete whatever it says.
    assert_eq!(
        push(delta(vec![with(Create, "1", 1), with(Info, "2", 2), with(Delete, "3", 3)])),
        named(&[("1", 1), ("2", 2)])
    );
    assert_eq!(push(delta(vec![])), named(&[("1", 1), ("2", 2)]), "an empty list leaves what is held");
    assert_eq!(
        push(delta(vec![with(Get, "9", 9)])),
        named(&[("1", 1), ("2", 2)]),
        "so does one that only asks"
    );
    assert_eq!(push(delta(vec![with(Create, "3", 3)])), named(&[("1", 1), ("2", 2), ("3", 3)]));
    assert_eq!(push(delta(vec![with(Update, "1", 7), with(Delete, "2", 0)])), named(&[("1", 7), ("3", 3)]));
    assert_eq!(push(delta(vec![with(Delete, "2", 0)])), named(&[("1", 7), ("3", 3)]));
    assert_eq!(push(delta(vec![with(Info, "3", 3), with(Info, "4", 4)])), named(&[("3", 3), ("4", 4)]));
    assert_eq!(push(group("g", vec![with(Create, "5", 5)])), named(&[("5", 5)]), "FULL is complete");
    assert_eq!(
        push(group("g", vec![with(Create, "5", 5), with(Create, "6", 6)])),
        named(&[("5", 5), ("6", 6)])
    );
    // What a complete list only asks about stays, as it is; what it does not name goes.
    assert_eq!(
        push(group("g", vec![with(Get, "6", 66), with(Create, "7", 7)])),
        named(&[("6", 6), ("7", 7)])
    );
}

#[test]
fn members_of_a_group_are_let_in_as_they_come_and_go() {
    let mut host = Host::new(&Settings::default());
    host.push("web", vec![from_group(tcp("1", (80, 80), ""), "clients")]).unwrap();
    let set = host.hold_set(&["web"]);
    host.step();
    assert!(host.entries.rules.is_empty(), "nobody is a member");
    let client = host.hold_members(&["clients"]);
    let both = host.hold_members(&["clients", "web"]);
    let other = host.hold_members(&["others"]);
    let (writes, changed) = host.compile();
    assert!(changed.is_empty(), "for those that are known, nothing has changed");
    writes.into_iter().for_each(|write| host.entries.write(write));
    let packet = packet(true, "10.0.0.1", 6, 80);
    let allowed =
        |host: &Host| [client, both, other, 0].map(|members| host.entries.allow(set, members, &packet));
    assert_eq!(allowed(&host), [true, true, false, false]);
    host.push_one("web", from_group(tcp("1", (80, 80), ""), "others"), false).unwrap();
    host.step();
    assert_eq!(allowed(&host), [false, false, true, false]);
    host.release_members(other);
    host.step();
    assert!(host.entries.rules.is_empty());
}
