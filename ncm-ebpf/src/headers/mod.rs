//! Headers of frames: Ethernet, ARP, IPv4, IPv6, TCP, UDP, ICMP and VXLAN, parsed into plain values.
//!
//! Everything here compiles for the kernel programs and for the host alike: a parser reads through [`Frame`], which is
//! a packet in the kernel and a byte slice in tests, tools and fuzzing. Parsers read only what they check.

pub mod address;
pub mod arp;
pub mod checksum;
pub mod ethernet;
mod ipv4;
pub mod ipv6;
pub mod nd;
pub mod packet;
pub mod transport;
pub mod tunnel;
pub mod vxlan;
mod window;

pub use address::{Address, Ipv4Address, Mac};
pub use packet::Packet;
pub use tunnel::Tunnel;
pub use window::{Frame, Window};

/// How many bytes from the start of a frame hold all headers that most frames have: Ethernet 14, IPv4 with all its
/// options 60, and the fixed part of a TCP header 20. IPv6 without extension headers needs fewer.
pub const HEADERS: u32 = 14 + 60 + 20;
