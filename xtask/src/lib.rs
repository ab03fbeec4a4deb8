//! Developer tasks as a library: everything behind `cargo xtask`, and what a build script needs to have the eBPF
//! object. Knows no product crate, so that it builds first and quickly.
#![allow(
    clippy::print_stderr,
    reason = "a build tool talks to the developer's terminal; stdout belongs to build scripts"
)]

pub mod linker;
pub mod object;
pub mod toolchain;
pub mod workspace;
