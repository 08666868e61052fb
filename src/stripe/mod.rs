#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! The pure scheduler of a striped transfer: which byte range each lane works on next.
//!
//! It never touches a socket, a clock or a file. Same seed and same calls give the same actions.
//!
//! **Driving it.** Make one change (any `&mut` method), drain [`Scheduler::poll_action`], sleep until
//! [`Scheduler::poll_timeout`] or the next event, then call [`Scheduler::tick`].
//!
//! **Invariants** (see [`Scheduler::check_invariants`]): each byte is in exactly one of *done*, *leased to a lane*,
//! *free*, and only in the tail race leased to two lanes; a lane never has more leases than slots, but for one that begins
//! while another ends.
//!
//! **How it decides.**
//! - *Pull.* An idle slot takes the next range (3GOL's greedy). From the measured rates follows when all lanes could be
//!   through with everything (`plan`); a lease is a fraction of what its lane can move until then, so leases are long in
//!   the middle and short at the end: guided self-scheduling (Polychronopoulos and Kuck 1987), with DEMS's aim that all
//!   paths end at once. A lane that would be late with even a small lease gets none. An unmeasured lane's first lease is
//!   small, its second long; what came back from failures and cuts goes first, unless it is so small that a lane would
//!   fall silent over it.
//! - *Overlap.* A lease's successor is asked for a round trip before it ends, over one connection more, where the origin's
//!   share of connections allows it: pipelining (Kaspar 2010) without a server that pipelines.
//! - *Steal.* When nothing is free and a lane would be busy far longer than all others, an idle one takes the back of
//!   its lease (Blumofe and Leiserson's work stealing), in proportion to the two rates; all of it where the lease has
//!   not begun or has fallen silent. Only whoever would be through with the loot first may steal or race, busy lanes
//!   included: that one will be idle soon.
//! - *Tail race.* When a lane could finish another's rest at least twice as soon, it takes it over from the byte
//!   reached; the loser is cancelled (Dean and Barroso, The Tail at Scale). Never onto a metered lane.
//! - *Sources.* Lanes that bring only what a holder of the household has: see `sources`.
//! - *Stalls.* A silent lane loses its leases and is parked, unless no other lane could do better.

mod config;
mod decide;
mod lane;
mod ledger;
mod parts;
mod plan;
mod snapshot;
mod sources;
mod stall;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use parts::Part;
pub use parts::PartAction;
pub use parts::Parts;
pub use parts::PartsConfig;
pub use parts::Work;
pub use snapshot::LaneSnapshot;
pub use snapshot::LaneState;
pub use snapshot::Pause;
pub use snapshot::Snapshot;
pub use snapshot::Why;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::RangeSet;
use crate::types::Rate;

use lane::Lane;
use lane::Standing;
use ledger::Ledger;
use sources::Household;

/// A lease: unique in one [`Scheduler`], never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// What is known about a lane when it comes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSpec {
    /// Concurrent leases, that is connections; 1 to 6 (others are clamped). 2 hide the silence between two requests.
    pub slots: usize,
    /// Costs money: no tail race onto it.
    pub metered: bool,
    /// Its rate as known from before; `None`: nothing is known.
    pub hint: Option<Rate>,
    /// Estimate of the time from a request on an open connection to its first byte; zero: unknown.
    pub latency: Duration,
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a ranged request for exactly this range on this lane.
    Start {
        /// Names the lease in later calls.
        lease: LeaseId,
        /// The lane to use.
        lane: LaneId,
        /// The bytes to ask for.
        range: ByteRange,
    },
    /// The lease now ends here: stop there and drop the connection.
    Shrink {
        /// Which one.
        lease: LeaseId,
        /// One past the last byte that is wanted.
        end: u64,
    },
    /// Stop at once and drop the connection: somebody else has it, or the lane is stalled.
    Cancel {
        /// Which one.
        lease: LeaseId,
    },
    /// All bytes are done. Said once (and once more if [`Scheduler::lost`] took bytes back after it).
    Done,
}

/// Why a lease failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Connection lost, reset, truncated, timed out, bad framing: a strike; three park the lane.
    Broken,
    /// 429 or 503: no strike; the lane's slots are halved and it is parked for so long.
    Refused {
        /// What the origin asked for; `None`: [`Config::park`].
        retry_after: Option<Duration>,
    },
    /// This lane can't serve this job (403 while others work, another generation): never again.
    Ineligible,
    /// The origin's fault (5xx): no strike; a short, growing pause of this lane.
    Origin,
}

/// The scheduler of one transfer. See the module's words for how to drive it.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Config,
    ledger: Ledger,
    lanes: BTreeMap<LaneId, Lane>,
    household: Household,
    actions: VecDeque<Action>,
    said_done: bool,
    /// State of a small random generator (SplitMix64): only spreads parking times.
    seed: u64,
    /// Something changed since the last decision.
    dirty: bool,
    /// The caller's time at its last call, and at its last `tick`.
    now: Instant,
    ticked: Instant,
}

impl Scheduler {
    /// A transfer of `total` bytes, of which `done` are there already.
    pub fn new(config: Config, total: u64, done: &RangeSet, seed: u64, now: Instant) -> Self {
        let ledger = Ledger::new(total, done);
        Self {
            config,
            ledger,
            lanes: BTreeMap::new(),
            household: Household::default(),
            actions: VecDeque::new(),
            said_done: false,
            seed,
            dirty: true,
            now,
            ticked: now,
        }
    }

    /// A lane can be used. One that is up already only gets its metered flag, slots and hint replaced.
    pub fn lane_up(&mut self, lane: LaneId, spec: LaneSpec, now: Instant) {
        self.now = now;
        match self.lanes.get_mut(&lane) {
            Some(known) => known.respec(spec),
            None => {
                self.lanes.insert(lane, Lane::new(spec, now));
            }
        }
        self.dirty = true;
    }

    /// A lane is gone; its leases are over and what they have not brought is free. No `Cancel` follows.
    pub fn lane_down(&mut self, lane: LaneId, now: Instant) {
        self.now = now;
        let leases: Vec<LeaseId> = self.ledger.of_lane(lane).map(|(id, _)| id).collect();
        for id in leases {
            self.ledger.release(id);
        }
        self.lanes.remove(&lane);
        self.household.forget(lane);
        self.dirty = true;
    }

    /// A lease the caller has under way already (the probe's answer): as much of `range` from its start as is free
    /// becomes leased to the lane; `Shrink` follows where that is not all. `None` where the first byte is not free, or
    /// the lane is unknown or has no slot left; so call it right after `lane_up`, before the actions are drained.
    pub fn adopt(&mut self, lane: LaneId, range: ByteRange, now: Instant) -> Option<LeaseId> {
        self.now = now;
        let may = self.adoptable(range, now)?;
        let up = self
            .lanes
            .get_mut(&lane)
            .filter(|l| l.idle_slots() > 0 && !l.source)?;
        let (id, got) = self.ledger.take_at(lane, may, now)?;
        up.adopted(now);
        if got.end < range.end {
            self.actions.push_back(Action::Shrink {
                lease: id,
                end: got.end,
            });
        }
        self.dirty = true;
        Some(id)
    }

    /// The next `n` bytes of the lease, in order, are written. Returns how many of them were new (a race's loser
    /// brings none). Cheap: nothing is decided unless the lease ends.
    pub fn bytes(&mut self, lease: LeaseId, n: u64, now: Instant) -> u64 {
        self.now = now;
        let Some(waiting) = self
            .ledger
            .leases
            .get(&lease)
            .map(|l| (l.first_byte.is_none(), l.warm, l.started, l.left.start))
        else {
            return 0;
        };
        let Some(came) = self.ledger.advance(lease, n, now) else {
            return 0;
        };
        if let Some(lane) = self.lanes.get_mut(&came.lane) {
            if let (true, warm, started, _) = waiting {
                lane.first_byte(now.saturating_duration_since(started), warm, now);
            }
            lane.add_bytes(came.taken, came.new, now);
            if came.finished {
                lane.lease_ended(true, true, came.reusable, now);
                lane.moved_at_least(came.brought, now.saturating_duration_since(came.since));
            }
        }
        self.household
            .came(ByteRange::new(waiting.3, waiting.3 + came.taken));
        let uplink = self.lanes.get(&came.lane).filter(|l| !l.source);
        let ahead = uplink.map_or(0.0, Lane::round_trips_worth);
        if !came.finished && self.ledger.ends_soon(lease, ahead) {
            self.dirty = true;
        }
        if let Some(loser) = came.beaten {
            self.cancel(loser, now);
        }
        let limit = config::RACE_LIMIT * self.ledger.total as f64;
        let ends = came.pointless || (came.twice > 0 && self.ledger.duplicated as f64 > limit);
        if ends && !came.finished {
            self.cancel(lease, now);
        }
        if came.finished || ends || came.beaten.is_some() {
            self.dirty = true;
        }
        came.new
    }

    /// The lease failed; what it has not brought is free again and goes first.
    pub fn lease_failed(&mut self, lease: LeaseId, why: Failure, now: Instant) {
        self.now = now;
        let Some(id) = self.ledger.leases.get(&lease).map(|l| l.lane) else {
            return;
        };
        self.end_lease(lease, now);
        let jitter = random(&mut self.seed);
        if let Some(lane) = self.lanes.get_mut(&id) {
            match why {
                Failure::Broken => lane.strike(&self.config, jitter, now),
                Failure::Refused { retry_after } => lane.refused(retry_after, &self.config, now),
                Failure::Ineligible => lane.standing = Standing::Never,
                Failure::Origin => lane.origin_failed(now),
            }
        }
        if why == Failure::Ineligible {
            self.cancel_lane(id, now);
        }
        self.dirty = true;
    }

    /// Bytes that turned out bad or lost (failed sync, wrong hash) are free again.
    pub fn lost(&mut self, range: ByteRange, now: Instant) {
        self.now = now;
        self.ledger.lost(range);
        self.checks_changed(now);
        self.said_done &= self.ledger.is_complete();
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
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() && std::mem::take(&mut self.dirty) {
            self.decide(self.now);
        }
        self.actions.pop_front()
    }

    /// When [`Scheduler::tick`] is to be called, at the latest. `None`: only an event can change anything.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timeout()
    }

    /// Where the transfer stands.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let nothing_free = self.load().free == 0;
        snapshot::take(
            &self.ledger,
            &self.lanes,
            nothing_free,
            |id| self.is_overdue(id, now),
            now,
        )
    }

    /// What is wrong with the books, if anything: see the module's invariants. Walks over everything; for tests.
    ///
    /// # Errors
    /// The first broken invariant, in words.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.ledger.check()?;
        for (id, lane) in &self.lanes {
            let leases = self.ledger.of_lane(*id).count();
            let flowing = self
                .ledger
                .of_lane(*id)
                .filter(|(_, l)| l.first_byte.is_some())
                .count();
            if leases != lane.leases || flowing > lane.flowing {
                return Err(format!(
                    "{id} has {leases} leases ({flowing} flow) but counts {} ({})",
                    lane.leases, lane.flowing
                ));
            }
            // One may begin while another ends.
            let most = config::MAX_LANE_SLOTS + 1;
            if leases > most {
                return Err(format!("{id} has {leases} leases in {most} slots"));
            }
        }
        self.check_household()?;
        match self
            .ledger
            .leases
            .values()
            .find(|l| !self.lanes.contains_key(&l.lane))
        {
            Some(lease) => Err(format!("{} is gone but has a lease", lease.lane)),
            None => Ok(()),
        }
    }

    /// Ends a lease before its end; its connection is lost. Says whether there was one.
    fn end_lease(&mut self, id: LeaseId, now: Instant) -> bool {
        let Some(lease) = self.ledger.release(id) else {
            return false;
        };
        if let Some(lane) = self.lanes.get_mut(&lease.lane) {
            lane.lease_ended(lease.first_byte.is_some(), false, false, now);
        }
        true
    }
}

/// A number from 0 to 1 (SplitMix64).
fn random(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as f64 / u64::MAX as f64
}
