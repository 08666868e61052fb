//! `tributary get`: one download, by the daemon where one is running, else as a peer for as long as it takes.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::api::convert::DAEMON;
use crate::api::{Done, Failed, GetRequest, Handler, Request};
use crate::config::Config;
use crate::download::{Destination, Local};
use crate::node::Node;
use crate::task::Tasks;
use crate::types::hex;
use crate::upload::Stop;

use super::args::{Common, Get};
use super::pooled::{Without, alone, headers, reach, wrong};
use super::show::Show;

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
    show.end(&result)
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
        let tasks = Tasks::new();
        let beside_daemon = standalone
            || match self.by_daemon(&tasks, show, stop).await {
                Ok(decided) => return decided,
                Err(None) => false,
                Err(Some(why)) => {
                    show.news(&format!("{why}; downloading without it"));
                    true
                }
            };
        let files = Arc::new(Local::new(self.to, &tasks));
        let stop = Stop {
            stop: stop.clone(),
            ..Stop::default()
        };
        let begin = async |node: &Node| node.get(self.request, files).await;
        alone(self.common, config, beside_daemon, show, &stop, begin).await
    }

    /// The daemon does it; the file stays ours. Fails where there is none that can, with the reason if there is one to
    /// be said.
    async fn by_daemon(
        &self,
        tasks: &Tasks,
        show: &mut Show,
        stop: &CancellationToken,
    ) -> Result<Result<Done, Failed>, Without> {
        let client = reach(self.common, &Request::Get(self.request.clone())).await?;
        let files = Local::new(self.to.clone(), tasks);
        let done = client.download(files, tasks, stop, |progress| show.progress(progress));
        match done.await {
            Err(failed) if failed.code == DAEMON => Err(Some(failed.message)),
            decided => Ok(decided),
        }
    }
}

fn request(get: &Get) -> Result<GetRequest, Failed> {
    Ok(GetRequest {
        url: get.url.clone(),
        headers: headers(&get.headers)?,
        sha256: get.sha256.map(|digest| hex(&digest)),
        pool: !get.no_pool,
    })
}

fn destination(get: &Get) -> Result<Destination, Failed> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e: io::Error| {
            wrong(format!(
                "the current directory cannot be told: {e}; name a whole path"
            ))
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
