//! A network namespace: run commands and code inside.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use super::packets::PacketSocket;
use super::process::Process;
use super::sys;

/// A program of the testbed's on an interface.
#[derive(Debug)]
pub enum OnIngress {
    /// By tcx.
    Link {
        /// It ends with it.
        _link: OwnedFd,
    },
    /// By a filter, where there is no tcx.
    Filter {
        /// Where.
        ns: Namespace,
        /// On which interface.
        interface: String,
        /// Its priority.
        priority: u16,
    },
}

impl Drop for OnIngress {
    fn drop(&mut self) {
        if let Self::Filter { ns, interface, priority } = self {
            // The interface may have gone.
            let line = format!("tc filter del dev {interface} ingress prio {priority} handle 7 bpf");
            let _gone = ns.outcome(&line.split(' ').collect::<Vec<_>>());
        }
    }
}

/// One machine's network stack. Clones are the same namespace; it ends with the last clone and process in it.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    net: File,
    mounts: Arc<File>,
}

impl Namespace {
    pub(super) fn new(name: &str, net: File, mounts: Arc<File>) -> Self {
        Self { inner: Arc::new(Inner { name: name.to_owned(), net, mounts }) }
    }

    /// The name, which is also what `ip netns` calls it inside the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Runs `work` on a thread inside the namespace. Sockets it opens stay there; it must not start processes.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or `work` fails or panics.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.inner.net, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("code inside {} panicked", self.name()))?
        })
        .with_context(|| format!("in {}", self.name()))
    }

    /// A command that will run inside. It dies with the thread that starts it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        sys::enter_on_start(&mut command, self.inner.mounts.as_raw_fd(), self.inner.net.as_raw_fd());
        command
    }

    /// Runs a command line, split at white space, and returns what it printed to standard output.
    ///
    /// # Errors
    /// If it cannot be started or fails; the message has all its output.
    pub fn run(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.run_words(&words)
    }

    /// Like [`Self::run`], with the arguments already separate.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_words<S: AsRef<str>>(&self, words: &[S]) -> Result<String> {
        let outcome = self.outcome(words)?;
        if !outcome.success {
            bail!("`{}` in {} failed:\n{}{}", outcome.line, self.name(), outcome.stdout, outcome.stderr);
        }
        Ok(outcome.stdout)
    }

    /// Runs a command whose failure is a finding, not an error.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn outcome<S: AsRef<str>>(&self, words: &[S]) -> Result<Outcome> {
        let line = words.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let output = self
            .command(program.as_ref())
            .args(arguments.iter().map(AsRef::as_ref))
            .output()
            .with_context(|| format!("start `{line}`"))?;
        Ok(Outcome {
            line,
            success: output.status.success(),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts a command that runs on; it is killed when the returned value is dropped.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start<S: AsRef<str>>(&self, words: &[S]) -> Result<Process> {
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let mut command = self.command(program.as_ref());
        command.args(arguments.iter().map(AsRef::as_ref));
        Process::start(program.as_ref(), command)
    }

    /// Runs several `ip` commands at once, one a line.
    ///
    /// # Errors
    /// If one fails; the message says which.
    pub fn ip(&self, lines: &str) -> Result<()> {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.run(&format!("ip {line}"))?;
        }
        Ok(())
    }

    /// Writes a value under `/proc/sys/net`, as this namespace sees it.
    ///
    /// # Errors
    /// If the key does not exist or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        self.inside(|| std::fs::write(&path, value).with_context(|| format!("write {value} to {path}")))
    }

    /// Reads a value under `/proc/sys/net`, as this namespace sees it.
    ///
    /// # Errors
    /// If the key does not exist.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        self.inside(|| {
            Ok(std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?.trim().to_owned())
        })
    }

    /// The index of an interface, or `None` while there is none of that name.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn ifindex(&self, interface: &str) -> Result<Option<u32>> {
        self.inside(|| Ok(nix::net::if_::if_nametoindex(interface).ok()))
    }

    /// Puts a program that lets everything pass before all others on an interface's ingress, until it is dropped.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses it.
    pub fn bystander(&self, interface: &str) -> Result<OnIngress> {
        // r0 = TCX_NEXT; exit.
        let instructions = [[0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        self.attach_ingress(&sys::load_program(sys::BPF_PROG_TYPE_SCHED_CLS, &instructions)?, interface, true)
    }

    /// Has a program see what comes in by an interface, after all others or before them, until what is returned is dropped.
    pub(super) fn attach_ingress(
        &self,
        program: &OwnedFd,
        interface: &str,
        before: bool,
    ) -> Result<OnIngress> {
        let index = self.ifindex(interface)?.with_context(|| format!("no interface {interface}"))?;
        if let Some(link) = self.inside(|| sys::attach_ingress(program, index, before))? {
            return Ok(OnIngress::Link { _link: link });
        }
        // This kernel has no tcx. Of filters of one priority the latest runs first.
        let priority = if before { 1 } else { 49_000 };
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
        let id = about.lines().find_map(|line| line.strip_prefix("prog_id:")).context("a program's id")?;
        let pin = format!("/sys/fs/bpf/{}-{interface}", self.name());
        self.run(&format!("bpftool prog pin id {} {pin}", id.trim()))?;
        // There may be one.
        let _known = self.outcome(&["tc", "qdisc", "add", "dev", interface, "clsact"])?;
        self.run(&format!(
            "tc filter add dev {interface} ingress prio {priority} handle 7 bpf da pinned {pin}"
        ))?;
        self.run(&format!("rm {pin}"))?;
        Ok(OnIngress::Filter { ns: self.clone(), interface: interface.to_owned(), priority })
    }

    /// Opens a packet socket on an interface.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn packets(&self, interface: &str) -> Result<PacketSocket> {
        self.inside(|| PacketSocket::open(interface))
    }

    /// Switches offloads, receive aggregation or other features of an interface, as in `"tx off tso off"`.
    ///
    /// # Errors
    /// If the interface does not have the feature.
    pub fn features(&self, interface: &str, settings: &str) -> Result<()> {
        self.run(&format!("ethtool -K {interface} {settings}")).map(drop)
    }

    /// Listens on a TCP port of an address of the namespace.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        self.inside(|| bind(|| TcpListener::bind(address)).with_context(|| format!("listen on {address}")))
    }

    /// Opens a UDP socket.
    ///
    /// # Errors
    /// If the address is taken or not the namespace's.
    pub fn udp(&self, address: SocketAddr) -> Result<UdpSocket> {
        self.inside(|| bind(|| UdpSocket::bind(address)).with_context(|| format!("UDP on {address}")))
    }

    /// The MAC of an interface.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let shown = self.run(&format!("ip -o link show dev {interface}"))?;
        let text = shown
            .split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .with_context(|| format!("no MAC in `{shown}`"))?;
        super::parse_mac(text)
    }

    /// Whether `ping` of an address gets an answer within a second; a few are sent.
    ///
    /// # Errors
    /// If `ping` cannot be started.
    pub fn pings(&self, to: impl Into<IpAddr>) -> Result<bool> {
        let count = ["ping", "-n", "-c", "1", "-W", "1", &to.into().to_string()].map(str::to_owned);
        Ok(self.outcome(&count)?.success)
    }
}

/// Binds a socket to an address that may just have been left: a child that another thread has just forked holds a socket
/// that was closed here until it begins its program.
fn bind<T>(socket: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match socket() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            bound => return bound,
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    /// The command line.
    pub line: String,
    /// Whether its exit code was 0.
    pub success: bool,
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it printed to standard output.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}
