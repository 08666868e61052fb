//! A short code that two people compare, each on the device before them: where it is the same, nobody is in between.
//!
//! Pure. Each side commits itself to a random nonce before it learns the other's, so nobody can look for a nonce that
//! makes two codes equal: whoever is in the middle has one chance in a million for each time that two people look.
//! Invariants: a nonce is revealed only to a side that is committed; the code is of both nonces, both ids and the TLS
//! session between them.

use std::fmt;

use ring::{digest, hkdf};

use crate::types::PeerId;

use super::pake::Ends;
use super::words::{Commitment, Nonce};

const COMMIT: &[u8] = b"tributary 1 code commitment\0";
const CODE: &[u8] = b"tributary 1 code\0";
/// Six digits, taken from 64 bits: no code is likelier than another by more than a part in 10^13.
const CODES: u64 = 1_000_000;

/// Six digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(u32);

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// What was revealed is not what was committed to: somebody is in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side does not keep to its commitment")]
pub struct Broken;

/// This side has a nonce.
#[derive(Debug)]
pub struct Sas {
    ends: Ends,
    nonce: Nonce,
}

impl Sas {
    /// Begins with this random nonce.
    pub const fn new(nonce: Nonce, ends: Ends) -> Self {
        Self { ends, nonce }
    }

    /// What this side says first.
    pub fn commitment(&self) -> Commitment {
        commitment(&self.nonce, self.ends.me, self.ends.peer, &self.ends.channel)
    }

    /// The other side has committed itself too.
    pub const fn both(self, theirs: Commitment) -> Committed {
        Committed { mine: self, theirs }
    }
}

/// Both sides have committed themselves, and this side has said so.
#[derive(Debug)]
pub struct Committed {
    mine: Sas,
    theirs: Commitment,
}

impl Committed {
    /// What this side reveals now.
    pub const fn reveal(&self) -> Nonce {
        self.mine.nonce
    }

    /// The code to be shown.
    ///
    /// # Errors
    /// Where the other side reveals something else than it committed itself to.
    pub fn code(self, revealed: &Nonce) -> Result<Code, Broken> {
        let Sas { ends, nonce } = self.mine;
        if commitment(revealed, ends.peer, ends.me, &ends.channel) != self.theirs {
            return Err(Broken);
        }
        let [first, second] = if ends.me < ends.peer {
            [&nonce, revealed]
        } else {
            [revealed, &nonce]
        };
        let [a, b] = ends.ids();
        let material = [&ends.channel[..], &a.0, &b.0, first, second].concat();
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, CODE).extract(&material);
        let mut bytes = [0; 8];
        let filled = key.expand(&[CODE], Eight).and_then(|okm| okm.fill(&mut bytes));
        filled.map_err(|_| Broken)?;
        let number = u64::from_be_bytes(bytes) % CODES;
        u32::try_from(number).map(Code).map_err(|_| Broken)
    }
}

/// So many bytes are asked for.
struct Eight;

impl hkdf::KeyType for Eight {
    fn len(&self) -> usize {
        8
    }
}

fn commitment(nonce: &Nonce, from: PeerId, to: PeerId, channel: &[u8; 32]) -> Commitment {
    let said = [COMMIT, &from.0, &to.0, channel, nonce].concat();
    let mut commitment = Commitment::default();
    let digest = digest::digest(&digest::SHA256, &said);
    for (to, from) in commitment.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    commitment
}

#[cfg(test)]
mod tests;
