//! What the kernel programs and user space share: the keys and values of every table, the drop reasons, the
//! counters and the constants of the packet path. Nothing else defines any of them.
//!
//! Byte order: an address (MAC, IP, prefix) is an array of bytes in network order, exactly as on the wire.
//! Every other integer (VNI, index, MTU, counter) is in host order, unless its documentation says otherwise.
#![no_std]

pub mod asks;
pub mod conversion;
pub mod counters;
pub mod drops;
pub mod fields;
pub mod names;
mod plain;
pub mod tables;

pub use plain::Plain;

/// VXLAN's UDP destination port (RFC 7348, section 5), host order.
pub const VXLAN_PORT: u16 = 4789;

/// UDP port of the agent's own flow-based vxlan device, host order: frames that the kernel has to decapsulate are
/// re-addressed to it, so that another overlay may keep a socket on [`VXLAN_PORT`].
pub const RELAY_PORT: u16 = 47890;

/// Bytes that the tunnel adds in front of a guest's frame over IPv4: IPv4 20, UDP 8, VXLAN 8 and the inner
/// Ethernet header 14, which the outer MTU has to carry too.
pub const OVERHEAD_V4: u16 = 20 + 8 + 8 + 14;

/// Bytes that the tunnel adds in front of a guest's frame over IPv6, likewise with an IPv6 header of 40.
pub const OVERHEAD_V6: u16 = 40 + 8 + 8 + 14;

/// The largest VXLAN network identifier: 24 bits (RFC 7348, section 5).
pub const MAX_VNI: u32 = (1 << 24) - 1;

/// First five bytes of the source MACs that distributed routers use; the sixth is any.
pub const DVR_MAC_PREFIX: [u8; 5] = [0xfe, 0x16, 0x11, 0x00, 0x00];

/// MAC of who answers guests in a subnet without a gateway: the one of distributed routers that none has.
pub const SERVER_MAC: [u8; 6] = [0xfe, 0x16, 0x11, 0, 0, 0];

/// IPv4 address of who answers guests in a subnet without a gateway: one that no subnet has (RFC 3927).
pub const SERVER_IP: [u8; 4] = [169, 254, 169, 253];

/// Names of the kernel programs in the object, one per hook.
pub mod programs {
    /// Native XDP on an underlay interface.
    pub const WIRE_XDP: &str = "wire_xdp";
    /// tc ingress on an underlay interface: re-addresses our tunnel frames to the relay device where XDP is not used.
    pub const WIRE_TC: &str = "wire_tc";
    /// tc ingress on the agent's flow-based vxlan device: frames that the kernel decapsulated.
    pub const RELAY_TC: &str = "relay_tc";
    /// tc ingress on a guest's interface.
    pub const GUEST_TC: &str = "guest_tc";
    /// Native XDP on a guest's interface, on the operator's request.
    pub const GUEST_XDP: &str = "guest_xdp";
    /// tc ingress on the interface that hands packets up: ends them, once the agent's packet socket has read them.
    pub const HAND_UP_TC: &str = "hand_up_tc";
    /// tc egress on that interface: hands what the agent sends to the guest that its mark names.
    pub const HAND_DOWN_TC: &str = "hand_down_tc";
}

/// The mark (`skb->mark`) of packets on the way to the agent and back: the port's index, and why.
pub mod marks {
    /// Bits of the mark for the port's index.
    pub const PORT_BITS: u32 = 24;
    /// To the agent: a DHCP client's message.
    pub const DHCP: u32 = 1;
    /// To the agent: a DHCPv6 client's message.
    pub const DHCPV6: u32 = 2;
    /// To the agent: a router solicitation.
    pub const ROUTER_SOLICITATION: u32 = 3;
    /// From the agent: a frame for the port's guest, as it is.
    pub const DELIVER: u32 = 4;
    /// To the agent: a packet to a destination that is not known, behind an [`Ask`](crate::asks::Ask).
    pub const ASK: u32 = 5;
    /// From the agent: a frame that was held, to go on as if the port's guest sent it now.
    pub const RELEASE: u32 = 6;
    /// From the agent: a frame that was held and ends here. The number of its `DropReason` is added.
    pub const END: u32 = 0x80;

    /// The mark for a port.
    #[must_use]
    pub const fn mark(why: u32, port: u32) -> u32 {
        why << PORT_BITS | port
    }
}
