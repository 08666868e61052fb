//! The command line: arguments in, output and an exit code out.
//!
//! Invariants: results go to standard output, news and errors to standard error; a wrong configuration ends what needs
//! one before a socket is opened; the first Ctrl-C stops in order, a second one at once (of `put`: removes what was sent, and
//! a third one stops at once).

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the module that prints"
)]

mod approve;
mod args;
mod check_config;
mod clock;
mod daemon;
mod demo;
mod doctor;
mod get;
mod log;
mod overview;
mod peers;
mod pooled;
mod put;
mod s3;
mod serve;
mod service;
mod share;
mod show;
mod spool;
mod status;
mod target;
mod trust;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::convert::STOPPED;
use crate::config::Config;
use crate::identity::StateDir;
use crate::link::DEFAULT_PORT;
use crate::node::{Doors, Live, NodeConfig};
use crate::relay;
use crate::task::spawn_apart;
use crate::upload::Stop;

use args::{Cli, Command, Common};

/// A wrong configuration: `EX_USAGE` of sysexits.
const BAD_CONFIG: u8 = 64;
/// 128 and SIGTERM's number, as shells have it.
const TERMINATED: i32 = 143;
/// Connections, timers and crypto of one peer; more threads would only cost memory.
const WORKER_THREADS: usize = 2;
/// Each holds a stack while it is needed; writing files and resolving names is all they do. One user's disk that hangs
/// holds five for each of its eight downloads: the others' must go on. All threads together stay below the unit's TasksMax.
const BLOCKING_THREADS: usize = 48;

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log::to_stderr(&cli);
    // The others must work beside a file that is wrong: to see how the daemon is that goes on with the old one.
    let config = match &cli.command {
        Command::Get(_) | Command::Put(_) | Command::Run | Command::Doctor(_) => {
            Config::load(cli.common.config.as_deref())
        }
        _ => Ok(Default::default()),
    };
    let config = match config {
        Ok((config, _)) => config,
        Err(error) => return check_config::refuse(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let code = runtime.block_on(run(cli, config));
    // Blocking name resolution may still be waiting for a dead server; nothing depends on it any more.
    runtime.shutdown_background();
    code
}

/// The command line's definition, for what is made from it when packages are: man pages and shell completions.
pub fn command() -> clap::Command {
    Cli::command()
}

async fn run(cli: Cli, config: Config) -> ExitCode {
    let removes = matches!(cli.command, Command::Put(_));
    let Stop { stop, abort } = match on_signal(removes) {
        Ok(stop) => stop,
        Err(error) => return fail(&error),
    };
    match cli.command {
        Command::Get(get) => get::run(&cli.common, config, get, stop).await,
        Command::Put(put) => put::run(&cli.common, config, put, Stop { stop, abort }).await,
        Command::Share(options) => share::run(&cli.common, options, stop).await,
        Command::Shared(options) => share::list(&cli.common, &options, stop).await,
        Command::Run => serve::run(&cli.common, config, stop).await,
        Command::Status(status) => status::run(&cli.common, &status, stop).await,
        Command::Invite(options) => trust::invite(&cli.common, &options, stop).await,
        Command::Join(options) => trust::join(&cli.common, options, stop).await,
        Command::Approve(options) => approve::run(&cli.common, options, stop).await,
        Command::Peers(options) => peers::run(&cli.common, &options, stop).await,
        Command::Forget(options) => trust::forget(&cli.common, options.device, stop).await,
        Command::Block(options) => trust::block(&cli.common, options.device, stop).await,
        Command::Leave(options) => trust::leave(&cli.common, &options, stop).await,
        Command::CheckConfig(options) => check_config::run(&cli.common, &options),
        Command::Doctor(options) => doctor::run(&cli.common, config, options, stop).await,
        Command::Demo(options) => demo::run(&options, stop).await,
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("tributary: {error}");
    ExitCode::FAILURE
}

/// Tokens: the first SIGINT or SIGTERM stops; where the command `removes`, a SIGINT after that aborts; the next signal ends
/// the process, with the code that shells know it by.
fn on_signal(removes: bool) -> io::Result<Stop> {
    let heard = Stop::default();
    let tokens = heard.clone();
    let (listens, listening) = mpsc::channel();
    // Apart: the last signal is for when everything else hangs.
    spawn_apart("signals", async move {
        let signals = signal(SignalKind::interrupt()).and_then(|i| Ok((i, signal(SignalKind::terminate())?)));
        let (mut interrupt, mut terminate) = match signals {
            Ok(both) => both,
            Err(error) => return drop(listens.send(Err(error))),
        };
        // Who started this thread waits for it.
        let _ = listens.send(Ok(()));
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => i32::from(STOPPED),
                _ = terminate.recv() => TERMINATED,
            };
            let by_hand = code == i32::from(STOPPED);
            if !tokens.stop.is_cancelled() {
                tokens.stop.cancel();
            } else if removes && by_hand && !tokens.abort.is_cancelled() {
                tokens.abort.cancel();
            } else {
                std::process::exit(code);
            }
        }
    })?;
    listening.recv().map_err(io::Error::other)??;
    Ok(heard)
}

/// Where the device's state is: as asked, as systemd says, else where the user's or the system's state goes.
fn state_path(common: &Common) -> PathBuf {
    if let Some(path) = common.state_dir.clone().or_else(|| set("STATE_DIRECTORY")) {
        return path;
    }
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/tributary".into();
    }
    let own = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    own.unwrap_or_else(std::env::temp_dir).join("tributary")
}

/// A path in the environment.
fn set(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|v| !v.is_empty());
    value.map(PathBuf::from)
}

/// A node's settings from the configuration.
fn node_config(config: Config, state: StateDir) -> NodeConfig {
    NodeConfig {
        state,
        name: config.device.name.unwrap_or_else(host_name),
        port: config.lan.port,
        interfaces: config.lan.interfaces,
        anywhere: config.lan.anywhere,
        peers: config.lan.peers.iter().map(|p| p.0).collect(),
        relay: relay::Config {
            limits: config.egress.limits(),
            allow: config.egress.allow,
            ports: config.egress.ports,
            ..relay::Config::default()
        },
        doors: doors(&config.trust),
        passphrase: None,
        share: config.share,
        rules: config.uplinks,
        network: None,
        origins: None,
    }
}

/// What of the configuration a running node takes over.
fn live(config: &Config) -> Live {
    Live {
        rules: config.uplinks.clone(),
        allow: config.egress.allow.clone(),
        ports: config.egress.ports.clone(),
        limits: config.egress.limits(),
        peers: config.lan.peers.iter().map(|p| p.0).collect(),
        doors: doors(&config.trust),
        share: config.share,
    }
}

const fn doors(trust: &crate::config::Trust) -> Doors {
    let (lend, borrow) = trust.doors();
    Doors { lend, borrow }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    name.filter(|n| !n.is_empty())
        .unwrap_or_else(|| format!("port-{DEFAULT_PORT}"))
}
