//! One peer: builds discovery, links, lanes, relay and transfers, keeps them going, and takes them down in order.
//!
//! The daemon, a one-off `tributary get` and each peer of the demo are the same [`Node`].
//! Invariants: a node that stops tells its peers; a transfer that stops is resumable; what belongs to the device (its
//! key, its well-known port, its control socket) is used by one process at a time, a second one makes do without.

mod book;
mod control;
mod dialer;
mod holddown;
mod lanes;
mod run;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::api;
use crate::clock;
use crate::discovery::{Discovery, DiscoveryConfig, DiscoveryError};
use crate::identity::{DeviceKey, StateDir, StateError};
use crate::lane::LaneSet;
use crate::link::{DEFAULT_PORT, LinkConfig, LinkError, Links};
use crate::relay::{self, Relay};
use crate::task::Tasks;
use crate::types::PeerId;
use crate::uplink::resolve::Resolver;
use crate::uplink::{self, Network};

use book::Book;
use lanes::Lanes;

/// For transfers to write what they have.
const DRAIN_TRANSFERS: Duration = Duration::from_secs(3);
/// For peers to be told.
const DRAIN_LINKS: Duration = Duration::from_secs(1);
/// For the links' last packets to leave, which takes the turn of a task or two. QUIC would have us wait for three round
/// trips and more, lest a farewell be lost: a command that is done must not take 100 ms for that.
const FAREWELL: Duration = Duration::from_millis(20);

/// What a node is made from.
#[derive(Debug)]
pub struct NodeConfig {
    /// Where the device's identity is kept.
    pub state: StateDir,
    /// What other peers' owners see.
    pub name: String,
    /// The port for links; `None`: the well-known one, or any free one.
    pub port: Option<u16>,
    /// Interfaces on which peers are met; `None`: all that look like a LAN.
    pub interfaces: Option<Vec<String>>,
    /// Peers to dial without multicast.
    pub peers: Vec<SocketAddr>,
    /// What is lent, to where; its names and limits hold for own lanes as well.
    pub relay: relay::Config,
    /// The device's interfaces and uplinks; `None`: as the kernel has them.
    pub network: Option<Network>,
    /// TLS towards origins; `None`: the system's authorities, read at the first download.
    pub origins: Option<Arc<rustls::ClientConfig>>,
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The identity.
    #[error(transparent)]
    State(#[from] StateError),
    /// The links.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// mDNS.
    #[error("cannot start discovery: {0}")]
    Discovery(#[from] DiscoveryError),
    /// The socket of the links is gone as soon as it was made.
    #[error("the links' socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// One running peer.
pub struct Node {
    id: PeerId,
    name: String,
    port: u16,
    links: Links,
    relay: Relay,
    lanes: watch::Receiver<LaneSet>,
    rates: lanes::Rates,
    transfers: Arc<Mutex<control::Transfers>>,
    origins: Option<Arc<rustls::ClientConfig>>,
    transfer_tasks: Tasks,
    tasks: Tasks,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Starts a peer. When this returns, own lanes are there; peers come by and by.
    ///
    /// # Errors
    /// Where the identity cannot be read, or no socket opened.
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, NodeError> {
        let tasks = Tasks::new();
        let key = device_key(&config.state)?;
        let network = match config.network {
            Some(fixed) => watch::channel(Arc::new(fixed)).1,
            None => uplink::watch(seed(&key), &tasks).await,
        };
        let resolver = Resolver::new(config.relay.names.clone(), &tasks);
        let limiters = config.relay.limiters.clone();
        let relay = Relay::with_resolver(config.relay, resolver.clone(), network.clone(), &tasks);
        let (offers, offer_receiver) = watch::channel(run::offers(&network.borrow(), &relay));
        let gate = run::gate(network.clone(), config.interfaces.clone());
        let link_config = LinkConfig {
            port: 0,
            name: config.name.clone(),
            offers: offer_receiver,
            gate,
        };
        let (links, link_events, tunnels) = start_links(link_config, config.port, &key, &tasks)?;
        let port = links.port()?;
        let discovery = DiscoveryConfig {
            port,
            interfaces: config.interfaces,
        };
        let (_, found) = Discovery::start(discovery, network.clone(), &tasks)?;
        let mut lanes = Lanes::new(resolver, limiters);
        lanes.own(&network.borrow());
        let node = Arc::new(Self {
            id: key.id(),
            name: config.name,
            port,
            links: links.clone(),
            relay: relay.clone(),
            lanes: lanes.subscribe(),
            rates: lanes.rates(),
            transfers: Arc::default(),
            origins: config.origins,
            transfer_tasks: tasks.child(),
            tasks: tasks.clone(),
        });
        let book = Book::load(&config.state);
        let run = run::Run {
            state: config.state,
            network,
            offers,
            links,
            link_events,
            tunnels,
            found,
            relay,
            lanes,
            held: holddown::HoldDown::default(),
            jumps: clock::Jumps::default(),
            book,
            tasks: tasks.clone(),
        };
        tasks.spawn_graceful("node", run.until_stopped(config.peers));
        Ok(node)
    }

    /// This peer's id.
    pub const fn id(&self) -> PeerId {
        self.id
    }

    /// The UDP port of its links.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The lanes there are.
    pub fn lanes(&self) -> watch::Receiver<LaneSet> {
        self.lanes.clone()
    }

    /// Listens for the command line at this socket until the node stops.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn serve_control(self: &Arc<Self>, socket: &Path) -> io::Result<()> {
        let handler: Arc<dyn api::Handler> = Arc::<Self>::clone(self);
        api::serve(socket, handler, &self.tasks)
    }

    /// Stops in order: transfers write what they have, peers are told, sockets close. Takes at most 5 s.
    pub async fn stop(&self) {
        self.transfer_tasks.stop(DRAIN_TRANSFERS).await;
        self.tasks.stop(DRAIN_LINKS).await;
        let _ = tokio::time::timeout(FAREWELL, self.links.close()).await;
    }
}

/// The device's own key, or a passing one where another process has it.
fn device_key(state: &StateDir) -> Result<DeviceKey, StateError> {
    if state.is_ours() {
        return DeviceKey::load_or_create(state);
    }
    tracing::info!("another tributary acts as this device: joining as a guest beside it");
    DeviceKey::ephemeral()
}

fn seed(key: &DeviceKey) -> uplink::Seed {
    let mut seed = uplink::Seed::default();
    seed.copy_from_slice(&key.id().0[..16]);
    seed
}

/// Takes the port that was asked for; where none was, the well-known one or else any.
fn start_links(
    config: LinkConfig,
    port: Option<u16>,
    key: &DeviceKey,
    tasks: &Tasks,
) -> Result<StartedLinks, LinkError> {
    let wanted = port.unwrap_or(DEFAULT_PORT);
    let again = LinkConfig {
        offers: config.offers.clone(),
        gate: Arc::clone(&config.gate),
        name: config.name.clone(),
        port: 0,
    };
    match Links::start(
        LinkConfig {
            port: wanted,
            ..config
        },
        key,
        tasks,
    ) {
        Err(LinkError::Bind { source, .. })
            if port.is_none() && source.kind() == io::ErrorKind::AddrInUse =>
        {
            Links::start(again, key, tasks)
        }
        decided => decided,
    }
}

type StartedLinks = (
    Links,
    tokio::sync::mpsc::Receiver<crate::link::LinkEvent>,
    tokio::sync::mpsc::Receiver<crate::link::Incoming>,
);
