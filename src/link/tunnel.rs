//! A tunnel: one TCP connection to an origin, carried in one QUIC stream.
//!
//! Invariant: a tunnel dropped before it was shut down is reset both ways, so that the lender stops its origin at
//! once instead of filling buffers for nobody.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::trust::{Right, Tier};
use crate::types::PeerId;
use crate::uplink::sent::Sent;

use super::Link;
use super::asked::{Asked, Exchange};
use super::reports::{Metered, Reporter, Reports};
use super::wire::{self, Answer, First, Open, Refusal, WireError};

/// A stream that is cut off rather than ended.
pub(super) const ABORTED: VarInt = VarInt::from_u32(1);
/// A lender resolves and dials for at most 10 s; after that and a LAN round trip there will be no answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);
/// The request follows the opening of a stream at once; who waits here only holds a stream.
pub(super) const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The lender said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The link is gone.
    #[error("the link to the peer is gone: {0}")]
    Link(#[from] quinn::ConnectionError),
    /// The lender's answer was no answer.
    #[error("the peer broke the protocol: {0}")]
    Wire(#[from] WireError),
    /// No answer in time.
    #[error("the peer did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Timeout,
}

/// Asks the peer for a tunnel.
pub(super) async fn open(
    connection: &quinn::Connection,
    reports: &Reports,
    open: &Open,
) -> Result<(SocketAddr, TunnelStream), TunnelError> {
    let answered = tokio::time::timeout(ANSWER_WITHIN, async {
        let (send, recv) = connection.open_bi().await?;
        let mut stream = TunnelStream::new(Exchange::new(send, recv));
        wire::send_open(&mut stream, open).await?;
        let answer = wire::receive_answer(&mut stream).await?;
        Ok::<_, TunnelError>((answer, stream))
    });
    match answered.await {
        Ok(Ok((Answer::Opened(address), mut stream))) => {
            // Who can hear reports makes them.
            let reported = connection.max_datagram_size().is_some();
            stream.metered = Some(reports.meter(stream.way.send.id().index(), reported));
            Ok((address, stream))
        }
        Ok(Ok((Answer::Refused(reason), _))) => Err(reason.into()),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(TunnelError::Timeout),
    }
}

/// Reads what a stream is for that a peer opened.
pub(super) async fn accept(link: &Arc<Link>, (send, recv): (SendStream, RecvStream)) -> Option<Request> {
    let mut way = Exchange::new(send, recv);
    let (peer, tier) = (link.peer, link.tier());
    // It may have lost its standing since it opened the stream.
    let share = || link.tier().may(Right::Share);
    let first = tokio::time::timeout(OPEN_WITHIN, wire::receive_first(&mut way.recv, share)).await;
    match first {
        Ok(Ok(First::Open(open))) => Some(Request::Tunnel(Incoming {
            peer,
            tier,
            open,
            connection: link.connection.clone(),
            stream: TunnelStream::new(way),
        })),
        Ok(Ok(First::Share(kind, body))) => Some(Request::Share(Asked {
            peer,
            link: Arc::clone(link),
            kind,
            body,
            stream: way,
        })),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a peer's stream did not begin with a request");
            None
        }
        Err(_) => None,
    }
}

/// What a peer's stream begins with.
#[derive(Debug)]
pub(super) enum Request {
    /// It wants a tunnel.
    Tunnel(Incoming),
    /// It asks the household something.
    Share(Asked),
}

/// A peer's request for a tunnel, to be accepted or refused.
#[derive(Debug)]
pub struct Incoming {
    /// Who asks, proved by the link.
    pub peer: PeerId,
    /// How far it is trusted, when it asks.
    pub tier: Tier,
    /// For what.
    pub open: Open,
    connection: quinn::Connection,
    stream: TunnelStream,
}

impl Incoming {
    /// What tells the borrower how much of the tunnel has been handed to the origin, once it is accepted.
    pub fn reporter(&self) -> Reporter {
        Reporter::new(self.connection.clone(), self.stream.way.send.id().index())
    }

    /// Says that the tunnel is open and leads to `address`.
    ///
    /// # Errors
    /// Where the borrower is gone.
    pub async fn accept(mut self, address: SocketAddr) -> io::Result<TunnelStream> {
        wire::send_answer(&mut self.stream, Answer::Opened(address))
            .await
            .map_err(io::Error::other)?;
        Ok(self.stream)
    }

    /// Says why there is no tunnel.
    pub async fn refuse(mut self, reason: Refusal) {
        if wire::send_answer(&mut self.stream, Answer::Refused(reason))
            .await
            .is_ok()
        {
            self.stream.way.finish();
        }
    }
}

/// The two directions of a tunnel. `shutdown` ends one (half-close); dropping it before resets both. The borrower's end
/// waits with what is too far ahead of what the lender has handed on.
#[derive(Debug)]
pub struct TunnelStream {
    way: Exchange,
    /// At the borrower's end, once it is open.
    metered: Option<Metered>,
}

impl TunnelStream {
    const fn new(way: Exchange) -> Self {
        Self { way, metered: None }
    }

    /// How much the lender has handed to the origin; `None` at the lender's own end.
    pub fn sent(&self) -> Option<Sent> {
        self.metered.as_ref().map(Metered::sent)
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.way.recv), cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let room = match &mut this.metered {
            Some(metered) => ready!(metered.poll_room(cx)),
            None => usize::MAX,
        };
        let written = ready!(AsyncWrite::poll_write(
            Pin::new(&mut this.way.send),
            cx,
            &buf[..buf.len().min(room)]
        ))?;
        if let Some(metered) = &this.metered {
            metered.wrote(written);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.way.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.way.finish();
        Poll::Ready(Ok(()))
    }
}
