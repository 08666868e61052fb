//! Devices and what they say to each other, without a network and without a clock.

use std::collections::VecDeque;

use super::super::*;
use crate::trust::{Code, Nonce, VALID};

pub(super) fn seeded(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

pub(super) fn id(n: u64) -> PeerId {
    PeerId(seeded(n))
}

pub(super) fn token(n: u8) -> Token {
    Token::new([n; 16])
}

/// Devices and the links between them, without a network: what one says the other hears, in order.
pub(super) struct World {
    pub(super) devices: BTreeMap<PeerId, Ceremonies>,
    /// Who vouched for whom, by what.
    pub(super) vouched: Vec<(PeerId, PeerId, Way)>,
    pub(super) joined: Vec<(PeerId, Result<PeerId, NotJoined>)>,
    pub(super) looked: Vec<(PeerId, Looked)>,
    /// Everything that was said: from, to, what.
    pub(super) said: Vec<(PeerId, PeerId, Words)>,
    pub(super) wire: VecDeque<(PeerId, PeerId, Words)>,
    pub(super) out: Vec<PeerId>,
    pub(super) now: Instant,
}

impl World {
    pub(super) fn new(devices: impl IntoIterator<Item = (PeerId, Option<&'static [u8]>)>) -> Self {
        let device = |(id, secret): (PeerId, Option<&'static [u8]>)| {
            let secret = secret.map(|words| Secret::new(words.to_vec()));
            (id, Ceremonies::new(secret))
        };
        Self {
            devices: devices.into_iter().map(device).collect(),
            vouched: Vec::new(),
            joined: Vec::new(),
            looked: Vec::new(),
            said: Vec::new(),
            wire: VecDeque::new(),
            out: Vec::new(),
            now: Instant::now(),
        }
    }

    pub(super) fn device(&mut self, id: PeerId) -> &mut Ceremonies {
        self.devices.get_mut(&id).unwrap()
    }

    pub(super) fn standing(&self, me: PeerId, peer: PeerId) -> Standing {
        if self.out.contains(&peer) {
            return Standing::PutOut;
        }
        match self.vouched.iter().any(|(by, of, _)| (*by, *of) == (me, peer)) {
            true => Standing::Member,
            false => Standing::Stranger,
        }
    }

    /// Links two; both ends see what `channel` says.
    pub(super) fn link(&mut self, a: PeerId, b: PeerId, channel: u64) {
        for (me, peer) in [(a, b), (b, a)] {
            self.end(me, peer, channel);
        }
    }

    /// One end of a link.
    pub(super) fn end(&mut self, me: PeerId, peer: PeerId, channel: u64) {
        let channel = seeded(channel);
        let standing = self.standing(me, peer);
        if let Some(device) = self.devices.get_mut(&me) {
            let todo = device.linked(Ends { me, peer, channel }, standing);
            self.take(me, todo);
        }
    }

    pub(super) fn take(&mut self, me: PeerId, todo: Vec<Do>) {
        for one in todo {
            match one {
                Do::Say(peer, words) => self.wire.push_back((me, peer, words)),
                Do::Vouch { peer, way, .. } => self.vouched.push((me, peer, way)),
                Do::Joined(outcome) => self.joined.push((me, outcome)),
                Do::Approving(looked) => self.looked.push((me, looked)),
            }
        }
    }

    /// Delivers everything, and what is said to that; `route` says who hears it, and as whom it was said.
    pub(super) fn settle_by(
        &mut self,
        route: impl Fn(PeerId, PeerId, Words) -> Option<(PeerId, PeerId, Words)>,
    ) {
        while let Some((from, to, words)) = self.wire.pop_front() {
            self.said.push((from, to, words));
            let Some((from, to, words)) = route(from, to, words) else {
                continue;
            };
            let (standing, now) = (self.standing(to, from), self.now);
            if let Some(device) = self.devices.get_mut(&to) {
                let todo = device.heard(from, &words.bytes(), standing, now);
                self.take(to, todo);
            }
        }
    }

    pub(super) fn settle(&mut self) {
        self.settle_by(|from, to, words| Some((from, to, words)));
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        let ids: Vec<PeerId> = self.devices.keys().copied().collect();
        for id in ids {
            let now = self.now;
            let todo = self.device(id).tick(now);
            self.take(id, todo);
        }
        self.settle();
    }

    pub(super) fn invite(&mut self, by: PeerId, n: u8) {
        let now = self.now;
        assert!(self.device(by).invite(token(n), true, VALID, now));
    }

    pub(super) fn join(&mut self, who: PeerId, n: u8) {
        let now = self.now;
        let todo = self.device(who).join(token(n), now).unwrap();
        self.take(who, todo);
    }

    pub(super) fn approve(&mut self, who: PeerId, whom: PeerId, nonce: Nonce) -> Result<(), NotApproved> {
        let now = self.now;
        let todo = self.device(who).approve(whom, nonce, now)?;
        self.take(who, todo);
        Ok(())
    }

    pub(super) fn compared(&mut self, who: PeerId, same: bool) {
        let todo = self.device(who).compared(same);
        self.take(who, todo);
    }

    pub(super) fn code(&self, of: PeerId) -> Option<Code> {
        self.looked.iter().rev().find_map(|(who, looked)| match looked {
            Looked::Code(code) if *who == of => Some(*code),
            _ => None,
        })
    }

    /// Whether both vouch for each other.
    pub(super) fn are_members(&self, a: PeerId, b: PeerId) -> bool {
        [(a, b), (b, a)].map(|(a, b)| self.standing(a, b)) == [Standing::Member; 2]
    }
}
