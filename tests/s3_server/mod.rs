//! A real S3 service for tests: s3s speaks the language (with its signatures), s3s-fs stores into a temporary directory.
//!
//! s3s-fs lacks some of what S3 is; [`store::Store`] adds it. Before all of it stands a script that sees each request and may
//! answer it otherwise, lose it or spoil its answer: what services do on bad days.
//!
//! On loopback: [`S3Server::start`]. In the lab's internet:
//! ```ignore
//! let address = lab.host("s3.lab");
//! let listener = lab.outside(|| TcpListener::bind((address, 443)));
//! let certificate = lab.authority().issue(&["s3.lab"]).unwrap();
//! let server = S3Server::start_on(listener, "s3.lab", Some(&certificate), |_| Deed::Serve);
//! ```

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a server that cannot start fails its test"
)]

pub mod moto;
mod script;
mod store;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use script::{Call, Deed, Kind};
use script::{Script, serve};
use store::Store;

/// The one bucket that there is.
pub const BUCKET: &str = "box";
pub const ACCESS_KEY: &str = "AKIDTEST";
pub const SECRET_KEY: &str = "SECRETTEST";

/// A running service; ends when dropped.
pub struct S3Server {
    pub address: SocketAddr,
    /// `https://NAME:PORT`, or `http://`.
    pub endpoint: String,
    directory: TempDir,
    store: Store,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    service: S3Service,
    script: Box<Script>,
    store: Store,
    calls: Mutex<Vec<Call>>,
}

impl S3Server {
    /// On loopback, at 127.0.0.1, with a certificate of its own for `s3.test` that the roots trust.
    pub fn start(script: impl Fn(&Call) -> Deed + Send + Sync + 'static) -> (Self, RootCertStore) {
        let made = rcgen::generate_simple_self_signed(vec!["s3.test".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let pem = (made.cert.pem(), made.signing_key.serialize_pem());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        (Self::start_on(listener, "s3.test", Some(&pem), script), roots)
    }

    /// On a listener, which may be of another network namespace. With certificate and key (PEM) it speaks TLS.
    pub fn start_on(
        listener: TcpListener,
        name: &str,
        certificate: Option<&(String, String)>,
        script: impl Fn(&Call) -> Deed + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("tributary-s3-")
            .tempdir()
            .unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let store = Store::new(directory.path());
        let mut builder = S3ServiceBuilder::new(store.clone());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let shared = Arc::new(Shared {
            service: builder.build(),
            script: Box::new(script),
            store: store.clone(),
            calls: Mutex::default(),
        });
        let tls = certificate.map(acceptor);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let of_server = shared.clone();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(listener, tls, of_server, stopped));
        };
        let thread = std::thread::Builder::new().name("s3".into()).spawn(run).unwrap();
        Self {
            address,
            endpoint: format!("{scheme}://{name}:{}", address.port()),
            directory,
            store,
            shared,
            stop,
            thread: Some(thread),
        }
    }

    /// What an object holds, if it is there.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(key)).ok()
    }

    /// Where an object is.
    pub fn path(&self, key: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(key)
    }

    /// Uploads that are neither complete nor removed.
    pub fn unfinished(&self) -> usize {
        self.store.unfinished().len()
    }

    /// Files that belong to no object and no upload.
    pub fn orphans(&self) -> BTreeSet<String> {
        let names = std::fs::read_dir(self.directory.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.contains(".part-") || name.starts_with(".upload-"))
            .collect()
    }

    /// Lengths of the parts of all unfinished uploads, by number.
    pub fn parts(&self) -> Vec<(i32, u64)> {
        self.store.parts()
    }

    /// All requests so far, in the order in which they were answered.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// How many requests of that kind there were.
    pub fn count(&self, kind: Kind) -> usize {
        self.calls().iter().filter(|call| call.kind == kind).count()
    }

    /// How many parts were sent.
    pub fn parts_sent(&self) -> usize {
        self.calls()
            .iter()
            .filter(|call| matches!(call.kind, Kind::Part(_)))
            .count()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn acceptor((certificate, key): &(String, String)) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
