//! How a file is carved: how much of what is free each lane is to send, and which piece of it comes next.
//!
//! A lane sends nothing, or at least the least part; only one may send less, the end of the file. So the best time T is
//! the smallest with `Σ room(T) ≥ free` over the lanes whose room is at least that: found by bisection, as no lane's room
//! shrinks with T. Lanes that could not send the least part by then stay idle: they would be late.

use crate::types::ByteRange;
use crate::types::LaneId;

use super::super::plan::common_finish;
use super::PartsConfig;
use super::outlook::Outlook;
use super::outlook::View;
use super::stock::Carved;

/// Halvings of the interval in which T lies: far below a millisecond in an hour.
const HALVINGS: usize = 40;
/// Shares are computed in floating point: so many bytes less than the least part are the least part.
const ROUNDING: f64 = 8.0;

/// The piece that the lane sends next; `None`: it would be late with anything.
pub(super) fn next(
    carved: &Carved,
    outlook: &Outlook,
    lane: &View,
    config: &PartsConfig,
) -> Option<ByteRange> {
    let free = carved.free.len() as f64;
    let least = carved.least as f64;
    let tail = carved.free.range_at(carved.total.saturating_sub(1));
    let trusted = outlook.trusted();
    if lane.probation {
        let in_time = lane.finish(least) <= best_time(&trusted, free, least, tail.is_some());
        return in_time.then(|| best_gap(carved, least, false)).flatten();
    }
    let share = shares(&trusted, free + outlook.late_bytes(), least, tail.is_some())
        .into_iter()
        .find_map(|(id, share)| (id == lane.id).then_some(share));
    let share = match share {
        Some(share) => share,
        None if lane.known => return None,
        // Nothing is known of it: perhaps it is the fastest of all. What it is late with is taken from it.
        None if outlook.common_finish(free) > EXPLORE => least,
        None => return None,
    };
    if !lane.known {
        return best_gap(carved, least.min(share), false);
    }
    if share < least - ROUNDING {
        return tail.map(|gap| carved.end_piece(gap, share as u64));
    }
    if share < 2.0 * least {
        return best_gap(carved, share.max(least), true);
    }
    let longest = (config.longest.as_secs_f64() * lane.rate).max(least);
    let size = (share / config.guide).clamp(least, share - least).min(longest);
    best_gap(carved, size, false)
}

/// When what is free, and parts of these sizes, could be stored.
pub(super) fn finish(carved: &Carved, outlook: &Outlook, extra: &[f64]) -> f64 {
    let bytes = carved.free.len() as f64 + extra.iter().sum::<f64>();
    let tail = carved.free.range_at(carved.total.saturating_sub(1));
    let greatest = extra.iter().copied().fold(0.0, f64::max);
    let soonest = outlook
        .lanes
        .iter()
        .map(|v| v.finish(greatest))
        .fold(f64::INFINITY, f64::min);
    let common = best_time(&outlook.lanes, bytes, carved.least as f64, tail.is_some());
    if extra.is_empty() {
        common
    } else {
        common.max(soonest)
    }
}

/// An unmeasured lane is tried where all would not be through within so many seconds anyway.
pub(super) const EXPLORE: f64 = 2.0;

/// The lanes that could send at least `least` by then, and the best of the others where the `tail` is free.
fn able(lanes: &[View], by: f64, least: f64, tail: bool) -> Vec<&View> {
    let mut chosen: Vec<&View> = lanes.iter().filter(|v| v.room(by) >= least).collect();
    if tail {
        let small = lanes.iter().filter(|v| v.room(by) < least && v.room(by) > 0.0);
        chosen.extend(small.max_by(|a, b| a.room(by).total_cmp(&b.room(by))));
    }
    chosen
}

/// The T of the module's words.
fn best_time(lanes: &[View], bytes: f64, least: f64, tail: bool) -> f64 {
    let alone = lanes
        .iter()
        .map(|v| v.finish(bytes))
        .fold(f64::INFINITY, f64::min);
    if !alone.is_finite() {
        return alone;
    }
    let (mut low, mut high) = (0.0, alone);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        let sum: f64 = able(lanes, middle, least, tail)
            .iter()
            .map(|v| v.room(middle))
            .sum();
        if sum >= bytes { high = middle } else { low = middle }
    }
    high * (1.0 + 1e-9)
}

/// How many bytes each lane is to send so that all are through as soon as possible. At most one has less than `least`.
fn shares(lanes: &[View], free: f64, least: f64, tail: bool) -> Vec<(LaneId, f64)> {
    let by = best_time(lanes, free, least, tail);
    if !by.is_finite() {
        return Vec::new();
    }
    let mut chosen = able(lanes, by, least, tail);
    // The one that comes in just at T would else take more than there is.
    chosen.sort_by(|a, b| b.room(by).total_cmp(&a.room(by)));
    let mut sum = 0.0;
    chosen.retain(|v| {
        let wanted = sum < free;
        sum += v.room(by);
        wanted
    });
    level(&chosen, free, least, tail)
}

/// Spreads the bytes over these lanes so that all are through at the same time, but none has less than `least`; except one
/// where the `tail` is free.
fn level(chosen: &[&View], free: f64, least: f64, tail: bool) -> Vec<(LaneId, f64)> {
    let mut open: Vec<&View> = chosen.to_vec();
    let mut shares = Vec::new();
    let mut left = free;
    loop {
        let by = common_finish(open.iter().map(|v| (v.start + v.answer, v.rate)), left);
        let mut short: Vec<&View> = open
            .iter()
            .copied()
            .filter(|v| v.room(by) < least - ROUNDING)
            .collect();
        short.sort_by(|a, b| a.room(by).total_cmp(&b.room(by)));
        // The last lane takes what is left, however little.
        let spared = usize::from(tail || short.len() == open.len());
        let Some(pinned) = short.get(spared).map(|v| v.id) else {
            let rooms = open.iter().map(|v| (v.id, v.room(by)));
            shares.extend(rooms.filter(|(_, room)| *room > 0.0));
            return shares;
        };
        open.retain(|v| v.id != pinned);
        let share = least.min(left);
        left -= share;
        shares.push((pinned, share));
    }
}

/// A piece of about `size` bytes of some gap: as near as possible to it where that is to be `exact`; else small gaps that
/// are not longer go first, so that they are gone when it matters.
fn best_gap(carved: &Carved, size: f64, exact: bool) -> Option<ByteRange> {
    let pieces = carved.free.iter().map(|gap| carved.piece(gap, size as u64));
    let off = |piece: &ByteRange| {
        let len = piece.len() as f64;
        if exact || len > size {
            (len - size).abs()
        } else {
            -1.0 / len.max(1.0)
        }
    };
    pieces.min_by(|a, b| off(a).total_cmp(&off(b)))
}
