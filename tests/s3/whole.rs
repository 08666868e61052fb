//! What works, and how it looks from the service's side.

use crate::bench::{Bench, MIB};
use crate::s3_server::{Deed, Kind};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_together_from_parts_of_several_lanes_by_one_completion() {
    let bench = Bench::new(40 * MIB, 3, |_| Deed::Serve);
    let outcome = bench.put_exactly().await;
    assert_eq!(bench.server.count(Kind::Create), 1);
    assert_eq!(bench.server.count(Kind::Complete), 1);
    assert_eq!(bench.server.count(Kind::Put), 0);
    assert!(outcome.place.contains("s3://box/film"), "{}", outcome.place);
    assert_eq!((outcome.resumed, outcome.note), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_at_most_one_part_go_in_one_request() {
    for size in [0, 1, 1_000, 5 * MIB] {
        // Over one lane: a second one might race the first with the same object.
        let bench = Bench::new(size, 1, |_| Deed::Serve);
        bench.put_exactly().await;
        assert_eq!(bench.server.count(Kind::Put), 1, "{size}");
        assert_eq!(bench.server.count(Kind::Create), 0, "{size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_more_than_one_part_goes_in_parts() {
    let bench = Bench::new(5 * MIB + 1, 2, |_| Deed::Serve);
    bench.put_exactly().await;
    assert_eq!(bench.server.count(Kind::Complete), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_given_size_are_equal_and_counted_from_one() {
    let mut bench = Bench::new(27 * MIB, 2, |_| Deed::Serve);
    bench.job.part_size = Some(6 << 20);
    bench.put_exactly().await;
    let mut parts: Vec<(u32, u64)> = bench
        .server
        .calls()
        .iter()
        .filter_map(|call| {
            if let Kind::Part(number) = call.kind {
                Some((number, call.length))
            } else {
                None
            }
        })
        .collect();
    parts.sort_unstable();
    parts.dedup();
    let six = 6 << 20;
    assert_eq!(parts, [(1, six), (2, six), (3, six), (4, six), (5, 3 << 20)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_ends_with_a_slash_gets_the_files_name_and_odd_ones_stay_as_they_are() {
    for (target, key) in [
        ("s3://box/dir/", "dir/film.mp4"),
        ("s3://box/a%20b+%C3%A9&=~'(1).bin", "a b+é&=~'(1).bin"),
    ] {
        let mut bench = Bench::new(6 * MIB, 1, |_| Deed::Serve);
        bench.job.target = target.parse().unwrap();
        bench.put().await.unwrap();
        assert_eq!(bench.server.object(key).as_ref(), Some(&*bench.data), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_too_large_or_a_part_size_that_cannot_be_is_told_before_anything_is_sent() {
    let mut bench = Bench::new(6 * MIB, 1, |_| Deed::Serve);
    bench.job.part_size = Some(1 << 20);
    let told = bench.told().await;
    assert!(told.contains("--part-size from 5MiB on"), "{told}");
    assert!(bench.server.calls().is_empty());
}
