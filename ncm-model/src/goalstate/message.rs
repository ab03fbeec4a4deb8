//! A received message: checked as a whole before anything of it is applied.
//!
//! Its states stay in the received bytes; only where they are is noted. Neighbours are many: of them, only the stretch
//! of the message that holds them.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::neighbour_view::{self, Part, merge, split_state};
use super::reader::{Fault, Reader, Wire};
use crate::wire::{
    DhcpState, GatewayState, PortState, ResourceType, RouterState, SecurityGroupState, SubnetState, VpcState,
};

/// Longest single state, in bytes: one is decoded as a whole, and may take many times its length then.
const LONGEST_STATE: usize = 16 << 20;

/// States other than neighbours, and entries of `host_resources`, in one message: where each is gets noted.
const MOST_NOTED: usize = 1 << 22;

/// Which of the contract's messages it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `GoalState`.
    V1,
    /// `GoalStateV2`.
    V2,
    /// `NeighborRulesRequest`.
    Rules,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::V1 => "GoalState",
            Self::V2 => "GoalStateV2",
            Self::Rules => "NeighborRulesRequest",
        }
    }

    /// The resource type that a field of the message holds, with the field's name.
    const fn field(self, number: u32) -> Option<(ResourceType, &'static str)> {
        use ResourceType as T;
        Some(match (self, number) {
            (Self::V1, 2) | (Self::V2, 3) => (T::Vpc, "vpc_states"),
            (Self::V1, 3) | (Self::V2, 4) => (T::Subnet, "subnet_states"),
            (Self::V1, 4) | (Self::V2, 5) => (T::Port, "port_states"),
            (Self::V1, 5) | (Self::V2, 7) => (T::Neighbor, "neighbor_states"),
            (Self::V1, 6) | (Self::V2, 8) => (T::Securitygroup, "security_group_states"),
            (Self::V1, 7) | (Self::V2, 6) => (T::Dhcp, "dhcp_states"),
            (Self::V1, 8) | (Self::V2, 9) => (T::Router, "router_states"),
            (Self::V1, 9) | (Self::V2, 10) => (T::Gateway, "gateway_states"),
            (Self::Rules, 3) => (T::Neighbor, "neigborstates"),
            _ => return None,
        })
    }
}

/// The bytes are no message of the contract.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a {message}: {problem} (byte {offset}, {path})")]
pub struct DecodeError {
    /// Name of the expected message.
    pub message: &'static str,
    /// Where in the bytes.
    pub offset: usize,
    /// Which field, from the outside in; empty at the top.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

/// A message whose structure is known to be sound.
#[derive(Clone, Debug)]
pub struct Message {
    kind: Kind,
    format_version: u32,
    bytes: Bytes,
    /// Where the states of each type (other than neighbours) are, in the order of the types' numbers.
    sections: [Vec<Range<usize>>; 8],
    neighbours: Range<usize>,
    neighbour_count: usize,
    /// Where the entries of `host_resources` are.
    hosts: Vec<Range<usize>>,
}

/// One state of a message: the key under which it came (V2), and its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    /// Offset in the message (of a neighbour: of its field's key): names the entry within it.
    pub(crate) at: usize,
    pub(crate) key: &'a str,
    pub(crate) state: Cow<'a, [u8]>,
}

impl Message {
    /// Checks a `GoalState`.
    ///
    /// # Errors
    ///
    /// Where the bytes cannot be read as one.
    pub fn decode_v1(bytes: Bytes) -> Result<Self, DecodeError> {
        Self::decode(Kind::V1, bytes)
    }

    /// Checks a `GoalStateV2`.
    ///
    /// # Errors
    ///
    /// Where the bytes cannot be read as one.
    pub fn decode_v2(bytes: Bytes) -> Result<Self, DecodeError> {
        Self::decode(Kind::V2, bytes)
    }

    /// Checks a `NeighborRulesRequest`.
    ///
    /// # Errors
    ///
    /// Where the bytes cannot be read as one.
    pub fn decode_rules(bytes: Bytes) -> Result<Self, DecodeError> {
        Self::decode(Kind::Rules, bytes)
    }

    fn decode(kind: Kind, bytes: Bytes) -> Result<Self, DecodeError> {
        let mut message = Self {
            kind,
            format_version: 0,
            bytes: bytes.clone(),
            sections: Default::default(),
            neighbours: 0..0,
            neighbour_count: 0,
            hosts: Vec::new(),
        };
        let base = bytes.as_ptr() as usize;
        message.scan(&bytes).map_err(|fault| {
            let fault = fault.details();
            DecodeError {
                message: kind.name(),
                // A field that occurs in parts is checked in a copy: there the place is only known by its path.
                offset: fault
                    .at
                    .checked_sub(base)
                    .filter(|offset| *offset <= bytes.len())
                    .unwrap_or_default(),
                path: fault.path.iter().rev().copied().collect::<Vec<_>>().join("."),
                problem: fault.problem,
            }
        })?;
        Ok(message)
    }

    fn scan(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let base = bytes.as_ptr() as usize;
        let place = |entry: &[u8]| {
            let start = entry.as_ptr() as usize - base;
            start..start + entry.len()
        };
        let mut noted = 0;
        let mut note = |list: &mut Vec<Range<usize>>, entry: &[u8]| {
            noted += 1;
            if noted > MOST_NOTED {
                return Err(Fault::new(
                    entry,
                    format!("more than {MOST_NOTED} states other than neighbours"),
                ));
            }
            list.push(place(entry));
            Ok(())
        };
        let mut reader = Reader::new(bytes);
        loop {
            let field_start = bytes.len() - reader.left();
            let Some((number, wire)) = reader.field()? else { break };
            if number == 1 {
                self.format_version =
                    reader.number(wire).map_err(|fault| fault.within("format_version"))? as u32;
            } else if let Some((resource, name)) = self.kind.field(number) {
                let entry = reader.bytes(wire).map_err(|fault| fault.within(name))?;
                check_entry(self.kind, resource, entry).map_err(|fault| fault.within(name))?;
                if resource == ResourceType::Neighbor {
                    if self.neighbour_count == 0 {
                        self.neighbours.start = field_start;
                    }
                    self.neighbours.end = place(entry).end;
                    self.neighbour_count += 1;
                } else {
                    note(&mut self.sections[resource as usize], entry).map_err(|fault| fault.within(name))?;
                }
            } else if self.kind == Kind::V2 && number == 2 {
                let entry = reader.bytes(wire).map_err(|fault| fault.within("host_resources"))?;
                check_host(entry)
                    .and_then(|()| note(&mut self.hosts, entry))
                    .map_err(|fault| fault.within("host_resources"))?;
            } else if self.kind == Kind::Rules && number == 2 {
                reader.text(wire).map_err(|fault| fault.within("request_id"))?;
            } else {
                reader.skip(number, wire)?;
            }
        }
        Ok(())
    }

    /// Which message it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `format_version` as sent.
    #[must_use]
    pub fn format_version(&self) -> u32 {
        self.format_version
    }

    /// Length of the received bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The message has no bytes: it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many neighbour states it holds.
    #[must_use]
    pub fn neighbour_count(&self) -> usize {
        self.neighbour_count
    }

    /// How many states of all types it holds.
    #[must_use]
    pub fn state_count(&self) -> usize {
        self.neighbour_count + self.sections.iter().map(Vec::len).sum::<usize>()
    }

    /// Where the entries of `host_resources` are, if there are any.
    pub(crate) fn hosts(&self) -> Option<&[Range<usize>]> {
        Some(self.hosts.as_slice()).filter(|hosts| !hosts.is_empty())
    }

    /// An entry of `host_resources`: the host, and what [`read_resources`] reads.
    pub(crate) fn host(&self, place: &Range<usize>) -> (&str, Cow<'_, [u8]>) {
        // The structure was checked when the message came.
        let (host, resources) = split_map_entry(&self.bytes[place.clone()]).unwrap_or_default();
        (host, resources.unwrap_or_default())
    }

    /// How many states of a type (other than neighbours) the message holds.
    pub(crate) fn section_len(&self, resource: ResourceType) -> usize {
        self.sections[resource as usize].len()
    }

    /// A state of a type other than neighbours, by its position.
    pub(crate) fn section_entry(&self, resource: ResourceType, position: usize) -> Option<Entry<'_>> {
        let place = self.sections[resource as usize].get(position)?;
        Some(self.entry(place.start, &self.bytes[place.clone()]))
    }

    /// The state that begins at an offset, as its entry says.
    pub(crate) fn entry_at(&self, resource: ResourceType, at: usize) -> Option<Entry<'_>> {
        if resource == ResourceType::Neighbor {
            return self.next_neighbour(at).map(|(entry, _)| entry);
        }
        let section = &self.sections[resource as usize];
        let position = section.binary_search_by_key(&at, |place| place.start).ok()?;
        self.section_entry(resource, position)
    }

    /// The neighbour at or after `at`, and where to go on; begin with 0.
    pub(crate) fn next_neighbour(&self, at: usize) -> Option<(Entry<'_>, usize)> {
        let mut at = at.max(self.neighbours.start);
        while at < self.neighbours.end {
            let rest = &self.bytes[at..self.neighbours.end];
            let mut reader = Reader::new(rest);
            // The structure was checked when the message came.
            let (number, wire) = reader.field().ok()??;
            let is_neighbour = matches!(self.kind.field(number), Some((ResourceType::Neighbor, _)));
            if is_neighbour && wire == Wire::Bytes {
                let slice = reader.bytes(wire).ok()?;
                let start = at + (slice.as_ptr() as usize - rest.as_ptr() as usize);
                return Some((self.entry(at, slice), start + slice.len()));
            }
            reader.skip(number, wire).ok()?;
            at = self.neighbours.end - reader.left();
        }
        None
    }

    fn entry<'a>(&self, at: usize, slice: &'a [u8]) -> Entry<'a> {
        if self.kind == Kind::V2 {
            let (key, state) = split_map_entry(slice).unwrap_or_default();
            Entry { at, key, state: state.unwrap_or_default() }
        } else {
            Entry { at, key: "", state: Cow::Borrowed(slice) }
        }
    }
}

fn split_map_entry(entry: &[u8]) -> Result<(&str, Part<'_>), Fault> {
    let mut reader = Reader::new(entry);
    let (mut key, mut value) = ("", None);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => key = reader.text(wire).map_err(|fault| fault.within("key"))?,
            2 => merge(&mut value, reader.bytes(wire).map_err(|fault| fault.within("value"))?),
            _ => reader.skip(number, wire)?,
        }
    }
    Ok((key, value))
}

fn check_entry(kind: Kind, resource: ResourceType, entry: &[u8]) -> Result<(), Fault> {
    if entry.len() > LONGEST_STATE {
        let problem = format!("a state of {} bytes, where {LONGEST_STATE} is the most", entry.len());
        return Err(Fault::new(entry, problem));
    }
    if kind == Kind::V2 {
        let (_, value) = split_map_entry(entry)?;
        return check_state(resource, value.as_deref().unwrap_or_default());
    }
    check_state(resource, entry)
}

fn check_state(resource: ResourceType, state: &[u8]) -> Result<(), Fault> {
    fn check<T: prost::Message + Default>(state: &[u8]) -> Result<(), Fault> {
        T::decode(state).map(drop).map_err(|error| Fault::new(state, error.to_string()))
    }
    match resource {
        ResourceType::Neighbor => {
            let (operation, configuration) = split_state(state)?;
            neighbour_view::read(operation, configuration.as_deref())
                .map(drop)
                .map_err(|fault| fault.within("configuration"))
        }
        ResourceType::Vpc => check::<VpcState>(state),
        ResourceType::Subnet => check::<SubnetState>(state),
        ResourceType::Port => check::<PortState>(state),
        ResourceType::Securitygroup => check::<SecurityGroupState>(state),
        ResourceType::Dhcp => check::<DhcpState>(state),
        ResourceType::Router => check::<RouterState>(state),
        ResourceType::Gateway => check::<GatewayState>(state),
    }
}

fn check_host(entry: &[u8]) -> Result<(), Fault> {
    let (_, resources) = split_map_entry(entry)?;
    read_resources(resources.as_deref().unwrap_or_default(), |_, _| {})
        .map_err(|fault| fault.within("resources").within("value"))
}

/// Reads an encoded `HostResources`, and hands on type and id of each.
pub(crate) fn read_resources(bytes: &[u8], mut take: impl FnMut(i32, &str)) -> Result<(), Fault> {
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.field()? {
        if number != 1 {
            reader.skip(number, wire)?;
            continue;
        }
        let (mut resource_type, mut id) = (0, "");
        let mut resource = Reader::new(reader.bytes(wire)?);
        while let Some((number, wire)) = resource.field()? {
            match number {
                1 => resource_type = resource.number(wire).map_err(|fault| fault.within("type"))? as i32,
                2 => id = resource.text(wire).map_err(|fault| fault.within("id"))?,
                _ => resource.skip(number, wire)?,
            }
        }
        take(resource_type, id);
    }
    Ok(())
}
