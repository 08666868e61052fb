//! What members ask, answered: watches, pieces, and the list of what is offered by hand.
//!
//! Invariants: a piece is hashed as it is read, and never sent where it is not what it was (SEC-E6); all pieces on their way
//! out, those that quinn keeps until they are acknowledged among them, take no more than [`MAX_BUFFERS`] MiB; what one member
//! may have at once is bounded; what is refused ends as a question that no version knows.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::link::{Asked, Exchange};
use crate::trust::Right;
use crate::types::{PIECE, PeerId};
use crate::uplink::limit::Bucket;

use super::feed::{Feed, Source, due};
use super::wire::{self, Fetch, Keyed, LABEL, News, Question};
use super::{Inner, Subject};

/// Watches of one peer: what it downloads at once, and lists.
const WATCHES_A_PEER: usize = 8;
/// Watches in all: each costs a look at every change.
const MAX_WATCHES: usize = 64;
/// Streams with pieces for one peer.
const FETCHES_A_PEER: usize = 16;
/// New watches and lists of one peer in a second (SEC-B7), and at once.
const QUESTIONS_PER_SECOND: u64 = 20;
/// Peers whose questions are counted: as many as there can be links, and as many that came and went.
const MAX_PEERS: usize = 128;
/// Pieces in memory, for all readers together: they keep a gigabit's LAN busy, and a device of 512 MB does not mind.
const MAX_BUFFERS: usize = 12;
/// Of these, for one peer, so that one that takes nothing does not hold up the others.
const BUFFERS_A_PEER: usize = 4;
/// What is handed to quinn at once.
const SLICE: usize = 64 << 10;
/// A reader that takes nothing for so long is gone, or means no good.
const READS_WITHIN: Duration = Duration::from_secs(10);

/// What is being served.
#[derive(Debug)]
pub(super) struct Load {
    peers: Mutex<BTreeMap<PeerId, Peer>>,
    buffers: Arc<Semaphore>,
}

#[derive(Debug)]
struct Peer {
    watches: usize,
    fetches: usize,
    questions: Bucket,
    buffers: Arc<Semaphore>,
}

/// A question that is being answered.
#[derive(Debug)]
struct Admitted {
    inner: Arc<Inner>,
    peer: PeerId,
    fetch: bool,
    buffers: Arc<Semaphore>,
}

impl Load {
    pub(super) fn new() -> Self {
        Self {
            peers: Mutex::default(),
            buffers: Arc::new(Semaphore::new(MAX_BUFFERS)),
        }
    }

    /// Counts a question in, where there is room for it; gives the peer's share of the buffers.
    fn admit(&self, id: PeerId, fetch: bool, now: Instant) -> Option<Arc<Semaphore>> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_PEERS {
            peers.retain(|_, peer| peer.watches + peer.fetches > 0);
        }
        let watches: usize = peers.values().map(|peer| peer.watches).sum();
        let second = Duration::from_secs(1);
        let peer = peers.entry(id).or_insert_with(|| Peer {
            watches: 0,
            fetches: 0,
            questions: Bucket::new(QUESTIONS_PER_SECOND, second, QUESTIONS_PER_SECOND, now),
            buffers: Arc::new(Semaphore::new(BUFFERS_A_PEER)),
        });
        if fetch {
            peer.fetches = (peer.fetches < FETCHES_A_PEER).then_some(peer.fetches + 1)?;
        } else {
            let room = watches < MAX_WATCHES && peer.watches < WATCHES_A_PEER;
            if !room || peer.questions.take(1, now).is_err() {
                return None;
            }
            peer.watches += 1;
        }
        Some(Arc::clone(&peer.buffers))
    }

    fn end(&self, id: PeerId, fetch: bool) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(&id) {
            let count = if fetch {
                &mut peer.fetches
            } else {
                &mut peer.watches
            };
            *count = count.saturating_sub(1);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.inner.load.end(self.peer, self.fetch);
    }
}

/// Answers one question. What is dropped on the way is reset, as a stream of an unknown kind is.
pub(super) async fn answer(inner: Arc<Inner>, mut asked: Asked) {
    let question = match wire::question(asked.kind, &asked.body) {
        Ok(question) => question,
        Err(error) => {
            tracing::debug!(peer = %asked.peer.short(), %error, "a member's question was none");
            return;
        }
    };
    let fetch = matches!(question, Question::Fetch(_));
    let Some(buffers) = inner.load.admit(asked.peer, fetch, Instant::now()) else {
        tracing::debug!(peer = %asked.peer.short(), "a member asks too much at once");
        return;
    };
    let admitted = Admitted {
        inner: Arc::clone(&inner),
        peer: asked.peer,
        fetch,
        buffers,
    };
    match question {
        Question::Watch(topics) => watch(&inner, asked, topics).await,
        Question::Fetch(fetch) => serve(&admitted, asked, fetch).await,
        Question::List => {
            let files = inner.offered();
            if let Ok(frame) = News::Offered(files).frame()
                && give(&mut asked.stream, frame.into()).await.is_ok()
            {
                asked.stream.finish();
            }
        }
    }
}

/// Tells a member what there is, and what comes, until it has enough, or is none any more.
async fn watch(inner: &Inner, asked: Asked, topics: Vec<Keyed>) {
    let Asked {
        peer,
        link,
        mut stream,
        ..
    } = asked;
    let Some(secret) = link.exporter(LABEL) else {
        return;
    };
    let mut feed = Feed::new(peer, secret, topics);
    let (mut news, mut shelf) = (inner.news.subscribe(), inner.shelf.changes());
    let left = stream.left();
    tokio::pin!(left);
    while link.tier().may(Right::Share) && inner.is_enabled() {
        news.borrow_and_update();
        shelf.borrow_and_update();
        let Ok((frames, more)) = feed.round(inner) else {
            return;
        };
        let told = !frames.is_empty();
        if told && give(&mut stream, frames.into()).await.is_err() {
            return;
        }
        if more {
            continue;
        }
        let next = due(Instant::now());
        tokio::select! {
            () = &mut left => return,
            Ok(()) = news.changed() => {}
            Ok(()) = shelf.changed() => {}
            else => return,
        }
        if told {
            tokio::time::sleep_until(next.into()).await;
        }
    }
}

/// Sends the pieces that a member asks for: one is read while the one before goes out.
async fn serve(admitted: &Admitted, asked: Asked, fetch: Fetch) {
    let Asked { link, mut stream, .. } = asked;
    let inner = &admitted.inner;
    let source = link
        .exporter(LABEL)
        .and_then(|secret| inner.source(&secret, &fetch));
    let Some((source, total)) = source else { return };
    let end = fetch.first.checked_add(fetch.count);
    let Some(end) = end.filter(|end| u64::from(*end) <= total.div_ceil(PIECE)) else {
        return;
    };
    stream.is_bulk();
    let left = stream.left();
    let pieces = async {
        let mut piece = admitted.read(&source, fetch.subject, total, fetch.first).await?;
        for next in fetch.first + 1..end {
            // Nothing of it is kept here: its place in the buffers is free when the member has it, for this or another reader.
            let sent = admitted.give(&mut stream, fetch.subject, piece);
            piece = tokio::try_join!(sent, admitted.read(&source, fetch.subject, total, next))?.1;
        }
        admitted.give(&mut stream, fetch.subject, piece).await?;
        stream.finish();
        io::Result::Ok(())
    };
    let result = tokio::select! {
        () = left => return,
        result = pieces => result,
    };
    if let Err(error) = result {
        tracing::debug!(peer = %admitted.peer.short(), %error, "pieces were not served");
    }
}

impl Admitted {
    /// Sends a piece.
    async fn give(&self, stream: &mut Exchange, subject: Subject, piece: Bytes) -> io::Result<()> {
        let length = piece.len() as u64;
        give(stream, piece).await?;
        self.inner.shelf.served(subject, length);
        Ok(())
    }

    /// Reads a piece and looks whether it is still what it was.
    async fn read(&self, source: &Source, subject: Subject, total: u64, piece: u32) -> io::Result<Bytes> {
        let gone = |_| io::Error::other("the device is stopping");
        let peers = Arc::clone(&self.buffers).acquire_owned().await.map_err(gone)?;
        let all = Arc::clone(&self.inner.load.buffers)
            .acquire_owned()
            .await
            .map_err(gone)?;
        let (source, permits) = (source.clone(), [peers, all]);
        let reading = self.inner.tasks.blocking(move || {
            let bytes = read(&source, subject, total, piece)?;
            Ok::<_, Unread>(Bytes::from_owner(Buffer {
                bytes,
                _permits: permits,
            }))
        });
        match reading.await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(unread)) => Err(self.withdraw(unread, subject, piece)),
            Err(panicked) => Err(io::Error::other(panicked)),
        }
    }

    /// What cannot be read as it was is not offered any more.
    fn withdraw(&self, unread: Unread, subject: Subject, piece: u32) -> io::Error {
        let error = match unread {
            Unread::NotThere => return io::Error::other("the piece is not there"),
            Unread::Failed(error) => error,
            Unread::Wrong => io::Error::other("it is not what it was"),
        };
        tracing::warn!(%error, piece, "what this device has is not what it shared: it offers it no more");
        self.inner.withdraw(subject, piece);
        error
    }
}

/// A piece in memory, until quinn needs it no more.
struct Buffer {
    bytes: Vec<u8>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why a piece was not read.
enum Unread {
    NotThere,
    Failed(io::Error),
    Wrong,
}

fn read(source: &Source, subject: Subject, total: u64, piece: u32) -> Result<Vec<u8>, Unread> {
    let offset = u64::from(piece) * PIECE;
    let length = usize::try_from(PIECE.min(total.saturating_sub(offset))).unwrap_or(0);
    let mut bytes = vec![0; length];
    let hash = match source {
        Source::Wanted(wanted) => {
            let of = {
                let state = wanted.state();
                let mine = state.mine.as_ref();
                mine.and_then(|mine| Some((Arc::clone(&mine.bytes), *mine.hashes.get(&piece)?)))
            };
            let (from, hash) = of.ok_or(Unread::NotThere)?;
            from.read_at(&mut bytes, offset).map_err(Unread::Failed)?;
            hash
        }
        Source::Shelf(served) => {
            let leaf = served.leaf(subject, u64::from(piece)).ok_or(Unread::NotThere)?;
            served.read_at(&mut bytes, offset).map_err(Unread::Failed)?;
            leaf.hash
        }
    };
    let right = blake3::hash(&bytes).as_bytes() == &hash;
    right.then_some(bytes).ok_or(Unread::Wrong)
}

/// Hands bytes over as the other end takes them.
async fn give(stream: &mut Exchange, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        let slice = bytes.split_to(bytes.len().min(SLICE));
        let given = tokio::time::timeout(READS_WITHIN, stream.give(slice)).await;
        given.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    Ok(())
}
