//! What became of each file, and when one has had its chances.
//!
//! Invariants: a file is sent, the same, or left out with its reason, once; what one lane left out and another one sent
//! counts as sent.

use std::collections::{BTreeMap, BTreeSet};

use crate::upload::{Files, Item};

/// Files left out that are named in the end; of the others their number is told.
const MAX_TOLD: usize = 100;
/// So often the server may fail with a file where it took others: then it is the file. Below what it may fail in a row.
const MAX_FAULTS: u32 = 4;
/// So often lanes may break with a file while others get through.
const MAX_BREAKS: u32 = 8;
/// So often they may in any case: what is wrong with lines is the scheduler's to judge, for minutes.
const MOST_BREAKS: u32 = 20;
/// So many files left out, and none sent, are enough to know.
const HOPELESS: usize = 10;

/// A file's attempts.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    begun: u32,
    faults: u32,
    breaks: u32,
    /// Files that had been sent when a lane broke with it first.
    sent_then: usize,
}

/// What became of the files so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// How many there are to send.
    to_send: usize,
    /// There already.
    same: u64,
    /// Left out before anything was sent, and why.
    before: Vec<(String, String)>,
    sent: BTreeSet<usize>,
    left_out: BTreeMap<usize, String>,
    trials: BTreeMap<usize, Trial>,
}

impl Ledger {
    /// Before anything is sent: how many files there are to send, how many are there, and what is left out.
    pub(super) fn new(to_send: usize, same: u64, before: Vec<(String, String)>) -> Self {
        Self {
            to_send,
            same,
            before,
            ..Self::default()
        }
    }

    /// A lane begins to send a file.
    pub(super) fn begins(&mut self, item: usize) {
        self.trials.entry(item).or_default().begun += 1;
    }

    /// The server has it.
    pub(super) fn sent(&mut self, item: usize) {
        self.sent.insert(item);
        self.left_out.remove(&item);
    }

    /// It will not be sent.
    pub(super) fn leave_out(&mut self, item: usize, why: String) {
        self.sent.remove(&item);
        self.left_out.insert(item, why);
    }

    /// The server failed with it; says whether it has had its chances.
    pub(super) fn faulted(&mut self, item: usize) -> bool {
        let trial = self.trials.entry(item).or_default();
        trial.faults += 1;
        trial.faults >= MAX_FAULTS && !self.sent.is_empty()
    }

    /// Its lane broke; says whether it has had its chances.
    pub(super) fn broke(&mut self, item: usize) -> bool {
        let sent = self.sent.len();
        let trial = self.trials.entry(item).or_default();
        if trial.breaks == 0 {
            trial.sent_then = sent;
        }
        trial.breaks += 1;
        let others_got_through = sent > trial.sent_then;
        trial.breaks >= MOST_BREAKS || (trial.breaks >= MAX_BREAKS && others_got_through)
    }

    /// Whether the server takes none of the files.
    pub(super) fn is_hopeless(&self) -> bool {
        self.sent.is_empty() && self.same == 0 && self.left_out.len() >= HOPELESS.min(self.to_send)
    }

    /// Files that are there, and were begun more than once: a server that writes in place may have had the end of one attempt
    /// cut by the other.
    pub(super) fn doubtful(&self) -> Vec<usize> {
        let begun = |item: &usize| self.trials.get(item).is_some_and(|trial| trial.begun > 1);
        self.sent.iter().copied().filter(begun).collect()
    }

    /// All of it, for people.
    pub(super) fn files(&self, items: &[Item]) -> Files {
        let name = |item: usize| items.get(item).map(|item| item.name.clone()).unwrap_or_default();
        let sending = self.left_out.iter().map(|(item, why)| (name(*item), why.clone()));
        let all = self.before.iter().cloned().chain(sending);
        Files {
            sent: self.sent.len() as u64,
            same: self.same,
            left_out: all.take(MAX_TOLD).collect(),
            left_out_count: (self.before.len() + self.left_out.len()) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn items(n: usize) -> Vec<Item> {
        let item = |n| Item {
            name: format!("f{n}"),
            size: 1,
            modified: UNIX_EPOCH,
        };
        (0..n).map(item).collect()
    }

    #[test]
    fn each_file_is_told_once_and_reasons_are_bounded() {
        let mut ledger = Ledger::new(300, 7, vec![("link".into(), "a link".into())]);
        ledger.leave_out(0, "lane 1 could not".into());
        ledger.sent(0);
        ledger.sent(0);
        for item in 1..200 {
            ledger.leave_out(item, "no".into());
        }
        let files = ledger.files(&items(300));
        assert_eq!((files.sent, files.same, files.left_out_count), (1, 7, 200));
        assert_eq!(files.left_out.len(), MAX_TOLD);
        assert_eq!(files.left_out[0], ("link".into(), "a link".into()));
        assert_eq!(files.left_out[1], ("f1".into(), "no".into()));
    }

    #[test]
    fn a_file_whose_lanes_break_while_others_get_through_is_left_out_soon_and_alone_late() {
        let mut ledger = Ledger::default();
        let breaks = |ledger: &mut Ledger| (1..).find(|_| ledger.broke(0)).unwrap();
        assert_eq!(breaks(&mut ledger.clone()), MOST_BREAKS);
        assert!(!ledger.broke(0));
        ledger.sent(1);
        assert_eq!(breaks(&mut ledger), MAX_BREAKS - 1);
    }

    #[test]
    fn a_file_that_the_server_fails_with_is_left_out_where_it_took_another_one() {
        let mut ledger = Ledger::default();
        assert!((0..100).all(|_| !ledger.faulted(0)), "it fails with all there is");
        ledger.sent(1);
        assert!(ledger.faulted(0));
        let few = |ledger: &mut Ledger| (1..).find(|_| ledger.faulted(2)).unwrap();
        assert_eq!(few(&mut ledger), MAX_FAULTS);
    }

    #[test]
    fn where_nothing_is_taken_it_is_soon_known() {
        let mut few = Ledger::new(2, 0, Vec::new());
        few.leave_out(0, "no".into());
        assert!(!few.is_hopeless());
        few.leave_out(1, "no".into());
        assert!(few.is_hopeless());
        let mut many = Ledger::new(1000, 0, Vec::new());
        (0..HOPELESS).for_each(|item| many.leave_out(item, "no".into()));
        assert!(many.is_hopeless());
        many.sent(999);
        assert!(!many.is_hopeless());
    }

    #[test]
    fn what_was_begun_twice_is_doubtful() {
        let mut ledger = Ledger::default();
        for item in [0, 1, 1, 2, 2] {
            ledger.begins(item);
        }
        ledger.sent(0);
        ledger.sent(1);
        assert_eq!(ledger.doubtful(), [1], "the other one is not there");
    }
}
