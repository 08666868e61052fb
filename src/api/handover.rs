//! How a client's file is written or read by the daemon: the questions it asks on the way, and the client's answers.
//!
//! The client opens its files itself, as the user that it is, and passes the descriptors; names, the lock and the final
//! rename stay with it. The daemon gets no path but for its messages. One question is under way at a time; one that is
//! not answered ends the transfer, resumably. What is read for an upload is in [`source`](super::source).

use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::download::{Files, Opened};
use crate::store::{Claim, OpenedFiles, Sender, StoreError, safe_name};
use crate::task::Tasks;

use super::source::Page;
use super::wire::Line;

/// A rename and its syncs take long on an SD card that is busy writing, and a lock is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What the daemon asks of the client it works for. The names are wishes of the origin's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// What could be continued under this name?
    Peek {
        /// A plain file name.
        name: String,
    },
    /// Open or create the file that this is to be written to.
    Open {
        /// A plain file name.
        name: String,
        /// What it belongs to.
        claim: Claim,
    },
    /// All is there and on the disk: give it its final name.
    Publish,
    /// Remove what was written.
    Discard,
    /// Which files are to be sent? A page of the list, whose entries are counted from 0.
    List {
        /// The first entry that is wanted.
        from: usize,
    },
    /// Open the file with this number in the list, for reading.
    Source {
        /// Counted from 0.
        item: usize,
    },
}

/// What the client says: to a question, or by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `peek`.
    Peeked(Option<Claim>),
    /// To `open`, with the descriptors of data, journal and lock.
    Opened {
        /// What the file will be called, for showing.
        name: String,
        /// Where it is, for messages.
        path: String,
        /// Whether it was not there before.
        created: bool,
    },
    /// To `publish`.
    Published {
        /// Where it is, for messages.
        path: String,
    },
    /// To `discard`.
    Discarded,
    /// To `list`.
    Listed(Page),
    /// To `source`, with the one descriptor.
    Source,
    /// To `source`: this file cannot be read.
    Unreadable {
        /// Which.
        name: String,
        /// What the system says.
        why: String,
    },
    /// To any: it did not work; why, for people.
    Failed(String),
    /// By itself: the user wants it stopped, resumably.
    Stop,
    /// By itself, also after `stop`: the user wants it stopped, and what was sent removed.
    Abort,
}

/// A question on its way to the client.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) answer: oneshot::Sender<(Answer, Line)>,
}

/// The way to a client: one question at a time.
#[derive(Debug)]
pub(super) struct Asker(Mutex<mpsc::Sender<Asked>>);

impl Asker {
    /// The questions are to be passed on.
    pub(super) fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (asks, asked) = mpsc::channel(1);
        (Self(Mutex::new(asks)), asked)
    }

    /// # Errors
    /// Where there is no answer, or one that says that it did not work; in words.
    pub(super) async fn ask(&self, ask: Ask) -> Result<(Answer, Line), String> {
        // Held until the answer is there.
        let asks = self.0.lock().await;
        let (answer, answered) = oneshot::channel();
        let gone = || "whoever asked for this transfer is gone".to_owned();
        let asked = asks.send(Asked { ask, answer }).await;
        asked.map_err(|_closed| gone())?;
        match timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok((Answer::Failed(why), _))) => Err(why),
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(_closed)) => Err(gone()),
            Err(_) => Err(format!(
                "whoever asked for this transfer has not answered for {} s",
                ANSWER_WITHIN.as_secs()
            )),
        }
    }
}

/// Files in the hands of a client.
#[derive(Debug)]
pub(super) struct Remote {
    asker: Asker,
    sender: Sender,
    tasks: Tasks,
}

impl Remote {
    /// Files of the client that is that user; the questions are to be passed on.
    pub(super) fn new(sender: Sender, tasks: &Tasks) -> (Self, mpsc::Receiver<Asked>) {
        let (asker, asked) = Asker::new();
        let tasks = tasks.clone();
        (Self { asker, sender, tasks }, asked)
    }

    async fn ask(&self, ask: Ask) -> Result<(Answer, Line), StoreError> {
        self.asker.ask(ask).await.map_err(StoreError::Elsewhere)
    }

    async fn take(
        &self,
        name: String,
        path: String,
        created: bool,
        line: Line,
    ) -> Result<Opened, StoreError> {
        let sender = self.sender;
        let path = PathBuf::from(shown(&path));
        let check = move || OpenedFiles::received(line.descriptors, path, created, sender);
        let files = self.tasks.blocking(check).await;
        let files = files.map_err(|_panicked| StoreError::NotTaken {
            why: "they could not be looked at".into(),
        })?;
        // Others see it in the daemon's status.
        let name = safe_name(&name).unwrap_or_default();
        files.map(|files| Opened { files, name })
    }
}

impl Files for Remote {
    fn peek(&self, name: String) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        async {
            match self.ask(Ask::Peek { name }).await? {
                (Answer::Peeked(claim), _) => Ok(claim),
                _ => Err(senseless()),
            }
        }
        .boxed()
    }

    fn open(&self, name: String, claim: Claim) -> BoxFuture<'_, Result<Opened, StoreError>> {
        async {
            let (answer, line) = self.ask(Ask::Open { name, claim }).await?;
            let Answer::Opened { name, path, created } = answer else {
                return Err(senseless());
            };
            let taken = self.take(name, path, created, line).await;
            if taken.is_err() && created {
                self.discard().await;
            }
            taken
        }
        .boxed()
    }

    fn publish(&self) -> BoxFuture<'_, Result<PathBuf, StoreError>> {
        async {
            match self.ask(Ask::Publish).await? {
                (Answer::Published { path }, _) => Ok(shown(&path).into()),
                _ => Err(senseless()),
            }
        }
        .boxed()
    }

    fn discard(&self) -> BoxFuture<'_, ()> {
        async {
            if let Err(error) = self.ask(Ask::Discard).await {
                tracing::debug!(%error, "a part was not removed");
            }
        }
        .boxed()
    }
}

/// What is wrong with an answer to another question.
pub(super) const SENSELESS: &str = "the answer about them makes no sense; is it of another version?";

fn senseless() -> StoreError {
    StoreError::NotTaken {
        why: SENSELESS.into(),
    }
}

/// A stranger's text without what could disturb a terminal or a log.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
