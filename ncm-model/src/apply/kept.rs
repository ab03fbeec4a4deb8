//! Security groups, DHCP bindings and gateways: kept, and answered that they are not supported yet.

use prost::Message as _;

use super::{Operation, Outcome, Request};
use crate::goalstate::parse;
use crate::model::Model;
use crate::resources::Kept;
use crate::wire::{DhcpState, GatewayState, ResourceType, SecurityGroupState};

/// What all three have.
struct State {
    id: String,
    revision: u32,
    request_id: String,
    operation: i32,
    /// A security group without anything in it, as real senders put one into every message.
    void: bool,
}

fn read(resource: ResourceType, state: &[u8]) -> Result<State, Outcome> {
    let unreadable = |_| Outcome::invalid("the state cannot be read");
    let unset = || Outcome::invalid("the state has no configuration");
    match resource {
        ResourceType::Securitygroup => {
            let state = SecurityGroupState::decode(state).map_err(unreadable)?;
            let config = state.configuration.ok_or_else(unset)?;
            let void = config.id.is_empty() && config.security_group_rules.is_empty();
            Ok(State {
                id: config.id,
                revision: config.revision_number,
                request_id: config.request_id,
                operation: state.operation_type,
                void,
            })
        }
        ResourceType::Dhcp => {
            let state = DhcpState::decode(state).map_err(unreadable)?;
            let config = state.configuration.ok_or_else(unset)?;
            let mac = parse::mac(&config.mac_address).ok_or_else(|| {
                Outcome::invalid(format!("mac_address \"{}\" is no MAC", config.mac_address))
            })?;
            Ok(State {
                id: format!("{} {}", config.subnet_id, parse::mac_text(mac)),
                revision: config.revision_number,
                request_id: config.request_id,
                operation: state.operation_type,
                void: false,
            })
        }
        _ => {
            let state = GatewayState::decode(state).map_err(unreadable)?;
            let config = state.configuration.ok_or_else(unset)?;
            Ok(State {
                id: config.id,
                revision: config.revision_number,
                request_id: config.request_id,
                operation: state.operation_type,
                void: false,
            })
        }
    }
}

/// What such a resource is called.
pub(crate) fn kind_name(resource: ResourceType) -> &'static str {
    match resource {
        ResourceType::Securitygroup => "security group",
        ResourceType::Dhcp => "DHCP binding",
        _ => "gateway",
    }
}

/// What several of them are called.
fn kinds_name(resource: ResourceType) -> &'static str {
    match resource {
        ResourceType::Securitygroup => "security groups",
        ResourceType::Dhcp => "DHCP bindings",
        _ => "gateways",
    }
}

/// Why such a resource is a failure.
pub(crate) fn unsupported(resource: ResourceType) -> &'static str {
    match resource {
        ResourceType::Securitygroup => {
            "security groups are not supported yet: the group is kept, and ports that name it stay closed"
        }
        ResourceType::Dhcp => "DHCP is not supported yet: the binding is kept, and nothing answers the guest",
        _ => "gateways are not supported yet: the gateway is kept, and nothing is sent to it",
    }
}

impl Model {
    pub(crate) fn apply_kept(&mut self, resource: ResourceType, bytes: &[u8], request: Request) -> Outcome {
        let state = match read(resource, bytes) {
            Ok(state) if state.void => return Outcome::Success,
            Ok(state) if state.id.is_empty() => return Outcome::invalid("configuration.id is empty"),
            Ok(state) => state,
            Err(refusal) => return refusal,
        };
        self.apply_read(resource, bytes, &state, request).unwrap_or_else(|refusal| refusal)
    }

    fn apply_read(
        &mut self,
        resource: ResourceType,
        bytes: &[u8],
        state: &State,
        request: Request,
    ) -> Result<Outcome, Outcome> {
        let kind = resource as u8;
        let operation = Operation::of(state.operation)?;
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        let key = (kind, state.id.clone());
        let held = self.kept.get(&key).map(|kept| kept.meta.revision);
        self.check_revision(resource, &state.id, held, state.revision)?;
        if operation == Operation::Delete {
            let Some(held) = self.kept.remove(&key) else {
                if resource == ResourceType::Dhcp {
                    return Ok(Outcome::Success);
                }
                return Ok(self.delete_unheld(resource, &state.id, kind_name(resource)));
            };
            if let Some(count) = self.kept_counts.get_mut(&kind) {
                *count -= 1;
            }
            self.kept_bytes -= held.state.len();
            self.bury(kind, &state.id, held.meta.revision, state.revision, request);
            return Ok(Outcome::Success);
        }
        let count = self.kept_counts.get(&kind).copied().unwrap_or_default();
        self.check_held(count, held.is_some(), kinds_name(resource))?;
        let before = self.kept.get(&key).map_or(0, |kept| kept.state.len());
        let (after, most) = (self.kept_bytes - before + bytes.len(), self.settings.limits.kept_bytes);
        if after > most && bytes.len() > before {
            return Err(Outcome::failure(format!(
                "{after} bytes of security groups, DHCP bindings and gateways would be held, and {most} are the most: delete some"
            )));
        }
        self.kept_bytes = after;
        if held.is_none() {
            self.kept_counts.insert(kind, count + 1);
        }
        let held = self.kept.remove(&key);
        let changed = held.as_ref().is_none_or(|held| held.state != bytes);
        let meta = self.meta(
            held.as_ref().map(|held| &held.meta),
            changed,
            state.revision,
            &state.request_id,
            request,
        );
        self.kept.insert(key, Kept { meta, state: bytes.to_vec() });
        self.tombstones.lift(kind, &state.id);
        Ok(Outcome::failure(unsupported(resource)))
    }
}
