//! Security groups.

use prost::Message as _;

use super::{Operation, Outcome, Refusal, Request, check_update_type};
use crate::compile::{Handle, HandleKind};
use crate::digest;
use crate::goalstate::merge::keep;
use crate::model::Model;
use crate::policy::{Change, Held, LONGEST_ID};
use crate::wire::{ResourceType, SecurityGroupConfiguration, SecurityGroupState, UpdateType};

/// What a state would make of a group.
pub(crate) struct Planned {
    pub(crate) vpc_id: String,
    pub(crate) name: String,
    pub(crate) changes: Vec<Change>,
}

impl Planned {
    /// The group differs from the held one.
    pub(crate) fn differs(&self, held: Option<&Held>) -> bool {
        !self.changes.is_empty()
            || held.is_none_or(|held| (&held.vpc_id, &held.name) != (&self.vpc_id, &self.name))
    }
}

impl Model {
    pub(crate) fn apply_security_group(
        &mut self,
        state: &[u8],
        request: Request,
    ) -> Result<Outcome, Refusal> {
        let state =
            SecurityGroupState::decode(state).map_err(|_| Outcome::invalid("the state cannot be read"))?;
        let config = state.configuration.ok_or_else(|| Outcome::invalid("the state has no configuration"))?;
        if config.id.is_empty() {
            // Real senders put an empty one into every message.
            return match config.security_group_rules.is_empty() {
                true => Ok(Outcome::Success),
                false => Err(Outcome::invalid("configuration.id is empty")),
            };
        }
        let operation = Operation::of(state.operation_type)?;
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        self.check_revision(
            ResourceType::Securitygroup,
            &config.id,
            self.group_revision(&config.id),
            config.revision_number,
        )?;
        if operation == Operation::Delete {
            return Ok(self.delete_security_group(&config, request));
        }
        let planned = self.planned_group(&config)?;
        let held = self.held_group(&config.id);
        let (new, changed) = (held.is_none(), planned.differs(held));
        let before = held.and_then(|held| held.meta.clone());
        let slot = self.policy.edit(&config.id, planned.changes).map_err(Outcome::failure)?;
        let kind = ResourceType::Securitygroup;
        let (revision, request_id) = (config.revision_number, &config.request_id);
        let mut meta = self.meta((kind, &config.id), before.as_ref(), changed, revision, request_id, request);
        if let Some(held) = self.policy.held_mut(slot) {
            let plain = SecurityGroupConfiguration {
                id: config.id.clone(),
                vpc_id: planned.vpc_id.clone(),
                name: planned.name.clone(),
                ..SecurityGroupConfiguration::default()
            };
            meta.digest = digest::group_hash(meta.revision, &plain, (held.rules.len(), held.rules_sum));
            let after = meta.digest;
            let vpc = std::mem::replace(&mut held.vpc_id, planned.vpc_id);
            (held.meta, held.name) = (Some(meta), planned.name);
            let was = before.as_ref().map(|before| (vpc.as_str(), before));
            self.digest_changed(kind, was, (&plain.vpc_id, after));
        }
        self.tombstones.lift(ResourceType::Securitygroup as u8, &config.id);
        self.retry_one(Handle::new(HandleKind::Group, slot));
        if new {
            self.disturb_group(&config.id);
        }
        Ok(Outcome::Applied)
    }

    pub(crate) fn held_group(&self, id: &str) -> Option<&Held> {
        self.policy.group(self.policy.held_slot(id)?)?.held.as_deref()
    }

    pub(crate) fn group_revision(&self, id: &str) -> Option<u32> {
        self.held_group(id)?.meta.as_ref().map(|meta| meta.revision)
    }

    /// What a state would change, checked.
    pub(crate) fn planned_group(&self, config: &SecurityGroupConfiguration) -> Result<Planned, Refusal> {
        check_update_type(config.update_type)?;
        if config.id.len() > LONGEST_ID {
            return Err(Outcome::invalid(format!("configuration.id is longer than {LONGEST_ID} bytes")));
        }
        let held = self.held_group(&config.id);
        self.check_held(self.policy.held_count(), held.is_some(), "security groups")?;
        let changes = self.policy.plan(config).map_err(Outcome::invalid)?;
        let mut planned = Planned { vpc_id: config.vpc_id.clone(), name: config.name.clone(), changes };
        if let Some(held) = held.filter(|_| config.update_type != UpdateType::Full as i32) {
            keep!(planned, held; vpc_id, name);
        }
        Ok(planned)
    }

    fn delete_security_group(&mut self, config: &SecurityGroupConfiguration, request: Request) -> Outcome {
        let Some(slot) = self.policy.held_slot(&config.id) else {
            return self.delete_unheld(ResourceType::Securitygroup, &config.id, "security group");
        };
        let gone = self.policy.remove(slot);
        let vpc = gone.as_ref().map(|held| held.vpc_id.clone()).unwrap_or_default();
        let gone = gone.and_then(|held| held.meta);
        let (held, digest) = gone.map_or((0, 0), |meta| (meta.revision, meta.digest));
        self.digests.take(ResourceType::Securitygroup, &vpc, digest);
        let kind = ResourceType::Securitygroup as u8;
        self.bury(kind, &config.id, held, config.revision_number, request);
        self.forget_failure(Handle::new(HandleKind::Group, slot));
        self.disturb_group(&config.id);
        Outcome::Success
    }

    /// The state that would make a held group.
    pub(crate) fn group_configuration(&self, slot: u32) -> SecurityGroupConfiguration {
        let mut config = self.policy.show(slot);
        let held = self.policy.group(slot).and_then(|group| group.held.as_deref());
        if let Some(meta) = held.and_then(|held| held.meta.as_ref()) {
            config.revision_number = meta.revision;
            config.request_id.clone_from(&meta.request_id);
        }
        config
    }
}
