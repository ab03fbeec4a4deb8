//! Goal states: decoding and checking what was received.

pub(crate) mod filter;
pub(crate) mod merge;
pub(crate) mod message;
pub(crate) mod neighbour_view;
pub(crate) mod parse;
mod reader;

pub use message::{DecodeError, Kind, Message};
