//! Vouching on real links: hands what peers say to the ceremonies, says what they answer, and keeps what came of it.
//!
//! Everything that decides is in [`crate::trust::ceremony`]. Invariants: a link's secret is its own, so that what was said
//! on one link is nothing on another; who waits for an outcome and goes ends what it waited for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::rand::{SystemRandom, generate};
use tokio::sync::{mpsc, oneshot};

use crate::api::convert::{REFUSED, UNEXPECTED};
use crate::api::{Changed, Compare, Comparing, Failed, Named, Reply};
use crate::link::Link;
use crate::trust::ceremony::{Ceremonies, Do, Looked, NotApproved, NotJoined, Standing};
use crate::trust::{Ends, Said, Secret, Tier, Token, Trust};
use crate::types::PeerId;

/// What is exported from the TLS session of a link for all ceremonies on it.
const LABEL: &[u8] = b"EXPORTER-tributary-1-vouching";
/// An approval has three pieces of news.
const NEWS: usize = 8;

/// All ceremonies of this device. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Vouching(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    trust: Trust,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ceremonies: Ceremonies,
    links: BTreeMap<PeerId, Arc<Link>>,
    /// Members that had a link, and when it broke.
    seen: BTreeMap<PeerId, Instant>,
    /// Counts those who wait.
    number: u64,
    join: Option<(u64, oneshot::Sender<Result<PeerId, NotJoined>>)>,
    approve: Option<(u64, Named, mpsc::Sender<Reply>)>,
}

impl Vouching {
    pub(super) fn new(trust: Trust, passphrase: Option<Secret>) -> Self {
        let state = State {
            ceremonies: Ceremonies::new(passphrase),
            links: BTreeMap::new(),
            seen: BTreeMap::new(),
            number: 0,
            join: None,
            approve: None,
        };
        Self(Arc::new(Inner {
            trust,
            state: Mutex::new(state),
        }))
    }

    /// A peer is there.
    pub(super) fn linked(&self, link: &Arc<Link>) {
        let Some(channel) = link.exporter(LABEL) else {
            return;
        };
        let peer = link.peer();
        let ends = Ends {
            me: self.0.trust.me(),
            peer,
            channel,
        };
        let mut state = self.state();
        state.links.insert(peer, Arc::clone(link));
        state.seen.remove(&peer);
        let todo = state.ceremonies.linked(ends, self.standing(peer));
        self.carry_out(&mut state, todo);
    }

    /// A peer is gone.
    pub(super) fn gone(&self, link: &Arc<Link>) {
        let mut state = self.state();
        let peer = link.peer();
        if !state
            .links
            .get(&peer)
            .is_some_and(|known| Arc::ptr_eq(known, link))
        {
            return;
        }
        state.links.remove(&peer);
        state
            .seen
            .retain(|peer, _| self.0.trust.tier(*peer) == Tier::Member);
        state.seen.insert(peer, Instant::now());
        let todo = state.ceremonies.gone(peer);
        self.carry_out(&mut state, todo);
    }

    /// A peer said something.
    pub(super) fn heard(&self, link: &Arc<Link>, words: &[u8]) {
        let mut state = self.state();
        let peer = link.peer();
        if state
            .links
            .get(&peer)
            .is_some_and(|known| Arc::ptr_eq(known, link))
        {
            let standing = self.standing(peer);
            let todo = state.ceremonies.heard(peer, words, standing, Instant::now());
            self.carry_out(&mut state, todo);
        }
    }

    /// To be called every second.
    pub(super) fn tick(&self) {
        let mut state = self.state();
        let todo = state.ceremonies.tick(Instant::now());
        self.carry_out(&mut state, todo);
    }

    /// Makes a token.
    pub(super) fn invite(&self, may_vouch: bool, valid: Duration) -> Result<Token, Failed> {
        let token = Token::new(random()?);
        let now = Instant::now();
        let made = self
            .state()
            .ceremonies
            .invite(token.clone(), may_vouch, valid, now);
        made.then_some(token).ok_or_else(|| {
            let open = crate::trust::MAX_TOKENS;
            refused(format!(
                "{open} tokens are open already: use one of them, or wait until one expires"
            ))
        })
    }

    /// Comes with a token, and waits for what becomes of it.
    pub(super) async fn join(self, token: Token) -> Result<PeerId, Failed> {
        let (sender, outcome) = oneshot::channel();
        let waiting = {
            let mut state = self.state();
            let begun = state.ceremonies.join(token, Instant::now());
            let todo = begun.map_err(|why| refused(why.to_string()))?;
            state.number += 1;
            state.join = Some((state.number, sender));
            let number = state.number;
            self.carry_out(&mut state, todo);
            Joining {
                vouching: self.clone(),
                number,
            }
        };
        let outcome = outcome.await;
        drop(waiting);
        outcome
            .unwrap_or(Err(NotJoined::Silent))
            .map_err(|why| refused(why.to_string()))
    }

    /// Begins to approve a peer.
    pub(super) fn approve(
        &self,
        peer: PeerId,
        name: Named,
    ) -> Result<(mpsc::Receiver<Reply>, Box<dyn Comparing>), Failed> {
        let nonce = random()?;
        let mut state = self.state();
        let begun = state.ceremonies.approve(peer, nonce, Instant::now());
        let todo = begun.map_err(|why| refused(why.to_string()))?;
        let (sender, news) = mpsc::channel(NEWS);
        state.number += 1;
        let number = state.number;
        state.approve = Some((number, name, sender));
        self.carry_out(&mut state, todo);
        let vouching = self.clone();
        Ok((news, Box::new(Approving { vouching, number })))
    }

    /// This device leaves: a passphrase must not bring it back at once.
    pub(super) fn forget_passphrase(&self) -> bool {
        self.state().ceremonies.forget_passphrase()
    }

    /// Whose people want to approve this device.
    pub(super) fn asking(&self) -> Vec<PeerId> {
        self.state().ceremonies.asking().collect()
    }

    /// Since when a member has no link; `None`: there was none since the start.
    pub(super) fn seen(&self, peer: PeerId) -> Option<Instant> {
        self.state().seen.get(&peer).copied()
    }

    fn standing(&self, peer: PeerId) -> Standing {
        if self.0.trust.tier(peer) == Tier::Member {
            return Standing::Member;
        }
        let said = self.0.trust.statements();
        // One that left by itself may come back with what it knows.
        let out = said.iter().any(|signed| {
            let statement = signed.statement();
            let revoked = matches!(statement.said, Said::Revoke { .. });
            revoked && statement.subject == peer && signed.signer() != peer
        });
        if out { Standing::PutOut } else { Standing::Stranger }
    }

    fn carry_out(&self, state: &mut State, todo: Vec<Do>) {
        for one in todo {
            match one {
                Do::Say(peer, words) => {
                    let said = state.links.get(&peer).is_some_and(|link| link.say(words.bytes()));
                    if !said {
                        tracing::debug!(peer = %peer.short(), "a step of a ceremony could not be sent");
                    }
                }
                Do::Vouch { peer, may_vouch, way } => {
                    let name = state.links.get(&peer).map(|link| link.name().to_owned());
                    tracing::info!(peer = %peer.short(), ?name, ?way, may_vouch, "this device vouches for a peer");
                    if let Err(error) = self.0.trust.vouch(peer, may_vouch) {
                        tracing::error!(%error, "that a peer was vouched for cannot be kept: it is forgotten at the next start");
                    }
                    if let Some(name) = name {
                        self.0.trust.called(peer, &name);
                    }
                }
                Do::Joined(outcome) => {
                    if let Some((_, waiting)) = state.join.take() {
                        // Who asked may have gone.
                        let _ = waiting.send(outcome);
                    }
                }
                Do::Approving(looked) => tell(state, looked),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one call.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells who approves how far it is.
fn tell(state: &mut State, looked: Looked) {
    let Some((_, device, sender)) = &state.approve else {
        return;
    };
    let device = device.clone();
    let (reply, over) = match looked {
        Looked::Waiting => (Reply::Compare(Compare::Waiting(device)), false),
        Looked::Code(code) => {
            let code = code.to_string();
            (Reply::Compare(Compare::Code { device, code }), false)
        }
        Looked::Done => (Reply::Changed(Changed::Vouched(device)), true),
        Looked::Over(why) => (Reply::Failed(refused(why.to_string())), true),
    };
    // There is room for all that there is to say.
    let _ = sender.try_send(reply);
    if over {
        state.approve = None;
    }
}

/// Somebody waits to have joined.
#[derive(Debug)]
struct Joining {
    vouching: Vouching,
    number: u64,
}

impl Drop for Joining {
    fn drop(&mut self) {
        let mut state = self.vouching.state();
        if state.join.take_if(|(number, _)| *number == self.number).is_some() {
            state.ceremonies.stop_joining();
        }
    }
}

/// Somebody approves.
#[derive(Debug)]
struct Approving {
    vouching: Vouching,
    number: u64,
}

impl Comparing for Approving {
    fn compared(&self, same: bool) {
        let mut state = self.vouching.state();
        if state
            .approve
            .as_ref()
            .is_some_and(|(number, ..)| *number == self.number)
        {
            let todo = state.ceremonies.compared(same);
            self.vouching.carry_out(&mut state, todo);
        }
    }
}

impl Drop for Approving {
    fn drop(&mut self) {
        let mut state = self.vouching.state();
        if state
            .approve
            .take_if(|(number, ..)| *number == self.number)
            .is_some()
        {
            let todo = state.ceremonies.stop_approving();
            self.vouching.carry_out(&mut state, todo);
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], Failed>
where
    [u8; N]: ring::rand::RandomlyConstructable,
{
    let random = generate::<[u8; N]>(&SystemRandom::new());
    random.map(ring::rand::Random::expose).map_err(|_| Failed {
        code: UNEXPECTED,
        message: "the system gives no random numbers".into(),
    })
}

pub(super) const fn refused(message: String) -> Failed {
    Failed {
        code: REFUSED,
        message,
    }
}

/// Why an approval cannot begin, of what only this side knows.
pub(super) fn not_linked(device: &Named) -> Failed {
    refused(format!("{device}: {}", NotApproved::NotLinked))
}
