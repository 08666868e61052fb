//! Which lanes may serve a job, and in which order.
//!
//! Invariants: of lanes with the same line only one is used, for the others add nothing; content that the way there could
//! change or read (plain http) goes over own uplinks and members' only (HTTP-19).

use std::cmp::Reverse;
use std::sync::Arc;

use crate::lane::Lane;
use crate::lane::LaneInfo;
use crate::trust::Right;
use crate::types::LaneId;
use crate::types::Rate;
use crate::types::UplinkKind;

/// The lanes of one moment, sorted by what this job may do with them.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// To be used; the first is the home lane.
    pub(crate) used: Vec<Arc<dyn Lane>>,
    /// Not to be used, and why.
    pub(crate) unused: Vec<(LaneInfo, String)>,
    /// Of the unused, those that only share another one's line: they take over where that one fails.
    pub(crate) spare: Vec<Arc<dyn Lane>>,
}

/// What a job has seen of a lane so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Nothing.
    Fresh,
    /// It is at work: another one of its line is not taken just because it may be faster.
    Serving,
    /// It does not serve now: any other one of its line is better.
    Failing,
}

/// Which lanes a job may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Lent ones at all.
    pub(crate) pool: bool,
    /// The way there could change the content unseen.
    pub(crate) plain: bool,
}

/// A lane as a download that began now would treat it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Which.
    pub info: LaneInfo,
    /// Why it would not be used, in words. `None`: it would be.
    pub idle: Option<String>,
}

/// What a pooled download over https would do with these lanes, in the order in which it would take them.
pub fn plan(lanes: &[Arc<dyn Lane>]) -> Vec<Planned> {
    let terms = Terms {
        pool: true,
        plain: false,
    };
    let choice = sort_out(lanes, terms, |_| Record::Fresh);
    let used = choice.used.iter().map(|lane| Planned {
        info: lane.info().clone(),
        idle: None,
    });
    let idle = choice.unused.into_iter().map(|(info, why)| Planned {
        info,
        idle: Some(why),
    });
    used.chain(idle).collect()
}

/// Sorts out what a job on these terms may do with which lane, given what it has seen of them.
pub(crate) fn sort_out(lanes: &[Arc<dyn Lane>], terms: Terms, record: impl Fn(LaneId) -> Record) -> Choice {
    let mut ordered: Vec<_> = lanes.iter().collect();
    ordered.sort_by_key(|lane| preference(lane.info(), record(lane.info().id)));
    let mut choice = Choice::default();
    for lane in ordered {
        let info = lane.info();
        if info.peer.is_some() && !terms.pool {
            let why = "the pool is not used for this download".to_owned();
            choice.unused.push((info.clone(), why));
        } else if terms.plain && info.tier.is_some_and(|tier| !tier.may(Right::CarryPlain)) {
            let why = "plain http without a checksum: a lender nobody vouched for could change it".to_owned();
            choice.unused.push((info.clone(), why));
        } else if let Some(other) = choice.used.iter().find(|used| used.info().line == info.line) {
            let why = shares(other.info(), record(info.id));
            choice.unused.push((info.clone(), why));
            choice.spare.push(lane.clone());
        } else {
            choice.used.push(lane.clone());
        }
    }
    choice
}

/// Why a lane is not used beside `other`, which is of its line.
fn shares(other: &LaneInfo, record: Record) -> String {
    let owner = &other.owner;
    match record {
        Record::Failing => format!("failed: {owner} took over on the same line"),
        Record::Fresh | Record::Serving => format!("shares {owner}'s line"),
    }
}

/// What works before what fails; own before lent, free before metered, at work before not, fast before slow, cable before
/// radio; then as they come.
fn preference(info: &LaneInfo, record: Record) -> impl Ord + use<> {
    let rate = info.hint.map_or(0, Rate::as_bits);
    let kind = match info.kind {
        UplinkKind::Wired => 0,
        UplinkKind::Wireless => 1,
        UplinkKind::Cellular => 2,
        UplinkKind::Virtual | UplinkKind::Household => 3,
    };
    let (failing, resting) = (record == Record::Failing, record != Record::Serving);
    let lent = info.peer.is_some();
    (failing, lent, info.metered, resting, Reverse(rate), kind, info.id)
}

/// Whether a lane with this id is among those.
pub(crate) fn has(lanes: &[Arc<dyn Lane>], id: LaneId) -> bool {
    lanes.iter().any(|lane| lane.info().id == id)
}
