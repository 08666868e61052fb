//! The best any scheduler could do that knows everything in advance, and loses no time between parts.
//!
//! A lane can have stored `room(T)` bytes by T: all that its script's rates move from the end of its first handshakes until
//! an answer's time before T. Parts on one lane only have to fit into it together, so for known lanes the optimum is
//! - carved: the least T for which amounts of at least `least` (but one, the end of the file) sum up to the total;
//! - fixed: the least T for which the items can be packed into the rooms, found by branch and bound.

use super::{HANDSHAKE_ROUND_TRIPS, THINKS};
use crate::sim::Line;

/// To far less than a step of the simulation.
const HALVINGS: usize = 45;
const LATEST: f64 = 1e5;

/// What the lane can have stored by then.
fn room(line: &Line, by: f64) -> f64 {
    let from = line.up + HANDSHAKE_ROUND_TRIPS * line.rtt;
    let to = (by - line.rtt - THINKS).min(line.down);
    let ends = line.rates.iter().skip(1).map(|r| r.0).chain([f64::INFINITY]);
    let pieces = line.rates.iter().zip(ends);
    pieces
        .map(|(&(t, rate), end)| rate * (to.min(end) - from.max(t)).max(0.0))
        .sum()
}

fn least_time(enough: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while !enough(high) && high < LATEST {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if enough(middle) {
            high = middle
        } else {
            low = middle
        }
    }
    high
}

/// The time by which all lanes could have stored it, were it cut at will: the sum of the rates, less start-ups.
pub(crate) fn fluid(lines: &[Line], total: u64) -> f64 {
    least_time(|t| lines.iter().map(|l| room(l, t)).sum::<f64>() >= total as f64)
}

/// The optimum of a file whose parts have at least `least` bytes, but the last one.
pub(crate) fn carved(lines: &[Line], total: u64, least: u64) -> f64 {
    let least = least as f64;
    least_time(|t| {
        let rooms = || lines.iter().map(|l| room(l, t));
        let large: f64 = rooms().filter(|r| *r >= least).sum();
        let small = rooms().filter(|r| *r < least).fold(0.0, f64::max);
        large + small >= total as f64
    })
}

/// The optimum of items; the second value says whether it is exact or only a lower bound, because the search was given up.
pub(crate) fn fixed(lines: &[Line], sizes: &[u64]) -> (f64, bool) {
    let mut sizes: Vec<f64> = sizes.iter().map(|s| *s as f64).collect();
    sizes.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sizes.iter().sum();
    let (mut low, mut high) = (fluid(lines, total as u64), LATEST);
    if let Some(greatest) = sizes.first() {
        low = low.max(least_time(|t| lines.iter().any(|l| room(l, t) >= *greatest)));
    }
    let mut exact = true;
    let mut fits = |t: f64| {
        let mut rooms: Vec<f64> = lines.iter().map(|l| room(l, t)).collect();
        let mut nodes = 20_000;
        let found = pack(&sizes, &mut rooms, &mut nodes);
        exact &= found || nodes > 0;
        // Where the search was given up it counts as possible: the bound stays a lower one.
        found || nodes == 0
    };
    if fits(low) {
        return (low, exact);
    }
    while !fits(high.min(2.0 * low)) {
        low *= 2.0;
    }
    high = high.min(2.0 * low);
    while high - low > 1e-3 * low {
        let middle = (low + high) / 2.0;
        if fits(middle) { high = middle } else { low = middle }
    }
    (low, exact)
}

/// Whether the items, given from the greatest on, go into the rooms. Gives up when `nodes` are used up.
fn pack(sizes: &[f64], rooms: &mut [f64], nodes: &mut u32) -> bool {
    let Some((size, rest)) = sizes.split_first() else {
        return true;
    };
    // So many items go in if all are as small as the smallest.
    let least = sizes.last().copied().unwrap_or(0.0).max(1.0);
    let count: f64 = rooms.iter().map(|r| (r / least).floor()).sum();
    if *nodes == 0 || count < sizes.len() as f64 || rooms.iter().sum::<f64>() < sizes.iter().sum::<f64>() {
        return false;
    }
    *nodes -= 1;
    // Into the fullest first; two rooms alike are one.
    let mut order: Vec<usize> = (0..rooms.len()).filter(|i| rooms[*i] >= *size).collect();
    order.sort_by(|a, b| rooms[*a].total_cmp(&rooms[*b]));
    let mut last = f64::NAN;
    for i in order {
        if rooms[i] == last {
            continue;
        }
        last = rooms[i];
        rooms[i] -= size;
        let found = pack(rest, rooms, nodes);
        rooms[i] += size;
        if found {
            return true;
        }
    }
    false
}
