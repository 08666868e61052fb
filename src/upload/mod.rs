//! Files into an upload target, over all lanes there are: drives the pure scheduler `stripe::Parts`, source → lanes.
//!
//! A target (`s3`, `tus`, `dav`) says what there is to send and how one part is sent; the driver decides by the scheduler
//! which lane sends which part, and the targets judge what the server says to it.
//!
//! Invariants:
//! - A part is only counted when the server has confirmed it, and what it confirmed is what the source holds.
//! - A source that changes while it is read ends the upload; nothing is completed then.
//! - What completes an object is sent once, and only when all parts are confirmed.
//! - When [`run`] returns, no connection, task or read of the job is left.

mod dav;
#[cfg(any(fuzzing, test))]
pub(crate) mod door;
mod driver;
mod error;
mod exchange;
mod job;
mod list;
mod members;
pub mod s3;
mod source;
mod tus;
mod web;

pub use error::UploadError;
pub use job::run;
pub use list::{Listing, list};
pub use source::{Listed, LocalSources, Sources};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use hyper::header::{HeaderName, HeaderValue};
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::lane::{LaneInfo, LaneSet};
use crate::stripe::{Part, Work};
use crate::task::Tasks;
use crate::types::Rate;
use exchange::{Caller, Line, Trouble};

/// What to upload, and where to; what from is said by [`Sources`].
#[derive(Clone, Debug)]
pub struct Job {
    /// `s3://BUCKET/KEY`, `tus+https://…`, `https://…` (and the same with `http` for tus and PUT).
    pub target: Url,
    /// What S3 needs besides; `None` for the others.
    pub s3: Option<S3Options>,
    /// Headers to send with every request that is not signed (tus, PUT).
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether lent lanes may be used.
    pub pool: bool,
    /// Parts of exactly this length, but the last. `None`: as the target likes it.
    pub part_size: Option<u64>,
    /// Whether to remove an unfinished upload instead of sending anything.
    pub abort: bool,
    /// Where a target whose server has no list of what it was sent (tus) remembers it for the next run; made where it is
    /// missing. `None`: nowhere, and every run begins anew.
    pub journal: Option<PathBuf>,
}

impl Job {
    /// The target as people are shown it.
    fn shown_target(&self) -> String {
        let mut url = self.target.clone();
        // Fails only for URLs that cannot have one.
        let _ = url.set_password(None);
        url.to_string()
    }

    /// Whether the way there could read and change what is sent.
    fn is_plain(&self) -> bool {
        let endpoint = self.s3.as_ref().and_then(|s3| s3.endpoint.as_ref());
        match self.target.scheme() {
            "s3" => endpoint.is_some_and(|url| url.scheme() == "http"),
            scheme => matches!(scheme, "http" | "tus+http"),
        }
    }
}

/// Where an S3 service is and who is asking.
#[derive(Clone)]
pub struct S3Options {
    /// The service. `None`: AWS in `region`.
    pub endpoint: Option<Url>,
    /// The region that requests are signed for.
    pub region: String,
    /// Who is asking.
    pub access_key: String,
    /// What the requests are signed with.
    pub secret_key: String,
    /// Of temporary credentials.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// An upload that succeeded; of many files, one that went through to its end.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Where it is now, for people.
    pub place: String,
    /// Length of all that is there now.
    pub bytes: u64,
    /// Of these, bytes that an earlier run had sent.
    pub resumed: u64,
    /// Bytes that were sent twice, by tail races.
    pub duplicated: u64,
    /// From the start of [`run`](crate::upload).
    pub elapsed: Duration,
    /// Bytes each lane carried that counted.
    pub lanes: Vec<(LaneInfo, u64)>,
    /// The best lane's mean rate while it had work. `None`: too little was sent to say.
    pub best_single: Option<Rate>,
    /// What became of many files; `None` for one.
    pub files: Option<Files>,
    /// Something the user should know, in words.
    pub note: Option<String>,
}

/// What became of many files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Sent in this run.
    pub sent: u64,
    /// There already, with the same content as far as can be told.
    pub same: u64,
    /// Not sent, and why: at most as many as are told, the first ones.
    pub left_out: Vec<(String, String)>,
    /// How many were left out in all.
    pub left_out_count: u64,
}

/// A file of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Relative to the directory that is sent, with `/`; of a single file its name.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// When it was last changed.
    pub modified: SystemTime,
}

/// What an upload works with.
#[derive(Clone, Debug)]
pub struct Context {
    /// All lanes there are, own and lent; may change at any time.
    pub lanes: watch::Receiver<LaneSet>,
    /// TLS towards servers: see [`client_config`](crate::transfer::client_config).
    pub tls: Arc<ClientConfig>,
    /// The scope the upload's tasks live in.
    pub tasks: Tasks,
}

/// How an upload is ended from outside.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Ends it so that the same command goes on where it was.
    pub stop: CancellationToken,
    /// Ends it and removes what was sent. Counts also while it is ending by `stop`.
    pub abort: CancellationToken,
}

/// One way to store what is sent: S3, tus, plain PUT.
trait Target: std::fmt::Debug + Send + Sync {
    /// Sends one part of the work over one lane, in as many requests as it takes, and judges the answers.
    fn send<'a>(&'a self, part: Part, line: &'a Line) -> BoxFuture<'a, Result<(), Trouble>>;

    /// All parts are there: makes the object of them, exactly once.
    fn finish<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Finished, UploadError>>;

    /// Removes what is unfinished at the server.
    fn abort<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<(), UploadError>>;
}

/// What a target says at first, after it looked what the server has.
#[derive(Debug)]
struct Opened {
    target: Arc<dyn Target>,
    /// What is to be sent.
    work: Work,
    /// Bytes an earlier run has sent.
    resumed: u64,
    /// Something the user should know.
    note: Option<String>,
}

/// What a target says at last.
#[derive(Debug, Default)]
struct Finished {
    /// Where it is, for people.
    place: String,
    /// What became of many files.
    files: Option<Files>,
    /// Something the user should know.
    note: Option<String>,
}
