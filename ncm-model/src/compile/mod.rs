//! From held goal states to table entries: only what changes.

mod changes;

pub(crate) use changes::HandleKind;
pub use changes::{Changes, Delta, Handle, HostChange, InterfaceChanges, Put};
