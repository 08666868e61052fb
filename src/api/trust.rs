//! What the control API says about who is trusted. As stable as the rest: fields are only added.

use serde::{Deserialize, Serialize};

use crate::trust::Tier;

/// Something that changes who is trusted: for root and the daemon's own user only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Make a token.
    Invite {
        /// For so many seconds.
        valid: u64,
        /// Whoever comes with it may vouch for others.
        may_vouch: bool,
    },
    /// Join whoever made this token.
    Join {
        /// As it was typed.
        token: String,
    },
    /// Make a member a neighbour again.
    Forget {
        /// Its name, or the beginning of its id.
        device: String,
    },
    /// Have no link with it any more.
    Block {
        /// Its name, or the beginning of its id.
        device: String,
    },
    /// Leave the household.
    Leave,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Invite { .. } => "invite",
            Self::Join { .. } => "join",
            Self::Forget { .. } => "forget",
            Self::Block { .. } => "block",
            Self::Leave => "leave",
        })
    }
}

/// A device that is to be approved; lines of [`Compare`] follow, of which the one with the code is answered by a line of
/// [`Compared`]. Hanging up ends it. For root and the daemon's own user only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApproveRequest {
    /// Its name, or the beginning of its id.
    pub device: String,
}

/// How far an approval is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// The same must be done on the other device.
    Waiting(Named),
    /// Both show this.
    Code {
        /// The other one.
        device: Named,
        /// Six digits.
        code: String,
    },
}

/// What a person says of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The other device shows the same one.
    pub same: bool,
}

/// A token, to be typed on the device that is to join.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// As it is typed.
    pub token: String,
    /// Seconds that it is good for.
    pub valid: u64,
}

impl std::fmt::Debug for Invited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invited")
            .field("valid", &self.valid)
            .finish_non_exhaustive()
    }
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changed {
    /// This device and that one are of one household now.
    Vouched(Named),
    /// That device is a neighbour again.
    Forgotten(Named),
    /// That device has no link any more.
    Blocked {
        /// Which.
        device: Named,
        /// Those whom only it had vouched for: they are neighbours again.
        fell: Vec<Named>,
    },
    /// This device trusts nobody any more; it had so many members.
    Left {
        /// Those it was of one household with.
        members: usize,
        /// It knows a passphrase, which lets it in again at the next start.
        passphrase: bool,
    },
}

/// A device, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Named {
    /// What it calls itself; empty where that is not known.
    pub name: String,
    /// Its public key, in hexadecimal.
    pub id: String,
}

impl Named {
    /// The first 8 digits of its id.
    pub fn short(&self) -> &str {
        self.id.get(..8).unwrap_or(&self.id)
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "{}", self.short()),
            name => write!(f, "{name} ({})", self.short()),
        }
    }
}

/// Everybody this device knows of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Household {
    /// This device.
    pub device: Named,
    /// Members first, then neighbours, then those who are blocked.
    pub peers: Vec<Known>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Its public key, in hexadecimal.
    pub id: String,
    /// What it calls itself, or did when it was last seen; empty where that is not known.
    pub name: String,
    /// `member` (vouched for), `neighbour` (joined by itself) or `blocked`.
    pub tier: Tier,
    /// Whether there is a link with it now.
    pub linked: bool,
    /// Where it is; `null` where there is no link.
    pub address: Option<String>,
    /// Round trip in milliseconds; `null` where there is no link.
    pub rtt_ms: Option<f64>,
    /// Seconds since its link broke; `null` where there is one, or there was none since the daemon's start.
    pub last_seen: Option<f64>,
    /// Those who vouched for it.
    pub vouched_by: Vec<Named>,
    /// Whether it may vouch for others.
    pub may_vouch: bool,
    /// What it lends, by name.
    pub uplinks: Vec<String>,
    /// Its person wants to approve this device now.
    pub asks: bool,
}

impl Known {
    /// For people.
    pub fn named(&self) -> Named {
        Named {
            name: self.name.clone(),
            id: self.id.clone(),
        }
    }
}
