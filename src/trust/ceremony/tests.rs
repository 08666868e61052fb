//! All ways to be vouched for, among devices without a network.

mod world;

use proptest::prelude::*;

use super::*;
use crate::trust::guesses::OF_ALL;
use crate::trust::words::No;
use crate::trust::{Pake, Purpose, VALID};

use world::{World, id, seeded, token};

const SECOND: Duration = Duration::from_secs(1);
const PASSPHRASE: &[u8] = b"correct horse battery staple";

fn two(first: Option<&'static [u8]>, second: Option<&'static [u8]>) -> (World, PeerId, PeerId) {
    let (a, b) = (id(1), id(2));
    (World::new([(a, first), (b, second)]), a, b)
}

#[test]
fn two_devices_of_one_passphrase_are_members_as_soon_as_they_are_linked() {
    let (mut world, a, b) = two(Some(PASSPHRASE), Some(PASSPHRASE));
    world.link(a, b, 3);
    world.settle();
    assert!(world.are_members(a, b));
    assert_eq!(world.vouched.len(), 2);
    // A member is not asked again.
    world.said.clear();
    world.link(a, b, 4);
    world.settle();
    assert!(world.said.is_empty(), "{:?}", world.said);
}

#[test]
fn whoever_is_a_member_to_one_side_only_comes_in_by_the_passphrase_whichever_it_is() {
    for known in [0, 1] {
        let (mut world, a, b) = two(Some(PASSPHRASE), Some(PASSPHRASE));
        let ends = [(a, b), (b, a)];
        world.vouched.push((ends[known].0, ends[known].1, Way::Token));
        world.link(a, b, 3);
        world.settle();
        assert!(world.are_members(a, b), "{known}");
    }
}

#[test]
fn without_the_passphrase_or_with_another_one_nobody_is_vouched_for() {
    for other in [None, Some(&b"wrong horse"[..])] {
        let (mut world, a, b) = two(Some(PASSPHRASE), other);
        world.link(a, b, 3);
        world.settle();
        assert_eq!(world.vouched, []);
    }
}

#[test]
fn sec_b9_who_was_put_out_does_not_come_back_by_the_passphrase() {
    let (mut world, a, b) = two(Some(PASSPHRASE), Some(PASSPHRASE));
    for out in [a, b] {
        world.out = vec![out];
        world.link(a, b, 3);
        world.settle();
        let by_others = world.vouched.iter().filter(|(_, of, _)| *of == out);
        assert_eq!(by_others.count(), 0);
        world.vouched.clear();
    }
}

#[test]
fn sec_a20_a_passphrase_is_guessed_three_times_by_one_device_and_ten_times_by_all() {
    let victim = id(0);
    let mut world = World::new([(victim, Some(PASSPHRASE))]);
    let mut proofs = 0;
    for guesser in 1..200_u64 {
        let attacker = id(guesser);
        world.devices.insert(
            attacker,
            Ceremonies::new(Some(Secret::new(b"a wrong guess".to_vec()))),
        );
        for run in 0..5 {
            world.link(victim, attacker, guesser * 10 + run);
            world.settle();
        }
        let proof = |(from, _, words): &(PeerId, PeerId, Words)| {
            *from == victim && matches!(words, Words::Passphrase(Step::Answer(..) | Step::Confirm(_)))
        };
        proofs = world.said.iter().filter(|said| proof(said)).count();
        assert!(proofs <= 3 * usize::try_from(guesser).unwrap());
        world.devices.remove(&attacker);
        world.device(victim).gone(attacker);
    }
    // Half of the attackers are asked first, and get no proof at all.
    assert!(proofs > 0 && proofs <= OF_ALL, "{proofs} proofs were shown");
    // Now the right one does not get in either; with a token it does.
    let friend = id(1000);
    world
        .devices
        .insert(friend, Ceremonies::new(Some(Secret::new(PASSPHRASE.to_vec()))));
    world.link(victim, friend, 7);
    world.settle();
    assert_eq!(world.vouched, []);
    world.invite(victim, 1);
    world.join(friend, 1);
    world.settle();
    assert!(world.are_members(victim, friend));
    // After the hour it is open again.
    let late = id(1001);
    world
        .devices
        .insert(late, Ceremonies::new(Some(Secret::new(PASSPHRASE.to_vec()))));
    world.pass(Duration::from_secs(3601));
    world.link(victim, late, 8);
    world.settle();
    assert!(world.are_members(victim, late));
}

#[test]
fn a_token_lets_one_device_in_and_its_maker_is_found_among_all() {
    let ids: Vec<PeerId> = (0..5).map(id).collect();
    let mut world = World::new(ids.iter().map(|id| (*id, None)));
    for n in 1..5 {
        world.link(ids[0], ids[n], 10 + n as u64);
    }
    world.invite(ids[3], 1);
    world.join(ids[0], 1);
    world.settle();
    assert!(world.are_members(ids[0], ids[3]));
    assert_eq!(world.vouched.len(), 2);
    assert_eq!(world.joined, [(ids[0], Ok(ids[3]))]);
    // Used.
    world.link(ids[1], ids[3], 20);
    world.join(ids[1], 1);
    world.settle();
    assert_eq!(world.joined.last(), Some(&(ids[1], Err(NotJoined::Used))));
    assert_eq!(world.vouched.len(), 2);
}

#[test]
fn of_two_that_come_with_one_token_at_once_exactly_one_gets_in() {
    for first in [1, 2] {
        let (maker, one, other) = (id(0), id(first), id(3 - first));
        let mut world = World::new([maker, one, other].map(|id| (id, None)));
        world.link(maker, one, 1);
        world.link(maker, other, 2);
        world.invite(maker, 1);
        world.join(one, 1);
        world.join(other, 1);
        world.settle();
        let by_maker = world.vouched.iter().filter(|(by, ..)| *by == maker);
        assert_eq!(by_maker.count(), 1);
        type Outcomes = Vec<(PeerId, Result<PeerId, NotJoined>)>;
        let (won, lost): (Outcomes, Outcomes) = world.joined.iter().partition(|(_, outcome)| outcome.is_ok());
        assert_eq!((won.len(), lost.len()), (1, 1));
        assert_eq!(lost[0].1, Err(NotJoined::Used));
    }
}

#[test]
fn a_token_that_is_over_unknown_or_the_own_one_says_so() {
    let (mut world, a, b) = two(None, None);
    world.link(a, b, 3);
    world.invite(a, 1);
    assert_eq!(
        world.device(a).join(token(1), Instant::now()).unwrap_err(),
        NotJoined::Own
    );
    world.now += VALID;
    world.join(b, 1);
    world.settle();
    assert_eq!(world.joined.pop(), Some((b, Err(NotJoined::Expired))));
    world.join(b, 2);
    world.settle();
    assert_eq!(world.joined, [], "another device may still turn up");
    world.pass(6 * SECOND);
    assert_eq!(world.joined.pop(), Some((b, Err(NotJoined::Unknown))));
    let alone = id(9);
    world.devices.insert(alone, Ceremonies::default());
    world.join(alone, 2);
    world.pass(6 * SECOND);
    assert_eq!(world.joined.pop(), Some((alone, Err(NotJoined::Nobody))));
    assert_eq!(world.vouched, []);
}

#[test]
fn a_maker_that_is_linked_a_little_later_is_found() {
    let (mut world, a, b) = two(None, None);
    world.invite(a, 1);
    world.join(b, 1);
    world.pass(2 * SECOND);
    world.link(a, b, 3);
    world.settle();
    assert!(world.are_members(a, b));
}

#[test]
fn who_knows_only_a_tokens_id_cannot_use_it_up() {
    let (mut world, a, b) = two(None, None);
    let attacker = id(5);
    world.invite(a, 1);
    world.end(a, attacker, 4);
    for n in 0..100 {
        let open = Words::Token(
            token(1).id(),
            Step::Open(Pake::new(&[n], Purpose::Passphrase, &ends(attacker, a)).point()),
        );
        let now = world.now;
        let todo = world
            .device(a)
            .heard(attacker, &open.bytes(), Standing::Stranger, now);
        assert!(matches!(
            todo[..],
            [Do::Say(_, Words::Token(_, Step::Answer(..)))]
        ));
        let confirm = Words::Token(token(1).id(), Step::Confirm([n; 32]));
        let todo = world
            .device(a)
            .heard(attacker, &confirm.bytes(), Standing::Stranger, now);
        assert_eq!(
            todo,
            [Do::Say(
                attacker,
                Words::Token(token(1).id(), Step::No(No::Wrong))
            )]
        );
    }
    world.link(a, b, 3);
    world.join(b, 1);
    world.settle();
    assert!(world.are_members(a, b));
}

fn ends(me: PeerId, peer: PeerId) -> Ends {
    Ends {
        me,
        peer,
        channel: [0; 32],
    }
}

/// Both run the command; the second one a while later.
fn approve_both(world: &mut World, a: PeerId, b: PeerId) {
    world.approve(a, b, seeded(100)).unwrap();
    world.settle();
    assert_eq!(world.device(b).asking().collect::<Vec<_>>(), [a]);
    world.approve(b, a, seeded(101)).unwrap();
    world.settle();
}

#[test]
fn two_people_who_see_the_same_code_make_members_of_their_devices() {
    for at_once in [false, true] {
        let (mut world, a, b) = two(None, None);
        world.link(a, b, 3);
        if at_once {
            world.approve(a, b, seeded(100)).unwrap();
            world.approve(b, a, seeded(101)).unwrap();
            world.settle();
        } else {
            approve_both(&mut world, a, b);
        }
        assert!(world.code(a).is_some() && world.code(a) == world.code(b));
        world.compared(a, true);
        world.settle();
        assert_eq!(world.vouched, [], "only one of them has said yes");
        world.compared(b, true);
        world.settle();
        assert!(world.are_members(a, b));
        assert_eq!(world.looked.iter().filter(|(_, l)| *l == Looked::Done).count(), 2);
        assert_eq!(world.device(b).asking().count(), 0);
    }
}

#[test]
fn a_no_an_end_and_the_time_approve_nobody_on_either_side() {
    for how in ["no", "gone", "late", "link"] {
        let (mut world, a, b) = two(None, None);
        world.link(a, b, 3);
        approve_both(&mut world, a, b);
        world.compared(b, true);
        match how {
            "no" => world.compared(a, false),
            "gone" => {
                let todo = world.device(a).stop_approving();
                world.take(a, todo);
            }
            "late" => world.pass(APPROVE_WITHIN),
            _ => {
                for (me, peer) in [(a, b), (b, a)] {
                    let todo = world.device(me).gone(peer);
                    world.take(me, todo);
                }
            }
        }
        world.settle();
        world.compared(a, true);
        world.settle();
        assert_eq!(world.vouched, [], "{how}");
        let over = world.looked.iter().filter(|(_, l)| matches!(l, Looked::Over(_)));
        assert_eq!(over.count(), 2, "{how}: both are told");
    }
}

#[test]
fn where_two_devices_ask_at_once_nobody_is_approved() {
    let (a, b, c) = (id(1), id(2), id(3));
    let mut world = World::new([a, b, c].map(|id| (id, None)));
    world.link(a, b, 4);
    world.link(a, c, 5);
    approve_both(&mut world, a, b);
    world.approve(c, a, seeded(7)).unwrap();
    world.settle();
    let over = |who| {
        (
            who,
            Looked::Over(if who == a {
                NotApproved::Overlap
            } else {
                NotApproved::Declined
            }),
        )
    };
    assert!(
        world.looked.contains(&over(a)) && world.looked.contains(&over(b)),
        "{:?}",
        world.looked
    );
    assert_eq!(
        world.approve(a, b, seeded(8)),
        Err(NotApproved::Overlap),
        "the third one still asks"
    );
    world.compared(a, true);
    world.compared(b, true);
    world.settle();
    assert_eq!(world.vouched, []);
    world.pass(APPROVE_WITHIN);
    approve_both(&mut world, a, b);
    world.compared(a, true);
    world.compared(b, true);
    world.settle();
    assert!(world.are_members(a, b));
}

/// Whoever is in the middle has sound links with both, and passes on what they say: that is all it can do without the
/// secret, and what it makes up itself is the state machines' own tests' matter.
#[test]
fn sec_a2_whoever_is_in_the_middle_gets_nobody_vouched_for_in_a_thousand_tries_of_each_way() {
    let (mut passphrase, mut by_token, mut code) = (0, 0, 0);
    for case in 0..1000_u64 {
        let at = case * 100 + 10_000;
        let (a, b, middle) = (id(at), id(at + 1), id(at + 2));
        let relay = |from: PeerId, to: PeerId, words: Words| {
            assert_eq!(to, middle);
            Some((middle, if from == a { b } else { a }, words))
        };
        let mut world = World::new([(a, Some(PASSPHRASE)), (b, Some(PASSPHRASE))]);
        world.end(a, middle, at + 3);
        world.end(b, middle, at + 4);
        world.settle_by(relay);
        // Where both wait for the middle to begin, it begins.
        for (victim, other) in [(a, b), (b, a)] {
            let (now, ready) = (world.now, Words::Passphrase(Step::Ready).bytes());
            let todo = world
                .device(victim)
                .heard(middle, &ready, Standing::Stranger, now);
            world.take(victim, todo);
            let _ = other;
            world.settle_by(relay);
        }
        passphrase += world.vouched.len();

        let mut world = World::new([(a, None), (b, None)]);
        world.end(a, middle, at + 3);
        world.end(b, middle, at + 4);
        world.invite(a, 1);
        world.join(b, 1);
        world.settle_by(relay);
        by_token += world.vouched.len();
        assert_eq!(world.joined, [(b, Err(NotJoined::Wrong))]);

        world.approve(a, middle, seeded(at + 5)).unwrap();
        world.approve(b, middle, seeded(at + 6)).unwrap();
        world.settle_by(relay);
        let codes = [world.code(a), world.code(b)];
        code += usize::from(codes[0].is_some() && codes[0] == codes[1]);
    }
    assert_eq!([passphrase, by_token, code], [0; 3]);
}

#[test]
fn words_out_of_turn_and_noise_vouch_for_nobody_and_keep_nothing() {
    let (a, peer) = (id(1), id(2));
    let mut world = World::new([(a, Some(PASSPHRASE))]);
    world.invite(a, 1);
    world.end(a, peer, 3);
    let mut seed = 1;
    let mut next = || {
        seed += 1;
        seeded(seed)
    };
    for case in 0..20_000_u32 {
        let random = next();
        let step = match random[0] % 7 {
            0 => Step::Ready,
            1 => Step::Open(next()),
            2 => Step::Answer(next(), next()),
            3 => Step::Confirm(next()),
            4 => Step::Done,
            5 => Step::No(No::Used),
            _ => Step::No(No::Closed),
        };
        let look = match random[1] % 4 {
            0 => Look::Commit(next()),
            1 => Look::Reveal(next()),
            2 => Look::Yes,
            _ => Look::No,
        };
        let mut bytes = match random[2] % 4 {
            0 => Words::Passphrase(step).bytes(),
            1 => Words::Token(token(1).id(), step).bytes(),
            2 => Words::Approve(look).bytes(),
            _ => random.to_vec(),
        };
        if random[3] % 8 == 0 {
            bytes.truncate(usize::from(random[4] % 64));
        }
        if case % 500 == 0 {
            let _ = world.device(a).approve(peer, next(), Instant::now());
        }
        world.now += SECOND;
        let now = world.now;
        for one in world.device(a).heard(peer, &bytes, Standing::Stranger, now) {
            assert!(
                !matches!(one, Do::Vouch { .. } | Do::Joined(_)),
                "{one:?} after {bytes:02x?}"
            );
        }
    }
}

#[test]
fn links_are_bounded_and_what_is_said_without_one_is_nothing() {
    let a = id(0);
    let mut world = World::new([(a, Some(PASSPHRASE))]);
    for n in 1..200 {
        world.end(a, id(n), n);
    }
    assert_eq!(world.device(a).near.len(), MAX_NEAR);
    let ready = Words::Passphrase(Step::Ready).bytes();
    let todo = world
        .device(a)
        .heard(id(500), &ready, Standing::Stranger, Instant::now());
    assert_eq!(todo, []);
}

/// What a neighbour that knows no secret can say: halves and proofs of a guess, what it heard, and noise.
#[derive(Clone, Debug)]
enum Forged {
    Half,
    Answer { proven: bool },
    Confirm { proven: bool },
    Echo(usize),
    Plain(Words),
}

fn forged() -> impl Strategy<Value = Forged> {
    let noise = prop_oneof![
        Just(Step::Ready),
        Just(Step::Done),
        Just(Step::No(No::Wrong)),
        any::<[u8; 32]>().prop_map(Step::Open),
        any::<([u8; 32], [u8; 32])>().prop_map(|(point, tag)| Step::Answer(point, tag)),
        any::<[u8; 32]>().prop_map(Step::Confirm),
    ];
    let look = prop_oneof![
        any::<[u8; 32]>().prop_map(Look::Commit),
        any::<[u8; 32]>().prop_map(Look::Reveal),
        Just(Look::Yes),
        Just(Look::No),
    ];
    prop_oneof![
        1 => Just(Forged::Half),
        1 => any::<bool>().prop_map(|proven| Forged::Answer { proven }),
        1 => any::<bool>().prop_map(|proven| Forged::Confirm { proven }),
        2 => (0..8usize).prop_map(Forged::Echo),
        2 => noise.clone().prop_map(|step| Forged::Plain(Words::Passphrase(step))),
        2 => noise.prop_map(|step| Forged::Plain(Words::Token(token(1).id(), step))),
        2 => look.prop_map(|look| Forged::Plain(Words::Approve(look))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn prop_6_no_words_of_a_neighbour_without_a_secret_get_it_vouched_for(
        all in prop::collection::vec((any::<bool>(), forged()), 1..6),
        swapped: bool,
        doing in 0..4u8,
    ) {
        // Who has the smaller id plays another part.
        let [me, peer] = if swapped { [id(2), id(1)] } else { [id(1), id(2)] };
        let channel = [7; 32];
        let (ours, theirs) = (Ends { me, peer, channel }, Ends { me: peer, peer: me, channel });
        let now = Instant::now();
        let mut victim = Ceremonies::new(Some(Secret::new(PASSPHRASE.to_vec())));
        victim.invite(token(1), true, VALID, now);
        let mut done = victim.linked(ours, Standing::Stranger);
        match doing {
            // It comes with a token, which the neighbour has not; it waits for its person's yes.
            1 => done.extend(victim.join(token(2), now).unwrap()),
            2 => done.extend(victim.approve(peer, [9; 32], now).unwrap()),
            _ => {}
        }
        let mut heard: Vec<Words> = Vec::new();
        for (by_token, forged) in all {
            heard.extend(done.iter().filter_map(|d| match d {
                Do::Say(_, words) => Some(*words),
                _ => None,
            }));
            let purpose = if by_token { Purpose::Token(token(1).id()) } else { Purpose::Passphrase };
            let step = |step| if by_token { Words::Token(token(1).id(), step) } else { Words::Passphrase(step) };
            let half = heard.iter().rev().find_map(|words| match words {
                Words::Passphrase(Step::Open(p) | Step::Answer(p, _)) if !by_token => Some(*p),
                Words::Token(_, Step::Open(p) | Step::Answer(p, _)) if by_token => Some(*p),
                _ => None,
            });
            let guess = || Pake::new(b"a wrong guess", purpose, &theirs);
            let tag = |proven: bool, pake: Pake| match half.filter(|_| proven) {
                Some(half) => pake.finish(&half).map_or([0; 32], |keyed| keyed.tag()),
                None => [0; 32],
            };
            let words = match forged {
                Forged::Half => step(Step::Open(guess().point())),
                Forged::Answer { proven } => {
                    let pake = guess();
                    let point = pake.point();
                    step(Step::Answer(point, tag(proven, pake)))
                }
                Forged::Confirm { proven } => step(Step::Confirm(tag(proven, guess()))),
                Forged::Echo(n) if !heard.is_empty() => heard[n % heard.len()],
                Forged::Echo(_) => step(Step::Ready),
                Forged::Plain(words) => words,
            };
            done = victim.heard(peer, &words.bytes(), Standing::Stranger, now);
            prop_assert!(!done.iter().any(|d| matches!(d, Do::Vouch { .. })), "{words:?}: {done:?}");
        }
    }
}
