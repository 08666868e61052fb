//! What the driver does when something happens: a worker's news, a version check's finding, lanes that come and go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::task::AbortOnDropHandle;

use super::{Doubt, Driver, Ending, MAX_CONNECTIONS, SLOTS};
use crate::download::answer::Why;
use crate::download::check::{Finding, check};
use crate::download::error::DownloadError;
use crate::download::lanes::{Member, choose};
use crate::download::route::Route;
use crate::download::worker::{End, News};
use crate::lane::Lane;
use crate::stripe::Failure;
use crate::stripe::LaneSpec;
use crate::stripe::LeaseId;
use crate::transfer::has;
use crate::types::ByteRange;
use crate::types::LaneId;

/// Round trips in the first answer's time: TCP, TLS, and the request itself.
const SET_UP: u32 = 3;

impl Driver {
    pub(super) fn hear(&mut self, news: News) -> Result<Option<Ending>, DownloadError> {
        let now = Instant::now();
        match news {
            News::Bytes(lease, n) => {
                let new = self.scheduler.bytes(lease, n, now);
                self.alive = self.alive.max(now);
                let lane = self.workers.get_mut(&lease).map(|worker| {
                    worker.heard = now;
                    worker.lane
                });
                if let Some(member) = lane.and_then(|lane| self.members.get_mut(&lane)) {
                    member.bytes += new;
                    member.faults = 0;
                    member.trouble = None;
                    member.busy = false;
                }
                self.hash_soon();
                Ok(None)
            }
            News::Right(lease, right) => {
                self.brought(lease, right, now);
                Ok(None)
            }
            News::Ended(lease, _, end) if self.is_source(lease) => {
                self.source_ended(lease, end, now)?;
                Ok(None)
            }
            News::Ended(lease, at, end) => {
                let Some(worker) = self.workers.get(&lease) else {
                    return Ok(None);
                };
                let lane = worker.lane;
                if let End::OtherGeneration {
                    pinned,
                    tolerant,
                    seen,
                } = end
                {
                    self.doubt(
                        lease,
                        Doubt {
                            at,
                            pinned,
                            tolerant,
                            seen,
                        },
                    );
                    return Ok(None);
                }
                self.forget(lease);
                self.ended(lease, lane, end, now)
            }
        }
    }

    fn ended(
        &mut self,
        lease: LeaseId,
        lane: LaneId,
        end: End,
        now: Instant,
    ) -> Result<Option<Ending>, DownloadError> {
        match end {
            // The scheduler knows from the bytes. A `Shrink` that came too late may have let it end early: then the
            // rest of its old range is somebody else's already.
            End::Done | End::OtherGeneration { .. } => {}
            // These two only sources say.
            End::Wrong(_) | End::Lied => {}
            End::Store(error) => return Err(error.into()),
            End::Ineligible(why) => return self.ineligible(lane, why, lease),
            End::Fault(status) => {
                self.last_fault = Some(status);
                self.last_failure = format!("the origin answered {status}");
                if let Some(member) = self.members.get_mut(&lane) {
                    member.faults += 1;
                }
                self.scheduler.lease_failed(lease, Failure::Origin, now);
            }
            End::Busy => {
                if let Some(member) = self.members.get_mut(&lane) {
                    member.busy = true;
                }
                let text = "limit reached: its owner lends no more at once".to_owned();
                let failure = Failure::Refused { retry_after: None };
                return self.ended(lease, lane, End::Failed(failure, text), now);
            }
            End::Failed(failure, text) => {
                tracing::debug!(%lane, %text, "lease failed");
                self.last_failure.clone_from(&text);
                if let Some(member) = self.members.get_mut(&lane) {
                    member.trouble = Some(text);
                }
                if let (Some(member), Failure::Refused { .. }) = (self.members.get(&lane), failure) {
                    // The origin counts connections: those in reserve are too many now.
                    member.route.close_idle();
                }
                if let Failure::Refused {
                    retry_after: Some(wait),
                } = failure
                {
                    self.alive = self.alive.max(now + wait);
                }
                self.scheduler.lease_failed(lease, failure, now);
            }
        }
        Ok(None)
    }

    fn ineligible(
        &mut self,
        lane: LaneId,
        why: Why,
        lease: LeaseId,
    ) -> Result<Option<Ending>, DownloadError> {
        tracing::debug!(%lane, %why, "lane cannot serve this download");
        self.last_failure = why.to_string();
        if let Some(member) = self.members.get_mut(&lane) {
            member.ineligible = Some(why);
            member.route.close_idle();
        }
        self.scheduler
            .lease_failed(lease, Failure::Ineligible, Instant::now());
        if self.relieve(Instant::now()) {
            return Ok(None);
        }
        let mut whys = self.members.values().map(|m| m.ineligible.as_ref());
        let Some(whys) = whys.by_ref().collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        if whys.contains(&&Why::NoRange) || whys.contains(&&Why::Encoded) {
            return Ok(Some(Ending::NoRanges));
        }
        let host = self.shared.host();
        Err(match whys.first() {
            Some(&&Why::Status(status)) => DownloadError::Status { host, status },
            _ => DownloadError::Answer {
                host,
                why: self.last_failure.clone(),
            },
        })
    }

    /// A lane brings another version: its lease waits until the home lane has been asked.
    fn doubt(&mut self, lease: LeaseId, doubt: Doubt) {
        self.doubted.insert(lease, doubt);
        if self.checking.is_none()
            && let Some(witness) = self.witness()
        {
            let check = check(witness, self.known.clone());
            let task = self.shared.tasks.spawn("version check", check);
            self.checking = Some(AbortOnDropHandle::new(task));
        }
    }

    /// The lane to ask which version there is: the first one, or one that has brought bytes where that is gone.
    fn witness(&self) -> Option<Arc<Route>> {
        let home = self.home_lane().and_then(|id| self.members.get(&id));
        let proven = || self.members.values().find(|m| m.bytes > 0);
        let member = home.or_else(proven).map(|m| m.route.clone());
        member.or_else(|| self.home.as_ref().map(|home| home.route.clone()))
    }

    /// The lane of the first answer.
    pub(super) fn home_lane(&self) -> Option<LaneId> {
        self.home.as_ref().map(|home| home.route.lane.info().id)
    }

    pub(super) fn checked(&mut self, finding: &Finding) -> Result<Option<Ending>, DownloadError> {
        tracing::debug!(?finding, "version checked");
        let has_digest = self.shared.job.sha256.is_some();
        match finding {
            Finding::Changed => return Ok(Some(Ending::Changed)),
            Finding::Unsteady { same_length: true } if has_digest => {
                Arc::make_mut(&mut self.known).generation.validator = None;
            }
            Finding::Unsteady { .. } => return Ok(Some(Ending::Unsteady)),
            Finding::Unchanged | Finding::Unknown => {}
        }
        for (lease, doubt) in std::mem::take(&mut self.doubted) {
            let Some(worker) = self.workers.get(&lease) else {
                continue;
            };
            let (lane, end) = (worker.lane, worker.end.load(Ordering::Relaxed));
            if matches!(finding, Finding::Unknown) {
                self.forget(lease);
                let text = "another version, and the first lane cannot be asked".to_owned();
                self.ended(lease, lane, End::Failed(Failure::Broken, text), Instant::now())?;
                continue;
            }
            if let Some(ending) = self.settle_doubt(lease, lane, doubt, end)? {
                return Ok(Some(ending));
            }
        }
        Ok(None)
    }

    /// The content is the same: so the lane shall ask the very server that the home lane asked (HTTP-9). Where it does
    /// already, it may stay only if a digest will decide.
    fn settle_doubt(
        &mut self,
        lease: LeaseId,
        lane: LaneId,
        doubt: Doubt,
        end: u64,
    ) -> Result<Option<Ending>, DownloadError> {
        let is_home = self.home_lane() == Some(lane);
        self.forget(lease);
        let (Some(member), Some(home)) = (self.members.get_mut(&lane), &self.home) else {
            return Ok(None);
        };
        if !doubt.pinned {
            member.route.pin(home.address);
        } else if self.shared.job.sha256.is_some() && !doubt.tolerant {
            member.any_version = true;
        } else if is_home {
            let text = "the origin's versions take turns".to_owned();
            return self.ended(lease, lane, End::Failed(Failure::Broken, text), Instant::now());
        } else {
            member.seen = doubt.seen;
            let larger = self.larger_group();
            let ended = self.ineligible(lane, Why::OtherGeneration, lease);
            return larger.map_or(ended, |lane| Ok(Some(Ending::Outnumbered(lane))));
        }
        self.start(lease, lane, ByteRange::new(doubt.at, end));
        Ok(None)
    }

    /// A lane of the version that more lanes see than the one being fetched; none once half of this one is there.
    fn larger_group(&self) -> Option<LaneId> {
        let is_early = self.part.written().len() < self.known.generation.total / 2;
        if !self.may_regroup || !is_early {
            return None;
        }
        let serving = self
            .members
            .values()
            .filter(|m| m.ineligible.is_none() && m.seen.is_none())
            .count();
        let group = |m: &Member| self.members.values().filter(|other| other.seen == m.seen).count();
        let others = self.members.iter().filter(|(_, m)| m.seen.is_some());
        let (&lane, size) = others
            .map(|(lane, m)| (lane, group(m)))
            .max_by_key(|(_, size)| *size)?;
        (size > serving).then_some(lane)
    }

    pub(super) fn change_lanes(&mut self) {
        let now = Instant::now();
        let lanes = self.lanes.borrow_and_update().clone();
        self.choice = choose(&lanes, &self.shared.job, |id| self.record(id, now));
        // The lane of the first answer first: it has the first bytes under way.
        let home = self.home_lane();
        self.choice.used.sort_by_key(|lane| Some(lane.info().id) != home);
        let gone: Vec<LaneId> = self
            .members
            .keys()
            .copied()
            .filter(|&id| !has(&self.choice.used, id))
            .collect();
        for lane in gone {
            self.lane_down(lane, now);
        }
        for lane in self.choice.used.clone() {
            let id = lane.info().id;
            let free = MAX_CONNECTIONS.saturating_sub(self.members.len() * SLOTS);
            if let Some(member) = self.members.get_mut(&id) {
                // The same way out, of which more is known now.
                member.info.clone_from(lane.info());
                continue;
            }
            if free == 0 {
                continue;
            }
            self.lane_up(&lane, SLOTS.min(free), now);
        }
    }

    fn lane_up(&mut self, lane: &Arc<dyn Lane>, slots: usize, now: Instant) {
        let info = lane.info();
        let warm = self.routes.iter().find(|r| r.lane.info().id == info.id);
        let route = warm.cloned().unwrap_or_else(|| {
            let route = Arc::new(Route::new(lane.clone(), self.shared.clone()));
            route.warm(slots);
            route
        });
        let home = self.home.as_ref().filter(|home| Arc::ptr_eq(&home.route, &route));
        let first = home.and_then(|home| home.first.as_ref());
        let spec = LaneSpec {
            slots,
            metered: info.metered,
            hint: info.hint,
            latency: home.map_or(Duration::ZERO, |home| home.latency / SET_UP),
        };
        // All that the first answer carries is its lane's work: to drop it half-way and ask again would cost a small
        // file more than other lanes could win back.
        let adopted = first.map(|first| ByteRange::new(first.body.start + first.skip, first.body.end));
        self.members.insert(info.id, Member::new(route));
        self.scheduler.lane_up(info.id, spec, now);
        if let Some(range) = adopted
            && let Some(lease) = self.scheduler.adopt(info.id, range, now)
        {
            self.start(lease, info.id, range);
        }
        // Its first leases are started before the next lane comes, so that the home lane gets the first bytes.
        self.act();
    }

    fn lane_down(&mut self, lane: LaneId, now: Instant) {
        tracing::info!(%lane, "lane is gone");
        self.scheduler.lane_down(lane, now);
        let leases: Vec<LeaseId> = self
            .workers
            .iter()
            .filter(|(_, w)| w.lane == lane)
            .map(|(&id, _)| id)
            .collect();
        for lease in leases {
            self.forget(lease);
        }
        self.routes.retain(|r| r.lane.info().id != lane);
        self.former.extend(self.members.remove(&lane));
    }
}
