//! Where a redirect leads, and which headers may go along: pure.
//!
//! Invariants: https never becomes http (SEC-C2), a chain ends after [`MAX_HOPS`], and what the user said to the original
//! origin is said to no other one (SEC-C3).

use hyper::HeaderMap;
use hyper::header::{ACCEPT, ACCEPT_LANGUAGE, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use url::Url;

/// How many redirects one request may follow.
pub(super) const MAX_HOPS: usize = 10;
/// Headers of the user's that say nothing secret; all others stay with the original origin, for any of them may be a
/// credential (`PRIVATE-TOKEN`, `X-Api-Key`), not only `Authorization` and `Cookie`.
pub(super) const HARMLESS: [HeaderName; 3] = [ACCEPT, ACCEPT_LANGUAGE, USER_AGENT];

/// Why a redirect is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// More than 10 in a row.
    #[error("more than {MAX_HOPS} redirects in a row")]
    TooMany,
    /// No usable `Location`.
    #[error("a redirect that does not say where to")]
    NoLocation,
    /// From https to http.
    #[error("a redirect from https to plain http (to {0}): it would give up the protection of the link")]
    Downgrade(String),
    /// To something that is neither http nor https.
    #[error("a redirect to `{0}:`, which is not a web address")]
    Scheme(String),
}

/// The next URL of a chain of which `hops` redirects are already followed.
pub(super) fn next(from: &Url, head: &HeaderMap, hops: usize) -> Result<Url, RedirectError> {
    if hops >= MAX_HOPS {
        return Err(RedirectError::TooMany);
    }
    let location = head.get(LOCATION).ok_or(RedirectError::NoLocation)?;
    let text = std::str::from_utf8(location.as_bytes()).map_err(|_| RedirectError::NoLocation)?;
    let mut to = from.join(text).map_err(|_| RedirectError::NoLocation)?;
    to.set_fragment(None);
    match to.scheme() {
        "https" => {}
        "http" if from.scheme() == "http" => {}
        "http" => return Err(RedirectError::Downgrade(host(&to).to_owned())),
        other => return Err(RedirectError::Scheme(other.to_owned())),
    }
    if to.host_str().is_none_or(str::is_empty) {
        return Err(RedirectError::NoLocation);
    }
    // A name and password in a Location were not chosen by the user: they are not sent.
    if to.set_username("").is_err() || to.set_password(None).is_err() {
        return Err(RedirectError::NoLocation);
    }
    Ok(to)
}

/// Whether both URLs are of one origin: scheme, host and port.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// The user's headers that may be sent to `to`, when they were given for `original`.
pub(super) fn allowed<'a>(
    original: &Url,
    to: &Url,
    headers: &'a [(HeaderName, HeaderValue)],
) -> impl Iterator<Item = &'a (HeaderName, HeaderValue)> + use<'a> {
    let home = same_origin(original, to);
    headers
        .iter()
        .filter(move |(name, _)| home || HARMLESS.contains(name))
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(from: &str, to: &'static str) -> Result<String, RedirectError> {
        let mut head = HeaderMap::new();
        head.insert(LOCATION, HeaderValue::from_static(to));
        next(&Url::parse(from).unwrap(), &head, 0).map(String::from)
    }

    #[test]
    fn a_redirect_may_be_relative_absolute_or_an_upgrade() {
        let from = "https://a.example/x/y?z=1#f";
        assert_eq!(follow(from, "w"), Ok("https://a.example/x/w".into()));
        assert_eq!(follow(from, "//b.example/q#g"), Ok("https://b.example/q".into()));
        assert_eq!(
            follow("http://a.example/", "https://b.example/q"),
            Ok("https://b.example/q".into())
        );
        assert_eq!(
            follow(from, "https://u:p@b.example/"),
            Ok("https://b.example/".into())
        );
    }

    #[test]
    fn sec_c2_a_redirect_to_plain_http_or_to_another_scheme_is_refused() {
        let from = "https://a.example/x";
        assert_eq!(
            follow(from, "http://b.example/"),
            Err(RedirectError::Downgrade("b.example".into()))
        );
        assert_eq!(
            follow(from, "file:///etc/passwd"),
            Err(RedirectError::Scheme("file".into()))
        );
        assert_eq!(
            follow(from, "ftp://b.example/"),
            Err(RedirectError::Scheme("ftp".into()))
        );
        assert_eq!(follow(from, "https://"), Err(RedirectError::NoLocation));
    }

    #[test]
    fn sec_c2_the_eleventh_redirect_is_refused() {
        let from = Url::parse("https://a.example/").unwrap();
        let mut head = HeaderMap::new();
        head.insert(LOCATION, HeaderValue::from_static("/again"));
        assert!(next(&from, &head, MAX_HOPS - 1).is_ok());
        assert_eq!(next(&from, &head, MAX_HOPS), Err(RedirectError::TooMany));
    }

    #[test]
    fn sec_c3_only_harmless_headers_leave_the_original_origin() {
        let original = Url::parse("https://a.example/x").unwrap();
        let headers = ["authorization", "cookie", "private-token", "referer", "accept"]
            .map(|n| (HeaderName::from_static(n), HeaderValue::from_static("v")));
        let sent = |to: &str| {
            let to = Url::parse(to).unwrap();
            allowed(&original, &to, &headers)
                .map(|(n, _)| n.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(sent("https://a.example:443/other").len(), 5);
        for other in [
            "https://a.example:8443/x",
            "http://a.example/x",
            "https://b.example/x",
            "https://a.example.b.example/x",
        ] {
            assert_eq!(sent(other), ["accept"], "{other}");
        }
    }
}
