//! Leases that end early for the household: others fetch the same, a source holds it, or no longer does, or it is to be
//! checked first.

use std::time::Duration;
use std::time::Instant;

use crate::types::PIECE;

use super::Pieces;
use super::Scheduler;
use super::bytes_of;
use super::pieces_of;
use crate::stripe::Action;
use crate::stripe::LeaseId;
use crate::stripe::config::REACHED_SOON;

/// An uplink's lease that has been silent for so long has no part in what a source could bring.
const HUNG: Duration = Duration::from_secs(2);

impl Scheduler {
    /// Keeps the invariants: ends leases before what they must not have.
    pub(super) fn yield_leases(&mut self, now: Instant) {
        let unchecked = Pieces::touched(&self.household.unchecked, self.ledger.total);
        let leases: Vec<LeaseId> = self.ledger.leases.keys().copied().collect();
        for id in leases {
            let Some(lease) = self.ledger.leases.get(&id) else {
                continue;
            };
            let left = lease.left;
            let first = left.start / PIECE;
            let mut pieces = pieces_of(left);
            let stop = if let Some(source) = self.household.sources.get(&lease.lane) {
                pieces.find(|&p| !source.holds.has(p) || unchecked.has(p))
            } else {
                // More than half of the first one is there: it is finished.
                let brought = left.start - lease.from.max(first * PIECE);
                pieces.find(|&p| self.household.elsewhere.has(p) && (p > first || brought < PIECE / 2))
            };
            if let Some(piece) = stop {
                self.end_at(id, bytes_of(piece).start, now);
            }
        }
    }

    /// Ends uplink leases before what sources hold, where they would not have come there soon anyway.
    pub(super) fn yield_to_sources(&mut self, unchecked: &Pieces, now: Instant) {
        if self.household.slow || self.household.held.is_empty() {
            return;
        }
        let leases: Vec<LeaseId> = self.uplink_leases().map(|(id, _)| id).collect();
        for id in leases {
            let Some(lease) = self.ledger.leases.get(&id) else {
                continue;
            };
            let lane = self.lanes.get(&lease.lane);
            let share = lane.map_or(0.0, |l| l.rate().unwrap_or(0.0) / l.leases.max(1) as f64);
            let heard = lease.last_byte.unwrap_or(lease.started);
            let idle = lease.first_byte.is_none() || now.saturating_duration_since(heard) >= HUNG;
            let from = if idle {
                lease.left.start / PIECE
            } else {
                let soon = lease.left.start.saturating_add((share * REACHED_SOON) as u64);
                soon.div_ceil(PIECE)
            };
            let held = |p: &u64| *p >= from && self.household.held.has(*p) && !unchecked.has(*p);
            let stop = pieces_of(lease.left).find(held);
            if let Some(piece) = stop {
                self.end_at(id, bytes_of(piece).start, now);
            }
        }
    }

    /// Lets a lease end at this byte at the latest; one that races leaves the rest to its rival.
    fn end_at(&mut self, id: LeaseId, end: u64, now: Instant) {
        let Some(lease) = self.ledger.leases.get(&id) else {
            return;
        };
        if let Some(rival) = lease.rival {
            // The one that took over goes; what is left of the other is looked at as any lease.
            let (chaser, other) = if lease.chases { (id, rival) } else { (rival, id) };
            self.cancel(chaser, now);
            return self.end_at(other, end, now);
        }
        if end <= lease.left.start {
            self.cancel(id, now);
        } else if end < lease.left.end {
            self.ledger.cut(id, end);
            self.actions.push_back(Action::Shrink { lease: id, end });
        }
    }
}
