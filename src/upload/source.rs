//! What is sent: files that somebody opens for us, read at any place by several lanes at once.
//!
//! Invariants: a file is opened once for as long as it is in use, and at most [`MAX_OPEN`] are open; a byte leaves the device
//! only while the file is as it was when it was listed (length, time of change, and that it was not replaced): that is
//! looked at before a part's first byte and before its last ones.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use md5::{Digest as _, Md5};
use nix::fcntl::OFlag;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::Item;
use super::error::UploadError;
use super::list::list;
use crate::stripe::Part;
use crate::task::Tasks;

/// Read in one go: large enough that the system call and the hop between threads cost nothing, small enough that sixteen
/// lanes with two of them each hold 4 MiB.
pub(super) const BLOCK: u64 = 128 << 10;
/// Files that are open at once: twice the connections there may be.
const MAX_OPEN: usize = 32;

/// Whose files are sent. The names in it are of one file, or relative to one directory.
pub trait Sources: fmt::Debug + Send + Sync {
    /// All there is to send, and what is left out from the start, with the reason.
    fn list(&self) -> BoxFuture<'_, Result<Listed, UploadError>>;

    /// Opens the file with this number in the list, for reading.
    fn open(&self, item: usize) -> BoxFuture<'_, Result<File, UploadError>>;
}

/// What a source consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The files.
    pub items: Vec<Item>,
    /// Whether they are the files of a directory; else there is one.
    pub directory: bool,
    /// What cannot be sent, by name, and why.
    pub left_out: Vec<(String, String)>,
}

/// A file, or the files of a directory, of this process's own user.
#[derive(Debug)]
pub struct LocalSources {
    path: PathBuf,
    tasks: Tasks,
    items: Mutex<Vec<Item>>,
}

impl LocalSources {
    /// What is at `path`.
    pub fn new(path: PathBuf, tasks: &Tasks) -> Self {
        Self {
            path,
            tasks: tasks.clone(),
            items: Mutex::default(),
        }
    }

    fn place(&self, item: usize) -> Option<(String, PathBuf)> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let name = items.get(item)?.name.clone();
        let path = if self.path.is_dir() {
            self.path.join(&name)
        } else {
            self.path.clone()
        };
        Some((name, path))
    }
}

impl Sources for LocalSources {
    fn list(&self) -> BoxFuture<'_, Result<Listed, UploadError>> {
        async {
            let path = self.path.clone();
            let listed = self.tasks.blocking(move || listed(&path)).await;
            let listed = listed.map_err(|e| UploadError::Task(e.to_string()))??;
            *self.items.lock().unwrap_or_else(PoisonError::into_inner) = listed.items.clone();
            Ok(listed)
        }
        .boxed()
    }

    fn open(&self, item: usize) -> BoxFuture<'_, Result<File, UploadError>> {
        async move {
            let Some((name, path)) = self.place(item) else {
                return Err(UploadError::Task("a file that is not in the list".to_owned()));
            };
            let open = self.tasks.blocking(move || open_plain(&path)).await;
            let open = open.map_err(|e| UploadError::Task(e.to_string()))?;
            open.map_err(|e| unreadable(&name, &e))
        }
        .boxed()
    }
}

/// A pipe that somebody put in a file's place must not hold a thread for ever.
fn open_plain(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

fn listed(path: &Path) -> Result<Listed, UploadError> {
    let shown = path.display().to_string();
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(&shown, &e))?;
    if metadata.is_dir() {
        let listing = list(path)?;
        return Ok(Listed {
            items: listing.items,
            directory: true,
            left_out: listing.left_out,
        });
    }
    if !metadata.is_file() {
        return Err(UploadError::Source {
            name: shown,
            why: "it is neither a regular file nor a directory".to_owned(),
        });
    }
    let name = path
        .file_name()
        .map_or(shown, |n| n.to_string_lossy().into_owned());
    Ok(Listed {
        items: vec![Item {
            name,
            size: metadata.len(),
            modified: metadata.modified().unwrap_or(std::time::UNIX_EPOCH),
        }],
        ..Listed::default()
    })
}

fn unreadable(name: &str, error: &io::Error) -> UploadError {
    UploadError::Source {
        name: name.to_owned(),
        why: error.to_string(),
    }
}

/// A checksum's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksum {
    /// What S3 calls an ETag.
    Md5,
    /// What every tus server with checksums has.
    Sha1,
    /// For servers that offer it.
    Sha256,
}

/// What a file was like when it was listed or first opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    size: u64,
    modified: (i64, i64),
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A file that is open, and what it was like then.
#[derive(Debug)]
pub(super) struct OpenFile {
    name: String,
    file: File,
    mark: Mark,
    /// Whether it had a name then: a spool has none.
    named: bool,
}

impl OpenFile {
    fn new(item: &Item, file: File) -> Result<Self, UploadError> {
        let metadata = file.metadata().map_err(|e| unreadable(&item.name, &e))?;
        if !metadata.is_file() {
            return Err(UploadError::Source {
                name: item.name.clone(),
                why: "it is not a regular file".to_owned(),
            });
        }
        let open = Self {
            name: item.name.clone(),
            mark: Mark::of(&metadata),
            named: metadata.nlink() > 0,
            file,
        };
        if metadata.len() != item.size {
            return Err(open.changed(format!("from {} to {} bytes", item.size, metadata.len())));
        }
        if metadata.modified().is_ok_and(|m| m != item.modified) {
            return Err(open.changed("it was written to".to_owned()));
        }
        Ok(open)
    }

    /// That it is still what it was.
    pub(super) fn check(&self) -> Result<(), UploadError> {
        let metadata = self.file.metadata().map_err(|e| unreadable(&self.name, &e))?;
        let now = Mark::of(&metadata);
        if now.size != self.mark.size {
            let what = format!("from {} to {} bytes", self.mark.size, now.size);
            return Err(self.changed(what));
        }
        if now.modified != self.mark.modified {
            return Err(self.changed("it was written to".to_owned()));
        }
        if self.named && metadata.nlink() == 0 {
            return Err(self.changed("it was replaced or removed".to_owned()));
        }
        Ok(())
    }

    /// Exactly the bytes from `at` on.
    pub(super) fn read(&self, at: u64, len: u64) -> Result<Bytes, UploadError> {
        let len = usize::try_from(len.min(BLOCK)).unwrap_or(usize::MAX);
        let mut block = vec![0; len];
        match self.file.read_exact_at(&mut block, at) {
            Ok(()) => Ok(block.into()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.changed("it became shorter".to_owned()))
            }
            Err(e) => Err(unreadable(&self.name, &e)),
        }
    }

    fn changed(&self, what: String) -> UploadError {
        UploadError::Changed {
            name: self.name.clone(),
            what,
        }
    }
}

/// What is sent, as the upload's own parts see it. Parts are of its files: `item` is the file's number.
#[derive(Debug)]
pub(super) struct Source {
    listed: Listed,
    sources: Arc<dyn Sources>,
    tasks: Tasks,
    open: Mutex<BTreeMap<usize, Arc<OpenFile>>>,
}

impl Source {
    /// Looks what there is to send.
    pub(super) async fn new(sources: Arc<dyn Sources>, tasks: &Tasks) -> Result<Self, UploadError> {
        let listed = sources.list().await?;
        Ok(Self {
            listed,
            sources,
            tasks: tasks.clone(),
            open: Mutex::default(),
        })
    }

    /// What all of it is called.
    pub(super) fn name(&self) -> String {
        match &self.listed.items[..] {
            [one] => one.name.clone(),
            many => format!("{} files", many.len()),
        }
    }

    /// Bytes of all files.
    pub(super) fn total(&self) -> u64 {
        self.listed.items.iter().map(|item| item.size).sum()
    }

    /// What there is.
    pub(super) const fn listed(&self) -> &Listed {
        &self.listed
    }

    /// The scope that reads happen in.
    pub(super) const fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The files.
    pub(super) fn items(&self) -> &[Item] {
        &self.listed.items
    }

    /// The checksum of a part of a file, as it is now.
    pub(super) async fn digest(&self, part: &Part, kind: Checksum) -> Result<Vec<u8>, UploadError> {
        let (file, range) = (self.file(part.item).await?, part.range);
        let digest = self.tasks.blocking(move || {
            file.check()?;
            let mut sum = Sum::new(kind);
            let mut at = range.start;
            while at < range.end {
                let block = file.read(at, range.end - at)?;
                at += block.len() as u64;
                sum.update(&block);
            }
            file.check()?;
            Ok(sum.finish())
        });
        digest.await.map_err(|e| UploadError::Task(e.to_string()))?
    }

    /// The file, opened where it is not yet.
    pub(super) async fn file(&self, item: usize) -> Result<Arc<OpenFile>, UploadError> {
        let known = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = known().get(&item) {
            return Ok(open.clone());
        }
        let listed = self.items().get(item);
        let listed = listed.ok_or_else(|| UploadError::Task("a file that is not in the list".to_owned()))?;
        let file = self.sources.open(item).await?;
        let opened = Arc::new(OpenFile::new(listed, file)?);
        let mut open = known();
        if open.len() >= MAX_OPEN {
            open.retain(|_, file| Arc::strong_count(file) > 1);
        }
        open.insert(item, opened.clone());
        Ok(opened)
    }

    /// Reads a block of a file in a blocking task.
    pub(super) async fn read(&self, file: &Arc<OpenFile>, at: u64, end: u64) -> Result<Bytes, UploadError> {
        let file = file.clone();
        let read = self.tasks.blocking(move || {
            let block = file.read(at, end - at)?;
            if at + block.len() as u64 == end {
                file.check()?;
            }
            Ok(block)
        });
        read.await.map_err(|e| UploadError::Task(e.to_string()))?
    }
}

enum Sum {
    Md5(Md5),
    Ring(Context),
}

impl Sum {
    fn new(kind: Checksum) -> Self {
        match kind {
            Checksum::Md5 => Self::Md5(Md5::new()),
            Checksum::Sha1 => Self::Ring(Context::new(&SHA1_FOR_LEGACY_USE_ONLY)),
            Checksum::Sha256 => Self::Ring(Context::new(&SHA256)),
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Md5(sum) => sum.update(data),
            Self::Ring(sum) => sum.update(data),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Md5(sum) => sum.finalize().to_vec(),
            Self::Ring(sum) => sum.finish().as_ref().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;
    use crate::types::ByteRange;

    async fn source(path: &Path) -> Source {
        let tasks = Tasks::new();
        let sources = Arc::new(LocalSources::new(path.to_owned(), &tasks));
        Source::new(sources, &tasks).await.unwrap()
    }

    fn part(start: u64, end: u64) -> Part {
        Part {
            item: 0,
            range: ByteRange::new(start, end),
        }
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn hex(bytes: &[u8]) -> String {
        crate::types::hex(bytes)
    }

    #[tokio::test]
    async fn checksums_are_of_exactly_the_part() {
        let file = file(b"xabcy");
        let source = source(file.path()).await;
        let sum = async |kind| hex(&source.digest(&part(1, 4), kind).await.unwrap());
        assert_eq!(sum(Checksum::Md5).await, "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            sum(Checksum::Sha1).await,
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert_eq!(
            sum(Checksum::Sha256).await,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let nothing = source.digest(&part(2, 2), Checksum::Md5).await.unwrap();
        assert_eq!(hex(&nothing), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[tokio::test]
    async fn http_32_a_file_that_changes_in_any_way_while_it_is_sent_is_an_error() {
        type Change = fn(&Path);
        let changes: [(Change, &str); 4] = [
            (
                |path| {
                    std::fs::OpenOptions::new()
                        .append(true)
                        .open(path)
                        .unwrap()
                        .write_all(b"!")
                        .unwrap()
                },
                "from 5 to 6 bytes",
            ),
            (
                |path| {
                    File::options()
                        .write(true)
                        .open(path)
                        .unwrap()
                        .set_len(2)
                        .unwrap()
                },
                "from 5 to 2 bytes",
            ),
            (
                |path| {
                    let later = std::time::SystemTime::now() + Duration::from_secs(5);
                    File::options()
                        .write(true)
                        .open(path)
                        .unwrap()
                        .set_modified(later)
                        .unwrap();
                },
                "it was written to",
            ),
            (
                |path| {
                    let other = path.with_extension("new");
                    std::fs::copy(path, &other).unwrap();
                    std::fs::rename(other, path).unwrap();
                },
                "it was replaced or removed",
            ),
        ];
        for (change, what) in changes {
            let file = file(b"12345");
            let source = source(file.path()).await;
            assert!(source.digest(&part(0, 5), Checksum::Sha1).await.is_ok());
            let open = source.file(0).await.unwrap();
            change(file.path());
            let error = source.digest(&part(0, 5), Checksum::Sha1).await.unwrap_err();
            assert!(
                matches!(&error, UploadError::Changed { what: told, .. } if told == what),
                "{error}"
            );
            assert!(
                source.read(&open, 0, 5).await.is_err(),
                "the last block is not handed out: {what}"
            );
        }
    }

    #[tokio::test]
    async fn what_was_listed_with_another_length_is_not_opened() {
        let file = file(b"12345");
        let source = source(file.path()).await;
        std::fs::write(file.path(), b"123456").unwrap();
        assert!(matches!(source.file(0).await, Err(UploadError::Changed { .. })));
    }

    #[tokio::test]
    async fn a_directorys_files_are_sent_by_their_relative_names_and_devices_are_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b"), b"x").unwrap();
        let source = source(dir.path()).await;
        assert!(source.listed().directory);
        assert_eq!(source.items()[0].name, "a/b");
        assert_eq!(source.total(), 1);
        assert_eq!(
            &source.read(&source.file(0).await.unwrap(), 0, 1).await.unwrap()[..],
            b"x"
        );
        let tasks = Tasks::new();
        let device = Arc::new(LocalSources::new("/dev/null".into(), &tasks));
        assert!(matches!(
            Source::new(device, &tasks).await,
            Err(UploadError::Source { .. })
        ));
    }

    #[tokio::test]
    async fn no_more_files_stay_open_than_are_in_use() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..2 * MAX_OPEN {
            std::fs::write(dir.path().join(format!("{n}")), b"x").unwrap();
        }
        let source = source(dir.path()).await;
        let held = source.file(0).await.unwrap();
        for n in 0..2 * MAX_OPEN {
            source.file(n).await.unwrap();
        }
        let open = source.open.lock().unwrap();
        assert!(open.len() <= MAX_OPEN, "{}", open.len());
        assert!(
            Arc::ptr_eq(&held, &open[&0]),
            "what is in use is not opened twice"
        );
    }
}
