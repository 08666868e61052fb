//! The driver over lanes of paper and a target that needs no network, in virtual time.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::lane::{DialError, Target as Place, Tunnel};
use crate::task::Tasks;
use crate::types::{ByteRange, LineId, UplinkKind};
use crate::upload::exchange::Caller;
use crate::upload::source::Source;
use crate::upload::{Finished, LocalSources};

const PART: u64 = 5 << 20;

#[derive(Debug)]
struct Paper(LaneInfo);

impl Lane for Paper {
    fn info(&self) -> &LaneInfo {
        &self.0
    }

    fn dial<'a>(&'a self, _: &'a Place) -> BoxFuture<'a, Result<Tunnel, DialError>> {
        async { Err(DialError::LaneGone) }.boxed()
    }
}

fn lane(id: u64) -> Arc<dyn Lane> {
    Arc::new(Paper(LaneInfo {
        id: LaneId(id),
        peer: None,
        tier: None,
        owner: format!("owner-{id}"),
        uplink: "up0".into(),
        kind: UplinkKind::Wired,
        metered: false,
        line: LineId(id.to_be_bytes()),
        hint: None,
    }))
}

type Script = Box<dyn Fn(usize, Part) -> (Duration, Result<(), Trouble>) + Send + Sync>;

/// Does to each attempt what the script says; hears of all that were begun and of those that got through.
struct Scripted {
    script: Script,
    begun: AtomicUsize,
    stored: Mutex<BTreeSet<(usize, u64, u64)>>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Target for Scripted {
    fn send<'a>(&'a self, part: Part, _: &'a Line) -> BoxFuture<'a, Result<(), Trouble>> {
        async move {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            let (after, end) = (self.script)(number, part);
            tokio::time::sleep(after).await;
            if end.is_ok() {
                let range = (part.item, part.range.start, part.range.end);
                self.stored.lock().unwrap().insert(range);
            }
            end
        }
        .boxed()
    }

    fn finish<'a>(&'a self, _: &'a Caller) -> BoxFuture<'a, Result<Finished, UploadError>> {
        async { Ok(Finished::default()) }.boxed()
    }

    fn abort<'a>(&'a self, _: &'a Caller) -> BoxFuture<'a, Result<(), UploadError>> {
        async { Ok(()) }.boxed()
    }
}

struct Bench {
    driver: Driver,
    target: Arc<Scripted>,
    lanes: watch::Sender<LaneSet>,
    progress: watch::Receiver<Progress>,
    stop: Stop,
    _file: tempfile::NamedTempFile,
}

async fn bench(
    ids: &[u64],
    work: Work,
    script: impl Fn(usize, Part) -> (Duration, Result<(), Trouble>) + Send + Sync + 'static,
) -> Bench {
    let file = tempfile::NamedTempFile::new().unwrap();
    let tasks = Tasks::new();
    let sources = Arc::new(LocalSources::new(file.path().to_owned(), &tasks));
    let shared = Arc::new(Shared {
        source: Arc::new(Source::new(sources, &tasks).await.unwrap()),
        tls: Arc::new(crate::transfer::config_with(rustls::RootCertStore::empty()).unwrap()),
        tasks,
    });
    let target = Arc::new(Scripted {
        script: Box::new(script),
        begun: AtomicUsize::new(0),
        stored: Mutex::default(),
    });
    let set: LaneSet = Arc::new(ids.iter().copied().map(lane).collect());
    let (lanes, lanes_seen) = watch::channel(set);
    let (told, progress) = watch::channel(Progress::default());
    let start = Start {
        ways: Arc::new(Ways::new(shared.clone())),
        shared,
        target: target.clone(),
        terms: Terms {
            pool: true,
            plain: false,
        },
        lanes: lanes_seen,
        work,
        resumed: 0,
        progress: told,
    };
    Bench {
        driver: Driver::new(start, now()),
        target,
        lanes,
        progress,
        stop: Stop::default(),
        _file: file,
    }
}

fn fixed(count: usize) -> Work {
    Work::Fixed {
        sizes: vec![PART; count],
        done: BTreeSet::new(),
    }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(start_paused = true)]
async fn every_part_is_stored_and_counted_for_the_lane_that_sent_it() {
    let mut bench = bench(&[1, 2], fixed(7), |_, _| (seconds(1), Ok(()))).await;
    bench.driver.run(&bench.stop.clone()).await.unwrap();
    assert_eq!(bench.target.stored.lock().unwrap().len(), 7);
    let tally = bench.driver.tally(now());
    let bytes: u64 = tally.lanes.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(bytes, 7 * PART);
    assert!(tally.best_single.is_some());
    let progress = bench.progress.borrow();
    assert_eq!((progress.done, progress.total), (7 * PART, Some(7 * PART)));
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_stop_lets_what_is_nearly_through_end_and_begins_nothing() {
    let mut bench = bench(&[1], fixed(9), |_, _| (seconds(1), Ok(()))).await;
    bench.stop.stop.cancel();
    let began = now();
    let error = bench.driver.run(&bench.stop.clone()).await.unwrap_err();
    assert!(
        matches!(error, UploadError::Stopped { resumable: true }),
        "{error}"
    );
    assert!(now() - began <= GRACE);
    let begun = bench.target.begun.load(Ordering::Relaxed);
    assert_eq!(
        bench.target.stored.lock().unwrap().len(),
        begun,
        "what was begun got through"
    );
    assert!(begun < 9);
}

#[tokio::test(start_paused = true)]
async fn what_takes_long_is_not_waited_for_by_a_stop_and_an_abort_waits_for_nothing() {
    for (abort, limit) in [(false, GRACE), (true, Duration::ZERO)] {
        let mut bench = bench(&[1], fixed(3), |_, _| (seconds(30), Ok(()))).await;
        let stop = bench.stop.clone();
        Tasks::new().spawn("stop", async move {
            tokio::time::sleep(seconds(1)).await;
            stop.stop.cancel();
            if abort {
                stop.abort.cancel();
            }
        });
        let began = now();
        let error = bench.driver.run(&bench.stop.clone()).await.unwrap_err();
        assert!(
            matches!(error, UploadError::Stopped { resumable } if resumable != abort),
            "{error}"
        );
        let took = now() - began;
        assert!(
            took >= seconds(1) && took <= seconds(1) + limit + TICK,
            "{took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_breaks_is_sent_again_and_a_fatal_trouble_ends_it_all() {
    let broken = |n: usize, _| {
        let end = if n % 3 == 1 {
            Err(Trouble::Lane("reset".to_owned()))
        } else {
            Ok(())
        };
        (Duration::from_millis(300), end)
    };
    let mut bench_of_breaks = bench(&[1, 2], fixed(6), broken).await;
    bench_of_breaks
        .driver
        .run(&bench_of_breaks.stop.clone())
        .await
        .unwrap();
    assert_eq!(bench_of_breaks.target.stored.lock().unwrap().len(), 6);
    let fatal = |_, _| {
        let error = UploadError::Usage("no".to_owned());
        (seconds(1), Err(Trouble::Fatal(error)))
    };
    let mut bench = bench(&[1, 2], fixed(6), fatal).await;
    let error = bench.driver.run(&bench.stop.clone()).await.unwrap_err();
    assert!(matches!(error, UploadError::Usage(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_out_is_over_but_counts_for_no_lane() {
    let leave = |_, part: Part| {
        let end = if part.item == 2 {
            Err(Trouble::LeaveOut("it is locked".to_owned()))
        } else {
            Ok(())
        };
        (seconds(1), end)
    };
    let mut bench = bench(&[1, 2], fixed(4), leave).await;
    bench.driver.run(&bench.stop.clone()).await.unwrap();
    let bytes: u64 = bench.driver.tally(now()).lanes.iter().map(|(_, b)| b).sum();
    assert_eq!(bytes, 3 * PART);
    assert!(!bench.target.stored.lock().unwrap().contains(&(2, 0, PART)));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_only_has_faults_is_given_up() {
    let fault = |_, _| {
        let why = "s3.example answered 500".to_owned();
        (Duration::from_millis(50), Err(Trouble::Origin(why)))
    };
    let mut bench = bench(&[1, 2], fixed(4), fault).await;
    let error = bench.driver.run(&bench.stop.clone()).await.unwrap_err();
    assert!(
        matches!(&error, UploadError::Stalled { detail, .. } if detail.contains("500")),
        "{error}"
    );
    assert!(
        bench.target.begun.load(Ordering::Relaxed) < 100,
        "it was not flooded"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_lane_or_with_none_that_may_serve_it_ends_with_the_reason() {
    let mut none = bench(&[], fixed(1), |_, _| (seconds(1), Ok(()))).await;
    let error = none.driver.run(&none.stop.clone()).await.unwrap_err();
    assert!(matches!(error, UploadError::NoLanes), "{error}");
    let never = |_, _| {
        let why = "that port is not lent".to_owned();
        (seconds(1), Err(Trouble::Ineligible(why)))
    };
    let mut refused = bench(&[1, 2], fixed(3), never).await;
    let error = refused.driver.run(&refused.stop.clone()).await.unwrap_err();
    assert!(
        matches!(&error, UploadError::Stalled { detail, .. } if detail.contains("not lent")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_a_lane_that_goes_away_are_sent_by_another() {
    let slow_first = |n: usize, _| (seconds(if n == 0 { 1_000 } else { 1 }), Ok(()));
    let mut bench = bench(&[1], fixed(3), slow_first).await;
    let lanes = bench.lanes.clone();
    Tasks::new().spawn("lanes", async move {
        tokio::time::sleep(seconds(1)).await;
        lanes.send_replace(Arc::new(vec![lane(2)]));
        // Kept, so that lanes may still change.
        tokio::time::sleep(seconds(10_000)).await;
        drop(lanes);
    });
    bench.driver.run(&bench.stop.clone()).await.unwrap();
    assert_eq!(bench.target.stored.lock().unwrap().len(), 3);
    let tally = bench.driver.tally(now());
    assert!(
        tally
            .lanes
            .iter()
            .all(|(info, bytes)| info.id == LaneId(2) || *bytes < 3 * PART)
    );
}

#[tokio::test(start_paused = true)]
async fn a_carved_file_is_stored_without_a_gap_or_an_overlap() {
    let work = Work::Carved {
        total: 61 << 20,
        grain: 64 << 10,
        least: PART,
        most: 64 << 20,
        done: crate::types::RangeSet::new(),
    };
    let time = |_, part: Part| (Duration::from_millis(part.range.len() >> 10), Ok(()));
    let mut bench = bench(&[1, 2, 3], work, time).await;
    bench.driver.run(&bench.stop.clone()).await.unwrap();
    let stored = bench.target.stored.lock().unwrap();
    let mut at = 0;
    for &(_, start, end) in &*stored {
        assert_eq!(start, at);
        at = end;
    }
    assert_eq!(at, 61 << 20);
    assert_eq!(ByteRange::new(0, at).len(), 61 << 20);
}
