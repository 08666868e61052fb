//! TCP connections that leave by one uplink and no other.
//!
//! Each connection takes a fresh socket: a socket once bound to a device cannot be bound to another without privilege.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::uplink::Uplink;
use crate::uplink::connection;
use crate::uplink::limit::Limiter;

/// Silence before the kernel asks whether the other end is still there; under most routers' NAT timeouts.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between its questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered questions before the connection is given up.
const KEEPALIVE_RETRIES: u32 = 3;

/// Connects to `to` by `uplink`, within `limit`: bound to its device and source address, without Nagle's delay, with
/// keepalive, with little that waits unsent, and with a receive buffer that suits `limiter`, which is also told how long it
/// took. The socket blocks
/// nothing.
///
/// # Errors
/// `AddrNotAvailable` if the uplink has no address of that family, `TimedOut` after `limit`, else the kernel's own.
pub async fn connect(
    uplink: &Uplink,
    to: SocketAddr,
    limit: Duration,
    limiter: &Limiter,
) -> io::Result<TcpStream> {
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    let socket = open(uplink, to.ip())?;
    if let Some(buffer) = limiter.buffer_for_another() {
        // Before it connects: a window that was once promised cannot be taken back.
        socket.set_recv_buffer_size(buffer)?;
    }
    let socket = TcpSocket::from_std_stream(socket.into());
    let began = Instant::now();
    let late = |_| {
        let what = format!("no answer from {to} by {} in {limit:?}", uplink.name);
        io::Error::new(io::ErrorKind::TimedOut, what)
    };
    let stream = tokio::time::timeout(limit, socket.connect(to))
        .await
        .map_err(late)??;
    limiter.connected_in(began.elapsed());
    Ok(stream)
}

fn open(uplink: &Uplink, to: IpAddr) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if uplink.bind {
        bind_device(&socket, &uplink.name)?;
        // The name is what the kernel binds to, and meanwhile another stick may have it: its bytes are not for that one.
        if if_nametoindex(uplink.name.as_str())? != uplink.index {
            return Err(Errno::ENODEV.into());
        }
    }
    match uplink.source(to) {
        Some(source) => socket.bind(&SocketAddr::new(source, 0).into())?,
        // One set up by hand may leave the source to the kernel.
        None if !uplink.bind => {}
        None => {
            let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            let what = format!("{} has no {family}", uplink.name);
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what));
        }
    }
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    connection::prepare(&socket);
    Ok(socket)
}

/// Before Linux 5.7 this took a privilege. Without it the source address alone decides, which leads out of the right
/// interface only where the routes are set up by source.
pub(super) fn bind_device(socket: &Socket, name: &str) -> io::Result<()> {
    static TOLD: Once = Once::new();
    match socket.bind_device(Some(name.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            TOLD.call_once(|| {
                tracing::warn!(
                    %error,
                    "sockets cannot be bound to an interface here (Linux before 5.7 needs CAP_NET_RAW for it); \
                     falling back to source addresses"
                );
            });
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn unlimited(uplink: &Uplink, to: SocketAddr) -> io::Result<TcpStream> {
        connect(uplink, to, LIMIT, &Limiter::default()).await
    }

    fn loopback() -> Uplink {
        Uplink {
            v4: Some([127, 0, 0, 9].into()),
            ..Uplink::fixture(1, "lo")
        }
    }

    #[tokio::test]
    async fn a_connection_leaves_by_the_uplinks_device_and_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to, uplink) = (listener.local_addr().unwrap(), loopback());
        let (stream, accepted) = tokio::join!(unlimited(&uplink, to), listener.accept());
        let stream = stream.unwrap();
        assert_eq!(accepted.unwrap().1.ip(), IpAddr::from([127, 0, 0, 9]));
        assert!(stream.nodelay().unwrap());
        let socket = socket2::SockRef::from(&stream);
        assert_eq!(socket.device().unwrap().as_deref(), Some(&b"lo"[..]));
        assert!(socket.keepalive().unwrap());
    }

    #[tokio::test]
    async fn a_mapped_address_is_dialled_as_ipv4() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), port);
        let uplink = loopback();
        let (stream, _) = tokio::join!(unlimited(&uplink, mapped), listener.accept());
        assert!(stream.unwrap().peer_addr().unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn a_family_the_uplink_lacks_is_refused_before_anything_is_sent() {
        let to = "[2001:db8::1]:80".parse().unwrap();
        let error = unlimited(&loopback(), to).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(error.to_string(), "lo has no IPv6");
    }

    #[tokio::test]
    async fn an_uplink_set_up_by_hand_binds_no_device_and_leaves_the_source_to_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut uplink = loopback();
        (uplink.bind, uplink.v4, uplink.name) = (false, None, "by hand".into());
        let (stream, _) = tokio::join!(unlimited(&uplink, to), listener.accept());
        assert_eq!(socket2::SockRef::from(&stream.unwrap()).device().unwrap(), None);
    }

    #[tokio::test]
    async fn a_device_that_only_has_the_name_is_not_taken_for_it() {
        let mut uplink = loopback();
        uplink.index += 1_000_000;
        let to = "127.0.0.1:9".parse().unwrap();
        let error = connect(&uplink, to, LIMIT, &Limiter::default())
            .await
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENODEV as i32));
    }

    #[tokio::test]
    async fn a_device_that_is_gone_is_an_error_not_another_way_out() {
        let mut uplink = loopback();
        uplink.name = "gone0".into();
        assert!(unlimited(&uplink, "127.0.0.1:9".parse().unwrap()).await.is_err());
    }
}
