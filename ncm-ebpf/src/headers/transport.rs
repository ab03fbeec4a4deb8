//! What follows IP: the parts of TCP, UDP, ICMP and ICMPv6 headers that decide about a packet.

use super::{
    Frame,
    packet::{Fault, Packet, class, icmp, protocol},
};

/// DHCP's server and client port (RFC 2131, section 4.1), host order.
pub const DHCP_SERVER: u16 = 67;
/// DHCP's client port.
pub const DHCP_CLIENT: u16 = 68;
/// DHCPv6's client port (RFC 8415, section 7.2).
pub const DHCPV6_CLIENT: u16 = 546;
/// DHCPv6's server port.
pub const DHCPV6_SERVER: u16 = 547;

/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;

/// Bytes of a UDP header, and of the fixed part of an ICMP header.
pub const UDP_LEN: usize = 8;

/// Reads the header at `packet.transport` behind `offset`.
///
/// # Errors
///
/// It is cut short, or announces more than there is.
#[inline(always)]
pub(super) fn read(frame: &(impl Frame + ?Sized), offset: usize, packet: &mut Packet) -> Result<(), Fault> {
    packet.ports = 0;
    packet.checksum = 0;
    packet.tcp_flags = 0;
    packet.header_len = 0;
    if packet.class & class::LATER != 0 {
        return Ok(());
    }
    packet.icmp = [0; 2];
    let fault = if packet.class & class::FIRST == 0 { Fault::Malformed } else { Fault::Tiny };
    // The mask changes nothing, and bounds the place for the verifier.
    let at = offset + (packet.transport & 0x1ff) as usize;
    let len = packet.payload_len();
    match packet.protocol {
        protocol::TCP => {
            let window = frame.window::<TCP_LEN>(at).ok_or(fault)?;
            let header_len = (window.u8::<12>() >> 4) << 2;
            if len < TCP_LEN as u32 || usize::from(header_len) < TCP_LEN || u32::from(header_len) > len {
                return Err(fault);
            }
            packet.ports = window.raw32::<0>();
            packet.checksum = window.raw16::<16>();
            packet.tcp_flags = window.u8::<13>();
            packet.header_len = header_len;
        }
        protocol::UDP => {
            let window = frame.window::<UDP_LEN>(at).ok_or(fault)?;
            let datagram = u32::from(window.be16::<4>());
            // The first fragment's header counts the bytes of all. Fewer than there are is what receivers cut off.
            if len < UDP_LEN as u32
                || datagram < UDP_LEN as u32
                || (datagram > len && packet.class & class::FIRST == 0)
            {
                return Err(fault);
            }
            packet.ports = window.raw32::<0>();
            packet.checksum = window.raw16::<6>();
            packet.header_len = UDP_LEN as u8;
        }
        protocol::ICMP if packet.family == 4 => {
            echo(frame, at, packet, icmp::ECHO_REQUEST, icmp::ECHO_REPLY, fault)?
        }
        protocol::ICMPV6 if packet.family == 6 => {
            echo(frame, at, packet, icmp::V6_ECHO_REQUEST, icmp::V6_ECHO_REPLY, fault)?;
        }
        _ => {}
    }
    Ok(())
}

/// ICMP and ICMPv6. An echo's identifier stands for the port of who asks. An echo with a code other than 0 is a message like
/// any other: were it of the flow of its identifier, a rule for type and code would let it through with that.
#[inline(always)]
fn echo(
    frame: &(impl Frame + ?Sized),
    at: usize,
    packet: &mut Packet,
    request: u8,
    reply: u8,
    fault: Fault,
) -> Result<(), Fault> {
    let window = frame.window::<UDP_LEN>(at).ok_or(fault)?;
    if packet.payload_len() < UDP_LEN as u32 {
        return Err(fault);
    }
    let (kind, code) = (window.u8::<0>(), window.u8::<1>());
    let [a, b] = window.raw16::<4>().to_ne_bytes();
    if code != 0 {
        packet.class |= class::MESSAGE;
    } else if kind == request {
        packet.ports = u32::from_ne_bytes([a, b, 0, 0]);
    } else if kind == reply {
        packet.ports = u32::from_ne_bytes([0, 0, a, b]);
    } else {
        packet.class |= class::MESSAGE;
    }
    packet.icmp = [kind, code];
    packet.checksum = window.raw16::<2>();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::{ethernet::Ethernet, ipv4};

    /// An IPv4 packet with that payload; the header's checksum does not matter here.
    fn parse<const N: usize>(protocol: u8, fragment: u16, payload: [u8; N]) -> Result<Packet, Fault> {
        let mut bytes = [0; 128];
        let len = ipv4::LEN + N;
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[8] = 64;
        bytes[9] = protocol;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[ipv4::LEN..len].copy_from_slice(&payload);
        let mut packet = Packet::EMPTY;
        packet.read_v4(&bytes[..len], 0, &Ethernet::EMPTY).map(|()| packet)
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let first = parse(protocol::UDP, 0x2000, [0, 68, 0, 67, 0, 8, 0, 0]).unwrap();
        assert_eq!((first.source_port(), first.destination_port()), (68, 67));
        let later = parse(protocol::UDP, 0x2001, [0, 68, 0, 67, 0, 8, 0, 0]).unwrap();
        assert_eq!(later.ports, 0);
    }

    #[test]
    fn all_fragments_of_a_datagram_hash_alike_and_flows_differ() {
        let hash = |fragment, payload| parse(protocol::UDP, fragment, payload).unwrap().flow_hash();
        assert_eq!(hash(0x2000, [1, 2, 3, 4, 0, 8, 0, 0]), hash(0x0001, [9; 8]));
        assert_ne!(hash(0, [1, 2, 3, 4, 0, 8, 0, 0]), hash(0, [1, 3, 3, 4, 0, 8, 0, 0]));
    }

    #[test]
    fn an_echo_and_its_reply_have_the_identifier_at_who_asks() {
        assert_eq!(parse(1, 0, [8, 0, 0, 0, 0x12, 0x34, 0, 1]).unwrap().source_port(), 0x1234);
        assert_eq!(parse(1, 0, [0, 0, 0, 0, 0x12, 0x34, 0, 1]).unwrap().destination_port(), 0x1234);
        let error = parse(1, 0, [3, 4, 0, 0, 0x12, 0x34, 0, 1]).unwrap();
        assert_eq!((error.ports, error.class, error.icmp), (0, class::MESSAGE, [3, 4]));
        assert!(error.is_icmp_error());
        let coded = parse(1, 0, [8, 1, 0, 0, 0x12, 0x34, 0, 1]).unwrap();
        assert_eq!((coded.ports, coded.class, coded.icmp), (0, class::MESSAGE, [8, 1]), "of no flow");
    }

    #[test]
    fn a_bare_pseudo_header_sum_is_partial() {
        // 0a00 + 0001 + 0a00 + 0002 + 0011 + 0008 = 141c
        assert!(parse(protocol::UDP, 0, [0, 1, 0, 2, 0, 8, 0x14, 0x1c]).unwrap().is_partial());
        let none = parse(protocol::UDP, 0, [0, 1, 0, 2, 0, 8, 0, 0]).unwrap();
        assert!(!none.is_partial(), "no checksum at all is a whole one");
    }

    #[test]
    fn cut_headers_are_refused() {
        const REFUSED: Result<Packet, Fault> = Err(Fault::Malformed);
        assert_eq!(parse(protocol::UDP, 0, [0; 7]), REFUSED);
        assert_eq!(parse(protocol::UDP, 0, [0, 1, 0, 2, 0, 7, 0, 0]), REFUSED, "shorter than its header");
        assert_eq!(parse(protocol::UDP, 0, [0, 1, 0, 2, 0, 9, 0, 0]), REFUSED, "longer than its packet");
        assert_eq!(parse(protocol::TCP, 0, [0; 19]), REFUSED);
        assert_eq!(parse(protocol::TCP, 0, [0; 20]), REFUSED, "a data offset below five words");
        assert_eq!(parse(protocol::ICMP, 0, [0; 7]), REFUSED);
        assert_eq!(parse(47, 0, [0; 0]).unwrap().ports, 0);
        assert_eq!(parse(protocol::UDP, 0x2000, [0; 7]), Err(Fault::Tiny));
    }
}
