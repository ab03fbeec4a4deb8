//! What a frame says, read in the plainest way: the judge's own reading, which shares nothing with the programs'.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fragment {
    /// It is none.
    Whole,
    First(u32),
    Later(u32),
}

#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) to: [u8; 6],
    pub(crate) from: [u8; 6],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    /// Of the transport header; of later fragments of IPv6 that of the fragment header.
    pub(crate) protocol: u8,
    pub(crate) fragment: Fragment,
    pub(crate) ports: Option<(u16, u16)>,
    pub(crate) tcp_flags: u8,
    /// Type and code of ICMP.
    pub(crate) icmp: Option<(u8, u8)>,
    /// From the transport header on.
    pub(crate) body: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The IP packet in a frame without VLAN tags; `None` if it is no well-formed one.
pub(crate) fn parse(frame: &[u8]) -> Option<Parsed> {
    let (to, from) = (frame.get(..6)?.try_into().ok()?, frame.get(6..12)?.try_into().ok()?);
    let packet = frame.get(14..)?;
    let inner = match word(frame, 12)? {
        0x0800 => v4(packet, true)?,
        0x86dd => v6(packet, true)?,
        _ => return None,
    };
    Some(Parsed { to, from, ..inner })
}

/// The packet that an ICMP error quotes, which may be cut short behind its ports.
pub(crate) fn quoted(bytes: &[u8], v6_: bool) -> Option<Parsed> {
    if v6_ { v6(bytes, false) } else { v4(bytes, false) }
}

fn v4(packet: &[u8], whole: bool) -> Option<Parsed> {
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(word(packet, 2)?);
    if packet[0] >> 4 != 4 || header < 20 || packet.len() < 20 {
        return None;
    }
    if whole && (total < header || total > packet.len()) {
        return None;
    }
    let address =
        |at: usize| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
    let cut = word(packet, 6)?;
    let id = u32::from(word(packet, 4)?);
    let fragment = match (cut & 0x1fff, cut & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First(id),
        _ => Fragment::Later(id),
    };
    let body = if whole { packet.get(header..total)? } else { packet.get(header..)? };
    transport(
        Parsed {
            to: [0; 6],
            from: [0; 6],
            source: address(12)?,
            destination: address(16)?,
            ttl: packet[8],
            protocol: packet[9],
            fragment,
            ports: None,
            tcp_flags: 0,
            icmp: None,
            body: body.to_vec(),
        },
        whole,
    )
}

fn v6(packet: &[u8], whole: bool) -> Option<Parsed> {
    let total = usize::from(word(packet, 4)?) + 40;
    if packet[0] >> 4 != 6 || packet.len() < 40 || (whole && total > packet.len()) {
        return None;
    }
    let packet = if whole { packet.get(..total)? } else { packet };
    let address =
        |at: usize| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
    let (mut next, mut at, mut fragment) = (packet[6], 40, Fragment::Whole);
    loop {
        let length = match next {
            0 | 43 | 60 => (usize::from(*packet.get(at + 1)?) + 1) * 8,
            44 => {
                let cut = word(packet, at + 2)?;
                let id = u32::from_be_bytes(packet.get(at + 4..at + 8)?.try_into().ok()?);
                if cut & 0xfff8 != 0 {
                    fragment = Fragment::Later(id);
                } else if cut & 1 != 0 {
                    fragment = Fragment::First(id);
                }
                8
            }
            _ => break,
        };
        let header = next;
        next = *packet.get(at)?;
        at += length;
        if matches!(fragment, Fragment::Later(_)) {
            next = header;
            break;
        }
    }
    transport(
        Parsed {
            to: [0; 6],
            from: [0; 6],
            source: address(8)?,
            destination: address(24)?,
            ttl: packet[7],
            protocol: next,
            fragment,
            ports: None,
            tcp_flags: 0,
            icmp: None,
            body: packet.get(at..)?.to_vec(),
        },
        whole,
    )
}

fn transport(mut packet: Parsed, whole: bool) -> Option<Parsed> {
    if matches!(packet.fragment, Fragment::Later(_)) {
        return Some(packet);
    }
    let (body, v6) = (&packet.body, packet.source.is_ipv6());
    match packet.protocol {
        6 | 17 => {
            packet.ports = Some((word(body, 0)?, word(body, 2)?));
            if packet.protocol == 6 && whole {
                packet.tcp_flags = *body.get(13)?;
                let header = usize::from(body[12] >> 4) * 4;
                if header < 20 || header > body.len() {
                    return None;
                }
            } else if whole {
                let length = usize::from(word(body, 4)?);
                let cut = packet.fragment != Fragment::Whole;
                if body.len() < 8 || length < 8 || (length > body.len() && !cut) {
                    return None;
                }
            }
        }
        protocol if protocol == [1, 58][usize::from(v6)] => {
            if body.len() < 8 {
                return None;
            }
            packet.icmp = Some((body[0], body[1]));
            let id = word(body, 4)?;
            let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
            packet.ports = match (body[0], body[1]) {
                (kind, 0) if kind == request => Some((id, 0)),
                (kind, 0) if kind == reply => Some((0, id)),
                _ => None,
            };
        }
        _ => packet.ports = Some((0, 0)),
    }
    Some(packet)
}

impl Parsed {
    /// It may begin a flow that answers then belong to.
    pub(crate) fn may_begin(&self) -> bool {
        const SYN_ACK: u8 = 18;
        const RST: u8 = 4;
        let reply = self.icmp.is_some_and(|(kind, _)| kind == if self.source.is_ipv6() { 129 } else { 0 });
        self.ports.is_some()
            && !reply
            && self.tcp_flags & RST == 0
            && self.tcp_flags & SYN_ACK != SYN_ACK
            && !matches!(self.fragment, Fragment::Later(_))
    }

    /// It is an ICMP error, which quotes what it is about.
    pub(crate) fn is_error(&self) -> bool {
        match self.icmp {
            Some((kind, _)) if self.source.is_ipv6() => kind < 128,
            Some((kind, _)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            None => false,
        }
    }
}
