//! The scheduler's tuning: each constant with its unit and the reason for its value.

use std::time::Duration;

/// Length of one window of the rate estimate (field practice: Braid, 3GOL).
pub(super) const WINDOW: Duration = Duration::from_millis(250);
/// Length of a lane's first two windows: in a short transfer everything is decided by then.
pub(super) const FIRST_WINDOW: Duration = Duration::from_millis(100);
/// Weight of the newest window in the rate estimate: half of a change is seen within two windows.
pub(super) const RATE_ALPHA: f64 = 0.3;
/// Windows after a lane's first byte in which a higher rate is believed at once: TCP's slow start may still go on.
pub(super) const RAMP_WINDOWS: u32 = 8;
/// A lane's last lease is at most this many times what its slot could do alone until the end: where one connection can't
/// fill the lane (loss), slots should end together; where it can, it does not matter.
pub(super) const EVEN_SLOTS: f64 = 1.75;
/// A lease reported all at once is taken to have come within this many round trips.
pub(super) const LEAST_ROUND_TRIPS: f64 = 3.0;
/// Slow start is over with the first window that brings less than this much more than the last.
pub(super) const RAMP_GROWTH: f64 = 1.25;
/// A lane in slow start counts as this much faster than it was in its last window.
pub(super) const RAMP_AHEAD: f64 = 1.5;
/// Round trips of a new connection until its first byte, for an unmeasured lane: TCP, TLS, request.
pub(super) const SETUP_ROUND_TRIPS: f64 = 4.0;
/// Request to first byte, in seconds, for a lane that says nothing about it.
pub(super) const DEFAULT_LATENCY: f64 = 0.06;
/// Rate in bytes a second assumed where no lane has been measured and none has a hint (4 Mbit/s).
pub(super) const DEFAULT_RATE: f64 = 500_000.0;
/// An unmeasured lane beside measured ones counts as this part of their mean: most surprises are slow ones.
pub(super) const UNKNOWN_SHARE: f64 = 0.3;
/// No estimate falls below this (bytes a second), so that divisions stay finite and a dead lane looks very slow.
pub(super) const RATE_FLOOR: f64 = 500.0;
/// Most slots a lane may be given: more connections to one origin look like an attack.
pub(super) const MAX_LANE_SLOTS: usize = 6;
/// Where each lane may have one connection more than slots within this many (what one origin gets in all), the next lease
/// is asked for while the last one still comes: the round trip between them costs nothing then.
pub(super) const MAX_OVERLAPPING: usize = 16;
/// Callers report at least so often, in seconds: what is said to be left may be so much older.
pub(super) const REPORT_EVERY: f64 = 0.1;
/// Failures in a row that park a lane.
pub(super) const MAX_STRIKES: u32 = 3;
/// No new lease for a lane this long after a failure; failures within it are one event and one strike.
pub(super) const STRIKE_PAUSE: Duration = Duration::from_millis(250);
/// First pause after the origin itself failed; doubles up to [`MAX_ORIGIN_PAUSE`].
pub(super) const ORIGIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause after the origin itself failed.
pub(super) const MAX_ORIGIN_PAUSE: Duration = Duration::from_secs(30);
/// A refused lane gets one slot back after this long without a refusal.
pub(super) const SLOT_RECOVERY: Duration = Duration::from_secs(30);
/// A lane's silence is no stall before it could have brought this many bytes at its own rate: callers report in chunks.
pub(super) const STALL_CHUNK: f64 = 128.0 * 1024.0;
/// Where no other lane could do better, silent leases are restarted only this often.
pub(super) const ALL_SILENT: Duration = Duration::from_secs(15);
/// One silent lease on a lane that is otherwise alive is restarted after this long.
pub(super) const LEASE_STALL: Duration = Duration::from_secs(8);
/// Where more than this part of all bytes came twice, whoever brings another such byte stops.
pub(super) const RACE_LIMIT: f64 = 0.007;
/// Callers report in chunks of about this many bytes, so a loser is stopped as much too late: kept free of the budget.
pub(super) const RACE_CHUNK: f64 = 64.0 * 1024.0;
/// Least that is stolen from a lane that is late when nothing is free, in bytes.
pub(super) const MIN_STEAL: f64 = 16.0 * 1024.0;
/// The first leases of unmeasured lanes, were they all the same, would be this part of what is missing: lanes that turn
/// out to be fast then find enough left.
pub(super) const FIRST_PARTS: f64 = 3.0;
/// Least first lease of an unmeasured lane, in bytes.
pub(super) const FIRST_LEAST: f64 = 96.0 * 1024.0;
/// A lane whose other connections have this many round trips of work takes fragments ...
pub(super) const COVER: f64 = 2.5;
/// ... from this size on, in bytes.
pub(super) const FRAGMENT: u64 = 128 * 1024;
/// An unmeasured lane's second lease is this many times as long as its first.
pub(super) const SECOND_LEASE: f64 = 4.0;
/// At the end, a lane's fair part of what is free is worth a request from this size on, in bytes.
pub(super) const MIN_TAIL: f64 = 96.0 * 1024.0;
/// What is stolen is at least this part of what the victim's dropped connection wastes.
pub(super) const STEAL_COST: f64 = 0.5;
/// What is stolen is worth this part of the silence its request costs.
pub(super) const STEAL_WORTH: f64 = 0.5;
/// Least time between two samples of a source's rate: its bytes come in pieces, so in bursts.
pub(super) const SOURCE_WINDOW: Duration = Duration::from_millis(500);
/// So many of these windows have to be over before a source counts as slow.
pub(super) const SOURCE_WINDOWS: u32 = 3;
/// A source that brought bytes is silent after this long without any ...
pub(super) const SOURCE_SILENCE: Duration = Duration::from_millis(1500);
/// ... or after this many times what the pieces under way take at its rate ...
pub(super) const PIECES_LATE: f64 = 2.5;
/// ... but at the latest after this long.
pub(super) const SOURCE_SILENCE_MOST: Duration = Duration::from_secs(6);
/// One silent lease on a source that is otherwise alive is ended after this long.
pub(super) const SOURCE_LEASE_STALL: Duration = Duration::from_secs(4);
/// Most that a source is leased at once, in pieces: nobody waits long for the last one, two hide the request's silence.
pub(super) const SOURCE_LEASE: u64 = 4;
/// The same where several members want the same pieces: what is smaller is passed on sooner.
pub(super) const CONTESTED_LEASE: u64 = 1;
/// Where there are so many sources, each gets one lease at a time: together they keep the pipe full.
pub(super) const CROWD: usize = 3;
/// A source is leased no more at once than it brings in so many seconds, but for one piece.
pub(super) const SOURCE_LEASE_SECONDS: f64 = 0.5;
/// Near the end a source's lease is at most this part of what each source slot has left to bring.
pub(super) const SOURCE_TAIL_PARTS: u64 = 2;
/// Uplinks may take what sources hold where these are slower than this part of the uplinks' sum ...
pub(super) const SLOW_SOURCES: f64 = 0.5;
/// ... until they are faster than this part of it.
pub(super) const QUICK_SOURCES: f64 = 0.7;
/// A wait of a source that is over so soon hands nothing over to uplinks.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(500);
/// An uplink's lease goes on into what a source holds as far as it comes in this many seconds: it would be there anyway.
pub(super) const REACHED_SOON: f64 = 0.25;
/// What a source could be through with this many times sooner than another is taken over ...
pub(super) const TAKE_OVER_GAIN: f64 = 3.0;
/// ... where that saves at least so many seconds.
pub(super) const TAKE_OVER_SAVES: f64 = 0.5;
/// Where others of the household fetch too, each brings about this part of what is free.
pub(super) const OWN_SHARE: f64 = 0.5;
/// How often decisions are looked at again while nothing is free.
pub(super) const TAIL_TICK: Duration = Duration::from_millis(50);

/// How the scheduler sizes, steals, races and gives up. The defaults are the ones measured in the simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Smallest lease handed out in bytes, where that many are free (default 128 KiB): below it a request costs more
    /// than it moves.
    pub min_lease: u64,
    /// Size of the first lease of a lane nothing is known about, in bytes (default 512 KiB): a slow lane then never
    /// holds much, a fast one asks again soon.
    pub first_lease: u64,
    /// A lease is the lane's part of what is left, divided by its slots and by this (default 2; 1 would be an exact
    /// split by estimates that are never exact).
    pub guide: f64,
    /// A lease is at least what the lane moves in this many round trips (default 2), so that the next request's
    /// silence is hidden behind the lane's other connection.
    pub floor_round_trips: f64,
    /// Work is stolen from a lane that would finish this much later than all could (default 75 ms) ...
    pub steal_after: Duration,
    /// ... or later than this part of the time left (default 0.1), whichever is more.
    pub steal_share: f64,
    /// A tail race must finish the range this many times sooner than its holder (default 2).
    pub race_gain: f64,
    /// Races may duplicate at most this part of all bytes (default 0.005).
    pub race_budget: f64,
    /// A lane that brought bytes is stalled after this long without any (default 2 s).
    pub stall: Duration,
    /// A lane that has not brought its first byte is stalled after this long (default 3 s), or 8 times its latency.
    pub first_byte: Duration,
    /// First time a lane is parked (default 2 s); doubles with each further time.
    pub park: Duration,
    /// Longest time a lane is parked (default 60 s).
    pub max_park: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            min_lease: 128 << 10,
            first_lease: 512 << 10,
            guide: 2.0,
            floor_round_trips: 2.0,
            steal_after: Duration::from_millis(75),
            steal_share: 0.1,
            race_gain: 2.0,
            race_budget: 0.005,
            stall: Duration::from_secs(2),
            first_byte: Duration::from_secs(3),
            park: Duration::from_secs(2),
            max_park: Duration::from_secs(60),
        }
    }
}
