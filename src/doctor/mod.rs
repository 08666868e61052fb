//! `tributary doctor`: looks at what commonly keeps a household from pooling and says what it means and what to do.
//!
//! Gathering and judging are apart: `gather` and its helpers only collect `facts`, at the same time where they have to
//! wait; `judge` is pure and makes one [`Check`] of each kind of fact. Nothing is guessed: where this device cannot see
//! something (its own firewall from outside, say) the check says what is known and why not more.
//!
//! Invariants: nothing is changed or written on this device; every wait is bounded, all of it takes less than 6 s; the
//! names of the checks and their order are stable, because scripts read them.

mod facts;
mod gather;
mod household;
mod judge;
mod knock;
mod mdns;
/// What `fuzzing` may call: who announces tributary in a message.
#[cfg(any(fuzzing, test))]
pub(crate) mod door {
    /// Names and ports.
    pub fn announced(packet: &[u8]) -> Vec<(String, u16)> {
        super::mdns::announced(packet)
    }
}
mod system;
mod ways;

use std::path::PathBuf;

use serde::Serialize;

use crate::config::Config;
use crate::task::Tasks;

/// What is to be examined, and with what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The owner's settings: the port, the LAN interfaces and the peers that were named.
    pub config: Config,
    /// What this device is called while it looks for peers without a daemon.
    pub name: String,
    /// Where this user's daemon would keep its state.
    pub state: PathBuf,
    /// Where a daemon may listen for the command line, the likeliest first.
    pub sockets: Vec<PathBuf>,
    /// The host whose name is resolved and whose port 443 is connected to over each uplink. `None`: neither is done.
    pub probe: Option<String>,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// Worth knowing; nothing has to be done about it.
    Note,
    /// Keeps this household from pooling, or a part of it.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable, one word.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What is so: facts, with names and numbers.
    pub found: String,
    /// What follows from it; `null` where there is nothing to be said.
    pub means: Option<String>,
    /// What to do, one step each; empty where nothing is to be done.
    pub advice: Vec<String>,
}

/// Everything that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of the program that looked.
    pub version: &'static str,
    /// How many checks came out as problems.
    pub problems: usize,
    /// How many came out as notes.
    pub notes: usize,
    /// Always the same ones, in the same order.
    pub checks: Vec<Check>,
}

/// Looks at everything. What is started for it runs in `tasks`, which is the caller's to stop: only then have peers heard
/// that a guest has left.
pub async fn examine(options: &Options, tasks: &Tasks) -> Report {
    let facts = gather::gather(options, tasks).await;
    Report::of(judge::all(&facts))
}

impl Report {
    fn of(checks: Vec<Check>) -> Self {
        let count = |verdict| checks.iter().filter(|c| c.verdict == verdict).count();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            problems: count(Verdict::Problem),
            notes: count(Verdict::Note),
            checks,
        }
    }
}

impl Check {
    fn fine(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Fine,
            found: found.into(),
            means: None,
            advice: Vec::new(),
        }
    }

    fn note(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Note,
            means: Some(means.into()),
            ..Self::fine(name, found)
        }
    }

    fn problem(name: &'static str, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Problem,
            ..Self::note(name, found, means)
        }
    }

    fn advise(mut self, step: impl Into<String>) -> Self {
        self.advice.push(step.into());
        self
    }
}
