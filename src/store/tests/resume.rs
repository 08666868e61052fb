//! What of an earlier run counts.

use super::*;

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
fn http_29_unchecked_pieces_stay_unchecked_in_a_journal_written_anew() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, PIECE).unwrap();
    assert!(part.sync().unwrap().lost.is_empty());
    drop(part);
    let (part, _) = files.open_as(&claim(TOTAL), NEXT_BOOT).unwrap();
    put(&part, PIECE, PIECE + 10).unwrap();
    files.machine.fail_sync("journal", Errno::EIO);
    assert_eq!(part.sync().unwrap().durable, PIECE);
    assert_eq!(part.sync().unwrap().durable, PIECE + 10);
    drop(part);
    let (_, resumed) = files.open_as(&claim(TOTAL), NEXT_BOOT).unwrap();
    let (bytes, unchecked) = (PIECE + 10, PIECE);
    assert_eq!(resumed, Resumed::From { bytes, unchecked });
}
