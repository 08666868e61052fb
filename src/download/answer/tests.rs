//! Each hazard of an answer's head, by its row in the table of HTTP hazards.

use hyper::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

const WANT: ByteRange = ByteRange::new(100, 200);

fn head(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_str(value).unwrap());
    }
    map
}

fn known(total: u64, etag: Option<&str>) -> Known {
    Known {
        generation: Generation {
            total,
            validator: etag.map(|t| Validator::ETag(t.into())),
        },
        media: Some("application/zip".into()),
    }
}

/// Judges an answer to `bytes=100-199` of a file of 1000 bytes with the ETag `"a"`.
fn lease(status: u16, lines: &[(&str, &str)]) -> Verdict {
    let known = known(1000, Some("\"a\""));
    let asked = Asked {
        range: Some(WANT),
        conditional: false,
        known: Some(&known),
    };
    judge(
        asked,
        StatusCode::from_u16(status).unwrap(),
        &head(lines),
        SystemTime::UNIX_EPOCH,
    )
}

fn first(status: u16, lines: &[(&str, &str)]) -> Verdict {
    let asked = Asked {
        range: Some(ByteRange::new(0, 100)),
        conditional: false,
        known: None,
    };
    judge(
        asked,
        StatusCode::from_u16(status).unwrap(),
        &head(lines),
        SystemTime::UNIX_EPOCH,
    )
}

fn accepted(verdict: &Verdict) -> Option<(ByteRange, u64)> {
    match verdict {
        Verdict::Accept { body, skip, .. } => Some((*body, *skip)),
        _ => None,
    }
}

#[test]
fn http_02_the_first_206_decides_and_says_the_total_and_the_generation() {
    let got = first(
        206,
        &[
            ("content-range", "bytes 0-99/1000"),
            ("content-length", "100"),
            ("etag", "\"a\""),
        ],
    );
    let body = ByteRange::new(0, 100);
    let validator = Some(Validator::ETag("\"a\"".into()));
    assert_eq!(
        got,
        Verdict::Accept {
            body,
            skip: 0,
            total: 1000,
            validator
        }
    );
}

#[test]
fn http_02_the_first_200_is_the_whole_content_and_accept_ranges_is_ignored() {
    let got = first(200, &[("content-length", "5"), ("accept-ranges", "bytes")]);
    let len = Some(5);
    assert_eq!(
        got,
        Verdict::Whole {
            len,
            validator: None,
            encoded: false
        }
    );
}

#[test]
fn http_04_a_200_to_a_conditional_request_is_asked_again_plain() {
    let known = known(1000, Some("\"a\""));
    let asked = Asked {
        range: Some(WANT),
        conditional: true,
        known: Some(&known),
    };
    let got = judge(
        asked,
        StatusCode::OK,
        &head(&[("etag", "\"b\"")]),
        SystemTime::UNIX_EPOCH,
    );
    assert_eq!(got, Verdict::RetryPlain);
}

#[test]
fn http_05_only_a_206_is_ever_accepted_within_a_file() {
    let lines = [
        ("content-range", "bytes 100-199/1000"),
        ("etag", "\"a\""),
        ("content-length", "100"),
    ];
    for status in (100..600).filter(|s| *s != 206) {
        let got = lease(status, &lines);
        assert_eq!(accepted(&got), None, "{status}: {got:?}");
        assert!(!matches!(got, Verdict::Whole { .. }), "{status}: {got:?}");
    }
    assert!(accepted(&lease(206, &lines)).is_some());
}

#[test]
fn http_06_a_range_may_start_earlier_or_end_earlier_or_later_but_must_hold_the_first_byte() {
    let of = |range: &str| accepted(&lease(206, &[("content-range", range), ("etag", "\"a\"")]));
    assert_eq!(of("bytes 100-199/1000"), Some((ByteRange::new(100, 200), 0)));
    assert_eq!(of("bytes 64-199/1000"), Some((ByteRange::new(64, 200), 36)));
    assert_eq!(of("bytes 100-149/1000"), Some((ByteRange::new(100, 150), 0)));
    assert_eq!(of("bytes 100-999/1000"), Some((ByteRange::new(100, 1000), 0)));
    assert_eq!(of("Bytes 100-199/1000"), Some((ByteRange::new(100, 200), 0)));
    for bad in [
        "bytes 101-199/1000",
        "bytes 0-99/1000",
        "bytes 199-100/1000",
        "bytes 100-1000/1000",
        "bytes 100-199/999",
        "bytes 100-199/*",
        "bytes */1000",
        "bytes +100-199/1000",
        "bytes -100-199/1000",
        "bytes 100-199",
        "items 100-199/1000",
        "bytes=100-199/1000",
        "bytes 100-18446744073709551615/1000",
        "bytes 100-199/18446744073709551616",
        "",
    ] {
        assert_eq!(of(bad), None, "{bad}");
    }
}

#[test]
fn http_06_two_content_ranges_or_none_are_no_range() {
    let range = ("content-range", "bytes 100-199/1000");
    let no_range = Verdict::Ineligible(Why::NoRange);
    assert_eq!(lease(206, &[range, range, ("etag", "\"a\"")]), no_range);
    assert_eq!(lease(206, &[("etag", "\"a\"")]), no_range);
}

#[test]
fn http_06_a_206_from_far_before_the_byte_asked_for_is_no_range() {
    let known = known(u64::MAX, Some("\"a\""));
    let asked = Asked {
        range: Some(ByteRange::new(MAX_SKIP + 1, MAX_SKIP + 2)),
        conditional: false,
        known: Some(&known),
    };
    let lines = head(&[
        ("content-range", "bytes 0-2000000/18446744073709551615"),
        ("etag", "\"a\""),
    ]);
    let got = judge(asked, StatusCode::PARTIAL_CONTENT, &lines, SystemTime::UNIX_EPOCH);
    assert_eq!(got, Verdict::Ineligible(Why::NoRange));
}

#[test]
fn http_07_a_multipart_answer_is_no_range() {
    let got = lease(
        206,
        &[
            ("content-type", "multipart/byteranges; boundary=x"),
            ("etag", "\"a\""),
        ],
    );
    assert_eq!(got, Verdict::Ineligible(Why::NoRange));
}

#[test]
fn http_08_another_total_or_validator_is_another_generation() {
    let of = |range: &str, etag: &str| lease(206, &[("content-range", range), ("etag", etag)]);
    let b = Some(Validator::ETag("\"b\"".into()));
    assert_eq!(
        of("bytes 100-199/1000", "\"b\""),
        Verdict::Changed(Some((1000, b)))
    );
    assert!(matches!(of("bytes 100-199/1001", "\"a\""), Verdict::Changed(_)));
    assert!(matches!(of("bytes 100-199/1000", "W/\"a\""), Verdict::Changed(_)));
    assert!(matches!(
        lease(206, &[("content-range", "bytes 100-199/1000")]),
        Verdict::Changed(_)
    ));
    assert_eq!(lease(412, &[]), Verdict::Changed(None));
}

#[test]
fn http_10_an_encoded_range_is_never_accepted() {
    let of = |coding| {
        lease(
            206,
            &[
                ("content-range", "bytes 100-199/1000"),
                ("etag", "\"a\""),
                ("content-encoding", coding),
            ],
        )
    };
    assert_eq!(of("gzip"), Verdict::Ineligible(Why::Encoded));
    assert_eq!(of("identity, br"), Verdict::Ineligible(Why::Encoded));
    assert!(accepted(&of("Identity")).is_some());
}

#[test]
fn http_13_a_status_that_ties_the_link_to_another_address_makes_the_lane_ineligible() {
    for status in [401, 403, 404, 407, 410, 451, 400, 418, 203, 204] {
        let why = Why::Status(StatusCode::from_u16(status).unwrap());
        assert_eq!(lease(status, &[]), Verdict::Ineligible(why));
    }
}

#[test]
fn http_13_a_login_page_instead_of_the_content_is_other_media() {
    let page = ("content-type", "text/html; charset=utf-8");
    assert_eq!(lease(200, &[page]), Verdict::Ineligible(Why::OtherMedia));
    let range = ("content-range", "bytes 100-199/1000");
    assert_eq!(
        lease(206, &[page, range, ("etag", "\"a\"")]),
        Verdict::Ineligible(Why::OtherMedia)
    );
}

#[test]
fn http_16_retry_after_is_read_as_seconds_or_date_and_capped() {
    let of = |lines: &[(&str, &str)]| match lease(429, lines) {
        Verdict::Refused { retry_after } => retry_after.map(|d| d.as_secs()),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&[("retry-after", "7")]), Some(7));
    assert_eq!(of(&[("retry-after", "99999999999")]), Some(600));
    assert_eq!(of(&[("retry-after", "soon")]), None);
    assert_eq!(of(&[("retry-after", "-1")]), None);
    assert_eq!(of(&[]), None);
    let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(
        of(&[date, ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")]),
        Some(30)
    );
    assert_eq!(
        of(&[date, ("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")]),
        Some(0)
    );
}

#[test]
fn http_17_a_content_length_that_differs_from_the_range_is_broken() {
    let of = |len| {
        lease(
            206,
            &[
                ("content-range", "bytes 100-199/1000"),
                ("etag", "\"a\""),
                ("content-length", len),
            ],
        )
    };
    assert!(accepted(&of("100")).is_some());
    assert!(matches!(of("99"), Verdict::Broken(_)));
    assert!(matches!(of("101"), Verdict::Broken(_)));
    assert!(matches!(of("x"), Verdict::Broken(_)));
}

#[test]
fn http_18_transfer_encoding_beside_content_length_is_broken() {
    let lines = [("transfer-encoding", "chunked"), ("content-length", "100")];
    for status in [200, 206, 302, 416] {
        assert!(matches!(lease(status, &lines), Verdict::Broken(_)), "{status}");
    }
}

#[test]
fn http_22_a_416_says_the_total_where_it_can() {
    assert_eq!(
        lease(416, &[("content-range", "bytes */1000")]),
        Verdict::Unsatisfied(Some(1000))
    );
    assert_eq!(lease(416, &[]), Verdict::Unsatisfied(None));
}

proptest! {
    #[test]
    fn http_23_an_accepted_range_never_leaves_the_file_and_always_holds_the_byte_asked_for(
        a in prop::num::u64::ANY, b in prop::num::u64::ANY, n in prop::num::u64::ANY,
        small in any::<bool>(), start in any::<u64>(), len in 1u64..1000,
    ) {
        let cut = |x: u64| if small { x % 64 } else { x };
        let (a, b, n) = (cut(a), cut(b), cut(n));
        let start = cut(start);
        let want = ByteRange::new(start, start.saturating_add(len));
        let asked = Asked { range: Some(want), conditional: false, known: None };
        let line = format!("bytes {a}-{b}/{n}");
        let got = judge(asked, StatusCode::PARTIAL_CONTENT, &head(&[("content-range", &line)]), SystemTime::UNIX_EPOCH);
        if let Verdict::Accept { body, skip, total, .. } = got {
            prop_assert_eq!((body.start, body.end - 1, total), (a, b, n));
            prop_assert!(body.end <= total && !body.is_empty());
            prop_assert_eq!(body.start + skip, want.start);
            prop_assert!(skip < body.len() && skip <= MAX_SKIP);
        }
    }

    #[test]
    fn no_head_whatever_it_says_makes_the_judge_fail(
        status in 100u16..600, lines in prop::collection::vec((0usize..8, "[ -~]{0,40}"), 0..8), conditional in any::<bool>(), is_known in any::<bool>(),
    ) {
        const NAMES: [&str; 8] = ["content-range", "content-length", "etag", "last-modified", "date", "retry-after", "content-type", "transfer-encoding"];
        let lines: Vec<_> = lines.iter().map(|(n, v)| (NAMES[*n], v.as_str())).collect();
        let known = known(1000, Some("\"a\""));
        let asked = Asked { range: Some(WANT), conditional, known: is_known.then_some(&known) };
        let got = judge(asked, StatusCode::from_u16(status).unwrap(), &head(&lines), SystemTime::now());
        prop_assert!(accepted(&got).is_none() || status == 206);
    }
}
