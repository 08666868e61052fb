//! The leaves of one content: which witness signed which hash for which piece.
//!
//! A batch on the wire, in memory and on the disk is its witness' key (32 bytes), the signature (64, Ed25519) and a short
//! body, and is kept as it came, so that it can be passed on; what is kept beside it only says where in it each leaf lies.
//!
//! Invariants: the signature is checked before anything of the body is read; one witness has one word on a piece, and a
//! second one that differs makes both worthless; a piece on which words differ has no leaf; whatever witnesses sign, the
//! leaves of one content are bounded, in all by `MAX_BYTES`, and for each witness in proportion to what it attests.

use std::collections::{BTreeMap, BTreeSet};

use ring::signature::{ED25519, UnparsedPublicKey};

use crate::identity::DeviceKey;
use crate::types::{PIECE, PeerId};

use super::{Attested, Subject};

/// Leaves in one batch: its body stays far below a frame's 64 KiB.
pub const MAX_ENTRIES: usize = 256;
/// Pieces of one content that can have leaves: those beyond (64 GiB) everybody fetches from the origin.
pub const MAX_PIECES: u32 = 1 << 16;

/// Signed together with the body: what this key signs for other purposes attests no piece.
const DOMAIN: &[u8] = b"tributary 1 leaves\0";
const KEY: usize = 32;
const SIGNATURE: usize = 64;
const HASH: usize = 32;
/// Key, signature, subject, the entries' count and the entries, and some that a later version may append.
const MAX_SIGNED: usize = KEY + SIGNATURE + HASH + 2 + MAX_ENTRIES * (HASH + 5) + 64;
/// As many as there can be links.
const MAX_WITNESSES: u16 = 64;
/// Bytes of signed batches: 25 GiB of file with each piece in a batch of its own, which is how a slow line's come, and
/// more than [`MAX_PIECES`] in full ones.
const MAX_BYTES: usize = 4 << 20;
/// Bytes that a witness may take for each piece it attests: a batch of one leaf has 166 at most.
const BYTES_A_LEAF: usize = 200;
/// What it may take beside that: two full batches, which hold little that is new to somebody who joins later.
const SLACK: usize = 2 * MAX_SIGNED;

/// Why a batch was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// It is not what its witness signed, or not of the form that batches have.
    #[error("the batch is not what its witness signed")]
    Forged,
    /// It is about something else.
    #[error("the batch is about another content")]
    Subject,
    /// It names a piece that the content does not have, or more than a batch may.
    #[error("the batch names pieces that the content does not have, or more than {MAX_ENTRIES}")]
    Pieces,
    /// Its witness' word counts for nothing.
    #[error("its witness is barred")]
    Barred,
    /// There is no room for more.
    #[error("there is no room for more leaves of this content")]
    Full,
}

/// The leaves of one content.
#[derive(Clone, Debug)]
pub struct Leaves {
    subject: Subject,
    pieces: u32,
    witnesses: Vec<Witness>,
    batches: Vec<Batch>,
    /// By piece and witness (its place in `witnesses`).
    words: BTreeMap<(u32, u16), Word>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Witness {
    id: PeerId,
    /// Of its batches.
    bytes: usize,
    words: usize,
}

/// A batch as it came; empty when nothing in it counts any more.
#[derive(Clone, Debug)]
struct Batch {
    bytes: Box<[u8]>,
    /// How many words lie in it.
    words: u16,
}

/// Where a leaf lies.
#[derive(Clone, Copy, Debug)]
struct Word {
    batch: u32,
    at: u16,
    /// Its own witness has signed another one.
    disputed: bool,
}

/// What a batch says: the piece, and where in the batch its hash begins.
type Entry = (u32, u16);

impl Leaves {
    /// None yet, of a content of `total` bytes.
    pub fn new(subject: Subject, total: u64) -> Self {
        let pieces = u32::try_from(total.div_ceil(PIECE)).unwrap_or(MAX_PIECES);
        Self {
            subject,
            pieces: pieces.min(MAX_PIECES),
            witnesses: Vec::new(),
            batches: Vec::new(),
            words: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Signs the leaves of pieces that this device fetched from the origin itself; the first [`MAX_ENTRIES`] of them.
    pub fn sign(subject: Subject, entries: &[(u32, [u8; 32])], key: &DeviceKey) -> Vec<u8> {
        let entries = entries.get(..MAX_ENTRIES).unwrap_or(entries);
        // Plain data.
        let body = postcard::to_stdvec(&(subject, entries)).unwrap_or_default();
        let signature = key.sign(&[DOMAIN, &body[..]].concat());
        [&key.id().0[..], &signature[..], &body[..]].concat()
    }

    /// The leaves of batches that were kept: whose signatures were found right when they came.
    pub(super) fn restore<'a>(subject: Subject, total: u64, batches: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut leaves = Self::new(subject, total);
        for signed in batches {
            if let Some((id, _, body)) = split(signed)
                && let Ok(entries) = leaves.read(signed, body)
                && let Some(witness) = leaves.witness(id)
            {
                // There was room for it before.
                let _ = leaves.take(witness, signed, &entries);
            }
        }
        leaves
    }

    /// What they are the leaves of.
    pub const fn subject(&self) -> Subject {
        self.subject
    }

    /// Takes a batch; gives the pieces on which it says something new, of which each may have a leaf now, or have none any
    /// more. `barred`: whose word counts for nothing,
    /// which is to say also who is no member.
    ///
    /// # Errors
    /// Where nothing of it is taken.
    pub fn add(&mut self, signed: &[u8], barred: &dyn Fn(PeerId) -> bool) -> Result<Vec<u64>, Bad> {
        let (id, body) = open(signed)?;
        if barred(id) {
            return Err(Bad::Barred);
        }
        let entries = self.read(signed, body)?;
        let Some(witness) = self.witness(id) else {
            return Err(Bad::Full);
        };
        self.take(witness, signed, &entries)
    }

    /// The leaf of a piece, on the word of whoever attested it first; `None` where nobody does, or not all say the same.
    pub fn leaf(&self, piece: u64) -> Option<Attested> {
        let piece = u32::try_from(piece).ok()?;
        let mut words = self.words.range((piece, 0)..=(piece, u16::MAX));
        let (&(_, witness), first) = words.next()?;
        let hash = self.hash(first)?;
        let agreed =
            !first.disputed && words.all(|(_, word)| !word.disputed && self.hash(word) == Some(hash));
        let witness = self.witnesses.get(usize::from(witness))?.id;
        agreed.then_some(Attested { hash, witness })
    }

    /// All that is said of a piece.
    pub fn said_of(&self, piece: u64) -> Vec<Attested> {
        let Ok(piece) = u32::try_from(piece) else {
            return Vec::new();
        };
        let words = self.words.range((piece, 0)..=(piece, u16::MAX));
        let said = words.filter_map(|(&(_, witness), word)| {
            let witness = self.witnesses.get(usize::from(witness))?.id;
            let hash = self.hash(word)?;
            Some(Attested { hash, witness })
        });
        said.collect()
    }

    /// How many pieces' leaves are kept, each witness' counted.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether nobody has said anything.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The batches to pass on, as they were signed, in the order in which they came.
    pub fn batches(&self) -> impl Iterator<Item = &[u8]> {
        let all = self.batches.iter().map(|batch| &batch.bytes[..]);
        all.filter(|bytes| !bytes.is_empty())
    }

    /// The same from that place in the order on, each with its place, which it keeps: for whoever was told of those before.
    pub fn batches_since(&self, place: usize) -> impl Iterator<Item = (usize, &[u8])> {
        let all = self.batches.iter().enumerate().skip(place);
        all.map(|(place, batch)| (place, &batch.bytes[..]))
            .filter(|(_, bytes)| !bytes.is_empty())
    }

    /// Who has said something.
    pub fn witnesses(&self) -> impl Iterator<Item = PeerId> {
        self.witnesses
            .iter()
            .filter(|w| w.words > 0)
            .map(|witness| witness.id)
    }

    /// This witness has said nothing. Gives the pieces it had a word on.
    pub fn forget(&mut self, witness: PeerId) -> Vec<u64> {
        let mut gone = Vec::new();
        let Some(place) = self.witnesses.iter().position(|w| w.id == witness) else {
            return gone;
        };
        let (batches, bytes) = (&mut self.batches, &mut self.bytes);
        self.words.retain(|(piece, by), word| {
            if usize::from(*by) != place {
                return true;
            }
            gone.push(u64::from(*piece));
            if let Some(batch) = batches.get_mut(word.batch as usize) {
                *bytes -= std::mem::take(&mut batch.bytes).len();
            }
            false
        });
        if let Some(witness) = self.witnesses.get_mut(place) {
            (witness.bytes, witness.words) = (0, 0);
        }
        gone
    }

    /// Signs what this device itself has attested in as few batches as possible: while a slow line brings the pieces, each
    /// one makes a batch of its own, four times as large.
    pub fn compact(&mut self, key: &DeviceKey) {
        let place = self.witnesses.iter().position(|w| w.id == key.id());
        let own = self
            .words
            .iter()
            .filter(|((_, w), word)| Some(usize::from(*w)) == place && !word.disputed);
        let own: Vec<(u32, [u8; 32])> = own
            .filter_map(|((piece, _), word)| Some((*piece, self.hash(word)?)))
            .collect();
        if own.is_empty() {
            return;
        }
        self.forget(key.id());
        for entries in own.chunks(MAX_ENTRIES) {
            // There is more room than they had before.
            let _ = self.add(&Self::sign(self.subject, entries, key), &|_| false);
        }
    }

    /// What a batch of this content says.
    fn read(&self, signed: &[u8], body: &[u8]) -> Result<Vec<Entry>, Bad> {
        let ((subject, count), mut rest) =
            postcard::take_from_bytes::<(Subject, u32)>(body).map_err(|_| Bad::Forged)?;
        if subject != self.subject {
            return Err(Bad::Subject);
        }
        let count = usize::try_from(count).map_err(|_| Bad::Pieces)?;
        if count > MAX_ENTRIES {
            return Err(Bad::Pieces);
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (piece, after) = postcard::take_from_bytes::<u32>(rest).map_err(|_| Bad::Forged)?;
            let at = u16::try_from(signed.len() - after.len()).map_err(|_| Bad::Forged)?;
            rest = after.get(HASH..).ok_or(Bad::Forged)?;
            if piece >= self.pieces {
                return Err(Bad::Pieces);
            }
            entries.push((piece, at));
        }
        Ok(entries)
    }

    /// The witness' place, made if there is room for one more: that of one who was forgotten is free.
    fn witness(&mut self, id: PeerId) -> Option<u16> {
        let place = self.witnesses.iter().position(|w| w.id == id);
        let free = || self.witnesses.iter().position(|w| w.words == 0);
        let place = place.or_else(free).unwrap_or(self.witnesses.len());
        let fresh = Witness {
            id,
            bytes: 0,
            words: 0,
        };
        match self.witnesses.get_mut(place) {
            Some(witness) if witness.id == id => {}
            Some(witness) => *witness = fresh,
            None if place < usize::from(MAX_WITNESSES) => self.witnesses.push(fresh),
            None => return None,
        }
        u16::try_from(place).ok()
    }

    fn take(&mut self, place: u16, signed: &[u8], entries: &[Entry]) -> Result<Vec<u64>, Bad> {
        let fresh: BTreeSet<u32> = entries.iter().map(|(piece, _)| *piece).collect();
        let fresh = fresh
            .iter()
            .filter(|piece| !self.words.contains_key(&(**piece, place)));
        let fresh = fresh.count();
        let Some(witness) = self.witnesses.get_mut(usize::from(place)) else {
            return Err(Bad::Full);
        };
        if fresh > 0 {
            let dense = witness.bytes + signed.len() <= (witness.words + fresh) * BYTES_A_LEAF + SLACK;
            if !dense || self.bytes + signed.len() > MAX_BYTES {
                return Err(Bad::Full);
            }
            witness.bytes += signed.len();
            witness.words += fresh;
            self.bytes += signed.len();
            self.batches.push(Batch {
                bytes: signed.into(),
                words: 0,
            });
        }
        let mut told = Vec::new();
        for &(piece, at) in entries {
            if self.say(place, piece, hash_at(signed, at), (fresh > 0).then_some(at)) {
                told.push(u64::from(piece));
            }
        }
        Ok(told)
    }

    /// The witness says this of the piece, in the last batch, where that is kept: at `at`. Whether that is news.
    fn say(&mut self, place: u16, piece: u32, hash: Option<[u8; HASH]>, at: Option<u16>) -> bool {
        let before = self.words.get(&(piece, place)).copied();
        let differs = before.is_some_and(|word| self.hash(&word) != hash);
        if let Some(word) = before.filter(|_| differs) {
            let disputed = Word {
                disputed: true,
                ..word
            };
            self.words.insert((piece, place), disputed);
            return !word.disputed;
        }
        let (Some(at), Some(batch)) = (at, self.batches.len().checked_sub(1)) else {
            return false;
        };
        let last = u32::try_from(batch).unwrap_or(u32::MAX);
        // What is in the last batch need not be in an earlier one: that goes when nothing else is in it.
        match before {
            Some(word) if word.batch == last => return false,
            Some(word) => self.leave(place, word.batch),
            None => {}
        }
        if let Some(batch) = self.batches.get_mut(batch) {
            batch.words += 1;
        }
        let word = Word {
            batch: last,
            at,
            disputed: before.is_some_and(|word| word.disputed),
        };
        self.words.insert((piece, place), word);
        before.is_none()
    }

    /// One word less lies in this batch.
    fn leave(&mut self, place: u16, batch: u32) {
        let Some(batch) = self.batches.get_mut(batch as usize) else {
            return;
        };
        batch.words = batch.words.saturating_sub(1);
        if batch.words > 0 {
            return;
        }
        let bytes = std::mem::take(&mut batch.bytes).len();
        self.bytes -= bytes;
        if let Some(witness) = self.witnesses.get_mut(usize::from(place)) {
            witness.bytes -= bytes;
        }
    }

    fn hash(&self, word: &Word) -> Option<[u8; HASH]> {
        hash_at(&self.batches.get(word.batch as usize)?.bytes, word.at)
    }
}

fn hash_at(signed: &[u8], at: u16) -> Option<[u8; HASH]> {
    signed.get(usize::from(at)..)?.first_chunk().copied()
}

fn split(signed: &[u8]) -> Option<(PeerId, &[u8], &[u8])> {
    let (id, rest) = signed.split_first_chunk::<KEY>()?;
    let (signature, body) = rest.split_at_checked(SIGNATURE)?;
    Some((PeerId(*id), signature, body))
}

/// The witness and the body of a batch with a right signature.
fn open(signed: &[u8]) -> Result<(PeerId, &[u8]), Bad> {
    if signed.len() > MAX_SIGNED {
        return Err(Bad::Pieces);
    }
    let (id, signature, body) = split(signed).ok_or(Bad::Forged)?;
    let key = UnparsedPublicKey::new(&ED25519, id.0);
    let right = key.verify(&[DOMAIN, body].concat(), signature);
    right.map(|()| (id, body)).map_err(|_| Bad::Forged)
}

#[cfg(test)]
mod tests;
