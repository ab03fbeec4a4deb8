//! Compact storage: built for millions of resources with few bytes each, and no long pause to grow.

mod allocator;
mod claims;
mod hosts;
mod index;
mod provenance;
mod slab;
mod strings;
mod tombstones;

pub(crate) use allocator::Allocator;
pub(crate) use claims::{Claims, Member};
pub(crate) use hosts::Hosts;
pub(crate) use index::Index;
pub(crate) use provenance::{Provenance, Provenances};
pub(crate) use slab::Slab;
pub(crate) use strings::{Strings, Sym, uuid_of, uuid_text};
pub(crate) use tombstones::Tombstones;

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;
