//! Gateways: kept, and answered that they are not supported yet.

use prost::Message as _;

use super::{Operation, Outcome, Request};
use crate::digest;
use crate::model::Model;
use crate::resources::Kept;
use crate::wire::{GatewayState, ResourceType};

/// Why a gateway is a failure.
pub(crate) const UNSUPPORTED: &str =
    "gateways are not supported yet: the gateway is kept, and nothing is sent to it";

/// The VPC that gateways are in: none.
const NO_VPC: &str = "";

impl Model {
    pub(crate) fn apply_gateway(&mut self, bytes: &[u8], request: Request) -> Result<Outcome, Outcome> {
        let state = GatewayState::decode(bytes).map_err(|_| Outcome::invalid("the state cannot be read"))?;
        let config = state.configuration.ok_or_else(|| Outcome::invalid("the state has no configuration"))?;
        let id = config.id.clone();
        if id.is_empty() {
            return Err(Outcome::invalid("configuration.id is empty"));
        }
        let operation = Operation::of(state.operation_type)?;
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        let revision = self.gateways.get(&id).map(|kept| kept.meta.revision);
        self.check_revision(ResourceType::Gateway, &id, revision, config.revision_number)?;
        let kind = ResourceType::Gateway as u8;
        if operation == Operation::Delete {
            let Some(held) = self.gateways.remove(&id) else {
                return Ok(self.delete_unheld(ResourceType::Gateway, &id, "gateway"));
            };
            self.gateway_bytes -= held.state.len();
            self.digests.take(ResourceType::Gateway, NO_VPC, held.meta.digest);
            self.bury(kind, &id, held.meta.revision, config.revision_number, request);
            return Ok(Outcome::Success);
        }
        self.check_held(self.gateways.len(), revision.is_some(), "gateways")?;
        let before = self.gateways.get(&id).map_or(0, |kept| kept.state.len());
        let (after, most) = (self.gateway_bytes - before + bytes.len(), self.settings.limits.kept_bytes);
        if after > most && bytes.len() > before {
            return Err(Outcome::failure(format!(
                "{after} bytes of gateways would be held, and {most} are the most: delete some"
            )));
        }
        self.gateway_bytes = after;
        let held = self.gateways.remove(&id);
        let changed = held.as_ref().is_none_or(|held| held.state != bytes);
        let before = held.as_ref().map(|held| &held.meta);
        let resource = ResourceType::Gateway;
        let (revision, request_id) = (config.revision_number, &config.request_id);
        let mut meta = self.meta((resource, &id), before, changed, revision, request_id, request);
        meta.digest = digest::hash(resource, &id, meta.revision, &config);
        self.digest_changed(resource, before.map(|before| (NO_VPC, before)), (NO_VPC, meta.digest));
        self.tombstones.lift(kind, &id);
        self.gateways.insert(id, Kept { meta, state: bytes.to_vec() });
        Ok(Outcome::failure(UNSUPPORTED))
    }
}
