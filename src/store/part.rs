//! A file being written: what is written, what of it is on the disk, what of that the journal says.
//!
//! The order of a sync is what everything hangs on: data, its `fdatasync`, the journal's record, its `fdatasync`
//! (striping.md HTTP-27). After a failed one the kernel may have dropped the dirty pages, and the next succeeds without
//! them: nothing since the last good sync counts then (HTTP-28).
//!
//! Invariants: `suspect` ⊆ `durable` ⊆ `written`, and the journal's claims ⊆ `durable`.

mod pieces;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::digest::{self, Prefix};
use super::journal::{Boot, Contents, Journal, Leaf, piece_range};
use super::medium::Medium;
use super::room::Room;
use super::survey::{boot, survey};
use super::{Claim, OpenedFiles, Resumed, StoreError, lock};
use crate::types::{ByteRange, PIECE, RangeSet};

/// A sync is due when this much waits for one: it bounds what a crash costs and the memory that dirty pages hold on
/// a small device; an SD card is done with it within a few seconds.
pub const SYNC_BYTES: u64 = 64 << 20;
/// A sync is due when anything waited this long: it bounds what a crash costs on slow lines. Two flushes every three
/// seconds are nothing even to an SD card (some 50 ms each).
pub const SYNC_INTERVAL: Duration = Duration::from_secs(3);
/// At the second failed sync the disk counts as failing.
const MAX_STRIKES: u32 = 2;
/// How much one call of [`Part::recheck`] or [`Part::advance_digest`] reads at most: a second or so on an SD card, so
/// that a stop does not wait long.
const STEP: u64 = 64 << 20;

/// What a sync did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Synced {
    /// Bytes of the file that are now on the disk and in the journal.
    pub durable: u64,
    /// Bytes the disk did not keep (HTTP-28), in order: they count as not written and must be fetched again.
    pub lost: Vec<ByteRange>,
}

/// What a step of [`Part::recheck`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Rechecked {
    /// Bytes that are not what was written: they count as not written and must be fetched again.
    pub lost: Vec<ByteRange>,
    /// Bytes still to be checked.
    pub left: u64,
}

/// The open files of a download. All methods take `&self` and may be called from several threads; all block.
pub struct Part {
    data: Box<dyn Medium>,
    path: PathBuf,
    total: Option<u64>,
    resumable: bool,
    room: Room,
    state: Mutex<State>,
    /// Held for the whole of a sync: there is one at a time.
    syncing: Mutex<Syncing>,
    digest: Mutex<Prefix>,
    /// Closed with the last write: until then nobody else may have the file.
    _lock: Option<File>,
}

/// The open files as the tests can fake them.
pub(super) struct Media {
    pub(super) data: Box<dyn Medium>,
    pub(super) journal: Box<dyn Medium>,
    pub(super) journal_max: u64,
    pub(super) lock: Option<File>,
    pub(super) directory: Option<File>,
    pub(super) path: PathBuf,
}

struct State {
    written: RangeSet,
    durable: RangeSet,
    /// Durable, but from before a reboot and not yet hashed again.
    suspect: RangeSet,
    /// Hashed again, and not yet in the journal as such.
    verified: RangeSet,
    leaves: BTreeMap<u64, [u8; 32]>,
    /// Of pieces that are written and not yet synced, where somebody wanted them before: not hashed again.
    hashed: BTreeMap<u64, [u8; 32]>,
    /// Counts the times that written bytes were given up: a write that began before must be done again.
    epoch: u64,
    /// When the oldest unsynced byte was first seen by `sync_due`.
    unsynced_since: Option<Instant>,
    finished: bool,
}

struct Syncing {
    journal: Journal,
    claim: Claim,
    boot: Boot,
    /// Until its first sync.
    directory: Option<File>,
    strikes: u32,
}

/// What a sync makes durable.
struct Pending {
    spans: Vec<ByteRange>,
    verified: Vec<ByteRange>,
    /// Pieces that became complete.
    complete: Vec<u64>,
}

impl Part {
    /// Continues what the files hold where the journal's claim allows it, else starts anew. Reserves the disk space.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] where the files hold bytes of something else that could still be resumed;
    /// [`StoreError::NoSpace`] and its kin; [`StoreError::Io`].
    pub fn resume_or_create(files: OpenedFiles, claim: &Claim) -> Result<(Self, Resumed), StoreError> {
        let media = Media {
            data: Box::new(files.data),
            journal: Box::new(files.journal),
            journal_max: files.journal_max,
            lock: Some(files.lock),
            directory: files.directory,
            path: files.path,
        };
        Self::open(media, claim, boot())
    }

    pub(super) fn open(media: Media, claim: &Claim, boot: Boot) -> Result<(Self, Resumed), StoreError> {
        let Media {
            data,
            journal,
            journal_max,
            lock,
            directory,
            path,
        } = media;
        let io = |doing| {
            let path = path.clone();
            move |e| StoreError::from_io(doing, &path, e)
        };
        let (contents, resumed) = survey(&*data, &*journal, journal_max, claim, boot, &path)?;
        // The journal first: at no moment may it name bytes that are cut off.
        let journal = Journal::start(journal, journal_max, &contents).map_err(io("starting the journal"))?;
        if let Resumed::Fresh(_) = resumed {
            data.set_len(0).map_err(io("emptying the part"))?;
        }
        let room = Room::reserve(&*data, claim.total(), &path)?;
        let part = Self {
            data,
            total: claim.total(),
            resumable: claim.is_resumable(),
            room,
            state: Mutex::new(State::new(contents)),
            syncing: Mutex::new(Syncing {
                journal,
                claim: claim.clone(),
                boot,
                directory,
                strikes: 0,
            }),
            digest: Mutex::new(Prefix::new()),
            _lock: lock,
            path,
        };
        Ok((part, resumed))
    }

    /// The bytes that need not be fetched: those of earlier runs and those written since. A snapshot.
    pub fn written(&self) -> RangeSet {
        lock(&self.state).written.clone()
    }

    /// Writes `bytes` at `offset`. What is there already stays as it is: the bytes of one generation are the same.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`], [`StoreError::Finished`], and what the disk says (HTTP-26); the journal is right
    /// in any case.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let range = self.checked(offset, bytes.len() as u64)?;
        let written = loop {
            let (epoch, gaps) = {
                let state = lock(&self.state);
                if state.finished {
                    return Err(StoreError::Finished);
                }
                (state.epoch, state.written.gaps(range))
            };
            for gap in &gaps {
                let slice = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
                self.data
                    .write_at(slice, gap.start)
                    .map_err(|e| self.error("writing", e))?;
            }
            let mut state = lock(&self.state);
            if state.epoch == epoch {
                for gap in gaps {
                    state.written.insert(gap);
                }
                break state.written.len();
            }
        };
        self.room.check(&*self.data, written, &self.path)
    }

    /// Whether the caller should [`sync`](Self::sync) now: [`SYNC_BYTES`] wait for it, or some since [`SYNC_INTERVAL`].
    /// To be asked at least every second.
    pub fn sync_due(&self, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let unsynced = state.written.len() - state.durable.len();
        if unsynced == 0 {
            state.unsynced_since = None;
            return false;
        }
        let since = *state.unsynced_since.get_or_insert(now);
        unsynced >= SYNC_BYTES || now.saturating_duration_since(since) >= SYNC_INTERVAL
    }

    /// Brings everything written so far to the disk and into the journal. Writes may go on meanwhile.
    ///
    /// # Errors
    /// A first failure is no error: see [`Synced::lost`]. [`StoreError::DiskFailing`] at the second;
    /// [`StoreError::NoSpace`] and its kin at once.
    pub fn sync(&self) -> Result<Synced, StoreError> {
        let mut syncing = lock(&self.syncing);
        let pending = lock(&self.state).pending(self.total.filter(|_| self.resumable));
        if pending.spans.is_empty() && pending.verified.is_empty() {
            return Ok(self.synced(Vec::new()));
        }
        let leaves = match self
            .hash(&pending.complete)
            .and_then(|l| self.data.sync().map(|()| l))
        {
            Ok(leaves) => leaves,
            Err(error) => return self.give_up(&mut syncing, error),
        };
        if self.resumable
            && let Err(error) = self.record(&mut syncing, &pending, &leaves)
        {
            // The data is on the disk, only the journal does not say so: the next sync tells it again.
            return self.strike(&mut syncing, error, Vec::new());
        }
        lock(&self.state).settle(pending, leaves);
        Ok(self.synced(Vec::new()))
    }

    /// After a reboot: hashes some of the claimed pieces again (HTTP-29). To be called until nothing is left, in the
    /// background: meanwhile missing pieces are fetched. [`seal`](Self::seal) does what is left of it.
    ///
    /// # Errors
    /// [`StoreError::Io`] where reading fails otherwise than with EIO (which counts as lost).
    pub fn recheck(&self) -> Result<Rechecked, StoreError> {
        let mut lost = Vec::new();
        for _ in 0..STEP / PIECE {
            let (range, expected) = {
                let state = lock(&self.state);
                let Some(first) = state.suspect.next_from(0) else {
                    break;
                };
                let piece = first.start / PIECE;
                (
                    piece_range(piece, self.total.unwrap_or(0)),
                    state.leaves.get(&piece).copied(),
                )
            };
            let good = match digest::leaf(&*self.data, range) {
                Ok(found) => Some(found) == expected,
                Err(error) if is_unreadable(&error) => false,
                Err(error) => return Err(self.error("reading back", error)),
            };
            lost.extend(lock(&self.state).rechecked(range, good));
        }
        let left = lock(&self.state).suspect.len();
        Ok(Rechecked { lost, left })
    }

    /// Takes some more of the file's durable beginning into its SHA-256, so that little is left to read at the end;
    /// for a driver that will ask for a digest, after each sync. Returns how many bytes it covers.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn advance_digest(&self) -> Result<u64, StoreError> {
        let mut digest = lock(&self.digest);
        let end = lock(&self.state)
            .certain_prefix()
            .min(digest.at().saturating_add(STEP));
        digest
            .advance(&*self.data, end)
            .map_err(|e| self.error("reading back", e))?;
        Ok(digest.at())
    }

    /// Ends the writing: all bytes are there, on the disk, and have the expected SHA-256. Returns the file's length.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] and [`StoreError::Lost`] (fetch what is missing, then call it again);
    /// [`StoreError::Checksum`] (the caller removes the files); what [`sync`](Self::sync) gives.
    pub fn seal(&self, expected: Option<[u8; 32]>) -> Result<u64, StoreError> {
        lock(&self.state).finished = true;
        let result = self.complete(expected);
        lock(&self.state).finished = result.is_ok();
        result
    }

    fn complete(&self, expected: Option<[u8; 32]>) -> Result<u64, StoreError> {
        let length = {
            let state = lock(&self.state);
            let end = state.written.iter().last().map_or(0, |r| r.end);
            let length = self.total.unwrap_or(end);
            let missing = length - state.written.len();
            if missing > 0 {
                return Err(StoreError::Incomplete { missing });
            }
            length
        };
        if self.data.len().map_err(|e| self.error("reading the length", e))? != length {
            self.data
                .set_len(length)
                .map_err(|e| self.error("setting the length", e))?;
        }
        let mut lost = self.sync()?.lost;
        while lost.is_empty() && !lock(&self.state).suspect.is_empty() {
            lost = self.recheck()?.lost;
        }
        if !lost.is_empty() {
            return Err(StoreError::Lost { ranges: lost });
        }
        if let Some(expected) = expected {
            while self.advance_digest()? < length {}
            let found = lock(&self.digest).digest();
            if found != expected {
                return Err(StoreError::Checksum { expected, found });
            }
        }
        Ok(length)
    }

    fn checked(&self, offset: u64, len: u64) -> Result<ByteRange, StoreError> {
        let range = ByteRange::new(offset, offset.saturating_add(len));
        let total = self.total.unwrap_or(i64::MAX as u64);
        if range.end > total {
            return Err(StoreError::OutOfRange { range, total });
        }
        Ok(range)
    }

    fn hash(&self, pieces: &[u64]) -> io::Result<Vec<Leaf>> {
        let total = self.total.unwrap_or(0);
        let leaf = |&piece| {
            let known = lock(&self.state).hashed.get(&piece).copied();
            let hash = || digest::leaf(&*self.data, piece_range(piece, total));
            Ok((piece, known.map_or_else(hash, Ok)?))
        };
        pieces.iter().map(leaf).collect()
    }

    fn record(&self, syncing: &mut Syncing, pending: &Pending, leaves: &[Leaf]) -> io::Result<()> {
        if let Some(directory) = &syncing.directory {
            sync_directory(directory)?;
            syncing.directory = None;
        }
        if syncing.journal.wants_base() {
            let mut contents = self.contents(syncing);
            for &span in &pending.spans {
                contents.durable.insert(span);
            }
            contents.leaves.extend(leaves.iter().copied());
            return syncing.journal.rebase(&contents);
        }
        let spans: Vec<ByteRange> = pending.spans.iter().chain(&pending.verified).copied().collect();
        syncing.journal.append(&spans, leaves)
    }

    /// What the journal should say now.
    fn contents(&self, syncing: &Syncing) -> Contents {
        let mut contents = Contents::new(syncing.claim.clone(), syncing.boot);
        let state = lock(&self.state);
        contents.durable = state.durable.clone();
        contents.suspect = state.suspect.clone();
        contents.leaves = state.leaves.clone();
        contents
    }

    /// The data's sync failed: what was written since the last good one may be gone.
    fn give_up(&self, syncing: &mut Syncing, error: io::Error) -> Result<Synced, StoreError> {
        let lost = lock(&self.state).give_up();
        self.strike(syncing, error, lost)
    }

    fn strike(
        &self,
        syncing: &mut Syncing,
        error: io::Error,
        lost: Vec<ByteRange>,
    ) -> Result<Synced, StoreError> {
        tracing::warn!(%error, "what was downloaded cannot be brought to the disk yet");
        tracing::debug!(path = %self.path.display(), "the file that is not synced");
        syncing.strikes += 1;
        match self.error("syncing", error) {
            error if error.is_room() => Err(error),
            StoreError::Io { path, source, .. } if syncing.strikes >= MAX_STRIKES => {
                Err(StoreError::DiskFailing { path, source })
            }
            _ => Ok(self.synced(lost)),
        }
    }

    fn synced(&self, lost: Vec<ByteRange>) -> Synced {
        let durable = lock(&self.state).durable.len();
        Synced { durable, lost }
    }

    fn error(&self, doing: &'static str, source: io::Error) -> StoreError {
        StoreError::from_io(doing, &self.path, source)
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("Part")
            .field("path", &self.path)
            .field("total", &self.total)
            .field("written", &state.written.len())
            .field("durable", &state.durable.len())
            .finish_non_exhaustive()
    }
}

impl State {
    fn new(contents: Contents) -> Self {
        Self {
            written: contents.durable.clone(),
            durable: contents.durable,
            suspect: contents.suspect,
            verified: RangeSet::new(),
            leaves: contents.leaves,
            hashed: BTreeMap::new(),
            epoch: 0,
            unsynced_since: None,
            finished: false,
        }
    }

    /// What the next sync has to do; with a `total`, also the pieces to be hashed.
    fn pending(&mut self, total: Option<u64>) -> Pending {
        self.unsynced_since = None;
        let spans = self.unsynced();
        let mut complete: Vec<u64> = Vec::new();
        if let Some(total) = total {
            let touched = spans.iter().flat_map(|s| s.start / PIECE..s.end.div_ceil(PIECE));
            complete.extend(touched.filter(|piece| {
                !self.leaves.contains_key(piece) && self.written.contains(piece_range(*piece, total))
            }));
            complete.dedup();
        }
        Pending {
            spans,
            verified: self.verified.iter().collect(),
            complete,
        }
    }

    fn unsynced(&self) -> Vec<ByteRange> {
        self.written
            .iter()
            .flat_map(|range| self.durable.gaps(range))
            .collect()
    }

    fn settle(&mut self, pending: Pending, leaves: Vec<Leaf>) {
        for span in pending.spans {
            self.durable.insert(span);
        }
        for span in pending.verified {
            self.verified.remove(span);
        }
        for (piece, _) in &leaves {
            self.hashed.remove(piece);
        }
        self.leaves.extend(leaves);
    }

    /// These bytes count as never written.
    fn take_back(&mut self, ranges: &[ByteRange]) {
        for &range in ranges {
            for set in [
                &mut self.written,
                &mut self.durable,
                &mut self.suspect,
                &mut self.verified,
            ] {
                set.remove(range);
            }
            for piece in range.start / PIECE..range.end.div_ceil(PIECE) {
                self.leaves.remove(&piece);
                self.hashed.remove(&piece);
            }
        }
        self.epoch += 1;
        self.finished = false;
    }

    fn give_up(&mut self) -> Vec<ByteRange> {
        let lost = self.unsynced();
        self.written = self.durable.clone();
        self.hashed.clear();
        self.epoch += 1;
        lost
    }

    /// Takes in a piece's verdict; returns the bytes that are not what was written.
    fn rechecked(&mut self, piece: ByteRange, good: bool) -> Vec<ByteRange> {
        let checked: Vec<ByteRange> = self.suspect.within(piece).collect();
        self.suspect.remove(piece);
        for &range in &checked {
            if good {
                self.verified.insert(range);
            } else {
                self.durable.remove(range);
                self.written.remove(range);
                self.leaves.remove(&(piece.start / PIECE));
            }
        }
        if good { Vec::new() } else { checked }
    }

    /// How far the file's beginning is on the disk and beyond doubt.
    fn certain_prefix(&self) -> u64 {
        let durable = self.durable.range_at(0).map_or(0, |r| r.end);
        self.suspect
            .next_from(0)
            .map_or(durable, |r| durable.min(r.start))
    }
}

/// Whether this says that the bytes are not there, rather than that the machine has a problem.
fn is_unreadable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error() == Some(Errno::EIO as i32)
}

/// Makes the directory's entries durable, where the file system has that notion.
pub(super) fn sync_directory(directory: &File) -> io::Result<()> {
    match directory.sync_all() {
        Err(error)
            if [Errno::EINVAL, Errno::EOPNOTSUPP]
                .map(|e| Some(e as i32))
                .contains(&error.raw_os_error()) =>
        {
            Ok(())
        }
        result => result,
    }
}
