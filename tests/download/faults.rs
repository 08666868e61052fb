//! Broken connections, broken framing, full disks, busy files.

use std::time::Duration;

use tributary::download::DownloadError;
use tributary::store::StoreError;

use crate::MIB;
use crate::evil_origin::{Bench, Body, End, Reply, Request, content, sha256};

const TAG: &str = "\"v1\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_17_a_truncated_body_keeps_its_prefix_and_the_rest_is_fetched_again() {
    let data = content(8 * MIB, 1);
    let served = data.clone();
    // Each fourth answer breaks somewhere, without close_notify.
    let breaking = move |r: &Request| {
        let reply = Reply::honest(r, &served, TAG).rate(8 * MIB);
        if r.nth % 4 == 1 {
            reply.cut_after(100_000)
        } else {
            reply
        }
    };
    let bench = Bench::new(3, breaking).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_17_a_206_that_only_the_close_ends_is_taken_up_to_its_exact_length() {
    let data = content(4 * MIB, 2);
    let served = data.clone();
    let closing = move |r: &Request| {
        let end = if r.nth.is_multiple_of(2) {
            End::Close
        } else {
            End::Cut
        };
        Reply::honest(r, &served, TAG).without("content-length").end(end)
    };
    let bench = Bench::new(2, closing).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_17_one_stream_without_length_that_is_cut_is_not_taken_for_complete() {
    let data = content(MIB, 3);
    let served = data.clone();
    let cut = move |r: &Request| {
        let whole = Reply::honest(
            &Request {
                range: None,
                ..r.clone()
            },
            &served,
            TAG,
        )
        .without("content-length");
        if r.nth < 2 {
            whole.cut_after(300_000)
        } else {
            whole.end(End::Close)
        }
    };
    let bench = Bench::new(1, cut).await;
    bench.get_exactly(&data).await;
    assert_eq!(bench.origin.seen().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_17_one_stream_that_always_breaks_is_an_error_and_no_file() {
    let data = content(MIB, 4);
    let cut = move |r: &Request| {
        Reply::honest(
            &Request {
                range: None,
                ..r.clone()
            },
            &data,
            TAG,
        )
        .cut_after(300_000)
    };
    let bench = Bench::new(2, cut).await;
    let error = bench.get().await.unwrap_err();
    assert!(matches!(error, DownloadError::Broken { times: 3, .. }), "{error}");
    bench.assert_no_file();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_18_content_length_beside_transfer_encoding_is_refused() {
    let data = content(4 * MIB, 5);
    let served = data.clone();
    let both = move |r: &Request| match (r.lane, r.range) {
        (1, Some((start, end))) => {
            let bytes = served[start as usize..(end as usize).min(served.len())].to_vec();
            Reply::honest(r, &served, TAG)
                .with("transfer-encoding", "chunked")
                .body(Body::Chunked(bytes, true))
        }
        _ => Reply::honest(r, &served, TAG).rate(8 * MIB),
    };
    let bench = Bench::new(2, both).await;
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.lanes[1].1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_18_a_chunked_range_is_taken_and_one_without_its_end_too() {
    let data = content(4 * MIB, 6);
    let served = data.clone();
    let chunked = move |r: &Request| {
        let (start, end) = r.range.unwrap();
        let bytes = served[start as usize..(end as usize).min(served.len())].to_vec();
        let complete = r.nth.is_multiple_of(2);
        let reply = Reply::honest(r, &served, TAG)
            .without("content-length")
            .with("transfer-encoding", "chunked");
        reply
            .body(Body::Chunked(bytes, complete))
            .end(if complete { End::KeepAlive } else { End::Cut })
    };
    let bench = Bench::new(2, chunked).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c6_two_different_content_lengths_are_refused() {
    let data = content(4 * MIB, 7);
    let served = data.clone();
    let two = move |r: &Request| {
        let mut reply = Reply::honest(r, &served, TAG).rate(8 * MIB);
        if r.lane == 1 {
            reply.headers.push(("content-length".into(), "17".into()));
        }
        reply
    };
    let bench = Bench::new(2, two).await;
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.lanes[1].1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c4_a_head_that_is_too_large_is_refused() {
    for (count, len) in [(150, 10), (2, 60_000)] {
        let bomb = move |r: &Request| {
            let mut reply = Reply::empty(404).end(End::Close);
            for n in 0..count {
                reply.headers.push((format!("x-{}-{n}", r.lane), "y".repeat(len)));
            }
            reply
        };
        let bench = Bench::new(1, bomb).await;
        let error = bench.get().await.unwrap_err();
        assert!(matches!(error, DownloadError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c7_wrong_bytes_fail_the_digest_loudly_and_leave_nothing() {
    let data = content(4 * MIB, 8);
    let wrong = content(4 * MIB, 9);
    let mut bench = Bench::new(2, move |r| Reply::honest(r, &wrong, TAG)).await;
    bench.job.sha256 = Some(sha256(&data));
    let error = bench.get().await.unwrap_err();
    assert!(
        matches!(error, DownloadError::Store(StoreError::Checksum { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(bench.directory.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_the_origin_on_all_lanes_is_given_up_with_its_status() {
    let data = content(8 * MIB, 10);
    let failing = move |r: &Request| match r.nth {
        0 => Reply::honest(r, &data, TAG),
        _ => Reply::empty(502),
    };
    let bench = Bench::new(2, failing).await;
    match bench.get().await.unwrap_err() {
        DownloadError::Status { status, .. } => assert_eq!(status.as_u16(), 502),
        other => panic!("{other}"),
    }
    bench.assert_no_file();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_file_is_an_error_with_its_status_after_one_request() {
    let bench = Bench::new(3, |_| Reply::page(404, "no")).await;
    match bench.get().await.unwrap_err() {
        DownloadError::Status { status, .. } => assert_eq!(status.as_u16(), 404),
        other => panic!("{other}"),
    }
    assert_eq!(bench.origin.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_26_a_directory_that_is_gone_is_an_error_that_names_it() {
    let data = content(MIB, 11);
    let bench = Bench::new(1, move |r| Reply::honest(r, &data, TAG)).await;
    std::fs::remove_dir(bench.directory.path()).unwrap();
    let error = bench.get().await.unwrap_err();
    assert!(matches!(error, DownloadError::Store(_)), "{error}");
    let directory = bench.directory.path().display().to_string();
    assert!(error.to_string().contains(&directory), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_30_a_second_download_of_the_same_file_is_told_that_it_is_busy() {
    let data = content(4 * MIB, 12);
    let served = data.clone();
    // Much longer than a lock is waited for.
    let bench = Bench::new(1, move |r| Reply::honest(r, &served, TAG).rate(MIB / 8)).await;
    let mut progress = bench.progress.subscribe();
    let second = async {
        progress.wait_for(|p| p.done > 0).await.unwrap();
        let error = bench.get().await.unwrap_err();
        bench.stop.cancel();
        error
    };
    let (first, error) = tokio::join!(bench.get(), second);
    assert!(matches!(first, Err(DownloadError::Stopped { resumable: true })));
    assert!(
        matches!(error, DownloadError::Store(StoreError::Busy { .. })),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_origin_that_answers_after_seconds_is_waited_for() {
    let data = content(MIB, 13);
    let served = data.clone();
    let slow = move |r: &Request| Reply::honest(r, &served, TAG).delay(Duration::from_secs(4));
    let bench = Bench::new(1, slow).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_existing_file_is_never_overwritten() {
    let data = content(MIB, 14);
    let bench = Bench::new(1, move |r| Reply::honest(r, &data, TAG)).await;
    std::fs::write(bench.path(), "mine").unwrap();
    let error = bench.get().await.unwrap_err();
    assert!(
        matches!(error, DownloadError::Store(StoreError::Exists { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read(bench.path()).unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c1_a_name_that_the_origin_wishes_stays_in_the_directory() {
    let data = content(MIB, 15);
    let served = data.clone();
    let sly = move |r: &Request| {
        let wish = "attachment; filename=\"../../.ssh/authorized_keys\"";
        Reply::honest(r, &served, TAG).with("content-disposition", wish)
    };
    let bench = Bench::new(1, sly).await;
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.path, bench.directory.path().join("authorized_keys"));
}
