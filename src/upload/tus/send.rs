//! One part on its way: an upload for it, begun or taken up again, and the requests that fill it.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};

use super::offer;
use super::uploads::{Held, Upload};
use super::{
    Entry, OFFSET_STREAM, Standing, Tus, UPLOAD_CHECKSUM, UPLOAD_CONCAT, UPLOAD_LENGTH, UPLOAD_METADATA,
    UPLOAD_OFFSET,
};
use crate::stripe::Part;
use crate::types::ByteRange;
use crate::upload::error::UploadError;
use crate::upload::exchange::{Answer, Ask, Content, Line, Trouble};

/// With a checksum a request is kept whole or not at all, so what a break costs is bounded; a round trip in so many bytes is
/// nothing.
const CHECKED: u64 = 16 << 20;
/// So much comes with the request that begins an upload, where the server takes it so: a round trip less. Of what is longer
/// nothing could be continued where that request breaks, as its name is not known then.
const AT_ONCE: u64 = 256 << 10;
/// How often a checksum may differ: a server or lane that corrupts is not cured by a fourth time.
const MAX_MISMATCHES: u32 = 3;
/// How often a part's requests may break on one lane and be continued there.
const MAX_BREAKS: u32 = 3;
/// How often a part may be begun anew by one worker, because the server lost it.
const MAX_BEGUN: u32 = 3;
/// How often the server may be found elsewhere than it was thought, without having more.
const MAX_ASTRAY: u32 = 5;
/// Between looks at an upload that the server thinks somebody else sends to (a connection that broke, mostly), growing.
const LOCKED: Duration = Duration::from_millis(500);
/// Before the line's only user is looked for again, where one line is all that can be used.
const TAKEN: Duration = Duration::from_secs(5);

/// How filling an upload ended.
enum Filled {
    Whole,
    /// The server has it no more.
    Gone,
    /// It is there, but nothing can be sent to it.
    Stuck,
}

/// What of an upload is not there yet.
struct Filling<'a> {
    upload: &'a Upload,
    part: Part,
    /// How much the server has.
    at: u64,
    mismatches: u32,
    breaks: u32,
    astray: u32,
}

impl Tus {
    pub(super) async fn send_part(&self, part: Part, line: &Line) -> Result<(), Trouble> {
        if !self.parts && self.uploads.is_busy(part.range) {
            return Err(Trouble::Refused {
                retry_after: Some(TAKEN),
                why: "one line is at work, and the server takes no more".to_owned(),
            });
        }
        for _ in 0..MAX_BEGUN {
            let (held, at) = match self.uploads.take(part.range) {
                Some(held) => match self.look_at(&held.upload, line).await? {
                    Standing::Has(at) => (held, at),
                    Standing::Gone => {
                        held.gone();
                        continue;
                    }
                    Standing::Locked => {
                        held.abandon();
                        continue;
                    }
                },
                None => self.begin(part, line).await?,
            };
            let filling = Filling {
                upload: &held.upload,
                part,
                at,
                mismatches: 0,
                breaks: 0,
                astray: 0,
            };
            match self.fill(filling, line).await? {
                Filled::Whole => {
                    held.whole();
                    return Ok(());
                }
                Filled::Gone => held.gone(),
                Filled::Stuck => held.abandon(),
            }
        }
        let host = self.web.host();
        Err(Trouble::Origin(format!(
            "{host} lost an upload {MAX_BEGUN} times"
        )))
    }

    /// Begins an upload for a part; what is small comes with it.
    async fn begin(&self, part: Part, line: &Line) -> Result<(Held, u64), Trouble> {
        let range = part.range;
        let mut ask = self.ask(Method::POST, self.web.base.clone());
        ask.headers.insert(UPLOAD_LENGTH, HeaderValue::from(range.len()));
        if self.parts {
            ask.headers
                .insert(UPLOAD_CONCAT, HeaderValue::from_static("partial"));
        } else {
            ask.headers.insert(UPLOAD_METADATA, self.metadata.clone());
        }
        let with_content = self.offer.with_upload && !range.is_empty() && range.len() <= AT_ONCE;
        if with_content {
            self.put_content(&mut ask, part).await?;
        }
        let mut answer = line.exchange(&ask).await?;
        for _ in 1..MAX_MISMATCHES {
            if !is_mismatch(&answer) {
                break;
            }
            answer = line.exchange(&ask).await?;
        }
        if is_mismatch(&answer) {
            return Err(Trouble::Fatal(self.corrupt(range)));
        }
        if !matches!(answer.status, StatusCode::CREATED | StatusCode::OK) {
            return Err(Trouble::Fatal(self.web.refused(&Method::POST, &answer)));
        }
        let upload = self.upload(range, &answer).map_err(Trouble::Fatal)?;
        let at = if with_content {
            offer::offset(&answer.headers).unwrap_or_default()
        } else {
            0
        };
        if at > range.len() {
            return Err(Trouble::Fatal(self.web.senseless("it has more than it was sent")));
        }
        if at > 0 {
            line.stored(at);
        }
        self.remember(&upload);
        Ok((self.uploads.begun(upload), at))
    }

    /// Writes down that an upload was begun. Nothing waits for it: all that hangs on it is what a later run may spare.
    fn remember(&self, upload: &Upload) {
        let Some(journal) = self.journal.clone() else {
            return;
        };
        let entry = Entry {
            range: upload.range,
            name: upload.name.clone(),
        };
        drop(self.source.tasks().blocking(move || {
            if let Err(error) = journal.add(&entry) {
                tracing::warn!(%error, "what was begun could not be written down");
            }
        }));
    }

    /// Sends what is missing of an upload.
    async fn fill(&self, mut filling: Filling<'_>, line: &Line) -> Result<Filled, Trouble> {
        let length = filling.part.range.len();
        while filling.at < length {
            let mut ask = self.ask(Method::PATCH, filling.upload.url.clone());
            ask.headers.insert(UPLOAD_OFFSET, HeaderValue::from(filling.at));
            let piece = self.piece(filling.part, filling.at);
            self.put_content(&mut ask, piece).await?;
            let answer = match line.exchange(&ask).await {
                Ok(answer) => answer,
                Err(Trouble::Lane(why)) if filling.breaks < MAX_BREAKS => {
                    filling.breaks += 1;
                    // Where the lane carries not even this, it has failed.
                    let looked = self.look_at(filling.upload, line).await;
                    match looked.map_err(|_| Trouble::Lane(why))? {
                        Standing::Has(at) => filling.found(at, line),
                        Standing::Gone => return Ok(Filled::Gone),
                        Standing::Locked => return Ok(Filled::Stuck),
                    }
                    continue;
                }
                Err(other) => return Err(other),
            };
            if let Some(end) = self.judge(&mut filling, piece.range.len(), &answer, line).await? {
                return Ok(end);
            }
        }
        Ok(Filled::Whole)
    }

    /// What an answer to `PATCH` means. `None`: on with it.
    async fn judge(
        &self,
        filling: &mut Filling<'_>,
        sent: u64,
        answer: &Answer,
        line: &Line,
    ) -> Result<Option<Filled>, Trouble> {
        match answer.status.as_u16() {
            200 | 204 => {
                let now = offer::offset(&answer.headers)
                    .filter(|now| (filling.at..=filling.at + sent).contains(now))
                    .ok_or_else(|| {
                        let why = format!(
                            "after {sent} bytes at {} it does not say that it has them (Upload-Offset)",
                            filling.at
                        );
                        Trouble::Fatal(self.web.senseless(why))
                    })?;
                if now == filling.at {
                    filling.astray += 1;
                }
                filling.found(now, line);
            }
            // 403: of an upload that is whole; a request may have got through whose answer did not, and was sent again.
            403 | 409 | 423 => {
                let before = filling.at;
                filling.astray += 1;
                match self.look_at(filling.upload, line).await? {
                    Standing::Has(at) => filling.found(at, line),
                    Standing::Gone => return Ok(Some(Filled::Gone)),
                    Standing::Locked => return Ok(Some(Filled::Stuck)),
                }
                if answer.status == StatusCode::FORBIDDEN && filling.at == before {
                    return Err(Trouble::Fatal(self.web.refused(&Method::PATCH, answer)));
                }
                if filling.astray > 1 {
                    tokio::time::sleep(LOCKED * filling.astray).await;
                }
            }
            404 | 410 => return Ok(Some(Filled::Gone)),
            460 => {
                filling.mismatches += 1;
                if filling.mismatches >= MAX_MISMATCHES {
                    return Err(Trouble::Fatal(self.corrupt(filling.part.range)));
                }
            }
            _ => return Err(Trouble::Fatal(self.web.refused(&Method::PATCH, answer))),
        }
        Ok((filling.astray >= MAX_ASTRAY).then_some(Filled::Stuck))
    }

    /// Asks how much the server has of an upload; waits a little where a request of before is still at it.
    async fn look_at(&self, upload: &Upload, line: &Line) -> Result<Standing, Trouble> {
        let ask = self.ask(Method::HEAD, upload.url.clone());
        for turn in 1..=4 {
            let answer = line.exchange(&ask).await?;
            match self.standing(upload, &answer) {
                Standing::Locked => tokio::time::sleep(LOCKED * turn).await,
                other => return Ok(other),
            }
        }
        Ok(Standing::Locked)
    }

    /// The next piece of a part that one request brings, as a part of the file.
    fn piece(&self, part: Part, at: u64) -> Part {
        let start = part.range.start + at;
        let left = part.range.end - start;
        let length = if self.offer.checksum.is_some() {
            left.min(CHECKED)
        } else {
            left
        };
        Part {
            item: part.item,
            range: ByteRange::new(start, start + length),
        }
    }

    /// Puts a piece of the file into a request, with its checksum where the server compares it.
    async fn put_content(&self, ask: &mut Ask, piece: Part) -> Result<(), Trouble> {
        ask.headers.insert(CONTENT_TYPE, OFFSET_STREAM);
        if let Some(kind) = self.offer.checksum {
            let sum = self.source.digest(&piece, kind).await.map_err(Trouble::Fatal)?;
            let text = format!("{} {}", offer::name_of(kind), BASE64_STANDARD.encode(sum));
            let value = HeaderValue::try_from(text);
            let value = value.map_err(|error| Trouble::Fatal(UploadError::Task(error.to_string())))?;
            ask.headers.insert(UPLOAD_CHECKSUM, value);
        }
        ask.content = Content::Part(piece);
        Ok(())
    }

    fn corrupt(&self, range: ByteRange) -> UploadError {
        UploadError::Corrupt {
            host: self.web.host(),
            why: format!("the checksum of bytes {range} differed {MAX_MISMATCHES} times"),
        }
    }
}

impl Filling<'_> {
    /// The server has so many bytes.
    fn found(&mut self, at: u64, line: &Line) {
        if at > self.at {
            line.stored(at - self.at);
            self.astray = 0;
        }
        self.at = at;
    }
}

fn is_mismatch(answer: &Answer) -> bool {
    answer.status.as_u16() == 460
}
