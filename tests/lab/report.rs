//! What `tributary get --json` and `tributary status --json` say, for tests.

use serde_json::Value;

use super::process::{Finished, Process};

impl Process {
    /// The latest line of `get --json` of that kind (`progress`, `done`, `failed`): what is in it.
    pub fn report(&self, kind: &str) -> Option<Value> {
        latest(&self.stdout(), kind)
    }
}

impl Finished {
    /// The latest line of `get --json` of that kind: what is in it.
    pub fn report(&self, kind: &str) -> Option<Value> {
        latest(&self.stdout, kind)
    }
}

/// How many lanes a status has.
pub fn lanes(status: &Value) -> usize {
    status["lanes"].as_array().map_or(0, Vec::len)
}

/// How many peers a status has.
pub fn peers(status: &Value) -> usize {
    status["peers"].as_array().map_or(0, Vec::len)
}

fn latest(stdout: &str, kind: &str) -> Option<Value> {
    // The last line may be half written: it is none yet.
    stdout.lines().rev().find_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        value.get(kind).cloned()
    })
}
