//! The writer over real tables that are too small.

use ncm_common::tables::{IpKey, Port, Rule, RuleKey, set_direction};
use ncm_dataplane::{Capacities, Dataplane, Options};
use ncm_model::{Delta, Put};

use super::*;

/// A dataplane with room for ten rules.
fn open() -> Dataplane {
    let mut capacities = Capacities::default();
    capacities.set("rules", 10);
    capacities.set("ports", 16);
    Dataplane::open(&Options { capacities, ..Options::unpinned() }).expect("the object loads")
}

fn writer_of(tables: &Tables) -> Writer {
    Writer::of(tables.clone(), Arc::new(Epochs::read(tables))).expect("threads start")
}

fn rule(set: u32, port: u16) -> RuleKey {
    RuleKey {
        prefix_len: 96,
        set: set_direction(set, true),
        family: 4,
        protocol: 6,
        port: port.to_be_bytes(),
        ..RuleKey::default()
    }
}

fn puts<K, V: Default>(keys: impl IntoIterator<Item = K>, value: impl Fn(&K) -> V) -> Vec<Put<K, V>> {
    keys.into_iter().map(|key| Put { value: value(&key), key, cause: Handle::default() }).collect()
}

fn rules(set: u32, ports: std::ops::Range<u16>) -> Vec<Put<RuleKey, Rule>> {
    puts(ports.map(|port| rule(set, port)), |_| Rule { rules: 1 })
}

fn port(set: u32, epoch: u32) -> Vec<Put<u32, Port>> {
    puts([1], |_| Port { generation: 7, epoch, set, ..Port::default() })
}

/// The sets of the rules that there are, with how many each has.
fn sets(writer: &Writer) -> Vec<(u32, usize)> {
    let mut sets: HashMap<u32, usize> = HashMap::new();
    writer.tables.rules.for_each(|key, _| *sets.entry(key.set >> 1).or_default() += 1).expect("readable");
    let mut sets: Vec<_> = sets.into_iter().collect();
    sets.sort_unstable();
    sets
}

fn the_port(writer: &Writer) -> (u32, u32) {
    let port = writer.tables.ports.get(&1).expect("readable").expect("there is one");
    (port.set, port.epoch)
}

fn changes(
    rules: Delta<RuleKey, Rule>,
    ports: Vec<Put<u32, Port>>,
    port_epochs: Vec<Put<u32, Port>>,
) -> Changes {
    Changes {
        rules,
        ports: Delta { put: ports, del: Vec::new() },
        port_epochs: Delta { put: port_epochs, del: Vec::new() },
        ..Changes::default()
    }
}

#[test]
fn a_port_keeps_its_set_whole_until_the_new_one_is() {
    let dataplane = open();
    let mut writer = writer_of(dataplane.tables());
    let first = Delta { put: rules(1, 0..6), del: Vec::new() };
    assert!(writer.write(None, changes(first, port(1, 1), Vec::new())).0.is_empty());

    // Six come and six go: together they are too many.
    let old: Vec<RuleKey> = (0..6).map(|number| rule(1, number)).collect();
    let step = Delta { put: rules(2, 0..6), del: old };
    let (refused, ..) = writer.write(None, changes(step, port(2, 1), port(2, 2)));
    let tables: Vec<&str> = refused.iter().map(|refusal| refusal.table).collect();
    assert_eq!(tables, ["RULES", "RULES", "PORTS", "PORTS"]);
    assert!(refused[0].text.contains("capacity.rules"), "{}", refused[0].text);
    assert_eq!(the_port(&writer), (1, 2), "not the half of a set");
    assert_eq!(sets(&writer), [(1, 6), (2, 4)], "what the port has is not deleted");
    assert!(writer.withheld.take_crowded());

    // Trying again changes nothing, neither the deletions nor the additions.
    assert!(!writer.delete_again(None));
    assert_eq!(sets(&writer), [(1, 6), (2, 4)]);
    let step = || Delta { put: rules(2, 0..6), del: Vec::new() };
    assert_eq!(writer.write(None, changes(step(), port(2, 2), port(2, 3))).0.len(), 4);
    assert_eq!(the_port(&writer), (1, 3));

    // There is room: something else went.
    let mut more = Dataplane::tables(&dataplane).rules.clone();
    more = {
        more.delete_batch([rule(1, 5), rule(1, 4)]);
        more
    };
    drop(more);
    assert!(writer.write(None, changes(step(), port(2, 3), port(2, 4))).0.is_empty());
    assert_eq!(the_port(&writer), (2, 4));
    assert!(writer.delete_again(None), "flows may have been decided by them");
    assert_eq!(sets(&writer), [(2, 6)]);
    assert_eq!(writer.undeleted.len(), 0);
}

#[test]
fn rules_that_go_wait_for_those_that_come_in_their_place_but_not_for_ever() {
    let dataplane = open();
    let mut writer = writer_of(dataplane.tables());
    let first = Delta { put: rules(1, 0..10), del: Vec::new() };
    assert!(writer.write(None, changes(first, port(1, 1), Vec::new())).0.is_empty());
    let step = || Delta { put: rules(1, 20..22), del: vec![rule(1, 0), rule(1, 1)] };
    let (refused, ..) = writer.write(None, changes(step(), Vec::new(), port(1, 2)));
    assert_eq!(refused.len(), 2);
    assert_eq!(sets(&writer), [(1, 10)], "what both policies allow is allowed by the old rules still");
    // A rule that is to go does not stay because another finds no room.
    assert!(writer.delete_again(None));
    assert_eq!(sets(&writer), [(1, 8)]);
    let again = Delta { put: rules(1, 20..22), del: Vec::new() };
    assert!(writer.write(None, changes(again, Vec::new(), port(1, 3))).0.is_empty());
    assert_eq!(sets(&writer), [(1, 10)]);
}

#[test]
fn a_port_without_rules_or_closed_is_not_held_back() {
    let dataplane = open();
    let mut writer = writer_of(dataplane.tables());
    assert!(writer.write(None, changes(Delta::default(), port(0, 1), Vec::new())).0.is_empty());
    let step = Delta { put: rules(2, 0..12), del: Vec::new() };
    let (refused, ..) = writer.write(None, changes(step, port(2, 1), port(2, 2)));
    assert_eq!(refused.len(), 2, "of its rules");
    assert_eq!(the_port(&writer), (2, 2), "it was open, and is not any more");
}

#[test]
fn a_port_that_is_without_a_table_of_half_open_flows_gets_it_when_it_is_written_again() {
    let dataplane = open();
    let mut writer = writer_of(dataplane.tables());
    assert!(writer.write(None, changes(Delta::default(), port(0, 1), Vec::new())).0.is_empty());
    let tables = dataplane.tables();
    assert!(tables.half_open.has(1));
    let established = |established| ncm_common::tables::PortFlows { established, ..Default::default() };
    tables.port_flows.put(&1, &established(3)).expect("writable");
    assert!(tables.half_open.remove(&[1]).is_complete());
    assert!(!tables.half_open.has(1));
    assert!(writer.write(None, changes(Delta::default(), port(0, 1), Vec::new())).0.is_empty());
    assert!(tables.half_open.has(1));
    assert_eq!(
        tables.port_flows.get(&1).expect("readable"),
        Some(established(3)),
        "its flows are still its own"
    );
}

#[test]
fn the_epochs_of_addresses_go_on_from_what_an_earlier_run_left() {
    let dataplane = open();
    let tables = dataplane.tables();
    tables.remote_epochs.put(&5, &41).expect("writable");
    let mut writer = writer_of(tables);
    writer.write(None, Changes { epochs: vec![5, 6], ..Changes::default() });
    let mut next = writer_of(tables);
    next.write(None, Changes { epochs: vec![5], ..Changes::default() });
    let epoch = |slot: u32| tables.remote_epochs.get(&slot).expect("readable");
    assert_eq!((epoch(4), epoch(5), epoch(6)), (Some(0), Some(43), Some(1)));
}

#[test]
fn a_deletion_that_succeeds_only_later_has_flows_decided_anew() {
    let dataplane = open();
    let tables = dataplane.tables().clone();
    let mut writer = writer_of(&tables);
    let key = IpKey { vni: 7, ip: [9; 16] };
    tables.endpoints_ip.put(&key, &Endpoint::default()).expect("room");
    tables.rules.put(&rule(1, 80), &Rule { rules: 1 }).expect("room");
    // As if the kernel had refused to delete them in their step.
    writer.undeleted.tables().endpoints_ip.del.push(key);
    let slot = epoch_slot(key.vni, &key.ip);
    let epoch = || tables.remote_epochs.get(&slot).expect("readable");
    assert!(!writer.delete_again(None), "no port's flows are decided by an endpoint");
    assert_eq!((epoch(), tables.endpoints_ip.count().expect("readable")), (Some(1), 0));
    writer.undeleted.tables().rules.del.push(rule(1, 80));
    assert!(writer.delete_again(None), "ports' flows may have been");
    assert_eq!((sets(&writer), writer.undeleted.len()), (vec![], 0));
    assert!(!writer.delete_again(None), "there is nothing left");
}
