//! Joining with a token: the joiner asks every linked device for it by its id, and whoever gave it out proves that, is
//! shown the joiner's proof, and says that it is done.
//!
//! Invariants: the token is used up in the same step in which the joiner's proof is found right, so that of two that
//! come at once one gets in; the joiner vouches only for the device that said so last. Guesses at 128 bits are not
//! counted: who knows an id only cannot use its token up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::task::Seldom;
use crate::types::PeerId;

use super::super::pake::{Keyed, Pake, Purpose};
use super::super::token::{Token, TokenId};
use super::super::words::{No, Step};
use super::{Ceremonies, Do, Near, Way, say_token};

/// Devices that are being discovered have so long to be asked too.
const ASK_FOR: Duration = Duration::from_secs(5);
/// An answer takes milliseconds.
const JOIN_WITHIN: Duration = Duration::from_secs(10);

/// Whoever knows a token's id can be refused as often as it likes.
static REFUSALS: Seldom = Seldom::new(10, Duration::from_secs(60));

/// Why this device has not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJoined {
    /// Somebody else of this device is at it.
    #[error("another `tributary join` is under way on this device")]
    Busy,
    /// It gave the token out itself.
    #[error("this token was made on this device: type it on the one that is to join")]
    Own,
    /// There is nobody to ask.
    #[error(
        "no other device is in sight: is the one that made the token on, and in the same network? `tributary doctor` \
         looks for what is in the way"
    )]
    Nobody,
    /// Nobody whom it sees has given it out.
    #[error(
        "no device in sight knows this token. A token ends with a restart of the daemon that made it: make a new one with \
         `tributary invite`"
    )]
    Unknown,
    /// It was used.
    #[error("this token has been used, and each lets one device in: make a new one with `tributary invite`")]
    Used,
    /// It is over.
    #[error("this token has expired: make a new one with `tributary invite`")]
    Expired,
    /// Somebody answers who knows its id only.
    #[error(
        "a device answers that does not know the token itself: somebody may be in between. Nobody was vouched for"
    )]
    Wrong,
    /// It began, and did not end.
    #[error("the device that made the token does not answer: try again")]
    Silent,
}

/// Under way, on the side that comes with a token.
#[derive(Debug)]
pub(super) struct Joining {
    token: Token,
    asked: BTreeMap<PeerId, Asked>,
    began: Instant,
}

#[derive(Debug)]
enum Asked {
    Opened(Box<Pake>),
    /// It knows the token, and this side has shown that it does.
    Proven,
    Refused(No),
}

impl Joining {
    pub(super) fn lost(&mut self, peer: PeerId) {
        self.asked.remove(&peer);
    }
}

/// A joiner that has got this side's proof.
#[derive(Debug)]
pub(super) struct Serving {
    id: TokenId,
    keyed: Keyed,
}

impl Ceremonies {
    /// Comes with a token.
    ///
    /// # Errors
    /// Where another one is being used, or it is this device's own.
    pub fn join(&mut self, token: Token, now: Instant) -> Result<Vec<Do>, NotJoined> {
        if self.joining.is_some() {
            return Err(NotJoined::Busy);
        }
        if self.tokens.get(token.id(), now).is_ok() {
            return Err(NotJoined::Own);
        }
        self.joining = Some(Joining {
            token,
            asked: BTreeMap::new(),
            began: now,
        });
        let peers: Vec<PeerId> = self.near.keys().copied().collect();
        Ok(peers
            .into_iter()
            .flat_map(|peer| self.ask_with_token(peer))
            .collect())
    }

    /// Who came with it does not wait any more.
    pub fn stop_joining(&mut self) {
        self.joining = None;
    }

    /// Asks a linked device for the token that is being used, if one is.
    pub(super) fn ask_with_token(&mut self, peer: PeerId) -> Option<Do> {
        let (near, joining) = self.near.get(&peer).zip(self.joining.as_mut())?;
        let id = joining.token.id();
        let pake = Pake::new(joining.token.secret(), Purpose::Token(id), &near.ends);
        let opens = say_token(peer, id, Step::Open(pake.point()));
        joining.asked.insert(peer, Asked::Opened(Box::new(pake)));
        Some(opens)
    }

    pub(super) fn by_token(&mut self, peer: PeerId, id: TokenId, step: Step, now: Instant) -> Vec<Do> {
        match step {
            Step::Open(point) => vec![self.serve(peer, id, &point, now)],
            Step::Confirm(tag) => self.admit(peer, id, &tag, now),
            Step::Answer(point, tag) => self.prove(peer, id, &point, &tag, now),
            Step::Done => self.joined(peer, id),
            Step::No(why) => {
                if let Some(near) = self.near.get_mut(&peer) {
                    near.serving = None;
                }
                self.refused(peer, id, why);
                self.join_verdict(now)
            }
            Step::Ready => Vec::new(),
        }
    }

    /// Shows a joiner that this device gave the token out.
    fn serve(&mut self, peer: PeerId, id: TokenId, point: &[u8; 32], now: Instant) -> Do {
        let no = |why| say_token(peer, id, Step::No(why));
        let Some(near) = self.near.get_mut(&peer) else {
            return no(No::Unknown);
        };
        let invitation = match self.tokens.get(id, now) {
            Ok(invitation) => invitation,
            Err(why) => return no(why),
        };
        let pake = Pake::new(invitation.token.secret(), Purpose::Token(id), &near.ends);
        let mine = pake.point();
        match pake.finish(point) {
            Ok(keyed) => {
                let answer = Step::Answer(mine, keyed.tag());
                near.serving = Some(Serving { id, keyed });
                say_token(peer, id, answer)
            }
            Err(_) => no(No::Wrong),
        }
    }

    /// Looks at the joiner's proof, and uses the token up.
    fn admit(&mut self, peer: PeerId, id: TokenId, tag: &[u8; 32], now: Instant) -> Vec<Do> {
        let serving = self
            .near
            .get_mut(&peer)
            .and_then(|near: &mut Near| near.serving.take());
        let Some(serving) = serving.filter(|s| s.id == id) else {
            return Vec::new();
        };
        let taken = match serving.keyed.is_right(tag) {
            true => self.tokens.take(id, now),
            false => Err(No::Wrong),
        };
        match taken {
            Ok(invitation) => vec![
                Do::Vouch {
                    peer,
                    may_vouch: invitation.may_vouch,
                    way: Way::Token,
                },
                say_token(peer, id, Step::Done),
            ],
            Err(why) => {
                if let Some(more) = REFUSALS.pass() {
                    tracing::warn!(peer = %peer.short(), ?why, more, "a device came with a token that does not let it in");
                }
                vec![say_token(peer, id, Step::No(why))]
            }
        }
    }

    fn prove(
        &mut self,
        peer: PeerId,
        id: TokenId,
        point: &[u8; 32],
        tag: &[u8; 32],
        now: Instant,
    ) -> Vec<Do> {
        let Some(asked) = self.asked(peer, id) else {
            return Vec::new();
        };
        let Asked::Opened(pake) = std::mem::replace(asked, Asked::Refused(No::Wrong)) else {
            return Vec::new();
        };
        match pake.finish(point) {
            Ok(keyed) if keyed.is_right(tag) => {
                *asked = Asked::Proven;
                vec![say_token(peer, id, Step::Confirm(keyed.tag()))]
            }
            _ => {
                let mut todo = vec![say_token(peer, id, Step::No(No::Wrong))];
                todo.extend(self.join_verdict(now));
                todo
            }
        }
    }

    fn joined(&mut self, peer: PeerId, id: TokenId) -> Vec<Do> {
        if !matches!(self.asked(peer, id), Some(Asked::Proven)) {
            return Vec::new();
        }
        self.joining = None;
        let vouch = Do::Vouch {
            peer,
            may_vouch: true,
            way: Way::Token,
        };
        vec![vouch, Do::Joined(Ok(peer))]
    }

    fn refused(&mut self, peer: PeerId, id: TokenId, why: No) {
        if let Some(asked) = self.asked(peer, id) {
            *asked = Asked::Refused(why);
        }
    }

    fn asked(&mut self, peer: PeerId, id: TokenId) -> Option<&mut Asked> {
        let joining = self.joining.as_mut().filter(|j| j.token.id() == id)?;
        joining.asked.get_mut(&peer)
    }

    /// Gives up where nobody is left who could answer.
    pub(super) fn join_verdict(&mut self, now: Instant) -> Vec<Do> {
        let Some(joining) = &self.joining else {
            return Vec::new();
        };
        let waited = now.duration_since(joining.began);
        let open = joining.asked.values().any(|a| !matches!(a, Asked::Refused(_)));
        let why = joining.asked.values().filter_map(|a| match a {
            Asked::Refused(why) => Some(*why),
            _ => None,
        });
        let why = why.max();
        // Of a token that is over nobody else will know better.
        let known = why.is_some_and(|why| why != No::Unknown);
        let over = match open {
            true => waited >= JOIN_WITHIN,
            false => known || waited >= ASK_FOR,
        };
        if !over {
            return Vec::new();
        }
        self.joining = None;
        let why = match why {
            _ if open => NotJoined::Silent,
            None => NotJoined::Nobody,
            Some(No::Unknown) => NotJoined::Unknown,
            Some(No::Expired) => NotJoined::Expired,
            Some(No::Used) => NotJoined::Used,
            Some(No::Wrong | No::Closed) => NotJoined::Wrong,
        };
        vec![Do::Joined(Err(why))]
    }
}
