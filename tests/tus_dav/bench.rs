//! Files, lanes that are loopback addresses, and an upload of the one over the others.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::sync::watch;
use tributary::demo::origin::Authority;
use tributary::lane::{Lane, LaneSet};
use tributary::task::Tasks;
use tributary::transfer::{Progress, config_with};
use tributary::upload::{Context, Job, LocalSources, Outcome, Stop, UploadError, run};
use url::Url;

use crate::evil_origin::{TestLane, content};
use crate::targets::Issued;

/// What the servers are called.
pub(crate) const HOST: &str = "upload.test";
/// No test takes longer; one that does hangs.
const LIMIT: Duration = Duration::from_secs(100);

pub(crate) struct Bench {
    pub(crate) directory: TempDir,
    pub(crate) issued: Issued,
    pub(crate) stop: Stop,
    /// What a job is, but for its target.
    pub(crate) job: Job,
    set: watch::Sender<LaneSet>,
    roots: RootCertStore,
}

impl Bench {
    pub(crate) fn new(lanes: u8) -> Self {
        let authority = Authority::new().unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
            .unwrap();
        let lane = |n| TestLane::new(n) as Arc<dyn Lane>;
        let set: Vec<Arc<dyn Lane>> = (0..lanes).map(lane).collect();
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("source")).unwrap();
        Self {
            job: Job {
                target: Url::parse("https://unset.test/").unwrap(),
                s3: None,
                headers: Vec::new(),
                pool: true,
                part_size: None,
                abort: false,
                journal: Some(directory.path().join("journal")),
            },
            directory,
            issued: authority.issue(&[HOST]).unwrap(),
            stop: Stop::default(),
            set: watch::channel(Arc::new(set)).0,
            roots,
        }
    }

    pub(crate) fn listener() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    /// The directory whose files are sent.
    pub(crate) fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    /// A file in it, last changed at a time of its own.
    pub(crate) fn file(&self, name: &str, length: usize) -> PathBuf {
        let path = self.source().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let seed = name.bytes().fold(length as u64, |seed: u64, b| {
            seed.wrapping_mul(31).wrapping_add(u64::from(b))
        });
        fs::write(&path, &content(length, seed)[..]).unwrap();
        let changed = SystemTime::UNIX_EPOCH + Duration::from_millis(1_600_000_000_500 + seed % 1_000_000);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(changed)
            .unwrap();
        path
    }

    /// Journals of uploads that are not finished.
    pub(crate) fn journals(&self) -> usize {
        fs::read_dir(self.directory.path().join("journal")).map_or(0, Iterator::count)
    }

    /// Uploads it, to the end.
    pub(crate) async fn put(&self, path: &Path, target: &str) -> Result<Outcome, UploadError> {
        let tasks = Tasks::new();
        let context = Context {
            lanes: self.set.subscribe(),
            tls: Arc::new(config_with(self.roots.clone()).unwrap()),
            tasks: tasks.clone(),
        };
        let job = Job {
            target: Url::parse(target).unwrap(),
            ..self.job.clone()
        };
        let sources = Arc::new(LocalSources::new(path.to_owned(), &tasks));
        let progress = watch::channel(Progress::default()).0;
        let running = run(job, sources, context, progress, self.stop.clone());
        let result = tokio::time::timeout(LIMIT, running)
            .await
            .expect("the upload hangs");
        assert!(tasks.stop(Duration::from_secs(5)).await, "tasks are left");
        result
    }
}
