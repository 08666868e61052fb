//! What an earlier run sent, also one of another device: found in the service's own lists, kept where it is what the file is.
//!
//! Invariants: a part only counts when the file's own bytes have its MD5, so that what is completed is this file; parts that
//! do not fit are left where they are and out of what is completed; the file is read at most once, but for three parts of
//! each upload that is of another file.

use super::answers::{Listed, Upload, md5_of};
use super::books::Entry;
use super::control::Service;
use super::grid::{Grid, MIN_PART};
use crate::stripe::Part;
use crate::types::ByteRange;
use crate::upload::UploadError;
use crate::upload::exchange::Caller;
use crate::upload::source::{Checksum, Source};

/// Unfinished uploads that are looked into: more of one object nobody leaves behind, and each costs requests.
const MAX_LOOKED: usize = 16;
/// So many parts that are not this file's, and none that is: it is another file's upload.
const STRANGERS: usize = 3;

/// An upload to go on with.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) id: String,
    /// What it has of this file.
    pub(super) entries: Vec<Entry>,
}

/// Looks for an upload that has parts of this file, the newest first; else for one that has nothing yet.
pub(super) async fn find(
    service: &Service,
    caller: &Caller,
    grid: &Grid,
    source: &Source,
    uploads: &[Upload],
) -> Result<Option<Found>, UploadError> {
    let mut empty = None;
    for upload in uploads.iter().take(MAX_LOOKED) {
        let Ok(listed) = service.parts(caller, &upload.id).await? else {
            // Gone meanwhile, or not ours to look into.
            continue;
        };
        let entries = ours(fitting(grid, &listed), source).await?;
        let found = Found {
            id: upload.id.clone(),
            entries,
        };
        if !found.entries.is_empty() {
            return Ok(Some(found));
        }
        if listed.is_empty() {
            empty.get_or_insert(found);
        }
    }
    Ok(empty)
}

/// Those whose MD5 the file's own bytes have.
async fn ours(candidates: Vec<Entry>, source: &Source) -> Result<Vec<Entry>, UploadError> {
    let mut same: Vec<Entry> = Vec::new();
    let mut strangers = 0;
    for candidate in candidates {
        if same.is_empty() && strangers == STRANGERS {
            break;
        }
        let part = Part {
            item: 0,
            range: candidate.range,
        };
        if source.digest(&part, Checksum::Md5).await? == candidate.md5 {
            same.push(candidate);
        } else {
            strangers += 1;
        }
    }
    Ok(apart(same))
}

/// Those that this file could have been cut into, without overlaps.
fn fitting(grid: &Grid, listed: &[Listed]) -> Vec<Entry> {
    let mut kept: Vec<Entry> = Vec::new();
    for part in listed {
        let (Some(range), Some(md5)) = (grid.place(part.number, part.size), md5_of(&part.etag)) else {
            continue;
        };
        if kept.last().is_none_or(|last| last.range.end <= range.start) {
            kept.push(Entry {
                number: part.number,
                range,
                etag: part.etag.clone(),
                md5,
                sure: true,
            });
        }
    }
    kept
}

/// Without those that leave a gap before them that no part can fill.
fn apart(entries: Vec<Entry>) -> Vec<Entry> {
    let mut kept: Vec<Entry> = Vec::new();
    for entry in entries {
        let end = kept.last().map_or(0, |last| last.range.end);
        let gap = ByteRange::new(end, entry.range.start).len();
        if gap == 0 || gap >= MIN_PART {
            kept.push(entry);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::hex;
    use proptest::prelude::*;

    const LIMIT: u64 = 5 << 40;
    const MIB: u64 = 1 << 20;

    fn listed(number: u64, size: u64) -> Listed {
        Listed {
            number,
            size,
            etag: hex(&[7; 16]),
        }
    }

    fn ranges(entries: &[Entry]) -> Vec<(u64, u64)> {
        entries
            .iter()
            .map(|e| (e.range.start / MIB, e.range.end / MIB))
            .collect()
    }

    #[test]
    fn parts_of_another_cut_are_left_out() {
        let grid = Grid::new(100 * MIB, None, false, LIMIT).unwrap();
        let parts = [
            listed(1, 5 * MIB),
            listed(2, 5 * MIB),
            listed(81, 6 * MIB + 1),
            listed(177, 8 * MIB),
            Listed {
                etag: "not-an-md5".into(),
                ..listed(400, 8 * MIB)
            },
            listed(1521, 5 * MIB),
            listed(9000, 5 * MIB),
        ];
        assert_eq!(ranges(&fitting(&grid, &parts)), [(0, 5), (11, 19), (95, 100)]);
        let grid = Grid::new(100 * MIB, Some(16 * MIB), false, LIMIT).unwrap();
        let parts = [
            listed(1, 16 * MIB),
            listed(2, 8 * MIB),
            listed(7, 4 * MIB),
            listed(8, 16 * MIB),
        ];
        assert_eq!(ranges(&fitting(&grid, &parts)), [(0, 16), (96, 100)]);
    }

    #[test]
    fn a_part_that_leaves_too_little_before_it_is_sent_again() {
        let grid = Grid::new(100 * MIB, None, false, LIMIT).unwrap();
        let at = |mib: u64| mib * 16 + 1;
        let parts = [
            listed(at(2), 5 * MIB),
            listed(at(10), 5 * MIB),
            listed(at(16), 5 * MIB),
            listed(at(21), 5 * MIB),
        ];
        let kept = apart(fitting(&grid, &parts));
        assert_eq!(ranges(&kept), [(10, 15), (21, 26)]);
    }

    proptest! {
        #[test]
        fn whatever_is_listed_what_is_kept_can_be_completed_to_the_file(
            total in 6 * MIB..200 * MIB,
            parts in proptest::collection::btree_map(1_u64..=3_300, 1_u64..64, 0..40),
            unaligned in 0_u64..3,
        ) {
            let grid = Grid::new(total, None, false, LIMIT).unwrap();
            let parts: Vec<Listed> = parts.iter().map(|(n, size)| listed(*n, size * (MIB / 2) + unaligned / 2)).collect();
            let kept = apart(fitting(&grid, &parts));
            let mut at = 0;
            for entry in &kept {
                let gap = entry.range.start - at;
                prop_assert!(gap == 0 || gap >= MIN_PART);
                prop_assert!(entry.range.len() >= MIN_PART || entry.range.end == total);
                prop_assert_eq!(grid.number(entry.range), entry.number);
                at = entry.range.end;
            }
            prop_assert!(at <= total);
        }
    }
}
