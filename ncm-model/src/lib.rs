//! Goal states and their compilation into table entries: pure, no I/O.
//!
//! A received message is checked as a whole ([`Message::decode_v2`] and its like), wrapped into a [`Run`] and applied in
//! [`Model::step`]s of bounded size, each of which yields the [`Changes`] of the kernel's tables. When the run is
//! [`Progress::Done`] and the changes are written (refusals reported with [`Model::write_failed`]), [`Model::rows`] gives
//! the outcome of every state.
#![forbid(unsafe_code)]

mod compile;
mod goalstate;
mod model;
mod run;
mod settings;
mod state;
pub mod wire;

pub use compile::{Changes, Delta, Handle, HostChange, InterfaceChanges, Put};
pub use goalstate::{DecodeError, Kind, Message};
pub use model::Model;
pub use run::Run;
pub use settings::{Limits, MissingGroup, Seed, Settings};
pub use state::{
    ChangeKind, Cursor, Difference, Filter, InterfaceFacts, Origin, Progress, Row, StateCount, StateView,
};
