//! Neighbours' tunnels: each byte of theirs is weighed against what others move over the same uplink, and counted
//! against what all of them together have for the day.
//!
//! What may not pass yet stays where it is: in the origin's socket, or with the borrower. Invariants: members' tunnels cost
//! nothing here; what a tunnel was granted and did not use is given back at once; once the day's bytes are used up, no
//! neighbour's tunnel moves another one.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::relay::share::{Quota, Share, Way};
use crate::types::{ByteSize, PeerId};
use crate::uplink::Connection;
use crate::uplink::limit::{Limited, Limiter, Wait, read_part};

/// Uplinks remembered that no neighbour uses; interfaces come and go with sticks and tunnels.
const MAX_IDLE: usize = 64;

/// All neighbours together. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Class(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quota: Mutex<Quota>,
    shares: Mutex<BTreeMap<String, Arc<Mutex<Share>>>>,
}

impl Class {
    /// Nothing was moved yet.
    pub(super) fn new(per_day: ByteSize) -> Self {
        Self(Arc::new(Inner {
            quota: Mutex::new(Quota::new(per_day, now())),
            shares: Mutex::default(),
        }))
    }

    /// From now on they have so much for a day.
    pub(super) fn change(&self, per_day: ByteSize) {
        locked(&self.0.quota).change(per_day);
    }

    /// Whether they may move another byte today; the owner hears it once where not.
    pub(super) fn has_left(&self) -> bool {
        let mut quota = locked(&self.0.quota);
        let left = quota.has_left(now());
        if !left && quota.is_to_be_told() {
            tracing::info!(
                "neighbours have used up what they may move in a day (egress.neighbours_per_day): nothing is lent to them \
                 until it is over, members go on"
            );
        }
        left
    }

    /// One neighbour's part in it, on an uplink with that limiter.
    pub(super) fn stake(&self, peer: PeerId, uplink: &str, limiter: Limiter) -> Stake {
        let mut shares = locked(&self.0.shares);
        if shares.len() >= MAX_IDLE {
            shares.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let share = Arc::clone(shares.entry(uplink.into()).or_default());
        Stake {
            class: self.clone(),
            share,
            limiter,
            peer,
        }
    }
}

/// What a neighbour's tunnel asks before it moves anything.
#[derive(Debug)]
pub(super) struct Stake {
    class: Class,
    share: Arc<Mutex<Share>>,
    limiter: Limiter,
    peer: PeerId,
}

impl Stake {
    fn take(&self, way: Way, want: usize, now: std::time::Instant) -> Result<usize, std::time::Instant> {
        let moved = self.limiter.moved();
        let taken = locked(&self.share).take(way, self.peer, want as u64, moved, now)?;
        Ok(usize::try_from(taken).unwrap_or(want))
    }

    /// Of what was granted so much was moved.
    fn settle(&self, way: Way, granted: usize, moved: usize) {
        if moved < granted {
            locked(&self.share).refund(way, self.peer, (granted - moved) as u64);
        }
        if moved > 0 {
            locked(&self.class.0.quota).spend(moved as u64, now());
        }
    }
}

/// A connection to an origin, with the stake of the neighbour it is for.
#[derive(Debug)]
pub(super) struct Staked {
    inner: Limited<Connection>,
    stake: Option<Stake>,
    read: Wait,
    write: Wait,
}

impl Staked {
    /// `None` is for whoever need not share.
    pub(super) fn new(inner: Limited<Connection>, stake: Option<Stake>) -> Self {
        let inner = match &stake {
            Some(_) => inner.uncounted(),
            None => inner,
        };
        Self {
            inner,
            stake,
            read: Wait::default(),
            write: Wait::default(),
        }
    }

    /// The connection itself.
    pub(super) const fn socket(&self) -> &TcpStream {
        self.inner.inner().socket()
    }
}

impl AsyncRead for Staked {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(stake) = &this.stake else {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        };
        // Who has nothing to read must not wait for its part: others would get less.
        ready!(this.inner.inner().socket().poll_read_ready(cx))?;
        if !stake.class.has_left() {
            return Poll::Ready(Err(used_up()));
        }
        let (want, before) = (buf.remaining(), buf.filled().len());
        let granted = ready!(this.read.poll_take(cx, |now| stake.take(Way::Down, want, now)));
        let result = read_part(&mut this.inner, granted, cx, buf);
        stake.settle(Way::Down, granted, buf.filled().len() - before);
        result
    }
}

impl AsyncWrite for Staked {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(stake) = &this.stake else {
            return Pin::new(&mut this.inner).poll_write(cx, data);
        };
        if !stake.class.has_left() {
            return Poll::Ready(Err(used_up()));
        }
        let want = data.len();
        let granted = ready!(this.write.poll_take(cx, |now| stake.take(Way::Up, want, now)));
        let result = Pin::new(&mut this.inner).poll_write(cx, &data[..granted]);
        let written = match &result {
            Poll::Ready(Ok(n)) => *n,
            _ => 0,
        };
        stake.settle(Way::Up, granted, written);
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

fn used_up() -> io::Error {
    io::Error::new(
        io::ErrorKind::QuotaExceeded,
        "what neighbours may move in a day is used up",
    )
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
