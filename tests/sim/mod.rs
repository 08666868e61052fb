//! A small network for the scheduler, in virtual time: lanes with rates that change, connections with handshakes, slow
//! start, request silence, and waste when they are dropped. Seeded; nothing here knows a clock.
//!
//! A connection costs three round trips (TCP, TLS) and one more until the first byte; a further request on it one
//! round trip of silence. Its window begins at 10 segments and doubles each round trip until it has its share of the
//! lane, which is divided max-min fair. A dropped connection wastes what is in flight, and the lane is busy with it.

pub(crate) mod pools;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tributary::stripe::{Action, Config, LaneSpec, LeaseId, Scheduler};
use tributary::types::{LaneId, RangeSet};

/// One step of virtual time in seconds.
pub(crate) const STEP: f64 = 0.004;
const INITIAL_WINDOW: f64 = 10.0 * 1448.0;
const HANDSHAKE_ROUND_TRIPS: f64 = 3.0;
/// Queue of a lane in seconds of its rate: what a dropped connection wastes beside a round trip's worth.
const QUEUE: f64 = 0.02;
/// The driver reports at least this often (bytes, seconds): its blocks.
const REPORT: (f64, f64) = (256.0 * 1024.0, 0.1);
pub(crate) const MBIT: f64 = 125_000.0;

/// One lane's script.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// (from second, bytes a second), in order; the first from 0.
    pub(crate) rates: Vec<(f64, f64)>,
    pub(crate) rtt: f64,
    pub(crate) up: f64,
    pub(crate) down: f64,
    pub(crate) slots: usize,
    pub(crate) metered: bool,
    /// Most bytes a second that one connection gets (loss); infinite: the lane's rate.
    pub(crate) per_connection: f64,
}

impl Line {
    /// `mbit` Mbit/s at a one-way delay of `delay` ms.
    pub(crate) fn new(mbit: f64, delay: f64) -> Self {
        Self {
            rates: vec![(0.0, mbit * MBIT)],
            rtt: 2.0 * delay / 1000.0,
            up: 0.0,
            down: f64::INFINITY,
            slots: 2,
            metered: false,
            per_connection: f64::INFINITY,
        }
    }

    /// The rate from second `t` on, until the next such change.
    pub(crate) fn then(mut self, t: f64, mbit: f64) -> Self {
        self.rates.push((t, mbit * MBIT));
        self
    }

    pub(crate) fn lives(mut self, from: f64, to: f64) -> Self {
        (self.up, self.down) = (from, to);
        self
    }

    pub(crate) fn rate(&self, t: f64) -> f64 {
        if t < self.up || t >= self.down {
            return 0.0;
        }
        let at = self.rates.partition_point(|r| r.0 <= t);
        self.rates[at.max(1) - 1].1
    }
}

#[derive(Clone, Debug)]
struct Conn {
    lease: Option<LeaseId>,
    silent_until: f64,
    window: f64,
    /// Bytes a second in the last step.
    rate: f64,
    /// Bytes until the lease's end, and until the end of what was asked of the server.
    left: f64,
    asked: f64,
    unreported: f64,
    reported_at: f64,
    /// First byte not reported yet, and the lease's end.
    at: u64,
    end: u64,
}

impl Conn {
    fn new(silent_until: f64) -> Self {
        Self {
            lease: None,
            silent_until,
            window: INITIAL_WINDOW,
            rate: 0.0,
            left: 0.0,
            asked: 0.0,
            unreported: 0.0,
            reported_at: 0.0,
            at: 0,
            end: 0,
        }
    }
}

/// Moves one step's bytes over a lane; `debt` are bytes of dropped connections that still come.
fn flow(line: &Line, t: f64, conns: &mut [Conn], debt: &mut f64) {
    let mut capacity = line.rate(t) * STEP;
    let paid = debt.min(capacity);
    *debt -= paid;
    capacity -= paid;
    let limit = |c: &Conn| (c.window / line.rtt).min(line.per_connection) * STEP;
    let mut order: Vec<usize> = (0..conns.len())
        .filter(|&i| conns[i].left > 0.0 && conns[i].silent_until <= t)
        .collect();
    order.sort_by(|&a, &b| limit(&conns[a]).total_cmp(&limit(&conns[b])));
    for c in conns.iter_mut() {
        c.rate = 0.0;
    }
    let count = order.len();
    for (nth, i) in order.into_iter().enumerate() {
        let c = &mut conns[i];
        let share = capacity / (count - nth) as f64;
        let got = limit(c).min(share);
        c.rate = got / STEP;
        if c.window < 1.25 * share / STEP * line.rtt {
            c.window += got;
        }
        let got = got.min(c.left);
        capacity -= got;
        c.left -= got;
        c.asked -= got;
        c.unreported += got;
    }
}

/// How a transfer went.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) duplicated: u64,
    /// Bytes on the wires that nobody used: in flight when their connection was dropped.
    pub(crate) dropped: f64,
    pub(crate) starts: usize,
    pub(crate) cuts: usize,
    pub(crate) by_lane: Vec<u64>,
    pub(crate) log: Vec<(f64, Action)>,
}

/// A transfer under way.
pub(crate) struct Sim {
    lines: Vec<Line>,
    conns: Vec<Vec<Conn>>,
    debt: Vec<f64>,
    up: Vec<bool>,
    scheduler: Scheduler,
    base: Instant,
    at: BTreeMap<LeaseId, usize>,
    t: f64,
    done: bool,
    pub(crate) trace: bool,
    out: Outcome,
}

impl Sim {
    pub(crate) fn new(lines: &[Line], size: u64, seed: u64) -> Self {
        let base = Instant::now();
        Self {
            conns: vec![Vec::new(); lines.len()],
            debt: vec![0.0; lines.len()],
            up: vec![false; lines.len()],
            scheduler: Scheduler::new(Config::default(), size, &RangeSet::new(), seed, base),
            base,
            at: BTreeMap::new(),
            t: 0.0,
            done: false,
            trace: false,
            out: Outcome {
                seconds: 0.0,
                duplicated: 0,
                dropped: 0.0,
                starts: 0,
                cuts: 0,
                by_lane: Vec::new(),
                log: Vec::new(),
            },
            lines: lines.to_vec(),
        }
    }

    /// Runs to the end, or fails after `limit` seconds of virtual time.
    pub(crate) fn run(mut self, limit: f64) -> Outcome {
        while !self.done {
            assert!(
                self.t < limit,
                "not done after {limit} s: {:#?}",
                self.scheduler.snapshot(self.now())
            );
            self.step();
        }
        let snapshot = self.scheduler.snapshot(self.now());
        self.out.seconds = self.t;
        self.out.duplicated = snapshot.duplicated;
        self.out.by_lane = (0..self.lines.len())
            .map(|i| {
                snapshot
                    .lanes
                    .iter()
                    .find(|l| l.lane == LaneId(i as u64))
                    .map_or(0, |l| l.bytes)
            })
            .collect();
        self.out
    }

    fn now(&self) -> Instant {
        self.base + Duration::from_secs_f64(self.t)
    }

    fn step(&mut self) {
        let now = self.now();
        for i in 0..self.lines.len() {
            let up = (self.lines[i].up..self.lines[i].down).contains(&self.t);
            if up && !self.up[i] {
                let (slots, metered) = (self.lines[i].slots, self.lines[i].metered);
                let spec = LaneSpec {
                    slots,
                    metered,
                    hint: None,
                    latency: Duration::ZERO,
                };
                self.scheduler.lane_up(LaneId(i as u64), spec, now);
            } else if !up && self.up[i] {
                self.conns[i].clear();
                self.at.retain(|_, lane| *lane != i);
                self.scheduler.lane_down(LaneId(i as u64), now);
            }
            self.up[i] = up;
        }
        self.act();
        if self.scheduler.poll_timeout().is_some_and(|t| t <= now) {
            self.scheduler.tick(now);
            self.act();
            let next = self.scheduler.poll_timeout();
            assert!(next.is_none_or(|t| t > now), "busy loop");
        }
        for i in 0..self.lines.len() {
            flow(&self.lines[i], self.t, &mut self.conns[i], &mut self.debt[i]);
        }
        self.t += STEP;
        for i in 0..self.lines.len() {
            self.report(i);
        }
    }

    /// What the driver would tell after this step.
    fn report(&mut self, lane: usize) {
        let now = self.now();
        let due: Vec<LeaseId> = self.conns[lane]
            .iter()
            .filter(|c| c.unreported >= 1.0 || (c.lease.is_some() && c.left < 1.0))
            .filter(|c| c.unreported >= REPORT.0 || self.t - c.reported_at >= REPORT.1 || c.left < 1.0)
            .filter_map(|c| c.lease)
            .collect();
        for id in due {
            let Some(c) = self.conns[lane].iter_mut().find(|c| c.lease == Some(id)) else {
                continue;
            };
            let ended = c.left < 1.0;
            let n = if ended { c.end - c.at } else { c.unreported as u64 };
            c.unreported = if ended { 0.0 } else { c.unreported - n as f64 };
            c.at += n;
            c.reported_at = self.t;
            if ended && self.trace {
                println!("{:8.3} {id:?} of lane {lane} ends", self.t);
            }
            if ended {
                c.lease = None;
                c.left = 0.0;
                self.at.remove(&id);
                if c.asked > 1.0 {
                    self.drop_conn(lane, |c| c.lease.is_none() && c.asked > 1.0);
                }
            }
            self.scheduler.bytes(id, n, now);
            self.act();
        }
    }

    fn drop_conn(&mut self, lane: usize, which: impl Fn(&Conn) -> bool) {
        let Some(at) = self.conns[lane].iter().position(which) else {
            return;
        };
        let c = self.conns[lane].remove(at);
        let line = &self.lines[lane];
        let rate = if c.silent_until > self.t + line.rtt / 2.0 {
            0.0
        } else {
            c.rate.max(if c.rate == 0.0 {
                (c.window / line.rtt).min(line.rate(self.t) / 2.0)
            } else {
                0.0
            })
        };
        let wasted = (rate * (line.rtt + QUEUE)).min(c.asked);
        self.out.dropped += wasted + c.unreported;
        self.debt[lane] += wasted;
    }

    fn act(&mut self) {
        while let Some(action) = self.scheduler.poll_action() {
            self.out.log.push((self.t, action.clone()));
            if self.trace {
                println!("{:8.3} {action:?}", self.t);
            }
            match action {
                Action::Start { lease, lane, range } => {
                    let i = lane.0 as usize;
                    let rtt = self.lines[i].rtt;
                    let idle = self.conns[i].iter().position(|c| c.lease.is_none());
                    let at = idle.unwrap_or_else(|| {
                        self.conns[i].push(Conn::new(self.t + HANDSHAKE_ROUND_TRIPS * rtt));
                        self.conns[i].len() - 1
                    });
                    let c = &mut self.conns[i][at];
                    c.lease = Some(lease);
                    c.silent_until = c.silent_until.max(self.t) + rtt;
                    (c.left, c.asked) = (range.len() as f64, range.len() as f64);
                    (c.unreported, c.reported_at) = (0.0, self.t);
                    (c.at, c.end) = (range.start, range.end);
                    self.at.insert(lease, i);
                    self.out.starts += 1;
                    let live = self.conns[i].iter().filter(|c| c.lease.is_some()).count();
                    // The driver opens one more ahead once all slots are at work on something long.
                    let overlap = self.lines.iter().map(|l| l.slots + 1).sum::<usize>() <= 16;
                    let idle = self.conns[i].len() > live;
                    if overlap && live == self.lines[i].slots && !idle && range.len() >= 1 << 20 {
                        self.conns[i].push(Conn::new(self.t + HANDSHAKE_ROUND_TRIPS * rtt));
                    }
                    assert!(live <= 6, "lane {i} has {live} leases");
                }
                Action::Shrink { lease, end } => {
                    self.out.cuts += 1;
                    let Some(&i) = self.at.get(&lease) else { continue };
                    let Some(c) = self.conns[i].iter_mut().find(|c| c.lease == Some(lease)) else {
                        continue;
                    };
                    // What came beyond the new end is of no use.
                    assert!(c.at < end && end < c.end, "a shrink that does not shrink");
                    c.end = end;
                    let left = (end - c.at) as f64;
                    let over = (c.unreported - left).max(0.0);
                    self.out.dropped += over;
                    c.unreported -= over;
                    c.left = (left - c.unreported).max(0.0);
                }
                Action::Cancel { lease } => {
                    self.out.cuts += 1;
                    if let Some(i) = self.at.remove(&lease) {
                        self.drop_conn(i, |c| c.lease == Some(lease));
                    }
                }
                Action::Done => self.done = true,
            }
        }
    }
}
