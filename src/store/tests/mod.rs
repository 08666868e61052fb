//! Tests of a part over simulated files.

mod crash;
mod disk;
mod resume;

use std::time::Instant;

use nix::errno::Errno;

use super::journal::{self, Boot};
use super::part::Media;
use super::simulated::{Machine, SimulatedFile};
use super::{
    Claim, Difference, FreshReason, Generation, Part, Resumed, SYNC_BYTES, SYNC_INTERVAL, StoreError,
    Validator,
};
use crate::types::{ByteRange, PIECE, RangeSet};

const TOTAL: u64 = 2 * PIECE + 1000;
const BOOT: Boot = Some([1; 16]);
const NEXT_BOOT: Boot = Some([2; 16]);

struct Files {
    machine: Machine,
    data: SimulatedFile,
    journal: SimulatedFile,
}

impl Files {
    fn new() -> Self {
        let machine = Machine::default();
        Self {
            data: machine.file("data"),
            journal: machine.file("journal"),
            machine,
        }
    }

    fn open_as(&self, claim: &Claim, boot: Boot) -> Result<(Part, Resumed), StoreError> {
        let media = Media {
            data: Box::new(self.data.clone()),
            journal: Box::new(self.journal.clone()),
            journal_max: journal::MAX_LEN,
            lock: None,
            directory: None,
            path: "file.part".into(),
        };
        Part::open(media, claim, boot)
    }

    fn open(&self) -> Part {
        self.open_as(&claim(TOTAL), BOOT).unwrap().0
    }

    fn after_power_cut(&self, mut keep: impl FnMut() -> bool) -> Self {
        let machine = Machine::default();
        Self {
            data: self.data.after_power_cut(&machine, &mut keep),
            journal: self.journal.after_power_cut(&machine, &mut keep),
            machine,
        }
    }

    fn after_process_death(&self) -> Self {
        let machine = Machine::default();
        Self {
            data: self.data.after_process_death(&machine),
            journal: self.journal.after_process_death(&machine),
            machine,
        }
    }

    fn journalled(&self) -> RangeSet {
        journal::load(&self.journal, journal::MAX_LEN)
            .unwrap()
            .map_or_else(|_| RangeSet::new(), |c| c.durable)
    }
}

fn claim(total: u64) -> Claim {
    let validator = Some(Validator::ETag("\"v1\"".to_owned()));
    Claim::new(
        "https://origin.example/file",
        Some(Generation { total, validator }),
        None,
    )
}

/// The byte at each offset: no two sectors are alike.
fn content(range: ByteRange) -> Vec<u8> {
    (range.start..range.end)
        .map(|at| (at ^ (at >> 7) ^ (at >> 15)) as u8)
        .collect()
}

fn put(part: &Part, start: u64, end: u64) -> Result<(), StoreError> {
    part.write_at(start, &content(ByteRange::new(start, end)))
}

fn assert_right(image: &[u8], claimed: &RangeSet, when: &str) {
    for range in claimed {
        let found = image.get(range.start as usize..range.end as usize);
        assert!(
            found == Some(&content(range)[..]),
            "{when}: {range} is claimed and wrong"
        );
    }
}

fn all_of(part: &Part) -> u64 {
    part.written().len()
}

#[test]
fn a_file_of_unknown_length_ends_where_its_bytes_end() {
    let files = Files::new();
    let claim = Claim::new("https://origin.example/file", None, None);
    let (part, _) = files.open_as(&claim, BOOT).unwrap();
    put(&part, 0, 4000).unwrap();
    put(&part, 5000, 6000).unwrap();
    assert!(matches!(
        part.seal(None),
        Err(StoreError::Incomplete { missing: 1000 })
    ));
    put(&part, 4000, 5000).unwrap();
    assert_eq!(part.seal(None).unwrap(), 6000);
    assert!(files.data.durable() == content(ByteRange::new(0, 6000)));
    assert!(matches!(put(&part, 6000, 6001), Err(StoreError::Finished)));
}

#[test]
fn writes_outside_the_file_are_refused() {
    let files = Files::new();
    let part = files.open();
    assert!(matches!(
        put(&part, TOTAL - 1, TOTAL + 1),
        Err(StoreError::OutOfRange { .. })
    ));
    assert!(matches!(
        part.write_at(u64::MAX, &[1, 2]),
        Err(StoreError::OutOfRange { .. })
    ));
    part.write_at(TOTAL, &[]).unwrap();
}

#[test]
fn an_empty_file_is_complete_at_once() {
    let files = Files::new();
    let (part, _) = files.open_as(&claim(0), BOOT).unwrap();
    let nothing = ring::digest::digest(&ring::digest::SHA256, &[]);
    assert_eq!(part.seal(Some(nothing.as_ref().try_into().unwrap())).unwrap(), 0);
}

#[test]
fn bytes_once_written_are_not_written_again() {
    let files = Files::new();
    let part = files.open();
    put(&part, 100, 200).unwrap();
    part.write_at(50, &[0xff; 200]).unwrap();
    let image = files.data.cached();
    assert!(image[100..200] == content(ByteRange::new(100, 200)));
    assert!(image[50..100].iter().chain(&image[200..250]).all(|&b| b == 0xff));
}

#[test]
fn the_digest_of_the_file_is_that_of_its_bytes_whatever_their_order() {
    let files = Files::new();
    let part = files.open();
    let whole = content(ByteRange::new(0, TOTAL));
    let expected: [u8; 32] = ring::digest::digest(&ring::digest::SHA256, &whole)
        .as_ref()
        .try_into()
        .unwrap();
    put(&part, PIECE, TOTAL).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    assert_eq!(part.advance_digest().unwrap(), 0);
    put(&part, 0, 1000).unwrap();
    assert_eq!(
        part.advance_digest().unwrap(),
        0,
        "unsynced bytes are not certain"
    );
    assert!(part.sync().unwrap().lost.is_empty());
    assert_eq!(part.advance_digest().unwrap(), 1000);
    put(&part, 1000, PIECE).unwrap();
    let wrong = part.seal(Some([0; 32])).unwrap_err();
    assert!(
        matches!(wrong, StoreError::Checksum { found, .. } if found == expected),
        "{wrong}"
    );
    part.seal(Some(expected)).unwrap();
}

#[test]
fn a_sync_is_due_after_some_bytes_or_some_time() {
    let files = Files::new();
    let (part, _) = files.open_as(&claim(2 * SYNC_BYTES), BOOT).unwrap();
    let now = Instant::now();
    assert!(!part.sync_due(now));
    put(&part, 0, 1).unwrap();
    assert!(!part.sync_due(now));
    assert!(!part.sync_due(now + SYNC_INTERVAL / 2));
    assert!(part.sync_due(now + SYNC_INTERVAL));
    assert!(part.sync().unwrap().lost.is_empty());
    assert!(!part.sync_due(now + SYNC_INTERVAL));
    part.write_at(1, &vec![0; SYNC_BYTES as usize]).unwrap();
    assert!(part.sync_due(now + SYNC_INTERVAL));
}
