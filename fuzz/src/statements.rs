//! FUZ-13: signed statements: the signature before anything else, and a table of them that stays bounded and says the same
//! whatever the order and however often.

use std::sync::OnceLock;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use tributary::trust::{MAX_STATEMENTS, Said, Signed, Statement, Table};
use tributary::types::PeerId;

use super::input::Input;

const DOMAIN: &[u8] = b"tributary 1 statement\0";
const KEYS: u8 = 8;
/// Subjects: the devices with keys, and others.
const SUBJECTS: u8 = 24;

/// Bytes as a statement; bytes signed by a device, whatever they are; and a table under a sequence of statements.
pub fn check(data: &[u8]) {
    judge_bytes(data);
    let mut input = Input(data);
    let signer = input.u8();
    let signed = sign(signer, input.0);
    judge_bytes(&signed);
    judge_table(data);
}

/// A device's key.
pub fn key(n: u8) -> &'static Ed25519KeyPair {
    static PAIRS: OnceLock<Vec<Ed25519KeyPair>> = OnceLock::new();
    let pair = |n: u8| match Ed25519KeyPair::from_seed_unchecked(&[n + 1; 32]) {
        Ok(pair) => pair,
        Err(error) => panic!("{error}"),
    };
    let pairs = PAIRS.get_or_init(|| (0..KEYS).map(pair).collect());
    &pairs[usize::from(n % KEYS)]
}

/// A device, with a key or without.
pub fn id(n: u8) -> PeerId {
    let mut id = [n; 32];
    if n < KEYS {
        id.copy_from_slice(key(n).public_key().as_ref());
    }
    PeerId(id)
}

/// What a device says, whether it is a statement or not.
pub fn sign(signer: u8, body: &[u8]) -> Vec<u8> {
    let pair = key(signer);
    let signature = pair.sign(&[DOMAIN, body].concat());
    [pair.public_key().as_ref(), signature.as_ref(), body].concat()
}

/// A statement of a device.
pub fn statement(signer: u8, subject: u8, said: Said, epoch: u32) -> Vec<u8> {
    let subject = id(subject % SUBJECTS);
    match postcard::to_stdvec(&Statement { subject, said, epoch }) {
        Ok(body) => sign(signer, &body),
        Err(error) => panic!("{error}"),
    }
}

fn judge_bytes(bytes: &[u8]) {
    let read = Signed::read(bytes);
    let signed_right = bytes.split_at_checked(32).and_then(|(signer, rest)| {
        let (signature, body) = rest.split_at_checked(64)?;
        let key = UnparsedPublicKey::new(&ED25519, signer);
        key.verify(&[DOMAIN, body].concat(), signature).ok()?;
        Some((signer, body))
    });
    match (read, signed_right) {
        (Some(signed), Some((signer, body))) => {
            assert_eq!(signed.bytes(), bytes);
            assert_eq!(&signed.signer().0[..], signer);
            assert!(body.len() <= 96, "a body of {} bytes", body.len());
            assert_eq!(
                postcard::take_from_bytes(body).map(|(s, _): (Statement, _)| s),
                Ok(*signed.statement())
            );
            // Nothing of it can be changed.
            let mut forged = bytes.to_vec();
            let at = usize::from(body.first().copied().unwrap_or_default()) % forged.len();
            forged[at] ^= 1;
            assert_eq!(Signed::read(&forged), None);
        }
        (None, Some((_, body))) => {
            let statement = postcard::take_from_bytes::<Statement>(body);
            assert!(
                body.len() > 96 || statement.is_err(),
                "a statement that is not read: {body:02x?}"
            );
        }
        (Some(signed), None) => panic!("{signed:?} is not signed"),
        (None, None) => {}
    }
}

fn judge_table(data: &[u8]) {
    let me = id(0);
    let mut input = Input(data);
    let mut all = Vec::new();
    // Signing costs 20 us.
    while !input.is_empty() && all.len() < 48 {
        let [signer, subject, said, epoch] = input.array();
        let flag = said & 2 != 0;
        let said = match said & 1 {
            0 => Said::Vouch { may_vouch: flag },
            _ => Said::Revoke { block: flag },
        };
        // The ends of what an epoch can be, too.
        let epoch = if epoch > 250 {
            u32::MAX - u32::from(u8::MAX - epoch)
        } else {
            epoch.into()
        };
        match Signed::read(&statement(signer, subject, said, epoch)) {
            Some(signed) => all.push(signed),
            None => panic!("{signer} cannot say {said:?} of {subject}"),
        }
    }
    let mut table = Table::default();
    for signed in &all {
        table.merge(signed.clone(), me);
        assert!(!table.merge(signed.clone(), me), "news twice");
    }
    let view = table.view(me);
    assert!(table.all().count() <= all.len().min(MAX_STATEMENTS));
    assert!(!view.members.contains_key(&me) && !view.blocked.contains(&me));
    assert!(view.blocked.iter().all(|id| !view.members.contains_key(id)));
    for (member, vouched) in &view.members {
        let entitled = |by: &PeerId| *by == me || view.members.get(by).is_some_and(|v| v.may_vouch);
        assert!(vouched.by.iter().all(entitled), "{member} by whom nobody asked");
    }
    // So few statements always have room: then their order says nothing.
    let mut other = Table::default();
    for signed in all.iter().rev() {
        other.merge(signed.clone(), me);
    }
    assert_eq!(other.view(me), view);
    assert!(other.all().eq(table.all()));
    for n in 0..SUBJECTS {
        let next = table.next_epoch(me, id(n), false);
        let revoked = table.all().map(Signed::statement);
        let revoked = revoked.filter(|s| s.subject == id(n) && matches!(s.said, Said::Revoke { .. }));
        let latest = revoked.map(|s| s.epoch).max();
        assert_eq!(next.is_none(), latest == Some(u32::MAX));
        assert!(latest.is_none_or(|latest| next.is_none_or(|next| next > latest)));
        assert!(table.next_epoch(me, id(n), true) >= next || table.next_epoch(me, id(n), true).is_none());
    }
}
