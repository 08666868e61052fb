//! The task: follows the network's interfaces, feeds sightings into the table, tells its reader, and says goodbye.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mdns_sd::ServiceEvent;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::{Jumps, Reading};
use crate::discovery::daemon::{self, Announcement, Face, Session};
use crate::discovery::table::Table;
use crate::discovery::{DiscoveryError, Event};
use crate::task::Seldom;
use crate::uplink::Network;

/// How often the library's cache is measured: a flood was seen to grow it by 10 MB a second.
const CHECK: Duration = Duration::from_secs(2);
/// And while there was one lately: listening ends before the cache costs much.
const CHECK_WARY: Duration = Duration::from_millis(500);
/// How long after a flood it is taken to go on.
const WARY: Duration = Duration::from_secs(30);
/// In a flood nothing is heard for so long: listening all the time took a quarter of a core, a fifth of it takes little, and
/// links do not need mDNS.
const REST: Duration = Duration::from_secs(2);
/// A newcomer does not rest for so long after its start, but begins anew at once: whoever rests listens and asks several
/// times meanwhile, and they meet.
const NEWCOMER: Duration = Duration::from_secs(10);
/// Least time between two lives of the library's thread: an interface that flaps costs two packets each this long.
const RESTART_GAP: Duration = Duration::from_millis(500);
/// When to try again to end a thread that a flood keeps busy.
const CLOSE_AGAIN: Duration = Duration::from_secs(1);
/// When to try again what failed: no thread, no memory.
const RETRY: Duration = Duration::from_secs(10);
/// How long after a new beginning those who have not answered are taken as gone: all answer within two seconds.
const SETTLED: Duration = Duration::from_secs(10);
/// A household that answers has done so by then; see [`Run::say_if_alone`].
const ALONE: Duration = Duration::from_secs(10);
/// When to ask anew after dropping new names of a flood: one of them may have been a peer.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// How often a peer announces itself unasked, and as much longer as its name says. Addresses live for 120 s, and at 80 %
/// of that all who know a peer would ask for it at the same instant: among thirty, 170 kB in a second.
const ANNOUNCE: Duration = Duration::from_secs(60);
/// Spread over so many seconds, so that a household that started at once does not speak at once.
const ANNOUNCE_SPREAD: u8 = 30;

/// What anybody on the LAN can cause, and an interface that flaps, must not fill the log.
static FLOODS: Seldom = Seldom::new(3, Duration::from_secs(600));
static FAILURES: Seldom = Seldom::new(3, Duration::from_secs(600));
static NOWHERE: Seldom = Seldom::new(3, Duration::from_secs(600));

/// Discovery's state.
pub(super) struct Run {
    announcement: Announcement,
    only: Option<Vec<String>>,
    network: watch::Receiver<Arc<Network>>,
    events: mpsc::Sender<Event>,
    table: Table,
    faces: Vec<Face>,
    prefixes: Vec<(IpAddr, u8)>,
    session: Option<Session>,
    /// When the session was begun, if there was one yet.
    begun: Option<Instant>,
    restart_at: Option<Instant>,
    ask_at: Option<Instant>,
    announce_at: Instant,
    check_at: Instant,
    started: Instant,
    wary_until: Option<Instant>,
    /// When to forget whom nobody has seen since that count of the table's.
    forget_at: Option<(Instant, u64)>,
    /// Whether anybody ever answered, or it was said that nobody does.
    settled: bool,
    jumps: Jumps,
}

impl Run {
    /// Begins announcing and asking, if there is a LAN interface yet.
    pub(super) fn start(
        announcement: Announcement,
        only: Option<Vec<String>>,
        mut network: watch::Receiver<Arc<Network>>,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, DiscoveryError> {
        let seen = Arc::clone(&network.borrow_and_update());
        let faces = daemon::faces(&seen, only.as_deref());
        let prefixes = daemon::prefixes(&seen, only.as_deref());
        let session = open(&announcement, &faces, &prefixes)?;
        let now = Instant::now();
        let begun = session.is_some().then_some(now);
        Ok(Self {
            announcement,
            only,
            network,
            events,
            table: Table::new(now),
            faces,
            prefixes,
            session,
            begun,
            restart_at: None,
            ask_at: None,
            announce_at: now + ANNOUNCE,
            check_at: now + CHECK,
            started: now,
            wary_until: None,
            forget_at: None,
            settled: false,
            jumps: Jumps::default(),
        })
    }

    /// Runs until `end` or until nobody reads events any more; then says goodbye.
    pub(super) async fn until(mut self, end: CancellationToken) {
        let events = self.events.clone();
        loop {
            tokio::select! {
                () = end.cancelled() => break,
                () = events.closed() => break,
                // No more changes if the watcher is gone: what there is goes on.
                Ok(()) = self.network.changed() => self.follow_network(),
                // A session about to be replaced may be dead, and say so again and again.
                event = next_event(self.session.as_ref()), if self.restart_at.is_none() => self.take(event),
                Ok(permit) = events.reserve(), if self.table.has_event() => {
                    if let Some(event) = self.table.next_event() {
                        permit.send(event);
                    }
                }
                () = at(self.restart_at) => self.restart().await,
                () = at(self.ask_at) => self.ask_again(),
                () = tokio::time::sleep_until(self.announce_at), if self.restart_at.is_none() => self.announce_again(),
                () = at(self.forget_at.map(|(time, _)| time)) => self.forget_unseen(),
                () = tokio::time::sleep_until(self.check_at), if self.restart_at.is_none() => self.check().await,
            }
        }
        if let Some(session) = &self.session
            && !session.close().await
        {
            tracing::warn!("the mDNS thread did not say goodbye in time");
        }
    }

    fn follow_network(&mut self) {
        let seen = Arc::clone(&self.network.borrow_and_update());
        let faces = daemon::faces(&seen, self.only.as_deref());
        let prefixes = daemon::prefixes(&seen, self.only.as_deref());
        if faces != self.faces {
            self.faces = faces;
            self.prefixes = prefixes;
            self.restart_soon();
        } else if prefixes != self.prefixes {
            if let Some(session) = &self.session {
                session.let_in(&prefixes);
            }
            self.prefixes = prefixes;
        }
    }

    fn restart_soon(&mut self) {
        let now = Instant::now();
        self.restart_at = Some(self.begun.map_or(now, |begun| now.max(begun + RESTART_GAP)));
    }

    /// `None`: the library has closed the channel.
    fn take(&mut self, event: Option<ServiceEvent>) {
        match event {
            Some(ServiceEvent::ServiceResolved(service)) => {
                let found = daemon::candidate(&service, &self.network.borrow(), self.only.as_deref());
                match found {
                    Some(found) if found.instance == self.announcement.instance => {}
                    Some(found) => {
                        self.settled = true;
                        let now = Instant::now();
                        if !self.table.seen(found, now) {
                            self.ask_at.get_or_insert(now + ASK_AGAIN);
                        }
                    }
                    // It has no address on this link any more.
                    None => self.forget(&service.fullname),
                }
            }
            Some(ServiceEvent::ServiceRemoved(_, fullname)) => self.forget(&fullname),
            Some(_) => {}
            None => self.ask_again(),
        }
    }

    fn forget(&mut self, fullname: &str) {
        if let Some(instance) = daemon::instance_of(fullname) {
            self.table.lost(&instance);
        }
    }

    /// The ended session took with it the word of who would have said goodbye or gone silent.
    fn forget_unseen(&mut self) {
        if let Some((_, count)) = self.forget_at.take() {
            self.table.forget_unseen_since(count);
        }
    }

    fn ask_again(&mut self) {
        self.ask_at = None;
        let Some(session) = &mut self.session else {
            return;
        };
        if let Err(error) = session.browse_again() {
            tracing::debug!(%error, "starting the mDNS thread anew");
            self.restart_soon();
        }
    }

    fn announce_again(&mut self) {
        let spread = self.announcement.instance.bytes().fold(0_u8, u8::wrapping_add) % ANNOUNCE_SPREAD;
        self.announce_at = Instant::now() + ANNOUNCE + Duration::from_secs(spread.into());
        if let Some(session) = &self.session
            && let Err(error) = session.announce_again(&self.announcement)
        {
            // Its queue is full, in a flood say: there will be a next time.
            tracing::debug!(%error, "not announced again");
        }
    }

    async fn check(&mut self) {
        self.check_soon();
        self.say_if_alone();
        // The library takes a calendar that was set for a sleep, and forgets records that are good.
        if self.jumps.look(Reading::now()).is_some() {
            self.ask_again();
        }
        if let Some(session) = &self.session
            && !session.is_sound().await
        {
            self.rest().await;
        }
    }

    fn check_soon(&mut self) {
        let now = Instant::now();
        let wary = self.wary_until.is_some_and(|until| now < until);
        if !wary && self.wary_until.take().is_some() {
            daemon::give_memory_back();
        }
        self.check_at = now + if wary { CHECK_WARY } else { CHECK };
    }

    /// A flood: ends the session, with all that the library remembers, and begins another after a while.
    async fn rest(&mut self) {
        let now = Instant::now();
        self.wary_until = Some(now + WARY);
        if let Some(more) = FLOODS.pass() {
            tracing::warn!(
                more,
                "mDNS here has more records than peers explain, or its thread hangs: listening only a fifth of the time \
                 until that ends. Peers that are linked stay so; new ones may take some seconds longer"
            );
        }
        if let Some(session) = self.session.take() {
            if session.close().await {
                let newcomer = now.saturating_duration_since(self.started) < NEWCOMER;
                self.restart_at = Some(if newcomer { now } else { now + REST });
            } else {
                self.session = Some(session);
                self.restart_at = Some(Instant::now() + CLOSE_AGAIN);
            }
        }
    }

    /// Once: a household of one device is as it should be, but where there are more, multicast does not get through.
    fn say_if_alone(&mut self) {
        if !self.settled && self.begun.is_some_and(|begun| begun.elapsed() >= ALONE) {
            self.settled = true;
            tracing::info!(
                "no other device answers mDNS here: this one is alone, or the network blocks multicast. It works alone; \
                 peers met before and those named in [lan] peers are dialled all the same"
            );
        }
    }

    async fn restart(&mut self) {
        if let Some(session) = &self.session
            && !session.close().await
        {
            self.restart_at = Some(Instant::now() + CLOSE_AGAIN);
            return;
        }
        self.session = None;
        self.restart_at = None;
        let now = Instant::now();
        self.forget_at = Some((now + SETTLED, self.table.count()));
        self.check_soon();
        match open(&self.announcement, &self.faces, &self.prefixes) {
            Ok(session) => {
                self.begun = session.is_some().then_some(now);
                self.session = session;
            }
            Err(error) => {
                if let Some(more) = FAILURES.pass() {
                    tracing::warn!(%error, more, "no discovery for now: trying again in {RETRY:?}");
                }
                self.restart_at = Some(now + RETRY);
            }
        }
    }
}

fn open(
    announcement: &Announcement,
    faces: &[Face],
    prefixes: &[(IpAddr, u8)],
) -> Result<Option<Session>, DiscoveryError> {
    if faces.is_empty() {
        if let Some(more) = NOWHERE.pass() {
            tracing::info!(more, "no LAN interface to look for peers on yet");
        }
        return Ok(None);
    }
    Session::open(announcement, faces, prefixes).map(Some)
}

async fn next_event(session: Option<&Session>) -> Option<ServiceEvent> {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
