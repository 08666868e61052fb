//! Sentences about single decisions within a household; whole downloads are in `tests/stripe_sources_simulation.rs`.

use std::time::Duration;
use std::time::Instant;

use super::super::Action;
use super::super::Config;
use super::super::LaneSpec;
use super::super::LeaseId;
use super::super::Scheduler;
use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::PIECE;
use crate::types::RangeSet;

const UPLINK: LaneId = LaneId(1);
const SOURCE: LaneId = LaneId(9);

fn spec(slots: usize) -> LaneSpec {
    LaneSpec {
        slots,
        metered: false,
        hint: None,
        latency: Duration::from_millis(30),
    }
}

fn set(start: u64, end: u64) -> RangeSet {
    [ByteRange::new(start, end)].into_iter().collect()
}

fn new(total: u64, now: Instant) -> Scheduler {
    Scheduler::new(Config::default(), total, &RangeSet::new(), 7, now)
}

fn actions(scheduler: &mut Scheduler) -> Vec<Action> {
    scheduler.check_invariants().unwrap();
    std::iter::from_fn(|| scheduler.poll_action()).collect()
}

/// A lease of all six pieces over an uplink, of which so much has come.
fn under_way(came: u64, now: Instant) -> (Scheduler, LeaseId) {
    let mut s = new(6 * PIECE, now);
    s.lane_up(UPLINK, spec(1), now);
    let lease = s.adopt(UPLINK, ByteRange::new(0, 6 * PIECE), now).unwrap();
    assert_eq!(s.bytes(lease, came, now), came);
    assert_eq!(actions(&mut s), []);
    (s, lease)
}

#[test]
fn an_uplinks_lease_ends_before_what_others_fetch_unless_it_is_half_through_the_first_piece_of_it() {
    let now = some_time();
    for (came, others, expected) in [
        (PIECE, 3, Some(3)),
        (3 * PIECE, 3, None),
        (3 * PIECE + PIECE / 4, 3, None),
        (3 * PIECE + PIECE / 2, 3, Some(4)),
    ] {
        let (mut s, lease) = under_way(came, now);
        s.elsewhere(set(others * PIECE, 6 * PIECE), now);
        let first = actions(&mut s).remove(0);
        let should = match expected {
            Some(piece) => Action::Shrink {
                lease,
                end: piece * PIECE,
            },
            None => Action::Cancel { lease },
        };
        assert_eq!(first, should, "{came} bytes had come");
    }
}

#[test]
fn an_uplinks_lease_ends_before_what_a_new_source_holds() {
    let now = some_time();
    let (mut s, lease) = under_way(PIECE / 2, now);
    s.source_up(SOURCE, spec(2), now);
    s.holds(SOURCE, set(2 * PIECE, 4 * PIECE), now);
    let all = actions(&mut s);
    assert_eq!(
        all[0],
        Action::Shrink {
            lease,
            end: 2 * PIECE
        }
    );
    let given = |a: &Action| matches!(a, Action::Start { lane: SOURCE, range, .. } if range.len() == PIECE);
    assert!(all.iter().any(given), "{all:?}");
}

#[test]
fn a_source_gives_up_what_is_to_be_checked_first_and_gets_it_afterwards_over_what_is_done() {
    let now = some_time();
    let mut s = new(PIECE, now);
    s.source_up(SOURCE, spec(1), now);
    s.holds(SOURCE, set(0, PIECE), now);
    let Action::Start { lease, .. } = actions(&mut s)[0] else {
        panic!("the source is given the piece")
    };
    s.checks(set(1000, 2000), now);
    assert_eq!(actions(&mut s), [Action::Cancel { lease }]);
    s.lane_up(UPLINK, spec(1), now);
    let [Action::Start { lease, lane, range }] = actions(&mut s)[..] else {
        panic!("only the check")
    };
    assert_eq!((lane, range), (UPLINK, ByteRange::new(1000, 2000)));
    assert!(s.under_way().is_empty(), "a check is no claim");
    s.bytes(lease, 1000, now);
    let [Action::Start { lease, lane, range }] = actions(&mut s)[..] else {
        panic!("now the piece")
    };
    assert_eq!((lane, range), (SOURCE, ByteRange::new(0, PIECE)));
    assert_eq!(s.bytes(lease, PIECE, now), PIECE - 1000);
    assert_eq!(actions(&mut s), [Action::Done]);
    assert_eq!(s.snapshot(now).duplicated, 0);
}

#[test]
fn a_lease_is_adopted_only_where_uplinks_may_take_something() {
    let now = some_time();
    let all = ByteRange::new(0, 4 * PIECE);
    let mut s = new(all.end, now);
    s.lane_up(UPLINK, spec(2), now);
    s.source_up(SOURCE, spec(2), now);
    s.holds(SOURCE, set(0, PIECE), now);
    assert_eq!(s.adopt(UPLINK, all, now), None, "a source holds it");
    s.holds(SOURCE, set(PIECE, 2 * PIECE), now);
    let lease = s.adopt(UPLINK, all, now).unwrap();
    assert_eq!(actions(&mut s)[0], Action::Shrink { lease, end: PIECE });
    assert_eq!(s.under_way().overlap(set(0, PIECE).range_at(0).unwrap()), PIECE);
    let mut s = new(all.end, now);
    s.lane_up(UPLINK, spec(2), now);
    s.source_up(SOURCE, spec(2), now);
    s.holds(SOURCE, set(0, all.end), now);
    s.checks(set(0, 5000), now);
    let lease = s.adopt(UPLINK, all, now).unwrap();
    assert_eq!(actions(&mut s)[0], Action::Shrink { lease, end: 5000 });
}

#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn some_time() -> Instant {
    Instant::now()
}
