//! What is sent again: a part that would be stored last goes to a lane that has it there far sooner, as a race or by
//! taking it away; and of two copies the one that is clearly slower ends.

use std::time::Instant;

use super::LeaseId;
use super::Parts;
use super::carve::EXPLORE;
use super::outlook::Outlook;
use super::outlook::View;

/// Of two copies the one ends that would be stored this many times later than the other ...
const BEATEN: f64 = 1.5;
/// ... and this many seconds later.
const BEATEN_BY: f64 = 0.3;
/// A lane waits for none that would be through with the part only so much sooner.
const ABOUT: f64 = 1.02;

/// After so many seconds it is known how fast an unmeasured lane is.
const EXPLORES: f64 = 2.0;
/// So many bytes sent in vain matter in no upload, however small.
const BUDGET_LEAST: f64 = 2.0 * 1024.0 * 1024.0;

/// A part that is to be sent again.
#[derive(Debug)]
struct Rescue<'a> {
    lease: LeaseId,
    thief: &'a View,
    gain: f64,
}

impl Parts {
    /// Ends copies that have lost, then sends at most one part again. Says whether it did anything.
    pub(super) fn race(&mut self, outlook: &Outlook, now: Instant) -> bool {
        if let Some(loser) = self.loser(outlook) {
            self.cancel(loser, now);
            return true;
        }
        match self.best_rescue(outlook, now) {
            Some(Rescue { lease, thief, .. }) => self.send_again(lease, thief, outlook, now),
            None => false,
        }
    }

    /// A copy that would be stored much later than its rival. Both lanes' rates have to be measured.
    fn loser(&self, outlook: &Outlook) -> Option<LeaseId> {
        let eta = |id: LeaseId| outlook.flying.iter().find(|f| f.0 == id).map(|f| f.1);
        let steady = |id: LeaseId| {
            let lease = self.leases.get(id)?;
            outlook
                .lane(lease.lane)
                .map(|v| v.steady && lease.first_sent.is_some())
        };
        self.leases.iter().find_map(|(id, lease)| {
            let rival = lease.rival?;
            let (own, other) = (eta(id)?, eta(rival)?);
            let clear = own >= BEATEN * other && own >= other + BEATEN_BY;
            // What only waits for its answer costs nothing more.
            (clear && !lease.is_sent() && steady(id)? && steady(rival)?).then_some(id)
        })
    }

    fn best_rescue<'a>(&self, outlook: &'a Outlook, now: Instant) -> Option<Rescue<'a>> {
        let free = self.stock.free_bytes() as f64;
        let mut best: Option<Rescue<'a>> = None;
        for &(id, eta) in &outlook.flying {
            let Some(lease) = self
                .leases
                .get(id)
                .filter(|l| l.rival.is_none() && l.started < now)
            else {
                continue;
            };
            // In slow start a lane looks slower than it is.
            let slow_start = lease.is_flowing() && outlook.lane(lease.lane).is_some_and(|v| !v.steady);
            let size = lease.part.range.len() as f64;
            let all = outlook.common_finish(free + size);
            let thieves = outlook
                .lanes
                .iter()
                .filter(|v| v.hungry && !v.probation && v.id != lease.lane);
            for thief in thieves {
                let by = thief.finish(size).max(all);
                let gains = !slow_start
                    && eta >= self.config.race_gain * by
                    && eta - by >= self.config.race_after.as_secs_f64()
                    && self.nobody_sooner(outlook, thief, lease.lane, size);
                // To find out about a lane costs nothing where it has nothing else to do.
                let explores = !thief.known && thief.idle && free == 0.0 && eta >= EXPLORE && !thief.metered;
                let gain = eta - by;
                if (gains || explores) && best.as_ref().is_none_or(|b| gain > b.gain) {
                    best = Some(Rescue {
                        lease: id,
                        thief,
                        gain,
                    });
                }
            }
        }
        best
    }

    /// Whether no other lane, busy or idle, would be through with it sooner.
    fn nobody_sooner(
        &self,
        outlook: &Outlook,
        thief: &View,
        victim: crate::types::LaneId,
        size: f64,
    ) -> bool {
        let others = outlook
            .lanes
            .iter()
            .filter(|v| v.id != thief.id && v.id != victim);
        let own = thief.finish(size);
        others.into_iter().all(|v| own <= ABOUT * v.finish(size))
    }

    /// Begins the second copy; where both can't run, ends the first.
    fn send_again(&mut self, lease: LeaseId, thief: &View, outlook: &Outlook, now: Instant) -> bool {
        let Some(first) = self.leases.get(lease) else {
            return false;
        };
        let (part, sent, is_sent, flows) = (first.part, first.sent, first.is_sent(), first.is_flowing());
        let size = part.range.len();
        let slow = outlook.lane(first.lane).map_or(0.0, |v| v.rate);
        // The first may still win; if it does not, this is what it has sent until then.
        let until = if thief.known {
            thief.finish(size as f64)
        } else {
            EXPLORES
        };
        let in_vain = (sent as f64 + slow * until).min(size as f64);
        let budget = (self.config.race_budget * self.stock.total() as f64).max(BUDGET_LEAST);
        let begun = flows || is_sent;
        if thief.metered && begun {
            return false;
        }
        let affordable = self.leases.in_vain as f64 + in_vain <= budget;
        let both = is_sent || (affordable && (begun || !thief.known));
        if both {
            let Some(second) = self.begin(thief.id, part, now) else {
                return false;
            };
            self.leases.pair(lease, second);
        } else if thief.known {
            self.cancel(lease, now);
            self.start(thief.id, part, now);
        } else {
            return false;
        }
        true
    }
}
