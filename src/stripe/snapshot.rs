//! What people and the API are shown.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::types::LaneId;
use crate::types::Rate;

use super::lane::Lane;
use super::lane::Standing;
use super::ledger::Ledger;

/// Where a transfer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// All bytes of the transfer.
    pub total: u64,
    /// Those that are done.
    pub done: u64,
    /// Bytes that came a second time, by tail races.
    pub duplicated: u64,
    /// Each lane that is up, in order of its id.
    pub lanes: Vec<LaneSnapshot>,
}

/// Where a lane stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSnapshot {
    /// Which.
    pub lane: LaneId,
    /// Measured rate, or the hint; 0: unknown.
    pub rate: Rate,
    /// New bytes it brought in this transfer.
    pub bytes: u64,
    /// Leases it has.
    pub leases: usize,
    /// What it is doing.
    pub state: LaneState,
    /// Whether nothing has come for longer than it may. Where no other lane is alive it is not parked for that.
    pub overdue: bool,
}

/// What a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// It has leases.
    Active,
    /// It could work but has nothing to do.
    Idle(Why),
    /// It is not used until then.
    Parked {
        /// When it is tried again.
        until: Instant,
        /// What brought it there.
        why: Pause,
    },
    /// It can't serve this transfer.
    Ineligible,
}

/// Why a lane is not used for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// So many times leases broke since it last finished one.
    Failures(u32),
    /// Nothing came any more.
    Silent,
    /// The origin, or the lender, wants less of it.
    Refused,
    /// The origin had a fault of its own.
    Origin,
}

/// Why a lane is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// All bytes are done or leased to lanes that need no help.
    NothingLeft,
    /// There are free bytes, but it would finish none of them before the other lanes are through.
    TooSlow,
}

pub(super) fn take(
    ledger: &Ledger,
    lanes_now: &BTreeMap<LaneId, Lane>,
    nothing_free: bool,
    is_overdue: impl Fn(LaneId) -> bool,
    now: Instant,
) -> Snapshot {
    Snapshot {
        total: ledger.total,
        done: ledger.done.len(),
        duplicated: ledger.duplicated,
        lanes: lanes(lanes_now, nothing_free, is_overdue, now),
    }
}

/// Each lane; `nothing_free` is why an idle one has no work.
pub(super) fn lanes(
    lanes: &BTreeMap<LaneId, Lane>,
    nothing_free: bool,
    is_overdue: impl Fn(LaneId) -> bool,
    now: Instant,
) -> Vec<LaneSnapshot> {
    let state = |lane: &Lane| match lane.standing {
        Standing::Never => LaneState::Ineligible,
        _ if lane.leases > 0 => LaneState::Active,
        Standing::Waiting(until) if until > now => LaneState::Parked {
            until,
            why: lane.pause,
        },
        _ if nothing_free || lane.source => LaneState::Idle(Why::NothingLeft),
        _ => LaneState::Idle(Why::TooSlow),
    };
    let one = |(&id, lane): (&LaneId, &Lane)| LaneSnapshot {
        lane: id,
        rate: Rate::bytes_f64(lane.rate().unwrap_or(0.0)),
        bytes: lane.bytes,
        leases: lane.leases,
        state: state(lane),
        overdue: is_overdue(id),
    };
    lanes.iter().map(one).collect()
}
