//! The underlay, followed: for every remote host the tunnel template and the next hops that the kernel's routes and
//! neighbours lead to, written into the tables as they change.
//!
//! `state` decides what to write, from events, without I/O; `write` puts it in order. `follow` feeds it: notifications, full dumps at start,
//! after an overrun and after what the kernel does without a word, and the model's wishes.
//!
//! Followed is the main routing table: policy rules and VRFs are not.

mod follow;
mod groups;
mod neighbours;
mod routes;
mod state;
mod template;
mod uplinks;
mod write;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ncm_common::tables::{Host, Name, NextHopGroup, Uplink};
pub use ncm_model::HostChange;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use self::state::State;
use self::write::Flushed;
use super::{NetlinkError, RECEIVE_BUFFER};
use crate::fault;

/// What the agent knows of its own side of the underlay.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our tunnel endpoints, the outer sources.
    pub endpoints: Endpoints,
    /// UDP destination port of the tunnel, host order.
    pub port: u16,
    /// Names of the interfaces that tunnel traffic may leave by. What is built upon one (a VLAN), and the bond that
    /// one belongs to, count as well.
    pub interfaces: Vec<String>,
    /// Slots in the table of next-hop groups, of which the first is never used.
    pub groups: u32,
    /// Receive buffer of the notification socket in bytes.
    pub receive_buffer: usize,
    /// Whether interfaces of the underlay that come up closed ([`super::sysctl::close_new_interfaces`]) are opened.
    pub open_uplinks: bool,
}

/// Our tunnel endpoints: a remote host is reached over the version of IP that its address is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoints {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Endpoints {
    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// Whether an address is one of ours.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|own| own == address)
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }
}

impl Settings {
    /// Settings with the default size of the receive buffer.
    #[must_use]
    pub fn new(endpoints: Endpoints, port: u16, interfaces: Vec<String>, groups: u32) -> Self {
        Self { endpoints, port, interfaces, groups, receive_buffer: RECEIVE_BUFFER, open_uplinks: true }
    }
}

/// What an agent before left in the tables: it is followed from the start, until the model says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// Used slots of `HOSTS` (generation not 0), by index.
    pub hosts: Vec<(u32, Host)>,
    /// Used slots of `NEXT_HOP_GROUPS`, by index, with their texts from `NAMES` (kind `GROUP`).
    pub groups: Vec<(u32, String, NextHopGroup)>,
}

/// A write to a table. They come in an order in which a reader never sees a half-written value: an idle half first,
/// then the word that says which half is in use; a group before who refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableWrite {
    /// A slot of `NEXT_HOP_GROUPS`; all zero clears it.
    Group {
        /// Index.
        index: u32,
        /// Value.
        value: NextHopGroup,
    },
    /// A slot of `HOSTS`; all zero clears it.
    Host {
        /// Index.
        index: u32,
        /// Value.
        value: Host,
    },
    /// The entry of `NAMES` for a group (kind `GROUP`): put, or removed.
    GroupName {
        /// Index of the group.
        index: u32,
        /// The name.
        name: Option<Name>,
    },
    /// The interfaces of the underlay, as the packet path's own node has them.
    Uplinks([Uplink; 8]),
}

/// Where the writes go. Called with one write at a time, in order, from one thread at a time.
pub trait TableSink: Send + 'static {
    /// Writes it at once.
    ///
    /// # Errors
    /// Says why not; the write, and what depends on it, is tried again later.
    fn write(&mut self, write: &TableWrite) -> Result<(), String>;
}

/// How a remote host is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostReport {
    /// Index in `HOSTS`.
    pub index: u32,
    /// The host's tunnel endpoint.
    pub address: IpAddr,
    /// Its next-hop group; 0 for none.
    pub group: u32,
    /// Largest IP packet of the path in bytes.
    pub mtu: u16,
    /// The next hops that its route names.
    pub path: String,
    /// How many of them are resolved and usable.
    pub resolved: usize,
    /// Why there is no way to it.
    pub problem: Option<String>,
}

/// Lets go of every next hop that an agent had the kernel keep in this network namespace: part of tearing down. An agent
/// of another instance that needs one asks for it again by itself.
///
/// # Errors
/// Fails if the kernel cannot be asked.
pub async fn release_neighbours() -> Result<(), NetlinkError> {
    follow::release_neighbours().await
}

/// The underlay, followed until this is dropped.
pub struct Underlay {
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    /// One lock over what is known and where it is written, so that writes land in the order of the decisions.
    inner: Mutex<Inner>,
    /// There are next hops to look after.
    care: Notify,
    following: AtomicBool,
}

struct Inner {
    state: State,
    sink: Box<dyn TableSink>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn flush(&mut self) -> Flushed {
        self.state.flush(&mut *self.sink)
    }
}

impl Underlay {
    /// Reads how things are in the calling thread's network namespace, writes what follows from it, and goes on
    /// following.
    ///
    /// # Errors
    /// Fails if no sockets can be had or the kernel does not answer.
    pub async fn start(
        settings: Settings,
        adopted: Adopted,
        sink: Box<dyn TableSink>,
    ) -> Result<Self, NetlinkError> {
        let receive_buffer = settings.receive_buffer;
        let mut follower = follow::Follower::open(receive_buffer).await?;
        let snapshot = follower.snapshot().await?;
        let mut inner = Inner { state: State::new(settings, adopted), sink };
        inner.state.apply(state::Event::Complete(snapshot));
        inner.flush();
        follow::open_uplinks(inner.state.take_new_uplinks());
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            care: Notify::new(),
            following: AtomicBool::new(true),
        });
        shared.care.notify_one();
        let following = follow::follow(follower, Arc::clone(&shared), receive_buffer);
        let following = fault::supervise("following the underlay", following);
        let caring = fault::supervise("looking after next hops", follow::care(Arc::clone(&shared)));
        Ok(Self { shared, tasks: [following, caring] })
    }

    /// Does what the model wants of the hosts: when it returns, the tables hold it (resolved or not). Returns the
    /// hosts that could not be written, by index, and why; these are tried again.
    pub fn change_hosts(&self, changes: &[HostChange]) -> Vec<(u32, String)> {
        if changes.is_empty() {
            return Vec::new();
        }
        let mut inner = self.shared.lock();
        let mut failed = inner.state.change_hosts(changes);
        let unwritten = inner.flush().failed;
        failed.extend(
            unwritten.into_iter().map(|(index, error)| (index, format!("{error}; see capacity.hosts"))),
        );
        drop(inner);
        self.shared.care.notify_one();
        failed
    }

    /// Whether the tables are known to follow the kernel now: what the heartbeat says.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.shared.following.load(Ordering::Acquire) && !self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Whether everything known is written.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.shared.lock().state.is_settled()
    }

    /// Our endpoints that are an address of no interface: what the kernel is to decapsulate does not arrive there.
    #[must_use]
    pub fn missing_endpoints(&self) -> Vec<IpAddr> {
        self.shared.lock().state.missing_endpoints()
    }

    /// How many remote hosts are followed, and how many of them have no resolved next hop.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.shared.lock().state.counts()
    }

    /// How each remote host is reached, by index.
    #[must_use]
    pub fn report(&self) -> Vec<HostReport> {
        self.shared.lock().state.report()
    }
}

impl Drop for Underlay {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
