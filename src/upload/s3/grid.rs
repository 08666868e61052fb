//! Where parts may begin and end, and which number each has.
//!
//! A part's number tells where it belongs: S3 puts parts together in the order of their numbers, and the numbers may have
//! gaps. So the file has a grid, a part begins at one of its lines and is numbered by it, and however parts are carved no
//! number is used for two places. Services that want equal parts get them, numbered without gaps.
//!
//! Invariants: numbers are 1 to 10,000; no part but the last is shorter than 5 MiB, none is longer than 5 GiB.

use std::collections::BTreeSet;

use crate::stripe::{Part, Work};
use crate::types::{ByteRange, ByteSize, RangeSet};

/// No part but the last may be shorter.
pub(super) const MIN_PART: u64 = 5 << 20;
/// No part may be longer.
pub(super) const MAX_PART: u64 = 5 << 30;
/// Part numbers end here.
pub(super) const MAX_NUMBER: u64 = 10_000;
/// The finest grid: lets lanes finish together to 0.05 s at 10 Mbit/s.
const FINEST: u64 = 64 << 10;
/// The longest carved part, where the grid is fine: what a lost lane or a killed uploader costs at most, 1 to 2 minutes at
/// 5 Mbit/s. Longer parts would save little: this many cost one round trip each.
const LONG_PART: u64 = 64 << 20;
/// Of a coarse grid (over 300 GiB) this many least parts are the longest one: room for the scheduler.
const LEAST_IN_MOST: u64 = 4;
/// Into so many equal parts a file is divided as long as they are neither short nor long ones: the last of them then
/// delays the end by less than a sixteenth on four lanes.
const EQUAL_PARTS: u64 = 64;
/// Equal parts are multiples of it.
const EQUAL_STEP: u64 = 1 << 20;

/// How one file is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    /// It is sent in one request, without parts.
    Whole { total: u64 },
    /// Parts begin at multiples of `grain`.
    Carved {
        total: u64,
        grain: u64,
        least: u64,
        most: u64,
    },
    /// Parts of `size`, but the last.
    Equal { total: u64, size: u64 },
}

impl Grid {
    /// For a file of `total` bytes; `size` is what the user wants parts to have, `equal` what the service wants, `limit` the
    /// most bytes that it stores in an object.
    ///
    /// # Errors
    /// In words, what cannot be: a file too large, a part size that is not allowed.
    pub(super) fn new(total: u64, size: Option<u64>, equal: bool, limit: u64) -> Result<Self, String> {
        if total > limit {
            return Err(format!(
                "it has {}, and an object there may have {}: send it in pieces",
                ByteSize(total),
                ByteSize(limit)
            ));
        }
        if let Some(size) = size {
            check(total, size)?;
        }
        if total <= MIN_PART {
            return Ok(Self::Whole { total });
        }
        // One number is left free for rounding.
        let grain = total.div_ceil(MAX_NUMBER - 1).next_multiple_of(FINEST);
        let least = MIN_PART.max(grain).next_multiple_of(grain);
        let most = LONG_PART.max(LEAST_IN_MOST * least);
        Ok(match size {
            Some(size) => Self::Equal { total, size },
            None if equal || most > MAX_PART => Self::Equal {
                total,
                size: equal_size(total),
            },
            None => Self::Carved {
                total,
                grain,
                least,
                most: most.next_multiple_of(grain),
            },
        })
    }

    pub(super) const fn total(&self) -> u64 {
        match self {
            Self::Whole { total } | Self::Carved { total, .. } | Self::Equal { total, .. } => *total,
        }
    }

    /// What a part of the work is in the file.
    pub(super) const fn range(&self, part: Part) -> ByteRange {
        match self {
            Self::Whole { .. } | Self::Carved { .. } => part.range,
            Self::Equal { total, size } => {
                let start = part.item as u64 * *size;
                let end = start + *size;
                ByteRange::new(start, if end < *total { end } else { *total })
            }
        }
    }

    /// The number of the part that begins where `range` does.
    pub(super) const fn number(&self, range: ByteRange) -> u64 {
        match self {
            Self::Whole { .. } => 1,
            Self::Carved { grain: step, .. } | Self::Equal { size: step, .. } => range.start / *step + 1,
        }
    }

    /// What a part of that number and length is in the file, if it could have come from this grid.
    pub(super) fn place(&self, number: u64, length: u64) -> Option<ByteRange> {
        let index = number.checked_sub(1).filter(|_| number <= MAX_NUMBER)?;
        let (step, total) = match self {
            Self::Whole { .. } => return None,
            Self::Carved { grain, total, .. } => (*grain, *total),
            Self::Equal { size, total } => (*size, *total),
        };
        let start = index.checked_mul(step)?;
        let end = start.checked_add(length)?;
        let fits = match self {
            Self::Equal { size, .. } => length == *size,
            _ => length >= MIN_PART && end % step == 0,
        };
        let fits = length <= MAX_PART && end <= total && (fits || end == total && length <= self.most());
        (fits && length > 0).then_some(ByteRange::new(start, end))
    }

    /// All that is to be sent where `done` is there already.
    pub(super) fn work(&self, done: &[ByteRange]) -> Work {
        match self {
            Self::Whole { total } => Work::Fixed {
                sizes: vec![*total],
                done: BTreeSet::new(),
            },
            Self::Carved {
                total,
                grain,
                least,
                most,
            } => {
                let mut there = RangeSet::new();
                for range in done {
                    there.insert(*range);
                }
                Work::Carved {
                    total: *total,
                    grain: *grain,
                    least: *least,
                    most: *most,
                    done: there,
                }
            }
            Self::Equal { total, size } => Work::Fixed {
                sizes: (0..total.div_ceil(*size))
                    .map(|n| (*size).min(total - n * size))
                    .collect(),
                done: done
                    .iter()
                    .filter_map(|range| usize::try_from(range.start / size).ok())
                    .collect(),
            },
        }
    }

    const fn most(&self) -> u64 {
        match self {
            Self::Equal { size, .. } => *size,
            _ => MAX_PART,
        }
    }
}

fn check(total: u64, size: u64) -> Result<(), String> {
    let least = MIN_PART
        .max(total.div_ceil(MAX_NUMBER))
        .next_multiple_of(EQUAL_STEP);
    if (MIN_PART..=MAX_PART).contains(&size) && total.div_ceil(size) <= MAX_NUMBER {
        return Ok(());
    }
    Err(format!(
        "parts of {} are not allowed: S3 has at most 10,000 of them, each of 5 MiB to 5 GiB; for this file choose \
         --part-size from {}MiB on",
        ByteSize(size),
        least >> 20
    ))
}

/// Only of the length, so that the next run divides the file in the same way.
fn equal_size(total: u64) -> u64 {
    let even = total.div_ceil(EQUAL_PARTS).clamp(MIN_PART, LONG_PART);
    let needed = total.div_ceil(MAX_NUMBER);
    even.max(needed).next_multiple_of(EQUAL_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u64 = MAX_PART * MAX_NUMBER;

    fn sizes() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..=MIN_PART * 3,
            MIN_PART..=1 << 32,
            1_u64 << 32..=1 << 42,
            1_u64 << 42..=LIMIT,
        ]
    }

    proptest! {
        #[test]
        fn no_size_of_file_breaks_a_rule_of_s3s(total in sizes(), equal: bool) {
            match Grid::new(total, None, equal, LIMIT).unwrap() {
                Grid::Whole { total } => prop_assert!(total <= MIN_PART),
                Grid::Carved { total, grain, least, most } => {
                    prop_assert!(!equal);
                    prop_assert!(total.div_ceil(grain) <= MAX_NUMBER);
                    prop_assert!(least >= MIN_PART && least >= grain && least % grain == 0);
                    prop_assert!(most <= MAX_PART && most >= 2 * least && most % grain == 0);
                }
                Grid::Equal { total, size } => {
                    prop_assert!((MIN_PART..=MAX_PART).contains(&size), "{size}");
                    prop_assert!(total.div_ceil(size) <= MAX_NUMBER);
                }
            }
        }

        #[test]
        fn what_a_part_is_numbered_by_says_where_it_belongs(total in MIN_PART + 1..1 << 40, at in 0.0..1.0_f64, long in 1_u64..50) {
            let grid = Grid::new(total, None, false, LIMIT).unwrap();
            let Grid::Carved { grain, least, most, .. } = grid else { panic!("{grid:?}") };
            let start = ((total as f64 * at) as u64 / grain * grain).min((total - 1) / grain * grain);
            let end = (start + (least + long * grain).min(most)).min(total);
            let range = ByteRange::new(start, end);
            prop_assert_eq!(grid.place(grid.number(range), range.len()), Some(range));
        }

        #[test]
        fn equal_parts_cover_the_file_without_a_gap(total in MIN_PART + 1..1 << 40) {
            let grid = Grid::new(total, None, true, LIMIT).unwrap();
            let Work::Fixed { sizes, .. } = grid.work(&[]) else { panic!("{grid:?}") };
            let mut at = 0;
            for (item, size) in sizes.iter().enumerate() {
                let range = grid.range(Part { item, range: ByteRange::new(0, *size) });
                prop_assert_eq!((range.start, range.len()), (at, *size));
                prop_assert_eq!(grid.number(range), item as u64 + 1);
                prop_assert_eq!(grid.place(item as u64 + 1, *size), Some(range));
                at = range.end;
            }
            prop_assert_eq!(at, total);
        }

        #[test]
        fn nothing_that_a_server_lists_overflows(total in sizes(), number: u64, length: u64, equal: bool) {
            let grid = Grid::new(total, None, equal, LIMIT).unwrap();
            if let Some(range) = grid.place(number, length) {
                prop_assert!(range.end <= total && number <= MAX_NUMBER);
            }
        }
    }

    #[test]
    fn a_part_off_the_grid_is_nobodys() {
        let grid = Grid::new(100 << 20, None, false, LIMIT).unwrap();
        assert_eq!(grid.place(1, 5 << 20), Some(ByteRange::new(0, 5 << 20)));
        for (number, length) in [
            (0, 5 << 20),
            (1, (5 << 20) + 1),
            (1, 4 << 20),
            (1, 0),
            (10_001, 5 << 20),
            (1601, 1),
            (1600, (64 << 10) + 1),
        ] {
            assert_eq!(grid.place(number, length), None, "{number}, {length}");
        }
        assert_eq!(
            grid.place(1600, 64 << 10),
            Some(ByteRange::new((100 << 20) - (64 << 10), 100 << 20)),
            "the last one may be short"
        );
    }

    #[test]
    fn a_part_size_that_cannot_be_is_told_with_one_that_can() {
        assert_eq!(
            Grid::new(100 << 30, Some(5 << 20), false, LIMIT).unwrap_err(),
            "parts of 5.0 MiB are not allowed: S3 has at most 10,000 of them, each of 5 MiB to 5 GiB; for this file choose \
             --part-size from 11MiB on"
        );
        assert!(Grid::new(100 << 30, Some(11 << 20), false, LIMIT).is_ok());
        assert!(Grid::new(1, Some(1), false, LIMIT).is_err());
        assert!(Grid::new(1 << 40, Some(MAX_PART + 1), false, LIMIT).is_err());
        assert_eq!(
            Grid::new((5 << 40) + 1, None, false, 5 << 40).unwrap_err(),
            "it has 5.0 TiB, and an object there may have 5.0 TiB: send it in pieces"
        );
    }

    #[test]
    fn an_empty_file_and_one_of_exactly_one_part_go_in_one_request() {
        for total in [0, 1, MIN_PART] {
            let grid = Grid::new(total, None, false, LIMIT).unwrap();
            assert_eq!(grid, Grid::Whole { total });
            let Work::Fixed { sizes, .. } = grid.work(&[]) else {
                panic!()
            };
            assert_eq!(sizes, [total]);
        }
        assert!(matches!(
            Grid::new(MIN_PART + 1, None, false, LIMIT).unwrap(),
            Grid::Carved { .. }
        ));
    }
}
