//! Tests of the state: events in, and tables in which no reader ever sees a half-written slot.

use std::collections::BTreeMap;

use std::net::Ipv4Addr;

use ncm_common::tables::{Name, NextHopGroup, NextHopHalf};
use proptest::prelude::*;

use super::super::routes::{Prefix, Route, Target, Way};
use super::super::{Endpoints, TableSink, TableWrite};
use super::*;

/// Tables that check each write against what a program could see.
#[derive(Default, Clone, Debug)]
struct Tables {
    groups: BTreeMap<u32, NextHopGroup>,
    hosts: BTreeMap<u32, Host>,
    names: BTreeMap<u32, Name>,
    uplinks: [Uplink; 8],
    writes: usize,
    /// How many of the next writes are refused.
    refuse: usize,
}

impl TableSink for Tables {
    fn write(&mut self, write: &TableWrite) -> Result<(), String> {
        if self.refuse > 0 {
            self.refuse -= 1;
            return Err("refused".to_owned());
        }
        self.writes += 1;
        match *write {
            TableWrite::Group { index, value } => {
                assert_ne!(index, 0, "index 0 is never used");
                let before = self.groups.get(&index).copied().unwrap_or_default();
                if before.generation == value.generation {
                    check_flip((before.active, before.halves), (value.active, value.halves));
                } else {
                    let refers = |host: &&Host| host.halves[host.active as usize].group == index;
                    assert!(
                        !self.hosts.values().any(|host| refers(&host)),
                        "group {index} goes under a host"
                    );
                }
                self.groups.insert(index, value);
            }
            TableWrite::Host { index, value } => {
                let before = self.hosts.get(&index).copied().unwrap_or_default();
                if before.generation == value.generation {
                    check_flip((before.active, before.halves), (value.active, value.halves));
                }
                let group = value.halves[value.active as usize].group;
                let held = group == 0 || self.groups.get(&group).is_some_and(|group| group.generation != 0);
                assert!(held, "host {index} refers to the empty group {group}");
                self.hosts.insert(index, value);
            }
            TableWrite::GroupName { index, name: Some(name) } => {
                self.names.insert(index, name);
            }
            TableWrite::GroupName { index, name: None } => {
                self.names.remove(&index);
            }
            TableWrite::Uplinks(uplinks) => self.uplinks = uplinks,
        }
        Ok(())
    }
}

/// Either the idle half changes, or the word that says which is in use: never what is in use.
fn check_flip<T: PartialEq>(before: (u32, [T; 2]), after: (u32, [T; 2])) {
    if before.0 == after.0 {
        let used = before.0 as usize;
        assert!(before.1[used] == after.1[used], "the half in use is overwritten");
    } else {
        assert!(before.1 == after.1, "a half changes together with the flip");
    }
}

impl Tables {
    /// The interfaces of the underlay.
    fn indices(&self) -> Vec<u32> {
        let mut indices: Vec<u32> =
            self.uplinks.iter().map(|uplink| uplink.ifindex).filter(|index| *index != 0).collect();
        indices.sort_unstable();
        indices
    }

    /// The MACs of the next hops to a host, and the MTU.
    fn path(&self, host: u32) -> Option<(Vec<u8>, u16)> {
        let host = self.hosts.get(&host).filter(|host| host.generation != 0)?;
        let template = host.halves[host.active as usize];
        let group = self.groups.get(&template.group).copied().unwrap_or_default();
        let NextHopHalf { count, hops } = group.halves[group.active as usize];
        Some((hops[..count as usize].iter().map(|hop| hop.destination[5]).collect(), template.mtu))
    }

    /// What is held, without slots that were cleared and without idle halves.
    fn in_use(&self) -> BTreeMap<u32, (Vec<u8>, u16)> {
        self.hosts.keys().filter_map(|index| Some((*index, self.path(*index)?))).collect()
    }
}

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: None,
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 9, 1]),
        up: true,
        running: true,
        master: None,
        lower: None,
        vlan: None,
        xdp_features: Some(0),
    }
}

fn hop(interface: u32, last: u8) -> Hop {
    Hop { interface, address: [10, 0, interface.to_ne_bytes()[0], last].into() }
}

fn neighbour(interface: u32, last: u8) -> NeighbourMessage {
    let mac = Some([2, 0, 0, 0, 0, last]);
    NeighbourMessage {
        hop: hop(interface, last),
        entry: Some(Neighbour { mac, managed: true, ours: true, fixed: false }),
    }
}

fn unresolved(interface: u32, last: u8) -> NeighbourMessage {
    let entry = Some(Neighbour { mac: None, managed: true, ours: true, fixed: false });
    NeighbourMessage { hop: hop(interface, last), entry }
}

fn route(third: u8, length: u8, ways: &[(u32, u8)]) -> (Prefix, Route) {
    let way = |(interface, last): &(u32, u8)| Way {
        interface: *interface,
        gateway: Some(hop(*interface, *last).address),
        weight: 1,
    };
    let target = Target::Ways(ways.iter().map(way).collect());
    (Prefix::around([10, 9, third, 0].into(), length), Route { metric: 0, mtu: None, target })
}

fn new_route(third: u8, length: u8, ways: &[(u32, u8)]) -> RouteMessage {
    let (prefix, route) = route(third, length, ways);
    RouteMessage::New { prefix, route, replace: true, append: false }
}

fn remove(index: u32) -> HostChange {
    HostChange::Remove { index, address: [0; 4].into() }
}

fn add(index: u32, third: u8) -> HostChange {
    HostChange::Add { index, generation: 1, address: [10, 9, third, 1].into() }
}

/// Two uplinks (2 and 3), two gateways on each, all hosts behind the first.
fn snapshot() -> Snapshot {
    Snapshot {
        links: vec![link(1, "lo"), link(2, "up1"), link(3, "up2"), link(4, "other")],
        addresses: vec![[10, 0, 2, 100].into()],
        routes: vec![new_route(0, 16, &[(2, 1)])],
        neighbours: [(2, 1), (2, 2), (3, 1), (3, 2)]
            .map(|(interface, last)| neighbour(interface, last))
            .into(),
    }
}

fn settings(groups: u32) -> Settings {
    let interfaces = vec!["up1".to_owned(), "up2".to_owned()];
    let endpoints = Endpoints { v4: Some(Ipv4Addr::new(10, 0, 2, 100)), v6: None };
    Settings::new(endpoints, 4789, interfaces, groups)
}

fn start() -> (State, Tables) {
    let mut state = State::new(settings(64), Adopted::default());
    state.apply(Event::Complete(snapshot()));
    (state, Tables::default())
}

#[test]
fn hosts_behind_one_gateway_share_its_group() {
    let (mut state, mut tables) = start();
    state.change_hosts(&[add(1, 1), add(2, 2)]);
    assert!(state.flush(&mut tables).failed.is_empty());
    assert_eq!(tables.path(1), Some((vec![1], 1500)));
    assert_eq!(tables.groups.len(), 1);
    let writes = tables.writes;
    state.change_hosts(&[add(1, 1)]);
    assert!(!state.flush(&mut tables).wrote, "the same again writes nothing");
    state.apply(Event::Neighbour(NeighbourMessage {
        entry: Some(Neighbour { mac: Some([2, 0, 0, 0, 0, 7]), managed: true, ours: true, fixed: false }),
        ..neighbour(2, 1)
    }));
    state.flush(&mut tables);
    assert_eq!(tables.writes, writes + 2, "a new MAC is two writes to the group, however many hosts it has");
    assert_eq!((tables.path(1), tables.path(2)), (Some((vec![7], 1500)), Some((vec![7], 1500))));
}

#[test]
fn only_hosts_within_a_changed_prefix_move() {
    let (mut state, mut tables) = start();
    state.change_hosts(&[add(1, 1), add(2, 2)]);
    state.flush(&mut tables);
    state.apply(Event::Route(new_route(2, 24, &[(2, 1), (3, 2)])));
    assert_eq!(state.dirty_hosts, BTreeSet::from([2]));
    state.flush(&mut tables);
    assert_eq!((tables.path(1).unwrap().0, tables.path(2).unwrap().0), (vec![1], vec![1, 2]));
    let (prefix, route) = route(2, 24, &[(2, 1), (3, 2)]);
    state.apply(Event::Route(RouteMessage::Gone { prefix, route }));
    state.flush(&mut tables);
    assert_eq!(tables.path(2).unwrap().0, [1]);
    assert_eq!(tables.names.len(), 1, "the group that nobody uses is gone");
}

#[test]
fn a_lost_link_or_neighbour_takes_its_hop_out() {
    let (mut state, mut tables) = start();
    state.apply(Event::Route(new_route(0, 16, &[(2, 1), (3, 2)])));
    state.change_hosts(&[add(1, 1)]);
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().0, [1, 2]);
    state.apply(Event::Link(LinkMessage::New(Link { running: false, ..link(2, "up1") })));
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().0, [2]);
    assert!(state.take_unknown(), "the kernel says nothing of the routes that went with the link");
    state.apply(Event::Neighbour(unresolved(3, 2)));
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().0, [0; 0]);
    state.apply(Event::Link(LinkMessage::New(link(2, "up1"))));
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().0, [1]);
}

#[test]
fn other_interfaces_and_their_neighbours_are_ignored() {
    let (mut state, mut tables) = start();
    state.change_hosts(&[add(1, 1)]);
    state.flush(&mut tables);
    state.take_unknown();
    state.apply(Event::Link(LinkMessage::New(link(50, "tap50"))));
    state.apply(Event::Link(LinkMessage::Gone(50)));
    state.apply(Event::Neighbour(neighbour(4, 1)));
    assert!(!state.take_unknown() && state.dirty_hosts.is_empty() && state.dirty_groups.is_empty());
    state.apply(Event::Route(new_route(0, 16, &[(4, 1)])));
    state.flush(&mut tables);
    let report = &state.report()[0];
    assert!(report.problem.as_deref().is_some_and(|problem| problem.contains("other")), "{report:?}");
    assert_eq!(tables.path(1).unwrap(), (vec![], 1500), "the last known MTU stays");
}

#[test]
fn programs_are_told_which_interfaces_are_for_tunnels() {
    let (mut state, mut tables) = start();
    tables.refuse = 1;
    state.flush(&mut tables);
    assert!(!state.is_settled(), "a refused write is tried again");
    state.flush(&mut tables);
    assert_eq!((tables.indices(), state.is_settled()), (vec![2, 3], true));
    // A VLAN on an uplink counts as one; an interface that is gone does not.
    let vlan = Link { vlan: Some(42), lower: Some(2), kind: Some("vlan".to_owned()), ..link(9, "up1.42") };
    state.apply(Event::Link(LinkMessage::New(vlan)));
    state.apply(Event::Link(LinkMessage::Gone(3)));
    state.flush(&mut tables);
    assert_eq!(tables.indices(), [2, 9]);
}

#[test]
fn programs_are_told_which_macs_are_for_an_uplink() {
    let (mut state, mut tables) = start();
    state.flush(&mut tables);
    let uplink = |tables: &Tables, index: u32| {
        *tables.uplinks.iter().find(|uplink| uplink.ifindex == index).unwrap_or_else(|| panic!("{index}"))
    };
    let (one, other) = (uplink(&tables, 2), uplink(&tables, 3));
    assert_eq!((one.mac, tables.uplinks[2], tables.uplinks[3]), ([2, 0, 0, 0, 9, 1], one, other));
    assert_ne!(one.stack, other.stack, "two cards are two stacks");
    // A new MAC is known at once.
    let changed = Link { mac: Some([2, 0, 0, 0, 9, 7]), ..link(2, "up1") };
    state.apply(Event::Link(LinkMessage::New(changed)));
    state.flush(&mut tables);
    assert_eq!(uplink(&tables, 2).mac, [2, 0, 0, 0, 9, 7]);
    // A bond over both, and a VLAN on it: one stack. Index 10 shares its first place with 2.
    for member in [link(2, "up1"), link(3, "up2")] {
        state.apply(Event::Link(LinkMessage::New(Link { master: Some(10), ..member })));
    }
    state.apply(Event::Link(LinkMessage::New(link(10, "bond0"))));
    let vlan = Link { vlan: Some(42), lower: Some(10), kind: Some("vlan".to_owned()), ..link(9, "bond0.42") };
    state.apply(Event::Link(LinkMessage::New(vlan)));
    state.flush(&mut tables);
    assert_eq!(tables.indices(), [2, 3, 9, 10]);
    assert!(tables.uplinks.iter().all(|uplink| uplink.ifindex == 0 || uplink.stack == 1), "{tables:?}");
    assert_eq!(tables.uplinks[2].ifindex, 2, "a named interface has its own place");
}

#[test]
fn the_named_interfaces_have_slots_whatever_else_there_is() {
    let (mut state, mut tables) = start();
    for index in 20..40 {
        let vlan =
            Link { vlan: Some(1), lower: Some(3), kind: Some("vlan".to_owned()), ..link(index, "vlan") };
        state.apply(Event::Link(LinkMessage::New(Link { name: format!("up2.{index}"), ..vlan })));
    }
    state.flush(&mut tables);
    assert_eq!((tables.indices().len(), &tables.indices()[..2]), (8, &[2, 3][..]));
}

#[test]
fn a_host_is_reached_over_the_version_of_ip_that_its_address_is_of() {
    let (mut state, mut tables) = start();
    let v6: IpAddr = "2001:db8:9::1".parse().unwrap();
    let refused = state.change_hosts(&[add(1, 1), HostChange::Add { index: 2, generation: 1, address: v6 }]);
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].0, refused[0].1.contains("underlay.endpoint_v6 is not set")), (2, true));
    state.flush(&mut tables);
    assert!(!tables.hosts.contains_key(&2), "a host that cannot be reached is not written");

    let endpoints = Endpoints { v4: None, v6: Some("2001:db8::1".parse().unwrap()) };
    let mut state = State::new(Settings { endpoints, ..settings(64) }, Adopted::default());
    let hop = Hop { interface: 2, address: "fe80::1".parse().unwrap() };
    let way = Way { interface: 2, gateway: Some(hop.address), weight: 1 };
    let prefix = Prefix::around("2001:db8:9::".parse().unwrap(), 48);
    let route = Route { metric: 1024, mtu: None, target: Target::Ways(vec![way]) };
    let entry = Neighbour { mac: Some([2, 0, 0, 0, 0, 6]), managed: true, ours: true, fixed: false };
    state.apply(Event::Complete(Snapshot {
        addresses: vec!["2001:db8::1".parse().unwrap()],
        routes: vec![RouteMessage::New { prefix, route: route.clone(), replace: false, append: false }],
        neighbours: vec![NeighbourMessage { hop, entry: Some(entry) }],
        ..snapshot()
    }));
    let mut tables = Tables::default();
    assert_eq!(state.change_hosts(&[HostChange::Add { index: 2, generation: 1, address: v6 }]), []);
    state.flush(&mut tables);
    assert_eq!(tables.path(2), Some((vec![6], 1500)));
    assert_eq!(tables.hosts[&2].halves[0].headers_len, 56);
    assert_eq!(state.missing_endpoints(), [] as [IpAddr; 0]);
    // Another router for the same prefix and metric: what the kernel makes of the two, only a dump tells.
    assert!(!state.take_unknown());
    let beside = Route { target: Target::Ways(vec![Way { interface: 3, ..way }]), ..route.clone() };
    state.apply(Event::Route(RouteMessage::New { prefix, route: beside, replace: false, append: true }));
    assert!(state.take_unknown());
    state.apply(Event::Route(RouteMessage::Gone { prefix, route }));
    state.flush(&mut tables);
    assert_eq!(tables.path(2), Some((vec![], 1500)));
    state.apply(Event::Address { address: "2001:db8::1".parse().unwrap(), present: false });
    assert_eq!(state.missing_endpoints(), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn the_mtu_is_the_smallest_on_the_path() {
    let (mut state, mut tables) = start();
    state.change_hosts(&[add(1, 1)]);
    state.apply(Event::Link(LinkMessage::New(Link { mtu: 9000, ..link(2, "up1") })));
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().1, 9000);
    state.apply(Event::Link(LinkMessage::New(Link { mtu: 70_000, ..link(2, "up1") })));
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().1, u16::MAX);
    let (prefix, route) = route(0, 16, &[(2, 1), (3, 1)]);
    state.apply(Event::Route(RouteMessage::New { prefix, route, replace: true, append: false }));
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().1, 1500);
    let (prefix, route) = self::route(0, 16, &[(2, 1), (3, 1)]);
    let route = Route { mtu: Some(1280), ..route };
    state.apply(Event::Route(RouteMessage::New { prefix, route, replace: true, append: false }));
    state.flush(&mut tables);
    assert_eq!(tables.path(1).unwrap().1, 1280);
}

#[test]
fn a_vlans_frames_leave_below_with_its_tag_and_a_second_tag_is_the_kernels() {
    let (mut state, mut tables) = start();
    let vlan = Link { kind: Some("vlan".to_owned()), lower: Some(2), vlan: Some(100), ..link(7, "up1.100") };
    let inner = Link { lower: Some(7), vlan: Some(200), ..vlan.clone() };
    let below = Link { xdp_features: Some(4), ..link(2, "up1") };
    state.apply(Event::Link(LinkMessage::New(below)));
    state.apply(Event::Link(LinkMessage::New(Link { mac: Some([2, 0, 0, 0, 9, 7]), ..vlan })));
    state.apply(Event::Link(LinkMessage::New(Link { index: 8, name: "q".to_owned(), ..inner })));
    for interface in [7, 8] {
        state.apply(Event::Neighbour(neighbour(interface, 5)));
    }
    state.apply(Event::Route(new_route(7, 24, &[(7, 5)])));
    state.apply(Event::Route(new_route(8, 24, &[(8, 5)])));
    state.change_hosts(&[add(1, 7), add(2, 8)]);
    state.flush(&mut tables);
    let first = |host: u32| {
        let host = tables.hosts[&host];
        let group = tables.groups[&host.halves[host.active as usize].group];
        group.halves[group.active as usize].hops[0]
    };
    let (one, two) = (first(1), first(2));
    assert_eq!((one.ifindex, one.vlan, one.flags), (2, 100, next_hop_flags::XDP_TARGET));
    assert_eq!(one.source, [2, 0, 0, 0, 9, 7], "the VLAN interface's own MAC");
    assert_eq!((two.ifindex, two.vlan, two.flags), (8, 0, 0));
}

#[test]
fn next_hops_are_cared_for_exactly_while_they_are_needed() {
    let (mut state, mut tables) = start();
    state.change_hosts(&[add(1, 1)]);
    state.flush(&mut tables);
    while state.next_care().is_some_and(|(_, care)| care == Care::Release) {}
    assert_eq!(state.next_care(), None, "the kernel keeps it already");
    state.apply(Event::Neighbour(NeighbourMessage { entry: None, ..neighbour(2, 1) }));
    state.flush(&mut tables);
    assert_eq!(state.next_care(), Some((hop(2, 1), Care::Keep)));
    assert_eq!(state.next_care(), None);
    state.tick();
    assert_eq!(state.next_care(), Some((hop(2, 1), Care::Keep)), "it is still unresolved");
    state.apply(Event::Neighbour(neighbour(2, 1)));
    state.change_hosts(&[remove(1)]);
    state.flush(&mut tables);
    assert_eq!(state.next_care(), Some((hop(2, 1), Care::Release)));
    state.tick();
    assert_eq!(state.next_care(), None);
}

#[test]
fn what_an_agent_before_had_kept_is_released_if_nobody_needs_it() {
    let (first, mut tables) = start();
    drop(first);
    let mut state = State::new(settings(64), Adopted::default());
    state.change_hosts(&[add(1, 1)]);
    state.apply(Event::Complete(snapshot()));
    state.flush(&mut tables);
    let mut released = Vec::new();
    while let Some((hop, care)) = state.next_care() {
        assert_eq!(care, Care::Release);
        released.push(hop);
    }
    assert_eq!(released, [hop(2, 2), hop(3, 1), hop(3, 2)], "all but the one that host 1 needs");
}

#[test]
fn refused_writes_are_tried_again_until_all_is_as_it_should_be() {
    for refuse in 1..12 {
        let (mut state, mut tables) = start();
        state.flush(&mut tables);
        tables.refuse = refuse;
        state.change_hosts(&[add(1, 1), add(2, 2)]);
        let flushed = state.flush(&mut tables);
        assert!(!flushed.failed.is_empty(), "with {refuse} writes refused somebody has to be told");
        for _ in 0..20 {
            state.flush(&mut tables);
        }
        assert!(state.is_settled(), "after {refuse} refused writes");
        assert_eq!((tables.path(1).unwrap().0, tables.path(2).unwrap().0), (vec![1], vec![1]));
        tables.refuse = refuse;
        state.change_hosts(&[remove(1), remove(2)]);
        for _ in 0..20 {
            state.flush(&mut tables);
        }
        assert!(state.is_settled() && tables.in_use().is_empty() && tables.names.is_empty());
    }
}

#[test]
fn a_host_that_found_no_group_gets_the_next_free_one() {
    let mut state = State::new(settings(2), Adopted::default());
    let mut tables = Tables::default();
    state.apply(Event::Complete(snapshot()));
    state.apply(Event::Route(new_route(2, 24, &[(3, 2)])));
    state.change_hosts(&[add(1, 1), add(2, 2)]);
    state.flush(&mut tables);
    assert_eq!((tables.path(1).unwrap().0, tables.path(2).unwrap().0), (vec![1], vec![]));
    assert!(state.report()[1].problem.is_some());
    state.change_hosts(&[remove(1)]);
    state.flush(&mut tables);
    state.flush(&mut tables);
    assert_eq!(tables.path(2).unwrap().0, [2]);
}

#[test]
fn a_change_of_one_gateway_or_prefix_is_cheap_among_thousands_of_hosts() {
    let mut state = State::new(settings(8192), Adopted::default());
    let mut tables = Tables::default();
    state.apply(Event::Complete(snapshot()));
    let address = |index: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a09_0000 + index));
    let changes: Vec<HostChange> =
        (1..8000).map(|index| HostChange::Add { index, generation: 1, address: address(index) }).collect();
    state.change_hosts(&changes);
    state.flush(&mut tables);
    let writes = tables.writes;
    let start = std::time::Instant::now();
    for round in 0..1000 {
        let mac = Some([2, 0, 0, 0, 0, round as u8]);
        let entry = Some(Neighbour { mac, managed: true, ours: true, fixed: false });
        state.apply(Event::Neighbour(NeighbourMessage { entry, ..neighbour(2, 1) }));
        state.flush(&mut tables);
        state.apply(Event::Route(new_route(3, 32, &[(2 + round % 2, 1)])));
        state.flush(&mut tables);
    }
    assert!(tables.writes - writes < 10_000, "{} writes for 2,000 events", tables.writes - writes);
    assert!(start.elapsed().as_secs() < 5, "2,000 events took {:?}", start.elapsed());
}

/// A random thing that happens.
#[derive(Clone, Debug)]
enum Happening {
    Link { interface: u32, running: bool },
    Neighbour { interface: u32, last: u8, present: bool },
    Route { third: u8, ways: Vec<(u32, u8)> },
    NoRoute { third: u8 },
    Host { index: u32, third: u8 },
    NoHost { index: u32 },
    Refusal(usize),
    Flush,
}

fn happening() -> impl Strategy<Value = Happening> {
    let way = || (2u32..4, 1u8..3);
    prop_oneof![
        (2u32..4, any::<bool>()).prop_map(|(interface, running)| Happening::Link { interface, running }),
        (2u32..4, 1u8..3, any::<bool>()).prop_map(|(interface, last, present)| Happening::Neighbour {
            interface,
            last,
            present
        }),
        (0u8..4, prop::collection::vec(way(), 1..4))
            .prop_map(|(third, ways)| Happening::Route { third, ways }),
        (0u8..4).prop_map(|third| Happening::NoRoute { third }),
        (1u32..6, 0u8..4).prop_map(|(index, third)| Happening::Host { index, third }),
        (1u32..6).prop_map(|index| Happening::NoHost { index }),
        (1usize..4).prop_map(Happening::Refusal),
        Just(Happening::Flush),
    ]
}

proptest! {
    /// However it came to it: the tables in use are those that a fresh start from the same facts writes, and no
    /// write on the way was one that a reader could trip over.
    #[test]
    fn the_tables_follow_from_the_facts_alone(happenings in prop::collection::vec(happening(), 0..60)) {
        let (mut state, mut tables) = start();
        let mut facts = snapshot();
        let mut routes: BTreeMap<u8, (Prefix, Route)> = BTreeMap::new();
        let mut hosts: BTreeMap<u32, u8> = BTreeMap::new();
        for happening in happenings {
            match happening {
                Happening::Link { interface, running } => {
                    let known = facts.links.iter_mut().find(|link| link.index == interface).unwrap();
                    known.running = running;
                    let link = known.clone();
                    state.apply(Event::Link(LinkMessage::New(link)));
                }
                Happening::Neighbour { interface, last, present } => {
                    let message = if present { neighbour(interface, last) } else { unresolved(interface, last) };
                    facts.neighbours.retain(|known| known.hop != message.hop);
                    facts.neighbours.push(message.clone());
                    state.apply(Event::Neighbour(message));
                }
                Happening::Route { third, ways } => {
                    routes.insert(third, route(third, 24, &ways));
                    state.apply(Event::Route(new_route(third, 24, &ways)));
                }
                Happening::NoRoute { third } => {
                    if let Some((prefix, route)) = routes.remove(&third) {
                        state.apply(Event::Route(RouteMessage::Gone { prefix, route }));
                    }
                }
                Happening::Host { index, third } => {
                    // The model gives an index to another host only under another generation.
                    if let std::collections::btree_map::Entry::Vacant(entry) = hosts.entry(index) {
                        entry.insert(third);
                        state.change_hosts(&[add(index, third)]);
                    }
                }
                Happening::NoHost { index } => {
                    hosts.remove(&index);
                    state.change_hosts(&[remove(index)]);
                    while !state.clearing.is_empty() {
                        state.flush(&mut tables);
                    }
                }
                Happening::Refusal(count) => tables.refuse = count,
                Happening::Flush => {
                    state.flush(&mut tables);
                }
            }
        }
        tables.refuse = 0;
        for _ in 0..3 {
            state.flush(&mut tables);
        }
        prop_assert!(state.is_settled());
        let mut fresh = State::new(settings(64), Adopted::default());
        for (prefix, route) in routes.into_values() {
            facts.routes.push(RouteMessage::New { prefix, route, replace: false, append: false });
        }
        fresh.apply(Event::Complete(facts));
        let changes: Vec<HostChange> = hosts.iter().map(|(index, third)| add(*index, *third)).collect();
        fresh.change_hosts(&changes);
        let mut expected = Tables::default();
        fresh.flush(&mut expected);
        prop_assert_eq!(tables.in_use(), expected.in_use());
        let used = |tables: &Tables| tables.groups.values().filter(|group| group.generation != 0).count();
        prop_assert_eq!(used(&tables), used(&expected));
    }
}
