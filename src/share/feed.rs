//! What a member that watches is told, and when: only what changed since, and not more often than every [`PACE`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::link::wire::WireError;
use crate::types::{ByteRange, PeerId};

use super::bits::Bits;
use super::shelf::Held;
use super::wanted::Wanted;
use super::wire::{Keyed, MAX_CLAIMS, MAX_RUNS, News};
use super::{Content, Inner, Subject, Topic};

/// Between two tellings: what comes meanwhile goes together. Nobody fetches a piece in less.
pub(super) const PACE: Duration = Duration::from_millis(50);
/// Batches of leaves in one telling, of 10 KiB each at most: a long list goes in several, and others have their turn.
const BATCHES_A_ROUND: usize = 16;
/// Contents that one watch is told of: versions of what it watches.
const MAX_CONTENTS: usize = 8;

/// A content that this device can serve now.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// It fetches it.
    Wanted(Arc<Wanted>),
    /// It has all of it.
    Shelf(Arc<Held>),
}

impl Source {
    /// The names it is looked for by, each with the subject that belongs to it, and its length.
    pub(super) fn known_as(&self) -> (Vec<([u8; 32], Subject)>, u64) {
        match self {
            Self::Wanted(wanted) => {
                let state = wanted.state();
                let content = state.mine.as_ref().map(|mine| &mine.content);
                content.map_or((Vec::new(), 0), |content| {
                    (names(wanted.topic, content), content.total)
                })
            }
            Self::Shelf(served) => (names(served.topic(), served.content()), served.content().total),
        }
    }

    /// Tells it from others.
    fn place(&self) -> usize {
        match self {
            Self::Wanted(wanted) => Arc::as_ptr(wanted) as usize,
            Self::Shelf(served) => Arc::as_ptr(served) as usize,
        }
    }

    /// Counts how often something was withdrawn; `None`: all of it was.
    fn withdrawn(&self) -> Option<u64> {
        match self {
            Self::Wanted(wanted) => wanted.state().mine.as_ref().map(|mine| mine.withdrawn),
            Self::Shelf(_) => Some(0),
        }
    }
}

/// A digest has a subject of its own; the URL's is the other one.
fn names(topic: Topic, content: &Content) -> Vec<([u8; 32], Subject)> {
    let of_digest = |sha256| Subject::of_sha256(&sha256, content.total);
    let digest = topic.sha256.map(|sha256| (sha256, of_digest(sha256)));
    let digest = digest.filter(|(_, subject)| content.subjects.contains(subject));
    let others = content.subjects.iter();
    let other = others
        .copied()
        .find(|s| digest.is_none_or(|(_, subject)| *s != subject));
    let url = topic.url.zip(other);
    digest.into_iter().chain(url).collect()
}

/// One watch.
#[derive(Debug)]
pub(super) struct Feed {
    /// Who hears it.
    watcher: PeerId,
    secret: [u8; 32],
    topics: Vec<Keyed>,
    there: BTreeMap<Subject, (u8, Source)>,
    /// As of which change of what there is.
    as_of: Option<u64>,
    told: BTreeMap<Subject, Told>,
    next: u32,
    said: bool,
}

/// What was told of a content.
#[derive(Debug)]
struct Told {
    id: u32,
    place: usize,
    withdrawn: u64,
    total: u64,
    have: Bits,
    batches: usize,
    claims: (Vec<(u64, u64)>, u64),
}

impl Feed {
    pub(super) fn new(watcher: PeerId, secret: [u8; 32], topics: Vec<Keyed>) -> Self {
        Self {
            watcher,
            secret,
            topics,
            there: BTreeMap::new(),
            as_of: None,
            told: BTreeMap::new(),
            next: 0,
            said: false,
        }
    }

    /// What is to be told now, as frames; whether there is more.
    pub(super) fn round(&mut self, inner: &Inner) -> Result<(Vec<u8>, bool), WireError> {
        self.look_around(inner);
        let (mut news, mut more) = (Vec::new(), false);
        let there = &self.there;
        self.told.retain(|subject, told| {
            let source = there.get(subject).map(|(_, source)| source);
            let stays =
                source.is_some_and(|s| (s.place(), s.withdrawn()) == (told.place, Some(told.withdrawn)));
            if !stays {
                news.push(News::Gone(told.id));
            }
            stays
        });
        for (subject, (topic, source)) in &self.there {
            let Some(withdrawn) = source.withdrawn() else {
                continue;
            };
            let (_, total) = source.known_as();
            let next = &mut self.next;
            let told = self.told.entry(*subject).or_insert_with(|| {
                *next += 1;
                news.push(News::Holds(*next, *topic, *subject, total));
                Told {
                    id: *next,
                    place: source.place(),
                    withdrawn,
                    total,
                    have: Bits::none(total),
                    batches: 0,
                    claims: (Vec::new(), 0),
                }
            });
            more |= told.news(*subject, source, self.watcher, &mut news);
        }
        if !more && !self.said {
            self.said = true;
            news.push(News::Said);
        }
        let mut frames = Vec::new();
        for news in news {
            frames.extend(news.frame()?);
        }
        Ok((frames, more))
    }

    /// What there is of the topics, where that changed.
    fn look_around(&mut self, inner: &Inner) {
        let now = inner.there();
        if self.as_of == Some(now) {
            return;
        }
        self.as_of = Some(now);
        self.there.clear();
        for source in inner.sources() {
            for (name, subject) in source.known_as().0 {
                let keyed = *blake3::keyed_hash(&self.secret, &name).as_bytes();
                let topic = self.topics.iter().position(|topic| *topic == keyed);
                let Some(topic) = topic.and_then(|topic| u8::try_from(topic).ok()) else {
                    continue;
                };
                if self.there.len() < MAX_CONTENTS {
                    self.there
                        .entry(subject)
                        .or_insert_with(|| (topic, source.clone()));
                }
            }
        }
    }
}

impl Told {
    /// What is new of a content; whether there is more of it.
    fn news(&mut self, subject: Subject, source: &Source, watcher: PeerId, news: &mut Vec<News>) -> bool {
        match source {
            Source::Wanted(wanted) => {
                let state = wanted.state();
                let Some(mine) = &state.mine else { return false };
                let leaves = state.leaves_of(subject, self.total);
                let batches = leaves.map(|leaves| leaves.batches_since(self.batches));
                let more = self.leaves(batches.into_iter().flatten(), watcher, news);
                self.got(mine.have.clone(), news);
                let pair = |range: ByteRange| (range.start, range.len());
                let claims = mine.claims.iter().take(MAX_CLAIMS).map(pair).collect();
                let claims = (claims, mine.fetched);
                if claims != self.claims {
                    news.push(News::Claims(self.id, claims.0.clone(), claims.1));
                    self.claims = claims;
                }
                more
            }
            Source::Shelf(served) => {
                let leaves = served.leaves(subject);
                let batches = leaves.map(|leaves| leaves.batches_since(self.batches));
                let more = self.leaves(batches.into_iter().flatten(), watcher, news);
                self.got(Bits::all(self.total), news);
                more
            }
        }
    }

    /// Batches, each with its place, but for those that the watcher signed itself; whether there are more.
    fn leaves<'a>(
        &mut self,
        batches: impl Iterator<Item = (usize, &'a [u8])>,
        watcher: PeerId,
        news: &mut Vec<News>,
    ) -> bool {
        let mut batches = batches
            .filter(|(_, signed)| !signed.starts_with(&watcher.0))
            .peekable();
        for (place, signed) in batches.by_ref().take(BATCHES_A_ROUND) {
            news.push(News::Leaves(self.id, signed.to_vec()));
            self.batches = place + 1;
        }
        batches.peek().is_some()
    }

    fn got(&mut self, mut have: Bits, news: &mut Vec<News>) {
        have.take_out(&self.have);
        self.have.add(&have);
        let runs: Vec<_> = have.runs().collect();
        news.extend(
            runs.chunks(MAX_RUNS)
                .map(|runs| News::Got(self.id, runs.to_vec())),
        );
    }
}

/// When the next telling is due, after one at `last`.
pub(super) fn due(last: Instant) -> Instant {
    last + PACE
}
