//! What a service manager is told: systemd's notification protocol (`sd_notify(3)`), by the crate for it.
//!
//! Invariant: without a manager everything here does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The manager that started this process, if one did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Service {
    listens: bool,
    watchdog: Option<Duration>,
}

impl Service {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some_and(|name| !name.is_empty());
        Self {
            listens,
            watchdog: sd_notify::watchdog_enabled().filter(|every| listens && !every.is_zero()),
        }
    }

    /// How often the manager wants to be told that all is well, at least; `None`: it does not watch.
    pub(super) const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Whether there is anybody to tell.
    pub(super) const fn listens(&self) -> bool {
        self.listens
    }

    /// Everything that was to be opened is open.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
    }

    /// The configuration is read again; [`Service::ready`] says when that is over.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no monotonic clock"),
        }
    }

    /// What goes on, in a few words.
    pub(super) fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&line(status))]);
    }

    /// All is well.
    pub(super) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// This process is about to end.
    pub(super) fn stopping(&self, status: &str) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&line(status))]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}

/// One line, whatever is in the text: a second one would be taken for another assignment.
fn line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_stays_one_line_whatever_is_in_it() {
        assert_eq!(
            line("not reloaded: 'a\nREADY=1\u{7}'"),
            "not reloaded: 'a READY=1 '"
        );
    }
}
