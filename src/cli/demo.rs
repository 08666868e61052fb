//! `tributary demo`: one download with one peer's line, then the same with everybody's.

use std::io::IsTerminal;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::api::{Done, Failed, Transfer};
use crate::demo::{Household, LINES, SIZE};
use crate::types::{ByteSize, Rate};
use crate::upload::Stop;

use super::args::Demo;
use super::fail;
use super::show::{Show, follow, summary};

pub(super) async fn run(options: &Demo, stop: CancellationToken) -> ExitCode {
    let sum: u64 = LINES.iter().map(|l| l.1).sum();
    println!(
        "A household on this machine: four peers that find each other by mDNS, each with a line of its own.\n"
    );
    for (name, rate) in LINES {
        println!("  {name:<12} {rate:>3} Mbit/s");
    }
    println!("  {:<12} {sum:>3} Mbit/s\n", "together");
    let household = match Household::start().await {
        Ok(household) => household,
        Err(error) => return fail(&error),
    };
    let result = both(&household, options, &stop).await;
    household.stop().await;
    match result {
        Ok((alone, pooled)) => {
            println!("{}", verdict(&alone, &pooled, sum));
            ExitCode::SUCCESS
        }
        Err(failed) => {
            eprintln!("tributary: {}", failed.message);
            ExitCode::from(failed.code)
        }
    }
}

async fn both(
    household: &Household,
    options: &Demo,
    stop: &CancellationToken,
) -> Result<(Done, Done), Failed> {
    let bars = !options.plain && std::io::stderr().is_terminal();
    println!("{} downloads {} over its own line:", LINES[0].0, ByteSize(SIZE));
    let alone = once(household.download(false).await?, bars, stop).await?;
    println!("{}\n\nThe same over everybody's lines:", summary(&alone));
    let pooled = once(household.download(true).await?, bars, stop).await?;
    println!("{}\n", summary(&pooled));
    Ok((alone, pooled))
}

async fn once(transfer: Transfer, bars: bool, stop: &CancellationToken) -> Result<Done, Failed> {
    let mut show = Show::with_bars(bars);
    let stop = Stop {
        stop: stop.clone(),
        ..Stop::default()
    };
    let outcome = follow(transfer, &mut show, &stop).await;
    show.clear();
    outcome
}

fn verdict(alone: &Done, pooled: &Done, sum: u64) -> String {
    let ratio = alone.elapsed / pooled.elapsed;
    let share = pooled.rate as f64 / (sum as f64 * 1e4);
    format!(
        "{ratio:.1} times as fast: {:.1} s instead of {:.1} s. {} is {share:.0} % of the {sum} Mbit/s that the lines sum \
         up to.\nBoth files have the right SHA-256; the lenders saw only encrypted bytes.",
        pooled.elapsed,
        alone.elapsed,
        Rate::bits(pooled.rate),
    )
}
