//! The authenticated transport between peers: one QUIC connection to each, with a control stream each way and one
//! stream for each tunnel and for each thing that is asked of the household.
//!
//! A link begins with a handshake that proves both keys, then both ends say [`Hello`]; only then does the peer exist
//! for the rest of the program. Discovery, addresses and names are hints and prove nothing.
//!
//! Invariants: at most one link for each peer and 64 in all, 48 of them for those whom nobody vouched for; no handshake with a host
//! that is not on the LAN; every wait, queue and buffer is bounded.

mod answers;
mod asked;
mod control;
mod endpoint;
mod notices;
mod reports;
mod session;
mod socket;
mod table;
mod tunnel;
pub mod wire;

pub use asked::{Asked, Exchange};
pub use endpoint::SOCKET_BUFFER;
pub use reports::Reporter;
pub use tunnel::{Incoming, TunnelError, TunnelStream};
pub use wire::{Hello, Home, MAX_BEHIND, Offer, Open, Refusal};

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::identity::DeviceKey;
use crate::task::Tasks;
use crate::trust::{Right, Tier, Trust};
use crate::types::PeerId;
use crate::uplink::Network;

use notices::Notices;
use reports::Reports;
use table::Table;
use wire::WireError;

/// Both ends prove their keys within this, on a LAN a matter of milliseconds.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// The UDP port where peers look for each other when they only know an address: from the unassigned range.
pub const DEFAULT_PORT: u16 = 7436;

/// Between two addresses of one peer: long enough for the first to answer on a LAN.
const DIAL_STAGGER: Duration = Duration::from_millis(150);
/// Addresses of one peer that are tried; more are noise.
const MAX_DIAL_ADDRESSES: usize = 8;
/// News and requests waiting for the node; beyond that their senders wait, or are refused.
const QUEUE: usize = 128;

/// Says whether an address, where it is link-local with its scope, is on the LAN.
pub type Gate = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// What links need to know of this device.
pub struct LinkConfig {
    /// UDP port; 0 takes any.
    pub port: u16,
    /// What the owner calls this device.
    pub name: String,
    /// What it lends; a change is told to every peer.
    pub offers: watch::Receiver<Lends>,
    /// Where its own traffic ends; a change is told to every peer.
    pub home: watch::Receiver<Home>,
    /// Which addresses are on the LAN.
    pub gate: Gate,
    /// Who is a member and who is not to have a link.
    pub trust: Trust,
}

/// What a device lends, to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lends {
    /// To those who joined by themselves.
    pub to_neighbours: Vec<Offer>,
    /// To those who were vouched for.
    pub to_members: Vec<Offer>,
}

impl Lends {
    fn to(&self, tier: Tier) -> Vec<Offer> {
        match tier {
            Tier::Blocked => Vec::new(),
            Tier::Neighbour => self.to_neighbours.clone(),
            Tier::Member => self.to_members.clone(),
        }
    }
}

impl fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkConfig")
            .field("port", &self.port)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why links cannot be made at all.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The UDP socket.
    #[error("cannot open UDP port {port}: {source}")]
    Bind {
        /// Which.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The key or the provider.
    #[error("cannot set up TLS: {0}")]
    Tls(rustls::Error),
    /// AES-128-GCM is missing, which QUIC cannot do without.
    #[error("the crypto provider lacks the cipher QUIC begins with")]
    NoInitialCipher,
    /// The system's random source failed.
    #[error("the system gives no random numbers")]
    NoRandom,
}

/// Why a dial brought no link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No address is on the LAN.
    #[error("none of the addresses is on this LAN")]
    OffLink,
    /// It is this very device.
    #[error("that is this device")]
    Ourselves,
    /// There is a link to that peer already.
    #[error("there is a link to that peer already")]
    Duplicate,
    /// Another device has the same key: see [`Links::warnings`].
    #[error("another device with the same key is there")]
    Copy,
    /// Its owner, or a member of the household, put it out: one of the two ends will have no link with the other.
    #[error("one of the two devices is blocked at the other")]
    Blocked,
    /// Too many links.
    #[error("there is no place for another link")]
    Full,
    /// The handshake failed.
    #[error("no peer answers there: {0}")]
    Handshake(String),
    /// Whoever is there speaks another version of the protocol.
    #[error(
        "the peer there is of another version: it does not speak {}",
        String::from_utf8_lossy(crate::identity::ALPN)
    )]
    Version,
    /// The peer did not behave as one.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] WireError),
}

/// News of links.
#[derive(Debug)]
pub enum LinkEvent {
    /// A peer is there.
    Up(Arc<Link>),
    /// A peer lends something else now, or its traffic ends elsewhere; see [`Link::offers`] and [`Link::home`].
    Changed(PeerId),
    /// A peer takes a step of vouching for each other.
    Ceremony {
        /// Whose.
        link: Arc<Link>,
        /// As it sent it: anything.
        words: Vec<u8>,
    },
    /// A peer is gone.
    Down(Arc<Link>),
}

/// One peer's link.
pub struct Link {
    connection: quinn::Connection,
    /// This end's address. `None`: the system does not say.
    local: Option<IpAddr>,
    peer: PeerId,
    name: String,
    offers: watch::Sender<Vec<Offer>>,
    home: watch::Sender<Home>,
    /// Rung to hear whether the peer still answers.
    knock: Notify,
    trust: Trust,
    /// Steps of a ceremony waiting to be sent.
    words: mpsc::Sender<Vec<u8>>,
    /// What the peer says of the tunnels that we borrow from it.
    reports: Reports,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Whose it is.
    pub const fn peer(&self) -> PeerId {
        self.peer
    }

    /// How far the peer is trusted now.
    pub fn tier(&self) -> Tier {
        self.trust.tier(self.peer)
    }

    /// Sends a step of a ceremony; false where the link is gone or the peer does not read.
    pub fn say(&self, words: Vec<u8>) -> bool {
        words.len() <= wire::MAX_CEREMONY && self.words.try_send(words).is_ok()
    }

    /// A secret that only the two ends of this link share, another one for each label (RFC 8446, 7.5): whoever sits between
    /// two links has two different ones. `None`: the link is gone.
    pub fn exporter(&self, label: &[u8]) -> Option<[u8; 32]> {
        let mut secret = [0; 32];
        let exported = self.connection.export_keying_material(&mut secret, label, b"");
        exported.is_ok().then_some(secret)
    }

    /// What the peer calls itself, cleaned; for people only.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the peer lends now.
    pub fn offers(&self) -> Vec<Offer> {
        self.offers.borrow().clone()
    }

    /// Where the peer's own traffic ends, as far as it said so.
    pub fn home(&self) -> Home {
        self.home.borrow().clone()
    }

    /// Where the peer is.
    pub fn address(&self) -> SocketAddr {
        unmapped(self.connection.remote_address())
    }

    /// The link's round trip time.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Whether the link still stands.
    pub fn is_up(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether this end's address is none of the device's any more, so that nothing of the link gets through.
    pub fn has_moved(&self, network: &Network) -> bool {
        self.local.is_some_and(|ip| !network.is_own(ip))
    }

    /// Ends a link that is known to be dead, without waiting for its timeout; the peer is dialled again.
    pub fn abandon(&self, why: &'static str) {
        tracing::info!(peer = %self.peer.short(), why, "link given up");
        self.connection.close(session::ABANDONED, why.as_bytes());
    }

    /// Whether the peer has ended the link because another device with the same key was there first.
    pub fn is_refused_as_copy(&self) -> bool {
        session::closed_with(&self.connection, session::COPY)
    }

    /// Much may come from now on: before, the peer could send unread no more than nobody minds.
    fn widen(&self) {
        self.connection.set_receive_window(endpoint::wide());
    }

    /// The peer may open as many streams as one of its tier needs.
    fn admit(&self) {
        let streams = endpoint::streams(self.tier().may(Right::Share));
        self.connection.set_max_concurrent_bi_streams(streams);
    }

    /// Opens a stream with a question of the household's; the peer answers on it, or ends it.
    ///
    /// # Errors
    /// Where the link is gone.
    pub async fn ask(&self, kind: u16, body: &impl Serialize) -> Result<Exchange, WireError> {
        self.widen();
        let opened = self.connection.open_bi().await;
        let (send, recv) = opened.map_err(|e| WireError::Io(e.into()))?;
        let mut stream = Exchange::new(send, recv);
        stream.say(kind, body).await?;
        Ok(stream)
    }

    /// Asks the peer to open a tunnel; gives the address it reached and the stream.
    ///
    /// # Errors
    /// Where the peer refuses, does not answer, or the link is gone.
    pub async fn open(&self, open: &Open) -> Result<(SocketAddr, TunnelStream), TunnelError> {
        self.widen();
        tunnel::open(&self.connection, &self.reports, open).await
    }
}

/// All links of this device. Clones share them.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
    id: PeerId,
    session: u64,
    name: String,
    offers: watch::Receiver<Lends>,
    home: watch::Receiver<Home>,
    gate: Gate,
    trust: Trust,
    table: Mutex<Table<Arc<Link>>>,
    notices: Mutex<Notices>,
    events: mpsc::Sender<LinkEvent>,
    tunnels: mpsc::Sender<Incoming>,
    /// To whoever answers for the household, once there is somebody.
    asked: OnceLock<mpsc::Sender<Asked>>,
    tasks: Tasks,
    handshakes: Semaphore,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("id", &self.inner.id)
            .finish_non_exhaustive()
    }
}

impl Links {
    /// Opens the socket and begins to accept peers. Their news and their requests for tunnels come by the channels.
    ///
    /// # Errors
    /// Where the socket or TLS cannot be set up.
    pub fn start(
        config: LinkConfig,
        key: &DeviceKey,
        tasks: &Tasks,
    ) -> Result<(Self, mpsc::Receiver<LinkEvent>, mpsc::Receiver<Incoming>), LinkError> {
        let (endpoint, client) = endpoint::open(key, config.port, Arc::clone(&config.gate))?;
        let (events, event_receiver) = mpsc::channel(QUEUE);
        let (tunnels, tunnel_receiver) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner {
            endpoint,
            client,
            id: key.id(),
            session: random_session()?,
            name: wire::clean(&config.name),
            offers: config.offers,
            home: config.home,
            gate: config.gate,
            trust: config.trust,
            table: Mutex::new(Table::new()),
            notices: Mutex::default(),
            events,
            tunnels,
            asked: OnceLock::new(),
            tasks: tasks.clone(),
            handshakes: Semaphore::new(endpoint::MAX_HANDSHAKES),
        });
        tasks.spawn("accept-links", session::accept(Arc::clone(&inner)));
        Ok((Self { inner }, event_receiver, tunnel_receiver))
    }

    /// Who is trusted, and how far.
    pub fn trust(&self) -> &Trust {
        &self.inner.trust
    }

    /// From now on members' questions to the household come by this; before the first call, and where it is dropped, they
    /// are treated as what no version knows. Only the first one that is given out brings any.
    pub fn asked(&self) -> mpsc::Receiver<Asked> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let _ = self.inner.asked.set(sender);
        receiver
    }

    /// The UDP port peers reach us at.
    ///
    /// # Errors
    /// Where the socket is gone.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.inner.endpoint.local_addr()?.port())
    }

    /// Every link that stands.
    pub fn all(&self) -> Vec<Arc<Link>> {
        self.inner
            .table()
            .links()
            .filter(|l| l.is_up())
            .cloned()
            .collect()
    }

    /// What the owner should know and do something about: devices with the same key, or of another version.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.notices().warnings(Instant::now())
    }

    /// Whether there is a link to one of these addresses.
    pub fn has_at(&self, addresses: &[SocketAddr]) -> bool {
        self.all().iter().any(|link| addresses.contains(&link.address()))
    }

    /// Dials a peer at the first of its addresses that answers.
    ///
    /// # Errors
    /// Where none is on the LAN or none answers, or where there is a link already.
    pub async fn dial(&self, addresses: &[SocketAddr]) -> Result<PeerId, DialError> {
        if self.has_at(addresses) {
            return Err(DialError::Duplicate);
        }
        let on_link = addresses
            .iter()
            .filter(|a| (self.inner.gate)(**a))
            .take(MAX_DIAL_ADDRESSES);
        let mut attempts: FuturesUnordered<_> = on_link
            .enumerate()
            .map(|(n, &address)| self.dial_one(address, n))
            .collect();
        let mut failure = DialError::OffLink;
        while let Some(result) = attempts.next().await {
            match result {
                Err(DialError::Handshake(why)) => failure = DialError::Handshake(why),
                decided => return decided,
            }
        }
        Err(failure)
    }

    /// Closes every link; the peers hear `Bye` first (see [`Tasks::stop`]). Waits until that has left the device.
    pub async fn close(&self) {
        self.inner.endpoint.close(session::LEAVING, b"bye");
        self.inner.endpoint.wait_idle().await;
    }

    async fn dial_one(&self, address: SocketAddr, nth: usize) -> Result<PeerId, DialError> {
        let stagger = DIAL_STAGGER * u32::try_from(nth).unwrap_or(u32::MAX);
        tokio::time::sleep(stagger).await;
        session::dial(&self.inner, address).await
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table<Arc<Link>>> {
        // A panic while it was held cannot leave the table half changed: each change is one call.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notices(&self) -> MutexGuard<'_, Notices> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `::ffff:10.0.0.1`, as a dual-stack socket has it, is `10.0.0.1` to everybody else.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn random_session() -> Result<u64, LinkError> {
    let random = ring::rand::generate::<[u8; 8]>(&ring::rand::SystemRandom::new());
    Ok(u64::from_be_bytes(
        random.map_err(|_| LinkError::NoRandom)?.expose(),
    ))
}
