//! Leaves as honest and lying witnesses sign them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const SUBJECT: Subject = Subject([7; 32]);
const TOTAL: u64 = 40 * PIECE - 5;

static KEYS: LazyLock<Vec<DeviceKey>> =
    LazyLock::new(|| (0..3).map(|_| DeviceKey::ephemeral().unwrap()).collect());

fn nobody(_: PeerId) -> bool {
    false
}

fn hash(n: u8) -> [u8; 32] {
    [n; 32]
}

fn leaves() -> Leaves {
    Leaves::new(SUBJECT, TOTAL)
}

/// A batch of that witness: the same hash for each of the pieces.
fn batch(witness: usize, pieces: impl IntoIterator<Item = u32>, says: u8) -> Vec<u8> {
    let entries: Vec<_> = pieces.into_iter().map(|piece| (piece, hash(says))).collect();
    Leaves::sign(SUBJECT, &entries, &KEYS[witness])
}

fn attested(leaves: &Leaves, piece: u64) -> Option<(u8, PeerId)> {
    leaves.leaf(piece).map(|leaf| (leaf.hash[0], leaf.witness))
}

#[test]
fn a_piece_has_the_leaf_that_its_witness_signed_and_batches_are_passed_on_as_they_came() {
    let mut all = leaves();
    let signed = batch(0, [3, 39], 5);
    assert_eq!(all.add(&signed, &nobody), Ok(vec![3, 39]));
    assert_eq!(all.add(&signed, &nobody), Ok(vec![]), "nothing new");
    assert_eq!(attested(&all, 39), Some((5, KEYS[0].id())));
    assert_eq!(attested(&all, 4), None);
    assert_eq!(attested(&all, u64::MAX), None);
    assert_eq!(all.batches().collect::<Vec<_>>(), [&signed[..]]);
    assert_eq!(all.witnesses().collect::<Vec<_>>(), [KEYS[0].id()]);
    let mut passed_on = leaves();
    for signed in all.batches() {
        passed_on.add(signed, &nobody).unwrap();
    }
    assert_eq!(attested(&passed_on, 3), Some((5, KEYS[0].id())));
}

#[test]
fn sec_b1_a_batch_of_which_any_bit_was_changed_is_refused() {
    let signed = batch(0, [1], 1);
    for bit in 0..signed.len() * 8 {
        let mut forged = signed.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(leaves().add(&forged, &nobody), Err(Bad::Forged), "bit {bit}");
    }
    for cut in 0..signed.len() {
        assert_eq!(
            leaves().add(&signed[..cut], &nobody),
            Err(Bad::Forged),
            "cut to {cut}"
        );
    }
    let body = signed[KEY + SIGNATURE..].to_vec();
    let other = [&KEYS[0].id().0[..], &KEYS[0].sign(&body)[..], &body[..]].concat();
    assert_eq!(
        leaves().add(&other, &nobody),
        Err(Bad::Forged),
        "signed for another purpose"
    );
}

#[test]
fn another_content_pieces_beyond_the_end_too_many_and_barred_witnesses_are_refused() {
    let mut all = leaves();
    let other = Leaves::sign(Subject([8; 32]), &[(0, hash(1))], &KEYS[0]);
    assert_eq!(all.add(&other, &nobody), Err(Bad::Subject));
    assert_eq!(all.add(&batch(0, [0, 40], 1), &nobody), Err(Bad::Pieces));
    let many: Vec<(u32, [u8; 32])> = vec![(0, hash(1)); MAX_ENTRIES + 1];
    let body = postcard::to_stdvec(&(SUBJECT, many)).unwrap();
    let signature = KEYS[0].sign(&[DOMAIN, &body[..]].concat());
    let many = [&KEYS[0].id().0[..], &signature[..], &body[..]].concat();
    assert_eq!(all.add(&many, &nobody), Err(Bad::Pieces));
    assert_eq!(
        all.add(&vec![0; MAX_SIGNED + 1], &nobody),
        Err(Bad::Pieces),
        "not even looked at"
    );
    let id = KEYS[0].id();
    assert_eq!(all.add(&batch(0, [1], 1), &|peer| peer == id), Err(Bad::Barred));
    assert!(all.is_empty());
    assert_eq!(all.batches().count(), 0);
}

#[test]
fn an_entry_that_ends_within_its_hash_is_refused_though_it_was_signed() {
    let whole = postcard::to_stdvec(&(SUBJECT, vec![(0u32, hash(1)), (1, hash(1))])).unwrap();
    for cut in 1..=2 * (1 + HASH) {
        let body = &whole[..whole.len() - cut];
        let signature = KEYS[0].sign(&[DOMAIN, body].concat());
        let signed = [&KEYS[0].id().0[..], &signature[..], body].concat();
        let mut all = leaves();
        assert_eq!(all.add(&signed, &nobody), Err(Bad::Forged), "cut by {cut}");
        assert!(all.is_empty());
    }
}

#[test]
fn a_piece_on_which_witnesses_disagree_has_no_leaf_until_one_of_them_is_forgotten() {
    let mut all = leaves();
    all.add(&batch(0, [1, 2], 1), &nobody).unwrap();
    assert_eq!(all.add(&batch(1, [2, 3], 9), &nobody), Ok(vec![2, 3]));
    assert_eq!(attested(&all, 1), Some((1, KEYS[0].id())));
    assert_eq!(attested(&all, 2), None);
    assert_eq!(all.forget(KEYS[1].id()), [2, 3]);
    assert_eq!(attested(&all, 2), Some((1, KEYS[0].id())));
    assert_eq!(attested(&all, 3), None);
    assert_eq!(all.batches().count(), 1, "nor is it passed on");
    assert_eq!(all.forget(KEYS[1].id()), [0; 0]);
}

#[test]
fn a_witness_that_says_two_things_of_a_piece_is_believed_neither() {
    for same_batch in [false, true] {
        let mut all = leaves();
        if same_batch {
            let both = Leaves::sign(SUBJECT, &[(1, hash(1)), (1, hash(2)), (2, hash(3))], &KEYS[0]);
            all.add(&both, &nobody).unwrap();
        } else {
            all.add(&batch(0, [1], 1), &nobody).unwrap();
            assert_eq!(all.add(&batch(0, [1], 2), &nobody), Ok(vec![1]));
            assert_eq!(all.add(&batch(0, [1], 1), &nobody), Ok(vec![]), "it stays so");
        }
        all.add(&batch(1, [1], 1), &nobody).unwrap();
        assert_eq!(attested(&all, 1), None);
        all.forget(KEYS[0].id());
        assert_eq!(attested(&all, 1), Some((1, KEYS[1].id())));
    }
}

#[test]
fn whoever_was_told_of_some_batches_hears_of_later_ones_also_after_a_witness_was_forgotten() {
    let mut all = leaves();
    for piece in 0..4 {
        all.add(&batch(piece as usize % 2, [piece], 1), &nobody).unwrap();
    }
    let told = all.batches_since(0).last().unwrap().0 + 1;
    all.forget(KEYS[0].id());
    assert_eq!(all.batches_since(told).count(), 0);
    let later = batch(2, [9], 1);
    all.add(&later, &nobody).unwrap();
    let new: Vec<_> = all.batches_since(told).map(|(_, signed)| signed).collect();
    assert_eq!(new, [&later[..]]);
}

#[test]
fn own_leaves_that_came_one_by_one_are_signed_together() {
    let mut all = Leaves::new(SUBJECT, 1000 * PIECE);
    for piece in 0..600 {
        all.add(&batch(0, [piece], piece as u8), &nobody).unwrap();
    }
    all.add(&batch(1, [600], 4), &nobody).unwrap();
    let before: usize = all.batches().map(<[u8]>::len).sum();
    all.compact(&KEYS[0]);
    let after: usize = all.batches().map(<[u8]>::len).sum();
    assert_eq!(all.batches().count(), 4, "three of its own, one of another's");
    assert!(after * 3 < before, "{after} of {before} bytes");
    for piece in 0..600u64 {
        assert_eq!(attested(&all, piece), Some((piece as u8, KEYS[0].id())));
    }
    assert_eq!(attested(&all, 600), Some((4, KEYS[1].id())));
    let restored = Leaves::restore(SUBJECT, 1000 * PIECE, all.batches());
    assert_eq!(restored.len(), 601);
    assert_eq!(restored.leaf(599), all.leaf(599));
}

#[test]
fn a_batch_that_holds_all_of_earlier_ones_takes_their_place() {
    let mut all = leaves();
    for piece in 0..20 {
        all.add(&batch(0, [piece], 1), &nobody).unwrap();
    }
    let full = batch(0, 0..21, 1);
    assert_eq!(all.add(&full, &nobody), Ok(vec![20]));
    assert_eq!(all.batches().collect::<Vec<_>>(), [&full[..]]);
    assert_eq!(all.bytes, full.len());
}

#[test]
fn what_a_witness_may_take_is_bounded_by_what_it_attests() {
    let total = u64::from(MAX_PIECES) * PIECE;
    let mut all = Leaves::new(SUBJECT, total);
    // Each batch says one thing that is new, and repeats what keeps the one before from being dropped.
    let mut refused = 0;
    for first in 0..200 {
        refused += u32::from(all.add(&batch(0, first..first + 250, 1), &nobody) == Err(Bad::Full));
    }
    assert!(refused > 0);
    let bytes: usize = all.batches().map(<[u8]>::len).sum();
    assert!(
        bytes <= all.len() * BYTES_A_LEAF + SLACK,
        "{bytes} for {}",
        all.len()
    );
    assert_eq!(bytes, all.bytes);
    all.add(&batch(1, [60_000], 1), &nobody).unwrap();
}

#[test]
fn a_large_file_has_room_in_full_batches_and_the_rest_of_a_larger_one_has_no_leaves() {
    let mut all = Leaves::new(SUBJECT, u64::MAX);
    assert_eq!(all.add(&batch(0, [MAX_PIECES], 1), &nobody), Err(Bad::Pieces));
    for first in (0..MAX_PIECES).step_by(MAX_ENTRIES) {
        all.add(&batch(0, first..first + MAX_ENTRIES as u32, 1), &nobody)
            .unwrap();
    }
    assert_eq!(all.len(), MAX_PIECES as usize);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn leaves_are_what_all_witnesses_that_were_not_forgotten_agree_on(
        steps in prop::collection::vec((0usize..3, prop::collection::vec((0u32..6, 0u8..2), 0..5), any::<bool>()), 0..14),
    ) {
        let mut all = leaves();
        // By witness: what it said of each piece.
        let mut said: Vec<BTreeMap<u32, BTreeSet<u8>>> = vec![BTreeMap::new(); 3];
        for (witness, entries, forget) in steps {
            if forget {
                let gone: BTreeSet<u64> = all.forget(KEYS[witness].id()).into_iter().collect();
                let had: BTreeSet<u64> = said[witness].keys().map(|piece| u64::from(*piece)).collect();
                prop_assert_eq!(gone, had);
                said[witness].clear();
                continue;
            }
            let entries: Vec<_> = entries.into_iter().map(|(piece, says)| (piece, hash(says))).collect();
            all.add(&Leaves::sign(SUBJECT, &entries, &KEYS[witness]), &nobody).unwrap();
            for (piece, says) in entries {
                said[witness].entry(piece).or_default().insert(says[0]);
            }
        }
        for piece in 0..6 {
            let words: BTreeSet<u8> = said.iter().filter_map(|of| of.get(&piece)).flatten().copied().collect();
            let leaf = all.leaf(u64::from(piece));
            let agreed = (words.len() == 1).then(|| words.iter().next().copied()).flatten();
            prop_assert_eq!(leaf.map(|leaf| leaf.hash[0]), agreed);
            if let Some(leaf) = leaf {
                let witness = KEYS.iter().position(|key| key.id() == leaf.witness).unwrap();
                prop_assert!(said[witness].contains_key(&piece));
            }
        }
        let bytes: usize = all.batches().map(<[u8]>::len).sum();
        prop_assert_eq!(bytes, all.bytes);
        // Nobody disputes a word within the batches that are passed on, but what was disputed is in none or in both.
        let again = Leaves::restore(SUBJECT, TOTAL, all.batches());
        prop_assert_eq!(again.len(), all.len());
        for piece in 0..6 {
            if let Some(leaf) = all.leaf(piece) {
                prop_assert_eq!(again.leaf(piece).map(|leaf| leaf.hash), Some(leaf.hash));
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(signed in prop::collection::vec(any::<u8>(), 0..300), body in prop::collection::vec(any::<u8>(), 0..120)) {
        let mut all = leaves();
        prop_assert!(all.add(&signed, &nobody).is_err());
        let body = [&SUBJECT.0[..], &body[..]].concat();
        let signature = KEYS[0].sign(&[DOMAIN, &body[..]].concat());
        // Whatever it says: it is right, or refused.
        let _ = all.add(&[&KEYS[0].id().0[..], &signature[..], &body[..]].concat(), &nobody);
        let _ = Leaves::restore(SUBJECT, TOTAL, [&signed[..], &body[..]].into_iter());
    }
}
