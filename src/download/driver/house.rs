//! What one download knows of the household: the members' disks, on whose word each piece was taken, what was told.
//!
//! Invariants: a member has at most one source; of two members that claim the same, both leave it to the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::download::slices::slices;
use crate::download::words::Words;
use crate::lane::LaneInfo;
use crate::share::{Holder, Sharing, View};
use crate::store::Part;
use crate::store::StoreError;
use crate::stripe::LaneSnapshot;
use crate::transfer::{Activity, LaneProgress, Standing};
use crate::trust::Tier;
use crate::types::{ByteRange, LaneId, LineId, PIECE, PeerId, RangeSet, UplinkKind};

/// Claims of a member that brought nothing for so long count no more: it may be stopped, gone, or lying. Less than the
/// four seconds in which what somebody left lying must be taken over.
const CLAIM_FOR: Duration = Duration::from_secs(3);
/// Until what was told has been signed, sent and heard. So long it stays claimed as well: a piece that is neither would be
/// fetched again.
const HEARD_WITHIN: Duration = Duration::from_millis(500);
/// Sources' lanes have numbers of their own: no uplink ever gets one of these.
pub(super) const FIRST_SOURCE: u64 = 1 << 63;

/// What the household has to do with one download.
#[derive(Debug)]
pub(in crate::download) struct House {
    pub(in crate::download) sharing: Sharing,
    pub(super) me: PeerId,
    total: u64,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) view: View,
    pub(super) sources: BTreeMap<LaneId, Source>,
    pub(super) next: u64,
    /// What is checked over uplinks. Empty where a digest decides.
    pub(super) slices: RangeSet,
    /// On whose word each piece was taken that did not come over uplinks alone.
    pub(super) words: Words,
    /// Pieces that members were told of.
    pub(super) told: BTreeMap<u64, Instant>,
    pub(super) hashing: Option<JoinHandle<Result<Vec<Hashed>, StoreError>>>,
    /// Members bring nothing any more: what they brought turned out wrong, and nobody can say whose it was.
    pub(super) off: bool,
    /// When the view was last looked at.
    pub(super) looked: Option<Instant>,
    /// The digest that decides in the end.
    pub(super) root: Option<[u8; 32]>,
}

/// A piece and its hash, if it was still there.
pub(super) type Hashed = (u64, Option<[u8; 32]>);

/// A member's disk as a lane.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) info: LaneInfo,
    pub(super) peer: PeerId,
    pub(super) have: RangeSet,
    pub(super) bytes: u64,
    pub(super) activity: Activity,
    pub(super) trouble: Option<String>,
    pub(super) here: bool,
}

impl House {
    /// `root`: the digest that will decide in the end; where it is known, nothing is checked on the way. `written`: what is
    /// there already.
    pub(in crate::download) fn new(
        sharing: Sharing,
        me: PeerId,
        total: u64,
        root: Option<[u8; 32]>,
        written: &RangeSet,
    ) -> Self {
        let mut changes = sharing.changes();
        changes.mark_changed();
        Self {
            sharing,
            me,
            total,
            changes,
            view: View::default(),
            sources: BTreeMap::new(),
            next: FIRST_SOURCE,
            slices: if root.is_some() {
                RangeSet::new()
            } else {
                slices(total)
            },
            looked: None,
            words: Words::new(pieces_of(written).filter(|_| root.is_none())),
            told: BTreeMap::new(),
            hashing: None,
            off: false,
            root,
        }
    }

    /// Whose word is all there is for some of it.
    pub(in crate::download) fn attested_by(&self) -> Option<String> {
        let helped = self
            .sources
            .values()
            .filter(|s| s.bytes > 0 && self.root.is_none());
        let names: BTreeSet<&str> = helped.map(|s| s.info.owner.as_str()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// What each member brought.
    pub(in crate::download) fn brought(&self) -> Vec<(LaneInfo, u64)> {
        let helped = self.sources.values().filter(|s| s.bytes > 0);
        helped.map(|s| (s.info.clone(), s.bytes)).collect()
    }

    /// Where the sources stand.
    pub(super) fn progress<'a>(
        &'a self,
        of: impl Fn(LaneId) -> Option<&'a LaneSnapshot> + 'a,
    ) -> impl Iterator<Item = LaneProgress> + 'a {
        let shown = self.sources.values().filter(|s| s.here || s.bytes > 0);
        shown.map(move |source| {
            let standing = Standing {
                info: &source.info,
                bytes: source.bytes,
                ineligible: None,
                trouble: source.trouble.as_deref(),
            };
            standing.progress(of(source.info.id))
        })
    }

    /// Pieces are complete: members are told, unless somebody's word of one turns out not to be true.
    pub(super) fn found(&mut self, part: &Part, hashed: &[Hashed], now: Instant) {
        for &(piece, hash) in hashed {
            // It may have been taken back since it was hashed.
            let Some(hash) = hash.filter(|hash| part.is_known(piece, *hash)) else {
                continue;
            };
            let said = self.sharing.said_of(piece);
            if self.words.is(piece, hash, &said) {
                self.told.insert(piece, now);
                self.sharing.got(piece, hash, self.words.of(piece, &said));
            }
        }
    }

    /// Whether members know that they can have this piece from here: it takes a moment to sign it and to say so.
    pub(super) fn is_known(&self, piece: u64, now: Instant) -> bool {
        let told = self.told.get(&piece);
        told.is_some_and(|at| now.saturating_duration_since(*at) >= HEARD_WITHIN)
    }

    /// What others are fetching over uplinks, as far as this one leaves it to them: of two that began the same, the one with
    /// the smaller id goes on.
    pub(super) fn elsewhere(&self, ours: &RangeSet, now: Instant) -> RangeSet {
        let mut elsewhere = RangeSet::new();
        let moving = |h: &&Holder| now.saturating_duration_since(h.moved) < CLAIM_FOR;
        for holder in self.view.holders.iter().filter(moving) {
            for claim in holder.claims.iter() {
                if holder.peer < self.me {
                    elsewhere.insert(claim);
                } else {
                    for part in ours.gaps(claim) {
                        elsewhere.insert(part);
                    }
                }
            }
        }
        elsewhere
    }

    /// What uplinks are to bring before members: the slices whose pieces a member could bring, and pieces of which members
    /// said different things, as far as they are not there yet.
    pub(super) fn checks(&self, part: &Part) -> RangeSet {
        let disputed = self.words.disputed();
        if self.off || (self.slices.is_empty() && disputed.is_empty()) {
            return RangeSet::new();
        }
        let written = part.written();
        let disputed = disputed.iter().map(|piece| whole(*piece, self.total));
        let held = |slice: &ByteRange| {
            let piece = ByteRange::new(slice.start, slice.start + 1);
            self.view.holders.iter().any(|h| h.have.contains(piece))
        };
        let slices = self.slices.iter().filter(held).chain(disputed);
        slices.flat_map(|slice| written.gaps(slice)).collect()
    }

    /// The lane that a member's disk is, and whether that is a new one.
    pub(super) fn source(&mut self, peer: PeerId, name: &str) -> (LaneId, bool) {
        if let Some((id, source)) = self.sources.iter_mut().find(|(_, s)| s.peer == peer && s.here) {
            source.info.owner = name.to_owned();
            return (*id, false);
        }
        let id = LaneId(self.next);
        self.next += 1;
        // It was here before: what it brought then counts with what it brings now.
        let before = self.sources.extract_if(.., |_, s| s.peer == peer).next();
        let (bytes, activity) = before.map_or_else(Default::default, |(_, s)| (s.bytes, s.activity));
        let info = LaneInfo {
            id,
            peer: Some(peer),
            tier: Some(Tier::Member),
            owner: name.to_owned(),
            uplink: "disk".to_owned(),
            kind: UplinkKind::Household,
            metered: false,
            // No line: no other lane has this one's.
            line: LineId(id.0.to_be_bytes()),
            hint: None,
        };
        let source = Source {
            info,
            peer,
            have: RangeSet::new(),
            bytes,
            activity,
            trouble: None,
            here: true,
        };
        self.sources.insert(id, source);
        (id, true)
    }
}

/// All pieces that these bytes touch.
pub(super) fn pieces_of(bytes: &RangeSet) -> impl Iterator<Item = u64> + '_ {
    bytes.iter().flat_map(|r| r.start / PIECE..r.end.div_ceil(PIECE))
}

pub(super) fn whole(piece: u64, total: u64) -> ByteRange {
    ByteRange::new(piece * PIECE, ((piece + 1) * PIECE).min(total))
}
