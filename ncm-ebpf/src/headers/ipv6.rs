//! IPv6 and its extension headers (RFC 8200).

use super::{
    Address, Frame,
    packet::{Fault, Packet, class, protocol},
};

/// Bytes of the header.
pub const LEN: usize = 40;

/// How many extension headers a packet may have.
const MOST: usize = 6;

/// Where the transport header begins at the latest.
pub const TRANSPORT_MAX: u32 = 40 + 256;

/// Whether a packet's transport header follows its IPv6 header at once.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION
            | protocol::MOBILITY
            | protocol::HOST_IDENTITY
            | protocol::SHIM6
    )
}

/// Reads the header at `offset`, and what extends it.
///
/// # Errors
///
/// The frame does not hold the headers or all bytes that they announce, or they contradict themselves or are refused.
#[inline(always)]
pub(super) fn read(frame: &(impl Frame + ?Sized), offset: usize, packet: &mut Packet) -> Result<(), Fault> {
    let window = frame.window::<LEN>(offset).ok_or(Fault::Malformed)?;
    let length = LEN as u32 + u32::from(window.be16::<4>());
    if window.u8::<0>() >> 4 != 6 || offset as u32 + length > frame.length() {
        return Err(Fault::Malformed);
    }
    packet.source = Address::at::<8, 12, 16, 20, LEN>(&window);
    packet.destination = Address::at::<24, 28, 32, 36, LEN>(&window);
    // Of the other version, and no addresses of any station's (RFC 6890, section 2.2.3): a table would take one for the other.
    if packet.source.is_v4() || packet.destination.is_v4() {
        return Err(Fault::Malformed);
    }
    packet.length = length;
    packet.transport = LEN as u32;
    packet.fragmented = LEN as u32;
    packet.ttl = window.u8::<7>();
    packet.protocol = window.u8::<6>();
    packet.ip_checksum = 0;
    if is_extension(packet.protocol) {
        frame.reach(offset as u32 + TRANSPORT_MAX + 20);
        return match walk(frame, offset, packet) {
            0 => Ok(()),
            1 => Err(Fault::Malformed),
            2 => Err(Fault::Tiny),
            _ => Err(Fault::Extension),
        };
    }
    Ok(())
}

/// Follows the extension headers; gives 0, or what is wrong as a number. Apart from the straight path, as few packets have any.
#[inline(never)]
fn walk(frame: &(impl Frame + ?Sized), offset: usize, packet: &mut Packet) -> u32 {
    let cut = |packet: &Packet| if packet.class & class::FIRST == 0 { 1 } else { 2 };
    let mut next = packet.protocol;
    let mut at = LEN as u32;
    packet.class = class::EXTENDED;
    for position in 0..=MOST {
        // Also of the last one: what begins further on is out of the parser's reach.
        if at > TRANSPORT_MAX {
            return 3;
        }
        if !is_extension(next) {
            packet.protocol = next;
            packet.transport = at;
            return 0;
        }
        if position == MOST {
            return 3;
        }
        let Some(window) = frame.window::<8>(offset + (at & 0x1ff) as usize) else { return cut(packet) };
        let size = match next {
            protocol::HOP_BY_HOP if position == 0 => (u32::from(window.u8::<1>()) + 1) * 8,
            protocol::DESTINATION => (u32::from(window.u8::<1>()) + 1) * 8,
            // A type 0 one sends a packet round (RFC 5095). One of another type with segments left leads on from the destination
            // that policy is asked about to another.
            protocol::ROUTING if window.u8::<2>() != 0 && window.u8::<3>() == 0 => {
                (u32::from(window.u8::<1>()) + 1) * 8
            }
            protocol::FRAGMENT if packet.class & class::FIRST == 0 => 8,
            _ => return 3,
        };
        if at + size > packet.length {
            return cut(packet);
        }
        if next == protocol::FRAGMENT {
            let word = window.be16::<2>();
            packet.fragmented = at + 8;
            packet.identification = window.raw32::<4>();
            packet.offset = u32::from(word & 0xfff8);
            if packet.offset != 0 {
                packet.class |= class::LATER;
                packet.protocol = protocol::FRAGMENT;
                // All that is known of what it is a fragment of.
                packet.icmp = [window.u8::<0>(), 0];
                packet.transport = at + 8;
                return 0;
            }
            // One that is alone is no fragment of anything (RFC 6946).
            if word & 1 != 0 {
                packet.class |= class::FIRST;
            }
        }
        next = window.u8::<0>();
        at += size;
    }
    3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::ethernet::Ethernet;

    fn parse(next: u8, payload: &[u8]) -> Result<Packet, Fault> {
        let mut bytes = [0; 1024];
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        bytes[6] = next;
        bytes[8..24].copy_from_slice(&[0xfd; 16]);
        bytes[24..40].copy_from_slice(&[0xfc; 16]);
        bytes[LEN..LEN + payload.len()].copy_from_slice(payload);
        let mut packet = Packet::EMPTY;
        packet.read_v6(&bytes[..LEN + payload.len()], 0, &Ethernet::EMPTY).map(|()| packet)
    }

    const UDP: [u8; 8] = [0, 1, 0, 2, 0, 8, 0, 0];

    #[test]
    fn the_transport_header_is_found_behind_any_extensions() {
        assert_eq!(parse(17, &UDP).unwrap().destination_port(), 2);
        let hop = [60, 0, 1, 4, 0, 0, 0, 0];
        let destination = [43, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let routing = [17, 0, 2, 0, 0, 0, 0, 0];
        let mut payload = [0; 40];
        payload[..8].copy_from_slice(&hop);
        payload[8..24].copy_from_slice(&destination);
        payload[24..32].copy_from_slice(&routing);
        payload[32..].copy_from_slice(&UDP);
        let packet = parse(0, &payload).unwrap();
        assert_eq!((packet.protocol, packet.transport, packet.destination_port()), (17, 72, 2));
        for cut in 0..payload.len() {
            assert_eq!(parse(0, &payload[..cut]), Err(Fault::Malformed), "cut to {cut}");
        }
    }

    #[test]
    fn what_is_not_forwarded_is_refused() {
        let mut source_route = [0; 16];
        source_route[8..].copy_from_slice(&UDP);
        source_route[0] = 17;
        assert_eq!(parse(43, &source_route), Err(Fault::Extension), "type 0");
        for kind in [2, 3, 4] {
            let leads_on = [17, 0, kind, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0];
            assert_eq!(parse(43, &leads_on), Err(Fault::Extension), "type {kind} with a segment left");
        }
        let mut again = [0; 24];
        again[0] = 0;
        again[8] = 17;
        again[16..].copy_from_slice(&UDP);
        assert_eq!(parse(0, &again), Err(Fault::Extension), "hop-by-hop options that come second");
        let mut many = [0; 64];
        for at in (0..56).step_by(8) {
            many[at] = 60;
        }
        many[48] = 17;
        many[56..].copy_from_slice(&UDP);
        assert_eq!(parse(60, &many), Err(Fault::Extension), "seven of them");
        assert_eq!(parse(135, &[59, 0, 0, 0, 0, 0, 0, 0]), Err(Fault::Extension), "mobility");
        // The last one is as long as the others: a transport header behind it would be looked for elsewhere.
        for length in [264, 320, 512, 520, 800] {
            let mut long = [0; 840];
            (long[0], long[1]) = (17, (length / 8 - 1) as u8);
            assert_eq!(parse(60, &long), Err(Fault::Extension), "{length} bytes of options");
        }
    }

    #[test]
    fn fragments_are_told_apart() {
        let with = |word: u16, next: u8, rest: &[u8]| {
            let mut payload = [0; 64];
            payload[0] = next;
            payload[2..4].copy_from_slice(&word.to_be_bytes());
            payload[4..8].copy_from_slice(&[1, 2, 3, 4]);
            payload[8..8 + rest.len()].copy_from_slice(rest);
            parse(44, &payload[..8 + rest.len()])
        };
        let first = with(1, 17, &UDP).unwrap();
        assert_eq!((first.class, first.protocol), (class::FIRST | class::EXTENDED, 17));
        assert_eq!(with(0, 17, &UDP).unwrap().class, class::EXTENDED, "an atomic one");
        let later = with(8 << 3, 17, &UDP).unwrap();
        assert_eq!((later.class, later.offset), (class::LATER | class::EXTENDED, 64));
        assert_eq!(later.identification, u32::from_ne_bytes([1, 2, 3, 4]));
        assert_eq!(with(1, 17, &UDP[..7]), Err(Fault::Tiny));
        assert_eq!(with(1, 60, &[17, 1, 0, 0, 0, 0, 0, 0]), Err(Fault::Tiny), "options are cut too");
        assert_eq!(with(1, 44, &[17, 0, 0, 1, 0, 0, 0, 0]), Err(Fault::Extension), "fragments of fragments");
    }
}
