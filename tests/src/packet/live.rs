//! A real frame on real interfaces, for what a test run does not show: which interface a frame leaves by, and a VLAN tag
//! that travels beside it.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ncm_common::drops::DropReason;
use ncm_dataplane::Hook;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use super::{Guest, World};

/// How long a frame may take between two interfaces of one host.
const LIMIT: Duration = Duration::from_secs(10);

impl World {
    /// Lets a guest send a frame through tc, and gives the first frame that comes out at the far end of `interface`.
    ///
    /// # Panics
    /// If nothing comes out, or a tool is missing.
    #[must_use]
    pub fn live(&self, guest: Guest, frame: &[u8], interface: &str) -> Vec<u8> {
        self.only_tc(guest);
        let mut capture = Capture::start(&format!("{interface}p"));
        self.beat(0);
        send(&format!("{}p", guest.interface), frame);
        capture.first()
    }

    /// Lets a guest send a frame through tc that is dropped there, and gives the reason.
    ///
    /// # Panics
    /// If nothing is dropped.
    #[must_use]
    pub fn live_drop(&self, guest: Guest, frame: &[u8]) -> DropReason {
        let count = |reason: DropReason| {
            let counted = self.tables().drops.get(&(reason as u32)).expect("readable");
            counted.map_or(0, |count| count.packets)
        };
        self.only_tc(guest);
        let before: Vec<u64> = DropReason::ALL.iter().map(|reason| count(*reason)).collect();
        self.beat(0);
        send(&format!("{}p", guest.interface), frame);
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            let mut reasons = DropReason::ALL.iter().zip(&before);
            if let Some((reason, _)) = reasons.find(|(reason, before)| count(**reason) != **before) {
                return *reason;
            }
        }
        panic!("nothing was dropped within {LIMIT:?}");
    }

    /// Leaves a guest's frames to tc.
    fn only_tc(&self, guest: Guest) {
        let ifindex = self.ifindex(guest.interface);
        self.dataplane().detach(Hook::GuestXdp, ifindex).expect("detached");
        self.dataplane().attach(Hook::GuestTc, ifindex).expect("attached");
    }
}

/// Sends a frame out of an interface of this thread's namespace.
fn send(interface: &str, frame: &[u8]) {
    let address: LinkAddr = nix::ifaddrs::getifaddrs()
        .expect("interfaces")
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .unwrap_or_else(|| panic!("interface {interface}"));
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty()).expect("sent");
}

/// tcpdump, which puts VLAN tags back where they belong.
struct Capture(Child);

impl Capture {
    fn start(interface: &str) -> Self {
        let limit = LIMIT.as_secs().to_string();
        let mut child = Command::new("timeout")
            .args([&limit, "tcpdump", "-i", interface, "-Q", "in", "-c", "1", "-U", "-w", "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump is installed: run `cargo xtask setup`");
        // It says "listening on …" once it does.
        let mut said = String::new();
        let stderr = child.stderr.as_mut().expect("piped");
        let mut byte = [0];
        while !said.contains("listening on") {
            let read = stderr.read(&mut byte).expect("readable");
            assert!(read == 1, "tcpdump ended: {said}");
            said.push(char::from(byte[0]));
        }
        Self(child)
    }

    fn first(&mut self) -> Vec<u8> {
        /// Bytes of a capture file's header, and of the one in front of each frame.
        const FILE: usize = 24;
        const RECORD: usize = 16;
        let mut bytes = Vec::new();
        self.0.stdout.as_mut().expect("piped").read_to_end(&mut bytes).expect("readable");
        assert!(bytes.len() > FILE + RECORD, "no frame came out within {LIMIT:?}");
        let length: [u8; 4] = bytes[FILE + 8..FILE + 12].try_into().expect("four bytes");
        bytes[FILE + RECORD..][..usize::try_from(u32::from_ne_bytes(length)).expect("a frame's length")]
            .to_vec()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It has ended, or `timeout` ends it.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}
