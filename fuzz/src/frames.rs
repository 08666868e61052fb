//! FUZ-1, FUZ-2: the frames of a control stream, read one after the other as a link reads them.

use futures_util::FutureExt;
use tributary::fuzzing::device;
use tributary::link::wire::{
    self, MAX_BEHIND, MAX_CEREMONY, MAX_FRAME, MAX_STATEMENTS, MAX_UPLINKS, Message, WireError, clean,
};
use tributary::trust::{Right, Signed, Trust};
use tributary::types::PeerId;

use super::input::Input;
use super::statements;

/// A whole control stream, of a peer that is a neighbour, a member or a member that may vouch, as the first byte says.
/// Whatever it says, what the link would remember is bounded and clean, what is said of a later version is skipped, and a
/// neighbour's word about others changes nothing.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let trust = Trust::none(&device(0));
    let peer = statements::id(1);
    let vouched = match input.u8() % 3 {
        0 => Ok(()),
        n => trust.vouch(peer, n == 2),
    };
    assert!(vouched.is_ok());
    let mut stream = input.0;
    let mut greeted = false;
    loop {
        let before = stream.len();
        // The stream is there as a whole: reading never waits.
        let Some(read) = wire::receive(&mut stream).now_or_never() else {
            panic!("reading from memory waited");
        };
        match read {
            Ok(message) => {
                assert!(before - stream.len() >= 6 && before - stream.len() <= 6 + MAX_FRAME);
                judge(&message);
                match message {
                    Message::Hello(_) if greeted => return,
                    Message::Hello(_) => greeted = true,
                    // A link's first message is `Hello`, nothing else.
                    _ if !greeted => return,
                    Message::Statements(said) => hear(&trust, peer, &said),
                    _ => {}
                }
            }
            Err(WireError::TooLong(length)) => {
                assert!(length > MAX_FRAME);
                assert_eq!(before - stream.len(), 6, "no body of such a length is read");
                return;
            }
            Err(WireError::Io(_) | WireError::Malformed) => return,
        }
    }
}

/// As the link does: of one who may not speak of others, the first statement is looked at, in case it leaves.
fn hear(trust: &Trust, peer: PeerId, said: &[Vec<u8>]) {
    let tier = trust.tier(peer);
    let entitled = tier.may(Right::Statements);
    let most = if entitled { said.len() } else { 1 };
    let signed: Vec<Signed> = said
        .iter()
        .take(most)
        .filter_map(|bytes| Signed::read(bytes))
        .collect();
    let before = trust.view();
    let kept = trust.statements().len();
    assert!(trust.hear(peer, signed.clone()).is_ok());
    let after = trust.view();
    assert!(!after.members.contains_key(&trust.me()));
    assert!(trust.statements().len() <= kept + signed.len());
    if !entitled {
        assert_eq!(after, before, "a neighbour's word about others");
        assert!(trust.statements().iter().skip(kept).all(|s| s.signer() == peer));
    }
    // Once more is nothing new.
    assert!(
        matches!(trust.hear(peer, signed), Ok(false))
            || trust.tier(peer) != tier
            || after.put_out_by.is_some()
    );
}

/// One body, as each kind of message, and as a datagram.
pub fn check_hello(data: &[u8]) {
    if let Some(report) = wire::decode_report(data) {
        let again = wire::encode_report(report);
        assert_eq!(
            again.ok().and_then(|bytes| wire::decode_report(&bytes)),
            Some(report)
        );
    }
    for kind in 0..32 {
        let Ok(message) = wire::decode(kind, data) else {
            continue;
        };
        judge(&message);
        if data.len() < 4096 {
            // A later version may append fields.
            let longer = [data, &[0xff; 7][..]].concat();
            assert_eq!(wire::decode(kind, &longer).ok(), Some(message), "kind {kind}");
        }
    }
}

fn judge(message: &Message) {
    match message {
        Message::Hello(hello) => {
            judge_text(&hello.name);
            judge_offers(&hello.uplinks);
        }
        Message::Offers(offers) => judge_offers(offers),
        Message::Statements(statements) => assert!(statements.len() <= MAX_STATEMENTS),
        Message::Ceremony(words) => assert!(words.len() <= MAX_CEREMONY),
        Message::Home(home) => assert!(home.behind.len() <= MAX_BEHIND),
        _ => {}
    }
    if matches!(message, Message::Unknown(_)) {
        return;
    }
    // What was understood and cleaned is said and understood again as it is.
    let mut again = Vec::new();
    let Some(Ok(())) = wire::send(&mut again, message).now_or_never() else {
        panic!("cannot be said again: {message:?}");
    };
    let heard = wire::receive(&mut &again[..]).now_or_never();
    match heard {
        Some(Ok(heard)) => assert_eq!(&heard, message),
        other => panic!("not understood again: {other:?}"),
    }
}

fn judge_offers(offers: &[wire::Offer]) {
    assert!(offers.len() <= MAX_UPLINKS);
    for (place, offer) in offers.iter().enumerate() {
        judge_text(&offer.name);
        assert!(offers[..place].iter().all(|other| other.id != offer.id));
    }
}

/// Of a peer's text: short, and nothing in it that a terminal or a reader would be fooled by.
pub fn judge_text(text: &str) {
    assert!(!text.trim().is_empty() && text.len() <= 63, "{text:?}");
    assert_eq!(clean(text), text);
    for c in text.chars() {
        let bidi = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
        assert!(
            !c.is_control() && !bidi && c != '\u{feff}' && c != '\u{200b}',
            "{text:?}"
        );
    }
}
