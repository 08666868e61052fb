//! Which line an uplink really ends in, where its gateway is a peer: that peer's own.
//!
//! A device decides that for itself, by the link it has with its gateway: nobody's word about others counts, so a lying
//! neighbour cannot make one line of two honest peers' (the gateway itself can, and could as well drop every packet).
//! Chains follow by themselves, because what a router tells of its home is what it found out in the same way.
//!
//! Invariants: pure; whoever finds itself among those its gateway is behind keeps its own line, so routers that point at
//! each other settle and do not swap lines for ever.

use std::net::SocketAddr;

use crate::link::{Home, MAX_BEHIND};
use crate::types::PeerId;
use crate::uplink::{Network, Uplink};

/// What this device knows of a peer it has a link with.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    pub(super) peer: PeerId,
    pub(super) address: SocketAddr,
    pub(super) home: Home,
}

/// The network with each uplink's true line, and what to tell of our own.
pub(super) fn resolve(me: PeerId, network: &Network, linked: &[Linked]) -> (Network, Home) {
    let mut network = network.clone();
    for uplink in &mut network.uplinks {
        if let Some(router) = router(uplink, linked)
            && let Some(line) = router.home.line
            && !uplink.line_named
            && !router.home.behind.contains(&me)
        {
            uplink.line = line;
        }
    }
    let best = network.uplinks.first();
    let home = Home {
        line: best.map(|u| u.line),
        behind: best
            .and_then(|u| router(u, linked))
            .map_or_else(Vec::new, |r| behind(me, r)),
    };
    (network, home)
}

/// The peer that is this uplink's gateway, if one is.
fn router<'a>(uplink: &Uplink, linked: &'a [Linked]) -> Option<&'a Linked> {
    linked.iter().find(|peer| {
        let here = match peer.address {
            // Link-local addresses may be the same on two interfaces.
            SocketAddr::V6(v6) => v6.scope_id() == 0 || v6.scope_id() == uplink.index,
            SocketAddr::V4(_) => true,
        };
        here && uplink.gateway_addresses.contains(&peer.address.ip())
    })
}

/// The router, and those it is behind, up to ourselves.
fn behind(me: PeerId, router: &Linked) -> Vec<PeerId> {
    let others = router.home.behind.iter().copied();
    std::iter::once(router.peer)
        .chain(others.take_while(|peer| *peer != me))
        .take(MAX_BEHIND)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use crate::types::LineId;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// A device whose only uplink has this physical line, behind the device with that number.
    fn device(line: u8, gateway: Option<u8>) -> Network {
        Network {
            interfaces: vec![],
            uplinks: vec![Uplink {
                line: LineId([line; 8]),
                gateway: gateway.map(ip),
                gateway_addresses: gateway.map(ip).into_iter().collect(),
                ..Uplink::fixture(2, "eth0")
            }],
        }
    }

    fn linked(n: u8, home: &Home) -> Linked {
        Linked {
            peer: peer(n),
            address: (ip(n), 7436).into(),
            home: home.clone(),
        }
    }

    /// Devices 1, 2, ... tell each other their homes, all at once, until nothing changes; gives everybody's line.
    fn settle(gateways: &[Option<u8>]) -> Vec<u8> {
        let devices: Vec<_> = (1..)
            .zip(gateways)
            .map(|(n, gateway)| (n, device(n, *gateway)))
            .collect();
        let mut homes = vec![Home::default(); devices.len()];
        for _ in 0..20 {
            let told: Vec<Linked> = (1..).zip(&homes).map(|(n, home)| linked(n, home)).collect();
            let seen = |me: u8| {
                told.iter()
                    .filter(move |l| l.peer != peer(me))
                    .cloned()
                    .collect::<Vec<_>>()
            };
            let next = devices
                .iter()
                .map(|(n, network)| resolve(peer(*n), network, &seen(*n)).1);
            let next: Vec<Home> = next.collect();
            if next == homes {
                return homes.iter().map(|h| h.line.unwrap().0[0]).collect();
            }
            homes = next;
        }
        panic!("no rest: {homes:?}");
    }

    #[test]
    fn whoever_is_behind_a_peer_ends_in_that_peers_line() {
        assert_eq!(settle(&[None, Some(1), Some(1), None]), [1, 1, 1, 4]);
    }

    #[test]
    fn a_chain_of_routers_ends_in_the_last_ones_line() {
        assert_eq!(settle(&[Some(2), Some(3), Some(4), None]), [4, 4, 4, 4]);
    }

    #[test]
    fn routers_that_point_at_each_other_keep_their_own_lines_and_come_to_rest() {
        assert_eq!(settle(&[Some(2), Some(1)]), [1, 2]);
        assert_eq!(settle(&[Some(2), Some(3), Some(1)]), [1, 2, 3]);
        assert_eq!(
            settle(&[Some(2), Some(3), Some(2)])[1..],
            [2, 3],
            "one that leads into a ring"
        );
    }

    #[test]
    fn a_named_line_and_a_gateway_that_tells_nothing_change_nothing() {
        let home = Home {
            line: Some(LineId([9; 8])),
            behind: vec![],
        };
        let mut named = device(1, Some(2));
        named.uplinks[0].line_named = true;
        let line = |network: &Network, home: &Home| {
            resolve(peer(1), network, &[linked(2, home)]).0.uplinks[0].line.0[0]
        };
        assert_eq!(line(&named, &home), 1);
        assert_eq!(line(&device(1, Some(2)), &Home::default()), 1);
        assert_eq!(line(&device(1, Some(2)), &home), 9);
        assert_eq!(
            line(&device(1, Some(3)), &home),
            1,
            "a peer that is not the gateway"
        );
    }

    #[test]
    fn a_gateway_is_known_by_its_link_local_address_on_the_right_interface_only() {
        let mut network = device(1, None);
        network.uplinks[0].gateway_addresses = vec!["fe80::2".parse().unwrap()];
        let home = Home {
            line: Some(LineId([9; 8])),
            behind: vec![],
        };
        for (scope, line) in [(2, 9), (3, 1)] {
            let router = Linked {
                address: std::net::SocketAddrV6::new("fe80::2".parse().unwrap(), 7436, 0, scope).into(),
                ..linked(2, &home)
            };
            assert_eq!(resolve(peer(1), &network, &[router]).0.uplinks[0].line.0[0], line);
        }
    }

    #[test]
    fn a_device_without_a_way_out_has_no_home() {
        assert_eq!(resolve(peer(1), &Network::default(), &[]).1, Home::default());
    }
}
