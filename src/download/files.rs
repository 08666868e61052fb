//! Where a download's file is: in this process' hands, or in those of whoever asked for it.
//!
//! The download itself sees open descriptors only ([`OpenedFiles`]); names, the lock and the final rename are behind
//! [`Files`]. So a daemon writes files that it can neither see nor open, and they belong to its client.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::{DownloadError, name};
use crate::store::Claim;
use crate::store::OpenOptions;
use crate::store::OpenedFiles;
use crate::store::Part;
use crate::store::Place;
use crate::store::Resumed;
use crate::store::StoreError;
use crate::store::peek;
use crate::task::Tasks;

/// Who stopped just now may still be bringing its last bytes to the disk: so long the lock is waited for, which covers
/// what is unsynced at most (64 MiB) on an SD card.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
const LOCK_EVERY: Duration = Duration::from_millis(50);

/// Where the file goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Exactly here.
    File(PathBuf),
    /// Into this directory, under the name that the origin or the URL gives, made safe.
    Directory(PathBuf),
}

/// A download's file, wherever its names are.
///
/// There is one file at a time: opening another one, publishing and discarding let go of the one before. The names that
/// are passed are wishes of the origin's; whoever has the files decides what becomes of them.
pub trait Files: fmt::Debug + Send + Sync {
    /// What could be continued under this name.
    fn peek(&self, name: String) -> BoxFuture<'_, Result<Option<Claim>, StoreError>>;

    /// Opens or creates the file that this claim is to be written to.
    fn open(&self, name: String, claim: Claim) -> BoxFuture<'_, Result<Opened, StoreError>>;

    /// Gives what is complete its final name. Returns the final path.
    fn publish(&self) -> BoxFuture<'_, Result<PathBuf, StoreError>>;

    /// Removes what was written, for good.
    fn discard(&self) -> BoxFuture<'_, ()>;
}

/// A file that was opened for a download.
#[derive(Debug)]
pub struct Opened {
    /// What to write to.
    pub files: OpenedFiles,
    /// What it will be called.
    pub name: String,
}

/// Files of this process.
#[derive(Debug)]
pub struct Local {
    to: Destination,
    tasks: Tasks,
    place: Mutex<Option<Arc<Place>>>,
}

impl Local {
    /// Files at `to`; the work that blocks is done in `tasks`.
    pub fn new(to: Destination, tasks: &Tasks) -> Self {
        Self {
            to,
            tasks: tasks.clone(),
            place: Mutex::new(None),
        }
    }

    /// Never anything but the file, or a plain name in the directory, that the user named.
    fn path(&self, wished: &str) -> PathBuf {
        match &self.to {
            Destination::File(path) => path.clone(),
            Destination::Directory(directory) => directory.join(name::safe(wished)),
        }
    }

    fn exchange(&self, place: Option<Arc<Place>>) -> Option<Arc<Place>> {
        let mut current = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, place)
    }

    async fn open_place(&self, path: PathBuf, claim: Claim) -> Result<(Place, OpenedFiles), StoreError> {
        let options = OpenOptions {
            overwrite: false,
            restart: true,
        };
        let deadline = Instant::now() + LOCK_WITHIN;
        loop {
            let (at, wanted) = (path.clone(), claim.clone());
            let opened = self.blocking("opening", &path, move || Place::open(&at, &wanted, options));
            match opened.await {
                Err(StoreError::Busy { .. }) if Instant::now() < deadline => sleep(LOCK_EVERY).await,
                decided => return decided,
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &std::path::Path,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let done = self.tasks.blocking(work).await;
        done.unwrap_or_else(|panicked| {
            Err(StoreError::Io {
                doing,
                path: path.to_owned(),
                source: io::Error::other(panicked),
            })
        })
    }
}

impl Files for Local {
    fn peek(&self, name: String) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        let path = self.path(&name);
        let at = path.clone();
        async move { self.blocking("looking", &path, move || peek(&at)).await }.boxed()
    }

    fn open(&self, name: String, claim: Claim) -> BoxFuture<'_, Result<Opened, StoreError>> {
        let path = self.path(&name);
        // Its lock may be the one that is wanted now.
        drop(self.exchange(None));
        async move {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let (place, files) = self.open_place(path, claim).await?;
            self.exchange(Some(Arc::new(place)));
            Ok(Opened { files, name })
        }
        .boxed()
    }

    fn publish(&self) -> BoxFuture<'_, Result<PathBuf, StoreError>> {
        async {
            let Some(place) = self.exchange(None) else {
                return Err(StoreError::Elsewhere(
                    "no file is open that could be finished".into(),
                ));
            };
            let path = self.path("");
            self.blocking("renaming", &path, move || place.publish()).await
        }
        .boxed()
    }

    fn discard(&self) -> BoxFuture<'_, ()> {
        async {
            if let Some(place) = self.exchange(None) {
                // What cannot be removed was said by the place.
                let _ = self.tasks.blocking(move || place.discard()).await;
            }
        }
        .boxed()
    }
}

/// Opens a file and what an earlier run left in it. Returns also what it will be called. Nothing new is left behind where
/// that fails.
pub(super) async fn open(
    files: &dyn Files,
    name: String,
    claim: Claim,
    tasks: &Tasks,
) -> Result<(String, Part, Resumed), DownloadError> {
    let Opened { files: opened, name } = files.open(name, claim.clone()).await?;
    let created = opened.created;
    let part = tasks
        .blocking(move || Part::resume_or_create(opened, &claim))
        .await;
    match part.map_err(|_panicked| DownloadError::Stopped { resumable: true })? {
        Ok((part, resumed)) => Ok((name, part, resumed)),
        Err(error) => {
            if created {
                files.discard().await;
            }
            Err(error.into())
        }
    }
}

/// Completes a file: all is there, on the disk and right; then its final name. Returns the final path. With a wrong
/// checksum what was written is removed.
pub(super) async fn finish(
    files: &dyn Files,
    part: Arc<Part>,
    sha256: Option<[u8; 32]>,
    tasks: &Tasks,
) -> Result<PathBuf, DownloadError> {
    let sealed = tasks.blocking(move || part.seal(sha256)).await;
    match sealed.map_err(|_panicked| DownloadError::Stopped { resumable: true })? {
        Ok(_) => Ok(files.publish().await?),
        Err(error) => {
            if matches!(error, StoreError::Checksum { .. }) {
                files.discard().await;
            }
            Err(error.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::Generation;
    use crate::store::Validator;

    fn claim() -> Claim {
        let validator = Some(Validator::ETag("\"v1\"".into()));
        let generation = Generation { total: 10, validator };
        Claim::new("https://origin.example/x", Some(generation), None)
    }

    #[tokio::test]
    async fn sec_c1_what_a_stranger_names_stays_in_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let tasks = Tasks::new();
        let files = Local::new(Destination::Directory(inner.clone()), &tasks);
        for name in [
            "../escaped",
            "/etc/escaped",
            "a/b/escaped",
            "..",
            "",
            ".hidden",
            "escaped.part",
        ] {
            let opened = files.open(name.into(), claim()).await.unwrap();
            let parent = opened.files.path.parent().unwrap();
            assert_eq!(parent, inner, "{name}");
            assert!(
                !opened.name.starts_with('.') && !opened.name.ends_with(".part"),
                "{name}"
            );
        }
        let outside: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(outside, ["inner"]);
    }

    #[tokio::test]
    async fn a_named_file_is_written_whatever_the_origin_calls_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine");
        let tasks = Tasks::new();
        let files = Local::new(Destination::File(path.clone()), &tasks);
        let opened = files.open("theirs".into(), claim()).await.unwrap();
        assert_eq!(opened.name, "mine");
        drop(opened);
        let (name, part, _) = open(&files, "theirs".into(), claim(), &tasks).await.unwrap();
        assert_eq!(name, "mine");
        part.write_at(0, &[7; 10]).unwrap();
        assert_eq!(finish(&files, Arc::new(part), None, &tasks).await.unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), [7; 10]);
        assert!(files.publish().await.is_err(), "it is published once");
    }

    #[tokio::test]
    async fn a_wrong_checksum_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let files = Local::new(Destination::File(folder.path().join("x")), &tasks);
        let (_, part, _) = open(&files, String::new(), claim(), &tasks).await.unwrap();
        part.write_at(0, &[7; 10]).unwrap();
        let error = finish(&files, Arc::new(part), Some([0; 32]), &tasks)
            .await
            .unwrap_err();
        assert!(
            matches!(error, DownloadError::Store(StoreError::Checksum { .. })),
            "{error}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_cannot_be_reserved_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new();
        let files = Local::new(Destination::File(folder.path().join("x")), &tasks);
        let huge = Generation {
            total: 1 << 60,
            validator: None,
        };
        let claim = Claim::new("u", Some(huge), None);
        let error = open(&files, String::new(), claim, &tasks).await.unwrap_err();
        assert!(error.to_string().contains("x.part"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_lock_that_its_last_holder_is_letting_go_of_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let to = Destination::File(folder.path().join("x"));
        let tasks = Tasks::new();
        let first = Local::new(to.clone(), &tasks);
        let opened = first.open(String::new(), claim()).await.unwrap();
        drop(first);
        // The names are let go of; the descriptors still hold the lock.
        let second = Local::new(to, &tasks);
        let mut waiting = second.open(String::new(), claim());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(opened);
        assert!(waiting.await.is_ok());
    }
}
