//! Whether a device that can be carried is at home (G3): in a café, at work or in a hotel it looks for nobody, is heard by
//! nobody and lends nothing.
//!
//! A device without a battery is where its owner put it: for it every network is home, and nothing here can come between
//! the devices of a household. For one with a battery the first network is home, known again by its router's MAC address,
//! which the network's name or its addresses are not: every second household has 192.168.1.0/24. A network that no router
//! leads out of is a cable between devices, or one that this device makes itself: nobody is carried there.
//!
//! What is not known is judged so that a household does not fall silent for it: a router that has not shown its MAC address
//! is taken by the network's addresses, and a device that is away says so in its log and status, with the key that ends it.
//!
//! Invariants: bounded; an interface that the owner names is never away; without a battery nothing is read or written.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::{StateDir, write_atomic};
use crate::task::{Seldom, Tasks};
use crate::types::{LineId, UplinkKind};
use crate::uplink::{Interface, Network, Router};

const FILE: &str = "homes.json";
/// A flat, a holiday home, a parent's house: the one learned longest ago makes room.
const MAX_HOMES: usize = 8;
/// Prefixes remembered of one network: IPv4's, IPv6's, and some that were renumbered.
const MAX_PREFIXES: usize = 8;
/// Where the kernel shows batteries.
const POWER: &str = "/sys/class/power_supply";
/// Somebody who walks from network to network must not fill the log.
static AWAY: Seldom = Seldom::new(5, std::time::Duration::from_secs(600));

/// A network that is home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Home {
    router: LineId,
    /// Its private prefixes, for while the router is silent.
    prefixes: Vec<(IpAddr, u8)>,
}

/// The networks that are home.
#[derive(Debug, Default)]
pub(super) struct Homes {
    known: Vec<Home>,
    /// Every network becomes one.
    anywhere: bool,
}

impl Homes {
    /// The indices of the interfaces that lead to a network that is none. The first network becomes one.
    fn away(&mut self, network: &Network) -> Vec<u32> {
        let first = self.known.is_empty();
        let faces = network.lan_interfaces(None);
        for face in &faces {
            if let Router::Known(router) = face.router {
                self.met(router, face, first);
            }
        }
        let away = faces.iter().filter(|face| !self.is_home(face));
        away.map(|face| face.index).collect()
    }

    /// Learns a router that is to be home, or what more is known of one that is.
    fn met(&mut self, router: LineId, face: &Interface, first: bool) {
        let now = prefixes(face);
        if let Some(home) = self.known.iter_mut().find(|h| h.router == router) {
            home.prefixes.extend(now);
            home.prefixes.sort_unstable();
            home.prefixes.dedup();
            let more = home.prefixes.len().saturating_sub(MAX_PREFIXES);
            home.prefixes.drain(..more);
        } else if first || self.anywhere {
            if self.known.len() == MAX_HOMES {
                self.known.remove(0);
            }
            let mut prefixes = now;
            prefixes.truncate(MAX_PREFIXES);
            self.known.push(Home { router, prefixes });
        }
    }

    fn is_home(&self, face: &Interface) -> bool {
        if self.anywhere {
            return true;
        }
        let here = prefixes(face);
        match face.router {
            Router::Known(router) => self.known.iter().any(|h| h.router == router),
            Router::Unknown => self
                .known
                .iter()
                .any(|h| h.prefixes.iter().any(|p| here.contains(p))),
            // Just joined: what is there to know comes with its address.
            Router::None => face.kind != UplinkKind::Wireless || !here.is_empty(),
        }
    }
}

/// What tells a network from others for a while: its private prefixes, link-local ones left out, which are everywhere.
fn prefixes(face: &Interface) -> Vec<(IpAddr, u8)> {
    let private = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    let mut found: Vec<_> = face.addresses.iter().filter(|(ip, _)| private(ip)).collect();
    found.truncate(MAX_PREFIXES);
    found
        .iter()
        .map(|(ip, length)| (masked(*ip, *length), *length))
        .collect()
}

fn masked(ip: IpAddr, length: u8) -> IpAddr {
    let drop = |bits: u32| bits.saturating_sub(length.into());
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(drop(32)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(drop(128)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

/// The network as `seen`, with the interfaces marked that are away from home. A device that cannot be carried, or whose
/// owner names the interfaces, is always at home.
pub(super) fn follow(
    seen: watch::Receiver<Arc<Network>>,
    state: &StateDir,
    anywhere: bool,
    tasks: &Tasks,
) -> watch::Receiver<Arc<Network>> {
    if !is_portable(Path::new(POWER)) {
        return seen;
    }
    let mut follower = Follower {
        homes: Homes {
            known: load(state),
            anywhere,
        },
        // A guest beside the daemon uses what the daemon knows.
        file: state.is_ours().then(|| state.path(FILE)),
        told: Vec::new(),
        sender: watch::channel(Arc::default()).0,
        seen,
    };
    let marked = follower.sender.subscribe();
    follower.look();
    tasks.spawn("whereabouts", async move {
        while follower.seen.changed().await.is_ok() {
            follower.look();
        }
    });
    marked
}

/// What the owner should know where the device is away.
pub(super) fn warning(network: &Network) -> Option<String> {
    let away = |i: &&Interface| i.away && matches!(i.router, Router::Known(_));
    let names: Vec<&str> = network
        .interfaces
        .iter()
        .filter(away)
        .map(|i| i.name.as_str())
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "this device was carried to a network that is not its home ({}): no other device is looked for or answered \
             there. If it is your household's, after a new router say, set `anywhere = true` in [lan] and restart \
             tributary once there: it is a home then, also when you take the line out again",
            names.join(", ")
        )
    })
}

struct Follower {
    homes: Homes,
    file: Option<PathBuf>,
    /// The interfaces that were away the last time.
    told: Vec<u32>,
    seen: watch::Receiver<Arc<Network>>,
    sender: watch::Sender<Arc<Network>>,
}

impl Follower {
    fn look(&mut self) {
        let seen = Arc::clone(&self.seen.borrow_and_update());
        let before = self.homes.known.clone();
        let away = self.homes.away(&seen);
        if self.homes.known != before {
            self.keep();
        }
        let mut network = Network::clone(&seen);
        for interface in &mut network.interfaces {
            interface.away = away.contains(&interface.index);
        }
        if away != self.told
            && let Some(warning) = warning(&network)
            && let Some(more) = AWAY.pass()
        {
            tracing::warn!(more, "{warning}");
        }
        self.told = away;
        self.sender.send_replace(Arc::new(network));
    }

    fn keep(&self) {
        let Some(file) = &self.file else { return };
        let written = serde_json::to_vec(&self.homes.known).map_err(|e| e.to_string());
        let written = written.and_then(|bytes| write_atomic(file, &bytes).map_err(|e| e.to_string()));
        if let Err(error) = written {
            tracing::warn!(%error, "which network is home cannot be kept: the next start takes the first one anew");
        }
    }
}

fn load(state: &StateDir) -> Vec<Home> {
    let bytes = state.read(FILE).unwrap_or_else(|error| {
        tracing::warn!(%error, "which networks are home cannot be read: the first one is taken anew");
        None
    });
    let mut known: Vec<Home> = bytes
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    known.truncate(MAX_HOMES);
    known
}

/// Whether the device has a battery of its own; those of its mouse and headset are shown there as well.
fn is_portable(power: &Path) -> bool {
    let says = |supply: &Path, what: &str, value: &str| {
        fs::read_to_string(supply.join(what)).is_ok_and(|said| said.trim() == value)
    };
    let battery = |supply: &Path| says(supply, "type", "Battery") && !says(supply, "scope", "Device");
    let Ok(supplies) = fs::read_dir(power) else {
        return false;
    };
    supplies.flatten().any(|supply| battery(&supply.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: LineId = LineId([1; 8]);
    const CAFE: LineId = LineId([2; 8]);

    fn network(faces: &[(UplinkKind, &[&str], Router)]) -> Network {
        let face = |(n, (kind, addresses, router)): (usize, &(UplinkKind, &[&str], Router))| Interface {
            index: 2 + n as u32,
            name: format!("if{n}"),
            kind: *kind,
            up: true,
            loopback: false,
            point_to_point: false,
            multicast: true,
            addresses: addresses
                .iter()
                .map(|cidr| cidr.split_once('/').unwrap())
                .map(|(ip, length)| (ip.parse().unwrap(), length.parse().unwrap()))
                .collect(),
            on_link: vec![],
            default_route: *router != Router::None,
            router: *router,
            away: false,
        };
        Network {
            interfaces: faces.iter().enumerate().map(face).collect(),
            uplinks: vec![],
        }
    }

    fn wifi(router: Router) -> Network {
        network(&[(UplinkKind::Wireless, &["192.168.1.7/24"], router)])
    }

    #[test]
    fn the_first_network_is_home_and_another_with_the_same_addresses_is_not() {
        let mut homes = Homes::default();
        assert_eq!(homes.away(&wifi(Router::Known(HOME))), [0; 0]);
        assert_eq!(homes.away(&wifi(Router::Known(CAFE))), [2]);
        assert_eq!(homes.away(&wifi(Router::Known(HOME))), [0; 0]);
        let renumbered = network(&[(UplinkKind::Wireless, &["10.9.0.7/16"], Router::Known(HOME))]);
        assert_eq!(homes.away(&renumbered), [0; 0], "the router is the same");
        assert_eq!(homes.known.len(), 1);
    }

    #[test]
    fn a_silent_router_is_judged_by_addresses_and_learned_when_it_shows_itself() {
        let mut homes = Homes::default();
        assert_eq!(homes.away(&wifi(Router::Unknown)), [2], "nothing is known yet");
        assert!(homes.known.is_empty());
        homes.away(&wifi(Router::Known(HOME)));
        assert_eq!(homes.away(&wifi(Router::Unknown)), [0; 0]);
        let elsewhere = network(&[(UplinkKind::Wireless, &["10.1.2.3/8"], Router::Unknown)]);
        assert_eq!(homes.away(&elsewhere), [2]);
    }

    #[test]
    fn a_cable_between_devices_and_an_own_network_are_home_and_a_wifi_just_joined_is_not_yet() {
        let mut homes = Homes::default();
        homes.away(&wifi(Router::Known(HOME)));
        for (kind, addresses, away) in [
            (UplinkKind::Wired, &["169.254.3.4/16"][..], false),
            (UplinkKind::Wired, &["fe80::1/64"], false),
            (UplinkKind::Wireless, &["10.42.0.1/24"], false),
            (UplinkKind::Wireless, &["fe80::1/64"], true),
        ] {
            let here = network(&[(kind, addresses, Router::None)]);
            assert_eq!(!homes.away(&here).is_empty(), away, "{addresses:?}");
        }
        assert_eq!(homes.known.len(), 1, "none of them is learned");
    }

    #[test]
    fn each_interface_is_judged_by_itself_so_that_a_phones_network_is_lent_at_home_and_not_announced_on() {
        let mut homes = Homes::default();
        homes.away(&wifi(Router::Known(HOME)));
        let both = network(&[
            (UplinkKind::Wired, &["192.168.1.7/24"], Router::Known(HOME)),
            (UplinkKind::Wireless, &["172.20.10.3/28"], Router::Known(CAFE)),
        ]);
        assert_eq!(homes.away(&both), [3]);
    }

    #[test]
    fn anywhere_is_home_and_stays_so_and_no_more_than_eight_are_remembered() {
        let mut homes = Homes {
            anywhere: true,
            ..Homes::default()
        };
        for n in 0..20 {
            assert_eq!(homes.away(&wifi(Router::Known(LineId([n; 8])))), [0; 0]);
        }
        assert_eq!(homes.known.len(), MAX_HOMES);
        homes.anywhere = false;
        assert_eq!(homes.away(&wifi(Router::Known(LineId([19; 8])))), [0; 0]);
        assert_eq!(
            homes.away(&wifi(Router::Known(LineId([3; 8])))),
            [2],
            "the oldest"
        );
        for n in 0..50 {
            let address = format!("10.{n}.0.7/24");
            homes.away(&network(&[(
                UplinkKind::Wireless,
                &[&address],
                Router::Known(LineId([19; 8])),
            )]));
        }
        assert!(homes.known.iter().all(|h| h.prefixes.len() <= MAX_PREFIXES));
    }

    #[tokio::test]
    async fn away_no_interface_is_the_households_and_the_owner_reads_why_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let follower = |network: Network| Follower {
            homes: Homes {
                known: load(&state),
                anywhere: false,
            },
            file: Some(state.path(FILE)),
            told: Vec::new(),
            sender: watch::channel(Arc::default()).0,
            seen: watch::channel(Arc::new(network)).1,
        };
        let mut home = follower(wifi(Router::Known(HOME)));
        home.look();
        let seen = Arc::clone(&home.sender.borrow());
        assert_eq!((seen.lan_interfaces(None).len(), warning(&seen)), (1, None));

        let mut cafe = follower(wifi(Router::Known(CAFE)));
        cafe.look();
        let seen = Arc::clone(&cafe.sender.borrow());
        let neighbour = "192.168.1.9".parse().unwrap();
        assert!(seen.lan_interfaces(None).is_empty() && !seen.is_on_link(neighbour, None));
        assert!(seen.is_away(neighbour, None) && warning(&seen).unwrap().contains("if0"));
        let named = ["if0".to_owned()];
        assert!(
            seen.is_on_link(neighbour, Some(&named)),
            "the owner's word counts"
        );
        assert!(!seen.is_away(neighbour, Some(&named)));
    }

    #[test]
    fn only_a_battery_of_the_devices_own_makes_it_portable() {
        let power = tempfile::tempdir().unwrap();
        let supply = |name: &str, files: &[(&str, &str)]| {
            let directory = power.path().join(name);
            fs::create_dir(&directory).unwrap();
            for (file, content) in files {
                fs::write(directory.join(file), format!("{content}\n")).unwrap();
            }
        };
        assert!(!is_portable(&power.path().join("none")));
        supply("AC", &[("type", "Mains")]);
        supply("hidpp_battery_0", &[("type", "Battery"), ("scope", "Device")]);
        supply("ups", &[("type", "UPS"), ("scope", "System")]);
        assert!(!is_portable(power.path()));
        supply("BAT0", &[("type", "Battery")]);
        assert!(is_portable(power.path()));
    }
}
