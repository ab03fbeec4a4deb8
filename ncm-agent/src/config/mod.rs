//! The configuration: one TOML file, validated as a whole before anything is opened. `dist/ncm-agent.toml` documents
//! every key.

mod parse;
mod reader;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use ncm_dataplane::TcAttach;

use crate::store::Durability;

pub use reader::Fault;
pub use upstream::{Upstream, UpstreamAddress};

use crate::netlink::underlay::Endpoints;

/// Where the configuration is when the command line does not say.
pub const DEFAULT_PATH: &str = "/etc/ncm/ncm-agent.toml";

/// Exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;

/// Everything the agent is told about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Name that sets this agent apart from others on the same host.
    pub instance: String,
    /// Who this node is.
    pub node: Node,
    /// How other hosts are reached.
    pub underlay: Underlay,
    /// Where the agent listens.
    pub api: Api,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Who is asked for what is not known, and how much.
    pub upstream: Upstream,
    /// Directories.
    pub paths: Paths,
    /// What survives the agent.
    pub store: StoreConfig,
    /// How guests' interfaces are treated.
    pub guest: Guest,
    /// `programs.attach`: how tc programs are attached.
    pub tc_attach: TcAttach,
    /// What happens to a port that names a security group that is not held.
    pub missing_group: MissingGroup,
    /// Entries of tables, by the key in `[capacity]`; without one a table has the capacity of its definition.
    pub capacity: BTreeMap<&'static str, u32>,
    /// How long flows last, and how many a port may have.
    pub flows: Flows,
    /// Logging.
    pub log: Log,
    /// Bounds of what is kept in memory for resources that are not held.
    pub limits: Limits,
}

/// `[node]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Identity of the node: the host's name unless configured.
    pub id: String,
    /// Addresses by which `host_resources` mean this node; the first is the source towards upstream.
    pub addresses: Vec<IpAddr>,
}

/// `[store]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// What is accepted is kept in a journal, in a directory of the instance's name in `paths.state`.
    pub journal: bool,
    /// When it is made durable.
    pub durability: Durability,
    /// Bytes of accepted messages after which a snapshot takes their place, at least.
    pub snapshot_bytes: u64,
}

/// `[underlay]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Underlay {
    /// Our tunnel endpoint over IPv4.
    pub endpoint_v4: Option<Ipv4Addr>,
    /// Our tunnel endpoint over IPv6.
    pub endpoint_v6: Option<Ipv6Addr>,
    /// Interfaces that tunnel frames arrive on and leave by.
    pub interfaces: Vec<String>,
    /// Which hook takes tunnel frames from the wire.
    pub mode: WireMode,
    /// Which hosts may send tunnel frames.
    pub admission: Admission,
    /// UDP port of the tunnel.
    pub port: u16,
    /// UDP port of the agent's own vxlan device.
    pub relay_port: u16,
}

impl Underlay {
    /// Our tunnel endpoints.
    #[must_use]
    pub const fn endpoints(&self) -> Endpoints {
        Endpoints { v4: self.endpoint_v4, v6: self.endpoint_v6 }
    }
}

/// `underlay.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireMode {
    /// Native XDP where the device can, and the wire carries no offloaded frames; else tc.
    Auto,
    /// Native XDP or an error.
    Xdp,
    /// tc, with the kernel's decapsulation.
    Tc,
}

impl WireMode {
    /// The word in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// `underlay.admission`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Any known host of the VNI.
    Known,
    /// The host that holds the inner source, where that is known.
    Strict,
}

/// `[api]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Api {
    /// Where goal states are taken.
    pub listeners: Vec<Listener>,
    /// The operator accepts listeners that others can reach without authentication.
    pub insecure: bool,
    /// The Unix socket of `ncmctl`.
    pub socket: PathBuf,
    /// Group that may use the socket beside root.
    pub group: Option<String>,
    /// Largest message taken, in bytes.
    pub max_message_bytes: u64,
    /// Bytes of messages held and being decoded, over all streams.
    pub max_buffered_bytes: u64,
    /// Seconds without a byte of a message that has begun, after which its stream ends.
    pub stall_seconds: u64,
}

/// One address the agent listens on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listener {
    /// TCP.
    Tcp(SocketAddr),
    /// Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// `[paths]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// What survives a reboot.
    pub state: PathBuf,
    /// Lock and socket.
    pub run: PathBuf,
    /// The BPF file system that maps, programs and links are pinned in.
    pub bpffs: PathBuf,
}

/// `[guest]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// Hook on guests' interfaces.
    pub mode: GuestMode,
    /// Interfaces that use XDP whatever `mode` says.
    pub xdp_interfaces: Vec<String>,
    /// Set the host's defaults for new interfaces so that a guest never reaches the host's own stack.
    pub closed_defaults: bool,
}

/// `guest.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestMode {
    /// tc.
    Tc,
    /// Native XDP, with tc behind it.
    Xdp,
}

/// `policy.missing_group`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MissingGroup {
    /// The port stays closed.
    Closed,
    /// The port is open in both directions.
    Open,
}

/// `[flows]`: seconds without a packet after which a flow is over, and a port's share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flows {
    /// TCP before the answer.
    pub tcp_new: u32,
    /// TCP, answered, but the side that began has not gone on.
    pub tcp_syn_received: u32,
    /// TCP, established.
    pub tcp_established: u32,
    /// TCP, after a FIN of either side.
    pub tcp_closing: u32,
    /// TCP, after a RST.
    pub tcp_reset: u32,
    /// UDP before the answer.
    pub udp_new: u32,
    /// UDP, answered.
    pub udp_stream: u32,
    /// Echo of ICMP and ICMPv6.
    pub icmp: u32,
    /// Other protocols.
    pub other: u32,
    /// Fragments that follow a first one.
    pub fragment: u32,
    /// How many established flows each port may have.
    pub max_flows_per_port: u32,
}

/// `[log]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// Directives of the log filter, such as `info` or `info,ncm_agent::engine=debug`.
    pub level: String,
    /// Form of the lines.
    pub format: LogFormat,
    /// Debug log of the kernel programs.
    pub dataplane: DataplaneLog,
}

/// `log.format`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `log.dataplane`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DataplaneLog {
    Off = 0,
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
    Trace = 5,
}

/// `[limits]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Remembered deletes.
    pub tombstones: u64,
    /// Seconds for which a delete is remembered.
    pub tombstone_age_s: u64,
    /// Resources kept while what they refer to is missing.
    pub parked: u64,
    /// Neighbours held, and addresses of ports and neighbours.
    pub neighbours: u64,
    /// Resources held of each other type.
    pub resources: u64,
    /// Entries of the tables of classes and rules that the security groups of one port may take.
    pub set_entries: u64,
    /// Rules of all security groups together.
    pub rules: u64,
}

/// What the command line overrides.
#[derive(Clone, Default, Debug)]
pub struct Overrides {
    /// `--instance`
    pub instance: Option<String>,
    /// `--log-level`
    pub log_level: Option<String>,
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}; --config names another")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file can be read, and cannot be used.
    #[error("{}", faults.iter().map(|fault| shown(path, fault)).collect::<Vec<_>>().join("\n"))]
    Faults {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        faults: Vec<Fault>,
    },
}

fn shown(path: &Path, fault: &Fault) -> String {
    let mut text = path.display().to_string();
    if fault.line > 0 {
        text += &format!(":{}", fault.line);
    }
    if !fault.key.is_empty() {
        text += &format!(": {}", fault.key);
    }
    text + ": " + &fault.problem
}

impl Config {
    /// Reads and validates the configuration. Without a path the default one is read, and if that does not exist,
    /// every key has its default.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no TOML, or a key, type or value is wrong.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match fs::read(file) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|error| ConfigError::Faults {
                path: file.to_owned(),
                faults: vec![Fault {
                    key: String::new(),
                    line: 0,
                    problem: format!("expected UTF-8 text: {}", error.utf8_error()),
                }],
            })?,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Unreadable { path: file.to_owned(), source }),
        };
        Self::parse(&text, overrides).map_err(|faults| ConfigError::Faults { path: file.to_owned(), faults })
    }

    /// Validates a configuration given as text.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, Vec<Fault>> {
        parse::parse(text, overrides)
    }
}
