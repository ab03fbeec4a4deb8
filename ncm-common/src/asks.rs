//! What the packet path tells the agent about a packet whose destination is not known, so that upstream can be asked for it.

use crate::Plain;

/// What precedes a frame that is handed up with the mark [`ASK`](crate::marks::ASK): 48 bytes, then the guest's frame as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Ask {
    /// VNI of the subnet that the packet is from.
    pub vni: u32,
    /// VNI in which the target is to be known.
    pub target_vni: u32,
    /// The packet's source; IPv4 as an IPv4-mapped IPv6 address.
    pub source: [u8; 16],
    /// What is to become known: the packet's destination, its route's next hop, or what ARP or a neighbour solicitation asks for.
    pub target: [u8; 16],
    /// Source port of TCP or UDP, network order; else 0.
    pub source_port: [u8; 2],
    /// Destination port, likewise.
    pub destination_port: [u8; 2],
    /// `endpoint_flags` of which an entry for the target has to have one; 0: any entry will do.
    pub needs: u16,
    /// Protocol of the IP header (the last of its extension headers); 0 of ARP.
    pub protocol: u8,
    /// [`ask_kinds`].
    pub kind: u8,
}

const _: () = assert!(size_of::<Ask>() == 48, "the layout has padding");

// SAFETY: `repr(C)`, without padding as asserted above, of fields that are themselves plain bytes.
unsafe impl Plain for Ask {}

/// Values of [`Ask::kind`].
pub mod ask_kinds {
    /// A packet to be forwarded.
    pub const PACKET: u8 = 0;
    /// An ARP request.
    pub const ARP: u8 = 1;
    /// A neighbour solicitation.
    pub const DISCOVERY: u8 = 2;
}
