//! A link while it stands: control messages both ways, and the peer's requests for tunnels, until either end leaves, breaks
//! the protocol or falls silent.
//!
//! Invariants: news that a peer has too often wait for their turn; what a peer may do less than before (its tier fell) ends its link at once; what it says of others is believed
//! as far as it is entitled to say it, and it is told no more than it may know.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, watch};

use crate::task::Seldom;
use crate::trust::{Right, Signed, Tier, Trust, TrustError};
use crate::types::PeerId;
use crate::uplink::limit::Bucket;

use super::reports;
use super::session::{LEAVING, PROTOCOL};
use super::tunnel::{self, Request};
use super::wire::{self, Home, Message, Offer, Refusal, WireError};
use super::{Inner, Lends, Link, LinkEvent};

/// The peer's tier fell: what it may do now is agreed on anew. The reason is the statement that says so.
const FELL: VarInt = VarInt::from_u32(8);
/// The peer is to have no link. The reason is the statement that says so.
pub(super) const BLOCKED: VarInt = VarInt::from_u32(9);
/// Steps of ceremonies that a peer may take at once, and a second: a run has four.
const STEPS_AT_ONCE: u64 = 16;
const STEPS_PER_SECOND: u64 = 2;
/// Steps waiting to be sent: two runs.
pub(super) const STEPS_WAITING: usize = 8;
/// Messages with statements that a peer may send at once, and a second: each may cost 256 signatures to check. All of a
/// large household's statements are four of them.
const TELLINGS_AT_ONCE: u64 = 16;
const TELLINGS_PER_SECOND: u64 = 4;
/// News of what a peer lends and of where its traffic ends that are taken at once, and a second: each has the node look at
/// everything anew. A peer tells rates every ten seconds, and more when its network changes.
const NEWS_AT_ONCE: u64 = 16;
const NEWS_PER_SECOND: u64 = 2;
/// A whole household may go at once and be seen to; a peer that flaps must not fill the log.
static GOINGS: Seldom = Seldom::new(40, Duration::from_secs(600));

/// The two control streams, once both ends have greeted.
pub(super) struct Control {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    /// What we last said we lend: later changes are told.
    pub(super) offers: watch::Receiver<Lends>,
    /// How far the peer was trusted when it was said.
    pub(super) tier: Tier,
}

/// Runs a link until either end leaves, breaks the protocol or falls silent.
pub(super) async fn live(
    inner: Arc<Inner>,
    link: Arc<Link>,
    control: Control,
    mut steps: mpsc::Receiver<Vec<u8>>,
) {
    let up = inner.events.send(LinkEvent::Up(Arc::clone(&link))).await.is_ok();
    if up {
        let Control {
            mut send,
            recv,
            offers,
            tier,
        } = control;
        tokio::select! {
            error = hear(&inner, &link, recv) => {
                tracing::debug!(peer = %link.peer.short(), %error, "control stream ended");
                // Where the peer has closed it, its reason would be lost by that, and with it the word that it put us out.
                if link.is_up() {
                    link.connection.close(PROTOCOL, b"");
                }
            }
            () = tell(&inner, &link, &mut send, (offers, tier), &mut steps) => {}
            () = accept_streams(&inner, &link) => {}
            () = reports::hear(&link) => {}
            () = inner.tasks.token().cancelled() => {
                // Best effort: the close that follows says the same.
                let _ = wire::send(&mut send, &Message::Bye).await;
                link.connection.close(LEAVING, b"bye");
            }
        }
    }
    hear_last_word(&inner, &link.connection, link.peer);
    if link.is_refused_as_copy() {
        let by = (link.name.as_str(), link.address());
        inner.notices().refused(inner.id, by, Instant::now());
    }
    if inner.table().remove(link.peer, |l| Arc::ptr_eq(l, &link)) {
        if inner.notices().may_speak_of(link.peer, Instant::now())
            && let Some(more) = GOINGS.pass()
        {
            tracing::info!(peer = %link.peer.short(), name = ?link.name, more, "peer left");
        }
        // Nobody listens any more when the whole node ends.
        let _ = inner.events.send(LinkEvent::Down(link)).await;
    }
}

/// Reads control messages; returns why there are no more.
async fn hear(inner: &Inner, link: &Arc<Link>, mut recv: RecvStream) -> WireError {
    let now = Instant::now();
    let mut tellings = Bucket::new(TELLINGS_PER_SECOND, Duration::from_secs(1), TELLINGS_AT_ONCE, now);
    let mut steps = Bucket::new(STEPS_PER_SECOND, Duration::from_secs(1), STEPS_AT_ONCE, now);
    let mut news = Bucket::new(NEWS_PER_SECOND, Duration::from_secs(1), NEWS_AT_ONCE, now);
    loop {
        let message = match wire::receive(&mut recv).await {
            Ok(message) => message,
            Err(error) => return error,
        };
        match effect(link.tier(), message) {
            Effect::Lends(offers) => {
                if changes(&link.offers, offers) && !pass_on(inner, link, &mut news).await {
                    return WireError::Malformed;
                }
            }
            Effect::Home(home) => {
                if changes(&link.home, home) && !pass_on(inner, link, &mut news).await {
                    return WireError::Malformed;
                }
            }
            Effect::Believe(statements) => {
                if let Err(until) = tellings.take(1, Instant::now()) {
                    tokio::time::sleep_until(until.into()).await;
                }
                let (trust, peer) = (inner.trust.clone(), link.peer);
                // To check signatures and to write the file takes a Pi a while.
                let heard = inner.tasks.blocking(move || believe(&trust, peer, &statements));
                if let Ok(Err(error)) = heard.await {
                    tracing::error!(%error, "what members say of each other cannot be kept: it is forgotten at the next start");
                }
            }
            Effect::Step(words) => {
                if steps.take(1, Instant::now()).is_err() {
                    return WireError::Malformed;
                }
                let link = Arc::clone(link);
                if inner
                    .events
                    .send(LinkEvent::Ceremony { link, words })
                    .await
                    .is_err()
                {
                    return WireError::Malformed;
                }
            }
            Effect::Leaves => {
                link.offers.send_replace(Vec::new());
                let _ = inner.events.send(LinkEvent::Changed(link.peer)).await;
            }
            Effect::Nothing => {}
            Effect::Breach => return WireError::Malformed,
        }
    }
}

/// What a message comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Effect {
    /// The peer lends this now.
    Lends(Vec<Offer>),
    /// Its own traffic ends there.
    Home(Home),
    /// These statements are looked at, and believed as far as [`Trust::hear`] lets them.
    Believe(Vec<Vec<u8>>),
    /// A step of a ceremony goes to whoever knows of it.
    Step(Vec<u8>),
    /// Nothing new goes to it.
    Leaves,
    /// It is of a later version, or not for it to say.
    Nothing,
    /// The link ends.
    Breach,
}

/// The one place that decides what a peer of that tier can bring about by a message.
fn effect(tier: Tier, message: Message) -> Effect {
    match message {
        Message::Offers(offers) if tier.may(Right::CarryProven) => Effect::Lends(offers),
        Message::Home(home) if tier.may(Right::Link) => Effect::Home(home),
        Message::Statements(statements) if tier.may(Right::Statements) => Effect::Believe(statements),
        // That it leaves, if anything: that is one.
        Message::Statements(mut statements) => {
            statements.truncate(1);
            Effect::Believe(statements)
        }
        Message::Ceremony(words) if tier.may(Right::AskForVouch) => Effect::Step(words),
        Message::Bye => Effect::Leaves,
        Message::Unknown(kind) => {
            tracing::trace!(kind, "skipped a message of a later version");
            Effect::Nothing
        }
        Message::Offers(_) | Message::Home(_) | Message::Ceremony(_) => Effect::Nothing,
        Message::Hello(_) => Effect::Breach,
    }
}

/// Takes over what a peer says of others, as far as it may.
fn believe(trust: &Trust, peer: PeerId, statements: &[Vec<u8>]) -> Result<bool, TrustError> {
    let signed = statements.iter().filter_map(|bytes| Signed::read(bytes));
    trust.hear(peer, signed.collect())
}

/// Takes over what the peer says now; false where it is what it said before.
fn changes<T: PartialEq>(known: &watch::Sender<T>, now: T) -> bool {
    known.send_if_modified(|known| {
        let changed = *known != now;
        *known = now;
        changed
    })
}

/// Tells the node that a peer has news, and lets one that has too many wait: what it sends meanwhile waits with it. False:
/// nobody listens any more.
async fn pass_on(inner: &Inner, link: &Link, news: &mut Bucket) -> bool {
    if let Err(until) = news.take(1, Instant::now()) {
        tokio::time::sleep_until(until.into()).await;
        // It is due now; whether it is counted to the nanosecond does not matter.
        let _ = news.take(1, Instant::now());
    }
    inner.events.send(LinkEvent::Changed(link.peer)).await.is_ok()
}

/// Tells the peer where our traffic ends, and each change of that, of what we lend to it and of who is trusted, and the
/// same again where it must show that it is there; returns when the link is gone, or the peer is not to have it any more.
async fn tell(
    inner: &Inner,
    link: &Link,
    send: &mut SendStream,
    (mut offers, mut told): (watch::Receiver<Lends>, Tier),
    steps: &mut mpsc::Receiver<Vec<u8>>,
) {
    let mut home = inner.home.clone();
    let mut trust = inner.trust.changes();
    home.mark_changed();
    trust.mark_changed();
    loop {
        let message = tokio::select! {
            // Nobody changes anything any more once a sender is gone.
            Ok(()) = trust.changed() => {
                let tier = link.tier();
                if tier < told {
                    return fall(inner, link, tier);
                }
                if tier > told {
                    told = tier;
                    link.widen();
                    link.admit();
                    tracing::info!(peer = %link.peer.short(), name = ?link.name, "the peer is a {tier} now");
                    inner.trust.called(link.peer, &link.name);
                    offers.mark_changed();
                    // Its lanes may do more now.
                    if inner.events.send(LinkEvent::Changed(link.peer)).await.is_err() {
                        return;
                    }
                }
                if tell_statements(inner, link, send).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(()) = offers.changed() => Message::Offers(offers.borrow_and_update().to(told)),
            Ok(()) = home.changed() => Message::Home(home.borrow_and_update().clone()),
            Some(words) = steps.recv() => Message::Ceremony(words),
            () = link.knock.notified() => Message::Offers(offers.borrow_and_update().to(told)),
        };
        if wire::send(send, &message).await.is_err() {
            return;
        }
    }
}

/// Members are told everything, others what concerns them: that they were put out, or that this device left.
async fn tell_statements(inner: &Inner, link: &Link, send: &mut SendStream) -> Result<(), WireError> {
    let statements = match link.tier().may(Right::Statements) {
        true => inner.trust.statements(),
        false => inner.trust.last_word(link.peer).into_iter().collect(),
    };
    for some in statements.chunks(wire::MAX_STATEMENTS) {
        let some = some.iter().map(|signed| signed.bytes().to_vec()).collect();
        wire::send(send, &Message::Statements(some)).await?;
    }
    Ok(())
}

/// Ends a link whose peer may do less than before, with the word for it.
fn fall(inner: &Inner, link: &Link, tier: Tier) {
    tracing::info!(peer = %link.peer.short(), name = ?link.name, "the peer is {tier} now");
    let code = if tier.may(Right::Link) { FELL } else { BLOCKED };
    let word = last_word(inner, link.peer);
    link.connection.close(code, word.as_deref().unwrap_or_default());
}

pub(super) fn last_word(inner: &Inner, peer: PeerId) -> Option<Vec<u8>> {
    Some(inner.trust.last_word(peer)?.bytes().to_vec())
}

/// The reason of a link that ended may be a statement: who was put out must know that it was, or it would go on trusting.
pub(super) fn hear_last_word(inner: &Inner, connection: &quinn::Connection, peer: PeerId) {
    let Some(quinn::ConnectionError::ApplicationClosed(close)) = connection.close_reason() else {
        return;
    };
    if ![FELL, BLOCKED].contains(&close.error_code) {
        return;
    }
    if let Some(signed) = Signed::read(&close.reason)
        && let Err(error) = inner.trust.hear(peer, vec![signed])
    {
        tracing::error!(%error, "that this device was put out cannot be kept");
    }
}

/// Hands the peer's requests for tunnels on, and what it asks the household; returns when the link is gone.
async fn accept_streams(inner: &Arc<Inner>, link: &Arc<Link>) {
    while let Ok(stream) = link.connection.accept_bi().await {
        let (inner, link) = (Arc::clone(inner), Arc::clone(link));
        let tasks = inner.tasks.clone();
        tasks.spawn("stream-request", async move {
            match tunnel::accept(&link, stream).await {
                Some(Request::Tunnel(incoming)) => {
                    let full = inner.tunnels.try_send(incoming);
                    if let Err(mpsc::error::TrySendError::Full(incoming)) = full {
                        incoming.refuse(Refusal::Busy).await;
                    }
                }
                // Where nobody is there to answer, or too many ask, the stream ends as one of an unknown kind does.
                Some(Request::Share(asked)) => {
                    if let Some(to) = inner.asked.get() {
                        drop(to.try_send(asked));
                    }
                }
                None => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::identity::DeviceKey;
    use crate::trust::{Said, Statement};
    use crate::types::{LineId, UplinkKind};

    use super::super::wire::Hello;
    use super::*;

    /// A device that has a member, a neighbour that means it no good, and somebody else.
    struct House {
        me: DeviceKey,
        member: DeviceKey,
        neighbour: DeviceKey,
        other: DeviceKey,
    }

    impl House {
        fn new() -> Self {
            let [me, member, neighbour, other] = std::array::from_fn(|_| DeviceKey::ephemeral().unwrap());
            Self {
                me,
                member,
                neighbour,
                other,
            }
        }

        fn trust(&self) -> Trust {
            let trust = Trust::none(&self.me);
            trust.vouch(self.member.id(), true).unwrap();
            trust
        }

        fn key(&self, n: usize) -> &DeviceKey {
            [&self.me, &self.member, &self.neighbour, &self.other][n % 4]
        }
    }

    /// What a neighbour may send: all kinds of messages, with statements of its own, of others that it recorded, and forged.
    #[derive(Clone, Debug)]
    enum Sent {
        Offers(u32),
        Home,
        Bye,
        Hello,
        Unknown(u16),
        Ceremony(Vec<u8>),
        Statements(Vec<(usize, usize, Said, u32, Option<usize>)>),
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let said = prop_oneof![
            any::<bool>().prop_map(|may_vouch| Said::Vouch { may_vouch }),
            any::<bool>().prop_map(|block| Said::Revoke { block }),
        ];
        // Statements that the member or the device itself never made are forged: a byte of them is another one.
        let statement = (0..4usize, 0..4usize, said, 0..5u32, prop::option::of(0..200usize));
        prop_oneof![
            1 => (0..40u32).prop_map(Sent::Offers),
            1 => Just(Sent::Home),
            1 => Just(Sent::Bye),
            1 => Just(Sent::Hello),
            1 => any::<u16>().prop_map(Sent::Unknown),
            1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Sent::Ceremony),
            6 => prop::collection::vec(statement, 0..4).prop_map(Sent::Statements),
        ]
    }

    fn message(sent: Sent, house: &House) -> Message {
        let offer = |id| Offer {
            id,
            name: "wan0".into(),
            line: LineId([1; 8]),
            kind: UplinkKind::Wired,
            metered: false,
            down: None,
        };
        match sent {
            Sent::Offers(n) => Message::Offers((0..n).map(offer).collect()),
            Sent::Home => Message::Home(Home::default()),
            Sent::Bye => Message::Bye,
            Sent::Hello => Message::Hello(Hello {
                name: "again".into(),
                session: 1,
                uplinks: vec![],
            }),
            Sent::Unknown(kind) => Message::Unknown(kind),
            Sent::Ceremony(words) => Message::Ceremony(words),
            Sent::Statements(all) => {
                let bytes = |(by, subject, said, epoch, flip): (usize, usize, Said, u32, Option<usize>)| {
                    let subject = house.key(subject).id();
                    let statement = Statement { subject, said, epoch };
                    let mut bytes = Signed::new(statement, house.key(by)).unwrap().bytes().to_vec();
                    if let Some(at) = flip {
                        let at = at % bytes.len();
                        bytes[at] ^= 1;
                    }
                    bytes
                };
                Message::Statements(all.into_iter().map(bytes).collect())
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn prop_6_no_messages_of_a_neighbour_bring_about_what_is_a_members_right(
            all in prop::collection::vec(sent(), 1..8)
        ) {
            thread_local!(static HOUSE: House = House::new());
            HOUSE.with(|house| {
                let trust = house.trust();
                let (before, peer) = (trust.view(), house.neighbour.id());
                for sent in all {
                    match effect(trust.tier(peer), message(sent, house)) {
                        Effect::Believe(statements) => {
                            prop_assert!(statements.len() <= 1, "one signature is looked at, not {}", statements.len());
                            believe(&trust, peer, &statements).unwrap();
                        }
                        Effect::Breach => break,
                        // What these come to is a neighbour's right, or decided elsewhere.
                        Effect::Lends(_) | Effect::Home(_) | Effect::Step(_) | Effect::Leaves | Effect::Nothing => {}
                    }
                    prop_assert_eq!(trust.tier(peer), Tier::Neighbour);
                    prop_assert_eq!(&trust.view(), &before, "who is trusted has changed");
                }
                let told = trust.last_word(peer).is_none_or(|word| word.signer() == peer);
                prop_assert!(told, "it is told more than that it left itself");
                Ok(())
            })?;
        }
    }

    #[test]
    fn sec_a11_a_question_for_what_there_is_to_be_had_is_answered_with_nothing_whoever_asks() {
        for tier in [Tier::Neighbour, Tier::Member] {
            for kind in 0..u16::MAX {
                let known = matches!(kind, 1..=6);
                if !known {
                    let message = wire::decode(kind, b"any cache frame").unwrap();
                    assert_eq!(effect(tier, message), Effect::Nothing, "{kind}");
                }
            }
        }
    }
}
