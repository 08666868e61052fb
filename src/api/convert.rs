//! From a transfer's own words to the API's.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::time::Instant;

use crate::download::{DownloadError, Outcome};
use crate::lane::LaneInfo;
use crate::store::StoreError;
use crate::transfer::{self, LaneState, TlsError};
use crate::types::PeerId;
use crate::types::Rate;
use crate::types::UplinkKind;
use crate::upload::{self, UploadError};

use super::handover::shown;
use super::{Done, Failed, FilesDone, FromMember, LaneProgress, LeftOut, Progress};

/// The exit code for something unexpected.
pub const UNEXPECTED: u8 = 1;
/// The origin refuses, or its content keeps changing.
pub const ORIGIN: u8 = 3;
/// No uplink reaches the origin.
pub const UNREACHABLE: u8 = 4;
/// The content is not what the checksum says; the server has something else than what was sent.
pub const CHECKSUM: u8 = 5;
/// The file cannot be written, or read.
pub const FILE: u8 = 6;
/// The daemon does not answer, or does not do it: whoever asked may go on without it.
pub const DAEMON: u8 = 7;
/// The daemon says no: not to this user, not for that device, not with that token or code.
pub const REFUSED: u8 = 8;
/// All went well, but some of a directory's files were left out.
pub const LEFT_OUT: u8 = 9;
/// The command line is wrong, as clap has it.
pub const USAGE: u8 = 2;
/// Stopped by the user; resumable.
pub const STOPPED: u8 = 130;

impl Progress {
    /// Of an upload where that is said, else of a download.
    pub fn of(progress: &transfer::Progress, upload: bool) -> Self {
        let lanes: Vec<LaneProgress> = progress.lanes.iter().map(LaneProgress::from).collect();
        Self {
            // An upload's name is its user's, and others see it in the daemon's status.
            name: Some(shown(&progress.name)).filter(|n| !n.is_empty()),
            total: progress.total,
            done: progress.done,
            rate: lanes.iter().map(|l| l.rate).sum(),
            lanes,
            upload,
        }
    }
}

/// Left out files that are told of: what somebody reads, and what fits into a line with names of any length.
const MAX_REASONS: usize = 20;

impl From<&transfer::LaneProgress> for LaneProgress {
    fn from(lane: &transfer::LaneProgress) -> Self {
        let (why, parked_for, failures) = match &lane.state {
            LaneState::Active => (None, None, None),
            LaneState::Idle(why) | LaneState::Ineligible(why) => (Some(why.clone()), None, None),
            LaneState::Parked { until, failures, why } => {
                let left = until.saturating_duration_since(Instant::now());
                (Some(why.clone()), Some(left.as_secs_f64()), *failures)
            }
        };
        Self {
            why: why.filter(|w| !w.is_empty()),
            parked_for,
            failures,
            rate: lane.rate.as_bits(),
            state: match &lane.state {
                LaneState::Active => "active".into(),
                LaneState::Idle(why) if why.is_empty() => "idle".into(),
                LaneState::Idle(why) => format!("idle: {why}"),
                LaneState::Parked { .. } => "parked".into(),
                LaneState::Ineligible(why) => format!("ineligible: {why}"),
            },
            ..part(&lane.info, lane.bytes)
        }
    }
}

impl From<Outcome> for Done {
    fn from(outcome: Outcome) -> Self {
        let rate = Rate::of(outcome.bytes.saturating_sub(outcome.resumed), outcome.elapsed);
        let best = outcome.best_single.filter(|b| b.as_bits() > 0);
        let members = members(outcome.members);
        Self {
            path: outcome.path,
            bytes: outcome.bytes,
            resumed: outcome.resumed,
            elapsed: outcome.elapsed.as_secs_f64(),
            rate: rate.as_bits(),
            duplicated: outcome.duplicated,
            lanes: outcome
                .lanes
                .iter()
                .map(|(info, bytes)| part(info, *bytes))
                .chain(members.iter().map(disk))
                .collect(),
            best_single: best.map(Rate::as_bits),
            speedup: best.map(|b| rate.as_bits() as f64 / b.as_bits() as f64),
            note: outcome.note,
            attested: outcome.attested,
            saved: members.iter().map(|member| member.bytes).sum(),
            members,
            ..Self::default()
        }
    }
}

impl From<upload::Outcome> for Done {
    fn from(outcome: upload::Outcome) -> Self {
        let rate = Rate::of(outcome.bytes.saturating_sub(outcome.resumed), outcome.elapsed);
        let best = outcome.best_single.filter(|b| b.as_bits() > 0);
        Self {
            // Only who asked knows it.
            path: PathBuf::new(),
            bytes: outcome.bytes,
            resumed: outcome.resumed,
            elapsed: outcome.elapsed.as_secs_f64(),
            rate: rate.as_bits(),
            duplicated: outcome.duplicated,
            lanes: outcome
                .lanes
                .iter()
                .map(|(info, bytes)| part(info, *bytes))
                .collect(),
            best_single: best.map(Rate::as_bits),
            speedup: best.map(|b| rate.as_bits() as f64 / b.as_bits() as f64),
            note: outcome.note,
            target: Some(outcome.place),
            files: outcome.files.map(FilesDone::from),
            ..Self::default()
        }
    }
}

impl From<upload::Files> for FilesDone {
    fn from(files: upload::Files) -> Self {
        let reasons = files.left_out.into_iter();
        Self {
            sent: files.sent,
            same: files.same,
            left_out: files.left_out_count,
            reasons: reasons
                .map(|(name, why)| LeftOut { name, why })
                .take(MAX_REASONS)
                .collect(),
        }
    }
}

impl From<UploadError> for Failed {
    fn from(error: UploadError) -> Self {
        Self {
            code: upload_code(&error),
            message: error.to_string(),
        }
    }
}

impl From<DownloadError> for Failed {
    fn from(error: DownloadError) -> Self {
        Self {
            code: code(&error),
            message: error.to_string(),
        }
    }
}

impl From<TlsError> for Failed {
    fn from(error: TlsError) -> Self {
        Self {
            code: UNEXPECTED,
            message: error.to_string(),
        }
    }
}

/// What each member brought, the most first. One whose link was made anew is named once.
fn members(brought: Vec<(PeerId, String, u64)>) -> Vec<FromMember> {
    let mut members: Vec<FromMember> = Vec::new();
    for (peer, owner, bytes) in brought {
        let id = peer.to_string();
        match members.iter_mut().find(|member| member.id == id) {
            Some(member) => member.bytes += bytes,
            None => members.push(FromMember { owner, id, bytes }),
        }
    }
    members.sort_by_key(|member| Reverse(member.bytes));
    members
}

/// A member's disk as a lane.
fn disk(member: &FromMember) -> LaneProgress {
    LaneProgress {
        owner: member.owner.clone(),
        uplink: "disk".into(),
        lent: true,
        rate: 0,
        bytes: member.bytes,
        state: String::new(),
        why: None,
        parked_for: None,
        failures: None,
        household: true,
    }
}

fn part(info: &LaneInfo, bytes: u64) -> LaneProgress {
    LaneProgress {
        owner: info.owner.clone(),
        uplink: info.uplink.clone(),
        lent: info.peer.is_some(),
        rate: 0,
        bytes,
        state: String::new(),
        why: None,
        parked_for: None,
        failures: None,
        household: info.kind == UplinkKind::Household,
    }
}

const fn code(error: &DownloadError) -> u8 {
    match error {
        DownloadError::Url { .. } | DownloadError::Header(_) => USAGE,
        DownloadError::NoLanes
        | DownloadError::LanesGone { .. }
        | DownloadError::NoHolder { .. }
        | DownloadError::Unreachable { .. }
        | DownloadError::Stalled { .. } => UNREACHABLE,
        DownloadError::Certificate { .. }
        | DownloadError::ClockNotSet { .. }
        | DownloadError::Status { .. }
        | DownloadError::Redirect { .. }
        | DownloadError::Answer { .. }
        | DownloadError::Changing { .. }
        | DownloadError::Broken { .. } => ORIGIN,
        DownloadError::Store(StoreError::Checksum { .. }) => CHECKSUM,
        DownloadError::Store(StoreError::NotTaken { .. }) => DAEMON,
        DownloadError::Store(_) => FILE,
        DownloadError::Stopped { .. } => STOPPED,
        DownloadError::Task(_) => UNEXPECTED,
    }
}

fn upload_code(error: &UploadError) -> u8 {
    match error {
        UploadError::Url { .. } | UploadError::Usage(_) => USAGE,
        UploadError::Source { .. } | UploadError::Changed { .. } => FILE,
        UploadError::NotTaken(_) => DAEMON,
        UploadError::NoLanes | UploadError::Unreachable { .. } | UploadError::Stalled { .. } => UNREACHABLE,
        UploadError::Certificate { .. }
        | UploadError::Refused { .. }
        | UploadError::Status { .. }
        | UploadError::Answer { .. } => ORIGIN,
        UploadError::Corrupt { .. } => CHECKSUM,
        UploadError::Stopped { .. } => STOPPED,
        UploadError::LeftBehind { error, .. } => upload_code(error),
        UploadError::Task(_) => UNEXPECTED,
    }
}
