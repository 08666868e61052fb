//! Whole transfers over a simulated network: figures against the ideal, and what happens when lanes misbehave.

#![expect(clippy::print_stdout, reason = "the figures are what this is for")]

mod sim;

use sim::pools;
use sim::{Line, Outcome, Sim};
use tributary::stripe::Action;
use tributary::types::LaneId;

const MIB: u64 = 1 << 20;

/// Pools of `design`'s table, with what each must reach of the sum of its links.
fn named() -> Vec<(&'static str, Vec<Line>)> {
    let pool = |links: &[(f64, f64)]| {
        links
            .iter()
            .map(|&(rate, delay)| Line::new(rate, delay))
            .collect()
    };
    vec![
        ("4x20@15", pool(&[(20.0, 15.0); 4])),
        (
            "40@8 20@15 10@25 5@40",
            pool(&[(40.0, 8.0), (20.0, 15.0), (10.0, 25.0), (5.0, 40.0)]),
        ),
        ("50@10 2@150", pool(&[(50.0, 10.0), (2.0, 150.0)])),
        (
            "30@12 20@20 12@30 8@25 4@60 1@90",
            pool(&[
                (30.0, 12.0),
                (20.0, 20.0),
                (12.0, 30.0),
                (8.0, 25.0),
                (4.0, 60.0),
                (1.0, 90.0),
            ]),
        ),
        ("30@10 30@40", pool(&[(30.0, 10.0), (30.0, 40.0)])),
        // With loss, one connection alone can't fill its lane.
        (
            "30@10 30@40 lossy",
            pool(&[(30.0, 10.0), (30.0, 40.0)])
                .into_iter()
                .map(|l| Line {
                    per_connection: 18.0 * sim::MBIT,
                    ..l
                })
                .collect(),
        ),
    ]
}

#[test]
fn the_lab_pools_reach_97_percent_of_the_sum_of_their_links_and_lossy_ones_93() {
    let mut failed = Vec::new();
    for (name, lines) in named() {
        for size in [64 * MIB, 256 * MIB] {
            let out = Sim::new(&lines, size, 1).run(1000.0);
            let start = lines.iter().map(|l| 4.0 * l.rtt).fold(f64::INFINITY, f64::min);
            let (ideal, physical) = (pools::naive(&lines, size), pools::physical(&lines, size, 2));
            let reached = (ideal - start) / (out.seconds - start);
            println!(
                "{name:34} {:4} MiB: {reached:.4} of the sum of rates, {:.4} of what the connections can; waste {:.2} %, \
                 duplicates {:.3} %, {} leases, {} cuts",
                size / MIB,
                physical / out.seconds,
                100.0 * (out.dropped + out.duplicated as f64) / size as f64,
                100.0 * out.duplicated as f64 / size as f64,
                out.starts,
                out.cuts
            );
            // Lossy connections lose more with each request: only one of two flows then.
            let least = if name.ends_with("lossy") { 0.93 } else { 0.97 };
            if reached < least {
                failed.push((name, size / MIB, reached));
            }
        }
    }
    assert!(failed.is_empty(), "too slow: {failed:?}");
}

/// One pool's figures: times as multiples of the named ones, bytes as parts of the file.
struct Row {
    seed: u64,
    ideal: f64,
    naive: f64,
    /// What the connections can, as a multiple of the ideal.
    floor: f64,
    ideal_seconds: f64,
    physical: f64,
    best: f64,
    /// Seconds more than the best lane's.
    excess: f64,
    duplicated: f64,
    waste: f64,
    size: u64,
    seconds: f64,
}

fn run_pool(seed: u64) -> Row {
    let pool = pools::random(seed);
    let ideal = pools::ideal(&pool.lines, pool.size);
    let naive = pools::naive(&pool.lines, pool.size);
    let physical = pools::physical(&pool.lines, pool.size, 2);
    let out = Sim::new(&pool.lines, pool.size, seed).run(40.0 * ideal + 100.0);
    let best = pools::best_alone(&pool.lines, pool.size, 1.5 * out.seconds);
    Row {
        seed,
        ideal: out.seconds / ideal,
        naive: out.seconds / naive,
        floor: physical / ideal,
        ideal_seconds: ideal,
        physical: out.seconds / physical,
        best: out.seconds / best,
        excess: out.seconds - best,
        duplicated: out.duplicated as f64 / pool.size as f64,
        waste: (out.dropped + out.duplicated as f64) / pool.size as f64,
        size: pool.size,
        seconds: out.seconds,
    }
}

fn quantiles(what: &str, mut of: Vec<f64>) -> (f64, f64, f64) {
    of.sort_by(f64::total_cmp);
    let at = |q: f64| of[((of.len() - 1) as f64 * q).round() as usize];
    println!(
        "{what:34} mean {:.4} median {:.4} p90 {:.4} p99 {:.4} max {:.4} of {}",
        of.iter().sum::<f64>() / of.len() as f64,
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        of.len()
    );
    (at(0.5), at(0.99), at(1.0))
}

#[test]
#[ignore = "shows the decisions for one pool: TRACE=<seed, or the beginning of a lab pool's name>"]
fn decisions_of_one_pool() {
    let Ok(which) = std::env::var("TRACE") else { return };
    let (lines, size) = match which.parse::<u64>() {
        Ok(seed) => {
            let pool = pools::random(seed);
            (pool.lines, pool.size)
        }
        Err(_) => (
            named().into_iter().find(|n| n.0.starts_with(&which)).unwrap().1,
            64 * MIB,
        ),
    };
    for (i, l) in lines.iter().enumerate() {
        println!(
            "{i} rtt {:.3} up {} down {} rates {:?}",
            l.rtt,
            l.up,
            l.down,
            l.rates
                .iter()
                .take(6)
                .map(|r| (r.0, r.1 / 125000.0))
                .collect::<Vec<_>>()
        );
    }
    println!("size {size} physical {}", pools::physical(&lines, size, 2));
    let mut sim = Sim::new(&lines, size, 1);
    sim.trace = true;
    println!("{:.3}", sim.run(1000.0).seconds);
}

/// Pools simulated, so that more than 1,000 of them are in [`MEANT_FOR`].
const POOLS: u64 = 2600;
/// What the project's promise is about: transfers whose ideal is at least this long, in seconds. Shorter ones are mostly
/// handshakes, slow start and finding out who is fast, none of which the ideal knows.
const MEANT_FOR: f64 = 8.0;

/// The promise: against `start-up + bytes / Σ rates`, each lane with its own start-up (see [`pools::ideal`]), median ≤ 1.03
/// and 99th percentile ≤ 1.12 over at least 1,000 pools; duplicates ≤ 1 %; never slower than the best lane alone, known in
/// advance and used with one endless request. Nobody knows it in advance, and it may stall just when all others are through
/// (other seeds: 1 pool in 1,400 was 3 % slower), so from 5 s on 99 of 100 pools may lose 0.5 % and none more than 5 %; below
/// that the best lane has to be found first, so there it is said how often and by how much.
#[test]
fn random_pools_finish_close_to_the_ideal() {
    let half = std::thread::spawn(|| (0..POOLS / 2).map(run_pool).collect::<Vec<_>>());
    let mut rows: Vec<Row> = (POOLS / 2..POOLS).map(run_pool).collect();
    rows.extend(half.join().unwrap());
    let of = |from: f64, value: fn(&Row) -> f64| {
        let long = rows.iter().filter(|r| r.ideal_seconds >= from);
        long.map(value).collect::<Vec<_>>()
    };
    for from in [0.0, 2.0, 5.0, MEANT_FOR] {
        println!("pools whose ideal is {from} s or more:");
        quantiles("  time / ideal", of(from, |r| r.ideal));
        quantiles("  time / what connections can", of(from, |r| r.physical));
        quantiles("  what connections can / ideal", of(from, |r| r.floor));
        quantiles("  time / ideal with one start-up", of(from, |r| r.naive));
        quantiles("  time / best lane (0.67: or less)", of(from, |r| r.best));
        quantiles("  time - best lane's, seconds", of(from, |r| r.excess));
    }
    let meant = of(MEANT_FOR, |r| r.ideal);
    assert!(meant.len() >= 1000, "only {} pools", meant.len());
    let (median, p99, _) = quantiles("the promise: time / ideal", meant);
    assert!(median <= 1.03 && p99 <= 1.12, "{median} {p99}");
    let (median, p99, _) = quantiles("time / connections, from 5 s", of(5.0, |r| r.physical));
    assert!(median <= 1.01 && p99 <= 1.08, "{median} {p99}");
    let (_, p99, max) = quantiles("time / best lane, from 5 s", of(5.0, |r| r.best));
    assert!(p99 <= 1.005 && max <= 1.05, "{p99} {max}");
    let (_, p99, max) = quantiles("time / best lane, from 2 s", of(2.0, |r| r.best));
    assert!(p99 <= 1.02 && max <= 1.2, "{p99} {max}");
    let (_, p99, _) = quantiles("time / best lane, all", of(0.0, |r| r.best));
    assert!(p99 <= 1.15, "{p99}");
    let (_, _, max) = quantiles("duplicated bytes / file", of(0.0, |r| r.duplicated));
    assert!(max <= 0.01, "{max}");
    quantiles("wasted wire bytes / file", of(0.0, |r| r.waste));
    let large = rows.iter().filter(|r| r.size >= 64 * MIB);
    let (median, p99, _) = quantiles("... from 64 MiB", large.map(|r| r.waste).collect());
    assert!(median <= 0.002 && p99 <= 0.016, "{median} {p99}");
    show_worst("slow", &mut rows, |r| {
        if r.ideal_seconds >= 5.0 { r.ideal } else { 0.0 }
    });
    show_worst("worse than the best lane", &mut rows, |r| r.best);
    show_worst("wasteful", &mut rows, |r| {
        if r.size >= 64 * MIB { r.waste } else { 0.0 }
    });
}

/// The seeds to look at with `decisions_of_one_pool`.
fn show_worst(what: &str, rows: &mut [Row], by: fn(&Row) -> f64) {
    rows.sort_by(|a, b| by(b).total_cmp(&by(a)));
    for r in rows.iter().take(6) {
        println!(
            "{what}: seed {} of {} MiB, {:.2} s: ideal {:.3} connections {:.3} best lane {:.3} waste {:.4}",
            r.seed,
            r.size >> 20,
            r.seconds,
            r.ideal,
            r.physical,
            r.best,
            r.waste
        );
    }
}

/// Runs it and says by how much it missed the ideal, in seconds.
fn late(what: &str, lines: Vec<Line>, size: u64) -> (f64, Outcome) {
    let ideal = pools::naive(&lines, size);
    let out = Sim::new(&lines, size, 1).run(10.0 * ideal + 100.0);
    println!(
        "{what}: {:.2} s, ideal {ideal:.2} s; waste {:.2} %, {} leases, {} cuts",
        out.seconds,
        100.0 * (out.dropped + out.duplicated as f64) / size as f64,
        out.starts,
        out.cuts
    );
    (out.seconds - ideal, out)
}

fn starts(out: &Outcome, id: u64) -> Vec<f64> {
    let on = |a: &Action| matches!(a, Action::Start { lane, .. } if *lane == LaneId(id));
    out.log.iter().filter(|(_, a)| on(a)).map(|(t, _)| *t).collect()
}

#[test]
fn a_lane_alone_loses_nothing_against_one_long_request() {
    for (rate, delay) in [(2.0, 100.0), (20.0, 15.0), (100.0, 40.0)] {
        let line = Line::new(rate, delay);
        let size = 64 * MIB;
        let single = pools::physical(std::slice::from_ref(&line), size, 1);
        let out = Sim::new(&[line], size, 1).run(1000.0);
        println!(
            "{rate}@{delay} alone: {:.2} s, one request {single:.2} s, {} leases",
            out.seconds, out.starts
        );
        assert!(
            out.seconds <= 1.01 * single,
            "{} s, one request {single} s",
            out.seconds
        );
        assert_eq!((out.dropped, out.duplicated), (0.0, 0));
    }
}

#[test]
fn a_lane_that_collapses_hands_its_range_over_soon() {
    let pool = || vec![Line::new(20.0, 15.0), Line::new(20.0, 15.0).then(5.0, 0.2)];
    let (missed, _) = late("20 -> 0.2 Mbit/s", pool(), 64 * MIB);
    assert!(missed < 4.0, "{missed} s late");
}

#[test]
fn a_lane_killed_at_any_time_costs_little() {
    let size = 64 * MIB;
    let whole = pools::naive(&vec![Line::new(20.0, 15.0); 3], size);
    for part in [0.10, 0.50, 0.95] {
        let lines = vec![
            Line::new(20.0, 15.0),
            Line::new(20.0, 15.0).lives(0.0, part * whole),
            Line::new(20.0, 15.0),
        ];
        let (missed, _) = late(&format!("killed at {part}"), lines, size);
        assert!(missed < 0.5, "{missed} s late");
    }
}

#[test]
fn a_lane_that_joins_gets_work_at_once() {
    let lines = vec![Line::new(20.0, 15.0), Line::new(20.0, 15.0).lives(10.0, 1e9)];
    let (missed, out) = late("joins", lines, 64 * MIB);
    assert!(starts(&out, 1)[0] < 10.1, "first lease at {}", starts(&out, 1)[0]);
    assert!(missed < 0.5, "{missed} s late");
}

#[test]
fn a_silent_lane_loses_its_leases_within_two_seconds_and_is_probed_ever_more_rarely() {
    let lines = vec![Line::new(20.0, 15.0), Line::new(20.0, 15.0).then(3.0, 0.0)];
    let (missed, out) = late("silent from 3 s", lines, 256 * MIB);
    assert!(missed < 1.0, "{missed} s late");
    let cancelled = out
        .log
        .iter()
        .find(|(_, a)| matches!(a, Action::Cancel { .. }))
        .unwrap()
        .0;
    assert!(cancelled < 5.3, "cancelled at {cancelled} s");
    let probes: Vec<f64> = starts(&out, 1).into_iter().filter(|t| *t > 3.1).collect();
    println!("probed at {probes:.1?}");
    assert!((2..8).contains(&probes.len()), "probed at {probes:?}");
    assert!(
        probes.windows(3).all(|w| w[2] - w[1] > w[1] - w[0]),
        "probed at {probes:?}"
    );
}

#[test]
fn a_lane_that_never_brings_a_byte_holds_nothing_up() {
    let (missed, _) = late(
        "mute",
        vec![Line::new(20.0, 15.0), Line::new(0.0, 15.0)],
        64 * MIB,
    );
    assert!(missed < 1.0, "{missed} s late");
}

#[test]
fn when_all_lanes_are_silent_leases_are_kept() {
    let line = || Line::new(20.0, 15.0).then(3.0, 0.0).then(13.0, 20.0);
    let (missed, out) = late("all silent for 10 s", vec![line(), line(), line()], 64 * MIB);
    let busy = out.log.iter().filter(|(t, _)| (3.2..13.0).contains(t)).count();
    assert!(busy <= 3, "{busy} actions while nothing could be done");
    assert!(missed < 1.0, "{missed} s late");
}

#[test]
fn a_lane_whose_connections_are_dead_gets_new_ones_even_if_it_is_alone() {
    let (_, out) = late(
        "alone and silent",
        vec![Line::new(20.0, 15.0).then(3.0, 0.0).then(40.0, 20.0)],
        16 * MIB,
    );
    let again = starts(&out, 0)
        .into_iter()
        .filter(|t| (3.1..40.0).contains(t))
        .count();
    assert!((1..=6).contains(&again), "{again} restarts");
}

#[test]
fn a_hopeless_lane_does_not_slow_the_others() {
    let size = 8 * MIB;
    let without = Sim::new(&[Line::new(50.0, 10.0)], size, 1).run(100.0).seconds;
    let (_, out) = late(
        "hopeless",
        vec![Line::new(50.0, 10.0), Line::new(0.5, 150.0)],
        size,
    );
    println!("without it {without:.2} s");
    assert!(
        out.seconds <= 1.03 * without,
        "{} s, without it {without} s",
        out.seconds
    );
}

#[test]
fn no_race_runs_onto_a_metered_lane() {
    let mut metered = Line::new(50.0, 10.0);
    metered.metered = true;
    let (_, out) = late(
        "metered",
        vec![Line::new(5.0, 30.0).then(4.0, 0.05), metered],
        32 * MIB,
    );
    assert_eq!(out.duplicated, 0);
}

/// Of a Mbit/s: one byte a second.
const DRIP: f64 = 8e-6;

#[test]
fn sec_b3_a_lender_that_shines_and_then_drips_costs_little_against_a_pool_without_it() {
    let honest = || vec![Line::new(20.0, 15.0), Line::new(12.0, 25.0)];
    let size = 64 * MIB;
    let without = Sim::new(&honest(), size, 1).run(1000.0).seconds;
    let end = pools::naive(&[honest(), vec![Line::new(50.0, 2.0)]].concat(), size);
    let liars = [
        ("drips from the start", Line::new(DRIP, 2.0)),
        ("drips from 2 s", Line::new(50.0, 2.0).then(2.0, DRIP)),
        (
            "drips just before the end",
            Line::new(50.0, 2.0).then(0.99 * end, DRIP),
        ),
        ("drips and shines in turn", {
            let turn = |line: Line, n: u32| {
                let at = f64::from(4 * n);
                line.then(at + 1.0, DRIP).then(at + 4.0, 50.0)
            };
            (0..20).fold(Line::new(50.0, 2.0), turn)
        }),
        (
            "shines and is never there for the last piece",
            Line::new(50.0, 2.0).lives(0.0, 0.97 * end),
        ),
    ];
    for (what, liar) in liars {
        let pool = [honest(), vec![liar]].concat();
        let out = Sim::new(&pool, size, 1).run(1000.0);
        println!("{what}: {:.2} s, without it {without:.2} s", out.seconds);
        assert!(
            out.seconds <= 1.15 * without + 5.0,
            "{what}: {} s, {without} s",
            out.seconds
        );
    }
}

#[test]
fn sec_b4_none_of_three_or_more_equal_lenders_carries_more_than_half() {
    for seed in 0..300 {
        let mut random = pools::Random(seed + 1);
        let equal = 3 + (random.next() % 4) as usize;
        let line = Line::new(random.log(2.0, 200.0), random.between(1.0, 60.0));
        let size = MIB * (16 + random.next() % 240);
        let out = Sim::new(&vec![line; equal], size, seed).run(10_000.0);
        let most = out.by_lane.iter().max().copied().unwrap_or_default();
        assert!(
            2 * most <= size,
            "seed {seed}: one of {equal} carried {most} of {size} bytes"
        );
    }
}
