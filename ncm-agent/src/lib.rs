//! The NCM node agent as a library; the binaries `ncm-agent` and `ncmctl` are thin over it.

pub mod api;
pub mod config;
pub mod ctl;
pub mod engine;
pub mod inspect;
pub mod netlink;
pub mod telemetry;
