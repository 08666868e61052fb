//! `tributary run`: the daemon, in the foreground.
//!
//! It tells its service manager when it is ready, how it is, that its loop is alive, when it reloads and when it stops.
//! Invariant: a configuration that is wrong when it is read again changes nothing.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError};
use crate::identity::StateDir;
use crate::node::{Node, NodeConfig, Phase, Summary};
use crate::task::spawn_apart;
use crate::trust::Secret;

use super::args::Common;
use super::check_config::refuse;
use super::daemon::listens_at;
use super::service::Service;
use super::{fail, live, node_config, state_path};

/// How often the status line may change.
const STATUS_EVERY: Duration = Duration::from_secs(3);

pub(super) async fn run(common: &Common, config: Config, stop: CancellationToken) -> ExitCode {
    // From the first moment: without somebody who listens to it, this signal ends a process.
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return fail(&error),
    };
    let passphrase = match config.trust.secret() {
        Ok(passphrase) => passphrase.map(|words| Secret::new(words.into_bytes())),
        Err(error) => return refuse(&error),
    };
    // From here on there are secrets in memory: no other process of this user reads them, and no core file holds them.
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::debug!(%error, "the process stays dumpable");
    }
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
    let node = NodeConfig {
        passphrase,
        ..node_config(config.clone(), state)
    };
    let node = match Node::start(node).await {
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
    let mut daemon = Daemon {
        node,
        service: Service::from_env(),
        file: common.config.clone(),
        config,
        trouble: None,
        told: String::new(),
    };
    if let Err(error) = daemon.begin() {
        daemon.stop().await;
        return fail(&error);
    }
    let mut status = tokio::time::interval(STATUS_EVERY);
    status.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = hangup.recv() => daemon.reload().await,
            _ = status.tick(), if daemon.service.listens() => daemon.tell(),
        }
    }
    daemon.stop().await;
    // A socket that is left would only be replaced by the next daemon.
    let _ = std::fs::remove_file(&socket);
    ExitCode::SUCCESS
}

struct Daemon {
    node: Arc<Node>,
    service: Service,
    /// The file that was named; `None`: those that are read without a name.
    file: Option<PathBuf>,
    /// What holds now, but for the keys that wait for a restart.
    config: Config,
    /// What the owner should see to.
    trouble: Option<String>,
    /// The status as it was told last.
    told: String,
}

impl Daemon {
    /// # Errors
    /// Where there is no thread for the watchdog.
    fn begin(&mut self) -> io::Result<()> {
        tracing::info!(id = %self.node.id().short(), port = self.node.port(), "ready");
        self.told = self.status();
        self.service.ready(&self.told);
        if let Some(patience) = self.service.watchdog() {
            let (node, service) = (Arc::clone(&self.node), self.service);
            spawn_apart("watchdog", watchdog(node, service, patience))?;
        }
        Ok(())
    }

    /// Reads the configuration again. What is wrong with it is said, and the old one stays.
    async fn reload(&mut self) {
        self.service.reloading();
        match Config::load(self.file.as_deref()) {
            Ok((config, _)) => self.take_over(config).await,
            Err(error) => self.keep(&error),
        }
        self.told = self.status();
        self.service.ready(&self.told);
    }

    async fn take_over(&mut self, config: Config) {
        let waiting = self.config.needs_restart(&config);
        for key in &waiting {
            tracing::warn!("{key} has changed, which needs a restart");
        }
        self.node.reload(live(&config)).await;
        self.trouble = (!waiting.is_empty()).then(|| format!("restart for {}", waiting.join(", ")));
        self.config = Config {
            device: self.config.device.clone(),
            lan: crate::config::Lan {
                peers: config.lan.peers,
                ..self.config.lan.clone()
            },
            trust: crate::config::Trust {
                passphrase: self.config.trust.passphrase.clone(),
                passphrase_file: self.config.trust.passphrase_file.clone(),
                ..config.trust
            },
            ..config
        };
        tracing::info!("configuration reloaded");
    }

    fn keep(&mut self, error: &ConfigError) {
        for line in error.to_string().lines() {
            tracing::error!("{line}");
        }
        tracing::error!("the configuration is wrong: the one before stays in force");
        let first = error.to_string().lines().next().unwrap_or_default().to_owned();
        self.trouble = Some(format!("configuration not reloaded: {first}"));
    }

    fn tell(&mut self) {
        let now = self.status();
        if now != self.told {
            self.service.status(&now);
            self.told = now;
        }
    }

    fn status(&self) -> String {
        let text = describe(self.node.summary());
        match &self.trouble {
            Some(trouble) => format!("{text} ({trouble})"),
            None => text,
        }
    }

    async fn stop(&self) {
        let began = Instant::now();
        self.service.stopping("stopping");
        let begins = |phase: Phase| self.service.status(&format!("stopping: {phase}"));
        self.node.stop_telling(begins).await;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(ms, "stopped");
    }
}

/// Tells the manager that all is well, twice as often as it asks for, and only where the node's own loop has just said so.
async fn watchdog(node: Arc<Node>, service: Service, patience: Duration) {
    let mut every = tokio::time::interval(patience / 2);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        match tokio::time::timeout(patience / 2, node.is_alive()).await {
            Ok(true) => service.alive(),
            Ok(false) => return,
            Err(_) => {
                tracing::error!("the node's loop hangs: the service manager is not told that all is well")
            }
        }
    }
}

fn describe(now: Summary) -> String {
    let count = |n: u64, one: &str, many: &str| match n {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    };
    let mut text = format!(
        "{}, {}, lending {}",
        count(now.peers as u64, "peer", "peers"),
        count(now.lanes as u64, "lane", "lanes"),
        count(now.lent, "tunnel", "tunnels"),
    );
    if now.downloads > 0 {
        text += &format!(", {}", count(now.downloads as u64, "download", "downloads"));
    }
    if now.uploads > 0 {
        text += &format!(", {}", count(now.uploads as u64, "upload", "uploads"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_counts_in_words() {
        let mut summary = Summary {
            peers: 3,
            lanes: 1,
            lent: 0,
            downloads: 0,
            uploads: 0,
        };
        assert_eq!(describe(summary), "3 peers, 1 lane, lending 0 tunnels");
        summary.downloads = 1;
        summary.lent = 1;
        assert_eq!(describe(summary), "3 peers, 1 lane, lending 1 tunnel, 1 download");
        (summary.downloads, summary.uploads) = (0, 2);
        assert_eq!(describe(summary), "3 peers, 1 lane, lending 1 tunnel, 2 uploads");
    }
}
