//! One agent per instance, and one per underlay interface: the second one is refused, and told which process was first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt};

/// The instance is ours until this is dropped; the kernel also drops it with the process.
#[derive(Debug)]
pub struct InstanceLock {
    path: PathBuf,
    _file: Flock<File>,
    _name: UnixListener,
}

/// Why the instance cannot be ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent runs under this name.
    #[error("instance {instance:?} is in use by another agent{}: stop it, or give this one another --instance", holder(*pid))]
    Held {
        /// The instance.
        instance: String,
        /// The other agent's process, if it has written that.
        pid: Option<u32>,
    },
    /// Another agent takes the frames of this interface.
    #[error(
        "the underlay interface {interface} belongs to another agent{}, and one only can take its frames: stop that one, or give this one other underlay.interfaces",
        holder(*pid)
    )]
    Uplink {
        /// The interface.
        interface: String,
        /// The other agent's process, if it can be told.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("cannot use the lock file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The name cannot be taken.
    #[error("cannot take the name {name:?}: {source}")]
    Name {
        /// The name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl InstanceLock {
    /// Takes the lock of `instance`, whose file is in the directory `run` (made if missing).
    ///
    /// # Errors
    ///
    /// Another process holds it, or the file cannot be used.
    pub fn take(run: &Path, instance: &str) -> Result<Self, LockError> {
        let path = run.join(format!("{instance}.lock"));
        let failed = |source| LockError::File { path: path.clone(), source };
        fs::create_dir_all(run).map_err(failed)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Held { instance: instance.to_owned(), pid });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        // Two agents may have been given different directories.
        let name = take_name(instance, |pid| LockError::Held { instance: instance.to_owned(), pid })?;
        Ok(Self { _file: file, _name: name, path })
    }

    /// Lets go of the instance, and of the file too. Somebody who waits for it has the name to be told apart by.
    ///
    /// # Errors
    ///
    /// The file cannot be removed.
    pub fn discard(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Underlay interfaces are ours until this is dropped; the kernel also drops it with the process.
#[derive(Debug)]
pub(super) struct UplinkLocks {
    _names: Vec<UnixListener>,
}

impl UplinkLocks {
    /// Takes these interfaces, which need not be there yet.
    ///
    /// # Errors
    ///
    /// Another process holds one of them.
    pub(super) fn take(interfaces: &[String]) -> Result<Self, LockError> {
        let take = |interface: &String| {
            take_name(&format!("uplink/{interface}"), |pid| LockError::Uplink {
                interface: interface.clone(),
                pid,
            })
        };
        Ok(Self { _names: interfaces.iter().map(take).collect::<Result<_, _>>()? })
    }
}

/// Takes a name in the host's network namespace, where its devices are too. `held` says what it means that a process has it.
fn take_name(name: &str, held: impl FnOnce(Option<u32>) -> LockError) -> Result<UnixListener, LockError> {
    let failed = |source| LockError::Name { name: name.to_owned(), source };
    let address = SocketAddr::from_abstract_name(format!("ncm-agent/{name}")).map_err(failed)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let peer = UnixStream::connect_addr(&address).ok();
            let peer = peer.and_then(|peer| getsockopt(&peer, sockopt::PeerCredentials).ok());
            Err(held(peer.and_then(|peer| u32::try_from(peer.pid()).ok())))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_agent_of_an_instance_is_told_who_holds_it() {
        let own = std::process::id();
        let directory = std::env::temp_dir().join(format!("a-lock-{own}"));
        let (one, two) = (format!("one-{own}"), format!("two-{own}"));
        let first = InstanceLock::take(&directory, &one).expect("free");
        for other in [&directory, &directory.join("other")] {
            let refused = InstanceLock::take(other, &one).expect_err("held").to_string();
            assert!(refused.contains(&format!("process {own}")), "{refused}");
        }
        InstanceLock::take(&directory, &two).expect("another name is free");
        drop(first);
        let last = InstanceLock::take(&directory, &one).expect("free again");
        last.discard().expect("can be removed");
        assert!(!directory.join(format!("{one}.lock")).exists());
        fs::remove_dir_all(&directory).expect("can be removed");
    }

    #[test]
    fn the_second_agent_of_an_underlay_interface_is_told_who_holds_it() {
        let own = std::process::id();
        let (one, two) = (format!("one{own}"), format!("two{own}"));
        let first = UplinkLocks::take(&[one.clone(), two.clone()]).expect("free");
        let refused = UplinkLocks::take(std::slice::from_ref(&two)).expect_err("held").to_string();
        assert!(refused.contains(&two) && refused.contains(&format!("process {own}")), "{refused}");
        drop(first);
        UplinkLocks::take(&[one, two]).expect("free again");
    }
}
