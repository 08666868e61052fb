//! The striped part of a download: owns the scheduler, carries out what it decides, tells it what happened.
//!
//! Where the content is shared, members' disks are sources beside the uplinks (`household`).
//!
//! One task owns all state; workers tell it things over one bounded channel. It makes one change, drains the scheduler's
//! actions, and sleeps until the next event.
//!
//! Invariants: for each lease the scheduler thinks is running there is a worker, or a version check that will start one
//! or end it; when [`Driver::run`] returns, no worker and no write is left.

mod house;
mod household;
mod reactions;
mod relief;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::answer::Known;
use super::check::Finding;
use super::error::DownloadError;
use super::files::finish;
use super::flow::Sink;
use super::lanes::Member;
use super::route::{Route, Shared};
use super::worker::{Fetch, Lease, News, Ready, work};
use crate::lane::LaneSet;
use crate::store::Generation;
use crate::store::Part;
use crate::store::StoreError;
use crate::store::Synced;
use crate::stripe::Action;
use crate::stripe::Config;
use crate::stripe::LeaseId;
use crate::stripe::Scheduler;
use crate::transfer::{Choice, Failing, Phase, Progress, unused};
use crate::types::ByteRange;
use crate::types::LaneId;
pub(super) use house::House;

/// Connections of a lane to begin with (HTTP-16): the second hides the silence between two requests of the first.
pub(super) const SLOTS: usize = 2;
/// Connections of all lanes to one origin (HTTP-16).
pub(super) const MAX_CONNECTIONS: usize = 16;
/// A lease that takes longer than to open a connection, on most lanes.
const LONG: u64 = 1 << 20;
/// How often progress is published and the clock looked at.
const TICK: Duration = Duration::from_millis(200);
/// Workers wait while so many news are unread.
const MAX_NEWS: usize = 64;
/// So long before the end what is written so far is brought to the disk: three ticks, so that one of them meets it.
const LAST_SYNC: Duration = Duration::from_millis(600);
/// A lease that is taken away after so long a silence has hung: what is idle beside it goes the same dead way.
const HUNG: Duration = Duration::from_millis(1_500);
/// Without a byte for so long the download gives up; a pause that the origin asked for does not count.
const GIVE_UP: Duration = Duration::from_secs(120);
/// The same where only members have it: they are on the LAN, or gone.
const NO_HOLDER: Duration = Duration::from_secs(30);
/// A lane whose answers were the origin's fault so often in a row has nothing to hope for.
const MAX_FAULTS: u32 = 4;

/// Why a lane is left out that could serve.
const TOO_MANY: &str = "enough lanes are at work: one origin gets 16 connections at most";

/// How a striped run ended, if not by an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// All bytes are written, checked and under their final name: this one.
    Complete(PathBuf),
    /// The content changed: start again.
    Changed,
    /// The origin does not do ranges after all: one stream.
    NoRanges,
    /// The origin's versions cannot be told apart: one stream.
    Unsteady,
    /// More lanes see another version than this one, and this is one of them: start again from there.
    Outnumbered(LaneId),
}

/// What a striped run starts from.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) shared: Arc<Shared>,
    pub(super) lanes: watch::Receiver<LaneSet>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) stop: CancellationToken,
    pub(super) known: Known,
    pub(super) part: Arc<Part>,
    /// The first answer; `None`: there is no origin, members bring everything.
    pub(super) home: Option<Home>,
    /// The household's part in it. `None`: this is not shared.
    pub(super) house: Option<House>,
    /// Routes that are warm.
    pub(super) routes: Vec<Arc<Route>>,
    /// Whether a larger group of lanes with another version may take over (HTTP-9): once a download.
    pub(super) may_regroup: bool,
}

/// The first answer and its lane.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) route: Arc<Route>,
    /// The origin's address it used.
    pub(super) address: IpAddr,
    /// From request to answer.
    pub(super) latency: Duration,
    /// The answer, until its lease begins.
    pub(super) first: Option<Ready>,
}

/// The state of a striped run.
#[derive(Debug)]
pub(super) struct Driver {
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    lanes: watch::Receiver<LaneSet>,
    choice: Choice,
    pub(super) members: BTreeMap<LaneId, Member>,
    /// Lanes that are gone, for the outcome.
    pub(super) former: Vec<Member>,
    routes: Vec<Arc<Route>>,
    may_regroup: bool,
    scheduler: Scheduler,
    workers: BTreeMap<LeaseId, Worker>,
    known: Arc<Known>,
    home: Option<Home>,
    pub(super) house: Option<House>,
    part: Arc<Part>,
    fetch: Arc<Fetch>,
    news: mpsc::Receiver<News>,
    /// A version check, and the leases that wait for it with the bytes they reached.
    checking: Option<AbortOnDropHandle<Option<Finding>>>,
    doubted: BTreeMap<LeaseId, Doubt>,
    syncing: Option<JoinHandle<Result<Synced, StoreError>>>,
    /// When the last byte came, or the origin's pause ends.
    alive: Instant,
    last_failure: String,
    last_fault: Option<StatusCode>,
    /// Lanes that gave way to another one of their line.
    failing: BTreeMap<LaneId, Failing>,
    complete: bool,
    near_the_end: bool,
}

/// A lease whose lane brought another version.
#[derive(Clone, Debug)]
struct Doubt {
    /// How far the lease came.
    at: u64,
    /// The lane asked the very server that the home lane asked.
    pinned: bool,
    /// Only the length was compared.
    tolerant: bool,
    /// The version it brought, where that is known.
    seen: Option<Generation>,
}

#[derive(Debug)]
struct Worker {
    lane: LaneId,
    /// When it brought its last bytes, or began.
    heard: Instant,
    end: Arc<AtomicU64>,
    task: AbortOnDropHandle<Option<()>>,
}

enum Event {
    House(household::News),
    News(Option<News>),
    Lanes(bool),
    Checked(Finding),
    Synced(Result<Synced, StoreError>),
    Tick,
    Timeout,
    Stop,
}

impl Driver {
    pub(super) fn new(start: Start, now: Instant) -> Self {
        let (send, news) = mpsc::channel(MAX_NEWS);
        let fetch = Fetch {
            sink: Sink::new(start.part.clone(), start.shared.tasks.clone()),
            news: send,
            ask_plainly: AtomicBool::new(false),
        };
        let total = start.known.generation.total;
        let done = start.part.written();
        // Only spreads parking times; any number that differs between runs will do.
        let seed = u64::from(std::process::id()) ^ total;
        Self {
            shared: start.shared,
            progress: start.progress,
            stop: start.stop,
            lanes: start.lanes,
            choice: Choice::default(),
            members: BTreeMap::new(),
            former: Vec::new(),
            routes: start.routes,
            may_regroup: start.may_regroup,
            scheduler: Scheduler::new(Config::default(), total, &done, seed, now),
            workers: BTreeMap::new(),
            known: Arc::new(start.known),
            home: start.home,
            house: start.house,
            part: start.part,
            fetch: Arc::new(fetch),
            news,
            checking: None,
            doubted: BTreeMap::new(),
            syncing: None,
            alive: now,
            last_failure: "nothing was tried".to_owned(),
            last_fault: None,
            failing: BTreeMap::new(),
            complete: false,
            near_the_end: false,
        }
    }

    /// Fetches all that is missing. What is written when it fails or is stopped is brought to the disk first.
    pub(super) async fn run(&mut self) -> Result<Ending, DownloadError> {
        let result = self.fetch_all().await;
        self.checking = None;
        self.workers.clear();
        self.fetch.sink.settle().await;
        if let Some(syncing) = self.syncing.take() {
            let _ = syncing.await;
        }
        let is_complete = matches!(result, Ok(Ending::Complete(_)));
        if !is_complete {
            // Best effort: what does not get into the journal is fetched again.
            let part = self.part.clone();
            let _ = self.shared.tasks.blocking(move || part.sync().map(|_| ())).await;
        }
        self.publish(if is_complete {
            Phase::Finishing
        } else {
            Phase::Asking
        });
        result
    }

    /// Each lane that brought bytes, also those that are gone.
    pub(super) fn contributors(&self) -> impl Iterator<Item = &Member> {
        self.former.iter().chain(self.members.values())
    }

    /// Bytes that came twice.
    pub(super) fn duplicated(&self, now: Instant) -> u64 {
        self.scheduler.snapshot(now).duplicated
    }

    async fn fetch_all(&mut self) -> Result<Ending, DownloadError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Before any uplink begins: it might begin what others have, or are at.
        self.house_changed(Instant::now());
        self.change_lanes();
        loop {
            self.act();
            self.settle_liars().await?;
            if self.complete {
                match self.finish().await {
                    Err(DownloadError::Store(StoreError::Lost { ranges })) => {
                        self.lost(&ranges);
                        continue;
                    }
                    other => return other,
                }
            }
            let ending = match self.next(&mut tick).await {
                Event::News(Some(news)) => self.hear(news)?,
                Event::News(None) => None,
                Event::Timeout => {
                    self.scheduler.tick(Instant::now());
                    None
                }
                Event::Lanes(true) => {
                    self.change_lanes();
                    None
                }
                // Nobody will change them any more: they stay as they are.
                Event::Lanes(false) => None,
                Event::Checked(finding) => self.checked(&finding)?,
                Event::Synced(result) => {
                    self.syncing = None;
                    let lost = result?.lost;
                    self.lost(&lost);
                    None
                }
                Event::House(news) => {
                    self.heard_of_house(news, Instant::now())?;
                    None
                }
                Event::Tick => {
                    self.relieve(Instant::now());
                    self.tell_and_avoid(Instant::now());
                    self.publish(Phase::Striped);
                    self.sync_if_due();
                    self.give_up_if_hopeless()?;
                    None
                }
                Event::Stop => return Err(DownloadError::Stopped { resumable: true }),
            };
            if let Some(ending) = ending {
                return Ok(ending);
            }
        }
    }

    async fn next(&mut self, tick: &mut tokio::time::Interval) -> Event {
        let timeout = self.scheduler.poll_timeout();
        let at = timeout.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Event::Stop,
            news = self.news.recv() => Event::News(news),
            changed = self.lanes.changed(), if self.lanes.has_changed().is_ok() => Event::Lanes(changed.is_ok()),
            finding = optional(&mut self.checking) => {
                self.checking = None;
                Event::Checked(finding.ok().flatten().unwrap_or(Finding::Unknown))
            }
            synced = optional(&mut self.syncing) => Event::Synced(synced.unwrap_or_else(|_panicked| {
                Ok(Synced { durable: 0, lost: Vec::new() })
            })),
            news = household::news(&mut self.house) => Event::House(news),
            _ = tick.tick() => Event::Tick,
            () = sleep_until(at.into()), if timeout.is_some() => Event::Timeout,
        }
    }

    /// Does what the scheduler decided.
    fn act(&mut self) {
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Start { lease, lane, range } => self.start(lease, lane, range),
                Action::Shrink { lease, end } => {
                    if let Some(worker) = self.workers.get(&lease) {
                        worker.end.fetch_min(end, Ordering::Relaxed);
                    }
                }
                Action::Cancel { lease } => {
                    self.close_idle_if_hung(lease);
                    self.forget(lease);
                }
                Action::Done => self.complete = true,
            }
        }
    }

    fn start(&mut self, lease: LeaseId, lane: LaneId, range: ByteRange) {
        let now = Instant::now();
        tracing::debug!(%lane, start = range.start, length = range.len(), "lease begins");
        let Some(member) = self.members.get_mut(&lane) else {
            return self.start_source(lease, lane, range);
        };
        member.activity.started(lease, now);
        let route = member.route.clone();
        let home = self.home.as_mut().filter(|home| Arc::ptr_eq(&home.route, &route));
        let answer = home.and_then(|home| home.first.take_if(|f| f.body.start + f.skip == range.start));
        let mut known = self.known.clone();
        if member.any_version {
            Arc::make_mut(&mut known).generation.validator = None;
        }
        let end = Arc::new(AtomicU64::new(range.end));
        let work = work(
            Lease {
                id: lease,
                range,
                end: end.clone(),
                route,
                known,
                dying: std::mem::take(&mut member.dying),
                answer,
            },
            self.fetch.clone(),
        );
        let task = AbortOnDropHandle::new(self.shared.tasks.spawn("lease", work));
        let worker = Worker {
            lane,
            heard: now,
            end,
            task,
        };
        self.workers.insert(lease, worker);
        self.open_ahead(lane, range);
    }

    /// Opens one connection more once all of a lane's are at work on something long: the scheduler asks for a lease's
    /// successor before it ends, where all lanes may have so many.
    fn open_ahead(&self, lane: LaneId, range: ByteRange) {
        // Those that are chosen and only about to come count as well.
        let lanes = self.members.len().max(self.choice.used.len());
        let may_overlap = lanes * (SLOTS + 1) <= MAX_CONNECTIONS;
        let busy = self.members.get(&lane).filter(|m| m.activity.leases() == SLOTS);
        if let Some(member) = busy
            && may_overlap
            && range.len() >= LONG
            && !member.route.has_spare()
        {
            member.route.warm(1);
        }
    }

    /// The next lease of a lane that fell silent shall dial: its uplink may have another address, or the origin another way
    /// to be reached, while a connection in reserve would hang as this one does.
    fn close_idle_if_hung(&self, lease: LeaseId) {
        let hung = self.workers.get(&lease).filter(|w| w.heard.elapsed() >= HUNG);
        if let Some(member) = hung.and_then(|w| self.members.get(&w.lane)) {
            member.route.close_idle();
        }
    }

    /// A lease is over: its worker stops at once, its connection is closed unless it was given back.
    fn forget(&mut self, lease: LeaseId) {
        self.doubted.remove(&lease);
        if let Some(worker) = self.workers.remove(&lease)
            && let Some(member) = self.members.get_mut(&worker.lane)
        {
            member.activity.ended(lease, Instant::now());
            worker.task.abort();
            member.dying.retain(|task| !task.is_finished());
            member.dying.push(worker.task.detach());
        }
    }

    fn lost(&mut self, ranges: &[ByteRange]) {
        for &range in ranges {
            self.complete = false;
            self.scheduler.lost(range, Instant::now());
        }
    }

    fn sync_if_due(&mut self) {
        let due = self.part.sync_due(Instant::now()) || self.is_near_the_end();
        if self.syncing.is_some() || !due {
            return;
        }
        let part = self.part.clone();
        let has_digest = self.shared.job.sha256.is_some();
        self.syncing = Some(self.shared.tasks.blocking(move || {
            let synced = part.sync()?;
            let checked = part.recheck()?;
            if has_digest {
                part.advance_digest()?;
            }
            let lost = synced.lost.into_iter().chain(checked.lost).collect();
            Ok(Synced {
                durable: synced.durable,
                lost,
            })
        }));
    }

    /// Whether everything will be there in a moment: what is on the disk by then need not be waited for in the end. Said
    /// once.
    fn is_near_the_end(&mut self) -> bool {
        let snapshot = self.scheduler.snapshot(Instant::now());
        let rate: f64 = snapshot.lanes.iter().map(|l| l.rate.as_bytes_f64()).sum();
        let missing = (snapshot.total - snapshot.done) as f64;
        let is_near = !self.near_the_end && missing < rate * LAST_SYNC.as_secs_f64();
        self.near_the_end |= is_near;
        is_near
    }

    /// Everything is written: wait for the sync under way, verify, give the final name.
    async fn finish(&mut self) -> Result<Ending, DownloadError> {
        for lease in self.workers.keys().copied().collect::<Vec<_>>() {
            self.forget(lease);
        }
        self.publish(Phase::Finishing);
        self.fetch.sink.settle().await;
        if let Some(syncing) = self.syncing.take()
            && let Ok(synced) = syncing.await
        {
            let ranges = synced?.lost;
            if !ranges.is_empty() {
                return Err(StoreError::Lost { ranges }.into());
            }
        }
        let total = self.known.generation.total;
        let missing = self.part.written().gaps(ByteRange::new(0, total));
        if !missing.is_empty() {
            // Taken back before the news of it was heard.
            return Err(StoreError::Lost { ranges: missing }.into());
        }
        if !self.is_settled().await? || !self.is_proven().await? {
            // Begins again with what is to be fetched anew.
            return Err(StoreError::Lost { ranges: Vec::new() }.into());
        }
        let shared = &self.shared;
        let finished = finish(
            &*shared.files,
            self.part.clone(),
            shared.job.sha256,
            &shared.tasks,
        );
        Ok(Ending::Complete(finished.await?))
    }

    fn give_up_if_hopeless(&self) -> Result<(), DownloadError> {
        let hopeless = |m: &Member| m.faults >= MAX_FAULTS || m.ineligible.is_some();
        let any_fault = self.members.values().any(|m| m.faults >= MAX_FAULTS);
        if let Some(status) = self.last_fault
            && any_fault
            && self.members.values().all(hopeless)
        {
            let host = self.shared.host();
            return Err(DownloadError::Status { host, status });
        }
        let silent = Instant::now().saturating_duration_since(self.alive);
        if silent < if self.home.is_some() { GIVE_UP } else { NO_HOLDER } {
            return Ok(());
        }
        if self.home.is_none() {
            return Err(DownloadError::NoHolder {
                seconds: silent.as_secs(),
            });
        }
        if self.members.is_empty() {
            return Err(DownloadError::NoLanes);
        }
        Err(DownloadError::Stalled {
            seconds: silent.as_secs(),
            detail: self.last_failure.clone(),
        })
    }

    fn publish(&self, phase: Phase) {
        let snapshot = self.scheduler.snapshot(Instant::now());
        let of = |id: LaneId| snapshot.lanes.iter().find(|l| l.lane == id);
        let used = self.members.iter().map(|(&id, m)| m.progress(of(id)));
        let idle = self.choice.used.iter().map(|lane| lane.info());
        let idle = idle.filter(|info| !self.members.contains_key(&info.id));
        let idle = idle.map(|info| unused(info, TOO_MANY));
        let others = self.choice.unused.iter().map(|(info, why)| unused(info, why));
        let disks = self.house.iter().flat_map(|house| house.progress(of));
        let lanes = used.chain(idle).chain(others).chain(disks).collect();
        self.progress.send_modify(|p| {
            p.phase = phase;
            p.total = Some(snapshot.total);
            p.done = snapshot.done;
            p.lanes = lanes;
        });
    }
}

/// Waits for what is under way; for ever where nothing is.
async fn optional<F: Future + Unpin>(slot: &mut Option<F>) -> F::Output {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
