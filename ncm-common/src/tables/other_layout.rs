//! Some keys and values in another form, for tests: how one layout takes over from another is tried with two that really differ. No
//! build that forwards for anybody has this.

use core::mem::offset_of;

use crate::Plain;
use crate::fields::{Described, Field};

layout! {
    /// A port: one guest interface of this host. In an array, by port index; an unused slot is all zero.
    pub struct Port {
        /// The port's own MAC.
        pub mac: [u8; 6],
        /// The interface's MTU in bytes.
        pub mtu: u16,
        /// Number of the port's policy set, which stands for its security groups; 0 if it has none and is open, `NO_RULES` if
        /// it is closed because a group is missing.
        pub set: u32,
        /// The port's first fixed address, an IPv4 one where it has any; `::` if it has none.
        pub ip: [u8; 16],
        /// Generation of this index; 0 in an unused slot.
        pub generation: u32,
        /// `port_flags`.
        pub flags: u32,
        /// Rises with every change of policy, routes or administrative state of the port.
        pub epoch: u32,
        /// How many established flows the port may have.
        pub max_flows: u32,
        /// The guest's interface on this host; 0 while it has none.
        pub ifindex: u32,
        /// Subnet index of the port's first fixed address; 0 if it has none.
        pub subnet: u32,
        /// VNI of the port's first fixed address.
        pub vni: u32,
        /// That subnet's generation.
        pub subnet_generation: u32,
        /// For how many packets it may ask at once.
        pub asks_at_once: u32,
        /// Nanoseconds in which the port earns asking upstream for one packet whose destination is not known; 0 if nobody is
        /// asked.
        pub ask_interval: u32,
        /// Zero.
        pub reserved: [u32; 3],
    }

    /// Where a guest is: behind a port of this host, or on a remote one. Value of both endpoint tables.
    pub struct Endpoint {
        /// `endpoint_flags`.
        pub flags: u16,
        /// The guest's MAC.
        pub mac: [u8; 6],
        /// Class of the security groups that the endpoint is a member of ([`RuleKey::class`]), with [`MEMBERS`] set; 0 if it is in
        /// none, and in the table by MAC.
        pub members: u32,
        /// Index of the subnet the address is in; 0 in the table by MAC.
        pub subnet: u32,
        /// Generation of the target.
        pub generation: u32,
        /// Port index if `endpoint_flags::LOCAL`, else host index.
        pub target: u32,
    }

    /// Key of a flow. Both directions have the same.
    pub struct FlowKey {
        /// Protocol.
        pub protocol: u8,
        /// `flow_kinds`.
        pub kind: u8,
        /// Zero.
        pub reserved: [u8; 2],
        /// The other side's address.
        pub remote: [u8; 16],
        /// The guest's transport port, network order. An ICMP echo's identifier if the guest asks, else 0.
        pub local_port: [u8; 2],
        /// The other side's transport port, network order. An ICMP echo's identifier if the other side asks, else 0.
        pub remote_port: [u8; 2],
        /// The guest's address.
        pub local: [u8; 16],
        /// Index of the port.
        pub port: u32,
    }

    /// A flow: what is tracked of a connection, and what is decided about its packets. State, times and timeout are changed in
    /// place, each by itself; all else changes only by a new value in the entry's place.
    ///
    /// Memory of a flow that goes is another's at once. The port's index is therefore at both ends: who compares the two with the
    /// port it asked for, after the last word that it reads, has read no other port's, in whichever order the kernel copies.
    pub struct Flow {
        /// Index of the port, as in the key.
        pub port: u32,
        /// When the flow began, in ticks.
        pub created: u32,
        /// When a packet was last seen from the guest (first) and to it (second), in [`ticks`]; 0 for never.
        pub seen: [u32; 2],
        /// `flow_flags`.
        pub flags: u32,
        /// `flow_state`.
        pub state: u32,
        /// Only here: nobody reads it.
        pub added: [u32; 2],
        /// Outer source address that packets to the guest were last admitted from; `::` if none were.
        pub peer: [u8; 16],
        /// That slot's epoch that the decision is of.
        pub remote_epoch: u32,
        /// The port's epoch that the decision is of.
        pub port_epoch: u32,
        /// [`epoch_slot`] of the other side.
        pub remote_slot: u32,
        /// The port's generation.
        pub port_generation: u32,
        /// Destination MAC with which they leave.
        pub to_mac: [u8; 6],
        /// Source MAC with which they leave.
        pub from_mac: [u8; 6],
        /// Only here, likewise.
        pub added_too: u16,
        /// Source MAC of the guest's packets.
        pub local_mac: [u8; 6],
        /// Source MAC with which the guest gets them.
        pub shown_mac: [u8; 6],
        /// Destination MAC of the guest's packets: the gateway's, or the other side's.
        pub via_mac: [u8; 6],
        /// Source MAC with which packets to the guest arrive from the tunnel.
        pub arriving_mac: [u8; 6],
        /// Zero.
        pub spare: u16,
        /// VNI in which they go.
        pub vni: u32,
        /// Generation of the target.
        pub target_generation: u32,
        /// Ticks without a packet after which the flow is over.
        pub timeout: u32,
        /// Where packets from the guest go: port index if `flow_flags::LOCAL`, else host index.
        pub target: u32,
        /// Index of the port, once more.
        pub port_again: u32,
    }
}
