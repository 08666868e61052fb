//! What origins make of a Range: honoured, ignored, bent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tributary::download::DownloadError;
use tributary::transfer::Phase;

use crate::MIB;
use crate::evil_origin::{Bench, Body, End, Reply, Request, content};

const TAG: &str = "\"v1\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_01_a_short_file_is_not_split_and_the_protocol_is_http_1_1() {
    let data = content(190 << 10, 1);
    let served = data.clone();
    let bench = Bench::new(3, move |r| Reply::honest(r, &served, TAG)).await;
    bench.get_exactly(&data).await;
    assert_eq!(bench.origin.lanes(), [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_02_the_first_request_is_a_ranged_get_and_a_200_is_kept_as_it_is() {
    let data = content(3 * MIB, 2);
    let served = data.clone();
    let whole = move |r: &Request| {
        assert_eq!(r.range, Some((0, MIB as u64)));
        assert_eq!(r.header("accept-encoding"), Some("identity"));
        assert!(r.header("user-agent").unwrap().starts_with("tributary/"));
        Reply::honest(
            &Request {
                range: None,
                ..r.clone()
            },
            &served,
            TAG,
        )
        .with("accept-ranges", "bytes")
    };
    let bench = Bench::new(3, whole).await;
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(bench.origin.seen().len(), 1, "no second request");
    assert!(!outcome.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_04_a_cdn_that_ignores_range_with_if_range_is_asked_again_without_and_validated_after() {
    let data = content(8 * MIB, 3);
    let served = data.clone();
    let cdn = move |r: &Request| {
        let range = r.range.filter(|_| r.header("if-range").is_none());
        Reply::honest(
            &Request {
                range,
                headers: Vec::new(),
                ..r.clone()
            },
            &served,
            TAG,
        )
        .rate(8 * MIB)
    };
    let bench = Bench::new(2, cdn).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
    let seen = bench.origin.seen();
    let whole = seen.iter().filter(|(_, status)| *status == 200).count();
    assert!(
        (1..=4).contains(&whole),
        "asked with If-Range {whole} times: it should learn"
    );
    assert!(
        seen.iter()
            .all(|(r, status)| *status == 206 || r.header("if-range").is_some())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_05_when_ranges_are_refused_after_the_first_the_file_comes_as_one_stream() {
    let data = content(4 * MIB, 4);
    let served = data.clone();
    let once = move |r: &Request| {
        let range = r.range.filter(|_| r.nth == 0);
        Reply::honest(
            &Request {
                range,
                headers: Vec::new(),
                ..r.clone()
            },
            &served,
            TAG,
        )
    };
    let bench = Bench::new(2, once).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(!outcome.pooled);
    assert_eq!(bench.progress.borrow().phase, Phase::Finishing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_05_a_416_page_in_the_middle_is_never_written() {
    let data = content(6 * MIB, 5);
    let served = data.clone();
    let moody = move |r: &Request| match r.lane {
        1 => Reply::page(416, "<html>no such range</html>"),
        _ => Reply::honest(r, &served, TAG).rate(8 * MIB),
    };
    let bench = Bench::new(2, moody).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_06_a_range_that_starts_earlier_at_a_block_is_cut_to_what_was_asked() {
    let data = content(6 * MIB + 77, 6);
    let served = data.clone();
    let blocks = move |r: &Request| match r.range {
        Some((start, end)) => {
            let end = end.next_multiple_of(65536).min(served.len() as u64);
            Reply::partial(&served, start / 65536 * 65536, end)
                .with("etag", TAG)
                .rate(8 * MIB)
        }
        None => Reply::empty(500),
    };
    let bench = Bench::new(3, blocks).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_06_shorter_ranges_than_asked_are_asked_on() {
    let data = content(3 * MIB, 7);
    let served = data.clone();
    let short = move |r: &Request| match r.range {
        Some((start, end)) => Reply::partial(&served, start, end.min(start + 100_000)).with("etag", TAG),
        None => Reply::empty(500),
    };
    let bench = Bench::new(2, short).await;
    bench.get_exactly(&data).await;
    let requests = bench.origin.seen().len();
    assert!((31..45).contains(&requests), "{requests} requests");
    assert!(bench.origin.accepted() <= 6, "connections are used again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_06_more_bytes_than_stated_never_get_into_the_file() {
    let data = content(4 * MIB, 8);
    let served = data.clone();
    let generous = move |r: &Request| {
        let mut reply = Reply::honest(r, &served, TAG)
            .without("content-length")
            .with("transfer-encoding", "chunked");
        if let Some((start, end)) = r.range {
            let mut bytes = served[start as usize..(end as usize).min(served.len())].to_vec();
            bytes.extend_from_slice(&[0xff; 50_000]);
            reply = reply.body(Body::Chunked(bytes, true));
        }
        reply
    };
    let bench = Bench::new(2, generous).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_06_a_lane_that_gets_another_range_than_asked_brings_nothing() {
    let data = content(6 * MIB, 9);
    let served = data.clone();
    let liar = move |r: &Request| match (r.lane, r.range) {
        (1, Some((start, end))) => {
            let len = (end - start).min(1000);
            Reply::partial(&served, 0, len).with("etag", TAG)
        }
        _ => Reply::honest(r, &served, TAG).rate(8 * MIB),
    };
    let bench = Bench::new(2, liar).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(!outcome.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_07_a_multipart_answer_makes_it_one_stream() {
    let data = content(2 * MIB, 10);
    let served = data.clone();
    let multipart = move |r: &Request| match r.range {
        Some(_) => {
            let text = "--x\r\ncontent-range: bytes 0-1/2\r\n\r\nab\r\n--x--";
            Reply::page(206, text).with("content-type", "multipart/byteranges; boundary=x")
        }
        None => Reply::honest(r, &served, TAG),
    };
    let bench = Bench::new(2, multipart).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_10_an_encoded_range_makes_it_one_stream_that_is_not_encoded() {
    let data = content(2 * MIB, 11);
    let served = data.clone();
    let eager = move |r: &Request| match r.range {
        Some(_) => Reply::honest(r, &served, TAG).with("content-encoding", "gzip"),
        None => Reply::honest(r, &served, TAG),
    };
    let bench = Bench::new(2, eager).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_10_an_encoded_whole_is_refused_unless_it_is_an_archive_itself() {
    let data = content(MIB, 12);
    let served = data.clone();
    let gzip = move |r: &Request| {
        Reply::honest(
            &Request {
                range: None,
                ..r.clone()
            },
            &served,
            TAG,
        )
        .with("content-encoding", "gzip")
    };
    let mut bench = Bench::new(1, gzip).await;
    assert!(matches!(bench.get().await, Err(DownloadError::Answer { .. })));
    bench.assert_no_file();
    bench.job.url.set_path("/file.bin.gz");
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.path.file_name().unwrap(), "file.bin.gz");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_23_an_empty_file_is_a_file() {
    for how in 0..3 {
        let empty = move |r: &Request| match (how, r.range) {
            (0, Some(_)) => Reply::empty(416).with("content-range", "bytes */0"),
            (1, Some(_)) => Reply::empty(416),
            _ => Reply::empty(200),
        };
        let bench = Bench::new(2, empty).await;
        bench.get_exactly(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_23_absurd_numbers_end_in_an_error_not_in_a_crash() {
    for range in [
        "bytes 0-18446744073709551615/18446744073709551615",
        "bytes 0-9/0",
        "bytes 5-4/10",
        "bytes -1-5/9",
    ] {
        let absurd = move |r: &Request| match r.range {
            Some(_) => Reply::new(206)
                .with("content-range", range)
                .with("etag", TAG)
                .end(End::Close),
            None => Reply::empty(404),
        };
        let bench = Bench::new(1, absurd).await;
        bench.get().await.unwrap_err();
        bench.assert_no_file();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c4_an_origin_that_claims_exabytes_is_refused_before_anything_is_written() {
    let data = content(MIB, 13);
    let huge = move |r: &Request| match r.range {
        Some((0, _)) => Reply::partial(&data, 0, MIB as u64)
            .with(
                "content-range",
                &format!("bytes 0-{}/9000000000000000000", MIB - 1),
            )
            .with("etag", TAG),
        _ => Reply::empty(404),
    };
    let bench = Bench::new(1, huge).await;
    assert!(matches!(bench.get().await, Err(DownloadError::Store(_))));
    bench.assert_no_file();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_31_extra_bytes_of_the_end_game_are_few() {
    let data = content(24 * MIB, 14);
    let served = data.clone();
    let total = Arc::new(AtomicUsize::new(0));
    let sent = total.clone();
    let uneven = move |r: &Request| {
        if let Some((start, end)) = r.range {
            sent.fetch_add((end - start) as usize, Ordering::Relaxed);
        }
        Reply::honest(r, &served, TAG).rate([8, 4, 2, 1][r.lane as usize] * MIB)
    };
    let bench = Bench::new(4, uneven).await;
    let outcome = bench.get_exactly(&data).await;
    let allowed = (data.len() / 50) as u64;
    assert!(
        outcome.duplicated <= allowed,
        "{} bytes came twice",
        outcome.duplicated
    );
}
