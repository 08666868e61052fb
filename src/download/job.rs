//! A download from its first question to its final name: resume or not, striped or one stream, again when it changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, IF_RANGE, RANGE, TE, TRANSFER_ENCODING,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::answer::{Known, Verdict, Why, media};
use super::ask::{Answer, Question};
use super::client::Endpoint;
use super::driver::{Driver, Ending, Start};
use super::error::DownloadError;
use super::flow::FlowError;
use super::lanes::choose;
use super::probe::{First, first};
use super::route::{Route, Shared};
use super::single::Stream;
use super::worker::Ready;
use super::{Context, Destination, Job, Outcome, Phase, Progress};
use super::{generation, name};
use crate::lane::LaneInfo;
use crate::store::Claim;
use crate::store::Generation;
use crate::store::OpenOptions;
use crate::store::PartFile;
use crate::store::Resumed;
use crate::store::StoreError;
use crate::store::peek;
use crate::types::ByteRange;
use crate::types::PIECE;
use crate::types::Rate;

/// What the first question asks for: small enough that its connection is soon free again, large enough that a small
/// file needs no second question.
const FIRST: u64 = PIECE;
/// How long to wait for a first lane: a peer found just now needs a moment.
const LANES_LIMIT: Duration = Duration::from_secs(10);
/// Connections opened on each lane while the first answer is under way.
const WARM: usize = 2;
/// How often a changed content is begun again.
const MAX_CHANGES: u32 = 3;
/// How often a stream that cannot be continued is begun again.
const MAX_STREAMS: u32 = 3;
/// How long tasks may take to end with the job; they only have to be dropped.
const GRACE: Duration = Duration::from_secs(5);
/// A best lane's rate from fewer bytes says nothing.
const MIN_MEASURED: u64 = 256 << 10;
/// Headers that belong to the download itself.
const OWN_HEADERS: [HeaderName; 8] = [
    RANGE,
    IF_RANGE,
    HOST,
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    CONTENT_LENGTH,
    ACCEPT_ENCODING,
];

/// Downloads `job` to its destination, over all lanes that serve.
///
/// Dropping the future ends everything at once; cancelling `stop` brings what is fetched to the disk first.
///
/// # Errors
/// See [`DownloadError`]; after most of them the same call continues where this one stopped.
pub async fn run(
    job: Job,
    to: Destination,
    context: Context,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
) -> Result<Outcome, DownloadError> {
    check(&job)?;
    let tasks = context.tasks.child();
    let shared = Arc::new(Shared {
        job,
        tls: context.tls,
        tasks: tasks.clone(),
    });
    // Also when this future is dropped: the tasks' scope ends with it.
    let _guard = tasks.token().clone().drop_guard();
    let run = Run {
        shared,
        to,
        lanes: context.lanes,
        progress,
        stop,
        began: Instant::now(),
        changes: 0,
        note: None,
    };
    let result = Box::pin(run.download()).await;
    tasks.stop(GRACE).await;
    result
}

fn check(job: &Job) -> Result<(), DownloadError> {
    let wrong = |why: &str| DownloadError::Url {
        url: job.url.to_string(),
        why: why.to_owned(),
    };
    if !matches!(job.url.scheme(), "http" | "https") {
        return Err(wrong("only http and https can be downloaded"));
    }
    if job.url.host_str().is_none_or(str::is_empty) || Endpoint::of(&job.url).is_none() {
        return Err(wrong("it has no host"));
    }
    match job.headers.iter().find(|(name, _)| OWN_HEADERS.contains(name)) {
        Some((name, _)) => Err(DownloadError::Header(name.to_string())),
        None => Ok(()),
    }
}

struct Run {
    shared: Arc<Shared>,
    to: Destination,
    lanes: watch::Receiver<crate::lane::LaneSet>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    began: Instant,
    changes: u32,
    note: Option<String>,
}

/// What is there already of the content.
struct Resume {
    path: PathBuf,
    part: Arc<PartFile>,
    known: Known,
}

/// How to go on after an attempt.
enum Next {
    Done(Box<Outcome>),
    /// From the first question, without what was there.
    Afresh,
    OneStream,
}

impl Run {
    async fn download(mut self) -> Result<Outcome, DownloadError> {
        let mut resume = self.resume().await?;
        let mut as_one = false;
        loop {
            let next = if as_one {
                self.stream(None).await?
            } else {
                self.attempt(resume.take()).await?
            };
            match next {
                Next::Done(outcome) => return Ok(*outcome),
                Next::Afresh => {}
                Next::OneStream => as_one = true,
            }
        }
    }

    /// Asks the first question, and fetches as its answer allows.
    async fn attempt(&mut self, resume: Option<Resume>) -> Result<Next, DownloadError> {
        let routes = self.routes(WARM).await?;
        let wanted = resume.as_ref().map(Resume::wanted);
        let question = Question {
            range: Some(wanted.unwrap_or(ByteRange::new(0, FIRST))),
            condition: resume
                .as_ref()
                .and_then(|r| generation::if_range(&r.known.generation)),
        };
        let known = resume.as_ref().map(|r| &r.known);
        let mut got = self.ask(&routes, &question, known).await?;
        if got.verdict == Verdict::RetryPlain {
            let plain = Question {
                condition: None,
                ..question
            };
            got = self.ask(&routes, &plain, known).await?;
        }
        match got.verdict.clone() {
            Verdict::Accept {
                body,
                skip,
                total,
                validator,
            } => {
                let generation = Generation { total, validator };
                let can_stripe = generation.validator.is_some() || self.shared.job.sha256.is_some();
                match resume {
                    Some(resume) => {
                        self.stripe(got, body, skip, generation, &routes, Some(resume))
                            .await
                    }
                    None if can_stripe => self.stripe(got, body, skip, generation, &routes, None).await,
                    // The first answer is the whole content.
                    None if body == ByteRange::new(0, total) => self.stream(Some((got, Some(total)))).await,
                    None => Ok(Next::OneStream),
                }
            }
            Verdict::Whole { encoded: true, .. } if !is_archive(&got.answer) => self.unusable(&Why::Encoded),
            Verdict::Whole { len, .. } => self.stream(Some((got, len))).await,
            Verdict::Changed(_)
            | Verdict::Unsatisfied(_)
            | Verdict::Ineligible(Why::NoRange | Why::OtherMedia)
                if resume.is_some() =>
            {
                self.changed()?;
                Ok(Next::Afresh)
            }
            Verdict::Unsatisfied(_) | Verdict::Ineligible(Why::NoRange | Why::Encoded) => Ok(Next::OneStream),
            Verdict::Ineligible(Why::Status(status)) => {
                let host = self.shared.host();
                Err(DownloadError::Status { host, status })
            }
            Verdict::Ineligible(why) => self.unusable(&why),
            Verdict::Changed(_)
            | Verdict::RetryPlain
            | Verdict::Redirect
            | Verdict::Refused { .. }
            | Verdict::OriginFault(_)
            | Verdict::Broken(_) => self.unusable(&Why::OtherGeneration),
        }
    }

    async fn stripe(
        &mut self,
        got: First,
        body: ByteRange,
        skip: u64,
        generation: Generation,
        routes: &[Arc<Route>],
        resume: Option<Resume>,
    ) -> Result<Next, DownloadError> {
        let (path, part, resumed) = match resume {
            Some(resume) => {
                let bytes = resume.part.written().len();
                (resume.path, resume.part, bytes)
            }
            None => self.open(&got.answer, Some(generation.clone())).await?,
        };
        let start = Start {
            shared: self.shared.clone(),
            lanes: self.lanes.clone(),
            progress: self.progress.clone(),
            stop: self.stop.clone(),
            known: Known {
                generation: generation.clone(),
                media: media(&got.answer.head),
            },
            part,
            home: got.route,
            address: got.answer.connection.address.ip(),
            latency: got.latency,
            routes: routes.to_vec(),
            first: Ready {
                answer: got.answer,
                body,
                skip,
            },
        };
        let mut driver = Driver::new(start, Instant::now());
        match Box::pin(driver.run()).await? {
            Ending::Changed => {
                self.changed()?;
                Ok(Next::Afresh)
            }
            Ending::OneStream => Ok(Next::OneStream),
            Ending::Complete => {
                let now = Instant::now();
                let measured = driver.contributors().filter(|m| m.bytes >= MIN_MEASURED);
                let best_single = measured.map(|m| m.mean_rate(now)).max();
                let duplicated = driver.duplicated(now);
                let lanes = driver.contributors().map(|m| (m.info.clone(), m.bytes)).collect();
                let done = self.outcome(path, generation.total, lanes, best_single);
                Ok(Next::Done(Box::new(Outcome {
                    resumed,
                    duplicated,
                    ..done
                })))
            }
        }
    }

    /// Fetches everything as one stream, from an answer that carries it or from new ones.
    async fn stream(&mut self, mut got: Option<(First, Option<u64>)>) -> Result<Next, DownloadError> {
        let mut detail = String::new();
        for turn in 0..MAX_STREAMS {
            let (First { answer, route, .. }, len) = match got.take() {
                Some(got) => got,
                None => self.ask_for_all(turn).await?,
            };
            let generation = len.map(|total| Generation {
                total,
                validator: None,
            });
            let (path, part, _) = self.open(&answer, generation).await?;
            let info = route.lane.info().clone();
            let started = Instant::now();
            let stream = Stream {
                answer,
                route,
                len,
                part: part.clone(),
                progress: self.progress.clone(),
                lanes: self.lanes.clone(),
            };
            let stop = self.stop.clone();
            let Some(result) = stop.run_until_cancelled(Box::pin(stream.run())).await else {
                return Err(DownloadError::Stopped { resumable: false });
            };
            match result {
                Ok(bytes) => {
                    let rate = (bytes >= MIN_MEASURED).then(|| Rate::of(bytes, started.elapsed()));
                    self.finish(part).await?;
                    let done = self.outcome(path, bytes, vec![(info, bytes)], rate);
                    return Ok(Next::Done(Box::new(done)));
                }
                Err(FlowError::Store(error)) => return Err(error.into()),
                Err(error) => detail = error.to_string(),
            }
        }
        Err(DownloadError::Broken {
            host: self.shared.host(),
            times: MAX_STREAMS,
            detail,
        })
    }

    async fn ask_for_all(&mut self, turn: u32) -> Result<(First, Option<u64>), DownloadError> {
        let mut routes = self.routes(0).await?;
        // A stream that broke on one lane is tried on the next.
        let by = turn as usize % routes.len();
        routes.rotate_left(by);
        let got = self.ask(&routes, &Question::default(), None).await?;
        let why = match &got.verdict {
            Verdict::Whole { encoded: true, .. } if !is_archive(&got.answer) => Why::Encoded,
            Verdict::Whole { len, .. } => {
                let len = *len;
                return Ok((got, len));
            }
            Verdict::Ineligible(Why::Status(status)) => {
                return Err(DownloadError::Status {
                    host: self.shared.host(),
                    status: *status,
                });
            }
            _ => Why::Status(got.answer.status),
        };
        self.unusable(&why)
    }

    async fn ask(
        &self,
        routes: &[Arc<Route>],
        question: &Question,
        known: Option<&Known>,
    ) -> Result<First, DownloadError> {
        let asking = Box::pin(first(&self.shared, routes, question, known));
        let answered = self.stop.run_until_cancelled(asking).await;
        answered.unwrap_or(Err(DownloadError::Stopped { resumable: false }))
    }

    /// The lanes to use, home first, with `warm` connections opening on each.
    async fn routes(&mut self, warm: usize) -> Result<Vec<Arc<Route>>, DownloadError> {
        let job = &self.shared.job;
        let some = self.lanes.wait_for(|lanes| !choose(lanes, job).used.is_empty());
        let waited = tokio::time::timeout(LANES_LIMIT, self.stop.run_until_cancelled(some)).await;
        let used = match waited {
            Ok(Some(Ok(lanes))) => choose(&lanes, job).used,
            Ok(None) => return Err(DownloadError::Stopped { resumable: false }),
            Ok(Some(Err(_))) | Err(_) => return Err(DownloadError::NoLanes),
        };
        let routes: Vec<_> = used
            .into_iter()
            .map(|lane| Arc::new(Route::new(lane, self.shared.clone())))
            .collect();
        for (at, route) in routes.iter().enumerate() {
            // The home lane opens one itself, for the first question.
            route.warm(if at == 0 { warm.saturating_sub(1) } else { warm });
        }
        Ok(routes)
    }

    /// What an earlier run left, where it can be continued.
    async fn resume(&mut self) -> Result<Option<Resume>, DownloadError> {
        let path = self.path(None);
        let at = path.clone();
        let Some(claim) = self.blocking(move || peek(&at)).await? else {
            return Ok(None);
        };
        let sha256 = self.shared.job.sha256;
        let now = Claim::new(self.shared.job.url.as_str(), claim.generation().cloned(), sha256);
        let generation = claim.generation().cloned();
        let (None, true, Some(generation)) = (claim.difference(&now), now.is_resumable(), generation) else {
            return Ok(None);
        };
        let (part, resumed) = self.open_part(&path, now).await?;
        let Resumed::From { bytes, .. } = resumed else {
            return Ok(None);
        };
        tracing::info!(bytes, "continuing an earlier download");
        let known = Known {
            generation,
            media: None,
        };
        Ok(Some(Resume { path, part, known }))
    }

    /// Opens the file for an answer's content; what is there of another version of it stays aside until this is done.
    async fn open(
        &self,
        answer: &Answer,
        generation: Option<Generation>,
    ) -> Result<(PathBuf, Arc<PartFile>, u64), DownloadError> {
        let path = self.path(Some(answer));
        let claim = Claim::new(self.shared.job.url.as_str(), generation, self.shared.job.sha256);
        let (part, resumed) = self.open_part(&path, claim).await?;
        let resumed = match resumed {
            Resumed::From { bytes, .. } => bytes,
            Resumed::Fresh(why) => {
                tracing::debug!(%why, "starting from the first byte");
                0
            }
        };
        self.progress.send_modify(|p| {
            p.resumed = resumed;
            p.done = resumed;
        });
        Ok((path, part, resumed))
    }

    async fn open_part(&self, path: &Path, claim: Claim) -> Result<(Arc<PartFile>, Resumed), DownloadError> {
        let at = path.to_owned();
        let open = move || {
            let options = OpenOptions {
                overwrite: false,
                restart: true,
            };
            PartFile::open(&at, &claim, options)
        };
        let (part, resumed) = self.blocking(open).await?;
        self.progress.send_modify(|p| {
            p.name = path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
        });
        Ok((Arc::new(part), resumed))
    }

    fn path(&self, answer: Option<&Answer>) -> PathBuf {
        match &self.to {
            Destination::File(path) => path.clone(),
            Destination::Directory(directory) => {
                // The name is the one the user asked for, not that of some cache it was redirected to.
                directory.join(name::of(&self.shared.job.url, answer.map(|a| &a.head)))
            }
        }
    }

    async fn finish(&self, part: Arc<PartFile>) -> Result<(), DownloadError> {
        self.progress.send_modify(|p| p.phase = Phase::Finishing);
        let sha256 = self.shared.job.sha256;
        self.blocking(move || part.finish(sha256)).await?;
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, DownloadError> {
        let done = self.shared.tasks.blocking(work).await;
        Ok(done.map_err(|_panicked| DownloadError::Stopped { resumable: true })??)
    }

    fn changed(&mut self) -> Result<(), DownloadError> {
        self.changes += 1;
        self.note = Some("restarted: the content changed on the origin".to_owned());
        if self.changes > MAX_CHANGES {
            let host = self.shared.host();
            let times = self.changes;
            return Err(DownloadError::Changing { host, times });
        }
        Ok(())
    }

    fn unusable<T>(&self, why: &Why) -> Result<T, DownloadError> {
        Err(DownloadError::Answer {
            host: self.shared.host(),
            why: why.to_string(),
        })
    }

    fn outcome(
        &self,
        path: PathBuf,
        bytes: u64,
        lanes: Vec<(LaneInfo, u64)>,
        best_single: Option<Rate>,
    ) -> Outcome {
        Outcome {
            path,
            bytes,
            resumed: 0,
            duplicated: 0,
            elapsed: self.began.elapsed(),
            pooled: lanes.iter().filter(|(_, bytes)| *bytes > 0).count() > 1,
            lanes,
            best_single,
            note: self.note.clone(),
        }
    }
}

impl Resume {
    /// The first bytes that are missing; the last byte where none is, so that the version can be checked.
    fn wanted(&self) -> ByteRange {
        let total = self.known.generation.total;
        let missing = self.part.written().gaps(ByteRange::new(0, total));
        match missing.first() {
            Some(gap) => ByteRange::new(gap.start, gap.end.min(gap.start + FIRST)),
            None => ByteRange::new(total.saturating_sub(1), total),
        }
    }
}

/// Whether content that comes compressed without being asked for is an archive as such (HTTP-10).
fn is_archive(answer: &Answer) -> bool {
    let path = answer.url.path().to_ascii_lowercase();
    let by_name = [".gz", ".tgz", ".bz2", ".xz", ".zst", ".br", ".z"]
        .iter()
        .any(|end| path.ends_with(end));
    let by_type = media(&answer.head).is_some_and(|m| m.contains("gzip") || m.contains("compressed"));
    by_name || by_type
}
