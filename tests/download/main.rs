//! Downloads against an origin that lies. Each test bears the number of its row in the table of HTTP hazards.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "test code: a failed unwrap is a failed test"
)]

#[path = "../evil_origin/mod.rs"]
mod evil_origin;
#[path = "../share/house.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of it is used here")]
mod house;

mod faults;
mod generations;
mod happy;
mod lanes;
mod poison;
mod ranges;
mod speed;

const MIB: usize = 1 << 20;
