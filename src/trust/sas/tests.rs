//! The code: honest ends, whatever may differ between them, and who sits in the middle.

use super::*;

fn seeded(n: u64) -> [u8; 32] {
    *blake3::hash(&n.to_le_bytes()).as_bytes()
}

fn ends(me: u64, peer: u64, channel: u64) -> Ends {
    Ends {
        me: PeerId(seeded(me)),
        peer: PeerId(seeded(peer)),
        channel: seeded(channel),
    }
}

fn flip(bytes: &mut [u8], bit: usize) {
    let at = bit % (bytes.len() * 8);
    bytes[at / 8] ^= 1 << (at % 8);
}

/// The codes of both ends where something is different; `None`: an end that stopped.
fn run(case: u64, different: u64, bit: usize) -> [Option<Code>; 2] {
    let (mut near, far) = (ends(case, case + 1, case + 2), ends(case + 1, case, case + 2));
    match different {
        1 => flip(&mut near.channel, bit),
        2 => flip(&mut near.peer.0, bit),
        _ => {}
    }
    let (near, far) = (Sas::new(seeded(case + 3), near), Sas::new(seeded(case + 4), far));
    let (mut first, mut second) = (near.commitment(), far.commitment());
    match different {
        3 => flip(&mut first, bit),
        4 => second = first,
        _ => {}
    }
    let (near, far) = (near.both(second), far.both(first));
    let (mut mine, mut theirs) = (near.reveal(), far.reveal());
    match different {
        5 => flip(&mut theirs, bit),
        6 => flip(&mut mine, bit),
        4 => theirs = mine,
        _ => {}
    }
    [near.code(&theirs).ok(), far.code(&mine).ok()]
}

#[test]
fn prop_15_two_honest_ends_show_one_code_and_whatever_is_changed_in_between_they_do_not() {
    let mut codes = std::collections::BTreeSet::new();
    for case in 0..35_000_u64 {
        let (different, bit) = (case % 7, case as usize / 7);
        let [near, far] = run(case * 10, different, bit);
        if different == 0 {
            let code = near.unwrap();
            assert_eq!(Some(code), far, "case {case}");
            assert_eq!(code.to_string().len(), 6);
            codes.insert(code.0);
        } else {
            assert!(near.is_none() || far.is_none(), "case {case}: {near:?} {far:?}");
        }
    }
    // Of 5,000 codes out of a million, a dozen come twice.
    assert!(codes.len() > 4_950, "{} different codes", codes.len());
    assert!(codes.iter().any(|c| *c < 100_000) && codes.iter().any(|c| *c > 900_000));
}

/// Both links of whoever is in the middle are sound in themselves; all it has are its own nonces.
#[test]
fn sec_a2_whoever_is_in_the_middle_shows_both_sides_the_same_code_once_in_a_million_times() {
    let mut same = 0;
    for case in 0..10_000_u64 {
        let at = case * 10;
        let code = |me: u64, peer: u64, channel: u64, nonce: u64, other: u64| {
            let theirs = Sas::new(seeded(other), ends(peer, me, channel)).commitment();
            let both = Sas::new(seeded(nonce), ends(me, peer, channel)).both(theirs);
            both.code(&seeded(other)).unwrap()
        };
        let (ann, bob, middle) = (at, at + 1, at + 2);
        let near = code(ann, middle, at + 3, at + 5, at + 7);
        let far = code(bob, middle, at + 4, at + 6, at + 8);
        same += u32::from(near == far);
        // Nor does it help to pass the nonces on.
        assert!(
            Sas::new(seeded(at + 5), ends(ann, middle, at + 3))
                .both(Sas::new(seeded(at + 6), ends(bob, middle, at + 4)).commitment())
                .code(&seeded(at + 6))
                .is_err()
        );
    }
    assert_eq!(
        same, 0,
        "one in a hundred such tests would see one, and this one is the same each time"
    );
}
