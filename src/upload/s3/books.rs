//! What the service has confirmed of this upload, and what it said wrongly.
//!
//! Invariant: what is entered does not overlap; the last word counts, as it does at the service, where a part replaces the one
//! of the same number.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use md5::{Digest as _, Md5};

use super::answers::{Listed, md5_of};
use crate::types::{ByteRange, LaneId, hex};

/// The same wrong checksum so often, over one lane, is no accident of that lane.
const SAME_WRONG: usize = 3;

/// A part that the service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) range: ByteRange,
    /// As the service named it: what completes the upload says it again.
    pub(super) etag: String,
    /// Of the file's bytes.
    pub(super) md5: [u8; 16],
    /// Whether the ETag is that MD5. Where the service encrypts it is not, and only its list of parts tells a length.
    pub(super) sure: bool,
}

/// All that is known of the parts.
#[derive(Debug, Default)]
pub(super) struct Books(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<u64, Entry>,
    /// How often a part of this number was begun.
    begun: BTreeMap<u64, u32>,
    /// ETags that were wrong: for which range, over which lane, and what.
    wrong: Vec<(ByteRange, LaneId, String)>,
}

impl Books {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part of this number is about to be sent.
    pub(super) fn begins(&self, number: u64) {
        *self.inner().begun.entry(number).or_default() += 1;
    }

    /// The service has this.
    pub(super) fn enter(&self, entry: Entry) {
        let mut inner = self.inner();
        inner
            .entries
            .retain(|_, known| known.range.intersect(entry.range).is_empty());
        inner.entries.insert(entry.number, entry);
    }

    /// A wrong ETag came for this range. Whether it is the service's fault: another lane heard the same, or one heard it
    /// again and again.
    pub(super) fn wrong(&self, range: ByteRange, lane: LaneId, etag: &str) -> bool {
        let mut inner = self.inner();
        inner.wrong.push((range, lane, etag.to_owned()));
        let same = inner.wrong.iter().filter(|(r, _, e)| *r == range && e == etag);
        let (times, others) = same.fold((0, false), |(n, other), (_, l, _)| (n + 1, other || *l != lane));
        others || times >= SAME_WRONG
    }

    /// All parts in their order, where they make the whole file of `total` bytes.
    pub(super) fn whole(&self, total: u64) -> Option<Vec<Entry>> {
        let entries: Vec<Entry> = self.inner().entries.values().cloned().collect();
        let mut at = 0;
        for entry in &entries {
            if entry.range.start != at {
                return None;
            }
            at = entry.range.end;
        }
        (at == total).then_some(entries)
    }

    /// Whether the service's list must be looked at before these are put together: an ETag says nothing, or a part was
    /// begun more than once, so that a copy that was given up may have come in late and replaced another.
    pub(super) fn doubtful(&self) -> bool {
        let inner = self.inner();
        let twice = inner.begun.values().any(|&n| n > 1);
        twice || inner.entries.values().any(|entry| !entry.sure)
    }

    /// Whether all ETags are what they should be.
    pub(super) fn all_sure(&self) -> bool {
        self.inner().entries.values().all(|entry| entry.sure)
    }
}

/// Those of `entries` that the service has otherwise, or has not.
pub(super) fn different(entries: &[Entry], listed: &[Listed]) -> Vec<Entry> {
    let listed: BTreeMap<u64, &Listed> = listed.iter().map(|part| (part.number, part)).collect();
    let same = |entry: &Entry| {
        let part = listed.get(&entry.number);
        // Some services list no ETags.
        part.is_some_and(|p| p.size == entry.range.len() && (p.etag.is_empty() || p.etag == entry.etag))
    };
    entries.iter().filter(|entry| !same(entry)).cloned().collect()
}

/// Whether an object's ETag is that of these parts. `None`: it has no shape that tells.
pub(super) fn is_etag_of(etag: &str, entries: &[Entry]) -> Option<bool> {
    let (sum, count) = etag.split_once('-')?;
    md5_of(sum)?;
    if count.parse() != Ok(entries.len()) {
        return Some(false);
    }
    let mut of_sums = Md5::new();
    // As Garage has it.
    let mut of_texts = Md5::new();
    for entry in entries {
        of_sums.update(entry.md5);
        of_texts.update(hex(&entry.md5));
    }
    let sums = [of_sums, of_texts].map(|sum| hex(&sum.finalize()));
    Some(sums.iter().any(|own| own.eq_ignore_ascii_case(sum)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, start: u64, end: u64) -> Entry {
        let md5: [u8; 16] = Md5::digest(number.to_be_bytes()).into();
        Entry {
            number,
            range: ByteRange::new(start, end),
            etag: hex(&md5),
            md5,
            sure: true,
        }
    }

    #[test]
    fn only_parts_that_make_the_whole_file_are_put_together() {
        let books = Books::default();
        assert_eq!(books.whole(0), Some(vec![]));
        books.enter(entry(3, 20, 30));
        books.enter(entry(1, 0, 20));
        assert_eq!(
            books
                .whole(30)
                .unwrap()
                .iter()
                .map(|e| e.number)
                .collect::<Vec<_>>(),
            [1, 3]
        );
        assert_eq!(books.whole(31), None);
        assert_eq!(Books::default().whole(1), None);
        let gap = Books::default();
        gap.enter(entry(2, 10, 30));
        assert_eq!(gap.whole(30), None);
    }

    #[test]
    fn the_last_word_on_a_place_counts() {
        let books = Books::default();
        books.enter(entry(1, 0, 20));
        books.enter(entry(2, 10, 30));
        assert_eq!(
            books.whole(30),
            None,
            "the first part was cut otherwise and is not used"
        );
        books.enter(entry(1, 0, 10));
        assert_eq!(books.whole(30).unwrap().len(), 2);
    }

    #[test]
    fn sec_b11_a_wrong_etag_is_the_lanes_fault_until_another_lane_or_the_third_time_says_the_same() {
        let books = Books::default();
        let range = ByteRange::new(0, 10);
        assert!(!books.wrong(range, LaneId(1), "x"));
        assert!(!books.wrong(range, LaneId(2), "y"));
        assert!(!books.wrong(ByteRange::new(10, 20), LaneId(2), "x"));
        assert!(!books.wrong(range, LaneId(1), "x"));
        assert!(books.wrong(range, LaneId(1), "x"), "the third time");
        let books = Books::default();
        assert!(!books.wrong(range, LaneId(1), "x"));
        assert!(books.wrong(range, LaneId(2), "x"), "another lane");
    }

    #[test]
    fn what_was_begun_twice_or_has_an_etag_of_its_own_is_looked_at() {
        let books = Books::default();
        books.begins(1);
        books.enter(entry(1, 0, 20));
        assert!(!books.doubtful() && books.all_sure());
        books.begins(1);
        assert!(books.doubtful());
        let books = Books::default();
        books.enter(Entry {
            sure: false,
            ..entry(1, 0, 20)
        });
        assert!(books.doubtful() && !books.all_sure());
    }

    #[test]
    fn the_services_list_is_compared_by_length_and_etag() {
        let entries = [entry(1, 0, 20), entry(3, 20, 30)];
        let as_listed = |e: &Entry| Listed {
            number: e.number,
            size: e.range.len(),
            etag: e.etag.clone(),
        };
        let mut listed: Vec<Listed> = entries.iter().map(as_listed).collect();
        assert_eq!(different(&entries, &listed), []);
        listed[0].etag = String::new();
        assert_eq!(different(&entries, &listed), []);
        listed[0].etag = "other".into();
        assert_eq!(different(&entries, &listed), [entries[0].clone()]);
        listed[0].size = 19;
        listed.pop();
        assert_eq!(different(&entries, &listed), entries);
    }

    #[test]
    fn an_objects_etag_is_that_of_its_parts_or_tells_nothing() {
        let entries = [entry(1, 0, 20), entry(3, 20, 30)];
        let sums = [entries[0].md5, entries[1].md5].concat();
        let texts = [hex(&entries[0].md5), hex(&entries[1].md5)].concat();
        for right in [hex(&Md5::digest(sums)), hex(&Md5::digest(texts))] {
            assert_eq!(is_etag_of(&format!("{right}-2"), &entries), Some(true));
            assert_eq!(is_etag_of(&format!("{right}-3"), &entries), Some(false));
        }
        assert_eq!(
            is_etag_of(&format!("{}-2", hex(&entries[0].md5)), &entries),
            Some(false)
        );
        for telling_nothing in ["", "abc", "abc-2", &hex(&entries[0].md5)] {
            assert_eq!(is_etag_of(telling_nothing, &entries), None, "{telling_nothing}");
        }
    }
}
