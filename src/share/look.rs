//! A topic that is looked for: each member is watched, by the link that it has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::link::Link;
use crate::link::wire::{WATCH, WireError};
use crate::task::Seldom;
use crate::uplink::limit::Bucket;

use super::sharing::Sharing;
use super::wanted::{Breach, Wanted};
use super::wire::{self, LABEL};
use super::{Content, Household, ReadAt, Topic};

/// What a member says in a second, and at once: it tells what changed twenty times a second, and has leaves to tell first.
const NEWS_PER_SECOND: u64 = 200;
const NEWS_AT_ONCE: u64 = 1_000;
/// A watch that ended is asked for again after this, and after twice as long each time: the member may be busy, or of a
/// version that knows no watches.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// A member that breaks the rules does so again at each turn.
static BREACHES: Seldom = Seldom::new(5, Duration::from_secs(600));

/// Ends what is done for a topic when the last one who wants it is gone.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) wanted: Arc<Wanted>,
    pub(super) household: Household,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.wanted.tasks.token().cancel();
        self.household.inner.unwant(&self.wanted);
    }
}

/// A topic that is being looked for.
#[derive(Debug)]
pub struct Look {
    handle: Arc<Handle>,
}

impl Look {
    pub(super) fn new(household: &Household, topic: Topic) -> Self {
        let wanted = household.inner.want(topic);
        let handle = Handle {
            wanted,
            household: household.clone(),
        };
        Self {
            handle: Arc::new(handle),
        }
    }

    pub(super) fn wanted(&self) -> &Arc<Wanted> {
        &self.handle.wanted
    }

    /// Waits until every member that is linked now has said what it has of the topic, for `limit` at most. Whether one has
    /// something, or is fetching it.
    pub async fn answered(&self, limit: Duration) -> bool {
        let wanted = &self.handle.wanted;
        let mut changed = wanted.changed.subscribe();
        let all = async { while !wanted.state().all_answered() && changed.changed().await.is_ok() {} };
        // Who did not answer in time has nothing.
        let _ = tokio::time::timeout(limit, all).await;
        wanted.state().is_there()
    }

    /// It is that content which this device fetches: from now on it serves what it has of it, and reads that from `bytes`.
    /// Once more: it is another one now.
    pub fn begin(&self, content: Content, bytes: Arc<dyn ReadAt>) -> Sharing {
        self.handle.wanted.state().begin(content, bytes);
        self.handle.wanted.tick();
        self.handle.household.inner.set_changed();
        Sharing::new(Arc::clone(&self.handle))
    }
}

/// Watches a member for as long as its link stands, or the topic is looked for.
pub(super) async fn watch(household: Household, wanted: Arc<Wanted>, link: Arc<Link>) {
    let mut pause = AGAIN;
    loop {
        let began = Instant::now();
        let error = follow(&household, &wanted, &link).await;
        if let Ended::Breach(error) = &error
            && let Some(more) = BREACHES.pass()
        {
            tracing::warn!(peer = %link.peer().short(), name = ?link.name(), %error, more, "a member broke the rules of sharing");
        }
        if let Ended::Wire(error) = error {
            tracing::debug!(peer = %link.peer().short(), %error, "a watch ended");
        }
        wanted.state().fell_silent(&link);
        wanted.tick();
        if !link.is_up() {
            return;
        }
        if began.elapsed() > AGAIN_AT_MOST {
            pause = AGAIN;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_AT_MOST);
    }
}

/// Why a watch ended.
#[derive(Debug)]
enum Ended {
    Wire(WireError),
    Breach(Breach),
}

async fn follow(household: &Household, wanted: &Wanted, link: &Arc<Link>) -> Ended {
    let Some(secret) = link.exporter(LABEL) else {
        return Ended::Wire(WireError::Malformed);
    };
    let topics = wanted.topic.keyed(&secret);
    let mut stream = match link.ask(WATCH, &topics).await {
        Ok(stream) => stream,
        Err(error) => return Ended::Wire(error),
    };
    let mut may = Bucket::new(
        NEWS_PER_SECOND,
        Duration::from_secs(1),
        NEWS_AT_ONCE,
        Instant::now(),
    );
    loop {
        let heard = match stream.hear().await {
            Ok((kind, body)) => wire::decode(kind, &body),
            Err(error) => Err(error),
        };
        let news = match heard {
            Ok(news) => news,
            Err(error) => return Ended::Wire(error),
        };
        let standing = household.inner.standing();
        let heard = wanted.state().hear(link, news, topics.len(), standing);
        if let Err(breach) = heard {
            return Ended::Breach(breach);
        }
        wanted.tick();
        // What came from one may be passed on to others: leaves.
        household.inner.tell();
        if let Err(until) = may.take(1, Instant::now()) {
            tokio::time::sleep_until(until.into()).await;
        }
    }
}
