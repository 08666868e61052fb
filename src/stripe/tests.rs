//! Sentences about single decisions; whole transfers are in `tests/stripe_simulation.rs`.

use super::*;

const MIB: u64 = 1 << 20;

fn spec() -> LaneSpec {
    LaneSpec {
        slots: 2,
        metered: false,
        hint: None,
        latency: Duration::from_millis(30),
    }
}

fn actions(scheduler: &mut Scheduler) -> Vec<Action> {
    scheduler.check_invariants().unwrap();
    std::iter::from_fn(|| scheduler.poll_action()).collect()
}

fn new(total: u64, now: Instant) -> Scheduler {
    Scheduler::new(Config::default(), total, &RangeSet::new(), 7, now)
}

#[test]
fn an_empty_transfer_is_done_at_once_and_says_so_once() {
    let now = Instant::now();
    let mut s = new(0, now);
    assert_eq!(actions(&mut s), [Action::Done]);
    s.lane_up(LaneId(1), spec(), now);
    s.tick(now);
    assert_eq!(actions(&mut s), []);
    assert_eq!(s.poll_timeout(), None);
}

#[test]
fn a_lease_ends_by_itself_and_late_calls_about_it_do_nothing() {
    let now = Instant::now();
    let mut s = new(100_000, now);
    s.lane_up(LaneId(1), spec(), now);
    let [Action::Start { lease, range, .. }] = actions(&mut s)[..] else {
        panic!("one lease for a small file")
    };
    assert_eq!(range, ByteRange::new(0, 100_000));
    assert_eq!(s.bytes(lease, 200_000, now), 100_000);
    assert_eq!(actions(&mut s), [Action::Done]);
    assert_eq!(s.bytes(lease, 1, now), 0);
    s.lease_failed(lease, Failure::Broken, now);
    assert_eq!(actions(&mut s), []);
}

#[test]
fn what_a_failed_lease_has_not_brought_goes_first() {
    let now = Instant::now();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), spec(), now);
    let first = actions(&mut s);
    let Action::Start { lease, range, .. } = first[0] else {
        panic!("{first:?}")
    };
    assert_eq!(s.bytes(lease, 1000, now), 1000);
    s.lane_up(LaneId(2), spec(), now);
    actions(&mut s);
    s.lease_failed(lease, Failure::Broken, now);
    s.lane_up(LaneId(3), spec(), now);
    let next = actions(&mut s);
    assert!(
        matches!(next[0], Action::Start { lane: LaneId(3), range: r, .. } if r.start == range.start + 1000),
        "{next:?}"
    );
}

#[test]
fn an_adopted_lease_keeps_what_was_free_and_is_told_where_to_stop() {
    let now = Instant::now();
    let done = [ByteRange::new(MIB, 2 * MIB)].into_iter().collect();
    let mut s = Scheduler::new(Config::default(), 4 * MIB, &done, 7, now);
    assert_eq!(
        s.adopt(LaneId(1), ByteRange::new(0, MIB), now),
        None,
        "unknown lane"
    );
    s.lane_up(LaneId(1), LaneSpec { slots: 1, ..spec() }, now);
    assert_eq!(
        s.adopt(LaneId(1), ByteRange::new(MIB, 4 * MIB), now),
        None,
        "done already"
    );
    let lease = s.adopt(LaneId(1), ByteRange::new(0, 4 * MIB), now).unwrap();
    assert_eq!(actions(&mut s), [Action::Shrink { lease, end: MIB }]);
    assert_eq!(
        s.adopt(LaneId(1), ByteRange::new(2 * MIB, 3 * MIB), now),
        None,
        "no slot left"
    );
    assert_eq!(s.bytes(lease, 2 * MIB, now), MIB);
}

#[test]
fn bytes_lost_after_done_are_fetched_again_and_done_is_said_again() {
    let now = Instant::now();
    let mut s = new(1000, now);
    s.lane_up(LaneId(1), spec(), now);
    let Action::Start { lease, .. } = actions(&mut s)[0] else {
        panic!()
    };
    s.bytes(lease, 1000, now);
    assert_eq!(actions(&mut s), [Action::Done]);
    s.lost(ByteRange::new(10, 20), now);
    let again = actions(&mut s);
    let Action::Start { lease, range, .. } = again[0] else {
        panic!("{again:?}")
    };
    assert_eq!(range, ByteRange::new(10, 20));
    s.bytes(lease, 10, now);
    assert_eq!(actions(&mut s), [Action::Done]);
}

#[test]
fn a_lane_that_is_not_eligible_loses_all_leases_and_gets_none_again() {
    let now = Instant::now();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), spec(), now);
    let Action::Start { lease, .. } = actions(&mut s)[0] else {
        panic!()
    };
    s.lease_failed(lease, Failure::Ineligible, now);
    assert!(matches!(actions(&mut s)[..], [Action::Cancel { .. }]));
    s.tick(now + Duration::from_secs(3600));
    assert_eq!(actions(&mut s), []);
    assert_eq!(s.snapshot(now).lanes[0].state, LaneState::Ineligible);
}

#[test]
fn three_failures_park_a_lane_and_a_small_lease_probes_it_afterwards() {
    let mut now = Instant::now();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), spec(), now);
    for _ in 0..3 {
        let started = actions(&mut s);
        let Some(Action::Start { lease, .. }) = started.last() else {
            panic!("{started:?}")
        };
        s.lease_failed(*lease, Failure::Broken, now);
        now += Duration::from_millis(300);
        s.tick(now);
    }
    s.lane_down(LaneId(1), now);
    assert_eq!(s.snapshot(now).lanes, []);
}
