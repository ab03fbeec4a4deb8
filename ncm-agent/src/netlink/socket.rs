//! Netlink sockets: one for requests (answers awaited in order), one for notifications (overruns made visible).

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};

use super::NetlinkError;
use super::message::{self, Message, Messages, Request, flags, u32_at};

/// Larger than any datagram the kernel sends (dumps use at most 32 KiB).
const DATAGRAM: usize = 128 * 1024;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words on why it refused.
const EXTENDED_ACK_TEXT: u16 = 1;
/// How often a dump is asked for again when the kernel's table changed under it.
const DUMP_ATTEMPTS: usize = 8;

/// A socket that requests are sent on, one after the other.
pub(crate) struct RequestSocket {
    socket: TokioSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RequestSocket {
    /// Opens a socket of that protocol in the calling thread's network namespace; needs a running tokio runtime.
    pub(crate) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = open(protocol)?;
        // Both only make answers more precise; old kernels know neither.
        let _ = socket.socket_mut().set_ext_ack(true);
        let _ = socket.socket_mut().set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends a request and awaits the kernel's acknowledgement; other answers that precede it go to `each`.
    pub(crate) async fn call(
        &mut self,
        request: Request,
        each: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.exchange(request, flags::ACK, each).await.map(|_interrupted| ())
    }

    /// Asks for a dump and hands each of its messages to `each`. If the kernel says that its table changed
    /// meanwhile, it is asked again: `restart` is called before each attempt.
    pub(crate) async fn dump<S>(
        &mut self,
        request: &Request,
        mut restart: impl FnMut() -> S,
        mut each: impl FnMut(&mut S, Message<'_>),
    ) -> Result<S, NetlinkError> {
        let mut collected = restart();
        for _ in 0..DUMP_ATTEMPTS {
            collected = restart();
            let interrupted =
                self.exchange(request.clone(), flags::DUMP, |message| each(&mut collected, message)).await?;
            if !interrupted {
                break;
            }
        }
        Ok(collected)
    }

    async fn exchange(
        &mut self,
        request: Request,
        more_flags: u16,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<bool, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let kind = request.kind();
        let bytes = request.finish(self.sequence, more_flags);
        self.socket.send(&bytes).await.map_err(NetlinkError::Io)?;
        let mut interrupted = false;
        loop {
            receive(&self.socket, &mut self.buffer).await?;
            for message in Messages(&self.buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & flags::DUMP_INTERRUPTED != 0;
                match message.kind {
                    message::ERROR | message::DONE => return outcome(kind, &message).map(|()| interrupted),
                    _ => each(message),
                }
            }
        }
    }
}

/// A socket that receives notifications.
pub(crate) struct EventSocket {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl EventSocket {
    /// Opens a socket of that protocol in the calling thread's network namespace and joins the multicast groups.
    /// `receive_buffer` is in bytes.
    pub(crate) fn open(protocol: isize, groups: &[u32], receive_buffer: usize) -> Result<Self, NetlinkError> {
        let mut socket = open(protocol)?;
        let inner = socket.socket_mut();
        // Beyond the system's limit where we may, else up to it.
        if setsockopt(&*inner, sockopt::RcvBufForce, &receive_buffer).is_err() {
            setsockopt(&*inner, sockopt::RcvBuf, &receive_buffer)
                .map_err(|errno| NetlinkError::Open(errno.into()))?;
        }
        for group in groups {
            inner.add_membership(*group).map_err(NetlinkError::Open)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// The next datagram of notifications, or [`NetlinkError::Overrun`] if some were lost: then only a dump tells
    /// how things are. Dropping the future loses nothing.
    pub(crate) async fn receive(&mut self) -> Result<Messages<'_>, NetlinkError> {
        receive(&self.socket, &mut self.buffer).await?;
        if Messages(&self.buffer).any(|message| message.kind == message::OVERRUN) {
            return Err(NetlinkError::Overrun);
        }
        Ok(Messages(&self.buffer))
    }
}

fn open(protocol: isize) -> Result<TokioSocket, NetlinkError> {
    let mut socket = TokioSocket::new(protocol).map_err(NetlinkError::Open)?;
    socket.socket_mut().bind_auto().map_err(NetlinkError::Open)?;
    socket.socket_mut().connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Open)?;
    Ok(socket)
}

/// Reads the next datagram that the kernel itself sent.
async fn receive(socket: &TokioSocket, buffer: &mut Vec<u8>) -> Result<(), NetlinkError> {
    loop {
        buffer.clear();
        match socket.recv_from(buffer).await {
            Ok(sender) if sender.port_number() == 0 => return Ok(()),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Err(NetlinkError::Overrun),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(NetlinkError::Io(error)),
        }
    }
}

/// What an ERROR or DONE message says: `Ok` for an acknowledgement.
fn outcome(request: u16, message: &Message<'_>) -> Result<(), NetlinkError> {
    let code = u32_at(message.payload, 0).unwrap_or_default().cast_signed();
    if code >= 0 {
        return Ok(());
    }
    // An error carries the request's header (or all of it), then attributes; DONE carries attributes at once.
    let skipped = match message.kind {
        message::DONE => 4,
        _ if message.flags & 0x100 != 0 => 4 + 16,
        _ => 4 + u32_at(message.payload, 4).unwrap_or_default() as usize,
    };
    let words = message::Attributes::after(message.payload, (skipped + 3) & !3)
        .find(EXTENDED_ACK_TEXT)
        .map(message::text)
        .filter(|_| message.flags & 0x200 != 0);
    Err(NetlinkError::Refused { request, error: io::Error::from_raw_os_error(code.wrapping_neg()), words })
}
