//! mDNS on a fixed set of interfaces: one socket for each interface and family, that hears the group and speaks to it.
//!
//! A socket is bound to its interface and to the group's address: nothing that comes in elsewhere, or for this host alone,
//! reaches it, so no other mDNS program of this device loses a packet to it. Who says where a peer is must say it from
//! there: a packet counts for nothing unless its own source is among the addresses it names.
//!
//! Invariants: what a source may make us read, and all of them together, is bounded a second ([`Ration`]); what is beyond
//! that costs a system call and a look for a word. An answer goes to the group at most once a second and socket.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::discovery::Candidate;
use crate::discovery::packet::{self, Announcement, MAX_PACKET, Packet, Sighting};
use crate::task::Tasks;
use crate::uplink::{Interface, Network};

const PORT: u16 = 5353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// As mDNS demands of what is sent (RFC 6762, 11).
const HOPS: u32 = 255;
/// What waits to be read: the kernel drops the rest of a flood, which costs us nothing.
const SOCKET_BUFFER: usize = 64 << 10;
/// Things heard that the task has not come to yet; more are dropped, as the network drops them.
const QUEUE: usize = 128;
/// Addresses kept of one candidate: a device has a few; more would only be more to dial in vain.
const MAX_ADDRESSES: usize = 8;
/// Packets about us that are read of one source, in a second and at once: a peer sends some ten at its start.
const SOURCE: (f64, f64) = (10.0, 40.0);
/// And of all of them.
const ALL: (f64, f64) = (200.0, 400.0);
/// Sources remembered. When there are more, all begin anew, within what all of them may.
const MAX_SOURCES: usize = 256;
/// Packets taken from a socket before the other tasks have their turn.
const BURST: u32 = 32;
/// Who answers for a name that others have too waits so long, lest all speak at once (RFC 6762, 6).
const ANSWER_AFTER: (u64, u64) = (20, 120);
/// Between two answers to the group (RFC 6762, 6).
const ANSWER_AGAIN: Duration = Duration::from_secs(1);

/// An interface to be used, with the addresses whose change is worth new sockets: IPv4's, or IPv6's where there is no
/// IPv4. Others are told with the next announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Face {
    index: u32,
    name: String,
    loopback: bool,
    addresses: Vec<IpAddr>,
}

/// The interfaces to use now.
pub(super) fn faces(network: &Network, only: Option<&[String]>) -> Vec<Face> {
    let face = |i: &Interface| {
        let all = || i.addresses.iter().map(|(ip, _)| *ip);
        let v4 = all().any(|ip| ip.is_ipv4());
        Face {
            index: i.index,
            name: i.name.clone(),
            loopback: i.loopback,
            addresses: all().filter(|ip| ip.is_ipv4() == v4).collect(),
        }
    };
    network.lan_interfaces(only).into_iter().map(face).collect()
}

/// Something heard that concerns us.
#[derive(Debug)]
pub(super) struct Heard {
    /// The socket's place in the session.
    voice: usize,
    from: SocketAddr,
    packet: Packet,
}

/// The sockets, and the tasks that listen to them until [`Session::close`].
pub(super) struct Session {
    announcement: Announcement,
    voices: Vec<Voice>,
    heard: mpsc::Receiver<Heard>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Voice {
    socket: Arc<UdpSocket>,
    face: u32,
    v4: bool,
    /// When to answer the group, if it asked.
    answer_at: Option<Instant>,
    answered: Option<Instant>,
}

impl Session {
    /// Opens the sockets. An interface or family that will not is left out, and said.
    ///
    /// # Errors
    /// Where there is none that will.
    pub(super) fn open(announcement: &Announcement, faces: &[Face], tasks: &Tasks) -> io::Result<Self> {
        let tasks = tasks.child();
        let (sender, heard) = mpsc::channel(QUEUE);
        let mut voices: Vec<Voice> = Vec::new();
        let mut failure = None;
        for (face, v4) in faces.iter().flat_map(|face| [(face, true), (face, false)]) {
            if !speaks(face, v4) {
                continue;
            }
            match bind(face, v4) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    let ear = Ear {
                        socket: Arc::clone(&socket),
                        voice: voices.len(),
                        ours: announcement.clone(),
                        heard: sender.clone(),
                    };
                    tasks.spawn("mdns", ear.listen());
                    voices.push(Voice {
                        socket,
                        face: face.index,
                        v4,
                        answer_at: None,
                        answered: None,
                    });
                }
                Err(error) => {
                    let family = if v4 { "IPv4" } else { "IPv6" };
                    tracing::debug!(interface = %face.name, family, %error, "no mDNS there");
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if voices.is_empty() => Err(error),
            _ => Ok(Self {
                announcement: announcement.clone(),
                voices,
                heard,
                tasks,
            }),
        }
    }

    /// The next thing heard.
    pub(super) async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // Its sockets have all failed: whoever waits hears of the network's change, and opens others.
            None => std::future::pending().await,
        }
    }

    /// Asks who else is there.
    pub(super) fn ask(&self) {
        self.say(|_| Some(packet::question()));
    }

    /// Says that this device is there.
    pub(super) fn announce(&self, network: &Network) {
        self.say(|voice| {
            Some(packet::announcement(
                &self.announcement,
                &voice.addresses(network)?,
            ))
        });
    }

    /// What of a thing heard is a peer's, and where it can be dialled; answers a question, now or a little later.
    pub(super) fn take(
        &mut self,
        heard: Heard,
        network: &Network,
        only: Option<&[String]>,
    ) -> Vec<Result<Candidate, String>> {
        let Some(voice) = self.voices.get_mut(heard.voice) else {
            return Vec::new();
        };
        match heard.packet {
            Packet::Question { id, question } if heard.from.port() != PORT => {
                if let Some(addresses) = voice.addresses(network) {
                    let answer = packet::legacy(&self.announcement, &addresses, id, &question);
                    // Who asked so will ask again.
                    let _ = voice.socket.try_send_to(&answer, heard.from);
                }
                Vec::new()
            }
            Packet::Question { .. } => {
                let earliest = voice.answered.map(|answered| answered + ANSWER_AGAIN);
                let soon = Instant::now() + jitter();
                voice
                    .answer_at
                    .get_or_insert(earliest.map_or(soon, |e| e.max(soon)));
                Vec::new()
            }
            Packet::Said(sightings) => {
                let face = voice.face;
                let judge = |s| {
                    judge(
                        s,
                        heard.from.ip(),
                        face,
                        network,
                        only,
                        &self.announcement.instance,
                    )
                };
                sightings.into_iter().filter_map(judge).collect()
            }
        }
    }

    /// When an answer is due.
    pub(super) fn answer_at(&self) -> Option<Instant> {
        self.voices.iter().filter_map(|voice| voice.answer_at).min()
    }

    /// Gives the answers that are due.
    pub(super) fn answer(&mut self, network: &Network) {
        let now = Instant::now();
        for voice in &mut self.voices {
            if voice.answer_at.is_some_and(|at| at <= now) {
                (voice.answer_at, voice.answered) = (None, Some(now));
                if let Some(addresses) = voice.addresses(network) {
                    voice.say(&packet::announcement(&self.announcement, &addresses));
                }
            }
        }
    }

    /// Says goodbye and closes the sockets.
    pub(super) fn close(self) {
        self.say(|_| Some(packet::goodbye(&self.announcement)));
        self.tasks.token().cancel();
    }

    fn say(&self, what: impl Fn(&Voice) -> Option<Vec<u8>>) {
        for voice in &self.voices {
            if let Some(packet) = what(voice) {
                voice.say(&packet);
            }
        }
    }
}

impl Voice {
    /// To the group. What does not get out (no carrier, a full queue) is lost, as on the way: it is said again.
    fn say(&self, packet: &[u8]) {
        let to = if self.v4 {
            SocketAddr::from((GROUP_V4, PORT))
        } else {
            SocketAddrV6::new(GROUP_V6, PORT, 0, self.face).into()
        };
        let _ = self.socket.try_send_to(packet, to);
    }

    /// The interface's addresses now, if it is still there.
    fn addresses(&self, network: &Network) -> Option<Vec<IpAddr>> {
        let interface = network.interfaces.iter().find(|i| i.index == self.face)?;
        let mut addresses: Vec<IpAddr> = interface.addresses.iter().map(|(ip, _)| *ip).collect();
        // A temporary address more or less must not crowd out the others.
        addresses.sort_by_key(|ip| preference(*ip));
        addresses.truncate(MAX_ADDRESSES);
        Some(addresses)
    }
}

/// IPv6 multicast does not come back on every kernel's loopback, and IPv4 there is never missing.
fn speaks(face: &Face, v4: bool) -> bool {
    if v4 {
        face.addresses.iter().any(IpAddr::is_ipv4)
    } else {
        !face.loopback
    }
}

fn bind(face: &Face, v4: bool) -> io::Result<UdpSocket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // Others of this device may listen, too: avahi, a second tributary.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(face.name.as_bytes()))?;
    // The kernel's own minimum may be higher.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    if v4 {
        socket.bind(&SocketAddr::from((GROUP_V4, PORT)).into())?;
        socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(face.index))?;
        socket.set_multicast_ttl_v4(HOPS)?;
        socket.set_ttl_v4(HOPS)?;
        socket.set_multicast_loop_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.bind(&SocketAddr::from(SocketAddrV6::new(GROUP_V6, PORT, 0, face.index)).into())?;
        socket.join_multicast_v6(&GROUP_V6, face.index)?;
        socket.set_multicast_if_v6(face.index)?;
        socket.set_multicast_hops_v6(HOPS)?;
        socket.set_unicast_hops_v6(HOPS)?;
        socket.set_multicast_loop_v6(true)?;
    }
    UdpSocket::from_std(socket.into())
}

fn jitter() -> Duration {
    let mut byte = [0];
    // Without randomness all answer at once, which they may.
    let _ = SystemRandom::new().fill(&mut byte);
    let (least, most) = ANSWER_AFTER;
    Duration::from_millis(least + u64::from(byte[0]) * (most - least) / 255)
}

/// `Ok` where a peer is, `Err` with its name where it leaves or can no longer be dialled; `None` if it does not count.
fn judge(
    sighting: Sighting,
    from: IpAddr,
    face: u32,
    network: &Network,
    only: Option<&[String]>,
    ourselves: &str,
) -> Option<Result<Candidate, String>> {
    if sighting.instance == ourselves || !network.is_on_link(from, only) {
        return None;
    }
    if sighting.leaves {
        return Some(Err(sighting.instance));
    }
    if !sighting.addresses.contains(&from.to_canonical()) {
        return None;
    }
    let port = sighting.port;
    let addresses = sighting.addresses.iter().filter(|_| port != 0);
    let mut addresses: Vec<SocketAddr> = addresses
        .filter_map(|ip| dialable(*ip, port, face, network, only))
        .collect();
    addresses.sort_by_key(|address| (preference(address.ip()), *address));
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    let instance = sighting.instance;
    Some(if addresses.is_empty() {
        Err(instance)
    } else {
        Ok(Candidate { instance, addresses })
    })
}

fn dialable(
    ip: IpAddr,
    port: u16,
    face: u32,
    network: &Network,
    only: Option<&[String]>,
) -> Option<SocketAddr> {
    if ip.is_multicast() || ip.is_unspecified() || !network.is_on_link(ip, only) {
        return None;
    }
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(SocketAddrV6::new(v6, port, 0, face).into()),
        _ => Some(SocketAddr::new(ip, port)),
    }
}

const fn preference(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) if !v6.is_unicast_link_local() => 1,
        IpAddr::V6(_) => 2,
    }
}

/// Listens to one socket.
struct Ear {
    socket: Arc<UdpSocket>,
    voice: usize,
    ours: Announcement,
    heard: mpsc::Sender<Heard>,
}

impl Ear {
    /// Until its task is ended.
    async fn listen(self) {
        let mut buffer = vec![0; MAX_PACKET];
        let mut ration = Ration::new(Instant::now());
        let mut taken = 0;
        loop {
            match self.socket.recv_from(&mut buffer).await {
                Ok((length, from)) => self.take(&buffer[..length], from, &mut ration),
                // A device that went away: the network's watch ends this task.
                Err(error) => {
                    tracing::debug!(%error, "mDNS socket");
                    tokio::time::sleep(ANSWER_AGAIN).await;
                }
            }
            taken += 1;
            if taken % BURST == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn take(&self, packet: &[u8], from: SocketAddr, ration: &mut Ration) {
        if !packet::concerns(packet, &self.ours) || !ration.allows(from.ip(), Instant::now()) {
            return;
        }
        if let Some(packet) = packet::read(packet, &self.ours) {
            let _ = self.heard.try_send(Heard {
                voice: self.voice,
                from,
                packet,
            });
        }
    }
}

/// How many packets are read, of each source and of all.
#[derive(Debug)]
struct Ration {
    all: Bucket,
    sources: HashMap<IpAddr, Bucket>,
}

impl Ration {
    fn new(now: Instant) -> Self {
        Self {
            all: Bucket::new(ALL, now),
            sources: HashMap::new(),
        }
    }

    fn allows(&mut self, from: IpAddr, now: Instant) -> bool {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&from) {
            self.sources.clear();
        }
        let source = self
            .sources
            .entry(from)
            .or_insert_with(|| Bucket::new(SOURCE, now));
        // A source beyond its own share takes nothing from the others.
        source.take(SOURCE, now) && self.all.take(ALL, now)
    }
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    filled: Instant,
}

impl Bucket {
    const fn new((_, at_once): (f64, f64), now: Instant) -> Self {
        Self {
            left: at_once,
            filled: now,
        }
    }

    fn take(&mut self, (per_second, at_once): (f64, f64), now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = passed.mul_add(per_second, self.left).min(at_once);
        self.filled = now;
        let granted = self.left >= 1.0;
        if granted {
            self.left -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::types::UplinkKind;

    fn network() -> Network {
        let parse = |cidr: &&str| {
            let (ip, len) = cidr.split_once('/').unwrap();
            (ip.parse().unwrap(), len.parse().unwrap())
        };
        let interface = |index, name: &str, addresses: &[&str]| Interface {
            index,
            name: name.into(),
            kind: UplinkKind::Wired,
            up: true,
            loopback: name == "lo",
            point_to_point: false,
            multicast: name != "lo",
            addresses: addresses.iter().map(parse).collect(),
            default_route: false,
        };
        Network {
            interfaces: vec![
                interface(1, "lo", &["127.0.0.1/8", "::1/128"]),
                interface(2, "eth0", &["192.168.1.7/24", "fd00::7/64", "fe80::7/64"]),
                interface(3, "wan0", &["203.0.113.7/24"]),
            ],
            uplinks: vec![],
        }
    }

    fn found(from: &str, port: u16, addresses: &[&str]) -> Option<Result<Vec<String>, String>> {
        let sighting = Sighting {
            instance: "feedface".into(),
            port,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            leaves: false,
        };
        let judged = judge(sighting, from.parse().unwrap(), 2, &network(), None, "0badcafe")?;
        Some(judged.map(|c| c.addresses.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn only_on_link_addresses_are_kept_ipv4_first() {
        let named = [
            "fe80::9",
            "fd00::9",
            "192.168.1.9",
            "8.8.8.8",
            "203.0.113.9",
            "127.0.0.1",
            "224.0.0.1",
        ];
        let kept = ["192.168.1.9:7", "[fd00::9]:7", "[fe80::9%2]:7"].map(str::to_owned);
        assert_eq!(found("192.168.1.9", 7, &named), Some(Ok(kept.into())));
    }

    #[test]
    fn who_names_others_addresses_but_not_its_own_is_not_believed() {
        assert_eq!(found("192.168.1.8", 7, &["192.168.1.9"]), None);
        assert_eq!(found("8.8.8.8", 7, &["8.8.8.8"]), None);
        assert_eq!(
            found("192.168.1.9", 0, &["192.168.1.9"]),
            Some(Err("feedface".into()))
        );
    }

    #[test]
    fn no_more_than_eight_addresses_are_kept() {
        let many: Vec<String> = (1..=40).map(|n| format!("192.168.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(found("192.168.1.9", 7, &many).unwrap().unwrap().len(), 8);
    }

    #[test]
    fn a_goodbye_counts_from_the_lan_only_and_never_for_ourselves() {
        let gone = |instance: &str, from: &str| {
            let sighting = Sighting {
                instance: instance.into(),
                port: 0,
                addresses: Vec::new(),
                leaves: true,
            };
            judge(sighting, from.parse().unwrap(), 2, &network(), None, "0badcafe")
        };
        assert_eq!(gone("feedface", "192.168.1.9"), Some(Err("feedface".into())));
        assert_eq!(gone("feedface", "8.8.8.8"), None);
        assert_eq!(gone("0badcafe", "192.168.1.9"), None);
    }

    #[test]
    fn a_source_that_floods_is_not_read_and_takes_nothing_from_others() {
        let start = Instant::now();
        let mut ration = Ration::new(start);
        let ip = |n: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n));
        let mut read = |source, at| (0..1000).filter(|_| ration.allows(ip(source), at)).count();
        assert_eq!(read(1, start), 40);
        assert_eq!(read(2, start), 40);
        assert_eq!(read(1, start + Duration::from_secs(1)), 10);
        let many: usize = (0..5000).map(|n| read(n, start + Duration::from_secs(1))).sum();
        assert!(many <= 400, "{many}");
        assert!(ration.sources.len() <= MAX_SOURCES);
    }

    #[test]
    fn a_new_ipv6_address_beside_ipv4_needs_no_new_sockets_and_a_new_ipv4_address_does() {
        let before = faces(&network(), None);
        let mut more = network();
        more.interfaces[1]
            .addresses
            .push(("2001:db8::7".parse().unwrap(), 64));
        assert_eq!(faces(&more, None), before);
        more.interfaces[1]
            .addresses
            .push(("192.168.9.7".parse().unwrap(), 24));
        assert_ne!(faces(&more, None), before);
        let mut only_v6 = network();
        only_v6.interfaces[1].addresses.remove(0);
        let before = faces(&only_v6, None);
        only_v6.interfaces[1]
            .addresses
            .push(("2001:db8::7".parse().unwrap(), 64));
        assert_ne!(faces(&only_v6, None), before);
    }

    #[test]
    fn the_faces_are_the_households_and_loopback_speaks_ipv4_only() {
        let found = faces(&network(), None);
        assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [2]);
        assert!(speaks(&found[0], true) && speaks(&found[0], false));
        let lo = faces(&network(), Some(&["lo".to_owned()]));
        assert_eq!(lo.len(), 1);
        assert!(speaks(&lo[0], true) && !speaks(&lo[0], false));
    }
}
