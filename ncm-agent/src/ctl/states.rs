//! `ncmctl get`: held resources with where they come from and how they stand.

use serde_json::Value;

use super::args::{Get, Global, TYPES};
use super::connect::Agent;
use super::failure::{Exit, Failure};
use super::json::Json;
use super::output::{self, Grid};
use crate::ncm_v1::{ListStatesRequest, Origin, ResourceState};
use ncm_model::wire::{OperationStatus, ResourceType};

/// Runs the command.
pub(super) async fn get(global: &Global, get: Get) -> Result<Exit, Failure> {
    let mut agent = Agent::connect(global).await?;
    let with_state = global.output != super::args::Output::Table;
    let states = list(
        &mut agent,
        ListStatesRequest {
            types: get.kind.iter().map(|kind| *kind as i32).collect(),
            ids: get.ids.clone(),
            statuses: get.status.iter().map(|status| *status as i32).collect(),
            include_state: with_state,
        },
    )
    .await?;
    let missing: Vec<&String> =
        get.ids.iter().filter(|id| !states.iter().any(|state| state.id == **id)).collect();
    let json = Json::new()?;
    let values = states.iter().map(|state| state_json(&json, state)).collect::<Result<Vec<_>, _>>()?;
    output::show(global.output, &Value::Array(values), || table(&states))?;
    if missing.is_empty() {
        return Ok(Exit::Ok);
    }
    let what = get.kind.map_or("resource", type_text);
    let missing: Vec<&str> = missing.into_iter().map(String::as_str).collect();
    let status = if get.status.is_empty() { "" } else { " with this status" };
    Err(Failure::failed(format!("no {what} {}{status} is held", missing.join(", "))))
}

/// Held resources.
pub(super) async fn list(
    agent: &mut Agent,
    request: ListStatesRequest,
) -> Result<Vec<ResourceState>, Failure> {
    let mut parts = agent.inspect.list_states(request).await?.into_inner();
    let mut states = Vec::new();
    while let Some(mut part) = parts.message().await? {
        states.append(&mut part.states);
    }
    states.sort_by(|a, b| (a.r#type, &a.id, &a.neighbor_type).cmp(&(b.r#type, &b.id, &b.neighbor_type)));
    Ok(states)
}

fn table(states: &[ResourceState]) -> String {
    let mut grid = Grid::new(["type", "id", "status", "origin", "revision", "age", "mtu", "cause"]);
    let now = now();
    for state in states {
        grid.row([
            kind_and_variant(state),
            state.id.clone(),
            status_text(state.status),
            origin_text(state.origin),
            state.revision.to_string(),
            age(now.saturating_sub(state.changed_at)),
            if state.mtu == 0 { String::new() } else { state.mtu.to_string() },
            state.cause.clone(),
        ]);
    }
    if grid.is_empty() { "nothing is held\n".to_owned() } else { grid.text() }
}

/// The word for a resource's type, and which of the two a neighbour is.
pub(super) fn kind_and_variant(state: &ResourceState) -> String {
    let kind = type_number_text(state.r#type);
    if state.neighbor_type.is_empty() { kind } else { format!("{kind}/{}", state.neighbor_type) }
}

/// A resource with its configuration, not as bytes.
pub(super) fn state_json(json: &Json, state: &ResourceState) -> Result<Value, Failure> {
    let mut value = json.own("ResourceState", state)?;
    if let Value::Object(entries) = &mut value {
        // Bytes tell nothing; the message in them does.
        entries.remove("state");
        if let Some(name) = ResourceType::try_from(state.r#type).ok().map(message_name) {
            let inner = json.alcor(name, &state.state)?;
            let configuration = inner.get("configuration").cloned().unwrap_or(Value::Null);
            entries.insert("configuration".to_owned(), configuration);
        }
    }
    Ok(value)
}

fn message_name(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Vpc => "VpcState",
        ResourceType::Subnet => "SubnetState",
        ResourceType::Port => "PortState",
        ResourceType::Neighbor => "NeighborState",
        ResourceType::Securitygroup => "SecurityGroupState",
        ResourceType::Dhcp => "DHCPState",
        ResourceType::Router => "RouterState",
        ResourceType::Gateway => "GatewayState",
    }
}

/// The word for a type.
pub(super) fn type_text(kind: ResourceType) -> &'static str {
    TYPES.iter().find(|(known, _)| *known == kind).map_or("resource", |(_, name)| name)
}

/// The word for a type's number.
pub(super) fn type_number_text(number: i32) -> String {
    ResourceType::try_from(number).map_or_else(|_| number.to_string(), |kind| type_text(kind).to_owned())
}

/// The word for a status.
pub(super) fn status_text(number: i32) -> String {
    OperationStatus::try_from(number)
        .map_or_else(|_| number.to_string(), |status| status.as_str_name().to_ascii_lowercase())
}

fn origin_text(number: i32) -> String {
    let name = Origin::try_from(number).unwrap_or(Origin::Unspecified).as_str_name();
    name.trim_start_matches("ORIGIN_").to_ascii_lowercase().replace('_', "-")
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A duration for people: its two largest units.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        assert_eq!(age(0), "0s");
        assert_eq!(age(61), "1m1s");
        assert_eq!(age(3_661), "1h1m");
        assert_eq!(age(90_000), "1d1h");
    }

    #[test]
    fn every_type_has_a_word_and_a_message() {
        let descriptors = super::super::document::descriptors().unwrap();
        for number in 0..8 {
            let kind = ResourceType::try_from(number).unwrap();
            assert_ne!(type_text(kind), "resource");
            let name = format!("alcor.schema.{}", message_name(kind));
            assert!(descriptors.get_message_by_name(&name).is_some(), "{name}");
        }
    }
}
