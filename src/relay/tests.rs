//! The relay against real sockets on loopback, which an owner's exception opens for it.

mod tiers;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpListener;

use super::*;
use crate::types::{ByteSize, PeerId, UplinkKind};
use crate::uplink::{Interface, Router};

const PEER: Borrower = borrower(1, Tier::Member);
const NEIGHBOUR: Borrower = borrower(2, Tier::Neighbour);
const HAND: u32 = 7;
const METERED: u32 = 8;
const NO_GATEWAY: u32 = 9;
const KEPT: u32 = 10;

const fn borrower(id: u8, tier: Tier) -> Borrower {
    let id = PeerId([id; 32]);
    Borrower { id, tier }
}

fn uplink(index: u32, name: &str) -> Uplink {
    Uplink {
        v4: Some([127, 0, 0, 9].into()),
        bind: false,
        ..Uplink::fixture(index, name)
    }
}

fn network() -> Network {
    let lo = Interface {
        index: 1,
        name: "lo".into(),
        kind: UplinkKind::Wired,
        up: true,
        loopback: true,
        point_to_point: false,
        multicast: false,
        addresses: vec![([127, 0, 0, 1].into(), 8)],
        on_link: Vec::new(),
        default_route: false,
        router: Router::None,
        away: false,
    };
    let metered = Uplink {
        metered: true,
        ..uplink(METERED, "stick")
    };
    let bridged = Uplink {
        bind: true,
        ..uplink(NO_GATEWAY, "bridge")
    };
    Network {
        interfaces: vec![lo],
        uplinks: vec![uplink(HAND, "hand"), metered, bridged],
    }
}

/// A relay for which 127.0.0.2 is as good as public, with `answers` for every name.
fn relay<F>(ports: &[u16], limits: Limits, answers: F) -> Relay
where
    F: Fn() -> Vec<IpAddr> + Send + Sync + 'static,
{
    let config = Config {
        allow: vec!["127.0.0.2/32".parse().unwrap()],
        ports: ports.to_vec(),
        limits,
        ..Config::default()
    };
    let resolver = Resolver::with_lookup(Names::new(), move |_| {
        let answer = answers();
        Box::pin(async move { Ok(answer) })
    });
    // The last value stays readable without its sender.
    let (_, network) = watch::channel(Arc::new(network()));
    Relay::with_resolver(config, resolver, network, &Tasks::new())
}

fn allowed() -> Vec<IpAddr> {
    vec![[127, 0, 0, 2].into()]
}

fn open(port: u16) -> Open {
    Open {
        host: "origin.demo.test".into(),
        port,
        uplink: HAND,
        pin: None,
    }
}

async fn origin() -> (TcpListener, u16) {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn a_borrower_is_connected_over_the_uplink_it_named_and_the_bytes_are_counted() {
    let (listener, port) = origin().await;
    let relay = relay(&[port], Limits::default(), allowed);
    let origin = relay.reach(PEER, &open(port)).await.unwrap();
    assert_eq!(origin.address, SocketAddr::from(([127, 0, 0, 2], port)));
    let (mut far, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 9]));
    let (mut borrower, mut tunnel) = duplex(1000);
    let (end, ()) = tokio::join!(relay.carry(PEER, &mut tunnel, origin), async {
        borrower.write_all(b"GET").await.unwrap();
        borrower.shutdown().await.unwrap();
        let mut request = String::new();
        far.read_to_string(&mut request).await.unwrap();
        assert_eq!(relay.lent().all.open, 1);
        far.write_all(&[5; 4000]).await.unwrap();
        drop(far);
        let mut answer = Vec::new();
        assert_eq!(borrower.read_to_end(&mut answer).await.unwrap(), 4000);
    });
    assert!(matches!(end, End::Closed), "{end:?}");
    let expected = Count {
        down: 4000,
        up: 3,
        open: 0,
        tunnels: 1,
        refused: 0,
    };
    assert_eq!(
        (relay.lent().peers[&PEER.id], relay.lent().uplinks["hand"]),
        (expected, expected)
    );
    assert_eq!(relay.gate().enter(PEER, now()), Ok(()));
}

#[tokio::test]
async fn an_origin_is_reset_at_once_when_the_borrower_breaks_off() {
    let (listener, port) = origin().await;
    let relay = relay(&[port], Limits::default(), allowed);
    let origin = relay.reach(PEER, &open(port)).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let mut tunnel = broken();
    let end = relay.carry(PEER, &mut tunnel, origin).await;
    assert!(matches!(end, End::Broken(_)), "{end:?}");
    let error = far.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_origin_is_reset_when_the_relay_is_ended() {
    let (listener, port) = origin().await;
    let relay = relay(&[port], Limits::default(), allowed);
    let origin = relay.reach(PEER, &open(port)).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let (_borrower, mut tunnel) = duplex(1000);
    let carrying = relay.carry(PEER, &mut tunnel, origin);
    assert!(tokio::time::timeout(Duration::ZERO, carrying).await.is_err());
    assert_eq!(
        far.read(&mut [0; 1]).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    assert_eq!(relay.lent().all.open, 0);
}

#[tokio::test]
async fn what_the_owner_says_later_holds_for_the_next_request() {
    let (_listener, port) = origin().await;
    let relay = relay(&[80], Limits::default(), allowed);
    let refused = relay.reach(PEER, &open(port)).await.unwrap_err();
    assert_eq!(refused, Refusal::Port);
    let range: Cidr = "127.0.0.2/32".parse().unwrap();
    relay.change(vec![range], vec![port], Limits::default(), true);
    assert!(relay.reach(PEER, &open(port)).await.is_ok());
    relay.change(vec![], vec![port], Limits::default(), true);
    let refused = relay.reach(PEER, &open(port)).await.unwrap_err();
    assert_eq!(refused, Refusal::Address);
}

#[tokio::test]
async fn a_tunnel_ends_when_its_uplink_is_not_lent_any_more_and_outlives_one_that_is_gone_for_a_moment() {
    let (listener, port) = origin().await;
    let (news, receiver) = watch::channel(Arc::new(network()));
    let config = Config {
        allow: vec!["127.0.0.2/32".parse().unwrap()],
        ports: vec![port],
        ..Config::default()
    };
    let resolver = Resolver::with_lookup(Names::new(), |_| Box::pin(async { Ok(allowed()) }));
    let relay = Relay::with_resolver(config, resolver, receiver, &Tasks::new());
    let origin = relay.reach(PEER, &open(port)).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    let (mut borrower, mut tunnel) = duplex(1000);
    let (end, ()) = tokio::join!(relay.carry(PEER, &mut tunnel, origin), async {
        borrower.write_all(b"GET").await.unwrap();
        far.read_exact(&mut [0; 3]).await.unwrap();
        news.send_replace(Arc::default());
        far.write_all(b"x").await.unwrap();
        borrower.read_exact(&mut [0; 1]).await.unwrap();
        let mut kept_back = network();
        kept_back.uplinks[0].lend = Lend::Nobody;
        assert!(relay.offered(&kept_back, Tier::Member).is_empty());
        news.send_replace(Arc::new(kept_back));
    });
    assert!(matches!(end, End::TakenBack), "{end:?}");
    let refused = relay.reach(PEER, &open(port)).await.unwrap_err();
    assert_eq!(refused, Refusal::Uplink);
}

#[tokio::test]
async fn sec_a5_what_is_no_name_of_a_public_host_is_refused_before_anything_is_dialled() {
    let (listener, port) = origin().await;
    let relay = relay(&[port], Limits::default(), || vec![[127, 0, 0, 1].into()]);
    let refused = async |change: &dyn Fn(&mut Open)| {
        let mut open = open(port);
        change(&mut open);
        relay.reach(PEER, &open).await.unwrap_err()
    };
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "[::ffff:127.0.0.1]",
        "localhost",
        "printer.local",
        "router",
    ] {
        assert_eq!(
            refused(&|open| open.host = host.into()).await,
            Refusal::Name,
            "{host}"
        );
    }
    assert_eq!(refused(&|_| {}).await, Refusal::Address);
    for pin in [
        "127.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "192.168.1.1",
        "::1",
        "fe80::1",
    ] {
        let pin: IpAddr = pin.parse().unwrap();
        assert_eq!(
            refused(&|open| open.pin = Some(pin)).await,
            Refusal::Address,
            "{pin}"
        );
    }
    assert_eq!(refused(&|open| open.port = 22).await, Refusal::Port);
    nothing_came(&listener).await;
}

#[tokio::test]
async fn sec_a10_a_metered_forged_or_unrouted_uplink_is_refused() {
    let (listener, port) = origin().await;
    let relay = relay(&[port], Limits::default(), allowed);
    for uplink in [METERED, NO_GATEWAY, 0, 1, u32::MAX] {
        let refusal = relay
            .reach(PEER, &Open { uplink, ..open(port) })
            .await
            .unwrap_err();
        assert_eq!(refusal, Refusal::Uplink, "{uplink}");
    }
    let network = network();
    let offered: Vec<u32> = relay
        .offered(&network, Tier::Member)
        .iter()
        .map(|u| u.index)
        .collect();
    assert_eq!(offered, [HAND]);
    nothing_came(&listener).await;
}

#[tokio::test]
async fn sec_a7_dns_rebinding_alternating_answers_lead_to_no_private_address() {
    const DIALS: u64 = 10_000;
    let (listener, port) = origin().await;
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let answers = move || match counter.fetch_add(1, Ordering::Relaxed) % 4 {
        0 => vec![[127, 0, 0, 1].into()],
        1 => vec![[127, 0, 0, 2].into()],
        2 => vec![[127, 0, 0, 2].into(), [127, 0, 0, 1].into()],
        _ => vec![[127, 0, 0, 2].into(), "::ffff:127.0.0.1".parse().unwrap()],
    };
    let limits = Limits {
        dials: 1_000_000,
        dial_burst: 1_000_000,
        ..Limits::default()
    };
    let relay = relay(&[port], limits, answers);
    let (mut public, mut private) = (0, 0);
    for _ in 0..DIALS {
        match relay.reach(PEER, &open(port)).await {
            Ok(origin) => {
                let (stream, _) = listener.accept().await.unwrap();
                let reached = stream.local_addr().unwrap().ip();
                assert_eq!(reached, origin.address.ip());
                if reached == IpAddr::from([127, 0, 0, 2]) {
                    public += 1
                } else {
                    private += 1
                }
            }
            Err(reason) => assert_eq!(reason, Refusal::Address),
        }
    }
    assert_eq!((public, private), (DIALS / 4, 0));
    assert_eq!(
        asked.load(Ordering::Relaxed),
        DIALS,
        "each request is resolved once"
    );
    nothing_came(&listener).await;
}

#[tokio::test]
async fn a_pin_that_passes_is_dialled_without_asking_a_resolver() {
    let (listener, port) = origin().await;
    let relay = relay(&[port], Limits::default(), || panic!("asked"));
    let pinned = Open {
        pin: Some([127, 0, 0, 2].into()),
        ..open(port)
    };
    let origin = relay.reach(PEER, &pinned).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.local_addr().unwrap(), origin.address);
}

#[tokio::test]
async fn sec_a9_a_peer_over_its_limits_is_told_that_we_are_busy() {
    let (listener, port) = origin().await;
    let limits = Limits {
        tunnels_per_peer: 2,
        destinations: 1,
        ..Limits::default()
    };
    let turn = AtomicU64::new(0);
    let relay = relay(&[port], limits, move || {
        match turn.fetch_add(1, Ordering::Relaxed) {
            0..=2 => vec![[127, 0, 0, 2].into()],
            _ => vec![[8, 8, 8, 8].into()],
        }
    });
    let first = relay.reach(PEER, &open(port)).await.unwrap();
    let _second = relay.reach(PEER, &open(port)).await.unwrap();
    assert_eq!(relay.reach(PEER, &open(port)).await.unwrap_err(), Refusal::Busy);
    assert!(
        relay.reach(borrower(3, Tier::Member), &open(port)).await.is_ok(),
        "another peer has its own limits"
    );
    drop(first);
    assert_eq!(
        relay.reach(PEER, &open(port)).await.unwrap_err(),
        Refusal::Busy,
        "a second destination"
    );
    for _ in 0..3 {
        listener.accept().await.unwrap();
    }
    nothing_came(&listener).await;
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_costs_the_borrower_a_bounded_time_and_no_place() {
    let config = Config {
        ports: vec![443],
        ..Config::default()
    };
    let resolver = Resolver::with_lookup(Names::new(), |_| Box::pin(std::future::pending()));
    let (_, network) = watch::channel(Arc::new(network()));
    let relay = Relay::with_resolver(config, resolver, network, &Tasks::new());
    let start = Instant::now();
    let asks = (0..20).map(|_| async { relay.reach(PEER, &open(443)).await.unwrap_err() });
    let refusals = futures_util::future::join_all(asks).await;
    assert!(start.elapsed() <= Limits::default().dial_limit);
    let count = |reason| refusals.iter().filter(|r| **r == reason).count();
    assert_eq!((count(Refusal::Busy), count(Refusal::Resolve)), (4, 16));
    assert_eq!(relay.reach(PEER, &open(443)).await.unwrap_err(), Refusal::Resolve);
}

#[tokio::test]
async fn an_origin_that_refuses_is_told_apart_from_a_name_without_address() {
    let (listener, port) = origin().await;
    drop(listener);
    let to_nobody = relay(&[port], Limits::default(), allowed);
    assert_eq!(
        to_nobody.reach(PEER, &open(port)).await.unwrap_err(),
        Refusal::Connect
    );
    let nameless = relay(&[port], Limits::default(), Vec::new);
    assert_eq!(
        nameless.reach(PEER, &open(port)).await.unwrap_err(),
        Refusal::Resolve
    );
}

/// Carries one tunnel as if the port was `port`, with `sent` from the borrower; gives the end and what the origin got.
async fn carried(port: u16, sent: &[u8]) -> (End, Vec<u8>) {
    let (listener, real) = origin().await;
    let relay = relay(&[real], Limits::default(), allowed);
    let mut origin = relay.reach(PEER, &open(real)).await.unwrap();
    origin.address.set_port(port);
    let (mut far, _) = listener.accept().await.unwrap();
    let (mut borrower, mut tunnel) = duplex(1000);
    borrower.write_all(sent).await.unwrap();
    borrower.shutdown().await.unwrap();
    let mut got = Vec::new();
    let origin_side = async {
        let _ = far.read_to_end(&mut got).await;
        drop(far);
    };
    let (end, ()) = tokio::join!(relay.carry(PEER, &mut tunnel, origin), origin_side);
    assert_eq!(relay.lent().all.up, got.len() as u64);
    (end, got)
}

#[tokio::test]
async fn sec_a8_first_bytes_to_another_host_never_reach_the_origin() {
    let right = b"GET / HTTP/1.1\r\nHost: origin.demo.test\r\n\r\nmore";
    let (end, got) = carried(80, right).await;
    assert!(matches!(end, End::Closed), "{end:?}");
    assert_eq!(got, right);
    for port in [80, 443] {
        let (end, got) = carried(port, b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
        assert!(
            matches!(&end, End::Broken(e) if e.kind() == io::ErrorKind::InvalidData),
            "{end:?}"
        );
        assert!(got.is_empty());
    }
    let (end, got) = carried(8080, b"anything").await;
    assert!(matches!(end, End::Closed), "{end:?}");
    assert_eq!(
        got, b"anything",
        "a port that the owner opened is for whatever is spoken there"
    );
}

#[tokio::test]
async fn an_origin_that_ends_before_the_borrower_says_anything_is_noticed_at_once() {
    let (listener, port) = origin().await;
    let relay = relay(&[port], Limits::default(), allowed);
    let mut origin = relay.reach(PEER, &open(port)).await.unwrap();
    origin.address.set_port(443);
    drop(listener.accept().await.unwrap());
    let (_borrower, mut tunnel) = duplex(1000);
    let end = relay.carry(PEER, &mut tunnel, origin).await;
    assert!(matches!(end, End::Broken(_)), "{end:?}");
}

/// No connection waits in the listener's queue: loopback has delivered every SYN before `connect` returned.
async fn nothing_came(listener: &TcpListener) {
    let waiting = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    assert!(waiting.is_err(), "somebody connected: {waiting:?}");
}

/// A tunnel whose borrower has reset it.
fn broken() -> impl AsyncRead + AsyncWrite + Unpin {
    struct Broken;
    impl AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    tokio::io::join(Broken, tokio::io::sink())
}
