//! The wire contract: prost types of `alcor.schema`, generated from `proto/alcor`.

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/alcor.schema.rs"));

/// The contract's files as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/alcor.bin"));
