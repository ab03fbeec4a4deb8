//! Packets faster than a socket sends them: live frames of `BPF_PROG_TEST_RUN` through a two-instruction program.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use super::namespace::Namespace;
use super::sys;

/// Sends one frame over and over.
#[derive(Debug)]
pub struct Generator {
    program: OwnedFd,
}

impl Generator {
    /// Loads the program, which sends each frame out of the interface it is run on.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn new() -> Result<Self> {
        // r0 = XDP_TX; exit.
        let instructions = [[0xb7, 0, 0, 0, 3, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        Ok(Self { program: sys::load_program(sys::BPF_PROG_TYPE_XDP, &instructions)? })
    }

    /// Sends a frame `count` times from an interface; its peer must poll (GRO on, or an XDP program).
    ///
    /// # Errors
    /// If there is no such interface or the kernel refuses to run the program.
    pub fn send(&self, machine: &Namespace, interface: &str, frame: &[u8], count: u32) -> Result<()> {
        let index = machine.ifindex(interface)?.with_context(|| format!("no interface {interface}"))?;
        machine.inside(|| sys::transmit(&self.program, index, frame, count))
    }
}
