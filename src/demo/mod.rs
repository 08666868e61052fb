//! A household on one machine, for somebody who has just cloned the project; and the HTTPS origin it and the lab use.
//!
//! Everything is of the real kind: peers find each other by mDNS (on loopback), link by QUIC, relay TCP, and the
//! borrower speaks TLS with the origin through them. Only the lines are played: each peer's uplink is loopback with the
//! limits that owners can set.
//!
//! Invariants: no root, no network, no file outside its own temporary directory, which goes when the household does.

mod content;
pub mod origin;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::api::{Failed, GetRequest, Handler, Transfer};
use crate::download::{Destination, Local};
use crate::identity::{DeviceKey, StateDir, StateError};
use crate::node::{Node, NodeConfig, NodeError};
use crate::relay::{self, Cidr};
use crate::share;
use crate::task::Tasks;
use crate::trust::{Trust, TrustError};
use crate::types::{LineId, Rate, UplinkKind, hex};
use crate::uplink::limit::{Cap, Limiters};
use crate::uplink::{Interface, Lend, Network, Router, Rules, Uplink};

use origin::{Authority, Options, Origin, OriginError};

/// Long enough to see the bars, short enough to wait for: 11 s over the first line, 4 s over all.
pub const SIZE: u64 = 24 << 20;
/// Who lives here, and what each one's line brings in Mbit/s. The first is the one who downloads.
pub const LINES: [(&str, u64); 4] = [("desk", 18), ("kitchen-pi", 20), ("attic-pi", 12), ("phone", 6)];
/// Reserved for documentation: nobody's real host.
const HOST: &str = "origin.example";
const LOOPBACK: &str = "lo";
/// mDNS on loopback takes milliseconds; who is not found by then will not be.
const MEET_WITHIN: Duration = Duration::from_secs(10);
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The temporary directory.
    #[error("cannot use the temporary directory {}: {source}", path.display())]
    Scratch {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The origin.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The origin's certificate.
    #[error("the demo's own certificate cannot be used: {0}")]
    Certificate(String),
    /// A peer's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The peers' word for each other.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A peer.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// mDNS.
    #[error(
        "the peers did not all find each other by mDNS on loopback within {} s ({found} of {} are there): is UDP port \
         5353 blocked on `lo`?", MEET_WITHIN.as_secs(), LINES.len()
    )]
    NotFound {
        /// How many are there.
        found: usize,
    },
    /// TLS.
    #[error("{}", .0.message)]
    Tls(Failed),
}

/// Four peers and an origin.
pub struct Household {
    nodes: Vec<Arc<Node>>,
    origin: Origin,
    digest: String,
    tasks: Tasks,
    scratch: Scratch,
}

impl fmt::Debug for Household {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Household")
            .field("scratch", &self.scratch.0)
            .finish_non_exhaustive()
    }
}

impl Household {
    /// Starts the origin and the peers, and waits until they have found each other.
    ///
    /// # Errors
    /// Where something of it cannot be started, or mDNS does not work on loopback.
    pub async fn start() -> Result<Self, DemoError> {
        let tasks = Tasks::new();
        let scratch = Scratch::new()?;
        let authority = Authority::new()?;
        let origin = Origin::start(
            (Ipv4Addr::LOCALHOST, 0).into(),
            &[HOST],
            &authority,
            Options::default(),
            &tasks,
        )?;
        let tls = trusting(&authority)?;
        let mut nodes = Vec::new();
        for ((number, line), state) in (1u8..).zip(LINES).zip(acquainted(&scratch)?) {
            let config = peer(number, line, state, origin.address().port(), Arc::clone(&tls));
            nodes.push(Node::start(config).await?);
        }
        let digest = hex(&origin.content_sha256(SIZE));
        let household = Self {
            nodes,
            origin,
            digest,
            tasks,
            scratch,
        };
        household.meet().await?;
        Ok(household)
    }

    /// The first peer downloads, over everybody's lines or its own only.
    ///
    /// # Errors
    /// Where the request is refused.
    pub async fn download(&self, pool: bool) -> Result<Transfer, Failed> {
        let name = if pool { "with-everybody.bin" } else { "alone.bin" };
        let port = self.origin.address().port();
        let request = GetRequest {
            url: format!("https://{HOST}:{port}/big.bin/{SIZE}"),
            headers: Vec::new(),
            sha256: Some(self.digest.clone()),
            pool,
        };
        let file = Destination::File(self.scratch.0.join(name));
        let files = Arc::new(Local::new(file, &self.tasks));
        self.nodes[0].get(request, files).await
    }

    /// Stops everything and removes what it wrote.
    pub async fn stop(self) {
        futures_util::future::join_all(self.nodes.iter().map(|node| node.stop())).await;
        self.tasks.stop(STOP_WITHIN).await;
    }

    async fn meet(&self) -> Result<(), DemoError> {
        let mut lanes = self.nodes[0].lanes();
        let all = tokio::time::timeout(MEET_WITHIN, lanes.wait_for(|set| set.len() == LINES.len()));
        let met = matches!(all.await, Ok(Ok(_)));
        let found = self.nodes[0].lanes().borrow().len();
        if met {
            Ok(())
        } else {
            Err(DemoError::NotFound { found })
        }
    }
}

/// The peers' directories, in the order of their lines. They are one household, whose members have vouched for each
/// other: the origin has a port that is lent to no neighbour.
fn acquainted(scratch: &Scratch) -> Result<Vec<StateDir>, DemoError> {
    let states = LINES.iter().map(|line| StateDir::open(&scratch.0.join(line.0)));
    let states: Vec<StateDir> = states.collect::<Result<_, _>>()?;
    let keys = states.iter().map(DeviceKey::load_or_create);
    let keys: Vec<DeviceKey> = keys.collect::<Result<_, _>>()?;
    for (state, key) in states.iter().zip(&keys) {
        let trust = Trust::load(state, key)?;
        for other in keys.iter().filter(|other| other.id() != key.id()) {
            trust.vouch(other.id(), true)?;
        }
    }
    Ok(states)
}

fn trusting(authority: &Authority) -> Result<Arc<rustls::ClientConfig>, DemoError> {
    let certificate = CertificateDer::from_pem_slice(authority.pem().as_bytes());
    let certificate = certificate.map_err(|e| DemoError::Certificate(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate)
        .map_err(|e| DemoError::Certificate(e.to_string()))?;
    crate::transfer::config_with(roots)
        .map(Arc::new)
        .map_err(|e| DemoError::Tls(e.into()))
}

fn peer(
    number: u8,
    line: (&str, u64),
    state: StateDir,
    port: u16,
    tls: Arc<rustls::ClientConfig>,
) -> NodeConfig {
    let uplink = format!("{} Mbit/s line", line.1);
    let rate = Some(Rate::bits(line.1 * 1_000_000));
    let limiters = Limiters::new([(uplink.clone(), Cap { down: rate, up: None })], Instant::now());
    NodeConfig {
        doors: crate::node::Doors::default(),
        passphrase: None,
        // It is the lines that it shows.
        share: share::Config {
            enabled: false,
            ..share::Config::default()
        },
        state,
        name: line.0.into(),
        port: Some(0),
        interfaces: Some(vec![LOOPBACK.into()]),
        anywhere: false,
        peers: Vec::new(),
        relay: relay::Config {
            allow: vec![Cidr::v4([127, 0, 0, 0], 8)],
            ports: vec![port],
            names: BTreeMap::from([(HOST.into(), vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])]),
            limiters,
            ..relay::Config::default()
        },
        rules: Rules::default(),
        network: Some(network(number, uplink)),
        origins: Some(tls),
    }
}

/// Loopback, as this peer's LAN and as its line.
fn network(number: u8, uplink: String) -> Network {
    let lan = Interface {
        index: 1,
        name: LOOPBACK.into(),
        kind: UplinkKind::Virtual,
        up: true,
        loopback: true,
        point_to_point: false,
        multicast: true,
        addresses: vec![(Ipv4Addr::LOCALHOST.into(), 8)],
        on_link: Vec::new(),
        default_route: false,
        router: Router::None,
        away: false,
    };
    let line = Uplink {
        index: u32::from(number),
        name: uplink,
        kind: UplinkKind::Wired,
        metered: false,
        lend: Lend::All,
        line: LineId([number; 8]),
        line_named: false,
        v4: Some(Ipv4Addr::new(127, 0, 0, 10 + number)),
        v6: None,
        gateway: None,
        gateway_addresses: Vec::new(),
        metric: 0,
        bind: false,
    };
    Network {
        interfaces: vec![lan],
        uplinks: vec![line],
    }
}

/// A directory of this run's own; removed when dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, DemoError> {
        let path = std::env::temp_dir().join(format!("tributary-demo-{}", std::process::id()));
        fs::create_dir(&path).map_err(|source| DemoError::Scratch {
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the demo's directory cannot be removed");
        }
    }
}
