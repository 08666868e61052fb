//! Byte ranges and sets of them.

use std::fmt;
use std::ops::Bound;
use std::{collections::BTreeMap, collections::btree_map};

use serde::{Deserialize, Serialize};

/// The bytes from `start` up to, not including, `end`. Empty where they are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; never less than `start`.
    pub end: u64,
}

impl ByteRange {
    /// `start..end`; an `end` before `start` gives the empty range at `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end: if end < start { start } else { end },
        }
    }

    /// How many bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes in both; empty (at the larger start) where they do not meet.
    pub fn intersect(&self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether every byte of `other` is in this one.
    pub const fn contains(&self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A set of bytes, kept as few ranges as possible.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangeSet {
    /// start → end.
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self {
            ranges: BTreeMap::new(),
            len: 0,
        }
    }

    /// How many bytes are in the set.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the set has no byte.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many separate ranges the set is made of.
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Adds the range; returns how many of its bytes were new.
    pub fn insert(&mut self, range: ByteRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.len;
        let mut merged = range;
        while let Some((&start, &end)) = self.ranges.range(..=merged.end).next_back() {
            if end < merged.start {
                break;
            }
            self.ranges.remove(&start);
            self.len -= end - start;
            merged = ByteRange::new(merged.start.min(start), merged.end.max(end));
        }
        self.ranges.insert(merged.start, merged.end);
        self.len += merged.len();
        self.len - before
    }

    /// Takes the range's bytes out; returns how many were in.
    pub fn remove(&mut self, range: ByteRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.len;
        while let Some((&start, &end)) = self.ranges.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.ranges.remove(&start);
            self.len -= end - start;
            for rest in [
                ByteRange::new(start, range.start.min(end)),
                ByteRange::new(range.end.max(start), end),
            ] {
                if !rest.is_empty() {
                    self.ranges.insert(rest.start, rest.end);
                    self.len += rest.len();
                }
            }
        }
        before - self.len
    }

    /// Whether every byte of the range is in the set; true for an empty range.
    pub fn contains(&self, range: ByteRange) -> bool {
        range.is_empty() || self.range_at(range.start).is_some_and(|r| r.end >= range.end)
    }

    /// How many bytes of the range are in the set.
    pub fn overlap(&self, range: ByteRange) -> u64 {
        self.within(range).map(|r| r.len()).sum()
    }

    /// The range of the set that holds this byte.
    pub fn range_at(&self, byte: u64) -> Option<ByteRange> {
        let (&start, &end) = self.ranges.range(..=byte).next_back()?;
        (byte < end).then_some(ByteRange::new(start, end))
    }

    /// The first range that ends after this byte.
    pub fn next_from(&self, byte: u64) -> Option<ByteRange> {
        self.range_at(byte).or_else(|| {
            let after = (Bound::Excluded(byte), Bound::Unbounded);
            self.ranges
                .range(after)
                .next()
                .map(|(&s, &e)| ByteRange::new(s, e))
        })
    }

    /// The parts of the set inside `window`, in order.
    pub fn within(&self, window: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let first = self.range_at(window.start).map_or(window.start, |r| r.start);
        self.ranges
            .range(first..window.end.max(first))
            .map(move |(&s, &e)| ByteRange::new(s, e).intersect(window))
            .filter(|r| !r.is_empty())
    }

    /// The parts of `window` that are not in the set, in order.
    pub fn gaps(&self, window: ByteRange) -> Vec<ByteRange> {
        let mut gaps = Vec::new();
        let mut at = window.start;
        for part in self.within(window) {
            if part.start > at {
                gaps.push(ByteRange::new(at, part.start));
            }
            at = part.end;
        }
        if at < window.end {
            gaps.push(ByteRange::new(at, window.end));
        }
        gaps
    }

    /// The ranges in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.ranges.iter())
    }
}

impl FromIterator<ByteRange> for RangeSet {
    fn from_iter<T: IntoIterator<Item = ByteRange>>(iter: T) -> Self {
        let mut set = Self::new();
        for range in iter {
            set.insert(range);
        }
        set
    }
}

impl<'a> IntoIterator for &'a RangeSet {
    type Item = ByteRange;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The ranges of a [`RangeSet`], in order.
#[derive(Debug)]
pub struct Iter<'a>(btree_map::Iter<'a, u64, u64>);

impl Iterator for Iter<'_> {
    type Item = ByteRange;

    fn next(&mut self) -> Option<ByteRange> {
        self.0.next().map(|(&s, &e)| ByteRange::new(s, e))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_set_behaves_like_a_set_of_bytes(ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..60), 0..40), probe in (0u64..60, 0u64..60)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, a, b) in ops {
                let range = ByteRange::new(a, b);
                let changed = if add {
                    (range.start..range.end).filter(|&x| model.insert(x)).count()
                } else {
                    (range.start..range.end).filter(|x| model.remove(x)).count()
                };
                let got = if add { set.insert(range) } else { set.remove(range) };
                prop_assert_eq!(got, changed as u64);
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|w| w[0].end < w[1].start), "touching or unordered: {ranges:?}");
            let bytes: Vec<u64> = ranges.iter().flat_map(|r| r.start..r.end).collect();
            prop_assert_eq!(&bytes, &model.iter().copied().collect::<Vec<_>>());
            let window = ByteRange::new(probe.0, probe.1);
            let inside = (window.start..window.end).filter(|x| model.contains(x)).count() as u64;
            prop_assert_eq!(set.overlap(window), inside);
            prop_assert_eq!(set.contains(window), inside == window.len());
            let gaps: u64 = set.gaps(window).iter().map(ByteRange::len).sum();
            prop_assert_eq!(gaps + inside, window.len());
            prop_assert_eq!(set.next_from(probe.0).map(|r| r.start.max(probe.0)), model.range(probe.0..).next().copied());
        }
    }
}
