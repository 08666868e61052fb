//! FUZ-20: what is said while one device is vouched for by another. Nobody who knows no secret is let in, whatever it says
//! and however it mixes what others said; two who know the same one are, and two who do not are not.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tributary::trust::ceremony::{Ceremonies, Do, MAX_NEAR, Standing};
use tributary::trust::{Ends, Look, MAX_WORDS, Secret, Step, Token, TokenId, VALID, Words};
use tributary::types::PeerId;

use super::input::Input;
use super::statements::id;

const PASSPHRASE: &[u8] = b"correct horse battery staple";
/// What was said and may be said again, to whomever.
const MOST_HEARD: usize = 16;
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The bytes as words; as what peers without a secret do; and as what happens between two honest devices.
pub fn check(data: &[u8]) {
    judge_words(data);
    match data.split_first() {
        Some((how, rest)) if how & 1 == 0 => attack(rest),
        Some((how, rest)) => meet(*how, rest),
        None => {}
    }
}

fn judge_words(bytes: &[u8]) {
    let Some(words) = Words::read(bytes) else { return };
    let again = words.bytes();
    assert!(bytes.len() <= MAX_WORDS && again.len() <= MAX_WORDS);
    assert_eq!(Words::read(&again), Some(words));
    assert_eq!(Words::read(&[bytes, &[0]].concat()), None, "more follows");
}

/// Peers that know neither passphrase nor token, but every id, and everything that is said to any of them.
fn attack(data: &[u8]) {
    let mut input = Input(data);
    let mut device = Ceremonies::new(Some(Secret::new(PASSPHRASE.to_vec())));
    let mut now = *START;
    let token = Token::new([7; 16]);
    let known = token.id();
    assert!(device.invite(token, true, VALID, now));
    let mut heard: VecDeque<Words> = VecDeque::new();
    // A run costs curve arithmetic.
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let [what, who] = input.array();
        let peer = id(who % 16 + 1);
        let standing = if who & 0x80 == 0 {
            Standing::Stranger
        } else {
            Standing::PutOut
        };
        let todo = match what % 8 {
            0 | 1 => device.linked(ends(0, peer), standing),
            2 => device.gone(peer),
            3 => {
                now += Duration::from_secs(input.u16().into());
                device.tick(now)
            }
            4 => device.heard(peer, input.short(), standing, now),
            5 if !heard.is_empty() => {
                let words = heard[usize::from(input.u8()) % heard.len()];
                device.heard(peer, &words.bytes(), standing, now)
            }
            _ => {
                let words = made_up(&mut input, &heard, known);
                device.heard(peer, &words.bytes(), standing, now)
            }
        };
        for one in todo {
            match one {
                Do::Say(_, words) => {
                    judge_words(&words.bytes());
                    heard.truncate(MOST_HEARD - 1);
                    heard.push_front(words);
                }
                Do::Vouch { peer, way, .. } => panic!("{peer} got in by {way:?}"),
                Do::Joined(outcome) => panic!("nobody asked to join: {outcome:?}"),
                Do::Approving(looked) => panic!("nobody approves: {looked:?}"),
            }
        }
        assert!(device.asking().count() <= MAX_NEAR);
    }
}

/// A step with 32 bytes that were heard, or that the fuzzer likes.
fn made_up(input: &mut Input<'_>, heard: &VecDeque<Words>, known: TokenId) -> Words {
    let [kind, from] = input.array();
    let bytes = |input: &mut Input<'_>, n: usize| match heard.get(n) {
        Some(Words::Passphrase(step) | Words::Token(_, step)) => match *step {
            Step::Open(point) | Step::Answer(point, _) => point,
            Step::Confirm(tag) => tag,
            _ => input.array(),
        },
        Some(Words::Approve(Look::Commit(bytes) | Look::Reveal(bytes))) => *bytes,
        _ => input.array(),
    };
    let one = bytes(input, usize::from(from % 16));
    let step = match kind % 8 {
        0 => Step::Ready,
        1 | 2 => Step::Open(one),
        3 | 4 => Step::Answer(one, bytes(input, usize::from(from / 16))),
        5 | 6 => Step::Confirm(one),
        _ => Step::Done,
    };
    match kind / 8 % 4 {
        0 | 1 => Words::Passphrase(step),
        2 => Words::Token(known, step),
        _ => Words::Approve(match kind % 4 {
            0 => Look::Commit(one),
            1 => Look::Reveal(one),
            2 => Look::Yes,
            _ => Look::No,
        }),
    }
}

/// Two devices meet, of one passphrase or of two, over one link or with somebody in between; one message may be changed.
fn meet(how: u8, data: &[u8]) {
    let mut input = Input(data);
    let (same, between) = (how & 2 == 0, how & 4 != 0);
    let change = if how & 8 == 0 {
        None
    } else {
        Some((input.u8() % 8, input.u8(), input.u8()))
    };
    let secret = |n: usize| {
        let own = if same || n == 0 {
            PASSPHRASE
        } else {
            b"another one"
        };
        Some(Secret::new(own.to_vec()))
    };
    let ids = [id(1), id(2)];
    let mut devices = [Ceremonies::new(secret(0)), Ceremonies::new(secret(1))];
    let mut wire: VecDeque<(usize, Words)> = VecDeque::new();
    let mut vouched = [false; 2];
    let mut changed = false;
    let mut take = |me: usize, todo: Vec<Do>, wire: &mut VecDeque<(usize, Words)>| {
        for one in todo {
            match one {
                Do::Say(_, words) => wire.push_back((1 - me, words)),
                Do::Vouch { .. } => vouched[me] = true,
                Do::Joined(_) | Do::Approving(_) => {}
            }
        }
    };
    for me in 0..2 {
        let mut ends = ends(if between { me as u8 } else { 0 }, ids[1 - me]);
        ends.me = ids[me];
        let todo = devices[me].linked(ends, Standing::Stranger);
        take(me, todo, &mut wire);
    }
    for n in 0..64 {
        let Some((to, words)) = wire.pop_front() else {
            break;
        };
        let mut bytes = words.bytes();
        if let Some((which, at, flip)) = change
            && which == n
            && flip != 0
        {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= flip;
            changed = true;
        }
        let todo = devices[to].heard(ids[1 - to], &bytes, Standing::Stranger, *START);
        take(to, todo, &mut wire);
    }
    if !same || between {
        assert_eq!(
            vouched, [false; 2],
            "of two passphrases, or with somebody in between"
        );
    } else if !changed {
        assert_eq!(vouched, [true; 2], "of one passphrase");
    }
}

/// A link of device 0, or of the one that is filled in, to that peer.
fn ends(channel: u8, peer: PeerId) -> Ends {
    Ends {
        me: id(0),
        peer,
        channel: [channel + 1; 32],
    }
}
