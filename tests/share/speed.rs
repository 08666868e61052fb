//! How fast pieces come from a member over loopback.

use std::sync::Arc;
use std::time::Instant;

use tributary::share::{ReadAt, Sharing};
use tributary::types::PIECE;

use super::house::{File, Peer, household};
use super::until_has;

/// A file without end of the same piece, so that it takes no memory to have.
#[derive(Debug)]
struct Same;

impl ReadAt for Same {
    fn read_at(&self, buf: &mut [u8], _: u64) -> std::io::Result<()> {
        buf.fill(7);
        Ok(())
    }
}

/// Two devices, each with a runtime of its own: as two processes have it.
#[test]
#[ignore = "a measurement: cargo test --test share speed -- --ignored --nocapture"]
fn a_gibibyte_comes_from_a_member() {
    let pieces = 1024;
    let streams: usize = std::env::var("STREAMS").map_or(4, |n| n.parse().unwrap());
    let [giving, taking] = [2, 2].map(|threads| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .unwrap()
    });
    let (a, b) = (
        giving.block_on(async { Peer::new("a") }),
        taking.block_on(async { Peer::new("b") }),
    );
    giving.block_on(household(&[&a, &b]));
    let mut file = File::new("large", PIECE);
    file.content.total = pieces * PIECE;
    let hash = *blake3::hash(&vec![7; 1 << 20]).as_bytes();
    let has = giving.block_on(async {
        let sharing = a
            .household
            .look(file.topic)
            .begin(file.content.clone(), Arc::new(Same));
        (0..pieces).for_each(|piece| sharing.got(piece, hash, None));
        sharing
    });
    let rate = taking.block_on(async {
        let sharing = b
            .household
            .look(file.topic)
            .begin(file.content.clone(), Arc::new(Same));
        until_has(&sharing, a.id, file.content.total).await;
        let began = Instant::now();
        let mut fetching = tokio::task::JoinSet::new();
        let each = pieces / streams as u64;
        for n in 0..streams as u64 {
            fetching.spawn(fetch(sharing.clone(), a.id, n * each, each));
        }
        while let Some(done) = fetching.join_next().await {
            done.unwrap();
        }
        1024.0 / began.elapsed().as_secs_f64()
    });
    println!("{streams} streams: {rate:.0} MiB/s");
    drop(has);
}

async fn fetch(sharing: Sharing, peer: tributary::types::PeerId, from: u64, count: u64) {
    let mut at = from;
    while at < from + count {
        let run = 4.min(from + count - at);
        let mut pieces = sharing.fetch(peer, at, run).await.unwrap();
        for _ in 0..run {
            assert_eq!(pieces.next().await.unwrap().len(), 1 << 20);
        }
        at += run;
    }
}
