//! Tests of the table: who is a member, and that no order of arrival changes it.

use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::sample::Index;

use crate::identity::DeviceKey;

use super::*;

const DEVICES: usize = 6;

/// The same keys for all cases: to make one costs more than a case.
fn keys() -> &'static [DeviceKey; DEVICES] {
    static KEYS: OnceLock<[DeviceKey; DEVICES]> = OnceLock::new();
    KEYS.get_or_init(|| std::array::from_fn(|_| DeviceKey::ephemeral().unwrap()))
}

fn id(device: usize) -> PeerId {
    keys()[device].id()
}

fn vouch(by: usize, subject: usize, epoch: u32, may_vouch: bool) -> Signed {
    say(by, subject, epoch, Said::Vouch { may_vouch })
}

fn revoke(by: usize, subject: usize, epoch: u32, block: bool) -> Signed {
    say(by, subject, epoch, Said::Revoke { block })
}

fn say(by: usize, subject: usize, epoch: u32, said: Said) -> Signed {
    let subject = id(subject);
    Signed::new(Statement { subject, said, epoch }, &keys()[by]).unwrap()
}

/// As device 0 sees it.
fn view(statements: &[Signed]) -> View {
    table(statements).view(id(0))
}

fn table(statements: &[Signed]) -> Table {
    let mut table = Table::default();
    for signed in statements {
        table.merge(signed.clone(), id(0));
    }
    table
}

fn members(statements: &[Signed]) -> Vec<usize> {
    let view = view(statements);
    (0..DEVICES)
        .filter(|d| view.members.contains_key(&id(*d)))
        .collect()
}

#[test]
fn a_member_is_vouched_for_by_this_device_or_by_a_member_that_may() {
    assert_eq!(members(&[vouch(0, 1, 1, true), vouch(1, 2, 1, false)]), [1, 2]);
    assert_eq!(
        members(&[vouch(0, 1, 1, false), vouch(1, 2, 1, true)]),
        [1],
        "it may not vouch"
    );
    assert_eq!(
        members(&[vouch(2, 3, 1, true)]),
        [] as [usize; 0],
        "a stranger's word"
    );
    assert_eq!(
        members(&[vouch(1, 0, 1, true)]),
        [] as [usize; 0],
        "that is not for it to say"
    );
}

#[test]
fn sec_b9_an_old_vouch_replayed_after_a_revocation_is_nothing_and_a_new_one_counts() {
    let (old, gone) = (vouch(1, 2, 1, true), revoke(0, 2, 1, false));
    let household = vouch(0, 1, 1, true);
    for order in [[&old, &gone], [&gone, &old]] {
        assert_eq!(
            members(&[household.clone(), order[0].clone(), order[1].clone(), old.clone()]),
            [1]
        );
    }
    let table = table(&[household.clone(), old.clone(), gone.clone()]);
    let epoch = table.next_epoch(id(0), id(2), true).unwrap();
    assert_eq!(members(&[household, old, gone, vouch(0, 2, epoch, true)]), [1, 2]);
}

#[test]
fn sec_b9_whom_only_an_attacker_vouched_for_falls_with_it() {
    let said = [
        vouch(0, 1, 1, true),
        vouch(1, 2, 1, true),
        vouch(2, 3, 1, true),
        revoke(0, 1, 1, true),
    ];
    assert_eq!(members(&said), [] as [usize; 0]);
    assert_eq!(view(&said).blocked, [id(1)].into());
    let also = vouch(0, 2, 1, false);
    let said: Vec<Signed> = said.into_iter().chain([also]).collect();
    assert_eq!(
        members(&said),
        [2],
        "vouched for by this device too, but it may not vouch"
    );
}

#[test]
fn who_was_put_out_cannot_put_out_others_it_was_never_entitled_to() {
    assert_eq!(
        members(&[vouch(0, 1, 1, true), revoke(2, 1, 9, true)]),
        [1],
        "a stranger"
    );
    let may_not = [vouch(0, 1, 1, true), vouch(0, 2, 1, false), revoke(2, 1, 9, true)];
    assert_eq!(members(&may_not), [1, 2], "a member that may not vouch");
    assert_eq!(
        members(&[vouch(0, 1, 1, true), vouch(0, 2, 1, true), revoke(2, 1, 9, true)]),
        [2]
    );
}

#[test]
fn a_device_may_leave_but_not_block_itself() {
    let said = [vouch(0, 1, 1, false), revoke(1, 1, 1, false)];
    assert_eq!(members(&said), [] as [usize; 0]);
    assert!(view(&said).blocked.is_empty());
    assert_eq!(members(&[vouch(0, 1, 1, false), revoke(1, 1, 1, true)]), [1]);
}

#[test]
fn who_is_put_out_by_a_member_trusts_nobody_until_it_is_vouched_for_again() {
    let said = vec![vouch(0, 1, 1, true), vouch(1, 0, 1, true), revoke(1, 0, 1, false)];
    assert_eq!(view(&said).put_out_by, Some(id(1)));
    assert_eq!(members(&said), [] as [usize; 0]);
    let again = [said, vec![vouch(1, 0, 2, true)]].concat();
    assert_eq!((view(&again).put_out_by, members(&again)), (None, vec![1]));
}

#[test]
fn a_word_that_gives_more_than_the_own_one_before_is_of_a_later_epoch() {
    let mut table = table(&[vouch(0, 1, 1, false)]);
    let epoch = table.next_epoch(id(0), id(1), true).unwrap();
    assert!(table.merge(vouch(0, 1, epoch, true), id(0)));
    assert!(table.view(id(0)).members[&id(1)].may_vouch);
    assert_eq!(table.next_epoch(id(0), id(1), false), Some(epoch));
}

#[test]
fn sec_b9_who_was_blocked_and_came_back_is_not_blocked_in_its_own_eyes() {
    let back = [vouch(0, 1, 1, true), revoke(1, 0, 1, true), vouch(1, 0, 2, true)];
    let view = view(&back);
    assert_eq!(view.put_out_by, None);
    assert_eq!(view.blocked, BTreeSet::new());
}

#[test]
fn the_last_epoch_there_is_leaves_no_next_one() {
    let table = table(&[vouch(0, 1, 1, true), revoke(1, 2, u32::MAX, true)]);
    assert_eq!(table.next_epoch(id(0), id(2), true), None);
}

/// Any statement of any device about any other.
fn statement() -> impl Strategy<Value = Signed> {
    let said = prop_oneof![
        3 => any::<bool>().prop_map(|may_vouch| Said::Vouch { may_vouch }),
        1 => any::<bool>().prop_map(|block| Said::Revoke { block }),
    ];
    (0..DEVICES, 0..DEVICES, 1u32..4, said)
        .prop_map(|(by, subject, epoch, said)| say(by, subject, epoch, said))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn prop_7_no_order_of_arrival_and_no_repetition_changes_who_is_a_member(
        said in prop::collection::vec(statement(), 1..16),
        order in prop::collection::vec(any::<Index>(), 0..24),
    ) {
        let straight = view(&said);
        // Some twice and in any order, then all of them backwards.
        let shuffled = order.iter().map(|at| at.get(&said).clone());
        let shuffled: Vec<Signed> = shuffled.chain(said.iter().rev().cloned()).collect();
        prop_assert_eq!(straight, view(&shuffled));
    }

    #[test]
    fn prop_7_a_revocation_wins_over_every_vouch_of_its_epoch_and_before(
        said in prop::collection::vec(statement(), 0..16),
        subject in 1..DEVICES,
        epoch in 1u32..4,
        at in any::<Index>(),
    ) {
        let mut with = said.clone();
        with.insert(at.index(said.len() + 1), revoke(0, subject, epoch, false));
        let later = |s: &Signed| {
            let statement = s.statement();
            statement.subject == id(subject) && !is_revocation(statement) && statement.epoch > epoch
        };
        let (before, after) = (view(&said), view(&with));
        if !said.iter().any(later) {
            prop_assert!(!after.members.contains_key(&id(subject)));
        }
        for (member, vouched) in &after.members {
            let known = before.members.get(member);
            prop_assert!(known.is_some_and(|k| k.by.is_superset(&vouched.by)), "a revocation brought somebody in");
        }
    }
}

#[test]
fn prop_12_a_hundred_thousand_hostile_statements_leave_the_table_bounded_and_the_owners_word_in_it() {
    let crowd: Vec<DeviceKey> = (0..40).map(|_| DeviceKey::ephemeral().unwrap()).collect();
    let me = id(0);
    let mut pool = Vec::new();
    for (n, signer) in (0_u8..).zip(&crowd) {
        for about in 0_u8..150 {
            let subject = match crowd.get(usize::from(about)) {
                Some(known) => known.id(),
                None => PeerId([about; 32]),
            };
            let said = match about % 3 {
                0 => Said::Revoke { block: n % 2 == 0 },
                _ => Said::Vouch {
                    may_vouch: n % 2 == 0,
                },
            };
            let epoch = u32::from(n.wrapping_mul(about) % 5);
            pool.push(Signed::new(Statement { subject, said, epoch }, signer).unwrap());
        }
    }
    let mut table = Table::default();
    let of = |signer: PeerId, table: &Table| table.all().filter(|s| s.signer() == signer).count();
    for n in 0..100_000_usize {
        // Half of the crowd is vouched for by then, and one of those who were is put out.
        if n == 50_000 {
            for member in crowd.iter().step_by(2) {
                let subject = member.id();
                let said = Said::Vouch { may_vouch: true };
                let signed = Signed::new(
                    Statement {
                        subject,
                        said,
                        epoch: 9,
                    },
                    &keys()[0],
                )
                .unwrap();
                table.merge(signed, me);
            }
        }
        // In no order, the same each time.
        let at = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        table.merge(pool[at as usize % pool.len()].clone(), me);
        assert!(table.statements.len() <= MAX_STATEMENTS);
        if n < 50_000 {
            assert!(table.statements.len() <= MAX_UNKNOWN, "strangers");
        }
    }
    assert!(
        crowd
            .iter()
            .all(|signer| of(signer.id(), &table) <= 2 * MAX_OF_SIGNER)
    );
    assert_eq!(table.statements.len(), MAX_STATEMENTS, "the flood got in");
    let subject = crowd[2].id();
    let said = Said::Revoke { block: true };
    let out = Signed::new(
        Statement {
            subject,
            said,
            epoch: 9,
        },
        &keys()[0],
    )
    .unwrap();
    assert!(table.merge(out, me), "there is always room to put somebody out");
    assert!(table.view(me).blocked.contains(&subject));
    assert!(table.statements.len() <= MAX_STATEMENTS);
}
