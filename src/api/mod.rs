//! The control API: how the command line speaks with the daemon, over a Unix socket (0660).
//!
//! A client sends one line of JSON and reads lines of JSON. Whoever may open the socket may ask for the status, have
//! something downloaded or uploaded, and offer a file to the household, and only root and the daemon's own user may change who is trusted; the files are the
//! client's: it opens them as the user that it is and passes the descriptors ([`Ask`], [`Answer`]), so that the daemon needs
//! to see no directory and no file belongs to it.
//!
//! Neither side trusts the other. The daemon takes plain files only and bounds what each user may have under way; the
//! client opens nothing but the file, or plain names in the directory, that its user named, and for reading only what its
//! user wants to be sent.
//! Invariants: a line is bounded, the number of clients is bounded, a client that hangs up stops what it asked for.

mod client;
pub mod convert;
mod giver;
mod handover;
mod put;
mod server;
mod share;
mod source;
mod trust;
mod types;
mod wire;

pub use client::{Client, ClientError};
pub use handover::{Answer, Ask};
pub use put::{FilesDone, LeftOut, PutRequest, S3Access};
pub use server::{Approval, Comparing, Handler, Transfer, serve};
pub use share::{FromMember, SCHEME, Savings, ShareRequest, SharedFile, SharedFiles};
pub use source::{Listing, Page};
pub use trust::{ApproveRequest, Change, Changed, Compare, Compared, Household, Invited, Known, Named};
pub use types::{
    Device, Done, Failed, Forecast, GetRequest, Lane, LaneProgress, Lent, Peer, Progress, Reply, Request,
    Status,
};

/// The socket's name in its directory.
pub const SOCKET: &str = "control.sock";
