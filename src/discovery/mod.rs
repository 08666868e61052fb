//! Finds peers on the LAN by multicast DNS: announces `_tributary._udp.local.` and says who else does.
//!
//! What a record says is a hint where to dial, never who is there: anybody on the link can send any record. So the name
//! announced is random, new at each start, and nothing but a port and the LAN addresses goes with it; and whatever
//! comes in is bounded in number, by address and in time before it costs anything.
//!
//! Invariants: nothing is announced or asked on an interface that is not the household's (see
//! [`Network::lan_interfaces`]); a [`Candidate`] has 1 to 8 addresses, all of them on-link; the own instance is never
//! reported; [`Event::Lost`] is a hint too and must not end a working connection.

mod daemon;
#[cfg(any(fuzzing, test))]
pub(crate) mod door;
mod run;
mod sieve;
mod table;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, watch};

use crate::discovery::daemon::Announcement;
pub use crate::discovery::daemon::{SERVICE, instance_of};
use crate::discovery::run::Run;
use crate::task::Tasks;
use crate::uplink::Network;

/// Events waiting for their reader. What does not fit is kept in the table and told later, in its newest state.
const EVENTS: usize = 64;
/// Random bytes in a name; it is twice as many hex digits.
const NAME_BYTES: usize = 4;

/// What to announce, and where.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// The UDP port on which this peer's link listens.
    pub port: u16,
    /// Names of the interfaces to use, whatever they are (`lo` only works so). Default, `None`: the household's.
    pub interfaces: Option<Vec<String>>,
}

/// Somebody who says to be a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The random name of this run of that peer.
    pub instance: String,
    /// Where to dial, likeliest first: IPv4, IPv6, then IPv6 link-local with its scope id. 1 to 8, all on-link.
    pub addresses: Vec<SocketAddr>,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A candidate is new, or its addresses are. It is not said again while both stay: until it is lost, it is the
    /// reader's to dial it again.
    Found(Candidate),
    /// A candidate said goodbye, was not heard of for long, or gave way to newer ones.
    Lost {
        /// Its name.
        instance: String,
    },
}

/// Discovery as it runs, until its scope of tasks ends; then it says goodbye.
pub struct Discovery {
    instance: String,
}

impl Discovery {
    /// Announces at once, asks at once who else is there, and follows `network` from interface to interface.
    ///
    /// Without a LAN interface this succeeds and waits for one. Trouble later on is logged and tried again.
    ///
    /// # Errors
    /// When there is no randomness or the mDNS thread cannot be started.
    pub fn start(
        config: DiscoveryConfig,
        network: watch::Receiver<Arc<Network>>,
        tasks: &Tasks,
    ) -> Result<(Self, mpsc::Receiver<Event>), DiscoveryError> {
        let announcement = Announcement {
            instance: random_name()?,
            host: random_name()?,
            port: config.port,
        };
        let discovery = Self {
            instance: announcement.instance.clone(),
        };
        let (events, receiver) = mpsc::channel(EVENTS);
        let run = Run::start(announcement, config.interfaces, network, events)?;
        tasks.spawn_graceful("discovery", run.until(tasks.token().clone()));
        Ok((discovery, receiver))
    }

    /// The random name under which this run is announced.
    pub fn instance(&self) -> &str {
        &self.instance
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery")
            .field("instance", &self.instance)
            .finish()
    }
}

/// Why discovery could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The system gives no randomness.
    #[error("the system gives no random numbers for a name to announce")]
    Random,
    /// The mDNS library could not do what was asked of it.
    #[error("mDNS: {0}")]
    Mdns(#[from] mdns_sd::Error),
}

fn random_name() -> Result<String, DiscoveryError> {
    let mut bytes = [0; NAME_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| DiscoveryError::Random)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_eight_hex_digits_and_differ() {
        let (a, b) = (random_name().unwrap(), random_name().unwrap());
        assert_ne!(a, b);
        for name in [a, b] {
            assert!(
                name.len() == 8 && name.bytes().all(|b| b.is_ascii_hexdigit()),
                "{name}"
            );
        }
    }
}
