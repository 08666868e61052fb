//! Every refusal is a clear message or another attempt, and never a wrong object.

use crate::bench::{Bench, MIB};
use crate::s3_server::{Call, Deed, Kind};

const fn is_part(call: &Call) -> bool {
    matches!(call.kind, Kind::Part(_))
}

/// What is told where each request is refused in that way.
async fn refused(status: u16, code: &'static str) -> String {
    let bench = Bench::new(6 * MIB, 2, move |_| Deed::Refuse(status, code, None));
    let told = bench.told().await;
    bench.assert_no_object();
    assert!(bench.server.calls().len() < 5, "it was asked again and again");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_to_begin_an_upload_reads_so() {
    let told = refused(403, "AccessDenied").await;
    assert!(
        told.contains("these credentials may not begin an upload in bucket `box`"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_told_apart() {
    let mut bench = Bench::new(6 * MIB, 1, |_| Deed::Serve);
    bench.job.s3.as_mut().unwrap().secret_key = "another".into();
    let told = bench.told().await;
    assert!(
        told.contains("AWS_SECRET_ACCESS_KEY") && told.contains("SignatureDoesNotMatch"),
        "{told}"
    );
    let told = refused(403, "InvalidAccessKeyId").await;
    assert!(told.contains("AWS_ACCESS_KEY_ID"), "{told}");
    let told = refused(400, "ExpiredToken").await;
    assert!(told.contains("get new credentials"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_told() {
    let mut bench = Bench::new(6 * MIB, 1, |_| Deed::Serve);
    bench.job.target = "s3://nobox/film".parse().unwrap();
    let told = bench.told().await;
    assert!(told.contains("there is no bucket `nobox`"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_corrected_by_the_services() {
    let bench = Bench::new(12 * MIB, 2, |_| Deed::Skewed(-600));
    bench.put_exactly().await;
    let refused = bench
        .server
        .calls()
        .iter()
        .filter(|call| call.status == 403)
        .count();
    assert_eq!(refused, 1, "the first request learned it for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_cannot_be_brought_together_are_told() {
    let bench = Bench::new(6 * MIB, 1, |_| Deed::RefuseAt(403, "RequestTimeTooSkewed", 7_300));
    let told = bench.told().await;
    assert!(
        told.contains("the clocks differ: this device's says 2") && told.contains("2 h ahead"),
        "{told}"
    );
    assert_eq!(bench.server.calls().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_wants_less_gets_less_and_then_all() {
    let script = |call: &Call| match call.kind {
        Kind::Part(_) if call.nth < 3 => Deed::Refuse(503, "SlowDown", Some(1)),
        Kind::Create | Kind::Head if call.nth == 0 => Deed::Refuse(503, "SlowDown", Some(0)),
        _ => Deed::Serve,
    };
    let bench = Bench::new(24 * MIB, 3, script);
    bench.put_exactly().await;
    assert_eq!(bench.server.count(Kind::Complete), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_service_pass() {
    let script = |call: &Call| match call.kind {
        Kind::Part(_) if call.nth == 1 => Deed::Refuse(500, "InternalError", None),
        Kind::Part(_) if call.nth == 3 => Deed::Refuse(502, "", None),
        Kind::ListUploads if call.nth == 0 => Deed::Refuse(500, "InternalError", None),
        _ => Deed::Serve,
    };
    let bench = Bench::new(24 * MIB, 2, script);
    bench.put_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_drops_every_third_part_gets_them_all() {
    let script = |call: &Call| {
        if is_part(call) && call.nth % 3 == 2 {
            Deed::Drop
        } else {
            Deed::Serve
        }
    };
    let mut bench = Bench::new(40 * MIB, 3, script);
    bench.job.part_size = Some(5 << 20);
    bench.put_exactly().await;
    assert_eq!(bench.server.count(Kind::Complete), 1);
    assert_eq!(bench.server.count(Kind::Create), 1);
    assert!(
        bench.server.calls().iter().any(|call| call.status == 0),
        "none was dropped"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_whose_answer_is_lost_is_sent_again_and_counted_once() {
    let script = |call: &Call| {
        if is_part(call) && call.nth == 1 {
            Deed::ServeAndDrop
        } else {
            Deed::Serve
        }
    };
    let bench = Bench::new(24 * MIB, 2, script);
    bench.put_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_b11_a_part_with_a_wrong_etag_is_sent_again() {
    let wrong = "d41d8cd98f00b204e9800998ecf8427e";
    let script = move |call: &Call| {
        if is_part(call) && call.nth == 1 {
            Deed::Etag(format!("\"{wrong}\""))
        } else {
            Deed::Serve
        }
    };
    let bench = Bench::new(24 * MIB, 2, script);
    bench.put_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_b11_a_service_that_stores_something_else_gets_nothing_completed() {
    let script = |call: &Call| match call.kind {
        Kind::Part(1) => Deed::Etag("\"d41d8cd98f00b204e9800998ecf8427e\"".into()),
        _ => Deed::Serve,
    };
    let bench = Bench::new(24 * MIB, 2, script);
    let told = bench.told().await;
    assert!(
        told.contains("has something else than what was sent") && told.contains("MD5"),
        "{told}"
    );
    assert_eq!(bench.server.count(Kind::Complete), 0);
    assert_eq!(bench.server.unfinished(), 0, "what was sent was removed");
    bench.assert_no_object();
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_b11_etags_that_are_no_md5_are_checked_by_the_list_of_parts() {
    let script = |call: &Call| match call.kind {
        Kind::Part(_) => Deed::Header("x-amz-server-side-encryption", "aws:kms".into()),
        _ => Deed::Serve,
    };
    let bench = Bench::new(24 * MIB, 2, script);
    bench.put_exactly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_somebody_removes_meanwhile_is_told() {
    let script = |call: &Call| {
        if is_part(call) && call.nth >= 2 {
            Deed::Refuse(404, "NoSuchUpload", None)
        } else {
            Deed::Serve
        }
    };
    let bench = Bench::new(24 * MIB, 2, script);
    let told = bench.told().await;
    assert!(told.contains("the upload is gone"), "{told}");
    bench.assert_no_object();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_make_no_sense_end_it() {
    for (kind, told_of) in [
        (Kind::ListUploads, "unfinished uploads"),
        (Kind::Create, "names no upload"),
    ] {
        let bench = Bench::new(6 * MIB, 1, move |call| {
            if call.kind == kind {
                Deed::Say(200, "<html>\u{1b}[2J".into())
            } else {
                Deed::Serve
            }
        });
        let told = bench.told().await;
        assert!(
            told.contains("cannot be used") && told.contains(told_of),
            "{told}"
        );
        bench.assert_no_object();
    }
}
