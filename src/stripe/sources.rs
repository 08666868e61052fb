//! The household's part of the scheduler: *sources*, that is lanes that bring only what a holder has, and what other
//! members do at the same time.
//!
//! **Who takes what.** What a usable source holds comes from sources, everything else over uplinks, so that each byte
//! crosses the internet once. Sources take runs of whole pieces, rarest first. Uplinks take the spot checks first, then
//! what nobody holds and nobody else is fetching ([`Scheduler::elsewhere`]); what sources hold only where these are
//! silent, parked, or measured to be much slower than the uplinks, and then from the back.
//!
//! **Invariants** ([`Scheduler::check_invariants`]): a source's lease lies within the whole pieces that it holds, and in
//! none of which a check is unfinished; no uplink's lease begins in, or goes on into, a piece that lies elsewhere, but
//! for the one it had half of already. A scheduler that was never told of sources, `elsewhere` or `checks` decides as if
//! this module were not there.

mod feed;
mod open;
mod pieces;
mod yields;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::RangeSet;

use super::LaneSpec;
use super::Scheduler;
use super::config::SHORT_WAIT;
use super::config::SOURCE_SILENCE;
use super::lane::Lane;
use super::lane::Standing;

use pieces::Pieces;
use pieces::bytes_of;
use pieces::pieces_of;

/// What is known about the household.
#[derive(Clone, Debug, Default)]
pub(super) struct Household {
    sources: BTreeMap<LaneId, Source>,
    /// Pieces that others fetch.
    elsewhere: Pieces,
    /// All checks, and what of them is not done.
    checks: RangeSet,
    unchecked: RangeSet,
    copies: Vec<u8>,
    /// What the sources hold that count, as of the last decision.
    held: Pieces,
    /// Uplinks may take what sources hold, for these are slow.
    slow: bool,
    /// Where the uplinks' last lease ended: the next one goes on from there, out of the way of other members.
    cursor: u64,
}

/// A source.
#[derive(Clone, Debug, Default)]
struct Source {
    holds: Pieces,
    /// The piece after its last lease.
    next: Option<u64>,
}

impl Household {
    /// Whether there is anything that changes a decision.
    fn is_in_use(&self) -> bool {
        !self.sources.is_empty() || !self.unchecked.is_empty() || !self.elsewhere.is_empty()
    }

    pub(super) fn forget(&mut self, lane: LaneId) {
        self.sources.remove(&lane);
    }

    /// These bytes are done.
    pub(super) fn came(&mut self, range: ByteRange) {
        if !self.unchecked.is_empty() {
            self.unchecked.remove(range);
        }
    }

    fn copies_of(&self, piece: u64) -> u8 {
        let at = usize::try_from(piece).ok();
        at.and_then(|at| self.copies.get(at)).copied().unwrap_or(0)
    }
}

impl Scheduler {
    /// A lane that brings only what a holder has: nothing until [`Scheduler::holds`] says what. Everything else is as
    /// for an uplink, but that its leases may run over bytes that are done (they count as come, and are not to be written
    /// again), for what it brings are whole pieces.
    pub fn source_up(&mut self, lane: LaneId, spec: LaneSpec, now: Instant) {
        self.now = now;
        match self.lanes.get_mut(&lane) {
            Some(known) => known.respec(spec),
            None => {
                self.lanes.insert(lane, Lane::source(spec, now));
                self.household.sources.insert(lane, Source::default());
            }
        }
        self.dirty = true;
    }

    /// What the source can bring now, in place of what it could: of this the whole pieces count. Its leases end before
    /// what it can bring no longer.
    pub fn holds(&mut self, lane: LaneId, set: RangeSet, now: Instant) {
        self.now = now;
        if let Some(source) = self.household.sources.get_mut(&lane) {
            source.holds = Pieces::inside(&set, self.ledger.total);
            self.yield_leases(now);
            self.dirty = true;
        }
    }

    /// What other members are fetching over uplinks, in place of what they were; a piece counts as a whole. No uplink
    /// begins there, and own uplink leases end before it where they have not brought half of the first such piece; so
    /// where two members want the same, only the one that is to lose is to be told.
    pub fn elsewhere(&mut self, set: RangeSet, now: Instant) {
        self.now = now;
        self.household.elsewhere = Pieces::touched(&set, self.ledger.total);
        self.yield_leases(now);
        self.dirty = true;
    }

    /// Bytes that must come over an uplink whoever holds them, in place of those before. Those that are done stay done.
    /// Sources get nothing of their pieces until they are done.
    pub fn checks(&mut self, set: RangeSet, now: Instant) {
        self.now = now;
        let all = ByteRange::new(0, self.ledger.total);
        self.household.checks = set.within(all).collect();
        self.checks_changed(now);
        self.dirty = true;
    }

    /// How many members have each piece (missing: none): sources take the rarest first.
    pub fn copies(&mut self, counts: Vec<u8>, now: Instant) {
        self.now = now;
        self.household.copies = counts;
        self.dirty = true;
    }

    /// What the uplinks are leased and have not brought, as whole pieces and without mere checks: nobody else need fetch
    /// it.
    pub fn under_way(&self) -> RangeSet {
        let total = self.ledger.total;
        let mut claims = RangeSet::new();
        for (_, left) in self.uplink_leases() {
            for part in self.household.checks.gaps(left) {
                let whole = pieces_of(part);
                let end = bytes_of(whole.end).start.min(total);
                claims.insert(ByteRange::new(bytes_of(whole.start).start, end));
            }
        }
        claims
    }

    /// Checks were given, or bytes were lost.
    pub(super) fn checks_changed(&mut self, now: Instant) {
        if self.household.checks.is_empty() && self.household.unchecked.is_empty() {
            return;
        }
        let open = self
            .household
            .checks
            .iter()
            .flat_map(|c| self.ledger.done.gaps(c));
        self.household.unchecked = open.collect();
        self.yield_leases(now);
    }

    /// Whether what the source holds is left to it: it is usable, or will be in a moment, and brings what it is asked
    /// for.
    fn counts(&self, id: LaneId, now: Instant) -> bool {
        let stands = |lane: &Lane| match lane.standing {
            Standing::Open => true,
            Standing::Waiting(until) => until <= now + SHORT_WAIT,
            Standing::Never => false,
        };
        let lane = self.lanes.get(&id);
        lane.is_some_and(|l| stands(l) && !l.probation) && !self.is_quiet(id, now)
    }

    /// Whether a source has brought nothing for longer than it takes, though something was asked of it.
    fn is_quiet(&self, id: LaneId, now: Instant) -> bool {
        let Some((lane, since)) = self.lanes.get(&id).zip(self.silent_since(id)) else {
            return false;
        };
        now.saturating_duration_since(since) >= lane.piece_patience().unwrap_or(SOURCE_SILENCE)
    }

    fn is_source(&self, id: LaneId) -> bool {
        self.household.sources.contains_key(&id)
    }

    /// The leases of uplinks, and what each has left.
    fn uplink_leases(&self) -> impl Iterator<Item = (super::LeaseId, ByteRange)> + '_ {
        let own = self.ledger.leases.iter().filter(|(_, l)| !self.is_source(l.lane));
        own.map(|(&id, l)| (id, l.left))
    }

    /// What of the module's invariants does not hold.
    pub(super) fn check_household(&self) -> Result<(), String> {
        let house = &self.household;
        let unchecked = Pieces::touched(&house.unchecked, self.ledger.total);
        for (id, lease) in &self.ledger.leases {
            let left = lease.left;
            if let Some(source) = house.sources.get(&lease.lane) {
                let bad = pieces_of(left).find(|&p| !source.holds.has(p) || unchecked.has(p));
                if let Some(piece) = bad {
                    return Err(format!("{id:?} {left} of a source must not have piece {piece}"));
                }
            } else {
                let own = if left.start > lease.from { 1 } else { 0 };
                let bad = pieces_of(left).skip(own).find(|&p| house.elsewhere.has(p));
                if let Some(piece) = bad {
                    return Err(format!(
                        "{id:?} {left} runs into piece {piece}, which others fetch"
                    ));
                }
            }
        }
        let open: RangeSet = house
            .checks
            .iter()
            .flat_map(|c| self.ledger.done.gaps(c))
            .collect();
        if open != house.unchecked {
            return Err(format!("unchecked is {:?}, not {open:?}", house.unchecked));
        }
        Ok(())
    }
}
