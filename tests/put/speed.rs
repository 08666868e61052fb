//! How much of the lines' sum an upload gets.

use std::time::{Duration, Instant};

use crate::lab::{self, Lab, figure};
use crate::{MIB, SUM, assert_stored, daemons, file, household, put_s3, s3};

/// An upload of this test takes half a minute.
const LIMIT: Duration = Duration::from_secs(120);

/// The share of the lines' raw sum.
fn share(bytes: u64, took: Duration) -> f64 {
    bytes as f64 * 8.0 / took.as_secs_f64() / (SUM * 1e6)
}

#[test]
#[ignore = "half a minute on lines that must be undisturbed: run by CI"]
fn ninety_six_mib_to_s3_take_nine_tenths_of_four_lines() {
    let once = || {
        let lab = household(Lab::new()?);
        let house = daemons(&lab);
        let (borrower, server) = (lab.at("borrower"), s3(&lab));
        let source = file(borrower, "video", 96 * MIB);
        let began = Instant::now();
        let finished = borrower
            .start("put", put_s3(borrower, "video", &[]))
            .wait(LIMIT)
            .ok();
        let share = share(96 * MIB, began.elapsed());
        assert_stored(&server, "video", &source);
        let done = finished.report("done").unwrap();
        figure(format_args!(
            "96 MiB to S3: {share:.3} of the sum, {} parts; {}",
            server.parts_sent(),
            done["lanes"]
        ));
        drop(house);
        Some(share)
    };
    let promise = "at least 0.9 of the sum to S3";
    lab::measured(promise, once, |share| share.is_none_or(|share| share >= 0.9));
}
