//! The tables: keys, values, and what each table is.
//!
//! All types are `repr(C)` without implicit padding; reserved bytes are zero and are there so that a new field seldom
//! needs a new layout. [`LAYOUT_VERSION`] changes with every change of a key or a value.
//!
//! **Indices and generations.** Ports, subnets and hosts are numbered; tables refer to them by index. An index may
//! be given to something else later, so every reference carries the generation that its target had, and a reader that
//! follows it compares the two. Index 0 is never given out, and generation 0 marks an empty slot.

use crate::Plain;

/// Version of all layouts in this module together; part of the pin path.
pub const LAYOUT_VERSION: u32 = 1;

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

        impl Default for $name {
            fn default() -> Self { Self::zeroed() }
        }
    )+};
}

layout! {
    /// A key of a longest-prefix table, as `BPF_MAP_TYPE_LPM_TRIE` wants it: the number of significant bits of what
    /// follows, then the data. For [`SubnetPrefixKey`] that is 32 bits of VNI plus the prefix, and so on.
    pub struct SubnetPrefixKey {
        /// Significant bits: 32 + the length of the subnet's prefix (0 to 32).
        pub prefix_len: u32,
        /// VNI.
        pub vni: u32,
        /// Network address.
        pub ip: [u8; 4],
    }

    /// Key of the routes of one subnet.
    pub struct RouteKey {
        /// Significant bits: 32 + the length of the route's prefix (0 to 32).
        pub prefix_len: u32,
        /// Index of the subnet that the packet comes from.
        pub subnet: u32,
        /// Destination.
        pub ip: [u8; 4],
    }

    /// Key of the prefixes that a port may send from beyond single addresses.
    pub struct SourcePrefixKey {
        /// Significant bits: 96 + the length of the allowed prefix (0 to 32).
        pub prefix_len: u32,
        /// Port index.
        pub port: u32,
        /// Source MAC.
        pub mac: [u8; 6],
        /// Zero.
        pub reserved: [u8; 2],
        /// Source address.
        pub ip: [u8; 4],
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
        pub ip: [u8; 4],
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
        /// Subnet index of the port's first fixed IPv4 address; 0 if it has none.
        pub subnet: u32,
        /// That subnet's generation.
        pub subnet_generation: u32,
        /// The port's first fixed IPv4 address; 0.0.0.0 if it has none.
        pub ip: [u8; 4],
        /// The port's own MAC.
        pub mac: [u8; 6],
        /// The interface's MTU in bytes.
        pub mtu: u16,
        /// Zero.
        pub reserved: [u32; 6],
    }

    /// A subnet. In an array, by subnet index; an unused slot is all zero.
    pub struct Subnet {
        /// Generation of this index; 0 in an unused slot.
        pub generation: u32,
        /// VNI of the subnet.
        pub vni: u32,
        /// `subnet_flags`.
        pub flags: u32,
        /// Gateway address; 0.0.0.0 if the subnet has no gateway.
        pub gateway_ip: [u8; 4],
        /// Network address.
        pub network: [u8; 4],
        /// Length of the prefix in bits, 0 to 32.
        pub prefix_len: u32,
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
        /// Next hop; 0.0.0.0 for a connected route.
        pub next_hop_ip: [u8; 4],
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

    /// Key of an endpoint by IPv4 address.
    pub struct Ipv4Key {
        /// VNI.
        pub vni: u32,
        /// Address.
        pub ip: [u8; 4],
    }

    /// Where a guest is: behind a port of this host, or on a remote one. Value of both endpoint tables.
    pub struct Endpoint {
        /// Port index if `endpoint_flags::LOCAL`, else host index.
        pub target: u32,
        /// Generation of the target.
        pub generation: u32,
        /// Index of the subnet the address is in; 0 in the table by MAC.
        pub subnet: u32,
        /// `endpoint_flags`.
        pub flags: u16,
        /// The guest's MAC.
        pub mac: [u8; 6],
        /// Zero.
        pub reserved: u32,
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
        /// Interfaces that tunnel frames may leave by where the kernel gives the way; unused slots are 0. What a next-hop
        /// group lists counts beside them.
        pub uplinks: [u32; 8],
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

    /// Token bucket that limits what the packet path sends to a guest on its own behalf.
    pub struct Bucket {
        /// When it was last filled: nanoseconds of `CLOCK_MONOTONIC`.
        pub filled: u64,
        /// Tokens left.
        pub tokens: u64,
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
}

/// What a table is: the one definition that programs, agent, tools and documents share.
#[derive(Clone, Copy, Debug)]
pub struct TableSpec {
    /// Name of the map in the object, in upper case; tools show it in lower case.
    pub name: &'static str,
    /// Kind of map.
    pub kind: TableKind,
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
    ENDPOINTS_IPV4: Hash<Ipv4Key, Endpoint>[1_048_576, Some("endpoints")],
        "guests by IPv4 address", "agent", "all programs";
    ROUTES: LongestPrefix<RouteKey, Route>[65_536, Some("routes")],
        "routes of each subnet", "agent", "guest programs";
    SOURCES: Hash<SourceKey, Source>[65_536, Some("sources")],
        "single addresses that ports may send from, beyond their first", "agent", "guest programs";
    SOURCE_PREFIXES: LongestPrefix<SourcePrefixKey, Source>[16_384, Some("source_prefixes")],
        "prefixes that ports may send from", "agent", "guest programs";
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
    LIMITS: Array<u32, Bucket>[4_096, Some("ports")],
        "limits on ICMP errors by port", "guest programs", "guest programs";
}

/// The table of that name (upper or lower case), if there is one.
#[must_use]
pub fn table(name: &str) -> Option<&'static TableSpec> {
    TABLES.iter().find(|spec| spec.name.eq_ignore_ascii_case(name))
}
