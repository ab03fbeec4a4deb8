//! An IP packet, of either version: what decides about it, parsed once.

use super::{Address, Frame, Mac, checksum, ethernet::Ethernet, ipv4, ipv6, transport};

/// Protocol numbers, and those of IPv6's extension headers.
pub mod protocol {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// Routing header.
    pub const ROUTING: u8 = 43;
    /// Fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
    /// Mobility header.
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol.
    pub const HOST_IDENTITY: u8 = 139;
    /// Shim6.
    pub const SHIM6: u8 = 140;
}

/// Bits of [`Packet::class`].
pub mod class {
    /// The packet is the first fragment of a larger one.
    pub const FIRST: u8 = 1;
    /// The packet is a later fragment: there is no transport header in it.
    pub const LATER: u8 = 1 << 1;
    /// ICMP or ICMPv6 other than an echo or its reply.
    pub const MESSAGE: u8 = 1 << 2;
    /// There are extension headers.
    pub const EXTENDED: u8 = 1 << 3;
}

/// Bits of [`Packet::tcp_flags`].
pub mod tcp_flags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Begins a connection.
    pub const SYN: u8 = 1 << 1;
    /// Ends one.
    pub const RST: u8 = 1 << 2;
    /// Acknowledges something.
    pub const ACK: u8 = 1 << 4;
}

/// ICMP and ICMPv6 types.
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// The code of an unreachable destination that says: fragmentation needed.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// ICMPv6: packet too big.
    pub const V6_PACKET_TOO_BIG: u8 = 2;
    /// ICMPv6: time exceeded.
    pub const V6_TIME_EXCEEDED: u8 = 3;
    /// ICMPv6: the first type that is no error.
    pub const V6_ERRORS_END: u8 = 128;
    /// ICMPv6: echo request.
    pub const V6_ECHO_REQUEST: u8 = 128;
    /// ICMPv6: echo reply.
    pub const V6_ECHO_REPLY: u8 = 129;
    /// ICMPv6: router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// ICMPv6: router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// ICMPv6: neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// ICMPv6: neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// ICMPv6: redirect.
    pub const REDIRECT: u8 = 137;
}

/// Why a packet cannot be parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is cut short, or contradicts itself.
    Malformed,
    /// A first fragment does not hold the whole transport header, or a later one would overlap it.
    Tiny,
    /// There are too many extension headers, in the wrong order, or of a kind that is not forwarded.
    Extension,
}

/// A parsed packet. Offsets count from the start of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Packet {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Source MAC.
    pub from: Mac,
    /// Destination MAC.
    pub to: Mac,
    /// Source and destination port as one word, as in memory; 0 without any. An echo's identifier stands in the asker's place.
    pub ports: u32,
    /// What the fragments of one packet have in common.
    pub identification: u32,
    /// Bytes of the packet: headers and payload.
    pub length: u32,
    /// Where the transport header is, or a later fragment's payload.
    pub transport: u32,
    /// Where the part begins that is cut into fragments.
    pub fragmented: u32,
    /// Of a later fragment: where in that part it is, in bytes.
    pub offset: u32,
    /// Checksum of the transport header, as in memory.
    pub checksum: u16,
    /// Checksum of the IPv4 header, as in memory.
    pub ip_checksum: u16,
    /// 4 or 6.
    pub family: u8,
    /// Protocol of the transport header. In a later fragment of IPv6 it is not known yet.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Flags of TCP; 0 otherwise.
    pub tcp_flags: u8,
    /// Type and code of ICMP. In a later fragment of IPv6: the first header of the part that is cut, and 0.
    pub icmp: [u8; 2],
    /// Bytes of the transport header, 0 if it is none that is parsed.
    pub header_len: u8,
    /// Bits of [`class`].
    pub class: u8,
}

impl Packet {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        from: Mac::ZERO,
        to: Mac::ZERO,
        ports: 0,
        identification: 0,
        length: 0,
        transport: 0,
        fragmented: 0,
        offset: 0,
        checksum: 0,
        ip_checksum: 0,
        family: 0,
        protocol: 0,
        ttl: 0,
        tcp_flags: 0,
        icmp: [0; 2],
        header_len: 0,
        class: 0,
    };

    /// Reads the IPv4 packet at `offset`, behind that Ethernet header.
    ///
    /// # Errors
    ///
    /// It cannot be parsed; what is in here then is of no use.
    #[inline(always)]
    pub fn read_v4(
        &mut self,
        frame: &(impl Frame + ?Sized),
        offset: usize,
        ethernet: &Ethernet,
    ) -> Result<(), Fault> {
        self.begin(ethernet, 4);
        ipv4::read(frame, offset, self)?;
        transport::read(frame, offset, self)
    }

    /// Reads the IPv6 packet at `offset`, likewise.
    ///
    /// # Errors
    ///
    /// As of [`Self::read_v4`].
    #[inline(always)]
    pub fn read_v6(
        &mut self,
        frame: &(impl Frame + ?Sized),
        offset: usize,
        ethernet: &Ethernet,
    ) -> Result<(), Fault> {
        self.begin(ethernet, 6);
        ipv6::read(frame, offset, self)?;
        transport::read(frame, offset, self)
    }

    #[inline(always)]
    fn begin(&mut self, ethernet: &Ethernet, family: u8) {
        self.from = ethernet.source;
        self.to = ethernet.destination;
        self.family = family;
        self.class = 0;
        self.offset = 0;
        self.identification = 0;
    }

    /// Bytes from the transport header on.
    #[inline(always)]
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        self.length.wrapping_sub(self.transport)
    }

    /// Whether the packet is a fragment of a larger one.
    #[inline(always)]
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.class & (class::FIRST | class::LATER) != 0
    }

    /// Whether the packet has that protocol's header, as it is no later fragment.
    #[inline(always)]
    #[must_use]
    pub const fn begins(&self, protocol: u8) -> bool {
        self.protocol == protocol && self.class & class::LATER == 0
    }

    /// Source port, host order.
    #[inline(always)]
    #[must_use]
    pub const fn source_port(&self) -> u16 {
        let [a, b, _, _] = self.ports.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }

    /// Destination port, host order.
    #[inline(always)]
    #[must_use]
    pub const fn destination_port(&self) -> u16 {
        let [_, _, a, b] = self.ports.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }

    /// Whether the protocol is ICMP, or ICMPv6 in IPv6.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_icmp(&self) -> bool {
        self.protocol == if self.family == 4 { protocol::ICMP } else { protocol::ICMPV6 }
    }

    /// Whether this is ICMP or ICMPv6, with a header.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        self.class & class::LATER == 0 && self.is_of_icmp()
    }

    /// Whether this is the reply to an echo request.
    #[inline(always)]
    #[must_use]
    pub const fn is_echo_reply(&self) -> bool {
        self.is_of_icmp()
            && self.icmp[0] == if self.family == 4 { icmp::ECHO_REPLY } else { icmp::V6_ECHO_REPLY }
    }

    /// Whether this is an echo request.
    #[inline(always)]
    #[must_use]
    pub const fn is_echo_request(&self) -> bool {
        self.is_icmp()
            && self.icmp[0] == if self.family == 4 { icmp::ECHO_REQUEST } else { icmp::V6_ECHO_REQUEST }
    }

    /// Whether this is an error of ICMP or ICMPv6, which quotes the packet that it is about.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp_error(&self) -> bool {
        if !self.is_icmp() {
            return false;
        }
        if self.family == 6 {
            return self.icmp[0] < icmp::V6_ERRORS_END;
        }
        matches!(self.icmp[0], icmp::UNREACHABLE | 4 | 5 | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM)
    }

    /// Whether the checksum is only begun: the bare sum of the pseudo-header, which a sender leaves there for a device to
    /// complete. One whole checksum in 65,536 looks the same.
    #[inline(always)]
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        if self.class & class::LATER != 0 || !matches!(self.protocol, protocol::TCP | protocol::UDP) {
            return false;
        }
        let sum = self.source.sum_in(self.family)
            + self.destination.sum_in(self.family)
            + (self.protocol as u16).to_be() as u32
            + (self.payload_len() as u16).to_be() as u32;
        self.checksum == checksum::fold(sum)
    }

    /// A hash of the flow that the packet belongs to. All fragments of a packet give the same, so that they go one way.
    #[inline(always)]
    #[must_use]
    pub const fn flow_hash(&self) -> u32 {
        let (ports, protocol) =
            if self.is_fragment() { (self.identification, 0) } else { (self.ports, self.protocol) };
        let (source, destination) = (self.source.words(), self.destination.words());
        let addresses = ((source[3] ^ source[1]) as u64) << 32 | (destination[3] ^ destination[1]) as u64;
        let more = ((source[2] ^ destination[0]) as u64) << 32 | (destination[2] ^ source[0]) as u64;
        let rest = ((ports as u64) << 8) | protocol as u64;
        // Two rounds of multiply and shift (constants of the 64-bit murmur finaliser) spread every bit over the upper half.
        let mut hash = (addresses ^ (addresses >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= rest ^ more.rotate_left(17);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (hash >> 32) as u32
    }

    /// TTL, protocol and checksum (bytes 8 to 12 of the IPv4 header) with that TTL.
    #[inline(always)]
    #[must_use]
    pub const fn with_ttl(&self, ttl: u8) -> [u8; 4] {
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        let new = u16::from_ne_bytes([ttl, self.protocol]);
        let checksum = checksum::update(self.ip_checksum, old, new).to_ne_bytes();
        [ttl, self.protocol, checksum[0], checksum[1]]
    }
}
