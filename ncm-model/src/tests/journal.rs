//! A model that is made again from what a journal keeps: the messages with their steps, or a snapshot. It holds the same, and finds
//! nothing to change in the tables that the first has left.

use proptest::prelude::*;
use prost::Message as _;

use super::kernel::{Kernel, Node};
use super::properties::{Event, event, interfaces_of};
use super::states::empty;
use crate::wire::{NeighborState, ResourceType};
use crate::{Changes, Facts, Found, Message, Model, Origin, Progress, Run, Seed, Seen, Settings, StateView};

/// What a new run finds in the tables.
fn seed(kernel: &Kernel) -> Seed {
    Seed {
        names: kernel.names.iter().map(|(key, name)| (*key, *name)).collect(),
        ports: kernel.ports.iter().map(|(index, port)| (*index, *port)).collect(),
        run: 1000,
    }
}

fn found(kernel: &Kernel) -> Found {
    macro_rules! all {
        ($($table:ident),+) => {
            Found {
                hosts: kernel.hosts.iter().map(|(index, (generation, ip))| (*index, *generation, *ip)).collect(),
                $($table: kernel.$table.iter().map(|(key, value)| (*key, *value)).collect(),)+
            }
        };
    }
    all!(
        names,
        rules,
        classes,
        subnets,
        ports,
        vnis,
        subnet_prefixes,
        vteps,
        routes,
        sources,
        source_prefixes,
        devices,
        port_by_interface
    )
}

/// Compares all tables, in small parts where they come in parts.
fn reconcile(model: &mut Model, kernel: &Kernel) -> Changes {
    let mut changes = Changes::default();
    model.adopt_sets(&found(kernel));
    model.adopt_epochs(&found(kernel).ports);
    model.reconcile(&found(kernel), true, &mut changes);
    let mut seen = Seen::default();
    let by_ip: Vec<_> = kernel.endpoints_ip.iter().map(|(key, value)| (*key, *value)).collect();
    by_ip.chunks(3).for_each(|part| model.reconcile_by_ip(part, &mut seen, true, &mut changes));
    let by_mac: Vec<_> = kernel.endpoints_mac.iter().map(|(key, value)| (*key, *value)).collect();
    by_mac.chunks(3).for_each(|part| model.reconcile_by_mac(part, &mut seen, true, &mut changes));
    let mut at = 0;
    while model.reconcile_missing(&seen, &mut at, 3, &mut changes) {}
    changes
}

/// The second of two nodes that should be the same: it ends its replay, finds the interfaces, and writes what differs.
fn resume(first: &Node, mut model: Model) -> (Node, Changes) {
    model.end_replay(true);
    for (name, facts) in interfaces_of(first) {
        model.set_interface(&name, Some(facts), &mut Changes::default());
    }
    let changes = reconcile(&mut model, &first.kernel);
    let mut second = Node { model, kernel: first.kernel.clone(), step: 1000, now: 1, ..Node::default() };
    second.kernel.hosts.clear();
    let without_removals =
        changes.hosts.iter().filter(|change| matches!(change, crate::HostChange::Add { .. }));
    second.kernel.apply(&Changes { hosts: without_removals.copied().collect(), ..changes.clone() });
    (second, changes)
}

fn begin(first: &Node) -> Model {
    let mut model = Model::new(first.model.settings().clone(), &seed(&first.kernel));
    model.begin_replay();
    model
}

/// All that is held, in an order of its own: slots are not part of it, nor is the order of a neighbour's addresses.
fn held(node: &Node) -> Vec<StateView> {
    let mut views = node.list();
    // Of several causes one is named.
    views.iter_mut().for_each(|view| view.cause.clear());
    for view in views.iter_mut().filter(|view| view.resource_type == ResourceType::Neighbor) {
        let mut state = NeighborState::decode(&view.state[..]).unwrap();
        let fixed = &mut state.configuration.as_mut().unwrap().fixed_ips;
        fixed.sort_by(|one, other| one.ip_address.cmp(&other.ip_address));
        view.state = state.encode_to_vec();
    }
    views.sort_by(|one, other| {
        let key = |view: &StateView| (view.resource_type as i32, view.id.clone(), view.variant);
        key(one).cmp(&key(other))
    });
    views
}

/// `times`: the last pushes' are known too. A snapshot does not learn of a push that comes while it is made and changes nothing.
fn check(first: &Node, second: &Node, changes: &Changes, times: bool) {
    let views = |node| {
        let mut views = held(node);
        views.iter_mut().filter(|_| !times).for_each(|view| view.time = 0);
        views
    };
    assert_eq!(views(first), views(second));
    assert_eq!(first.model.version, second.model.version);
    assert_eq!(first.model.digests(), second.model.digests());
    let buried = |node: &Node| -> Vec<(u8, String, u32, u64)> {
        let all = node.model.tombstones.iter();
        all.map(|(kind, id, revision, when)| (kind, id.to_owned(), revision, when)).collect()
    };
    assert_eq!(buried(first), buried(second));
    second.check_tables();
    // The underlay is told of all hosts in any case.
    let expected = Changes { hosts: changes.hosts.clone(), ..Changes::default() };
    assert_eq!(changes, &expected, "nothing is written that is there");
}

/// One message to a node, and to its journal: bytes, and the steps in which it was applied.
type Journaled = (Vec<u8>, u64, usize);

fn push(node: &mut Node, event: &Event, journal: &mut Vec<Journaled>) {
    let state = event.add(empty(), None).encode_to_vec();
    node.run(Message::decode_v1(state.clone().into()).unwrap());
    event.interface(node);
    journal.push((state, node.now, node.step));
    node.now += 1;
}

/// Everything that a snapshot keeps, made while `during` goes on.
fn snapshot(node: &mut Node, during: &[Event], journal: &mut Vec<Journaled>) -> Vec<(u8, Vec<u8>)> {
    let mut parts = Vec::new();
    let mut passage = node.model.begin_snapshot();
    let mut events = during.iter();
    loop {
        let mut bytes = Vec::new();
        let (_, more) = node.model.held_neighbours(&mut passage, 2, &mut bytes);
        parts.push((1, bytes));
        match events.next() {
            Some(event) => push(node, event, journal),
            None if more => {}
            None => break,
        }
        if !more {
            passage = passage.next(&node.model);
            let gone = node.model.gone_neighbours();
            parts.push((0, gone));
        }
    }
    // With no message under way, the rest.
    passage = passage.next(&node.model);
    let gone = node.model.gone_neighbours();
    parts.push((0, gone));
    loop {
        let mut bytes = Vec::new();
        let (_, more) = node.model.held_neighbours(&mut passage, 100, &mut bytes);
        parts.push((1, bytes));
        if !more {
            break;
        }
    }
    node.model.held_others(50, |bytes| parts.push((2, bytes)));
    node.model.end_snapshot();
    parts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn messages_applied_again_make_the_same_model(events in prop::collection::vec(event(), 1..40), step in 1_usize..4) {
        let mut first = Node { step, ..Node::new() };
        let mut journal = Vec::new();
        events.iter().for_each(|event| push(&mut first, event, &mut journal));
        let mut model = begin(&first);
        model.replay_by(&Facts::of(first.model.settings()));
        for (message, now, step) in journal {
            let message = Message::decode_v1(message.into()).unwrap();
            let mut run = Run::new(message, Origin::Controller, now);
            while model.replay_step(&mut run, step) == Progress::More {}
        }
        let (second, changes) = resume(&first, model);
        check(&first, &second, &changes, true);
    }

    #[test]
    fn a_snapshot_makes_the_same_model(
        events in prop::collection::vec(event(), 1..40),
        during in prop::collection::vec(event(), 0..12),
        after in prop::collection::vec(event(), 0..6),
    ) {
        let mut first = Node::new();
        let mut journal = Vec::new();
        events.iter().for_each(|event| push(&mut first, event, &mut journal));
        let parts = snapshot(&mut first, &during, &mut journal);
        let version = first.model.held_version();
        journal.clear();
        after.iter().for_each(|event| push(&mut first, event, &mut journal));

        let mut model = begin(&first);
        // In a file neighbours are first, and read last.
        parts.iter().filter(|(kind, _)| *kind == 2).for_each(|(_, bytes)| model.restore_others(bytes).unwrap());
        for (kind, bytes) in &parts {
            match kind {
                0 => model.restore_gone_neighbours(bytes).unwrap(),
                1 => model.restore_neighbours(bytes).unwrap(),
                _ => {}
            }
        }
        model.restore_version(&version).unwrap();
        model.replay_by(&Facts::of(first.model.settings()));
        for (message, now, step) in journal {
            let mut run = Run::new(Message::decode_v1(message.into()).unwrap(), Origin::Controller, now);
            while model.replay_step(&mut run, step) == Progress::More {}
        }
        let (second, changes) = resume(&first, model);
        check(&first, &second, &changes, during.is_empty());
    }
}

#[test]
fn facts_are_kept() {
    let settings = Settings {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ..Settings::default()
    };
    let facts = Facts::of(&settings);
    assert_eq!(Facts::decode(&facts.encode()), Some(facts.clone()));
    assert_eq!(Facts::decode(&facts.encode()[1..]), None);
}

#[test]
fn bytes_that_are_no_snapshot_are_refused() {
    let mut model = Model::new(Settings::default(), &Seed::default());
    model.begin_replay();
    for bytes in
        [&[1_u8][..], &[9, 1, 1, 0, 0, 0], &[1, 1, 1, 7, 0, 0], &[1, 1, 1, 0, 2, 9, 9, 0], &[1, 1, 1, 0, 200]]
    {
        assert!(model.restore_others(bytes).is_err(), "{bytes:?}");
        assert!(model.restore_neighbours(bytes).is_err(), "{bytes:?}");
    }
    assert!(model.restore_version(&[1]).is_err());
}
