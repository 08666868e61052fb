//! `tributary share` and `shared`: what this device offers the household by hand, and all that is offered.
//!
//! Invariant: the file is opened by this process, as the user that it is, for reading only; the daemon gets the descriptor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::api::convert::DAEMON;
use crate::api::{ClientError, Done, Failed, Reply, Request, ShareRequest, SharedFile, SharedFiles};
use crate::task::Tasks;
use crate::types::ByteSize;
use crate::upload::{LocalSources, Sources, Stop};

use super::args::{self, Common};
use super::daemon;
use super::pooled::wrong;
use super::show::Show;
use super::trust::{Refused, ask};

pub(super) async fn run(common: &Common, options: args::Share, stop: CancellationToken) -> ExitCode {
    if let Some(what) = options.stop {
        return end(common, what, stop).await;
    }
    let mut show = Show::new(options.json, options.quiet);
    let file = options.file.unwrap_or_default();
    let result = offer(common, &file, options.name, &mut show, &stop).await;
    show.end(&result)
}

async fn offer(
    common: &Common,
    file: &Path,
    name: Option<String>,
    show: &mut Show,
    stop: &CancellationToken,
) -> Result<Done, Failed> {
    if file.is_dir() {
        return Err(wrong(format!(
            "{} is a directory: one file is offered at a time; pack it first, as with `tar`",
            file.display()
        )));
    }
    let tasks = Tasks::new();
    let sources = Arc::new(LocalSources::new(file.to_owned(), &tasks));
    let listed = sources.list().await?;
    let request = Request::Share(ShareRequest {
        name,
        path: whole(file)?,
    });
    let client = daemon::ask(common, &request).await;
    let client = client.map_err(|error| match Refused::of(common, &error) {
        Refused::Daemon(code, message) => Failed { code, message },
        Refused::Stopped => wrong("stopped".into()),
    })?;
    let stop = Stop {
        stop: stop.clone(),
        ..Stop::default()
    };
    client
        .upload(sources, listed, &stop, |progress| show.progress(progress))
        .await
}

/// Where the daemon is to find it again: no link on the way, whose target may be another one tomorrow.
fn whole(file: &Path) -> Result<String, Failed> {
    let path = std::fs::canonicalize(file).map_err(|e| wrong(format!("{}: {e}", file.display())))?;
    path.into_os_string().into_string().map_err(|path| {
        let path = PathBuf::from(path);
        wrong(format!(
            "{} is not UTF-8 as a whole: only such paths can be offered; rename it, or link it under another name",
            path.display()
        ))
    })
}

async fn end(common: &Common, what: String, stop: CancellationToken) -> ExitCode {
    match ask(common, &Request::Unshare(what), stop).await {
        Ok(Reply::Shared(ended)) => {
            for file in &ended.files {
                println!(
                    "{} is not offered any more ({}, SHA-256 {})",
                    file.name,
                    ByteSize(file.bytes),
                    file.sha256
                );
            }
            ExitCode::SUCCESS
        }
        other => nonsense(other),
    }
}

fn nonsense(answer: Result<Reply, Refused>) -> ExitCode {
    let nonsense = || Refused::Daemon(DAEMON, ClientError::Malformed.to_string());
    answer.err().unwrap_or_else(nonsense).code()
}

/// `tributary shared`.
pub(super) async fn list(common: &Common, options: &args::Shared, stop: CancellationToken) -> ExitCode {
    match ask(common, &Request::Shared, stop).await {
        // Plain data without maps that could fail.
        Ok(Reply::Shared(files)) if options.json => {
            println!("{}", serde_json::to_string(&files).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Ok(Reply::Shared(files)) => {
            print!("{}", text(&files));
            ExitCode::SUCCESS
        }
        other => nonsense(other),
    }
}

/// One entry for each file, with all who offer it under that name.
fn text(shared: &SharedFiles) -> String {
    if shared.files.is_empty() {
        return "Nobody of the household offers a file: `tributary share FILE` does.\n".into();
    }
    let mut files: BTreeMap<(&str, &str, u64), Vec<&SharedFile>> = BTreeMap::new();
    for file in &shared.files {
        let key = (file.name.as_str(), file.sha256.as_str(), file.bytes);
        files.entry(key).or_default().push(file);
    }
    let one = |((name, sha256, bytes), of): ((&str, &str, u64), Vec<&SharedFile>)| {
        let owners: Vec<&str> = of.iter().map(|file| file.owner.as_str()).collect();
        let size = ByteSize(bytes);
        format!("{name}\n  {size}, of {}\n  SHA-256 {sha256}\n", owners.join(", "))
    };
    files.into_iter().map(one).collect()
}
