//! The name a download gets when the user gives none: from `Content-Disposition`, else from the URL.
//!
//! What is found here is only a wish of the origin's: `store::safe_name` decides what of it may be a file name (SEC-C1).

use hyper::HeaderMap;
use hyper::header::CONTENT_DISPOSITION;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::store::safe_name;

/// What a download is called when neither header nor URL gives a name.
const FALLBACK: &str = "download";

/// The name for what `url` answers with `head`; `None`: no answer yet, only the URL is known.
pub(super) fn of(url: &Url, head: Option<&HeaderMap>) -> String {
    let wished = head.and_then(disposition);
    safe(&wished.or_else(|| segment(url)).unwrap_or_default())
}

/// A name that may be used, whatever was wished for.
pub(super) fn safe(wished: &str) -> String {
    safe_name(wished).unwrap_or_else(|| FALLBACK.to_owned())
}

/// The URL's last path segment that is not empty, decoded.
fn segment(url: &Url) -> Option<String> {
    let last = url.path_segments()?.rfind(|s| !s.is_empty())?;
    Some(percent_decode_str(last).decode_utf8_lossy().into_owned())
}

/// `filename*` (RFC 8187), else `filename`, of a Content-Disposition header (RFC 6266).
fn disposition(head: &HeaderMap) -> Option<String> {
    let value = head.get(CONTENT_DISPOSITION)?.as_bytes();
    let text = String::from_utf8_lossy(value);
    let mut plain = None;
    for (name, value) in parameters(&text) {
        match name.to_ascii_lowercase().as_str() {
            "filename*" => {
                let (charset, rest) = value.split_once('\'')?;
                let (_language, encoded) = rest.split_once('\'')?;
                if charset.eq_ignore_ascii_case("utf-8") {
                    return Some(percent_decode_str(encoded).decode_utf8_lossy().into_owned());
                }
            }
            "filename" => plain = plain.or(Some(value)),
            _ => {}
        }
    }
    plain
}

/// The `name=value` pairs after the first `;`, values unquoted.
fn parameters(text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut rest = text.split_once(';').map_or("", |(_, rest)| rest);
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, tail) = after.split_once(';').unwrap_or((after, ""));
                (value.trim().to_owned(), tail)
            }
        };
        found.push((name.trim(), value));
        rest = tail.trim_start().trim_start_matches(';');
    }
    found
}

/// The text up to the closing quote, with `\x` as `x`, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &text[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn named(url: &str, disposition: Option<&str>) -> String {
        let mut head = HeaderMap::new();
        if let Some(text) = disposition {
            head.insert(
                CONTENT_DISPOSITION,
                HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            );
        }
        of(&Url::parse(url).unwrap(), Some(&head))
    }

    #[test]
    fn the_name_comes_from_the_header_before_the_url() {
        let url = "https://a.example/x/tool%20v1.iso?token=1#f";
        assert_eq!(named(url, None), "tool v1.iso");
        assert_eq!(named(url, Some("attachment; filename=a.zip")), "a.zip");
        assert_eq!(
            named(url, Some("attachment; filename=\"a \\\"b\\\"; c.zip\"; x=y")),
            "a _b_; c.zip"
        );
        assert_eq!(
            named(
                url,
                Some("attachment; filename=\"e.txt\"; filename*=UTF-8''%e2%82%ac.txt")
            ),
            "€.txt"
        );
        assert_eq!(named(url, Some("inline")), "tool v1.iso");
        assert_eq!(named("https://a.example/dir/", None), "dir");
        assert_eq!(named("https://a.example/", None), FALLBACK);
    }

    #[test]
    fn sec_c1_a_wished_name_never_leaves_the_directory() {
        for wish in [
            "attachment; filename=../../.ssh/authorized_keys",
            "attachment; filename=\"/etc/passwd\"",
            "attachment; filename*=UTF-8''..%2f..%2fx",
            "attachment; filename=\"..\"",
            "attachment; filename*=UTF-8''%00",
        ] {
            let name = named("https://a.example/f", Some(wish));
            assert!(
                !name.contains(['/', '\0']) && !name.starts_with('.') && !name.is_empty(),
                "{wish}: {name}"
            );
        }
    }
}
