//! IPv6 (RFC 8200), as far as it takes to name what is refused.

use super::Frame;

/// Bytes of the header.
pub const LEN: usize = 40;

/// What an IPv6 packet is, seen from the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A router advertisement or a redirect: what only a router may send (RFC 4861, sections 4.2 and 4.5).
    Router,
    /// Other neighbour discovery: router solicitation, neighbour solicitation or advertisement.
    Discovery,
    /// DHCPv6, from either side.
    Dhcp,
    /// Anything else.
    Other,
}

/// Next-header numbers: hop-by-hop options, UDP, ICMPv6.
const HOP_BY_HOP: u8 = 0;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// What the packet at `offset` is; `None` if it is cut short. A leading hop-by-hop header of the smallest size is
/// looked behind, as that is how advertisements have been hidden from switches (RFC 7113).
#[inline(always)]
#[must_use]
pub fn kind(frame: &(impl Frame + ?Sized), offset: usize) -> Option<Kind> {
    let window = frame.window::<LEN>(offset)?;
    if window.u8::<0>() >> 4 != 6 {
        return None;
    }
    let mut next = window.u8::<6>();
    let mut payload = offset + LEN;
    if next == HOP_BY_HOP {
        let options = frame.window::<8>(payload)?;
        if options.u8::<1>() != 0 {
            return Some(Kind::Other);
        }
        next = options.u8::<0>();
        payload += 8;
    }
    match next {
        ICMPV6 => Some(match frame.window::<4>(payload)?.u8::<0>() {
            134 | 137 => Kind::Router,
            133 | 135 | 136 => Kind::Discovery,
            _ => Kind::Other,
        }),
        UDP => {
            let ports = frame.window::<4>(payload)?;
            let of_dhcp = |port| port == 546 || port == 547;
            Some(if of_dhcp(ports.be16::<0>()) && of_dhcp(ports.be16::<2>()) {
                Kind::Dhcp
            } else {
                Kind::Other
            })
        }
        _ => Some(Kind::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, payload: &[u8]) -> ([u8; 128], usize) {
        let mut bytes = [0; 128];
        bytes[0] = 0x60;
        bytes[6] = next;
        bytes[LEN..LEN + payload.len()].copy_from_slice(payload);
        (bytes, LEN + payload.len())
    }

    #[test]
    fn what_only_routers_send_is_found_behind_options_too() {
        for (next, payload, expected) in [
            (58, &[134, 0, 0, 0][..], Some(Kind::Router)),
            (58, &[137, 0, 0, 0], Some(Kind::Router)),
            (58, &[135, 0, 0, 0], Some(Kind::Discovery)),
            (58, &[128, 0, 0, 0], Some(Kind::Other)),
            (0, &[58, 0, 1, 4, 0, 0, 0, 0, 134, 0, 0, 0], Some(Kind::Router)),
            (17, &[0x02, 0x22, 0x02, 0x23], Some(Kind::Dhcp)),
            (6, &[0, 0, 0, 0], Some(Kind::Other)),
            (58, &[], None),
        ] {
            let (bytes, len) = packet(next, payload);
            assert_eq!(kind(&bytes[..len], 0), expected, "next header {next}, payload {payload:?}");
        }
    }
}
