//! What time alone changes: silent lanes, waits that end, and when to look next.

use std::time::Duration;
use std::time::Instant;

use crate::types::LaneId;

use super::LeaseId;
use super::Scheduler;
use super::config::*;
use super::lane::Standing;

impl Scheduler {
    /// Rolls the estimates, ends waits, and takes the leases of silent lanes.
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
            if self.lanes.get(&id).is_some_and(|l| l.source) || self.someone_else_is_alive(id, now) {
                self.cancel_lane(id, now);
                let jitter = super::random(&mut self.seed);
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.fell_silent();
                    lane.park(&self.config, jitter, now);
                }
            }
        }
        let hung: Vec<LeaseId> = self
            .ledger
            .leases
            .iter()
            .filter(|(_, l)| {
                now.saturating_duration_since(l.last_byte.unwrap_or(l.started))
                    >= self.lease_patience(l.lane, now)
            })
            .map(|(&id, _)| id)
            .collect();
        for id in hung {
            self.cancel(id, now);
        }
    }

    /// Cancels all leases of a lane.
    pub(super) fn cancel_lane(&mut self, lane: LaneId, now: Instant) {
        let leases: Vec<LeaseId> = self.ledger.of_lane(lane).map(|(id, _)| id).collect();
        for id in leases {
            self.cancel(id, now);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        if self.ledger.is_complete() {
            return None;
        }
        let tail = if self.ledger.free.is_empty() {
            TAIL_TICK
        } else {
            WINDOW
        };
        let leases = (!self.ledger.leases.is_empty()).then(|| self.ticked + tail);
        let waits = self.lanes.values().filter_map(|l| match l.standing {
            Standing::Waiting(until) => Some(until.max(self.ticked + Duration::from_millis(1))),
            Standing::Open | Standing::Never => None,
        });
        waits.chain(leases).min()
    }

    /// Since when nothing has come from a lane that has leases.
    pub(super) fn silent_since(&self, id: LaneId) -> Option<Instant> {
        let oldest = self.ledger.of_lane(id).map(|(_, l)| l.started).min()?;
        Some(self.lanes.get(&id)?.silent_since(oldest))
    }

    /// Whether a lane has been silent for longer than it may.
    pub(super) fn is_overdue(&self, id: LaneId, now: Instant) -> bool {
        let Some((lane, since)) = self.lanes.get(&id).zip(self.silent_since(id)) else {
            return false;
        };
        now.saturating_duration_since(since) >= lane.patience(&self.config)
    }

    /// Whether another lane could take over: one that brings bytes, or waits for work. If all fell silent at about the
    /// same time the fault is not the lane's.
    fn someone_else_is_alive(&self, id: LaneId, now: Instant) -> bool {
        let recent = self.config.stall / 2;
        self.lanes
            .iter()
            .filter(|(other, l)| **other != id && l.is_usable() && !l.source)
            .any(|(other, lane)| {
                let brings = lane
                    .last_byte
                    .is_some_and(|t| now.saturating_duration_since(t) < recent);
                let rests = lane.leases == 0 && !lane.probation;
                brings
                    || rests
                    || self
                        .silent_since(*other)
                        .is_some_and(|t| lane.is_measured() && now.saturating_duration_since(t) < recent)
            })
    }

    /// How long one lease may be silent before it is restarted.
    fn lease_patience(&self, id: LaneId, now: Instant) -> Duration {
        if let Some(source) = self.lanes.get(&id).filter(|l| l.source) {
            return source.patience(&self.config).max(SOURCE_LEASE_STALL);
        }
        let lane_lives = self
            .silent_since(id)
            .is_some_and(|t| now.saturating_duration_since(t) < self.config.stall);
        if lane_lives { LEASE_STALL } else { ALL_SILENT }
    }
}
