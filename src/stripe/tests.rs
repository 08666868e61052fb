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
    let now = some_time();
    let mut s = new(0, now);
    assert_eq!(actions(&mut s), [Action::Done]);
    s.lane_up(LaneId(1), spec(), now);
    s.tick(now);
    assert_eq!(actions(&mut s), []);
    assert_eq!(s.poll_timeout(), None);
}

#[test]
fn a_lease_ends_by_itself_and_late_calls_about_it_do_nothing() {
    let now = some_time();
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
    let now = some_time();
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
    let now = some_time();
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
    let now = some_time();
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
    let now = some_time();
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
fn three_failures_in_a_row_park_a_lane_and_one_small_lease_probes_it_afterwards() {
    let mut now = some_time();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), LaneSpec { slots: 1, ..spec() }, now);
    for strike in 1..=3 {
        let (lease, _) = only_start(&mut s);
        s.lease_failed(lease, Failure::Broken, now);
        assert_eq!(actions(&mut s), [], "a pause after each failure");
        now += Duration::from_millis(300);
        s.tick(now);
        let state = s.snapshot(now).lanes[0].state;
        let parked = |why| matches!(state, LaneState::Parked { why: w, .. } if w == why);
        assert_eq!(parked(Pause::Failures(3)), strike == 3, "{state:?}");
    }
    now = s.poll_timeout().unwrap();
    assert!(
        matches!(s.snapshot(now).lanes[0].state, LaneState::Idle(_)),
        "the park is over"
    );
    s.tick(now);
    assert!(only_start(&mut s).1.len() <= Config::default().min_lease);
}

#[test]
fn two_connections_that_break_together_are_one_strike() {
    let now = some_time();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), spec(), now);
    for action in actions(&mut s) {
        let Action::Start { lease, .. } = action else {
            panic!("{action:?}")
        };
        s.lease_failed(lease, Failure::Broken, now);
    }
    let wait = s.poll_timeout().unwrap() - now;
    assert!(wait < Duration::from_secs(1), "waits {wait:?}");
}

#[test]
fn a_lane_whose_every_connection_breaks_at_once_is_parked_however_close_its_failures_come() {
    let mut now = some_time();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), spec(), now);
    let mut leases = 0;
    for _ in 0..1000 {
        for action in actions(&mut s) {
            if let Action::Start { lease, .. } = action {
                leases += 1;
                // One of the two a little later: they still are one failure.
                now += Duration::from_millis(3);
                s.lease_failed(lease, Failure::Broken, now);
            }
        }
        now += Duration::from_millis(2);
        s.tick(now);
    }
    assert!(
        leases <= 8,
        "{leases} requests in 2 s over a lane that breaks each of them"
    );
}

#[test]
fn a_refusal_halves_the_slots_and_waits_as_long_as_asked() {
    let now = some_time();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), LaneSpec { slots: 1, ..spec() }, now);
    let retry_after = Some(Duration::from_secs(7));
    let (lease, _) = only_start(&mut s);
    s.lease_failed(lease, Failure::Refused { retry_after }, now);
    assert_eq!(actions(&mut s), []);
    let until = now + Duration::from_secs(7);
    assert_eq!(
        s.snapshot(now).lanes[0].state,
        LaneState::Parked {
            until,
            why: Pause::Refused
        }
    );
    assert_eq!(s.poll_timeout(), Some(until));
    s.tick(until);
    assert!(
        only_start(&mut s).1.len() > Config::default().min_lease,
        "no strike, no probe"
    );
}

#[test]
fn the_origins_failures_pause_a_lane_for_longer_each_time() {
    let mut now = some_time();
    let mut s = new(64 * MIB, now);
    s.lane_up(LaneId(1), LaneSpec { slots: 1, ..spec() }, now);
    let mut last = Duration::ZERO;
    for _ in 0..5 {
        let (lease, _) = only_start(&mut s);
        s.lease_failed(lease, Failure::Origin, now);
        assert_eq!(actions(&mut s), []);
        let wait = s.poll_timeout().unwrap() - now;
        assert!(wait > last, "waits {wait:?} after {last:?}");
        last = wait;
        now += wait;
        s.tick(now);
    }
}

fn only_start(scheduler: &mut Scheduler) -> (LeaseId, ByteRange) {
    let all = actions(scheduler);
    let [Action::Start { lease, range, .. }] = all[..] else {
        panic!("{all:?}")
    };
    (lease, range)
}

#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn some_time() -> Instant {
    Instant::now()
}
