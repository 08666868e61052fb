//! A set of pieces, as a bit for each.

use crate::types::{ByteRange, PIECE, RangeSet};

use super::leaves::MAX_PIECES;

/// A set of a content's pieces; those beyond [`MAX_PIECES`] are in none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    words: Vec<u64>,
    pieces: u32,
}

impl Bits {
    /// None of the pieces of a content of `total` bytes.
    pub(super) fn none(total: u64) -> Self {
        let pieces = u32::try_from(total.div_ceil(PIECE)).map_or(MAX_PIECES, |pieces| pieces.min(MAX_PIECES));
        let words = vec![0; pieces.div_ceil(64) as usize];
        Self { words, pieces }
    }

    /// All of them.
    pub(super) fn all(total: u64) -> Self {
        let mut all = Self::none(total);
        all.insert_run(0, all.pieces);
        all
    }

    /// Whether the piece is in the set.
    pub(super) fn contains(&self, piece: u32) -> bool {
        let word = self.words.get(piece as usize / 64);
        word.is_some_and(|word| word >> (piece % 64) & 1 == 1)
    }

    /// Adds a piece; whether it was not in the set.
    pub(super) fn insert(&mut self, piece: u32) -> bool {
        let new = piece < self.pieces && !self.contains(piece);
        if let Some(word) = self.words.get_mut(piece as usize / 64).filter(|_| new) {
            *word |= 1 << (piece % 64);
        }
        new
    }

    /// Adds `count` pieces from `first` on; whether one of them was not in the set.
    pub(super) fn insert_run(&mut self, first: u32, count: u32) -> bool {
        let end = first.saturating_add(count).min(self.pieces);
        let mut new = false;
        for piece in first..end {
            new |= self.insert(piece);
        }
        new
    }

    /// Takes a piece out; whether it was in the set.
    pub(super) fn remove(&mut self, piece: u32) -> bool {
        let was = self.contains(piece);
        if let Some(word) = self.words.get_mut(piece as usize / 64) {
            *word &= !(1 << (piece % 64));
        }
        was
    }

    /// Adds those of `other`.
    pub(super) fn add(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Leaves only those that are in `other` too.
    pub(super) fn keep(&mut self, other: &Self) {
        let others = other.words.iter().chain(std::iter::repeat(&0));
        for (word, other) in self.words.iter_mut().zip(others) {
            *word &= other;
        }
    }

    /// Takes those of `other` out.
    pub(super) fn take_out(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// The pieces in order, as runs: the first one's number, and how many.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next(at, true)?;
            let end = self.next(first, false).unwrap_or(self.pieces);
            at = end;
            Some((first, end - first))
        })
    }

    /// The bytes of these pieces of a content of `total` bytes.
    pub(super) fn bytes(&self, total: u64) -> RangeSet {
        let range = |(first, count): (u32, u32)| {
            let (start, end) = (u64::from(first) * PIECE, u64::from(first + count) * PIECE);
            ByteRange::new(start.min(total), end.min(total))
        };
        self.runs().map(range).collect()
    }

    /// The first piece from `from` on that is in the set, or that is not.
    fn next(&self, from: u32, wanted: bool) -> Option<u32> {
        let mut piece = from;
        while piece < self.pieces {
            let word = *self.words.get(piece as usize / 64)?;
            let word = if wanted { word } else { !word } >> (piece % 64);
            if word != 0 {
                piece += word.trailing_zeros();
                return (piece < self.pieces).then_some(piece);
            }
            piece = (piece / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_behave_like_a_set_of_pieces(
            pieces in 1u32..200,
            ops in prop::collection::vec((0..3u8, 0u32..220, 0u32..20), 0..40),
            short in 0..PIECE,
        ) {
            let total = u64::from(pieces) * PIECE - short;
            let mut bits = Bits::none(total);
            let mut model = BTreeSet::new();
            for (op, first, count) in ops {
                let run = first..(first + count).min(pieces);
                let told = match op {
                    0 => bits.insert_run(first, count) == run.map(|p| model.insert(p)).fold(false, |a, b| a | b),
                    1 => bits.insert(first) == (first < pieces && model.insert(first)),
                    _ => bits.remove(first) == model.remove(&first),
                };
                prop_assert!(told);
            }
            let heard: Vec<u32> = bits.runs().flat_map(|(first, count)| first..first + count).collect();
            prop_assert_eq!(&heard, &model.iter().copied().collect::<Vec<_>>());
            let runs: Vec<_> = bits.runs().collect();
            prop_assert!(runs.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
            let last = u64::from(pieces) - 1;
            let bytes: u64 = model.iter().map(|p| if u64::from(*p) == last { total - last * PIECE } else { PIECE }).sum();
            prop_assert_eq!(bits.bytes(total).len(), bytes);
            let mut rest = Bits::all(total);
            rest.take_out(&bits);
            let mut both = rest.clone();
            both.keep(&bits);
            prop_assert_eq!(both, Bits::none(total));
            rest.add(&bits);
            prop_assert_eq!(rest, Bits::all(total));
        }
    }

    #[test]
    fn a_content_that_claims_to_be_endless_takes_a_few_kib() {
        let bits = Bits::all(u64::MAX);
        assert_eq!(bits.runs().collect::<Vec<_>>(), [(0, MAX_PIECES)]);
        assert!(!bits.contains(MAX_PIECES) && !bits.contains(u32::MAX));
    }
}
