//! The bounded memory of who has been seen, and what of it is still to be told.
//!
//! Pure. Invariants: at most [`MAX_CANDIDATES`] entries, at most [`MAX_PER_ADDRESS`] of them sharing an address (but for
//! loopback); new ones come in at most [`NEW_PER_SECOND`]; what is to be told is bounded by the same numbers.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::discovery::{Candidate, Event};
use crate::uplink::limit::Bucket;

/// A household has a handful; a flood of names must not cost memory.
pub(super) const MAX_CANDIDATES: usize = 256;
/// Runs of one device that died without a goodbye, say; a newer one takes the place of the one longest unheard.
pub(super) const MAX_PER_ADDRESS: usize = 4;
/// New names at new addresses taken in a second.
const NEW_PER_SECOND: u64 = 50;
/// And at once: every address of a /24, so that a flood at a device's start does not hide those who are really there.
const NEW_AT_ONCE: u64 = MAX_CANDIDATES as u64;
/// New names at addresses that others have, too. They are counted apart: a LAN has few addresses, so a flood of names soon
/// has used up those it can claim, and a newcomer at an address of its own does not compete with it.
const SHARED_PER_SECOND: u64 = 10;
/// Names of lost candidates waiting to be told; more are dropped, as `Lost` is only a hint.
pub(super) const MAX_UNTOLD: usize = 2 * MAX_CANDIDATES;

#[derive(Debug)]
struct Entry {
    candidate: Candidate,
    /// Counts up with each sighting: the smallest was not seen for longest.
    seen: u64,
    told: bool,
}

/// Who has been seen.
#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<String, Entry>,
    untold: BTreeSet<String>,
    clock: u64,
    new: Bucket,
    shared: Bucket,
}

impl Table {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            entries: HashMap::new(),
            untold: BTreeSet::new(),
            clock: 0,
            new: bucket(NEW_PER_SECOND, NEW_AT_ONCE, now),
            shared: bucket(SHARED_PER_SECOND, SHARED_PER_SECOND, now),
        }
    }

    /// Takes in a sighting. False if it was one new name too many for now: ask again later.
    pub(super) fn seen(&mut self, candidate: Candidate, now: Instant) -> bool {
        self.clock += 1;
        let seen = self.clock;
        if let Some(entry) = self.entries.get_mut(&candidate.instance) {
            entry.seen = seen;
            if entry.candidate == candidate {
                return true;
            }
        } else if !self.take_token(&candidate, now) {
            return false;
        }
        let name = candidate.instance.clone();
        // Its old entry must not count against it.
        let told = self.entries.remove(&name).is_some_and(|e| e.told);
        self.make_room(&candidate);
        self.untold.insert(name.clone());
        let entry = Entry {
            candidate,
            seen,
            told,
        };
        self.entries.insert(name, entry);
        true
    }

    /// Forgets one.
    pub(super) fn lost(&mut self, instance: &str) {
        let told = self.entries.remove(instance).is_some_and(|e| e.told);
        self.untold.remove(instance);
        if told && self.untold.len() < MAX_UNTOLD {
            self.untold.insert(instance.to_owned());
        }
    }

    /// Sightings so far.
    pub(super) const fn count(&self) -> u64 {
        self.clock
    }

    /// Forgets all that were seen last when [`count`](Self::count) was `count` or less.
    pub(super) fn forget_unseen_since(&mut self, count: u64) {
        let unseen = self.entries.values().filter(|e| e.seen <= count);
        let unseen: Vec<String> = unseen.map(|e| e.candidate.instance.clone()).collect();
        for instance in unseen {
            self.lost(&instance);
        }
    }

    /// Whether there is something to tell.
    pub(super) fn has_event(&self) -> bool {
        !self.untold.is_empty()
    }

    /// The next thing to tell, in its newest state.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let instance = self.untold.pop_first()?;
        Some(match self.entries.get_mut(&instance) {
            Some(entry) => {
                entry.told = true;
                Event::Found(entry.candidate.clone())
            }
            None => Event::Lost { instance },
        })
    }

    /// Entries, and names to be told.
    #[cfg(any(fuzzing, test))]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.entries.len(), self.untold.len())
    }

    fn make_room(&mut self, newcomer: &Candidate) {
        for ip in newcomer
            .addresses
            .iter()
            .map(|a| a.ip())
            .filter(|ip| !ip.is_loopback())
        {
            while self
                .oldest(ip_of(ip), MAX_PER_ADDRESS)
                .is_some_and(|name| self.evict(&name))
            {}
        }
        // Those who share their address first: a single peer must not be crowded out by many names at a few addresses.
        while self.entries.len() >= MAX_CANDIDATES {
            let crowded = self.oldest(|c| self.is_shared(c), 1);
            let Some(name) = crowded.or_else(|| self.oldest(|_| true, 1)) else {
                return;
            };
            self.evict(&name);
        }
    }

    /// Whether somebody else is at each of its addresses.
    fn is_shared(&self, candidate: &Candidate) -> bool {
        let taken = |ip: IpAddr| {
            let other = |e: &Entry| e.candidate.instance != candidate.instance && ip_of(ip)(&e.candidate);
            self.entries.values().any(other)
        };
        candidate.addresses.iter().all(|a| taken(a.ip()))
    }

    /// The longest unheard of those that match, if they are `limit` or more.
    fn oldest(&self, matching: impl Fn(&Candidate) -> bool, limit: usize) -> Option<String> {
        let among = || self.entries.values().filter(|e| matching(&e.candidate));
        if among().count() < limit {
            return None;
        }
        among()
            .min_by_key(|e| e.seen)
            .map(|e| e.candidate.instance.clone())
    }

    fn evict(&mut self, instance: &str) -> bool {
        let known = self.entries.contains_key(instance);
        self.lost(instance);
        known
    }

    fn take_token(&mut self, candidate: &Candidate, now: Instant) -> bool {
        let loopback = candidate.addresses.iter().any(|a| a.ip().is_loopback());
        let bucket = if !loopback && self.is_shared(candidate) {
            &mut self.shared
        } else {
            &mut self.new
        };
        bucket.take(1, now.into_std()).is_ok()
    }
}

/// So many in a second, and `most` at once.
fn bucket(per_second: u64, most: u64, now: Instant) -> Bucket {
    Bucket::new(per_second, Duration::from_secs(1), most, now.into_std())
}

fn ip_of(ip: IpAddr) -> impl Fn(&Candidate) -> bool {
    move |candidate| candidate.addresses.iter().any(|a| a.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::SocketAddr;
    use std::time::Duration;

    fn candidate(instance: &str, addresses: &[&str]) -> Candidate {
        Candidate {
            instance: instance.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn numbered(n: usize) -> Candidate {
        let address = SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8], 7));
        Candidate {
            instance: format!("{n:08x}"),
            addresses: vec![address],
        }
    }

    fn told(table: &mut Table) -> Vec<Event> {
        std::iter::from_fn(|| table.next_event()).collect()
    }

    fn lost(instance: &str) -> Event {
        Event::Lost {
            instance: instance.into(),
        }
    }

    #[test]
    fn a_candidate_is_told_once_and_again_when_its_addresses_change() {
        let now = Instant::now();
        let mut table = Table::new(now);
        let first = candidate("a", &["10.0.0.1:7"]);
        let moved = candidate("a", &["10.0.0.2:7"]);
        assert!(table.seen(first.clone(), now));
        assert_eq!(told(&mut table), [Event::Found(first.clone())]);
        assert!(table.seen(first, now) && !table.has_event());
        assert!(table.seen(moved.clone(), now));
        assert_eq!(told(&mut table), [Event::Found(moved)]);
        table.lost("a");
        assert_eq!(told(&mut table), [lost("a")]);
        table.lost("a");
        assert!(!table.has_event());
    }

    #[test]
    fn those_not_seen_since_a_count_are_lost() {
        let now = Instant::now();
        let mut table = Table::new(now);
        let (gone, here) = (
            candidate("gone", &["10.0.0.1:7"]),
            candidate("here", &["10.0.0.2:7"]),
        );
        table.seen(gone, now);
        table.seen(here.clone(), now);
        told(&mut table);
        let count = table.count();
        table.seen(here, now);
        table.forget_unseen_since(count);
        assert_eq!(told(&mut table), [lost("gone")]);
    }

    #[test]
    fn what_comes_and_goes_before_anybody_asks_is_never_told() {
        let now = Instant::now();
        let mut table = Table::new(now);
        table.seen(candidate("a", &["10.0.0.1:7"]), now);
        table.lost("a");
        assert!(!table.has_event());
    }

    #[test]
    fn new_names_come_in_no_faster_than_the_bucket_fills_and_known_ones_always() {
        let start = Instant::now();
        let mut table = Table::new(start);
        let taken = (0..1000).filter(|n| table.seen(numbered(*n), start)).count();
        assert_eq!(taken, MAX_CANDIDATES);
        assert!(
            table.seen(candidate("00000000", &["10.0.0.99:7"]), start),
            "known"
        );
        let later = start + Duration::from_millis(100);
        let taken = (1000..2000).filter(|n| table.seen(numbered(*n), later)).count();
        assert_eq!(taken, 5);
    }

    #[test]
    fn a_flood_over_a_minute_leaves_no_more_than_the_limit_and_the_recently_seen() {
        let start = Instant::now();
        let mut table = Table::new(start);
        let friend = candidate("friend", &["192.168.1.2:7"]);
        for n in 0..3000 {
            let now = start + Duration::from_millis(20 * n as u64);
            assert!(table.seen(numbered(n), now));
            table.seen(friend.clone(), now);
            let _ = table.next_event();
            assert!(table.entries.len() <= MAX_CANDIDATES && table.untold.len() <= MAX_UNTOLD);
        }
        assert_eq!(table.entries.len(), MAX_CANDIDATES);
        assert!(table.entries.contains_key("friend"), "heard of again and again");
    }

    #[test]
    fn flt_27_a_newcomer_comes_in_and_stays_in_a_flood_of_names_at_few_addresses() {
        let start = Instant::now();
        let mut table = Table::new(start);
        let flood = |table: &mut Table, from: u64, to: u64| {
            for n in from..to {
                let address = format!("10.0.0.{}:7", 1 + n % 150);
                let name = format!("{:08x}", n % 1000);
                table.seen(
                    candidate(&name, &[&address]),
                    start + Duration::from_millis(2 * n),
                );
            }
        };
        flood(&mut table, 0, 4000);
        assert!(table.seen(
            candidate("newcomer", &["10.0.0.200:7"]),
            start + Duration::from_secs(8)
        ));
        flood(&mut table, 4000, 20_000);
        assert!(table.entries.contains_key("newcomer") && table.entries.len() <= MAX_CANDIDATES);
    }

    #[test]
    fn a_flood_that_nobody_reads_stays_bounded_too() {
        let start = Instant::now();
        let mut table = Table::new(start);
        for n in 0..5000 {
            table.seen(numbered(n), start + Duration::from_millis(20 * n as u64));
        }
        assert_eq!(told(&mut table).len(), MAX_CANDIDATES, "only those still there");
    }

    #[test]
    fn of_many_names_at_one_address_the_newest_stay() {
        let now = Instant::now();
        let mut table = Table::new(now);
        for name in ["a", "b", "c", "d", "e"] {
            assert!(table.seen(candidate(name, &["10.0.0.1:7", "10.0.0.2:7"]), now));
        }
        let mut left: Vec<_> = table.entries.keys().cloned().collect();
        left.sort();
        assert_eq!(left, ["b", "c", "d", "e"]);
    }

    #[test]
    fn peers_of_one_machine_on_loopback_are_not_limited_by_address() {
        let now = Instant::now();
        let mut table = Table::new(now);
        for n in 0..20 {
            let address = format!("127.0.0.1:{}", 1000 + n);
            assert!(table.seen(candidate(&format!("{n}"), &[&address]), now));
        }
        assert_eq!(table.entries.len(), 20);
    }

    #[test]
    fn prop_12_a_hundred_thousand_hostile_sightings_leave_the_table_bounded() {
        let start = Instant::now();
        let mut table = Table::new(start);
        for n in 0..100_000_usize {
            // In no order, the same each time.
            let chance = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let [what, name, address, more, ..] = chance.to_be_bytes();
            let now = start + Duration::from_micros(200 * n as u64);
            // Names without end and names again, at few addresses and at many.
            let name = if what % 2 == 0 { n } else { usize::from(name) };
            let at = |n: u8| SocketAddr::from(([10, what % 3, 0, n], u16::from(more) + 1));
            match what % 16 {
                0 => table.lost(&format!("{name:08x}")),
                1 => drop(table.next_event()),
                2 if n % 64 == 0 => table.forget_unseen_since(table.count().saturating_sub(500)),
                _ => {
                    let addresses = (0..=more % 8).map(|i| at(address.wrapping_add(i))).collect();
                    let instance = format!("{name:08x}");
                    table.seen(Candidate { instance, addresses }, now);
                }
            }
            let (entries, untold) = table.sizes();
            assert!(
                entries <= MAX_CANDIDATES && untold <= MAX_UNTOLD + MAX_CANDIDATES,
                "{entries}, {untold}"
            );
        }
        let entries = || table.entries.values().map(|e| &e.candidate);
        assert!(entries().count() > 16, "the flood got in");
        for ip in entries().flat_map(|c| c.addresses.iter().map(SocketAddr::ip)) {
            assert!(
                entries().filter(|c| ip_of(ip)(c)).count() <= MAX_PER_ADDRESS,
                "{ip}"
            );
        }
    }
}
