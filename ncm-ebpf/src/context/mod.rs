//! One trait over the kernel's two packet contexts, so that the stages are written once for XDP and tc.
//!
//! Every call that changes a packet invalidates all windows into it: stages read first, decide, and then write.

mod tc;
mod xdp;

use core::arch::asm;

use ncm_common::asks::Ask;
pub use tc::Tc;
pub use xdp::Xdp;

use crate::headers::{Frame, Tunnel, Window};

/// The kernel refused to change a packet, which may be half changed now and can only be dropped.
#[derive(Clone, Copy, Debug)]
pub struct Refused;

/// A packet in the kernel, and what its hook can do with it.
pub trait Context: Frame + Copy {
    /// Whether what this program passes up comes to a tc program of the same interface, which can do more. Where it does,
    /// a program decides to pass up before it changes anything.
    const PASSES_UP: bool;

    /// The action that lets the frame go on to whatever comes next: on the wire, to the host.
    const PASS: i32;

    /// The action that passes a guest's frame up to the tc program of the same interface; without one, it ends the frame.
    const PASS_UP: i32;

    /// The action that ends the frame.
    const DROP: i32;

    /// The interface that the frame came in by.
    fn interface(&self) -> u32;

    /// Payload bytes of each segment that the frame is to be cut into; 0 if it is not.
    fn segment_size(&self) -> u32;

    /// Whether a VLAN tag was taken off the frame.
    fn is_tagged(&self) -> bool;

    /// Whether the frame lies in one piece of memory, as devices want it for an XDP redirect.
    fn is_linear(&self) -> bool;

    /// Replaces bytes of the frame.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn store<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), Refused>;

    /// Puts the frame into a tunnel over IPv4: the headers replace its Ethernet header. `vlan` is a tag to add, or 0.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn encapsulate_v4(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused>;

    /// Puts the frame into a tunnel over IPv6, likewise.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn encapsulate_v6(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused>;

    /// Takes the outer headers off a tunnel frame: so many bytes.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn decapsulate(&self, bytes: usize) -> Result<(), Refused>;

    /// Sends a tunnel frame, whose outer UDP header is at `udp`, to another UDP port of this host. `checksum` is the one in that
    /// header.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn readdress(&self, udp: usize, old: [u8; 2], new: [u8; 2], checksum: u16) -> Result<(), Refused>;

    /// Keeps the first `kept` bytes behind the Ethernet header, puts `headers` bytes for new ones before them, and ends
    /// segmentation: what an ICMP error needs.
    ///
    /// # Errors
    ///
    /// The kernel refused, or the hook cannot do it.
    fn make_room_for_error(&self, kept: u32, headers: i32) -> Result<(), Refused>;

    /// Cuts or lengthens the frame to that many bytes.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn resize(&self, bytes: u32) -> Result<(), Refused>;

    /// Hands the frame to the interface `ifindex` as if it had come in there, with a mark.
    ///
    /// # Errors
    ///
    /// The hook cannot do it.
    fn hand_up(&self, ifindex: u32, mark: u32) -> Result<i32, Refused>;

    /// The same, with an [`Ask`] in front of the frame.
    ///
    /// # Errors
    ///
    /// The kernel refused, or the hook cannot do it.
    fn hand_up_behind(&self, ask: &Ask, ifindex: u32, mark: u32) -> Result<i32, Refused>;

    /// 1 if the agent has held the frame, which it had from the port of that index, and lets it go on now, else 0. It is asked
    /// once: the mark that says so goes.
    fn takes_release(&self, port: u32) -> u32;

    /// Sends the frame out of an interface; `None` if the hook knows no such device.
    fn send(&self, ifindex: u32) -> Option<i32>;

    /// Like [`Self::send`], but a frame to be cut into segments belongs to no tap's socket any more. The kernel would
    /// leave the socket to the last segment, and a veth's other end would not gather that one with the others (GRO)
    /// but let it overtake them.
    fn send_disowned(&self, ifindex: u32) -> Option<i32>;

    /// The interface by which the kernel itself would reach a host; `None` if it knows no way, or the hook cannot ask.
    fn way(&self, question: &Question<'_>) -> Option<u32>;

    /// Sends an encapsulated frame out of an interface, for the kernel to find the next hop's MAC.
    fn send_to_neighbour(&self, ifindex: u32) -> i32;
}

/// What the kernel is asked for a way by.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// An interface with forwarding on, to ask as; 0 for none. The agent's relay device is one.
    pub asking: u32,
    /// The frame's headers, with our tunnel endpoint and the remote host.
    pub headers: &'a Tunnel,
    /// Whether they are IPv6 addresses.
    pub over_v6: bool,
    /// Whether a next hop that is not resolved will do: the kernel then resolves it, and holds frames meanwhile.
    pub unresolved: bool,
    /// The interface to take where the kernel does not say; 0 for none.
    pub otherwise: u32,
}

/// `data + offset`, in a register of its own: the compiler must not compute it anew for the bounds check and for the
/// access, as the verifier only knows that what was checked is what is read if both come from one register.
#[inline(always)]
fn pointer(data: usize, offset: usize) -> usize {
    let start;
    // SAFETY: a move from one register to another. (Without an instruction, two lines of source would share the next one,
    // which the kernel refuses in debug information.)
    unsafe {
        asm!("{start} = {sum}", start = out(reg) start, sum = in(reg) data.wrapping_add(offset),
            options(pure, nomem, nostack, preserves_flags));
    }
    start
}

/// `N` bytes at `data + offset`, if they end by `end`.
#[inline(always)]
fn checked<'a, const N: usize>(data: usize, end: usize, offset: usize) -> Option<Window<'a, N>> {
    let start = pointer(data, offset);
    if start.wrapping_add(N) > end {
        return None;
    }
    // SAFETY: the bytes are before the packet's end, and the verifier refuses a program that uses them too long.
    Some(unsafe { Window::new(start as *const u8) })
}
