//! The lender's side: opens a connection to an origin for a peer, over one of this device's uplinks, and splices bytes.
//!
//! A lender lends only its way out, and keeps none of the bytes. What it decides is who may be connected to what: host
//! names only (`name`), of public addresses only (`egress`), few ports, unmetered uplinks, within limits (`gate`), and
//! that a borrower speaks to the host it named (`first`). Who joined by itself gets the web's two ports, what is lent to
//! all, and a part of it that it shares with all others like it (`class`, `share`); members get more ports and uplinks, and
//! no more addresses. Invariants: a name is resolved once and only an address of that answer that passed the filter is
//! dialled; a refusal is told before any packet leaves; everything that ends abnormally is reset at the origin, so that it
//! stops sending at once.

mod cidr;
mod class;
#[cfg(any(fuzzing, test))]
pub(crate) mod door;
mod egress;
mod first;
mod gate;
mod ledger;
mod name;
mod share;
mod special;
mod splice;

pub use cidr::{Cidr, CidrError};
pub use egress::{Filter, Surroundings, Why, is_public};
pub use first::{Protocol, Verdict, judge};
pub use gate::Limits;
pub use ledger::{Count, Lent};
pub use name::{NameError, check_name};

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::link::{Incoming, Open, Refusal};
use crate::task::Tasks;
use crate::trust::{Right, Tier};
use crate::uplink;
use crate::uplink::dial;
use crate::uplink::limit::{Limited, Limiters};
use crate::uplink::resolve::{Names, Resolver};
use crate::uplink::sent;
use crate::uplink::{Lend, Network, Uplink};

use class::{Class, Staked};
use gate::{Borrower, Full, Gate};
use ledger::Ledger;
use splice::End;

/// HTTP and HTTPS: what a download needs.
const PORTS: [u16; 2] = [80, 443];

/// What the owner lends.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ranges that may be dialled though they are not public. Default none.
    pub allow: Vec<Cidr>,
    /// TCP ports that may be dialled; of others than 80 and 443, by members only. Default 80 and 443.
    pub ports: Vec<u16>,
    /// Whether anything is lent to those whom nobody vouched for. Default yes.
    pub lend_to_neighbours: bool,
    /// Names with addresses given by hand, for labs and demos; the addresses are judged as any others. Default none.
    pub names: Names,
    /// The most an uplink may carry, lanes of this device included if they were given the same. Default unlimited.
    pub limiters: Limiters,
    /// How much may be asked for.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ports: PORTS.to_vec(),
            lend_to_neighbours: true,
            names: Names::new(),
            limiters: Limiters::default(),
            limits: Limits::default(),
        }
    }
}

/// Serves borrowers. Clones are the same relay.
#[derive(Clone, Debug)]
pub struct Relay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policy: watch::Sender<Arc<Policy>>,
    limiters: Limiters,
    resolver: Resolver,
    network: watch::Receiver<Arc<Network>>,
    gate: Mutex<Gate>,
    class: Class,
    ledger: Ledger,
    tasks: Tasks,
}

/// What the owner can change while tunnels are open.
#[derive(Debug)]
struct Policy {
    filter: Filter,
    ports: Vec<u16>,
    lend_to_neighbours: bool,
    limits: Limits,
}

impl Policy {
    fn lends_port(&self, port: u16, tier: Tier) -> bool {
        let right = if PORTS.contains(&port) {
            Right::BorrowWeb
        } else {
            Right::BorrowPorts
        };
        tier.may(right) && self.ports.contains(&port)
    }

    /// Whether an uplink is lent: not kept back by the owner, unmetered or kept for members, and with somebody behind it
    /// who routes on (SEC-A6).
    fn lends(&self, uplink: &Uplink, network: &Network, tier: Tier) -> bool {
        let point_to_point = || {
            network
                .interfaces
                .iter()
                .any(|i| i.index == uplink.index && i.point_to_point)
        };
        let routed = uplink.gateway.is_some() || !uplink.bind || point_to_point();
        let admitted =
            tier.may(Right::BorrowWeb) && (self.lend_to_neighbours || tier.may(Right::BorrowMembersShare));
        let granted = match uplink.lend {
            Lend::Nobody => false,
            Lend::Members => tier.may(Right::BorrowKept),
            Lend::All => !uplink.metered,
        };
        admitted && granted && routed
    }
}

/// A connection to an origin, made for a borrower; it holds the borrower's place until it is dropped.
#[derive(Debug)]
struct Origin {
    stream: TcpStream,
    address: SocketAddr,
    /// This device's end.
    local: IpAddr,
    /// As the borrower must name it in its first bytes.
    host: String,
    uplink: Uplink,
    /// What was handed to it.
    sent: sent::Count,
    _place: Place,
}

#[derive(Debug)]
struct Place {
    relay: Relay,
    who: Borrower,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.relay.gate().leave(self.who);
    }
}

impl Relay {
    /// A relay over the uplinks of `network` as it changes; its tunnels end with `tasks`.
    pub fn new(config: Config, network: watch::Receiver<Arc<Network>>, tasks: &Tasks) -> Self {
        let resolver = Resolver::new(config.names.clone(), tasks);
        Self::with_resolver(config, resolver, network, tasks)
    }

    /// The same with a resolver of its own, which then has the names by hand: for tests and simulations.
    pub fn with_resolver(
        config: Config,
        resolver: Resolver,
        network: watch::Receiver<Arc<Network>>,
        tasks: &Tasks,
    ) -> Self {
        let gate = Mutex::new(Gate::new(config.limits.clone(), Instant::now().into_std()));
        Self(Arc::new(Inner {
            class: Class::new(config.limits.neighbours_per_day),
            policy: watch::Sender::new(Arc::new(Policy {
                filter: Filter::new(config.allow),
                ports: config.ports,
                lend_to_neighbours: config.lend_to_neighbours,
                limits: config.limits,
            })),
            limiters: config.limiters,
            resolver,
            network,
            gate,
            ledger: Ledger::default(),
            tasks: tasks.clone(),
        }))
    }

    /// From now on this is what may be asked for. Tunnels that are open stay as they were begun, but for neighbours' where
    /// nothing is lent to them any more; those of a peer that has more of them than it may count until they end.
    pub fn change(&self, allow: Vec<Cidr>, ports: Vec<u16>, limits: Limits, lend_to_neighbours: bool) {
        self.gate().change(limits.clone(), now());
        self.0.class.change(limits.neighbours_per_day);
        self.0.policy.send_replace(Arc::new(Policy {
            filter: Filter::new(allow),
            ports,
            lend_to_neighbours,
            limits,
        }));
    }

    /// The uplinks that are lent to peers of that tier: what may be offered to them.
    pub fn offered<'a>(&self, network: &'a Network, tier: Tier) -> Vec<&'a Uplink> {
        let policy = self.policy();
        let lent = |uplink: &&Uplink| policy.lends(uplink, network, tier);
        network.uplinks.iter().filter(lent).collect()
    }

    /// Answers a borrower's request and carries its tunnel, in a task of its own.
    pub fn serve(&self, incoming: Incoming) {
        let relay = self.clone();
        self.0.tasks.spawn("lend", async move {
            let who = Borrower {
                id: incoming.peer,
                tier: incoming.tier,
            };
            match relay.reach(who, &incoming.open).await {
                Ok(origin) => {
                    let (sent, reporter) = (origin.sent.sent(), incoming.reporter());
                    // An error says that the borrower is gone.
                    if let Ok(mut tunnel) = incoming.accept(origin.address).await {
                        tokio::select! {
                            _ = relay.carry(who, &mut tunnel, origin) => {}
                            () = reporter.run(sent) => {}
                        }
                    }
                }
                Err(reason) => {
                    relay.0.ledger.refused(who.id);
                    if relay.may_log(who) {
                        let (peer, tier, port) = (who.id.short(), who.tier, incoming.open.port);
                        let host: String = incoming.open.host.chars().take(64).collect();
                        tracing::debug!(%peer, %tier, ?host, port, %reason, "refused");
                    }
                    incoming.refuse(reason).await;
                }
            }
        });
    }

    /// What was lent so far.
    pub fn lent(&self) -> Lent {
        self.0.ledger.lent()
    }

    /// A connection to the origin asked for, if it may be lent and within the time for it.
    async fn reach(&self, who: Borrower, open: &Open) -> Result<Origin, Refusal> {
        let name = check_name(&open.host).map_err(|_| Refusal::Name)?;
        let policy = self.policy();
        if !policy.lends_port(open.port, who.tier) {
            return Err(Refusal::Port);
        }
        let network = Arc::clone(&self.0.network.borrow());
        let uplink = network
            .uplinks
            .iter()
            .find(|u| u.index == open.uplink && policy.lends(u, &network, who.tier));
        let uplink = uplink.ok_or(Refusal::Uplink)?;
        let place = self.enter(who)?;
        let connecting = async {
            let around = Surroundings::of(&network);
            let ips = self.judged(&policy.filter, &name, open.pin, &around).await?;
            self.connect(who, uplink, &ips, open.port).await
        };
        let connected = tokio::time::timeout(policy.limits.dial_limit, connecting).await;
        let (address, stream) = connected.unwrap_or(Err(Refusal::Connect))?;
        let local = stream.local_addr().map_err(|_| Refusal::Connect)?.ip();
        Ok(Origin {
            stream,
            address,
            local,
            host: name,
            uplink: uplink.clone(),
            sent: sent::Count::default(),
            _place: place,
        })
    }

    /// The addresses of the name, or the one pinned: each of them judged.
    async fn judged(
        &self,
        filter: &Filter,
        name: &str,
        pin: Option<IpAddr>,
        around: &Surroundings,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let ips = match pin {
            Some(ip) => vec![ip],
            None => self
                .0
                .resolver
                .resolve(name)
                .await
                .map_err(|_| Refusal::Resolve)?,
        };
        filter.check_all(&ips, around).map_err(|_| Refusal::Address)
    }

    /// Dials exactly these addresses, and makes sure that it was one of them that answered.
    async fn connect(
        &self,
        who: Borrower,
        uplink: &Uplink,
        ips: &[IpAddr],
        port: u16,
    ) -> Result<(SocketAddr, TcpStream), Refusal> {
        let addresses = dial::ways(uplink, ips, port);
        let limiter = self.0.limiters.of(&uplink.name);
        let (limiter, limit) = (&limiter, self.policy().limits.dial_limit);
        let dialled = &AtomicBool::new(false);
        let attempt = |to: SocketAddr| async move {
            let admitted = || {
                let mut gate = self.gate();
                // The first one was counted when it was asked for. Each further one is a dial of its own, whoever made the
                // name have so many addresses.
                if dialled.swap(true, Ordering::Relaxed) {
                    gate.dial(who, now())?;
                }
                gate.destination(who, to.ip(), now())
            };
            admitted().map_err(|Full| io::Error::from(io::ErrorKind::QuotaExceeded))?;
            let stream = uplink::connect(uplink, to, limit, limiter).await?;
            if stream.peer_addr()? != to {
                return Err(io::Error::other("connected to another address than was judged"));
            }
            // From now on a drop resets, whoever drops it: the origin is not to send another byte for nobody.
            stream.set_zero_linger()?;
            Ok(stream)
        };
        dial::race(&addresses, attempt)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::QuotaExceeded => Refusal::Busy,
                _ => Refusal::Connect,
            })
    }

    /// Judges the first bytes and splices until the tunnel's end; counts what was handed to the origin.
    async fn carry<T>(&self, who: Borrower, tunnel: &mut T, origin: Origin) -> End
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let (uplink, limiter) = (&origin.uplink.name, self.0.limiters.of(&origin.uplink.name));
        let entry = self.0.ledger.opened(who.id, uplink);
        let stake = who
            .is_neighbour()
            .then(|| self.0.class.stake(who.id, uplink, limiter.clone()));
        let mut stream = Staked::new(Limited::connection(origin.stream, limiter), stake);
        let Limits { idle, life, .. } = self.policy().limits;
        let protocol = Protocol::on(origin.address.port());
        let begun = tokio::time::timeout(idle, begin(tunnel, &mut stream, protocol, &origin.host)).await;
        let end = match begun {
            Ok(Ok(passed_on)) => {
                entry.up(passed_on);
                origin.sent.add(passed_on);
                let local = origin.uplink.bind.then_some(origin.local);
                tokio::select! {
                    end = splice::splice(tunnel, &mut stream, (&entry, &origin.sent), idle, life) => end,
                    () = self.taken_back(origin.uplink.index, who.tier) => End::TakenBack,
                    () = self.gone(local) => End::Moved,
                }
            }
            Ok(Err(error)) => End::Broken(error),
            Err(_) => End::Idle,
        };
        if matches!(end, End::Closed) {
            // What was sent last may still be on its way: no reset. An error would say that there is no connection.
            let _ = socket2::SockRef::from(stream.socket()).set_linger(None);
        }
        if self.may_log(who) {
            let (peer, tier, host, count) = (who.id.short(), who.tier, &origin.host, entry.count());
            tracing::debug!(%peer, %tier, ?host, down = count.down, up = count.up, %uplink, %end, "a tunnel ended");
        }
        end
    }

    /// Waits until the address is none of this device's any more: then nothing of a connection from it gets through, and
    /// the kernel keeps it open all the same.
    async fn gone(&self, local: Option<IpAddr>) {
        let mut network = self.0.network.clone();
        if let Some(ip) = local
            && network.wait_for(|now| !now.is_own(ip)).await.is_ok()
        {
            return;
        }
        // Set up by hand, or nobody watches the network any more.
        std::future::pending::<()>().await;
    }

    fn enter(&self, who: Borrower) -> Result<Place, Refusal> {
        if who.is_neighbour() && !self.0.class.has_left() {
            return Err(Refusal::Busy);
        }
        self.gate().enter(who, now()).map_err(|Full| Refusal::Busy)?;
        Ok(Place {
            relay: self.clone(),
            who,
        })
    }

    /// Returns when an uplink is there and not lent to that tier any more. One that is not there may only be renewing its
    /// address.
    async fn taken_back(&self, index: u32, tier: Tier) {
        let mut network = self.0.network.clone();
        let mut policy = self.0.policy.subscribe();
        loop {
            let (now, terms) = (
                network.borrow_and_update().clone(),
                policy.borrow_and_update().clone(),
            );
            let there = now.uplinks.iter().find(|u| u.index == index);
            if there.is_some_and(|u| !terms.lends(u, &now, tier)) {
                return;
            }
            tokio::select! {
                changed = network.changed() => if changed.is_err() {
                    // Nobody watches it any more: only the owner can take something back.
                    let _ = policy.changed().await;
                },
                _ = policy.changed() => {}
            }
        }
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.policy.borrow())
    }

    fn may_log(&self, who: Borrower) -> bool {
        tracing::enabled!(tracing::Level::DEBUG) && self.gate().may_log(who, now())
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.0.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes the tunnel's first bytes on once they were judged; gives their number.
async fn begin<T>(tunnel: &mut T, origin: &mut Staked, protocol: Protocol, host: &str) -> io::Result<u64>
where
    T: AsyncRead + Unpin,
{
    let mut byte = [0];
    let bytes = tokio::select! {
        biased;
        bytes = first::read(tunnel, protocol, host) => bytes?,
        // Both of the web's protocols begin with the client: the origin has nothing to say yet, unless that it is gone.
        early = origin.socket().peek(&mut byte) => {
            return Err(early.err().unwrap_or_else(|| io::Error::other("the origin ended or spoke first")));
        }
    };
    origin.write_all(&bytes).await?;
    Ok(bytes.len() as u64)
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests;
