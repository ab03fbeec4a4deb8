//! The tables: keys, values, and what each table is.
//!
//! **Addresses** of guests and their networks are 16 bytes: IPv6, or IPv4 as an IPv4-mapped IPv6 address (RFC 4291, section
//! 2.5.5.2), so that every table and every stage serves both. The length of an IPv4 prefix is 96 more than in its usual form.
//!
//! All types are `repr(C)` without implicit padding; reserved bytes are zero and are there so that a new field seldom
//! needs a new layout. [`LAYOUT_VERSION`] changes with every change of a key or a value.
//!
//! **Indices and generations.** Ports, subnets and hosts are numbered; tables refer to them by index. An index may
//! be given to something else later, so every reference carries the generation that its target had, and a reader that
//! follows it compares the two. Index 0 is never given out, and generation 0 marks an empty slot.

use core::mem::offset_of;

use crate::Plain;
use crate::fields::{Described, Field};

/// Version of all layouts in this module together; part of the pin path.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "layout-test") { VERSION + 1 } else { VERSION };

/// The product's version.
const VERSION: u32 = 2;

/// Declares a table type: `repr(C)`, comparable, and proven free of padding by the sum of its fields' sizes.
macro_rules! layout {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)+ })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)+ }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())+, "the layout has padding");

        // SAFETY: `repr(C)`, without padding as asserted above, of fields that are themselves plain bytes.
        unsafe impl Plain for $name {}

        impl Described for $name {
            const FIELDS: &'static [Field] = &[$(Field {
                name: stringify!($field),
                offset: offset_of!($name, $field) as u32,
                size: size_of::<$type>() as u32,
                count: <$type as Described>::COUNT,
                fields: <$type as Described>::FIELDS,
            },)+];
        }

        impl Default for $name {
            fn default() -> Self { Self::zeroed() }
        }
    )+};
}

#[cfg(feature = "layout-test")]
mod other_layout;
#[cfg(feature = "layout-test")]
pub use other_layout::{Endpoint, Flow, FlowKey, Port};

layout! {
    /// A key of a longest-prefix table, as `BPF_MAP_TYPE_LPM_TRIE` wants it: the number of significant bits of what
    /// follows, then the data. For [`SubnetPrefixKey`] that is 32 bits of VNI plus the prefix, and so on.
    pub struct SubnetPrefixKey {
        /// Significant bits: 32 + the length of the subnet's prefix (0 to 128).
        pub prefix_len: u32,
        /// VNI.
        pub vni: u32,
        /// Network address.
        pub ip: [u8; 16],
    }

    /// Key of the routes of one subnet.
    pub struct RouteKey {
        /// Significant bits: 32 + the length of the route's prefix (0 to 128).
        pub prefix_len: u32,
        /// Index of the subnet that the packet comes from.
        pub subnet: u32,
        /// Destination.
        pub ip: [u8; 16],
    }

    /// Key of the prefixes that a port may send from beyond single addresses; and of the IPv6 subnets that it is in, if there are
    /// several: those have no MAC and no family, so that no source is one.
    pub struct SourcePrefixKey {
        /// Significant bits: 96 + the length of the allowed prefix (0 to 128).
        pub prefix_len: u32,
        /// Port index.
        pub port: u32,
        /// Source MAC; zero of a subnet.
        pub mac: [u8; 6],
        /// 4 or 6: `::/0` allows no IPv4 address, although it covers the mapped ones. Of a subnet: 0.
        pub family: u8,
        /// Zero.
        pub reserved: u8,
        /// Source address.
        pub ip: [u8; 16],
    }

    /// Key of the single addresses that a port may send from beyond its first.
    pub struct SourceKey {
        /// Port index.
        pub port: u32,
        /// Source MAC.
        pub mac: [u8; 6],
        /// Zero.
        pub reserved: [u8; 2],
        /// Source address.
        pub ip: [u8; 16],
    }

    /// What a port may send from: the subnet that the address counts as.
    pub struct Source {
        /// Index of the subnet.
        pub subnet: u32,
        /// The subnet's generation.
        pub subnet_generation: u32,
    }

    /// Reference to a numbered thing: its index and the generation it must have.
    pub struct Reference {
        /// Index, never 0.
        pub index: u32,
        /// Generation, never 0.
        pub generation: u32,
    }

    /// A subnet. In an array, by subnet index; an unused slot is all zero.
    pub struct Subnet {
        /// Generation of this index; 0 in an unused slot.
        pub generation: u32,
        /// VNI of the subnet.
        pub vni: u32,
        /// `subnet_flags`.
        pub flags: u32,
        /// Length of the prefix in bits, 0 to 128 (an IPv4 one's is 96 more than in its usual form).
        pub prefix_len: u32,
        /// Gateway address; `::` if the subnet has no gateway.
        pub gateway_ip: [u8; 16],
        /// Network address.
        pub network: [u8; 16],
        /// Gateway MAC; all zero if the subnet has no gateway.
        pub gateway_mac: [u8; 6],
        /// Source MAC of routed frames that leave this host, from the subnet's router; all zero without a router.
        pub dvr_mac: [u8; 6],
        /// Zero.
        pub reserved: [u32; 5],
    }

    /// How packets of a subnet for a prefix are routed.
    pub struct Route {
        /// Index of the subnet in which the destination (or the next hop) is.
        pub subnet: u32,
        /// That subnet's generation.
        pub subnet_generation: u32,
        /// `route_flags`.
        pub flags: u32,
        /// Next hop; `::` for a connected route.
        pub next_hop_ip: [u8; 16],
        /// MAC of the next hop where the controller gave it, else all zero.
        pub next_hop_mac: [u8; 6],
        /// Zero.
        pub reserved: [u8; 6],
    }

    /// Key of an endpoint by MAC.
    pub struct MacKey {
        /// VNI.
        pub vni: u32,
        /// MAC.
        pub mac: [u8; 6],
        /// Zero.
        pub reserved: [u8; 2],
    }

    /// Key of an endpoint by address.
    pub struct IpKey {
        /// VNI.
        pub vni: u32,
        /// Address.
        pub ip: [u8; 16],
    }

    /// Key of the classes of remote addresses, for one policy set and direction.
    pub struct ClassKey {
        /// Significant bits: 32 + the length of the prefix (1 to 128).
        pub prefix_len: u32,
        /// [`set_direction`] of the policy set.
        pub set: u32,
        /// Network address.
        pub ip: [u8; 16],
    }

    /// The classes of an address: one for each prefix of the set's rules that covers it, the longest first; 0 ends the list.
    /// The class of rules for any address is 0 and not listed.
    pub struct Classes {
        /// Class numbers, unique within the set and direction, with [`PREFIXES`] set and without [`MEMBERS`].
        pub classes: [u32; MAX_CLASSES],
    }

    /// Key of what rules allow. A packet is allowed if the longest match for one of its classes exists.
    pub struct RuleKey {
        /// Significant bits: 64, + 8 for the family, + 8 for the protocol, + 1 to 16 for a range of ports.
        pub prefix_len: u32,
        /// [`set_direction`] of the policy set.
        pub set: u32,
        /// 0 for any remote address; a class of [`Classes`]; or with [`MEMBERS`] set, that of [`Endpoint::members`].
        pub class: u32,
        /// 4 or 6.
        pub family: u8,
        /// Protocol of the IP header (the last of its extension headers).
        pub protocol: u8,
        /// Port of the receiver, network order; ICMP: type and code.
        pub port: [u8; 2],
    }

    /// That there is such a rule.
    pub struct Rule {
        /// How many rules of the set's groups ask for exactly this entry.
        pub rules: u32,
    }

    /// How many flows a port has.
    pub struct PortFlows {
        /// Entries in the table of flows.
        pub established: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Key of the decisions by policy.
    pub struct PolicyCountKey {
        /// Port index.
        pub port: u32,
        /// [`set_direction`] of the policy set.
        pub set: u32,
    }

    /// Decisions by policy: how many flows, and packets that begin none, were allowed and denied. A packet that begins none and
    /// that the XDP program of its guest leaves to tc counts at both, as does one that is held until upstream answers.
    pub struct PolicyCount {
        /// Allowed.
        pub allowed: u64,
        /// Denied.
        pub denied: u64,
    }

    /// Key of the hosts that may send into a VNI.
    pub struct VtepKey {
        /// VNI.
        pub vni: u32,
        /// Outer source address; IPv4 as an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
        pub ip: [u8; 16],
    }

    /// A VNI that a held subnet uses.
    pub struct Vni {
        /// How many held subnets use it.
        pub subnets: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// One half of a host's template.
    pub struct TemplateHalf {
        /// Index of the next-hop group; 0 if there is no route to the host.
        pub group: u32,
        /// Largest IP packet, in bytes, that the path to the host carries.
        pub mtu: u16,
        /// Bytes of `headers` in use: 36 over IPv4, 56 over IPv6.
        pub headers_len: u16,
        /// IP, UDP and VXLAN header with everything that is the same for all packets to the host. The IPv4 header's
        /// checksum is that of the header with a total length of 0; lengths, source port and VNI are zero.
        pub headers: [u8; 56],
    }

    /// Tunnel template of a remote host, double-buffered: the agent writes the idle half, then `active`.
    /// In an array, by host index; an unused slot is all zero.
    pub struct Host {
        /// Generation of this index; 0 in an unused slot.
        pub generation: u32,
        /// Which half is in use: 0 or 1.
        pub active: u32,
        /// The halves.
        pub halves: [TemplateHalf; 2],
    }

    /// One way out of this host.
    pub struct NextHop {
        /// Interface to leave by.
        pub ifindex: u32,
        /// MAC of the next hop.
        pub destination: [u8; 6],
        /// MAC of the interface.
        pub source: [u8; 6],
        /// VLAN tag to insert (1 to 4094), or 0 for none.
        pub vlan: u16,
        /// `next_hop_flags`.
        pub flags: u16,
    }

    /// One half of a next-hop group.
    pub struct NextHopHalf {
        /// How many of `hops` are in use: 0 to 8. Only resolved ones are listed.
        pub count: u32,
        /// The next hops; a flow's hash picks one. The interface of the first is used even with a `count` of 0: while the
        /// agent's heartbeat is stale and the kernel does not say by itself which way to go.
        pub hops: [NextHop; 8],
    }

    /// Next-hop group, double-buffered like [`Host`]. In an array, by group index.
    pub struct NextHopGroup {
        /// Generation of this index; 0 in an unused slot.
        pub generation: u32,
        /// Which half is in use: 0 or 1.
        pub active: u32,
        /// The halves.
        pub halves: [NextHopHalf; 2],
    }

    /// What the packet path knows of its own node. In an array of one.
    pub struct Node {
        /// Our tunnel endpoint's IPv4 address; 0.0.0.0 if there is none.
        pub endpoint_v4: [u8; 4],
        /// Our tunnel endpoint's IPv6 address; `::` if there is none.
        pub endpoint_v6: [u8; 16],
        /// `node_flags`.
        pub flags: u32,
        /// UDP port of our tunnel, network order: two bytes of the wire.
        pub tunnel_port: [u8; 2],
        /// UDP port of the relay device, network order; 0 if there is none.
        pub relay_port: [u8; 2],
        /// The relay device's interface index; 0 if there is none.
        pub relay_ifindex: u32,
        /// Interface that hands packets up to the agent; 0 if there is none.
        pub hand_up_ifindex: u32,
        /// Interfaces that tunnel frames come in by, and may leave by where the kernel gives the way; what a next-hop group
        /// lists counts beside them. One with index `i` is in slot `i & 7` if nobody else is there; unused slots are all zero.
        pub uplinks: [Uplink; 8],
    }

    /// An interface of the underlay.
    pub struct Uplink {
        /// Interface index.
        pub ifindex: u32,
        /// Its MAC: what comes in for another one's is not ours.
        pub mac: [u8; 6],
        /// Number of the stack that the interface is part of, from 1: what comes in by one of its interfaces may be for the MAC
        /// of another (a bond's, or that of a bridge over it).
        pub stack: u16,
    }

    /// Packets and bytes.
    pub struct Count {
        /// Packets (a segmentation-offloaded frame counts as one).
        pub packets: u64,
        /// Bytes, from the Ethernet header on.
        pub bytes: u64,
    }

    /// Key of the drops of one port.
    pub struct PortDropKey {
        /// Port index; 0 for frames that no port is known for.
        pub port: u32,
        /// Number of the [`DropReason`](crate::drops::DropReason).
        pub reason: u32,
    }

    /// Traffic of one port, as the guest sees it.
    pub struct PortTraffic {
        /// Frames delivered to the guest.
        pub received: Count,
        /// Frames from the guest.
        pub sent: Count,
    }

    /// What limits the packets that the packet path sends or hands up on behalf of one port. Each is a token bucket in one word:
    /// when it will be full again, in nanoseconds of `CLOCK_MONOTONIC`.
    pub struct PortLimits {
        /// ICMP errors.
        pub errors: u64,
        /// Packets to unknown destinations, handed up for upstream to be asked.
        pub asks: u64,
        /// Other packets handed up to the agent.
        pub hand_ups: u64,
        /// Not used.
        pub reserved: u64,
    }

    /// Key of the names of numbered things.
    pub struct NameKey {
        /// `name_kinds`.
        pub kind: u32,
        /// Index.
        pub index: u32,
    }

    /// Whose index it is: read by the agent at start and by tools, never by a program.
    pub struct Name {
        /// Generation of the index.
        pub generation: u32,
        /// Bytes of `text` in use; a longer identity is cut.
        pub len: u32,
        /// The identity in UTF-8: a resource id, or a remote host's address in its usual text form.
        pub text: [u8; 120],
    }
}

// What `other_layout` has in another form.
#[cfg(not(feature = "layout-test"))]
layout! {
    /// A port: one guest interface of this host. In an array, by port index; an unused slot is all zero.
    pub struct Port {
        /// Generation of this index; 0 in an unused slot.
        pub generation: u32,
        /// Rises with every change of policy, routes or administrative state of the port.
        pub epoch: u32,
        /// The guest's interface on this host; 0 while it has none.
        pub ifindex: u32,
        /// `port_flags`.
        pub flags: u32,
        /// VNI of the port's first fixed address.
        pub vni: u32,
        /// Subnet index of the port's first fixed address; 0 if it has none.
        pub subnet: u32,
        /// That subnet's generation.
        pub subnet_generation: u32,
        /// Number of the port's policy set, which stands for its security groups; 0 if it has none and is open, `NO_RULES` if
        /// it is closed because a group is missing.
        pub set: u32,
        /// The port's first fixed address, an IPv4 one where it has any; `::` if it has none.
        pub ip: [u8; 16],
        /// The port's own MAC.
        pub mac: [u8; 6],
        /// The interface's MTU in bytes.
        pub mtu: u16,
        /// How many established flows the port may have.
        pub max_flows: u32,
        /// Nanoseconds in which the port earns asking upstream for one packet whose destination is not known; 0 if nobody is
        /// asked.
        pub ask_interval: u32,
        /// For how many packets it may ask at once.
        pub asks_at_once: u32,
        /// Zero.
        pub reserved: [u32; 3],
    }

    /// Where a guest is: behind a port of this host, or on a remote one. Value of both endpoint tables.
    pub struct Endpoint {
        /// Port index if `endpoint_flags::LOCAL`, else host index.
        pub target: u32,
        /// Generation of the target.
        pub generation: u32,
        /// Index of the subnet the address is in; 0 in the table by MAC.
        pub subnet: u32,
        /// Class of the security groups that the endpoint is a member of ([`RuleKey::class`]), with [`MEMBERS`] set; 0 if it is in
        /// none, and in the table by MAC.
        pub members: u32,
        /// `endpoint_flags`.
        pub flags: u16,
        /// The guest's MAC.
        pub mac: [u8; 6],
    }

    /// Key of a flow. Both directions have the same.
    pub struct FlowKey {
        /// Index of the port.
        pub port: u32,
        /// The guest's address.
        pub local: [u8; 16],
        /// The other side's address.
        pub remote: [u8; 16],
        /// The guest's transport port, network order. An ICMP echo's identifier if the guest asks, else 0.
        pub local_port: [u8; 2],
        /// The other side's transport port, network order. An ICMP echo's identifier if the other side asks, else 0.
        pub remote_port: [u8; 2],
        /// Protocol.
        pub protocol: u8,
        /// `flow_kinds`.
        pub kind: u8,
        /// Zero.
        pub reserved: [u8; 2],
    }

    /// A flow: what is tracked of a connection, and what is decided about its packets. State, times and timeout are changed in
    /// place, each by itself; all else changes only by a new value in the entry's place.
    ///
    /// Memory of a flow that goes is another's at once. The port's index is therefore at both ends: who compares the two with the
    /// port it asked for, after the last word that it reads, has read no other port's, in whichever order the kernel copies.
    pub struct Flow {
        /// Index of the port, as in the key.
        pub port: u32,
        /// `flow_state`.
        pub state: u32,
        /// When a packet was last seen from the guest (first) and to it (second), in [`ticks`]; 0 for never.
        pub seen: [u32; 2],
        /// Ticks without a packet after which the flow is over.
        pub timeout: u32,
        /// When the flow began, in ticks.
        pub created: u32,
        /// The port's generation.
        pub port_generation: u32,
        /// The port's epoch that the decision is of.
        pub port_epoch: u32,
        /// [`epoch_slot`] of the other side.
        pub remote_slot: u32,
        /// That slot's epoch that the decision is of.
        pub remote_epoch: u32,
        /// `flow_flags`.
        pub flags: u32,
        /// Where packets from the guest go: port index if `flow_flags::LOCAL`, else host index.
        pub target: u32,
        /// Generation of the target.
        pub target_generation: u32,
        /// VNI in which they go.
        pub vni: u32,
        /// Source MAC of the guest's packets.
        pub local_mac: [u8; 6],
        /// Destination MAC of the guest's packets: the gateway's, or the other side's.
        pub via_mac: [u8; 6],
        /// Destination MAC with which they leave.
        pub to_mac: [u8; 6],
        /// Source MAC with which they leave.
        pub from_mac: [u8; 6],
        /// Source MAC with which packets to the guest arrive from the tunnel.
        pub arriving_mac: [u8; 6],
        /// Source MAC with which the guest gets them.
        pub shown_mac: [u8; 6],
        /// Outer source address that packets to the guest were last admitted from; `::` if none were.
        pub peer: [u8; 16],
        /// Index of the port, once more.
        pub port_again: u32,
    }
}

/// Most prefixes of one policy set and direction that may cover one address.
pub const MAX_CLASSES: usize = 8;

/// Bit of a class that stands for the members of security groups.
pub const MEMBERS: u32 = 1 << 31;

/// Bit of a class that stands for a prefix. Rules for every address, under class 0, are apart from all others by it: one step of
/// the longest-prefix table's walk, and not one for each bit that the numbers of classes have.
pub const PREFIXES: u32 = 1 << 30;

/// Number of the policy set that has no rules, whatever there is: a closed port's, so that what is open is never a matter of
/// which word of its entry is written first.
pub const NO_RULES: u32 = u32::MAX >> 1;

/// Policy set and direction as they are in keys.
#[must_use]
pub const fn set_direction(set: u32, to_guest: bool) -> u32 {
    set << 1 | to_guest as u32
}

/// Entries of each port's own table in `HALF_OPEN`, unless `[capacity] half_open` of the configuration says otherwise.
pub const HALF_OPEN_PER_PORT: u32 = 2_048;

/// Key of `[capacity]` in the configuration that sets them.
pub const HALF_OPEN_KEY: &str = "half_open";

/// Slots of the table of remote epochs; a power of two.
pub const EPOCH_SLOTS: u32 = 65_536;

/// The slot of the remote epochs that an address of a VNI has.
#[inline(always)]
#[must_use]
pub const fn epoch_slot(vni: u32, ip: &[u8; 16]) -> u32 {
    let mut hash = vni.wrapping_mul(0x9e37_79b1);
    let mut at = 0;
    while at < 16 {
        let word = u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
        hash = (hash ^ word).wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 15;
        at += 4;
    }
    (hash ^ hash >> 16) & (EPOCH_SLOTS - 1)
}

/// The slot of the remote epochs that a MAC of a VNI has: for what is switched by the table of endpoints by MAC alone.
#[inline(always)]
#[must_use]
pub const fn mac_slot(vni: u32, mac: &[u8; 6]) -> u32 {
    let mut ip = [0; 16];
    let mut at = 0;
    while at < 6 {
        ip[10 + at] = mac[at];
        at += 1;
    }
    epoch_slot(vni, &ip)
}

/// Time in flows: `CLOCK_MONOTONIC` in units of 2^27 ns, about 0.134 s; never 0.
#[inline(always)]
#[must_use]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds >> 27) as u32 | (nanoseconds >> 27 == 0) as u32
}

/// Values of [`FlowKey::kind`].
pub mod flow_kinds {
    /// A flow.
    pub const FLOW: u8 = 0;
    /// The first fragment of a packet from the guest: the ports of the key are the packet's identification, and its own are in the
    /// first four bytes of `to_mac`.
    pub const FRAGMENT_OUT: u8 = 1;
    /// The first fragment of a packet to the guest, likewise.
    pub const FRAGMENT_IN: u8 = 2;
}

/// Bits of [`Flow::state`].
pub mod flow_state {
    /// The other side began the flow; otherwise the guest did.
    pub const REMOTE_BEGAN: u32 = 1;
    /// There was a packet in the answering direction.
    pub const ANSWERED: u32 = 1 << 1;
    /// TCP: the guest sent FIN.
    pub const FIN_OUT: u32 = 1 << 2;
    /// TCP: the other side sent FIN.
    pub const FIN_IN: u32 = 1 << 3;
    /// TCP: somebody sent RST, and nothing but RST has come since.
    pub const RESET: u32 = 1 << 4;
    /// Policy does not allow the flow any more: its packets are dropped as long as they come.
    pub const DENIED: u32 = 1 << 5;
    /// The entry is in the table of flows and counts for its port.
    pub const ESTABLISHED: u32 = 1 << 6;
    /// The side that began has gone on after the answer: in TCP with a segment that is no SYN, in other protocols by itself. A flow of
    /// TCP that was taken up in its middle has it from the begin.
    pub const CONFIRMED: u32 = 1 << 7;
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// `target`, `vni` and the MACs of leaving packets are set.
    pub const OUT: u32 = 1;
    /// The target is a port of this host.
    pub const LOCAL: u32 = 1 << 1;
    /// Packets from the guest are routed: they lose a TTL, and get other MACs.
    pub const ROUTED: u32 = 1 << 2;
    /// `peer` and the MACs of arriving packets are set: such packets were admitted from the tunnel.
    pub const IN: u32 = 1 << 3;
}

/// Keys of the table of timeouts.
pub mod timeouts {
    /// TCP: before the answer.
    pub const TCP_NEW: u32 = 0;
    /// TCP: answered, but the side that began has not gone on yet.
    pub const TCP_SYN_RECEIVED: u32 = 1;
    /// TCP: established.
    pub const TCP_ESTABLISHED: u32 = 2;
    /// TCP: one side or both have sent FIN.
    pub const TCP_CLOSING: u32 = 3;
    /// TCP: after RST.
    pub const TCP_RESET: u32 = 4;
    /// UDP: before the answer.
    pub const UDP_NEW: u32 = 5;
    /// UDP: answered.
    pub const UDP_STREAM: u32 = 6;
    /// ICMP and ICMPv6 echo.
    pub const ICMP: u32 = 7;
    /// Other protocols.
    pub const OTHER: u32 = 8;
    /// First fragments.
    pub const FRAGMENT: u32 = 9;
    /// How many there are.
    pub const COUNT: u32 = 10;
}

/// Bits of [`Port::flags`].
pub mod port_flags {
    /// The port is administratively up.
    pub const UP: u32 = 1;
    /// A security group that the port names is not held: the port is closed.
    pub const CLOSED: u32 = 1 << 1;
    /// The guest's interface takes XDP redirects.
    pub const XDP_TARGET: u32 = 1 << 2;
    /// There are entries for the port in the table of sources.
    pub const SOURCES: u32 = 1 << 3;
    /// There are entries for the port in the table of source prefixes.
    pub const SOURCE_PREFIXES: u32 = 1 << 4;
    /// Rules for what the guest sends name groups of members: until a destination is known, policy cannot say no.
    pub const GROUPS_OUT: u32 = 1 << 5;
}

/// Bits of [`Subnet::flags`].
pub mod subnet_flags {
    /// `gateway_ip` and `gateway_mac` are set.
    pub const GATEWAY: u32 = 1;
    /// A router holds the subnet: its gateway routes and answers pings.
    pub const ROUTED: u32 = 1 << 1;
}

/// Bits of [`Route::flags`].
pub mod route_flags {
    /// The destination itself is in the route's subnet; otherwise the next hop is.
    pub const CONNECTED: u32 = 1;
    /// The route is for IPv6. A packet of the other version has no route: `::/0` covers the mapped addresses too.
    pub const V6: u32 = 1 << 1;
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// The endpoint is behind a port of this host.
    pub const LOCAL: u16 = 1;
    /// Guests of its own subnet reach it: ARP for it is answered.
    pub const L2: u16 = 1 << 1;
    /// Guests of the other subnets of its router reach it.
    pub const L3: u16 = 1 << 2;
}

/// Bits of [`NextHop::flags`].
pub mod next_hop_flags {
    /// The interface takes XDP redirects.
    pub const XDP_TARGET: u16 = 1;
    /// The interface is a veth: what is sent there is received by the same kernel, with the sender's marks on it.
    pub const VETH: u16 = 1 << 1;
}

/// Bits of [`Node::flags`].
pub mod node_flags {
    /// A tunnel frame must come from the host that holds its inner source, where that is known.
    pub const STRICT: u32 = 1;
}

/// Values of [`NameKey::kind`].
pub mod name_kinds {
    /// A port, by its id.
    pub const PORT: u32 = 1;
    /// A subnet, by its id.
    pub const SUBNET: u32 = 2;
    /// A remote host, by its address.
    pub const HOST: u32 = 3;
    /// A next-hop group, by a text that lists its next hops.
    pub const GROUP: u32 = 4;
    /// A policy set, by its security groups' ids in order, with commas between.
    pub const SET: u32 = 5;
    /// A class of members of security groups (without [`MEMBERS`](super::MEMBERS)), by the groups' ids likewise.
    pub const MEMBERS: u32 = 6;
}

/// The kinds of BPF map that tables are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableKind {
    /// `BPF_MAP_TYPE_HASH`, never preallocated.
    Hash,
    /// `BPF_MAP_TYPE_PERCPU_HASH`, never preallocated.
    PerCpuHash,
    /// `BPF_MAP_TYPE_LPM_TRIE` (never preallocated).
    LongestPrefix,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_DEVMAP_HASH`.
    Devices,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS` by port index, of a `BPF_MAP_TYPE_LRU_HASH` for each port in use. Key and value are those of the
    /// inner tables.
    LruByPort,
}

/// What a table is: the one definition that programs, agent, tools and documents share.
#[derive(Clone, Copy, Debug)]
pub struct TableSpec {
    /// Name of the map in the object, in upper case; tools show it in lower case.
    pub name: &'static str,
    /// Kind of map.
    pub kind: TableKind,
    /// Fields of a key; none if it is a number.
    pub key_fields: &'static [Field],
    /// Fields of a value; none if it is a number.
    pub value_fields: &'static [Field],
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value (of one CPU's, in per-CPU tables).
    pub value_size: u32,
    /// Entries, unless the configuration says otherwise.
    pub default_capacity: u32,
    /// Key of `[capacity]` in the configuration that sets the number of entries; `None` where it is fixed.
    pub capacity_key: Option<&'static str>,
    /// What the table holds.
    pub holds: &'static str,
    /// Who writes it.
    pub writer: &'static str,
    /// Who reads it.
    pub reader: &'static str,
}

macro_rules! tables {
    ($($name:ident: $kind:ident<$key:ty, $value:ty>[$capacity:expr, $capacity_key:expr], $holds:literal, $writer:literal, $reader:literal;)+) => {
        /// Every table of the dataplane, in the order in which entries are added (what is referred to first).
        pub const TABLES: &[TableSpec] = &[$(TableSpec {
            name: stringify!($name),
            kind: TableKind::$kind,
            key_fields: <$key as Described>::FIELDS,
            value_fields: <$value as Described>::FIELDS,
            key_size: size_of::<$key>() as u32,
            value_size: size_of::<$value>() as u32,
            default_capacity: $capacity,
            capacity_key: $capacity_key,
            holds: $holds,
            writer: $writer,
            reader: $reader,
        },)+];

        /// Names, types and default capacities of the tables, for the programs' own map definitions.
        #[allow(non_upper_case_globals, reason = "the constants carry the tables' own names")]
        pub mod capacity { $(
            #[doc = concat!("Default capacity of the table `", stringify!($name), "`.")]
            pub const $name: u32 = $capacity;
        )+ }
    };
}

tables! {
    NAMES: Hash<NameKey, Name>[65_536, Some("names")],
        "whose index it is", "agent", "agent at start, tools";
    NODE: Array<u32, Node>[1, None],
        "our addresses and modes", "agent", "all programs";
    HEARTBEAT: Array<u32, u64>[1, None],
        "when the agent last said that it follows the underlay (ns of CLOCK_MONOTONIC)", "agent", "guest programs";
    NEXT_HOP_GROUPS: Array<u32, NextHopGroup>[8_192, Some("hosts")],
        "ways out of this host", "agent", "guest programs";
    HOSTS: Array<u32, Host>[8_192, Some("hosts")],
        "tunnel templates of remote hosts", "agent", "guest programs, wire programs (strict admission)";
    RULES: LongestPrefix<RuleKey, Rule>[524_288, Some("rules")],
        "what policy sets allow", "agent", "all programs";
    CLASSES: LongestPrefix<ClassKey, Classes>[262_144, Some("classes")],
        "classes of remote addresses, by policy set and direction", "agent", "all programs";
    SUBNETS: Array<u32, Subnet>[8_192, Some("subnets")],
        "subnets with their gateways", "agent", "all programs";
    PORTS: Array<u32, Port>[4_096, Some("ports")],
        "ports of this host", "agent", "all programs";
    VNIS: Hash<u32, Vni>[8_192, Some("subnets")],
        "VNIs that are ours", "agent", "wire programs";
    SUBNET_PREFIXES: LongestPrefix<SubnetPrefixKey, Reference>[8_192, Some("subnets")],
        "subnet by VNI and address", "agent", "all programs";
    VTEPS: Hash<VtepKey, Reference>[65_536, Some("vteps")],
        "hosts that may send into a VNI", "agent", "wire programs";
    ENDPOINTS_MAC: Hash<MacKey, Endpoint>[1_048_576, Some("endpoints")],
        "guests by MAC", "agent", "all programs";
    ENDPOINTS_IP: Hash<IpKey, Endpoint>[1_048_576, Some("endpoints")],
        "guests by address", "agent", "all programs";
    ROUTES: LongestPrefix<RouteKey, Route>[65_536, Some("routes")],
        "routes of each subnet", "agent", "guest programs";
    SOURCES: Hash<SourceKey, Source>[65_536, Some("sources")],
        "single addresses that ports may send from, beyond their first", "agent", "guest programs";
    SOURCE_PREFIXES: LongestPrefix<SourcePrefixKey, Source>[16_384, Some("source_prefixes")],
        "prefixes that ports may send from, and IPv6 subnets of ports that are in several", "agent", "guest programs";
    REMOTE_EPOCHS: Array<u32, u32>[crate::tables::EPOCH_SLOTS, None],
        "rises with every change of an endpoint whose address has that slot", "agent", "all programs";
    TIMEOUTS: Array<u32, u32>[crate::tables::timeouts::COUNT, None],
        "after how many ticks without a packet flows are over", "agent", "all programs";
    FLOWS: Hash<FlowKey, Flow>[1_048_576, Some("flows")],
        "established flows", "all programs, agent (removes what is over)", "all programs";
    HALF_OPEN: LruByPort<FlowKey, Flow>[4_096, Some("ports")],
        "flows of each port that are not established yet, and first fragments", "all programs", "all programs";
    PORT_FLOWS: Array<u32, PortFlows>[4_096, Some("ports")],
        "how many established flows each port has", "all programs, agent", "all programs";
    POLICY_COUNTS: PerCpuHash<PolicyCountKey, PolicyCount>[16_384, Some("policy_counts")],
        "decisions by policy, by port and set", "all programs", "agent, tools";
    DEVICES: Devices<u32, u32>[8_192, Some("ports")],
        "devices that take XDP redirects", "agent", "XDP programs";
    PORT_BY_INTERFACE: Hash<u32, Reference>[4_096, Some("ports")],
        "port by interface index", "agent", "guest programs";
    DROPS: PerCpuArray<u32, Count>[crate::drops::REASON_SLOTS, None],
        "drops by reason", "all programs", "agent, tools";
    PORT_DROPS: PerCpuHash<PortDropKey, Count>[65_536, Some("port_drops")],
        "drops by port and reason", "all programs", "agent, tools";
    PORT_TRAFFIC: PerCpuArray<u32, PortTraffic>[4_096, Some("ports")],
        "traffic by port", "all programs", "agent, tools";
    COUNTERS: PerCpuArray<u32, Count>[crate::counters::COUNTER_SLOTS, None],
        "what else is counted", "all programs", "agent, tools";
    LIMITS: Array<u32, PortLimits>[4_096, Some("ports")],
        "limits by port on what is sent or handed up on its behalf", "guest programs", "guest programs";
}

/// The table of that name (upper or lower case), if there is one.
#[must_use]
pub fn table(name: &str) -> Option<&'static TableSpec> {
    TABLES.iter().find(|spec| spec.name.eq_ignore_ascii_case(name))
}
