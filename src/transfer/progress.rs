//! Where a transfer stands, and each of its lanes: what people are shown, and what rates are learned from.

use std::time::Instant;

use crate::lane::LaneInfo;
use crate::stripe;
use crate::stripe::LaneSnapshot;
use crate::stripe::Pause;
use crate::types::Rate;

/// What a transfer is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for lanes, or for the first answer.
    #[default]
    Asking,
    /// Bytes flow over all lanes.
    Striped,
    /// Bytes flow over one lane, because the origin cannot do more.
    Single,
    /// All bytes are there; they are brought to the disk and checked.
    Finishing,
}

/// Where a transfer stands; published at least four times a second.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// What the file will be called. Empty until known.
    pub name: String,
    /// What it is doing.
    pub phase: Phase,
    /// Length in bytes. `None`: not known (yet).
    pub total: Option<u64>,
    /// Bytes that are there, those of earlier runs included.
    pub done: u64,
    /// Of `done`, those of earlier runs.
    pub resumed: u64,
    /// Each lane, used or not.
    pub lanes: Vec<LaneProgress>,
}

/// Where a lane stands in a transfer.
#[derive(Clone, Debug)]
pub struct LaneProgress {
    /// Which.
    pub info: LaneInfo,
    /// Its rate now. 0: unknown or nothing flows.
    pub rate: Rate,
    /// New bytes it brought.
    pub bytes: u64,
    /// What it is doing.
    pub state: LaneState,
}

/// What a lane does for a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Bytes are under way.
    Active,
    /// It could be used but is not; why, in words.
    Idle(String),
    /// Not used until then.
    Parked {
        /// When it is tried again.
        until: Instant,
        /// Failures in a row that led to it. `None`: something else did.
        failures: Option<u32>,
        /// What led to it, in words.
        why: String,
    },
    /// It cannot serve this transfer; why, in words.
    Ineligible(String),
}

/// What is known of a lane besides what the scheduler says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing<'a> {
    pub(crate) info: &'a LaneInfo,
    /// New bytes it carried.
    pub(crate) bytes: u64,
    /// Why it is not used any more.
    pub(crate) ineligible: Option<&'a str>,
    /// What went wrong since it last carried a byte.
    pub(crate) trouble: Option<&'a str>,
}

impl Standing<'_> {
    /// What is shown of it, given what the scheduler says.
    pub(crate) fn progress(self, snapshot: Option<&LaneSnapshot>) -> LaneProgress {
        let state = match (self.ineligible, snapshot.map(|s| s.state)) {
            (Some(why), _) => LaneState::Ineligible(why.to_string()),
            (None, Some(stripe::LaneState::Active)) => LaneState::Active,
            (None, Some(stripe::LaneState::Parked { until, why })) => self.parked(until, why),
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

    fn parked(self, until: Instant, pause: Pause) -> LaneState {
        let (failures, why) = match pause {
            Pause::Failures(1) => (Some(1), "parked after 1 failure".to_owned()),
            Pause::Failures(n) => (Some(n), format!("parked after {n} failures")),
            Pause::Silent => (None, "parked, because it fell silent".to_owned()),
            Pause::Origin => (None, "parked, because the origin has a fault".to_owned()),
            Pause::Refused => {
                let why = self.trouble.unwrap_or("the origin wants less over this line");
                (None, why.to_owned())
            }
        };
        LaneState::Parked { until, failures, why }
    }
}

/// What is shown of a lane that is not used.
pub(crate) fn unused(info: &LaneInfo, why: &str) -> LaneProgress {
    LaneProgress {
        info: info.clone(),
        rate: Rate::default(),
        bytes: 0,
        state: LaneState::Idle(why.to_owned()),
    }
}
