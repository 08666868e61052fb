//! The words every other module shares: ids, byte ranges, rates. No I/O, no clock, no dependency on other modules.
//!
//! Invariants: a [`ByteRange`] is never reversed; a [`RangeSet`] is sorted, disjoint and has no two ranges that touch.

mod range;
mod rate;

pub use range::{ByteRange, RangeSet};
pub use rate::{ByteSize, Rate};

use std::fmt;

use serde::{Deserialize, Serialize};

/// The unit of hashing, journal, sharing and blame: 1 MiB of a file.
pub const PIECE: u64 = 1 << 20;

/// One path that a transfer's bytes can take. Unique within one process and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneId(pub u64);

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane-{}", self.0)
    }
}

/// A peer's Ed25519 public key: its only identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub [u8; 32]);

impl PeerId {
    /// The first 8 hex digits, for people and logs; never to be compared.
    pub fn short(&self) -> String {
        self.0[..4].iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Which line to the internet an uplink ends in: two uplinks with the same line id add nothing to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LineId(pub [u8; 8]);

/// What kind of interface an uplink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkKind {
    /// A cable, or what looks like one.
    Wired,
    /// Wi-Fi.
    Wireless,
    /// LTE, 5G or a tethered phone: metered unless its owner says otherwise.
    Cellular,
    /// A virtual interface: a tunnel, a container's.
    Virtual,
}
