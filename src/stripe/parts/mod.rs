//! The pure scheduler of an upload: which indivisible part each lane sends next.
//!
//! A part that a lane has begun is finished by that lane or lost: nothing can be cut off it, as with a download's lease.
//! It is driven like [`super::Scheduler`]: make one change, drain [`Parts::poll_action`], sleep until
//! [`Parts::poll_timeout`] or the next event, call [`Parts::tick`].
//!
//! **Invariants** (see [`Parts::check_invariants`]): each byte (carved work) or item (fixed work) is exactly one of
//! *stored*, *in flight*, *free*, and only in a race in flight twice, over two lanes; every part obeys its work's rules;
//! no lane has more parts in flight than slots, and all together no more than [`PartsConfig::connections`].

mod carve;
mod config;
mod decide;
mod leases;
mod outlook;
mod pack;
mod race;
mod recall;
mod stall;
mod stock;

#[cfg(test)]
mod tests;

pub use config::PartsConfig;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::time::Instant;

use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::RangeSet;

use super::Config;
use super::Failure;
use super::LaneSpec;
use super::LeaseId;
use super::Snapshot;
use super::lane::Lane;
use super::lane::Standing;
use super::snapshot;

use leases::Leases;
use stock::Stock;

/// Bytes that are "sent" as soon as a connection is there: they fit into buffers.
const SWALLOWED: u64 = 64 << 10;

/// Seconds a part is overdue after which its lane, if it loses it, has to prove itself.
const SUSPECT: f64 = 1.0;

/// What there is to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// One file: parts are carved as they are handed out. Each begins at a multiple of `grain`, is at least `least` long
    /// (but the one that ends at `total`) and at most `most` (or twice `least`, where only that leaves nothing too
    /// short); nothing shorter than `least` is ever left between two parts.
    Carved {
        /// Bytes of the file.
        total: u64,
        /// Parts begin at multiples of it.
        grain: u64,
        /// Least length of a part; taken as the next multiple of `grain`.
        least: u64,
        /// Greatest length of a part.
        most: u64,
        /// What an earlier run has sent. Gaps shorter than `least` that it left are sent as they are.
        done: RangeSet,
    },
    /// Items that can't be cut: files, or equal parts of one file.
    Fixed {
        /// The size of each; may be 0.
        sizes: Vec<u64>,
        /// Those an earlier run has sent, by index.
        done: BTreeSet<usize>,
    },
}

/// What one lane sends in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    /// Carved work: 0. Fixed work: the item's index.
    pub item: usize,
    /// Carved work: the range in the file. Fixed work: all of the item, from 0.
    pub range: ByteRange,
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartAction {
    /// Send this part over this lane.
    Send {
        /// Names it in later calls.
        lease: LeaseId,
        /// The lane to use.
        lane: LaneId,
        /// What to send.
        part: Part,
    },
    /// Stop at once and drop the connection: another copy was first, or the lane is stalled.
    Cancel {
        /// Which one.
        lease: LeaseId,
    },
    /// The server has everything. Said once (and again after [`Parts::lost`] took something back).
    Done,
}

/// The scheduler of one upload. See the module's words for how to drive it.
#[derive(Clone, Debug)]
pub struct Parts {
    config: PartsConfig,
    lane_config: Config,
    stock: Stock,
    leases: Leases,
    lanes: BTreeMap<LaneId, Lane>,
    actions: VecDeque<PartAction>,
    said_done: bool,
    /// State of a small random generator: only spreads parking times.
    seed: u64,
    /// Something changed since the last decision.
    dirty: bool,
    /// The caller's time at its last call, and at its last `tick`.
    now: Instant,
    ticked: Instant,
}

impl Parts {
    /// An upload of what of `work` is not done yet.
    pub fn new(config: PartsConfig, work: Work, seed: u64, now: Instant) -> Self {
        Self {
            lane_config: config.for_lanes(),
            config,
            stock: Stock::new(work),
            leases: Leases::default(),
            lanes: BTreeMap::new(),
            actions: VecDeque::new(),
            said_done: false,
            seed,
            dirty: true,
            now,
            ticked: now,
        }
    }

    /// A lane can be used. `slots` are the parts it may have in flight, of which one is on the uplink and the others await
    /// answers or are small: give it all it may have, the scheduler uses as many as help and keeps to
    /// [`PartsConfig::connections`]. `latency` is a round trip's. One that is up already gets only its spec replaced.
    pub fn lane_up(&mut self, lane: LaneId, spec: LaneSpec, now: Instant) {
        self.now = now;
        match self.lanes.get_mut(&lane) {
            Some(known) => known.respec(spec),
            None => {
                let mut new = Lane::new(spec, now);
                // A refusal means the slots, as no part begins beyond them.
                new.overlaps = false;
                self.lanes.insert(lane, new);
            }
        }
        self.dirty = true;
    }

    /// A lane is gone; its parts are free again. No `Cancel` follows.
    pub fn lane_down(&mut self, lane: LaneId, now: Instant) {
        self.now = now;
        for id in self.leases.of_lane(lane) {
            self.end_lease(id, now);
        }
        self.lanes.remove(&lane);
        self.dirty = true;
    }

    /// `n` bytes more of the part have left over the lane's uplink; what exceeds the part is the caller's overhead.
    pub fn sent(&mut self, lease: LeaseId, n: u64, now: Instant) {
        self.now = now;
        let Some(was) = self.leases.sent(lease, n, now) else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(&was.lane) else {
            return;
        };
        if was.first {
            lane.part_began(now.saturating_duration_since(was.started), was.warm, now);
        }
        // What sockets take at once says nothing of the line.
        let swallowed = if was.first && lane.flowing == 1 {
            SWALLOWED
        } else {
            0
        };
        lane.add_bytes(was.new.saturating_sub(swallowed), 0, now);
        if was.all {
            lane.part_sent(now);
        }
        self.dirty |= was.first || was.all || self.is_hungry(was.lane);
    }

    /// The server confirmed the part. False: another copy was first, or the lease is over.
    pub fn stored(&mut self, lease: LeaseId, now: Instant) -> bool {
        self.now = now;
        let Some(left) = self.leases.get(lease).map(|l| (!l.is_sent()).then(|| l.left())) else {
            return false;
        };
        // Whoever confirms it has received it.
        if let Some(left) = left {
            self.sent(lease, left, now);
        }
        // First, as long as it is known that its part is not to be given back.
        if let Some(rival) = self.leases.get(lease).and_then(|l| l.rival) {
            self.cancel(rival, now);
        }
        let Some(over) = self.leases.end(lease) else {
            return false;
        };
        self.stock.store(over.part);
        if let Some(lane) = self.lanes.get_mut(&over.lane) {
            lane.bytes += over.part.range.len();
            if let Some(began) = over.first_sent {
                lane.moved_at_least(over.part.range.len(), now.saturating_duration_since(began));
            }
            // Where its end was not seen to leave, or there was nothing to send, nothing is learned of the answer.
            if let (None, Some(_), Some(sent)) = (left, over.first_sent, over.all_sent) {
                lane.part_answered(now.saturating_duration_since(sent));
            }
            lane.lease_ended(false, true, true, now);
        }
        self.dirty = true;
        true
    }

    /// The part failed; unless another lane has it too it is free again.
    pub fn lease_failed(&mut self, lease: LeaseId, why: Failure, now: Instant) {
        self.now = now;
        let Some(id) = self.leases.get(lease).map(|l| l.lane) else {
            return;
        };
        self.end_lease(lease, now);
        let jitter = super::random(&mut self.seed);
        if let Some(lane) = self.lanes.get_mut(&id) {
            match why {
                Failure::Broken => lane.strike(&self.lane_config, jitter, now),
                Failure::Refused { retry_after } => lane.refused(retry_after, &self.lane_config, now),
                Failure::Ineligible => lane.standing = Standing::Never,
                Failure::Origin => lane.origin_failed(now),
            }
        }
        if why == Failure::Ineligible {
            self.cancel_lane(id, now);
        }
        self.dirty = true;
    }

    /// The server no longer has this part, or never had it: what of it was stored is free again.
    pub fn lost(&mut self, part: Part, now: Instant) {
        self.now = now;
        self.stock.lose(part);
        self.said_done &= self.stock.is_complete();
        self.dirty = true;
    }

    /// Time has passed: looks for stalls, ends waits, decides again.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
        self.ticked = now;
        self.watch(now);
        self.dirty = true;
    }

    /// The next thing to do, if any. Decides here, so that several changes can be made before.
    pub fn poll_action(&mut self) -> Option<PartAction> {
        if self.actions.is_empty() && std::mem::take(&mut self.dirty) {
            self.decide(self.now);
        }
        self.actions.pop_front()
    }

    /// When [`Parts::tick`] is to be called, at the latest. `None`: only an event can change anything.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timeout()
    }

    /// Where the upload stands: `done` are bytes the server has confirmed, a lane's `bytes` those it got there;
    /// `duplicated` were sent in vain by copies that were not first.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot {
            total: self.stock.total(),
            done: self.stock.stored_bytes(),
            duplicated: self.leases.in_vain,
            lanes: snapshot::lanes(
                &self.lanes,
                self.stock.nothing_free(),
                |id| self.is_overdue(id, now),
                now,
            ),
        }
    }

    /// What is wrong with the books, if anything: see the module's invariants. Walks over everything; for tests.
    ///
    /// # Errors
    /// The first broken invariant, in words.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.leases.check()?;
        self.stock.check(self.leases.parts())?;
        if self.leases.len() > self.config.connections.max(1) {
            return Err(format!("{} parts are in flight", self.leases.len()));
        }
        for (id, lane) in &self.lanes {
            let (all, flowing) = self.leases.count(*id);
            if (all, flowing) != (lane.leases, lane.flowing) {
                return Err(format!(
                    "{id} has {all} parts ({flowing} flow) but counts {} ({})",
                    lane.leases, lane.flowing
                ));
            }
            if all > super::config::MAX_LANE_SLOTS {
                return Err(format!("{id} has {all} parts in flight"));
            }
        }
        match self.leases.lanes().find(|l| !self.lanes.contains_key(l)) {
            Some(lane) => Err(format!("{lane} is gone but has a part")),
            None => Ok(()),
        }
    }

    /// Ends a lease before the server confirmed it; its connection is lost. Says whether there was one.
    fn end_lease(&mut self, id: LeaseId, now: Instant) -> bool {
        let Some(over) = self.leases.end(id) else {
            return false;
        };
        if let Some(lane) = self.lanes.get_mut(&over.lane) {
            lane.lease_ended(over.is_flowing(), false, false, now);
            if !over.is_flowing() {
                lane.part_unanswered(now.saturating_duration_since(over.all_sent.unwrap_or(over.started)));
            }
        }
        self.leases.in_vain += over.sent;
        // Unless the other copy lives.
        if over.rival.is_none() {
            self.stock.give_back(over.part);
        }
        true
    }

    /// Ends a lease and says so.
    fn cancel(&mut self, id: LeaseId, now: Instant) {
        self.suspect(id, now);
        if self.end_lease(id, now) {
            self.actions.push_back(PartAction::Cancel { lease: id });
        }
    }

    /// A lane of whose part nothing has come for long has to prove itself before more is planned for it: else lanes that
    /// are dead would take the part from each other for ever.
    fn suspect(&mut self, id: LeaseId, now: Instant) {
        let Some(lease) = self.leases.get(id) else { return };
        let Some(lane) = self.lanes.get_mut(&lease.lane) else {
            return;
        };
        let since = |t: Instant| now.saturating_duration_since(t).as_secs_f64();
        let late = match (lease.all_sent, lease.first_sent) {
            (Some(sent), _) => since(sent) - 2.0 * lane.latency(),
            (None, None) => since(lease.started) - 2.0 * lane.setup(),
            (None, Some(_)) => lane.remarkable_silence(now),
        };
        lane.probation |= late > SUSPECT;
    }

    /// Cancels all leases of a lane.
    fn cancel_lane(&mut self, lane: LaneId, now: Instant) {
        for id in self.leases.of_lane(lane) {
            self.cancel(id, now);
        }
    }
}
