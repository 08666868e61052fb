//! A household's device: its namespace, its uplinks' wires, and the programs started on it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::SOON;
use super::ns::Namespace;
use super::plug::Plug;
use super::process::{Finished, Nanny, Process};
use super::wire::Wire;

/// What a daemon of the lab may reach, as its owner would allow it: the origins are not public addresses.
const CONFIG: &str = "[egress]\nallow = [\"203.0.113.0/24\", \"2001:db8::/32\"]\n";
/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// Until a program that should end is taken to hang.
const LIMIT: Duration = Duration::from_secs(180);

/// A peer of a running lab.
#[derive(Debug)]
pub struct Peer {
    pub(super) name: String,
    pub(super) namespace: Arc<Namespace>,
    pub(super) switch: Arc<Namespace>,
    pub(super) port: String,
    pub(super) lan: Mutex<Ipv4Addr>,
    pub(super) internet: Arc<Namespace>,
    pub(super) plugs: Vec<Plug>,
    pub(super) directory: PathBuf,
    pub(super) roots: PathBuf,
    pub(super) nanny: Nanny,
}

impl Peer {
    /// Makes its directory, with the default configuration.
    pub(super) fn furnish(&self) -> io::Result<()> {
        fs::create_dir_all(self.directory.join("run"))?;
        fs::write(self.directory.join("config.toml"), CONFIG)
    }

    /// Its name: also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the LAN.
    pub fn lan_address(&self) -> Ipv4Addr {
        *self.lan.lock().unwrap()
    }

    /// The wire of its uplink `wan{number}`.
    #[track_caller]
    pub fn wire(&self, number: usize) -> &Wire {
        &self.plugs[number].wire
    }

    /// The address of its uplink `wan{number}`.
    #[track_caller]
    pub fn wan_address(&self, number: usize) -> Ipv4Addr {
        self.plugs[number].v4()
    }

    /// How many uplinks it has.
    pub fn uplinks(&self) -> usize {
        self.plugs.len()
    }

    /// Where its programs run, with `config.toml`, `state` and what they write.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its namespace, for a thread of a test's own.
    pub fn namespace(&self) -> Arc<Namespace> {
        Arc::clone(&self.namespace)
    }

    /// Does `work` in a thread in this peer's namespaces and waits for it.
    #[track_caller]
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.namespace.run(work).unwrap()
    }

    /// A program that will run on this peer, in its directory. It is killed when the *thread* that spawns it ends;
    /// [`Peer::start`] and [`Peer::run`] spawn it from one that lasts as long as the lab.
    #[track_caller]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for proxy in [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        ] {
            command.env_remove(proxy);
        }
        command
            .current_dir(&self.directory)
            .env("HOME", &self.directory)
            .env("XDG_RUNTIME_DIR", self.directory.join("run"))
            .env_remove("SSL_CERT_DIR")
            .env("SSL_CERT_FILE", &self.roots)
            .env("CURL_CA_BUNDLE", &self.roots)
            .env("TRIBUTARY_CONFIG", self.directory.join("config.toml"))
            .env("TRIBUTARY_STATE_DIR", self.directory.join("state"))
            .env_remove("TRIBUTARY_SOCKET")
            .env_remove("RUNTIME_DIRECTORY");
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn,tributary=debug");
        }
        self.namespace.prepare(&mut command).unwrap();
        command
    }

    /// Starts a [`Peer::command`]; `label` names it in failures.
    #[track_caller]
    pub fn start(&self, label: &str, command: Command) -> Process {
        let label = format!("{}-{label}", self.name);
        Process::start(&label, command, &self.directory, &self.nanny).unwrap()
    }

    /// Runs a [`Peer::command`] to its end.
    #[track_caller]
    pub fn run(&self, label: &str, command: Command) -> Finished {
        self.start(label, command).wait(LIMIT)
    }

    /// The `tributary` program with these arguments: this build's, or the one that `TRIBUTARY_LAB_BINARY` names, to try
    /// what is shipped.
    #[track_caller]
    pub fn tributary(&self, args: &[&str]) -> Command {
        let named = std::env::var("TRIBUTARY_LAB_BINARY").ok();
        let mut command = self.command(named.as_deref().unwrap_or(env!("CARGO_BIN_EXE_tributary")));
        command.args(args);
        command
    }

    /// Replaces the configuration of what is started from now on. The default lets the lab's origins be reached.
    #[track_caller]
    pub fn configure(&self, toml: &str) {
        fs::write(self.directory.join("config.toml"), toml).unwrap();
    }

    /// Starts `tributary run`.
    #[track_caller]
    pub fn spawn_daemon(&self, args: &[&str]) -> Process {
        self.start("daemon", self.tributary(&[&["run"], args].concat()))
    }

    /// Starts `tributary get URL --json`.
    #[track_caller]
    pub fn spawn_get(&self, url: &str, args: &[&str]) -> Process {
        self.start("get", self.tributary(&[&["get", url, "--json"], args].concat()))
    }

    /// Runs `tributary get URL --json` to its end.
    #[track_caller]
    pub fn get(&self, url: &str, args: &[&str]) -> Finished {
        self.spawn_get(url, args).wait(LIMIT)
    }

    /// What `tributary status --json` says; `None` while there is no daemon that answers.
    #[track_caller]
    pub fn status(&self) -> Option<Value> {
        let mut status = self.start("status", self.tributary(&["status", "--json"]));
        let finished = status.try_wait(SOON)?;
        let answered = finished.status.success();
        answered
            .then(|| serde_json::from_str(&finished.stdout).ok())
            .flatten()
    }

    /// Waits until the daemon's status fulfils `condition`; after `limit` the test fails. Returns how long it took.
    #[track_caller]
    pub fn wait_status(&self, what: &str, limit: Duration, condition: impl Fn(&Value) -> bool) -> Duration {
        let began = Instant::now();
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(&condition) {
                return began.elapsed();
            }
            let text = status.map_or("nothing".to_owned(), |status| status.to_string());
            assert!(
                began.elapsed() < limit,
                "{}: not within {limit:?}: {what}; status: {text}",
                self.name
            );
            thread::sleep(GLANCE);
        }
    }
}

/// Waits until `condition` holds; after `limit` the test fails. Returns how long it took.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
    began.elapsed()
}
