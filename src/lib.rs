//! tributary pools a household's uplinks: peers on a LAN lend each other their ways out to the internet and stripe
//! one download over all of them. The binary is a thin `main`; tests and benches use this library.
//!
//! Start reading in ARCHITECTURE.md.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod doctor;
pub mod download;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
pub mod identity;
pub mod lane;
pub mod link;
pub mod node;
pub mod relay;
pub mod share;
pub mod store;
pub mod stripe;
pub mod task;
pub mod transfer;
pub mod trust;
pub mod types;
pub mod uplink;
pub mod upload;

/// What fuzz targets assert is written as another crate would write it.
#[cfg(test)]
extern crate self as tributary;
