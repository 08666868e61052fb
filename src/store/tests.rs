//! Tests of a part over simulated files: crashes, failing disks, full disks.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use proptest::prelude::*;

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
            directory: None,
            lock: None,
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
        journal::load(&self.journal)
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

/// Deterministic coin tosses.
fn coins(mut seed: u64) -> impl FnMut() -> bool {
    move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 63 == 0
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64),
    Sync,
    SyncFails(&'static str, Errno),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        5 => (0..TOTAL, 1..PIECE * 3 / 4).prop_map(|(start, len)| Op::Write(start, (start + len).min(TOTAL))),
        2 => (0u64..2).prop_map(|piece| Op::Write(piece * PIECE, (piece + 1) * PIECE)),
        4 => Just(Op::Sync),
        1 => prop::sample::select(vec!["data", "journal"]).prop_map(|f| Op::SyncFails(f, Errno::EIO)),
    ];
    prop::collection::vec(op, 1..16)
}

/// Does what it says until something is an error; returns what the part then took for written.
fn run(part: &Part, machine: &Machine, ops: &[Op]) {
    for op in ops {
        let result = match op {
            Op::Write(start, end) => put(part, *start, *end),
            Op::Sync => part.sync().map(|_| ()),
            Op::SyncFails(file, errno) => {
                machine.fail_sync(file, *errno);
                part.sync().map(|_| ())
            }
        };
        if result.is_err() {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn http_27_a_crash_at_any_point_leaves_only_synced_bytes_claimed(
        first in ops(), second in ops(), power in 1u64..60, again in 1u64..60, seed in any::<u64>(),
    ) {
        let files = Files::new();
        files.machine.power_off_at(power);
        if let Ok((part, _)) = files.open_as(&claim(TOTAL), BOOT) {
            run(&part, &files.machine, &first);
        }
        // Whatever of the unsynced the disk kept, what the journal says is right: before any hashing.
        let after = files.after_power_cut(coins(seed));
        assert_right(&after.data.cached(), &after.journalled(), "power cut");

        // And once more, with a part that was resumed.
        after.machine.power_off_at(again);
        if let Ok((part, _)) = after.open_as(&claim(TOTAL), NEXT_BOOT) {
            let lost = part.recheck().map_or(0, |r| r.lost.len());
            prop_assert!(lost == 0 || after.machine.is_off(), "synced pieces failed their hash");
            assert_right(&after.data.cached(), &part.written(), "resumed");
            run(&part, &after.machine, &second);
        }
        let last = after.after_power_cut(coins(!seed));
        assert_right(&last.data.cached(), &last.journalled(), "second power cut");
        let (part, _) = last.open_as(&claim(TOTAL), Some([3; 16])).unwrap();
        prop_assert!(part.recheck().unwrap().lost.is_empty());
        put(&part, 0, TOTAL).unwrap();
        prop_assert_eq!(part.seal(None).unwrap(), TOTAL);
        prop_assert!(last.data.durable() == content(ByteRange::new(0, TOTAL)), "the finished file is wrong");
    }

    #[test]
    fn after_the_death_of_the_process_the_journalled_spans_count_as_they_are(ops in ops(), death in 1u64..60) {
        let files = Files::new();
        files.machine.power_off_at(death);
        if let Ok((part, _)) = files.open_as(&claim(TOTAL), BOOT) {
            run(&part, &files.machine, &ops);
        }
        let after = files.after_process_death();
        let journalled = after.journalled();
        let (part, _) = after.open_as(&claim(TOTAL), BOOT).unwrap();
        prop_assert_eq!(&part.written(), &journalled);
        prop_assert_eq!(part.recheck().unwrap().left, 0);
        assert_right(&after.data.cached(), &part.written(), "resumed");
    }
}

#[test]
fn a_resumed_part_has_what_was_synced_and_no_more() {
    let files = Files::new();
    let part = files.open();
    put(&part, 100, 5000).unwrap();
    assert_eq!(part.sync().unwrap().durable, 4900);
    put(&part, 6000, 7000).unwrap();
    drop(part);
    let (part, resumed) = files.open_as(&claim(TOTAL), BOOT).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: 4900,
            unchecked: 0
        }
    );
    assert_eq!(
        part.written().iter().collect::<Vec<_>>(),
        [ByteRange::new(100, 5000)]
    );
}

#[test]
fn http_29_after_a_reboot_only_whole_pieces_count_and_only_with_their_hash() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, PIECE + 300).unwrap();
    put(&part, 2 * PIECE, TOTAL).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    // The card tore a page of the first piece, long after it was synced.
    let mut image = files.data.cached();
    image[5000] ^= 1;
    let torn = Files {
        data: files.data.with(&files.machine, image),
        ..files
    };
    let (part, resumed) = torn.open_as(&claim(TOTAL), NEXT_BOOT).unwrap();
    let kept = PIECE + 1000;
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: kept,
            unchecked: kept
        }
    );
    let checked = part.recheck().unwrap();
    assert_eq!(checked.lost, [ByteRange::new(0, PIECE)]);
    assert_eq!(checked.left, 0);
    assert_eq!(
        part.written().iter().collect::<Vec<_>>(),
        [ByteRange::new(2 * PIECE, TOTAL)]
    );
    put(&part, 0, 2 * PIECE).unwrap();
    part.seal(None).unwrap();
    assert!(torn.data.durable() == content(ByteRange::new(0, TOTAL)));
}

#[test]
fn http_29_unchecked_pieces_stay_unchecked_through_a_crash_of_the_process() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, 2 * PIECE).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    let mut image = files.data.cached();
    image[7] ^= 1;
    let data = files.data.with(&files.machine, image);
    let torn = Files { data, ..files };
    drop(torn.open_as(&claim(TOTAL), NEXT_BOOT).unwrap());
    let (part, resumed) = torn.open_as(&claim(TOTAL), NEXT_BOOT).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: 2 * PIECE,
            unchecked: 2 * PIECE
        }
    );
    assert_eq!(part.recheck().unwrap().lost.len(), 1);
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    // The checked piece is known to be good now; the torn one is still not trusted.
    let (part, resumed) = torn.open_as(&claim(TOTAL), NEXT_BOOT).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: 2 * PIECE,
            unchecked: PIECE
        }
    );
    assert_eq!(part.recheck().unwrap().lost, [ByteRange::new(0, PIECE)]);
}

#[test]
fn sealing_checks_what_was_not_checked_yet() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, TOTAL).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    let mut image = files.data.cached();
    image[PIECE as usize] ^= 1;
    let data = files.data.with(&files.machine, image);
    let torn = Files { data, ..files };
    let (part, _) = torn.open_as(&claim(TOTAL), NEXT_BOOT).unwrap();
    let Err(StoreError::Lost { ranges }) = part.seal(None) else {
        panic!("sealed a torn file");
    };
    assert_eq!(ranges, [ByteRange::new(PIECE, 2 * PIECE)]);
    put(&part, PIECE, 2 * PIECE).unwrap();
    part.seal(None).unwrap();
    assert!(torn.data.durable() == content(ByteRange::new(0, TOTAL)));
}

#[test]
fn http_28_what_a_failed_sync_may_have_lost_is_not_written() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, 1000).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    put(&part, 1000, 3000).unwrap();
    files.machine.fail_sync("data", Errno::EIO);
    let synced = part.sync().unwrap();
    assert_eq!(synced.lost, [ByteRange::new(1000, 3000)]);
    assert_eq!(synced.durable, 1000);
    assert_eq!(all_of(&part), 1000);
    put(&part, 1000, 3000).unwrap();
    assert_eq!(part.sync().unwrap().durable, 3000);
    assert_right(&files.data.durable(), &files.journalled(), "after a failed sync");
}

#[test]
fn http_28_a_disk_that_fails_twice_is_given_up() {
    let files = Files::new();
    let part = files.open();
    for _ in 0..2 {
        files.machine.fail_sync("data", Errno::EIO);
    }
    put(&part, 0, 10).unwrap();
    assert_eq!(part.sync().unwrap().lost.len(), 1);
    put(&part, 0, 10).unwrap();
    assert!(matches!(part.sync(), Err(StoreError::DiskFailing { .. })));
    assert!(files.journalled().is_empty());
}

#[test]
fn a_failed_journal_costs_no_data_and_is_written_anew() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, 10).unwrap();
    files.machine.fail_sync("journal", Errno::EIO);
    let synced = part.sync().unwrap();
    assert!(synced.lost.is_empty());
    assert_eq!(synced.durable, 0);
    assert_eq!(part.sync().unwrap().durable, 10);
    let after = files.after_power_cut(|| false);
    assert_eq!(after.journalled().len(), 10);
}

#[test]
fn http_26_a_full_disk_is_its_own_error_and_the_journal_stays_right() {
    for (errno, fits) in [
        (
            Errno::ENOSPC,
            (|e| matches!(e, StoreError::NoSpace { .. })) as fn(&StoreError) -> bool,
        ),
        (Errno::EDQUOT, |e| matches!(e, StoreError::Quota { .. })),
        (Errno::EFBIG, |e| matches!(e, StoreError::TooLarge { .. })),
        (Errno::EROFS, |e| matches!(e, StoreError::ReadOnly { .. })),
        (Errno::EIO, |e| matches!(e, StoreError::Io { .. })),
    ] {
        let files = Files::new();
        let part = files.open();
        put(&part, 0, 10).unwrap();
        assert!(part.sync().unwrap().lost.is_empty());
        files.machine.fail_step(files.machine.steps() + 1, errno);
        let error = put(&part, 10, 20).unwrap_err();
        assert!(fits(&error), "{errno}: {error}");
        assert!(error.to_string().contains("file.part"), "{error}");
        assert_eq!(all_of(&part), 10);
        drop(part);
        assert_eq!(all_of(&files.open()), 10);
    }
}

#[test]
fn http_26_no_space_at_a_sync_is_told_at_once() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, 10).unwrap();
    files.machine.fail_sync("data", Errno::ENOSPC);
    assert!(matches!(part.sync(), Err(StoreError::NoSpace { .. })));
    assert_eq!(all_of(&part), 0);
}

#[test]
fn http_25_a_full_disk_is_told_before_the_first_byte_with_what_is_missing() {
    let files = Files::new();
    files.machine.set_free(TOTAL - 50);
    let Err(StoreError::NoSpace { missing, .. }) = files.open_as(&claim(TOTAL), BOOT) else {
        panic!("no space was seen");
    };
    assert_eq!(missing, Some(50));
    files.machine.set_free(TOTAL);
    files.machine.cannot_reserve(Errno::ENOSPC);
    assert!(matches!(
        files.open_as(&claim(TOTAL), BOOT),
        Err(StoreError::NoSpace { .. })
    ));
    files.machine.cannot_reserve(Errno::EFBIG);
    let error = files.open_as(&claim(TOTAL), BOOT).unwrap_err();
    assert!(error.to_string().contains("FAT"), "{error}");
    assert!(matches!(
        files.open_as(&claim(u64::MAX), BOOT),
        Err(StoreError::TooLarge { .. })
    ));
}

#[test]
fn http_25_without_reservation_the_free_space_is_watched() {
    let files = Files::new();
    files.machine.cannot_reserve(Errno::EOPNOTSUPP);
    let total = 3 * SYNC_BYTES;
    files.machine.set_free(total);
    let (part, _) = files.open_as(&claim(total), BOOT).unwrap();
    let block = vec![1; SYNC_BYTES as usize];
    part.write_at(0, &block).unwrap();
    files.machine.set_free(10);
    let Err(StoreError::NoSpace { missing, .. }) = part.write_at(SYNC_BYTES, &block) else {
        panic!("the disk filled up unseen");
    };
    assert_eq!(missing, Some(SYNC_BYTES - 10));
}

#[test]
fn another_claim_is_refused_and_what_was_there_stays() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, 10).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    let Err(StoreError::Foreign { difference, .. }) = files.open_as(&claim(TOTAL + 1), BOOT) else {
        panic!("another length was taken for the same content");
    };
    let (before, now) = (Some(TOTAL), Some(TOTAL + 1));
    assert_eq!(difference, Difference::Length { before, now });
    assert_eq!(all_of(&files.open()), 10);
}

#[test]
fn a_shorter_or_missing_data_file_is_not_believed() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, TOTAL).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    let short = files.data.cached()[..PIECE as usize + 100].to_vec();
    let cut = Files {
        machine: files.machine.clone(),
        data: files.data.with(&files.machine, short),
        journal: files.journal.after_process_death(&files.machine),
    };
    let (part, resumed) = cut.open_as(&claim(TOTAL), BOOT).unwrap();
    assert_eq!(
        resumed,
        Resumed::From {
            bytes: PIECE,
            unchecked: PIECE
        }
    );
    assert!(part.recheck().unwrap().lost.is_empty());
    let none = Files {
        data: files.data.with(&files.machine, Vec::new()),
        ..files
    };
    let (_, resumed) = none.open_as(&claim(TOTAL), BOOT).unwrap();
    assert_eq!(resumed, Resumed::Fresh(FreshReason::DataMissing));
}

#[test]
fn a_damaged_journal_starts_anew() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, 10).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    let mut image = files.journal.cached();
    image[9] ^= 1;
    let journal = files.journal.with(&files.machine, image);
    let damaged = Files { journal, ..files };
    let (part, resumed) = damaged.open_as(&claim(TOTAL), BOOT).unwrap();
    assert_eq!(resumed, Resumed::Fresh(FreshReason::Damaged));
    assert_eq!(all_of(&part), 0);
}

#[test]
fn http_21_what_cannot_be_recognised_is_never_resumed() {
    for generation in [
        None,
        Some(Generation {
            total: TOTAL,
            validator: None,
        }),
    ] {
        let files = Files::new();
        let claim = Claim::new("https://origin.example/file", generation, None);
        let (part, _) = files.open_as(&claim, BOOT).unwrap();
        put(&part, 0, 5000).unwrap();
        assert_eq!(part.sync().unwrap().durable, 5000);
        drop(part);
        let (part, resumed) = files.open_as(&claim, BOOT).unwrap();
        assert_eq!(resumed, Resumed::Fresh(FreshReason::NotResumable));
        assert_eq!(all_of(&part), 0);
    }
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

#[test]
fn many_threads_write_and_sync_one_part() {
    let files = Files::new();
    let part = Arc::new(files.open());
    files.machine.fail_sync("data", Errno::EIO);
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let part = Arc::clone(&part);
            thread::spawn(move || {
                let mut at = n * 1000;
                while at < TOTAL {
                    put(&part, at, (at + 1000).min(TOTAL)).unwrap();
                    at += 8 * 1000;
                }
            })
        })
        .collect();
    let mut lost = part.sync().unwrap().lost;
    for writer in writers {
        writer.join().unwrap();
    }
    lost.extend(part.sync().unwrap().lost);
    for range in lost {
        put(&part, range.start, range.end).unwrap();
    }
    part.seal(None).unwrap();
    assert!(files.data.durable() == content(ByteRange::new(0, TOTAL)));
}
