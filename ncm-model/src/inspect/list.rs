//! Listing held resources, in parts.

use prost::Message as _;

use crate::apply::{Binding, BindingKey, UNSUPPORTED, binding_name};
use crate::compile::Handle;
use crate::goalstate::neighbour_view;
use crate::goalstate::parse::{mac as mac_of, mac_text};
use crate::inspect::status::{SUCCESS, Standing};
use crate::model::Model;
use crate::resources::{Kept, Meta, Neighbour, Vpc, address_flags, neighbour_flags};
use crate::state::{Cursor, Filter, StateCount, StateView};
use crate::wire::neighbor_configuration::{AllowAddressPair, FixedIp};
use crate::wire::{
    DhcpState, NeighborConfiguration, NeighborState, OperationStatus, OperationType, PortState, ResourceType,
    RouterState, SecurityGroupState, SubnetState, UpdateType, VpcState,
};

/// The order of types in a listing: that of their numbers.
const TYPES: [ResourceType; 8] = [
    ResourceType::Vpc,
    ResourceType::Subnet,
    ResourceType::Port,
    ResourceType::Neighbor,
    ResourceType::Securitygroup,
    ResourceType::Dhcp,
    ResourceType::Router,
    ResourceType::Gateway,
];

/// How a state is shown: as one that would make what is held.
const SHOWN: i32 = OperationType::Create as i32;

impl Model {
    /// Held resources, up to `limit` a call: go on with the returned cursor until there is none.
    #[must_use]
    pub fn list(&self, filter: &Filter, from: Cursor, limit: usize) -> (Vec<StateView>, Option<Cursor>) {
        let mut views = Vec::new();
        if let Some(id) = &filter.id {
            self.list_one(filter, id, &mut views);
            return (views, None);
        }
        let mut looked = 0;
        for (number, resource) in TYPES.into_iter().enumerate().skip(usize::from(from.kind)) {
            if filter.resource_type.is_some_and(|wanted| wanted != resource)
                || (filter.unsettled && resource == ResourceType::Neighbor && self.neighbours_settled())
            {
                continue;
            }
            let start = if number == usize::from(from.kind) { from.slot } else { 0 };
            for (slot, view) in (start..).zip(self.views(resource, start, filter)) {
                // A part ends by what it has looked at too: a filter that few pass holds up nobody.
                if views.len() >= limit || looked >= limit.saturating_mul(16).max(1) {
                    return (views, Some(Cursor { kind: number as u8, slot }));
                }
                looked += 1;
                views.extend(view);
            }
        }
        (views, None)
    }

    fn list_one(&self, filter: &Filter, id: &str, views: &mut Vec<StateView>) {
        for resource in TYPES {
            if filter.resource_type.is_some_and(|wanted| wanted != resource) {
                continue;
            }
            match resource {
                ResourceType::Subnet => {
                    views.extend(
                        self.subnet_by_id.get(id).and_then(|slot| self.view(resource, *slot, filter)),
                    );
                }
                ResourceType::Port => {
                    views.extend(self.port_by_id.get(id).and_then(|slot| self.view(resource, *slot, filter)));
                }
                ResourceType::Router => {
                    views.extend(
                        self.router_by_id.get(id).and_then(|slot| self.view(resource, *slot, filter)),
                    );
                }
                ResourceType::Neighbor => {
                    for l3 in [false, true] {
                        views.extend(
                            self.find_neighbour(id, l3).and_then(|slot| self.view(resource, slot, filter)),
                        );
                    }
                }
                ResourceType::Vpc => {
                    views.extend(self.vpcs.get_key_value(id).map(|(id, vpc)| self.view_vpc(id, vpc, filter)));
                }
                ResourceType::Dhcp => {
                    let named = self
                        .bindings
                        .iter()
                        .filter(|(key, binding)| binding.config.id == id || binding_name(key) == id);
                    views.extend(named.map(|(key, binding)| self.view_binding(key, binding, filter)));
                }
                ResourceType::Securitygroup => {
                    views
                        .extend(self.policy.held_slot(id).and_then(|slot| self.view(resource, slot, filter)));
                }
                ResourceType::Gateway => {
                    views.extend(self.gateways.get(id).map(|kept| self.view_gateway(id, kept, filter)));
                }
            }
        }
    }

    /// The resources of a type from a position on; `None` where there is none, or none that passes the filter.
    fn views<'a>(
        &'a self,
        resource: ResourceType,
        from: u32,
        filter: &'a Filter,
    ) -> Box<dyn Iterator<Item = Option<StateView>> + 'a> {
        let passes = |view: &StateView| filter.passes(view.status) && view.version > filter.since;
        let skipped = from as usize;
        match resource {
            ResourceType::Vpc => {
                let vpcs = self.vpcs.iter().skip(skipped).map(|(id, vpc)| self.view_vpc(id, vpc, filter));
                Box::new(vpcs.map(move |view| Some(view).filter(passes)))
            }
            ResourceType::Subnet
            | ResourceType::Port
            | ResourceType::Neighbor
            | ResourceType::Router
            | ResourceType::Securitygroup => {
                let bound = match resource {
                    ResourceType::Subnet => self.subnets.bound(),
                    ResourceType::Port => self.ports.bound(),
                    ResourceType::Router => self.routers.bound(),
                    ResourceType::Securitygroup => self.policy.bound(),
                    _ => self.neighbours.bound(),
                };
                Box::new((from..bound).map(move |slot| self.view(resource, slot, filter)))
            }
            ResourceType::Dhcp => {
                let bindings = self.bindings.iter().skip(skipped);
                let views = bindings.map(|(key, binding)| self.view_binding(key, binding, filter));
                Box::new(views.map(move |view| Some(view).filter(passes)))
            }
            ResourceType::Gateway => {
                let gateways = self.gateways.iter().skip(skipped);
                let views = gateways.map(|(id, kept)| self.view_gateway(id, kept, filter));
                Box::new(views.map(move |view| Some(view).filter(passes)))
            }
        }
    }

    fn view_vpc(&self, id: &str, vpc: &Vpc, filter: &Filter) -> StateView {
        let state = VpcState { operation_type: SHOWN, configuration: Some(vpc.config.clone()) };
        self.describe(ResourceType::Vpc, id, &vpc.meta, SUCCESS, encoded(&state, filter))
    }

    fn view_binding(&self, key: &BindingKey, binding: &Binding, filter: &Filter) -> StateView {
        let state = DhcpState { operation_type: SHOWN, configuration: Some(binding.config.clone()) };
        let standing = self.binding_standing(key);
        let state = encoded(&state, filter);
        self.describe(ResourceType::Dhcp, &binding_name(key), &binding.meta, standing, state)
    }

    fn view_gateway(&self, id: &str, kept: &Kept, filter: &Filter) -> StateView {
        let standing = (OperationStatus::Failure, UNSUPPORTED.into());
        let state = if filter.with_state { kept.state.clone() } else { Vec::new() };
        self.describe(ResourceType::Gateway, id, &kept.meta, standing, state)
    }

    fn view_group(&self, slot: u32, filter: &Filter) -> Option<StateView> {
        let group = self.policy.group(slot)?;
        let meta = group.held.as_ref()?.meta.as_ref()?;
        let state = if filter.with_state {
            let configuration = Some(self.group_configuration(slot));
            SecurityGroupState { operation_type: SHOWN, configuration }.encode_to_vec()
        } else {
            Vec::new()
        };
        Some(self.describe(ResourceType::Securitygroup, &group.id, meta, self.group_standing(slot), state))
    }

    /// One held resource of the many kinds, if it passes the filter.
    pub(crate) fn view(&self, resource: ResourceType, slot: u32, filter: &Filter) -> Option<StateView> {
        let view = match resource {
            ResourceType::Subnet => {
                let subnet = self.subnets.get(slot)?;
                let held = subnet.held.as_ref()?;
                let state = SubnetState { operation_type: SHOWN, configuration: Some(held.config.clone()) };
                self.describe(
                    resource,
                    &subnet.id,
                    &held.meta,
                    self.subnet_standing(slot),
                    encoded(&state, filter),
                )
            }
            ResourceType::Port => {
                let port = self.ports.get(slot)?;
                let meta = port.meta.as_ref()?;
                let state = PortState { operation_type: SHOWN, configuration: Some(port.config.clone()) };
                let standing = self.port_standing(slot);
                let mut view =
                    self.describe(resource, &port.config.id, meta, standing, encoded(&state, filter));
                view.interface.clone_from(&port.interface);
                view
            }
            ResourceType::Router => {
                let router = self.routers.get(slot)?;
                let meta = router.meta.as_ref()?;
                let state = RouterState { operation_type: SHOWN, configuration: Some(router.config.clone()) };
                let standing = self.router_standing(slot);
                self.describe(resource, &router.config.id, meta, standing, encoded(&state, filter))
            }
            ResourceType::Neighbor => self.view_neighbour(slot, filter)?,
            ResourceType::Securitygroup => self.view_group(slot, filter)?,
            _ => return None,
        };
        (filter.passes(view.status) && view.version > filter.since).then_some(view)
    }

    /// The held resource of that type, id and variant (as in [`StateView`]).
    #[must_use]
    pub fn view_named(
        &self,
        resource: ResourceType,
        id: &str,
        variant: &str,
        filter: &Filter,
    ) -> Option<StateView> {
        match resource {
            ResourceType::Neighbor => {
                self.find_neighbour(id, variant == "L3").and_then(|slot| self.view(resource, slot, filter))
            }
            ResourceType::Dhcp => {
                let (subnet, mac) = id.rsplit_once(' ')?;
                let key = (subnet.to_owned(), mac_of(mac)?);
                let binding = self.bindings.get(&key)?;
                Some(self.view_binding(&key, binding, filter))
            }
            _ => {
                let mut views = Vec::new();
                self.list_one(&Filter { resource_type: Some(resource), ..filter.clone() }, id, &mut views);
                views.pop()
            }
        }
    }

    /// No neighbour is in another status than SUCCESS, as far as can be told at once.
    fn neighbours_settled(&self) -> bool {
        self.parked == 0
            && self.failed.is_empty()
            && self.hosts.waiting.is_empty()
            && !self.room.any_barred()
            && !self.policy.has_lacked_members()
    }

    fn describe(
        &self,
        resource_type: ResourceType,
        id: &str,
        meta: &Meta,
        (status, cause): Standing,
        state: Vec<u8>,
    ) -> StateView {
        StateView {
            resource_type,
            id: id.to_owned(),
            variant: "",
            origin: meta.origin,
            version: meta.version,
            revision: meta.revision,
            request_id: meta.request_id.clone(),
            time: meta.time,
            status,
            cause: cause.into_owned(),
            interface: String::new(),
            state,
        }
    }

    fn view_neighbour(&self, slot: u32, filter: &Filter) -> Option<StateView> {
        let neighbour =
            self.neighbours.get(slot).filter(|neighbour| neighbour.flags & neighbour_flags::HELD != 0)?;
        if neighbour.version() <= filter.since {
            return None;
        }
        let provenance = self.provenances.get(neighbour.provenance);
        let (status, cause) = self.neighbour_standing(slot);
        if !filter.passes(status) {
            return None;
        }
        let state = if filter.with_state {
            NeighborState {
                operation_type: SHOWN,
                configuration: Some(self.neighbour_configuration(neighbour)),
            }
            .encode_to_vec()
        } else {
            Vec::new()
        };
        Some(StateView {
            resource_type: ResourceType::Neighbor,
            id: self.neighbour_id(neighbour),
            variant: if neighbour.is_l3() { "L3" } else { "L2" },
            origin: provenance.origin,
            version: neighbour.version(),
            revision: provenance.revision,
            request_id: self.strings.text(provenance.request).into_owned(),
            time: provenance.time,
            status,
            cause: cause.into_owned(),
            interface: String::new(),
            state,
        })
    }

    /// The configuration that would make a held neighbour.
    pub(crate) fn neighbour_configuration(&self, neighbour: &Neighbour) -> NeighborConfiguration {
        let provenance = self.provenances.get(neighbour.provenance);
        let extra = self.strings.bytes(provenance.extra);
        let extra = neighbour_view::read(0, Some(&extra)).unwrap_or_default();
        let fixed = self.addresses_from(neighbour.first).map(|(_, address)| FixedIp {
            neighbor_type: i32::from(neighbour.is_l3()),
            subnet_id: self.subnets[address.subnet].id.clone(),
            ip_address: self.ip_of(address).to_string(),
            arion_group: String::new(),
            tunnel_id: if address.has(address_flags::EXPLICIT) { address.vni() } else { 0 },
        });
        NeighborConfiguration {
            revision_number: provenance.revision,
            request_id: self.strings.text(provenance.request).into_owned(),
            id: self.neighbour_id(neighbour),
            update_type: UpdateType::Full as i32,
            vpc_id: self.strings.text(provenance.vpc).into_owned(),
            name: extra.name.to_owned(),
            mac_address: mac_text(neighbour.mac),
            host_mac_address: extra.host_mac.to_owned(),
            host_ip_address: self.hosts.slots[neighbour.host].address.to_string(),
            fixed_ips: fixed.collect(),
            allow_address_pairs: extra
                .pairs
                .iter()
                .map(|(ip, mac)| AllowAddressPair {
                    ip_address: (*ip).to_owned(),
                    mac_address: (*mac).to_owned(),
                })
                .collect(),
            security_group_ids: extra.groups.iter().map(|group| (*group).to_owned()).collect(),
        }
    }

    /// How many resources are held, by type and status (a walk over all of them).
    #[must_use]
    pub fn counts(&self) -> Vec<StateCount> {
        let mut counts = std::collections::BTreeMap::new();
        for resource in TYPES {
            let mut count = |status: OperationStatus| *counts.entry((resource, status)).or_insert(0) += 1;
            match resource {
                ResourceType::Vpc => self.vpcs.iter().for_each(|_| count(OperationStatus::Success)),
                ResourceType::Subnet => (0..self.subnets.bound())
                    .filter(|slot| self.subnets[*slot].held.is_some())
                    .for_each(|slot| count(self.subnet_standing(slot).0)),
                ResourceType::Port => (0..self.ports.bound())
                    .filter(|slot| self.ports[*slot].meta.is_some())
                    .for_each(|slot| count(self.port_standing(slot).0)),
                ResourceType::Router => (0..self.routers.bound())
                    .filter(|slot| self.routers[*slot].meta.is_some())
                    .for_each(|slot| count(self.router_standing(slot).0)),
                ResourceType::Neighbor => (0..self.neighbours.bound())
                    .filter(|slot| self.neighbours[*slot].flags & neighbour_flags::HELD != 0)
                    .for_each(|slot| count(self.neighbour_standing(slot).0)),
                ResourceType::Dhcp => {
                    self.bindings.keys().for_each(|key| count(self.binding_standing(key).0));
                }
                ResourceType::Securitygroup => (0..self.policy.bound())
                    .filter(|slot| self.policy.group(*slot).is_some_and(|group| group.held.is_some()))
                    .for_each(|slot| count(self.group_standing(slot).0)),
                ResourceType::Gateway => {
                    self.gateways.iter().for_each(|_| count(OperationStatus::Failure));
                }
            }
        }
        counts
            .into_iter()
            .map(|((resource_type, status), count)| StateCount { resource_type, status, count })
            .collect()
    }

    /// The resource a [`Handle`] stands for, as text for logs.
    #[must_use]
    pub fn resource_name(&self, handle: Handle) -> String {
        use crate::compile::HandleKind as Kind;
        let slot = handle.slot();
        let named = match handle.kind() {
            Some(Kind::Subnet) => self.subnets.get(slot).map(|subnet| format!("subnet {}", subnet.id)),
            Some(Kind::Port) => self.ports.get(slot).map(|port| format!("port {}", port.config.id)),
            Some(Kind::Neighbour) => self
                .neighbours
                .get(slot)
                .map(|neighbour| format!("neighbour {}", self.neighbour_id(neighbour))),
            Some(Kind::Router) => self.routers.get(slot).map(|router| format!("router {}", router.config.id)),
            Some(Kind::Host) => self.hosts.slots.get(slot).map(|host| format!("host {}", host.address)),
            Some(Kind::Group) => self.policy.group(slot).map(|group| format!("security group {}", group.id)),
            None => None,
        };
        named.unwrap_or_else(|| "a resource that has gone".to_owned())
    }
}

fn encoded(state: &impl prost::Message, filter: &Filter) -> Vec<u8> {
    if filter.with_state { state.encode_to_vec() } else { Vec::new() }
}
