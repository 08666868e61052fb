//! What uplinks may take, and which part of it.

use std::time::Instant;

use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::PIECE;

use super::Pieces;
use super::Scheduler;
use super::bytes_of;
use super::pieces_of;
use crate::stripe::config::DEFAULT_RATE;
use crate::stripe::config::OWN_SHARE;
use crate::stripe::config::QUICK_SOURCES;
use crate::stripe::config::SLOW_SOURCES;
use crate::stripe::plan::Load;
use crate::stripe::plan::Plan;
use crate::stripe::plan::View;
use crate::stripe::random;

/// Free bytes that uplinks may take, in order.
#[derive(Clone, Debug, Default)]
pub(in crate::stripe) struct Open {
    ranges: Vec<ByteRange>,
    len: u64,
    /// Sources hold it, and take it from the front.
    back: bool,
}

impl Scheduler {
    /// Before uplinks get anything: who counts now, and what that changes.
    pub(in crate::stripe) fn share(&mut self, now: Instant) {
        if !self.household.is_in_use() {
            return;
        }
        self.look_at_sources(now);
        let unchecked = Pieces::touched(&self.household.unchecked, self.ledger.total);
        self.yield_to_sources(&unchecked, now);
        self.feed(&unchecked, now);
    }

    /// What the uplinks are to bring.
    pub(in crate::stripe) fn load(&self) -> Load {
        let Some(open) = self.open() else {
            return Load {
                missing: self.ledger.missing(),
                free: self.ledger.free.len(),
            };
        };
        let own = if open.back {
            let (sources, uplinks) = self.rates();
            uplinks / (uplinks + sources.unwrap_or(0.0)).max(1.0)
        } else if self.household.elsewhere.is_empty() {
            1.0
        } else {
            OWN_SHARE
        };
        let free = ((open.len as f64 * own) as u64).max(open.len.min(1));
        let own_leases = self.ledger.leases.values().filter(|l| !self.is_source(l.lane));
        let leased: u64 = own_leases.filter(|l| !l.chases).map(|l| l.left.len()).sum();
        Load {
            missing: leased + free,
            free,
        }
    }

    /// What uplinks may take; `None`: all that is free, for there is no household.
    pub(in crate::stripe) fn open(&self) -> Option<Open> {
        let house = &self.household;
        if !house.is_in_use() {
            return None;
        }
        let own = self.open_where(|p| !house.held.has(p) && !house.elsewhere.has(p));
        if own.len > 0 || !house.slow {
            return Some(own);
        }
        Some(Open {
            back: true,
            ..self.open_where(|p| !house.elsewhere.has(p))
        })
    }

    /// A part of what is open: about `size`, but to a piece's end, for only whole pieces can be passed on.
    pub(in crate::stripe) fn pick(&mut self, open: &Open, size: u64, least: u64) -> Option<ByteRange> {
        let size = size.max(1);
        if open.back {
            let last = open.ranges.last()?;
            let start = last.end.saturating_sub(size);
            return Some(ByteRange::new((start - start % PIECE).max(last.start), last.end));
        }
        let from = if self.household.elsewhere.is_empty() {
            let fits = open.ranges.iter().find(|r| r.len() >= least);
            *fits.or_else(|| open.ranges.iter().max_by_key(|r| r.len()))?
        } else {
            self.out_of_the_way(open, size)?
        };
        let end = from
            .start
            .saturating_add(size)
            .div_ceil(PIECE)
            .saturating_mul(PIECE);
        let end = if end >= from.end || from.end - end < size / 8 {
            from.end
        } else {
            end
        };
        self.household.cursor = end;
        Some(ByteRange::new(from.start, end))
    }

    /// How much of the range a lane may keep that has asked for it already.
    pub(in crate::stripe) fn adoptable(&mut self, range: ByteRange, now: Instant) -> Option<ByteRange> {
        if !self.household.is_in_use() {
            return Some(range);
        }
        self.look_at_sources(now);
        let house = &self.household;
        let check = house.unchecked.range_at(range.start);
        let check = check.filter(|c| house.elsewhere.first_in(c.intersect(range)).is_none());
        let end = match check {
            Some(check) => check.end,
            None => pieces_of(range)
                .find(|&p| house.bars(p))
                .map_or(range.end, |p| bytes_of(p).start),
        };
        (end > range.start).then(|| range.intersect(ByteRange::new(range.start, end)))
    }

    /// Whether uplinks must not help one another with this: others are to bring it.
    pub(in crate::stripe) fn is_barred(&self, range: ByteRange) -> bool {
        self.household.is_in_use() && pieces_of(range).any(|p| self.household.bars(p))
    }

    /// The next check, to the uplink that would be through with it first.
    pub(in crate::stripe) fn check(&mut self, plan: &Plan, now: Instant) -> bool {
        let Some(range) = self.next_check() else {
            return false;
        };
        let bytes = range.len() as f64;
        let idle = plan.lanes.iter().filter(|v| v.idle > 0 || v.ending);
        let best = idle.min_by(|a, b| a.finish(bytes).total_cmp(&b.finish(bytes)));
        best.filter(|v| self.is_best(plan, v, bytes))
            .map(|v: &View| v.id)
            .is_some_and(|id: LaneId| self.start_at(id, range, now))
    }

    /// Who counts, what they hold, and whether they are slow.
    fn look_at_sources(&mut self, now: Instant) {
        let mut held = Pieces::default();
        for (&id, source) in &self.household.sources {
            if self.counts(id, now) {
                held.join(&source.holds);
            }
        }
        self.household.held = held;
        let (sources, uplinks) = self.rates();
        let least = if self.household.slow {
            QUICK_SOURCES
        } else {
            SLOW_SOURCES
        };
        self.household.slow = sources.is_some_and(|rate| rate < least * uplinks);
    }

    /// Bytes a second of the sources that could bring something, where all of them are measured, and of the uplinks.
    fn rates(&self) -> (Option<f64>, f64) {
        let mut sources = Some(0.0);
        let mut any = false;
        for (id, source) in &self.household.sources {
            let Some(lane) = self.lanes.get(id).filter(|l| l.is_usable() && !l.probation) else {
                continue;
            };
            let wanted = |r| source.holds.first_in(r).is_some();
            if lane.leases > 0 || self.ledger.free.iter().any(wanted) {
                sources = sources.zip(lane.settled_rate()).map(|(sum, rate)| sum + rate);
                any = true;
            }
        }
        let uplinks = self.lanes.values().filter(|l| !l.source && l.is_usable());
        let sum = uplinks.map(|l| l.rate().unwrap_or(DEFAULT_RATE)).sum();
        (sources.filter(|_| any), sum)
    }

    /// The free bytes in pieces that are allowed.
    fn open_where(&self, allowed: impl Fn(u64) -> bool) -> Open {
        let mut open = Open::default();
        for range in self.ledger.free.iter() {
            let mut from = range.start;
            for piece in pieces_of(range) {
                if !allowed(piece) {
                    open.push(ByteRange::new(from, bytes_of(piece).start));
                    from = bytes_of(piece).end;
                }
            }
            open.push(ByteRange::new(from, range.end));
        }
        open
    }

    /// Where to go on while others fetch too: where the last lease ended, else anywhere. All would meet at the front.
    fn out_of_the_way(&mut self, open: &Open, size: u64) -> Option<ByteRange> {
        let cursor = self.household.cursor;
        let ahead = open.ranges.iter().find(|r| r.start <= cursor && cursor < r.end);
        if let Some(range) = ahead {
            return Some(ByteRange::new(cursor, range.end));
        }
        let mut at = (random(&mut self.seed) * open.len as f64) as u64;
        for range in &open.ranges {
            if at < range.len() {
                let last = range.end.saturating_sub(size);
                let start = (range.start + at).min(last);
                return Some(ByteRange::new(
                    (start - start % PIECE).max(range.start),
                    range.end,
                ));
            }
            at -= range.len();
        }
        open.ranges.last().copied()
    }

    fn next_check(&self) -> Option<ByteRange> {
        let house = &self.household;
        let free = house.unchecked.iter().flat_map(|c| self.ledger.free.within(c));
        let parts = free.flat_map(|r| pieces_of(r).map(move |p| (p, r.intersect(bytes_of(p)))));
        parts
            .filter(|(p, _)| !house.elsewhere.has(*p))
            .map(|(_, r)| r)
            .next()
    }
}

impl super::Household {
    /// Whether uplinks are to leave this piece alone.
    fn bars(&self, piece: u64) -> bool {
        self.elsewhere.has(piece) || (!self.slow && self.held.has(piece))
    }
}

impl Open {
    fn push(&mut self, range: ByteRange) {
        if !range.is_empty() {
            self.len += range.len();
            self.ranges.push(range);
        }
    }
}
