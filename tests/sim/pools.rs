//! Random households, and what the best possible scheduler could do with them.

use super::{Conn, Line, MBIT, STEP, flow};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn unit(&mut self) -> f64 {
        self.next() as f64 / u64::MAX as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub(crate) fn log(&mut self, low: f64, high: f64) -> f64 {
        (self.between(low.ln(), high.ln())).exp()
    }

    /// About normal, mean 0, deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// A pool and a file of bytes for it.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) lines: Vec<Line>,
    pub(crate) size: u64,
}

/// Longest transfer that is simulated, in seconds of the ideal.
const LONGEST: f64 = 40.0;

/// 1 to 16 lanes of 0.5 to 100 Mbit/s and 5 to 150 ms; 4 MiB to 1 GiB. Half of the pools hold still, the others
/// wobble, change, stall for a moment, come and go.
pub(crate) fn random(seed: u64) -> Pool {
    let mut r = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let count = 1 + (r.next() % 16) as usize;
    let mut size = r.log(4.0 * 1048576.0, 1024.0 * 1048576.0);
    let bases: Vec<f64> = (0..count).map(|_| r.log(0.5, 100.0)).collect();
    let sum: f64 = bases.iter().sum::<f64>() * MBIT;
    size = size.min(sum * LONGEST);
    let expected = size / sum;
    let lively = r.unit() < 0.5;
    let mut lines: Vec<Line> = bases.iter().map(|&b| Line::new(b, r.log(5.0, 150.0))).collect();
    if lively {
        for (line, &base) in lines.iter_mut().zip(&bases) {
            script(line, base, expected, &mut r);
        }
        // Somebody has to be there from begin to end: the fastest, or some transfers would last for hours.
        let fastest = bases
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map_or(0, |(i, _)| i);
        (lines[fastest].up, lines[fastest].down) = (0.0, f64::INFINITY);
    }
    Pool {
        lines,
        size: size as u64,
    }
}

fn script(line: &mut Line, base: f64, expected: f64, r: &mut Random) {
    let end = 20.0 * expected + 60.0;
    let mut rates = vec![(0.0, base)];
    match r.next() % 3 {
        0 => {}
        1 => {
            let (mut t, mut x) = (0.0, 0.0f64);
            while t < end {
                x = 0.9 * x + 0.1 * r.normal();
                rates.push((t, base * x.exp()));
                t += 0.5;
            }
        }
        _ => {
            for _ in 0..2 {
                rates.push((r.between(0.0, 1.2 * expected), base * r.log(0.3, 2.0)));
            }
            rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
    }
    if r.unit() < 0.15 {
        let from = r.between(0.0, expected);
        let to = from + r.between(0.3, 1.5);
        let resume = rates.iter().rev().find(|x| x.0 <= to).map_or(base, |x| x.1);
        rates.retain(|x| x.0 < from || x.0 > to);
        rates.extend([(from, 0.0), (to, resume)]);
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    line.rates = rates.into_iter().map(|(t, r)| (t, r * MBIT)).collect();
    if r.unit() < 0.15 {
        line.up = r.between(0.0, expected);
    }
    if r.unit() < 0.15 {
        line.down = line.up + r.between(0.1, expected.max(0.2));
    }
}

/// Round trips of a lane's start-up, from joining to its first byte: TCP, TLS, request and answer.
pub(crate) const START_UP_ROUND_TRIPS: f64 = 4.0;

/// Seconds of the ideal, `start-up + bytes / Σ rates`, where each lane has its own start-up: the T with
/// `Σ over lanes ∫ rate dt = bytes`, each integral from the lane's own first possible byte (joining, handshakes, request)
/// to T. A lane that joins late counts from then, one that vanishes until then, and rates are those of the script. It
/// leaves out slow start, the silence between requests and all ignorance: no scheduler can be sooner.
pub(crate) fn ideal(lines: &[Line], size: u64) -> f64 {
    fluid(lines, size, |l| l.up + START_UP_ROUND_TRIPS * l.rtt)
}

/// The same, as if all lanes could bring bytes as soon as the first of them can: what no lane farther away than the
/// nearest could ever do, but the simplest thing to compare with.
pub(crate) fn naive(lines: &[Line], size: u64) -> f64 {
    let first = |l: &Line| l.up + START_UP_ROUND_TRIPS * l.rtt;
    let start = lines.iter().map(first).fold(f64::INFINITY, f64::min);
    fluid(lines, size, |_| start)
}

fn fluid(lines: &[Line], size: u64, from: impl Fn(&Line) -> f64) -> f64 {
    let starts: Vec<f64> = lines.iter().map(from).collect();
    let (mut t, mut moved) = (0.0, 0.0);
    while moved < size as f64 && t < 1e5 {
        let flowing = lines.iter().zip(&starts).filter(|(_, start)| t >= **start);
        moved += flowing.map(|(l, _)| l.rate(t)).sum::<f64>() * STEP;
        t += STEP;
    }
    t
}

/// Seconds with endless requests on `slots` connections of each lane from its start: what these connections can
/// carry, handshakes and slow start included. No scheduler could be sooner.
pub(crate) fn physical(lines: &[Line], size: u64, slots: usize) -> f64 {
    carried(lines, size, slots, 1e5)
}

/// Seconds of the best lane alone with one connection, at most `limit`.
pub(crate) fn best_alone(lines: &[Line], size: u64, limit: f64) -> f64 {
    let time = |best: f64, line: &Line| best.min(carried(std::slice::from_ref(line), size, 1, best));
    lines.iter().fold(limit, time)
}

fn carried(lines: &[Line], size: u64, slots: usize, limit: f64) -> f64 {
    let endless = |line: &Line| Conn {
        left: 1e18,
        ..Conn::new(line.up + START_UP_ROUND_TRIPS * line.rtt)
    };
    let mut conns: Vec<Vec<Conn>> = lines.iter().map(|l| vec![endless(l); slots]).collect();
    let (mut t, mut moved) = (0.0, 0.0);
    while moved < size as f64 && t < limit {
        for (line, conns) in lines.iter().zip(&mut conns) {
            flow(line, t, conns, &mut 0.0);
            moved += conns.iter().map(|c| c.rate).sum::<f64>() * STEP;
        }
        t += STEP;
    }
    t
}
