//! The QUIC endpoint: one UDP socket that cannot be reached from behind a router, with limits for a 512 MB device.
//!
//! TTL 1 means that the first router drops what we send: no host behind one can complete a handshake, whatever it
//! spoofs (SEC-F1); and whoever is not on the LAN is not heard in the first place ([`Gated`]). Every limit quinn has is set
//! here, because its defaults are made for servers.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, Runtime, ServerConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::identity::{self, DeviceKey};

use super::socket::Gated;
use super::{Gate, LinkError};

/// A peer that is gone is known to be after this; its work is taken over by others before (see `stripe`).
const IDLE_TIMEOUT_MS: u32 = 3_500;
/// Three of them fit into the idle timeout, so two lost in a row do no harm.
const KEEP_ALIVE: Duration = Duration::from_millis(1_000);
/// Streams one peer may have open. Twice what the relay lets one peer use, because quinn tells the other end of freed
/// streams only by the eighth: a borrower at the relay's limit must still be able to ask, to hear that it is busy.
const MAX_TUNNELS: u32 = 32;
/// Streams of a member: the household's (`share`) come on top, 8 watches and 16 fetches, and again some to be told that there
/// are too many.
const MAX_MEMBERS_STREAMS: u32 = MAX_TUNNELS + 32;
/// The control stream, and one spare while it is replaced.
const MAX_UNI: u32 = 2;
/// Bandwidth-delay product of gigabit Ethernet at 8 ms, a loaded Wi-Fi's round trip.
const STREAM_WINDOW: u32 = 1 << 20;
/// Four busy tunnels at once; what a borrower may have to buffer for one lender.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What a peer may send unread before it is a member or we borrow from it: what it uploads through us passes at a round trip
/// of 8 ms with 260 Mbit/s, and all 48 that joined by themselves cost 12 MiB together (SEC-A13, SEC-A15).
const NARROW_WINDOW: u32 = 256 << 10;
/// Streams before the peer has greeted: nobody needs one.
const UNGREETED_TUNNELS: u32 = 8;
/// What a lender buffers for one borrower until it is acknowledged: with the relay's 64 KiB for each of 16 tunnels, a peer
/// that takes nothing costs 4 MiB (FLT-33).
const SEND_WINDOW: u64 = 3 << 20;
/// Handshakes under way at most (SEC-A14).
pub(super) const MAX_HANDSHAKES: usize = 64;
/// First packets waiting to be looked at, which happens at once: what comes beyond is answered with a refusal, and to
/// answer a flood is what must not happen.
const MAX_WAITING: usize = 512;
/// A LAN's round trip is far below QUIC's default guess of 333 ms, which delays the first retransmissions.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Packets for each acknowledgement (draft-ietf-quic-ack-frequency). QUIC's usual 2 cost a fifth of a transfer's CPU; more
/// than the first congestion window holds would make it wait for [`ACK_WITHIN`].
const ACK_EVERY: u32 = 10;
/// An acknowledgement waits no longer for more packets to acknowledge.
const ACK_WITHIN: Duration = Duration::from_millis(5);
/// Reports (`reports`) waiting to be sent or to be looked at, each of less than 60 bytes with what it costs to keep: one
/// for each tunnel. Of more, the oldest are lost, which is harmless.
const REPORTS: usize = 2 << 10;
/// Room for bursts: a gigabit LAN delivers 1 MiB in the 8 ms a busy Pi may take to get to it.
pub const SOCKET_BUFFER: usize = 1 << 20;

/// Binds the socket and makes the endpoint with the settings for dialling from it.
pub(super) fn open(
    key: &DeviceKey,
    port: u16,
    gate: Gate,
) -> Result<(quinn::Endpoint, quinn::ClientConfig), LinkError> {
    let transport = Arc::new(transport());
    let server = identity::tls_server(key).map_err(LinkError::Tls)?;
    let server = QuicServerConfig::try_from(server).map_err(|_| LinkError::NoInitialCipher)?;
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server
        .transport_config(Arc::clone(&transport))
        .migration(false)
        .max_incoming(MAX_WAITING)
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total(1024 * 1024);
    let client = identity::tls_client(key).map_err(LinkError::Tls)?;
    let client = QuicClientConfig::try_from(client).map_err(|_| LinkError::NoInitialCipher)?;
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    client.transport_config(transport);

    let endpoint = || {
        let runtime = Arc::new(TokioRuntime);
        let socket = Gated::new(runtime.wrap_udp_socket(bind(port)?)?, gate);
        let config = EndpointConfig::default();
        quinn::Endpoint::new_with_abstract_socket(config, Some(server), Arc::new(socket), runtime)
    };
    let endpoint = endpoint().map_err(|source| LinkError::Bind { port, source })?;
    Ok((endpoint, client))
}

/// The window of a link that brings us much: a member's, and one by which we borrow.
pub(super) const fn wide() -> VarInt {
    VarInt::from_u32(CONNECTION_WINDOW)
}

/// The streams of a peer that has greeted.
pub(super) const fn streams(member: bool) -> VarInt {
    VarInt::from_u32(if member { MAX_MEMBERS_STREAMS } else { MAX_TUNNELS })
}

fn transport() -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY))
        .max_ack_delay(Some(ACK_WITHIN));
    let mut transport = TransportConfig::default();
    transport
        .ack_frequency_config(Some(acks))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(UNGREETED_TUNNELS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(NARROW_WINDOW))
        .send_window(SEND_WINDOW)
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(Some(REPORTS))
        .datagram_send_buffer_size(REPORTS);
    transport
}

/// Both families on one socket; IPv4 alone where the kernel has no IPv6.
fn bind(port: u16) -> io::Result<std::net::UdpSocket> {
    match bind_v6(port) {
        Ok(socket) => Ok(socket),
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32) => bind_v4(port),
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => bind_v4(port),
        Err(e) => Err(e),
    }
}

fn bind_v6(port: u16) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.set_unicast_hops_v6(1)?;
    // For what goes to v4-mapped addresses, Linux takes this one.
    socket.set_ttl_v4(1)?;
    finish(socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
}

fn bind_v4(port: u16) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_ttl_v4(1)?;
    finish(socket, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
}

fn finish(socket: Socket, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    // The kernel's own maximum may be lower; then it gives what it can.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
