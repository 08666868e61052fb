//! Standard input, put into a temporary file first: parts of it are sent over several lanes at once, and again where one
//! fails, and how long it is must be known before.
//!
//! Invariants: the file has no name, so that nothing of it is left whatever happens; it is bounded, and a part of the disk
//! stays free.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::statvfs::fstatvfs;
use tokio_util::sync::CancellationToken;

use crate::api::Failed;
use crate::api::convert::{FILE, STOPPED, UNEXPECTED};
use crate::task::Tasks;
use crate::types::ByteSize;
use crate::upload::{Item, Listed, Sources, UploadError};

use super::set;
use super::show::Show;

/// What it is called in messages.
pub(super) const NAME: &str = "standard input";
/// Unless told otherwise: a backup of a home or a long film, and a quarter of the smallest disks that are still sold. Who
/// pipes more than that by mistake hears of it before the disk is full.
pub(super) const LIMIT: ByteSize = ByteSize(8 << 30);
/// Of the disk, this part stays free: what else runs on the device must not fail because of us.
const FREE_PART: u64 = 20;
/// Read at once.
const BLOCK: usize = 256 << 10;
/// The free space is looked at whenever so much more was written.
const LOOK_EVERY: u64 = 16 << 20;
/// How often it is said how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Names that are tried; each of them is taken only where another process has our number.
const NAMES: u32 = 100;

/// What came by standard input.
#[derive(Debug)]
pub(super) struct Spool {
    /// For reading only.
    file: File,
    item: Item,
}

impl Spool {
    /// Reads all there is, at most so much.
    ///
    /// # Errors
    /// Where there is more, no room, or it is stopped.
    pub(super) async fn fill(
        limit: ByteSize,
        tasks: &Tasks,
        show: &mut Show,
        stop: &CancellationToken,
    ) -> Result<Self, Failed> {
        let read = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&read);
        let mut filling =
            tasks.blocking(move || Self::from(&mut io::stdin().lock(), &place(), limit, &counted));
        let mut every = tokio::time::interval(TELL_EVERY);
        loop {
            tokio::select! {
                filled = &mut filling => {
                    return filled.unwrap_or_else(|e| Err(failed(UNEXPECTED, e.to_string())));
                }
                _ = every.tick() => show.reading(read.load(Ordering::Relaxed)),
                // What blocks in reading ends with the process.
                () = stop.cancelled() => return Err(failed(STOPPED, "stopped; nothing was sent yet".into())),
            }
        }
    }

    /// Nothing: to remove what was sent, it need not be known.
    pub(super) fn empty() -> Result<Self, Failed> {
        Self::from(&mut io::empty(), &place(), LIMIT, &AtomicU64::new(0))
    }

    fn from(input: &mut impl Read, place: &Path, limit: ByteSize, count: &AtomicU64) -> Result<Self, Failed> {
        let unwritable = |e: io::Error| {
            let place = place.display();
            failed(
                FILE,
                format!("{NAME} cannot be kept in {place}: {e}; set TMPDIR to where there is room"),
            )
        };
        let (mut writes, reads) = unlinked(place).map_err(unwritable)?;
        let mut block = vec![0; BLOCK];
        let (mut len, mut look) = (0, 0);
        loop {
            let got = match input.read(&mut block) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(FILE, format!("{NAME} cannot be read: {e}"))),
            };
            len += got as u64;
            if len > limit.0 {
                return Err(failed(
                    FILE,
                    format!(
                        "{NAME} is longer than {limit}, the limit: raise it with --spool-limit, or write it to a file first"
                    ),
                ));
            }
            if len >= look {
                look = len + LOOK_EVERY;
                room(&writes, place)?;
            }
            writes
                .write_all(block.get(..got).unwrap_or_default())
                .map_err(unwritable)?;
            count.store(len, Ordering::Relaxed);
        }
        let metadata = reads.metadata().map_err(unwritable)?;
        let item = Item {
            name: NAME.into(),
            size: metadata.len(),
            modified: metadata.modified().map_err(unwritable)?,
        };
        Ok(Self { file: reads, item })
    }
}

impl Sources for Spool {
    fn list(&self) -> BoxFuture<'_, Result<Listed, UploadError>> {
        let listed = Listed {
            items: vec![self.item.clone()],
            ..Listed::default()
        };
        async { Ok(listed) }.boxed()
    }

    fn open(&self, _item: usize) -> BoxFuture<'_, Result<File, UploadError>> {
        let cloned = self.file.try_clone().map_err(|e| UploadError::Source {
            name: NAME.into(),
            why: e.to_string(),
        });
        async { cloned }.boxed()
    }
}

/// A new file without a name: one handle to write to it, and one that can only read it.
fn unlinked(place: &Path) -> io::Result<(File, File)> {
    for number in 0..NAMES {
        let path = place.join(format!(".tributary-{}-{number}.spool", std::process::id()));
        let writes = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let writes = match writes {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            writes => writes?,
        };
        let reads = File::open(&path);
        std::fs::remove_file(&path)?;
        return Ok((writes, reads?));
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Sees that enough of the disk is free for what is written until the next look.
fn room(file: &File, place: &Path) -> Result<(), Failed> {
    let Ok(disk) = fstatvfs(file) else {
        // A file system that does not say it says so when it is full.
        return Ok(());
    };
    // The types of the numbers differ between targets.
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "32-bit targets have others"
    )]
    let (free, all) = (disk.blocks_available() as u64, disk.blocks() as u64);
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "32-bit targets have others"
    )]
    let block = disk.fragment_size() as u64;
    if is_room(free.saturating_mul(block), all.saturating_mul(block)) {
        return Ok(());
    }
    let place = place.display();
    let why = format!(
        "no room in {place} for more of {NAME}: 5 % of the disk stay free; set TMPDIR to a larger one"
    );
    Err(failed(FILE, why))
}

const fn is_room(free: u64, all: u64) -> bool {
    free >= (all / FREE_PART).saturating_add(LOOK_EVERY)
}

/// The system's own place for temporary files is memory on many devices, so it is not taken unasked.
fn place() -> PathBuf {
    set("TMPDIR").unwrap_or_else(|| ".".into())
}

const fn failed(code: u8, message: String) -> Failed {
    Failed { code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(input: &[u8], place: &Path, limit: u64) -> Result<Spool, Failed> {
        let mut input = input;
        Spool::from(&mut input, place, ByteSize(limit), &AtomicU64::new(0))
    }

    #[tokio::test]
    async fn what_was_read_can_be_read_again_and_has_no_name() {
        use std::os::unix::fs::FileExt;
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..700_000_u32).map(|n| n as u8).collect();
        let spool = spool(&content, folder.path(), 1 << 20).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let listed = spool.list().await.unwrap();
        assert_eq!((listed.items[0].size, listed.directory), (700_000, false));
        for _ in 0..2 {
            let file = spool.open(0).await.unwrap();
            let mut found = vec![0; 1000];
            file.read_exact_at(&mut found, 600_000).unwrap();
            assert_eq!(found, content[600_000..601_000]);
            assert!(file.write_at(b"x", 0).is_err(), "it is for reading only");
        }
    }

    #[test]
    fn more_than_the_limit_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(spool(&[1; 100], folder.path(), 100).unwrap().item.size, 100);
        assert_eq!(spool(&[], folder.path(), 100).unwrap().item.size, 0);
        let failed = spool(&[1; 101], folder.path(), 100).unwrap_err();
        assert_eq!(failed.code, FILE);
        assert!(failed.message.contains("longer than 100 B") && failed.message.contains("--spool-limit"));
        let failed = spool(&[], &folder.path().join("missing"), 100).unwrap_err();
        assert!(failed.message.contains("missing") && failed.message.contains("TMPDIR"));
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "nothing is left"
        );
    }

    #[test]
    fn a_twentieth_of_the_disk_stays_free() {
        let all = 1000 << 20;
        assert!(is_room((50 << 20) + LOOK_EVERY, all));
        assert!(!is_room((50 << 20) + LOOK_EVERY - 1, all));
        assert!(!is_room(0, 0));
    }
}
