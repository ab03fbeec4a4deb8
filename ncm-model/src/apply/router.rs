//! Routers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ncm_common::DVR_MAC_PREFIX;

use super::{Operation, Outcome, Refusal, Request, check_update_type};
use crate::compile::{Handle, HandleKind};
use crate::digest;
use crate::goalstate::{merge, parse};
use crate::model::Model;
use crate::resources::{RouterSlot, Rule};
use crate::wire::router_configuration::RoutingRule;
use crate::wire::{ResourceType, RouterConfiguration};

/// MACs of next hops that came as neighbours to GET in the same message: by address, with the subnet they are in.
pub(crate) type NextHops = HashMap<IpAddr, Vec<(String, [u8; 6])>>;

/// Rules by subnet id.
type Tables<'a> = BTreeMap<&'a str, Vec<Rule>>;

/// The source MAC of routed frames where the router gives none.
const DEFAULT_DVR_MAC: [u8; 6] = {
    let [a, b, c, d, e] = DVR_MAC_PREFIX;
    [a, b, c, d, e, 0]
};

fn parse_rule(rule: &RoutingRule) -> Result<Rule, Refusal> {
    let name = || if rule.id.is_empty() { &rule.destination } else { &rule.id };
    let net = parse::cidr(&rule.destination).ok_or_else(|| {
        Outcome::invalid(format!("rule {}: destination \"{}\" is no CIDR", name(), rule.destination))
    })?;
    let next_hop = if rule.next_hop_ip.is_empty() {
        None
    } else {
        Some(parse::unicast_ip(&rule.next_hop_ip).ok_or_else(|| {
            Outcome::invalid(format!(
                "rule {}: next_hop_ip \"{}\" is no IP address",
                name(),
                rule.next_hop_ip
            ))
        })?)
    };
    let mac = match rule.routing_rule_extra_info.as_ref().map(|extra| extra.next_hop_mac.as_str()) {
        None | Some("") => [0; 6],
        Some(text) => parse::mac(text)
            .ok_or_else(|| Outcome::invalid(format!("rule {}: next_hop_mac \"{text}\" is no MAC", name())))?,
    };
    let next_hop = next_hop.filter(|next_hop| next_hop.is_ipv4() == net.addr().is_ipv4());
    Ok(Rule { net, priority: rule.priority, id: rule.id.clone(), next_hop, mac })
}

/// The router's rules by subnet id, in order.
fn parse_router(config: &RouterConfiguration) -> Result<(Tables<'_>, [u8; 6]), Refusal> {
    let dvr_mac = if config.host_dvr_mac_address.is_empty() {
        DEFAULT_DVR_MAC
    } else {
        parse::guest_mac(&config.host_dvr_mac_address).ok_or_else(|| {
            Outcome::invalid(format!("host_dvr_mac_address \"{}\" is no MAC", config.host_dvr_mac_address))
        })?
    };
    let mut tables = BTreeMap::new();
    for table in &config.subnet_routing_tables {
        if table.subnet_id.is_empty() {
            return Err(Outcome::invalid("subnet_routing_tables: a table has no subnet_id"));
        }
        let mut rules = Vec::with_capacity(table.routing_rules.len());
        for rule in &table.routing_rules {
            rules.push(parse_rule(rule)?);
        }
        rules.sort_unstable();
        tables.insert(table.subnet_id.as_str(), rules);
    }
    Ok((tables, dvr_mac))
}

impl Model {
    pub(crate) fn apply_router(
        &mut self,
        operation: Operation,
        _sent: i32,
        config: RouterConfiguration,
        request: Request,
        next_hops: &NextHops,
    ) -> Result<Outcome, Refusal> {
        if operation == Operation::Get {
            return Ok(Outcome::Success);
        }
        let id = config.id.clone();
        let held = self.router_by_id.get(&id).copied();
        let revision = held.and_then(|slot| self.routers[slot].meta.as_ref()).map(|meta| meta.revision);
        self.check_revision(ResourceType::Router, &id, revision, config.revision_number)?;
        if operation == Operation::Delete {
            return Ok(self.delete_router(&config, request));
        }
        let (config, changed) = self.merged_router(config)?;
        let (parsed, dvr_mac) = parse_router(&config)?;
        let held_learned = held.map(|slot| self.routers[slot].learned.clone()).unwrap_or_default();
        let learned = learn(&parsed, &held_learned, next_hops);
        let changed = changed || learned != held_learned;
        let slot = held.unwrap_or_else(|| {
            let slot = self.routers.insert(RouterSlot::default());
            self.router_by_id.insert(id.clone(), slot);
            slot
        });
        let mut tables = BTreeMap::new();
        for (subnet, mut rules) in parsed {
            for rule in &mut rules {
                if rule.mac == [0; 6]
                    && let Some(mac) = rule.next_hop.and_then(|next_hop| learned.get(&next_hop))
                {
                    rule.mac = *mac;
                }
            }
            tables.insert(self.subnet_slot(subnet), rules);
        }
        let before = self.routers[slot].meta.take();
        let (revision, request_id) = (config.revision_number, config.request_id.clone());
        let kind = ResourceType::Router;
        let mut meta = self.meta((kind, &id), before.as_ref(), changed, revision, &request_id, request);
        // Routers are few, and what VPC one is in depends on its subnets: they are added up when somebody asks.
        meta.digest = digest::hash(kind, &id, meta.revision, &config);
        let router = &mut self.routers[slot];
        (router.config, router.meta, router.learned) = (config, Some(meta), learned);
        self.tombstones.lift(ResourceType::Router as u8, &id);
        self.retry_one(Handle::new(HandleKind::Router, slot));
        self.replace_tables(slot, &id, tables, dvr_mac);
        Ok(Outcome::Applied)
    }

    /// The router that would result, checked, and whether it differs from the held one.
    pub(crate) fn merged_router(
        &self,
        config: RouterConfiguration,
    ) -> Result<(RouterConfiguration, bool), Refusal> {
        check_update_type(config.update_type)?;
        let held = self.router_by_id.get(&config.id).map(|slot| &self.routers[*slot].config);
        self.check_held(self.router_by_id.len(), held.is_some(), "routers")?;
        let config = merge::router(held, config);
        parse_router(&config)?;
        let changed = held.is_none_or(|held| {
            (&held.host_dvr_mac_address, &held.subnet_routing_tables)
                != (&config.host_dvr_mac_address, &config.subnet_routing_tables)
        });
        Ok((config, changed))
    }

    /// Gives a router other tables, and has everything that depends on them follow.
    fn replace_tables(&mut self, slot: u32, id: &str, tables: BTreeMap<u32, Vec<Rule>>, dvr_mac: [u8; 6]) {
        let other_mac = std::mem::replace(&mut self.routers[slot].dvr_mac, dvr_mac) != dvr_mac;
        if self.routers[slot].tables != tables {
            let before: BTreeSet<u32> = self.routers[slot].tables.keys().copied().collect();
            let after: BTreeSet<u32> = tables.keys().copied().collect();
            for subnet in &before {
                self.disturb_table(slot, *subnet);
            }
            self.routers[slot].tables = tables;
            for subnet in before.difference(&after) {
                self.subnets[*subnet].routers.remove(id);
                self.update_subnet(*subnet);
                self.forget_subnet_if_unused(*subnet);
            }
            for subnet in after.difference(&before) {
                self.subnets[*subnet].routers.insert(id.to_owned(), slot);
                self.update_subnet(*subnet);
            }
            for subnet in &after {
                self.disturb_table(slot, *subnet);
            }
        }
        if other_mac {
            for subnet in self.routers[slot].members.clone() {
                self.write_subnet(subnet);
            }
        }
    }

    fn delete_router(&mut self, config: &RouterConfiguration, request: Request) -> Outcome {
        let Some(slot) = self.router_by_id.remove(&config.id) else {
            return self.delete_unheld(ResourceType::Router, &config.id, "router");
        };
        let held = self.routers[slot].meta.as_ref().map_or(0, |meta| meta.revision);
        self.bury(ResourceType::Router as u8, &config.id, held, config.revision_number, request);
        self.replace_tables(slot, &config.id, BTreeMap::new(), DEFAULT_DVR_MAC);
        self.forget_failure(Handle::new(HandleKind::Router, slot));
        self.dirty_routers.remove(&slot);
        self.routers.remove(slot);
        Outcome::Success
    }
}

/// The next hops of rules without a MAC whose MAC came beside the router, now or before.
fn learn(
    tables: &Tables<'_>,
    held: &BTreeMap<IpAddr, [u8; 6]>,
    next_hops: &NextHops,
) -> BTreeMap<IpAddr, [u8; 6]> {
    let mut learned = BTreeMap::new();
    for rule in tables.values().flatten().filter(|rule| rule.mac == [0; 6]) {
        let Some(next_hop) = rule.next_hop else { continue };
        let sent = next_hops.get(&next_hop).and_then(|known| {
            let ours = known.iter().find(|(subnet, _)| tables.contains_key(subnet.as_str()));
            ours.or_else(|| known.first()).map(|(_, mac)| *mac)
        });
        if let Some(mac) = sent.or_else(|| held.get(&next_hop).copied()) {
            learned.insert(next_hop, mac);
        }
    }
    learned
}
