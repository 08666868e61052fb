//! What is taken back although it is under way: where the lanes' rates turn out to be such that everything would be stored
//! far sooner if a part were begun anew elsewhere and its lane did something else.
//!
//! It happens early, when parts were given to lanes that nothing was known about: the last great items are free, and the
//! fast lanes are busy with what slow ones could do.

use std::time::Instant;

use super::LeaseId;
use super::Parts;
use super::carve::EXPLORE;
use super::outlook::Outlook;
use super::outlook::lead;
use super::stock::Stock;

/// Up to so many free items all is planned anew without each part in flight ...
const FEW: usize = 24;
/// ... and up to so many without each two.
const VERY_FEW: usize = 8;

impl Parts {
    /// Ends the part, or the two, without which all would be through soonest, if that is far sooner. Says whether it did.
    pub(super) fn recall(&mut self, outlook: &Outlook, now: Instant) -> bool {
        // A file's next part can be cut to fit, whatever is under way.
        let Stock::Fixed(fixed) = &self.stock else {
            return false;
        };
        let free = fixed.free.len();
        if free > FEW || !outlook.late.is_empty() || !outlook.lanes.iter().all(|v| v.steady) {
            return false;
        }
        let end = self.plan_finish(outlook, &[]).max(outlook.last_eta(&[]));
        let open: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, l)| l.is_flowing() && l.rival.is_none() && l.started < now)
            .map(|(id, _)| id)
            .collect();
        if end < EXPLORE || self.end_at_best(outlook, &open, end).is_none() {
            return false;
        }
        let ones = open.iter().map(|id| vec![*id]);
        let second = |at: usize| open.iter().skip(at + 1).filter(|_| free <= VERY_FEW);
        let twos = open
            .iter()
            .enumerate()
            .flat_map(|(at, a)| second(at).map(|b| vec![*a, *b]));
        let sets = ones.chain(twos).filter_map(|set| {
            let by = self.end_without(outlook, &set, end)?;
            Some((set, by))
        });
        let best = sets.min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((set, _)) = best.filter(|(_, by)| self.gains(end, *by)) else {
            return false;
        };
        for id in set {
            self.cancel(id, now);
        }
        true
    }

    /// The outlook if these parts were free and their lanes idle.
    fn without(&self, outlook: &Outlook, set: &[LeaseId]) -> (Outlook, Vec<f64>) {
        let mut freed = outlook.clone();
        let leases = set.iter().filter_map(|id| self.leases.get(*id));
        let mut sizes = Vec::new();
        for lease in leases {
            sizes.push(lease.part.range.len() as f64);
            let view = freed.lanes.iter_mut().find(|v| v.id == lease.lane);
            if let Some((view, lane)) = view.zip(self.lanes.get(&lease.lane)) {
                view.start = lead(lane);
            }
        }
        (freed, sizes)
    }

    /// When all would be through without these if items could be cut at will; `None`: not far sooner than `end`.
    fn end_at_best(&self, outlook: &Outlook, set: &[LeaseId], end: f64) -> Option<f64> {
        let (freed, sizes) = self.without(outlook, set);
        let bytes = self.stock.free_bytes() as f64 + sizes.iter().sum::<f64>();
        let least = freed.common_finish(bytes).max(outlook.last_eta(set));
        self.gains(end, least).then_some(least)
    }

    /// When all would be through without these; `None`: certainly not far sooner than `end`, or too much was sent of them.
    fn end_without(&self, outlook: &Outlook, set: &[LeaseId], end: f64) -> Option<f64> {
        let sent = set
            .iter()
            .filter_map(|id| self.leases.get(*id))
            .map(|l| l.sent as f64);
        if sent.sum::<f64>() > self.budget_left() {
            return None;
        }
        self.end_at_best(outlook, set, end)?;
        let (freed, sizes) = self.without(outlook, set);
        Some(self.plan_finish(&freed, &sizes).max(outlook.last_eta(set)))
    }
}
