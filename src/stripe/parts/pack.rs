//! Which item a lane sends next: longest first, but none to a lane that would be late with it.
//!
//! Related machines with release times. Few items are packed as a whole, each time anew: longest processing time first
//! (each item to the lane that would have stored it soonest), then MULTIFIT (the smallest T for which first-fit
//! decreasing, the slowest lane first, packs everything), then moves and swaps off the lane that is through last. Of many
//! items the greatest is taken that fits into the lane's part of the common finish; the small ones are left to fill.

use super::super::plan::common_finish;
use super::LeaseId;
use super::carve::EXPLORE;
use super::outlook::Outlook;
use super::outlook::View;
use super::stock::Fixed;

/// Up to so many free items are packed as a whole.
const PACKED: usize = 160;
/// MULTIFIT's halvings: to a thousandth of the interval.
const HALVINGS: usize = 10;
/// Rounds of moves and swaps.
const IMPROVEMENTS: usize = 40;
/// Up to so many items moves and swaps are tried.
const IMPROVED: usize = 48;
/// An item's headers and framing, in bytes.
const OVERHEAD: f64 = 800.0;
/// An unmeasured lane's first item is at most this part of what is free, all lanes together ...
const FIRST_PARTS: f64 = 8.0;
/// ... or this many bytes: less can't be measured.
const FIRST_LEAST: f64 = 256.0 * 1024.0;

/// What a lane sends next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// Something free.
    Item(usize),
    /// A part that is late, once more.
    Late(LeaseId),
}

/// Whether the items are so few that all are packed, late ones with them.
pub(super) fn packs(fixed: &Fixed) -> bool {
    fixed.free.len() <= PACKED
}

/// The item the lane sends next; `None`: it would be late with any.
pub(super) fn next(fixed: &Fixed, outlook: &Outlook, lane: &View) -> Option<Next> {
    let lanes = outlook.trusted();
    if lane.probation {
        let least = fixed.free.first()?;
        let all = lanes.iter().map(|v| (v.start + v.answer, v.rate));
        let in_time = lane.finish(least.0 as f64) <= common_finish(all, fixed.free_bytes as f64);
        return in_time.then_some(Next::Item(least.1.0));
    }
    if !lane.known {
        return first(fixed, outlook).map(Next::Item);
    }
    if !packs(fixed) {
        return greatest_that_fits(fixed, outlook, lane).map(Next::Item);
    }
    let at = lanes.iter().position(|v| v.id == lane.id)?;
    let free = fixed
        .free
        .iter()
        .map(|f| (f.0 as f64 + OVERHEAD, Next::Item(f.1.0)));
    let late = outlook.late.iter().map(|l| (l.size, Next::Late(l.lease)));
    let mut items: Vec<(f64, Next)> = free.chain(late).collect();
    items.sort_by(|a, b| b.0.total_cmp(&a.0));
    let sizes: Vec<f64> = items.iter().map(|i| i.0).collect();
    let packing = pack(&sizes, &lanes);
    let own = items.iter().zip(&packing.lane_of).filter(|(_, l)| **l == at);
    own.into_iter().next().map(|(item, _)| item.1)
}

/// When what is free, and parts of these sizes, could be stored.
pub(super) fn finish(fixed: &Fixed, outlook: &Outlook, extra: &[f64]) -> f64 {
    let all = || {
        fixed
            .free
            .iter()
            .map(|f| f.0 as f64 + OVERHEAD)
            .chain(extra.iter().copied())
    };
    if !packs(fixed) {
        return outlook.common_finish(all().sum());
    }
    let mut sizes: Vec<f64> = all().collect();
    sizes.sort_by(|a, b| b.total_cmp(a));
    pack(&sizes, &outlook.lanes).finish
}

/// Something to measure a lane by.
fn first(fixed: &Fixed, outlook: &Outlook) -> Option<usize> {
    let some_known = outlook.lanes.iter().any(|v| v.known);
    if some_known && outlook.common_finish(fixed.free_bytes as f64) <= EXPLORE / 4.0 {
        return None;
    }
    let fair = fixed.free_bytes as f64 / (FIRST_PARTS * outlook.lanes.len() as f64);
    let up_to = fair.max(FIRST_LEAST) as u64;
    let fits = fixed.free.range(..=(up_to, std::cmp::Reverse(0))).next_back();
    fits.or_else(|| fixed.free.first()).map(|f| f.1.0)
}

fn greatest_that_fits(fixed: &Fixed, outlook: &Outlook, lane: &View) -> Option<usize> {
    let items = fixed.free.len() as f64 * OVERHEAD;
    let greatest = fixed.free.last()?.0 as f64;
    let soonest = |bytes: f64| {
        outlook
            .lanes
            .iter()
            .map(|v| v.finish(bytes))
            .fold(f64::INFINITY, f64::min)
    };
    let by = outlook
        .common_finish(fixed.free_bytes as f64 + items)
        .max(soonest(greatest));
    let room = lane.room(by * (1.0 + 1e-9)) as u64;
    fixed
        .free
        .range(..=(room, std::cmp::Reverse(0)))
        .next_back()
        .map(|f| f.1.0)
}

#[derive(Clone, Debug)]
struct Packing {
    /// For each item, in the order given, the index of its lane.
    lane_of: Vec<usize>,
    loads: Vec<f64>,
    finish: f64,
}

impl Packing {
    fn new(sizes: &[f64], lanes: &[View], lane_of: Vec<usize>) -> Self {
        let mut packing = Self {
            loads: vec![0.0; lanes.len()],
            lane_of,
            finish: 0.0,
        };
        for (size, lane) in sizes.iter().zip(&packing.lane_of) {
            if let Some(load) = packing.loads.get_mut(*lane) {
                *load += size;
            }
        }
        packing.finish = packing.ends(lanes).map(|e| e.1).fold(0.0, f64::max);
        packing
    }

    /// The lanes that have something, and when they are through.
    fn ends<'a>(&'a self, lanes: &'a [View]) -> impl Iterator<Item = (usize, f64)> + 'a {
        let busy = self
            .loads
            .iter()
            .zip(lanes)
            .enumerate()
            .filter(|(_, (load, _))| **load > 0.0);
        busy.map(|(at, (load, view))| (at, view.finish(*load)))
    }
}

/// Packs items, given from the greatest on, so that all are stored as soon as possible, or nearly.
fn pack(sizes: &[f64], lanes: &[View]) -> Packing {
    let mut best = Packing::new(sizes, lanes, longest_first(sizes, lanes));
    let (mut low, mut high) = (0.0, best.finish);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        match fit(sizes, lanes, middle) {
            Some(lane_of) => {
                best = Packing::new(sizes, lanes, lane_of);
                high = best.finish.min(middle);
            }
            None => low = middle,
        }
    }
    if sizes.len() <= IMPROVED {
        improve(&mut best, sizes, lanes);
    }
    best
}

fn longest_first(sizes: &[f64], lanes: &[View]) -> Vec<usize> {
    let mut loads = vec![0.0; lanes.len()];
    let mut place = |size: &f64| {
        let ends = lanes.iter().zip(&loads).map(|(v, load)| v.finish(load + size));
        let soonest = ends.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        let at = soonest.map_or(0, |s| s.0);
        if let Some(load) = loads.get_mut(at) {
            *load += size;
        }
        at
    };
    sizes.iter().map(&mut place).collect()
}

/// First-fit decreasing into what each lane can store by then, the lane with the least room first.
fn fit(sizes: &[f64], lanes: &[View], by: f64) -> Option<Vec<usize>> {
    let mut rooms: Vec<(usize, f64)> = lanes.iter().map(|v| v.room(by)).enumerate().collect();
    rooms.sort_by(|a, b| a.1.total_cmp(&b.1));
    let place = |size: &f64| {
        let (at, room) = rooms.iter_mut().find(|(_, room)| *room >= *size)?;
        *room -= size;
        Some(*at)
    };
    sizes.iter().map(place).collect()
}

/// Moves or swaps items off the lane that is through last, as long as that helps.
fn improve(best: &mut Packing, sizes: &[f64], lanes: &[View]) {
    for _ in 0..IMPROVEMENTS {
        let Some((last, end)) = best.ends(lanes).max_by(|a, b| a.1.total_cmp(&b.1)) else {
            return;
        };
        // The change after which the two lanes it touches are through soonest.
        let mut change: Option<(f64, usize, usize, Option<usize>)> = None;
        let mut consider = |item: usize, to: usize, other: Option<usize>| {
            let moved = sizes.get(item).copied().unwrap_or(0.0)
                - other.and_then(|o| sizes.get(o)).copied().unwrap_or(0.0);
            let after = |lane: usize, by: f64| {
                let pair = lanes.get(lane).zip(best.loads.get(lane));
                pair.map_or(f64::INFINITY, |(v, load)| v.finish(load + by))
            };
            let ends = after(last, -moved).max(after(to, moved));
            if ends < end * (1.0 - 1e-6) && change.is_none_or(|c| ends < c.0) {
                change = Some((ends, item, to, other));
            }
        };
        for (item, from) in best.lane_of.iter().enumerate().filter(|(_, l)| **l == last) {
            for to in (0..lanes.len()).filter(|to| to != from) {
                consider(item, to, None);
            }
            for (other, to) in best.lane_of.iter().enumerate().filter(|(_, l)| **l != last) {
                consider(item, *to, Some(other));
            }
        }
        let Some((_, item, to, other)) = change else {
            return;
        };
        let mut lane_of = std::mem::take(&mut best.lane_of);
        for (which, lane) in [(Some(item), to), (other, last)] {
            if let Some(place) = which.and_then(|w| lane_of.get_mut(w)) {
                *place = lane;
            }
        }
        *best = Packing::new(sizes, lanes, lane_of);
    }
}
