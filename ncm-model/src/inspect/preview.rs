//! What a message would change, without changing anything.

use prost::Message as _;

use super::shown::short;
use crate::apply::{Operation, Outcome, binding_name, is_unbind, parse_fixed};
use crate::goalstate::Message;
use crate::goalstate::filter::Scope;
use crate::goalstate::merge::keep;
use crate::goalstate::neighbour_view::{self, split_state};
use crate::model::Model;
use crate::state::{ChangeKind, Difference};
use crate::wire::{
    DhcpState, NeighborConfiguration, NeighborState, OperationType, PortState, ResourceType, RouterState,
    SecurityGroupState, SubnetState, UpdateType, VpcState,
};

/// Names of the fields in which two configurations differ, with their old and new values.
macro_rules! differing {
    ($held:expr, $new:expr; $($field:ident),+) => {{
        let mut fields = Vec::new();
        $(if $held.$field != $new.$field {
            fields.push(format!("{}: {} -> {}", stringify!($field), short(&$held.$field), short(&$new.$field)));
        })+
        fields
    }};
}

type Judgement = (ChangeKind, Vec<String>);

fn refused(outcome: Outcome) -> Judgement {
    match outcome {
        Outcome::Refused(status, cause) => {
            (ChangeKind::Refused, vec![format!("{}: {cause}", status.as_str_name())])
        }
        _ => (ChangeKind::Unchanged, Vec::new()),
    }
}

fn judge(held: bool, fields: Vec<String>) -> Judgement {
    match (held, fields.is_empty()) {
        (false, _) => (ChangeKind::Added, Vec::new()),
        (true, true) => (ChangeKind::Unchanged, Vec::new()),
        (true, false) => (ChangeKind::Changed, fields),
    }
}

impl Model {
    /// What a message would change, without changing anything: up to `limit` differences.
    #[must_use]
    pub fn preview(&self, message: &Message, limit: usize) -> Vec<Difference> {
        let mut differences = Vec::new();
        let scope = Scope::of(message, &self.settings.addresses);
        for resource in [
            ResourceType::Vpc,
            ResourceType::Subnet,
            ResourceType::Port,
            ResourceType::Router,
            ResourceType::Securitygroup,
            ResourceType::Dhcp,
            ResourceType::Gateway,
        ] {
            for position in 0..message.section_len(resource) {
                if differences.len() >= limit {
                    return differences;
                }
                let Some(entry) = message.section_entry(resource, position) else { continue };
                let (id, operation) = crate::run::head(resource, &entry.state);
                if scope.selects(resource, entry.key, &id) {
                    let (change, fields) = self.judge_state(resource, &id, operation, &entry.state);
                    differences.push(difference(resource, id, operation, change, fields));
                }
            }
        }
        let mut at = 0;
        while let Some((entry, next)) = message.next_neighbour(at)
            && differences.len() < limit
        {
            at = next;
            let (id, operation) = crate::run::head(ResourceType::Neighbor, &entry.state);
            if scope.selects(ResourceType::Neighbor, entry.key, &id) {
                let (change, fields) = self.judge_neighbour(&entry.state);
                differences.push(difference(ResourceType::Neighbor, id, operation, change, fields));
            }
        }
        differences
    }

    fn judge_state(&self, resource: ResourceType, id: &str, operation: i32, state: &[u8]) -> Judgement {
        let held = match resource {
            ResourceType::Vpc => self.vpcs.get(id).map(|vpc| vpc.meta.revision),
            ResourceType::Subnet => self.held_subnet(id).map(|subnet| subnet.meta.revision),
            ResourceType::Port => {
                self.port_by_id.get(id).and_then(|slot| Some(self.ports[*slot].meta.as_ref()?.revision))
            }
            ResourceType::Router => {
                self.router_by_id.get(id).and_then(|slot| Some(self.routers[*slot].meta.as_ref()?.revision))
            }
            ResourceType::Dhcp => return self.judge_binding(state).unwrap_or_else(refused),
            ResourceType::Securitygroup => {
                let state =
                    SecurityGroupState::decode(state).unwrap_or_default().configuration.unwrap_or_default();
                if id.is_empty() && state.security_group_rules.is_empty() {
                    return (ChangeKind::Unchanged, Vec::new());
                }
                self.group_revision(id)
            }
            _ => return refused(Outcome::failure(crate::apply::UNSUPPORTED)),
        };
        let operation = match Operation::of(operation) {
            Ok(operation) => operation,
            Err(refusal) => return refused(refusal),
        };
        if operation == Operation::Get {
            return (ChangeKind::Unchanged, Vec::new());
        }
        if id.is_empty() {
            return refused(Outcome::invalid("configuration.id is empty"));
        }
        let judged = match resource {
            ResourceType::Vpc => self.judge_vpc(held, operation, state),
            ResourceType::Subnet => self.judge_subnet(held, operation, state),
            ResourceType::Port => self.judge_port(held, operation, state),
            ResourceType::Securitygroup => self.judge_group(held, operation, state),
            _ => self.judge_router(held, operation, state),
        };
        judged.unwrap_or_else(refused)
    }

    /// What a deletion would do.
    fn judge_delete(&self, resource: ResourceType, id: &str, held: Option<u32>) -> Judgement {
        match held {
            Some(_) => (ChangeKind::Removed, Vec::new()),
            None => refused(self.delete_unheld(resource, id, "such resource")),
        }
    }

    fn judge_vpc(&self, held: Option<u32>, operation: Operation, state: &[u8]) -> Result<Judgement, Outcome> {
        let config = VpcState::decode(state).ok().and_then(|state| state.configuration).unwrap_or_default();
        self.check_revision(ResourceType::Vpc, &config.id, held, config.revision_number)?;
        if operation == Operation::Delete {
            return Ok(self.judge_delete(ResourceType::Vpc, &config.id, held));
        }
        let before = self.vpcs.get(&config.id).map(|vpc| vpc.config.clone()).unwrap_or_default();
        let (after, _) = self.merged_vpc(config)?;
        let fields = differing!(before, after; project_id, name, cidr, tunnel_id, gateway_ids);
        Ok(judge(held.is_some(), fields))
    }

    fn judge_subnet(
        &self,
        held: Option<u32>,
        operation: Operation,
        state: &[u8],
    ) -> Result<Judgement, Outcome> {
        let config =
            SubnetState::decode(state).ok().and_then(|state| state.configuration).unwrap_or_default();
        self.check_revision(ResourceType::Subnet, &config.id, held, config.revision_number)?;
        if operation == Operation::Delete {
            return Ok(self.judge_delete(ResourceType::Subnet, &config.id, held));
        }
        let before = self.held_subnet(&config.id).map(|subnet| subnet.config.clone()).unwrap_or_default();
        let (after, _) = self.merged_subnet(config)?;
        let fields = differing!(before, after; network_type, vpc_id, name, cidr, tunnel_id, gateway, dhcp_enable,
            extra_dhcp_options, dns_entry_list, availability_zone);
        Ok(judge(held.is_some(), fields))
    }

    fn judge_port(
        &self,
        held: Option<u32>,
        operation: Operation,
        state: &[u8],
    ) -> Result<Judgement, Outcome> {
        let state = PortState::decode(state).unwrap_or_default();
        let config = state.configuration.unwrap_or_default();
        self.check_revision(ResourceType::Port, &config.id, held, config.revision_number)?;
        if operation == Operation::Delete || is_unbind(state.operation_type, &config) {
            return Ok(self.judge_delete(ResourceType::Port, &config.id, held));
        }
        let before =
            self.port_by_id.get(&config.id).map(|slot| self.ports[*slot].config.clone()).unwrap_or_default();
        let (after, _) = self.merged_port(config)?;
        let fields = differing!(before, after; vpc_id, name, device_id, device_owner, mac_address, admin_state_up,
            host_info, fixed_ips, allow_address_pairs, security_group_ids, interface_name);
        Ok(judge(held.is_some(), fields))
    }

    fn judge_router(
        &self,
        held: Option<u32>,
        operation: Operation,
        state: &[u8],
    ) -> Result<Judgement, Outcome> {
        let config =
            RouterState::decode(state).ok().and_then(|state| state.configuration).unwrap_or_default();
        self.check_revision(ResourceType::Router, &config.id, held, config.revision_number)?;
        if operation == Operation::Delete {
            return Ok(self.judge_delete(ResourceType::Router, &config.id, held));
        }
        let before = self
            .router_by_id
            .get(&config.id)
            .map(|slot| self.routers[*slot].config.clone())
            .unwrap_or_default();
        let (after, _) = self.merged_router(config)?;
        let fields = differing!(before, after; host_dvr_mac_address, subnet_routing_tables);
        Ok(judge(held.is_some(), fields))
    }

    fn judge_group(
        &self,
        held: Option<u32>,
        operation: Operation,
        state: &[u8],
    ) -> Result<Judgement, Outcome> {
        let config =
            SecurityGroupState::decode(state).ok().and_then(|state| state.configuration).unwrap_or_default();
        self.check_revision(ResourceType::Securitygroup, &config.id, held, config.revision_number)?;
        if operation == Operation::Delete {
            return Ok(self.judge_delete(ResourceType::Securitygroup, &config.id, held));
        }
        let planned = self.planned_group(&config)?;
        let Some(before) = self.held_group(&config.id) else { return Ok(judge(false, Vec::new())) };
        let mut fields = differing!(before, planned; vpc_id, name);
        if !planned.changes.is_empty() {
            let [added, changed, removed] = before.count(&planned.changes);
            fields.push(format!("security_group_rules: {added} added, {changed} changed, {removed} removed"));
        }
        Ok(judge(true, fields))
    }

    fn judge_binding(&self, state: &[u8]) -> Result<Judgement, Outcome> {
        let state = DhcpState::decode(state).unwrap_or_default();
        let operation = Operation::of(state.operation_type)?;
        let config = state.configuration.unwrap_or_default();
        if operation == Operation::Get {
            return Ok((ChangeKind::Unchanged, Vec::new()));
        }
        let (key, held) = self.sent_binding(&config)?;
        let revision = held.map(|held| held.meta.revision);
        self.check_revision(ResourceType::Dhcp, &binding_name(&key), revision, config.revision_number)?;
        if operation == Operation::Delete {
            let change = if held.is_some() { ChangeKind::Removed } else { ChangeKind::Unchanged };
            return Ok((change, Vec::new()));
        }
        let before = held.map(|held| held.config.clone()).unwrap_or_default();
        let (after, _) = self.merged_binding(&key, config)?;
        let fields = differing!(before, after; ipv4_address, ipv6_address, port_host_name);
        Ok(judge(held.is_some(), fields))
    }

    fn judge_neighbour(&self, state: &[u8]) -> Judgement {
        let judged = || -> Result<Judgement, Outcome> {
            let state =
                NeighborState::decode(state).map_err(|_| Outcome::invalid("the state cannot be read"))?;
            let operation = Operation::of(state.operation_type)?;
            let encoded = state.encode_to_vec();
            let Some(mut sent) = state.configuration else {
                return Err(Outcome::invalid("the state has no configuration"));
            };
            if operation == Operation::Get {
                return Ok((ChangeKind::Unchanged, Vec::new()));
            }
            let (number, configuration) = split_state(&encoded).unwrap_or_default();
            let view = neighbour_view::read(number, configuration.as_deref()).unwrap_or_default();
            let mut parsed = Vec::new();
            parse_fixed(&view, &mut parsed)?;
            let types = [false, true].map(|l3| {
                let concerned = parsed.is_empty() || parsed.iter().any(|fixed| fixed.l3 == l3);
                self.find_neighbour(&sent.id, l3).filter(|_| concerned)
            });
            self.check_sent_neighbour(&view, &parsed)?;
            if operation == Operation::Delete {
                let change = if types.iter().any(Option::is_some) {
                    ChangeKind::Removed
                } else {
                    ChangeKind::Unchanged
                };
                return Ok((change, Vec::new()));
            }
            let Some(slot) = types.into_iter().flatten().next() else { return Ok(judge(false, Vec::new())) };
            let before = self.neighbour_configuration(&self.neighbours[slot]);
            normalise(&mut sent, &before);
            let fields = differing!(before, sent; vpc_id, name, mac_address, host_mac_address, host_ip_address,
                fixed_ips, allow_address_pairs, security_group_ids);
            Ok(judge(true, fields))
        };
        judged().unwrap_or_else(refused)
    }
}

/// Brings a sent neighbour into the form in which a held one is shown.
fn normalise(sent: &mut NeighborConfiguration, held: &NeighborConfiguration) {
    if let Some(mac) = crate::goalstate::parse::mac(&sent.mac_address) {
        sent.mac_address = crate::goalstate::parse::mac_text(mac);
    }
    if let Some(host) = crate::goalstate::parse::ip(&sent.host_ip_address) {
        sent.host_ip_address = host.to_string();
    }
    for fixed in &mut sent.fixed_ips {
        fixed.arion_group.clear();
    }
    if sent.update_type == UpdateType::Full as i32 {
        return;
    }
    keep!(sent, held; vpc_id, name, mac_address, host_mac_address, host_ip_address, allow_address_pairs,
          security_group_ids);
    let same = sent.fixed_ips.iter().all(|fixed| held.fixed_ips.contains(fixed));
    if same {
        sent.fixed_ips.clone_from(&held.fixed_ips);
    }
}

fn difference(
    resource_type: ResourceType,
    id: String,
    operation: i32,
    change: ChangeKind,
    fields: Vec<String>,
) -> Difference {
    let operation = OperationType::try_from(operation).unwrap_or_default();
    Difference { resource_type, id, operation, change, fields }
}
