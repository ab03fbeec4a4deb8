//! From held goal states to table entries: only what changes.

pub(crate) mod addresses;
mod changes;
pub(crate) mod endpoints;
mod epochs;
pub(crate) mod flush;
pub(crate) mod groups;
pub(crate) mod hosts;
pub(crate) mod mapped;
pub(crate) mod mirror;
mod ports;
pub(crate) mod reconcile;
mod room;
mod routes;
mod subnets;

pub(crate) use changes::HandleKind;
pub use changes::{Changes, Delta, Handle, HostChange, InterfaceChanges, Put};
pub use reconcile::{Found, Seen};
pub(crate) use room::{Room, Scarce};
