//! The decisions: who gets how much next, what is stolen back, and what is raced.

use std::time::Instant;

use crate::types::ByteRange;
use crate::types::LaneId;

use super::Action;
use super::LeaseId;
use super::Scheduler;
use super::config::COVER;
use super::config::EVEN_SLOTS;
use super::config::FIRST_LEAST;
use super::config::FIRST_PARTS;
use super::config::FRAGMENT;
use super::config::MIN_STEAL;
use super::config::MIN_TAIL;
use super::config::RACE_CHUNK;
use super::config::SECOND_LEASE;
use super::config::STEAL_COST;
use super::config::STEAL_WORTH;
use super::plan::Plan;
use super::plan::View;

impl Scheduler {
    /// Gives every idle slot work as long as that helps. Each round uses a slot or frees a slower lane's bytes.
    pub(super) fn decide(&mut self, now: Instant) {
        if self.settle(now) {
            return;
        }
        self.share(now);
        for _ in 0..self.round_limit() {
            let uplinks = self.lanes.iter().filter(|(_, l)| !l.source);
            let plan = Plan::new(uplinks, &self.ledger, self.load(), now);
            let acted = self.check(&plan, now)
                || self.steal(&plan, now)
                || if plan.load.free == 0 {
                    self.race(&plan, now) || self.relieve_sources(&plan, now)
                } else {
                    self.assign(&plan, now)
                };
            if !acted {
                return;
            }
        }
    }

    /// Says `Done` once everything is there; nothing else is to be decided then.
    fn settle(&mut self, now: Instant) -> bool {
        if !self.ledger.is_complete() {
            return false;
        }
        let left: Vec<LeaseId> = self.ledger.leases.keys().copied().collect();
        for id in left {
            self.cancel(id, now);
        }
        if !self.said_done {
            self.said_done = true;
            self.actions.push_back(Action::Done);
        }
        true
    }

    /// One lease out of what is free, to the lane that would be through with a small one first.
    fn assign(&mut self, plan: &Plan, now: Instant) -> bool {
        let piece = (self.config.min_lease as f64).min(plan.load.free as f64);
        let mut order: Vec<&View> = plan.lanes.iter().filter(|v| v.idle > 0 || v.ending).collect();
        order.sort_by(|a, b| a.finish(piece).total_cmp(&b.finish(piece)));
        let Some((lane, size)) = order.iter().find_map(|v| Some((*v, self.size(plan, v, piece)?))) else {
            return false;
        };
        // What its other connection still has hides the silence before the next request: a fragment costs nothing.
        let covered = lane.leases > 0 && lane.backlog >= COVER * lane.rate * lane.latency;
        let least = if covered { FRAGMENT.min(size / 2) } else { size / 2 };
        self.start(lane.id, size, least, now)
    }

    /// How much an idle lane should take now; `None`: it would be late with anything.
    fn size(&self, plan: &Plan, lane: &View, piece: f64) -> Option<u64> {
        let min = self.config.min_lease as f64;
        let alone = plan.lanes.len() == 1;
        // What it can move until all could be through, beyond what it has; the piece itself begins after its lead.
        let time = plan.finish - lane.lead;
        let room = (lane.rate * (plan.finish - lane.start) - lane.backlog).min(lane.rate * time);
        if lane.probation {
            return (room >= piece || self.is_best(plan, lane, piece)).then_some(min as u64);
        }
        let floor = min.max(lane.rate * self.config.floor_round_trips * lane.latency);
        let mut size = if lane.known {
            lane.rate * plan.finish / (lane.slots as f64 * if alone { 1.0 } else { self.config.guide })
        } else {
            // The first is small: it measures. The second is long, so that the lane is not silent, or in slow start,
            // while the first one's successor is asked for.
            let slots = plan.lanes.iter().map(|v| v.slots as f64).sum::<f64>();
            let fair = plan.load.missing as f64 / (FIRST_PARTS * slots);
            fair.clamp(FIRST_LEAST, self.config.first_lease as f64)
                * if lane.leases > 0 { SECOND_LEASE } else { 1.0 }
        };
        if lane.known {
            size = size.max(floor);
        }
        if lane.known && room - size < 0.5 * floor {
            // Slots of one lane share its rate: one that ends long before the other leaves it half used.
            size = room.min(EVEN_SLOTS * lane.rate * time / lane.slots as f64);
        }
        if lane.known && size < min {
            // What it could do until all that is free could be done, were nobody disturbed.
            let fair = lane.rate * (plan.free_finish - lane.finish(0.0));
            return (fair >= MIN_TAIL || self.is_best(plan, lane, piece)).then_some(fair.max(piece) as u64);
        }
        if !lane.known && room < 0.5 * size.min(piece) && !self.is_best(plan, lane, piece) {
            return None;
        }
        Some(size as u64)
    }

    /// Whether no lane, busy or idle, would be through with the piece sooner.
    pub(super) fn is_best(&self, plan: &Plan, lane: &View, piece: f64) -> bool {
        let own = lane.finish(piece);
        plan.lanes.iter().all(|v| own <= v.finish(piece) * 1.02)
    }

    /// Whether no other lane, busy or idle, would be through with the loot sooner.
    fn is_best_thief(&self, plan: &Plan, thief: &View, victim: &View, loot: f64) -> bool {
        let own = thief.finish(loot);
        let others = plan
            .lanes
            .iter()
            .filter(|v| v.id != victim.id && v.id != thief.id);
        own < victim.eta() && others.into_iter().all(|v| own <= v.finish(loot) * 1.02)
    }

    /// Takes back what a lane would still be busy with when all others are through. While there is other work only
    /// gross misjudgements are corrected.
    fn steal(&mut self, plan: &Plan, now: Instant) -> bool {
        let (after, share) = (self.config.steal_after.as_secs_f64(), self.config.steal_share);
        let mut thieves: Vec<&View> = Vec::new();
        if plan.load.free == 0 {
            thieves.extend(plan.lanes.iter().filter(|v| v.idle > 0));
        }
        let slack = if thieves.is_empty() {
            (2.0 * after).max(12.0 * share * plan.finish)
        } else {
            after.max(share * plan.finish)
        };
        let mut late: Vec<&View> = plan
            .lanes
            .iter()
            .filter(|v| v.leases > 0 && v.eta() - plan.finish > slack)
            .collect();
        late.sort_by(|a, b| b.eta().total_cmp(&a.eta()));
        for victim in late {
            let stolen = if thieves.is_empty() {
                (victim.steady || victim.start > plan.finish) && self.steal_from(plan, victim, None, now)
            } else {
                thieves.sort_by(|a, b| a.finish(MIN_STEAL).total_cmp(&b.finish(MIN_STEAL)));
                thieves
                    .iter()
                    .any(|t| t.id != victim.id && self.steal_from(plan, victim, Some(t), now))
            };
            if stolen {
                return true;
            }
        }
        false
    }

    /// Takes the back of the lane's longest lease: as much as it is late with, or what the thief can do until all could
    /// be through.
    fn steal_from(&mut self, plan: &Plan, victim: &View, thief: Option<&View>, now: Instant) -> bool {
        let Some((id, left, flows)) = self.longest(victim.id, now) else {
            return false;
        };
        if !victim.known && thief.is_some_and(|t| !t.known) {
            return false;
        }
        let late = (victim.eta() - plan.finish) * victim.rate;
        let (wanted, least) = match thief {
            None => (late, self.config.min_lease as f64 / 2.0),
            Some(thief) => {
                // In proportion to the two rates, as if there were only these two.
                let pair =
                    (victim.eta() - thief.lead) * victim.rate * thief.rate / (victim.rate + thief.rate);
                let worth = (thief.rate * thief.lead * STEAL_WORTH).max(MIN_STEAL);
                let fair = late.min((plan.finish - thief.lead) * thief.rate);
                (fair.max(worth.min(pair)), MIN_STEAL)
            }
        };
        // What is on its way comes anyway; and only a thief's need ends a lease that has not begun, or is silent: all of
        // it, as nothing is lost with it.
        let idle = !flows || victim.silence > 0.0;
        let (wanted, coming) = match (idle, thief) {
            (true, Some(_)) => (left.len() as f64, 0.0),
            (true, None) => (wanted, MIN_STEAL),
            (false, _) => (wanted, victim.rate * victim.latency),
        };
        let gain = wanted.min(left.len() as f64 - coming);
        if gain < least.max(STEAL_COST * coming)
            || thief.is_some_and(|t| !self.is_best_thief(plan, t, victim, gain))
        {
            return false;
        }
        let end = left.end - gain as u64;
        if end <= left.start {
            self.cancel(id, now);
        } else {
            self.ledger.cut(id, end);
            self.actions.push_back(Action::Shrink { lease: id, end });
        }
        // Nothing else was free, so the thief gets what was taken for it.
        thief.is_none_or(|thief| self.start(thief.id, gain as u64, gain as u64 / 2, now))
    }

    /// The lease of the lane that has most left, does not race and was not given just now: its id, what is left, and
    /// whether it flows.
    fn longest(&self, lane: LaneId, now: Instant) -> Option<(LeaseId, ByteRange, bool)> {
        let open = self
            .ledger
            .of_lane(lane)
            .filter(|(_, l)| l.rival.is_none() && l.started < now && !self.is_barred(l.left));
        open.max_by_key(|(_, l)| l.left.len())
            .map(|(id, l)| (id, l.left, l.first_byte.is_some()))
    }

    /// Takes over what another lane would finish last, from the byte it has reached, where that is far sooner: as a
    /// race, or for a metered lane, or where the race's double bytes are used up, by ending the other's lease.
    fn race<'a>(&mut self, plan: &'a Plan, now: Instant) -> bool {
        let idle = plan.lanes.iter().filter(|v| v.idle > 0 && !v.probation);
        let gain = |thief: &'a View, view: &View| {
            let (id, left, _) = self.longest(view.id, now)?;
            let mine = thief.finish(left.len() as f64);
            let gains = view.eta() >= self.config.race_gain * mine
                && view.eta() - mine >= self.config.steal_after.as_secs_f64()
                && self.is_best_thief(plan, thief, view, left.len() as f64);
            gains.then_some((view.eta() - mine, thief, id, left.len(), view.rate))
        };
        let pairs = idle.flat_map(|thief| {
            let others = plan.lanes.iter().filter(|v| v.id != thief.id && v.leases > 0);
            others.filter_map(|view| gain(thief, view)).collect::<Vec<_>>()
        });
        let Some((_, thief, id, left, rate)) = pairs.max_by(|a, b| a.0.total_cmp(&b.0)) else {
            return false;
        };
        let budget =
            self.config.race_budget * self.ledger.total as f64 - self.ledger.duplicated as f64 - RACE_CHUNK;
        let doubled = (rate * thief.lead).min(left as f64);
        if !thief.metered && doubled <= budget {
            return self.start_race(thief.id, id, now);
        }
        self.cancel(id, now);
        self.start(thief.id, left, left / 2, now)
    }

    /// A lease of `size` from the first free range that has at least `least`.
    fn start(&mut self, id: LaneId, size: u64, least: u64, now: Instant) -> bool {
        if let Some(open) = self.open() {
            let picked = self.pick(&open, size, least);
            return picked.is_some_and(|range| self.start_at(id, range, now));
        }
        let Some(lane) = self.lanes.get_mut(&id) else {
            return false;
        };
        let Some((lease, range)) = self.ledger.take(id, size, least, lane.warm > 0, now) else {
            return false;
        };
        lane.lease_started();
        self.actions.push_back(Action::Start {
            lease,
            lane: id,
            range,
        });
        true
    }

    /// A lease of exactly this range.
    pub(super) fn start_at(&mut self, id: LaneId, range: ByteRange, now: Instant) -> bool {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return false;
        };
        let lease = self
            .ledger
            .take_exactly(id, range, lane.source, lane.warm > 0, now);
        lane.lease_started();
        if lane.source {
            lane.flow_began(now);
        }
        self.actions.push_back(Action::Start {
            lease,
            lane: id,
            range,
        });
        true
    }

    fn start_race(&mut self, id: LaneId, against: LeaseId, now: Instant) -> bool {
        let Some(lane) = self.lanes.get_mut(&id) else {
            return false;
        };
        let Some((lease, range)) = self.ledger.race(against, id, lane.warm > 0, now) else {
            return false;
        };
        lane.lease_started();
        self.actions.push_back(Action::Start {
            lease,
            lane: id,
            range,
        });
        true
    }

    /// Ends a lease, its bytes are free again, and says so.
    pub(super) fn cancel(&mut self, id: LeaseId, now: Instant) {
        if self.end_lease(id, now) {
            self.actions.push_back(Action::Cancel { lease: id });
        }
    }

    /// Each round starts a lease or takes from one; both are bounded by slots.
    fn round_limit(&self) -> usize {
        4 * self.lanes.values().map(|l| l.slots).sum::<usize>() + 4
    }
}
