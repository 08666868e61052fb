//! `tributary get`: one download, by the daemon where one is running, else as a peer for as long as it takes.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::api::convert::{DAEMON, STOPPED, UNEXPECTED, USAGE};
use crate::api::{Client, ClientError, Done, Failed, GetRequest, Handler, Reply, Request, SOCKET, To};
use crate::config::Config;
use crate::identity::StateDir;
use crate::node::Node;
use crate::types::hex;

use super::args::{Common, Get};
use super::show::{Show, follow};
use super::{node_config, state_path};

pub(super) async fn run(common: &Common, config: Config, get: Get, stop: CancellationToken) -> ExitCode {
    let mut show = Show::new(get.json, get.quiet);
    let result = match request(&get) {
        Ok(request) => fetch(common, config, request, &mut show, &stop).await,
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

async fn fetch(
    common: &Common,
    config: Config,
    request: GetRequest,
    show: &mut Show,
    stop: &CancellationToken,
) -> Result<Done, Failed> {
    let state = state_path(common);
    match Client::ask(&state.join(SOCKET), &Request::Get(request.clone())).await {
        Ok(client) => match by_daemon(client, show, stop).await {
            Err(failed) if failed.code == DAEMON => {
                show.news(&format!("{}; downloading without it", failed.message));
            }
            decided => return decided,
        },
        Err(ClientError::NoDaemon) => {}
        Err(error) => show.news(&format!("{error}; downloading without it")),
    }
    alone(&state, config, request, show, stop).await
}

/// The daemon does it; hanging up stops it.
async fn by_daemon(mut client: Client, show: &mut Show, stop: &CancellationToken) -> Result<Done, Failed> {
    let broken = |message: String| Failed {
        code: DAEMON,
        message,
    };
    loop {
        let reply = tokio::select! {
            reply = client.reply() => reply,
            () = stop.cancelled() => return Err(stopped()),
        };
        match reply {
            Ok(Some(Reply::Progress(progress))) => show.progress(&progress),
            Ok(Some(Reply::Done(done))) => return Ok(done),
            Ok(Some(Reply::Failed(failed))) => return Err(failed),
            Ok(Some(Reply::Status(_)) | None) => return Err(broken("the daemon hung up".into())),
            Err(error) => return Err(broken(error.to_string())),
        }
    }
}

/// Without a daemon: a peer for as long as it takes.
async fn alone(
    state: &Path,
    config: Config,
    request: GetRequest,
    show: &mut Show,
    stop: &CancellationToken,
) -> Result<Done, Failed> {
    let unexpected = |message: String| Failed {
        code: UNEXPECTED,
        message,
    };
    let state = StateDir::open(state).map_err(|e| unexpected(e.to_string()))?;
    let node = Node::start(node_config(config, state))
        .await
        .map_err(|e| unexpected(e.to_string()))?;
    let result = match node.get(request) {
        Ok(transfer) => follow(transfer, show, stop).await,
        Err(failed) => Err(failed),
    };
    node.stop().await;
    result
}

fn stopped() -> Failed {
    Failed {
        code: STOPPED,
        message: "stopped; run the same command again to continue".into(),
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
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e: io::Error| wrong(e.to_string()));
    let to = match (&get.output, &get.directory) {
        (Some(file), _) => To::File(absolute(file)?),
        (None, directory) => To::Directory(absolute(directory.as_deref().unwrap_or(&PathBuf::from(".")))?),
    };
    Ok(GetRequest {
        url: get.url.clone(),
        headers,
        sha256: get.sha256.map(|digest| hex(&digest)),
        to,
        pool: !get.no_pool,
    })
}
