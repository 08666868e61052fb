//! Whole uploads over a simulated network: figures against the best possible assignment, and what happens when lanes
//! misbehave.

#![expect(clippy::print_stdout, reason = "the figures are what this is for")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod parts_sim;
#[expect(dead_code, reason = "the downloads' half of it")]
mod sim;

use parts_sim::optimum;
use parts_sim::pools::{self, Load, Pool};
use parts_sim::{Outcome, Sim, carved, fixed};
use sim::Line;
use tributary::types::LaneId;

const MIB: u64 = 1 << 20;
const GRAIN: u64 = 64 << 10;
const LEAST: u64 = 5 * MIB;

/// One pool's figures.
struct Row {
    seed: u64,
    best: f64,
    /// The best is the optimum, and not only a lower bound.
    exact: bool,
    seconds: f64,
    in_vain: f64,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.seconds / self.best
    }
}

fn work(load: &Load) -> tributary::stripe::Work {
    match load {
        Load::Carved { total, least } => carved(*total, GRAIN, *least),
        Load::Fixed { sizes } => fixed(sizes),
    }
}

fn best(pool: &Pool) -> (f64, bool) {
    match &pool.load {
        Load::Carved { total, least } => (optimum::carved(&pool.lines, *total, *least), true),
        Load::Fixed { sizes } => optimum::fixed(&pool.lines, sizes),
    }
}

fn run(seed: u64, pool: &Pool, hints: bool) -> Row {
    let (best, exact) = best(pool);
    let out = Sim::new(&pool.lines, work(&pool.load), hints, seed).run(20.0 * best + 200.0);
    Row {
        seed,
        best,
        exact,
        seconds: out.seconds,
        in_vain: out.in_vain as f64 / pool.load.total() as f64,
    }
}

fn quantile(of: &mut [f64], q: f64) -> f64 {
    of.sort_by(f64::total_cmp);
    of[((of.len() - 1) as f64 * q).round() as usize]
}

/// Prints what rows show that lie in the range of optimal times; gives the median and the 99th percentile.
fn figures(what: &str, rows: &[Row], from: f64, to: f64) -> (f64, f64) {
    let of: Vec<&Row> = rows.iter().filter(|r| (from..to).contains(&r.best)).collect();
    if of.is_empty() {
        return (1.0, 1.0);
    }
    let mut ratios: Vec<f64> = of.iter().map(|r| r.ratio()).collect();
    let mut in_vain: Vec<f64> = of.iter().map(|r| r.in_vain).collect();
    let worst = of.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio())).unwrap();
    let (median, p99) = (quantile(&mut ratios, 0.5), quantile(&mut ratios, 0.99));
    println!(
        "{what:28} best {from:2}..{to:3} s: median {median:.4} p90 {:.4} p99 {p99:.4} max {:.4} (seed {}) of {:4}, {:4} optima; in vain \
         mean {:.4} p99 {:.4}",
        quantile(&mut ratios, 0.9),
        worst.ratio(),
        worst.seed,
        of.len(),
        of.iter().filter(|r| r.exact).count(),
        in_vain.iter().sum::<f64>() / of.len() as f64,
        quantile(&mut in_vain, 0.99),
    );
    (median, p99)
}

fn all(what: &str, count: u64, hints: bool, pool: impl Fn(u64) -> Pool + Sync) -> Vec<Row> {
    let part = |from: u64, to: u64| (from..to).map(|s| run(s, &pool(s), hints)).collect::<Vec<_>>();
    let rows = std::thread::scope(|scope| {
        let half = scope.spawn(|| part(0, count / 2));
        let mut rows = part(count / 2, count);
        rows.extend(half.join().unwrap());
        rows
    });
    for (from, to) in [(0.0, 2.0), (2.0, 8.0), (8.0, 999.0)] {
        figures(what, &rows, from, to);
    }
    rows
}

#[test]
#[ignore = "shows the decisions for one pool: TRACE=carved|few|many|issue:<seed>[:lively][:hints]"]
fn decisions_of_one_pool() {
    let Ok(which) = std::env::var("TRACE") else { return };
    let words: Vec<&str> = which.split(':').collect();
    let (seed, lively) = (words[1].parse().unwrap(), words.contains(&"lively"));
    let pool = match words[0] {
        "issue" => Pool {
            lines: pools::issue(),
            load: Load::Carved {
                total: 96 * MIB,
                least: LEAST,
            },
        },
        "carved" => pools::carved(seed, lively),
        "few" => pools::few(seed, lively),
        _ => pools::many(seed, lively),
    };
    for (i, l) in pool.lines.iter().enumerate() {
        let rates: Vec<_> = l.rates.iter().take(6).map(|r| (r.0, r.1 / 125000.0)).collect();
        println!("{i} rtt {:.3} rates {rates:?}", l.rtt);
    }
    println!("{:?}\nbest {:?}", pool.load, best(&pool));
    let mut sim = Sim::new(&pool.lines, work(&pool.load), words.contains(&"hints"), seed);
    sim.trace = true;
    println!("{:.3}", sim.run(10_000.0).seconds);
}

/// Pools of each kind: a file, few items, many items. Steady lanes, and lively ones.
const STEADY: [u64; 3] = [1000, 700, 400];
const LIVELY: [u64; 3] = [300, 200, 100];

/// Uploads of all kinds; gives their rows.
fn uploads(counts: [u64; 3], lively: bool, hints: bool) -> Vec<Row> {
    let how = if lively { "lively" } else { "steady" };
    let known = if hints { "hints" } else { "unknown" };
    let what = |kind: &str| format!("{kind}, {how}, {known}");
    let mut rows = all(&what("carved"), counts[0], hints, |s| pools::carved(s, lively));
    rows.extend(all(&what("few"), counts[1], hints, |s| pools::few(s, lively)));
    rows.extend(all(&what("many"), counts[2], hints, |s| pools::many(s, lively)));
    rows
}

/// The promise: at most 1.05 times the best possible assignment at the median and 1.2 times at the 99th percentile. The best
/// knows all rates in advance; so it is kept in full where the scheduler has hints of them, for uploads of 8 s or more.
#[test]
fn random_uploads_over_lanes_of_known_rates_finish_close_to_the_best_possible_assignment() {
    let rows = uploads(STEADY, false, true);
    assert!(rows.len() >= 2000);
    let (median, p99) = figures("the promise, hints", &rows, 8.0, 999.0);
    assert!(median <= 1.05 && p99 <= 1.2, "{median} {p99}");
    let rows = uploads(LIVELY, true, true);
    let (median, p99) = figures("lively, hints", &rows, 8.0, 999.0);
    assert!(median <= 1.05 && p99 <= 1.5, "{median} {p99}");
}

/// Where nothing is known, the first parts are given blindly, and the least part of a file can take a slow lane longer than
/// the whole upload should: that is made up for in uploads of 20 s or more, and mostly in those of 8 s.
#[test]
fn random_uploads_over_unknown_lanes_finish_close_to_the_best_possible_assignment() {
    let rows = uploads(STEADY, false, false);
    assert!(rows.len() >= 2000);
    let (median, p99) = figures("unknown", &rows, 8.0, 999.0);
    assert!(median <= 1.05 && p99 <= 1.35, "{median} {p99}");
    let (median, p99) = figures("the promise, unknown", &rows, 20.0, 999.0);
    assert!(median <= 1.05 && p99 <= 1.2, "{median} {p99}");
    let rows = uploads(LIVELY, true, false);
    let (median, p99) = figures("lively, unknown", &rows, 8.0, 999.0);
    assert!(median <= 1.05 && p99 <= 1.6, "{median} {p99}");
}

fn reached(lines: &[Line], work: tributary::stripe::Work, total: u64) -> (f64, Outcome) {
    let out = Sim::new(lines, work, false, 1).run(1000.0);
    (total as f64 / pools::rate(lines) / out.seconds, out)
}

#[test]
fn the_issues_file_reaches_95_percent_of_the_sum() {
    let lines = pools::issue();
    let total = 96 * MIB;
    let (part, out) = reached(&lines, carved(total, GRAIN, LEAST), total);
    println!(
        "96 MiB: {part:.4} of the sum; the optimum {:.4}; {} parts",
        total as f64 / pools::rate(&lines) / optimum::carved(&lines, total, LEAST),
        out.sends.len()
    );
    assert!(part >= 0.95, "{part}");
}

#[test]
fn the_issues_files_reach_93_percent_of_the_sum() {
    let lines = pools::issue();
    for log in [true, false] {
        for seed in 1..6 {
            let sizes = pools::files(seed, log);
            let total = sizes.iter().sum();
            let (part, out) = reached(&lines, fixed(&sizes), total);
            println!(
                "200 files, log {log}: {} MB {part:.4} of the sum; the bound {:.4}; {} connections",
                total / 1_000_000,
                total as f64 / pools::rate(&lines) / optimum::fluid(&lines, total),
                out.connections,
            );
            assert!(part >= 0.93, "{part}");
        }
    }
}

/// The fastest of the issue's lanes goes, or falls silent, at a part of the time.
#[test]
fn a_lane_that_dies_costs_little_more_than_what_it_had_in_flight() {
    let total = 96 * MIB;
    let whole = optimum::carved(&pools::issue(), total, LEAST);
    for part in [0.10, 0.50, 0.95] {
        for silent in [false, true] {
            let mut lines = pools::issue();
            lines[0] = if silent {
                lines[0].clone().then(part * whole, 0.0)
            } else {
                lines[0].clone().lives(0.0, part * whole)
            };
            let best = optimum::carved(&lines, total, LEAST);
            let out = Sim::new(&lines, carved(total, GRAIN, LEAST), false, 1).run(1000.0);
            let dead = LaneId(0);
            let had: Vec<u64> = out
                .sends
                .iter()
                .filter(|s| s.1 == dead)
                .map(|s| s.2.range.len())
                .collect();
            let lost: u64 = had.iter().rev().take(2).sum();
            let again = out.sends.iter().map(|s| s.2.range.len()).sum::<u64>() - total;
            println!(
                "dies at {part}, silent {silent}: {:.2} s, the optimum {best:.2} s; sent again {again} of {lost} bytes it had last; {} \
                 cancelled",
                out.seconds, out.cancels
            );
            // What it had is lost, and the others need so much longer.
            let longer = lost as f64 / pools::rate(&lines[1..]);
            assert!(
                out.seconds <= 1.1 * best + longer + 3.0,
                "{} s, {best} s",
                out.seconds
            );
        }
    }
}
