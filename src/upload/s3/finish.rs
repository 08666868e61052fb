//! All parts are there: made an object of, exactly once, and looked at.
//!
//! Invariants: only parts that make the whole file are put together; the request that does it is only sent again where the
//! service was seen to have the upload still, so that it had no effect; success is only said of an object that was seen to
//! have the right length and, where it tells, the right ETag (or that these credentials may not look at).

use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};

use super::S3;
use super::answers;
use super::books::{Entry, different, is_etag_of};
use super::control::Object;
use super::faults::Fault;
use super::grid::Grid;
use super::sign::Operation;
use crate::upload::exchange::{CallOnce, Caller, Content};
use crate::upload::{Finished, UploadError};

/// Attempts at completing: each is certain not to have had an effect before the next.
const ATTEMPTS: u32 = 5;
/// Looks at what became of a completion whose answer was not heard: some services join the parts for minutes.
const LOOKS: u32 = 30;
/// Between them, growing up to [`MAX_PAUSE`]: 2 minutes in all.
const PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(5);
const WHAT: &str = "complete the upload";

/// What became of a completion that was not answered.
enum Fate {
    Done,
    /// The upload is still there: it had no effect.
    Undone,
}

impl S3 {
    pub(super) async fn finish_all(&self, caller: &Caller) -> Result<Finished, UploadError> {
        let entries = self.books.whole(self.grid.total());
        let entries = match (entries, &self.grid) {
            // An empty file has no bytes that a part could have.
            (_, Grid::Whole { total: 0 }) => Vec::new(),
            (Some(entries), _) => entries,
            (None, _) => {
                return Err(UploadError::Task(
                    "parts are missing that were counted".to_owned(),
                ));
            }
        };
        let note = match &self.upload {
            None => self.look_at_whole(caller, &entries).await?,
            Some(id) => self.complete(caller, id, entries).await?,
        };
        Ok(Finished {
            place: self.service.signer.place.shown(),
            note,
            ..Finished::default()
        })
    }

    async fn complete(
        &self,
        caller: &Caller,
        id: &str,
        mut entries: Vec<Entry>,
    ) -> Result<Option<String>, UploadError> {
        if self.books.doubtful() {
            entries = self.mend(caller, id, entries).await?;
        }
        // What was there before must not be taken for what is there after.
        let before = if self.books.all_sure() {
            None
        } else {
            self.service.object(caller).await?.ok()
        };
        self.put_together(caller, id, &entries, before.as_ref()).await?;
        self.look_at_joined(caller, &entries).await
    }

    /// Sends the parts again that the service has otherwise than they should be, as long as there are some.
    async fn mend(
        &self,
        caller: &Caller,
        id: &str,
        mut entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, UploadError> {
        for _ in 0..ATTEMPTS {
            let listed = match self.service.parts(caller, id).await? {
                Ok(listed) => listed,
                // Who may not look must believe: the service compares the ETags itself.
                Err(fault) if fault.is_not_for_us() && self.books.all_sure() => return Ok(entries),
                Err(fault) => return Err(self.service.refused(&fault, "list the upload's parts")),
            };
            let wrong = different(&entries, &listed);
            if wrong.is_empty() {
                return Ok(entries);
            }
            for entry in wrong {
                tracing::debug!(
                    number = entry.number,
                    "a part is not what was sent, and is sent again"
                );
                self.send_again(caller, &entry).await?;
            }
            entries = self.books.whole(self.grid.total()).unwrap_or(entries);
        }
        Err(UploadError::Corrupt {
            host: self.service.signer.host(),
            why: "its list of parts is not what was sent, also after they were sent again".to_owned(),
        })
    }

    async fn send_again(&self, caller: &Caller, entry: &Entry) -> Result<(), UploadError> {
        let md5 = self.md5(entry.range).await?;
        let answer = self.service.call(caller, &self.storing(entry.range, md5)).await?;
        let answer = answer.map_err(|fault| self.service.refused(&fault, "store a part of an upload"))?;
        let entry = self
            .entry(entry.range, md5, &answer)
            .map_err(|_| UploadError::Corrupt {
                host: self.service.signer.host(),
                why: format!("bytes {} have another ETag than their MD5", entry.range),
            })?;
        self.books.enter(entry);
        Ok(())
    }

    async fn put_together(
        &self,
        caller: &Caller,
        id: &str,
        entries: &[Entry],
        before: Option<&Object>,
    ) -> Result<(), UploadError> {
        let body = answers::completion(entries.iter().map(|entry| (entry.number, entry.etag.as_str())));
        let mut operation = Operation::object(Method::POST)
            .query("uploadId", id)
            .content(Content::Bytes(Bytes::from(body)));
        operation = operation.header("content-type", "application/xml".to_owned());
        let mut last = "nothing was heard".to_owned();
        for attempt in 1..=ATTEMPTS {
            let unheard = match self.service.once(caller, &operation).await {
                Ok(Ok(answer)) => match answers::completed(&answer.body) {
                    Ok(Ok(_)) => return Ok(()),
                    Ok(Err(said)) => Err(Fault::said(StatusCode::OK, said)),
                    Err(_) => Ok("its answer makes no sense".to_owned()),
                },
                Ok(Err(fault)) => Err(fault),
                Err(CallOnce::Unknown(why)) => Ok(why),
                Err(CallOnce::NotSent(error)) if attempt == ATTEMPTS => return Err(error),
                Err(CallOnce::NotSent(error)) => {
                    last = error.to_string();
                    tokio::time::sleep(PAUSE * attempt).await;
                    continue;
                }
            };
            last = match unheard {
                Ok(why) => why,
                Err(fault) if fault.passes() || fault.is_no_upload() => fault
                    .error(self.service.asked(&self.service.signer.host(), WHAT))
                    .to_string(),
                Err(fault) => return Err(self.service.refused(&fault, WHAT)),
            };
            tracing::debug!(why = last, "it is not known whether the upload is complete");
            match self.fate(caller, id, entries, before).await? {
                Fate::Done => return Ok(()),
                Fate::Undone => tokio::time::sleep(PAUSE * attempt).await,
            }
        }
        Err(self.service.senseless(&format!(
            "it did not {WHAT}, asked {ATTEMPTS} times ({last}); run the same command again"
        )))
    }

    /// Looks until it is certain what became of a completion.
    async fn fate(
        &self,
        caller: &Caller,
        id: &str,
        entries: &[Entry],
        before: Option<&Object>,
    ) -> Result<Fate, UploadError> {
        let mut pause = PAUSE;
        for _ in 0..LOOKS {
            let object = self.service.object(caller).await?;
            let is_it = object
                .as_ref()
                .is_ok_and(|object| self.is_ours(object, entries, before));
            match self.service.parts(caller, id).await? {
                _ if is_it && self.books.all_sure() => return Ok(Fate::Done),
                Ok(_) => return Ok(Fate::Undone),
                Err(fault) if fault.is_no_upload() || fault.status == StatusCode::NOT_FOUND => {
                    if is_it {
                        return Ok(Fate::Done);
                    }
                }
                Err(fault) if fault.is_not_for_us() => {
                    return Err(self.service.senseless(
                        "none when asked to complete the upload, and these credentials may not look what became of it; \
                         look whether the object is there, else run the same command again",
                    ));
                }
                Err(fault) if fault.passes() => {}
                Err(fault) => return Err(self.service.refused(&fault, "list the upload's parts")),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        Err(self.service.senseless(
            "none when asked to complete the upload; the upload is gone, and the object is not there, or another one: somebody \
             else removed it; run the same command again",
        ))
    }

    /// Whether an object is the one that these parts make.
    fn is_ours(&self, object: &Object, entries: &[Entry], before: Option<&Object>) -> bool {
        if object.size.is_some_and(|size| size != self.grid.total()) {
            return false;
        }
        if self.books.all_sure() {
            is_etag_of(&object.etag, entries) == Some(true)
        } else {
            before.is_none_or(|before| before.etag != object.etag)
        }
    }

    /// That the object is there, with the right length and ETag.
    async fn look_at_joined(
        &self,
        caller: &Caller,
        entries: &[Entry],
    ) -> Result<Option<String>, UploadError> {
        self.look(caller, |object| {
            let told = if self.books.all_sure() {
                is_etag_of(&object.etag, entries)
            } else {
                None
            };
            told != Some(false)
        })
        .await
    }

    async fn look_at_whole(&self, caller: &Caller, entries: &[Entry]) -> Result<Option<String>, UploadError> {
        self.look(caller, |object| match entries.first() {
            Some(entry) if entry.sure => answers::md5_of(&object.etag).is_none_or(|md5| md5 == entry.md5),
            _ => true,
        })
        .await
    }

    async fn look(
        &self,
        caller: &Caller,
        right: impl Fn(&Object) -> bool,
    ) -> Result<Option<String>, UploadError> {
        let other = |why: String| UploadError::Corrupt {
            host: self.service.signer.host(),
            why,
        };
        let mut seen = self.service.object(caller).await?;
        for attempt in 1..ATTEMPTS {
            // Not every service shows at once what it has.
            if !matches!(&seen, Err(fault) if fault.status == StatusCode::NOT_FOUND) {
                break;
            }
            tokio::time::sleep(PAUSE * attempt).await;
            seen = self.service.object(caller).await?;
        }
        match seen {
            Ok(object) if object.size.is_some_and(|size| size != self.grid.total()) => Err(other(format!(
                "the object has {} bytes, and the file {}",
                object.size.unwrap_or_default(),
                self.grid.total()
            ))),
            Ok(object) if !right(&object) => Err(other(format!(
                "the object's ETag {} is not of what was sent",
                answers::shown(&object.etag)
            ))),
            Ok(_) => Ok(None),
            Err(fault) if fault.is_not_for_us() => Ok(Some(
                "these credentials may not look at the object, so only the service's word stands for it"
                    .to_owned(),
            )),
            Err(fault) if fault.status == StatusCode::NOT_FOUND => Err(other(
                "it says that the upload is complete, and the object is not there".to_owned(),
            )),
            Err(fault) => Err(self.service.refused(&fault, "look at the object")),
        }
    }
}
