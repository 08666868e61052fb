//! What is sent for a client: the list of its files in pages, and each of them as a descriptor that the client opened.
//!
//! The daemon opens no path for a client, and believes of a descriptor only what the kernel says of it. Invariants: a page
//! fits into a line, the list is bounded, and a name in it leads nowhere but down from the directory that is sent.

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::store::{Sender, received_for_reading};
use crate::task::Tasks;
use crate::upload::{Item, Listed, Sources, UploadError};

use super::handover::{Answer, Ask, Asked, Asker, SENSELESS, shown};

/// As text, before the last entry of a page: half of what a line may have. An entry has two names of at most
/// [`MAX_NAME`], which JSON makes six times as long at worst.
const PAGE: usize = 128 << 10;
/// As long as Linux takes paths (`PATH_MAX`).
const MAX_NAME: usize = 4096;
/// Files in one upload: some 20 MiB of the daemon's memory, names included.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of all their names.
const MAX_NAMES: usize = 16 << 20;
const NANOS: u32 = 1_000_000_000;

/// A part of the list of what is to be sent: first the files, then what is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Whether these are the files of a directory; else there is one.
    pub directory: bool,
    /// Files.
    pub items: Vec<Listing>,
    /// What cannot be sent, by name, and why.
    pub left_out: Vec<(String, String)>,
    /// Whether there is more.
    pub more: bool,
}

/// A file that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Relative to the directory, with `/`; of a single file its name.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// When it was last changed: whole seconds since 1970, and nanoseconds after that.
    pub modified: (i64, u32),
}

impl Page {
    /// The page of this list that begins with that entry.
    pub(super) fn of(listed: &Listed, from: usize) -> Self {
        let mut page = Self {
            directory: listed.directory,
            ..Self::default()
        };
        let mut room = PAGE;
        for item in listed.items.iter().skip(from) {
            let listing = Listing::from(item);
            if !fits(&listing, &mut room) {
                page.more = true;
                return page;
            }
            page.items.push(listing);
        }
        let from = from.saturating_sub(listed.items.len());
        for (name, why) in listed.left_out.iter().skip(from) {
            let entry = (cut(name), cut(why));
            if !fits(&entry, &mut room) {
                page.more = true;
                return page;
            }
            page.left_out.push(entry);
        }
        page
    }
}

/// Whether there is still room; the last entry that gets in may be longer than that.
fn fits(entry: &impl Serialize, room: &mut usize) -> bool {
    let fits = *room > 0;
    // Plain data without maps that could fail.
    let len = serde_json::to_vec(entry).map_or(0, |text| text.len());
    *room = room.saturating_sub(len + 1);
    fits
}

/// What is only told may be cut.
fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(MAX_NAME))
        .unwrap_or_default()
        .to_owned()
}

impl From<&Item> for Listing {
    fn from(item: &Item) -> Self {
        let modified = match item.modified.duration_since(UNIX_EPOCH) {
            Ok(after) => (
                i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                after.subsec_nanos(),
            ),
            Err(before) => {
                let before = before.duration();
                let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => (-seconds, 0),
                    nanos => (-seconds - 1, NANOS - nanos),
                }
            }
        };
        Self {
            name: item.name.clone(),
            size: item.size,
            modified,
        }
    }
}

impl Listing {
    /// `None`: that is no file's entry.
    fn item(self) -> Option<Item> {
        let (seconds, nanos) = self.modified;
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let whole = if seconds < 0 {
            UNIX_EPOCH.checked_sub(whole)
        } else {
            UNIX_EPOCH.checked_add(whole)
        };
        let modified: SystemTime = whole?.checked_add(Duration::from_nanos(nanos.into()))?;
        (nanos < NANOS && is_below(&self.name)).then_some(Item {
            name: self.name,
            size: self.size,
            modified,
        })
    }
}

/// Whether a name leads nowhere but down.
fn is_below(name: &str) -> bool {
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    name.len() <= MAX_NAME && !name.contains('\0') && !name.split('/').any(odd)
}

/// Files in the hands of a client, to be read.
#[derive(Debug)]
pub(super) struct RemoteSources {
    asker: Asker,
    sender: Sender,
    tasks: Tasks,
    /// For messages.
    names: Mutex<Vec<String>>,
}

impl RemoteSources {
    /// Files of the client that is that user; the questions are to be passed on.
    pub(super) fn new(sender: Sender, tasks: &Tasks) -> (Self, mpsc::Receiver<Asked>) {
        let (asker, asked) = Asker::new();
        let sources = Self {
            asker,
            sender,
            tasks: tasks.clone(),
            names: Mutex::default(),
        };
        (sources, asked)
    }

    async fn page(&self, from: usize) -> Result<Page, UploadError> {
        match self.asker.ask(Ask::List { from }).await {
            Ok((Answer::Listed(page), _)) => Ok(page),
            Ok(_) => Err(UploadError::NotTaken(SENSELESS.into())),
            Err(why) => Err(UploadError::NotTaken(why)),
        }
    }

    fn name(&self, item: usize) -> String {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(item).cloned().unwrap_or_default()
    }
}

impl Sources for RemoteSources {
    fn list(&self) -> BoxFuture<'_, Result<Listed, UploadError>> {
        async {
            let mut list = List::default();
            while list.add(self.page(list.entries()).await?)? {}
            let names = list.listed.items.iter().map(|item| shown(&item.name)).collect();
            *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
            Ok(list.listed)
        }
        .boxed()
    }

    fn open(&self, item: usize) -> BoxFuture<'_, Result<File, UploadError>> {
        async move {
            let line = match self.asker.ask(Ask::Source { item }).await {
                Ok((Answer::Source, line)) => line,
                Ok((Answer::Unreadable { why, .. }, _)) => {
                    let name = self.name(item);
                    return Err(UploadError::Source {
                        name,
                        why: shown(&why),
                    });
                }
                Ok(_) => return Err(UploadError::NotTaken(SENSELESS.into())),
                Err(why) => return Err(UploadError::NotTaken(why)),
            };
            let sender = self.sender;
            let taken = self
                .tasks
                .blocking(move || received_for_reading(line.descriptors, sender))
                .await;
            let taken =
                taken.map_err(|_panicked| UploadError::NotTaken("it could not be looked at".into()))?;
            taken.map_err(|error| match error {
                crate::store::StoreError::NotTaken { why } => {
                    UploadError::NotTaken(format!("`{}`: {why}", self.name(item)))
                }
                other => UploadError::NotTaken(other.to_string()),
            })
        }
        .boxed()
    }
}

/// A list as it comes in.
#[derive(Debug, Default)]
struct List {
    listed: Listed,
    names: usize,
}

impl List {
    fn entries(&self) -> usize {
        self.listed.items.len() + self.listed.left_out.len()
    }

    /// Takes a page. Returns whether there is another.
    fn add(&mut self, page: Page) -> Result<bool, UploadError> {
        let before = self.entries();
        self.listed.directory = page.directory;
        for listing in page.items {
            self.names += listing.name.len();
            let item = listing.item();
            self.listed.items.push(item.ok_or_else(|| {
                UploadError::NotTaken("a name or a time in the list makes no sense".to_owned())
            })?);
        }
        for (name, why) in page.left_out {
            self.names += name.len() + why.len();
            self.listed.left_out.push((name, why));
        }
        if self.entries() > MAX_ENTRIES || self.names > MAX_NAMES {
            return Err(UploadError::NotTaken(format!(
                "the daemon takes {MAX_ENTRIES} files at once, with names of {} MiB in all",
                MAX_NAMES >> 20
            )));
        }
        if page.more && self.entries() == before {
            return Err(UploadError::NotTaken("a page of the list is empty".to_owned()));
        }
        Ok(page.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, modified: SystemTime) -> Item {
        Item {
            name: name.into(),
            size: 7,
            modified,
        }
    }

    fn listed(files: usize, left_out: usize) -> Listed {
        let name = |n: usize| format!("{n}/{}", "\u{1}".repeat(MAX_NAME - 10));
        Listed {
            items: (0..files).map(|n| item(&name(n), UNIX_EPOCH)).collect(),
            directory: true,
            left_out: (0..left_out).map(|n| (name(n), "é".repeat(MAX_NAME))).collect(),
        }
    }

    #[test]
    fn a_long_list_comes_whole_in_pages_that_fit_into_a_line() {
        let all = listed(40, 20);
        let (mut list, mut pages) = (List::default(), 0);
        loop {
            let page = Page::of(&all, list.entries());
            assert!(serde_json::to_vec(&page).unwrap().len() < 200 << 10);
            pages += 1;
            if !list.add(page).unwrap() {
                break;
            }
        }
        assert!(pages > 5, "{pages}");
        assert_eq!(list.listed.items, all.items);
        assert_eq!(list.listed.left_out.len(), 20);
        assert!(list.listed.left_out.iter().all(|(_, why)| why.len() <= MAX_NAME));
    }

    #[test]
    fn an_empty_list_is_one_page() {
        let page = Page::of(&Listed::default(), 0);
        assert_eq!(page, Page::default());
        assert!(!List::default().add(page).unwrap());
    }

    #[test]
    fn a_list_without_end_is_not_taken() {
        let mut list = List::default();
        let empty = Page {
            more: true,
            ..Page::default()
        };
        assert!(list.add(empty).is_err());
        let long = Page {
            left_out: vec![Default::default(); MAX_ENTRIES + 1],
            ..Page::default()
        };
        assert!(
            List::default()
                .add(long)
                .unwrap_err()
                .to_string()
                .contains("100000 files")
        );
    }

    #[test]
    fn times_before_and_after_1970_survive_to_the_nanosecond() {
        for nanos in [0, 1, 1_499_999_999, 1_700_000_000_123_456_789_u64] {
            let apart = Duration::from_nanos(nanos);
            for time in [UNIX_EPOCH + apart, UNIX_EPOCH - apart] {
                let item = item("x", time);
                assert_eq!(Listing::from(&item).item(), Some(item), "{nanos}");
            }
        }
    }

    #[test]
    fn a_name_that_leads_up_or_nowhere_is_not_taken() {
        for good in ["x", "a/b/c", "...", "line\nfeed", " "] {
            assert!(is_below(good), "{good:?}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        for bad in [
            "", "/x", "x/", "a//b", "..", "a/../b", "./x", "a/.", "nul\0", &long,
        ] {
            assert!(!is_below(bad), "{bad:?}");
        }
        let listing = |modified| Listing {
            name: "x".into(),
            size: 0,
            modified,
        };
        assert!(listing((0, NANOS)).item().is_none());
    }
}
