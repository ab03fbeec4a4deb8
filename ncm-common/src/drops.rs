//! Why a packet was dropped. Every drop in the packet path names one of these reasons; the list in `docs/` is
//! generated from here. Numbers are stable: a reason that goes leaves its number unused.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a packet was dropped. The documentation of each reason says exactly when it counts.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum DropReason { $($(#[doc = $doc])+ $name = $number,)+ }

        impl DropReason {
            /// Every reason, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name used in metrics, in the command-line tool and in documents.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $text,)+ } }

            /// When the reason counts, in one sentence or two.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc, "\n"),+),)+ }
            }

            /// The reason with that number, if there is one.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A frame came from an interface that is not bound to a port: not yet, or no more.
    UnknownPort = 1, "unknown_port";
    /// The sending or receiving port is administratively down.
    PortDown = 2, "port_down";
    /// The port is closed because a security group it names is not held.
    PortClosed = 3, "port_closed";
    /// A guest's frame is cut short, or a length in one of its headers contradicts another.
    Malformed = 4, "malformed";
    /// A guest's source MAC is neither its port's own nor one of its allowed pairs.
    SpoofedMac = 5, "spoofed_mac";
    /// A guest's source IP address is neither its port's own nor one of its allowed pairs, for that MAC.
    SpoofedIp = 6, "spoofed_ip";
    /// A guest's ARP message claims a sender MAC or IP address that is not its port's.
    SpoofedArp = 7, "spoofed_arp";
    /// A guest sent what only a DHCP server may send.
    RogueDhcpServer = 8, "rogue_dhcp_server";
    /// A guest sent a router advertisement or an ICMPv6 redirect.
    RogueRouter = 9, "rogue_router";
    /// A guest's frame is of an ethertype that is not forwarded.
    UnsupportedEthertype = 10, "unsupported_ethertype";
    /// A guest's frame carries a VLAN tag.
    Vlan = 11, "vlan";
    /// A guest's frame goes to a multicast or broadcast address, and nothing here answers it.
    Multicast = 13, "multicast";
    /// A guest asked by ARP for an address that is no gateway and no known endpoint of its subnet, or is its own.
    ArpUnknown = 14, "arp_unknown";
    /// A guest sent an ARP message other than a request for an address: an announcement, or a reply nobody awaits.
    ArpIgnored = 15, "arp_ignored";
    /// A guest's frame goes to a MAC that is no known endpoint of its VNI.
    UnknownMac = 16, "unknown_mac";
    /// A packet for the gateway's MAC has a destination that no route of its subnet covers.
    NoRoute = 17, "no_route";
    /// A packet was routed, but its destination (or next hop) is no endpoint that routing may reach.
    UnknownDestination = 18, "unknown_destination";
    /// A routed packet's TTL ran out.
    TtlExceeded = 19, "ttl_exceeded";
    /// A packet is addressed to a gateway itself and is not an echo request that it answers.
    GatewayUnserved = 20, "gateway_unserved";
    /// A packet's destination is behind the port that it came from.
    Hairpin = 21, "hairpin";
    /// A tunnel frame's outer source is no known endpoint of its VNI.
    UnknownVtep = 22, "unknown_vtep";
    /// Under `admission = "strict"`: a tunnel frame came from another host than the one that holds its inner source.
    WrongVtep = 23, "wrong_vtep";
    /// A tunnel frame's inner source is multicast, or that of a local port or of a gateway.
    TunnelSource = 24, "tunnel_source";
    /// A tunnel frame carries ARP, neighbour discovery, a router advertisement or DHCP, which never cross the tunnel.
    TunnelControl = 25, "tunnel_control";
    /// A tunnel frame's VNI is known, but its inner destination is no guest of this host.
    UnknownGuest = 26, "unknown_guest";
    /// A tunnel frame of a known VNI has inner headers that are cut short or contradict each other.
    TunnelMalformed = 27, "tunnel_malformed";
    /// The underlay next hop to the destination's host is not resolved, by neither the agent nor the kernel.
    NextHopUnresolved = 28, "next_hop_unresolved";
    /// A table entry leads to an index that has been given to something else meanwhile.
    StaleIndex = 29, "stale_index";
    /// The kernel refused to grow, shrink or rewrite the packet.
    RewriteFailed = 30, "rewrite_failed";
    /// The packet with its tunnel headers is larger than the path to the remote host carries, or the packet is larger
    /// than the receiving guest's interface takes.
    TooBig = 31, "too_big";
    /// The device that the packet has to leave by is not in the device table: it has just gone.
    NoDevice = 32, "no_device";
    /// A tunnel frame carries an ethertype that is not forwarded to guests.
    TunnelEthertype = 33, "tunnel_ethertype";
    /// A guest sent a packet to a DHCP server's port from another than a client's, or in fragments: nothing answers it.
    DhcpUnanswered = 34, "dhcp_unanswered";
    /// A guest's frame goes straight to a guest's MAC, but its destination address is in another subnet of the VNI: subnets
    /// reach each other by their router only.
    OtherSubnet = 35, "other_subnet";
    /// No rule of the sending port's security groups allows the packet.
    PolicyEgress = 40, "policy_egress";
    /// No rule of the receiving port's security groups allows the packet.
    PolicyIngress = 41, "policy_ingress";
    /// A fragment came without the first one of its packet having been let through.
    FragmentUnknown = 42, "fragment_unknown";
    /// A first fragment does not hold the whole transport header, or a later one would overlap it.
    FragmentTiny = 43, "fragment_tiny";
    /// A guest's neighbour discovery message claims an address or a MAC that is not its port's.
    SpoofedNd = 44, "spoofed_nd";
    /// A guest asked by neighbour solicitation for an address that is no gateway and no known endpoint of its subnet, or is its own.
    NdUnknown = 45, "nd_unknown";
    /// A guest sent a neighbour advertisement, or another message of neighbour discovery that nobody here awaits.
    NdIgnored = 46, "nd_ignored";
    /// A packet for the agent to answer is more than its port's share, or larger than any that it answers (1,600 bytes).
    HandUpLimited = 47, "hand_up_limited";
    /// A packet for the agent to answer came while there was no way up to it.
    HandUpUnavailable = 48, "hand_up_unavailable";
    /// An IPv6 packet's extension headers are too many, out of order or of a kind that is not forwarded.
    ExtensionHeader = 49, "extension_header";
    /// An IPv6 packet between guests has a link-local address that is not the one of its sender's MAC.
    LinkLocal = 50, "link_local";
    /// A packet to a destination that is not known is more than its port may ask upstream for (`upstream.port_asks_per_second`).
    AskLimited = 51, "ask_limited";
    /// A packet to a destination that is not known found no room to be held in until upstream answers.
    AskFull = 52, "ask_full";
    /// Upstream says, or said a moment ago, that it does not know the destination.
    AskRefused = 53, "ask_refused";
    /// Upstream was asked for the destination and did not make it known in time, or cannot be reached.
    AskUnanswered = 54, "ask_unanswered";
    /// A packet was held until upstream had made something known, and its destination is not known all the same.
    AskUnresolved = 55, "ask_unresolved";
}

/// One more than the largest reason's number: the capacity of tables indexed by reason.
pub const REASON_SLOTS: u32 = 64;

/// A packet was dropped; holding one proves that it was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dropped;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_lead_back() {
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_number(*reason as u32), Some(*reason));
            assert!((*reason as u32) < REASON_SLOTS, "{} does not fit the tables", reason.name());
            assert!(!reason.description().trim().is_empty());
            for other in &DropReason::ALL[position + 1..] {
                assert_ne!(reason.name(), other.name());
            }
        }
    }
}
