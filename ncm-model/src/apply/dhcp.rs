//! DHCP bindings: what a MAC of a subnet is leased. There is one per subnet and MAC; a binding's id is only echoed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use prost::Message as _;

use super::{Operation, Outcome, Refusal, Request, check_update_type};
use crate::digest;
use crate::goalstate::{merge, parse};
use crate::inspect::{SUCCESS, Standing};
use crate::model::Model;
use crate::resources::Meta;
use crate::wire::{DhcpConfiguration, DhcpState, OperationStatus, ResourceType};

/// Longest name of a guest, in bytes (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 253;

/// Which binding: subnet and MAC.
pub(crate) type BindingKey = (String, [u8; 6]);

/// A binding as held.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) config: DhcpConfiguration,
    pub(crate) meta: Meta,
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// How a binding is named: in listings, and where its revision is remembered after it has gone.
pub(crate) fn binding_name((subnet, mac): &BindingKey) -> String {
    format!("{subnet} {}", parse::mac_text(*mac))
}

fn parse_addresses(config: &DhcpConfiguration) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Refusal> {
    let v4 = match parse::unicast_ip(&config.ipv4_address) {
        Some(IpAddr::V4(address)) => Some(address),
        _ if config.ipv4_address.is_empty() => None,
        _ => {
            let text = &config.ipv4_address;
            return Err(Outcome::invalid(format!("ipv4_address \"{text}\" is no guest's IPv4 address")));
        }
    };
    let v6 = match parse::unicast_ip(&config.ipv6_address) {
        Some(IpAddr::V6(address)) => Some(address),
        _ if config.ipv6_address.is_empty() => None,
        _ => {
            let text = &config.ipv6_address;
            return Err(Outcome::invalid(format!("ipv6_address \"{text}\" is no guest's IPv6 address")));
        }
    };
    Ok((v4, v6))
}

fn key_of(config: &DhcpConfiguration) -> Result<BindingKey, Refusal> {
    let mac = parse::guest_mac(&config.mac_address).ok_or_else(|| {
        Outcome::invalid(format!("mac_address \"{}\" is no guest's MAC", config.mac_address))
    })?;
    Ok((config.subnet_id.clone(), mac))
}

impl Model {
    pub(crate) fn apply_dhcp(&mut self, state: &[u8], request: Request) -> Result<Outcome, Refusal> {
        let state = DhcpState::decode(state).map_err(|_| Outcome::invalid("the state cannot be read"))?;
        let config = state.configuration.ok_or_else(|| Outcome::invalid("the state has no configuration"))?;
        let operation = Operation::of(state.operation_type)?;
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        let key = key_of(&config)?;
        let name = binding_name(&key);
        let held = self.bindings.get(&key).map(|binding| binding.meta.revision);
        self.check_revision(ResourceType::Dhcp, &name, held, config.revision_number)?;
        let kind = ResourceType::Dhcp as u8;
        if operation == Operation::Delete {
            if let Some(held) = self.bindings.remove(&key) {
                self.digests.take(ResourceType::Dhcp, &key.0, held.meta.digest);
                self.bury(kind, &name, held.meta.revision, config.revision_number, request);
            }
            return Ok(Outcome::Success);
        }
        let (config, changed) = self.merged_binding(&key, config)?;
        let (v4, v6) = parse_addresses(&config)?;
        let held = self.bindings.remove(&key);
        let (revision, request_id) = (config.revision_number, config.request_id.clone());
        let resource = ResourceType::Dhcp;
        let before = held.as_ref().map(|held| &held.meta);
        let mut meta = self.meta((resource, &name), before, changed, revision, &request_id, request);
        meta.digest = digest::hash(resource, &name, meta.revision, &config);
        self.digest_changed(resource, before.map(|before| (key.0.as_str(), before)), (&key.0, meta.digest));
        self.bindings.insert(key, Binding { config, meta, v4, v6 });
        self.tombstones.lift(kind, &name);
        Ok(Outcome::Applied)
    }

    /// The binding that would result, checked, and whether it differs from the held one.
    pub(crate) fn merged_binding(
        &self,
        key: &BindingKey,
        config: DhcpConfiguration,
    ) -> Result<(DhcpConfiguration, bool), Refusal> {
        check_update_type(config.update_type)?;
        if config.subnet_id.is_empty() {
            return Err(Outcome::invalid("subnet_id is empty"));
        }
        let held = self.bindings.get(key).map(|binding| &binding.config);
        self.check_held(self.bindings.len(), held.is_some(), "DHCP bindings")?;
        let config = merge::binding(held, config);
        if parse_addresses(&config)? == (None, None) {
            return Err(Outcome::invalid(
                "neither ipv4_address nor ipv6_address is given: there is nothing to lease",
            ));
        }
        let name = &config.port_host_name;
        if name.len() > LONGEST_NAME
            || name.chars().any(|letter| letter.is_control() || letter.is_whitespace())
        {
            return Err(Outcome::invalid(format!("port_host_name {name:?} is no host's name")));
        }
        let changed = held.is_none_or(|held| differ!(DhcpConfiguration, held, &config));
        Ok((config, changed))
    }

    pub(crate) fn binding_standing(&self, key: &BindingKey) -> Standing {
        if self.held_subnet(&key.0).is_some() {
            return SUCCESS;
        }
        let cause =
            format!("subnet {} is not known yet: its guest is answered when the subnet is pushed", key.0);
        (OperationStatus::Pending, cause.into())
    }

    /// How the binding stands that a state names, if it is held.
    pub(crate) fn sent_binding_standing(&self, state: &[u8]) -> Option<Standing> {
        let key = key_of(&DhcpState::decode(state).ok()?.configuration?).ok()?;
        self.bindings.contains_key(&key).then(|| self.binding_standing(&key))
    }

    /// Which binding a state names, and what is held of it.
    pub(crate) fn sent_binding(
        &self,
        config: &DhcpConfiguration,
    ) -> Result<(BindingKey, Option<&Binding>), Refusal> {
        let key = key_of(config)?;
        let held = self.bindings.get(&key);
        Ok((key, held))
    }
}
