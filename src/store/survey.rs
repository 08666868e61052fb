//! What an earlier run left: whether it is of the same content, and which of its bytes count (striping.md HTTP-22,
//! HTTP-29).
//!
//! Invariant: bytes from before a reboot count only as part of a whole piece whose hash is known, and stay suspect
//! until they were hashed again.

use std::fs;
use std::path::Path;

use super::journal::{self, Boot, Contents, piece_range};
use super::medium::Medium;
use super::{Claim, StoreError};
use crate::types::{ByteRange, PIECE};

/// What was there when a part was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// Nothing that counts: the file is written from the start.
    Fresh(FreshReason),
    /// An earlier run's bytes.
    From {
        /// How many there are; [`Part::written`](super::Part::written) says which.
        bytes: u64,
        /// How many of them are from before a reboot and are hashed again by [`Part::recheck`](super::Part::recheck).
        unchecked: u64,
    },
}

/// Why a part starts with no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreshReason {
    /// There was no part.
    #[error("there was nothing to resume")]
    New,
    /// What is there was written without length, or without validator and checksum (HTTP-21).
    #[error("the earlier part cannot be resumed safely: the server gave nothing to recognise the content by")]
    NotResumable,
    /// The journal cannot be read.
    #[error("the earlier part's journal is damaged, or of another version")]
    Damaged,
    /// The journal is there, its data is not.
    #[error("the earlier part is missing, only its journal was there")]
    DataMissing,
    /// The machine went down before any whole piece was on the disk.
    #[error("the machine went down before a whole piece (1 MiB) was safe on the disk")]
    NothingCertain,
}

/// What of an earlier run counts.
pub(super) fn survey(
    data: &dyn Medium,
    journal: &dyn Medium,
    journal_max: u64,
    claim: &Claim,
    boot: Boot,
    path: &Path,
) -> Result<(Contents, Resumed), StoreError> {
    let io = |e| StoreError::from_io("reading the journal", path, e);
    let len = data.len().map_err(io)?;
    let fresh = |reason| Ok((Contents::new(claim.clone(), boot), Resumed::Fresh(reason)));
    let mut contents = match journal::load(journal, journal_max).map_err(io)? {
        Err(journal::Damage::Empty) => return fresh(FreshReason::New),
        Err(damage) => {
            tracing::warn!(%damage, "the journal of an earlier download is of no use: starting anew");
            tracing::debug!(path = %path.display(), "the damaged journal's file");
            return fresh(FreshReason::Damaged);
        }
        Ok(old) if old.durable.is_empty() && old.claim.is_resumable() => return fresh(FreshReason::New),
        Ok(old) if !old.claim.is_resumable() => return fresh(FreshReason::NotResumable),
        Ok(_) if len == 0 => return fresh(FreshReason::DataMissing),
        Ok(old) => old,
    };
    if let Some(difference) = contents.claim.difference(claim) {
        let path = path.to_owned();
        return Err(StoreError::Foreign { path, difference });
    }
    contents.claim = claim.clone();
    let cut = contents.durable.remove(ByteRange::new(len, u64::MAX)) > 0;
    contents.suspect.remove(ByteRange::new(len, u64::MAX));
    if cut || boot.is_none() || contents.boot != boot {
        contents.suspect = contents.durable.clone();
    }
    contents.boot = boot;
    drop_unprovable(&mut contents);
    let bytes = contents.durable.len();
    let unchecked = contents.suspect.len();
    if bytes == 0 {
        return fresh(FreshReason::NothingCertain);
    }
    Ok((contents, Resumed::From { bytes, unchecked }))
}

/// Suspect bytes count only as part of a whole piece with a hash to compare with.
fn drop_unprovable(contents: &mut Contents) {
    let total = contents.claim.total().unwrap_or(0);
    let Contents {
        durable,
        suspect,
        leaves,
        ..
    } = contents;
    leaves.retain(|&piece, _| durable.contains(piece_range(piece, total)));
    let pieces: Vec<u64> = suspect
        .iter()
        .flat_map(|r| r.start / PIECE..r.end.div_ceil(PIECE))
        .collect();
    for piece in pieces {
        if !leaves.contains_key(&piece) {
            for range in suspect.within(piece_range(piece, total)).collect::<Vec<_>>() {
                durable.remove(range);
                suspect.remove(range);
            }
        }
    }
}

/// This boot of the machine, where /proc says it.
pub(super) fn boot() -> Boot {
    let text = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(&text).as_bytes()[..16]);
    Some(id)
}
