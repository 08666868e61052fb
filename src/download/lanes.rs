//! Which lanes may serve a job and in which order; what is shown of each.
//!
//! Invariants: of lanes with the same line only one is used, for the others add nothing; content that the way there could
//! change unseen (plain http without a digest) goes over own uplinks only (HTTP-19).

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::Job;
use super::LaneProgress;
use super::LaneState;
use super::route::Route;
use crate::lane::Lane;
use crate::lane::LaneInfo;
use crate::store::Generation;
use crate::stripe;
use crate::stripe::LaneSnapshot;
use crate::types::LaneId;
use crate::types::LineId;
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
    let mut lines: Vec<(LineId, String)> = Vec::new();
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
    /// Workers that were told to stop and may not have yet.
    pub(super) dying: Vec<JoinHandle<Option<()>>>,
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
    /// The other version that it sees even at the home lane's address.
    pub(super) seen: Option<Generation>,
}

impl Member {
    pub(super) fn new(route: Arc<Route>) -> Self {
        Self {
            info: route.lane.info().clone(),
            route,
            bytes: 0,
            working: BTreeSet::new(),
            dying: Vec::new(),
            since: None,
            active: Duration::ZERO,
            faults: 0,
            ineligible: None,
            any_version: false,
            seen: None,
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
pub(super) fn unused(info: &LaneInfo, why: &str) -> LaneProgress {
    LaneProgress {
        info: info.clone(),
        rate: Rate::default(),
        bytes: 0,
        state: LaneState::Idle(why.to_owned()),
    }
}

/// Whether a lane with this id is among those.
pub(super) fn has(lanes: &[Arc<dyn Lane>], id: LaneId) -> bool {
    lanes.iter().any(|lane| lane.info().id == id)
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use url::Url;

    use super::*;
    use crate::lane::DialError;
    use crate::lane::Target;
    use crate::lane::Tunnel;
    use crate::types::PeerId;

    #[derive(Debug)]
    struct Paper(LaneInfo);

    impl Lane for Paper {
        fn info(&self) -> &LaneInfo {
            &self.0
        }

        fn dial<'a>(&'a self, _: &'a Target) -> BoxFuture<'a, Result<Tunnel, DialError>> {
            Box::pin(async { Err(DialError::LaneGone) })
        }
    }

    /// A lane with its own line, lent where `id` is 10 or more.
    fn lane(id: u64, change: impl FnOnce(&mut LaneInfo)) -> Arc<dyn Lane> {
        let mut info = LaneInfo {
            id: LaneId(id),
            peer: (id >= 10).then_some(PeerId([1; 32])),
            owner: format!("owner-{id}"),
            uplink: "up0".into(),
            kind: UplinkKind::Wired,
            metered: false,
            line: LineId(id.to_be_bytes()),
            hint: None,
        };
        change(&mut info);
        Arc::new(Paper(info))
    }

    fn job(url: &str) -> Job {
        Job {
            url: Url::parse(url).unwrap(),
            headers: Vec::new(),
            sha256: None,
            pool: true,
        }
    }

    fn used(lanes: &[Arc<dyn Lane>], job: &Job) -> Vec<u64> {
        choose(lanes, job).used.iter().map(|l| l.info().id.0).collect()
    }

    #[test]
    fn the_home_lane_is_the_best_own_uplink_or_the_first_lent_one() {
        let mbit = |n: u64| Some(Rate::bits(n * 1_000_000));
        let lanes = [
            lane(10, |l| l.hint = mbit(900)),
            lane(1, |l| l.metered = true),
            lane(2, |l| l.hint = mbit(20)),
            lane(3, |l| l.hint = mbit(50)),
            lane(4, |l| l.kind = UplinkKind::Wireless),
        ];
        assert_eq!(used(&lanes, &job("https://a.example/")), [3, 2, 4, 1, 10]);
        assert_eq!(used(&lanes[..1], &job("https://a.example/")), [10]);
    }

    #[test]
    fn of_the_lanes_on_one_line_the_preferred_one_is_used() {
        let same = |l: &mut LaneInfo| l.line = LineId([9; 8]);
        let lanes = [lane(10, same), lane(2, same), lane(11, |_| {})];
        let choice = choose(&lanes, &job("https://a.example/"));
        assert_eq!(used(&lanes, &job("https://a.example/")), [2, 11]);
        assert_eq!(choice.unused[0].1, "shares the line of owner-2 up0");
    }

    #[test]
    fn http_19_lent_lanes_carry_plain_http_only_with_a_digest() {
        let lanes = [lane(1, |_| {}), lane(10, |_| {})];
        let mut plain = job("http://a.example/");
        assert_eq!(used(&lanes, &plain), [1]);
        plain.sha256 = Some([0; 32]);
        assert_eq!(used(&lanes, &plain), [1, 10]);
        plain.pool = false;
        assert_eq!(used(&lanes, &plain), [1]);
    }
}
