//! One file is of one version: changes, mirrors that differ, validators that say nothing.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use tributary::download::DownloadError;
use tributary::types::LaneId;

use crate::MIB;
use crate::evil_origin::{Bench, Reply, Request, TestLane, content, sha256};

const TAG: &str = "\"v1\"";

fn lane_to(lane: u8, resolves: Ipv4Addr) -> std::sync::Arc<TestLane> {
    TestLane::resolving(lane, resolves)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_03_a_weak_etag_makes_it_one_stream() {
    let data = content(3 * MIB, 1);
    let served = data.clone();
    let bench = Bench::new(3, move |r| Reply::honest(r, &served, "W/\"v1\"")).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(!outcome.pooled);
    assert!(
        bench
            .origin
            .seen()
            .iter()
            .all(|(r, _)| r.header("if-range").is_none())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_03_a_settled_last_modified_is_enough_to_stripe() {
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:00:00 GMT";
    let data = content(8 * MIB, 2);
    let served = data.clone();
    let dated = move |r: &Request| {
        let reply = Reply::honest(r, &served, MODIFIED).without("etag").rate(8 * MIB);
        reply
            .with("last-modified", MODIFIED)
            .with("date", "Sun, 06 Nov 1994 08:49:37 GMT")
    };
    let bench = Bench::new(2, dated).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
    assert!(
        bench
            .origin
            .seen()
            .iter()
            .skip(1)
            .all(|(r, _)| r.header("if-range") == Some(MODIFIED))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_08_content_that_changes_midway_is_fetched_anew_and_never_mixed() {
    let old = content(6 * MIB, 3);
    let new = content(6 * MIB + 1000, 4);
    let served = new.clone();
    let changing = move |r: &Request| match r.nth {
        // Before half of the file can be there.
        0..3 => Reply::honest(r, &old, TAG).rate(8 * MIB),
        _ => Reply::honest(r, &served, "\"v2\"").rate(8 * MIB),
    };
    let bench = Bench::new(2, changing).await;
    let outcome = bench.get_exactly(&new).await;
    assert!(outcome.note.unwrap().contains("restarted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_08_content_that_never_rests_is_given_up() {
    let data = content(4 * MIB, 5);
    let count = AtomicUsize::new(0);
    let restless = move |r: &Request| {
        // Each version lives for three requests.
        let version = count.fetch_add(1, Ordering::Relaxed) / 3;
        Reply::honest(r, &data, &format!("\"v{version}\"")).rate(8 * MIB)
    };
    let bench = Bench::new(2, restless).await;
    match bench.get().await {
        // Where all versions came at a bad moment it took the way of one stream, which is right too.
        Ok(outcome) => assert!(!outcome.pooled || outcome.note.is_some()),
        Err(error) => assert!(matches!(error, DownloadError::Changing { .. }), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_09_a_lane_that_sees_another_edge_is_led_to_the_first_lanes_edge() {
    let data = content(8 * MIB, 6);
    let other = content(8 * MIB, 7);
    let served = data.clone();
    let edges = move |r: &Request| match r.edge {
        IpAddr::V4(ip) if ip == Ipv4Addr::LOCALHOST => Reply::honest(r, &served, TAG).rate(3 * MIB),
        _ => Reply::honest(r, &other, "\"v2\"").rate(3 * MIB),
    };
    let bench = Bench::new(0, edges).await;
    bench.set_lanes(vec![
        lane_to(0, Ipv4Addr::LOCALHOST),
        lane_to(1, Ipv4Addr::new(127, 0, 0, 2)),
    ]);
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled, "the lane works once it is pinned");
    assert!(outcome.note.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_09_a_lane_that_always_sees_another_version_is_left_out() {
    let data = content(8 * MIB, 8);
    let other = content(8 * MIB, 9);
    let served = data.clone();
    let by_lane = move |r: &Request| match r.lane {
        1 => Reply::honest(r, &other, "\"v2\""),
        _ => Reply::honest(r, &served, TAG).rate(8 * MIB),
    };
    let bench = Bench::new(3, by_lane).await;
    let outcome = bench.get_exactly(&data).await;
    let brought = |n: usize| outcome.lanes[n].1;
    assert_eq!(brought(1), 0);
    assert!(brought(2) > 0);
    let asked = bench.origin.seen().iter().filter(|(r, _)| r.lane == 1).count();
    assert!(asked <= 8, "{asked} requests for nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_09_the_version_that_most_lanes_see_is_the_one_that_is_fetched() {
    let (lonely, common) = (content(8 * MIB, 21), content(8 * MIB, 22));
    let served = common.clone();
    let by_lane = move |r: &Request| match r.lane {
        0 => Reply::honest(r, &lonely, "\"v1\"").rate(MIB),
        _ => Reply::honest(r, &served, "\"v2\"").rate(4 * MIB),
    };
    let bench = Bench::new(4, by_lane).await;
    let outcome = bench.get_exactly(&common).await;
    assert!(outcome.pooled);
    assert!(outcome.note.is_some_and(|note| note.contains("most of them")));
    let alone = outcome
        .lanes
        .iter()
        .find(|(info, _)| info.id == LaneId(0))
        .map(|(_, bytes)| *bytes);
    assert_eq!(alone, Some(0), "the lonely lane's version must not get in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_09_with_a_digest_versions_of_one_length_may_mix_and_the_digest_decides() {
    let data = content(8 * MIB, 10);
    let served = data.clone();
    let tags = move |r: &Request| {
        let tag = ["\"edge-0\"", "\"edge-1\""][r.lane as usize];
        Reply::honest(r, &served, tag).rate(2 * MIB)
    };
    let mut bench = Bench::new(2, tags).await;
    bench.job.sha256 = Some(sha256(&data));
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_15_another_kind_of_content_on_a_lane_is_not_taken() {
    let data = content(6 * MIB, 11);
    let served = data.clone();
    let regional = move |r: &Request| {
        let reply = Reply::honest(r, &served, TAG).rate(8 * MIB);
        let kind = if r.lane == 1 {
            "text/plain"
        } else {
            "application/zip"
        };
        reply.with("content-type", kind)
    };
    let bench = Bench::new(2, regional).await;
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.lanes[1].1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_21_without_validator_and_digest_it_is_one_stream_that_claims_no_resume() {
    let data = content(3 * MIB, 12);
    let served = data.clone();
    let mut bench = Bench::new(3, move |r| {
        Reply::honest(r, &served, TAG).without("etag").rate(8 * MIB)
    })
    .await;
    let mut progress = bench.progress.subscribe();
    let halt = async {
        progress.wait_for(|p| p.done > 0).await.unwrap();
        bench.stop.cancel();
    };
    let (stopped, ()) = tokio::join!(bench.get(), halt);
    assert!(
        matches!(stopped, Err(DownloadError::Stopped { resumable: false })),
        "{stopped:?}"
    );
    bench.stop = tokio_util::sync::CancellationToken::new();
    let outcome = bench.get_exactly(&data).await;
    assert_eq!((outcome.pooled, outcome.resumed), (false, 0));
    assert!(outcome.note.unwrap().contains("checksum"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_21_a_digest_stands_in_for_a_validator() {
    let data = content(8 * MIB, 13);
    let served = data.clone();
    let mut bench = Bench::new(3, move |r| {
        Reply::honest(r, &served, TAG).without("etag").rate(8 * MIB)
    })
    .await;
    bench.job.sha256 = Some(sha256(&data));
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
}

/// Stops a download of `bench` once it has some MiB.
async fn stop_midway(bench: &Bench, at: usize) {
    let mut progress = bench.progress.subscribe();
    let halt = async {
        progress.wait_for(|p| p.done as usize >= at).await.unwrap();
        bench.stop.cancel();
    };
    let (result, ()) = tokio::join!(bench.get(), halt);
    assert!(
        matches!(result, Err(DownloadError::Stopped { resumable: true })),
        "{result:?}"
    );
    bench.assert_no_file();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_22_a_stopped_download_continues_after_the_validator_was_seen_again() {
    let data = content(16 * MIB, 14);
    let served = data.clone();
    let mut bench = Bench::new(2, move |r| Reply::honest(r, &served, TAG).rate(8 * MIB)).await;
    stop_midway(&bench, 6 * MIB).await;
    let before = bench.origin.seen().len();
    bench.stop = tokio_util::sync::CancellationToken::new();
    let outcome = bench.get_exactly(&data).await;
    assert!(
        outcome.resumed as usize >= 6 * MIB,
        "only {} bytes resumed",
        outcome.resumed
    );
    let seen = bench.origin.seen();
    let (again, status) = &seen[before];
    assert_eq!((again.header("if-range"), *status), (Some(TAG), 206));
    assert!(outcome.lanes.iter().map(|(_, n)| n).sum::<u64>() <= data.len() as u64 - outcome.resumed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_22_a_download_of_content_that_changed_meanwhile_starts_anew() {
    for how in 0..4 {
        let old = content(16 * MIB, 15);
        let new = content([16, 16, 3, 16][how] * MIB, 16);
        let served = new.clone();
        let changed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let now = changed.clone();
        let script = move |r: &Request| match (now.load(Ordering::Relaxed), how) {
            (false, _) => Reply::honest(r, &old, TAG).rate(8 * MIB),
            // A proper server sends the new content whole, a rude one says 412, a short one 416.
            (true, 1) if r.header("if-range").is_some() && r.range != Some((0, MIB as u64)) => {
                Reply::empty(412)
            }
            (true, 3) => Reply::honest(
                &Request {
                    headers: Vec::new(),
                    ..r.clone()
                },
                &served,
                "\"v2\"",
            ),
            (true, _) => Reply::honest(r, &served, "\"v2\""),
        };
        let mut bench = Bench::new(2, script).await;
        stop_midway(&bench, 6 * MIB).await;
        changed.store(true, Ordering::Relaxed);
        bench.stop = tokio_util::sync::CancellationToken::new();
        let outcome = bench.get_exactly(&new).await;
        assert_eq!(outcome.resumed, 0);
        assert!(outcome.note.unwrap().contains("changed"), "variant {how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_24_an_etag_that_rotates_with_each_request_makes_it_one_stream() {
    let data = content(4 * MIB, 17);
    let served = data.clone();
    let rotating = move |r: &Request| Reply::honest(r, &served, &format!("\"{}\"", r.nth));
    let bench = Bench::new(2, rotating).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(!outcome.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_24_with_a_digest_a_rotating_etag_does_not_hinder_striping() {
    let data = content(8 * MIB, 18);
    let served = data.clone();
    let rotating = move |r: &Request| Reply::honest(r, &served, &format!("\"{}\"", r.nth)).rate(3 * MIB);
    let mut bench = Bench::new(2, rotating).await;
    bench.job.sha256 = Some(sha256(&data));
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_22_of_a_part_that_is_complete_only_the_version_is_asked() {
    let data = content(4 * MIB, 19);
    let served = data.clone();
    let bench = Bench::new(2, move |r| Reply::honest(r, &served, TAG).rate(4 * MIB)).await;
    let mut progress = bench.progress.subscribe();
    // Somebody takes the final name meanwhile, so all is fetched but cannot be given its name.
    let squat = async {
        progress.wait_for(|p| p.done > 0).await.unwrap();
        std::fs::write(bench.path(), "mine").unwrap();
    };
    let (result, ()) = tokio::join!(bench.get(), squat);
    assert!(matches!(result, Err(DownloadError::Store(_))), "{result:?}");
    std::fs::remove_file(bench.path()).unwrap();
    let before = bench.origin.seen().len();
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.resumed, data.len() as u64);
    let asked: Vec<_> = bench.origin.seen()[before..]
        .iter()
        .map(|(r, _)| r.range)
        .collect();
    assert_eq!(asked, [Some((data.len() as u64 - 1, data.len() as u64))]);
}
