//! The state directory: small files written whole or not at all, and the lock that gives one process the identity.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// No state file is larger: what is, is not ours.
const MAX_STATE_FILE: u64 = 1 << 20;

/// What is appended to the name of a file that is damaged.
pub const DAMAGED: &str = "damaged";

/// A directory that holds what this device must remember.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held while this process is the one that acts as the device.
    lock: Option<Flock<File>>,
}

/// Why the state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}; choose another directory with --state-dir", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system's random source failed.
    #[error("the system gives no random numbers, so no key can be made")]
    NoRandom,
}

impl StateDir {
    /// Opens the directory, making it (0700) where it is missing, and takes the device's lock if it is free.
    ///
    /// # Errors
    /// Where it can be neither opened nor made.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StateError::Io {
            action: "create the state directory",
            path: path.into(),
            source,
        })?;
        let file = path.join("lock");
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&file);
        let opened = opened.map_err(|source| StateError::Io {
            action: "open",
            path: file,
            source,
        })?;
        let lock = Flock::lock(opened, FlockArg::LockExclusiveNonblock).ok();
        Ok(Self {
            path: path.into(),
            lock,
        })
    }

    /// Whether this process is the one that acts as the device; another tributary with this directory is not.
    pub const fn is_ours(&self) -> bool {
        self.lock.is_some()
    }

    /// Where a file of this directory is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file's content; `None` where there is no such file.
    ///
    /// # Errors
    /// Where it exists and cannot be read, or is larger than any of ours.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        let fail = |source| StateError::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_STATE_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(fail)?;
        if bytes.len() as u64 > MAX_STATE_FILE {
            return Err(fail(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is too large to be ours",
            )));
        }
        Ok(Some(bytes))
    }

    /// Renames a file that is not to be used to `NAME.WHY`, over what an earlier one left there; gives its new path.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn set_aside(&self, name: &str, why: &str) -> Result<PathBuf, StateError> {
        let path = self.path(name);
        let kept = self.path(&format!("{name}.{why}"));
        let moved = fs::rename(&path, &kept);
        moved.map_err(|source| StateError::Io {
            action: "set aside",
            path,
            source,
        })?;
        Ok(kept)
    }

    /// Replaces a file: after a power cut it holds the old content or the new, never a part.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        write_atomic(&path, bytes).map_err(|source| StateError::Io {
            action: "write",
            path,
            source,
        })
    }
}

/// Writes `bytes` to `path` (0600) by way of a file beside it: write, sync, rename, sync the directory.
///
/// # Errors
/// What the file system says; the old file is then still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one to report; a left-over temporary file hurts nobody.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_sees_that_the_identity_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert!(first.is_ours());
        assert!(!StateDir::open(dir.path()).unwrap().is_ours());
        drop(first);
        assert!(StateDir::open(dir.path()).unwrap().is_ours());
    }

    #[test]
    fn a_missing_file_is_nothing_and_a_written_one_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("a/b")).unwrap();
        assert_eq!(state.read("x").unwrap(), None);
        state.write("x", b"one").unwrap();
        state.write("x", b"two").unwrap();
        assert_eq!(state.read("x").unwrap().as_deref(), Some(&b"two"[..]));
        let names: Vec<_> = fs::read_dir(dir.path().join("a/b"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "only the file and the lock: {names:?}");
    }

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        fs::write(state.path("big"), vec![0; (MAX_STATE_FILE + 1) as usize]).unwrap();
        assert!(state.read("big").unwrap_err().to_string().contains("big"));
    }
}
