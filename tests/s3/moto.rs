//! A second opinion: moto's server, which is none of ours and not s3s.

use std::process::Command;
use std::sync::Arc;

use crate::bench::{Bench, MIB, job};
use crate::s3_server::moto::{Moto, python};
use crate::s3_server::{BUCKET, Deed};

fn start() -> Moto {
    let moto = Moto::start(Command::new(python()), [127, 0, 0, 1].into(), 0);
    assert_eq!(moto.ask("PUT", &format!("/{BUCKET}")).0, 200);
    moto
}

/// A bench whose service is moto; plain http, so over an own lane only.
fn bench(moto: &Moto, size: usize) -> Bench {
    let mut bench = Bench::new(size, 1, |_| Deed::Serve);
    bench.job = job(
        &format!("http://{}", moto.address),
        &format!("s3://{BUCKET}/dir/"),
    );
    bench
}

fn stored(moto: &Moto, bench: &Bench) {
    let (status, body) = moto.ask("GET", &format!("/{BUCKET}/dir/film.mp4"));
    assert_eq!((status, body.len()), (200, bench.data.len()));
    assert_eq!(Arc::new(body), bench.data);
    let (_, uploads) = moto.ask("GET", &format!("/{BUCKET}?uploads"));
    assert!(
        !String::from_utf8_lossy(&uploads).contains("<UploadId>"),
        "unfinished uploads are left"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs moto from PyPI where it is not yet"]
async fn moto_takes_parts_with_gaps_equal_ones_and_whole_files() {
    let moto = start();
    for (size, part_size) in [
        (30 * MIB, None),
        (17 * MIB, Some(5 << 20)),
        (1_000, None),
        (0, None),
    ] {
        let mut bench = bench(&moto, size);
        bench.job.part_size = part_size;
        bench.put().await.unwrap();
        stored(&moto, &bench);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs moto from PyPI where it is not yet"]
async fn motos_refusals_are_understood() {
    let moto = start();
    let mut bench = bench(&moto, 6 * MIB);
    bench.job.target = "s3://nobox/film".parse().unwrap();
    let told = bench.told().await;
    assert!(told.contains("there is no bucket `nobox`"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs moto from PyPI where it is not yet"]
async fn what_was_left_at_moto_is_removed_on_request() {
    let moto = start();
    let (_, begun) = moto.ask("POST", &format!("/{BUCKET}/dir/film.mp4?uploads"));
    assert!(String::from_utf8_lossy(&begun).contains("<UploadId>"));
    let mut bench = bench(&moto, 6 * MIB);
    bench.job.abort = true;
    assert!(
        bench
            .put()
            .await
            .unwrap()
            .note
            .unwrap()
            .contains("removed 1 unfinished upload")
    );
    let (_, uploads) = moto.ask("GET", &format!("/{BUCKET}?uploads"));
    assert!(!String::from_utf8_lossy(&uploads).contains("<UploadId>"));
}
