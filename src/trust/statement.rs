//! What members say about devices: "this one is of the household", "this one is not any more". Signed, so that whoever
//! passes it on can change nothing of it.
//!
//! On the wire and in the file a statement is its signer's key (32 bytes), the signature (64, Ed25519) and a short body.
//! Invariant: the signature is checked before anything of the body is read, and a [`Signed`] exists only where it was right.

use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::identity::DeviceKey;
use crate::types::PeerId;

/// Signed together with the body: what this key signs for other purposes is no statement.
const DOMAIN: &[u8] = b"tributary 1 statement\0";
const KEY: usize = 32;
const SIGNATURE: usize = 64;
/// A body has 40 bytes; a later version may append some.
const MAX_BODY: usize = 96;

/// What is said of the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Said {
    /// It is of the household.
    Vouch {
        /// It may vouch for others, and put others out.
        may_vouch: bool,
    },
    /// It is not: no vouch of this epoch or an earlier one counts any more.
    Revoke {
        /// Nor is it to have a link.
        block: bool,
    },
}

/// One statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Of whom.
    pub subject: PeerId,
    /// What.
    pub said: Said,
    /// Counts a device's comings: a vouch is undone by a revocation of the same epoch or a later one, so that an old vouch
    /// cannot be replayed, and one who was put out can come back with the next epoch.
    pub epoch: u32,
}

/// A statement with the signature that was found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    signer: PeerId,
    statement: Statement,
    bytes: Vec<u8>,
}

impl Signed {
    /// Signs.
    pub fn new(statement: Statement, key: &DeviceKey) -> Option<Self> {
        let body = postcard::to_stdvec(&statement).ok()?;
        let signature = key.sign(&[DOMAIN, &body[..]].concat());
        let bytes = [&key.id().0[..], &signature[..], &body[..]].concat();
        Some(Self {
            signer: key.id(),
            statement,
            bytes,
        })
    }

    /// Reads one; `None` where the signature is wrong or what was signed is no statement of ours.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (signer, rest) = bytes.split_at_checked(KEY)?;
        let (signature, body) = rest.split_at_checked(SIGNATURE)?;
        if body.len() > MAX_BODY {
            return None;
        }
        let key = UnparsedPublicKey::new(&ED25519, signer);
        key.verify(&[DOMAIN, body].concat(), signature).ok()?;
        // Later versions may append fields.
        let (statement, _) = postcard::take_from_bytes(body).ok()?;
        Some(Self {
            signer: PeerId(signer.try_into().ok()?),
            statement,
            bytes: bytes.to_vec(),
        })
    }

    /// Who says it.
    pub const fn signer(&self) -> PeerId {
        self.signer
    }

    /// What is said.
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// As it is passed on and kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> Signed {
        let statement = Statement {
            subject: PeerId([7; 32]),
            said: Said::Vouch { may_vouch: true },
            epoch: 3,
        };
        Signed::new(statement, &DeviceKey::ephemeral().unwrap()).unwrap()
    }

    #[test]
    fn a_statement_is_read_as_it_was_signed() {
        let signed = signed();
        assert_eq!(Signed::read(signed.bytes()), Some(signed));
    }

    #[test]
    fn a_statement_with_any_bit_changed_is_none() {
        let bytes = signed().bytes().to_vec();
        for at in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[at / 8] ^= 1 << (at % 8);
            assert_eq!(Signed::read(&forged), None, "bit {at}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(Signed::read(&bytes[..cut]), None, "cut to {cut} bytes");
        }
    }

    #[test]
    fn what_a_key_signed_for_another_purpose_is_no_statement() {
        let key = DeviceKey::ephemeral().unwrap();
        let body = signed().bytes()[KEY + SIGNATURE..].to_vec();
        let bytes = [&key.id().0[..], &key.sign(&body)[..], &body[..]].concat();
        assert_eq!(Signed::read(&bytes), None);
    }
}
