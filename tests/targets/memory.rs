//! A plain `PUT` server that keeps files in memory, with the parts of WebDAV that a test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::Response;

use super::Issued;
use super::web::{Chunks, Faults, Seen, Web, empty};

/// What is stored.
#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
    directories: BTreeSet<String>,
}

/// The server; it ends when it is dropped.
pub struct MemoryDav {
    pub port: u16,
    web: Web,
    tree: Arc<Mutex<Tree>>,
}

impl MemoryDav {
    /// ETags are the MD5 of the content; files are only taken into directories that are there; `PROPFIND` where `listing`.
    pub fn start(listener: TcpListener, issued: &Issued, listing: bool, faults: Arc<Faults>) -> Self {
        let tree = Arc::new(Mutex::new(Tree::default()));
        tree.lock().unwrap().directories.insert("/".into());
        let shared = tree.clone();
        let port = listener.local_addr().unwrap().port();
        let handler = move |seen: Seen, chunks: Chunks| {
            let tree = shared.clone();
            let answer: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { answer(&tree, listing, seen, chunks).await });
            answer
        };
        let web = Web::start(listener, issued, faults, Arc::new(handler));
        Self { port, web, tree }
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.web.seen()
    }

    /// What is stored, by path.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.tree.lock().unwrap().files.clone()
    }

    /// Puts a directory there.
    pub fn make(&self, path: &str) {
        self.tree.lock().unwrap().directories.insert(path.to_owned());
    }
}

fn parent(path: &str) -> &str {
    let path = path.strip_suffix('/').unwrap_or(path);
    &path[..=path.rfind('/').unwrap()]
}

async fn answer(tree: &Mutex<Tree>, listing: bool, seen: Seen, mut chunks: Chunks) -> Response<Full<Bytes>> {
    let path = seen.path.clone();
    let mut content = Vec::new();
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => content.extend_from_slice(&chunk),
            Err(_) => return empty(400),
        }
    }
    let mut tree = tree.lock().unwrap();
    match seen.method.as_str() {
        "PUT" if !tree.directories.contains(parent(&path)) => empty(409),
        "PUT" => empty(if tree.files.insert(path, content).is_some() {
            204
        } else {
            201
        }),
        "MKCOL" if tree.directories.contains(&path) => empty(405),
        "MKCOL" if !tree.directories.contains(parent(&path)) => empty(409),
        "MKCOL" => {
            tree.directories.insert(path);
            empty(201)
        }
        "HEAD" => tree.files.get(&path).map_or_else(
            || empty(404),
            |content| {
                let mut answer = empty(200);
                answer
                    .headers_mut()
                    .insert("content-length", content.len().into());
                answer
                    .headers_mut()
                    .insert("etag", etag(content).parse().unwrap());
                answer
            },
        ),
        "PROPFIND" if !listing => empty(405),
        "PROPFIND" if !tree.directories.contains(&path) => empty(404),
        "PROPFIND" => {
            let mut answer = Response::new(Full::new(Bytes::from(list(&tree, &path))));
            *answer.status_mut() = hyper::StatusCode::MULTI_STATUS;
            answer
        }
        _ => empty(405),
    }
}

fn etag(content: &[u8]) -> String {
    use md5::Digest;
    format!("\"{}\"", tributary::types::hex(&md5::Md5::digest(content)))
}

fn list(tree: &Tree, path: &str) -> String {
    let mut text = "<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">".to_owned();
    for directory in tree
        .directories
        .iter()
        .filter(|d| *d == path || (d.len() > 1 && parent(d) == path))
    {
        let _ = write!(
            text,
            "<D:response><D:href>{directory}</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype>\
             </D:prop></D:propstat></D:response>"
        );
    }
    for (file, content) in tree.files.iter().filter(|(file, _)| parent(file) == path) {
        let _ = write!(
            text,
            "<D:response><D:href>{file}</D:href><D:propstat><D:prop><D:resourcetype/><D:getcontentlength>{}\
             </D:getcontentlength><D:getetag>{}</D:getetag></D:prop></D:propstat></D:response>",
            content.len(),
            etag(content)
        );
    }
    text + "</D:multistatus>"
}
