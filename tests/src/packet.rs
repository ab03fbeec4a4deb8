//! Packets in, packets out: the real programs on single frames (BPF_PROG_TEST_RUN), in a small world of guests and
//! hosts whose table entries are written directly.
//!
//! ```text
//! subnet A  VNI 100  10.0.1.0/24   a1 .11, a2 .12 here     ra .111 on host 1   ┐ one router
//! subnet B  VNI 200  10.0.2.0/24   b1 .21 here             rb .121 on host 1   ┘
//! subnet C  VNI 300  10.0.1.0/24   c1 = a1, c2 = a2        rc = ra on host 2   (another tenant, same addresses)
//! ```
//!
//! Everything lives in the test thread's own network namespace and nothing is pinned: nothing is left behind, however
//! a test ends.

mod cast;
mod compiled;
mod frame;
mod live;
mod seen;
mod talk;
mod world;

pub use cast::{
    A1, A2, B1, C1, C2, GATEWAY_A, GATEWAY_B, Guest, HERE, HERE_V6, HOST_1, HOST_1_V6, HOST_2, RA, RB, RC,
    Remote, SUBNET_A, SUBNET_B, SUBNET_C, SubnetOf, UNKNOWN_HOST,
};
pub use compiled::{Compiled, GROUPS, GUESTS, PAIR, PAIR_PREFIX, REMOTES};
pub use frame::{
    Arp, Ip, Ip6, Outer, OuterV6, arp_request, echo_request, ethernet, fragment_header, icmp, icmp6,
    ipv4_checksum_holds, ipv6_payload_checksum_holds, mac, segment, solicitation, swap_bytes, tcp, tcp6,
    tunnel, tunnel_from, tunnel_v6, udp, udp_checksum_holds, udp6,
};
pub use seen::{Seen, Verdict};
pub use talk::{Station, Talk};
pub use world::{LOOPBACK, UP0, World, link_local, mapped, uplinks};

/// A MAC.
pub type Mac = [u8; 6];
/// An IPv4 address.
pub type Ipv4 = [u8; 4];
/// An IPv6 address.
pub type Ipv6 = [u8; 16];
