//! All statements this device knows, and who is a member by them.
//!
//! Pure. Membership is seen from this device: a member is whom it vouched for, or whom a member that may vouch vouched for.
//! A revocation undoes every vouch of its epoch and of earlier ones, whoever made them. Invariants: the table only grows
//! towards later epochs, so what it says does not depend on the order in which statements came, nor on how often; and it
//! is bounded, whatever a member says.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::PeerId;

use super::statement::{Said, Signed, Statement};

/// Statements kept: every one of 32 devices about every other one, or, more likely, a few about each of the 64 that can
/// have a link. Some 200 kB.
pub const MAX_STATEMENTS: usize = 1024;
/// Subjects of one signer: twice as many devices as can have a link. A member that goes bad is bounded by it.
const MAX_OF_SIGNER: usize = 128;
/// Statements of signers nobody has vouched for yet: their vouch may come with the next message.
const MAX_UNKNOWN: usize = 64;

/// Whose statement, of whom, and which of the two kinds.
type Place = (PeerId, PeerId, bool);

/// The statements.
#[derive(Clone, Debug, Default)]
pub struct Table {
    statements: BTreeMap<Place, Signed>,
}

/// A member, as this device sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vouched {
    /// By whom.
    pub by: BTreeSet<PeerId>,
    /// It may vouch for others.
    pub may_vouch: bool,
}

/// Who is what, as one device sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Those of the household, without this device itself.
    pub members: BTreeMap<PeerId, Vouched>,
    /// Those who are to have no link.
    pub blocked: BTreeSet<PeerId>,
    /// Who put this device out, if it was.
    pub put_out_by: Option<PeerId>,
}

impl Table {
    /// Takes a statement over; false where it says nothing new, or there is no room for it.
    pub fn merge(&mut self, signed: Signed, me: PeerId) -> bool {
        let place = place(&signed);
        if let Some(known) = self.statements.get(&place) {
            let newer = rank(signed.statement()) > rank(known.statement());
            if newer {
                self.statements.insert(place, signed);
            }
            return newer;
        }
        if !self.has_room(&signed, me) {
            return false;
        }
        self.statements.insert(place, signed);
        true
    }

    /// All of them, in an order of their own.
    pub fn all(&self) -> impl Iterator<Item = &Signed> {
        self.statements.values()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.statements.clear();
    }

    /// The epoch for a vouch of `me` for `subject`: after every revocation there is, and after an own vouch that gave less.
    /// `None`: there is no later one.
    pub fn next_epoch(&self, me: PeerId, subject: PeerId, may_vouch: bool) -> Option<u32> {
        let of = |revoked| self.epoch(subject, revoked);
        let own = self.statements.get(&(me, subject, false)).map(Signed::statement);
        let gave_less = own.filter(|s| may_vouch && s.said == Said::Vouch { may_vouch: false });
        let after = of(true).max(gave_less.map_or(0, |s| s.epoch));
        Some(after.checked_add(1)?.max(of(false)))
    }

    /// The epoch for a revocation of `subject`: that of the latest vouch, or the one after an earlier revocation that says
    /// otherwise.
    pub fn last_epoch(&self, subject: PeerId) -> u32 {
        self.epoch(subject, false).max(self.epoch(subject, true)).max(1)
    }

    /// What undid every vouch for `subject`, if something did.
    pub fn revocation(&self, subject: PeerId) -> Option<&Signed> {
        let about = |s: &&Signed| s.statement().subject == subject && is_revocation(s.statement());
        let latest = self
            .statements
            .values()
            .filter(about)
            .max_by_key(|s| rank(s.statement()))?;
        (self.epoch(subject, false) <= latest.statement().epoch).then_some(latest)
    }

    /// Who is what to `me`.
    pub fn view(&self, me: PeerId) -> View {
        let ever = self.reach(me, &BTreeMap::new());
        let revoked = self.revoked(me, &ever);
        // Who left has nothing to be put out of, and may be somewhere else already.
        let put_out = revoked
            .get(&me)
            .filter(|r| r.by != me && self.epoch(me, false) <= r.epoch);
        if let Some(revoked) = put_out {
            return View {
                put_out_by: Some(revoked.by),
                ..View::default()
            };
        }
        let members = self.reach(me, &revoked);
        let blocked = revoked
            .iter()
            .filter(|(subject, r)| r.block && **subject != me && !members.contains_key(subject));
        View {
            blocked: blocked.map(|(subject, _)| *subject).collect(),
            members,
            put_out_by: None,
        }
    }

    fn epoch(&self, subject: PeerId, revoked: bool) -> u32 {
        let about = self
            .statements
            .values()
            .map(Signed::statement)
            .filter(|s| s.subject == subject);
        about
            .filter(|s| is_revocation(s) == revoked)
            .map(|s| s.epoch)
            .max()
            .unwrap_or_default()
    }

    /// Whom one gets to from `me` by vouches that `revoked` leaves standing. What one gets to only grows, so it ends.
    fn reach(&self, me: PeerId, revoked: &BTreeMap<PeerId, Revoked>) -> BTreeMap<PeerId, Vouched> {
        let mut reached: BTreeMap<PeerId, Vouched> = BTreeMap::new();
        loop {
            let mut grown = false;
            for signed in self.statements.values() {
                let Statement { subject, said, epoch } = *signed.statement();
                let Said::Vouch { may_vouch } = said else { continue };
                let by = signed.signer();
                let entitled = by == me || reached.get(&by).is_some_and(|v| v.may_vouch);
                let stands = revoked.get(&subject).is_none_or(|r| epoch > r.epoch);
                if subject == me || !entitled || !stands {
                    continue;
                }
                let vouched = reached.entry(subject).or_default();
                grown |= vouched.by.insert(by) || (may_vouch && !vouched.may_vouch);
                vouched.may_vouch |= may_vouch;
            }
            if !grown {
                return reached;
            }
        }
    }

    /// The latest revocation of each device, of those made by who was ever entitled to: one who was put out afterwards
    /// does not take back whom it had put out. Anybody may put itself out.
    fn revoked(&self, me: PeerId, ever: &BTreeMap<PeerId, Vouched>) -> BTreeMap<PeerId, Revoked> {
        let mut latest: BTreeMap<PeerId, Revoked> = BTreeMap::new();
        for signed in self.statements.values() {
            let Statement { subject, said, epoch } = *signed.statement();
            let Said::Revoke { block } = said else { continue };
            let by = signed.signer();
            let leaves = by == subject && !block;
            if by != me && !leaves && !ever.get(&by).is_some_and(|v| v.may_vouch) {
                continue;
            }
            let new = Revoked { epoch, block, by };
            let known = latest.entry(subject).or_insert(new);
            if (epoch, block) > (known.epoch, known.block) {
                *known = new;
            }
        }
        latest
    }

    /// A revocation always has room, and so has the owner's own word: else a member could keep itself from being put out,
    /// by a flood of statements, be they revocations of nobody.
    fn has_room(&mut self, signed: &Signed, me: PeerId) -> bool {
        // No limit is lower: an ordinary household's table is not looked through for each statement that it takes.
        if self.statements.len() < MAX_UNKNOWN {
            return true;
        }
        let by = signed.signer();
        let revocation = is_revocation(signed.statement());
        let of_signer = self.statements.keys().filter(|(signer, _, _)| *signer == by);
        if of_signer.count() >= 2 * MAX_OF_SIGNER && by != me {
            return false;
        }
        let ever = self.reach(me, &BTreeMap::new());
        let unknown = |signer: &PeerId| *signer != me && !ever.contains_key(signer);
        if unknown(&by) && self.statements.keys().filter(|(s, _, _)| unknown(s)).count() >= MAX_UNKNOWN {
            return false;
        }
        if self.statements.len() < MAX_STATEMENTS {
            return true;
        }
        let strangers = self.statements.keys().find(|(s, _, _)| unknown(s)).copied();
        // Of whoever else said most, a vouch before a revocation: a household's own devices say little.
        let crowd = || {
            let mut counts: BTreeMap<PeerId, usize> = BTreeMap::new();
            for (signer, _, _) in self.statements.keys() {
                *counts.entry(*signer).or_default() += 1;
            }
            let others = counts
                .into_iter()
                .filter(|(signer, _)| *signer != by && *signer != me);
            let loudest = others.max_by_key(|(_, n)| *n)?.0;
            let said = self.statements.keys().filter(|(signer, _, _)| *signer == loudest);
            said.min_by_key(|(_, _, revokes)| *revokes).copied()
        };
        match strangers.or_else(|| (revocation || by == me).then(crowd).flatten()) {
            Some(place) => self.statements.remove(&place).is_some(),
            None => false,
        }
    }
}

/// What counts of a revocation.
#[derive(Clone, Copy, Debug)]
struct Revoked {
    epoch: u32,
    block: bool,
    by: PeerId,
}

const fn is_revocation(statement: &Statement) -> bool {
    matches!(statement.said, Said::Revoke { .. })
}

const fn place(signed: &Signed) -> Place {
    let statement = signed.statement();
    (signed.signer(), statement.subject, is_revocation(statement))
}

/// Of two statements of one signer in one place the greater is kept: the later epoch, and within one the stricter.
const fn rank(statement: &Statement) -> (u32, bool) {
    match statement.said {
        Said::Vouch { may_vouch } => (statement.epoch, !may_vouch),
        Said::Revoke { block } => (statement.epoch, block),
    }
}

#[cfg(test)]
mod tests;
