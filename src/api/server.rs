//! The daemon's side of the control API.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::task::Tasks;

use super::convert::DAEMON;
use super::{Done, Failed, GetRequest, MAX_LINE, Progress, Reply, Request, Status};

/// Each may hold a download; a household's devices do a few at a time.
const MAX_CLIENTS: usize = 32;
/// A client sends its request at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// A client that does not read is not waited for.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// As often as a bar is drawn.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A download under way.
pub struct Transfer {
    /// How far it is.
    pub progress: watch::Receiver<Progress>,
    /// What becomes of it.
    pub outcome: BoxFuture<'static, Result<Done, Failed>>,
    /// Stops it, resumably.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").finish_non_exhaustive()
    }
}

/// What the daemon can do for a client.
pub trait Handler: Send + Sync + 'static {
    /// Who is there and what is running.
    fn status(&self) -> Status;
    /// Begins a download.
    ///
    /// # Errors
    /// Where the request itself is wrong.
    fn get(&self, request: GetRequest) -> Result<Transfer, Failed>;
}

/// Listens at `socket` (0660) and serves clients until the scope ends. A socket left by a crash is replaced.
///
/// # Errors
/// Where the socket cannot be made.
pub fn serve(socket: &Path, handler: Arc<dyn Handler>, tasks: &Tasks) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    let scope = tasks.clone();
    tasks.spawn("control", async move {
        let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else {
                continue;
            };
            let handler = Arc::clone(&handler);
            scope.spawn_graceful("control-client", async move {
                if let Err(error) = client(stream, &*handler).await {
                    tracing::debug!(%error, "a control client's connection broke");
                }
                drop(permit);
            });
        }
    });
    Ok(())
}

async fn client(stream: UnixStream, handler: &dyn Handler) -> io::Result<()> {
    let same_user = stream.peer_cred()?.uid() == nix::unistd::geteuid().as_raw();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut bounded = (&mut reader).take(MAX_LINE);
    within(REQUEST_WITHIN, bounded.read_until(b'\n', &mut line)).await?;
    match serde_json::from_slice(&line) {
        Ok(Request::Status) => say(&mut writer, &Reply::Status(handler.status())).await,
        Ok(Request::Get(_)) if !same_user => {
            let message = "the daemon belongs to another user and would own the file".into();
            say(
                &mut writer,
                &Reply::Failed(Failed {
                    code: DAEMON,
                    message,
                }),
            )
            .await
        }
        Ok(Request::Get(request)) => match handler.get(request) {
            Ok(transfer) => follow(transfer, reader, &mut writer).await,
            Err(failed) => say(&mut writer, &Reply::Failed(failed)).await,
        },
        Err(error) => {
            let message = format!("the daemon does not understand the request: {error}");
            say(
                &mut writer,
                &Reply::Failed(Failed {
                    code: DAEMON,
                    message,
                }),
            )
            .await
        }
    }
}

/// Tells the client how the download goes; the client's hanging up, or its not reading, stops it.
async fn follow(
    mut transfer: Transfer,
    mut reader: BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let mut every = tokio::time::interval(PROGRESS_EVERY);
    let mut hung_up = false;
    loop {
        tokio::select! {
            outcome = &mut transfer.outcome => {
                let last = match outcome {
                    Ok(done) => Reply::Done(done),
                    Err(failed) => Reply::Failed(failed),
                };
                return if hung_up { Ok(()) } else { say(writer, &last).await };
            }
            _ = every.tick(), if !hung_up => {
                let now = transfer.progress.borrow().clone();
                if say(writer, &Reply::Progress(now)).await.is_err() {
                    hung_up = true;
                    transfer.stop.cancel();
                }
            }
            // The client has nothing more to say: whatever happens here is its end.
            _ = reader.read_u8(), if !hung_up => {
                hung_up = true;
                transfer.stop.cancel();
            }
        }
    }
}

async fn say(writer: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    within(WRITE_WITHIN, writer.write_all(&line)).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
