//! An HTTPS origin that lies: each test scripts what it answers, byte by byte if need be.
//!
//! It speaks raw HTTP/1.1, because a proper server would not let it lie. Lanes are told apart by the loopback address a
//! connection comes from (127.0.0.10 is lane 0), edges of the origin by the address it was dialled at (127.0.0.1, .2).

mod bench;
mod reply;

pub(crate) use bench::{Bench, TestLane, content, sha256};
pub(crate) use reply::{Body, End, Reply};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The first lane's loopback address ends so.
const FIRST_LANE: u8 = 10;
/// A request's head is never longer here.
const MAX_HEAD: usize = 16 << 10;

/// A request as the origin saw it, with what the script may want to know besides.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) lane: u8,
    /// The address the origin was dialled at.
    pub(crate) edge: IpAddr,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    /// `start..end`, end exclusive; `None` where no Range was sent, or an open one (never sent by us).
    pub(crate) range: Option<(u64, u64)>,
    /// Requests before this one: all, and this lane's.
    pub(crate) nth: usize,
    pub(crate) nth_of_lane: usize,
    /// Connections of this lane that are open now, this one included.
    pub(crate) open: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// What a request is answered with.
pub(crate) type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running origin; stops when dropped.
pub(crate) struct Origin {
    pub(crate) port: u16,
    pub(crate) roots: RootCertStore,
    state: Arc<State>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct State {
    script: Box<Script>,
    seen: Mutex<Vec<(Request, u16)>>,
    open: Mutex<BTreeMap<u8, usize>>,
    most_open: Mutex<BTreeMap<u8, usize>>,
    accepted: Mutex<usize>,
}

/// With which certificate the origin answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    /// One for `origin.test` and `other.test` that the client trusts.
    Good,
    /// One that this lane's connections get, for another name.
    WrongNameFor(u8),
    /// None: plain http.
    Off,
}

impl Origin {
    pub(crate) async fn start(tls: Tls, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let (good, roots) = server_config("origin.test");
        let (bad, _) = server_config("wrong.test");
        let state = Arc::new(State {
            script: Box::new(script),
            seen: Mutex::default(),
            open: Mutex::default(),
            most_open: Mutex::default(),
            accepted: Mutex::default(),
        });
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let second = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port))
            .await
            .unwrap();
        let tasks = [first, second].map(|listener| {
            let (good, bad, state) = (good.clone(), bad.clone(), state.clone());
            tokio::spawn(async move {
                while let Ok((stream, from)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    let lane = lane_of(from);
                    let acceptor = match tls {
                        Tls::Off => None,
                        Tls::WrongNameFor(l) if l == lane => Some(TlsAcceptor::from(bad.clone())),
                        _ => Some(TlsAcceptor::from(good.clone())),
                    };
                    tokio::spawn(connection(stream, acceptor, lane, state.clone()));
                }
            })
        });
        Self {
            port,
            roots,
            state,
            tasks: tasks.into(),
        }
    }

    /// All requests so far, with the status each was answered with.
    pub(crate) fn seen(&self) -> Vec<(Request, u16)> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The most connections a lane had open at once.
    pub(crate) fn most_open(&self, lane: u8) -> usize {
        self.state
            .most_open
            .lock()
            .unwrap()
            .get(&lane)
            .copied()
            .unwrap_or(0)
    }

    /// How many connections were accepted.
    pub(crate) fn accepted(&self) -> usize {
        *self.state.accepted.lock().unwrap()
    }

    /// Which lanes asked anything, in order.
    pub(crate) fn lanes(&self) -> Vec<u8> {
        let mut lanes: Vec<u8> = self.seen().iter().map(|(r, _)| r.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        lanes
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn lane_of(from: SocketAddr) -> u8 {
    match from.ip() {
        IpAddr::V4(ip) => ip.octets()[3].saturating_sub(FIRST_LANE),
        IpAddr::V6(_) => 0,
    }
}

fn server_config(name: &str) -> (Arc<ServerConfig>, RootCertStore) {
    let names = vec![name.to_owned(), "other.test".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (Arc::new(config), roots)
}

/// Counts a lane's open connections.
struct Counted(Arc<State>, u8);

impl Counted {
    fn new(state: Arc<State>, lane: u8) -> Self {
        let mut open = state.open.lock().unwrap();
        let now = open.entry(lane).or_default();
        *now += 1;
        let mut most = state.most_open.lock().unwrap();
        let most_ever = most.entry(lane).or_default();
        *most_ever = (*most_ever).max(*now);
        *state.accepted.lock().unwrap() += 1;
        drop(most);
        drop(open);
        Self(state, lane)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(open) = self.0.open.lock().unwrap().get_mut(&self.1) {
            *open -= 1;
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, lane: u8, state: Arc<State>) {
    let edge = stream.local_addr().unwrap().ip();
    let _counted = Counted::new(state.clone(), lane);
    match tls {
        None => serve(stream, lane, edge, state).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, lane, edge, state).await;
            }
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, lane: u8, edge: IpAddr, state: Arc<State>) {
    while let Some(head) = read_head(&mut stream).await {
        let open = state.open.lock().unwrap().get(&lane).copied().unwrap_or(0);
        let (request, reply) = {
            let mut seen = state.seen.lock().unwrap();
            let nth_of_lane = seen.iter().filter(|(r, _)| r.lane == lane).count();
            let request = parse(&head, lane, edge, (seen.len(), nth_of_lane), open);
            let reply = (state.script)(&request);
            seen.push((request.clone(), reply.status));
            (request, reply)
        };
        drop(request);
        match reply.write(&mut stream).await {
            Ok(End::KeepAlive) => {}
            Ok(End::Close) => {
                let _ = stream.shutdown().await;
                // Until the client has closed too: else the system may throw away what it did not read yet.
                let _ = stream.read(&mut [0; 64]).await;
                return;
            }
            // Without close_notify: the connection is just dropped.
            Ok(End::Cut) | Err(_) => return,
        }
    }
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut head = Vec::new();
    let mut chunk = [0; 2048];
    while !head.ends_with(b"\r\n\r\n") {
        let n = stream.read(&mut chunk).await.ok()?;
        if n == 0 || head.len() > MAX_HEAD {
            return None;
        }
        head.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(head).ok()
}

fn parse(head: &str, lane: u8, edge: IpAddr, (nth, nth_of_lane): (usize, usize), open: usize) -> Request {
    let mut lines = head.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(": "))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
        .collect();
    let range = headers.iter().find(|(n, _)| n == "range").and_then(|(_, v)| {
        let (a, b) = v.strip_prefix("bytes=")?.split_once('-')?;
        Some((a.parse().ok()?, b.parse::<u64>().ok()? + 1))
    });
    Request {
        lane,
        edge,
        path,
        headers,
        range,
        nth,
        nth_of_lane,
        open,
    }
}
