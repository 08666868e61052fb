//! A lane's way to the content: the redirects it followed itself, the address it is pinned to, its idle connections.
//!
//! Invariants: a lane never uses a URL that another lane was redirected to (HTTP-12: such URLs may be signed for one
//! address), and holds at most [`MAX_IDLE`] connections that no lease uses.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::{Files, Job};
use crate::lane::Lane;
use crate::task::Tasks;
use crate::transfer::{Connection, Endpoint, OpenError};

/// Idle connections a lane keeps: as many as it has slots, so that each lease finds one.
const MAX_IDLE: usize = 2;
/// A final URL that worked and then does not is looked up again at most this often (HTTP-12).
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);

/// What all routes of a job share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) job: Job,
    pub(super) files: Arc<dyn Files>,
    pub(super) tls: Arc<ClientConfig>,
    /// Ends with the job.
    pub(super) tasks: Tasks,
}

impl Shared {
    /// The origin's name, for messages.
    pub(super) fn host(&self) -> String {
        self.job.url.host_str().unwrap_or_default().to_owned()
    }
}

/// One lane's way to the job's content.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) lane: Arc<dyn Lane>,
    pub(super) shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the chain of redirects ended when it last worked. `None`: not followed yet.
    end: Option<Url>,
    looked_up_again: Option<Instant>,
    pin: Option<IpAddr>,
    idle: VecDeque<Spare>,
}

/// A connection nobody uses, or one on its way.
#[derive(Debug)]
enum Spare {
    Open(Endpoint, Box<Connection>),
    Opening(Endpoint, AbortOnDropHandle<Option<Result<Connection, OpenError>>>),
}

impl Spare {
    fn endpoint(&self) -> &Endpoint {
        match self {
            Self::Open(endpoint, _) | Self::Opening(endpoint, _) => endpoint,
        }
    }
}

impl Route {
    pub(super) fn new(lane: Arc<dyn Lane>, shared: Arc<Shared>) -> Self {
        Self {
            lane,
            shared,
            state: Mutex::default(),
        }
    }

    /// Where to ask, and whether that is a remembered end of redirects.
    pub(super) fn start(&self) -> (Url, bool) {
        match &self.state().end {
            Some(url) => (url.clone(), true),
            None => (self.shared.job.url.clone(), false),
        }
    }

    /// The chain of redirects ended here, and it worked.
    pub(super) fn remember(&self, url: &Url) {
        self.state().end = Some(url.clone());
    }

    /// The remembered end stopped working: whether to follow the chain again from the original URL now.
    pub(super) fn may_look_up_again(&self, now: Instant) -> bool {
        let mut state = self.state();
        let recent = |at: Instant| now.duration_since(at) < RESOLVE_AGAIN;
        if state.end.is_none() || state.looked_up_again.is_some_and(recent) {
            return false;
        }
        state.looked_up_again = Some(now);
        state.end = None;
        true
    }

    /// From now on dials exactly this address of the origin.
    pub(super) fn pin(&self, address: IpAddr) {
        let mut state = self.state();
        if state.pin != Some(address) {
            state.pin = Some(address);
            state.idle.clear();
        }
    }

    /// Closes what nobody uses: the origin counts connections.
    pub(super) fn close_idle(&self) {
        self.state().idle.clear();
    }

    /// Opens connections to the original URL's origin ahead of need, tunnel and TLS.
    pub(super) fn warm(self: &Arc<Self>, count: usize) {
        let Some(endpoint) = Endpoint::of(&self.shared.job.url) else {
            return;
        };
        for _ in 0..count {
            let route = self.clone();
            let to = endpoint.clone();
            let open = async move { route.open(&to).await };
            let task = self.shared.tasks.spawn("open ahead", open);
            self.keep(Spare::Opening(endpoint.clone(), AbortOnDropHandle::new(task)));
        }
    }

    /// Whether a connection is idle or on its way.
    pub(super) fn has_spare(&self) -> bool {
        !self.state().idle.is_empty()
    }

    /// An idle connection where there is one, else one that is on its way, else a new one.
    pub(super) async fn connection(&self, endpoint: &Endpoint) -> Result<Connection, OpenError> {
        while let Some(spare) = self.take(endpoint) {
            match spare {
                Spare::Open(_, mut connection) => {
                    if connection.is_reusable() {
                        return Ok(*connection);
                    }
                }
                Spare::Opening(_, task) => {
                    if let Ok(Some(opened)) = task.await {
                        return opened;
                    }
                }
            }
        }
        self.open(endpoint).await
    }

    /// A new connection, whatever is idle.
    pub(super) async fn open(&self, endpoint: &Endpoint) -> Result<Connection, OpenError> {
        let pin = self.state().pin;
        Connection::open(&*self.lane, endpoint, pin, &self.shared.tls).await
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) fn put_back(&self, endpoint: Endpoint, mut connection: Connection) {
        if connection.is_reusable() {
            self.keep(Spare::Open(endpoint, Box::new(connection)));
        }
    }

    fn keep(&self, spare: Spare) {
        let mut state = self.state();
        state.idle.push_back(spare);
        if state.idle.len() > MAX_IDLE {
            state.idle.pop_front();
        }
    }

    fn take(&self, endpoint: &Endpoint) -> Option<Spare> {
        let mut state = self.state();
        let open = |s: &Spare| matches!(s, Spare::Open(..)) && s.endpoint() == endpoint;
        let at = state.idle.iter().position(open);
        let at = at.or_else(|| state.idle.iter().position(|s| s.endpoint() == endpoint))?;
        state.idle.remove(at)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
