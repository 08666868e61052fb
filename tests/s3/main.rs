//! Uploads to S3: to a real service, and to the same one on its bad days.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test code: a failed unwrap is a failed test"
)]

#[path = "../evil_origin/mod.rs"]
#[allow(dead_code, unused_imports, reason = "only its lanes are used here")]
mod evil_origin;
#[path = "../s3_server/mod.rs"]
mod s3_server;

mod bench;
mod completion;
mod moto;
mod refusals;
mod resume;
mod whole;
