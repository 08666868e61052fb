//! On whose word the pieces of one download were taken, who was found to have lied, and what is to be taken back for it.
//!
//! The driver and the sources' workers share it: a worker can be stopped between writing a piece and telling the driver,
//! and what it wrote must be known nevertheless.
//!
//! Invariants: a word is noted before a byte is written on it; on the word of who lied nothing is written any more, nor
//! into a piece that is to be taken back; who lied is told by bytes of the origin that this run brought, never by another
//! member's, nor by those of an earlier run, of which nobody knows any more on whose word they came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::share::Attested;
use crate::types::PeerId;

/// The words of one download. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Words(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// On whose word there is something of a piece: of several witnesses where one's was not all of it.
    taken: BTreeMap<u64, Vec<Attested>>,
    /// What was said of pieces of which not all of it can be true. Only the origin can tell which.
    disputed: BTreeMap<u64, Vec<Attested>>,
    /// Pieces of which an earlier run left something.
    earlier: BTreeSet<u64>,
    liars: BTreeSet<PeerId>,
    /// Who was found out and not yet dealt with.
    new_liars: Vec<PeerId>,
    /// Disputed pieces that are not yet taken back.
    doubtful: BTreeSet<u64>,
    /// Nobody's word counts any more.
    closed: bool,
}

impl Words {
    /// None yet. `earlier`: the pieces of which an earlier run left something.
    pub(super) fn new(earlier: impl Iterator<Item = u64>) -> Self {
        let state = State {
            earlier: earlier.collect(),
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Whether the piece may be written on that word, which is noted then.
    pub(super) fn take(&self, piece: u64, leaf: Attested) -> bool {
        let mut state = self.state();
        if state.closed || state.liars.contains(&leaf.witness) || state.disputed.contains_key(&piece) {
            return false;
        }
        if state.has_a_liars(piece) {
            return false;
        }
        let taken = state.taken.entry(piece).or_default();
        if !taken.contains(&leaf) {
            taken.push(leaf);
        }
        true
    }

    /// What is there of the piece is something else than that word says.
    pub(super) fn differs(&self, piece: u64, leaf: Attested) {
        let mut state = self.state();
        if state.has_a_liars(piece) {
            return;
        }
        let taken = state.taken.get(&piece).map_or(&[][..], |taken| &taken[..]);
        if taken.iter().all(|other| *other == leaf) && !state.earlier.contains(&piece) {
            state.lied(leaf.witness);
        } else {
            state.dispute(piece, &[leaf]);
        }
    }

    /// All of the piece is there and has this hash: whether that is what everybody said on whose word there is something of
    /// it. Where nobody's is, it came from the origin, and who said something else has lied.
    pub(super) fn is(&self, piece: u64, hash: [u8; 32], said: &[Attested]) -> bool {
        let mut state = self.state();
        let is_earlier = state.earlier.contains(&piece);
        let Some(taken) = state.taken.get(&piece) else {
            if is_earlier && said.iter().any(|leaf| leaf.hash != hash) {
                state.dispute(piece, said);
                return false;
            }
            let disputed = state.disputed.remove(&piece).unwrap_or_default();
            let liars = disputed.iter().chain(said).filter(|leaf| leaf.hash != hash);
            liars.for_each(|leaf| state.lied(leaf.witness));
            return true;
        };
        if taken.iter().all(|leaf| leaf.hash == hash) {
            return true;
        }
        match taken[..] {
            [leaf] if !is_earlier => state.lied(leaf.witness),
            _ => state.dispute(piece, &[]),
        }
        false
    }

    /// On whose word there is something of the piece; where an earlier run left it, whoever says the same of it now.
    pub(super) fn of(&self, piece: u64, said: &[Attested]) -> Option<PeerId> {
        let state = self.state();
        let taken = state.taken.get(&piece).and_then(|taken| taken.first());
        let same = said.first().filter(|_| state.earlier.contains(&piece));
        taken.or(same).map(|leaf| leaf.witness)
    }

    /// The pieces of which there is something on somebody's word.
    pub(super) fn pieces(&self) -> Vec<u64> {
        self.state().taken.keys().copied().collect()
    }

    /// The pieces that only the origin can bring.
    pub(super) fn disputed(&self) -> Vec<u64> {
        self.state().disputed.keys().copied().collect()
    }

    /// From now on nothing is written on anybody's word.
    pub(super) fn close(&self) {
        self.state().closed = true;
    }

    /// Who was found out since this was asked last; `None`: nobody, and nothing is to be taken back.
    pub(super) fn found_out(&self) -> Option<Vec<PeerId>> {
        let mut state = self.state();
        let liars = std::mem::take(&mut state.new_liars);
        (!liars.is_empty() || !state.doubtful.is_empty()).then_some(liars)
    }

    /// Whether [`found_out`](Self::found_out) has something to say.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state();
        state.new_liars.is_empty() && state.doubtful.is_empty()
    }

    /// What is to be taken back. Complete only once no write is under way that began before somebody was found out.
    pub(super) fn to_take_back(&self) -> Vec<u64> {
        let state = self.state();
        let on_lies = state
            .taken
            .keys()
            .copied()
            .filter(|piece| state.has_a_liars(*piece));
        let pieces: BTreeSet<u64> = on_lies.chain(state.doubtful.iter().copied()).collect();
        pieces.into_iter().collect()
    }

    /// These were taken back: nothing of them is there on anybody's word.
    pub(super) fn taken_back(&self, pieces: &[u64]) {
        let mut state = self.state();
        for piece in pieces {
            state.taken.remove(piece);
            state.doubtful.remove(piece);
            state.earlier.remove(piece);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lied(&mut self, witness: PeerId) {
        if self.liars.insert(witness) {
            self.new_liars.push(witness);
        }
    }

    fn has_a_liars(&self, piece: u64) -> bool {
        let taken = self.taken.get(&piece).into_iter().flatten();
        taken.into_iter().any(|leaf| self.liars.contains(&leaf.witness))
    }

    fn dispute(&mut self, piece: u64, also: &[Attested]) {
        let taken = self.taken.get(&piece).cloned().unwrap_or_default();
        let disputed = self.disputed.entry(piece).or_default();
        disputed.extend(taken.into_iter().chain(also.iter().copied()));
        self.doubtful.insert(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: [u8; 32] = [1; 32];

    fn word(witness: u8, hash: u8) -> Attested {
        Attested {
            hash: [hash; 32],
            witness: PeerId([witness; 32]),
        }
    }

    fn liar(witness: u8) -> PeerId {
        PeerId([witness; 32])
    }

    #[test]
    fn all_that_was_written_on_a_liars_word_is_taken_back_and_nothing_more_is_written_on_it() {
        let words = Words::default();
        assert!(words.take(1, word(7, 2)) && words.take(2, word(7, 3)) && words.take(3, word(8, 4)));
        assert!(words.found_out().is_none() && words.is_settled());
        words.differs(4, word(7, 5));
        assert!(!words.is_settled());
        assert!(!words.take(5, word(7, 6)), "on a liar's word");
        assert!(
            !words.take(1, word(8, 1)),
            "into a piece that is to be taken back"
        );
        assert_eq!(words.found_out(), Some(vec![liar(7)]));
        assert_eq!(words.to_take_back(), [1, 2]);
        words.taken_back(&[1, 2]);
        assert_eq!((words.pieces(), words.to_take_back()), (vec![3], vec![]));
        assert!(words.take(1, word(8, 1)) && words.found_out().is_none());
    }

    #[test]
    fn of_two_members_that_contradict_each_other_the_origin_says_who_lied() {
        let words = Words::default();
        assert!(words.take(1, word(7, 2)));
        words.differs(1, word(8, 1));
        assert_eq!(words.found_out(), Some(vec![]), "nobody is accused yet");
        assert_eq!((words.to_take_back(), words.disputed()), (vec![1], vec![1]));
        words.taken_back(&[1]);
        assert!(
            !words.take(1, word(8, 1)) && words.is_settled(),
            "only the origin brings it"
        );
        assert!(words.is(1, HASH, &[]));
        assert_eq!(words.found_out(), Some(vec![liar(7)]));
        assert!(words.disputed().is_empty() && words.take(1, word(8, 1)));
    }

    #[test]
    fn a_piece_of_which_the_origin_brought_some_shows_whether_its_witness_lied() {
        let words = Words::default();
        assert!(words.take(1, word(7, 2)) && words.take(2, word(7, 1)));
        assert!(words.is(2, HASH, &[]) && !words.is(1, HASH, &[]));
        assert_eq!(words.found_out(), Some(vec![liar(7)]));
    }

    #[test]
    fn what_came_from_the_origin_alone_shows_who_said_something_else() {
        let words = Words::default();
        assert!(words.is(1, HASH, &[word(7, 1), word(8, 2)]));
        assert_eq!(words.found_out(), Some(vec![liar(8)]));
        assert!(words.to_take_back().is_empty());
    }

    #[test]
    fn once_closed_nothing_is_written_on_anybodys_word() {
        let words = Words::default();
        words.close();
        assert!(!words.take(1, word(7, 1)) && words.of(1, &[]).is_none());
    }

    #[test]
    fn nobody_is_accused_by_what_an_earlier_run_left() {
        let words = Words::new([1, 2, 3, 4].into_iter());
        assert!(words.take(2, word(7, 1)));
        words.differs(1, word(7, 1));
        assert!(!words.is(2, [9; 32], &[]) && !words.is(3, [9; 32], &[word(8, 1)]));
        assert_eq!(words.found_out(), Some(vec![]));
        assert_eq!(words.to_take_back(), [1, 2, 3]);
        words.taken_back(&[1, 2, 3]);
        assert!(words.is(1, HASH, &[]) && words.is(3, HASH, &[]) && words.found_out().is_none());
        assert!(words.is(2, [9; 32], &[]), "the origin brought it now");
        assert_eq!(words.found_out(), Some(vec![liar(7)]));
        assert!(words.is(4, HASH, &[word(8, 1)]));
        assert_eq!(words.of(4, &[word(8, 1)]), Some(liar(8)));
        assert_eq!((words.of(4, &[]), words.of(5, &[word(8, 1)])), (None, None));
    }
}
