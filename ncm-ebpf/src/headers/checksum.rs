//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are over 16-bit words as they are in memory: ones' complement addition gives the same in either byte order.

/// The sum of a word's two halves, folded into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// `checksum` after one of the words that it covers has changed from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum) as u32 + (!old) as u32 + new as u32)
}

/// The sum of the two halves of a four-byte word, not folded.
#[inline(always)]
#[must_use]
pub const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The word `w` for which `2 w` is `sum`, in ones' complement arithmetic (modulo 65535).
#[inline(always)]
#[must_use]
pub const fn half(sum: u16) -> u16 {
    // 65535 is odd: an odd sum is halved after adding 65535, which is zero there.
    if sum & 1 == 0 { sum / 2 } else { (sum / 2) + 0x8000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(words: &[u16]) -> u16 {
        !fold(words.iter().map(|word| u32::from(*word)).sum())
    }

    #[test]
    fn an_update_equals_a_new_sum() {
        let mut words = [0x4500, 0x0054, 0x1234, 0x4000, 0x4001, 0x0a00, 0x0001, 0x0a00, 0x0002];
        let before = checksum(&words);
        let old = words[4];
        words[4] = 0x3f01;
        assert_eq!(update(before, old, words[4]), checksum(&words));
    }

    #[test]
    fn twice_the_half_is_the_whole() {
        for sum in 0..=u16::MAX {
            let twice = fold(u32::from(half(sum)) * 2);
            assert_eq!(u32::from(twice) % 65_535, u32::from(sum) % 65_535);
        }
    }
}
