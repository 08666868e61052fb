//! What neighbours together may move: a part of an uplink while others use it, and so much a day. Pure: time is an argument.
//!
//! The part of an uplink is a credit and not a rate: for every three bytes that this device itself or members move, all
//! neighbours together may move one, so they have a quarter at most of what the uplink carries, whatever that is and
//! however it changes; nothing has to be known of the line. The credit is dealt out in equal parts to the peers that wait
//! for it, however many tunnels each of them has. Where nobody else uses the uplink, it is all theirs. Invariant: while
//! others use it, neighbours move no more over any time than a third of what those did, [`FLOOR`], and what was kept for
//! them ([`KEPT`] each).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::types::{ByteSize, PeerId};

/// Bytes that others move for one of the neighbours'.
const OTHERS: u64 = 3;
/// What they may move in any case, in bytes a second, so that their handshakes get through: as much as the slowest limit
/// that an owner can set.
const FLOOR: u64 = 8_000;
/// Less, in bytes a second, is no use of an uplink: requests, handshakes, small files.
const NOTABLE: u64 = 32 << 10;
/// On a slow line less is one: what neighbours leave of it with all their tunnels against a single connection, as a part of
/// what they move themselves...
const CROWDED: u64 = 64;
/// ...but for this, in bytes a second.
const NOTHING: u64 = 1 << 10;
/// How often it is looked at whether others use it.
const LOOK: Duration = Duration::from_millis(250);
/// So long after its last notable use an uplink counts as used: a download breathes between two of its requests.
const HELD: Duration = Duration::from_secs(1);
/// A peer whose tunnels have not asked for so long does not wait: they ask again every [`AGAIN`].
const WAITS: Duration = Duration::from_millis(100);
/// Whoever was given nothing asks again after this.
const AGAIN: Duration = Duration::from_millis(20);
/// Less is not worth a packet.
const LEAST: u64 = 1 << 10;
/// Credit kept for a peer at most: it is what an uplink of 100 Mbit/s deals out in two [`AGAIN`].
const KEPT: u64 = 128 << 10;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Down = 0,
    Up = 1,
}

/// One uplink.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// When it was last looked at, and what others had moved by then.
    looked: Option<(Instant, [u64; 2])>,
    /// What neighbours have moved since.
    moved: u64,
    used_until: Option<Instant>,
    dealt: [Dealt; 2],
}

/// One direction of it.
#[derive(Debug, Default)]
struct Dealt {
    /// When, and what others had moved by then; `None` while it is all the neighbours'.
    last: Option<(Instant, u64)>,
    /// What is too little to deal out: bytes of others, and nanoseconds times [`FLOOR`].
    rest: (u64, u128),
    peers: BTreeMap<PeerId, Account>,
}

#[derive(Debug)]
struct Account {
    credit: u64,
    asked: Instant,
}

impl Share {
    /// How much of `want` a neighbour may move that way, where others have moved `others` (down, up) so far.
    ///
    /// # Errors
    /// Nothing yet: when to ask again.
    pub(super) fn take(
        &mut self,
        way: Way,
        peer: PeerId,
        want: u64,
        others: [u64; 2],
        now: Instant,
    ) -> Result<u64, Instant> {
        self.look(others, now);
        if self.used_until.is_none_or(|until| until <= now) {
            self.dealt = Default::default();
            self.moved += want;
            return Ok(want);
        }
        let [down, up] = &mut self.dealt;
        let taken = match way {
            Way::Down => down.take(peer, want, others[0], now),
            Way::Up => up.take(peer, want, others[1], now),
        };
        self.moved += taken.unwrap_or_default();
        taken
    }

    /// Gives back what was taken in vain.
    pub(super) fn refund(&mut self, way: Way, peer: PeerId, bytes: u64) {
        self.moved = self.moved.saturating_sub(bytes);
        let [down, up] = &mut self.dealt;
        let dealt = match way {
            Way::Down => down,
            Way::Up => up,
        };
        // Where there is no account, it was not taken from one.
        if let Some(account) = dealt.peers.get_mut(&peer) {
            account.credit = (account.credit + bytes).min(KEPT);
        }
    }

    /// A download uses its uplink both ways, although it moves little up: what is sent there delays its acknowledgements.
    fn look(&mut self, others: [u64; 2], now: Instant) {
        let Some((at, seen)) = self.looked else {
            self.looked = Some((now, others));
            return;
        };
        let past = now.saturating_duration_since(at);
        if past < LOOK {
            return;
        }
        let moved = others[0].saturating_sub(seen[0]) + others[1].saturating_sub(seen[1]);
        let faster = |rate: u64| u128::from(moved) * 1_000_000_000 >= u128::from(rate) * past.as_nanos();
        if faster(NOTABLE) || (faster(NOTHING) && moved.saturating_mul(CROWDED) >= self.moved) {
            self.used_until = Some(now + HELD);
        }
        self.looked = Some((now, others));
        self.moved = 0;
    }
}

impl Dealt {
    fn take(&mut self, peer: PeerId, want: u64, others: u64, now: Instant) -> Result<u64, Instant> {
        let account = self.peers.entry(peer).or_insert(Account {
            credit: 0,
            asked: now,
        });
        account.asked = now;
        self.deal(others, now);
        let credit = self.peers.get_mut(&peer).map(|account| &mut account.credit);
        match credit {
            Some(credit) if *credit >= want.min(LEAST) => {
                let taken = want.min(*credit);
                *credit -= taken;
                Ok(taken)
            }
            _ => Err(now + AGAIN),
        }
    }

    /// Deals out what came since the last time. What is left of it when all have what is kept for them is nobody's.
    fn deal(&mut self, others: u64, now: Instant) {
        let (at, seen) = *self.last.get_or_insert((now, others));
        self.last = Some((at.max(now), seen.max(others)));
        self.rest.0 += others.saturating_sub(seen);
        self.rest.1 += now.saturating_duration_since(at).as_nanos() * u128::from(FLOOR);
        self.peers
            .retain(|_, account| now.saturating_duration_since(account.asked) <= WAITS);
        let floor = u64::try_from(self.rest.1 / 1_000_000_000).unwrap_or(u64::MAX);
        let fresh = (self.rest.0 / OTHERS).saturating_add(floor);
        let each = fresh / (self.peers.len() as u64).max(1);
        if each == 0 {
            return;
        }
        self.rest = (self.rest.0 % OTHERS, self.rest.1 % 1_000_000_000);
        for account in self.peers.values_mut() {
            account.credit = (account.credit + each).min(KEPT);
        }
    }
}

/// A day's allowance.
#[derive(Debug)]
pub(super) struct Quota {
    per_day: u64,
    used: u64,
    since: Instant,
    told: bool,
}

impl Quota {
    /// An untouched one.
    pub(super) const fn new(per_day: ByteSize, now: Instant) -> Self {
        Self {
            per_day: per_day.0,
            used: 0,
            since: now,
            told: false,
        }
    }

    /// From now on it is so much; what was used counts.
    pub(super) const fn change(&mut self, per_day: ByteSize) {
        self.per_day = per_day.0;
    }

    /// These bytes were moved.
    pub(super) fn spend(&mut self, bytes: u64, now: Instant) {
        self.turn(now);
        self.used = self.used.saturating_add(bytes);
    }

    /// Whether there is something left.
    pub(super) fn has_left(&mut self, now: Instant) -> bool {
        self.turn(now);
        self.used < self.per_day
    }

    /// Whether the owner is still to be told, today, that nothing is left.
    pub(super) const fn is_to_be_told(&mut self) -> bool {
        !std::mem::replace(&mut self.told, true)
    }

    fn turn(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= DAY {
            (self.used, self.since, self.told) = (0, now, false);
        }
    }
}

#[cfg(test)]
mod tests;
