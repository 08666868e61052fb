//! Any lane, for requests that make, look at and end an upload.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hyper::StatusCode;
use tokio::sync::watch;
use tokio::time::timeout;

use super::line::Meter;
use super::way::{Miss, Way, Ways};
use super::{Answer, Ask, CallOnce};
use crate::lane::LaneSet;
use crate::transfer::{HEAD_LIMIT, OpenError, Record, Terms, sort_out};
use crate::upload::error::UploadError;

/// What completes an object may take minutes: some services join its parts then.
const COMPLETION_LIMIT: Duration = Duration::from_secs(120);
/// Rounds over all lanes of a request that may be repeated.
const ROUNDS: u32 = 5;
/// Between them, growing; what a server asks for counts more, up to a minute.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for a first lane: a peer found just now needs a moment.
const LANES_LIMIT: Duration = Duration::from_secs(10);

/// Any lane, for requests that make, look at and end an upload.
#[derive(Debug)]
pub(in crate::upload) struct Caller {
    lanes: watch::Receiver<LaneSet>,
    terms: Terms,
    ways: Arc<Ways>,
}

impl Caller {
    pub(in crate::upload) const fn new(
        ways: Arc<Ways>,
        lanes: watch::Receiver<LaneSet>,
        terms: Terms,
    ) -> Self {
        Self { lanes, terms, ways }
    }

    /// A request that may be repeated: over the best lane, over the next where that fails, again after a while where all
    /// do or the server has a fault. An answer that is still a fault then is returned.
    pub(in crate::upload) async fn call(&self, ask: &Ask) -> Result<Answer, UploadError> {
        let host = ask.url.host_str().unwrap_or_default().to_owned();
        let mut last = None;
        for round in 1..=ROUNDS {
            let mut pause = PAUSE * round;
            let mut faulty = None;
            for way in self.ways().await? {
                match way.exchange(ask, HEAD_LIMIT, false, &Meter::mute()).await {
                    Ok(answer) if passes(answer.status) => {
                        pause = answer.retry_after().unwrap_or(pause);
                        faulty = Some(answer);
                        break;
                    }
                    Ok(answer) => return Ok(answer),
                    Err(miss) => {
                        if let Some(error) = decisive(&miss, &host) {
                            return Err(error);
                        }
                        last = Some(miss.to_string());
                    }
                }
            }
            if round == ROUNDS {
                if let Some(answer) = faulty {
                    return Ok(answer);
                }
                break;
            }
            tokio::time::sleep(pause).await;
        }
        let detail = last.unwrap_or_else(|| "no lane answered".to_owned());
        Err(UploadError::Unreachable { host, detail })
    }

    /// A request that must not be sent twice: over a new connection of the best lane that gives one.
    pub(in crate::upload) async fn call_once(&self, ask: &Ask) -> Result<Answer, CallOnce> {
        let host = ask.url.host_str().unwrap_or_default().to_owned();
        let mut detail = "no lane answered".to_owned();
        for way in self.ways().await.map_err(CallOnce::NotSent)? {
            match way.exchange(ask, COMPLETION_LIMIT, true, &Meter::mute()).await {
                Ok(answer) => return Ok(answer),
                Err(miss @ Miss::Open(_)) => {
                    if let Some(error) = decisive(&miss, &host) {
                        return Err(CallOnce::NotSent(error));
                    }
                    detail = miss.to_string();
                }
                Err(miss) => return Err(CallOnce::Unknown(miss.to_string())),
            }
        }
        Err(CallOnce::NotSent(UploadError::Unreachable { host, detail }))
    }

    /// The same request for many things, a few at a time over all lanes; the answers come in the order of the requests.
    pub(in crate::upload) async fn call_all(
        &self,
        asks: Vec<Ask>,
        at_once: usize,
    ) -> Vec<Result<Answer, UploadError>> {
        let answers = asks.into_iter().map(|ask| async move { self.call(&ask).await });
        futures_util::stream::iter(answers)
            .buffered(at_once)
            .collect()
            .await
    }

    /// The lanes to ask, the best first; waits for a first one.
    async fn ways(&self) -> Result<Vec<Arc<Way>>, UploadError> {
        let mut lanes = self.lanes.clone();
        let any = |set: &LaneSet| !sort_out(set, self.terms, |_| Record::Fresh).used.is_empty();
        let waited = timeout(LANES_LIMIT, lanes.wait_for(any)).await;
        let Ok(Ok(_)) = waited else {
            return Err(UploadError::NoLanes);
        };
        let choice = sort_out(&self.lanes.borrow(), self.terms, |_| Record::Fresh);
        let used = choice.used.iter();
        Ok(used.map(|lane| self.ways.of(lane)).collect())
    }
}

/// Whether the same request may do later. What a server does not have, or has no room for, it will not have then either.
fn passes(status: StatusCode) -> bool {
    let lasting = matches!(
        status,
        StatusCode::NOT_IMPLEMENTED
            | StatusCode::HTTP_VERSION_NOT_SUPPORTED
            | StatusCode::INSUFFICIENT_STORAGE
    );
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() && !lasting
}

/// What no other lane and no later time will mend.
fn decisive(miss: &Miss, host: &str) -> Option<UploadError> {
    let host = host.to_owned();
    match miss {
        Miss::Source(error) => Some(error.clone()),
        Miss::Request(why) => Some(UploadError::Answer {
            host,
            why: why.clone(),
        }),
        Miss::Open(OpenError::Certificate { detail, .. }) => Some(UploadError::Certificate {
            host,
            detail: detail.clone(),
        }),
        Miss::Open(error @ OpenError::ClockNotSet { .. }) => Some(UploadError::Certificate {
            host,
            detail: error.to_string(),
        }),
        _ => None,
    }
}
