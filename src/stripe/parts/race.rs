//! What is sent again: a part that would be stored last goes to a lane that has it there far sooner, as a race or by
//! taking it away; of two copies the one that is clearly slower ends; and an unmeasured lane that has nothing else to do
//! shows with a copy how fast it is.

use std::time::Instant;

use crate::types::LaneId;

use super::LeaseId;
use super::Parts;
use super::carve;
use super::carve::EXPLORE;
use super::leases::Lease;
use super::outlook::Late;
use super::outlook::Outlook;
use super::outlook::View;
use super::pack;
use super::stock::Stock;

/// Of two copies over measured lanes the one ends that would be stored this many times later than the other ...
const BEATEN: f64 = 1.1;
/// ... and this many seconds later.
const BEATEN_BY: f64 = 0.3;
/// A lane waits for none that would be through with the part only so much sooner.
const ABOUT: f64 = 1.02;
/// After so many seconds it is known how fast an unmeasured lane is.
const EXPLORES: f64 = 2.0;
/// So many bytes sent in vain matter in no upload, however small.
const BUDGET_LEAST: f64 = 2.0 * 1024.0 * 1024.0;

impl Parts {
    /// The parts in flight without which all would be through far sooner, were they free; the latest first.
    pub(super) fn late(&self, outlook: &Outlook, now: Instant) -> Vec<Late> {
        let mut flying = self.flying(outlook, now);
        // In slow start a lane looks slower than it is.
        flying.retain(|late| {
            let copies = self.copies(late.lease);
            !copies
                .into_iter()
                .flatten()
                .any(|l| l.is_flowing() && !is_steady(outlook, l.lane))
        });
        flying.sort_by(|a, b| b.eta.total_cmp(&a.eta));
        let mut extra: Vec<f64> = Vec::new();
        for late in &flying {
            extra.push(late.size);
            let least = outlook.common_finish(self.stock.free_bytes() as f64 + extra.iter().sum::<f64>());
            if !self.gains(late.eta, least) || !self.gains(late.eta, self.plan_finish(outlook, &extra)) {
                extra.pop();
                break;
            }
        }
        flying.truncate(extra.len());
        flying
    }

    pub(super) fn gains(&self, eta: f64, by: f64) -> bool {
        eta >= self.config.race_gain * by && eta - by >= self.config.race_after.as_secs_f64()
    }

    /// When all that is free, and parts of these sizes, could be stored.
    pub(super) fn plan_finish(&self, outlook: &Outlook, extra: &[f64]) -> f64 {
        match &self.stock {
            Stock::Carved(carved) => carve::finish(carved, outlook, extra),
            Stock::Fixed(fixed) => pack::finish(fixed, outlook, extra),
        }
    }

    /// Each part in flight, by the copy that would be stored first.
    fn flying(&self, outlook: &Outlook, now: Instant) -> Vec<Late> {
        let eta = |id: LeaseId| outlook.eta(id).unwrap_or(f64::INFINITY);
        let first = |id: LeaseId, lease: &Lease| lease.rival.is_none_or(|r| (eta(id), id) < (eta(r), r));
        let all = self
            .leases
            .iter()
            .filter(|(id, l)| l.started < now && first(*id, l));
        all.map(|(lease, l)| Late {
            lease,
            eta: eta(lease),
            size: l.part.range.len() as f64,
        })
        .collect()
    }

    fn copies(&self, id: LeaseId) -> [Option<&Lease>; 2] {
        let lease = self.leases.get(id);
        [
            lease,
            lease.and_then(|l| l.rival).and_then(|r| self.leases.get(r)),
        ]
    }

    /// Ends a copy that has lost, or sends a late part of a file again. Says whether it did anything.
    pub(super) fn race(&mut self, outlook: &Outlook, now: Instant) -> bool {
        if let Some(loser) = self.loser(outlook) {
            self.cancel(loser, now);
            return true;
        }
        // Few items are packed, and the late ones with them.
        let packed = matches!(&self.stock, Stock::Fixed(fixed) if pack::packs(fixed));
        !packed && self.rescue(outlook, now)
    }

    /// Sends a late part again, over the lane that would be through with it first.
    pub(super) fn rescue(&mut self, outlook: &Outlook, now: Instant) -> bool {
        let rescue = outlook.late.iter().find_map(|late| {
            let thieves = self.thieves(outlook, late.lease);
            let thieves = thieves.filter(|v| self.may_send_again(late.lease, v));
            let mut able = thieves.filter(|v| {
                self.gains(late.eta, v.finish(late.size)) && self.nobody_sooner(outlook, v, late)
            });
            Some((late.lease, able.next()?))
        });
        rescue.is_some_and(|(lease, thief)| self.send_again(lease, thief, outlook, now))
    }

    /// Lets a lane that nothing is known about, and that has nothing else to do, try its hand at a part that takes long.
    pub(super) fn explore(&mut self, outlook: &Outlook, now: Instant) -> bool {
        let mut flying = self.flying(outlook, now);
        flying.sort_by(|a, b| b.eta.total_cmp(&a.eta));
        let long = flying.iter().filter(|late| {
            // Two copies go on until it is clear which of them is the slower.
            let lease = self.leases.get(late.lease);
            let decided = lease.is_some_and(|l| l.rival.is_none())
                || self
                    .copies(late.lease)
                    .into_iter()
                    .flatten()
                    .all(|l| is_steady(outlook, l.lane));
            late.eta >= EXPLORE && decided
        });
        let found = long.into_iter().find_map(|late| {
            let mut fresh = self
                .thieves(outlook, late.lease)
                .filter(|v| !v.known && v.idle && !v.metered);
            Some((late.lease, fresh.next()?))
        });
        found.is_some_and(|(lease, thief)| self.send_again(lease, thief, outlook, now))
    }

    /// The lanes that could begin another copy.
    fn thieves<'a>(&self, outlook: &'a Outlook, lease: LeaseId) -> impl Iterator<Item = &'a View> + use<'a> {
        let have = self.copies(lease).map(|l| l.map(|l| l.lane));
        outlook
            .lanes
            .iter()
            .filter(move |v| v.hungry && !have.contains(&Some(v.id)))
    }

    /// A copy that would be stored much later than its rival. Both lanes' rates have to be measured.
    fn loser(&self, outlook: &Outlook) -> Option<LeaseId> {
        let measured = |l: &Lease| l.first_sent.is_some() && is_steady(outlook, l.lane);
        self.leases.iter().find_map(|(id, lease)| {
            let rival = self.leases.get(lease.rival?)?;
            let (own, other) = (outlook.eta(id)?, outlook.eta(lease.rival?)?);
            let clear = own >= BEATEN * other && own >= other + BEATEN_BY;
            // What only waits for its answer costs nothing more.
            (clear && !lease.is_sent() && measured(lease) && measured(rival)).then_some(id)
        })
    }

    /// Whether no other lane that may send it, busy or idle, would be through with it sooner.
    fn nobody_sooner(&self, outlook: &Outlook, thief: &View, late: &Late) -> bool {
        let mut others = outlook
            .lanes
            .iter()
            .filter(|v| v.id != thief.id && self.may_send_again(late.lease, v));
        let own = thief.finish(late.size);
        others.all(|v| own <= ABOUT * v.finish(late.size))
    }

    /// Bytes that may still be sent in vain.
    pub(super) fn budget_left(&self) -> f64 {
        let budget = (self.config.race_budget * self.stock.total() as f64).max(BUDGET_LEAST);
        budget - self.leases.in_vain as f64
    }

    /// Whether the lane may send it too: a lane that has it may not, nor a metered one what was sent in part already.
    pub(super) fn may_send_again(&self, lease: LeaseId, thief: &View) -> bool {
        let copies = self.copies(lease);
        let mut copies = copies.into_iter().flatten();
        copies.all(|l| l.lane != thief.id && !(thief.metered && l.first_sent.is_some())) && !thief.probation
    }

    /// Begins another copy, in place of a second one; where both can't run, ends the first.
    pub(super) fn send_again(
        &mut self,
        lease: LeaseId,
        thief: &View,
        outlook: &Outlook,
        now: Instant,
    ) -> bool {
        let Some(first) = self.leases.get(lease) else {
            return false;
        };
        let (part, is_sent, begun) = (first.part, first.is_sent(), first.first_sent.is_some());
        let (size, rival) = (part.range.len() as f64, first.rival);
        if !self.may_send_again(lease, thief) {
            return false;
        }
        let slow = outlook.lane(first.lane).map_or(0.0, |v| v.rate);
        // The first may still win; if it does not, this is what it has sent until then.
        let until = if thief.known { thief.finish(size) } else { EXPLORES };
        let in_vain = (first.sent as f64 + slow * until).min(size);
        let affordable = in_vain <= self.budget_left();
        let both = is_sent || (affordable && (begun || !thief.known));
        if !both && !thief.known {
            return false;
        }
        if let Some(rival) = rival {
            self.cancel(rival, now);
        }
        if !both {
            self.cancel(lease, now);
            return self.start(thief.id, part, now).is_some();
        }
        let Some(second) = self.begin(thief.id, part, now) else {
            return false;
        };
        self.leases.pair(lease, second);
        true
    }
}

fn is_steady(outlook: &Outlook, lane: LaneId) -> bool {
    outlook.lane(lane).is_some_and(|v| v.steady)
}
