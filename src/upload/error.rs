//! Why an upload did not happen, in words that say what, where and what to do.

use hyper::StatusCode;

/// An upload that failed or was stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UploadError {
    /// Not something that can be uploaded to.
    #[error("`{url}` cannot be uploaded to: {why}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it, and what is allowed.
        why: String,
    },
    /// The request makes no sense for this target.
    #[error("{0}")]
    Usage(String),
    /// The source cannot be read, or not any more.
    #[error("cannot read `{name}`: {why}")]
    Source {
        /// The file.
        name: String,
        /// What the system says.
        why: String,
    },
    /// The source changed while it was read.
    #[error(
        "`{name}` changed while it was sent ({what}); nothing was completed; try again when it is at rest"
    )]
    Changed {
        /// The file.
        name: String,
        /// What is different: its length, its time, that it was replaced.
        what: String,
    },
    /// No way out to the internet.
    #[error("no uplink: this device has no default route and no peer lends one; connect one and try again")]
    NoLanes,
    /// No lane reached the server.
    #[error("cannot reach {host}: {detail}")]
    Unreachable {
        /// The server.
        host: String,
        /// What the best lane said.
        detail: String,
    },
    /// The server's certificate is not valid.
    #[error("{host} could not prove who it is: {detail}; nothing was sent to it")]
    Certificate {
        /// The server.
        host: String,
        /// What TLS said.
        detail: String,
    },
    /// The server refuses: credentials, rights, no such bucket and the like.
    #[error("{host} refuses: {why}")]
    Refused {
        /// The server.
        host: String,
        /// What it says and what to do about it.
        why: String,
    },
    /// The server answered with what makes no sense here.
    #[error("{host} answered {status}: {why}")]
    Status {
        /// The server.
        host: String,
        /// Its answer.
        status: StatusCode,
        /// What it was asked for and what to do.
        why: String,
    },
    /// The server's answers are unusable.
    #[error("{host} sent an answer that cannot be used: {why}")]
    Answer {
        /// The server.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// The server has something else than what was sent.
    #[error("{host} has something else than what was sent: {why}; nothing was completed")]
    Corrupt {
        /// The server.
        host: String,
        /// What differs.
        why: String,
    },
    /// For a long time no lane carried anything.
    #[error(
        "no lane carried a byte for {seconds} s (last: {detail}); run the same command again to continue"
    )]
    Stalled {
        /// How long.
        seconds: u64,
        /// The last failure.
        detail: String,
    },
    /// What was sent before could not be removed.
    #[error("{error}; what was sent before is still there, because it could not be removed: {why}")]
    LeftBehind {
        /// What went wrong at first.
        error: Box<Self>,
        /// Why it is still there.
        why: String,
    },
    /// Stopped from outside.
    #[error("stopped{}", if *.resumable { "; run the same command again to continue, or with --abort to remove what was sent" } else { "; what was sent was removed" })]
    Stopped {
        /// Whether what was sent stays for the next time.
        resumable: bool,
    },
    /// Files in the hands of another process that this one does not take, or that it was not given.
    #[error("these files are not taken: {0}")]
    NotTaken(String),
    /// A fault of this program.
    #[error("the upload's task failed: {0}")]
    Task(String),
}
