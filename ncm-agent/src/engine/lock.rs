//! One agent per instance: the second one is refused, and told which process holds the name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The instance is ours until this is dropped; the kernel also drops it with the process.
#[derive(Debug)]
pub struct InstanceLock {
    _file: Flock<File>,
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
    /// The lock file cannot be used.
    #[error("cannot use the lock file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
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
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_agent_of_an_instance_is_told_who_holds_it() {
        let directory = std::env::temp_dir().join(format!("a-lock-{}", std::process::id()));
        let first = InstanceLock::take(&directory, "one").expect("free");
        let refused = InstanceLock::take(&directory, "one").expect_err("held").to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        InstanceLock::take(&directory, "two").expect("another name is free");
        drop(first);
        InstanceLock::take(&directory, "one").expect("free again");
        fs::remove_dir_all(&directory).expect("can be removed");
    }
}
