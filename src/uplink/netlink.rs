//! Reads the kernel's tables over rtnetlink and hands them to `build`: no decision is made here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::uplink::build::{self, Address, DefaultRoute, Link, Neighbour, OnLink, Tables};
use crate::uplink::{Network, Seed, UplinkError, kind};

/// The kernel answers in well under a millisecond; this only ends a wait for an answer that was lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// More of anything than a household device has: bounds memory on a machine with thousands of containers or routes.
const MAX_ENTRIES: usize = 4096;

/// Asks the kernel for one fresh snapshot. `seed` names lines whose gateway shows no MAC address: see [`Seed`].
///
/// # Errors
/// When netlink is not available (a sandbox) or the kernel refuses the tables of links or addresses.
pub async fn enumerate(seed: Seed) -> Result<Network, UplinkError> {
    Ok(build::build(&tables().await?, &seed))
}

/// The kernel's tables as they are now.
pub(super) async fn tables() -> Result<Tables, UplinkError> {
    let (links, addresses, all) = ask(async |handle| dump(&handle).await).await?;
    let (mut routes, mut on_link) = (Vec::new(), Vec::new());
    for route in all {
        match route {
            Route::Default(route) => routes.push(route),
            Route::OnLink(route) => on_link.push(route),
        }
    }
    // Apart, for where only this is refused (an emulated kernel ends the conversation over it): without neighbours lines
    // are told apart by device and interface, which is worse but works.
    let neighbours = ask(async |handle| {
        let table = handle.neighbours().get().execute();
        collect("neighbours", table, |m| neighbour(&m)).await
    });
    let neighbours = neighbours.await.unwrap_or_default();
    let mut classified = Vec::with_capacity(links.len());
    for link in links {
        classified.push(link.classify().await);
    }
    Ok(Tables {
        links: classified,
        addresses,
        routes,
        on_link,
        neighbours,
    })
}

/// One conversation with the kernel.
async fn ask<T>(what: impl AsyncFnOnce(Handle) -> Result<T, UplinkError>) -> Result<T, UplinkError> {
    let (connection, handle, _unsolicited) = rtnetlink::new_connection().map_err(UplinkError::Socket)?;
    let answered = tokio::time::timeout(ANSWER_LIMIT, async {
        tokio::select! {
            answer = what(handle) => answer,
            () = connection => Err(UplinkError::Socket(std::io::ErrorKind::BrokenPipe.into())),
        }
    });
    answered.await.map_err(|_| UplinkError::Timeout(ANSWER_LIMIT))?
}

async fn dump(handle: &Handle) -> Result<(Vec<RawLink>, Vec<Address>, Vec<Route>), UplinkError> {
    let links = collect("links", handle.link().get().execute(), |m| raw_link(&m)).await?;
    let addresses = collect("addresses", handle.address().get().execute(), |m| address(&m)).await?;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut all = collect("IPv4 routes", handle.route().get(v4).execute(), |m| routes(&m)).await?;
    // A kernel without IPv6 refuses this one, and has no such routes.
    let v6 = collect("IPv6 routes", handle.route().get(v6).execute(), |m| routes(&m)).await;
    all.extend(v6.unwrap_or_default());
    Ok((links, addresses, all))
}

/// Reads a table to its end, keeping what `pick` makes of its messages.
async fn collect<M, T, I>(
    table: &'static str,
    messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
    pick: impl Fn(M) -> I,
) -> Result<Vec<T>, UplinkError>
where
    I: IntoIterator<Item = T>,
{
    let mut kept = Vec::new();
    let mut messages = std::pin::pin!(messages);
    let failed = |error: rtnetlink::Error| UplinkError::Dump {
        table,
        reason: reason(&error),
    };
    while let Some(message) = messages.try_next().await.map_err(failed)? {
        if kept.len() < MAX_ENTRIES {
            kept.extend(pick(message));
        }
    }
    Ok(kept)
}

/// Why the kernel refused. Not as the library would say it: that shows whole messages, and the code to show every kind of
/// them is 240 kB.
fn reason(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(refusal) => refusal.to_io().to_string(),
        rtnetlink::Error::RequestFailed => "the conversation ended".to_owned(),
        _ => "an answer that does not fit the question".to_owned(),
    }
}

struct RawLink {
    index: u32,
    name: String,
    flags: LinkFlags,
    info: Option<String>,
}

impl RawLink {
    async fn classify(self) -> Link {
        // Virtual links have no hardware to look at, and on a host of containers they are many.
        let hardware = match self.info {
            None => kind::hardware(&self.name).await,
            Some(_) => kind::Hardware::default(),
        };
        let has = |flag| self.flags.contains(flag);
        Link {
            kind: kind::classify(&self.name, self.info.as_deref(), &hardware),
            index: self.index,
            up: has(LinkFlags::Up) && has(LinkFlags::Running),
            loopback: has(LinkFlags::Loopback),
            point_to_point: has(LinkFlags::Pointopoint),
            multicast: has(LinkFlags::Multicast),
            name: self.name,
        }
    }
}

fn raw_link(message: &LinkMessage) -> Option<RawLink> {
    let attributes = &message.attributes;
    let name = attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let info = attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|i| match i {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        }),
        _ => None,
    });
    Some(RawLink {
        index: message.header.index,
        name,
        flags: message.header.flags,
        info,
    })
}

fn address(message: &AddressMessage) -> Option<Address> {
    let attributes = &message.attributes;
    // On point-to-point links `Address` is the other end and `Local` is ours.
    let local = attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let given = attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let has = |flag| message.header.flags.contains(flag);
    Some(Address {
        index: message.header.index,
        ip: local.or(given)?,
        prefix: message.header.prefix_len,
        usable: !has(AddressHeaderFlags::Tentative) && !has(AddressHeaderFlags::Dadfailed),
        secondary: has(AddressHeaderFlags::Deprecated) || has(AddressHeaderFlags::Secondary),
    })
}

/// A route that matters here.
enum Route {
    Default(DefaultRoute),
    OnLink(OnLink),
}

fn routes(message: &RouteMessage) -> Vec<Route> {
    let defaults = default_routes(message).into_iter().map(Route::Default);
    defaults.chain(on_link(message).map(Route::OnLink)).collect()
}

/// A route to a network that needs no gateway; nothing for any other route.
fn on_link(message: &RouteMessage) -> Option<OnLink> {
    let header = &message.header;
    if header.destination_prefix_length == 0 || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut index, mut network) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Destination(to) => network = ip(to),
            RouteAttribute::MultiPath(_) => return None,
            other if gateway(other).is_some() => return None,
            _ => {}
        }
    }
    Some(OnLink {
        index: index?,
        network: network?,
        prefix: header.destination_prefix_length,
    })
}

/// The next hops of a default route (more than one for a multipath route); nothing for any other route.
fn default_routes(message: &RouteMessage) -> Vec<DefaultRoute> {
    let header = &message.header;
    if header.destination_prefix_length != 0
        || header.source_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown)
    {
        return Vec::new();
    }
    let mut route = DefaultRoute {
        index: 0,
        v6: header.address_family == rtnetlink::packet_route::AddressFamily::Inet6,
        gateway: None,
        source: None,
        metric: 0,
        table: header.table.into(),
    };
    let mut hops: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.index = *index,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::MultiPath(paths) => hops = paths,
            other => route.gateway = gateway(other).or(route.gateway),
        }
    }
    let alive = |hop: &&RouteNextHop| {
        !hop.flags
            .intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
    };
    let hop = |hop: &RouteNextHop| DefaultRoute {
        index: hop.interface_index,
        gateway: hop.attributes.iter().find_map(gateway),
        ..route.clone()
    };
    match hops {
        [] if route.index == 0 => Vec::new(),
        [] => vec![route],
        hops => hops.iter().filter(alive).map(hop).collect(),
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some((*v4).into()),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let attributes = &message.attributes;
    let ip = attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    })?;
    let mac = attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
        _ => None,
    })?;
    Some(Neighbour {
        index: message.header.ifindex,
        ip,
        mac,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use rtnetlink::packet_route::AddressFamily;

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = 254;
        message.attributes = attributes;
        message
    }

    fn v4(last: u8) -> RouteAddress {
        RouteAddress::Inet([192, 168, 1, last].into())
    }

    #[test]
    fn a_default_route_is_read_with_gateway_metric_source_and_its_long_table_number() {
        let found = default_routes(&route(vec![
            RouteAttribute::Table(51820),
            RouteAttribute::Oif(2),
            RouteAttribute::Gateway(v4(1)),
            RouteAttribute::PrefSource(v4(7)),
            RouteAttribute::Priority(100),
        ]));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].index, found[0].metric, found[0].table), (2, 100, 51820));
        assert_eq!(found[0].gateway, Some([192, 168, 1, 1].into()));
        assert_eq!(found[0].source, Some([192, 168, 1, 7].into()));
    }

    #[test]
    fn sec_a6_a_route_without_a_gateway_leads_to_neighbours() {
        let to = RouteAttribute::Destination(RouteAddress::Inet([192, 0, 2, 0].into()));
        let of = |attributes: &[RouteAttribute], prefix| {
            let mut message = route([std::slice::from_ref(&to), attributes].concat());
            message.header.destination_prefix_length = prefix;
            message
        };
        let found = on_link(&of(&[RouteAttribute::Oif(2)], 24)).unwrap();
        assert_eq!(
            (found.index, found.network, found.prefix),
            (2, [192, 0, 2, 0].into(), 24)
        );
        let by = RouteAttribute::Gateway(RouteAddress::Inet([192, 168, 1, 1].into()));
        let mut local = of(&[RouteAttribute::Oif(1)], 32);
        local.header.kind = RouteType::Local;
        for other in [
            of(&[RouteAttribute::Oif(2), by], 24),
            of(&[RouteAttribute::Oif(2)], 0),
            of(&[], 24),
            local,
        ] {
            assert!(on_link(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn routes_to_somewhere_and_unreachable_ones_are_left_out() {
        let mut somewhere = route(vec![RouteAttribute::Oif(2)]);
        somewhere.header.destination_prefix_length = 24;
        let mut unreachable = route(vec![RouteAttribute::Oif(1)]);
        unreachable.header.kind = RouteType::Unreachable;
        let mut dead = route(vec![RouteAttribute::Oif(1)]);
        dead.header.flags = RouteFlags::Linkdown;
        for message in [somewhere, unreachable, dead, route(vec![])] {
            assert!(default_routes(&message).is_empty());
        }
    }

    #[test]
    fn each_living_hop_of_a_multipath_route_is_a_way_out() {
        let hop = |index, flags, last| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.flags = flags;
            hop.attributes = vec![RouteAttribute::Gateway(v4(last))];
            hop
        };
        let hops = vec![
            hop(2, RouteNextHopFlags::empty(), 1),
            hop(3, RouteNextHopFlags::Dead, 2),
            hop(4, RouteNextHopFlags::empty(), 3),
        ];
        let found = default_routes(&route(vec![
            RouteAttribute::MultiPath(hops),
            RouteAttribute::Priority(7),
        ]));
        let seen: Vec<_> = found.iter().map(|r| (r.index, r.metric, r.gateway)).collect();
        assert_eq!(
            seen,
            [
                (2, 7, Some([192, 168, 1, 1].into())),
                (4, 7, Some([192, 168, 1, 3].into()))
            ]
        );
    }

    #[test]
    fn ipv4_through_an_ipv6_gateway_is_understood() {
        let via = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
        let found = default_routes(&route(vec![RouteAttribute::Oif(2), via]));
        assert_eq!(found[0].gateway, "fe80::1".parse().ok());
    }

    #[test]
    fn on_a_point_to_point_link_our_address_is_the_local_one() {
        let mut message = AddressMessage::default();
        message.header.index = 5;
        message.attributes = vec![
            AddressAttribute::Address("10.0.0.1".parse().unwrap()),
            AddressAttribute::Local("10.0.0.2".parse().unwrap()),
        ];
        assert_eq!(address(&message).unwrap().ip, IpAddr::from([10, 0, 0, 2]));
    }

    #[tokio::test]
    async fn this_machines_loopback_is_found() {
        let network = enumerate([0; 16]).await.unwrap();
        let lo = network.interfaces.iter().find(|i| i.loopback).unwrap();
        assert_eq!(lo.name, "lo");
        assert!(network.uplinks.iter().all(|u| u.name != "lo"));
    }
}
