//! One message on its way into the model, and the outcomes of its states.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message as _;

use crate::apply::Outcome;
use crate::goalstate::filter::Scope;
use crate::goalstate::message::Entry;
use crate::goalstate::neighbour_view::{self, split_state};
use crate::goalstate::{Kind, Message, parse};
use crate::state::Origin;
use crate::wire::{
    DhcpState, GatewayState, OperationStatus, OperationType, PortState, ResourceType, RouterState,
    SecurityGroupState, SubnetState, VpcState,
};

/// At most so many outcomes other than success are kept for the reply: more never fit it.
const MAX_NOTES: usize = 600_000;
/// At most so many neighbours to GET are read for their MACs.
const MAX_NEXT_HOPS: usize = 65_536;

/// Messages with more neighbours are not looked through for what was asked for.
const MAX_LOOKED_AT: usize = 4_096;

/// Addresses that upstream is being asked for, each with its VNI.
pub type Asked = BTreeSet<(u32, IpAddr)>;

/// What is to be done, in order. What others refer to comes before them, and goes after them.
pub(crate) const PHASES: &[(ResourceType, Part)] = &[
    (ResourceType::Vpc, Part::Upserts),
    (ResourceType::Subnet, Part::Upserts),
    (ResourceType::Router, Part::Upserts),
    (ResourceType::Securitygroup, Part::Upserts),
    (ResourceType::Dhcp, Part::All),
    (ResourceType::Gateway, Part::All),
    (ResourceType::Port, Part::All),
    (ResourceType::Neighbor, Part::All),
    (ResourceType::Securitygroup, Part::Deletes),
    (ResourceType::Router, Part::Deletes),
    (ResourceType::Subnet, Part::Deletes),
    (ResourceType::Vpc, Part::Deletes),
    // A VNI that passes from one VPC to another in one message is free only now.
    (ResourceType::Vpc, Part::Retries),
    (ResourceType::Subnet, Part::Retries),
];

/// Which states of a type a phase applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    All,
    Upserts,
    Deletes,
    Retries,
}

/// What is noted of a state whose outcome is not plain success.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    /// Refused.
    Refused(OperationStatus, Box<str>),
    /// Applied; how it stands is asked when the run ends.
    Check,
    /// Not for this node: no row.
    Skipped,
}

/// One message on its way into the model.
#[derive(Debug)]
pub struct Run {
    /// Shared, so that a step may read it while it notes outcomes.
    pub(crate) message: Arc<Message>,
    pub(crate) origin: Origin,
    pub(crate) now: u64,
    /// What upstream was being asked for when the message came: neighbours with such an address come on demand.
    pub(crate) asked: Arc<Asked>,
    pub(crate) warnings: Vec<String>,
    pub(crate) scope: Option<Scope>,
    /// MACs of neighbours to GET, for the routing rules beside them.
    pub(crate) next_hops: crate::apply::NextHops,
    pub(crate) phase: usize,
    /// Position within the phase.
    pub(crate) at: usize,
    /// Ids that the message both deletes and makes, by type: those take effect in the order sent.
    pub(crate) mixed: HashSet<(ResourceType, String)>,
    /// Positions of states to try again at the end.
    pub(crate) retries: HashMap<ResourceType, Vec<usize>>,
    /// By offset in the message; sorted when the run ends.
    pub(crate) notes: Vec<(usize, ResourceType, Note)>,
    /// There were too many notes to keep: plain successes are not told any more.
    pub(crate) overflow: bool,
    pub(crate) rows: usize,
    pub(crate) done: bool,
}

impl Run {
    /// Starts on a message; `now` is Unix time in seconds.
    #[must_use]
    pub fn new(message: Message, origin: Origin, now: u64) -> Self {
        Self {
            message: Arc::new(message),
            origin,
            now,
            asked: Arc::default(),
            warnings: Vec::new(),
            scope: None,
            next_hops: crate::apply::NextHops::new(),
            phase: 0,
            at: 0,
            mixed: HashSet::new(),
            retries: HashMap::new(),
            notes: Vec::new(),
            overflow: false,
            rows: 0,
            done: false,
        }
    }

    /// What upstream is being asked for: neighbours with such an address (and VNI) come on demand. Of a message that is not too
    /// long only what it is about is kept.
    #[must_use]
    pub fn while_asked(mut self, mut asked: Asked) -> Self {
        if !asked.is_empty() && self.message.section_len(ResourceType::Neighbor) <= MAX_LOOKED_AT {
            let about = self.addresses();
            asked.retain(|(_, ip)| about.contains(ip));
        }
        self.asked = Arc::new(asked);
        self
    }

    /// What of the message comes on demand: what a replay has to know too.
    #[must_use]
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// The addresses of the message's neighbours.
    fn addresses(&self) -> HashSet<IpAddr> {
        let (mut addresses, mut at) = (HashSet::new(), 0);
        while let Some((entry, next)) = self.message.next_neighbour(at) {
            at = next;
            let Ok((operation, configuration)) = split_state(&entry.state) else { continue };
            let Ok(view) = neighbour_view::read(operation, configuration.as_deref()) else { continue };
            addresses.extend(view.fixed_ips().filter_map(|fixed| parse::ip(fixed.ip_address)));
        }
        addresses
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message lists hosts, and this node is not among them: nothing applies.
    #[must_use]
    pub fn is_for_others(&self) -> bool {
        matches!(self.scope, Some(Scope::None))
    }

    /// Takes what is to be logged as warnings.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Reads ahead what the order of applying depends on.
    pub(crate) fn prepare(&mut self) {
        if self.message.kind() == Kind::V1 && self.message.section_len(ResourceType::Router) > 0 {
            self.read_next_hops();
        }
        for resource in
            [ResourceType::Vpc, ResourceType::Subnet, ResourceType::Router, ResourceType::Securitygroup]
        {
            self.find_mixed(resource);
        }
    }

    fn read_next_hops(&mut self) {
        let (mut at, mut read) = (0, 0);
        while let Some((entry, next)) = self.message.next_neighbour(at) {
            at = next;
            let Ok((operation, configuration)) = split_state(&entry.state) else { continue };
            if operation != OperationType::Get as i32 {
                continue;
            }
            let Ok(view) = neighbour_view::read(operation, configuration.as_deref()) else { continue };
            let Some(mac) = parse::mac(view.mac) else { continue };
            for fixed in view.fixed_ips() {
                if let Some(ip) = parse::ip(fixed.ip_address) {
                    read += 1;
                    if read > MAX_NEXT_HOPS {
                        return;
                    }
                    self.next_hops.entry(ip).or_default().push((fixed.subnet_id.to_owned(), mac));
                }
            }
        }
    }

    fn find_mixed(&mut self, resource: ResourceType) {
        let count = self.message.section_len(resource);
        if count < 2 {
            return;
        }
        let (mut deleted, mut made) = (HashSet::new(), HashSet::new());
        for position in 0..count {
            let Some(entry) = self.message.section_entry(resource, position) else { continue };
            let (id, operation) = head(resource, &entry.state);
            let set = if operation == OperationType::Delete as i32 { &mut deleted } else { &mut made };
            set.insert(id);
        }
        if !deleted.is_empty() {
            self.mixed.extend(deleted.intersection(&made).map(|id| (resource, id.clone())));
        }
    }

    /// Notes the outcome of a state.
    pub(crate) fn note(&mut self, at: usize, resource: ResourceType, outcome: Outcome) {
        let note = match outcome {
            Outcome::Success => return,
            Outcome::Applied => Note::Check,
            Outcome::Refused(status, cause) => Note::Refused(status, cause.into()),
        };
        self.push(at, resource, note);
    }

    /// Notes that a state is not for this node.
    pub(crate) fn skip(&mut self, at: usize, resource: ResourceType) {
        self.push(at, resource, Note::Skipped);
    }

    fn push(&mut self, at: usize, resource: ResourceType, note: Note) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push((at, resource, note));
        } else {
            self.overflow = true;
        }
    }

    /// An empty state may begin where the next one's field does: the type tells them apart.
    pub(crate) fn note_at(&self, at: usize, resource: ResourceType) -> Option<&Note> {
        let position =
            self.notes.binary_search_by_key(&(at, resource), |(at, resource, _)| (*at, *resource)).ok()?;
        Some(&self.notes[position].2)
    }

    /// The state at an offset that a note has.
    pub(crate) fn entry_at(&self, resource: ResourceType, at: usize) -> Option<Entry<'_>> {
        self.message.entry_at(resource, at)
    }
}

/// A state's id and operation type.
pub(crate) fn head(resource: ResourceType, state: &[u8]) -> (String, i32) {
    macro_rules! head {
        ($state:ident) => {
            $state::decode(state)
                .map(|state| {
                    (state.configuration.map(|config| config.id).unwrap_or_default(), state.operation_type)
                })
                .unwrap_or_default()
        };
    }
    match resource {
        ResourceType::Vpc => head!(VpcState),
        ResourceType::Subnet => head!(SubnetState),
        ResourceType::Port => head!(PortState),
        ResourceType::Securitygroup => head!(SecurityGroupState),
        ResourceType::Dhcp => head!(DhcpState),
        ResourceType::Router => head!(RouterState),
        ResourceType::Gateway => head!(GatewayState),
        ResourceType::Neighbor => {
            let Ok((operation, configuration)) = split_state(state) else { return Default::default() };
            let id = neighbour_view::read(operation, configuration.as_deref())
                .map(|view| view.id.to_owned())
                .unwrap_or_default();
            (id, operation)
        }
    }
}
