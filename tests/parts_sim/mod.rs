//! A small network for uploads, in virtual time: lanes with rates that change, connections with handshakes and slow
//! start, sockets that swallow a little at once, and answers a round trip and a moment after the last byte.

pub(crate) mod optimum;
pub(crate) mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tributary::stripe::{LaneSpec, LeaseId, Part, PartAction, Parts, PartsConfig, Work};
use tributary::types::{LaneId, RangeSet, Rate};

use crate::sim::Line;

/// One step of virtual time in seconds.
pub(crate) const STEP: f64 = 0.01;
const INITIAL_WINDOW: f64 = 10.0 * 1448.0;
/// Round trips until the first byte of a body over a new connection: TCP and TLS.
pub(crate) const HANDSHAKE_ROUND_TRIPS: f64 = 3.0;
/// What a socket takes that is not on the wire yet.
const BUFFER: f64 = 32.0 * 1024.0;
/// The server's own time for an answer, in seconds.
pub(crate) const THINKS: f64 = 0.01;
/// The driver reports at least this often (bytes, seconds).
const REPORT: (f64, f64) = (256.0 * 1024.0, 0.1);
/// Most parts a lane may have in flight.
const SLOTS: usize = 6;

#[derive(Clone, Debug)]
struct Conn {
    lease: Option<LeaseId>,
    begins: f64,
    window: f64,
    size: f64,
    /// Not on the wire yet.
    left: f64,
    told: u64,
    told_at: f64,
    answer: f64,
}

/// How an upload went.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    /// Bytes sent of copies that were not first.
    pub(crate) in_vain: u64,
    pub(crate) sends: Vec<(f64, LaneId, Part)>,
    pub(crate) cancels: usize,
    /// Most connections at a time.
    pub(crate) connections: usize,
}

/// An upload under way.
pub(crate) struct Sim {
    lines: Vec<Line>,
    conns: Vec<Vec<Conn>>,
    up: Vec<bool>,
    hints: bool,
    parts: Parts,
    base: Instant,
    at: BTreeMap<LeaseId, usize>,
    t: f64,
    done: bool,
    pub(crate) trace: bool,
    out: Outcome,
}

/// One file, nothing of it sent yet.
pub(crate) fn carved(total: u64, grain: u64, least: u64) -> Work {
    Work::Carved {
        total,
        grain,
        least,
        most: 5 << 30,
        done: RangeSet::new(),
    }
}

/// Items, none sent yet.
pub(crate) fn fixed(sizes: &[u64]) -> Work {
    Work::Fixed {
        sizes: sizes.to_vec(),
        done: BTreeSet::new(),
    }
}

impl Sim {
    pub(crate) fn new(lines: &[Line], work: Work, hints: bool, seed: u64) -> Self {
        let base = Instant::now();
        Self {
            conns: vec![Vec::new(); lines.len()],
            up: vec![false; lines.len()],
            hints,
            parts: Parts::new(PartsConfig::default(), work, seed, base),
            base,
            at: BTreeMap::new(),
            t: 0.0,
            done: false,
            trace: false,
            out: Outcome {
                seconds: 0.0,
                in_vain: 0,
                sends: Vec::new(),
                cancels: 0,
                connections: 0,
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
                self.parts.snapshot(self.now())
            );
            self.step();
        }
        self.out.seconds = self.t;
        self.out.in_vain = self.parts.snapshot(self.now()).duplicated;
        self.out
    }

    fn now(&self) -> Instant {
        self.base + Duration::from_secs_f64(self.t)
    }

    fn step(&mut self) {
        for i in 0..self.lines.len() {
            self.come_and_go(i);
        }
        self.act();
        let now = self.now();
        if self.parts.poll_timeout().is_some_and(|t| t <= now) {
            self.parts.tick(now);
            self.act();
            let next = self.parts.poll_timeout();
            assert!(next.is_none_or(|t| t > now), "busy loop");
        }
        for (line, conns) in self.lines.iter().zip(&mut self.conns) {
            flow(line, self.t, conns);
        }
        self.t += STEP;
        for i in 0..self.lines.len() {
            self.report(i);
        }
    }

    fn come_and_go(&mut self, i: usize) {
        let now = self.now();
        let line = &self.lines[i];
        let up = (line.up..line.down).contains(&self.t);
        if up && !self.up[i] {
            let hint = self.hints.then(|| Rate::bytes_f64(line.rate(self.t)));
            let spec = LaneSpec {
                slots: SLOTS,
                metered: line.metered,
                hint,
                latency: Duration::ZERO,
            };
            self.parts.lane_up(LaneId(i as u64), spec, now);
        } else if !up && self.up[i] {
            self.conns[i].clear();
            self.at.retain(|_, lane| *lane != i);
            self.parts.lane_down(LaneId(i as u64), now);
        }
        self.up[i] = up;
    }

    /// What the driver would tell after this step.
    fn report(&mut self, lane: usize) {
        for at in 0..self.conns[lane].len() {
            let now = self.now();
            let t = self.t;
            let c = &mut self.conns[lane][at];
            let Some(id) = c.lease else { continue };
            if c.begins > t {
                continue;
            }
            let sent = (c.size - c.left + c.left.min(BUFFER)).ceil() as u64;
            let new = sent - c.told;
            let due =
                c.told == 0 || new as f64 >= REPORT.0 || t - c.told_at >= REPORT.1 || sent as f64 >= c.size;
            if new > 0 && due {
                (c.told, c.told_at) = (sent, t);
                self.parts.sent(id, new, now);
                self.act();
            }
            let Some(c) = self.conns[lane].get_mut(at).filter(|c| c.lease == Some(id)) else {
                continue;
            };
            if c.answer <= t {
                c.lease = None;
                self.at.remove(&id);
                assert!(self.parts.stored(id, now), "confirmed in vain");
                if self.trace {
                    println!("{t:8.2} {id:?} of lane {lane} is stored");
                }
                self.act();
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.parts.poll_action() {
            if self.trace {
                println!("{:8.2} {action:?}", self.t);
            }
            match action {
                PartAction::Send { lease, lane, part } => self.send(lease, lane, part),
                PartAction::Cancel { lease } => {
                    self.out.cancels += 1;
                    let i = self.at.remove(&lease).unwrap();
                    let conns = &mut self.conns[i];
                    let at = conns.iter().position(|c| c.lease == Some(lease)).unwrap();
                    // Its place stays, so that the others keep theirs; nobody uses it again.
                    conns[at] = Conn {
                        lease: None,
                        begins: f64::INFINITY,
                        left: 0.0,
                        ..conns[at].clone()
                    };
                }
                PartAction::Done => self.done = true,
            }
        }
    }

    fn send(&mut self, lease: LeaseId, lane: LaneId, part: Part) {
        let i = lane.0 as usize;
        let (t, rtt) = (self.t, self.lines[i].rtt);
        let size = part.range.len() as f64;
        let mut conn = Conn {
            lease: Some(lease),
            begins: t + HANDSHAKE_ROUND_TRIPS * rtt,
            window: INITIAL_WINDOW,
            size,
            left: size,
            told: 0,
            told_at: t,
            answer: f64::INFINITY,
        };
        let warm = |c: &Conn| c.lease.is_none() && c.begins.is_finite();
        let broken = |c: &Conn| c.lease.is_none() && !c.begins.is_finite();
        let conns = &mut self.conns[i];
        if let Some(at) = conns.iter().position(warm) {
            (conn.begins, conn.window) = (t, conns[at].window);
            conns[at] = conn;
        } else if let Some(at) = conns.iter().position(broken) {
            conns[at] = conn;
        } else {
            conns.push(conn);
        }
        self.at.insert(lease, i);
        self.out.sends.push((t, lane, part));
        let open = |c: &&Conn| c.begins.is_finite();
        let all = self.conns.iter().flatten().filter(open).count();
        self.out.connections = self.out.connections.max(all);
        let live = self.conns[i].iter().filter(|c| c.lease.is_some()).count();
        assert!(live <= SLOTS, "lane {i} has {live} parts in flight");
    }
}

/// Moves one step's bytes over a lane, divided max-min fair.
fn flow(line: &Line, t: f64, conns: &mut [Conn]) {
    let flows = |c: &Conn| c.lease.is_some() && c.begins <= t && c.answer.is_infinite();
    let mut capacity = line.rate(t) * STEP;
    let mut got = [0.0; 32];
    // Each pass divides what the last has left over; three come close enough.
    for _ in 0..3 {
        let limit = |c: &Conn, got: f64| (c.window / line.rtt * STEP).min(c.left) - got;
        let open = conns
            .iter()
            .zip(got)
            .filter(|(c, got)| flows(c) && limit(c, *got) > 0.5)
            .count();
        if open == 0 || capacity < 1.0 {
            break;
        }
        let share = capacity / open as f64;
        for (c, got) in conns.iter().zip(&mut got).filter(|(c, _)| flows(c)) {
            let more = limit(c, *got).clamp(0.0, share);
            *got += more;
            capacity -= more;
        }
    }
    for (c, got) in conns.iter_mut().zip(got) {
        if flows(c) {
            c.left -= got;
            if c.window < 2.0 * line.rate(t) * line.rtt + INITIAL_WINDOW {
                c.window += got;
            }
            if c.left < 1.0 {
                c.left = 0.0;
                c.answer = t + STEP + line.rtt + THINKS;
            }
        }
    }
}
