//! What a tus server says of itself and of an upload, in headers.
//!
//! Invariant: a header that is there twice with different values, or cannot be read, counts as absent.

use hyper::HeaderMap;

use crate::upload::source::Checksum;

/// The version of the protocol that we speak.
pub(super) const VERSION: &str = "1.0.0";

/// What a server can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) creation: bool,
    /// Content may come with the request that creates.
    pub(super) with_upload: bool,
    pub(super) concatenation: bool,
    pub(super) termination: bool,
    /// The kind of checksum it shall compare.
    pub(super) checksum: Option<Checksum>,
    /// The longest upload that it takes.
    pub(super) max: Option<u64>,
}

/// Why a server cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoTus {
    /// It does not say that it speaks tus.
    Silent,
    /// It speaks other versions only.
    Versions(String),
}

impl Offer {
    /// From the answer to `OPTIONS`.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, NoTus> {
        let versions = words(headers, "tus-version");
        if versions.is_empty() {
            return Err(NoTus::Silent);
        }
        if !versions.iter().any(|version| version == VERSION) {
            return Err(NoTus::Versions(versions.join(", ")));
        }
        let extensions = words(headers, "tus-extension");
        let has = |name: &str| extensions.iter().any(|extension| extension == name);
        Ok(Self {
            creation: has("creation"),
            with_upload: has("creation-with-upload"),
            concatenation: has("concatenation"),
            termination: has("termination"),
            checksum: has("checksum").then(|| checksum(headers)).flatten(),
            max: number(headers, "tus-max-size"),
        })
    }
}

/// SHA-1 is what every server with checksums has, and the cheapest on small devices; TLS guards the way there.
fn checksum(headers: &HeaderMap) -> Option<Checksum> {
    let offered = words(headers, "tus-checksum-algorithm");
    let known = [Checksum::Sha1, Checksum::Sha256, Checksum::Md5];
    known.into_iter().find(|kind| {
        let own = name_of(*kind);
        offered.iter().any(|name| name == own)
    })
}

/// What the protocol calls it.
pub(super) const fn name_of(kind: Checksum) -> &'static str {
    match kind {
        Checksum::Md5 => "md5",
        Checksum::Sha1 => "sha1",
        Checksum::Sha256 => "sha256",
    }
}

/// How much of an upload the server has.
pub(super) fn offset(headers: &HeaderMap) -> Option<u64> {
    number(headers, "upload-offset")
}

/// How long an upload will be.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    number(headers, "upload-length")
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.any(|other| other != first) {
        return None;
    }
    let digits = first.to_str().ok()?.trim();
    // `parse` would take a sign, too.
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    digits.parse().ok()
}

/// Of a list, over several headers or with commas.
fn words(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|value| value.split(',')).map(str::trim);
    words
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in of {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_servers_abilities_are_read_from_its_answer() {
        let offer = Offer::read(&headers(&[
            ("tus-version", "2.0.0, 1.0.0"),
            ("tus-extension", "creation,Termination , concatenation"),
            ("tus-extension", "checksum"),
            ("tus-checksum-algorithm", "crc32,sha256,md5"),
            ("tus-max-size", "1073741824"),
        ]));
        let expected = Offer {
            creation: true,
            with_upload: false,
            concatenation: true,
            termination: true,
            checksum: Some(Checksum::Sha256),
            max: Some(1 << 30),
        };
        assert_eq!(offer, Ok(expected));
    }

    #[test]
    fn sha1_is_taken_where_there_is_a_choice_and_nothing_where_none_is_known() {
        let kind = |algorithms: &str, extension: &str| {
            Offer::read(&headers(&[
                ("tus-version", "1.0.0"),
                ("tus-extension", extension),
                ("tus-checksum-algorithm", algorithms),
            ]))
            .unwrap()
            .checksum
        };
        assert_eq!(kind("md5,sha256,sha1", "checksum"), Some(Checksum::Sha1));
        assert_eq!(kind("crc32", "checksum"), None);
        assert_eq!(kind("sha1", "creation"), None, "not offered as an extension");
    }

    #[test]
    fn a_server_that_does_not_speak_tus_or_not_this_version_is_told_apart() {
        assert_eq!(Offer::read(&headers(&[])), Err(NoTus::Silent));
        let old = headers(&[("tus-version", "0.2.2,0.2.1")]);
        assert_eq!(Offer::read(&old), Err(NoTus::Versions("0.2.2, 0.2.1".into())));
    }

    #[test]
    fn an_offset_is_a_plain_number_that_is_said_once() {
        for (values, expected) in [
            (&["70"][..], Some(70)),
            (&["0"], Some(0)),
            (&["70", "70"], Some(70)),
            (&["70", "71"], None),
            (&["+70"], None),
            (&["-1"], None),
            (&["7 0"], None),
            (&[""], None),
            (&["18446744073709551616"], None),
            (&[], None),
        ] {
            let of: Vec<_> = values.iter().map(|value| ("upload-offset", *value)).collect();
            assert_eq!(offset(&headers(&of)), expected, "{values:?}");
        }
    }
}
