//! Sets of pieces, one bit each: what holders have changes many times a second, and is joined at each decision.

use std::ops::Range;

use crate::types::ByteRange;
use crate::types::PIECE;
use crate::types::RangeSet;

/// A set of piece numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::stripe) struct Pieces(Vec<u64>);

impl Pieces {
    /// The pieces that are wholly in the set, of a file of `total` bytes; the last one may be short.
    pub(in crate::stripe) fn inside(set: &RangeSet, total: u64) -> Self {
        let mut pieces = Self::default();
        for range in set.within(ByteRange::new(0, total)) {
            let end = if range.end == total {
                total.div_ceil(PIECE)
            } else {
                range.end / PIECE
            };
            pieces.insert(range.start.div_ceil(PIECE)..end);
        }
        pieces
    }

    /// The pieces that the set has any byte of, of a file of `total` bytes.
    pub(in crate::stripe) fn touched(set: &RangeSet, total: u64) -> Self {
        let mut pieces = Self::default();
        for range in set.within(ByteRange::new(0, total)) {
            pieces.insert(pieces_of(range));
        }
        pieces
    }

    pub(in crate::stripe) fn has(&self, piece: u64) -> bool {
        let word = usize::try_from(piece / 64).ok().and_then(|at| self.0.get(at));
        word.is_some_and(|word| word >> (piece % 64) & 1 == 1)
    }

    pub(in crate::stripe) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Adds all that the other one has.
    pub(in crate::stripe) fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    /// The first piece of the set that the range touches.
    pub(in crate::stripe) fn first_in(&self, range: ByteRange) -> Option<u64> {
        pieces_of(range).find(|&piece| self.has(piece))
    }

    fn insert(&mut self, pieces: Range<u64>) {
        for piece in pieces {
            let Ok(at) = usize::try_from(piece / 64) else {
                return;
            };
            if self.0.len() <= at {
                self.0.resize(at + 1, 0);
            }
            if let Some(word) = self.0.get_mut(at) {
                *word |= 1 << (piece % 64);
            }
        }
    }
}

/// The pieces that a range touches; none for an empty one.
pub(in crate::stripe) fn pieces_of(range: ByteRange) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / PIECE..range.end.div_ceil(PIECE)
}

/// A piece's bytes, as if the file had no end.
pub(in crate::stripe) const fn bytes_of(piece: u64) -> ByteRange {
    let start = piece.saturating_mul(PIECE);
    ByteRange::new(start, start.saturating_add(PIECE))
}
