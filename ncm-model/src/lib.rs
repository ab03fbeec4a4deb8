//! Goal states and their compilation into table entries: pure, no I/O.
//!
//! A received message is checked as a whole ([`Message::decode_v2`] and its like), wrapped into a [`Run`] and applied in
//! [`Model::step`]s of bounded size, each of which yields the [`Changes`] of the kernel's tables. When the run is
//! [`Progress::Done`] and the changes are written (refusals reported with [`Model::write_failed`]), [`Model::rows`] gives
//! the outcome of every state.
//!
//! ```
//! use ncm_model::{Changes, Message, Model, Origin, Progress, Run, Seed, Settings};
//!
//! let mut model = Model::new(Settings::default(), &Seed::default());
//! let message = Message::decode_v2(bytes::Bytes::new())?;
//! let mut run = Run::new(message, Origin::Controller, 0);
//! loop {
//!     let mut changes = Changes::default();
//!     let progress = model.step(&mut run, 8192, &mut changes);
//!     // Write the changes; report what the kernel refuses with `model.write_failed`.
//!     if progress == Progress::Done {
//!         break;
//!     }
//! }
//! assert_eq!(model.rows(&run).count(), 0);
//! # Ok::<(), ncm_model::DecodeError>(())
//! ```
//!
//! Inside, `goalstate` reads and checks messages, `apply` brings states into the model under the revision rules, `compile`
//! derives table entries from what has changed, `policy` what security groups come to, `inspect` tells what is held, and
//! `store` keeps a million neighbours in about a hundred bytes each.
#![forbid(unsafe_code)]

mod apply;
mod compile;
mod digest;
mod goalstate;
mod inspect;
mod journal;
pub mod lease;
mod model;
mod policy;
mod recent;
mod resources;
mod run;
mod settings;
mod state;
mod store;
#[cfg(test)]
mod tests;
pub mod wire;

pub use compile::{Changes, Delta, Found, Handle, HostChange, InterfaceChanges, Put, Seen};
pub use digest::Digest;
pub use goalstate::{DecodeError, Kind, Message};
pub use inspect::Learned;
pub use journal::{Facts, Passage, RestoreError};
pub use model::Model;
pub use policy::reference;
pub use recent::{Change, Forgotten, Told};
pub use run::{Asked, Run};
pub use settings::{AskRate, Limits, MissingGroup, Seed, Settings, Slots};
pub use state::{
    ChangeKind, Cursor, Difference, Filter, Gone, InterfaceFacts, Origin, Progress, Row, StateCount,
    StateView,
};
