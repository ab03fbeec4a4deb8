//! `host_resources`: which states of a message are meant for this node.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use prost::Message as _;

use super::message::{Entry, Message, read_resources};
use super::neighbour_view::{self, split_state};
use super::parse;
use crate::wire::{PortState, ResourceType, RouterState, SubnetState};

/// Which states of a message apply to this node.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// All.
    All,
    /// None: the message lists hosts, and this node is not among them.
    None,
    /// The listed ones, and what they refer to.
    Listed(Listed),
}

/// Ids by resource type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listed {
    ids: HashMap<i32, HashSet<String>>,
    referred: HashMap<i32, HashSet<String>>,
}

impl Scope {
    /// The scope that a message gives a node with these addresses.
    pub(crate) fn of(message: &Message, addresses: &[IpAddr]) -> Self {
        let Some(hosts) = message.hosts() else { return Self::All };
        let mut ours = hosts
            .iter()
            .map(|place| message.host(place))
            .filter(|(host, _)| parse::ip(host).is_some_and(|host| addresses.contains(&host)))
            .peekable();
        if ours.peek().is_none() {
            return Self::None;
        }
        let mut listed = Listed::default();
        for (_, resources) in ours {
            // The structure was checked when the message came.
            let _checked = read_resources(&resources, |resource_type, id| listed.list(resource_type, id));
        }
        listed.follow(message);
        Self::Listed(listed)
    }

    /// Whether a state applies, by its type, its key in the message and its id.
    pub(crate) fn selects(&self, resource: ResourceType, key: &str, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Listed(listed) => listed.lists(resource, key, id) || listed.refers(resource, id),
        }
    }
}

impl Listed {
    fn list(&mut self, resource_type: i32, id: &str) {
        let ids = self.ids.entry(resource_type).or_default();
        let bare = id.split_once('/').filter(|(host, _)| parse::ip(host).is_some()).map(|(_, id)| id);
        for id in bare.into_iter().chain([id]) {
            if !ids.contains(id) {
                ids.insert(id.to_owned());
            }
        }
    }

    fn lists(&self, resource: ResourceType, key: &str, id: &str) -> bool {
        self.ids.get(&(resource as i32)).is_some_and(|ids| ids.contains(id) || ids.contains(key))
    }

    fn refers(&self, resource: ResourceType, id: &str) -> bool {
        self.referred.get(&(resource as i32)).is_some_and(|ids| ids.contains(id))
    }

    fn refer(&mut self, resource: ResourceType, id: &str) {
        let ids = self.referred.entry(resource as i32).or_default();
        if !id.is_empty() && !ids.contains(id) {
            ids.insert(id.to_owned());
        }
    }

    /// Notes what the listed states refer to.
    fn follow(&mut self, message: &Message) {
        for Entry { key, state, .. } in section(message, ResourceType::Port) {
            let Some(port) = PortState::decode(&*state).ok().and_then(|state| state.configuration) else {
                continue;
            };
            if self.lists(ResourceType::Port, key, &port.id) {
                self.refer(ResourceType::Vpc, &port.vpc_id);
                port.fixed_ips.iter().for_each(|fixed| self.refer(ResourceType::Subnet, &fixed.subnet_id));
                port.security_group_ids
                    .iter()
                    .for_each(|group| self.refer(ResourceType::Securitygroup, &group.id));
            }
        }
        for Entry { key, state, .. } in section(message, ResourceType::Router) {
            let Some(router) = RouterState::decode(&*state).ok().and_then(|state| state.configuration) else {
                continue;
            };
            if self.lists(ResourceType::Router, key, &router.id) {
                router
                    .subnet_routing_tables
                    .iter()
                    .for_each(|table| self.refer(ResourceType::Subnet, &table.subnet_id));
            }
        }
        if self.ids.get(&(ResourceType::Neighbor as i32)).is_some_and(|ids| !ids.is_empty()) {
            self.follow_neighbours(message);
        }
        for Entry { key, state, .. } in section(message, ResourceType::Subnet) {
            let Some(subnet) = SubnetState::decode(&*state).ok().and_then(|state| state.configuration) else {
                continue;
            };
            if self.lists(ResourceType::Subnet, key, &subnet.id)
                || self.refers(ResourceType::Subnet, &subnet.id)
            {
                self.refer(ResourceType::Vpc, &subnet.vpc_id);
            }
        }
    }

    fn follow_neighbours(&mut self, message: &Message) {
        let mut at = 0;
        while let Some((entry, next)) = message.next_neighbour(at) {
            at = next;
            let Ok((operation, configuration)) = split_state(&entry.state) else { continue };
            let Ok(view) = neighbour_view::read(operation, configuration.as_deref()) else { continue };
            if self.lists(ResourceType::Neighbor, entry.key, view.id) {
                self.refer(ResourceType::Vpc, view.vpc_id);
                view.fixed_ips().for_each(|fixed| self.refer(ResourceType::Subnet, fixed.subnet_id));
            }
        }
    }
}

fn section(message: &Message, resource: ResourceType) -> impl Iterator<Item = Entry<'_>> {
    (0..message.section_len(resource)).filter_map(move |position| message.section_entry(resource, position))
}
