//! Figures, not checks: `cargo test --test download -- --ignored --nocapture speed`.

use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::MIB;
use crate::evil_origin::{Bench, Reply, Tls, content};

async fn measure(tls: Tls, lanes: u8) {
    let data = content(512 * MIB, 1);
    let served = data.clone();
    let bench = Bench::with_tls(tls, lanes, move |r| Reply::honest(r, &served, "\"v1\"")).await;
    // Peak memory is counted anew from here.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let base = memory("VmRSS:");
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        (usage.user_time() + usage.system_time()).num_milliseconds()
    };
    let (began, before) = (Instant::now(), cpu());
    let outcome = bench.get().await.unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let rate = outcome.bytes as f64 / MIB as f64 / seconds;
    let spent = (cpu() - before) as f64 / 1000.0;
    let peak = memory("VmHWM:").saturating_sub(base);
    println!(
        "{lanes} lanes: {rate:.0} MiB/s, {:.2} CPU s/GiB (origin and client in one process), {} requests on {} connections, {} dup, {peak} KiB more at the peak",
        spent * 1024.0 / 512.0,
        bench.origin.seen().len(),
        bench.origin.accepted(),
        outcome.duplicated
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn speed_over_loopback() {
    measure(Tls::Good, 1).await;
    measure(Tls::Good, 4).await;
    measure(Tls::Good, 6).await;
    measure(Tls::Off, 1).await;
}

fn memory(which: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(which)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
