//! `ncmctl status` and `info`.

use ncm_model::wire::{OperationStatus, ResourceType};

use super::args::Global;
use super::connect::Agent;
use super::failure::{Exit, Failure};
use super::json::Json;
use super::output::{self, Grid};
use super::states::{age, status_text, type_text};
use crate::ncm_v1::{
    GetInfoReply, GetInfoRequest, GetStatusReply, GetStatusRequest, InterfaceRole, ResourceCount,
};

/// Health at a glance. Exits with 1 while there are alarms, so that scripts can watch it.
pub(super) async fn status(global: &Global) -> Result<Exit, Failure> {
    let mut agent = Agent::connect(global).await?;
    let status = agent.inspect.get_status(GetStatusRequest {}).await?.into_inner();
    let json = Json::new()?.own("GetStatusReply", &status)?;
    output::show(global.output, &json, || text(&status))?;
    Ok(if status.alarms.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// Who the agent is.
pub(super) async fn info(global: &Global) -> Result<Exit, Failure> {
    let mut agent = Agent::connect(global).await?;
    let info = agent.inspect.get_info(GetInfoRequest {}).await?.into_inner();
    let json = Json::new()?.own("GetInfoReply", &info)?;
    output::show(global.output, &json, || info_text(&info))?;
    Ok(Exit::Ok)
}

fn info_text(info: &GetInfoReply) -> String {
    let layouts: Vec<String> = info.layout_versions.iter().map(ToString::to_string).collect();
    let mut grid = Grid::new(["ncm-agent", info.version.as_str()]);
    for (name, value) in [
        ("instance", info.instance.clone()),
        ("node", info.node_id.clone()),
        ("node addresses", info.node_addresses.join(", ")),
        ("tunnel endpoints", join(&[&info.endpoint_v4, &info.endpoint_v6])),
        ("table layouts", layouts.join(", ")),
        ("extensions", info.extensions.join(", ")),
        ("process", info.pid.to_string()),
        ("kernel", info.kernel.clone()),
    ] {
        grid.row([name.to_owned(), value]);
    }
    grid.text()
}

fn join(parts: &[&str]) -> String {
    parts.iter().copied().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn text(status: &GetStatusReply) -> String {
    let info = status.info.clone().unwrap_or_default();
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let mut text = format!(
        "ncm-agent {}, instance {}, node {} ({}), up {}, kernel {}\n",
        info.version,
        info.instance,
        if info.node_id.is_empty() { "-" } else { &info.node_id },
        join(&[&info.endpoint_v4, &info.endpoint_v6]),
        age(since.saturating_sub(info.started_at)),
        info.kernel,
    );
    text.push_str(&format!("listening on {}\n", status.listeners.join(", ")));
    if let Some(underlay) = &status.underlay {
        text.push_str(&format!("{} remote hosts, {} unresolved\n", underlay.hosts, underlay.unresolved));
    }
    if let Some(upstream) = &status.upstream {
        text.push_str(&format!(
            "upstream {} {}, {} requests outstanding, {} packets held ({} bytes)\n",
            upstream.address,
            if upstream.connected { "connected" } else { "not connected" },
            upstream.outstanding,
            upstream.held_packets,
            upstream.held_bytes,
        ));
    }
    if status.alarms.is_empty() {
        text.push_str("no alarms\n");
    }
    for alarm in &status.alarms {
        text.push_str(&format!("ALARM: {alarm}\n"));
    }
    for (title, grid) in [
        ("interfaces", interfaces(status)),
        ("resources", resources(&status.resources)),
        ("policy", policy(status)),
        ("tables", super::maps::fill(&status.tables)),
    ] {
        if !grid.is_empty() {
            text.push_str(&format!("\n{title}\n{}", grid.text()));
        }
    }
    text
}

fn interfaces(status: &GetStatusReply) -> Grid {
    let mut grid = Grid::new(["interface", "index", "role", "mode", "hook", "program", "mtu", "port", "why"]);
    for interface in &status.interfaces {
        let role = InterfaceRole::try_from(interface.role).unwrap_or(InterfaceRole::Unspecified);
        grid.row([
            interface.name.clone(),
            interface.ifindex.to_string(),
            role.as_str_name().trim_start_matches("INTERFACE_ROLE_").to_ascii_lowercase(),
            interface.configured_mode.clone(),
            interface.hook.clone(),
            interface.program.clone(),
            interface.mtu.to_string(),
            interface.port.clone(),
            interface.reason.clone(),
        ]);
    }
    grid
}

/// What policy decided, by security groups.
fn policy(status: &GetStatusReply) -> Grid {
    let mut grid = Grid::new(["security groups", "direction", "allowed", "denied"]);
    for count in &status.policy {
        grid.row([
            count.groups.clone(),
            count.direction.clone(),
            count.allowed.to_string(),
            count.denied.to_string(),
        ]);
    }
    grid
}

/// One row per type, one column per status that occurs.
fn resources(counts: &[ResourceCount]) -> Grid {
    let mut statuses: Vec<i32> = counts.iter().map(|count| count.status).collect();
    statuses.push(OperationStatus::Success as i32);
    statuses.sort_unstable();
    statuses.dedup();
    let titles: Vec<String> = statuses.iter().map(|status| status_text(*status)).collect();
    let mut grid = Grid::new(std::iter::once("type").chain(titles.iter().map(String::as_str)));
    for number in 0..8 {
        let Ok(kind) = ResourceType::try_from(number) else { continue };
        let of = |status: i32| -> u64 {
            let fits = |count: &&ResourceCount| count.r#type == number && count.status == status;
            counts.iter().filter(fits).map(|count| count.count).sum()
        };
        if statuses.iter().any(|status| of(*status) > 0) {
            let numbers = statuses.iter().map(|status| of(*status).to_string());
            grid.row(std::iter::once(type_text(kind).to_owned()).chain(numbers));
        }
    }
    grid
}
