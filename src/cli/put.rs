//! `tributary put`: one upload, by the daemon where one is running, else as a peer for as long as it takes.
//!
//! Invariants: a file is opened by this process, as the user that it is, and for reading only; standard input is read once,
//! however often the upload is begun.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::api::convert::{DAEMON, LEFT_OUT, STOPPED};
use crate::api::{Done, Failed, Handler, PutRequest, Request};
use crate::config::Config;
use crate::node::Node;
use crate::task::Tasks;
use crate::upload::{Listed, LocalSources, Sources, Stop};

use super::args::{Common, Put};
use super::pooled::{Without, alone, headers, reach, wrong};
use super::s3;
use super::show::Show;
use super::spool::{LIMIT, Spool};
use super::target::{Kind, Target, What};

/// How long after the end of a stopped upload it can still be asked to be removed: as long as it takes to read the line
/// that says so. A script is not kept waiting.
const GRACE: Duration = Duration::from_secs(3);

pub(super) async fn run(common: &Common, config: Config, options: Put, stop: Stop) -> ExitCode {
    let mut show = Show::new(options.json, options.quiet);
    let aborts = options.abort;
    match upload(common, config, options, &mut show, &stop).await {
        Ok(done) if aborts => {
            show.removed(&done);
            ExitCode::SUCCESS
        }
        Ok(done) => {
            show.done(&done);
            match done.files {
                Some(files) if files.left_out > 0 => ExitCode::from(LEFT_OUT),
                _ => ExitCode::SUCCESS,
            }
        }
        Err(failed) => {
            show.failed(&failed);
            ExitCode::from(failed.code)
        }
    }
}

async fn upload(
    common: &Common,
    config: Config,
    options: Put,
    show: &mut Show,
    stop: &Stop,
) -> Result<Done, Failed> {
    let tasks = Tasks::new();
    let target = Target::parse(&options.target)?;
    check(&options, target.kind())?;
    let begun = Begun {
        asks: std::io::stderr().is_terminal() && target.kind() != Kind::Put && !options.abort,
        standalone: options.standalone,
        common,
        config,
        shown: shown(&options.source),
    };
    let what = Wanted::new(&options, &target, &tasks, show, stop).await?;
    begun.upload(what, show, stop).await
}

/// What goes with which target and source.
fn check(options: &Put, kind: Kind) -> Result<(), Failed> {
    let s3 = options.endpoint.is_some() || options.region.is_some() || options.profile.is_some();
    if s3 && kind != Kind::S3 {
        let only = "--endpoint, --region and --profile are for s3://BUCKET/KEY only";
        return Err(wrong(only.into()));
    }
    if kind == Kind::S3 && !options.headers.is_empty() {
        return Err(wrong(
            "-H is not for s3://: those requests are signed as they are".into(),
        ));
    }
    if kind == Kind::Put && options.part_size.is_some() {
        let only = "--part-size is for s3:// and tus+https:// only: with PUT a file is sent in one";
        return Err(wrong(only.into()));
    }
    if options.spool_limit.is_some() && !is_standard_input(&options.source) {
        return Err(wrong(
            "--spool-limit is for standard input only: SOURCE is `-` then".into(),
        ));
    }
    Ok(())
}

fn is_standard_input(source: &Path) -> bool {
    source.as_os_str() == "-"
}

/// As it is told what was sent.
fn shown(source: &Path) -> PathBuf {
    if is_standard_input(source) {
        return source.to_owned();
    }
    std::path::absolute(source).unwrap_or_else(|_| source.to_owned())
}

/// An upload that somebody wants.
struct Wanted {
    request: PutRequest,
    sources: Arc<dyn Sources>,
    listed: Listed,
}

impl Wanted {
    async fn new(
        options: &Put,
        target: &Target,
        tasks: &Tasks,
        show: &mut Show,
        stop: &Stop,
    ) -> Result<Self, Failed> {
        let nameless = is_standard_input(&options.source);
        if nameless {
            target.of(What::Nameless)?;
        } else if options.source.is_dir() {
            target.of(What::Directory)?;
        }
        let headers = headers(&options.headers)?;
        let s3 = (target.kind() == Kind::S3).then(|| s3::access(options));
        let s3 = s3.transpose()?;
        let sources: Arc<dyn Sources> = if !nameless {
            Arc::new(LocalSources::new(options.source.clone(), tasks))
        } else if options.abort {
            Arc::new(Spool::empty()?)
        } else {
            let limit = options.spool_limit.unwrap_or(LIMIT);
            Arc::new(Spool::fill(limit, tasks, show, &stop.stop).await?)
        };
        let listed = sources.list().await?;
        let what = match listed.items.first() {
            _ if nameless => What::Nameless,
            Some(item) if !listed.directory => What::File(&item.name),
            _ => What::Directory,
        };
        let request = PutRequest {
            target: target.of(what)?.into(),
            headers,
            pool: !options.no_pool,
            part_size: options.part_size.map(|size| size.0),
            abort: options.abort,
            s3,
        };
        Ok(Self {
            request,
            sources,
            listed,
        })
    }
}

/// How it is done, as often as it has to be.
struct Begun<'a> {
    common: &'a Common,
    config: Config,
    standalone: bool,
    /// Whether somebody is there to be asked whether what was sent shall stay.
    asks: bool,
    /// The source.
    shown: PathBuf,
}

impl Begun<'_> {
    /// Uploads; where it is stopped by somebody at a terminal, waits for whether what was sent shall be removed.
    async fn upload(&self, mut what: Wanted, show: &mut Show, stop: &Stop) -> Result<Done, Failed> {
        let sent = tokio::select! {
            sent = self.once(&what, show, stop) => sent,
            never = self.tell(stop) => match never {},
        };
        match sent {
            Err(failed) if failed.code == STOPPED && self.asks && !stop.abort.is_cancelled() => {
                if tokio::time::timeout(GRACE, stop.abort.cancelled()).await.is_err() {
                    return Err(failed);
                }
            }
            sent => return sent,
        }
        what.request.abort = true;
        self.once(&what, show, &Stop::default()).await?;
        Err(Failed {
            code: STOPPED,
            message: "stopped; what was sent was removed".into(),
        })
    }

    /// Says at the first Ctrl-C what a second one does; never ends.
    async fn tell(&self, stop: &Stop) -> Infallible {
        stop.stop.cancelled().await;
        if self.asks {
            let seconds = GRACE.as_secs();
            eprintln!("tributary: stopping; Ctrl-C again within {seconds} s also removes what was sent");
        }
        std::future::pending().await
    }

    async fn once(&self, what: &Wanted, show: &mut Show, stop: &Stop) -> Result<Done, Failed> {
        let beside_daemon = self.standalone
            || match self.by_daemon(what, show, stop).await {
                Ok(decided) => return decided,
                Err(None) => false,
                Err(Some(why)) => {
                    show.news(&format!("{why}; uploading without it"));
                    true
                }
            };
        let begin = async |node: &Node| {
            let user = nix::unistd::geteuid().as_raw();
            node.put(what.request.clone(), Arc::clone(&what.sources), user)
        };
        let done = alone(self.common, self.config.clone(), beside_daemon, show, stop, begin).await;
        done.map(|done| self.named(done))
    }

    /// The daemon does it; the files stay ours. Fails where there is none that can, with the reason if there is one to be
    /// said.
    async fn by_daemon(
        &self,
        what: &Wanted,
        show: &mut Show,
        stop: &Stop,
    ) -> Result<Result<Done, Failed>, Without> {
        let client = reach(self.common, &Request::Put(what.request.clone())).await?;
        let (sources, listed) = (Arc::clone(&what.sources), what.listed.clone());
        let done = client.upload(sources, listed, stop, |progress| show.progress(progress));
        match done.await {
            Err(failed) if failed.code == DAEMON => Err(Some(failed.message)),
            decided => Ok(decided.map(|done| self.named(done))),
        }
    }

    /// Only this side knows what the source is called.
    fn named(&self, done: Done) -> Done {
        Done {
            path: self.shown.clone(),
            ..done
        }
    }
}
