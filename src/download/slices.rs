//! Which slices of a content are fetched over an uplink although members have them: spot checks of what members vouch for
//! where no digest will decide (threats 1.3, INT-2).
//!
//! One slice of 64 KiB in each window of at least six pieces, at a place that nobody can foresee: one hundredth of the
//! content. A member that garbled a share `f` of the pieces wholly is caught with `1 - (1 - f)^windows`; one that garbled a
//! single bit of them, with a sixteenth of `f` for each window. So it is a deterrent, not a proof: what came so is called
//! "as members have it", and a digest proves it.
//!
//! Invariant: slices lie within one piece each, and all of them together are little more than [`MOST`] bytes.

use ring::rand::{SecureRandom, SystemRandom};

use crate::types::{ByteRange, PIECE, RangeSet};

/// Bytes of a slice: what one request brings at little more than its round trip.
pub(super) const SLICE: u64 = 64 << 10;
/// Pieces a window has at least: a slice of each is one hundredth.
const WINDOW: u64 = 6;
/// All slices but the first together, at most: minutes on a slow line otherwise.
const MOST: u64 = 16 << 20;

/// The slices of a content. Where the system gives no random numbers, all of its beginning is checked instead.
pub(super) fn slices(total: u64) -> RangeSet {
    let pieces = total.div_ceil(PIECE);
    let window = WINDOW.max((pieces * SLICE).div_ceil(MOST));
    let random = SystemRandom::new();
    // What the first question brings, where members have it.
    let mut chosen: RangeSet = [ByteRange::new(0, total.min(SLICE))].into_iter().collect();
    let mut first = 0;
    while first < pieces {
        let mut bytes = [0; 8];
        if random.fill(&mut bytes).is_err() {
            return [ByteRange::new(0, total.min(MOST))].into_iter().collect();
        }
        let from = first * PIECE;
        let length = (window * PIECE).min(total - from);
        let slice = u64::from_le_bytes(bytes) % length.div_ceil(SLICE);
        let start = from + slice * SLICE;
        chosen.insert(ByteRange::new(start, (start + SLICE).min(total)));
        first += window;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn one_hundredth_is_checked_and_never_more_than_the_limit(total in 1u64..(1 << 45)) {
            let chosen = slices(total);
            prop_assert!(chosen.iter().all(|r| r.end <= total && (r.start / PIECE == (r.end - 1) / PIECE)));
            prop_assert!(chosen.len() <= MOST + SLICE);
            let window = WINDOW * PIECE;
            for start in (0..total.min(100 * window)).step_by(window as usize) {
                let end = total.min(start + window);
                if total < (1 << 30) {
                    prop_assert!(chosen.overlap(ByteRange::new(start, end)) > 0, "a window without a check");
                }
            }
            prop_assert!(chosen.len() <= (total / (WINDOW * PIECE) + 2) * SLICE);
        }
    }

    #[test]
    fn nobody_can_foresee_what_is_checked() {
        let total = 1 << 30;
        assert_ne!(slices(total), slices(total));
    }
}
