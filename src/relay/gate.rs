//! How much a borrower may ask for: tunnels, dials, destinations. Pure: time is an argument.
//!
//! Invariants: the sums over all peers hold whatever one of them does, and what is remembered of peers is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::types::PeerId;
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
    /// Tunnels of all peers. Default 64: with 128 KiB of buffers each, 8 MiB on the smallest device.
    pub tunnels: usize,
    /// Dials of one peer at once, after a pause. Default 32: a borrower begins with two on each lane of ours, drops and
    /// redials when a lease is moved, and a second download of that device does the same at the same time.
    pub dial_burst: u64,
    /// Dials of one peer a second, in the long run. Default 8: near a transfer's end leases become short.
    pub dials: u64,
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
            destinations: 256,
            dial_limit: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            life: Duration::from_secs(6 * 3600),
        }
    }
}

/// Keeps the limits. Every [`Gate::enter`] that succeeds must be followed by one [`Gate::leave`].
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    open: usize,
    /// All peers together may dial this often: many identities must not add up to a scan.
    dials: Bucket,
    peers: BTreeMap<PeerId, Peer>,
}

#[derive(Debug)]
struct Peer {
    open: usize,
    dials: Bucket,
    destinations: BTreeSet<IpAddr>,
    counted_since: Instant,
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
            limits,
            open: 0,
            peers: BTreeMap::new(),
        }
    }

    /// Keeps these limits from now on. What is open stays, and counts.
    pub(super) fn change(&mut self, limits: Limits, now: Instant) {
        if limits != self.limits {
            self.dials = dials_of_all(&limits, now);
            self.limits = limits;
        }
    }

    /// Takes a place for a tunnel of this peer.
    ///
    /// # Errors
    /// A limit is reached.
    pub(super) fn enter(&mut self, peer: PeerId, now: Instant) -> Result<(), Full> {
        let (open, most) = (self.open, self.limits.tunnels_per_peer);
        if open >= self.limits.tunnels {
            return Err(Full);
        }
        let known = known(&mut self.peers, &self.limits, peer, now).ok_or(Full)?;
        if known.open >= most {
            return Err(Full);
        }
        known.dials.take(1, now).map_err(|_| Full)?;
        self.dials.take(1, now).map_err(|_| Full)?;
        known.open += 1;
        self.open += 1;
        Ok(())
    }

    /// Gives the place back.
    pub(super) fn leave(&mut self, peer: PeerId) {
        self.open = self.open.saturating_sub(1);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.open = peer.open.saturating_sub(1);
        }
    }

    /// Notes that `address` is about to be dialled for this peer.
    ///
    /// # Errors
    /// It had too many different ones dialled.
    pub(super) fn destination(&mut self, peer: PeerId, address: IpAddr, now: Instant) -> Result<(), Full> {
        let most = self.limits.destinations;
        let peer = known(&mut self.peers, &self.limits, peer, now).ok_or(Full)?;
        if now.saturating_duration_since(peer.counted_since) >= DESTINATIONS_PER {
            peer.destinations.clear();
            peer.counted_since = now;
        }
        if !peer.destinations.contains(&address) && peer.destinations.len() >= most {
            return Err(Full);
        }
        peer.destinations.insert(address);
        Ok(())
    }

    /// Whether a line about this peer may go to the log.
    pub(super) fn may_log(&mut self, peer: PeerId, now: Instant) -> bool {
        known(&mut self.peers, &self.limits, peer, now).is_some_and(|peer| peer.lines.take(1, now).is_ok())
    }
}

fn dials_of_all(limits: &Limits, now: Instant) -> Bucket {
    let share = limits.tunnels.div_ceil(limits.tunnels_per_peer.max(1)) as u64;
    bucket(limits.dials * share, limits.dial_burst * share, now)
}

fn bucket(per_second: u64, burst: u64, now: Instant) -> Bucket {
    Bucket::new(per_second, Duration::from_secs(1), burst, now)
}

/// The entry of `id`, made if there is room; the idle peer longest unheard of makes room.
fn known<'a>(
    peers: &'a mut BTreeMap<PeerId, Peer>,
    limits: &Limits,
    id: PeerId,
    now: Instant,
) -> Option<&'a mut Peer> {
    if !peers.contains_key(&id) && peers.len() >= MAX_PEERS {
        let idle = peers.iter().filter(|(_, peer)| peer.open == 0);
        let oldest = idle.min_by_key(|(_, peer)| peer.last).map(|(id, _)| *id)?;
        peers.remove(&oldest);
    }
    let peer = peers.entry(id).or_insert_with(|| Peer {
        open: 0,
        dials: bucket(limits.dials, limits.dial_burst, now),
        destinations: BTreeSet::new(),
        counted_since: now,
        lines: Bucket::new(LINES, LINES_PER, LINES, now),
        last: now,
    });
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

    fn gate(limits: Limits) -> (Gate, Instant) {
        let now = Instant::now();
        (Gate::new(limits, now), now)
    }

    #[test]
    fn tunnels_are_limited_for_each_peer_and_for_all() {
        let (mut gate, now) = gate(Limits::default());
        for n in 0..4 {
            assert_eq!((0..20).filter(|_| gate.enter(peer(n), now).is_ok()).count(), 16);
        }
        assert_eq!(gate.enter(peer(9), now), Err(Full));
        gate.leave(peer(0));
        assert_eq!(gate.enter(peer(9), now), Ok(()));
        assert_eq!(gate.enter(peer(9), now), Err(Full));
    }

    #[test]
    fn limits_that_are_lowered_hold_for_the_next_tunnel_and_end_none() {
        let (mut gate, now) = gate(Limits::default());
        (0..5).for_each(|_| gate.enter(peer(1), now).unwrap());
        let fewer = Limits {
            tunnels_per_peer: 4,
            ..Limits::default()
        };
        gate.change(fewer, now);
        assert_eq!(gate.enter(peer(1), now), Err(Full), "five are open");
        gate.leave(peer(1));
        gate.leave(peer(1));
        assert_eq!(gate.enter(peer(1), now), Ok(()));
        assert_eq!(gate.enter(peer(2), now), Ok(()), "another peer has its own");
    }

    #[test]
    fn sec_a9_ten_thousand_dials_leave_no_faster_than_the_limit() {
        let (mut gate, start) = gate(Limits::default());
        let mut left = 0;
        for n in 0..10_000u32 {
            let now = start + n * Duration::from_millis(1);
            if gate.enter(peer(1), now).is_ok() {
                left += 1;
                gate.leave(peer(1));
            }
        }
        assert!((100..=32 + 8 * 10).contains(&left), "{left} dials in 10 s");
    }

    #[test]
    fn sec_a9_many_identities_add_up_to_the_limit_for_all() {
        let (mut gate, start) = gate(Limits::default());
        let mut left = 0;
        for n in 0..10_000u32 {
            let id = peer((n % 1000) as u16);
            if gate.enter(id, start + n * Duration::from_millis(1)).is_ok() {
                left += 1;
                gate.leave(id);
            }
        }
        assert!(left <= 4 * (32 + 8 * 10), "{left} dials in 10 s");
    }

    #[test]
    fn sec_a9_destinations_are_counted_by_address_and_hour() {
        let (mut gate, start) = gate(Limits::default());
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        let admitted = (0..1000)
            .filter(|n| gate.destination(peer(1), address(*n), start).is_ok())
            .count();
        assert_eq!(admitted, 256);
        assert!(
            gate.destination(peer(1), address(7), start).is_ok(),
            "a known one is free"
        );
        assert!(
            gate.destination(peer(2), address(999), start).is_ok(),
            "another peer has its own"
        );
        assert!(
            gate.destination(peer(1), address(999), start + 3599 * SECOND)
                .is_err()
        );
        assert!(
            gate.destination(peer(1), address(999), start + 3600 * SECOND)
                .is_ok()
        );
    }

    #[test]
    fn a_flood_of_identities_is_forgotten_but_nobody_with_a_tunnel() {
        let (mut gate, start) = gate(Limits::default());
        gate.enter(peer(0), start).unwrap();
        for n in 1..5000u16 {
            let _ = gate.destination(peer(n), [1, 1, 1, 1].into(), start + u32::from(n) * SECOND);
        }
        assert_eq!(gate.peers.len(), MAX_PEERS);
        assert_eq!(gate.peers[&peer(0)].open, 1);
    }

    #[test]
    fn sec_a18_a_peer_gets_ten_lines_a_minute() {
        let (mut gate, start) = gate(Limits::default());
        let lines = |gate: &mut Gate, at| (0..100).filter(|_| gate.may_log(peer(1), at)).count();
        assert_eq!(lines(&mut gate, start), 10);
        assert_eq!(lines(&mut gate, start + 6 * SECOND), 1);
        assert_eq!(lines(&mut gate, start + 600 * SECOND), 10);
    }
}
