//! Devices on loopback that share: links and households, without a node around them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tributary::identity::{DeviceKey, StateDir};
use tributary::link::{Asked, Lends, Link, LinkConfig, LinkEvent, Links};
use tributary::share::{Config, Content, Household, ReadAt, Shelf, Subject, Topic};
use tributary::task::Tasks;
use tributary::trust::Trust;
use tributary::types::{PIECE, PeerId};

/// A device that shares.
pub struct Peer {
    pub id: PeerId,
    pub links: Links,
    pub trust: Trust,
    pub household: Household,
    pub shelf: Shelf,
    pub tasks: Tasks,
    _dir: TempDir,
}

/// A device that does by hand what others do.
pub struct Puppet {
    pub id: PeerId,
    pub key: DeviceKey,
    pub links: Links,
    pub trust: Trust,
    _events: mpsc::Receiver<LinkEvent>,
    pub asked: mpsc::Receiver<Asked>,
    _tasks: Tasks,
}

impl Peer {
    pub fn new(name: &str) -> Self {
        let (key, trust, tasks, links, mut events) = device(name);
        let dir = TempDir::new().unwrap();
        let shelf = Shelf::open(&StateDir::open(dir.path()).unwrap(), Config::default());
        let household = Household::start(Config::default(), &key, &trust, shelf.clone(), &tasks);
        let (told, mut asked) = (household.clone(), links.asked());
        // What the node does.
        let names = links.clone();
        tasks.spawn("events", async move {
            loop {
                tokio::select! {
                    Some(event) = events.recv() => match event {
                        LinkEvent::Up(link) => told.linked(&link),
                        LinkEvent::Down(link) => told.unlinked(&link),
                        LinkEvent::Changed(peer) => {
                            names.all().iter().filter(|l| l.peer() == peer).for_each(|link| told.linked(link));
                        }
                        LinkEvent::Ceremony { .. } => {}
                    },
                    Some(question) = asked.recv() => told.asked(question),
                    else => return,
                }
            }
        });
        Self {
            id: key.id(),
            links,
            trust,
            household,
            shelf,
            tasks,
            _dir: dir,
        }
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.links.port().unwrap()).into()
    }

    /// The link to that one, once there is one.
    pub async fn to(&self, peer: PeerId) -> Arc<Link> {
        link_to(&self.links, peer).await
    }
}

impl Puppet {
    pub fn new(name: &str) -> Self {
        let (key, trust, tasks, links, events) = device(name);
        Self {
            id: key.id(),
            key,
            asked: links.asked(),
            links,
            trust,
            _events: events,
            _tasks: tasks,
        }
    }

    /// Of one household with that device, and linked.
    pub async fn joins(&self, peer: &Peer) -> Arc<Link> {
        self.trust.vouch(peer.id, true).unwrap();
        peer.trust.vouch(self.id, true).unwrap();
        self.links.dial(&[peer.address()]).await.unwrap();
        peer.to(self.id).await;
        link_to(&self.links, peer.id).await
    }

    pub async fn asked(&mut self) -> Asked {
        let asked = tokio::time::timeout(Duration::from_secs(10), self.asked.recv());
        asked.await.expect("it is asked nothing").unwrap()
    }
}

/// They vouch for each other, and are linked.
pub async fn household(peers: &[&Peer]) {
    for (n, one) in peers.iter().enumerate() {
        for other in &peers[n + 1..] {
            one.trust.vouch(other.id, true).unwrap();
            other.trust.vouch(one.id, true).unwrap();
        }
    }
    for (n, one) in peers.iter().enumerate() {
        for other in &peers[n + 1..] {
            one.links.dial(&[other.address()]).await.unwrap();
            other.to(one.id).await;
        }
    }
}

async fn link_to(links: &Links, peer: PeerId) -> Arc<Link> {
    let found = async {
        loop {
            if let Some(link) = links.all().into_iter().find(|link| link.peer() == peer) {
                return link;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found)
        .await
        .expect("no link")
}

fn device(name: &str) -> (DeviceKey, Trust, Tasks, Links, mpsc::Receiver<LinkEvent>) {
    let key = DeviceKey::ephemeral().unwrap();
    let trust = Trust::none(&key);
    let tasks = Tasks::new();
    let config = LinkConfig {
        port: 0,
        name: name.into(),
        offers: watch::channel(Lends::default()).1,
        home: watch::channel(tributary::link::Home::default()).1,
        gate: Arc::new(|from: SocketAddr| from.ip().is_loopback()),
        trust: trust.clone(),
    };
    let (links, events, tunnels) = Links::start(config, &key, &tasks).unwrap();
    // Nothing is borrowed here.
    tasks.spawn("tunnels", async move {
        let _tunnels = tunnels;
        std::future::pending::<()>().await;
    });
    (key, trust, tasks, links, events)
}

/// A file of so many pieces, in memory.
pub struct File {
    pub bytes: Arc<Bytes>,
    pub topic: Topic,
    pub content: Content,
}

pub struct Bytes(pub Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl ReadAt for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        buf.copy_from_slice(
            self.0
                .get(from..from + buf.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }
}

impl File {
    pub fn new(name: &str, total: u64) -> Self {
        let url = format!("https://origin.example/{name}#fragment").parse().unwrap();
        let topic = Topic::of(&url, None);
        let subject = Subject::of_generation(&topic.url.unwrap(), total, "\"v1\"");
        let mut bytes = vec![0; usize::try_from(total).unwrap()];
        blake3::Hasher::new()
            .update(name.as_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        Self {
            bytes: Arc::new(Bytes(bytes)),
            topic,
            content: Content {
                subjects: vec![subject],
                total,
            },
        }
    }

    pub fn piece(&self, piece: u64) -> &[u8] {
        let start = usize::try_from(piece * PIECE).unwrap();
        let end = (start + usize::try_from(PIECE).unwrap()).min(self.bytes.0.len());
        &self.bytes.0[start..end]
    }

    pub fn hash(&self, piece: u64) -> [u8; 32] {
        *blake3::hash(self.piece(piece)).as_bytes()
    }

    pub fn pieces(&self) -> u64 {
        self.content.total.div_ceil(PIECE)
    }
}
