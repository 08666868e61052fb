//! A body's bytes on their way into the file: gathered into large blocks, written by position in the blocking pool.
//!
//! Invariants: each flow has one block being filled and at most one being written, so memory is bounded; bytes are
//! reported only once written, in order; nothing is written at or after the flow's end, which may come nearer meanwhile.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::store::Part;
use crate::store::StoreError;
use crate::task::Tasks;
use crate::transfer::Connection;

/// Bytes a block holds: large enough that the hop to the blocking pool costs nothing, small enough for a Pi Zero.
const BLOCK: usize = 256 << 10;
/// A block waits no longer than this for more bytes, so that the scheduler sees slow lanes as they are.
const BLOCK_AGE: Duration = Duration::from_millis(100);
/// A body is given up after this many [`BLOCK_AGE`]s (30 s) without a byte. The scheduler is usually much faster.
const SILENT_TICKS: u32 = 300;
/// Blocks being written at once, over all lanes: more would only queue in the kernel.
const WRITES: usize = 4;
/// After a body's last byte its end must be seen this soon, or the connection is not used again.
const END_LIMIT: Duration = Duration::from_millis(200);

/// Where the bytes go.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    part: Arc<Part>,
    tasks: Tasks,
    writes: Arc<Semaphore>,
}

impl Sink {
    pub(super) fn new(part: Arc<Part>, tasks: Tasks) -> Self {
        let writes = Arc::new(Semaphore::new(WRITES));
        Self { part, tasks, writes }
    }

    /// Does something with the part in the blocking pool, as one of the writes. `None`: everything ends.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Part) -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        let permit = self.writes.clone().acquire_owned().await.ok()?;
        let part = self.part.clone();
        Some(self.tasks.blocking(move || {
            let result = work(&part);
            // The part first: who gets all permits knows that no write holds it (see `Sink::settle`).
            drop(part);
            drop(permit);
            result
        }))
    }

    /// Waits until no write is under way, also of flows that were dropped.
    pub(super) async fn settle(&self) {
        let all = u32::try_from(WRITES).unwrap_or(u32::MAX);
        let _permits = self.writes.acquire_many(all).await;
    }
}

/// Hears of bytes that are written.
pub(super) trait Report: Send + Sync {
    /// The next `n` bytes, in order, are written.
    fn written(&self, n: u64) -> impl Future<Output = ()> + Send;

    /// The body was read to its end, so the connection can be used again. Called before the last bytes are reported:
    /// whoever starts the next request on hearing of those finds it.
    fn idle(&self, connection: Connection);
}

/// Why a flow ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlowError {
    #[error("the connection broke in the middle of the content: {0}")]
    Http(#[source] hyper::Error),
    #[error("the content ended early")]
    Truncated,
    #[error("no byte came for 30 s")]
    Silent,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the download ended")]
    Ended,
}

/// One body and where it belongs.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) connection: Connection,
    pub(super) body: Incoming,
    /// Where in the file the body's next byte that is wanted belongs.
    pub(super) at: u64,
    /// Bytes before that one, not wanted.
    pub(super) skip: u64,
    /// Where the body ends in the file, as its head says. `None`: only its end shows.
    pub(super) end: Option<u64>,
}

impl Flow {
    /// Writes the body up to its end or `limit`, whichever comes first; `limit` may sink while it runs. `report` hears of
    /// each write. Returns where it ended. What was reported before an error stays written.
    pub(super) async fn run(
        mut self,
        limit: &AtomicU64,
        sink: &Sink,
        report: impl Report,
    ) -> Result<u64, FlowError> {
        let mut writer = Writer::new(sink, self.at, report);
        let outcome = self.pump(limit, &mut writer).await;
        let at = self.at;
        let is_whole = outcome.is_ok() && self.end.is_none_or(|end| at == end);
        if is_whole && self.ends_now().await {
            writer.report.idle(self.connection);
        } else {
            drop(self);
        }
        // What came before a broken end is good: its place was checked before its first byte.
        writer.close().await?;
        outcome?;
        Ok(at)
    }

    async fn pump<R: Report>(
        &mut self,
        limit: &AtomicU64,
        writer: &mut Writer<'_, R>,
    ) -> Result<(), FlowError> {
        let mut tick = interval(BLOCK_AGE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0;
        loop {
            let end = limit.load(Ordering::Relaxed).min(self.end.unwrap_or(u64::MAX));
            if self.at >= end {
                return Ok(());
            }
            match next(&mut self.connection, &mut self.body, writer, &mut tick).await? {
                Next::Data(data) => {
                    silent = 0;
                    self.take(data, end, writer).await?;
                }
                Next::End if self.end.is_none() => return Ok(()),
                Next::End => return Err(FlowError::Truncated),
                Next::Tick => {
                    silent += 1;
                    if silent > SILENT_TICKS {
                        return Err(FlowError::Silent);
                    }
                    writer.flush_if_idle().await?;
                }
            }
        }
    }

    /// Passes on what of `data` is wanted.
    async fn take<R: Report>(
        &mut self,
        mut data: Bytes,
        end: u64,
        writer: &mut Writer<'_, R>,
    ) -> Result<(), FlowError> {
        let skipped = clamp(self.skip).min(data.len());
        self.skip -= skipped as u64;
        let _not_wanted = data.split_to(skipped);
        data.truncate(clamp(end - self.at));
        self.at += data.len() as u64;
        writer.push(&data).await
    }

    /// Whether the body is over now: a chunked one still has its last chunk to show.
    async fn ends_now(&mut self) -> bool {
        let rest = poll_fn(|cx| self.connection.poll_data(&mut self.body, cx));
        matches!(timeout(END_LIMIT, rest).await, Ok(None))
    }
}

enum Next {
    Data(Bytes),
    End,
    Tick,
}

async fn next<R: Report>(
    connection: &mut Connection,
    body: &mut Incoming,
    writer: &mut Writer<'_, R>,
    tick: &mut Interval,
) -> Result<Next, FlowError> {
    loop {
        tokio::select! {
            biased;
            written = writer.written(), if writer.writing.is_some() => writer.finish(written).await?,
            data = poll_fn(|cx| connection.poll_data(body, cx)) => return match data {
                Some(Ok(data)) => Ok(Next::Data(data)),
                Some(Err(error)) => Err(FlowError::Http(error)),
                None => Ok(Next::End),
            },
            _ = tick.tick() => return Ok(Next::Tick),
        }
    }
}

type Written = (Vec<u8>, Result<(), StoreError>);

/// One block being filled, one being written.
struct Writer<'a, R> {
    sink: &'a Sink,
    report: R,
    /// Where the block being filled starts.
    at: u64,
    filling: Vec<u8>,
    writing: Option<JoinHandle<Written>>,
    spare: Option<Vec<u8>>,
}

impl<'a, R: Report> Writer<'a, R> {
    fn new(sink: &'a Sink, at: u64, report: R) -> Self {
        Self {
            sink,
            report,
            at,
            filling: Vec::new(),
            writing: None,
            spare: None,
        }
    }

    async fn push(&mut self, mut data: &[u8]) -> Result<(), FlowError> {
        while !data.is_empty() {
            if self.filling.capacity() == 0 {
                self.filling = self.spare.take().unwrap_or_else(|| Vec::with_capacity(BLOCK));
            }
            let (now, later) = data.split_at(data.len().min(BLOCK - self.filling.len()));
            self.filling.extend_from_slice(now);
            data = later;
            if self.filling.len() == BLOCK {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Starts writing what there is, unless a write is under way.
    async fn flush_if_idle(&mut self) -> Result<(), FlowError> {
        match self.writing {
            None => self.flush().await,
            Some(_) => Ok(()),
        }
    }

    /// Starts writing what there is; waits for the write before.
    async fn flush(&mut self) -> Result<(), FlowError> {
        if self.writing.is_some() {
            let written = self.written().await;
            self.finish(written).await?;
        }
        if self.filling.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.filling);
        let at = self.at;
        self.at += block.len() as u64;
        let write = move |part: &Part| {
            let result = part.write_at(at, &block);
            (block, result)
        };
        self.writing = Some(self.sink.work(write).await.ok_or(FlowError::Ended)?);
        Ok(())
    }

    /// Waits for the write under way; safe to drop and call again.
    async fn written(&mut self) -> Result<Written, FlowError> {
        match &mut self.writing {
            Some(task) => task.await.map_err(|_panicked| FlowError::Ended),
            None => std::future::pending().await,
        }
    }

    async fn finish(&mut self, written: Result<Written, FlowError>) -> Result<(), FlowError> {
        self.writing = None;
        let (mut block, result) = written?;
        result?;
        let len = block.len() as u64;
        block.clear();
        self.spare = Some(block);
        self.report.written(len).await;
        Ok(())
    }

    /// Writes all there is and waits for it.
    async fn close(&mut self) -> Result<(), FlowError> {
        self.flush().await?;
        if self.writing.is_some() {
            let written = self.written().await;
            self.finish(written).await?;
        }
        Ok(())
    }
}

fn clamp(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
