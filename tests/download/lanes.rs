//! Lanes that are treated differently by the origin, fail, come and go.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use tributary::download::DownloadError;
use tributary::lane::Lane;
use tributary::transfer::LaneState;
use tributary::trust::Tier;

use crate::MIB;
use crate::evil_origin::{Bench, Body, Reply, Request, TestLane, Tls, content, sha256};

const TAG: &str = "\"v1\"";

fn redirect(to: &str) -> Reply {
    Reply::empty(302).with("location", to)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_12_each_lane_follows_the_redirects_itself_and_keeps_its_own_end() {
    let data = content(8 * MIB, 1);
    let served = data.clone();
    let signing = move |r: &Request| match r.path.as_str() {
        "/file.bin" => redirect(&format!("/signed?for={}", r.lane)),
        path if path == format!("/signed?for={}", r.lane) => Reply::honest(r, &served, TAG).rate(8 * MIB),
        _ => Reply::empty(403),
    };
    let bench = Bench::new(3, signing).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
    let seen = bench.origin.seen();
    assert!(seen.iter().all(|(_, status)| *status != 403));
    for lane in 0..3 {
        let asked = seen
            .iter()
            .filter(|(r, _)| r.lane == lane && r.path == "/file.bin")
            .count();
        assert!(
            (1..=2).contains(&asked),
            "lane {lane} was redirected {asked} times"
        );
    }
    assert_eq!(outcome.path.file_name().unwrap(), "file.bin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_12_a_signed_link_that_ran_out_is_looked_up_again_once() {
    let data = content(10 * MIB, 2);
    let served = data.clone();
    let expiring = move |r: &Request| match r.path.as_str() {
        "/file.bin" => redirect(&format!("/signed?until={}", r.nth_of_lane + 3)),
        path => {
            let until: usize = path.rsplit('=').next().unwrap().parse().unwrap();
            if r.nth_of_lane > until {
                Reply::empty(403)
            } else {
                Reply::honest(r, &served, TAG).rate(6 * MIB)
            }
        }
    };
    let bench = Bench::new(1, expiring).await;
    // Two requests a link, one look-up in 30 s: the rest must come over another lane, or fail in plain words.
    match bench.get().await {
        Ok(_) => {}
        Err(DownloadError::Status { status, .. }) => assert_eq!(status.as_u16(), 403),
        Err(other) => panic!("{other}"),
    }
    let looked_up = bench
        .origin
        .seen()
        .iter()
        .filter(|(r, _)| r.path == "/file.bin")
        .count();
    assert!(looked_up <= 4, "{looked_up} look-ups");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_13_a_link_tied_to_one_address_comes_over_that_lane_without_a_retry_storm() {
    for status in [401, 403, 407, 410, 451] {
        let data = content(4 * MIB, 3);
        let served = data.clone();
        let tied = move |r: &Request| match r.lane {
            0 => Reply::honest(r, &served, TAG).rate(8 * MIB),
            _ => Reply::empty(status),
        };
        let bench = Bench::new(3, tied).await;
        let outcome = bench.get_exactly(&data).await;
        assert!(!outcome.pooled);
        let refused = bench.origin.seen().iter().filter(|(r, _)| r.lane > 0).count();
        assert!(refused <= 4, "{refused} requests over refused lanes");
        let why = bench.progress.borrow().lanes[1].state.clone();
        assert!(matches!(why, LaneState::Ineligible(_)), "{why:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_b3_a_lender_that_resets_each_range_just_before_its_end_is_left_and_the_file_is_right() {
    let data = content(24 * MIB, 13);
    let served = data.clone();
    let resetting = move |r: &Request| {
        let honest = Reply::honest(r, &served, TAG);
        match (r.lane, r.range) {
            (1, Some((start, end))) => {
                let len = (end as usize).min(served.len()).saturating_sub(start as usize);
                honest.cut_after(len - len / 100 - 1)
            }
            _ => honest.rate(6 * MIB),
        }
    };
    let bench = Bench::new(2, resetting).await;
    let outcome = bench.get_exactly(&data).await;
    // What it did bring counts; what it kept back comes from the other one.
    assert!(outcome.lanes[0].1 > 0, "{:?}", outcome.lanes);
    let over_it = bench.origin.seen().iter().filter(|(r, _)| r.lane == 1).count();
    assert!(
        over_it < 40,
        "{over_it} requests over a lane that breaks each of them"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_13_a_login_page_on_one_lane_never_gets_into_the_file() {
    let data = content(4 * MIB, 4);
    let served = data.clone();
    let login = move |r: &Request| match r.lane {
        0 => Reply::honest(r, &served, TAG)
            .with("content-type", "application/zip")
            .rate(8 * MIB),
        _ => Reply::page(200, "<html>please log in</html>"),
    };
    let bench = Bench::new(2, login).await;
    assert!(!bench.get_exactly(&data).await.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_16_an_origin_with_a_limit_of_one_connection_is_obeyed_after_the_first_refusal() {
    let data = content(12 * MIB, 5);
    let served = data.clone();
    let strict = move |r: &Request| match r.open {
        0..=1 => Reply::honest(r, &served, TAG).rate(4 * MIB),
        _ => Reply::empty(429)
            .with("retry-after", "1")
            .end(crate::evil_origin::End::Close),
    };
    let bench = Bench::new(2, strict).await;
    let began = std::time::Instant::now();
    bench.get_exactly(&data).await;
    // After each second it may be asked again, as it said.
    let again = began.elapsed().as_secs() as usize;
    for lane in 0..2 {
        let refused = bench
            .origin
            .seen()
            .iter()
            .filter(|(r, s)| r.lane == lane && *s == 429)
            .count();
        // Both connections may be refused at once, and the origin may count one that was dropped just now.
        assert!(
            refused <= 3 + again,
            "lane {lane} was refused {refused} times in {again} s"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_16_no_lane_opens_more_than_two_connections_and_all_together_sixteen() {
    let data = content(16 * MIB, 6);
    let served = data.clone();
    let bench = Bench::new(0, move |r| Reply::honest(r, &served, TAG).rate(2 * MIB)).await;
    let lanes: Vec<_> = (0..10).map(TestLane::new).collect();
    bench.set_lanes(lanes.clone());
    bench.get_exactly(&data).await;
    let most: Vec<usize> = lanes.iter().map(|lane| lane.most_open()).collect();
    assert!(most.iter().all(|&n| n <= 2), "{most:?}");
    assert!(most.iter().sum::<usize>() <= 16, "{most:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_16_a_busy_origin_is_asked_again_when_it_said_so() {
    let data = content(MIB, 7);
    let served = data.clone();
    let busy = move |r: &Request| match r.nth {
        0 => Reply::empty(503).with("retry-after", "1"),
        _ => Reply::honest(r, &served, TAG),
    };
    let bench = Bench::new(1, busy).await;
    bench.get_exactly(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_19_plain_http_without_a_digest_stays_on_own_uplinks() {
    let data = content(8 * MIB, 8);
    let served = data.clone();
    let mut bench = Bench::with_tls(Tls::Off, 3, move |r| Reply::honest(r, &served, TAG).rate(8 * MIB)).await;
    let alone = bench.get_exactly(&data).await;
    assert!(!alone.pooled);
    assert!(alone.note.unwrap().contains("nobody vouched for"));
    assert_eq!(bench.origin.lanes(), [0]);
    assert_eq!(bench.origin.most_open(1), 0, "not even a connection");
    std::fs::remove_file(bench.path()).unwrap();
    bench.job.sha256 = Some(sha256(&data));
    assert!(bench.get_exactly(&data).await.pooled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_19_plain_http_goes_over_members_lines_too_and_the_user_is_told_so() {
    let data = content(8 * MIB, 8);
    let served = data.clone();
    let bench = Bench::with_tls(Tls::Off, 3, move |r| Reply::honest(r, &served, TAG).rate(8 * MIB)).await;
    let member = TestLane::with(1, Ipv4Addr::LOCALHOST, |info| info.tier = Some(Tier::Member));
    let lanes: [Arc<dyn Lane>; 3] = [TestLane::new(0), member, TestLane::new(2)];
    bench.lanes.send_replace(Arc::new(lanes.to_vec()));
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
    assert!(outcome.note.unwrap().contains("members' lines"));
    assert_eq!(bench.origin.most_open(2), 0, "nobody vouched for that one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_20_a_portal_on_one_lane_rests_that_lane() {
    let data = content(8 * MIB, 9);
    let served = data.clone();
    let portal = move |r: &Request| match (r.lane, r.path.as_str()) {
        (1, "/file.bin") => redirect("/login"),
        (1, _) => Reply::page(200, "<html>welcome to the hotel</html>"),
        _ => Reply::honest(r, &served, TAG)
            .with("content-type", "application/zip")
            .rate(4 * MIB),
    };
    let mut bench = Bench::with_tls(Tls::Off, 3, portal).await;
    bench.job.sha256 = Some(sha256(&data));
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.lanes[1].1, 0);
    assert!(outcome.lanes[2].1 > 0);
    let asked = bench.origin.seen().iter().filter(|(r, _)| r.lane == 1).count();
    assert!(asked <= 4, "{asked} requests into the portal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c2_a_redirect_to_plain_http_is_refused() {
    let down = |r: &Request| redirect(&format!("http://origin.test:1/{}", r.lane));
    let bench = Bench::new(1, down).await;
    let error = bench.get().await.unwrap_err();
    assert!(matches!(error, DownloadError::Redirect { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c2_endless_redirects_end_after_ten() {
    let bench = Bench::new(1, |r| redirect(&format!("/{}", r.nth))).await;
    let error = bench.get().await.unwrap_err();
    assert!(error.to_string().contains("more than 10 redirects"), "{error}");
    assert_eq!(bench.origin.seen().len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c3_credentials_are_not_taken_along_to_another_host_or_port() {
    let data = content(MIB, 10);
    let other = Bench::new(1, {
        let data = data.clone();
        move |r: &Request| Reply::honest(r, &data, TAG)
    })
    .await;
    let port = other.origin.port;
    let mut bench = Bench::new(1, move |r: &Request| match r.path.as_str() {
        "/file.bin" => redirect("/same"),
        _ => redirect(&format!("https://origin.test:{port}/elsewhere")),
    })
    .await;
    bench.origin.roots.roots.extend(other.origin.roots.roots.clone());
    bench.job.url.set_username("me").unwrap();
    bench.job.url.set_password(Some("secret")).unwrap();
    for name in ["cookie", "x-api-key"] {
        bench
            .job
            .headers
            .push((HeaderName::from_static(name), HeaderValue::from_static("secret")));
    }
    bench.get_exactly(&data).await;
    for (request, _) in bench.origin.seen() {
        assert_eq!(
            request.header("authorization"),
            Some("Basic bWU6c2VjcmV0"),
            "{}",
            request.path
        );
        assert_eq!(request.header("cookie"), Some("secret"), "{}", request.path);
    }
    for (request, _) in other.origin.seen() {
        for name in ["authorization", "cookie", "x-api-key"] {
            assert_eq!(request.header(name), None, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c10_a_wrong_certificate_on_one_lane_strikes_that_lane_only() {
    let data = content(6 * MIB, 11);
    let served = data.clone();
    let honest = move |r: &Request| Reply::honest(r, &served, TAG).rate(8 * MIB);
    let bench = Bench::with_tls(Tls::WrongNameFor(1), 3, honest).await;
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
    assert!(!bench.origin.lanes().contains(&1), "nothing is asked over it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_c10_a_wrong_certificate_on_all_lanes_is_an_error_of_its_own() {
    let bench = Bench::with_tls(Tls::WrongNameFor(0), 1, |_| Reply::empty(500)).await;
    let error = bench.get().await.unwrap_err();
    assert!(matches!(error, DownloadError::Certificate { .. }), "{error}");
    assert!(bench.origin.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_lane_that_is_dead_is_passed_over_soon() {
    let data = content(6 * MIB, 12);
    let served = data.clone();
    let bench = Bench::new(0, move |r| Reply::honest(r, &served, TAG).rate(8 * MIB)).await;
    let lanes = [TestLane::new(0), TestLane::new(1), TestLane::new(2)];
    lanes[0].dead.store(true, Ordering::Relaxed);
    bench.set_lanes(lanes.to_vec());
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.lanes[0].1, 0);
    assert!(outcome.elapsed < Duration::from_secs(20), "{:?}", outcome.elapsed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_only_lane_goes_away_at_the_first_question_the_next_one_is_asked() {
    let data = content(2 * MIB, 14);
    let served = data.clone();
    let bench = Bench::new(0, move |r| Reply::honest(r, &served, TAG)).await;
    let (first, second) = (TestLane::new(1), TestLane::new(1));
    first.gone.store(true, Ordering::Relaxed);
    bench.set_lanes(vec![first.clone()]);
    let change = async {
        first.dialled.notified().await;
        bench.set_lanes(vec![second]);
    };
    let (outcome, ()) = tokio::join!(bench.get_exactly(&data), change);
    assert_eq!(outcome.lanes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_goes_away_midway_loses_nothing_and_one_that_comes_helps() {
    let data = content(16 * MIB, 13);
    let served = data.clone();
    let bench = Bench::new(0, move |r| Reply::honest(r, &served, TAG).rate(2 * MIB)).await;
    let (zero, one, two) = (TestLane::new(0), TestLane::new(1), TestLane::new(2));
    bench.set_lanes(vec![zero.clone(), one]);
    let mut progress = bench.progress.subscribe();
    let change = async {
        progress.wait_for(|p| p.done as usize > 3 * MIB).await.unwrap();
        bench.set_lanes(vec![zero, two]);
    };
    let (outcome, ()) = tokio::join!(bench.get_exactly(&data), change);
    let brought: Vec<u64> = outcome.lanes.iter().map(|(_, n)| *n).collect();
    assert!(
        brought.len() == 3 && brought.iter().all(|&n| n > 0),
        "{brought:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_falls_silent_loses_its_work_to_the_others() {
    let data = content(8 * MIB, 14);
    let served = data.clone();
    let silent = move |r: &Request| match r.lane {
        1 => Reply::honest(r, &served, TAG).body(Body::Silence),
        _ => Reply::honest(r, &served, TAG).rate(4 * MIB),
    };
    let bench = Bench::new(2, silent).await;
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(outcome.lanes[1].1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_lanes_on_one_line_only_one_is_used() {
    let data = content(6 * MIB, 15);
    let served = data.clone();
    let bench = Bench::new(0, move |r| Reply::honest(r, &served, TAG).rate(8 * MIB)).await;
    let line = TestLane::new(0).line();
    let twin = TestLane::with(1, Ipv4Addr::LOCALHOST, |info| info.line = line);
    bench.set_lanes(vec![TestLane::new(0), twin]);
    bench.get_exactly(&data).await;
    assert_eq!(bench.origin.lanes(), [0]);
    let state = bench.progress.borrow().lanes[1].state.clone();
    assert_eq!(state, LaneState::Idle("shares this device's line".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_lanes_on_one_line_the_other_takes_over_where_the_one_at_work_fails() {
    for (n, silent) in [(30, true), (31, false)] {
        let data = content(6 * MIB, n);
        let served = data.clone();
        let spoiled = move |r: &Request| {
            let reply = Reply::honest(r, &served, TAG).rate(8 * MIB);
            // The first answer is good: it is not the origin that fails.
            if r.lane == 1 && r.nth_of_lane > 0 {
                if silent {
                    reply.body(Body::Silence)
                } else {
                    reply.cut_after(100_000)
                }
            } else {
                reply
            }
        };
        let bench = Bench::new(0, spoiled).await;
        let line = TestLane::new(1).line();
        let twin = TestLane::with(2, Ipv4Addr::LOCALHOST, |info| info.line = line);
        bench.set_lanes(vec![TestLane::new(1), twin]);
        let outcome = bench.get_exactly(&data).await;
        let brought = |owner: &str| {
            let lanes = outcome.lanes.iter().filter(|(info, _)| info.owner == owner);
            lanes.map(|(_, bytes)| bytes).sum::<u64>()
        };
        assert!(brought("peer 2") > MIB as u64, "{:?}", outcome.lanes);
        let states = bench.progress.borrow().lanes.clone();
        let first = states.iter().find(|l| l.info.owner == "peer 1").unwrap();
        let why = "failed: peer 2 took over on the same line";
        assert_eq!(first.state, LaneState::Idle(why.into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_pool_only_own_uplinks_are_used() {
    let data = content(4 * MIB, 16);
    let served = data.clone();
    let mut bench = Bench::new(3, move |r| Reply::honest(r, &served, TAG).rate(8 * MIB)).await;
    bench.job.pool = false;
    bench.get_exactly(&data).await;
    assert_eq!(bench.origin.lanes(), [0]);
}
