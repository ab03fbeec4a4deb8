//! A model that begins anew over tables that an earlier run has left.

use std::collections::BTreeSet;

use ncm_common::tables::{MEMBERS, NO_RULES, Port, port_flags};

use super::kernel::{Kernel, Node};
use super::policy::{from_group, group, tcp};
use super::states::*;
use crate::wire::OperationStatus::{Pending, Success};
use crate::wire::port_configuration::SecurityGroupId;
use crate::wire::{NeighborConfiguration, PortConfiguration};
use crate::{Changes, InterfaceFacts, Model, Seed};

/// What a new run finds.
fn seed(kernel: &Kernel, run: u32) -> Seed {
    Seed {
        names: kernel.names.iter().map(|(key, name)| (*key, *name)).collect(),
        ports: kernel.ports.iter().map(|(index, port)| (*index, *port)).collect(),
        run,
    }
}

/// The same node with the same tables, and a model that knows of nothing else.
fn again(first: &Node, run: u32) -> Node {
    let settings = first.model.settings().clone();
    let mut second = Node::with(settings.clone());
    second.model = Model::new(settings, &seed(&first.kernel, run));
    second.kernel = first.kernel.clone();
    // What is sent to them is the engine's.
    second.kernel.hosts.clear();
    second
}

fn the_port(node: &Node, id: &str) -> (u32, Port) {
    let index = node.model.ports[node.model.port_by_id[id]].index;
    (index, node.kernel.ports[&index])
}

fn in_groups(id: &str, number: u8, groups: &[&str]) -> PortConfiguration {
    let mut config = port(id, &mac(number), &[("s", &format!("10.0.0.{number}"))]);
    config.security_group_ids = groups.iter().map(|id| SecurityGroupId { id: (*id).into() }).collect();
    config
}

fn member(id: &str, number: u8, groups: &[&str]) -> NeighborConfiguration {
    let ip = format!("10.0.0.{number}");
    let mut config = neighbour(id, &mac(number), "192.168.0.2", &[(0, "s", &ip)]);
    config.security_group_ids = groups.iter().map(|id| (*id).to_owned()).collect();
    config
}

#[test]
fn the_index_of_a_port_that_went_before_a_restart_never_comes_back_with_its_generation() {
    let mut first = Node::new();
    first.push(&base().port(CREATE, in_groups("a", 5, &[])));
    let (index, gone) = the_port(&first, "a");
    first.push(&empty().port(DELETE, port("a", "", &[])));
    assert!(first.kernel.ports.is_empty(), "nothing tells of it any more");
    let mut second = again(&first, 77);
    second.push(&base().port(CREATE, in_groups("b", 5, &[])));
    let (taken, new) = the_port(&second, "b");
    assert_eq!(taken, index);
    assert_ne!(new.generation, gone.generation, "flows of the first port would be the second's");
}

#[test]
fn the_epoch_of_a_port_that_was_there_rises_last() {
    let mut first = Node::new();
    let state = base().port(CREATE, in_groups("a", 5, &[]));
    first.push(&state);
    let (index, before) = the_port(&first, "a");
    // What a step puts into PORTS with a risen epoch, before all else is written, fails a check of the node's.
    let mut second = again(&first, 77);
    second.push(&state);
    let (_, after) = the_port(&second, "a");
    assert_eq!((after.generation, after.epoch), (before.generation, before.epoch + 1));
    assert_eq!(the_port(&second, "a").0, index);
}

#[test]
fn after_a_restart_the_flows_to_a_mac_are_decided_anew_as_well() {
    let mut first = Node::new();
    let at = |host: &str| base().neighbour(CREATE, neighbour("n", &mac(9), host, &[(0, "s", "10.0.0.9")]));
    first.push(&at("192.168.0.2"));
    let mut second = again(&first, 77);
    // The node compares the slots that rise with what has changed in the tables.
    second.push(&at("192.168.0.3"));
}

#[test]
fn members_that_are_not_pushed_again_yet_go_on_being_let_in() {
    let web = || empty().group(CREATE, group("web", vec![from_group(tcp("1", (80, 80), ""), "clients")]));
    let mut first = Node::new();
    first.push(&base());
    first.push(&web());
    first.push(&empty().port(CREATE, in_groups("p", 5, &["web"])));
    first.push(&empty().neighbour(CREATE, member("n", 9, &["clients", "others"])));
    let class = |node: &Node| {
        let remote = node.kernel.endpoints_ip.iter().filter(|(key, _)| key.ip[15] > 5);
        remote.map(|(_, endpoint)| endpoint.members).collect::<BTreeSet<u32>>()
    };
    let members = class(&first);
    assert_eq!(members.len(), 1);
    let rules = |node: &Node| {
        let (_, port) = the_port(node, "p");
        let of = node.kernel.rules.keys().filter(|key| key.set >> 1 == port.set);
        of.map(|key| key.class).collect::<BTreeSet<u32>>()
    };
    assert_eq!(rules(&first), members);

    let mut second = again(&first, 77);
    second.push(&base());
    second.push(&web());
    second.push(&empty().port(CREATE, in_groups("p", 5, &["web"])));
    assert_eq!(rules(&second), members, "the neighbour's entry has this class as before");
    second.push(&empty().neighbour(CREATE, member("n", 9, &["others", "clients"])));
    assert_eq!(class(&second), members, "the same list is the same class");
    second.push(&empty().neighbour(CREATE, member("m", 10, &["others"])));
    assert!(class(&second).is_superset(&members) && class(&second).len() == 2);

    let mut changes = Changes::default();
    let former: Vec<u32> = members.iter().map(|class| class & !MEMBERS).collect();
    second.model.release_former_members(&former, &mut changes);
    assert!(changes.is_empty(), "the neighbour has it");
    second.push(&empty().neighbour(DELETE, member("n", 9, &[])));
    assert_eq!(rules(&second), BTreeSet::new());
}

#[test]
fn what_no_entry_has_of_former_members_goes() {
    let mut first = Node::new();
    first.push(&base().neighbour(CREATE, member("n", 9, &["clients"])));
    let names = first.kernel.names.len();
    let mut second = again(&first, 77);
    second.push(&base());
    assert_eq!(second.kernel.names.len(), names);
    let mut changes = Changes::default();
    second.model.release_former_members(&[1], &mut changes);
    assert_eq!(changes.names.del.len(), 1);
}

#[test]
fn a_class_is_not_taken_for_that_of_another_list_with_the_same_text() {
    let mut first = Node::new();
    first.push(&base().neighbour(CREATE, member("n", 9, &["a,b"])));
    let mut second = again(&first, 77);
    second.push(&base().neighbour(CREATE, member("m", 10, &["a", "b"])));
    let of: Vec<u32> = second.kernel.endpoints_ip.values().map(|endpoint| endpoint.members).collect();
    assert!(of.len() == 2 && of[0] != of[1], "{of:x?}");
}

#[test]
fn a_port_goes_on_having_its_interface() {
    let named = || PortConfiguration { interface_name: "tap0".into(), ..in_groups("a", 5, &[]) };
    let facts = InterfaceFacts { ifindex: 7, mtu: 1400, xdp_target: true };
    let mut first = Node::new();
    first.push(&base().port(CREATE, named()));
    first.interface("tap0", Some(facts));
    let (index, before) = the_port(&first, "a");
    assert_eq!((before.ifindex, before.mtu), (7, 1400));

    let mut second = again(&first, 77);
    second.model.adopt_interface("tap0", facts);
    second.push(&base().port(CREATE, named()));
    let (_, after) = the_port(&second, "a");
    assert_eq!((after.ifindex, after.mtu, after.flags), (7, 1400, before.flags));
    assert_eq!(second.kernel.port_by_interface[&7].index, index);
    assert_eq!(second.standing("a").0, Success);
    assert!(second.wanted.contains("tap0"), "the engine still has to look after it");
    second.interface("tap0", None);
    assert_eq!(the_port(&second, "a").1.ifindex, 0);

    let mut third = again(&first, 78);
    third.model.adopt_interface("tap0", facts);
    third.interface("tap0", None);
    third.push(&base().port(CREATE, named()));
    assert_eq!(the_port(&third, "a").1.ifindex, 0, "it went before it was asked for");
}

#[test]
fn a_closed_port_has_a_set_that_allows_nothing() {
    let mut node = Node::new();
    node.push(&base().port(CREATE, in_groups("p", 5, &["web"])));
    assert_eq!(node.standing("p").0, Pending);
    let (_, closed) = the_port(&node, "p");
    assert_eq!((closed.flags & port_flags::CLOSED != 0, closed.set), (true, NO_RULES));
    node.push(&empty().group(CREATE, group("web", Vec::new())));
    let (_, open) = the_port(&node, "p");
    assert!(open.flags & port_flags::CLOSED == 0 && open.set != 0 && open.set != NO_RULES);
}

#[test]
fn ports_share_the_table_of_flows_and_entries_are_rewritten_seldom() {
    let mut node = Node::with(crate::Settings {
        slots: crate::Slots { flows: 1 << 20, ..crate::Slots::default() },
        ..crate::Settings::default()
    });
    node.push(&base());
    let share = |node: &Node| {
        let shares: BTreeSet<u32> = node.kernel.ports.values().map(|port| port.max_flows).collect();
        assert_eq!(shares.len(), 1, "{shares:?}");
        shares.first().copied().unwrap_or_default()
    };
    let mut changes = 0;
    let mut last = 0;
    for number in 1..=100 {
        node.push(&empty().port(CREATE, in_groups(&format!("p{number}"), number, &[])));
        let now = share(&node);
        assert!(u64::from(now) * u64::from(number) <= 1 << 20, "{number} ports of {now}");
        changes += u32::from(now != last);
        last = now;
    }
    assert_eq!(last, (1 << 20) / 8 * 7 / 128);
    assert!(changes <= 8, "{changes}");
    let epochs: BTreeSet<u32> = node.kernel.ports.values().map(|port| port.epoch).collect();
    assert_eq!(epochs, BTreeSet::from([1]), "no flow is decided by its port's share");
    for number in 5..=100 {
        node.push(&empty().port(DELETE, port(&format!("p{number}"), "", &[])));
    }
    assert_eq!(share(&node), (1 << 20) / 8 * 7 / 4);
}
