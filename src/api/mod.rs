//! The control API: how the command line speaks with the daemon, over a Unix socket in the state directory.
//!
//! A client sends one line of JSON and reads lines of JSON. Whoever may open the socket (its owner) may ask for the
//! status; a download is done only for the daemon's own user, because the daemon writes the file.
//! Invariants: a line is bounded, the number of clients is bounded, a client that hangs up stops what it asked for.

mod client;
pub mod convert;
mod server;
mod types;

pub use client::{Client, ClientError};
pub use server::{Handler, Transfer, serve};
pub use types::{
    Device, Done, Failed, Forecast, GetRequest, Lane, LaneProgress, Lent, Peer, Progress, Reply, Request,
    Status, To,
};

/// The socket's name in the state directory.
pub const SOCKET: &str = "control.sock";
/// No request or reply is longer; headers and paths are most of it.
const MAX_LINE: u64 = 256 * 1024;
