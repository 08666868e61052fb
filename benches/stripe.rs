//! What a decision and a chunk of bytes cost, with 64 lanes and 10,000 pieces.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tributary::stripe::{Action, Config, LaneSpec, LeaseId, Scheduler};
use tributary::types::{ByteRange, LaneId, PIECE, RangeSet, Rate};

const LANES: u64 = 64;
const PIECES: u64 = 10_000;

/// A transfer under way: every second of 10,000 pieces is done, all lanes have work. Returns the leases too.
fn busy(start: Instant) -> (Scheduler, Vec<(LeaseId, u64)>) {
    let done: RangeSet = (0..PIECES / 2)
        .map(|i| ByteRange::new(2 * i * PIECE, (2 * i + 1) * PIECE))
        .collect();
    let mut scheduler = Scheduler::new(Config::default(), PIECES * PIECE, &done, 1, start);
    for lane in 0..LANES {
        let hint = Some(Rate::bits(1_000_000 * (lane + 1)));
        let spec = LaneSpec {
            slots: 2,
            metered: false,
            hint,
            latency: Duration::from_millis(10 + lane),
        };
        scheduler.lane_up(LaneId(lane), spec, start);
    }
    let mut leases = Vec::new();
    while let Some(action) = scheduler.poll_action() {
        if let Action::Start { lease, range, .. } = action {
            leases.push((lease, range.len()));
        }
    }
    (scheduler, leases)
}

fn stripe(c: &mut Criterion) {
    let start = Instant::now();
    let now = start + Duration::from_millis(900);
    c.bench_function("bytes: a chunk of 64 KiB that ends no lease", |b| {
        let (scheduler, leases) = busy(start);
        b.iter_batched_ref(
            || scheduler.clone(),
            |s| {
                for (lease, _) in &leases {
                    black_box(s.bytes(*lease, 1024, now));
                    black_box(s.poll_action());
                }
            },
            BatchSize::LargeInput,
        );
    });
    c.bench_function("decision: a lease ends, the next is given", |b| {
        let (scheduler, leases) = busy(start);
        b.iter_batched_ref(
            || scheduler.clone(),
            |s| {
                s.bytes(leases[7].0, leases[7].1, now);
                while let Some(action) = s.poll_action() {
                    black_box(action);
                }
            },
            BatchSize::LargeInput,
        );
    });
    c.bench_function("tick", |b| {
        let (scheduler, _) = busy(start);
        b.iter_batched_ref(
            || scheduler.clone(),
            |s| {
                s.tick(now);
                black_box(s.poll_action());
            },
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(benches, stripe);
criterion_main!(benches);
