//! What must hold for the scheduler whatever lanes do: random calls against a small model of the driver.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tributary::stripe::{Action, Config, Failure, LaneSpec, LeaseId, Scheduler};
use tributary::types::{ByteRange, LaneId, RangeSet, Rate};

const CASES: u32 = 10_000;
/// Steps in which a transfer must come to its end once a good lane is there.
const ENOUGH_STEPS: usize = 3_000;

#[derive(Clone, Debug)]
enum Op {
    Up {
        lane: u64,
        slots: usize,
        metered: bool,
        hint: Option<u32>,
        latency: u16,
    },
    Down {
        lane: u64,
    },
    Adopt {
        lane: u64,
        from: f64,
        len: u64,
    },
    Bytes {
        which: usize,
        n: u64,
    },
    /// Every lease gets bytes for some time, at different rates.
    Flow {
        ms: u64,
        n: u64,
    },
    Fail {
        which: usize,
        why: Failure,
    },
    Lost {
        from: f64,
        len: u64,
    },
    Silence {
        ms: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let lane = 0u64..5;
    let why = prop_oneof![
        4 => Just(Failure::Broken),
        1 => (0u64..8).prop_map(|s| Failure::Refused { retry_after: (s > 0).then(|| Duration::from_secs(s)) }),
        1 => Just(Failure::Ineligible),
        1 => Just(Failure::Origin),
    ];
    prop_oneof![
        4 => (lane.clone(), 1usize..4, any::<bool>(), prop::option::of(1u32..100_000_000), 0u16..300)
            .prop_map(|(lane, slots, metered, hint, latency)| Op::Up { lane, slots, metered, hint, latency }),
        1 => lane.clone().prop_map(|lane| Op::Down { lane }),
        1 => (lane, 0.0..1.0, 1u64..4_000_000).prop_map(|(lane, from, len)| Op::Adopt { lane, from, len }),
        4 => (0usize..12, prop_oneof![Just(0), Just(1), 1u64..2_000_000, Just(u64::MAX)]).prop_map(|(which, n)| Op::Bytes { which, n }),
        8 => (1u64..1500, 1u64..300_000).prop_map(|(ms, n)| Op::Flow { ms, n }),
        2 => (0usize..12, why).prop_map(|(which, why)| Op::Fail { which, why }),
        1 => (0.0..1.0, 1u64..3_000_000).prop_map(|(from, len)| Op::Lost { from, len }),
        2 => (1u64..5_000).prop_map(|ms| Op::Silence { ms }),
    ]
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
    said_done: usize,
    log: Vec<(Duration, Action)>,
}

impl Driver {
    fn new(total: u64, done: RangeSet, start: Instant) -> Self {
        Self {
            scheduler: Scheduler::new(Config::default(), total, &done, 42, start),
            now: start,
            start,
            total,
            done,
            leases: BTreeMap::new(),
            slots: BTreeMap::new(),
            said_done: 0,
            log: Vec::new(),
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Start { lease, lane, range } => {
                    assert!(!range.is_empty() && range.end <= self.total, "{range}");
                    assert!(
                        self.leases.insert(lease, (lane, range)).is_none(),
                        "{lease:?} used twice"
                    );
                    let count = self.leases.values().filter(|l| l.0 == lane).count();
                    // One may begin while another ends.
                    assert!(count <= self.slots[&lane] + 1, "{lane} has {count} leases");
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
                    assert!(
                        self.leases.remove(&lease).is_some(),
                        "{lease:?} is cancelled but over"
                    );
                }
                Action::Done => {
                    assert_eq!(self.done.len(), self.total, "done, but bytes are missing");
                    self.said_done += 1;
                }
            }
            self.log.push((self.now - self.start, action));
        }
        assert_eq!(self.scheduler.check_invariants(), Ok(()));
        let snapshot = self.scheduler.snapshot(self.now);
        assert_eq!(snapshot.done, self.done.len());
        assert_eq!(
            self.said_done > 0,
            self.done.len() == self.total,
            "done is said when all bytes are there"
        );
    }

    fn bytes(&mut self, id: LeaseId, n: u64) {
        let Some((_, range)) = self.leases.get_mut(&id) else {
            return;
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
            assert!(
                self.scheduler.poll_timeout().is_none_or(|t| t > self.now),
                "busy loop"
            );
            ticks += 1;
            assert!(ticks < 2_000, "too many ticks");
        }
        self.now = until;
    }

    fn flow(&mut self, ms: u64, n: u64) {
        for id in self.leases.keys().copied().collect::<Vec<_>>() {
            let lane = self.leases.get(&id).map_or(0, |l| l.0.0);
            self.bytes(id, n / (1 + lane * lane));
        }
        self.pass(Duration::from_millis(ms));
    }

    fn nth(&self, which: usize) -> Option<LeaseId> {
        self.leases.keys().nth(which % self.leases.len().max(1)).copied()
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Up {
                lane,
                slots,
                metered,
                hint,
                latency,
            } => {
                let spec = LaneSpec {
                    slots,
                    metered,
                    hint: hint.map(|h| Rate::bits(h.into())),
                    latency: Duration::from_millis(latency.into()),
                };
                // A lane that is up keeps the leases it has.
                let most = self.slots.get(&LaneId(lane)).copied().unwrap_or(0).max(slots);
                self.slots.insert(LaneId(lane), most);
                self.scheduler.lane_up(LaneId(lane), spec, self.now);
            }
            Op::Down { lane } => {
                self.leases.retain(|_, l| l.0 != LaneId(lane));
                self.slots.remove(&LaneId(lane));
                self.scheduler.lane_down(LaneId(lane), self.now);
            }
            Op::Adopt { lane, from, len } => {
                let start = (self.total as f64 * from) as u64;
                let range = ByteRange::new(start, (start + len).min(self.total));
                if let Some(id) = self.scheduler.adopt(LaneId(lane), range, self.now) {
                    self.leases.insert(id, (LaneId(lane), range));
                }
            }
            Op::Bytes { which, n } => {
                if let Some(id) = self.nth(which) {
                    self.bytes(id, n);
                }
            }
            Op::Flow { ms, n } => self.flow(ms, n),
            Op::Fail { which, why } => {
                if let Some(id) = self.nth(which) {
                    self.leases.remove(&id);
                    self.scheduler.lease_failed(id, why, self.now);
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
            Op::Silence { ms } => self.pass(Duration::from_millis(ms)),
        }
        self.drain();
    }
}

fn case() -> impl Strategy<Value = (u64, Vec<(f64, u64)>, Vec<Op>)> {
    let total = prop_oneof![0u64..1000, 1u64..40_000_000];
    (
        total,
        prop::collection::vec((0.0..1.0, 1u64..3_000_000), 0..4),
        prop::collection::vec(op(), 0..40),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_has_one_place_and_every_transfer_with_a_good_lane_ends((total, done, ops) in case()) {
        let done: RangeSet = done
            .into_iter()
            .map(|(from, len)| ((total as f64 * from) as u64, len))
            .map(|(start, len)| ByteRange::new(start, (start + len).min(total)))
            .collect();
        let start = Instant::now();
        let mut logs = Vec::new();
        for _ in 0..2 {
            let mut driver = Driver::new(total, done.clone(), start);
            driver.drain();
            for op in &ops {
                driver.run(op);
            }
            driver.run(&Op::Up { lane: 99, slots: 2, metered: false, hint: None, latency: 0 });
            let mut steps = 0;
            while driver.said_done == 0 {
                driver.flow(100, 2_000_000);
                // The good lane is the only one that is sure to bring bytes.
                let good: Vec<_> = driver.leases.iter().filter(|l| l.1.0 == LaneId(99)).map(|l| *l.0).collect();
                for id in good {
                    driver.bytes(id, 500_000);
                }
                steps += 1;
                prop_assert!(steps < ENOUGH_STEPS, "no end: {:?}", driver.scheduler.snapshot(driver.now));
            }
            prop_assert_eq!(driver.said_done, 1);
            driver.pass(Duration::from_secs(100));
            prop_assert_eq!(driver.said_done, 1);
            prop_assert_eq!(driver.scheduler.poll_timeout(), None);
            prop_assert!(driver.leases.is_empty(), "leases outlive the transfer");
            logs.push(driver.log);
        }
        prop_assert_eq!(&logs[0], &logs[1], "same calls, other actions");
    }
}
