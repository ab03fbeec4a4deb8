//! VPCs.

use ncm_common::MAX_VNI;

/// How the cause ends where a VNI is another VPC's: it may pass over later in the same message.
pub(crate) const VNI_CONFLICT: &str = "two VPCs cannot share it";

use super::{Operation, Outcome, Refusal, Request, check_update_type};
use crate::digest;
use crate::goalstate::{merge, parse};
use crate::model::Model;
use crate::resources::Vpc;
use crate::wire::{ResourceType, VpcConfiguration};

impl Model {
    pub(crate) fn apply_vpc(
        &mut self,
        operation: Operation,
        _sent: i32,
        config: VpcConfiguration,
        request: Request,
    ) -> Result<Outcome, Refusal> {
        let id = config.id.clone();
        let held = self.vpcs.get(&id);
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        self.check_revision(
            ResourceType::Vpc,
            &id,
            held.map(|vpc| vpc.meta.revision),
            config.revision_number,
        )?;
        if operation == Operation::Delete {
            return Ok(self.delete_vpc(&config, request));
        }
        let (config, changed) = self.merged_vpc(config)?;
        let held = self.vpcs.remove(&id);
        let (revision, request_id) = (config.revision_number, config.request_id.clone());
        let kind = ResourceType::Vpc;
        let before = held.as_ref().map(|vpc| &vpc.meta);
        let mut meta = self.meta((kind, &id), before, changed, revision, &request_id, request);
        meta.digest = digest::hash(kind, &id, meta.revision, &config);
        self.digest_changed(kind, before.map(|before| (id.as_str(), before)), (&id, meta.digest));
        let before = held.map_or(0, |vpc| vpc.config.tunnel_id);
        let after = config.tunnel_id;
        self.vpcs.insert(id.clone(), Vpc { config, meta });
        self.tombstones.lift(ResourceType::Vpc as u8, &id);
        if before != after {
            self.own_vni(before, &id, -1);
            self.own_vni(after, &id, 1);
            self.update_vpc_subnets(&id);
        }
        Ok(Outcome::Applied)
    }

    /// The VPC that would result, checked, and whether it differs from the held one.
    pub(crate) fn merged_vpc(&self, config: VpcConfiguration) -> Result<(VpcConfiguration, bool), Refusal> {
        check_update_type(config.update_type)?;
        let held = self.vpcs.get(&config.id).map(|vpc| &vpc.config);
        self.check_held(self.vpcs.len(), held.is_some(), "VPCs")?;
        let config = merge::vpc(held, config);
        if config.tunnel_id == 0 || config.tunnel_id > MAX_VNI {
            return Err(Outcome::invalid(format!(
                "tunnel_id {} is not within 1 to {MAX_VNI}",
                config.tunnel_id
            )));
        }
        if !config.cidr.is_empty() && parse::cidr(&config.cidr).is_none() {
            return Err(Outcome::invalid(format!("cidr \"{}\" is none", config.cidr)));
        }
        self.check_vni_owner(config.tunnel_id, &config.id)?;
        let changed = held.is_none_or(|held| {
            (&held.project_id, &held.name, &held.cidr, held.tunnel_id, &held.gateway_ids)
                != (&config.project_id, &config.name, &config.cidr, config.tunnel_id, &config.gateway_ids)
        });
        Ok((config, changed))
    }

    fn delete_vpc(&mut self, config: &VpcConfiguration, request: Request) -> Outcome {
        let Some(held) = self.vpcs.remove(&config.id) else {
            return self.delete_unheld(ResourceType::Vpc, &config.id, "VPC");
        };
        self.digests.take(ResourceType::Vpc, &config.id, held.meta.digest);
        self.bury(ResourceType::Vpc as u8, &config.id, held.meta.revision, config.revision_number, request);
        self.own_vni(held.config.tunnel_id, &config.id, -1);
        self.update_vpc_subnets(&config.id);
        Outcome::Success
    }

    /// Subnets without a VNI of their own have their VPC's.
    fn update_vpc_subnets(&mut self, vpc: &str) {
        for subnet in self.vpc_subnets.get(vpc).into_iter().flatten().copied().collect::<Vec<_>>() {
            self.update_subnet(subnet);
        }
    }

    /// Refuses a VNI that another VPC, or a subnet of another VPC, has.
    pub(crate) fn check_vni_owner(&self, vni: u32, vpc: &str) -> Result<(), Refusal> {
        let other =
            self.vni_owners.get(&vni).and_then(|owners| owners.keys().find(|owner| owner.as_str() != vpc));
        match other {
            Some(other) => Err(Outcome::invalid(format!("tunnel_id {vni} is VPC {other}'s: {VNI_CONFLICT}"))),
            None => Ok(()),
        }
    }

    /// Counts one use of a VNI by a VPC more or less.
    pub(crate) fn own_vni(&mut self, vni: u32, vpc: &str, step: i32) {
        if vni == 0 || vpc.is_empty() {
            return;
        }
        let owners = self.vni_owners.entry(vni).or_default();
        let count = owners.entry(vpc.to_owned()).or_default();
        *count = count.saturating_add_signed(step);
        if *count == 0 {
            owners.remove(vpc);
        }
        if owners.is_empty() {
            self.vni_owners.remove(&vni);
        }
    }
}
