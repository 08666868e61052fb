//! Members and neighbours that mean no good.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tributary::identity::DeviceKey;
use tributary::link::Asked;
use tributary::link::wire::{FETCH, LIST, WATCH};
use tributary::share::leaves::Leaves;
use tributary::share::wire::{Fetch, News, Question, question};
use tributary::share::{FetchError, ReadAt, Sharing};
use tributary::trust::PutOut;
use tributary::types::PIECE;

use super::house::{File, Peer, Puppet, household};
use super::{until, until_has};

fn begins(peer: &Peer, file: &File) -> Sharing {
    let look = peer.household.look(file.topic);
    look.begin(file.content.clone(), file.bytes.clone())
}

/// Its own leaves of all pieces, signed by `key`.
fn leaves(file: &File, key: &DeviceKey) -> Vec<u8> {
    let entries: Vec<_> = (0..file.pieces())
        .map(|piece| (piece as u32, file.hash(piece)))
        .collect();
    Leaves::sign(file.content.subjects[0], &entries, key)
}

async fn say(asked: &mut Asked, news: &[News]) {
    for news in news {
        asked.stream.give(news.frame().unwrap().into()).await.unwrap();
    }
}

/// Waits until the other end has ended this watch.
async fn ended(asked: &Asked) {
    let ended = tokio::time::timeout(Duration::from_secs(10), asked.stream.left());
    ended.await.expect("it is still heard");
}

/// All that comes until the stream ends, and how it ends.
async fn outcome(link: &tributary::link::Link, kind: u16, body: &impl serde::Serialize) -> String {
    let heard = async {
        match link.ask(kind, body).await {
            Ok(mut stream) => format!("{:?}", stream.hear().await),
            Err(error) => format!("{error:?}"),
        }
    };
    tokio::time::timeout(Duration::from_secs(10), heard)
        .await
        .expect("no end")
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_a11_a_neighbour_hears_of_nothing_whether_it_is_there_or_not() {
    let (a, neighbour) = (Peer::new("a"), Puppet::new("neighbour"));
    let file = File::new("secret", 2 * PIECE);
    let sharing = begins(&a, &file);
    sharing.got(0, file.hash(0), None);
    // It takes `a` for a member, and knows what is there.
    neighbour.trust.vouch(a.id, true).unwrap();
    neighbour.links.dial(&[a.address()]).await.unwrap();
    let link = neighbour.links.all().remove(0);
    let secret = link.exporter(b"tributary share").unwrap();
    let topic = *blake3::keyed_hash(&secret, &file.topic.url.unwrap()).as_bytes();
    let fetch = |topic| Fetch {
        topic,
        subject: file.content.subjects[0],
        first: 0,
        count: 1,
    };
    let unknown = outcome(&link, 999, &()).await;
    assert!(unknown.contains("Reset"), "{unknown}");
    for topic in [topic, [0; 32]] {
        assert_eq!(outcome(&link, WATCH, &vec![topic]).await, unknown);
        assert_eq!(outcome(&link, FETCH, &fetch(topic)).await, unknown);
    }
    assert_eq!(outcome(&link, LIST, &()).await, unknown);
    assert_eq!(outcome(&link, WATCH, &"nonsense").await, unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_a11_a_member_that_is_put_out_hears_no_more() {
    let (a, member) = (Peer::new("a"), Puppet::new("member"));
    let link = member.joins(&a).await;
    let file = File::new("secret", PIECE);
    let sharing = begins(&a, &file);
    let secret = link.exporter(b"tributary share").unwrap();
    let topic = *blake3::keyed_hash(&secret, &file.topic.url.unwrap()).as_bytes();
    let mut watch = link.ask(WATCH, &vec![topic]).await.unwrap();
    watch.hear().await.unwrap();
    a.trust.put_out(member.id, PutOut::Forget).unwrap();
    sharing.got(0, file.hash(0), None);
    let silent = async { while watch.hear().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), silent)
        .await
        .expect("it is still told");
    assert!(!link.is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_a12_a_neighbour_is_not_asked_and_what_it_sends_unasked_is_not_heard() {
    let (a, mut stranger) = (Peer::new("a"), Puppet::new("stranger"));
    let file = File::new("poisoned", PIECE);
    stranger.links.dial(&[a.address()]).await.unwrap();
    let link = a.to(stranger.id).await;
    a.household.linked(&link);
    let sharing = begins(&a, &file);
    let to_a = stranger.links.all().remove(0);
    // What only an answer may say, as the beginning of a stream, and bytes of a file.
    let unknown = outcome(&to_a, 999, &()).await;
    for kind in 49..=55 {
        assert_eq!(
            outcome(&to_a, kind, &(1u32, 0u8, file.content.subjects[0], PIECE)).await,
            unknown
        );
    }
    assert!(sharing.view().holders.is_empty());
    assert!(stranger.asked.try_recv().is_err(), "it was asked");
    // The first thing that it ever hears comes when it is a member.
    stranger.trust.vouch(a.id, true).unwrap();
    a.trust.vouch(stranger.id, true).unwrap();
    assert_eq!(stranger.asked().await.kind, WATCH);
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_a12_a_watch_that_says_what_it_was_not_asked_is_ended_and_forgotten() {
    let (a, mut evil) = (Peer::new("a"), Puppet::new("evil"));
    evil.joins(&a).await;
    let file = File::new("poisoned", 2 * PIECE);
    let subject = file.content.subjects[0];
    let holds = News::Holds(1, 0, subject, file.content.total);
    let forged = {
        let mut forged = leaves(&file, &evil.key);
        *forged.last_mut().unwrap() ^= 1;
        forged
    };
    let breaches = [
        News::Got(2, vec![(0, 1)]),
        News::Claims(2, vec![(0, 1)], 1),
        News::Leaves(2, leaves(&file, &evil.key)),
        News::Gone(2),
        News::Holds(1, 0, subject, file.content.total),
        News::Holds(2, 1, subject, file.content.total),
        News::Leaves(1, forged),
        News::Offered(vec![]),
    ];
    for breach in breaches {
        let sharing = begins(&a, &file);
        let mut asked = evil.asked().await;
        let good = [
            holds.clone(),
            News::Leaves(1, leaves(&file, &evil.key)),
            News::Got(1, vec![(0, 2)]),
        ];
        say(&mut asked, &good).await;
        until_has(&sharing, evil.id, file.content.total).await;
        say(&mut asked, &[breach]).await;
        ended(&asked).await;
        until(&sharing, evil.id, |holder| holder.is_none()).await;
    }
    let many = (0..100).map(|n| News::Holds(n, 0, subject, file.content.total));
    let _sharing = begins(&a, &file);
    let mut asked = evil.asked().await;
    let frames: Vec<u8> = many.flat_map(|news| news.frame().unwrap()).collect();
    let _ = asked.stream.give(frames.into()).await;
    ended(&asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_b1_who_serves_two_wrong_pieces_is_barred_and_not_asked_again_for_the_first_one() {
    let (a, mut evil) = (Peer::new("a"), Puppet::new("evil"));
    evil.joins(&a).await;
    let file = File::new("flipped", 4 * PIECE);
    let sharing = begins(&a, &file);
    let mut watch = evil.asked().await;
    let subject = file.content.subjects[0];
    let news = [
        News::Holds(1, 0, subject, file.content.total),
        News::Leaves(1, leaves(&file, &evil.key)),
        News::Got(1, vec![(0, 4)]),
    ];
    say(&mut watch, &news).await;
    until_has(&sharing, evil.id, file.content.total).await;

    let id = evil.id;
    let serving = tokio::spawn(async move {
        let mut asked = evil.asked().await;
        let Question::Fetch(fetch) = question(asked.kind, &asked.body).unwrap() else {
            panic!("no fetch")
        };
        // One piece was asked for; it sends a wrong one and more than that.
        assert_eq!((fetch.first, fetch.count), (2, 1));
        asked.stream.give(vec![0; (1 << 20) + 100].into()).await.unwrap();
        asked.stream.finish();
        (evil, asked)
    });
    let mut pieces = sharing.fetch(id, 2, 1).await.unwrap();
    let bytes = pieces.next().await.unwrap();
    assert_eq!(bytes.len() as u64, PIECE);
    assert_ne!(*blake3::hash(&bytes).as_bytes(), sharing.leaf(2).unwrap().hash);
    assert!(
        matches!(pieces.next().await, Err(FetchError::Gone)),
        "nothing but what was asked for"
    );
    let (mut evil, _asked) = serving.await.unwrap();

    sharing.strike(evil.id, 2);
    until_has(&sharing, evil.id, 3 * PIECE).await;
    for (first, count) in [(2, 1), (0, 4), (1, 2)] {
        assert!(matches!(
            sharing.fetch(evil.id, first, count).await,
            Err(FetchError::Gone)
        ));
    }
    sharing.strike(evil.id, 0);
    until(&sharing, evil.id, |holder| holder.is_none()).await;
    assert!(matches!(
        sharing.fetch(evil.id, 1, 1).await,
        Err(FetchError::Gone)
    ));
    assert!(evil.asked.try_recv().is_err(), "it was asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_b1_a_witness_that_lied_or_is_no_member_attests_nothing() {
    let (a, mut evil) = (Peer::new("a"), Puppet::new("evil"));
    evil.joins(&a).await;
    let file = File::new("lie", 2 * PIECE);
    let sharing = begins(&a, &file);
    let mut watch = evil.asked().await;
    let stranger = DeviceKey::ephemeral().unwrap();
    let news = [
        News::Holds(1, 0, file.content.subjects[0], file.content.total),
        News::Leaves(1, leaves(&file, &stranger)),
        News::Got(1, vec![(0, 2)]),
    ];
    say(&mut watch, &news).await;
    until(&sharing, evil.id, |holder| holder.is_some()).await;
    until_has(&sharing, evil.id, 0).await;
    assert_eq!(sharing.leaf(0), None);

    say(&mut watch, &[News::Leaves(1, leaves(&file, &evil.key))]).await;
    until_has(&sharing, evil.id, file.content.total).await;
    sharing.lied(evil.id, "the origin has something else");
    assert_eq!(sharing.leaf(0), None);
    assert!(sharing.view().holders.is_empty());
    // What it says from now on counts for nothing either, whoever passes it on.
    say(
        &mut watch,
        &[News::Leaves(1, leaves(&file, &evil.key)), News::Gone(1)],
    )
    .await;
    until(&sharing, evil.id, |holder| holder.is_none()).await;
    assert_eq!(sharing.leaf(0), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_b7_a_topic_means_nothing_on_another_link_and_no_hash_of_a_url_crosses_one() {
    let (a, mut one, mut other) = (Peer::new("a"), Puppet::new("one"), Puppet::new("other"));
    let (to_a, _) = (one.joins(&a).await, other.joins(&a).await);
    let file = File::new("private", PIECE);
    let sharing = begins(&a, &file);
    sharing.got(0, file.hash(0), None);
    let mut topics = Vec::new();
    for puppet in [&mut one, &mut other] {
        let asked = puppet.asked().await;
        let Question::Watch(asked) = question(asked.kind, &asked.body).unwrap() else {
            panic!("no watch")
        };
        assert!(!asked.contains(&file.topic.url.unwrap()));
        topics.extend(asked);
    }
    assert_ne!(topics[0], topics[1]);
    // `one` tries what `other` was asked for, and the bare hash: nothing; its own: there it is.
    let first_news = async |topic| {
        let mut watch = to_a.ask(WATCH, &vec![topic]).await.unwrap();
        let (kind, body) = watch.hear().await.unwrap();
        tributary::share::wire::decode(kind, &body).unwrap()
    };
    assert_eq!(first_news(topics[1]).await, News::Said);
    assert_eq!(first_news(file.topic.url.unwrap()).await, News::Said);
    assert!(matches!(first_news(topics[0]).await, News::Holds(..)));
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_b7_a_member_that_tries_topics_without_end_is_soon_not_answered() {
    let (a, curious) = (Peer::new("a"), Puppet::new("curious"));
    let link = curious.joins(&a).await;
    let mut watches = Vec::new();
    for n in 0..8u8 {
        let mut watch = link.ask(WATCH, &vec![[n; 32]]).await.unwrap();
        watch.hear().await.unwrap();
        watches.push(watch);
    }
    let unknown = outcome(&link, 999, &()).await;
    assert_eq!(
        outcome(&link, WATCH, &vec![[9u8; 32]]).await,
        unknown,
        "more than 8 at once"
    );
    drop(watches);
    let mut asking = JoinSet::new();
    for n in 0..100u8 {
        let link = Arc::clone(&link);
        asking.spawn(async move {
            let mut watch = link.ask(LIST, &[n; 32]).await.unwrap();
            watch.hear().await.is_ok()
        });
    }
    let answered = asking
        .join_all()
        .await
        .into_iter()
        .filter(|answered| *answered)
        .count();
    assert!(answered < 100, "all of 100 at once");
}

/// Bytes that somebody may tamper with.
#[derive(Debug)]
struct Tampered {
    file: Arc<super::house::Bytes>,
    flipped: AtomicBool,
}

impl ReadAt for Tampered {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)?;
        if self.flipped.load(Ordering::Relaxed) && offset == PIECE {
            buf[77] ^= 1;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_e6_a_piece_that_was_tampered_with_is_never_sent_and_not_offered_any_more() {
    let [a, b] = ["a", "b"].map(Peer::new);
    household(&[&a, &b]).await;
    let file = File::new("edited", 3 * PIECE);
    let tampered = Arc::new(Tampered {
        file: file.bytes.clone(),
        flipped: AtomicBool::new(false),
    });
    let at_a = a
        .household
        .look(file.topic)
        .begin(file.content.clone(), tampered.clone());
    (0..3).for_each(|piece| at_a.got(piece, file.hash(piece), None));
    let at_b = begins(&b, &file);
    until_has(&at_b, a.id, file.content.total).await;
    tampered.flipped.store(true, Ordering::Relaxed);
    let mut pieces = at_b.fetch(a.id, 0, 3).await.unwrap();
    match pieces.next().await {
        Ok(bytes) => assert!(bytes == file.piece(0)),
        // The end of the stream may overtake what was sent before.
        Err(error) => assert!(matches!(error, FetchError::Broken(_)), "{error}"),
    }
    assert!(matches!(pieces.next().await, Err(FetchError::Broken(_))));
    until_has(&at_b, a.id, 2 * PIECE).await;
    let mut pieces = at_b.fetch(a.id, 2, 1).await.unwrap();
    assert!(pieces.next().await.unwrap() == file.piece(2));
}
