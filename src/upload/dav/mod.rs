//! Plain `PUT`, to WebDAV servers and to whatever else takes it: one file, or the files of a directory, each as a whole over
//! one lane.
//!
//! Files that are there already are not sent again; how that is told is in [`remote`]. A file's own time goes with it, and
//! servers that keep it (nginx: from `Date`; ownCloud, Nextcloud: from `X-OC-Mtime`) let a second run skip it.
//!
//! Invariants: a file that cannot be sent keeps no other from it; it is told in the end, with the reason. What was sent twice
//! at once is looked at again at the end.

mod ledger;
mod multistatus;
mod places;
mod remote;
mod survey;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::Method;
use url::Url;

use super::error::UploadError;
use super::exchange::{Answer, Ask, Caller, Content, Line, Trouble};
use super::source::{Checksum, Source};
use super::web::{Web, meaning};
use super::{Finished, Item, Job, Opened, Target};
use crate::stripe::{Part, Work};
use crate::types::{ByteRange, hex};
use ledger::Ledger;
use remote::{Remote, Verdict};
use survey::Survey;

/// How often one file may be sent elsewhere.
const MAX_HOPS: usize = 5;

/// Files on their way to a server that takes `PUT`.
#[derive(Debug)]
struct Dav {
    web: Web,
    /// The directory's address, with `/` at its end, or the file's.
    target: Url,
    source: Arc<Source>,
    directory: bool,
    /// Why directories could not be made, if so.
    unmade: Option<String>,
    ledger: Mutex<Ledger>,
}

/// Looks what the server has, and makes directories.
pub(super) async fn open(job: &Job, source: &Arc<Source>, caller: &Caller) -> Result<Opened, UploadError> {
    let web = Web::new(&job.target, "", &job.headers)?;
    let directory = source.listed().directory;
    let target = target(&web, source)?;
    let items = source.items();
    let survey = if job.abort {
        // A file is there when all of it is: nothing unfinished ever is.
        Survey::default()
    } else if directory {
        survey::directory(&web, &target, items, caller).await?
    } else {
        let there = survey::file(&web, &target, caller).await?;
        let named = items
            .iter()
            .zip(there)
            .map(|(item, remote)| (item.name.clone(), remote));
        Survey {
            there: named.collect(),
            unmade: None,
        }
    };
    let same = same(&survey, source).await;
    let resumed = same
        .iter()
        .filter_map(|&item| items.get(item))
        .map(|item| item.size)
        .sum();
    let before = source.listed().left_out.clone();
    let ledger = Ledger::new(items.len() - same.len(), same.len() as u64, before);
    let note = (!directory && !same.is_empty())
        .then(|| "it was there already, with the same length and time".to_owned());
    Ok(Opened {
        work: Work::Fixed {
            sizes: items.iter().map(|item| item.size).collect(),
            done: same,
        },
        resumed,
        note,
        target: Arc::new(Dav {
            web,
            target,
            source: source.clone(),
            directory,
            unmade: survey.unmade,
            ledger: Mutex::new(ledger),
        }),
    })
}

/// See [`door`](super::door).
#[cfg(any(fuzzing, test))]
pub(super) fn listed(directory: &Url, body: &[u8]) -> Vec<(String, Url)> {
    let entries = multistatus::parse(body).into_iter();
    let name = |entry: multistatus::Entry| places::within(directory, &directory.join(&entry.href).ok()?);
    entries
        .filter_map(name)
        .map(|name| {
            let url = places::below(directory, &name);
            (name, url)
        })
        .collect()
}

/// Where it goes: into the directory, or to the name.
fn target(web: &Web, source: &Source) -> Result<Url, UploadError> {
    let mut target = web.base.clone();
    let wrong = |why: String| UploadError::Url {
        url: web.base.to_string(),
        why,
    };
    if let Some(odd) = source.items().iter().find(|item| !is_plain(&item.name)) {
        return Err(UploadError::Usage(format!(
            "`{}` is no name for a file",
            odd.name
        )));
    }
    if source.listed().directory {
        if target.query().is_some() {
            return Err(wrong("a directory's address has no `?`".to_owned()));
        }
        if !target.path().ends_with('/') {
            target.set_path(&format!("{}/", target.path()));
        }
    } else if target.path().ends_with('/') {
        let name = source.items().first().map(|item| item.name.as_str());
        target = places::below(&target, name.unwrap_or_default());
    }
    Ok(target)
}

/// Whether each part of a name is a name.
fn is_plain(name: &str) -> bool {
    name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The files that need not be sent.
async fn same(survey: &Survey, source: &Source) -> BTreeSet<usize> {
    let mut same = BTreeSet::new();
    for (n, item) in source.items().iter().enumerate() {
        let verdict = survey
            .there
            .get(&item.name)
            .map(|remote: &Remote| remote.compare(item));
        let is_same = match verdict {
            Some(Verdict::Same) => true,
            Some(Verdict::IfMd5(md5)) => {
                // One that cannot be read now is left out when it is to be sent.
                let own = source.digest(&whole(n, item), Checksum::Md5).await;
                own.is_ok_and(|own| hex(&own) == md5)
            }
            Some(Verdict::Different) | None => false,
        };
        if is_same {
            same.insert(n);
        }
    }
    same
}

const fn whole(n: usize, item: &Item) -> Part {
    Part {
        item: n,
        range: ByteRange::new(0, item.size),
    }
}

impl Dav {
    fn put(&self, part: Part, item: &Item, url: Url) -> Ask {
        let mut ask = self.web.ask(Method::PUT, url);
        ask.headers.extend(remote::times(item));
        ask.content = Content::Part(part);
        ask
    }

    fn place(&self, item: &Item) -> Url {
        if self.directory {
            places::below(&self.target, &item.name)
        } else {
            self.target.clone()
        }
    }

    async fn send_file(&self, part: Part, line: &Line) -> Result<(), Trouble> {
        let Some(item) = self.source.items().get(part.item) else {
            let error = UploadError::Task("a file that is not in the list".to_owned());
            return Err(Trouble::Fatal(error));
        };
        self.ledger().begins(part.item);
        let mut url = self.place(item);
        for _ in 0..=MAX_HOPS {
            let answer = match line.exchange(&self.put(part, item, url.clone())).await {
                Ok(answer) => answer,
                Err(trouble) => return Err(self.trouble(part.item, trouble)),
            };
            match answer.status.as_u16() {
                200 | 201 | 204 => {
                    self.ledger().sent(part.item);
                    return Ok(());
                }
                307 | 308 => match self.web.location(&url, &answer) {
                    Ok(next) => url = next,
                    Err(why) => return Err(self.leave_out(part.item, why)),
                },
                // Nobody is who we say we are, whatever the file.
                401 | 407 => return Err(Trouble::Fatal(self.web.refused(&Method::PUT, &answer))),
                _ => return Err(self.refused(part.item, &answer)),
            }
        }
        Err(self.leave_out(
            part.item,
            format!("it was sent elsewhere more than {MAX_HOPS} times"),
        ))
    }

    /// An answer that says no to one file.
    fn refused(&self, item: usize, answer: &Answer) -> Trouble {
        if !self.directory {
            return Trouble::Fatal(self.web.refused(&Method::PUT, answer));
        }
        let mut why = format!("{}: {}", answer.status, meaning(&Method::PUT, answer));
        if let (409 | 404, Some(unmade)) = (answer.status.as_u16(), &self.unmade) {
            why = format!("{why}; {unmade}");
        }
        self.leave_out(item, why)
    }

    /// A lane, the server or the file failed.
    fn trouble(&self, item: usize, trouble: Trouble) -> Trouble {
        match trouble {
            Trouble::Fatal(error @ (UploadError::Changed { .. } | UploadError::Source { .. }))
                if self.directory =>
            {
                self.leave_out(item, error.to_string())
            }
            Trouble::Lane(why) if self.ledger().broke(item) => {
                if self.directory {
                    return self.leave_out(item, why);
                }
                Trouble::Fatal(UploadError::Unreachable {
                    host: self.web.host(),
                    detail: why,
                })
            }
            Trouble::Origin(why) if self.ledger().faulted(item) => match &self.unmade {
                // nginx's answer where the directory is missing.
                Some(unmade) => self.leave_out(item, format!("{why}; {unmade}")),
                None => self.leave_out(item, why),
            },
            other => other,
        }
    }

    /// The others go on without it, unless none of them can.
    fn leave_out(&self, item: usize, why: String) -> Trouble {
        let host = self.web.host();
        if !self.directory {
            return Trouble::Fatal(UploadError::Refused { host, why });
        }
        let mut ledger = self.ledger();
        ledger.leave_out(item, why.clone());
        if ledger.is_hopeless() {
            let why = format!("none of the files was taken; the last one: {why}");
            return Trouble::Fatal(UploadError::Refused { host, why });
        }
        Trouble::LeaveOut(why)
    }

    /// Looks at what was sent over two lanes at once, or again after a break; sends it a last time where it is not whole.
    async fn look_again(&self, caller: &Caller) -> Result<(), UploadError> {
        let doubtful = self.ledger().doubtful();
        for n in doubtful {
            let Some(item) = self.source.items().get(n) else {
                continue;
            };
            let url = self.place(item);
            if self.is_whole(&url, item, caller).await? {
                continue;
            }
            // What it says is seen in what is there then.
            let again = caller.call(&self.put(whole(n, item), item, url.clone())).await;
            if again.is_err() || !self.is_whole(&url, item, caller).await? {
                let why = "the server has another length of it than was sent, twice".to_owned();
                if !self.directory {
                    return Err(UploadError::Corrupt {
                        host: self.web.host(),
                        why,
                    });
                }
                self.ledger().leave_out(n, why);
            }
        }
        Ok(())
    }

    /// Whether the server has all of it, or does not say.
    async fn is_whole(&self, url: &Url, item: &Item, caller: &Caller) -> Result<bool, UploadError> {
        let there = survey::file(&self.web, url, caller).await?;
        Ok(there.is_none_or(|remote| remote.may_have(item.size)))
    }

    async fn complete(&self, caller: &Caller) -> Result<Finished, UploadError> {
        self.look_again(caller).await?;
        let files = self.directory.then(|| self.ledger().files(self.source.items()));
        let failed = files.as_ref().is_some_and(|files| files.left_out_count > 0);
        let unmade = self.unmade.as_ref().filter(|_| failed);
        Ok(Finished {
            place: self.target.to_string(),
            note: unmade.map(|why| format!("{}: {why}", self.web.host())),
            files,
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target for Dav {
    fn send<'a>(&'a self, part: Part, line: &'a Line) -> BoxFuture<'a, Result<(), Trouble>> {
        self.send_file(part, line).boxed()
    }

    fn finish<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Finished, UploadError>> {
        self.complete(caller).boxed()
    }

    /// A server that takes `PUT` throws away what came of a file that did not come whole.
    fn abort<'a>(&'a self, _: &'a Caller) -> BoxFuture<'a, Result<(), UploadError>> {
        std::future::ready(Ok(())).boxed()
    }
}
