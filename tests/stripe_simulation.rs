//! Whole transfers over a simulated network: figures against the ideal, and what happens when lanes misbehave.

mod sim;

use sim::pools::{self, Pool};
use sim::{Line, Sim};

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
    ]
}

#[test]
fn the_lab_pools_reach_97_percent_of_the_sum_of_their_links() {
    let mut failed = Vec::new();
    for (name, lines) in named() {
        for size in [64 * MIB, 256 * MIB] {
            let pool = Pool {
                lines: lines.clone(),
                size,
            };
            let out = Sim::new(&lines, size, 1).run(1000.0);
            let start = lines.iter().map(|l| 4.0 * l.rtt).fold(f64::INFINITY, f64::min);
            let (ideal, physical) = (pools::ideal(&pool), pools::physical(&lines, size, 2));
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
            if reached < 0.97 {
                failed.push((name, size / MIB, reached));
            }
        }
    }
    assert!(failed.is_empty(), "below 0.97: {failed:?}");
}

struct Row {
    seed: u64,
    strict: f64,
    physical: f64,
    best: f64,
    duplicated: f64,
    waste: f64,
    size: u64,
    seconds: f64,
}

fn run_pool(seed: u64) -> Row {
    let pool = pools::random(seed);
    let ideal = pools::ideal(&pool);
    let physical = pools::physical(&pool.lines, pool.size, 2);
    let out = Sim::new(&pool.lines, pool.size, seed).run(40.0 * ideal + 100.0);
    let best = pool
        .lines
        .iter()
        .map(|l| pools::physical(std::slice::from_ref(l), pool.size, 1))
        .fold(f64::INFINITY, f64::min);
    Row {
        seed,
        strict: out.seconds / ideal,
        physical: out.seconds / physical,
        best: out.seconds / best,
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
        "{what:58} median {:.4}  p90 {:.4}  p99 {:.4}  max {:.4}  n {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        of.len()
    );
    (at(0.5), at(0.99), at(1.0))
}

#[test]
fn trace_one() {
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
    println!("{:?}", sim.run(1000.0));
}

#[test]
fn random_pools_finish_close_to_the_ideal() {
    let count: u64 = std::env::var("POOLS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(1000);
    let half = std::thread::spawn(move || (0..count / 2).map(run_pool).collect::<Vec<_>>());
    let mut rows: Vec<Row> = (count / 2..count).map(run_pool).collect();
    rows.extend(half.join().unwrap());
    quantiles(
        "time / (start-up + bytes / sum of rates)",
        rows.iter().map(|r| r.strict).collect(),
    );
    quantiles(
        "time / what the connections can",
        rows.iter().map(|r| r.physical).collect(),
    );
    for from in [1.0, 3.0, 10.0] {
        let long = || rows.iter().filter(move |r| r.seconds >= from);
        quantiles(
            &format!("... strict, transfers of {from} s and more"),
            long().map(|r| r.strict).collect(),
        );
        quantiles(
            &format!("... connections, transfers of {from} s and more"),
            long().map(|r| r.physical).collect(),
        );
    }
    quantiles(
        "time / best lane alone, one connection",
        rows.iter().map(|r| r.best).collect(),
    );
    quantiles(
        "duplicated bytes / file",
        rows.iter().map(|r| r.duplicated).collect(),
    );
    quantiles(
        "wasted wire bytes / file, from 64 MiB",
        rows.iter()
            .filter(|r| r.size >= 64 * MIB)
            .map(|r| r.waste)
            .collect(),
    );
    quantiles(
        "wasted wire bytes / file, all",
        rows.iter().map(|r| r.waste).collect(),
    );
    rows.sort_by(|a, b| b.physical.total_cmp(&a.physical));
    for r in rows.iter().take(12) {
        println!(
            "slow: seed {} size {} s {:.2} physical {:.3} strict {:.3} best {:.3} waste {:.4}",
            r.seed,
            r.size >> 20,
            r.seconds,
            r.physical,
            r.strict,
            r.best,
            r.waste
        );
    }
    rows.sort_by(|a, b| b.best.total_cmp(&a.best));
    for r in rows.iter().take(6) {
        println!(
            "worse than best lane: seed {} size {} s {:.2} physical {:.3} strict {:.3} best {:.3}",
            r.seed,
            r.size >> 20,
            r.seconds,
            r.physical,
            r.strict,
            r.best
        );
    }
    rows.sort_by(|a, b| b.waste.total_cmp(&a.waste));
    for r in rows.iter().filter(|r| r.size >= 64 * MIB).take(6) {
        println!(
            "wasteful: seed {} size {} s {:.2} physical {:.3} waste {:.4} dup {:.4}",
            r.seed,
            r.size >> 20,
            r.seconds,
            r.physical,
            r.waste,
            r.duplicated
        );
    }
}
