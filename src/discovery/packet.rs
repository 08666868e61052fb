//! mDNS packets, as far as they are about our service: what others ask, what others announce, and what we say.
//!
//! Pure. A peer says everything in one packet (PTR, SRV, TXT and addresses), so nothing is remembered from one packet to
//! the next, and whatever else a household's devices tell each other is left unread. Invariants: no bytes from the wire
//! panic; what is read of one packet is bounded by [`MAX_RECORDS`] and [`MAX_NAME`], whatever it claims.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// No mDNS packet is longer (RFC 6762, 17).
pub(super) const MAX_PACKET: usize = 9000;
/// Questions and records looked at: a peer's packet has some ten.
const MAX_RECORDS: usize = 64;
/// A name's bytes, as DNS has it, and its labels and pointers.
const MAX_NAME: usize = 255;
const MAX_LABELS: usize = 32;
/// A service instance's name is longer than this only where it is no peer's: ours have 8 digits.
const MAX_INSTANCE: usize = 32;

/// What is announced and asked for.
pub(super) const SERVICE: &str = "_tributary._udp.local";
/// What lists every type of service there is (RFC 6763, 9).
const ALL_SERVICES: &str = "_services._dns-sd._udp.local";
/// In every packet about us, however it is compressed.
const MARK: &[u8] = b"_tributary";

const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const ANY: u16 = 255;
const IN: u16 = 1;
/// In a record: this replaces what was said before. In a question: an answer to the asker alone will do.
const TOP: u16 = 0x8000;
/// Of records that name a host or its addresses, in seconds, and of all others (RFC 6762, 10).
const HOST_TTL: u32 = 120;
const OTHER_TTL: u32 = 4500;
/// For those who are no mDNS programs: they must not keep it for long (RFC 6762, 6.7).
const LEGACY_TTL: u32 = 10;

/// What this run of the program says about itself.
#[derive(Clone, Debug)]
pub(super) struct Announcement {
    pub(super) instance: String,
    pub(super) host: String,
    pub(super) port: u16,
}

/// A packet that concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// Somebody asks for what we have.
    Question {
        /// To be repeated to one who is no mDNS program, with the question's own bytes.
        id: u16,
        question: Vec<u8>,
    },
    /// Somebody says what they have.
    Said(Vec<Sighting>),
}

/// An instance of our service, as somebody says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) instance: String,
    pub(super) port: u16,
    pub(super) addresses: Vec<IpAddr>,
    /// It says goodbye.
    pub(super) leaves: bool,
}

/// Whether a packet may be about us or our service: all others need not be read.
pub(super) fn concerns(packet: &[u8], ours: &Announcement) -> bool {
    let has = |what: &[u8]| packet.windows(what.len()).any(|w| w.eq_ignore_ascii_case(what));
    has(MARK) || has(ours.host.as_bytes()) || has(b"_dns-sd")
}

/// The question for our service.
pub(super) fn question() -> Vec<u8> {
    let mut packet = header(0, 0, 1, 0);
    name(&mut packet, SERVICE);
    packet.extend(PTR.to_be_bytes());
    packet.extend(IN.to_be_bytes());
    packet
}

/// Everything we have to say on an interface with these addresses.
pub(super) fn announcement(ours: &Announcement, addresses: &[IpAddr]) -> Vec<u8> {
    answer(ours, addresses, None, [HOST_TTL, OTHER_TTL], TOP)
}

/// That we leave.
pub(super) fn goodbye(ours: &Announcement) -> Vec<u8> {
    answer(ours, &[], None, [0, 0], TOP)
}

/// The answer to one who is no mDNS program.
pub(super) fn legacy(ours: &Announcement, addresses: &[IpAddr], id: u16, question: &[u8]) -> Vec<u8> {
    answer(ours, addresses, Some((id, question)), [LEGACY_TTL; 2], 0)
}

fn answer(
    ours: &Announcement,
    addresses: &[IpAddr],
    asked: Option<(u16, &[u8])>,
    [host_ttl, other_ttl]: [u32; 2],
    unique: u16,
) -> Vec<u8> {
    let full = format!("{}.{SERVICE}", ours.instance);
    let host = format!("{}.local", ours.host);
    let records = 3 + u16::try_from(addresses.len()).unwrap_or_default();
    let (id, question) = asked.unwrap_or((0, &[]));
    let mut packet = header(id, 0x8400, u16::from(!question.is_empty()), records);
    packet.extend_from_slice(question);
    let mut target = Vec::new();
    name(&mut target, &full);
    record(&mut packet, SERVICE, PTR, IN, other_ttl, &target);
    // Priority and weight, which nobody looks at.
    let mut server = vec![0; 4];
    server.extend(ours.port.to_be_bytes());
    name(&mut server, &host);
    record(&mut packet, &full, SRV, IN | unique, host_ttl, &server);
    record(&mut packet, &full, TXT, IN | unique, other_ttl, b"\x03v=1");
    for address in addresses {
        match address {
            IpAddr::V4(v4) => record(&mut packet, &host, A, IN | unique, host_ttl, &v4.octets()),
            IpAddr::V6(v6) => record(&mut packet, &host, AAAA, IN | unique, host_ttl, &v6.octets()),
        }
    }
    packet
}

fn header(id: u16, flags: u16, questions: u16, answers: u16) -> Vec<u8> {
    let fields = [id, flags, questions, answers, 0, 0];
    fields.into_iter().flat_map(u16::to_be_bytes).collect()
}

/// Our names are short and have no dots within a label.
fn name(packet: &mut Vec<u8>, text: &str) {
    for label in text.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or_default());
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
}

fn record(packet: &mut Vec<u8>, owner: &str, kind: u16, class: u16, ttl: u32, data: &[u8]) {
    name(packet, owner);
    packet.extend(kind.to_be_bytes());
    packet.extend(class.to_be_bytes());
    packet.extend(ttl.to_be_bytes());
    packet.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
    packet.extend_from_slice(data);
}

/// Reads a packet; `None` where it is none or does not concern us.
pub(super) fn read(bytes: &[u8], ours: &Announcement) -> Option<Packet> {
    let mut reader = Reader { bytes, at: 0 };
    let id = reader.u16()?;
    let flags = reader.u16()?;
    let [questions, answers, authorities, additionals] =
        [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    // An operation other than asking, or an error, is nothing of mDNS's.
    if flags & 0x780f != 0 {
        return None;
    }
    if flags & 0x8000 == 0 {
        return asked(&mut reader, questions, id, ours);
    }
    if questions != 0 {
        return None;
    }
    let count = usize::from(answers) + usize::from(authorities) + usize::from(additionals);
    Some(Packet::Said(said(&mut reader, count.min(MAX_RECORDS))?))
}

fn asked(reader: &mut Reader<'_>, questions: u16, id: u16, ours: &Announcement) -> Option<Packet> {
    let full = format!("{}.{SERVICE}", ours.instance);
    let host = format!("{}.local", ours.host);
    for _ in 0..usize::from(questions).min(MAX_RECORDS) {
        let begin = reader.at;
        let name = reader.name()?;
        let kind = reader.u16()?;
        let class = reader.u16()? & !TOP;
        let wanted = match kind {
            PTR => name == SERVICE || name == ALL_SERVICES,
            SRV | TXT => name == full,
            A | AAAA => name == host,
            ANY => name == SERVICE || name == full || name == host,
            _ => false,
        };
        if wanted && (class == IN || class == ANY) {
            // A compressed name of a second question would point to what is not repeated.
            let question = if begin == 12 {
                reader.bytes.get(begin..reader.at).unwrap_or_default().to_vec()
            } else {
                Vec::new()
            };
            return Some(Packet::Question { id, question });
        }
    }
    None
}

fn said(reader: &mut Reader<'_>, count: usize) -> Option<Vec<Sighting>> {
    let mut leaving = Vec::new();
    let mut servers: Vec<(String, u16, String)> = Vec::new();
    let mut addresses: Vec<(String, IpAddr)> = Vec::new();
    for _ in 0..count {
        let Some((owner, kind, ttl, mut data)) = reader.record() else {
            break;
        };
        match kind {
            PTR if owner == SERVICE && ttl == 0 => {
                leaving.extend(data.name().as_deref().and_then(instance_of));
            }
            SRV if ttl > 0 => servers.extend(server(&owner, data)),
            A => addresses.extend(data.array().map(|ip: [u8; 4]| (owner, Ipv4Addr::from(ip).into()))),
            AAAA => addresses.extend(
                data.array()
                    .map(|ip: [u8; 16]| (owner, Ipv6Addr::from(ip).into())),
            ),
            _ => {}
        }
    }
    let leaves = |instance| Sighting {
        instance,
        port: 0,
        addresses: Vec::new(),
        leaves: true,
    };
    let there = |(instance, port, host): (String, u16, String)| Sighting {
        instance,
        port,
        addresses: addresses
            .iter()
            .filter(|(h, _)| *h == host)
            .map(|(_, ip)| *ip)
            .collect(),
        leaves: false,
    };
    let sightings: Vec<_> = leaving
        .into_iter()
        .map(leaves)
        .chain(servers.into_iter().map(there))
        .collect();
    (!sightings.is_empty()).then_some(sightings)
}

fn server(owner: &str, mut data: Reader<'_>) -> Option<(String, u16, String)> {
    let instance = instance_of(owner)?;
    data.skip(4)?;
    Some((instance, data.u16()?, data.name()?))
}

/// The name in front of the service's type, if it may be a peer's.
fn instance_of(full: &str) -> Option<String> {
    let instance = full.strip_suffix(SERVICE)?.strip_suffix('.')?;
    let fits =
        (1..=MAX_INSTANCE).contains(&instance.len()) && instance.bytes().all(|b| b.is_ascii_alphanumeric());
    fits.then(|| instance.to_owned())
}

/// A place in a packet. A record's data has the same bytes, because its names may point back, but ends where it ends.
#[derive(Clone, Copy, Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(mut self) -> Option<[u8; N]> {
        let bytes = self.take(N)?.try_into().ok();
        bytes.filter(|_| self.at == self.bytes.len())
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(drop)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// Owner, type, time to live and data of a record of the internet's class.
    fn record(&mut self) -> Option<(String, u16, u32, Self)> {
        let owner = self.name()?;
        let kind = self.u16()?;
        let class = self.u16()? & !TOP;
        let ttl = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        let length = usize::from(self.u16()?);
        let data = Self {
            bytes: self.bytes.get(..self.at.checked_add(length)?)?,
            at: self.at,
        };
        self.skip(length)?;
        Some((owner, if class == IN { kind } else { 0 }, ttl, data))
    }

    /// A name in lower case, its labels with dots between. What is not ASCII is no name of ours and reads as `?`.
    fn name(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut at = self.at;
        let mut after = None;
        for _ in 0..MAX_LABELS {
            let length = usize::from(*self.bytes.get(at)?);
            if length == 0 {
                self.at = after.unwrap_or(at + 1);
                return Some(text);
            }
            if length & 0xc0 == 0xc0 {
                let to = (length & 0x3f) << 8 | usize::from(*self.bytes.get(at + 1)?);
                after.get_or_insert(at + 2);
                // Only ever back, so that it ends.
                if to >= at {
                    return None;
                }
                at = to;
                continue;
            }
            let label = self.bytes.get(at + 1..at + 1 + length).filter(|_| length < 64)?;
            if text.len() + length + 1 > MAX_NAME {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            let plain = |b: &u8| {
                if b.is_ascii_graphic() && *b != b'.' {
                    b.to_ascii_lowercase()
                } else {
                    b'?'
                }
            };
            text.extend(label.iter().map(|b| char::from(plain(b))));
            at += 1 + length;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ours() -> Announcement {
        Announcement {
            instance: "0badcafe".into(),
            host: "12345678".into(),
            port: 7436,
        }
    }

    fn addresses() -> Vec<IpAddr> {
        vec!["192.168.1.7".parse().unwrap(), "fe80::7".parse().unwrap()]
    }

    fn other() -> Announcement {
        Announcement {
            instance: "feedface".into(),
            host: "87654321".into(),
            port: 1,
        }
    }

    #[test]
    fn what_one_peer_announces_another_reads() {
        let packet = announcement(&ours(), &addresses());
        assert!(concerns(&packet, &other()));
        let sighting = Sighting {
            instance: "0badcafe".into(),
            port: 7436,
            addresses: addresses(),
            leaves: false,
        };
        assert_eq!(read(&packet, &other()), Some(Packet::Said(vec![sighting])));
        let Some(Packet::Said(gone)) = read(&goodbye(&ours()), &other()) else {
            panic!("no goodbye")
        };
        assert!(gone.len() == 1 && gone[0].leaves && gone[0].instance == "0badcafe");
    }

    #[test]
    fn the_announcement_holds_a_port_addresses_and_the_version_and_no_name_of_the_device() {
        let text = String::from_utf8_lossy(&announcement(&ours(), &addresses())).into_owned();
        let mut left = text.replace("v=1", "");
        for known in ["0badcafe", "12345678", "_tributary", "_udp", "local"] {
            left = left.replace(known, "");
        }
        let words = left.split(|c: char| !c.is_ascii_alphanumeric());
        assert!(
            words.clone().all(|word| word.len() < 3),
            "{:?}",
            words.collect::<Vec<_>>()
        );
    }

    #[test]
    fn questions_for_the_service_the_instance_and_the_host_are_ours_and_others_are_not() {
        let ask = |what: &str, kind: u16| {
            let mut packet = header(7, 0, 1, 0);
            name(&mut packet, what);
            packet.extend(kind.to_be_bytes());
            packet.extend((IN | TOP).to_be_bytes());
            read(&packet, &ours())
        };
        assert_eq!(
            read(&question(), &ours()).map(|p| matches!(p, Packet::Question { .. })),
            Some(true)
        );
        for (what, kind) in [
            ("_Tributary._udp.local", PTR),
            (ALL_SERVICES, PTR),
            ("0BADCAFE._tributary._udp.local", SRV),
            ("0badcafe._tributary._udp.local", ANY),
            ("12345678.local", A),
        ] {
            let Some(Packet::Question { id: 7, question }) = ask(what, kind) else {
                panic!("{what}")
            };
            let again = legacy(&ours(), &addresses(), 7, &question);
            assert_eq!(again[..2], [0, 7]);
        }
        for (what, kind) in [
            ("_http._tcp.local", PTR),
            ("feedface._tributary._udp.local", SRV),
            ("12345678.local", PTR),
            ("local", ANY),
        ] {
            assert_eq!(ask(what, kind), None, "{what}");
        }
    }

    #[test]
    fn compressed_names_are_read_and_loops_are_not() {
        let mut packet = header(0, 0x8400, 0, 2);
        let service = packet.len() as u8;
        name(&mut packet, SERVICE);
        packet.extend([0, 12, 0, 1, 0, 0, 0, 0, 0, 11, 8]);
        let full = packet.len() as u8 - 1;
        packet.extend(b"feedface");
        packet.extend([0xc0, service]);
        packet.extend([0xc0, full, 0, 16, 0x80, 1, 0, 0, 17, 148, 0, 0]);
        let Some(Packet::Said(said)) = read(&packet, &ours()) else {
            panic!("not read")
        };
        assert_eq!((said[0].instance.as_str(), said[0].leaves), ("feedface", true));
        for to in 12..16 {
            let mut looped = header(0, 0x8400, 0, 1);
            looped.extend([0xc0, to, 0xc0, 12, 0, 12, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
            assert_eq!(read(&looped, &ours()), None);
        }
    }

    #[test]
    fn only_short_plain_names_of_our_service_are_peers() {
        let full = |name: &str| instance_of(&format!("{name}.{SERVICE}"));
        assert_eq!(full("0badcafe").as_deref(), Some("0badcafe"));
        for name in ["", "a b", "<script>", "x.y", "0123456789abcdef0123456789abcdef0"] {
            assert_eq!(full(name), None, "{name}");
        }
        assert_eq!(instance_of("abc._http._tcp.local"), None);
        assert_eq!(instance_of(SERVICE), None);
    }

    #[test]
    fn a_packet_that_claims_thousands_of_records_is_read_no_further_than_a_few() {
        let mut packet = header(0, 0x8400, 0, u16::MAX);
        for n in 0..400 {
            let mut data = vec![0; 4];
            data.extend([0, 7]);
            name(&mut data, "h.local");
            record(&mut packet, &format!("n{n}.{SERVICE}"), SRV, IN, 9, &data);
        }
        let Some(Packet::Said(said)) = read(&packet, &ours()) else {
            panic!("not read")
        };
        assert_eq!(said.len(), MAX_RECORDS);
    }

    proptest! {
        #[test]
        fn no_bytes_from_the_wire_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), answer in any::<bool>()) {
            if let Some(flags) = bytes.get_mut(2..4) {
                flags.copy_from_slice(if answer { &[0x84, 0] } else { &[0, 0] });
            }
            let _ = read(&bytes, &ours());
        }

        #[test]
        fn no_damaged_announcement_panics(place in 0usize..200, byte in any::<u8>(), cut in 0usize..250) {
            let mut packet = announcement(&ours(), &addresses());
            if let Some(b) = packet.get_mut(place) {
                *b = byte;
            }
            packet.truncate(cut);
            let _ = read(&packet, &other());
        }
    }
}
