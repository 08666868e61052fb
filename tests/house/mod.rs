//! A small household for the scheduler, in virtual time: members with ports, lines to the internet, and what they tell each
//! other. Rates are shared max-min fair between all flows over the ports and lines they pass.
//!
//! A source's bytes come as whole pieces, each reported when the last of it is there, as a member verifies them. What a
//! member has and fetches is known to the others at the next beat.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tributary::stripe::{Action, Config, LaneSpec, LeaseId, Scheduler};
use tributary::types::{ByteRange, LaneId, PIECE, RangeSet};

/// One step of virtual time, and how often members tell each other what they have, in seconds.
const STEP: f64 = 0.005;
const BEAT: f64 = 0.05;
/// From a request to its first byte over the LAN, and over a line, in seconds; the same again for a line's new connection.
const LAN_LEAD: f64 = 0.004;
const LINE_LEAD: f64 = 0.03;
/// The driver reports an uplink's bytes at least this often (bytes).
const REPORT: f64 = 256.0 * 1024.0;
const REPORT_EVERY: f64 = 0.1;
pub(crate) const MBIT: f64 = 125_000.0;
/// Lanes from here on are sources: this plus the member's number.
const SOURCES: u64 = 100;

/// One member.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its port, bytes a second each way.
    pub(crate) port: f64,
    /// Which lines it has lanes over.
    pub(crate) lines: Vec<usize>,
    /// When it begins to fetch; `None`: it has everything.
    pub(crate) begins: Option<f64>,
    /// What must come over its uplinks.
    pub(crate) checks: RangeSet,
    /// Serves nothing from then on.
    pub(crate) silent_from: f64,
    /// Most it sends, bytes a second.
    pub(crate) sends: f64,
    /// It says that it fetches all it has not.
    pub(crate) claims_all: bool,
}

impl Member {
    pub(crate) fn new(mbit: f64, begins: Option<f64>) -> Self {
        Self {
            port: mbit * MBIT,
            lines: Vec::new(),
            begins,
            checks: RangeSet::new(),
            silent_from: f64::INFINITY,
            sends: f64::INFINITY,
            claims_all: false,
        }
    }

    pub(crate) fn with_lines(mut self, lines: &[usize]) -> Self {
        self.lines = lines.to_vec();
        self
    }
}

/// Who brings a flow's bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Line(usize),
    Member(usize),
}

#[derive(Clone, Debug)]
struct Flow {
    by: By,
    /// First byte not reported, and the end.
    left: ByteRange,
    /// Bytes that came and are not reported; for a source, of the piece under way.
    came: f64,
    silent_until: f64,
    reported: f64,
    rate: f64,
}

#[derive(Debug)]
struct Running {
    scheduler: Scheduler,
    flows: BTreeMap<LeaseId, Flow>,
    done: RangeSet,
    known: BTreeSet<usize>,
}

/// How it went for a member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// When it was done, since it began.
    pub(crate) seconds: f64,
    /// Bytes over lines and from each member.
    pub(crate) over_lines: f64,
    pub(crate) from: BTreeMap<usize, f64>,
    /// Bytes on the wires that it threw away.
    pub(crate) wasted: f64,
    /// (When, over a line, what) it asked for.
    pub(crate) asked: Vec<(f64, bool, ByteRange)>,
}

#[derive(Debug)]
pub(crate) struct House {
    members: Vec<Member>,
    /// Bytes a second.
    lines: Vec<f64>,
    total: u64,
    running: Vec<Option<Running>>,
    have: Vec<RangeSet>,
    out: Vec<Outcome>,
    base: Instant,
    t: f64,
    next_beat: f64,
    seed: u64,
    pub(crate) trace: bool,
}

impl House {
    pub(crate) fn new(members: Vec<Member>, lines_mbit: &[f64], total: u64, seed: u64) -> Self {
        let whole: RangeSet = [ByteRange::new(0, total)].into_iter().collect();
        Self {
            lines: lines_mbit.iter().map(|l| l * MBIT).collect(),
            total,
            running: members.iter().map(|_| None).collect(),
            have: members
                .iter()
                .map(|m| {
                    if m.begins.is_none() {
                        whole.clone()
                    } else {
                        RangeSet::new()
                    }
                })
                .collect(),
            out: vec![Outcome::default(); members.len()],
            members,
            base: Instant::now(),
            t: 0.0,
            next_beat: 0.0,
            seed,
            trace: false,
        }
    }

    /// Runs until all have everything, or fails after `limit` seconds.
    pub(crate) fn run(mut self, limit: f64) -> Vec<Outcome> {
        while self.have.iter().any(|h| h.len() < self.total) {
            assert!(self.t < limit, "not done after {limit} s: {}", self.state());
            self.step();
        }
        self.out
    }

    fn state(&self) -> String {
        let now = self.now();
        let each = self
            .running
            .iter()
            .flatten()
            .map(|r| format!("{:#?}", r.scheduler.snapshot(now)));
        each.collect::<Vec<_>>().join("\n")
    }

    fn now(&self) -> Instant {
        self.base + Duration::from_secs_f64(self.t)
    }

    fn step(&mut self) {
        if self.t >= self.next_beat {
            self.next_beat += BEAT;
            self.beat();
        }
        let now = self.now();
        for i in 0..self.members.len() {
            self.act(i);
            if let Some(running) = &mut self.running[i]
                && running.scheduler.poll_timeout().is_some_and(|t| t <= now)
            {
                running.scheduler.tick(now);
                self.act(i);
            }
        }
        self.share_rates();
        self.t += STEP;
        for i in 0..self.members.len() {
            self.flow(i);
        }
    }

    /// Members begin, and all tell each other where they stand.
    fn beat(&mut self) {
        let now = self.now();
        for i in 0..self.members.len() {
            if self.running[i].is_none() && self.members[i].begins.is_some_and(|b| b <= self.t) {
                let seed = self.seed * 1000 + i as u64;
                let mut scheduler =
                    Scheduler::new(Config::default(), self.total, &RangeSet::new(), seed, now);
                for &line in &self.members[i].lines {
                    scheduler.lane_up(LaneId(line as u64), spec(LINE_LEAD), now);
                }
                scheduler.checks(self.members[i].checks.clone(), now);
                self.running[i] = Some(Running {
                    scheduler,
                    flows: BTreeMap::new(),
                    done: RangeSet::new(),
                    known: BTreeSet::new(),
                });
            }
        }
        let claims: Vec<RangeSet> = (0..self.members.len()).map(|i| self.claims(i)).collect();
        let pieces: Vec<RangeSet> = self.have.iter().map(|h| whole_pieces(h, self.total)).collect();
        let mut copies = vec![0u8; self.total.div_ceil(PIECE) as usize];
        for set in &pieces {
            for range in set {
                for piece in range.start / PIECE..range.end.div_ceil(PIECE) {
                    copies[piece as usize] += 1;
                }
            }
        }
        for i in 0..self.members.len() {
            let Some(running) = &mut self.running[i] else {
                continue;
            };
            if self.have[i].len() == self.total {
                continue;
            }
            let mut elsewhere = RangeSet::new();
            for (j, theirs) in claims.iter().enumerate().filter(|(j, _)| *j != i) {
                let mut lost = theirs.clone();
                if j > i {
                    // Of two that fetch the same, the first one goes on.
                    for range in &claims[i] {
                        lost.remove(range);
                    }
                }
                for range in &lost {
                    elsewhere.insert(range);
                }
                let lane = LaneId(SOURCES + j as u64);
                if !pieces[j].is_empty() {
                    if running.known.insert(j) {
                        running.scheduler.source_up(lane, spec(LAN_LEAD), now);
                    }
                    running.scheduler.holds(lane, pieces[j].clone(), now);
                }
            }
            running.scheduler.copies(copies.clone(), now);
            running.scheduler.elsewhere(elsewhere, now);
            self.act(i);
        }
    }

    fn claims(&self, i: usize) -> RangeSet {
        let Some(running) = &self.running[i] else {
            return RangeSet::new();
        };
        if self.members[i].claims_all {
            return running
                .done
                .gaps(ByteRange::new(0, self.total))
                .into_iter()
                .collect();
        }
        running.scheduler.under_way()
    }

    fn act(&mut self, i: usize) {
        let Some(running) = &mut self.running[i] else {
            return;
        };
        while let Some(action) = running.scheduler.poll_action() {
            if self.trace {
                println!("{:8.3} {i}: {action:?}", self.t);
            }
            match action {
                Action::Start { lease, lane, range } => {
                    let (by, lead) = if lane.0 >= SOURCES {
                        (By::Member((lane.0 - SOURCES) as usize), LAN_LEAD)
                    } else {
                        (By::Line(lane.0 as usize), 2.0 * LINE_LEAD)
                    };
                    self.out[i].asked.push((self.t, matches!(by, By::Line(_)), range));
                    let flow = Flow {
                        by,
                        left: range,
                        came: 0.0,
                        silent_until: self.t + lead,
                        reported: self.t,
                        rate: 0.0,
                    };
                    running.flows.insert(lease, flow);
                }
                Action::Shrink { lease, end } => {
                    let Some(flow) = running.flows.get_mut(&lease) else {
                        continue;
                    };
                    assert!(flow.left.start < end && end < flow.left.end, "{end}: {flow:?}");
                    flow.left = ByteRange::new(flow.left.start, end);
                    if let By::Line(_) = flow.by {
                        let over = (flow.came - flow.left.len() as f64).max(0.0);
                        self.out[i].wasted += over;
                        flow.came -= over;
                    }
                }
                Action::Cancel { lease } => {
                    if let Some(flow) = running.flows.remove(&lease) {
                        self.out[i].wasted += flow.came;
                    }
                }
                Action::Done => {
                    assert_eq!(running.done.len(), self.total);
                    self.out[i].seconds = self.t - self.members[i].begins.unwrap_or(0.0);
                }
            }
        }
        assert_eq!(running.scheduler.check_invariants(), Ok(()));
        let next = running.scheduler.poll_timeout();
        assert!(
            next.is_none_or(|t| t + Duration::from_secs(1) > self.base),
            "a time long ago"
        );
    }

    /// Max-min fair: the resource that leaves its flows least is filled first.
    fn share_rates(&mut self) {
        let count = self.members.len();
        // Ports in, ports out, lines.
        let mut left: Vec<f64> = self.members.iter().map(|m| m.port).collect();
        left.extend(self.members.iter().map(|m| {
            if self.t >= m.silent_from {
                0.0
            } else {
                m.port.min(m.sends)
            }
        }));
        left.extend(&self.lines);
        let mut open: Vec<(usize, LeaseId, [usize; 2])> = Vec::new();
        for (i, running) in self.running.iter_mut().enumerate() {
            for (id, flow) in running.iter_mut().flat_map(|r| &mut r.flows) {
                flow.rate = 0.0;
                if flow.silent_until <= self.t {
                    let other = match flow.by {
                        By::Line(line) => 2 * count + line,
                        By::Member(member) => count + member,
                    };
                    open.push((i, *id, [i, other]));
                }
            }
        }
        while !open.is_empty() {
            let mut users = vec![0usize; left.len()];
            open.iter().flat_map(|o| o.2).for_each(|r| users[r] += 1);
            let share = |r: usize| left[r].max(0.0) / users[r] as f64;
            let tightest = (0..left.len())
                .filter(|&r| users[r] > 0)
                .min_by(|&a, &b| share(a).total_cmp(&share(b)));
            let Some(tightest) = tightest else { return };
            let rate = share(tightest);
            open.retain(|(i, id, through)| {
                if !through.contains(&tightest) {
                    return true;
                }
                through.iter().for_each(|&r| left[r] -= rate);
                if let Some(flow) = self.running[*i].as_mut().and_then(|r| r.flows.get_mut(id)) {
                    flow.rate = rate;
                }
                false
            });
        }
    }

    /// Moves a step's bytes and reports them.
    fn flow(&mut self, i: usize) {
        let ids: Vec<LeaseId> = self.running[i]
            .iter()
            .flat_map(|r| r.flows.keys().copied())
            .collect();
        let now = self.now();
        for id in ids {
            let Some(running) = self.running[i].as_mut() else {
                return;
            };
            let Some(flow) = running.flows.get_mut(&id) else {
                continue;
            };
            let moved = flow.rate * STEP;
            flow.came += moved;
            let ready = match flow.by {
                By::Line(_) => {
                    self.out[i].over_lines += moved;
                    let due = flow.came >= REPORT
                        || self.t - flow.reported >= REPORT_EVERY
                        || flow.came >= flow.left.len() as f64;
                    if due {
                        (flow.came as u64).min(flow.left.len())
                    } else {
                        0
                    }
                }
                By::Member(from) => {
                    *self.out[i].from.entry(from).or_default() += moved;
                    let piece = flow.left.start / PIECE;
                    let whole = ByteRange::new(piece * PIECE, ((piece + 1) * PIECE).min(self.total));
                    if flow.came >= whole.len() as f64 {
                        flow.came -= whole.len() as f64;
                        whole.intersect(flow.left).len()
                    } else {
                        0
                    }
                }
            };
            if ready == 0 {
                continue;
            }
            let came = ByteRange::new(flow.left.start, flow.left.start + ready);
            flow.left = ByteRange::new(came.end, flow.left.end);
            flow.reported = self.t;
            if let By::Line(_) = flow.by {
                flow.came -= ready as f64;
            }
            if flow.left.is_empty() {
                running.flows.remove(&id);
            }
            let new = running.done.insert(came);
            assert_eq!(running.scheduler.bytes(id, ready, now), new);
            self.have[i] = running.done.clone();
            self.act(i);
        }
    }
}

fn spec(latency: f64) -> LaneSpec {
    LaneSpec {
        slots: 2,
        metered: false,
        hint: None,
        latency: Duration::from_secs_f64(latency),
    }
}

fn whole_pieces(set: &RangeSet, total: u64) -> RangeSet {
    let whole = |r: ByteRange| {
        let end = if r.end == total {
            total
        } else {
            r.end - r.end % PIECE
        };
        ByteRange::new(r.start.div_ceil(PIECE) * PIECE, end)
    };
    set.iter().map(whole).collect()
}
