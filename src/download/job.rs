//! A download from its first question to its final name: resume or not, striped or one stream, again when it changed.

mod household;
mod one_stream;
mod place;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, IF_RANGE, RANGE, TE, TRANSFER_ENCODING,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::answer::{Known, Verdict, Why, media};
use super::ask::Question;
use super::driver::{Driver, Ending, Home, MAX_CONNECTIONS, SLOTS, Start};
use super::error::DownloadError;
use super::generation;
use super::lanes::choose_fresh;
use super::probe::{First, first};
use super::route::{Route, Shared};
use super::worker::Ready;
use super::{Context, Files, Job, Outcome, Progress};
use crate::lane::{Lane, LaneInfo};
use crate::share::{Household, Look};
use crate::store::Generation;
use crate::task::Tasks;
use crate::transfer::Endpoint;
use crate::trust::Right;
use crate::types::ByteRange;
use crate::types::LaneId;
use crate::types::PIECE;
use crate::types::Rate;
use one_stream::is_archive;
use place::Resume;

/// What the first question asks for: small enough that its connection is soon free again, large enough that a small
/// file needs no second question.
const FIRST: u64 = PIECE;
/// How long to wait for a first lane: a peer found just now needs a moment.
const LANES_LIMIT: Duration = Duration::from_secs(10);
/// How often lanes that went away while the origin was asked are replaced by those that came.
const MAX_GONE: u32 = 3;
/// How often a changed content is begun again.
const MAX_CHANGES: u32 = 3;
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

/// Downloads `job` into `files`, over all lanes that serve.
///
/// Dropping the future ends everything at once; cancelling `stop` brings what is fetched to the disk first.
///
/// # Errors
/// See [`DownloadError`]; after most of them the same call continues where this one stopped.
pub async fn run(
    job: Job,
    files: Arc<dyn Files>,
    context: Context,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
) -> Result<Outcome, DownloadError> {
    check(&job)?;
    let tasks = context.tasks.child();
    let shared = Arc::new(Shared {
        job,
        files,
        tls: context.tls,
        tasks: tasks.clone(),
    });
    // Also when this future is dropped: the tasks' scope ends with it.
    let _guard = tasks.token().clone().drop_guard();
    let stop = either(&stop, &tasks);
    let run = Run {
        shared,
        lanes: context.lanes,
        progress,
        stop,
        began: Instant::now(),
        household: context.household,
        look: None,
        changes: 0,
        majority: None,
        resumable: false,
        note: None,
    };
    let result = Box::pin(run.download()).await;
    tasks.stop(GRACE).await;
    result
}

/// A token for both reasons to stop: the caller's, and the end of the scope that the download lives in.
fn either(stop: &CancellationToken, tasks: &Tasks) -> CancellationToken {
    let (both, scope) = (stop.child_token(), tasks.token().clone());
    let ends = both.clone();
    tasks.spawn_graceful("stop with the scope", async move {
        scope.cancelled().await;
        ends.cancel();
    });
    both
}

fn check(job: &Job) -> Result<(), DownloadError> {
    let wrong = |why: &str| DownloadError::Url {
        url: without_password(&job.url),
        why: why.to_owned(),
    };
    if job.shared.is_some() {
        return Ok(());
    }
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

/// Messages get into logs.
fn without_password(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only for URLs that cannot have one.
    let _ = url.set_password(None);
    url.to_string()
}

struct Run {
    shared: Arc<Shared>,
    lanes: watch::Receiver<crate::lane::LaneSet>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    began: Instant,
    household: Option<Household>,
    /// Looks for what members have of it. `None`: this is not shared.
    look: Option<Look>,
    changes: u32,
    /// The lane to ask first, after its version turned out to be the one that most lanes see.
    majority: Option<LaneId>,
    /// Whether what is fetched stays for the next time.
    resumable: bool,
    note: Option<String>,
}

/// How to go on after an attempt.
enum Next {
    Done(Box<Outcome>),
    /// From the first question, without what was there.
    Afresh,
    /// All over one lane, and why.
    OneStream(&'static str),
}

/// Why content comes as one stream.
const BY_MEMBERS: &str =
    "plain http, partly over members' lines: they could have changed it; a checksum (--sha256) would tell";
const KEPT: &str = "plain http, which a lender nobody vouched for could change: such lines were not used; https or a checksum \
                    (--sha256) would let them help";
const NO_RANGES: &str = "the origin sends this only as one stream, so only one line was used";
const TWO_VERSIONS: &str = "restarted: the origin has different versions for different lines, and this is the one that most of them get";
const NO_VERSION: &str = "the origin gives nothing to tell versions apart, so only one line was used; a checksum (--sha256) would help";

impl Run {
    async fn download(mut self) -> Result<Outcome, DownloadError> {
        if let Some(shared) = self.shared.job.shared.clone() {
            return self.fetch_from_members(shared).await;
        }
        self.look = self.look();
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
                Next::OneStream(why) => {
                    self.note.get_or_insert_with(|| why.to_owned());
                    as_one = true;
                }
            }
        }
    }

    /// Asks the first question, and fetches as its answer allows.
    async fn attempt(&mut self, resume: Option<Resume>) -> Result<Next, DownloadError> {
        let wanted = resume.as_ref().map(Resume::wanted);
        let first = self.first_question().await;
        let question = Question {
            range: Some(wanted.unwrap_or(ByteRange::new(0, first))),
            condition: resume
                .as_ref()
                .and_then(|r| generation::if_range(&r.known.generation)),
        };
        let known = resume.as_ref().map(|r| &r.known);
        let (mut got, routes) = self.ask_any(true, 0, &question, known).await?;
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
                    None => Ok(Next::OneStream(NO_VERSION)),
                }
            }
            Verdict::Whole { encoded: true, .. } if !is_archive(&got.answer) => self.unusable(&Why::Encoded),
            Verdict::Whole { len, .. } => {
                self.note.get_or_insert_with(|| NO_RANGES.to_owned());
                self.stream(Some((got, len))).await
            }
            Verdict::Changed(_)
            | Verdict::Unsatisfied(_)
            | Verdict::Ineligible(Why::NoRange | Why::OtherMedia)
                if resume.is_some() =>
            {
                self.changed()?;
                Ok(Next::Afresh)
            }
            Verdict::Unsatisfied(_) | Verdict::Ineligible(Why::NoRange | Why::Encoded) => {
                Ok(Next::OneStream(NO_RANGES))
            }
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
        let (part, resumed) = match resume {
            Some(resume) => {
                let bytes = resume.part.written().len();
                (resume.part, bytes)
            }
            None => self.open(&got.answer, Some(generation.clone())).await?,
        };
        let house = self.house(&generation, &got.answer.head, &part);
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
            home: Some(Home {
                route: got.route,
                address: got.answer.connection.address.ip(),
                latency: got.latency,
                first: Some(Ready {
                    answer: got.answer,
                    body,
                    skip,
                }),
            }),
            house,
            routes: routes.to_vec(),
            may_regroup: self.majority.is_none(),
        };
        self.resumable = true;
        let mut driver = Driver::new(start, Instant::now());
        let ending = Box::pin(driver.run()).await?;
        driver.keep(&ending).await;
        match ending {
            Ending::Changed => {
                self.changed()?;
                Ok(Next::Afresh)
            }
            Ending::Outnumbered(lane) => {
                self.majority = Some(lane);
                self.note = Some(TWO_VERSIONS.to_owned());
                Ok(Next::Afresh)
            }
            Ending::NoRanges => Ok(Next::OneStream(NO_RANGES)),
            Ending::Unsteady => Ok(Next::OneStream(NO_VERSION)),
            Ending::Complete(path) => {
                let now = Instant::now();
                let measured = driver.contributors().filter(|m| m.bytes >= MIN_MEASURED);
                let best_single = measured.map(|m| m.mean_rate(now)).max();
                let duplicated = driver.duplicated(now);
                let (members, attested) = Self::from_house(&driver);
                let lanes = driver.contributors().map(|m| (m.info.clone(), m.bytes)).collect();
                let done = self.outcome(path, generation.total, lanes, best_single);
                Ok(Next::Done(Box::new(Outcome {
                    resumed,
                    duplicated,
                    members,
                    attested,
                    ..done
                })))
            }
        }
    }

    /// Asks over the lanes there are, home first, but for `turn` of them; over those that came where these went away: a link
    /// that two dials made at once is one of them a moment later.
    async fn ask_any(
        &mut self,
        warm: bool,
        turn: u32,
        question: &Question,
        known: Option<&Known>,
    ) -> Result<(First, Vec<Arc<Route>>), DownloadError> {
        let (mut left, mut gone) = (MAX_GONE, Vec::new());
        loop {
            let mut routes = self.routes(warm, &gone).await?;
            let by = turn as usize % routes.len();
            routes.rotate_left(by);
            match self.ask(&routes, question, known).await {
                Err(DownloadError::LanesGone { .. }) if left > 0 => (left, gone) = (left - 1, routes),
                answered => return Ok((answered?, routes)),
            }
        }
    }

    async fn ask(
        &self,
        routes: &[Arc<Route>],
        question: &Question,
        known: Option<&Known>,
    ) -> Result<First, DownloadError> {
        let asking = Box::pin(first(&self.shared, routes, question, known));
        let answered = self.stop.run_until_cancelled(asking).await;
        answered.unwrap_or_else(|| Err(self.stopped()))
    }

    /// The lanes to use, home first, as soon as one of them is none of those that are `gone`. `warm`: connections open on all
    /// while the first answer is under way.
    async fn routes(&mut self, warm: bool, gone: &[Arc<Route>]) -> Result<Vec<Arc<Route>>, DownloadError> {
        let job = &self.shared.job;
        let is_there = |lane: &Arc<dyn Lane>| !gone.iter().any(|route| Arc::ptr_eq(&route.lane, lane));
        let some = self
            .lanes
            .wait_for(|lanes| choose_fresh(lanes, job).used.iter().any(is_there));
        let waited = tokio::time::timeout(LANES_LIMIT, self.stop.run_until_cancelled(some)).await;
        let choice = match waited {
            Ok(Some(Ok(lanes))) => choose_fresh(&lanes, job),
            Ok(None) => {
                return Err(DownloadError::Stopped {
                    resumable: self.resumable,
                });
            }
            Ok(Some(Err(_))) | Err(_) if gone.is_empty() => return Err(DownloadError::NoLanes),
            Ok(Some(Err(_))) | Err(_) => {
                let host = self.shared.host();
                return Err(DownloadError::LanesGone { host });
            }
        };
        let mut used = choice.used;
        used.sort_by_key(|lane| Some(lane.info().id) != self.majority);
        let few = used.len().min(MAX_CONNECTIONS / SLOTS);
        // Those that only share another one's line are asked where nobody else answers.
        let routes: Vec<_> = used
            .into_iter()
            .chain(choice.spare)
            .map(|lane| Arc::new(Route::new(lane, self.shared.clone())))
            .collect();
        let few = if warm { few } else { 0 };
        for (at, route) in routes.iter().take(few).enumerate() {
            // The home lane opens one itself, for the first question.
            route.warm(if at == 0 { SLOTS - 1 } else { SLOTS });
        }
        Ok(routes)
    }

    const fn stopped(&self) -> DownloadError {
        DownloadError::Stopped {
            resumable: self.resumable,
        }
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

    /// What plain http without a checksum means: members may have changed it, and others' lines were not used for it.
    fn plain_note(&self, used: &[(LaneInfo, u64)]) -> Option<String> {
        let job = &self.shared.job;
        let plain = job.url.scheme() == "http" && job.sha256.is_none() && job.pool;
        let by_members = used.iter().any(|(info, bytes)| info.peer.is_some() && *bytes > 0);
        let kept_from = || {
            let lanes = self.lanes.borrow();
            let mut tiers = lanes.iter().filter_map(|lane| lane.info().tier);
            tiers.any(|tier| !tier.may(Right::CarryPlain))
        };
        match plain {
            true if by_members => Some(BY_MEMBERS.to_owned()),
            true if kept_from() => Some(KEPT.to_owned()),
            _ => None,
        }
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
        let note = self.note.clone().or_else(|| self.plain_note(&lanes));
        Outcome {
            path,
            bytes,
            resumed: 0,
            duplicated: 0,
            elapsed: self.began.elapsed(),
            pooled: lanes.iter().filter(|(_, bytes)| *bytes > 0).count() > 1,
            lanes,
            members: Vec::new(),
            attested: None,
            best_single,
            note,
        }
    }
}
