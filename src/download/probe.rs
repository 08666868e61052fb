//! The first question: over the home lane, and over others where it fails or stays silent.
//!
//! It is a real GET of the first bytes that are wanted, never HEAD, and its answer decides everything (HTTP-2).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::StatusCode;
use tokio::time::{sleep, timeout};

use super::answer::{Asked, Known, Verdict, Why, judge};
use super::ask::{Answer, AskError, Question, ask};
use super::error::DownloadError;
use super::route::{Route, Shared};
use crate::clock;
use crate::lane::DialError;
use crate::transfer::OpenError;

/// A lane that says nothing for so long gets a rival.
const SILENCE: Duration = Duration::from_secs(2);
/// How often all lanes are asked where the origin is busy or has a fault.
const ROUNDS: u32 = 3;
/// Pause between two rounds where the origin names none.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two rounds: before anything flows, failing soon is better than waiting long.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How long a clock that was never set is waited for: a device without a battery for it gets the time from the network
/// some seconds after its start.
const CLOCK_LIMIT: Duration = Duration::from_secs(60);
/// How often the clock is looked at then.
const CLOCK_GLANCE: Duration = Duration::from_millis(500);

/// The first answer.
#[derive(Debug)]
pub(super) struct First {
    pub(super) answer: Answer,
    pub(super) verdict: Verdict,
    pub(super) route: Arc<Route>,
    /// From question to head, with the connection's set-up.
    pub(super) latency: Duration,
}

/// A question without answer that decides.
enum Miss {
    /// Over this lane nothing came.
    Ask(AskError),
    /// The origin refuses this lane, for now.
    Refused(StatusCode, Option<Duration>),
    /// The origin has a fault, or the answer is none.
    Fault(DownloadError),
}

/// Asks until an answer decides. `routes` is in order of preference and not empty.
///
/// # Errors
/// [`DownloadError::LanesGone`] as soon as no lane of these is left.
pub(super) async fn first(
    shared: &Shared,
    routes: &[Arc<Route>],
    question: &Question,
    known: Option<&Known>,
) -> Result<First, DownloadError> {
    let mut round = 1;
    let mut clock_waited_for = false;
    loop {
        let misses = match one_round(shared, routes, question, known).await {
            Ok(first) => return Ok(first),
            Err(misses) => misses,
        };
        if misses.iter().all(Miss::is_gone) {
            // These will not come back; whether others do is not known here.
            let host = shared.host();
            return Err(DownloadError::LanesGone { host });
        }
        if misses.iter().any(Miss::is_early) && !clock_waited_for {
            clock_waited_for = true;
            if wait_for_clock().await {
                // Those on their way were begun at the wrong time, too.
                routes.iter().for_each(|route| route.close_idle());
                continue;
            }
        }
        let wait = misses.iter().filter_map(Miss::retry_after).min();
        if round == ROUNDS || !misses.iter().any(Miss::may_pass) {
            return Err(explain(shared, misses));
        }
        sleep(wait.unwrap_or(PAUSE * round).min(MAX_PAUSE)).await;
        round += 1;
    }
}

/// Waits until the calendar may be right; whether it is now.
async fn wait_for_clock() -> bool {
    let now = SystemTime::now();
    if !clock::is_set(now) {
        let (date, limit) = (clock::date(now), CLOCK_LIMIT.as_secs());
        tracing::warn!("this device's clock says {date}: set it; waiting for it up to {limit} s");
    }
    let set = async {
        while !clock::is_set(SystemTime::now()) {
            sleep(CLOCK_GLANCE).await;
        }
    };
    timeout(CLOCK_LIMIT, set).await.is_ok()
}

/// Asks one lane after the other, each earlier one having failed or been silent; the first decisive answer wins.
async fn one_round(
    shared: &Shared,
    routes: &[Arc<Route>],
    question: &Question,
    known: Option<&Known>,
) -> Result<First, Vec<Miss>> {
    let mut waiting = routes.iter();
    let mut asked = FuturesUnordered::new();
    let mut misses = Vec::new();
    loop {
        let more = match waiting.next() {
            Some(route) => {
                asked.push(one(shared, route.clone(), question, known));
                waiting.len() > 0
            }
            None => false,
        };
        let answer = if more {
            timeout(SILENCE, asked.next()).await.ok()
        } else {
            Some(asked.next().await)
        };
        match answer {
            Some(Some(Ok(first))) => return Ok(first),
            Some(Some(Err(miss))) => misses.push(miss),
            Some(None) => return Err(misses),
            None => {}
        }
    }
}

async fn one(
    shared: &Shared,
    route: Arc<Route>,
    question: &Question,
    known: Option<&Known>,
) -> Result<First, Miss> {
    let started = Instant::now();
    let answer = ask(&route, question).await.map_err(Miss::Ask)?;
    let asked = Asked {
        range: question.range,
        conditional: question.condition.is_some(),
        known,
    };
    let verdict = judge(asked, answer.status, &answer.head, SystemTime::now());
    let status = answer.status;
    let host = shared.host();
    match verdict {
        Verdict::Refused { retry_after } => Err(Miss::Refused(status, retry_after)),
        Verdict::OriginFault(status) => Err(Miss::Fault(DownloadError::Status { host, status })),
        // Another line may be let in.
        Verdict::Ineligible(Why::Status(
            StatusCode::FORBIDDEN | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
        )) => Err(Miss::Fault(DownloadError::Status { host, status })),
        Verdict::Broken(why) => {
            let why = why.to_owned();
            Err(Miss::Fault(DownloadError::Answer { host, why }))
        }
        verdict => {
            if matches!(verdict, Verdict::Accept { .. } | Verdict::Whole { .. }) {
                route.remember(&answer.url);
            }
            let latency = started.elapsed();
            Ok(First {
                answer,
                verdict,
                route,
                latency,
            })
        }
    }
}

impl Miss {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(_, wait) => *wait,
            Self::Ask(_) | Self::Fault(_) => None,
        }
    }

    /// Whether asking again later may help.
    fn may_pass(&self) -> bool {
        match self {
            Self::Refused(..) => true,
            Self::Fault(DownloadError::Status { status, .. }) => status.is_server_error(),
            Self::Fault(_) => false,
            Self::Ask(error) => match error {
                AskError::Open(OpenError::Certificate { .. } | OpenError::ClockNotSet { .. })
                | AskError::Redirect(_)
                | AskError::Request(_) => false,
                AskError::Open(_) | AskError::Http(_) | AskError::Silent => true,
            },
        }
    }

    /// Whether it was before its time: the clock was never set.
    const fn is_early(&self) -> bool {
        matches!(self, Self::Ask(AskError::Open(OpenError::ClockNotSet { .. })))
    }

    /// Whether the lane itself is gone.
    const fn is_gone(&self) -> bool {
        matches!(
            self,
            Self::Ask(AskError::Open(OpenError::Dial(DialError::LaneGone)))
        )
    }

    /// How much the miss says about the origin, rather than about a lane.
    fn weight(&self) -> u8 {
        match self {
            Self::Fault(_) | Self::Refused(..) => 2,
            Self::Ask(AskError::Open(OpenError::Dial(_))) => 0,
            Self::Ask(_) => 1,
        }
    }
}

/// The miss that says most, in words for the user; among equals, that of the most preferred lane.
fn explain(shared: &Shared, misses: Vec<Miss>) -> DownloadError {
    let host = shared.host();
    let best = misses.into_iter().rev().max_by_key(Miss::weight);
    match best {
        None => DownloadError::NoLanes,
        Some(Miss::Fault(error)) => error,
        Some(Miss::Refused(status, _)) => DownloadError::Status { host, status },
        Some(Miss::Ask(AskError::Redirect(why))) => DownloadError::Redirect { host, why },
        Some(Miss::Ask(AskError::Open(OpenError::Certificate { host, detail }))) => {
            DownloadError::Certificate { host, detail }
        }
        Some(Miss::Ask(AskError::Open(OpenError::ClockNotSet { host, date }))) => {
            DownloadError::ClockNotSet {
                host,
                date,
                seconds: CLOCK_LIMIT.as_secs(),
            }
        }
        Some(Miss::Ask(error)) => {
            let detail = chain(&error);
            DownloadError::Unreachable { host, detail }
        }
    }
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
