//! Whole uploads over a simulated network: figures against the best possible assignment, and what happens when lanes
//! misbehave.

#![expect(clippy::print_stdout, reason = "the figures are what this is for")]

mod parts_sim;
#[expect(dead_code, reason = "the downloads' half of it")]
mod sim;

use parts_sim::optimum;
use parts_sim::pools::{self, Load, Pool};
use parts_sim::{Outcome, Sim, carved, fixed};
use sim::Line;

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

#[test]
fn random_uploads_finish_close_to_the_best_possible_assignment() {
    for hints in [false, true] {
        for lively in [false, true] {
            let what = |kind: &str| {
                format!(
                    "{kind}, {}, {}",
                    if lively { "lively" } else { "steady" },
                    if hints { "hints" } else { "unknown" }
                )
            };
            all(&what("carved"), 400, hints, |s| pools::carved(s, lively));
            all(&what("few"), 400, hints, |s| pools::few(s, lively));
            all(&what("many"), 200, hints, |s| pools::many(s, lively));
        }
    }
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
