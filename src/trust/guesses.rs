//! How often the passphrase may be guessed.
//!
//! Pure. Whoever makes up new identities would have three guesses for each, so all of them together are counted too. What
//! they can bring about is that the passphrase admits nobody for an hour: tokens (128 bits, nothing to guess) and codes
//! that people compare go on, and who is a member stays one. Invariant: bounded by its own limits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::types::PeerId;

/// One device's wrong runs within [`PEER_WINDOW`].
pub const OF_PEER: usize = 3;
/// Somebody who mistyped it tries again after a cup of tea.
pub const PEER_WINDOW: Duration = Duration::from_secs(600);
/// All devices' wrong runs within [`ALL_WINDOW`]: a passphrase of four common words takes a million years.
pub const OF_ALL: usize = 10;
/// Afterwards it is closed as long.
pub const ALL_WINDOW: Duration = Duration::from_secs(3600);

/// The wrong runs that count.
#[derive(Debug, Default)]
pub struct Guesses {
    wrong: VecDeque<(PeerId, Instant)>,
    closed: Option<Instant>,
}

impl Guesses {
    /// Counts a run as wrong before it is known to be; false where that peer has none left, or nobody has.
    pub fn spend(&mut self, peer: PeerId, now: Instant) -> bool {
        self.forget(now);
        if self.closed.is_some() {
            return false;
        }
        let recent = |(of, at): &&(PeerId, Instant)| *of == peer && now.duration_since(*at) < PEER_WINDOW;
        if self.wrong.iter().filter(recent).count() >= OF_PEER {
            return false;
        }
        self.wrong.push_back((peer, now));
        if self.wrong.len() >= OF_ALL {
            self.closed = Some(now);
        }
        true
    }

    /// It was right.
    pub fn give_back(&mut self, peer: PeerId) {
        if let Some(last) = self.wrong.iter().rposition(|(of, _)| *of == peer) {
            self.wrong.remove(last);
            self.closed = self.closed.filter(|_| self.wrong.len() >= OF_ALL);
        }
    }

    /// Whether nobody has one.
    pub const fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    fn forget(&mut self, now: Instant) {
        if self.closed.is_some_and(|at| now.duration_since(at) >= ALL_WINDOW) {
            self.closed = None;
            self.wrong.clear();
        }
        if self.closed.is_none() {
            self.wrong.retain(|(_, at)| now.duration_since(*at) < ALL_WINDOW);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn sec_a20_one_peer_has_three_guesses_in_ten_minutes() {
        let (mut guesses, start) = (Guesses::default(), Instant::now());
        for n in 0..3 {
            assert!(guesses.spend(peer(1), start + Duration::from_secs(n)));
        }
        assert!(!guesses.spend(peer(1), start + PEER_WINDOW - Duration::from_secs(1)));
        assert!(
            guesses.spend(peer(2), start + Duration::from_secs(9)),
            "another is not to blame"
        );
        assert!(
            guesses.spend(peer(1), start + PEER_WINDOW),
            "the first one is forgotten"
        );
        assert!(
            !guesses.spend(peer(1), start + PEER_WINDOW),
            "the second one is not"
        );
    }

    #[test]
    fn sec_a20_after_ten_of_all_nobody_has_one_for_an_hour() {
        let (mut guesses, start) = (Guesses::default(), Instant::now());
        for n in 0..10 {
            assert!(guesses.spend(peer(n), start), "identity {n}");
        }
        assert!(guesses.is_closed());
        let mut got = 0;
        for second in 0..3600 {
            got += u32::from(guesses.spend(peer(100), start + Duration::from_secs(second)));
        }
        assert_eq!(got, 0);
        assert!(guesses.spend(peer(100), start + ALL_WINDOW));
        assert!(guesses.wrong.len() <= OF_ALL);
    }

    #[test]
    fn a_right_one_does_not_count_and_opens_what_it_had_closed() {
        let (mut guesses, start) = (Guesses::default(), Instant::now());
        for n in 0..100 {
            assert!(guesses.spend(peer(n), start));
            guesses.give_back(peer(n));
        }
        for n in 0..9 {
            assert!(guesses.spend(peer(n), start));
        }
        assert!(guesses.spend(peer(50), start) && guesses.is_closed());
        guesses.give_back(peer(50));
        assert!(!guesses.is_closed());
        guesses.give_back(peer(51));
        assert_eq!(guesses.wrong.len(), 9, "who has spent none gets none back");
    }
}
