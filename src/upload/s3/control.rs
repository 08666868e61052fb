//! What makes, looks at and ends an upload: requests without a file's bytes, over whatever lane works.
//!
//! Invariants: lists are read to their end or to a bound that no list of S3's passes; a refusal that tells a time or a region
//! is answered once with the same request, signed anew.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::header::{CONTENT_LENGTH, ETAG};
use hyper::{Method, StatusCode};

use super::answers::{self, Listed, Page, Upload};
use super::faults::{Asked, Fault, useless};
use super::grid::MAX_NUMBER;
use super::sign::{Operation, Signer};
use crate::upload::UploadError;
use crate::upload::exchange::{Answer, CallOnce, Caller};

/// Pages of a list: 1,000 a page makes twice what S3 can have of parts.
const MAX_PAGES: usize = 20;
/// A time and a region can be learned.
const LESSONS: usize = 2;
/// Attempts at what must not be repeated unseen, each after it was certain that the last one had no effect.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// A service and an object's place in it.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) signer: Signer,
}

/// An object as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) size: Option<u64>,
    pub(super) etag: String,
}

/// An answer that may be a refusal that one can do without.
pub(super) type Heard<T> = Result<Result<T, Fault>, UploadError>;

impl Service {
    /// On whose behalf something is asked.
    pub(super) fn asked<'a>(&'a self, host: &'a str, what: &'static str) -> Asked<'a> {
        Asked {
            host,
            bucket: &self.signer.place.bucket,
            ahead: self.signer.ahead(),
            what,
        }
    }

    /// A refusal that ends the upload.
    pub(super) fn refused(&self, fault: &Fault, what: &'static str) -> UploadError {
        fault.error(self.asked(&self.signer.host(), what))
    }

    /// An answer that makes no sense ends it as well.
    pub(super) fn senseless(&self, what: &str) -> UploadError {
        useless(&self.signer.host(), what)
    }

    /// Begins an upload; its id. `known` are those that there are already.
    pub(super) async fn begin(&self, caller: &Caller, known: &[Upload]) -> Result<String, UploadError> {
        const WHAT: &str = "begin an upload";
        let operation = Operation::object(Method::POST).query("uploads", "");
        let mut last = String::new();
        for attempt in 1..=ATTEMPTS {
            match self.once(caller, &operation).await {
                Ok(Ok(answer)) => {
                    return answers::upload_id(&answer.body)
                        .map_err(|_| self.senseless("it names no upload that was begun"));
                }
                Ok(Err(fault)) if fault.passes() && attempt < ATTEMPTS => last = fault.code,
                Ok(Err(fault)) => return Err(self.refused(&fault, WHAT)),
                Err(CallOnce::NotSent(error)) => return Err(error),
                Err(CallOnce::Unknown(why)) => {
                    last = why;
                    if let Some(id) = self.begun_unseen(caller, known).await? {
                        return Ok(id);
                    }
                }
            }
            tokio::time::sleep(PAUSE * attempt).await;
        }
        Err(self.senseless(&format!("none when asked to {WHAT} ({last})")))
    }

    /// The upload whose beginning was not heard of: one that was not there before and has nothing in it.
    async fn begun_unseen(&self, caller: &Caller, known: &[Upload]) -> Result<Option<String>, UploadError> {
        let Ok(now) = self.uploads(caller).await? else {
            return Ok(None);
        };
        let new = now.into_iter().filter(|upload| !known.contains(upload));
        for upload in new {
            if self
                .parts(caller, &upload.id)
                .await?
                .is_ok_and(|parts| parts.is_empty())
            {
                return Ok(Some(upload.id));
            }
        }
        Ok(None)
    }

    /// The uploads to exactly this object that are not complete, the newest first.
    pub(super) async fn uploads(&self, caller: &Caller) -> Heard<Vec<Upload>> {
        let mut all: Vec<Upload> = Vec::new();
        let mut next: Option<(String, String)> = None;
        for _ in 0..MAX_PAGES {
            let mut operation = Operation {
                object: false,
                ..Operation::object(Method::GET)
            };
            operation = operation
                .query("uploads", "")
                .query("prefix", &self.signer.place.key);
            if let Some((key, id)) = &next {
                operation = operation.query("key-marker", key).query("upload-id-marker", id);
            }
            let answer = match self.call(caller, &operation).await? {
                Ok(answer) => answer,
                Err(fault) => return Ok(Err(fault)),
            };
            let Page { found, next: more } = answers::uploads(&answer.body)
                .map_err(|_| self.senseless("a list of unfinished uploads that is none"))?;
            // A prefix finds longer keys, too.
            all.extend(
                found
                    .into_iter()
                    .filter(|upload| upload.key == self.signer.place.key),
            );
            if more.is_none() || more == next {
                break;
            }
            next = more;
        }
        all.sort_by(|a, b| b.began.cmp(&a.began));
        Ok(Ok(all))
    }

    /// The parts that the service has of an upload, by number.
    pub(super) async fn parts(&self, caller: &Caller, id: &str) -> Heard<Vec<Listed>> {
        let mut all: BTreeMap<u64, Listed> = BTreeMap::new();
        let mut after = 0;
        for _ in 0..MAX_PAGES {
            let mut operation = Operation::object(Method::GET).query("uploadId", id);
            if after > 0 {
                operation = operation.query("part-number-marker", after);
            }
            let answer = match self.call(caller, &operation).await? {
                Ok(answer) => answer,
                Err(fault) => return Ok(Err(fault)),
            };
            let Page { found, next } =
                answers::parts(&answer.body).map_err(|_| self.senseless("a list of parts that is none"))?;
            all.extend(found.into_iter().map(|part| (part.number, part)));
            match next.filter(|next| (after + 1..MAX_NUMBER).contains(next)) {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(Ok(all.into_values().collect()))
    }

    /// The object, as far as it is to be seen.
    pub(super) async fn object(&self, caller: &Caller) -> Heard<Object> {
        let answer = match self.call(caller, &Operation::object(Method::HEAD)).await? {
            Ok(answer) => answer,
            Err(fault) => return Ok(Err(fault)),
        };
        let header = |name| answer.headers.get(name).and_then(|value| value.to_str().ok());
        Ok(Ok(Object {
            size: header(CONTENT_LENGTH).and_then(|text| text.parse().ok()),
            etag: header(ETAG)
                .and_then(|text| answers::etag(text).ok())
                .unwrap_or_default(),
        }))
    }

    /// Removes an upload and its parts, until the service has none of it: a part that was under way may come in after it.
    pub(super) async fn remove(&self, caller: &Caller, id: &str) -> Result<(), UploadError> {
        const WHAT: &str = "remove an unfinished upload";
        let operation = Operation::object(Method::DELETE).query("uploadId", id);
        for attempt in 1..=ATTEMPTS {
            match self.call(caller, &operation).await? {
                Err(fault) if fault.is_no_upload() => return Ok(()),
                Err(fault) if attempt == ATTEMPTS || !fault.passes() => {
                    return Err(self.refused(&fault, WHAT));
                }
                _ => {}
            }
            match self.parts(caller, id).await? {
                Err(fault) if fault.is_no_upload() || fault.status == StatusCode::NOT_FOUND => return Ok(()),
                // Who may not look must believe.
                Err(fault) if fault.is_not_for_us() => return Ok(()),
                _ => tokio::time::sleep(PAUSE * attempt).await,
            }
        }
        Err(self.senseless("that the unfinished upload is still there after it was removed"))
    }

    /// A request that may be repeated.
    pub(super) async fn call(&self, caller: &Caller, operation: &Operation) -> Heard<Answer> {
        let mut lessons = 0;
        loop {
            let signed = self.signer.sign(operation)?;
            let answer = caller.call(&signed.ask).await?;
            if answer.status.is_success() {
                return Ok(Ok(answer));
            }
            let fault = Fault::of(&answer);
            lessons += 1;
            if lessons > LESSONS || !self.signer.learn(&signed, &answer, &fault) {
                return Ok(Err(fault));
            }
        }
    }

    /// A request that must not be repeated where it may have been heard. A refusal was heard and had no effect.
    pub(super) async fn once(
        &self,
        caller: &Caller,
        operation: &Operation,
    ) -> Result<Result<Answer, Fault>, CallOnce> {
        let mut lessons = 0;
        loop {
            let signed = self.signer.sign(operation).map_err(CallOnce::NotSent)?;
            let answer = caller.call_once(&signed.ask).await?;
            if answer.status.is_success() {
                return Ok(Ok(answer));
            }
            let fault = Fault::of(&answer);
            lessons += 1;
            if lessons > LESSONS || !self.signer.learn(&signed, &answer, &fault) {
                return Ok(Err(fault));
            }
        }
    }
}
