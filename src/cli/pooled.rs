//! What `get` and `put` share: the daemon does it where there is one that can, else a peer for as long as it takes.

use crate::api::convert::{STOPPED, UNEXPECTED, USAGE};
use crate::api::{Client, ClientError, Done, Failed, Request, Transfer};
use crate::config::Config;
use crate::identity::StateDir;
use crate::node::Node;
use crate::upload::Stop;

use super::args::Common;
use super::show::{Show, follow};
use super::{daemon, node_config, state_path};

/// The kernel chooses.
const ANY_PORT: u16 = 0;

/// Why the daemon does not do it; `None`: there is none, which is nothing to be said.
pub(super) type Without = Option<String>;

/// Asks the daemon.
///
/// # Errors
/// Where there is none that can be asked.
pub(super) async fn reach(common: &Common, request: &Request) -> Result<Client, Without> {
    match daemon::ask(common, request).await {
        Ok(client) => Ok(client),
        // Somebody who names a socket means a daemon.
        Err(ClientError::NoDaemon) => {
            let named = common.socket.as_ref();
            Err(named.map(|socket| format!("no daemon is running at {}", socket.display())))
        }
        Err(error) => Err(Some(error.to_string())),
    }
}

/// Without a daemon: a peer for as long as it takes. `beside_daemon`: there is one, whose port is left to it, also when it
/// is away for the moment that an upgrade takes.
///
/// # Errors
/// What it ended with.
pub(super) async fn alone(
    common: &Common,
    mut config: Config,
    beside_daemon: bool,
    show: &mut Show,
    stop: &Stop,
    begin: impl AsyncFnOnce(&Node) -> Result<Transfer, Failed>,
) -> Result<Done, Failed> {
    if beside_daemon {
        config.lan.port = Some(ANY_PORT);
    }
    let unexpected = |message: String| Failed {
        code: UNEXPECTED,
        message,
    };
    let state = StateDir::open(&state_path(common)).map_err(|e| unexpected(e.to_string()))?;
    let node = Node::start(node_config(config, state))
        .await
        .map_err(|e| unexpected(e.to_string()))?;
    let begun = stop.stop.run_until_cancelled(begin(&node)).await;
    let result = match begun {
        Some(Ok(transfer)) => follow(transfer, show, stop).await,
        Some(Err(failed)) => Err(failed),
        None => Err(stopped()),
    };
    node.stop().await;
    result
}

/// Headers as `-H` gives them.
///
/// # Errors
/// Where one is none.
pub(super) fn headers(given: &[String]) -> Result<Vec<(String, String)>, Failed> {
    let parsed = given.iter().map(|header| {
        let split = header.split_once(':').filter(|(name, _)| !name.trim().is_empty());
        let (name, value) = split.ok_or_else(|| {
            wrong(format!(
                "-H '{header}' is not a header: write it as 'Name: value'"
            ))
        })?;
        Ok((name.trim().into(), value.trim().into()))
    });
    parsed.collect()
}

/// Before anything was begun.
fn stopped() -> Failed {
    Failed {
        code: STOPPED,
        message: "stopped".into(),
    }
}

/// The command line is wrong.
pub(super) const fn wrong(message: String) -> Failed {
    Failed { code: USAGE, message }
}
