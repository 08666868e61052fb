//! How much of the lines' sum an upload gets.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::{self, Finished, Lab, Peer, figure};
use crate::targets::{NginxDav, Options, TusServer};
use crate::{MIB, SUM, assert_stored, bytes, daemons, file, household, put_s3, s3, sha256};

/// An upload of this test takes half a minute or, of many files, a minute and a half.
const LIMIT: Duration = Duration::from_secs(240);

/// Uploads once in a household of its own: the share of the lines' raw sum. `upload` gives what was sent and how long it
/// took. `None`: there is no lab here.
fn share(what: &str, upload: impl Fn(&Lab, &Peer) -> (u64, Duration, Finished)) -> Option<f64> {
    let lab = household(Lab::new()?);
    let house = daemons(&lab);
    let (bytes, took, finished) = upload(&lab, lab.at("borrower"));
    let share = bytes as f64 * 8.0 / took.as_secs_f64() / (SUM * 1e6);
    let done = finished.report("done").unwrap();
    let lanes: Vec<_> = done["lanes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["bytes"].to_string())
        .collect();
    figure(format_args!(
        "{what}: {share:.3} of the sum; lanes {}; sent twice {}",
        lanes.join(", "),
        done["duplicated"]
    ));
    drop(house);
    Some(share)
}

fn timed(peer: &Peer, command: std::process::Command) -> (Duration, Finished) {
    let began = Instant::now();
    let finished = peer.start("put", command).wait(LIMIT).ok();
    (began.elapsed(), finished)
}

#[test]
#[ignore = "half a minute on lines that must be undisturbed: run by CI"]
fn ninety_six_mib_to_s3_take_nine_tenths_of_four_lines() {
    let once = || {
        share("96 MiB to S3", |lab, borrower| {
            let server = s3(lab);
            let source = file(borrower, "video", 96 * MIB);
            let (took, finished) = timed(borrower, put_s3(borrower, "video", &[]));
            assert_stored(&server, "video", &source);
            (96 * MIB, took, finished)
        })
    };
    let holds = |share: &Option<f64>| share.is_none_or(|share| share >= 0.9);
    lab::measured("at least 0.9 of the sum to S3", once, holds);
}

#[test]
#[ignore = "half a minute on lines that must be undisturbed: run by CI"]
fn ninety_six_mib_to_tus_take_nine_tenths_of_four_lines() {
    let once = || {
        share("96 MiB to tus", |lab, borrower| {
            let address = lab.host("tus.lab");
            let listener = lab.outside(|| TcpListener::bind((address, 443)));
            let issued = lab.authority().issue(&["tus.lab"]).unwrap();
            let server = TusServer::start(listener, &issued, Options::default());
            let source = file(borrower, "video", 96 * MIB);
            let put = borrower.tributary(&["put", "video", "tus+https://tus.lab/files/", "--json"]);
            let (took, finished) = timed(borrower, put);
            let stored = server.finished();
            let right = sha256(&fs::read(source).unwrap());
            assert!(
                stored.len() == 1 && sha256(&stored[0].content) == right,
                "another content"
            );
            (96 * MIB, took, finished)
        })
    };
    let holds = |share: &Option<f64>| share.is_none_or(|share| share >= 0.9);
    lab::measured("at least 0.9 of the sum to tus", once, holds);
}

#[test]
#[ignore = "a minute and a half on lines that must be undisturbed: run by CI"]
fn two_hundred_files_by_put_take_85_hundredths_of_four_lines() {
    if !lab::installed("nginx") {
        return;
    }
    let once = || {
        share("200 files to nginx", |lab, borrower| {
            let address = lab.host("dav.lab");
            let issued = lab.authority().issue(&["dav.lab"]).unwrap();
            let server = NginxDav::start(lab.command_outside("nginx"), (address, 443).into(), &issued);
            let total = many(&borrower.directory().join("photos"));
            let put = borrower.tributary(&["put", "photos", "https://dav.lab/photos/", "--json"]);
            let (took, finished) = timed(borrower, put);
            let stored = server.files().join("photos");
            for number in 0..FILES {
                let name = name(number);
                let content = |at: &Path| sha256(&fs::read(at.join(&name)).unwrap());
                assert!(
                    content(&stored) == content(&borrower.directory().join("photos")),
                    "{name}"
                );
            }
            (total, took, finished)
        })
    };
    let holds = |share: &Option<f64>| share.is_none_or(|share| share >= 0.85);
    lab::measured("at least 0.85 of the sum for 200 files", once, holds);
}

const FILES: u64 = 200;

fn name(number: u64) -> String {
    format!("album {}/{number}.jpg", number % 7)
}

/// Files of 10 kB to 5 MB, evenly by the logarithm of their length; gives the sum.
fn many(at: &Path) -> u64 {
    let mut total = 0;
    for number in 0..FILES {
        let length = (10_000.0 * 500_f64.powf(number as f64 / (FILES - 1) as f64)) as u64;
        let path = at.join(name(number * 37 % FILES));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes(length, number)).unwrap();
        total += length;
    }
    total
}
