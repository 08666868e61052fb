//! One lane, for one part: requests with the part's bytes, of which the driver hears as they leave.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::way::Way;
use super::{Answer, Ask, Content, Trouble};
use crate::stripe::LeaseId;
use crate::types::LaneId;

/// From a part's last byte to its answer: a server may first bring it to slow disks. The scheduler loses patience earlier
/// where another lane could do better.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// What a worker tells the driver while it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upload) struct Moved(pub(in crate::upload) LeaseId, pub(in crate::upload) u64);

/// Tells how much of a part has left.
#[derive(Debug)]
pub(super) struct Meter {
    to: Option<(LeaseId, mpsc::Sender<Moved>)>,
    told: Mutex<Told>,
}

/// What was told of a lease.
#[derive(Debug, Default)]
struct Told {
    /// Bytes; what is sent again is not told again.
    bytes: u64,
    /// Of these, what earlier requests of the lease brought: see [`Line::stored`].
    before: u64,
}

impl Meter {
    pub(super) const fn mute() -> Self {
        Self {
            to: None,
            told: Mutex::new(Told { bytes: 0, before: 0 }),
        }
    }

    /// So much of the exchange's body has left.
    pub(super) fn upto(&self, sent: u64, length: u64) {
        let Some((lease, to)) = &self.to else {
            return;
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = told.before + sent.min(length);
        // Where the driver is behind, the next report says it.
        if now > told.bytes && to.try_send(Moved(*lease, now - told.bytes)).is_ok() {
            told.bytes = now;
        }
    }
}

/// One lane, for one part.
#[derive(Debug)]
pub(in crate::upload) struct Line {
    way: Arc<Way>,
    meter: Meter,
}

impl Line {
    /// The lane, for the part of this lease; what leaves is told to the driver.
    pub(in crate::upload) const fn new(way: Arc<Way>, lease: LeaseId, moved: mpsc::Sender<Moved>) -> Self {
        let meter = Meter {
            to: Some((lease, moved)),
            told: Mutex::new(Told { bytes: 0, before: 0 }),
        };
        Self { way, meter }
    }

    /// Which lane it is.
    pub(in crate::upload) fn lane(&self) -> LaneId {
        self.way.lane.info().id
    }

    /// The server has so many more bytes of the part: what the next request sends comes on top of them. Only for parts that
    /// take several requests.
    pub(in crate::upload) fn stored(&self, bytes: u64) {
        self.meter
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .before += bytes;
    }

    /// One request over this lane.
    pub(in crate::upload) async fn exchange(&self, ask: &Ask) -> Result<Answer, Trouble> {
        let meter = match &ask.content {
            Content::Part(_) => &self.meter,
            Content::Empty | Content::Bytes(_) => &Meter::mute(),
        };
        let host = ask.url.host_str().unwrap_or_default();
        let answer = self.way.exchange(ask, ANSWER_LIMIT, false, meter).await;
        let answer = answer.map_err(|miss| miss.trouble(host))?;
        match answer.status.as_u16() {
            429 | 503 => Err(Trouble::Refused {
                retry_after: answer.retry_after(),
                why: format!("{host} wants less ({})", answer.status),
            }),
            // What it never does, and a full disk, are the target's to tell.
            501 | 505 | 507 => Ok(answer),
            500..=599 => Err(Trouble::Origin(format!("{host} answered {}", answer.status))),
            _ => Ok(answer),
        }
    }
}
