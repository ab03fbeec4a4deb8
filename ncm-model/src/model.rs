//! The model of what should be on this host, and how a message gets into it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;
use ncm_common::tables::{IpKey, MEMBERS, MacKey, RouteKey, name_kinds};

use crate::apply::{Binding, BindingKey, Fixed, Outcome, Request};
use crate::compile::endpoints::{Before, Mark};
use crate::compile::flush::Tables;
use crate::compile::{Changes, Handle, HandleKind, HostChange, Room};
use crate::digest::Digests;
use crate::goalstate::Message;
use crate::goalstate::filter::Scope;
use crate::goalstate::neighbour_view::{self, split_state};
use crate::policy::Policy;
use crate::recent::Recent;
use crate::resources::{Address, Interface, Kept, Neighbour, PortSlot, RouterSlot, SubnetSlot, Vpc};
use crate::run::{Asked, PHASES, Part, Run, head};
use crate::settings::{Seed, Settings};
use crate::state::{InterfaceFacts, Progress};
use crate::store::{Allocator, Claims, Hosts, Index, NONE, Provenances, Slab, Strings, Sym, Tombstones};
use crate::wire::{OperationType, ResourceType};

/// The model of what should be on this host.
#[derive(Debug, Default)]
pub struct Model {
    pub(crate) settings: Settings,
    pub(crate) version: u64,
    /// Rises with whatever may change how something stands.
    pub(crate) stirred: u64,
    pub(crate) recent: Recent,
    pub(crate) digests: Digests,
    pub(crate) strings: Strings,
    pub(crate) provenances: Provenances,
    pub(crate) tombstones: Tombstones,

    pub(crate) vpcs: BTreeMap<String, Vpc>,
    pub(crate) subnets: Slab<SubnetSlot>,
    pub(crate) subnet_by_id: HashMap<String, u32>,
    pub(crate) held_subnets: usize,
    pub(crate) ports: Slab<PortSlot>,
    pub(crate) port_by_id: HashMap<String, u32>,
    /// Live ports by their index.
    pub(crate) port_by_index: HashMap<u32, u32>,
    pub(crate) routers: Slab<RouterSlot>,
    pub(crate) router_by_id: HashMap<String, u32>,
    pub(crate) neighbours: Slab<Neighbour>,
    pub(crate) neighbour_index: Index,
    pub(crate) addresses: Slab<Address>,
    pub(crate) v6: Slab<[u8; 16]>,
    /// Gateways are kept without being supported.
    pub(crate) gateways: BTreeMap<String, Kept>,
    /// Bytes of their encoded states.
    pub(crate) gateway_bytes: usize,
    pub(crate) bindings: BTreeMap<BindingKey, Binding>,
    pub(crate) interfaces: HashMap<String, Interface>,
    pub(crate) hosts: Hosts,

    /// Subnets by the VPC they name.
    pub(crate) vpc_subnets: HashMap<String, BTreeSet<u32>>,
    /// How often each VPC uses a VNI.
    pub(crate) vni_owners: HashMap<u32, HashMap<String, u32>>,
    /// Live subnets by VNI.
    pub(crate) vni_subnets: HashMap<u32, BTreeSet<u32>>,
    /// Live subnets by VNI and prefix, and then by id.
    pub(crate) prefix_claims: HashMap<(u32, IpNet), BTreeMap<String, u32>>,
    pub(crate) subnet_by_index: HashMap<u32, u32>,
    /// Why a host is admitted into a VNI: a count of reasons.
    pub(crate) vteps: BTreeMap<(u32, u32), u32>,
    /// Ports by the security groups that they name.
    pub(crate) group_ports: HashMap<String, BTreeSet<u32>>,
    pub(crate) policy: Policy,
    /// Epochs that an earlier run gave to ports, by their index and generation.
    pub(crate) seeded_epochs: HashMap<(u32, u32), u32>,
    /// Subnets that lost their index in this step.
    pub(crate) lost_subnets: Vec<u32>,
    /// Ports that got their index in this step, and had none before.
    pub(crate) fresh_ports: BTreeSet<u32>,
    /// Ports that got the index in this step that they had in an earlier run: there may be flows of theirs.
    pub(crate) reborn_ports: BTreeSet<u32>,
    /// There was an earlier run: the tables have entries that the model has not written.
    pub(crate) resumed: bool,
    /// Interfaces whose programs an earlier run has attached, and which no port has named since.
    pub(crate) adopted: HashMap<String, InterfaceFacts>,
    /// How many established flows each port may have, as last written.
    pub(crate) flow_share: u32,
    /// Ports by the interface index that leads to them.
    pub(crate) bound: HashMap<u32, u32>,
    pub(crate) claims_ip: Claims,
    pub(crate) claims_mac: Claims,
    pub(crate) subnet_indices: Allocator,
    pub(crate) port_indices: Allocator,
    /// Subnets and ports that have no place in their tables.
    pub(crate) waiting_subnets: BTreeSet<u32>,
    pub(crate) waiting_ports: BTreeSet<u32>,
    /// What routers take up of the tables that grow with products.
    pub(crate) room: Room,

    /// What the kernel refused, and why.
    pub(crate) failed: BTreeMap<Handle, Sym>,
    pub(crate) retried: Option<Handle>,
    /// Whose entries are written again when the step ends.
    pub(crate) resend: BTreeSet<Handle>,
    /// Addresses that wait.
    pub(crate) parked: usize,
    /// Subnets with addresses to look at again.
    pub(crate) jobs: VecDeque<u32>,

    pub(crate) tables: Tables,
    pub(crate) dirty_ip: Vec<Mark<IpKey>>,
    pub(crate) dirty_mac: Vec<Mark<MacKey>>,
    pub(crate) dirty_routes: Vec<RouteKey>,
    pub(crate) dirty_routers: BTreeSet<u32>,
    pub(crate) dirty_ports: BTreeSet<u32>,
    pub(crate) dirty_interfaces: BTreeSet<String>,
    pub(crate) host_changes: Vec<HostChange>,

    /// What upstream was being asked for when the message came that is being applied.
    pub(crate) asked: Arc<Asked>,
    pub(crate) last_subnet: Option<(String, u32)>,
    pub(crate) scratch_fixed: Vec<Fixed>,
    pub(crate) scratch_bytes: Vec<u8>,

    /// The node's own settings, during a replay.
    pub(crate) replaying: Option<Box<Settings>>,
    /// Neighbours that have gone while a snapshot is made.
    pub(crate) gone_neighbours: Option<Vec<(bool, Box<str>)>>,
}

impl Model {
    /// An empty model that gives known identities the indices they had.
    #[must_use]
    pub fn new(settings: Settings, seed: &Seed) -> Self {
        let slots = settings.slots;
        let mut model = Self { settings, ..Self::default() };
        model.port_indices = Allocator::of(slots.ports, seed.run);
        model.subnet_indices = Allocator::of(slots.subnets, seed.run);
        model.hosts.indices = Allocator::of(slots.hosts, seed.run);
        let (mut sets, mut members, mut former) = (0, 0, Vec::new());
        for (key, name) in &seed.names {
            match key.kind {
                name_kinds::SET => sets = sets.max(key.index),
                name_kinds::MEMBERS => {
                    members = members.max(key.index);
                    former.push((key.index, name));
                }
                _ => {}
            }
            let text = name.text.get(..name.len as usize).unwrap_or_default();
            let Ok(identity) = std::str::from_utf8(text) else { continue };
            let indices = match key.kind {
                name_kinds::PORT => &mut model.port_indices,
                name_kinds::SUBNET => &mut model.subnet_indices,
                name_kinds::HOST => &mut model.hosts.indices,
                _ => continue,
            };
            indices.seed(identity, key.index, name.generation);
        }
        model.policy = Policy::new(sets + 1, MEMBERS | (members + 1), &model.settings);
        for (index, name) in former.into_iter().filter(|(_, name)| name.is_whole()) {
            model.policy.resume_members(index | MEMBERS, name.as_str());
        }
        model.resumed = !seed.names.is_empty();
        let ports = seed.ports.iter().filter(|(_, port)| port.generation != 0);
        model.seeded_epochs = ports.map(|(index, port)| ((*index, port.generation), port.epoch)).collect();
        model.port_indices.seeded();
        model.subnet_indices.seeded();
        model.hosts.indices.seeded();
        model
    }

    /// What the model was told at start.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Applies up to about `max` states and adds to `changes` (which should be empty) what they change. Until it says
    /// [`Progress::Done`], call it again; other runs may take steps in between.
    pub fn step(&mut self, run: &mut Run, max: usize, changes: &mut Changes) -> Progress {
        let max = max.max(1);
        if run.scope.is_none() {
            self.begin(run);
        }
        let mut left = max;
        while left > 0 && run.phase < PHASES.len() {
            left = self.step_phase(run, left);
        }
        left -= self.work_off(left).min(left);
        self.flush(changes);
        // Flushing may have disturbed nothing new: only resources do.
        if run.phase < PHASES.len() || left == 0 || !self.jobs.is_empty() {
            return Progress::More;
        }
        if !run.done {
            run.done = true;
            run.notes.sort_unstable_by_key(|(at, resource, _)| (*at, *resource));
        }
        Progress::Done
    }

    fn begin(&mut self, run: &mut Run) {
        self.tombstones.expire(run.now, self.settings.limits.tombstone_age_s);
        let scope = Scope::of(&run.message, &self.settings.addresses);
        if matches!(scope, Scope::None) {
            run.warnings.push(format!(
                "nothing applied of a message with {} states: its host_resources list {} hosts, and none of node.addresses is among them",
                run.message.state_count(),
                run.message.hosts().map_or(0, <[_]>::len),
            ));
            run.phase = PHASES.len();
        } else {
            run.prepare();
        }
        run.scope = Some(scope);
    }

    /// Goes on with the run's phase; returns what is left of the budget.
    fn step_phase(&mut self, run: &mut Run, mut left: usize) -> usize {
        let (resource, part) = PHASES[run.phase];
        if resource == ResourceType::Neighbor {
            return self.step_neighbours(run, left);
        }
        let retries = run.retries.get(&resource).map_or(0, Vec::len);
        let end = if part == Part::Retries { retries } else { run.message.section_len(resource) };
        while left > 0 && run.at < end {
            let position = match (part, run.retries.get(&resource)) {
                (Part::Retries, Some(positions)) => positions[run.at],
                _ => run.at,
            };
            run.at += 1;
            left -= 1;
            self.step_state(run, resource, part, position);
        }
        if run.at >= end {
            run.phase += 1;
            run.at = 0;
        }
        left
    }

    fn step_state(&mut self, run: &mut Run, resource: ResourceType, part: Part, position: usize) {
        let message = Arc::clone(&run.message);
        let Some(entry) = message.section_entry(resource, position) else { return };
        let (id, operation) = head(resource, &entry.state);
        let scope_selects = run.scope.as_ref().is_some_and(|scope| scope.selects(resource, entry.key, &id));
        let delete = operation == OperationType::Delete as i32;
        if part != Part::All && part != Part::Retries {
            let late = delete && !run.mixed.contains(&(resource, id.clone()));
            if late != (part == Part::Deletes) {
                return;
            }
        }
        if !scope_selects {
            run.skip(entry.at, resource);
            return;
        }
        let outcome = self.apply_state(resource, &entry.state, run);
        let vni_conflict = matches!(&outcome, Outcome::Refused(crate::wire::OperationStatus::InvalidArg, cause)
            if cause.ends_with(crate::apply::VNI_CONFLICT));
        if vni_conflict && part == Part::Upserts {
            run.retries.entry(resource).or_default().push(position);
            return;
        }
        run.rows += 1;
        run.note(entry.at, resource, outcome);
    }

    /// Makes room for a message's neighbours at once, if it has many more than are held: growing by and by would touch
    /// every one several times. Bounded by what the message's bytes can hold.
    fn expect_neighbours(&mut self, message: &Message) {
        let count = message.neighbour_count().min(message.len() / 64);
        self.neighbour_index.expect(count);
        self.claims_ip.expect(count);
        self.claims_mac.expect(count);
    }

    fn step_neighbours(&mut self, run: &mut Run, mut left: usize) -> usize {
        let message = Arc::clone(&run.message);
        if run.at == 0 {
            self.expect_neighbours(&message);
        }
        let request = Request { origin: run.origin, now: run.now };
        self.asked = Arc::clone(&run.asked);
        while left > 0 {
            let Some((entry, next)) = message.next_neighbour(run.at) else {
                run.phase += 1;
                run.at = 0;
                break;
            };
            run.at = next;
            left -= 1;
            let Ok((operation, configuration)) = split_state(&entry.state) else { continue };
            let Ok(view) = neighbour_view::read(operation, configuration.as_deref()) else { continue };
            if !run
                .scope
                .as_ref()
                .is_some_and(|scope| scope.selects(ResourceType::Neighbor, entry.key, view.id))
            {
                run.skip(entry.at, ResourceType::Neighbor);
                continue;
            }
            run.rows += 1;
            let outcome = self.apply_neighbour(&view, request);
            run.note(entry.at, ResourceType::Neighbor, outcome);
        }
        left
    }

    /// Tells of an interface that has been a guest's in an earlier run, with its programs still attached: a port that names
    /// it has it at once, so that what is on its way to the guest goes on.
    pub fn adopt_interface(&mut self, name: &str, facts: InterfaceFacts) {
        self.adopted.insert(name.to_owned(), facts);
    }

    /// The interface was adopted, and no port has named it since.
    #[must_use]
    pub fn is_adopted(&self, name: &str) -> bool {
        self.adopted.contains_key(name)
    }

    /// Nothing that an earlier run has left refers to these classes of members any more.
    pub fn release_former_members(&mut self, classes: &[u32], changes: &mut Changes) {
        for class in classes {
            self.policy.release_former(*class | MEMBERS);
        }
        self.flush(changes);
    }

    /// Has all flows decided anew: entries that they may have been decided by have gone later than they should have.
    pub fn decide_anew(&mut self, changes: &mut Changes) {
        self.reborn_ports.extend(self.port_by_index.values());
        self.flush(changes);
    }

    /// Tells that an interface has appeared or changed (and its programs are attached), or has gone.
    pub fn set_interface(&mut self, name: &str, facts: Option<InterfaceFacts>, changes: &mut Changes) {
        self.adopted.remove(name);
        if let Some(interface) = self.interfaces.get_mut(name)
            && (interface.facts != facts || interface.attach_error.is_some())
        {
            interface.facts = facts;
            interface.attach_error = None;
            self.disturb_interface(name.to_owned());
        }
        self.flush(changes);
    }

    /// Tells that a port's interface is there but its program could not be attached.
    pub fn attach_failed(&mut self, name: &str, cause: &str, changes: &mut Changes) {
        if let Some(interface) = self.interfaces.get_mut(name) {
            interface.facts = None;
            interface.attach_error = Some(cause.to_owned());
            self.disturb_interface(name.to_owned());
        }
        self.flush(changes);
    }

    /// A port names that interface.
    #[must_use]
    pub fn wanted_interface(&self, name: &str) -> bool {
        self.interfaces.get(name).is_some_and(|interface| !interface.ports.is_empty())
    }

    /// Interfaces that ports name.
    pub fn wanted_interfaces(&self) -> impl Iterator<Item = &str> {
        self.interfaces
            .iter()
            .filter(|(_, interface)| !interface.ports.is_empty())
            .map(|(name, _)| name.as_str())
    }

    /// Tells that the kernel refused an entry of `table`: the resource it comes from is FAILURE until a retry succeeds.
    pub fn write_failed(&mut self, handle: Handle, table: &'static str, cause: &str) {
        if !self.exists(handle) {
            return;
        }
        self.stirred += 1;
        let text = format!("the kernel refused an entry of table {}: {cause}", table.to_ascii_lowercase());
        let sym = self.strings.hold(text.as_bytes());
        if let Some(before) = self.failed.insert(handle, sym) {
            self.strings.release(before);
        }
        if handle.kind() == Some(HandleKind::Neighbour) {
            self.neighbours[handle.slot()].flags |= crate::resources::neighbour_flags::FAILED;
        }
    }

    /// The resource that the handle was given out for (or another in its place) is still there.
    fn exists(&self, handle: Handle) -> bool {
        let slot = handle.slot();
        match handle.kind() {
            Some(HandleKind::Neighbour) => self
                .neighbours
                .get(slot)
                .is_some_and(|neighbour| neighbour.flags & crate::resources::neighbour_flags::HELD != 0),
            Some(HandleKind::Port) => self.ports.get(slot).is_some_and(|port| port.meta.is_some()),
            Some(HandleKind::Subnet) => self.subnets.get(slot).is_some_and(|subnet| subnet.held.is_some()),
            Some(HandleKind::Router) => self.routers.get(slot).is_some_and(|router| router.meta.is_some()),
            Some(HandleKind::Group) => self.policy.group(slot).is_some_and(|group| group.held.is_some()),
            Some(HandleKind::Host) => self.hosts.slots.get(slot).is_some_and(|host| host.holders > 0),
            None => false,
        }
    }

    /// How many resources wait for a retry because the kernel refused an entry of theirs.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed.len()
    }

    /// Emits the entries of up to `max` failed resources again, and returns how many; their failure is forgotten until the
    /// kernel refuses anew. Takes turns: call after call gets to every one.
    pub fn retry(&mut self, max: usize, changes: &mut Changes) -> usize {
        let after = self.retried.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let mut handles: Vec<Handle> = self
            .failed
            .range((after, std::ops::Bound::Unbounded))
            .take(max)
            .map(|(handle, _)| *handle)
            .collect();
        if handles.len() < max {
            handles.extend(
                self.failed
                    .keys()
                    .take_while(|handle| Some(**handle) <= self.retried)
                    .take(max - handles.len()),
            );
        }
        self.retried = handles.last().copied();
        for handle in &handles {
            self.retry_one(*handle);
        }
        self.flush(changes);
        handles.len()
    }

    /// Forgets a resource's failure and marks its endpoint entries to be written again.
    fn touch_owner(&mut self, handle: Handle) {
        self.forget_failure(handle);
        let first = match handle.kind() {
            Some(HandleKind::Neighbour) => {
                self.neighbours.get(handle.slot()).map_or(NONE, |owner| owner.first)
            }
            Some(HandleKind::Port) => self.ports.get(handle.slot()).map_or(NONE, |owner| owner.first),
            _ => NONE,
        };
        let slots: Vec<u32> = self.addresses_from(first).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.touch(slot, Before::Unknown);
        }
    }

    /// A failed resource is asked for again: its entries are written again.
    pub(crate) fn retry_one(&mut self, handle: Handle) {
        if !self.failed.contains_key(&handle) {
            return;
        }
        self.touch_owner(handle);
        if handle.kind() != Some(HandleKind::Neighbour) {
            self.resend.insert(handle);
        }
    }

    /// A resource does not count as failed any more.
    pub(crate) fn forget_failure(&mut self, handle: Handle) {
        if let Some(sym) = self.failed.remove(&handle) {
            self.strings.release(sym);
        }
        if handle.kind() == Some(HandleKind::Neighbour)
            && let Some(neighbour) = self.neighbours.get(handle.slot())
            && neighbour.flags & crate::resources::neighbour_flags::FAILED != 0
        {
            self.neighbours[handle.slot()].flags &= !crate::resources::neighbour_flags::FAILED;
        }
    }
}
