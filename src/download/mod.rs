//! One URL into one file, over all lanes there are: drives the pure scheduler `stripe`, lanes → `store`.
//!
//! The first request is a real ranged GET whose answer decides how to go on (`probe`): striped (`driver`, with a `worker`
//! for each lease) or as one stream (`single`). What an answer means is judged by pure code (`answer`, `generation`,
//! `redirect`); the table of hazards it implements is HTTP-1 to HTTP-31 of the design, and the tests bear its numbers.
//!
//! Invariants:
//! - A byte gets into the file only from an answer whose head was checked for that place and that version.
//! - The final name appears only when all bytes are there and the digest, if one was given, is right.
//! - When [`run`] returns, no connection, task or write of the job is left.

mod answer;
mod ask;
mod check;
mod driver;
mod error;
mod files;
mod flow;
mod generation;
mod job;
mod lanes;
mod name;
mod probe;
mod redirect;
mod route;
mod single;
mod slices;
mod source;
mod words;
mod worker;

pub use error::DownloadError;
pub use files::{Destination, Files, Local, Opened};
pub use job::run;
pub use redirect::RedirectError;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use rustls::ClientConfig;
use tokio::sync::watch;
use url::Url;

use crate::lane::LaneInfo;
use crate::lane::LaneSet;
use crate::share::{Household, Subject};
use crate::task::Tasks;
use crate::transfer::Progress;
use crate::types::{PeerId, Rate};

/// What to download.
#[derive(Clone, Debug)]
pub struct Job {
    /// An http or https URL.
    pub url: Url,
    /// Headers to send; but for a few harmless ones only to the URL's own origin, never to where it redirects.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The digest the complete file must have. `None`: not known.
    pub sha256: Option<[u8; 32]>,
    /// Whether lent lanes may be used, and what members have.
    pub pool: bool,
    /// It is offered by a member, and there is no origin: the URL is only its name. `None`: it comes from the URL.
    pub shared: Option<Shared>,
}

#[cfg(test)]
impl Job {
    /// What is wanted by a bare `get`.
    fn plain(url: &str) -> Self {
        Self {
            url: Url::parse(url).unwrap(),
            headers: Vec::new(),
            sha256: None,
            pool: true,
            shared: None,
        }
    }
}

/// What a member offers by hand (see [`Household::offered`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// What it is called: a wish, made safe before it becomes a file's name.
    pub name: String,
    /// Which content it is.
    pub subject: Subject,
    /// The digest that whoever offers it names.
    pub sha256: [u8; 32],
    /// Its length in bytes.
    pub total: u64,
}

/// What a download works with.
#[derive(Clone, Debug)]
pub struct Context {
    /// All lanes there are, own and lent; may change at any time.
    pub lanes: watch::Receiver<LaneSet>,
    /// TLS towards origins: see [`client_config`](crate::transfer::client_config).
    pub tls: Arc<ClientConfig>,
    /// What members have, and what this device lets them have. `None`: nothing is shared.
    pub household: Option<Household>,
    /// The scope the download's tasks live in.
    pub tasks: Tasks,
}

/// A download that succeeded.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The complete file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Of these, bytes that an earlier run had fetched.
    pub resumed: u64,
    /// Bytes that were fetched twice, by tail races.
    pub duplicated: u64,
    /// From the start of [`run`].
    pub elapsed: Duration,
    /// New bytes each lane brought.
    pub lanes: Vec<(LaneInfo, u64)>,
    /// The best lane's mean rate while it had work: what one uplink alone would have done, roughly. `None`: too little
    /// was fetched to say.
    pub best_single: Option<Rate>,
    /// Whether more than one lane brought bytes.
    pub pooled: bool,
    /// What members' disks brought: whose, what they are called, and how many bytes.
    pub members: Vec<(PeerId, String, u64)>,
    /// Who vouches for what they brought, where neither a digest nor the origin proves all of it.
    pub attested: Option<String>,
    /// Something the user should know, in words.
    pub note: Option<String>,
}
