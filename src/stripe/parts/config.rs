//! Tuning of the scheduler for indivisible parts: each constant with its unit and the reason for its value.

use std::time::Duration;

use super::super::Config;

/// Most connections to one origin over all lanes, parts on the uplink and parts awaiting answers together.
const CONNECTIONS: usize = 16;

/// How [`super::Parts`] sizes, sends twice and gives up. The defaults are the ones measured in the simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct PartsConfig {
    /// A part is its lane's share of what is left divided by this (default 3), until the last but one: what is handed
    /// out can't be taken back, so a rate that changes must find enough left to make up for it.
    pub guide: f64,
    /// No part takes its lane longer than this, where the least part is not longer already (default 30 s): what a lane
    /// that dies loses.
    pub longest: Duration,
    /// Parts in flight over all lanes (default 16), each of which has a connection to the origin.
    pub connections: usize,
    /// A part is sent again where that brings the end nearer by this factor (default 1.2) ...
    pub race_gain: f64,
    /// ... and by at least this much (default 500 ms).
    pub race_after: Duration,
    /// Copies that run beside the first may send at most this part of all bytes in vain (default 0.1); beyond it the
    /// slower copy is ended when the faster begins.
    pub race_budget: f64,
    /// A lane is stalled after this long without a byte sent of a part that had begun (default 2 s).
    pub stall: Duration,
    /// A part is stalled that has not begun after this long (default 3 s), or 8 times the lane's latency.
    pub first_byte: Duration,
    /// How long the answer to a part may take that is all sent (default 60 s): servers assemble and hash large ones.
    pub answer: Duration,
    /// First time a lane is parked (default 2 s); doubles with each further time.
    pub park: Duration,
    /// Longest time a lane is parked (default 60 s).
    pub max_park: Duration,
}

impl Default for PartsConfig {
    fn default() -> Self {
        let lanes = Config::default();
        Self {
            guide: 3.0,
            longest: Duration::from_secs(30),
            connections: CONNECTIONS,
            race_gain: 1.2,
            race_after: Duration::from_millis(500),
            race_budget: 0.1,
            stall: lanes.stall,
            first_byte: lanes.first_byte,
            answer: Duration::from_secs(60),
            park: lanes.park,
            max_park: lanes.max_park,
        }
    }
}

impl PartsConfig {
    /// What a [`super::super::lane::Lane`] wants to know.
    pub(super) fn for_lanes(&self) -> Config {
        Config {
            stall: self.stall,
            first_byte: self.first_byte,
            park: self.park,
            max_park: self.max_park,
            ..Config::default()
        }
    }
}
