//! What is known of gateways' MAC addresses: by them devices agree on which line they share.
//!
//! The kernel forgets neighbours that nobody talks to, and knows none at boot. A line id that came and went with that would
//! make two lanes of one, and one of two. So what was once seen is remembered while the interface stays up, and a gateway
//! that was never seen is asked for: an empty datagram to its discard port makes the kernel resolve it. Nothing of that
//! leaves the link.
//!
//! Invariants: bounded by the gateways there are; each is asked a few times and then left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::types::UplinkKind;
use crate::uplink::build::{self, Link, Neighbour, Tables};
use crate::uplink::connect::bind_device;

/// The pauses after each time a gateway was asked. The kernel itself sends three requests within 3 s each time; a router
/// that answers none of these in a minute does not speak ARP.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(45),
];
/// UDP's discard service (RFC 863): whoever listens there throws away what comes.
const DISCARD: u16 = 9;

/// Other addresses of gateways that are remembered: a host that answers for a whole network has no end of them.
const MAX_ALIASES: usize = 64;

/// One gateway on one interface.
type Place = (u32, IpAddr);

/// What is known of each gateway.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    known: BTreeMap<Place, Vec<u8>>,
    /// Their other addresses, as last seen: word of those is no news.
    aliases: BTreeSet<Place>,
    asked: BTreeMap<Place, Asked>,
}

#[derive(Debug)]
struct Asked {
    interface: String,
    times: usize,
    next: Option<Instant>,
}

/// A gateway that is to be asked for its MAC address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    interface: String,
    index: u32,
    gateway: IpAddr,
}

impl Gateways {
    /// Learns from fresh tables, and adds to them what the kernel has forgotten. What is said of interfaces that are down
    /// is forgotten here as well: another network may be behind them when they come back.
    pub(super) fn recall(&mut self, tables: &mut Tables, now: Instant) {
        let places = places(tables);
        self.known.retain(|place, _| places.contains_key(place));
        self.asked.retain(|place, _| places.contains_key(place));
        for (&(index, ip), link) in &places {
            match build::mac_of(tables, index, ip).map(<[u8]>::to_vec) {
                Some(mac) => {
                    self.known.insert((index, ip), mac);
                    self.asked.remove(&(index, ip));
                }
                None => match self.known.get(&(index, ip)) {
                    Some(mac) => {
                        let mac = mac.clone();
                        tables.neighbours.retain(|n| (n.index, n.ip) != (index, ip));
                        tables.neighbours.push(Neighbour { index, ip, mac });
                    }
                    None => self.wonder((index, ip), link, now),
                },
            }
        }
        let macs: BTreeSet<(u32, &[u8])> = self
            .known
            .iter()
            .map(|((i, _), mac)| (*i, mac.as_slice()))
            .collect();
        let of_gateways = tables
            .neighbours
            .iter()
            .filter(|n| macs.contains(&(n.index, n.mac.as_slice())));
        self.aliases = of_gateways.map(|n| (n.index, n.ip)).take(MAX_ALIASES).collect();
    }

    /// The gateways to be asked now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Question> {
        let mut due = Vec::new();
        for (&(index, gateway), asked) in &mut self.asked {
            if asked.next.is_none_or(|next| next > now) {
                continue;
            }
            asked.next = PAUSES.get(asked.times).map(|pause| now + *pause);
            if asked.times < PAUSES.len() {
                asked.times += 1;
                due.push(Question {
                    interface: asked.interface.clone(),
                    index,
                    gateway,
                });
            }
        }
        due
    }

    /// When [`due`](Self::due) has something next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.asked.values().filter_map(|a| a.next).min()
    }

    /// Whether a neighbour is a gateway, or an address of one, that was not known like this.
    pub(super) fn is_news(&self, neighbour: &Neighbour) -> bool {
        let place = (neighbour.index, neighbour.ip);
        match self.known.get(&place) {
            Some(mac) => *mac != neighbour.mac,
            None => {
                let same = |(at, mac): (&Place, &Vec<u8>)| at.0 == place.0 && *mac == neighbour.mac;
                self.asked.contains_key(&place)
                    || self.known.iter().any(same) != self.aliases.contains(&place)
            }
        }
    }

    fn wonder(&mut self, place: Place, link: &Link, now: Instant) {
        // A link with one other end has no MAC addresses, and on one that costs money not even this is sent unasked.
        if link.point_to_point || link.kind == UplinkKind::Cellular {
            return;
        }
        self.asked.entry(place).or_insert_with(|| Asked {
            interface: link.name.clone(),
            times: 0,
            next: Some(now),
        });
    }
}

impl Question {
    /// Asks; the answer is news of a neighbour.
    ///
    /// # Errors
    /// The kernel's own.
    pub(super) fn ask(&self) -> io::Result<()> {
        let (domain, to) = match self.gateway {
            IpAddr::V4(_) => (Domain::IPV4, SocketAddr::new(self.gateway, DISCARD)),
            IpAddr::V6(ip) => (Domain::IPV6, SocketAddrV6::new(ip, DISCARD, 0, self.index).into()),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        bind_device(&socket, &self.interface)?;
        if domain == Domain::IPV4 {
            socket.set_ttl_v4(1)?;
        } else {
            socket.set_unicast_hops_v6(1)?;
        }
        socket.send_to(&[], &to.into()).map(drop)
    }
}

/// Every gateway on an interface that is up.
fn places(tables: &Tables) -> BTreeMap<Place, Link> {
    let up: BTreeMap<u32, &Link> = tables
        .links
        .iter()
        .filter(|l| l.up)
        .map(|l| (l.index, l))
        .collect();
    let gateways: BTreeSet<Place> = tables
        .routes
        .iter()
        .filter_map(|r| Some((r.index, r.gateway?)))
        .collect();
    let known = gateways
        .into_iter()
        .filter_map(|place| Some((place, (*up.get(&place.0)?).clone())));
    known.collect()
}

#[cfg(test)]
mod tests {
    use crate::uplink::build::{DefaultRoute, MAIN_TABLE};

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn gateway() -> IpAddr {
        [192, 168, 1, 1].into()
    }

    impl Gateways {
        /// Tables of a device with one uplink behind this gateway, not resolved yet.
        pub(in crate::uplink) fn behind(gateway: IpAddr) -> Tables {
            let mut tables = tables(false);
            tables.routes[0].gateway = Some(gateway);
            tables
        }
    }

    fn tables(seen: bool) -> Tables {
        let link = Link {
            index: 2,
            name: "eth0".into(),
            kind: UplinkKind::Wired,
            up: true,
            loopback: false,
            point_to_point: false,
            multicast: true,
        };
        let route = DefaultRoute {
            index: 2,
            v6: false,
            gateway: Some(gateway()),
            source: None,
            metric: 0,
            table: MAIN_TABLE,
        };
        let neighbour = Neighbour {
            index: 2,
            ip: gateway(),
            mac: MAC.to_vec(),
        };
        Tables {
            links: vec![link],
            addresses: vec![],
            routes: vec![route],
            on_link: vec![],
            neighbours: if seen { vec![neighbour] } else { vec![] },
        }
    }

    #[test]
    fn a_mac_is_remembered_while_the_interface_is_up_and_no_longer() {
        let (mut gateways, now) = (Gateways::default(), Instant::now());
        gateways.recall(&mut tables(true), now);
        let mut forgotten = tables(false);
        gateways.recall(&mut forgotten, now);
        assert_eq!(forgotten.neighbours[0].mac, MAC);
        let mut down = tables(false);
        down.links[0].up = false;
        gateways.recall(&mut down, now);
        let mut elsewhere = tables(false);
        gateways.recall(&mut elsewhere, now);
        assert!(elsewhere.neighbours.is_empty());
    }

    #[test]
    fn a_new_mac_is_believed() {
        let (mut gateways, now) = (Gateways::default(), Instant::now());
        gateways.recall(&mut tables(true), now);
        let mut replaced = tables(true);
        replaced.neighbours[0].mac = vec![9; 6];
        assert!(gateways.is_news(&replaced.neighbours[0]));
        gateways.recall(&mut replaced, now);
        let mut forgotten = tables(false);
        gateways.recall(&mut forgotten, now);
        assert_eq!(forgotten.neighbours[0].mac, vec![9; 6]);
        assert!(!gateways.is_news(&forgotten.neighbours[0]));
    }

    #[test]
    fn an_unknown_gateway_is_asked_a_few_times_and_then_left_alone() {
        let (mut gateways, mut now) = (Gateways::default(), Instant::now());
        let mut times = 0;
        gateways.recall(&mut tables(false), now);
        while let Some(next) = gateways.next() {
            now = now.max(next);
            times += gateways.due(now).len();
            gateways.recall(&mut tables(false), now);
        }
        assert_eq!(times, PAUSES.len());
        gateways.recall(&mut tables(true), now);
        assert!(gateways.next().is_none());
    }

    #[test]
    fn point_to_point_and_cellular_links_are_not_asked() {
        for spoil in [
            (|l: &mut Link| l.point_to_point = true) as fn(&mut Link),
            |l| l.kind = UplinkKind::Cellular,
            |l| l.up = false,
        ] {
            let mut gateways = Gateways::default();
            let mut tables = tables(false);
            spoil(&mut tables.links[0]);
            gateways.recall(&mut tables, Instant::now());
            assert!(gateways.next().is_none());
        }
    }

    #[test]
    fn of_all_neighbours_only_gateways_and_their_other_addresses_are_news() {
        let (mut gateways, now) = (Gateways::default(), Instant::now());
        let neighbour = |ip: &str, mac: &[u8]| Neighbour {
            index: 2,
            ip: ip.parse().unwrap(),
            mac: mac.to_vec(),
        };
        assert!(
            !gateways.is_news(&neighbour("192.168.1.1", &MAC)),
            "no such gateway yet"
        );
        gateways.recall(&mut tables(false), now);
        assert!(gateways.is_news(&neighbour("192.168.1.1", &MAC)));
        gateways.recall(&mut tables(true), now);
        assert!(!gateways.is_news(&neighbour("192.168.1.1", &MAC)));
        let alias = neighbour("fe80::1", &MAC);
        assert!(gateways.is_news(&alias));
        let mut both = tables(true);
        both.neighbours.push(alias.clone());
        gateways.recall(&mut both, now);
        assert!(!gateways.is_news(&alias), "it was seen");
        assert!(
            gateways.is_news(&neighbour("fe80::1", &[9; 6])),
            "somebody else's now"
        );
        assert!(!gateways.is_news(&neighbour("192.168.1.9", &[9; 6])));
    }
}
