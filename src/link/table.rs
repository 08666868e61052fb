//! Which link stands for which peer, which of two to keep when both ends dialled at once, and who gives way when there are
//! too many.
//!
//! Pure. Invariants: both ends keep the same one of two, because they decide from what both know: the process's session,
//! the handshake's own shared secret, and which link is clearly older. Members always find a place: those who joined by
//! themselves have [`MAX_NEIGHBOURS`] of them, and of one address [`MAX_PER_ADDRESS`] (SEC-A13).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::types::PeerId;

/// No household has more; a flood of identities ends here (SEC-A13).
const MAX_LINKS: usize = 64;
/// Of them, those whom nobody vouched for: every device of a large household that is not set up yet.
const MAX_NEIGHBOURS: usize = 48;
/// A device, and commands on it that run without its daemon.
const MAX_PER_ADDRESS: usize = 4;
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
    /// Where the peer is.
    pub(super) address: IpAddr,
}

/// An entry, and whether it was told to go.
#[derive(Debug)]
struct Held<L> {
    entry: Entry<L>,
    leaving: bool,
}

/// What became of a new link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<L> {
    /// It is the peer's link now. Two dials that `crossed` are one coming.
    Kept {
        /// The peer's older one, to be closed.
        replaced: Option<L>,
        crossed: bool,
        /// Another peer's, to be closed: it gives way, and is in the table until it is removed.
        evicted: Option<L>,
    },
    /// The peer has one already that is kept.
    Duplicate,
    /// There are too many links.
    Full,
}

/// One link for each peer.
#[derive(Debug)]
pub(super) struct Table<L> {
    entries: BTreeMap<PeerId, Held<L>>,
}

impl<L: Clone> Table<L> {
    pub(super) const fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }

    /// `keeps` says who has a place for sure.
    pub(super) fn insert(
        &mut self,
        peer: PeerId,
        new: Entry<L>,
        keeps: impl Fn(PeerId) -> bool,
    ) -> Verdict<L> {
        let evicted = match self.entries.get(&peer) {
            Some(old) if !prefer(&new, &old.entry) => return Verdict::Duplicate,
            Some(old) if !old.leaving => None,
            // Who was told to go has no place any more, however soon it comes again.
            _ => match self.place_for(peer, new.address, keeps) {
                Ok(evicted) => evicted,
                Err(Full) => return Verdict::Full,
            },
        };
        let held = Held {
            entry: new.clone(),
            leaving: false,
        };
        let old = self.entries.insert(peer, held).map(|old| old.entry);
        Verdict::Kept {
            crossed: old.as_ref().is_some_and(|old| crossed(&new, old)),
            replaced: old.map(|old| old.link),
            evicted,
        }
    }

    /// Finds a place for another peer; gives the link that must go for it.
    fn place_for(
        &mut self,
        peer: PeerId,
        address: IpAddr,
        keeps: impl Fn(PeerId) -> bool,
    ) -> Result<Option<L>, Full> {
        let staying = || self.entries.iter().filter(|(_, held)| !held.leaving);
        let all = staying().count();
        // Peers of one machine, in the demo say, all are at its loopback address.
        let crowd = |ip: IpAddr| {
            if ip.is_loopback() {
                0
            } else {
                ip_count(staying(), ip, &keeps)
            }
        };
        let neighbours = staying().filter(|(id, _)| !keeps(**id)).count();
        let here = crowd(address);
        let must_go = if keeps(peer) {
            all >= MAX_LINKS
        } else {
            if here >= MAX_PER_ADDRESS {
                return Err(Full);
            }
            neighbours >= MAX_NEIGHBOURS || all >= MAX_LINKS
        };
        if !must_go {
            return Ok(None);
        }
        // Whoever has the most at one address, the newest of them: a flood does not push out those who were there.
        let victim = staying()
            .filter(|(id, _)| !keeps(**id))
            .map(|(id, held)| ((crowd(held.entry.address), held.entry.since), *id))
            .max();
        let ((most, _), victim) = victim.ok_or(Full)?;
        if !keeps(peer) && most <= here + 1 {
            return Err(Full);
        }
        let held = self.entries.get_mut(&victim).ok_or(Full)?;
        held.leaving = true;
        Ok(Some(held.entry.link.clone()))
    }

    /// Whether there is a link to this process of the peer's.
    pub(super) fn stands(&self, peer: PeerId, session: u64) -> bool {
        self.entries
            .get(&peer)
            .is_some_and(|h| h.entry.session == session)
    }

    /// The peer's link, if it is to another process of it than this one: dead, or of a device with the same key.
    pub(super) fn rival(&self, peer: PeerId, session: u64) -> Option<L> {
        let held = self.entries.get(&peer).filter(|h| h.entry.session != session)?;
        Some(held.entry.link.clone())
    }

    /// Takes the peer's link out if `is_it` says that it is the one that ended.
    pub(super) fn remove(&mut self, peer: PeerId, is_it: impl Fn(&L) -> bool) -> bool {
        let found = self.entries.get(&peer).is_some_and(|h| is_it(&h.entry.link));
        found && self.entries.remove(&peer).is_some()
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &L> {
        self.entries.values().map(|h| &h.entry.link)
    }
}

/// There is no place.
struct Full;

fn ip_count<'a, L: 'a>(
    held: impl Iterator<Item = (&'a PeerId, &'a Held<L>)>,
    ip: IpAddr,
    keeps: impl Fn(PeerId) -> bool,
) -> usize {
    held.filter(|(id, h)| h.entry.address == ip && !keeps(**id))
        .count()
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
        Verdict::Kept {
            replaced,
            crossed,
            evicted: None,
        }
    }

    const fn nobody(_: PeerId) -> bool {
        false
    }

    fn entry(link: u32, session: u64, tie: u8, since: Instant) -> Entry<u32> {
        Entry {
            link,
            session,
            tie: [tie; 8],
            since,
            accepted: false,
            address: [192, 168, 1, 9].into(),
        }
    }

    #[test]
    fn two_dials_that_cross_leave_the_same_link_at_both_ends() {
        let now = Instant::now();
        let links = [entry(1, 9, 20, now), entry(2, 9, 10, now)];
        for order in [[0, 1], [1, 0]] {
            let mut table = Table::new();
            let [_, second] = order.map(|i| table.insert(PEER, links[i].clone(), nobody));
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
        table.insert(PEER, entry(1, 9, 20, Instant::now()), nobody);
        assert!(table.stands(PEER, 9));
        assert!(!table.stands(PEER, 8), "that process is gone");
        assert_eq!((table.rival(PEER, 9), table.rival(PEER, 8)), (None, Some(1)));
    }

    #[test]
    fn a_restarted_peer_replaces_its_dead_link_at_once() {
        let now = Instant::now();
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 1, now), nobody);
        let verdict = table.insert(PEER, entry(2, 10, 200, now + Duration::from_millis(1)), nobody);
        assert_eq!(verdict, kept(Some(1), false), "another process is another coming");
    }

    #[test]
    fn a_settled_link_is_kept_against_a_second_one_of_the_same_process() {
        let now = Instant::now();
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 200, now), nobody);
        assert_eq!(
            table.insert(PEER, entry(2, 9, 1, now + SETTLED), nobody),
            Verdict::Duplicate
        );
    }

    #[test]
    fn a_peer_that_dials_again_has_lost_the_settled_link_and_gets_the_new_one() {
        let now = Instant::now();
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 1, now), nobody);
        let dialled = |link, tie, at| Entry {
            accepted: true,
            ..entry(link, 9, tie, at)
        };
        let crossing = dialled(2, 200, now + SETTLED / 2);
        assert_eq!(
            table.insert(PEER, crossing, nobody),
            Verdict::Duplicate,
            "two that cross"
        );
        let later = dialled(3, 200, now + SETTLED);
        assert_eq!(table.insert(PEER, later, nobody), kept(Some(1), false));
    }

    #[test]
    fn only_the_link_that_ended_is_removed() {
        let mut table = Table::new();
        table.insert(PEER, entry(1, 9, 1, Instant::now()), nobody);
        assert!(!table.remove(PEER, |&l| l == 7));
        assert!(table.remove(PEER, |&l| l == 1));
        assert_eq!(table.links().count(), 0);
    }

    fn id(n: usize) -> PeerId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        PeerId(id)
    }

    fn at(link: usize, address: [u8; 4]) -> Entry<u32> {
        Entry {
            address: address.into(),
            ..entry(link as u32, 1, 1, Instant::now())
        }
    }

    #[test]
    fn sec_a13_one_address_has_four_places_and_all_neighbours_48_and_members_all() {
        let mut table = Table::new();
        let none = |n: usize| table_full(&mut table, n, [10, 0, 0, 1]);
        assert_eq!((0..10).map(none).filter(|kept| *kept).count(), MAX_PER_ADDRESS);
        let mut table = Table::new();
        for n in 0..MAX_NEIGHBOURS {
            assert!(table_full(&mut table, n, [10, 0, (n / 200) as u8, n as u8]));
        }
        assert!(
            !table_full(&mut table, 900, [10, 0, 9, 9]),
            "each has its own address"
        );
        // Everybody from here on is a member.
        let member = |peer: PeerId| peer >= id(1000);
        for n in 1000..1000 + MAX_LINKS {
            let verdict = table.insert(id(n), at(n, [10, 0, 8, 1]), member);
            let Verdict::Kept { evicted, .. } = verdict else {
                panic!("member {n} has no place: {verdict:?}")
            };
            assert_eq!(evicted.is_some(), n - 1000 >= MAX_LINKS - MAX_NEIGHBOURS);
            if let Some(link) = evicted {
                assert!(link < 1000, "a neighbour gives way");
                assert!(table.remove(id(link as usize), |&l| l == link));
            }
        }
        assert_eq!(table.links().count(), MAX_LINKS);
        assert_eq!(
            table.insert(id(2000), at(1, [10, 0, 8, 2]), member),
            Verdict::Full
        );
        assert_eq!(table.insert(id(1), at(1, [10, 0, 8, 3]), member), Verdict::Full);
    }

    #[test]
    fn sec_a13_who_crowds_at_few_addresses_gives_way_to_one_at_its_own_the_newest_first() {
        let mut table = Table::new();
        for n in 0..MAX_NEIGHBOURS {
            assert!(table_full(&mut table, n, [10, 0, 0, (n / MAX_PER_ADDRESS) as u8]));
        }
        let first = table.insert(id(500), at(500, [10, 0, 1, 1]), nobody);
        let Verdict::Kept {
            evicted: Some(gone), ..
        } = first
        else {
            panic!("{first:?}")
        };
        assert_eq!(
            gone % MAX_PER_ADDRESS as u32,
            MAX_PER_ADDRESS as u32 - 1,
            "the newest there"
        );
        // It is still closing, and is not told to go twice.
        let second = table.insert(id(501), at(501, [10, 0, 1, 2]), nobody);
        assert!(matches!(second, Verdict::Kept { evicted: Some(other), .. } if other != gone));
    }

    fn table_full(table: &mut Table<u32>, n: usize, address: [u8; 4]) -> bool {
        table.insert(id(n), at(n, address), nobody) != Verdict::Full
    }

    #[test]
    fn peers_of_one_machine_on_loopback_are_not_limited_by_address() {
        let mut table = Table::new();
        assert!((0..20).all(|n| table_full(&mut table, n, [127, 0, 0, 1])));
    }

    #[test]
    fn prop_12_a_hundred_thousand_hostile_handshakes_leave_no_more_links_than_there_are_places() {
        let start = Instant::now();
        let mut table = Table::new();
        let member = |id: PeerId| id.0[0] < 32;
        let mut most = 0;
        for n in 0..100_000_u32 {
            // In no order, the same each time.
            let [a, b, c, d] = n.wrapping_add(1).wrapping_mul(0x9e37_79b9).to_be_bytes();
            let peer = PeerId([a; 32]);
            // Those who were told to go do so some time later, and come again before that.
            if d % 8 == 0 {
                let link = table.entries.get(&peer).map(|held| held.entry.link);
                table.remove(peer, |l| Some(*l) == link);
                continue;
            }
            let mut new = entry(n, (b % 3).into(), c, start + Duration::from_millis(n.into()));
            new.accepted = d % 2 == 0;
            new.address = [192, 168, 1, a % 40].into();
            table.insert(peer, new, member);
            let staying = || table.entries.iter().filter(|(_, held)| !held.leaving);
            let neighbours = || staying().filter(|(id, _)| !member(**id));
            assert!(staying().count() <= MAX_LINKS && neighbours().count() <= MAX_NEIGHBOURS);
            for (_, held) in neighbours() {
                let here = neighbours().filter(|(_, other)| other.entry.address == held.entry.address);
                assert!(here.count() <= MAX_PER_ADDRESS, "{}", held.entry.address);
            }
            most = most.max(staying().count());
        }
        assert_eq!(most, MAX_LINKS, "the flood got in");
    }
}
