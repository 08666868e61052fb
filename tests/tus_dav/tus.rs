//! tus: parts over lanes, joined once; broken ones continued; what a server must not get away with.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tributary::upload::UploadError;

use crate::Bench;
use crate::bench::HOST;
use crate::evil_origin::sha256;
use crate::targets::{Fault, Options, Seen, TusServer};

const MIB: usize = 1 << 20;

fn url(server: &TusServer) -> String {
    format!("tus+https://{HOST}:{}/files/", server.port)
}

fn start(bench: &Bench, options: Options) -> TusServer {
    TusServer::start(Bench::listener(), &bench.issued, options)
}

fn failing(faults: impl Fn(&Seen) -> Option<Fault> + Send + Sync + 'static) -> Options {
    Options {
        faults: Arc::new(faults),
        ..Options::default()
    }
}

/// The only file at the server is this one.
#[track_caller]
fn assert_stored(server: &TusServer, path: &std::path::Path) {
    let finished = server.finished();
    assert_eq!(finished.len(), 1, "whole files");
    assert_eq!(finished[0].name, path.file_name().unwrap().to_str().unwrap());
    assert_eq!(sha256(&finished[0].content), sha256(&fs::read(path).unwrap()));
}

fn count(server: &TusServer, of: impl Fn(&Seen) -> bool) -> usize {
    server.seen().iter().filter(|seen| of(seen)).count()
}

fn is_final(seen: &Seen) -> bool {
    seen.header("upload-concat")
        .is_some_and(|value| value.starts_with("final;"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_in_parts_over_all_lanes_and_is_joined_once() {
    let bench = Bench::new(3);
    let path = bench.file("a film.mp4", 24 * MIB + 777);
    let server = start(&bench, Options::default());
    let outcome = bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);
    assert_eq!(count(&server, is_final), 1);
    assert_eq!(outcome.note, None);
    assert!(
        outcome.place.starts_with(&url(&server)["tus+".len()..]),
        "{}",
        outcome.place
    );
    assert_eq!(outcome.lanes.iter().filter(|(_, bytes)| *bytes > 0).count(), 3);
    let unchecked = count(&server, |seen| {
        seen.method == "PATCH"
            && !seen
                .header("upload-checksum")
                .is_some_and(|sum| sum.starts_with("sha1 "))
    });
    assert_eq!(unchecked, 0, "each part's checksum is compared by the server");
    assert_eq!(server.parts().1, 0, "nothing unfinished is left");
    assert_eq!(bench.journals(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_no_byte_and_of_one_and_of_exactly_one_part_arrive() {
    let bench = Bench::new(2);
    for (n, length) in [0, 1, 256 << 10, 2 * MIB, 2 * MIB + 1].into_iter().enumerate() {
        for with_upload in [true, false] {
            let path = bench.file(&format!("f{n}"), length);
            let options = Options {
                with_upload,
                ..Options::default()
            };
            let server = start(&bench, options);
            bench.put(&path, &url(&server)).await.unwrap();
            assert_stored(&server, &path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_join_gets_one_line_and_the_user_is_told() {
    let bench = Bench::new(3);
    let path = bench.file("f", 5 * MIB);
    let options = Options {
        concatenation: false,
        ..Options::default()
    };
    let server = start(&bench, options);
    let outcome = bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);
    assert!(outcome.note.unwrap().contains("only one line"));
    assert_eq!(count(&server, |seen| seen.method == "POST"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_32_a_part_whose_connection_breaks_is_continued_where_the_server_is() {
    let bench = Bench::new(1);
    let path = bench.file("f", 6 * MIB);
    // Without checksums the server keeps what came.
    let options = Options {
        checksum: false,
        ..failing(|seen| (seen.method == "PATCH" && seen.nth == 0).then_some(Fault::LoseAnswer))
    };
    let server = start(&bench, options);
    bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);
    let begun = count(&server, |seen| seen.header("upload-concat") == Some("partial"));
    assert_eq!(server.parts(), (begun, 0), "no part was begun anew");
    assert!(
        count(&server, |seen| seen.method == "HEAD") > 1,
        "it was asked for instead"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_32_every_third_request_for_a_part_dropped_ends_in_the_right_file_all_the_same() {
    let bench = Bench::new(3);
    let path = bench.file("f", 16 * MIB);
    let server = start(
        &bench,
        failing(|seen| match (seen.method.as_str(), seen.nth % 6) {
            ("PATCH", 2) => Some(Fault::CutAfter(300_000)),
            ("PATCH", 5) => Some(Fault::BreakAfter(500_000)),
            _ => None,
        }),
    );
    bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);
    assert_eq!(count(&server, is_final), 1);
    assert_eq!(server.parts().1, 0, "nothing unfinished is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_b11_a_checksum_that_differs_is_tried_again_and_ends_the_upload_at_the_third_time() {
    let bench = Bench::new(2);
    let path = bench.file("f", 8 * MIB);
    let mismatch = || Some(Fault::Answer(460, vec![], ""));
    let server = start(
        &bench,
        failing(move |seen| (seen.method == "PATCH" && seen.nth == 1).then(mismatch).flatten()),
    );
    bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);

    let server = start(
        &bench,
        failing(move |seen| (seen.method == "PATCH").then(mismatch).flatten()),
    );
    let error = bench.put(&path, &url(&server)).await.unwrap_err();
    assert!(matches!(error, UploadError::Corrupt { .. }), "{error}");
    assert_eq!(server.finished(), []);
    assert_eq!(server.stored(), 0, "what was sent was removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_32_an_upload_that_is_said_to_be_elsewhere_is_not_followed_there() {
    let bench = Bench::new(2);
    let path = bench.file("f", 8 * MIB);
    for foreign in [
        "https://elsewhere.test/files/x",
        "http://upload.test/files/x",
        "//127.0.0.2/x",
    ] {
        let server = start(
            &bench,
            failing(move |seen| (seen.method == "POST").then(|| Fault::Header("location", foreign.into()))),
        );
        let error = bench.put(&path, &url(&server)).await.unwrap_err();
        assert!(
            error.to_string().contains("names an address at"),
            "{foreign}: {error}"
        );
        assert_eq!(count(&server, |seen| seen.method == "PATCH"), 0, "{foreign}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_that_cannot_be_ends_the_upload_and_completes_nothing() {
    let bench = Bench::new(2);
    let path = bench.file("f", 8 * MIB);
    let wrong =
        |seen: &Seen| (seen.method == "PATCH").then(|| Fault::Header("upload-offset", "99999999999".into()));
    let server = start(&bench, failing(wrong));
    let error = bench.put(&path, &url(&server)).await.unwrap_err();
    assert!(error.to_string().contains("Upload-Offset"), "{error}");
    assert_eq!(server.finished(), []);
    assert_eq!(count(&server, is_final), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_conflicting_busy_and_lost_uploads_are_got_over() {
    let bench = Bench::new(2);
    let path = bench.file("f", 12 * MIB);
    let server = start(
        &bench,
        failing(|seen| match (seen.method.as_str(), seen.nth) {
            ("PATCH", 0) => Some(Fault::Answer(423, vec![], "")),
            ("PATCH", 2) => Some(Fault::Answer(409, vec![], "")),
            ("PATCH", 3) => Some(Fault::Answer(503, vec![("retry-after", "1".into())], "")),
            ("PATCH", 4) => Some(Fault::Answer(404, vec![], "")),
            ("POST", 2) => Some(Fault::Answer(500, vec![], "")),
            ("POST", 3) => Some(Fault::LoseAnswer),
            _ => None,
        }),
    );
    bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);
    assert_eq!(count(&server, is_final), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_32_a_lost_answer_to_the_request_that_joins_is_told_and_the_request_not_repeated() {
    let bench = Bench::new(2);
    let path = bench.file("f", 6 * MIB);
    let server = start(
        &bench,
        failing(|seen| is_final(seen).then_some(Fault::LoseAnswer)),
    );
    let error = bench.put(&path, &url(&server)).await.unwrap_err();
    assert!(error.to_string().contains("is not known"), "{error}");
    assert_eq!(count(&server, is_final), 1);
    assert_stored(&server, &path);
    assert_eq!(bench.journals(), 1, "the user may go on from here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_32_the_request_that_joins_is_sent_again_where_it_was_refused() {
    let bench = Bench::new(2);
    let path = bench.file("f", 6 * MIB);
    let times = AtomicUsize::new(0);
    let busy = move |seen: &Seen| {
        (is_final(seen) && times.fetch_add(1, Ordering::Relaxed) == 0)
            .then(|| Fault::Answer(503, vec![("retry-after", "1".into())], ""))
    };
    let server = start(&bench, failing(busy));
    bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);
    assert_eq!(count(&server, is_final), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_run_sends_only_what_the_server_has_not() {
    let bench = Bench::new(2);
    let path = bench.file("f", 24 * MIB);
    let issued = bench.issued.clone();
    // From the sixth part on nothing gets through, and then the credentials are no longer good.
    let server = start(
        &bench,
        failing(|seen| match (seen.method.as_str(), seen.nth) {
            ("PATCH", 0..6) => None,
            ("PATCH", _) => Some(Fault::Answer(403, vec![], "")),
            _ => None,
        }),
    );
    let error = bench.put(&path, &url(&server)).await.unwrap_err();
    assert!(matches!(error, UploadError::Refused { .. }), "{error}");
    assert_eq!(bench.journals(), 1);
    let address = ([127, 0, 0, 1], server.port).into();
    let server = server.restart(address, &issued, Options::default());
    let earlier: Vec<_> = server.begun().into_iter().map(|(name, _)| name).collect();
    let outcome = bench.put(&path, &url(&server)).await.unwrap();
    assert_stored(&server, &path);
    assert!(outcome.resumed > 0);
    let joins = server.seen().into_iter().find(is_final).unwrap();
    let names = joins.header("upload-concat").unwrap();
    let now = server.begun();
    let used = now
        .iter()
        .filter(|(name, _)| earlier.contains(name) && names.contains(name.as_str()));
    let used: u64 = used.map(|(_, length)| length).sum();
    // Those that were begun and are continued are more, and not told as resumed.
    assert!(
        used >= outcome.resumed,
        "{used} of {} were joined",
        outcome.resumed
    );
    assert_eq!(bench.journals(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_has_thrown_away_is_sent_again() {
    let bench = Bench::new(2);
    let path = bench.file("f", 12 * MIB);
    let server = start(
        &bench,
        failing(|seen| is_final(seen).then_some(Fault::Answer(403, vec![], ""))),
    );
    bench.put(&path, &url(&server)).await.unwrap_err();
    assert_eq!(bench.journals(), 1);
    drop(server);
    // Another server at the same address would have another key: the same one, emptied.
    let server = start(&bench, Options::default());
    let target = url(&server);
    bench.put(&path, &target).await.unwrap();
    assert_stored(&server, &path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_cannot_take_is_told_before_anything_is_sent() {
    let bench = Bench::new(1);
    let path = bench.file("f", 4 * MIB);
    let small = Options {
        max_size: Some(MIB as u64),
        ..Options::default()
    };
    let server = start(&bench, small);
    let error = bench.put(&path, &url(&server)).await.unwrap_err();
    assert!(error.to_string().contains("at most 1.0 MiB"), "{error}");
    assert_eq!(count(&server, |seen| seen.method != "OPTIONS"), 0);

    for (status, part) in [
        (200, "does not speak tus"),
        (404, "address"),
        (401, "USER:PASSWORD"),
    ] {
        let deaf = move |_: &Seen| Some(Fault::Answer(status, vec![], ""));
        let server = start(&bench, failing(deaf));
        let error = bench.put(&path, &url(&server)).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let directory = bench.put(&bench.source(), &url(&server)).await.unwrap_err();
    assert!(
        directory.to_string().contains("one file at a time"),
        "{directory}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_stopped_for_good_leaves_nothing_at_the_server() {
    let bench = Bench::new(2);
    let path = bench.file("f", 16 * MIB);
    let abort = bench.stop.abort.clone();
    let server = start(
        &bench,
        failing(move |seen| {
            if seen.method == "PATCH" && seen.nth == 4 {
                abort.cancel();
            }
            None
        }),
    );
    let error = bench.put(&path, &url(&server)).await.unwrap_err();
    assert!(
        matches!(error, UploadError::Stopped { resumable: false }),
        "{error}"
    );
    // One that was being begun just then may be there, empty: its name was never heard.
    assert_eq!(server.stored(), 0);
    assert_eq!(bench.journals(), 0);
}
