//! MAC and IP addresses in the form in which programs compare and copy them: words with the bytes as in memory.

use super::{Window, checksum};

/// A MAC address: its six bytes, in the order of the wire, as two words.
#[derive(Clone, Copy, Debug)]
pub struct Mac {
    low: u32,
    high: u16,
}

impl PartialEq for Mac {
    /// In one branch: the verifier follows each by itself.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        (self.low ^ other.low) | u32::from(self.high ^ other.high) == 0
    }
}

impl Eq for Mac {}

impl Mac {
    /// The address of six zero bytes, which no station has.
    pub const ZERO: Self = Self { low: 0, high: 0 };

    /// The address of these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: &[u8; 6]) -> Self {
        Self {
            low: u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            high: u16::from_ne_bytes([bytes[4], bytes[5]]),
        }
    }

    /// The address at `OFFSET` of a window; `HIGH` is `OFFSET + 4`.
    #[inline(always)]
    #[must_use]
    pub fn at<const OFFSET: usize, const HIGH: usize, const N: usize>(window: &Window<'_, N>) -> Self {
        const { assert!(HIGH == OFFSET + 4) };
        Self { low: window.raw32::<OFFSET>(), high: window.raw16::<HIGH>() }
    }

    /// The six bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        let (low, high) = (self.low.to_ne_bytes(), self.high.to_ne_bytes());
        [low[0], low[1], low[2], low[3], high[0], high[1]]
    }

    /// The six bytes as words of two, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u16; 3] {
        let low = self.low.to_ne_bytes();
        [u16::from_ne_bytes([low[0], low[1]]), u16::from_ne_bytes([low[2], low[3]]), self.high]
    }

    /// The first four bytes and the last two, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn parts(self) -> (u32, u16) {
        (self.low, self.high)
    }

    /// Whether the address is a group's (multicast or broadcast): the lowest bit of its first byte.
    #[inline(always)]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.low.to_ne_bytes()[0] & 1 != 0
    }

    /// Whether the first five bytes are these.
    #[inline(always)]
    #[must_use]
    pub const fn has_prefix(self, prefix: [u8; 5]) -> bool {
        self.low == u32::from_ne_bytes([prefix[0], prefix[1], prefix[2], prefix[3]])
            && self.high.to_ne_bytes()[0] == prefix[4]
    }
}

/// An IPv4 address: its four bytes, in the order of the wire, as one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Address(u32);

impl Ipv4Address {
    /// 0.0.0.0
    pub const UNSPECIFIED: Self = Self(0);

    /// The address of these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// The address at `OFFSET` of a window.
    #[inline(always)]
    #[must_use]
    pub fn at<const OFFSET: usize, const N: usize>(window: &Window<'_, N>) -> Self {
        Self(window.raw32::<OFFSET>())
    }

    /// The four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The four bytes as one word, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// Whether the address is no single station's: multicast (224.0.0.0/4) or the limited broadcast.
    #[inline(always)]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.bytes()[0] & 0xf0 == 0xe0 || self.0 == u32::MAX
    }
}

/// An IPv6 address, or an IPv4 one as an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2): its sixteen bytes, in the order
/// of the wire, as four words.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Address([u32; 4]);

impl PartialEq for Address {
    /// In one branch, likewise.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        (self.0[0] ^ other.0[0])
            | (self.0[1] ^ other.0[1])
            | (self.0[2] ^ other.0[2])
            | (self.0[3] ^ other.0[3])
            == 0
    }
}

impl Eq for Address {}

impl Address {
    /// `::`
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// `0.0.0.0`
    pub const UNSPECIFIED_V4: Self = Self::v4(Ipv4Address::UNSPECIFIED);

    /// An IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4(address: Ipv4Address) -> Self {
        Self([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), address.0])
    }

    /// The address of these bytes.
    #[inline(always)]
    #[must_use]
    pub const fn new(bytes: &[u8; 16]) -> Self {
        let b = bytes;
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }

    /// The address of these words, which are as in memory.
    #[inline(always)]
    #[must_use]
    pub const fn of(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The IPv6 address at `A` of a window; `B`, `C` and `D` are 4, 8 and 12 more.
    #[inline(always)]
    #[must_use]
    pub fn at<const A: usize, const B: usize, const C: usize, const D: usize, const N: usize>(
        window: &Window<'_, N>,
    ) -> Self {
        const { assert!(B == A + 4 && C == A + 8 && D == A + 12) };
        Self([window.raw32::<A>(), window.raw32::<B>(), window.raw32::<C>(), window.raw32::<D>()])
    }

    /// The link-local address of a MAC (RFC 4291, appendix A).
    #[inline(always)]
    #[must_use]
    pub const fn link_local(mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac.bytes();
        Self::new(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The MAC that a link-local address was made of, if it was made of one.
    #[inline(always)]
    #[must_use]
    pub const fn link_local_mac(self) -> Option<Mac> {
        let b = self.bytes();
        if self.0[0] == u32::from_ne_bytes([0xfe, 0x80, 0, 0])
            && self.0[1] == 0
            && b[11] == 0xff
            && b[12] == 0xfe
        {
            Some(Mac::new(&[b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]]))
        } else {
            None
        }
    }

    /// The sixteen bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// The four words, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 address that is mapped.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(self) -> Ipv4Address {
        Ipv4Address(self.0[3])
    }

    /// Whether the address is `::` or 0.0.0.0.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(self) -> bool {
        let rest = self.0[2] * (self.0[2] ^ Self::UNSPECIFIED_V4.0[2] != 0) as u32;
        self.0[0] | self.0[1] | self.0[3] | rest == 0
    }

    /// Whether the address is a host's own, which never is on a wire: `::1` or 127.0.0.0/8.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(self) -> bool {
        self.0[0] | self.0[1] | self.0[2] == 0 && self.0[3] == 1u32.to_be()
            || self.is_v4() && self.0[3].to_ne_bytes()[0] == 127
    }

    /// Whether the address is an IPv4 one.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.0[0] | self.0[1] | (self.0[2] ^ Self::UNSPECIFIED_V4.0[2]) == 0
    }

    /// Whether the address is no single station's: multicast, or IPv4's limited broadcast.
    #[inline(always)]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0].to_ne_bytes()[0] == 0xff || (self.is_v4() && self.as_v4().is_group())
    }

    /// Whether the address is a link-local one: fe80::/10.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        let [a, b, _, _] = self.0[0].to_ne_bytes();
        a == 0xfe && b & 0xc0 == 0x80
    }

    /// The sum of the address as sixteen-bit words, not folded.
    #[inline(always)]
    #[must_use]
    pub const fn sum(self) -> u32 {
        checksum::halves(self.0[0])
            + checksum::halves(self.0[1])
            + checksum::halves(self.0[2])
            + checksum::halves(self.0[3])
    }

    /// The sum of an address of that family, as its own pseudo-header counts it.
    #[inline(always)]
    #[must_use]
    pub const fn sum_in(self, family: u8) -> u32 {
        if family == 4 { checksum::halves(self.0[3]) } else { self.sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_keeps_its_bytes() {
        let bytes = [0xfe, 0x16, 0x11, 0x00, 0x00, 0x07];
        let mac = Mac::new(&bytes);
        assert_eq!(mac.bytes(), bytes);
        assert!(mac.has_prefix([0xfe, 0x16, 0x11, 0, 0]));
        assert!(!mac.has_prefix([0xfe, 0x16, 0x11, 0, 1]));
        assert!(!mac.is_group());
        assert!(Mac::new(&[0x33, 0x33, 0, 0, 0, 1]).is_group());
        assert_eq!(mac.words().map(u16::to_ne_bytes).concat(), bytes);
    }

    #[test]
    fn both_families_are_told_apart() {
        let v4 = Address::v4(Ipv4Address::new([10, 0, 0, 1]));
        assert!(v4.is_v4() && !v4.is_link_local() && !v4.is_group() && !v4.is_unspecified());
        assert_eq!(v4.bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
        assert!(Address::UNSPECIFIED.is_unspecified() && Address::UNSPECIFIED_V4.is_unspecified());
        assert!(!Address::UNSPECIFIED.is_v4());
        let mac = Mac::new(&[2, 0, 0, 1, 2, 3]);
        let link_local = Address::link_local(mac);
        assert_eq!(link_local.bytes(), [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 1, 2, 3]);
        assert!(link_local.is_link_local());
        assert_eq!(link_local.link_local_mac(), Some(mac));
        assert_eq!(v4.link_local_mac(), None);
    }

    #[test]
    fn group_addresses_are_multicast_and_broadcast() {
        for (address, group) in [
            ([224, 0, 0, 1], true),
            ([239, 255, 255, 255], true),
            ([255, 255, 255, 255], true),
            ([240, 0, 0, 1], false),
            ([223, 1, 1, 1], false),
            ([10, 0, 0, 255], false),
        ] {
            assert_eq!(Ipv4Address::new(address).is_group(), group, "{address:?}");
        }
    }
}
