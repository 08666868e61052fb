//! What the control API says of the household: what its members offer each other, and what that saved.

use serde::{Deserialize, Serialize};

/// What the targets of `get` begin with that name a file of the household instead of a URL.
pub const SCHEME: &str = "shared:";

/// A file to be offered to the household. The daemon asks for its descriptor as for an upload's (a single file).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRequest {
    /// What members are to see it as; `null`: what the file is called.
    pub name: Option<String>,
    /// Where it is, as a whole path: there the daemon looks for it again after a restart.
    pub path: String,
}

/// What there is to be had from the household.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFiles {
    /// By name; what several offer is there once for each of them.
    pub files: Vec<SharedFile>,
}

/// A file that somebody of the household offers by hand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SharedFile {
    /// What its owner calls it.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Whose it is: `this device` or a member's name.
    pub owner: String,
    /// Its owner's public key, in hexadecimal.
    pub id: String,
    /// Whether it is this device's own.
    pub own: bool,
}

/// What the household brought, since this device's state began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Savings {
    /// Bytes of downloads that came from members instead of the internet.
    pub from_members: u64,
    /// Bytes that the same downloads fetched over uplinks.
    pub over_uplinks: u64,
    /// Bytes that members got from this device.
    pub served: u64,
}

/// What one member brought of a download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromMember {
    /// What it calls itself.
    pub owner: String,
    /// Its public key, in hexadecimal.
    pub id: String,
    /// How much.
    pub bytes: u64,
}
