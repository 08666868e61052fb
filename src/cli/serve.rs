//! `tributary run`: the daemon, in the foreground.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::identity::StateDir;
use crate::node::Node;

use super::args::Common;
use super::daemon::listens_at;
use super::{fail, node_config, state_path};

pub(super) async fn run(common: &Common, config: Config, stop: CancellationToken) -> ExitCode {
    let path = state_path(common);
    let state = match StateDir::open(&path) {
        Ok(state) => state,
        Err(error) => return fail(&error),
    };
    if !state.is_ours() {
        eprintln!(
            "tributary: another tributary is running with the state in {}; stop it, or choose another --state-dir",
            path.display()
        );
        return ExitCode::FAILURE;
    }
    let socket = listens_at(common);
    let node = match Node::start(node_config(config, state)).await {
        Ok(node) => node,
        Err(error) => return fail(&error),
    };
    if let Err(error) = node.serve_control(&socket) {
        eprintln!(
            "tributary: cannot listen for the command line at {}: {error}",
            socket.display()
        );
        node.stop().await;
        return ExitCode::FAILURE;
    }
    tracing::info!(id = %node.id().short(), port = node.port(), "ready");
    stop.cancelled().await;
    tracing::info!("stopping");
    node.stop().await;
    // A socket that is left would only be replaced by the next daemon.
    let _ = std::fs::remove_file(&socket);
    ExitCode::SUCCESS
}
