//! What an origin's answer means, given what was asked: pure, no I/O.
//!
//! Invariants: only [`Verdict::Accept`] and [`Verdict::Whole`] let body bytes near a file, and an accepted range always
//! holds the first byte asked for, lies within the total, and belongs to the generation that was known (HTTP-5, HTTP-6).

use std::fmt;
use std::time::{Duration, SystemTime};

use headers::{ContentLength, Date, Header};
use hyper::HeaderMap;
use hyper::StatusCode;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use hyper::header::{RETRY_AFTER, TRANSFER_ENCODING};

use super::generation;
use super::redirect::RedirectError;
use crate::store::Generation;
use crate::store::Validator;
use crate::types::ByteRange;

/// How far before the byte asked for a range may start (block-aligned caches do that): more is a waste of the lane.
const MAX_SKIP: u64 = 1 << 20;
/// The longest `Retry-After` that is honoured; longer ones are cut to it (HTTP-16).
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What a request asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The byte range. `None`: everything.
    pub(super) range: Option<ByteRange>,
    /// Whether `If-Range` was sent with it.
    pub(super) conditional: bool,
    /// The version all answers must be of. `None`: this is the first answer.
    pub(super) known: Option<&'a Known>,
}

/// What is known of the content from an earlier answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Length and validator; without validator only the length is compared, because a digest will decide.
    pub(super) generation: Generation,
    /// The media type, without parameters. `None`: the origin gave none, or this comes from a journal.
    pub(super) media: Option<String>,
}

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A 206 that fits: the body is exactly `body`; the first byte asked for comes after `skip` others.
    Accept {
        body: ByteRange,
        skip: u64,
        total: u64,
        validator: Option<Validator>,
    },
    /// A 200 where one was possible: the body is the whole content.
    Whole {
        len: Option<u64>,
        validator: Option<Validator>,
        encoded: bool,
    },
    /// A 200 or 412 to an `If-Range` request: changed, or a cache that drops the range (HTTP-4). Ask again without it.
    RetryPlain,
    /// Another version of the content. What is known of it: its length and validator.
    Changed(Option<(u64, Option<Validator>)>),
    /// 416: no such range; the total where the origin says it.
    Unsatisfied(Option<u64>),
    /// 3xx: see `redirect`.
    Redirect,
    /// 429 or 503: the origin wants less of this lane.
    Refused { retry_after: Option<Duration> },
    /// This lane cannot serve this job.
    Ineligible(Why),
    /// The origin has a problem of its own (5xx).
    OriginFault(StatusCode),
    /// The answer contradicts itself: the connection is not to be trusted further.
    Broken(&'static str),
}

/// Why a lane cannot serve a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The origin answers with this status.
    Status(StatusCode),
    /// The origin sends everything, or several parts, where one range was asked for.
    NoRange,
    /// The bytes are compressed though that was not allowed: their positions mean nothing.
    Encoded,
    /// Another kind of content than the first answer had: a login page, a portal.
    OtherMedia,
    /// Another version of the content than the other lanes have.
    OtherGeneration,
    /// The lender will not do it.
    Lender(crate::link::Refusal),
    /// The origin sends it where it must not follow.
    Redirect(RedirectError),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE)) => {
                write!(
                    f,
                    "the origin may tie the link to one address: answered {status} here"
                )
            }
            Self::Status(status) => write!(f, "answered {status} here"),
            Self::NoRange => f.write_str("no ranges here"),
            Self::Encoded => f.write_str("compressed here"),
            Self::OtherMedia => f.write_str("another page here: a login?"),
            Self::OtherGeneration => f.write_str("another version of the content here"),
            Self::Lender(why) => write!(f, "refused by its owner: {why}"),
            Self::Redirect(why) => write!(f, "sent {why}"),
        }
    }
}

/// Judges an answer's head. `now` is only for a `Retry-After` date of an origin that does not say what time it has.
pub(super) fn judge(asked: Asked<'_>, status: StatusCode, head: &HeaderMap, now: SystemTime) -> Verdict {
    if head.contains_key(TRANSFER_ENCODING) && head.contains_key(CONTENT_LENGTH) {
        return Verdict::Broken("both Transfer-Encoding and Content-Length");
    }
    match status.as_u16() {
        206 => partial(asked, head),
        200 => whole(asked, head),
        // A rude way to say that it changed, or not to know If-Range.
        412 if asked.conditional => Verdict::RetryPlain,
        412 => Verdict::Changed(None),
        416 => Verdict::Unsatisfied(content_range(head).and_then(|r| r.total)),
        301 | 302 | 303 | 307 | 308 => Verdict::Redirect,
        429 | 503 => Verdict::Refused {
            retry_after: retry_after(head, now),
        },
        408 | 425 | 500..=599 => Verdict::OriginFault(status),
        _ => Verdict::Ineligible(Why::Status(status)),
    }
}

/// The answer's media type in lower case, without parameters.
pub(super) fn media(head: &HeaderMap) -> Option<String> {
    let text = generation::only(head, CONTENT_TYPE)?;
    Some(text.split(';').next()?.trim().to_ascii_lowercase())
}

fn partial(asked: Asked<'_>, head: &HeaderMap) -> Verdict {
    let Some(want) = asked.range else {
        return Verdict::Broken("206 though no range was asked for");
    };
    if media(head).is_some_and(|m| m.starts_with("multipart/")) {
        return Verdict::Ineligible(Why::NoRange);
    }
    if is_encoded(head) {
        return Verdict::Ineligible(Why::Encoded);
    }
    let Some(ContentRange {
        range: Some(body),
        total: Some(total),
    }) = content_range(head)
    else {
        return Verdict::Ineligible(Why::NoRange);
    };
    if body.end > total {
        return Verdict::Broken("Content-Range beyond the total length");
    }
    let validator = generation::validator(head);
    if let Some(known) = asked.known {
        if !generation::same(&known.generation, total, validator.as_ref()) {
            return Verdict::Changed(Some((total, validator)));
        }
        if is_other_media(known, head) {
            return Verdict::Ineligible(Why::OtherMedia);
        }
    }
    let Some(skip) = want
        .start
        .checked_sub(body.start)
        .filter(|_| want.start < body.end)
    else {
        return Verdict::Broken("Content-Range without the first byte asked for");
    };
    if skip > MAX_SKIP {
        return Verdict::Ineligible(Why::NoRange);
    }
    match content_length(head) {
        Ok(None) => {}
        Ok(Some(len)) if len == body.len() => {}
        Ok(Some(_)) => return Verdict::Broken("Content-Length differs from Content-Range"),
        Err(()) => return Verdict::Broken("unreadable Content-Length"),
    }
    Verdict::Accept {
        body,
        skip,
        total,
        validator,
    }
}

fn whole(asked: Asked<'_>, head: &HeaderMap) -> Verdict {
    if asked.known.is_some_and(|known| is_other_media(known, head)) {
        return Verdict::Ineligible(Why::OtherMedia);
    }
    if asked.conditional {
        return Verdict::RetryPlain;
    }
    if asked.known.is_some() {
        return Verdict::Ineligible(Why::NoRange);
    }
    match content_length(head) {
        Ok(len) => Verdict::Whole {
            len,
            validator: generation::validator(head),
            encoded: is_encoded(head),
        },
        Err(()) => Verdict::Broken("unreadable Content-Length"),
    }
}

fn is_other_media(known: &Known, head: &HeaderMap) -> bool {
    let seen = media(head);
    seen.is_some() && known.media.is_some() && seen != known.media
}

fn is_encoded(head: &HeaderMap) -> bool {
    let mut codings = head.get_all(CONTENT_ENCODING).iter();
    codings.any(|c| !c.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

fn content_length(head: &HeaderMap) -> Result<Option<u64>, ()> {
    if !head.contains_key(CONTENT_LENGTH) {
        return Ok(None);
    }
    let values = &mut head.get_all(CONTENT_LENGTH).iter();
    ContentLength::decode(values)
        .map(|len| Some(len.0))
        .map_err(|_| ())
}

#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    range: Option<ByteRange>,
    total: Option<u64>,
}

/// Stricter than `headers::ContentRange`, which takes `+1` for a number and looks at the first of several.
fn content_range(head: &HeaderMap) -> Option<ContentRange> {
    let text = generation::only(head, CONTENT_RANGE)?;
    let (unit, rest) = text.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim_start().split_once('/')?;
    let total = match total {
        "*" => None,
        digits => Some(number(digits)?),
    };
    let range = match range {
        "*" => None,
        text => {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (number(first)?, number(last)?);
            let end = last.checked_add(1)?;
            (first <= last).then_some(())?;
            Some(ByteRange::new(first, end))
        }
    };
    Some(ContentRange { range, total })
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn retry_after(head: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = generation::only(head, RETRY_AFTER)?.trim();
    let wait = match number(text) {
        Some(seconds) => Duration::from_secs(seconds),
        None => {
            // A Date header is the same syntax, so its parser serves for the date form.
            let until = Date::decode(&mut head.get_all(RETRY_AFTER).iter()).ok()?;
            let now = generation::decode::<Date>(head).map_or(now, SystemTime::from);
            SystemTime::from(until).duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests;
