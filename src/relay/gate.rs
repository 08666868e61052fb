//! How much a borrower may ask for: tunnels, dials, destinations. Pure: time is an argument.
//!
//! Neighbours have one budget together beside each one's own: it takes nothing to be many of them. They get as much as half
//! of the tunnels serve, so members always find the other half. Invariants: the sums over all neighbours, and over all
//! peers, hold whatever one of them does, and what is remembered of peers is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::trust::{Right, Tier};
use crate::types::{ByteSize, PeerId};
use crate::uplink::limit::Bucket;

/// Peers remembered: four times as many as can be linked at once. Those who have nothing open are forgotten first.
const MAX_PEERS: usize = 256;
/// The time after which destinations are counted anew.
const DESTINATIONS_PER: Duration = Duration::from_secs(3600);
/// What a peer may make us write to the log in [`LINES_PER`]: enough to see what it does, too little to fill a card.
const LINES: u64 = 10;
const LINES_PER: Duration = Duration::from_secs(60);

/// What may be lent at once and how fast it may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tunnels of one peer, those still being dialled included. Default 16: all that stripe opens to one origin.
    pub tunnels_per_peer: usize,
    /// Tunnels of all peers; half of them for all neighbours. Default 64: with 128 KiB of buffers each, 8 MiB on the
    /// smallest device.
    pub tunnels: usize,
    /// Dials of one peer at once, after a pause. Default 32: a borrower begins with two on each lane of ours, drops and
    /// redials when a lease is moved, and a second download of that device does the same at the same time.
    pub dial_burst: u64,
    /// Dials of one peer a second, in the long run. Default 8: near a transfer's end leases become short.
    pub dials: u64,
    /// Dials of one neighbour at once, after a pause. Default 32, as a member: with 16 a second small download waited for
    /// leave to dial (1 MB over three lines by the daemon: 500 ms instead of 340).
    pub neighbour_dial_burst: u64,
    /// Dials of one neighbour a second, in the long run. Default 4.
    pub neighbour_dials: u64,
    /// What all neighbours together may move in a day, both ways. Default 20 GB.
    pub neighbours_per_day: ByteSize,
    /// Addresses that one peer may have dialled in an hour. Default 256: a download has a handful, a scan thousands.
    pub destinations: usize,
    /// Name, connection and all. Default 10 s: what the borrower waits for.
    pub dial_limit: Duration,
    /// Without a byte in either direction. Default 120 s.
    pub idle: Duration,
    /// However busy. Default 6 h.
    pub life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels_per_peer: 16,
            tunnels: 64,
            dial_burst: 32,
            dials: 8,
            neighbour_dial_burst: 32,
            neighbour_dials: 4,
            neighbours_per_day: ByteSize(20_000_000_000),
            destinations: 256,
            dial_limit: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            life: Duration::from_secs(6 * 3600),
        }
    }
}

impl Limits {
    /// Tunnels of all neighbours together.
    const fn tunnels_of_neighbours(&self) -> usize {
        self.tunnels.div_ceil(2)
    }

    /// How many peers that ask for all they may get fit into so many tunnels.
    fn shares_of(&self, tunnels: usize) -> usize {
        tunnels.div_ceil(self.tunnels_per_peer.max(1))
    }

    /// What `shares` peers of this standing may dial.
    fn dials(&self, tier: Tier, shares: usize, now: Instant) -> Bucket {
        let (dials, burst) = match tier.may(Right::BorrowMembersShare) {
            true => (self.dials, self.dial_burst),
            false => (self.neighbour_dials, self.neighbour_dial_burst),
        };
        let shares = shares as u64;
        Bucket::new(dials * shares, Duration::from_secs(1), burst * shares, now)
    }
}

/// Who asks, and how far it was trusted when it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Borrower {
    pub(super) id: PeerId,
    pub(super) tier: Tier,
}

impl Borrower {
    /// Whether it has to share with everybody who joined by itself.
    pub(super) fn is_neighbour(self) -> bool {
        !self.tier.may(Right::BorrowMembersShare)
    }
}

/// Keeps the limits. Every [`Gate::enter`] that succeeds must be followed by one [`Gate::leave`].
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    open: usize,
    /// All peers together may dial this often: many identities must not add up to a scan.
    dials: Bucket,
    neighbours: Budget,
    peers: BTreeMap<PeerId, Peer>,
}

/// What one peer, or all neighbours together, have of what they may.
#[derive(Debug)]
struct Budget {
    open: usize,
    dials: Bucket,
    destinations: BTreeSet<IpAddr>,
    counted_since: Instant,
}

#[derive(Debug)]
struct Peer {
    tier: Tier,
    budget: Budget,
    lines: Bucket,
    last: Instant,
}

/// A limit is reached; later it may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Gate {
    /// Nothing lent yet.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            dials: dials_of_all(&limits, now),
            neighbours: Budget::new(dials_of_neighbours(&limits, now), now),
            limits,
            open: 0,
            peers: BTreeMap::new(),
        }
    }

    /// Keeps these limits from now on. What is open stays, and counts.
    pub(super) fn change(&mut self, limits: Limits, now: Instant) {
        if limits != self.limits {
            self.dials = dials_of_all(&limits, now);
            self.neighbours.dials = dials_of_neighbours(&limits, now);
            self.limits = limits;
        }
    }

    /// Takes a place for a tunnel of this peer.
    ///
    /// # Errors
    /// A limit is reached.
    pub(super) fn enter(&mut self, who: Borrower, now: Instant) -> Result<(), Full> {
        let full = self.open >= self.limits.tunnels
            || (who.is_neighbour() && self.neighbours.open >= self.limits.tunnels_of_neighbours());
        let known = known(&mut self.peers, &self.limits, who, now).ok_or(Full)?;
        if full || known.budget.open >= self.limits.tunnels_per_peer {
            return Err(Full);
        }
        self.dial(who, now)?;
        self.count(who, |open| open + 1);
        Ok(())
    }

    /// Gives the place back.
    pub(super) fn leave(&mut self, who: Borrower) {
        self.count(who, |open| open.saturating_sub(1));
    }

    /// Takes leave to dial once more.
    ///
    /// # Errors
    /// It was dialled too often.
    pub(super) fn dial(&mut self, who: Borrower, now: Instant) -> Result<(), Full> {
        let peer = known(&mut self.peers, &self.limits, who, now).ok_or(Full)?;
        peer.budget.dials.take(1, now).map_err(|_| Full)?;
        // In this order: what neighbours are refused takes nothing from members.
        if who.is_neighbour() {
            self.neighbours.dials.take(1, now).map_err(|_| Full)?;
        }
        self.dials.take(1, now).map_err(|_| Full)?;
        Ok(())
    }

    /// Notes that `address` is about to be dialled for this peer.
    ///
    /// # Errors
    /// It had too many different ones dialled, or all neighbours together had.
    pub(super) fn destination(&mut self, who: Borrower, address: IpAddr, now: Instant) -> Result<(), Full> {
        let limits = &self.limits;
        let peer = known(&mut self.peers, limits, who, now).ok_or(Full)?;
        peer.budget.destination(address, limits.destinations, now)?;
        if who.is_neighbour() {
            let most = limits.destinations * limits.shares_of(limits.tunnels_of_neighbours());
            self.neighbours.destination(address, most, now)?;
        }
        Ok(())
    }

    /// Whether a line about this peer may go to the log.
    pub(super) fn may_log(&mut self, who: Borrower, now: Instant) -> bool {
        known(&mut self.peers, &self.limits, who, now).is_some_and(|peer| peer.lines.take(1, now).is_ok())
    }

    fn count(&mut self, who: Borrower, change: impl Fn(usize) -> usize) {
        self.open = change(self.open);
        if who.is_neighbour() {
            self.neighbours.open = change(self.neighbours.open);
        }
        if let Some(peer) = self.peers.get_mut(&who.id) {
            peer.budget.open = change(peer.budget.open);
        }
    }
}

impl Budget {
    const fn new(dials: Bucket, now: Instant) -> Self {
        Self {
            open: 0,
            dials,
            destinations: BTreeSet::new(),
            counted_since: now,
        }
    }

    fn destination(&mut self, address: IpAddr, most: usize, now: Instant) -> Result<(), Full> {
        if now.saturating_duration_since(self.counted_since) >= DESTINATIONS_PER {
            self.destinations.clear();
            self.counted_since = now;
        }
        if !self.destinations.contains(&address) && self.destinations.len() >= most {
            return Err(Full);
        }
        self.destinations.insert(address);
        Ok(())
    }
}

fn dials_of_all(limits: &Limits, now: Instant) -> Bucket {
    limits.dials(Tier::Member, limits.shares_of(limits.tunnels), now)
}

fn dials_of_neighbours(limits: &Limits, now: Instant) -> Bucket {
    limits.dials(
        Tier::Neighbour,
        limits.shares_of(limits.tunnels_of_neighbours()),
        now,
    )
}

/// The entry of who asks, made if there is room; the idle peer longest unheard of makes room, a neighbour first.
fn known<'a>(
    peers: &'a mut BTreeMap<PeerId, Peer>,
    limits: &Limits,
    who: Borrower,
    now: Instant,
) -> Option<&'a mut Peer> {
    if !peers.contains_key(&who.id) && peers.len() >= MAX_PEERS {
        let idle = peers.iter().filter(|(_, peer)| peer.budget.open == 0);
        let oldest = idle.min_by_key(|(_, peer)| (peer.tier, peer.last));
        let oldest = oldest.map(|(id, _)| *id)?;
        peers.remove(&oldest);
    }
    let dials = || limits.dials(who.tier, 1, now);
    let peer = peers.entry(who.id).or_insert_with(|| Peer {
        tier: who.tier,
        budget: Budget::new(dials(), now),
        lines: Bucket::new(LINES, LINES_PER, LINES, now),
        last: now,
    });
    if peer.tier != who.tier {
        peer.tier = who.tier;
        peer.budget.dials = dials();
    }
    peer.last = now;
    Some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn peer(n: u16) -> PeerId {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(id)
    }

    fn member(n: u16) -> Borrower {
        let (id, tier) = (peer(n), Tier::Member);
        Borrower { id, tier }
    }

    fn neighbour(n: u16) -> Borrower {
        let (id, tier) = (peer(n), Tier::Neighbour);
        Borrower { id, tier }
    }

    fn gate(limits: Limits) -> (Gate, Instant) {
        let now = Instant::now();
        (Gate::new(limits, now), now)
    }

    #[test]
    fn tunnels_are_limited_for_each_peer_and_for_all() {
        let (mut gate, now) = gate(Limits::default());
        for n in 0..4 {
            assert_eq!((0..20).filter(|_| gate.enter(member(n), now).is_ok()).count(), 16);
        }
        assert_eq!(gate.enter(member(9), now), Err(Full));
        gate.leave(member(0));
        assert_eq!(gate.enter(member(9), now), Ok(()));
        assert_eq!(gate.enter(member(9), now), Err(Full));
    }

    #[test]
    fn sec_a13_neighbours_together_have_half_of_the_tunnels_and_members_find_the_rest() {
        let (mut gate, now) = gate(Limits::default());
        let entered = |gate: &mut Gate, who: fn(u16) -> Borrower| {
            let asks = (0..1000).map(|n| gate.enter(who(n), now));
            asks.filter(Result::is_ok).count()
        };
        assert_eq!(entered(&mut gate, neighbour), 32);
        assert_eq!(entered(&mut gate, |n| member(1000 + n)), 32);
        gate.leave(neighbour(0));
        gate.leave(member(1000));
        let later = now + 60 * SECOND;
        assert_eq!(gate.enter(neighbour(2000), later), Ok(()));
        assert_eq!(gate.enter(neighbour(2001), later), Err(Full));
        assert_eq!(gate.enter(member(2002), later), Ok(()));
    }

    #[test]
    fn a_neighbour_that_becomes_a_member_has_a_members_dials_at_once() {
        let (mut gate, now) = gate(Limits::default());
        let dials = |gate: &mut Gate, who| (0..100).filter(|_| gate.dial(who, now).is_ok()).count();
        assert_eq!(dials(&mut gate, neighbour(1)), 32);
        assert_eq!(
            dials(&mut gate, member(1)),
            32,
            "although it had used up a neighbour's"
        );
        assert_eq!(dials(&mut gate, member(1)), 0);
    }

    #[test]
    fn limits_that_are_lowered_hold_for_the_next_tunnel_and_end_none() {
        let (mut gate, now) = gate(Limits::default());
        (0..5).for_each(|_| gate.enter(member(1), now).unwrap());
        let fewer = Limits {
            tunnels_per_peer: 4,
            ..Limits::default()
        };
        gate.change(fewer, now);
        assert_eq!(gate.enter(member(1), now), Err(Full), "five are open");
        gate.leave(member(1));
        gate.leave(member(1));
        assert_eq!(gate.enter(member(1), now), Ok(()));
        assert_eq!(gate.enter(member(2), now), Ok(()), "another peer has its own");
    }

    #[test]
    fn sec_a9_ten_thousand_dials_leave_no_faster_than_the_limit() {
        let (mut gate, start) = gate(Limits::default());
        let mut left = 0;
        for n in 0..10_000u32 {
            let now = start + n * Duration::from_millis(1);
            if gate.enter(member(1), now).is_ok() {
                left += 1;
                gate.leave(member(1));
            }
        }
        assert!((100..=32 + 8 * 10).contains(&left), "{left} dials in 10 s");
    }

    #[test]
    fn sec_a9_many_identities_add_up_to_the_limit_for_all() {
        let (mut gate, start) = gate(Limits::default());
        let mut left = 0;
        for n in 0..10_000u32 {
            let id = member((n % 1000) as u16);
            if gate.enter(id, start + n * Duration::from_millis(1)).is_ok() {
                left += 1;
                gate.leave(id);
            }
        }
        assert!(left <= 4 * (32 + 8 * 10), "{left} dials in 10 s");
    }

    #[test]
    fn sec_a9_neighbours_leave_no_faster_than_their_limit_however_many_they_are() {
        for (identities, share) in [(1, 1), (1000, 2)] {
            let (mut gate, start) = gate(Limits::default());
            let mut left = 0;
            for n in 0..10_000u32 {
                let who = neighbour((n % identities) as u16);
                if gate.enter(who, start + n * Duration::from_millis(1)).is_ok() {
                    left += 1;
                    gate.leave(who);
                }
            }
            assert!(
                (50..=share * (32 + 4 * 10)).contains(&left),
                "{left} dials of {identities} in 10 s"
            );
            // Members find theirs all the same.
            let now = start + 10 * SECOND;
            assert_eq!(
                (0..40).filter(|_| gate.dial(member(5000), now).is_ok()).count(),
                32
            );
        }
    }

    #[test]
    fn sec_a9_neighbours_share_the_destinations_of_two() {
        let (mut gate, now) = gate(Limits::default());
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        let dialled = (0..10_000).filter(|n| {
            gate.destination(neighbour((n % 100) as u16), address(*n), now)
                .is_ok()
        });
        assert_eq!(dialled.count(), 512);
        assert_eq!(gate.destination(member(200), address(99_999), now), Ok(()));
    }

    #[test]
    fn sec_a9_destinations_are_counted_by_address_and_hour() {
        let (mut gate, start) = gate(Limits::default());
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        let admitted = (0..1000)
            .filter(|n| gate.destination(member(1), address(*n), start).is_ok())
            .count();
        assert_eq!(admitted, 256);
        assert!(
            gate.destination(member(1), address(7), start).is_ok(),
            "a known one is free"
        );
        assert!(
            gate.destination(member(2), address(999), start).is_ok(),
            "another peer has its own"
        );
        assert!(
            gate.destination(member(1), address(999), start + 3599 * SECOND)
                .is_err()
        );
        assert!(
            gate.destination(member(1), address(999), start + 3600 * SECOND)
                .is_ok()
        );
    }

    #[test]
    fn a_flood_of_identities_is_forgotten_but_nobody_with_a_tunnel() {
        let (mut gate, start) = gate(Limits::default());
        gate.enter(member(0), start).unwrap();
        for n in 1..5000u16 {
            let _ = gate.destination(member(n), [1, 1, 1, 1].into(), start + u32::from(n) * SECOND);
        }
        assert_eq!(gate.peers.len(), MAX_PEERS);
        assert_eq!(gate.peers[&peer(0)].budget.open, 1);
    }

    #[test]
    fn sec_a18_a_peer_gets_ten_lines_a_minute() {
        let (mut gate, start) = gate(Limits::default());
        let lines = |gate: &mut Gate, at| (0..100).filter(|_| gate.may_log(member(1), at)).count();
        assert_eq!(lines(&mut gate, start), 10);
        assert_eq!(lines(&mut gate, start + 6 * SECOND), 1);
        assert_eq!(lines(&mut gate, start + 600 * SECOND), 10);
    }

    #[test]
    fn prop_12_a_hundred_thousand_hostile_requests_leave_the_gate_bounded() {
        let limits = Limits::default();
        let (mut gate, start) = gate(limits.clone());
        let mut chance = Xorshift(7);
        let mut held: Vec<Borrower> = Vec::new();
        for n in 0..100_000u32 {
            let now = start + n * Duration::from_millis(u64::from(n % 7));
            let from = match (chance.next() % 2000) as u16 {
                known if known % 2 == 0 => neighbour(known),
                known => member(known),
            };
            match chance.next() % 5 {
                0 | 1 => {
                    if gate.enter(from, now).is_ok() {
                        held.push(from);
                    }
                }
                2 if held.len() > 32 => gate.leave(held.swap_remove(chance.next() as usize % held.len())),
                3 => drop(gate.may_log(from, now)),
                _ => {
                    // Half of them of one peer.
                    let from = if n % 2 == 0 { neighbour(0) } else { from };
                    let _ = gate.destination(from, IpAddr::from(chance.next().to_be_bytes()), now);
                }
            }
            assert!(gate.peers.len() <= MAX_PEERS);
            assert!(gate.open == held.len() && gate.open <= limits.tunnels);
            let neighbours = held.iter().filter(|who| who.is_neighbour()).count();
            assert!(gate.neighbours.open == neighbours && neighbours <= limits.tunnels_of_neighbours());
        }
        let budgets = || gate.peers.values().map(|peer| &peer.budget);
        assert!(
            budgets()
                .all(|b| b.destinations.len() <= limits.destinations && b.open <= limits.tunnels_per_peer)
        );
        assert!(gate.neighbours.destinations.len() <= limits.destinations * limits.shares_of(limits.tunnels));
        assert_eq!(
            budgets().map(|b| b.open).sum::<usize>(),
            held.len(),
            "nobody with a tunnel is forgotten"
        );
    }

    /// Numbers in no order, the same each time.
    struct Xorshift(u32);

    impl Xorshift {
        fn next(&mut self) -> u32 {
            for shift in [13, -17, 5_i32] {
                self.0 ^= if shift > 0 {
                    self.0 << shift
                } else {
                    self.0 >> -shift
                };
            }
            self.0
        }
    }
}
