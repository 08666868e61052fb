//! One content on the shelf: what it is, its leaves, and the file that has it now.
//!
//! Invariant: nothing is read of a file that is not what it was when it was put there; such a file is let go of, for good.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::share::cache::{Cache, open_plain};
use crate::share::leaves::Leaves;
use crate::share::{Attested, Content, Subject, Topic};

use super::Own;
use super::record::id;

/// A complete content.
#[derive(Debug)]
pub struct Held {
    id: String,
    about: About,
    /// Where a copy of it would be.
    copy: Option<PathBuf>,
    source: Mutex<Source>,
    put: u64,
    used: AtomicU64,
    /// It was served since its copy was last marked so.
    served: AtomicBool,
}

/// What is known of it.
#[derive(Debug)]
pub(super) struct About {
    pub(super) topic: Topic,
    pub(super) content: Content,
    pub(super) leaves: Vec<Leaves>,
    pub(super) offer: Option<String>,
    pub(super) path: PathBuf,
    pub(super) mark: Mark,
}

/// What a file was like when it was put on the shelf. Not on which device it was: that may have another number after a
/// restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    size: u64,
    modified: (i64, i64),
    inode: u64,
}

/// The file that has it now.
#[derive(Clone, Debug)]
enum Source {
    User(Arc<File>),
    /// Only its length tells it from another: pieces are hashed before they are served, and it is marked when it is.
    Copy(Arc<File>),
    None,
}

impl Mark {
    /// Of a regular file that has a name; `None` for anything else.
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        (metadata.is_file() && metadata.nlink() > 0).then(|| Self {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: metadata.ino(),
        })
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    fn is_of(self, file: &File) -> bool {
        file.metadata()
            .is_ok_and(|metadata| Self::of(&metadata) == Some(self))
    }
}

impl Held {
    pub(super) fn new(about: About, file: Arc<File>, put: u64, cache: Option<&Cache>) -> Self {
        Self::with(about, Source::User(file), put, cache)
    }

    /// What was kept, where the path is still the same file, or there is a copy.
    pub(super) fn again(about: About, put: u64, cache: Option<&Cache>) -> Option<Self> {
        let file = open_plain(&about.path).ok().filter(|file| about.mark.is_of(file));
        let source = file.map_or(Source::None, |file| Source::User(Arc::new(file)));
        let held = Self::with(about, source, put, cache);
        held.file().is_some().then_some(held)
    }

    fn with(about: About, source: Source, put: u64, cache: Option<&Cache>) -> Self {
        let id = id(&about.content, about.offer.is_some());
        Self {
            copy: cache.map(|cache| cache.path(&id)),
            id,
            about,
            source: Mutex::new(source),
            put,
            used: AtomicU64::new(put),
            served: AtomicBool::new(false),
        }
    }

    /// What it is looked for by.
    pub const fn topic(&self) -> Topic {
        self.about.topic
    }

    /// What it is.
    pub const fn content(&self) -> &Content {
        &self.about.content
    }

    /// Its leaves as signed for one of its subjects.
    pub fn leaves(&self, subject: Subject) -> Option<&Leaves> {
        self.about
            .leaves
            .iter()
            .find(|leaves| leaves.subject() == subject)
    }

    /// The leaf of a piece, as signed for one of its subjects.
    pub fn leaf(&self, subject: Subject, piece: u64) -> Option<Attested> {
        self.leaves(subject)?.leaf(piece)
    }

    /// Fills `buf` with what begins at `offset`, where a file still has it; blocks. What comes is to be hashed.
    ///
    /// # Errors
    /// `NotFound` where there is none any more: [`Shelf::remove`](super::Shelf::remove) it then.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.file().ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(buf, offset)
    }

    /// Whether a file still has it; blocks.
    pub fn is_there(&self) -> bool {
        self.file().is_some()
    }

    /// What its owner offers by hand.
    pub fn offered(&self) -> Option<Own> {
        Some(Own {
            name: self.about.offer.clone()?,
            total: self.about.content.total,
            sha256: self.about.topic.sha256?,
            subject: *self.about.content.subjects.first()?,
            path: self.about.path.clone(),
        })
    }

    /// The file that has it now: the user's while it is what it was, else the copy.
    pub(super) fn file(&self) -> Option<Arc<File>> {
        let mut source = self.source();
        match &*source {
            Source::User(file) if self.about.mark.is_of(file) => return Some(Arc::clone(file)),
            Source::Copy(file) if is_copy(file, self.about.content.total) => return Some(Arc::clone(file)),
            Source::Copy(_) => *source = Source::None,
            Source::User(_) | Source::None => *source = self.open_copy().map_or(Source::None, Source::Copy),
        }
        match &*source {
            Source::Copy(file) => Some(Arc::clone(file)),
            Source::User(_) | Source::None => None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) const fn about(&self) -> &About {
        &self.about
    }

    /// When it was put there, counted in uses of the shelf.
    pub(super) const fn put_at(&self) -> u64 {
        self.put
    }

    pub(super) fn leaves_kept(&self) -> usize {
        self.about.leaves.iter().map(Leaves::len).sum()
    }

    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn used(&self, count: u64) {
        self.used.fetch_max(count, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_user_file(&self) -> bool {
        matches!(&*self.source(), Source::User(file) if self.about.mark.is_of(file))
    }

    pub(super) fn has_copy(&self) -> bool {
        self.open_copy().is_some()
    }

    /// Its copy was served, where it was: the least recently served one goes first.
    pub(super) fn note_use(&self) {
        if self.served.swap(false, Ordering::Relaxed)
            && let Some(copy) = self.open_copy()
            && let Err(error) = copy.set_modified(SystemTime::now())
        {
            tracing::debug!(%error, "when a copy was served is not kept");
        }
    }

    /// Its copy has no name any more: that disk space is to be free.
    pub(super) fn lost_copy(&self) {
        let mut source = self.source();
        if matches!(&*source, Source::Copy(_)) {
            *source = Source::None;
        }
    }

    /// It is not on the shelf any more.
    pub(super) fn close(&self) {
        *self.source() = Source::None;
    }

    fn open_copy(&self) -> Option<Arc<File>> {
        let file = open_plain(self.copy.as_deref()?).ok()?;
        is_copy(&file, self.about.content.total).then(|| Arc::new(file))
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_copy(file: &File, total: u64) -> bool {
    let mark = file.metadata().ok().and_then(|metadata| Mark::of(&metadata));
    mark.is_some_and(|mark| mark.size == total)
}
