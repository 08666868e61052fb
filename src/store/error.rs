//! What can go wrong with a file being written, told apart as far as callers act on it.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::Difference;
use crate::types::{ByteRange, ByteSize};

/// A file being written failed. After any of these but [`Lost`](Self::Lost) and [`Incomplete`](Self::Incomplete) drop
/// the part; opening it again continues from what the journal has.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else holds the lock.
    #[error("{}: another tributary is writing this file", path.display())]
    Busy {
        /// The part.
        path: PathBuf,
    },
    /// The part on the disk is not of this content.
    #[error("{}: {difference}; remove it, or choose another output name", path.display())]
    Foreign {
        /// The part.
        path: PathBuf,
        /// What is not the same.
        difference: Difference,
    },
    /// The final name is taken and may not be overwritten.
    #[error("{}: exists already and is not overwritten unless asked", path.display())]
    Exists {
        /// The final name.
        path: PathBuf,
    },
    /// The disk is full, or will be.
    #[error("{}: no space left on the disk{}", path.display(), missing_text(*.missing))]
    NoSpace {
        /// The part.
        path: PathBuf,
        /// How many bytes are missing, where that is known.
        missing: Option<u64>,
    },
    /// The user's or project's quota is used up.
    #[error("{}: the disk quota is used up", path.display())]
    Quota {
        /// The part.
        path: PathBuf,
    },
    /// The file system cannot hold a file of this size.
    #[error("{}: the file is larger than this file system allows (4 GiB on FAT, as on many USB sticks)", path.display())]
    TooLarge {
        /// The part.
        path: PathBuf,
    },
    /// The file system is, or became, read-only.
    #[error("{}: the file system is read-only (a failing disk is often switched to that)", path.display())]
    ReadOnly {
        /// The part.
        path: PathBuf,
    },
    /// What is at the name is not a plain file of its own.
    #[error("{}: refused: it is {what}", path.display())]
    Unsafe {
        /// The part or its journal.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The disk did not keep these bytes, or keeps others: they must be fetched again. The part stays usable.
    #[error("the disk did not keep {} of what was written; it must be fetched again", size_of(.ranges))]
    Lost {
        /// The bytes, in order; they count as not written.
        ranges: Vec<ByteRange>,
    },
    /// Writing to the disk failed twice.
    #[error("{}: the disk is failing: it could not keep written data twice ({source})", path.display())]
    DiskFailing {
        /// The part.
        path: PathBuf,
        /// The second failure.
        source: io::Error,
    },
    /// The complete file is not the expected one.
    #[error(
        "wrong checksum: expected SHA-256 {}, found {}; no file was made and the wrong bytes are removed",
        hex(.expected),
        hex(.found)
    )]
    Checksum {
        /// What was asked for.
        expected: [u8; 32],
        /// What the bytes have.
        found: [u8; 32],
    },
    /// Asked to finish before all bytes are there.
    #[error("the file is not complete: {missing} bytes are missing")]
    Incomplete {
        /// How many.
        missing: u64,
    },
    /// A write beyond the end of the content.
    #[error("a write to bytes {range} of a file of {total} bytes was refused")]
    OutOfRange {
        /// Where to.
        range: ByteRange,
        /// The content's length.
        total: u64,
    },
    /// A write after the file was finished.
    #[error("a write to a finished file was refused")]
    Finished,
    /// Descriptors from another process that are not taken; the files are as they were.
    #[error("these files are not taken: {why}")]
    NotTaken {
        /// What they are, in words.
        why: String,
    },
    /// What the process that has the files said: its own error, in its own words.
    #[error("{0}")]
    Elsewhere(String),
    /// Anything else the system said.
    #[error("{}: {doing} failed: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// Sorts a system error by its number.
    pub(super) fn from_io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC) => Self::NoSpace { path, missing: None },
            Some(Errno::EDQUOT) => Self::Quota { path },
            Some(Errno::EFBIG) => Self::TooLarge { path },
            Some(Errno::EROFS) => Self::ReadOnly { path },
            Some(Errno::ELOOP) => Self::Unsafe {
                path,
                what: "a symbolic link",
            },
            _ => Self::Io { doing, path, source },
        }
    }

    /// Whether the disk has no room, rather than a fault.
    pub(super) fn is_room(&self) -> bool {
        matches!(
            self,
            Self::NoSpace { .. } | Self::Quota { .. } | Self::TooLarge { .. } | Self::ReadOnly { .. }
        )
    }
}

fn missing_text(missing: Option<u64>) -> String {
    missing.map_or_else(String::new, |n| format!(": {} more are needed", ByteSize(n)))
}

fn size_of(ranges: &[ByteRange]) -> ByteSize {
    ByteSize(ranges.iter().map(ByteRange::len).sum())
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
