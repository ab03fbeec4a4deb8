//! A lab: the private piece of kernel that one test lives in.
//!
//! A lab has a mount namespace of its own, with its own bpffs, its own `/run` and so its own names for network
//! namespaces. Nothing but the test's process and its children hold it, and the children die with the test: however
//! the test ends, `kill -9` included, the kernel takes namespaces, interfaces, pins and sockets away.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::namespace::Namespace;

type Diagnosis = Box<dyn Fn() -> String>;

/// The private piece of kernel that one test lives in. It stays on the thread that made it.
pub struct Lab {
    mounts: Arc<File>,
    run: File,
    diagnoses: RefCell<Vec<Diagnosis>>,
}

impl Lab {
    /// Builds an empty lab.
    ///
    /// # Errors
    /// Without root, or if the kernel refuses a namespace.
    pub fn new() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "the testbed needs root: it makes network namespaces");
        let (mounts, run) = thread::spawn(private_mounts)
            .join()
            .map_err(|_| anyhow!("making the mount namespace panicked"))?
            .context("make a private mount namespace")?;
        Ok(Self { mounts: Arc::new(mounts), run, diagnoses: RefCell::default() })
    }

    /// Runs a test in a new lab. On failure the panic's message has the error and what every agent has to say.
    ///
    /// # Panics
    /// If the test fails: that is how a test says so.
    pub fn story(test: impl FnOnce(&Self) -> Result<()>) {
        let outcome = Self::new().and_then(|lab| {
            let outcome = catch_unwind(AssertUnwindSafe(|| test(&lab)));
            match outcome {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(anyhow!("{error:#}\n{}", lab.diagnosis())),
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                    match text {
                        Some(text) => Err(anyhow!("{text}\n{}", lab.diagnosis())),
                        None => resume_unwind(panic),
                    }
                }
            }
        });
        if let Err(error) = outcome {
            panic!("{error:#}");
        }
    }

    /// Adds something to say when the test fails.
    pub fn on_failure(&self, diagnosis: impl Fn() -> String + 'static) {
        self.diagnoses.borrow_mut().push(Box::new(diagnosis));
    }

    fn diagnosis(&self) -> String {
        self.diagnoses.borrow().iter().map(|diagnosis| diagnosis()).collect::<Vec<_>>().join("\n")
    }

    /// The lab's own `/run`, as a path that works outside its mount namespace.
    #[must_use]
    pub fn run_directory(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.run.as_raw_fd()))
    }

    /// Makes a network namespace with its loopback up.
    ///
    /// # Errors
    /// If the kernel refuses it or the name is taken.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        let here = File::open("/proc/thread-self/ns/net").context("open the own namespace")?;
        let outside = Namespace::new("outside", here, Arc::clone(&self.mounts));
        outside.run(&format!("ip netns add {name}"))?;
        let net = File::open(self.run_directory().join("netns").join(name))
            .with_context(|| format!("open the namespace {name}"))?;
        let namespace = Namespace::new(name, net, Arc::clone(&self.mounts));
        namespace.run("ip link set lo up")?;
        // Addresses are usable at once, without waiting for duplicate address detection.
        namespace.sysctl("ipv6.conf.default.accept_dad", "0")?;
        namespace.sysctl("ipv6.conf.all.accept_dad", "0")?;
        Ok(namespace)
    }
}

/// How long something may take that takes `limit` at most on an ordinary machine: longer by the factor `NCM_TEST_SLOWNESS`, where the
/// processor is an emulated one.
pub(super) fn patience(limit: Duration) -> Duration {
    limit * slowness()
}

/// How many times slower than an ordinary machine this one is.
pub(super) fn slowness() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = || std::env::var("NCM_TEST_SLOWNESS").ok().and_then(|factor| factor.parse().ok());
    *FACTOR.get_or_init(|| factor().unwrap_or(1).max(1))
}

/// Waits until `holds` returns true, asking every 20 ms.
///
/// # Errors
/// If it does not within `limit`, or asking fails.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    while !holds().with_context(|| what.to_owned())? {
        if Instant::now() > deadline {
            bail!("expected within {limit:?}: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn private_mounts() -> Result<(File, File)> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mount /run")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("mount a bpffs")?;
    fs::create_dir_all("/run/netns")?;
    let mounts = File::open("/proc/thread-self/ns/mnt")?;
    let run = File::options().read(true).custom_flags(libc::O_DIRECTORY).open("/run")?;
    Ok((mounts, run))
}
