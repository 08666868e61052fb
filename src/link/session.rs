//! The beginning of a link: handshake, then `Hello` both ways. What follows is in `control`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream, TransportErrorCode, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};

use crate::identity::peer_of_spki;
use crate::task::Seldom;
use crate::trust::{Right, Tier};
use crate::types::PeerId;

use super::answers::Answers;
use super::control::{BLOCKED, Control, STEPS_WAITING, hear_last_word, last_word, live};
use super::reports::Reports;
use super::table::{Entry, Verdict};
use super::wire::{self, Hello, Home, Message, WireError};
use super::{DialError, HANDSHAKE_WITHIN, Inner, Lends, Link, unmapped};

/// The end leaves; nothing is wrong.
pub(super) const LEAVING: VarInt = VarInt::from_u32(0);
const DUPLICATE: VarInt = VarInt::from_u32(2);
const OURSELVES: VarInt = VarInt::from_u32(3);
const FULL: VarInt = VarInt::from_u32(4);
pub(super) const PROTOCOL: VarInt = VarInt::from_u32(5);
/// The end begins anew: its address changed, or it was suspended.
pub(super) const ABANDONED: VarInt = VarInt::from_u32(6);
/// Another device with the same key is there, and was there first.
pub(super) const COPY: VarInt = VarInt::from_u32(7);
/// A peer that is there acknowledges within milliseconds; this leaves room for a loss or two on a bad Wi-Fi.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// A peer that says nothing after its handshake only holds a place (SEC-A15).
const HELLO_WITHIN: Duration = Duration::from_secs(3);
/// A whole household may come or go at once and be seen to; a peer that flaps must not fill the log.
static COMINGS: Seldom = Seldom::new(40, Duration::from_secs(600));
/// TLS's alert where the two ends have no protocol in common (RFC 7301).
const NO_APPLICATION_PROTOCOL: u8 = 120;
/// The server name is not sent and means nothing; TLS wants one.
const NO_NAME: &str = "peer.invalid";

/// Accepts peers for as long as the endpoint lives.
pub(super) async fn accept(inner: Arc<Inner>) {
    let mut answers = Answers::new(Instant::now());
    while let Some(incoming) = inner.endpoint.accept().await {
        let from = unmapped(incoming.remote_address());
        // Silence costs nothing, and a real peer asks again.
        if !answers.may(from.ip(), Instant::now()) {
            incoming.ignore();
            continue;
        }
        // Whoever has not shown that it is where it says gets one small packet, and costs nothing: to answer more would
        // carry a flood on to whom it names (SEC-F2), and keep what nobody asked for.
        if !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let inner_task = Arc::clone(&inner);
        inner.tasks.spawn("accept-link", async move {
            let Ok(_permit) = inner_task.handshakes.try_acquire() else {
                incoming.ignore();
                return;
            };
            // What is wrong with a first packet shows at once, what is wrong later only then.
            let connected = match incoming.accept() {
                Ok(connecting) => tokio::time::timeout(HANDSHAKE_WITHIN, connecting).await,
                Err(error) => Ok(Err(error)),
            };
            let Ok(connected) = connected else { return };
            let link = match connected {
                Ok(connection) => establish(&inner_task, connection, Role::Accepted).await,
                Err(error) => Err(unconnected(&inner_task, from, &error)),
            };
            if let Err(error) = link {
                tracing::debug!(%from, %error, "a peer's link did not come about");
            }
        });
    }
}

/// Dials one address and, where a peer answers, makes the link.
pub(super) async fn dial(inner: &Arc<Inner>, address: SocketAddr) -> Result<PeerId, DialError> {
    let handshake = |why: String| DialError::Handshake(why);
    let target = for_socket(inner, address);
    let connecting = inner.endpoint.connect_with(inner.client.clone(), target, NO_NAME);
    let connecting = connecting.map_err(|e| handshake(e.to_string()))?;
    let connection = tokio::time::timeout(HANDSHAKE_WITHIN, connecting).await;
    let connection = connection
        .map_err(|_| handshake("no answer".into()))?
        .map_err(|e| unconnected(inner, address, &e))?;
    establish(inner, connection, Role::Dialled).await
}

/// Why there was no connection. One with whom no protocol could be agreed on (either end may have found that) is told to
/// the owner.
fn unconnected(inner: &Inner, there: SocketAddr, error: &quinn::ConnectionError) -> DialError {
    let no_protocol = TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL);
    let code = match error {
        quinn::ConnectionError::TransportError(error) => Some(error.code),
        quinn::ConnectionError::ConnectionClosed(close) => Some(close.error_code),
        _ => None,
    };
    if code != Some(no_protocol) {
        return DialError::Handshake(error.to_string());
    }
    inner.notices().other_version(there, Instant::now());
    DialError::Version
}

/// A dual-stack socket sends to IPv4 by way of mapped addresses.
fn for_socket(inner: &Inner, address: SocketAddr) -> SocketAddr {
    match (inner.endpoint.local_addr(), address) {
        (Ok(SocketAddr::V6(_)), SocketAddr::V4(v4)) => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
        }
        _ => address,
    }
}

/// Which end of a link we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Dialled,
    Accepted,
}

async fn establish(
    inner: &Arc<Inner>,
    connection: quinn::Connection,
    role: Role,
) -> Result<PeerId, DialError> {
    let Some(peer) = identity_of(&connection) else {
        connection.close(PROTOCOL, b"");
        return Err(WireError::Malformed.into());
    };
    if peer == inner.id {
        return Err(meet_own_key(inner, &connection, role).await);
    }
    if !inner.trust.may(peer, Right::Link) {
        connection.close(BLOCKED, last_word(inner, peer).as_deref().unwrap_or_default());
        return Err(DialError::Blocked);
    }
    let greeted = tokio::time::timeout(HELLO_WITHIN, greet(inner, &connection, peer, role)).await;
    let (hello, control) = match greeted {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(DialError::Duplicate)) => {
            connection.close(DUPLICATE, b"");
            return Err(DialError::Duplicate);
        }
        Ok(Err(DialError::Copy)) => {
            connection.close(COPY, b"");
            return Err(DialError::Copy);
        }
        Ok(Err(error)) => {
            // A link refused as a duplicate while we greet is no fault of the peer's.
            let duplicate = closed_with(&connection, DUPLICATE);
            let blocked = closed_with(&connection, BLOCKED);
            hear_last_word(inner, &connection, peer);
            connection.close(PROTOCOL, b"");
            return Err(match () {
                () if duplicate => DialError::Duplicate,
                () if blocked => DialError::Blocked,
                () => error,
            });
        }
        Err(_) => {
            connection.close(PROTOCOL, b"");
            return Err(DialError::Handshake("no greeting".into()));
        }
    };
    let mut tie = [0; 8];
    if connection
        .export_keying_material(&mut tie, b"tributary tie", b"")
        .is_err()
    {
        return Err(WireError::Malformed.into());
    }
    let (offers, _) = watch::channel(hello.uplinks);
    let (words, steps) = mpsc::channel(STEPS_WAITING);
    let local = local_ip(&connection);
    let link = Arc::new(Link {
        connection,
        local,
        peer,
        name: hello.name,
        offers,
        home: watch::channel(Home::default()).0,
        knock: Notify::new(),
        trust: inner.trust.clone(),
        words,
        reports: Reports::default(),
    });
    inner.trust.called(peer, &link.name);
    let entry = Entry {
        link: Arc::clone(&link),
        session: hello.session,
        tie,
        since: Instant::now(),
        accepted: role == Role::Accepted,
        address: link.address().ip(),
    };
    let keeps = |peer| inner.trust.may(peer, Right::Place);
    if keeps(peer) {
        link.widen();
    }
    let verdict = inner.table().insert(peer, entry, keeps);
    match verdict {
        Verdict::Kept {
            replaced,
            crossed,
            evicted,
        } => {
            if let Some(old) = replaced {
                old.connection.close(DUPLICATE, b"");
            }
            if let Some(other) = evicted {
                other.connection.close(FULL, b"");
            }
            link.admit();
            if crossed {
                tracing::debug!(peer = %peer.short(), "another link to that peer took the first one's place");
            } else if inner.notices().may_speak_of(peer, Instant::now())
                && let Some(more) = COMINGS.pass()
            {
                tracing::info!(peer = %peer.short(), name = ?link.name, address = %link.address(), more, "peer joined");
            }
            inner
                .tasks
                .spawn_graceful("link", live(Arc::clone(inner), link, control, steps));
            Ok(peer)
        }
        Verdict::Duplicate => {
            link.connection.close(DUPLICATE, b"");
            Err(DialError::Duplicate)
        }
        Verdict::Full => {
            link.connection.close(FULL, b"");
            Err(DialError::Full)
        }
    }
}

/// This end's address. QUIC only knows it of connections that were accepted; for others it is the one that the routes give
/// what is sent to the peer, which is how the handshake was sent a moment ago.
fn local_ip(connection: &quinn::Connection) -> Option<IpAddr> {
    let routed = || {
        let to = unmapped(connection.remote_address());
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    connection.local_ip().or_else(routed).map(|ip| ip.to_canonical())
}

fn identity_of(connection: &quinn::Connection) -> Option<PeerId> {
    let keys = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    match keys.as_slice() {
        [spki] => peer_of_spki(spki),
        _ => None,
    }
}

/// The other end has our key: it is us (an address that was a peer's and is ours now), or a copy of us. The process's
/// number tells; who dialled compares, and says by its close what it found.
async fn meet_own_key(inner: &Inner, connection: &quinn::Connection, role: Role) -> DialError {
    let met = tokio::time::timeout(HELLO_WITHIN, async {
        match role {
            Role::Dialled => Ok(hear_hello(connection).await?.0.session != inner.session),
            Role::Accepted => {
                let _greeting = say_hello(inner, connection, inner.id).await?;
                connection.closed().await;
                Ok::<_, WireError>(closed_with(connection, COPY))
            }
        }
    });
    let copy = matches!(met.await, Ok(Ok(true)));
    connection.close(if copy { COPY } else { OURSELVES }, b"");
    if !copy {
        return DialError::Ourselves;
    }
    let there = unmapped(connection.remote_address());
    inner.notices().copy_of_us(inner.id, there, Instant::now());
    DialError::Copy
}

/// Whether the peer's link to another process stands, to another address: then two devices have this key, and the first
/// one stays. At the same address it can only be dead.
async fn is_copy(inner: &Inner, connection: &quinn::Connection, peer: PeerId, session: u64) -> bool {
    let rival = inner.table().rival(peer, session);
    let there = unmapped(connection.remote_address());
    let Some(first) = rival.filter(|first| first.address() != there) else {
        return false;
    };
    let copy = still_answers(&first).await;
    if copy {
        let used = (first.name.as_str(), first.address());
        inner.notices().copy_of(peer, used, there, Instant::now());
    }
    copy
}

/// Whether anything comes from the peer after it was asked for an acknowledgement.
async fn still_answers(link: &Link) -> bool {
    let heard = || link.connection.stats().udp_rx.datagrams;
    let before = heard();
    link.knock.notify_one();
    let until = Instant::now() + ANSWERS_WITHIN;
    while link.is_up() && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
        if heard() > before {
            return link.is_up();
        }
    }
    false
}

pub(super) fn closed_with(connection: &quinn::Connection, code: VarInt) -> bool {
    matches!(connection.close_reason(),
        Some(quinn::ConnectionError::ApplicationClosed(close)) if close.error_code == code)
}

/// Says who we are and hears who the peer is. Who dialled greets second, so that it can still step back where a link to
/// this process of the peer's stands already: an address tells nothing of who is there, a dial may be answered late, and
/// a second link would cost the first one's tunnels.
async fn greet(
    inner: &Inner,
    connection: &quinn::Connection,
    peer: PeerId,
    role: Role,
) -> Result<(Hello, Control), DialError> {
    let said = match role {
        Role::Accepted => Some(say_hello(inner, connection, peer).await?),
        Role::Dialled => None,
    };
    let (hello, recv) = hear_hello(connection).await?;
    if role == Role::Dialled && inner.table().stands(peer, hello.session) {
        return Err(DialError::Duplicate);
    }
    if is_copy(inner, connection, peer, hello.session).await {
        return Err(DialError::Copy);
    }
    let (send, offers, tier) = match said {
        Some(said) => said,
        None => say_hello(inner, connection, peer).await?,
    };
    let control = Control {
        send,
        recv,
        offers,
        tier,
    };
    Ok((hello, control))
}

async fn say_hello(
    inner: &Inner,
    connection: &quinn::Connection,
    peer: PeerId,
) -> Result<(SendStream, watch::Receiver<Lends>, Tier), WireError> {
    let mut offers = inner.offers.clone();
    let tier = inner.trust.tier(peer);
    let uplinks = offers.borrow_and_update().to(tier);
    let hello = Hello {
        name: inner.name.clone(),
        session: inner.session,
        uplinks,
    };
    let mut send = connection.open_uni().await.map_err(|e| WireError::Io(e.into()))?;
    wire::send(&mut send, &Message::Hello(hello)).await?;
    Ok((send, offers, tier))
}

async fn hear_hello(connection: &quinn::Connection) -> Result<(Hello, RecvStream), WireError> {
    let mut recv = connection
        .accept_uni()
        .await
        .map_err(|e| WireError::Io(e.into()))?;
    match wire::receive(&mut recv).await? {
        Message::Hello(hello) => Ok((hello, recv)),
        _ => Err(WireError::Malformed),
    }
}
