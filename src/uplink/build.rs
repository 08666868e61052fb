//! Decides, from the kernel's tables, what the uplinks are. Pure: the same tables give the same [`Network`], so that a
//! change is a difference between two values.

use std::net::{IpAddr, Ipv6Addr};

use crate::types::{LineId, UplinkKind};
use crate::uplink::{Interface, Lend, Network, Router, Seed, Uplink};

/// The main routing table's number.
pub(super) const MAIN_TABLE: u32 = 254;
/// The table the kernel keeps for the device's own addresses: no way out.
pub(super) const LOCAL_TABLE: u32 = 255;

/// Addresses by which one router is known: a host that answers for a whole network (proxy ARP) has no end of them.
const MAX_ALIASES: usize = 16;

/// A link as dumped, with what sysfs says about it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: UplinkKind,
    pub(super) up: bool,
    pub(super) loopback: bool,
    pub(super) point_to_point: bool,
    pub(super) multicast: bool,
}

/// An address as dumped.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
    /// May be used as a source: neither tentative nor failed (a duplicate).
    pub(super) usable: bool,
    /// Better not for new connections: deprecated, or an interface's second address.
    pub(super) secondary: bool,
}

/// One next hop of a default route.
#[derive(Clone, Debug)]
pub(super) struct DefaultRoute {
    pub(super) index: u32,
    pub(super) v6: bool,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) metric: u32,
    pub(super) table: u32,
}

/// A route to a network that begins at the interface itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnLink {
    pub(super) index: u32,
    pub(super) network: IpAddr,
    pub(super) prefix: u8,
}

/// A resolved neighbour: who has this address on that link.
#[derive(Clone, Debug)]
pub(super) struct Neighbour {
    pub(super) index: u32,
    pub(super) ip: IpAddr,
    pub(super) mac: Vec<u8>,
}

/// The kernel's tables, read one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<DefaultRoute>,
    pub(super) on_link: Vec<OnLink>,
    pub(super) neighbours: Vec<Neighbour>,
}

/// The snapshot these tables describe.
pub(super) fn build(tables: &Tables, seed: &Seed) -> Network {
    let mut interfaces: Vec<Interface> = tables.links.iter().map(|l| interface(tables, l)).collect();
    interfaces.sort_by_key(|i| i.index);
    let mut uplinks: Vec<Uplink> = tables
        .links
        .iter()
        .filter(|l| l.up && !l.loopback)
        .filter_map(|l| uplink(tables, l, seed))
        .collect();
    uplinks.sort_by_key(|u| (u.metric, u.index));
    Network { interfaces, uplinks }
}

fn interface(tables: &Tables, link: &Link) -> Interface {
    let own = tables.addresses.iter();
    let own = own.filter(|a| a.index == link.index && a.usable);
    let routes = tables.on_link.iter();
    let routes = routes.filter(|r| r.index == link.index && !link.point_to_point);
    Interface {
        index: link.index,
        name: link.name.clone(),
        kind: link.kind,
        up: link.up,
        loopback: link.loopback,
        point_to_point: link.point_to_point,
        multicast: link.multicast,
        addresses: sorted(own.map(|a| (a.ip, a.prefix))),
        on_link: sorted(routes.map(|r| (r.network, r.prefix))),
        default_route: tables.routes.iter().any(|r| r.index == link.index),
        router: router(tables, link.index),
        away: false,
    }
}

/// The router out of that interface, IPv4's if it has both.
fn router(tables: &Tables, index: u32) -> Router {
    let routes = tables.routes.iter().filter(|r| r.index == index);
    let mut gateways: Vec<IpAddr> = routes.filter_map(|r| r.gateway).collect();
    gateways.sort_unstable();
    match gateways
        .iter()
        .find_map(|gateway| mac_of(tables, index, *gateway))
    {
        Some(mac) => Router::Known(gateway_line(mac)),
        None if gateways.is_empty() => Router::None,
        None => Router::Unknown,
    }
}

fn sorted(networks: impl Iterator<Item = (IpAddr, u8)>) -> Vec<(IpAddr, u8)> {
    let mut networks: Vec<_> = networks.collect();
    networks.sort_unstable();
    networks.dedup();
    networks
}

fn uplink(tables: &Tables, link: &Link, seed: &Seed) -> Option<Uplink> {
    let v4 = way(tables, link, false);
    let v6 = way(tables, link, true);
    let (best, _) = v4.or(v6)?;
    let gateways: Vec<IpAddr> = [v4, v6]
        .into_iter()
        .flatten()
        .filter_map(|(route, _)| route.gateway)
        .collect();
    // Both families of one interface are one line: the router of IPv4 names it where there is one.
    let mac = gateways
        .iter()
        .find_map(|gateway| mac_of(tables, link.index, *gateway));
    Some(Uplink {
        index: link.index,
        name: link.name.clone(),
        kind: link.kind,
        metered: link.kind == UplinkKind::Cellular,
        lend: Lend::All,
        line: mac.map_or_else(|| own_line(seed, &link.name), gateway_line),
        line_named: false,
        v4: match v4 {
            Some((_, IpAddr::V4(ip))) => Some(ip),
            _ => None,
        },
        v6: match v6 {
            Some((_, IpAddr::V6(ip))) => Some(ip),
            _ => None,
        },
        gateway: best.gateway,
        gateway_addresses: addresses_of(tables, link.index, &gateways),
        metric: best.metric,
        bind: true,
    })
}

/// The interface's best default route of one family, and the source address to use it with.
fn way<'a>(tables: &'a Tables, link: &Link, v6: bool) -> Option<(&'a DefaultRoute, IpAddr)> {
    let route = tables
        .routes
        .iter()
        .filter(|r| r.index == link.index && r.v6 == v6 && r.table != LOCAL_TABLE)
        .min_by_key(|r| (r.table != MAIN_TABLE, r.metric))?;
    Some((route, source(tables, route)?))
}

/// The route's own preferred source, else the address of the link that a peer on the internet can best answer to.
fn source(tables: &Tables, route: &DefaultRoute) -> Option<IpAddr> {
    let candidates = || {
        tables
            .addresses
            .iter()
            .filter(|a| a.usable && a.ip.is_ipv6() == route.v6)
    };
    if let Some(preferred) = route.source
        && candidates().any(|a| a.ip == preferred)
    {
        return Some(preferred);
    }
    candidates()
        .filter(|a| a.index == route.index && reach(a.ip).is_some())
        .min_by_key(|a| {
            let beside_gateway = route.gateway.is_some_and(|g| in_prefix(g, a.ip, a.prefix));
            (reach(a.ip), a.secondary, !beside_gateway, a.ip)
        })
        .map(|a| a.ip)
}

/// How far an address is valid, best first; `None` where it cannot be a source towards the internet at all.
fn reach(ip: IpAddr) -> Option<u8> {
    match ip {
        IpAddr::V4(ip) if ip.is_loopback() || ip.is_unspecified() => None,
        IpAddr::V4(ip) if ip.is_link_local() => Some(2),
        IpAddr::V4(_) => Some(0),
        IpAddr::V6(ip) if ip.is_loopback() || ip.is_unicast_link_local() => None,
        // A router may translate unique local addresses; where there is a global one, that is meant.
        IpAddr::V6(ip) if ip.is_unique_local() => Some(1),
        IpAddr::V6(_) => Some(0),
    }
}

/// The MAC address that the kernel knows for a neighbour.
pub(super) fn mac_of(tables: &Tables, index: u32, ip: IpAddr) -> Option<&[u8]> {
    let found = tables
        .neighbours
        .iter()
        .find(|n| n.index == index && n.ip == ip)?;
    let real = found.mac.len() >= 6 && found.mac.iter().any(|b| *b != 0);
    real.then_some(found.mac.as_slice())
}

/// The gateways themselves, and whatever else they are known by on that link: the addresses of their MACs.
fn addresses_of(tables: &Tables, index: u32, gateways: &[IpAddr]) -> Vec<IpAddr> {
    let macs: Vec<&[u8]> = gateways
        .iter()
        .filter_map(|gateway| mac_of(tables, index, *gateway))
        .collect();
    let others = tables
        .neighbours
        .iter()
        .filter(|n| n.index == index && macs.contains(&n.mac.as_slice()));
    let mut addresses: Vec<IpAddr> = others.map(|n| n.ip).take(MAX_ALIASES).collect();
    addresses.extend(gateways);
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The same on every device behind that gateway, so that all of them name their common line alike.
fn gateway_line(mac: &[u8]) -> LineId {
    truncated(blake3::Hasher::new_derive_key("tributary 1 line by gateway").update(mac))
}

/// This device's own name for a line whose far end shows no MAC address.
fn own_line(seed: &Seed, name: &str) -> LineId {
    let mut hasher = blake3::Hasher::new_derive_key("tributary 1 line by device");
    truncated(hasher.update(seed).update(name.as_bytes()))
}

fn truncated(hasher: &blake3::Hasher) -> LineId {
    let mut id = [0; 8];
    hasher.finalize_xof().fill(&mut id);
    LineId(id)
}

/// Whether `ip` lies in the prefix of `len` bits around `net`. Families never match each other.
pub(super) fn in_prefix(ip: IpAddr, net: IpAddr, len: u8) -> bool {
    match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(len.into()))
                .unwrap_or(0);
            u32::from(ip) & mask == u32::from(net) & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(len.into()))
                .unwrap_or(0);
            bits(ip) & mask == bits(net) & mask
        }
        _ => false,
    }
}

fn bits(ip: Ipv6Addr) -> u128 {
    u128::from(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = [7; 16];
    const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: UplinkKind::Wired,
            up: true,
            loopback: name == "lo",
            point_to_point: false,
            multicast: true,
        }
    }

    fn address(index: u32, cidr: &str) -> Address {
        let (ip, prefix) = cidr.split_once('/').unwrap();
        Address {
            index,
            ip: ip.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            usable: true,
            secondary: false,
        }
    }

    fn route(index: u32, gateway: &str, metric: u32) -> DefaultRoute {
        let gateway: Option<IpAddr> = gateway.parse().ok();
        DefaultRoute {
            index,
            v6: gateway.is_some_and(|g| g.is_ipv6()),
            gateway,
            source: None,
            metric,
            table: MAIN_TABLE,
        }
    }

    fn neighbour(index: u32, ip: &str, mac: [u8; 6]) -> Neighbour {
        Neighbour {
            index,
            ip: ip.parse().unwrap(),
            mac: mac.to_vec(),
        }
    }

    fn home() -> Tables {
        Tables {
            links: vec![link(1, "lo"), link(2, "eth0"), link(3, "wlan0"), link(4, "idle0")],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(2, "192.168.1.7/24"),
                address(3, "192.168.2.9/24"),
            ],
            routes: vec![route(3, "192.168.2.1", 600), route(2, "192.168.1.1", 100)],
            on_link: vec![],
            neighbours: vec![neighbour(2, "192.168.1.1", ROUTER)],
        }
    }

    fn names(network: &Network) -> Vec<&str> {
        network.uplinks.iter().map(|u| u.name.as_str()).collect()
    }

    #[test]
    fn an_uplink_is_an_interface_with_a_default_route_and_the_best_metric_comes_first() {
        let network = build(&home(), &SEED);
        assert_eq!(names(&network), ["eth0", "wlan0"]);
        let eth0 = &network.uplinks[0];
        assert_eq!(eth0.v4, Some([192, 168, 1, 7].into()));
        assert_eq!(eth0.v6, None);
        assert_eq!(eth0.gateway, Some(IpAddr::from([192, 168, 1, 1])));
        assert_eq!((eth0.metric, eth0.bind, eth0.metered), (100, true, false));
        assert_eq!(network.interfaces.len(), 4);
        assert!(network.interfaces[1].default_route && !network.interfaces[3].default_route);
    }

    #[test]
    fn a_link_that_is_down_or_has_no_address_is_no_uplink() {
        let mut tables = home();
        tables.links[1].up = false;
        tables.addresses.pop();
        assert_eq!(names(&build(&tables, &SEED)), Vec::<&str>::new());
    }

    #[test]
    fn two_devices_behind_one_router_name_the_line_alike() {
        let here = build(&home(), &SEED);
        let mut other = home();
        other.links[1].name = "enp3s0".into();
        other.addresses[1] = address(2, "192.168.1.8/24");
        let there = build(&other, &[9; 16]);
        assert_eq!(here.uplinks[0].line, there.uplinks[0].line);
        assert_ne!(
            here.uplinks[1].line, there.uplinks[1].line,
            "no MAC known: each its own"
        );
        assert_ne!(here.uplinks[0].line, here.uplinks[1].line);
    }

    #[test]
    fn the_line_of_a_gateway_without_a_mac_depends_on_device_and_interface_only() {
        let before = build(&home(), &SEED);
        let mut moved = home();
        moved.links[2].index = 9;
        moved.addresses[2] = address(9, "10.9.9.9/24");
        moved.routes[0] = route(9, "10.9.9.1", 5);
        let after = build(&moved, &SEED);
        assert_eq!(before.uplinks[1].line, after.uplinks[0].line);
        assert_ne!(before.uplinks[1].line, build(&home(), &[1; 16]).uplinks[1].line);
    }

    #[test]
    fn ipv4_and_ipv6_of_one_interface_are_one_line_by_whichever_router_shows_its_mac_ipv4s_first() {
        let mut tables = home();
        tables.routes.push(route(2, "fe80::1", 1024));
        tables.addresses.push(address(2, "2001:db8::7/64"));
        tables
            .neighbours
            .push(neighbour(2, "fe80::1", [2, 0, 0, 0, 0, 9]));
        let both = build(&tables, &SEED);
        assert_eq!(names(&both), ["eth0", "wlan0"]);
        assert_eq!(both.uplinks[0].line, build(&home(), &SEED).uplinks[0].line);
        tables.neighbours.remove(0);
        assert_ne!(build(&tables, &SEED).uplinks[0].line, both.uplinks[0].line);
    }

    #[test]
    fn two_interfaces_on_one_router_are_one_line() {
        let mut tables = home();
        tables.neighbours.push(neighbour(3, "192.168.2.1", ROUTER));
        let uplinks = build(&tables, &SEED).uplinks;
        assert_eq!(uplinks[0].line, uplinks[1].line);
    }

    #[test]
    fn a_router_is_known_by_all_addresses_of_its_mac_on_that_link() {
        let mut tables = home();
        for (index, ip, mac) in [
            (2, "fe80::1", ROUTER),
            (3, "fe80::2", ROUTER),
            (2, "192.168.1.9", [2, 0, 0, 0, 0, 9]),
        ] {
            tables.neighbours.push(neighbour(index, ip, mac));
        }
        let known = build(&tables, &SEED).uplinks[0].gateway_addresses.clone();
        let expected: Vec<IpAddr> = vec!["192.168.1.1".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(known, expected);
        let unknown = &build(&tables, &SEED).uplinks[1];
        assert_eq!(
            unknown.gateway_addresses,
            [unknown.gateway.unwrap()],
            "no MAC, but an address"
        );
    }

    #[test]
    fn a_mac_of_zeros_tells_no_lines_apart() {
        let mut tables = home();
        let without = build(&tables, &SEED).uplinks[1].line;
        tables.neighbours.push(neighbour(3, "192.168.2.1", [0; 6]));
        assert_eq!(build(&tables, &SEED).uplinks[1].line, without);
    }

    #[test]
    fn a_point_to_point_uplink_needs_no_gateway() {
        let mut wan = link(5, "wan0");
        wan.point_to_point = true;
        wan.kind = UplinkKind::Virtual;
        let tables = Tables {
            links: vec![wan],
            addresses: vec![address(5, "203.0.113.2/32")],
            routes: vec![route(5, "", 0)],
            on_link: vec![OnLink {
                index: 5,
                network: [0, 0, 0, 0].into(),
                prefix: 1,
            }],
            neighbours: vec![],
        };
        let network = build(&tables, &SEED);
        assert_eq!(
            network.interfaces[0].on_link,
            [],
            "half of the world is no neighbour"
        );
        assert_eq!(network.uplinks[0].v4, Some([203, 0, 113, 2].into()));
        assert_eq!(network.uplinks[0].gateway, None);
    }

    #[test]
    fn sec_a6_a_network_that_a_router_announces_is_on_link_without_an_address_in_it() {
        let mut tables = home();
        let announced = OnLink {
            index: 2,
            network: "2600:1::".parse().unwrap(),
            prefix: 64,
        };
        tables.on_link = vec![announced, announced];
        let network = build(&tables, &SEED);
        let of = |index| {
            network
                .interfaces
                .iter()
                .find(|i| i.index == index)
                .unwrap()
                .on_link
                .clone()
        };
        assert_eq!((of(2), of(3)), (vec![(announced.network, 64)], vec![]));
    }

    #[test]
    fn ipv6_sources_prefer_global_addresses_and_never_use_link_local_ones() {
        let mut tables = home();
        tables.routes.push(route(2, "fe80::1", 1024));
        tables.addresses.push(address(2, "fe80::7/64"));
        assert_eq!(build(&tables, &SEED).uplinks[0].v6, None);
        tables.addresses.push(address(2, "fd00::7/64"));
        assert_eq!(build(&tables, &SEED).uplinks[0].v6, "fd00::7".parse().ok());
        tables.addresses.push(address(2, "2001:db8::7/64"));
        assert_eq!(build(&tables, &SEED).uplinks[0].v6, "2001:db8::7".parse().ok());
        assert_eq!(
            build(&tables, &SEED).uplinks[0].metric,
            100,
            "IPv4's metric ranks"
        );
    }

    #[test]
    fn an_uplink_may_have_ipv6_only_and_its_line_comes_from_that_gateway() {
        let mut tables = home();
        tables.addresses = vec![address(2, "2001:db8::7/64")];
        tables.routes = vec![route(2, "fe80::1", 1024)];
        tables.neighbours = vec![neighbour(2, "fe80::1", ROUTER)];
        let network = build(&tables, &SEED);
        assert_eq!(names(&network), ["eth0"]);
        assert_eq!(network.uplinks[0].v4, None);
        assert_eq!(network.uplinks[0].line, build(&home(), &SEED).uplinks[0].line);
    }

    #[test]
    fn tentative_addresses_are_no_sources_and_deprecated_ones_the_last() {
        let mut tables = home();
        tables.routes.push(route(2, "fe80::1", 1024));
        let mut tentative = address(2, "2001:db8::1/64");
        tentative.usable = false;
        let mut old = address(2, "2001:db8::2/64");
        old.secondary = true;
        tables
            .addresses
            .extend([tentative, old, address(2, "2001:db8::3/64")]);
        assert_eq!(build(&tables, &SEED).uplinks[0].v6, "2001:db8::3".parse().ok());
    }

    #[test]
    fn the_routes_preferred_source_wins_while_it_exists() {
        let mut tables = home();
        tables.addresses.push(address(2, "192.168.1.77/24"));
        tables.routes[1].source = "192.168.1.77".parse().ok();
        assert_eq!(
            build(&tables, &SEED).uplinks[0].v4,
            Some([192, 168, 1, 77].into())
        );
        tables.addresses.pop();
        assert_eq!(build(&tables, &SEED).uplinks[0].v4, Some([192, 168, 1, 7].into()));
    }

    #[test]
    fn the_source_lies_beside_the_gateway() {
        let mut tables = home();
        tables.addresses.insert(0, address(2, "10.0.0.7/8"));
        assert_eq!(build(&tables, &SEED).uplinks[0].v4, Some([192, 168, 1, 7].into()));
    }

    #[test]
    fn a_default_route_outside_the_main_table_counts_but_the_main_one_ranks() {
        let mut tables = home();
        tables.routes[0].table = 100;
        let mut policy = route(2, "192.168.1.254", 1);
        policy.table = 100;
        tables.routes.push(policy);
        let network = build(&tables, &SEED);
        assert_eq!(names(&network), ["eth0", "wlan0"]);
        assert_eq!(network.uplinks[0].gateway, Some(IpAddr::from([192, 168, 1, 1])));
    }

    #[test]
    fn prefixes_match_bit_by_bit_and_never_across_families() {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert!(in_prefix(ip("10.0.0.129"), ip("10.0.0.255"), 25));
        assert!(!in_prefix(ip("10.0.0.127"), ip("10.0.0.255"), 25));
        assert!(in_prefix(ip("8.8.8.8"), ip("10.0.0.1"), 0));
        assert!(in_prefix(ip("fd00::1"), ip("fd00::2"), 64) && !in_prefix(ip("fd00::1"), ip("fd00::2"), 128));
        assert!(!in_prefix(ip("::ffff:10.0.0.1"), ip("10.0.0.1"), 0));
    }
}
