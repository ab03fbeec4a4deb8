//! What the agent serves over gRPC: goal states (package `alcor.schema`) and inspection (package `ncm.v1`).

pub mod budget;
pub mod codec;
pub mod goalstate;
pub mod inspect;
mod peer;
pub mod reply;
pub mod server;
pub mod states;
