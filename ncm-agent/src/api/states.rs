//! The service `States` of package `ncm.v1`: what is held, for controllers to compare and to follow.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ncm_model::wire::{OperationStatus, ResourceType};
use ncm_model::{Change, Cursor, Filter, Gone, StateView};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::inspect::resource_state;
use crate::engine::{Engine, FollowError, Followed, Follower, Part};
use crate::ncm_v1::states_server::{States, StatesServer};
use crate::ncm_v1::{self, state_change::Kind};

/// Resources that are looked at in one go: goal states wait meanwhile.
const STATES_AT_ONCE: usize = 1024;

/// Messages of a stream that wait for a slow reader.
const MESSAGES_AHEAD: usize = 4;

/// Listings and digests at a time, over all listeners.
const CALLS: usize = 16;

/// What a stream of ours answers with.
pub(super) type Stream<T> = ReceiverStream<Result<T, Status>>;

/// The service over one engine.
#[derive(Clone, Debug)]
pub struct HeldStates {
    engine: Engine,
    calls: Arc<Semaphore>,
    stall: Duration,
}

impl HeldStates {
    /// The service; a reader that takes nothing for as long as `stall` is cut off.
    #[must_use]
    pub fn new(engine: Engine, stall: Duration) -> Self {
        Self { engine, calls: Arc::new(Semaphore::new(CALLS)), stall }
    }

    /// As a service of gRPC.
    #[must_use]
    pub fn service(&self) -> StatesServer<Self> {
        StatesServer::new(self.clone()).max_encoding_message_size(usize::MAX)
    }

    fn call(&self) -> Result<OwnedSemaphorePermit, Status> {
        let refused = || Status::resource_exhausted(format!("{CALLS} calls are being answered already"));
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_| refused())
    }
}

/// The way to a reader. There is always room for what it is told last.
pub(super) struct Reader<T> {
    sender: mpsc::Sender<Result<T, Status>>,
    last: mpsc::OwnedPermit<Result<T, Status>>,
    stall: Option<Duration>,
}

impl<T: Send + 'static> Reader<T> {
    /// A reader, and the answer that it reads. With `stall`, one that takes nothing for so long is cut off.
    pub(super) fn new(stall: Option<Duration>) -> Result<(Self, Response<Stream<T>>), Status> {
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD + 1);
        let last =
            sender.clone().try_reserve_owned().map_err(|_| Status::internal("no room in a new channel"))?;
        Ok((Self { sender, last, stall }, Response::new(ReceiverStream::new(receiver))))
    }

    /// Sends a message; gives the reader back unless it has gone, or was cut off.
    async fn send(self, message: T) -> Option<Self> {
        let Some(stall) = self.stall else {
            return self.sender.send(Ok(message)).await.is_ok().then_some(self);
        };
        match tokio::time::timeout(stall, self.sender.send(Ok(message))).await {
            Ok(sent) => sent.is_ok().then_some(self),
            Err(_) => {
                let seconds = stall.as_secs();
                self.end(Status::resource_exhausted(format!(
                    "nothing was read for {seconds} s: read faster, or for less"
                )));
                None
            }
        }
    }

    /// Ends the stream with an error.
    fn end(self, status: Status) {
        self.last.send(Err(status));
    }
}

/// Sends held resources in batches. The model is free in between.
pub(super) async fn list(
    engine: Engine,
    request: ncm_v1::ListStatesRequest,
    mut reader: Reader<ncm_v1::ListStatesReply>,
) {
    let filter = filter(&request);
    let types: HashSet<i32> = request.types.into_iter().collect();
    let statuses: HashSet<i32> = request.statuses.into_iter().collect();
    let ids: HashSet<String> = request.ids.into_iter().collect();
    let wanted = move |state: &StateView| {
        (types.is_empty() || types.contains(&(state.resource_type as i32)))
            && (statuses.is_empty() || statuses.contains(&(state.status as i32)))
            && (ids.is_empty() || ids.contains(&state.id))
    };
    let shared = Arc::new((engine, filter, wanted));
    let mut from = Cursor::default();
    loop {
        let work = Arc::clone(&shared);
        let part = tokio::task::spawn_blocking(move || {
            let (engine, filter, wanted) = &*work;
            let (states, next) = engine.with_model(|model| model.list(filter, from, STATES_AT_ONCE));
            let states = states.into_iter().filter(wanted).map(|state| resource_state(state, engine));
            (states.collect::<Vec<_>>(), next)
        });
        let (states, next) = match part.await {
            Ok(part) => part,
            Err(error) => return reader.end(Status::internal(error.to_string())),
        };
        if !states.is_empty() {
            match reader.send(ncm_v1::ListStatesReply { states }).await {
                Some(still) => reader = still,
                None => return,
            }
        }
        match next {
            Some(next) => from = next,
            None => return,
        }
    }
}

/// The one filter of the model that lets through no less than the request wants.
fn filter(request: &ncm_v1::ListStatesRequest) -> Filter {
    fn only<T>(list: &[T]) -> Option<&T> {
        list.first().filter(|_| list.len() == 1)
    }
    Filter {
        resource_type: only(&request.types).and_then(|number| ResourceType::try_from(*number).ok()),
        id: only(&request.ids).cloned(),
        status: only(&request.statuses).and_then(|number| OperationStatus::try_from(*number).ok()),
        with_state: request.include_state,
        ..Filter::default()
    }
}

fn refusal(error: &FollowError) -> Status {
    let text = error.to_string();
    match error {
        FollowError::Forgotten(_) | FollowError::OtherHistory(_) | FollowError::Ahead(_) => {
            Status::out_of_range(text)
        }
        FollowError::TooMany => Status::resource_exhausted(text),
        FollowError::Stopping => Status::unavailable(text),
    }
}

/// Tells a reader of all that changes.
async fn tell(mut follower: Follower, engine: Engine, mut reader: Reader<ncm_v1::WatchStatesReply>) {
    loop {
        let part = tokio::select! {
            part = follower.next() => part,
            () = reader.sender.closed() => return,
        };
        let part = match part {
            Ok(part) => part,
            Err(error) => return reader.end(refusal(&error)),
        };
        match reader.send(reply(part, follower.history(), &engine)).await {
            Some(still) => reader = still,
            None => return,
        }
    }
}

fn reply(part: Part, history: u64, engine: &Engine) -> ncm_v1::WatchStatesReply {
    let change =
        |kind: Kind, version, state| ncm_v1::StateChange { kind: kind as i32, version, state: Some(state) };
    let held = part.changes.into_iter().map(|told| match told {
        Change::Held(view) => change(Kind::Held, view.version, resource_state(view, engine)),
        Change::Gone { version, gone } => change(Kind::Gone, version, gone_state(gone)),
    });
    let statuses =
        part.statuses.into_iter().map(|view| change(Kind::Status, 0, resource_state(view, engine)));
    ncm_v1::WatchStatesReply {
        changes: held.chain(statuses).collect(),
        history,
        version: part.version,
        synchronised: part.synchronised,
        statuses_cut: part.cut,
    }
}

fn gone_state(gone: Gone) -> ncm_v1::ResourceState {
    ncm_v1::ResourceState {
        r#type: gone.resource_type as i32,
        neighbor_type: gone.variant().to_owned(),
        id: gone.id.into(),
        ..Default::default()
    }
}

fn digests(engine: &Engine, types: &[i32]) -> ncm_v1::GetDigestReply {
    let (mut digests, (history, version)) = engine.digests();
    digests.retain(|digest| types.is_empty() || types.contains(&(digest.resource_type as i32)));
    let mut sums: BTreeMap<i32, (u64, u128)> = BTreeMap::new();
    for digest in &digests {
        let (count, sum) = sums.entry(digest.resource_type as i32).or_default();
        (*count, *sum) = (*count + digest.count, sum.wrapping_add(digest.sum));
    }
    let message = |kind: i32, vpc_id: String, count, sum: u128| ncm_v1::Digest {
        r#type: kind,
        vpc_id,
        count,
        digest: format!("{sum:032x}"),
    };
    ncm_v1::GetDigestReply {
        types: sums
            .into_iter()
            .map(|(kind, (count, sum))| message(kind, String::new(), count, sum))
            .collect(),
        digests: digests
            .into_iter()
            .map(|digest| message(digest.resource_type as i32, digest.vpc, digest.count, digest.sum))
            .collect(),
        history,
        version,
    }
}

#[tonic::async_trait]
impl States for HeldStates {
    async fn get_digest(
        &self,
        request: Request<ncm_v1::GetDigestRequest>,
    ) -> Result<Response<ncm_v1::GetDigestReply>, Status> {
        let (call, engine, types) = (self.call()?, self.engine.clone(), request.into_inner().types);
        let digests = tokio::task::spawn_blocking(move || digests(&engine, &types)).await;
        drop(call);
        digests.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    type ListStatesStream = Stream<ncm_v1::ListStatesReply>;

    async fn list_states(
        &self,
        request: Request<ncm_v1::ListStatesRequest>,
    ) -> Result<Response<Self::ListStatesStream>, Status> {
        let (call, engine) = (self.call()?, self.engine.clone());
        let (reader, response) = Reader::new(Some(self.stall))?;
        tokio::spawn(async move {
            list(engine, request.into_inner(), reader).await;
            drop(call);
        });
        Ok(response)
    }

    type WatchStatesStream = Stream<ncm_v1::WatchStatesReply>;

    async fn watch_states(
        &self,
        request: Request<ncm_v1::WatchStatesRequest>,
    ) -> Result<Response<Self::WatchStatesStream>, Status> {
        let request = request.into_inner();
        let followed = Followed {
            history: request.history,
            version: request.version,
            types: request.types,
            with_state: request.include_state,
        };
        let follower = self.engine.follow(followed).map_err(|error| refusal(&error))?;
        let (reader, response) = Reader::new(Some(self.stall))?;
        tokio::spawn(tell(follower, self.engine.clone(), reader));
        Ok(response)
    }
}
