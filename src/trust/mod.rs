//! Trust: an open lane in a locked house. Who joins by itself is a neighbour and gets only what cannot hurt; who was
//! vouched for is a member. What that means is one table (`rights`), who it is follows from signed statements (`table`).
//!
//! [`Trust`] is this device's view, shared by all who ask. Invariants: a right is only ever asked for through
//! [`Tier::may`]; every change is in the file before anybody hears of it, and the file holds the old state or the new one;
//! nothing is believed without its signer's signature.

pub mod ceremony;
mod guesses;
mod pake;
mod rights;
mod sas;
mod statement;
mod table;
mod token;
mod words;

pub use guesses::{ALL_WINDOW, Guesses, OF_ALL, OF_PEER, PEER_WINDOW};
pub use pake::{Ends, Keyed, Malformed, Pake, Purpose, Secret};
pub use rights::{RIGHTS, Right, Tier};
pub use sas::{Broken, Code, Committed, Sas};
pub use statement::{Said, Signed, Statement};
pub use table::{MAX_STATEMENTS, Table, View, Vouched};
pub use token::{Invitation, MAX_TOKENS, MAX_VALID, Token, TokenError, TokenId, Tokens, VALID};
pub use words::{Commitment, Look, MAX_WORDS, No, Nonce, Point, Step, Tag, Words};

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::{DAMAGED, DeviceKey, StateDir, StateError, write_atomic};
use crate::types::{PeerId, bytes_from_hex, hex};

const FILE: &str = "trust.json";
/// Names remembered, for people: those of twice as many devices as can have a link.
const MAX_NAMES: usize = 128;

/// Why a statement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Of oneself nothing can be said but that one leaves.
    #[error("that is this device itself")]
    Oneself,
    /// There is no later epoch, or no room.
    #[error("the key of that device is used up: give it a new identity by removing its identity.key")]
    UsedUp,
    /// The file.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How somebody is put out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOut {
    /// A neighbour again; those whom it vouched for stay.
    Forget,
    /// Without a link from now on, and those whom nobody else vouched for fall with it.
    Block,
}

/// Who is trusted, as this device sees it. Clones share it.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    key: DeviceKey,
    /// `None`: another process keeps it, or nobody.
    file: Option<PathBuf>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    view: View,
    names: BTreeMap<PeerId, String>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    statements: Vec<String>,
    #[serde(default)]
    names: BTreeMap<String, String>,
}

impl State {
    fn forget_all(&mut self) {
        self.table.clear();
        self.names.clear();
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("me", &self.me())
            .finish_non_exhaustive()
    }
}

impl Trust {
    /// Nobody is trusted, and nothing is kept: for a process beside the daemon, and for tests.
    pub fn none(key: &DeviceKey) -> Self {
        Self::with(key, None, State::default())
    }

    /// Reads what was kept. A damaged file is set aside, and nobody is trusted until somebody vouches again; a statement
    /// in it that is damaged is left out.
    ///
    /// # Errors
    /// Where the file cannot be read, or not be set aside.
    pub fn load(state: &StateDir, key: &DeviceKey) -> Result<Self, StateError> {
        if !state.is_ours() {
            return Ok(Self::none(key));
        }
        let kept = match state.read(FILE)? {
            None => Kept::default(),
            Some(bytes) => match serde_json::from_slice(&bytes) {
                Ok(kept) => kept,
                Err(error) => {
                    let aside = state.set_aside(FILE, DAMAGED)?;
                    tracing::error!(
                        %error,
                        "{} was damaged: this device trusts nobody until it is vouched for again. The old file is kept as {}",
                        state.path(FILE).display(),
                        aside.display()
                    );
                    Kept::default()
                }
            },
        };
        let mut new = State::default();
        for text in kept.statements.iter().take(MAX_STATEMENTS) {
            let signed = bytes_from_hex(text).and_then(|bytes| Signed::read(&bytes));
            match signed {
                Some(signed) => drop(new.table.merge(signed, key.id())),
                None => tracing::warn!(
                    "a statement in {} is damaged and left out",
                    state.path(FILE).display()
                ),
            }
        }
        let names = kept.names.into_iter().take(MAX_NAMES);
        new.names = names.filter_map(|(id, name)| Some((peer(&id)?, name))).collect();
        new.view = new.table.view(key.id());
        Ok(Self::with(key, Some(state.path(FILE)), new))
    }

    /// This device.
    pub fn me(&self) -> PeerId {
        self.0.key.id()
    }

    /// How far a peer is trusted now.
    pub fn tier(&self, peer: PeerId) -> Tier {
        let state = self.state();
        match () {
            () if state.view.members.contains_key(&peer) => Tier::Member,
            () if state.view.blocked.contains(&peer) => Tier::Blocked,
            () => Tier::Neighbour,
        }
    }

    /// Whether a peer has a right now.
    pub fn may(&self, peer: PeerId, right: Right) -> bool {
        self.tier(peer).may(right)
    }

    /// Who is what.
    pub fn view(&self) -> View {
        self.state().view.clone()
    }

    /// What a device was last called; for people only.
    pub fn name(&self, peer: PeerId) -> Option<String> {
        self.state().names.get(&peer).cloned()
    }

    /// Rings at every change of who is what.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Everything that members are told.
    pub fn statements(&self) -> Vec<Signed> {
        self.state().table.all().cloned().collect()
    }

    /// Notes what a member, or who becomes one, is called.
    pub fn called(&self, peer: PeerId, name: &str) {
        let mut state = self.state();
        let known = state.names.get(&peer).is_some_and(|known| known == name);
        let counts = state.view.members.contains_key(&peer) || state.view.blocked.contains(&peer);
        if known || !counts {
            return;
        }
        let keep = state.view.clone();
        state
            .names
            .retain(|id, _| keep.members.contains_key(id) || keep.blocked.contains(id));
        if state.names.len() < MAX_NAMES {
            state.names.insert(peer, name.to_owned());
            // For people only: the next change writes it if this fails.
            let _ = self.write(&state);
        }
    }

    /// Vouches for a device: it is a member from now on, here and at all members' once they hear of it.
    ///
    /// # Errors
    /// Where it cannot be said, or not be kept.
    pub fn vouch(&self, subject: PeerId, may_vouch: bool) -> Result<(), TrustError> {
        self.change(|state| self.say_vouch(state, subject, may_vouch))
    }

    /// Puts a device out; gives those who fell with it.
    ///
    /// # Errors
    /// Where it cannot be said, or not be kept.
    pub fn put_out(&self, subject: PeerId, how: PutOut) -> Result<Vec<PeerId>, TrustError> {
        self.change(|state| {
            let before = state.view.clone();
            let block = how == PutOut::Block;
            let mut epoch = state.table.last_epoch(subject);
            if before.blocked.contains(&subject) && !block {
                // Within one epoch the stricter word stays.
                epoch = epoch.checked_add(1).ok_or(TrustError::UsedUp)?;
            }
            let said = Said::Revoke { block };
            self.say(state, Statement { subject, said, epoch })?;
            let after = state.table.view(self.me());
            let fell = |id: &PeerId| *id != subject && !after.members.contains_key(id);
            let fallen = || before.members.iter().filter(|(id, _)| fell(id));
            if how == PutOut::Block {
                return Ok(fallen().map(|(id, _)| *id).collect());
            }
            for (orphan, vouched) in fallen() {
                self.say_vouch(state, *orphan, vouched.may_vouch)?;
            }
            Ok(Vec::new())
        })
    }

    /// Says that this device leaves its household: it knows nobody any more, and its word of that is all it keeps, for
    /// members who were not there to hear it.
    ///
    /// # Errors
    /// Where that cannot be said, or not be kept.
    pub fn leave(&self) -> Result<(), TrustError> {
        self.change(|state| {
            let subject = self.me();
            let epoch = state.table.last_epoch(subject);
            let said = Said::Revoke { block: false };
            let farewell = Signed::new(Statement { subject, said, epoch }, &self.0.key);
            state.forget_all();
            state.table.merge(farewell.ok_or(TrustError::UsedUp)?, subject);
            Ok(())
        })
    }

    /// What `peer` is to be told that is no member (any more): that it was put out, or that this device left. A member's
    /// word is all that it will believe of it.
    pub fn last_word(&self, peer: PeerId) -> Option<Signed> {
        let state = self.state();
        let revocation = state.table.revocation(peer);
        revocation.or_else(|| state.table.revocation(self.me())).cloned()
    }

    /// Takes over what a peer passes on, as far as it is entitled to; false where nothing of it was new.
    ///
    /// # Errors
    /// Where it cannot be kept; it holds all the same.
    pub fn hear(&self, from: PeerId, statements: Vec<Signed>) -> Result<bool, TrustError> {
        let all = self.may(from, Right::Statements);
        // Whoever it is may say that it leaves.
        let leaves = |s: &Signed| {
            s.signer() == from
                && s.statement().subject == from
                && s.statement().said == Said::Revoke { block: false }
        };
        let me = self.me();
        let mut put_out = None;
        let new = self.change(|state| {
            let mut new = false;
            for signed in statements {
                new |= (all || leaves(&signed)) && state.table.merge(signed, me);
            }
            put_out = state.table.view(me).put_out_by;
            if put_out.is_some() {
                state.forget_all();
            }
            Ok(new)
        });
        if let Some(by) = put_out {
            let by = by.short();
            tracing::warn!(%by, "this device was put out of its household: it is a neighbour like any other now");
        }
        new
    }

    fn with(key: &DeviceKey, file: Option<PathBuf>, state: State) -> Self {
        Self(Arc::new(Inner {
            key: key.clone(),
            file,
            state: Mutex::new(state),
            changes: watch::channel(0).0,
        }))
    }

    fn say_vouch(&self, state: &mut State, subject: PeerId, may_vouch: bool) -> Result<(), TrustError> {
        let epoch = state.table.next_epoch(self.me(), subject, may_vouch);
        let statement = Statement {
            subject,
            said: Said::Vouch { may_vouch },
            epoch: epoch.ok_or(TrustError::UsedUp)?,
        };
        self.say(state, statement)
    }

    fn say(&self, state: &mut State, statement: Statement) -> Result<(), TrustError> {
        if statement.subject == self.me() {
            return Err(TrustError::Oneself);
        }
        let signed = Signed::new(statement, &self.0.key).ok_or(TrustError::UsedUp)?;
        state.table.merge(signed, self.me());
        Ok(())
    }

    /// Changes the table, and tells if that changed anything. What cannot be kept holds as long as the process does: to
    /// put somebody out must not depend on a full disk.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, TrustError>) -> Result<T, TrustError> {
        let mut state = self.state();
        let before: Vec<Signed> = state.table.all().cloned().collect();
        let result = change(&mut state)?;
        if state.table.all().eq(before.iter()) {
            return Ok(result);
        }
        state.view = state.table.view(self.me());
        let written = self.write(&state);
        drop(state);
        self.0.changes.send_modify(|n| *n += 1);
        written.map(|()| result)
    }

    fn write(&self, state: &State) -> Result<(), TrustError> {
        let Some(path) = &self.0.file else { return Ok(()) };
        let kept = Kept {
            statements: state.table.all().map(|signed| hex(signed.bytes())).collect(),
            names: state
                .names
                .iter()
                .map(|(id, name)| (id.to_string(), name.clone()))
                .collect(),
        };
        let written = serde_json::to_vec(&kept)
            .map_err(std::io::Error::other)
            .and_then(|bytes| write_atomic(path, &bytes));
        written.map_err(|source| TrustError::Write {
            path: path.clone(),
            source,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one call, and the view is made anew from the table.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn peer(id: &str) -> Option<PeerId> {
    Some(PeerId(bytes_from_hex(id)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
