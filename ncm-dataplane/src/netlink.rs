//! One request over netlink, and its answers: for what is seldom asked, so that a socket is opened for each.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::message::{self, Message, Messages, Refusal, Request, flags};

/// Larger than any datagram that the kernel sends (dumps use at most 32 KiB).
const DATAGRAM: usize = 64 * 1024;

/// Sends a request in the calling thread's network namespace, and hands what is answered to `each`.
pub(crate) fn call(request: Request, each: impl FnMut(Message<'_>)) -> Result<(), Refusal> {
    exchange(request, flags::ACK, each)
}

/// Asks for all there is, and hands each of it to `each`.
pub(crate) fn dump(request: Request, each: impl FnMut(Message<'_>)) -> Result<(), Refusal> {
    exchange(request, flags::DUMP, each)
}

fn exchange(request: Request, more_flags: u16, mut each: impl FnMut(Message<'_>)) -> Result<(), Refusal> {
    const SEQUENCE: u32 = 1;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Only makes errors more precise.
    let _older = socket.set_ext_ack(true);
    socket.send(&request.finish(SEQUENCE, more_flags), 0)?;
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            received => drop(received?),
        }
        for message in Messages(&buffer).filter(|message| message.sequence == SEQUENCE) {
            match message.kind {
                message::ERROR | message::DONE => return message.outcome(),
                _ => each(message),
            }
        }
    }
}
