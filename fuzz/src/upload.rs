//! What servers that take uploads answer. A listing names only what is directly in the directory that was asked for, and
//! what is stored under such a name lies there, too; numbers in headers are what they say; a journal is read as far as it is one.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use tributary::fuzzing::{listed, tus_headers, tus_journal};
use url::Url;

/// A listing, as XML.
pub fn check_listing(data: &[u8]) {
    let directory: Url = "https://origin.example/a%20b/".parse().expect("an address");
    for (name, url) in listed(&directory, data) {
        assert!(!name.is_empty() && !name.contains('/'), "{name:?}");
        if name == "." || name == ".." {
            continue;
        }
        assert_eq!(url.origin(), directory.origin(), "{name:?}");
        let rest = url.path().strip_prefix(directory.path());
        assert!(
            rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
            "{name:?}: {url}"
        );
        assert!(
            url.query().is_none() && url.fragment().is_none(),
            "{name:?}: {url}"
        );
    }
}

/// The headers of a tus server, a line each; and a journal.
pub fn check_tus(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|b| *b == b'\n').take(64) {
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let (_, offset, length) = tus_headers(&headers);
    for (told, name) in [(offset, "upload-offset"), (length, "upload-length")] {
        let Some(told) = told else {
            continue;
        };
        for value in headers.get_all(name) {
            let digits = value.to_str().expect("a number is text").trim();
            assert!(digits.bytes().all(|b| b.is_ascii_digit()), "{digits:?}");
            assert_eq!(digits.parse(), Ok(told));
        }
    }
    for (start, end, name) in tus_journal(&String::from_utf8_lossy(data)) {
        assert!(start <= end && !name.is_empty());
        assert!(name.bytes().all(|b| b.is_ascii_graphic()), "{name:?}");
    }
}
