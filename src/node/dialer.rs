//! Whom to dial, and when: peers that mDNS found, that were met before, or that the owner named.
//!
//! Pure: time is an argument. Invariants: no more than [`MAX_TARGETS`] are remembered; at most [`PER_SECOND`] dials a
//! second after a burst; a target that does not answer is asked ever more seldom, but always again.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// 256 candidates of discovery, and those that were met or named.
const MAX_TARGETS: usize = 384;
/// A flood of candidates must not make us a flood of dials (`threats.md` 1.4).
const PER_SECOND: f64 = 4.0;
/// A household that starts all at once is dialled at once.
const BURST: f64 = 32.0;
/// Where mDNS's word led to nobody, another name at the same address is not believed for so long. A LAN has few addresses:
/// a flood of names has soon used up those it can claim (FLT-27).
const EMPTY_FOR: Duration = Duration::from_secs(60);
/// Ports of one address at which peers were met that are asked again: a device's own, and those of commands on it. Who joins
/// under a thousand names must not be what all dials are spent on (SEC-A13).
const MAX_MET_PER_ADDRESS: usize = 4;
/// Addresses so remembered; a /24 has no more.
const MAX_EMPTY: usize = 256;
/// Addresses whose order is remembered.
const MAX_KNOWN: usize = 512;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who was linked and is missed is asked so often, because nobody tells when a LAN that fell apart is whole again: both
/// halves find each other within 10 s. A device that is not there costs a few ARP requests each time.
const MISSED_PAUSE: Duration = Duration::from_secs(8);
/// So long: after that, only mDNS and [`LONGEST_PAUSE`] bring them together again.
const MISSED_FOR: Duration = Duration::from_secs(3600);
/// A quarter of an hour more: a device that was only restarted, or carried to another room, is back by then.
const MAX_FAILURES: u32 = 20;
/// How soon a peer whose link broke is dialled again.
const REDIAL: Duration = Duration::from_millis(300);

/// How a target became known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// mDNS found this instance.
    Found(String),
    /// The owner named it.
    Named(SocketAddr),
    /// It was met before, in this run or an earlier one.
    Met(SocketAddr),
}

#[derive(Debug)]
struct State {
    addresses: Vec<SocketAddr>,
    next: Instant,
    pause: Duration,
    /// Being dialled right now.
    busy: bool,
    /// Dials in a row that brought nobody.
    failures: u32,
    /// When the link to it broke, if there was one.
    missed: Option<Instant>,
    /// When the newest of its addresses became known, counted.
    number: u64,
    tried: bool,
}

/// The plan. Ask [`Dialer::due`] until it gives nothing, then sleep until [`Dialer::timeout`].
#[derive(Debug)]
pub(super) struct Dialer {
    targets: BTreeMap<Target, State>,
    /// Where nobody answered, and when that was.
    empty: BTreeMap<IpAddr, Instant>,
    /// The order in which addresses became known.
    known: BTreeMap<IpAddr, u64>,
    count: u64,
    budget: f64,
    filled: Instant,
}

impl Dialer {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            targets: BTreeMap::new(),
            empty: BTreeMap::new(),
            known: BTreeMap::new(),
            count: 0,
            budget: BURST,
            filled: now,
        }
    }

    /// A target became known, or is at other addresses now: it is dialled at once.
    pub(super) fn add(&mut self, target: Target, addresses: Vec<SocketAddr>, now: Instant) {
        self.make_room(&target);
        let full = self.targets.len() >= MAX_TARGETS;
        let number = addresses
            .iter()
            .map(|a| self.number_of(a.ip()))
            .max()
            .unwrap_or_default();
        // Another name where nobody answered a moment ago waits for its turn.
        let until = self.empty_until(&target, &addresses, now);
        match self.targets.get_mut(&target) {
            Some(state) if state.addresses == addresses => {}
            Some(state) => {
                state.addresses = addresses;
                state.next = now;
                state.pause = FIRST_PAUSE;
            }
            None if full => {}
            None => {
                let state = State {
                    addresses,
                    next: until.unwrap_or(now),
                    pause: FIRST_PAUSE,
                    busy: false,
                    failures: 0,
                    missed: None,
                    number,
                    tried: until.is_some(),
                };
                self.targets.insert(target, state);
            }
        }
    }

    /// The target is gone, as far as its source knows.
    pub(super) fn forget(&mut self, target: &Target) {
        self.targets.remove(target);
    }

    /// The link to a peer at this address broke: whoever is there is dialled again soon.
    pub(super) fn broke(&mut self, address: SocketAddr, now: Instant) {
        for state in self
            .targets
            .values_mut()
            .filter(|s| s.addresses.contains(&address))
        {
            state.next = now + REDIAL;
            state.pause = FIRST_PAUSE;
            state.missed = Some(now);
        }
    }

    /// The next target to dial now, if the budget allows one.
    pub(super) fn due(&mut self, now: Instant) -> Option<(Target, Vec<SocketAddr>)> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.budget = passed.mul_add(PER_SECOND, self.budget).min(BURST);
        self.filled = now;
        if self.budget < 1.0 {
            return None;
        }
        // Whom nobody has tried yet first, at the newest address first of all: names come without end, addresses do not,
        // and who waits behind a flood waits for ever.
        let due = self.targets.iter_mut().filter(|(_, s)| !s.busy && s.next <= now);
        let (target, state) =
            due.min_by_key(|(_, s)| (s.tried, Reverse(if s.tried { 0 } else { s.number }), s.next))?;
        self.budget -= 1.0;
        (state.busy, state.tried) = (true, true);
        Some((target.clone(), state.addresses.clone()))
    }

    /// A dial ended: the target is asked again after a growing pause. One that is linked (`answered`) answers the next
    /// question itself, with "duplicate" and without a packet. Who was met and is gone for good is forgotten.
    pub(super) fn ended(&mut self, target: &Target, answered: bool, now: Instant) {
        if !answered && matches!(target, Target::Found(_)) {
            self.nobody_at(target, now);
        }
        if let Some(state) = self.targets.get_mut(target) {
            state.busy = false;
            if answered {
                state.missed = None;
            }
            let missed = state
                .missed
                .is_some_and(|since| now.saturating_duration_since(since) < MISSED_FOR);
            state.failures = match (answered, missed) {
                (true, _) => 0,
                (_, true) => state.failures,
                _ => state.failures + 1,
            };
            if matches!(target, Target::Met(_)) && state.failures >= MAX_FAILURES {
                self.targets.remove(target);
                return;
            }
            state.next = state.next.max(now + state.pause);
            let longest = if missed { MISSED_PAUSE } else { LONGEST_PAUSE };
            state.pause = (state.pause * 2).min(longest);
        }
    }

    /// A target turned out to be linked already: that took no packet, so it counts as no dial.
    pub(super) fn spared(&mut self, target: &Target, now: Instant) {
        self.budget += 1.0;
        self.ended(target, true, now);
    }

    /// Of those met at the newcomer's address, forgets the one that is missed, or failed most often.
    fn make_room(&mut self, newcomer: &Target) {
        let Target::Met(address) = newcomer else { return };
        if address.ip().is_loopback() || self.targets.contains_key(newcomer) {
            return;
        }
        let here = |target: &Target| matches!(target, Target::Met(met) if met.ip() == address.ip());
        let beside = || self.targets.iter().filter(|(target, _)| here(target));
        if beside().count() < MAX_MET_PER_ADDRESS {
            return;
        }
        let worst = beside().max_by_key(|(_, s)| (s.missed.is_some(), s.failures, Reverse(s.number)));
        if let Some(worst) = worst.map(|(target, _)| target.clone()) {
            self.targets.remove(&worst);
        }
    }

    fn number_of(&mut self, ip: IpAddr) -> u64 {
        if let Some(number) = self.known.get(&ip) {
            return *number;
        }
        self.count += 1;
        if self.known.len() >= MAX_KNOWN
            && let Some(oldest) = self.known.iter().min_by_key(|(_, n)| **n).map(|(ip, _)| *ip)
        {
            self.known.remove(&oldest);
        }
        self.known.insert(ip, self.count);
        self.count
    }

    /// Until when a candidate of mDNS need not be dialled, because nobody was at any of its addresses a moment ago.
    fn empty_until(&self, target: &Target, addresses: &[SocketAddr], now: Instant) -> Option<Instant> {
        if !matches!(target, Target::Found(_)) {
            return None;
        }
        let until = |a: &SocketAddr| {
            self.empty
                .get(&a.ip())
                .map(|at| *at + EMPTY_FOR)
                .filter(|at| *at > now)
        };
        addresses.iter().map(until).min().flatten()
    }

    /// Nobody answered there. Where a peer was met, or the owner says that one is, the next word of one is believed.
    fn nobody_at(&mut self, target: &Target, now: Instant) {
        let Some(state) = self.targets.get(target) else {
            return;
        };
        let believed = |ip: IpAddr| {
            let there = |(t, s): (&Target, &State)| {
                !matches!(t, Target::Found(_)) && s.addresses.iter().any(|a| a.ip() == ip)
            };
            self.targets.iter().any(there)
        };
        let empty: Vec<IpAddr> = state
            .addresses
            .iter()
            .map(SocketAddr::ip)
            .filter(|ip| !believed(*ip))
            .collect();
        self.empty
            .retain(|_, at| now.saturating_duration_since(*at) < EMPTY_FOR);
        for ip in empty {
            if self.empty.len() < MAX_EMPTY || self.empty.contains_key(&ip) {
                self.empty.insert(ip, now);
            }
        }
    }

    /// When there may be somebody to dial.
    pub(super) fn timeout(&self, now: Instant) -> Option<Instant> {
        let next = self.targets.values().filter(|s| !s.busy).map(|s| s.next).min()?;
        let budget = if self.budget >= 1.0 {
            now
        } else {
            now + Duration::from_secs_f64(1.0 / PER_SECOND)
        };
        Some(next.max(budget))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 7436))
    }

    fn found(n: u8) -> Target {
        Target::Found(format!("{n:03}"))
    }

    #[test]
    fn a_new_candidate_is_dialled_at_once_and_then_ever_more_seldom() {
        let mut now = Instant::now();
        let mut dialer = Dialer::new(now);
        dialer.add(found(1), vec![address(1)], now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let (target, _) = dialer.due(now).expect("due");
            assert!(dialer.due(now).is_none(), "dialled twice at once");
            dialer.ended(&target, false, now);
            let next = dialer.timeout(now).unwrap();
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn sec_a13_a_thousand_names_at_one_address_are_four_to_dial_and_newcomers_are_found() {
        let now = Instant::now();
        let mut dialer = Dialer::new(now);
        let met = |port| Target::Met(SocketAddr::from(([10, 0, 0, 9], port)));
        for port in 1..=1000 {
            dialer.add(met(port), vec![SocketAddr::from(([10, 0, 0, 9], port))], now);
            dialer.broke(SocketAddr::from(([10, 0, 0, 9], port)), now);
        }
        assert_eq!(dialer.targets.len(), MAX_MET_PER_ADDRESS);
        assert!(dialer.targets.contains_key(&met(1000)), "the newest");
        dialer.add(found(1), vec![address(1)], now);
        assert_eq!(dialer.due(now).map(|(target, _)| target), Some(found(1)));
    }

    #[test]
    fn a_peer_whose_link_broke_is_dialled_again_soon() {
        let now = Instant::now();
        let mut dialer = Dialer::new(now);
        dialer.add(Target::Named(address(1)), vec![address(1)], now);
        for _ in 0..5 {
            let at = dialer.timeout(now).unwrap();
            let (target, _) = dialer.due(at).unwrap();
            dialer.ended(&target, true, at);
        }
        let later = now + Duration::from_secs(40);
        dialer.broke(address(1), later);
        assert_eq!(dialer.timeout(later), Some(later + REDIAL));
    }

    #[test]
    fn who_was_linked_and_is_missed_is_asked_every_few_seconds_for_an_hour() {
        let start = Instant::now();
        let mut dialer = Dialer::new(start);
        dialer.add(Target::Met(address(1)), vec![address(1)], start);
        dialer.broke(address(1), start);
        let mut now = start;
        while now < start + MISSED_FOR {
            let at = dialer.timeout(now).unwrap();
            assert!(at - now <= MISSED_PAUSE);
            let (target, _) = dialer.due(at).unwrap();
            dialer.ended(&target, false, at);
            now = at;
        }
        for _ in 0..4 {
            now = dialer.timeout(now).unwrap();
            let (target, _) = dialer.due(now).unwrap();
            dialer.ended(&target, false, now);
        }
        assert_eq!(dialer.timeout(now), Some(now + LONGEST_PAUSE));
    }

    #[test]
    fn a_flood_of_candidates_makes_neither_a_flood_of_dials_nor_of_memory() {
        let now = Instant::now();
        let mut dialer = Dialer::new(now);
        for n in 0..5_000u32 {
            dialer.add(Target::Found(n.to_string()), vec![address(1)], now);
        }
        assert_eq!(dialer.targets.len(), MAX_TARGETS);
        let mut dials = 0;
        for tenth in 0..100u32 {
            let at = now + Duration::from_millis(100) * tenth;
            while let Some((target, _)) = dialer.due(at) {
                dialer.ended(&target, false, at);
                dials += 1;
            }
        }
        assert!(
            dials <= (BURST + 10.0 * PER_SECOND) as usize,
            "{dials} dials in 10 s"
        );
    }

    #[test]
    fn flt_27_a_newcomer_is_dialled_before_a_flood_of_names_at_addresses_where_nobody_is() {
        let start = Instant::now();
        let mut dialer = Dialer::new(start);
        let mut now = start;
        for n in 0..300 {
            let name = Target::Found(format!("{n:08x}"));
            dialer.add(name, vec![address((n % 150) as u8)], now);
        }
        for _ in 0..40 {
            now += Duration::from_millis(250);
            while let Some((target, _)) = dialer.due(now) {
                dialer.ended(&target, false, now);
            }
        }
        let newcomer = Target::Found("zzz".into());
        dialer.add(newcomer.clone(), vec![address(200)], now);
        // Names without end, some where nobody was dialled yet, but none at a new address.
        for n in 0..60 {
            let target = Target::Found(format!("again{n}"));
            dialer.add(target, vec![address(n)], now);
        }
        now += Duration::from_millis(250);
        assert_eq!(dialer.due(now).map(|(target, _)| target), Some(newcomer));
    }

    #[test]
    fn who_was_met_and_never_answers_again_is_forgotten_but_not_whom_the_owner_named() {
        let mut now = Instant::now();
        let mut dialer = Dialer::new(now);
        dialer.add(Target::Met(address(1)), vec![address(1)], now);
        dialer.add(Target::Named(address(2)), vec![address(2)], now);
        for _ in 0..100 {
            while let Some((target, _)) = dialer.due(now) {
                dialer.ended(&target, false, now);
            }
            now += LONGEST_PAUSE;
        }
        assert_eq!(
            dialer.targets.keys().collect::<Vec<_>>(),
            [&Target::Named(address(2))]
        );
    }

    #[test]
    fn other_addresses_of_the_same_candidate_are_tried_at_once() {
        let now = Instant::now();
        let mut dialer = Dialer::new(now);
        dialer.add(found(1), vec![address(1)], now);
        let (target, _) = dialer.due(now).unwrap();
        dialer.ended(&target, false, now);
        assert!(dialer.due(now).is_none());
        dialer.add(found(1), vec![address(2)], now);
        assert_eq!(dialer.due(now), Some((found(1), vec![address(2)])));
        dialer.forget(&found(1));
        assert_eq!(dialer.timeout(now), None);
    }

    #[test]
    fn prop_12_a_hundred_thousand_hostile_candidates_leave_the_dialer_bounded_and_slow() {
        let start = Instant::now();
        let mut dialer = Dialer::new(start);
        let (mut dials, mut at_work) = (0_u32, Vec::new());
        for n in 0..100_000_u32 {
            // In no order, the same each time.
            let [a, b, c, d] = n.wrapping_add(1).wrapping_mul(0x9e37_79b9).to_be_bytes();
            let now = start + Duration::from_millis(n.into());
            let there = SocketAddr::from(([10, b % 4, c, d], 7436));
            let target = match a % 8 {
                0 => Target::Met(there),
                1 => Target::Named(there),
                _ => Target::Found(format!("{n:08x}")),
            };
            match a >> 4 {
                0 => dialer.broke(there, now),
                1 => dialer.forget(&target),
                2 if !at_work.is_empty() => {
                    let ended: Target = at_work.swap_remove(usize::from(d) % at_work.len());
                    dialer.ended(&ended, c % 4 == 0, now);
                }
                _ => dialer.add(target, vec![there], now),
            }
            if let Some((due, _)) = dialer.due(now) {
                at_work.push(due);
                dials += 1;
            }
            let (targets, empty, known) = (dialer.targets.len(), dialer.empty.len(), dialer.known.len());
            assert!(
                targets <= MAX_TARGETS && empty <= MAX_EMPTY && known <= MAX_KNOWN,
                "{targets}, {empty}, {known}"
            );
        }
        assert!((200..=32 + 4 * 100).contains(&dials), "{dials} dials in 100 s");
    }
}
