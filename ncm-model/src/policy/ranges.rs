//! Ranges of ports: merged where they touch, then cut into prefixes.

use std::collections::BTreeMap;

/// The ranges that rules for one remote, family and protocol have.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// How many rules have a range.
    counts: BTreeMap<(u16, u16), u32>,
    /// How many of the rules are of which group.
    groups: Vec<(u32, u32)>,
}

impl Ranges {
    /// Counts one more rule of a group; says how many more ranges there are.
    pub(super) fn add(&mut self, range: (u16, u16), group: u32) -> usize {
        match self.groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, count)) => *count += 1,
            None => self.groups.push((group, 1)),
        }
        let count = self.counts.entry(range).or_default();
        *count += 1;
        usize::from(*count == 1)
    }

    /// Counts one rule of a group less; says how many ranges less there are.
    pub(super) fn remove(&mut self, range: (u16, u16), group: u32) -> usize {
        if let Some(at) = self.groups.iter().position(|(known, _)| *known == group) {
            self.groups[at].1 -= 1;
            if self.groups[at].1 == 0 {
                self.groups.remove(at);
            }
        }
        let Some(count) = self.counts.get_mut(&range) else { return 0 };
        *count -= 1;
        if *count > 0 {
            return 0;
        }
        self.counts.remove(&range);
        1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The group to name when one of the entries is refused.
    pub(super) fn group(&self) -> Option<u32> {
        self.groups.first().map(|(group, _)| *group)
    }
}

/// A range of ports that is a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) start: u16,
    /// How many of the port's bits count: 0 to 16.
    pub(super) bits: u8,
    /// How many rules the whole range is merged from.
    pub(super) rules: u32,
}

/// The ranges of all of these together, as few prefixes as there can be, in order. That what touches is merged first makes them the
/// same for the same ports, however the rules cut them.
pub(super) fn pieces<'a>(of: impl IntoIterator<Item = &'a Ranges>) -> Vec<Piece> {
    let mut ranges: Vec<_> = of.into_iter().flat_map(|ranges| &ranges.counts).collect();
    ranges.sort_unstable();
    let mut pieces = Vec::with_capacity(ranges.len());
    let mut ranges = ranges.into_iter().peekable();
    while let Some(((start, end), count)) = ranges.next() {
        let (mut end, mut rules) = (*end, *count);
        while let Some(((_, far), count)) = ranges.next_if(|((next, _), _)| *next <= end.saturating_add(1)) {
            end = end.max(*far);
            rules += count;
        }
        cut(*start, end, rules, &mut pieces);
    }
    pieces
}

fn cut(start: u16, end: u16, rules: u32, pieces: &mut Vec<Piece>) {
    let (mut at, end) = (u32::from(start), u32::from(end));
    while at <= end {
        let mut free = at.trailing_zeros().min(16);
        while at + (1 << free) - 1 > end {
            free -= 1;
        }
        pieces.push(Piece { start: at as u16, bits: 16 - free as u8, rules });
        at += 1 << free;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_of(ranges: &[(u16, u16)]) -> Vec<(u16, u8, u32)> {
        let mut all = Ranges::default();
        ranges.iter().for_each(|range| {
            all.add(*range, 1);
        });
        pieces([&all]).into_iter().map(|piece| (piece.start, piece.bits, piece.rules)).collect()
    }

    #[test]
    fn ranges_are_merged_where_they_touch_and_cut_into_as_few_prefixes_as_there_can_be() {
        assert_eq!(cut_of(&[(80, 80)]), [(80, 16, 1)]);
        assert_eq!(cut_of(&[(80, 80), (80, 80), (81, 81)]), [(80, 15, 3)]);
        assert_eq!(cut_of(&[(80, 80), (82, 82)]), [(80, 16, 1), (82, 16, 1)]);
        assert_eq!(cut_of(&[(0, 65_535)]), [(0, 0, 1)]);
        assert_eq!(cut_of(&[(0, 32_767), (20, 90), (32_768, 65_535)]), [(0, 0, 3)]);
        assert_eq!(cut_of(&[(1, 65_534)]).len(), 30, "the worst single range");
        assert_eq!(cut_of(&[(65_535, 65_535), (65_534, 65_534)]), [(65_534, 15, 2)]);
    }
}
