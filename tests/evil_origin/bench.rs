//! A download against an evil origin, with lanes that are loopback addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tributary::download::{Context, Destination, DownloadError, Job, Local, Outcome, run};
use tributary::lane::{DialError, Lane, LaneInfo, LaneSet, Target, Tunnel};
use tributary::task::Tasks;
use tributary::transfer::{Progress, config_with};
use tributary::trust::Tier;
use tributary::types::{LaneId, LineId, PeerId, UplinkKind};
use url::Url;

use super::{FIRST_LANE, Origin, Reply, Request, Tls};

/// No test takes longer than this; one that does hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A lane that leaves from 127.0.0.(10 + n). Names resolve to `resolves`.
#[derive(Debug)]
pub(crate) struct TestLane {
    info: LaneInfo,
    source: Ipv4Addr,
    resolves: Ipv4Addr,
    /// Dials never answer.
    pub(crate) dead: AtomicBool,
    /// It is no more.
    pub(crate) gone: AtomicBool,
    /// Told of each dial.
    pub(crate) dialled: Notify,
    /// Tunnels that are open, and the most there were at once.
    open: Arc<Open>,
}

#[derive(Debug, Default)]
struct Open {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A tunnel's stream that is counted as long as it lives.
struct Counted {
    stream: TcpStream,
    open: Arc<Open>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl TestLane {
    /// Lane 0 is an own uplink, the others are lent by peers.
    pub(crate) fn new(n: u8) -> Arc<Self> {
        Self::resolving(n, Ipv4Addr::LOCALHOST)
    }

    /// One that resolves all names to this address.
    pub(crate) fn resolving(n: u8, resolves: Ipv4Addr) -> Arc<Self> {
        Self::with(n, resolves, |_| {})
    }

    pub(crate) fn with(n: u8, resolves: Ipv4Addr, change: impl FnOnce(&mut LaneInfo)) -> Arc<Self> {
        let mut info = LaneInfo {
            id: LaneId(u64::from(n)),
            peer: (n > 0).then_some(PeerId([n; 32])),
            tier: (n > 0).then_some(Tier::Neighbour),
            owner: if n > 0 {
                format!("peer {n}")
            } else {
                "this device".into()
            },
            uplink: "test0".into(),
            kind: UplinkKind::Wired,
            metered: false,
            line: LineId([n; 8]),
            hint: None,
        };
        change(&mut info);
        Arc::new(Self {
            info,
            source: Ipv4Addr::new(127, 0, 0, FIRST_LANE + n),
            resolves,
            dead: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            dialled: Notify::new(),
            open: Arc::default(),
        })
    }
}

impl TestLane {
    /// The most tunnels that were open at once.
    pub(crate) fn most_open(&self) -> usize {
        self.open.most.load(Ordering::Relaxed)
    }

    pub(crate) fn line(&self) -> LineId {
        self.info.line
    }
}

impl Lane for TestLane {
    fn info(&self) -> &LaneInfo {
        &self.info
    }

    fn dial<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Tunnel, DialError>> {
        async move {
            self.dialled.notify_one();
            if self.gone.load(Ordering::Relaxed) {
                return Err(DialError::LaneGone);
            }
            if self.dead.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let to = target.pin.unwrap_or(IpAddr::V4(self.resolves));
            let address = SocketAddr::new(to, target.port);
            let socket = TcpSocket::new_v4().map_err(DialError::Connect)?;
            socket.bind((self.source, 0).into()).map_err(DialError::Connect)?;
            let stream = socket.connect(address).await.map_err(DialError::Connect)?;
            stream.set_nodelay(true).map_err(DialError::Connect)?;
            let open = self.open.clone();
            let now = open.now.fetch_add(1, Ordering::Relaxed) + 1;
            open.most.fetch_max(now, Ordering::Relaxed);
            Ok(Tunnel::counting(Counted { stream, open }, address))
        }
        .boxed()
    }
}

/// An origin, lanes, and a directory for the file.
pub(crate) struct Bench {
    pub(crate) origin: Origin,
    pub(crate) lanes: watch::Sender<LaneSet>,
    pub(crate) directory: TempDir,
    pub(crate) stop: CancellationToken,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) job: Job,
    /// Whom it is shared with.
    pub(crate) household: Option<tributary::share::Household>,
}

impl Bench {
    /// With `lanes` lanes and an HTTPS origin that answers as scripted.
    pub(crate) async fn new(lanes: u8, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::with_tls(Tls::Good, lanes, script).await
    }

    pub(crate) async fn with_tls(
        tls: Tls,
        lanes: u8,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let origin = Origin::start(tls, script).await;
        let set: Vec<Arc<dyn Lane>> = (0..lanes).map(|n| TestLane::new(n) as Arc<dyn Lane>).collect();
        let scheme = if tls == Tls::Off { "http" } else { "https" };
        let url = format!("{scheme}://origin.test:{}/file.bin", origin.port);
        Self {
            job: Job {
                url: Url::parse(&url).unwrap(),
                headers: Vec::new(),
                sha256: None,
                pool: true,
                shared: None,
            },
            origin,
            lanes: watch::channel(Arc::new(set)).0,
            directory: TempDir::new().unwrap(),
            stop: CancellationToken::new(),
            progress: watch::channel(Progress::default()).0,
            household: None,
        }
    }

    /// Uses these lanes from now on.
    pub(crate) fn set_lanes(&self, lanes: Vec<Arc<TestLane>>) {
        let set: Vec<Arc<dyn Lane>> = lanes.into_iter().map(|lane| lane as Arc<dyn Lane>).collect();
        self.lanes.send_replace(Arc::new(set));
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("file.bin")
    }

    /// Runs the download to its end.
    pub(crate) async fn get(&self) -> Result<Outcome, DownloadError> {
        let tasks = Tasks::new();
        let context = Context {
            lanes: self.lanes.subscribe(),
            tls: Arc::new(config_with(self.origin.roots.clone()).unwrap()),
            household: self.household.clone(),
            tasks: tasks.clone(),
        };
        let to = Destination::Directory(self.directory.path().to_owned());
        let running = run(
            self.job.clone(),
            Arc::new(Local::new(to, &tasks)),
            context,
            self.progress.clone(),
            self.stop.clone(),
        );
        let result = tokio::time::timeout(LIMIT, running)
            .await
            .expect("the download hangs");
        assert!(tasks.stop(Duration::from_secs(5)).await, "tasks are left");
        result
    }

    /// Runs the download; the file must be exactly `data`, with nothing left beside it.
    pub(crate) async fn get_exactly(&self, data: &[u8]) -> Outcome {
        let outcome = self.get().await.expect("the download failed");
        let got = std::fs::read(&outcome.path).unwrap();
        assert_eq!(got.len(), data.len(), "length");
        let wrong = got.iter().zip(data).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "first wrong byte");
        assert_eq!(outcome.bytes, data.len() as u64);
        let files: Vec<_> = std::fs::read_dir(self.directory.path())
            .unwrap()
            .map(|f| f.unwrap().file_name())
            .collect();
        assert_eq!(files.len(), 1, "left behind: {files:?}");
        outcome
    }

    /// No file has the final name.
    pub(crate) fn assert_no_file(&self) {
        assert!(!self.path().exists(), "a file has the final name");
    }
}

/// Bytes that differ everywhere, the same for the same seed.
pub(crate) fn content(len: usize, seed: u64) -> Arc<Vec<u8>> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&(state >> 8).to_le_bytes());
    }
    data.truncate(len);
    Arc::new(data)
}

pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    ring::digest::digest(&ring::digest::SHA256, data)
        .as_ref()
        .try_into()
        .unwrap()
}
