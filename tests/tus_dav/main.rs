//! Uploads to tus servers and by plain PUT: real servers, on loopback, with what goes wrong thrown in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failed unwrap is a failed test"
)]

#[allow(
    dead_code,
    unused_imports,
    reason = "its lanes are used here, its origin is not"
)]
#[path = "../evil_origin/mod.rs"]
mod evil_origin;
#[path = "../targets/mod.rs"]
mod targets;

mod bench;
mod dav;
mod tus;

use bench::Bench;
