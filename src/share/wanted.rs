//! One content that this device looks for: what members told of it, and what it has of it itself.
//!
//! Invariants: what a member tells counts only for what it was asked about, by the link that it has now; what it makes this
//! device hold is bounded; a leaf is kept only on the word of a member in good standing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::link::Link;
use crate::task::Tasks;
use crate::trust::{Right, Trust};
use crate::types::{ByteRange, PeerId, RangeSet};

use super::bars::Bars;
use super::bits::Bits;
use super::leaves::{Bad, Leaves};
use super::wire::News;
use super::{Attested, Content, Holder, ReadAt, Subject, Topic, View};

/// Contents of one topic that one member may name: versions of a file that it and its readers have.
const MAX_CONTENTS: usize = 8;
/// Contents of one topic whose leaves are kept, over all members.
const MAX_SUBJECTS: usize = 16;
/// Pieces that are not asked for again from who served them wrong; whoever fills it is barred long before.
const MAX_STRUCK: usize = 1024;

/// What is looked for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) topic: Topic,
    state: Mutex<State>,
    pub(super) changed: watch::Sender<u64>,
    /// What is done for it.
    pub(super) tasks: Tasks,
}

#[derive(Debug, Default)]
pub(super) struct State {
    members: BTreeMap<PeerId, Member>,
    leaves: BTreeMap<(Subject, u64), Leaves>,
    /// The batches that were taken in, by their hashes: several members pass on the same ones, and to check a signature
    /// costs a Pi a hundred times what a hash does.
    taken: BTreeSet<[u8; 32]>,
    struck: BTreeSet<(PeerId, u32)>,
    pub(super) mine: Option<Mine>,
}

/// A member that is watched.
#[derive(Debug)]
struct Member {
    link: Arc<Link>,
    /// Whether it said what it has, or says nothing any more.
    answered: bool,
    contents: BTreeMap<u32, Theirs>,
}

/// What a member has of a content.
#[derive(Debug)]
struct Theirs {
    subject: Subject,
    total: u64,
    have: Bits,
    claims: RangeSet,
    /// What it fetched over uplinks.
    fetched: u64,
    moved: Instant,
}

/// What this device has of the content.
#[derive(Debug)]
pub(super) struct Mine {
    pub(super) content: Content,
    pub(super) bytes: Arc<dyn ReadAt>,
    pub(super) have: Bits,
    /// What each piece was when it was found right.
    pub(super) hashes: BTreeMap<u32, [u8; 32]>,
    pub(super) claims: RangeSet,
    pub(super) fetched: u64,
    /// Fetched from the origin, to be signed.
    pub(super) unsigned: Vec<(u32, [u8; 32])>,
    /// Counts how often something of what was told was withdrawn.
    pub(super) withdrawn: u64,
    /// The pieces that have a leaf.
    attested: Bits,
}

/// What a member said and must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Breach {
    #[error("it spoke of a content that it had not named, or nobody asked about")]
    Unasked,
    #[error("it named more contents than any topic has")]
    TooMany,
    #[error(transparent)]
    Leaves(Bad),
}

/// Whose word counts.
#[derive(Clone, Copy)]
pub(super) struct Standing<'a> {
    pub(super) trust: &'a Trust,
    pub(super) bars: &'a Bars,
}

impl Standing<'_> {
    /// Whether what this peer signed or serves counts for nothing.
    pub(super) fn is_bad(self, peer: PeerId) -> bool {
        let member = peer == self.trust.me() || self.trust.may(peer, Right::Share);
        !member || self.bars.is_barred(peer, Instant::now())
    }
}

impl Wanted {
    pub(super) fn new(topic: Topic, tasks: Tasks) -> Self {
        Self {
            topic,
            state: Mutex::default(),
            changed: watch::channel(0).0,
            tasks,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tick(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

impl State {
    /// Its member is watched by this link from now on; false where it is already.
    pub(super) fn attach(&mut self, link: &Arc<Link>) -> bool {
        let known = self.members.get(&link.peer());
        if known.is_some_and(|member| Arc::ptr_eq(&member.link, link)) {
            return false;
        }
        let member = Member {
            link: Arc::clone(link),
            answered: false,
            contents: BTreeMap::new(),
        };
        self.members.insert(link.peer(), member);
        true
    }

    /// The link is gone, and with it what was said by it.
    pub(super) fn detach(&mut self, link: &Arc<Link>) -> bool {
        let is_its = self.member(link).is_some();
        is_its && self.members.remove(&link.peer()).is_some()
    }

    /// A watch by that link ended: what was said on it counts no more, and nothing more comes at once.
    pub(super) fn fell_silent(&mut self, link: &Arc<Link>) {
        if let Some(member) = self.member(link) {
            member.contents.clear();
            member.answered = true;
        }
    }

    /// Whether all members said what they have.
    pub(super) fn all_answered(&self) -> bool {
        self.members.values().all(|member| member.answered)
    }

    /// Whether a member has, or fetches, something of the topic.
    pub(super) fn is_there(&self) -> bool {
        self.members.values().any(|member| !member.contents.is_empty())
    }

    /// Takes in what a member said.
    pub(super) fn hear(
        &mut self,
        link: &Arc<Link>,
        news: News,
        topics: usize,
        standing: Standing<'_>,
    ) -> Result<(), Breach> {
        let Some(member) = self.member(link) else {
            return Ok(());
        };
        match news {
            News::Holds(id, topic, subject, total) => {
                if usize::from(topic) >= topics || member.contents.contains_key(&id) {
                    return Err(Breach::Unasked);
                }
                if member.contents.len() >= MAX_CONTENTS {
                    return Err(Breach::TooMany);
                }
                member.contents.insert(id, Theirs::new(subject, total));
            }
            News::Got(id, runs) => {
                let theirs = member.contents.get_mut(&id).ok_or(Breach::Unasked)?;
                let mut new = false;
                for (first, count) in runs {
                    new |= theirs.have.insert_run(first, count);
                }
                if new {
                    theirs.moved = Instant::now();
                }
            }
            News::Claims(id, ranges, fetched) => {
                let theirs = member.contents.get_mut(&id).ok_or(Breach::Unasked)?;
                let all = ByteRange::new(0, theirs.total);
                let range = |(start, len): (u64, u64)| ByteRange::new(start, start.saturating_add(len));
                theirs.claims = ranges.into_iter().map(|r| range(r).intersect(all)).collect();
                if fetched > theirs.fetched {
                    theirs.moved = Instant::now();
                }
                theirs.fetched = fetched;
            }
            News::Leaves(id, signed) => {
                let theirs = member.contents.get(&id).ok_or(Breach::Unasked)?;
                let of = (theirs.subject, theirs.total);
                return self.attest(of, &signed, standing);
            }
            News::Gone(id) => {
                member.contents.remove(&id).ok_or(Breach::Unasked)?;
            }
            News::Said => member.answered = true,
            News::Offered(_) => return Err(Breach::Unasked),
            News::Unknown => {}
        }
        Ok(())
    }

    /// Takes in a batch of leaves.
    pub(super) fn attest(
        &mut self,
        of: (Subject, u64),
        signed: &[u8],
        standing: Standing<'_>,
    ) -> Result<(), Breach> {
        let known = self.leaves.contains_key(&of);
        // What this device does not fetch, and more versions than there can be, nobody needs to know more of.
        if !known && (self.mine.is_some() || self.leaves.len() >= MAX_SUBJECTS) {
            return Ok(());
        }
        let hash = *blake3::hash(signed).as_bytes();
        if self.taken.contains(&hash) {
            return Ok(());
        }
        let leaves = self.leaves.entry(of).or_insert_with(|| Leaves::new(of.0, of.1));
        match leaves.add(signed, &|witness| standing.is_bad(witness)) {
            Ok(pieces) => {
                if !pieces.is_empty() {
                    self.taken.insert(hash);
                }
                self.look_again(&pieces);
                Ok(())
            }
            // It may not know yet, and to hear more than there is room for is nobody's fault.
            Err(Bad::Barred | Bad::Full) => Ok(()),
            Err(bad) => Err(Breach::Leaves(bad)),
        }
    }

    /// Whatever this witness signed counts for nothing.
    pub(super) fn forget(&mut self, witness: PeerId) {
        let all = self.leaves.values_mut();
        let pieces: Vec<u64> = all.flat_map(|leaves| leaves.forget(witness)).collect();
        self.taken.clear();
        self.look_again(&pieces);
        if let Some(mine) = self.mine.as_mut().filter(|_| !pieces.is_empty()) {
            mine.withdrawn += 1;
        }
    }

    /// From now on it is that content.
    pub(super) fn begin(&mut self, content: Content, bytes: Arc<dyn ReadAt>) {
        let total = content.total;
        let is_of_it = |subject: &Subject, of: u64| total == of && content.subjects.contains(subject);
        self.leaves.retain(|(subject, of), _| is_of_it(subject, *of));
        self.taken.clear();
        for subject in &content.subjects {
            let leaves = self.leaves.entry((*subject, total));
            leaves.or_insert_with(|| Leaves::new(*subject, total));
        }
        let withdrawn = self.mine.as_ref().map_or(0, |mine| mine.withdrawn + 1);
        self.mine = Some(Mine {
            content,
            bytes,
            have: Bits::none(total),
            hashes: BTreeMap::new(),
            claims: RangeSet::new(),
            fetched: 0,
            unsigned: Vec::new(),
            withdrawn,
            attested: Bits::none(total),
        });
        let all = Bits::all(total).runs().map(|(_, count)| u64::from(count)).sum();
        let all: Vec<u64> = (0..all).collect();
        self.look_again(&all);
    }

    /// The leaf that all who speak of the piece agree on.
    pub(super) fn leaf(&self, piece: u64) -> Option<Attested> {
        let mut leaves = self.leaves.values().filter_map(|leaves| leaves.leaf(piece));
        let first = leaves.next()?;
        leaves.all(|other| other.hash == first.hash).then_some(first)
    }

    /// The leaves of what this device fetches.
    pub(super) fn leaves(&self) -> impl Iterator<Item = &Leaves> {
        self.leaves.values()
    }

    /// The leaves of one subject.
    pub(super) fn leaves_of(&self, subject: Subject, total: u64) -> Option<&Leaves> {
        self.leaves.get(&(subject, total))
    }

    /// What members have of what this device fetches.
    pub(super) fn view(&self, standing: Standing<'_>) -> View {
        let mut view = View::default();
        let Some(mine) = &self.mine else { return view };
        for (peer, member) in &self.members {
            let of_it = member
                .contents
                .values()
                .filter(|theirs| theirs.is_of(&mine.content));
            let Some((mut have, claims, moved)) = of_it.fold(None, |all, theirs| Some(theirs.join(all)))
            else {
                continue;
            };
            if standing.is_bad(*peer) {
                continue;
            }
            have.keep(&mine.attested);
            for (_, piece) in self.struck.range((*peer, 0)..=(*peer, u32::MAX)) {
                have.remove(*piece);
            }
            for (first, count) in have.runs() {
                let end = (first + count) as usize;
                view.copies.resize(view.copies.len().max(end), 0);
                let copies = view.copies.get_mut(first as usize..end).unwrap_or_default();
                copies
                    .iter_mut()
                    .for_each(|copies| *copies = copies.saturating_add(1));
            }
            view.holders.push(Holder {
                peer: *peer,
                name: member.link.name().to_owned(),
                have: have.bytes(mine.content.total),
                claims,
                moved,
            });
        }
        view
    }

    /// By which link and as what a member can be asked for these pieces.
    pub(super) fn source(&self, peer: PeerId, pieces: (u32, u32)) -> Option<(Arc<Link>, Subject, u64)> {
        let content = &self.mine.as_ref()?.content;
        let member = self.members.get(&peer)?;
        let mut of_it = member.contents.values().filter(|theirs| theirs.is_of(content));
        let theirs = of_it.find(|theirs| theirs.have.contains(pieces.0))?;
        let last = pieces.0.checked_add(pieces.1.checked_sub(1)?)?;
        let mut struck = self.struck.range((peer, pieces.0)..=(peer, last));
        let may = theirs.have.contains(last) && struck.next().is_none();
        may.then(|| (Arc::clone(&member.link), theirs.subject, theirs.total))
    }

    /// The member is not asked for that piece again.
    pub(super) fn strike(&mut self, peer: PeerId, piece: u32) {
        if self.struck.len() < MAX_STRUCK {
            self.struck.insert((peer, piece));
        }
    }

    /// The piece is not here any more.
    pub(super) fn lose(&mut self, piece: u32) {
        if let Some(mine) = self.mine.as_mut().filter(|mine| mine.have.contains(piece)) {
            mine.have.remove(piece);
            mine.hashes.remove(&piece);
            mine.unsigned.retain(|(other, _)| *other != piece);
            mine.withdrawn += 1;
        }
    }

    /// Whether it is that content which this device fetches.
    pub(super) fn is_of(&self, subject: Subject) -> bool {
        self.mine
            .as_ref()
            .is_some_and(|mine| mine.content.subjects.contains(&subject))
    }

    fn member(&mut self, link: &Arc<Link>) -> Option<&mut Member> {
        let member = self.members.get_mut(&link.peer());
        member.filter(|member| Arc::ptr_eq(&member.link, link))
    }

    /// Whether these pieces have a leaf may have changed.
    fn look_again(&mut self, pieces: &[u64]) {
        let Some(mut mine) = self.mine.take() else { return };
        for piece in pieces {
            let Ok(number) = u32::try_from(*piece) else {
                continue;
            };
            match self.leaf(*piece) {
                Some(_) => mine.attested.insert(number),
                None => mine.attested.remove(number),
            };
        }
        self.mine = Some(mine);
    }
}

impl Theirs {
    fn new(subject: Subject, total: u64) -> Self {
        Self {
            subject,
            total,
            have: Bits::none(total),
            claims: RangeSet::new(),
            fetched: 0,
            moved: Instant::now(),
        }
    }

    fn is_of(&self, content: &Content) -> bool {
        self.total == content.total && content.subjects.contains(&self.subject)
    }

    /// What one member says of one content under two subjects, together.
    fn join(&self, other: Option<(Bits, RangeSet, Instant)>) -> (Bits, RangeSet, Instant) {
        let Some((mut have, mut claims, moved)) = other else {
            return (self.have.clone(), self.claims.clone(), self.moved);
        };
        have.add(&self.have);
        for range in &self.claims {
            claims.insert(range);
        }
        (have, claims, moved.max(self.moved))
    }
}
