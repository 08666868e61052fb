//! Members that bring wrong bytes (threats 1.3, FLT-25, FLT-26): the file is right every time, what is fetched again is
//! bounded, and who did it is barred.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tributary::link::Asked;
use tributary::share::leaves::Leaves;
use tributary::share::wire::{Fetch, News, Question, question};
use tributary::share::{Subject, Topic};

use super::MIB;
use super::evil_origin::{Bench, Reply, Request, content, sha256};
use super::house::{Peer, Puppet};

const PIECES: usize = 24;
/// Runs of each kind; the 200 in all are `--ignored`.
const RUNS: u64 = 4;
const MANY: u64 = 34;

/// What a member does to the household.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evil {
    /// Flips one bit in some pieces that it serves.
    Flips,
    /// Serves another piece than was asked for.
    Swaps,
    /// Breaks off in the middle of a piece.
    Truncates,
    /// Serves, and vouches for, what the origin had before.
    Older,
    /// Vouches for some pieces that it made up.
    Lies,
}

/// A member that has all of it, and how it serves that.
struct Member {
    evil: Evil,
    /// What it serves.
    bytes: Vec<u8>,
    /// Pieces that are wrong.
    wrong: BTreeSet<usize>,
    served_wrong: AtomicUsize,
}

impl Member {
    fn new(evil: Evil, data: &[u8], seed: u64) -> Self {
        let mut bytes = data.to_vec();
        // Some of the pieces, others each time; the first is what the origin brings anyway.
        let some = |n: usize| (n as u64 * 7 + seed).is_multiple_of(5);
        let wrong: BTreeSet<usize> = match evil {
            Evil::Older => (0..PIECES).collect(),
            _ => (0..PIECES).filter(|n| some(*n)).collect(),
        };
        for piece in &wrong {
            match evil {
                Evil::Flips => bytes[piece * MIB + (seed as usize * 977) % MIB] ^= 1 << (seed % 8),
                Evil::Older | Evil::Lies => bytes[piece * MIB..(piece + 1) * MIB]
                    .iter_mut()
                    .for_each(|b| *b ^= 0xff),
                Evil::Swaps | Evil::Truncates => {}
            }
        }
        Self {
            evil,
            bytes,
            wrong,
            served_wrong: AtomicUsize::new(0),
        }
    }

    fn piece(&self, piece: usize) -> &[u8] {
        &self.bytes[piece * MIB..(piece + 1) * MIB]
    }

    /// Its leaves: of what the origin has, but where it lies about that.
    fn leaves(&self, data: &[u8], subject: Subject, puppet: &Puppet) -> Vec<u8> {
        let lies = matches!(self.evil, Evil::Older | Evil::Lies);
        let of = |piece: usize| match lies {
            true => self.piece(piece),
            false => &data[piece * MIB..(piece + 1) * MIB],
        };
        let entries: Vec<_> = (0..PIECES)
            .map(|piece| (piece as u32, *blake3::hash(of(piece)).as_bytes()))
            .collect();
        Leaves::sign(subject, &entries, &puppet.key)
    }

    async fn serve(&self, asked: &mut Asked, fetch: &Fetch) {
        for piece in (fetch.first..fetch.first + fetch.count).map(|p| p as usize) {
            let wrong = self.wrong.contains(&piece);
            if wrong {
                self.served_wrong.fetch_add(1, Ordering::Relaxed);
            }
            let sent = match self.evil {
                Evil::Swaps if wrong => self.piece((piece + 1) % PIECES),
                Evil::Truncates if wrong => &self.piece(piece)[..MIB / 2],
                _ => self.piece(piece),
            };
            if asked.stream.give(sent.to_vec().into()).await.is_err() || sent.len() < MIB {
                return;
            }
        }
        asked.stream.finish();
    }
}

/// What came of one download.
struct Came {
    member: Arc<Member>,
    from_members: u64,
    from_origin: u64,
    barred: bool,
    attested: bool,
}

/// A download that such a member helps with, with a digest or without.
async fn poisoned(evil: Evil, seed: u64, proven: bool) -> Came {
    let data = content(PIECES * MIB, seed);
    let served = data.clone();
    let mut bench = Bench::new(2, move |request: &Request| {
        Reply::honest(request, &served, "\"v1\"").rate(24 * MIB)
    })
    .await;
    bench.job.sha256 = proven.then(|| sha256(&data));
    let us = Peer::new("us");
    bench.household = Some(us.household.clone());
    let mut puppet = Puppet::new("evil");
    puppet.joins(&us).await;
    let url = Topic::of(&bench.job.url, None).url.unwrap();
    let subject = Subject::of_generation(&url, (PIECES * MIB) as u64, "etag \"v1\"");
    let member = Arc::new(Member::new(evil, &data, seed));
    let serving = tokio::spawn({
        let member = member.clone();
        let data = data.clone();
        async move {
            let mut watches = Vec::new();
            while let Some(mut asked) = puppet.asked.recv().await {
                match question(asked.kind, &asked.body) {
                    Ok(Question::Watch(_)) => {
                        let news = [
                            News::Holds(1, 0, subject, (PIECES * MIB) as u64),
                            News::Leaves(1, member.leaves(&data, subject, &puppet)),
                            News::Got(1, vec![(0, PIECES as u32)]),
                        ];
                        for news in news {
                            asked.stream.give(news.frame().unwrap().into()).await.unwrap();
                        }
                        watches.push(asked);
                    }
                    Ok(Question::Fetch(fetch)) => {
                        let member = member.clone();
                        tokio::spawn(async move { member.serve(&mut asked, &fetch).await });
                    }
                    _ => {}
                }
            }
        }
    });
    let id = us.links.all()[0].peer();
    let outcome = bench.get_exactly(&data).await;
    serving.abort();
    Came {
        member,
        from_members: outcome.members.iter().map(|m| m.2).sum(),
        from_origin: outcome.lanes.iter().map(|l| l.1).sum(),
        barred: us.shelf.bars().is_barred(id, std::time::Instant::now()),
        attested: outcome.attested.is_some(),
    }
}

/// Runs each kind so often; without a digest only those that are found out for certain.
async fn runs(often: u64) {
    for evil in [Evil::Flips, Evil::Swaps, Evil::Truncates, Evil::Older] {
        for seed in 1..=often {
            let came = poisoned(evil, seed, false).await;
            let wrong = came.member.served_wrong.load(Ordering::Relaxed);
            match evil {
                Evil::Flips | Evil::Swaps => {
                    // Two are judged while up to four were asked for.
                    assert!(
                        wrong <= 2 + 4,
                        "{evil:?} {seed}: {wrong} wrong pieces were asked for"
                    );
                    assert!(
                        came.barred || wrong < 2,
                        "{evil:?} {seed}: {wrong} wrong pieces, not barred"
                    );
                    assert!(came.attested || came.from_members == 0);
                }
                Evil::Older => assert!(came.barred, "{evil:?} {seed}"),
                Evil::Truncates | Evil::Lies => {}
            }
            // All of it comes once, and once more at the most what a member brought.
            let total = (PIECES * MIB) as u64;
            assert!(
                came.from_origin + came.from_members <= 2 * total,
                "{evil:?} {seed}"
            );
            assert!(came.from_origin + came.from_members >= total, "{evil:?} {seed}");
        }
    }
    for evil in [Evil::Lies, Evil::Older] {
        for seed in 1..=often {
            let came = poisoned(evil, seed, true).await;
            assert!(!came.attested, "a digest proves it");
            let brought_wrong = came.member.served_wrong.load(Ordering::Relaxed) > 0;
            assert!(
                came.barred || !brought_wrong,
                "{evil:?} {seed}: who lied is not barred"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flt_25_whatever_a_member_brings_the_file_is_right_and_who_did_it_is_barred() {
    runs(RUNS).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the same two hundred times, minutes"]
async fn flt_25_two_hundred_times() {
    runs(MANY).await;
}

/// An honest member's pieces need one hundredth of the content from the origin, and what came so is said to be on its word.
#[tokio::test(flavor = "multi_thread")]
async fn flt_26_an_honest_members_pieces_need_few_slices_of_the_origin() {
    let data = content(PIECES * MIB, 3);
    let served = data.clone();
    let mut bench = Bench::new(2, move |request: &Request| {
        Reply::honest(request, &served, "\"v1\"")
    })
    .await;
    let (us, other) = (Peer::new("us"), Peer::new("other"));
    super::house::household(&[&us, &other]).await;
    bench.household = Some(other.household.clone());
    bench.get_exactly(&data).await;
    let first = std::mem::replace(&mut bench.directory, tempfile::TempDir::new().unwrap());
    bench.household = Some(us.household.clone());
    let outcome = bench.get_exactly(&data).await;
    drop(first);
    let from_origin: u64 = outcome.lanes.iter().map(|l| l.1).sum();
    assert!(from_origin <= 8 * 65_536, "{from_origin} bytes of the origin");
    assert!(outcome.attested.is_some());
}
