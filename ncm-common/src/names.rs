//! Names of numbered things, as the table `NAMES` holds them.

use crate::tables::Name;

/// Bytes that stand for the rest of a text that does not fit: an ellipsis, and the text's hash in hexadecimal.
const REST: usize = "…".len() + 16;

/// FNV-1a: the same in every build, so that an upgraded agent finds by name what the one before left.
#[must_use]
pub fn stable_hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Name {
    /// Stands between what is kept of an identity that does not fit, and its hash.
    pub const CUT: char = '…';

    /// The name of an identity whose index has that generation. A text that does not fit ends in its own hash, so that two
    /// long ones stay two: whose an index is must not be mistaken.
    #[must_use]
    pub fn new(identity: &str, generation: u32) -> Self {
        let mut name = Self { generation, ..Self::default() };
        if identity.len() <= name.text.len() {
            name.push(identity.as_bytes());
            return name;
        }
        name.push(&identity.as_bytes()[..identity.floor_char_boundary(name.text.len() - REST)]);
        name.push(Self::CUT.encode_utf8(&mut [0; 4]).as_bytes());
        let hash = stable_hash(identity);
        for digit in (0..16).rev() {
            name.push(&[b"0123456789abcdef"[(hash >> (4 * digit)) as usize & 15]]);
        }
        name
    }

    /// The identity, or what stands for it; empty if it is not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.text.get(..self.len as usize).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Whether the text is the identity itself for certain, and nothing that stands for a longer one.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.as_str().contains(Self::CUT)
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = self.len as usize;
        self.text[start..start + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u32;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn a_name_that_fits_is_kept_and_two_long_ones_stay_two() {
        assert_eq!(Name::new("port-1", 3).as_str(), "port-1");
        let long = "ä".repeat(60);
        assert_eq!(Name::new(&long, 1).as_str(), long, "exactly as long as fits");
        let (one, other) = (Name::new(&std::format!("{long}1"), 1), Name::new(&std::format!("{long}2"), 1));
        assert_ne!(one.as_str(), other.as_str());
        assert_eq!(Name::new(one.as_str(), 1), one, "what was fitted fits as it is");
    }
}
