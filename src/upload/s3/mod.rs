//! Uploads to S3 and what speaks its language: multipart, its parts signed here, so that lenders see TLS and no key.
//!
//! There is no state but the service's own: an unfinished upload is found in its lists and continued where its parts are what
//! the file is, whatever device sent them.
//!
//! Invariants:
//! - An object is only completed of parts whose MD5 the service confirmed (or, where it encrypts with keys of somebody's, whose
//!   length), and only by one request that had an effect (SEC-B11, HTTP-32).
//! - No secret leaves this module but as a signature.
//! - All that comes from a service is bounded, and shown to people only after it was cleaned.

mod answers;
mod books;
mod control;
pub mod credentials;
mod faults;
mod finish;
mod grid;
mod place;
mod resume;
mod send;
mod sign;
mod xml;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use answers::Upload;
use books::Books;
use control::Service;
use grid::Grid;
use place::Place;
use resume::Found;
use sign::Signer;

use super::exchange::{Caller, Line, Trouble};
use super::source::Source;
use super::{Finished, Job, Opened, Target, UploadError};
use crate::stripe::{Part, Work};
use crate::types::ByteRange;

/// An object on its way.
#[derive(Debug)]
struct S3 {
    service: Service,
    source: Arc<Source>,
    grid: Grid,
    /// Its upload; `None`: it goes in one request.
    upload: Option<String>,
    books: Books,
}

/// Prepares the upload of the source's file: looks what the service has of it, and begins what is not begun.
///
/// # Errors
/// What cannot be: more than one file, a file too large, no such bucket, no rights.
pub(super) async fn open(job: &Job, source: &Arc<Source>, caller: &Caller) -> Result<Opened, UploadError> {
    let options = job
        .s3
        .clone()
        .ok_or_else(|| UploadError::Usage("no S3 credentials were given".to_owned()))?;
    let [item] = source.items() else {
        return Err(UploadError::Usage(
            "S3 gets one file at a time; give a file, or send a directory to a server by https://".to_owned(),
        ));
    };
    if source.listed().directory {
        return Err(UploadError::Usage(
            "S3 gets one file at a time; a directory goes to a server by https://".to_owned(),
        ));
    }
    let place = Place::new(&job.target, &item.name, &options)?;
    let habits = place.habits();
    let service = Service {
        signer: Signer::new(place, options),
    };
    if job.abort {
        return abort_all(service, caller).await;
    }
    let grid = Grid::new(item.size, job.part_size, habits.equal, habits.limit);
    let grid = grid.map_err(|why| UploadError::Usage(format!("`{}`: {why}", item.name)))?;
    if matches!(grid, Grid::Whole { .. }) {
        return Ok(opened(service, source, grid, None, None));
    }
    let (uploads, note) = unfinished(&service, caller).await?;
    let found = match resume::find(&service, caller, &grid, source, &uploads).await? {
        Some(found) => found,
        None => Found {
            id: service.begin(caller, &uploads).await?,
            ..Found::default()
        },
    };
    Ok(opened(service, source, grid, Some(found), note))
}

fn opened(
    service: Service,
    source: &Arc<Source>,
    grid: Grid,
    found: Option<Found>,
    note: Option<String>,
) -> Opened {
    let books = Books::default();
    let mut done: Vec<ByteRange> = Vec::new();
    let upload = found.map(|found| {
        for entry in found.entries {
            done.push(entry.range);
            books.enter(entry);
        }
        found.id
    });
    Opened {
        work: grid.work(&done),
        resumed: done.iter().map(ByteRange::len).sum(),
        note,
        target: Arc::new(S3 {
            service,
            source: source.clone(),
            grid,
            upload,
            books,
        }),
    }
}

/// The unfinished uploads to the object. Who may not look at them can send all the same.
async fn unfinished(
    service: &Service,
    caller: &Caller,
) -> Result<(Vec<Upload>, Option<String>), UploadError> {
    match service.uploads(caller).await? {
        Ok(uploads) => Ok((uploads, None)),
        Err(fault) if fault.is_not_for_us() => {
            let note = "whether an earlier run left something to continue could not be seen: these credentials, or this \
                        service, list no unfinished uploads";
            Ok((Vec::new(), Some(note.to_owned())))
        }
        Err(fault) => Err(service.refused(&fault, "list unfinished uploads")),
    }
}

/// Removes all that is unfinished of the object; there is nothing to send then.
async fn abort_all(service: Service, caller: &Caller) -> Result<Opened, UploadError> {
    let uploads = service.uploads(caller).await?;
    let uploads = uploads.map_err(|fault| service.refused(&fault, "list unfinished uploads"))?;
    for upload in &uploads {
        service.remove(caller, &upload.id).await?;
    }
    let place = service.signer.place.shown();
    let note = match uploads.len() {
        0 => format!("no unfinished upload to {place}"),
        1 => format!("removed 1 unfinished upload to {place}"),
        n => format!("removed {n} unfinished uploads to {place}"),
    };
    Ok(Opened {
        target: Arc::new(Removed { place }),
        work: Work::Fixed {
            sizes: Vec::new(),
            done: std::collections::BTreeSet::new(),
        },
        resumed: 0,
        note: Some(note),
    })
}

impl Target for S3 {
    fn send<'a>(&'a self, part: Part, line: &'a Line) -> BoxFuture<'a, Result<(), Trouble>> {
        self.send_part(part, line).boxed()
    }

    fn finish<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Finished, UploadError>> {
        self.finish_all(caller).boxed()
    }

    fn abort<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<(), UploadError>> {
        async move {
            match &self.upload {
                Some(id) => self.service.remove(caller, id).await,
                None => Ok(()),
            }
        }
        .boxed()
    }
}

/// What is left of an upload that was only to be removed.
#[derive(Debug)]
struct Removed {
    place: String,
}

impl Target for Removed {
    fn send<'a>(&'a self, _: Part, _: &'a Line) -> BoxFuture<'a, Result<(), Trouble>> {
        let nothing = UploadError::Task("there is nothing to send".to_owned());
        std::future::ready(Err(Trouble::Fatal(nothing))).boxed()
    }

    fn finish<'a>(&'a self, _: &'a Caller) -> BoxFuture<'a, Result<Finished, UploadError>> {
        let finished = Finished {
            place: self.place.clone(),
            ..Finished::default()
        };
        std::future::ready(Ok(finished)).boxed()
    }

    fn abort<'a>(&'a self, _: &'a Caller) -> BoxFuture<'a, Result<(), UploadError>> {
        std::future::ready(Ok(())).boxed()
    }
}

/// For the fuzzer.
pub mod door {
    /// Reads an answer as each kind that a service could give; what it means is of no interest.
    pub fn read_answer(body: &[u8]) -> Vec<String> {
        let mut shown = Vec::new();
        shown.extend(super::answers::upload_id(body));
        for upload in super::answers::uploads(body)
            .map(|page| page.found)
            .unwrap_or_default()
        {
            shown.push(upload.id);
        }
        if let Some(said) = super::answers::error(body) {
            shown.extend([said.code, said.message]);
            shown.extend(said.region);
        }
        shown.extend(super::answers::completed(body).ok().and_then(Result::ok));
        shown
    }
}
