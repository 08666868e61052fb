//! The household: who has which pieces of what is wanted, and how members get them from each other over links.
//!
//! Words: a *topic* is what content is looked for by; a *subject* says which content it is, exactly; a *leaf* is the BLAKE3
//! of one piece; a *witness* is the member that fetched a piece from the origin itself and signed its leaf; a *holder* can
//! serve pieces now; *claims* are what a member is fetching over its uplinks at the moment.
//!
//! Invariants:
//! - Only members ask, hear and serve ([`Right::Share`]); to anybody else there is nothing here.
//! - No URL, no path and no file name crosses a link, but for the names of files that their owner offers by hand.
//! - Data comes only on streams that this device opened, and what comes is unverified until its leaf was compared.
//! - What members make this device keep, hold in memory or do is bounded.

pub mod bars;
mod bits;
mod cache;
mod config;
mod feed;
pub mod leaves;
mod look;
mod own;
pub mod savings;
mod serve;
mod sharing;
pub mod shelf;
mod wanted;
pub mod wire;

pub use config::Config;
pub use look::Look;
pub use own::Offer;
pub use savings::Totals;
pub use sharing::{Pieces, Sharing};
pub use shelf::{Own, Shelf};

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use url::Url;

use crate::identity::DeviceKey;
use crate::link::wire::LIST;
use crate::link::{Asked, Link};
use crate::task::Tasks;
use crate::trust::{Right, Trust};
use crate::types::{PeerId, RangeSet};

use feed::Source;
use leaves::Leaves;
use serve::Load;
use wanted::{Standing, Wanted};
use wire::{Fetch, News};

/// A member on the LAN answers within milliseconds; one that does not has nothing to list.
const LISTS_WITHIN: Duration = Duration::from_secs(2);

/// What content is looked for by. What is neither is looked for by nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// The hash of its URL.
    pub url: Option<[u8; 32]>,
    /// The digest that the user gave.
    pub sha256: Option<[u8; 32]>,
}

impl Topic {
    /// The topic of a URL, without its fragment, which no origin hears of.
    pub fn of(url: &Url, sha256: Option<[u8; 32]>) -> Self {
        let mut url = url.clone();
        url.set_fragment(None);
        let url = Some(blake3::derive_key("tributary 1 url", url.as_str().as_bytes()));
        Self { url, sha256 }
    }
}

/// Which content it is, exactly: two files of one subject are the same, byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject(pub [u8; 32]);

impl Subject {
    /// What was at a URL (by its [`Topic::url`]) when it had this length and this strong validator.
    pub fn of_generation(url: &[u8; 32], total: u64, validator: &str) -> Self {
        let content = [&url[..], &total.to_le_bytes(), validator.as_bytes()].concat();
        Self(blake3::derive_key(
            "tributary 1 subject of a generation",
            &content,
        ))
    }

    /// What has this digest and this length.
    pub fn of_sha256(sha256: &[u8; 32], total: u64) -> Self {
        let content = [&sha256[..], &total.to_le_bytes()].concat();
        Self(blake3::derive_key("tributary 1 subject of a digest", &content))
    }
}

/// One content, by all that it is known as here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its subjects: of its generation, of its digest, or both.
    pub subjects: Vec<Subject>,
    /// Its length.
    pub total: u64,
}

/// Bytes that can be read at any place, by several at once.
pub trait ReadAt: Send + Sync + fmt::Debug {
    /// Fills `buf` with what begins at `offset`; blocks.
    ///
    /// # Errors
    /// Where not all of it is there.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

/// What members have of a content.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Members that serve it, or fetch it.
    pub holders: Vec<Holder>,
    /// How many of them have each piece; pieces beyond the last one that anybody has are missing.
    pub copies: Vec<u8>,
}

/// What one member has of a content.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Who.
    pub peer: PeerId,
    /// What it calls itself; for people.
    pub name: String,
    /// The bytes that it can serve and that a witness in good standing vouches for.
    pub have: RangeSet,
    /// The bytes that it is fetching over its uplinks.
    pub claims: RangeSet,
    /// When its claims last brought something, or it got a piece.
    pub moved: Instant,
}

/// A leaf, and on whose word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The piece's BLAKE3.
    pub hash: [u8; 32],
    /// Who fetched it from the origin.
    pub witness: PeerId,
}

/// A file that a member offers by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Whose.
    pub peer: PeerId,
    /// What the member calls itself, cleaned; for people.
    pub owner: String,
    /// What it calls the file, cleaned: a word for people, never a path.
    pub name: String,
    /// Its length.
    pub total: u64,
    /// Its digest.
    pub sha256: [u8; 32],
    /// Which content it is.
    pub subject: Subject,
}

/// Why a holder's pieces do not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no link to it, it has nothing of the content, or it is barred.
    #[error("that member does not have it")]
    Gone,
    /// It broke off.
    #[error("the member broke off: {0}")]
    Broken(io::Error),
}

/// The household as this device sees it, and its part in it. Clones share it.
#[derive(Clone, Debug)]
pub struct Household {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    key: DeviceKey,
    trust: Trust,
    shelf: Shelf,
    tasks: Tasks,
    enabled: AtomicBool,
    links: Mutex<Vec<Arc<Link>>>,
    wanted: Mutex<Vec<Arc<Wanted>>>,
    /// Counts how often what is fetched became another.
    set: AtomicU64,
    /// Rung for those who watch.
    news: watch::Sender<u64>,
    load: Load,
}

impl Household {
    /// The household of a device with that key. It serves what is on the shelf.
    pub fn start(config: Config, key: &DeviceKey, trust: &Trust, shelf: Shelf, tasks: &Tasks) -> Self {
        let inner = Arc::new(Inner {
            key: key.clone(),
            trust: trust.clone(),
            shelf,
            tasks: tasks.clone(),
            enabled: AtomicBool::new(config.enabled),
            links: Mutex::default(),
            wanted: Mutex::default(),
            set: AtomicU64::new(0),
            news: watch::channel(0).0,
            load: Load::new(),
        });
        let watching = Arc::clone(&inner);
        tasks.spawn("share-trust", async move {
            let mut changes = watching.trust.changes();
            while changes.changed().await.is_ok() {
                watching.forget_strangers();
            }
        });
        own::tend(&inner.shelf, tasks);
        Self { inner }
    }

    /// What the owner says from now on; what others watch here ends where this device does not take part any more.
    pub fn configure(&self, config: Config) {
        self.inner.shelf.configure(config);
        self.inner.enabled.store(config.enabled, Ordering::Relaxed);
        self.inner.tell();
    }

    /// This device.
    pub fn id(&self) -> PeerId {
        self.inner.key.id()
    }

    /// A link is there, or may do more than before.
    pub fn linked(&self, link: &Arc<Link>) {
        if !link.tier().may(Right::Share) {
            return;
        }
        let mut links = lock(&self.inner.links);
        if !links.iter().any(|known| Arc::ptr_eq(known, link)) {
            links.push(Arc::clone(link));
        }
        drop(links);
        for wanted in self.inner.wanted() {
            self.watch(&wanted, link);
        }
    }

    /// A link is gone.
    pub fn unlinked(&self, link: &Arc<Link>) {
        lock(&self.inner.links).retain(|known| !Arc::ptr_eq(known, link));
        for wanted in self.inner.wanted() {
            if wanted.state().detach(link) {
                wanted.tick();
            }
        }
    }

    /// A member asks something.
    pub fn asked(&self, asked: Asked) {
        if self.inner.is_enabled() {
            let inner = Arc::clone(&self.inner);
            self.inner.tasks.spawn("share", serve::answer(inner, asked));
        }
    }

    /// Asks all members for a topic, also those that come later, until it is dropped with all [`Sharing`]s of it.
    pub fn look(&self, topic: Topic) -> Look {
        let look = Look::new(self, topic);
        let links = lock(&self.inner.links).clone();
        for link in links {
            self.watch(look.wanted(), &link);
        }
        look
    }

    /// What members offer by hand.
    pub async fn offered(&self) -> Vec<Offered> {
        let links = lock(&self.inner.links).clone();
        let lists: FuturesUnordered<_> = links.iter().map(list).collect();
        let mut all: Vec<Offered> = lists.collect::<Vec<_>>().await.concat();
        all.sort_by(|a, b| (&a.name, &a.owner, a.peer).cmp(&(&b.name, &b.owner, b.peer)));
        all
    }

    fn watch(&self, wanted: &Arc<Wanted>, link: &Arc<Link>) {
        if self.inner.is_enabled() && link.is_up() && wanted.state().attach(link) {
            let watching = look::watch(self.clone(), Arc::clone(wanted), Arc::clone(link));
            wanted.tasks.spawn("watch", watching);
        }
    }
}

/// What one member offers by hand; nothing where it does not answer.
async fn list(link: &Arc<Link>) -> Vec<Offered> {
    let listed = tokio::time::timeout(LISTS_WITHIN, async {
        let mut stream = link.ask(LIST, &()).await?;
        let (kind, body) = stream.hear().await?;
        wire::decode(kind, &body)
    });
    let files = match listed.await {
        Ok(Ok(News::Offered(files))) => files,
        _ => Vec::new(),
    };
    let offered = |file: wire::File| Offered {
        peer: link.peer(),
        owner: link.name().to_owned(),
        name: file.name,
        total: file.total,
        sha256: file.sha256,
        subject: file.subject,
    };
    files.into_iter().map(offered).collect()
}

impl Inner {
    fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    fn standing(&self) -> Standing<'_> {
        Standing {
            trust: &self.trust,
            bars: self.shelf.bars(),
        }
    }

    fn wanted(&self) -> Vec<Arc<Wanted>> {
        lock(&self.wanted).clone()
    }

    fn want(&self, topic: Topic) -> Arc<Wanted> {
        let wanted = Arc::new(Wanted::new(topic, self.tasks.child()));
        lock(&self.wanted).push(Arc::clone(&wanted));
        wanted
    }

    fn unwant(&self, wanted: &Arc<Wanted>) {
        lock(&self.wanted).retain(|known| !Arc::ptr_eq(known, wanted));
        self.set_changed();
    }

    /// What is fetched here is another now.
    fn set_changed(&self) {
        self.set.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }

    /// Those who watch look for what is new.
    fn tell(&self) {
        self.news.send_modify(|n| *n += 1);
    }

    /// Another number whenever what there is to serve is another.
    fn there(&self) -> u64 {
        self.set.load(Ordering::Relaxed) + *self.shelf.changes().borrow()
    }

    /// All that can be served: what is being fetched before what is complete.
    fn sources(&self) -> Vec<Source> {
        let fetched = self.wanted().into_iter().map(Source::Wanted);
        fetched
            .chain(self.shelf.all().into_iter().map(Source::Shelf))
            .collect()
    }

    /// What a member asks for, where it names it as the link does; and its length.
    fn source(&self, secret: &[u8; 32], fetch: &Fetch) -> Option<(Source, u64)> {
        self.sources().into_iter().find_map(|source| {
            let (names, total) = source.known_as();
            let asked = |(name, subject): &([u8; 32], Subject)| {
                *subject == fetch.subject && *blake3::keyed_hash(secret, name).as_bytes() == fetch.topic
            };
            names.iter().any(asked).then_some((source, total))
        })
    }

    /// What is offered by hand here.
    fn offered(&self) -> Vec<wire::File> {
        let file = |own: Own| wire::File {
            name: own.name,
            total: own.total,
            sha256: own.sha256,
            subject: own.subject,
        };
        let all = self.shelf.offered().into_iter().map(file);
        all.take(wire::MAX_OFFERED).collect()
    }

    /// A piece of that content is not what it was.
    fn withdraw(&self, subject: Subject, piece: u32) {
        let gone = self.shelf.remove(subject);
        self.forget_kept(gone);
        for wanted in self.wanted() {
            let mut state = wanted.state();
            if state.is_of(subject) {
                state.lose(piece);
            }
        }
        self.tell();
    }

    /// Nothing that this witness signed counts any more.
    fn forget(&self, witness: PeerId) {
        for wanted in self.wanted() {
            wanted.state().forget(witness);
            wanted.tick();
        }
        self.tell();
    }

    fn forget_strangers(&self) {
        let standing = self.standing();
        for wanted in self.wanted() {
            let mut state = wanted.state();
            let witnesses: BTreeSet<PeerId> = state.leaves().flat_map(Leaves::witnesses).collect();
            for witness in witnesses.into_iter().filter(|w| standing.is_bad(*w)) {
                state.forget(witness);
            }
            drop(state);
            wanted.tick();
        }
        self.tell();
    }

    /// Who is barred is still so after a restart.
    fn save_bars(&self) {
        let shelf = self.shelf.clone();
        // It goes on when nobody waits for it.
        drop(self.tasks.blocking(move || shelf.bars().save()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of a list is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
