//! The decisions: who sends what next, and what is sent again.

use std::time::Instant;

use crate::types::LaneId;

use super::LeaseId;
use super::Part;
use super::PartAction;
use super::Parts;
use super::carve;
use super::outlook;
use super::outlook::Outlook;
use super::outlook::View;
use super::pack;
use super::stock::Stock;

/// What a hungry lane is to send.
#[derive(Debug)]
enum Next {
    Free(Part),
    /// A part that is late, once more.
    Late(LeaseId),
}

impl Parts {
    /// Gives every lane whose uplink is about to be idle a part, as long as that helps. Each round begins or ends one.
    pub(super) fn decide(&mut self, now: Instant) {
        if self.settle(now) {
            return;
        }
        for _ in 0..4 * self.config.connections.max(1) {
            let outlook = Outlook::new(self, now);
            let acted = self.race(&outlook, now)
                || self.recall(&outlook, now)
                || self.assign(&outlook, now)
                || self.rescue(&outlook, now)
                || self.explore(&outlook, now);
            if !acted {
                return;
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

    /// One part out of what is free, to the hungry lane that could begin it first.
    fn assign(&mut self, outlook: &Outlook, now: Instant) -> bool {
        if self.stock.nothing_free() && outlook.late.is_empty() {
            return false;
        }
        let mut hungry: Vec<&View> = outlook.lanes.iter().filter(|v| v.hungry).collect();
        // A lane that has to prove itself comes after those that need not.
        let last = |v: &View| (v.probation, !v.known);
        hungry.sort_by(|a, b| last(a).cmp(&last(b)).then(b.rate.total_cmp(&a.rate)));
        let next = |view: &View| match &self.stock {
            Stock::Carved(carved) => {
                let range = carve::next(carved, outlook, view, &self.config)?;
                Some(Next::Free(Part { item: 0, range }))
            }
            Stock::Fixed(fixed) => match pack::next(fixed, outlook, view)? {
                pack::Next::Item(item) => Some(Next::Free(fixed.part(item))),
                pack::Next::Late(lease) => self.may_send_again(lease, view).then_some(Next::Late(lease)),
            },
        };
        let found = hungry.iter().find_map(|v| Some((*v, next(v)?)));
        // Whatever is computed, somebody works as long as somebody can.
        let found = found.or_else(|| {
            let resting = self.leases.len() == 0;
            let view = *hungry.first().filter(|_| resting)?;
            Some((view, Next::Free(self.stock.anything()?)))
        });
        match found {
            Some((view, Next::Free(part))) => self.start(view.id, part, now).is_some(),
            Some((view, Next::Late(lease))) => self.send_again(lease, view, outlook, now),
            None => false,
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
        backlog as f64 <= lane.rate().unwrap_or(0.0) * outlook::ahead(lane)
    }

    /// Sends a part that is free.
    pub(super) fn start(&mut self, lane: LaneId, part: Part, now: Instant) -> Option<LeaseId> {
        let lease = self.begin(lane, part, now)?;
        self.stock.take(part);
        Some(lease)
    }

    /// Sends a part, free or not.
    pub(super) fn begin(&mut self, lane: LaneId, part: Part, now: Instant) -> Option<LeaseId> {
        let warm = self.lanes.get_mut(&lane)?.lease_started();
        let lease = self.leases.begin(lane, part, warm, now);
        self.actions.push_back(PartAction::Send { lease, lane, part });
        Some(lease)
    }
}
