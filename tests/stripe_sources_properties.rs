//! What must hold for the scheduler within a household whatever members do: random calls against a small model of the
//! driver.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tributary::stripe::{Action, Config, Failure, LaneSpec, LeaseId, Scheduler};
use tributary::types::{ByteRange, LaneId, PIECE, RangeSet};

const CASES: u32 = 3_000;
/// Steps in which a transfer must come to its end once lanes are there that may bring everything.
const ENOUGH_STEPS: usize = 3_000;
/// What uplinks bring at most at once beside quick sources ...
const SLOW: u64 = 20_000;
/// ... which meanwhile finish so many leases one after the other.
const QUICK: usize = 8;
/// Lanes from here on are sources.
const SOURCES: u64 = 10;
/// The lanes that always bring bytes, at the end.
const GOOD_UPLINK: LaneId = LaneId(5);
const GOOD_SOURCE: LaneId = LaneId(19);

/// Ranges of a file, as parts of it: where they start, and how long they are.
type Parts = Vec<(f64, u64)>;

#[derive(Clone, Debug)]
enum Op {
    Up { lane: u64, slots: usize },
    Down { lane: u64 },
    Adopt { lane: u64, from: f64, len: u64 },
    Bytes { which: usize, n: u64 },
    Flow { ms: u64, n: u64 },
    Fail { which: usize, why: Failure },
    Lost { from: f64, len: u64 },
    Silence { ms: u64 },
    Holds { lane: u64, parts: Parts },
    Elsewhere { parts: Parts },
    Checks { parts: Parts },
    Copies { counts: Vec<u8> },
}

fn parts(len: u64) -> impl Strategy<Value = Parts> {
    prop::collection::vec((0.0..1.0, 1..len), 0..5)
}

fn op() -> impl Strategy<Value = Op> {
    let lane = prop_oneof![0u64..3, SOURCES..SOURCES + 4];
    let source = SOURCES..SOURCES + 4;
    let why = prop_oneof![
        4 => Just(Failure::Broken),
        1 => (0u64..8).prop_map(|s| Failure::Refused { retry_after: (s > 0).then(|| Duration::from_secs(s)) }),
        1 => Just(Failure::Ineligible),
        1 => Just(Failure::Origin),
    ];
    prop_oneof![
        4 => (lane.clone(), 1usize..4).prop_map(|(lane, slots)| Op::Up { lane, slots }),
        1 => lane.clone().prop_map(|lane| Op::Down { lane }),
        1 => (lane, 0.0..1.0, 1u64..4_000_000).prop_map(|(lane, from, len)| Op::Adopt { lane, from, len }),
        4 => (0usize..12, prop_oneof![Just(0), Just(1), 1u64..2_000_000, Just(u64::MAX)]).prop_map(|(which, n)| Op::Bytes { which, n }),
        8 => (1u64..1500, 1u64..3_000_000).prop_map(|(ms, n)| Op::Flow { ms, n }),
        2 => (0usize..12, why).prop_map(|(which, why)| Op::Fail { which, why }),
        1 => (0.0..1.0, 1u64..3_000_000).prop_map(|(from, len)| Op::Lost { from, len }),
        2 => (1u64..5_000).prop_map(|ms| Op::Silence { ms }),
        5 => (source, parts(30_000_000)).prop_map(|(lane, parts)| Op::Holds { lane, parts }),
        3 => parts(10_000_000).prop_map(|parts| Op::Elsewhere { parts }),
        2 => parts(200_000).prop_map(|parts| Op::Checks { parts }),
        2 => prop::collection::vec(0u8..5, 0..40).prop_map(|counts| Op::Copies { counts }),
    ]
}

fn is_source(lane: LaneId) -> bool {
    lane.0 >= SOURCES
}

fn spec(slots: usize) -> LaneSpec {
    LaneSpec {
        slots,
        metered: false,
        hint: None,
        latency: Duration::from_millis(20),
    }
}

/// The driver's side of the contract, and its own books.
struct Driver {
    scheduler: Scheduler,
    now: Instant,
    start: Instant,
    total: u64,
    done: RangeSet,
    leases: BTreeMap<LeaseId, (LaneId, ByteRange)>,
    slots: BTreeMap<LaneId, usize>,
    holds: BTreeMap<LaneId, RangeSet>,
    elsewhere: RangeSet,
    checks: RangeSet,
    /// Sources bring all that they are asked for, and never wait: uplinks must leave to them what they hold.
    quick: bool,
    said_done: usize,
    log: Vec<(Duration, Action)>,
}

impl Driver {
    fn new(total: u64, start: Instant, quick: bool) -> Self {
        Self {
            scheduler: Scheduler::new(Config::default(), total, &RangeSet::new(), 42, start),
            now: start,
            start,
            total,
            done: RangeSet::new(),
            leases: BTreeMap::new(),
            slots: BTreeMap::new(),
            holds: BTreeMap::new(),
            elsewhere: RangeSet::new(),
            checks: RangeSet::new(),
            quick,
            said_done: 0,
            log: Vec::new(),
        }
    }

    fn ranges(&self, parts: &Parts) -> RangeSet {
        let range = |&(from, len): &(f64, u64)| {
            let start = (self.total as f64 * from) as u64;
            ByteRange::new(start, (start + len).min(self.total))
        };
        parts.iter().map(range).collect()
    }

    fn piece(&self, piece: u64) -> ByteRange {
        ByteRange::new(piece * PIECE, ((piece + 1) * PIECE).min(self.total))
    }

    fn pieces(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> + use<'_> {
        (range.start / PIECE..range.end.div_ceil(PIECE)).map(|p| self.piece(p))
    }

    /// What the design says about each lease that starts.
    fn judge(&self, lane: LaneId, range: ByteRange) {
        let unfinished = |part: ByteRange| self.checks.within(part).any(|c| !self.done.contains(c));
        if is_source(lane) {
            for piece in self.pieces(range) {
                assert!(self.holds[&lane].contains(piece), "{lane} does not hold {piece}");
                assert!(!unfinished(piece), "{piece} is to be checked first");
            }
            assert!(range.len() <= 4 * PIECE, "{range} is too long for a source");
        } else {
            assert_eq!(self.elsewhere.overlap(range), 0, "{range} is fetched elsewhere");
            if self.quick {
                for held in self.holds.values() {
                    for piece in self.pieces(range).filter(|p| held.contains(*p)) {
                        let own = piece.intersect(range);
                        assert!(
                            self.checks.contains(own),
                            "{own} over an uplink, though a source holds it"
                        );
                    }
                }
            }
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Start { lease, lane, range } => {
                    assert!(!range.is_empty() && range.end <= self.total, "{range}");
                    assert!(!self.done.contains(range), "{range} is there already");
                    self.judge(lane, range);
                    assert!(self.leases.insert(lease, (lane, range)).is_none());
                    let count = self.leases.values().filter(|l| l.0 == lane).count();
                    let most = self.slots[&lane] + usize::from(!is_source(lane));
                    assert!(count <= most, "{lane} has {count} leases");
                }
                Action::Shrink { lease, end } => {
                    let lives = self.leases.get_mut(&lease);
                    assert!(lives.is_some(), "{lease:?} is shrunk but over");
                    if let Some((_, range)) = lives {
                        assert!(range.start < end && end < range.end, "shrunk to {end}: {range}");
                        *range = ByteRange::new(range.start, end);
                    }
                }
                Action::Cancel { lease } => {
                    assert!(self.leases.remove(&lease).is_some(), "{lease:?} is over")
                }
                Action::Done => {
                    assert_eq!(self.done.len(), self.total, "done, but bytes are missing");
                    self.said_done += 1;
                }
            }
            self.log.push((self.now - self.start, action));
        }
        assert_eq!(self.scheduler.check_invariants(), Ok(()));
        assert_eq!(self.scheduler.snapshot(self.now).done, self.done.len());
        assert_eq!(self.said_done > 0, self.done.len() == self.total);
    }

    fn bytes(&mut self, id: LeaseId, n: u64) {
        let Some((lane, range)) = self.leases.get_mut(&id) else {
            return;
        };
        let n = if self.quick && !is_source(*lane) {
            n.min(SLOW)
        } else {
            n
        };
        let came = ByteRange::new(range.start, range.end.min(range.start.saturating_add(n)));
        *range = ByteRange::new(came.end, range.end);
        if range.is_empty() {
            self.leases.remove(&id);
        }
        let new = self.done.insert(came);
        assert_eq!(self.scheduler.bytes(id, n, self.now), new);
        self.drain();
    }

    /// Lets time pass, ticking as asked.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut ticks = 0;
        while let Some(at) = self.scheduler.poll_timeout().filter(|t| *t <= until) {
            self.now = self.now.max(at);
            self.scheduler.tick(self.now);
            self.drain();
            let next = self.scheduler.poll_timeout();
            assert!(next.is_none_or(|t| t > self.now), "busy loop");
            ticks += 1;
            assert!(ticks < 2_000, "too many ticks");
        }
        self.now = until;
    }

    /// All lanes bring bytes, or with `quick` sources a lot.
    fn flow(&mut self, ms: u64, n: u64) {
        for id in self.leases.keys().copied().collect::<Vec<_>>() {
            let lane = self.leases.get(&id).map_or(LaneId(0), |l| l.0);
            let part = 1 + lane.0 % SOURCES * (lane.0 % SOURCES);
            self.bytes(id, n / part);
        }
        for _ in 0..if self.quick { QUICK } else { 0 } {
            let quick: Vec<LeaseId> = self
                .leases
                .iter()
                .filter(|l| is_source(l.1.0))
                .map(|l| *l.0)
                .collect();
            for id in quick {
                self.bytes(id, u64::MAX);
            }
        }
        self.pass(Duration::from_millis(ms));
    }

    fn up(&mut self, lane: LaneId, slots: usize) {
        let most = self.slots.get(&lane).copied().unwrap_or(0).max(slots);
        self.slots.insert(lane, most);
        if is_source(lane) {
            self.scheduler.source_up(lane, spec(slots), self.now);
            self.holds.entry(lane).or_default();
        } else {
            self.scheduler.lane_up(lane, spec(slots), self.now);
        }
    }

    fn elsewhere(&mut self, set: RangeSet) {
        self.elsewhere = set.clone();
        self.scheduler.elsewhere(set, self.now);
    }

    fn nth(&self, which: usize) -> Option<LeaseId> {
        self.leases.keys().nth(which % self.leases.len().max(1)).copied()
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Up { lane, slots } => self.up(LaneId(*lane), *slots),
            Op::Down { lane } => {
                let lane = LaneId(*lane);
                self.leases.retain(|_, l| l.0 != lane);
                self.slots.remove(&lane);
                self.holds.remove(&lane);
                self.scheduler.lane_down(lane, self.now);
            }
            Op::Adopt { lane, from, len } => {
                let start = (self.total as f64 * from) as u64;
                let range = ByteRange::new(start, (start + len).min(self.total));
                if let Some(id) = self.scheduler.adopt(LaneId(*lane), range, self.now) {
                    self.leases.insert(id, (LaneId(*lane), range));
                }
            }
            Op::Bytes { which, n } => {
                if let Some(id) = self.nth(*which) {
                    self.bytes(id, *n);
                }
            }
            Op::Flow { ms, n } => self.flow(*ms, *n),
            Op::Fail { which, why } => {
                let id = self.nth(*which);
                let id = id.filter(|id| !self.quick || !is_source(self.leases[id].0));
                if let Some(id) = id {
                    self.leases.remove(&id);
                    self.scheduler.lease_failed(id, *why, self.now);
                }
            }
            Op::Lost { from, len } => {
                let start = (self.total as f64 * from) as u64;
                let range = ByteRange::new(start, (start + len).min(self.total));
                if self.done.remove(range) > 0 {
                    self.said_done = 0;
                }
                self.scheduler.lost(range, self.now);
            }
            Op::Silence { ms } => {
                if self.quick {
                    self.flow((*ms).min(400), 1000);
                } else {
                    self.pass(Duration::from_millis(*ms));
                }
            }
            Op::Holds { lane, parts } => {
                let (lane, set) = (LaneId(*lane), self.ranges(parts));
                if self.slots.contains_key(&lane) {
                    self.holds.insert(lane, set.clone());
                }
                self.scheduler.holds(lane, set, self.now);
            }
            Op::Elsewhere { parts } => self.elsewhere(self.ranges(parts)),
            Op::Checks { parts } => {
                self.checks = self.ranges(parts);
                self.scheduler.checks(self.checks.clone(), self.now);
            }
            Op::Copies { counts } => self.scheduler.copies(counts.clone(), self.now),
        }
        self.drain();
    }

    /// Runs to the end with lanes that may bring everything; says whether it came.
    fn finish(&mut self) -> bool {
        for _ in 0..ENOUGH_STEPS {
            if self.said_done > 0 {
                return true;
            }
            self.flow(100, 2_000_000);
            let good = |l: &LaneId| [GOOD_UPLINK, GOOD_SOURCE].contains(l);
            let good: Vec<_> = self
                .leases
                .iter()
                .filter(|l| good(&l.1.0))
                .map(|l| *l.0)
                .collect();
            for id in good {
                self.bytes(id, 1_000_000);
            }
        }
        false
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_comes_and_goes_every_byte_is_brought_by_a_lane_that_may(
        total in prop_oneof![0u64..3_000, 1u64..40_000_000],
        ops in prop::collection::vec(op(), 0..50),
        holds in parts(40_000_000),
        quick in any::<bool>(),
    ) {
        let start = Instant::now();
        let mut logs = Vec::new();
        for _ in 0..2 {
            let mut driver = Driver::new(total, start, quick);
            driver.drain();
            for op in &ops {
                driver.run(op);
            }
            // Others are through with what they fetched; an uplink and a source that holds some of it are enough.
            driver.elsewhere(RangeSet::new());
            driver.up(GOOD_UPLINK, 2);
            driver.up(GOOD_SOURCE, 2);
            let set = driver.ranges(&holds);
            driver.holds.insert(GOOD_SOURCE, set.clone());
            driver.scheduler.holds(GOOD_SOURCE, set, driver.now);
            driver.drain();
            prop_assert!(driver.finish(), "no end: {:?}", driver.scheduler.snapshot(driver.now));
            driver.pass(Duration::from_secs(100));
            prop_assert_eq!(driver.said_done, 1);
            prop_assert_eq!(driver.scheduler.poll_timeout(), None);
            prop_assert!(driver.leases.is_empty(), "leases outlive the transfer");
            logs.push(driver.log);
        }
        prop_assert_eq!(&logs[0], &logs[1], "same calls, other actions");
    }

    #[test]
    fn what_lies_elsewhere_is_waited_for_without_a_tick_until_somebody_holds_it(
        total in 1u64..40_000_000,
        elsewhere in parts(20_000_000),
    ) {
        let mut driver = Driver::new(total, Instant::now(), false);
        driver.up(GOOD_UPLINK, 2);
        let set = driver.ranges(&elsewhere);
        driver.elsewhere(set.clone());
        driver.drain();
        while !driver.leases.is_empty() {
            driver.flow(100, 50_000_000);
        }
        // Pieces count as a whole.
        let waits: RangeSet = set.iter().flat_map(|r| driver.pieces(r).collect::<Vec<_>>()).collect();
        prop_assert_eq!(driver.done.len() + waits.len(), total);
        prop_assert_eq!(driver.scheduler.poll_timeout(), None, "nothing can be done");
        driver.up(GOOD_SOURCE, 2);
        let whole = [ByteRange::new(0, total)].into_iter().collect::<RangeSet>();
        driver.holds.insert(GOOD_SOURCE, whole.clone());
        driver.scheduler.holds(GOOD_SOURCE, whole, driver.now);
        driver.drain();
        prop_assert!(driver.finish());
        prop_assert_eq!(driver.said_done, 1);
    }
}
