//! Lanes that give way: of several lanes on one line one is at work; where that one fails, another one takes over.
//!
//! Invariants: a lane gives way only where there is another one of its line; one that failed is not preferred to one that
//! works before a time that doubles with each failure, so that two bad lanes do not take turns all the time.

use std::time::Instant;

use super::Driver;
use crate::download::lanes::Member;
use crate::transfer::{Record, fails};
use crate::types::LaneId;

impl Driver {
    /// What this download has seen of a lane.
    pub(super) fn record(&self, id: LaneId, now: Instant) -> Record {
        if self.failing.get(&id).is_some_and(|f| f.is_on(now)) {
            Record::Failing
        } else if self.members.contains_key(&id) || self.home_lane() == Some(id) {
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
            .filter(|(id, member)| {
                self.has_spare(member, now)
                    && of(**id).is_some_and(|s| fails(s, member.busy) || member.ineligible.is_some())
            })
            .map(|(&id, _)| id)
            .collect();
        for id in &failed {
            self.failing.entry(*id).or_default().again(now);
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
