//! `ncmctl apply` and `delete`: goal states from files, checked as a whole, then sent one by one.

use std::time::{Duration, Instant};

use ncm_model::wire::{GoalStateV2, OperationStatus, OperationType};
use prost::Message;
use serde_json::{Value, json};

use super::args::{Files, Global};
use super::connect::Agent;
use super::document::{self, Document};
use super::failure::{Exit, Failure};
use super::json::{Json, object};
use super::output::{self, Grid};
use super::states::{list, status_text, type_number_text};
use crate::ncm_v1::difference::Change;
use crate::ncm_v1::{
    ApplyStatesRequest, Difference, ListStatesRequest, PreviewStatesReply, PreviewStatesRequest, StateResult,
};

/// How often pending resources are looked at.
const POLL: Duration = Duration::from_millis(200);

/// Sends the operations as they are written.
pub(super) async fn apply(global: &Global, files: Files) -> Result<Exit, Failure> {
    let documents = load(&files)?;
    run(global, &files, documents).await
}

/// Deletes what the documents describe: the last document goes first, as later ones refer to earlier ones.
pub(super) async fn delete(global: &Global, files: Files) -> Result<Exit, Failure> {
    let mut documents = load(&files)?;
    documents.reverse();
    for document in &mut documents {
        set_operation(&mut document.state, OperationType::Delete);
    }
    run(global, &files, documents).await
}

fn load(files: &Files) -> Result<Vec<Document>, Failure> {
    let documents = document::load(&files.files).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::usage(lines.join("\n") + "\nnothing was sent")
    })?;
    if documents.is_empty() {
        return Err(Failure::usage("there is no document in the files; nothing was sent"));
    }
    Ok(documents)
}

/// Writes `operation` into every state.
fn set_operation(state: &mut GoalStateV2, operation: OperationType) {
    macro_rules! each {
        ($($map:ident),+) => {
            $(for state in state.$map.values_mut() { state.operation_type = operation as i32; })+
        };
    }
    each!(
        vpc_states,
        subnet_states,
        port_states,
        dhcp_states,
        neighbor_states,
        security_group_states,
        router_states,
        gateway_states
    );
}

async fn run(global: &Global, files: &Files, documents: Vec<Document>) -> Result<Exit, Failure> {
    let mut agent = Agent::connect(global).await?;
    if files.dry_run {
        return preview(global, &mut agent, documents).await;
    }
    let mut results = Vec::new();
    for document in documents {
        results.append(&mut send(&mut agent, &document).await?);
    }
    if let Some(seconds) = files.wait {
        wait(&mut agent, &mut results, Duration::from_secs(seconds)).await?;
    }
    let values: Result<Vec<Value>, Failure> = {
        let json = Json::new()?;
        results.iter().map(|result| json.own("StateResult", result)).collect()
    };
    output::show(global.output, &Value::Array(values?), || {
        let mut grid = Grid::new(["type", "id", "operation", "status", "cause"]);
        for result in &results {
            grid.row([
                type_number_text(result.r#type),
                result.id.clone(),
                operation_text(result.operation),
                status_text(result.status),
                result.cause.clone(),
            ]);
        }
        grid.text()
    })?;
    Ok(verdict(&results, files.wait.is_some()))
}

async fn send(agent: &mut Agent, document: &Document) -> Result<Vec<StateResult>, Failure> {
    let request = ApplyStatesRequest { goal_state: document.state.encode_to_vec() };
    let place = |status: tonic::Status| {
        let failure = Failure::from(status);
        Failure { message: format!("{}: {}", document.place, failure.message), ..failure }
    };
    let mut parts = agent.operate.apply_states(request).await.map_err(place)?.into_inner();
    let mut results = Vec::new();
    while let Some(mut part) = parts.message().await.map_err(place)? {
        results.append(&mut part.results);
    }
    if results.is_empty() && !is_empty(&document.state) {
        output::note(&format!(
            "{}: nothing in it is meant for this node: its host_resources name none of the node's addresses (`ncmctl info`)",
            document.place
        ));
    }
    Ok(results)
}

fn is_empty(state: &GoalStateV2) -> bool {
    *state == GoalStateV2 { format_version: state.format_version, ..GoalStateV2::default() }
}

fn verdict(results: &[StateResult], waited: bool) -> Exit {
    let is = |result: &StateResult, status: OperationStatus| result.status == status as i32;
    let good =
        |result: &StateResult| is(result, OperationStatus::Success) || is(result, OperationStatus::Pending);
    if !results.iter().all(good) {
        Exit::Failed
    } else if waited && results.iter().any(|result| is(result, OperationStatus::Pending)) {
        Exit::Pending
    } else {
        Exit::Ok
    }
}

/// Looks at pending resources until none is pending or the time is over.
async fn wait(agent: &mut Agent, results: &mut [StateResult], limit: Duration) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let pending = |result: &&mut StateResult| result.status == OperationStatus::Pending as i32;
        let mut open: Vec<&mut StateResult> = results.iter_mut().filter(pending).collect();
        if open.is_empty() {
            return Ok(());
        }
        let ids = open.iter().map(|result| result.id.clone()).collect();
        let held = list(agent, ListStatesRequest { ids, ..ListStatesRequest::default() }).await?;
        for result in &mut open {
            // A neighbour may be held as L2 and as L3: the worse of both counts, and statuses other than SUCCESS are worse.
            let states = held.iter().filter(|state| state.id == result.id && state.r#type == result.r#type);
            let worst = states.max_by_key(|state| state.status != OperationStatus::Success as i32);
            if let Some(state) = worst {
                result.status = state.status;
                result.cause.clone_from(&state.cause);
            }
        }
        let done = open.iter().all(|result| result.status != OperationStatus::Pending as i32);
        if done || start.elapsed() >= limit {
            return Ok(());
        }
        tokio::time::sleep(POLL.min(limit)).await;
    }
}

async fn preview(global: &Global, agent: &mut Agent, documents: Vec<Document>) -> Result<Exit, Failure> {
    let mut differences: Vec<Difference> = Vec::new();
    for document in documents {
        let request = PreviewStatesRequest { goal_state: document.state.encode_to_vec() };
        let reply: PreviewStatesReply = agent.inspect.preview_states(request).await?.into_inner();
        differences.extend(reply.differences);
    }
    let json = Json::new()?;
    let values = differences.iter().map(|difference| json.own("Difference", difference));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let refused = differences.iter().filter(|difference| difference.change == Change::Refuse as i32).count();
    let summary = object([("dryRun", json!(true)), ("differences", Value::Array(values))]);
    output::show(global.output, &summary, || {
        let mut grid = Grid::new(["", "type", "id", "operation", "difference"]);
        for difference in &differences {
            let (sign, what) = describe(difference);
            grid.row([
                sign.to_owned(),
                type_number_text(difference.r#type),
                difference.id.clone(),
                operation_text(difference.operation),
                what,
            ]);
        }
        let changes =
            differences.iter().filter(|difference| difference.change != Change::None as i32).count();
        format!(
            "{}{} of {} would change; nothing was changed\n",
            grid.text(),
            changes - refused,
            differences.len()
        )
    })?;
    Ok(if refused == 0 { Exit::Ok } else { Exit::Failed })
}

fn describe(difference: &Difference) -> (&'static str, String) {
    match Change::try_from(difference.change).unwrap_or(Change::Unspecified) {
        Change::Add => ("+", "would be added".to_owned()),
        Change::Modify => ("~", format!("would change: {}", difference.fields.join(", "))),
        Change::Remove => ("-", "would be removed".to_owned()),
        Change::Refuse => ("!", format!("would be refused: {}", difference.cause)),
        Change::None | Change::Unspecified => ("=", "no change".to_owned()),
    }
}

fn operation_text(number: i32) -> String {
    OperationType::try_from(number)
        .map_or_else(|_| number.to_string(), |operation| operation.as_str_name().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(status: OperationStatus) -> StateResult {
        StateResult { status: status as i32, ..StateResult::default() }
    }

    #[test]
    fn the_exit_code_tells_refusals_from_what_will_complete() {
        use OperationStatus::{Failure, InvalidArg, OutOfOrder, Pending, Success};
        let verdict_of = |statuses: &[OperationStatus], waited| {
            verdict(&statuses.iter().map(|status| result(*status)).collect::<Vec<_>>(), waited)
        };
        assert_eq!(verdict_of(&[], false), Exit::Ok);
        assert_eq!(verdict_of(&[Success, Pending], false), Exit::Ok);
        assert_eq!(verdict_of(&[Success, Pending], true), Exit::Pending);
        for refused in [Failure, InvalidArg, OutOfOrder] {
            assert_eq!(verdict_of(&[Pending, refused, Success], true), Exit::Failed);
        }
    }

    #[test]
    fn delete_overrides_every_written_operation() {
        let text = "{vpcStates: {v: {operationType: CREATE}}, portStates: {p: {configuration: {id: p}}}}";
        let mut documents = document::parse("test", text).unwrap();
        set_operation(&mut documents[0].state, OperationType::Delete);
        let state = &documents[0].state;
        assert_eq!(state.vpc_states["v"].operation_type(), OperationType::Delete);
        assert_eq!(state.port_states["p"].operation_type(), OperationType::Delete);
    }
}
