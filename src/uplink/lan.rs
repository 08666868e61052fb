//! Which interfaces are the household's: where peers are looked for, and from where they are listened to (G2, G3, G4).
//!
//! The rule is careful on purpose: announcing on a WAN side or into somebody else's container network is worse than not
//! finding a peer, for which the owner can name interfaces.

use std::net::{IpAddr, SocketAddr};

use crate::types::UplinkKind;
use crate::uplink::{Interface, Network, build};

/// Interfaces that containers, virtual machines and tunnels make: peers behind them are on no household link.
const PLUMBING: &[&str] = &[
    "docker",
    "veth",
    "virbr",
    "cni",
    "flannel",
    "cali",
    "podman",
    "lxc",
    "lxdbr",
    "incusbr",
    "vmnet",
    "vboxnet",
    "tailscale",
    "wg",
    "tun",
    "tap",
    "zt",
    "ppp",
];
/// Docker names its networks' bridges `br-` and so many hex digits.
const DOCKER_BRIDGE_DIGITS: usize = 12;
/// A longer IPv4 prefix leaves no room for a neighbour.
const LONGEST_V4: u8 = 30;
/// The same for IPv6.
const LONGEST_V6: u8 = 126;

impl Network {
    /// The interfaces on which peers may be met. `only` names them by hand: then only being up counts.
    pub fn lan_interfaces(&self, only: Option<&[String]>) -> Vec<&Interface> {
        let wanted = |i: &&Interface| match only {
            Some(names) => i.up && names.contains(&i.name),
            None => why_not(i).is_none(),
        };
        self.interfaces.iter().filter(wanted).collect()
    }

    /// The other interfaces, each with why peers are not looked for on it. `only` as above.
    pub fn other_interfaces(&self, only: Option<&[String]>) -> Vec<(&Interface, NotLan)> {
        let reason = |i: &Interface| match only {
            Some(names) if !names.contains(&i.name) => Some(NotLan::NotNamed),
            Some(_) => (!i.up).then_some(NotLan::Down),
            None => why_not(i),
        };
        let with_reason = |i| Some((i, reason(i)?));
        self.interfaces.iter().filter_map(with_reason).collect()
    }

    /// Whether `ip` is a direct neighbour on one of the [`lan_interfaces`](Self::lan_interfaces): in a connected prefix,
    /// or IPv6 link-local. IPv4-mapped addresses are taken as IPv4.
    pub fn is_on_link(&self, ip: IpAddr, only: Option<&[String]>) -> bool {
        let ip = ip.to_canonical();
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let near = |i: &&Interface| {
            let prefix = |(own, len): &(IpAddr, u8)| build::in_prefix(ip, *own, *len);
            (link_local && !i.loopback) || i.addresses.iter().any(prefix)
        };
        self.lan_interfaces(only).iter().any(near)
    }

    /// Whether what comes from that address comes from the LAN: as [`is_on_link`](Self::is_on_link), and a link-local one by
    /// one of its interfaces, because it means another host on each. Of an address without a scope nobody knows which.
    pub fn hears(&self, from: SocketAddr, only: Option<&[String]>) -> bool {
        let scope = match from {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => v6.scope_id(),
            _ => 0,
        };
        let ours = || self.lan_interfaces(only).iter().any(|i| i.index == scope);
        (scope == 0 || ours()) && self.is_on_link(from.ip(), only)
    }

    /// Whether whoever is at `ip` is on a network to which this device was only carried.
    pub fn is_away(&self, ip: IpAddr, only: Option<&[String]>) -> bool {
        let near = |i: &Interface| {
            i.addresses
                .iter()
                .any(|(own, len)| build::in_prefix(ip, *own, *len))
        };
        self.interfaces.iter().any(|i| i.away && near(i)) && !self.is_on_link(ip, only)
    }

    /// Whether `ip` is one of this device's addresses, on any interface.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let owns = |i: &Interface| i.addresses.iter().any(|(own, _)| *own == ip);
        ip.is_loopback() || self.interfaces.iter().any(owns)
    }
}

/// Why an interface is not the household's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLan {
    /// It is down, or has no carrier.
    Down,
    /// It only reaches this device.
    Loopback,
    /// A tunnel, a container's network, or a line with one other end.
    Plumbing,
    /// It leads to a mobile network.
    Cellular,
    /// It cannot multicast.
    NoMulticast,
    /// It has a public address: that is a provider's side.
    Public,
    /// It has no private address, or one without room for a neighbour.
    NoAddress,
    /// This device was carried away from its home network.
    Away,
    /// The owner named others.
    NotNamed,
}

/// Why it is none, the most telling reason first; `None` for one of the household's.
fn why_not(interface: &Interface) -> Option<NotLan> {
    let addresses = &interface.addresses;
    let reasons = [
        (interface.loopback, NotLan::Loopback),
        (interface.kind == UplinkKind::Cellular, NotLan::Cellular),
        (
            interface.point_to_point || is_plumbing(&interface.name),
            NotLan::Plumbing,
        ),
        (!interface.up, NotLan::Down),
        (!interface.multicast, NotLan::NoMulticast),
        (addresses.iter().any(|(ip, _)| is_public_v4(*ip)), NotLan::Public),
        (
            !addresses.iter().any(|(ip, len)| is_household_address(*ip, *len)),
            NotLan::NoAddress,
        ),
        (interface.away, NotLan::Away),
    ];
    reasons.into_iter().find_map(|(so, why)| so.then_some(why))
}

fn is_plumbing(name: &str) -> bool {
    let docker_bridge = |rest: &str| {
        rest.len() == DOCKER_BRIDGE_DIGITS && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    PLUMBING.iter().any(|prefix| name.starts_with(prefix))
        || name.strip_prefix("br-").is_some_and(docker_bridge)
}

fn is_household_address(ip: IpAddr, len: u8) -> bool {
    match ip {
        IpAddr::V4(v4) => (v4.is_private() || v4.is_link_local()) && len <= LONGEST_V4,
        IpAddr::V6(v6) => (v6.is_unique_local() || v6.is_unicast_link_local()) && len <= LONGEST_V6,
    }
}

/// Carrier-grade NAT's 100.64.0.0/10 counts as public: it is a provider's side.
fn is_public_v4(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if !v4.is_private() && !v4.is_link_local() && !v4.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use crate::uplink::Router;

    use super::*;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        let parse = |cidr: &&str| {
            let (ip, len) = cidr.split_once('/').unwrap();
            (ip.parse().unwrap(), len.parse().unwrap())
        };
        Interface {
            index: 1,
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
        }
    }

    fn household(interface: Interface) -> bool {
        let network = Network {
            interfaces: vec![interface],
            uplinks: vec![],
        };
        !network.lan_interfaces(None).is_empty()
    }

    #[test]
    fn private_networks_are_the_household() {
        for addresses in [
            &["192.168.1.7/24"][..],
            &["10.0.0.1/8"],
            &["172.16.3.4/12", "2001:db8::7/64"],
            &["169.254.7.7/16"],
            &["fd00::7/64"],
            &["fe80::7/64"],
        ] {
            assert!(household(interface("eth0", addresses)), "{addresses:?}");
        }
    }

    #[test]
    fn a_wan_side_is_not_the_household() {
        for addresses in [
            &[][..],
            &["203.0.113.7/24"],
            &["203.0.113.7/24", "192.168.1.7/24"],
            &["100.64.0.7/10", "fe80::7/64"],
            &["10.0.0.1/31"],
            &["10.0.0.1/32"],
            &["2001:db8::7/64"],
        ] {
            assert!(!household(interface("eth0", addresses)), "{addresses:?}");
        }
    }

    #[test]
    fn container_and_tunnel_plumbing_is_not_the_household_but_a_bridge_of_the_owner_is() {
        for name in [
            "docker0",
            "br-0123456789ab",
            "virbr0",
            "veth12ab",
            "cni0",
            "flannel.1",
            "tailscale0",
            "wg0",
            "tun0",
            "tap0",
            "zt5u4uutwx",
        ] {
            assert!(!household(interface(name, &["10.0.0.1/24"])), "{name}");
        }
        for name in [
            "lan0",
            "br-lan",
            "br0",
            "eth0",
            "enx001122334455",
            "wlan0",
            "br-0123456789",
        ] {
            assert!(household(interface(name, &["10.0.0.1/24"])), "{name}");
        }
    }

    #[test]
    fn what_is_down_cellular_point_to_point_or_cannot_multicast_is_not_the_household() {
        let good = interface("eth0", &["10.0.0.1/24"]);
        let spoil: [fn(&mut Interface); 5] = [
            |i| i.up = false,
            |i| i.kind = UplinkKind::Cellular,
            |i| i.point_to_point = true,
            |i| i.multicast = false,
            |i| i.loopback = true,
        ];
        for spoil in spoil {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(!household(bad));
        }
    }

    #[test]
    fn names_given_by_hand_override_every_rule_but_being_up() {
        let mut down = interface("eth1", &["10.0.1.1/24"]);
        down.up = false;
        let network = Network {
            interfaces: vec![
                interface("lo", &["127.0.0.1/8", "::1/128"]),
                interface("eth0", &["10.0.0.1/24"]),
                interface("wg0", &["203.0.113.1/32"]),
                down,
            ],
            uplinks: vec![],
        };
        let only = ["lo", "wg0", "eth1", "none"].map(String::from);
        let names: Vec<_> = network
            .lan_interfaces(Some(&only))
            .iter()
            .map(|i| i.name.as_str())
            .collect();
        assert_eq!(names, ["lo", "wg0"]);
    }

    #[test]
    fn a_neighbour_is_on_link_only_in_a_prefix_of_a_household_interface() {
        let network = Network {
            interfaces: vec![
                interface("lo", &["127.0.0.1/8", "::1/128"]),
                interface("eth0", &["192.168.1.7/24", "2001:db8:1::7/64", "fe80::7/64"]),
                interface("wan0", &["203.0.113.7/24"]),
            ],
            uplinks: vec![],
        };
        let on_link = |ip: &str| network.is_on_link(ip.parse().unwrap(), None);
        for ip in [
            "192.168.1.200",
            "::ffff:192.168.1.200",
            "2001:db8:1::99",
            "fe80::99",
        ] {
            assert!(on_link(ip), "{ip}");
        }
        for ip in [
            "192.168.2.1",
            "203.0.113.9",
            "127.0.0.1",
            "::1",
            "2001:db8:2::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(!on_link(ip), "{ip}");
        }
        let lo = ["lo".to_owned()];
        assert!(network.is_on_link("127.0.0.1".parse().unwrap(), Some(&lo)));
        assert!(!network.is_on_link("192.168.1.200".parse().unwrap(), Some(&lo)));
        assert!(!network.is_on_link("fe80::99".parse().unwrap(), Some(&lo)));
    }

    #[test]
    fn sec_f1_a_link_local_neighbour_is_heard_by_a_household_interface_only() {
        let wan = Interface {
            index: 2,
            ..interface("wan0", &["203.0.113.7/24", "fe80::7/64"])
        };
        let network = Network {
            interfaces: vec![interface("eth0", &["192.168.1.7/24", "fe80::7/64"]), wan],
            uplinks: vec![],
        };
        let hears =
            |ip: &str, scope| network.hears(SocketAddrV6::new(ip.parse().unwrap(), 1, 0, scope).into(), None);
        assert!(hears("fe80::9", 1) && !hears("fe80::9", 2));
        assert!(network.hears(SocketAddr::from(([192, 168, 1, 9], 1)), None));
        assert!(hears("::ffff:192.168.1.9", 0) && !hears("::ffff:203.0.113.9", 0));
    }

    #[test]
    fn own_addresses_are_known_on_every_interface_and_in_every_spelling() {
        let network = Network {
            interfaces: vec![interface("wan0", &["203.0.113.7/24", "2001:db8::7/64"])],
            uplinks: vec![],
        };
        for ip in [
            "203.0.113.7",
            "::ffff:203.0.113.7",
            "2001:db8::7",
            "127.0.0.5",
            "::1",
        ] {
            assert!(network.is_own(ip.parse().unwrap()), "{ip}");
        }
        assert!(!network.is_own("203.0.113.8".parse().unwrap()));
    }
}
