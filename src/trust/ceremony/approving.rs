//! Approving: two people, each before one of two devices, compare a code and say that it is the same.
//!
//! Invariants: one at a time; where a second device asks meanwhile, nobody is approved (as push buttons have it: one does
//! not know which of them one is looking at); each side vouches only when its own person and the other side said yes; all
//! of it takes at most [`APPROVE_WITHIN`].

use std::time::{Duration, Instant};

use crate::task::Seldom;
use crate::types::PeerId;

use super::super::sas::{Code, Committed, Sas};
use super::super::words::{Commitment, Look, Nonce};
use super::{Ceremonies, Do, Way, say_look};

/// From the command to the last yes; an asking device is listed as long.
pub const APPROVE_WITHIN: Duration = Duration::from_secs(120);

/// Any neighbour can ask as often as it likes.
static ASKS: Seldom = Seldom::new(10, Duration::from_secs(60));

/// How far an approval is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// The other side's person has still to do the same.
    Waiting,
    /// To be compared.
    Code(Code),
    /// Both said yes.
    Done,
    /// It came to nothing.
    Over(NotApproved),
}

/// Why nobody was approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApproved {
    /// Another one is under way here.
    #[error("another `tributary approve` is under way on this device")]
    Busy,
    /// There is no link.
    #[error("there is no link with it now")]
    NotLinked,
    /// The other side's person said no, or its device ended it.
    #[error(
        "the other device ended it: the code was not confirmed there, or it asked for something else meanwhile"
    )]
    Declined,
    /// This side's person said no.
    #[error("the codes differ, so somebody may be in between: nobody was approved")]
    Differ,
    /// Two at once.
    #[error(
        "another device asks at the same time, so nobody was approved: `tributary approve` lists them. Wait two minutes, \
         or `tributary block` the one that does not belong here"
    )]
    Overlap,
    /// Too late.
    #[error("nobody confirmed within two minutes: run `tributary approve` on both devices again")]
    TooLate,
    /// The link broke.
    #[error("the link with it broke: run `tributary approve` on both devices again")]
    Gone,
    /// The other side does not keep to its commitment.
    #[error("the other device broke the protocol, so somebody may be in between: nobody was approved")]
    Broken,
}

/// A person at the other side wants to approve this device.
#[derive(Debug)]
pub(super) struct Ask {
    commitment: Commitment,
    until: Instant,
}

impl Ask {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }
}

/// Under way.
#[derive(Debug)]
pub(super) struct Approving {
    peer: PeerId,
    until: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(Sas),
    Committed(Committed),
    Shown {
        mine: bool,
        theirs: bool,
    },
    /// For a moment, while it goes from one to another.
    Over,
}

impl Ceremonies {
    /// This device's person wants to approve a peer; `nonce` is random.
    ///
    /// # Errors
    /// Where it cannot begin.
    pub fn approve(&mut self, peer: PeerId, nonce: Nonce, now: Instant) -> Result<Vec<Do>, NotApproved> {
        if self.approving.is_some() {
            return Err(NotApproved::Busy);
        }
        if self.asking().any(|other| other != peer) {
            return Err(NotApproved::Overlap);
        }
        let near = self.near.get_mut(&peer).ok_or(NotApproved::NotLinked)?;
        let sas = Sas::new(nonce, near.ends);
        let mut todo = vec![say_look(peer, Look::Commit(sas.commitment()))];
        let state = match near.ask.take() {
            Some(ask) => {
                let both = sas.both(ask.commitment);
                todo.push(say_look(peer, Look::Reveal(both.reveal())));
                State::Committed(both)
            }
            None => {
                todo.push(Do::Approving(Looked::Waiting));
                State::Waiting(sas)
            }
        };
        let until = now + APPROVE_WITHIN;
        self.approving = Some(Approving { peer, until, state });
        Ok(todo)
    }

    /// This device's person says whether the codes are the same.
    pub fn compared(&mut self, same: bool) -> Vec<Do> {
        let Some(approving) = &mut self.approving else {
            return Vec::new();
        };
        let peer = approving.peer;
        match &mut approving.state {
            State::Shown { mine, .. } if same => *mine = true,
            _ if same => return Vec::new(),
            _ => return self.end_approving(NotApproved::Differ),
        }
        let mut todo = vec![say_look(peer, Look::Yes)];
        todo.extend(self.both_said_yes());
        todo
    }

    /// This device's person has gone.
    pub fn stop_approving(&mut self) -> Vec<Do> {
        self.end_approving(NotApproved::Gone)
    }

    pub(super) fn by_code(&mut self, peer: PeerId, look: Look, now: Instant) -> Vec<Do> {
        let with = self.approving.as_mut().filter(|a| a.peer == peer);
        match (look, with) {
            (
                Look::Commit(theirs),
                Some(Approving {
                    state: state @ State::Waiting(_),
                    ..
                }),
            ) => {
                let State::Waiting(sas) = std::mem::replace(state, State::Over) else {
                    return Vec::new();
                };
                let both = sas.both(theirs);
                let reveal = Look::Reveal(both.reveal());
                *state = State::Committed(both);
                vec![say_look(peer, reveal)]
            }
            (Look::Commit(theirs), _) => self.asked_by(peer, theirs, now),
            (Look::Reveal(nonce), Some(approving)) => {
                let State::Committed(both) = std::mem::replace(&mut approving.state, State::Over) else {
                    return self.end_approving(NotApproved::Broken);
                };
                match both.code(&nonce) {
                    Ok(code) => {
                        approving.state = State::Shown {
                            mine: false,
                            theirs: false,
                        };
                        vec![Do::Approving(Looked::Code(code))]
                    }
                    Err(_) => self.end_approving(NotApproved::Broken),
                }
            }
            (Look::Yes, Some(approving)) => match &mut approving.state {
                State::Shown { theirs, .. } => {
                    *theirs = true;
                    self.both_said_yes()
                }
                _ => self.end_approving(NotApproved::Broken),
            },
            (Look::No, Some(_)) => {
                self.approving = None;
                vec![Do::Approving(Looked::Over(NotApproved::Declined))]
            }
            (Look::No, None) => {
                if let Some(near) = self.near.get_mut(&peer) {
                    near.ask = None;
                }
                Vec::new()
            }
            (Look::Reveal(_) | Look::Yes, None) => Vec::new(),
        }
    }

    /// A person at another device wants to approve this one. Where one here is at it with a third, that is one too many;
    /// where it is the same one, it began anew.
    fn asked_by(&mut self, peer: PeerId, commitment: Commitment, now: Instant) -> Vec<Do> {
        if let Some(near) = self.near.get_mut(&peer) {
            let until = now + APPROVE_WITHIN;
            near.ask = Some(Ask { commitment, until });
        }
        if let Some(more) = ASKS.pass() {
            tracing::info!(peer = %peer.short(), more, "a person wants to approve this device: run `tributary approve` here too");
        }
        let began_anew = self.approving.as_ref().is_some_and(|a| a.peer == peer);
        if began_anew {
            self.approving = None;
            return vec![Do::Approving(Looked::Over(NotApproved::Declined))];
        }
        self.end_approving(NotApproved::Overlap)
    }

    fn both_said_yes(&mut self) -> Vec<Do> {
        let yes = |a: &mut Approving| {
            matches!(
                a.state,
                State::Shown {
                    mine: true,
                    theirs: true
                }
            )
        };
        let Some(approving) = self.approving.take_if(yes) else {
            return Vec::new();
        };
        let vouch = Do::Vouch {
            peer: approving.peer,
            may_vouch: true,
            way: Way::Code,
        };
        vec![vouch, Do::Approving(Looked::Done)]
    }

    pub(super) fn approve_in_time(&mut self, now: Instant) -> Vec<Do> {
        match &self.approving {
            Some(approving) if now >= approving.until => self.end_approving(NotApproved::TooLate),
            _ => Vec::new(),
        }
    }

    /// Ends it, if it is with that peer, whose link is gone.
    pub(super) fn end_approving_with(&mut self, peer: PeerId, why: NotApproved) -> Vec<Do> {
        let with = self.approving.take_if(|a| a.peer == peer);
        with.map(|_| Do::Approving(Looked::Over(why)))
            .into_iter()
            .collect()
    }

    fn end_approving(&mut self, why: NotApproved) -> Vec<Do> {
        let Some(approving) = self.approving.take() else {
            return Vec::new();
        };
        vec![
            say_look(approving.peer, Look::No),
            Do::Approving(Looked::Over(why)),
        ]
    }
}
