//! What a later run needs to go on: which uploads of the file's parts were begun at the server, which has no list of them.
//!
//! One small file for each file and target: a line for each upload, `START END NAME`, added as it is begun. It says nothing of
//! how much the server has: that is asked. A line torn by a crash is not read, so all it costs is that part. The file is
//! locked while its run goes on.
//!
//! Invariants: never longer than [`MAX_LINES`] lines of [`MAX_NAME`]; readable for its owner only, as such names may be all
//! that guards an upload; rewritten only by rename; what nobody touched for [`KEPT`] is removed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use url::Url;

use crate::identity::write_atomic;
use crate::types::{ByteRange, hex};
use crate::upload::Item;

/// Far above the parts of one upload, with all their second tries.
const MAX_LINES: usize = 1000;
/// A longer name of an upload is not remembered.
const MAX_NAME: usize = 2048;
/// The longest file that is read.
const MAX_FILE: u64 = (MAX_LINES * (MAX_NAME + 64)) as u64;
/// Servers throw unfinished uploads away after hours or days.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The first line.
const HEAD: &str = "tributary tus 1";

/// An upload at the server, as it was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) range: ByteRange,
    /// As the server calls it.
    pub(super) name: String,
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// Another run has it.
    #[error("another run is sending this file there")]
    Busy,
    /// The file system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The journal of one file on its way to one target.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    lines: usize,
}

impl Journal {
    /// Opens it and says what is in it.
    ///
    /// # Errors
    /// Where another run has it, or the file system refuses.
    pub(super) fn open(dir: &Path, key: &str) -> Result<(Self, Vec<Entry>), JournalError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        prune(dir, SystemTime::now());
        let path = dir.join(format!("tus-{key}"));
        let mut file = locked(&path)?;
        let mut text = String::new();
        // What is not text, or not ours, is as good as nothing.
        let read = (&mut file).take(MAX_FILE).read_to_string(&mut text);
        let entries = read.map_or_else(|_| Vec::new(), |_| parse(&text));
        let journal = Self {
            path,
            inner: Mutex::new(Inner { file, lines: 0 }),
        };
        journal.replace(&entries)?;
        Ok((journal, entries))
    }

    /// Remembers one more. Blocking: it is on the disk afterwards.
    ///
    /// # Errors
    /// What the file system says; the others are there all the same.
    pub(super) fn add(&self, entry: &Entry) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.lines >= MAX_LINES || entry.name.len() > MAX_NAME {
            return Ok(());
        }
        inner.lines += 1;
        inner.file.write_all(line(entry).as_bytes())?;
        inner.file.sync_data()
    }

    /// Remembers these and nothing else.
    ///
    /// # Errors
    /// Where another run was faster, or the file system refuses.
    pub(super) fn replace(&self, entries: &[Entry]) -> Result<(), JournalError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String = entries.iter().map(line).collect();
        write_atomic(&self.path, format!("{HEAD}\n{lines}").as_bytes())?;
        // Another file now: the lock was on the old one.
        inner.file = locked(&self.path)?;
        inner.lines = entries.len();
        Ok(())
    }

    /// There is nothing to go on with any more.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// What tells one upload from another: the same file, sent to the same place in the same way.
pub(super) fn key(target: &Url, item: &Item, way: &str) -> String {
    let modified = item.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut hasher = blake3::Hasher::new_derive_key("tributary 1 tus journal");
    for field in [target.as_str(), item.name.as_str(), way] {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field.as_bytes());
    }
    hasher.update(&item.size.to_le_bytes());
    hasher.update(&modified.as_nanos().to_le_bytes());
    let mut key = [0; 16];
    hasher.finalize_xof().fill(&mut key);
    hex(&key)
}

fn locked(path: &Path) -> Result<File, JournalError> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::Busy),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn line(entry: &Entry) -> String {
    format!("{} {} {}\n", entry.range.start, entry.range.end, entry.name)
}

/// The entries of a journal's text; what makes no sense is left out, with a last line that has no end.
pub(super) fn parse(text: &str) -> Vec<Entry> {
    let Some((HEAD, rest)) = text.split_once('\n') else {
        return Vec::new();
    };
    let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let entry = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (start, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let name = words.next()?;
        let fits = start <= end && !name.is_empty() && name.len() <= MAX_NAME;
        let plain = name.bytes().all(|b| b.is_ascii_graphic());
        (fits && plain).then(|| Entry {
            range: ByteRange::new(start, end),
            name: name.to_owned(),
        })
    };
    whole.lines().take(MAX_LINES).filter_map(entry).collect()
}

/// Removes journals that nobody touched for long.
fn prune(dir: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with("tus-");
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified
            .ok()
            .and_then(|modified| now.duration_since(modified).ok());
        if ours && age.is_some_and(|age| age > KEPT) {
            // Where it cannot be removed, it stays; it is small.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry(start: u64, end: u64, name: &str) -> Entry {
        Entry {
            range: ByteRange::new(start, end),
            name: name.to_owned(),
        }
    }

    #[test]
    fn what_was_begun_is_there_in_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        let (journal, known) = Journal::open(&place, "k").unwrap();
        assert_eq!(known, []);
        let entries = [entry(0, 10, "/files/1"), entry(10, 20, "https://h/files/2")];
        for entry in &entries {
            journal.add(entry).unwrap();
        }
        drop(journal);
        let (journal, known) = Journal::open(&place, "k").unwrap();
        assert_eq!(known, entries);
        journal.replace(&entries[1..]).unwrap();
        journal.add(&entry(20, 30, "/files/3")).unwrap();
        drop(journal);
        let (journal, known) = Journal::open(&place, "k").unwrap();
        assert_eq!(known, [entries[1].clone(), entry(20, 30, "/files/3")]);
        let mode = fs::metadata(place.join("tus-k")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        journal.remove().unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_second_run_of_the_same_upload_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = Journal::open(dir.path(), "k").unwrap();
        let second = Journal::open(dir.path(), "k");
        assert!(matches!(second, Err(JournalError::Busy)));
        Journal::open(dir.path(), "other").unwrap();
        drop(first);
        Journal::open(dir.path(), "k").unwrap();
    }

    #[test]
    fn a_torn_line_and_what_makes_no_sense_are_not_read() {
        let good = entry(0, 10, "/files/1");
        for (text, expected) in [
            ("", vec![]),
            ("tributary tus 2\n0 10 /files/1\n", vec![]),
            ("tributary tus 1\n", vec![]),
            ("tributary tus 1\n0 10 /files/1\n10 20 /fil", vec![good.clone()]),
            (
                "tributary tus 1\n10 0 /x\nx y z\n\n0 10 \n0 10 a b\n0 10 /files/1\n",
                vec![good],
            ),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_journal_that_is_no_text_counts_as_empty_and_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tus-k"), [0xff; 100]).unwrap();
        let (journal, known) = Journal::open(dir.path(), "k").unwrap();
        assert_eq!(known, []);
        journal.add(&entry(0, 1, "/x")).unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path(), "k").unwrap().1.len(), 1);
    }

    #[test]
    fn a_journal_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), "k").unwrap();
        let many: Vec<_> = (0..MAX_LINES as u64).map(|n| entry(n, n + 1, "/x")).collect();
        journal.replace(&many).unwrap();
        journal.add(&entry(9, 10, "/one more")).unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path(), "k").unwrap().1.len(), MAX_LINES);
    }

    #[test]
    fn old_journals_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tus-old", "other"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        prune(dir.path(), SystemTime::now() + KEPT / 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        prune(dir.path(), SystemTime::now() + KEPT + Duration::from_secs(60));
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["other"]);
    }

    #[test]
    fn another_file_another_place_and_a_changed_file_have_other_journals() {
        let item = |name: &str, size, seconds| Item {
            name: name.to_owned(),
            size,
            modified: UNIX_EPOCH + Duration::from_secs(seconds),
        };
        let to = |url: &str| Url::parse(url).unwrap();
        let keys = [
            key(&to("https://h/f/"), &item("a", 1, 1), "parts"),
            key(&to("https://h/g/"), &item("a", 1, 1), "parts"),
            key(&to("https://h/f/"), &item("b", 1, 1), "parts"),
            key(&to("https://h/f/"), &item("a", 2, 1), "parts"),
            key(&to("https://h/f/"), &item("a", 1, 2), "parts"),
            key(&to("https://h/f/"), &item("a", 1, 1), "whole"),
        ];
        for (n, a) in keys.iter().enumerate() {
            assert_eq!(a.len(), 32);
            assert!(keys[n + 1..].iter().all(|b| a != b), "{keys:?}");
        }
        let again = key(&to("https://h/f/"), &item("a", 1, 1), "parts");
        assert_eq!(again, keys[0]);
    }
}
