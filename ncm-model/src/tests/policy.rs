//! Security groups by themselves: a policy whose tables are maps, which answer packets as the programs do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ncm_common::tables::{
    ClassKey, Classes, MAX_CLASSES, MEMBERS, Name, NameKey, Rule, RuleKey, name_kinds, set_direction,
};
use proptest::prelude::*;

use crate::compile::Delta;
use crate::compile::mirror::Mirror;
use crate::policy::Policy;
use crate::policy::reference::{self, Packet};
use crate::settings::Settings;
use crate::wire::security_group_configuration::{Direction, SecurityGroupRule};
use crate::wire::{EtherType, OperationType, Protocol, SecurityGroupConfiguration, UpdateType};

/// One write to a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Write {
    PutRule(RuleKey, Rule),
    PutClass(ClassKey, Classes),
    DeleteClass(ClassKey),
    DeleteRule(RuleKey),
}

/// The tables of policy, as the kernel has them.
#[derive(Clone, Default, Debug)]
pub(super) struct Entries {
    pub(super) rules: BTreeMap<RuleKey, Rule>,
    pub(super) classes: BTreeMap<ClassKey, Classes>,
}

impl Entries {
    pub(super) fn write(&mut self, write: Write) {
        match write {
            Write::PutRule(key, value) => {
                self.rules.insert(key, value);
            }
            Write::PutClass(key, value) => {
                self.classes.insert(key, value);
            }
            Write::DeleteClass(key) => {
                self.classes.remove(&key).unwrap_or_else(|| panic!("{key:?} was never written"));
            }
            Write::DeleteRule(key) => {
                self.rules.remove(&key).unwrap_or_else(|| panic!("{key:?} was never written"));
            }
        }
    }

    /// The longest match, as in a trie of the kernel.
    fn classes_of(&self, set: u32, address: u128) -> [u32; MAX_CLASSES] {
        (0..=128_u32)
            .rev()
            .find_map(|len| {
                let network = if len == 0 { 0 } else { address >> (128 - len) << (128 - len) };
                self.classes.get(&ClassKey { prefix_len: 32 + len, set, ip: network.to_be_bytes() })
            })
            .map_or([0; MAX_CLASSES], |found| found.classes)
    }

    fn has_rule(&self, set: u32, class: u32, family: u8, protocol: u8, port: u16) -> bool {
        let key = |prefix_len, protocol, port: u16| RuleKey {
            prefix_len,
            set,
            class,
            family,
            protocol,
            port: port.to_be_bytes(),
        };
        self.rules.contains_key(&key(72, 0, 0))
            || (0..=16_u32).any(|bits| {
                let start = if bits == 0 { 0 } else { port >> (16 - bits) << (16 - bits) };
                self.rules.contains_key(&key(80 + bits, protocol, start))
            })
    }

    /// What the programs decide.
    pub(super) fn allow(&self, set: u32, members: u32, packet: &Packet) -> bool {
        if set == 0 {
            return true;
        }
        let set = set_direction(set, packet.to_guest);
        let (address, family) = match packet.remote {
            IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), 4),
            IpAddr::V6(address) => (address.to_bits(), 6),
        };
        let listed = self.classes_of(set, address).into_iter().take_while(|class| *class != 0);
        [0].into_iter()
            .chain(listed)
            .chain([members].into_iter().filter(|class| *class != 0))
            .any(|class| self.has_rule(set, class, family, packet.protocol, packet.port))
    }
}

/// A policy and its tables.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) policy: Policy,
    rules: Mirror<RuleKey, Rule>,
    classes: Mirror<ClassKey, Classes>,
    names: Mirror<NameKey, Name>,
    pub(super) entries: Entries,
    pub(super) named: BTreeMap<NameKey, Name>,
    /// The groups that are held, as they were sent in full.
    pub(super) groups: BTreeMap<String, SecurityGroupConfiguration>,
    /// Sets in use, with their groups.
    pub(super) sets: BTreeMap<u32, Vec<String>>,
    /// Classes of members in use, with their groups.
    pub(super) members: BTreeMap<u32, Vec<String>>,
}

impl Host {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            policy: Policy::new(7, 5, settings),
            rules: Mirror::default(),
            classes: Mirror::default(),
            names: Mirror::default(),
            entries: Entries::default(),
            named: BTreeMap::new(),
            groups: BTreeMap::new(),
            sets: BTreeMap::new(),
            members: BTreeMap::new(),
        }
    }

    /// Gives a group these rules, all of them.
    pub(super) fn push(&mut self, id: &str, rules: Vec<SecurityGroupRule>) -> Result<(), String> {
        let config = group(id, rules);
        let changes = self.policy.plan(&config).unwrap_or_else(|fault| panic!("{fault}"));
        self.policy.edit(id, changes)?;
        self.groups.insert(id.to_owned(), config);
        Ok(())
    }

    /// Adds a rule to a held group, or takes one away, by a state of that rule alone.
    pub(super) fn push_one(&mut self, id: &str, rule: SecurityGroupRule, delete: bool) -> Result<(), String> {
        let operation = if delete { OperationType::Delete } else { OperationType::Create };
        let item = SecurityGroupRule { operation_type: operation as i32, ..rule.clone() };
        let mut config = group(id, vec![item]);
        config.update_type = UpdateType::Delta as i32;
        let changes = self.policy.plan(&config).unwrap_or_else(|fault| panic!("{fault}"));
        self.policy.edit(id, changes)?;
        let held = self.groups.entry(id.to_owned()).or_insert_with(|| group(id, Vec::new()));
        held.security_group_rules.retain(|known| known.id != rule.id);
        if !delete {
            held.security_group_rules.push(rule);
        }
        Ok(())
    }

    /// Deletes a group; the sets that it is in go as well.
    pub(super) fn delete(&mut self, id: &str) {
        let Some(slot) = self.policy.held_slot(id) else { return };
        self.policy.remove(slot);
        self.groups.remove(id);
        let gone: Vec<u32> = self
            .sets
            .iter()
            .filter(|(_, groups)| groups.iter().any(|group| group == id))
            .map(|(set, _)| *set)
            .collect();
        for set in gone {
            self.release_set(set);
        }
    }

    pub(super) fn hold_set(&mut self, groups: &[&str]) -> u32 {
        let set = self.policy.hold_set(groups);
        let known = self.sets.insert(set, groups.iter().map(|group| (*group).to_owned()).collect());
        if known.is_some() {
            self.policy.release_set(set);
        }
        set
    }

    pub(super) fn release_set(&mut self, set: u32) {
        self.sets.remove(&set);
        self.policy.release_set(set);
    }

    pub(super) fn hold_members(&mut self, groups: &[&str]) -> u32 {
        let class = self.policy.hold_members(groups);
        assert!(class == 0 || class & MEMBERS != 0);
        let known = self.members.insert(class, groups.iter().map(|group| (*group).to_owned()).collect());
        if known.is_some() {
            self.policy.release_members(class);
        }
        class
    }

    pub(super) fn release_members(&mut self, class: u32) {
        self.members.remove(&class);
        self.policy.release_members(class);
    }

    /// The writes of a step, in their order, and the sets whose ports are to be looked at. They are not in the tables yet.
    pub(super) fn compile(&mut self) -> (Vec<Write>, BTreeSet<u32>) {
        let changed = self.policy.compile_into(&mut self.rules, &mut self.classes, &mut self.names);
        let (mut rules, mut classes, mut names) = (Delta::default(), Delta::default(), Delta::default());
        self.rules.flush(&mut rules);
        self.classes.flush(&mut classes);
        self.names.flush(&mut names);
        self.named.extend(names.put.iter().map(|put| (put.key, put.value)));
        self.named.retain(|key, _| !names.del.contains(key));
        // As the tables are flushed: the longest prefixes first, the shortest deleted first.
        classes.put.reverse();
        let mut writes: Vec<_> = rules.put.iter().map(|put| Write::PutRule(put.key, put.value)).collect();
        writes.extend(classes.put.iter().map(|put| Write::PutClass(put.key, put.value)));
        writes.extend(classes.del.into_iter().map(Write::DeleteClass));
        writes.extend(rules.del.into_iter().map(Write::DeleteRule));
        (writes, changed.into_iter().collect())
    }

    /// Takes a step, and gives back how much was written.
    pub(super) fn step(&mut self) -> usize {
        let (writes, _) = self.compile();
        let count = writes.len();
        writes.into_iter().for_each(|write| self.entries.write(write));
        count
    }

    /// What the rules say.
    pub(super) fn reference(&self, set: u32, packet: &Packet) -> bool {
        let groups: Vec<_> = self.sets[&set].iter().map(|group| self.groups[group].clone()).collect();
        reference::allows(&groups, packet)
    }

    /// The class of a packet's other side.
    pub(super) fn class_of(&self, packet: &Packet) -> Option<u32> {
        if packet.members.is_empty() {
            return Some(0);
        }
        self.members.iter().find(|(_, groups)| **groups == packet.members).map(|(class, _)| *class)
    }

    /// Entries of a set, in both tables.
    pub(super) fn entries_of(&self, set: u32) -> usize {
        let sides = [set_direction(set, false), set_direction(set, true)];
        self.entries.rules.keys().filter(|key| sides.contains(&key.set)).count()
            + self.entries.classes.keys().filter(|key| sides.contains(&key.set)).count()
    }
}

pub(super) fn group(id: &str, rules: Vec<SecurityGroupRule>) -> SecurityGroupConfiguration {
    SecurityGroupConfiguration {
        id: id.to_owned(),
        update_type: UpdateType::Full as i32,
        security_group_rules: rules,
        ..SecurityGroupConfiguration::default()
    }
}

/// A rule for TCP to the guest.
pub(super) fn tcp(id: &str, ports: (u32, u32), prefix: &str) -> SecurityGroupRule {
    SecurityGroupRule {
        id: id.to_owned(),
        direction: Direction::Ingress as i32,
        protocol: Protocol::Tcp as i32,
        port_range_min: ports.0,
        port_range_max: ports.1,
        ethertype: if prefix.contains(':') { EtherType::Ipv6 } else { EtherType::Ipv4 } as i32,
        remote_ip_prefix: prefix.to_owned(),
        ..SecurityGroupRule::default()
    }
}

/// The same rule, for the members of a group.
pub(super) fn from_group(mut rule: SecurityGroupRule, group: &str) -> SecurityGroupRule {
    rule.remote_ip_prefix.clear();
    rule.remote_group_id = group.to_owned();
    rule
}

const V4: [&str; 9] = [
    "",
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.128/25",
    "10.1.2.3",
    "128.0.0.0/1",
    "10.0.0.0/7",
];
const V6: [&str; 6] = ["", "::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::5/128", "::/1"];
const REMOTES: [&str; 11] = [
    "10.0.0.1",
    "10.1.0.1",
    "10.1.2.3",
    "10.1.2.4",
    "10.1.2.200",
    "11.0.0.1",
    "200.1.1.1",
    "9.9.9.9",
    "2001:db8::1",
    "2001:db8:1::5",
    "fe80::1",
];
const PORTS: [(u32, u32); 8] =
    [(0, 0), (80, 80), (80, 90), (81, 443), (1, 65_535), (0, 100), (443, 443), (91, 1_000)];
const ASKED: [u16; 9] = [0, 79, 80, 90, 91, 443, 444, 2_048, 65_535];

/// The groups of these tests.
pub(super) const GROUPS: [&str; 4] = ["a", "b", "c", "d"];

/// Lists of groups that endpoints are members of.
pub(super) const LISTS: [&[&str]; 5] = [&["a"], &["b"], &["a", "b"], &["c", "d"], &["x"]];

prop_compose! {
    /// A rule with one of few ids, over few prefixes, ports and groups, so that they meet.
    pub(super) fn any_rule()(
        id in 0..12_u32, to_guest in any::<bool>(), v6 in prop::bool::weighted(0.25),
        protocol in prop::sample::select(vec![0, 0, 0, 1, 2, 3, 4, 1000]),
        ports in prop::sample::select(PORTS.to_vec()), remote in 0..10_usize, group in 0..5_usize,
    ) -> SecurityGroupRule {
        let by_group = remote == 9;
        let prefix = if v6 { V6[remote % V6.len()] } else { V4[remote % V4.len()] };
        SecurityGroupRule {
            id: format!("rule-{id}"),
            direction: i32::from(to_guest),
            ethertype: i32::from(v6),
            protocol,
            port_range_min: match protocol { 2 => 8, 1000 => 0, _ => ports.0 },
            port_range_max: match protocol { 2 => ports.1 & 1, 1000 => 0, _ => ports.1 },
            remote_ip_prefix: if by_group { String::new() } else { prefix.to_owned() },
            remote_group_id: if by_group { ["a", "b", "c", "d", "x"][group].to_owned() } else { String::new() },
            ..SecurityGroupRule::default()
        }
    }
}

prop_compose! {
    /// A packet that has to do with such rules.
    pub(super) fn any_packet()(
        to_guest in any::<bool>(), remote in 0..REMOTES.len(), members in 0..2 * LISTS.len(),
        protocol in prop::sample::select(vec![6_u8, 6, 6, 17, 1, 58, 47]), port in prop::sample::select(ASKED.to_vec()),
    ) -> Packet {
        Packet {
            to_guest,
            remote: REMOTES[remote].parse().unwrap(),
            members: LISTS.get(members).map(|list| list.iter().map(|id| (*id).to_owned()).collect()).unwrap_or_default(),
            protocol,
            port: if matches!(protocol, 47) { 0 } else { port },
        }
    }
}

/// What happens to a policy.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Push(usize, Vec<SecurityGroupRule>),
    PushOne(usize, SecurityGroupRule, bool),
    Delete(usize),
    HoldSet(Vec<usize>),
    ReleaseSet(usize),
    HoldMembers(usize),
    ReleaseMembers(usize),
}

pub(super) fn any_event() -> impl Strategy<Value = Event> {
    let rules = || {
        prop::collection::vec(any_rule(), 0..10).prop_map(|rules| {
            // As the contract has it, an id occurs once.
            rules
                .into_iter()
                .map(|rule| (rule.id.clone(), rule))
                .collect::<BTreeMap<_, _>>()
                .into_values()
                .collect()
        })
    };
    prop_oneof![
        4 => (0..4_usize, rules()).prop_map(|(group, rules)| Event::Push(group, rules)),
        4 => (0..4_usize, any_rule(), prop::bool::weighted(0.3))
            .prop_map(|(group, rule, delete)| Event::PushOne(group, rule, delete)),
        1 => (0..4_usize).prop_map(Event::Delete),
        3 => prop::collection::btree_set(0..4_usize, 1..4)
            .prop_map(|groups| Event::HoldSet(groups.into_iter().collect())),
        1 => (0..4_usize).prop_map(Event::ReleaseSet),
        2 => (0..5_usize).prop_map(Event::HoldMembers),
        1 => (0..5_usize).prop_map(Event::ReleaseMembers),
    ]
}

impl Host {
    pub(super) fn happen(&mut self, event: &Event) {
        match event {
            Event::Push(group, rules) => self.push(GROUPS[*group], rules.clone()).unwrap(),
            Event::PushOne(group, rule, delete) => {
                self.push_one(GROUPS[*group], rule.clone(), *delete).unwrap()
            }
            Event::Delete(group) => self.delete(GROUPS[*group]),
            Event::HoldSet(groups) => {
                let held: Vec<&str> =
                    groups.iter().map(|group| GROUPS[*group]).filter(|id| self.policy.holds(id)).collect();
                if !held.is_empty() {
                    self.hold_set(&held);
                }
            }
            Event::ReleaseSet(at) => {
                if let Some(set) = self.sets.keys().nth(*at).copied() {
                    self.release_set(set);
                }
            }
            Event::HoldMembers(list) => {
                self.hold_members(LISTS[*list]);
            }
            Event::ReleaseMembers(at) => {
                if let Some(class) = self.members.keys().nth(*at).copied() {
                    self.release_members(class);
                }
            }
        }
    }
}

#[test]
fn sets_and_members_are_shared_named_and_numbered_anew() {
    let mut host = Host::new(&Settings::default());
    host.push("a", vec![tcp("1", (22, 22), "")]).unwrap();
    host.push("b", vec![tcp("1", (80, 80), "10.0.0.0/8")]).unwrap();
    let set = host.policy.hold_set(&["a", "b"]);
    assert_eq!(host.policy.hold_set(&["a", "b"]), set, "two ports with the same groups share a set");
    let other = host.policy.hold_set(&["a"]);
    assert_ne!(other, set);
    assert!(set >= 7 && other >= 7, "numbers start where they are told to");
    let members = host.policy.hold_members(&["a", "z"]);
    assert_eq!(host.policy.hold_members(&["a", "z"]), members);
    assert_eq!(host.policy.hold_members(&[]), 0);
    host.step();
    let name = |host: &Host, kind, index| {
        host.named.get(&NameKey { kind, index }).map(|name| name.as_str().to_owned())
    };
    assert_eq!(name(&host, name_kinds::SET, set).as_deref(), Some("a,b"));
    assert_eq!(name(&host, name_kinds::MEMBERS, members & !MEMBERS).as_deref(), Some("a,z"));
    assert_eq!(host.entries_of(set), 3, "two rules and a prefix");

    host.policy.release_set(set);
    host.step();
    assert_eq!(host.entries_of(set), 3, "one port still has it");
    host.policy.release_set(set);
    host.policy.release_members(members);
    host.policy.release_members(members);
    host.step();
    assert_eq!((host.entries_of(set), name(&host, name_kinds::SET, set)), (0, None));
    assert_eq!(name(&host, name_kinds::MEMBERS, members & !MEMBERS), None);
    let again = host.policy.hold_set(&["a", "b"]);
    assert!(again > other, "a number that a flow may still carry is not given out again");
}

#[test]
fn what_changes_nothing_raises_no_port() {
    let mut host = Host::new(&Settings::default());
    host.push("a", vec![tcp("1", (22, 30), ""), tcp("2", (80, 80), "10.0.0.0/8")]).unwrap();
    let set = host.hold_set(&["a"]);
    host.step();
    host.push_one("a", tcp("3", (24, 26), ""), false).unwrap();
    let (writes, changed) = host.compile();
    assert!(changed.is_empty(), "the ports were allowed already");
    assert!(writes.len() <= 5, "only how many rules there are is written: {writes:?}");
    writes.into_iter().for_each(|write| host.entries.write(write));
    host.push_one("a", tcp("3", (24, 31), ""), false).unwrap();
    let (writes, changed) = host.compile();
    assert_eq!(changed, [set].into());
    writes.into_iter().for_each(|write| host.entries.write(write));
    // The same again, in full: not even a rule differs.
    let rules = host.groups["a"].security_group_rules.clone();
    host.push("a", rules).unwrap();
    assert_eq!(host.step(), 0);
}
