//! The kernel's tables as maps, and a host that takes messages.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;

use ncm_common::tables::MEMBERS;
use ncm_common::tables::{
    ClassKey, Classes, Endpoint, IpKey, MacKey, Name, NameKey, Port, Reference, Route, RouteKey, Rule,
    RuleKey, Source, SourceKey, SourcePrefixKey, Subnet, SubnetPrefixKey, Vni, VtepKey,
};
use prost::Message as _;

use crate::wire::{GoalState, GoalStateV2, NeighborRulesRequest, OperationStatus, ResourceType};
use crate::{
    Changes, Cursor, Delta, Filter, HostChange, InterfaceFacts, Message, Model, Origin, Progress, Run, Seed,
    Settings, StateView,
};

/// All tables that the model writes.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Kernel {
    pub(super) names: BTreeMap<NameKey, Name>,
    pub(super) hosts: BTreeMap<u32, (u32, IpAddr)>,
    pub(super) rules: BTreeMap<RuleKey, Rule>,
    pub(super) classes: BTreeMap<ClassKey, Classes>,
    pub(super) subnets: BTreeMap<u32, Subnet>,
    pub(super) ports: BTreeMap<u32, Port>,
    pub(super) vnis: BTreeMap<u32, Vni>,
    pub(super) subnet_prefixes: BTreeMap<SubnetPrefixKey, Reference>,
    pub(super) vteps: BTreeMap<VtepKey, Reference>,
    pub(super) endpoints_mac: BTreeMap<MacKey, Endpoint>,
    pub(super) endpoints_ip: BTreeMap<IpKey, Endpoint>,
    pub(super) routes: BTreeMap<RouteKey, Route>,
    pub(super) sources: BTreeMap<SourceKey, Source>,
    pub(super) source_prefixes: BTreeMap<SourcePrefixKey, Source>,
    pub(super) devices: BTreeMap<u32, u32>,
    pub(super) port_by_interface: BTreeMap<u32, Reference>,
}

fn apply_delta<K: Copy + Ord + Debug, V: Copy>(table: &mut BTreeMap<K, V>, delta: &Delta<K, V>) {
    let mut seen = BTreeSet::new();
    for put in &delta.put {
        assert!(seen.insert(put.key), "{:?} is put twice", put.key);
        table.insert(put.key, put.value);
    }
    for key in &delta.del {
        assert!(seen.insert(*key), "{key:?} is deleted and put, or deleted twice");
        table.remove(key);
    }
}

impl Kernel {
    pub(super) fn apply(&mut self, changes: &Changes) {
        for host in &changes.hosts {
            match *host {
                HostChange::Add { index, generation, address } => {
                    assert!(index != 0 && generation != 0);
                    assert!(
                        self.hosts.insert(index, (generation, address)).is_none(),
                        "index {index} is in use"
                    );
                }
                HostChange::Remove { index, address } => {
                    assert_eq!(self.hosts.remove(&index).map(|(_, address)| address), Some(address));
                }
            }
        }
        apply_delta(&mut self.names, &changes.names);
        apply_delta(&mut self.rules, &changes.rules);
        apply_delta(&mut self.classes, &changes.classes);
        apply_delta(&mut self.subnets, &changes.subnets);
        apply_delta(&mut self.ports, &changes.ports);
        apply_delta(&mut self.vnis, &changes.vnis);
        apply_delta(&mut self.subnet_prefixes, &changes.subnet_prefixes);
        apply_delta(&mut self.vteps, &changes.vteps);
        apply_delta(&mut self.endpoints_mac, &changes.endpoints_mac);
        apply_delta(&mut self.endpoints_ip, &changes.endpoints_ip);
        apply_delta(&mut self.routes, &changes.routes);
        apply_delta(&mut self.sources, &changes.sources);
        apply_delta(&mut self.source_prefixes, &changes.source_prefixes);
        apply_delta(&mut self.devices, &changes.devices);
        apply_delta(&mut self.port_by_interface, &changes.port_by_interface);
        apply_delta(&mut self.ports, &changes.port_epochs);
    }

    fn name(&self, kind: u32, index: u32) -> String {
        let Some(name) = self.names.get(&NameKey { kind, index }) else { return format!("#{index}") };
        String::from_utf8_lossy(&name.text[..name.len as usize]).into_owned()
    }

    /// The tables with identities in the place of indices: what does not depend on the order of numbering.
    pub(super) fn renamed(&self) -> BTreeSet<String> {
        use ncm_common::tables::{endpoint_flags, name_kinds as kinds};
        let subnet = |index| self.name(kinds::SUBNET, index);
        let port = |index| self.name(kinds::PORT, index);
        let host = |index| self.name(kinds::HOST, index);
        let endpoint = |value: &Endpoint| {
            let local = value.flags & endpoint_flags::LOCAL != 0;
            let target = if local { port(value.target) } else { host(value.target) };
            let members = self.name(kinds::MEMBERS, value.members & !MEMBERS);
            format!("{target} in {} of {members} {:x} {:x?}", subnet(value.subnet), value.flags, value.mac)
        };
        let mut rows = BTreeSet::new();
        let mut row = |text| assert!(rows.insert(text));
        self.hosts.iter().for_each(|(index, (_, address))| row(format!("host {} {address}", host(*index))));
        for (index, value) in &self.subnets {
            row(format!("subnet {} {:?}", subnet(*index), Subnet { generation: 0, ..*value }));
        }
        for (index, value) in &self.ports {
            let plain = Port { generation: 0, epoch: 0, subnet: 0, subnet_generation: 0, set: 0, ..*value };
            let set = self.name(kinds::SET, value.set);
            row(format!("port {} in {} with {set} {plain:?}", port(*index), subnet(value.subnet)));
        }
        self.vnis.iter().for_each(|(vni, value)| row(format!("vni {vni} {}", value.subnets)));
        for (key, value) in &self.subnet_prefixes {
            row(format!("prefix {key:?} {}", subnet(value.index)));
        }
        self.vteps.iter().for_each(|(key, value)| row(format!("vtep {key:?} {}", host(value.index))));
        self.endpoints_mac.iter().for_each(|(key, value)| row(format!("{key:?} {}", endpoint(value))));
        self.endpoints_ip.iter().for_each(|(key, value)| row(format!("{key:?} {}", endpoint(value))));
        for (key, value) in &self.routes {
            let plain = Route { subnet: 0, subnet_generation: 0, ..*value };
            let from = (subnet(key.subnet), key.prefix_len, key.ip);
            row(format!("route {from:?} {} {plain:?}", subnet(value.subnet)));
        }
        for (key, value) in &self.sources {
            row(format!("source {} {:x?} {:?} {}", port(key.port), key.mac, key.ip, subnet(value.subnet)));
        }
        for (key, value) in &self.source_prefixes {
            let from = (port(key.port), key.prefix_len, key.family, key.mac, key.ip);
            row(format!("source prefix {from:?} {}", subnet(value.subnet)));
        }
        let set = |key: u32| (self.name(kinds::SET, key >> 1), key & 1);
        // A prefix's own class is the first that its entry lists.
        let prefixes: BTreeMap<(u32, u32), (u32, [u8; 16])> = self
            .classes
            .iter()
            .map(|(key, value)| ((key.set, value.classes[0]), (key.prefix_len, key.ip)))
            .collect();
        let class = |set: u32, class: u32| match class {
            0 => "any".to_owned(),
            members if members & MEMBERS != 0 => self.name(kinds::MEMBERS, members & !MEMBERS),
            prefix => format!("{:?}", prefixes.get(&(set, prefix))),
        };
        for (key, value) in &self.classes {
            let classes: Vec<String> = value.classes.iter().map(|number| class(key.set, *number)).collect();
            row(format!("classes {:?} {} {:?} {classes:?}", set(key.set), key.prefix_len, key.ip));
        }
        for (key, value) in &self.rules {
            let plain = RuleKey { set: 0, class: 0, ..*key };
            row(format!("rule {:?} {} {plain:?} {}", set(key.set), class(key.set, key.class), value.rules));
        }
        self.devices.iter().for_each(|entry| row(format!("device {entry:?}")));
        for (ifindex, value) in &self.port_by_interface {
            row(format!("interface {ifindex} {}", port(value.index)));
        }
        rows
    }
}

/// A reply's row, owned.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) resource: ResourceType,
    pub(super) status: OperationStatus,
    pub(super) cause: String,
}

/// A node that takes messages, with its kernel.
#[derive(Default)]
pub(super) struct Node {
    pub(super) model: Model,
    pub(super) kernel: Kernel,
    pub(super) wanted: BTreeSet<String>,
    pub(super) warnings: Vec<String>,
    /// How many epochs of addresses and MACs have risen.
    pub(super) raised: usize,
    /// States per step.
    pub(super) step: usize,
    pub(super) now: u64,
}

/// This node's tunnel endpoint and address.
pub(super) const HERE: &str = "192.168.0.1";

/// Its tunnel endpoint over IPv6.
pub(super) const HERE_V6: &str = "2001:db8::1";

impl Node {
    pub(super) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let here: IpAddr = HERE.parse().unwrap();
        let endpoints = vec![here, HERE_V6.parse().unwrap()];
        let settings = Settings { addresses: vec![here], endpoints, ..settings };
        Self { model: Model::new(settings, &Seed::default()), step: 1000, now: 1, ..Self::default() }
    }

    pub(super) fn run(&mut self, message: Message) -> Run {
        let mut run = Run::new(message, Origin::Controller, self.now);
        loop {
            let mut changes = Changes::default();
            let progress = self.model.step(&mut run, self.step.max(1), &mut changes);
            self.note(&changes);
            if progress == Progress::Done {
                self.warnings.extend(run.take_warnings());
                return run;
            }
        }
    }

    fn note(&mut self, changes: &Changes) {
        let before = super::epochs::Before::of(&self.kernel, changes);
        self.kernel.apply(changes);
        before.check(&self.kernel, changes, self.model.resumed);
        self.raised += changes.epochs.len();
        for name in &changes.interfaces.unwanted {
            assert!(self.wanted.remove(name), "{name} was not wanted");
        }
        for name in &changes.interfaces.wanted {
            assert!(self.wanted.insert(name.clone()), "{name} is wanted twice");
        }
    }

    fn answers(&self, run: &Run) -> Vec<Answer> {
        let answers: Vec<Answer> = self
            .model
            .rows(run)
            .map(|row| Answer {
                id: row.id.into_owned(),
                resource: row.resource_type,
                status: row.status,
                cause: row.cause.into_owned(),
            })
            .collect();
        assert_eq!(answers.len(), self.model.row_count(run), "rows and their number differ: {answers:?}");
        let first_success = answers.iter().position(|answer| answer.status == OperationStatus::Success);
        if let Some(first) = first_success {
            assert!(
                answers[first..].iter().all(|answer| answer.status == OperationStatus::Success),
                "rows other than SUCCESS come first: {answers:?}"
            );
        }
        for answer in &answers {
            assert_eq!(answer.cause.is_empty(), answer.status == OperationStatus::Success, "{answer:?}");
        }
        answers
    }

    pub(super) fn push(&mut self, state: &GoalState) -> Vec<Answer> {
        let run = self.run(Message::decode_v1(state.encode_to_vec().into()).unwrap());
        self.answers(&run)
    }

    pub(super) fn push_v2(&mut self, state: &GoalStateV2) -> Vec<Answer> {
        let run = self.run(Message::decode_v2(state.encode_to_vec().into()).unwrap());
        self.answers(&run)
    }

    pub(super) fn push_rules(&mut self, state: &NeighborRulesRequest) -> Vec<Answer> {
        let run = self.run(Message::decode_rules(state.encode_to_vec().into()).unwrap());
        self.answers(&run)
    }

    /// The one row of a message with one state.
    pub(super) fn one(&mut self, state: &GoalState) -> Answer {
        let mut answers = self.push(state);
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    /// The statuses of a message's rows, by id.
    pub(super) fn statuses(&mut self, state: &GoalState) -> Vec<(String, OperationStatus)> {
        let mut statuses: Vec<_> =
            self.push(state).into_iter().map(|answer| (answer.id, answer.status)).collect();
        statuses.sort();
        statuses
    }

    pub(super) fn interface(&mut self, name: &str, facts: Option<InterfaceFacts>) {
        let mut changes = Changes::default();
        self.model.set_interface(name, facts, &mut changes);
        self.note(&changes);
    }

    /// An interface appears.
    pub(super) fn appear(&mut self, name: &str, ifindex: u32) {
        self.interface(name, Some(InterfaceFacts { ifindex, mtu: 1500, xdp_target: false }));
    }

    pub(super) fn list(&self) -> Vec<StateView> {
        let filter = Filter { with_state: true, ..Filter::default() };
        let (mut views, mut cursor) = (Vec::new(), Some(Cursor::default()));
        while let Some(from) = cursor {
            let (part, next) = self.model.list(&filter, from, 3);
            views.extend(part);
            cursor = next;
        }
        views
    }

    /// How a held resource stands.
    pub(super) fn standing(&self, id: &str) -> (OperationStatus, String) {
        let filter = Filter { id: Some(id.to_owned()), ..Filter::default() };
        let (mut views, _) = self.model.list(&filter, Cursor::default(), 10);
        assert_eq!(views.len(), 1, "{id}: {views:?}");
        let view = views.remove(0);
        (view.status, view.cause)
    }

    /// What has been written is what a compiler that starts from scratch makes of the held states.
    pub(super) fn check(&self) {
        self.check_tables();
        let expected = super::scratch::compile(&self.model);
        assert_eq!(self.kernel.names, expected.names, "table names");
    }

    /// The same, but for names: those of an earlier run's classes of members are kept.
    pub(super) fn check_tables(&self) {
        let expected = super::scratch::compile(&self.model);
        macro_rules! same {
            ($($table:ident),+) => {$(
                assert_eq!(self.kernel.$table, expected.$table, concat!("table ", stringify!($table)));
            )+};
        }
        same!(
            hosts,
            subnets,
            ports,
            vnis,
            subnet_prefixes,
            vteps,
            endpoints_mac,
            endpoints_ip,
            routes,
            sources,
            source_prefixes,
            devices,
            port_by_interface
        );
    }
}
