//! What the agent learns from the kernel over netlink, and asks of it: links of guests and of the underlay, routes
//! and neighbours of the underlay, the relay device.
//!
//! Everything here works in the network namespace of the thread that opened it, and needs a tokio runtime.

mod generic;
mod kernel;
pub(crate) mod link;
pub mod links;
pub mod relay;
mod socket;
pub mod sysctl;
pub mod underlay;

use std::io;

use ncm_common::names::stable_hash;
pub(crate) use ncm_dataplane::message;

pub use kernel::Kernel;
pub use link::{Link, MacAddress};
pub use links::{LinkEvent, Links};

/// Receive buffer of event sockets in bytes, unless said otherwise: an overrun costs a full dump.
pub const RECEIVE_BUFFER: usize = 4 << 20;

/// Why the kernel could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket: a lack of file descriptors, memory or privileges.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The socket failed.
    #[error("cannot read from or write to a netlink socket: {0}")]
    Io(#[source] io::Error),
    /// The kernel dropped notifications because they were not read fast enough.
    #[error("netlink notifications were lost")]
    Overrun,
    /// The kernel refused a request.
    #[error("the kernel refused a netlink request of type {request}: {error}{}", explained(words.as_deref()))]
    Refused {
        /// Type of the request (`RTM_*`, or a generic netlink family's number).
        request: u16,
        /// The error.
        #[source]
        error: io::Error,
        /// The kernel's explanation.
        words: Option<String>,
    },
    /// There is no interface of that name or index.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The kernel has no such generic netlink family.
    #[error("this kernel has no generic netlink family {0:?}")]
    NoFamily(&'static str),
    /// The relay device cannot be had.
    #[error("{0}")]
    Relay(String),
    /// The pair of devices that hands packets up cannot be had.
    #[error("{0}")]
    HandUp(String),
}

impl NetlinkError {
    /// The error number the kernel answered with, if it answered.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { error, .. } | Self::Open(error) | Self::Io(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

fn explained(words: Option<&str>) -> String {
    words.map(|words| format!(" ({words})")).unwrap_or_default()
}
