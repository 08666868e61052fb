//! An upload from its first question to its last: what is there, what is to be sent, and the object of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::driver::{Driver, Start, Tally};
use super::error::UploadError;
use super::exchange::{Caller, Shared, Ways};
use super::source::{Source, Sources};
use super::{Context, Finished, Job, Opened, Outcome, Stop, Target};
use super::{dav, s3, tus};
use crate::lane::LaneSet;
use crate::transfer::{Phase, Progress, Terms};

/// How long tasks may take to end with the job; they only have to be dropped.
const GRACE: Duration = Duration::from_secs(5);
/// How long removing what was sent may take; what is left is told.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// Uploads what is in `sources`, over all lanes that serve.
///
/// Dropping the future ends everything at once and removes nothing.
///
/// # Errors
/// See [`UploadError`]; after most of them the same call continues where this one stopped.
pub async fn run(
    job: Job,
    sources: Arc<dyn Sources>,
    context: Context,
    progress: watch::Sender<Progress>,
    stop: Stop,
) -> Result<Outcome, UploadError> {
    let tasks = context.tasks.child();
    // Also when this future is dropped: the tasks' scope ends with it.
    let _guard = tasks.token().clone().drop_guard();
    let began = Instant::now();
    let scope = tasks.token().clone();
    let source = Arc::new(Source::new(sources, &tasks).await?);
    progress.send_modify(|p| {
        p.name = source.name();
        p.total = Some(source.total());
    });
    let shared = Arc::new(Shared {
        source,
        tls: context.tls,
        tasks: tasks.clone(),
    });
    let terms = Terms {
        pool: job.pool,
        // What the way there could read or change: the servers' checks tell of changes, nothing of readers.
        plain: job.is_plain(),
    };
    let ways = Arc::new(Ways::new(shared.clone()));
    let run = Run {
        caller: Caller::new(ways.clone(), context.lanes.clone(), terms),
        ways,
        shared,
        job,
        terms,
        lanes: context.lanes,
        progress,
        stop,
    };
    let result = tokio::select! {
        result = Box::pin(run.upload(began)) => result,
        () = scope.cancelled() => Err(UploadError::Stopped { resumable: true }),
    };
    tasks.stop(GRACE).await;
    result
}

struct Run {
    shared: Arc<Shared>,
    ways: Arc<Ways>,
    caller: Caller,
    job: Job,
    terms: Terms,
    lanes: watch::Receiver<LaneSet>,
    progress: watch::Sender<Progress>,
    stop: Stop,
}

impl Run {
    async fn upload(&self, began: Instant) -> Result<Outcome, UploadError> {
        let opened = self.open();
        let opened = tokio::select! {
            opened = opened => opened?,
            () = self.stop.stop.cancelled() => return Err(UploadError::Stopped { resumable: true }),
        };
        let target = opened.target.clone();
        let resumed = opened.resumed;
        let note = opened.note.clone();
        match self.send(opened).await {
            Ok((finished, tally)) => Ok(outcome(
                finished,
                tally,
                &self.shared.source,
                resumed,
                note,
                began,
            )),
            Err(error) if leaves_nothing(&error) => Err(self.clean_up(&*target, error).await),
            Err(error) => Err(error),
        }
    }

    async fn open(&self) -> Result<Opened, UploadError> {
        let (job, source, caller) = (&self.job, &self.shared.source, &self.caller);
        match job.target.scheme() {
            "tus+https" | "tus+http" => tus::open(job, source, caller).await,
            "https" | "http" => dav::open(job, source, caller).await,
            "s3" => s3::open(job, source, caller).await,
            _ => Err(UploadError::Url {
                url: job.shown_target(),
                why: "write s3://BUCKET/KEY, tus+https://… or https://…".to_owned(),
            }),
        }
    }

    async fn send(&self, opened: Opened) -> Result<(Finished, Tally), UploadError> {
        let start = Start {
            shared: self.shared.clone(),
            ways: self.ways.clone(),
            target: opened.target.clone(),
            terms: self.terms,
            lanes: self.lanes.clone(),
            work: opened.work,
            resumed: opened.resumed,
            progress: self.progress.clone(),
        };
        let mut driver = Driver::new(start, Instant::now());
        driver.run(&self.stop).await?;
        let tally = driver.tally(Instant::now());
        drop(driver);
        self.progress.send_modify(|p| p.phase = Phase::Finishing);
        // Not stopped any more: what is half completed is of no use to anybody.
        let finished = opened.target.finish(&self.caller).await?;
        Ok((finished, tally))
    }

    /// Removes what was sent; what it says otherwise stands.
    async fn clean_up(&self, target: &dyn Target, error: UploadError) -> UploadError {
        match tokio::time::timeout(CLEAN_UP, target.abort(&self.caller)).await {
            Ok(Ok(())) => error,
            Ok(Err(left)) => {
                tracing::warn!(error = %left, "what was sent could not be removed");
                UploadError::LeftBehind {
                    error: Box::new(error),
                    why: left.to_string(),
                }
            }
            Err(_) => UploadError::LeftBehind {
                error: Box::new(error),
                why: format!("no answer for {} s", CLEAN_UP.as_secs()),
            },
        }
    }
}

/// Whether nothing of what was sent is of use to a later run.
const fn leaves_nothing(error: &UploadError) -> bool {
    matches!(
        error,
        UploadError::Changed { .. } | UploadError::Corrupt { .. } | UploadError::Stopped { resumable: false }
    )
}

fn outcome(
    finished: Finished,
    tally: Tally,
    source: &Source,
    resumed: u64,
    note: Option<String>,
    began: Instant,
) -> Outcome {
    let notes: Vec<String> = note.into_iter().chain(finished.note).collect();
    Outcome {
        place: finished.place,
        bytes: source.total(),
        resumed,
        duplicated: tally.duplicated,
        elapsed: began.elapsed(),
        lanes: tally.lanes,
        best_single: tally.best_single,
        files: finished.files,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    }
}
