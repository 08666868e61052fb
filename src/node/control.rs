//! What the daemon does for its command line: says how things are, and downloads.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::api::convert::USAGE;
use crate::api::{
    self, Approval, ApproveRequest, Change, Done, Failed, GetRequest, Handler, Household, Reply, Status,
    Transfer,
};
use crate::download::{self, Context, Files, Job};
use crate::transfer::{self, LaneState};
use crate::types::{LaneId, sha256_from_hex};

use super::Node;
use super::household;
use super::rates::{Brought, Rates};
use super::status::{self, way};

/// Downloads under way, by a number that is never used again.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    pub(super) running: BTreeMap<u64, watch::Receiver<transfer::Progress>>,
    next: u64,
}

impl Handler for Node {
    fn status(&self) -> Status {
        status::of(self)
    }

    fn get(&self, request: GetRequest, files: Arc<dyn Files>) -> Result<Transfer, Failed> {
        let job = job(&request)?;
        let stop = self.transfer_tasks.token().child_token();
        let (progress, outcome) = self.download(job, files, stop.clone())?;
        let (told, receiver) = watch::channel(api::Progress::default());
        self.transfer_tasks.spawn("progress", follow(progress, told));
        let outcome = outcome
            .map(|result| result.map(Done::from).map_err(Failed::from))
            .boxed();
        Ok(Transfer {
            progress: receiver,
            outcome,
            stop,
        })
    }

    fn peers(&self) -> Household {
        household::of(self)
    }

    fn change(&self, change: Change) -> BoxFuture<'static, Result<Reply, Failed>> {
        household::change(self, change)
    }

    fn approve(&self, request: ApproveRequest) -> Result<Approval, Failed> {
        household::approve(self, &request)
    }
}

type Outcome = BoxFuture<'static, Result<download::Outcome, download::DownloadError>>;

impl Node {
    /// Begins a download over all lanes; it goes on until it is done or stopped, whether or not it is waited for.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn download(
        &self,
        job: Job,
        files: Arc<dyn Files>,
        stop: CancellationToken,
    ) -> Result<(watch::Receiver<transfer::Progress>, Outcome), Failed> {
        let tls = self.origin_tls()?;
        let context = Context {
            lanes: self.lanes(),
            tls,
            tasks: self.transfer_tasks.child(),
        };
        let (sender, progress) = watch::channel(transfer::Progress::default());
        let number = self.register(progress.clone());
        let transfers = Arc::clone(&self.transfers);
        let running = self.transfer_tasks.spawn_graceful("download", async move {
            let outcome = download::run(job, files, context, sender, stop).await;
            unlocked(&transfers).running.remove(&number);
            outcome
        });
        self.transfer_tasks
            .spawn("learn-rates", learn(progress.clone(), self.rates.clone()));
        let outcome = async move {
            let ended = running.await;
            ended.unwrap_or_else(|e| Err(download::DownloadError::Task(e.to_string())))
        };
        Ok((progress, outcome.boxed()))
    }

    /// Read anew for each download, so that a daemon at rest does not hold hundreds of certificates.
    fn origin_tls(&self) -> Result<Arc<rustls::ClientConfig>, Failed> {
        if let Some(tls) = &self.origins {
            return Ok(Arc::clone(tls));
        }
        let (tls, authorities) = transfer::client_config().map_err(Failed::from)?;
        tracing::debug!(%authorities, "origins must be vouched for");
        Ok(tls)
    }

    fn register(&self, progress: watch::Receiver<transfer::Progress>) -> u64 {
        let mut transfers = self.transfers();
        let number = transfers.next;
        transfers.next += 1;
        transfers.running.insert(number, progress);
        number
    }

    /// How many downloads run.
    pub(super) fn running(&self) -> usize {
        self.transfers().running.len()
    }

    pub(super) fn transfers(&self) -> MutexGuard<'_, Transfers> {
        unlocked(&self.transfers)
    }
}

fn unlocked(transfers: &std::sync::Mutex<Transfers>) -> MutexGuard<'_, Transfers> {
    transfers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes a download's progress on in the API's words.
async fn follow(mut from: watch::Receiver<transfer::Progress>, to: watch::Sender<api::Progress>) {
    loop {
        to.send_replace((&*from.borrow_and_update()).into());
        if from.changed().await.is_err() {
            return;
        }
    }
}

/// A request as a job, or what is wrong with it.
///
/// # Errors
/// Where the URL, a header, or the checksum is not one.
fn job(request: &GetRequest) -> Result<Job, Failed> {
    let wrong = |message: String| Failed { code: USAGE, message };
    let url = Url::parse(&request.url).map_err(|e| {
        wrong(format!(
            "`{}` is not a URL ({e}); write one such as https://example.org/file",
            request.url
        ))
    })?;
    let mut headers = Vec::new();
    for (name, value) in &request.headers {
        let parsed = HeaderName::from_str(name)
            .ok()
            .zip(HeaderValue::from_str(value).ok());
        headers.push(parsed.ok_or_else(|| wrong(format!("`{name}` is not a header that can be sent")))?);
    }
    let wrong_digest = || wrong("a SHA-256 is 64 hexadecimal digits".into());
    let sha256 = request
        .sha256
        .as_deref()
        .map(|hex| sha256_from_hex(hex).ok_or_else(wrong_digest))
        .transpose()?;
    Ok(Job {
        url,
        headers,
        sha256,
        pool: request.pool,
    })
}

/// Measures what each lane brings while a download runs: the hint for the next one, and what people are told to expect.
async fn learn(mut progress: watch::Receiver<transfer::Progress>, rates: Rates) {
    let mut before: BTreeMap<LaneId, u64> = BTreeMap::new();
    while progress.changed().await.is_ok() {
        let now = Instant::now();
        let lanes = progress.borrow_and_update().lanes.clone();
        for lane in lanes {
            let seen = before.insert(lane.info.id, lane.bytes).unwrap_or_default();
            let brought = Brought {
                bytes: lane.bytes.saturating_sub(seen),
                wanted: lane.state == LaneState::Active,
            };
            if brought.bytes > 0 || brought.wanted {
                rates.brought(&way(&lane.info), brought, now);
            }
        }
    }
}
