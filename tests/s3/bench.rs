//! A file, lanes on loopback, and a service.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use tempfile::TempDir;
use tokio::sync::watch;
use tributary::lane::{Lane, LaneSet};
use tributary::task::Tasks;
use tributary::transfer::{Progress, config_with};
use tributary::upload::{Context, Job, LocalSources, Outcome, S3Options, Stop, UploadError, run};
use url::Url;

use crate::evil_origin::{TestLane, content};
use crate::s3_server::{ACCESS_KEY, BUCKET, Call, Deed, S3Server, SECRET_KEY};

pub(crate) const MIB: usize = 1 << 20;
/// No test takes longer than this; one that does hangs.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) server: S3Server,
    roots: RootCertStore,
    directory: TempDir,
    lanes: watch::Sender<LaneSet>,
    pub(crate) job: Job,
    pub(crate) data: Arc<Vec<u8>>,
    pub(crate) stop: Stop,
}

impl Bench {
    /// A file of `size` bytes for `s3://box/film`, and `lanes` lanes to a service that does what the script says.
    pub(crate) fn new(
        size: usize,
        lanes: u8,
        script: impl Fn(&Call) -> Deed + Send + Sync + 'static,
    ) -> Self {
        let (server, roots) = S3Server::start(script);
        let lanes: Vec<Arc<dyn Lane>> = (0..lanes).map(|n| TestLane::new(n) as Arc<dyn Lane>).collect();
        let directory = TempDir::new().unwrap();
        let data = content(size, 1);
        std::fs::write(directory.path().join("film.mp4"), &*data).unwrap();
        Self {
            job: job(&server.endpoint, &format!("s3://{BUCKET}/film")),
            server,
            roots,
            directory,
            lanes: watch::channel(Arc::new(lanes)).0,
            data,
            stop: Stop::default(),
        }
    }

    /// A file of other bytes, in the same place.
    pub(crate) fn change_file(&mut self, data: Arc<Vec<u8>>) {
        self.data = data;
        std::fs::write(self.directory.path().join("film.mp4"), &*self.data).unwrap();
    }

    /// Runs the upload to its end.
    pub(crate) async fn put(&self) -> Result<Outcome, UploadError> {
        let tasks = Tasks::new();
        let context = Context {
            lanes: self.lanes.subscribe(),
            tls: Arc::new(config_with(self.roots.clone()).unwrap()),
            tasks: tasks.clone(),
        };
        let sources = Arc::new(LocalSources::new(self.directory.path().join("film.mp4"), &tasks));
        let progress = watch::channel(Progress::default()).0;
        let running = run(self.job.clone(), sources, context, progress, self.stop.clone());
        let result = tokio::time::timeout(LIMIT, running)
            .await
            .expect("the upload hangs");
        assert!(tasks.stop(Duration::from_secs(5)).await, "tasks are left");
        result
    }

    /// Runs the upload, which must succeed and leave exactly the object.
    pub(crate) async fn put_exactly(&self) -> Outcome {
        let outcome = self.put().await.expect("the upload failed");
        self.assert_object();
        assert_eq!(self.server.unfinished(), 0, "unfinished uploads are left");
        assert!(self.server.orphans().is_empty(), "{:?}", self.server.orphans());
        assert_eq!(outcome.bytes, self.data.len() as u64);
        outcome
    }

    /// Runs the upload, which must fail; what it says.
    pub(crate) async fn told(&self) -> String {
        let told = self.put().await.expect_err("the upload succeeded").to_string();
        assert!(
            !told.contains(SECRET_KEY) && !told.chars().any(char::is_control),
            "{told}"
        );
        told
    }

    pub(crate) fn assert_object(&self) {
        let got = self.server.object("film").expect("there is no object");
        assert_eq!(got.len(), self.data.len(), "length");
        assert_eq!(
            got.iter().zip(&**self.data).position(|(a, b)| a != b),
            None,
            "first wrong byte"
        );
    }

    pub(crate) fn assert_no_object(&self) {
        assert!(self.server.object("film").is_none(), "there is an object");
    }
}

pub(crate) fn job(endpoint: &str, target: &str) -> Job {
    Job {
        target: Url::parse(target).unwrap(),
        s3: Some(S3Options {
            endpoint: Some(Url::parse(endpoint).unwrap()),
            region: "us-east-1".into(),
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            session_token: None,
        }),
        headers: Vec::new(),
        pool: true,
        part_size: None,
        abort: false,
        journal: None,
    }
}
