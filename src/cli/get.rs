//! `tributary get`: one download, by the daemon where one is running, else as a peer for as long as it takes.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::api::convert::{DAEMON, UNEXPECTED, USAGE};
use crate::api::{ClientError, Done, Failed, GetRequest, Handler, Request};
use crate::config::Config;
use crate::download::{Destination, Local};
use crate::identity::StateDir;
use crate::node::Node;
use crate::task::Tasks;
use crate::types::hex;

use super::args::{Common, Get};
use super::show::{Show, follow};
use super::{daemon, node_config, state_path};

/// The kernel chooses.
const ANY_PORT: u16 = 0;

pub(super) async fn run(common: &Common, config: Config, options: Get, stop: CancellationToken) -> ExitCode {
    let mut show = Show::new(options.json, options.quiet);
    let wanted = request(&options).and_then(|request| Ok((request, destination(&options)?)));
    let result = match wanted {
        Ok((request, to)) => {
            let get = Wanted { common, request, to };
            get.fetch(config, options.standalone, &mut show, &stop).await
        }
        Err(failed) => Err(failed),
    };
    match result {
        Ok(done) => {
            show.done(&done);
            ExitCode::SUCCESS
        }
        Err(failed) => {
            show.failed(&failed);
            ExitCode::from(failed.code)
        }
    }
}

/// A download that somebody wants.
struct Wanted<'a> {
    common: &'a Common,
    request: GetRequest,
    to: Destination,
}

impl Wanted<'_> {
    async fn fetch(
        self,
        config: Config,
        standalone: bool,
        show: &mut Show,
        stop: &CancellationToken,
    ) -> Result<Done, Failed> {
        let (tasks, mut config) = (Tasks::new(), config);
        let beside_daemon = standalone
            || match self.by_daemon(&tasks, show, stop).await {
                Ok(decided) => return decided,
                Err(None) => false,
                Err(Some(why)) => {
                    show.news(&format!("{why}; downloading without it"));
                    true
                }
            };
        if beside_daemon {
            // Its port is the daemon's, also when that is away for the moment that an upgrade takes.
            config.lan.port = Some(ANY_PORT);
        }
        self.alone(config, &tasks, show, stop).await
    }

    /// The daemon does it; the file stays ours. Fails where there is none that can, with the reason if there is one to
    /// be said.
    async fn by_daemon(
        &self,
        tasks: &Tasks,
        show: &mut Show,
        stop: &CancellationToken,
    ) -> Result<Result<Done, Failed>, Option<String>> {
        let request = Request::Get(self.request.clone());
        let client = match daemon::ask(self.common, &request).await {
            Ok(client) => client,
            // Somebody who names a socket means a daemon.
            Err(ClientError::NoDaemon) => {
                let named = self.common.socket.as_ref();
                return Err(named.map(|socket| format!("no daemon is running at {}", socket.display())));
            }
            Err(error) => return Err(Some(error.to_string())),
        };
        let files = Local::new(self.to.clone(), tasks);
        let done = client.download(files, tasks, stop, |progress| show.progress(progress));
        match done.await {
            Err(failed) if failed.code == DAEMON => Err(Some(failed.message)),
            decided => Ok(decided),
        }
    }

    /// Without a daemon: a peer for as long as it takes.
    async fn alone(
        self,
        config: Config,
        tasks: &Tasks,
        show: &mut Show,
        stop: &CancellationToken,
    ) -> Result<Done, Failed> {
        let unexpected = |message: String| Failed {
            code: UNEXPECTED,
            message,
        };
        let state = StateDir::open(&state_path(self.common)).map_err(|e| unexpected(e.to_string()))?;
        let node = Node::start(node_config(config, state))
            .await
            .map_err(|e| unexpected(e.to_string()))?;
        let files = Arc::new(Local::new(self.to, tasks));
        let result = match node.get(self.request, files) {
            Ok(transfer) => follow(transfer, show, stop).await,
            Err(failed) => Err(failed),
        };
        node.stop().await;
        result
    }
}

fn request(get: &Get) -> Result<GetRequest, Failed> {
    let wrong = |message: String| Failed { code: USAGE, message };
    let mut headers = Vec::new();
    for header in &get.headers {
        let split = header.split_once(':').filter(|(name, _)| !name.trim().is_empty());
        let (name, value) = split.ok_or_else(|| {
            wrong(format!(
                "-H '{header}' is not a header: write it as 'Name: value'"
            ))
        })?;
        headers.push((name.trim().into(), value.trim().into()));
    }
    Ok(GetRequest {
        url: get.url.clone(),
        headers,
        sha256: get.sha256.map(|digest| hex(&digest)),
        pool: !get.no_pool,
    })
}

fn destination(get: &Get) -> Result<Destination, Failed> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e: io::Error| Failed {
            code: USAGE,
            message: format!("the current directory cannot be told: {e}; name a whole path"),
        })
    };
    Ok(match (&get.output, &get.directory) {
        (Some(file), _) => Destination::File(absolute(file)?),
        (None, directory) => {
            let directory = directory.as_deref().unwrap_or(Path::new("."));
            Destination::Directory(absolute(directory)?)
        }
    })
}
