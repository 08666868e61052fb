//! A borrower's lane over a real link to a real relay: what it gets, what it is refused, what breaking off does.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tributary::identity::DeviceKey;
use tributary::lane::{DialError, Lane, LaneInfo, PeerLane, Target};
use tributary::link::{Incoming, Lends, LinkConfig, LinkEvent, Links, Refusal};
use tributary::relay::{Config, Relay};
use tributary::task::Tasks;
use tributary::trust::{Tier, Trust};
use tributary::types::{LaneId, LineId, PeerId, UplinkKind};
use tributary::uplink::{Lend, Network, Uplink};

const UPLINK: u32 = 7;
const HOST: &str = "origin.demo.test";
/// Reports come every 25 ms while anything moves.
const QUIET: Duration = Duration::from_millis(200);
const ORIGIN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A borrower with a lane over a lender, and an origin that the lender may dial.
struct Household {
    lane: PeerLane,
    borrower: PeerId,
    relay: Relay,
    lender: Tasks,
    origin: TcpListener,
    /// Links end when nobody listens to their news.
    _news: (LinksAndNews, LinksAndNews, mpsc::Receiver<Incoming>),
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lent_uplink_carries_bytes_both_ways_with_half_close() {
    let house = household().await;
    let (tunnel, mut origin) = house.tunnel().await;
    let mut stream = tunnel.stream;
    assert_eq!(tunnel.address, house.origin.local_addr().unwrap());
    assert_eq!(origin.peer_addr().unwrap().ip(), IpAddr::from([127, 0, 0, 9]));
    let serve = async {
        let mut request = Vec::new();
        origin.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"GET / HTTP/1.1\r\n\r\n");
        origin.write_all(&vec![9; 3 << 20]).await.unwrap();
        drop(origin);
    };
    let ask = async {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.len() == 3 << 20 && answer.iter().all(|b| *b == 9));
    };
    tokio::join!(serve, ask);
    let lent = house.relay.lent();
    assert_eq!(
        (lent.peers[&house.borrower].down, lent.uplinks["wan0"].up),
        (3 << 20, 18)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_tunnel_resets_the_origin_in_the_middle_of_its_answer() {
    let house = household().await;
    let (mut tunnel, mut origin) = house.tunnel().await;
    let endless = async { while origin.write_all(&[1; 65_536]).await.is_ok() {} };
    let leave = async {
        tunnel.stream.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        drop(tunnel);
    };
    // Ends only because the lender resets the origin.
    tokio::join!(endless, leave);
    let again = house.tunnel().await;
    assert_eq!(house.relay.lent().all.tunnels, 2);
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_silent_tunnel_resets_the_origin_too() {
    let house = household().await;
    let (tunnel, mut origin) = house.tunnel().await;
    drop(tunnel);
    let error = origin.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_breaks_off_is_no_end_of_stream_for_the_borrower() {
    let house = household().await;
    let (mut tunnel, mut origin) = house.tunnel().await;
    origin.write_all(b"half of it").await.unwrap();
    tunnel.stream.read_exact(&mut [0; 10]).await.unwrap();
    origin.set_zero_linger().unwrap();
    drop(origin);
    assert!(tunnel.stream.read(&mut [0; 1]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_a8_what_is_not_lent_is_refused_with_the_reason_and_nothing_is_dialled() {
    let house = household().await;
    let refused = async |host: &str, port: u16, pin: Option<IpAddr>| {
        let host = host.to_owned();
        match house.lane.dial(&Target { host, port, pin }).await {
            Err(DialError::Refused(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    let port = house.port();
    for other in [22, 25, 445, 8080] {
        assert_eq!(refused(HOST, other, None).await, Refusal::Port);
    }
    for host in ["127.0.0.2", "0x7f.2", "[::1]", "localhost", "nas.local", "nas"] {
        assert_eq!(refused(host, port, None).await, Refusal::Name, "{host}");
    }
    assert_eq!(refused("private.demo.test", port, None).await, Refusal::Address);
    assert_eq!(
        refused(HOST, port, Some([127, 0, 0, 1].into())).await,
        Refusal::Address
    );
    let came = tokio::time::timeout(Duration::ZERO, house.origin.accept()).await;
    assert!(came.is_err(), "{came:?}");
    assert_eq!(house.relay.lent().peers[&house.borrower].refused, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_borrower_hears_what_its_lender_has_handed_to_the_origin_and_stays_near_it() {
    /// What the borrower may be ahead.
    const NEAR: u64 = 256 << 10;
    let house = household().await;
    let (tunnel, mut origin) = house.tunnel().await;
    let (mut stream, mut sent) = (tunnel.stream, tunnel.sent);
    let head = b"PUT / HTTP/1.1\r\n\r\n";
    stream.write_all(head).await.unwrap();
    sent.reaches(head.len() as u64).await;
    let written = AtomicU64::new(head.len() as u64);
    let endless = async {
        loop {
            let n = stream.write(&[7; 50_000]).await.unwrap();
            written.fetch_add(n as u64, Ordering::Relaxed);
        }
    };
    // An origin that reads nothing: what its socket takes is all that counts as sent.
    let lent = || house.relay.lent().peers[&house.borrower].up;
    let stalls = async {
        loop {
            let (all, before) = (written.load(Ordering::Relaxed), sent.bytes());
            assert!(all <= before + NEAR, "{all} bytes written, {before} sent");
            let quiet = tokio::time::timeout(QUIET, sent.reaches(before + 1))
                .await
                .is_err();
            if quiet && written.load(Ordering::Relaxed) == all && lent() == before {
                return before;
            }
        }
    };
    let stalled = tokio::select! {
        () = endless => unreachable!("it writes for ever"),
        stalled = stalls => stalled,
    };
    let all = written.load(Ordering::Relaxed);
    assert!(stalled < all, "what is on the way does not count");
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    origin.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len() as u64, all);
    sent.reaches(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_given_back_can_be_taken_again_at_once() {
    let house = household().await;
    /// QUIC tells a borrower of streams given back in lots, so not the very last ones.
    const HELD: usize = 12;
    let mut held = Vec::new();
    for _ in 0..HELD {
        held.push(house.tunnel().await);
    }
    drop(held.pop());
    let again = house.tunnel().await;
    assert_eq!(again.0.address, house.origin.local_addr().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_is_gone_with_its_lender() {
    let house = household().await;
    let (mut tunnel, _origin) = house.tunnel().await;
    assert!(house.lender.stop(Duration::from_secs(2)).await);
    assert!(tunnel.stream.read(&mut [0; 1]).await.is_err());
    let gone = house.lane.dial(&house.target()).await;
    assert!(matches!(gone, Err(DialError::LaneGone)), "{gone:?}");
}

impl Household {
    fn port(&self) -> u16 {
        self.origin.local_addr().unwrap().port()
    }

    fn target(&self) -> Target {
        Target {
            host: HOST.into(),
            port: self.port(),
            pin: None,
        }
    }

    async fn tunnel(&self) -> (tributary::lane::Tunnel, TcpStream) {
        let target = self.target();
        let (tunnel, accepted) = tokio::join!(self.lane.dial(&target), self.origin.accept());
        (tunnel.unwrap(), accepted.unwrap().0)
    }
}

async fn household() -> Household {
    let origin = TcpListener::bind((ORIGIN, 0)).await.unwrap();
    let port = origin.local_addr().unwrap().port();
    let lender = Tasks::new();
    let (_, lenders, address, requests) = peer(&lender);
    let relay = relay(port, &lender);
    lender.spawn("serve", serve(relay.clone(), requests));

    let (borrower, (links, mut events), _, unused) = peer(&Tasks::new());
    let peer = links.dial(&[address]).await.unwrap();
    let Some(LinkEvent::Up(link)) = events.recv().await else {
        panic!("no link")
    };
    let info = LaneInfo {
        id: LaneId(1),
        peer: Some(peer),
        tier: Some(Tier::Neighbour),
        owner: "lender".into(),
        uplink: "wan0".into(),
        kind: UplinkKind::Wired,
        metered: false,
        line: LineId([0; 8]),
        hint: None,
    };
    let lane = PeerLane::new(info, link, UPLINK);
    Household {
        lane,
        borrower,
        relay,
        lender,
        origin,
        _news: (lenders, (links, events), unused),
    }
}

async fn serve(relay: Relay, mut requests: mpsc::Receiver<Incoming>) {
    while let Some(mut incoming) = requests.recv().await {
        // What these tests are about begins where other ports than the web's may be borrowed.
        incoming.tier = Tier::Member;
        relay.serve(incoming);
    }
}

fn relay(port: u16, tasks: &Tasks) -> Relay {
    let uplink = Uplink {
        index: UPLINK,
        name: "wan0".into(),
        kind: UplinkKind::Wired,
        metered: false,
        lend: Lend::All,
        line: LineId([0; 8]),
        line_named: false,
        v4: Some([127, 0, 0, 9].into()),
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
    let private = IpAddr::from([127, 0, 0, 1]);
    let names = [
        (HOST, vec![ORIGIN.into()]),
        ("private.demo.test", vec![ORIGIN.into(), private]),
    ];
    let config = Config {
        allow: vec!["127.0.0.2".parse().unwrap()],
        ports: vec![port],
        names: names.map(|(name, ips)| (name.to_owned(), ips)).into(),
        ..Config::default()
    };
    Relay::new(config, watch::channel(Arc::new(network)).1, tasks)
}

type LinksAndNews = (Links, mpsc::Receiver<LinkEvent>);

fn peer(tasks: &Tasks) -> (PeerId, LinksAndNews, SocketAddr, mpsc::Receiver<Incoming>) {
    let key = DeviceKey::ephemeral().unwrap();
    let config = LinkConfig {
        port: 0,
        name: "peer".into(),
        offers: watch::channel(Lends::default()).1,
        home: watch::channel(tributary::link::Home::default()).1,
        gate: Arc::new(|from: SocketAddr| from.ip().is_loopback()),
        trust: Trust::none(&key),
    };
    let (links, events, requests) = Links::start(config, &key, tasks).unwrap();
    let address = (Ipv4Addr::LOCALHOST, links.port().unwrap()).into();
    (key.id(), (links, events), address, requests)
}
