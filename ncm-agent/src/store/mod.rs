//! The journal: what was accepted, so that it survives the agent, the host's restart and a power cut.
//!
//! A directory holds **segments** (`log-N`), to which accepted messages are appended as they were received, and **snapshots**
//! (`snapshot-N`): what was held when segment N began. Each file is a row of **frames** with length, number and checksums. What
//! the journal tells is the latest snapshot, and the segments from its number on, in order.
//!
//! - **Appending** (`log`) is one thread: it writes what is there, then makes all of it durable with one call, and then answers
//!   everybody who waits for that. Messages are applied meanwhile.
//! - **A power cut** can tear what was not yet durable: it was not answered. Such a tail is cut off. Each frame says up to which
//!   frame all was durable when it was written; a damaged frame that a later one knows to have been durable is no torn tail.
//! - **Damage** sets the journal aside (renamed, not deleted): it tells nothing then, which is less harm than telling half.
//! - **Snapshots** (`snapshot`) are written beside, renamed when they are durable, and only then what they replace is deleted.
//!
//! Nothing here knows what messages mean: that is the engine's, which replays them.

mod disk;
mod frame;
pub(crate) mod history;
mod log;
mod open;
mod snapshot;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub(crate) use frame::Kind as FrameKind;
pub(crate) use log::{Cause, Store, Ticket};
pub(crate) use open::{Journal, Origin as Beginning, Record};
pub(crate) use snapshot::SnapshotFile;

/// When what was accepted is made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Before the reply (fdatasync): nothing answered is lost in a power cut.
    Always,
    /// So many milliseconds after the reply at most: a power cut may take what was answered in that time.
    Within(u64),
    /// When the kernel sees fit: survives the agent, not a power cut.
    Never,
}

/// Why there can be no journal. Damage is no reason: that is set aside.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file cannot be used.
    #[error(
        "the journal in {directory} cannot be used: cannot {action}: {source}; see paths.state and its rights"
    )]
    Io {
        /// Where it is.
        directory: PathBuf,
        /// What was tried.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else has it open.
    #[error(
        "the journal in {directory} is in use by another agent: give this one another paths.state or --instance"
    )]
    Busy {
        /// Where it is.
        directory: PathBuf,
    },
    /// It is another instance's.
    #[error(
        "the journal in {directory} is of instance {other:?}, not of {own:?}: give this agent another paths.state"
    )]
    Other {
        /// Where it is.
        directory: PathBuf,
        /// Whose it is.
        other: String,
        /// Who we are.
        own: String,
    },
}
