//! Listening: TCP and Unix sockets for goal states, and the Unix socket of the operator's tool.
//!
//! Every connection is plain: TLS has its place in `incoming`, where a connection becomes a stream of bytes.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::{Gid, Group, chown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::budget::Budget;
use super::codec::Bounds;
use super::goalstate::{GoalStates, Provisioner, Subscriptions, Topics};
use super::peer;
use super::states::HeldStates;
use crate::config::{Api, Listener};
use crate::engine::Engine;
use crate::telemetry::own;

/// Connections over all listeners; more wait in the kernel's queue. Each may fill its window, outside the budget.
const CONNECTIONS: usize = 512;

/// Calls that are open at a time, idle streams among them: over all listeners, and apart from that for the tool.
const CALLS: usize = 16_384;
/// The same for one connection: a sender sees this limit, and waits.
const CALLS_OF_CONNECTION: u32 = 8192;

/// Bytes that a stream may send ahead of being read: a message waits for the budget outside our memory.
const STREAM_WINDOW: u32 = 128 << 10;
/// The same for all streams of a connection together: room for a hundred that wait, beside one which is being read.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A peer that is gone without a word is noticed after this and [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Pause after a failure to accept, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Sockets that are bound, and not yet served.
#[derive(Debug)]
pub struct Bound {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
    tool: UnixListener,
    tool_group: Option<Gid>,
    paths: Paths,
}

/// Unix sockets of ours in the file system: they go with this.
#[derive(Debug, Default)]
struct Paths(Vec<PathBuf>);

impl Drop for Paths {
    fn drop(&mut self) {
        for path in &self.0 {
            // Another file there now is not ours to complain about.
            drop(fs::remove_file(path));
        }
    }
}

/// Binds everything that the configuration names.
///
/// # Errors
///
/// An address is taken, a path cannot be used, or there is no such group.
pub async fn bind(api: &Api) -> anyhow::Result<Bound> {
    let tool_group = match &api.group {
        None => None,
        Some(name) => {
            let group =
                Group::from_name(name).with_context(|| format!("cannot look up api.group {name:?}"))?;
            Some(group.with_context(|| format!("api.group: there is no group {name:?} on this host"))?.gid)
        }
    };
    let (mut tcp, mut unix, mut paths) = (Vec::new(), Vec::new(), Paths::default());
    for listener in &api.listeners {
        let failed = || format!("api.listeners: cannot listen on {listener}");
        match listener {
            Listener::Tcp(address) => tcp.push(TcpListener::bind(address).await.with_context(failed)?),
            Listener::Unix(path) => {
                unix.push(bind_unix(path, tool_group).with_context(failed)?);
                paths.0.push(path.clone());
            }
        }
    }
    let tool = bind_unix(&api.socket, tool_group)
        .with_context(|| format!("api.socket: cannot listen on {}", api.socket.display()))?;
    paths.0.push(api.socket.clone());
    Ok(Bound { tcp, unix, tool, tool_group, paths })
}

/// Removes the Unix sockets that an agent which did not end by itself has left.
///
/// # Errors
///
/// One cannot be removed.
pub fn remove_sockets(api: &Api) -> io::Result<()> {
    let listeners = api.listeners.iter().filter_map(|listener| match listener {
        Listener::Unix(path) => Some(path),
        Listener::Tcp(_) => None,
    });
    for path in listeners.chain([&api.socket]) {
        let is_socket = |found: fs::Metadata| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type());
        if fs::symlink_metadata(path).is_ok_and(is_socket) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// A Unix socket for root and one group. The instance's lock is held, so that a socket that is there is a left-over.
fn bind_unix(path: &Path, group: Option<Gid>) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
            fs::remove_file(path)?
        }
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Err(_) => {}
    }
    // Bound under another name first: nobody may connect before owner and mode are set.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(".new");
    let hidden = PathBuf::from(hidden);
    if hidden.exists() {
        fs::remove_file(&hidden)?;
    }
    let listener = UnixListener::bind(&hidden)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o660))?;
    if let Some(group) = group {
        chown(&hidden, None, Some(group))?;
    }
    fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Serves until `stop` is done, then closes the listeners.
///
/// # Errors
///
/// A server ends by itself.
pub async fn serve(bound: Bound, engine: Engine, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let api = engine.config().api.clone();
    let bounds = Bounds {
        budget: Budget::new(api.max_buffered_bytes),
        max_message: api.max_message_bytes,
        stall: Duration::from_secs(api.stall_seconds),
    };
    let topics = Arc::new(Topics::default());
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let provisioner = |origin| {
        Provisioner::new(engine.clone(), origin, bounds.clone(), Arc::clone(&topics), Semaphore::new(CALLS))
    };
    let controller = provisioner(ncm_model::Origin::Controller);
    let states = HeldStates::new(engine.clone(), bounds.stall);

    let mut servers = tokio::task::JoinSet::new();
    let router = || {
        builder()
            .add_service(GoalStates(controller.clone()))
            .add_service(Subscriptions(controller.clone()))
            .add_service(states.service())
    };
    for listener in bound.tcp {
        let incoming = incoming(Source::Tcp(listener), None, Arc::clone(&slots));
        servers.spawn(router().serve_with_incoming(incoming));
    }
    for listener in bound.unix {
        let incoming = incoming(Source::Unix(listener), bound.tool_group, Arc::clone(&slots));
        servers.spawn(router().serve_with_incoming(incoming));
    }
    let tool = provisioner(ncm_model::Origin::Tool);
    let router = builder()
        .add_service(GoalStates(tool.clone()))
        .add_service(Subscriptions(tool))
        // Apart from the controllers' calls, as all that the tool does.
        .add_service(HeldStates::new(engine.clone(), bounds.stall).service())
        .add_service(super::inspect::service(engine.clone(), bounds.budget.clone()))
        .add_service(super::inspect::operate(engine.clone(), bounds.budget.clone()));
    // The operator's way in has its own slots: controllers cannot take them.
    let incoming = incoming(Source::Unix(bound.tool), bound.tool_group, Arc::new(Semaphore::new(64)));
    servers.spawn(router.serve_with_incoming(incoming));

    let outcome = tokio::select! {
        () = stop => Ok(()),
        Some(ended) = servers.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a listener ended by itself")),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error.into()),
        },
    };
    servers.abort_all();
    drop(bound.paths);
    outcome
}

fn builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(CALLS_OF_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

enum Source {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Connections as they come, while there are free slots. Unix peers have to be root or of the group.
fn incoming(
    source: Source,
    group: Option<Gid>,
    slots: Arc<Semaphore>,
) -> impl futures::Stream<Item = io::Result<Connection>> {
    futures::stream::unfold((source, slots), move |(source, slots)| async move {
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            let accepted = match &source {
                Source::Tcp(listener) => listener.accept().await.and_then(|(stream, _)| {
                    stream.set_nodelay(true)?;
                    Ok(Socket::Tcp(stream))
                }),
                Source::Unix(listener) => listener.accept().await.map(|(stream, _)| Socket::Unix(stream)),
            };
            let socket = match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if let Socket::Unix(stream) = &socket
                && let Err(refusal) = peer::admit(stream, group)
            {
                tracing::warn!("a connection to a Unix socket is refused: {refusal}");
                continue;
            }
            let connection = Connection { socket, _slot: slot, _held: own::CONNECTIONS.hold() };
            return Some((Ok(connection), (source, slots)));
        }
    })
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An accepted connection; its slot is free again when it ends.
struct Connection {
    socket: Socket,
    _slot: OwnedSemaphorePermit,
    _held: own::Held,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
