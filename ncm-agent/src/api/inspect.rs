//! The services of package `ncm.v1`, for the operator's tool: looking inside, and applying with causes.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use ncm_common::tables::LAYOUT_VERSION;
use ncm_model::wire::ResourceType;
use ncm_model::{ChangeKind, Cursor, DecodeError, Filter, Kind, Message, Origin, StateView};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::budget::{Budget, Reserved};
use super::states::Reader;
use crate::engine::{ApplyError, Engine, Remedy, Role};
use crate::inspect::read::{ReadError, TableReader, table_message};
use crate::inspect::{KeyError, descriptions};
use crate::ncm_v1::difference::Change;
use crate::ncm_v1::inspect_server::{Inspect, InspectServer};
use crate::ncm_v1::operate_server::{Operate, OperateServer};
use crate::ncm_v1::{self, InterfaceRole};

/// Resources that are looked at in one go: goal states wait meanwhile.
const STATES_AT_ONCE: usize = 1024;

/// Results in one message.
const RESULTS_AT_ONCE: usize = 1024;

/// Messages of a stream that wait for a slow reader.
const MESSAGES_AHEAD: usize = 4;

/// Differences that a preview shows.
const MOST_DIFFERENCES: usize = 100_000;

/// Our own fields in `alcor.schema` that this agent understands.
const EXTENSIONS: &[&str] =
    &["NeighborConfiguration.security_group_ids=1000", "PortConfiguration.interface_name=1000"];

/// The services over one engine.
#[derive(Clone, Debug)]
pub struct Inspection {
    engine: Engine,
    budget: Budget,
}

/// The inspection service.
#[must_use]
pub fn service(engine: Engine, budget: Budget) -> InspectServer<Inspection> {
    let largest = largest_message(&engine);
    InspectServer::new(Inspection { engine, budget })
        .max_decoding_message_size(largest)
        .max_encoding_message_size(usize::MAX)
}

/// The service that applies goal states for the operator.
#[must_use]
pub fn operate(engine: Engine, budget: Budget) -> OperateServer<Inspection> {
    let largest = largest_message(&engine);
    OperateServer::new(Inspection { engine, budget })
        .max_decoding_message_size(largest)
        .max_encoding_message_size(usize::MAX)
}

fn largest_message(engine: &Engine) -> usize {
    usize::try_from(engine.config().api.max_message_bytes).unwrap_or(usize::MAX)
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Runs `work`, which reads tables or the model, on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))
}

/// Runs `work` on a thread that may block, and streams what it sends.
fn streamed<T: Send + 'static>(
    work: impl FnOnce(&Sender<Result<T, Status>>) + Send + 'static,
) -> Response<Stream<T>> {
    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
    tokio::task::spawn_blocking(move || work(&sender));
    Response::new(ReceiverStream::new(receiver))
}

impl Inspection {
    /// Waits for room for what a goal state of that many bytes takes while it is worked on.
    async fn reserve(&self, goal_state: &[u8]) -> Result<Reserved, Status> {
        let refused = || {
            let length = goal_state.len();
            Status::resource_exhausted(format!("{length} bytes are more than api.max_buffered_bytes allows"))
        };
        let length = u32::try_from(goal_state.len()).map_err(|_| refused())?;
        self.budget.reserve(length).await.ok_or_else(refused)
    }

    fn tables(&self) -> TableReader {
        TableReader::new(self.engine.dataplane().tables().clone())
    }

    fn info(&self) -> ncm_v1::GetInfoReply {
        let config = self.engine.config();
        let text = |address: Option<String>| address.unwrap_or_default();
        ncm_v1::GetInfoReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout_versions: vec![LAYOUT_VERSION],
            extensions: EXTENSIONS.iter().map(|name| (*name).to_owned()).collect(),
            instance: config.instance.clone(),
            node_id: config.node.id.clone(),
            node_addresses: config.node.addresses.iter().map(ToString::to_string).collect(),
            endpoint_v4: text(config.underlay.endpoint_v4.map(|address| address.to_string())),
            endpoint_v6: text(config.underlay.endpoint_v6.map(|address| address.to_string())),
            started_at: self.engine.started().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            pid: std::process::id(),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
        }
    }

    fn status(&self) -> ncm_v1::GetStatusReply {
        let engine = &self.engine;
        let hosts = engine.remote_hosts();
        let interfaces = self.interfaces();
        ncm_v1::GetStatusReply {
            info: Some(self.info()),
            resources: engine.resource_counts().into_iter().map(resource_count).collect(),
            tables: self.fill(),
            alarms: engine.alarms(),
            heartbeat_age_ms: engine.heartbeat_age_ms().unwrap_or_default(),
            programs: self.programs(&interfaces),
            interfaces,
            policy: self.tables().policy_by_groups().unwrap_or_default(),
            listeners: engine.config().api.listeners.iter().map(ToString::to_string).collect(),
            underlay: Some(ncm_v1::UnderlayCount {
                hosts: hosts.len() as u64,
                unresolved: hosts.iter().filter(|host| host.resolved == 0).count() as u64,
            }),
            upstream: engine.upstream().map(|(address, standing)| ncm_v1::UpstreamStatus {
                address: address.to_string(),
                connected: standing.connected,
                problem: standing.problem,
                outstanding: standing.requests as u64,
                held_packets: standing.held_packets as u64,
                held_bytes: standing.held_bytes as u64,
            }),
        }
    }

    fn fill(&self) -> Vec<ncm_v1::Table> {
        let fill = self.engine.table_fill();
        let tables = descriptions().into_iter().filter_map(|description| {
            let fill = fill.iter().find(|fill| fill.spec.name == description.spec.name)?;
            Some(table_message(&description, fill.entries, fill.capacity, fill.memory))
        });
        tables.collect()
    }

    fn interfaces(&self) -> Vec<ncm_v1::Interface> {
        let mut ports: HashMap<String, String> = HashMap::new();
        let filter = Filter { resource_type: Some(ResourceType::Port), ..Filter::default() };
        self.each_batch(&filter, &mut |states| {
            ports.extend(states.into_iter().map(|state| (state.interface, state.id)));
            true
        });
        let interfaces = self.engine.interfaces().into_iter().map(|interface| ncm_v1::Interface {
            port: ports.get(&interface.name).cloned().unwrap_or_default(),
            ifindex: interface.ifindex,
            role: match interface.role {
                Role::Underlay => InterfaceRole::Underlay,
                Role::Relay => InterfaceRole::Relay,
                Role::Guest => InterfaceRole::Guest,
            } as i32,
            configured_mode: interface.configured_mode.to_owned(),
            hook: interface.hook.map(hook_word).unwrap_or_default().to_owned(),
            program: interface.hook.map(ncm_dataplane::Hook::program).unwrap_or_default().to_owned(),
            reason: interface.reason,
            mtu: interface.mtu,
            xdp_target: interface.xdp_target,
            name: interface.name,
        });
        interfaces.collect()
    }

    fn programs(&self, interfaces: &[ncm_v1::Interface]) -> Vec<ncm_v1::Program> {
        // Without the kernel's figures the list is empty: nothing else is known of the programs.
        let programs = self.engine.dataplane().programs().unwrap_or_default().into_iter();
        let programs = programs.map(|program| {
            let attached = interfaces.iter().filter(|interface| interface.program == program.name);
            ncm_v1::Program {
                attachments: u32::try_from(attached.count()).unwrap_or(u32::MAX),
                name: program.name,
                id: program.id,
                verified_instructions: program.verified_instructions,
            }
        });
        programs.collect()
    }

    /// Hands held resources to `take`, in batches, until there are no more or it wants none. The model is free in between.
    fn each_batch(&self, filter: &Filter, take: &mut dyn FnMut(Vec<StateView>) -> bool) {
        let mut from = Cursor::default();
        loop {
            let (states, next) = self.engine.with_model(|model| model.list(filter, from, STATES_AT_ONCE));
            let wanted = take(states);
            match next {
                Some(next) if wanted => from = next,
                _ => return,
            }
        }
    }
}

fn hook_word(hook: ncm_dataplane::Hook) -> &'static str {
    use ncm_dataplane::Hook;
    match hook {
        Hook::WireXdp | Hook::GuestXdp => "xdp",
        Hook::WireTc | Hook::RelayTc | Hook::GuestTc | Hook::HandUpTc | Hook::HandDownTc => "tc",
    }
}

fn resource_count(count: ncm_model::StateCount) -> ncm_v1::ResourceCount {
    ncm_v1::ResourceCount {
        r#type: count.resource_type as i32,
        status: count.status as i32,
        count: count.count,
    }
}

/// A held resource as a message.
pub(super) fn resource_state(state: StateView, engine: &Engine) -> ncm_v1::ResourceState {
    let origin = match state.origin {
        Origin::Controller => ncm_v1::Origin::Controller,
        Origin::Tool => ncm_v1::Origin::Tool,
        Origin::OnDemand => ncm_v1::Origin::OnDemand,
        Origin::Queue => ncm_v1::Origin::Queue,
    };
    ncm_v1::ResourceState {
        r#type: state.resource_type as i32,
        id: state.id,
        neighbor_type: state.variant.to_owned(),
        origin: origin as i32,
        version: state.version,
        revision: state.revision,
        request_id: state.request_id,
        changed_at: state.time,
        status: state.status as i32,
        cause: state.cause,
        state: state.state,
        mtu: if state.interface.is_empty() { 0 } else { engine.guest_mtu(&state.interface) },
    }
}

fn difference(difference: ncm_model::Difference) -> ncm_v1::Difference {
    let change = match difference.change {
        ChangeKind::Added => Change::Add,
        ChangeKind::Changed => Change::Modify,
        ChangeKind::Removed => Change::Remove,
        ChangeKind::Unchanged => Change::None,
        ChangeKind::Refused => Change::Refuse,
    };
    // Of a refusal the fields are its status and its cause.
    let (fields, cause) = match change {
        Change::Refuse => (Vec::new(), difference.fields.join(": ")),
        _ => (difference.fields, String::new()),
    };
    ncm_v1::Difference {
        r#type: difference.resource_type as i32,
        id: difference.id,
        operation: difference.operation as i32,
        change: change as i32,
        fields,
        cause,
    }
}

fn read_error(error: ReadError) -> Status {
    let text = error.to_string();
    match error {
        ReadError::Key(KeyError::Unknown { .. }) => Status::not_found(text),
        // Not "not found": what is asked for cannot exist.
        ReadError::NoTable { .. } | ReadError::Condition { .. } | ReadError::Key(_) => {
            Status::invalid_argument(text)
        }
        ReadError::NoEntry { .. } | ReadError::NoPort(_) => Status::not_found(text),
        ReadError::Dataplane(_) => Status::internal(text),
    }
}

#[tonic::async_trait]
impl Inspect for Inspection {
    async fn get_info(
        &self,
        _: Request<ncm_v1::GetInfoRequest>,
    ) -> Result<Response<ncm_v1::GetInfoReply>, Status> {
        Ok(Response::new(self.info()))
    }

    async fn get_status(
        &self,
        _: Request<ncm_v1::GetStatusRequest>,
    ) -> Result<Response<ncm_v1::GetStatusReply>, Status> {
        let this = self.clone();
        blocking(move || this.status()).await.map(Response::new)
    }

    type ListStatesStream = Stream<ncm_v1::ListStatesReply>;

    async fn list_states(
        &self,
        request: Request<ncm_v1::ListStatesRequest>,
    ) -> Result<Response<Self::ListStatesStream>, Status> {
        // The operator's tool may take its time.
        let (reader, response) = Reader::new(None)?;
        tokio::spawn(super::states::list(self.engine.clone(), request.into_inner(), reader));
        Ok(response)
    }

    async fn preview_states(
        &self,
        request: Request<ncm_v1::PreviewStatesRequest>,
    ) -> Result<Response<ncm_v1::PreviewStatesReply>, Status> {
        let goal_state = request.into_inner().goal_state;
        // Held to the end of the work, also if the asker has gone meanwhile.
        let reserved = self.reserve(&goal_state).await?;
        let this = self.clone();
        let preview = move || {
            let _reserved = reserved;
            let message = Message::decode_v2(goal_state.into())?;
            let differences = this.engine.with_model(|model| model.preview(&message, MOST_DIFFERENCES));
            Ok(differences.into_iter().map(difference).collect())
        };
        let differences: Result<_, DecodeError> = blocking(preview).await?;
        let differences = differences.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(ncm_v1::PreviewStatesReply { differences }))
    }

    async fn list_tables(
        &self,
        _: Request<ncm_v1::ListTablesRequest>,
    ) -> Result<Response<ncm_v1::ListTablesReply>, Status> {
        let this = self.clone();
        let tables = blocking(move || this.fill()).await?;
        Ok(Response::new(ncm_v1::ListTablesReply { tables }))
    }

    type DumpTableStream = Stream<ncm_v1::DumpTableReply>;

    async fn dump_table(
        &self,
        request: Request<ncm_v1::DumpTableRequest>,
    ) -> Result<Response<Self::DumpTableStream>, Status> {
        let request = request.into_inner();
        let tables = self.tables();
        Ok(streamed(move |sender| {
            let take = &mut |part| sender.blocking_send(Ok(part)).is_ok();
            if let Err(error) = tables.dump(&request.table, request.include_empty, &request.only, take) {
                // A reader that has gone does not want to know either.
                drop(sender.blocking_send(Err(read_error(error))));
            }
        }))
    }

    async fn get_entry(
        &self,
        request: Request<ncm_v1::GetEntryRequest>,
    ) -> Result<Response<ncm_v1::GetEntryReply>, Status> {
        let request = request.into_inner();
        let tables = self.tables();
        let entry = blocking(move || tables.entry(&request.table, &request.key)).await?;
        entry.map(Response::new).map_err(read_error)
    }

    async fn get_drops(
        &self,
        request: Request<ncm_v1::GetDropsRequest>,
    ) -> Result<Response<ncm_v1::GetDropsReply>, Status> {
        let port = request.into_inner().port;
        let tables = self.tables();
        let drops = blocking(move || tables.drops(&port)).await?;
        drops.map(Response::new).map_err(read_error)
    }

    async fn get_counters(
        &self,
        _: Request<ncm_v1::GetCountersRequest>,
    ) -> Result<Response<ncm_v1::GetCountersReply>, Status> {
        let this = self.clone();
        let families = blocking(move || this.engine.families()).await?;
        let counters = families.into_iter().map(|family| ncm_v1::Counter {
            name: family.name.to_owned(),
            help: family.help.to_owned(),
            kind: family.kind.to_owned(),
            samples: family.samples.into_iter().map(sample).collect(),
        });
        Ok(Response::new(ncm_v1::GetCountersReply { counters: counters.collect() }))
    }
}

fn sample(sample: crate::telemetry::Sample) -> ncm_v1::Sample {
    let labels = sample.labels.into_iter();
    let labels = labels.map(|(name, value)| ncm_v1::Label { name: name.to_owned(), value });
    ncm_v1::Sample { labels: labels.collect(), value: sample.value }
}

#[tonic::async_trait]
impl Operate for Inspection {
    type ApplyStatesStream = Stream<ncm_v1::ApplyStatesReply>;

    async fn verify(
        &self,
        request: Request<ncm_v1::VerifyRequest>,
    ) -> Result<Response<ncm_v1::VerifyReply>, Status> {
        let ncm_v1::VerifyRequest { repair, prune } = request.into_inner();
        let verified = self.engine.verify(Remedy { repair, prune }).await;
        let verified = verified.map_err(|error| Status::internal(crate::explained(&error)))?;
        let [missing, different, unclaimed, detached, foreign] = verified.counts;
        let (written, removed) = verified.repaired;
        let deviations = verified.deviations.into_iter().map(|deviation| ncm_v1::Deviation {
            // The kinds are in the order of their numbers.
            kind: deviation.kind as i32 + 1,
            place: deviation.place,
            key: deviation.key,
            expected: deviation.expected,
            found: deviation.found,
        });
        let deviations = deviations.collect();
        Ok(Response::new(ncm_v1::VerifyReply {
            deviations,
            missing,
            different,
            unclaimed,
            detached,
            foreign,
            written,
            removed,
            attached: verified.attached,
        }))
    }

    async fn apply_states(
        &self,
        request: Request<ncm_v1::ApplyStatesRequest>,
    ) -> Result<Response<Self::ApplyStatesStream>, Status> {
        let goal_state = request.into_inner().goal_state;
        let reserved = self.reserve(&goal_state).await?;
        let results = self.engine.apply(goal_state.into(), Kind::V2, Origin::Tool, move |applied| {
            // Held to the end of the work, also if the asker has gone meanwhile.
            let _reserved = reserved;
            let results = applied.rows().map(|row| ncm_v1::StateResult {
                r#type: row.resource_type as i32,
                id: row.id.into_owned(),
                operation: row.operation,
                status: row.status as i32,
                cause: row.cause.into_owned(),
            });
            results.collect::<Vec<_>>()
        });
        let results = results.await.map_err(|error| {
            let text = error.to_string();
            match error {
                ApplyError::Decode(_) => Status::invalid_argument(text),
                ApplyError::Stopping | ApplyError::NotKept(_) => Status::unavailable(text),
                ApplyError::Internal(_) => Status::internal(text),
            }
        })?;
        Ok(streamed(move |sender| {
            let mut results = results.into_iter();
            loop {
                let part: Vec<_> = results.by_ref().take(RESULTS_AT_ONCE).collect();
                let done = part.is_empty();
                if done || sender.blocking_send(Ok(ncm_v1::ApplyStatesReply { results: part })).is_err() {
                    return;
                }
            }
        }))
    }
}
