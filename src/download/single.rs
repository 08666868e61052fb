//! The whole content as one stream over one lane: for origins that cannot do ranges, or whose versions cannot be told
//! apart (HTTP-1, HTTP-2, HTTP-21).
//!
//! Invariant: a broken stream is never continued, only started again from the first byte in an empty file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::ask::Answer;
use super::flow::{Flow, FlowError, Report, Sink};
use super::lanes::choose_fresh;
use super::route::Route;
use crate::lane::LaneSet;
use crate::store::Part;
use crate::store::StoreError;
use crate::transfer::{Connection, LaneProgress, LaneState, Phase, Progress, unused};
use crate::types::Rate;

/// How often progress is published.
const TICK: Duration = Duration::from_millis(200);
/// The rate shown is the mean over so long.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// One stream: an answer that carries the whole content, and where it goes.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) answer: Answer,
    pub(super) route: Arc<Route>,
    /// `None`: the origin does not say.
    pub(super) len: Option<u64>,
    pub(super) part: Arc<Part>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) lanes: watch::Receiver<LaneSet>,
}

impl Stream {
    /// Writes all of it; returns how many bytes it was. Verifying and renaming is the caller's.
    ///
    /// # Errors
    /// The stream broke, or the disk failed. All writes are through then.
    pub(super) async fn run(self) -> Result<u64, FlowError> {
        let sink = Sink::new(self.part.clone(), self.route.shared.tasks.clone());
        let written = AtomicU64::new(0);
        let limit = AtomicU64::new(self.len.unwrap_or(u64::MAX));
        let flow = Flow {
            connection: self.answer.connection,
            body: self.answer.body,
            at: 0,
            skip: 0,
            end: self.len,
        };
        let show = Show {
            route: &self.route,
            lanes: self.lanes,
            progress: &self.progress,
            total: self.len,
            part: &self.part,
        };
        let result = {
            let flow = std::pin::pin!(flow.run(&limit, &sink, Count(&written)));
            tokio::select! {
                result = flow => result,
                error = show.run(&written) => Err(error),
            }
        };
        sink.settle().await;
        result
    }
}

/// Counts written bytes.
struct Count<'a>(&'a AtomicU64);

impl Report for Count<'_> {
    async fn written(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// There is nothing more to ask for.
    fn idle(&self, connection: Connection) {
        drop(connection);
    }
}

/// What goes on beside the stream: progress, and syncs so that dirty pages stay few.
struct Show<'a> {
    route: &'a Route,
    lanes: watch::Receiver<LaneSet>,
    progress: &'a watch::Sender<Progress>,
    total: Option<u64>,
    part: &'a Arc<Part>,
}

impl Show<'_> {
    /// Runs until a sync fails.
    async fn run(self, written: &AtomicU64) -> FlowError {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = (Instant::now(), 0);
        let mut rate = Rate::default();
        loop {
            tick.tick().await;
            let (now, done) = (Instant::now(), written.load(Ordering::Relaxed));
            if now.duration_since(before.0) >= RATE_WINDOW {
                rate = Rate::of(done - before.1, now.duration_since(before.0));
                before = (now, done);
            }
            self.publish(done, rate);
            if self.part.sync_due(now) {
                let part = self.part.clone();
                match self.route.shared.tasks.blocking(move || part.sync()).await {
                    Ok(Ok(synced)) if synced.lost.is_empty() => {}
                    Ok(Ok(synced)) => return StoreError::Lost { ranges: synced.lost }.into(),
                    Ok(Err(error)) => return error.into(),
                    Err(_panicked) => return FlowError::Ended,
                }
            }
        }
    }

    fn publish(&self, done: u64, rate: Rate) {
        let own = self.route.lane.info();
        let choice = choose_fresh(&self.lanes.borrow(), &self.route.shared.job);
        let idle = choice
            .used
            .iter()
            .map(|lane| lane.info())
            .filter(|info| info.id != own.id);
        let idle = idle.map(|info| LaneProgress {
            info: info.clone(),
            rate: Rate::default(),
            bytes: 0,
            state: LaneState::Idle("the origin sends this only as one stream".to_owned()),
        });
        let working = LaneProgress {
            info: own.clone(),
            rate,
            bytes: done,
            state: LaneState::Active,
        };
        let lanes = std::iter::once(working).chain(idle).chain(
            choice
                .unused
                .iter()
                .filter(|(info, _)| info.id != own.id)
                .map(|(info, why)| unused(info, why)),
        );
        let lanes = lanes.collect();
        self.progress.send_modify(|p| {
            p.phase = Phase::Single;
            p.total = self.total;
            p.done = done;
            p.lanes = lanes;
        });
    }
}
