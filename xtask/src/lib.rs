//! Developer tasks as a library: everything behind `cargo xtask`, and what a build script needs to have the eBPF
//! object. Knows no product crate, so that it builds first and quickly.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a build tool talks to the developer's terminal; what a build script calls uses stderr only"
)]

pub mod command;
pub mod components;
pub mod fuzz;
pub mod kernels;
pub mod linker;
pub mod lint;
pub mod object;
pub mod setup;
pub mod test;
pub mod toolchain;
pub mod workspace;
