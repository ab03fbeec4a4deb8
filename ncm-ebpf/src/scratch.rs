//! What a program knows of the packet at hand, in memory of the CPU's own: a program's stack holds 512 bytes over all
//! nested calls. One packet at a time uses it, as programs of one CPU do not interrupt each other.

use core::arch::asm;

use ncm_common::{
    asks::Ask,
    tables::{Flow, FlowKey},
};

use crate::{
    headers::{Address, Mac, Packet, Tunnel},
    tables::SCRATCH,
};

/// What is known of the packet at hand.
#[repr(C)]
pub struct Scratch {
    /// Its headers.
    pub packet: Packet,
    /// The flow of the port that the packet came from, or that it is for if it came from the tunnel.
    pub here: Side,
    /// The flow of the port that gets a packet of another guest of this host.
    pub there: Side,
    /// For keys and values of fragments and of quoted packets.
    pub spare: Side,
    /// Index of the subnet that a guest's packet is from, and its generation.
    pub subnet: u32,
    /// See `subnet`.
    pub subnet_generation: u32,
    /// From the tunnel: VNI.
    pub vni: u32,
    /// From the tunnel: index of the sending host.
    pub host: u32,
    /// From the tunnel: the sending host.
    pub peer: Address,
    /// The address that a neighbour solicitation asks for.
    pub target: Address,
    /// Whose address it is.
    pub owner: Mac,
    /// Whether that is a router.
    pub is_router: u32,
    /// The headers of a tunnel frame.
    pub tunnel: Tunnel,
    /// The headers of an answer.
    pub frame: Frame,
    /// What upstream is to be asked for, where the packet's way ends for want of it.
    pub ask: Ask,
    /// Index of the subnet that what is asked for has to be in; 0 where a route says so.
    pub ask_subnet: u32,
    /// Whether the agent has held the packet before.
    pub held: u32,
    /// How the packet's way ended.
    pub ended: u32,
    /// The ICMP error that is owed.
    pub owed: Owed,
}

/// The headers of an answer, aligned for words behind the Ethernet header.
#[repr(C, align(4))]
pub struct Frame {
    /// Not used.
    pub before: [u8; 2],
    /// The bytes.
    pub bytes: [u8; 94],
}

/// An ICMP error.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Owed {
    /// Type and code, for IPv4.
    pub v4: [u8; 2],
    /// Type and code, for IPv6.
    pub v6: [u8; 2],
    /// The MTU that it reports, in bytes; 0 for none.
    pub mtu: u32,
    /// What counts for the packet if the error is not sent: a `DropReason`.
    pub reason: u32,
}

/// A port's view of the packet's flow.
#[repr(C)]
pub struct Side {
    /// Its key.
    pub key: FlowKey,
    /// What is decided: the entry as it is to be. Whole only after the way through the slow stages.
    pub flow: Flow,
    /// Time, in ticks.
    pub now: u32,
    /// What vouches for a decision that is made now: the port's generation, read before anything was looked up.
    pub port_generation: u32,
    /// The port's epoch, likewise.
    pub port_epoch: u32,
    /// What the flow that was found is of: its slot of the other side's epochs.
    pub remote_slot: u32,
    /// That slot's epoch, likewise.
    pub remote_epoch: u32,
    /// What the tables say: [`NONE`], [`STALE`] or [`VALID`].
    pub found: u32,
    /// Where the entry is: [`NOWHERE`], [`ESTABLISHED`] or [`HALF_OPEN`].
    pub place: u32,
    /// Class of the security groups that the other side is a member of.
    pub members: u32,
    /// Whether `flow` has changed beyond state and time.
    pub changed: u32,
    /// Whether flows are in the tables that ours are to take the place of.
    pub old: u32,
}

/// There is no entry, or it is over.
pub const NONE: u32 = 0;
/// There is one, of an earlier decision.
pub const STALE: u32 = 1;
/// There is one, and its decision stands.
pub const VALID: u32 = 2;

/// There is no entry.
pub const NOWHERE: u32 = 0;
/// It is in the table of flows.
pub const ESTABLISHED: u32 = 1;
/// It is among the port's half-open ones.
pub const HALF_OPEN: u32 = 2;

/// The same memory, of whose content the compiler and the verifier now know nothing: what stages decide by is read anew, so
/// that the verifier need not follow every way that led here by itself.
#[inline(always)]
pub fn forget(scratch: &mut Scratch) -> &mut Scratch {
    let mut pointer: *mut Scratch = scratch;
    // SAFETY: a move from a register to itself; the memory stays as it is.
    unsafe {
        asm!("{pointer} = {pointer}", pointer = inout(reg) pointer, options(nostack, preserves_flags));
        &mut *pointer
    }
}

/// An address that is read once more: what the compiler has made of it before, byte by byte, need not be kept on the stack.
#[inline(always)]
pub fn again(address: &Address) -> Address {
    let mut pointer: *const Address = address;
    // SAFETY: a move from a register to itself; the address stays where it is.
    unsafe {
        asm!("{pointer} = {pointer}", pointer = inout(reg) pointer, options(nostack, preserves_flags));
        *pointer
    }
}

/// This CPU's scratch memory.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the memory is this CPU's alone as long as the program runs, and asked for once per run.
    unsafe { SCRATCH.lookup(&0).as_mut() }
}
