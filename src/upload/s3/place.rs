//! Where an object is to be: bucket, key and service, and what is known of that service.

use percent_encoding::percent_decode_str;
use rusty_s3::{Bucket, UrlStyle};
use url::Url;

use super::answers::shown;
use super::grid::{MAX_NUMBER, MAX_PART};
use crate::upload::{S3Options, UploadError};

/// S3's own bound.
const MAX_KEY: usize = 1_024;
const MAX_BUCKET: usize = 255;

/// An object's place.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) bucket: String,
    pub(super) key: String,
    /// `None`: AWS.
    endpoint: Option<Url>,
    /// What the user wrote, for messages.
    target: String,
}

/// What a service wants that S3 itself does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Habits {
    /// Parts must be of equal length, or their numbers without gaps.
    pub(super) equal: bool,
    /// Most bytes of an object.
    pub(super) limit: u64,
}

impl Place {
    /// The place `target` names for a file called `name`.
    ///
    /// # Errors
    /// [`UploadError::Url`], with what is wrong and how it is to be written.
    pub(super) fn new(target: &Url, name: &str, options: &S3Options) -> Result<Self, UploadError> {
        let wrong = |why: &str| UploadError::Url {
            url: shown(target.as_str()),
            why: why.to_owned(),
        };
        let odd = target.query().is_some() || target.fragment().is_some();
        if odd {
            return Err(wrong("in a key, write ? as %3F and # as %23"));
        }
        if !target.username().is_empty() || target.password().is_some() || target.port().is_some() {
            return Err(wrong(
                "write s3://BUCKET/KEY, and where the service is with --endpoint",
            ));
        }
        let bucket = target.host_str().unwrap_or_default().to_owned();
        if !is_bucket(&bucket) {
            return Err(wrong(
                "the bucket's name has letters, digits, `-`, `.` and `_` only; write s3://BUCKET/KEY",
            ));
        }
        if bucket.ends_with("--x-s3") {
            return Err(wrong(
                "directory buckets want another way to sign in, which is not supported",
            ));
        }
        let path = target.path().strip_prefix('/').unwrap_or_default();
        let key = percent_decode_str(path).decode_utf8();
        let mut key = key.map_err(|_| wrong("the key is not UTF-8"))?.into_owned();
        if key.is_empty() || key.ends_with('/') {
            key.push_str(name);
        }
        if key.len() > MAX_KEY || key.chars().any(char::is_control) {
            return Err(wrong("a key has at most 1,024 bytes and no control characters"));
        }
        // A URL's reader takes them for ways up, also where they are escaped.
        if key.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(wrong(
                "a key with `.` or `..` between slashes cannot be written in a URL",
            ));
        }
        let place = Self {
            bucket,
            key,
            endpoint: options.endpoint.clone(),
            target: shown(target.as_str()),
        };
        place.bucket(&options.region)?;
        Ok(place)
    }

    /// The bucket, as URLs for that region have it.
    ///
    /// # Errors
    /// [`UploadError::Url`] where endpoint, bucket and region make none.
    pub(super) fn bucket(&self, region: &str) -> Result<Bucket, UploadError> {
        let wrong = |why: String| UploadError::Url {
            url: self.target.clone(),
            why,
        };
        let (endpoint, style) = match &self.endpoint {
            Some(endpoint) => (endpoint.clone(), UrlStyle::Path),
            None => {
                let domain = if region.starts_with("cn-") {
                    "amazonaws.com.cn"
                } else {
                    "amazonaws.com"
                };
                let url = Url::parse(&format!("https://s3.{region}.{domain}"));
                let style = if is_host_label(&self.bucket) {
                    UrlStyle::VirtualHost
                } else {
                    UrlStyle::Path
                };
                (
                    url.map_err(|_| wrong(format!("`{}` is no region", shown(region))))?,
                    style,
                )
            }
        };
        Bucket::new(endpoint, style, self.bucket.clone(), region.to_owned()).map_err(|error| {
            wrong(format!(
                "the endpoint cannot be used: {error}; write https://HOST[:PORT]"
            ))
        })
    }

    /// What is known of the service.
    pub(super) fn habits(&self) -> Habits {
        let host = self.endpoint.as_ref().and_then(Url::host_str).unwrap_or_default();
        habits(host)
    }

    /// For people.
    pub(super) fn shown(&self) -> String {
        let place = format!("s3://{}/{}", self.bucket, shown(&self.key));
        match self.endpoint.as_ref().and_then(Url::host_str) {
            Some(host) => format!("{place} at {host}"),
            None => place,
        }
    }
}

/// By their documentation. Whoever is not named takes what S3 itself takes.
fn habits(host: &str) -> Habits {
    let of =
        |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let s3 = Habits {
        equal: false,
        limit: MAX_PART * MAX_NUMBER,
    };
    if of("r2.cloudflarestorage.com") {
        // "All parts except the last one must be the same size"; 5 MiB less than 5 TiB.
        Habits {
            equal: true,
            limit: (5 << 40) - (5 << 20),
        }
    } else if of("backblazeb2.com") {
        // Its own interface wants numbers without gaps, its Live Read equal parts; 10 TB.
        Habits {
            equal: true,
            limit: 10_000_000_000_000,
        }
    } else if of("storage.googleapis.com") {
        // Says nothing of gaps; 5 TiB.
        Habits {
            equal: true,
            limit: 5 << 40,
        }
    } else {
        s3
    }
}

fn is_bucket(name: &str) -> bool {
    (1..=MAX_BUCKET).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && name.bytes().any(|b| b != b'.')
}

/// Whether a certificate for all names of one level covers it.
fn is_host_label(bucket: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (3..=63).contains(&bucket.len())
        && bucket.bytes().all(plain)
        && !bucket.starts_with('-')
        && !bucket.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoint: Option<&str>) -> S3Options {
        S3Options {
            endpoint: endpoint.map(|e| Url::parse(e).unwrap()),
            region: "eu-west-1".into(),
            access_key: "AK".into(),
            secret_key: "SK".into(),
            session_token: None,
        }
    }

    fn url(target: &str, endpoint: Option<&str>) -> String {
        let place = Place::new(&Url::parse(target).unwrap(), "film.mp4", &options(endpoint)).unwrap();
        place
            .bucket("eu-west-1")
            .unwrap()
            .object_url(&place.key)
            .to_string()
    }

    #[test]
    fn aws_has_the_bucket_in_the_hosts_name_others_in_the_path() {
        assert_eq!(
            url("s3://box/a/b", None),
            "https://box.s3.eu-west-1.amazonaws.com/a/b"
        );
        assert_eq!(
            url("s3://box.dotted/a", None),
            "https://s3.eu-west-1.amazonaws.com/box.dotted/a"
        );
        assert_eq!(
            url("s3://Old_Box/a", None),
            "https://s3.eu-west-1.amazonaws.com/Old_Box/a"
        );
        assert_eq!(
            url("s3://box/a", Some("http://nas.lan:9000")),
            "http://nas.lan:9000/box/a"
        );
        assert_eq!(
            url("s3://box/a", Some("https://x.example/s3/")),
            "https://x.example/s3/box/a"
        );
    }

    #[test]
    fn a_key_that_is_missing_or_ends_with_a_slash_gets_the_files_name() {
        assert_eq!(
            url("s3://box", None),
            "https://box.s3.eu-west-1.amazonaws.com/film.mp4"
        );
        assert_eq!(
            url("s3://box/", None),
            "https://box.s3.eu-west-1.amazonaws.com/film.mp4"
        );
        assert_eq!(
            url("s3://box/dir/", None),
            "https://box.s3.eu-west-1.amazonaws.com/dir/film.mp4"
        );
    }

    #[test]
    fn a_key_is_what_the_url_says_whatever_is_in_it() {
        for (target, key) in [
            ("s3://box/a b", "a b"),
            ("s3://box/a%20b%3Fc%23d", "a b?c#d"),
            ("s3://box/100%", "100%"),
            ("s3://box//a//b", "/a//b"),
            ("s3://box/\u{e9}+~", "\u{e9}+~"),
        ] {
            let place = Place::new(&Url::parse(target).unwrap(), "n", &options(None)).unwrap();
            assert_eq!(place.key, key, "{target}");
        }
    }

    #[test]
    fn what_names_no_place_is_refused_with_words() {
        let long = format!("s3://box/{}", "k".repeat(MAX_KEY + 1));
        for (target, told) in [
            ("s3://box/a?b", "%3F"),
            ("s3://box/a#b", "%23"),
            ("s3://u:p@box/a", "--endpoint"),
            ("s3://box:1/a", "--endpoint"),
            ("s3:///a", "s3://BUCKET/KEY"),
            ("s3://../a", "letters"),
            ("s3://b%20x/a", "letters"),
            ("s3://box--usw2-az1--x-s3/a", "directory buckets"),
            ("s3://box/%ff", "UTF-8"),
            ("s3://box/a%0Ab", "control"),
            (long.as_str(), "1,024"),
        ] {
            let error = Place::new(&Url::parse(target).unwrap(), "n", &options(None))
                .unwrap_err()
                .to_string();
            assert!(error.contains(told), "{target}: {error}");
        }
        for name in [".", ".."] {
            let target = Url::parse("s3://box/a/").unwrap();
            assert!(Place::new(&target, name, &options(None)).is_err(), "{name}");
        }
        let endpoint = options(Some("ftp://x.example"));
        assert!(Place::new(&Url::parse("s3://box/a").unwrap(), "n", &endpoint).is_err());
    }

    #[test]
    fn services_that_want_equal_parts_are_known_by_their_hosts() {
        for host in [
            "abc.r2.cloudflarestorage.com",
            "s3.eu-central-003.backblazeb2.com",
            "storage.googleapis.com",
        ] {
            assert!(habits(host).equal, "{host}");
        }
        for host in [
            "",
            "s3.eu-west-1.amazonaws.com",
            "nas.lan",
            "evilbackblazeb2.com",
            "r2.cloudflarestorage.com.evil",
        ] {
            assert!(!habits(host).equal, "{host}");
        }
    }

    #[test]
    fn regions_of_china_have_their_own_domain() {
        let place = Place::new(&Url::parse("s3://box/a").unwrap(), "n", &options(None)).unwrap();
        let bucket = place.bucket("cn-north-1").unwrap();
        assert_eq!(
            bucket.base_url().as_str(),
            "https://box.s3.cn-north-1.amazonaws.com.cn/"
        );
    }
}
