//! What the control API says, and what `--json` prints: one set of words for both.
//!
//! These shapes are stable: fields are only added. Rates are bits a second, sizes bytes, times seconds unless a name
//! says otherwise; a field that is not known is `null`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::Ask;

/// What a client asks of the daemon: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who is there and what is running.
    Status,
    /// Download something; lines of [`Reply`] follow until `done` or `failed`, among them questions about the file, which
    /// the client answers by lines of [`Answer`](super::Answer). Hanging up stops it, resumably.
    Get(GetRequest),
}

/// A download to be done; where to, only the client knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    /// From where.
    pub url: String,
    /// Headers to send, name and value.
    pub headers: Vec<(String, String)>,
    /// The content's SHA-256 in hexadecimal, if it is known.
    pub sha256: Option<String>,
    /// Whether other peers' uplinks may be used.
    pub pool: bool,
}

/// What the daemon answers: lines of JSON. `get --json` prints the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `status`.
    Status(Status),
    /// To `get`, several times a second.
    Progress(Progress),
    /// To `get`: it is done.
    Done(Done),
    /// To anything: it is not.
    Failed(Failed),
    /// To `get`: a question about the file. Never printed.
    Files(Ask),
}

/// A running download.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The file's name, once it is known.
    pub name: Option<String>,
    /// Its length, once it is known and if the origin says it.
    pub total: Option<u64>,
    /// Bytes that are there, those of earlier runs included.
    pub done: u64,
    /// Of all lanes together, now.
    pub rate: u64,
    /// One for each lane, those that are gone but brought something included.
    pub lanes: Vec<LaneProgress>,
}

/// One lane's part in a download.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneProgress {
    /// Whose uplink: `this device` or a peer's name.
    pub owner: String,
    /// Which of its uplinks.
    pub uplink: String,
    /// Whether it is a peer's.
    pub lent: bool,
    /// Now.
    pub rate: u64,
    /// Bytes of the file it brought in this run.
    pub bytes: u64,
    /// `active`, `idle`, `parked` or `ineligible`, with the reason behind a colon where there is one.
    pub state: String,
}

/// A download that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The file.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// How many of them an earlier run had brought.
    pub resumed: u64,
    /// This run, in seconds.
    pub elapsed: f64,
    /// Average of this run.
    pub rate: u64,
    /// Bytes that came twice.
    pub duplicated: u64,
    /// What each lane brought.
    pub lanes: Vec<LaneProgress>,
    /// The best single lane's own average while it worked; `null` where that is not known.
    pub best_single: Option<u64>,
    /// `rate` as a multiple of `best_single`.
    pub speedup: Option<f64>,
    /// What else the user should know, such as why it was not pooled.
    pub note: Option<String>,
}

/// Something that did not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The exit code the command line gives for it.
    pub code: u8,
    /// For people.
    pub message: String,
}

/// The device, its household and what it is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// This device.
    pub device: Device,
    /// Those with a link.
    pub peers: Vec<Peer>,
    /// The ways a download would take now.
    pub lanes: Vec<Lane>,
    /// Downloads that are running.
    pub transfers: Vec<Progress>,
    /// What was lent since the start.
    pub lent: Lent,
}

/// This device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its public key, in hexadecimal.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// The UDP port peers reach it at.
    pub port: u16,
}

/// A peer with a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its public key, in hexadecimal.
    pub id: String,
    /// What it calls itself.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
    /// What it lends, by name.
    pub uplinks: Vec<String>,
}

/// A way a download would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// Whose uplink: `this device` or a peer's name.
    pub owner: String,
    /// Which of its uplinks.
    pub uplink: String,
    /// Whether it is a peer's.
    pub lent: bool,
    /// `wired`, `wireless`, `cellular` or `virtual`.
    pub kind: crate::types::UplinkKind,
    /// Whether its bytes cost money.
    pub metered: bool,
    /// As last measured; `null` where it was not used yet.
    pub rate: Option<u64>,
}

/// What was lent since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// Tunnels that are open.
    pub tunnels: u64,
    /// Bytes from origins to borrowers.
    pub down: u64,
    /// Bytes from borrowers to origins.
    pub up: u64,
}

/// A path may hold any bytes, JSON text only: better a name that is not quite right than no line at all.
fn shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
