//! What follows IPv4: the parts of TCP, UDP and ICMP headers that decide about a packet.

use super::{
    Frame, checksum,
    ipv4::{Ipv4, protocol},
};

/// DHCP's server port (RFC 2131, section 4.1), host order.
pub const DHCP_SERVER: u16 = 67;

/// DHCP's client port, host order.
pub const DHCP_CLIENT: u16 = 68;

/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;

/// Bytes of a UDP header, and of the fixed part of an ICMP header.
pub const UDP_LEN: usize = 8;

/// ICMP types (RFC 792).
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
}

/// The start of a packet's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp(Ports),
    /// UDP.
    Udp(Ports),
    /// ICMP: type and code, and the checksum as in memory.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Checksum, as in memory.
        checksum: u16,
    },
    /// Another protocol, or a fragment that is not the first and so has no header to read.
    Opaque,
}

/// Ports of TCP and UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// Source and destination port as one word, as in memory.
    pub word: u32,
    /// Source, host order.
    pub source: u16,
    /// Destination, host order.
    pub destination: u16,
    /// Checksum, as in memory; 0 in UDP means none.
    pub checksum: u16,
    /// Bytes of the header: 8 in UDP; 20 to 60 in TCP.
    pub header_len: u8,
}

impl Transport {
    /// The header behind the IPv4 header `ip` at `offset`; `None` if it is cut short, or announces more than there is.
    #[inline(always)]
    #[must_use]
    pub fn parse(frame: &(impl Frame + ?Sized), offset: usize, ip: &Ipv4) -> Option<Self> {
        if !ip.starts_payload() {
            return Some(Self::Opaque);
        }
        let start = offset + ip.header_len;
        let len = usize::from(ip.payload_len());
        match ip.protocol {
            protocol::TCP if len >= TCP_LEN => {
                let window = frame.window::<TCP_LEN>(start)?;
                let header_len = (window.u8::<12>() >> 4) << 2;
                if usize::from(header_len) < TCP_LEN || usize::from(header_len) > len {
                    return None;
                }
                Some(Self::Tcp(Ports {
                    word: window.raw32::<0>(),
                    source: window.be16::<0>(),
                    destination: window.be16::<2>(),
                    checksum: window.raw16::<16>(),
                    header_len,
                }))
            }
            protocol::UDP if len >= UDP_LEN => {
                let window = frame.window::<UDP_LEN>(start)?;
                let datagram = usize::from(window.be16::<4>());
                // The first fragment's header counts the bytes of all. Fewer than there are is what receivers cut off.
                if datagram < UDP_LEN || (datagram > len && !ip.is_fragment()) {
                    return None;
                }
                Some(Self::Udp(Ports {
                    word: window.raw32::<0>(),
                    source: window.be16::<0>(),
                    destination: window.be16::<2>(),
                    checksum: window.raw16::<6>(),
                    header_len: UDP_LEN as u8,
                }))
            }
            protocol::ICMP if len >= UDP_LEN => {
                let window = frame.window::<UDP_LEN>(start)?;
                Some(Self::Icmp {
                    kind: window.u8::<0>(),
                    code: window.u8::<1>(),
                    checksum: window.raw16::<2>(),
                })
            }
            protocol::TCP | protocol::UDP | protocol::ICMP => None,
            _ => Some(Self::Opaque),
        }
    }

    /// Whether the checksum is only begun: the bare sum of the pseudo-header, which a sender leaves there for a device to
    /// complete. One whole checksum in 65,536 looks the same.
    #[inline(always)]
    #[must_use]
    pub const fn is_partial(&self, ip: &Ipv4) -> bool {
        let (Self::Tcp(ports) | Self::Udp(ports)) = self else { return false };
        let sum = checksum::halves(ip.source.word())
            + checksum::halves(ip.destination.word())
            + (ip.protocol as u16).to_be() as u32
            + ip.payload_len().to_be() as u32;
        ports.checksum == checksum::fold(sum)
    }

    /// Whether this is a packet from a DHCP server, or to one.
    #[inline(always)]
    #[must_use]
    pub const fn is_dhcp(&self) -> bool {
        let Self::Udp(ports) = self else { return false };
        matches!(
            (ports.source, ports.destination),
            (DHCP_SERVER, DHCP_CLIENT | DHCP_SERVER) | (DHCP_CLIENT, DHCP_SERVER)
        )
    }

    /// A hash of the flow that the packet belongs to. All fragments of a datagram give the same, so that they go one way.
    #[inline(always)]
    #[must_use]
    pub const fn flow_hash(&self, ip: &Ipv4) -> u32 {
        let ports = match self {
            Self::Tcp(ports) | Self::Udp(ports) if !ip.is_fragment() => ports.word,
            _ => 0,
        };
        let addresses = ((ip.source.word() as u64) << 32) | ip.destination.word() as u64;
        let rest = ((ports as u64) << 8) | ip.protocol as u64;
        // Two rounds of multiply and shift (constants of the 64-bit murmur finaliser) spread every bit over the upper half.
        let mut hash = (addresses ^ (addresses >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= rest;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (hash >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::ipv4;

    /// An IPv4 packet with that payload; the header's checksum does not matter here.
    fn packet<const N: usize>(protocol: u8, fragment: u16, payload: [u8; N]) -> ([u8; 128], usize) {
        let mut bytes = [0; 128];
        let len = ipv4::LEN + N;
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[8] = 64;
        bytes[9] = protocol;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[ipv4::LEN..len].copy_from_slice(&payload);
        (bytes, len)
    }

    fn parse(packet: &([u8; 128], usize)) -> (Ipv4, Option<Transport>) {
        let ip = Ipv4::parse(&packet.0[..packet.1], 0).unwrap();
        (ip, Transport::parse(&packet.0[..packet.1], 0, &ip))
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let (_, first) = parse(&packet(protocol::UDP, 0x2000, [0, 68, 0, 67, 0, 8, 0, 0]));
        assert!(
            matches!(first, Some(Transport::Udp(ports)) if ports.source == 68 && ports.destination == 67)
        );
        assert!(first.unwrap().is_dhcp());
        let (_, later) = parse(&packet(protocol::UDP, 0x2001, [0, 68, 0, 67, 0, 8, 0, 0]));
        assert_eq!(later, Some(Transport::Opaque));
    }

    #[test]
    fn all_fragments_of_a_datagram_hash_alike_and_flows_differ() {
        let hash = |fragment, payload| {
            let (ip, transport) = parse(&packet(protocol::UDP, fragment, payload));
            transport.unwrap().flow_hash(&ip)
        };
        assert_eq!(hash(0x2000, [1, 2, 3, 4, 0, 8, 0, 0]), hash(0x0001, [9; 8]));
        assert_ne!(hash(0, [1, 2, 3, 4, 0, 8, 0, 0]), hash(0, [1, 3, 3, 4, 0, 8, 0, 0]));
    }

    #[test]
    fn a_bare_pseudo_header_sum_is_partial() {
        // 0a00 + 0001 + 0a00 + 0002 + 0011 + 0008 = 141c
        let (ip, transport) = parse(&packet(protocol::UDP, 0, [0, 1, 0, 2, 0, 8, 0x14, 0x1c]));
        assert!(transport.unwrap().is_partial(&ip));
        let (ip, transport) = parse(&packet(protocol::UDP, 0, [0, 1, 0, 2, 0, 8, 0, 0]));
        assert!(!transport.unwrap().is_partial(&ip), "no checksum at all is a whole one");
    }

    #[test]
    fn cut_headers_are_none() {
        assert_eq!(parse(&packet(protocol::UDP, 0, [0; 7])).1, None);
        assert_eq!(
            parse(&packet(protocol::UDP, 0, [0, 1, 0, 2, 0, 7, 0, 0])).1,
            None,
            "shorter than its header"
        );
        assert_eq!(
            parse(&packet(protocol::UDP, 0, [0, 1, 0, 2, 0, 9, 0, 0])).1,
            None,
            "longer than its packet"
        );
        assert_eq!(parse(&packet(protocol::TCP, 0, [0; 19])).1, None);
        assert_eq!(parse(&packet(protocol::TCP, 0, [0; 20])).1, None, "a data offset below five words");
        assert_eq!(parse(&packet(protocol::ICMP, 0, [0; 7])).1, None);
        assert_eq!(parse(&packet(47, 0, [0; 0])).1, Some(Transport::Opaque));
    }
}
