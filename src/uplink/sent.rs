//! How much of what a stream was given has really gone on to the origin's socket, wherever that is.
//!
//! A lane's stream may swallow a good deal more than its uplink has carried: a lent one has windows and buffers on the way.
//! Rates, bars and the scheduler of an upload go by this number instead. Invariant: it never falls.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// The side that counts.
#[derive(Debug, Default)]
pub struct Count(watch::Sender<u64>);

impl Count {
    /// So much more has gone on.
    pub fn add(&self, bytes: u64) {
        if bytes > 0 {
            self.0.send_modify(|all| *all = all.saturating_add(bytes));
        }
    }

    /// So much has gone on in all; less than is known already is old news. Says whether it was news.
    pub fn raise(&self, all: u64) -> bool {
        self.0.send_if_modified(|known| {
            let more = all > *known;
            *known = all.max(*known);
            more
        })
    }

    /// What has gone on so far.
    pub fn bytes(&self) -> u64 {
        *self.0.borrow()
    }

    /// A view of it for others.
    pub fn sent(&self) -> Sent {
        Sent(self.0.subscribe())
    }
}

/// A view of what a stream has sent. Clones look at the same stream.
#[derive(Clone, Debug)]
pub struct Sent(watch::Receiver<u64>);

impl Sent {
    /// Bytes handed to the origin's socket since the stream began. The socket keeps few of them unsent.
    pub fn bytes(&self) -> u64 {
        *self.0.borrow()
    }

    /// Returns when [`Sent::bytes`] is another number than when this was last called; never, once the stream is gone.
    /// Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when it is `least` at least; never, once the stream is gone. Cancel safe.
    pub async fn reaches(&mut self, least: u64) {
        if self.0.wait_for(|all| *all >= least).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A stream whose writes are counted as they are taken: what it is given goes on at once.
#[derive(Debug)]
pub struct Counting<S> {
    inner: S,
    count: Count,
}

impl<S> Counting<S> {
    /// `inner`, from its beginning.
    pub fn new(inner: S) -> Self {
        let count = Count::default();
        Self { inner, count }
    }

    /// What was written to it.
    pub fn sent(&self) -> Sent {
        self.count.sent()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, data);
        if let Poll::Ready(Ok(written)) = result {
            this.count.add(written as u64);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_was_taken_is_counted_and_no_more() {
        let (near, _far) = duplex(10);
        let mut stream = Counting::new(near);
        let mut sent = stream.sent();
        assert!(sent.changed().now_or_never().is_none());
        assert!(stream.write_all(&[0; 25]).now_or_never().is_none());
        assert_eq!(sent.bytes(), 10);
        sent.changed().await;
        assert!(sent.changed().now_or_never().is_none(), "it is told once");
        sent.reaches(10).await;
        assert!(sent.reaches(11).now_or_never().is_none());
    }

    #[tokio::test]
    async fn old_news_and_the_end_of_a_stream_change_nothing() {
        let count = Count::default();
        let mut sent = count.sent();
        assert!(count.raise(7));
        sent.changed().await;
        assert!(!count.raise(5) && !count.raise(7));
        drop(count);
        assert!(sent.changed().now_or_never().is_none());
        assert_eq!(sent.bytes(), 7);
    }
}
