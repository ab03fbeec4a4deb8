//! What the netlink tests share: a network namespace of their own, and waiting for what should come.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A network namespace that goes with the value.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, with its loopback up. Needs root.
    pub(crate) fn new(purpose: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the netlink tests make network namespaces: run them as root"
        );
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("n-{purpose}-{}-{serial}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Its name.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` with these arguments in it.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// Runs a command in it.
    #[allow(dead_code, reason = "not every test file runs commands")]
    pub(crate) fn command(&self, command: &str) -> String {
        let network = format!("--net=/run/netns/{}", self.name);
        let mut all = vec![network.as_str()];
        all.extend(command.split_whitespace());
        run("nsenter", &all)
    }

    /// Runs a command in it, however it ends.
    #[allow(dead_code, reason = "not every test file runs commands")]
    pub(crate) fn command_any(&self, command: &str) {
        let network = format!("--net=/run/netns/{}", self.name);
        let _ = Command::new("nsenter").arg(network).args(command.split_whitespace()).output();
    }

    /// Runs `body` on a thread and a runtime inside the namespace.
    pub(crate) fn run(&self, body: impl AsyncFnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.name)).expect("open the namespace");
                setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("make a runtime").block_on(async {
                    let limit = Duration::from_secs(60);
                    tokio::time::timeout(limit, body()).await.expect("the test ends within a minute");
                });
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs a command and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {} failed: {}{printed}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

/// Waits, up to ten seconds, until `look` finds something.
#[allow(dead_code, reason = "not every test file waits")]
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    for _ in 0..1000 {
        match look() {
            Ok(found) => return found,
            Err(found) => last = found,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("expected {what} within 10 s, but: {last}");
}
