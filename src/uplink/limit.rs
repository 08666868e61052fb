//! Rate limits: what the owner lets through an uplink, and how often somebody may ask for something.
//!
//! [`Bucket`] is pure (time is an argument); [`Limited`] delays the reads and writes of a stream by it. All streams of
//! one uplink share one [`Limiter`], the owner's own and the lent ones alike. Invariant: over any 2 s a limiter lets at
//! most rate × 2 s × 1.04 pass.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::types::Rate;

/// What may pass at once after a pause: short enough that a limit holds within 2 s, long enough for late timers.
const BURST: Duration = Duration::from_millis(50);
/// The burst of a slow line, so that it is not cut into packets smaller than need be...
const MIN_BURST: u64 = 16 << 10;
/// ...as long as that is no more than this time's worth, which is what keeps the invariant's 4 %.
const MAX_BURST: Duration = Duration::from_millis(80);
/// A waiting stream is woken when this much may pass: fewer, larger reads cost less.
const QUANTUM: u64 = 16 << 10;

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
        let least = u128::from(want.min(QUANTUM)).min(self.capacity / self.per);
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

/// One uplink's limits, shared by its clones. The default one limits nothing.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    down: Option<Arc<Mutex<Bucket>>>,
    up: Option<Arc<Mutex<Bucket>>>,
}

impl Limiter {
    /// A limiter of its own.
    pub fn new(cap: Cap, now: Instant) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Arc::new(Mutex::new(Bucket::of(rate, now))));
        Self {
            down: bucket(cap.down),
            up: bucket(cap.up),
        }
    }
}

/// The limiters of a device's uplinks, by the uplink's name. Clones share them: lanes and relay must be given the same.
#[derive(Clone, Debug, Default)]
pub struct Limiters(Arc<BTreeMap<String, Limiter>>);

impl Limiters {
    /// One for each uplink named; the others are not limited.
    pub fn new(caps: impl IntoIterator<Item = (String, Cap)>, now: Instant) -> Self {
        Self(Arc::new(
            caps.into_iter()
                .map(|(name, cap)| (name, Limiter::new(cap, now)))
                .collect(),
        ))
    }

    /// The limiter of this uplink.
    pub fn of(&self, uplink: &str) -> Limiter {
        self.0.get(uplink).cloned().unwrap_or_default()
    }
}

/// A stream whose reads (down) and writes (up) wait for a limiter. What was not let through stays where it is, so the
/// sender is slowed down and nothing is buffered.
pub struct Limited<S> {
    inner: S,
    limiter: Limiter,
    read: Wait,
    write: Wait,
}

impl<S> Limited<S> {
    /// `inner`, slowed down by `limiter`.
    pub fn new(inner: S, limiter: Limiter) -> Self {
        Self {
            inner,
            limiter,
            read: Wait::default(),
            write: Wait::default(),
        }
    }

    /// The stream itself.
    pub const fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S> fmt::Debug for Limited<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(bucket) = &this.limiter.down else {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        };
        let granted = ready!(this.read.poll_take(bucket, buf.remaining(), cx));
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(granted));
        let result = Pin::new(&mut this.inner).poll_read(cx, &mut part);
        let read = part.filled().len();
        refund(bucket, granted - read);
        buf.advance(read);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(bucket) = &this.limiter.up else {
            return Pin::new(&mut this.inner).poll_write(cx, data);
        };
        let granted = ready!(this.write.poll_take(bucket, data.len(), cx));
        let result = Pin::new(&mut this.inner).poll_write(cx, &data[..granted]);
        let written = match &result {
            Poll::Ready(Ok(n)) => (*n).min(granted),
            _ => 0,
        };
        refund(bucket, granted - written);
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// One direction's timer, made when it is first needed.
#[derive(Default)]
struct Wait {
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Wait {
    fn poll_take(&mut self, bucket: &Mutex<Bucket>, want: usize, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            if self.armed
                && let Some(timer) = &mut self.timer
            {
                ready!(timer.as_mut().poll(cx));
                self.armed = false;
            }
            let now = tokio::time::Instant::now();
            match locked(bucket).take(want as u64, now.into_std()) {
                // No more than `want`, so it fits.
                Ok(granted) => return Poll::Ready(usize::try_from(granted).unwrap_or(want)),
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

fn refund(bucket: &Mutex<Bucket>, bytes: usize) {
    if bytes > 0 {
        locked(bucket).refund(bytes as u64);
    }
}

fn locked(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
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
}
