//! What the client answers to the daemon's questions about files.
//!
//! A download's file is opened, renamed and removed here, and never anything but what its user named; of an upload's files
//! those are opened that are in the list, for reading.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::download::{Files, Local};
use crate::store::StoreError;
use crate::task::Tasks;
use crate::upload::{Listed, Sources, UploadError};

use super::convert::DAEMON;
use super::{Answer, Ask, Done, Failed, Page};

/// A download asks for a few files at most, each time the content changed on the origin; who asks more often only means
/// to fill the directory.
const MAX_ASKS: u32 = 64;

/// An answer, and the descriptors that go with it.
pub(super) type Given = (Answer, Vec<OwnedFd>);

/// Does what the daemon asks about files.
pub(super) trait Giver: Send + Sync {
    /// The answer to a question.
    fn answer(&self, ask: Ask) -> BoxFuture<'_, Given>;
}

/// Gives the file that is downloaded.
#[derive(Debug)]
pub(super) struct FileGiver {
    files: Local,
    tasks: Tasks,
    state: Mutex<GiverState>,
}

#[derive(Debug, Default)]
struct GiverState {
    asks: u32,
    published: Option<PathBuf>,
}

impl FileGiver {
    pub(super) fn new(files: Local, tasks: &Tasks) -> Self {
        Self {
            files,
            tasks: tasks.clone(),
            state: Mutex::default(),
        }
    }

    async fn do_as(&self, ask: Ask) -> Result<Given, StoreError> {
        Ok(match ask {
            Ask::Peek { name } => (Answer::Peeked(self.files.peek(name).await?), Vec::new()),
            Ask::Open { name, claim } => {
                let opened = self.files.open(name, claim).await?;
                let mut files = opened.files;
                if let Some(directory) = files.directory.take() {
                    self.sync(directory);
                }
                let answer = Answer::Opened {
                    name: opened.name,
                    path: files.path.to_string_lossy().into_owned(),
                    created: files.created,
                };
                (
                    answer,
                    [files.data, files.journal, files.lock].map(OwnedFd::from).into(),
                )
            }
            Ask::Publish => {
                let path = self.files.publish().await?;
                let answer = Answer::Published {
                    path: path.to_string_lossy().into_owned(),
                };
                self.state().published = Some(path);
                (answer, Vec::new())
            }
            Ask::Discard => {
                self.files.discard().await;
                (Answer::Discarded, Vec::new())
            }
            Ask::List { .. } | Ask::Source { .. } => {
                return Err(StoreError::Elsewhere("nothing is to be sent".into()));
            }
        })
    }

    /// The directory is not passed on: with it the daemon could list it, and walk from it where it may not. It is synced
    /// meanwhile: the daemon's first record comes seconds later or with the file's end, when it is synced again.
    fn sync(&self, directory: File) {
        let sync = self.tasks.blocking(move || {
            if let Err(error) = directory.sync_all() {
                tracing::debug!(%error, "the folder could not be synced");
            }
        });
        drop(sync);
    }

    /// The daemon knows a path only by hearsay.
    pub(super) fn done(&self, done: Done) -> Result<Done, Failed> {
        match self.published() {
            Some(path) => Ok(Done { path, ..done }),
            None => Err(Failed {
                code: DAEMON,
                message: "the daemon says that it is done, and has not finished the file".into(),
            }),
        }
    }

    pub(super) fn published(&self) -> Option<PathBuf> {
        self.state().published.clone()
    }

    fn is_too_often(&self) -> bool {
        let mut state = self.state();
        state.asks += 1;
        state.asks > MAX_ASKS
    }

    fn state(&self) -> MutexGuard<'_, GiverState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Giver for FileGiver {
    fn answer(&self, ask: Ask) -> BoxFuture<'_, Given> {
        async {
            let answer = if self.is_too_often() {
                Err(StoreError::Elsewhere("the daemon asks for too many files".into()))
            } else {
                self.do_as(ask).await
            };
            answer.unwrap_or_else(|error| (Answer::Failed(error.to_string()), Vec::new()))
        }
        .boxed()
    }
}

/// Gives the files that are uploaded. Opening one for reading changes nothing, so it may be asked for as often as it takes.
#[derive(Debug)]
pub(super) struct SourceGiver {
    sources: Arc<dyn Sources>,
    listed: Listed,
}

impl SourceGiver {
    /// `listed` is what the sources said they consist of.
    pub(super) fn new(sources: Arc<dyn Sources>, listed: Listed) -> Self {
        Self { sources, listed }
    }
}

impl Giver for SourceGiver {
    fn answer(&self, ask: Ask) -> BoxFuture<'_, Given> {
        async move {
            match ask {
                Ask::List { from } => (Answer::Listed(Page::of(&self.listed, from)), Vec::new()),
                Ask::Source { item } if item < self.listed.items.len() => {
                    match self.sources.open(item).await {
                        Ok(file) => (Answer::Source, vec![file.into()]),
                        Err(UploadError::Source { name, why }) => {
                            (Answer::Unreadable { name, why }, Vec::new())
                        }
                        Err(error) => (Answer::Failed(error.to_string()), Vec::new()),
                    }
                }
                _ => {
                    let why = "the daemon asks for something else than a file that is to be sent";
                    (Answer::Failed(why.into()), Vec::new())
                }
            }
        }
        .boxed()
    }
}
