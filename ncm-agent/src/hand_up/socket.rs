//! The packet socket on the device: frames of guests with their marks, and frames for guests with theirs.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt, socket,
    sockopt,
};

/// Bytes of `struct virtio_net_hdr`, which precedes every frame.
const VNET: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum is not computed yet.
const NEEDS_CHECKSUM: u8 = 1;
/// Bytes of frames that may wait in the kernel while the agent is busy. What does not fit is counted as shed.
const WAITING: usize = 1 << 20;
const SO_RCVMARK: libc::c_int = 75;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A frame of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Received {
    pub(super) mark: u32,
    /// The transport checksum is not computed yet.
    pub(super) partial: bool,
    pub(super) frame: Vec<u8>,
}

/// The socket.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    control: Vec<u8>,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens it on a device of the calling thread's network namespace.
    pub(super) fn open(ifindex: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol: nothing is received before it is bound.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        // Beyond the system's limit where we may, else up to it.
        if setsockopt(&socket, sockopt::RcvBufForce, &WAITING).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &WAITING)?;
        }
        set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        set(&socket, libc::SOL_SOCKET, SO_RCVMARK, 1)?;
        bind(&socket, ifindex)?;
        Ok(Self { socket, control: nix::cmsg_space!(u32, [u8; 64]), buffer: vec![0; VNET + (1 << 16)] })
    }

    /// The next frame, if one is waiting.
    pub(super) fn receive(&mut self) -> io::Result<Option<Received>> {
        let Self { socket, control, buffer } = self;
        let mut parts = [IoSliceMut::new(buffer)];
        let received =
            match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::MSG_DONTWAIT) {
                Ok(received) => received,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let length = received.bytes;
        let mark = received.cmsgs().ok().into_iter().flatten().find_map(|message| match message {
            ControlMessageOwned::Unknown(other)
                if (other.cmsg_header.cmsg_level, other.cmsg_header.cmsg_type)
                    == (libc::SOL_SOCKET, libc::SO_MARK) =>
            {
                other.data_bytes.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
            }
            _ => None,
        });
        let frame = buffer.get(VNET..length).unwrap_or_default().to_vec();
        let partial = buffer[0] & NEEDS_CHECKSUM != 0;
        // Whatever has no mark is nobody's: the program on the device knows no port for it either.
        Ok(Some(Received { mark: mark.unwrap_or_default(), partial, frame }))
    }

    /// Sends a frame to whom the mark says.
    pub(super) fn send(&self, mark: u32, frame: &[u8]) -> io::Result<()> {
        setsockopt(&self.socket, sockopt::Mark, &mark)?;
        let parts = [IoSlice::new(&[0; VNET]), IoSlice::new(frame)];
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], MsgFlags::MSG_DONTWAIT, None)?;
        Ok(())
    }

    /// Frames that had no room since this was last asked.
    pub(super) fn shed(&self) -> u64 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `statistics`, which has as many, of plain integers.
        let outcome = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if outcome == 0 { u64::from(statistics.tp_drops) } else { 0 }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes from `value` as it has.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the socket receive all frames of the device, and send there.
fn bind(socket: &OwnedFd, ifindex: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the kernel reads as many bytes from `address` as it has.
    let outcome = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
