//! What the packet path counts beside drops. Each counter is declared here, once, with its name and its meaning.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Something that the packet path counts, in packets and bytes.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum PathCounter { $($(#[doc = $doc])+ $name = $number,)+ }

        impl PathCounter {
            /// Every counter, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name used in metrics, in the command-line tool and in documents.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $text,)+ } }

            /// When the counter moves.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc, "\n"),+),)+ }
            }
        }
    };
}

counters! {
    /// A guest's packet was handed to another guest of this host.
    LocalDelivered = 0, "local_delivered";
    /// A guest's packet was encapsulated and sent to another host.
    Encapsulated = 1, "encapsulated";
    /// A tunnel frame was decapsulated by the XDP program and handed to a guest.
    DecapsulatedXdp = 2, "decapsulated_xdp";
    /// A tunnel frame was decapsulated by the kernel and handed to a guest.
    DecapsulatedRelay = 3, "decapsulated_relay";
    /// A tunnel frame was re-addressed to the relay device, for the kernel to decapsulate.
    Relayed = 4, "relayed";
    /// A frame on the wire is not ours and went on to the host untouched.
    WirePassed = 5, "wire_passed";
    /// An ARP request was answered.
    ArpAnswered = 6, "arp_answered";
    /// A ping of a gateway was answered.
    EchoAnswered = 7, "echo_answered";
    /// An ICMP time exceeded was sent to a guest.
    TimeExceededSent = 8, "time_exceeded_sent";
    /// An ICMP error was owed to a guest, and its port's limit held it back.
    IcmpLimited = 9, "icmp_limited";
    /// The agent's heartbeat was stale or the next hop unresolved, and the kernel's own tables gave the way.
    KernelResolved = 10, "kernel_resolved";
    /// A guest's frame went past XDP for the tc program to take: its checksum is only partial, it is in several buffers,
    /// what it is owed needs another packet, or its way out takes no XDP frames.
    PassedToTc = 11, "passed_to_tc";
    /// A flow was begun: the packet matched none, and policy allows it.
    FlowCreated = 12, "flow_created";
    /// A flow was confirmed by both sides (TCP: SYN, answer, and a segment after it) and is established now.
    FlowEstablished = 13, "flow_established";
    /// A flow was decided anew, as policy, a route, an endpoint or its port had changed.
    FlowRedecided = 14, "flow_redecided";
    /// A flow was to be established, found no room in the table of flows and stays in its port's own; it tries again, now and then.
    FlowTableFull = 15, "flow_table_full";
    /// A flow was to be established, is beyond its port's share of the table of flows and stays in its port's own; it tries again likewise.
    FlowShareFull = 16, "flow_share_full";
    /// A neighbour solicitation was answered.
    NdAnswered = 17, "nd_answered";
    /// An ICMP fragmentation needed or ICMPv6 packet too big was sent to a guest.
    PacketTooBigSent = 18, "packet_too_big_sent";
    /// A guest's packet was handed up to the agent.
    HandedUp = 19, "handed_up";
    /// A packet from the agent was handed to a guest.
    HandedDown = 20, "handed_down";
    /// An ICMP error was let through as it is about a flow.
    ErrorRelated = 21, "error_related";
    /// A packet to a destination that is not known was handed up, for upstream to be asked.
    AskedFor = 22, "asked_for";
    /// A packet that was held for an answer from upstream came back, to go on as if its guest sent it now.
    Released = 23, "released";
}

/// The capacity of the table of counters.
pub const COUNTER_SLOTS: u32 = 32;
