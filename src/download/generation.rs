//! Which version of the content an answer belongs to, read from its header.
//!
//! Invariant: a validator made here is strong: two answers with the same one carry the same bytes (HTTP-3). A weak ETag
//! never becomes one, nor does a Last-Modified so fresh that the content may have changed within the same second.

use std::time::{Duration, SystemTime};

use headers::{Date, Header, LastModified};
use hyper::HeaderMap;
use hyper::header::{ETAG, HeaderValue, IF_RANGE, LAST_MODIFIED};

use crate::store::Generation;
use crate::store::Validator;

/// How much older than `Date` a Last-Modified must be to be strong: HTTP-3, after RFC 7232's 60 s.
const SETTLED: Duration = Duration::from_secs(60);
/// Longer ETags are taken for none: they would go back to the origin with each request and into the journal.
const MAX_VALIDATOR: usize = 1024;

/// The strong validator an answer carries. `None`: it has none, and two answers cannot be told to be of one version.
pub(super) fn validator(headers: &HeaderMap) -> Option<Validator> {
    if headers.contains_key(ETAG) {
        return only(headers, ETAG)
            .filter(|tag| is_strong_tag(tag))
            .map(|tag| Validator::ETag(tag.to_owned()));
    }
    let text = only(headers, LAST_MODIFIED)?;
    let modified = SystemTime::from(decode::<LastModified>(headers)?);
    let date = SystemTime::from(decode::<Date>(headers)?);
    let settled = date.duration_since(modified).is_ok_and(|age| age >= SETTLED);
    settled.then(|| Validator::LastModified(text.to_owned()))
}

/// Whether an answer with this total length and validator is of `known`'s version. A missing validator proves nothing.
pub(super) fn same(known: &Generation, total: u64, seen: Option<&Validator>) -> bool {
    known.total == total && known.validator.as_ref().is_none_or(|v| Some(v) == seen)
}

/// The If-Range header that ties a request to this version.
pub(super) fn if_range(generation: &Generation) -> Option<(hyper::header::HeaderName, HeaderValue)> {
    let text = match generation.validator.as_ref()? {
        Validator::ETag(tag) => tag,
        Validator::LastModified(date) => date,
    };
    HeaderValue::from_str(text).ok().map(|value| (IF_RANGE, value))
}

/// A header that must be there exactly once and be visible ASCII, or it counts as missing.
pub(super) fn only(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    match values.next() {
        None => first.to_str().ok(),
        Some(_) => None,
    }
}

/// A typed header, where it is there and well-formed.
pub(super) fn decode<H: Header>(headers: &HeaderMap) -> Option<H> {
    H::decode(&mut headers.get_all(H::name()).iter()).ok()
}

/// RFC 9110 8.8.3 without `W/`: quoted, no quotes, blanks or control characters inside.
fn is_strong_tag(tag: &str) -> bool {
    let inner = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    tag.len() <= MAX_VALIDATOR && inner.is_some_and(|t| t.bytes().all(|b| b.is_ascii_graphic() && b != b'"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn http_03_only_a_strong_etag_identifies_a_generation() {
        let of = |tag| validator(&head(&[("etag", tag)]));
        assert_eq!(of("\"a1\""), Some(Validator::ETag("\"a1\"".into())));
        for weak in ["W/\"a1\"", "a1", "\"", "\"a\"b\"", "\"a b\"", ""] {
            assert_eq!(of(weak), None, "{weak}");
        }
        assert_eq!(validator(&head(&[("etag", "\"a\""), ("etag", "\"b\"")])), None);
    }

    #[test]
    fn http_03_last_modified_is_strong_only_when_a_minute_old_and_alone() {
        const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let old = ("last-modified", "Sun, 06 Nov 1994 08:48:37 GMT");
        let fresh = ("last-modified", "Sun, 06 Nov 1994 08:48:38 GMT");
        let later = ("last-modified", "Sun, 06 Nov 1994 09:48:38 GMT");
        assert_eq!(
            validator(&head(&[DATE, old])),
            Some(Validator::LastModified(old.1.into()))
        );
        assert_eq!(validator(&head(&[DATE, fresh])), None);
        assert_eq!(validator(&head(&[DATE, later])), None);
        assert_eq!(validator(&head(&[old])), None);
        assert_eq!(validator(&head(&[DATE, old, ("etag", "W/\"x\"")])), None);
    }
}
