//! Finds out who of the household is there: from the daemon where one runs, else as a guest that joins for a moment; and
//! whether packets get through to those that are known and have no link.
//!
//! A guest has a passing key, lends nothing, and dials nobody while it listens: who links with it meanwhile came in through
//! this device's own firewall. Beside a daemon no guest is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};

use crate::api::{Client, ClientError, Reply, Request, Status};
use crate::discovery::{Discovery, DiscoveryConfig, Event};
use crate::identity::DeviceKey;
use crate::link::{DEFAULT_PORT, DialError, Incoming, Link, LinkConfig, LinkEvent, Links};
use crate::task::Tasks;
use crate::types::{LineId, UplinkKind};
use crate::uplink::{Interface, Network};

use super::Options;
use super::facts::{
    Asked, Daemon, Heard, Household, LentWay, Linked, Multicast, MulticastFailure, Reach, Source,
};
use super::knock::knock;
use super::mdns::{self, Sightings};
use super::system::{self, Neighbour, ip_of};

/// The daemon is on this device; one that needs longer hangs.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);
/// Whoever answered a knock finishes a handshake in milliseconds; a Pi that is busy needs longer.
const DIAL_WITHIN: Duration = Duration::from_millis(1_500);
/// Addresses that are asked: a household has fewer, and each costs some packets.
const MAX_ASKED: usize = 64;
/// Of devices that nothing says to be peers.
const MAX_NEIGHBOURS: usize = 16;

/// A daemon that was asked for its status.
pub(super) struct Answer {
    pub(super) daemon: Daemon,
    pub(super) status: Option<Status>,
    /// Its process.
    pub(super) pid: Option<i32>,
}

/// Asks the first daemon that listens at one of these sockets.
pub(super) async fn daemon(sockets: &[impl AsRef<Path>]) -> Answer {
    let mut worst = Daemon::None;
    for socket in sockets {
        let socket = socket.as_ref();
        let asked = tokio::time::timeout(ANSWER_WITHIN, ask(socket)).await;
        let broken = |why: &str| Daemon::Broken {
            socket: socket.into(),
            why: why.into(),
        };
        let found = match asked {
            Ok(Ok(Reply::Status(status))) => {
                let daemon = Daemon::Answers {
                    version: status.version.clone(),
                    port: status.device.port,
                };
                return Answer {
                    daemon,
                    status: Some(status),
                    pid: pid_of(socket).await,
                };
            }
            Ok(Err(ClientError::NoDaemon)) => continue,
            Ok(Err(ClientError::NotAllowed { socket, group })) => Daemon::NotAllowed { socket, group },
            Ok(Ok(_)) => broken("it answers something else"),
            Ok(Err(error)) => broken(&error.to_string()),
            Err(_) => broken("it does not answer"),
        };
        if worst == Daemon::None {
            worst = found;
        }
    }
    Answer {
        daemon: worst,
        status: None,
        pid: None,
    }
}

async fn ask(socket: &Path) -> Result<Reply, ClientError> {
    let mut client = Client::ask(socket, &Request::Status).await?;
    client.reply().await?.ok_or(ClientError::Malformed)
}

async fn pid_of(socket: &Path) -> Option<i32> {
    let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
    stream.peer_cred().ok()?.pid()
}

/// Everything about peers: who is there, what they lend, and what mDNS brought on each LAN interface.
pub(super) async fn look(
    options: &Options,
    status: Option<&Status>,
    network: &Arc<Network>,
    port: u16,
    tasks: &Tasks,
) -> (Household, Vec<Multicast>, Vec<LentWay>) {
    let only = options.config.lan.interfaces.as_deref();
    let faces = network.lan_interfaces(only);
    let guest = match status {
        Some(_) => Ok(None),
        None => Guest::join(options, network, port, tasks).map(Some),
    };
    let listening = faces.iter().map(|face| mdns::listen(face, network));
    let heard: Vec<_> = faces.iter().copied().zip(join_all(listening).await).collect();

    let (guest, error) = match guest {
        Ok(guest) => (guest, None),
        Err(why) => (None, Some(why)),
    };
    let inbound = guest.as_ref().map(Guest::names).unwrap_or_default();
    let linked = linked(status, guest.as_ref());
    let sightings = heard.iter().filter_map(|(_, heard)| heard.as_ref().ok());
    let targets = targets(options, network, sightings, &linked, only);
    let asking = targets.iter().map(|(address, _)| reach(*address, guest.as_ref()));
    let reached = join_all(asking).await;
    let neighbours = system::neighbours();
    let mut asked: Vec<Asked> = targets
        .into_iter()
        .zip(reached)
        .map(|((address, source), reach)| describe(address, source, reach, &neighbours, network, only))
        .collect();
    let linked = self::linked(status, guest.as_ref());
    asked.retain(|a| !linked.iter().any(|l| l.address == a.address));
    let gateways: Vec<IpAddr> = network.uplinks.iter().filter_map(|u| u.gateway).collect();
    let seen = Seen {
        linked: &linked,
        asked: &asked,
        neighbours: &neighbours,
        gateways: &gateways,
    };
    let faces = heard
        .iter()
        .filter_map(|(face, heard)| Some((*face, heard.as_ref().ok()?)));
    let lonely = faces
        .filter(|(face, sightings)| is_lonely(face, sightings, &seen, network))
        .map(|(face, _)| face.name.clone())
        .collect();
    let multicast = heard
        .into_iter()
        .map(|(face, heard)| multicast(face, heard, &linked, &asked, network))
        .collect();
    let lent = lent(status, guest.as_ref());
    let household = Household {
        by_daemon: status.is_some(),
        error,
        linked,
        inbound,
        asked,
        lonely,
    };
    (household, multicast, lent)
}

/// Whether somebody is at `address`; a guest then also links with it.
async fn reach(address: SocketAddr, guest: Option<&Guest>) -> Reach {
    let reach = knock(address).await;
    match (guest, &reach) {
        (Some(guest), Reach::Answers) => guest.dial(address).await.map_or(reach, Reach::NoLink),
        _ => reach,
    }
}

/// A peer for a moment, in no one's way.
struct Guest {
    links: Links,
    network: Arc<Network>,
    /// Held: news and requests for tunnels have nowhere else to go.
    _events: mpsc::Receiver<LinkEvent>,
    _tunnels: mpsc::Receiver<Incoming>,
    _found: mpsc::Receiver<Event>,
}

impl Guest {
    fn join(options: &Options, network: &Arc<Network>, port: u16, tasks: &Tasks) -> Result<Self, String> {
        let key = DeviceKey::ephemeral().map_err(|e| e.to_string())?;
        let interfaces = options.config.lan.interfaces.clone();
        let (on_lan, only) = (Arc::clone(network), interfaces.clone());
        let config = LinkConfig {
            port,
            name: options.name.clone(),
            offers: watch::channel(crate::link::Lends::default()).1,
            home: watch::channel(crate::link::Home::default()).1,
            gate: Arc::new(move |from| on_lan.hears(from, only.as_deref())),
            trust: crate::trust::Trust::none(&key),
        };
        let (links, events, tunnels) = Links::start(config, &key, tasks).map_err(|e| e.to_string())?;
        let port = links.port().map_err(|e| e.to_string())?;
        let fixed = watch::channel(Arc::clone(network)).1;
        let (_, found) = Discovery::start(DiscoveryConfig { port, interfaces }, fixed, tasks)
            .map_err(|e| e.to_string())?;
        Ok(Self {
            links,
            network: Arc::clone(network),
            _events: events,
            _tunnels: tunnels,
            _found: found,
        })
    }

    /// Links with other devices: another tributary on this one shows nothing.
    fn links(&self) -> Vec<Arc<Link>> {
        let mut links = self.links.all();
        links.retain(|l| !self.network.is_own(l.address().ip()));
        links
    }

    fn names(&self) -> Vec<String> {
        self.links().iter().map(|l| l.name().to_owned()).collect()
    }

    /// Why there is no link with whoever answers there; `None` where there is one.
    async fn dial(&self, address: SocketAddr) -> Option<String> {
        match tokio::time::timeout(DIAL_WITHIN, self.links.dial(&[address])).await {
            Ok(Ok(_) | Err(DialError::Duplicate)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not finish the handshake".into()),
        }
    }
}

fn linked(status: Option<&Status>, guest: Option<&Guest>) -> Vec<Linked> {
    let told = status.map(|s| s.peers.as_slice()).unwrap_or_default().iter();
    let told = told.filter_map(|peer| {
        Some(Linked {
            name: peer.name.clone(),
            address: peer.address.parse().ok()?,
        })
    });
    let met = guest.map(Guest::links).unwrap_or_default();
    let met = met.iter().map(|link| Linked {
        name: link.name().to_owned(),
        address: link.address(),
    });
    told.chain(met).collect()
}

fn lent(status: Option<&Status>, guest: Option<&Guest>) -> Vec<LentWay> {
    let told = status.map(|s| s.lanes.as_slice()).unwrap_or_default().iter();
    let told = told.filter(|lane| lane.lent).map(|lane| LentWay {
        owner: lane.owner.clone(),
        uplink: lane.uplink.clone(),
        line: LineId::from_hex(&lane.line),
    });
    let met = guest.map(Guest::links).unwrap_or_default();
    let met = met.iter().flat_map(|link| {
        let owner = link.name().to_owned();
        link.offers().into_iter().map(move |offer| LentWay {
            owner: owner.clone(),
            uplink: offer.name,
            line: Some(offer.line),
        })
    });
    told.chain(met).collect()
}

/// Where a peer should or could be that has no link, each once, by its most certain source.
fn targets<'a>(
    options: &Options,
    network: &Network,
    sightings: impl Iterator<Item = &'a Sightings>,
    linked: &[Linked],
    only: Option<&[String]>,
) -> Vec<(SocketAddr, Source)> {
    let heard: Vec<SocketAddr> = sightings.flat_map(|s| s.peers.values().copied()).collect();
    let known: BTreeSet<IpAddr> = linked.iter().map(|l| ip_of(l.address)).collect();
    let named = options.config.lan.peers.iter().map(|p| p.0);
    let met = crate::node::met_before(&options.state).into_iter();
    let neighbours = system::neighbours().into_iter().filter(|n| n.there);
    let neighbours = neighbours
        .map(|n| SocketAddr::new(n.ip, DEFAULT_PORT))
        .take(MAX_NEIGHBOURS);
    let all = heard
        .into_iter()
        .map(|a| (a, Source::Heard))
        .chain(named.map(|a| (a, Source::Named)))
        .chain(met.map(|a| (a, Source::Met)))
        .chain(neighbours.map(|a| (a, Source::Neighbour)));
    let mut once = BTreeMap::new();
    for (address, source) in all {
        let ip = ip_of(address);
        let askable = network.is_on_link(ip, only) && !network.is_own(ip);
        // A device with a link is there, whatever else is known of it; two addresses of one are asked as two.
        if askable && !known.contains(&ip) && once.len() < MAX_ASKED {
            once.entry(address).or_insert(source);
        }
    }
    // One device is asked at the port it is most likely to have.
    let announced: BTreeSet<IpAddr> = once
        .iter()
        .filter(|(_, source)| **source != Source::Neighbour)
        .map(|(address, _)| ip_of(*address))
        .collect();
    once.retain(|address, source| *source != Source::Neighbour || !announced.contains(&ip_of(*address)));
    once.into_iter().collect()
}

fn describe(
    address: SocketAddr,
    source: Source,
    reach: Reach,
    neighbours: &[Neighbour],
    network: &Network,
    only: Option<&[String]>,
) -> Asked {
    let ip = ip_of(address);
    let entry = neighbours.iter().find(|n| n.ip == ip);
    let faces = network.lan_interfaces(only);
    let face = faces.into_iter().find(|face| is_on(network, face, ip));
    Asked {
        address,
        source,
        there: match reach {
            // Whoever says something is there.
            Reach::Answers | Reach::NoLink(_) | Reach::Closed => Some(true),
            Reach::Silent => entry.map(|n| n.there),
        },
        reach,
        interface: face.map(|face| face.name.clone()),
    }
}

fn is_on(network: &Network, face: &Interface, ip: IpAddr) -> bool {
    network.is_on_link(ip, Some(std::slice::from_ref(&face.name)))
}

fn multicast(
    face: &Interface,
    heard: Result<Sightings, MulticastFailure>,
    linked: &[Linked],
    asked: &[Asked],
    network: &Network,
) -> Multicast {
    let linked = linked.iter().map(|l| ip_of(l.address));
    let answering = asked
        .iter()
        .filter(|a| matches!(a.reach, Reach::Answers | Reach::NoLink(_)))
        .filter(|a| a.source != Source::Heard)
        .map(|a| ip_of(a.address));
    let certain = linked.chain(answering).filter(|ip| is_on(network, face, *ip));
    let unheard = match &heard {
        // One that was heard shows that multicast passes; a peer may be known by its other family's address.
        Ok(sightings) if sightings.peers.is_empty() => certain.collect::<BTreeSet<_>>(),
        _ => BTreeSet::new(),
    };
    Multicast {
        interface: face.name.clone(),
        heard: heard.map(|s| Heard {
            itself: s.itself,
            hosts: s.hosts.len(),
            peers: s.peers.len(),
        }),
        unheard: unheard.into_iter().collect(),
    }
}

/// Who was seen, by whatever way.
struct Seen<'a> {
    linked: &'a [Linked],
    asked: &'a [Asked],
    neighbours: &'a [Neighbour],
    gateways: &'a [IpAddr],
}

/// Whether, on this Wi-Fi interface, the router answers and of all others that were met there nobody does.
fn is_lonely(face: &Interface, sightings: &Sightings, seen: &Seen<'_>, network: &Network) -> bool {
    let on_it = |ip: IpAddr| is_on(network, face, ip);
    let is_router = |ip: IpAddr| seen.gateways.contains(&ip);
    let there = || seen.neighbours.iter().filter(|n| n.there && on_it(n.ip));
    let met = || {
        let met = seen.asked.iter().filter(|a| a.source != Source::Neighbour);
        met.filter(|a| on_it(ip_of(a.address)))
    };
    face.kind == UplinkKind::Wireless
        && there().any(|n| is_router(n.ip))
        && there().all(|n| is_router(n.ip))
        && sightings.hosts.iter().all(|ip| is_router(*ip))
        && !seen.linked.iter().any(|l| on_it(ip_of(l.address)))
        && met().next().is_some()
        && met().all(|a| a.there != Some(true))
}

#[cfg(test)]
mod tests {
    use crate::uplink::Router;

    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 1));
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 2));

    fn wlan(kind: UplinkKind) -> Network {
        Network {
            interfaces: vec![Interface {
                index: 2,
                name: "wlan0".into(),
                kind,
                up: true,
                loopback: false,
                point_to_point: false,
                multicast: true,
                addresses: vec![([192, 168, 1, 7].into(), 24)],
                on_link: Vec::new(),
                default_route: true,
                router: Router::None,
                away: false,
            }],
            uplinks: vec![],
        }
    }

    fn neighbour(ip: IpAddr, there: bool) -> Neighbour {
        Neighbour {
            ip,
            interface: "wlan0".into(),
            there,
        }
    }

    fn lonely(kind: UplinkKind, hosts: &[IpAddr], neighbours: &[Neighbour], met: &[IpAddr]) -> bool {
        let network = wlan(kind);
        let sightings = Sightings {
            hosts: hosts.iter().copied().collect(),
            ..Sightings::default()
        };
        let asked: Vec<Asked> = met
            .iter()
            .map(|ip| {
                let address = SocketAddr::new(*ip, DEFAULT_PORT);
                describe(address, Source::Met, Reach::Silent, neighbours, &network, None)
            })
            .collect();
        let seen = Seen {
            linked: &[],
            asked: &asked,
            neighbours,
            gateways: &[ROUTER],
        };
        is_lonely(&network.interfaces[0], &sightings, &seen, &network)
    }

    #[test]
    fn only_a_wireless_interface_with_its_router_and_none_of_those_that_were_met_is_lonely() {
        use UplinkKind::{Wired, Wireless};
        let router = neighbour(ROUTER, true);
        let alone = [router.clone(), neighbour(PEER, false)];
        assert!(lonely(Wireless, &[], &alone, &[PEER]));
        assert!(lonely(Wireless, &[ROUTER], &alone, &[PEER]));
        assert!(!lonely(Wired, &[], &alone, &[PEER]), "a cable isolates nobody");
        assert!(!lonely(Wireless, &[PEER], &alone, &[PEER]), "it was heard");
        let both = [router, neighbour(PEER, true)];
        assert!(
            !lonely(Wireless, &[], &both, &[PEER]),
            "it answers for its address"
        );
        assert!(!lonely(Wireless, &[], &alone, &[]), "nobody was ever met here");
        assert!(
            !lonely(Wireless, &[], &[neighbour(PEER, false)], &[PEER]),
            "no router either"
        );
    }
}
