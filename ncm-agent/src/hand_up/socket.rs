//! The packet socket on the device: frames of guests with their marks, and frames for guests with theirs.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ncm_common::marks;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt, socket,
    sockopt,
};

/// Bytes of `struct virtio_net_hdr`, which precedes every frame.
pub(crate) const VNET: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum is not computed yet.
const NEEDS_CHECKSUM: u8 = 1;
/// Room for the largest frame, with its headers and what may precede it.
const LARGEST: usize = VNET + (1 << 16) + 256;
const SO_RCVMARK: libc::c_int = 75;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// What the kernel is to do with a frame yet (`struct virtio_net_hdr`): complete its checksum, cut it into segments.
pub(crate) type Offload = [u8; VNET];

/// A frame as it is.
const PLAIN: Offload = [0; VNET];

/// A frame of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    pub(crate) mark: u32,
    pub(crate) offload: Offload,
    pub(crate) frame: Vec<u8>,
}

impl Received {
    /// The transport checksum is not computed yet.
    pub(crate) const fn is_partial(&self) -> bool {
        self.offload[0] & NEEDS_CHECKSUM != 0
    }
}

/// Which frames a socket is for, and how many of them may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// What marks say they are for (`ncm_common::marks`): from the first to the last of these.
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// Bytes of frames that may wait in the kernel while the agent is busy, received or to be sent. What does not fit is
    /// counted as shed.
    pub(crate) waiting: usize,
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    control: Vec<u8>,
    buffer: Vec<u8>,
    /// The mark of what is sent.
    marked: Option<u32>,
}

impl Socket {
    /// Opens it on a device of the calling thread's network namespace.
    pub(crate) fn open(ifindex: u32, wanted: Wanted) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol: nothing is received before it is bound.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        // Beyond the system's limit where we may, else up to it.
        if setsockopt(&socket, sockopt::RcvBufForce, &wanted.waiting).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &wanted.waiting)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &wanted.waiting).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &wanted.waiting)?;
        }
        set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        set(&socket, libc::SOL_SOCKET, SO_RCVMARK, 1)?;
        take_only(&socket, wanted)?;
        bind(&socket, ifindex)?;
        let control = nix::cmsg_space!(u32, [u8; 64]);
        Ok(Self { socket, control, buffer: vec![0; LARGEST], marked: None })
    }

    /// The next frame, if one is waiting. One that the kernel cannot describe is gone.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Received>> {
        loop {
            let Self { socket, control, buffer, .. } = self;
            let mut parts = [IoSliceMut::new(buffer)];
            let received =
                match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::MSG_DONTWAIT) {
                    Ok(received) => received,
                    Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
                    // A kind of segmentation that the header has no name for.
                    Err(nix::Error::EINVAL) => continue,
                    Err(error) => return Err(error.into()),
                };
            let (length, cut) = (received.bytes, received.flags.contains(MsgFlags::MSG_TRUNC));
            let mark = received.cmsgs().ok().into_iter().flatten().find_map(|message| match message {
                ControlMessageOwned::Unknown(other)
                    if (other.cmsg_header.cmsg_level, other.cmsg_header.cmsg_type)
                        == (libc::SOL_SOCKET, libc::SO_MARK) =>
                {
                    other.data_bytes.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
                }
                _ => None,
            });
            if cut {
                continue;
            }
            let (offload, frame) = buffer.get(..length).unwrap_or_default().split_at(VNET.min(length));
            let offload = offload.try_into().unwrap_or(PLAIN);
            // Whatever has no mark is nobody's: the program on the device knows no port for it either.
            return Ok(Some(Received { mark: mark.unwrap_or_default(), offload, frame: frame.to_vec() }));
        }
    }

    /// Sends a frame to whom the mark says.
    pub(crate) fn send(&mut self, mark: u32, frame: &[u8]) -> io::Result<()> {
        self.send_with(mark, &PLAIN, frame)
    }

    /// Sends a frame that the kernel has still to do something with.
    pub(crate) fn send_with(&mut self, mark: u32, offload: &Offload, frame: &[u8]) -> io::Result<()> {
        if self.marked != Some(mark) {
            self.marked = None;
            setsockopt(&self.socket, sockopt::Mark, &mark)?;
            self.marked = Some(mark);
        }
        let parts = [IoSlice::new(offload), IoSlice::new(frame)];
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], MsgFlags::MSG_DONTWAIT, None)?;
        Ok(())
    }

    /// Frames that had no room since this was last asked.
    pub(crate) fn shed(&self) -> u64 {
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

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
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

/// Has the socket receive none but frames whose mark is for what is wanted: others do not take its room.
fn take_only(socket: &OwnedFd, wanted: Wanted) -> io::Result<()> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const SHIFT: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
    const IS_ABOVE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    const IS_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// Where classic BPF finds the mark.
    const MARK: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_MARK).cast_unsigned();
    let step = |code: u32, (jt, jf): (u8, u8), k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(LOAD, (0, 0), MARK),
        step(SHIFT, (0, 0), marks::PORT_BITS),
        step(IS_AT_LEAST, (0, 2), wanted.first),
        step(IS_ABOVE, (1, 0), wanted.last),
        step(RETURN, (0, 0), u32::MAX),
        step(RETURN, (0, 0), 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel reads the program's head and as many steps as it says; both outlive the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
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
