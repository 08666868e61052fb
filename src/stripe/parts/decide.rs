//! The decisions: who sends what next, and what is sent again.

use std::time::Instant;

use crate::types::LaneId;

use super::super::config::REPORT_EVERY;
use super::LeaseId;
use super::Part;
use super::PartAction;
use super::Parts;
use super::stock::Stock;

impl Parts {
    /// Gives every lane whose uplink is about to be idle a part, as long as that helps.
    pub(super) fn decide(&mut self, now: Instant) {
        if self.settle(now) {
            return;
        }
        let hungry: Vec<LaneId> = self
            .lanes
            .keys()
            .copied()
            .filter(|id| self.is_hungry(*id))
            .collect();
        for lane in hungry {
            if let Some(part) = self.next_part() {
                self.start(lane, part, now);
            }
        }
    }

    /// Says `Done` once the server has everything; nothing else is to be decided then.
    fn settle(&mut self, now: Instant) -> bool {
        if !self.stock.is_complete() {
            return false;
        }
        let left: Vec<LeaseId> = self.leases.iter().map(|(id, _)| id).collect();
        for id in left {
            self.cancel(id, now);
        }
        if !self.said_done {
            self.said_done = true;
            self.actions.push_back(PartAction::Done);
        }
        true
    }

    fn next_part(&self) -> Option<Part> {
        match &self.stock {
            Stock::Carved(carved) => {
                let gap = carved.free.iter().next()?;
                let range = carved.piece(gap, carved.least);
                Some(Part { item: 0, range })
            }
            Stock::Fixed(fixed) => Some(fixed.part(fixed.free.last()?.1.0)),
        }
    }

    /// Whether the lane may begin a part, and its uplink has less to send than it sends until the part begins.
    pub(super) fn is_hungry(&self, id: LaneId) -> bool {
        let Some(lane) = self.lanes.get(&id).filter(|l| l.idle_slots() > 0) else {
            return false;
        };
        let usable = self.lanes.values().filter(|l| l.is_usable()).count();
        let share = (self.config.connections / usable.max(1)).max(1);
        if lane.leases >= share || self.leases.len() >= self.config.connections {
            return false;
        }
        let own = self.leases.iter().filter(|(_, l)| l.lane == id);
        let backlog: u64 = own.map(|(_, l)| l.left()).sum();
        let lead = if lane.warm > 0 { 0.0 } else { lane.setup() } + REPORT_EVERY;
        backlog as f64 <= lane.rate().unwrap_or(0.0) * lead
    }

    pub(super) fn start(&mut self, lane: LaneId, part: Part, now: Instant) -> Option<LeaseId> {
        let warm = self.lanes.get_mut(&lane)?.lease_started();
        self.stock.take(part);
        let lease = self.leases.begin(lane, part, warm, now);
        self.actions.push_back(PartAction::Send { lease, lane, part });
        Some(lease)
    }
}
