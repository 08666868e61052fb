//! Keeps one [`Network`] up to date: the kernel's events only trigger a fresh look, shortly debounced.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::task::{Seldom, Tasks};
use crate::uplink::gateways::Gateways;
use crate::uplink::{Network, Rules, Seed, UplinkError, build, netlink};

/// One change of an interface comes as a burst of events; a look after each would see halves.
const QUIET: Duration = Duration::from_millis(100);
/// A device whose tables never rest is still looked at this often.
const BURST: Duration = Duration::from_secs(1);
/// How often to look where there are no events (a sandbox without netlink), and before events are tried again.
const POLL: Duration = Duration::from_secs(10);
/// An interface that flaps must not fill the log.
static NEWS: Seldom = Seldom::new(10, Duration::from_secs(60));
static TROUBLE: Seldom = Seldom::new(3, Duration::from_secs(60));
/// Everything that may add, move or end an uplink, and the neighbours, for a gateway's MAC address.
const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
];

/// The network as it is now, and each change of it while `tasks` runs: of the device's, and of what its owner says of it.
/// The first look is over when this returns; if it failed, the network is empty until one succeeds (the failure is logged).
pub async fn watch(
    seed: Seed,
    rules: watch::Receiver<Rules>,
    tasks: &Tasks,
) -> watch::Receiver<Arc<Network>> {
    let (sender, receiver) = watch::channel(Arc::default());
    let mut watcher = Watcher {
        seed,
        rules,
        seen: Network::default(),
        sender,
        gateways: Gateways::default(),
    };
    watcher.look().await;
    tasks.spawn("uplink watch", watcher.keep());
    receiver
}

/// Looks, remembers, tells.
struct Watcher {
    seed: Seed,
    rules: watch::Receiver<Rules>,
    /// As the kernel has it, without the owner's rules.
    seen: Network,
    sender: watch::Sender<Arc<Network>>,
    gateways: Gateways,
}

impl Watcher {
    async fn keep(mut self) {
        let mut told = false;
        loop {
            let Err(error) = self.follow().await;
            if told {
                tracing::debug!(%error, "still no events of network changes");
            } else {
                tracing::warn!(%error, "no events of network changes: looking every {POLL:?} instead");
                told = true;
            }
            let pause = Instant::now() + POLL;
            while tokio::time::timeout_at(pause, next_rules(&mut self.rules))
                .await
                .is_ok()
            {
                self.publish();
            }
            self.look().await;
        }
    }

    /// Looks whenever the kernel says that something changed. Ends only when its events do.
    async fn follow(&mut self) -> Result<Infallible, UplinkError> {
        let (connection, _handle, events) =
            rtnetlink::new_multicast_connection(GROUPS).map_err(UplinkError::Socket)?;
        let closed = || UplinkError::Socket(std::io::ErrorKind::BrokenPipe.into());
        let events = events.map(|(message, _)| message);
        tokio::select! {
            () = connection => Err(closed()),
            () = self.look_after(events) => Err(closed()),
        }
    }

    async fn look_after(
        &mut self,
        mut events: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    ) {
        // What changed before the subscription made no event.
        self.look().await;
        loop {
            let asking = self.gateways.next();
            let event = tokio::select! {
                event = events.next() => event,
                () = next_rules(&mut self.rules) => {
                    self.publish();
                    continue;
                }
                () = tokio::time::sleep_until(asking.unwrap_or_else(std::time::Instant::now).into()), if asking.is_some() => {
                    self.ask();
                    continue;
                }
            };
            match event {
                Some(event) if matters(&event, &self.gateways) => {}
                Some(_) => continue,
                None => return,
            }
            let end = Instant::now() + BURST;
            loop {
                let rest = (Instant::now() + QUIET).min(end);
                match tokio::time::timeout_at(rest, events.next()).await {
                    Ok(Some(_)) if Instant::now() < end => {}
                    Ok(None) => return,
                    _ => break,
                }
            }
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let mut tables = match netlink::tables().await {
            Ok(tables) => tables,
            Err(error) => {
                if let Some(more) = TROUBLE.pass() {
                    tracing::warn!(%error, more, "cannot look at the network; keeping what was seen last");
                }
                return;
            }
        };
        self.gateways.recall(&mut tables, std::time::Instant::now());
        self.seen = build::build(&tables, &self.seed);
        self.publish();
        self.ask();
    }

    /// Asks for the gateways that nobody has talked to yet.
    fn ask(&mut self) {
        for question in self.gateways.due(std::time::Instant::now()) {
            if let Err(error) = question.ask() {
                tracing::debug!(?question, %error, "a gateway cannot be asked for its address");
            }
        }
    }

    fn publish(&mut self) {
        let network = self.rules.borrow_and_update().apply(self.seen.clone());
        let changed = self.sender.send_if_modified(|known| {
            let changed = **known != network;
            if changed {
                *known = Arc::new(network);
            }
            changed
        });
        if changed && let Some(more) = NEWS.pass() {
            let names: Vec<_> = self
                .sender
                .borrow()
                .uplinks
                .iter()
                .map(|u| u.name.clone())
                .collect();
            tracing::info!(uplinks = ?names, more, "network changed");
        }
    }
}

/// Returns when the owner says something else. Without anybody who could, never.
async fn next_rules(rules: &mut watch::Receiver<Rules>) {
    if rules.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Neighbours come and go all the time on a busy LAN: only a gateway's MAC address is of interest, and only where it was
/// not known. All other events are, and so is word that events were lost (`Overrun`).
fn matters(event: &NetlinkMessage<RouteNetlinkMessage>, gateways: &Gateways) -> bool {
    match &event.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
            netlink::neighbour(message).is_some_and(|n| gateways.is_news(&n))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(_)) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::Lend;

    use std::net::Ipv4Addr;

    use rtnetlink::packet_core::NetlinkHeader;
    use rtnetlink::packet_route::link::LinkMessage;
    use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn event(message: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
        NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message))
    }

    fn neighbour(ip: Ipv4Addr, mac: Option<[u8; 6]>) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(ip))];
        message
            .attributes
            .extend(mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.to_vec())));
        event(RouteNetlinkMessage::NewNeighbour(message))
    }

    #[test]
    fn of_all_neighbours_only_a_gateway_with_a_mac_not_known_yet_is_worth_a_look() {
        let mut gateways = Gateways::default();
        let mut tables = Gateways::behind(GATEWAY.into());
        gateways.recall(&mut tables, std::time::Instant::now());
        assert!(matters(&neighbour(GATEWAY, Some([2; 6])), &gateways));
        assert!(!matters(&neighbour(GATEWAY, None), &gateways));
        let other = neighbour([192, 168, 1, 9].into(), Some([2; 6]));
        assert!(!matters(&other, &gateways));
    }

    #[test]
    fn a_link_event_and_word_of_lost_events_are_worth_a_look() {
        let known = Gateways::default();
        assert!(matters(
            &event(RouteNetlinkMessage::NewLink(LinkMessage::default())),
            &known
        ));
        let lost = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(vec![]));
        assert!(matters(&lost, &known));
    }

    fn no_rules() -> watch::Receiver<Rules> {
        watch::channel(Rules::default()).1
    }

    #[tokio::test]
    async fn new_rules_are_applied_at_once_to_what_was_seen_last() {
        let (rules, receiver) = watch::channel(Rules::default());
        let (sender, network) = watch::channel(Arc::default());
        let mut tables = Gateways::behind(GATEWAY.into());
        tables.addresses.push(build::Address {
            index: 2,
            ip: [192, 168, 1, 7].into(),
            prefix: 24,
            usable: true,
            secondary: false,
        });
        let seen = build::build(&tables, &[0; 16]);
        let mut watcher = Watcher {
            seed: [0; 16],
            rules: receiver,
            seen: seen.clone(),
            sender,
            gateways: Gateways::default(),
        };
        watcher.publish();
        assert_eq!(network.borrow().uplinks[0].lend, Lend::All);
        let mut other = Rules::default();
        other.entry(&seen.uplinks[0].name).lend = Lend::Nobody;
        rules.send_replace(other);
        next_rules(&mut watcher.rules).await;
        watcher.publish();
        assert_eq!(network.borrow().uplinks[0].lend, Lend::Nobody);
        rules.send_replace(Rules::default());
        next_rules(&mut watcher.rules).await;
        watcher.publish();
        assert_eq!(**network.borrow(), seen, "nothing is left of a rule that is gone");
    }

    #[tokio::test]
    async fn the_first_look_is_over_when_watch_returns() {
        let tasks = Tasks::new();
        let network = watch([0; 16], no_rules(), &tasks).await;
        assert!(network.borrow().interfaces.iter().any(|i| i.loopback));
        assert!(tasks.stop(Duration::from_secs(5)).await);
    }
}
