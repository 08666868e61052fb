//! How fast to send, where the kernel's own congestion control would fill the queue of a slow uplink and keep it full:
//! a rate that the uplink carries, and no more round trip than there is without us. Pure: time is an argument.
//!
//! What is acknowledged while packets wait in the queue is just what the uplink carries for us, whatever else it carries.
//! So: while nothing waits, send a little faster each round trip (twice as fast until something has waited for the first
//! time); while something waits, send what is carried, less by as much as makes the wait [`WAIT`] again soon. A queue that
//! does not shrink although we send less is somebody else's: it is taken as a part of the line, or we would give way until
//! nothing is left of us. (Not while several of ours settle beside each other: each would take the other's for foreign, and
//! both would keep it.) Invariants: a rate is between [`LEAST`] and [`MOST`], and changes once a round trip at most.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What may wait in the uplink's queue: at the least what two large packets take on 1 Mbit/s, so that it does not run dry,
/// and far below what is felt in a call or a game.
const WAIT: Duration = Duration::from_millis(25);
/// Between two looks at least: timers of a busy Pi are late by less, and it is many packets of a fast line.
const LOOK: Duration = Duration::from_millis(40);
/// After a pause what was measured before it means nothing. A slow line's socket asks for more every second.
const PAUSE: Duration = Duration::from_secs(2);
/// A rate that is not used up is not raised: the origin, the borrower or a limit of the owner's decides.
const USED: f64 = 0.75;
/// While it looks for the uplink's rate; the kernel's own slow start is as fast.
const DOUBLE: f64 = 2.0;
/// Later, a round trip: an uplink that became twice as fast is used up after 10.
const RAISE: f64 = 1.07;
/// Samples that are looked at together.
const SEEN: usize = 4;
/// A wait is brought to where it should be in so many times what it takes to see the effect.
const SOON: f64 = 2.0;
/// What is sent at the least, as a part of what is carried, while something waits.
const GIVE_WAY: f64 = 0.6;
/// A queue of ours shrinks by what we send less. One that shrinks by less than this part of it is not ours...
const EFFECT: f64 = 0.25;
/// ...once that is to be seen beside what a wireless line's round trips vary by.
const CLEAR: Duration = Duration::from_millis(50);
/// A wait that is not ours is believed to shrink in this time, or to be ours; it shows again if not.
const FORGET: Duration = Duration::from_secs(10);
/// The least, in bytes a second: a slower uplink than any.
pub(super) const LEAST: u64 = 8_000;
/// The most that a kernel before 4.20 takes; it is its "unlimited" as well.
pub(super) const MOST: u64 = u32::MAX as u64;
/// What is sent in a round trip of a connection that nothing is known of: ten packets (RFC 6928), with room for the next.
const FIRST: f64 = 2.0 * 10.0 * 1448.0;

/// What the kernel says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// All bytes acknowledged so far.
    pub(super) acked: u64,
    /// The smoothed round trip now.
    pub(super) rtt: Duration,
    /// The shortest there was for the same way.
    pub(super) min_rtt: Duration,
}

/// So long what was the shortest round trip is taken to be it still, as by the kernel.
const FRESH: Duration = Duration::from_secs(300);
/// Origins remembered of an uplink.
const MAX_FLOORS: usize = 16;

/// The shortest round trips to the origins behind one uplink. A connection that begins while another one sends sees its
/// queue from the beginning, and must not take it for the line's own delay.
#[derive(Debug, Default)]
pub(super) struct Floors(BTreeMap<IpAddr, (Duration, Instant)>);

impl Floors {
    /// The shortest of all connections to that origin, of which one has seen this.
    pub(super) fn learn(&mut self, to: IpAddr, seen: Duration, now: Instant) -> Duration {
        if self.0.len() >= MAX_FLOORS && !self.0.contains_key(&to) {
            let oldest = self.0.iter().min_by_key(|(_, (_, at))| *at);
            if let Some(oldest) = oldest.map(|(to, _)| *to) {
                self.0.remove(&oldest);
            }
        }
        let (floor, at) = self.0.entry(to).or_insert((seen, now));
        if seen <= *floor || now.saturating_duration_since(*at) >= FRESH {
            (*floor, *at) = (seen, now);
        }
        *floor
    }
}

/// Who has not sent for so long does not send any more.
const STOPPED: Duration = Duration::from_secs(1);
/// Who has sent beside another for less than this may be taking over from it, as the next part of an upload does from the
/// last one: held back while it looks for the uplink's rate, BBR would take seconds to find it.
const TOGETHER: Duration = Duration::from_millis(1_500);

/// So long after one joined others, their queue does not yet follow from what each of them sends: the one that joined looks
/// for its rate, and with BBR none was held to its own for half of that time.
const GATHERS: Duration = Duration::from_secs(3);

/// The connections that send over one uplink, by their addresses here: since when, and when last.
#[derive(Debug, Default)]
pub(super) struct Senders {
    sending: BTreeMap<SocketAddr, (Instant, Instant)>,
    /// When one joined others; those who join within [`FORGET`] of it are not waited for.
    gathered: Option<Instant>,
}

impl Senders {
    /// That one sends now; says whether no other one has sent beside it for some time.
    pub(super) fn is_alone(&mut self, sender: SocketAddr, now: Instant) -> bool {
        self.sending
            .retain(|_, (_, last)| now.saturating_duration_since(*last) < STOPPED);
        let joins = !self.sending.is_empty() && !self.sending.contains_key(&sender);
        // Where one joins again and again, most of the time is still left to tell whose the queue is.
        let is_long_ago = |at: Instant| now.saturating_duration_since(at) >= FORGET;
        if joins && self.gathered.is_none_or(is_long_ago) {
            self.gathered = Some(now);
        }
        let (began, last) = self.sending.entry(sender).or_insert((now, now));
        *last = now;
        let began = *began;
        let together = |since: &Instant| now.saturating_duration_since(began.max(*since)) >= TOGETHER;
        let mut others = self.sending.iter().filter(|(other, _)| **other != sender);
        !others.any(|(_, (since, _))| together(since))
    }

    /// Whether one has just joined others.
    pub(super) fn are_gathering(&self, now: Instant) -> bool {
        self.gathered
            .is_some_and(|at| now.saturating_duration_since(at) < GATHERS)
    }
}

/// One connection's rate.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rate: Option<f64>,
    /// The last samples, the newest last: what comes in rounds of a wireless line's making is even over all of them.
    seen: VecDeque<(Instant, Sample)>,
    /// Something has waited: the uplink's rate is known.
    found: bool,
    /// The part of the wait that is not ours.
    foreign: Duration,
    giving: Option<Giving>,
    /// See [`Pace::cannot_tell`].
    cannot_tell: bool,
}

/// Since when less is sent than is carried.
#[derive(Debug)]
struct Giving {
    /// What waited at the most, and what was carried then.
    waits: Duration,
    carried: f64,
    /// By so much a queue of ours has become shorter since, in seconds.
    way: f64,
}

impl Pace {
    /// Whether it is time for a sample: asking the kernel costs something.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let every = |sample: &Sample| sample.rtt.clamp(LOOK, 4 * LOOK);
        self.seen
            .back()
            .is_none_or(|(at, sample)| now.saturating_duration_since(*at) >= every(sample))
    }

    /// Whether it cannot be told now whose the queue is, because the rates given were not kept to, by this connection or
    /// another of ours.
    pub(super) fn cannot_tell(&mut self, cannot: bool) {
        self.cannot_tell = cannot;
    }

    /// Takes a sample; gives the rate from now on, in bytes a second.
    pub(super) fn sample(&mut self, sample: Sample, now: Instant) -> u64 {
        let pause = |at: &Instant| now.saturating_duration_since(*at) > PAUSE + 4 * sample.rtt;
        if self.seen.back().is_some_and(|(at, _)| pause(at)) {
            self.seen.clear();
        }
        if self.seen.len() == SEEN {
            self.seen.pop_front();
        }
        // While the uplink's rate is not known, only the last round counts: each is another one.
        let from = if self.found {
            self.seen.front()
        } else {
            self.seen.back()
        };
        let carried = from.map(|(at, before)| {
            let past = now.saturating_duration_since(*at).max(LOOK / 2);
            sample.acked.saturating_sub(before.acked) as f64 / past.as_secs_f64()
        });
        let past = self.seen.back().map(|(at, _)| now.saturating_duration_since(*at));
        self.seen.push_back((now, sample));
        let rate = match (self.rate, carried, past) {
            (Some(rate), Some(carried), Some(past)) => self.next(rate, carried, past),
            // After a pause the rate of before it is as good a guess as any.
            (Some(rate), ..) => rate,
            (None, ..) => FIRST / sample.min_rtt.max(Duration::from_millis(1)).as_secs_f64(),
        };
        let rate = rate.clamp(LEAST as f64, MOST as f64);
        self.rate = Some(rate);
        rate as u64
    }

    fn next(&mut self, rate: f64, carried: f64, past: Duration) -> f64 {
        let wait = |(_, sample): &(Instant, Sample)| sample.rtt.saturating_sub(sample.min_rtt);
        let waits = match self.found {
            true => self.seen.iter().map(wait).min(),
            false => self.seen.back().map(wait),
        };
        let waits = waits.unwrap_or_default();
        // Others end, and what then waits in their stead is ours.
        let less = self
            .foreign
            .mul_f64((past.as_secs_f64() / FORGET.as_secs_f64()).min(1.0));
        self.foreign = (self.foreign - less).min(waits);
        let ours = waits - self.foreign;
        if ours <= WAIT * 3 / 2 {
            self.giving = None;
        }
        if ours <= WAIT / 2 {
            return match (carried >= USED * rate, self.found) {
                (false, _) => rate,
                (true, false) => rate * DOUBLE,
                (true, true) => rate * RAISE,
            };
        }
        self.found = true;
        // In so long the wait shall be what it should be: no sooner than the effect of what we do now is seen.
        let round_trip = self.seen.back().map_or(LOOK, |(_, sample)| sample.rtt.max(LOOK));
        let soon = SOON * (round_trip + LOOK * SEEN as u32).as_secs_f64();
        let excess = (ours.as_secs_f64() - WAIT.as_secs_f64()) / soon;
        let part = (1.0 - excess).clamp(GIVE_WAY, RAISE);
        let by = (1.0 - part) * past.as_secs_f64();
        match self.giving_way(waits, carried, by) {
            Some(carried) => carried,
            None => carried * part,
        }
    }

    /// Notes that we give way, by so many seconds of the uplink's time. Where it has no effect the queue is not ours: then
    /// gives what was carried before.
    fn giving_way(&mut self, waits: Duration, carried: f64, by: f64) -> Option<f64> {
        if by <= 0.0 || waits - self.foreign <= WAIT * 3 / 2 {
            return None;
        }
        if self.cannot_tell {
            self.giving = None;
            return None;
        }
        let new = Giving {
            waits,
            carried,
            way: 0.0,
        };
        let giving = self.giving.get_or_insert(new);
        if waits > giving.waits {
            // What was sent before we gave way is still coming.
            (giving.waits, giving.way) = (waits, 0.0);
        }
        giving.way += by;
        if giving.way < CLEAR.max(giving.waits).as_secs_f64() {
            return None;
        }
        let shrunk = (giving.waits - waits).as_secs_f64();
        let (in_vain, carried) = (shrunk < EFFECT * giving.way, giving.carried);
        self.giving = None;
        in_vain.then(|| {
            self.foreign = waits;
            carried
        })
    }
}

#[cfg(test)]
mod tests;
