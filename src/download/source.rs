//! One lease on a member's disk at work: gets whole pieces over the link, checks each against its leaf and against what is
//! there of it already, and writes what the lease wants of it.
//!
//! Invariants: nothing of a piece is written before its hash was found to be the leaf of a witness in good standing, before
//! all bytes of it that are there were found to be the same (threats 1.3, INT-3), and before it was noted on whose word it
//! is; each source worker has one piece coming and at most one being checked, so memory is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::flow::Sink;
use super::words::Words;
use super::worker::{End, Fetch, News};
use crate::share::{Attested, FetchError, Pieces, Sharing};
use crate::store::Part;
use crate::store::StoreError;
use crate::stripe::Failure;
use crate::stripe::LeaseId;
use crate::types::ByteRange;
use crate::types::PIECE;
use crate::types::PeerId;

/// A piece that is not there by then does not come: even a bad Wi-Fi moves 1 MiB in that time, and the scheduler takes a
/// silent source's leases away sooner.
const PIECE_WITHIN: Duration = Duration::from_secs(10);

/// A lease on what a holder has.
#[derive(Debug)]
pub(super) struct Bring {
    pub(super) id: LeaseId,
    pub(super) range: ByteRange,
    /// Where it ends now: at most `range.end`.
    pub(super) end: Arc<AtomicU64>,
    pub(super) total: u64,
    pub(super) holder: PeerId,
    pub(super) sharing: Sharing,
    pub(super) words: Words,
}

/// A piece that was right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right {
    pub(super) piece: u64,
    /// Bytes of it that the lease wanted, now written.
    pub(super) bytes: u64,
    pub(super) leaf: Attested,
    /// Whether all of it is written now.
    pub(super) whole: bool,
}

/// Works on the lease until it is done or fails, and tells how it ended.
pub(super) async fn bring(lease: Bring, fetch: Arc<Fetch>) {
    let mut at = lease.range.start;
    let end = lease.work(&fetch, &mut at).await.err().unwrap_or(End::Done);
    // Fails only where the driver is gone, and then nobody wants to know.
    let _ = fetch.news.send(News::Ended(lease.id, at, end)).await;
}

impl Bring {
    async fn work(&self, fetch: &Fetch, at: &mut u64) -> Result<(), End> {
        let (first, last) = (self.range.start / PIECE, self.range.end.div_ceil(PIECE));
        let asked = timeout(PIECE_WITHIN, self.sharing.fetch(self.holder, first, last - first)).await;
        let mut pieces = asked.map_err(|_| silent())?.map_err(|e| gone(&e))?;
        let mut checking: Option<JoinHandle<Result<Right, End>>> = None;
        for piece in first..last {
            if piece * PIECE >= self.end.load(Ordering::Relaxed) {
                break;
            }
            let bytes = next(&mut pieces).await;
            // What came before a broken end is good.
            self.settle(checking.take(), fetch, at).await?;
            checking = Some(self.check(piece, bytes?, &fetch.sink).await?);
        }
        self.settle(checking, fetch, at).await
    }

    /// Waits for the piece that is being checked, and tells the driver.
    async fn settle(
        &self,
        checking: Option<JoinHandle<Result<Right, End>>>,
        fetch: &Fetch,
        at: &mut u64,
    ) -> Result<(), End> {
        let Some(checking) = checking else { return Ok(()) };
        let right = checking.await.map_err(|_panicked| silent())??;
        *at += right.bytes;
        // Fails only where the driver is gone.
        let _ = fetch.news.send(News::Right(self.id, right)).await;
        Ok(())
    }

    /// Checks and writes a piece, beside whatever comes next.
    async fn check(
        &self,
        piece: u64,
        bytes: Vec<u8>,
        sink: &Sink,
    ) -> Result<JoinHandle<Result<Right, End>>, End> {
        let place = ByteRange::new(piece * PIECE, ((piece + 1) * PIECE).min(self.total));
        let end = self.end.load(Ordering::Relaxed);
        let wanted = place.intersect(ByteRange::new(self.range.start, end));
        let leaf = self.sharing.leaf(piece).ok_or_else(unvouched)?;
        let words = self.words.clone();
        let checked = move |part: &Part| judge(part, &words, &bytes, (piece, place, wanted), leaf);
        sink.work(checked).await.ok_or_else(silent)
    }
}

async fn next(pieces: &mut Pieces) -> Result<Vec<u8>, End> {
    let piece = timeout(PIECE_WITHIN, pieces.next()).await;
    piece.map_err(|_| silent())?.map_err(|e| gone(&e))
}

fn judge(
    part: &Part,
    words: &Words,
    bytes: &[u8],
    (piece, place, wanted): (u64, ByteRange, ByteRange),
    leaf: Attested,
) -> Result<Right, End> {
    let store = |error: StoreError| End::Store(error);
    if bytes.len() as u64 != place.len() || *blake3::hash(bytes).as_bytes() != leaf.hash {
        return Err(End::Wrong(piece));
    }
    let Some(mut found) = part.agrees(place.start, bytes).map_err(store)? else {
        words.differs(piece, leaf);
        return Err(End::Lied);
    };
    if !words.take(piece, leaf) {
        return Err(unvouched());
    }
    let from = (wanted.start - place.start) as usize;
    let some = bytes.get(from..from + wanted.len() as usize).unwrap_or_default();
    part.write_at(wanted.start, some).map_err(store)?;
    found.insert(wanted);
    Ok(Right {
        piece,
        bytes: wanted.len(),
        leaf,
        whole: part.is_known_to_be(piece, leaf.hash, &found),
    })
}

fn unvouched() -> End {
    let text = "nobody vouches for that piece any more".to_owned();
    End::Failed(Failure::Broken, text)
}

fn silent() -> End {
    let text = format!("no piece came within {} s", PIECE_WITHIN.as_secs());
    End::Failed(Failure::Broken, text)
}

fn gone(error: &FetchError) -> End {
    End::Failed(Failure::Broken, error.to_string())
}
