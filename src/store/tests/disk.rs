//! Disks that fail, and that fill up.

use std::thread;

use super::*;

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
fn many_threads_write_and_sync_one_part() {
    let files = Files::new();
    let part = files.open();
    files.machine.fail_sync("data", Errno::EIO);
    let mut lost = thread::scope(|scope| {
        for n in 0..8 {
            let part = &part;
            scope.spawn(move || {
                for at in (n * 1000..TOTAL).step_by(8 * 1000) {
                    put(part, at, (at + 1000).min(TOTAL)).unwrap();
                }
            });
        }
        part.sync().unwrap().lost
    });
    lost.extend(part.sync().unwrap().lost);
    for range in lost {
        put(&part, range.start, range.end).unwrap();
    }
    part.seal(None).unwrap();
    assert!(files.data.durable() == content(ByteRange::new(0, TOTAL)));
}

#[test]
fn http_28_a_write_on_its_way_while_a_sync_fails_is_done_again() {
    let files = Files::new();
    let part = files.open();
    put(&part, 0, 100).unwrap();
    let (reached, go) = files.machine.hold_next_write();
    thread::scope(|scope| {
        let writer = scope.spawn(|| put(&part, 100, 200));
        reached.recv().unwrap();
        files.machine.fail_sync("data", Errno::EIO);
        assert_eq!(part.sync().unwrap().lost, [ByteRange::new(0, 100)]);
        go.send(()).unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(part.sync().unwrap().durable, 100);
    assert_right(
        &files.data.durable(),
        &files.journalled(),
        "written around a failed sync",
    );
}
