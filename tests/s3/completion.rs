//! The one request that makes an object: once, whatever becomes of its answer.

use crate::bench::{Bench, MIB};
use crate::s3_server::{Call, Deed, Kind};

fn completes(nth: usize, deed: Deed) -> impl Fn(&Call) -> Deed + Send + Sync + 'static {
    move |call| {
        if call.kind == Kind::Complete && call.nth == nth {
            deed.clone()
        } else {
            Deed::Serve
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_32_a_completion_that_took_effect_unheard_is_not_repeated() {
    let bench = Bench::new(12 * MIB, 2, completes(0, Deed::ServeAndDrop));
    bench.put_exactly().await;
    assert_eq!(bench.server.count(Kind::Complete), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_32_a_completion_that_had_no_effect_is_sent_again_once_that_was_seen() {
    let bench = Bench::new(12 * MIB, 2, completes(0, Deed::Drop));
    bench.put_exactly().await;
    assert_eq!(bench.server.count(Kind::Complete), 2);
    let calls = bench.server.calls();
    let between = calls
        .iter()
        .skip_while(|call| call.kind != Kind::Complete)
        .skip(1);
    let looked = between
        .take_while(|call| call.kind != Kind::Complete)
        .any(|call| call.kind == Kind::ListParts);
    assert!(looked, "it was sent again without looking");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_32_an_error_with_a_good_status_is_no_success() {
    let failed =
        "<?xml version=\"1.0\"?>\n  \n<Error><Code>InternalError</Code><Message>Again.</Message></Error>";
    let bench = Bench::new(12 * MIB, 2, completes(0, Deed::Say(200, failed.into())));
    bench.put_exactly().await;
    assert_eq!(bench.server.count(Kind::Complete), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_32_a_completion_that_is_claimed_and_was_not_done_is_found_out() {
    let claimed = "<CompleteMultipartUploadResult><ETag>\"3858f62230ac3c915f300c664312c11f-3\"</ETag></CompleteMultipartUploadResult>";
    let bench = Bench::new(12 * MIB, 2, completes(0, Deed::Say(200, claimed.into())));
    let told = bench.told().await;
    assert!(told.contains("the object is not there"), "{told}");
    bench.assert_no_object();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_another_length_or_etag_is_found_out() {
    for deed in [
        Deed::Etag("\"3858f62230ac3c915f300c664312c11f-2\"".into()),
        Deed::Header("content-length", "1".into()),
    ] {
        let bench = Bench::new(12 * MIB, 2, move |call| {
            if call.kind == Kind::Head {
                deed.clone()
            } else {
                Deed::Serve
            }
        });
        let told = bench.told().await;
        assert!(told.contains("has something else than what was sent"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_a_service_does_not_take_together_are_told_with_what_to_try() {
    for code in ["EntityTooSmall", "InvalidPart", "InvalidPartOrder"] {
        let bench = Bench::new(12 * MIB, 2, completes(0, Deed::Refuse(400, code, None)));
        let told = bench.told().await;
        assert!(told.contains("--part-size") && told.contains(code), "{told}");
        assert_eq!(bench.server.count(Kind::Complete), 1);
        assert_eq!(bench.server.unfinished(), 1, "it can be tried again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_look_is_told_that_only_the_services_word_stands() {
    let bench = Bench::new(12 * MIB, 2, |call| match call.kind {
        Kind::Head => Deed::Refuse(403, "", None),
        _ => Deed::Serve,
    });
    let outcome = bench.put_exactly().await;
    assert!(outcome.note.unwrap().contains("only the service's word"));
}
