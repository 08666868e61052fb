//! What a service manager is told: systemd's notification protocol (`sd_notify(3)`), a datagram of `KEY=value` lines.
//!
//! Written here rather than taken from a library, because it is a dozen lines and the library knows no abstract addresses,
//! as containers use. Invariant: without a manager everything here does nothing, and a manager that does not listen holds
//! nobody up for longer than [`PATIENCE`].

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A manager takes a datagram in microseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// The manager that started this process, if one did.
#[derive(Clone, Debug)]
pub(super) struct Service {
    address: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

impl Service {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        Self {
            address: std::env::var_os("NOTIFY_SOCKET").and_then(|name| address(&name)),
            watchdog: number("WATCHDOG_USEC")
                .filter(|usec| ours && *usec > 0)
                .map(Duration::from_micros),
        }
    }

    /// How often the manager wants to be told that all is well, at least; `None`: it does not watch.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.address.is_some())
    }

    /// Whether there is anybody to tell.
    pub(super) const fn listens(&self) -> bool {
        self.address.is_some()
    }

    /// Everything that was to be opened is open.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&["READY=1", &line("STATUS", status)]);
    }

    /// The configuration is read again; [`Service::ready`] says when that is over.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(|t| Duration::from(t).as_micros());
        self.tell(&["RELOADING=1", &format!("MONOTONIC_USEC={}", now.unwrap_or(0))]);
    }

    /// What goes on, in a few words.
    pub(super) fn status(&self, status: &str) {
        self.tell(&[&line("STATUS", status)]);
    }

    /// All is well.
    pub(super) fn alive(&self) {
        self.tell(&["WATCHDOG=1"]);
    }

    /// This process is about to end.
    pub(super) fn stopping(&self, status: &str) {
        self.tell(&["STOPPING=1", &line("STATUS", status)]);
    }

    fn tell(&self, lines: &[&str]) {
        let Some(address) = &self.address else { return };
        let message = lines.join("\n");
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.send_to_addr(message.as_bytes(), address)
        });
        if let Err(error) = sent {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}

fn address(name: &OsStr) -> Option<SocketAddr> {
    let parsed = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => return None,
    };
    parsed.ok()
}

/// One line, whatever is in the value.
fn line(key: &str, value: &str) -> String {
    let value: String = value
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("{key}={value}")
}
