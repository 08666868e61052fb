//! A file at the server, as far as its headers tell, and whether it is the one that would be sent.
//!
//! Invariant: a file counts as the same only where its length is, and one of the marks that stand for its content.

use std::time::{SystemTime, UNIX_EPOCH};

use headers::{Date, HeaderMapExt, LastModified};
use hyper::HeaderMap;
use hyper::header::{CONTENT_LENGTH, ETAG, HeaderName, HeaderValue};

use super::multistatus::Entry;
use crate::upload::Item;

/// What ownCloud and Nextcloud read a file's time from, in seconds.
const X_OC_MTIME: HeaderName = HeaderName::from_static("x-oc-mtime");
/// Later dates have no place in HTTP's form: the year 9999.
const LAST_DATE: u64 = 253_402_300_799;

/// What a server tells of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Remote {
    length: Option<u64>,
    etag: Option<String>,
    /// Seconds since 1970.
    modified: Option<u64>,
}

/// Whether a file needs to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    Different,
    /// Where the file's MD5 is this one (32 hex digits), it is the same.
    IfMd5(String),
}

impl Remote {
    /// From the answer to `HEAD`.
    pub(super) fn of_head(headers: &HeaderMap) -> Self {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        Self {
            length: text(CONTENT_LENGTH).and_then(|length| length.trim().parse().ok()),
            etag: text(ETAG).map(str::to_owned),
            modified: headers
                .typed_get::<LastModified>()
                .and_then(|date| seconds(date.into())),
        }
    }

    /// From the answer to `PROPFIND`.
    pub(super) fn of_entry(entry: &Entry) -> Self {
        let mut headers = HeaderMap::new();
        let date = entry
            .modified
            .as_deref()
            .and_then(|date| HeaderValue::from_str(date).ok());
        if let Some(date) = date {
            headers.insert(hyper::header::LAST_MODIFIED, date);
        }
        Self {
            length: entry.length,
            etag: entry.etag.clone(),
            ..Self::of_head(&headers)
        }
    }

    /// Whether it can be a file of this length: it is, or the server does not say.
    pub(super) fn may_have(&self, size: u64) -> bool {
        self.length.is_none_or(|length| length == size)
    }

    /// Whether this is the file that would be sent.
    pub(super) fn compare(&self, item: &Item) -> Verdict {
        if self.length != Some(item.size) {
            return Verdict::Different;
        }
        if item.size == 0 {
            return Verdict::Same;
        }
        let Some(own) = seconds(item.modified) else {
            return self.by_md5();
        };
        let etag = self.etag.as_deref().map(bare).unwrap_or_default();
        // nginx's and others': "time-size", in hex.
        let stamped = etag == format!("{own:x}-{:x}", item.size);
        if stamped || self.modified == Some(own) {
            Verdict::Same
        } else {
            self.by_md5()
        }
    }

    fn by_md5(&self) -> Verdict {
        let etag = self.etag.as_deref().map(bare).unwrap_or_default();
        if etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            Verdict::IfMd5(etag.to_ascii_lowercase())
        } else {
            Verdict::Different
        }
    }
}

/// What an ETag says, without what it is wrapped in.
fn bare(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// As whole seconds since 1970; earlier times have no place in HTTP.
fn seconds(time: SystemTime) -> Option<u64> {
    let since = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    (since <= LAST_DATE).then_some(since)
}

/// What a request to store a file says of its time. nginx gives the stored file the time of the request's `Date`.
pub(super) fn times(item: &Item) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(own) = seconds(item.modified) {
        headers.typed_insert(Date::from(item.modified));
        headers.insert(X_OC_MTIME, HeaderValue::from(own));
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MODIFIED: u64 = 1_700_000_000;
    const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

    fn item(size: u64) -> Item {
        Item {
            name: "a".into(),
            size,
            // A file's time has a fraction, and HTTP's has none.
            modified: UNIX_EPOCH + Duration::from_millis(MODIFIED * 1000 + 700),
        }
    }

    fn remote(length: u64, etag: &str, modified: &str) -> Remote {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, length.into());
        if !etag.is_empty() {
            headers.insert(ETAG, etag.parse().unwrap());
        }
        if !modified.is_empty() {
            headers.insert(hyper::header::LAST_MODIFIED, modified.parse().unwrap());
        }
        Remote::of_head(&headers)
    }

    #[test]
    fn a_file_of_the_same_length_and_time_is_the_same() {
        assert_eq!(remote(1000, "", DATE).compare(&item(1000)), Verdict::Same);
        let nginx = format!("\"{MODIFIED:x}-3e8\"");
        assert_eq!(remote(1000, &nginx, "").compare(&item(1000)), Verdict::Same);
        let weak = format!("W/{nginx}");
        assert_eq!(remote(1000, &weak, "").compare(&item(1000)), Verdict::Same);
    }

    #[test]
    fn another_length_or_time_or_nothing_to_tell_by_is_different() {
        for (remote, size) in [
            (remote(1000, "", DATE), 1001),
            (remote(1000, "", "Tue, 14 Nov 2023 22:13:21 GMT"), 1000),
            (remote(1000, "\"abc\"", ""), 1000),
            (remote(1000, "", ""), 1000),
            (Remote::default(), 1000),
            (Remote::default(), 0),
        ] {
            assert_eq!(remote.compare(&item(size)), Verdict::Different, "{remote:?}");
        }
    }

    #[test]
    fn an_etag_that_may_be_the_contents_md5_is_compared_with_it() {
        let md5 = "D41D8CD98F00B204E9800998ECF8427E";
        let verdict = remote(1000, &format!("\"{md5}\""), "").compare(&item(1000));
        assert_eq!(verdict, Verdict::IfMd5(md5.to_ascii_lowercase()));
        let by_time = remote(1000, &format!("\"{md5}\""), DATE).compare(&item(1000));
        assert_eq!(by_time, Verdict::Same, "nothing is read where the time says it");
    }

    #[test]
    fn an_empty_file_is_the_same_as_any_other() {
        assert_eq!(remote(0, "", "").compare(&item(0)), Verdict::Same);
    }

    #[test]
    fn a_files_time_goes_with_it_where_http_can_say_it() {
        let headers = times(&item(1));
        assert_eq!(headers[hyper::header::DATE], DATE);
        assert_eq!(headers[X_OC_MTIME], MODIFIED.to_string());
        let far = Item {
            modified: UNIX_EPOCH + Duration::from_secs(LAST_DATE + 1),
            ..item(1)
        };
        assert!(times(&far).is_empty());
        let early = Item {
            modified: UNIX_EPOCH - Duration::from_secs(1),
            ..item(1)
        };
        assert!(times(&early).is_empty());
    }

    #[test]
    fn a_listing_tells_the_same_as_a_head() {
        let entry = Entry {
            length: Some(1000),
            modified: Some(DATE.into()),
            etag: Some("\"x\"".into()),
            ..Entry::default()
        };
        assert_eq!(Remote::of_entry(&entry), remote(1000, "\"x\"", DATE));
    }
}
