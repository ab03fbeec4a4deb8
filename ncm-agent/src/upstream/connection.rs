//! The connection to upstream: made from the node's address, kept alive, and made again when it is lost.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config::UpstreamAddress;

/// How often the other end is asked whether it is still there, also without calls, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Pause before the next attempt: doubled each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What has become of the connection.
pub(super) enum Link {
    Up(Channel),
    /// Why there is none.
    Down(String),
}

/// Keeps a connection, and tells of it, until nobody listens.
pub(super) async fn keep(address: UpstreamAddress, source: Vec<IpAddr>, links: UnboundedSender<Link>) {
    let mut pause = FIRST_PAUSE;
    let mut warned = false;
    loop {
        let problem = match connect(&address, &source, &mut warned).await {
            Ok((channel, closed)) => {
                pause = FIRST_PAUSE;
                if links.send(Link::Up(channel)).is_err() {
                    return;
                }
                // Whoever has it has dropped it.
                let _gone = closed.await;
                format!("upstream {address} has ended the connection, or does not answer any more")
            }
            Err(error) => format!("upstream {address} cannot be reached: {error}"),
        };
        if links.send(Link::Down(problem)).is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect(
    address: &UpstreamAddress,
    source: &[IpAddr],
    warned: &mut bool,
) -> io::Result<(Channel, oneshot::Receiver<()>)> {
    let resolved = timeout(CONNECT_WITHIN, lookup_host((address.host.as_str(), address.port))).await??;
    let mut failed = io::Error::other("the name has no address");
    for remote in resolved {
        match timeout(CONNECT_WITHIN, dial(remote, source, warned)).await? {
            Ok(stream) => return over(address, stream).await,
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Connects from the node's first address of that version of IP: upstream knows the host by it.
async fn dial(remote: SocketAddr, source: &[IpAddr], warned: &mut bool) -> io::Result<TcpStream> {
    let socket = if remote.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(own) = source.iter().find(|own| own.is_ipv4() == remote.is_ipv4())
        && let Err(error) = socket.bind(SocketAddr::new(*own, 0))
        && !std::mem::replace(warned, true)
    {
        tracing::warn!(
            %own, %error,
            "upstream is asked from another address than the node's, by which it would know the host: see node.addresses"
        );
    }
    let stream = socket.connect(remote).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Speaks HTTP/2 over a stream; the receiver is told when it is over.
async fn over(address: &UpstreamAddress, stream: TcpStream) -> io::Result<(Channel, oneshot::Receiver<()>)> {
    let (closes, closed) = oneshot::channel();
    // For one connection only: the next one is ours to make.
    let mut stream = Some(TokioIo::new(Stream { stream, _closes: closes }));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| io::Error::other("the connection is over"));
        std::future::ready(stream)
    });
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .map_err(io::Error::other)?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(io::Error::other)?;
    Ok((channel, closed))
}

/// A stream that tells when it is dropped.
struct Stream {
    stream: TcpStream,
    _closes: oneshot::Sender<()>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
