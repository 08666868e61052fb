//! The command line: arguments in, output and an exit code out.
//!
//! Invariants: results go to standard output, news and errors to standard error; a wrong configuration ends the program
//! before a socket is opened; the first Ctrl-C stops in order, a second one at once.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the module that prints"
)]

mod args;
mod daemon;
mod demo;
mod get;
mod serve;
mod show;
mod status;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::identity::StateDir;
use crate::link::DEFAULT_PORT;
use crate::node::NodeConfig;
use crate::relay;
use crate::task::Tasks;

use args::{Cli, Command, Common};

/// A wrong configuration: `EX_USAGE` of sysexits.
const BAD_CONFIG: u8 = 64;
/// Connections, timers and crypto of one peer; more threads would only cost memory.
const WORKER_THREADS: usize = 2;
/// Each holds a stack while it is needed; writing files and resolving names is all they do. One user's disk that hangs
/// holds five for each of its eight downloads: the others' must go on.
const BLOCKING_THREADS: usize = 64;

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(&cli);
    let config = match Config::load(cli.common.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tributary: {error}");
            return ExitCode::from(BAD_CONFIG);
        }
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

async fn run(cli: Cli, config: Config) -> ExitCode {
    let tasks = Tasks::new();
    let stop = match on_signal(&tasks) {
        Ok(stop) => stop,
        Err(error) => return fail(&error),
    };
    match cli.command {
        Command::Get(get) => get::run(&cli.common, config, get, stop).await,
        Command::Run => serve::run(&cli.common, config, stop).await,
        Command::Status(status) => status::run(&cli.common, &status).await,
        Command::Demo(options) => demo::run(&options, stop).await,
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("tributary: {error}");
    ExitCode::FAILURE
}

/// A token that the first SIGINT or SIGTERM cancels; the second one ends the process.
fn on_signal(tasks: &Tasks) -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tasks.spawn("signals", async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                token.cancel();
            }
        }
        std::process::exit(i32::from(crate::api::convert::STOPPED));
    });
    Ok(stop)
}

/// `RUST_LOG` has the last word; else the daemon tells its news and the others only what is wrong.
fn log_to_stderr(cli: &Cli) {
    let usual = match (cli.common.verbose, &cli.command) {
        (0, Command::Run) => "tributary=info,warn",
        (0, _) => "error",
        (1, Command::Run) | (2, _) => "tributary=debug,info",
        (1, _) => "tributary=info,warn",
        _ => "tributary=trace,debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .init();
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
        peers: config.lan.peers.iter().map(|p| p.0).collect(),
        relay: relay::Config {
            allow: config.egress.allow,
            ports: config.egress.ports,
            ..relay::Config::default()
        },
        network: None,
        origins: None,
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    name.filter(|n| !n.is_empty())
        .unwrap_or_else(|| format!("port-{DEFAULT_PORT}"))
}
