//! What members tell each other, and what they get.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use tributary::share::{FetchError, Offer, Sharing};
use tributary::types::{ByteRange, PIECE, RangeSet};

use super::house::{File, Peer, household};
use super::{until, until_has};

const LONG: Duration = Duration::from_secs(3600);

/// It begins to fetch that file, and has nothing of it.
fn begins(peer: &Peer, file: &File) -> Sharing {
    let look = peer.household.look(file.topic);
    look.begin(file.content.clone(), file.bytes.clone())
}

/// It has all of it from the origin.
fn has(peer: &Peer, file: &File) -> Sharing {
    let sharing = begins(peer, file);
    (0..file.pieces()).for_each(|piece| sharing.got(piece, file.hash(piece), None));
    sharing
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_member_has_another_gets_and_passes_on_to_a_third_on_the_first_ones_word() {
    let [a, b, c] = ["a", "b", "c"].map(Peer::new);
    // `c` hears of `a` by `b` alone.
    household(&[&a, &b]).await;
    household(&[&b, &c]).await;
    let mut changes = c.trust.changes();
    let known = changes.wait_for(|_| c.trust.may(a.id, tributary::trust::Right::Share));
    tokio::time::timeout(Duration::from_secs(10), known)
        .await
        .unwrap()
        .unwrap();

    let file = File::new("film", 5 * PIECE + 77);
    let _from_a = has(&a, &file);
    let at_b = begins(&b, &file);
    until_has(&at_b, a.id, file.content.total).await;
    let at_c = begins(&c, &file);
    let mut pieces = at_b.fetch(a.id, 0, file.pieces()).await.unwrap();
    for piece in 0..file.pieces() {
        let bytes = pieces.next().await.unwrap();
        assert!(bytes == file.piece(piece), "piece {piece}");
        let leaf = at_b.leaf(piece).unwrap();
        assert_eq!((leaf.hash, leaf.witness), (file.hash(piece), a.id));
        at_b.got(piece, leaf.hash, Some(leaf.witness));
    }
    assert!(
        matches!(pieces.next().await, Err(FetchError::Gone)),
        "there is no more"
    );

    until_has(&at_c, b.id, file.content.total).await;
    assert_eq!(at_c.leaf(5).map(|leaf| leaf.witness), Some(a.id));
    assert_eq!(at_c.view().copies, [1; 6]);
    let mut last = at_c.fetch(b.id, 5, 1).await.unwrap();
    assert!(last.next().await.unwrap() == file.piece(5));
    assert!(
        matches!(at_c.fetch(a.id, 0, 1).await, Err(FetchError::Gone)),
        "no link to it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_fetch_the_same_hear_of_each_others_pieces_and_claims() {
    let [a, b] = ["a", "b"].map(Peer::new);
    household(&[&a, &b]).await;
    let file = File::new("game", 8 * PIECE);
    let (at_a, at_b) = (begins(&a, &file), begins(&b, &file));
    let claim = |start: u64, end: u64| RangeSet::from_iter([ByteRange::new(start, end)]);
    at_a.claims(claim(3, 2 * PIECE + 5), 1000);
    until(&at_b, a.id, |holder| {
        holder.is_some_and(|h| h.claims == claim(3, 2 * PIECE + 5))
    })
    .await;
    at_a.claims(claim(4 * PIECE, 5 * PIECE), 2000);
    at_a.got(1, file.hash(1), None);
    until(&at_b, a.id, |holder| {
        holder.is_some_and(|h| h.claims == claim(4 * PIECE, 5 * PIECE) && h.have == claim(PIECE, 2 * PIECE))
    })
    .await;
    at_b.got(7, file.hash(7), None);
    until_has(&at_a, b.id, PIECE).await;
    at_a.lost(&[1]);
    until_has(&at_b, a.id, 0).await;
    assert!(matches!(at_b.fetch(a.id, 1, 1).await, Err(FetchError::Gone)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_finds_what_was_fetched_from_another_url() {
    let [a, b] = ["a", "b"].map(Peer::new);
    household(&[&a, &b]).await;
    let (mut here, mut there) = (File::new("mirror-1", 2 * PIECE), File::new("mirror-2", 2 * PIECE));
    let digest = [9; 32];
    for file in [&mut here, &mut there] {
        file.topic.sha256 = Some(digest);
        let of_digest = tributary::share::Subject::of_sha256(&digest, file.content.total);
        file.content.subjects.push(of_digest);
    }
    there.bytes = here.bytes.clone();
    let _a = has(&a, &here);
    let at_b = begins(&b, &there);
    until_has(&at_b, a.id, here.content.total).await;
    let mut pieces = at_b.fetch(a.id, 1, 1).await.unwrap();
    assert!(pieces.next().await.unwrap() == here.piece(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_is_answered_as_soon_as_all_members_have_said_what_they_have() {
    let [a, b, c] = ["a", "b", "c"].map(Peer::new);
    household(&[&a, &b, &c]).await;
    let (file, other) = (File::new("there", 3 * PIECE), File::new("not-there", PIECE));
    let sharing = has(&a, &file);
    assert!(b.household.look(file.topic).answered(LONG).await);
    assert!(!b.household.look(other.topic).answered(LONG).await);
    drop(sharing);
    // It is taken back at once, and who comes afterwards does not hear of it.
    assert!(!c.household.look(file.topic).answered(LONG).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_comes_later_is_asked_too_and_one_that_leaves_is_out_of_the_view() {
    let [a, b] = ["a", "b"].map(Peer::new);
    let file = File::new("image", 2 * PIECE);
    let _has = has(&a, &file);
    let at_b = begins(&b, &file);
    household(&[&a, &b]).await;
    until_has(&at_b, a.id, file.content.total).await;
    assert!(a.tasks.stop(Duration::from_secs(5)).await);
    until(&at_b, a.id, |holder| holder.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_does_not_hold_up_the_others() {
    let [a, b, c] = ["a", "b", "c"].map(Peer::new);
    household(&[&a, &b, &c]).await;
    let file = File::new("wanted", 24 * PIECE);
    let _has = has(&a, &file);
    let (at_b, at_c) = (begins(&b, &file), begins(&c, &file));
    until_has(&at_b, a.id, file.content.total).await;
    until_has(&at_c, a.id, file.content.total).await;
    let mut idle = Vec::new();
    for n in 0..12 {
        idle.push(at_b.fetch(a.id, n, 12).await.unwrap());
    }
    let mut pieces = at_c.fetch(a.id, 0, file.pieces()).await.unwrap();
    for piece in 0..file.pieces() {
        let next = tokio::time::timeout(Duration::from_secs(5), pieces.next()).await;
        assert!(next.expect("held up").unwrap() == file.piece(piece));
    }
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_file_is_served_from_where_it_is_until_somebody_edits_it() {
    let [a, b] = ["a", "b"].map(Peer::new);
    household(&[&a, &b]).await;
    let file = File::new("kept", 2 * PIECE + 1);
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&file.bytes.0).unwrap();
    let sharing = has(&a, &file);
    let mut changes = a.shelf.changes();
    sharing.keep(Arc::new(on_disk.reopen().unwrap()), on_disk.path().to_owned());
    tokio::time::timeout(Duration::from_secs(10), changes.changed())
        .await
        .unwrap()
        .unwrap();
    drop(sharing);
    let at_b = begins(&b, &file);
    until_has(&at_b, a.id, file.content.total).await;
    let mut pieces = at_b.fetch(a.id, 1, 2).await.unwrap();
    for piece in 1..3 {
        assert!(pieces.next().await.unwrap() == file.piece(piece));
    }
    on_disk.write_all(b"more").unwrap();
    let mut pieces = at_b.fetch(a.id, 0, 1).await.unwrap();
    assert!(matches!(pieces.next().await, Err(FetchError::Broken(_))));
    until(&at_b, a.id, |holder| holder.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_offered_by_hand_is_listed_to_members_and_comes_by_its_digest() {
    let [a, b] = ["a", "b"].map(Peer::new);
    household(&[&a, &b]).await;
    let mut file = File::new("photos", PIECE + 5);
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&file.bytes.0).unwrap();
    let offer = Offer {
        name: "photos.zip".into(),
        sha256: [5; 32],
        total: file.content.total,
        leaves: (0..2).map(|piece| file.hash(piece)).collect(),
        file: Arc::new(on_disk.reopen().unwrap()),
        path: on_disk.path().to_owned(),
    };
    a.household.offer(offer).unwrap();
    let listed = b.household.offered().await;
    let [offered] = &listed[..] else {
        panic!("{listed:?}")
    };
    assert_eq!(
        (offered.peer, offered.owner.as_str(), offered.name.as_str()),
        (a.id, "a", "photos.zip")
    );
    file.topic = tributary::share::Topic {
        url: None,
        sha256: Some(offered.sha256),
    };
    file.content.subjects = vec![offered.subject];
    assert!(b.household.look(file.topic).answered(LONG).await);
    let at_b = begins(&b, &file);
    until_has(&at_b, a.id, offered.total).await;
    let mut pieces = at_b.fetch(a.id, 0, 2).await.unwrap();
    assert!(pieces.next().await.unwrap() == file.piece(0));
    assert!(pieces.next().await.unwrap() == file.piece(1));
}
