//! What a transfer remembers of a lane over time: how long it had work, and whether it gave way to another one of its line.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::stripe::{LaneSnapshot, LaneState, LeaseId, Pause};

/// A lane that gave way is not taken back sooner: longer than stripe's first park.
const GIVE_WAY: Duration = Duration::from_secs(10);
/// Doublings of it: at most 160 s.
const MAX_DOUBLINGS: u32 = 4;

/// The leases a lane works on, and how long it had any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activity {
    working: BTreeSet<LeaseId>,
    /// Since when it has any.
    since: Option<Instant>,
    /// How long it had any, before that.
    before: Duration,
}

impl Activity {
    pub(crate) fn started(&mut self, lease: LeaseId, now: Instant) {
        self.working.insert(lease);
        self.since.get_or_insert(now);
    }

    pub(crate) fn ended(&mut self, lease: LeaseId, now: Instant) {
        self.working.remove(&lease);
        if self.working.is_empty()
            && let Some(since) = self.since.take()
        {
            self.before += now.saturating_duration_since(since);
        }
    }

    /// How many it works on.
    pub(crate) fn leases(&self) -> usize {
        self.working.len()
    }

    /// How long it had work.
    pub(crate) fn time(&self, now: Instant) -> Duration {
        let running = |since| now.saturating_duration_since(since);
        self.before + self.since.map_or(Duration::ZERO, running)
    }
}

/// When a lane may be preferred again that gave way: later each time, so that two bad lanes do not take turns all the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Failing {
    until: Option<Instant>,
    times: u32,
}

impl Failing {
    pub(crate) fn again(&mut self, now: Instant) {
        self.until = Some(now + GIVE_WAY * 2u32.pow(self.times.min(MAX_DOUBLINGS)));
        self.times += 1;
    }

    pub(crate) fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Whether a lane's trouble may be its own and not the origin's; `busy`: its lender's limit is reached.
pub(crate) fn fails(snapshot: &LaneSnapshot, busy: bool) -> bool {
    let parked = match snapshot.state {
        LaneState::Parked { why, .. } => match why {
            // The first is an accident, and two that break together are one.
            Pause::Failures(n) => n > 1,
            Pause::Silent => true,
            // The lender's limit is its own; what the origin refuses it refuses the whole line.
            Pause::Refused => busy,
            Pause::Origin => false,
        },
        _ => false,
    };
    parked || snapshot.overdue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_with_work_counts() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut activity = Activity::default();
        activity.started(LeaseId(1), at(0));
        activity.started(LeaseId(2), at(1));
        activity.ended(LeaseId(1), at(2));
        assert_eq!(
            (activity.time(at(3)), activity.leases()),
            (Duration::from_secs(3), 1)
        );
        activity.ended(LeaseId(2), at(4));
        assert_eq!(activity.time(at(100)), Duration::from_secs(4));
    }

    #[test]
    fn who_gave_way_comes_back_later_each_time() {
        let start = Instant::now();
        let mut failing = Failing::default();
        assert!(!failing.is_on(start));
        for (times, seconds) in [10, 20, 40, 80, 160, 160].into_iter().enumerate() {
            failing.again(start);
            assert!(failing.is_on(start + Duration::from_secs(seconds - 1)), "{times}");
            assert!(!failing.is_on(start + Duration::from_secs(seconds)), "{times}");
        }
    }
}
