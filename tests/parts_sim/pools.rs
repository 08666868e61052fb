//! Random households with something to upload.

use crate::sim::pools::Random;
use crate::sim::{Line, MBIT};

const MIB: f64 = 1048576.0;
/// Longest upload that is simulated, in seconds were it cut at will.
const LONGEST: f64 = 60.0;
/// Items of which the optimum is computed, and lanes.
const SMALL: (u64, u64) = (10, 4);

/// What is uploaded.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// One file, with the least part.
    Carved {
        total: u64,
        least: u64,
    },
    Fixed {
        sizes: Vec<u64>,
    },
}

impl Load {
    pub(crate) fn total(&self) -> u64 {
        match self {
            Self::Carved { total, .. } => *total,
            Self::Fixed { sizes } => sizes.iter().sum(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) lines: Vec<Line>,
    pub(crate) load: Load,
}

/// A file of up to 1 GiB over 1 to 8 lanes.
pub(crate) fn carved(seed: u64, lively: bool) -> Pool {
    let mut r = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let count = 1 + r.next() % 8;
    let lines = lanes(&mut r, count);
    let least = if r.unit() < 0.75 { 5.0 * MIB } else { MIB };
    let total = (r.log(least, 1024.0 * MIB)).min(LONGEST * sum(&lines));
    finish(
        r,
        lines,
        lively,
        Load::Carved {
            total: total as u64,
            least: least as u64,
        },
    )
}

/// So few items and lanes that the optimum can be found.
pub(crate) fn few(seed: u64, lively: bool) -> Pool {
    let mut r = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let (lanes_count, count) = (1 + r.next() % SMALL.1, 1 + r.next() % SMALL.0);
    items(r, lanes_count, count, lively)
}

/// 11 to 400 items.
pub(crate) fn many(seed: u64, lively: bool) -> Pool {
    let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c17));
    let lanes_count = 1 + r.next() % 8;
    let count = r.log(11.0, 400.0) as u64;
    items(r, lanes_count, count, lively)
}

fn items(mut r: Random, lanes_count: u64, count: u64, lively: bool) -> Pool {
    let lines = lanes(&mut r, lanes_count);
    // Equal parts, files of one kind, or files of all sizes.
    let spread = match r.next() % 3 {
        0 => 1.0,
        1 => 4.0,
        _ => 200.0,
    };
    let mean = r.between(4.0, LONGEST) * sum(&lines) / count as f64;
    let mut sizes: Vec<f64> = (0..count).map(|_| r.log(1.0, spread)).collect();
    let scale = mean * count as f64 / sizes.iter().sum::<f64>();
    sizes.iter_mut().for_each(|s| *s *= scale);
    let sizes = sizes.into_iter().map(|s| s as u64).collect();
    finish(r, lines, lively, Load::Fixed { sizes })
}

fn lanes(r: &mut Random, count: u64) -> Vec<Line> {
    (0..count)
        .map(|_| Line::new(r.log(1.0, 50.0), r.log(5.0, 100.0)))
        .collect()
}

fn sum(lines: &[Line]) -> f64 {
    lines.iter().map(|l| l.rate(0.0)).sum()
}

/// Lively lanes wobble (a fifth up or down is usual), or change for good to anything from 0.4 to twice their rate.
fn finish(mut r: Random, mut lines: Vec<Line>, lively: bool, load: Load) -> Pool {
    let expected = load.total() as f64 / sum(&lines);
    for line in lines.iter_mut().filter(|_| lively) {
        let base = line.rate(0.0);
        match r.next() % 3 {
            0 => {}
            1 => {
                let (mut t, mut x) = (0.0, 0.0f64);
                line.rates.clear();
                while t < 5.0 * expected + 60.0 {
                    x = 0.9 * x + 0.1 * r.normal();
                    line.rates.push((t, base * x.exp()));
                    t += 0.5;
                }
            }
            _ => line
                .rates
                .push((r.between(0.0, expected), base * r.log(0.4, 2.0))),
        }
    }
    Pool { lines, load }
}

/// The issue's lanes: 12, 8, 6 and 4 Mbit/s upstream at 40 ms.
pub(crate) fn issue() -> Vec<Line> {
    [12.0, 8.0, 6.0, 4.0].map(|mbit| Line::new(mbit, 40.0)).to_vec()
}

/// 200 files from 10 kB to 5 MB; log-uniform or uniform.
pub(crate) fn files(seed: u64, log: bool) -> Vec<u64> {
    let mut r = Random(seed);
    let mut one = || {
        if log {
            r.log(10e3, 5e6)
        } else {
            r.between(10e3, 5e6)
        }
    };
    (0..200).map(|_| one() as u64).collect()
}

/// Bytes a second of all lanes together.
pub(crate) fn rate(lines: &[Line]) -> f64 {
    let sum = sum(lines);
    assert!(sum > MBIT / 1000.0);
    sum
}
