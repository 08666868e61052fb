//! Collects all facts at the same time, as far as they do not build on each other.

use std::sync::Arc;

use tokio::sync::watch;

use crate::api::Status;
use crate::identity::DeviceKey;
use crate::link::{DEFAULT_PORT, SOCKET_BUFFER};
use crate::relay::{self, Relay};
use crate::task::Tasks;
use crate::trust::Tier;
use crate::types::LineId;
use crate::uplink::resolve::{Names, Resolver};
use crate::uplink::{self, Network, NotLan, Seed};

use super::facts::{Daemon, Facts, Lan, Limits, Lines, OwnWay, Port, PortState};
use super::{Options, household, system, ways};

/// Everything there is to know, within 6 s.
pub(super) async fn gather(options: &Options, tasks: &Tasks) -> Facts {
    let answer = household::daemon(&options.sockets).await;
    let seed = seed(answer.status.as_ref().map(|s| s.device.id.as_str()));
    let (network, error) = match uplink::enumerate(seed).await {
        Ok(network) => (Arc::new(options.config.uplinks.apply(network)), None),
        Err(error) => (Arc::default(), Some(error.to_string())),
    };
    let port = port(options, &answer.daemon);
    let free = matches!(port.state, PortState::Free);
    let resolver = Resolver::new(Names::new(), tasks);
    let looking = household::look(
        options,
        answer.status.as_ref(),
        &network,
        if free { port.wanted } else { 0 },
        tasks,
    );
    let ((household, multicast, lent), (probe, clock), state) = tokio::join!(
        looking,
        ways::probe(options.probe.as_deref(), &network.uplinks, &resolver),
        system::state(&options.state, tasks)
    );
    Facts {
        state,
        kernel: system::kernel(&network),
        lan: lan(options, &network, error),
        multicast,
        household,
        firewalls: system::firewalls(),
        lines: Lines {
            own: own(&network, answer.status.as_ref(), tasks),
            lent,
        },
        probe,
        clock,
        limits: Limits {
            files: system::open_files(answer.pid),
            buffer: system::receive_buffer(SOCKET_BUFFER),
            wanted: SOCKET_BUFFER as u64,
            dropped: match answer.daemon {
                Daemon::Answers { port, .. } => system::dropped(port),
                _ => None,
            },
        },
        port,
        daemon: answer.daemon,
    }
}

/// The daemon's, so that lines have the names that the household knows; else any.
fn seed(id: Option<&str>) -> Seed {
    let mut seed = Seed::default();
    let told = id.and_then(crate::types::sha256_from_hex);
    let any = || DeviceKey::ephemeral().ok().map(|key| key.id().0);
    if let Some(id) = told.or_else(any)
        && let Some(half) = id.get(..seed.len())
    {
        seed.copy_from_slice(half);
    }
    seed
}

fn port(options: &Options, daemon: &Daemon) -> Port {
    let named = options.config.lan.port;
    let wanted = named.unwrap_or(DEFAULT_PORT);
    Port {
        wanted,
        fixed: named.is_some(),
        state: match (daemon, system::port(wanted)) {
            (Daemon::Answers { port, .. }, _) => PortState::Daemon(*port),
            (Daemon::NotAllowed { .. } | Daemon::Broken { .. }, PortState::Taken(by)) => {
                PortState::TakenPerhapsByDaemon(by)
            }
            (_, state) => state,
        },
    }
}

fn lan(options: &Options, network: &Network, error: Option<String>) -> Lan {
    let only = options.config.lan.interfaces.as_deref();
    let faces = network.lan_interfaces(only).into_iter();
    // One that the owner names may have none yet.
    let (used, bare): (Vec<_>, Vec<_>) = faces.partition(|i| !i.addresses.is_empty());
    let bare = bare.into_iter().map(|i| (i, NotLan::NoAddress));
    let others = network.other_interfaces(only).into_iter().chain(bare);
    Lan {
        error,
        used: used
            .into_iter()
            .filter_map(|i| Some((i.name.clone(), i.addresses.first()?.0)))
            .collect(),
        others: others.map(|(i, why)| (i.name.clone(), why)).collect(),
        named: options.config.lan.interfaces.clone(),
    }
}

/// This device's uplinks, and which of them the relay would lend. The daemon knows their lines better: it has asked the
/// gateways, one of which may be a peer.
fn own(network: &Arc<Network>, status: Option<&Status>, tasks: &Tasks) -> Vec<OwnWay> {
    let lanes = status.map(|s| s.lanes.as_slice()).unwrap_or_default();
    let told = |name: &str| {
        let lane = lanes.iter().find(|l| !l.lent && l.uplink == name)?;
        LineId::from_hex(&lane.line)
    };
    let fixed = watch::channel(Arc::clone(network)).1;
    let relay = Relay::new(relay::Config::default(), fixed, tasks);
    let offered = relay.offered(network, Tier::Member);
    let own = network.uplinks.iter().map(|uplink| OwnWay {
        uplink: uplink.name.clone(),
        metered: uplink.metered,
        lent: offered.iter().any(|o| o.index == uplink.index),
        line: told(&uplink.name).unwrap_or(uplink.line),
    });
    own.collect()
}
