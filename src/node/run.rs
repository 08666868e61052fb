//! The node's own loop: news of network, peers and discovery become lanes, offers, dials and lent tunnels.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::clock::{Jump, Jumps, Reading};
use crate::discovery::Event as Found;
use crate::identity::StateDir;
use crate::link::{DialError, Gate, Incoming, LinkEvent, Links, Offer};
use crate::relay::Relay;
use crate::task::Tasks;
use crate::types::PeerId;
use crate::uplink::Network;

use super::book::Book;
use super::dialer::{Dialer, Target};
use super::holddown::HoldDown;
use super::lanes::Lanes;

/// Peers met are noted at most this often: the file may lie on an SD card.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// A peer with a link is not dialled; its address is looked at again after this.
const LINKED: Duration = Duration::from_secs(30);
/// How often the clocks are looked at: what a suspended device held is dead, and is not to be waited for.
const CLOCKS: Duration = Duration::from_secs(1);
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
    pub(super) held: HoldDown,
    pub(super) jumps: Jumps,
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
        let mut clocks = tokio::time::interval(CLOCKS);
        clocks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut release = self.network_changed();
        let stopped = self.tasks.token().clone();
        loop {
            let now = Instant::now();
            if release.is_some_and(|at| at <= now) {
                release = self.network_changed();
            }
            while let Some((target, addresses)) = dialer.due(now) {
                dials.push(dial(self.links.clone(), target, addresses));
            }
            // Without anybody to dial, the next news decides.
            let wake = dialer.timeout(now).unwrap_or(now + SAVE_EVERY);
            let wake = wake.min(release.unwrap_or(wake));
            tokio::select! {
                () = stopped.cancelled() => break,
                () = tokio::time::sleep_until(wake.into()) => {}
                Some((target, result)) = dials.next(), if !dials.is_empty() => {
                    dialled(&mut dialer, &target, &result);
                }
                Some(event) = self.link_events.recv() => self.link(event, &mut dialer),
                Some(event) = self.found.recv() => found(&mut dialer, event),
                Some(incoming) = self.tunnels.recv() => self.relay.serve(incoming),
                Ok(()) = self.network.changed() => release = self.network_changed(),
                _ = clocks.tick() => self.look_at_clocks(),
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
                dialer.broke(link.address(), Instant::now());
            }
        }
    }

    /// Takes the network as it is; gives when to do so again, because an uplink is held back until then.
    fn network_changed(&mut self) -> Option<Instant> {
        let network = Arc::clone(&self.network.borrow_and_update());
        // The peer hears nothing from an address that is gone: it would wait for its timeout, and so would we.
        for link in self.links.all().iter().filter(|l| l.has_moved(&network)) {
            link.abandon("this end has another address now");
        }
        let (usable, release) = self.held.admitted(&network, Instant::now());
        self.use_uplinks(&usable);
        release
    }

    fn use_uplinks(&mut self, usable: &Network) {
        self.lanes.own(usable);
        let now = offers(usable, &self.relay);
        self.offers.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    /// After a sleep everything begins anew: peers and routers have forgotten what was open, and nobody says so.
    fn look_at_clocks(&mut self) {
        if let Some(Jump::Slept(slept)) = self.jumps.look(Reading::now()) {
            tracing::info!(?slept, "the device was suspended: links and lanes begin anew");
            for link in self.links.all() {
                link.abandon("this device was suspended");
            }
            self.lanes.renew();
        }
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
