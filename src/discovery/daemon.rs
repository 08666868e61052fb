//! One life of the mDNS library's thread: on a fixed set of interfaces, with one announcement and one question.
//!
//! Changes are made by ending a life and beginning another. That costs two packets, and leaves no state of the library
//! (its selections, cache and timers only grow) to reason about. The library's cache has no limit of its own, so its
//! size is asked for and a life ends when it grows too large.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use mdns_sd::{
    IfKind, Metrics, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo,
};

use crate::discovery::sieve::Sieve;
use crate::discovery::{Candidate, DiscoveryError};
use crate::uplink::{Interface, Network};

/// What is announced and asked for.
pub const SERVICE: &str = "_tributary._udp.local.";
/// Addresses kept of one candidate: a device has a few; more would only be more to dial in vain.
const MAX_ADDRESSES: usize = 8;
/// A peer's records are some ten, and there are 64 links at most. Above this, somebody fills the cache; the library goes
/// through all of it for each packet, so this decides what a flood costs.
const MAX_RECORDS: i64 = 1_000;
/// Timers are made for each sighting of a record, too, and live as long as records do (75 minutes): thirty peers that
/// announce themselves every minute come to some 30,000, of 16 bytes each.
const MAX_TIMERS: i64 = 60_000;
/// The library's thread answers in microseconds; if it does not it has died or hangs.
const ANSWER: Duration = Duration::from_secs(1);
/// A name longer than this is no peer's: ours have 8 digits.
const MAX_NAME: usize = 32;
/// What this run of the program says about itself.
#[derive(Clone, Debug)]
pub(super) struct Announcement {
    pub(super) instance: String,
    pub(super) host: String,
    pub(super) port: u16,
}

/// An interface to be used, with the addresses whose change is worth another life of the library's thread: IPv4's, or
/// IPv6's where there is no IPv4. The library itself notices other new addresses within 5 seconds and announces them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Face {
    index: u32,
    loopback: bool,
    addresses: Vec<IpAddr>,
}

/// The prefixes of the interfaces to use now: who is in none of them is not on the link.
pub(super) fn prefixes(network: &Network, only: Option<&[String]>) -> Vec<(IpAddr, u8)> {
    let faces = network.lan_interfaces(only).into_iter();
    faces.flat_map(|face| face.addresses.clone()).collect()
}

/// The interfaces to use now.
pub(super) fn faces(network: &Network, only: Option<&[String]>) -> Vec<Face> {
    let face = |i: &Interface| {
        let all = || i.addresses.iter().map(|(ip, _)| *ip);
        let v4 = all().any(|ip| ip.is_ipv4());
        Face {
            index: i.index,
            loopback: i.loopback,
            addresses: all().filter(|ip| ip.is_ipv4() == v4).collect(),
        }
    };
    network.lan_interfaces(only).into_iter().map(face).collect()
}

/// The library's thread, announcing and asking. It must be [closed](Self::close): dropping it does not end the thread,
/// and two of them at once would double what a flood costs.
pub(super) struct Session {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    sieve: Sieve,
}

impl Session {
    /// Begins on these interfaces: announces and asks within milliseconds, and hears only whom these prefixes hold.
    pub(super) fn open(
        announcement: &Announcement,
        faces: &[Face],
        prefixes: &[(IpAddr, u8)],
    ) -> Result<Self, DiscoveryError> {
        let (daemon, sieve) = Sieve::around(started, prefixes);
        let daemon = daemon?;
        let begun = begin(&daemon, announcement, faces);
        if begun.is_err() {
            // Nothing to wait for: the thread has nothing to say goodbye to.
            let _ = daemon.shutdown();
        }
        Ok(Self {
            events: begun?,
            daemon,
            sieve,
        })
    }

    /// The next event; `None` when the library has dropped us for reading too slowly, or died.
    pub(super) async fn next(&self) -> Option<ServiceEvent> {
        self.events.recv_async().await.ok()
    }

    /// Asks anew: everything known is reported again, then what answers.
    pub(super) fn browse_again(&mut self) -> Result<(), DiscoveryError> {
        self.events = self.daemon.browse(SERVICE)?;
        Ok(())
    }

    /// Announces anew.
    pub(super) fn announce_again(&self, announcement: &Announcement) -> Result<(), DiscoveryError> {
        Ok(self.daemon.register(service(announcement)?)?)
    }

    /// Hears only whom these prefixes hold from now on.
    pub(super) fn let_in(&self, prefixes: &[(IpAddr, u8)]) {
        self.sieve.let_in(prefixes);
    }

    /// Whether the library's cache is of a size that peers explain. False, too, if it does not answer.
    pub(super) async fn is_sound(&self) -> bool {
        let Ok(answer) = self.daemon.get_metrics() else {
            return false;
        };
        match tokio::time::timeout(ANSWER, answer.recv_async()).await {
            Ok(Ok(metrics)) => is_small(&metrics),
            _ => false,
        }
    }

    /// Says goodbye and ends the thread, within [`ANSWER`]. False if it has not ended by then: it reads packets as long as
    /// there are any before it listens to commands, so in a flood it may not. Then call this again.
    pub(super) async fn close(&self) -> bool {
        match self.daemon.shutdown() {
            // It unregisters, which says goodbye, then answers; or had ended, which closes the channel.
            Ok(answer) => tokio::time::timeout(ANSWER, answer.recv_async()).await.is_ok(),
            Err(mdns_sd::Error::Again) => false,
            Err(_) => true,
        }
    }
}

/// The library's thread, once it has made its sockets, in a millisecond or so: it only then listens to commands.
fn started() -> Result<ServiceDaemon, DiscoveryError> {
    let daemon = ServiceDaemon::new()?;
    let listens = daemon.status()?.recv_timeout(ANSWER);
    if listens.is_err() {
        tracing::debug!("the mDNS thread takes its time: its sockets may not be filtered");
    }
    Ok(daemon)
}

fn begin(
    daemon: &ServiceDaemon,
    announcement: &Announcement,
    faces: &[Face],
) -> Result<Receiver<ServiceEvent>, DiscoveryError> {
    // Commands are carried out in order, and nothing is sent before there is something to announce or ask.
    daemon.disable_interface(IfKind::All)?;
    daemon.enable_interface(faces.iter().flat_map(kinds).collect::<Vec<_>>())?;
    daemon.register(service(announcement)?)?;
    Ok(daemon.browse(SERVICE)?)
}

fn kinds(face: &Face) -> Vec<IfKind> {
    let v4 = IfKind::IndexV4(face.index);
    // IPv6 multicast does not come back on every kernel's loopback, and IPv4 there is never missing.
    if face.loopback {
        vec![v4]
    } else {
        vec![v4, IfKind::IndexV6(face.index)]
    }
}

fn service(announcement: &Announcement) -> Result<ServiceInfo, DiscoveryError> {
    let host = format!("{}.local.", announcement.host);
    let txt: &[(&str, &str)] = &[("v", "1")];
    let mut service = ServiceInfo::new(SERVICE, &announcement.instance, &host, "", announcement.port, txt)?
        // The library fills in, for each interface, the addresses of that interface.
        .enable_addr_auto();
    // Probing takes 750 ms to find out that nobody else drew the same 64 random bits.
    service.set_requires_probe(false);
    Ok(service)
}

fn is_small(metrics: &Metrics) -> bool {
    let records: i64 = metrics
        .iter()
        .filter(|(name, _)| name.starts_with("cached-"))
        .map(|(_, count)| *count)
        .sum();
    let timers = metrics.get("timer").copied().unwrap_or_default();
    records <= MAX_RECORDS && timers <= MAX_TIMERS
}

/// After a flood: the C library keeps what threads that ended had held, some MiB of it, unless it is told.
pub(super) fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "nobody wraps malloc_trim")]
    // SAFETY: takes a number and touches only memory that is free.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// The name in front of the service's type, if it may be a peer's.
pub fn instance_of(fullname: &str) -> Option<String> {
    let name = fullname.strip_suffix(SERVICE)?.strip_suffix('.')?;
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    fits.then(|| name.to_ascii_lowercase())
}

/// What of a resolved service can be dialled: on-link addresses with a port. `None` if nothing can.
pub(super) fn candidate(
    service: &ResolvedService,
    network: &Network,
    only: Option<&[String]>,
) -> Option<Candidate> {
    let instance = instance_of(&service.fullname)?;
    let mut addresses: Vec<SocketAddr> = service
        .addresses
        .iter()
        .filter(|_| service.port != 0)
        .filter_map(|scoped| dialable(scoped, service.port, network, only))
        .collect();
    addresses.sort_by_key(|address| (preference(address), *address));
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    (!addresses.is_empty()).then_some(Candidate { instance, addresses })
}

fn dialable(scoped: &ScopedIp, port: u16, network: &Network, only: Option<&[String]>) -> Option<SocketAddr> {
    let ip = scoped.to_ip_addr();
    if ip.is_multicast() || ip.is_unspecified() || !network.is_on_link(ip, only) {
        return None;
    }
    let ScopedIp::V6(v6) = scoped else {
        return Some(SocketAddr::new(ip, port));
    };
    let scope = v6.scope_id().index;
    if !v6.addr().is_unicast_link_local() {
        return Some(SocketAddr::new(ip, port));
    }
    let ours = network.lan_interfaces(only).iter().any(|i| i.index == scope);
    ours.then(|| SocketAddrV6::new(*v6.addr(), port, 0, scope).into())
}

fn preference(address: &SocketAddr) -> u8 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) if !v6.ip().is_unicast_link_local() => 1,
        SocketAddr::V6(_) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::types::UplinkKind;
    use crate::uplink::Router;

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
            on_link: Vec::new(),
            default_route: false,
            router: Router::None,
            away: false,
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

    fn resolved(port: u16, addresses: &[&str]) -> ResolvedService {
        let ips: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let service = ServiceInfo::new(SERVICE, "0badcafe", "00000000.local.", &ips[..], port, None);
        service.unwrap().as_resolved_service()
    }

    fn addresses(service: &ResolvedService) -> Vec<String> {
        let found = candidate(service, &network(), None);
        found.map_or(vec![], |c| c.addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn only_on_link_addresses_are_kept_ipv4_first() {
        let service = resolved(
            7,
            &[
                "fd00::9",
                "192.168.1.9",
                "8.8.8.8",
                "203.0.113.9",
                "127.0.0.1",
                "224.0.0.1",
            ],
        );
        assert_eq!(addresses(&service), ["192.168.1.9:7", "[fd00::9]:7"]);
    }

    #[test]
    fn a_candidate_without_port_or_on_link_address_is_none() {
        assert_eq!(candidate(&resolved(0, &["192.168.1.9"]), &network(), None), None);
        assert_eq!(candidate(&resolved(7, &["8.8.8.8"]), &network(), None), None);
        assert_eq!(candidate(&resolved(7, &[]), &network(), None), None);
    }

    #[test]
    fn link_local_addresses_without_one_of_our_interfaces_are_dropped() {
        assert!(addresses(&resolved(7, &["fe80::9"])).is_empty());
    }

    #[test]
    fn no_more_than_eight_addresses_are_kept() {
        let many: Vec<String> = (1..=40).map(|n| format!("192.168.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(addresses(&resolved(7, &many)).len(), 8);
    }

    #[test]
    fn only_short_plain_names_of_our_service_are_peers() {
        assert_eq!(
            instance_of("0BADcafe._tributary._udp.local.").as_deref(),
            Some("0badcafe")
        );
        for name in [
            "_tributary._udp.local.",
            "._tributary._udp.local.",
            "a b._tributary._udp.local.",
            "<script>._tributary._udp.local.",
            "x.y._tributary._udp.local.",
            "abc._http._tcp.local.",
            "0123456789abcdef0123456789abcdef0._tributary._udp.local.",
        ] {
            assert_eq!(instance_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_cache_that_peers_do_not_explain_is_noticed() {
        let metrics = |records, timers| {
            let entries = [
                ("cached-srv", records),
                ("cached-addr", records),
                ("timer", timers),
                ("respond", 1 << 40),
            ];
            entries.map(|(name, count)| (name.to_owned(), count)).into()
        };
        assert!(is_small(&metrics(100, 1000)));
        assert!(!is_small(&metrics(501, 0)));
        assert!(!is_small(&metrics(0, 60_001)));
    }

    #[test]
    fn the_announcement_holds_a_port_and_the_version_and_no_name_of_the_device() {
        let announcement = Announcement {
            instance: "0badcafe".into(),
            host: "12345678".into(),
            port: 7,
        };
        let service = service(&announcement).unwrap();
        assert_eq!(service.get_fullname(), "0badcafe._tributary._udp.local.");
        assert_eq!(service.get_hostname(), "12345678.local.");
        assert_eq!(service.get_port(), 7);
        let txt: Vec<_> = service.get_properties().iter().map(ToString::to_string).collect();
        assert_eq!(txt, ["v=1"]);
        assert!(!service.requires_probe());
    }

    #[test]
    fn a_new_ipv6_address_beside_ipv4_is_left_to_the_library_and_a_new_ipv4_address_is_not() {
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
        assert_eq!(kinds(&found[0]).len(), 2);
        let lo = faces(&network(), Some(&["lo".to_owned()]));
        assert_eq!(lo.len(), 1);
        assert!(matches!(kinds(&lo[0])[..], [IfKind::IndexV4(1)]));
    }
}
