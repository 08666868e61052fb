//! What is known about one lane: how fast it is, how long a request takes, and whether it may be used now.
//!
//! The rate is an exponentially weighted mean of 250 ms windows over *all* bytes of the lane (rates of single
//! connections mislead), empty windows counted while a lease flows. Time without a flowing lease is not the lane's
//! fault and is not counted.

use std::time::Duration;
use std::time::Instant;

use super::Config;
use super::LaneSpec;
use super::Pause;
use super::config::*;
use crate::types::PIECE;

/// A lane idle or silent for longer than this many windows gets one estimate for all of them.
const MAX_WINDOWS_AT_ONCE: u32 = 40;

/// Whether a lane may be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Open,
    /// No new leases until then; those under way go on.
    Waiting(Instant),
    Never,
}

#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) spec: LaneSpec,
    /// It brings what a holder has, in whole pieces: its time counts from the request on, and its rate is looked at only
    /// when a piece comes.
    pub(super) source: bool,
    pub(super) slots: usize,
    refused: Option<Instant>,
    /// Whether one lease more than slots may begin while another ends; no longer once the origin refused that.
    pub(super) overlaps: bool,
    pub(super) standing: Standing,
    strikes: u32,
    /// Why it was last told to wait.
    pub(super) pause: Pause,
    parks: u32,
    origin_pauses: u32,
    last_failure: Option<Instant>,
    /// Was parked and has to finish one small lease before it is trusted again.
    pub(super) probation: bool,
    /// Failures since it last finished a lease, parks or not: what people are told.
    failures: u32,

    rate: Option<f64>,
    /// A source's time with leases since its last sample.
    busy: Duration,
    windows: u32,
    /// In TCP's slow start: each window brought far more than the one before.
    ramping: bool,
    window_start: Instant,
    window_bytes: u64,
    /// Leases that have brought their first byte.
    pub(super) flowing: usize,
    /// All leases.
    pub(super) leases: usize,
    /// Connections that are open and have no lease.
    pub(super) warm: usize,
    pub(super) last_byte: Option<Instant>,
    latency: Option<f64>,
    setup: Option<f64>,
    /// Bytes it brought that were new.
    pub(super) bytes: u64,
}

impl Lane {
    pub(super) fn new(spec: LaneSpec, now: Instant) -> Self {
        let slots = spec.slots.clamp(1, MAX_LANE_SLOTS);
        let latency = (!spec.latency.is_zero()).then_some(spec.latency.as_secs_f64());
        Self {
            source: false,
            slots,
            refused: None,
            overlaps: true,
            standing: Standing::Open,
            strikes: 0,
            pause: Pause::Failures(0),
            parks: 0,
            origin_pauses: 0,
            last_failure: None,
            probation: false,
            failures: 0,
            rate: None,
            busy: Duration::ZERO,
            windows: 0,
            ramping: true,
            window_start: now,
            window_bytes: 0,
            flowing: 0,
            leases: 0,
            warm: 0,
            last_byte: None,
            latency,
            setup: None,
            bytes: 0,
            spec,
        }
    }

    /// A lane that brings what a holder has.
    pub(super) fn source(spec: LaneSpec, now: Instant) -> Self {
        Self {
            source: true,
            ..Self::new(spec, now)
        }
    }

    /// Bytes a second: measured, or the hint.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
            .or(self.spec.hint.map(|r| r.as_bytes_f64()))
            .map(|r| r.max(RATE_FLOOR))
    }

    /// The rate to expect soon.
    pub(super) fn expected_rate(&self) -> Option<f64> {
        let ahead = if self.ramping && self.rate.is_some() {
            RAMP_AHEAD
        } else {
            1.0
        };
        self.rate().map(|rate| rate * ahead)
    }

    /// Whether its rate is measured and no longer that of slow start.
    pub(super) fn is_steady(&self) -> bool {
        self.rate.is_some() && !self.ramping
    }

    /// Whether its own bytes have been measured for at least one window.
    pub(super) fn is_measured(&self) -> bool {
        self.rate.is_some()
    }

    /// The rate of a source, once it has flowed for long enough to be believed.
    pub(super) fn settled_rate(&self) -> Option<f64> {
        self.rate.filter(|_| self.windows >= SOURCE_WINDOWS)
    }

    /// Seconds from a request on an open connection to its first byte.
    pub(super) fn latency(&self) -> f64 {
        self.latency
            .unwrap_or_else(|| self.setup.map_or(DEFAULT_LATENCY, |s| s / SETUP_ROUND_TRIPS))
    }

    /// Seconds until the first byte of a lease given now.
    pub(super) fn lead(&self) -> f64 {
        if self.warm > 0 {
            self.latency()
        } else {
            self.setup()
        }
    }

    /// Seconds until the first byte over a new connection.
    pub(super) fn setup(&self) -> f64 {
        self.setup.unwrap_or(SETUP_ROUND_TRIPS * self.latency())
    }

    pub(super) fn idle_slots(&self) -> usize {
        let slots = if self.probation { 1 } else { self.slots };
        match self.standing {
            Standing::Open => slots.saturating_sub(self.leases),
            Standing::Waiting(_) | Standing::Never => 0,
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.standing == Standing::Open
    }

    /// A lease was given; says whether it meets an open connection.
    pub(super) fn lease_started(&mut self) -> bool {
        self.leases += 1;
        let warm = self.warm > 0;
        self.warm -= usize::from(warm);
        warm
    }

    /// The first byte of a lease came `after` its start.
    pub(super) fn first_byte(&mut self, after: Duration, warm: bool, now: Instant) {
        let known = if warm { &mut self.latency } else { &mut self.setup };
        learn(known, after.as_secs_f64());
        if !self.source {
            self.flow_began(now);
        }
    }

    /// An upload's part has begun to leave `after` it was given: over a new connection that is its set-up.
    pub(super) fn part_began(&mut self, after: Duration, warm: bool, now: Instant) {
        if !warm {
            learn(&mut self.setup, after.as_secs_f64());
        }
        self.flow_began(now);
    }

    /// All of an upload's part has left; its lease goes on until the answer.
    pub(super) fn part_sent(&mut self, now: Instant) {
        self.roll(now);
        self.flowing = self.flowing.saturating_sub(1);
        if self.flowing == 0 {
            self.close_window(now);
        }
    }

    /// The answer to an upload's part came `after` the last of it had left.
    pub(super) fn part_answered(&mut self, after: Duration) {
        learn(&mut self.latency, after.as_secs_f64());
    }

    /// An upload's part was given up that nothing had come of for so long: at least so long it takes, until the next
    /// answer shows otherwise. Else a dead lane would look like the nearest of all, and get one part after the other.
    pub(super) fn part_unanswered(&mut self, after: Duration) {
        self.latency = Some(self.latency().max(after.as_secs_f64()));
    }

    /// A lease that flows already.
    pub(super) fn adopted(&mut self, now: Instant) {
        self.leases += 1;
        self.flow_began(now);
    }

    /// The caller knows better now.
    pub(super) fn respec(&mut self, spec: LaneSpec) {
        if self.refused.is_none() {
            self.slots = spec.slots.clamp(1, MAX_LANE_SLOTS);
        }
        self.spec = spec;
    }

    /// Whether all slots are taken and one lease more may begin while another ends.
    pub(super) fn may_overlap(&self) -> bool {
        self.overlaps && self.is_usable() && !self.probation && self.leases == self.slots
    }

    /// The bytes of one lease that come while its successor's request is answered.
    pub(super) fn round_trips_worth(&self) -> f64 {
        let share = self.rate().unwrap_or(0.0) / self.flowing.max(1) as f64;
        share * (self.latency() + REPORT_EVERY)
    }

    pub(super) fn flow_began(&mut self, now: Instant) {
        self.roll(now);
        if self.flowing == 0 {
            self.window_start = now;
            if !self.source {
                self.window_bytes = 0;
            }
        }
        self.flowing += 1;
    }

    pub(super) fn add_bytes(&mut self, n: u64, new: u64, now: Instant) {
        self.roll(now);
        self.window_bytes += n;
        self.bytes += new;
        self.last_byte = Some(now);
        if self.source && self.busy >= SOURCE_WINDOW {
            self.sample_source();
        }
    }

    /// A lease is over: whether it had brought bytes, reached its end, and left a connection that can be used again.
    pub(super) fn lease_ended(&mut self, flowed: bool, finished: bool, reusable: bool, now: Instant) {
        self.roll(now);
        self.leases = self.leases.saturating_sub(1);
        self.flowing = self.flowing.saturating_sub(usize::from(flowed || self.source));
        if self.flowing == 0 {
            self.close_window(now);
        }
        self.warm += usize::from(reusable);
        if finished {
            self.strikes = 0;
            self.failures = 0;
            self.origin_pauses = 0;
            if self.probation {
                self.probation = false;
            } else {
                self.parks = 0;
            }
        }
    }

    /// Closes the windows that are over.
    pub(super) fn roll(&mut self, now: Instant) {
        if self.flowing == 0 {
            return;
        }
        if self.source {
            self.busy += now.saturating_duration_since(self.window_start);
            self.window_start = now;
            return;
        }
        let mut closed = 0;
        while now >= self.window_start + self.window() {
            let window = self.window();
            self.sample(self.window_bytes as f64 / window.as_secs_f64(), 1.0);
            self.window_bytes = 0;
            self.window_start += window;
            closed += 1;
            if closed == MAX_WINDOWS_AT_ONCE {
                self.window_start = now;
            }
        }
    }

    fn window(&self) -> Duration {
        // Bytes come in bursts, one a round trip.
        if self.windows < 2 {
            FIRST_WINDOW.max(secs(self.latency())).min(WINDOW)
        } else {
            WINDOW
        }
    }

    /// The last flowing lease ended inside a window: what there is of it counts for its length.
    fn close_window(&mut self, now: Instant) {
        if self.source {
            return;
        }
        let part = now.saturating_duration_since(self.window_start).as_secs_f64() / WINDOW.as_secs_f64();
        if part > 0.1 {
            self.sample(
                self.window_bytes as f64 / (part * WINDOW.as_secs_f64()),
                part.min(1.0),
            );
        }
        self.window_bytes = 0;
        self.window_start = now;
    }

    /// All that a source brought since its last sample, by the time it took: it counts for as many windows as that is.
    fn sample_source(&mut self) {
        let windows = self.busy.as_secs_f64() / SOURCE_WINDOW.as_secs_f64();
        let rate = self.window_bytes as f64 / self.busy.as_secs_f64();
        self.sample(rate, windows.min(1.0 / RATE_ALPHA));
        self.windows = self.windows.saturating_add((windows as u32).saturating_sub(1));
        self.window_bytes = 0;
        self.busy = Duration::ZERO;
    }

    fn sample(&mut self, sample: f64, weight: f64) {
        self.windows = self.windows.saturating_add(1);
        let grew = self.rate.is_none_or(|rate| sample > RAMP_GROWTH * rate);
        self.ramping &= grew && self.windows <= RAMP_WINDOWS;
        self.rate = Some(match self.rate {
            None => sample,
            Some(rate) if self.windows <= RAMP_WINDOWS && sample > rate => sample,
            Some(rate) => rate + weight * RATE_ALPHA * (sample - rate),
        });
    }

    /// A whole lease came within `time` of its first report: in slow start, and where it was too short for a window, the
    /// best that is known about the rate.
    pub(super) fn moved_at_least(&mut self, bytes: u64, time: Duration) {
        let rate = bytes as f64 / time.as_secs_f64().max(LEAST_ROUND_TRIPS * self.latency());
        if !self.source && self.windows <= RAMP_WINDOWS && self.rate.is_none_or(|known| known < rate) {
            self.rate = Some(rate);
        }
    }

    /// Seconds without a byte, if that is longer than bursts and the caller's reporting explain; else 0.
    pub(super) fn remarkable_silence(&self, now: Instant) -> f64 {
        let Some(last) = self.last_byte else {
            return 0.0;
        };
        let silence = now.saturating_duration_since(last).as_secs_f64();
        let usual = 2.0 * WINDOW.as_secs_f64() + self.latency();
        if silence > usual { silence } else { 0.0 }
    }

    /// Since when nothing has come although something should, given the oldest lease's start.
    pub(super) fn silent_since(&self, oldest: Instant) -> Instant {
        self.last_byte.map_or(oldest, |b| b.max(oldest))
    }

    /// How long it may be silent.
    pub(super) fn patience(&self, config: &Config) -> Duration {
        if self.source {
            return self.piece_patience().unwrap_or(config.first_byte);
        }
        let chunk = STALL_CHUNK / self.rate().unwrap_or(DEFAULT_RATE);
        if self.flowing > 0 {
            config
                .stall
                .max(secs(chunk.min(4.0 * config.stall.as_secs_f64())))
        } else {
            config
                .first_byte
                .max(secs(8.0 * self.latency()))
                .max(secs(2.0 * self.setup()))
        }
    }

    /// How long a source may be silent, by what it brought so far: its bytes come as whole pieces.
    pub(super) fn piece_patience(&self) -> Option<Duration> {
        let rate = self.rate?;
        let due = self.leases as f64 * PIECE as f64 / rate.max(RATE_FLOOR);
        Some(secs((PIECES_LATE * due).min(SOURCE_SILENCE_MOST.as_secs_f64())).max(SOURCE_SILENCE))
    }

    /// A connection broke: a strike, and a park on the third. `jitter` 0..1 spreads lanes that fail together.
    pub(super) fn strike(&mut self, config: &Config, jitter: f64, now: Instant) {
        let same = self
            .last_failure
            .is_some_and(|t| now.saturating_duration_since(t) < STRIKE_PAUSE);
        if same {
            return;
        }
        // Of the first one: else a lane that breaks all the time would have failed once, and never wait.
        self.last_failure = Some(now);
        self.strikes += 1;
        self.failures += 1;
        self.pause = Pause::Failures(self.failures);
        if self.strikes >= MAX_STRIKES || self.probation {
            self.park(config, jitter, now);
        } else {
            self.wait_until(now + STRIKE_PAUSE);
        }
    }

    /// It is about to be parked because nothing comes, not because something broke.
    pub(super) const fn fell_silent(&mut self) {
        self.pause = Pause::Silent;
    }

    /// Parks it, each time for longer, and lets it prove itself with one small lease afterwards.
    pub(super) fn park(&mut self, config: &Config, jitter: f64, now: Instant) {
        let time = config.park * 2u32.saturating_pow(self.parks.min(16));
        self.parks += 1;
        self.strikes = 0;
        self.warm = 0;
        self.windows = 0;
        self.ramping = true;
        self.probation = true;
        self.wait_until(now + time.min(config.max_park).mul_f64(1.0 + 0.1 * jitter));
    }

    /// The origin wants less of this lane.
    pub(super) fn refused(&mut self, retry_after: Option<Duration>, config: &Config, now: Instant) {
        if self.leases >= self.slots && self.overlaps {
            // It was one more than slots that was refused.
            self.overlaps = false;
        } else {
            self.slots = (self.slots / 2).max(1);
            self.refused = Some(now);
        }
        self.pause = Pause::Refused;
        self.wait_until(now + retry_after.unwrap_or(config.park));
    }

    /// The origin failed: nobody's strike, a pause that grows.
    pub(super) fn origin_failed(&mut self, now: Instant) {
        let pause = ORIGIN_PAUSE * 2u32.saturating_pow(self.origin_pauses.min(16));
        self.origin_pauses += 1;
        self.pause = Pause::Origin;
        self.wait_until(now + pause.min(MAX_ORIGIN_PAUSE));
    }

    fn wait_until(&mut self, until: Instant) {
        self.standing = match self.standing {
            Standing::Open => Standing::Waiting(until),
            Standing::Waiting(t) => Standing::Waiting(t.max(until)),
            Standing::Never => Standing::Never,
        };
    }

    /// Lets waits end and slots come back. Says whether it changed what the lane may do.
    pub(super) fn recover(&mut self, now: Instant) -> bool {
        let mut changed = false;
        if matches!(self.standing, Standing::Waiting(t) if t <= now) {
            self.standing = Standing::Open;
            changed = true;
        }
        if self
            .refused
            .is_some_and(|t| now.saturating_duration_since(t) >= SLOT_RECOVERY)
        {
            self.slots = (self.slots + 1).min(self.spec.slots.clamp(1, MAX_LANE_SLOTS));
            self.refused = (self.slots < self.spec.slots.clamp(1, MAX_LANE_SLOTS)).then_some(now);
            changed = true;
        }
        changed
    }
}

/// Takes in a sample of a time. The smaller of two is nearer to the truth: the rest is queue.
fn learn(known: &mut Option<f64>, sample: f64) {
    *known = Some(known.map_or(sample, |k| {
        if sample < k {
            sample
        } else {
            k + 0.2 * (sample - k)
        }
    }));
}

/// Seconds as a duration; what is no time at all, or not a number, is zero.
pub(super) fn secs(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
