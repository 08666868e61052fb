//! How many strangers' first packets are answered.
//!
//! Silence costs nothing, and a real peer asks again. Invariants: bounded, in memory too; one source cannot use up what is
//! there for all, however often it asks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::uplink::limit::Bucket;

const SECOND: Duration = Duration::from_secs(1);
/// Answered in a second. What goes to an address that does not exist waits 3 s for its ARP in our socket's buffer: 5,000
/// spoofed ones a second filled that, and the peers' packets waited behind them (FLT-32).
const PER_SECOND: u64 = 64;
/// And at once: thirty devices that start together send each other two hundred.
const AT_ONCE: u64 = 256;
/// To one source. A device dials another once, which takes two, and again where it is at several addresses or its packet
/// was lost.
const TO_ONE_PER_SECOND: u64 = 4;
const TO_ONE_AT_ONCE: u64 = 32;
/// Sources remembered; more at once is a flood of spoofed ones, which [`PER_SECOND`] bounds.
const SOURCES: usize = 128;

/// What may still be answered.
#[derive(Debug)]
pub(super) struct Answers {
    all: Bucket,
    of: BTreeMap<IpAddr, (Bucket, Instant)>,
}

impl Answers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            all: Bucket::new(PER_SECOND, SECOND, AT_ONCE, now),
            of: BTreeMap::new(),
        }
    }

    /// Whether this source's packet is answered; counts it if so.
    pub(super) fn may(&mut self, from: IpAddr, now: Instant) -> bool {
        // Peers of one machine all are at its loopback address.
        let own = from.is_loopback() || self.source(from, now);
        own && self.all.take(1, now).is_ok()
    }

    fn source(&mut self, from: IpAddr, now: Instant) -> bool {
        if self.of.len() >= SOURCES && !self.of.contains_key(&from) {
            let full = Duration::from_secs(TO_ONE_AT_ONCE / TO_ONE_PER_SECOND);
            self.of
                .retain(|_, (_, asked)| now.saturating_duration_since(*asked) < full);
            if self.of.len() >= SOURCES {
                return true;
            }
        }
        let new = || (Bucket::new(TO_ONE_PER_SECOND, SECOND, TO_ONE_AT_ONCE, now), now);
        let (bucket, asked) = self.of.entry(from).or_insert_with(new);
        *asked = now;
        bucket.take(1, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nth(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    #[test]
    fn sec_a14_no_more_than_so_many_strangers_are_answered_at_once_and_in_a_second() {
        let start = Instant::now();
        let mut answers = Answers::new(start);
        let mut at = |now| (0..5000).filter(|n| answers.may(nth(*n), now)).count();
        assert_eq!(at(start), 256);
        assert_eq!(at(start + Duration::from_secs(1)), 64);
        assert_eq!(at(start + Duration::from_secs(3600)), 256);
        assert!(answers.of.len() <= SOURCES);
    }

    #[test]
    fn sec_a14_one_source_that_asks_without_end_leaves_the_others_theirs() {
        let start = Instant::now();
        let mut answers = Answers::new(start);
        let mut flood = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            for _ in 0..5 {
                flood += usize::from(answers.may(nth(1), now));
            }
            if ms % 100 == 0 {
                assert!(answers.may(nth(2 + ms as u32 / 1000), now), "at {ms} ms");
            }
        }
        assert_eq!(flood as u64, TO_ONE_AT_ONCE + 10 * TO_ONE_PER_SECOND - 1);
    }
}
