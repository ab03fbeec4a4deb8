//! Ports.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{Operation, Outcome, Refusal, Request, check_update_type};
use crate::compile::{Handle, HandleKind};
use crate::digest;
use crate::goalstate::{merge, parse};
use crate::model::Model;
use crate::resources::{Address, Pair, PortSlot, address_flags};
use crate::store::NONE;
use crate::wire::{OperationType, PortConfiguration, ResourceType, UpdateType};

/// Longest name of a derived interface, as the senders of Alcor cut it.
const DERIVED_NAME: usize = 14;

/// The guest's interface: the given one, or `tap` and as much of the id as fits.
fn interface_of(config: &PortConfiguration) -> String {
    if !config.interface_name.is_empty() {
        return config.interface_name.clone();
    }
    let mut name = String::from("tap");
    for character in config.id.chars() {
        if name.len() + character.len_utf8() > DERIVED_NAME {
            break;
        }
        name.push(character);
    }
    name
}

/// What of a port's configuration is needed besides it.
struct Parsed {
    mac: [u8; 6],
    /// Addresses with their position in the configuration, each once.
    fixed: Vec<(usize, IpAddr)>,
    pairs: Vec<Pair>,
    groups: Vec<String>,
    interface: String,
}

fn parse_port(config: &PortConfiguration) -> Result<Parsed, Refusal> {
    let mac = parse::guest_mac(&config.mac_address).ok_or_else(|| {
        Outcome::invalid(format!("mac_address \"{}\" is no guest's MAC", config.mac_address))
    })?;
    if config.fixed_ips.is_empty() {
        return Err(Outcome::invalid("fixed_ips is empty: a port has at least one address"));
    }
    let mut fixed = Vec::with_capacity(config.fixed_ips.len());
    let mut seen: HashMap<IpAddr, &str> = HashMap::new();
    for (position, address) in config.fixed_ips.iter().enumerate() {
        if address.subnet_id.is_empty() {
            return Err(Outcome::invalid(format!("fixed_ips: {} has no subnet_id", address.ip_address)));
        }
        let ip = parse::unicast_ip(&address.ip_address).ok_or_else(|| {
            Outcome::invalid(format!("fixed_ips: \"{}\" is no guest's IP address", address.ip_address))
        })?;
        match seen.insert(ip, &address.subnet_id) {
            None => fixed.push((position, ip)),
            Some(subnet) if subnet == address.subnet_id => {}
            Some(subnet) => {
                return Err(Outcome::invalid(format!(
                    "fixed_ips: {ip} is in subnet {subnet} and in subnet {}: a port has an address once",
                    address.subnet_id
                )));
            }
        }
    }
    let mut pairs = Vec::with_capacity(config.allow_address_pairs.len());
    for pair in &config.allow_address_pairs {
        let net = parse::cidr(&pair.ip_address).ok_or_else(|| {
            Outcome::invalid(format!("allow_address_pairs: \"{}\" is no address or CIDR", pair.ip_address))
        })?;
        let pair_mac = if pair.mac_address.is_empty() {
            mac
        } else {
            parse::guest_mac(&pair.mac_address).ok_or_else(|| {
                Outcome::invalid(format!("allow_address_pairs: \"{}\" is no guest's MAC", pair.mac_address))
            })?
        };
        pairs.push(Pair { mac: pair_mac, net });
    }
    pairs.sort_unstable();
    pairs.dedup();
    let mut groups: Vec<String> =
        config.security_group_ids.iter().map(|group| group.id.clone()).filter(|id| !id.is_empty()).collect();
    groups.sort_unstable();
    groups.dedup();
    let interface = interface_of(config);
    if !parse::interface_name(&interface) {
        return Err(Outcome::invalid(format!("\"{interface}\" cannot be the name of the port's interface")));
    }
    Ok(Parsed { mac, fixed, pairs, groups, interface })
}

impl Model {
    pub(crate) fn apply_port(
        &mut self,
        operation: Operation,
        sent: i32,
        config: PortConfiguration,
        request: Request,
    ) -> Result<Outcome, Refusal> {
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        let id = config.id.clone();
        let held = self.port_by_id.get(&id).copied();
        let revision = held.and_then(|slot| self.ports[slot].meta.as_ref()).map(|meta| meta.revision);
        self.check_revision(ResourceType::Port, &id, revision, config.revision_number)?;
        if operation == Operation::Delete || is_unbind(sent, &config) {
            return Ok(self.delete_port(&config, request));
        }
        let (config, changed) = self.merged_port(config)?;
        let parsed = parse_port(&config)?;
        if held.is_none() {
            self.check_parking(config.fixed_ips.iter().map(|fixed| fixed.subnet_id.as_str()))?;
        }
        let (revision, request_id) = (config.revision_number, config.request_id.clone());
        let before = held.and_then(|slot| self.ports[slot].meta.clone());
        let kind = ResourceType::Port;
        let mut meta = self.meta((kind, &id), before.as_ref(), changed, revision, &request_id, request);
        meta.digest = digest::hash(kind, &id, meta.revision, &config);
        let vpc = held.map(|slot| self.ports[slot].config.vpc_id.clone()).unwrap_or_default();
        let was = before.as_ref().map(|before| (vpc.as_str(), before));
        self.digest_changed(kind, was, (&config.vpc_id, meta.digest));
        self.tombstones.lift(ResourceType::Port as u8, &id);
        let slot = match held {
            Some(slot) if before.as_ref().is_some_and(|before| before.version == meta.version) => {
                self.ports[slot].meta = Some(meta);
                self.retry_one(Handle::new(HandleKind::Port, slot));
                return Ok(Outcome::Applied);
            }
            Some(slot) => {
                self.drop_port_addresses(slot);
                slot
            }
            None => {
                let slot = self.ports.insert(PortSlot { first: NONE, ..PortSlot::default() });
                self.port_by_id.insert(id, slot);
                slot
            }
        };
        if self.ports[slot].interface != parsed.interface && before.is_some() {
            self.unname_interface(slot);
        }
        let port = &mut self.ports[slot];
        (port.config, port.meta, port.mac, port.pairs) = (config, Some(meta), parsed.mac, parsed.pairs);
        if port.interface != parsed.interface {
            port.interface = parsed.interface;
            self.name_interface(slot);
        }
        self.name_groups(slot, parsed.groups);
        self.add_port_addresses(slot, &parsed.fixed);
        self.retry_one(Handle::new(HandleKind::Port, slot));
        self.dirty_ports.insert(slot);
        Ok(Outcome::Applied)
    }

    /// The port that would result, and whether it differs from the held one.
    pub(crate) fn merged_port(
        &self,
        config: PortConfiguration,
    ) -> Result<(PortConfiguration, bool), Refusal> {
        check_update_type(config.update_type)?;
        let held = self.port_by_id.get(&config.id).map(|slot| &self.ports[*slot].config);
        self.check_held(self.port_by_id.len(), held.is_some(), "ports")?;
        let config = merge::port(held, config);
        parse_port(&config)?;
        let count = |config: &PortConfiguration| config.fixed_ips.len() + config.allow_address_pairs.len();
        let new = count(&config).saturating_sub(held.map_or(0, count));
        let most = self.settings.limits.neighbours;
        if new > 0 && self.addresses.len() + new > most {
            return Err(Outcome::failure(format!(
                "limits.neighbours reached: the port has {new} addresses more than what {most} leaves room for"
            )));
        }
        let changed = held.is_none_or(|held| differ!(PortConfiguration, held, &config));
        Ok((config, changed))
    }

    fn add_port_addresses(&mut self, slot: u32, fixed: &[(usize, IpAddr)]) {
        let owner = slot | Address::PORT;
        let mut added = Vec::with_capacity(fixed.len());
        let mut primary = None;
        for (position, ip) in fixed {
            let subnet = self.subnet_slot(&self.ports[slot].config.fixed_ips[*position].subnet_id.clone());
            let (ip, flags) = match ip {
                IpAddr::V4(ip) => {
                    primary = primary.or(Some(subnet));
                    (ip.to_bits(), 0)
                }
                IpAddr::V6(ip) => (self.v6.insert(ip.octets()), address_flags::V6),
            };
            added.push(self.add_address(Address { owner, ip, subnet, vni: flags, ..Address::default() }));
        }
        let primary = primary.or_else(|| added.first().map(|first| self.addresses[*first].subnet));
        let mac = self.ports[slot].mac;
        let mut macs: Vec<[u8; 6]> =
            self.ports[slot].pairs.iter().map(|pair| pair.mac).filter(|other| *other != mac).collect();
        macs.dedup();
        if let Some(subnet) = primary {
            for position in 0..macs.len() as u32 {
                let address = Address {
                    owner,
                    ip: position,
                    subnet,
                    vni: address_flags::MAC_ONLY,
                    ..Address::default()
                };
                added.push(self.add_address(address));
            }
        }
        self.ports[slot].pair_macs = macs;
        let mut next = NONE;
        for address in added.into_iter().rev() {
            self.addresses[address].next = next;
            next = address;
        }
        self.ports[slot].first = next;
    }

    fn drop_port_addresses(&mut self, slot: u32) {
        let mut at = std::mem::replace(&mut self.ports[slot].first, NONE);
        while let Some(address) = self.addresses.get(at).copied() {
            if address.has(address_flags::ACTIVE) {
                self.deactivate(at);
            }
            self.drop_address(at);
            at = address.next;
        }
    }

    fn delete_port(&mut self, config: &PortConfiguration, request: Request) -> Outcome {
        let Some(slot) = self.port_by_id.remove(&config.id) else {
            return self.delete_unheld(ResourceType::Port, &config.id, "port");
        };
        let (held, digest) =
            self.ports[slot].meta.as_ref().map_or((0, 0), |meta| (meta.revision, meta.digest));
        self.digests.take(ResourceType::Port, &self.ports[slot].config.vpc_id, digest);
        self.bury(ResourceType::Port as u8, &config.id, held, config.revision_number, request);
        self.drop_port_addresses(slot);
        self.withdraw_port(slot);
        self.name_groups(slot, Vec::new());
        self.unname_interface(slot);
        self.forget_failure(Handle::new(HandleKind::Port, slot));
        self.dirty_ports.remove(&slot);
        self.ports.remove(slot);
        Outcome::Success
    }
}

/// A FULL update without a device takes the port away from its guest: it is deleted.
pub(crate) fn is_unbind(operation: i32, config: &PortConfiguration) -> bool {
    operation == OperationType::Update as i32
        && config.update_type == UpdateType::Full as i32
        && config.device_id.is_empty()
        && config.device_owner.is_empty()
}
