//! Lanes that give way: of several lanes on one line one is at work; where that one fails, another one takes over.
//!
//! Invariants: a lane gives way only where there is another one of its line; one that failed is not preferred to one that
//! works before a time that doubles with each failure, so that two bad lanes do not take turns all the time.

use std::time::{Duration, Instant};

use super::Driver;
use crate::download::lanes::Member;
use crate::stripe::{LaneSnapshot, LaneState, Pause};
use crate::transfer::Record;
use crate::types::LaneId;

/// A lane that gave way is not taken back sooner: longer than stripe's first park.
const GIVE_WAY: Duration = Duration::from_secs(10);
/// Doublings of it: at most 160 s.
const MAX_DOUBLINGS: u32 = 4;

/// When a lane may be preferred again that gave way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    until: Instant,
    times: u32,
}

impl Driver {
    /// What this download has seen of a lane.
    pub(super) fn record(&self, id: LaneId, now: Instant) -> Record {
        if self.failing.get(&id).is_some_and(|f| now < f.until) {
            Record::Failing
        } else if self.members.contains_key(&id) || self.home.lane.info().id == id {
            Record::Serving
        } else {
            Record::Fresh
        }
    }

    /// Lets lanes that fail give way to others of their line. Says whether any did.
    pub(super) fn relieve(&mut self, now: Instant) -> bool {
        if self.choice.spare.is_empty() {
            return false;
        }
        let snapshot = self.scheduler.snapshot(now);
        let of = |id: LaneId| snapshot.lanes.iter().find(|l| l.lane == id);
        let failed: Vec<LaneId> = self
            .members
            .iter()
            .filter(|(id, member)| self.has_spare(member, now) && fails(member, of(**id)))
            .map(|(&id, _)| id)
            .collect();
        for id in &failed {
            let times = self.failing.get(id).map_or(0, |f| f.times);
            let until = now + GIVE_WAY * 2u32.pow(times.min(MAX_DOUBLINGS));
            self.failing.insert(
                *id,
                Failing {
                    until,
                    times: times + 1,
                },
            );
            tracing::info!(lane = %id, "lane gives way to another one of its line");
        }
        if !failed.is_empty() {
            self.change_lanes();
        }
        !failed.is_empty()
    }

    /// Whether another lane of its line could take over, one that did not fail itself a moment ago.
    fn has_spare(&self, member: &Member, now: Instant) -> bool {
        let spare = &self.choice.spare;
        spare.iter().any(|lane| {
            let info = lane.info();
            info.line == member.info.line && self.record(info.id, now) != Record::Failing
        })
    }
}

/// Whether a lane's trouble may be its own and not the origin's.
fn fails(member: &Member, snapshot: Option<&LaneSnapshot>) -> bool {
    let Some(snapshot) = snapshot else { return false };
    let parked = match snapshot.state {
        LaneState::Parked { why, .. } => match why {
            // The first is an accident, and two that break together are one.
            Pause::Failures(n) => n > 1,
            Pause::Silent => true,
            // The lender's limit is its own; what the origin refuses it refuses the whole line.
            Pause::Refused => member.busy,
            Pause::Origin => false,
        },
        _ => false,
    };
    parked || snapshot.overdue || member.ineligible.is_some()
}
