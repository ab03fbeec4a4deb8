//! The few system calls that have no safe wrapper: everything `unsafe` in the testbed is here.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

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

/// Creates a tap with a vnet header in the calling thread's network namespace, offering the far end checksum and
/// segmentation offloads like a virtual machine's device.
pub(super) fn open_tap(name: &str) -> Result<File> {
    let device = File::options().read(true).write(true).open("/dev/net/tun").context("open /dev/net/tun")?;
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    anyhow::ensure!(name.len() < libc::IFNAMSIZ, "interface name {name} is too long");
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, for which `request` has the size and layout; TUNSETOFFLOAD
    // takes its flags by value.
    let failed = unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) < 0
            || libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) < 0
    };
    if failed {
        return Err(io::Error::last_os_error()).with_context(|| format!("create the tap {name}"));
    }
    Ok(device)
}
