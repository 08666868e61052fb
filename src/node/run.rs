//! The node's own loop: news of network, peers and discovery become lanes, offers, dials and lent tunnels.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::clock::{Jump, Jumps, Reading};
use crate::discovery::Event as Found;
use crate::identity::StateDir;
use crate::link::{Asked, DialError, Gate, Home, Incoming, Lends, Link, LinkEvent, Links, Offer};
use crate::relay::Relay;
use crate::share::Household;
use crate::task::Tasks;
use crate::trust::{Right, Tier};
use crate::types::PeerId;
use crate::uplink::Network;

use super::Doors;
use super::book::Book;
use super::dialer::{Dialer, Target};
use super::holddown::HoldDown;
use super::homes::{self, Linked};
use super::lanes::Lanes;
use super::rates::{Brought, Rates, Way};
use super::vouching::Vouching;

/// Peers met are noted at most this often: the file may lie on an SD card.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// Rates that changed are told at most this often.
const TELL_RATES_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked at what is being lent, while something is.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// A peer with a link is not dialled; its address is looked at again after this.
const LINKED: Duration = Duration::from_secs(30);
/// How often the clocks are looked at: what a suspended device held is dead, and is not to be waited for.
const CLOCKS: Duration = Duration::from_secs(1);
/// Known addresses are dialled so much after the start: whoever is there and hears our announcement dials at once, and
/// two links that cross each other cost the one that loses its tunnels.
const KNOWN_AFTER: Duration = Duration::from_millis(300);

type Dial = BoxFuture<'static, (Target, Result<PeerId, DialError>)>;

/// What others ask of the loop.
#[derive(Debug)]
pub(super) enum Order {
    /// To say that it is alive.
    Answer(oneshot::Sender<()>),
    /// These are the peers that the owner names now.
    Peers(Vec<SocketAddr>),
}

/// Everything the loop owns.
pub(super) struct Run {
    pub(super) id: PeerId,
    pub(super) state: StateDir,
    pub(super) network: watch::Receiver<Arc<Network>>,
    /// Those on which peers are met, where the owner names them.
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) offers: watch::Sender<Lends>,
    pub(super) home: watch::Sender<Home>,
    pub(super) links: Links,
    pub(super) link_events: mpsc::Receiver<LinkEvent>,
    pub(super) tunnels: mpsc::Receiver<Incoming>,
    /// What members ask; `None`: nobody here answers them.
    pub(super) asked: Option<mpsc::Receiver<Asked>>,
    pub(super) household: Option<Household>,
    pub(super) found: mpsc::Receiver<Found>,
    pub(super) relay: Relay,
    pub(super) lanes: Lanes,
    pub(super) rates: Rates,
    pub(super) held: HoldDown,
    pub(super) jumps: Jumps,
    /// When an uplink that is held back may be used.
    pub(super) release: Option<Instant>,
    pub(super) book: Book,
    pub(super) doors: watch::Receiver<Doors>,
    pub(super) vouching: Vouching,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) tasks: Tasks,
}

impl Run {
    /// Runs until the scope ends.
    pub(super) async fn until_stopped(mut self, peers: Vec<SocketAddr>) {
        let now = Instant::now();
        let mut dialer = Dialer::new(now);
        for address in self.book.addresses() {
            dialer.add(Target::Met(address), vec![address], now + KNOWN_AFTER);
        }
        let mut named = Vec::new();
        name_peers(&mut dialer, &mut named, peers, now + KNOWN_AFTER);
        let mut dials = FuturesUnordered::<Dial>::new();
        let mut save = tokio::time::interval_at((now + SAVE_EVERY).into(), SAVE_EVERY);
        let mut lending = Lending::new();
        let rates = self.rates.clone();
        let mut tell_rates = now;
        let mut clocks = tokio::time::interval(CLOCKS);
        clocks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.network_changed();
        let stopped = self.tasks.token().clone();
        loop {
            let now = Instant::now();
            if self.release.is_some_and(|at| at <= now) {
                self.settle();
            }
            while let Some((target, addresses)) = dialer.due(now) {
                if self.links.has_at(&addresses) {
                    dialer.spared(&target, now);
                } else {
                    dials.push(dial(self.links.clone(), target, addresses));
                }
            }
            // Without anybody to dial, the next news decides.
            let wake = dialer.timeout(now).unwrap_or(now + SAVE_EVERY);
            let wake = wake.min(self.release.unwrap_or(wake));
            tokio::select! {
                () = stopped.cancelled() => break,
                () = tokio::time::sleep_until(wake.into()) => {}
                Some((target, result)) = dials.next(), if !dials.is_empty() => {
                    dialled(&mut dialer, &target, &result);
                }
                Some(event) = self.link_events.recv() => self.link(event, &mut dialer),
                Some(event) = self.found.recv() => found(&mut dialer, event),
                Some(incoming) = self.tunnels.recv() => {
                    self.relay.serve(incoming);
                    lending.begin();
                }
                Some(asked) = next(&mut self.asked) => {
                    if let Some(household) = &self.household {
                        household.asked(asked);
                    }
                }
                Ok(()) = self.network.changed() => self.network_changed(),
                Ok(()) = self.doors.changed() => self.doors_changed(),
                _ = clocks.tick() => {
                    self.look_at_clocks();
                    self.vouching.tick();
                }
                () = rates_changed(&rates, tell_rates) => {
                    self.lanes.measured();
                    self.settle();
                    tell_rates = Instant::now() + TELL_RATES_EVERY;
                }
                _ = lending.every.tick(), if lending.busy => lending.sample(&self.relay, &self.offers, &rates),
                Some(order) = self.orders.recv() => match order {
                    // Who asked may have stopped waiting.
                    Order::Answer(asked) => drop(asked.send(())),
                    Order::Peers(peers) => name_peers(&mut dialer, &mut named, peers, Instant::now()),
                },
                _ = save.tick() => {
                    self.book.save(&self.state);
                    rates.save(&self.state, Instant::now(), false);
                }
            }
        }
        self.book.save(&self.state);
        rates.save(&self.state, Instant::now(), true);
    }

    fn link(&mut self, event: LinkEvent, dialer: &mut Dialer) {
        match event {
            LinkEvent::Up(link) => {
                self.lanes_of(&link);
                self.vouching.linked(&link);
                self.share_with(&link);
                let keeps = |peer| self.links.trust().may(peer, Right::Place);
                self.book.met(link.peer(), link.address(), keeps);
                // Should the link break while multicast does not get through either.
                let address = link.address();
                dialer.add(Target::Met(address), vec![address], Instant::now() + LINKED);
            }
            LinkEvent::Changed(peer) => {
                if let Some(link) = self.links.all().iter().find(|l| l.peer() == peer) {
                    self.lanes_of(link);
                    // It may have risen.
                    self.share_with(link);
                }
            }
            LinkEvent::Ceremony { link, words } => return self.vouching.heard(&link, &words),
            LinkEvent::Down(link) => {
                self.vouching.gone(&link);
                if let Some(household) = &self.household {
                    household.unlinked(&link);
                }
                self.lanes.link_gone(&link);
                // A device that was refused as a copy of another asks again at its own pace.
                if !link.is_refused_as_copy() {
                    dialer.broke(link.address(), Instant::now());
                }
            }
        }
        // It may be our gateway.
        self.settle();
    }

    /// Whatever of this peer's uplinks may be used.
    fn lanes_of(&mut self, link: &Arc<Link>) {
        let tier = link.tier();
        let open = self.doors.borrow().borrow || tier.may(Right::CarryPlain);
        if open && tier.may(Right::CarryProven) {
            self.lanes.peer(link);
        } else {
            self.lanes.peer_gone(link.peer());
        }
    }

    fn share_with(&self, link: &Arc<Link>) {
        if let Some(household) = self.household.as_ref().filter(|_| link.tier().may(Right::Share)) {
            household.linked(link);
        }
    }

    /// The owner opened or closed what is open to those who joined by themselves.
    fn doors_changed(&mut self) {
        self.doors.mark_unchanged();
        for link in self.links.all() {
            self.lanes_of(&link);
        }
        self.settle();
    }

    /// Takes the network as it is.
    fn network_changed(&mut self) {
        let network = Arc::clone(&self.network.borrow_and_update());
        // The peer hears nothing from an address that is gone: it would wait for its timeout, and so would we.
        for link in self.links.all().iter().filter(|l| l.has_moved(&network)) {
            link.abandon("this end has another address now");
        }
        let only = self.interfaces.as_deref();
        let mut links = self.links.all();
        links.retain(|l| network.is_away(l.address().ip(), only));
        for link in links {
            link.abandon("this device was carried away from its home network");
        }
        self.settle();
    }

    /// Makes lanes, offers and home what network, peers and rates are now.
    fn settle(&mut self) {
        let seen = Arc::clone(&self.network.borrow());
        let (usable, release) = self.held.admitted(&seen, Instant::now());
        self.release = release;
        let linked: Vec<Linked> = self
            .links
            .all()
            .iter()
            .map(|link| Linked {
                peer: link.peer(),
                address: link.address(),
                home: link.home(),
            })
            .collect();
        let (network, home) = homes::resolve(self.id, &usable, &linked);
        self.lanes.own(&network);
        change(&self.offers, lends(&network, &self.relay, &self.rates));
        change(&self.home, home);
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

/// What comes next by a channel, if there is one.
async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    receiver.as_mut()?.recv().await
}

/// Tells only what is new.
fn change<T: PartialEq>(sender: &watch::Sender<T>, now: T) {
    sender.send_if_modified(|before| {
        let changed = *before != now;
        *before = now;
        changed
    });
}

/// Waits until rates changed, but not before that time.
async fn rates_changed(rates: &Rates, not_before: Instant) {
    tokio::time::sleep_until(not_before.into()).await;
    rates.changed().await;
}

/// What the uplinks carry for borrowers, looked at while there are any.
struct Lending {
    every: tokio::time::Interval,
    busy: bool,
    /// Bytes lent so far, by uplink.
    before: BTreeMap<String, u64>,
}

impl Lending {
    fn new() -> Self {
        let mut every = tokio::time::interval(SAMPLE_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            every,
            busy: false,
            before: BTreeMap::new(),
        }
    }

    /// Somebody asked for a tunnel.
    const fn begin(&mut self) {
        self.busy = true;
    }

    fn sample(&mut self, relay: &Relay, offers: &watch::Sender<Lends>, rates: &Rates) {
        let (lent, now) = (relay.lent(), Instant::now());
        let mut moved = false;
        for (name, count) in &lent.uplinks {
            let before = self.before.insert(name.clone(), count.down).unwrap_or_default();
            let bytes = count.down.saturating_sub(before);
            let line = offers
                .borrow()
                .to_members
                .iter()
                .find(|o| o.name == *name)
                .map(|o| o.line);
            if let Some(line) = line.filter(|_| bytes > 0) {
                moved = true;
                let way = Way {
                    peer: None,
                    uplink: name.clone(),
                    line,
                };
                rates.brought(&way, Brought { bytes, wanted: false }, now);
            }
        }
        self.busy = moved || lent.all.open > 0;
    }
}

/// Dials those whom the owner names now, and no longer those whom he does not; a link that stands is let be.
fn name_peers(dialer: &mut Dialer, named: &mut Vec<SocketAddr>, now: Vec<SocketAddr>, at: Instant) {
    for gone in named.iter().filter(|address| !now.contains(address)) {
        dialer.forget(&Target::Named(*gone));
    }
    for address in &now {
        dialer.add(Target::Named(*address), vec![*address], at);
    }
    *named = now;
}

/// What this device lends, as peers are told: to each what it may borrow.
pub(super) fn lends(network: &Network, relay: &Relay, rates: &Rates) -> Lends {
    Lends {
        to_neighbours: offers(network, relay, rates, Tier::Neighbour),
        to_members: offers(network, relay, rates, Tier::Member),
    }
}

fn offers(network: &Network, relay: &Relay, rates: &Rates, tier: Tier) -> Vec<Offer> {
    let lent = relay.offered(network, tier).into_iter();
    lent.map(|u| Offer {
        id: u.index,
        name: u.name.clone(),
        line: u.line,
        kind: u.kind,
        metered: u.metered,
        down: rates.told(&Way {
            peer: None,
            uplink: u.name.clone(),
            line: u.line,
        }),
    })
    .collect()
}

/// Lets in who is on the LAN.
pub(super) fn gate(network: watch::Receiver<Arc<Network>>, interfaces: Option<Vec<String>>) -> Gate {
    Arc::new(move |from| network.borrow().hears(from, interfaces.as_deref()))
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
