//! `[share]`: what this device does for the household's downloads.

use std::time::Duration;

use crate::types::ByteSize;

/// A copy that nobody asked for in so long is not worth its place.
const CACHE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is shared, and what is kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether members get what this device downloads, and it gets what they have. Default: yes.
    pub enabled: bool,
    /// How much disk the copies may take that are kept beside the users' own files. Default: none, no copies.
    pub cache: ByteSize,
    /// A copy that was not served for so long is removed. Default: 30 days.
    pub cache_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            cache: ByteSize(0),
            cache_age: CACHE_AGE,
        }
    }
}
