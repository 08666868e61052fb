//! What the daemon does for its command line: says how things are, downloads and uploads.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{
    self, Approval, ApproveRequest, Change, Done, Failed, GetRequest, Handler, Household, PutRequest, Reply,
    SCHEME, ShareRequest, SharedFiles, Status, Transfer,
};
use crate::download::{self, Files};
use crate::share;
use crate::transfer::{self, LaneState};
use crate::types::{LaneId, UplinkKind};
use crate::upload::{self, Sources, Stop};

use super::Node;
use super::household;
use super::jobs;
use super::offer;
use super::rates::{Brought, Rates};
use super::shared;
use super::status::{self, way};

/// Transfers under way, by a number that is never used again.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    pub(super) running: BTreeMap<u64, Running>,
    next: u64,
}

/// A download or an upload under way.
#[derive(Clone, Debug)]
pub(super) struct Running {
    progress: watch::Receiver<transfer::Progress>,
    pub(super) upload: bool,
}

impl Running {
    /// How far it is now.
    pub(super) fn progress(&self) -> api::Progress {
        api::Progress::of(&self.progress.borrow(), self.upload)
    }
}

impl Handler for Node {
    fn status(&self) -> Status {
        status::of(self)
    }

    fn get(&self, request: GetRequest, files: Arc<dyn Files>) -> BoxFuture<'_, Result<Transfer, Failed>> {
        async move {
            let job = match request.url.strip_prefix(SCHEME) {
                Some(what) => jobs::shared(&request, shared::wanted(self, what).await?)?,
                None => jobs::download(&request)?,
            };
            let by_hand = job.shared.is_some();
            let stop = self.transfer_tasks.token().child_token();
            let (progress, outcome) = self.download(job, files, stop.clone())?;
            let outcome = outcome.map(move |result| {
                let mut done = result.map(Done::from)?;
                if by_hand {
                    // Nobody would have fetched it over the internet.
                    done.saved = 0;
                }
                Ok(done)
            });
            Ok(Transfer {
                progress: self.told(progress, false),
                outcome: outcome.boxed(),
                abort: stop.clone(),
                stop,
            })
        }
        .boxed()
    }

    fn put(&self, request: PutRequest, sources: Arc<dyn Sources>, user: u32) -> Result<Transfer, Failed> {
        // Each user's own: whoever knows where an upload is can change and remove it.
        let job = jobs::upload(request, self.uploads.join(user.to_string()))?;
        let stop = Stop {
            stop: self.transfer_tasks.token().child_token(),
            abort: CancellationToken::new(),
        };
        let (progress, outcome) = self.upload(job, sources, stop.clone())?;
        let outcome = outcome.map(|result| result.map(Done::from).map_err(Failed::from));
        Ok(Transfer {
            progress: self.told(progress, true),
            outcome: outcome.boxed(),
            stop: stop.stop,
            abort: stop.abort,
        })
    }

    fn share(&self, request: ShareRequest, sources: Arc<dyn Sources>) -> Result<Transfer, Failed> {
        offer::begin(self, &request, sources)
    }

    fn unshare(&self, what: String) -> BoxFuture<'_, Result<SharedFiles, Failed>> {
        async move { offer::end(self, &what) }.boxed()
    }

    fn shared(&self) -> BoxFuture<'_, SharedFiles> {
        shared::all(self).boxed()
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

type Begun<T, E> = (
    watch::Receiver<transfer::Progress>,
    BoxFuture<'static, Result<T, E>>,
);

impl Node {
    /// Begins a download over all lanes; it goes on until it is done or stopped, whether or not it is waited for.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn download(
        &self,
        job: download::Job,
        files: Arc<dyn Files>,
        stop: CancellationToken,
    ) -> Result<Begun<download::Outcome, download::DownloadError>, Failed> {
        let context = download::Context {
            lanes: self.lanes(),
            tls: self.origin_tls()?,
            household: self.household().cloned(),
            tasks: self.transfer_tasks.child(),
        };
        let (sender, progress) = watch::channel(transfer::Progress::default());
        let number = self.register(progress.clone(), false);
        let transfers = Arc::clone(&self.transfers);
        let running = self.transfer_tasks.spawn_graceful("download", async move {
            // What is offered by hand nobody would have fetched over the internet.
            let saves = context.household.clone().filter(|_| job.shared.is_none());
            let outcome = download::run(job, files, context, sender, stop).await;
            if let (Some(household), Ok(outcome)) = (saves, &outcome) {
                count(&household, outcome);
            }
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

    /// The same for an upload. Nothing is learned from it: what is known of a line is what it brings, not what it takes.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn upload(
        &self,
        job: upload::Job,
        sources: Arc<dyn Sources>,
        stop: Stop,
    ) -> Result<Begun<upload::Outcome, upload::UploadError>, Failed> {
        let context = upload::Context {
            lanes: self.lanes(),
            tls: self.origin_tls()?,
            tasks: self.transfer_tasks.child(),
        };
        let (sender, progress) = watch::channel(transfer::Progress::default());
        let number = self.register(progress.clone(), true);
        let transfers = Arc::clone(&self.transfers);
        let running = self.transfer_tasks.spawn_graceful("upload", async move {
            let outcome = upload::run(job, sources, context, sender, stop).await;
            unlocked(&transfers).running.remove(&number);
            outcome
        });
        let outcome = async move {
            let ended = running.await;
            ended.unwrap_or_else(|e| Err(upload::UploadError::Task(e.to_string())))
        };
        Ok((progress, outcome.boxed()))
    }

    /// A transfer's progress in the API's words.
    fn told(
        &self,
        progress: watch::Receiver<transfer::Progress>,
        upload: bool,
    ) -> watch::Receiver<api::Progress> {
        // At once, so that the first line a client hears already says which of the two it is.
        let (told, receiver) = watch::channel(api::Progress::of(&progress.borrow(), upload));
        self.transfer_tasks
            .spawn("progress", follow(progress, upload, told));
        receiver
    }

    /// Read anew for each transfer, so that a daemon at rest does not hold hundreds of certificates.
    fn origin_tls(&self) -> Result<Arc<rustls::ClientConfig>, Failed> {
        if let Some(tls) = &self.origins {
            return Ok(Arc::clone(tls));
        }
        let (tls, authorities) = transfer::client_config().map_err(Failed::from)?;
        tracing::debug!(%authorities, "origins must be vouched for");
        Ok(tls)
    }

    fn register(&self, progress: watch::Receiver<transfer::Progress>, upload: bool) -> u64 {
        let mut transfers = self.transfers();
        let number = transfers.next;
        transfers.next += 1;
        transfers.running.insert(number, Running { progress, upload });
        number
    }

    /// How many downloads and how many uploads run.
    pub(super) fn running(&self) -> (usize, usize) {
        let transfers = self.transfers();
        let uploads = transfers.running.values().filter(|r| r.upload).count();
        (transfers.running.len() - uploads, uploads)
    }

    pub(super) fn transfers(&self) -> MutexGuard<'_, Transfers> {
        unlocked(&self.transfers)
    }
}

fn unlocked(transfers: &std::sync::Mutex<Transfers>) -> MutexGuard<'_, Transfers> {
    transfers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts what members brought, and what uplinks did beside that.
fn count(household: &share::Household, outcome: &download::Outcome) {
    let from_members: u64 = outcome.members.iter().map(|(_, _, bytes)| bytes).sum();
    let over_uplinks: u64 = outcome.lanes.iter().map(|(_, bytes)| bytes).sum();
    if from_members > 0 {
        household.brought(from_members, over_uplinks);
    }
}

/// Passes a transfer's progress on in the API's words.
async fn follow(
    mut from: watch::Receiver<transfer::Progress>,
    upload: bool,
    to: watch::Sender<api::Progress>,
) {
    while from.changed().await.is_ok() {
        to.send_replace(api::Progress::of(&from.borrow_and_update(), upload));
    }
}

/// Measures what each lane brings while a download runs: the hint for the next one, and what people are told to expect.
async fn learn(mut progress: watch::Receiver<transfer::Progress>, rates: Rates) {
    let mut before: BTreeMap<LaneId, u64> = BTreeMap::new();
    while progress.changed().await.is_ok() {
        let now = Instant::now();
        let lanes = progress.borrow_and_update().lanes.clone();
        // A disk in the house says nothing of a line.
        let uplinks = lanes.into_iter().filter(|l| l.info.kind != UplinkKind::Household);
        for lane in uplinks {
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
