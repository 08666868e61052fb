//! The key exchange: honest ends, whatever may differ between them, and what a guesser finds out.

use ring::digest::{SHA256, digest};

use super::*;

fn seeded(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

fn ends(a: u64, b: u64, channel: u64) -> [Ends; 2] {
    let (me, peer) = (PeerId(seeded(a)), PeerId(seeded(b)));
    let channel = seeded(channel);
    let near = Ends { me, peer, channel };
    let far = Ends {
        me: peer,
        peer: me,
        channel,
    };
    [near, far]
}

/// What is different on the way, or at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Different {
    Nothing,
    First(usize),
    Second(usize),
    SecondTag(usize),
    LastTag(usize),
    Channel(usize),
    Peer(usize),
    Secret(usize),
    Purpose,
    Reflected,
    Swapped,
}

fn flip(bytes: &mut [u8], bit: usize) {
    let at = bit % (bytes.len() * 8);
    bytes[at / 8] ^= 1 << (at % 8);
}

/// A run as the ceremonies have it; whether the one that begins, and the other, are convinced.
fn run(case: u64, different: Different) -> (bool, bool) {
    let [mut near, far] = ends(case * 3 + 1, case * 3 + 2, case * 3);
    let mut secret = seeded(case).to_vec();
    let purpose = if case.is_multiple_of(2) {
        Purpose::Passphrase
    } else {
        Purpose::Token(TokenId([5; 16]))
    };
    let second = Pake::new(&secret, purpose, &far);
    let mut other = purpose;
    match different {
        Different::Channel(bit) => flip(&mut near.channel, bit),
        Different::Peer(bit) => flip(&mut near.peer.0, bit),
        Different::Secret(bit) => flip(&mut secret, bit),
        Different::Purpose => other = Purpose::Token(TokenId([6; 16])),
        _ => {}
    }
    let first = Pake::new(&secret, other, &near);
    let (mut x, mut y) = (first.point(), second.point());
    match different {
        Different::First(bit) => flip(&mut x, bit),
        Different::Second(bit) => flip(&mut y, bit),
        Different::Reflected => y = x,
        Different::Swapped => x = y,
        _ => {}
    }
    let Ok(second) = second.finish(&x) else {
        return (false, false);
    };
    let Ok(first) = first.finish(&y) else {
        return (false, false);
    };
    let (mut theirs, mut mine) = (second.tag(), first.tag());
    match different {
        Different::SecondTag(bit) => flip(&mut theirs, bit),
        Different::LastTag(bit) => flip(&mut mine, bit),
        Different::Reflected => theirs = mine,
        _ => {}
    }
    let convinced = first.is_right(&theirs);
    // Who is not convinced proves nothing.
    (convinced, convinced && second.is_right(&mine))
}

#[test]
fn prop_15_two_honest_ends_agree_and_whatever_is_changed_in_between_they_do_not() {
    let mut honest = 0;
    for case in 0..10_000_u64 {
        let bit = case as usize / 11;
        let different = match case % 11 {
            0 => Different::Nothing,
            1 => Different::First(bit),
            2 => Different::Second(bit),
            3 => Different::SecondTag(bit),
            4 => Different::LastTag(bit),
            5 => Different::Channel(bit),
            6 => Different::Peer(bit),
            7 => Different::Secret(bit),
            8 => Different::Purpose,
            9 => Different::Reflected,
            _ => Different::Swapped,
        };
        let (first, second) = run(case, different);
        match different {
            Different::Nothing => {
                assert!(first && second, "case {case}");
                honest += 1;
            }
            Different::LastTag(_) => assert!(first && !second, "case {case}"),
            _ => assert!(!first && !second, "case {case}: {different:?}"),
        }
    }
    assert!(honest > 900);
}

#[test]
fn sec_a2_a_proof_is_of_no_use_in_another_run() {
    let [near, far] = ends(1, 2, 3);
    let begin = |ends| Pake::new(b"correct horse", Purpose::Passphrase, ends);
    let (first, second) = (begin(&near), begin(&far));
    let (x, y) = (first.point(), second.point());
    let old = second.finish(&x).unwrap().tag();
    assert!(first.finish(&y).unwrap().is_right(&old));
    let again = begin(&near);
    assert!(
        !again.finish(&y).unwrap().is_right(&old),
        "half and proof of an earlier run"
    );
}

#[test]
fn sec_a20_points_that_would_give_the_key_away_are_refused() {
    let [near, _] = ends(1, 2, 3);
    // All that are of small order, in their right form, and forms that mean the same as another.
    let small = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    ];
    for point in small {
        let point = crate::types::sha256_from_hex(point).unwrap();
        let pake = Pake::new(b"correct horse", Purpose::Passphrase, &near);
        assert!(pake.finish(&point).is_err(), "{point:02x?}");
    }
}

#[test]
fn sec_a20_the_transcript_of_a_failed_run_is_no_help_to_guess_on() {
    let right = "word-7411";
    let mut missed = 0;
    for guess in ["word-13", right] {
        let found = dictionary(guess, right);
        if guess == right {
            // So the search would find it if it could be found.
            assert_eq!(found, [right], "its one guess was right");
        } else {
            assert_eq!(found, [""; 0], "the guess was {guess}");
            missed += 1;
        }
    }
    assert_eq!(missed, 1);
}

/// What whoever took part in a run with a `guess` finds out afterwards with 10,000 words: those that explain the victim's
/// proof.
fn dictionary(guess: &str, right: &str) -> Vec<String> {
    type G = Ed25519Group;
    let [mut attacker, mut victim] = ends(1, 2, 3);
    if attacker.me > victim.me {
        std::mem::swap(&mut attacker, &mut victim);
    }
    let ids = attacker.ids();
    let context = [DOMAIN, b"passphrase\0", &attacker.channel[..]].concat();
    let of_id = |id: PeerId| digest(&SHA256, &[&context[..], &id.0].concat());
    let secret = G::hash_to_scalar(b"the attacker's own number");
    let blinded = |m, word: &str| G::scalarmult(&m, &G::hash_to_scalar(word.as_bytes()));
    let x = G::add(&G::basepoint_mult(&secret), &blinded(G::const_m(), guess));
    let x = G::element_to_bytes(&x);
    let half = Pake::new(right.as_bytes(), Purpose::Passphrase, &victim);
    let y = half.point();
    let proof = half.finish(&x[..].try_into().unwrap()).unwrap().tag();
    let theirs = G::bytes_to_element(&y).unwrap();
    let explains = |word: &String| {
        let mask = G::scalarmult(&G::const_n(), &G::scalar_neg(&G::hash_to_scalar(word.as_bytes())));
        let shared = G::element_to_bytes(&G::scalarmult(&G::add(&theirs, &mask), &secret));
        let word = digest(&SHA256, word.as_bytes());
        let (a, b) = (of_id(ids[0]), of_id(ids[1]));
        let all = [word.as_ref(), a.as_ref(), b.as_ref(), &x, &y, &shared].concat();
        let keyed = Keyed {
            key: hmac::Key::new(hmac::HMAC_SHA256, digest(&SHA256, &all).as_ref()),
            transcript: [&context[..], &ids[0].0, &ids[1].0, &x, &y].concat(),
            side: Side::A,
        };
        keyed.is_right(&proof)
    };
    (0..10_000)
        .map(|n| format!("word-{n}"))
        .filter(explains)
        .collect()
}

#[test]
fn sec_e2_secrets_are_not_printed() {
    let [near, far] = ends(1, 2, 3);
    let pake = Pake::new(b"correct horse", Purpose::Passphrase, &near);
    let shown = format!("{pake:?} {:?}", Secret::new(b"correct horse".to_vec()));
    assert!(!shown.contains("horse") && !shown.contains("99, 111"), "{shown}");
    let keyed = pake
        .finish(&Pake::new(b"x", Purpose::Passphrase, &far).point())
        .unwrap();
    assert_eq!(
        format!("{keyed:?}"),
        "Keyed { side: A, .. }".replace('A', if near.me < far.me { "A" } else { "B" })
    );
}
