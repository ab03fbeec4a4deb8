//! The few system calls that have no safe wrapper: everything `unsafe` in the testbed is here.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::lab::eventually;

/// Makes `command` start in the given mount and network namespaces, and die with the thread that starts it: when a
/// test is killed, nothing that it started lives on.
pub(super) fn enter_on_start(command: &mut Command, mounts: RawFd, net: RawFd) {
    let enter = move || {
        // SAFETY: plain system calls on descriptors that the parent keeps open; all are async-signal-safe.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                || libc::setns(mounts, libc::CLONE_NEWNS) != 0
                || libc::setns(net, libc::CLONE_NEWNET) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure only makes async-signal-safe system calls and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// Opens a packet socket on an interface of the calling thread's network namespace. It sees every frame that the
/// interface receives, and sends frames as they are.
pub(super) fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let name = CString::new(interface).context("interface name")?;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain system calls; `name` and `address` live through them, and the length given is that of `address`.
    unsafe {
        let index = libc::if_nametoindex(name.as_ptr());
        if index == 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("interface {interface}"));
        }
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a packet socket");
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        if libc::bind(fd, (&raw const address).cast(), size) != 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("bind to {interface}"));
        }
        Ok(socket)
    }
}

#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// `linux/if_tun.h`: segmentation of UDP over IPv4 and over IPv6, offered together.
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// Creates a tap with a vnet header in the calling thread's network namespace, offering the far end checksum and
/// segmentation offloads like a virtual machine's device.
pub(super) fn open_tap(name: &str) -> Result<File> {
    let device = File::options().read(true).write(true).open("/dev/net/tun").context("open /dev/net/tun")?;
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    anyhow::ensure!(name.len() < libc::IFNAMSIZ, "interface name {name} is too long");
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let always = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // Segmentation of UDP is offered from Linux 6.2 on.
    let offloads = [always | TUN_F_USO4 | TUN_F_USO6, always];
    eventually(&format!("the name {name} is free for a tap"), Duration::from_secs(5), || {
        let offer = |flags: libc::c_uint| {
            // SAFETY: TUNSETOFFLOAD takes its flags by value.
            unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) >= 0 }
        };
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, for which `request` has the size and layout.
        let failed = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) < 0 }
            || !offloads.into_iter().any(offer);
        if !failed {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        // A namesake that has just been closed keeps the name until the kernel has taken it apart.
        if error.raw_os_error() == Some(libc::EBUSY) {
            return Ok(false);
        }
        Err(error).with_context(|| format!("create the tap {name}"))
    })?;
    Ok(device)
}

/// `struct bpf_insn`: code, registers, offset and immediate.
type Instruction = [u8; 8];

/// `union bpf_attr` is larger, but the kernel takes any prefix and reads the rest as zero.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    rest: [u64; 12],
}

#[repr(C)]
#[derive(Default)]
struct TestAttributes {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
const XDP_TX: u8 = 3;

/// Loads an XDP program that only says `XDP_TX`.
pub(super) fn load_transmitter() -> Result<OwnedFd> {
    // r0 = XDP_TX; exit.
    let instructions: [Instruction; 2] = [[0xb7, 0, 0, 0, XDP_TX, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        rest: [0; 12],
    };
    // SAFETY: the attributes and what they point to live through the call, and the size is theirs.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("load the packet generator");
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Runs a program on `count` live copies of a frame, as if an interface of this namespace had received them.
pub(super) fn transmit(program: &OwnedFd, interface: u32, frame: &[u8], count: u32) -> Result<()> {
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: [u32; 6] = [0, frame.len() as u32, 0, interface, 0, 0];
    let attributes = TestAttributes {
        program: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: count,
        context_size_in: size_of_val(&context) as u32,
        context_in: context.as_ptr() as u64,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: 64,
        ..Default::default()
    };
    // SAFETY: the attributes and what they point to live through the call, and the size is theirs.
    let failed = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw const attributes, size_of::<TestAttributes>())
    };
    if failed != 0 {
        return Err(io::Error::last_os_error()).context("send live frames");
    }
    Ok(())
}
