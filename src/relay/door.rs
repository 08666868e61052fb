//! What `fuzzing` may call of the relay's own: how a borrower's first bytes are judged.

use std::io;

use futures_util::FutureExt;
use tokio::io::AsyncRead;

use super::first::{self, Protocol};

/// Judges the first bytes that come out of `tunnel`, which never waits: right, wrong (`InvalidData`) or cut off too soon
/// (`UnexpectedEof`). `None`: it would have waited.
pub fn first_bytes<T>(port: u16, tunnel: &mut T, host: &str) -> Option<io::Result<Vec<u8>>>
where
    T: AsyncRead + Unpin,
{
    first::read(tunnel, Protocol::on(port), host).now_or_never()
}
