//! Netlink sockets: one for requests (answers awaited in order), one for notifications (overruns made visible).

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};

use super::NetlinkError;
use super::message::{self, Message, Messages, Refusal, Request, flags};

/// Larger than any datagram the kernel sends (dumps use at most 32 KiB).
const DATAGRAM: usize = 128 * 1024;
/// More datagrams than fit into a socket's buffer.
const MOST_WAITING: usize = 1 << 20;
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
                return Ok(collected);
            }
        }
        // What changed is told of by notifications as well.
        tracing::warn!(
            attempts = DUMP_ATTEMPTS,
            "the kernel's table changed during each dump: the last one is used"
        );
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
        let mut outcome = receive(&self.socket, &mut self.buffer).await;
        if outcome.is_ok() && Messages(&self.buffer).any(|message| message.kind == message::OVERRUN) {
            outcome = Err(NetlinkError::Overrun);
        }
        if matches!(outcome, Err(NetlinkError::Overrun)) {
            self.empty();
        }
        outcome.map(|()| Messages(&self.buffer))
    }

    /// Throws away what waits. Until a socket that overran is empty the kernel gives it nothing more, and does not say
    /// so again (`NETLINK_S_CONGESTED`): what happened between a dump and the reading of the rest would be lost unseen.
    fn empty(&mut self) {
        for _ in 0..MOST_WAITING {
            self.buffer.clear();
            match self.socket.socket_ref().recv_from(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                // It overran once more, which a dump will tell anyway.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => {}
                // Empty; any other error the next reader finds as well.
                Err(_) => return,
            }
        }
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

/// What an ERROR or DONE message says of a request.
fn outcome(request: u16, message: &Message<'_>) -> Result<(), NetlinkError> {
    let refused = |Refusal { error, words }| NetlinkError::Refused { request, error, words };
    message.outcome().map_err(refused)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use netlink_sys::protocols::NETLINK_ROUTE;
    use nix::sched::{CloneFlags, unshare};

    use super::super::link::{self, LinkMessage};
    use super::*;

    /// Gives the loopback device one MTU after the other.
    fn set_mtus(mtus: impl Iterator<Item = u32>) {
        let mut ip = Command::new("ip");
        let mut ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip can be run");
        let lines: String = mtus.map(|mtu| format!("link set lo mtu {mtu}\n")).collect();
        ip.stdin.take().expect("is piped").write_all(lines.as_bytes()).expect("ip reads");
        assert!(ip.wait().expect("ends").success());
    }

    #[tokio::test]
    async fn what_happens_right_after_an_overrun_is_heard() {
        // The test's thread, with its runtime.
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root: a network namespace");
        let mut socket = EventSocket::open(NETLINK_ROUTE, &[link::GROUP_LINK], 4096).expect("opens");
        set_mtus(2000..2100);
        while !matches!(socket.receive().await, Err(NetlinkError::Overrun)) {}
        set_mtus([3000].into_iter());
        let heard = async {
            loop {
                let is_new = |message: Message<'_>| matches!(link::parse(&message), Some(LinkMessage::New(link)) if link.mtu == 3000);
                if socket.receive().await.expect("no more than one").any(is_new) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), heard).await.expect("the last change is told of");
    }
}
