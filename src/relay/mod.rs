//! The lender's side: opens a connection to an origin for a peer, over one of this device's uplinks, and splices bytes.
//!
//! A lender lends only its way out, and keeps none of the bytes. What it decides is who may be connected to what: host
//! names only (`name`), of public addresses only (`egress`), few ports, unmetered uplinks, within limits (`gate`), and
//! that a borrower speaks to the host it named (`first`). Invariants: a name is resolved once and only an address of that answer that passed the filter is
//! dialled; everything that ends abnormally is reset at the origin, so that it stops sending at once.

mod cidr;
mod egress;
mod first;
mod gate;
mod ledger;
mod name;
mod special;
mod splice;

pub use cidr::{Cidr, CidrError};
pub use egress::{Filter, Surroundings, Why, is_public};
pub use gate::Limits;
pub use ledger::{Count, Lent};
pub use name::{NameError, check_name};

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::link::{Incoming, Open, Refusal};
use crate::task::Tasks;
use crate::types::PeerId;
use crate::uplink;
use crate::uplink::dial;
use crate::uplink::limit::{Limited, Limiters};
use crate::uplink::resolve::{Names, Resolver};
use crate::uplink::{Network, Uplink};

use first::Protocol;
use gate::{Full, Gate};
use ledger::Ledger;
use splice::End;

/// HTTP and HTTPS: what a download needs.
const PORTS: [u16; 2] = [80, 443];

/// What the owner lends.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ranges that may be dialled though they are not public. Default none.
    pub allow: Vec<Cidr>,
    /// TCP ports that may be dialled. Default 80 and 443.
    pub ports: Vec<u16>,
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
    policy: Mutex<Arc<Policy>>,
    limiters: Limiters,
    resolver: Resolver,
    network: watch::Receiver<Arc<Network>>,
    gate: Mutex<Gate>,
    ledger: Ledger,
    tasks: Tasks,
}

/// What the owner can change while tunnels are open.
#[derive(Debug)]
struct Policy {
    filter: Filter,
    ports: Vec<u16>,
    limits: Limits,
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
    _place: Place,
}

#[derive(Debug)]
struct Place {
    relay: Relay,
    peer: PeerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.relay.gate().leave(self.peer);
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
            policy: Mutex::new(Arc::new(Policy {
                filter: Filter::new(config.allow),
                ports: config.ports,
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

    /// From now on this is what may be asked for. Tunnels that are open stay as they were begun; those of a peer that has
    /// more of them than it may count until they end.
    pub fn change(&self, allow: Vec<Cidr>, ports: Vec<u16>, limits: Limits) {
        self.gate().change(limits.clone(), now());
        let policy = Policy {
            filter: Filter::new(allow),
            ports,
            limits,
        };
        *self.0.policy.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// The uplinks that are lent: what may be offered to peers.
    pub fn offered<'a>(&self, network: &'a Network) -> Vec<&'a Uplink> {
        network
            .uplinks
            .iter()
            .filter(|uplink| self.lends(uplink, network))
            .collect()
    }

    /// Answers a borrower's request and carries its tunnel, in a task of its own.
    pub fn serve(&self, incoming: Incoming) {
        let relay = self.clone();
        self.0.tasks.spawn("lend", async move {
            let peer = incoming.peer;
            match relay.reach(peer, &incoming.open).await {
                Ok(origin) => {
                    // An error says that the borrower is gone.
                    if let Ok(mut tunnel) = incoming.accept(origin.address).await {
                        relay.carry(peer, &mut tunnel, origin).await;
                    }
                }
                Err(reason) => {
                    relay.0.ledger.refused(peer);
                    if relay.may_log(peer) {
                        let host: String = incoming.open.host.chars().take(64).collect();
                        tracing::debug!(peer = %peer.short(), ?host, port = incoming.open.port, %reason, "refused");
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
    async fn reach(&self, peer: PeerId, open: &Open) -> Result<Origin, Refusal> {
        let name = check_name(&open.host).map_err(|_| Refusal::Name)?;
        let policy = self.policy();
        if !policy.ports.contains(&open.port) {
            return Err(Refusal::Port);
        }
        let network = Arc::clone(&self.0.network.borrow());
        let uplink = network
            .uplinks
            .iter()
            .find(|u| u.index == open.uplink && self.lends(u, &network));
        let uplink = uplink.ok_or(Refusal::Uplink)?;
        let place = self.enter(peer)?;
        let connecting = async {
            let around = Surroundings::of(&network);
            let ips = self.judged(&policy.filter, &name, open.pin, &around).await?;
            self.connect(peer, uplink, &ips, open.port).await
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
        peer: PeerId,
        uplink: &Uplink,
        ips: &[IpAddr],
        port: u16,
    ) -> Result<(SocketAddr, TcpStream), Refusal> {
        let addresses = dial::ways(uplink, ips, port);
        let limiter = self.0.limiters.of(&uplink.name);
        let (limiter, limit) = (&limiter, self.policy().limits.dial_limit);
        let attempt = |to: SocketAddr| async move {
            let counted = self.gate().destination(peer, to.ip(), now());
            counted.map_err(|Full| io::Error::from(io::ErrorKind::QuotaExceeded))?;
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

    /// Judges the first bytes and splices until the tunnel's end.
    async fn carry<T>(&self, peer: PeerId, tunnel: &mut T, origin: Origin) -> End
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let entry = self.0.ledger.opened(peer, &origin.uplink.name);
        let mut stream = Limited::connection(origin.stream, self.0.limiters.of(&origin.uplink.name));
        let Limits { idle, life, .. } = self.policy().limits;
        let protocol = Protocol::on(origin.address.port());
        let begun = tokio::time::timeout(idle, begin(tunnel, &mut stream, protocol, &origin.host)).await;
        let end = match begun {
            Ok(Ok(passed_on)) => {
                entry.up(passed_on);
                let local = origin.uplink.bind.then_some(origin.local);
                tokio::select! {
                    end = splice::splice(tunnel, &mut stream, &entry, idle, life) => end,
                    () = self.taken_back(origin.uplink.index) => End::TakenBack,
                    () = self.gone(local) => End::Moved,
                }
            }
            Ok(Err(error)) => End::Broken(error),
            Err(_) => End::Idle,
        };
        if matches!(end, End::Closed) {
            // What was sent last may still be on its way: no reset. An error would say that there is no connection.
            let _ = socket2::SockRef::from(stream.inner()).set_linger(None);
        }
        if self.may_log(peer) {
            tracing::debug!(peer = %peer.short(), uplink = %origin.uplink.name, %end, "a tunnel ended");
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

    fn enter(&self, peer: PeerId) -> Result<Place, Refusal> {
        self.gate().enter(peer, now()).map_err(|Full| Refusal::Busy)?;
        Ok(Place {
            relay: self.clone(),
            peer,
        })
    }

    /// Whether an uplink is lent: unmetered, not kept back by the owner, and with somebody behind it who routes on (SEC-A6).
    fn lends(&self, uplink: &Uplink, network: &Network) -> bool {
        let point_to_point = || {
            network
                .interfaces
                .iter()
                .any(|i| i.index == uplink.index && i.point_to_point)
        };
        let routed = uplink.gateway.is_some() || !uplink.bind || point_to_point();
        uplink.lend && !uplink.metered && routed
    }

    /// Returns when an uplink is there and not lent any more. One that is not there may only be renewing its address.
    async fn taken_back(&self, index: u32) {
        let mut network = self.0.network.clone();
        loop {
            let now = Arc::clone(&network.borrow_and_update());
            if now
                .uplinks
                .iter()
                .any(|u| u.index == index && !self.lends(u, &now))
            {
                return;
            }
            if network.changed().await.is_err() {
                // Nobody is left who could take it back.
                std::future::pending().await
            }
        }
    }

    fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.policy.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn may_log(&self, peer: PeerId) -> bool {
        tracing::enabled!(tracing::Level::DEBUG) && self.gate().may_log(peer, now())
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.0.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes the tunnel's first bytes on once they were judged; gives their number.
async fn begin<T>(
    tunnel: &mut T,
    origin: &mut Limited<TcpStream>,
    protocol: Protocol,
    host: &str,
) -> io::Result<u64>
where
    T: AsyncRead + Unpin,
{
    let mut byte = [0];
    let bytes = tokio::select! {
        biased;
        bytes = first::read(tunnel, protocol, host) => bytes?,
        // Both of the web's protocols begin with the client: the origin has nothing to say yet, unless that it is gone.
        early = origin.inner().peek(&mut byte) => {
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
