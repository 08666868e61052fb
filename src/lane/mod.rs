//! One path for a transfer's bytes: dial a host and port, get a byte stream. Own uplinks and peers' are the same to the
//! user of a lane, so striping is written once.
//!
//! Invariants: a lane never changes what it is ([`LaneInfo`] is fixed; news of an uplink make a new lane with a new id),
//! and dropping a [`Tunnel`] frees everything behind it, at the lender's as well.

mod own;
mod peer;

pub use own::OwnLane;
pub use peer::PeerLane;

pub use crate::uplink::sent::Sent;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::link::Refusal;
use crate::trust::Tier;
use crate::types::{LaneId, LineId, PeerId, Rate, UplinkKind};
use crate::uplink::sent::Counting;

/// A byte stream both ways; shutting it down closes one half only.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// An open TCP connection to an origin, made by whoever owns the uplink.
pub struct Tunnel {
    /// The bytes. Dropping it ends the connection at once.
    pub stream: Box<dyn Stream>,
    /// The origin's address that was dialled: what later dials of the same job pin.
    pub address: SocketAddr,
    /// How much of what was written has really been handed to the origin's socket, at whoever owns the uplink.
    pub sent: Sent,
}

impl Tunnel {
    /// A connection whose bytes count as sent when they are written.
    pub fn counting(stream: impl Stream + 'static, address: SocketAddr) -> Self {
        let stream = Counting::new(stream);
        let sent = stream.sent();
        Self {
            stream: Box::new(stream),
            address,
            sent,
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Where a tunnel shall lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The origin's host name (or, for own lanes only, its address).
    pub host: String,
    /// The origin's TCP port.
    pub port: u16,
    /// Dial exactly this address and resolve nothing. `None`: any address of the name.
    pub pin: Option<IpAddr>,
}

/// What is known of a lane before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneInfo {
    /// Unique in this process.
    pub id: LaneId,
    /// The lender. `None`: an own uplink.
    pub peer: Option<PeerId>,
    /// How far the lender is trusted. `None`: an own uplink.
    pub tier: Option<Tier>,
    /// "this device" or the peer's name, already cleaned for display.
    pub owner: String,
    /// The uplink's name at its owner's, already cleaned for display.
    pub uplink: String,
    /// What kind of interface the uplink is.
    pub kind: UplinkKind,
    /// Whether its traffic costs its owner money.
    pub metered: bool,
    /// Lanes with the same line add nothing to each other.
    pub line: LineId,
    /// Its rate as measured before. `None`: never measured.
    pub hint: Option<Rate>,
}

/// Why a lane gave no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address, or the resolver did not answer.
    #[error("cannot resolve `{host}`")]
    Resolve {
        /// The name asked for.
        host: String,
        /// What the resolver, own or lender's, said.
        #[source]
        source: io::Error,
    },
    /// The lender will not do this, now or later: another lane may.
    #[error(transparent)]
    Refused(Refusal),
    /// The lender has reached a limit of its own: later it may do it.
    #[error("the lender is busy")]
    Busy,
    /// No address of the origin took the connection.
    #[error("cannot connect to the origin")]
    Connect(#[source] io::Error),
    /// The tunnel was not open in time.
    #[error("no connection to the origin within {0:?}")]
    Timeout(Duration),
    /// The uplink or the link to the peer is gone: this lane will never work again.
    #[error("the lane is gone")]
    LaneGone,
}

/// One path that a transfer's bytes can take.
pub trait Lane: fmt::Debug + Send + Sync {
    /// What is known of it.
    fn info(&self) -> &LaneInfo;

    /// Opens a tunnel to `target`; it ends by itself, with a tunnel or an error, in bounded time.
    ///
    /// # Errors
    /// See [`DialError`].
    fn dial<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Tunnel, DialError>>;
}

/// All lanes there are at one moment, handed out by a `watch` channel.
pub type LaneSet = Arc<Vec<Arc<dyn Lane>>>;
