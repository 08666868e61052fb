//! The lanes of an upload, each with the connections that nobody uses now; one request over one of them.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use tokio::sync::mpsc;
use tokio::time::timeout;
use url::Position;

use super::line::Meter;
use super::{Answer, Ask, Content, Shared, Trouble};
use crate::lane::{DialError, Lane};
use crate::stripe::Part;
use crate::transfer::{Connection, Endpoint, OpenError, Payload, nothing};
use crate::upload::error::UploadError;

/// What the program calls itself to servers.
const AGENT: &str = concat!("tributary/", env!("CARGO_PKG_VERSION"));
/// The longest answer that is read: 1,000 parts of S3's longest list take less than 1 MiB.
const MAX_ANSWER: usize = 4 << 20;
/// A connection that the server closed while it was idle takes less than this before it breaks; what breaks later was at
/// work.
const STALE: u64 = 256 << 10;
/// Between two pieces of an answer's body.
const BODY_LIMIT: Duration = Duration::from_secs(30);
/// Blocks read ahead of a connection.
const AHEAD: usize = 2;
/// Idle connections a lane keeps.
const MAX_IDLE: usize = 3;

/// A lane's connections that nobody uses now.
#[derive(Debug)]
pub(in crate::upload) struct Way {
    pub(in crate::upload) lane: Arc<dyn Lane>,
    shared: Arc<Shared>,
    idle: Mutex<Vec<(Endpoint, Box<Connection>)>>,
}

/// The lanes of an upload with their connections, whoever uses them.
#[derive(Debug)]
pub(in crate::upload) struct Ways {
    shared: Arc<Shared>,
    all: Mutex<Vec<Arc<Way>>>,
}

impl Ways {
    pub(in crate::upload) const fn new(shared: Arc<Shared>) -> Self {
        let all = Mutex::new(Vec::new());
        Self { shared, all }
    }

    /// The way over this lane. Those over lanes that nobody else holds any more are forgotten.
    pub(in crate::upload) fn of(&self, lane: &Arc<dyn Lane>) -> Arc<Way> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = all.iter().find(|way| way.lane.info().id == lane.info().id) {
            return way.clone();
        }
        all.retain(|way| Arc::strong_count(&way.lane) > 1);
        let way = Arc::new(Way::new(lane.clone(), self.shared.clone()));
        all.push(way.clone());
        way
    }
}

impl Way {
    fn new(lane: Arc<dyn Lane>, shared: Arc<Shared>) -> Self {
        Self {
            lane,
            shared,
            idle: Mutex::default(),
        }
    }

    /// What is idle beside a connection that hangs goes the same dead way.
    pub(in crate::upload) fn close_idle(&self) {
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
    pub(super) async fn exchange(
        &self,
        ask: &Ask,
        limit: Duration,
        once: bool,
        meter: &Meter,
    ) -> Result<Answer, Miss> {
        let endpoint =
            Endpoint::of(&ask.url).ok_or_else(|| Miss::Request("the URL has no host".to_owned()))?;
        let idle = if once { None } else { self.take(&endpoint) };
        let reused = idle.is_some();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.open(&endpoint).await?,
        };
        let before = connection.sent.bytes();
        let first = self.over(&mut connection, ask, limit, meter).await;
        let went = connection.sent.bytes().saturating_sub(before);
        let answer = match first {
            Err(Miss::Broken { .. }) if reused && went < STALE => {
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
pub(super) enum Miss {
    Open(OpenError),
    Broken(String),
    Silent(Duration),
    Answer(String),
    Request(String),
    Source(UploadError),
}

impl Miss {
    pub(super) fn trouble(self, host: &str) -> Trouble {
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
