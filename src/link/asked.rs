//! Streams of the household: a member asks, and what is said on the stream after that is `share`'s business.
//!
//! Invariant: a stream dropped before it was finished is reset both ways, so that neither end goes on for nobody.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use serde::Serialize;
use tokio::io::AsyncReadExt;

use crate::types::PeerId;

use super::Link;
use super::tunnel::ABORTED;
use super::wire::{self, WireError};

/// Tunnels, and what members tell each other, have 0.
const BULK: i32 = -1;

/// A member's request, with the stream for the answer.
#[derive(Debug)]
pub struct Asked {
    /// Who asks, proved by the link.
    pub peer: PeerId,
    /// By which link.
    pub link: Arc<Link>,
    /// What for.
    pub kind: u16,
    /// What it says: anything.
    pub body: Vec<u8>,
    /// Where to answer.
    pub stream: Exchange,
}

/// The two directions of a stream of the household's.
#[derive(Debug)]
pub struct Exchange {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    finished: bool,
}

impl Exchange {
    pub(super) const fn new(send: SendStream, recv: RecvStream) -> Self {
        Self {
            send,
            recv,
            finished: false,
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Where the other end does not read any more.
    pub async fn say(&mut self, kind: u16, body: &impl Serialize) -> Result<(), WireError> {
        self.give(wire::encode(kind, body)?.into())
            .await
            .map_err(WireError::Io)
    }

    /// Sends bytes as they are; they are not copied, and kept until the other end has them.
    ///
    /// # Errors
    /// Where the other end does not read any more.
    pub async fn give(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.send.write_chunk(bytes).await?)
    }

    /// The next frame: its kind and its body.
    ///
    /// # Errors
    /// Where the stream ends, or the frame is too long.
    pub async fn hear(&mut self) -> Result<(u16, Vec<u8>), WireError> {
        wire::read_frame(&mut self.recv).await
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// Where the stream ends before.
    pub async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(count);
        let mut from = (&mut self.recv).take(count as u64);
        while bytes.len() < count {
            if from.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(bytes)
    }

    /// What is sent here waits for what is sent on other streams: bulk, which nobody waits for.
    pub fn is_bulk(&self) {
        // An error says that nobody reads any more.
        let _ = self.send.set_priority(BULK);
    }

    /// Resolves when the other end does not read any more, or the link is gone.
    pub fn left(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.send.stopped();
        async move {
            let _ = stopped.await;
        }
    }

    /// Nothing more is sent; what was sent still arrives.
    pub fn finish(&mut self) {
        if !self.finished {
            // An error says that the peer has stopped reading: nothing is left to end.
            let _ = self.send.finish();
            self.finished = true;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.send.reset(ABORTED);
        }
        let _ = self.recv.stop(ABORTED);
    }
}
