//! Subnets.

use ipnet::IpNet;
use ncm_common::MAX_VNI;

use super::{Operation, Outcome, Refusal, Request, check_update_type};
use crate::compile::{Handle, HandleKind};
use crate::digest;
use crate::goalstate::{merge, parse};
use crate::model::Model;
use crate::resources::Subnet;
use crate::wire::{NetworkType, ResourceType, SubnetConfiguration};

/// The subnet's prefix.
fn parse_net(config: &SubnetConfiguration) -> Result<IpNet, Refusal> {
    let net = parse::cidr(&config.cidr)
        .ok_or_else(|| Outcome::invalid(format!("cidr \"{}\" is none", config.cidr)))?;
    if parse::covers_mapped(net) {
        return Err(Outcome::invalid(format!(
            "cidr {net} is too wide: it has the IPv4-mapped addresses in it"
        )));
    }
    Ok(net)
}

impl Model {
    pub(crate) fn apply_subnet(
        &mut self,
        operation: Operation,
        _sent: i32,
        config: SubnetConfiguration,
        request: Request,
    ) -> Result<Outcome, Refusal> {
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        let id = config.id.clone();
        let held = self.held_subnet(&id).map(|subnet| subnet.meta.revision);
        self.check_revision(ResourceType::Subnet, &id, held, config.revision_number)?;
        if operation == Operation::Delete {
            return Ok(self.delete_subnet(&config, request));
        }
        let (config, changed) = self.merged_subnet(config)?;
        let net = parse_net(&config)?;
        let gateway = config.gateway.as_ref().and_then(|gateway| {
            let ip = parse::ip(&gateway.ip_address).filter(|ip| !ip.is_unspecified())?;
            Some((ip, parse::guest_mac(&gateway.mac_address)?))
        });
        let slot = self.subnet_slot(&id);
        let held = self.subnets[slot].held.take();
        match &held {
            Some(held) => self.disown_subnet(slot, held),
            None => self.held_subnets += 1,
        }
        let (revision, request_id) = (config.revision_number, config.request_id.clone());
        let kind = ResourceType::Subnet;
        let before = held.as_ref().map(|held| &held.meta);
        let mut meta = self.meta((kind, &id), before, changed, revision, &request_id, request);
        meta.digest = digest::hash(kind, &id, meta.revision, &config);
        let before = held.as_ref().map(|held| (held.config.vpc_id.as_str(), &held.meta));
        self.digest_changed(kind, before, (&config.vpc_id, meta.digest));
        self.own_vni(config.tunnel_id as u32, &config.vpc_id, 1);
        self.vpc_subnets.entry(config.vpc_id.clone()).or_default().insert(slot);
        self.subnets[slot].held = Some(Box::new(Subnet { config, meta, net, gateway }));
        self.tombstones.lift(ResourceType::Subnet as u8, &id);
        self.retry_one(Handle::new(HandleKind::Subnet, slot));
        self.update_subnet(slot);
        Ok(Outcome::Applied)
    }

    pub(crate) fn held_subnet(&self, id: &str) -> Option<&Subnet> {
        self.subnets[*self.subnet_by_id.get(id)?].held.as_deref()
    }

    /// The subnet that would result, checked, and whether it differs from the held one.
    pub(crate) fn merged_subnet(
        &self,
        config: SubnetConfiguration,
    ) -> Result<(SubnetConfiguration, bool), Refusal> {
        check_update_type(config.update_type)?;
        let held = self.held_subnet(&config.id).map(|subnet| &subnet.config);
        self.check_held(self.held_subnets, held.is_some(), "subnets")?;
        let config = merge::subnet(held, config);
        let most = match NetworkType::try_from(config.network_type) {
            Ok(NetworkType::Vxlan) => MAX_VNI,
            Ok(NetworkType::Vlan) => 4_094,
            Ok(other) => {
                return Err(Outcome::failure(format!(
                    "network_type {} is not supported: only VXLAN is",
                    other.as_str_name()
                )));
            }
            Err(_) => {
                return Err(Outcome::invalid(format!("network_type {} is unknown", config.network_type)));
            }
        };
        if config.tunnel_id > u64::from(most) {
            return Err(Outcome::invalid(format!("tunnel_id {} is above {most}", config.tunnel_id)));
        }
        if config.tunnel_id == 0 && config.vpc_id.is_empty() {
            return Err(Outcome::invalid("tunnel_id is 0 and there is no vpc_id whose VNI would count"));
        }
        crate::lease::check_options(&config, &parse_net(&config)?)?;
        if let Some(gateway) = &config.gateway {
            if !gateway.ip_address.is_empty() && parse::ip(&gateway.ip_address).is_none() {
                let text = &gateway.ip_address;
                return Err(Outcome::invalid(format!("gateway.ip_address \"{text}\" is no IP address")));
            }
            if !gateway.mac_address.is_empty() && parse::mac(&gateway.mac_address).is_none() {
                let text = &gateway.mac_address;
                return Err(Outcome::invalid(format!("gateway.mac_address \"{text}\" is no MAC")));
            }
        }
        if config.tunnel_id != 0 && !config.vpc_id.is_empty() {
            self.check_vni_owner(config.tunnel_id as u32, &config.vpc_id)?;
        }
        let changed = held.is_none_or(|held| differ!(SubnetConfiguration, held, &config));
        Ok((config, changed))
    }

    /// Takes back what a held subnet does not contribute through tables: its VNI's owner and its VPC's list.
    fn disown_subnet(&mut self, slot: u32, held: &Subnet) {
        self.own_vni(held.config.tunnel_id as u32, &held.config.vpc_id, -1);
        if let Some(subnets) = self.vpc_subnets.get_mut(&held.config.vpc_id) {
            subnets.remove(&slot);
            if subnets.is_empty() {
                self.vpc_subnets.remove(&held.config.vpc_id);
            }
        }
    }

    fn delete_subnet(&mut self, config: &SubnetConfiguration, request: Request) -> Outcome {
        let slot = self.subnet_by_id.get(&config.id).copied();
        let Some((slot, held)) = slot.and_then(|slot| Some((slot, self.subnets[slot].held.take()?))) else {
            return self.delete_unheld(ResourceType::Subnet, &config.id, "subnet");
        };
        self.digests.take(ResourceType::Subnet, &held.config.vpc_id, held.meta.digest);
        self.bury(
            ResourceType::Subnet as u8,
            &config.id,
            held.meta.revision,
            config.revision_number,
            request,
        );
        self.held_subnets -= 1;
        self.disown_subnet(slot, &held);
        self.update_subnet(slot);
        self.forget_failure(Handle::new(HandleKind::Subnet, slot));
        self.forget_subnet_if_unused(slot);
        Outcome::Success
    }
}
