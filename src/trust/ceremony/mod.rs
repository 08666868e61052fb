//! How a device comes to be vouched for: by the passphrase that both know, by a token that its owner carried over, or by
//! two people who compare a code. All that this device has under way, for all links.
//!
//! Pure but for the log and for the key exchange's own randomness: time comes as an argument, and what is to be done goes
//! out as [`Do`]. Invariants: nobody is vouched for but at the end of a run that proved the secret, or after both people
//! said yes; at most [`MAX_NEAR`] links are kept, and of each at most one run of a kind; what is not expected in a run is
//! answered with an end or with nothing.

mod approving;
mod joining;
mod passphrase;

pub use approving::{APPROVE_WITHIN, Looked, NotApproved};
pub use joining::NotJoined;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::types::PeerId;

use super::guesses::Guesses;
use super::pake::{Ends, Secret};
use super::token::{Token, Tokens};
use super::words::{Look, Step, Words};

use approving::{Approving, Ask};
use joining::{Joining, Serving};
use passphrase::Run;

/// As many as there can be links.
pub const MAX_NEAR: usize = 64;

/// What a peer is to this device, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has said anything of it.
    Stranger,
    /// It is of the household.
    Member,
    /// It was, and somebody put it out: a passphrase that it still knows does not let it in again.
    PutOut,
}

/// By what somebody is vouched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It knows the passphrase.
    Passphrase,
    /// It, or this device, came with a token.
    Token,
    /// The codes were the same.
    Code,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Do {
    /// Say this to a peer.
    Say(PeerId, Words),
    /// Vouch for it.
    Vouch {
        /// Whom.
        peer: PeerId,
        /// It may vouch for others.
        may_vouch: bool,
        /// By what.
        way: Way,
    },
    /// Tell who asked to join what became of it.
    Joined(Result<PeerId, NotJoined>),
    /// Tell who approves how far it is.
    Approving(Looked),
}

/// Everything under way.
#[derive(Debug, Default)]
pub struct Ceremonies {
    passphrase: Option<Secret>,
    near: BTreeMap<PeerId, Near>,
    guesses: Guesses,
    told_closed: bool,
    tokens: Tokens,
    joining: Option<Joining>,
    approving: Option<Approving>,
}

/// What is under way on one link.
#[derive(Debug)]
struct Near {
    ends: Ends,
    /// By the passphrase.
    run: Run,
    /// A joiner that has got this side's proof.
    serving: Option<Serving>,
    /// Its person wants to approve this device.
    ask: Option<Ask>,
}

impl Ceremonies {
    /// Nothing is under way.
    pub fn new(passphrase: Option<Secret>) -> Self {
        Self {
            passphrase,
            ..Self::default()
        }
    }

    /// A link is there.
    pub fn linked(&mut self, ends: Ends, standing: Standing) -> Vec<Do> {
        let peer = ends.peer;
        let mut todo = self.gone(peer);
        if self.near.len() >= MAX_NEAR {
            return todo;
        }
        self.near.insert(
            peer,
            Near {
                ends,
                run: Run::default(),
                serving: None,
                ask: None,
            },
        );
        if standing == Standing::Stranger {
            todo.extend(self.introduce(peer));
        }
        todo.extend(self.ask_with_token(peer));
        todo
    }

    /// A link is gone, and what was under way on it.
    pub fn gone(&mut self, peer: PeerId) -> Vec<Do> {
        if self.near.remove(&peer).is_none() {
            return Vec::new();
        }
        if let Some(joining) = &mut self.joining {
            joining.lost(peer);
        }
        self.end_approving_with(peer, NotApproved::Gone)
    }

    /// A peer said something.
    pub fn heard(&mut self, peer: PeerId, bytes: &[u8], standing: Standing, now: Instant) -> Vec<Do> {
        let Some(words) = Words::read(bytes).filter(|_| self.near.contains_key(&peer)) else {
            tracing::debug!(peer = %peer.short(), "words that mean nothing here");
            return Vec::new();
        };
        match words {
            Words::Passphrase(step) => self.by_passphrase(peer, step, standing, now),
            Words::Token(id, step) => self.by_token(peer, id, step, now),
            Words::Approve(look) => self.by_code(peer, look, now),
        }
    }

    /// Ends what has lasted too long. To be called every second or so.
    pub fn tick(&mut self, now: Instant) -> Vec<Do> {
        for near in self.near.values_mut() {
            near.ask.take_if(|ask| ask.is_over(now));
        }
        let mut todo = self.join_verdict(now);
        todo.extend(self.approve_in_time(now));
        todo
    }

    /// Lets somebody come with this token; false where too many are open.
    pub fn invite(&mut self, token: Token, may_vouch: bool, valid: Duration, now: Instant) -> bool {
        self.tokens.add(token, may_vouch, valid, now)
    }

    /// The passphrase admits nobody any more; false where there was none.
    pub fn forget_passphrase(&mut self) -> bool {
        let known = self.passphrase.take().is_some();
        for near in self.near.values_mut() {
            near.run = Run::default();
        }
        known
    }

    /// Whose people want to approve this device.
    pub fn asking(&self) -> impl Iterator<Item = PeerId> {
        let asking = self.near.iter().filter(|(_, near)| near.ask.is_some());
        asking.map(|(peer, _)| *peer)
    }
}

fn say_token(peer: PeerId, id: super::token::TokenId, step: Step) -> Do {
    Do::Say(peer, Words::Token(id, step))
}

fn say_look(peer: PeerId, look: Look) -> Do {
    Do::Say(peer, Words::Approve(look))
}

#[cfg(test)]
mod tests;
