//! Goal states: decoding, checking, and the model of what should be.

mod message;

pub use message::{DecodeError, Kind, Message};
