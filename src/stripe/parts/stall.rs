//! What time alone changes: silent lanes, answers that do not come, waits that end, and when to look next.

use std::time::Duration;
use std::time::Instant;

use crate::types::LaneId;

use super::super::config::WINDOW;
use super::super::lane::Standing;
use super::LeaseId;
use super::Parts;

/// How often decisions are looked at again while nothing is free.
const TAIL_TICK: Duration = Duration::from_millis(100);
/// Where no other lane could do better, silent parts are begun anew only this often: what was sent of them is lost.
const ALL_SILENT: Duration = Duration::from_secs(20);

impl Parts {
    /// Rolls the estimates, ends waits, and takes the parts of silent lanes.
    pub(super) fn watch(&mut self, now: Instant) {
        for lane in self.lanes.values_mut() {
            lane.roll(now);
            lane.recover(now);
        }
        let silent: Vec<LaneId> = self
            .lanes
            .keys()
            .copied()
            .filter(|&id| self.is_overdue(id, now))
            .collect();
        for id in silent {
            let long = self
                .silent_since(id)
                .is_some_and(|t| now.saturating_duration_since(t) >= ALL_SILENT);
            if long || self.someone_else_is_alive(id, now) {
                self.give_up(id, now);
            }
        }
        let unanswered = |sent: Instant| now.saturating_duration_since(sent) >= self.config.answer;
        let hung: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, l)| l.all_sent.is_some_and(unanswered))
            .map(|(id, _)| id)
            .collect();
        for id in hung {
            // An earlier one of the same lane may have taken it along.
            if let Some(lane) = self.leases.get(id).map(|l| l.lane) {
                self.give_up(lane, now);
            }
        }
    }

    /// Takes all parts of a lane and parks it.
    fn give_up(&mut self, id: LaneId, now: Instant) {
        self.cancel_lane(id, now);
        let jitter = super::super::random(&mut self.seed);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.fell_silent();
            lane.park(&self.lane_config, jitter, now);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        if self.stock.is_complete() {
            return None;
        }
        let often = if self.stock.nothing_free() {
            TAIL_TICK
        } else {
            WINDOW
        };
        let leases = (self.leases.len() > 0).then(|| self.ticked + often);
        let waits = self.lanes.values().filter_map(|l| match l.standing {
            Standing::Waiting(until) => Some(until.max(self.ticked + Duration::from_millis(1))),
            Standing::Open | Standing::Never => None,
        });
        waits.chain(leases).min()
    }

    /// Since when nothing has left over a lane that has something to send.
    fn silent_since(&self, id: LaneId) -> Option<Instant> {
        let own = self.leases.iter().filter(|(_, l)| l.lane == id && !l.is_sent());
        let oldest = own.map(|(_, l)| l.started).min()?;
        Some(self.lanes.get(&id)?.silent_since(oldest))
    }

    /// Whether a lane has been silent for longer than it may.
    pub(super) fn is_overdue(&self, id: LaneId, now: Instant) -> bool {
        let Some((lane, since)) = self.lanes.get(&id).zip(self.silent_since(id)) else {
            return false;
        };
        // Round trips are learned from answers, which can take as long as a server likes.
        let patience = lane.patience(&self.lane_config).min(self.config.answer);
        now.saturating_duration_since(since) >= patience
    }

    /// Whether another lane could take over: one that sends, or waits for work. If all fell silent at about the same time
    /// the fault is not the lane's.
    fn someone_else_is_alive(&self, id: LaneId, now: Instant) -> bool {
        let recent = self.config.stall / 2;
        let fresh = |t: Instant| now.saturating_duration_since(t) < recent;
        self.lanes
            .iter()
            .filter(|(other, l)| **other != id && l.is_usable())
            .any(|(other, lane)| {
                let rests = lane.leases == 0 && !lane.probation;
                let waits = || self.silent_since(*other).is_some_and(fresh) && lane.is_measured();
                rests || lane.last_byte.is_some_and(fresh) || waits()
            })
    }
}
