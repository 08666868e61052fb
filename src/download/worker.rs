//! One lease at work: asks its lane for the range, checks the answer, lets the bytes flow, asks again for what is missing.
//!
//! Invariant: a byte is written only after the head of the answer that brought it was judged to fit (`answer`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::answer::{Asked, Known, Verdict, Why, judge};
use super::ask::{Answer, AskError, Question, ask};
use super::flow::{Flow, FlowError, Report, Sink};
use super::generation;
use super::route::Route;
use super::source::Right;
use crate::lane::DialError;
use crate::store::Generation;
use crate::store::StoreError;
use crate::stripe::Failure;
use crate::stripe::LeaseId;
use crate::transfer::{Connection, Endpoint, OpenError};
use crate::types::ByteRange;

/// How long a lane rests that shows a page of its own instead of the content: a captive portal (HTTP-20).
const QUARANTINE: Duration = Duration::from_secs(60);

/// What all workers of one run share.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) sink: Sink,
    pub(super) news: mpsc::Sender<News>,
    /// The origin drops the range of conditional requests: ask plainly, the answers are checked anyway (HTTP-4).
    pub(super) ask_plainly: AtomicBool,
}

/// What a worker tells the driver.
#[derive(Debug)]
pub(super) enum News {
    /// So many more bytes of the lease are written.
    Bytes(LeaseId, u64),
    /// A source brought a piece that is right, and what the lease wants of it is written.
    Right(LeaseId, Right),
    /// The worker is through, having come so far.
    Ended(LeaseId, u64, End),
}

/// How a worker ended.
#[derive(Debug)]
pub(super) enum End {
    /// At the lease's end.
    Done,
    /// The lane failed, for the scheduler and in words.
    Failed(Failure, String),
    /// The lender's limit is reached.
    Busy,
    /// The origin failed.
    Fault(StatusCode),
    /// The lane cannot serve this job.
    Ineligible(Why),
    /// The lane brings another version of the content.
    OtherGeneration {
        /// From the very address that the lane was pinned to.
        pinned: bool,
        /// Only the length was compared, and even that is another one.
        tolerant: bool,
        /// Which, where the answer says it.
        seen: Option<Generation>,
    },
    /// The holder served something else than this piece.
    Wrong(u64),
    /// What is vouched for is something else than what is there already.
    Lied,
    /// The disk failed.
    Store(StoreError),
}

/// A lease and what it needs.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) range: ByteRange,
    /// Where it ends now: at most `range.end`.
    pub(super) end: Arc<AtomicU64>,
    pub(super) route: Arc<Route>,
    pub(super) known: Arc<Known>,
    /// Workers of this lane that were told to stop: they are waited for, so that their connections are closed first.
    pub(super) dying: Vec<JoinHandle<Option<()>>>,
    /// An answer to exactly this lease's start that is there already.
    pub(super) answer: Option<Ready>,
}

/// An answer that was judged to fit.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) answer: Answer,
    pub(super) body: ByteRange,
    pub(super) skip: u64,
}

/// Works on the lease until it is done or fails, and tells how it ended.
pub(super) async fn work(mut lease: Lease, fetch: Arc<Fetch>) {
    for worker in lease.dying.drain(..) {
        // Aborted: it ends at once, in whatever way.
        let _ = worker.await;
    }
    let mut at = lease.range.start;
    let end = work_on(&mut lease, &fetch, &mut at).await;
    // Fails only where the driver is gone, and then nobody wants to know.
    let _ = fetch.news.send(News::Ended(lease.id, at, end)).await;
}

async fn work_on(lease: &mut Lease, fetch: &Fetch, at: &mut u64) -> End {
    let mut plainly = fetch.ask_plainly.load(Ordering::Relaxed);
    loop {
        let end = lease.end.load(Ordering::Relaxed);
        if *at >= end {
            return End::Done;
        }
        if let Some(ready) = lease.answer.take() {
            if let Err(end) = land((lease.id, &lease.end, &lease.route), fetch, ready, at).await {
                return end;
            }
            continue;
        }
        let range = ByteRange::new(*at, end);
        let condition = if plainly {
            None
        } else {
            generation::if_range(&lease.known.generation)
        };
        let conditional = condition.is_some();
        let question = Question {
            range: Some(range),
            condition,
        };
        let answer = match ask(&lease.route, &question).await {
            Ok(answer) => answer,
            Err(error) => return unanswered(&error),
        };
        let asked = Asked {
            range: Some(range),
            conditional,
            known: Some(&lease.known),
        };
        match judge(asked, answer.status, &answer.head, SystemTime::now()) {
            Verdict::Accept { body, skip, .. } => {
                lease.route.remember(&answer.url);
                if plainly {
                    fetch.ask_plainly.store(true, Ordering::Relaxed);
                }
                lease.answer = Some(Ready { answer, body, skip });
            }
            Verdict::RetryPlain => plainly = true,
            other => return rejected(other, lease, answer.connection.pinned),
        }
    }
}

/// Lets an answer's body flow into the file, up to the lease's end.
async fn land(
    (id, end, route): (LeaseId, &AtomicU64, &Route),
    fetch: &Fetch,
    ready: Ready,
    at: &mut u64,
) -> Result<(), End> {
    let Ready { answer, body, skip } = ready;
    let flow = Flow {
        connection: answer.connection,
        body: answer.body,
        at: *at,
        skip,
        end: Some(body.end),
    };
    let written = AtomicU64::new(*at);
    let report = Tell {
        id,
        written: &written,
        news: &fetch.news,
        route,
        endpoint: &answer.endpoint,
    };
    let landed = flow.run(end, &fetch.sink, report).await;
    *at = written.load(Ordering::Relaxed);
    match landed {
        Ok(_) => Ok(()),
        Err(FlowError::Store(error)) => Err(End::Store(error)),
        Err(other) => Err(End::Failed(Failure::Broken, other.to_string())),
    }
}

/// Tells the driver of written bytes.
struct Tell<'a> {
    id: LeaseId,
    written: &'a AtomicU64,
    news: &'a mpsc::Sender<News>,
    route: &'a Route,
    endpoint: &'a Endpoint,
}

impl Report for Tell<'_> {
    async fn written(&self, n: u64) {
        self.written.fetch_add(n, Ordering::Relaxed);
        // Fails only where the driver is gone.
        let _ = self.news.send(News::Bytes(self.id, n)).await;
    }

    fn idle(&self, connection: Connection) {
        self.route.put_back(self.endpoint.clone(), connection);
    }
}

/// What a failure before any answer means.
fn unanswered(error: &AskError) -> End {
    let text = error.to_string();
    match error {
        AskError::Open(OpenError::Dial(DialError::Refused(why))) => End::Ineligible(Why::Lender(*why)),
        AskError::Open(OpenError::Dial(DialError::Busy)) => End::Busy,
        AskError::Redirect(why) => End::Ineligible(Why::Redirect(why.clone())),
        AskError::Open(_) | AskError::Http(_) | AskError::Silent | AskError::Request(_) => {
            End::Failed(Failure::Broken, text)
        }
    }
}

/// What an answer that does not fit means.
fn rejected(verdict: Verdict, lease: &Lease, pinned: bool) -> End {
    let is_plain = lease.route.shared.job.url.scheme() == "http";
    let tolerant = lease.known.generation.validator.is_none();
    match verdict {
        Verdict::Changed(seen) => End::OtherGeneration {
            pinned,
            tolerant,
            seen: seen.map(|(total, validator)| Generation { total, validator }),
        },
        Verdict::Unsatisfied(_) => End::OtherGeneration {
            pinned,
            tolerant,
            seen: None,
        },
        Verdict::Refused { retry_after } => {
            let text = "the origin wants fewer connections over this line".to_owned();
            End::Failed(Failure::Refused { retry_after }, text)
        }
        Verdict::Ineligible(Why::OtherMedia) if is_plain => {
            let retry_after = Some(QUARANTINE);
            let text = "a page of its own instead of the content: a captive portal?".to_owned();
            End::Failed(Failure::Refused { retry_after }, text)
        }
        Verdict::Ineligible(why) => End::Ineligible(why),
        Verdict::OriginFault(status) => End::Fault(status),
        Verdict::Broken(what) => End::Failed(
            Failure::Broken,
            format!("an answer that contradicts itself: {what}"),
        ),
        // `ask` follows redirects, and neither of the others is a verdict on a lease.
        Verdict::Redirect | Verdict::Whole { .. } | Verdict::RetryPlain | Verdict::Accept { .. } => {
            End::Failed(Failure::Broken, "an answer out of place".to_owned())
        }
    }
}
