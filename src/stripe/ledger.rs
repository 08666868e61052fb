//! Who has which bytes: done, free, or leased.
//!
//! Invariant (asserted by [`Ledger::check`]): each byte is in exactly one of *done*, *leased to a lane*, *free*; only
//! two leases that race each other may cover the same byte, and only their remainder may hold bytes that are done.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::PIECE;
use crate::types::RangeSet;

use super::LeaseId;

/// Leases of at least this many pieces end on a piece's border, so that few pieces are shared by two lanes.
const ALIGN_FROM: u64 = 4;

/// How many free ranges are looked at for one that fits: a resumed file can have thousands.
const LOOK_AT: usize = 64;

/// A contiguous range that a lane works through in order.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) lane: LaneId,
    /// What is still to come: from the byte reached to the end.
    pub(super) left: ByteRange,
    /// Where it began.
    pub(super) from: u64,
    pub(super) started: Instant,
    /// Whether it was given to a connection that is open already.
    pub(super) warm: bool,
    pub(super) first_byte: Option<Instant>,
    pub(super) last_byte: Option<Instant>,
    /// The other lease of a tail race.
    pub(super) rival: Option<LeaseId>,
    /// It is the one that took over: it wins once it is ahead, its rival only by bringing everything.
    pub(super) chases: bool,
    /// Was cut short: its connection does not outlive it.
    pub(super) cut: bool,
    /// Is a source's: it may run over bytes that are done, for what it brings are whole pieces.
    pub(super) whole: bool,
    /// Has raced, so part of what is left may have been brought by the other one.
    pub(super) raced: bool,
    /// All but what a round trip brings is there: its successor may be asked for.
    pub(super) ending: bool,
}

/// What [`Ledger::advance`] found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advance {
    pub(super) lane: LaneId,
    /// Bytes that nobody had brought before.
    pub(super) new: u64,
    /// All bytes that belong to the lease, new or not.
    pub(super) taken: u64,
    /// Those that a race brought twice.
    pub(super) twice: u64,
    pub(super) finished: bool,
    /// Everything it has brought, and when the first of it was reported.
    pub(super) brought: u64,
    pub(super) since: Instant,
    /// Its connection can be used again.
    pub(super) reusable: bool,
    /// Somebody else has brought all it has left.
    pub(super) pointless: bool,
    /// A rival that is no longer needed: it was overtaken, or all it had left is done.
    pub(super) beaten: Option<LeaseId>,
}

#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) total: u64,
    pub(super) done: RangeSet,
    pub(super) free: RangeSet,
    /// The part of `free` that was handed back; it goes first.
    returned: RangeSet,
    pub(super) leases: BTreeMap<LeaseId, Lease>,
    next: u64,
    pub(super) duplicated: u64,
}

impl Ledger {
    pub(super) fn new(total: u64, done: &RangeSet) -> Self {
        let all = ByteRange::new(0, total);
        Self {
            total,
            done: done.within(all).collect(),
            free: done.gaps(all).into_iter().collect(),
            returned: RangeSet::new(),
            leases: BTreeMap::new(),
            next: 0,
            duplicated: 0,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done.len() == self.total
    }

    /// Bytes nobody has brought yet.
    pub(super) fn missing(&self) -> u64 {
        self.total - self.done.len()
    }

    /// Leases up to `size` bytes of what is free: the first range that has at least `least`, else the longest.
    /// Returned ranges go first; a small fragment can cost a fast lane a request for next to nothing.
    pub(super) fn take(
        &mut self,
        lane: LaneId,
        size: u64,
        least: u64,
        warm: bool,
        now: Instant,
    ) -> Option<(LeaseId, ByteRange)> {
        let queue = || {
            self.returned
                .iter()
                .take(LOOK_AT)
                .chain(self.free.iter().take(LOOK_AT))
        };
        let fits = queue().find(|r| r.len() >= least);
        let from = fits.or_else(|| queue().reduce(|best, r| if r.len() > best.len() { r } else { best }))?;
        let mut end = from.end.min(from.start.saturating_add(size.max(1)));
        if from.end - end < size / 8 {
            end = from.end;
        } else if end - from.start >= ALIGN_FROM * PIECE {
            end -= end % PIECE;
        }
        let range = ByteRange::new(from.start, end);
        Some((self.lease(lane, range, warm, now), range))
    }

    /// Leases the free bytes from `range.start` on, as far as they reach.
    pub(super) fn take_at(
        &mut self,
        lane: LaneId,
        range: ByteRange,
        now: Instant,
    ) -> Option<(LeaseId, ByteRange)> {
        let range = self.free.range_at(range.start)?.intersect(range);
        if range.is_empty() {
            return None;
        }
        let id = self.lease(lane, range, true, now);
        self.leases.get_mut(&id)?.first_byte = Some(now);
        Some((id, range))
    }

    /// Leases exactly this range: free bytes, and for a source done ones between them.
    pub(super) fn take_exactly(
        &mut self,
        lane: LaneId,
        range: ByteRange,
        whole: bool,
        warm: bool,
        now: Instant,
    ) -> LeaseId {
        let id = self.lease(lane, range, warm, now);
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.whole = whole;
        }
        id
    }

    /// A second lease on what the first has left; `None` where that one races already or is gone.
    pub(super) fn race(
        &mut self,
        against: LeaseId,
        lane: LaneId,
        warm: bool,
        now: Instant,
    ) -> Option<(LeaseId, ByteRange)> {
        let range = self.leases.get(&against).filter(|l| l.rival.is_none())?.left;
        let id = self.lease(lane, range, warm, now);
        for (one, other) in [(id, against), (against, id)] {
            let lease = self.leases.get_mut(&one)?;
            lease.rival = Some(other);
            lease.raced = true;
            lease.chases = one == id;
        }
        Some((id, range))
    }

    /// The next `n` bytes of a lease have come. `None` where the lease is over.
    pub(super) fn advance(&mut self, id: LeaseId, n: u64, now: Instant) -> Option<Advance> {
        let lease = self.leases.get_mut(&id)?;
        let start = lease.left.start;
        let came = ByteRange::new(start, lease.left.end.min(start.saturating_add(n)));
        lease.left = ByteRange::new(came.end, lease.left.end);
        let since = *lease.first_byte.get_or_insert(now);
        let brought = came.end - lease.from;
        lease.last_byte = Some(now);
        let (lease_left, raced, cut, whole) = (lease.left, lease.raced, lease.cut, lease.whole);
        let (lane, finished, rival, chases) = (lease.lane, lease.left.is_empty(), lease.rival, lease.chases);
        let new = self.done.insert(came);
        let twice = if whole { 0 } else { came.len() - new };
        self.duplicated += twice;
        let pointless = !finished && raced && self.done.contains(lease_left);
        let beaten = rival.filter(|r| {
            self.leases
                .get(r)
                .is_some_and(|r| (chases && came.end > r.left.start) || self.done.contains(r.left))
        });
        if finished {
            self.drop_lease(id);
        }
        Some(Advance {
            lane,
            new,
            taken: came.len(),
            twice,
            finished,
            brought,
            since,
            reusable: finished && !cut,
            pointless,
            beaten,
        })
    }

    /// Notes that a lease is about to end where it has no more than `bytes` left; says whether that is news.
    pub(super) fn ends_soon(&mut self, id: LeaseId, bytes: f64) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else {
            return false;
        };
        let news = !lease.ending && lease.left.len() as f64 <= bytes;
        lease.ending |= news;
        news
    }

    /// Ends a lease; what it has not brought is free again (unless its rival still has it) and goes first.
    pub(super) fn release(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.drop_lease(id)?;
        self.hand_back(lease.left);
        Some(lease)
    }

    /// Ends a lease earlier, at `end`, past what it has reached; what lies behind is free. Not for leases that race.
    pub(super) fn cut(&mut self, id: LeaseId, end: u64) {
        let Some(lease) = self.leases.get_mut(&id).filter(|l| l.rival.is_none()) else {
            return;
        };
        if end <= lease.left.start || lease.left.end <= end {
            return;
        }
        let tail = ByteRange::new(end, lease.left.end);
        lease.left = ByteRange::new(lease.left.start, end);
        lease.cut = true;
        for part in self.done.gaps(tail) {
            self.free.insert(part);
        }
    }

    /// Bytes that were done are not.
    pub(super) fn lost(&mut self, range: ByteRange) {
        let gone: Vec<ByteRange> = self.done.within(range).collect();
        for range in gone {
            self.done.remove(range);
            self.hand_back(range);
        }
    }

    /// The leases of one lane, with their ids, in order.
    pub(super) fn of_lane(&self, lane: LaneId) -> impl Iterator<Item = (LeaseId, &Lease)> + '_ {
        self.leases
            .iter()
            .filter(move |(_, l)| l.lane == lane)
            .map(|(&id, l)| (id, l))
    }

    fn lease(&mut self, lane: LaneId, range: ByteRange, warm: bool, now: Instant) -> LeaseId {
        let id = LeaseId(self.next);
        self.next += 1;
        self.free.remove(range);
        self.returned.remove(range);
        let lease = Lease {
            lane,
            left: range,
            from: range.start,
            started: now,
            warm,
            first_byte: None,
            last_byte: None,
            rival: None,
            chases: false,
            whole: false,
            raced: false,
            cut: false,
            ending: false,
        };
        self.leases.insert(id, lease);
        id
    }

    fn drop_lease(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        if let Some(rival) = lease.rival.and_then(|r| self.leases.get_mut(&r)) {
            rival.rival = None;
        }
        Some(lease)
    }

    /// Frees what of the range is neither done nor leased.
    fn hand_back(&mut self, range: ByteRange) {
        let mut open: RangeSet = self.done.gaps(range).into_iter().collect();
        for lease in self.leases.values() {
            open.remove(lease.left);
        }
        for part in &open {
            self.free.insert(part);
            self.returned.insert(part);
        }
    }

    /// What is wrong with the books, if anything. Costs a walk over everything: for tests.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut all = RangeSet::new();
        for (id, lease) in &self.leases {
            let rival = lease.rival.and_then(|r| self.leases.get(&r));
            if lease.left.is_empty() {
                return Err(format!("{id:?} is empty"));
            }
            if lease.rival.is_some() && rival.is_none_or(|r| r.rival != Some(*id) || r.lane == lease.lane) {
                return Err(format!("{id:?} races {:?}, which does not race it", lease.rival));
            }
            if self.free.overlap(lease.left) > 0 {
                return Err(format!("{id:?} {} is partly free", lease.left));
            }
            if !lease.raced && !lease.whole && self.done.overlap(lease.left) > 0 {
                return Err(format!("{id:?} {} is partly done", lease.left));
            }
            if all.overlap(lease.left) > rival.map_or(0, |r| r.left.intersect(lease.left).len()) {
                return Err(format!(
                    "{id:?} {} is leased to a lane it does not race",
                    lease.left
                ));
            }
            all.insert(lease.left);
        }
        if self.free.iter().any(|r| self.done.overlap(r) > 0) {
            return Err("bytes are free and done".to_owned());
        }
        if self.returned.iter().any(|r| !self.free.contains(r)) {
            return Err("returned bytes are not free".to_owned());
        }
        for range in self.free.iter().chain(&self.done) {
            all.insert(range);
        }
        if all.len() != self.total {
            return Err(format!("{} bytes are nobody's", self.total - all.len()));
        }
        Ok(())
    }
}
