//! Files being written: positioned I/O, piece hashes, the resume journal. All of it blocks; async callers go through
//! `Tasks::blocking`.
//!
//! Beside the final name lie `NAME.part` (the bytes, at their places) and `NAME.part.journal` (which of them survive a
//! crash). A download whose content changed on the server restarts in `NAME.part.new` with `NAME.part.new.journal`; the
//! old pair stays until the new one is complete, and serves again should the old content come back.
//!
//! Opening and writing are separate, because they need not happen in the same process: [`Place`] has the names and the
//! final rename; [`Part`] works on the open files alone ([`OpenedFiles`]). The lock belongs to both.
//!
//! Invariants:
//! - The journal names only bytes that `fdatasync` said are on the disk.
//! - The final name never holds an incomplete or unverified file, and replaces nothing unless asked.
//! - Bytes of two generations never meet in one file.
//! - A byte once written is not written again, so what was hashed stays what is in the file.

mod claim;
mod digest;
mod error;
mod journal;
mod medium;
mod name;
mod part;
mod place;
mod received;
mod room;
#[cfg(test)]
mod simulated;
mod survey;
#[cfg(test)]
mod tests;

pub use claim::{Claim, Difference, Generation, Validator};
pub use error::StoreError;
pub use name::{cut_name, safe_name};
pub use part::{Part, Rechecked, SYNC_BYTES, SYNC_INTERVAL, Synced};
pub use place::{OpenOptions, OpenedFiles, Place, peek};
pub use received::{Sender, received_for_reading};
pub use survey::{FreshReason, Resumed};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also where another thread panicked while it held the lock: every section here leaves its data valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
