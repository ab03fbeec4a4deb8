//! The goal-state services of package `alcor.schema`: `GoalStateProvisioner` and `SubscribeInfoProvisioner`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use ncm_model::Origin;
use ncm_model::wire::{NodeSubscribeInfo, OperationStatus, SubscribeOperation, SubscribeOperationReply};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::codec::{self, Bounds, Messages, Received};
use super::reply::Reply;
use crate::engine::{ApplyError, Engine, Kind};
use crate::telemetry::own;

/// Topics that are remembered at most.
const TOPICS: usize = 4096;

/// What both services need.
#[derive(Clone, Debug)]
pub struct Provisioner {
    engine: Engine,
    origin: Origin,
    bounds: Bounds,
    topics: Arc<Topics>,
    calls: Arc<Semaphore>,
}

/// A call that is open: one of a bounded number.
struct Call {
    provisioner: Provisioner,
    messages: Messages,
    _permit: OwnedSemaphorePermit,
}

/// Message-queue topics that the controller told this node to follow, with their keys.
#[derive(Debug, Default)]
pub struct Topics(Mutex<BTreeSet<(String, String)>>);

impl Provisioner {
    /// Services that apply what they get to `engine`, as coming from `origin`, in as many calls at a time as `calls` has.
    #[must_use]
    pub fn new(
        engine: Engine,
        origin: Origin,
        bounds: Bounds,
        topics: Arc<Topics>,
        calls: Semaphore,
    ) -> Self {
        Self { engine, origin, bounds, topics, calls: Arc::new(calls) }
    }

    /// Begins a call, and gives what `answer` makes of it.
    fn open(self, body: Body, answer: impl FnOnce(Call) -> Response<Body>) -> Response<Body> {
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            own::MESSAGES_REFUSED.increment();
            return Status::resource_exhausted("too many calls are open at a time").into_http();
        };
        let messages = Messages::new(body, self.bounds.clone());
        answer(Call { provisioner: self, messages, _permit: permit })
    }

    /// Applies one message and encodes the reply.
    async fn push(&self, received: Received, kind: Kind, number: u64) -> Result<Bytes, Status> {
        let Received { bytes, reserved } = received;
        own::BUFFERED_BYTES.set(self.bounds.budget.used());
        // The reservation is held to the end of the work, also if the sender has gone meanwhile.
        let answer =
            self.engine.apply(bytes, kind, self.origin, move |applied| (Reply::of(applied), reserved));
        match answer.await {
            Ok((reply, reserved)) => {
                drop(reserved);
                own::BUFFERED_BYTES.set(self.bounds.budget.used());
                Ok(reply.finish())
            }
            Err(error) => {
                own::MESSAGES_REFUSED.increment();
                let code = match error {
                    ApplyError::Decode(_) => Code::InvalidArgument,
                    ApplyError::Stopping | ApplyError::NotKept(_) => Code::Unavailable,
                    ApplyError::Internal(_) => Code::Internal,
                };
                tracing::warn!("message {number} of a stream: {error}");
                Err(Status::new(code, format!("message {number}: {error}")))
            }
        }
    }

    /// The only message of a unary call.
    async fn only(messages: &mut Messages) -> Result<Received, Status> {
        let message = messages.next().await?;
        message.ok_or_else(|| Status::invalid_argument("the call ends without a message"))
    }

    fn unary(self, body: Body, kind: Kind) -> Response<Body> {
        self.open(body, |mut call| {
            codec::response(futures::stream::once(async move {
                let received = Self::only(&mut call.messages).await?;
                call.provisioner.push(received, kind, 1).await
            }))
        })
    }

    /// One reply for each message, in order. The stream is its own state: while it waits for the next message there is
    /// nothing but that.
    fn stream(self, body: Body) -> Response<Body> {
        self.open(body, |call| {
            let stream = (call, own::STREAMS.hold());
            codec::response(futures::stream::unfold(Some(stream), |stream| async move {
                let (mut call, held) = stream?;
                let received = match call.messages.next().await {
                    Ok(Some(received)) => received,
                    Ok(None) => return None,
                    Err(status) => {
                        own::MESSAGES_REFUSED.increment();
                        return Some((Err(status), None));
                    }
                };
                let number = call.messages.number();
                match call.provisioner.push(received, Kind::V2, number).await {
                    Ok(reply) => Some((Ok(reply), Some((call, held)))),
                    Err(status) => Some((Err(status), None)),
                }
            }))
        })
    }

    fn subscribe(self, body: Body) -> Response<Body> {
        self.open(body, |mut call| {
            codec::response(futures::stream::once(async move {
                let received = Self::only(&mut call.messages).await?;
                let info = NodeSubscribeInfo::decode(received.bytes).map_err(|error| {
                    Status::invalid_argument(format!("message 1: not a NodeSubscribeInfo: {error}"))
                })?;
                let status = call.provisioner.topics.change(info);
                let reply = SubscribeOperationReply { operation_status: status.into() };
                Ok(codec::framed(&reply.encode_to_vec()))
            }))
        })
    }
}

impl Topics {
    fn change(&self, info: NodeSubscribeInfo) -> OperationStatus {
        let subscribe = info.subscribe_operation() == SubscribeOperation::Subscribe;
        if info.topic.is_empty() {
            return OperationStatus::InvalidArg;
        }
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (info.topic, info.key);
        if !subscribe {
            topics.remove(&entry);
        } else if topics.len() < TOPICS || topics.contains(&entry) {
            topics.insert(entry);
        } else {
            tracing::error!("a subscription is refused: {TOPICS} topics are followed already");
            return OperationStatus::Failure;
        }
        own::SUBSCRIPTIONS.set(topics.len() as u64);
        OperationStatus::Success
    }
}

macro_rules! service {
    ($(#[$meta:meta])* $name:ident = $full:literal, $call:ident, $body:ident { $($route:literal => $answer:expr,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $name(pub Provisioner);

        impl NamedService for $name {
            const NAME: &'static str = $full;
        }

        impl tower::Service<Request<Body>> for $name {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Self::Future {
                let $call = self.0.clone();
                let (parts, $body) = request.into_parts();
                let response = match parts.uri.path() {
                    $(concat!("/", $full, "/", $route) => $answer,)+
                    other => Status::unimplemented(format!("there is no method {other}")).into_http(),
                };
                Box::pin(std::future::ready(Ok(response)))
            }
        }
    };
}

service! {
    /// `GoalStateProvisioner`
    GoalStates = "alcor.schema.GoalStateProvisioner", call, body {
        "PushNetworkResourceStates" => call.unary(body, Kind::V1),
        "PushGoalStatesStream" => call.stream(body),
        "PushGoalstates" => call.unary(body, Kind::Rules),
        "RequestGoalStates" => {
            Status::unimplemented("RequestGoalStates is served by the controller, not by an agent").into_http()
        },
    }
}

service! {
    /// `SubscribeInfoProvisioner`
    Subscriptions = "alcor.schema.SubscribeInfoProvisioner", call, body {
        "PushNodeSubscribeInfo" => call.subscribe(body),
    }
}
