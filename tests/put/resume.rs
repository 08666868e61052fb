//! An upload whose program is killed goes on where it was, by the server's own list.

use std::time::Duration;

use crate::lab::{Lab, SOON, figure, wait_for};
use crate::s3_server::Kind;
use crate::{MIB, assert_stored, file, household, put_s3, s3, sent};

const SIZE: u64 = 40 * MIB;
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn after_kill_9_the_same_command_sends_only_what_was_not_finished() {
    let Some(lab) = Lab::beside() else { return };
    let lab = household(lab);
    let (borrower, server) = (lab.at("borrower"), s3(&lab));
    let source = file(borrower, "video", SIZE);
    let mut put = borrower.start("put", put_s3(borrower, "video", &["--standalone"]));
    wait_for("a good part of it", Duration::from_secs(60), || {
        sent(&mut put) >= SIZE * 6 / 10
    });
    put.kill();
    wait_for("the connections' end", SOON, || {
        server.calls().iter().all(|call| call.kind != Kind::Complete)
    });
    let kept = server.parts();
    let kept_bytes: u64 = kept.iter().map(|(_, length)| length).sum();
    assert!(!kept.is_empty(), "nothing was stored");
    let again = borrower
        .start("put", put_s3(borrower, "video", &["--standalone"]))
        .wait(LIMIT)
        .ok();
    let done = again.report("done").unwrap();
    figure(format_args!(
        "kill -9: {} parts, {kept_bytes} bytes were stored; resumed {}",
        kept.len(),
        done["resumed"]
    ));
    assert!(done["resumed"].as_u64().unwrap() >= kept_bytes, "{done}");
    assert_stored(&server, "video", &source);
    for (number, _) in kept {
        let times = server
            .calls()
            .iter()
            .filter(|call| call.kind == Kind::Part(number.cast_unsigned()))
            .count();
        assert_eq!(times, 1, "part {number} was sent again");
    }
}
