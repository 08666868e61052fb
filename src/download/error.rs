//! Why a download did not happen, in words that say what, where and what to do.

use hyper::StatusCode;

use super::redirect::RedirectError;
use crate::store::StoreError;

/// A download that failed or was stopped.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Not a URL that can be downloaded.
    #[error("`{url}` cannot be downloaded: {why}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A header the user may not set, because the download sets it itself.
    #[error("the header `{0}` cannot be set: the download sets it itself")]
    Header(String),
    /// No way out to the internet.
    #[error("no uplink: this device has no default route and no peer lends one; connect one and try again")]
    NoLanes,
    /// What only members have does not come.
    #[error(
        "nothing came for {seconds} s: no member that offers it is there; what is fetched stays for the next time"
    )]
    NoHolder {
        /// How long it was waited for.
        seconds: u64,
    },
    /// No lane reached the origin.
    #[error("cannot reach {host}: {detail}")]
    Unreachable {
        /// The origin.
        host: String,
        /// What the best lane said.
        detail: String,
    },
    /// Every lane went away while the origin was asked, and no other came.
    #[error("cannot reach {host}: every uplink and peer that it was asked over went away; try again")]
    LanesGone {
        /// The origin.
        host: String,
    },
    /// The origin's certificate is not valid.
    #[error("{host} could not prove who it is: {detail}; nothing was sent to it")]
    Certificate {
        /// The origin.
        host: String,
        /// What TLS said.
        detail: String,
    },
    /// This device does not know what time it is, so no certificate can be checked.
    #[error(
        "this device's clock says {date}: set it; after {seconds} s it still was not right, and without it {host} \
         cannot prove who it is; run the same command again then"
    )]
    ClockNotSet {
        /// The origin.
        host: String,
        /// What the clock says.
        date: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A fault of this program.
    #[error("the download's task failed: {0}")]
    Task(String),
    /// The origin answered, but not with the content.
    #[error("{host} answered {status}{}", advice(*.status))]
    Status {
        /// The origin.
        host: String,
        /// Its answer.
        status: StatusCode,
    },
    /// A redirect that is not followed.
    #[error("{host} sent {why}")]
    Redirect {
        /// The origin.
        host: String,
        /// What is wrong with it.
        why: RedirectError,
    },
    /// The origin's answers are unusable.
    #[error("{host} sent an answer that cannot be used: {why}")]
    Answer {
        /// The origin.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// The content changed on the origin while it was fetched, again and again.
    #[error("the content at {host} changed {times} times while it was fetched; try again when it is at rest")]
    Changing {
        /// The origin.
        host: String,
        /// How often.
        times: u32,
    },
    /// For a long time no lane brought anything.
    #[error(
        "no lane brought a byte for {seconds} s (last: {detail}); run the same command again to continue"
    )]
    Stalled {
        /// How long.
        seconds: u64,
        /// The last failure.
        detail: String,
    },
    /// One stream broke too often, and the origin cannot continue one.
    #[error(
        "the transfer broke {times} times (last: {detail}), and {host} cannot continue one in the middle"
    )]
    Broken {
        /// The origin.
        host: String,
        /// How often.
        times: u32,
        /// The last failure.
        detail: String,
    },
    /// The disk or the file: no space, busy, wrong checksum and more.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Stopped from outside.
    #[error("stopped{}", if *.resumable { "; run the same command again to continue" } else { "" })]
    Stopped {
        /// Whether what was fetched stays for the next time.
        resumable: bool,
    },
}

fn advice(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => " (it wants a login: give the header it expects with -H)",
        403 => " (it refuses: the link may have run out, or be tied to another address)",
        404 => " (there is nothing at this URL)",
        410 => " (the content was removed)",
        429 => " (too many requests: wait some minutes)",
        451 => " (refused for legal reasons where this line is)",
        500..=599 => " (a fault of the server: try again later)",
        _ => "",
    }
}
