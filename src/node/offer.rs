//! Offers a file to the household: reads it once, to know its digest and its pieces' leaves, and puts it on the shelf.
//!
//! Invariant: what is offered is what was read: a file that changed meanwhile is refused.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use ring::digest::{Context, SHA256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::convert::{FILE, ORIGIN, REFUSED, STOPPED, UNEXPECTED, USAGE};
use crate::api::{Done, Failed, Progress, ShareRequest, SharedFile, SharedFiles, Transfer};
use crate::link::wire::{MAX_NAME_BYTES, clean};
use crate::share::Offer;
use crate::share::shelf::ShelfError;
use crate::store::{cut_name, safe_name};
use crate::types::{ByteSize, PIECE, hex, sha256_from_hex};
use crate::upload::Sources;

use super::Node;
use super::shared::{self, OWN};

/// Read in one go: large enough that the system call costs nothing, small enough that all clients at once hold 4 MiB.
const BLOCK: usize = 128 << 10;
/// How much is read between two looks at whether somebody wants it stopped, and two pictures of how far it is.
const STEP: u64 = 16 * PIECE;
/// Members take no more leaves than that of one content.
const MAX_PIECES: u64 = 1 << 16;

/// Begins to offer the one file of `sources`.
///
/// # Errors
/// Where the request is wrong, or this device does not share.
pub(super) fn begin(
    node: &Node,
    request: &ShareRequest,
    sources: Arc<dyn Sources>,
) -> Result<Transfer, Failed> {
    let household = shared::household(node)?.clone();
    let path = PathBuf::from(&request.path);
    let name = offered_name(request.name.as_deref(), &path)?;
    let stop = node.transfer_tasks.token().child_token();
    let (told, progress) = watch::channel(Progress {
        name: Some(name.clone()),
        ..Progress::default()
    });
    let (tasks, stopped, id) = (node.transfer_tasks.clone(), stop.clone(), node.id);
    let work = node.transfer_tasks.spawn_graceful("offer", async move {
        let file = sources.open(0).await?;
        let read = tasks.blocking(move || {
            let before = file.metadata().map_err(unreadable)?;
            let read = read(&file, &before, &stopped, &told)?;
            Ok::<_, Failed>((file, read))
        });
        let (file, read) = read.await.map_err(|e| unexpected(&e))??;
        let done = Done {
            path: path.clone(),
            bytes: read.total,
            shared: Some(SharedFile {
                name: name.clone(),
                bytes: read.total,
                sha256: hex(&read.sha256),
                owner: OWN.into(),
                id: id.to_string(),
                own: true,
            }),
            ..Done::default()
        };
        let offer = Offer {
            name,
            sha256: read.sha256,
            total: read.total,
            leaves: read.leaves,
            file: Arc::new(file),
            path,
        };
        let offered = tasks.blocking(move || household.offer(offer)).await;
        offered.map_err(|e| unexpected(&e))?.map_err(|e| refused(&e))?;
        Ok(done)
    });
    let outcome = async move { work.await.unwrap_or_else(|e| Err(unexpected(&e))) };
    Ok(Transfer {
        progress,
        outcome: outcome.boxed(),
        abort: stop.clone(),
        stop,
    })
}

/// Offers it no more: what has this name or SHA-256.
///
/// # Errors
/// Where this device does not offer it, or the name is of several.
pub(super) fn end(node: &Node, what: &str) -> Result<SharedFiles, Failed> {
    let household = shared::household(node)?;
    let own = shared::own(node);
    let file = shared::one(&own, what).map_err(|failed| match failed.code {
        ORIGIN => Failed {
            code: REFUSED,
            message: format!("this device does not offer `{what}`: `tributary shared` lists what there is"),
        },
        _ => failed,
    })?;
    let sha256 = sha256_from_hex(&file.sha256).unwrap_or_default();
    household.withdraw(&sha256, &file.name);
    let files = vec![file.clone()];
    Ok(SharedFiles { files })
}

/// What members see a file as: one that any of them can write it under.
fn offered_name(given: Option<&str>, path: &Path) -> Result<String, Failed> {
    let wrong = |message: String| Err(Failed { code: USAGE, message });
    if !path.is_absolute() {
        return wrong("the file's path is not a whole one".into());
    }
    let base = path.file_name().unwrap_or_default().to_string_lossy();
    let fits = |name: &str| safe_name(name).map(|name| clean(&cut_name(&name, MAX_NAME_BYTES)));
    let name = fits(given.unwrap_or(&base));
    match (name, given) {
        (Some(name), None) => Ok(name),
        (Some(name), Some(given)) if name == given => Ok(name),
        (Some(name), Some(given)) => wrong(format!(
            "`{}` cannot be the name of a file everywhere; `{name}` can: --name '{name}'",
            clean(given)
        )),
        (None, _) => wrong(format!(
            "nothing is left of that as the name of a file; allowed: 1 to {MAX_NAME_BYTES} bytes that can be shown (--name)"
        )),
    }
}

/// What is known of a file once it was read.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    total: u64,
    sha256: [u8; 32],
    leaves: Vec<[u8; 32]>,
}

/// Reads all of a file that was `before` when it was opened. Blocks.
fn read(
    file: &File,
    before: &Metadata,
    stop: &CancellationToken,
    told: &watch::Sender<Progress>,
) -> Result<Read, Failed> {
    let total = before.len();
    if total == 0 || total > MAX_PIECES * PIECE {
        return Err(failed(format!(
            "it has {}; allowed: 1 B to {}",
            ByteSize(total),
            ByteSize(MAX_PIECES * PIECE)
        )));
    }
    let mut all = Context::new(&SHA256);
    let (mut leaves, mut buffer) = (Vec::new(), vec![0; BLOCK]);
    for start in (0..total).step_by(PIECE as usize) {
        if start % STEP == 0 {
            if stop.is_cancelled() {
                return Err(Failed {
                    code: STOPPED,
                    message: "stopped; it is not offered".into(),
                });
            }
            told.send_modify(|progress| (progress.total, progress.done) = (Some(total), start));
        }
        leaves.push(
            piece(file, start..(start + PIECE).min(total), &mut buffer, &mut all).map_err(|e| {
                if e.kind() == io::ErrorKind::UnexpectedEof {
                    changed()
                } else {
                    unreadable(e)
                }
            })?,
        );
    }
    let after = file.metadata().map_err(unreadable)?;
    if mark(before) != mark(&after) {
        return Err(changed());
    }
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(all.finish().as_ref());
    Ok(Read {
        total,
        sha256,
        leaves,
    })
}

/// Reads one piece, for its leaf and for the digest of all.
fn piece(
    file: &File,
    bytes: std::ops::Range<u64>,
    buffer: &mut [u8],
    all: &mut Context,
) -> io::Result<[u8; 32]> {
    let mut leaf = blake3::Hasher::new();
    let mut at = bytes.start;
    while at < bytes.end {
        let wanted = usize::try_from(bytes.end - at).unwrap_or(BLOCK).min(BLOCK);
        let Some(block) = buffer.get_mut(..wanted) else {
            break;
        };
        file.read_exact_at(block, at)?;
        leaf.update(block);
        all.update(block);
        at += wanted as u64;
    }
    Ok(leaf.finalize().into())
}

/// What is another one once somebody wrote to the file.
fn mark(of: &Metadata) -> [i64; 5] {
    let len = i64::try_from(of.len()).unwrap_or(i64::MAX);
    [len, of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()]
}

fn unreadable(error: io::Error) -> Failed {
    failed(format!("it cannot be read: {error}"))
}

fn changed() -> Failed {
    failed("it changed while it was read: run the same command again when nobody writes to it".into())
}

const fn failed(message: String) -> Failed {
    Failed { code: FILE, message }
}

fn refused(error: &ShelfError) -> Failed {
    let code = match error {
        ShelfError::Name(_) => USAGE,
        ShelfError::Taken(_) | ShelfError::TooMany => REFUSED,
        ShelfError::Changed { .. }
        | ShelfError::TooLarge { .. }
        | ShelfError::Nameless { .. }
        | ShelfError::Io { .. } => FILE,
    };
    Failed {
        code,
        message: error.to_string(),
    }
}

fn unexpected(error: &dyn std::error::Error) -> Failed {
    Failed {
        code: UNEXPECTED,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn told() -> watch::Sender<Progress> {
        watch::channel(Progress::default()).0
    }

    #[test]
    fn each_piece_and_all_of_a_file_are_hashed() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..2 * PIECE + 300_001).map(|n| (n / 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let before = file.metadata().unwrap();
        let read = read(&file, &before, &CancellationToken::new(), &told()).unwrap();
        let leaves = bytes
            .chunks(PIECE as usize)
            .map(|piece| blake3::hash(piece).into());
        assert_eq!(read.leaves, leaves.collect::<Vec<[u8; 32]>>());
        assert_eq!(&read.sha256[..], ring::digest::digest(&SHA256, &bytes).as_ref());
        assert_eq!(read.total, bytes.len() as u64);
    }

    #[test]
    fn what_is_empty_too_large_or_not_wanted_any_more_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        let go = CancellationToken::new();
        let why = |stop: &CancellationToken| {
            let now = file.metadata().unwrap();
            read(&file, &now, stop, &told()).unwrap_err()
        };
        assert!(why(&go).message.contains("allowed: 1 B to 64.0 GiB"));
        file.set_len(MAX_PIECES * PIECE + 1).unwrap();
        assert_eq!(why(&go).code, FILE);
        file.set_len(PIECE).unwrap();
        go.cancel();
        assert_eq!(why(&go).code, STOPPED);
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * PIECE).unwrap();
        let before = file.metadata().unwrap();
        let why = || read(&file, &before, &CancellationToken::new(), &told()).unwrap_err();
        // The kernel's clock for files is a coarse one.
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(why().message.contains("changed while it was read"));
        file.set_len(PIECE).unwrap();
        assert!(why().message.contains("changed while it was read"));
    }

    #[test]
    fn a_name_is_one_that_every_member_can_write_the_file_under() {
        let of = |given: Option<&str>, path: &str| offered_name(given, Path::new(path));
        assert_eq!(of(None, "/a/film.mkv").unwrap(), "film.mkv");
        assert_eq!(of(None, "/a/.hidden\n").unwrap(), "hidden");
        assert_eq!(of(Some("x y.mkv"), "/a/film.mkv").unwrap(), "x y.mkv");
        let long = of(None, &format!("/{}.mkv", "ü".repeat(100))).unwrap();
        assert!(long.len() <= MAX_NAME_BYTES && long.ends_with("ü.mkv"), "{long}");
        let refused = of(Some("a/b?.mkv"), "/a/film.mkv").unwrap_err();
        assert!(refused.message.contains("--name 'b_.mkv'"), "{}", refused.message);
        for (given, path) in [
            (Some(""), "/a"),
            (Some(".."), "/a"),
            (None, "/"),
            (None, "film.mkv"),
        ] {
            assert_eq!(of(given, path).unwrap_err().code, USAGE, "{given:?} {path}");
        }
    }
}
