//! What each way out can bring: measured while it is busy, remembered over restarts.
//!
//! A way's rate is the best it sustained over a window of two seconds, sinking slowly towards what later windows bring:
//! neither the slow start of a download nor its end, where a lane waits for work, says what a line can do. Windows in
//! which a borrower decided how much was asked for can only raise it. A rate belongs to a line: an interface that is
//! plugged in elsewhere begins anew.
//!
//! Invariants: bounded; written to the disk rarely, because it may be an SD card, and never at rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::identity::StateDir;
use crate::types::{LineId, PeerId, Rate};

const FILE: &str = "rates.json";
/// Rates remembered of ways that may be gone; a household has fewer.
const MAX_RATES: usize = 256;
/// Long enough to average over a slow line's bursts, short enough that most downloads have one.
const WINDOW: Duration = Duration::from_secs(2);
/// A way that was never measured takes less for a beginning: a higher window is believed at once anyway.
const FIRST_WINDOW: Duration = Duration::from_millis(800);
/// Without demand for so long, a window says nothing. Bytes are looked at every half second at least.
const GAP: Duration = Duration::from_millis(700);
/// The part of the old estimate that a lower window leaves: half of a change for the worse is known after 12 s of work.
const KEPT: f64 = 0.89;
/// A change by less than this part is none that others need to hear of.
const NOTABLE: f64 = 0.1;
/// Between two writes while there is something new; the last one is made at the stop.
const SAVE_EVERY: Duration = Duration::from_secs(15 * 60);

/// A way out: whose uplink (`None`: this device's), its name, and the line it ends in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) peer: Option<PeerId>,
    pub(super) uplink: String,
    pub(super) line: LineId,
}

/// Bytes that a way brought, as seen at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Brought {
    /// Since it was last told.
    pub(super) bytes: u64,
    /// Whether this device wanted all it could bring; else somebody else may have wanted less.
    pub(super) wanted: bool,
}

/// Measured rates; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    table: Arc<Mutex<Table>>,
    news: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Table {
    ways: BTreeMap<(Option<PeerId>, String), Row>,
    unsaved: bool,
    saved: Option<Instant>,
}

#[derive(Debug)]
struct Row {
    line: LineId,
    meter: Meter,
    /// What was last told and written.
    told: Option<Rate>,
}

/// As it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    peer: Option<PeerId>,
    uplink: String,
    line: LineId,
    rate: Rate,
}

impl Rates {
    /// What an earlier process measured; nothing where that cannot be read, for these are hints.
    pub(super) fn load(state: &StateDir) -> Self {
        let bytes = state.read(FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "the rates measured before cannot be read");
            None
        });
        let entries = bytes
            .and_then(|b| serde_json::from_slice::<Vec<Entry>>(&b).ok())
            .unwrap_or_default();
        let rates = Self::default();
        let rows = entries.into_iter().take(MAX_RATES).map(|entry| {
            let row = Row {
                line: entry.line,
                meter: Meter::known(entry.rate),
                told: Some(entry.rate),
            };
            ((entry.peer, entry.uplink), row)
        });
        rates.table().ways = rows.collect();
        rates
    }

    /// What a way can bring, as far as it was measured here.
    pub(super) fn of(&self, way: &Way) -> Option<Rate> {
        let table = self.table();
        let row = table.ways.get(&(way.peer, way.uplink.clone()))?;
        row.meter.rate().filter(|_| row.line == way.line)
    }

    /// The same, but without the small changes since it was last news: what others are told.
    pub(super) fn told(&self, way: &Way) -> Option<Rate> {
        let table = self.table();
        let row = table.ways.get(&(way.peer, way.uplink.clone()))?;
        row.told.filter(|_| row.line == way.line)
    }

    /// A way brought something.
    pub(super) fn brought(&self, way: &Way, brought: Brought, now: Instant) {
        let mut table = self.table();
        let key = (way.peer, way.uplink.clone());
        if table.ways.len() >= MAX_RATES && !table.ways.contains_key(&key) {
            return;
        }
        let row = table.ways.entry(key).or_insert_with(|| Row::new(way.line));
        if row.line != way.line {
            *row = Row::new(way.line);
        }
        row.meter.add(brought, now);
        let rate = row.meter.rate();
        if rate.is_some_and(|rate| is_notable(row.told, rate)) {
            row.told = rate;
            table.unsaved = true;
            self.news.notify_one();
        }
    }

    /// Waits for a notable change of any rate; one that came since the last call counts.
    pub(super) async fn changed(&self) {
        self.news.notified().await;
    }

    /// Writes what is new, if it is time to, or at the `last` opportunity. What another process owns is left alone.
    pub(super) fn save(&self, state: &StateDir, now: Instant, last: bool) {
        let mut table = self.table();
        let due = last
            || table
                .saved
                .is_none_or(|t| now.saturating_duration_since(t) >= SAVE_EVERY);
        if !table.unsaved || !due || !state.is_ours() {
            return;
        }
        table.unsaved = false;
        table.saved = Some(now);
        let entries: Vec<Entry> = table.ways.iter().filter_map(entry).collect();
        drop(table);
        let written = serde_json::to_vec(&entries).map_err(|e| e.to_string());
        let written = written.and_then(|bytes| state.write(FILE, &bytes).map_err(|e| e.to_string()));
        if let Err(error) = written {
            tracing::warn!(%error, "the measured rates cannot be kept");
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn new(line: LineId) -> Self {
        Self {
            line,
            meter: Meter::default(),
            told: None,
        }
    }
}

fn entry(((peer, uplink), row): (&(Option<PeerId>, String), &Row)) -> Option<Entry> {
    Some(Entry {
        peer: *peer,
        uplink: uplink.clone(),
        line: row.line,
        rate: row.meter.rate()?,
    })
}

fn is_notable(before: Option<Rate>, now: Rate) -> bool {
    let Some(before) = before else { return true };
    let (before, now) = (before.as_bits() as f64, now.as_bits() as f64);
    (now - before).abs() >= NOTABLE * before.max(1.0)
}

/// The estimator of one way. Pure: time is an argument.
#[derive(Debug, Default)]
struct Meter {
    best: Option<f64>,
    window: Option<Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    fed: Instant,
    bytes: u64,
    wanted: bool,
}

impl Meter {
    fn known(rate: Rate) -> Self {
        Self {
            best: Some(rate.as_bytes_f64()),
            window: None,
        }
    }

    fn rate(&self) -> Option<Rate> {
        self.best.map(Rate::bytes_f64).filter(|r| r.as_bits() > 0)
    }

    fn add(&mut self, brought: Brought, now: Instant) {
        let fresh = Window {
            began: now,
            fed: now,
            bytes: 0,
            wanted: false,
        };
        if !brought.wanted && brought.bytes == 0 {
            return;
        }
        match &mut self.window {
            Some(window) if now.saturating_duration_since(window.fed) <= GAP => {
                window.bytes += brought.bytes;
                window.wanted |= brought.wanted;
                window.fed = now;
                let time = now.saturating_duration_since(window.began);
                let enough = if self.best.is_some() { WINDOW } else { FIRST_WINDOW };
                if time >= enough {
                    let (rate, wanted) = (window.bytes as f64 / time.as_secs_f64(), window.wanted);
                    self.window = Some(fresh);
                    self.sample(rate, wanted);
                }
            }
            // What came before the first look came in a time nobody knows.
            window => *window = Some(fresh),
        }
    }

    fn sample(&mut self, rate: f64, wanted: bool) {
        self.best = match self.best {
            Some(best) if rate < best && wanted => Some(KEPT * best + (1.0 - KEPT) * rate),
            Some(best) => Some(best.max(rate)),
            None => Some(rate),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(200);
    const MBIT: u64 = 125_000;

    fn way(n: u8) -> Way {
        Way {
            peer: None,
            uplink: "wan0".into(),
            line: LineId([n; 8]),
        }
    }

    /// Feeds so many seconds of so many Mbit/s and gives the time after them.
    fn run(rates: &Rates, way: &Way, mbit: u64, seconds: u64, wanted: bool, mut now: Instant) -> Instant {
        for _ in 0..seconds * 5 {
            now += STEP;
            let bytes = mbit * MBIT / 5;
            rates.brought(way, Brought { bytes, wanted }, now);
        }
        now
    }

    fn mbit(rates: &Rates, way: &Way) -> f64 {
        rates.of(way).map_or(0.0, |r| r.as_bits() as f64 / 1e6)
    }

    #[test]
    fn a_way_is_as_fast_as_its_best_two_seconds_not_as_its_start_or_its_end() {
        let rates = Rates::default();
        let now = run(&rates, &way(1), 2, 2, true, Instant::now());
        let now = run(&rates, &way(1), 20, 6, true, now);
        let before = mbit(&rates, &way(1));
        assert!((19.9..=20.1).contains(&before), "{before}");
        // The end: it waits for work.
        run(&rates, &way(1), 0, 30, false, now);
        assert!((mbit(&rates, &way(1)) - before).abs() < 1e-9);
    }

    #[test]
    fn too_little_work_measures_nothing() {
        let rates = Rates::default();
        let now = Instant::now();
        for step in 1..4 {
            let brought = Brought {
                bytes: MBIT,
                wanted: true,
            };
            rates.brought(&way(1), brought, now + step * STEP);
        }
        assert_eq!(rates.of(&way(1)), None);
    }

    #[test]
    fn a_line_that_got_slower_is_believed_by_and_by() {
        let rates = Rates::default();
        let now = run(&rates, &way(1), 20, 4, true, Instant::now());
        let now = run(&rates, &way(1), 5, 3, true, now);
        assert!(mbit(&rates, &way(1)) > 15.0, "one bad moment is no change");
        run(&rates, &way(1), 5, 90, true, now);
        assert!(
            (4.9..5.5).contains(&mbit(&rates, &way(1))),
            "{}",
            mbit(&rates, &way(1))
        );
    }

    #[test]
    fn what_a_borrower_asks_for_only_raises_a_rate() {
        let rates = Rates::default();
        let now = run(&rates, &way(1), 12, 4, false, Instant::now());
        assert!((11.9..12.1).contains(&mbit(&rates, &way(1))));
        run(&rates, &way(1), 1, 60, false, now);
        assert!((11.9..12.1).contains(&mbit(&rates, &way(1))));
    }

    #[test]
    fn two_downloads_over_one_way_add_up() {
        let rates = Rates::default();
        let mut now = Instant::now();
        for _ in 0..30 {
            now += STEP;
            for _ in 0..2 {
                let bytes = 10 * MBIT / 5;
                rates.brought(&way(1), Brought { bytes, wanted: true }, now);
            }
        }
        let rate = mbit(&rates, &way(1));
        assert!((19.0..21.5).contains(&rate), "{rate}");
    }

    #[test]
    fn an_interface_that_is_plugged_in_elsewhere_begins_anew() {
        let rates = Rates::default();
        let now = run(&rates, &way(1), 20, 4, true, Instant::now());
        assert_eq!(rates.of(&way(2)), None);
        run(&rates, &way(2), 5, 4, true, now);
        assert!((4.9..5.1).contains(&mbit(&rates, &way(2))));
    }

    #[test]
    fn rates_survive_a_restart_and_are_written_rarely() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let rates = Rates::load(&state);
        let begin = Instant::now();
        rates.save(&state, begin, true);
        assert!(!state.path(FILE).exists(), "nothing was measured");
        let now = run(&rates, &way(1), 20, 4, true, begin);
        rates.save(&state, now, false);
        assert!((19.9..20.1).contains(&mbit(&Rates::load(&state), &way(1))));
        let now = run(&rates, &way(1), 80, 4, true, now);
        rates.save(&state, now, false);
        assert!(
            mbit(&Rates::load(&state), &way(1)) < 21.0,
            "too soon to write again"
        );
        rates.save(&state, now, true);
        assert!(mbit(&Rates::load(&state), &way(1)) > 79.0);
        state.write(FILE, b"{").unwrap();
        assert_eq!(
            Rates::load(&state).of(&way(1)),
            None,
            "a damaged file is an empty one"
        );
    }

    #[tokio::test]
    async fn only_notable_changes_are_news() {
        let rates = Rates::default();
        let now = run(&rates, &way(1), 20, 4, true, Instant::now());
        rates.changed().await;
        run(&rates, &way(1), 21, 10, true, now);
        let quiet = tokio::time::timeout(Duration::ZERO, rates.changed()).await;
        assert!(quiet.is_err());
    }
}
