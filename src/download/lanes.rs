//! A download's lanes: which may serve it, and what each one in use has done so far.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::Job;
use super::route::Route;
use crate::lane::Lane;
use crate::lane::LaneInfo;
use crate::store::Generation;
use crate::stripe::LaneSnapshot;
use crate::transfer::LaneProgress;
use crate::transfer::{Activity, Choice, Record, Standing, Terms, sort_out};
use crate::types::LaneId;
use crate::types::Rate;

/// Chooses among all lanes there are, given what the job has seen of them.
pub(super) fn choose(lanes: &[Arc<dyn Lane>], job: &Job, record: impl Fn(LaneId) -> Record) -> Choice {
    let terms = Terms {
        pool: job.pool,
        plain: job.url.scheme() == "http" && job.sha256.is_none(),
    };
    sort_out(lanes, terms, record)
}

/// What is chosen before anything was seen.
pub(super) fn choose_fresh(lanes: &[Arc<dyn Lane>], job: &Job) -> Choice {
    choose(lanes, job, |_| Record::Fresh)
}

/// A lane in use and what it did so far.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) info: LaneInfo,
    pub(super) route: Arc<Route>,
    /// Bytes it brought that nobody else had.
    pub(super) bytes: u64,
    pub(super) activity: Activity,
    /// Workers that were told to stop and may not have yet.
    pub(super) dying: Vec<JoinHandle<Option<()>>>,
    /// Answers in a row that were the origin's fault.
    pub(super) faults: u32,
    /// Why it is not used any more.
    pub(super) ineligible: Option<super::answer::Why>,
    /// Its versions may differ from the others': a digest decides.
    pub(super) any_version: bool,
    /// The other version that it sees even at the home lane's address.
    pub(super) seen: Option<Generation>,
    /// What went wrong since it last brought a byte, in words.
    pub(super) trouble: Option<String>,
    /// Its lender's limit is reached.
    pub(super) busy: bool,
}

impl Member {
    pub(super) fn new(route: Arc<Route>) -> Self {
        Self {
            info: route.lane.info().clone(),
            route,
            bytes: 0,
            activity: Activity::default(),
            dying: Vec::new(),
            faults: 0,
            ineligible: None,
            any_version: false,
            seen: None,
            trouble: None,
            busy: false,
        }
    }

    /// Its rate over the time it had work.
    pub(super) fn mean_rate(&self, now: Instant) -> Rate {
        Rate::of(self.bytes, self.activity.time(now))
    }

    /// What is shown of it, given what the scheduler says.
    pub(super) fn progress(&self, snapshot: Option<&LaneSnapshot>) -> LaneProgress {
        let ineligible = self.ineligible.as_ref().map(ToString::to_string);
        let standing = Standing {
            info: &self.info,
            bytes: self.bytes,
            ineligible: ineligible.as_deref(),
            trouble: self.trouble.as_deref(),
        };
        standing.progress(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::lane::DialError;
    use crate::lane::Target;
    use crate::lane::Tunnel;
    use crate::transfer::plan;
    use crate::trust::Tier;
    use crate::types::{LineId, PeerId, UplinkKind};

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
            tier: (id >= 10).then_some(Tier::Neighbour),
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

    fn used(lanes: &[Arc<dyn Lane>], job: &Job) -> Vec<u64> {
        choose_fresh(lanes, job)
            .used
            .iter()
            .map(|l| l.info().id.0)
            .collect()
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
        assert_eq!(used(&lanes, &Job::plain("https://a.example/")), [3, 2, 4, 1, 10]);
        assert_eq!(used(&lanes[..1], &Job::plain("https://a.example/")), [10]);
    }

    #[test]
    fn of_the_lanes_on_one_line_the_preferred_one_is_used() {
        let same = |l: &mut LaneInfo| l.line = LineId([9; 8]);
        let lanes = [lane(10, same), lane(2, same), lane(11, |_| {})];
        let choice = choose_fresh(&lanes, &Job::plain("https://a.example/"));
        assert_eq!(used(&lanes, &Job::plain("https://a.example/")), [2, 11]);
        assert_eq!(choice.unused[0].1, "shares owner-2's line");
    }

    #[test]
    fn the_lane_at_work_stays_on_its_line_until_it_fails() {
        let fast = |l: &mut LaneInfo| {
            l.line = LineId([9; 8]);
            l.hint = Some(Rate::bits(9_000_000));
        };
        let lanes = [lane(10, |l| l.line = LineId([9; 8])), lane(11, fast)];
        let job = Job::plain("https://a.example/");
        let first = |record: fn(LaneId) -> Record| choose(&lanes, &job, record).used[0].info().id.0;
        let serving = |id: LaneId| {
            if id.0 == 10 {
                Record::Serving
            } else {
                Record::Fresh
            }
        };
        let failing = |id: LaneId| {
            if id.0 == 11 {
                Record::Failing
            } else {
                Record::Fresh
            }
        };
        assert_eq!(first(|_| Record::Fresh), 11, "the faster one");
        assert_eq!(
            first(serving),
            10,
            "what works is not given up for what might be faster"
        );
        let choice = choose(&lanes, &job, failing);
        assert_eq!(choice.used[0].info().id, LaneId(10));
        assert_eq!(choice.unused[0].1, "failed: owner-10 took over on the same line");
        assert_eq!(choice.spare.len(), 1);
    }

    #[test]
    fn an_own_lane_is_preferred_to_a_lent_one_of_its_line_that_is_at_work() {
        let same = |l: &mut LaneInfo| l.line = LineId([9; 8]);
        let lanes = [lane(10, same), lane(2, same)];
        let serving = |id: LaneId| {
            if id.0 == 10 {
                Record::Serving
            } else {
                Record::Fresh
            }
        };
        let choice = choose(&lanes, &Job::plain("https://a.example/"), serving);
        assert_eq!(choice.used[0].info().id, LaneId(2));
    }

    #[test]
    fn the_plan_names_every_lane_and_why_it_would_rest() {
        let same = |l: &mut LaneInfo| l.line = LineId([9; 8]);
        let planned = plan(&[lane(10, same), lane(11, same), lane(2, |_| {})]);
        let told: Vec<_> = planned.iter().map(|p| (p.info.id.0, p.idle.as_deref())).collect();
        assert_eq!(
            told,
            [(2, None), (10, None), (11, Some("shares owner-10's line"))]
        );
    }

    #[test]
    fn http_19_neighbours_lanes_carry_plain_http_only_with_a_digest_and_members_do_without() {
        let lanes = [
            lane(1, |_| {}),
            lane(10, |_| {}),
            lane(11, |info| info.tier = Some(Tier::Member)),
        ];
        let mut plain = Job::plain("http://a.example/");
        assert_eq!(used(&lanes, &plain), [1, 11]);
        plain.sha256 = Some([0; 32]);
        assert_eq!(used(&lanes, &plain), [1, 10, 11]);
        plain.pool = false;
        assert_eq!(used(&lanes, &plain), [1]);
    }
}
