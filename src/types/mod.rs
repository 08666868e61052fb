//! The words every other module shares: ids, byte ranges, quantities. No I/O, no clock, no dependency on other modules.
//!
//! Invariants: a [`ByteRange`] is never reversed; a [`RangeSet`] is sorted, disjoint and has no two ranges that touch.

mod range;
mod rate;

pub use range::{ByteRange, RangeSet};
pub use rate::{ByteSize, Period, Rate, UnitError};

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
        hex(&self.0[..4])
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
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

impl LineId {
    /// The line that an owner calls `name`: the same on every device where it is called so.
    pub fn named(name: &str) -> Self {
        let mut id = [0; 8];
        let mut hasher = blake3::Hasher::new_derive_key("tributary 1 line by name");
        hasher.update(name.as_bytes()).finalize_xof().fill(&mut id);
        Self(id)
    }

    /// A line's id from its 16 hexadecimal digits; `None` where it is anything else.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let exact = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u64::from_str_radix(digits, 16).ok().filter(|_| exact)?;
        Some(Self(number.to_be_bytes()))
    }
}

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
    /// No uplink at all but a member's disk, over the link to it. No peer can offer it: it is never on the wire.
    #[serde(skip)]
    Household,
}

/// A SHA-256 from its 64 hexadecimal digits; `None` where it is anything else.
pub fn sha256_from_hex(digits: &str) -> Option<[u8; 32]> {
    bytes_from_hex(digits)?.try_into().ok()
}

/// Bytes from their hexadecimal digits, two each; `None` where it is anything else.
pub fn bytes_from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.as_bytes().chunks_exact(2).map(pair).collect()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
