//! Those who mean harm, or are merely strange: floods of mDNS and of QUIC handshakes, and peers that speak as they like.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of tests: its helpers fail them, and each file uses a part of it"
)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tributary::identity::{DeviceKey, tls_client, tls_server};
use tributary::link::wire::Hello;

use super::lab::Peer;

/// Kinds of frames, as `link::wire` has them.
pub const HELLO: u16 = 1;
pub const OFFERS: u16 = 2;
pub const HOME: u16 = 4;

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

/// A frame of a control stream or of the head of a tunnel; `more` is what a later version appends.
pub fn frame(kind: u16, body: &impl Serialize, more: &[u8]) -> Vec<u8> {
    let mut body = postcard::to_stdvec(body).unwrap();
    body.extend_from_slice(more);
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// The greeting of a peer that lends nothing.
pub fn hello(name: &str, session: u64) -> Hello {
    Hello {
        name: name.into(),
        session,
        uplinks: Vec::new(),
    }
}

/// A QUIC endpoint with a key of its own that speaks `alpn`, and takes calls if it is to.
pub fn endpoint(key: &DeviceKey, alpn: &[u8], answers: bool) -> quinn::Endpoint {
    let mut server = tls_server(key).unwrap();
    server.alpn_protocols = vec![alpn.to_vec()];
    let server = QuicServerConfig::try_from(server).unwrap();
    let server = answers.then(|| quinn::ServerConfig::with_crypto(Arc::new(server)));
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let runtime = Arc::new(quinn::TokioRuntime);
    let mut endpoint =
        quinn::Endpoint::new(quinn::EndpointConfig::default(), server, socket, runtime).unwrap();
    endpoint.set_default_client_config(dialling(key, alpn));
    endpoint
}

/// An endpoint of somebody new, that only dials, on this socket.
pub fn endpoint_on(socket: std::net::UdpSocket) -> quinn::Endpoint {
    let key = DeviceKey::ephemeral().unwrap();
    let runtime = Arc::new(quinn::TokioRuntime);
    let mut endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime).unwrap();
    endpoint.set_default_client_config(dialling(&key, tributary::identity::ALPN));
    endpoint
}

fn dialling(key: &DeviceKey, alpn: &[u8]) -> quinn::ClientConfig {
    let mut client = tls_client(key).unwrap();
    client.alpn_protocols = vec![alpn.to_vec()];
    let client = QuicClientConfig::try_from(client).unwrap();
    let mut client = quinn::ClientConfig::new(Arc::new(client));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    client.transport_config(Arc::new(transport));
    client
}

/// Sends `per_second` of what `next` makes, at an even pace, until told to end; returns how many it was.
fn flood(
    per_second: u64,
    end: &AtomicBool,
    sent: &AtomicU64,
    mut next: impl FnMut(u64) -> io::Result<usize>,
) -> io::Result<()> {
    let began = Instant::now();
    let mut count = 0;
    while !end.load(Ordering::Relaxed) {
        let due = began.elapsed().as_millis() as u64 * per_second / 1000;
        while count < due {
            // A full queue loses it, as a full line would.
            if next(count).is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
            count += 1;
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Runs `during` while `attack` goes on in a thread of the attacker's namespace; gives what it returned, what was sent in
/// that time, and how long it took.
#[track_caller]
pub fn under<T>(
    attacker: &Peer,
    attack: impl FnOnce(&AtomicBool, &AtomicU64) -> io::Result<()> + Send,
    during: impl FnOnce() -> T,
) -> (T, u64, Duration) {
    let (end, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    let result = thread::scope(|scope| {
        let attacking = scope.spawn(|| attacker.inside(|| attack(&end, &sent)));
        // Also where the test fails: else it would wait for the attack for ever.
        let stop = Stop(&end);
        let result = during();
        drop(stop);
        attacking.join().unwrap();
        result
    });
    (result, sent.load(Ordering::Relaxed), began.elapsed())
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// First packets of QUIC handshakes, each with a complete ClientHello, from all over the LAN: none of the senders exists.
pub fn handshakes(
    target: SocketAddrV4,
    per_second: u64,
    end: &AtomicBool,
    sent: &AtomicU64,
) -> io::Result<()> {
    /// Made before: to make one costs more than to refuse it.
    const DISTINCT: usize = 2000;
    let key = DeviceKey::ephemeral().map_err(io::Error::other)?;
    let client = dialling(&key, tributary::identity::ALPN);
    let config = Arc::new(quinn::EndpointConfig::default());
    let mut endpoint = quinn_proto::Endpoint::new(config, None, false, None);
    let first: Vec<_> = (0..DISTINCT)
        .map(|_| first_packet(&mut endpoint, &client, target))
        .collect();
    flood(per_second, end, sent, |n| {
        let source = Ipv4Addr::new(10, 77, 0, 100 + (n % 150) as u8);
        let port = 1024 + (n / 150 % 60_000) as u16;
        let packet = &first[n as usize % DISTINCT];
        spoof(SocketAddrV4::new(source, port), target, packet)
    })
}

/// The first packet of a real peer's handshake with `target`.
pub fn initial(target: SocketAddrV4) -> Vec<u8> {
    let client = dialling(&DeviceKey::ephemeral().unwrap(), tributary::identity::ALPN);
    let config = Arc::new(quinn::EndpointConfig::default());
    let mut endpoint = quinn_proto::Endpoint::new(config, None, false, None);
    first_packet(&mut endpoint, &client, target)
}

fn first_packet(
    endpoint: &mut quinn_proto::Endpoint,
    client: &quinn::ClientConfig,
    target: SocketAddrV4,
) -> Vec<u8> {
    let now = Instant::now();
    let connection = endpoint.connect(now, client.clone(), target.into(), "peer.invalid");
    let (_, mut connection) = connection.unwrap();
    let mut packet = Vec::new();
    let _ = connection.poll_transmit(now, 1, &mut packet);
    packet
}

/// Sends a datagram as if another host had.
pub fn spoof(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<usize> {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
    raw.set_header_included_v4(true)?;
    raw.send_to(&datagram(from, to, payload), &SocketAddr::from(to).into())
}

/// What makes a QUIC endpoint that answers everybody answer at once: a version that nobody speaks, a real first packet, and
/// a packet of a connection that does not exist.
pub fn quic_probes(target: SocketAddrV4) -> Vec<Vec<u8>> {
    let mut unknown = vec![
        0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1, 2, 3, 4, 5, 6, 7, 8,
    ];
    unknown.resize(1200, 0);
    let mut of_nothing = vec![0x5a; 200];
    of_nothing[0] = 0x40;
    vec![unknown, initial(target), of_nothing]
}

/// Asks who is there, as a resolver without multicast would.
pub const WHO_IS_THERE: &[u8] = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\x0a_tributary\x04_udp\x05local\0\0\x0c\0\x01";

/// Sends each of these to `target` from a port of its own; how many bytes came back in `patience`.
pub fn answered(target: SocketAddrV4, probes: &[Vec<u8>], patience: Duration) -> Vec<usize> {
    let sockets: Vec<_> = probes
        .iter()
        .map(|probe| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            // A scan may be told by ICMP that nobody listens.
            let _ = socket.send_to(probe, target);
            socket
        })
        .collect();
    let until = Instant::now() + patience;
    let bytes = |socket: std::net::UdpSocket| {
        let (mut came, mut packet) = (0, [0; 2048]);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            socket.set_read_timeout(Some(left)).unwrap();
            match socket.recv(&mut packet) {
                Ok(length) => came += length,
                Err(_) => return came,
            }
        }
    };
    sockets.into_iter().map(bytes).collect()
}

/// An IPv4 packet with a UDP datagram, without a UDP checksum, which IPv4 allows.
fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = |of: usize| u16::try_from(of).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend(length(28 + payload.len()));
    // No fragment, TTL 64, UDP; the kernel fills in the header's checksum.
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length(8 + payload.len()));
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// mDNS: 1,000 services of our type that do not exist, and 10,000 SRV and TXT records of other names, in turn.
pub fn mdns(per_second: u64, end: &AtomicBool, sent: &AtomicU64) -> io::Result<()> {
    let socket = mdns_socket()?;
    let group: SocketAddr = ([224, 0, 0, 251], 5353).into();
    flood(per_second, end, sent, |n| {
        let packet = if n % 2 == 0 {
            let service = (n / 2 % 1000) as u16;
            let host = Ipv4Addr::new(10, 77, 0, 100 + (service % 150) as u8);
            announcement(&format!("{service:08x}"), host, 7436, &["v=1"])
        } else {
            orphans(n / 2 % 10_000)
        };
        socket.send_to(&packet, group)
    })
}

/// Announces a peer of that name once, with these TXT strings.
fn announce(instance: &str, host: Ipv4Addr, port: u16, txt: &[&str]) -> io::Result<()> {
    let group: SocketAddr = ([224, 0, 0, 251], 5353).into();
    let packet = announcement(instance, host, port, txt);
    mdns_socket()?.send_to(&packet, group).map(drop)
}

/// Announces a peer of that name until somebody calls it.
pub async fn called(
    endpoint: &quinn::Endpoint,
    instance: &str,
    host: Ipv4Addr,
    txt: &[&str],
) -> quinn::Incoming {
    let port = endpoint.local_addr().unwrap().port();
    loop {
        announce(instance, host, port, txt).unwrap();
        // A single packet may come before anybody listens.
        let call = tokio::time::timeout(Duration::from_secs(1), endpoint.accept());
        if let Ok(call) = call.await {
            return call.unwrap();
        }
    }
}

/// A socket that speaks mDNS on the LAN, from the address of that interface.
pub fn mdns_socket() -> io::Result<std::net::UdpSocket> {
    mdns_socket_at(Ipv4Addr::UNSPECIFIED, 5353)
}

/// The same from this address and port.
pub fn mdns_socket_at(from: Ipv4Addr, port: u16) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from((from, port)).into())?;
    socket.bind_device(Some(b"lan0"))?;
    socket.set_multicast_ttl_v4(255)?;
    Ok(socket.into())
}

/// What a peer of that name says of itself.
pub fn announcement(instance: &str, host: Ipv4Addr, port: u16, txt: &[&str]) -> Vec<u8> {
    let service = ["_tributary", "_udp", "local"];
    let full = [&[instance], &service[..]].concat();
    let host_name = [instance, "local"];
    let mut srv = vec![0, 0, 0, 0];
    srv.extend(port.to_be_bytes());
    srv.extend(name(&host_name));
    let mut texts = Vec::new();
    for text in txt {
        texts.push(text.len() as u8);
        texts.extend(text.bytes());
    }
    let mut packet = header(4);
    packet.extend(record(&service, 12, 1, 4500, &name(&full)));
    packet.extend(record(&full, 33, 0x8001, 120, &srv));
    packet.extend(record(&full, 16, 0x8001, 4500, &texts));
    packet.extend(record(&host_name, 1, 0x8001, 120, &host.octets()));
    packet
}

/// An SRV and a TXT record that belong to no service.
fn orphans(number: u64) -> Vec<u8> {
    let label = format!("orphan{number:012}");
    let owner = [label.as_str(), "_other", "_tcp", "local"];
    let mut srv = vec![0, 0, 0, 0, 0, 80];
    srv.extend(name(&["somewhere", "local"]));
    let mut packet = header(2);
    packet.extend(record(&owner, 33, 0x8001, 4500, &srv));
    packet.extend(record(&owner, 16, 0x8001, 4500, &[3, b'a', b'=', b'b']));
    packet
}

/// The head of a message with so many answers.
pub fn header(answers: u8) -> Vec<u8> {
    vec![0, 0, 0x84, 0, 0, 0, 0, answers, 0, 0, 0, 0]
}

/// A name on the wire.
pub fn name(labels: &[&str]) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in labels {
        wire.push(label.len() as u8);
        wire.extend(label.bytes());
    }
    wire.push(0);
    wire
}

/// A resource record on the wire.
pub fn record(owner: &[&str], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut wire = name(owner);
    wire.extend(kind.to_be_bytes());
    wire.extend(class.to_be_bytes());
    wire.extend(ttl.to_be_bytes());
    wire.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    wire.extend(data);
    wire
}
