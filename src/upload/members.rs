//! An upload's lanes: what each one in use has done so far, and which gave way to another one of its line.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exchange::Way;
use crate::lane::LaneInfo;
use crate::stripe::{LaneSnapshot, LaneState, LeaseId, Pause};
use crate::transfer::{LaneProgress, Standing};
use crate::types::Rate;

/// A rate from fewer bytes says nothing.
const MIN_MEASURED: u64 = 256 << 10;
/// A lane that gave way is not taken back sooner: longer than stripe's first park.
const GIVE_WAY: Duration = Duration::from_secs(10);
/// Doublings of it: at most 160 s.
const MAX_DOUBLINGS: u32 = 4;

/// A lane in use.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) info: LaneInfo,
    pub(super) way: Arc<Way>,
    /// Bytes of parts that the server confirmed.
    pub(super) bytes: u64,
    working: BTreeSet<LeaseId>,
    /// Since when it has any.
    since: Option<Instant>,
    /// How long it had any, before that.
    active: Duration,
    /// Why it is not used any more.
    pub(super) ineligible: Option<String>,
    /// What went wrong since a part last got through.
    pub(super) trouble: Option<String>,
}

impl Member {
    pub(super) fn new(way: Arc<Way>) -> Self {
        Self {
            info: way.lane.info().clone(),
            way,
            bytes: 0,
            working: BTreeSet::new(),
            since: None,
            active: Duration::ZERO,
            ineligible: None,
            trouble: None,
        }
    }

    pub(super) fn started(&mut self, lease: LeaseId, now: Instant) {
        self.working.insert(lease);
        self.since.get_or_insert(now);
    }

    pub(super) fn ended(&mut self, lease: LeaseId, now: Instant) {
        self.working.remove(&lease);
        if self.working.is_empty()
            && let Some(since) = self.since.take()
        {
            self.active += now.saturating_duration_since(since);
        }
    }

    /// Its rate over the time it had work. `None`: too little to say.
    pub(super) fn mean_rate(&self, now: Instant) -> Option<Rate> {
        let running = self
            .since
            .map_or(Duration::ZERO, |s| now.saturating_duration_since(s));
        (self.bytes >= MIN_MEASURED).then(|| Rate::of(self.bytes, self.active + running))
    }

    /// What is shown of it, given what the scheduler says and what is on its way.
    pub(super) fn progress(&self, snapshot: Option<&LaneSnapshot>, on_its_way: u64) -> LaneProgress {
        let standing = Standing {
            info: &self.info,
            bytes: self.bytes + on_its_way,
            ineligible: self.ineligible.as_deref(),
            trouble: self.trouble.as_deref(),
        };
        standing.progress(snapshot)
    }

    /// Whether its trouble may be its own and not the server's.
    pub(super) fn fails(&self, snapshot: Option<&LaneSnapshot>) -> bool {
        let Some(snapshot) = snapshot else { return false };
        let parked = match snapshot.state {
            LaneState::Parked { why, .. } => match why {
                // The first is an accident.
                Pause::Failures(n) => n > 1,
                Pause::Silent => true,
                Pause::Refused | Pause::Origin => false,
            },
            _ => false,
        };
        parked || snapshot.overdue || self.ineligible.is_some()
    }
}

/// A lane that gave way: until when another one of its line is preferred, longer each time, so that two bad lanes do not
/// take turns all the time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failing {
    until: Option<Instant>,
    times: u32,
}

impl Failing {
    pub(super) fn again(&mut self, now: Instant) {
        self.until = Some(now + GIVE_WAY * 2u32.pow(self.times.min(MAX_DOUBLINGS)));
        self.times += 1;
    }

    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
