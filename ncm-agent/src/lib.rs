//! The NCM node agent as a library; the binaries `ncm-agent` and `ncmctl` are thin over it.

pub mod agent;
pub mod api;
pub mod config;
pub mod ctl;
pub mod engine;
mod fault;
pub mod hand_up;
pub mod inspect;
pub mod netlink;
pub mod responders;
pub mod store;
mod supervisor;
pub mod telemetry;
pub mod upstream;

pub use fault::explained;

/// The agent's own services: messages, server and client of package `ncm.v1`.
pub mod ncm_v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        reason = "generated from proto/ncm/v1, which documents everything"
    )]
    #![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/ncm.v1.rs"));

    /// Descriptors of the package, serialised as a `FileDescriptorSet`.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ncm_v1.bin"));
}

/// Clients of the goal-state services (package `alcor.schema`), for tools, tests and requests to upstream.
pub mod alcor {
    #![allow(missing_docs, unreachable_pub, reason = "generated")]
    #![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/alcor.schema.GoalStateProvisioner.rs"));
    include!(concat!(env!("OUT_DIR"), "/alcor.schema.SubscribeInfoProvisioner.rs"));
}
