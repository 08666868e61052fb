//! Who serves or attests nothing to this device for a day: members whose pieces or leaves were wrong.
//!
//! A bar runs by the monotonic clock, which nobody can set. Kept is how much of it is left and what the calendar said
//! then: after a restart the time in between counts where both calendars can be right, and does not where one of them
//! cannot (a Pi without network says 1970), so that a bar is never lifted early by a clock that was set, and never lasts
//! longer than a day of running. Invariant: bounded, and nothing but [`Bars::save`] touches the disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::identity::{DAMAGED, StateDir, write_atomic};
use crate::types::{PeerId, bytes_from_hex};

const FILE: &str = "bars.json";
/// How long (SEC-B1).
const BARRED: Duration = Duration::from_secs(24 * 3600);
/// Pieces that may be wrong: one may be a disk's fault.
const STRIKES: u8 = 2;
/// Far more devices than can be members; whoever was barred first makes room.
const MAX_BARRED: usize = 256;
/// As many as there can be links, and as many again that came and went.
const MAX_STRUCK: usize = 128;
/// How often what is left of the bars is written again: a device that says 1970 after each restart counts on from there.
const AGAIN: Duration = Duration::from_secs(3600);

/// Who is barred, and who soon may be.
#[derive(Debug)]
pub struct Bars {
    /// `None`: another process is the device, and keeps its own.
    path: Option<PathBuf>,
    state: Mutex<State>,
    /// One writes at a time, so that the last state is what stays.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Until when.
    barred: BTreeMap<PeerId, Instant>,
    strikes: BTreeMap<PeerId, u8>,
    changed: bool,
    written: Option<Instant>,
}

/// What is written.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// The calendar when it was written, in seconds after 1970.
    at: u64,
    /// By peer: seconds left.
    barred: BTreeMap<String, u64>,
}

impl Bars {
    /// Reads what was kept. A damaged file is set aside, and nobody is barred.
    pub fn open(state: &StateDir) -> Self {
        Self::open_at(state, Instant::now(), SystemTime::now())
    }

    fn open_at(state: &StateDir, now: Instant, calendar: SystemTime) -> Self {
        let kept = if state.is_ours() {
            read(state)
        } else {
            Kept::default()
        };
        Self {
            path: state.is_ours().then(|| state.path(FILE)),
            state: Mutex::new(State {
                barred: kept.running(now, calendar),
                written: Some(now),
                ..State::default()
            }),
            writing: Mutex::default(),
        }
    }

    /// A piece that it served was wrong. Whether it is barred now.
    pub fn strike(&self, holder: PeerId, now: Instant) -> bool {
        let mut state = self.state();
        if !state.strikes.contains_key(&holder) && state.strikes.len() >= MAX_STRUCK {
            // Whoever makes up identities is no member; what is forgotten is one strike of somebody.
            state.strikes.pop_first();
        }
        let strikes = state.strikes.entry(holder).or_default();
        *strikes = strikes.saturating_add(1);
        let barred = *strikes >= STRIKES;
        drop(state);
        if barred {
            self.bar(holder, now);
        }
        barred
    }

    /// It is barred from now on.
    pub fn bar(&self, peer: PeerId, now: Instant) {
        let mut state = self.state();
        state.strikes.remove(&peer);
        state.barred.retain(|_, until| *until > now);
        if state.barred.len() >= MAX_BARRED && !state.barred.contains_key(&peer) {
            let first = state.barred.iter().min_by_key(|(_, until)| **until);
            if let Some(first) = first.map(|(peer, _)| *peer) {
                state.barred.remove(&first);
            }
        }
        state.barred.insert(peer, now + BARRED);
        state.changed = true;
    }

    /// Whether it is.
    pub fn is_barred(&self, peer: PeerId, now: Instant) -> bool {
        self.state().barred.get(&peer).is_some_and(|until| *until > now)
    }

    /// Writes what changed; blocks. To be called after a bar, every few minutes, and at the end.
    pub fn save(&self) {
        self.save_at(Instant::now(), SystemTime::now());
    }

    fn save_at(&self, now: Instant, calendar: SystemTime) {
        let Some(path) = &self.path else { return };
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = self.state().due(now, calendar) else {
            return;
        };
        // Plain data.
        let bytes = serde_json::to_vec(&kept).unwrap_or_default();
        if let Err(error) = write_atomic(path, &bytes) {
            self.state().changed = true;
            tracing::warn!(%error, "who was barred is forgotten at the next restart: {} cannot be written", path.display());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn due(&mut self, now: Instant, calendar: SystemTime) -> Option<Kept> {
        let again = self
            .written
            .is_none_or(|at| now.saturating_duration_since(at) >= AGAIN);
        if !self.changed && (self.barred.is_empty() || !again) {
            return None;
        }
        self.barred.retain(|_, until| *until > now);
        self.changed = false;
        self.written = Some(now);
        let left = |until: &Instant| until.saturating_duration_since(now).as_secs();
        Some(Kept {
            at: seconds(calendar),
            barred: self
                .barred
                .iter()
                .map(|(peer, until)| (peer.to_string(), left(until)))
                .collect(),
        })
    }
}

impl Kept {
    /// Until when each of them is barred, where it is `now`.
    fn running(&self, now: Instant, calendar: SystemTime) -> BTreeMap<PeerId, Instant> {
        let then = UNIX_EPOCH.checked_add(Duration::from_secs(self.at));
        let passed = then.filter(|then| clock::is_set(*then) && clock::is_set(calendar));
        // A calendar that went back says nothing of how long it was.
        let passed = passed
            .and_then(|then| calendar.duration_since(then).ok())
            .unwrap_or_default();
        let left = |seconds: u64| Duration::from_secs(seconds).min(BARRED).saturating_sub(passed);
        let each = self.barred.iter().take(MAX_BARRED);
        each.filter_map(|(peer, seconds)| Some((peer_id(peer)?, now + left(*seconds))))
            .filter(|(_, until)| *until > now)
            .collect()
    }
}

fn read(state: &StateDir) -> Kept {
    let bytes = state.read(FILE).unwrap_or_else(|error| {
        tracing::warn!(%error, "who was barred cannot be read: nobody is");
        None
    });
    let Some(bytes) = bytes else {
        return Kept::default();
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        let aside = state.set_aside(FILE, DAMAGED);
        let aside = aside.map_or_else(|e| e.to_string(), |path| path.display().to_string());
        tracing::warn!(%error, aside, "{} was damaged: nobody is barred", state.path(FILE).display());
        Kept::default()
    })
}

fn peer_id(digits: &str) -> Option<PeerId> {
    Some(PeerId(bytes_from_hex(digits)?.try_into().ok()?))
}

fn seconds(calendar: SystemTime) -> u64 {
    calendar.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn peer(n: u16) -> PeerId {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(id)
    }

    /// 2027.
    fn calendar() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// Who is barred after a restart, so much later by the calendar, where it began and ended with these.
    fn left(began: SystemTime, ended: SystemTime) -> Duration {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let now = Instant::now();
        let bars = Bars::open_at(&state, now, began);
        bars.bar(peer(1), now);
        bars.save_at(now, began);
        let bars = Bars::open_at(&state, now, ended);
        let until = bars.state().barred.get(&peer(1)).copied();
        until.map_or(Duration::ZERO, |until| until - now)
    }

    #[test]
    fn sec_b1_the_second_wrong_piece_bars_a_holder_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let bars = Bars::open(&StateDir::open(dir.path()).unwrap());
        let now = Instant::now();
        assert!(!bars.strike(peer(1), now) && !bars.is_barred(peer(1), now));
        assert!(!bars.strike(peer(2), now), "another one's is another's");
        assert!(bars.strike(peer(1), now) && bars.is_barred(peer(1), now));
        assert!(bars.is_barred(peer(1), now + BARRED - Duration::from_secs(1)));
        assert!(!bars.is_barred(peer(1), now + BARRED));
        assert!(!bars.strike(peer(1), now + BARRED), "it begins anew");
    }

    #[test]
    fn bars_outlive_a_restart_whatever_the_calendar_says() {
        assert_eq!(left(calendar(), calendar()), BARRED);
        assert_eq!(left(calendar(), calendar() + HOUR), 23 * HOUR);
        assert_eq!(left(calendar(), calendar() + 24 * HOUR), Duration::ZERO);
        assert_eq!(left(calendar(), calendar() - HOUR), BARRED, "it was set back");
        assert_eq!(left(UNIX_EPOCH, calendar()), BARRED, "it was set meanwhile");
        assert_eq!(left(calendar(), UNIX_EPOCH), BARRED, "a Pi without network");
    }

    #[test]
    fn a_device_without_a_clock_counts_on_from_what_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (now, begun) = (Instant::now(), UNIX_EPOCH);
        let bars = Bars::open_at(&state, now, begun);
        bars.bar(peer(1), now);
        bars.save_at(now, begun);
        bars.save_at(now + AGAIN / 2, begun);
        let written = std::fs::read(dir.path().join(FILE)).unwrap();
        bars.save_at(now + 3 * HOUR, begun);
        assert_ne!(std::fs::read(dir.path().join(FILE)).unwrap(), written);
        let bars = Bars::open_at(&state, now, begun);
        assert!(bars.is_barred(peer(1), now + 20 * HOUR));
        assert!(!bars.is_barred(peer(1), now + 21 * HOUR));
    }

    #[test]
    fn bars_are_bounded_and_the_first_ones_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let bars = Bars::open(&StateDir::open(dir.path()).unwrap());
        let now = Instant::now();
        for n in 0..1000u16 {
            bars.bar(peer(n), now + Duration::from_millis(n.into()));
            bars.strike(peer(n), now);
        }
        assert_eq!(bars.state().barred.len(), MAX_BARRED);
        assert!(bars.state().strikes.len() <= MAX_STRUCK);
        assert!(bars.is_barred(peer(999), now + HOUR) && !bars.is_barred(peer(0), now + HOUR));
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_bars_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for damaged in ["", "{", "[1]", "{\"at\":-1,\"barred\":{}}", "\u{0}\u{1}"] {
            state.write(FILE, damaged.as_bytes()).unwrap();
            let bars = Bars::open(&state);
            assert!(bars.state().barred.is_empty());
            let kept = std::fs::read(dir.path().join("bars.json.damaged")).unwrap();
            assert_eq!(kept, damaged.as_bytes());
            assert_eq!(state.read(FILE).unwrap(), None);
        }
        let odd = format!(
            "{{\"at\":18446744073709551615,\"barred\":{{\"x\":1,\"{}\":99999999}}}}",
            peer(1)
        );
        state.write(FILE, odd.as_bytes()).unwrap();
        let now = Instant::now();
        let bars = Bars::open_at(&state, now, calendar());
        assert!(bars.is_barred(peer(1), now) && !bars.is_barred(peer(1), now + BARRED));
    }

    #[test]
    fn a_process_beside_the_daemon_reads_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let beside = Bars::open(&StateDir::open(dir.path()).unwrap());
        beside.bar(peer(1), Instant::now());
        beside.save();
        assert_eq!(state.read(FILE).unwrap(), None);
    }
}
