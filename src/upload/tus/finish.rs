//! The end of an upload: the parts joined, once, and looked at; or all of it removed.

use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use url::Url;

use super::uploads::Upload;
use super::{AT_ONCE, Tus, UPLOAD_CONCAT, UPLOAD_METADATA, offer};
use crate::types::ByteRange;
use crate::upload::Finished;
use crate::upload::error::UploadError;
use crate::upload::exchange::{Answer, CallOnce, Caller};

/// How often the request that joins is sent where the server has certainly not carried it out; and how often one that removes.
const TRIES: u32 = 4;
/// Between them, growing, where it does not say how long it wants to be left alone.
const PAUSE: Duration = Duration::from_secs(1);

impl Tus {
    pub(super) async fn complete(&self, caller: &Caller) -> Result<Finished, UploadError> {
        if !self.parts {
            let whole = self.uploads.whole(ByteRange::new(0, self.total));
            let upload = whole.ok_or_else(|| self.incomplete())?;
            let finished = self.verify(upload.url.clone(), caller).await?;
            self.tidy(&[upload], caller).await;
            return Ok(finished);
        }
        let parts = self.uploads.cover(self.total).ok_or_else(|| self.incomplete())?;
        let finished = self.join(&parts, caller).await?;
        self.tidy(&parts, caller).await;
        Ok(finished)
    }

    /// The scheduler says that all is there, and it is not: a fault of this program.
    fn incomplete(&self) -> UploadError {
        UploadError::Task(format!(
            "not all of {} bytes were confirmed; nothing was completed",
            self.total
        ))
    }

    /// Has the parts joined.
    async fn join(&self, parts: &[Upload], caller: &Caller) -> Result<Finished, UploadError> {
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        let list = format!("final;{}", names.join(" "));
        let list = HeaderValue::try_from(list).map_err(|_| {
            self.web
                .senseless("the names it gave to parts cannot be said back to it")
        })?;
        let mut ask = self.ask(Method::POST, self.web.base.clone());
        ask.headers.insert(UPLOAD_CONCAT, list);
        ask.headers.insert(UPLOAD_METADATA, self.metadata.clone());
        let mut turn = 1;
        loop {
            let (error, pause) = match caller.call_once(&ask).await {
                Ok(answer) => match answer.status.as_u16() {
                    200 | 201 => return self.joined(&answer, caller).await,
                    // A gateway's word for a server that may still be at it.
                    502 | 504 => {
                        return self
                            .unsure(parts, &format!("answered {}", answer.status), caller)
                            .await;
                    }
                    // Refused before anything was done.
                    429 | 503 => {
                        let pause = answer.retry_after().unwrap_or(PAUSE * turn);
                        (self.web.refused(&Method::POST, &answer), pause)
                    }
                    _ => return Err(self.web.refused(&Method::POST, &answer)),
                },
                Err(CallOnce::NotSent(error)) => (error, PAUSE * turn),
                Err(CallOnce::Unknown(why)) => return self.unsure(parts, &why, caller).await,
            };
            if turn == TRIES {
                return Err(error);
            }
            turn += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// The server says that the parts are joined.
    async fn joined(&self, answer: &Answer, caller: &Caller) -> Result<Finished, UploadError> {
        match self.web.location(&self.web.base, answer) {
            Ok(url) => self.verify(url, caller).await,
            Err(why) => Ok(Finished {
                place: self.web.base.to_string(),
                note: Some(format!("{} has the file, but {why}", self.web.host())),
                ..Finished::default()
            }),
        }
    }

    /// Looks at what there is now.
    async fn verify(&self, url: Url, caller: &Caller) -> Result<Finished, UploadError> {
        let answer = caller.call(&self.ask(Method::HEAD, url.clone())).await;
        let place = url.to_string();
        let told = match &answer {
            Ok(answer) if answer.status.is_success() => offer::length(&answer.headers),
            _ => None,
        };
        match told {
            Some(length) if length != self.total => Err(UploadError::Corrupt {
                host: self.web.host(),
                why: format!("{place} is {length} bytes long, and {} were sent", self.total),
            }),
            Some(_) => Ok(Finished {
                place,
                ..Finished::default()
            }),
            None => Ok(Finished {
                place,
                note: Some(format!(
                    "{} confirmed the file, but does not say how long it is",
                    self.web.host()
                )),
                ..Finished::default()
            }),
        }
    }

    /// The answer to the request that joins was lost. The protocol has no way to ask for what was joined: only where the
    /// server has taken all parts away is it sure that it was, and asking again could make a second file.
    async fn unsure(&self, parts: &[Upload], why: &str, caller: &Caller) -> Result<Finished, UploadError> {
        let heads = parts.iter().map(|part| self.ask(Method::HEAD, part.url.clone()));
        let answers = caller.call_all(heads.collect(), AT_ONCE).await;
        let gone = |answer: &Result<Answer, UploadError>| {
            let status = answer.as_ref().map(|answer| answer.status);
            matches!(status, Ok(StatusCode::NOT_FOUND | StatusCode::GONE))
        };
        let host = self.web.host();
        if !answers.is_empty() && answers.iter().all(gone) {
            self.forget().await;
            return Ok(Finished {
                place: self.web.base.to_string(),
                note: Some(format!(
                    "{host} did not get to say where the file is ({why}), but it has taken all parts of it away, as it does \
                     when it has joined them"
                )),
                ..Finished::default()
            });
        }
        Err(self.web.senseless(format!(
            "all parts are there, but whether it has joined them is not known ({why}), and tus has no way to ask; look for \
             the file there; where it is missing, the same command again sends nothing twice and has them joined"
        )))
    }

    /// Removes what was begun twice, and forgets what a later run would need. What goes wrong here harms nothing.
    async fn tidy(&self, kept: &[Upload], caller: &Caller) {
        let left = self.remove(&self.uploads.others(kept), caller).await;
        if left > 0 {
            tracing::debug!(
                left,
                "uploads that were begun twice stay until the server removes them"
            );
        }
        self.forget().await;
    }

    /// Removes all that this run and the ones before it have begun.
    pub(super) async fn remove_all(&self, caller: &Caller) -> Result<(), UploadError> {
        let all = self.uploads.others(&[]);
        let left = self.remove(&all, caller).await;
        self.forget().await;
        if left == 0 {
            return Ok(());
        }
        Err(UploadError::Refused {
            host: self.web.host(),
            why: if self.offer.termination {
                format!(
                    "{left} unfinished uploads could not be removed; it removes them itself, sooner or later"
                )
            } else {
                format!(
                    "it lets nobody remove uploads (tus without termination): {left} unfinished ones stay until it does"
                )
            },
        })
    }

    /// Removes these; says how many stay. A request that was broken off may still hold one for a moment.
    async fn remove(&self, uploads: &[Upload], caller: &Caller) -> usize {
        if !self.offer.termination {
            return uploads.len();
        }
        let mut left: Vec<&Upload> = uploads.iter().collect();
        for turn in 1..=TRIES {
            let asks = left
                .iter()
                .map(|upload| self.ask(Method::DELETE, upload.url.clone()));
            let answers = caller.call_all(asks.collect(), AT_ONCE).await;
            let removed = |answer: &Result<Answer, UploadError>| {
                let status = answer.as_ref().map(|answer| answer.status);
                status.is_ok_and(|status| status.is_success() || matches!(status.as_u16(), 404 | 410))
            };
            let mut answers = answers.iter();
            left.retain(|_| !answers.next().is_some_and(removed));
            if left.is_empty() || turn == TRIES {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        left.len()
    }

    async fn forget(&self) {
        let Some(journal) = self.journal.clone() else {
            return;
        };
        let removed = self.source.tasks().blocking(move || journal.remove()).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!("the list of what was sent could not be removed");
        }
    }
}
