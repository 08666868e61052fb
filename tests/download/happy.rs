//! What should just work.

use crate::evil_origin::{Bench, Reply, content, sha256};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_comes_over_four_lanes_at_once() {
    let data = content(16 * MIB + 123, 1);
    let served = data.clone();
    let mut bench = Bench::new(4, move |r| Reply::honest(r, &served, "\"v1\"").rate(4 * MIB)).await;
    bench.job.sha256 = Some(sha256(&data));
    let outcome = bench.get_exactly(&data).await;
    assert!(outcome.pooled);
    assert_eq!(bench.origin.lanes(), [0, 1, 2, 3]);
    assert!(outcome.best_single.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_takes_one_request() {
    let data = content(1000, 2);
    let served = data.clone();
    let bench = Bench::new(4, move |r| Reply::honest(r, &served, "\"v1\"")).await;
    let outcome = bench.get_exactly(&data).await;
    assert_eq!(bench.origin.seen().len(), 1);
    assert_eq!(outcome.path.file_name().unwrap(), "file.bin");
}
