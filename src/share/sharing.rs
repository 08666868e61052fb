//! A content that this device fetches, and shares while it does.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::link::Exchange;
use crate::link::wire::FETCH;
use crate::types::{PIECE, PeerId, RangeSet};

use super::leaves::Leaves;
use super::look::Handle;
use super::shelf::Keep;
use super::wanted::State;
use super::wire::{Fetch, LABEL};
use super::{Attested, FetchError, Inner, View};

/// Leaves signed at once: a signature for each would cost a Pi more than the hashing.
const SIGN_AT: usize = 64;
/// A leaf waits no longer for others to be signed with: a piece is to be had from here within moments.
const SIGN_AFTER: Duration = Duration::from_millis(50);

/// A content that this device fetches, and shares while it does. Clones share it; what it told others is withdrawn when the
/// last one is dropped, and the [`Look`](super::Look) too.
#[derive(Clone, Debug)]
pub struct Sharing {
    handle: Arc<Handle>,
}

impl Sharing {
    pub(super) const fn new(handle: Arc<Handle>) -> Self {
        Self { handle }
    }

    /// Ticks when the view, or a leaf, may have changed: many times a second while members fetch. The view is costly, so it
    /// is to be looked at less often.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.handle.wanted.changed.subscribe()
    }

    /// What members have of it now.
    pub fn view(&self) -> View {
        self.handle.wanted.state().view(self.inner().standing())
    }

    /// The leaf of a piece. `None`: nobody in good standing vouches for one, or not all for the same.
    pub fn leaf(&self, piece: u64) -> Option<Attested> {
        self.handle.wanted.state().leaf(piece)
    }

    /// All that anybody in good standing says of a piece.
    pub fn said_of(&self, piece: u64) -> Vec<Attested> {
        let state = self.handle.wanted.state();
        state.leaves().flat_map(|leaves| leaves.said_of(piece)).collect()
    }

    /// This device has the piece now, and it is right. `witness`: on whose word; `None`: it came from the origin by this
    /// device's own doing, which is then the witness.
    pub fn got(&self, piece: u64, hash: [u8; 32], witness: Option<PeerId>) {
        let Ok(piece) = u32::try_from(piece) else { return };
        let mut state = self.handle.wanted.state();
        let Some(mine) = &mut state.mine else { return };
        if mine.have.insert(piece) {
            mine.hashes.insert(piece, hash);
            if witness.is_none() {
                mine.unsigned.push((piece, hash));
            }
        }
        let (waiting, signs) = (mine.unsigned.len(), witness.is_none());
        if waiting >= SIGN_AT {
            sign(&mut state, self.inner());
            drop(state);
            self.handle.wanted.tick();
        } else if waiting == 1 && signs {
            // What nobody wants any more ends although its leaves wait.
            let (wanted, household) = (Arc::clone(&self.handle.wanted), self.handle.household.clone());
            self.handle.wanted.tasks.spawn("sign-leaves", async move {
                tokio::time::sleep(SIGN_AFTER).await;
                sign(&mut wanted.state(), &household.inner);
                wanted.tick();
                household.inner.tell();
            });
        }
        self.inner().tell();
    }

    /// It does not have these any more.
    pub fn lost(&self, pieces: &[u64]) {
        let mut state = self.handle.wanted.state();
        for piece in pieces.iter().filter_map(|piece| u32::try_from(*piece).ok()) {
            state.lose(piece);
        }
        drop(state);
        self.inner().tell();
    }

    /// What it is fetching over uplinks now, and how much it has fetched over them so far.
    pub fn claims(&self, bytes: RangeSet, moved: u64) {
        if let Some(mine) = &mut self.handle.wanted.state().mine {
            mine.claims = bytes;
            mine.fetched = moved;
        }
        self.inner().tell();
    }

    /// Asks a holder for `count` pieces from `first` on.
    ///
    /// # Errors
    /// Where there is no way to it, or nothing to be had from it.
    pub async fn fetch(&self, peer: PeerId, first: u64, count: u64) -> Result<Pieces, FetchError> {
        let number = |n: u64| u32::try_from(n).map_err(|_| FetchError::Gone);
        let (first, count) = (number(first)?, number(count)?);
        if self.inner().standing().is_bad(peer) {
            return Err(FetchError::Gone);
        }
        let source = self.handle.wanted.state().source(peer, (first, count));
        let (link, subject, total) = source.ok_or(FetchError::Gone)?;
        let secret = link.exporter(LABEL).ok_or(FetchError::Gone)?;
        let topic = self.handle.wanted.topic.of_subject(&secret, subject, total);
        let topic = topic.ok_or(FetchError::Gone)?;
        let fetch = Fetch {
            topic,
            subject,
            first,
            count,
        };
        let stream = link.ask(FETCH, &fetch).await;
        let stream = stream.map_err(|e| FetchError::Broken(io::Error::other(e)))?;
        Ok(Pieces {
            stream,
            next: u64::from(first),
            left: count,
            total,
        })
    }

    /// The member served a piece that is not its leaf: it is not asked for that one again, and after the second time for
    /// none for a day (SEC-B1).
    pub fn strike(&self, peer: PeerId, piece: u64) {
        if let Ok(piece) = u32::try_from(piece) {
            self.handle.wanted.state().strike(peer, piece);
        }
        let barred = self.inner().shelf.bars().strike(peer, Instant::now());
        tracing::warn!(peer = %peer.short(), piece, barred, "a member served a wrong piece");
        if barred {
            self.inner().save_bars();
        }
        self.handle.wanted.tick();
    }

    /// The origin has something else than this witness vouched for: its word counts for nothing for a day, and nothing is
    /// fetched from it.
    pub fn lied(&self, witness: PeerId, why: &str) {
        tracing::warn!(peer = %witness.short(), why, "a member vouched for what the origin does not have: it is barred for a day");
        let inner = self.inner();
        inner.shelf.bars().bar(witness, Instant::now());
        inner.save_bars();
        inner.forget(witness);
    }

    /// The file is complete, was found right and has its name: it is on the shelf from now on.
    pub fn keep(&self, file: Arc<fs::File>, path: PathBuf) {
        let mut state = self.handle.wanted.state();
        sign(&mut state, self.inner());
        let Some(mine) = &state.mine else { return };
        let content = mine.content.clone();
        let mut leaves: Vec<Leaves> = state.leaves().cloned().collect();
        drop(state);
        let (topic, shelf) = (self.handle.wanted.topic, self.inner().shelf.clone());
        let (key, stop) = (self.inner().key.clone(), self.inner().tasks.token().clone());
        let kept = move || {
            leaves.iter_mut().for_each(|leaves| leaves.compact(&key));
            let keep = Keep {
                topic,
                content,
                leaves,
                file,
                path,
                offer: None,
            };
            match shelf.keep(keep) {
                Ok(held) => shelf.copy(held, &|| stop.is_cancelled()),
                Err(error) => tracing::info!("what was downloaded is not shared: {error}"),
            }
        };
        // It goes on when nobody waits for it.
        drop(self.inner().tasks.blocking(kept));
    }

    fn inner(&self) -> &Inner {
        &self.handle.household.inner
    }
}

/// Signs what was fetched from the origin since the last time.
fn sign(state: &mut State, inner: &Inner) {
    let Some(mine) = &mut state.mine else { return };
    let entries = std::mem::take(&mut mine.unsigned);
    if entries.is_empty() {
        return;
    }
    let (subjects, total) = (mine.content.subjects.clone(), mine.content.total);
    for subject in subjects {
        let signed = Leaves::sign(subject, &entries, &inner.key);
        // Where there is no room for more, others fetch it from the origin.
        let _ = state.attest((subject, total), &signed, inner.standing());
    }
}

/// Pieces on their way from a holder. Dropped: it hears to stop.
#[derive(Debug)]
pub struct Pieces {
    stream: Exchange,
    next: u64,
    left: u32,
    total: u64,
}

impl Pieces {
    /// The next whole piece, of which nothing was verified.
    ///
    /// # Errors
    /// Where the holder broke off, or after the last one.
    pub async fn next(&mut self) -> Result<Vec<u8>, FetchError> {
        self.left = self.left.checked_sub(1).ok_or(FetchError::Gone)?;
        let length = PIECE.min(self.total.saturating_sub(self.next * PIECE));
        self.next += 1;
        let length = usize::try_from(length).unwrap_or(0);
        self.stream.take(length).await.map_err(FetchError::Broken)
    }
}
