//! What each fuzz target asserts: `check` of the module takes the fuzzer's bytes, and panics where the program does what
//! it must not. `src/fuzzing.rs` of the program includes this file, too, so that its tests replay the corpus on stable.

pub mod address;
pub mod candidates;
pub mod ceremony;
pub mod config;
// Takes sockets: not for the tests that replay the corpus.
#[cfg(not(test))]
pub mod daemon;
pub mod first;
pub mod frames;
pub mod household;
pub mod identity;
pub mod input;
pub mod mdns;
pub mod open;
pub mod s3;
pub mod seeds;
pub mod statements;
pub mod upload;

/// A target, and what it asserts of an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets that need nothing but the bytes.
pub const TARGETS: &[Target] = &[
    ("frames", frames::check),
    ("hello", frames::check_hello),
    ("household", household::check),
    ("open", open::check),
    ("address", address::check),
    ("first_tls", first::check_tls),
    ("first_http", first::check_http),
    ("mdns", mdns::check),
    ("candidates", candidates::check),
    ("spki", identity::check),
    ("config", config::check),
    ("statements", statements::check),
    ("ceremony", ceremony::check),
    ("s3", s3::check),
    ("listing", upload::check_listing),
    ("tus", upload::check_tus),
];
