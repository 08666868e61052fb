//! What is at the server before anything is sent: which directories are missing (they are made), which files are there.
//!
//! A server with `PROPFIND` is asked for each directory; another one for each file, but for those whose directory was only
//! made now: nothing can be in it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use url::Url;

use super::multistatus;
use super::places::{above, below, depth, directories, parent, within};
use super::remote::Remote;
use crate::upload::Item;
use crate::upload::error::UploadError;
use crate::upload::exchange::{Answer, Ask, Caller, Content};
use crate::upload::web::Web;

/// Small requests at a time, over all lanes.
const AT_ONCE: usize = 12;
/// Directories above the target that are made where they are missing.
const MAX_ABOVE: usize = 16;
/// What is asked of a directory.
const PROPERTIES: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getetag/><getlastmodified/></prop></propfind>"#;
const DEPTH: HeaderName = HeaderName::from_static("depth");

/// What was found, and what was made.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Files that are there, by name.
    pub(super) there: BTreeMap<String, Remote>,
    /// Why directories could not be made, if so.
    pub(super) unmade: Option<String>,
}

/// The state of a survey.
struct Look<'a> {
    web: &'a Web,
    target: &'a Url,
    caller: &'a Caller,
    /// Directories that were listed: what is not in `there` is not there.
    listed: BTreeSet<String>,
    /// Directories that are certainly there.
    exist: BTreeSet<String>,
    made: BTreeSet<String>,
    survey: Survey,
}

/// Looks at a directory at the server, and makes those that the items need.
pub(super) async fn directory(
    web: &Web,
    target: &Url,
    items: &[Item],
    caller: &Caller,
) -> Result<Survey, UploadError> {
    let mut look = Look {
        web,
        target,
        caller,
        listed: BTreeSet::new(),
        exist: BTreeSet::new(),
        made: BTreeSet::new(),
        survey: Survey::default(),
    };
    let needed = directories(items);
    look.list(&needed).await?;
    look.make(&needed).await?;
    look.ask_for(items).await?;
    Ok(look.survey)
}

/// Looks at one file.
pub(super) async fn file(web: &Web, url: &Url, caller: &Caller) -> Result<Option<Remote>, UploadError> {
    let answer = caller.call(&web.ask(Method::HEAD, url.clone())).await?;
    Ok(answer
        .status
        .is_success()
        .then(|| Remote::of_head(&answer.headers)))
}

impl Look<'_> {
    /// Lists the target and what of `needed` is in it, level by level.
    async fn list(&mut self, needed: &[String]) -> Result<(), UploadError> {
        let mut level = vec![String::new()];
        while !level.is_empty() {
            let asks = level.iter().map(|directory| self.propfind(directory)).collect();
            let answers = self.caller.call_all(asks, AT_ONCE).await;
            for (directory, answer) in level.iter().zip(answers) {
                match answer {
                    Ok(answer) if answer.status == StatusCode::MULTI_STATUS => self.note(directory, &answer),
                    // The answer was too long, or none: its files are asked for one by one.
                    Err(_) if !directory.is_empty() => {}
                    Ok(answer) if answer.status == StatusCode::UNAUTHORIZED => {
                        return Err(self
                            .web
                            .refused(&Method::from_bytes(b"PROPFIND").unwrap_or_default(), &answer));
                    }
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
            let known = |directory: &&String| {
                level.iter().any(|above| above == parent(directory)) && self.exist.contains(*directory)
            };
            level = needed.iter().filter(known).cloned().collect();
        }
        Ok(())
    }

    fn propfind(&self, directory: &str) -> Ask {
        let mut ask = self.request("PROPFIND", directory);
        ask.headers.insert(DEPTH, HeaderValue::from_static("1"));
        ask.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        ask.content = Content::Bytes(Bytes::from_static(PROPERTIES.as_bytes()));
        ask
    }

    fn request(&self, method: &str, directory: &str) -> Ask {
        let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
        self.web.ask(method, below(self.target, directory))
    }

    /// Notes what a directory holds.
    fn note(&mut self, directory: &str, answer: &Answer) {
        let own = below(self.target, directory);
        self.exist.insert(directory.to_owned());
        self.listed.insert(directory.to_owned());
        for entry in multistatus::parse(&answer.body) {
            let Ok(url) = self.web.resolve(&own, &entry.href) else {
                continue;
            };
            let Some(name) = within(&own, &url) else {
                continue;
            };
            let name = format!("{directory}{name}");
            if entry.directory {
                self.exist.insert(format!("{name}/"));
            } else {
                self.survey.there.insert(name, Remote::of_entry(&entry));
            }
        }
    }

    /// Makes what is missing of the target and `needed`, parents first.
    async fn make(&mut self, needed: &[String]) -> Result<(), UploadError> {
        if !self.exist.contains("") {
            self.make_target().await?;
        }
        let deepest = needed.iter().map(|directory| depth(directory)).max().unwrap_or(0);
        for level in 1..=deepest {
            let missing = |directory: &&String| depth(directory) == level && !self.exist.contains(*directory);
            let missing: Vec<String> = needed.iter().filter(missing).cloned().collect();
            let asks = missing
                .iter()
                .map(|directory| self.request("MKCOL", directory))
                .collect();
            let answers = self.caller.call_all(asks, AT_ONCE).await;
            for (directory, answer) in missing.into_iter().zip(answers) {
                if self.judge(&answer?)? == Made::Now {
                    self.made.insert(directory);
                }
            }
        }
        Ok(())
    }

    /// Makes the target, and what is missing above it.
    async fn make_target(&mut self) -> Result<(), UploadError> {
        let mut missing = vec![self.target.clone()];
        while let Some(url) = missing.last().cloned() {
            let method = self.request("MKCOL", "").method;
            let answer = self.caller.call(&self.web.ask(method, url.clone())).await?;
            let up = above(&url).filter(|_| missing.len() < MAX_ABOVE);
            match (answer.status.as_u16(), up) {
                // What is above is missing: that first. The root is always there.
                (409, Some(up))
                    if up.path() != "/" && !missing.contains(&up) && missing.len() < MAX_ABOVE =>
                {
                    missing.push(up);
                }
                _ => {
                    let made = self.judge(&answer)?;
                    if made == Made::Now && url == *self.target {
                        self.made.insert(String::new());
                    }
                    if made == Made::No {
                        return Ok(());
                    }
                    missing.pop();
                }
            }
        }
        Ok(())
    }

    /// What the answer to `MKCOL` means. A server that makes none is no reason not to try: it may need none.
    fn judge(&mut self, answer: &Answer) -> Result<Made, UploadError> {
        match answer.status.as_u16() {
            200 | 201 | 204 => Ok(Made::Now),
            301 | 302 | 307 | 308 | 405 => Ok(Made::Before),
            401 | 407 => {
                let method = self.request("MKCOL", "").method;
                Err(self.web.refused(&method, answer))
            }
            _ => {
                let why = format!("it made no directories (MKCOL: {})", answer.status);
                self.survey.unmade.get_or_insert(why);
                Ok(Made::No)
            }
        }
    }

    /// Asks for the files that may be there, where no listing told of them.
    async fn ask_for(&mut self, items: &[Item]) -> Result<(), UploadError> {
        let open = |item: &&Item| {
            let mut directory = parent(&item.name);
            if self.listed.contains(directory) {
                return false;
            }
            loop {
                if self.made.contains(directory) {
                    return false;
                }
                if directory.is_empty() {
                    return true;
                }
                directory = parent(directory);
            }
        };
        let open: Vec<&Item> = items.iter().filter(open).collect();
        let ask = |item: &&Item| self.web.ask(Method::HEAD, below(self.target, &item.name));
        let answers = self
            .caller
            .call_all(open.iter().map(ask).collect(), AT_ONCE)
            .await;
        for (item, answer) in open.into_iter().zip(answers) {
            let answer = answer?;
            if answer.status.is_success() {
                let remote = Remote::of_head(&answer.headers);
                self.survey.there.insert(item.name.clone(), remote);
            }
        }
        Ok(())
    }
}

/// What became of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Now,
    Before,
    No,
}
