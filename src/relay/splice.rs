//! Moves a tunnel's bytes both ways until both ends have ended, one broke, or nothing moved for too long.
//!
//! Half-close is carried on: one end's end of stream shuts down the other's writing side, and the other direction goes
//! on. Back-pressure is the sockets' own: nothing is read that was not written on. Invariant: at most `BUFFER` bytes
//! are held in each direction, and a splice ends `idle` after its last byte, and after `life` in any case.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::relay::ledger::Entry;
use crate::uplink::sent;

/// Held in each direction: a segmented burst of the kernel's, so that a fast origin costs few calls.
const BUFFER: usize = 64 << 10;

/// How a splice ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both directions came to their ends.
    Closed,
    /// One end broke off: the other must be broken off too, never ended as if all was well.
    Broken(io::Error),
    /// Nothing moved for the idle time.
    Idle,
    /// Its time is over.
    Old,
    /// The owner lends that uplink no more.
    TakenBack,
    /// This device's address that it came from is gone.
    Moved,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Broken(error) => write!(f, "broken off: {error}"),
            Self::Idle => f.write_str("idle for too long"),
            Self::Moved => f.write_str("the address it came from is gone"),
            Self::Old => f.write_str("open for too long"),
            Self::TakenBack => f.write_str("the uplink is not lent any more"),
        }
    }
}

/// Splices until the end. The caller then drops both, and resets what was not [`End::Closed`].
pub(super) async fn splice<T, O>(
    tunnel: &mut T,
    origin: O,
    (entry, sent): (&Entry, &sent::Count),
    idle: Duration,
    life: Duration,
) -> End
where
    T: AsyncRead + AsyncWrite + Unpin,
    O: AsyncRead + AsyncWrite + Unpin,
{
    let pulse = Pulse::new();
    let mut origin = Counted {
        inner: origin,
        entry,
        sent,
        pulse: &pulse,
    };
    tokio::select! {
        copied = tokio::io::copy_bidirectional_with_sizes(tunnel, &mut origin, BUFFER, BUFFER) => match copied {
            Ok(_) => End::Closed,
            Err(error) => End::Broken(error),
        },
        () = pulse.stopped(idle) => End::Idle,
        () = tokio::time::sleep(life) => End::Old,
    }
}

/// When something last moved.
struct Pulse {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn beat(&self) {
        let at = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(at, Ordering::Relaxed);
    }

    /// Returns when there was no beat for `idle`.
    async fn stopped(&self, idle: Duration) {
        loop {
            let due = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// The origin's side, with every byte noted: what is read there is lent down, what is written there up.
struct Counted<'a, S> {
    inner: S,
    entry: &'a Entry,
    sent: &'a sent::Count,
    pulse: &'a Pulse,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            this.pulse.beat();
            this.entry.down(read as u64);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, data);
        if let Poll::Ready(Ok(written @ 1..)) = result {
            this.pulse.beat();
            this.entry.up(written as u64);
            this.sent.add(written as u64);
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::relay::ledger::{Count, Ledger};
    use crate::types::PeerId;

    const IDLE: Duration = Duration::from_secs(120);
    const LIFE: Duration = Duration::from_secs(6 * 3600);

    /// Runs a splice with a script for both of its ends; gives its end, its books and its duration.
    async fn spliced<F, Fut>(script: F) -> (End, Count, Duration)
    where
        F: FnOnce(DuplexStream, DuplexStream) -> Fut,
        Fut: Future<Output = ()>,
    {
        let ledger = Ledger::default();
        let entry = ledger.opened(PeerId([1; 32]), "wan0");
        let (borrower, mut tunnel) = duplex(1000);
        let (origin, far) = duplex(1000);
        let (start, sent) = (Instant::now(), sent::Count::default());
        let run = async {
            let end = splice(&mut tunnel, origin, (&entry, &sent), IDLE, LIFE).await;
            drop(tunnel);
            (end, start.elapsed())
        };
        let ((end, took), ()) = tokio::join!(run, script(borrower, far));
        assert_eq!(sent.bytes(), ledger.lent().all.up);
        (end, ledger.lent().all, took)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ended_by_the_borrower_still_gets_its_answer() {
        let (end, count, _) = spliced(|mut borrower, mut origin| async move {
            borrower.write_all(b"GET").await.unwrap();
            borrower.shutdown().await.unwrap();
            let answer = async {
                let mut request = String::new();
                origin.read_to_string(&mut request).await.unwrap();
                assert_eq!(request, "GET");
                tokio::time::sleep(IDLE / 2).await;
                origin.write_all(&[7; 100_000]).await.unwrap();
                drop(origin);
            };
            let mut got = Vec::new();
            let (read, ()) = tokio::join!(borrower.read_to_end(&mut got), answer);
            assert_eq!((read.unwrap(), got.len()), (100_000, 100_000));
        })
        .await;
        assert!(matches!(end, End::Closed), "{end:?}");
        assert_eq!((count.down, count.up), (100_000, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_ends_first_still_gets_the_rest_of_the_upload() {
        let (end, count, _) = spliced(|mut borrower, mut origin| async move {
            origin.shutdown().await.unwrap();
            assert_eq!(borrower.read(&mut [0; 1]).await.unwrap(), 0);
            let mut got = Vec::new();
            let upload = async {
                borrower.write_all(&[3; 50_000]).await.unwrap();
                borrower.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(origin.read_to_end(&mut got), upload);
            assert_eq!(read.unwrap(), 50_000);
        })
        .await;
        assert!(matches!(end, End::Closed), "{end:?}");
        assert_eq!(count.up, 50_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_borrower_that_does_not_read_stops_the_origin() {
        let (end, count, _) = spliced(|borrower, mut origin| async move {
            let mut sent = 0;
            while let Ok(n) = tokio::time::timeout(Duration::from_secs(1), origin.write(&[1; 1000])).await {
                sent += n.unwrap();
            }
            assert!(
                sent <= BUFFER + 2 * 1000,
                "{sent} bytes were taken from the origin for nobody"
            );
            drop(borrower);
        })
        .await;
        assert!(matches!(end, End::Broken(_)), "{end:?}");
        assert!(count.down <= (BUFFER + 1000) as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn sec_b12_a_tunnel_without_a_byte_is_closed_after_the_idle_time_and_no_sooner() {
        let (end, _, took) = spliced(|mut borrower, mut origin| async move {
            // The last byte moves after three quarters of the idle time, in the other direction than the first.
            borrower.write_all(b"a").await.unwrap();
            tokio::time::sleep(IDLE * 3 / 4).await;
            origin.write_all(b"b").await.unwrap();
            assert_eq!(borrower.read(&mut [0; 9]).await.unwrap(), 1);
            // Ends when the splice drops its side.
            assert_eq!(borrower.read(&mut [0; 9]).await.unwrap(), 0);
        })
        .await;
        assert!(matches!(end, End::Idle), "{end:?}");
        assert_eq!(took, IDLE * 7 / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn sec_b12_a_half_closed_tunnel_without_a_byte_is_closed_too() {
        let (end, _, took) = spliced(|mut borrower, _origin| async move {
            borrower.shutdown().await.unwrap();
            let _held = (borrower.read(&mut [0; 1]).await, _origin);
        })
        .await;
        assert!(matches!(end, End::Idle), "{end:?}");
        assert_eq!(took, IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn sec_b12_a_tunnel_that_is_kept_busy_ends_with_its_life() {
        let (end, _, took) = spliced(|mut borrower, mut origin| async move {
            while borrower.write_all(b"x").await.is_ok() {
                let got = tokio::time::timeout(IDLE / 2, origin.read(&mut [0; 1])).await;
                assert!(got.is_ok());
                tokio::time::sleep(IDLE / 2).await;
            }
        })
        .await;
        assert!(matches!(end, End::Old), "{end:?}");
        assert_eq!(took, LIFE);
    }
}
