//! Which link stands for which peer, and which of two to keep when both ends dialled at once.
//!
//! Pure. Invariant: both ends keep the same one, because they decide from what both know: the process's session, the
//! handshake's own shared secret, and which link is clearly older.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::types::PeerId;

/// No household has more; a flood of identities ends here (SEC-A13).
pub(super) const MAX_LINKS: usize = 64;
/// Older than this, a link is not judged by the shared secret any more: it carries tunnels. Two dials that cross each other
/// are milliseconds apart, so both ends see the same side of it.
const SETTLED: Duration = Duration::from_secs(5);

/// What is known of one link when it is decided about.
#[derive(Clone, Debug)]
pub(super) struct Entry<L> {
    pub(super) link: L,
    /// The peer's process.
    pub(super) session: u64,
    /// From the TLS exporter: the same at both ends.
    pub(super) tie: [u8; 8],
    pub(super) since: Instant,
    /// The peer dialled.
    pub(super) accepted: bool,
}

/// What became of a new link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<L> {
    /// It is the peer's link now; the one it replaced, if any, is to be closed. Two dials that `crossed` are one coming.
    Kept { replaced: Option<L>, crossed: bool },
    /// The peer has one already that is kept.
    Duplicate,
    /// There are too many links.
    Full,
}

/// One link for each peer.
#[derive(Debug)]
pub(super) struct Table<L> {
    entries: BTreeMap<PeerId, Entry<L>>,
}

impl<L: Clone> Table<L> {
    pub(super) const fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }

    pub(super) fn insert(&mut self, peer: PeerId, new: Entry<L>) -> Verdict<L> {
        match self.entries.get(&peer) {
            None if self.entries.len() >= MAX_LINKS => Verdict::Full,
            Some(old) if !prefer(&new, old) => Verdict::Duplicate,
            old => Verdict::Kept {
                crossed: old.is_some_and(|old| crossed(&new, old)),
                replaced: self.entries.insert(peer, new).map(|old| old.link),
            },
        }
    }

    /// Whether there is a link to this process of the peer's.
    pub(super) fn stands(&self, peer: PeerId, session: u64) -> bool {
        self.entries.get(&peer).is_some_and(|e| e.session == session)
    }

    /// The peer's link, if it is to another process of it than this one: dead, or of a device with the same key.
    pub(super) fn rival(&self, peer: PeerId, session: u64) -> Option<L> {
        let entry = self.entries.get(&peer).filter(|e| e.session != session)?;
        Some(entry.link.clone())
    }

    /// Takes the peer's link out if `is_it` says that it is the one that ended.
    pub(super) fn remove(&mut self, peer: PeerId, is_it: impl Fn(&L) -> bool) -> bool {
        let found = self.entries.get(&peer).is_some_and(|e| is_it(&e.link));
        found && self.entries.remove(&peer).is_some()
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &L> {
        self.entries.values().map(|e| &e.link)
    }
}

/// Both ends dialled at once.
fn crossed<L>(new: &Entry<L>, old: &Entry<L>) -> bool {
    new.session == old.session && new.since.saturating_duration_since(old.since) < SETTLED
}

fn prefer<L>(new: &Entry<L>, old: &Entry<L>) -> bool {
    if new.session != old.session {
        return true;
    }
    if crossed(new, old) {
        return new.tie < old.tie;
    }
    // Who dials steps back where it has a link that stands. So the peer that came through to here has none: it moved to
    // another address, or was suspended, and what we have is only not yet timed out.
    new.accepted
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId([1; 32]);

    const fn kept(replaced: Option<u32>, crossed: bool) -> Verdict<u32> {
        Verdict::Kept { replaced, crossed }
    }

    fn entry(link: u32, session: u64, tie: u8, since: Instant) -> Entry<u32> {
        Entry {
            link,
            session,
            tie: [tie; 8],
            since,
            accepted: false,
        }
    }

    #[test]
    fn two_dials_that_cross_leave_the_same_link_at_both_ends() {
        let now = Instant::now();
        let links = [entry(1, 9, 20, now), entry(2, 9, 10, now)];
        for order in [[0, 1], [1, 0]] {
            let mut table = Table::new();
            let [_, second] = order.map(|i| table.insert(PEER, links[i].clone()));
            let told = if order[1] == 1 {
                kept(Some(1), true)
            } else {
                Verdict::Duplicate
            };
            assert_eq!(second, told, "one coming, whichever came first");
            assert_eq!(table.links().collect::<Vec<_>>(), [&2], "first came {}", order[0]);
        }
    }

    #[test]
    fn a_link_stands_for_one_process_of_the_peer() {
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 20, Instant::now()));
        assert!(table.stands(PEER, 9));
        assert!(!table.stands(PEER, 8), "that process is gone");
        assert_eq!((table.rival(PEER, 9), table.rival(PEER, 8)), (None, Some(1)));
    }

    #[test]
    fn a_restarted_peer_replaces_its_dead_link_at_once() {
        let now = Instant::now();
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 1, now));
        let verdict = table.insert(PEER, entry(2, 10, 200, now + Duration::from_millis(1)));
        assert_eq!(verdict, kept(Some(1), false), "another process is another coming");
    }

    #[test]
    fn a_settled_link_is_kept_against_a_second_one_of_the_same_process() {
        let now = Instant::now();
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 200, now));
        assert_eq!(
            table.insert(PEER, entry(2, 9, 1, now + SETTLED)),
            Verdict::Duplicate
        );
    }

    #[test]
    fn a_peer_that_dials_again_has_lost_the_settled_link_and_gets_the_new_one() {
        let now = Instant::now();
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 1, now));
        let dialled = |link, tie, at| Entry {
            accepted: true,
            ..entry(link, 9, tie, at)
        };
        let crossing = dialled(2, 200, now + SETTLED / 2);
        assert_eq!(table.insert(PEER, crossing), Verdict::Duplicate, "two that cross");
        let later = dialled(3, 200, now + SETTLED);
        assert_eq!(table.insert(PEER, later), kept(Some(1), false));
    }

    #[test]
    fn only_the_link_that_ended_is_removed() {
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 1, Instant::now()));
        assert!(!table.remove(PEER, |&l| l == 7));
        assert!(table.remove(PEER, |&l| l == 1));
        assert_eq!(table.links().count(), 0);
    }

    #[test]
    fn sec_a13_a_flood_of_identities_is_cut_off() {
        let mut table = Table::new();
        let now = Instant::now();
        for i in 0..MAX_LINKS {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&i.to_be_bytes());
            assert_eq!(table.insert(PeerId(id), entry(1, 1, 1, now)), kept(None, false));
        }
        assert_eq!(
            table.insert(PeerId([0xff; 32]), entry(1, 1, 1, now)),
            Verdict::Full
        );
    }
}
