//! An HTTPS server of a test's own making, in a thread of its own; it notes what it is asked, and can be made to fail.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyStream, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Issued;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    /// Requests before it with the same method.
    pub nth: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection breaks when so many bytes of the body have come; the server proper never hears of the request.
    BreakAfter(u64),
    /// The server proper gets so many bytes of the body, then the connection breaks.
    CutAfter(u64),
    /// The server does what it is asked, and the connection breaks before its answer.
    LoseAnswer,
    /// This answer, at once and without reading the body: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, &'static str),
    /// The server does what it is asked, and this header of its answer says something else.
    Header(&'static str, String),
}

/// Which requests go wrong, and how.
pub type Faults = dyn Fn(&Seen) -> Option<Fault> + Send + Sync;

/// What is left of a request's body, chunk by chunk.
pub type Chunks = Pin<Box<dyn futures_util::Stream<Item = io::Result<Bytes>> + Send>>;
/// A server proper.
pub type Handler =
    dyn Fn(Seen, Chunks) -> Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>> + Send + Sync;

/// The server; it ends when it is dropped.
pub struct Web {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    seen: Arc<Mutex<Vec<Seen>>>,
    faults: Arc<Faults>,
    handler: Arc<Handler>,
}

impl Web {
    pub fn start(listener: TcpListener, issued: &Issued, faults: Arc<Faults>, handler: Arc<Handler>) -> Self {
        let stop = CancellationToken::new();
        let seen = Arc::new(Mutex::default());
        let shared = Arc::new(Shared {
            seen: Arc::clone(&seen),
            faults,
            handler,
        });
        let tls = TlsAcceptor::from(Arc::new(config(issued)));
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(ends.run_until_cancelled(accept(listener, tls, shared)));
        });
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn config((certificate, key): &Issued) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap()
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), shared.clone());
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(|request| answer(request, &shared));
            let connection = hyper::server::conn::http1::Builder::new()
                .keep_alive(true)
                .serve_connection(TokioIo::new(stream), service);
            // Broken connections are the tests' business.
            let _ = connection.await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let seen = {
        let mut all = shared.seen.lock().unwrap();
        let seen = Seen {
            nth: all.iter().filter(|before| before.method == head.method).count(),
            method: head.method,
            path: head.uri.to_string(),
            headers: head.headers,
        };
        all.push(seen.clone());
        seen
    };
    let frames = BodyStream::new(body);
    let mut chunks: Chunks = Box::pin(frames.filter_map(|frame| async move {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(io::Error::other(error))),
        }
    }));
    let broken = || io::Error::other("broken on purpose");
    match (shared.faults)(&seen) {
        None => Ok((shared.handler)(seen, chunks).await),
        Some(Fault::BreakAfter(bytes)) => {
            let mut came = 0;
            while came < bytes
                && let Some(Ok(chunk)) = chunks.next().await
            {
                came += chunk.len() as u64;
            }
            Err(broken())
        }
        Some(Fault::CutAfter(bytes)) => {
            let mut came = 0;
            let cut = chunks.map(move |chunk| {
                let chunk = chunk?;
                came += chunk.len() as u64;
                if came > bytes { Err(broken()) } else { Ok(chunk) }
            });
            let _ = (shared.handler)(seen, Box::pin(cut)).await;
            Err(broken())
        }
        Some(Fault::LoseAnswer) => {
            let _ = (shared.handler)(seen, chunks).await;
            Err(broken())
        }
        Some(Fault::Answer(status, headers, body)) => {
            let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                answer.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok(answer)
        }
        Some(Fault::Header(name, value)) => {
            let mut answer = (shared.handler)(seen, chunks).await;
            answer.headers_mut().insert(name, value.parse().unwrap());
            Ok(answer)
        }
    }
}

/// An answer without content.
pub fn empty(status: u16) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

/// Never fails.
pub fn honest() -> Arc<Faults> {
    Arc::new(|_| None)
}
