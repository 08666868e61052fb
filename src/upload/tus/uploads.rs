//! The uploads at the server that this run knows of: one for each part that was begun, and which of them make the file.
//!
//! Invariants: an upload is sent to by one worker at a time; one that was not confirmed whole is never part of the file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use url::Url;

use crate::types::ByteRange;

/// One upload at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upload {
    /// What of the file it takes.
    pub(super) range: ByteRange,
    pub(super) url: Url,
    /// As the server calls it.
    pub(super) name: String,
}

#[derive(Debug, Default)]
struct Known {
    all: BTreeMap<u64, (Upload, State)>,
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Begun; nobody sends to it.
    Idle,
    /// A worker sends to it.
    Busy,
    /// The server has all of it.
    Whole,
    /// Nothing is sent to it any more.
    Abandoned,
}

/// All uploads of this run.
#[derive(Clone, Debug, Default)]
pub(super) struct Uploads {
    known: Arc<Mutex<Known>>,
}

/// An upload that one worker has for itself; given back where it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) upload: Upload,
    id: u64,
    of: Uploads,
}

impl Uploads {
    /// One that was begun now, for whoever began it.
    pub(super) fn begun(&self, upload: Upload) -> Held {
        let id = self.insert(upload.clone(), State::Busy);
        Held {
            upload,
            id,
            of: self.clone(),
        }
    }

    /// One of an earlier run, of which the server has all or some.
    pub(super) fn found(&self, upload: Upload, whole: bool) {
        self.insert(upload, if whole { State::Whole } else { State::Idle });
    }

    fn insert(&self, upload: Upload, state: State) -> u64 {
        let mut known = self.lock();
        known.last += 1;
        let id = known.last;
        known.all.insert(id, (upload, state));
        id
    }

    /// An upload of exactly this range that was begun and that nobody sends to.
    pub(super) fn take(&self, range: ByteRange) -> Option<Held> {
        let mut known = self.lock();
        let idle = |entry: &&mut (Upload, State)| entry.1 == State::Idle && entry.0.range == range;
        let (&id, entry) = known.all.iter_mut().find(|(_, entry)| idle(entry))?;
        entry.1 = State::Busy;
        Some(Held {
            upload: entry.0.clone(),
            id,
            of: self.clone(),
        })
    }

    /// Whether somebody sends this range.
    pub(super) fn is_busy(&self, range: ByteRange) -> bool {
        let known = self.lock();
        let mut all = known.all.values();
        all.any(|(upload, state)| *state == State::Busy && upload.range == range)
    }

    /// Uploads that are whole and make the file, in order. `None`: they do not.
    pub(super) fn cover(&self, total: u64) -> Option<Vec<Upload>> {
        let known = self.lock();
        let whole = known.all.values().filter(|(_, state)| *state == State::Whole);
        let mut whole: Vec<&Upload> = whole.map(|(upload, _)| upload).collect();
        whole.sort_by_key(|upload| upload.range.start);
        // From where the file's end can be reached, and by which upload first.
        let mut ways: BTreeMap<u64, &Upload> = BTreeMap::new();
        for upload in whole.into_iter().rev().filter(|upload| !upload.range.is_empty()) {
            if upload.range.end == total || ways.contains_key(&upload.range.end) {
                ways.insert(upload.range.start, upload);
            }
        }
        let mut cover = Vec::new();
        let mut at = 0;
        while at < total {
            let next = *ways.get(&at)?;
            at = next.range.end;
            cover.push(next.clone());
        }
        Some(cover)
    }

    /// The one upload that is whole and has this range.
    pub(super) fn whole(&self, range: ByteRange) -> Option<Upload> {
        let known = self.lock();
        let mut all = known.all.values();
        all.find(|(upload, state)| *state == State::Whole && upload.range == range)
            .map(|(upload, _)| upload.clone())
    }

    /// All that are not among `kept`.
    pub(super) fn others(&self, kept: &[Upload]) -> Vec<Upload> {
        let known = self.lock();
        let others = known.all.values().filter(|(upload, _)| !kept.contains(upload));
        others.map(|(upload, _)| upload.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// The server has all of it.
    pub(super) fn whole(self) {
        self.set(State::Whole);
    }

    /// Nothing more shall be sent to it; it is removed at the end.
    pub(super) fn abandon(self) {
        self.set(State::Abandoned);
    }

    /// The server has it no more.
    pub(super) fn gone(self) {
        self.of.lock().all.remove(&self.id);
    }

    fn set(&self, state: State) {
        if let Some(entry) = self.of.lock().all.get_mut(&self.id) {
            entry.1 = state;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut known = self.of.lock();
        if let Some(entry) = known.all.get_mut(&self.id)
            && entry.1 == State::Busy
        {
            entry.1 = State::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(start: u64, end: u64, name: &str) -> Upload {
        Upload {
            range: ByteRange::new(start, end),
            url: Url::parse("https://h/files/").unwrap().join(name).unwrap(),
            name: name.to_owned(),
        }
    }

    fn names(cover: Option<Vec<Upload>>) -> Option<Vec<String>> {
        cover.map(|cover| cover.into_iter().map(|upload| upload.name).collect())
    }

    fn with(whole: &[(u64, u64, &str)]) -> Uploads {
        let uploads = Uploads::default();
        for &(start, end, name) in whole {
            uploads.found(upload(start, end, name), true);
        }
        uploads
    }

    #[test]
    fn whole_uploads_that_follow_each_other_make_the_file_in_order() {
        let uploads = with(&[(20, 30, "c"), (0, 10, "a"), (10, 20, "b")]);
        assert_eq!(
            names(uploads.cover(30)),
            Some(vec!["a".into(), "b".into(), "c".into()])
        );
        assert_eq!(uploads.cover(31), None, "the end is missing");
        assert_eq!(uploads.cover(25), None, "more than there is");
        assert_eq!(Uploads::default().cover(0), Some(vec![]));
    }

    #[test]
    fn of_parts_sent_twice_or_cut_differently_one_row_without_gaps_is_found() {
        // 0..10 was whole, but its worker was ended before it could say so; then 0..15 was sent.
        let uploads = with(&[
            (0, 10, "a"),
            (0, 15, "b"),
            (15, 30, "c"),
            (15, 30, "d"),
            (5, 15, "e"),
        ]);
        let cover = uploads.cover(30).unwrap();
        assert_eq!(cover[0].name, "b");
        assert_eq!(cover.len(), 2);
        let left = uploads.others(&cover);
        assert_eq!(left.len(), 3);
        assert!(left.iter().all(|upload| !cover.contains(upload)));
    }

    #[test]
    fn http_32_what_the_server_did_not_confirm_is_no_part_of_the_file() {
        let uploads = with(&[(0, 10, "a")]);
        let held = uploads.begun(upload(10, 20, "b"));
        assert_eq!(uploads.cover(20), None, "being sent");
        drop(held);
        assert_eq!(uploads.cover(20), None, "begun");
        let held = uploads.take(ByteRange::new(10, 20)).unwrap();
        held.abandon();
        assert_eq!(uploads.cover(20), None, "abandoned");
        assert!(uploads.take(ByteRange::new(10, 20)).is_none());
        uploads.begun(upload(10, 20, "c")).whole();
        assert_eq!(names(uploads.cover(20)), Some(vec!["a".into(), "c".into()]));
    }

    #[test]
    fn an_upload_that_broke_is_taken_up_by_one_worker_for_exactly_its_range() {
        let uploads = Uploads::default();
        let range = ByteRange::new(0, 10);
        let first = uploads.begun(upload(0, 10, "a"));
        assert!(uploads.take(range).is_none(), "somebody sends it");
        assert!(uploads.is_busy(range));
        drop(first);
        assert!(!uploads.is_busy(range));
        assert!(uploads.take(ByteRange::new(0, 9)).is_none());
        let again = uploads.take(range).unwrap();
        assert_eq!(again.upload.name, "a");
        assert!(uploads.take(range).is_none());
        again.gone();
        assert_eq!(uploads.others(&[]), []);
    }
}
