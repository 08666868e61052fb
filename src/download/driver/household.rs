//! The household's share of a download: members' disks as sources beside the uplinks, what members are told of this one,
//! and what becomes of a member whose word was not true.
//!
//! Invariants: a member's claims keep our uplinks away only while they move; what came on the word of a witness that lied
//! is taken back before anything else happens; with no digest known, the slices of the spot check come over uplinks before
//! the pieces they lie in come from anybody.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;
use tokio_util::task::AbortOnDropHandle;

use super::house::{FIRST_SOURCE, Hashed, House, pieces_of, whole};
use super::{Driver, Ending, Worker};
use crate::download::error::DownloadError;
use crate::download::source::{Bring, Right, bring};
use crate::download::worker::End;
use crate::share::Holder;
use crate::store::Part;
use crate::store::StoreError;
use crate::stripe::Failure;
use crate::stripe::LaneSpec;
use crate::stripe::LeaseId;
use crate::types::{ByteRange, LaneId, PIECE, RangeSet};

/// Members whose disks are sources at once: each has two leases with two pieces in memory.
const MAX_SOURCES: usize = 6;
/// Leases of a source: the second hides the time between two requests.
const SLOTS: usize = 2;
/// The view is looked at no more often: members tell of every piece, and it costs more to look than to hear.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pieces hashed in one go.
const MAX_HASHED: usize = 16;

/// What happens to a download that is shared.
#[derive(Debug)]
pub(super) enum News {
    /// Members have something else now.
    Changed,
    /// Pieces were hashed.
    Hashed(Result<Vec<Hashed>, StoreError>),
}

/// Returns when something happens; never where nothing is shared.
pub(super) async fn news(house: &mut Option<House>) -> News {
    let Some(House {
        changes,
        hashing,
        looked,
        ..
    }) = house
    else {
        return std::future::pending().await;
    };
    let next = looked.map(|at| at + LOOK_EVERY);
    let changed = async {
        if let Some(next) = next {
            sleep_until(next.into()).await;
        }
        changes.changed().await
    };
    let hashed = async {
        match hashing {
            Some(task) => task.await.unwrap_or_else(|_panicked| Ok(Vec::new())),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        hashed = hashed => {
            *hashing = None;
            News::Hashed(hashed)
        }
        Ok(()) = changed => News::Changed,
        else => std::future::pending().await,
    }
}

impl Driver {
    /// Members have something else now: makes lanes of those that hold something, tells the scheduler what they hold and
    /// what others see to.
    pub(super) fn house_changed(&mut self, now: Instant) {
        let Some(house) = &mut self.house else { return };
        if house.off {
            return;
        }
        house.looked = Some(now);
        house.view = house.sharing.view();
        let view = std::mem::take(&mut house.view);
        let mut holders: Vec<&Holder> = view.holders.iter().filter(|h| !h.have.is_empty()).collect();
        holders.sort_by_key(|h| std::cmp::Reverse(h.have.len()));
        holders.truncate(MAX_SOURCES);
        let gone = house.sources.iter().filter(|(_, s)| {
            let holds = holders.iter().any(|h| h.peer == s.peer);
            s.here && !holds
        });
        let gone: Vec<LaneId> = gone.map(|(&id, _)| id).collect();
        let mut news = Vec::new();
        for holder in holders {
            let (id, new) = house.source(holder.peer, &holder.name);
            if let Some(source) = house.sources.get_mut(&id)
                && (new || source.have != holder.have)
            {
                source.have = holder.have.clone();
                news.push((id, new, source.have.clone()));
            }
        }
        let copies = view.copies.clone();
        house.view = view;
        for id in gone {
            self.source_gone(id, now);
        }
        for (id, _, _) in news.iter().filter(|(_, new, _)| *new) {
            let spec = LaneSpec {
                slots: SLOTS,
                metered: false,
                hint: None,
                latency: Duration::ZERO,
            };
            self.scheduler.source_up(*id, spec, now);
        }
        // What is to be checked first: a source must not have begun with its piece.
        self.tell_and_avoid(now);
        for (id, _, have) in news {
            self.scheduler.holds(id, have, now);
        }
        self.scheduler.copies(copies, now);
    }

    /// Tells members what our uplinks are at, and keeps these away from what others are at.
    pub(super) fn tell_and_avoid(&mut self, now: Instant) {
        let Some(house) = &mut self.house else { return };
        let total = self.known.generation.total;
        let under_way = self.scheduler.under_way();
        let written = self.part.written();
        // What has only begun is ours to finish, and what is complete but not told yet is not to be fetched again.
        let ours: RangeSet = pieces_of(&under_way)
            .chain(pieces_of(&written).filter(|piece| !house.is_known(*piece, now)))
            .map(|piece| whole(piece, total))
            .collect();
        let moved = self.members.values().chain(&self.former).map(|m| m.bytes).sum();
        house.sharing.claims(ours.clone(), moved);
        if !house.off {
            let (elsewhere, checks) = (house.elsewhere(&ours, now), house.checks(&self.part));
            self.scheduler.elsewhere(elsewhere, now);
            self.scheduler.checks(checks, now);
        }
        self.hash_what_is_complete(&written);
    }

    /// Pieces that uplinks completed are hashed beside everything else, so that members hear of them within moments.
    fn hash_what_is_complete(&mut self, written: &RangeSet) {
        let total = self.known.generation.total;
        let Some(house) = &mut self.house else { return };
        if house.hashing.is_some() {
            return;
        }
        let complete = pieces_of(written)
            .filter(|piece| !house.told.contains_key(piece) && written.contains(whole(*piece, total)))
            .take(MAX_HASHED);
        let pieces: Vec<u64> = complete.collect();
        if pieces.is_empty() {
            return;
        }
        let part = self.part.clone();
        let hash = move || hashes(&part, &pieces);
        house.hashing = Some(self.shared.tasks.blocking(hash));
    }

    /// Takes in what happened.
    pub(super) fn heard_of_house(&mut self, news: News, now: Instant) -> Result<(), StoreError> {
        match news {
            News::Changed => self.house_changed(now),
            News::Hashed(hashed) => self.heard_hashes(hashed?, now),
        }
        Ok(())
    }

    /// An uplink brought something: perhaps a piece is complete by it.
    pub(super) fn hash_soon(&mut self) {
        if self.house.as_ref().is_some_and(|house| house.hashing.is_none()) {
            let written = self.part.written();
            self.hash_what_is_complete(&written);
        }
    }

    /// Pieces are complete: members are told, and what a witness says of them is compared with what they are.
    fn heard_hashes(&mut self, hashed: Vec<Hashed>, now: Instant) {
        if let Some(house) = &mut self.house {
            house.found(&self.part, &hashed, now);
        }
        self.tell_and_avoid(now);
    }

    /// Begins a lease on a source.
    pub(super) fn start_source(&mut self, lease: LeaseId, lane: LaneId, range: ByteRange) {
        let now = Instant::now();
        let Some(house) = &mut self.house else { return };
        let Some(source) = house.sources.get_mut(&lane) else {
            return;
        };
        source.activity.started(lease, now);
        let end = Arc::new(AtomicU64::new(range.end));
        let work = bring(
            Bring {
                id: lease,
                range,
                end: end.clone(),
                total: self.known.generation.total,
                holder: source.peer,
                sharing: house.sharing.clone(),
                words: house.words.clone(),
            },
            self.fetch.clone(),
        );
        let worker = Worker {
            lane,
            heard: now,
            end,
            task: AbortOnDropHandle::new(self.shared.tasks.spawn("source", work)),
        };
        self.workers.insert(lease, worker);
    }

    /// A source brought a piece.
    pub(super) fn brought(&mut self, lease: LeaseId, right: Right, now: Instant) {
        let new = self.scheduler.bytes(lease, right.bytes, now);
        self.alive = self.alive.max(now);
        let lane = self.workers.get_mut(&lease).map(|worker| {
            worker.heard = now;
            worker.lane
        });
        let Some(house) = &mut self.house else { return };
        if let Some(source) = lane.and_then(|lane| house.sources.get_mut(&lane)) {
            source.bytes += new;
            source.trouble = None;
        }
        // It may have been taken back meanwhile.
        if right.whole
            && self.part.is_known(right.piece, right.leaf.hash)
            && house.told.insert(right.piece, now).is_none()
        {
            house
                .sharing
                .got(right.piece, right.leaf.hash, Some(right.leaf.witness));
        }
    }

    /// Whether the lease is a source's.
    pub(super) fn is_source(&self, lease: LeaseId) -> bool {
        self.workers.get(&lease).is_some_and(|w| w.lane.0 >= FIRST_SOURCE)
    }

    /// A source's worker is over.
    pub(super) fn source_ended(&mut self, lease: LeaseId, end: End, now: Instant) -> Result<(), StoreError> {
        let lane = self.workers.get(&lease).map(|worker| worker.lane);
        let source = lane.and_then(|lane| self.house.as_mut()?.sources.get_mut(&lane));
        let Some(source) = source else { return Ok(()) };
        let peer = source.peer;
        source.activity.ended(lease, now);
        self.forget(lease);
        let text = match end {
            End::Store(error) => return Err(error),
            End::Wrong(piece) => {
                if let Some(house) = &self.house {
                    house.sharing.strike(peer, piece);
                }
                "it served something else than the piece that was asked for".to_owned()
            }
            End::Lied => "something else is there already".to_owned(),
            End::Failed(_, text) => text,
            // The scheduler knows from the bytes; none of the others is a source's.
            _ => return Ok(()),
        };
        tracing::debug!(peer = %peer.short(), %text, "a member's disk failed");
        self.last_failure.clone_from(&text);
        if let Some(source) = lane.and_then(|lane| self.house.as_mut()?.sources.get_mut(&lane)) {
            source.trouble = Some(text);
        }
        self.scheduler.lease_failed(lease, Failure::Broken, now);
        Ok(())
    }

    /// Takes back what came on the word of those who lied.
    pub(super) async fn settle_liars(&mut self) -> Result<(), DownloadError> {
        let Some(house) = &mut self.house else {
            return Ok(());
        };
        let Some(liars) = house.words.found_out() else {
            return Ok(());
        };
        // What this device once signed and is not so any more is nobody's fault.
        for liar in liars.into_iter().filter(|liar| *liar != house.me) {
            house.sharing.lied(liar, "the origin has something else");
        }
        // What began before they were found out is written by then, and noted.
        self.fetch.sink.settle().await;
        let pieces = house.words.to_take_back();
        self.take_back(&pieces).await?;
        self.house_changed(Instant::now());
        Ok(())
    }

    /// What members brought turned out wrong as a whole, and nobody knows whose piece it was: all of it is fetched again over
    /// uplinks, which tells who it was.
    pub(super) async fn distrust_all(&mut self) -> Result<(), DownloadError> {
        let now = Instant::now();
        let Some(house) = &mut self.house else {
            return Ok(());
        };
        tracing::warn!(
            "what members brought does not have the digest that was expected: fetching it again from the origin"
        );
        house.off = true;
        house.words.close();
        self.fetch.sink.settle().await;
        let pieces = house.words.pieces();
        let lanes: Vec<LaneId> = house.sources.keys().copied().collect();
        for lane in lanes {
            self.source_gone(lane, now);
        }
        self.scheduler.elsewhere(RangeSet::new(), now);
        self.scheduler.checks(RangeSet::new(), now);
        self.take_back(&pieces).await
    }

    async fn take_back(&mut self, pieces: &[u64]) -> Result<(), DownloadError> {
        let total = self.known.generation.total;
        if let Some(house) = &mut self.house {
            for piece in pieces {
                house.told.remove(piece);
            }
            house.sharing.lost(pieces);
        }
        let ranges: Vec<ByteRange> = pieces.iter().map(|&piece| whole(piece, total)).collect();
        if ranges.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            pieces = ranges.len(),
            "pieces that came from a member were wrong: fetching them again"
        );
        let (part, taken) = (self.part.clone(), ranges.clone());
        let done = self.shared.tasks.blocking(move || part.take_back(&taken)).await;
        done.map_err(|_panicked| DownloadError::Stopped { resumable: true })??;
        if let Some(house) = &self.house {
            house.words.taken_back(pieces);
        }
        self.lost(&ranges);
        Ok(())
    }

    fn source_gone(&mut self, lane: LaneId, now: Instant) {
        self.scheduler.lane_down(lane, now);
        let leases = self.workers.iter().filter(|(_, w)| w.lane == lane);
        for lease in leases.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.forget(lease);
        }
        if let Some(source) = self.house.as_mut().and_then(|h| h.sources.get_mut(&lane)) {
            source.here = false;
            source.have = RangeSet::new();
        }
    }

    /// All is written: whether what members brought is what they vouched for, and nobody was found out whose pieces are
    /// still there.
    pub(super) async fn is_settled(&mut self) -> Result<bool, DownloadError> {
        let Some(house) = &mut self.house else {
            return Ok(true);
        };
        let untold = house.words.pieces().into_iter();
        let untold: Vec<u64> = untold.filter(|piece| !house.told.contains_key(piece)).collect();
        let part = self.part.clone();
        let hash = move || hashes(&part, &untold);
        let hashed = self.shared.tasks.blocking(hash).await;
        let hashed = hashed.map_err(|_panicked| DownloadError::Stopped { resumable: true })??;
        house.found(&self.part, &hashed, Instant::now());
        Ok(house.words.is_settled())
    }

    /// All is written: whether it has the digest, where members brought some of it. With a wrong one it goes on, without them.
    pub(super) async fn is_proven(&mut self) -> Result<bool, DownloadError> {
        let helped = self
            .house
            .as_ref()
            .filter(|h| !h.off && !h.words.pieces().is_empty());
        let Some(root) = helped.and_then(|h| h.root).filter(|_| self.home.is_some()) else {
            return Ok(true);
        };
        let part = self.part.clone();
        let sealed = self.shared.tasks.blocking(move || part.seal(Some(root))).await;
        match sealed.map_err(|_panicked| DownloadError::Stopped { resumable: true })? {
            Err(StoreError::Checksum { .. }) => {
                self.distrust_all().await?;
                Ok(false)
            }
            Err(StoreError::Lost { ranges }) => {
                self.lost(&ranges);
                Ok(false)
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(true),
        }
    }

    /// Tells members of what is complete and not told yet, and keeps it for those who come later.
    pub(in crate::download) async fn keep(&mut self, ending: &Ending) {
        let Ending::Complete(path) = ending else { return };
        let Some(house) = &mut self.house else { return };
        house.hashing = None;
        let pieces = self.known.generation.total.div_ceil(PIECE);
        let left: Vec<u64> = (0..pieces)
            .filter(|piece| !house.told.contains_key(piece))
            .collect();
        let part = self.part.clone();
        let hash = move || hashes(&part, &left);
        let Ok(Ok(hashed)) = self.shared.tasks.blocking(hash).await else {
            return;
        };
        house.found(&self.part, &hashed, Instant::now());
        if let Some(file) = self.part.reader() {
            house.sharing.keep(Arc::new(file), path.clone());
        }
    }
}

fn hashes(part: &Part, pieces: &[u64]) -> Result<Vec<Hashed>, StoreError> {
    let hash = |&piece| Ok((piece, part.leaf(piece)?));
    pieces.iter().map(hash).collect()
}
