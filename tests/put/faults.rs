//! A lender fails while a file is uploaded: the object is right, made once, and little is sent again.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{Lab, Process, figure, lanes, wait_for};
use crate::{CONTENT, MIB, UP, assert_stored, file, household, put_s3, s3, sent};

const VICTIM: &str = "ann";
const SIZE: u64 = 32 * MIB;
/// An upload of these tests takes ten seconds, and longer over the lines that are left.
const LIMIT: Duration = Duration::from_secs(90);
/// What a lane may have in flight: the part it sends, and those whose answers it awaits. None is longer than the lane needs
/// for a good part of such a file.
const IN_FLIGHT: f64 = 0.45;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// SIGKILL.
    Killed,
    /// SIGSTOP: its kernel still answers.
    Stopped,
    /// Its uplink swallows everything, and nobody is told.
    Dark,
}

#[test]
fn a_lender_that_is_killed_while_it_sends_is_replaced() {
    strike(Fault::Killed, &[0.5]);
}

#[test]
fn a_lender_that_is_stopped_while_it_sends_is_replaced() {
    strike(Fault::Stopped, &[0.5]);
}

#[test]
fn an_uplink_that_goes_dark_while_it_sends_is_replaced() {
    strike(Fault::Dark, &[0.5]);
}

#[test]
#[ignore = "the whole matrix, three minutes: run by CI"]
fn every_fault_at_the_beginning_in_the_middle_and_at_the_end_of_an_upload() {
    for fault in [Fault::Killed, Fault::Stopped, Fault::Dark] {
        strike(fault, &[0.1, 0.5, 0.95]);
    }
}

fn strike(fault: Fault, moments: &[f64]) {
    for moment in moments {
        let Some(lab) = Lab::beside() else { return };
        struck(&household(lab), fault, *moment);
    }
}

fn struck(lab: &Lab, fault: Fault, moment: f64) {
    let start = |name: &str| lab.at(name).spawn_daemon(&[]);
    let _others: Vec<Process> = UP
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| *name != VICTIM)
        .map(start)
        .collect();
    let mut victim = start(VICTIM);
    let (borrower, server) = (lab.at("borrower"), s3(lab));
    borrower.wait_status("four lanes", Duration::from_secs(15), |status| {
        lanes(status) == UP.len()
    });
    let source = file(borrower, "video", SIZE);
    let before = lab.carried().up;
    let mut put = borrower.start("put", put_s3(borrower, "video", &[]));
    wait_for("the fault's moment", Duration::from_secs(60), || {
        sent(&mut put) as f64 >= moment * SIZE as f64
    });
    match fault {
        Fault::Killed => victim.kill(),
        Fault::Stopped => victim.signal(Signal::SIGSTOP),
        Fault::Dark => lab.at(VICTIM).wire(0).cut(),
    }
    put.wait(LIMIT).ok();
    if fault == Fault::Stopped {
        victim.signal(Signal::SIGCONT);
    }
    let carried = (lab.carried().up - before) as f64 * CONTENT / SIZE as f64;
    figure(format_args!(
        "upload fault: {fault:?} at {:.0} %: {} parts sent, {carried:.2} of the file on the wires",
        moment * 100.0,
        server.parts_sent()
    ));
    assert_stored(&server, "video", &source);
    assert!(carried <= 1.0 + IN_FLIGHT, "{carried:.3} of the file was sent");
}
