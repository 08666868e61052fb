//! The client's side of the control API.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{MAX_LINE, Reply, Request};

/// The daemon is on this device and has nothing to wait for before it takes a request.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is none on this state directory.
    #[error("no daemon is running here")]
    NoDaemon,
    /// There is one, and it is somebody else's.
    #[error("the daemon's socket may not be opened by this user")]
    NotAllowed,
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}")]
    Io(#[from] io::Error),
    /// Not our protocol.
    #[error("the daemon's answer makes no sense; is it of another version?")]
    Malformed,
}

/// A connection with one request under way.
#[derive(Debug)]
pub struct Client {
    lines: BufReader<OwnedReadHalf>,
    /// Held, because closing it tells the daemon to stop.
    _writer: OwnedWriteHalf,
}

impl Client {
    /// Connects to the daemon and sends the request.
    ///
    /// # Errors
    /// Where no daemon listens there, or it may not be asked.
    pub async fn ask(socket: &Path, request: &Request) -> Result<Self, ClientError> {
        let connected = tokio::time::timeout(CONNECT_WITHIN, UnixStream::connect(socket)).await;
        let stream = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon,
                io::ErrorKind::PermissionDenied => ClientError::NotAllowed,
                _ => ClientError::Io(e),
            })?;
        let (reader, mut writer) = stream.into_split();
        let mut line = serde_json::to_vec(request).map_err(|_| ClientError::Malformed)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
        Ok(Self {
            lines: BufReader::new(reader),
            _writer: writer,
        })
    }

    /// The next reply; `None` when the daemon has hung up.
    ///
    /// # Errors
    /// Where the connection breaks or what comes is no reply.
    pub async fn reply(&mut self) -> Result<Option<Reply>, ClientError> {
        let mut line = Vec::new();
        (&mut self.lines)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|_| ClientError::Malformed)
    }
}
