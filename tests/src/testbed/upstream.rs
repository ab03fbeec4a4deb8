//! An upstream: a gRPC server of `RequestGoalStates` that knows goal states by address, pushes what it is asked for over its own
//! connection, and plays whatever an upstream may do: prompt, slow, silent, lying.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ncm_model::wire;
use ncm_model::wire::host_request::ResourceStateRequest;
use ncm_model::wire::host_request_reply::HostRequestOperationStatus;
use ncm_model::wire::{OperationStatus, RequestType};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::server::TcpConnectInfo;
use tonic::transport::{Channel, Server};
use tonic_prost::ProstCodec;

use super::agent::connect;
use super::namespace::Namespace;

/// How an upstream answers requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// As it should: it pushes, waits for the reply, and answers SUCCESS; FAILURE for what it does not know.
    Honest,
    /// It answers SUCCESS at once, and pushes so much later.
    PushLater(Duration),
    /// It answers SUCCESS and pushes nothing.
    PushNothing,
    /// It pushes and never answers.
    PushOnly,
    /// It pushes what it is asked for over a connection made for that, and answers nonsense.
    Garbage,
    /// It answers FAILURE to everything.
    Fail,
    /// It never answers.
    Silent,
    /// It ends the connection instead of answering.
    Hang,
    /// It refuses the call.
    Refuse,
    /// It answers with more than anybody should read.
    Flood,
}

/// A request that came.
#[derive(Clone, PartialEq, Debug)]
pub struct Asked {
    /// What is asked.
    pub request: ResourceStateRequest,
    /// Who asks.
    pub peer: SocketAddr,
    /// Number of the call that it came in, from 1.
    pub call: usize,
}

impl Asked {
    /// It is the word of a start.
    #[must_use]
    pub fn is_restart(&self) -> bool {
        self.request.request_type() == RequestType::AgentRestarted
    }
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    calls: usize,
    manner: Option<Manner>,
    delay: Duration,
    knows: HashMap<IpAddr, Arc<wire::GoalState>>,
    open: Vec<TcpStream>,
    connections: usize,
    failures: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    agent: Namespace,
    listener: SocketAddr,
    pusher: tokio::sync::Mutex<Option<Channel>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running upstream; dropping it ends it.
pub struct Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    /// Starts one that listens in `place`, and pushes to the agent in `agent`.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn start(place: &Namespace, address: SocketAddr, agent: &Namespace) -> Result<Self> {
        let listener = place.listen(address).context("let an upstream listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { manner: Some(Manner::Honest), ..State::default() }),
            changed: Condvar::new(),
            agent: agent.clone(),
            listener: SocketAddr::from(([127, 0, 0, 1], 50001)),
            pusher: tokio::sync::Mutex::default(),
        });
        let (end, ended) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(serve(listener, served, ended));
            }
        })?;
        Ok(Self { shared, address, end: Some(end), thread: Some(thread) })
    }

    /// Where it listens, as the agent's configuration has it.
    #[must_use]
    pub fn setting(&self) -> String {
        format!("{:?}", self.address.to_string())
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it: nobody listens there any more.
    pub fn close(&mut self) {
        self.cut();
        if let Some(end) = self.end.take() {
            let _gone = end.send(());
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }

    /// What is pushed when that address is asked for.
    pub fn knows(&self, ip: impl Into<IpAddr>, state: wire::GoalState) {
        self.shared.state().knows.insert(ip.into(), Arc::new(state));
    }

    /// From now on it answers so.
    pub fn answers(&self, manner: Manner) {
        self.shared.state().manner = Some(manner);
    }

    /// From now on it takes so long before it does anything.
    pub fn takes(&self, delay: Duration) {
        self.shared.state().delay = delay;
    }

    /// Everything that it was asked, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state().asked.clone()
    }

    /// Requests on demand by destination.
    #[must_use]
    pub fn asked_for(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for asked in self.shared.state().asked.iter().filter(|asked| !asked.is_restart()) {
            *counts.entry(asked.request.destination_ip.clone()).or_default() += 1;
        }
        counts
    }

    /// How many words of a start came.
    #[must_use]
    pub fn restarts(&self) -> usize {
        self.shared.state().asked.iter().filter(|asked| asked.is_restart()).count()
    }

    /// How many connections were made to it.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Waits until what was asked is as wanted.
    ///
    /// # Errors
    /// If it is not within `limit`.
    pub fn wait_for(&self, what: &str, limit: Duration, wanted: impl Fn(&[Asked]) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.state();
        while !wanted(&state.asked) {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "upstream waited in vain for {what}; it was asked {:?}", state.asked);
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.map_or_else(|error| error.into_inner().0, |(state, _)| state);
        }
        Ok(())
    }

    /// Ends all connections that there are.
    pub fn cut(&self) {
        for stream in self.shared.state().open.drain(..) {
            // The other end may have gone.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Fails if something went wrong while it pushed.
    ///
    /// # Errors
    /// What went wrong.
    pub fn expect_no_failures(&self) -> Result<()> {
        let failures = self.shared.state().failures.clone();
        ensure!(failures.is_empty(), "upstream could not push: {failures:?}");
        Ok(())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.close();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, ended: oneshot::Receiver<()>) {
    let listening = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
    let Ok(listener) = listening else { return };
    let connections = Arc::clone(&shared);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).map(move |stream| {
        let stream = stream?.into_std()?;
        stream.set_nodelay(true)?;
        let mut state = connections.state();
        state.connections += 1;
        state.open.push(stream.try_clone()?);
        connections.changed.notify_all();
        drop(state);
        tokio::net::TcpStream::from_std(stream)
    });
    let served = Server::builder().add_service(Provisioner(shared)).serve_with_incoming(incoming);
    tokio::select! {
        _ = served => {}
        _ = ended => {}
    }
}

/// `GoalStateProvisioner`, as upstream serves it.
#[derive(Clone)]
struct Provisioner(Arc<Shared>);

impl NamedService for Provisioner {
    const NAME: &'static str = "alcor.schema.GoalStateProvisioner";
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower::Service<http::Request<Body>> for Provisioner {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let handler = Handler(Arc::clone(&self.0));
        Box::pin(async move {
            if request.uri().path() != "/alcor.schema.GoalStateProvisioner/RequestGoalStates" {
                return Ok(tonic::Status::unimplemented("there is no such method").into_http());
            }
            let codec: ProstCodec<wire::HostRequestReply, wire::HostRequest> = ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec).unary(handler, request).await)
        })
    }
}

struct Handler(Arc<Shared>);

impl UnaryService<wire::HostRequest> for Handler {
    type Response = wire::HostRequestReply;
    type Future = Answer<Result<tonic::Response<wire::HostRequestReply>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<wire::HostRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { answer(&shared, request).await.map(tonic::Response::new) })
    }
}

async fn answer(
    shared: &Arc<Shared>,
    request: tonic::Request<wire::HostRequest>,
) -> Result<wire::HostRequestReply, tonic::Status> {
    let peer = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    let peer = peer.ok_or_else(|| tonic::Status::internal("nobody asks"))?;
    let requests = request.into_inner().state_requests;
    let (manner, delay, known) = {
        let mut state = shared.state();
        state.calls += 1;
        let call = state.calls;
        state.asked.extend(requests.iter().map(|request| Asked { request: request.clone(), peer, call }));
        shared.changed.notify_all();
        let known: Vec<Option<Arc<wire::GoalState>>> = requests
            .iter()
            .map(|request| state.knows.get(&request.destination_ip.parse().ok()?).cloned())
            .collect();
        (state.manner.unwrap_or(Manner::Honest), state.delay, known)
    };
    let row = |request: &ResourceStateRequest, status: OperationStatus| HostRequestOperationStatus {
        request_id: request.request_id.clone(),
        operation_status: status.into(),
    };
    let reply = |rows: Vec<HostRequestOperationStatus>| wire::HostRequestReply {
        format_version: 1,
        operation_statuses: rows,
        total_operation_time: 1,
    };
    let all = |status| reply(requests.iter().map(|request| row(request, status)).collect());
    if requests.iter().all(|request| request.request_type() == RequestType::AgentRestarted) {
        return Ok(all(OperationStatus::Success));
    }
    if !delay.is_zero() {
        sleep(delay).await;
    }
    let push: Vec<Arc<wire::GoalState>> = known.iter().flatten().cloned().collect();
    match manner {
        Manner::Honest => {
            shared.push(push, false).await;
            let rows = requests.iter().zip(&known).map(|(request, known)| {
                row(
                    request,
                    if known.is_some() { OperationStatus::Success } else { OperationStatus::Failure },
                )
            });
            Ok(reply(rows.collect()))
        }
        Manner::PushLater(later) => {
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                sleep(later).await;
                shared.push(push, false).await;
            });
            Ok(all(OperationStatus::Success))
        }
        Manner::PushNothing => Ok(all(OperationStatus::Success)),
        Manner::Fail => Ok(all(OperationStatus::Failure)),
        Manner::PushOnly => {
            shared.push(push, false).await;
            std::future::pending().await
        }
        Manner::Silent => std::future::pending().await,
        Manner::Refuse => Err(tonic::Status::unimplemented("not today")),
        Manner::Hang => {
            for stream in shared.state().open.drain(..) {
                drop(stream.shutdown(Shutdown::Both));
            }
            std::future::pending().await
        }
        Manner::Garbage => {
            let mut rows = Vec::new();
            for request in &requests {
                rows.push(HostRequestOperationStatus {
                    request_id: "nobody".to_owned(),
                    operation_status: 0,
                });
                rows.push(row(request, OperationStatus::Pending));
                rows.push(row(request, OperationStatus::OutOfOrder));
                rows.push(HostRequestOperationStatus {
                    request_id: request.request_id.clone(),
                    operation_status: 77,
                });
            }
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                sleep(Duration::from_millis(20)).await;
                shared.push(push, true).await;
            });
            Ok(reply(rows))
        }
        Manner::Flood => {
            let row = HostRequestOperationStatus { request_id: "x".repeat(1024), operation_status: 1 };
            Ok(reply(vec![row; 8 * 1024]))
        }
    }
}

impl Shared {
    /// Pushes to the agent; with `apart`, over a connection of its own. Returns when the agent has answered.
    async fn push(&self, states: Vec<Arc<wire::GoalState>>, apart: bool) {
        if states.is_empty() {
            return;
        }
        let first = self.try_push(&states, apart).await;
        // The agent may have been started again since.
        let pushed = if first.is_ok() { first } else { self.try_push(&states, true).await };
        if let Err(error) = pushed {
            self.state().failures.push(format!("{error:#}"));
        }
    }

    async fn try_push(&self, states: &[Arc<wire::GoalState>], apart: bool) -> Result<()> {
        let mut kept = self.pusher.lock().await;
        let channel = match kept.as_ref().filter(|_| !apart) {
            Some(channel) => channel.clone(),
            None => {
                let address = self.listener;
                let stream = self.agent.inside(|| Ok(TcpStream::connect(address)?))?;
                let channel = connect(stream).await?;
                *kept = Some(channel.clone()).filter(|_| !apart);
                channel
            }
        };
        drop(kept);
        let path = PathAndQuery::from_static("/alcor.schema.GoalStateProvisioner/PushNetworkResourceStates");
        let codec: ProstCodec<wire::GoalState, wire::GoalStateOperationReply> = ProstCodec::default();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| anyhow!("{error}"))?;
        let reply = client.unary(tonic::Request::new(merged(states)), path, codec).await?.into_inner();
        let bad = reply.operation_statuses.iter().find(|row| row.operation_status != 0);
        ensure!(bad.is_none(), "the agent answered {bad:?}");
        Ok(())
    }
}

/// Goal states in one message, each resource once.
fn merged(states: &[Arc<wire::GoalState>]) -> wire::GoalState {
    let mut all = wire::GoalState { format_version: 101, ..Default::default() };
    for state in states {
        all.neighbor_states.extend(state.neighbor_states.iter().cloned());
        for router in &state.router_states {
            if !all.router_states.contains(router) {
                all.router_states.push(router.clone());
            }
        }
        for subnet in &state.subnet_states {
            if !all.subnet_states.contains(subnet) {
                all.subnet_states.push(subnet.clone());
            }
        }
    }
    all
}
