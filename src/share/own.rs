//! What this device offers by hand, and what the household brought it: the side of `share` that people see; and the task
//! that looks after the shelf.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::task::Tasks;
use crate::types::PIECE;

use super::leaves::{Leaves, MAX_ENTRIES, MAX_PIECES};
use super::shelf::{Held, Keep, ShelfError};
use super::{Content, Household, Inner, Own, Shelf, Subject, Topic, Totals};

/// How often what is on the shelf is looked at: a deleted file's disk space is free after that.
const LOOK: Duration = Duration::from_secs(60);

/// A file that is to be offered by hand.
#[derive(Debug)]
pub struct Offer {
    /// What members see it as.
    pub name: String,
    /// Its digest.
    pub sha256: [u8; 32],
    /// Its length.
    pub total: u64,
    /// The BLAKE3 of each of its pieces.
    pub leaves: Vec<[u8; 32]>,
    /// The file, open for reading.
    pub file: Arc<File>,
    /// Where it is, absolute.
    pub path: PathBuf,
}

impl Household {
    /// Offers a file by hand: members see its name, and can fetch it; blocks.
    ///
    /// # Errors
    /// Where the file is not what was read of it any more, cannot be called so, or there is no room for more.
    pub fn offer(&self, offer: Offer) -> Result<(), ShelfError> {
        let Offer { path, total, .. } = offer;
        if total.div_ceil(PIECE) > MAX_PIECES.into() {
            return Err(ShelfError::TooLarge { path, total });
        }
        let subject = Subject::of_sha256(&offer.sha256, total);
        let mut leaves = Leaves::new(subject, total);
        let entries: Vec<_> = (0..).zip(offer.leaves).collect();
        for entries in entries.chunks(MAX_ENTRIES) {
            // There is room for what one witness says of all pieces.
            let _ = leaves.add(&Leaves::sign(subject, entries, &self.inner.key), &|_| false);
        }
        let keep = Keep {
            topic: Topic {
                url: None,
                sha256: Some(offer.sha256),
            },
            content: Content {
                subjects: vec![subject],
                total,
            },
            leaves: vec![leaves],
            file: offer.file,
            path,
            offer: Some(offer.name),
        };
        self.inner.shelf.keep(keep).map(drop)
    }

    /// Offers it by hand no more. Whether it was offered.
    pub fn withdraw(&self, sha256: &[u8; 32], name: &str) -> bool {
        let gone = self.inner.shelf.stop(sha256, name);
        let was = !gone.is_empty();
        self.inner.forget_kept(gone);
        was
    }

    /// What this device offers by hand.
    pub fn own(&self) -> Vec<Own> {
        self.inner.shelf.offered()
    }

    /// Whether this device takes part.
    pub fn is_enabled(&self) -> bool {
        self.inner.is_enabled()
    }

    /// A download of which members brought something has got so much more.
    pub fn brought(&self, from_members: u64, over_uplinks: u64) {
        self.inner.shelf.savings().got(from_members, over_uplinks);
    }

    /// What it all brought.
    pub fn totals(&self) -> Totals {
        self.inner.shelf.savings().totals()
    }
}

impl Inner {
    /// What was taken off the shelf is not taken up again after a restart.
    pub(super) fn forget_kept(&self, gone: Vec<Arc<Held>>) {
        let shelf = self.shelf.clone();
        // It goes on when nobody waits for it.
        drop(self.tasks.blocking(move || shelf.forget(&gone)));
    }
}

/// Looks after the shelf until the scope ends, and then writes what is to be kept.
pub(super) fn tend(shelf: &Shelf, tasks: &Tasks) {
    let (shelf, scope) = (shelf.clone(), tasks.clone());
    drop(tasks.spawn_graceful("shelf", async move {
        while !scope.token().is_cancelled() {
            let looked = shelf.clone();
            // Where it panicked, the next look may not.
            let _ = scope.blocking(move || looked.look()).await;
            let rest = tokio::time::sleep(LOOK);
            let _ = scope.token().run_until_cancelled(rest).await;
        }
        let _ = scope.blocking(move || shelf.finish()).await;
    }));
}
