//! MAC and IPv4 addresses in the form in which programs compare and copy them: words with the bytes as in memory.

use super::Window;

/// A MAC address: its six bytes, in the order of the wire, as two words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mac {
    low: u32,
    high: u16,
}

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

    /// The address as an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2), which tables hold.
    #[inline(always)]
    #[must_use]
    pub const fn mapped(self) -> [u8; 16] {
        let [a, b, c, d] = self.bytes();
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    /// The address of that IPv4-mapped one; of its last four bytes, as anything else is not to be here.
    #[inline(always)]
    #[must_use]
    pub const fn of_mapped(bytes: &[u8; 16]) -> Self {
        Self::new([bytes[12], bytes[13], bytes[14], bytes[15]])
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
