//! All that is held, as bytes.

use prost::Message as _;
use prost::encoding::encode_varint;

use crate::model::Model;
use crate::resources::{Meta, neighbour_flags};
use crate::state::Origin;
use crate::wire::{
    DhcpState, NeighborState, OperationType, PortState, ResourceType, RouterState, SecurityGroupState,
    SubnetState, VpcState,
};

/// The operation by which everything is made again.
const MADE: i32 = OperationType::Create as i32;

/// In the place of a type of resource: the revision of one that was deleted.
pub(super) const TOMBSTONE: u8 = 0xff;

/// Where a passage over the neighbours is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passage {
    /// Only what has changed after this version.
    since: u64,
    /// The model's version when the passage began.
    begun: u64,
    slot: u32,
}

impl Passage {
    /// The passage that takes what has changed since this one began.
    #[must_use]
    pub fn next(self, model: &Model) -> Self {
        Self { since: self.begun, begun: model.version, slot: 0 }
    }
}

/// What is kept of a resource besides its state.
fn put_head(into: &mut Vec<u8>, version: u64, time: u64, origin: Origin) {
    encode_varint(version, into);
    encode_varint(time, into);
    into.push(origin as u8);
}

fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    encode_varint(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

impl Model {
    /// Begins the first passage over the neighbours. From now on it is noted which of them go.
    #[must_use]
    pub fn begin_snapshot(&mut self) -> Passage {
        self.gone_neighbours = Some(Vec::new());
        Passage { since: 0, begun: self.version, slot: 0 }
    }

    /// The snapshot is made, or given up.
    pub fn end_snapshot(&mut self) {
        self.gone_neighbours = None;
    }

    /// The neighbours that went since this was asked last.
    pub fn gone_neighbours(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (l3, id) in self.gone_neighbours.as_mut().map(std::mem::take).unwrap_or_default() {
            bytes.push(u8::from(l3));
            put_bytes(&mut bytes, id.as_bytes());
        }
        bytes
    }

    /// Adds the next neighbours of a passage to `into`, from so many places; how many were added, and whether there may be more.
    pub fn held_neighbours(&self, passage: &mut Passage, places: u32, into: &mut Vec<u8>) -> (usize, bool) {
        let end = self.neighbours.bound().min(passage.slot.saturating_add(places));
        let mut added = 0;
        for slot in passage.slot..end {
            let Some(neighbour) = self.neighbours.get(slot) else { break };
            if neighbour.flags & neighbour_flags::HELD == 0 || neighbour.version() <= passage.since {
                continue;
            }
            let provenance = self.provenances.get(neighbour.provenance);
            put_head(into, neighbour.version(), provenance.time, provenance.origin);
            let configuration = Some(self.neighbour_configuration(neighbour));
            let state = NeighborState { operation_type: MADE, configuration };
            encode_varint(state.encoded_len() as u64, into);
            state.encode_raw(into);
            added += 1;
        }
        passage.slot = end;
        (added, end < self.neighbours.bound())
    }

    /// Everything but the neighbours, in parts of about so many bytes: resources, then revisions of what was deleted.
    pub fn held_others(&self, part: usize, mut each: impl FnMut(Vec<u8>)) {
        let mut bytes = Vec::new();
        let mut put = |resource: ResourceType, meta: &Meta, state: &[u8], more: &[u8]| {
            bytes.push(resource as u8);
            put_head(&mut bytes, meta.version, meta.time, meta.origin);
            put_bytes(&mut bytes, state);
            put_bytes(&mut bytes, more);
            if bytes.len() >= part {
                each(std::mem::take(&mut bytes));
            }
        };
        for vpc in self.vpcs.values() {
            let state = VpcState { operation_type: MADE, configuration: Some(vpc.config.clone()) };
            put(ResourceType::Vpc, &vpc.meta, &state.encode_to_vec(), &[]);
        }
        for held in (0..self.subnets.bound()).filter_map(|slot| self.subnets[slot].held.as_ref()) {
            let state = SubnetState { operation_type: MADE, configuration: Some(held.config.clone()) };
            put(ResourceType::Subnet, &held.meta, &state.encode_to_vec(), &[]);
        }
        for router in (0..self.routers.bound()).map(|slot| &self.routers[slot]) {
            let Some(meta) = &router.meta else { continue };
            let state = RouterState { operation_type: MADE, configuration: Some(router.config.clone()) };
            let mut learned = Vec::new();
            for (address, mac) in &router.learned {
                learned.extend_from_slice(&crate::compile::mapped::address(*address));
                learned.extend_from_slice(mac);
            }
            put(ResourceType::Router, meta, &state.encode_to_vec(), &learned);
        }
        for slot in 0..self.policy.bound() {
            let held = self.policy.group(slot).and_then(|group| group.held.as_deref());
            let Some(meta) = held.and_then(|held| held.meta.as_ref()) else { continue };
            let configuration = Some(self.group_configuration(slot));
            let state = SecurityGroupState { operation_type: MADE, configuration };
            put(ResourceType::Securitygroup, meta, &state.encode_to_vec(), &[]);
        }
        for binding in self.bindings.values() {
            let state = DhcpState { operation_type: MADE, configuration: Some(binding.config.clone()) };
            put(ResourceType::Dhcp, &binding.meta, &state.encode_to_vec(), &[]);
        }
        for gateway in self.gateways.values() {
            put(ResourceType::Gateway, &gateway.meta, &gateway.state, &[]);
        }
        for port in (0..self.ports.bound()).map(|slot| &self.ports[slot]) {
            let Some(meta) = &port.meta else { continue };
            let state = PortState { operation_type: MADE, configuration: Some(port.config.clone()) };
            put(ResourceType::Port, meta, &state.encode_to_vec(), &[]);
        }
        for (kind, id, revision, buried) in self.tombstones.iter() {
            bytes.push(TOMBSTONE);
            bytes.push(kind);
            encode_varint(revision.into(), &mut bytes);
            encode_varint(buried, &mut bytes);
            put_bytes(&mut bytes, id.as_bytes());
            if bytes.len() >= part {
                each(std::mem::take(&mut bytes));
            }
        }
        each(bytes);
    }

    /// What comes last: the model's own version.
    #[must_use]
    pub fn held_version(&self) -> Vec<u8> {
        self.version.to_le_bytes().to_vec()
    }
}
