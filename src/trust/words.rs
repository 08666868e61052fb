//! What two devices say to each other while one is being vouched for, as it is on the wire (inside the link's ceremony
//! message, which knows nothing of it).
//!
//! Invariant: reading is exact and bounded; what is not one of these words is none of ours, and nothing comes of it.

use serde::{Deserialize, Serialize};

use super::token::TokenId;

/// The longest one is some 90 bytes.
pub const MAX_WORDS: usize = 128;

/// A point of the curve, compressed.
pub type Point = [u8; 32];
/// An HMAC-SHA256.
pub type Tag = [u8; 32];
/// SHA-256 of a nonce and whom it is for.
pub type Commitment = [u8; 32];
/// Random, revealed after both have committed themselves to theirs.
pub type Nonce = [u8; 32];

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Words {
    /// Of the household's passphrase.
    Passphrase(Step),
    /// Of the token with this id.
    Token(TokenId, Step),
    /// Of two people who compare a code.
    Approve(Look),
}

/// A step of the key exchange with a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Begin, please: I know a secret, and it is not for me to begin.
    Ready,
    /// The first half.
    Open(Point),
    /// The second half, with the proof that its sender knows the secret.
    Answer(Point, Tag),
    /// The proof that he who began knows it.
    Confirm(Tag),
    /// It was right, and you are vouched for.
    Done,
    /// It ends here.
    No(No),
}

/// Why an exchange ends. Hints for people: nothing is proven by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum No {
    /// There is no such secret here.
    Unknown,
    /// The token is over.
    Expired,
    /// The token has been used.
    Used,
    /// The secret is another one, or somebody is in between.
    Wrong,
    /// You were put out of this household, or have guessed too often.
    Closed,
}

/// A step of comparing a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// My person wants to approve you; this is what I commit myself to.
    Commit(Commitment),
    /// What it was.
    Reveal(Nonce),
    /// My person says that the codes are the same.
    Yes,
    /// My person does not, or has gone.
    No,
}

impl Words {
    /// Reads one; `None` where it is anything else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_WORDS {
            return None;
        }
        let (words, rest) = postcard::take_from_bytes(bytes).ok()?;
        rest.is_empty().then_some(words)
    }

    /// As it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        // Plain enums and arrays: there is nothing in them that could fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_were_said_and_nothing_else_is() {
        let id = TokenId([3; 16]);
        let said = [
            Words::Passphrase(Step::Ready),
            Words::Passphrase(Step::Answer([1; 32], [2; 32])),
            Words::Token(id, Step::Open([4; 32])),
            Words::Token(id, Step::Answer([4; 32], [5; 32])),
            Words::Token(id, Step::No(No::Closed)),
            Words::Approve(Look::Commit([6; 32])),
            Words::Approve(Look::No),
        ];
        for words in said {
            let bytes = words.bytes();
            assert!(bytes.len() <= MAX_WORDS, "{words:?}: {} bytes", bytes.len());
            assert_eq!(Words::read(&bytes), Some(words));
            assert_eq!(Words::read(&[&bytes[..], &[0]].concat()), None, "more follows");
            for cut in 0..bytes.len() {
                assert_eq!(Words::read(&bytes[..cut]), None, "cut to {cut} bytes");
            }
        }
        assert_eq!(Words::read(&[0; MAX_WORDS + 1]), None);
    }
}
