//! Listens on one LAN interface for multicast DNS: whether our own question comes back, who else says anything, and who of
//! them announces tributary.
//!
//! The library that discovery uses does not tell who sent what, so this speaks mDNS itself, as far as it needs: one question,
//! and of the answers their senders and the ports of our service. Invariants: nothing is announced; what comes in is
//! bounded and only ever a hint; names are read backwards only, so that no packet can make it run in circles.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::discovery::{SERVICE, instance_of};
use crate::types::hex;
use crate::uplink::{Interface, Network};

use super::facts::MulticastFailure;

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const PORT: u16 = 5353;
/// Responders answer within half a second; the second question is for a lost packet, and for answers held back because
/// somebody else had asked less than a second before the first (RFC 6762, section 6).
const ASK_AT: [Duration; 2] = [Duration::ZERO, Duration::from_millis(1_100)];
/// How long to listen.
const LISTEN: Duration = Duration::from_secs(2);
/// The longest legal message.
const MAX_MESSAGE: usize = 9000;
/// Hosts and peers remembered: a household has fewer, a flood must not cost memory.
const MAX_SIGHTINGS: usize = 256;
/// A legal name has at most 127 labels.
const MAX_LABELS: usize = 127;

const PTR: u16 = 12;
const TXT: u16 = 16;
const SRV: u16 = 33;
const INTERNET: u16 = 1;
/// What every responder answers: the kinds of service it has.
const ALL_SERVICES: &str = "_services._dns-sd._udp.local.";

/// What was heard.
#[derive(Clone, Debug, Default)]
pub(super) struct Sightings {
    /// Our own question came back.
    pub(super) itself: bool,
    /// Other devices that said anything.
    pub(super) hosts: BTreeSet<IpAddr>,
    /// Where tributary is announced, by its name there.
    pub(super) peers: BTreeMap<String, SocketAddr>,
}

/// Asks and listens on `interface` for [`LISTEN`].
pub(super) async fn listen(interface: &Interface, network: &Network) -> Result<Sightings, MulticastFailure> {
    let told = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => MulticastFailure::PortTaken,
        _ => MulticastFailure::Other(error.to_string()),
    };
    let (socket, group) = open(interface).map_err(told)?;
    let question = question(&nonce());
    let begun = Instant::now();
    let mut sightings = Sightings::default();
    let mut sent = Ok(0);
    for (n, at) in ASK_AT.iter().enumerate() {
        let until = begun + ASK_AT.get(n + 1).copied().unwrap_or(LISTEN);
        tokio::time::sleep_until(begun + *at).await;
        sent = socket.send_to(&question, group).await;
        // Ends by its time: it never ends by itself.
        let _ = tokio::time::timeout_at(
            until,
            take_in(&socket, &question, interface, network, &mut sightings),
        )
        .await;
    }
    sent.map_err(told)?;
    Ok(sightings)
}

async fn take_in(
    socket: &UdpSocket,
    question: &[u8],
    interface: &Interface,
    network: &Network,
    sightings: &mut Sightings,
) {
    let only = [interface.name.clone()];
    let mut packet = vec![0; MAX_MESSAGE];
    loop {
        // The interface went away: what was heard before stands.
        let Ok((length, from)) = socket.recv_from(&mut packet).await else {
            return;
        };
        let packet = packet.get(..length).unwrap_or_default();
        if network.is_own(from.ip()) {
            sightings.itself |= packet == question;
        } else if network.is_on_link(from.ip(), Some(&only)) && sightings.hosts.len() < MAX_SIGHTINGS {
            sightings.hosts.insert(from.ip());
            for (name, port) in announced(packet) {
                if port != 0 && sightings.peers.len() < MAX_SIGHTINGS {
                    let mut address = from;
                    address.set_port(port);
                    sightings.peers.insert(name, address);
                }
            }
        }
    }
}

/// A socket that shares the port with every responder that lets it, and the group to speak to. IPv4 where there is any.
fn open(interface: &Interface) -> io::Result<(UdpSocket, SocketAddr)> {
    let v4 = interface.addresses.iter().find_map(|(ip, _)| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    });
    let domain = if v4.is_some() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    // Responders that only know this one share with whoever knows it, too.
    let _ = socket.set_reuse_port(true);
    // Without the right to it (before Linux 5.7) senders' addresses still tell the interfaces apart.
    let _ = socket.bind_device(Some(interface.name.as_bytes()));
    let group = if let Some(own) = v4 {
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
        socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(interface.index))?;
        socket.set_multicast_if_v4(&own)?;
        socket.set_multicast_loop_v4(true)?;
        socket.set_multicast_ttl_v4(255)?;
        SocketAddr::from((GROUP_V4, PORT))
    } else {
        socket.set_only_v6(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
        socket.join_multicast_v6(&GROUP_V6, interface.index)?;
        socket.set_multicast_if_v6(interface.index)?;
        socket.set_multicast_loop_v6(true)?;
        socket.set_multicast_hops_v6(255)?;
        SocketAddr::from((GROUP_V6, PORT))
    };
    Ok((UdpSocket::from_std(socket.into())?, group))
}

/// Makes our question unlike any other program's on this device. Should there be no randomness, it is only that.
fn nonce() -> String {
    let mut bytes = [0; 8];
    let _ = SystemRandom::new().fill(&mut bytes);
    hex(&bytes)
}

/// Asks for all services, for ours, and for one that nobody has: the one by which the question is known again.
fn question(nonce: &str) -> Vec<u8> {
    let own = format!("{nonce}.{SERVICE}");
    let questions = [(ALL_SERVICES, PTR), (SERVICE, PTR), (own.as_str(), TXT)];
    // Id and flags are 0; then the counts of questions, answers, authorities, others.
    let mut packet = vec![0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0];
    for (name, kind) in questions {
        for label in name.trim_end_matches('.').split('.') {
            // Ours are all far shorter than 63.
            packet.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
            packet.extend_from_slice(label.as_bytes());
        }
        packet.push(0);
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&INTERNET.to_be_bytes());
    }
    packet
}

/// Who announces tributary in this message, with the port. Nothing where it is no answer, or not well-formed; a farewell
/// (a record that holds for no time) is none.
pub(super) fn announced(packet: &[u8]) -> Vec<(String, u16)> {
    let mut reader = Reader { packet, at: 0 };
    let mut found = Vec::new();
    // What was read before a malformed record stands.
    let _ = reader.answers(&mut found);
    found
}

struct Reader<'a> {
    packet: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn answers(&mut self, found: &mut Vec<(String, u16)>) -> Option<()> {
        let _id = self.u16()?;
        let is_answer = self.u16()? & 0x8000 != 0;
        let questions = self.u16()?;
        let records = u32::from(self.u16()?) + u32::from(self.u16()?) + u32::from(self.u16()?);
        if !is_answer {
            return None;
        }
        for _ in 0..questions {
            self.name()?;
            self.skip(4)?;
        }
        for _ in 0..records {
            let name = self.name()?;
            let kind = self.u16()?;
            self.skip(2)?;
            let holds = self.u16()? | self.u16()?;
            let length = usize::from(self.u16()?);
            let end = self.at.checked_add(length)?;
            if kind == SRV && holds != 0 {
                self.skip(4)?;
                let port = self.u16()?;
                if let Some(instance) = instance_of(&name.to_ascii_lowercase()) {
                    found.push((instance, port));
                }
            }
            self.at = end;
        }
        Some(())
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.packet.get(self.at..self.at.checked_add(2)?)?;
        self.at += 2;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count)?;
        (self.at <= self.packet.len()).then_some(())
    }

    /// The name at this place, each label followed by a dot. A label that points elsewhere must point backwards.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut at = self.at;
        let mut lowest = self.at;
        let mut jumped = false;
        for _ in 0..=MAX_LABELS {
            let length = usize::from(*self.packet.get(at)?);
            match length {
                0 => {
                    if !jumped {
                        self.at = at + 1;
                    }
                    return Some(name);
                }
                1..=63 => {
                    let label = self.packet.get(at + 1..at + 1 + length)?;
                    name.push_str(&String::from_utf8_lossy(label));
                    name.push('.');
                    at += 1 + length;
                }
                0xc0.. => {
                    let low = usize::from(*self.packet.get(at + 1)?);
                    if !jumped {
                        self.at = at + 2;
                    }
                    at = (length & 0x3f) << 8 | low;
                    if at >= lowest {
                        return None;
                    }
                    lowest = at;
                    jumped = true;
                }
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer as a responder sends it: PTR, then SRV whose names point into the PTR.
    fn answer(ttl: u32, port: u16) -> Vec<u8> {
        let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 1];
        let service = packet.len();
        for label in ["_tributary", "_udp", "local"] {
            packet.push(label.len() as u8);
            packet.extend_from_slice(label.as_bytes());
        }
        packet.push(0);
        let pointer = |to: usize| [0xc0 | (to >> 8) as u8, to as u8];
        packet.extend_from_slice(&PTR.to_be_bytes());
        packet.extend_from_slice(&INTERNET.to_be_bytes());
        packet.extend_from_slice(&ttl.to_be_bytes());
        packet.extend_from_slice(&11_u16.to_be_bytes());
        let instance = packet.len();
        packet.push(8);
        packet.extend_from_slice(b"0BadCafe");
        packet.extend_from_slice(&pointer(service));
        packet.extend_from_slice(&pointer(instance));
        packet.extend_from_slice(&SRV.to_be_bytes());
        packet.extend_from_slice(&0x8001_u16.to_be_bytes());
        packet.extend_from_slice(&ttl.to_be_bytes());
        packet.extend_from_slice(&8_u16.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 0]);
        packet.extend_from_slice(&port.to_be_bytes());
        packet.extend_from_slice(&pointer(service));
        packet
    }

    #[test]
    fn an_announcement_tells_name_and_port_and_a_farewell_nothing() {
        assert_eq!(announced(&answer(120, 7436)), [("0badcafe".to_owned(), 7436)]);
        assert!(announced(&answer(0, 7436)).is_empty());
    }

    #[test]
    fn a_question_is_no_announcement_even_if_it_carries_records() {
        let mut packet = answer(120, 7436);
        packet[2] = 0;
        assert!(announced(&packet).is_empty());
    }

    #[test]
    fn another_service_is_not_ours() {
        let mut packet = answer(120, 7436);
        packet[14] = b'x';
        assert!(announced(&packet).is_empty());
    }

    #[test]
    fn sec_a17_a_name_that_no_peer_has_is_none_and_costs_nothing() {
        let mut packet = answer(120, 7436);
        let at = packet.windows(8).position(|w| w == b"0BadCafe").unwrap();
        for byte in [0x1b, b'.', b' ', 0xff] {
            packet[at] = byte;
            assert!(announced(&packet).is_empty(), "{byte:#x}");
        }
    }

    #[test]
    fn the_question_reads_as_three_questions() {
        let packet = question("0123456789abcdef");
        let mut reader = Reader {
            packet: &packet,
            at: 12,
        };
        let mut asked = Vec::new();
        for _ in 0..3 {
            asked.push((reader.name().unwrap(), reader.u16().unwrap()));
            assert_eq!(reader.u16(), Some(INTERNET));
        }
        assert_eq!(reader.at, packet.len());
        assert_eq!(asked[0], (ALL_SERVICES.to_owned(), PTR));
        assert_eq!(asked[1], (SERVICE.to_owned(), PTR));
        assert_eq!(asked[2].0, format!("0123456789abcdef.{SERVICE}"));
    }

    #[test]
    fn a_name_that_points_at_itself_or_forward_ends_the_reading() {
        for to in [12_u8, 40] {
            let packet = [0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xc0, to, 0, 12];
            assert!(announced(&packet).is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_reader_fail_or_hang(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            place in 0_usize..80,
            value in any::<u8>(),
        ) {
            let _ = announced(&noise);
            let mut near = answer(120, 1);
            if let Some(byte) = near.get_mut(place) {
                *byte = value;
            }
            prop_assert!(announced(&near).len() <= 1);
        }
    }
}
