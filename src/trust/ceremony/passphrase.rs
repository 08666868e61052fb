//! Two devices of one passphrase find out by themselves, as soon as there is a link.
//!
//! The one with the smaller id begins; the other one says that it is ready, so that also a device which is a member to
//! the one and not yet to the other comes in. Invariant: a proof is shown, or looked at, only after a guess was counted
//! for that peer; a right run gives it back.

use std::time::Instant;

use crate::types::PeerId;

use super::super::pake::{Keyed, Pake, Purpose};
use super::super::words::{No, Step, Words};
use super::{Ceremonies, Do, Near, Standing, Way};

/// A run on one link.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// This side began one on this link: it does not begin another.
    began: bool,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// This side has sent its half.
    Opened(Box<Pake>),
    /// This side has shown its proof.
    Answered(Keyed),
}

impl Ceremonies {
    /// Begins with a new link.
    pub(super) fn introduce(&mut self, peer: PeerId) -> Vec<Do> {
        match self.near.get(&peer) {
            Some(near) if near.ends.me < peer => self.open(peer),
            Some(_) if self.passphrase.is_some() => vec![say(peer, Step::Ready)],
            _ => Vec::new(),
        }
    }

    pub(super) fn by_passphrase(
        &mut self,
        peer: PeerId,
        step: Step,
        standing: Standing,
        now: Instant,
    ) -> Vec<Do> {
        let out = standing == Standing::PutOut;
        match step {
            Step::Ready if !out => self.open(peer),
            Step::Open(_) | Step::Answer(..) if out => vec![say(peer, Step::No(No::Closed))],
            Step::Open(point) => self.answer(peer, &point, now),
            Step::Answer(point, tag) => self.confirm(peer, &point, &tag, now),
            Step::Confirm(tag) => self.confirmed(peer, &tag),
            Step::No(why) => {
                if !matches!(self.idle(peer), State::Idle) {
                    tracing::info!(peer = %peer.short(), ?why, "not of one passphrase");
                }
                Vec::new()
            }
            Step::Ready | Step::Done => Vec::new(),
        }
    }

    fn open(&mut self, peer: PeerId) -> Vec<Do> {
        let Some((near, secret)) = self.near.get_mut(&peer).zip(self.passphrase.as_ref()) else {
            return Vec::new();
        };
        if near.run.began || near.ends.me > peer {
            return Vec::new();
        }
        let pake = Pake::new(secret.bytes(), Purpose::Passphrase, &near.ends);
        let opens = say(peer, Step::Open(pake.point()));
        near.run = Run {
            began: true,
            state: State::Opened(Box::new(pake)),
        };
        vec![opens]
    }

    fn answer(&mut self, peer: PeerId, point: &[u8; 32], now: Instant) -> Vec<Do> {
        let Some((near, secret)) = self.near.get(&peer).zip(self.passphrase.as_ref()) else {
            return vec![say(peer, Step::No(No::Unknown))];
        };
        if near.ends.me < peer {
            return Vec::new();
        }
        let pake = Pake::new(secret.bytes(), Purpose::Passphrase, &near.ends);
        let mine = pake.point();
        let Ok(keyed) = pake.finish(point) else {
            return vec![say(peer, Step::No(No::Wrong))];
        };
        if !self.may_guess(peer, now) {
            return vec![say(peer, Step::No(No::Closed))];
        }
        let answer = Step::Answer(mine, keyed.tag());
        self.set(peer, State::Answered(keyed));
        vec![say(peer, answer)]
    }

    fn confirm(&mut self, peer: PeerId, point: &[u8; 32], tag: &[u8; 32], now: Instant) -> Vec<Do> {
        let State::Opened(pake) = self.idle(peer) else {
            return Vec::new();
        };
        if !self.may_guess(peer, now) {
            return vec![say(peer, Step::No(No::Closed))];
        }
        match pake.finish(point) {
            Ok(keyed) if keyed.is_right(tag) => {
                self.guesses.give_back(peer);
                vec![vouch(peer), say(peer, Step::Confirm(keyed.tag()))]
            }
            _ => wrong(peer),
        }
    }

    fn confirmed(&mut self, peer: PeerId, tag: &[u8; 32]) -> Vec<Do> {
        match self.idle(peer) {
            State::Answered(keyed) if keyed.is_right(tag) => {
                self.guesses.give_back(peer);
                vec![vouch(peer)]
            }
            State::Answered(_) => wrong(peer),
            _ => Vec::new(),
        }
    }

    fn may_guess(&mut self, peer: PeerId, now: Instant) -> bool {
        let may = self.guesses.spend(peer, now);
        let closed = self.guesses.is_closed();
        if !may && closed && !self.told_closed {
            tracing::warn!(
                "too many wrong passphrases within an hour: for an hour the passphrase lets nobody in. \
                 `tributary invite` and `tributary approve` do, and members stay members"
            );
        }
        self.told_closed = closed && (self.told_closed || !may);
        may
    }

    fn idle(&mut self, peer: PeerId) -> State {
        self.set(peer, State::Idle)
    }

    fn set(&mut self, peer: PeerId, state: State) -> State {
        let near = self.near.get_mut(&peer);
        near.map_or(State::Idle, |near: &mut Near| {
            std::mem::replace(&mut near.run.state, state)
        })
    }
}

fn wrong(peer: PeerId) -> Vec<Do> {
    tracing::warn!(peer = %peer.short(), "a device knows another passphrase: this one does not let it in");
    vec![say(peer, Step::No(No::Wrong))]
}

const fn say(peer: PeerId, step: Step) -> Do {
    Do::Say(peer, Words::Passphrase(step))
}

const fn vouch(peer: PeerId) -> Do {
    Do::Vouch {
        peer,
        may_vouch: true,
        way: Way::Passphrase,
    }
}
