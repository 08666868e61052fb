//! Links over real QUIC on loopback: who joins, who is refused, what a tunnel does.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail by panicking"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tributary::identity::DeviceKey;
use tributary::link::{
    DialError, Incoming, Lends, Link, LinkConfig, LinkEvent, Links, Offer, Open, Refusal, TunnelError,
};
use tributary::task::Tasks;
use tributary::trust::{PutOut, Tier, Trust};
use tributary::types::{LineId, PeerId, UplinkKind};

struct Peer {
    id: PeerId,
    links: Links,
    events: mpsc::Receiver<LinkEvent>,
    tunnels: mpsc::Receiver<Incoming>,
    offers: watch::Sender<Lends>,
    trust: Trust,
    tasks: Tasks,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_meet_and_know_each_others_key_name_and_uplinks() {
    let (mut a, mut b) = (peer("kitchen"), peer("attic"));
    b.offers.send_replace(lends(&[offer(4)]));
    assert_eq!(a.links.dial(&[b.address()]).await.unwrap(), b.id);
    let LinkEvent::Up(to_b) = a.event().await else {
        panic!("no link at the dialling end")
    };
    let LinkEvent::Up(to_a) = b.event().await else {
        panic!("no link at the dialled end")
    };
    assert_eq!((to_b.peer(), to_b.name()), (b.id, "attic"));
    assert_eq!((to_a.peer(), to_a.name()), (a.id, "kitchen"));
    assert_eq!(to_b.offers(), [offer(4)]);

    b.offers.send_replace(lends(&[offer(4), offer(5)]));
    assert!(matches!(a.event().await, LinkEvent::Changed(id) if id == b.id));
    assert_eq!(to_b.offers(), [offer(4), offer(5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_carries_both_ways_with_half_close() {
    let (a, mut b) = (peer("a"), peer("b"));
    a.links.dial(&[b.address()]).await.unwrap();
    let link = a.links.all().remove(0);
    let address = SocketAddr::from(([192, 0, 2, 1], 443));
    let lender = tokio::spawn(async move {
        let incoming = b.tunnels.recv().await.unwrap();
        assert_eq!(
            (incoming.peer, incoming.open.host.as_str()),
            (a.id, "origin.example")
        );
        let mut stream = incoming.accept(address).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        stream.write_all(&heard).await.unwrap();
        stream.shutdown().await.unwrap();
        b
    });
    let (reached, mut stream) = link.open(&open()).await.unwrap();
    assert_eq!(reached, address);
    let sent = vec![42; 3_000_000];
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert!(heard == sent, "{} bytes came back of {}", heard.len(), sent.len());
    lender.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_tunnel_says_why_and_a_dropped_one_is_reset_at_the_lender() {
    let (a, mut b) = (peer("a"), peer("b"));
    a.links.dial(&[b.address()]).await.unwrap();
    let link = a.links.all().remove(0);
    let wanted = open();
    let opening = tokio::spawn(async move {
        let refused = link.open(&wanted).await.unwrap_err();
        assert!(
            matches!(refused, TunnelError::Refused(Refusal::Port)),
            "{refused}"
        );
        link.open(&wanted).await.unwrap()
    });
    b.tunnels.recv().await.unwrap().refuse(Refusal::Port).await;
    let incoming = b.tunnels.recv().await.unwrap();
    let mut lenders_end = incoming
        .accept(SocketAddr::from(([192, 0, 2, 1], 443)))
        .await
        .unwrap();
    drop(opening.await.unwrap());
    let mut buffer = [0; 8];
    assert!(
        lenders_end.read(&mut buffer).await.is_err(),
        "the lender must see a reset, not an end"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_dial_each_other_at_once_end_with_one_link() {
    for _ in 0..10 {
        let (mut a, mut b) = (peer("a"), peer("b"));
        let (to_b, to_a) = ([b.address()], [a.address()]);
        let _ = tokio::join!(a.links.dial(&to_b), b.links.dial(&to_a));
        let ids = [a.id, b.id];
        for (from, to) in [(&mut a, ids[1]), (&mut b, ids[0])] {
            // The link that lost may have been there first; its end is followed by the one that stays.
            loop {
                if let [link] = from.links.all().as_slice() {
                    break assert_eq!(link.peer(), to);
                }
                from.event().await;
            }
        }
        a.tasks.stop(Duration::from_secs(2)).await;
        b.tasks.stop(Duration::from_secs(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dials_itself_notices() {
    let a = peer("a");
    assert!(matches!(
        a.links.dial(&[a.address()]).await,
        Err(DialError::Ourselves | DialError::Handshake(_))
    ));
    assert!(a.links.all().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_off_the_lan_is_neither_dialled_nor_answered() {
    let insider = peer("insider");
    let outsider = start("outsider", |_| true);
    let closed = start("closed", |_| false);
    assert!(matches!(
        closed.links.dial(&[insider.address()]).await,
        Err(DialError::OffLink)
    ));
    let refused = outsider.links.dial(&[closed.address()]).await;
    assert!(matches!(refused, Err(DialError::Handshake(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_leaves_is_missed_at_once() {
    let (mut a, mut b) = (peer("a"), peer("b"));
    a.links.dial(&[b.address()]).await.unwrap();
    assert!(matches!(a.event().await, LinkEvent::Up(_)));
    assert!(matches!(b.event().await, LinkEvent::Up(_)));
    assert!(b.tasks.stop(Duration::from_secs(2)).await);
    loop {
        match a.event().await {
            LinkEvent::Down(link) => break assert_eq!(link.peer(), b.id),
            LinkEvent::Changed(_) | LinkEvent::Ceremony { .. } => {}
            LinkEvent::Up(_) => panic!("nobody came"),
        }
    }
    assert!(a.links.all().is_empty());
}

/// Two that vouched for each other, linked.
async fn members() -> [Peer; 2] {
    let [mut a, mut b] = [peer("a"), peer("b")];
    a.links.dial(&[b.address()]).await.unwrap();
    a.up().await;
    b.up().await;
    a.trust.vouch(b.id, true).unwrap();
    b.trust.vouch(a.id, true).unwrap();
    [a, b]
}

#[tokio::test]
async fn who_is_vouched_for_is_told_what_members_are_lent_and_who_the_others_are() {
    let [mut a, b] = members().await;
    let link = a.links.all()[0].clone();
    let only_members = Lends {
        to_neighbours: vec![offer(1)],
        to_members: vec![offer(1), offer(2)],
    };
    b.offers.send_replace(only_members);
    a.until(|_| link.offers().len() == 2).await;
    // A third one, of whom only `a` knows, becomes known to `b`.
    let c = peer("c");
    let mut changes = b.trust.changes();
    a.trust.vouch(c.id, true).unwrap();
    changes
        .wait_for(|_| b.trust.tier(c.id) == Tier::Member)
        .await
        .unwrap();
    assert_eq!(b.trust.tier(a.id), Tier::Member);
}

#[tokio::test]
async fn a_neighbour_is_told_less_and_what_it_says_of_others_counts_for_nothing() {
    let [mut a, mut b] = [peer("a"), peer("b")];
    let only_members = Lends {
        to_neighbours: vec![offer(1)],
        to_members: vec![offer(1), offer(2)],
    };
    b.offers.send_replace(only_members);
    a.links.dial(&[b.address()]).await.unwrap();
    let link = a.up().await;
    b.up().await;
    assert_eq!(link.offers(), [offer(1)]);
    // It believes to be of one household with `b`, and tells of another device.
    let c = peer("c");
    a.trust.vouch(b.id, true).unwrap();
    a.trust.vouch(c.id, true).unwrap();
    // A change that `b` tells only after it has heard all of that, as one stream brings both.
    a.offers.send_replace(lends(&[offer(7)]));
    let to_a = b.links.all()[0].clone();
    b.until(|_| to_a.offers() == [offer(7)]).await;
    assert_eq!([b.trust.tier(c.id), b.trust.tier(a.id)], [Tier::Neighbour; 2]);
    assert_eq!(link.offers(), [offer(1)]);
}

#[tokio::test]
async fn who_is_put_out_loses_its_link_learns_of_it_and_comes_back_as_a_neighbour() {
    let [mut a, mut b] = members().await;
    a.trust.put_out(b.id, PutOut::Forget).unwrap();
    a.down().await;
    b.down().await;
    assert_eq!(
        b.trust.tier(a.id),
        Tier::Neighbour,
        "it was told, and believed a member"
    );
    a.links.dial(&[b.address()]).await.unwrap();
    assert_eq!(a.up().await.tier(), Tier::Neighbour);
}

#[tokio::test]
async fn who_is_blocked_gets_no_link_whoever_dials() {
    let [mut a, mut b] = members().await;
    a.trust.put_out(b.id, PutOut::Block).unwrap();
    a.down().await;
    b.down().await;
    assert!(matches!(
        a.links.dial(&[b.address()]).await,
        Err(DialError::Blocked)
    ));
    assert!(matches!(
        b.links.dial(&[a.address()]).await,
        Err(DialError::Blocked)
    ));
    assert!(a.links.all().is_empty() && b.links.all().is_empty());
    a.trust.put_out(b.id, PutOut::Forget).unwrap();
    b.links.dial(&[a.address()]).await.unwrap();
    assert_eq!(b.up().await.tier(), Tier::Neighbour);
}

#[tokio::test]
async fn who_leaves_is_a_neighbour_to_those_it_told_and_to_those_who_were_away() {
    let [mut a, mut b] = members().await;
    let mut c = peer("c");
    for (one, other) in [(&a, &c), (&c, &a)] {
        one.trust.vouch(other.id, true).unwrap();
    }
    let mut changes = b.trust.changes();
    changes
        .wait_for(|_| b.trust.tier(c.id) == Tier::Member)
        .await
        .unwrap();
    b.trust.leave().unwrap();
    a.down().await;
    b.down().await;
    assert_eq!([a.trust.tier(b.id), b.trust.tier(a.id)], [Tier::Neighbour; 2]);
    // `c` was not there, and takes `b` for a member until it meets it.
    let mut changes = c.trust.changes();
    c.trust.vouch(b.id, true).unwrap();
    c.links.dial(&[b.address()]).await.unwrap();
    c.up().await;
    changes
        .wait_for(|_| c.trust.tier(b.id) == Tier::Neighbour)
        .await
        .unwrap();
}

#[tokio::test]
async fn both_ends_of_a_link_share_a_secret_that_no_other_link_has() {
    let [a, b] = members().await;
    let (to_b, to_a) = (a.links.all()[0].clone(), b.links.all()[0].clone());
    let secret = to_b.exporter(b"one").unwrap();
    assert_eq!(to_a.exporter(b"one"), Some(secret));
    assert_ne!(to_a.exporter(b"two"), Some(secret));
    let [c, _d] = members().await;
    assert_ne!(c.links.all()[0].exporter(b"one"), Some(secret));
}

#[tokio::test]
async fn steps_of_a_ceremony_arrive_as_they_were_said_and_too_many_end_the_link() {
    let [mut a, b] = members().await;
    let to_a = b.links.all()[0].clone();
    assert!(to_a.say(b"first".to_vec()));
    assert!(!to_a.say(vec![0; 4096]), "longer than any step");
    let heard = loop {
        if let LinkEvent::Ceremony { link, words } = a.event().await {
            assert_eq!(link.peer(), b.id);
            break words;
        }
    };
    assert_eq!(heard, b"first");
    while to_a.is_up() {
        to_a.say(b"more".to_vec());
        tokio::task::yield_now().await;
    }
    a.down().await;
}

impl Peer {
    async fn up(&mut self) -> Arc<Link> {
        loop {
            if let LinkEvent::Up(link) = self.event().await {
                return link;
            }
        }
    }

    async fn down(&mut self) {
        self.until(|event| matches!(event, LinkEvent::Down(_))).await;
    }

    /// Hears news until that is so.
    async fn until(&mut self, so: impl Fn(&LinkEvent) -> bool) {
        while !so(&self.event().await) {}
    }
}

impl Peer {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.links.port().unwrap()).into()
    }

    async fn event(&mut self) -> LinkEvent {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv())
            .await
            .expect("no news")
            .unwrap()
    }
}

fn peer(name: &str) -> Peer {
    start(name, |from| from.ip().is_loopback())
}

fn start(name: &str, gate: impl Fn(SocketAddr) -> bool + Send + Sync + 'static) -> Peer {
    let key = DeviceKey::ephemeral().unwrap();
    let trust = Trust::none(&key);
    let tasks = Tasks::new();
    let (offers, receiver) = watch::channel(Lends::default());
    let config = LinkConfig {
        port: 0,
        name: name.into(),
        offers: receiver,
        home: watch::channel(tributary::link::Home::default()).1,
        gate: Arc::new(gate),
        trust: trust.clone(),
    };
    let (links, events, tunnels) = Links::start(config, &key, &tasks).unwrap();
    Peer {
        id: key.id(),
        links,
        events,
        tunnels,
        offers,
        trust,
        tasks,
    }
}

/// To everybody.
fn lends(offers: &[Offer]) -> Lends {
    Lends {
        to_neighbours: offers.to_vec(),
        to_members: offers.to_vec(),
    }
}

fn open() -> Open {
    Open {
        host: "origin.example".into(),
        port: 443,
        uplink: 1,
        pin: None,
    }
}

fn offer(id: u32) -> Offer {
    let line = LineId([9; 8]);
    Offer {
        id,
        name: "wan0".into(),
        line,
        kind: UplinkKind::Wired,
        metered: false,
        down: None,
    }
}
