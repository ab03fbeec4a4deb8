//! A controller with a connection of its own to a host's agent: several at a time, and ones that misbehave.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ncm_model::wire;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

use super::agent::{LISTENER, Statuses};
use super::namespace::Namespace;

/// A controller with a connection of its own. May go to another thread.
pub struct Controller {
    runtime: Runtime,
    channel: Channel,
}

/// What lies between a controller and the agent.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// After so many bytes to the agent it is cut.
    pub cut_after: Option<usize>,
    /// While this is set, nothing that the agent sends is read.
    pub deaf: Arc<AtomicBool>,
}

impl Controller {
    /// Connects to the agent in a namespace.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn connect(ns: &Namespace) -> Result<Self> {
        Self::over(ns, &Line::default())
    }

    /// The same over a line with peculiarities.
    ///
    /// # Errors
    /// If the agent does not listen.
    pub fn over(ns: &Namespace, line: &Line) -> Result<Self> {
        let address: SocketAddr = LISTENER.parse()?;
        let agent = ns.inside(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(5))?))?;
        let (near, far) = UnixStream::pair()?;
        forward(agent, far, line)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        near.set_nonblocking(true)?;
        let channel = runtime.block_on(async {
            let mut stream = Some(tokio::net::UnixStream::from_std(near)?);
            let connector = tower::service_fn(move |_: Uri| {
                let stream = stream.take().ok_or_else(|| io::Error::other("the connection is lost"));
                async move { stream.map(hyper_util::rt::TokioIo::new) }
            });
            let endpoint = Endpoint::from_static("http://agent").initial_stream_window_size(65_535);
            endpoint.connect_with_connector(connector).await.context("connect to the agent")
        })?;
        Ok(Self { runtime, channel })
    }

    /// Pushes a V1 goal state.
    ///
    /// # Errors
    /// On a gRPC error, or a reply over the limit.
    pub fn push(&self, state: &wire::GoalState) -> Result<Statuses> {
        let path = PathAndQuery::from_static("/alcor.schema.GoalStateProvisioner/PushNetworkResourceStates");
        let codec: ProstCodec<wire::GoalState, wire::GoalStateOperationReply> = ProstCodec::default();
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let reply = self.runtime.block_on(async {
            client.ready().await.map_err(|error| anyhow!("{error}"))?;
            client.unary(tonic::Request::new(state.clone()), path, codec).await.context("the agent refused")
        });
        Statuses::new(reply?.into_inner())
    }

    /// Opens a stream of V2 goal states, and gives the way into it. What is answered is read, and counted.
    ///
    /// # Errors
    /// If the agent refuses it.
    pub fn stream(&self) -> Result<Pushes> {
        let (sender, receiver) = mpsc::channel(64);
        let codec: ProstCodec<wire::GoalStateV2, wire::GoalStateOperationReply> = ProstCodec::default();
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let mut replies = self.runtime.block_on(async {
            client.ready().await.map_err(|error| anyhow!("{error}"))?;
            let call = client.streaming(
                tonic::Request::new(ReceiverStream::new(receiver)),
                PathAndQuery::from_static("/alcor.schema.GoalStateProvisioner/PushGoalStatesStream"),
                codec,
            );
            Ok::<_, anyhow::Error>(call.await.context("open the stream")?.into_inner())
        })?;
        let (answers, answered) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            while let Ok(Some(_)) = replies.message().await {
                if answers.send(()).is_err() {
                    return;
                }
            }
        });
        Ok(Pushes { sender, answered })
    }
}

/// A stream of goal states, and its answers.
pub struct Pushes {
    sender: mpsc::Sender<wire::GoalStateV2>,
    answered: std::sync::mpsc::Receiver<()>,
}

impl Pushes {
    /// Sends a goal state without waiting for its answer; not from a runtime's own thread.
    ///
    /// # Errors
    /// If the stream has ended.
    pub fn send(&self, state: wire::GoalStateV2) -> Result<()> {
        self.sender.blocking_send(state).map_err(|_| anyhow!("the agent ended the stream"))
    }

    /// The same, unless there is no room for it at the moment; says whether there was.
    #[must_use]
    pub fn try_send(&self, state: wire::GoalStateV2) -> bool {
        self.sender.try_send(state).is_ok()
    }

    /// Waits for so many answers.
    ///
    /// # Errors
    /// If they do not come within two minutes each.
    pub fn answers(&self, count: usize) -> Result<()> {
        for number in 0..count {
            self.answered
                .recv_timeout(Duration::from_secs(120))
                .with_context(|| format!("{number} of {count} messages were answered"))?;
        }
        Ok(())
    }
}

/// Copies both ways until either side ends, or as the line says.
fn forward(agent: TcpStream, controller: UnixStream, line: &Line) -> Result<()> {
    let (mut from, mut to) = (controller.try_clone()?, agent.try_clone()?);
    let mut left = line.cut_after.unwrap_or(usize::MAX);
    thread::spawn(move || {
        let mut bytes = vec![0; 16 << 10];
        while let Ok(read) = from.read(&mut bytes) {
            let sent = read.min(left);
            if read == 0 || to.write_all(&bytes[..sent]).is_err() {
                break;
            }
            left -= sent;
            if left == 0 {
                // What was sent arrives, and then nothing ever does.
                break;
            }
        }
        // Either may have gone already.
        let _ended = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
    });
    let (mut from, mut to, deaf) = (agent, controller, Arc::clone(&line.deaf));
    thread::spawn(move || {
        let mut bytes = vec![0; 16 << 10];
        loop {
            if deaf.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            match from.read(&mut bytes) {
                Ok(read) if read > 0 && to.write_all(&bytes[..read]).is_ok() => {}
                _ => break,
            }
        }
        let _ended = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
    });
    Ok(())
}
