//! Which downloads are shared, what they are known as, and those that come from members alone.
//!
//! Invariant: what came with credentials, or what the origin calls private, is neither looked for nor offered; nor is plain
//! http without a digest, because nobody proves who sent it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::CACHE_CONTROL;
use tokio::sync::watch;

use super::{FIRST, Run};
use crate::download::answer::Known;
use crate::download::driver::{Driver, Ending, House, Start};
use crate::download::error::DownloadError;
use crate::download::redirect::HARMLESS;
use crate::download::slices::SLICE;
use crate::download::{Job, Outcome, Shared};
use crate::lane::LaneSet;
use crate::share::{Content, Household, Look, ReadAt, Subject, Topic};
use crate::store::Claim;
use crate::store::Generation;
use crate::store::Part;
use crate::store::Validator;
use crate::types::PeerId;

/// Members answer within a round trip on the LAN; who does not is heard later.
const ANSWER_WITHIN: Duration = Duration::from_millis(150);

impl ReadAt for Part {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        Self::read_at(self, buf, offset)
    }
}

impl Run {
    /// Begins to look for what members have of it, where it may be shared.
    pub(super) fn look(&self) -> Option<Look> {
        let job = &self.shared.job;
        let household = self.household.as_ref().filter(|_| may_be_shared(job))?;
        Some(household.look(Topic::of(&job.url, job.sha256)))
    }

    /// How many bytes to ask for first: few where members have it, so that it crosses no line twice.
    pub(super) async fn first_question(&self) -> u64 {
        let members_have_it = match &self.look {
            Some(look) => look.answered(ANSWER_WITHIN).await,
            None => false,
        };
        if members_have_it { SLICE } else { FIRST }
    }

    /// The household's part in a content that the origin has answered for.
    pub(super) fn house(
        &mut self,
        generation: &Generation,
        head: &HeaderMap,
        part: &Arc<Part>,
    ) -> Option<House> {
        let (household, look) = (self.household.as_ref()?, self.look.as_ref()?);
        if is_private(head) {
            self.look = None;
            return None;
        }
        let job = &self.shared.job;
        let topic = Topic::of(&job.url, job.sha256);
        let of_url = topic.url.zip(generation.validator.as_ref());
        let of_url =
            of_url.map(|(url, validator)| Subject::of_generation(&url, generation.total, &text(validator)));
        let of_digest = job
            .sha256
            .map(|sha256| Subject::of_sha256(&sha256, generation.total));
        let content = Content {
            subjects: of_url.into_iter().chain(of_digest).collect(),
            total: generation.total,
        };
        let root = job.sha256.or_else(|| digest_of(head));
        let sharing = look.begin(content, part.clone());
        let written = part.written();
        Some(House::new(
            sharing,
            household.id(),
            generation.total,
            root,
            &written,
        ))
    }

    /// Who brought what, and on whose word.
    pub(super) fn from_house(driver: &Driver) -> (Vec<(PeerId, String, u64)>, Option<String>) {
        let Some(house) = &driver.house else {
            return (Vec::new(), None);
        };
        let brought = house.brought().into_iter();
        let members = brought.filter_map(|(info, bytes)| Some((info.peer?, info.owner, bytes)));
        (members.collect(), house.attested_by())
    }

    /// Fetches what members offer by hand, and nobody else has.
    pub(super) async fn fetch_from_members(mut self, shared: Shared) -> Result<Outcome, DownloadError> {
        let Some(household) = self.household.clone() else {
            return Err(DownloadError::NoHolder { seconds: 0 });
        };
        let generation = Generation {
            total: shared.total,
            validator: None,
        };
        // Its digest says what it is, so that a later run can go on with it.
        let claim = Claim::new(
            self.shared.job.url.as_str(),
            Some(generation.clone()),
            Some(shared.sha256),
        );
        let (part, resumed) = self.open_claimed(shared.name.clone(), claim).await?;
        self.resumable = true;
        let house = members_alone(&household, &shared, &part);
        let start = Start {
            shared: self.shared.clone(),
            lanes: watch::channel(LaneSet::default()).1,
            progress: self.progress.clone(),
            stop: self.stop.clone(),
            known: Known {
                generation,
                media: None,
            },
            part,
            home: None,
            house: Some(house),
            routes: Vec::new(),
            may_regroup: false,
        };
        let mut driver = Driver::new(start, Instant::now());
        let ending = Box::pin(driver.run()).await?;
        driver.keep(&ending).await;
        let Ending::Complete(path) = ending else {
            return Err(DownloadError::NoHolder { seconds: 0 });
        };
        let (members, _) = Self::from_house(&driver);
        let done = self.outcome(path, shared.total, Vec::new(), None);
        Ok(Outcome {
            resumed,
            members,
            ..done
        })
    }
}

fn members_alone(household: &Household, shared: &Shared, part: &Arc<Part>) -> House {
    let topic = Topic {
        url: None,
        sha256: Some(shared.sha256),
    };
    let content = Content {
        subjects: vec![shared.subject],
        total: shared.total,
    };
    let sharing = household.look(topic).begin(content, part.clone());
    let written = part.written();
    House::new(
        sharing,
        household.id(),
        shared.total,
        Some(shared.sha256),
        &written,
    )
}

/// Whether others may know of it, and bring it.
fn may_be_shared(job: &Job) -> bool {
    let has_password = !job.url.username().is_empty() || job.url.password().is_some();
    let harmless = job.headers.iter().all(|(name, _)| HARMLESS.contains(name));
    let proven = job.url.scheme() == "https" || job.sha256.is_some();
    job.pool && harmless && !has_password && proven
}

/// Whether the origin says that it is for one reader only, or not to be kept.
fn is_private(head: &HeaderMap) -> bool {
    let values = head.get_all(CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    let mut words = values.flat_map(|v| v.split(','));
    words.any(|word| {
        let name = word.split('=').next().unwrap_or_default().trim();
        name.eq_ignore_ascii_case("private") || name.eq_ignore_ascii_case("no-store")
    })
}

/// The SHA-256 of the whole content, where the origin says it: RFC 9530, or S3's own header.
fn digest_of(head: &HeaderMap) -> Option<[u8; 32]> {
    let repr = head.get_all("repr-digest").iter().filter_map(|v| v.to_str().ok());
    let repr = repr.flat_map(|v| v.split(',')).find_map(|member| {
        let (name, value) = member.trim().split_once('=')?;
        let value = value.strip_prefix(':')?.strip_suffix(':')?;
        name.eq_ignore_ascii_case("sha-256").then(|| decoded(value))?
    });
    // Of an upload in parts it is no digest of the content, and ends with the number of parts.
    let s3 = || decoded(head.get("x-amz-checksum-sha256")?.to_str().ok()?);
    repr.or_else(s3)
}

fn decoded(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// A validator's text; of which kind it is belongs to it.
fn text(validator: &Validator) -> String {
    match validator {
        Validator::ETag(tag) => format!("etag {tag}"),
        Validator::LastModified(date) => format!("date {date}"),
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::{AUTHORIZATION, COOKIE, HeaderValue, USER_AGENT};

    use super::*;

    fn head(name: &'static str, value: &str) -> HeaderMap {
        let mut head = HeaderMap::new();
        head.insert(name, HeaderValue::from_str(value).unwrap());
        head
    }

    #[test]
    fn what_came_with_credentials_or_from_nobody_in_particular_is_not_shared() {
        assert!(may_be_shared(&Job::plain("https://a.example/x?version=3")));
        assert!(!may_be_shared(&Job::plain("https://me:secret@a.example/x")));
        assert!(!may_be_shared(&Job::plain("https://me@a.example/x")));
        assert!(
            !may_be_shared(&Job::plain("http://a.example/x")),
            "nobody proves who sent it"
        );
        let plain = Job {
            sha256: Some([1; 32]),
            ..Job::plain("http://a.example/x")
        };
        assert!(may_be_shared(&plain));
        for (name, shared) in [(AUTHORIZATION, false), (COOKIE, false), (USER_AGENT, true)] {
            let mut with = Job::plain("https://a.example/x");
            with.headers = vec![(name, HeaderValue::from_static("x"))];
            assert_eq!(may_be_shared(&with), shared);
        }
        let alone = Job {
            pool: false,
            ..Job::plain("https://a.example/x")
        };
        assert!(!may_be_shared(&alone));
    }

    #[test]
    fn what_the_origin_calls_private_is_not_shared() {
        for (value, private) in [
            ("max-age=60, public", false),
            ("Private", true),
            ("max-age=0, no-store", true),
            ("private=\"set-cookie\"", true),
            ("no-cache", false),
        ] {
            assert_eq!(is_private(&head("cache-control", value)), private, "{value}");
        }
    }

    #[test]
    fn the_origins_digest_is_known_in_both_of_its_spellings_and_no_other() {
        let digest = STANDARD.encode([7; 32]);
        let repr = format!("sha-512=:AAAA:, sha-256=:{digest}:");
        assert_eq!(digest_of(&head("repr-digest", &repr)), Some([7; 32]));
        assert_eq!(digest_of(&head("x-amz-checksum-sha256", &digest)), Some([7; 32]));
        for (name, value) in [
            ("x-amz-checksum-sha256", format!("{digest}-3")),
            ("repr-digest", format!("sha-256={digest}")),
            ("repr-digest", "sha-256=:AAAA:".to_owned()),
            ("content-digest", format!("sha-256=:{digest}:")),
        ] {
            assert_eq!(digest_of(&head(name, &value)), None, "{name}: {value}");
        }
    }
}
