//! The daemon's side of the control API.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::download::Files;
use crate::store::Sender;
use crate::task::Tasks;
use crate::upload::Sources;

use super::convert::{DAEMON, REFUSED, STOPPED};
use super::handover::{Answer, Asked, Remote};
use super::source::RemoteSources;
use super::wire::{Line, Wire, within};
use super::{
    ApproveRequest, Change, Compared, Done, Failed, GetRequest, Household, Progress, PutRequest, Reply,
    Request, ShareRequest, SharedFiles, Status,
};

/// Each may hold a download; a household's devices do a few at a time.
const MAX_CLIENTS: usize = 32;
/// Of these, one user's: four busy users do not lock each other out.
const MAX_OF_USER: usize = 8;
/// A client sends its request at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// As often as a bar is drawn.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Where a connection cannot be accepted (no descriptor is free, as a rule), the next try comes after this.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// A download or an upload under way.
pub struct Transfer {
    /// How far it is.
    pub progress: watch::Receiver<Progress>,
    /// What becomes of it.
    pub outcome: BoxFuture<'static, Result<Done, Failed>>,
    /// Stops it, resumably.
    pub stop: CancellationToken,
    /// Stops it, and removes what an upload has sent.
    pub abort: CancellationToken,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").finish_non_exhaustive()
    }
}

/// What the daemon can do for a client.
pub trait Handler: Send + Sync + 'static {
    /// Who is there and what is running.
    fn status(&self) -> Status;
    /// Begins a download into these files. Fails where the request itself is wrong, or where the household does not offer
    /// what it names: that takes some seconds at most to find out.
    fn get(&self, request: GetRequest, files: Arc<dyn Files>) -> BoxFuture<'_, Result<Transfer, Failed>>;
    /// Begins an upload of what is in these sources, for that user.
    ///
    /// # Errors
    /// Where the request itself is wrong.
    fn put(&self, request: PutRequest, sources: Arc<dyn Sources>, user: u32) -> Result<Transfer, Failed>;
    /// Begins to offer the one file that is in these sources to the household.
    ///
    /// # Errors
    /// Where the request itself is wrong.
    fn share(&self, request: ShareRequest, sources: Arc<dyn Sources>) -> Result<Transfer, Failed>;
    /// Offers it no more: what has this name or SHA-256.
    fn unshare(&self, what: String) -> BoxFuture<'_, Result<SharedFiles, Failed>>;
    /// What this device and members offer.
    fn shared(&self) -> BoxFuture<'_, SharedFiles>;
    /// Who is there, and how far each is trusted.
    fn peers(&self) -> Household;
    /// Changes who is trusted. Dropping what comes back ends it.
    fn change(&self, change: Change) -> BoxFuture<'static, Result<Reply, Failed>>;
    /// Begins to approve a device.
    ///
    /// # Errors
    /// Where it cannot begin.
    fn approve(&self, request: ApproveRequest) -> Result<Approval, Failed>;
}

/// An approval under way; dropping it ends it.
pub struct Approval {
    /// How far it is; the last one is [`Reply::Changed`] or [`Reply::Failed`].
    pub news: mpsc::Receiver<Reply>,
    /// Hears what a person says of the code; dropping it ends the approval.
    pub person: Box<dyn Comparing>,
}

/// Hears what a person says of a code.
pub trait Comparing: Send + Sync {
    /// Whether it is the same on the other device.
    fn compared(&self, same: bool);
}

impl std::fmt::Debug for Approval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Approval").finish_non_exhaustive()
    }
}

/// Listens at `socket` (0660) and serves clients until the scope ends. A socket left by a crash is replaced.
///
/// # Errors
/// Where the socket cannot be made.
pub fn serve(socket: &Path, handler: Arc<dyn Handler>, tasks: &Tasks) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    let scope = tasks.clone();
    tasks.spawn("control", async move {
        let guests = Arc::new(Guests::default());
        loop {
            match listener.accept().await {
                Ok((stream, _)) => admit(stream, &guests, &handler, &scope),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the command line");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    });
    Ok(())
}

/// Those who are being served, by user.
#[derive(Debug, Default)]
struct Guests(Mutex<BTreeMap<u32, usize>>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct Guest {
    of: Arc<Guests>,
    uid: u32,
}

impl Guests {
    fn admit(self: &Arc<Self>, uid: u32) -> Result<Guest, String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.get(&uid).copied().unwrap_or(0);
        if own >= MAX_OF_USER {
            return Err(format!(
                "the daemon is busy with {own} requests of this user already"
            ));
        }
        let count: usize = all.values().sum();
        if count >= MAX_CLIENTS {
            return Err(format!("the daemon is busy with {count} requests"));
        }
        all.insert(uid, own + 1);
        let of = Arc::clone(self);
        Ok(Guest { of, uid })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut all = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(all.remove(&self.uid)),
        }
    }
}

fn admit(stream: UnixStream, guests: &Arc<Guests>, handler: &Arc<dyn Handler>, scope: &Tasks) {
    let Ok(uid) = stream.peer_cred().map(|c| c.uid()) else {
        return;
    };
    match guests.admit(uid) {
        Ok(guest) => {
            let (handler, tasks) = (Arc::clone(handler), scope.clone());
            scope.spawn_graceful("control-client", async move {
                tracing::debug!(uid, "a control client");
                if let Err(error) = client(Wire::new(stream), Sender { uid }, &*handler, &tasks).await {
                    tracing::debug!(uid, %error, "a control client's connection broke");
                }
                drop(guest);
            });
        }
        Err(busy) => {
            tracing::debug!(uid, busy, "a control client was turned away");
            if let Ok(mut line) = serde_json::to_vec(&refused(busy)) {
                line.push(b'\n');
                // A new connection has room for a line; who does not hear it sees the end all the same.
                let _ = stream.try_write(&line);
            }
        }
    }
}

async fn client(mut wire: Wire, sender: Sender, handler: &dyn Handler, tasks: &Tasks) -> io::Result<()> {
    let request = match within(REQUEST_WITHIN, wire.line()).await {
        Ok(Some(line)) => line.parse(),
        Ok(None) => return Ok(()),
        Err(error) => return wire.say(&refused(error.to_string())).await,
    };
    match request {
        Ok(Request::Status) => wire.say(&Reply::Status(handler.status())).await,
        Ok(Request::Get(request)) => {
            let (files, asks) = Remote::new(sender, tasks);
            match handler.get(request, Arc::new(files)).await {
                Ok(transfer) => Served::new(wire, transfer).until_done(asks).await,
                Err(failed) => wire.say(&Reply::Failed(failed)).await,
            }
        }
        Ok(Request::Put(request)) => {
            let (sources, asks) = RemoteSources::new(sender, tasks);
            match handler.put(request, Arc::new(sources), sender.uid) {
                Ok(transfer) => Served::new(wire, transfer).until_done(asks).await,
                Err(failed) => wire.say(&Reply::Failed(failed)).await,
            }
        }
        Ok(Request::Share(request)) => {
            let (sources, asks) = RemoteSources::new(sender, tasks);
            match handler.share(request, Arc::new(sources)) {
                Ok(transfer) => Served::new(wire, transfer).until_done(asks).await,
                Err(failed) => wire.say(&Reply::Failed(failed)).await,
            }
        }
        Ok(Request::Unshare(what)) => {
            let stopped = handler.unshare(what).await;
            wire.say(&stopped.map_or_else(Reply::Failed, Reply::Shared)).await
        }
        Ok(Request::Shared) => wire.say(&Reply::Shared(handler.shared().await)).await,
        Ok(Request::Peers) => wire.say(&Reply::Peers(handler.peers())).await,
        Ok(Request::Change(_) | Request::Approve(_)) if !is_owner(sender.uid) => {
            wire.say(&Reply::Failed(not_allowed())).await
        }
        Ok(Request::Change(change)) => {
            let done = handler.change(change);
            tokio::select! {
                done = done => wire.say(&done.unwrap_or_else(Reply::Failed)).await,
                // Whatever it says now, it says too much; as a rule it has hung up.
                _ = wire.line() => Ok(()),
            }
        }
        Ok(Request::Approve(request)) => match handler.approve(request) {
            Ok(approval) => approve(wire, approval).await,
            Err(failed) => wire.say(&Reply::Failed(failed)).await,
        },
        Err(error) => {
            let message = format!("the daemon does not understand the request: {error}");
            wire.say(&refused(message)).await
        }
    }
}

/// Passes on how an approval goes, and what its person says.
async fn approve(mut wire: Wire, mut approval: Approval) -> io::Result<()> {
    loop {
        tokio::select! {
            news = approval.news.recv() => match news {
                Some(reply) => wire.say(&reply).await?,
                None => return Ok(()),
            },
            line = wire.line() => match line?.map(|line| line.parse()) {
                Some(Ok(Compared { same })) => approval.person.compared(same),
                // It has hung up, or makes no sense.
                _ => return Ok(()),
            },
        }
    }
}

/// Whether this user may change who is trusted: whoever could also change the daemon's own files.
fn is_owner(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

fn not_allowed() -> Failed {
    Failed {
        code: REFUSED,
        message:
            "only root and the user that the daemon runs as may change who is trusted: run it again with sudo"
                .into(),
    }
}

const fn refused(message: String) -> Reply {
    Reply::Failed(Failed {
        code: DAEMON,
        message,
    })
}

/// A client whose transfer is under way.
struct Served {
    wire: Wire,
    transfer: Transfer,
    /// Who waits for the client's answer.
    waiting: Option<oneshot::Sender<(Answer, Line)>>,
    /// The client wants no more.
    stopped: bool,
    /// The client cannot be spoken with any more, or not sensibly; why.
    gone: Option<String>,
}

impl Served {
    const fn new(wire: Wire, transfer: Transfer) -> Self {
        Self {
            wire,
            transfer,
            waiting: None,
            stopped: false,
            gone: None,
        }
    }

    /// Tells the client how the transfer goes, and asks it for its files; its hanging up, its not reading, and nonsense
    /// stop it, resumably. Returns when that is over in any case, so that what it holds is counted as this client's.
    async fn until_done(mut self, mut asks: mpsc::Receiver<Asked>) -> io::Result<()> {
        let mut every = tokio::time::interval(PROGRESS_EVERY);
        loop {
            tokio::select! {
                outcome = &mut self.transfer.outcome => return self.last(outcome).await,
                Some(asked) = asks.recv() => self.ask(asked).await,
                line = self.wire.line(), if self.gone.is_none() => self.hear(line),
                _ = every.tick(), if self.gone.is_none() => {
                    let now = self.transfer.progress.borrow().clone();
                    self.say(&Reply::Progress(now)).await;
                }
            }
        }
    }

    async fn last(self, outcome: Result<Done, Failed>) -> io::Result<()> {
        let reply = match (outcome, self.gone) {
            (_, Some(why)) => refused(why),
            (Ok(done), None) => Reply::Done(done),
            // Not by its user, who may go on without us.
            (Err(failed), None) if failed.code == STOPPED && !self.stopped => {
                refused("the daemon is ending".into())
            }
            (Err(failed), None) => Reply::Failed(failed),
        };
        self.wire.say(&reply).await
    }

    async fn ask(&mut self, Asked { ask, answer }: Asked) {
        // Where the client is gone the answer's sender is dropped, which says so.
        if self.gone.is_none() {
            self.waiting = Some(answer);
            self.say(&Reply::Files(ask)).await;
        }
    }

    fn hear(&mut self, line: io::Result<Option<Line>>) {
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return self.lose("the client hung up".into()),
            Err(error) => return self.lose(error.to_string()),
        };
        match (line.parse(), self.waiting.take()) {
            (Ok(Answer::Stop), waiting) => {
                self.waiting = waiting;
                self.stopped = true;
                self.transfer.stop.cancel();
            }
            (Ok(Answer::Abort), waiting) => {
                self.waiting = waiting;
                self.stopped = true;
                self.transfer.abort.cancel();
            }
            // Nobody waits any more: it took too long, and the transfer is over.
            (Ok(answer), Some(waiting)) => drop(waiting.send((answer, line))),
            (Ok(_), None) => self.lose("the daemon was answered without having asked".into()),
            (Err(error), _) => self.lose(format!("the daemon does not understand the answer: {error}")),
        }
    }

    async fn say(&mut self, reply: &Reply) {
        if let Err(error) = self.wire.say(reply).await {
            self.lose(error.to_string());
        }
    }

    fn lose(&mut self, why: String) {
        tracing::debug!(why, "a transfer's client is gone");
        self.gone.get_or_insert(why);
        self.waiting = None;
        self.transfer.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_e1_only_root_and_the_daemons_own_user_change_who_is_trusted() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(is_owner(0) && is_owner(own));
        for uid in [own + 1, 65534, u32::MAX - 7] {
            assert!(!is_owner(uid), "{uid}");
        }
    }

    #[test]
    fn one_user_cannot_take_all_places() {
        let guests = Arc::new(Guests::default());
        let mut inside: Vec<Guest> = (0..MAX_OF_USER).map(|_| guests.admit(1).unwrap()).collect();
        assert!(guests.admit(1).unwrap_err().contains("of this user"));
        for uid in 2.. {
            let more = (0..MAX_OF_USER).map_while(|_| guests.admit(uid).ok());
            let before = inside.len();
            inside.extend(more);
            if inside.len() == before {
                break;
            }
        }
        assert_eq!(inside.len(), MAX_CLIENTS);
        assert!(guests.admit(99).unwrap_err().contains("busy with 32"));
        inside.pop();
        assert!(guests.admit(99).is_ok());
        drop(inside);
        assert!(guests.0.lock().unwrap().is_empty());
    }
}
