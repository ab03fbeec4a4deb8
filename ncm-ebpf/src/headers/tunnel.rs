//! The headers of a frame on its way into the tunnel, over IPv4 or IPv6: made as words, so that few steps copy them.

use ncm_common::tables::TemplateHalf;

use super::{Mac, checksum, ethernet::ethertype};

/// Bytes of IP, UDP and VXLAN header over IPv4 and over IPv6, as templates have them.
pub const OUTER_V4: u16 = 20 + 8 + 8;
/// See [`OUTER_V4`].
pub const OUTER_V6: u16 = 40 + 8 + 8;

/// The first UDP source port, and the mask of what the flow's hash adds to it: 49152 to 65535 (RFC 7348, section 5).
const FIRST_PORT: u16 = 49_152;
const PORT_MASK: u32 = 0x3fff;

/// Bits of IPv6's flow label, which carries entropy as well (RFC 6438).
const LABEL_MASK: u32 = 0xf_ffff;

/// Everything up to the end of the inner Ethernet header. The end is at the same place for both families, and the start is
/// where the family's headers need it: words at [`Tunnel::V4`] or [`Tunnel::V6`], the frame beginning in the second half of the
/// first of them, which puts what follows Ethernet on a word's boundary.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Tunnel {
    /// The words, as in memory.
    pub words: [u32; 22],
}

impl Tunnel {
    /// The word in which a frame over IPv4 starts.
    pub const V4: usize = 5;
    /// The word in which a frame over IPv6 starts.
    pub const V6: usize = 0;
    /// Bytes of the frame's headers over IPv4.
    pub const BYTES_V4: usize = Self::BYTES - 4 * Self::V4;
    /// Bytes of the frame's headers over IPv6.
    pub const BYTES_V6: usize = Self::BYTES - 4 * Self::V6;
    /// All bytes but the first two and the last two.
    const BYTES: usize = 4 * 22 - 4;
    /// The words behind the outer Ethernet header.
    const IP_V4: usize = Self::V4 + 4;
    const IP_V6: usize = Self::V6 + 4;
    /// UDP and VXLAN header are the same over both.
    const UDP: usize = 14;
    const VNI: usize = 17;
    const INNER: usize = 18;

    /// Nothing yet.
    pub const EMPTY: Self = Self { words: [0; 22] };

    /// Sets the inner MACs and the VNI.
    #[inline(always)]
    pub const fn set_inner(&mut self, to: Mac, from: Mac, vni: u32) {
        let ((to_low, to_high), (from_low, from_high)) = (to.parts(), from.parts());
        self.words[Self::VNI] = (vni << 8).to_be();
        self.words[Self::INNER] = to_low;
        self.words[Self::INNER + 1] = join(to_high, from_low as u16);
        self.words[Self::INNER + 2] = join((from_low >> 16) as u16, from_high);
    }

    /// The inner MACs, as a frame begins.
    #[inline(always)]
    #[must_use]
    pub const fn inner_macs(&self) -> [u8; 12] {
        let [a, b, c] = [
            self.words[Self::INNER].to_ne_bytes(),
            self.words[Self::INNER + 1].to_ne_bytes(),
            self.words[Self::INNER + 2].to_ne_bytes(),
        ];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3]]
    }

    /// Sets the inner ethertype.
    #[inline(always)]
    pub const fn set_inner_ethertype(&mut self, ethertype: u16) {
        self.words[Self::INNER + 3] = join(ethertype.to_be(), 0);
    }

    /// Sets the outer headers behind Ethernet: the template's, with what is different for each packet of `bytes`: lengths,
    /// checksum, and what `hash` gives of entropy.
    #[inline(always)]
    pub fn set_outer(&mut self, template: &TemplateHalf, bytes: u32, hash: u32) {
        let words = &mut self.words;
        macro_rules! copy {
            ($to:expr; $($index:literal)+) => {$(
                words[$to + $index] = u32::from_ne_bytes([
                    template.headers[4 * $index],
                    template.headers[4 * $index + 1],
                    template.headers[4 * $index + 2],
                    template.headers[4 * $index + 3],
                ]);
            )+};
        }
        let datagram = if template.headers_len == OUTER_V6 {
            copy!(Self::IP_V6; 0 1 2 3 4 5 6 7 8 9 10 11 12);
            let datagram = limit(bytes + 16);
            let ip = &mut words[Self::IP_V6..];
            ip[0] |= (hash & LABEL_MASK).to_be();
            ip[1] = join(datagram.to_be(), second(ip[1]));
            datagram
        } else {
            copy!(Self::IP_V4; 0 1 2 3 4 5 6 7);
            let total = limit(bytes + u32::from(OUTER_V4));
            let ip = &mut words[Self::IP_V4..];
            ip[0] = join(first(ip[0]), total.to_be());
            ip[2] = join(first(ip[2]), checksum::update(second(ip[2]), 0, total.to_be()));
            total - 20
        };
        let port = FIRST_PORT + (hash & PORT_MASK) as u16;
        words[Self::UDP] = join(port.to_be(), second(words[Self::UDP]));
        words[Self::UDP + 1] = join(datagram.to_be(), second(words[Self::UDP + 1]));
    }

    /// Sets the outer Ethernet header of a frame over IPv4.
    #[inline(always)]
    pub const fn set_link_v4(&mut self, to: Mac, from: Mac) {
        self.set_link::<{ Self::V4 }>(to, from, ethertype::IPV4);
    }

    /// Sets the outer Ethernet header of a frame over IPv6.
    #[inline(always)]
    pub const fn set_link_v6(&mut self, to: Mac, from: Mac) {
        self.set_link::<{ Self::V6 }>(to, from, ethertype::IPV6);
    }

    #[inline(always)]
    const fn set_link<const START: usize>(&mut self, to: Mac, from: Mac, ethertype: u16) {
        let ((to_low, to_high), (from_low, from_high)) = (to.parts(), from.parts());
        self.words[START] = join(0, to_low as u16);
        self.words[START + 1] = join((to_low >> 16) as u16, to_high);
        self.words[START + 2] = from_low;
        self.words[START + 3] = join(from_high, ethertype.to_be());
    }

    /// The outer addresses over IPv4: source, destination; as in memory.
    #[inline(always)]
    #[must_use]
    pub const fn addresses_v4(&self) -> [u32; 2] {
        [self.words[Self::IP_V4 + 3], self.words[Self::IP_V4 + 4]]
    }

    /// The outer addresses over IPv6.
    #[inline(always)]
    #[must_use]
    pub const fn addresses_v6(&self) -> [[u32; 4]; 2] {
        const AT: usize = Tunnel::IP_V6 + 2;
        let words = &self.words;
        [
            [words[AT], words[AT + 1], words[AT + 2], words[AT + 3]],
            [words[AT + 4], words[AT + 5], words[AT + 6], words[AT + 7]],
        ]
    }
}

/// What a field of two bytes can say. A frame to be segmented may be longer; the kernel writes the true lengths of the
/// segments.
#[inline(always)]
const fn limit(bytes: u32) -> u16 {
    if bytes > 0xffff { 0xffff } else { bytes as u16 }
}

/// The first two bytes of a word, as in memory.
#[inline(always)]
const fn first(word: u32) -> u16 {
    let [a, b, _, _] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

/// The last two bytes of a word, as in memory.
#[inline(always)]
const fn second(word: u32) -> u16 {
    let [_, _, a, b] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

/// A word of these halves, as in memory.
#[inline(always)]
const fn join(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::vxlan::{Endpoints, Extent, LEN_V4, LEN_V6, Outer};

    const TO: Mac = Mac::new(&[2, 0, 0, 0, 0, 1]);
    const FROM: Mac = Mac::new(&[2, 0, 0, 0, 0, 2]);
    const INNER_TO: Mac = Mac::new(&[2, 0, 0, 0, 1, 3]);
    const INNER_FROM: Mac = Mac::new(&[2, 0, 0, 0, 1, 4]);
    const US: [u8; 4] = [192, 0, 2, 1];
    const US_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const THEM: Endpoints<'_> = Endpoints {
        v4: &[192, 0, 2, 2],
        v6: &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        port: [0x12, 0xb5],
    };

    fn template(headers_len: u16) -> TemplateHalf {
        let mut half = TemplateHalf { headers_len, ..TemplateHalf::default() };
        let ip_len = usize::from(headers_len) - 16;
        if headers_len == OUTER_V4 {
            half.headers[..4].copy_from_slice(&[0x45, 0, 0, 0]);
            half.headers[6..12].copy_from_slice(&[0x40, 0, 64, 17, 0, 0]);
            half.headers[12..16].copy_from_slice(&US);
            half.headers[16..20].copy_from_slice(THEM.v4);
            let sum =
                half.headers[..20].chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])));
            let checksum = !checksum::fold(sum.sum());
            half.headers[10..12].copy_from_slice(&checksum.to_ne_bytes());
        } else {
            half.headers[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 17, 64]);
            half.headers[8..24].copy_from_slice(&US_V6);
            half.headers[24..40].copy_from_slice(THEM.v6);
        }
        half.headers[ip_len + 2..ip_len + 4].copy_from_slice(&THEM.port);
        half.headers[ip_len + 8] = 8;
        half
    }

    fn bytes(tunnel: &Tunnel, start: usize) -> Vec<u8> {
        let all: Vec<u8> = tunnel.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        all[4 * start + 2..all.len() - 2].to_vec()
    }

    fn made(headers_len: u16, bytes: u32, hash: u32) -> Tunnel {
        let mut tunnel = Tunnel { words: [0xaaaa_aaaa; 22] };
        tunnel.set_inner(INNER_TO, INNER_FROM, 0x01_0203);
        tunnel.set_inner_ethertype(ethertype::IPV4);
        tunnel.set_outer(&template(headers_len), bytes, hash);
        if headers_len == OUTER_V4 {
            tunnel.set_link_v4(TO, FROM);
        } else {
            tunnel.set_link_v6(TO, FROM);
        }
        tunnel
    }

    #[test]
    fn what_is_made_is_what_a_receiver_reads() {
        for (headers_len, start, len) in [(OUTER_V4, Tunnel::V4, LEN_V4), (OUTER_V6, Tunnel::V6, LEN_V6)] {
            let tunnel = made(headers_len, 100, 0x1234_5678);
            assert_eq!(tunnel.inner_macs()[..6], INNER_TO.bytes());
            assert_eq!(tunnel.inner_macs()[6..], INNER_FROM.bytes());
            let headers = bytes(&tunnel, start);
            assert_eq!(headers.len(), len + 14);
            assert_eq!((&headers[..6], &headers[6..12]), (&TO.bytes()[..], &FROM.bytes()[..]));
            assert_eq!(headers[len..len + 12], tunnel.inner_macs());
            assert_eq!(headers[len + 12..], [8, 0]);
            let outer = Outer::parse(&headers[..], THEM).unwrap();
            assert_eq!((outer.vni, outer.checksum, outer.to), (0x01_0203, 0, TO));
            assert_eq!(outer.extent(len as u32 + 100), Extent::Exact, "{outer:?}");
            let port = u16::from_be_bytes([headers[outer.udp], headers[outer.udp + 1]]);
            assert_eq!(port, FIRST_PORT + 0x1678);
        }
        assert_eq!(made(OUTER_V4, 1, 0).addresses_v4().map(u32::to_ne_bytes), [US, *THEM.v4]);
        let [source, destination] = made(OUTER_V6, 1, 0).addresses_v6();
        assert_eq!(source.map(u32::to_ne_bytes).concat(), US_V6);
        assert_eq!(destination.map(u32::to_ne_bytes).concat(), *THEM.v6);
    }

    #[test]
    fn the_ipv4_header_has_its_checksum() {
        for frame in [60, 1_000, 65_499, 65_500, 70_000] {
            let headers = bytes(&made(OUTER_V4, frame, 7), Tunnel::V4);
            let words =
                headers[14..34].chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])));
            assert_eq!(checksum::fold(words.sum()), 0xffff, "a frame of {frame} bytes");
        }
    }

    #[test]
    fn the_flow_label_is_the_hash() {
        let headers = bytes(&made(OUTER_V6, 100, 0xfff9_8765), Tunnel::V6);
        assert_eq!(headers[14..18], [0x60, 0x09, 0x87, 0x65]);
        assert_eq!(headers[18..22], [0, 116, 17, 64]);
    }
}
