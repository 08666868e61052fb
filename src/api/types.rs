//! What the control API says, and what `--json` prints: one set of words for both.
//!
//! These shapes are stable: fields are only added. Rates are bits a second, sizes bytes, times seconds unless a name
//! says otherwise; a field that is not known is `null`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::{
    ApproveRequest, Ask, Change, Changed, Compare, FilesDone, FromMember, Household, Invited, PutRequest,
    Savings, ShareRequest, SharedFile, SharedFiles,
};
use crate::trust::Tier;

/// What a client asks of the daemon: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who is there and what is running.
    Status,
    /// Download something; lines of [`Reply`] follow until `done` or `failed`, among them questions about the file, which
    /// the client answers by lines of [`Answer`](super::Answer). Hanging up stops it, resumably.
    Get(GetRequest),
    /// Upload something; the rest is as with `get`.
    Put(PutRequest),
    /// Who is there, and how far each is trusted.
    Peers,
    /// Change who is trusted.
    Change(Change),
    /// Compare a code with another device, and vouch for it.
    Approve(ApproveRequest),
    /// Offer a file to the household; the rest is as with `put`.
    Share(ShareRequest),
    /// Offer it no more: what has this name or SHA-256.
    Unshare(String),
    /// What is offered.
    Shared,
}

/// A download to be done; where to, only the client knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    /// From where: a URL, or [`SCHEME`](super::SCHEME) and the name or the SHA-256 of what the household offers.
    pub url: String,
    /// Headers to send, name and value.
    pub headers: Vec<(String, String)>,
    /// The content's SHA-256 in hexadecimal, if it is known.
    pub sha256: Option<String>,
    /// Whether other peers' uplinks may be used.
    pub pool: bool,
}

/// What the daemon answers: lines of JSON. `get --json` and `put --json` print the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `status`.
    Status(Status),
    /// To `get`, `put` and `share`, several times a second.
    Progress(Progress),
    /// To `get`, `put` and `share`: it is done.
    Done(Done),
    /// To anything: it is not.
    Failed(Failed),
    /// To `get`, `put` and `share`: a question about the file. Never printed.
    Files(Ask),
    /// To `peers`.
    Peers(Household),
    /// To `change`, where a token was asked for.
    Invited(Invited),
    /// To `change` and to `approve`: it is done.
    Changed(Changed),
    /// To `approve`: how far it is.
    Compare(Compare),
    /// To `shared`; to `unshare`, what was offered until now.
    Shared(SharedFiles),
}

/// A running download or upload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The file's name, once it is known.
    pub name: Option<String>,
    /// Its length, once it is known and if the origin says it.
    pub total: Option<u64>,
    /// Bytes that are there (of an upload: at the server), those of earlier runs included.
    pub done: u64,
    /// Of all lanes together, now.
    pub rate: u64,
    /// One for each lane, those that are gone but brought something included.
    pub lanes: Vec<LaneProgress>,
    /// Whether it is an upload.
    #[serde(default)]
    pub upload: bool,
}

/// One lane's part in a download or an upload.
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
    /// Bytes of the file it carried in this run.
    pub bytes: u64,
    /// `active`, `idle`, `parked` or `ineligible`, with the reason behind a colon where there is one.
    pub state: String,
    /// Why it is not at work, in words; `null` where it is.
    #[serde(default)]
    pub why: Option<String>,
    /// Seconds until it is tried again, where it is parked.
    #[serde(default)]
    pub parked_for: Option<f64>,
    /// Failures in a row that parked it, where such did.
    #[serde(default)]
    pub failures: Option<u32>,
    /// Whether it is a member's disk in the house, and no uplink.
    #[serde(default)]
    pub household: bool,
}

/// A download or an upload that is done, or a file that is offered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The file; of an upload, what was sent: `-` where that was standard input.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// How many of them an earlier run had carried.
    pub resumed: u64,
    /// This run, in seconds.
    pub elapsed: f64,
    /// Average of this run.
    pub rate: u64,
    /// Bytes that were carried twice.
    pub duplicated: u64,
    /// What each lane carried.
    pub lanes: Vec<LaneProgress>,
    /// The best single lane's own average while it worked; `null` where that is not known.
    pub best_single: Option<u64>,
    /// `rate` as a multiple of `best_single`.
    pub speedup: Option<f64>,
    /// What else the user should know, such as why it was not pooled.
    pub note: Option<String>,
    /// Where an upload is now; `null`: it is a download.
    #[serde(default)]
    pub target: Option<String>,
    /// What became of a directory's files; `null`: it was one file.
    #[serde(default)]
    pub files: Option<FilesDone>,
    /// What members had of a download, and brought.
    #[serde(default)]
    pub members: Vec<FromMember>,
    /// Bytes that crossed no connection to the internet because of that.
    #[serde(default)]
    pub saved: u64,
    /// The member on whose word alone some of it was taken; `null`: a checksum proves it, or all came from the origin.
    #[serde(default)]
    pub attested: Option<String>,
    /// As what it is offered to the household, of `share`; `null`: it is a download or an upload.
    #[serde(default)]
    pub shared: Option<SharedFile>,
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
    /// Downloads and uploads that are running.
    pub transfers: Vec<Progress>,
    /// What was lent since the start.
    pub lent: Lent,
    /// What a download over all of it would bring.
    #[serde(default)]
    pub forecast: Forecast,
    /// What the household brought.
    #[serde(default)]
    pub savings: Savings,
    /// What the owner should know and do something about, in whole sentences.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What a download over everything there is would bring, from measured rates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// This device and its peers.
    pub devices: usize,
    /// Lines a download would use that are really different.
    pub lines: usize,
    /// Of these, lines nobody has measured yet.
    pub unmeasured: usize,
    /// The sum of the measured lines; `null` where none is.
    pub expected: Option<u64>,
    /// What this device's own lines bring, or the best of them where there are no others; `null` where it has none, or
    /// they are not measured.
    pub alone: Option<u64>,
    /// `expected` as a multiple of `alone`; `null` where a line is not measured, or there is but one.
    pub times: Option<f64>,
    /// The same for people, in one line of less than 80 characters.
    pub text: String,
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
    /// How far it is trusted: `neighbour` (joined by itself) or `member` (vouched for).
    #[serde(default = "neighbour")]
    pub tier: Tier,
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
    /// What it lends, by name.
    pub uplinks: Vec<String>,
}

/// A way a download could take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Which line it ends in, in hexadecimal: lanes of one line add nothing to each other.
    #[serde(default)]
    pub line: String,
    /// Whether a download that begins now would use it.
    #[serde(default)]
    pub used: bool,
    /// Why it is not used, or does not serve the downloads that are running, in words; `null` where it does.
    #[serde(default)]
    pub why: Option<String>,
    /// Seconds until it is tried again, where it is parked.
    #[serde(default)]
    pub parked_for: Option<f64>,
    /// Failures in a row that parked it, where such did.
    #[serde(default)]
    pub failures: Option<u32>,
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

const fn neighbour() -> Tier {
    Tier::Neighbour
}

/// A path may hold any bytes, JSON text only: better a name that is not quite right than no line at all.
fn shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
