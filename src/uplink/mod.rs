//! This device's ways out: which interfaces lead to the internet, which to the household, and sockets bound to one.
//!
//! An *uplink* is an interface with a default route. A *LAN interface* is one on which peers may be met; often the same
//! interface is both. [`enumerate`] and [`watch()`] ask the kernel (rtnetlink) for whole tables and never patch a state by
//! events: an event only says "look again", so a lost one costs a delay, not the truth.
//!
//! Invariants: a [`Network`] is one consistent snapshot; an [`Uplink`] has a source address of each family it claims;
//! two uplinks with the same [`LineId`] end in the same router.

mod build;
mod connect;
mod connection;
pub mod dial;
mod gateways;
mod kind;
mod lan;
pub mod limit;
mod netlink;
mod pace;
pub mod resolve;
mod rules;
pub mod sent;
mod watch;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{LineId, UplinkKind};

pub use connect::connect;
pub use connection::{Connection, without_bbr};
pub use lan::NotLan;
pub use netlink::enumerate;
pub use rules::{Lend, Rule, Rules};
pub use watch::watch;

/// What makes this device's line ids its own where a gateway has no MAC address to tell lines by. Any stable value of
/// the device will do (a part of its identity key); it never leaves the device other than hashed.
pub type Seed = [u8; 16];

/// One way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The kernel's interface index; peers name an uplink by it.
    pub index: u32,
    /// The interface's name.
    pub name: String,
    /// What the interface looks like.
    pub kind: UplinkKind,
    /// Whether bytes may cost money: cellular and tethered interfaces, unless the owner says otherwise ([`Rules`]).
    pub metered: bool,
    /// Which peers may use it: all, unless the owner says otherwise ([`Rules`]).
    pub lend: Lend,
    /// Which line it ends in: lanes of one line add nothing to each other.
    pub line: LineId,
    /// Whether the owner named the line, which nothing that is found out can overrule.
    pub line_named: bool,
    /// Source address for IPv4; `None` if there is no IPv4 default route or address.
    pub v4: Option<Ipv4Addr>,
    /// Source address for IPv6; `None` if there is no IPv6 default route or no address that may be used for it.
    pub v6: Option<Ipv6Addr>,
    /// The router, IPv4's if it has both; `None` on point-to-point links.
    pub gateway: Option<IpAddr>,
    /// Every address on that link by which the router is known, sorted: a peer that has one of them is the router.
    pub gateway_addresses: Vec<IpAddr>,
    /// The route's priority, lower first.
    pub metric: u32,
    /// Whether sockets are bound to the device (`SO_BINDTODEVICE`). False only for one that is set up by hand.
    pub bind: bool,
}

impl Uplink {
    /// The source address for reaching `to`, if this uplink can.
    pub fn source(&self, to: IpAddr) -> Option<IpAddr> {
        match to.to_canonical() {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

#[cfg(test)]
impl Uplink {
    /// One that leads nowhere, for tests: a cable, unmetered, lent, bound, without address or gateway.
    pub(crate) fn fixture(index: u32, name: &str) -> Self {
        Self {
            index,
            name: name.into(),
            kind: UplinkKind::Wired,
            metered: false,
            lend: Lend::All,
            line: LineId([0; 8]),
            line_named: false,
            v4: None,
            v6: None,
            gateway: None,
            gateway_addresses: Vec::new(),
            metric: 0,
            bind: true,
        }
    }
}

/// Any interface of this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it looks like.
    pub kind: UplinkKind,
    /// Administratively up and with a carrier.
    pub up: bool,
    /// `lo`, or another that only reaches this device.
    pub loopback: bool,
    /// Has one other end, not a link with many.
    pub point_to_point: bool,
    /// Can multicast.
    pub multicast: bool,
    /// Addresses with their prefix length, sorted. Tentative and failed IPv6 addresses are left out.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Networks that routes lead to by this interface without a gateway, sorted: those of its addresses, and where a router
    /// announces one as on-link, others. Empty for a point-to-point link, on which nobody else is.
    pub on_link: Vec<(IpAddr, u8)>,
    /// Whether a default route leads out of it.
    pub default_route: bool,
    /// Whose network is behind it.
    pub router: Router,
    /// This device was carried to a network that is not its home: no peer is met on it.
    pub away: bool,
}

/// By what the network behind an interface is known again: the router that leads out of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Router {
    /// None leads out of it: a cable between devices, or a network that this device itself makes.
    #[default]
    None,
    /// There is one, and it has not shown its MAC address yet.
    Unknown,
    /// The one with this line, which its MAC address makes.
    Known(LineId),
}

/// One snapshot of interfaces and ways out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// All interfaces, by index.
    pub interfaces: Vec<Interface>,
    /// Those with a default route and a source address for it, best metric first.
    pub uplinks: Vec<Uplink>,
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Why the kernel's tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// No netlink socket: a sandbox without `AF_NETLINK`, or no more descriptors.
    #[error("cannot open a netlink socket (is AF_NETLINK allowed here?): {0}")]
    Socket(#[source] std::io::Error),
    /// The kernel refused a table.
    #[error("cannot read the kernel's {table}: {reason}")]
    Dump {
        /// Which table.
        table: &'static str,
        /// In the kernel's words.
        reason: String,
    },
    /// The answer did not come.
    #[error("the kernel did not answer a netlink request in {0:?}")]
    Timeout(std::time::Duration),
}
