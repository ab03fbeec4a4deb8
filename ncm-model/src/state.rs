//! How held resources are shown.

use std::borrow::Cow;

use crate::wire::{OperationStatus, OperationType, ResourceType};

/// Who asked for a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Origin {
    /// The controller, over the goal-state service.
    Controller = 0,
    /// The operator, with the command-line tool.
    Tool = 1,
    /// The controller, because the agent asked for it.
    OnDemand = 2,
    /// A message queue.
    Queue = 3,
}

impl Origin {
    /// The name used in tools and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Tool => "tool",
            Self::OnDemand => "on-demand",
            Self::Queue => "queue",
        }
    }
}

/// Whether a run needs further steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// There is more to do.
    More,
    /// All of the message has been applied or refused.
    Done,
}

/// The outcome for one state of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    /// `configuration.id` as sent.
    pub id: Cow<'a, str>,
    /// Kind of resource.
    pub resource_type: ResourceType,
    /// Operation type as sent (the number, as it may be an unknown one).
    pub operation: i32,
    /// Outcome.
    pub status: OperationStatus,
    /// What is wrong, where, and what to do; empty with SUCCESS.
    pub cause: Cow<'a, str>,
}

/// What the guest's interface is like, as netlink tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InterfaceFacts {
    /// Interface index.
    pub ifindex: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// The interface takes XDP redirects.
    pub xdp_target: bool,
}

/// A held resource.
#[derive(Clone, PartialEq, Debug)]
pub struct StateView {
    /// Kind of resource.
    pub resource_type: ResourceType,
    /// Its id (of a DHCP binding: subnet and MAC).
    pub id: String,
    /// What tells two resources of one type and id apart: `L2` or `L3` for neighbours, else empty.
    pub variant: &'static str,
    /// Who asked for it last.
    pub origin: Origin,
    /// Rises by one with every change of any resource; this one's last change.
    pub version: u64,
    /// The controller's revision; 0: unversioned.
    pub revision: u32,
    /// Request that asked for it last.
    pub request_id: String,
    /// When, in seconds of Unix time.
    pub time: u64,
    /// Where it stands.
    pub status: OperationStatus,
    /// What is wrong, where, and what to do; empty with SUCCESS.
    pub cause: String,
    /// Guest interface of a port, else empty.
    pub interface: String,
    /// The state as the protobuf message of its type (`VpcState`, …); empty unless asked for.
    pub state: Vec<u8>,
}

/// Which held resources to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Only of this type.
    pub resource_type: Option<ResourceType>,
    /// Only with this id.
    pub id: Option<String>,
    /// Only in this status.
    pub status: Option<OperationStatus>,
    /// With the whole state, encoded.
    pub with_state: bool,
    /// Only what has changed after this version.
    pub since: u64,
    /// Only what is in another status than SUCCESS.
    pub unsettled: bool,
}

impl Filter {
    pub(crate) fn passes(&self, status: OperationStatus) -> bool {
        self.status.is_none_or(|wanted| wanted == status)
            && !(self.unsettled && status == OperationStatus::Success)
    }
}

/// A resource that is not held any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gone {
    /// Kind of resource.
    pub resource_type: ResourceType,
    /// A neighbour of type L3.
    pub l3: bool,
    /// Its id.
    pub id: Box<str>,
}

impl Gone {
    /// By the kind that its tombstone has.
    pub(crate) fn of(kind: u8, id: &str) -> Self {
        let l3 = kind == crate::apply::neighbour::tombstone_kind(true);
        let resource_type = ResourceType::try_from(i32::from(kind)).unwrap_or(ResourceType::Neighbor);
        Self { resource_type, l3, id: id.into() }
    }

    /// As [`StateView::variant`].
    #[must_use]
    pub fn variant(&self) -> &'static str {
        match (self.resource_type, self.l3) {
            (ResourceType::Neighbor, true) => "L3",
            (ResourceType::Neighbor, false) => "L2",
            _ => "",
        }
    }
}

/// Where a listing goes on: it is given in parts, so that nothing else waits for long.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    pub(crate) kind: u8,
    pub(crate) slot: u32,
}

/// How many resources of one type stand where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateCount {
    /// Type.
    pub resource_type: ResourceType,
    /// Status.
    pub status: OperationStatus,
    /// How many.
    pub count: u64,
}

/// What would change in a held resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// It is not held and would be.
    Added,
    /// It is held and would change.
    Changed,
    /// It is held and would go.
    Removed,
    /// Nothing would change.
    Unchanged,
    /// The state would be refused.
    Refused,
}

/// What applying one state would do.
#[derive(Clone, PartialEq, Debug)]
pub struct Difference {
    /// Kind of resource.
    pub resource_type: ResourceType,
    /// `configuration.id`.
    pub id: String,
    /// Operation as sent.
    pub operation: OperationType,
    /// What would happen.
    pub change: ChangeKind,
    /// Names of the fields that would change; for a refusal, its status and cause.
    pub fields: Vec<String>,
}
