//! One peer: builds discovery, links, lanes, relay and transfers, keeps them going, and takes them down in order.
//!
//! The daemon, a one-off `tributary get` and each peer of the demo are the same [`Node`].
//! Invariants: a node that stops tells its peers; a transfer that stops is resumable; what belongs to the device (its
//! key, its well-known port, its control socket) is used by one process at a time, a second one makes do without.

mod book;
mod control;
mod dialer;
mod forecast;
mod holddown;
mod homes;
mod household;
mod jobs;
mod lanes;
mod offer;
mod rates;
mod run;
mod shared;
mod status;
mod vouching;
mod whereabouts;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::api;
use crate::clock;
use crate::discovery::{Discovery, DiscoveryConfig, DiscoveryError};
use crate::identity::{DeviceKey, StateDir, StateError};
use crate::lane::LaneSet;
use crate::link::{DEFAULT_PORT, LinkConfig, LinkError, Links};
use crate::relay::{self, Relay};
use crate::share;
use crate::share::Household;
use crate::share::Shelf;
use crate::task::Tasks;
use crate::trust::{Secret, Trust};
use crate::types::PeerId;
use crate::uplink::limit::Limiters;
use crate::uplink::resolve::Resolver;
use crate::uplink::{self, Network, Rules};

use book::Book;
pub use book::met_before;
use lanes::Lanes;
use rates::Rates;
use vouching::Vouching;

/// Where uploads whose server keeps no list note what they sent, in the state directory.
const UPLOADS: &str = "uploads";
/// For transfers to write what they have.
const DRAIN_TRANSFERS: Duration = Duration::from_secs(3);
/// For peers to be told.
const DRAIN_LINKS: Duration = Duration::from_secs(1);
/// For the links' last packets to leave, which takes the turn of a task or two. QUIC would have us wait for three round
/// trips and more, lest a farewell be lost: a command that is done must not take 100 ms for that.
const FAREWELL: Duration = Duration::from_millis(20);

/// Orders to the node's loop that wait for it; it takes them in turn with its news.
const ORDERS: usize = 4;

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
    /// Whether peers are met on every network that a portable device is carried to.
    pub anywhere: bool,
    /// Peers to dial without multicast.
    pub peers: Vec<SocketAddr>,
    /// What is lent, to where; its names and limits hold for own lanes as well.
    pub relay: relay::Config,
    /// What the owner says of single uplinks; of no effect on a `network` that is given.
    pub rules: Rules,
    /// The device's interfaces and uplinks; `None`: as the kernel has them.
    pub network: Option<Network>,
    /// Who may lend and borrow without being vouched for.
    pub doors: Doors,
    /// Devices that know the same vouch for each other.
    pub passphrase: Option<Secret>,
    /// How this device takes part in the household's downloads.
    pub share: share::Config,
    /// TLS towards origins; `None`: the system's authorities, read at the first download.
    pub origins: Option<Arc<rustls::ClientConfig>>,
}

/// What is open to those who joined by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doors {
    /// Whether they may borrow. Default: yes.
    pub lend: bool,
    /// Whether their uplinks are used. Default: yes.
    pub borrow: bool,
}

impl Default for Doors {
    fn default() -> Self {
        Self {
            lend: true,
            borrow: true,
        }
    }
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

/// What can be changed while a node runs.
#[derive(Clone, Debug)]
pub struct Live {
    /// What the owner says of single uplinks, limits included.
    pub rules: Rules,
    /// Ranges that may be dialled for others though they are not public.
    pub allow: Vec<relay::Cidr>,
    /// TCP ports that are lent.
    pub ports: Vec<u16>,
    /// How much is lent.
    pub limits: relay::Limits,
    /// Peers to dial without multicast.
    pub peers: Vec<SocketAddr>,
    /// Who may lend and borrow without being vouched for.
    pub doors: Doors,
    /// How this device takes part in the household's downloads.
    pub share: share::Config,
}

/// One after the other, what a node does when it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Transfers write what they have, and can be resumed.
    Transfers,
    /// Peers are told, discovery says goodbye.
    Links,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transfers => "transfers",
            Self::Links => "links",
        })
    }
}

/// How much is going on, for a line of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Peers with a link.
    pub peers: usize,
    /// Ways out, own and lent.
    pub lanes: usize,
    /// Connections that peers have through this device.
    pub lent: u64,
    /// Downloads that run.
    pub downloads: usize,
    /// Uploads that run.
    pub uploads: usize,
}

/// One running peer.
pub struct Node {
    id: PeerId,
    name: String,
    port: u16,
    links: Links,
    relay: Relay,
    network: watch::Receiver<Arc<Network>>,
    lanes: watch::Receiver<LaneSet>,
    rates: Rates,
    /// Where uploads keep their notes.
    uploads: PathBuf,
    transfers: Arc<Mutex<control::Transfers>>,
    origins: Option<Arc<rustls::ClientConfig>>,
    rules: watch::Sender<Rules>,
    doors: watch::Sender<Doors>,
    trust: Trust,
    vouching: Vouching,
    /// `None`: another process does it for this device.
    household: Option<Household>,
    began: Instant,
    limiters: Limiters,
    orders: mpsc::Sender<run::Order>,
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
        let trust = Trust::load(&config.state, &key)?;
        let vouching = Vouching::new(trust.clone(), config.passphrase);
        let (doors, doors_receiver) = watch::channel(config.doors);
        let limiters = config.relay.limiters.clone();
        let (rules, rules_receiver) = watch::channel(config.rules);
        let network = match config.network {
            Some(fixed) => watch::channel(Arc::new(fixed)).1,
            None => {
                limiters.limit_wires(rules.borrow().caps(), Instant::now());
                let seen = uplink::watch(seed(&key), rules_receiver, &tasks).await;
                match config.interfaces {
                    Some(_) => seen,
                    None => whereabouts::follow(seen, &config.state, config.anywhere, &tasks),
                }
            }
        };
        let resolver = Resolver::new(config.relay.names.clone(), &tasks);
        let lent = relay::Config {
            lend_to_neighbours: config.doors.lend,
            ..config.relay
        };
        let relay = Relay::with_resolver(lent, resolver.clone(), network.clone(), &tasks);
        let rates = Rates::load(&config.state);
        let (resolved, home) = homes::resolve(key.id(), &network.borrow(), &[]);
        let lends = run::lends(&resolved, &relay, &rates);
        let (offers, offer_receiver) = watch::channel(lends);
        let (home, home_receiver) = watch::channel(home);
        let gate = run::gate(network.clone(), config.interfaces.clone());
        let link_config = LinkConfig {
            port: 0,
            name: config.name.clone(),
            offers: offer_receiver,
            home: home_receiver,
            gate,
            trust: trust.clone(),
        };
        let (links, link_events, tunnels) = start_links(link_config, config.port, &key, &tasks)?;
        let port = links.port()?;
        // A guest beside the device's own process is no member, and must not write what that one keeps.
        let household = config.state.is_ours().then(|| {
            let shelf = Shelf::open(&config.state, config.share);
            Household::start(config.share, &key, &trust, shelf, &tasks)
        });
        // Where nobody answers, members hear what any version says to what it does not know.
        let asked = household.as_ref().map(|_| links.asked());
        let discovery = DiscoveryConfig {
            port,
            interfaces: config.interfaces.clone(),
        };
        let (_, found) = Discovery::start(discovery, network.clone(), &tasks)?;
        let mut lanes = Lanes::new(resolver, limiters.clone(), rates.clone());
        lanes.own(&resolved);
        let (orders, orders_receiver) = mpsc::channel(ORDERS);
        let node = Arc::new(Self {
            id: key.id(),
            name: config.name,
            port,
            links: links.clone(),
            relay: relay.clone(),
            network: network.clone(),
            lanes: lanes.subscribe(),
            rates: rates.clone(),
            uploads: config.state.path(UPLOADS),
            transfers: Arc::default(),
            origins: config.origins,
            rules,
            doors,
            trust,
            vouching: vouching.clone(),
            household: household.clone(),
            began: Instant::now(),
            limiters,
            orders,
            transfer_tasks: tasks.child(),
            tasks: tasks.clone(),
        });
        let book = Book::load(&config.state);
        let run = run::Run {
            id: key.id(),
            state: config.state,
            network,
            interfaces: config.interfaces,
            offers,
            home,
            links,
            link_events,
            tunnels,
            asked,
            household,
            found,
            relay,
            lanes,
            rates,
            held: holddown::HoldDown::default(),
            jumps: clock::Jumps::default(),
            release: None,
            book,
            doors: doors_receiver,
            vouching,
            orders: orders_receiver,
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

    /// The household, while this device takes part in it.
    fn household(&self) -> Option<&Household> {
        self.household.as_ref().filter(|household| household.is_enabled())
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

    /// Takes over what the owner says now, at once: open tunnels feel new limits, and peers are told what is lent.
    pub async fn reload(&self, live: Live) {
        self.limiters.limit_wires(live.rules.caps(), Instant::now());
        self.relay
            .change(live.allow, live.ports, live.limits, live.doors.lend);
        if let Some(household) = &self.household {
            household.configure(live.share);
        }
        self.rules.send_replace(live.rules);
        self.doors.send_replace(live.doors);
        // Without a loop the node is stopping, and has nobody to dial any more.
        let _ = self.orders.send(run::Order::Peers(live.peers)).await;
    }

    /// Returns when the node's own loop has answered: what a watchdog wants to know. False: it has ended.
    pub async fn is_alive(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.orders.send(run::Order::Answer(answer)).await.is_ok() && answered.await.is_ok()
    }

    /// How much is going on.
    pub fn summary(&self) -> Summary {
        let (downloads, uploads) = self.running();
        Summary {
            peers: self.links.all().len(),
            lanes: self.lanes.borrow().len(),
            lent: self.relay.lent().all.open,
            downloads,
            uploads,
        }
    }

    /// Stops in order: transfers write what they have, peers are told, sockets close. Takes at most 5 s.
    pub async fn stop(&self) {
        self.stop_telling(|_| {}).await;
    }

    /// The same, and says which phase begins.
    pub async fn stop_telling(&self, begins: impl Fn(Phase)) {
        let phase = async |phase: Phase, work: BoxFuture<'_, bool>| {
            begins(phase);
            tracing::info!("stopping: {phase}");
            let began = Instant::now();
            let all = work.await;
            let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            if all {
                tracing::info!(ms, "stopped: {phase}");
            } else {
                tracing::warn!(ms, "stopped: {phase}, although some had not ended");
            }
        };
        phase(
            Phase::Transfers,
            self.transfer_tasks.stop(DRAIN_TRANSFERS).boxed(),
        )
        .await;
        let links = async {
            let ended = self.tasks.stop(DRAIN_LINKS).await;
            let _ = tokio::time::timeout(FAREWELL, self.links.close()).await;
            ended
        };
        phase(Phase::Links, links.boxed()).await;
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
        home: config.home.clone(),
        gate: Arc::clone(&config.gate),
        trust: config.trust.clone(),
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
    mpsc::Receiver<crate::link::LinkEvent>,
    mpsc::Receiver<crate::link::Incoming>,
);
