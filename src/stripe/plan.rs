//! The forecast a decision is made from: when each lane is through with what it has, and when all of them could be
//! through with everything.
//!
//! With rates r and the times s at which lanes could begin, all bytes left R are there at the T that solves
//! `Σ max(0, r·(T − s)) = R`. That is the ideal; a lane's fair part is `r·(T − s)`.

use std::time::Instant;

use crate::types::LaneId;

use super::config::*;
use super::lane::Lane;
use super::ledger::Ledger;

/// One usable lane, in seconds and bytes a second from now.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) id: LaneId,
    pub(super) rate: f64,
    pub(super) known: bool,
    pub(super) steady: bool,
    /// When bytes of the leases it has begin to flow; for a lane without leases, of one given now.
    pub(super) start: f64,
    /// When the first byte of a lease given now would come.
    pub(super) lead: f64,
    pub(super) latency: f64,
    /// How long its flowing leases have brought nothing, where that is remarkable: expect as long again.
    pub(super) silence: f64,
    pub(super) backlog: f64,
    pub(super) slots: usize,
    pub(super) leases: usize,
    pub(super) idle: usize,
    /// All slots are taken, and one lease more may begin while another ends.
    may_overlap: bool,
    /// It may overlap, and one of its leases is about to end.
    pub(super) ending: bool,
    pub(super) metered: bool,
    pub(super) probation: bool,
}

impl View {
    /// When it is through with what it has.
    pub(super) fn eta(&self) -> f64 {
        if self.leases == 0 {
            0.0
        } else {
            self.start + self.backlog / self.rate
        }
    }

    /// When it would be through with `bytes` more.
    pub(super) fn finish(&self, bytes: f64) -> f64 {
        self.eta().max(self.lead) + bytes / self.rate
    }
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) lanes: Vec<View>,
    /// The T of the module's words.
    pub(super) finish: f64,
    /// The same for what is free, if every lane keeps what it has.
    pub(super) free_finish: f64,
    pub(super) load: Load,
}

/// What there is to do for the lanes of a plan, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// All that they will have to bring.
    pub(super) missing: u64,
    /// The part of it that none of them is leased.
    pub(super) free: u64,
}

impl Plan {
    pub(super) fn new<'a>(
        lanes: impl Iterator<Item = (&'a LaneId, &'a Lane)> + Clone,
        ledger: &Ledger,
        load: Load,
        now: Instant,
    ) -> Self {
        let overlap = lanes.clone().map(|(_, l)| l.slots + 1).sum::<usize>() <= MAX_OVERLAPPING;
        let mut views: Vec<View> = lanes
            .filter(|(_, l)| l.is_usable() || l.leases > 0)
            .map(|(&id, lane)| View {
                id,
                rate: lane.expected_rate().unwrap_or(0.0),
                known: lane.rate().is_some(),
                steady: lane.is_steady(),
                start: if lane.leases == 0 {
                    lane.lead()
                } else {
                    f64::INFINITY
                },
                lead: lane.lead(),
                latency: lane.latency(),
                silence: lane.remarkable_silence(now),
                backlog: 0.0,
                slots: lane.slots,
                leases: lane.leases,
                idle: lane.idle_slots(),
                may_overlap: overlap && lane.may_overlap(),
                ending: false,
                metered: lane.spec.metered,
                probation: lane.probation,
            })
            .collect();
        for lease in ledger.leases.values() {
            if let Ok(at) = views.binary_search_by_key(&lease.lane, |v| v.id) {
                let view = &mut views[at];
                view.backlog += lease.left.len() as f64;
                view.ending |= lease.ending && view.may_overlap;
                let start = if lease.first_byte.is_some() {
                    view.silence
                } else {
                    // Overdue by x: expect as much again, at least half of x more.
                    let age = now.saturating_duration_since(lease.started).as_secs_f64();
                    let due = if lease.warm {
                        view.latency
                    } else {
                        view.lead.max(SETUP_ROUND_TRIPS * view.latency)
                    };
                    (due - age).max(0.5 * (age - due)).max(0.0)
                };
                view.start = view.start.min(start);
            }
        }
        fill_unknown(&mut views);
        let finish = common_finish(views.iter().map(|v| (v.start, v.rate)), load.missing as f64);
        let free_finish = common_finish(views.iter().map(|v| (v.finish(0.0), v.rate)), load.free as f64);
        Self {
            lanes: views,
            finish,
            free_finish,
            load,
        }
    }
}

/// Lanes nothing is known about count as a part of the known ones' mean.
fn fill_unknown(views: &mut [View]) {
    let (count, sum) = views
        .iter()
        .filter(|v| v.known)
        .fold((0.0, 0.0), |(n, s), v| (n + 1.0, s + v.rate));
    let guess = if count > 0.0 {
        UNKNOWN_SHARE * sum / count
    } else {
        DEFAULT_RATE
    };
    for view in views.iter_mut().filter(|v| !v.known) {
        view.rate = guess.max(RATE_FLOOR);
    }
}

/// The time at which all lanes together, each from its own time on and at its own rate, could be through with `bytes`.
pub(super) fn common_finish(lanes: impl Iterator<Item = (f64, f64)>, bytes: f64) -> f64 {
    let mut order: Vec<(f64, f64)> = lanes.collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut rate, mut moved) = (0.0, 0.0);
    let mut finish = f64::INFINITY;
    for (start, r) in order {
        if start >= finish {
            break;
        }
        // Σ r·(T − s) = bytes over the lanes that begin before T.
        rate += r;
        moved += r * start;
        finish = (bytes + moved) / rate;
    }
    finish
}
