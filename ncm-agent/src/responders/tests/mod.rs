//! What guests are answered, message by message. Answers are read by `dhcproto`'s decoders, which the responders do not use, and
//! their frames by `etherparse`-like arithmetic of this module's own.

mod advertisement;
mod dhcp;
mod dhcpv6;
mod hostile;

use std::net::{Ipv4Addr, Ipv6Addr};

use ncm_model::lease::{Extras, Gateway, LeaseFacts, LeaseV4, LinkV6};

use super::{Answer, Ignored, Question, answer};

pub(super) const GUEST: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
pub(super) const OTHER: [u8; 6] = [0x02, 0x66, 0x66, 0x66, 0x66, 0x66];
pub(super) const GATEWAY: [u8; 6] = [0xfa, 0x16, 0x3e, 0x00, 0x00, 0x01];
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 7);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

pub(super) fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address of the test")
}

pub(super) fn lease() -> LeaseV4 {
    LeaseV4 {
        address: ADDRESS,
        net: "10.1.0.0/24".parse().expect("a prefix of the test"),
        gateway: Some(Gateway { ip: SERVER, mac: GATEWAY }),
        dns: vec![Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(8, 8, 4, 4)],
        host_name: "vm1.example.org".to_owned(),
        routes: Vec::new(),
        extras: Extras::default(),
    }
}

pub(super) fn link() -> LinkV6 {
    LinkV6 {
        net: "fd00:1::/64".parse().expect("a prefix of the test"),
        gateway_mac: GATEWAY,
        routed: true,
        fixed: vec![v6("fd00:1::7")],
        lease: Some(v6("fd00:1::7")),
        dns: vec![v6("fd00::53"), v6("fd00::54")],
        host_name: "vm1.example.org".to_owned(),
        extras: Extras::default(),
    }
}

pub(super) fn facts() -> LeaseFacts {
    LeaseFacts { mac: GUEST, mtu: 1450, v4: Some(lease()), v6: vec![link()] }
}

pub(super) fn extras(options: &[(&str, &str)]) -> Extras {
    Extras::read(ncm_model::lease::Family::V4, options.iter().copied()).expect("valid options")
}

pub(super) fn extras6(options: &[(&str, &str)]) -> Extras {
    Extras::read(ncm_model::lease::Family::V6, options.iter().copied()).expect("valid options")
}

/// The internet checksum over some bytes: 0 for what includes a right one.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum = 0_u32;
    for (at, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A guest's IPv4 frame with a UDP datagram 68 -> 67.
pub(super) fn frame4(mac: [u8; 6], from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let udp = (8 + payload.len()) as u16;
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    header[2..4].copy_from_slice(&(20 + udp).to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    let check = checksum(&[&header]).to_be_bytes();
    header[10..12].copy_from_slice(&check);
    let mut datagram = vec![0, 68, 0, 67];
    datagram.extend(udp.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let pseudo = [0, 17, (udp >> 8) as u8, udp as u8];
    let check = checksum(&[&header[12..20], &pseudo, &datagram]).to_be_bytes();
    datagram[6..8].copy_from_slice(&check);
    [&[0xff; 6][..], &mac, &[8, 0], &header, &datagram].concat()
}

/// A guest's IPv6 frame with that next header, whose checksum is at `check_at` of the payload.
pub(super) fn frame6(
    mac: [u8; 6],
    from: Ipv6Addr,
    to: Ipv6Addr,
    next: (u8, u8),
    check_at: usize,
    payload: &[u8],
) -> Vec<u8> {
    let length = payload.len() as u16;
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length.to_be_bytes());
    header.extend([next.0, next.1]);
    header.extend(from.octets());
    header.extend(to.octets());
    let mut payload = payload.to_vec();
    let pseudo = [0, 0, (length >> 8) as u8, length as u8, 0, 0, 0, next.0];
    let check = checksum(&[&header[8..40], &pseudo, &payload]).to_be_bytes();
    payload[check_at..check_at + 2].copy_from_slice(&check);
    let [.., a, b, c, d] = to.octets();
    [&[0x33, 0x33, a, b, c, d][..], &mac, &[0x86, 0xdd], &header, &payload].concat()
}

/// The one frame that is the answer.
pub(super) fn one(question: Question, frame: &[u8], facts: &LeaseFacts) -> Vec<u8> {
    match answer(question, frame, false, facts) {
        Ok(Answer::Frame(frame)) => frame,
        other => panic!("a frame was expected, and came {other:?}"),
    }
}

pub(super) fn refused(question: Question, frame: &[u8], facts: &LeaseFacts) -> Ignored {
    answer(question, frame, false, facts).expect_err("no answer was expected")
}

/// An IPv4 answer taken apart: its sides, checked, and what UDP carries.
pub(super) struct Got4 {
    pub(super) to_mac: [u8; 6],
    pub(super) from_mac: [u8; 6],
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) payload: Vec<u8>,
}

pub(super) fn open4(frame: &[u8]) -> Got4 {
    assert_eq!(frame[12..14], [8, 0], "it is an IPv4 frame");
    let packet = &frame[14..];
    assert_eq!(packet[0], 0x45);
    assert_eq!(checksum(&[&packet[..20]]), 0, "the header's checksum is right");
    assert_eq!(
        usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        packet.len(),
        "the total length is right"
    );
    let udp = &packet[20..];
    assert_eq!(udp[..4], [0, 67, 0, 68], "from the server's to the client's port");
    let length = udp.len() as u16;
    assert_eq!(udp[4..6], length.to_be_bytes());
    let pseudo = [0, 17, udp[4], udp[5]];
    assert_eq!(checksum(&[&packet[12..20], &pseudo, udp]), 0, "UDP's checksum is right");
    let ip = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    Got4 {
        to_mac: frame[..6].try_into().expect("six bytes"),
        from_mac: frame[6..12].try_into().expect("six bytes"),
        from: ip(12),
        to: ip(16),
        payload: udp[8..].to_vec(),
    }
}

/// An IPv6 answer taken apart: its sides, checked, and the payload with its transport header.
pub(super) struct Got6 {
    pub(super) to_mac: [u8; 6],
    pub(super) from_mac: [u8; 6],
    pub(super) from: Ipv6Addr,
    pub(super) to: Ipv6Addr,
    pub(super) hops: u8,
    pub(super) payload: Vec<u8>,
}

pub(super) fn open6(frame: &[u8], next: u8) -> Got6 {
    assert_eq!(frame[12..14], [0x86, 0xdd], "it is an IPv6 frame");
    let packet = &frame[14..];
    assert_eq!(packet[0] >> 4, 6);
    assert_eq!(
        usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        packet.len() - 40,
        "the length is right"
    );
    assert_eq!(packet[6], next);
    let pseudo = [0, 0, packet[4], packet[5], 0, 0, 0, next];
    assert_eq!(checksum(&[&packet[8..40], &pseudo, &packet[40..]]), 0, "the checksum is right");
    let ip = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes"));
    Got6 {
        to_mac: frame[..6].try_into().expect("six bytes"),
        from_mac: frame[6..12].try_into().expect("six bytes"),
        from: ip(8),
        to: ip(24),
        hops: packet[7],
        payload: packet[40..].to_vec(),
    }
}
