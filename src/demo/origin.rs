//! An HTTPS/1.1 origin in this process: what the demo and the lab download from.
//!
//! It serves `/{name}/{size}` (`/file/64MiB`, `/file/1000`): content computed from the offset, with a strong ETag, single
//! ranges, `If-Range` and keep-alive. Its certificate is signed by an [`Authority`] made for the run and thrown away.
//!
//! Invariant: connections, handshakes and unsent bytes are bounded; nothing touches a disk.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, ServerConfig};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::content::Content;
use crate::task::Tasks;
use crate::types::{ByteRange, ByteSize};

/// Connections at a time, further ones wait in the backlog: far above what 16 lanes open.
const MAX_CONNECTIONS: usize = 512;
/// A client that has not finished its handshake by then has gone.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);
/// How long a connection may wait for its next request.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Pause after a failed accept (out of descriptors): long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Unsent bytes the kernel holds for a connection: little is wasted when its client leaves, and 20 ms at 50 Mbit/s.
const UNSENT: u32 = 128 * 1024;
/// Bytes computed at once.
const CHUNK: u64 = 64 * 1024;
/// Any date: the content never changes.
const MODIFIED: &str = "Sat, 01 Mar 2025 12:00:00 GMT";

/// What differs from one origin to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Other versions have other bytes and another ETag. Default 0.
    pub version: u64,
    /// Listens with Multipath TCP; clients without it are served as ever. Default off; needs a kernel that has it.
    pub multipath: bool,
    /// The only TLS 1.3 cipher it knows, so that its client's cost can be measured. Default: all, the client's first.
    pub cipher: Option<CipherSuite>,
}

/// Why an origin did not start.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// The address is taken, or not this host's.
    #[error("the origin cannot listen on {address}: {source}")]
    Listen {
        /// Where it should have listened.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A name that no certificate can carry, or no randomness.
    #[error("the origin's certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused the certificate.
    #[error("the origin's TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A throw-away certificate authority: clients trust it by its PEM (`SSL_CERT_FILE`).
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one, its key nowhere but here.
    ///
    /// # Errors
    /// Where the machine has no randomness.
    pub fn new() -> Result<Self, OriginError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params
            .distinguished_name
            .push(DnType::CommonName, "tributary throw-away authority");
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// The certificate to trust, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names and its key, as PEM: for servers that are not ours.
    ///
    /// # Errors
    /// A name that no certificate can carry, or no randomness.
    pub fn issue(&self, names: &[&str]) -> Result<(String, String), OriginError> {
        let (certificate, key) = self.signed(names)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn signed(&self, names: &[&str]) -> Result<(Certificate, KeyPair), OriginError> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "tributary origin");
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    fn server_config(
        &self,
        names: &[&str],
        cipher: Option<CipherSuite>,
    ) -> Result<ServerConfig, OriginError> {
        let (certificate, key) = self.signed(names)?;
        let certificate: CertificateDer<'static> = certificate.into();
        let mut provider = rustls::crypto::ring::default_provider();
        provider
            .cipher_suites
            .retain(|suite| cipher.is_none_or(|only| suite.suite() == only));
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// A running origin. It ends with the tasks it was started with.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Origin {
    /// Listens on `bind` (port 0: any free one) with a certificate for `names` (host names or IP addresses).
    ///
    /// # Errors
    /// Where it cannot listen there, or a name fits no certificate.
    pub fn start(
        bind: SocketAddr,
        names: &[&str],
        authority: &Authority,
        options: Options,
        tasks: &Tasks,
    ) -> Result<Self, OriginError> {
        let tls = TlsAcceptor::from(Arc::new(authority.server_config(names, options.cipher)?));
        let failed = |source| OriginError::Listen {
            address: bind,
            source,
        };
        let listener = listen(bind, options.multipath).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            content: Content::new(options.version),
            version: options.version,
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        tasks.spawn("origin", accept(listener, tls, shared.clone(), tasks.clone()));
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The SHA-256 of `/{any name}/{size}`. Blocking: about a second for each GiB.
    pub fn content_sha256(&self, size: u64) -> [u8; 32] {
        self.shared.content.sha256(size)
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Requests answered so far, the refused ones included.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

/// What the connections have in common.
#[derive(Debug)]
struct Shared {
    content: Content,
    version: u64,
    connections: AtomicU64,
    requests: AtomicU64,
}

type Body = BoxBody<Bytes, Infallible>;

fn listen(bind: SocketAddr, multipath: bool) -> io::Result<TcpListener> {
    let protocol = if multipath { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // Both are inherited by the accepted sockets. BBR, because loss on a long link halves what cubic carries;
    // kernels without it, or with neither option for MPTCP, serve all the same.
    let _ = socket.set_tcp_congestion(b"bbr");
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
    socket.bind(&bind.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>, tasks: Tasks) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The semaphore is never closed, so this loop ends with its task.
    while let Ok(place) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (tls, shared) = (tls.clone(), shared.clone());
                tasks.spawn("origin connection", async move {
                    serve(stream, tls, shared).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the origin could not accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "handshake failed"),
        Err(_) => return tracing::debug!("handshake timed out"),
    };
    let service = service_fn(move |request| {
        shared.requests.fetch_add(1, Ordering::Relaxed);
        std::future::ready(answer(&request, &shared))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .max_buf_size(2 * CHUNK as usize)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection ended early");
    }
}

fn answer<B>(request: &Request<B>, shared: &Shared) -> Result<Response<Body>, hyper::http::Error> {
    let response = Response::builder().header(CONTENT_TYPE, "application/octet-stream");
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return response.status(StatusCode::METHOD_NOT_ALLOWED).body(empty());
    }
    let Some(total) = size_in(request.uri().path()) else {
        return response.status(StatusCode::NOT_FOUND).body(empty());
    };
    let etag = format!("\"{:x}-{total:x}\"", shared.version);
    let response = response
        .header(ETAG, &etag)
        .header(LAST_MODIFIED, MODIFIED)
        .header(ACCEPT_RANGES, "bytes");
    let wanted = match text(request, RANGE).filter(|_| still_valid(request, &etag)) {
        Some(range) => requested(range, total),
        None => Wanted::All,
    };
    let (response, range) = match wanted {
        Wanted::All => (response, ByteRange::new(0, total)),
        Wanted::Part(range) => {
            let value = format!("bytes {}-{}/{total}", range.start, range.end - 1);
            (
                response
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(CONTENT_RANGE, value),
                range,
            )
        }
        Wanted::Nothing => {
            let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
            return response
                .header(CONTENT_RANGE, format!("bytes */{total}"))
                .body(empty());
        }
    };
    let head = request.method() == Method::HEAD;
    let body = if head {
        empty()
    } else {
        content(shared.content.clone(), range)
    };
    response.header(CONTENT_LENGTH, range.len()).body(body)
}

/// `/{name}/{size}`, the size as a number of bytes or with a unit.
fn size_in(path: &str) -> Option<u64> {
    let (name, size) = path.strip_prefix('/')?.rsplit_once('/')?;
    if name.is_empty() {
        return None;
    }
    size.parse()
        .ok()
        .or_else(|| size.parse().ok().map(|ByteSize(bytes)| bytes))
}

fn text<B>(request: &Request<B>, name: hyper::header::HeaderName) -> Option<&str> {
    request.headers().get(name)?.to_str().ok()
}

/// Without `If-Range`, or where what it names is what is served.
fn still_valid<B>(request: &Request<B>, etag: &str) -> bool {
    text(request, IF_RANGE).is_none_or(|validator| validator == etag || validator == MODIFIED)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(ByteRange),
    Nothing,
}

/// What a `Range` header asks of `total` bytes; several ranges and what cannot be read are ignored, as a server may.
fn requested(header: &str, total: u64) -> Wanted {
    let bounds = header
        .strip_prefix("bytes=")
        .and_then(|spec| spec.trim().split_once('-'));
    let (start, end) = match bounds {
        Some(("", last)) => match last.parse::<u64>() {
            Ok(0) => return Wanted::Nothing,
            Ok(count) => (total.saturating_sub(count), total),
            Err(_) => return Wanted::All,
        },
        Some((first, last)) => match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(total)),
            (Ok(first), Err(_)) if last.is_empty() => (first, total),
            _ => return Wanted::All,
        },
        None => return Wanted::All,
    };
    if start < end {
        Wanted::Part(ByteRange::new(start, end))
    } else {
        Wanted::Nothing
    }
}

fn content(content: Content, range: ByteRange) -> Body {
    let starts = (range.start..range.end).step_by(CHUNK as usize);
    let chunks = starts.map(move |start| {
        let mut chunk = vec![0; CHUNK.min(range.end - start) as usize];
        content.fill(start, &mut chunk);
        Ok(Frame::data(Bytes::from(chunk)))
    });
    StreamBody::new(stream::iter(chunks)).boxed()
}

fn empty() -> Body {
    Empty::new().boxed()
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, RootCertStore};

    use super::*;

    struct Client {
        send: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
    }

    impl Client {
        async fn connect(origin: &Origin, authority: &Authority, tasks: &Tasks) -> Self {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
                .unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let tcp = TcpStream::connect(origin.address()).await.unwrap();
            let name = "origin.lab".try_into().unwrap();
            let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
                .connect(name, tcp)
                .await
                .unwrap();
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
                .await
                .unwrap();
            tasks.spawn("client", connection);
            Self { send }
        }

        async fn ask(
            &mut self,
            method: Method,
            path: &str,
            headers: &[(&str, &str)],
        ) -> (Response<()>, Bytes) {
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "origin.lab");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            self.send.ready().await.unwrap();
            let response = self
                .send
                .send_request(request.body(Empty::new()).unwrap())
                .await
                .unwrap();
            let (parts, body) = response.into_parts();
            (
                Response::from_parts(parts, ()),
                body.collect().await.unwrap().to_bytes(),
            )
        }

        async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> (Response<()>, Bytes) {
            self.ask(Method::GET, path, headers).await
        }
    }

    async fn origin(tasks: &Tasks, version: u64) -> (Origin, Client) {
        let authority = Authority::new().unwrap();
        let bind = "127.0.0.1:0".parse().unwrap();
        let options = Options {
            version,
            ..Options::default()
        };
        let origin = Origin::start(bind, &["origin.lab"], &authority, options, tasks).unwrap();
        let client = Client::connect(&origin, &authority, tasks).await;
        (origin, client)
    }

    fn sha256(bytes: &[u8]) -> Vec<u8> {
        ring::digest::digest(&ring::digest::SHA256, bytes)
            .as_ref()
            .to_vec()
    }

    #[tokio::test]
    async fn a_file_comes_whole_over_tls_with_a_strong_validator() {
        let tasks = Tasks::new();
        let (origin, mut client) = origin(&tasks, 0).await;
        let (head, body) = client.get("/file/3MiB", &[]).await;
        assert_eq!(head.status(), 200);
        assert_eq!(head.headers()["content-length"], "3145728");
        assert!(head.headers()["etag"].to_str().unwrap().starts_with('"'));
        assert_eq!(head.headers()["last-modified"], MODIFIED);
        assert_eq!(sha256(&body), origin.content_sha256(3 << 20));
        let (head, body) = client.ask(Method::HEAD, "/file/1000", &[]).await;
        assert_eq!((head.status().as_u16(), body.len()), (200, 0));
        assert_eq!(head.headers()["content-length"], "1000");
        assert_eq!((origin.connections(), origin.requests()), (1, 2));
    }

    #[tokio::test]
    async fn ranges_are_cut_out_of_the_same_content() {
        let tasks = Tasks::new();
        let (_origin, mut client) = origin(&tasks, 0).await;
        let (_, whole) = client.get("/file/300000", &[]).await;
        for (range, start, end) in [
            ("bytes=5-5", 5, 6),
            ("bytes=70000-", 70000, 300_000),
            ("bytes=-9", 299_991, 300_000),
        ] {
            let (head, body) = client.get("/file/300000", &[("range", range)]).await;
            assert_eq!(head.status(), 206, "{range}");
            let expected = format!("bytes {start}-{}/300000", end - 1);
            assert_eq!(head.headers()["content-range"], expected.as_str());
            assert_eq!(body, whole.slice(start..end), "{range}");
        }
        let (head, body) = client.get("/file/300000", &[("range", "bytes=300000-")]).await;
        assert_eq!((head.status().as_u16(), body.len()), (416, 0));
        assert_eq!(head.headers()["content-range"], "bytes */300000");
    }

    #[tokio::test]
    async fn a_range_of_another_version_gives_the_whole_file() {
        let tasks = Tasks::new();
        let (_origin, mut client) = origin(&tasks, 7).await;
        let (head, _) = client.ask(Method::HEAD, "/file/1000", &[]).await;
        let etag = head.headers()["etag"].to_str().unwrap().to_owned();
        let range = ("range", "bytes=0-99");
        for (validator, status) in [(etag.as_str(), 206), (MODIFIED, 206), ("\"0-3e8\"", 200)] {
            let (head, _) = client.get("/file/1000", &[range, ("if-range", validator)]).await;
            assert_eq!(head.status(), status, "{validator}");
        }
    }

    #[tokio::test]
    async fn what_is_not_a_file_is_refused() {
        let tasks = Tasks::new();
        let (_origin, mut client) = origin(&tasks, 0).await;
        for path in ["/", "/file", "/file/many", "//5"] {
            assert_eq!(client.get(path, &[]).await.0.status(), 404, "{path}");
        }
        assert_eq!(client.ask(Method::DELETE, "/file/5", &[]).await.0.status(), 405);
    }

    #[test]
    fn a_range_header_that_cannot_be_read_is_ignored() {
        for header in [
            "bytes=0-1,5-6",
            "bytes=5",
            "bytes=9-5",
            "items=0-1",
            "bytes=a-b",
            "bytes=--5",
        ] {
            assert_eq!(requested(header, 100), Wanted::All, "{header}");
        }
        assert_eq!(
            requested("bytes=0-18446744073709551615", 100),
            Wanted::Part(ByteRange::new(0, 100))
        );
        assert_eq!(requested("bytes=-500", 100), Wanted::Part(ByteRange::new(0, 100)));
        assert_eq!(requested("bytes=-0", 100), Wanted::Nothing);
        assert_eq!(requested("bytes=0-", 0), Wanted::Nothing);
    }
}
