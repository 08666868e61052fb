//! An upload's lanes: what each one in use has done so far.

use std::sync::Arc;
use std::time::Instant;

use super::exchange::Way;
use crate::lane::LaneInfo;
use crate::stripe::LaneSnapshot;
use crate::transfer::{Activity, LaneProgress, Standing, fails};
use crate::types::Rate;

/// A rate from fewer bytes says nothing.
const MIN_MEASURED: u64 = 256 << 10;

/// A lane in use.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) info: LaneInfo,
    pub(super) way: Arc<Way>,
    /// Bytes of parts that the server confirmed.
    pub(super) bytes: u64,
    pub(super) activity: Activity,
    /// Why it is not used any more.
    pub(super) ineligible: Option<String>,
    /// What went wrong since a part last got through.
    pub(super) trouble: Option<String>,
}

impl Member {
    pub(super) fn new(way: Arc<Way>) -> Self {
        Self {
            info: way.lane.info().clone(),
            way,
            bytes: 0,
            activity: Activity::default(),
            ineligible: None,
            trouble: None,
        }
    }

    /// Its rate over the time it had work. `None`: too little to say.
    pub(super) fn mean_rate(&self, now: Instant) -> Option<Rate> {
        (self.bytes >= MIN_MEASURED).then(|| Rate::of(self.bytes, self.activity.time(now)))
    }

    /// What is shown of it, given what the scheduler says and what is on its way.
    pub(super) fn progress(&self, snapshot: Option<&LaneSnapshot>, on_its_way: u64) -> LaneProgress {
        let standing = Standing {
            info: &self.info,
            bytes: self.bytes + on_its_way,
            ineligible: self.ineligible.as_deref(),
            trouble: self.trouble.as_deref(),
        };
        standing.progress(snapshot)
    }

    /// Whether its trouble may be its own and not the server's.
    pub(super) fn fails(&self, snapshot: Option<&LaneSnapshot>) -> bool {
        snapshot.is_some_and(|s| fails(s, false) || self.ineligible.is_some())
    }
}
