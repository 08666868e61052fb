//! The parts in flight.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::types::LaneId;

use super::LeaseId;
use super::Part;

/// One part on one lane, from the order to send it to the server's answer.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) lane: LaneId,
    pub(super) part: Part,
    pub(super) sent: u64,
    pub(super) started: Instant,
    /// Whether it was given to a connection that is open already.
    pub(super) warm: bool,
    pub(super) first_sent: Option<Instant>,
    pub(super) last_sent: Option<Instant>,
    /// Since when only the answer is missing.
    pub(super) all_sent: Option<Instant>,
    /// The other copy.
    pub(super) rival: Option<LeaseId>,
}

impl Lease {
    pub(super) const fn left(&self) -> u64 {
        self.part.range.len().saturating_sub(self.sent)
    }

    pub(super) const fn is_sent(&self) -> bool {
        self.all_sent.is_some()
    }

    pub(super) const fn is_flowing(&self) -> bool {
        self.first_sent.is_some() && self.all_sent.is_none()
    }
}

/// What [`Leases::sent`] changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct WasSent {
    pub(super) lane: LaneId,
    pub(super) new: u64,
    pub(super) first: bool,
    pub(super) all: bool,
    pub(super) started: Instant,
    pub(super) warm: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    all: BTreeMap<LeaseId, Lease>,
    next: u64,
    /// Bytes sent of copies that did not count.
    pub(super) in_vain: u64,
}

impl Leases {
    pub(super) fn begin(&mut self, lane: LaneId, part: Part, warm: bool, now: Instant) -> LeaseId {
        let id = LeaseId(self.next);
        self.next += 1;
        let lease = Lease {
            lane,
            part,
            sent: 0,
            started: now,
            warm,
            first_sent: None,
            last_sent: None,
            // Of nothing, all is sent.
            all_sent: part.range.is_empty().then_some(now),
            rival: None,
        };
        self.all.insert(id, lease);
        id
    }

    /// Makes two leases of the same part rivals.
    pub(super) fn pair(&mut self, a: LeaseId, b: LeaseId) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(lease) = self.all.get_mut(&one) {
                lease.rival = Some(other);
            }
        }
    }

    /// More has left. `None` where the lease is over or all of it had left before.
    pub(super) fn sent(&mut self, id: LeaseId, n: u64, now: Instant) -> Option<WasSent> {
        let lease = self.all.get_mut(&id).filter(|l| !l.is_sent())?;
        let new = n.min(lease.left());
        let first = lease.first_sent.is_none();
        lease.sent += new;
        lease.first_sent.get_or_insert(now);
        lease.last_sent = Some(now);
        let all = lease.left() == 0;
        lease.all_sent = all.then_some(now);
        Some(WasSent {
            lane: lease.lane,
            new,
            first,
            all,
            started: lease.started,
            warm: lease.warm,
        })
    }

    /// Ends a lease; its rival, which is still named in it, has none any more.
    pub(super) fn end(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.all.remove(&id)?;
        if let Some(rival) = lease.rival.and_then(|r| self.all.get_mut(&r)) {
            rival.rival = None;
        }
        Some(lease)
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.all.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> + '_ {
        self.all.iter().map(|(&id, l)| (id, l))
    }

    pub(super) fn of_lane(&self, lane: LaneId) -> Vec<LeaseId> {
        let own = self.iter().filter(|(_, l)| l.lane == lane);
        own.map(|(id, _)| id).collect()
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = LaneId> + '_ {
        self.all.values().map(|l| l.lane)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many the lane has, and how many of them flow.
    pub(super) fn count(&self, lane: LaneId) -> (usize, usize) {
        let own = || self.all.values().filter(|l| l.lane == lane);
        (own().count(), own().filter(|l| l.is_flowing()).count())
    }

    /// Each part once.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let first = self.iter().filter(|(id, l)| l.rival.is_none_or(|r| *id < r));
        first.map(|(_, l)| l.part)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for (id, lease) in self.iter() {
            let Some(rival) = lease.rival else { continue };
            let other = self.get(rival);
            if other.is_none_or(|r| r.rival != Some(id) || r.lane == lease.lane || r.part != lease.part) {
                return Err(format!("{id:?} races {rival:?}, which does not race it"));
            }
        }
        Ok(())
    }
}
