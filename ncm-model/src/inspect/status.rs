//! How held resources stand. Nothing of it is stored: it follows from what is held.

use std::borrow::Cow;

use crate::compile::{Handle, HandleKind, Scarce};
use crate::goalstate::message::Entry;
use crate::goalstate::neighbour_view::{self, split_state};
use crate::model::Model;
use crate::resources::{Address, Neighbour, PortSlot, address_flags, neighbour_flags};
use crate::settings::MissingGroup;
use crate::wire::{OperationStatus, ResourceType};

/// A status, and its cause unless it is SUCCESS.
pub(crate) type Standing = (OperationStatus, Cow<'static, str>);

pub(crate) const SUCCESS: Standing = (OperationStatus::Success, Cow::Borrowed(""));

/// Why an endpoint is in no class of members.
const NO_CLASS: &str = "too many different combinations of security groups are in use: rules that name a remote group do not match it";

fn pending(cause: String) -> Standing {
    (OperationStatus::Pending, Cow::Owned(cause))
}

fn failure(cause: String) -> Standing {
    (OperationStatus::Failure, Cow::Owned(cause))
}

impl Model {
    fn failure_of(&self, handle: Handle) -> Option<Standing> {
        let sym = self.failed.get(&handle)?;
        Some(failure(self.strings.text(*sym).into_owned()))
    }

    /// Why a subnet is not in its router.
    fn not_routed(&self, slot: u32, scarce: Scarce) -> String {
        let slots = &self.settings.slots;
        let full = match scarce {
            Scarce::Routes => Self::no_room("routes", slots.routes),
            Scarce::Vteps => Self::no_room("vteps", slots.vteps),
        };
        format!("subnet {} is not routed: with it, {full}", self.subnets[slot].id)
    }

    fn no_room(table: &str, slots: u32) -> String {
        format!("the table {table} is full ({slots} entries): raise capacity.{table}")
    }

    /// What keeps a subnet from being programmed.
    fn subnet_missing(&self, slot: u32) -> String {
        let subnet = &self.subnets[slot];
        match &subnet.held {
            None => format!("subnet {} is not known yet: it completes when the subnet is pushed", subnet.id),
            Some(_) if self.waiting_subnets.contains(&slot) => {
                let full = Self::no_room("subnets", self.subnet_indices.slots());
                format!("subnet {} is not programmed: {full}", subnet.id)
            }
            Some(held) => format!(
                "subnet {} has no tunnel_id and its VPC {} is not known yet: it completes when the VPC is pushed",
                subnet.id, held.config.vpc_id
            ),
        }
    }

    pub(crate) fn subnet_standing(&self, slot: u32) -> Standing {
        if let Some(failure) = self.failure_of(Handle::new(HandleKind::Subnet, slot)) {
            return failure;
        }
        if self.waiting_subnets.contains(&slot) {
            return failure(Self::no_room("subnets", self.subnet_indices.slots()));
        }
        if self.subnets[slot].live.is_none() {
            return pending(self.subnet_missing(slot));
        }
        SUCCESS
    }

    pub(crate) fn router_standing(&self, slot: u32) -> Standing {
        if let Some(failure) = self.failure_of(Handle::new(HandleKind::Router, slot)) {
            return failure;
        }
        let router = &self.routers[slot];
        for subnet in router.tables.keys() {
            if self.subnets[*subnet].live.is_none() {
                return pending(self.subnet_missing(*subnet));
            }
            if self.subnets[*subnet].routers.values().next() == Some(&slot)
                && let Some(scarce) = self.room.lacks(*subnet)
            {
                return failure(self.not_routed(*subnet, scarce));
            }
        }
        for rule in router.tables.values().flatten() {
            if router.prefixes.contains_key(&rule.net) {
                // A connected route wins over the rule whatever its next hop is.
                continue;
            }
            match rule.next_hop {
                None => {
                    return pending(format!(
                        "rule {} for {} names no next hop of the same version of IP",
                        rule.id, rule.net
                    ));
                }
                Some(next_hop) if router.member_of(next_hop).is_none() => {
                    return pending(format!(
                        "rule {} for {}: next hop {next_hop} is in no subnet of the router: it completes when such a subnet joins",
                        rule.id, rule.net
                    ));
                }
                Some(_) => {}
            }
        }
        SUCCESS
    }

    pub(crate) fn group_standing(&self, slot: u32) -> Standing {
        if let Some(failure) = self.failure_of(Handle::new(HandleKind::Group, slot)) {
            return failure;
        }
        // That ports are closed matters more.
        if let Some(cause) = self.policy.group_refusal(slot) {
            return failure(format!("ports that it is in are closed: {cause}"));
        }
        let held = self.policy.group(slot).and_then(|group| group.held.as_deref());
        match held.and_then(|held| held.refused.as_deref()) {
            Some(cause) => {
                failure(format!("what was sent last is refused, and what was before is in force: {cause}"))
            }
            None => SUCCESS,
        }
    }

    pub(crate) fn port_standing(&self, slot: u32) -> Standing {
        if let Some(failure) = self.failure_of(Handle::new(HandleKind::Port, slot)) {
            return failure;
        }
        if self.waiting_ports.contains(&slot) {
            return failure(Self::no_room("ports", self.port_indices.slots()));
        }
        let port = &self.ports[slot];
        let interface = self.interfaces.get(&port.interface);
        if let Some(error) = interface.and_then(|interface| interface.attach_error.as_ref()) {
            return failure(format!(
                "the program could not be attached to interface {}: {error}",
                port.interface
            ));
        }
        if let Some(address) = self.first_parked(port.first) {
            return pending(self.subnet_missing(self.missing_subnet(port, address)));
        }
        if let Some(group) = self.missing_group(slot)
            && self.settings.missing_group == MissingGroup::Closed
        {
            return pending(format!("security group {group} is not held: the port is closed until it is"));
        }
        if port.members == 0 && !port.groups.is_empty() {
            return failure(NO_CLASS.to_owned());
        }
        if let Some(cause) = self.policy.refusal(port.set).filter(|_| port.set != 0) {
            return failure(format!("the port is closed: {cause}"));
        }
        match interface {
            Some(interface) if self.owns_interface(slot) => {
                if interface.facts.is_none() {
                    return pending(format!("interface {} does not exist yet", port.interface));
                }
                SUCCESS
            }
            interface => {
                let owner = interface.and_then(|interface| interface.ports.keys().next());
                pending(format!(
                    "interface {} belongs to port {}: name another interface, or delete that port",
                    port.interface,
                    owner.map_or("", String::as_str)
                ))
            }
        }
    }

    /// A port's address waits for its own subnet, or for that of the port's first address.
    fn missing_subnet(&self, port: &PortSlot, address: &Address) -> u32 {
        if self.subnets[address.subnet].live.is_none() {
            return address.subnet;
        }
        self.primary(port).map_or(address.subnet, |primary| primary.subnet)
    }

    fn first_parked(&self, first: u32) -> Option<&Address> {
        self.addresses_from(first)
            .map(|(_, address)| address)
            .find(|address| address.has(address_flags::PARKED))
    }

    pub(crate) fn neighbour_standing(&self, slot: u32) -> Standing {
        let neighbour = &self.neighbours[slot];
        if neighbour.flags & neighbour_flags::FAILED != 0
            && let Some(failure) = self.failure_of(Handle::new(HandleKind::Neighbour, slot))
        {
            return failure;
        }
        if !self.failed.is_empty()
            && let Some(failure) = self.failure_of(Handle::new(HandleKind::Host, neighbour.host))
        {
            return failure;
        }
        if self.hosts.waiting.contains(&neighbour.host)
            && self.addresses_from(neighbour.first).any(|(_, address)| address.has(address_flags::ACTIVE))
        {
            return failure(Self::no_room("hosts", self.hosts.indices.slots()));
        }
        if self.is_barred(neighbour) {
            let full = Self::no_room("vteps", self.settings.slots.vteps);
            return failure(format!("its host is not admitted into the router's other subnets: {full}"));
        }
        if self.lacks_class(slot) {
            return failure(NO_CLASS.to_owned());
        }
        let Some(address) = self.first_parked(neighbour.first) else { return SUCCESS };
        let subnet = &self.subnets[address.subnet];
        if subnet.live.is_none() {
            return pending(self.subnet_missing(address.subnet));
        }
        if let Some(scarce) = self.room.lacks(address.subnet) {
            return pending(self.not_routed(address.subnet, scarce));
        }
        pending(format!(
            "no router holds subnet {} yet: the L3 neighbour completes when a router with it is pushed",
            subnet.id
        ))
    }

    /// The neighbour's host is kept out of a router's VNIs for want of room.
    fn is_barred(&self, neighbour: &Neighbour) -> bool {
        self.room.any_barred()
            && self.addresses_from(neighbour.first).any(|(_, address)| {
                let router = self.subnets[address.subnet].live.and_then(|live| live.router);
                address.has(address_flags::ACTIVE)
                    && router.is_some_and(|router| self.routers[router].barred.contains(&neighbour.host))
            })
    }

    /// How the resource stands that an applied state named; success if it has gone since.
    pub(crate) fn standing(&self, resource: ResourceType, id: &str, state: &[u8]) -> Standing {
        let found = match resource {
            ResourceType::Vpc => None,
            ResourceType::Subnet => self
                .subnet_by_id
                .get(id)
                .filter(|slot| self.subnets[**slot].held.is_some())
                .map(|slot| self.subnet_standing(*slot)),
            ResourceType::Port => self.port_by_id.get(id).map(|slot| self.port_standing(*slot)),
            ResourceType::Router => self.router_by_id.get(id).map(|slot| self.router_standing(*slot)),
            ResourceType::Neighbor => self.sent_neighbour_standing(id, state),
            ResourceType::Dhcp => self.sent_binding_standing(state),
            ResourceType::Securitygroup => self.policy.held_slot(id).map(|slot| self.group_standing(slot)),
            ResourceType::Gateway => None,
        };
        found.unwrap_or(SUCCESS)
    }

    /// Of the neighbour's types that the state concerns, the one that stands worst.
    fn sent_neighbour_standing(&self, id: &str, state: &[u8]) -> Option<Standing> {
        let (operation, configuration) = split_state(state).ok()?;
        let view = neighbour_view::read(operation, configuration.as_deref()).ok()?;
        let mut standings = [false, true].into_iter().filter_map(|l3| {
            let sent = view.first.is_none() || view.fixed_ips().any(|fixed| (fixed.neighbor_type == 1) == l3);
            self.find_neighbour(id, l3).filter(|_| sent).map(|slot| self.neighbour_standing(slot))
        });
        let first = standings.next()?;
        Some(match standings.next() {
            Some(second) if severity(second.0) > severity(first.0) => second,
            _ => first,
        })
    }

    /// The standing of what a message's entry named.
    pub(crate) fn entry_standing(&self, resource: ResourceType, id: &str, entry: &Entry<'_>) -> Standing {
        self.standing(resource, id, &entry.state)
    }
}

fn severity(status: OperationStatus) -> u8 {
    match status {
        OperationStatus::Success => 0,
        OperationStatus::Pending => 1,
        OperationStatus::OutOfOrder | OperationStatus::InvalidArg => 2,
        OperationStatus::Failure => 3,
    }
}
