//! What sources get: runs of whole pieces, the rarest first, and at the end what a slower one would bring too late.

use std::time::Instant;

use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::PIECE;

use super::Pieces;
use super::Scheduler;
use super::bytes_of;
use super::pieces_of;
use crate::stripe::LeaseId;
use crate::stripe::config::CONTESTED_LEASE;
use crate::stripe::config::CROWD;
use crate::stripe::config::SOURCE_LEASE;
use crate::stripe::config::SOURCE_LEASE_SECONDS;
use crate::stripe::config::SOURCE_SILENCE;
use crate::stripe::config::SOURCE_TAIL_PARTS;
use crate::stripe::config::STRIKE_PAUSE;
use crate::stripe::config::TAKE_OVER_GAIN;
use crate::stripe::config::TAKE_OVER_SAVES;
use crate::stripe::lane::Lane;
use crate::stripe::plan::Plan;
use crate::stripe::random;

/// What a source could take.
#[derive(Clone, Copy, Debug)]
struct Choice {
    piece: u64,
    /// How many members have it, and most that any piece has that it could take.
    copies: u8,
    most: u8,
    /// How many pieces it could take.
    count: u64,
}

impl Scheduler {
    /// Gives every idle slot of the sources something, in turn.
    pub(super) fn feed(&mut self, unchecked: &Pieces, now: Instant) {
        let ids: Vec<LaneId> = self.household.sources.keys().copied().collect();
        let mut fed = true;
        while fed {
            fed = false;
            for &id in &ids {
                fed |= self.can_take(id, now) && self.feed_one(id, unchecked, now);
            }
        }
        for id in ids {
            if self.can_take(id, now) && self.take_over(id, unchecked, now) {
                self.feed_one(id, unchecked, now);
            }
        }
    }

    /// Where sources are slow and nothing is free, an idle uplink takes what one of them would bring far later.
    pub(in crate::stripe) fn relieve_sources(&mut self, plan: &Plan, now: Instant) -> bool {
        if !self.household.slow {
            return false;
        }
        let idle = plan.lanes.iter().filter(|v| v.idle > 0 && !v.probation);
        let Some(thief) = idle.min_by(|a, b| a.finish(0.0).total_cmp(&b.finish(0.0))) else {
            return false;
        };
        let slow = self.slowest(thief.id, now, |left| {
            let barred = self.household.elsewhere.first_in(left).is_some();
            (!barred).then(|| thief.finish(left.len() as f64))
        });
        let Some((id, left)) = slow else { return false };
        self.cancel(id, now);
        let first = self.ledger.free.within(left).next();
        first.is_some_and(|range| self.start_at(thief.id, range, now))
    }

    /// Whether a source may be given something more. Only one lease before it has brought anything, and where there are
    /// several sources, of which the others hide the silence of its next request: the fewer pieces come at once, the
    /// sooner each of them is whole and can be passed on.
    fn can_take(&self, id: LaneId, now: Instant) -> bool {
        let crowd = self.household.sources.len() >= CROWD;
        let one = |l: &Lane| crowd || l.last_byte.is_none();
        let idle = |l: &Lane| l.idle_slots() > 0 && (l.leases == 0 || !one(l));
        self.lanes.get(&id).is_some_and(idle) && !self.is_quiet(id, now)
    }

    /// One lease for a source.
    fn feed_one(&mut self, id: LaneId, unchecked: &Pieces, now: Instant) -> bool {
        let Some(choice) = self.rarest(id, unchecked) else {
            return false;
        };
        let limit = self.lease_pieces(id, &choice);
        let Some(source) = self.household.sources.get(&id) else {
            return false;
        };
        let alike = |p: &u64| {
            let takes = source.holds.has(*p) && !unchecked.has(*p) && self.is_free(*p);
            takes && self.household.copies_of(*p) == choice.copies
        };
        let more = (choice.piece + 1..choice.piece + limit).take_while(alike).count() as u64;
        let end = bytes_of(choice.piece + more).end.min(self.ledger.total);
        let Some(range) = self.span(bytes_of(choice.piece).start, end) else {
            return false;
        };
        if let Some(source) = self.household.sources.get_mut(&id) {
            source.next = Some(range.end.div_ceil(PIECE));
        }
        self.start_at(id, range, now)
    }

    /// The rarest piece that the source could bring something of: the one after its last lease if that is as rare, else
    /// any of them, so that members that begin together begin at different places.
    fn rarest(&mut self, id: LaneId, unchecked: &Pieces) -> Option<Choice> {
        let source = self.household.sources.get(&id)?;
        let next = source.next;
        let mut best: Option<Choice> = None;
        let mut seed = self.seed;
        let mut ties = 0.0;
        for range in self.ledger.free.iter() {
            for piece in pieces_of(range).filter(|&p| source.holds.has(p) && !unchecked.has(p)) {
                let copies = self.household.copies_of(piece);
                let mut choice = best.unwrap_or(Choice {
                    piece,
                    copies,
                    most: copies,
                    count: 0,
                });
                choice.count += 1;
                choice.most = choice.most.max(copies);
                if copies < choice.copies {
                    (choice.copies, ties) = (copies, 0.0);
                }
                if copies == choice.copies {
                    ties += 1.0;
                    if random(&mut seed) * ties < 1.0 {
                        choice.piece = piece;
                    }
                }
                best = Some(choice);
            }
        }
        self.seed = seed;
        let mut choice = best?;
        let source = self.household.sources.get(&id)?;
        let takes = |p: &u64| source.holds.has(*p) && !unchecked.has(*p) && self.is_free(*p);
        if let Some(next) = next.filter(takes)
            && self.household.copies_of(next) == choice.copies
        {
            choice.piece = next;
        }
        Some(choice)
    }

    /// How many pieces a source gets at once.
    fn lease_pieces(&self, id: LaneId, choice: &Choice) -> u64 {
        let Some(lane) = self.lanes.get(&id) else {
            return 1;
        };
        let Some(rate) = lane.settled_rate().filter(|_| !lane.probation) else {
            return 1;
        };
        let most = if choice.most != choice.copies || self.household.sources.len() > 1 {
            CONTESTED_LEASE
        } else {
            SOURCE_LEASE
        };
        let soon = (rate * SOURCE_LEASE_SECONDS) as u64 / PIECE;
        let slots: u64 = self
            .lanes
            .values()
            .filter(|l| l.source)
            .map(|l| l.slots as u64)
            .sum();
        let fair = choice.count / (SOURCE_TAIL_PARTS * slots).max(1);
        most.min(soon).min(fair).max(1)
    }

    /// Whether anything of the piece is free.
    fn is_free(&self, piece: u64) -> bool {
        let bytes = bytes_of(piece);
        self.ledger.free.within(bytes).next().is_some()
    }

    /// From the first free byte in these bounds to the last one before anything that somebody else is leased.
    fn span(&self, start: u64, end: u64) -> Option<ByteRange> {
        let first = self.ledger.free.next_from(start)?.start.max(start);
        let (mut at, mut last) = (first, first);
        while at < end {
            if let Some(free) = self.ledger.free.range_at(at) {
                at = free.end;
                last = free.end.min(end);
            } else if let Some(done) = self.ledger.done.range_at(at) {
                at = done.end;
            } else {
                break;
            }
        }
        (first < last).then(|| ByteRange::new(first, last))
    }

    /// Ends the lease of a source that would be through with it far later than this one, which has nothing else to do.
    fn take_over(&mut self, thief: LaneId, unchecked: &Pieces, now: Instant) -> bool {
        let house = &self.household;
        let Some((lane, source)) = self.lanes.get(&thief).zip(house.sources.get(&thief)) else {
            return false;
        };
        let Some(rate) = lane.settled_rate().filter(|_| !lane.probation) else {
            return false;
        };
        let share = rate / (lane.leases + 1) as f64;
        let own = |left: ByteRange| {
            let holds = pieces_of(left).all(|p| source.holds.has(p) && !unchecked.has(p));
            holds.then(|| lane.latency().min(STRIKE_PAUSE.as_secs_f64()) + left.len() as f64 / share)
        };
        let Some((id, _)) = self.slowest(thief, now, own) else {
            return false;
        };
        self.cancel(id, now);
        true
    }

    /// The source's lease that the thief, which needs `own` seconds for it, would be through with so much sooner that it
    /// is worth ending: the one that gains most.
    fn slowest(
        &self,
        thief: LaneId,
        now: Instant,
        own: impl Fn(ByteRange) -> Option<f64>,
    ) -> Option<(LeaseId, ByteRange)> {
        let leases = self.ledger.leases.iter();
        let leases = leases.filter(|(_, l)| l.lane != thief && self.is_source(l.lane));
        let gains = leases.filter_map(|(&id, lease)| {
            let lane = self.lanes.get(&lease.lane)?;
            let age = now.saturating_duration_since(lease.last_byte.unwrap_or(lease.started));
            let age = age.as_secs_f64();
            // Since its last report it has moved on, if it moves; where it is overdue, expect as long again.
            let eta = lane.settled_rate().map_or(age, |rate| {
                let share = rate.max(1.0) / lane.leases.max(1) as f64;
                (lease.left.len() as f64 / share - age).max(age - PIECE as f64 / share)
            });
            let young = now.saturating_duration_since(lease.started) < SOURCE_SILENCE / 3;
            let mine = own(lease.left)?;
            let gains = !young && eta >= TAKE_OVER_GAIN * mine && eta - mine >= TAKE_OVER_SAVES;
            gains.then_some((eta - mine, id, lease.left))
        });
        let most = gains.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some((most.1, most.2))
    }
}
