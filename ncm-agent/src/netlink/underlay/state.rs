//! What the tables about the underlay should hold, from what the kernel reports: events in, table writes out. Nothing
//! here talks to the kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ncm_common::tables::{Host, NextHop, Uplink, next_hop_flags};

use super::super::link::{Link, LinkMessage, LinkTable};
use super::super::links::LinkEvent;
use super::groups::{self, Groups, Path};
use super::neighbours::{Care, Hop, Neighbour, NeighbourMessage};
use super::routes::{Affected, RouteMessage, RouteTable};
use super::{Adopted, HostChange, HostReport, Settings, template};

/// The MTU of a path that is not known, in bytes.
const UNKNOWN_MTU: u16 = 1500;

/// What the kernel reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    Link(LinkMessage),
    XdpFeatures {
        interface: u32,
        features: u64,
    },
    Route(RouteMessage),
    Neighbour(NeighbourMessage),
    Address {
        address: IpAddr,
        present: bool,
    },
    /// Everything, after a start or an overrun.
    Complete(Snapshot),
}

/// All that there is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) routes: Vec<RouteMessage>,
    pub(crate) neighbours: Vec<NeighbourMessage>,
}

/// A remote host.
#[derive(Clone, Debug)]
pub(super) struct RemoteHost {
    pub(super) generation: u32,
    pub(super) address: IpAddr,
    /// The group that it should use (and counts as a user of); 0 for none.
    pub(super) group: u32,
    pub(super) path: Path,
    pub(super) mtu: u16,
    /// Why there is no group.
    pub(super) problem: Option<String>,
    /// What the slot holds, as last written.
    pub(super) value: Host,
    /// Groups that the slot may still refer to.
    pub(super) leaving: Vec<u32>,
}

/// The underlay as it is, and the tables as they were written.
#[derive(Debug)]
pub(crate) struct State {
    pub(super) settings: Settings,
    pub(super) links: LinkTable,
    pub(super) uplinks: HashSet<u32>,
    /// The uplinks as they were written.
    pub(super) written_uplinks: Option<[Uplink; 8]>,
    /// Names of interfaces that have become part of the underlay.
    pub(super) new_uplinks: Vec<String>,
    pub(super) own: HashSet<IpAddr>,
    pub(super) routes: RouteTable,
    pub(super) neighbours: HashMap<Hop, Neighbour>,
    pub(super) hosts: HashMap<u32, RemoteHost>,
    pub(super) by_address: BTreeMap<IpAddr, BTreeSet<u32>>,
    pub(super) groups: Groups,
    pub(super) dirty_hosts: BTreeSet<u32>,
    pub(super) dirty_groups: BTreeSet<u32>,
    /// Slots of removed hosts that are still to be cleared, with the groups that they may refer to.
    pub(super) clearing: BTreeMap<u32, Vec<u32>>,
    pub(super) clearing_groups: BTreeSet<u32>,
    /// Hosts that found all groups taken.
    pub(super) starved: BTreeSet<u32>,
    /// Next hops that the kernel is to be asked to keep, and to keep no more.
    pub(super) to_keep: BTreeSet<Hop>,
    pub(super) to_release: BTreeSet<Hop>,
    pub(super) unknown: bool,
    pub(super) synchronised: bool,
}

impl State {
    pub(crate) fn new(settings: Settings, adopted: Adopted) -> Self {
        let groups = Groups::new(settings.groups, adopted.groups);
        let mut state = Self {
            settings,
            links: LinkTable::default(),
            uplinks: HashSet::new(),
            written_uplinks: None,
            new_uplinks: Vec::new(),
            own: HashSet::new(),
            routes: RouteTable::default(),
            neighbours: HashMap::new(),
            hosts: HashMap::new(),
            by_address: BTreeMap::new(),
            groups,
            dirty_hosts: BTreeSet::new(),
            dirty_groups: BTreeSet::new(),
            clearing: BTreeMap::new(),
            clearing_groups: BTreeSet::new(),
            starved: BTreeSet::new(),
            to_keep: BTreeSet::new(),
            to_release: BTreeSet::new(),
            unknown: false,
            synchronised: false,
        };
        for (index, value) in adopted.hosts {
            if let Some(address) = template::destination(&value) {
                state.add_host(index, value.generation, address, value);
            }
        }
        state
    }

    /// Takes an event in; [`State::flush`] then writes what follows from it.
    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Link(message) => {
                let mut events = Vec::new();
                match message {
                    LinkMessage::New(link) => self.links.put(link, &mut events),
                    LinkMessage::Gone(index) => self.links.remove(index, &mut events),
                }
                self.links_changed(events);
            }
            Event::XdpFeatures { interface, features } => {
                let mut events = Vec::new();
                self.links.put_features(interface, features, &mut events);
                self.links_changed(events);
            }
            Event::Route(message) => match self.routes.apply(message) {
                Affected::Nothing => {}
                Affected::Unknown => self.unknown = true,
                Affected::Everything => self.dirty_hosts.extend(self.hosts.keys()),
                Affected::Within(prefix) => {
                    let within = self.by_address.range(prefix.address..=prefix.last());
                    self.dirty_hosts.extend(within.flat_map(|(_, indices)| indices));
                }
            },
            Event::Neighbour(message) => self.neighbour(&message),
            Event::Address { address, present } => {
                let changed = if present { self.own.insert(address) } else { self.own.remove(&address) };
                // With an address the kernel removes, without a word, the routes that name it as their source.
                self.unknown |= changed && !present;
                self.dirty_hosts.extend(self.by_address.get(&address).into_iter().flatten());
            }
            Event::Complete(snapshot) => self.complete(snapshot),
        }
    }

    /// Whether something happened of which the kernel does not report all that follows: only a dump tells.
    pub(crate) fn take_unknown(&mut self) -> bool {
        std::mem::take(&mut self.unknown)
    }

    /// Names of the interfaces that have become part of the underlay since the last call, if they are to be opened.
    pub(crate) fn take_new_uplinks(&mut self) -> Vec<String> {
        let new = std::mem::take(&mut self.new_uplinks);
        if self.settings.open_uplinks { new } else { Vec::new() }
    }

    fn links_changed(&mut self, events: Vec<LinkEvent>) {
        if events.is_empty() {
            return;
        }
        let before = std::mem::take(&mut self.uplinks);
        self.uplinks = self.find_uplinks();
        let new = self.uplinks.difference(&before).filter_map(|index| self.links.get(*index));
        self.new_uplinks.extend(new.map(|link| link.name.clone()));
        for event in events {
            let (LinkEvent::Appeared(link) | LinkEvent::Changed(link) | LinkEvent::Gone(link)) = event else {
                continue;
            };
            if !before.contains(&link.index) && !self.uplinks.contains(&link.index) {
                continue;
            }
            if self.links.get(link.index).is_none() {
                self.neighbours.retain(|hop, _| hop.interface != link.index);
            }
            // The kernel drops, revives and forgets routes of an interface that goes up or down without a word.
            self.unknown = true;
            self.dirty_hosts.extend(self.hosts.keys());
            self.dirty_groups.extend(self.groups.indices());
        }
    }

    fn neighbour(&mut self, message: &NeighbourMessage) {
        if !self.uplinks.contains(&message.hop.interface) {
            return;
        }
        let before = match message.entry {
            Some(entry) => self.neighbours.insert(message.hop, entry),
            None => self.neighbours.remove(&message.hop),
        };
        if before.and_then(|before| before.mac) != message.entry.and_then(|entry| entry.mac) {
            self.dirty_groups.extend(self.groups.with_hop(&message.hop));
        }
        if message.entry.is_none() {
            self.care(message.hop);
        }
    }

    fn complete(&mut self, snapshot: Snapshot) {
        let mut events = Vec::new();
        self.links.replace(snapshot.links, &mut events);
        self.links_changed(events);
        self.own = snapshot.addresses.into_iter().collect();
        self.routes = RouteTable::default();
        for message in snapshot.routes {
            self.routes.load(message);
        }
        self.neighbours = (snapshot.neighbours.into_iter())
            .filter(|message| self.uplinks.contains(&message.hop.interface))
            .filter_map(|message| Some((message.hop, message.entry?)))
            .collect();
        self.dirty_hosts.extend(self.hosts.keys());
        self.dirty_groups.extend(self.groups.indices());
        if !self.synchronised {
            // What an agent before had kept and nobody needs is found once the hosts have their groups.
            let kept = self.neighbours.iter().filter(|(_, entry)| entry.is_kept_for_us());
            self.to_release.extend(kept.map(|(hop, _)| *hop));
        }
        self.unknown = false;
        self.synchronised = true;
        self.tick();
    }

    /// Looks after the next hops that are needed and that the kernel does not keep by itself.
    pub(crate) fn tick(&mut self) {
        let hops: Vec<Hop> = self.groups.hops().copied().collect();
        for hop in hops {
            self.care(hop);
        }
    }

    /// Has the kernel asked to resolve and keep a next hop, if that is needed.
    fn care(&mut self, hop: Hop) {
        let running = self.links.get(hop.interface).is_some_and(|link| link.running);
        let kept = self.neighbours.get(&hop).is_some_and(|entry| entry.managed || entry.fixed);
        if running && !kept && self.groups.needs(&hop) {
            self.to_keep.insert(hop);
        }
    }

    /// The next request to the kernel about a next hop, if it still makes sense.
    pub(crate) fn next_care(&mut self) -> Option<(Hop, Care)> {
        while let Some(hop) = self.to_release.pop_first() {
            if !self.groups.needs(&hop) {
                return Some((hop, Care::Release));
            }
        }
        while let Some(hop) = self.to_keep.pop_first() {
            if self.groups.needs(&hop) {
                return Some((hop, Care::Keep));
            }
        }
        None
    }

    /// Takes the model's wishes in; [`State::flush`] then writes them.
    pub(crate) fn change_hosts(&mut self, changes: &[HostChange]) -> Vec<(u32, String)> {
        let mut refused = Vec::new();
        for change in changes {
            match *change {
                HostChange::Remove { index, .. } => self.remove_host(index),
                HostChange::Add { index, address, .. } if self.lacks_endpoint(address) => {
                    self.remove_host(index);
                    refused.push((index, lacking(address)));
                }
                HostChange::Add { index, generation, address } => {
                    let known = self.hosts.get(&index);
                    if known.is_some_and(|host| (host.generation, host.address) == (generation, address)) {
                        continue;
                    }
                    self.remove_host(index);
                    self.add_host(index, generation, address, Host::default());
                }
            }
        }
        refused
    }

    /// Our endpoints that no interface has as its address: the kernel takes nothing for them.
    pub(crate) fn missing_endpoints(&self) -> Vec<IpAddr> {
        self.settings.endpoints.iter().filter(|own| self.synchronised && !self.own.contains(own)).collect()
    }

    /// Whether we have no endpoint of an address's family.
    fn lacks_endpoint(&self, address: IpAddr) -> bool {
        !self.settings.endpoints.iter().any(|own| own.is_ipv4() == address.is_ipv4())
    }

    fn add_host(&mut self, index: u32, generation: u32, address: IpAddr, value: Host) {
        let leaving = self.clearing.remove(&index).unwrap_or_default();
        let host = RemoteHost {
            generation,
            address,
            group: 0,
            path: Path::new(),
            mtu: 0,
            problem: None,
            value,
            leaving,
        };
        self.hosts.insert(index, host);
        self.by_address.entry(address).or_default().insert(index);
        self.dirty_hosts.insert(index);
    }

    fn remove_host(&mut self, index: u32) {
        let Some(host) = self.hosts.remove(&index) else { return };
        self.dirty_hosts.remove(&index);
        if let Some(indices) = self.by_address.get_mut(&host.address) {
            indices.remove(&index);
            if indices.is_empty() {
                self.by_address.remove(&host.address);
            }
        }
        let mut groups = host.leaving;
        groups.extend(Some(host.group).filter(|group| *group != 0));
        self.clearing.entry(index).or_default().extend(groups);
    }

    /// Finds a host's ways out and the group that stands for them.
    pub(super) fn route_host(&mut self, index: u32) {
        let Some(host) = self.hosts.get(&index) else { return };
        let found = self.find_path(host.address);
        let (path, mtu, mut problem) = match found {
            Ok((path, mtu)) => (path, Some(mtu), None),
            Err(problem) => (Path::new(), None, Some(problem)),
        };
        let mut group = host.group;
        let previous = host.group;
        if path.is_empty() {
            group = 0;
        } else if group == 0 || host.path != path {
            let name = groups::fitting(&self.describe(&path));
            match self.groups.acquire(&path, name) {
                None => {
                    problem = Some(format!("all {} next-hop groups are taken", self.settings.groups));
                    group = 0;
                    self.starved.insert(index);
                }
                Some((acquired, new)) => {
                    group = acquired;
                    if new {
                        self.dirty_groups.insert(acquired);
                        for (hop, _) in &path {
                            self.care(*hop);
                        }
                    }
                }
            }
        }
        let fallback = self.smallest_mtu();
        let Some(host) = self.hosts.get_mut(&index) else { return };
        host.leaving.extend(Some(previous).filter(|previous| *previous != 0 && *previous != group));
        host.group = group;
        host.path = if group == 0 { Path::new() } else { path };
        host.mtu = match mtu {
            Some(mtu) => mtu,
            None if host.mtu != 0 => host.mtu,
            None => fallback,
        };
        if problem.is_some() && problem != host.problem {
            tracing::warn!(host = %host.address, problem = problem.as_deref(), "a remote host is out of reach");
        }
        host.problem = problem;
    }

    fn find_path(&self, address: IpAddr) -> Result<(Path, u16), String> {
        if self.settings.endpoints.contains(address) || self.own.contains(&address) {
            return Err("it is an address of this host itself".to_owned());
        }
        if self.lacks_endpoint(address) {
            return Err(lacking(address));
        }
        let is_up = |interface| self.links.get(interface).is_some_and(|link| link.up);
        let (ways, route_mtu) = self.routes.lookup(address, is_up).ok_or("there is no route to it")?;
        let mut path: Path = (ways.iter())
            .filter(|way| self.uplinks.contains(&way.interface))
            .map(|way| {
                (Hop { interface: way.interface, address: way.gateway.unwrap_or(address) }, way.weight)
            })
            .collect();
        if path.is_empty() {
            let name = |interface| self.links.get(interface).map_or("?", |link| link.name.as_str());
            let by = ways.first().map_or("nowhere", |way| name(way.interface));
            return Err(format!("its route is by {by}, which is not an interface of the underlay"));
        }
        path.sort_unstable();
        let link_mtus = path.iter().filter_map(|(hop, _)| self.links.get(hop.interface)).map(|link| link.mtu);
        let mtu = link_mtus.chain(route_mtu).min().unwrap_or(UNKNOWN_MTU.into());
        Ok((path, u16::try_from(mtu).unwrap_or(u16::MAX)))
    }

    fn smallest_mtu(&self) -> u16 {
        let mtus = self.uplinks.iter().filter_map(|index| self.links.get(*index)).map(|link| link.mtu);
        mtus.min().map_or(UNKNOWN_MTU, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    fn describe(&self, path: &Path) -> String {
        let hop = |(hop, weight): &(Hop, u16)| {
            let name = match self.links.get(hop.interface) {
                Some(link) => link.to_string(),
                None => format!("index {}", hop.interface),
            };
            let weight = if *weight == 1 { String::new() } else { format!(" weight {weight}") };
            format!("{} by {name}{weight}", hop.address)
        };
        path.iter().map(hop).collect::<Vec<_>>().join(", ")
    }

    /// The resolved next hops of a path.
    pub(super) fn resolve(&self, path: &Path) -> Vec<(NextHop, u16)> {
        let resolved = path.iter().filter_map(|(hop, weight)| Some((self.next_hop(hop)?, *weight)));
        resolved.take(groups::MOST_HOPS).collect()
    }

    fn next_hop(&self, hop: &Hop) -> Option<NextHop> {
        let link = self.links.get(hop.interface).filter(|link| link.running)?;
        let destination = self.neighbours.get(hop)?.mac?;
        // A VLAN's frames leave by the interface below, tagged; only one tag can be given.
        let below = link.vlan.and(link.lower).and_then(|lower| self.links.get(lower));
        let (device, vlan) =
            match below.filter(|below| below.vlan.is_none() && below.kind.as_deref() != Some("vlan")) {
                Some(below) => (below, link.vlan.unwrap_or_default()),
                None => (link, 0),
            };
        // Only the named interfaces are in the table of devices that XDP programs redirect to.
        let redirects = device.takes_xdp() && self.settings.interfaces.contains(&device.name);
        let flags = if redirects { next_hop_flags::XDP_TARGET } else { 0 }
            | if device.is_veth() { next_hop_flags::VETH } else { 0 };
        Some(NextHop { ifindex: device.index, destination, source: link.mac?, vlan, flags })
    }

    /// Whether all that is known is written.
    pub(crate) fn is_settled(&self) -> bool {
        self.written_uplinks == Some(self.uplink_slots())
            && self.dirty_hosts.is_empty()
            && self.dirty_groups.is_empty()
            && self.clearing.is_empty()
            && self.clearing_groups.is_empty()
    }

    /// How many remote hosts there are, and how many of them have no resolved next hop.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let resolved = |host: &&RemoteHost| host.path.iter().any(|(hop, _)| self.next_hop(hop).is_some());
        (self.hosts.len(), self.hosts.len() - self.hosts.values().filter(resolved).count())
    }

    /// How each remote host is reached, by index.
    pub(crate) fn report(&self) -> Vec<HostReport> {
        let report = |(index, host): (&u32, &RemoteHost)| HostReport {
            index: *index,
            address: host.address,
            group: host.group,
            mtu: host.mtu,
            path: self.describe(&host.path),
            resolved: self.resolve(&host.path).len(),
            problem: host.problem.clone(),
        };
        let mut all: Vec<HostReport> = self.hosts.iter().map(report).collect();
        all.sort_unstable_by_key(|report| report.index);
        all
    }
}

/// Why there is no way to a host of that address's family.
fn lacking(address: IpAddr) -> String {
    let (version, key) = if address.is_ipv4() { ("IPv4", "endpoint_v4") } else { ("IPv6", "endpoint_v6") };
    format!("it is reached over {version}, and underlay.{key} is not set")
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
