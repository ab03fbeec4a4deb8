//! A guest on a tap: two taps, one on the host and one in the guest, and a thread that carries frames with their
//! vnet headers between them, as a hypervisor does. The guest has a kernel's stack with its offloads on.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::namespace::Namespace;
use super::sys;

/// A vnet header (10 bytes) and the largest frame.
const LARGEST: usize = 10 + 65_550;

/// Carries frames between two taps until dropped; the taps go with it.
#[derive(Debug)]
pub struct Shuttle {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Shuttle {
    /// Makes a tap in each namespace and connects them. The interfaces are left down.
    ///
    /// # Errors
    /// If a name is taken or there is no `/dev/net/tun`.
    pub fn connect(host: (&Namespace, &str), guest: (&Namespace, &str)) -> Result<Self> {
        let host_tap = host.0.inside(|| sys::open_tap(host.1))?;
        let guest_tap = guest.0.inside(|| sys::open_tap(guest.1))?;
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let thread = thread::Builder::new()
            .name(format!("tap {}", host.1))
            .spawn(move || carry(&host_tap, &guest_tap, &stopped))
            .context("start the tap's thread")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Shuttle {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(host: &File, guest: &File, stopped: &OwnedFd) {
    let mut buffer = vec![0; LARGEST];
    loop {
        let mut ready = [
            PollFd::new(host.as_fd(), PollFlags::POLLIN),
            PollFd::new(guest.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
        let [from_host, from_guest, end] = ready.map(|one| one.revents().unwrap_or(PollFlags::empty()));
        if !end.is_empty() {
            return;
        }
        if from_host.contains(PollFlags::POLLIN) && !copy(host, guest, &mut buffer) {
            return;
        }
        if from_guest.contains(PollFlags::POLLIN) && !copy(guest, host, &mut buffer) {
            return;
        }
        // A tap that is down reports an error; frames that cannot be delivered are lost, as on a wire.
        if from_host.contains(PollFlags::POLLNVAL) || from_guest.contains(PollFlags::POLLNVAL) {
            return;
        }
        if !from_host.contains(PollFlags::POLLIN) && !from_guest.contains(PollFlags::POLLIN) {
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// Carries one frame; false when a tap is gone.
fn copy(mut from: &File, mut to: &File, buffer: &mut [u8]) -> bool {
    match from.read(buffer) {
        Ok(length) => match to.write(&buffer[..length]) {
            Err(error) => error.raw_os_error() != Some(libc::EBADFD),
            Ok(_) => true,
        },
        Err(error) => {
            error.kind() == ErrorKind::Interrupted
                || error.kind() == ErrorKind::WouldBlock
                || error.raw_os_error() == Some(libc::EIO)
        }
    }
}
