//! What this device can serve: complete contents, each with its leaves, under the user's own path or as a copy.
//!
//! A file is held open, so that a daemon serves what it could not open by itself, and is looked at before each read: what
//! was changed, replaced or deleted is let go of at once, and by [`Shelf::look`] when nobody reads it, so that a deleted
//! file's space is not held. What is on the shelf is kept in the state directory, one file each, and taken up again at the
//! next start where the path is still the same file.
//!
//! Invariants: bounded ([`MAX_HELD`], [`MAX_LEAVES`], [`MAX_OFFERS`]; what was used least recently makes room); nothing that
//! a peer says becomes a path: files are found by hashes, and paths come from this device's own users; all that touches a
//! file blocks, and no lock that a reader needs is held meanwhile.

mod held;
mod record;

pub use held::Held;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use crate::identity::StateDir;
use crate::types::{ByteSize, PIECE};

use super::bars::Bars;
use super::cache::{Cache, evict, floor};
use super::leaves::Leaves;
use super::savings::Savings;
use super::{Config, Content, Subject, Topic};

use held::{About, Mark};
use record::Records;

/// Contents: each is an open file.
pub const MAX_HELD: usize = 256;
/// Their leaves, which are held in memory: those of 64 GiB, some 8 MB when each was signed alone.
pub const MAX_LEAVES: usize = 1 << 16;
/// Files offered by hand: the list of them has to fit into one frame.
pub const MAX_OFFERS: usize = 128;
/// The longest name of an offered file, in bytes, as in most file systems.
pub const MAX_NAME: usize = 255;
/// A content is known by its generation, its digest, or both.
const MAX_SUBJECTS: usize = 4;

/// The contents that this device can serve when nobody fetches them. Clones share them.
#[derive(Clone, Debug)]
pub struct Shelf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    records: Records,
    cache: Option<Cache>,
    config: Mutex<Config>,
    held: Mutex<Vec<Arc<Held>>>,
    /// Counts the uses: the least is the longest ago.
    uses: AtomicU64,
    changes: watch::Sender<u64>,
    bars: Bars,
    savings: Savings,
    /// One puts there, takes off or looks at a time: what is kept and what is held stay the same.
    working: Mutex<Work>,
    /// One copies at a time: the disk does not get faster by more, and so the room is there that was made.
    copying: Mutex<()>,
    waiting: Mutex<VecDeque<Arc<Held>>>,
}

/// What whoever works on the shelf knows.
#[derive(Debug, Default)]
struct Work {
    /// What was kept has been read.
    taken_up: bool,
}

/// What is put on the shelf.
#[derive(Debug)]
pub struct Keep {
    /// What it is looked for by.
    pub topic: Topic,
    /// What it is.
    pub content: Content,
    /// Its leaves, for each subject.
    pub leaves: Vec<Leaves>,
    /// The complete file, open for reading.
    pub file: Arc<File>,
    /// Where it is, absolute.
    pub path: PathBuf,
    /// The name under which its owner offers it by hand.
    pub offer: Option<String>,
}

/// A file that this device offers by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// As its owner calls it.
    pub name: String,
    /// Its length.
    pub total: u64,
    /// Its digest.
    pub sha256: [u8; 32],
    /// Which content it is.
    pub subject: Subject,
    /// Where it is; for its owner only.
    pub path: PathBuf,
}

/// Why something is not on the shelf.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// It is not the complete, regular file that it should be.
    #[error("{}: not a regular file of {total} bytes any more, or deleted", path.display())]
    Changed {
        /// Where.
        path: PathBuf,
        /// What it should be.
        total: u64,
    },
    /// It has more leaves than there is room for.
    #[error("{}: {} is too large to be shared: there is room for the leaves of {} of file in all, fewer where several devices signed them", path.display(), ByteSize(*total), ByteSize(MAX_LEAVES as u64 * PIECE))]
    TooLarge {
        /// Where.
        path: PathBuf,
        /// How large it is.
        total: u64,
    },
    /// There is nothing by which anybody could find it.
    #[error("{}: neither a digest nor a URL stands for it, so nobody could ask for it", path.display())]
    Nameless {
        /// Where.
        path: PathBuf,
    },
    /// It cannot be called so.
    #[error(
        "`{0}` is no name for a shared file: 1 to {MAX_NAME} bytes, no `/` and no control characters; choose one with --name"
    )]
    Name(String),
    /// Something else is called so.
    #[error(
        "another file is shared as `{0}`: choose another name with --name, or `tributary share --stop` that one"
    )]
    Taken(String),
    /// Too many are offered.
    #[error("{MAX_OFFERS} files are shared already: `tributary share --stop NAME` one of them")]
    TooMany,
    /// The system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Shelf {
    /// An empty shelf: what was there at the last time is taken up by the first [`look`](Self::look), for the disks that it
    /// lies on may take their time. A process that does not act as the device has a shelf that ends with it.
    pub fn open(state: &StateDir, config: Config) -> Self {
        Self::with_floor(state, config, floor)
    }

    /// `free`: what is to stay free of a disk of that size.
    fn with_floor(state: &StateDir, config: Config, free: fn(u64) -> u64) -> Self {
        let cache = state.is_ours().then(|| Cache::at(state.path("cache"), free));
        let records = Records::at(state.is_ours().then(|| state.path("shared")));
        Self(Arc::new(Inner {
            records,
            cache,
            config: Mutex::new(config),
            held: Mutex::default(),
            uses: AtomicU64::new(0),
            changes: watch::channel(0).0,
            bars: Bars::open(state),
            savings: Savings::open(state),
            working: Mutex::default(),
            copying: Mutex::default(),
            waiting: Mutex::default(),
        }))
    }

    /// Puts a complete file there; blocks. What was there of the same content by the same topic makes room, and what was
    /// used least recently where there is none.
    ///
    /// # Errors
    /// Where the file is not what it should be, or its name or size cannot be. Where only the state directory cannot be
    /// written, it is there until the next restart, and the log says so.
    pub fn keep(&self, keep: Keep) -> Result<Arc<Held>, ShelfError> {
        let _one = self.work();
        let (about, file) = self.fits(keep)?;
        let held = Arc::new(Held::new(about, file, self.next(), self.0.cache.as_ref()));
        self.0.records.write(&held);
        self.put(Arc::clone(&held));
        Ok(held)
    }

    /// Everything there is. What changed since it was last looked at is among it.
    pub fn all(&self) -> Vec<Arc<Held>> {
        self.held().clone()
    }

    /// A content by one of its subjects: the one put there last.
    pub fn find(&self, subject: Subject) -> Option<Arc<Held>> {
        let held = self.held();
        let of_it = held
            .iter()
            .filter(|held| held.content().subjects.contains(&subject));
        of_it.max_by_key(|held| held.put_at()).cloned()
    }

    /// A content is not to be served any more: a piece of it was wrong, or it was found gone. Gives what is to be
    /// [forgotten](Self::forget).
    #[must_use]
    pub fn remove(&self, subject: Subject) -> Vec<Arc<Held>> {
        self.take_off(|held| held.content().subjects.contains(&subject))
    }

    /// What is offered by hand.
    pub fn offered(&self) -> Vec<Own> {
        self.held().iter().filter_map(|held| held.offered()).collect()
    }

    /// This file is not offered by hand any more; where a download brought it too, that is shared all the same. Gives what
    /// is to be [forgotten](Self::forget).
    #[must_use]
    pub fn stop(&self, sha256: &[u8; 32], name: &str) -> Vec<Arc<Held>> {
        let meant = |own: Own| own.sha256 == *sha256 && own.name == name;
        self.take_off(|held| held.offered().is_some_and(meant))
    }

    /// What was taken off is not kept any more, nor is a copy of it; blocks.
    pub fn forget(&self, gone: &[Arc<Held>]) {
        let _one = self.work();
        self.discard(gone);
    }

    /// A member got so many bytes of a content, be it one that is here or one that is still fetched.
    pub fn served(&self, subject: Subject, bytes: u64) {
        if let Some(held) = self.find(subject) {
            held.used(self.next());
        }
        self.0.savings.served(bytes);
    }

    /// Ticks when something was put there or taken off.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Who is barred.
    pub fn bars(&self) -> &Bars {
        &self.0.bars
    }

    /// What sharing saved.
    pub fn savings(&self) -> &Savings {
        &self.0.savings
    }

    /// What the owner says now; takes effect at the next look.
    pub fn configure(&self, config: Config) {
        *self.0.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Lets go of what was deleted or changed, and of copies that have no room any more, and writes what is to be kept;
    /// blocks. To be called every minute, and not less often: a deleted file takes its space until then.
    pub fn look(&self) {
        let _one = self.work();
        self.tidy_copies();
        // Looked at before anything is locked: a disk may take its time.
        let gone: Vec<_> = self.all().into_iter().filter(|held| !held.is_there()).collect();
        self.discard(&self.take_off(|held| gone.iter().any(|other| std::ptr::eq(&**other, held))));
        self.0.bars.save();
        self.0.savings.save(Instant::now());
    }

    /// Writes what is to be kept; blocks. For the end.
    pub fn finish(&self) {
        self.0.bars.save();
        self.0.savings.finish(Instant::now());
    }

    /// Copies a content's file, where the owner allows for it and there is room; blocks, for as long as it takes, and ends
    /// early when `stop` says so. Where another is being copied, that call sees to this one too.
    pub fn copy(&self, held: Arc<Held>, stop: &dyn Fn() -> bool) {
        let total = held.content().total;
        if total == 0 || total > self.config().cache.0 {
            return;
        }
        let mut waiting = self.waiting();
        waiting.push_back(held);
        waiting.truncate(MAX_HELD);
        drop(waiting);
        // Whoever comes just when the other one is done finds the lock free, or is found here.
        while !self.waiting().is_empty() {
            let Some(_only) = self.copying() else { return };
            while let Some(held) = { self.waiting().pop_front() } {
                self.copy_one(&held, stop);
            }
        }
    }

    fn copy_one(&self, held: &Held, stop: &dyn Fn() -> bool) {
        let Some(cache) = &self.0.cache else { return };
        let file = {
            let _one = self.work();
            let is_there = self.held().iter().any(|other| other.id() == held.id());
            let wanted = is_there && held.offered().is_none() && !held.has_copy();
            let total = held.content().total;
            let file = held.file().filter(|_| wanted && self.make_room(cache, total));
            let Some(file) = file else { return };
            file
        };
        match cache.copy(&file, held.id(), held.content().total, stop) {
            Ok(()) if held.has_user_file() => {}
            // It was edited meanwhile: the copy is of no use.
            Ok(()) => {
                cache.remove(held.id());
                held.lost_copy();
            }
            Err(error) => tracing::debug!(%error, "no copy of what was downloaded is kept"),
        }
    }

    /// What is known of it, where it is the file that it should be and may be called so, and the bounds leave room for it
    /// where everything makes room that may.
    fn fits(&self, keep: Keep) -> Result<(About, Arc<File>), ShelfError> {
        let Keep {
            topic,
            content,
            mut leaves,
            file,
            path,
            offer,
        } = keep;
        let total = content.total;
        let findable = topic.url.is_some() || topic.sha256.is_some();
        if !findable || !(1..=MAX_SUBJECTS).contains(&content.subjects.len()) {
            return Err(ShelfError::Nameless { path });
        }
        // One for each subject, in the order of the subjects.
        let mut of = |subject: &Subject| {
            let given = leaves.iter().position(|leaves| leaves.subject() == *subject);
            given.map_or_else(|| Leaves::new(*subject, total), |place| leaves.swap_remove(place))
        };
        let leaves: Vec<_> = content.subjects.iter().map(&mut of).collect();
        if leaves.iter().map(Leaves::len).sum::<usize>() > MAX_LEAVES {
            return Err(ShelfError::TooLarge { path, total });
        }
        if let Some(name) = &offer {
            self.may_be_offered(name, &topic, &content)?;
        }
        match file.metadata().map(|metadata| Mark::of(&metadata)) {
            Ok(Some(mark)) if mark.size() == total => {
                let about = About {
                    topic,
                    content,
                    leaves,
                    offer,
                    path,
                    mark,
                };
                Ok((about, file))
            }
            Ok(_) => Err(ShelfError::Changed { path, total }),
            Err(source) => Err(ShelfError::Io { path, source }),
        }
    }

    fn may_be_offered(&self, name: &str, topic: &Topic, content: &Content) -> Result<(), ShelfError> {
        if !is_name(name) || topic.sha256.is_none() {
            return Err(ShelfError::Name(name.chars().take(MAX_NAME).collect()));
        }
        let id = record::id(content, true);
        let held = self.held();
        let others = held.iter().filter(|held| held.id() != id);
        let offers: Vec<_> = others.filter_map(|held| held.offered()).collect();
        match () {
            () if offers.iter().any(|own| own.name == name) => Err(ShelfError::Taken(name.to_owned())),
            () if offers.len() >= MAX_OFFERS => Err(ShelfError::TooMany),
            () => Ok(()),
        }
    }

    /// It is there from now on; others make room.
    fn put(&self, new: Arc<Held>) {
        let mut held = self.held();
        held.retain(|other| other.id() != new.id());
        held.push(Arc::clone(&new));
        let full = |held: &[Arc<Held>]| {
            held.len() > MAX_HELD || held.iter().map(|held| held.leaves_kept()).sum::<usize>() > MAX_LEAVES
        };
        let mut gone = Vec::new();
        while full(&held) {
            let others = held
                .iter()
                .enumerate()
                .filter(|(_, other)| other.id() != new.id());
            // What somebody put there by hand goes last.
            let least = others.min_by_key(|(_, other)| (other.offered().is_some(), other.last_used()));
            let Some((place, _)) = least else { break };
            gone.push(held.remove(place));
        }
        drop(held);
        self.discard(&gone);
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Takes off what is so, and gives it.
    fn take_off(&self, so: impl Fn(&Held) -> bool) -> Vec<Arc<Held>> {
        let gone: Vec<_> = self.held().extract_if(.., |held| so(held)).collect();
        if !gone.is_empty() {
            self.0.changes.send_modify(|count| *count += 1);
        }
        gone
    }

    /// Closes what is not there any more, and removes what is kept of it, where nobody put the same there again.
    fn discard(&self, gone: &[Arc<Held>]) {
        for held in gone {
            held.close();
            if self.held().iter().any(|other| other.id() == held.id()) {
                continue;
            }
            self.0.records.remove(held.id());
            if let Some(cache) = &self.0.cache {
                cache.remove(held.id());
            }
        }
    }

    fn take_up(&self) {
        let mut kept = self.0.records.read(self.0.cache.as_ref());
        // The latest last: it is the first to have room.
        kept.sort_by_key(Held::put_at);
        for held in kept {
            self.0.uses.fetch_max(held.put_at(), Ordering::Relaxed);
            self.put(Arc::new(held));
        }
    }

    /// Removes copies for which there is no room any more, and notes which were served.
    fn tidy_copies(&self) {
        let Some(cache) = &self.0.cache else { return };
        for held in self.all() {
            held.note_use();
        }
        self.make_room(cache, 0);
    }

    /// Makes room for a copy of `need` bytes; whether there is any.
    fn make_room(&self, cache: &Cache, need: u64) -> bool {
        let config = self.config();
        if need > 0
            && let Err(error) = cache.make()
        {
            tracing::warn!(%error, "no copies of what was downloaded can be kept");
            return false;
        }
        let held = self.all();
        // One that is being made has another name.
        let copying = need == 0 && self.copying().is_none();
        let copies = cache.copies(&|id| held.iter().any(|held| held.id() == id), copying);
        if copies.is_empty() && need == 0 {
            return true;
        }
        let Ok(room) = cache.room(config.cache.0, config.cache_age) else {
            return false;
        };
        let (gone, fits) = evict(&copies, need, room, SystemTime::now());
        for copy in gone {
            cache.remove(&copy.id);
            if let Some(held) = held.iter().find(|held| held.id() == copy.id) {
                held.lost_copy();
            }
        }
        fits
    }

    fn next(&self) -> u64 {
        self.0.uses.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn config(&self) -> Config {
        *self.0.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Arc<Held>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to copy, where nobody has it.
    fn copying(&self) -> Option<MutexGuard<'_, ()>> {
        match self.0.copying.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Arc<Held>>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to put there and to take off, once all is there that was kept.
    fn work(&self) -> MutexGuard<'_, Work> {
        let mut work = self.0.working.lock().unwrap_or_else(PoisonError::into_inner);
        if !work.taken_up {
            work.taken_up = true;
            self.take_up();
        }
        work
    }
}

/// Whether an offered file may be called so: a file's name as a word for people.
pub fn is_name(name: &str) -> bool {
    let plain = !name.contains('/') && !name.chars().any(char::is_control);
    plain && (1..=MAX_NAME).contains(&name.len()) && Path::new(name).file_name().is_some()
}

#[cfg(test)]
mod tests;
