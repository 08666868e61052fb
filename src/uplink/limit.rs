//! Rate limits: what the owner lets through an uplink, and how often somebody may ask for something.
//!
//! [`Bucket`] is pure (time is an argument); [`Limited`] delays the reads and writes of a stream by it. All streams of
//! one uplink share one [`Limiter`], the owner's own and the lent ones alike. Invariant: over any 2 s a limiter lets at
//! most rate × 2 s × 1.04 pass.
//!
//! A limit of the owner's is one of the *wire*: no more than it, headers included, is carried over any 2 s. A reader alone
//! cannot see to that, because an origin sends as much ahead as the receive buffers take; so those are kept small, and
//! all streams of the uplink share what they may hold together.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::types::Rate;
use crate::uplink::connection::Connection;
use crate::uplink::pace::{Floors, Senders};

/// What may pass at once after a pause: short enough that a limit holds within 2 s, long enough for late timers.
const BURST: Duration = Duration::from_millis(40);
/// The burst of a slow line, so that it is not cut into packets smaller than need be...
const MIN_BURST: u64 = 16 << 10;
/// ...as long as that is no more than this time's worth, which is what keeps the invariant's 4 %.
const MAX_BURST: Duration = Duration::from_millis(80);
/// A waiting stream is woken when this much may pass: fewer, larger reads cost less.
const QUANTUM: u64 = 16 << 10;
/// Of a limit on the wire, the part that goes to content: the headers of full packets take 3.5 % (5 % with IPv6), and the
/// rest is room for what cannot be controlled: handshakes, packets sent twice, and what [`AHEAD`] allows.
const CONTENT: f64 = 0.92;
/// All streams of a limited uplink together may be sent this time's worth of bytes ahead of what is let through. It is
/// also the longest round trip at which a limit is used up; where a longer one was measured, that decides.
const AHEAD: Duration = Duration::from_millis(120);
/// A connection that needs longer than this was held up by a lost packet, and says nothing about the line.
const MAX_ROUND_TRIP: Duration = Duration::from_millis(800);
/// Streams that a share is kept for before they are there: a transfer opens its second one a moment later.
const MIN_STREAMS: u64 = 2;
/// Smaller, and a window is no place for two packets.
const MIN_WINDOW: u64 = 4 << 10;
/// The kernel counts its own overhead: a buffer has room for up to four thirds of the number it is asked for.
const BUFFER_OF_WINDOW: (u64, u64) = (3, 4);
/// For a stream that is not limited any more: more than any system grants, so what it grants at most.
const UNLIMITED_BUFFER: u64 = 64 << 20;
/// Limiters remembered that nobody uses: interfaces' names come and go with sticks and tunnels.
const MAX_IDLE: usize = 64;

/// A token bucket. Exact: it counts in integers, so nothing is lost or won by rounding.
#[derive(Debug)]
pub struct Bucket {
    /// Units that come back in `per`.
    amount: u128,
    /// The time in which they do, in nanoseconds: also what one unit costs in credit.
    per: u128,
    capacity: u128,
    credit: u128,
    at: Instant,
}

impl Bucket {
    /// A full bucket of `burst` units; `amount` come back in each `per`. Zeros count as 1 (unit, nanosecond).
    pub fn new(amount: u64, per: Duration, burst: u64, now: Instant) -> Self {
        let per = per.as_nanos().max(1);
        let capacity = u128::from(burst.max(1)) * per;
        Self {
            amount: u128::from(amount.max(1)),
            per,
            capacity,
            credit: capacity,
            at: now,
        }
    }

    /// A bucket of bytes for `rate`, with the burst that suits it.
    pub fn of(rate: Rate, now: Instant) -> Self {
        let in_time = |time: Duration| {
            u64::try_from(u128::from(rate.as_bits()) * time.as_nanos() / 8_000_000_000).unwrap_or(u64::MAX)
        };
        let burst = in_time(BURST).max(MIN_BURST.min(in_time(MAX_BURST)));
        Self::new(rate.as_bits(), Duration::from_secs(8), burst, now)
    }

    /// Takes up to `want` units, but no fewer than a worthwhile part of them (for `want` = 1: that one).
    ///
    /// # Errors
    /// The time at which to ask again.
    pub fn take(&mut self, want: u64, now: Instant) -> Result<u64, Instant> {
        self.refill(now);
        let there = u64::try_from(self.credit / self.per).unwrap_or(u64::MAX);
        // Whoever waits for a full bucket loses what comes while its timer is late.
        let half = (self.capacity / self.per).div_ceil(2);
        let least = u128::from(want.min(QUANTUM)).min(half);
        if u128::from(there) < least {
            let missing = least * self.per - self.credit;
            let wait = u64::try_from(missing.div_ceil(self.amount)).unwrap_or(u64::MAX);
            return Err(now + Duration::from_nanos(wait));
        }
        let taken = there.min(want);
        self.credit -= u128::from(taken) * self.per;
        Ok(taken)
    }

    /// Gives back what was taken in vain.
    pub fn refund(&mut self, units: u64) {
        self.credit = (self.credit + u128::from(units) * self.per).min(self.capacity);
    }

    fn refill(&mut self, now: Instant) {
        let past = now.saturating_duration_since(self.at).as_nanos();
        self.credit = (self.credit + past * self.amount).min(self.capacity);
        self.at = self.at.max(now);
    }
}

/// The most an uplink may carry. `None`: as much as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cap {
    /// From the internet.
    pub down: Option<Rate>,
    /// To the internet.
    pub up: Option<Rate>,
}

/// One uplink's limits, shared by its clones. The default one limits nothing, until it is told to.
#[derive(Clone, Debug, Default)]
pub struct Limiter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    cap: Mutex<Cap>,
    down: Way,
    up: Way,
    /// Bytes a second that may be sent ahead in [`AHEAD`]; 0: as many as the kernel likes.
    ahead: AtomicU64,
    streams: AtomicU64,
    round_trip_us: AtomicU64,
    floors: Mutex<Floors>,
    senders: Mutex<Senders>,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Whether there is a bucket: what costs nothing to ask where nothing is limited.
    limited: AtomicBool,
    bucket: Mutex<Option<Bucket>>,
    /// Bytes that have passed, those that do not count left out.
    moved: AtomicU64,
}

impl Way {
    fn set(&self, rate: Option<Rate>, now: Instant) {
        *locked(&self.bucket) = rate.map(|rate| Bucket::of(rate, now));
        self.limited.store(rate.is_some(), Ordering::Relaxed);
    }

    /// How much of `want` may pass now: all of it where there is no limit.
    fn take(&self, want: usize, now: Instant) -> Result<usize, Instant> {
        match locked(&self.bucket).as_mut() {
            // No more than `want`, so it fits.
            Some(bucket) => bucket
                .take(want as u64, now)
                .map(|n| usize::try_from(n).unwrap_or(want)),
            None => Ok(want),
        }
    }

    fn moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    fn refund(&self, bytes: usize) {
        if bytes > 0
            && let Some(bucket) = locked(&self.bucket).as_mut()
        {
            bucket.refund(bytes as u64);
        }
    }
}

impl Limiter {
    /// A limiter that lets exactly `cap` of content pass and leaves the sockets alone: a line that is imitated.
    pub fn new(cap: Cap, now: Instant) -> Self {
        let limiter = Self::default();
        *locked(&limiter.0.cap) = cap;
        limiter.0.down.set(cap.down, now);
        limiter.0.up.set(cap.up, now);
        limiter
    }

    /// From now on the wire itself carries no more than `cap`: content is let through at so much less as its packets'
    /// headers take, and origins cannot send far ahead. Open streams feel it at once. A cap that is not new changes nothing.
    pub fn limit_wire(&self, cap: Cap, now: Instant) {
        let mut known = locked(&self.0.cap);
        if *known == cap {
            return;
        }
        *known = cap;
        let content = |rate: Option<Rate>| rate.map(|rate| Rate::bytes_f64(rate.as_bytes_f64() * CONTENT));
        self.0.down.set(content(cap.down), now);
        self.0.up.set(content(cap.up), now);
        let ahead = cap.down.map_or(0, |rate| rate.as_bits() / 8);
        self.0.ahead.store(ahead, Ordering::Relaxed);
    }

    /// What has passed since the beginning, down and up, without what the uncounted streams moved.
    pub fn moved(&self) -> [u64; 2] {
        [&self.0.down, &self.0.up].map(|way| way.moved.load(Ordering::Relaxed))
    }

    /// How long a connection took to come about: a window smaller than a round trip's worth would cost speed.
    pub fn connected_in(&self, round_trip: Duration) {
        let us = round_trip.min(MAX_ROUND_TRIP).as_micros();
        self.0
            .round_trip_us
            .store(u64::try_from(us).unwrap_or(0), Ordering::Relaxed);
    }

    /// The shortest round trip to that address by this uplink, of which a connection has seen this.
    pub(super) fn round_trip_to(&self, to: IpAddr, seen: Duration, now: Instant) -> Duration {
        locked(&self.0.floors).learn(to, seen, now)
    }

    /// Whether the connection from that address, which sends now, is the only one by this uplink that does.
    pub(super) fn sends_alone(&self, from: SocketAddr, now: Instant) -> bool {
        locked(&self.0.senders).is_alone(from, now)
    }

    /// Whether one connection by this uplink has just begun to send beside others.
    pub(super) fn senders_gather(&self, now: Instant) -> bool {
        locked(&self.0.senders).are_gathering(now)
    }

    /// The receive buffer that one more stream should ask for; `None`: leave it to the kernel.
    pub fn buffer_for_another(&self) -> Option<usize> {
        self.buffer(self.0.streams.load(Ordering::Relaxed) + 1)
    }

    fn buffer(&self, streams: u64) -> Option<usize> {
        let rate = self.0.ahead.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        // A quarter more than a round trip, because an acknowledgement waits for the next read.
        let round_trip = self.0.round_trip_us.load(Ordering::Relaxed) * 5 / 4;
        let ahead = round_trip.max(u64::try_from(AHEAD.as_micros()).unwrap_or(0));
        let all = rate.saturating_mul(ahead) / 1_000_000;
        let window = (all / streams.max(MIN_STREAMS)).max(MIN_WINDOW);
        usize::try_from(window * BUFFER_OF_WINDOW.0 / BUFFER_OF_WINDOW.1).ok()
    }
}

/// The limiters of a device's uplinks, by the uplink's name. Clones share them: lanes and relay must be given the same.
#[derive(Clone, Debug, Default)]
pub struct Limiters(Arc<Mutex<BTreeMap<String, Limiter>>>);

impl Limiters {
    /// Lines imitated (see [`Limiter::new`]) for these uplinks; the others are not limited.
    pub fn new(caps: impl IntoIterator<Item = (String, Cap)>, now: Instant) -> Self {
        let limiters = caps
            .into_iter()
            .map(|(name, cap)| (name, Limiter::new(cap, now)))
            .collect();
        Self(Arc::new(Mutex::new(limiters)))
    }

    /// Limits the wires of these uplinks, and of no others any more.
    pub fn limit_wires<'a>(&self, caps: impl IntoIterator<Item = (&'a str, Cap)>, now: Instant) {
        let mut caps: BTreeMap<&str, Cap> = caps.into_iter().collect();
        let mut limiters = locked(&self.0);
        for (name, limiter) in &*limiters {
            limiter.limit_wire(caps.remove(name.as_str()).unwrap_or_default(), now);
        }
        for (name, cap) in caps {
            let limiter = Limiter::default();
            limiter.limit_wire(cap, now);
            limiters.insert(name.into(), limiter);
        }
    }

    /// The limiter of this uplink: the same for everybody who asks, also for those who asked before it had a limit.
    pub fn of(&self, uplink: &str) -> Limiter {
        let mut limiters = locked(&self.0);
        if let Some(limiter) = limiters.get(uplink) {
            return limiter.clone();
        }
        if limiters.len() >= MAX_IDLE {
            limiters.retain(|_, known| {
                Arc::strong_count(&known.0) > 1 || *locked(&known.0.cap) != Cap::default()
            });
        }
        limiters.entry(uplink.into()).or_default().clone()
    }
}

/// A stream's place among those that share a limiter.
struct Place(Limiter);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks for a receive buffer of that size; what the kernel says to it does not matter, the limiter works without.
type SetBuffer<S> = fn(&S, usize);

/// A stream whose reads (down) and writes (up) wait for a limiter. What was not let through stays where it is, so the
/// sender is slowed down and nothing is buffered.
pub struct Limited<S> {
    inner: S,
    place: Place,
    counted: bool,
    read: Wait,
    write: Wait,
    set_buffer: Option<SetBuffer<S>>,
    /// The receive buffer asked for last; `None`: the kernel's own choice.
    buffer: Option<usize>,
}

impl<S> Limited<S> {
    /// `inner`, slowed down by `limiter`.
    pub fn new(inner: S, limiter: Limiter) -> Self {
        limiter.0.streams.fetch_add(1, Ordering::Relaxed);
        Self {
            inner,
            place: Place(limiter),
            counted: true,
            read: Wait::default(),
            write: Wait::default(),
            set_buffer: None,
            buffer: None,
        }
    }

    /// The same, left out of [`Limiter::moved`].
    pub fn uncounted(mut self) -> Self {
        self.counted = false;
        self
    }

    /// The stream itself.
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// Gives the stream its share of what may be sent ahead, where limit or number of streams have changed.
    fn share(&mut self) {
        let Some(set) = self.set_buffer else { return };
        let shared = &self.place.0;
        let buffer = shared.buffer(shared.0.streams.load(Ordering::Relaxed));
        if buffer != self.buffer {
            set(
                &self.inner,
                buffer.unwrap_or(usize::try_from(UNLIMITED_BUFFER).unwrap_or(usize::MAX)),
            );
            self.buffer = buffer;
        }
    }
}

impl Limited<Connection> {
    /// A connection to an origin: its receive buffer is kept so small that the origin cannot send far ahead of the limit.
    pub fn connection(stream: TcpStream, limiter: Limiter) -> Self {
        let mut limited = Self::new(Connection::new(stream, limiter.clone()), limiter);
        limited.set_buffer = Some(|connection, bytes| {
            let _ = socket2::SockRef::from(connection.socket()).set_recv_buffer_size(bytes);
        });
        limited.share();
        limited
    }
}

impl<S> fmt::Debug for Limited<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("limiter", &self.place.0)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.place.0.0.down.is_limited() || this.buffer.is_some() {
            this.share();
        }
        let way = &this.place.0.0.down;
        let before = buf.filled().len();
        let result = if way.is_limited() {
            let want = buf.remaining();
            let granted = ready!(this.read.poll_take(cx, |now| way.take(want, now)));
            let result = read_part(&mut this.inner, granted, cx, buf);
            way.refund(granted - (buf.filled().len() - before));
            result
        } else {
            Pin::new(&mut this.inner).poll_read(cx, buf)
        };
        if this.counted {
            way.moved(buf.filled().len() - before);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let way = &this.place.0.0.up;
        let granted = if way.is_limited() {
            ready!(this.write.poll_take(cx, |now| way.take(data.len(), now)))
        } else {
            data.len()
        };
        let result = Pin::new(&mut this.inner).poll_write(cx, &data[..granted]);
        let written = match &result {
            Poll::Ready(Ok(n)) => (*n).min(granted),
            _ => 0,
        };
        way.refund(granted - written);
        if this.counted {
            way.moved(written);
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// Reads `most` bytes at most.
pub(crate) fn read_part<S: AsyncRead + Unpin>(
    from: &mut S,
    most: usize,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
    let result = Pin::new(from).poll_read(cx, &mut part);
    let read = part.filled().len();
    buf.advance(read);
    result
}

/// One direction's timer, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Wait {
    /// Waits until `take` gives something; what it says else is when to ask it again.
    pub(crate) fn poll_take<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Instant) -> Result<T, Instant>,
    ) -> Poll<T> {
        loop {
            if self.armed
                && let Some(timer) = &mut self.timer
            {
                ready!(timer.as_mut().poll(cx));
                self.armed = false;
            }
            match take(tokio::time::Instant::now().into_std()) {
                Ok(granted) => return Poll::Ready(granted),
                Err(at) => self.arm(at.into()),
            }
        }
    }

    fn arm(&mut self, at: tokio::time::Instant) {
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(at),
            None => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
        }
        self.armed = true;
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const WINDOW: Duration = Duration::from_secs(2);

    proptest! {
        #[test]
        fn over_any_two_seconds_no_more_passes_than_the_rate_allows(
            bits in 8_000u64..2_000_000_000,
            steps in prop::collection::vec((0u64..300_000, 1u64..200_000, any::<bool>()), 1..300),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::of(Rate::bits(bits), start);
            let mut now = start;
            let mut passed: Vec<(Instant, u64)> = Vec::new();
            for (pause, want, patient) in steps {
                now += Duration::from_micros(pause);
                match bucket.take(want, now) {
                    Ok(n) => passed.push((now, n)),
                    Err(at) if patient => {
                        prop_assert!(at > now);
                        now = at;
                        let n = bucket.take(want, now);
                        prop_assert!(n.is_ok(), "not ready at the time it named: {n:?}");
                        passed.push((now, n.unwrap()));
                    }
                    Err(_) => {}
                }
            }
            let most = bits as f64 / 8.0 * WINDOW.as_secs_f64() * 1.04;
            for (i, (from, _)) in passed.iter().enumerate() {
                let sum: u64 = passed[i..].iter().take_while(|(t, _)| *t <= *from + WINDOW).map(|(_, n)| n).sum();
                prop_assert!(sum as f64 <= most, "{sum} bytes in 2 s, {most} allowed");
            }
        }

        #[test]
        fn what_is_refunded_may_be_taken_again_and_never_more(burst in 1u64..100_000, part in 0u64..100_000) {
            let now = Instant::now();
            let mut bucket = Bucket::new(1, Duration::from_secs(1), burst, now);
            prop_assert_eq!(bucket.take(burst, now), Ok(burst));
            bucket.refund(part.min(burst));
            bucket.refund(0);
            let again = bucket.take(part.min(burst).max(1), now);
            if part > 0 { prop_assert_eq!(again, Ok(part.min(burst))) } else { prop_assert!(again.is_err()) }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// Exact, in whole units: over every stretch of time, with a clock that jumps both ways, and with what was taken
        /// in vain given back.
        #[test]
        fn prop_9_a_bucket_never_gives_more_than_burst_and_rate_whatever_the_clock_does(
            amount in prop_oneof![0u64..5, 1u64..1_000_000_000, Just(u64::MAX)],
            per in prop_oneof![0u64..10, Just(1_000_000_000u64), Just(8_000_000_000)],
            burst in prop_oneof![0u64..5, 1u64..10_000_000],
            steps in prop::collection::vec(
                (-2_000_000i64..3_000_000, prop_oneof![0u64..3, 0u64..2_000_000, Just(u64::MAX)], 0u64..4),
                1..40,
            ),
        ) {
            let start = Instant::now() + Duration::from_secs(3600);
            let mut bucket = Bucket::new(amount, Duration::from_nanos(per), burst, start);
            let (amount, per, burst) = (u128::from(amount.max(1)), u128::from(per.max(1)), u128::from(burst.max(1)));
            let (mut clock, mut latest) = (0i64, 0i64);
            let mut given: Vec<(i64, i128)> = Vec::new();
            for (jump, want, back) in steps {
                clock += jump;
                latest = latest.max(clock);
                let now = match clock {
                    0.. => start + Duration::from_nanos(clock.unsigned_abs()),
                    _ => start - Duration::from_nanos(clock.unsigned_abs()),
                };
                let Ok(taken) = bucket.take(want, now) else { continue };
                prop_assert!(taken <= want);
                let vain = taken.checked_div(back).unwrap_or_default();
                bucket.refund(vain);
                given.push((latest, i128::from(taken) - i128::from(vain)));
            }
            for (place, (from, _)) in given.iter().enumerate() {
                let mut sum = 0;
                for (until, units) in &given[place..] {
                    sum += units;
                    let past = u128::from((until - from).unsigned_abs());
                    let most = burst + past * amount / per;
                    prop_assert!(u128::try_from(sum).unwrap() <= most, "{} units, {} allowed", sum, most);
                }
            }
        }
    }

    #[test]
    fn prop_12_a_hundred_thousand_uplinks_come_and_go_and_few_limiters_stay() {
        let limiters = Limiters::default();
        let held: Vec<_> = (0..10).map(|n| limiters.of(&format!("used{n}"))).collect();
        for n in 0..100_000 {
            limiters.of(&format!("wan{n}"));
            assert!(locked(&limiters.0).len() <= MAX_IDLE + held.len());
        }
        assert!(
            held.iter().all(|used| Arc::strong_count(&used.0) == 2),
            "those in use stay"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn streams_of_one_uplink_share_its_rate_and_use_it_up() {
        let start = tokio::time::Instant::now();
        let rate = Rate::bits(8_000_000); // 1 MB/s
        let limiter = Limiter::new(
            Cap {
                down: Some(rate),
                up: None,
            },
            start.into_std(),
        );
        let both = (0..2).map(|_| {
            let limiter = limiter.clone();
            async move {
                let (mut far, near) = tokio::io::duplex(64 << 10);
                let mut near = Limited::new(near, limiter);
                let fill = async { far.write_all(&vec![7; 2_000_000]).await };
                let mut sink = vec![0; 2_000_000];
                let (written, read) = tokio::join!(fill, near.read_exact(&mut sink));
                assert!(written.is_ok() && read.is_ok() && sink.iter().all(|&b| b == 7));
            }
        });
        futures_util::future::join_all(both).await;
        let took = start.elapsed().as_secs_f64();
        assert!((3.8..4.2).contains(&took), "4 MB at 1 MB/s took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn writes_are_limited_apart_from_reads() {
        let start = tokio::time::Instant::now();
        let cap = Cap {
            down: None,
            up: Some(Rate::bits(800_000)),
        };
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut near = Limited::new(near, Limiter::new(cap, start.into_std()));
        far.write_all(&[1; 500_000]).await.unwrap();
        near.read_exact(&mut vec![0; 500_000]).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        near.write_all(&[1; 300_000]).await.unwrap();
        let took = start.elapsed().as_secs_f64();
        assert!((2.8..3.1).contains(&took), "300 kB at 100 kB/s took {took} s");
        near.shutdown().await.unwrap();
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 300_000);
    }

    #[tokio::test]
    async fn the_end_of_a_stream_is_seen_through_a_limiter_and_costs_nothing() {
        let now = Instant::now();
        let mut near = Limited::new(
            tokio::io::empty(),
            Limiter::new(
                Cap {
                    down: Some(Rate::bits(8)),
                    up: None,
                },
                now,
            ),
        );
        for _ in 0..3 {
            assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_set_or_lifted_is_felt_by_streams_that_are_open() {
        let start = tokio::time::Instant::now();
        let limiters = Limiters::default();
        let (mut far, near) = tokio::io::duplex(8 << 20);
        let mut near = Limited::new(near, limiters.of("wan0"));
        far.write_all(&vec![7; 6_000_000]).await.unwrap();
        near.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO, "not limited yet");
        let cap = Cap {
            down: Some(Rate::bits(8_000_000)),
            up: None,
        };
        limiters.limit_wires([("wan0", cap)], start.into_std());
        near.read_exact(&mut vec![0; 2_000_000]).await.unwrap();
        let took = start.elapsed().as_secs_f64();
        assert!(
            (2.0..2.3).contains(&took),
            "2 MB at 1 MB/s with headers took {took} s"
        );
        limiters.limit_wires([], tokio::time::Instant::now().into_std());
        near.read_exact(&mut vec![0; 3_000_000]).await.unwrap();
        assert!(start.elapsed().as_secs_f64() - took < 0.1, "it is lifted");
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_counted_with_and_without_a_limit_but_for_streams_that_do_not_count() {
        let now = tokio::time::Instant::now().into_std();
        let cap = Cap {
            down: Some(Rate::bits(8_000_000)),
            up: Some(Rate::bits(8_000_000)),
        };
        for limiter in [Limiter::default(), Limiter::new(cap, now)] {
            for counted in [true, false] {
                let (mut far, near) = tokio::io::duplex(1000);
                let near = Limited::new(near, limiter.clone());
                let mut near = if counted { near } else { near.uncounted() };
                far.write_all(&[1; 300]).await.unwrap();
                near.read_exact(&mut [0; 300]).await.unwrap();
                near.write_all(&[1; 20]).await.unwrap();
            }
            assert_eq!(limiter.moved(), [300, 20]);
        }
    }

    #[test]
    fn streams_of_a_limited_uplink_share_what_may_be_sent_ahead() {
        let limiter = Limiter::default();
        assert_eq!(
            limiter.buffer_for_another(),
            None,
            "no limit, no business of ours"
        );
        let cap = Cap {
            down: Some(Rate::bits(8_000_000)),
            up: None,
        };
        limiter.limit_wire(cap, Instant::now());
        // 1 MB/s for 120 ms, for two streams, in the kernel's way of counting.
        assert_eq!(limiter.buffer_for_another(), Some(45_000));
        let streams: Vec<_> = (0..6).map(|_| Limited::new((), limiter.clone())).collect();
        assert_eq!(limiter.buffer(6), Some(15_000));
        assert_eq!(limiter.buffer(1000), Some(3072), "room for two packets at least");
        drop(streams);
        assert_eq!(limiter.buffer_for_another(), Some(45_000));
        limiter.connected_in(Duration::from_millis(400));
        assert_eq!(
            limiter.buffer_for_another(),
            Some(187_500),
            "a satellite's round trip"
        );
    }

    #[test]
    fn the_limiter_of_an_uplink_is_one_and_those_of_names_long_gone_are_forgotten() {
        let limiters = Limiters::default();
        let kept = limiters.of("wan0");
        for n in 0..1000 {
            drop(limiters.of(&format!("ppp{n}")));
        }
        assert!(locked(&limiters.0).len() <= MAX_IDLE + 1);
        assert!(Arc::ptr_eq(&kept.0, &limiters.of("wan0").0));
    }
}
