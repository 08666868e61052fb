//! One request to the server and its answer: over one lane for a part ([`Line`]), over any lane for what makes and ends an
//! upload ([`Caller`]).
//!
//! Invariants: a request's body comes from the source as fast as the lane takes it and no faster (two blocks are read
//! ahead); its last block is only handed out once the source was seen unchanged after it was read; an answer's body is
//! bounded; dropping an exchange ends its connection.

mod caller;
mod line;
mod way;

pub(super) use caller::Caller;
pub(super) use line::{Line, Moved};
pub(super) use way::{Way, Ways};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::RETRY_AFTER;
use hyper::{HeaderMap, Method, StatusCode};
use rustls::ClientConfig;
use url::Url;

use super::error::UploadError;
use super::source::Source;
use crate::stripe::Part;
use crate::task::Tasks;

/// The longest pause that a server is granted.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What a request carries.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// What a target wrote itself.
    Bytes(Bytes),
    /// A part of a file of the source: `item` is the file's number.
    Part(Part),
}

/// A request; `Host`, `Content-Length` and `User-Agent` are added.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

impl Ask {
    /// Without headers and content.
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            content: Content::Empty,
        }
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// How long the server wants to be left alone; only seconds are understood, for a device's clock may be wrong.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self
            .headers
            .get(RETRY_AFTER)?
            .to_str()
            .ok()?
            .trim()
            .parse()
            .ok()?;
        Some(Duration::from_secs(seconds).min(MAX_PAUSE))
    }
}

/// Why a part did not get through over a lane.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection broke, or nothing came.
    Lane(String),
    /// The server wants less: 429, 503 SlowDown.
    Refused {
        retry_after: Option<Duration>,
        why: String,
    },
    /// The server has a fault: another 5xx.
    Origin(String),
    /// This lane cannot serve this upload.
    Ineligible(String),
    /// This file cannot be sent; others can.
    LeaveOut(String),
    /// The upload cannot go on.
    Fatal(UploadError),
}

/// Why a request that must not be repeated has no answer.
#[derive(Debug)]
pub(super) enum CallOnce {
    /// The server has not got it.
    NotSent(UploadError),
    /// The server may have got it, and done what it asks.
    Unknown(String),
}
/// What all exchanges of an upload share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) source: Arc<Source>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) tasks: Tasks,
}
