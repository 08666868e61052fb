//! Which lanes may serve a job and in which order; what is shown of each.
//!
//! Invariants: of lanes with the same line only one is used, for the others add nothing; content that the way there could
//! change unseen (plain http without a digest) goes over own uplinks only (HTTP-19).

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Job;
use super::LaneProgress;
use super::LaneState;
use super::route::Route;
use crate::lane::Lane;
use crate::lane::LaneInfo;
use crate::stripe;
use crate::stripe::LaneSnapshot;
use crate::types::LaneId;
use crate::types::Rate;
use crate::types::UplinkKind;

/// The lanes of one moment, sorted by what this job may do with them.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// To be used; the first is the home lane.
    pub(super) used: Vec<Arc<dyn Lane>>,
    /// Not to be used, and why.
    pub(super) unused: Vec<(LaneInfo, String)>,
}

/// Chooses among all lanes there are.
pub(super) fn choose(lanes: &[Arc<dyn Lane>], job: &Job) -> Choice {
    let mut ordered: Vec<_> = lanes.iter().collect();
    ordered.sort_by_key(|lane| preference(lane.info()));
    let mut choice = Choice::default();
    let mut lines: Vec<(crate::types::LineId, String)> = Vec::new();
    for lane in ordered {
        let info = lane.info();
        let why_not = if info.peer.is_some() && !job.pool {
            Some("the pool is not used for this download".to_owned())
        } else if info.peer.is_some() && job.url.scheme() == "http" && job.sha256.is_none() {
            Some("plain http without a checksum: a lender could change it".to_owned())
        } else {
            let same = lines.iter().find(|(line, _)| *line == info.line);
            same.map(|(_, owner)| format!("shares the line of {owner}"))
        };
        match why_not {
            Some(why) => choice.unused.push((info.clone(), why)),
            None => {
                lines.push((info.line, format!("{} {}", info.owner, info.uplink)));
                choice.used.push(lane.clone());
            }
        }
    }
    choice
}

/// Own before lent, free before metered, fast before slow, cable before radio; then as they come.
fn preference(info: &LaneInfo) -> impl Ord + use<> {
    let rate = info.hint.map_or(0, Rate::as_bits);
    let kind = match info.kind {
        UplinkKind::Wired => 0,
        UplinkKind::Wireless => 1,
        UplinkKind::Cellular => 2,
        UplinkKind::Virtual => 3,
    };
    (info.peer.is_some(), info.metered, Reverse(rate), kind, info.id)
}

/// A lane in use and what it did so far.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) info: LaneInfo,
    pub(super) route: Arc<Route>,
    /// Bytes it brought that nobody else had.
    pub(super) bytes: u64,
    /// Leases at work.
    pub(super) working: BTreeSet<stripe::LeaseId>,
    /// Since when it has any.
    since: Option<Instant>,
    /// How long it had any, before that.
    active: Duration,
    /// Answers in a row that were the origin's fault.
    pub(super) faults: u32,
    /// Why it is not used any more.
    pub(super) ineligible: Option<super::answer::Why>,
    /// Its versions may differ from the others': a digest decides.
    pub(super) any_version: bool,
}

impl Member {
    pub(super) fn new(route: Arc<Route>) -> Self {
        Self {
            info: route.lane.info().clone(),
            route,
            bytes: 0,
            working: BTreeSet::new(),
            since: None,
            active: Duration::ZERO,
            faults: 0,
            ineligible: None,
            any_version: false,
        }
    }

    pub(super) fn started(&mut self, lease: stripe::LeaseId, now: Instant) {
        self.working.insert(lease);
        self.since.get_or_insert(now);
    }

    pub(super) fn ended(&mut self, lease: stripe::LeaseId, now: Instant) {
        self.working.remove(&lease);
        if self.working.is_empty()
            && let Some(since) = self.since.take()
        {
            self.active += now.saturating_duration_since(since);
        }
    }

    /// Its rate over the time it had work.
    pub(super) fn mean_rate(&self, now: Instant) -> Rate {
        let running = self
            .since
            .map_or(Duration::ZERO, |s| now.saturating_duration_since(s));
        Rate::of(self.bytes, self.active + running)
    }

    /// What is shown of it, given what the scheduler says.
    pub(super) fn progress(&self, snapshot: Option<&LaneSnapshot>) -> LaneProgress {
        let state = match (&self.ineligible, snapshot.map(|s| s.state)) {
            (Some(why), _) => LaneState::Ineligible(why.to_string()),
            (None, Some(stripe::LaneState::Active)) => LaneState::Active,
            (None, Some(stripe::LaneState::Parked { until })) => LaneState::Parked { until },
            (None, Some(stripe::LaneState::Ineligible)) => {
                LaneState::Ineligible("it cannot serve this".to_owned())
            }
            (None, Some(stripe::LaneState::Idle(stripe::Why::TooSlow))) => {
                LaneState::Idle("too slow to help with the rest".to_owned())
            }
            (None, Some(stripe::LaneState::Idle(stripe::Why::NothingLeft)) | None) => {
                LaneState::Idle("nothing left to do".to_owned())
            }
        };
        LaneProgress {
            info: self.info.clone(),
            rate: snapshot.map_or_else(Rate::default, |s| s.rate),
            bytes: self.bytes,
            state,
        }
    }
}

/// What is shown of a lane that is not used.
pub(super) fn unused((info, why): &(LaneInfo, String)) -> LaneProgress {
    LaneProgress {
        info: info.clone(),
        rate: Rate::default(),
        bytes: 0,
        state: LaneState::Idle(why.clone()),
    }
}

/// Whether a lane with this id is among those.
pub(super) fn has(lanes: &[Arc<dyn Lane>], id: LaneId) -> bool {
    lanes.iter().any(|lane| lane.info().id == id)
}
