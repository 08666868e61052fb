//! Two devices find out whether they know the same secret, and whoever does not learns nothing but that: SPAKE2, by the
//! crate for it, with an explicit proof each way.
//!
//! A person's passphrase is weak, which is what such an exchange is for: who takes part in a run, or is in the middle of
//! it, tries exactly one guess, and its transcript is no help to try another. So the passphrase is not stretched; guesses
//! are counted (`guesses`).
//!
//! Invariants: the proof is of the secret, of both ids, of the TLS session between them and of the purpose, so that it
//! cannot be passed on into another session, to another device, or from one purpose to another; points that are
//! malformed, of small order, or the own one come to nothing; proofs are compared in constant time.

use std::fmt;
use std::hint::black_box;

use ring::hmac;
use spake2::{Ed25519Group, Group, Identity, Password, Spake2};

use crate::types::PeerId;

use super::token::TokenId;
use super::words::{Point, Tag};

const DOMAIN: &[u8] = b"tributary 1 pake\0";
const CONFIRM: &[u8] = b"tributary 1 pake confirm\0";
/// The neutral element, compressed.
const NEUTRAL: Point = {
    let mut one = [0; 32];
    one[0] = 1;
    one
};

/// The two ends of a link, and what only they know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// This device.
    pub me: PeerId,
    /// The other.
    pub peer: PeerId,
    /// Exported from the TLS session: both ends have the same, and nobody in between can bring it about.
    pub channel: [u8; 32],
}

impl Ends {
    /// Both ids, the smaller one first: the same at both ends.
    pub fn ids(&self) -> [PeerId; 2] {
        [self.me.min(self.peer), self.me.max(self.peer)]
    }
}

/// What the secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The household's passphrase.
    Passphrase,
    /// The token of this id.
    Token(TokenId),
}

impl Purpose {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Passphrase => b"passphrase".to_vec(),
            Self::Token(id) => [b"token", &id.0[..]].concat(),
        }
    }
}

/// Bytes that are not printed, and overwritten when they are no longer needed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Keeps these.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// What they are.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        black_box(&self.0);
    }
}

/// The other side's message is none that an honest one sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side's half of the key exchange is none")]
pub struct Malformed;

/// The crate's two sides: of the smaller id and of the greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
}

impl Side {
    /// As the crate marks its messages.
    const fn mark(self) -> u8 {
        match self {
            Self::A => b'A',
            Self::B => b'B',
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// One run, of which this side has made its half.
pub struct Pake {
    half: Spake2<Ed25519Group>,
    mine: Point,
    context: Vec<u8>,
    side: Side,
}

impl fmt::Debug for Pake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pake")
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

impl Pake {
    /// Begins a run. Its randomness is the system's.
    pub fn new(secret: &[u8], purpose: Purpose, ends: &Ends) -> Self {
        let ids = ends.ids();
        let context = [DOMAIN, &purpose.bytes(), b"\0", &ends.channel].concat();
        let password = Password::new(secret);
        let [a, b] = ids.map(|id| Identity::new(&[&context[..], &id.0].concat()));
        let side = if ends.me == ids[0] { Side::A } else { Side::B };
        let (half, message) = match side {
            Side::A => Spake2::start_a(&password, &a, &b),
            Side::B => Spake2::start_b(&password, &a, &b),
        };
        let mut mine = Point::default();
        for (to, from) in mine.iter_mut().zip(message.iter().skip(1)) {
            *to = *from;
        }
        Self {
            half,
            mine,
            context: [&context[..], &ids[0].0, &ids[1].0].concat(),
            side,
        }
    }

    /// This side's half, to be sent.
    pub const fn point(&self) -> Point {
        self.mine
    }

    /// Takes the other side's half. That it knows the secret is only said by its tag.
    ///
    /// # Errors
    /// Where it is the own half, of small order, or no point in its one right form.
    pub fn finish(self, theirs: &Point) -> Result<Keyed, Malformed> {
        if *theirs == self.mine || !is_sound(theirs) {
            return Err(Malformed);
        }
        let message = [&[self.side.other().mark()][..], theirs].concat();
        let key = self.half.finish(&message).map_err(|_| Malformed)?;
        let key = Secret::new(key);
        let points = match self.side {
            Side::A => [self.mine, *theirs],
            Side::B => [*theirs, self.mine],
        };
        Ok(Keyed {
            key: hmac::Key::new(hmac::HMAC_SHA256, key.bytes()),
            transcript: [&self.context[..], &points[0], &points[1]].concat(),
            side: self.side,
        })
    }
}

/// Canonical, and not of small order: eight times it is not nothing.
fn is_sound(point: &Point) -> bool {
    let Some(element) = Ed25519Group::bytes_to_element(point) else {
        return false;
    };
    let twice = |e| Ed25519Group::add(&e, &e);
    Ed25519Group::element_to_bytes(&element) == point
        && Ed25519Group::element_to_bytes(&twice(twice(twice(element)))) != NEUTRAL
}

/// A run with both halves: the key is there, and whether the other side has the same one is told by its tag.
pub struct Keyed {
    key: hmac::Key,
    transcript: Vec<u8>,
    side: Side,
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

impl Keyed {
    /// The proof that this side knows the secret. To send it first gives the other side its one guess.
    pub fn tag(&self) -> Tag {
        let mut tag = Tag::default();
        let made = hmac::sign(&self.key, &self.of(self.side));
        for (to, from) in tag.iter_mut().zip(made.as_ref()) {
            *to = *from;
        }
        tag
    }

    /// Whether this is the other side's proof.
    pub fn is_right(&self, theirs: &Tag) -> bool {
        hmac::verify(&self.key, &self.of(self.side.other()), theirs).is_ok()
    }

    fn of(&self, side: Side) -> Vec<u8> {
        [CONFIRM, &[side.mark()], &self.transcript].concat()
    }
}

#[cfg(test)]
mod tests;
