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
pub(super) type Instruction = [u8; 8];

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
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
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

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
pub(super) const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
pub(super) const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// A call of bpf(2) that gives a number, a descriptor among them.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the attributes live through the call, and the size is theirs; what they point to is the callers' to keep.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn bpf_new<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program.
pub(super) fn load_program(program_type: u32, instructions: &[Instruction]) -> Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        program_type,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        rest: [0; 12],
    };
    bpf_new(BPF_PROG_LOAD, &attributes).context("load a program of the testbed")
}

/// Makes an array of numbers.
pub(super) fn create_array(entries: u32) -> Result<OwnedFd> {
    let attributes = MapAttributes {
        kind: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: entries,
        ..Default::default()
    };
    bpf_new(BPF_MAP_CREATE, &attributes).context("make an array of the testbed")
}

/// Reads a number of an array.
pub(super) fn read_array(array: &OwnedFd, index: u32) -> Result<u64> {
    let mut value = 0_u64;
    let attributes = ElementAttributes {
        map: array.as_raw_fd() as u32,
        key: std::ptr::from_ref(&index) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        ..Default::default()
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &attributes).context("read an array of the testbed")?;
    Ok(value)
}

/// Has a program see what comes in by an interface of this namespace, after all others or before them, until the link is dropped;
/// `None` if this kernel has no tcx.
pub(super) fn attach_ingress(program: &OwnedFd, interface: u32, before: bool) -> Result<Option<OwnedFd>> {
    let attributes = LinkAttributes {
        program: program.as_raw_fd() as u32,
        ifindex: interface,
        attach_type: BPF_TCX_INGRESS,
        flags: if before { BPF_F_BEFORE } else { 0 },
    };
    match bpf_new(BPF_LINK_CREATE, &attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        link => link.map(Some).context("attach a program of the testbed"),
    }
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
    bpf(BPF_PROG_TEST_RUN, &attributes).context("send live frames").map(drop)
}
