//! The task: follows the network's interfaces, feeds sightings into the table, tells its reader, and says goodbye.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::discovery::Event;
use crate::discovery::packet::Announcement;
use crate::discovery::session::{self, Face, Heard, Session};
use crate::discovery::table::Table;
use crate::task::Tasks;
use crate::uplink::Network;

/// Least time between two sets of sockets: an interface that flaps costs some packets each this long.
const RESTART_GAP: Duration = Duration::from_millis(500);
/// When to try again what failed: no socket, no memory.
const RETRY: Duration = Duration::from_secs(10);
/// How long after a new beginning those who have not answered are taken as gone: all answer within two seconds.
const SETTLED: Duration = Duration::from_secs(10);
/// A household that answers has done so by then; see [`Run::say_if_alone`].
const ALONE: Duration = Duration::from_secs(10);
/// When to ask anew after dropping new names of a flood: one of them may have been a peer.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// Questions after a new beginning: one may be lost, or come before a switch lets packets through. After that, those who
/// come announce themselves, and those who are there do so again and again.
const QUESTIONS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(6),
];
/// The second announcement follows the first (RFC 6762, 8.3).
const SECOND: Duration = Duration::from_secs(1);
/// Then a peer announces itself so often, and as much longer as its name says: well within the life of what it says, so
/// that nobody has to ask for it.
const ANNOUNCE: Duration = Duration::from_secs(60);
/// Spread over so many seconds, so that a household that started at once does not speak at once.
const ANNOUNCE_SPREAD: u8 = 30;
/// How often those who were not heard of for long are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// Discovery's state.
pub(super) struct Run {
    announcement: Announcement,
    only: Option<Vec<String>>,
    network: watch::Receiver<Arc<Network>>,
    events: mpsc::Sender<Event>,
    tasks: Tasks,
    table: Table,
    faces: Vec<Face>,
    session: Option<Session>,
    /// When the session was begun, if there was one yet.
    begun: Option<Instant>,
    restart_at: Option<Instant>,
    ask_at: Option<Instant>,
    /// Questions asked since the session began.
    asked: usize,
    announce_at: Option<Instant>,
    announced: u64,
    /// When to forget whom nobody has seen since that count of the table's.
    forget_at: Option<(Instant, u64)>,
    sweep_at: Instant,
    alone_at: Option<Instant>,
}

impl Run {
    /// Begins announcing and asking, if there is a LAN interface yet.
    pub(super) fn start(
        announcement: Announcement,
        only: Option<Vec<String>>,
        mut network: watch::Receiver<Arc<Network>>,
        events: mpsc::Sender<Event>,
        tasks: &Tasks,
    ) -> Self {
        let faces = session::faces(&network.borrow_and_update(), only.as_deref());
        let now = Instant::now();
        let mut run = Self {
            announcement,
            only,
            network,
            events,
            tasks: tasks.clone(),
            table: Table::new(now),
            faces,
            session: None,
            begun: None,
            restart_at: None,
            ask_at: None,
            asked: 0,
            announce_at: None,
            announced: 0,
            forget_at: None,
            sweep_at: now + SWEEP,
            alone_at: None,
        };
        run.begin();
        run
    }

    /// Runs until `end` or until nobody reads events any more; then says goodbye.
    pub(super) async fn until(mut self, end: CancellationToken) {
        let events = self.events.clone();
        loop {
            let answer_at = self.session.as_ref().and_then(Session::answer_at);
            tokio::select! {
                () = end.cancelled() => break,
                () = events.closed() => break,
                // No more changes if the watcher is gone: what there is goes on.
                Ok(()) = self.network.changed() => self.follow_network(),
                heard = next_heard(self.session.as_mut()) => self.take(heard),
                Ok(permit) = events.reserve(), if self.table.has_event() => {
                    if let Some(event) = self.table.next_event() {
                        permit.send(event);
                    }
                }
                () = at(answer_at) => self.answer(),
                () = at(self.ask_at) => self.ask(),
                () = at(self.announce_at) => self.announce(),
                () = at(self.restart_at) => self.restart(),
                () = at(self.forget_at.map(|(time, _)| time)) => self.forget_unseen(),
                () = at(self.alone_at) => self.say_if_alone(),
                () = tokio::time::sleep_until(self.sweep_at) => self.sweep(),
            }
        }
        if let Some(session) = self.session.take() {
            session.close();
        }
    }

    fn follow_network(&mut self) {
        let faces = session::faces(&self.network.borrow_and_update(), self.only.as_deref());
        if faces != self.faces {
            self.faces = faces;
            let now = Instant::now();
            self.restart_at = Some(self.begun.map_or(now, |begun| now.max(begun + RESTART_GAP)));
        }
    }

    fn take(&mut self, heard: Heard) {
        let Some(session) = &mut self.session else { return };
        let now = Instant::now();
        for sighting in session.take(heard, &self.network.borrow(), self.only.as_deref()) {
            match sighting {
                Ok(found) => {
                    self.alone_at = None;
                    if !self.table.seen(found, now) {
                        let again = now + ASK_AGAIN;
                        self.ask_at = Some(self.ask_at.map_or(again, |at| at.min(again)));
                    }
                }
                Err(instance) => self.table.lost(&instance),
            }
        }
    }

    fn answer(&mut self) {
        if let Some(session) = &mut self.session {
            session.answer(&self.network.borrow());
        }
    }

    fn ask(&mut self) {
        self.asked += 1;
        let next = QUESTIONS.get(self.asked);
        self.ask_at = next.map(|pause| Instant::now() + *pause);
        if let Some(session) = &self.session {
            session.ask();
        }
    }

    fn announce(&mut self) {
        self.announced += 1;
        let spread = self.announcement.instance.bytes().fold(0_u8, u8::wrapping_add) % ANNOUNCE_SPREAD;
        let pause = match self.announced {
            1 => SECOND,
            _ => ANNOUNCE + Duration::from_secs(spread.into()),
        };
        self.announce_at = Some(Instant::now() + pause);
        if let Some(session) = &self.session {
            session.announce(&self.network.borrow());
        }
    }

    /// The ended session took with it the word of who would have said goodbye or gone silent.
    fn forget_unseen(&mut self) {
        if let Some((_, count)) = self.forget_at.take() {
            self.table.forget_unseen_since(count);
        }
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.sweep_at = now + SWEEP;
        self.table.forget_silent(now);
    }

    /// Once: a household of one device is as it should be, but where there are more, multicast does not get through.
    fn say_if_alone(&mut self) {
        self.alone_at = None;
        tracing::info!(
            "no other device answers mDNS here: this one is alone, or the network blocks multicast. It works alone; \
             peers met before and those named in [lan] peers are dialled all the same"
        );
    }

    fn restart(&mut self) {
        if let Some(session) = self.session.take() {
            session.close();
            self.forget_at = Some((Instant::now() + SETTLED, self.table.count()));
        }
        self.begin();
    }

    fn begin(&mut self) {
        self.restart_at = None;
        if self.faces.is_empty() {
            tracing::info!("no LAN interface to look for peers on yet");
            return;
        }
        let now = Instant::now();
        match Session::open(&self.announcement, &self.faces, &self.tasks) {
            Ok(session) => {
                if self.begun.is_none() {
                    self.alone_at = Some(now + ALONE);
                }
                self.begun = Some(now);
                self.session = Some(session);
                (self.asked, self.announced) = (0, 0);
                self.ask_at = Some(now);
                self.announce_at = Some(now);
            }
            Err(error) => {
                tracing::warn!(%error, "no discovery for now: trying again in {RETRY:?}");
                self.restart_at = Some(now + RETRY);
            }
        }
    }
}

async fn next_heard(session: Option<&mut Session>) -> Heard {
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
