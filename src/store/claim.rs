//! What a file being written belongs to, so that bytes of one thing are never continued with bytes of another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A validator longer than this counts as none: the journal keeps each claim inside its first block.
const MAX_VALIDATOR: usize = 1024;

/// One exact version of the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Length in bytes.
    pub total: u64,
    /// What tells this version from others of the same length; `None`: nothing does.
    pub validator: Option<Validator>,
}

/// A strong validator as the origin sent it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Validator {
    /// A strong entity tag, with its quotes.
    ETag(String),
    /// The `Last-Modified` date, verbatim.
    LastModified(String),
}

impl Validator {
    fn text(&self) -> &str {
        match self {
            Self::ETag(text) | Self::LastModified(text) => text,
        }
    }
}

/// What a file being written belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    url_hash: [u8; 32],
    generation: Option<Generation>,
    sha256: Option<[u8; 32]>,
}

impl Claim {
    /// A claim on the content at `url`. `generation` is `None` where the length is unknown (one stream, appended);
    /// `sha256` is the digest that the whole file must have, where one is known beforehand.
    pub fn new(url: &str, generation: Option<Generation>, sha256: Option<[u8; 32]>) -> Self {
        let generation = generation.map(|mut generation| {
            generation.validator = generation.validator.filter(|v| v.text().len() <= MAX_VALIDATOR);
            generation
        });
        Self {
            url_hash: *blake3::hash(url.as_bytes()).as_bytes(),
            generation,
            sha256,
        }
    }

    /// Length and validator; `None` where the length is unknown.
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }

    /// Length in bytes; `None` where it is unknown.
    pub fn total(&self) -> Option<u64> {
        self.generation.as_ref().map(|g| g.total)
    }

    /// The digest the whole file must have, where one was known beforehand.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    /// Whether a later run can know that it continues the same content: there is a length and a validator or digest.
    pub fn is_resumable(&self) -> bool {
        let validated = self.generation.as_ref().is_some_and(|g| g.validator.is_some());
        validated || (self.generation.is_some() && self.sha256.is_some())
    }

    /// Why bytes written under this claim must not be continued under `now`; `None`: they may.
    pub fn difference(&self, now: &Self) -> Option<Difference> {
        let same_digest = self.sha256.is_some() && self.sha256 == now.sha256;
        if self.url_hash != now.url_hash && !same_digest {
            return Some(Difference::Url);
        }
        if self.total() != now.total() {
            return Some(Difference::Length {
                before: self.total(),
                now: now.total(),
            });
        }
        let validator = |claim: &Self| claim.generation.as_ref().and_then(|g| g.validator.clone());
        let same_validator = validator(self).is_some() && validator(self) == validator(now);
        (!same_digest && !same_validator).then_some(Difference::Validator)
    }
}

/// Why the bytes of an earlier run are not those of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// They came from another URL, and no common checksum says that it is the same content.
    Url,
    /// The content has another length now.
    Length {
        /// When the bytes were written; `None`: unknown.
        before: Option<u64>,
        /// Now; `None`: unknown.
        now: Option<u64>,
    },
    /// ETag or Last-Modified is another one now, or missing.
    Validator,
    /// The file was not written by tributary: it has no journal.
    NotOurs,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url => f.write_str("it holds a part of another URL's content"),
            Self::Length {
                before: Some(before),
                now: Some(now),
            } => write!(
                f,
                "the content changed on the server: it was {before} bytes long and is {now} now"
            ),
            Self::Length { .. } => {
                f.write_str("the content changed on the server: its length is not the one it had")
            }
            Self::Validator => f.write_str(
                "the content changed on the server: its ETag or Last-Modified is not the one it had",
            ),
            Self::NotOurs => f.write_str("another program wrote it (there is no journal beside it)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(url: &str, total: u64, tag: Option<&str>, sha256: Option<u8>) -> Claim {
        let validator = tag.map(|t| Validator::ETag(t.to_owned()));
        Claim::new(
            url,
            Some(Generation { total, validator }),
            sha256.map(|b| [b; 32]),
        )
    }

    #[test]
    fn http_22_a_claim_continues_only_the_same_url_length_and_validator() {
        let old = claim("u", 10, Some("\"a\""), None);
        assert_eq!(old.difference(&old.clone()), None);
        assert_eq!(
            old.difference(&claim("v", 10, Some("\"a\""), None)),
            Some(Difference::Url)
        );
        assert_eq!(
            old.difference(&claim("u", 10, Some("\"b\""), None)),
            Some(Difference::Validator)
        );
        assert_eq!(
            old.difference(&claim("u", 10, None, None)),
            Some(Difference::Validator)
        );
        assert!(matches!(
            old.difference(&claim("u", 11, Some("\"a\""), None)),
            Some(Difference::Length { .. })
        ));
        assert!(matches!(
            old.difference(&Claim::new("u", None, None)),
            Some(Difference::Length { .. })
        ));
    }

    #[test]
    fn the_same_checksum_continues_across_mirrors_but_not_across_lengths() {
        let old = claim("u", 10, Some("\"a\""), Some(1));
        assert_eq!(old.difference(&claim("mirror", 10, None, Some(1))), None);
        assert_eq!(
            old.difference(&claim("mirror", 10, Some("\"a\""), Some(2))),
            Some(Difference::Url)
        );
        assert!(matches!(
            old.difference(&claim("u", 11, None, Some(1))),
            Some(Difference::Length { .. })
        ));
    }

    #[test]
    fn http_21_without_validator_and_digest_nothing_can_be_resumed() {
        assert!(!claim("u", 10, None, None).is_resumable());
        assert!(!Claim::new("u", None, Some([1; 32])).is_resumable());
        assert!(claim("u", 10, Some("\"a\""), None).is_resumable());
        assert!(claim("u", 10, None, Some(1)).is_resumable());
        assert!(!claim("u", 10, Some(&"x".repeat(MAX_VALIDATOR + 1)), None).is_resumable());
    }
}
