//! Where an upload may go: what is wrong with a target is said before anything is read, opened or sent.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::api::Failed;

use super::pooled::wrong;

/// What stands for itself in a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The same for an object's whole key.
const KEY: &AsciiSet = &PLAIN.remove(b'/');

/// A target as it was written.
#[derive(Debug)]
pub(super) struct Target {
    url: Url,
    kind: Kind,
}

/// How things are put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An object of an S3 service.
    S3,
    /// An upload of a tus server.
    Tus,
    /// Whatever PUT makes of it.
    Put,
}

/// What is to be put there.
#[derive(Clone, Copy, Debug)]
pub(super) enum What<'a> {
    /// A file of this name.
    File(&'a str),
    /// The files of a directory.
    Directory,
    /// Standard input.
    Nameless,
}

impl Target {
    /// # Errors
    /// Where it is none of those there are.
    pub(super) fn parse(text: &str) -> Result<Self, Failed> {
        let not = |why: String| wrong(format!("`{text}` cannot be uploaded to: {why}; {ALLOWED}"));
        let scheme = text
            .split_once("://")
            .map(|(scheme, _)| scheme.to_ascii_lowercase());
        let (kind, url) = match scheme.as_deref() {
            Some("s3") => (
                Kind::S3,
                s3(text).ok_or_else(|| not("it names no bucket".into()))?,
            ),
            Some("tus+https" | "tus+http") => (Kind::Tus, Url::parse(text).map_err(|e| not(e.to_string()))?),
            Some("https" | "http") => (Kind::Put, Url::parse(text).map_err(|e| not(e.to_string()))?),
            Some(other) => return Err(not(format!("`{other}` is not a kind of target"))),
            None => return Err(not("it is not a URL".into())),
        };
        if url.host_str().is_none_or(str::is_empty) {
            return Err(not("it names no host".into()));
        }
        Ok(Self { url, kind })
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The URL for what is put there, its own name added where the target is a place for many.
    ///
    /// # Errors
    /// Where that cannot go there.
    pub(super) fn of(&self, what: What<'_>) -> Result<Url, Failed> {
        let mut url = self.url.clone();
        let for_many = matches!(url.path(), "" | "/") || url.path().ends_with('/');
        match (self.kind, what) {
            (Kind::Put, What::Directory) if for_many => {}
            (_, What::Directory) => {
                return Err(wrong(format!(
                    "a directory cannot be put at `{url}`: {DIRECTORY}"
                )));
            }
            // That is where uploads are made; it gives them names itself.
            (Kind::Tus, _) => {}
            (_, What::Nameless) if for_many => {
                let why = "standard input has no name: end the target with the one it is to have";
                return Err(wrong(format!("`{url}` ends in `/`, and {why}")));
            }
            (_, What::File(name)) if for_many => {
                let path = url.path().trim_end_matches('/').to_owned();
                url.set_path(&format!("{path}/{}", utf8_percent_encode(name, PLAIN)));
            }
            (_, What::File(_) | What::Nameless) => {}
        }
        Ok(url)
    }
}

const ALLOWED: &str =
    "allowed are s3://BUCKET/KEY, tus+https://HOST/PATH and https://HOST/PATH (and tus+http, http)";
const DIRECTORY: &str =
    "it goes to an https URL that ends in `/` only, such as https://dav.example.org/photos/";

/// A key is text and no part of a URL: `?`, `#` and `%` in it stand for themselves.
fn s3(text: &str) -> Option<Url> {
    let (_, rest) = text.split_once("://")?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let is_bucket = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if bucket.is_empty() || !bucket.chars().all(is_bucket) {
        return None;
    }
    Url::parse(&format!("s3://{bucket}/{}", utf8_percent_encode(key, KEY))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::convert::USAGE;

    fn at(target: &str, what: What<'_>) -> String {
        match Target::parse(target).and_then(|t| t.of(what)) {
            Ok(url) => url.into(),
            Err(failed) => {
                assert_eq!(failed.code, USAGE);
                failed.message
            }
        }
    }

    #[test]
    fn a_file_keeps_its_name_where_the_target_ends_in_a_slash() {
        for (target, expected) in [
            ("s3://b/k", "s3://b/k"),
            ("S3://My_B.x/a/k", "s3://My_B.x/a/k"),
            ("s3://b", "s3://b/my%20film%3F.mkv"),
            ("s3://b/", "s3://b/my%20film%3F.mkv"),
            ("s3://b/a/", "s3://b/a/my%20film%3F.mkv"),
            ("https://h/x", "https://h/x"),
            ("https://h", "https://h/my%20film%3F.mkv"),
            ("https://h/d/?token=1", "https://h/d/my%20film%3F.mkv?token=1"),
            ("tus+https://h/files/", "tus+https://h/files/"),
            ("tus+http://h/files", "tus+http://h/files"),
        ] {
            assert_eq!(at(target, What::File("my film?.mkv")), expected, "{target}");
        }
    }

    #[test]
    fn an_objects_key_is_text() {
        assert_eq!(
            at("s3://b/a?b#c%20d e", What::Nameless),
            "s3://b/a%3Fb%23c%2520d%20e"
        );
    }

    #[test]
    fn a_directory_goes_to_a_url_that_ends_in_a_slash_only() {
        assert_eq!(at("https://h/d/", What::Directory), "https://h/d/");
        assert_eq!(at("http://h", What::Directory), "http://h/");
        for target in ["https://h/d", "s3://b/d/", "tus+https://h/files/"] {
            let message = at(target, What::Directory);
            assert!(message.contains("ends in `/` only"), "{message}");
        }
    }

    #[test]
    fn standard_input_needs_a_name() {
        for target in ["s3://b", "s3://b/d/", "https://h/d/", "https://h"] {
            let message = at(target, What::Nameless);
            assert!(message.contains("has no name"), "{message}");
        }
        assert_eq!(at("https://h/d", What::Nameless), "https://h/d");
    }

    #[test]
    fn what_is_no_target_is_refused_with_those_there_are() {
        for target in [
            "",
            "film.mkv",
            "ftp://h/x",
            "s3://",
            "s3:///k",
            "s3://b c/k",
            "https://",
            "tus+https:///x",
        ] {
            let message = at(target, What::File("x"));
            let all = ["s3://BUCKET/KEY", "tus+https://HOST/PATH", "https://HOST/PATH"];
            assert!(all.iter().all(|one| message.contains(one)), "{target}: {message}");
        }
    }
}
