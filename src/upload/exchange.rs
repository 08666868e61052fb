//! One request to the server and its answer: over one lane for a part ([`Line`]), over any lane for what makes and ends an
//! upload ([`Caller`]).
//!
//! Invariants: a request's body comes from the source as fast as the lane takes it and no faster (two blocks are read
//! ahead); its last block is only handed out once the source was seen unchanged after it was read; an answer's body is at
//! most [`MAX_ANSWER`]; dropping an exchange ends its connection.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use url::{Position, Url};

use super::error::UploadError;
use super::source::Source;
use crate::lane::{DialError, Lane, LaneSet};
use crate::stripe::{LeaseId, Part};
use crate::task::Tasks;
use crate::transfer::{Connection, Endpoint, HEAD_LIMIT, OpenError, Payload, Terms, nothing, sort_out};

/// What the program calls itself to servers.
const AGENT: &str = concat!("tributary/", env!("CARGO_PKG_VERSION"));
/// The longest answer that is read: 1,000 parts of S3's longest list take less than 1 MiB.
const MAX_ANSWER: usize = 4 << 20;
/// From a part's last byte to its answer: a server may first bring it to slow disks. The scheduler loses patience earlier
/// where another lane could do better.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// What completes an object may take minutes: some services join its parts then.
const COMPLETION_LIMIT: Duration = Duration::from_secs(600);
/// Between two pieces of an answer's body.
const BODY_LIMIT: Duration = Duration::from_secs(30);
/// Blocks read ahead of a connection.
const AHEAD: usize = 2;
/// Idle connections a lane keeps.
const MAX_IDLE: usize = 3;
/// Rounds over all lanes of a request that may be repeated.
const ROUNDS: u32 = 5;
/// Between them, growing; what a server asks for counts more, up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How long to wait for a first lane: a peer found just now needs a moment.
const LANES_LIMIT: Duration = Duration::from_secs(10);

/// What a request carries.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// What a target wrote itself.
    Bytes(Bytes),
    /// A part of a file of the source: `item` is the file's number.
    Part(Part),
}

/// A request; `Host`, `Content-Length` and `User-Agent` are added.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

impl Ask {
    /// Without headers and content.
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            content: Content::Empty,
        }
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// How long the server wants to be left alone; only seconds are understood, for a device's clock may be wrong.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self
            .headers
            .get(RETRY_AFTER)?
            .to_str()
            .ok()?
            .trim()
            .parse()
            .ok()?;
        Some(Duration::from_secs(seconds).min(MAX_PAUSE))
    }
}

/// Why a part did not get through over a lane.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The connection broke, or nothing came.
    Lane(String),
    /// The server wants less: 429, 503 SlowDown.
    Refused {
        retry_after: Option<Duration>,
        why: String,
    },
    /// The server has a fault: another 5xx.
    Origin(String),
    /// This lane cannot serve this upload.
    Ineligible(String),
    /// This file cannot be sent; others can.
    LeaveOut(String),
    /// The upload cannot go on.
    Fatal(UploadError),
}

/// Why a request that must not be repeated has no answer.
#[derive(Debug)]
pub(super) enum CallOnce {
    /// The server has not got it.
    NotSent(UploadError),
    /// The server may have got it, and done what it asks.
    Unknown(String),
}

/// What all exchanges of an upload share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) source: Arc<Source>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) tasks: Tasks,
}

/// A lane's connections that nobody uses now.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) lane: Arc<dyn Lane>,
    shared: Arc<Shared>,
    idle: Mutex<Vec<(Endpoint, Box<Connection>)>>,
}

impl Way {
    pub(super) fn new(lane: Arc<dyn Lane>, shared: Arc<Shared>) -> Self {
        Self {
            lane,
            shared,
            idle: Mutex::default(),
        }
    }

    /// What is idle beside a connection that hangs goes the same dead way.
    pub(super) fn close_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn take(&self, endpoint: &Endpoint) -> Option<Box<Connection>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(at) = idle.iter().rposition(|(of, _)| of == endpoint) {
            let (_, mut connection) = idle.remove(at);
            if connection.is_reusable() {
                return Some(connection);
            }
        }
        None
    }

    fn put_back(&self, endpoint: Endpoint, mut connection: Box<Connection>) {
        if !connection.is_reusable() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_IDLE {
            idle.remove(0);
        }
        idle.push((endpoint, connection));
    }

    /// One request. A connection that was idle and breaks at once is replaced by a new one, once, unless `once`.
    async fn exchange(&self, ask: &Ask, limit: Duration, once: bool, meter: &Meter) -> Result<Answer, Miss> {
        let endpoint =
            Endpoint::of(&ask.url).ok_or_else(|| Miss::Request("the URL has no host".to_owned()))?;
        let idle = if once { None } else { self.take(&endpoint) };
        let reused = idle.is_some();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.open(&endpoint).await?,
        };
        let first = self.over(&mut connection, ask, limit, meter).await;
        let answer = match first {
            Err(Miss::Broken { .. }) if reused => {
                self.close_idle();
                connection = self.open(&endpoint).await?;
                self.over(&mut connection, ask, limit, meter).await?
            }
            other => other?,
        };
        self.put_back(endpoint, connection);
        Ok(answer)
    }

    async fn open(&self, endpoint: &Endpoint) -> Result<Box<Connection>, Miss> {
        let opened = Connection::open(&*self.lane, endpoint, None, &self.shared.tls).await;
        Ok(Box::new(opened.map_err(Miss::Open)?))
    }

    async fn over(
        &self,
        connection: &mut Connection,
        ask: &Ask,
        limit: Duration,
        meter: &Meter,
    ) -> Result<Answer, Miss> {
        let (payload, length, failed) = self.payload(&ask.content).await?;
        let request = request(ask, payload, length)?;
        let mut sent = connection.sent.clone();
        let before = sent.bytes();
        let answered = {
            let mut sending = pin!(connection.send(request));
            let mut quiet_since = tokio::time::Instant::now();
            loop {
                tokio::select! {
                    biased;
                    answer = &mut sending => break answer,
                    () = sent.changed() => {
                        meter.upto(sent.bytes().saturating_sub(before), length);
                        quiet_since = tokio::time::Instant::now();
                    }
                    () = tokio::time::sleep_until(quiet_since + limit) => return Err(Miss::Silent(limit)),
                }
            }
        };
        let fault = || failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let response = match answered {
            Ok(response) => response,
            Err(error) => {
                return Err(match fault() {
                    Some(fault) => Miss::Source(fault),
                    None => Miss::Broken(error.to_string()),
                });
            }
        };
        let (head, body) = response.into_parts();
        let body = collect(connection, body).await?;
        if let Some(fault) = fault() {
            return Err(Miss::Source(fault));
        }
        meter.upto(length, length);
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    async fn payload(&self, content: &Content) -> Result<(Payload, u64, Fault), Miss> {
        let fault = Fault::default();
        Ok(match content {
            Content::Empty => (nothing(), 0, fault),
            Content::Bytes(bytes) => {
                let body = Full::new(bytes.clone()).map_err(|never| match never {});
                (body.boxed(), bytes.len() as u64, fault)
            }
            Content::Part(part) => {
                let length = part.range.len();
                if length == 0 {
                    return Ok((nothing(), 0, fault));
                }
                let blocks = self.read(part, fault.clone()).await?;
                let body = PartBody { blocks, left: length };
                (body.boxed(), length, fault)
            }
        })
    }

    /// Reads the part ahead of its connection, in a task that ends with whoever receives.
    async fn read(&self, part: &Part, fault: Fault) -> Result<mpsc::Receiver<Bytes>, Miss> {
        let (send, blocks) = mpsc::channel(AHEAD);
        let source = self.shared.source.clone();
        let file = source.file(part.item).await.map_err(Miss::Source)?;
        file.check().map_err(Miss::Source)?;
        let range = part.range;
        self.shared.tasks.spawn("read a part", async move {
            let mut at = range.start;
            while at < range.end {
                match source.read(&file, at, range.end).await {
                    Ok(block) => {
                        at += block.len() as u64;
                        if send.send(block).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        return;
                    }
                }
            }
        });
        Ok(blocks)
    }
}

/// Why reading the source failed, if it did.
type Fault = Arc<Mutex<Option<UploadError>>>;

/// A part's bytes on their way. Ending before all of them are out makes hyper break the connection.
struct PartBody {
    blocks: mpsc::Receiver<Bytes>,
    left: u64,
}

impl Body for PartBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<io::Result<Frame<Bytes>>>> {
        self.blocks.poll_recv(cx).map(|block| match block {
            Some(block) => {
                self.left = self.left.saturating_sub(block.len() as u64);
                Some(Ok(Frame::data(block)))
            }
            None if self.left > 0 => Some(Err(io::Error::other("the source cannot be read"))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Why an exchange came to nothing.
#[derive(Debug)]
enum Miss {
    Open(OpenError),
    Broken(String),
    Silent(Duration),
    Answer(String),
    Request(String),
    Source(UploadError),
}

impl Miss {
    fn trouble(self, host: &str) -> Trouble {
        match self {
            Self::Open(OpenError::Dial(DialError::Refused(why))) => Trouble::Ineligible(why.to_string()),
            Self::Open(OpenError::Dial(DialError::Busy)) => Trouble::Refused {
                retry_after: None,
                why: "the lender is busy".to_owned(),
            },
            Self::Request(why) => Trouble::Fatal(UploadError::Answer {
                host: host.to_owned(),
                why,
            }),
            Self::Source(error) => Trouble::Fatal(error),
            other => Trouble::Lane(other.to_string()),
        }
    }
}

impl std::fmt::Display for Miss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(error) => match std::error::Error::source(error) {
                Some(cause) => write!(f, "{error}: {cause}"),
                None => error.fmt(f),
            },
            Self::Broken(why) => write!(f, "the connection broke before an answer came: {why}"),
            Self::Silent(limit) => write!(f, "nothing went and no answer came for {} s", limit.as_secs()),
            Self::Answer(why) | Self::Request(why) => f.write_str(why),
            Self::Source(error) => error.fmt(f),
        }
    }
}

fn request(ask: &Ask, payload: Payload, length: u64) -> Result<Request<Payload>, Miss> {
    let invalid = |error: hyper::http::Error| Miss::Request(error.to_string());
    let url = &ask.url;
    let mut request = Request::builder()
        .method(&ask.method)
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &url[Position::BeforeHost..Position::AfterPort])
        .header(USER_AGENT, AGENT)
        .body(payload)
        .map_err(invalid)?;
    let headers = request.headers_mut();
    headers.extend(ask.headers.clone());
    if length > 0 || matches!(ask.method, Method::PUT | Method::POST | Method::PATCH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(request)
}

/// The answer's body to its end.
async fn collect(connection: &mut Connection, mut body: Incoming) -> Result<Bytes, Miss> {
    let mut all = BytesMut::new();
    loop {
        let data = std::future::poll_fn(|cx| connection.poll_data(&mut body, cx));
        match timeout(BODY_LIMIT, data).await {
            Err(_) => return Err(Miss::Silent(BODY_LIMIT)),
            Ok(None) => return Ok(all.freeze()),
            Ok(Some(Err(error))) => return Err(Miss::Broken(error.to_string())),
            Ok(Some(Ok(data))) => {
                if all.len() + data.len() > MAX_ANSWER {
                    let limit = MAX_ANSWER >> 20;
                    return Err(Miss::Answer(format!("an answer of more than {limit} MiB")));
                }
                all.extend_from_slice(&data);
            }
        }
    }
}

/// What a worker tells the driver while it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved(pub(super) LeaseId, pub(super) u64);

/// Tells how much of a part has left.
#[derive(Debug)]
struct Meter {
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
    const fn mute() -> Self {
        Self {
            to: None,
            told: Mutex::new(Told { bytes: 0, before: 0 }),
        }
    }

    /// So much of the exchange's body has left.
    fn upto(&self, sent: u64, length: u64) {
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
pub(super) struct Line {
    way: Arc<Way>,
    meter: Meter,
}

impl Line {
    /// The lane, for the part of this lease; what leaves is told to the driver.
    pub(super) const fn new(way: Arc<Way>, lease: LeaseId, moved: mpsc::Sender<Moved>) -> Self {
        let meter = Meter {
            to: Some((lease, moved)),
            told: Mutex::new(Told { bytes: 0, before: 0 }),
        };
        Self { way, meter }
    }

    /// The server has so many more bytes of the part: what the next request sends comes on top of them. Only for parts that
    /// take several requests.
    pub(super) fn stored(&self, bytes: u64) {
        self.meter
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .before += bytes;
    }

    /// One request over this lane.
    pub(super) async fn exchange(&self, ask: &Ask) -> Result<Answer, Trouble> {
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
            500..=599 if answer.status != StatusCode::INSUFFICIENT_STORAGE => {
                Err(Trouble::Origin(format!("{host} answered {}", answer.status)))
            }
            _ => Ok(answer),
        }
    }
}

/// Any lane, for requests that make, look at and end an upload.
#[derive(Debug)]
pub(super) struct Caller {
    shared: Arc<Shared>,
    lanes: watch::Receiver<LaneSet>,
    terms: Terms,
    ways: Mutex<Vec<Arc<Way>>>,
}

impl Caller {
    pub(super) fn new(shared: Arc<Shared>, lanes: watch::Receiver<LaneSet>, terms: Terms) -> Self {
        Self {
            shared,
            lanes,
            terms,
            ways: Mutex::default(),
        }
    }

    /// A request that may be repeated: over the best lane, over the next where that fails, again after a while where all
    /// do or the server has a fault. An answer that is still a fault then is returned.
    pub(super) async fn call(&self, ask: &Ask) -> Result<Answer, UploadError> {
        let host = ask.url.host_str().unwrap_or_default().to_owned();
        let mut last = None;
        for round in 1..=ROUNDS {
            let mut pause = PAUSE * round;
            let mut faulty = None;
            for way in self.ways().await? {
                match way.exchange(ask, HEAD_LIMIT, false, &Meter::mute()).await {
                    Ok(answer) if answer.status.is_server_error() || answer.status == 429 => {
                        pause = answer.retry_after().unwrap_or(pause);
                        faulty = Some(answer);
                        break;
                    }
                    Ok(answer) => return Ok(answer),
                    Err(miss) => {
                        if let Some(error) = decisive(&miss, &host) {
                            return Err(error);
                        }
                        last = Some(miss.to_string());
                    }
                }
            }
            if round == ROUNDS {
                if let Some(answer) = faulty {
                    return Ok(answer);
                }
                break;
            }
            tokio::time::sleep(pause).await;
        }
        let detail = last.unwrap_or_else(|| "no lane answered".to_owned());
        Err(UploadError::Unreachable { host, detail })
    }

    /// A request that must not be sent twice: over a new connection of the best lane that gives one.
    pub(super) async fn call_once(&self, ask: &Ask) -> Result<Answer, CallOnce> {
        let host = ask.url.host_str().unwrap_or_default().to_owned();
        let mut detail = "no lane answered".to_owned();
        for way in self.ways().await.map_err(CallOnce::NotSent)? {
            match way.exchange(ask, COMPLETION_LIMIT, true, &Meter::mute()).await {
                Ok(answer) => return Ok(answer),
                Err(miss @ Miss::Open(_)) => {
                    if let Some(error) = decisive(&miss, &host) {
                        return Err(CallOnce::NotSent(error));
                    }
                    detail = miss.to_string();
                }
                Err(miss) => return Err(CallOnce::Unknown(miss.to_string())),
            }
        }
        Err(CallOnce::NotSent(UploadError::Unreachable { host, detail }))
    }

    /// The same request for many things, a few at a time over all lanes; the answers come in the order of the requests.
    pub(super) async fn call_all(&self, asks: Vec<Ask>, at_once: usize) -> Vec<Result<Answer, UploadError>> {
        let answers = asks.into_iter().map(|ask| async move { self.call(&ask).await });
        futures_util::stream::iter(answers)
            .buffered(at_once)
            .collect()
            .await
    }

    /// The lanes to ask, the best first; waits for a first one.
    async fn ways(&self) -> Result<Vec<Arc<Way>>, UploadError> {
        let mut lanes = self.lanes.clone();
        let any = |set: &LaneSet| {
            !sort_out(set, self.terms, |_| crate::transfer::Record::Fresh)
                .used
                .is_empty()
        };
        let waited = timeout(LANES_LIMIT, lanes.wait_for(any)).await;
        let Ok(Ok(_)) = waited else {
            return Err(UploadError::NoLanes);
        };
        let choice = sort_out(&self.lanes.borrow(), self.terms, |_| {
            crate::transfer::Record::Fresh
        });
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.retain(|way| {
            choice
                .used
                .iter()
                .any(|lane| lane.info().id == way.lane.info().id)
        });
        let found = choice.used.into_iter().map(|lane| {
            let known = ways
                .iter()
                .find(|way| way.lane.info().id == lane.info().id)
                .cloned();
            known.unwrap_or_else(|| {
                let way = Arc::new(Way::new(lane, self.shared.clone()));
                ways.push(way.clone());
                way
            })
        });
        Ok(found.collect())
    }
}

/// What no other lane and no later time will mend.
fn decisive(miss: &Miss, host: &str) -> Option<UploadError> {
    let host = host.to_owned();
    match miss {
        Miss::Source(error) => Some(error.clone()),
        Miss::Request(why) => Some(UploadError::Answer {
            host,
            why: why.clone(),
        }),
        Miss::Open(OpenError::Certificate { detail, .. }) => Some(UploadError::Certificate {
            host,
            detail: detail.clone(),
        }),
        Miss::Open(error @ OpenError::ClockNotSet { .. }) => Some(UploadError::Certificate {
            host,
            detail: error.to_string(),
        }),
        _ => None,
    }
}
