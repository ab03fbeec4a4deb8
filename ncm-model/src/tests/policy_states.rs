//! Security groups as states: what is answered, what ports make of them, and how they are shown.

use ncm_common::tables::{MEMBERS, Port, port_flags};

use super::kernel::Node;
use super::policy::{Entries, from_group, group, tcp};
use super::states::{Build, CREATE, DELETE, UPDATE, base, empty, mac, neighbour, port};
use crate::policy::reference::Packet;
use crate::settings::{Limits, Settings};
use crate::state::{ChangeKind, Filter};
use crate::wire::OperationStatus::{Failure, InvalidArg, OutOfOrder, Pending, Success};
use crate::wire::port_configuration::SecurityGroupId;
use crate::wire::security_group_configuration::SecurityGroupRule;
use crate::wire::{
    GoalState, OperationStatus, OperationType, ResourceType, SecurityGroupConfiguration, SecurityGroupState,
    UpdateType,
};
use crate::{Changes, Cursor, Message};
use prost::Message as _;

fn with(state: GoalState, operation: OperationType, config: SecurityGroupConfiguration) -> GoalState {
    let state_of = SecurityGroupState { operation_type: operation as i32, configuration: Some(config) };
    GoalState { security_group_states: [state.security_group_states, vec![state_of]].concat(), ..state }
}

fn state(operation: OperationType, config: SecurityGroupConfiguration) -> GoalState {
    with(empty(), operation, config)
}

fn push(node: &mut Node, operation: OperationType, config: SecurityGroupConfiguration) -> OperationStatus {
    node.one(&state(operation, config)).status
}

fn at(revision: u32, id: &str, rules: Vec<SecurityGroupRule>) -> SecurityGroupConfiguration {
    SecurityGroupConfiguration { revision_number: revision, ..group(id, rules) }
}

fn port_of(id: &str, number: u8, groups: &[&str]) -> crate::wire::PortConfiguration {
    let mut config = port(id, &mac(number), &[("s", &format!("10.0.0.{number}"))]);
    config.security_group_ids = groups.iter().map(|id| SecurityGroupId { id: (*id).into() }).collect();
    config
}

/// A node with VPC and subnet, and port `p` with an interface, in these groups.
fn node(settings: Settings, groups: &[&str]) -> Node {
    let mut node = Node::with(settings);
    node.push(&base());
    node.push(&empty().port(CREATE, port_of("p", 5, groups)));
    node.appear("tapp", 7);
    node
}

fn the_port(node: &Node, id: &str) -> Port {
    node.kernel.ports[&node.model.ports[node.model.port_by_id[id]].index]
}

fn allowed(node: &Node, id: &str, remote: &str, tcp_port: u16) -> bool {
    let port = the_port(node, id);
    if port.flags & port_flags::CLOSED != 0 {
        return false;
    }
    let entries = Entries { rules: node.kernel.rules.clone(), classes: node.kernel.classes.clone() };
    let remote: std::net::IpAddr = remote.parse().unwrap();
    let endpoint = node
        .kernel
        .endpoints_ip
        .iter()
        .find(|(key, _)| std::net::IpAddr::from(key.ip).to_canonical() == remote);
    let members = endpoint.map_or(0, |(_, endpoint)| endpoint.members);
    let packet = Packet { to_guest: true, remote, members: Vec::new(), protocol: 6, port: tcp_port };
    entries.allow(port.set, members, &packet)
}

#[test]
fn a_port_is_closed_until_all_its_groups_are_held_and_then_filtered() {
    let mut node = node(Settings::default(), &["web", "admin"]);
    assert_eq!(node.standing("p").0, Pending);
    assert!(!allowed(&node, "p", "1.2.3.4", 80));
    assert_eq!(push(&mut node, CREATE, at(1, "web", vec![tcp("1", (80, 80), "")])), Success);
    let (status, cause) = node.standing("p");
    assert_eq!(status, Pending);
    assert!(cause.contains("security group admin is not held"), "{cause}");
    assert!(!allowed(&node, "p", "1.2.3.4", 80), "half of its policy is none");
    assert_eq!(push(&mut node, CREATE, at(1, "admin", vec![tcp("1", (22, 22), "10.0.0.0/8")])), Success);
    assert_eq!(node.standing("p").0, Success);
    assert!(allowed(&node, "p", "1.2.3.4", 80) && allowed(&node, "p", "10.1.1.1", 22));
    assert!(!allowed(&node, "p", "1.2.3.4", 22) && !allowed(&node, "p", "1.2.3.4", 81));
    node.check();

    // A second port with the same groups, in any order, shares their set; one without any is open.
    node.push(
        &empty().port(CREATE, port_of("q", 6, &["admin", "web", "admin"])).port(CREATE, port_of("o", 7, &[])),
    );
    assert_eq!(the_port(&node, "q").set, the_port(&node, "p").set);
    assert_eq!(the_port(&node, "o").set, 0);
    assert!(allowed(&node, "o", "1.2.3.4", 9));
    node.check();

    // The group goes: closed again, and nothing of the set is left.
    assert_eq!(push(&mut node, DELETE, at(1, "admin", vec![])), Success);
    assert_eq!(node.standing("p").0, Pending);
    assert!(!allowed(&node, "p", "1.2.3.4", 80));
    assert!(node.kernel.rules.is_empty() && node.kernel.classes.is_empty());
    node.check();
}

#[test]
fn a_change_of_rules_raises_the_epochs_of_its_ports_and_of_no_other() {
    let mut node = node(Settings::default(), &["web"]);
    node.push(&empty().port(CREATE, port_of("q", 6, &["db"])));
    push(&mut node, CREATE, at(1, "web", vec![tcp("1", (80, 80), "")]));
    push(&mut node, CREATE, at(1, "db", vec![tcp("1", (5_432, 5_432), "")]));
    let epochs = |node: &Node| [the_port(node, "p").epoch, the_port(node, "q").epoch];
    let before = epochs(&node);
    let more = |rules: Vec<SecurityGroupRule>| SecurityGroupConfiguration {
        update_type: UpdateType::Delta as i32,
        ..at(1, "web", rules)
    };
    let item = |operation: OperationType, rule: SecurityGroupRule| SecurityGroupRule {
        operation_type: operation as i32,
        ..rule
    };
    push(&mut node, UPDATE, more(vec![item(CREATE, tcp("2", (443, 443), ""))]));
    let now = epochs(&node);
    assert!(now[0] > before[0] && now[1] == before[1], "{before:?} {now:?}");
    assert!(allowed(&node, "p", "1.2.3.4", 443) && allowed(&node, "p", "1.2.3.4", 80));
    push(&mut node, UPDATE, more(vec![item(DELETE, tcp("1", (0, 0), ""))]));
    assert!(epochs(&node)[0] > now[0] && !allowed(&node, "p", "1.2.3.4", 80));
    let now = epochs(&node);
    push(&mut node, UPDATE, more(vec![item(CREATE, tcp("2", (443, 443), ""))]));
    assert_eq!(epochs(&node), now, "the same once more");
    node.check();
}

#[test]
fn members_are_local_ports_and_neighbours_that_say_so() {
    let mut node = node(Settings::default(), &["web"]);
    push(&mut node, CREATE, at(1, "web", vec![from_group(tcp("1", (80, 80), ""), "clients")]));
    node.push(&empty().port(CREATE, port_of("q", 6, &["clients"])));
    let mut remote = neighbour("n", &mac(9), "192.168.0.2", &[(0, "s", "10.0.0.9")]);
    remote.security_group_ids = vec!["other".into(), "clients".into()];
    node.push(&empty().neighbour(CREATE, remote.clone()));
    assert!(
        allowed(&node, "p", "10.0.0.9", 80) && allowed(&node, "p", "10.0.0.6", 80),
        "also of a group not held"
    );
    assert!(!allowed(&node, "p", "10.0.0.8", 80) && !allowed(&node, "p", "10.0.0.5", 80));
    assert!(node.kernel.endpoints_ip.values().any(|endpoint| endpoint.members & MEMBERS != 0));
    node.check();
    remote.security_group_ids = vec!["other".into()];
    node.push(&empty().neighbour(UPDATE, remote));
    assert!(!allowed(&node, "p", "10.0.0.9", 80));
    node.push(&empty().port(DELETE, port_of("q", 6, &[])));
    assert!(node.kernel.rules.is_empty(), "no member of clients is left");
    node.check();
}

#[test]
fn one_message_may_replace_a_group_by_another() {
    let mut node = node(Settings::default(), &["old"]);
    push(&mut node, CREATE, at(1, "old", vec![tcp("1", (80, 80), "")]));
    node.step = 1;
    let message =
        with(state(DELETE, at(1, "old", vec![])), CREATE, at(1, "new", vec![tcp("1", (80, 80), "")]))
            .port(UPDATE, port_of("p", 5, &["new"]));
    let mut run = crate::Run::new(
        Message::decode_v1(message.encode_to_vec().into()).unwrap(),
        crate::Origin::Controller,
        0,
    );
    loop {
        let mut changes = Changes::default();
        let progress = node.model.step(&mut run, 1, &mut changes);
        node.kernel.apply(&changes);
        assert!(allowed(&node, "p", "1.2.3.4", 80), "not closed in between");
        if progress == crate::Progress::Done {
            break;
        }
    }
    assert_eq!(node.standing("p").0, Success);
    node.check();
}

#[test]
fn revisions_tombstones_and_operations_are_those_of_every_resource() {
    let mut node = node(Settings::default(), &[]);
    assert_eq!(push(&mut node, DELETE, at(1, "g", vec![])), Failure, "never held");
    assert_eq!(push(&mut node, OperationType::Get, at(1, "g", vec![])), Success);
    assert!(node.model.held_group("g").is_none());
    assert_eq!(push(&mut node, OperationType::Info, at(3, "g", vec![tcp("1", (1, 1), "")])), Success);
    let version = |node: &Node| node.list().into_iter().find(|view| view.id == "g").unwrap().version;
    let first = version(&node);
    assert_eq!(push(&mut node, CREATE, at(3, "g", vec![tcp("1", (1, 1), "")])), Success);
    assert_eq!(version(&node), first, "a repetition is no change");
    assert_eq!(push(&mut node, UPDATE, at(2, "g", vec![])), OutOfOrder);
    assert_eq!(
        push(&mut node, UPDATE, at(0, "g", vec![tcp("1", (2, 2), "")])),
        Success,
        "unversioned is accepted"
    );
    assert!(version(&node) > first);
    let bad = SecurityGroupRule { direction: 7, ..tcp("2", (1, 1), "") };
    let answer = node.one(&state(UPDATE, at(4, "g", vec![tcp("9", (9, 9), ""), bad])));
    assert_eq!(answer.status, InvalidArg);
    assert!(answer.cause.contains("rule 2: direction 7"), "{}", answer.cause);
    let shown = node.list().into_iter().find(|view| view.id == "g").unwrap();
    let held = SecurityGroupState::decode(shown.state.as_slice()).unwrap().configuration.unwrap();
    assert_eq!(
        (held.security_group_rules.len(), held.revision_number),
        (1, 3),
        "nothing of a bad state is taken"
    );
    assert_eq!(push(&mut node, DELETE, at(2, "g", vec![])), OutOfOrder);
    assert_eq!(push(&mut node, DELETE, at(3, "g", vec![])), Success);
    assert_eq!(push(&mut node, DELETE, at(3, "g", vec![])), Success, "the tombstone is held");
    assert_eq!(push(&mut node, CREATE, at(2, "g", vec![])), OutOfOrder, "nothing is resurrected");
    assert_eq!(push(&mut node, CREATE, at(3, "g", vec![])), Success);
}

#[test]
fn delta_leaves_what_is_empty_and_full_replaces_it() {
    let mut node = node(Settings::default(), &[]);
    let config = SecurityGroupConfiguration {
        name: "n".into(),
        vpc_id: "v".into(),
        ..at(1, "g", vec![tcp("1", (1, 1), "")])
    };
    push(&mut node, CREATE, config);
    let shown = |node: &Node| node.model.group_configuration(node.model.policy.held_slot("g").unwrap());
    let delta = SecurityGroupConfiguration { update_type: UpdateType::Delta as i32, ..at(1, "g", vec![]) };
    push(&mut node, UPDATE, delta);
    let held = shown(&node);
    assert_eq!((held.name.as_str(), held.vpc_id.as_str(), held.security_group_rules.len()), ("n", "v", 1));
    push(&mut node, UPDATE, at(1, "g", vec![]));
    let held = shown(&node);
    assert_eq!((held.name.as_str(), held.vpc_id.as_str(), held.security_group_rules.len()), ("", "", 0));
    let answer =
        node.one(&state(UPDATE, SecurityGroupConfiguration { update_type: 2, ..at(1, "g", vec![]) }));
    assert_eq!(answer.status, InvalidArg);
}

#[test]
fn groups_are_listed_counted_and_previewed() {
    let mut node = node(Settings::default(), &["g"]);
    push(&mut node, CREATE, at(1, "g", vec![tcp("1", (1, 1), ""), tcp("2", (2, 2), "10.0.0.0/8")]));
    push(&mut node, CREATE, at(1, "h", vec![]));
    let filter = Filter { resource_type: Some(ResourceType::Securitygroup), ..Filter::default() };
    let (views, _) = node.model.list(&filter, Cursor::default(), 10);
    assert_eq!(views.iter().map(|view| view.id.as_str()).collect::<Vec<_>>(), ["g", "h"]);
    let counts = node.model.counts();
    let count = counts.iter().find(|count| count.resource_type == ResourceType::Securitygroup).unwrap();
    assert_eq!((count.status, count.count), (Success, 2));
    let preview = |node: &Node, state: GoalState| {
        let message = Message::decode_v1(state.encode_to_vec().into()).unwrap();
        let mut differences = node.model.preview(&message, 9);
        assert_eq!(differences.len(), 1);
        let difference = differences.remove(0);
        (difference.change, difference.fields)
    };
    let rules = vec![tcp("1", (1, 9), ""), tcp("3", (3, 3), "")];
    let (change, fields) = preview(&node, state(UPDATE, at(1, "g", rules)));
    assert_eq!(change, ChangeKind::Changed);
    assert_eq!(fields, ["security_group_rules: 1 added, 1 changed, 1 removed"]);
    assert_eq!(preview(&node, state(UPDATE, at(1, "h", vec![]))).0, ChangeKind::Unchanged);
    assert_eq!(preview(&node, state(UPDATE, at(1, "new", vec![]))).0, ChangeKind::Added);
    assert_eq!(preview(&node, state(DELETE, at(1, "h", vec![]))).0, ChangeKind::Removed);
    let bad = SecurityGroupRule { protocol: 77, ..tcp("1", (1, 1), "") };
    assert_eq!(preview(&node, state(UPDATE, at(1, "h", vec![bad]))).0, ChangeKind::Refused);
}

#[test]
fn a_group_that_exceeds_a_bound_is_a_failure_alone() {
    let limits = Limits { set_entries: 50, rules: 100, ..Limits::default() };
    let mut node = node(Settings { limits, ..Settings::default() }, &["g"]);
    let many = |count: u32| {
        (0..count).map(|n| tcp(&format!("r{n}"), (2 * n + 1, 2 * n + 1), "")).collect::<Vec<_>>()
    };
    assert_eq!(push(&mut node, CREATE, at(1, "g", many(50))), Success);
    node.push(&empty().port(CREATE, port_of("q", 6, &["h"])));
    let others = (0..10).map(|n| tcp(&format!("r{n}"), (2 * n + 1_001, 2 * n + 1_001), "")).collect();
    let message = with(state(UPDATE, at(2, "g", many(51))), CREATE, at(1, "h", others));
    let mut answers = node.push(&message);
    answers.sort_by(|one, other| one.id.cmp(&other.id));
    assert_eq!((answers[0].status, answers[1].status), (Failure, Success));
    assert!(answers[0].cause.contains("limits.set_entries"), "{}", answers[0].cause);
    assert_eq!(node.standing("p").0, Success, "with what it had");
    assert!(allowed(&node, "p", "1.2.3.4", 1) && allowed(&node, "q", "1.2.3.4", 1_001));
    // Two that fit by themselves, and not together: the port with both is closed, and each says why.
    node.push(&empty().port(CREATE, port_of("r", 8, &["g", "h"])));
    for id in ["r", "g", "h"] {
        let (status, cause) = node.standing(id);
        assert_eq!(status, Failure, "{id}: {cause}");
        assert!(cause.contains("g, h together take 60"), "{cause}");
    }
    assert!(!allowed(&node, "r", "1.2.3.4", 1) && allowed(&node, "p", "1.2.3.4", 1));
    node.check();
    assert_eq!(push(&mut node, UPDATE, at(2, "g", many(40))), Success);
    assert!(allowed(&node, "r", "1.2.3.4", 1));
    node.check();
    // All rules together.
    let answer = node.one(&state(CREATE, at(1, "k", many(51))));
    assert_eq!(answer.status, Failure);
    assert!(answer.cause.contains("limits.rules"), "{}", answer.cause);
    assert!(node.model.held_group("k").is_none());
}

#[test]
fn what_the_kernel_refuses_of_a_group_is_its_failure_until_a_retry_succeeds() {
    let mut node = node(Settings::default(), &["g"]);
    let message = state(CREATE, at(1, "g", vec![tcp("1", (1, 1), "")]));
    let mut run = crate::Run::new(
        Message::decode_v1(message.encode_to_vec().into()).unwrap(),
        crate::Origin::Controller,
        0,
    );
    let mut changes = Changes::default();
    node.model.step(&mut run, 100, &mut changes);
    let cause = changes.rules.put[0].cause;
    assert_eq!(node.model.resource_name(cause), "security group g");
    node.model.write_failed(cause, "RULES", "the table is full");
    let (status, text) = node.standing("g");
    assert_eq!(status, Failure);
    assert!(text.contains("rules: the table is full"), "{text}");
    let mut changes = Changes::default();
    assert_eq!(node.model.retry(10, &mut changes), 1);
    assert_eq!(changes.rules.put.len(), 1, "it is written again");
    assert_eq!(node.standing("g").0, Success);
}
