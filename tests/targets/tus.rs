//! A tus server: the crate `tus-protocol`, which is nobody's client, behind hyper.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::{Method, Response, StatusCode};
use tempfile::TempDir;
use tus_protocol::locking::memory::MemoryLocker;
use tus_protocol::state::file::FileStateStore;
use tus_protocol::storage::file::FileStorage;
use tus_protocol::{
    BodyFrame, Config, Extension, Headers, NoopHookExecutor, ProtocolHandle, RequestBody, StateStore,
    UploadId,
};

use super::Issued;
use super::web::{Chunks, Faults, Seen, Web, honest};

/// What the server offers, and what goes wrong.
#[derive(Clone)]
pub struct Options {
    pub concatenation: bool,
    pub checksum: bool,
    pub with_upload: bool,
    pub termination: bool,
    pub max_size: Option<u64>,
    pub faults: Arc<Faults>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            concatenation: true,
            checksum: true,
            with_upload: true,
            termination: true,
            max_size: None,
            faults: honest(),
        }
    }
}

type Handle = ProtocolHandle<FileStorage, FileStateStore, MemoryLocker, NoopHookExecutor>;

/// A whole file at the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub name: String,
    pub content: Vec<u8>,
}

/// The server; it ends when it is dropped, and its files with it.
pub struct TusServer {
    pub port: u16,
    web: Web,
    directory: TempDir,
}

impl TusServer {
    /// Serves `/files/` on the listener.
    pub fn start(listener: TcpListener, issued: &Issued, options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = listener.local_addr().unwrap().port();
        let web = serve(listener, issued, &options, directory.path());
        Self { port, web, directory }
    }

    /// Ends it and starts it again where it was, with what it had stored.
    pub fn restart(self, address: SocketAddr, issued: &Issued, options: Options) -> Self {
        let Self { directory, web, .. } = self;
        drop(web);
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        let web = serve(listener, issued, &options, directory.path());
        Self { port, web, directory }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.web.seen()
    }

    /// The whole files: what was joined, or sent as one.
    pub fn finished(&self) -> Vec<Stored> {
        let states = self.states();
        let whole = states
            .iter()
            .filter(|state| !state.is_partial() && state.is_complete());
        let stored = whole.map(|state| {
            let key = state.storage_handle().unwrap();
            let name = state.metadata().get("filename").and_then(|value| value.as_str());
            Stored {
                name: name.unwrap_or_default().to_owned(),
                content: std::fs::read(self.directory.path().join("files").join(key.key())).unwrap(),
            }
        });
        stored.collect()
    }

    /// Uploads of parts that are still there: whole ones, and others with something in them. One that was being begun when its
    /// lane lost a race may be there, empty: its name was never heard.
    pub fn parts(&self) -> (usize, usize) {
        let states = self.states();
        let parts = states
            .iter()
            .filter(|state| state.is_partial() && state.offset() > 0);
        let (whole, others): (Vec<_>, Vec<_>) = parts.partition(|state| state.is_complete());
        (whole.len(), others.len())
    }

    /// The names of all uploads of parts, and what it has of each. It may have more than it has written down: it looks when
    /// it is asked.
    pub fn begun(&self) -> Vec<(String, u64)> {
        let states = self.states();
        let parts = states.iter().filter(|state| state.is_partial());
        parts
            .map(|state| (state.id().to_owned(), state.offset()))
            .collect()
    }

    /// What it has of anything, in bytes.
    pub fn stored(&self) -> u64 {
        self.states().iter().map(tus_protocol::UploadState::offset).sum()
    }

    fn states(&self) -> Vec<tus_protocol::UploadState> {
        let directory = self.directory.path().join("states");
        let names = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let ids = names.filter(|path| path.extension().is_some_and(|e| e == "json"));
        let ids: Vec<_> = ids
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let store = FileStateStore::new_sync(&directory).unwrap();
        let read = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let get = |id: &String| runtime.block_on(store.get(id)).unwrap();
            ids.iter().filter_map(get).collect()
        };
        // In a thread without a runtime: the test may be in one.
        std::thread::scope(|scope| scope.spawn(read).join().unwrap())
    }
}

fn serve(listener: TcpListener, issued: &Issued, options: &Options, directory: &Path) -> Web {
    let mut config = Config::new()
        .with_base_path("/files")
        .with_extension(Extension::Creation);
    for (wanted, extension) in [
        (options.concatenation, Extension::Concatenation),
        (options.checksum, Extension::Checksum),
        (options.with_upload, Extension::CreationWithUpload),
    ] {
        if wanted {
            config = config.with_extension(extension);
        }
    }
    if !options.termination {
        config = config.without_extension(Extension::Termination);
    }
    if let Some(size) = options.max_size {
        config = config.with_max_size(size);
    }
    let handle: Handle = ProtocolHandle::new(
        config,
        FileStorage::new_sync(directory.join("files")).unwrap(),
        FileStateStore::new_sync(directory.join("states")).unwrap(),
        MemoryLocker::new(),
        NoopHookExecutor::new(),
    );
    let handler = move |seen: Seen, chunks: Chunks| {
        let handle = handle.clone();
        let answer: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { answer(&handle, seen, chunks).await });
        answer
    };
    Web::start(listener, issued, options.faults.clone(), Arc::new(handler))
}

async fn answer(handle: &Handle, seen: Seen, chunks: Chunks) -> Response<Full<Bytes>> {
    match proper(handle, seen, chunks).await {
        Ok(answer) => {
            let mut response = Response::new(Full::new(answer.body));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            response
        }
        Err(error) => {
            let told = error.error_response();
            let mut response = Response::new(Full::new(Bytes::from(told.body)));
            *response.status_mut() = StatusCode::from_u16(told.status).unwrap();
            for (name, value) in told.headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
    }
}

async fn proper(handle: &Handle, seen: Seen, chunks: Chunks) -> tus_protocol::Result<tus_protocol::Response> {
    if seen.method == Method::OPTIONS {
        return Ok(handle.options());
    }
    let headers = Headers::from_headers(&seen.headers)?;
    let has_content = seen.header("content-length").is_some_and(|length| length != "0");
    let body = if has_content {
        RequestBody::from_stream(Box::pin(chunks.map(|chunk| chunk.map(BodyFrame::Data))))
    } else {
        RequestBody::absent()
    };
    let id = seen.path.strip_prefix("/files/").unwrap_or_default();
    if seen.method == Method::POST {
        return handle.post(headers, body).await;
    }
    let id: UploadId = id.parse()?;
    match seen.method {
        Method::HEAD => handle.head(&id).await,
        Method::PATCH => handle.patch(headers, &id, body).await,
        Method::DELETE => handle.delete(headers, &id).await,
        other => Err(tus_protocol::Error::MethodNotAllowed(other.to_string())),
    }
}
