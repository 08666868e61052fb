//! Who asks a lender for what it should not lend, and who watches what leaves.

#![expect(unreachable_pub, reason = "a module of tests")]

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::sync::{mpsc as channel, watch};
use tributary::identity::{DeviceKey, StateDir};
use tributary::link::{
    DEFAULT_PORT, Home, Incoming, Lends, Link, LinkConfig, LinkEvent, Links, Open, Refusal, TunnelError,
    TunnelStream,
};
use tributary::relay::{self, Relay};
use tributary::task::Tasks;
use tributary::trust::{Tier, Trust};
use tributary::types::{LineId, PeerId, UplinkKind};
use tributary::uplink::{Lend, Network, Uplink};

use crate::lab::{INTERNET, Peer, SOON, wait_for};

/// How long a borrower that was told "busy" waits.
const BUSY: Duration = Duration::from_millis(100);
/// Where nothing listens: a connection there is how a watch is told that it has seen everything before.
const MARK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 99)), 9);
const OUTGOING: u8 = 4;
const TCP: u8 = 6;

/// Does async `work` in a thread in the peer's namespaces and waits for it.
#[track_caller]
pub fn inside<T: Send>(peer: &Peer, work: impl AsyncFnOnce() -> T + Send) -> T {
    peer.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(work()))
    })
}

/// Makes a device a member, as that peer's daemon will see it when it starts.
pub fn vouch(peer: &Peer, member: PeerId) {
    let state = StateDir::open(&peer.directory().join("state")).unwrap();
    let key = DeviceKey::load_or_create(&state).unwrap();
    Trust::load(&state, &key).unwrap().vouch(member, false).unwrap();
}

/// Gives a name an address in the file that all of the lab resolves names by.
pub fn name_there(peer: &Peer, name: &str, address: IpAddr) {
    peer.inside(|| {
        let mut hosts = fs::OpenOptions::new().append(true).open("/etc/hosts")?;
        writeln!(hosts, "{address} {name}")
    });
}

/// What a TLS client sends first to a host, or, where that is an address, without a name.
pub fn client_hello(host: &str) -> Vec<u8> {
    let config = tributary::transfer::config_with(rustls::RootCertStore::empty()).unwrap();
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Somebody with a link to a lender, who asks for whatever comes to mind.
pub struct Borrower {
    link: Arc<Link>,
    /// Links end when nobody listens to their news.
    _links: (Links, channel::Receiver<LinkEvent>, channel::Receiver<Incoming>),
}

impl Borrower {
    /// Links to a peer's daemon.
    pub async fn link(lender: &Peer, key: &DeviceKey) -> Self {
        let address = SocketAddr::from((lender.lan_address(), DEFAULT_PORT));
        let (links, events, requests) = links(key, &Tasks::new());
        links.dial(&[address]).await.unwrap();
        Self {
            link: links.all().remove(0),
            _links: (links, events, requests),
        }
    }

    /// Ends the link, so that the lender has its place back at once.
    pub async fn leave(self) {
        self._links.0.close().await;
    }

    /// The numbers of the uplinks that are offered.
    pub fn offered(&self) -> Vec<u32> {
        self.link.offers().iter().map(|offer| offer.id).collect()
    }

    /// Asks once for a tunnel over an uplink.
    pub async fn over(
        &self,
        uplink: u32,
        host: &str,
        port: u16,
        pin: Option<IpAddr>,
    ) -> Result<(SocketAddr, TunnelStream), Refusal> {
        let host = host.to_owned();
        let open = Open {
            host,
            port,
            uplink,
            pin,
        };
        self.link.open(&open).await.map_err(|error| match error {
            TunnelError::Refused(reason) => reason,
            other => panic!("{other}"),
        })
    }

    /// The same over the first one that is offered.
    pub async fn tunnel(
        &self,
        host: &str,
        port: u16,
        pin: Option<IpAddr>,
    ) -> Result<(SocketAddr, TunnelStream), Refusal> {
        self.over(self.offered()[0], host, port, pin).await
    }

    /// The same, again as long as the lender is busy.
    pub async fn patiently(
        &self,
        host: &str,
        port: u16,
        pin: Option<IpAddr>,
    ) -> Result<(SocketAddr, TunnelStream), Refusal> {
        self.patiently_over(self.offered()[0], host, port, pin).await
    }

    /// Why that is refused.
    pub async fn refused(&self, host: &str, port: u16, pin: Option<IpAddr>) -> Refusal {
        self.refused_over(self.offered()[0], host, port, pin).await
    }

    /// Why that is refused over that uplink.
    pub async fn refused_over(&self, uplink: u32, host: &str, port: u16, pin: Option<IpAddr>) -> Refusal {
        match self.patiently_over(uplink, host, port, pin).await {
            Err(refusal) => refusal,
            Ok((address, _)) => panic!("{host:?}:{port} {pin:?} leads to {address}"),
        }
    }

    async fn patiently_over(
        &self,
        uplink: u32,
        host: &str,
        port: u16,
        pin: Option<IpAddr>,
    ) -> Result<(SocketAddr, TunnelStream), Refusal> {
        loop {
            match self.over(uplink, host, port, pin).await {
                Err(Refusal::Busy) => tokio::time::sleep(BUSY).await,
                decided => return decided,
            }
        }
    }
}

fn links(
    key: &DeviceKey,
    tasks: &Tasks,
) -> (Links, channel::Receiver<LinkEvent>, channel::Receiver<Incoming>) {
    let config = LinkConfig {
        port: 0,
        name: "guest".into(),
        offers: watch::channel(Lends::default()).1,
        home: watch::channel(Home::default()).1,
        gate: Arc::new(|_| true),
        trust: Trust::none(key),
    };
    Links::start(config, key, tasks).unwrap()
}

/// Watches every interface of a peer for TCP connections that begin, until it is dropped.
pub struct Syns {
    seen: Arc<Mutex<Vec<SocketAddr>>>,
    marks: Mutex<usize>,
    namespace: Arc<crate::lab::Namespace>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Syns {
    /// Begins.
    #[track_caller]
    pub fn of(peer: &Peer) -> Self {
        let tap = peer.inside(tap);
        let (seen, end) = (
            Arc::<Mutex<Vec<SocketAddr>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (own_seen, own_end) = (Arc::clone(&seen), Arc::clone(&end));
        let thread = thread::spawn(move || watch_for_syns(&tap, &own_seen, &own_end));
        Self {
            seen,
            marks: Mutex::new(0),
            namespace: peer.namespace(),
            end,
            thread: Some(thread),
        }
    }

    /// Where all connections that have begun by now lead to, each as often as its SYN left.
    #[track_caller]
    pub fn seen(&self) -> Vec<SocketAddr> {
        let mut marks = self.marks.lock().unwrap();
        // The kernel shows packets in their order: what left before the mark was seen before it.
        let marked = self.namespace.run(|| Ok(TcpStream::connect(MARK).is_err()));
        assert!(marked.unwrap(), "nobody listens there");
        *marks += 1;
        let of = |seen: &[SocketAddr]| seen.iter().filter(|to| **to == MARK).count();
        wait_for("the mark", SOON, || of(&self.seen.lock().unwrap()) >= *marks);
        let seen = self.seen.lock().unwrap();
        seen.iter().copied().filter(|to| *to != MARK).collect()
    }
}

impl Drop for Syns {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tap() -> io::Result<OwnedFd> {
    // Without the link's header, which a TUN device has not.
    let tap = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    let _ = setsockopt(&tap, sockopt::RcvBufForce, &(16 << 20));
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
    Ok(tap)
}

fn watch_for_syns(tap: &OwnedFd, seen: &Mutex<Vec<SocketAddr>>, end: &AtomicBool) {
    let mut packet = [0; 128];
    // One that got no answer is sent again, which is no other connection.
    let mut known = std::collections::BTreeSet::new();
    while !end.load(Ordering::Relaxed) {
        let Ok((length, Some(from))) = recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut packet) else {
            continue;
        };
        if from.pkttype() == OUTGOING
            && let Some((to, connection)) = syn(&packet[..length.min(packet.len())])
            && known.insert((to, connection))
        {
            seen.lock().unwrap().push(to);
        }
    }
}

/// Where a packet leads to that begins a connection, and what tells it from others: its own port and its first number.
fn syn(packet: &[u8]) -> Option<(SocketAddr, [u8; 6])> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let (to, tcp): (IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&TCP) => {
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (to.into(), packet.get(usize::from(packet[0] & 15) * 4..)?)
        }
        6 if packet.get(6) == Some(&TCP) => {
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (to.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes([*tcp.get(2)?, *tcp.get(3)?]);
    let [a, b, _, _, c, d, e, f] = *tcp.first_chunk()?;
    (tcp.get(13)? & (SYN | ACK) == SYN).then(|| (SocketAddr::new(to, port), [a, b, c, d, e, f]))
}

/// A name server on a peer that answers in turn with a public address, a private one, and both.
pub struct Rebinder {
    asked: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rebinder {
    /// Serves all programs of that peer.
    #[track_caller]
    pub fn start(peer: &Peer) -> Self {
        let socket = peer.inside(|| {
            let socket = UdpSocket::bind("127.0.0.1:53")?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok(socket)
        });
        let (asked, end) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (own_asked, own_end) = (Arc::clone(&asked), Arc::clone(&end));
        let serve = move || {
            let mut query = [0; 512];
            while !own_end.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut query)
                    && let Some(reply) = answer(&query[..length], &own_asked)
                {
                    socket.send_to(&reply, from).unwrap();
                }
            }
        };
        Self {
            asked,
            end,
            thread: Some(thread::spawn(serve)),
        }
    }

    /// How often it was asked for IPv4 addresses.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Rebinder {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Of four answers only the first is one of public addresses alone.
fn answer(query: &[u8], asked: &AtomicUsize) -> Option<Vec<u8>> {
    const A: u16 = 1;
    const HEAD: usize = 12;
    let name = query.get(HEAD..)?.iter().position(|byte| *byte == 0)? + 1;
    let question = query.get(HEAD..HEAD + name + 4)?;
    let kind = u16::from_be_bytes([question[name], question[name + 1]]);
    let private = Ipv4Addr::new(192, 168, 1, 1);
    let addresses: &[Ipv4Addr] = match kind {
        A => match asked.fetch_add(1, Ordering::Relaxed) % 4 {
            0 => &[INTERNET],
            1 => &[private],
            2 => &[INTERNET, private],
            _ => &[Ipv4Addr::LOCALHOST, INTERNET],
        },
        _ => &[],
    };
    let mut reply = query.get(..2)?.to_vec();
    // An answer, recursion desired and there; one question.
    reply.extend([0x81, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    reply.extend(question);
    for address in addresses {
        // The name above, IPv4, Internet, to be forgotten at once.
        reply.extend([0xc0, HEAD as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

/// Asks a relay with the system's resolver, over a real link, so many times for a name; gives how often it was dialled and
/// refused.
pub async fn rebound(source: Ipv4Addr, times: usize) -> (usize, usize) {
    let (lenders, borrowers) = (Tasks::new(), Tasks::new());
    let key = DeviceKey::ephemeral().unwrap();
    let (at, _news, mut requests) = links(&key, &lenders);
    let relay = careless(source, &lenders);
    lenders.spawn("serve", async move {
        while let Some(mut incoming) = requests.recv().await {
            incoming.tier = Tier::Member;
            relay.serve(incoming);
        }
    });
    let (from, _events, _requests) = links(&DeviceKey::ephemeral().unwrap(), &borrowers);
    let lender = SocketAddr::from((Ipv4Addr::LOCALHOST, at.port().unwrap()));
    from.dial(&[lender]).await.unwrap();
    let link = from.all().remove(0);
    let open = Open {
        host: "rebind.lab".into(),
        port: 443,
        uplink: 1,
        pin: None,
    };
    let (mut reached, mut refused) = (0, 0);
    for _ in 0..times {
        match link.open(&open).await {
            Ok((address, _)) => {
                assert_eq!(address.ip(), IpAddr::V4(INTERNET));
                reached += 1;
            }
            Err(TunnelError::Refused(Refusal::Address)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    (reached, refused)
}

/// A relay that dials as often as it is asked to.
fn careless(source: Ipv4Addr, tasks: &Tasks) -> Relay {
    let uplink = Uplink {
        index: 1,
        name: "wan0".into(),
        kind: UplinkKind::Wired,
        metered: false,
        lend: Lend::All,
        line: LineId([0; 8]),
        line_named: false,
        v4: Some(source),
        v6: None,
        gateway: None,
        gateway_addresses: Vec::new(),
        metric: 0,
        bind: false,
    };
    let network = Network {
        interfaces: Vec::new(),
        uplinks: vec![uplink],
    };
    let config = relay::Config {
        allow: vec!["203.0.113.0/24".parse().unwrap()],
        limits: relay::Limits {
            dials: 1_000_000,
            dial_burst: 1_000_000,
            ..relay::Limits::default()
        },
        ..relay::Config::default()
    };
    Relay::new(config, watch::channel(Arc::new(network)).1, tasks)
}
