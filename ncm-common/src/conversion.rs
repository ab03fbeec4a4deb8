//! How programs read and write tables of flows of another layout: a list of copies from place to place, which the agent makes of what
//! both layouts say of their fields, and gives to the programs as a constant.

use crate::Plain;

/// Names of the programs' constants.
pub mod globals {
    /// One byte: whether there are tables of flows to take over.
    pub const TRANSITION: &str = "TRANSITION";
    /// A [`Conversion`](super::Conversion).
    pub const CONVERSION: &str = "CONVERSION";
}

/// Names of the programs' tables for it.
pub mod maps {
    /// The other table of flows.
    pub const OLD_FLOWS: &str = "OLD_FLOWS";
    /// The other tables of half-open flows.
    pub const OLD_HALF_OPEN: &str = "OLD_HALF_OPEN";
    /// In an array of one: which of [`phases`](super::phases) it is.
    pub const PHASE: &str = "PHASE";
}

/// How far tables have come that are to take the place of others.
pub mod phases {
    /// They are being filled; nobody uses them.
    pub const FILLING: u32 = 0;
    /// Programs are exchanged, one by one. Flows are where they were: all programs read and write them there.
    pub const SWAPPING: u32 = 1;
    /// All programs use these tables. A flow that is not here yet is brought by its next packet, or by the agent.
    pub const IN_USE: u32 = 2;
}

/// Most copies of a key or a value.
pub const MOST_COPIES: usize = 64;

/// Most bytes of a key or a value of another layout.
pub const LARGEST: usize = 256;

/// What is copied from where to where: first words of 4 bytes, then those of 2, then single bytes, all aligned at both places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Copies {
    /// How many of each kind.
    pub counts: [u8; 3],
    /// Zero.
    pub reserved: u8,
    /// From where, to where, in bytes.
    pub places: [[u8; 2]; MOST_COPIES],
}

/// How tables of flows of another layout are read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Conversion {
    /// From our key to theirs.
    pub key: Copies,
    /// From our value to theirs.
    pub to_old: Copies,
    /// From their value to ours.
    pub from_old: Copies,
    /// Where their values have what is changed in place, or read by itself.
    pub at: Places,
}

/// Places in a value, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Places {
    /// `Flow::port`
    pub port: u8,
    /// `Flow::port_again`
    pub port_again: u8,
    /// `Flow::state`
    pub state: u8,
    /// `Flow::seen`, the first
    pub seen: u8,
    /// `Flow::timeout`
    pub timeout: u8,
    /// `Flow::port_epoch`
    pub port_epoch: u8,
    /// `Flow::remote_slot`
    pub remote_slot: u8,
    /// `Flow::remote_epoch`
    pub remote_epoch: u8,
}

impl Copies {
    /// Nothing is copied.
    pub const NONE: Self = Self { counts: [0; 3], reserved: 0, places: [[0; 2]; MOST_COPIES] };
}

impl Conversion {
    /// Nothing is converted.
    pub const NONE: Self = Self {
        key: Copies::NONE,
        to_old: Copies::NONE,
        from_old: Copies::NONE,
        at: Places {
            port: 0,
            port_again: 0,
            state: 0,
            seen: 0,
            timeout: 0,
            port_epoch: 0,
            remote_slot: 0,
            remote_epoch: 0,
        },
    };
}

// SAFETY: `repr(C)`, of bytes alone.
unsafe impl Plain for Conversion {}
