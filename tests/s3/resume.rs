//! What a run left is continued by the next, and removed by who wants that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bench::{Bench, MIB};
use crate::evil_origin::content;
use crate::s3_server::{Call, Deed, Kind};

/// A bench whose first run ends when the service has a first part; then the service is well.
async fn interrupted(size: usize) -> Bench {
    let well = Arc::new(AtomicBool::new(false));
    let script = {
        let well = well.clone();
        move |call: &Call| match call.kind {
            Kind::Part(_) if call.nth >= 3 && !well.load(Ordering::Relaxed) => {
                Deed::Refuse(400, "ExpiredToken", None)
            }
            _ => Deed::Serve,
        }
    };
    let bench = Bench::new(size, 1, script);
    let told = bench.told().await;
    assert!(
        told.contains("get new credentials and run the same command again"),
        "{told}"
    );
    well.store(true, Ordering::Relaxed);
    assert_eq!(bench.server.unfinished(), 1);
    bench
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_is_continued_from_the_services_own_list() {
    let bench = interrupted(48 * MIB).await;
    let there = bench.server.parts();
    assert!(!there.is_empty());
    let sent_before = bench.server.parts_sent();
    let outcome = bench.put_exactly().await;
    assert_eq!(outcome.resumed, there.iter().map(|(_, size)| size).sum::<u64>());
    assert_eq!(
        bench.server.count(Kind::Create),
        1,
        "it went on with the same upload"
    );
    assert_eq!(bench.server.count(Kind::Complete), 1);
    let again = bench.server.calls();
    let again = again
        .iter()
        .filter(|call| matches!(call.kind, Kind::Part(_)))
        .skip(sent_before);
    for call in again {
        let Kind::Part(number) = call.kind else { continue };
        assert!(
            !there.iter().any(|(n, _)| u32::try_from(*n) == Ok(number)),
            "part {number} was sent again"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_another_file_is_left_alone() {
    let mut bench = interrupted(48 * MIB).await;
    bench.change_file(content(48 * MIB, 2));
    let outcome = bench.put().await.unwrap();
    bench.assert_object();
    assert_eq!(outcome.resumed, 0);
    assert_eq!(bench.server.count(Kind::Create), 2);
    assert_eq!(bench.server.unfinished(), 1, "the other one is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_which_only_the_end_changed_keeps_its_first_parts() {
    let mut bench = interrupted(48 * MIB).await;
    let mut data = (*bench.data).clone();
    *data.last_mut().unwrap() ^= 1;
    bench.change_file(Arc::new(data));
    let outcome = bench.put_exactly().await;
    assert!(outcome.resumed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_uploads_are_removed_on_request_and_counted() {
    let mut bench = interrupted(48 * MIB).await;
    bench.job.abort = true;
    let outcome = bench.put().await.unwrap();
    assert!(
        outcome
            .note
            .unwrap()
            .contains("removed 1 unfinished upload to s3://box/film")
    );
    assert_eq!(bench.server.unfinished(), 0);
    assert!(bench.server.orphans().is_empty(), "{:?}", bench.server.orphans());
    let outcome = bench.put().await.unwrap();
    assert!(outcome.note.unwrap().contains("no unfinished upload"));
    bench.assert_no_object();
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_for_good_removes_what_was_sent() {
    let stop = tributary::upload::Stop::default();
    let abort = stop.abort.clone();
    let script = move |call: &Call| {
        if matches!(call.kind, Kind::Part(_)) && call.nth == 1 {
            abort.cancel();
        }
        Deed::Serve
    };
    let mut bench = Bench::new(48 * MIB, 1, script);
    bench.stop = stop;
    let told = bench.told().await;
    assert!(told.contains("what was sent was removed"), "{told}");
    assert_eq!(bench.server.unfinished(), 0);
    assert!(bench.server.orphans().is_empty(), "{:?}", bench.server.orphans());
    assert_eq!(bench.server.count(Kind::Complete), 0);
    bench.assert_no_object();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_list_uploads_is_told_and_sends_all_the_same() {
    let script = |call: &Call| match call.kind {
        Kind::ListUploads => Deed::Refuse(403, "AccessDenied", None),
        _ => Deed::Serve,
    };
    let bench = Bench::new(12 * MIB, 2, script);
    let outcome = bench.put_exactly().await;
    assert!(outcome.note.unwrap().contains("could not be seen"));
}
