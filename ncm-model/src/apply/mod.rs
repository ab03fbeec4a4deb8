//! Applying states: operations, revisions, and what is refused.

/// Whether two configurations say different things: not what only is about their message (revision, request, update type).
macro_rules! differ {
    ($type:ident, $one:expr, $other:expr) => {{
        let plain = |config: &$type| $type {
            revision_number: 0,
            request_id: String::new(),
            update_type: 0,
            ..config.clone()
        };
        plain($one) != plain($other)
    }};
}

mod dhcp;
mod fixed_ips;
mod gateway;
pub(crate) mod neighbour;
mod port;
mod provenance;
mod router;
mod security_group;
mod subnet;
mod vpc;

pub(crate) use dhcp::{Binding, BindingKey, binding_name};
pub(crate) use fixed_ips::{Fixed, parse_fixed};
pub(crate) use gateway::UNSUPPORTED;
pub(crate) use port::is_unbind;
pub(crate) use router::NextHops;
pub(crate) use vpc::VNI_CONFLICT;

use std::borrow::Cow;

use prost::Message as _;

use crate::model::Model;
use crate::resources::Meta;
use crate::run::Run;
use crate::state::{Gone, Origin};
use crate::wire::{OperationStatus, OperationType, ResourceType};

/// What became of a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Done: how it stands is to be asked of the model when the run ends.
    Applied,
    /// Done, and nothing is pending.
    Success,
    /// Refused, or done without success.
    Refused(OperationStatus, Cow<'static, str>),
}

impl Outcome {
    pub(crate) fn invalid(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused(OperationStatus::InvalidArg, cause.into())
    }

    pub(crate) fn failure(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused(OperationStatus::Failure, cause.into())
    }
}

/// A refusal, as an error.
pub(crate) type Refusal = Outcome;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Upsert,
    Get,
    Delete,
}

impl Operation {
    pub(crate) fn of(number: i32) -> Result<Self, Refusal> {
        match OperationType::try_from(number) {
            Ok(OperationType::Info | OperationType::Create | OperationType::Update) => Ok(Self::Upsert),
            Ok(OperationType::Get) => Ok(Self::Get),
            Ok(OperationType::Delete) => Ok(Self::Delete),
            Err(_) => Err(Outcome::invalid(format!("operation_type {number} is none of the contract's"))),
        }
    }
}

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) origin: Origin,
    pub(crate) now: u64,
}

impl Request {
    /// Nobody asks, but what came on demand was not used for long: messages of that origin are the node's own.
    pub(crate) const fn is_ageing(self) -> bool {
        matches!(self.origin, Origin::OnDemand)
    }
}

pub(crate) fn check_update_type(number: i32) -> Result<(), Refusal> {
    if matches!(number, 0 | 1) {
        return Ok(());
    }
    Err(Outcome::invalid(format!("update_type {number} is neither DELTA (0) nor FULL (1)")))
}

impl Model {
    /// Refuses a revision that is lower than the held one's or the tombstone's.
    pub(crate) fn check_revision(
        &self,
        resource: ResourceType,
        id: &str,
        held: Option<u32>,
        sent: u32,
    ) -> Result<(), Refusal> {
        self.check_revision_of(resource as u8, id, held, sent)
    }

    pub(crate) fn check_revision_of(
        &self,
        kind: u8,
        id: &str,
        held: Option<u32>,
        sent: u32,
    ) -> Result<(), Refusal> {
        let (known, deleted) = match held {
            Some(revision) => (revision, false),
            None => match self.tombstones.revision(kind, id) {
                Some(revision) => (revision, true),
                None => return Ok(()),
            },
        };
        if sent == 0 || sent >= known {
            return Ok(());
        }
        let what = if deleted { "was deleted in" } else { "is held in" };
        Err(Outcome::Refused(
            OperationStatus::OutOfOrder,
            format!("revision {sent} is older than revision {known}, which the resource {what}").into(),
        ))
    }

    /// Refuses one more resource of a type of which so many are `held`, unless it `is_held` itself.
    pub(crate) fn check_held(&self, held: usize, is_held: bool, what: &str) -> Result<(), Refusal> {
        let most = self.settings.limits.resources;
        if is_held || held < most {
            return Ok(());
        }
        Err(Outcome::failure(format!(
            "limits.resources reached: {held} {what} are held already: delete some, or raise it"
        )))
    }

    /// The revision that a resource has from now on.
    pub(crate) fn merged_revision(held: Option<u32>, sent: u32) -> u32 {
        if sent == 0 { held.unwrap_or_default() } else { sent }
    }

    /// The next version: rises with every change of any resource.
    pub(crate) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Fresh meta data for a resource, still without its hash; it keeps the held version unless it has `changed`.
    pub(crate) fn meta(
        &mut self,
        (resource, id): (ResourceType, &str),
        held: Option<&Meta>,
        changed: bool,
        revision: u32,
        request_id: &str,
        request: Request,
    ) -> Meta {
        let revision = Self::merged_revision(held.map(|meta| meta.revision), revision);
        let version = match held {
            Some(meta) if !changed && meta.revision == revision => meta.version,
            _ => {
                let version = self.next_version();
                self.recent.other(version, resource, id);
                version
            }
        };
        Meta {
            revision,
            version,
            request_id: request_id.to_owned(),
            time: request.now,
            origin: request.origin,
            digest: 0,
        }
    }

    /// A resource has gone: a change as any other. Remembers its revision.
    pub(crate) fn bury(&mut self, kind: u8, id: &str, held: u32, sent: u32, request: Request) {
        self.note_gone(kind, id);
        self.tombstones.bury(kind, id, held.max(sent), request.now, self.settings.limits.tombstones);
    }

    /// Tells followers that something is not held any more.
    pub(crate) fn note_gone(&mut self, kind: u8, id: &str) {
        let version = self.next_version();
        self.recent.gone(version, Gone::of(kind, id));
    }

    /// The outcome of deleting what is not held: success if it is known to have been deleted.
    pub(crate) fn delete_unheld(&self, resource: ResourceType, id: &str, name: &str) -> Outcome {
        if self.tombstones.revision(resource as u8, id).is_some() {
            return Outcome::Success;
        }
        Outcome::failure(format!("there is no {name} {id} to delete"))
    }

    /// Applies a state of any type other than neighbours.
    pub(crate) fn apply_state(&mut self, resource: ResourceType, state: &[u8], run: &Run) -> Outcome {
        let request = Request { origin: run.origin, now: run.now };
        /// Decodes the state, and applies its configuration.
        macro_rules! apply {
            ($state:ident, $apply:ident $(, $more:expr)?) => {{
                // The structure was checked when the message came.
                let Ok(state) = crate::wire::$state::decode(state) else {
                    return Outcome::invalid("the state cannot be read");
                };
                let Some(configuration) = state.configuration else {
                    return Outcome::invalid("the state has no configuration");
                };
                if configuration.id.is_empty() {
                    return Outcome::invalid("configuration.id is empty");
                }
                let applied = Operation::of(state.operation_type)
                    .and_then(|operation| self.$apply(operation, state.operation_type, configuration, request $(, $more)?));
                applied.unwrap_or_else(|refusal| refusal)
            }};
        }
        match resource {
            ResourceType::Vpc => apply!(VpcState, apply_vpc),
            ResourceType::Subnet => apply!(SubnetState, apply_subnet),
            ResourceType::Port => apply!(PortState, apply_port),
            ResourceType::Router => apply!(RouterState, apply_router, &run.next_hops),
            ResourceType::Securitygroup => {
                self.apply_security_group(state, request).unwrap_or_else(|refusal| refusal)
            }
            ResourceType::Gateway => self.apply_gateway(state, request).unwrap_or_else(|refusal| refusal),
            ResourceType::Dhcp => self.apply_dhcp(state, request).unwrap_or_else(|refusal| refusal),
            ResourceType::Neighbor => Outcome::Success,
        }
    }
}
