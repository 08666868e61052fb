//! Disk space: reserved beforehand where the file system can, else watched while writing (striping.md HTTP-25).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::StoreError;
use super::medium::Medium;

/// Without reservation the free space is looked at whenever this much more is written, and this much must be free.
const WATCH: u64 = 64 << 20;

/// How a part's disk space is made sure of.
#[derive(Debug)]
pub(super) struct Room {
    /// Written bytes at which to look next; never where the space is reserved.
    next: AtomicU64,
    /// Length of the file, where it is known.
    total: Option<u64>,
}

impl Room {
    /// Reserves space for `total` bytes, or sees that they would fit.
    pub(super) fn reserve(data: &dyn Medium, total: Option<u64>, path: &Path) -> Result<Self, StoreError> {
        let watched = |next| Self {
            next: AtomicU64::new(next),
            total,
        };
        let Some(total) = total else {
            return Ok(watched(WATCH));
        };
        if i64::try_from(total).is_err() {
            return Err(StoreError::TooLarge {
                path: path.to_owned(),
            });
        }
        let io = |e| StoreError::from_io("reserving disk space", path, e);
        let needed = total.saturating_sub(data.held().map_err(io)?);
        enough(data, needed, path)?;
        match data.reserve(total) {
            Ok(true) => Ok(watched(u64::MAX)),
            Ok(false) => Ok(watched(WATCH)),
            Err(error) => {
                // Some file systems keep what they reserved before they ran out; cutting gives it back.
                let _ = data.len().and_then(|len| data.set_len(len));
                enough(data, needed, path)?;
                Err(io(error))
            }
        }
    }

    /// To be called after each write, with the count of bytes written in all.
    pub(super) fn check(&self, data: &dyn Medium, written: u64, path: &Path) -> Result<(), StoreError> {
        if written < self.next.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.next.store(written.saturating_add(WATCH), Ordering::Relaxed);
        let left = self.total.map_or(u64::MAX, |total| total.saturating_sub(written));
        enough(data, left.min(WATCH), path)
    }
}

fn enough(data: &dyn Medium, needed: u64, path: &Path) -> Result<(), StoreError> {
    match data.free() {
        Some(free) if free < needed => Err(StoreError::NoSpace {
            path: path.to_owned(),
            missing: Some(needed - free),
        }),
        _ => Ok(()),
    }
}
