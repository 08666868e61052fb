//! tus 1.0: one file, over all lanes where the server can join uploads (`concatenation`), over one where it can't.
//!
//! A part is an upload of its own at the server, filled by one request or, where checksums are compared, by several; the
//! last request joins them. A request that broke is continued where the server says it is, and so is an upload of an
//! earlier run that the journal names.
//!
//! Invariants: only what the server confirmed, as long as it should be, is joined; the request that joins is sent once, and
//! again only where the server certainly did not carry it out; nothing is asked of another origin.

mod finish;
mod journal;
mod offer;
mod send;
mod uploads;

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use url::Url;

use super::error::UploadError;
use super::exchange::{Answer, Ask, Caller, Line, Trouble};
use super::source::Source;
use super::web::Web;
use super::{Finished, Item, Job, Opened, Target};
use crate::stripe::{Part, Work};
use crate::types::{ByteRange, ByteSize, RangeSet};
use journal::{Entry, Journal, JournalError};
use offer::{NoTus, Offer, VERSION};
use uploads::{Upload, Uploads};

/// Parts begin at multiples of it: whole blocks of any disk.
const GRAIN: u64 = 64 << 10;
/// Before a part's bytes goes one round trip, which begins its upload: at 12 Mbit/s and 50 ms a thirtieth of this one's time.
const LEAST: u64 = 2 << 20;
/// The request that joins names all parts in one header, and servers commonly take 8 KiB of one: so many names of 100
/// characters fit.
const MAX_PARTS: u64 = 64;
/// What is lost where a part can't be continued.
const MOST: u64 = 64 << 20;
/// Parts of a length that the user wants: where a server takes a header for so many is the user's to know.
const MAX_WISHED: u64 = 500;
/// Small requests at a time, over all lanes.
const AT_ONCE: usize = 8;

/// What the last letters of an address's scheme stand behind.
const PREFIX: &str = "tus+";

const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_CONCAT: HeaderName = HeaderName::from_static("upload-concat");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_CHECKSUM: HeaderName = HeaderName::from_static("upload-checksum");
const OFFSET_STREAM: HeaderValue = HeaderValue::from_static("application/offset+octet-stream");

/// Uploads of one file to a tus server.
struct Tus {
    web: Web,
    offer: Offer,
    source: Arc<Source>,
    total: u64,
    /// The file's name, as the server is told it.
    metadata: HeaderValue,
    /// Whether parts are uploads of their own, to be joined.
    parts: bool,
    uploads: Uploads,
    /// `None`: nothing is remembered.
    journal: Option<Arc<Journal>>,
}

impl fmt::Debug for Tus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tus")
            .field("base", &self.web.base.as_str())
            .field("offer", &self.offer)
            .field("uploads", &self.uploads)
            .finish_non_exhaustive()
    }
}

/// Asks the server what it can and what it has of the file already.
pub(super) async fn open(job: &Job, source: &Arc<Source>, caller: &Caller) -> Result<Opened, UploadError> {
    let web = Web::new(&job.target, PREFIX, &job.headers)?;
    let item = only(source)?;
    let total = item.size;
    let offer = ask_offer(&web, caller).await?;
    let host = web.host();
    if let Some(max) = offer.max.filter(|max| total > *max) {
        let why = format!(
            "it takes at most {} and `{}` has {}",
            ByteSize(max),
            item.name,
            ByteSize(total)
        );
        return Err(UploadError::Refused { host, why });
    }
    if let Some(size) = job
        .part_size
        .filter(|size| total.div_ceil((*size).max(1)) > MAX_WISHED)
    {
        return Err(UploadError::Usage(format!(
            "parts of {} would be more than {MAX_WISHED}, and tus names all of them in one header: give a larger size",
            ByteSize(size)
        )));
    }
    // One part would be joined with nothing.
    let parts = offer.concatenation && total > LEAST;
    let (journal, known, note) = open_journal(job, &web, item, parts, source).await?;
    let one_line = (!offer.concatenation && total > LEAST).then(|| {
        format!("{host} cannot join parts (tus without concatenation), so only one line is used at a time")
    });
    let tus = Tus {
        metadata: metadata(item)?,
        web,
        offer,
        source: source.clone(),
        total,
        parts,
        uploads: Uploads::default(),
        journal: journal.map(Arc::new),
    };
    let done = if job.abort {
        // To be removed, whatever the server has of them.
        for upload in tus.named(&known) {
            tus.uploads.found(upload, false);
        }
        RangeSet::new()
    } else {
        tus.look(&known, caller).await?
    };
    let resumed = done.iter().map(|range| range.len()).sum();
    let notes: Vec<String> = one_line.into_iter().chain(note).collect();
    Ok(Opened {
        work: tus.work(job.part_size, done),
        target: Arc::new(tus),
        resumed,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    })
}

/// See [`door`](super::door).
#[cfg(any(fuzzing, test))]
pub(super) fn read_headers(headers: &hyper::HeaderMap) -> (bool, Option<u64>, Option<u64>) {
    let usable = Offer::read(headers).is_ok();
    (usable, offer::offset(headers), offer::length(headers))
}

/// See [`door`](super::door).
#[cfg(any(fuzzing, test))]
pub(super) fn read_journal(text: &str) -> Vec<(u64, u64, String)> {
    let entries = journal::parse(text).into_iter();
    entries
        .map(|entry| (entry.range.start, entry.range.end, entry.name))
        .collect()
}

/// tus knows files, and no directories.
fn only(source: &Source) -> Result<&Item, UploadError> {
    match source.items() {
        [item] if !source.listed().directory => Ok(item),
        _ => Err(UploadError::Usage(
            "tus takes one file at a time: send a directory by PUT (https://…/dir/), or as an archive"
                .to_owned(),
        )),
    }
}

async fn ask_offer(web: &Web, caller: &Caller) -> Result<Offer, UploadError> {
    let ask = web.ask(Method::OPTIONS, web.base.clone());
    let answer = caller.call(&ask).await?;
    let host = web.host();
    match Offer::read(&answer.headers) {
        Ok(offer) if offer.creation => Ok(offer),
        Ok(_) => Err(UploadError::Refused {
            host,
            why: "its tus takes no new uploads (no extension `creation`): check the address".to_owned(),
        }),
        Err(NoTus::Versions(versions)) => Err(web.senseless(format!(
            "it speaks tus {} and not {VERSION}",
            super::web::shown(&versions)
        ))),
        Err(NoTus::Silent) if answer.status.is_success() => Err(web.senseless(
            "it does not speak tus there (no Tus-Version in its answer to OPTIONS): check the address, or leave \
             `tus+` out for a plain PUT",
        )),
        Err(NoTus::Silent) => Err(web.refused(&Method::OPTIONS, &answer)),
    }
}

/// The journal, what it knows, and what the user should know where there is none.
async fn open_journal(
    job: &Job,
    web: &Web,
    item: &Item,
    parts: bool,
    source: &Source,
) -> Result<(Option<Journal>, Vec<Entry>, Option<String>), UploadError> {
    let Some(dir) = job.journal.clone() else {
        return Ok((None, Vec::new(), None));
    };
    let key = journal::key(&web.base, item, if parts { "parts" } else { "whole" });
    let opened = source.tasks().blocking(move || Journal::open(&dir, &key)).await;
    match opened.map_err(|error| UploadError::Task(error.to_string()))? {
        Ok((journal, known)) => Ok((Some(journal), known, None)),
        Err(error @ JournalError::Busy) => Err(UploadError::Usage(format!(
            "`{}` to {}: {error}; wait for it or stop it",
            item.name, web.base
        ))),
        Err(JournalError::Io(error)) => {
            let note = format!("a later run could not go on where this one stops: {error}");
            Ok((None, Vec::new(), Some(note)))
        }
    }
}

/// The file's name for the server.
fn metadata(item: &Item) -> Result<HeaderValue, UploadError> {
    let text = format!("filename {}", BASE64_STANDARD.encode(&item.name));
    HeaderValue::try_from(text).map_err(|error| UploadError::Task(error.to_string()))
}

impl Tus {
    /// A request with the protocol's version.
    fn ask(&self, method: Method, url: Url) -> Ask {
        let mut ask = self.web.ask(method, url);
        ask.headers
            .insert(TUS_RESUMABLE, HeaderValue::from_static(VERSION));
        ask
    }

    fn work(&self, part_size: Option<u64>, done: RangeSet) -> Work {
        if !self.parts {
            let whole = done.contains(ByteRange::new(0, self.total)) && self.total > 0;
            return Work::Fixed {
                sizes: vec![self.total],
                done: whole.then_some(0).into_iter().collect(),
            };
        }
        let few = self.total.div_ceil(MAX_PARTS).next_multiple_of(GRAIN);
        let least = LEAST.max(few);
        let (grain, least, most) = match part_size {
            Some(size) => (size, size, size),
            None => (GRAIN, least, MOST.max(2 * least)),
        };
        Work::Carved {
            total: self.total,
            grain,
            least,
            most,
            done,
        }
    }

    /// What a journal names, where it can be of this upload.
    fn named(&self, known: &[Entry]) -> Vec<Upload> {
        let whole = ByteRange::new(0, self.total);
        let fits = |entry: &&Entry| whole.contains(entry.range) && (self.parts || entry.range == whole);
        let upload = |entry: &Entry| {
            let url = self.web.resolve(&self.web.base, &entry.name).ok()?;
            Some(Upload {
                range: entry.range,
                url,
                name: entry.name.clone(),
            })
        };
        known.iter().filter(fits).filter_map(upload).collect()
    }

    /// Asks the server what it has of the uploads of an earlier run; says what is whole.
    async fn look(&self, known: &[Entry], caller: &Caller) -> Result<RangeSet, UploadError> {
        let named = self.named(known);
        let heads = named
            .iter()
            .map(|upload| self.ask(Method::HEAD, upload.url.clone()));
        let answers = caller.call_all(heads.collect(), AT_ONCE).await;
        let (mut done, mut kept) = (RangeSet::new(), Vec::new());
        for (upload, answer) in named.into_iter().zip(answers) {
            let answer = answer?;
            let has = match self.standing(&upload, &answer) {
                Standing::Has(offset) => offset,
                Standing::Locked => 0,
                Standing::Gone => continue,
            };
            let range = upload.range;
            // What lies in what is whole already was sent twice, and is removed at the end.
            let whole = has == range.len() && done.overlap(range) == 0;
            if whole {
                done.insert(range);
            }
            kept.push(Entry {
                range,
                name: upload.name.clone(),
            });
            self.uploads.found(upload, whole);
        }
        if let Some(journal) = &self.journal
            && kept.len() < known.len()
        {
            let journal = journal.clone();
            let replaced = self.source.tasks().blocking(move || journal.replace(&kept)).await;
            if !matches!(replaced, Ok(Ok(()))) {
                tracing::warn!("the list of what was sent could not be written anew");
            }
        }
        Ok(done)
    }

    /// What the answer to `HEAD` says of an upload.
    fn standing(&self, upload: &Upload, answer: &Answer) -> Standing {
        let length = upload.range.len();
        match answer.status {
            StatusCode::OK | StatusCode::NO_CONTENT => {
                let another = offer::length(&answer.headers).is_some_and(|told| told != length);
                match offer::offset(&answer.headers) {
                    Some(offset) if offset <= length && !another => Standing::Has(offset),
                    _ => Standing::Gone,
                }
            }
            StatusCode::LOCKED => Standing::Locked,
            _ => Standing::Gone,
        }
    }

    /// What a server that took a new upload calls it.
    fn upload(&self, range: ByteRange, answer: &Answer) -> Result<Upload, UploadError> {
        let url = self
            .web
            .location(&self.web.base, answer)
            .map_err(|why| self.web.senseless(format!("it took a new upload, but {why}")))?;
        let told = answer.headers.get(hyper::header::LOCATION);
        let absolute = told.is_some_and(|value| value.as_bytes().starts_with(b"http"));
        let name = if absolute {
            url.to_string()
        } else {
            url[url::Position::BeforePath..].to_owned()
        };
        Ok(Upload { range, url, name })
    }
}

/// Where an upload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The server has so many bytes of it.
    Has(u64),
    /// Another request is still at it, as the server sees it.
    Locked,
    /// It is no more, or is another one.
    Gone,
}

impl Target for Tus {
    fn send<'a>(&'a self, part: Part, line: &'a Line) -> BoxFuture<'a, Result<(), Trouble>> {
        self.send_part(part, line).boxed()
    }

    fn finish<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Finished, UploadError>> {
        self.complete(caller).boxed()
    }

    fn abort<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<(), UploadError>> {
        self.remove_all(caller).boxed()
    }
}
