//! Frames, built field by field, so that any of them can be wrong.

use std::net::IpAddr;

use super::{HERE, HERE_V6, Ipv4, Ipv6, Mac};

/// Ethertypes.
pub(crate) const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// A MAC that carries a number.
#[must_use]
pub const fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    [0x02, 0, a, b, c, d]
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source[..], &ethertype.to_be_bytes()[..], payload].concat()
}

/// An ARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    /// Who sends it.
    pub sender: (Mac, Ipv4),
    /// Who is meant.
    pub target: (Mac, Ipv4),
}

impl Arp {
    /// The message's 28 bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0, 1, 8, 0, 6, 4];
        bytes.extend(self.operation.to_be_bytes());
        for (mac, ip) in [self.sender, self.target] {
            bytes.extend(mac);
            bytes.extend(ip);
        }
        bytes
    }

    /// The message in an Ethernet frame.
    #[must_use]
    pub fn frame(&self, destination: Mac, source: Mac) -> Vec<u8> {
        ethernet(destination, source, ARP, &self.bytes())
    }

    /// The message in a frame, if it is one.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let body = frame.get(14..42)?;
        let pair = |at: usize| -> Option<(Mac, Ipv4)> {
            Some((body[at..at + 6].try_into().ok()?, body[at + 6..at + 10].try_into().ok()?))
        };
        (frame[12..14] == ARP.to_be_bytes() && body[..6] == [0, 1, 8, 0, 6, 4]).then_some(Self {
            operation: u16::from_be_bytes([body[6], body[7]]),
            sender: pair(8)?,
            target: pair(18)?,
        })
    }
}

/// A broadcast request for `wanted`.
#[must_use]
pub fn arp_request(sender: (Mac, Ipv4), wanted: Ipv4) -> Vec<u8> {
    Arp { operation: 1, sender, target: ([0; 6], wanted) }.frame([0xff; 6], sender.0)
}

/// An IPv4 packet.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Source address.
    pub source: Ipv4,
    /// Destination address.
    pub destination: Ipv4,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Flags and offset of a fragment, as in the header.
    pub fragment: u16,
    /// Options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Ip {
    /// A packet with that payload.
    #[must_use]
    pub fn new(source: Ipv4, destination: Ipv4, protocol: u8, payload: Vec<u8>) -> Self {
        Self { source, destination, ttl: 64, protocol, fragment: 0, options: Vec::new(), payload }
    }

    /// The packet's bytes, with a correct checksum.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let words = u8::try_from(header_len / 4).expect("at most 60 bytes of header");
        let total = u16::try_from(header_len + self.payload.len()).expect("at most 65535 bytes");
        let mut header = vec![0x40 | words, 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.source);
        header.extend(self.destination);
        header.extend(&self.options);
        let checksum = !sum(&header, 0);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header.extend(&self.payload);
        header
    }

    /// The packet in an Ethernet frame.
    #[must_use]
    pub fn frame(&self, destination: Mac, source: Mac) -> Vec<u8> {
        ethernet(destination, source, IPV4, &self.bytes())
    }
}

/// The Internet checksum's sum (RFC 1071) over `bytes`, not complemented.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).expect("folded")
}

/// The sum of the pseudo header of TCP and UDP.
fn pseudo_header(source: Ipv4, destination: Ipv4, protocol: u8, len: usize) -> u32 {
    let len = u16::try_from(len).expect("at most 65535 bytes");
    u32::from(sum(&[&source[..], &destination[..], &[0, protocol], &len.to_be_bytes()].concat(), 0))
}

/// A UDP packet with a correct checksum.
#[must_use]
pub fn udp(source: (Ipv4, u16), destination: (Ipv4, u16), payload: &[u8]) -> Ip {
    let len = u16::try_from(8 + payload.len()).expect("at most 65535 bytes");
    let mut bytes = [source.1.to_be_bytes(), destination.1.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    bytes.extend(payload);
    let pseudo = pseudo_header(source.0, destination.0, 17, bytes.len());
    let checksum = match !sum(&bytes, pseudo) {
        0 => 0xffff,
        checksum => checksum,
    };
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    Ip::new(source.0, destination.0, 17, bytes)
}

/// A TCP segment with a correct checksum, or with the bare pseudo-header sum that a segment has before a device
/// completes it.
#[must_use]
pub fn tcp(source: (Ipv4, u16), destination: (Ipv4, u16), payload: &[u8], partial: bool) -> Ip {
    let mut bytes = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0x10, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    let pseudo = pseudo_header(source.0, destination.0, 6, bytes.len());
    let checksum = if partial { sum(&[], pseudo) } else { !sum(&bytes, pseudo) };
    bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
    Ip::new(source.0, destination.0, 6, bytes)
}

/// An ICMP message with a correct checksum.
#[must_use]
pub fn icmp(source: Ipv4, destination: Ipv4, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Ip {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(payload);
    let checksum = !sum(&bytes, 0);
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    Ip::new(source, destination, 1, bytes)
}

/// A ping.
#[must_use]
pub fn echo_request(source: Ipv4, destination: Ipv4) -> Ip {
    icmp(source, destination, 8, 0, [0x77, 0x66, 0, 1], b"is anybody there?!")
}

/// An IPv6 packet.
#[derive(Clone, Debug)]
pub struct Ip6 {
    /// Source address.
    pub source: Ipv6,
    /// Destination address.
    pub destination: Ipv6,
    /// Hop limit.
    pub hop_limit: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Extension headers, each with its number; the first byte of each is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Ip6 {
    /// A packet with that payload; a checksum at `checksum` in it is filled in.
    #[must_use]
    pub fn new(
        source: Ipv6,
        destination: Ipv6,
        protocol: u8,
        mut payload: Vec<u8>,
        checksum: Option<usize>,
    ) -> Self {
        if let Some(at) = checksum {
            let pseudo = pseudo_header_v6(source, destination, protocol, payload.len());
            let checksum = !sum(&payload, pseudo);
            payload[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        Self { source, destination, hop_limit: 64, protocol, extensions: Vec::new(), payload }
    }

    /// The packet's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (position, (_, header)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(position + 1).map_or(self.protocol, |(number, _)| *number);
            body.push(next);
            body.extend(&header[1..]);
        }
        body.extend(&self.payload);
        let length = u16::try_from(body.len()).expect("at most 65535 bytes");
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(length.to_be_bytes());
        bytes.push(self.extensions.first().map_or(self.protocol, |(number, _)| *number));
        bytes.push(self.hop_limit);
        bytes.extend(self.source);
        bytes.extend(self.destination);
        bytes.extend(body);
        bytes
    }

    /// The packet in an Ethernet frame.
    #[must_use]
    pub fn frame(&self, destination: Mac, source: Mac) -> Vec<u8> {
        ethernet(destination, source, IPV6, &self.bytes())
    }

    /// The packet behind an extension header more.
    #[must_use]
    pub fn behind(mut self, number: u8, header: Vec<u8>) -> Self {
        self.extensions.push((number, header));
        self
    }
}

/// A fragment header (number 44).
#[must_use]
pub fn fragment_header(offset: u16, more: bool, identification: u32) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend((offset | u16::from(more)).to_be_bytes());
    header.extend(identification.to_be_bytes());
    header
}

fn pseudo_header_v6(source: Ipv6, destination: Ipv6, protocol: u8, len: usize) -> u32 {
    let len = u32::try_from(len).expect("at most 65535 bytes");
    let bytes = [&source[..], &destination[..], &len.to_be_bytes()[..], &[0, 0, 0, protocol][..]].concat();
    u32::from(sum(&bytes, 0))
}

/// A UDP packet over IPv6 with a correct checksum.
#[must_use]
pub fn udp6(source: (Ipv6, u16), destination: (Ipv6, u16), payload: &[u8]) -> Ip6 {
    let len = u16::try_from(8 + payload.len()).expect("at most 65535 bytes");
    let mut bytes = [source.1.to_be_bytes(), destination.1.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    bytes.extend(payload);
    Ip6::new(source.0, destination.0, 17, bytes, Some(6))
}

/// A TCP segment with those flags, over IPv6 with a correct checksum.
#[must_use]
pub fn tcp6(source: (Ipv6, u16), destination: (Ipv6, u16), flags: u8, payload: &[u8]) -> Ip6 {
    let mut bytes = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    Ip6::new(source.0, destination.0, 6, bytes, Some(16))
}

/// An ICMPv6 message with a correct checksum.
#[must_use]
pub fn icmp6(source: Ipv6, destination: Ipv6, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> Ip6 {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(payload);
    Ip6::new(source, destination, 58, bytes, Some(2))
}

/// A neighbour solicitation, with the option that names the asker's MAC unless it asks from no address.
#[must_use]
pub fn solicitation(asker: (Mac, Ipv6), target: Ipv6) -> Vec<u8> {
    let [.., x, y, z] = target;
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z];
    let mut rest = target.to_vec();
    if asker.1 != [0; 16] {
        rest.extend([1, 1]);
        rest.extend(asker.0);
    }
    let packet = icmp6(asker.1, group, 135, 0, [0; 4], &rest);
    Ip6 { hop_limit: 255, ..packet }.frame([0x33, 0x33, 0xff, x, y, z], asker.0)
}

/// A TCP segment with those flags and a correct checksum.
#[must_use]
pub fn segment(source: (Ipv4, u16), destination: (Ipv4, u16), flags: u8) -> Ip {
    let mut packet = tcp(source, destination, b"", false);
    packet.payload[13] = flags;
    packet.payload[16..18].fill(0);
    let pseudo = pseudo_header(source.0, destination.0, 6, packet.payload.len());
    let checksum = !sum(&packet.payload, pseudo);
    packet.payload[16..18].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Whether the checksum of an IPv6 packet without extension headers is right: that of ICMPv6, UDP or TCP.
#[must_use]
pub fn ipv6_payload_checksum_holds(packet: &[u8]) -> bool {
    let address = |from: usize| -> Ipv6 { packet[from..from + 16].try_into().expect("sixteen bytes") };
    let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let body = &packet[40..40 + len];
    sum(body, pseudo_header_v6(address(8), address(24), packet[6], len)) == 0xffff
}

/// A VXLAN frame around another.
#[derive(Clone, Debug)]
pub struct Outer {
    /// MACs of the underlay: destination, source.
    pub macs: (Mac, Mac),
    /// Tunnel endpoints: source, destination.
    pub ips: (Ipv4, Ipv4),
    /// UDP ports: source, destination.
    pub ports: (u16, u16),
    /// VNI.
    pub vni: u32,
    /// VXLAN flags; 8 says that the VNI is valid.
    pub flags: u8,
    /// Whether the UDP checksum is filled in.
    pub checksum: bool,
    /// Flags and offset of a fragment.
    pub fragment: u16,
    /// IPv4 options.
    pub options: Vec<u8>,
}

impl Outer {
    /// The tunnel's headers for a VNI between two endpoints.
    #[must_use]
    pub fn new(source: Ipv4, destination: Ipv4, vni: u32) -> Self {
        Self {
            macs: (mac(0xee_0001), mac(0xee_0002)),
            ips: (source, destination),
            ports: (50_000, 4789),
            vni,
            flags: 8,
            checksum: false,
            fragment: 0,
            options: Vec::new(),
        }
    }
}

/// `inner` in the tunnel.
#[must_use]
pub fn tunnel(outer: &Outer, inner: &[u8]) -> Vec<u8> {
    let payload = vxlan(outer.flags, outer.vni, inner);
    let mut packet = udp((outer.ips.0, outer.ports.0), (outer.ips.1, outer.ports.1), &payload);
    if !outer.checksum {
        packet.payload[6..8].fill(0);
    }
    packet.fragment = outer.fragment;
    packet.options.clone_from(&outer.options);
    packet.frame(outer.macs.0, outer.macs.1)
}

/// A VXLAN frame around another, over IPv6.
#[derive(Clone, Debug)]
pub struct OuterV6 {
    /// MACs of the underlay: destination, source.
    pub macs: (Mac, Mac),
    /// Tunnel endpoints: source, destination.
    pub ips: (Ipv6, Ipv6),
    /// UDP ports: source, destination.
    pub ports: (u16, u16),
    /// VNI.
    pub vni: u32,
    /// VXLAN flags; 8 says that the VNI is valid.
    pub flags: u8,
    /// Whether the UDP checksum is filled in.
    pub checksum: bool,
    /// Extension headers, each with its number.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl OuterV6 {
    /// The tunnel's headers for a VNI between two endpoints.
    #[must_use]
    pub fn new(source: Ipv6, destination: Ipv6, vni: u32) -> Self {
        Self {
            macs: (mac(0xee_0001), mac(0xee_0002)),
            ips: (source, destination),
            ports: (50_000, 4789),
            vni,
            flags: 8,
            checksum: false,
            extensions: Vec::new(),
        }
    }
}

/// `inner` in the tunnel, over IPv6.
#[must_use]
pub fn tunnel_v6(outer: &OuterV6, inner: &[u8]) -> Vec<u8> {
    let payload = vxlan(outer.flags, outer.vni, inner);
    let mut packet = udp6((outer.ips.0, outer.ports.0), (outer.ips.1, outer.ports.1), &payload);
    if !outer.checksum {
        packet.payload[6..8].fill(0);
    }
    packet.extensions.clone_from(&outer.extensions);
    packet.frame(outer.macs.0, outer.macs.1)
}

/// `inner` in the tunnel to us from that host, over the version of its address.
#[must_use]
pub fn tunnel_from(host: IpAddr, vni: u32, inner: &[u8]) -> Vec<u8> {
    match host {
        IpAddr::V4(host) => tunnel(&Outer::new(host.octets(), HERE, vni), inner),
        IpAddr::V6(host) => tunnel_v6(&OuterV6::new(host.octets(), HERE_V6, vni), inner),
    }
}

fn vxlan(flags: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, vni @ ..] = vni.to_be_bytes();
    let mut payload = vec![flags, 0, 0, 0];
    payload.extend(vni);
    payload.push(0);
    payload.extend(inner);
    payload
}

/// Whether the checksum of the IPv4 header at `at` is right.
#[must_use]
pub fn ipv4_checksum_holds(frame: &[u8], at: usize) -> bool {
    let len = usize::from(frame[at] & 0xf) * 4;
    sum(&frame[at..at + len], 0) == 0xffff
}

/// Whether the checksum of the UDP or TCP packet whose IPv4 header is at `at` is right (zero counts for UDP).
#[must_use]
pub fn udp_checksum_holds(frame: &[u8], at: usize) -> bool {
    let header_len = usize::from(frame[at] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([frame[at + 2], frame[at + 3]]));
    let address = |from: usize| -> Ipv4 { frame[from..from + 4].try_into().expect("four bytes") };
    let body = &frame[at + header_len..at + total];
    let protocol = frame[at + 9];
    (protocol == 17 && body[6..8] == [0, 0])
        || sum(body, pseudo_header(address(at + 12), address(at + 16), protocol, body.len())) == 0xffff
}

/// The frame with the bytes from `at` on replaced.
#[must_use]
pub fn swap_bytes(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}
