//! Sends all parts: owns the scheduler, carries out what it decides, tells it what happened.
//!
//! One task owns all state; workers tell it things over bounded channels. It makes one change, drains the scheduler's actions,
//! and sleeps until the next event.
//!
//! Invariants: for each lease the scheduler thinks is running there is a worker; when [`Driver::run`] returns, no worker is
//! left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::error::UploadError;
use super::exchange::{Line, Moved, Shared, Trouble, Ways};
use super::members::Member;
use super::{Stop, Target};
use crate::lane::{Lane, LaneInfo, LaneSet};
use crate::stripe::{Failure, LaneSpec, LeaseId, Part, PartAction, Parts, PartsConfig, Snapshot, Work};
use crate::transfer::{Choice, Failing, Phase, Progress, Record, Terms, has, sort_out, unused};
use crate::types::{LaneId, Rate};

/// Connections of a lane: one whose part is on the uplink, others whose answers are awaited.
const SLOTS: usize = 6;
/// Lanes of one upload: each must have a connection, and one server gets 16 at most.
const MAX_LANES: usize = 16;
/// How often progress is published and the clock looked at.
const TICK: Duration = Duration::from_millis(200);
/// Reports that are unread; beyond them the next one of its worker says it all.
const MAX_MOVED: usize = 256;
/// Without a byte for so long the upload gives up; a pause that the server asked for does not count.
const GIVE_UP: Duration = Duration::from_secs(120);
/// After a first wish to stop, parts that are nearly through may end: what they have sent would be sent again.
const GRACE: Duration = Duration::from_secs(2);
/// A lease that is taken away after so long a silence has hung: what is idle beside it goes the same dead way.
const HUNG: Duration = Duration::from_millis(1_500);
/// A server that has a fault over every lane so often in a row has nothing to hope for.
const MAX_FAULTS: u32 = 12;

/// Why a lane is left out that could serve.
const TOO_MANY: &str = "enough lanes are at work: one server gets 16 connections at most";

/// The state of an upload while parts are sent.
#[derive(Debug)]
pub(super) struct Driver {
    shared: Arc<Shared>,
    ways: Arc<Ways>,
    target: Arc<dyn Target>,
    terms: Terms,
    lanes: watch::Receiver<LaneSet>,
    choice: Choice,
    members: BTreeMap<LaneId, Member>,
    /// Lanes that are gone.
    former: Vec<Member>,
    failing: BTreeMap<LaneId, Failing>,
    parts: Parts,
    workers: BTreeMap<LeaseId, Worker>,
    moved: (mpsc::Sender<Moved>, mpsc::Receiver<Moved>),
    ended: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
    progress: watch::Sender<Progress>,
    resumed: u64,
    /// When the last byte went, or the server's pause ends.
    alive: Instant,
    last_failure: String,
    /// Faults of the server in a row.
    faults: u32,
    complete: bool,
}

#[derive(Debug)]
struct Worker {
    lane: LaneId,
    part: Part,
    sent: u64,
    /// When it sent its last bytes, or began.
    heard: Instant,
    _task: AbortOnDropHandle<Option<()>>,
}

/// How a worker ended.
type Ended = (LeaseId, Result<(), Trouble>);

/// What a driver starts from.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) shared: Arc<Shared>,
    pub(super) ways: Arc<Ways>,
    pub(super) target: Arc<dyn Target>,
    pub(super) terms: Terms,
    pub(super) lanes: watch::Receiver<LaneSet>,
    pub(super) work: Work,
    pub(super) resumed: u64,
    pub(super) progress: watch::Sender<Progress>,
}

/// What the lanes did, at the end.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) lanes: Vec<(LaneInfo, u64)>,
    pub(super) best_single: Option<Rate>,
    pub(super) duplicated: u64,
}

impl Driver {
    pub(super) fn new(start: Start, now: Instant) -> Self {
        // Only spreads parking times; any number that differs between runs will do.
        let seed = u64::from(std::process::id());
        Self {
            shared: start.shared,
            ways: start.ways,
            target: start.target,
            terms: start.terms,
            lanes: start.lanes,
            choice: Choice::default(),
            members: BTreeMap::new(),
            former: Vec::new(),
            failing: BTreeMap::new(),
            parts: Parts::new(PartsConfig::default(), start.work, seed, now),
            workers: BTreeMap::new(),
            moved: mpsc::channel(MAX_MOVED),
            // Each worker says it once, and there are fewer.
            ended: mpsc::channel(MAX_LANES * SLOTS),
            progress: start.progress,
            resumed: start.resumed,
            alive: now,
            last_failure: "nothing was tried".to_owned(),
            faults: 0,
            complete: false,
        }
    }

    /// Sends all that is missing.
    pub(super) async fn run(&mut self, stop: &Stop) -> Result<(), UploadError> {
        let result = self.send_all(stop).await;
        self.workers.clear();
        self.publish(if result.is_ok() {
            Phase::Finishing
        } else {
            Phase::Asking
        });
        result
    }

    /// What the lanes did.
    pub(super) fn tally(&self, now: Instant) -> Tally {
        let snapshot = self.parts.snapshot(now);
        let all = || self.former.iter().chain(self.members.values());
        Tally {
            lanes: all().map(|m| (m.info.clone(), m.bytes)).collect(),
            best_single: all().filter_map(|m| m.mean_rate(now)).max(),
            duplicated: snapshot.duplicated,
        }
    }

    async fn send_all(&mut self, stop: &Stop) -> Result<(), UploadError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ends: Option<tokio::time::Instant> = None;
        self.change_lanes();
        loop {
            if ends.is_none() {
                self.act();
            }
            if self.complete {
                return Ok(());
            }
            let timeout = self.parts.poll_timeout();
            let at = timeout.unwrap_or_else(now);
            tokio::select! {
                biased;
                () = stop.abort.cancelled() => return Err(UploadError::Stopped { resumable: false }),
                () = stop.stop.cancelled(), if ends.is_none() => {
                    ends = Some(tokio::time::Instant::now() + GRACE);
                    if self.workers.is_empty() {
                        return Err(UploadError::Stopped { resumable: true });
                    }
                }
                () = until(ends) => return Err(UploadError::Stopped { resumable: true }),
                Some((lease, end)) = self.ended.1.recv() => {
                    self.hear(lease, end)?;
                    if ends.is_some() && self.workers.is_empty() {
                        return Err(UploadError::Stopped { resumable: true });
                    }
                }
                Some(moved) = self.moved.1.recv() => self.moved(moved),
                changed = self.lanes.changed(), if self.lanes.has_changed().is_ok() => {
                    if changed.is_ok() {
                        self.change_lanes();
                    }
                }
                _ = tick.tick() => {
                    self.relieve(now());
                    self.publish(Phase::Striped);
                    self.give_up_if_hopeless()?;
                }
                () = sleep_until(at.into()), if timeout.is_some() && ends.is_none() => {
                    self.parts.tick(now());
                }
            }
        }
    }

    /// Does what the scheduler decided.
    fn act(&mut self) {
        while let Some(action) = self.parts.poll_action() {
            match action {
                PartAction::Send { lease, lane, part } => self.start(lease, lane, part),
                PartAction::Cancel { lease } => {
                    self.close_idle_if_hung(lease);
                    self.forget(lease);
                }
                PartAction::Done => self.complete = true,
            }
        }
    }

    fn start(&mut self, lease: LeaseId, lane: LaneId, part: Part) {
        let now = now();
        let Some(member) = self.members.get_mut(&lane) else {
            return;
        };
        member.activity.started(lease, now);
        tracing::debug!(%lane, ?lease, item = part.item, start = part.range.start, length = part.range.len(), "part begins");
        let line = Line::new(member.way.clone(), lease, self.moved.0.clone());
        let (target, ended) = (self.target.clone(), self.ended.0.clone());
        let task = self.shared.tasks.spawn("part", async move {
            let end = target.send(part, &line).await;
            // Fails only where the driver is gone, and then nobody wants to know.
            let _ = ended.send((lease, end)).await;
        });
        let worker = Worker {
            lane,
            part,
            sent: 0,
            heard: now,
            _task: AbortOnDropHandle::new(task),
        };
        self.workers.insert(lease, worker);
    }

    fn moved(&mut self, Moved(lease, bytes): Moved) {
        let now = now();
        if let Some(worker) = self.workers.get_mut(&lease) {
            worker.heard = now;
            if worker.sent == 0 {
                tracing::debug!(?lease, "part flows");
            }
            worker.sent += bytes;
            if worker.sent >= worker.part.range.len() {
                tracing::debug!(?lease, "part is sent");
            }
            self.alive = self.alive.max(now);
            self.parts.sent(lease, bytes, now);
        }
    }

    fn hear(&mut self, lease: LeaseId, end: Result<(), Trouble>) -> Result<(), UploadError> {
        let now = now();
        let Some(worker) = self.workers.get(&lease) else {
            return Ok(());
        };
        let (lane, part) = (worker.lane, worker.part);
        let trouble = match end {
            Ok(()) => {
                tracing::debug!(%lane, ?lease, "part is stored");
                self.stored(lease, lane, part.range.len(), now);
                return Ok(());
            }
            // It is over for this run, as if it was stored; its target tells of it.
            Err(Trouble::LeaveOut(why)) => {
                tracing::debug!(item = part.item, why, "left out");
                self.stored(lease, lane, 0, now);
                return Ok(());
            }
            Err(Trouble::Fatal(error)) => return Err(error),
            Err(trouble) => trouble,
        };
        tracing::debug!(%lane, ?trouble, "a part did not get through");
        let member = self.members.get_mut(&lane);
        let (failure, why) = match trouble {
            Trouble::Lane(why) => (Failure::Broken, why),
            Trouble::Refused { retry_after, why } => {
                self.alive = self.alive.max(now + retry_after.unwrap_or_default());
                (Failure::Refused { retry_after }, why)
            }
            Trouble::Origin(why) => {
                self.faults += 1;
                (Failure::Origin, why)
            }
            Trouble::Ineligible(why) => {
                if let Some(member) = member {
                    member.ineligible = Some(why.clone());
                }
                (Failure::Ineligible, why)
            }
            Trouble::LeaveOut(why) => (Failure::Broken, why),
            Trouble::Fatal(error) => return Err(error),
        };
        if let Some(member) = self.members.get_mut(&lane) {
            member.trouble = Some(why.clone());
        }
        self.last_failure = why;
        self.forget(lease);
        self.parts.lease_failed(lease, failure, now);
        Ok(())
    }

    fn stored(&mut self, lease: LeaseId, lane: LaneId, bytes: u64, now: Instant) {
        self.alive = self.alive.max(now);
        self.faults = 0;
        self.forget(lease);
        if self.parts.stored(lease, now)
            && let Some(member) = self.members.get_mut(&lane)
        {
            member.bytes += bytes;
            member.trouble = None;
        }
    }

    /// The next part of a lane that fell silent shall dial: a connection in reserve would hang as this one does.
    fn close_idle_if_hung(&self, lease: LeaseId) {
        let hung = self
            .workers
            .get(&lease)
            .filter(|w| now().saturating_duration_since(w.heard) >= HUNG);
        if let Some(member) = hung.and_then(|w| self.members.get(&w.lane)) {
            member.way.close_idle();
        }
    }

    /// A lease is over: its worker stops at once, its connection is closed unless it was given back.
    fn forget(&mut self, lease: LeaseId) {
        if let Some(worker) = self.workers.remove(&lease)
            && let Some(member) = self.members.get_mut(&worker.lane)
        {
            member.activity.ended(lease, now());
        }
    }

    fn change_lanes(&mut self) {
        let now = now();
        let lanes = self.lanes.borrow_and_update().clone();
        self.choice = sort_out(&lanes, self.terms, |id| self.record(id, now));
        let used = &self.choice.used;
        let gone: Vec<LaneId> = self
            .members
            .keys()
            .copied()
            .filter(|&id| !has(used, id))
            .collect();
        for lane in gone {
            self.lane_down(lane, now);
        }
        for lane in self.choice.used.clone() {
            if let Some(member) = self.members.get_mut(&lane.info().id) {
                // The same way out, of which more is known now.
                member.info.clone_from(lane.info());
            } else if self.members.len() < MAX_LANES {
                self.lane_up(&lane, now);
            }
        }
    }

    fn lane_up(&mut self, lane: &Arc<dyn Lane>, now: Instant) {
        let info = lane.info();
        self.members.insert(info.id, Member::new(self.ways.of(lane)));
        let spec = LaneSpec {
            slots: SLOTS,
            metered: info.metered,
            // What is known of a line is how fast it brings, not how fast it sends.
            hint: None,
            latency: Duration::ZERO,
        };
        self.parts.lane_up(info.id, spec, now);
    }

    fn lane_down(&mut self, lane: LaneId, now: Instant) {
        tracing::info!(%lane, "lane is gone");
        self.parts.lane_down(lane, now);
        let of_lane = self.workers.iter().filter(|(_, w)| w.lane == lane);
        for lease in of_lane.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.forget(lease);
        }
        if let Some(member) = self.members.remove(&lane)
            && member.bytes > 0
        {
            self.former.push(member);
        }
    }

    fn record(&self, id: LaneId, now: Instant) -> Record {
        if self.failing.get(&id).is_some_and(|f| f.is_on(now)) {
            Record::Failing
        } else if self.members.contains_key(&id) {
            Record::Serving
        } else {
            Record::Fresh
        }
    }

    /// Lets lanes that fail give way to others of their line.
    fn relieve(&mut self, now: Instant) {
        if self.choice.spare.is_empty() {
            return;
        }
        let snapshot = self.parts.snapshot(now);
        let has_spare = |member: &Member| {
            self.choice.spare.iter().any(|lane| {
                let info = lane.info();
                info.line == member.info.line && self.record(info.id, now) != Record::Failing
            })
        };
        let failed: Vec<LaneId> = self
            .members
            .iter()
            .filter(|(id, member)| member.fails(of(&snapshot, **id)) && has_spare(member))
            .map(|(&id, _)| id)
            .collect();
        for id in &failed {
            self.failing.entry(*id).or_default().again(now);
            tracing::info!(lane = %id, "lane gives way to another one of its line");
        }
        if !failed.is_empty() {
            self.change_lanes();
        }
    }

    fn give_up_if_hopeless(&self) -> Result<(), UploadError> {
        let now = now();
        let silent = now.saturating_duration_since(self.alive);
        let stalled = || UploadError::Stalled {
            seconds: silent.as_secs(),
            detail: self.last_failure.clone(),
        };
        let none_left = !self.members.is_empty() && self.members.values().all(|m| m.ineligible.is_some());
        if self.faults >= MAX_FAULTS || (none_left && self.choice.spare.is_empty()) {
            return Err(stalled());
        }
        match (silent < GIVE_UP, self.members.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => Err(UploadError::NoLanes),
            (false, false) => Err(stalled()),
        }
    }

    fn publish(&self, phase: Phase) {
        let snapshot = self.parts.snapshot(now());
        let used = self.members.iter().map(|(&id, m)| {
            let on_its_way = self
                .workers
                .values()
                .filter(|w| w.lane == id)
                .map(Worker::on_its_way);
            m.progress(of(&snapshot, id), on_its_way.sum())
        });
        let idle = self.choice.used.iter().map(|lane| lane.info());
        let idle = idle.filter(|info| !self.members.contains_key(&info.id));
        let idle = idle.map(|info| unused(info, TOO_MANY));
        let others = self.choice.unused.iter().map(|(info, why)| unused(info, why));
        let lanes = used.chain(idle).chain(others).collect();
        let on_its_way: u64 = self.workers.values().map(Worker::on_its_way).sum();
        self.progress.send_modify(|p| {
            p.phase = phase;
            p.total = Some(snapshot.total);
            p.done = (snapshot.done + on_its_way).min(snapshot.total);
            p.resumed = self.resumed;
            p.lanes = lanes;
        });
    }
}

impl Worker {
    /// What of its part has left, if that gets through.
    fn on_its_way(&self) -> u64 {
        self.sent.min(self.part.range.len())
    }
}

fn of(snapshot: &Snapshot, id: LaneId) -> Option<&crate::stripe::LaneSnapshot> {
    snapshot.lanes.iter().find(|l| l.lane == id)
}

async fn until(ends: Option<tokio::time::Instant>) {
    match ends {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The runtime's time, which tests can let pass.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
