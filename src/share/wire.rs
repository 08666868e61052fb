//! What members say to each other on the household's streams.
//!
//! A question opens a stream. A watch stays open, and what is said on it is only ever about what was asked for; a fetch is
//! answered with bytes; a list with one frame. Kinds are only ever added, and who does not know one skips it.
//!
//! A topic is said as a hash keyed by a secret of the link: on another link, and to whoever records this one, it means
//! nothing (SEC-B7).

use serde::{Deserialize, Serialize};

use crate::link::wire::{FETCH, LIST, WATCH, WireError, clean, encode, parse};

use crate::store::safe_name;

use super::{Subject, Topic};

/// The label of the link's secret that topics are keyed by.
pub(super) const LABEL: &[u8] = b"tributary share";
/// Topics of one watch: one content has two.
pub(super) const MAX_TOPICS: usize = 8;
/// Files that one member offers by hand and others list: with names of 63 bytes they fit a frame.
pub(super) const MAX_OFFERED: usize = 256;
/// Ranges of one claim: a lane has a few leases, a device a few lanes.
pub(super) const MAX_CLAIMS: usize = 256;
/// Runs of pieces in one frame, of at most 10 bytes each; what is more goes into the next.
pub(super) const MAX_RUNS: usize = 6_000;

const HOLDS: u16 = 49;
const GOT: u16 = 50;
const CLAIMS: u16 = 51;
const LEAVES: u16 = 52;
const GONE: u16 = 53;
const SAID: u16 = 54;
const OFFERED: u16 = 58;

/// A topic on one link.
pub(super) type Keyed = [u8; 32];

impl Topic {
    /// What it is called on the link with that secret: by its digest, where it has one, then by its URL.
    pub(super) fn keyed(&self, secret: &[u8; 32]) -> Vec<Keyed> {
        let names = [self.sha256, self.url].into_iter().flatten();
        names
            .map(|name| *blake3::keyed_hash(secret, &name).as_bytes())
            .collect()
    }

    /// What a content that is told of by that subject is asked for by.
    pub(super) fn of_subject(&self, secret: &[u8; 32], subject: Subject, total: u64) -> Option<Keyed> {
        let digest = self
            .sha256
            .filter(|sha256| Subject::of_sha256(sha256, total) == subject);
        let name = digest.or(self.url)?;
        Some(*blake3::keyed_hash(secret, &name).as_bytes())
    }
}

/// What a member asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// To be told what there is, and will be, of these topics.
    Watch(Vec<[u8; 32]>),
    /// For pieces.
    Fetch(Fetch),
    /// For what is offered by hand.
    List,
}

/// Which pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// What they are looked for by.
    pub topic: [u8; 32],
    /// Of which content.
    pub subject: Subject,
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What is said on a watch, of a content by the number that [`News::Holds`] gave it; and the answer to a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// There is one: the topic's place in the question, what it is, and its length.
    Holds(u32, u8, Subject, u64),
    /// Runs of pieces that can be had now, beside those said before.
    Got(u32, Vec<(u32, u32)>),
    /// Byte ranges (start and length) that are being fetched over uplinks now, and nothing else is; and how many bytes of the
    /// content were fetched over them so far.
    Claims(u32, Vec<(u64, u64)>, u64),
    /// A signed batch of leaves.
    Leaves(u32, Vec<u8>),
    /// It is not there any more.
    Gone(u32),
    /// All that there is for now was said.
    Said,
    /// Files: name, length, digest, content.
    Offered(Vec<File>),
    /// Of a later version: skipped.
    Unknown,
}

/// A file that is offered by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// A word for people.
    pub name: String,
    /// Its length.
    pub total: u64,
    /// Its digest.
    pub sha256: [u8; 32],
    /// Which content it is.
    pub subject: Subject,
}

/// A question from its kind and body; pure, for the fuzzer's sake.
///
/// # Errors
/// Where the body is not what the kind says, or the kind is none of a question.
pub fn question(kind: u16, body: &[u8]) -> Result<Question, WireError> {
    match kind {
        WATCH => {
            let mut topics: Vec<[u8; 32]> = parse(body)?;
            topics.truncate(MAX_TOPICS);
            Ok(Question::Watch(topics))
        }
        FETCH => Ok(Question::Fetch(parse(body)?)),
        LIST => Ok(Question::List),
        _ => Err(WireError::Malformed),
    }
}

/// What is said on a stream that this device opened; pure, for the fuzzer's sake.
///
/// # Errors
/// Where the body is not what the kind says.
pub fn decode(kind: u16, body: &[u8]) -> Result<News, WireError> {
    Ok(match kind {
        HOLDS => {
            let (content, topic, subject, total) = parse(body)?;
            News::Holds(content, topic, subject, total)
        }
        GOT => {
            let (content, mut runs): (u32, Vec<(u32, u32)>) = parse(body)?;
            runs.truncate(MAX_RUNS);
            News::Got(content, runs)
        }
        CLAIMS => {
            let (content, mut ranges, moved): (u32, Vec<(u64, u64)>, u64) = parse(body)?;
            ranges.truncate(MAX_CLAIMS);
            News::Claims(content, ranges, moved)
        }
        LEAVES => {
            let (content, signed) = parse(body)?;
            News::Leaves(content, signed)
        }
        GONE => News::Gone(parse(body)?),
        SAID => News::Said,
        OFFERED => {
            let mut files: Vec<File> = parse(body)?;
            files.truncate(MAX_OFFERED);
            files.iter_mut().for_each(|file| file.name = plain(&file.name));
            News::Offered(files)
        }
        _ => News::Unknown,
    })
}

impl News {
    /// As a frame.
    ///
    /// # Errors
    /// Where it is longer than a frame may be.
    pub fn frame(&self) -> Result<Vec<u8>, WireError> {
        match self {
            Self::Holds(content, topic, subject, total) => encode(HOLDS, &(content, topic, subject, total)),
            Self::Got(content, runs) => encode(GOT, &(content, runs)),
            Self::Claims(content, ranges, moved) => encode(CLAIMS, &(content, ranges, moved)),
            Self::Leaves(content, signed) => encode(LEAVES, &(content, signed)),
            Self::Gone(content) => encode(GONE, content),
            Self::Said => encode(SAID, &()),
            Self::Offered(files) => encode(OFFERED, files),
            Self::Unknown => Ok(Vec::new()),
        }
    }
}

/// A peer's name for a file is a word for people, and leads nowhere (SEC-B8).
fn plain(name: &str) -> String {
    safe_name(&clean(name)).unwrap_or_else(|| "unnamed".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_news() -> impl Strategy<Value = News> {
        let subject = || any::<[u8; 32]>().prop_map(Subject);
        let file = (
            "[a-z][a-z0-9 ]{0,20}[a-z]",
            any::<u64>(),
            any::<[u8; 32]>(),
            subject(),
        );
        let file = file.prop_map(|(name, total, sha256, subject)| File {
            name,
            total,
            sha256,
            subject,
        });
        let ranges = prop::collection::vec(any::<(u64, u64)>(), 0..20);
        let content = any::<u32>;
        prop_oneof![
            (content(), any::<u8>(), subject(), any::<u64>())
                .prop_map(|(c, t, s, n)| News::Holds(c, t, s, n)),
            (content(), prop::collection::vec(any::<(u32, u32)>(), 0..20)).prop_map(|(c, r)| News::Got(c, r)),
            (content(), ranges, any::<u64>()).prop_map(|(c, r, n)| News::Claims(c, r, n)),
            (content(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(c, b)| News::Leaves(c, b)),
            content().prop_map(News::Gone),
            Just(News::Said),
            prop::collection::vec(file, 0..5).prop_map(News::Offered),
        ]
    }

    proptest! {
        #[test]
        fn news_is_heard_as_it_was_said_and_what_a_later_version_appends_is_ignored(
            news in any_news(),
            more in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let frame = news.frame().unwrap();
            let kind = u16::from_be_bytes([frame[4], frame[5]]);
            let body = [&frame[6..], &more[..]].concat();
            prop_assert_eq!(decode(kind, &body).unwrap(), news);
        }

        #[test]
        fn no_bytes_from_the_wire_panic(kind in 40u16..70, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(kind, &body);
            let _ = question(kind, &body);
        }
    }

    #[test]
    fn what_is_said_without_end_is_cut_short() {
        let frame = News::Claims(1, vec![(1, 2); 1000], 3).frame().unwrap();
        let News::Claims(_, ranges, _) = decode(CLAIMS, &frame[6..]).unwrap() else {
            unreachable!("the kind says what it is")
        };
        assert_eq!(ranges.len(), MAX_CLAIMS);
        let topics = encode(WATCH, &vec![[7u8; 32]; 100]).unwrap();
        let asked = question(WATCH, &topics[6..]).unwrap();
        assert_eq!(asked, Question::Watch(vec![[7; 32]; MAX_TOPICS]));
    }

    #[test]
    fn as_many_runs_of_pieces_as_are_said_at_once_fit_a_frame() {
        assert!(
            News::Got(u32::MAX, vec![(u32::MAX, u32::MAX); MAX_RUNS])
                .frame()
                .is_ok()
        );
        let file = File {
            name: "n".repeat(63),
            total: u64::MAX,
            sha256: [1; 32],
            subject: Subject([2; 32]),
        };
        assert!(News::Offered(vec![file; MAX_OFFERED]).frame().is_ok());
    }

    #[test]
    fn sec_b8_a_members_name_for_a_file_leads_nowhere() {
        for (said, heard) in [
            ("../../.ssh/authorized_keys", "authorized_keys"),
            ("/etc/passwd", "passwd"),
            ("a\u{202e}b\u{1b}[31m.iso", "ab[31m.iso"),
            ("..", "unnamed"),
            ("", "unnamed"),
        ] {
            let file = File {
                name: said.into(),
                total: 1,
                sha256: [1; 32],
                subject: Subject([2; 32]),
            };
            let frame = News::Offered(vec![file]).frame().unwrap();
            let News::Offered(files) = decode(OFFERED, &frame[6..]).unwrap() else {
                unreachable!("the kind says what it is")
            };
            assert_eq!(files[0].name, heard, "{said:?}");
        }
    }

    #[test]
    fn sec_b7_a_url_has_one_topic_on_a_link_whatever_its_fragment_and_another_one_on_the_next() {
        let topic = |url: &str| Topic::of(&url.parse().unwrap(), None);
        let (one, same) = (topic("https://a.example/x#1"), topic("https://a.example/x"));
        assert_eq!(one, same);
        assert_ne!(one, topic("https://a.example/x?1"));
        assert_ne!(one.keyed(&[1; 32]), one.keyed(&[2; 32]));
        let both = Topic {
            sha256: Some([3; 32]),
            ..one
        };
        let keyed = both.keyed(&[1; 32]);
        assert_eq!(keyed[1..], one.keyed(&[1; 32]));
        let of_digest = Subject::of_sha256(&[3; 32], 9);
        assert_eq!(both.of_subject(&[1; 32], of_digest, 9), Some(keyed[0]));
        assert_eq!(both.of_subject(&[1; 32], Subject([4; 32]), 9), Some(keyed[1]));
    }
}
