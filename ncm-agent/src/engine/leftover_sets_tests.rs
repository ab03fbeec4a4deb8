//! What is freed of earlier runs, over real tables.

use ncm_common::tables::{ClassKey, Classes, Endpoint, IpKey, Port, Rule, RuleKey, set_direction};
use ncm_dataplane::{Dataplane, Options};

use super::*;

fn rule(set: u32, class: u32) -> RuleKey {
    RuleKey { prefix_len: 72, set: set_direction(set, false), class, family: 4, ..RuleKey::default() }
}

fn name(kind: u32, index: u32) -> NameKey {
    NameKey { kind, index }
}

#[test]
fn what_no_port_and_no_endpoint_has_goes_and_what_one_has_stays() {
    let dataplane = Dataplane::open(&Options::unpinned()).expect("the object loads");
    let tables = dataplane.tables();
    let long = "g".repeat(200);
    let mut names = vec![
        (name(name_kinds::SET, 3), Name::new("a", 1)),
        (name(name_kinds::SET, 4), Name::new("b", 1)),
        (name(name_kinds::MEMBERS, 6), Name::new("a", 1)),
        (name(name_kinds::MEMBERS, 7), Name::new("b", 1)),
        (name(name_kinds::MEMBERS, 8), Name::new(&long, 1)),
        (name(name_kinds::PORT, 1), Name::new("p", 1)),
    ];
    let mut leftover = LeftoverSets::new(&names);
    // This run's set has a number above theirs.
    names.push((name(name_kinds::SET, 5), Name::new("a,b", 1)));
    assert!(tables.names.put_batch(names).is_complete());
    for set in [3, 4, 5] {
        tables.rules.put(&rule(set, 0), &Rule { rules: 1 }).expect("writable");
        let key = ClassKey { prefix_len: 32, set: set_direction(set, true), ..ClassKey::default() };
        tables.classes.put(&key, &Classes::default()).expect("writable");
    }
    let port = |set| Port { generation: 1, set, ..Port::default() };
    tables.ports.put(&1, &port(3)).expect("writable");
    let key = IpKey { vni: 1, ..IpKey::default() };
    tables
        .endpoints_ip
        .put(&key, &Endpoint { members: MEMBERS | 7, ..Endpoint::default() })
        .expect("writable");

    assert_eq!(leftover.sweep(tables).expect("readable"), [6], "the model's: it has taken over 6 and 7");
    let sets = || {
        let mut sets = Vec::new();
        tables.rules.for_each(|key, _| sets.push(key.set >> 1)).expect("readable");
        tables.classes.for_each(|key, _| sets.push(key.set >> 1)).expect("readable");
        sets.sort_unstable();
        sets
    };
    assert_eq!(sets(), [3, 3, 5, 5]);
    let is_there = |kind, index| tables.names.get(&name(kind, index)).expect("readable").is_some();
    assert!(is_there(name_kinds::SET, 3) && !is_there(name_kinds::SET, 4) && is_there(name_kinds::SET, 5));
    assert!(
        is_there(name_kinds::MEMBERS, 6) && is_there(name_kinds::MEMBERS, 7),
        "the model takes them away"
    );
    assert!(!is_there(name_kinds::MEMBERS, 8));

    tables.ports.put(&1, &port(5)).expect("writable");
    tables.endpoints_ip.put(&key, &Endpoint::default()).expect("writable");
    assert_eq!(leftover.sweep(tables).expect("readable"), [7]);
    assert_eq!(sets(), [5, 5]);
    assert!(!is_there(name_kinds::SET, 3) && is_there(name_kinds::PORT, 1));
    assert_eq!((leftover.first_set, leftover.first_members), (0, 0), "nothing is left to look for");
}
