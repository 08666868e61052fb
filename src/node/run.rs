//! The node's own loop: news of network, peers and discovery become lanes, offers, dials and lent tunnels.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use crate::discovery::Event as Found;
use crate::identity::StateDir;
use crate::link::{DialError, Gate, Incoming, LinkEvent, Links, Offer};
use crate::relay::Relay;
use crate::task::Tasks;
use crate::types::PeerId;
use crate::uplink::Network;

use super::book::Book;
use super::dialer::{Dialer, Target};
use super::lanes::Lanes;

/// Peers met are noted at most this often: the file may lie on an SD card.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// A peer with a link is not dialled; its address is looked at again after this.
const LINKED: Duration = Duration::from_secs(30);
/// Known addresses are dialled so much after the start: whoever is there and hears our announcement dials at once, and
/// two links that cross each other cost the one that loses its tunnels.
const KNOWN_AFTER: Duration = Duration::from_millis(300);

type Dial = BoxFuture<'static, (Target, Result<PeerId, DialError>)>;

/// Everything the loop owns.
pub(super) struct Run {
    pub(super) state: StateDir,
    pub(super) network: watch::Receiver<Arc<Network>>,
    pub(super) offers: watch::Sender<Vec<Offer>>,
    pub(super) links: Links,
    pub(super) link_events: mpsc::Receiver<LinkEvent>,
    pub(super) tunnels: mpsc::Receiver<Incoming>,
    pub(super) found: mpsc::Receiver<Found>,
    pub(super) relay: Relay,
    pub(super) lanes: Lanes,
    pub(super) book: Book,
    pub(super) tasks: Tasks,
}

impl Run {
    /// Runs until the scope ends.
    pub(super) async fn until_stopped(mut self, peers: Vec<SocketAddr>) {
        let now = Instant::now();
        let mut dialer = Dialer::new(now);
        let named = peers.into_iter().map(Target::Named);
        for target in self.book.addresses().map(Target::Met).chain(named) {
            if let Target::Met(address) | Target::Named(address) = target {
                dialer.add(target, vec![address], now + KNOWN_AFTER);
            }
        }
        let mut dials = FuturesUnordered::<Dial>::new();
        let mut save = tokio::time::interval(SAVE_EVERY);
        let stopped = self.tasks.token().clone();
        loop {
            let now = Instant::now();
            while let Some((target, addresses)) = dialer.due(now) {
                if self.links.has_at(&addresses) {
                    dialer.spared(&target, now);
                } else {
                    dials.push(dial(self.links.clone(), target, addresses));
                }
            }
            // Without anybody to dial, the next news decides.
            let wake = dialer.timeout(now).unwrap_or(now + SAVE_EVERY);
            tokio::select! {
                () = stopped.cancelled() => break,
                () = tokio::time::sleep_until(wake.into()) => {}
                Some((target, result)) = dials.next(), if !dials.is_empty() => {
                    dialled(&mut dialer, &target, &result);
                }
                Some(event) = self.link_events.recv() => self.link(event, &mut dialer),
                Some(event) = self.found.recv() => found(&mut dialer, event),
                Some(incoming) = self.tunnels.recv() => self.relay.serve(incoming),
                Ok(()) = self.network.changed() => self.network_changed(),
                _ = save.tick() => self.book.save(&self.state),
            }
        }
        self.book.save(&self.state);
    }

    fn link(&mut self, event: LinkEvent, dialer: &mut Dialer) {
        match event {
            LinkEvent::Up(link) => {
                self.lanes.peer(&link);
                self.book.met(link.peer(), link.address());
                // Should the link break while multicast does not get through either.
                let address = link.address();
                dialer.add(Target::Met(address), vec![address], Instant::now() + LINKED);
            }
            LinkEvent::Changed(peer) => {
                if let Some(link) = self.links.all().iter().find(|l| l.peer() == peer) {
                    self.lanes.peer(link);
                }
            }
            LinkEvent::Down(link) => {
                self.lanes.peer_gone(link.peer());
                // A device that was refused as a copy of another asks again at its own pace.
                if !link.is_refused_as_copy() {
                    dialer.broke(link.address(), Instant::now());
                }
            }
        }
    }

    fn network_changed(&mut self) {
        let network = Arc::clone(&self.network.borrow_and_update());
        self.lanes.own(&network);
        let now = offers(&network, &self.relay);
        self.offers.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

/// What this device lends, as peers are told.
pub(super) fn offers(network: &Network, relay: &Relay) -> Vec<Offer> {
    let lent = relay.offered(network).into_iter();
    lent.map(|u| Offer {
        id: u.index,
        name: u.name.clone(),
        line: u.line,
        kind: u.kind,
        metered: u.metered,
        down: None,
    })
    .collect()
}

/// Lets in who is on the LAN.
pub(super) fn gate(network: watch::Receiver<Arc<Network>>, interfaces: Option<Vec<String>>) -> Gate {
    Arc::new(move |ip| network.borrow().is_on_link(ip, interfaces.as_deref()))
}

fn dial(links: Links, target: Target, addresses: Vec<SocketAddr>) -> Dial {
    Box::pin(async move {
        let result = links.dial(&addresses).await;
        (target, result)
    })
}

fn dialled(dialer: &mut Dialer, target: &Target, result: &Result<PeerId, DialError>) {
    if let Err(error) = result {
        tracing::debug!(?target, %error, "dial");
    }
    match result {
        Err(DialError::Ourselves) => dialer.forget(target),
        _ => {
            let answered = matches!(result, Ok(_) | Err(DialError::Duplicate));
            dialer.ended(target, answered, Instant::now());
        }
    }
}

fn found(dialer: &mut Dialer, event: Found) {
    match event {
        Found::Found(candidate) => {
            dialer.add(
                Target::Found(candidate.instance),
                candidate.addresses,
                Instant::now(),
            );
        }
        Found::Lost { instance } => dialer.forget(&Target::Found(instance)),
    }
}
