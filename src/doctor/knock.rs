//! Asks whether a QUIC endpoint is at an address, without becoming its peer.
//!
//! A packet of a version that is reserved for this (RFC 9000, section 15) is answered with the versions there are, before
//! anything is kept or proved; it is as large as a real first packet, so a path that lets this through lets a handshake
//! through. Invariants: no state at either end; TTL 1, so nothing leaves the LAN.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;

use super::facts::Reach;

/// Nobody speaks a version of this pattern; whoever speaks QUIC says so.
const NO_VERSION: u32 = 0x1a2a_3a4a;
/// Smaller first packets are dropped (RFC 9000, section 14.1).
const FIRST_PACKET: usize = 1200;
const ID: usize = 8;
/// When to ask, since the first time: a lost packet must not look like a firewall.
const ASK_AGAIN: Duration = Duration::from_millis(300);
const ASKED: u32 = 3;

/// What comes back from `address` within [`ASK_AGAIN`] × [`ASKED`]. `Closed`: the device, or one before it, says no.
pub(super) async fn knock(address: SocketAddr) -> Reach {
    let mut id = [0; ID];
    // Without randomness another's answer could be taken for ours, which hardly matters here.
    let _ = SystemRandom::new().fill(&mut id);
    match ask(address, &id).await {
        Ok(true) => Reach::Answers,
        Ok(false) => Reach::Silent,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied => Reach::Closed,
            _ => Reach::Silent,
        },
    }
}

async fn ask(address: SocketAddr, id: &[u8; ID]) -> io::Result<bool> {
    let socket = if address.is_ipv4() {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.set_ttl(1)?;
        socket
    } else {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?;
        socket2::SockRef::from(&socket).set_unicast_hops_v6(1)?;
        socket
    };
    // Only a connected socket hears that nobody listens there.
    socket.connect(address).await?;
    let question = question(id);
    for _ in 0..ASKED {
        socket.send(&question).await?;
        let answered = tokio::time::timeout(ASK_AGAIN, answer(&socket, id)).await;
        match answered {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(false)
}

async fn answer(socket: &UdpSocket, id: &[u8; ID]) -> io::Result<()> {
    let mut packet = [0; 128];
    loop {
        let length = socket.recv(&mut packet).await?;
        if is_answer(packet.get(..length).unwrap_or_default(), id) {
            return Ok(());
        }
    }
}

/// A long header with the same id for both ends, and nothing behind it.
fn question(id: &[u8; ID]) -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend_from_slice(&NO_VERSION.to_be_bytes());
    for _ in 0..2 {
        packet.push(ID as u8);
        packet.extend_from_slice(id);
    }
    packet.resize(FIRST_PACKET, 0);
    packet
}

/// Version Negotiation: a long header of version 0 with our ids.
fn is_answer(packet: &[u8], id: &[u8; ID]) -> bool {
    let long = packet.first().is_some_and(|b| b & 0x80 != 0);
    let version = packet.get(1..5) == Some(&[0; 4]);
    let ours = packet.get(5) == Some(&(ID as u8)) && packet.get(6..6 + ID) == Some(id);
    long && version && ours
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use crate::identity::DeviceKey;
    use crate::link::{LinkConfig, Links};
    use crate::task::Tasks;

    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

    #[tokio::test]
    async fn a_peer_answers_and_has_no_link_of_it() {
        let tasks = Tasks::new();
        let key = DeviceKey::ephemeral().unwrap();
        let config = LinkConfig {
            port: 0,
            name: "here".into(),
            offers: watch::channel(crate::link::Lends::default()).1,
            home: watch::channel(crate::link::Home::default()).1,
            gate: Arc::new(|from| from.ip().is_loopback()),
            trust: crate::trust::Trust::none(&key),
        };
        let (links, mut events, _tunnels) = Links::start(config, &key, &tasks).unwrap();
        let address = SocketAddr::from((HERE, links.port().unwrap()));
        assert_eq!(knock(address).await, Reach::Answers);
        assert!(events.try_recv().is_err(), "nobody joined");
        tasks.stop(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_closed_and_a_mute_one_silent() {
        let mute = UdpSocket::bind((HERE, 0)).await.unwrap();
        assert_eq!(knock(mute.local_addr().unwrap()).await, Reach::Silent);
        let gone = mute.local_addr().unwrap();
        drop(mute);
        assert_eq!(knock(gone).await, Reach::Closed);
    }

    #[test]
    fn only_an_answer_to_this_question_counts() {
        let id = [7; ID];
        let mut answer = vec![0x80, 0, 0, 0, 0, 8];
        answer.extend_from_slice(&id);
        assert!(is_answer(&answer, &id));
        assert!(!is_answer(&answer, &[8; ID]));
        assert!(!is_answer(&question(&id), &id), "an echo is none");
        assert!(!is_answer(&[], &id));
        assert_eq!(question(&id).len(), FIRST_PACKET);
    }
}
