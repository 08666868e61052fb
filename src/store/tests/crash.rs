//! Crashes at any step, with any part of the unsynced bytes kept.

use proptest::prelude::*;

use super::*;

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
    #![proptest_config(ProptestConfig::with_cases(100))]

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
