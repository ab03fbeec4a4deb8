//! The packet path of NCM, as a library: what the programs in `main.rs` are made of.
//!
//! `headers` compiles for the host too (tests, tools, fuzzing); everything else exists only for the kernel.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch),
    allow(
        unstable_features,
        reason = "the kernel's target itself is unstable, and so is its inline assembly"
    )
)]

pub mod headers;

#[cfg(target_arch = "bpf")]
pub mod context;
#[cfg(target_arch = "bpf")]
pub mod count;
#[cfg(target_arch = "bpf")]
pub mod drop;
#[cfg(all(target_arch = "bpf", feature = "interject"))]
mod interject;
#[cfg(target_arch = "bpf")]
pub mod scratch;
#[cfg(target_arch = "bpf")]
pub mod stages;
#[cfg(target_arch = "bpf")]
pub mod tables;
