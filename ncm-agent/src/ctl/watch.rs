//! `ncmctl digest` and `watch`: what is held in few numbers, and as it changes.

use serde_json::Value;

use super::args::{Global, Output, Watch};
use super::connect::Agent;
use super::failure::{Exit, Failure};
use super::json::Json;
use super::output::{self, Grid};
use super::states::{kind_and_variant, state_json, status_text, type_number_text};
use crate::ncm_v1::state_change::Kind;
use crate::ncm_v1::{GetDigestReply, GetDigestRequest, StateChange, WatchStatesReply, WatchStatesRequest};

/// Shows the digests.
pub(super) async fn digest(global: &Global) -> Result<Exit, Failure> {
    let mut agent = Agent::connect(global).await?;
    let reply = agent.states.get_digest(GetDigestRequest::default()).await?.into_inner();
    let mut json = Json::new()?.own("GetDigestReply", &reply)?;
    json["from"] = place(reply.history, reply.version).into();
    output::show(global.output, &json, || digests_text(&reply))?;
    Ok(Exit::Ok)
}

fn digests_text(reply: &GetDigestReply) -> String {
    let mut grid = Grid::new(["type", "vpc", "count", "digest"]);
    for digest in &reply.digests {
        let vpc = digest.vpc_id.clone();
        grid.row([type_number_text(digest.r#type), vpc, digest.count.to_string(), digest.digest.clone()]);
    }
    for digest in &reply.types {
        let kind = type_number_text(digest.r#type);
        grid.row([kind, "(all)".to_owned(), digest.count.to_string(), digest.digest.clone()]);
    }
    if grid.is_empty() { "nothing is held\n".to_owned() } else { grid.text() }
}

/// Where to go on from.
fn place(history: u64, version: u64) -> String {
    format!("{history:016x}:{version}")
}

/// Shows changes until interrupted.
pub(super) async fn watch(global: &Global, what: Watch) -> Result<Exit, Failure> {
    let mut agent = Agent::connect(global).await?;
    let (history, version) = match what.from {
        Some(from) => from,
        None if what.new => {
            let now = agent.states.get_digest(GetDigestRequest::default()).await?.into_inner();
            (now.history, now.version)
        }
        None => (0, 0),
    };
    let with_state = global.output != Output::Table;
    let types = what.kinds.iter().map(|kind| *kind as i32).collect();
    let request = WatchStatesRequest { history, version, types, include_state: with_state };
    let mut replies = agent.states.watch_states(request).await?.into_inner();
    let json = Json::new()?;
    let mut widths = Vec::new();
    while let Some(reply) = replies.message().await? {
        if with_state {
            show_values(global.output, &json, &reply)?;
        } else {
            let first = widths.is_empty();
            output::print(&grid(&reply).part(&mut widths, first))?;
        }
        if what.once && reply.synchronised {
            break;
        }
    }
    Ok(Exit::Ok)
}

fn kind_text(change: &StateChange) -> String {
    change.kind().as_str_name().to_ascii_lowercase()
}

fn grid(reply: &WatchStatesReply) -> Grid {
    let mut grid = Grid::new(["change", "type", "id", "status", "version", "from", "cause"]);
    let from = place(reply.history, reply.version);
    for change in &reply.changes {
        let Some(state) = &change.state else { continue };
        let (gone, versioned) = (change.kind() == Kind::Gone, change.version > 0);
        grid.row([
            kind_text(change),
            kind_and_variant(state),
            state.id.clone(),
            if gone { String::new() } else { status_text(state.status) },
            if versioned { change.version.to_string() } else { String::new() },
            from.clone(),
            state.cause.clone(),
        ]);
    }
    grid
}

/// Each change as a document of its own; in JSON as a line of its own.
fn show_values(how: Output, json: &Json, reply: &WatchStatesReply) -> Result<(), Failure> {
    let from = place(reply.history, reply.version);
    for change in &reply.changes {
        let Some(state) = &change.state else { continue };
        let mut value = state_json(json, state)?;
        if change.kind() == Kind::Gone
            && let Value::Object(entries) = &mut value
        {
            entries.retain(|name, _| ["type", "id", "neighborType"].contains(&name.as_str()));
        }
        let document = super::json::object([
            ("change", kind_text(change).into()),
            ("version", change.version.into()),
            ("from", from.clone().into()),
            ("synchronised", reply.synchronised.into()),
            ("state", value),
        ]);
        output::print(&match how {
            Output::Yaml => format!("---\n{}", output::yaml(&document)),
            _ => format!("{document}\n"),
        })?;
    }
    Ok(())
}
