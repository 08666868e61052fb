//! Sentences about single decisions; whole uploads are in `tests/stripe_parts_simulation.rs`.

use std::time::Duration;

use super::super::LaneState;
use super::*;
use crate::types::Rate;

const MIB: u64 = 1 << 20;

/// A lane whose rate is known from before.
fn spec(mbit: u64) -> LaneSpec {
    LaneSpec {
        slots: 6,
        metered: false,
        hint: Some(Rate::bits(mbit * 1_000_000)),
        latency: Duration::from_millis(30),
    }
}

fn file(total: u64) -> Work {
    Work::Carved {
        total,
        grain: 64 << 10,
        least: 5 * MIB,
        most: 1 << 40,
        done: RangeSet::new(),
    }
}

fn files(sizes: &[u64]) -> Work {
    Work::Fixed {
        sizes: sizes.to_vec(),
        done: BTreeSet::new(),
    }
}

fn new(work: Work, now: Instant) -> Parts {
    Parts::new(PartsConfig::default(), work, 7, now)
}

fn actions(parts: &mut Parts) -> Vec<PartAction> {
    let all = std::iter::from_fn(|| parts.poll_action()).collect();
    parts.check_invariants().unwrap();
    all
}

fn sends(parts: &mut Parts) -> Vec<(LeaseId, LaneId, Part)> {
    let send = |action| match action {
        PartAction::Send { lease, lane, part } => (lease, lane, part),
        other => panic!("{other:?}"),
    };
    actions(parts).into_iter().map(send).collect()
}

#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn some_time() -> Instant {
    Instant::now()
}

#[test]
fn an_upload_of_nothing_is_done_at_once_and_says_so_once() {
    let now = some_time();
    for work in [file(0), files(&[])] {
        let mut p = new(work, now);
        assert_eq!(actions(&mut p), [PartAction::Done]);
        p.lane_up(LaneId(1), spec(8), now);
        p.tick(now);
        assert_eq!(actions(&mut p), []);
        assert_eq!(p.poll_timeout(), None);
    }
}

#[test]
fn an_empty_file_is_sent_and_counts_only_when_it_is_confirmed() {
    let now = some_time();
    let mut p = new(files(&[0]), now);
    p.lane_up(LaneId(1), spec(8), now);
    let (lease, ..) = sends(&mut p)[0];
    assert!(p.stored(lease, now));
    assert_eq!(actions(&mut p), [PartAction::Done]);
    assert!(!p.stored(lease, now), "only once");
}

#[test]
fn a_file_little_longer_than_the_least_part_becomes_two_parts_of_which_the_last_is_short() {
    let now = some_time();
    let mut p = new(file(7 * MIB), now);
    p.lane_up(LaneId(1), spec(10), now);
    p.lane_up(LaneId(2), spec(10), now);
    let mut ranges: Vec<ByteRange> = sends(&mut p).iter().map(|s| s.2.range).collect();
    ranges.sort();
    assert_eq!(
        ranges,
        [ByteRange::new(0, 5 * MIB), ByteRange::new(5 * MIB, 7 * MIB)]
    );
}

#[test]
fn a_lane_that_would_be_late_with_the_least_part_gets_no_more_than_a_short_end() {
    let now = some_time();
    let mut p = new(file(20 * MIB), now);
    p.lane_up(LaneId(1), spec(100), now);
    p.lane_up(LaneId(2), spec(1), now);
    let slow = sends(&mut p).into_iter().filter(|s| s.1 == LaneId(2));
    assert!(
        slow.into_iter()
            .all(|s| s.2.range.end == 20 * MIB && s.2.range.len() < MIB)
    );
}

#[test]
fn the_longest_item_goes_first_and_to_the_fastest_lane() {
    let now = some_time();
    let mut p = new(files(&[MIB, 16 * MIB, 4 * MIB]), now);
    p.lane_up(LaneId(1), spec(5), now);
    p.lane_up(LaneId(2), spec(20), now);
    let all = sends(&mut p);
    assert_eq!((all[0].1, all[0].2.item), (LaneId(2), 1));
    assert_eq!((all[1].1, all[1].2.item), (LaneId(1), 2));
}

#[test]
fn the_next_part_is_given_a_little_before_the_last_one_is_sent() {
    let mut now = some_time();
    let mut p = new(file(100 * MIB), now);
    p.lane_up(LaneId(1), spec(8), now);
    let (lease, _, part) = sends(&mut p)[0];
    let mut left = part.range.len();
    let mut next = Vec::new();
    while next.is_empty() {
        now += Duration::from_millis(100);
        p.sent(lease, 100_000, now);
        left -= 100_000;
        next = sends(&mut p);
    }
    assert!(left > 0 && left <= 400_000, "{left} bytes are left");
}

#[test]
fn what_a_lane_that_goes_had_is_sent_over_another() {
    let now = some_time();
    let mut p = new(files(&[MIB]), now);
    p.lane_up(LaneId(1), spec(8), now);
    let (lease, ..) = sends(&mut p)[0];
    p.sent(lease, MIB / 2, now);
    p.lane_down(LaneId(1), now);
    p.lane_up(LaneId(2), spec(8), now);
    assert_eq!(sends(&mut p)[0].1, LaneId(2));
    assert!(!p.stored(lease, now), "its lease is over");
}

#[test]
fn a_part_lost_after_done_is_sent_again_and_done_is_said_again() {
    let now = some_time();
    let mut p = new(files(&[MIB, 2 * MIB]), now);
    p.lane_up(LaneId(1), spec(8), now);
    let mut parts = Vec::new();
    while parts.len() < 2 {
        for (lease, _, part) in sends(&mut p) {
            p.sent(lease, part.range.len(), now);
            parts.push((lease, part));
        }
    }
    for (lease, _) in &parts {
        assert!(p.stored(*lease, now));
    }
    assert_eq!(actions(&mut p), [PartAction::Done]);
    p.lost(parts[0].1, now);
    let (lease, _, part) = sends(&mut p)[0];
    assert_eq!(part, parts[0].1);
    assert!(p.stored(lease, now));
    assert_eq!(actions(&mut p), [PartAction::Done]);
}

#[test]
fn a_lane_that_is_not_eligible_gets_nothing_again() {
    let now = some_time();
    let mut p = new(files(&[MIB]), now);
    p.lane_up(LaneId(1), spec(8), now);
    let (lease, ..) = sends(&mut p)[0];
    p.lease_failed(lease, Failure::Ineligible, now);
    p.tick(now + Duration::from_secs(3600));
    assert_eq!(actions(&mut p), []);
    assert_eq!(p.snapshot(now).lanes[0].state, LaneState::Ineligible);
}

#[test]
fn a_silent_lane_loses_its_part_to_one_that_rests_and_is_parked() {
    let start = some_time();
    let mut p = new(files(&[40 * MIB]), start);
    p.lane_up(LaneId(1), spec(20), start);
    let (lease, ..) = sends(&mut p)[0];
    p.sent(lease, MIB, start);
    p.lane_up(LaneId(2), spec(1), start);
    let mut now = start;
    let mut seen = Vec::new();
    while !seen.contains(&PartAction::Cancel { lease }) {
        now = p.poll_timeout().unwrap();
        p.tick(now);
        seen.extend(actions(&mut p));
    }
    let other = |a: &PartAction| matches!(a, PartAction::Send { lane: LaneId(2), .. });
    assert!(seen.iter().any(other), "{seen:?}");
    assert!(matches!(p.snapshot(now).lanes[0].state, LaneState::Parked { .. }));
}

#[test]
fn an_answer_that_does_not_come_is_awaited_for_as_long_as_configured_and_no_longer() {
    let start = some_time();
    let mut p = new(files(&[MIB]), start);
    p.lane_up(LaneId(1), spec(8), start);
    let (lease, ..) = sends(&mut p)[0];
    p.sent(lease, MIB, start);
    let mut now = start;
    let mut seen = Vec::new();
    while seen.is_empty() {
        now = p.poll_timeout().unwrap();
        p.tick(now);
        seen = actions(&mut p);
    }
    assert_eq!(seen, [PartAction::Cancel { lease }]);
    assert!(now - start >= PartsConfig::default().answer);
}

#[test]
fn of_two_copies_the_first_that_is_confirmed_counts_and_the_other_is_cancelled() {
    let start = some_time();
    let mut p = new(files(&[MIB]), start);
    p.lane_up(LaneId(1), spec(8), start);
    p.lane_up(LaneId(2), spec(8), start);
    let (first, lane, part) = sends(&mut p)[0];
    p.sent(first, MIB, start);
    // Its answer is overdue, so the idle lane sends it too.
    let mut again = Vec::new();
    while again.is_empty() {
        let now = p.poll_timeout().unwrap();
        p.tick(now);
        again = sends(&mut p);
    }
    let (second, other, copy) = again[0];
    assert!(other != lane && copy == part);
    assert!(p.stored(second, start + Duration::from_secs(9)));
    assert_eq!(
        actions(&mut p),
        [PartAction::Cancel { lease: first }, PartAction::Done]
    );
    assert!(!p.stored(first, start + Duration::from_secs(9)));
    assert_eq!(p.snapshot(start).duplicated, MIB);
}
