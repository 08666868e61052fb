//! What sharing saved: totals over all downloads, kept across restarts.
//!
//! Invariant: the file is written once a minute at most, and at the end, and only when something changed: it may lie on an
//! SD card.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::identity::{DAMAGED, StateDir, write_atomic};

const FILE: &str = "savings.json";
const EVERY: Duration = Duration::from_secs(60);

/// Bytes, since this device first shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Came from members instead of over an uplink.
    pub from_members: u64,
    /// Came over uplinks in downloads of which members brought something.
    pub over_uplinks: u64,
    /// Went to members.
    pub served: u64,
}

/// The running totals.
#[derive(Debug)]
pub struct Savings {
    /// `None`: another process is the device, and keeps its own.
    path: Option<PathBuf>,
    state: Mutex<State>,
    /// One writes at a time, so that the last totals are what stays.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    totals: Totals,
    written: Totals,
    at: Option<Instant>,
}

impl Savings {
    /// Reads what was kept. A damaged file is set aside, and it begins at nothing.
    pub fn open(state: &StateDir) -> Self {
        let totals = if state.is_ours() {
            read(state)
        } else {
            Totals::default()
        };
        Self {
            path: state.is_ours().then(|| state.path(FILE)),
            state: Mutex::new(State {
                totals,
                written: totals,
                at: None,
            }),
            writing: Mutex::default(),
        }
    }

    /// A download of which members brought something has got so much more.
    pub fn got(&self, from_members: u64, over_uplinks: u64) {
        let totals = &mut self.state().totals;
        totals.from_members = totals.from_members.saturating_add(from_members);
        totals.over_uplinks = totals.over_uplinks.saturating_add(over_uplinks);
    }

    /// A member was served so much more.
    pub fn served(&self, bytes: u64) {
        let totals = &mut self.state().totals;
        totals.served = totals.served.saturating_add(bytes);
    }

    /// The totals now.
    pub fn totals(&self) -> Totals {
        self.state().totals
    }

    /// Writes them where something changed and the last time is a minute ago; blocks.
    pub fn save(&self, now: Instant) {
        let due = |at: Instant| now.saturating_duration_since(at) >= EVERY;
        if self.state().at.is_none_or(due) {
            self.finish(now);
        }
    }

    /// Writes them where something changed; blocks. For the end.
    pub fn finish(&self, now: Instant) {
        let Some(path) = &self.path else { return };
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = {
            let mut state = self.state();
            if state.totals == state.written {
                return;
            }
            state.at = Some(now);
            state.totals
        };
        // Plain data.
        let bytes = serde_json::to_vec(&totals).unwrap_or_default();
        match write_atomic(path, &bytes) {
            Ok(()) => self.state().written = totals,
            Err(error) => {
                tracing::warn!(%error, "what sharing saved is not kept: {} cannot be written", path.display());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(state: &StateDir) -> Totals {
    let bytes = state.read(FILE).unwrap_or_else(|error| {
        tracing::warn!(%error, "what sharing saved so far cannot be read");
        None
    });
    let Some(bytes) = bytes else {
        return Totals::default();
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        let aside = state.set_aside(FILE, DAMAGED);
        let aside = aside.map_or_else(|e| e.to_string(), |path| path.display().to_string());
        tracing::warn!(%error, aside, "{} was damaged: what sharing saved is counted anew", state.path(FILE).display());
        Totals::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(state: &StateDir) -> Option<Totals> {
        serde_json::from_slice(&state.read(FILE).unwrap()?).ok()
    }

    #[test]
    fn totals_are_written_once_a_minute_and_at_the_end_and_go_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (savings, now) = (Savings::open(&state), Instant::now());
        savings.save(now);
        assert_eq!(written(&state), None, "nothing to say");
        savings.got(1900, 100);
        savings.save(now);
        savings.served(7);
        savings.save(now + EVERY / 2);
        assert_eq!(written(&state).map(|totals| totals.served), Some(0), "too soon");
        savings.save(now + EVERY);
        assert_eq!(written(&state), Some(savings.totals()));
        savings.served(u64::MAX);
        savings.finish(now + EVERY);
        let again = Savings::open(&state);
        again.got(100, 0);
        let totals = Totals {
            from_members: 2000,
            over_uplinks: 100,
            served: u64::MAX,
        };
        assert_eq!(again.totals(), totals);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_counting_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for damaged in ["", "{\"served\":", "garbage"] {
            state.write(FILE, damaged.as_bytes()).unwrap();
            assert_eq!(Savings::open(&state).totals(), Totals::default());
            let kept = std::fs::read(dir.path().join("savings.json.damaged")).unwrap();
            assert_eq!(kept, damaged.as_bytes());
        }
        state.write(FILE, b"{\"served\":5,\"later\":1}").unwrap();
        assert_eq!(Savings::open(&state).totals().served, 5, "of another version");
    }
}
