//! What a peer may do, by its standing: the one table of rights, as data.
//!
//! Everything that one peer can do to another's device is a [`Right`], and nobody decides about one but
//! [`Tier::may`]. What is not in the table is no peer's right at all: the control socket is for users of the device.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a peer is trusted, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Put out by the owner or a member: no link with it.
    Blocked,
    /// Joined by itself, from the same LAN. Nobody vouched for it.
    Neighbour,
    /// Somebody of the household vouched for it.
    Member,
}

/// One thing a peer may or may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Have a link with this device.
    Link,
    /// Ask to be vouched for.
    AskForVouch,
    /// Have this device dial public hosts by name, on the web's ports, over unmetered uplinks, and speak the web to them.
    BorrowWeb,
    /// Have it dial all ports that the owner lends.
    BorrowPorts,
    /// Have it dial over uplinks that are kept for members, metered ones among them.
    BorrowKept,
    /// Use all of the tunnels there are, not only the neighbours' share.
    BorrowMembersShare,
    /// Carry this device's TLS, or content whose digest is known beforehand: nothing that it could change unnoticed.
    CarryProven,
    /// Carry plain HTTP, which it could read and change.
    CarryPlain,
    /// Hear who else is vouched for or put out, and say so.
    Statements,
    /// Ask for what the household has, hear of it and serve it: anybody else learns nothing of it.
    Share,
    /// Have a place among this device's links and in its memory, however many there are who joined by themselves.
    Place,
}

/// Who may do what: the least tier that a right takes. Threats, 1.1.
pub const RIGHTS: &[(Right, Tier)] = &[
    (Right::Link, Tier::Neighbour),
    (Right::AskForVouch, Tier::Neighbour),
    (Right::BorrowWeb, Tier::Neighbour),
    (Right::CarryProven, Tier::Neighbour),
    (Right::BorrowPorts, Tier::Member),
    (Right::BorrowKept, Tier::Member),
    (Right::BorrowMembersShare, Tier::Member),
    (Right::CarryPlain, Tier::Member),
    (Right::Statements, Tier::Member),
    (Right::Share, Tier::Member),
    (Right::Place, Tier::Member),
];

impl Tier {
    /// Whether a peer of this tier has that right. What is not in the table, nobody has.
    pub fn may(self, right: Right) -> bool {
        RIGHTS.iter().any(|(of, least)| *of == right && self >= *least)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocked => "blocked",
            Self::Neighbour => "neighbour",
            Self::Member => "member",
        })
    }
}
