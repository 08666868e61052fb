//! The forecast a decision is made from: when each lane's uplink is free, and when a part given to it would be stored.

use std::time::Instant;

use crate::types::LaneId;

use super::super::config::DEFAULT_RATE;
use super::super::config::RATE_FLOOR;
use super::super::config::REPORT_EVERY;
use super::super::config::UNKNOWN_SHARE;
use super::super::lane::Lane;
use super::super::plan::common_finish;
use super::LeaseId;
use super::Parts;
use super::leases::Lease;

/// No part is given longer ahead, in seconds, however long a set-up once took: it could be given better later.
const MOST_AHEAD: f64 = 1.0;

/// One usable lane, in seconds and bytes a second from now.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) id: LaneId,
    pub(super) rate: f64,
    /// Measured, or hinted at.
    pub(super) known: bool,
    /// Measured, and no longer in slow start.
    pub(super) steady: bool,
    /// When a part that is given to it next begins to leave.
    pub(super) start: f64,
    /// From the last byte sent to the server's answer.
    pub(super) answer: f64,
    /// It may begin a part now, and its uplink is about to be idle.
    pub(super) hungry: bool,
    /// It has nothing at all to send.
    pub(super) idle: bool,
    pub(super) metered: bool,
    pub(super) probation: bool,
}

impl View {
    /// When `bytes` more would be stored.
    pub(super) fn finish(&self, bytes: f64) -> f64 {
        self.start + bytes / self.rate + self.answer
    }

    /// How many bytes more could be stored by then.
    pub(super) fn room(&self, by: f64) -> f64 {
        (self.rate * (by - self.start - self.answer)).max(0.0)
    }
}

/// A part in flight: the copy that would be stored first, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    pub(super) lease: LeaseId,
    pub(super) eta: f64,
    pub(super) size: f64,
}

#[derive(Clone, Debug)]
pub(super) struct Outlook {
    /// In order of their ids.
    pub(super) lanes: Vec<View>,
    /// When each part in flight would be stored.
    flying: Vec<(LeaseId, f64)>,
    /// Parts that hold everything up and are to be sent again: lanes have to be kept for them.
    pub(super) late: Vec<Late>,
}

impl Outlook {
    pub(super) fn new(parts: &Parts, now: Instant) -> Self {
        let lanes = parts.lanes.iter();
        let mut views: Vec<View> = lanes
            .filter(|(_, l)| l.is_usable() || l.leases > 0)
            .map(|(&id, lane)| View {
                id,
                rate: expected_rate(lane),
                known: lane.rate().is_some(),
                steady: lane.is_steady(),
                start: lead(lane),
                answer: lane.latency(),
                hungry: parts.is_hungry(id),
                idle: true,
                metered: lane.spec.metered,
                probation: lane.probation,
            })
            .collect();
        fill_unknown(&mut views);
        let flying = parts.leases.iter().filter(|(_, l)| l.is_sent());
        let mut flying: Vec<(LeaseId, f64)> = flying
            .filter_map(|(id, l)| Some((id, answer_due(parts.lanes.get(&l.lane)?, l, now))))
            .collect();
        for view in &mut views {
            view.queue(parts, &mut flying, now);
        }
        views.retain(|v| parts.lanes.get(&v.id).is_some_and(Lane::is_usable));
        let mut outlook = Self {
            lanes: views,
            flying,
            late: Vec::new(),
        };
        outlook.late = parts.late(&outlook, now);
        outlook
    }

    /// The lanes that work is planned for: not those that have to prove themselves first.
    pub(super) fn trusted(&self) -> Vec<View> {
        self.lanes.iter().filter(|v| !v.probation).cloned().collect()
    }

    /// When this copy would be stored.
    pub(super) fn eta(&self, id: LeaseId) -> Option<f64> {
        self.flying.iter().find(|f| f.0 == id).map(|f| f.1)
    }

    /// When the last of all parts in flight but these would be stored, by the copy that is later.
    pub(super) fn last_eta(&self, but: &[LeaseId]) -> f64 {
        let others = self.flying.iter().filter(|f| !but.contains(&f.0));
        others.map(|f| f.1).fold(0.0, f64::max)
    }

    /// Bytes of what is to be sent again.
    pub(super) fn late_bytes(&self) -> f64 {
        self.late.iter().map(|l| l.size).sum()
    }

    /// The time by which all lanes together could have stored so many bytes more, could they be cut at will.
    pub(super) fn common_finish(&self, bytes: f64) -> f64 {
        common_finish(self.lanes.iter().map(|v| (v.start + v.answer, v.rate)), bytes)
    }

    pub(super) fn lane(&self, id: LaneId) -> Option<&View> {
        self.lanes.iter().find(|v| v.id == id)
    }
}

impl View {
    /// Adds what the lane has to send already.
    fn queue(&mut self, parts: &Parts, flying: &mut Vec<(LeaseId, f64)>, now: Instant) {
        let Some(lane) = parts.lanes.get(&self.id) else {
            return;
        };
        let own = parts.leases.iter();
        let unsent: Vec<(LeaseId, &Lease)> = own.filter(|(_, l)| l.lane == self.id && !l.is_sent()).collect();
        let Some(begins) = unsent.iter().map(|(_, l)| begins(lane, l, now)).reduce(f64::min) else {
            return;
        };
        let backlog: u64 = unsent.iter().map(|(_, l)| l.left()).sum();
        // Connections share the uplink: those with less left are through sooner, but none later than all of it.
        let through = begins + backlog as f64 / self.rate;
        let count = unsent.len() as f64;
        flying.extend(unsent.iter().map(|(id, l)| {
            let alone = begins + l.left() as f64 * count / self.rate;
            (*id, alone.min(through) + self.answer)
        }));
        self.idle = false;
        self.start = if self.hungry {
            self.start.max(through)
        } else {
            through
        };
    }
}

/// The rate to expect; while slow start goes on at least what is known from before.
fn expected_rate(lane: &Lane) -> f64 {
    let hint = lane.spec.hint.filter(|_| !lane.is_steady());
    let known = hint.map_or(0.0, crate::types::Rate::as_bytes_f64);
    lane.expected_rate().unwrap_or(0.0).max(known)
}

/// Seconds until the first byte of a part given now leaves.
pub(super) fn lead(lane: &Lane) -> f64 {
    if lane.warm > 0 { 0.0 } else { lane.setup() }
}

/// Seconds of a lane's backlog at which its next part is given: its connection is then set up when it is needed.
pub(super) fn ahead(lane: &Lane) -> f64 {
    lead(lane).min(MOST_AHEAD) + REPORT_EVERY
}

/// When the lease's next byte leaves. Overdue or silent for x: expect as much again.
fn begins(lane: &Lane, lease: &Lease, now: Instant) -> f64 {
    if lease.first_sent.is_some() {
        return lane.remarkable_silence(now);
    }
    let age = now.saturating_duration_since(lease.started).as_secs_f64();
    let due = if lease.warm { 0.0 } else { lane.setup() };
    if age <= due + REPORT_EVERY {
        (due - age).max(0.0)
    } else {
        age - due
    }
}

/// When the answer to a part comes that is all sent. Overdue by x: expect as much again.
fn answer_due(lane: &Lane, lease: &Lease, now: Instant) -> f64 {
    let sent = lease.all_sent.unwrap_or(now);
    let age = now.saturating_duration_since(sent).as_secs_f64();
    (lane.latency() - age).max(age - lane.latency()).max(0.0)
}

/// Lanes nothing is known about count as a part of the known ones' mean.
fn fill_unknown(views: &mut [View]) {
    let known = views.iter().filter(|v| v.known);
    let (count, sum) = known.fold((0.0, 0.0), |(n, s), v| (n + 1.0, s + v.rate));
    let guess = if count > 0.0 {
        UNKNOWN_SHARE * sum / count
    } else {
        DEFAULT_RATE
    };
    for view in views.iter_mut().filter(|v| !v.known) {
        view.rate = guess.max(RATE_FLOOR);
    }
}
