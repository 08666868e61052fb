//! Where a download lies: its names, its lock, and the rename to the final name.
//!
//! Everything happens relative to one open directory, by single-component names that are never followed as symlinks.
//! `NAME.part.journal` is also the lock, for both pairs of files; whoever holds it may touch any of the four.
//!
//! Invariant: a journal is removed only after its data, so that data without journal is never ours.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::libc;
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::part::sync_directory;
use super::{Claim, Difference, StoreError, journal};

/// How often the lock is tried anew when its file was removed under us: each time another tributary has just finished
/// with that name.
const LOCK_TRIES: u32 = 8;
const SUFFIXES: [&str; 2] = [".part", ".part.new"];
const JOURNAL_SUFFIX: &str = ".journal";
/// The longest of the names beside a final name, so that names can be cut to leave room for it.
pub(super) const LONGEST_SUFFIX: usize = ".part.new.journal".len();

/// How to open a part.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Replace a file that has the final name.
    pub overwrite: bool,
    /// Where the part is of another generation: start anew beside it (HTTP-8) instead of failing with `Foreign`. The
    /// old part is removed when the new one is complete.
    pub restart: bool,
}

/// The descriptors that a [`Part`](super::Part) works on, in the process of their [`Place`] or in another one.
#[derive(Debug)]
pub struct OpenedFiles {
    /// The content: a plain file, opened for reading and writing.
    pub data: File,
    /// The journal, as well.
    pub journal: File,
    /// The locked file: the same open file as the [`Place`]'s own, so that the lock lasts until both have closed it.
    pub lock: File,
    /// Their directory, synced with the first sync; `None`: somebody else has seen to that.
    pub directory: Option<File>,
    /// The data's path, for messages.
    pub path: PathBuf,
    /// The data was not there before: whoever cannot use it should discard it again.
    pub created: bool,
    /// A longer journal is not read, in bytes.
    pub journal_max: u64,
}

/// The names of a download, with the right to publish it.
#[derive(Debug)]
pub struct Place {
    directory: File,
    folder: PathBuf,
    name: OsString,
    /// Which of the pairs of files is written.
    slot: usize,
    overwrite: bool,
    /// Holds the lock; `None` only for looking.
    lock: Option<File>,
}

/// The claim of what could be resumed for this final name (the newest, where there are two); takes no lock.
///
/// # Errors
/// [`StoreError::Io`], [`StoreError::Unsafe`]. A missing or damaged journal is `None`.
pub fn peek(final_path: &Path) -> Result<Option<Claim>, StoreError> {
    let place = Place::at(final_path)?;
    for slot in (0..SUFFIXES.len()).rev() {
        let name = place.journal_name(slot);
        match place.open_plain(&name, OFlag::O_RDONLY) {
            Ok(file) => {
                if let Some(claim) = place.resumable(&file, slot)? {
                    return Ok(Some(claim));
                }
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

impl Place {
    /// Opens, creates and locks the files for `final_path`; which pair of them, the claim and `restart` decide.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::Busy`], [`StoreError::Foreign`], [`StoreError::Unsafe`],
    /// [`StoreError::Io`]. Nothing new is left behind then.
    pub fn open(
        final_path: &Path,
        claim: &Claim,
        options: OpenOptions,
    ) -> Result<(Self, OpenedFiles), StoreError> {
        let mut place = Self::at(final_path)?;
        place.overwrite = options.overwrite;
        if !options.overwrite && place.exists(&place.name) {
            return Err(StoreError::Exists {
                path: place.folder.join(&place.name),
            });
        }
        let (lock, fresh) = place.take_lock()?;
        let opened = if fresh && place.exists(&place.data_name(0)) {
            Err(StoreError::Foreign {
                path: place.path(0),
                difference: Difference::NotOurs,
            })
        } else {
            place.open_pair(&lock, claim, options.restart)
        };
        if opened.is_err() && fresh {
            // An empty journal would make the next run take the data beside it for its own.
            place.unlink(&place.journal_name(0));
        }
        place.lock = Some(lock);
        opened.map(|files| (place, files))
    }

    /// Gives the sealed data its final name, and removes what else lies beside it. Returns the final path.
    ///
    /// # Errors
    /// [`StoreError::Exists`] where the name was taken meanwhile (everything stays as it is); [`StoreError::Io`].
    pub fn publish(&self) -> Result<PathBuf, StoreError> {
        let path = self.folder.join(&self.name);
        let from = self.data_name(self.slot);
        let renamed = if self.overwrite {
            renameat(
                &self.directory,
                from.as_os_str(),
                &self.directory,
                self.name.as_os_str(),
            )
        } else {
            rename_new(&self.directory, &from, &self.name)
        };
        match renamed {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(StoreError::Exists { path }),
            Err(errno) => {
                return Err(StoreError::from_io(
                    "renaming the finished file",
                    &path,
                    errno.into(),
                ));
            }
        }
        let sync = || sync_directory(&self.directory).map_err(|e| self.error("syncing the folder", e));
        sync()?;
        for slot in (0..SUFFIXES.len()).rev() {
            self.remove(slot);
        }
        sync()?;
        Ok(path)
    }

    /// Removes the files that are being written.
    pub fn discard(&self) {
        self.remove(self.slot);
    }

    fn at(final_path: &Path) -> Result<Self, StoreError> {
        let io = |doing, e| StoreError::from_io(doing, final_path, e);
        let name = final_path
            .file_name()
            .ok_or_else(|| io("reading the file's name", io::ErrorKind::InvalidFilename.into()))?;
        let folder = match final_path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Self {
            directory: File::open(&folder).map_err(|e| io("opening its folder", e))?,
            folder,
            name: name.to_owned(),
            slot: 0,
            overwrite: false,
            lock: None,
        })
    }

    /// The locked journal of the first pair, and whether it was made just now.
    fn take_lock(&self) -> Result<(File, bool), StoreError> {
        let name = self.journal_name(0);
        let busy = || StoreError::Busy { path: self.path(0) };
        for _ in 0..LOCK_TRIES {
            let (file, fresh) = match self.open_plain(&name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL) {
                Ok(file) => (file, true),
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                    match self.open_plain(&name, OFlag::O_RDWR) {
                        Ok(file) => (file, false),
                        Err(error) if is_missing(&error) => continue,
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy()),
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(%error, "this file system has no locks: two downloads to one file would spoil it");
                    tracing::debug!(path = %self.path(0).display(), "the file without a lock");
                }
            }
            let metadata = file
                .metadata()
                .map_err(|e| self.error("looking at the journal", e))?;
            let there = fstatat(&self.directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            if there.is_ok_and(|s| s.st_ino == metadata.ino()) {
                return Ok((file, fresh));
            }
        }
        Err(busy())
    }

    /// Opens the files that this claim is to be written to.
    fn open_pair(&mut self, lock: &File, claim: &Claim, restart: bool) -> Result<OpenedFiles, StoreError> {
        self.slot = self.choose(lock, claim, restart)?;
        let journal = if self.slot == 0 {
            lock.try_clone()
                .map_err(|e| self.error("opening the journal", e))?
        } else {
            let journal = self.open_plain(&self.journal_name(self.slot), OFlag::O_RDWR | OFlag::O_CREAT)?;
            if self.other_claim(&journal, claim)?.is_some() {
                journal
                    .set_len(0)
                    .map_err(|e| self.error("emptying the journal", e))?;
            }
            journal
        };
        let name = self.data_name(self.slot);
        let created = !self.exists(&name);
        let directory = self.directory.try_clone();
        let lock = lock.try_clone();
        Ok(OpenedFiles {
            data: self.open_plain(&name, OFlag::O_RDWR | OFlag::O_CREAT)?,
            journal,
            lock: lock.map_err(|e| self.error("opening the journal", e))?,
            directory: Some(directory.map_err(|e| self.error("opening the folder", e))?),
            path: self.path(self.slot),
            created,
            journal_max: journal::MAX_LEN,
        })
    }

    /// Which pair of files this claim is to be written to.
    fn choose(&self, first: &File, claim: &Claim, restart: bool) -> Result<usize, StoreError> {
        let kept = self.resumable(first, 0)?;
        if kept.as_ref().is_some_and(|old| old.difference(claim).is_none()) {
            return Ok(0);
        }
        let second = match self.open_plain(&self.journal_name(1), OFlag::O_RDONLY) {
            Ok(journal) => self.resumable(&journal, 1)?,
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error),
        };
        let continues = second.is_some_and(|old| old.difference(claim).is_none());
        Ok(usize::from(continues || (kept.is_some() && restart)))
    }

    /// The claim of a pair of files, where there is something to resume.
    fn resumable(&self, journal: &File, slot: usize) -> Result<Option<Claim>, StoreError> {
        let contents =
            journal::load(journal, journal::MAX_LEN).map_err(|e| self.error("reading the journal", e))?;
        Ok(contents
            .ok()
            .filter(|c| c.claim.is_resumable() && !c.durable.is_empty() && self.exists(&self.data_name(slot)))
            .map(|c| c.claim))
    }

    /// A claim in the journal that `claim` does not continue.
    fn other_claim(&self, journal: &File, claim: &Claim) -> Result<Option<Claim>, StoreError> {
        let contents =
            journal::load(journal, journal::MAX_LEN).map_err(|e| self.error("reading the journal", e))?;
        Ok(contents
            .ok()
            .map(|c| c.claim)
            .filter(|old| old.difference(claim).is_some()))
    }

    fn open_plain(&self, name: &OsStr, flags: OFlag) -> Result<File, StoreError> {
        let path = self.folder.join(name);
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_LARGEFILE;
        let file: OwnedFd = openat(&self.directory, name, flags, Mode::from_bits_truncate(0o666))
            .map_err(|e| StoreError::from_io("opening", &path, e.into()))?;
        let file = File::from(file);
        let metadata = file
            .metadata()
            .map_err(|e| StoreError::from_io("opening", &path, e))?;
        let what = match (metadata.is_file(), metadata.nlink()) {
            (true, 1) => return Ok(file),
            (true, _) => "a file that has other names too (hard links)",
            (false, _) => "not a plain file",
        };
        Err(StoreError::Unsafe { path, what })
    }

    fn exists(&self, name: &OsStr) -> bool {
        fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    fn remove(&self, slot: usize) {
        self.unlink(&self.data_name(slot));
        self.unlink(&self.journal_name(slot));
    }

    fn unlink(&self, name: &OsStr) {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => {
                tracing::warn!(%error, "a download's left-over could not be removed");
                tracing::debug!(path = %self.folder.join(name).display(), "the left-over");
            }
        }
    }

    fn data_name(&self, slot: usize) -> OsString {
        let mut name = self.name.clone();
        name.push(SUFFIXES[slot]);
        name
    }

    fn journal_name(&self, slot: usize) -> OsString {
        let mut name = self.data_name(slot);
        name.push(JOURNAL_SUFFIX);
        name
    }

    fn path(&self, slot: usize) -> PathBuf {
        self.folder.join(self.data_name(slot))
    }

    fn error(&self, doing: &'static str, source: io::Error) -> StoreError {
        StoreError::from_io(doing, &self.path(self.slot), source)
    }
}

fn is_missing(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Renames within a directory and replaces nothing.
fn rename_new(directory: &File, from: &OsStr, to: &OsStr) -> nix::Result<()> {
    match rename_noreplace(directory, from, to) {
        Err(Errno::EINVAL | Errno::ENOSYS) => link_new(directory, from, to),
        result => result,
    }
}

/// The same where the kernel or file system has no such rename: a link replaces nothing either.
fn link_new(directory: &File, from: &OsStr, to: &OsStr) -> nix::Result<()> {
    match linkat(directory, from, directory, to, AtFlags::empty()) {
        Ok(()) => unlinkat(directory, from, UnlinkatFlags::NoRemoveDir),
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK) => {
            rename_looking(directory, from, to)
        }
        Err(errno) => Err(errno),
    }
}

/// The same where there are no links either: looking first is all that is left, with a moment in between.
fn rename_looking(directory: &File, from: &OsStr, to: &OsStr) -> nix::Result<()> {
    match fstatat(directory, to, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => renameat(directory, from, directory, to),
        Ok(_) => Err(Errno::EEXIST),
        Err(errno) => Err(errno),
    }
}

/// `renameat2` with `RENAME_NOREPLACE`; nix has it for glibc only, and releases are built with musl.
#[expect(unsafe_code, reason = "nix has renameat2 for glibc only")]
fn rename_noreplace(directory: &File, from: &OsStr, to: &OsStr) -> nix::Result<()> {
    const RENAME_NOREPLACE: libc::c_uint = 1;
    let directory = directory.as_raw_fd();
    let result = from.with_nix_path(|from| {
        to.with_nix_path(|to| {
            // SAFETY: the descriptor is open and both strings end with NUL and live for the call, which only reads them.
            unsafe {
                libc::syscall(
                    libc::SYS_renameat2,
                    directory,
                    from.as_ptr(),
                    directory,
                    to.as_ptr(),
                    RENAME_NOREPLACE,
                )
            }
        })
    })??;
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn http_27_no_kind_of_rename_replaces_a_file() {
        for rename in [rename_new, rename_noreplace, link_new, rename_looking] {
            let folder = tempfile::tempdir().unwrap();
            let directory = File::open(folder.path()).unwrap();
            let (from, to) = (folder.path().join("from"), folder.path().join("to"));
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            let result = rename(&directory, "from".as_ref(), "to".as_ref());
            assert_eq!(result, Err(Errno::EEXIST));
            assert_eq!(fs::read(&to).unwrap(), b"old");
            fs::remove_file(&to).unwrap();
            assert_eq!(rename(&directory, "from".as_ref(), "to".as_ref()), Ok(()));
            assert_eq!(fs::read(&to).unwrap(), b"new");
            assert!(!from.exists());
        }
    }
}
